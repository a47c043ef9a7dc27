/* Sums second moments of the inputs at a point of a layer. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/quant/moments.h"

#define ROWS KERNEL_ROWS16 /* maximum number of rows added to a sum at once */

/* ---- original inputs ---- */

static const enum model_point points[MOMENTS_POINTS] = {POINT_ATTN_IN, POINT_O_IN, POINT_FFN_IN, POINT_DOWN_IN};

static size_t place_of(enum model_point point) {
    size_t i = 0;
    while (i < MOMENTS_POINTS && points[i] != point) i++;
    return i;
}

void dense_inputs_init(struct dense_inputs *d, const struct model_input *in, size_t n, size_t wanted) {
    size_t all = model_layerwise_positions(in, n, 1);
    size_t every = all <= 2 * wanted ? 1 : all / wanted + (all % wanted >= wanted / 2); /* to the nearest */
    *d = (struct dense_inputs){.every = every, .positions = model_layerwise_positions(in, n, every)};
}

void dense_inputs_release(struct dense_inputs *d) {
    for (size_t i = 0; i < MOMENTS_POINTS; i++) mem_free(d->x[i]);
    *d = (struct dense_inputs){0};
}

void dense_inputs_forget(struct dense_inputs *d) {
    memset(d->at, 0, sizeof d->at);
}

int dense_inputs_see(struct dense_inputs *d, const struct model_seen *seen, struct err *e) {
    size_t i = place_of(seen->point);
    if (i == MOMENTS_POINTS) return 0;
    size_t bytes = kernel_array_bytes(seen->x->value.dtype, seen->cols);
    if (d->room[i] < bytes) {
        mem_free(d->x[i]);
        d->x[i] = mem_array(d->positions, bytes, e);
        if (!d->x[i]) return e->code;
        d->room[i] = bytes;
    }
    kernel_download((char *)d->x[i] + d->at[i] * bytes, seen->x->value, seen->rows * seen->cols);
    d->at[i] += seen->rows;
    return 0;
}

struct collector {
    struct moments *m;
    const struct dense_inputs *dense;
    size_t place;                 /* index of the point */
    size_t passes, at;            /* at: rows of the original inputs used so far */
    float *by;                    /* [ROWS] factors of rows */
    float *y, *diff;              /* [ROWS][cols] scaled: y, unless sums are made of 16-bit rows; x - y */
    void *rounded, *rounded_diff; /* struct kernel_rows16 memory; NULL: sums in f32 */
    double longest;               /* row that counts as it is, by the first pass */
    struct phase_clock *clock;
};

/* ---- sums -------------------------------------------------------------------------------------------------------- */

static void add_products(struct collector *k, struct kernel_array y, size_t rows, float *gram, float *shift) {
    size_t n = k->m->cols;
    if (k->rounded) {
        struct kernel_rows16 all = kernel_rows16_in(k->rounded, n), diff = kernel_rows16_in(k->rounded_diff, n);
        kernel_rows16_take(&all, rows, y, k->by);
        kernel_gram16(&all, gram);
        if (!shift) return;
        kernel_rows16_take(&diff, rows, kernel_f32(k->diff), NULL);
        kernel_product16(&diff, &all, shift);
        return;
    }
    kernel_gram(n, rows, k->y, 1, gram);
    if (shift) kernel_matmul_tn(n, n, rows, kernel_f32(k->diff), kernel_f32(k->y), 1, kernel_f32(shift));
}

/* Adds rows of y to one half of the data; x: no data if they are unknown. */
static void add_rows(struct collector *k, struct half_moments *h, struct kernel_array y, struct kernel_array x,
                     size_t rows) {
    bool at_hand = kernel_has_data(x);
    for (size_t done = 0, n; done < rows; done += n) {
        size_t at = done * k->m->cols;
        n = rows - done < ROWS ? rows - done : ROWS;
        struct kernel_array part = kernel_part(y, at), part_x = at_hand ? kernel_part(x, at) : x;
        kernel_bound_rows(k->by, k->y, at_hand ? k->diff : NULL, part, part_x, k->longest, n, k->m->cols);
        add_products(k, part, n, at_hand ? h->of_dense : h->gram, at_hand ? h->shift : NULL);
    }
}

static struct kernel_array on_host(const struct model_seen *seen) {
    struct kernel_array x = seen->x->value;
    return kernel_host_array(x.dtype, kernel_host(x, seen->rows * seen->cols));
}

/* Alternates which half of a pass goes to which half of the data, because the start of a sequence is unlike the
 * rest. */
static void add_pass(struct collector *k, const struct model_seen *seen) {
    size_t half = k->passes % 2, middle = seen->rows / 2, cols = k->m->cols;
    bool at_hand = k->dense && k->passes % k->dense->every == 0;
    struct kernel_array y = on_host(seen), first = kernel_none(y.dtype), second = first;
    if (at_hand) {
        first = kernel_part(kernel_host_array(y.dtype, k->dense->x[k->place]), k->at * cols);
        second = kernel_part(first, middle * cols);
        k->at += seen->rows;
    }
    add_rows(k, &k->m->half[half], y, first, middle);
    add_rows(k, &k->m->half[!half], kernel_part(y, middle * cols), second, seen->rows - middle);
    k->passes++;
}

/* In order of positions: the last bit of a weight can decide between equally good scales. */
static void add_squares(float *sum, const float *x, size_t rows, size_t cols) {
    for (size_t r = 0; r < rows; r++)
        for (size_t j = 0; j < cols; j++) sum[j] += x[r * cols + j] * x[r * cols + j];
}

/* By whole sequences: a few hundred rows suffice, and sequence starts are among them. */
static int find_longest(struct collector *k, const struct model_seen *seen, struct err *e) {
    const float *y;
    return model_seen_f32(seen, &y, e) ? e->code : stats_longest_row(y, seen->rows, k->m->cols, &k->longest, e);
}

static int see(void *ctx, const struct model_seen *seen, struct err *e) {
    struct collector *k = ctx;
    struct moments *m = k->m;
    const float *x;
    if (seen->point != m->point) return 0;
    if (m->experts ? model_seen_f32(seen, &x, e) : !k->passes && find_longest(k, seen, e)) return e->code;
    enum quant_phase before = phase_enter(k->clock, QUANT_MOMENTS);
    if (m->experts)
        add_squares(m->squares + seen->expert * m->cols, x, seen->rows, m->cols);
    else
        add_pass(k, seen);
    phase_enter(k->clock, before);
    return 0;
}

/* ---- collection ---- */

static int allocate_half(const struct collector *k, struct half_moments *h, struct err *e) {
    size_t n = k->m->cols;
    bool all = k->dense && k->dense->every == 1;
    if (!(h->gram = mem_array(n, n * sizeof(float), e))) return e->code;
    if (k->dense && !(h->shift = mem_array(n, n * sizeof(float), e))) return e->code;
    if (k->dense && !all && !(h->of_dense = mem_array(n, n * sizeof(float), e))) return e->code;
    if (all) h->of_dense = h->gram;
    return 0;
}

static int allocate(struct collector *k, struct err *e) {
    struct moments *m = k->m;
    size_t n = m->cols;
    if (m->experts) return (m->squares = mem_array(m->experts, n * sizeof(float), e)) ? 0 : e->code;
    if (!(k->by = mem_alloc(ROWS * sizeof(float), e))) return e->code;
    if (k->dense && !(k->diff = mem_alloc(ROWS * n * sizeof(float), e))) return e->code;
    if (kernel_has_rows16()) {
        size_t bytes = kernel_rows16_bytes(n);
        if (!(k->rounded = mem_alloc(bytes, e)) || !(k->rounded_diff = mem_alloc(bytes, e))) return e->code;
    } else if (!(k->y = mem_alloc(ROWS * n * sizeof(float), e))) {
        return e->code;
    }
    int rc = allocate_half(k, &m->half[0], e);
    return rc ? rc : allocate_half(k, &m->half[1], e);
}

/* Completes gram to all positions and fills in the other triangle. */
static void finish_half(const struct collector *k, struct half_moments *h) {
    size_t n = k->m->cols;
    if (h->of_dense && h->of_dense != h->gram) {
        kernel_add(kernel_f32(h->gram), kernel_f32(h->of_dense), n * n);
        kernel_mirror(n, h->of_dense);
    }
    kernel_mirror(n, h->gram);
}

static void release_scratch(struct collector *k) {
    mem_free(k->by);
    mem_free(k->y);
    mem_free(k->diff);
    mem_free(k->rounded);
    mem_free(k->rounded_diff);
}

int moments_collect(struct moments *m, struct model_layerwise *l, enum model_point point, uint32_t layer,
                    const struct dense_inputs *dense, struct phase_clock *clock, struct err *e) {
    const struct model_config *c = &model_layerwise_held(l)->config;
    *m = (struct moments){.point = point, .cols = model_point_cols(c, point, layer)};
    if (point == POINT_EXPERT_IN || point == POINT_EXPERT_DOWN_IN) m->experts = c->layers[layer].experts;
    struct collector k = {.m = m, .dense = m->experts ? NULL : dense, .place = place_of(point), .clock = clock};
    int rc = allocate(&k, e);
    if (!rc) rc = model_layerwise_watch(l, STATES_NOW, m->experts ? NULL : &m->point, see, &k, e);
    enum quant_phase before = phase_enter(clock, QUANT_MOMENTS);
    for (int i = 0; !rc && !m->experts && i < 2; i++) finish_half(&k, &m->half[i]);
    phase_enter(clock, before);
    release_scratch(&k);
    return rc;
}

void moments_release(struct moments *m) {
    for (int i = 0; i < 2; i++) {
        if (m->half[i].of_dense != m->half[i].gram) mem_free(m->half[i].of_dense);
        mem_free(m->half[i].gram);
        mem_free(m->half[i].shift);
    }
    mem_free(m->squares);
    *m = (struct moments){0};
}
