/*
 * Every loss of the table against PyTorch in f64: value and gradient, within 1e-5 of the largest element. The expected
 * values come from tests/reference/make_losses.py. A loss on logits without a case here fails the test; the others are
 * in test_losses_points.c.
 */
#include "tests/unit/losses_golden.h"

struct golden {
    FILE *f;
    size_t rows, vocab, k, in, out;
    float *x, *z, *probs, *rest;
    uint32_t *labels, *ids;
    uint64_t *offset;
};

/* Reads the next line: NAME and n numbers. */
static double *numbers(FILE *f, const char *name, size_t n) {
    char word[32];
    double *v = malloc(n * sizeof *v);
    if (fscanf(f, "%31s", word) != 1 || strcmp(word, name) != 0) fail_msg("expected %s, found %s", name, word);
    for (size_t i = 0; i < n; i++) assert_int_equal(fscanf(f, "%lf", &v[i]), 1);
    return v;
}

static float *floats(FILE *f, const char *name, size_t n) {
    double *v = numbers(f, name, n);
    float *out = malloc(n * sizeof *out);
    for (size_t i = 0; i < n; i++) out[i] = (float)v[i];
    free(v);
    return out;
}

static uint32_t *integers(FILE *f, const char *name, size_t n) {
    double *v = numbers(f, name, n);
    uint32_t *out = malloc(n * sizeof *out);
    for (size_t i = 0; i < n; i++) out[i] = v[i] < 0 ? UINT32_MAX : (uint32_t)v[i];
    free(v);
    return out;
}

static struct golden golden_open(void) {
    struct golden g = {.f = fopen("tests/golden/losses/losses.txt", "r")};
    assert_non_null(g.f);
    assert_int_equal(fscanf(g.f, "sizes %zu %zu %zu %zu %zu", &g.rows, &g.vocab, &g.k, &g.in, &g.out), 5);
    g.x = floats(g.f, "x", g.rows * g.vocab);
    g.z = floats(g.f, "z", g.rows * g.vocab);
    g.labels = integers(g.f, "labels", g.rows);
    g.ids = integers(g.f, "ids", g.rows * g.k);
    g.probs = floats(g.f, "probs", g.rows * g.k);
    g.rest = floats(g.f, "rest", g.rows);
    g.offset = calloc(g.rows + 1, sizeof *g.offset);
    return g;
}

static void golden_close(struct golden *g) {
    void *all[] = {g->x, g->z, g->labels, g->ids, g->probs, g->rest, g->offset};
    for (size_t i = 0; i < COUNT_OF(all); i++) free(all[i]);
    fclose(g->f);
}

static void run_case(struct golden *g, const char *text, bool ghost) {
    struct err e;
    struct model *m = student_new(true, 1);
    struct param_set own;
    struct loss_list l = {0};
    struct knowledge_format f = {.encoding = ghost ? KNOW_GHOST : KNOW_DENSE,
                                 .n = ghost ? (uint32_t)g->k : 0,
                                 .temperature = 1,
                                 .dtype = DT_F32,
                                 .vocab_size = (uint32_t)g->vocab};
    struct knowledge_rows k = {
        .labels = g->labels, .dense = g->z, .offset = g->offset, .ids = g->ids, .probs = g->probs};
    struct loss_rows r = {.rows = g->rows, .vocab = g->vocab, .data = &k, .format = &f, .final = kernel_f32(g->x)};
    double *value = numbers(g->f, "value", 1), *gradient = numbers(g->f, "gradient", g->rows * g->vocab);
    float *dx = calloc(g->rows * g->vocab, sizeof *dx);
    for (size_t i = 0; i <= g->rows; i++) g->offset[i] = ghost ? i * g->k : 0;
    if (ghost) k.rest = g->rest;
    r.final_dlogits = kernel_f32(dx);
    OK(param_set_init(&own, &(struct train_options){.state = DT_F32}, &e));
    OK(loss_list_add(&l, text, &e));
    OK(loss_list_bind(&l, &(struct loss_setting){.student = &m->config, .data = &f}, &own, &e));
    for (int fused = l.fused; fused >= 0; fused--) { /* kl and ce: fused and not */
        l.fused = fused;
        loss_list_begin_step(&l, 1, 1);
        OK(loss_list_block(&l, &r, &e));
        loss_list_end_step(&l, 3);
        for (size_t i = 0; i < l.n; i++)
            if (!l.items[i].measured) check_value(text, &l.items[i], value);
        check(text, "gradient", dx, gradient, g->rows * g->vocab);
    }
    loss_list_release(&l);
    param_set_release(&own);
    model_free(m);
    free(value);
    free(gradient);
    free(dx);
}

/* Hidden states: the student's point is a leaf, the teacher's a matrix; the projector gets PyTorch's weight. */
struct points {
    const float *t;
    size_t cols;
};

static int teacher(void *ctx, enum model_point p, uint32_t layer, const float **rows, size_t *cols, struct err *e) {
    const struct points *x = ctx;
    (void)p, (void)layer, (void)e;
    *rows = x->t;
    *cols = x->cols;
    return 0;
}

static void run_points(struct golden *g, const char *text, float *h, const float *w, const float *t) {
    struct err e;
    struct param_set own;
    struct loss_list l = {0};
    struct grad_tape *tape;
    struct model_layer layer = {2, 1, 24};
    struct model_config student = {.n_layers = 1, .hidden = (uint32_t)g->in, .layers = &layer},
                        of = {.n_layers = 1, .hidden = (uint32_t)g->out, .layers = &layer};
    double *value = numbers(g->f, "value", 1), *dh = numbers(g->f, "dh", g->rows * g->in),
           *dw = numbers(g->f, "dw", g->out * g->in);
    float *grad = calloc(g->rows * g->in, sizeof *grad), row_weight[64];
    OK(param_set_init(&own, &(struct train_options){.state = DT_F32}, &e));
    OK(loss_list_add(&l, text, &e));
    OK(loss_list_bind(&l, &(struct loss_setting){.student = &student, .data = &plain, .live = &of}, &own, &e));
    assert_int_equal(own.n, 1);
    kernel_upload(own.params[0].value, w, g->out * g->in);
    OK(grad_tape_new(&tape, kernel_cpu(), true, DT_F32, &e));
    struct model_want want = {POINT_LAYER, 0, grad_leaf(tape, kernel_f32(h), kernel_f32(grad), g->rows, g->in)};
    struct points x = {t, g->out};
    for (size_t i = 0; i < g->rows; i++) row_weight[i] = g->labels[i] == UINT32_MAX ? 0 : 1;
    struct loss_points p = {
        .t = tape, .student = &want, .row_weight = row_weight, .labelled = 3, .teacher = teacher, .ctx = &x};
    loss_list_begin_step(&l, 1, 1);
    OK(loss_list_points(&l, &p, &e));
    grad_backward(tape);
    OK(grad_error(tape, &e));
    loss_list_end_step(&l, 3);
    check_value(text, &l.items[0], value);
    check(text, "gradient of the states", grad, dh, g->rows * g->in);
    check(text, "gradient of the map", kernel_host(own.params[0].grad, g->out * g->in), dw, g->out * g->in);
    grad_tape_free(tape);
    loss_list_release(&l);
    param_set_release(&own);
    free(value);
    free(dh);
    free(dw);
    free(grad);
}

static void losses_are_pytorchs(void **state) {
    struct golden g = golden_open();
    char text[64], encoding[16], word[16];
    uint64_t seen = 0;
    float *h = NULL, *w = NULL, *t = NULL;
    (void)state;
    while (fscanf(g.f, "%15s", word) == 1) {
        if (!strcmp(word, "h")) {
            fseek(g.f, -1, SEEK_CUR);
            h = floats(g.f, "h", g.rows * g.in);
            w = floats(g.f, "w", g.out * g.in);
            t = floats(g.f, "t", g.rows * g.out);
            continue;
        }
        assert_int_equal(fscanf(g.f, "%63s", text), 1);
        if (!strcmp(word, "case")) {
            assert_int_equal(fscanf(g.f, "%15s", encoding), 1);
            run_case(&g, text, !strcmp(encoding, "ghost"));
        } else {
            run_points(&g, text, h, w, t);
        }
        seen |= UINT64_C(1) << loss_index(text);
    }
    for (unsigned i = 0; loss_types[i]; i++)
        if (loss_types[i]->logits && !(seen >> i & 1))
            fail_msg("%s has no case in make_losses.py", loss_types[i]->name);
    free(h);
    free(w);
    free(t);
    golden_close(&g);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(losses_are_pytorchs)};
    return cmocka_run_group_tests_name("losses against PyTorch", tests, NULL, NULL);
}
