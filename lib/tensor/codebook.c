/*
 * Fits vectors to the codebooks of the IQ types: finds the points nearest to given coordinates, and the scale of a
 * group. Follows ggml's reference in the order of operations, so that the same weights give the same bytes.
 */
#include <float.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <string.h>

#include "lib/tensor/codebook_internal.h"

enum { BLOCK = 256, MAX_GROUP = 32, MAX_VECTORS = 8 };

/* ---- neighbours of coordinates that are not a point ---- */

static int distance(const struct codebook *b, int point, const int *at) {
    int sum = 0;
    for (int k = 0; k < b->dims; k++) {
        int diff = codebook_coordinate(b, point, k) - at[k];
        sum += diff * diff;
    }
    return sum;
}

/* Appends the points at the smallest distances from `at` to the list at `end`; returns the new end. */
static int list_neighbours(const struct codebook *b, const int *at, int end) {
    int distances[1024], count = end++, beyond = -1;
    for (int i = 0; i < b->n; i++) distances[i] = distance(b, i, at);
    for (int level = 0; level < b->levels; level++) {
        int next = INT_MAX;
        for (int i = 0; i < b->n; i++)
            if (distances[i] > beyond && distances[i] < next) next = distances[i];
        for (int i = 0; i < b->n; i++)
            if (distances[i] == next) b->neighbours[end++] = (uint16_t)i;
        beyond = next;
    }
    b->neighbours[count] = (uint16_t)(end - count - 1);
    return end;
}

static unsigned place_of(const struct codebook *b, const int *at) {
    unsigned word = 0;
    for (int k = 0; k < b->dims; k++) word |= (unsigned)at[k] << b->bits * k;
    return word;
}

static void index_points(const struct codebook *b) {
    int at[8] = {0}, end = 0;
    memset(b->places, 0xff, sizeof *b->places << b->dims * b->bits);
    for (int i = 0; i < b->n; i++) b->places[b->points[i]] = i;
    for (int k = 0; k < b->dims;) { /* count through all coordinates */
        int32_t *place = &b->places[place_of(b, at)];
        if (*place < 0) {
            *place = -1 - end;
            end = list_neighbours(b, at, end);
        }
        for (k = 0; k < b->dims && ++at[k] == b->n_values; k++) at[k] = 0;
    }
}

static void index_all(void) {
    index_points(&iq2_xxs_book);
    index_points(&iq2_xs_book);
    index_points(&iq2_s_book);
    index_points(&iq3_xxs_book);
    index_points(&iq3_s_book);
}

/* Returns the neighbour with the smallest weighted error. */
static int nearest_neighbour(const struct codebook *b, int32_t place, const float *x, const float *w, float scale) {
    const uint16_t *list = b->neighbours - place - 1;
    float least = FLT_MAX;
    int best = list[1];
    for (int i = 1; i <= list[0]; i++) {
        float error = 0;
        for (int k = 0; k < b->dims; k++) {
            float diff = scale * (float)(2 * codebook_coordinate(b, list[i], k) + 1) - x[k];
            error += w[k] * diff * diff;
        }
        if (error < least) least = error, best = list[i];
    }
    return best;
}

/* Returns the point for one vector under a scale; *on_grid: its rounded coordinates are a point. */
static int find_point(const struct codebook *b, const float *x, const float *w, float inverse, float scale,
                      bool *on_grid) {
    int at[8];
    for (int k = 0; k < b->dims; k++) at[k] = nearest_code(0.5f * (inverse * x[k] - 1), 0, b->n_values - 1);
    int32_t place = b->places[place_of(b, at)];
    *on_grid = place >= 0;
    return *on_grid ? place : nearest_neighbour(b, place, x, w, scale);
}

/* ---- a group ---- */

struct group {
    const struct codebook_search *s;
    int n_vectors;
    float x[MAX_GROUP]; /* magnitudes, except that one of each eight may be negated to make the signs even */
    float w[MAX_GROUP], root_w[MAX_GROUP];
    float scale;
    int points[MAX_VECTORS];
    bool on_grid[MAX_VECTORS];
};

static void take_signs(struct group *g, const float *x, uint8_t *signs) {
    for (int i = 0; i < g->s->group; i += 8, signs++) {
        *signs = 0;
        for (int k = 0; k < 8; k++) {
            g->x[i + k] = x[i + k] >= 0 ? x[i + k] : -x[i + k];
            if (!(x[i + k] >= 0)) *signs |= (uint8_t)(1 << k);
        }
        if (!g->s->even_signs || __builtin_parity(*signs) == 0) continue;
        int least = 0;
        float loss = g->w[i] * x[i] * x[i];
        for (int k = 1; k < 8; k++) {
            float other = g->w[i + k] * x[i + k] * x[i + k];
            if (other < loss) loss = other, least = k;
        }
        g->x[i + least] = -g->x[i + least];
        *signs ^= (uint8_t)(1 << least);
    }
}

/* sum w x q and sum w q^2 over the group; the best scale for these points is their quotient. */
static void sums_of(const struct group *g, const int *points, float *sum_xq, float *sum_q2) {
    const struct codebook *b = g->s->book;
    *sum_xq = *sum_q2 = 0;
    for (int i = 0; i < g->s->group; i++) {
        float q = (float)(2 * codebook_coordinate(b, points[i / b->dims], i % b->dims) + 1);
        *sum_xq += g->w[i] * g->x[i] * q;
        *sum_q2 += g->w[i] * q * q;
    }
}

static void try_scales(struct group *g, float largest) {
    const struct codebook_search *s = g->s;
    const struct codebook *b = s->book;
    float top = (float)(2 * b->n_values - 1), best = 0;
    for (int trial = -s->trials; trial <= s->trials; trial++) {
        int points[MAX_VECTORS];
        bool on_grid[MAX_VECTORS];
        float sum_xq, sum_q2, inverse = (top + (float)trial * s->step) / largest, scale = 1 / inverse;
        for (int v = 0; v < g->n_vectors; v++)
            points[v] = find_point(b, g->x + v * b->dims, g->root_w + v * b->dims, inverse, scale, &on_grid[v]);
        sums_of(g, points, &sum_xq, &sum_q2);
        if (!(sum_q2 > 0 && sum_xq * sum_xq > best * sum_q2)) continue;
        g->scale = sum_xq / sum_q2;
        best = g->scale * sum_xq;
        memcpy(g->points, points, sizeof points);
        memcpy(g->on_grid, on_grid, sizeof on_grid);
    }
}

/* Searches the points again with the scale found, and then the best scale for them. */
static void look_again(struct group *g) {
    const struct codebook_search *s = g->s;
    const struct codebook *b = s->book;
    bool any = s->again, ignored;
    for (int v = 0; v < g->n_vectors; v++) any |= !g->on_grid[v];
    if (!any || !(g->scale > 0)) return;
    float sum_xq, sum_q2, inverse = 1 / g->scale;
    for (int v = 0; v < g->n_vectors; v++)
        if (s->again_all || !g->on_grid[v])
            g->points[v] = find_point(b, g->x + v * b->dims, g->root_w + v * b->dims, inverse, g->scale, &ignored);
    sums_of(g, g->points, &sum_xq, &sum_q2);
    if (sum_q2 > 0) g->scale = sum_xq / sum_q2;
}

/* Finds g->scale >= 0 and the points. */
static void fit_group(struct group *g, uint8_t *signs) {
    const struct codebook_search *s = g->s;
    float largest = g->x[0];
    for (int i = 1; i < s->group; i++)
        if (g->x[i] > largest) largest = g->x[i];
    memset(g->points, 0, sizeof g->points); /* point 0 is the origin of every codebook */
    for (int v = 0; v < g->n_vectors; v++) g->on_grid[v] = true;
    g->scale = 0;
    uint8_t found[4];
    memcpy(found, signs, (size_t)s->group / 8);
    memset(signs, 0, (size_t)s->group / 8); /* correct for a group stored as zeros */
    if (largest == 0 || largest < s->least) return;
    if (s->from_fit) {
        uint8_t codes[MAX_GROUP];
        g->scale = fit_positive(s->group, s->book->n_values + 1, g->x, g->w, codes);
        largest = g->scale * (float)s->book->n_values;
        if (!(largest > 0)) return;
    } else
        g->scale = largest / (float)(2 * s->book->n_values - 1);
    try_scales(g, largest);
    look_again(g);
    bool turn = g->scale < 0; /* scales are stored without a sign: negate all elements instead */
    if (turn) g->scale = -g->scale;
    for (int i = 0; i < s->group / 8; i++) signs[i] = turn ? (uint8_t)~found[i] : found[i];
}

/* ---- a block ---- */

/* A group whose columns were all inactive during calibration is weighted as without importance, instead of by 0. */
static void weigh(struct group *g, const float *x, const float *importance, float mean_square) {
    const struct codebook_search *s = g->s;
    float sigma = s->sigma * mean_square, floor_of = s->floor * mean_square;
    bool any = false;
    if (importance) fit_weigh((size_t)s->group, x, importance, sigma, g->w);
    for (int i = 0; importance && i < s->group; i++) any |= g->w[i] > 0;
    for (int i = 0; i < s->group; i++) {
        if (!any) g->w[i] = floor_of + x[i] * x[i];
        g->root_w[i] = sqrtf(g->w[i]);
    }
}

static void fit_block(const struct codebook_search *s, const float *x, const float *importance,
                      struct codebook_block *b) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, index_all);
    struct group g = {.s = s, .n_vectors = s->group / s->book->dims};
    float scales[16], sum = 0, largest = 0;
    for (int i = 0; i < BLOCK; i++) sum += x[i] * x[i];
    for (int i = 0; i < BLOCK / s->group; i++) {
        weigh(&g, x + i * s->group, importance ? importance + i * s->group : NULL, sum / BLOCK);
        take_signs(&g, x + i * s->group, b->signs + i * s->group / 8);
        fit_group(&g, b->signs + i * s->group / 8);
        for (int v = 0; v < g.n_vectors; v++) b->points[i * g.n_vectors + v] = (uint16_t)g.points[v];
        scales[i] = g.scale;
        if (!(g.scale <= largest)) largest = g.scale; /* keeps NaN: the caller then fails to store it */
    }
    float d = largest / 31, inverse = d != 0 ? 1 / d : 0;
    b->d = d * s->stretch;
    for (int i = 0; i < BLOCK / s->group; i++)
        b->scales[i] = (uint8_t)nearest_code(0.5f * (inverse * scales[i] - 1), 0, 15);
}

size_t codebook_encode(const struct codebook_search *s, codebook_pack_fn *pack, size_t block_bytes, const float *src,
                       void *blocks, size_t n_blocks, const struct row_weights *w) {
    uint8_t *block = blocks;
    for (size_t b = 0; b < n_blocks; b++, block += block_bytes) {
        struct codebook_block made;
        fit_block(s, src + b * BLOCK, importance_of(w, b * BLOCK), &made);
        memset(block, 0, block_bytes);
        if (!store_f16(block, made.d)) return b;
        pack(&made, block);
    }
    return n_blocks;
}
