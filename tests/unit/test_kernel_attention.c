/* Tests of lib/kernel: attention forward, backward and decode against the definition in f64. */
#include "tests/unit/kernel_test.h"

/* A batch: random q, k, v, dy and the results of the twin. */
struct batch {
    struct kernel_attention a;
    size_t n, q_size, kv_size;
    struct pair q, k, v, dy;
    double *y, *lse, *p;    /* the twin's; p is scratch */
    float *y_f32, *lse_f32; /* inputs of backward */
    double score_error;     /* the largest rounding error of a score */
    uint32_t longest;
};

static struct batch make_masked(struct rng *r, const struct kernel_attention *a, double scale) {
    struct batch b = {.a = *a, .n = a->starts[a->n_seqs]};
    b.q_size = b.n * a->n_heads * a->head_dim;
    b.kv_size = b.n * a->n_kv_heads * a->head_dim;
    b.q = normals(r, b.q_size, scale);
    b.k = normals(r, b.kv_size, scale);
    b.v = normals(r, b.kv_size, 1);
    b.dy = normals(r, b.q_size, 1);
    for (size_t s = 0; s < a->n_seqs; s++)
        if (a->starts[s + 1] - a->starts[s] > b.longest) b.longest = a->starts[s + 1] - a->starts[s];
    b.y = take(b.q_size, sizeof *b.y);
    b.lse = take(b.n * a->n_heads, sizeof *b.lse);
    b.p = take(2 * b.longest, sizeof *b.p);
    plain64_attention(&b.a, b.y, b.lse, b.q.d, b.k.d, b.v.d, b.p);
    return b;
}

static struct batch make_batch(struct rng *r, const uint32_t *starts, size_t n_seqs, size_t heads, size_t kv_heads,
                               size_t d, double scale) {
    return make_masked(r, &(struct kernel_attention){heads, kv_heads, d, n_seqs, starts, (float)(1 / sqrt((double)d))},
                       scale);
}

/*
 * Bounds of rounding errors, following the algorithm. A score is a dot product of d terms of scaled q: wrong by e = (d
 * + 2) U scale sum |q||k|. So is the log-sum-exp of the row, and a probability is wrong by the factor 1 + 2 e + 8 U +
 * the rounding of lse (U |lse|, backward only). A sum over n keys adds (n + 4) U. Everything else multiplies those.
 */
struct bounds {
    double *y, *lse, *dq, *dk, *dv; /* tolerances for each array */
};

/* `last`: only for the last query of each sequence, which decode computes. */
static struct bounds bounds_of(const struct batch *b, bool last) {
    const struct kernel_attention *a = &b->a;
    size_t d = a->head_dim, ld = a->n_kv_heads * d, group = a->n_heads / a->n_kv_heads;
    struct bounds t = {take(b->q_size, sizeof(double)), take(b->n * a->n_heads, sizeof(double)),
                       take(b->q_size, sizeof(double)), take(b->kv_size, sizeof(double)),
                       take(b->kv_size, sizeof(double))};
    double *qm = magnitudes(b->q), *km = magnitudes(b->k), *vm = magnitudes(b->v), *dym = magnitudes(b->dy);
    for (size_t s = 0; s < a->n_seqs; s++)
        for (size_t i = last ? a->starts[s + 1] - 1 : a->starts[s]; i < a->starts[s + 1]; i++)
            for (size_t h = 0; h < a->n_heads; h++) {
                size_t row = i * a->n_heads + h, at = row * d, begin, end;
                plain64_attention_range(a, i - a->starts[s], a->starts[s + 1] - a->starts[s], &begin, &end);
                size_t keys = end - begin, key = (a->starts[s] + begin) * ld + h / group * d;
                double e = 0, lse = plain64_attention_row(a, b->p, NULL, b->q.d + at, b->k.d + key, ld, keys);
                for (size_t j = 0; j < keys; j++) {
                    double terms = a->scale * plain64_dot(qm + at, km + key + j * ld, d);
                    e = fmax(e, ((double)d + 2) * U * terms + 8 * U * a->softcap); /* tanh is accurate to a few U */
                }
                t.lse[row] = e + 2 * U * fabs(lse) + 8 * U;
                double p_error = 2 * e + (2 * fabs(lse) + 8) * U, sum = ((double)keys + 4) * U, mean = 0;
                for (size_t j = 0; j < keys; j++) {
                    plain64_axpy(t.y + at, (p_error + sum) * b->p[j], vm + key + j * ld, d);
                    mean += b->p[j] * plain64_dot(dym + at, vm + key + j * ld, d);
                }
                for (size_t j = 0; j < keys; j++) {
                    size_t kv = key + j * ld;
                    double dp = plain64_dot(dym + at, vm + kv, d) + mean; /* both terms of the difference */
                    double ds = a->scale * b->p[j] * dp * (2 * p_error + ((double)d + (double)keys + 8) * U);
                    /* dk and dv are sums over the group's heads of all later queries */
                    double later = (double)(a->starts[s + 1] - a->starts[s]) * (double)group * U;
                    plain64_axpy(t.dq + at, ds + a->scale * b->p[j] * dp * sum, km + kv, d);
                    plain64_axpy(t.dk + kv, ds + a->scale * b->p[j] * dp * later, qm + at, d);
                    plain64_axpy(t.dv + kv, b->p[j] * (p_error + later), dym + at, d);
                }
            }
    return t;
}

static void run_forward(void *ctx, float *out) {
    const struct batch *b = ctx;
    struct kernel_array q = kernel_f32(b->q.f), k = kernel_f32(b->k.f), v = kernel_f32(b->v.f);
    kernel_attention(&b->a, kernel_f32(out), kernel_none(DT_F32), q, k, v);
    kernel_attention(&b->a, kernel_f32(out), kernel_f32(out + b->q_size), q, k, v);
}

static void run_backward(void *ctx, float *out) {
    const struct batch *b = ctx;
    kernel_attention_backward(&b->a, kernel_f32(out), kernel_f32(out + b->q_size),
                              kernel_f32(out + b->q_size + b->kv_size), kernel_f32(b->dy.f), kernel_f32(b->y_f32),
                              kernel_f32(b->lse_f32), kernel_f32(b->q.f), kernel_f32(b->k.f), kernel_f32(b->v.f));
}

static double *joined(size_t n, const double *x, size_t m, const double *y, size_t l, const double *z) {
    double *all = take(n + m + l, sizeof *all);
    memcpy(all, x, n * sizeof *x);
    memcpy(all + n, y, m * sizeof *y);
    if (l) memcpy(all + n + m, z, l * sizeof *z);
    return all;
}

/* Probabilities of a part of the queries. */
static void check_weights(struct batch *b) {
    const struct kernel_attention *a = &b->a;
    for (size_t s = 0; s < a->n_seqs; s++) {
        size_t length = a->starts[s + 1] - a->starts[s], first = length / 3, n = length - first;
        size_t size = n * a->n_heads * length;
        double *want = calloc(size, sizeof *want);
        float *got = calloc(size, sizeof *got);
        plain64_attention_weights(a, s, first, n, want, b->q.d, b->k.d);
        kernel_attention_weights(a, s, first, n, kernel_f32(got), kernel_f32(b->q.f), kernel_f32(b->k.f));
        for (size_t i = 0; i < size; i++)
            if (!(fabs(got[i] - want[i]) <= 2e-4 * want[i] + 1e-12))
                fail_msg("weight %zu of sequence %zu: %g, expected %g", i, s, got[i], want[i]);
        free(want);
        free(got);
    }
}

static void check_batch(struct batch *b) {
    struct bounds t = bounds_of(b, false);
    size_t rows = b->n * b->a.n_heads;
    check_kernel("attention", run_forward, b, b->q_size + rows, NULL, joined(b->q_size, b->y, rows, b->lse, 0, NULL),
                 joined(b->q_size, t.y, rows, t.lse, 0, NULL));

    b->y_f32 = take(b->q_size, sizeof(float));
    b->lse_f32 = take(rows, sizeof(float));
    for (size_t i = 0; i < b->q_size; i++) b->y_f32[i] = (float)b->y[i];
    for (size_t i = 0; i < rows; i++) b->lse_f32[i] = (float)b->lse[i];
    struct pair want = zeros(b->q_size + 2 * b->kv_size);
    double *tolerance = joined(b->q_size, t.dq, b->kv_size, t.dk, b->kv_size, t.dv);
    double *dk = want.d + b->q_size, *dv = dk + b->kv_size;
    plain64_attention_backward(&b->a, want.d, dk, dv, b->dy.d, b->q.d, b->k.d, b->v.d, b->p);
    for (size_t i = 0; i < want.n; i++)
        tolerance[i] += 4 * U * (fabs(want.d[i]) + 1e-2) * (double)(b->longest / 40 + 2);
    check_kernel("attention backward", run_backward, b, want.n, NULL, want.d, tolerance);
    check_weights(b);
}

static void test_attention(void **state) {
    static const uint32_t one[] = {0, 1}, mixed[] = {0, 1, 6, 7, 50}, longer[] = {0, 150, 151, 320};
    static const size_t heads[][3] = {{1, 1, 4}, {3, 1, 64}, {9, 3, 8}, {9, 1, 34}, {4, 4, 16}, {130, 1, 2}};
    static const uint32_t few[] = {0, 3, 5};
    (void)state;
    struct rng r = rng_init(20, 1);
    for (size_t i = 0; i < COUNT_OF(heads); i++) {
        struct batch b = make_batch(&r, one, 1, heads[i][0], heads[i][1], heads[i][2], 1);
        check_batch(&b);
        b = make_batch(&r, mixed, 4, heads[i][0], heads[i][1], heads[i][2], 1);
        check_batch(&b);
        release_memory(NULL);
    }
    struct batch b = make_batch(&r, longer, 3, 3, 1, 16, 1);
    check_batch(&b);
    b = make_batch(&r, longer, 3, 2, 2, 300, 0.5);
    check_batch(&b);
    b = make_batch(&r, few, 2, 10, 2, 4000, 0.2); /* five heads per group, but at most four are stacked */
    check_batch(&b);
}

/* Windows, whole sequences and soft-capped scores, each with several blocks of keys. */
static void test_masks(void **state) {
    static const uint32_t starts[] = {0, 1, 6, 150, 300};
    static const struct {
        bool bidirectional;
        uint32_t window;
        float softcap;
    } masks[] = {{true, 0, 0},    {false, 1, 0}, {false, 4, 0},   {false, 100, 0},
                 {false, 128, 0}, {false, 0, 3}, {true, 0, 0.5f}, {false, 130, 20}};
    (void)state;
    struct rng r = rng_init(24, 1);
    for (size_t i = 0; i < COUNT_OF(masks); i++) {
        struct kernel_attention a = {
            6, 2, 32, 4, starts, 0.3f, masks[i].bidirectional, masks[i].window, masks[i].softcap};
        struct batch b = make_masked(&r, &a, 1);
        check_batch(&b);
        release_memory(NULL);
    }
}

/* Scores of +-100 and more: probabilities of exactly 0 and 1 without overflow. */
static void test_extreme_scores(void **state) {
    (void)state;
    static const uint32_t starts[] = {0, 40, 170};
    struct rng r = rng_init(21, 1);
    struct batch b = make_batch(&r, starts, 2, 2, 1, 8, 8);
    check_batch(&b);
    b = make_batch(&r, starts, 2, 2, 1, 8, 0); /* equal scores: the mean of the values */
    check_batch(&b);
}

/* What follows a position, or is in another sequence, must not change a bit of it. */
static void test_nothing_leaks(void **state) {
    (void)state;
    static const uint32_t starts[] = {0, 30, 200};
    struct rng r = rng_init(22, 1);
    struct batch b = make_batch(&r, starts, 2, 4, 2, 16, 1);
    float *before = take(b.q_size, sizeof *before), *after = take(b.q_size, sizeof *after);
    EACH_PATH(path) {
        struct kernel_array q = kernel_f32(b.q.f);
        kernel_attention(&b.a, kernel_f32(before), kernel_none(DT_F32), q, kernel_f32(b.k.f), kernel_f32(b.v.f));
        float *k = copy_f32(b.k.f, b.kv_size), *v = copy_f32(b.v.f, b.kv_size);
        for (size_t i = 150 * 2 * 16; i < b.kv_size; i++) k[i] = 1e3f, v[i] = -1e3f;
        for (size_t i = 0; i < 30 * 2 * 16; i++) k[i] = -7, v[i] = 7;
        kernel_attention(&b.a, kernel_f32(after), kernel_none(DT_F32), q, kernel_f32(k), kernel_f32(v));
        size_t from = 30 * 4 * 16, to = 150 * 4 * 16;
        assert_memory_equal(before + from, after + from, (to - from) * sizeof *before);
        assert_memory_not_equal(before + to, after + to, (b.q_size - to) * sizeof *before);
    }
}

/* ---- decode ---- */

enum { SEQS = 4 };

/* The last query of each sequence, and caches with all its keys and values. */
struct decode {
    struct kernel_attention a;
    struct kernel_array q;
    struct kernel_cache caches[SEQS];
    float *scratch;
};

/* The twin must read the same values as the library. */
static void round_to_bf16(struct pair p) {
    for (size_t i = 0; i < p.n; i++) set(p, i, bf16_to_f32(f32_to_bf16(p.f[i])));
}

static struct kernel_array as_type(enum dtype type, const float *x, size_t n) {
    struct kernel_array y = {type, take(kernel_array_bytes(type, n), 1)};
    kernel_convert(y, kernel_f32(x), n);
    return y;
}

/* Appends keys and values in pieces, as prompts and steps do. */
static void fill_caches(const struct batch *b, struct decode *c, enum dtype type) {
    size_t kv = b->a.n_kv_heads * b->a.head_dim;
    for (size_t s = 0; s < SEQS; s++) {
        uint32_t first = b->a.starts[s], n = b->a.starts[s + 1] - first, cut[] = {0, n / 2, n - 1, n};
        size_t capacity = n + s, size = kernel_cache_size(b->a.n_kv_heads, b->a.head_dim, capacity);
        c->caches[s] = (struct kernel_cache){{type, take(kernel_array_bytes(type, size), 1)}, capacity, 0};
        for (int i = 0; i < 3; i++) {
            uint32_t starts[] = {0, cut[i + 1] - cut[i]};
            struct kernel_attention one = b->a;
            one.n_seqs = 1;
            one.starts = starts;
            if (starts[1] == 0) continue;
            size_t at = (first + cut[i]) * kv, count = starts[1] * kv;
            kernel_cache_append(&one, &c->caches[s], as_type(type, b->k.f + at, count),
                                as_type(type, b->v.f + at, count));
        }
        assert_int_equal(c->caches[s].length, n);
    }
}

static void run_decode(void *ctx, float *y) {
    const struct decode *c = ctx;
    kernel_attention_decode(&c->a, kernel_f32(y), c->q, c->caches, kernel_f32(c->scratch));
}

/* A sequence must give the same numbers in a batch and alone, in f32 and rounded to bf16. */
static void check_company(const struct decode *c, size_t row) {
    float *together = take(SEQS * row, sizeof *together), *alone = take(row, sizeof *alone);
    uint16_t *rounded = take(SEQS * row, sizeof *rounded), *want = take(SEQS * row, sizeof *want);
    EACH_PATH(path) {
        kernel_attention_decode(&c->a, kernel_f32(together), c->q, c->caches, kernel_f32(c->scratch));
        struct kernel_attention one = c->a;
        one.n_seqs = 1;
        for (size_t s = 0; s < SEQS; s++) {
            kernel_attention_decode(&one, kernel_f32(alone), kernel_part(c->q, s * row), &c->caches[s],
                                    kernel_f32(c->scratch));
            assert_memory_equal(together + s * row, alone, row * sizeof *alone);
        }
        kernel_attention_decode(&c->a, kernel_bf16(rounded), c->q, c->caches, kernel_f32(c->scratch));
        kernel_convert(kernel_bf16(want), kernel_f32(together), SEQS * row);
        assert_memory_equal(rounded, want, SEQS * row * sizeof *want);
    }
}

/* The last query of each sequence against a cache of all its keys must give the last row of attention. */
static void test_decode(void **state) {
    static const uint32_t mixed[] = {0, 1, 130, 259, 400};
    static const uint32_t longer[] = {0, 1, 514, 515, 1600}; /* two sequences span several stretches of keys */
    static const size_t heads[][3] = {{1, 1, 4},  {3, 1, 64}, {9, 3, 64},  {6, 1, 33},
                                      {4, 4, 80}, {20, 1, 8}, {7, 1, 128}, {4, 2, 300}};
    (void)state;
    struct rng r = rng_init(23, 1);
    for (size_t i = 0; i < 6 * COUNT_OF(heads); i++) {
        enum dtype type = i % 2 ? DT_BF16 : DT_F32;
        const size_t *h = heads[i / 6];
        const uint32_t *starts = h[0] < 4 ? longer : mixed;
        struct kernel_attention a = {h[0], h[1], h[2], SEQS, starts, (float)(1 / sqrt((double)h[2]))};
        if (i / 2 % 3 == 1) a.window = i % 12 < 6 ? 100 : 600;
        if (i / 2 % 3 == 2) a.softcap = 2;
        struct batch b = make_masked(&r, &a, 1);
        if (type == DT_BF16) {
            round_to_bf16(b.q), round_to_bf16(b.k), round_to_bf16(b.v);
            plain64_attention(&b.a, b.y, b.lse, b.q.d, b.k.d, b.v.d, b.p);
        }
        struct bounds t = bounds_of(&b, true);
        size_t row = b.a.n_heads * b.a.head_dim;
        struct decode c = {.a = b.a};
        float *q = take(SEQS * row, sizeof *q);
        double *want = take(SEQS * row, sizeof *want), *tolerance = take(SEQS * row, sizeof *tolerance);
        for (size_t s = 0; s < SEQS; s++) {
            size_t last = (starts[s + 1] - 1) * row;
            memcpy(q + s * row, b.q.f + last, row * sizeof *q);
            memcpy(want + s * row, b.y + last, row * sizeof *want);
            memcpy(tolerance + s * row, t.y + last, row * sizeof *tolerance);
        }
        c.q = as_type(type, q, SEQS * row);
        fill_caches(&b, &c, type);
        c.scratch = take(kernel_attention_decode_scratch(&c.a, c.caches), sizeof *c.scratch);
        check_kernel("attention decode", run_decode, &c, SEQS * row, NULL, want, tolerance);
        check_company(&c, row);
        release_memory(NULL);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_attention, release_memory),
        cmocka_unit_test_teardown(test_masks, release_memory),
        cmocka_unit_test_teardown(test_extreme_scores, release_memory),
        cmocka_unit_test_teardown(test_nothing_leaks, release_memory),
        cmocka_unit_test_teardown(test_decode, release_memory),
    };
    return cmocka_run_group_tests_name("kernel attention", tests, NULL, NULL);
}
