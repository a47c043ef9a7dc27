/* SparseGPT's choice of weights, as a method for the sweep of lib/obs. */
#include <math.h>
#include <string.h>

#include "lib/prune/second_order.h"

#define BLOCK 128 /* columns between two updates, as in the reference implementation */

struct sparsegpt {
    const struct obs_factor *factor;
    struct prune_sparsity s;
    size_t rows, first;     /* first: column of the block */
    unsigned char *gone;    /* [columns of a block][rows] */
    float *score, *scratch; /* [columns of a block][rows], for shares */
};

static float pivot(const struct sparsegpt *g, size_t column) {
    return g->factor->u[column * (g->factor->n + 1)];
}

/* For a share: computes the mask of the whole block; ties go to the lower index. */
static void begin(void *ctx, size_t first, size_t n, const float *w) {
    struct sparsegpt *g = ctx;
    size_t all = n * g->rows, go = prune_gone(g->s.share, all);
    g->first = first;
    memset(g->gone, 0, all);
    if (g->s.m || !go) return;
    for (size_t i = 0; i < all; i++) g->score[i] = fabsf(w[i] / pivot(g, first + i / g->rows));
    float threshold = kernel_kth_abs(g->score, all, go - 1, g->scratch);
    size_t ties = go;
    for (size_t i = 0; i < all; i++) ties -= g->score[i] < threshold;
    for (size_t i = 0; i < all; i++) {
        bool tie = g->score[i] == threshold && ties;
        g->gone[i] = g->score[i] < threshold || tie;
        ties -= tie;
    }
}

/* For n:m: computes the masks of the m columns starting here, from their updated weights. */
static void choose_group(struct sparsegpt *g, size_t column, size_t row, size_t n, const float *w) {
    float score[PRUNE_MAX_GROUP];
    unsigned char gone[PRUNE_MAX_GROUP];
    for (size_t i = 0; i < n; i++) {
        for (unsigned j = 0; j < g->s.m; j++) score[j] = fabsf(w[j * g->rows + i] / pivot(g, column + j));
        kernel_smallest_of_group(score, 1, g->s.m, g->s.n, gone);
        for (unsigned j = 0; j < g->s.m; j++) g->gone[(column - g->first + j) * g->rows + row + i] = gone[j];
    }
}

static void decide(void *ctx, size_t column, size_t left, size_t row, size_t n, const float *w, float *kept) {
    struct sparsegpt *g = ctx;
    (void)left; /* a multiple of m where a group starts */
    if (g->s.m && column % g->s.m == 0) choose_group(g, column, row, n, w);
    const unsigned char *gone = g->gone + (column - g->first) * g->rows + row;
    for (size_t i = 0; i < n; i++) kept[i] = gone[i] ? 0 : w[i];
}

int prune_sparsegpt(const struct prune_matrix *w, const struct obs_factor *factor, struct prune_sparsity s,
                    struct err *e) {
    size_t block = s.m ? BLOCK / s.m * s.m : BLOCK, most = block < w->cols ? block : w->cols;
    struct sparsegpt g = {.factor = factor, .s = s, .rows = w->rows};
    struct obs_method method = {.block = block, .begin = begin, .decide = decide, .ctx = &g};
    g.gone = mem_array(most, w->rows, e);
    bool ok = g.gone;
    if (ok && !s.m) {
        g.score = mem_array(most, w->rows * sizeof *g.score, e);
        g.scratch = g.score ? mem_array(most, w->rows * sizeof *g.scratch, e) : NULL;
        ok = g.scratch;
    }
    int rc = ok ? obs_sweep(factor, &method, w->x, w->rows, w->x, NULL, e) : e->code;
    mem_free(g.gone);
    mem_free(g.score);
    mem_free(g.scratch);
    return rc;
}
