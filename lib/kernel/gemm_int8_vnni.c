/*
 * The micro-kernel for AVX512-VNNI: VPDPBUSD multiplies 64 unsigned codes by signed activations and adds four
 * neighboring products into a lane, all exactly.
 */
#if defined(__x86_64__) && !defined(KERNEL_PORTABLE)
#include <math.h>

#include "lib/kernel/avx512.h"

#define TARGET_VNNI __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")))
#define INLINE_VNNI static inline __attribute__((always_inline)) TARGET_VNNI

/* 6 x 2 integer accumulators, as many in f32; two vectors of b, one broadcast of a: 27 of 32 registers. */
#define MR    6
#define STEPS 8    /* per block; four elements of k each */
#define AHEAD 6144 /* prefetch distance in bytes of b */

INLINE_VNNI int word_at(const uint32_t *p) {
    int word;
    memcpy(&word, p, sizeof word);
    return word;
}

/* The sums over a group of elements, and their initial values. */
struct group {
    __m512i s0[MR], s1[MR];
};

INLINE_VNNI void begin_group(const int rows, const bool has_min, const union extra_int8 *extra, struct group *g) {
    UNROLL for (int i = 0; i < rows; i++) g->s0[i] = g->s1[i] =
        has_min ? _mm512_setzero_si512() : _mm512_set1_epi32(extra[i].times_offset);
}

INLINE_VNNI void add_step(const int rows, __m512i b0, __m512i b1, const uint32_t *a, struct group *g) {
    UNROLL for (int i = 0; i < rows; i++) {
        __m512i x = _mm512_set1_epi32(word_at(a + i));
        g->s0[i] = _mm512_dpbusd_epi32(g->s0[i], b0, x);
        g->s1[i] = _mm512_dpbusd_epi32(g->s1[i], b1, x);
    }
}

struct sums {
    __m512 c0[MR], c1[MR];
};

INLINE_VNNI void begin_sums(const int rows, const struct block_int8 *t, struct sums *c) {
    UNROLL for (int i = 0; i < rows; i++) {
        c->c0[i] = t->accumulate ? _mm512_loadu_ps(t->c + i * PANEL) : _mm512_setzero_ps();
        c->c1[i] = t->accumulate ? _mm512_loadu_ps(t->c + i * PANEL + 16) : _mm512_setzero_ps();
    }
}

INLINE_VNNI void end_sums(const int rows, const struct block_int8 *t, const struct sums *c) {
    UNROLL for (int i = 0; i < rows; i++) {
        _mm512_storeu_ps(t->c + i * PANEL, c->c0[i]);
        _mm512_storeu_ps(t->c + i * PANEL + 16, c->c1[i]);
    }
}

/* c += integers * scale * d, each operation rounded separately. */
INLINE_VNNI void add_scaled(const int rows, const struct group *g, __m512 f0, __m512 f1, const float *d,
                            struct sums *c) {
    UNROLL for (int i = 0; i < rows; i++) {
        __m512 x = _mm512_set1_ps(d[i]);
        c->c0[i] = _mm512_add_ps(c->c0[i], _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(g->s0[i]), f0), x));
        c->c1[i] = _mm512_add_ps(c->c1[i], _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(g->s1[i]), f1), x));
    }
}

INLINE_VNNI void add_minima(const int rows, __m512 f0, __m512 f1, const union extra_int8 *extra, struct sums *c) {
    UNROLL for (int i = 0; i < rows; i++) {
        __m512 x = _mm512_set1_ps(extra[i].times_min);
        c->c0[i] = _mm512_add_ps(c->c0[i], _mm512_mul_ps(f0, x));
        c->c1[i] = _mm512_add_ps(c->c1[i], _mm512_mul_ps(f1, x));
    }
}

/* ---- a chunk ---- */

/* Codes of two steps, two vectors each: nibbles, and higher bits from masks. */
INLINE_VNNI void two_steps(const int planes, const uint8_t *from, const uint8_t *masks, __m512i codes[4]) {
    const __m512i nibble = _mm512_set1_epi8(15);
    UNROLL for (int i = 0; i < 2; i++) {
        __m512i v = _mm512_loadu_si512(from + 64 * i);
        codes[i] = _mm512_and_si512(v, nibble);
        codes[2 + i] = _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble);
    }
    UNROLL for (int i = 0; i < 4; i++) UNROLL for (int plane = 0; plane < planes; plane++) {
        uint64_t bits;
        memcpy(&bits, masks + ((i / 2 * planes + plane) * 2 + i % 2) * 8, sizeof bits);
        codes[i] = _mm512_mask_add_epi8(codes[i], bits, codes[i], _mm512_set1_epi8((char)(16 << plane)));
    }
}

/* Factors of 16 columns: an f16, times a small integer for types that have one per group. */
INLINE_VNNI __m512 factors(const uint8_t *f16, const int8_t *small, size_t group, size_t col) {
    const void *h = f16 + ((small ? 0 : group) * PANEL + col) * sizeof(uint16_t);
    __m512 all = _mm512_cvtph_ps(_mm256_loadu_si256(h));
    if (!small) return all;
    const void *bytes = small + group * PANEL + col;
    return _mm512_mul_ps(all, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(bytes))));
}

INLINE_VNNI void all_factors(const uint8_t *f16, const int8_t *small, size_t groups, float *to) {
    for (size_t g = 0; g < groups; g++)
        for (size_t half = 0; half < PANEL; half += 16)
            _mm512_store_ps(to + g * PANEL + half, factors(f16, small, g, half));
}

#define BYTES 3 /* in place of a number of planes: codes of eight bits */

INLINE_VNNI void fetch(const void *p) {
    __builtin_prefetch((const uint8_t *)p + AHEAD);
}

/* rows, planes and groups (per block) are constants in each call. With one row the limit is memory, which is fastest
 * when read sequentially: factors first, then codes (with masks there are two streams anyway, and this would only
 * cost). With more rows the limit is arithmetic, and factors are read when needed. */
INLINE_VNNI void micro(const int rows, const int planes, const int groups, const struct block_int8 *t) {
    const struct chunk_int8 *from = &t->b;
    const uint8_t *codes = from->codes, *masks = from->masks;
    const uint32_t *a = t->a;
    const float *d = t->d;
    const union extra_int8 *extra = t->extra;
    bool has_min = t->form->has_min;
    struct sums c;
    begin_sums(rows, t, &c);
    _Alignas(64) float scale[INT8_GROUPS * PANEL], min[INT8_GROUPS * PANEL];
    const bool ahead = rows == 1 && (planes == 0 || planes == BYTES);
    if (ahead) all_factors(from->d, from->scales, from->groups, scale);
    if (ahead && has_min) all_factors(from->min, from->mins, from->groups, min);
    for (size_t b = 0; b < t->blocks; b++, d += rows)
        for (size_t i = b * groups; i < (b + 1) * groups; i++, extra += rows) {
            struct group g;
            begin_group(rows, has_min, extra, &g);
            const int pairs = STEPS / 2 / groups;
            UNROLL for (int s = 0; s < pairs; s++) {
                __m512i v[4];
                fetch(codes);
                fetch(codes + 64);
                if (planes == BYTES) {
                    fetch(codes + 128);
                    fetch(codes + 192);
                    UNROLL for (int j = 0; j < 4; j++) v[j] = _mm512_loadu_si512(codes + 64 * j);
                } else
                    two_steps(planes, codes, masks, v);
                add_step(rows, v[0], v[1], a, &g);
                add_step(rows, v[2], v[3], a + rows, &g);
                a += 2 * rows;
                codes += planes == BYTES ? 256 : 128;
                if (planes != BYTES) masks += 32 * planes;
            }
            if (planes == 1 || planes == 2) fetch(masks);
            if (ahead) {
                const float *f = scale + i * PANEL, *m = min + i * PANEL;
                add_scaled(rows, &g, _mm512_load_ps(f), _mm512_load_ps(f + 16), d, &c);
                if (has_min) add_minima(rows, _mm512_load_ps(m), _mm512_load_ps(m + 16), extra, &c);
                continue;
            }
            if (!from->scales) fetch(from->d + i * PANEL * sizeof(uint16_t));
            add_scaled(rows, &g, factors(from->d, from->scales, i, 0), factors(from->d, from->scales, i, 16), d, &c);
            if (has_min)
                add_minima(rows, factors(from->min, from->mins, i, 0), factors(from->min, from->mins, i, 16), extra,
                           &c);
        }
    end_sums(rows, t, &c);
}

#define MICRO(rows, planes, groups)                                                                                    \
    TARGET_VNNI static void micro_##rows##_##planes##_##groups(const struct block_int8 *t) {                           \
        micro(rows, planes, groups, t);                                                                                \
    }
#define EACH_CODE(X, rows) X(rows, 0, 1) X(rows, 0, 2) X(rows, 1, 1) X(rows, 2, 2) X(rows, BYTES, 1)
#define EACH(X)            EACH_CODE(X, 1) EACH_CODE(X, 2) EACH_CODE(X, 3) EACH_CODE(X, 4) EACH_CODE(X, 5) EACH_CODE(X, 6)
EACH(MICRO)

#define ENTRY(rows, planes, groups) [rows][planes][groups - 1] = micro_##rows##_##planes##_##groups,
static void (*const micros[MR + 1][BYTES + 1][2])(const struct block_int8 *t) = {EACH(ENTRY)};

static void multiply(const struct block_int8 *t) {
    micros[t->rows][t->form->bits == 8 ? BYTES : t->b.planes][32 / t->form->group - 1](t);
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
        /* A factor of 0 times infinity is NaN, whose integer is not 0; the mask makes it 0. */
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

const struct micro_int8 int8_vnni = {.name = "avx512-vnni", .rows = MR, .round = round_rows, .multiply = multiply};
#else
typedef int gemm_int8_vnni_needs_x86_64; /* ISO C wants a declaration in every file */
#endif
