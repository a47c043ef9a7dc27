/* Transposition without vectors, for the paths that have no faster one. */
#include "lib/kernel/kernel_internal.h"

void transpose_words_plain(uint32_t *y, size_t ldy, const uint32_t *x, size_t ldx, size_t n, size_t k) {
    for (size_t p = 0; p < k; p++)
        for (size_t i = 0; i < n; i++) y[p * ldy + i] = x[i * ldx + p];
}

void transpose_bf16_plain(uint16_t *y, size_t ldy, const uint16_t *x, size_t ldx, size_t rows, size_t cols) {
    for (size_t c = 0; c < cols; c++)
        for (size_t r = 0; r < rows; r++) y[c * ldy + r] = x[r * ldx + c];
}
