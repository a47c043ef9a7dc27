/* bf16 products without bf16 instructions: widened to f32, for the path's f32 product. */
#include "lib/kernel/kernel_internal.h"

#define WIDE_K 320
#define WIDE_N 320

static void widen_panel(float *to, size_t ld, const uint16_t *panel, size_t k) {
    const uint32_t *words = (const uint32_t *)(const void *)panel;
    for (size_t p = 0; p < k; p += 2, words += PANEL, to += 2 * ld)
        for (size_t j = 0; j < PANEL; j++) {
            to[j] = bf16_to_f32((uint16_t)words[j]);
            to[ld + j] = bf16_to_f32((uint16_t)(words[j] >> 16));
        }
}

static void multiply_widened(const struct block_bf16 *t) {
    const struct simd *v = t->path;
    _Alignas(64) float wide_a[MAX_BLOCK * WIDE_K], wide_b[WIDE_K * WIDE_N];
    for (size_t i = 0; i < t->rows; i++) v->from_bf16(wide_a + i * t->k, t->a + i * t->lda, t->k);
    for (size_t j = 0; j < t->n_panels; j += WIDE_N / PANEL) {
        size_t n = smaller(WIDE_N / PANEL, t->n_panels - j);
        for (size_t i = 0; i < n; i++) widen_panel(wide_b + i * PANEL, WIDE_N, t->b + (j + i) * t->stride, t->k);
        v->gemm(GEMM_NN, t->rows, n * PANEL, t->k, wide_a, t->k, wide_b, WIDE_N, t->accumulate, t->c + j * PANEL,
                t->ldc);
    }
}

const struct micro_bf16 bf16_widened = {
    .name = "widened", .block = MAX_BLOCK, .unit = 1, .k_block = WIDE_K, .group = 4, .multiply = multiply_widened};
