/* Activation statistics: their memory and access to them. */
#include "lib/stats/stats_internal.h"

#include <math.h>
#include <stdlib.h>

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

/* ---- second moments ---------------------------------------------------------------------------------------------- */

#define HALF_ROWS 32 /* about so many rows of the Gram matrix are summed over half of the positions, too */

/* The sums at the input of the slot's matrix, which is at *p; NULL: it is not observed. */
static struct point_sums *input_of(const struct stats *s, struct model_slot slot, enum model_point *p) {
    if (!stats_input_point(&s->config, slot.role, p)) return NULL;
    return point_of(s, *p, point_in_layer(*p) ? slot.layer : 0, slot.expert);
}

static bool is_wanted(const struct stats_moments_wanted *w, enum model_point p) {
    return w->of == STATS_MOMENTS_ALL ? !is_of_expert(p) : p == POINT_HEAD_IN;
}

void mark_moments(struct stats *s, const struct stats_moments_wanted *wanted) {
    s->moments = *wanted;
    for (size_t i = 0; wanted->of && i < model_slot_count(&s->config); i++) {
        struct model_slot slot = model_slot_at(&s->config, i);
        enum model_point p;
        struct point_sums *sums = model_role_is_matrix(slot.role) ? input_of(s, slot, &p) : NULL;
        if (!sums || !sums->cols || !is_wanted(wanted, p)) continue;
        sums->stride = (sums->cols / HALF_ROWS) | 1; /* odd: not the same element of every head */
        sums->half_rows = (sums->cols + sums->stride - 1) / sums->stride;
        sums->sampled = wanted->rows && sums->cols > wanted->rows;
    }
}

int stats_want_moments(struct stats *s, const struct stats_moments_wanted *wanted, struct err *e) {
    mark_moments(s, wanted);
    s->halves = wanted->of;
    for (uint32_t l = 0; l < s->config.n_layers; l++)
        for (int p = 0; p < POINT_EXPERT_IN; p++) {
            struct point_sums *sums = point_of(s, (enum model_point)p, l, 0);
            size_t n = sums->cols;
            if (!sums->stride || sums->sampled) continue;
            sums->gram = arena_array(&s->memory, n, n * sizeof *sums->gram, e);
            sums->half = sums->gram ? arena_array(&s->memory, sums->half_rows, n * sizeof *sums->half, e) : NULL;
            if (!sums->half) return e->code;
        }
    return 0;
}

enum stats_moments_of stats_moments_in(const struct stats *s) {
    return s->moments.of;
}

void moments_name(enum model_point p, uint32_t layer, const char *what, char out[STATS_NAME]) {
    int n = point_in_layer(p) ? snprintf(out, STATS_NAME, "layers.%u.", layer) : 0;
    snprintf(out + n, STATS_NAME - (size_t)n, "%s.%s", model_point_name(p), what);
}

int check_moments(const char *name, const float *x, uint64_t n, struct err *e) {
    for (uint64_t i = 0; i < n; i++)
        if (!(fabsf(x[i]) <= 1e30f))
            return err_set(e, ERR_DATA, "tensor '%s': element %llu is not a sum (%g)", name, (unsigned long long)i,
                           (double)x[i]);
    return 0;
}

/* Copies the *n numbers of a tensor [][cols] of the file to scratch, so that the file need not stay in memory; *n is
 * how many there must be, 0: any number. */
static int from_file(const struct stats *s, const char *name, size_t cols, struct buf *scratch, const float **x,
                     uint64_t *n, struct err *e) {
    long at = stream_map_find(s->file, name);
    struct stream_map_entry entry;
    const void *data;
    if (at < 0) return err_set(e, ERR_DATA, "tensor '%s' is no longer there", name);
    if (stream_map_entry(s->file, (size_t)at, &entry, e)) return e->code;
    uint64_t elems = tensor_elems(&entry.desc);
    if (entry.desc.dtype != DT_F32 || entry.desc.rank != 2 || entry.desc.dims[1] != cols || (*n && elems != *n))
        return err_set(e, ERR_DATA, "tensor '%s' is another one now", name);
    int rc = stream_map_data(s->file, (size_t)at, scratch, &data, e);
    if (!rc && data != scratch->data) {
        scratch->len = 0;
        rc = buf_append(scratch, data, (size_t)elems * sizeof **x, e);
        stream_map_forget(s->file, (size_t)at);
    }
    if (rc) return rc;
    *x = (const float *)(const void *)scratch->data, *n = elems;
    return check_moments(name, *x, elems, e);
}

static int summed(const struct stats *s, const struct point_sums *sums, struct buf scratch[2], struct stats_gram *out,
                  struct err *e) {
    char name[STATS_NAME];
    uint64_t all = sums->cols * sums->cols, half = sums->half_rows * sums->cols;
    out->sum = sums->gram, out->half = sums->half;
    if (!s->file) return 0;
    moments_name(out->point, out->layer, "gram", name);
    int rc = from_file(s, name, sums->cols, &scratch[0], &out->sum, &all, e);
    moments_name(out->point, out->layer, "gram_half", name);
    return rc ? rc : from_file(s, name, sums->cols, &scratch[1], &out->half, &half, e);
}

void add_half(float *half, const struct point_sums *p, const float *x, size_t rows, float *inputs) {
    size_t m = p->half_rows;
    if (!rows) return;
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < m; i++) inputs[r * m + i] = x[r * p->cols + i * p->stride];
    kernel_matmul_tn(m, p->cols, rows, kernel_f32(inputs), kernel_f32(x), 1, kernel_f32(half));
}

/* The moments of x [rows][cols]; the half is the first half of these. */
static int sum_rows(const struct point_sums *p, const float *x, size_t rows, struct buf scratch[2],
                    struct stats_gram *out, struct err *e) {
    size_t n = p->cols, m = p->half_rows, middle = rows / 2;
    scratch[0].len = scratch[1].len = 0;
    if (buf_reserve(&scratch[0], n * n * sizeof *x, e)) return e->code;
    if (buf_reserve(&scratch[1], m * (n + middle) * sizeof *x, e)) return e->code;
    float *sum = (float *)(void *)scratch[0].data, *half = (float *)(void *)scratch[1].data;
    memset(sum, 0, n * n * sizeof *sum);
    memset(half, 0, m * n * sizeof *half);
    kernel_gram(n, rows, x, 0, sum);
    kernel_mirror(n, sum);
    add_half(half, p, x, middle, half + m * n);
    out->sum = sum, out->half = half;
    return 0;
}

static int from_rows(const struct stats *s, const struct point_sums *sums, struct buf scratch[2],
                     struct stats_gram *out, struct err *e) {
    char name[STATS_NAME];
    struct buf stored = {0};
    const float *x = (const float *)(const void *)sums->rows.data;
    uint64_t n = 0;
    int rc = 0;
    moments_name(out->point, out->layer, "rows", name);
    if (s->file)
        rc = from_file(s, name, sums->cols, &stored, &x, &n, e);
    else
        n = sums->rows.len / sizeof *x;
    if (!rc) rc = sum_rows(sums, x, (size_t)n / sums->cols, scratch, out, e);
    buf_release(&stored);
    return rc;
}

bool stats_has_gram(const struct stats *s, struct model_slot slot) {
    enum model_point p;
    const struct point_sums *sums = model_role_is_matrix(slot.role) ? input_of(s, slot, &p) : NULL;
    return sums && sums->stride > 0;
}

bool stats_known_is(const struct stats_known *k, const struct stats *s, struct model_slot slot) {
    enum model_point p;
    return k->gram.cols && stats_input_point(&s->config, slot.role, &p) && k->gram.point == p &&
           k->gram.layer == (point_in_layer(p) ? slot.layer : 0);
}

int stats_known_read(struct stats_known *k, const struct stats *s, struct model_slot slot, struct err *e) {
    enum model_point p = POINT_COUNT;
    const struct point_sums *sums = input_of(s, slot, &p);
    k->gram = (struct stats_gram){.point = p,
                                  .layer = point_in_layer(p) ? slot.layer : 0,
                                  .cols = sums->cols,
                                  .half_rows = s->halves ? sums->half_rows : 0,
                                  .stride = sums->stride};
    int rc = sums->sampled ? from_rows(s, sums, k->stored, &k->gram, e) : summed(s, sums, k->stored, &k->gram, e);
    if (rc) k->gram.cols = 0;
    return rc ? err_prefix(e, "the statistics") : 0;
}

void stats_known_release(struct stats_known *k) {
    buf_release(&k->stored[0]);
    buf_release(&k->stored[1]);
    k->gram.cols = 0;
}

void stats_free(struct stats *s) {
    if (!s) return;
    stream_map_free(s->file);
    for (uint32_t l = 0; s->layers && l < s->config.n_layers; l++)
        for (int p = 0; p < POINT_EXPERT_IN; p++) buf_release(&s->layers[l].point[p].rows);
    buf_release(&s->bounded);
    buf_release(&s->previous);
    buf_release(&s->lengths);
    buf_release(&s->ends);
    arena_release(&s->memory);
    mem_free(s);
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
double *taylor_of(const struct stats *s, enum model_axis axis, struct model_slot slot) {
    if (axis == AXIS_EXPERT_FFN) return s->layers[slot.layer].experts[slot.expert].taylor;
    for (size_t i = 0; i < TAYLOR_AXES; i++)
        if (taylor_axes[i] == axis) return s->layers[slot.layer].taylor[i];
    return NULL;
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
    const struct point_sums *sums = input_of(s, slot, &point);
    if (!sums) return NULL;
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
