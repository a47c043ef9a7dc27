/*
 * A matrix product on one thread over the abstract vector of simd_body.h, after Goto and van de Geijn 2008 ("Anatomy of
 * high-performance matrix multiplication"): b is packed in panels of NR columns that stay in L2, and a micro-kernel
 * holds MR x NR of c in registers over a block of k. The including file defines SIMD_TARGET, W and the vector's
 * operations. gemm_avx512.c is the version for AVX-512, with more registers.
 *
 * An element of c is summed over k in order, with v_fma, in blocks of KC: the order does not depend on where a tile
 * begins or ends.
 */

#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#define MR 6 /* 6 x 2 accumulators, two vectors of b, one broadcast of a: 15 of 16 registers */
#define NR (2 * W)
#define KC 256
#define NC 160 /* columns of c that b is packed for: 160 KiB, in L2 on any CPU */

/*
 * c[rows][n] = a b + beta c for a packed panel of b, n <= NR. Element (i, p) of a is a[i * row + p * step]. rows is a
 * constant in each call.
 */
static inline __attribute__((always_inline)) SIMD_TARGET void micro(const size_t rows, size_t k, const float *a,
                                                                    size_t row, size_t step, const float *b, float beta,
                                                                    float *c, size_t ldc, size_t n) {
    vec c0[MR], c1[MR];
    UNROLL for (size_t i = 0; i < rows; i++) c0[i] = c1[i] = v_set(0);
    for (size_t p = 0; p < k; p++, a += step, b += NR) {
        vec b0 = v_load(b), b1 = v_load(b + W);
        UNROLL for (size_t i = 0; i < rows; i++) {
            vec x = v_set(a[i * row]);
            c0[i] = v_fma(x, b0, c0[i]);
            c1[i] = v_fma(x, b1, c1[i]);
        }
    }
    size_t n0 = smaller(n, W), n1 = n - n0;
    vec scale = v_set(beta);
    UNROLL for (size_t i = 0; i < rows; i++) {
        float *to = c + i * ldc;
        if (beta != 0) { /* with 0, c may hold NaN */
            c0[i] = v_fma(scale, n0 == W ? v_load(to) : v_load_part(to, n0, 0), c0[i]);
            if (n1) c1[i] = v_fma(scale, n1 == W ? v_load(to + W) : v_load_part(to + W, n1, 0), c1[i]);
        }
        if (n0 == W)
            v_store(to, c0[i]);
        else
            v_store_part(to, c0[i], n0);
        if (n1 == W)
            v_store(to + W, c1[i]);
        else if (n1)
            v_store_part(to + W, c1[i], n1);
    }
}

typedef void micro_fn(size_t k, const float *a, size_t row, size_t step, const float *b, float beta, float *c,
                      size_t ldc, size_t n);

#define MICRO(rows)                                                                                                    \
    static SIMD_TARGET void micro_##rows(size_t k, const float *a, size_t row, size_t step, const float *b,            \
                                         float beta, float *c, size_t ldc, size_t n) {                                 \
        micro(rows, k, a, row, step, b, beta, c, ldc, n);                                                              \
    }
#define EACH_COUNT(X) X(1) X(2) X(3) X(4) X(5) X(6)
EACH_COUNT(MICRO)

#define ENTRY(rows) [rows] = micro_##rows,
static micro_fn *const micros[MR + 1] = {EACH_COUNT(ENTRY)};

/* Packs b[p][j], j < n, p < k, as panels of NR columns, each [k][NR] padded with zeros. `transposed`: b is [n][k]. */
static SIMD_TARGET void pack_b(float *to, const float *b, size_t ldb, size_t n, size_t k, bool transposed) {
    for (size_t j = 0; j < n; j += NR, to += NR * k) {
        size_t cols = smaller(NR, n - j);
        if (cols < NR) memset(to, 0, NR * k * sizeof *to);
        if (transposed) {
            for (size_t i = 0; i < cols; i++)
                for (size_t p = 0; p < k; p++) to[p * NR + i] = b[(j + i) * ldb + p];
        } else {
            for (size_t p = 0; p < k; p++) memcpy(to + p * NR, b + p * ldb + j, cols * sizeof *to);
        }
    }
}

/* to[p * MR + i] = a[i * row + p * step], i < rows, p < k. rows is a constant in the frequent calls. */
static inline __attribute__((always_inline)) SIMD_TARGET void pack_rows(float *to, const float *a, size_t row,
                                                                        size_t step, size_t rows, size_t k) {
    for (size_t p = 0; p < k; p++, a += step, to += MR)
        for (size_t i = 0; i < rows; i++) to[i] = a[i * row];
}

static SIMD_TARGET void pack_a(float *to, const float *a, size_t lda, size_t rows, size_t k, bool by_rows) {
    if (rows < MR)
        pack_rows(to, a, by_rows ? lda : 1, by_rows ? 1 : lda, rows, k);
    else if (by_rows)
        pack_rows(to, a, lda, 1, MR, k);
    else
        pack_rows(to, a, 1, lda, MR, k);
}

/* All m rows of c times the columns of one packed block of b. Rows of a are read in place unless their stride maps them
 * all to the same cache sets; columns (TN) are packed. */
static SIMD_TARGET void multiply_block(enum gemm_form form, size_t m, size_t n, size_t k, const float *a, size_t lda,
                                       const float *b, float beta, float *c, size_t ldc) {
    float packed[KC * MR];
    bool by_rows = form != GEMM_TN, direct = by_rows && lda % 1024 != 0;
    for (size_t i = 0; i < m; i += MR) {
        size_t rows = smaller(MR, m - i);
        const float *from = by_rows ? a + i * lda : a + i;
        if (!direct) pack_a(packed, from, lda, rows, k, by_rows);
        for (size_t j = 0; j < n; j += NR) {
            for (size_t r = 0; r < rows; r++) __builtin_prefetch(c + (i + r) * ldc + j, 1);
            micros[rows](k, direct ? from : packed, direct ? lda : 1, direct ? 1 : MR, b + j * k, beta, c + i * ldc + j,
                         ldc, smaller(NR, n - j));
        }
    }
}

static SIMD_TARGET void gemm(enum gemm_form form, size_t m, size_t n, size_t k, const float *a, size_t lda,
                             const float *b, size_t ldb, float beta, float *c, size_t ldc) {
    _Alignas(64) float packed[KC * NC];
    size_t ncs = equal_parts(n, NC, NR), kcs = equal_parts(k, KC, 16);
    for (size_t j = 0; j < n; j += ncs)
        for (size_t p = 0; p < k; p += kcs) {
            size_t nc = smaller(ncs, n - j), kc = smaller(kcs, k - p);
            pack_b(packed, form == GEMM_NT ? b + j * ldb + p : b + p * ldb + j, ldb, nc, kc, form == GEMM_NT);
            multiply_block(form, m, nc, kc, form == GEMM_TN ? a + p * lda : a + p, lda, packed, p == 0 ? beta : 1,
                           c + j, ldc);
        }
}
