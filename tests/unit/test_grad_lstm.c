/*
 * Tests of lib/grad: an LSTM in both directions with the linear map before it, against central differences of the f64
 * twins and against torch.nn.LSTM in f64 (tests/reference/make_lstm_golden.py). Values and gradients agree within 1e-5
 * of the largest of their array.
 */
#include "tests/unit/grad_check.h"

enum { N = 12, IN = 3, UNITS = 4, GATES = 4 * UNITS, SEQS = 3 };
static const uint32_t starts[] = {0, 7, 8, 12};

/* inputs: x, then for each direction W_ih, b_ih, W_hh, b_hh */
static struct grad_var *build_lstm(const struct function *f, struct grad_tape *t, struct grad_var **in) {
    struct grad_lstm_direction d[2];
    struct grad_var *gates[2];
    const struct grad_map maps[] = {{in[1], in[2]}, {in[5], in[6]}};
    (void)f;
    grad_linears(t, in[0], 2, maps, gates);
    for (int i = 0; i < 2; i++)
        d[i] = (struct grad_lstm_direction){grad_to_f32(t, gates[i]), in[3 + 4 * i], in[4 + 4 * i]};
    return grad_lstm(t, 2, d, SEQS, starts);
}

static void twin_lstm(const struct function *f, double *const *in, double *y) {
    const struct kernel_lstm shape = {SEQS, starts, UNITS, 2};
    double gates[N * GATES], cells[N * UNITS];
    (void)f;
    for (size_t i = 0; i < 2; i++) {
        double *const *d = in + 1 + 4 * i;
        plain64_matmul_nt(N, GATES, IN, in[0], d[0], 0, gates);
        plain64_add_bias(gates, d[1], N, GATES);
        plain64_lstm(&shape, i, y, gates, cells, d[2], d[3]);
    }
}

static void test_gradients(void **state) {
    (void)state;
    struct function f = {.name = "lstm",
                         .n_in = 9,
                         .rows = {N, GATES, 1, GATES, 1, GATES, 1, GATES, 1},
                         .cols = {IN, IN, GATES, UNITS, GATES, IN, GATES, UNITS, GATES},
                         .out_rows = N,
                         .out_cols = 2 * UNITS,
                         .build = build_lstm,
                         .twin = twin_lstm};
    check_function(&f, 30);
}

/* Gate inputs that belong to the caller are not overwritten, and rows may be reshaped in between. */
static struct grad_var *build_from_leaves(const struct function *f, struct grad_tape *t, struct grad_var **in) {
    const struct grad_lstm_direction d[] = {{in[0], in[1], NULL}};
    (void)f;
    return grad_reshape(t, grad_lstm(t, 1, d, SEQS, starts), 2 * N, UNITS / 2);
}

static void twin_from_leaves(const struct function *f, double *const *in, double *y) {
    const struct kernel_lstm shape = {SEQS, starts, UNITS, 1};
    double gates[N * GATES], cells[N * UNITS];
    (void)f;
    memcpy(gates, in[0], sizeof gates);
    plain64_lstm(&shape, 0, y, gates, cells, in[1], NULL);
}

static void test_leaves(void **state) {
    (void)state;
    struct function f = {.name = "lstm of leaves",
                         .n_in = 2,
                         .rows = {N, GATES},
                         .cols = {GATES, UNITS},
                         .out_rows = 2 * N,
                         .out_cols = UNITS / 2,
                         .build = build_from_leaves,
                         .twin = twin_from_leaves};
    check_function(&f, 31);
}

/* ---- PyTorch ----------------------------------------------------------------------------------------------------- */

static cJSON *fixture(void) {
    struct err e;
    struct buf text = {0};
    FILE *f = fopen("tests/golden/train/lstm.json", "rb");
    int c;
    assert_non_null(f);
    while ((c = fgetc(f)) != EOF) assert_int_equal(buf_append(&text, &(char){(char)c}, 1, &e), 0);
    fclose(f);
    cJSON *o = json_parse((char *)text.data, text.len, &e);
    buf_release(&text);
    assert_non_null(o);
    return o;
}

static double *numbers(const cJSON *o, const char *key, size_t n) {
    const cJSON *list = cJSON_GetObjectItem(o, key);
    double *x = take(n, sizeof *x);
    size_t i = 0;
    assert_int_equal(cJSON_GetArraySize(list), (int)n);
    for (const cJSON *v = list->child; v; v = v->next) x[i++] = v->valuedouble;
    return x;
}

static void check(const char *what, const float *got, const double *want, size_t n) {
    double largest = 0;
    for (size_t i = 0; i < n; i++) largest = fmax(largest, fabs(want[i]));
    for (size_t i = 0; i < n; i++)
        if (!(fabs(got[i] - want[i]) <= 1e-5 * largest))
            fail_msg("%s %zu is %.9g, should be %.9g (largest %.3g)", what, i, (double)got[i], want[i], largest);
}

static void test_torch(void **state) {
    static const char *const names[] = {"x",
                                        "weight_ih",
                                        "bias_ih",
                                        "weight_hh",
                                        "bias_hh",
                                        "weight_ih_reverse",
                                        "bias_ih_reverse",
                                        "weight_hh_reverse",
                                        "bias_hh_reverse"};
    (void)state;
    cJSON *o = fixture();
    const cJSON *lengths = cJSON_GetObjectItem(o, "lengths");
    size_t in = (size_t)cJSON_GetObjectItem(o, "input")->valuedouble, at = 0;
    size_t units = (size_t)cJSON_GetObjectItem(o, "units")->valuedouble;
    uint32_t begin[8] = {0}, n_seqs = (uint32_t)cJSON_GetArraySize(lengths);
    for (uint32_t i = 0; i < n_seqs; i++)
        begin[i + 1] = begin[i] + (uint32_t)cJSON_GetArrayItem(lengths, (int)i)->valuedouble;
    size_t n = begin[n_seqs], sizes[9] = {n * in};
    for (int i = 1; i < 9; i++) sizes[i] = 4 * units * (i % 2 == 0 ? 1 : i % 4 == 1 ? in : units);
    struct grad_tape *t = new_tape(DT_F32, true);
    struct grad_var *leaf[9], *gates[2];
    float *grad[9];
    for (int i = 0; i < 9; i++) {
        const double *x = numbers(o, names[i], sizes[i]);
        float *value = take(sizes[i], sizeof *value);
        for (size_t k = 0; k < sizes[i]; k++) value[k] = (float)x[k];
        grad[i] = take(sizes[i], sizeof *grad[i]);
        size_t cols = i == 0 ? in : i % 2 == 0 ? sizes[i] : sizes[i] / (4 * units);
        leaf[i] = grad_leaf(t, kernel_f32(value), kernel_f32(grad[i]), sizes[i] / cols, cols);
    }
    grad_linears(t, leaf[0], 2, (struct grad_map[]){{leaf[1], leaf[2]}, {leaf[5], leaf[6]}}, gates);
    const struct grad_lstm_direction d[] = {{gates[0], leaf[3], leaf[4]}, {gates[1], leaf[7], leaf[8]}};
    struct grad_var *y = grad_lstm(t, 2, d, n_seqs, begin);
    assert_non_null(y);
    check("y", kernel_host(y->value, n * 2 * units), numbers(o, "y", n * 2 * units), n * 2 * units);
    const double *weights = numbers(o, "weights", n * 2 * units);
    float *dy = kernel_host(grad_of(t, y), n * 2 * units);
    for (size_t i = 0; i < n * 2 * units; i++) dy[i] += (float)weights[i];
    grad_backward(t);
    assert_int_equal(grad_error(t, &(struct err){0}), 0);
    for (int i = 0; i < 9; i++, at++) {
        char key[32];
        snprintf(key, sizeof key, "d%s", names[i]);
        check(key, grad[i], numbers(o, key, sizes[i]), sizes[i]);
    }
    grad_tape_free(t);
    cJSON_Delete(o);
}

/* ---- precision, refusals ----------------------------------------------------------------------------------------- */

/* On a tape in bf16 the inputs of the gates are rounded, and weights may be packed in panels; the steps run in f32. */
static void test_bf16(void **state) {
    static const size_t rows[] = {N, GATES, 1, GATES, 1, GATES, 1, GATES, 1},
                        cols[] = {IN, IN, GATES, UNITS, GATES, IN, GATES, UNITS, GATES};
    (void)state;
    struct rng r = rng_init(72, 1);
    struct pair in[9];
    double want[N * 2 * UNITS], *twin[9];
    for (int i = 0; i < 9; i++) in[i] = normals(&r, rows[i] * cols[i], 0.7), twin[i] = in[i].d;
    twin_lstm(NULL, twin, want);
    for (int packed = 0; packed < 2; packed++) {
        struct grad_tape *t = new_tape(DT_BF16, false);
        struct grad_var *leaf[9];
        for (int i = 0; i < 9; i++) {
            struct kernel_matrix w = kernel_matrix_of(kernel_f32(in[i].f), rows[i], cols[i]), panels;
            leaf[i] = grad_leaf(t, kernel_f32(in[i].f), kernel_none(DT_F32), rows[i], cols[i]);
            if (!packed || i == 0 || i % 2 == 0) continue;
            void *memory_of = take(kernel_matrix_bytes(KERNEL_PACKED_BF16, DT_BF16, rows[i], cols[i]) + 64, 1);
            memory_of = (void *)(((uintptr_t)memory_of + 63) / 64 * 64);
            panels = kernel_pack_nt(kernel_host_array(DT_U8, memory_of), &w);
            leaf[i] = grad_leaf_packed(t, &panels);
        }
        struct grad_var *y = build_lstm(NULL, t, leaf);
        assert_non_null(y);
        assert_int_equal(y->value.dtype, DT_F32);
        const float *got = kernel_host(y->value, COUNT_OF(want));
        for (size_t i = 0; i < COUNT_OF(want); i++)
            if (!(fabs(got[i] - want[i]) < 0.03)) fail_msg("bf16: %zu is %g, should be %g", i, (double)got[i], want[i]);
        grad_tape_free(t);
    }
}

static void test_refusals(void **state) {
    (void)state;
    struct err e;
    float x[64] = {0};
    const uint32_t late[] = {0, 1}, empty[] = {0, 0, 2};
    struct grad_tape *t = new_tape(DT_F32, false);
    for (int i = 0; i < 5; i++) {
        struct grad_var *g = grad_leaf(t, kernel_f32(x), kernel_none(DT_F32), 2, i == 0 ? 4 : 8);
        struct grad_var *w = grad_leaf(t, kernel_f32(x), kernel_none(DT_F32), 8, 2), *y;
        struct grad_var *b = grad_leaf(t, kernel_f32(x), kernel_none(DT_F32), 1, 4);
        const struct grad_lstm_direction d = {g, w, i == 1 ? b : NULL};
        const uint32_t good[] = {0, 2};
        if (i == 4)
            y = grad_reshape(t, g, 3, 5);
        else
            y = grad_lstm(t, 1, &d, i == 3 ? 2 : 1, i == 2 ? late : i == 3 ? empty : good);
        assert_null(y);
        assert_int_equal(grad_error(t, &e), ERR_DATA);
        if (i == 2) assert_string_equal(e.msg, "lstm: 1 sequences do not fit 2 rows");
        grad_reset(t);
    }
    grad_tape_free(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_gradients, release_memory),
        cmocka_unit_test_teardown(test_leaves, release_memory),
        cmocka_unit_test_teardown(test_torch, release_memory),
        cmocka_unit_test_teardown(test_bf16, release_memory),
        cmocka_unit_test_teardown(test_refusals, release_memory),
    };
    return cmocka_run_group_tests_name("grad lstm", tests, NULL, NULL);
}
