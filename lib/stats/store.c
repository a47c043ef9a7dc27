/* Writes, reads and merges statistics. */
#include "lib/stats/stats_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const sum_names[SUM_KINDS] = {"sum_abs", "sum_sq", "seq_sq", "sum"};
static const char *const taylor_names[TAYLOR_AXES] = {"query", "key", "ffn"};
static const char *const moments_names[] = {[STATS_MOMENTS_HEAD] = "head", [STATS_MOMENTS_ALL] = "all"};

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
              (!s->moments.of || json_put_str(meta, "moments", moments_names[s->moments.of])) &&
              (!s->moments.rows || json_put_u64(meta, "moments_rows", s->moments.rows));
    int rc = ok ? stream_write_meta(w, meta, e) : err_nomem(e, "statistics");
    cJSON_Delete(meta);
    return rc;
}

/* One tensor of a layer's statistics; those outside layers are with layer 0. */
struct item {
    char name[STATS_NAME];
    unsigned rank;
    uint64_t n, cols; /* elements, or rows and columns of a matrix; n 0: this layer has no such tensor */
    double *sum;
    /* In f32, instead of sum: moments, NULL until some were read, or rows, of which n is not known before. */
    float **moments;
    bool symmetric;
    struct point_sums *rows;
};
enum {
    LAYER_SUMS = POINT_EXPERT_IN * SUM_KINDS,
    LAYER_OTHERS = 2 + TAYLOR_AXES,
    LAYER_ITEMS = LAYER_SUMS + LAYER_OTHERS + 2 * POINT_EXPERT_IN,
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
    return t->rank == 2 ? t->n * t->cols : t->n;
}

static struct item moments_item(const struct stats *s, enum model_point p, uint32_t layer, bool half) {
    struct point_sums *sums = point_of(s, p, layer, 0);
    struct item t = {.rank = 2, .cols = sums->cols, .symmetric = !half};
    bool is_there = sums->stride && (!half || (s->halves && !sums->sampled));
    if (is_there) t.n = half ? sums->half_rows : sums->cols;
    if (sums->sampled)
        t.rows = sums, t.symmetric = false;
    else
        t.moments = half ? &sums->half : &sums->gram;
    moments_name(p, layer, half ? "gram_half" : sums->sampled ? "rows" : "gram", t.name);
    return t;
}

/* The items after the sums at points, of which this is number k. */
static struct item layer_item(const struct stats *s, uint32_t layer, size_t k) {
    struct layer_sums *l = &s->layers[layer];
    struct item t = scalar(&l->influence);
    const char *name = "influence";
    if (k >= LAYER_OTHERS)
        return moments_item(s, (enum model_point)((k - LAYER_OTHERS) / 2), layer, (k - LAYER_OTHERS) % 2);
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

static int write_f32(struct stream_writer *w, const char *name, const float *x, uint64_t rows, uint64_t cols,
                     struct err *e) {
    struct tensor_desc d;
    uint64_t dims[] = {rows, cols};
    int rc = tensor_desc_init(&d, name, DT_F32, 2, dims, e);
    return rc ? rc : stream_write_tensor(w, &d, NULL, x, e);
}

/* Scales the rows by what each of them stands for. A point that no position reached has one row of zeros. */
static int write_rows(struct stream_writer *w, const struct item *t, struct err *e) {
    const struct point_sums *p = t->rows;
    uint64_t n = p->rows.len / sizeof(float) / p->cols, rows = n ? n : 1;
    float by = n ? (float)sqrt((double)p->seen / (double)n) : 0;
    float *scaled = mem_array(rows, p->cols * sizeof *scaled, e);
    if (!scaled) return e->code;
    for (uint64_t i = 0; i < n * p->cols; i++) scaled[i] = by * ((const float *)(const void *)p->rows.data)[i];
    int rc = write_f32(w, t->name, scaled, rows, p->cols, e);
    mem_free(scaled);
    return rc;
}

static int write_one(struct stream_writer *w, const struct item *t, struct err *e) {
    struct tensor_desc d;
    if (t->rows) return write_rows(w, t, e);
    if (t->symmetric) kernel_mirror(t->cols, *t->moments);
    if (t->moments) return write_f32(w, t->name, *t->moments, t->n, t->cols, e);
    int rc = tensor_desc_init(&d, t->name, DT_F64, t->rank, &t->n, e);
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

static bool has_form(const struct stats *s, const struct tensor_desc *d, const struct item *t) {
    if (t->rows) return d->dtype == DT_F32 && d->rank == 2 && d->dims[0] && d->dims[1] == t->cols;
    bool typed = d->dtype == (t->moments && s->halves ? DT_F32 : DT_F64);
    return typed && d->rank == t->rank && tensor_elems(d) == elems_of(t) && (t->rank < 2 || d->dims[0] == t->n);
}

/* Older streams have second moments in f64. */
static int add_moments(struct stats *s, const struct tensor_desc *d, const struct item *t, struct buf *data,
                       struct err *e) {
    uint64_t n = tensor_elems(d);
    float *x = (float *)(void *)data->data;
    for (uint64_t i = 0; d->dtype == DT_F64 && i < n; i++) {
        double v;
        memcpy(&v, data->data + i * sizeof v, sizeof v);
        x[i] = (float)v;
    }
    if (check_moments(d->name, x, n, e)) return e->code;
    if (t->rows) {
        t->rows->seen += d->dims[0]; /* they are scaled already */
        return buf_append(&t->rows->rows, x, n * sizeof *x, e);
    }
    if (!*t->moments && !(*t->moments = arena_array(&s->memory, n, sizeof *x, e))) return e->code;
    for (uint64_t i = 0; i < n; i++) (*t->moments)[i] += x[i];
    return 0;
}

static int add_sums(const struct tensor_desc *d, const struct item *t, const struct buf *data, struct err *e) {
    bool may_be_less = t->rank != 1 || has_suffix(d->name, ".sum");
    for (uint64_t i = 0; i < elems_of(t); i++) {
        double v = ((const double *)data->data)[i];
        if (!isfinite(v) || v < (may_be_less ? -1e30 : 0))
            return err_set(e, ERR_DATA, "tensor '%s': element %llu is not a sum (%g)", d->name, (unsigned long long)i,
                           v);
        t->sum[i] += v;
    }
    return 0;
}

static int add_tensor(struct stats *s, struct stream_reader *r, const struct tensor_desc *d, struct buf *data,
                      struct err *e) {
    struct item t = find_item(s, d->name);
    if (!t.n)
        return err_set(e, ERR_DATA, "%s: tensor '%s' is not a statistic of this model", stream_reader_name(r), d->name);
    if (!has_form(s, d, &t))
        return err_set(e, ERR_DATA, "%s: tensor '%s' has the wrong type or shape", stream_reader_name(r), d->name);
    bool is_f32 = t.moments || t.rows;
    if (is_f32 && s->file) return stream_skip_tensor(r, e);
    if (stream_load_tensor(r, data, e)) return e->code;
    int rc = is_f32 ? add_moments(s, d, &t, data, e) : add_sums(d, &t, data, e);
    return rc ? err_prefix(e, "%s", stream_reader_name(r)) : 0;
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

/* What META says about a segment. */
struct segment {
    uint64_t positions, sequences;
    const char *vocab;
    bool is_signed, gradients, halves;
    struct stats_moments_wanted moments;
};

static int read_moments(const cJSON *meta, struct segment *g, struct err *e) {
    const char *name = NULL;
    bool old = false; /* the head's, without the half */
    int rc = json_opt_str(meta, "moments", &name, e);
    if (!rc) rc = json_opt_bool(meta, "head_gram", &old, e);
    if (!rc && cJSON_HasObjectItem(meta, "moments_rows"))
        rc = json_get_u64(meta, "moments_rows", 1, UINT32_MAX, &g->moments.rows, e);
    g->moments.of = old ? STATS_MOMENTS_HEAD : STATS_MOMENTS_NONE;
    if (rc || !name) return rc;
    g->halves = true;
    for (g->moments.of = STATS_MOMENTS_HEAD; g->moments.of <= STATS_MOMENTS_ALL; g->moments.of++)
        if (strcmp(name, moments_names[g->moments.of]) == 0) return 0;
    return err_set(e, ERR_DATA, "META: second moments of '%.32s' are unknown to this version", name);
}

static int read_segment(const cJSON *meta, struct segment *g, struct err *e) {
    *g = (struct segment){.vocab = ""};
    int rc = json_get_u64(meta, "positions", 0, 1ull << 53, &g->positions, e);
    if (!rc) rc = json_get_u64(meta, "sequences", 0, 1ull << 53, &g->sequences, e);
    if (!rc) rc = json_opt_str(meta, "vocab", &g->vocab, e);
    if (!rc) rc = json_opt_bool(meta, "signed", &g->is_signed, e);
    if (!rc) rc = json_opt_bool(meta, "gradients", &g->gradients, e);
    return rc ? rc : read_moments(meta, g, e);
}

static int begin(struct stats **s, const struct model_config *c, const struct segment *g, struct err *e) {
    int rc = stats_new(s, c, NULL, e);
    if (rc) return rc;
    snprintf((*s)->vocab, sizeof(*s)->vocab, "%s", g->vocab);
    (*s)->is_signed = g->is_signed, (*s)->gradients = g->gradients, (*s)->halves = g->halves;
    mark_moments(*s, &g->moments);
    return 0;
}

static int check_alike(const struct stats *s, const struct segment *g, struct err *e) {
    if (strcmp(s->vocab, g->vocab) != 0)
        return err_set(e, ERR_DATA, "statistics of two vocabularies: %s and %.64s", s->vocab, g->vocab);
    if (s->moments.of != g->moments.of || s->moments.rows != g->moments.rows || s->halves != g->halves)
        return err_set(e, ERR_DATA,
                       "statistics with different second moments cannot be added (make all of them with the same "
                       "--moments, --head-moments and --rows)");
    const char *lacks = s->gradients != g->gradients   ? "gradients"
                        : s->is_signed != g->is_signed ? "signed sums"
                                                       : NULL;
    return lacks ? err_set(e, ERR_DATA, "statistics with %s and without cannot be added", lacks) : 0;
}

/* META of a segment: creates the statistics at the first one, checks that later ones match, and adds the counts. */
static int take_meta(struct stats **s, const struct stream_reader *r, const cJSON *meta, struct err *e) {
    struct arena scratch = {0};
    struct model_config c;
    struct segment g;
    int rc = model_config_from_json(&c, cJSON_GetObjectItemCaseSensitive(meta, "model"), &scratch, e);
    if (!rc) rc = read_segment(meta, &g, e);
    if (!rc) rc = *s ? check_shape(*s, &c, e) : begin(s, &c, &g, e);
    if (!rc) rc = check_alike(*s, &g, e);
    if (!rc) (*s)->positions += g.positions, (*s)->sequences += g.sequences;
    arena_release(&scratch);
    return rc ? err_prefix(e, "%s", stream_reader_name(r)) : 0;
}

int stats_load(struct stats **out, struct stream_reader *r, struct stream_map *moments, struct err *e) {
    struct stats *s = NULL;
    struct buf data = {0};
    struct stream_item item = {0};
    int rc = 0;
    size_t tensors = 0, expected = 0;
    while (!rc && !(rc = stream_next(r, &item, e)) && item.type != ITEM_EOF) {
        if (item.type == ITEM_META) {
            rc = take_meta(&s, r, item.json, e);
            if (!rc && s->halves) s->file = moments;
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
    if (rc) {
        if (s) s->file = NULL;
        stats_free(s);
        return rc;
    }
    if (!s->file) stream_map_free(moments);
    *out = s;
    return 0;
}

int stats_check(const struct stats *s, const struct model_config *c, struct digest vocab, struct err *e) {
    char own[DIGEST_TEXT_SIZE];
    if (check_shape(s, c, e)) return e->code;
    digest_text(vocab, own);
    if ((!vocab.lo && !vocab.hi) || !s->vocab[0] || strcmp(s->vocab, own) == 0) return 0;
    return err_set(e, ERR_DATA, "statistics and model disagree: tokenizer %s against %s", s->vocab, own);
}
