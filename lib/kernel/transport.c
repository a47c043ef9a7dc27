/* The distance between distributions over different vocabularies: their probabilities in descending order are
 * compared. */
#include <math.h>

#include "lib/kernel/kernel_internal.h"

/* Rows are distributed to a fixed number of lanes, each with its own scratch. */
#define LANES 8

struct entry {
    uint32_t key, id; /* the larger the probability, the smaller the key */
};

struct transport {
    const struct simd *v;
    const struct kernel_target *target;
    const float *row_weight, *x;
    float inv_temperature, weight;
    size_t rows, d;
    unsigned char *scratch;
    double *value;
    float *dx;
};

struct lane {
    struct entry *own, *spare; /* [d] */
    float *p, *t, *g;          /* [d] */
};

static size_t lane_bytes(size_t d) {
    return (d * (2 * sizeof(struct entry) + 3 * sizeof(float)) + 63) / 64 * 64;
}

size_t kernel_sorted_scratch(size_t d) {
    return LANES * lane_bytes(d);
}

static uint32_t float_key(float p) {
    uint32_t bits;
    memcpy(&bits, &p, sizeof bits); /* not negative, so ordered like an integer */
    return ~bits;
}

static float key_float(uint32_t key) {
    float p;
    key = ~key;
    memcpy(&p, &key, sizeof p);
    return p;
}

/* Sorts by descending probability, ties by id: a radix sort, eleven bits at a time. */
static void sort(struct lane *l, const float *p, size_t d) {
    enum { BITS = 11, BUCKETS = 1 << BITS };
    for (size_t i = 0; i < d; i++) l->own[i] = (struct entry){float_key(p[i]), (uint32_t)i};
    for (int shift = 0; shift < 32; shift += BITS) {
        uint32_t at[BUCKETS] = {0}, sum = 0;
        for (size_t i = 0; i < d; i++) at[l->own[i].key >> shift & (BUCKETS - 1)]++;
        for (size_t b = 0; b < BUCKETS; b++) {
            uint32_t n = at[b];
            at[b] = sum;
            sum += n;
        }
        for (size_t i = 0; i < d; i++) l->spare[at[l->own[i].key >> shift & (BUCKETS - 1)]++] = l->own[i];
        struct entry *swap = l->own;
        l->own = l->spare, l->spare = swap;
    }
}

/* The teacher's probabilities in descending order, [d]. */
static void teacher_order(const struct transport *c, size_t r, struct lane *l) {
    const struct kernel_target *t = c->target;
    size_t n = c->d;
    if (t->dense) {
        c->v->exp_store(l->g, t->dense + r * n, n, 0, 1);
    } else {
        size_t entries = smaller(t->offset[r + 1] - t->offset[r], n);
        memset(l->g, 0, n * sizeof *l->g);
        memcpy(l->g, t->probs + t->offset[r], entries * sizeof *l->g);
    }
    sort(l, l->g, n);
    for (size_t i = 0; i < n; i++) l->t[i] = key_float(l->own[i].key);
}

static double row(const struct transport *c, size_t r, struct lane *l) {
    const float *x = c->x + r * c->d;
    double weight = (double)c->weight * (c->row_weight ? c->row_weight[r] : 1) * c->inv_temperature, value = 0,
           along = 0;
    teacher_order(c, r, l);
    double sum = c->v->exp_store(l->p, x, c->d, c->v->max(x, c->d), c->inv_temperature);
    c->v->scale(l->p, c->d, (float)(1 / sum));
    sort(l, l->p, c->d);
    for (size_t i = 0; i < c->d; i++) {
        double p = l->p[l->own[i].id], gap = p - l->t[i], sign = gap > 0 ? 1 : gap < 0 ? -1 : 0;
        value += fabs(gap);
        along += sign * p;
        l->g[l->own[i].id] = (float)sign;
    }
    for (size_t i = 0; c->dx && i < c->d; i++) c->dx[r * c->d + i] += (float)(weight * l->p[i] * (l->g[i] - along));
    return value;
}

static void lane_rows(void *ctx, size_t begin, size_t end) {
    const struct transport *c = ctx;
    for (size_t lane = begin; lane < end; lane++) {
        struct entry *entries = (struct entry *)(c->scratch + lane * lane_bytes(c->d));
        float *floats = (float *)(entries + 2 * c->d);
        for (size_t r = lane; r < c->rows; r += LANES) {
            struct lane l = {entries, entries + c->d, floats, floats + c->d, floats + 2 * c->d};
            c->value[r] = !c->row_weight || c->row_weight[r] != 0 ? row(c, r, &l) : 0;
        }
    }
}

void kernel_sorted_distance(float temperature, float weight, const struct kernel_target *target,
                            const float *row_weight, const float *x, size_t rows, size_t d, void *scratch,
                            double *value, float *dx) {
    PROFILE(LOSSES);
    struct transport c = {.v = simd(),
                          .target = target,
                          .row_weight = row_weight,
                          .x = x,
                          .inv_temperature = 1 / temperature,
                          .weight = weight,
                          .rows = rows,
                          .d = d,
                          .scratch = scratch,
                          .value = value,
                          .dx = dx};
    kernel_split(LANES, 1, lane_rows, &c);
}
