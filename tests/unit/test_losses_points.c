/*
 * Every loss on points against PyTorch in f64: value, gradients of the student's points and of the loss's own
 * parameters, within 1e-5 of the largest element. The expected values come from tests/reference/make_feature_losses.py.
 * A loss without a case fails the test.
 */
#include "tests/unit/losses_golden.h"

enum { STUDENT_LAYERS = 2, TEACHER_LAYERS = 4, WIDTH = 10, WIDE = 14, MOST = 24, ROWS = 12 };

struct matrix {
    char name[32]; /* "layer.0"; the teacher's wide ones are "wide.layer.0" */
    float *value, *grad;
    size_t cols;
};

struct golden {
    FILE *f;
    float row_weight[ROWS];
    struct matrix student[MOST], teacher[MOST];
    size_t n_student, n_teacher;
    bool wide;
};

/* Reads "N numbers", in both types. */
static double *numbers(FILE *f, size_t *n) {
    assert_int_equal(fscanf(f, "%zu", n), 1);
    double *v = malloc(*n * sizeof *v);
    for (size_t i = 0; i < *n; i++) assert_int_equal(fscanf(f, "%lf", &v[i]), 1);
    return v;
}

static float *floats(FILE *f, size_t *n) {
    double *v = numbers(f, n);
    float *out = malloc(*n * sizeof *out);
    for (size_t i = 0; i < *n; i++) out[i] = (float)v[i];
    free(v);
    return out;
}

static void read_inputs(struct golden *g) {
    char word[32];
    size_t n;
    g->f = fopen("tests/golden/losses/points.txt", "r");
    assert_non_null(g->f);
    assert_int_equal(fscanf(g->f, "%31s", word), 1);
    float *labelled = floats(g->f, &n);
    assert_int_equal(n, ROWS);
    memcpy(g->row_weight, labelled, sizeof g->row_weight);
    free(labelled);
    while (fscanf(g->f, "%31s", word) == 1 && strcmp(word, "case") != 0) {
        struct matrix *m = !strcmp(word, "student") ? &g->student[g->n_student++] : &g->teacher[g->n_teacher++];
        assert_int_equal(fscanf(g->f, "%31s", m->name), 1);
        m->value = floats(g->f, &n);
        m->cols = n / ROWS;
        m->grad = calloc(n, sizeof *m->grad);
    }
}

static struct matrix *find(struct matrix *all, size_t n, const char *name) {
    for (size_t i = 0; i < n; i++)
        if (!strcmp(all[i].name, name)) return &all[i];
    fail_msg("no %s", name);
    return NULL;
}

static int teacher(void *ctx, enum model_point p, uint32_t layer, const float **rows, size_t *cols, struct err *e) {
    struct golden *g = ctx;
    char name[64];
    bool wide = g->wide && (p == POINT_LAYER || p == POINT_EMBED);
    snprintf(name, sizeof name, "%s%s.%u", wide ? "wide." : "", model_point_name(p), layer);
    const struct matrix *m = find(g->teacher, g->n_teacher, name);
    (void)e;
    *rows = m->value;
    *cols = m->cols;
    return 0;
}

struct bench {
    struct golden *g;
    const char *text;
    struct loss_list l;
    struct param_set own;
    struct grad_tape *tape;
    struct model_want wants[LOSS_MAX_POINTS];
};

/* Compares the loss, which has been run, with the case in the file. */
static void check_case(struct bench *b, double **slopes, size_t n_slopes, double value) {
    const struct loss *l = &b->l.items[0];
    char word[32];
    size_t n;
    check_value(b->text, l, &value);
    assert_int_equal(b->own.n, n_slopes);
    for (size_t i = 0; i < n_slopes; i++)
        check(b->text, b->own.params[i].name, kernel_host(b->own.params[i].grad, b->own.params[i].n), slopes[i],
              b->own.params[i].n);
    size_t seen = 0;
    while (fscanf(b->g->f, "%31s", word) == 1 && strcmp(word, "end") != 0) {
        assert_int_equal(fscanf(b->g->f, "%31s", word), 1);
        double *want = numbers(b->g->f, &n);
        check(b->text, word, find(b->g->student, b->g->n_student, word)->grad, want, n);
        free(want);
        seen++;
    }
    if (seen != b->l.n_student) fail_msg("%s: %zu gradients, %zu points are wanted", b->text, seen, b->l.n_student);
}

static void bind(struct bench *b) {
    struct err e;
    static struct model_layer layers[TEACHER_LAYERS] = {{4, 2, 24}, {4, 2, 24}, {4, 2, 24}, {4, 2, 24}};
    static struct model_config student, of;
    student = (struct model_config){.n_layers = STUDENT_LAYERS, .hidden = WIDTH, .head_dim = 3, .layers = layers};
    of = (struct model_config){
        .n_layers = TEACHER_LAYERS, .hidden = b->g->wide ? WIDE : WIDTH, .head_dim = 5, .layers = layers};
    OK(param_set_init(&b->own, &(struct train_options){.state = DT_F32}, &e));
    OK(loss_list_add(&b->l, b->text, &e));
    if (loss_list_bind(&b->l, &(struct loss_setting){.student = &student, .data = &plain, .live = &of}, &b->own, &e))
        fail_msg("%s: %s", b->text, e.msg);
    OK(grad_tape_new(&b->tape, kernel_cpu(), true, DT_F32, &e));
    for (size_t i = 0; i < b->l.n_student; i++) {
        const struct loss_point *p = &b->l.student[i];
        char name[64];
        snprintf(name, sizeof name, "%s.%u", model_point_name(p->point), p->layer);
        struct matrix *m = find(b->g->student, b->g->n_student, name);
        memset(m->grad, 0, ROWS * m->cols * sizeof *m->grad);
        b->wants[i] = (struct model_want){p->point, p->layer,
                                          grad_leaf(b->tape, kernel_f32(m->value), kernel_f32(m->grad), ROWS, m->cols)};
    }
}

static void run(struct bench *b) {
    struct err e;
    static const uint32_t starts[] = {0, 7, 12}, lengths[] = {7, 5};
    struct model_input in = {.n_positions = ROWS, .n_seqs = 2, .lengths = lengths};
    struct loss_points p = {.t = b->tape,
                            .in = &in,
                            .starts = starts,
                            .student = b->wants,
                            .row_weight = b->g->row_weight,
                            .teacher = teacher,
                            .ctx = b->g};
    for (size_t i = 0; i < ROWS; i++) p.labelled += p.row_weight[i];
    loss_list_begin_step(&b->l, 1, 1);
    if (loss_list_points(&b->l, &p, &e)) fail_msg("%s: %s", b->text, e.msg);
    grad_backward(b->tape);
    OK(grad_error(b->tape, &e));
    loss_list_end_step(&b->l, p.labelled);
}

static void run_case(struct golden *g, const char *text) {
    struct bench *b = calloc(1, sizeof *b);
    char word[32];
    size_t n, n_slopes = 0;
    double *slopes[8], *value;
    *b = (struct bench){.g = g, .text = text};
    bind(b);
    assert_int_equal(fscanf(g->f, "%31s", word), 1);
    value = numbers(g->f, &n);
    for (long at = ftell(g->f); fscanf(g->f, "%31s", word) == 1; at = ftell(g->f)) {
        if (strcmp(word, "param") != 0) {
            fseek(g->f, at, SEEK_SET);
            break;
        }
        float *v = floats(g->f, &n);
        if (n_slopes >= b->own.n) fail_msg("%s: %zu parameters", text, b->own.n);
        assert_int_equal(n, b->own.params[n_slopes].n);
        kernel_upload(b->own.params[n_slopes].value, v, n);
        free(v);
        assert_int_equal(fscanf(g->f, "%31s", word), 1);
        slopes[n_slopes++] = numbers(g->f, &n);
    }
    run(b);
    check_case(b, slopes, n_slopes, *value);
    grad_tape_free(b->tape);
    loss_list_release(&b->l);
    param_set_release(&b->own);
    for (size_t i = 0; i < n_slopes; i++) free(slopes[i]);
    free(value);
    free(b);
}

static void losses_are_pytorchs(void **state) {
    struct golden *g = calloc(1, sizeof *g);
    uint64_t seen = 0;
    char text[64], word[16];
    int wide;
    (void)state;
    read_inputs(g);
    do {
        assert_int_equal(fscanf(g->f, "%63s %d", text, &wide), 2);
        g->wide = wide;
        run_case(g, text);
        seen |= UINT64_C(1) << loss_index(text);
    } while (fscanf(g->f, "%15s", word) == 1);
    for (unsigned i = 0; loss_types[i]; i++) /* hidden is in test_losses_torch.c */
        if (loss_types[i]->points && loss_types[i] != &loss_hidden && !(seen >> i & 1))
            fail_msg("%s has no case in make_feature_losses.py", loss_types[i]->name);
    for (size_t i = 0; i < g->n_student; i++) free(g->student[i].value), free(g->student[i].grad);
    for (size_t i = 0; i < g->n_teacher; i++) free(g->teacher[i].value), free(g->teacher[i].grad);
    fclose(g->f);
    free(g);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(losses_are_pytorchs)};
    return cmocka_run_group_tests_name("losses on points against PyTorch", tests, NULL, NULL);
}
