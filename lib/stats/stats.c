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

struct stats {
    struct model_config config;
    char vocab[DIGEST_TEXT_SIZE]; /* "" when unknown */
    uint64_t positions, sequences;
    struct point_sums *points; /* [n_layers][POINT_COUNT]; points outside layers use layer 0 */
    double *influence;         /* [n_layers] */
    struct arena memory;
    /* while a batch is collected */
    const struct model_input *in;
    struct buf previous; /* copy of the residual stream before the layer */
};

static bool point_in_layer(enum model_point p) {
    return p != POINT_EMBED && p != POINT_HEAD_IN;
}

static size_t point_cols(const struct model_config *c, enum model_point p, uint32_t layer) {
    return model_axis_size(c, model_point_axis(p), layer);
}

static struct point_sums *point_of(const struct stats *s, enum model_point p, uint32_t layer) {
    return &s->points[(size_t)layer * POINT_COUNT + p];
}

int stats_new(struct stats **out, const struct model_config *c, const struct digest *vocab, struct err *e) {
    struct stats *s = mem_zalloc(sizeof *s, e);
    if (!s) return e->code;
    struct arena *a = &s->memory;
    int rc = model_config_copy(&s->config, c, a, e);
    if (!rc) {
        s->points = arena_array(a, (size_t)c->n_layers * POINT_COUNT, sizeof *s->points, e);
        s->influence = arena_array(a, c->n_layers, sizeof *s->influence, e);
        if (!s->points || !s->influence) rc = e->code;
    }
    for (uint32_t l = 0; !rc && l < c->n_layers; l++)
        for (int p = 0; !rc && p < POINT_COUNT; p++) {
            struct point_sums *sums = point_of(s, (enum model_point)p, l);
            if (!point_in_layer((enum model_point)p) && l) continue;
            sums->cols = point_cols(c, (enum model_point)p, l);
            for (int k = 0; !rc && k < SUM_KINDS; k++) {
                sums->sum[k] = arena_array(a, sums->cols, sizeof(double), e);
                if (!sums->sum[k]) rc = e->code;
            }
        }
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
    arena_release(&s->memory);
    mem_free(s);
}

/* ---- collecting ------------------------------------------------------------------------------------------------ */

static int collect_point(void *ctx, enum model_point point, uint32_t layer, const float *x, size_t rows, size_t cols,
                         struct err *e) {
    struct stats *s = ctx;
    if (point >= POINT_COUNT) return 0; /* no input of a matrix */
    struct point_sums *sums = point_of(s, point, layer);
    if (cols != sums->cols)
        return err_set(e, ERR_DATA, "statistics of another model: %zu columns against %zu", sums->cols, cols);
    kernel_col_sums(sums->sum[SUM_ABS], sums->sum[SUM_SQ], x, rows, cols);
    kernel_seq_mean_abs_sq(sums->sum[SEQ_SQ], x, s->in->lengths, s->in->n_seqs, cols);
    if (point != POINT_EMBED && point != POINT_LAYER) return 0;
    /* The residual stream: this layer's output is the next one's input. */
    if (point == POINT_LAYER)
        s->influence[layer] += kernel_cosine_distance_sum((const float *)s->previous.data, x, rows, cols);
    s->previous.len = 0;
    int rc = buf_reserve(&s->previous, rows * cols * sizeof *x, e);
    if (!rc) kernel_copy((float *)s->previous.data, x, rows * cols);
    return rc;
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

static void point_name(char *out, size_t size, enum model_point p, uint32_t layer, const char *sum) {
    if (point_in_layer(p))
        snprintf(out, size, "layers.%u.%s.%s", layer, model_point_name(p), sum);
    else
        snprintf(out, size, "%s.%s", model_point_name(p), sum);
}

static int write_one(struct stream_writer *w, const char *name, unsigned rank, uint64_t n, const void *data,
                     struct err *e) {
    struct tensor_desc d;
    int rc = tensor_desc_init(&d, name, DT_F64, rank, &n, e);
    return rc ? rc : stream_write_tensor(w, &d, NULL, data, e);
}

int stats_write(const struct stats *s, struct stream_writer *w, struct err *e) {
    int rc = write_meta(s, w, e);
    char name[128];
    for (uint32_t l = 0; !rc && l < s->config.n_layers; l++) {
        for (int p = 0; !rc && p < POINT_COUNT; p++) {
            const struct point_sums *sums = point_of(s, (enum model_point)p, l);
            for (int k = 0; !rc && sums->cols && k < SUM_KINDS; k++) {
                point_name(name, sizeof name, (enum model_point)p, l, sum_names[k]);
                rc = write_one(w, name, 1, sums->cols, sums->sum[k], e);
            }
        }
        snprintf(name, sizeof name, "layers.%u.influence", l);
        if (!rc) rc = write_one(w, name, 0, 1, &s->influence[l], e);
    }
    return rc;
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

/* Where the tensor of this name is summed up, its rank and length; NULL: unknown, left alone. */
static double *target_of(struct stats *s, const char *name, unsigned *rank, uint64_t *n) {
    *rank = 1;
    char want[128];
    uint64_t layer = 0;
    const char *dot = NULL;
    if (!strncmp(name, "layers.", 7) && (dot = strchr(name + 7, '.')) && dot - name < 16) {
        char digits[16] = {0};
        memcpy(digits, name + 7, (size_t)(dot - name) - 7);
        if (!parse_u64(digits, &layer) || layer >= s->config.n_layers) return NULL;
        if (!strcmp(dot, ".influence")) {
            *rank = 0, *n = 1;
            return &s->influence[layer];
        }
    }
    for (int p = 0; p < POINT_COUNT; p++)
        for (int k = 0; k < SUM_KINDS; k++) {
            point_name(want, sizeof want, (enum model_point)p, (uint32_t)layer, sum_names[k]);
            if (strcmp(want, name) != 0) continue;
            struct point_sums *sums = point_of(s, (enum model_point)p, (uint32_t)layer);
            *n = sums->cols;
            return sums->sum[k];
        }
    return NULL;
}

static int add_tensor(struct stats *s, struct stream_reader *r, const struct tensor_desc *d, struct buf *data,
                      struct err *e) {
    unsigned rank;
    uint64_t n = 0;
    double *to = target_of(s, d->name, &rank, &n);
    if (!to)
        return err_set(e, ERR_DATA, "%s: tensor '%s' is no statistic of this model", stream_reader_name(r), d->name);
    if (d->dtype != DT_F64 || d->rank != rank || tensor_elems(d) != n)
        return err_set(e, ERR_DATA, "%s: tensor '%s' has the wrong type or shape", stream_reader_name(r), d->name);
    int rc = stream_load_tensor(r, data, e);
    if (rc) return rc;
    for (uint64_t i = 0; i < n; i++) {
        double v = ((const double *)data->data)[i];
        if (!isfinite(v) || v < (rank ? 0 : -1e30))
            return err_set(e, ERR_DATA, "%s: tensor '%s': element %llu is no sum (%g)", stream_reader_name(r), d->name,
                           (unsigned long long)i, v);
        to[i] += v;
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
            expected = !rc ? s->config.n_layers * (SUM_KINDS * (POINT_COUNT - 2) + 1) + 2 * SUM_KINDS : 0;
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
    if (t->hidden != c->hidden || t->vocab_size != c->vocab_size || t->head_dim != c->head_dim)
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
    return point_of(s, p, layer)->cols;
}
const double *stats_sum_abs(const struct stats *s, enum model_point p, uint32_t layer) {
    return point_of(s, p, layer)->sum[SUM_ABS];
}
const double *stats_sum_sq(const struct stats *s, enum model_point p, uint32_t layer) {
    return point_of(s, p, layer)->sum[SUM_SQ];
}
const double *stats_seq_sq(const struct stats *s, enum model_point p, uint32_t layer) {
    return point_of(s, p, layer)->sum[SEQ_SQ];
}

double stats_influence(const struct stats *s, uint32_t layer) {
    return s->positions ? s->influence[layer] / (double)s->positions : 0;
}

bool stats_input_point(enum model_role role, enum model_point *out) {
    *out = model_role_info(role)->input;
    return *out != POINT_COUNT;
}

const struct model_config *stats_config(const struct stats *s) {
    return &s->config;
}

const double *stats_input_sq(const struct stats *s, struct model_slot slot, uint64_t *cols) {
    enum model_point point;
    enum model_role role = slot.role == ROLE_EMBED && s->config.tied ? ROLE_HEAD : slot.role;
    if (!stats_input_point(role, &point)) return NULL;
    uint32_t layer = model_role_in_layer(slot.role) ? slot.layer : 0;
    *cols = stats_cols(s, point, layer);
    return stats_sum_sq(s, point, layer);
}
