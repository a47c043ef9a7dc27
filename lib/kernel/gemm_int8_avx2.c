/*
 * The micro-kernel for AVX2: VPMADDUBSW multiplies 32 unsigned codes by signed activations and adds pairs in 16 bits,
 * which codes of up to 7 bits cannot overflow (2 x 127 x 127 < 2^15); the eighth bit of a code is multiplied separately
 * (2 x 128 x 127).
 */
#if defined(__x86_64__) && !defined(KERNEL_PORTABLE)
#include <immintrin.h>

#include "lib/kernel/kernel_internal.h"

#define TARGET_AVX2 __attribute__((target("avx2")))
#define STEP_BYTES  (4 * PANEL)

static inline __attribute__((always_inline)) TARGET_AVX2 __m256i add_products(__m256i sum, __m256i codes, __m256i x) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1)));
}

/* The sums of one row over a group of elements. */
TARGET_AVX2 static void sum_group(const uint8_t *codes, const uint32_t *a, size_t stride, size_t steps, bool is_wide,
                                  int32_t begin, int32_t sums[PANEL]) {
    const __m256i low = _mm256_set1_epi8(127);
    __m256i s[4];
    for (int i = 0; i < 4; i++) s[i] = _mm256_set1_epi32(begin);
    for (size_t step = 0; step < steps; step++, codes += STEP_BYTES, a += stride) {
        __m256i x = _mm256_set1_epi32((int)*a);
        for (int i = 0; i < 4; i++) {
            __m256i u = _mm256_loadu_si256((const __m256i *)(const void *)(codes + 32 * i));
            s[i] = add_products(s[i], is_wide ? _mm256_and_si256(u, low) : u, x);
            if (is_wide) s[i] = add_products(s[i], _mm256_andnot_si256(low, u), x);
        }
    }
    for (int i = 0; i < 4; i++) _mm256_storeu_si256((__m256i *)(void *)(sums + 8 * i), s[i]);
}

/* c += integers * scale * d [+ min * extra], each operation rounded separately; min NULL: none. */
TARGET_AVX2 static void add_group(const int32_t *sums, const float *scale, float d, const float *min, float extra,
                                  float *c) {
    for (size_t j = 0; j < PANEL; j += 8) {
        __m256 f = _mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i *)(const void *)(sums + j)));
        __m256 y = _mm256_mul_ps(_mm256_mul_ps(f, _mm256_loadu_ps(scale + j)), _mm256_set1_ps(d));
        y = _mm256_add_ps(_mm256_loadu_ps(c + j), y);
        if (min) y = _mm256_add_ps(y, _mm256_mul_ps(_mm256_loadu_ps(min + j), _mm256_set1_ps(extra)));
        _mm256_storeu_ps(c + j, y);
    }
}

static void multiply(const struct block_int8 *t) {
    struct unpacked_int8 b;
    unpack_int8(t, &b);
    bool has_min = t->form->has_min, is_wide = t->form->bits == 8;
    size_t per_block = 32 / t->form->group, steps = 8 / per_block;
    if (!t->accumulate) memset(t->c, 0, t->rows * PANEL * sizeof *t->c);
    for (size_t g = 0; g < t->b.groups; g++)
        for (size_t row = 0; row < t->rows; row++) {
            const union extra_int8 *extra = &t->extra[g * t->rows + row];
            int32_t sums[PANEL];
            sum_group(b.codes + g * steps * STEP_BYTES, t->a + g * steps * t->rows + row, t->rows, steps, is_wide,
                      has_min ? 0 : extra->times_offset, sums);
            add_group(sums, b.scale + g * PANEL, t->d[g / per_block * t->rows + row],
                      has_min ? b.min + g * PANEL : NULL, has_min ? extra->times_min : 0, t->c + row * PANEL);
        }
}

const struct micro_int8 int8_avx2 = {
    .name = "avx2", .rows = INT8_MAX_ROWS, .round = round_int8_portable, .multiply = multiply};
#else
typedef int gemm_int8_avx2_needs_x86_64; /* ISO C wants a declaration in every file */
#endif
