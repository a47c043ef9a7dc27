/* Selects the highest of a list of scores. */
#include "lib/prune/prune_internal.h"

#include <stdlib.h>

struct ranked {
    double score;
    uint32_t index;
};

static int best_first(const void *a, const void *b) {
    const struct ranked *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

static int by_index(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

int prune_choose(const double *score, uint32_t n, uint32_t best, uint32_t *out, struct arena *a, struct err *e) {
    struct ranked *r = arena_array(a, n, sizeof *r, e);
    if (!r) return e->code;
    for (uint32_t i = 0; i < n; i++) r[i] = (struct ranked){score[i], i};
    qsort(r, n, sizeof *r, best_first);
    for (uint32_t i = 0; i < best; i++) out[i] = r[i].index;
    qsort(out, best, sizeof *out, by_index);
    return 0;
}
