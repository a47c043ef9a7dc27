/* Sums second moments of the inputs at a point of a layer. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/quant/moments.h"

#define GATHERED KERNEL_ROWS16 /* rows added to a sum at once */
#define MOST     16            /* limit on a row's squared length, as a multiple of the median */

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
    if (d->room[i] < seen->cols) { /* layers differ in width */
        mem_free(d->x[i]);
        d->x[i] = mem_array(d->positions, seen->cols * sizeof *d->x[i], e);
        if (!d->x[i]) return e->code;
        d->room[i] = seen->cols;
    }
    d->cols[i] = seen->cols;
    kernel_download(d->x[i] + d->at[i] * seen->cols, kernel_f32(seen->x), seen->rows * seen->cols);
    d->at[i] += seen->rows;
    return 0;
}

/* ---- batching rows ---- */

/* Rows of one half of the data, either with known x or without. */
struct gathered {
    float *y, *diff; /* [GATHERED][cols]; diff NULL: x unknown */
    size_t n;
    float *gram, *shift; /* destination sums; shift NULL: none */
};

struct collector {
    struct moments *m;
    const struct dense_inputs *dense;
    size_t place;                   /* index of the point */
    struct gathered gathered[2][2]; /* by half, by whether x is known */
    size_t passes, at;              /* at: rows of the original inputs used so far */
    void *rounded, *rounded_diff;   /* struct kernel_rows16 memory; NULL: sums in f32 */
    double median;                  /* of |y|^2 in the first pass; 0: not yet known */
    struct phase_clock *clock;
};

/* ---- row weights ------------------------------------------------------------------------------------------------- */

static int compare_doubles(const void *a, const void *b) {
    const double *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

/* Uses whole sequences: a few hundred rows suffice, and sequence starts are among them. */
static int find_median(struct collector *k, const float *y, size_t rows, struct err *e) {
    double *lengths = mem_array(rows, sizeof *lengths, e);
    if (!lengths) return e->code;
    for (size_t r = 0; r < rows; r++) lengths[r] = kernel_sum_squares(kernel_f32(y + r * k->m->cols), k->m->cols);
    qsort(lengths, rows, sizeof *lengths, compare_doubles);
    k->median = lengths[rows / 2];
    mem_free(lengths);
    return 0;
}

/*
 * The limit of a row's squared length: MOST times the median. Models produce a huge state at the first token in the
 * feed-forward part of some layer (Sun et al. 2024, "Massive Activations in Large Language Models", arXiv 2402.17762):
 * that row is hundreds of times longer than others and would dominate the sums, although the next norm removes its
 * length.
 */
static double longest_row(const struct collector *k) {
    return k->median > 0 ? MOST * k->median : INFINITY;
}

static void add_gathered(struct collector *k, struct gathered *g) {
    size_t n = k->m->cols;
    if (k->rounded) {
        struct kernel_rows16 y = kernel_rows16_in(k->rounded, n), diff = kernel_rows16_in(k->rounded_diff, n);
        kernel_rows16_take(&y, g->n, g->y);
        kernel_gram16(&y, g->gram);
        if (g->shift) kernel_rows16_take(&diff, g->n, g->diff);
        if (g->shift) kernel_product16(&diff, &y, g->shift);
        g->n = 0;
        return;
    }
    kernel_gram(n, g->n, g->y, 1, g->gram);
    if (g->shift && g->n) kernel_matmul_tn(n, n, g->n, kernel_f32(g->diff), kernel_f32(g->y), 1, kernel_f32(g->shift));
    g->n = 0;
}

/* x NULL: unknown. */
static void gather(struct collector *k, struct gathered *g, const float *y, const float *x, size_t rows) {
    size_t cols = k->m->cols;
    for (size_t done = 0, n; done < rows; done += n) {
        n = rows - done < GATHERED - g->n ? rows - done : GATHERED - g->n;
        kernel_bound_rows(g->y + g->n * cols, x ? g->diff + g->n * cols : NULL, y + done * cols,
                          x ? x + done * cols : NULL, longest_row(k), n, cols);
        g->n += n;
        if (g->n == GATHERED) add_gathered(k, g);
    }
}

/* Alternates which half of a pass goes to which half of the data, because the start of a sequence is unlike the
 * rest. */
static int see(void *ctx, const struct model_seen *seen, struct err *e) {
    struct collector *k = ctx;
    struct moments *m = k->m;
    if (seen->point != m->point) return 0;
    if (!m->experts && !k->passes && find_median(k, seen->x, seen->rows, e)) return e->code;
    enum quant_phase before = phase_enter(k->clock, QUANT_MOMENTS);
    if (m->experts) {
        /* Summed in order of positions: the last bit of a weight can decide between equally good scales. */
        float *sum = m->squares + seen->expert * m->cols;
        for (size_t r = 0; r < seen->rows; r++)
            for (size_t j = 0; j < m->cols; j++) sum[j] += seen->x[r * m->cols + j] * seen->x[r * m->cols + j];
    } else {
        size_t half = k->passes % 2, middle = seen->rows / 2, cols = m->cols;
        bool at_hand = k->dense && k->passes % k->dense->every == 0;
        const float *x = at_hand ? k->dense->x[k->place] + k->at * cols : NULL;
        gather(k, &k->gathered[half][at_hand], seen->x, x, middle);
        gather(k, &k->gathered[!half][at_hand], seen->x + middle * cols, x ? x + middle * cols : NULL,
               seen->rows - middle);
        k->at += at_hand ? seen->rows : 0;
        k->passes++;
    }
    phase_enter(k->clock, before);
    return 0;
}

/* ---- collection ---- */

static int allocate_half(struct collector *k, struct half_moments *h, struct gathered *g, struct err *e) {
    size_t n = k->m->cols;
    bool some = k->dense, all = some && k->dense->every == 1;
    if (!(h->gram = mem_array(n, n * sizeof(float), e))) return e->code;
    if (some && !(h->shift = mem_array(n, n * sizeof(float), e))) return e->code;
    if (some && !all && !(h->of_dense = mem_array(n, n * sizeof(float), e))) return e->code;
    if (all) h->of_dense = h->gram;
    for (int at_hand = 0; at_hand < 2; at_hand++) {
        if (at_hand ? !some : all) continue;
        g[at_hand].y = mem_array(GATHERED, n * sizeof(float), e);
        if (!g[at_hand].y) return e->code;
        g[at_hand].gram = at_hand ? h->of_dense : h->gram;
    }
    if (!some) return 0;
    g[1].shift = h->shift;
    g[1].diff = mem_array(GATHERED, n * sizeof(float), e);
    return g[1].diff ? 0 : e->code;
}

static int allocate(struct collector *k, struct err *e) {
    struct moments *m = k->m;
    if (m->experts) return (m->squares = mem_array(m->experts, m->cols * sizeof(float), e)) ? 0 : e->code;
    if (kernel_has_rows16()) {
        size_t bytes = kernel_rows16_bytes(m->cols);
        if (!(k->rounded = mem_array(bytes, 1, e)) || !(k->rounded_diff = mem_array(bytes, 1, e))) return e->code;
    }
    int rc = allocate_half(k, &m->half[0], k->gathered[0], e);
    return rc ? rc : allocate_half(k, &m->half[1], k->gathered[1], e);
}

/* Adds the remaining rows, completes gram to all positions, and fills in the other triangle. */
static void finish_half(struct collector *k, struct half_moments *h, struct gathered *g) {
    size_t n = k->m->cols;
    for (int at_hand = 0; at_hand < 2; at_hand++)
        if (g[at_hand].y) add_gathered(k, &g[at_hand]);
    if (h->of_dense && h->of_dense != h->gram) {
        kernel_add(kernel_f32(h->gram), kernel_f32(h->of_dense), n * n);
        kernel_mirror(n, h->of_dense);
    }
    kernel_mirror(n, h->gram);
}

static void release_gathered(struct collector *k) {
    mem_free(k->rounded);
    mem_free(k->rounded_diff);
    for (int i = 0; i < 4; i++) {
        mem_free(k->gathered[i / 2][i % 2].y);
        mem_free(k->gathered[i / 2][i % 2].diff);
    }
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
    for (int i = 0; !rc && !m->experts && i < 2; i++) finish_half(&k, &m->half[i], k.gathered[i]);
    phase_enter(clock, before);
    release_gathered(&k);
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
