/* Activation statistics: collects, writes, reads and merges them. */
#include "lib/stats/stats.h"

#include <math.h>
#include <stdlib.h>

enum sum_kind { SUM_ABS, SUM_SQ, SEQ_SQ, SUM, SUM_KINDS };
static const char *const sum_names[SUM_KINDS] = {"sum_abs", "sum_sq", "seq_sq", "sum"};
/* Axes of a layer along which gradients are summed. AXIS_EXPERT_FFN is separate, because each expert has one. */
enum { TAYLOR_AXES = 3 };
static const enum model_axis taylor_axes[TAYLOR_AXES] = {AXIS_QUERY, AXIS_KEY, AXIS_FFN};
static const char *const taylor_names[TAYLOR_AXES] = {"query", "key", "ffn"};

/* The sums at one point of one layer. */
struct point_sums {
    size_t cols;
    double *sum[SUM_KINDS]; /* [cols] each */
};

enum { EXPERT_POINTS = 2 }; /* POINT_EXPERT_IN, POINT_EXPERT_DOWN_IN */
struct expert_sums {
    struct point_sums point[EXPERT_POINTS];
    double count, output;
    double *taylor; /* [expert_ffn] */
};

struct layer_sums {
    struct point_sums point[POINT_EXPERT_IN]; /* points outside layers are kept in layer 0 */
    struct expert_sums *experts;              /* [experts] */
    double influence;
    double *angular;             /* [layers up to this one] */
    double *taylor[TAYLOR_AXES]; /* [size of the axis] */
};

struct stats {
    struct model_config config;
    char vocab[DIGEST_TEXT_SIZE]; /* "" when unknown */
    uint64_t positions, sequences;
    /* Older streams have neither signed sums nor angles; gradients are optional. */
    bool is_signed, gradients;
    struct layer_sums *layers; /* [n_layers] */
    double *head_gram;         /* [cols][cols] of POINT_HEAD_IN; NULL: not requested */
    struct arena memory;
    /* While a batch is collected: */
    struct buf gram; /* head_gram of this batch alone */
    const struct model_input *in;
    struct buf previous; /* the residual stream before the current layer */
    struct buf lengths;  /* positions of each sequence that an expert gets */
    struct buf ends;     /* [n_layers + 1][n_seqs][widest] the residual stream at the end of each sequence */
};

static bool point_in_layer(enum model_point p) {
    return p != POINT_EMBED && p != POINT_HEAD_IN;
}

static bool is_of_expert(enum model_point p) {
    return p == POINT_EXPERT_IN || p == POINT_EXPERT_DOWN_IN;
}

static struct point_sums *point_of(const struct stats *s, enum model_point p, uint32_t layer, uint32_t expert) {
    struct layer_sums *l = &s->layers[layer];
    return is_of_expert(p) ? &l->experts[expert].point[p - POINT_EXPERT_IN] : &l->point[p];
}

static int make_point(struct stats *s, enum model_point p, uint32_t layer, uint32_t expert, struct err *e) {
    struct point_sums *sums = point_of(s, p, layer, expert);
    if (!point_in_layer(p) && layer) return 0;
    sums->cols = model_point_cols(&s->config, p, layer);
    for (int k = 0; sums->cols && k < SUM_KINDS; k++) {
        sums->sum[k] = arena_array(&s->memory, sums->cols, sizeof(double), e);
        if (!sums->sum[k]) return e->code;
    }
    return 0;
}

static double *make_axis(struct stats *s, enum model_axis axis, uint32_t layer, struct err *e) {
    return arena_array(&s->memory, model_axis_size(&s->config, axis, layer) + 1, sizeof(double), e);
}

static int make_layer(struct stats *s, uint32_t layer, struct err *e) {
    uint32_t experts = s->config.layers[layer].experts;
    struct layer_sums *l = &s->layers[layer];
    int rc = 0;
    l->angular = arena_array(&s->memory, layer + 1, sizeof *l->angular, e);
    if (!l->angular) return e->code;
    for (size_t i = 0; i < TAYLOR_AXES; i++)
        if (!(l->taylor[i] = make_axis(s, taylor_axes[i], layer, e))) return e->code;
    for (int p = 0; !rc && p < POINT_EXPERT_IN; p++) rc = make_point(s, (enum model_point)p, layer, 0, e);
    if (rc || !experts) return rc;
    s->layers[layer].experts = arena_array(&s->memory, experts, sizeof(struct expert_sums), e);
    if (!s->layers[layer].experts) return e->code;
    for (uint32_t i = 0; !rc && i < experts; i++) {
        s->layers[layer].experts[i].taylor = make_axis(s, AXIS_EXPERT_FFN, layer, e);
        if (!s->layers[layer].experts[i].taylor) return e->code;
        rc = make_point(s, POINT_EXPERT_IN, layer, i, e);
        if (!rc) rc = make_point(s, POINT_EXPERT_DOWN_IN, layer, i, e);
    }
    return rc;
}

int stats_new(struct stats **out, const struct model_config *c, const struct digest *vocab, struct err *e) {
    struct stats *s = mem_zalloc(sizeof *s, e);
    if (!s) return e->code;
    int rc = model_config_copy(&s->config, c, &s->memory, e);
    if (!rc) {
        s->layers = arena_array(&s->memory, c->n_layers, sizeof *s->layers, e);
        if (!s->layers) rc = e->code;
    }
    for (uint32_t l = 0; !rc && l < c->n_layers; l++) rc = make_layer(s, l, e);
    if (vocab) digest_text(*vocab, s->vocab);
    s->is_signed = true;
    if (rc)
        stats_free(s);
    else
        *out = s;
    return rc;
}

int stats_want_head_gram(struct stats *s, struct err *e) {
    size_t n = point_of(s, POINT_HEAD_IN, 0, 0)->cols;
    if (!s->head_gram) s->head_gram = arena_array(&s->memory, n, n * sizeof *s->head_gram, e);
    return s->head_gram ? 0 : e->code;
}

void stats_free(struct stats *s) {
    if (!s) return;
    buf_release(&s->gram);
    buf_release(&s->previous);
    buf_release(&s->lengths);
    buf_release(&s->ends);
    arena_release(&s->memory);
    mem_free(s);
}

/* ---- collecting -------------------------------------------------------------------------------------------------- */

/* The number of observed positions of each sequence; NULL with *e set if memory is out. */
static const uint32_t *seen_lengths(struct stats *s, const struct model_seen *seen, struct err *e) {
    if (!seen->positions) return s->in->lengths;
    s->lengths.len = 0;
    if (buf_reserve(&s->lengths, s->in->n_seqs * sizeof(uint32_t), e)) return NULL;
    uint32_t *lengths = (uint32_t *)(void *)s->lengths.data, end = 0;
    for (size_t q = 0, r = 0; q < s->in->n_seqs; q++) {
        size_t first = r;
        end += s->in->lengths[q];
        while (r < seen->rows && seen->positions[r] < end) r++;
        lengths[q] = (uint32_t)(r - first);
    }
    return lengths;
}

static double angle(const float *x, const float *y, size_t n) {
    double xx = 0, yy = 0, xy = 0;
    for (size_t i = 0; i < n; i++) xx += (double)x[i] * x[i], yy += (double)y[i] * y[i], xy += (double)x[i] * y[i];
    double cosine = xx > 0 && yy > 0 ? xy / sqrt(xx * yy) : 0;
    return acos(fmax(-1, fmin(1, cosine)));
}

/* Keeps the states of each sequence's last position, and adds their angles to the inputs of this
 * layer and all before it. */
static int collect_angles(struct stats *s, const struct model_seen *seen, const float *x, struct err *e) {
    const double pi = 3.14159265358979323846;
    size_t n = s->in->n_seqs, at = seen->point == POINT_EMBED ? 0 : seen->layer + 1;
    size_t first = model_axis_size(&s->config, AXIS_INPUT, 0), widest = first > seen->cols ? first : seen->cols;
    if (s->config.hidden > widest) widest = s->config.hidden;
    if (at == 0) s->ends.len = 0;
    if (at == 0 && buf_reserve(&s->ends, (s->config.n_layers + 1) * n * widest * sizeof(float), e)) return e->code;
    float *ends = (float *)(void *)s->ends.data;
    for (size_t q = 0, row = 0; q < n; q++) {
        row += s->in->lengths[q];
        float *end = ends + (at * n + q) * widest;
        memcpy(end, x + (row - 1) * seen->cols, seen->cols * sizeof *end);
        for (size_t i = 0; i < at; i++) {
            bool same = model_axis_size(&s->config, AXIS_INPUT, (uint32_t)i) == seen->cols;
            double by = same ? angle(ends + (i * n + q) * widest, end, seen->cols) / pi : 0.5;
            s->layers[seen->layer].angular[i] += by;
        }
    }
    return 0;
}

/* Influence and angles of the residual stream: a layer's output is the next layer's input. */
static int collect_residual(struct stats *s, const struct model_seen *seen, const float *x, struct err *e) {
    size_t n = seen->rows * seen->cols;
    bool same = seen->point == POINT_EMBED || model_axis_size(&s->config, AXIS_INPUT, seen->layer) == seen->cols;
    if (!same) /* vectors of different sizes have no angle; counted as a right angle */
        s->layers[seen->layer].influence += (double)seen->rows;
    else if (seen->point == POINT_LAYER)
        s->layers[seen->layer].influence += kernel_cosine_distance_sum(kernel_f32((const float *)s->previous.data),
                                                                       kernel_f32(x), seen->rows, seen->cols);
    if (collect_angles(s, seen, x, e)) return e->code;
    s->previous.len = 0;
    int rc = buf_reserve(&s->previous, n * sizeof *x, e);
    if (!rc) memcpy(s->previous.data, x, n * sizeof *x);
    return rc;
}

static void add_signed(double *sum, const float *x, size_t rows, size_t cols) {
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < cols; i++) sum[i] += x[r * cols + i];
}

/* Sums in f32 within a batch, in f64 across batches. */
static int collect_gram(struct stats *s, const struct model_seen *seen, const float *x, struct err *e) {
    size_t n = seen->cols;
    s->gram.len = 0;
    if (buf_reserve(&s->gram, n * n * sizeof(float), e)) return e->code;
    float *gram = (float *)(void *)s->gram.data;
    memset(gram, 0, n * n * sizeof *gram);
    kernel_gram(n, seen->rows, x, 1, gram);
    kernel_mirror(n, gram);
    for (size_t i = 0; i < n * n; i++) s->head_gram[i] += gram[i];
    return 0;
}

static int collect_point(void *ctx, const struct model_seen *seen, struct err *e) {
    struct stats *s = ctx;
    const float *x;
    if (seen->point >= POINT_COUNT) return 0; /* not the input of a matrix */
    if (model_seen_f32(seen, &x, e)) return e->code;
    if (seen->point == POINT_EXPERT_OUT) {
        struct expert_sums *expert = &s->layers[seen->layer].experts[seen->expert];
        expert->count += (double)seen->rows;
        expert->output += kernel_row_norms_sum(kernel_f32(x), seen->rows, seen->cols);
        return 0;
    }
    struct point_sums *sums = point_of(s, seen->point, seen->layer, seen->expert);
    if (seen->cols != sums->cols)
        return err_set(e, ERR_DATA, "the statistics are of another model: %zu columns against %zu", sums->cols,
                       seen->cols);
    const uint32_t *lengths = seen_lengths(s, seen, e);
    if (!lengths) return e->code;
    kernel_col_sums(sums->sum[SUM_ABS], sums->sum[SUM_SQ], kernel_f32(x), seen->rows, seen->cols);
    add_signed(sums->sum[SUM], x, seen->rows, seen->cols);
    kernel_seq_mean_abs_sq(sums->sum[SEQ_SQ], kernel_f32(x), lengths, s->in->n_seqs, seen->cols);
    if (seen->point == POINT_HEAD_IN && s->head_gram) return collect_gram(s, seen, x, e);
    return seen->point == POINT_EMBED || seen->point == POINT_LAYER ? collect_residual(s, seen, x, e) : 0;
}

int stats_collect(struct stats *s, struct model *m, struct grad_tape *scratch, const struct model_input *in,
                  struct err *e) {
    s->in = in;
    int rc = model_infer(m, scratch, in, collect_point, s, NULL, NULL, e);
    if (rc) return rc;
    s->positions += in->n_positions;
    s->sequences += in->n_seqs;
    return 0;
}

struct gradients {
    struct stats *s;
    const struct model *m;
};

/* sums[i] += |w dL/dw| over the tensor's row or column i. */
static void add_products(double *sums, const struct model_param *p, bool rows) {
    const float *w = model_host_value(p), *g = model_host_grad(p);
    uint64_t n = p->desc.dims[0], cols = p->desc.rank == 2 ? p->desc.dims[1] : 1;
    for (uint64_t r = 0; r < n; r++)
        for (uint64_t i = 0; i < cols; i++) sums[rows ? r : i] += fabs((double)w[r * cols + i] * g[r * cols + i]);
}

static double *taylor_of(const struct stats *s, enum model_axis axis, struct model_slot slot) {
    if (axis == AXIS_EXPERT_FFN) return s->layers[slot.layer].experts[slot.expert].taylor;
    for (size_t i = 0; i < TAYLOR_AXES; i++)
        if (taylor_axes[i] == axis) return s->layers[slot.layer].taylor[i];
    return NULL;
}

static void add_layer(void *ctx, size_t layer, int thread) {
    const struct gradients *g = ctx;
    size_t end = model_slot_of_layer(&g->m->config, (uint32_t)layer + 1);
    (void)thread;
    for (size_t i = model_slot_of_layer(&g->m->config, (uint32_t)layer); i < end; i++) {
        const struct model_param *p = &g->m->params[i];
        const struct model_role_info *info = model_role_info(p->slot.role);
        bool is_first = info->out && model_rank(&g->m->config, p->slot.role, p->slot.layer);
        double *rows = is_first ? NULL : taylor_of(g->s, info->rows, p->slot),
               *cols = taylor_of(g->s, info->cols, p->slot);
        if (rows && p->grad_begun) add_products(rows, p, true);
        if (cols && p->grad_begun) add_products(cols, p, false);
    }
}

static int add_gradients(void *ctx, const struct model *m, struct err *e) {
    struct gradients g = {ctx, m};
    (void)e;
    parallel_for(m->config.n_layers, add_layer, &g);
    return 0;
}

int stats_collect_gradients(struct stats *s, struct model *m, struct grad_tape *recording, const struct model_input *in,
                            struct err *e) {
    struct stats_labels next = {.drawn = false};
    s->gradients = true;
    return stats_each_gradient(m, recording, in, &next, add_gradients, s, e);
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

static int write_meta(const struct stats *s, struct stream_writer *w, struct err *e) {
    cJSON *meta = cJSON_CreateObject(), *model = model_config_to_json(&s->config, e);
    if (!model) {
        cJSON_Delete(meta);
        return e->code;
    }
    bool ok = meta && json_put_str(meta, "kind", stream_kind_name(STREAM_STATS)) &&
              cJSON_AddItemToObject(meta, "model", model) && (!s->vocab[0] || json_put_str(meta, "vocab", s->vocab)) &&
              json_put_u64(meta, "positions", s->positions) && json_put_u64(meta, "sequences", s->sequences) &&
              (!s->is_signed || json_put_bool(meta, "signed", true)) &&
              (!s->gradients || json_put_bool(meta, "gradients", true)) &&
              (!s->head_gram || json_put_bool(meta, "head_gram", true));
    int rc = ok ? stream_write_meta(w, meta, e) : err_nomem(e, "statistics");
    cJSON_Delete(meta);
    return rc;
}

/* One tensor of a layer's statistics; those outside layers are with layer 0. */
struct item {
    char name[128];
    unsigned rank; /* 2: a square matrix */
    uint64_t n;    /* elements, or rows of the matrix; 0: this layer has no such tensor */
    double *sum;
};
enum {
    LAYER_SUMS = POINT_EXPERT_IN * SUM_KINDS,
    LAYER_ITEMS = LAYER_SUMS + 2 + TAYLOR_AXES + 1,
    EXPERT_SUMS = EXPERT_POINTS * SUM_KINDS,
    EXPERT_ITEMS = EXPERT_SUMS + 3
};

static size_t items_of(const struct stats *s, uint32_t layer) {
    return LAYER_ITEMS + (size_t)s->config.layers[layer].experts * EXPERT_ITEMS;
}

static struct item scalar(double *sum) {
    return (struct item){.rank = 0, .n = 1, .sum = sum};
}

static uint64_t elems_of(const struct item *t) {
    return t->rank == 2 ? t->n * t->n : t->n;
}

static struct item gram_item(const struct stats *s, uint32_t layer) {
    struct item t = {.rank = 2, .sum = s->head_gram};
    if (layer == 0 && s->head_gram) t.n = point_of(s, POINT_HEAD_IN, 0, 0)->cols;
    snprintf(t.name, sizeof t.name, "%s.gram", model_point_name(POINT_HEAD_IN));
    return t;
}

/* The items after the sums at points, of which this is number k. */
static struct item layer_item(const struct stats *s, uint32_t layer, size_t k) {
    struct layer_sums *l = &s->layers[layer];
    struct item t = scalar(&l->influence);
    const char *name = "influence";
    if (k == 2 + TAYLOR_AXES) return gram_item(s, layer);
    if (k == 1) {
        t = (struct item){.rank = 1, .n = s->is_signed ? layer + 1 : 0, .sum = l->angular};
        name = "angular";
    } else if (k > 1) {
        uint64_t n = model_axis_size(&s->config, taylor_axes[k - 2], layer);
        t = (struct item){.rank = 1, .n = s->gradients ? n : 0, .sum = l->taylor[k - 2]};
        name = taylor_names[k - 2];
    }
    snprintf(t.name, sizeof t.name, "layers.%u.%s%s", layer, k > 1 ? "taylor." : "", name);
    return t;
}

static struct item expert_item(const struct stats *s, uint32_t layer, uint32_t expert, size_t k) {
    static const char *const names[] = {"count", "output", "taylor"};
    struct expert_sums *x = &s->layers[layer].experts[expert];
    uint64_t n = s->gradients ? model_axis_size(&s->config, AXIS_EXPERT_FFN, layer) : 0;
    struct item t = k == 2 ? (struct item){.rank = 1, .n = n, .sum = x->taylor} : scalar(k ? &x->output : &x->count);
    snprintf(t.name, sizeof t.name, "layers.%u.experts.%u.%s", layer, expert, names[k]);
    return t;
}

static struct item item_at(const struct stats *s, uint32_t layer, size_t i) {
    struct item t;
    bool of_expert = i >= LAYER_ITEMS;
    uint32_t expert = of_expert ? (uint32_t)((i - LAYER_ITEMS) / EXPERT_ITEMS) : 0;
    size_t k = of_expert ? (i - LAYER_ITEMS) % EXPERT_ITEMS : i;
    if (of_expert && k >= EXPERT_SUMS) return expert_item(s, layer, expert, k - EXPERT_SUMS);
    if (!of_expert && k >= LAYER_SUMS) return layer_item(s, layer, k - LAYER_SUMS);
    enum model_point p = (enum model_point)((of_expert ? POINT_EXPERT_IN : 0) + k / SUM_KINDS);
    const struct point_sums *sums = point_of(s, p, layer, expert);
    t = (struct item){.rank = 1, .n = sums->cols, .sum = sums->sum[k % SUM_KINDS]};
    if (k % SUM_KINDS == SUM && !s->is_signed) t.n = 0;
    int n = 0;
    if (of_expert)
        n = snprintf(t.name, sizeof t.name, "layers.%u.experts.%u.", layer, expert);
    else if (point_in_layer(p))
        n = snprintf(t.name, sizeof t.name, "layers.%u.", layer);
    snprintf(t.name + n, sizeof t.name - (size_t)n, "%s.%s", model_point_name(p), sum_names[k % SUM_KINDS]);
    return t;
}

static int write_one(struct stream_writer *w, const struct item *t, struct err *e) {
    struct tensor_desc d;
    uint64_t dims[2] = {t->n, t->n};
    int rc = tensor_desc_init(&d, t->name, DT_F64, t->rank, dims, e);
    return rc ? rc : stream_write_tensor(w, &d, NULL, t->sum, e);
}

int stats_write(const struct stats *s, struct stream_writer *w, struct err *e) {
    int rc = write_meta(s, w, e);
    for (uint32_t l = 0; !rc && l < s->config.n_layers; l++)
        for (size_t i = 0; !rc && i < items_of(s, l); i++) {
            struct item t = item_at(s, l, i);
            if (t.n) rc = write_one(w, &t, e);
        }
    return rc;
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

/* *out = the number between the prefix `before` and the next dot; false: there is none below `limit`. */
static bool number_after(const char *name, const char *before, uint32_t limit, uint32_t *out) {
    char digits[16] = {0};
    size_t n = strlen(before);
    if (strncmp(name, before, n) != 0) return false;
    const char *dot = strchr(name + n, '.');
    uint64_t v;
    if (!dot || (size_t)(dot - name) - n >= sizeof digits) return false;
    memcpy(digits, name + n, (size_t)(dot - name) - n);
    if (!parse_u64(digits, &v) || v >= limit) return false;
    *out = (uint32_t)v;
    return true;
}

/* The item with this name; n 0: there is none. */
static struct item find_item(const struct stats *s, const char *name) {
    char before[48];
    uint32_t layer = 0, expert;
    (void)!number_after(name, "layers.", s->config.n_layers, &layer); /* otherwise it is outside layers, or unknown */
    size_t i = 0, end = LAYER_ITEMS;
    snprintf(before, sizeof before, "layers.%u.experts.", layer);
    if (number_after(name, before, s->config.layers[layer].experts, &expert)) {
        i = LAYER_ITEMS + (size_t)expert * EXPERT_ITEMS;
        end = i + EXPERT_ITEMS;
    }
    for (; i < end; i++) {
        struct item t = item_at(s, layer, i);
        if (t.n && strcmp(t.name, name) == 0) return t;
    }
    return (struct item){.n = 0};
}

static size_t count_items(const struct stats *s) {
    size_t n = 0;
    for (uint32_t l = 0; l < s->config.n_layers; l++)
        for (size_t i = 0; i < items_of(s, l); i++) n += item_at(s, l, i).n != 0;
    return n;
}

static bool has_suffix(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

static int add_tensor(struct stats *s, struct stream_reader *r, const struct tensor_desc *d, struct buf *data,
                      struct err *e) {
    struct item t = find_item(s, d->name);
    if (!t.n)
        return err_set(e, ERR_DATA, "%s: tensor '%s' is not a statistic of this model", stream_reader_name(r), d->name);
    if (d->dtype != DT_F64 || d->rank != t.rank || tensor_elems(d) != elems_of(&t) ||
        (t.rank == 2 && d->dims[0] != t.n))
        return err_set(e, ERR_DATA, "%s: tensor '%s' has the wrong type or shape", stream_reader_name(r), d->name);
    int rc = stream_load_tensor(r, data, e);
    if (rc) return rc;
    for (uint64_t i = 0; i < elems_of(&t); i++) {
        double v = ((const double *)data->data)[i];
        bool may_be_less = t.rank != 1 || has_suffix(d->name, ".sum");
        if (!isfinite(v) || v < (may_be_less ? -1e30 : 0))
            return err_set(e, ERR_DATA, "%s: tensor '%s': element %llu is not a sum (%g)", stream_reader_name(r),
                           d->name, (unsigned long long)i, v);
        t.sum[i] += v;
    }
    return 0;
}

static int check_shape(const struct stats *s, const struct model_config *c, struct err *e) {
    const struct model_config *t = &s->config;
    if (t->n_layers != c->n_layers)
        return err_set(e, ERR_DATA, "statistics and model disagree: %u layers against %u", t->n_layers, c->n_layers);
    if (t->hidden != c->hidden || t->vocab_size != c->vocab_size || t->head_dim != c->head_dim ||
        t->layer_kind != c->layer_kind || model_embed_dim(t) != model_embed_dim(c))
        return err_set(e, ERR_DATA, "statistics and model disagree: hidden %u, vocabulary %u against %u, %u", t->hidden,
                       t->vocab_size, c->hidden, c->vocab_size);
    for (uint32_t l = 0; l < c->n_layers; l++)
        if (memcmp(&t->layers[l], &c->layers[l], sizeof c->layers[l]) != 0)
            return err_set(e, ERR_DATA, "statistics and model disagree on the shape of layer %u", l);
    return 0;
}

/* META of a segment: creates the statistics at the first one, checks that later ones match, and adds the counts. */
static int take_meta(struct stats **s, const struct stream_reader *r, const cJSON *meta, struct err *e) {
    struct arena scratch = {0};
    struct model_config c;
    uint64_t positions, sequences;
    const char *vocab = "";
    bool is_signed = false, gradients = false, head_gram = false;
    int rc = model_config_from_json(&c, cJSON_GetObjectItemCaseSensitive(meta, "model"), &scratch, e);
    if (!rc) rc = json_get_u64(meta, "positions", 0, 1ull << 53, &positions, e);
    if (!rc) rc = json_get_u64(meta, "sequences", 0, 1ull << 53, &sequences, e);
    if (!rc) rc = json_opt_str(meta, "vocab", &vocab, e);
    if (!rc) rc = json_opt_bool(meta, "signed", &is_signed, e);
    if (!rc) rc = json_opt_bool(meta, "gradients", &gradients, e);
    if (!rc) rc = json_opt_bool(meta, "head_gram", &head_gram, e);
    if (!rc && !*s) {
        rc = stats_new(s, &c, NULL, e);
        if (!rc) snprintf((*s)->vocab, sizeof(*s)->vocab, "%s", vocab);
        if (!rc) (*s)->is_signed = is_signed, (*s)->gradients = gradients;
        if (!rc && head_gram) rc = stats_want_head_gram(*s, e);
    } else if (!rc)
        rc = check_shape(*s, &c, e);
    if (!rc && strcmp((*s)->vocab, vocab) != 0)
        rc = err_set(e, ERR_DATA, "statistics of two vocabularies: %s and %.64s", (*s)->vocab, vocab);
    if (!rc && ((*s)->is_signed != is_signed || (*s)->gradients != gradients || !(*s)->head_gram == head_gram))
        rc = err_set(e, ERR_DATA, "statistics %s and without cannot be added",
                     (*s)->gradients != gradients   ? "with gradients"
                     : (*s)->is_signed != is_signed ? "with signed sums"
                                                    : "with the head's second moments");
    if (!rc) (*s)->positions += positions, (*s)->sequences += sequences;
    arena_release(&scratch);
    return rc ? err_prefix(e, "%s", stream_reader_name(r)) : 0;
}

int stats_load(struct stats **out, struct stream_reader *r, struct err *e) {
    struct stats *s = NULL;
    struct buf data = {0};
    struct stream_item item = {0};
    int rc = 0;
    size_t tensors = 0, expected = 0;
    while (!rc && !(rc = stream_next(r, &item, e)) && item.type != ITEM_EOF) {
        if (item.type == ITEM_META) {
            rc = take_meta(&s, r, item.json, e);
            expected = !rc ? count_items(s) : 0;
            tensors = 0;
        } else if (item.type == ITEM_TENSOR) {
            tensors++;
            struct tensor_desc d = item.desc;
            rc = add_tensor(s, r, &d, &data, e);
        } else if (item.type == ITEM_SEGMENT_END && tensors != expected)
            rc = err_set(e, ERR_DATA, "%s: %zu tensors of statistics, expected %zu", stream_reader_name(r), tensors,
                         expected);
    }
    buf_release(&data);
    if (!rc && !s) rc = err_set(e, ERR_DATA, "%s: no statistics", stream_reader_name(r));
    if (rc)
        stats_free(s);
    else
        *out = s;
    return rc;
}

int stats_check(const struct stats *s, const struct model_config *c, struct digest vocab, struct err *e) {
    char own[DIGEST_TEXT_SIZE];
    if (check_shape(s, c, e)) return e->code;
    digest_text(vocab, own);
    if ((!vocab.lo && !vocab.hi) || !s->vocab[0] || strcmp(s->vocab, own) == 0) return 0;
    return err_set(e, ERR_DATA, "statistics and model disagree: tokenizer %s against %s", s->vocab, own);
}

/* ---- access ------------------------------------------------------------------------------------------------------ */

uint64_t stats_positions(const struct stats *s) {
    return s->positions;
}
uint64_t stats_sequences(const struct stats *s) {
    return s->sequences;
}
size_t stats_cols(const struct stats *s, enum model_point p, uint32_t layer) {
    return point_of(s, p, layer, 0)->cols;
}
const double *stats_sum_abs(const struct stats *s, enum model_point p, uint32_t layer) {
    return point_of(s, p, layer, 0)->sum[SUM_ABS];
}
const double *stats_sum_sq(const struct stats *s, enum model_point p, uint32_t layer) {
    return point_of(s, p, layer, 0)->sum[SUM_SQ];
}
const double *stats_seq_sq(const struct stats *s, enum model_point p, uint32_t layer) {
    return point_of(s, p, layer, 0)->sum[SEQ_SQ];
}

const double *stats_input_seq_sq(const struct stats *s, enum model_point p, struct model_slot slot) {
    return point_of(s, p, slot.layer, slot.expert)->sum[SEQ_SQ];
}
const double *stats_input_sum(const struct stats *s, enum model_point p, struct model_slot slot) {
    return s->is_signed ? point_of(s, p, slot.layer, slot.expert)->sum[SUM] : NULL;
}
const double *stats_head_gram(const struct stats *s, size_t *cols) {
    *cols = point_of(s, POINT_HEAD_IN, 0, 0)->cols;
    return s->head_gram;
}
bool stats_has_gradients(const struct stats *s) {
    return s->gradients;
}
const double *stats_taylor(const struct stats *s, enum model_axis axis, struct model_slot slot) {
    return s->gradients ? taylor_of(s, axis, slot) : NULL;
}
double stats_angular(const struct stats *s, uint32_t first, uint32_t last) {
    return s->is_signed && s->sequences ? s->layers[last].angular[first] / (double)s->sequences : NAN;
}
double stats_expert_count(const struct stats *s, uint32_t layer, uint32_t expert) {
    return s->layers[layer].experts[expert].count;
}
double stats_expert_output(const struct stats *s, uint32_t layer, uint32_t expert) {
    return s->layers[layer].experts[expert].output;
}

double stats_influence(const struct stats *s, uint32_t layer) {
    return s->positions ? s->layers[layer].influence / (double)s->positions : 0;
}

void stats_rank_layers(const struct stats *s, uint32_t *out) {
    for (uint32_t n = 0; n < s->config.n_layers; n++) {
        uint32_t at = n;
        for (; at && stats_influence(s, out[at - 1]) > stats_influence(s, n); at--) out[at] = out[at - 1];
        out[at] = n;
    }
}

bool stats_input_point(const struct model_config *c, enum model_role role, enum model_point *out) {
    if (role == ROLE_EMBED && c->tied) role = ROLE_HEAD;
    *out = model_role_info(role)->input;
    return *out != POINT_COUNT;
}

const struct model_config *stats_config(const struct stats *s) {
    return &s->config;
}

static const double *input_sum(const struct stats *s, struct model_slot slot, enum sum_kind kind, uint64_t *cols,
                               double *positions) {
    enum model_point point;
    if (!stats_input_point(&s->config, slot.role, &point)) return NULL;
    const struct point_sums *sums = point_of(s, point, model_role_in_layer(slot.role) ? slot.layer : 0, slot.expert);
    *cols = sums->cols;
    *positions = is_of_expert(point) ? stats_expert_count(s, slot.layer, slot.expert) : (double)s->positions;
    return sums->sum[kind];
}

const double *stats_input_sq(const struct stats *s, struct model_slot slot, uint64_t *cols, double *positions) {
    return input_sum(s, slot, SUM_SQ, cols, positions);
}
const double *stats_input_abs(const struct stats *s, struct model_slot slot, uint64_t *cols, double *positions) {
    return input_sum(s, slot, SUM_ABS, cols, positions);
}
