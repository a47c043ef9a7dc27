/*
 * The micro-kernel for AVX512-VNNI: VPDPBUSD multiplies 64 unsigned codes by signed activations and adds four neighbouring
 * products to a lane, all exactly.
 */
#if defined(__x86_64__)
#include <math.h>

#include "lib/kernel/avx512.h"

#define TARGET_VNNI __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")))
#define INLINE_VNNI static inline __attribute__((always_inline)) TARGET_VNNI

/* 6 x 2 accumulators in integers, as many in f32; two vectors of b, one broadcast of a: 27 of 32 registers. */
#define MR    INT8_MAX_ROWS
#define STEPS 8    /* in a block; four of k each */
#define AHEAD 4096 /* bytes of b */

INLINE_VNNI int word_at(const uint32_t *p) {
    int word;
    memcpy(&word, p, sizeof word);
    return word;
}

/* acc += sums * scale * d [+ min * extra], each operation rounded on its own. */
INLINE_VNNI __m512 add_group(__m512 acc, __m512i sums, __m512 scale, __m512 d) {
    return _mm512_add_ps(acc, _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sums), scale), d));
}

/* rows, groups and has_min are constants at each call. */
INLINE_VNNI void micro(const int rows, const int groups, const bool has_min, const struct block_int8 *t) {
    __m512 c0[MR], c1[MR];
    UNROLL for (int i = 0; i < rows; i++) {
        c0[i] = t->accumulate ? _mm512_loadu_ps(t->c + i * PANEL) : _mm512_setzero_ps();
        c1[i] = t->accumulate ? _mm512_loadu_ps(t->c + i * PANEL + 16) : _mm512_setzero_ps();
    }
    const uint8_t *codes = t->b->codes;
    const uint32_t *a = t->a;
    const float *d = t->d, *scale = t->b->scale, *min = t->b->min;
    const union extra_int8 *extra = t->extra;
    for (size_t b = 0; b < t->blocks; b++, d += rows)
        for (int g = 0; g < groups; g++, extra += rows, scale += PANEL, min += PANEL) {
            __m512i s0[MR], s1[MR];
            UNROLL for (int i = 0; i < rows; i++) s0[i] = s1[i] =
                has_min ? _mm512_setzero_si512() : _mm512_set1_epi32(extra[i].times_offset);
            UNROLL for (int s = 0; s < STEPS / groups; s++, codes += 4 * PANEL, a += rows) {
                __m512i b0 = _mm512_loadu_si512(codes), b1 = _mm512_loadu_si512(codes + 64);
                UNROLL for (int i = 0; i < rows; i++) {
                    __m512i x = _mm512_set1_epi32(word_at(a + i));
                    s0[i] = _mm512_dpbusd_epi32(s0[i], b0, x);
                    s1[i] = _mm512_dpbusd_epi32(s1[i], b1, x);
                }
            }
            __m512 f0 = _mm512_loadu_ps(scale), f1 = _mm512_loadu_ps(scale + 16);
            UNROLL for (int i = 0; i < rows; i++) {
                __m512 x = _mm512_set1_ps(d[i]);
                c0[i] = add_group(c0[i], s0[i], f0, x);
                c1[i] = add_group(c1[i], s1[i], f1, x);
            }
            if (!has_min) continue;
            f0 = _mm512_loadu_ps(min);
            f1 = _mm512_loadu_ps(min + 16);
            UNROLL for (int i = 0; i < rows; i++) {
                __m512 x = _mm512_set1_ps(extra[i].times_min);
                c0[i] = _mm512_add_ps(c0[i], _mm512_mul_ps(f0, x));
                c1[i] = _mm512_add_ps(c1[i], _mm512_mul_ps(f1, x));
            }
        }
    UNROLL for (int i = 0; i < rows; i++) {
        _mm512_storeu_ps(t->c + i * PANEL, c0[i]);
        _mm512_storeu_ps(t->c + i * PANEL + 16, c1[i]);
    }
}

#define MICRO(rows, groups, min)                                                                                       \
    TARGET_VNNI static void micro_##rows##_##groups##_##min(const struct block_int8 *t) {                              \
        micro(rows, groups, min, t);                                                                                   \
    }
#define EACH_FORM(X, rows) X(rows, 1, 0) X(rows, 1, 1) X(rows, 2, 0) X(rows, 2, 1)
#define EACH(X)            EACH_FORM(X, 1) EACH_FORM(X, 2) EACH_FORM(X, 3) EACH_FORM(X, 4) EACH_FORM(X, 5) EACH_FORM(X, 6)
EACH(MICRO)

#define ENTRY(rows, groups, min) [rows][groups - 1][min] = micro_##rows##_##groups##_##min,
static void (*const micros[MR + 1][2][2])(const struct block_int8 *t) = {EACH(ENTRY)};

static void multiply(const struct block_int8 *t) {
    micros[t->rows][t->groups - 1][t->has_min](t);
}

/* ---- activations ---- */

TARGET_VNNI static void round_rows(const float *x, size_t blocks, const struct quant_form *f, size_t stride,
                                   uint32_t *a, float *d, union extra_int8 *extra) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    for (size_t b = 0; b < blocks; b++, x += 32, d += stride) {
        __m512 v0 = _mm512_loadu_ps(x), v1 = _mm512_loadu_ps(x + 16);
        __m512i u0 = _mm512_and_si512(_mm512_castps_si512(v0), magnitude);
        __m512i u1 = _mm512_and_si512(_mm512_castps_si512(v1), magnitude);
        uint32_t most = _mm512_reduce_max_epu32(_mm512_max_epu32(u0, u1));
        float max;
        memcpy(&max, &most, sizeof max);
        bool usable = max < INFINITY && max >= 0x1p-120f;
        *d = !(max < INFINITY) ? NAN : usable ? max / 127 : 0;
        __m512 inverse = _mm512_set1_ps(usable ? 127 / max : 0);
        /* The factor 0 leaves NaN of infinities, whose integer is not 0: the mask is. */
        __mmask16 all = usable ? 0xffff : 0;
        __m512i q0 = _mm512_maskz_cvtps_epi32(all, _mm512_mul_ps(v0, inverse));
        __m512i q1 = _mm512_maskz_cvtps_epi32(all, _mm512_mul_ps(v1, inverse));
        _Alignas(32) uint32_t words[STEPS];
        _mm_store_si128((__m128i *)(void *)words, _mm512_cvtepi32_epi8(q0));
        _mm_store_si128((__m128i *)(void *)(words + 4), _mm512_cvtepi32_epi8(q1));
        for (int s = 0; s < STEPS; s++, a += stride) *a = words[s];
        int32_t sums[2] = {_mm512_reduce_add_epi32(q0), _mm512_reduce_add_epi32(q1)};
        if (f->group == 32) sums[0] += sums[1];
        for (unsigned g = 0; g < 32 / f->group; g++, extra += stride)
            if (f->has_min)
                extra->times_min = (float)sums[g] * *d;
            else
                extra->times_offset = -f->offset * sums[g];
    }
}

/* ---- weights ---- */

INLINE_VNNI void fetch(const uint8_t *p) {
    __builtin_prefetch(p + AHEAD);
}

/* Two steps from their nibbles, two vectors each; the bits above by masks. */
INLINE_VNNI void unpack_codes(const int planes, const struct chunk_int8 *c, size_t steps, uint8_t *to) {
    const __m512i nibble = _mm512_set1_epi8(15);
    const uint8_t *from = c->codes, *masks = c->masks;
    for (size_t s = 0; s < steps; s += 2, from += 128, to += 256, masks += (size_t)planes * 32) {
        __m512i codes[4];
        fetch(from);
        fetch(from + 64);
        UNROLL for (int i = 0; i < 2; i++) {
            __m512i v = _mm512_loadu_si512(from + 64 * i);
            codes[i] = _mm512_and_si512(v, nibble);
            codes[2 + i] = _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble);
        }
        if (planes) fetch(masks);
        UNROLL for (int i = 0; i < 4; i++) {
            UNROLL for (int plane = 0; plane < planes; plane++) {
                uint64_t bits;
                memcpy(&bits, masks + ((i / 2 * planes + plane) * 2 + i % 2) * 8, sizeof bits);
                codes[i] = _mm512_mask_add_epi8(codes[i], bits, codes[i], _mm512_set1_epi8((char)(16 << plane)));
            }
            _mm512_storeu_si512(to + 64 * i, codes[i]);
        }
    }
}

TARGET_VNNI static void unpack_0(const struct chunk_int8 *c, size_t steps, uint8_t *to) {
    unpack_codes(0, c, steps, to);
}
TARGET_VNNI static void unpack_1(const struct chunk_int8 *c, size_t steps, uint8_t *to) {
    unpack_codes(1, c, steps, to);
}
TARGET_VNNI static void unpack_2(const struct chunk_int8 *c, size_t steps, uint8_t *to) {
    unpack_codes(2, c, steps, to);
}

INLINE_VNNI __m512 f16_at(const uint8_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

TARGET_VNNI static void unpack_factors(const uint8_t *f16, const int8_t *small, size_t groups, float *to) {
    for (size_t half = 0; half < PANEL; half += 16) {
        __m512 all = f16_at(f16 + half * sizeof(uint16_t));
        for (size_t g = 0; g < groups; g++) {
            if (small) {
                __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)(small + g * PANEL + half));
                _mm512_storeu_ps(to + g * PANEL + half,
                                 _mm512_mul_ps(all, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))));
            } else
                _mm512_storeu_ps(to + g * PANEL + half, f16_at(f16 + (g * PANEL + half) * sizeof(uint16_t)));
        }
    }
}

TARGET_VNNI static void unpack(const struct quant_form *f, const struct chunk_int8 *from, size_t blocks,
                               struct unpacked_int8 *to) {
    static void (*const unpacks[])(const struct chunk_int8 *c, size_t steps, uint8_t *to) = {unpack_0, unpack_1,
                                                                                             unpack_2};
    to->codes = f->bits == 8 ? from->codes : to->room;
    if (f->bits < 8)
        unpacks[from->planes](from, blocks * STEPS, to->room);
    else
        for (size_t i = 0; i < blocks * STEPS * 4 * PANEL; i += 64) fetch(from->codes + i);
    unpack_factors(from->d, from->scales, from->groups, to->scale);
    if (f->has_min) unpack_factors(from->min, from->mins, from->groups, to->min);
}

const struct micro_int8 int8_vnni = {.rows = MR, .round = round_rows, .unpack = unpack, .multiply = multiply};
#else
typedef int gemm_int8_vnni_needs_x86_64; /* ISO C wants a declaration in every file */
#endif
