/*
 * Tests of lib/grad: the gradient of every operation, and of a whole decoder block, against central differences of the
 * f64 twins.
 *
 * The scalar that is differentiated is L = sum c y for fixed random c (added to the result's gradient with grad_of), or
 * the head's loss. In f64 with step h = 1e-5 a central difference of numbers around 1 is wrong by about h^2 = 1e-10;
 * what remains is the rounding of f32, so a gradient must agree to 2e-5 of the largest of its kind.
 */
#include "tests/unit/grad_check.h"

/* ---- single operations ---- */

static const uint32_t some_ids[] = {3, 0, 3, 6, 1, 3};

static struct grad_var *build_embed(const struct function *f, struct grad_tape *t, struct grad_var **in) {
    return grad_embed(t, in[0], f->ids, f->out_rows);
}

static void twin_embed(const struct function *f, double *const *in, double *y) {
    plain64_gather(y, in[0], f->ids, f->out_rows, f->out_cols);
}

static void test_embed(void **state) {
    (void)state;
    struct function f = {"embed", 1, {7}, {5}, 6, 5, build_embed, .twin = twin_embed, .ids = some_ids};
    check_function(&f, 1);
}

static struct grad_var *build_linear(const struct function *f, struct grad_tape *t, struct grad_var **in) {
    return grad_linear(t, in[0], in[1], f->n_in >= 3 ? in[2] : NULL, f->n_in == 4 ? in[3] : NULL);
}

static void twin_linear(const struct function *f, double *const *in, double *y) {
    plain64_matmul_nt(f->out_rows, f->out_cols, f->cols[0], in[0], in[1], 0, y);
    if (f->n_in >= 3) plain64_add_bias(y, in[2], f->out_rows, f->out_cols);
    if (f->n_in == 4) plain64_add(y, in[3], f->out_rows * f->out_cols);
}

static void test_linear(void **state) {
    (void)state;
    struct function f = {"linear", 2, {6, 4}, {5, 5}, 6, 4, build_linear, .twin = twin_linear};
    check_function(&f, 2);
    f = (struct function){"linear, bias", 3, {9, 4, 1}, {5, 5, 4}, 9, 4, build_linear, .twin = twin_linear};
    check_function(&f, 3);
    f = (struct function){"linear, one row", 3, {1, 4, 1}, {5, 5, 4}, 1, 4, build_linear, .twin = twin_linear};
    check_function(&f, 4);
    f = (struct function){"linear, residual", 4, {6, 4, 1, 6}, {5, 5, 4, 4}, 6, 4, build_linear, .twin = twin_linear};
    check_function(&f, 14);
}

/* Three linear maps of one input, gated and added: y = swiglu(x a^T, x b^T + bias) + x c^T. */
static struct grad_var *build_linears(const struct function *f, struct grad_tape *t, struct grad_var **in) {
    const struct grad_map maps[] = {{in[1], NULL}, {in[2], in[3]}, {in[4], NULL}};
    struct grad_var *y[3];
    (void)f;
    grad_linears(t, in[0], 3, maps, y);
    return grad_linear(t, grad_glu(t, ACT_SILU, y[0], y[1]), in[5], NULL, y[2]);
}

static void twin_linears(const struct function *f, double *const *in, double *y) {
    size_t n = f->out_rows, d = f->out_cols, k = f->cols[0], wide = f->rows[1];
    double gate[128], up[128];
    plain64_matmul_nt(n, wide, k, in[0], in[1], 0, gate);
    plain64_matmul_nt(n, wide, k, in[0], in[2], 0, up);
    plain64_add_bias(up, in[3], n, wide);
    plain64_glu(ACT_SILU, gate, gate, up, n * wide);
    plain64_matmul_nt(n, d, k, in[0], in[4], 0, y);
    plain64_matmul_nt(n, d, wide, gate, in[5], 1, y);
}

static void test_linears(void **state) {
    (void)state;
    struct function f = {"linears", 6, {6, 7, 7, 1, 4, 4}, {5, 5, 5, 7, 5, 7},
                         6,         4, build_linears,      .twin = twin_linears};
    check_function(&f, 15);
}

static struct grad_var *build_rmsnorm(const struct function *f, struct grad_tape *t, struct grad_var **in) {
    (void)f;
    return grad_rmsnorm(t, in[0], in[1], 1e-3f, DT_F32);
}

static void twin_rmsnorm(const struct function *f, double *const *in, double *y) {
    double inv[64];
    plain64_rmsnorm(y, inv, in[0], in[1], f->out_rows, f->out_cols, 1e-3f);
}

static void test_rmsnorm(void **state) {
    (void)state;
    struct function f = {"rmsnorm", 2, {5, 1}, {19, 19}, 5, 19, build_rmsnorm, .twin = twin_rmsnorm};
    check_function(&f, 5);
}

static const double frequencies[] = {1, 0.1, 0.01};
static const uint32_t positions[] = {0, 1, 2, 0, 1, 900};

static void test_rope(void **state) {
    (void)state;
    struct function f = {"rope",
                         1,
                         {6},
                         {12},
                         6,
                         12,
                         build_rope,
                         .twin = twin_rope,
                         .position = positions,
                         .rotation = {.dims = 6, .inv_freq = frequencies}};
    check_function(&f, 6);
}

static void test_attention(void **state) {
    static const uint32_t starts[] = {0, 4, 5, 11};
    (void)state;
    struct function f = {"attention, grouped",
                         3,
                         {11, 11, 11},
                         {24, 8, 8},
                         11,
                         24,
                         build_attention,
                         .twin = twin_attention,
                         .shape = {6, 2, 4, 3, starts, 0.5f}};
    check_function(&f, 7);
    f = (struct function){
        "attention, one kv head",           3, {5, 5, 5}, {18, 2, 2}, 5, 18, build_attention, .twin = twin_attention,
        .shape = {9, 1, 2, 2, starts, 0.7f}};
    check_function(&f, 8);
}

static struct grad_var *build_swiglu(const struct function *f, struct grad_tape *t, struct grad_var **in) {
    (void)f;
    return grad_glu(t, ACT_SILU, in[0], in[1]);
}

static void twin_swiglu(const struct function *f, double *const *in, double *y) {
    plain64_glu(ACT_SILU, y, in[0], in[1], f->out_rows * f->out_cols);
}

static void test_swiglu(void **state) {
    (void)state;
    struct function f = {"swiglu", 2, {3, 3}, {21, 21}, 3, 21, build_swiglu, .twin = twin_swiglu};
    check_function(&f, 9);
}

/* ---- residuals: gradients that share memory must not overwrite each other ---- */

/* r feeds two linear maps, an RMSNorm and a residual; n feeds two residuals; x is added again at the end. */
static struct grad_var *build_residuals(const struct function *f, struct grad_tape *t, struct grad_var **in) {
    (void)f;
    struct grad_var *x = in[0], *w = in[1];
    struct grad_var *n = grad_linear(t, x, w, NULL, NULL), *s = grad_linear(t, n, w, NULL, n);
    struct grad_var *r = grad_linear(t, s, w, NULL, n);
    struct grad_var *y = grad_linear(t, grad_rmsnorm(t, r, in[2], 1e-3f, DT_F32), w, NULL, r);
    return grad_linear(t, grad_linear(t, r, w, NULL, y), w, NULL, x);
}

static void twin_residuals(const struct function *f, double *const *in, double *y) {
    size_t rows = f->out_rows, d = f->out_cols, n = rows * d;
    double first[256], s[256], r[256], h[256], inv[64], z[256];
    assert_true(n <= COUNT_OF(r));
    plain64_matmul_nt(rows, d, d, in[0], in[1], 0, first);
    memcpy(s, first, sizeof s);
    plain64_matmul_nt(rows, d, d, first, in[1], 1, s);
    memcpy(r, first, sizeof r);
    plain64_matmul_nt(rows, d, d, s, in[1], 1, r);
    plain64_rmsnorm(h, inv, r, in[2], rows, d, 1e-3f);
    memcpy(z, r, sizeof z);
    plain64_matmul_nt(rows, d, d, h, in[1], 1, z);
    plain64_matmul_nt(rows, d, d, r, in[1], 1, z);
    memcpy(y, in[0], n * sizeof *y);
    plain64_matmul_nt(rows, d, d, z, in[1], 1, y);
}

static void test_residuals(void **state) {
    (void)state;
    struct function f = {"residuals", 3, {4, 6, 1}, {6, 6, 6}, 4, 6, build_residuals, .twin = twin_residuals};
    check_function(&f, 10);
}

/* ---- the head ---- */

#define VOCAB 13

/* A loss over rows; `kind` is that of the targets: 0 sparse, 1 ghost, 2 dense, 3 labels only. */
struct head_loss {
    struct kernel_loss how;
    int kind;
    size_t rows;
    double total;
    float probs[3], rest, weight[600];
    uint32_t ids[3];
    float dense[VOCAB];
};

static const struct head_loss *current; /* the twin takes no context */

static uint32_t label_of(size_t row) {
    return row % 5 == 3 ? UINT32_MAX : (uint32_t)(row * 7 % VOCAB);
}

static int block_loss(void *ctx, size_t first, size_t rows, size_t vocab, struct kernel_array logits,
                      struct kernel_array dlogits, struct err *e) {
    struct head_loss *l = ctx;
    (void)e;
    uint64_t offset[513];
    uint32_t ids[3 * 512], label[512];
    float probs[3 * 512], rest[512], dense[512 * VOCAB];
    double kl[512], ce[512];
    assert_true(rows <= 512 && vocab == VOCAB);
    for (size_t i = 0; i < rows; i++) {
        offset[i] = 3 * i;
        for (size_t j = 0; j < 3; j++) ids[3 * i + j] = l->ids[j], probs[3 * i + j] = l->probs[j];
        rest[i] = l->rest;
        label[i] = label_of(first + i);
        memcpy(dense + i * VOCAB, l->dense, sizeof l->dense);
    }
    offset[rows] = 3 * rows;
    struct kernel_target t = {.label = label};
    if (l->kind <= 1) t.offset = offset, t.ids = ids, t.probs = probs;
    if (l->kind == 1) t.rest = rest;
    if (l->kind == 2) t.dense = dense;
    kernel_distill_loss(&l->how, &t, l->weight + first, logits, rows, vocab, kl, ce, dlogits);
    for (size_t i = 0; i < rows; i++)
        l->total += l->weight[first + i] *
                    (l->how.kl_weight * l->how.temperature * l->how.temperature * kl[i] + l->how.ce_weight * ce[i]);
    return 0;
}

static double twin_loss(const double *logits, size_t rows) {
    double t[VOCAB] = {0}, dx[VOCAB], kl, ce, total = 0;
    bool in_k[VOCAB] = {0};
    for (size_t j = 0; j < 3 && current->kind <= 1; j++)
        t[current->ids[j]] = current->probs[j], in_k[current->ids[j]] = true;
    for (size_t j = 0; j < VOCAB && current->kind == 2; j++) t[j] = exp(current->dense[j]);
    struct kernel_loss how = current->how;
    if (current->kind == 3) how.kl_weight = 0;
    for (size_t i = 0; i < rows; i++) {
        plain64_distill_loss(&how, t, in_k, current->kind == 1 ? current->rest : 0, label_of(i), 1, logits + i * VOCAB,
                             VOCAB, &kl, &ce, dx);
        total += current->weight[i] * (how.kl_weight * how.temperature * how.temperature * kl + how.ce_weight * ce);
    }
    return total;
}

static struct head_loss make_head_loss(int kind, float temperature, size_t rows) {
    struct head_loss l = {.how = {temperature, 0.6f, 0.4f}, .kind = kind, .rows = rows};
    struct rng r = rng_init(99, (uint64_t)kind);
    memcpy(l.ids, (uint32_t[]){7, 2, 11}, sizeof l.ids);
    memcpy(l.probs, (float[]){0.5f, 0.25f, 0.125f}, sizeof l.probs);
    l.rest = 0.125f;
    for (size_t i = 0; i < VOCAB; i++) l.dense[i] = (float)rng_normal(&r);
    kernel_log_softmax(kernel_f32(l.dense), kernel_f32(l.dense), 1, VOCAB, 1);
    for (size_t i = 0; i < rows; i++) l.weight[i] = (float)rng_f64(&r);
    return l;
}

static struct grad_var *build_head(const struct function *f, struct grad_tape *t, struct grad_var **in) {
    struct head_loss l = *current;
    assert_true(grad_head(t, twice(t, in[0]), &(struct grad_head){.w = in[1]}, block_loss, &l));
    *f->head_loss = l.total;
    return NULL;
}

static void twin_head(const struct function *f, double *const *in, double *y) {
    double *logits = take(f->rows[0] * VOCAB, sizeof *logits);
    plain64_matmul_nt(f->rows[0], VOCAB, f->cols[0], in[0], in[1], 0, logits);
    plain64_scale(logits, f->rows[0] * VOCAB, 2);
    y[0] = twin_loss(logits, f->rows[0]);
}

static void test_head(void **state) {
    (void)state;
    for (int kind = 0; kind < 4; kind++)
        for (float temperature = 1; temperature <= 2; temperature++) {
            double total;
            struct head_loss l = make_head_loss(kind, temperature, 7);
            current = &l;
            struct function f = {"head", 2,          {7, VOCAB},        {5, 5},          0,
                                 0,      build_head, .twin = twin_head, .is_loss = true, .head_loss = &total};
            check_function(&f, 11);
            release_memory(NULL);
        }
}

/* More rows than one block. */
static void test_head_in_blocks(void **state) {
    (void)state;
    double total;
    struct head_loss l = make_head_loss(1, 1, 521);
    current = &l;
    struct function f = {
        "head in blocks",   2, {521, VOCAB}, {2, 2}, 0, 0, build_head, .twin = twin_head, .is_loss = true,
        .head_loss = &total};
    check_function(&f, 12);
}

/* ---- a whole decoder block, from embedding to loss ---- */

enum { N = 7, HIDDEN = 8, HEADS = 4, KV_HEADS = 2, HEAD_DIM = 2, FFN = 6 };
enum { EMBED, NORM1, WQ, BQ, WK, WV, WO, NORM2, GATE, UP, DOWN, NORM3, HEAD, PARAMETERS };

static const uint32_t block_starts[] = {0, 3, 7}, block_positions[] = {0, 1, 2, 0, 1, 2, 3};
static const uint32_t block_ids[] = {1, 5, 1, 12, 0, 5, 5};
static const struct kernel_attention block_shape = {HEADS, KV_HEADS, HEAD_DIM, 2, block_starts, 0.7071067811865475f};
static const double block_frequency[] = {0.8};
static const struct kernel_rotation block_rotation = {.dims = HEAD_DIM, .inv_freq = block_frequency};

/* One layer, from residual stream to residual stream. */
static struct grad_var *run_block(void *ctx, struct grad_tape *t, struct grad_var *x) {
    struct grad_var **p = ctx, *qkv[3], *gated[2];
    struct grad_var *h = grad_rmsnorm(t, x, p[NORM1], 1e-5f, grad_precision(t));
    grad_linears(t, h, 3, (const struct grad_map[]){{p[WQ], p[BQ]}, {p[WK], NULL}, {p[WV], NULL}}, qkv);
    struct grad_var *q = grad_rope(t, qkv[0], HEADS, HEAD_DIM, block_positions, &block_rotation);
    struct grad_var *k = grad_rope(t, qkv[1], KV_HEADS, HEAD_DIM, block_positions, &block_rotation);
    x = grad_linear(t, grad_attention(t, q, k, qkv[2], &block_shape), p[WO], NULL, x);
    h = grad_rmsnorm(t, x, p[NORM2], 1e-5f, grad_precision(t));
    grad_linears(t, h, 2, (const struct grad_map[]){{p[GATE], NULL}, {p[UP], NULL}}, gated);
    return grad_linear(t, grad_glu(t, ACT_SILU, gated[0], gated[1]), p[DOWN], NULL, x);
}

static struct grad_var *build_block(const struct function *f, struct grad_tape *t, struct grad_var **p) {
    struct head_loss l = *current;
    struct grad_var *x = grad_embed(t, p[EMBED], block_ids, N);
    for (size_t i = 0; i < f->layers; i++) x = grad_segment(t, x, x->cols, run_block, p);
    assert_true(
        grad_head(t, grad_rmsnorm(t, x, p[NORM3], 1e-5f, DT_F32), &(struct grad_head){.w = p[HEAD]}, block_loss, &l));
    *f->head_loss = l.total;
    return NULL;
}

static void twin_block(const struct function *f, double *const *p, double *y) {
    enum { KV = KV_HEADS * HEAD_DIM };
    double x[N * HIDDEN], h[N * HIDDEN], q[N * HIDDEN], k[N * KV], v[N * KV], a[N * HIDDEN], inv[N], lse[N * HEADS],
        s[N];
    double gate[N * FFN], up[N * FFN], logits[N * VOCAB];
    plain64_gather(x, p[EMBED], block_ids, N, HIDDEN);
    for (size_t i = 0; i < f->layers; i++) {
        plain64_rmsnorm(h, inv, x, p[NORM1], N, HIDDEN, 1e-5f);
        plain64_matmul_nt(N, HIDDEN, HIDDEN, h, p[WQ], 0, q);
        plain64_add_bias(q, p[BQ], N, HIDDEN);
        plain64_matmul_nt(N, KV, HIDDEN, h, p[WK], 0, k);
        plain64_matmul_nt(N, KV, HIDDEN, h, p[WV], 0, v);
        plain64_rope(q, N, HEADS, HEAD_DIM, block_positions, &block_rotation, 1);
        plain64_rope(k, N, KV_HEADS, HEAD_DIM, block_positions, &block_rotation, 1);
        plain64_attention(&block_shape, a, lse, q, k, v, s);
        plain64_matmul_nt(N, HIDDEN, HIDDEN, a, p[WO], 1, x);
        plain64_rmsnorm(h, inv, x, p[NORM2], N, HIDDEN, 1e-5f);
        plain64_matmul_nt(N, FFN, HIDDEN, h, p[GATE], 0, gate);
        plain64_matmul_nt(N, FFN, HIDDEN, h, p[UP], 0, up);
        plain64_glu(ACT_SILU, gate, gate, up, N * FFN);
        plain64_matmul_nt(N, HIDDEN, FFN, gate, p[DOWN], 1, x);
    }
    plain64_rmsnorm(h, inv, x, p[NORM3], N, HIDDEN, 1e-5f);
    plain64_matmul_nt(N, VOCAB, HIDDEN, h, p[HEAD], 0, logits);
    y[0] = twin_loss(logits, N);
}

static struct function decoder(size_t layers, bool recompute, double *total) {
    enum { KV = KV_HEADS * HEAD_DIM };
    return (struct function){
        "decoder",
        PARAMETERS,
        {VOCAB, 1, HIDDEN, 1, KV, KV, HIDDEN, 1, FFN, FFN, HIDDEN, 1, VOCAB},
        {HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN, FFN, HIDDEN, HIDDEN},
        0,
        0,
        build_block,
        .twin = twin_block,
        .is_loss = true,
        .layers = layers,
        .recompute = recompute,
        .head_loss = total};
}

static void test_decoder(void **state) {
    (void)state;
    double total;
    static struct head_loss l;
    l = make_head_loss(1, 2, N);
    current = &l;
    for (size_t layers = 1; layers <= 2; layers++) {
        struct function f = decoder(layers, false, &total);
        check_function(&f, 13);
        f.recompute = true;
        check_function(&f, 13);
    }
}

/* Recomputing layers must give the same bits as keeping their activations, in memory that does not grow with the
 * layers. */
static void test_recompute(void **state) {
    (void)state;
    double total;
    static struct head_loss l;
    l = make_head_loss(0, 1, N);
    struct rng r = rng_init(77, 1);
    struct example x = {0};
    struct grad_memory used[2][2];
    float *kept[MAX_IN];
    current = &l;
    for (size_t i = 0; i < PARAMETERS; i++) {
        struct function f = decoder(1, false, &total);
        x.in[i] = normals(&r, f.rows[i] * f.cols[i], 0.5);
        x.grad[i] = take(x.in[i].n, sizeof(float));
    }
    for (size_t deep = 0; deep < 2; deep++)
        for (int recompute = 0; recompute < 2; recompute++) {
            struct function f = decoder(deep ? 9 : 3, recompute, &total);
            struct grad_tape *t = new_tape(DT_F32, true);
            grad_recompute(t, recompute);
            run_tape(&f, &x, t, NULL);
            used[deep][recompute] = grad_memory(t);
            grad_tape_free(t);
            for (size_t i = 0; i < PARAMETERS; i++)
                if (!recompute)
                    kept[i] = copy_f32(x.grad[i], x.in[i].n);
                else
                    assert_memory_equal(kept[i], x.grad[i], x.in[i].n * sizeof(float));
        }
    size_t layer = (used[1][0].values - used[0][0].values) / 6,
           kept_of_layer = (used[1][1].values - used[0][1].values) / 6;
    assert_true(kept_of_layer >= N * HIDDEN * sizeof(float) && kept_of_layer < layer / 4);
    assert_true(used[1][1].gradients == used[0][1].gradients); /* those of each layer are freed */
}
int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_embed, release_memory),
        cmocka_unit_test_teardown(test_linear, release_memory),
        cmocka_unit_test_teardown(test_linears, release_memory),
        cmocka_unit_test_teardown(test_rmsnorm, release_memory),
        cmocka_unit_test_teardown(test_rope, release_memory),
        cmocka_unit_test_teardown(test_attention, release_memory),
        cmocka_unit_test_teardown(test_swiglu, release_memory),
        cmocka_unit_test_teardown(test_residuals, release_memory),
        cmocka_unit_test_teardown(test_head, release_memory),
        cmocka_unit_test_teardown(test_head_in_blocks, release_memory),
        cmocka_unit_test_teardown(test_decoder, release_memory),
        cmocka_unit_test_teardown(test_recompute, release_memory),
    };
    return cmocka_run_group_tests_name("grad", tests, NULL, NULL);
}
