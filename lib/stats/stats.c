/* Activation statistics: collecting, writing, reading, merging. */
#include "lib/stats/stats.h"

#include <math.h>
#include <stdlib.h>

enum sum_kind { SUM_ABS, SUM_SQ, SEQ_SQ, SUM_KINDS };
static const char *const sum_names[SUM_KINDS] = {"sum_abs", "sum_sq", "seq_sq"};

/* The sums of one point of one layer. */
struct point_sums {
    size_t cols;
    double *sum[SUM_KINDS]; /* [cols] each */
};

enum { EXPERT_POINTS = 2 }; /* POINT_EXPERT_IN, POINT_EXPERT_DOWN_IN */
struct expert_sums {
    struct point_sums point[EXPERT_POINTS];
    double count, output;
};

struct layer_sums {
    struct point_sums point[POINT_EXPERT_IN]; /* those outside layers are in the first */
    struct expert_sums *experts;              /* [experts] */
    double influence;
};

struct stats {
    struct model_config config;
    char vocab[DIGEST_TEXT_SIZE]; /* "" when unknown */
    uint64_t positions, sequences;
    struct layer_sums *layers; /* [n_layers] */
    struct arena memory;
    /* while a batch is collected */
    const struct model_input *in;
    struct buf previous; /* copy of the residual stream before the layer */
    struct buf lengths;  /* positions of each sequence that an expert sees */
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

static int make_layer(struct stats *s, uint32_t layer, struct err *e) {
    uint32_t experts = s->config.layers[layer].experts;
    int rc = 0;
    for (int p = 0; !rc && p < POINT_EXPERT_IN; p++) rc = make_point(s, (enum model_point)p, layer, 0, e);
    if (rc || !experts) return rc;
    s->layers[layer].experts = arena_array(&s->memory, experts, sizeof(struct expert_sums), e);
    if (!s->layers[layer].experts) return e->code;
    for (uint32_t i = 0; !rc && i < experts; i++) {
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
    if (rc)
        stats_free(s);
    else
        *out = s;
    return rc;
}

void stats_free(struct stats *s) {
    if (!s) return;
    buf_release(&s->previous);
    buf_release(&s->lengths);
    arena_release(&s->memory);
    mem_free(s);
}

/* ---- collecting ------------------------------------------------------------------------------------------------ */

/* How many of the positions that are seen each sequence has. */
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

/* The residual stream: a layer's output is the next one's input. */
static int collect_residual(struct stats *s, const struct model_seen *seen, struct err *e) {
    size_t n = seen->rows * seen->cols;
    bool same = seen->point == POINT_EMBED || model_axis_size(&s->config, AXIS_INPUT, seen->layer) == seen->cols;
    if (!same) /* there is no angle between vectors of two lengths: as if it were a right one */
        s->layers[seen->layer].influence += (double)seen->rows;
    else if (seen->point == POINT_LAYER)
        s->layers[seen->layer].influence += kernel_cosine_distance_sum(kernel_f32((const float *)s->previous.data),
                                                                       kernel_f32(seen->x), seen->rows, seen->cols);
    s->previous.len = 0;
    int rc = buf_reserve(&s->previous, n * sizeof *seen->x, e);
    if (!rc) memcpy(s->previous.data, seen->x, n * sizeof *seen->x);
    return rc;
}

static int collect_point(void *ctx, const struct model_seen *seen, struct err *e) {
    struct stats *s = ctx;
    if (seen->point >= POINT_COUNT) return 0; /* no input of a matrix */
    if (seen->point == POINT_EXPERT_OUT) {
        struct expert_sums *expert = &s->layers[seen->layer].experts[seen->expert];
        expert->count += (double)seen->rows;
        expert->output += kernel_row_norms_sum(kernel_f32(seen->x), seen->rows, seen->cols);
        return 0;
    }
    struct point_sums *sums = point_of(s, seen->point, seen->layer, seen->expert);
    if (seen->cols != sums->cols)
        return err_set(e, ERR_DATA, "statistics of another model: %zu columns against %zu", sums->cols, seen->cols);
    const uint32_t *lengths = seen_lengths(s, seen, e);
    if (!lengths) return e->code;
    kernel_col_sums(sums->sum[SUM_ABS], sums->sum[SUM_SQ], kernel_f32(seen->x), seen->rows, seen->cols);
    kernel_seq_mean_abs_sq(sums->sum[SEQ_SQ], kernel_f32(seen->x), lengths, s->in->n_seqs, seen->cols);
    return seen->point == POINT_EMBED || seen->point == POINT_LAYER ? collect_residual(s, seen, e) : 0;
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

/* ---- writing ----------------------------------------------------------------------------------------------------- */

static int write_meta(const struct stats *s, struct stream_writer *w, struct err *e) {
    cJSON *meta = cJSON_CreateObject(), *model = model_config_to_json(&s->config, e);
    if (!model) {
        cJSON_Delete(meta);
        return e->code;
    }
    bool ok = meta && json_put_str(meta, "kind", stream_kind_name(STREAM_STATS)) &&
              cJSON_AddItemToObject(meta, "model", model) && (!s->vocab[0] || json_put_str(meta, "vocab", s->vocab)) &&
              json_put_u64(meta, "positions", s->positions) && json_put_u64(meta, "sequences", s->sequences);
    int rc = ok ? stream_write_meta(w, meta, e) : err_nomem(e, "statistics");
    cJSON_Delete(meta);
    return rc;
}

/* One tensor of the statistics of a layer; those outside layers are with the first. */
struct item {
    char name[128];
    unsigned rank;
    uint64_t n; /* 0: this layer has none such */
    double *sum;
};
enum { LAYER_ITEMS = POINT_EXPERT_IN * SUM_KINDS + 1, EXPERT_ITEMS = EXPERT_POINTS * SUM_KINDS + 2 };

static size_t items_of(const struct stats *s, uint32_t layer) {
    return LAYER_ITEMS + (size_t)s->config.layers[layer].experts * EXPERT_ITEMS;
}

static struct item scalar(double *sum) {
    return (struct item){.rank = 0, .n = 1, .sum = sum};
}

static struct item item_at(const struct stats *s, uint32_t layer, size_t i) {
    struct layer_sums *l = &s->layers[layer];
    struct item t;
    if (i == LAYER_ITEMS - 1) {
        t = scalar(&l->influence);
        snprintf(t.name, sizeof t.name, "layers.%u.influence", layer);
        return t;
    }
    bool of_expert = i >= LAYER_ITEMS;
    uint32_t expert = of_expert ? (uint32_t)((i - LAYER_ITEMS) / EXPERT_ITEMS) : 0;
    size_t k = of_expert ? (i - LAYER_ITEMS) % EXPERT_ITEMS : i;
    if (of_expert && k >= EXPERT_POINTS * SUM_KINDS) {
        bool count = k == EXPERT_POINTS * SUM_KINDS;
        t = scalar(count ? &l->experts[expert].count : &l->experts[expert].output);
        snprintf(t.name, sizeof t.name, "layers.%u.experts.%u.%s", layer, expert, count ? "count" : "output");
        return t;
    }
    enum model_point p = (enum model_point)((of_expert ? POINT_EXPERT_IN : 0) + k / SUM_KINDS);
    const struct point_sums *sums = point_of(s, p, layer, expert);
    t = (struct item){.rank = 1, .n = sums->cols, .sum = sums->sum[k % SUM_KINDS]};
    int n = 0;
    if (of_expert)
        n = snprintf(t.name, sizeof t.name, "layers.%u.experts.%u.", layer, expert);
    else if (point_in_layer(p))
        n = snprintf(t.name, sizeof t.name, "layers.%u.", layer);
    snprintf(t.name + n, sizeof t.name - (size_t)n, "%s.%s", model_point_name(p), sum_names[k % SUM_KINDS]);
    return t;
}

static int write_one(struct stream_writer *w, const char *name, unsigned rank, uint64_t n, const void *data,
                     struct err *e) {
    struct tensor_desc d;
    int rc = tensor_desc_init(&d, name, DT_F64, rank, &n, e);
    return rc ? rc : stream_write_tensor(w, &d, NULL, data, e);
}

int stats_write(const struct stats *s, struct stream_writer *w, struct err *e) {
    int rc = write_meta(s, w, e);
    for (uint32_t l = 0; !rc && l < s->config.n_layers; l++)
        for (size_t i = 0; !rc && i < items_of(s, l); i++) {
            struct item t = item_at(s, l, i);
            if (t.n) rc = write_one(w, t.name, t.rank, t.n, t.sum, e);
        }
    return rc;
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

/* The number between `before` and a dot; false: there is none. */
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

/* The sums of this name; n 0: unknown. */
static struct item find_item(const struct stats *s, const char *name) {
    char before[48];
    uint32_t layer = 0, expert;
    (void)!number_after(name, "layers.", s->config.n_layers, &layer); /* else it is outside, or there is none */
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

static int add_tensor(struct stats *s, struct stream_reader *r, const struct tensor_desc *d, struct buf *data,
                      struct err *e) {
    struct item t = find_item(s, d->name);
    if (!t.n)
        return err_set(e, ERR_DATA, "%s: tensor '%s' is not a statistic of this model", stream_reader_name(r), d->name);
    if (d->dtype != DT_F64 || d->rank != t.rank || tensor_elems(d) != t.n)
        return err_set(e, ERR_DATA, "%s: tensor '%s' has the wrong type or shape", stream_reader_name(r), d->name);
    int rc = stream_load_tensor(r, data, e);
    if (rc) return rc;
    for (uint64_t i = 0; i < t.n; i++) {
        double v = ((const double *)data->data)[i];
        if (!isfinite(v) || v < (t.rank ? 0 : -1e30))
            return err_set(e, ERR_DATA, "%s: tensor '%s': element %llu is not a sum (%g)", stream_reader_name(r),
                           d->name, (unsigned long long)i, v);
        t.sum[i] += v;
    }
    return 0;
}

/* META of a segment: makes the statistics at the first, compares and adds the counts at each. */
static int take_meta(struct stats **s, const struct stream_reader *r, const cJSON *meta, struct err *e) {
    struct arena scratch = {0};
    struct model_config c;
    uint64_t positions, sequences;
    const char *vocab = "";
    int rc = model_config_from_json(&c, cJSON_GetObjectItemCaseSensitive(meta, "model"), &scratch, e);
    if (!rc) rc = json_get_u64(meta, "positions", 0, 1ull << 53, &positions, e);
    if (!rc) rc = json_get_u64(meta, "sequences", 0, 1ull << 53, &sequences, e);
    if (!rc) rc = json_opt_str(meta, "vocab", &vocab, e);
    if (!rc && !*s) {
        rc = stats_new(s, &c, NULL, e);
        if (!rc) snprintf((*s)->vocab, sizeof(*s)->vocab, "%s", vocab);
    } else if (!rc)
        rc = stats_check(*s, &c, e);
    if (!rc && strcmp((*s)->vocab, vocab) != 0)
        rc = err_set(e, ERR_DATA, "statistics of two vocabularies: %s and %.64s", (*s)->vocab, vocab);
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

int stats_check(const struct stats *s, const struct model_config *c, struct err *e) {
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

/* ---- asking ------------------------------------------------------------------------------------------------------ */

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
