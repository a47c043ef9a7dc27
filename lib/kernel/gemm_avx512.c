/*
 * A matrix product for AVX-512 on one thread, after Goto and van de Geijn 2008 ("Anatomy of high-performance matrix
 * multiplication"): b is packed in panels of NR columns that stay in L2, a in panels of MR rows that stay in L1, and a
 * micro-kernel holds MR x NR of c in registers over a whole block of k.
 *
 * Own code, because a BLAS that does not know a CPU falls back to narrower kernels than the CPU has (OpenBLAS 0.3.21 on
 * Zen 5: AVX2, half the speed). gemm_bf16.c does the same for bf16.
 *
 * An element of c is summed over k in order, by FMA, in blocks of KC: the order does not depend on where a tile begins
 * or ends.
 */
#if defined(__x86_64__) && !defined(KERNEL_PORTABLE)
#include "lib/kernel/avx512.h"

/* 14 x 2 accumulators, two vectors of b, one broadcast of a: 31 of 32 registers. */
#define MR 14
#define NR 32
#define LA 16  /* stride of k in a packed panel of a, in floats: a whole vector */
#define KC 576 /* block of k: a's panel takes 36 KiB, b's 72 KiB */
#define NC 320 /* columns of c that b is packed for: at most 720 KiB */

/* ---- packing ---- */

/* to[p * ld + i] = from[i * stride + p] for i < n (zeros up to 16), p < k: rows of the source become columns. */
TARGET static void pack_transposed(float *to, size_t ld, const float *from, size_t stride, size_t n, size_t k) {
    for (size_t p = 0; p < k; p += 16) {
        __mmask16 mask = first(k - p);
        __m512 r[16];
        UNROLL for (size_t i = 0; i < 16; i++) r[i] =
            i < n ? _mm512_maskz_loadu_ps(mask, from + i * stride + p) : _mm512_setzero_ps();
        transpose16(r);
        if (k - p >= 16) {
            UNROLL for (size_t i = 0; i < 16; i++) _mm512_storeu_ps(to + (p + i) * ld, r[i]);
        } else {
            for (size_t i = 0; i < k - p; i++) _mm512_storeu_ps(to + (p + i) * ld, r[i]);
        }
    }
}

/* to[p * ld + i] = from[p * stride + i] for i < n (zeros up to 16), p < k. */
TARGET static void pack_plain(float *to, size_t ld, const float *from, size_t stride, size_t n, size_t k) {
    __mmask16 mask = first(n);
    for (size_t p = 0; p < k; p++) _mm512_storeu_ps(to + p * ld, _mm512_maskz_loadu_ps(mask, from + p * stride));
}

/* ---- the micro-kernel ---- */

/*
 * c[rows][n] = a b + beta c for a packed panel of b, n <= NR. Element (i, p) of a is a[p * LA + i] if packed, else a[i
 * * lda + p]. rows and packed are constants in each call.
 */
INLINE void micro(const int rows, const bool packed, size_t k, const float *a, size_t lda, const float *b, float beta,
                  float *c, size_t ldc, size_t n) {
    __m512 c0[MR], c1[MR];
    UNROLL for (int i = 0; i < rows; i++) c0[i] = c1[i] = _mm512_setzero_ps();
    for (size_t p = 0; p < k; p++, a += packed ? LA : 1, b += NR) {
        __m512 b0 = _mm512_loadu_ps(b), b1 = _mm512_loadu_ps(b + 16);
        UNROLL for (int i = 0; i < rows; i++) {
            __m512 x = _mm512_set1_ps(a[packed ? (size_t)i : (size_t)i * lda]);
            c0[i] = _mm512_fmadd_ps(x, b0, c0[i]);
            c1[i] = _mm512_fmadd_ps(x, b1, c1[i]);
        }
    }
    __mmask16 m0 = first(n), m1 = n > 16 ? first(n - 16) : 0;
    __m512 scale = _mm512_set1_ps(beta);
    UNROLL for (int i = 0; i < rows; i++) {
        float *row = c + (size_t)i * ldc;
        if (beta != 0) { /* with 0, c may hold NaN */
            c0[i] = _mm512_fmadd_ps(scale, _mm512_maskz_loadu_ps(m0, row), c0[i]);
            c1[i] = _mm512_fmadd_ps(scale, _mm512_maskz_loadu_ps(m1, row + 16), c1[i]);
        }
        _mm512_mask_storeu_ps(row, m0, c0[i]);
        _mm512_mask_storeu_ps(row + 16, m1, c1[i]);
    }
}

typedef void micro_fn(size_t k, const float *a, size_t lda, const float *b, float beta, float *c, size_t ldc, size_t n);

#define MICRO(name, rows, packed)                                                                                      \
    TARGET static void name(size_t k, const float *a, size_t lda, const float *b, float beta, float *c, size_t ldc,    \
                            size_t n) {                                                                                \
        micro(rows, packed, k, a, lda, b, beta, c, ldc, n);                                                            \
    }
#define EACH_COUNT(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14)
#define PACKED(rows)  MICRO(packed_##rows, rows, true)
#define DIRECT(rows)  MICRO(direct_##rows, rows, false)
EACH_COUNT(PACKED)
EACH_COUNT(DIRECT)

#define PACKED_ENTRY(rows) [rows] = packed_##rows,
#define DIRECT_ENTRY(rows) [rows] = direct_##rows,
static micro_fn *const packed_micros[MR + 1] = {EACH_COUNT(PACKED_ENTRY)};
static micro_fn *const direct_micros[MR + 1] = {EACH_COUNT(DIRECT_ENTRY)};

/* ---- blocks ---- */

/* Packs b[p][j], j < n, p < k, as panels of NR columns, each [k][NR]. `transposed`: b is [n][k]. */
static void pack_b(float *to, const float *b, size_t ldb, size_t n, size_t k, bool transposed) {
    for (size_t j = 0; j < n; j += 16) {
        float *panel = to + j / NR * NR * k + j % NR;
        if (transposed)
            pack_transposed(panel, NR, b + j * ldb, ldb, smaller(16, n - j), k);
        else
            pack_plain(panel, NR, b + j, ldb, smaller(16, n - j), k);
    }
}

/* Prefetches the part-th of n parts of the next panel of a (rows are too far apart for the hardware prefetcher). */
static void prefetch_rows(const float *a, size_t lda, size_t rows, size_t k, size_t part, size_t n) {
    size_t lines = (k + 15) / 16;
    for (size_t r = 0; r < rows; r++)
        for (size_t p = lines * part / n; p < lines * (part + 1) / n; p++)
            __builtin_prefetch(a + r * lda + p * 16, 0, 2);
}

struct block_f32 {
    enum gemm_form form;
    size_t m, nc, kc;
    const float *a;
    size_t lda;
    float beta, *c;
    size_t ldc;
};

/* All rows of c times the columns of one packed block of b. */
static void multiply_block(const struct block_f32 *t, const float *packed_b) {
    _Alignas(64) float packed_a[KC * LA];
    /*
     * Rows of a are read in place, 14 at a time, which costs nothing after the first panel of b, unless their stride
     * maps them all to the same cache sets. Columns (TN) are packed.
     */
    bool by_rows = t->form != GEMM_TN, direct = by_rows && t->lda % 1024 != 0;
    size_t panels = (t->nc - 1) / NR + 1;
    for (size_t i = 0; i < t->m; i += MR) {
        size_t rows = smaller(MR, t->m - i), next = smaller(MR, t->m - i - rows);
        const float *a = by_rows ? t->a + i * t->lda : t->a + i;
        if (!by_rows)
            pack_plain(packed_a, LA, a, t->lda, rows, t->kc);
        else if (!direct)
            pack_transposed(packed_a, LA, a, t->lda, rows, t->kc);
        micro_fn *multiply = direct ? direct_micros[rows] : packed_micros[rows];
        for (size_t j = 0; j < panels; j++) {
            for (size_t r = 0; r < rows; r++) __builtin_prefetch(t->c + (i + r) * t->ldc + j * NR, 1);
            if (by_rows) prefetch_rows(a + rows * t->lda, t->lda, next, t->kc, j, panels);
            multiply(t->kc, direct ? a : packed_a, t->lda, packed_b + j * NR * t->kc, t->beta,
                     t->c + i * t->ldc + j * NR, t->ldc, smaller(NR, t->nc - j * NR));
        }
    }
}

void gemm_avx512(enum gemm_form form, size_t m, size_t n, size_t k, const float *a, size_t lda, const float *b,
                 size_t ldb, float beta, float *c, size_t ldc) {
    _Alignas(64) float packed_b[KC * NC];
    size_t ncs = equal_parts(n, NC, NR), kcs = equal_parts(k, KC, 16);
    for (size_t j = 0; j < n; j += ncs)
        for (size_t p = 0; p < k; p += kcs) {
            struct block_f32 t = {.form = form, .m = m, .nc = smaller(ncs, n - j), .kc = smaller(kcs, k - p)};
            pack_b(packed_b, form == GEMM_NT ? b + j * ldb + p : b + p * ldb + j, ldb, t.nc, t.kc, form == GEMM_NT);
            t.a = form == GEMM_TN ? a + p * lda : a + p;
            t.lda = lda;
            t.beta = p == 0 ? beta : 1;
            t.c = c + j;
            t.ldc = ldc;
            multiply_block(&t, packed_b);
        }
}
#else
typedef int gemm_avx512_needs_x86_64; /* ISO C wants a declaration in every file */
#endif
