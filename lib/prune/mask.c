/* Selects and zeroes weights of one matrix. */
#include "lib/prune/prune_internal.h"

/* Zeroes a share of the matrix, or of each row, depending on the method. */
static int zero_share(const struct prune_matrix *w, double share, enum prune_method method, struct buf *scratch,
                      struct err *e) {
    bool by_row = method == PRUNE_WANDA;
    size_t n = w->rows * w->cols, floats = by_row ? 2 * w->cols * (size_t)parallel_threads() : n;
    scratch->len = 0;
    if (buf_reserve(scratch, floats * sizeof(float), e)) return e->code;
    float *memory = (float *)(void *)scratch->data;
    if (by_row)
        kernel_zero_smallest_rows(w->x, w->norms, w->rows, w->cols, prune_gone(share, w->cols), memory);
    else
        (void)kernel_zero_smallest(w->x, n, prune_gone(share, n), memory);
    return 0;
}

int prune_mask(const struct prune_matrix *w, struct prune_sparsity s, enum prune_method method, struct buf *scratch,
               struct err *e) {
    if (s.m)
        kernel_zero_groups(w->x, method == PRUNE_WANDA ? w->norms : NULL, w->rows, w->cols, s.n, s.m);
    else if (s.share > 0)
        return zero_share(w, s.share, method, scratch, e);
    return 0;
}
