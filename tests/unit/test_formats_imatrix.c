/* Tests of lib/formats: llama.cpp's importance matrix, written, read and damaged. */
#include "tests/unit/model_samples.h"

#include "lib/formats/formats.h"

static struct model_config config;

/* Sums of squares that identify their slot. */
static const double *some_sums(void *ctx, struct model_slot s, uint64_t *cols, double *positions) {
    static double sums[256];
    uint64_t dims[2];
    (void)ctx;
    *positions = 50;
    if (s.role == ROLE_EMBED) return NULL;
    *cols = dims[model_slot_shape(&config, s, dims) - 1];
    for (uint64_t i = 0; i < *cols; i++) sums[i] = (double)(i + 100 * s.role + 10000 * s.layer) * 50;
    return sums;
}

static struct buf written(void) {
    struct err e;
    int fd = memory_file();
    OK(imatrix_write(&config, some_sums, NULL, 50, 2, fd, &e));
    return contents(fd);
}

static int read_copy(struct imatrix **m, const struct buf *of, size_t n, struct err *e) {
    struct buf bytes = {0};
    assert_int_equal(buf_append(&bytes, of->data, n, e), 0);
    int rc = imatrix_read(m, &bytes, e);
    buf_release(&bytes);
    return rc;
}

static void what_is_written_is_read(void **state) {
    (void)state;
    struct err e;
    struct imatrix *m;
    struct buf file = written();
    float x[256];
    bool found;
    int seen = 0;
    assert_true(imatrix_is("x", file.data, file.len));
    assert_true(imatrix_is("old.dat", "", 0));
    assert_false(imatrix_is("x.rill", "\x89RIL", 4));
    OK(read_copy(&m, &file, file.len, &e));
    for (size_t i = 0; i < model_slot_count(&config); i++) {
        struct model_slot s = model_slot_at(&config, i);
        uint64_t cols;
        double n;
        if (!model_role_is_matrix(s.role)) continue;
        const double *sums = some_sums(NULL, s, &cols, &n);
        if (!sums) cols = config.hidden;
        OK(imatrix_importance(m, &config, s, cols, x, &found, &e));
        assert_int_equal(found, sums != NULL);
        for (uint64_t k = 0; found && k < cols; k++) assert_true(x[k] == (float)(sums[k] / 50));
        seen += found;
    }
    assert_int_equal(seen, 2 * 7 + 1);
    assert_int_equal(imatrix_importance(m, &config, (struct model_slot){ROLE_Q, 0}, 65, x, &found, &e), ERR_DATA);
    assert_non_null(
        strstr(e.msg, "importance of 'blk.0.attn_q.weight' has 64 columns, the matrix 65: of another model"));
    imatrix_free(m);
    buf_release(&file);
}

/* A file cut anywhere but in the last padding is refused; with any byte changed it is either refused or read,
 * without crashing. */
static void damage_is_survived(void **state) {
    (void)state;
    struct err e;
    struct imatrix *m;
    struct buf file = written();
    struct rng r = rng_init(5, 5);
    for (size_t n = 0; n + 28 < file.len; n += n < 2048 ? 1 : 37)
        if (read_copy(&m, &file, n, &e) != ERR_DATA) fail_msg("cut to %zu bytes it is read", n);
    for (int trial = 0; trial < 3000; trial++) {
        size_t at = (size_t)rng_below(&r, file.len < 3000 ? file.len : 3000);
        unsigned char was = file.data[at];
        float x[256];
        bool found;
        file.data[at] ^= (unsigned char)(1 << rng_below(&r, 8));
        if (!read_copy(&m, &file, file.len, &e)) {
            if (imatrix_importance(m, &config, (struct model_slot){ROLE_Q, 0}, 64, x, &found, &e))
                assert_int_equal(e.code, ERR_DATA);
            imatrix_free(m);
        }
        file.data[at] = was;
    }
    buf_release(&file);
}

/* Each expert has its own sums and count within its layer's tensor. */
static const double *expert_sums(void *ctx, struct model_slot s, uint64_t *cols, double *positions) {
    static double sums[256];
    uint64_t dims[2];
    *positions = s.expert == 1 ? 0 : 10 + s.expert;
    *cols = dims[model_slot_shape(ctx, s, dims) - 1];
    for (uint64_t i = 0; i < *cols; i++) sums[i] = *positions * (double)(1 + i + 1000 * s.expert);
    return sums;
}

static void experts_have_their_own(void **state) {
    (void)state;
    struct err e;
    struct imatrix *m;
    struct model_layer layer = {.n_heads = 4, .n_kv_heads = 2, .experts = 3, .expert_ffn = 48};
    struct model_config c = config;
    bool found;
    float x[256];
    uint64_t dims[2];
    int fd = memory_file();
    c.arch = "mixtral", c.n_layers = 1, c.layers = &layer, c.experts_per_token = 2, c.norm_expert_weights = true;
    OK(imatrix_write(&c, expert_sums, &c, 50, 2, fd, &e));
    struct buf file = contents(fd);
    OK(read_copy(&m, &file, file.len, &e));
    for (size_t i = 0; i < model_slot_count(&c); i++) {
        struct model_slot s = model_slot_at(&c, i);
        if (!model_role_is_matrix(s.role)) continue;
        uint64_t cols = dims[model_slot_shape(&c, s, dims) - 1];
        OK(imatrix_importance(m, &c, s, cols, x, &found, &e));
        assert_true(found);
        for (uint64_t k = 0; k < cols; k++) /* the expert that no position took has no sums */
            assert_true(x[k] == (s.expert == 1 ? 1 : (float)(1 + k + 1000 * s.expert)));
    }
    layer.experts = 4;
    assert_int_equal(imatrix_importance(m, &c, (struct model_slot){ROLE_EXPERT_UP, 0, 3}, c.hidden, x, &found, &e),
                     ERR_DATA);
    imatrix_free(m);
    buf_release(&file);
}

#define NUMBER(n) n, 0, 0, 0

static void the_older_format(void **state) {
    (void)state;
    static const unsigned char text[] = {
        NUMBER(2), NUMBER(19), 'b', 'l', 'k', '.', '0',       '.',       'a', 't',       't',
        'n',       '_',        'q', '.', 'w', 'e', 'i',       'g',       'h', 't',       NUMBER(2),
        NUMBER(2), 0,          0,   128, 63,  0,   0,         0,         64,  NUMBER(1), 'x',
        NUMBER(1), NUMBER(1),  0,   0,   128, 63,  NUMBER(3), NUMBER(1), 't'};
    struct err e;
    struct imatrix *m;
    struct buf file = {0};
    float x[2];
    bool found;
    OK(buf_append(&file, text, sizeof text, &e));
    OK(read_copy(&m, &file, file.len, &e));
    OK(imatrix_importance(m, &config, (struct model_slot){ROLE_Q, 0}, 2, x, &found, &e));
    assert_true(found && x[0] == 0.5f && x[1] == 1.0f); /* 1 and 2 over two calls */
    imatrix_free(m);
    for (size_t n = 0; n < file.len - 9; n++) assert_int_equal(read_copy(&m, &file, n, &e), ERR_DATA);
    file.data[38] = 0xff; /* the sign of a sum */
    assert_int_equal(read_copy(&m, &file, file.len, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "no sum of squares"));
    file.data[38] = 63;
    file.data[30] = file.data[31] = file.data[33] = 0x7f; /* a huge number of columns */
    assert_int_equal(read_copy(&m, &file, file.len, &e), ERR_DATA);
    buf_release(&file);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(damage_is_survived),
        cmocka_unit_test(experts_have_their_own),
        cmocka_unit_test(the_older_format),
    };
    struct arena a = {0};
    config = sample_config(&a);
    int rc = cmocka_run_group_tests_name("importance matrices", tests, NULL, NULL);
    arena_release(&a);
    return rc;
}
