/*
 * Tests of muP: the coordinate check. After some steps of training the size of activations is about the same at all
 * widths; without muP it grows (Yang et al. 2022, appendix D.1, "verifying muP implementation via coordinate
 * checking").
 */
#include <math.h>

#include "tests/unit/distill_samples.h"

#define STEPS 4

static struct model *student(uint32_t width, bool mup, bool tied) {
    struct err e;
    struct model_layer wide[2], narrow[] = {{2, 2, 64}, {2, 2, 64}};
    struct model *m;
    for (size_t i = 0; i < 2; i++) wide[i] = (struct model_layer){2, 2, 2 * width};
    struct model_config c = {.arch = "llama",
                             .n_layers = 2,
                             .hidden = width,
                             .head_dim = width / 2,
                             .vocab_size = VOCAB,
                             .context = 64,
                             .tied = tied,
                             .norm_eps = 1e-5f,
                             .rope.theta = 10000,
                             .layers = wide};
    struct model_config base = c;
    struct model_mup widths;
    base.hidden = 32, base.head_dim = 16, base.layers = narrow;
    model_mup_of(&base, &widths);
    OK(model_init_mup(&m, kernel_cpu(), &c, mup ? &widths : NULL, NULL, 0, 7, &e));
    return m;
}

/* Mean |x| of the updates to the residual stream, and of the logits, on one text. */
struct sizes {
    double layer, logits;
};

static int see(void *ctx, const struct model_seen *seen, struct err *e) {
    struct sizes *s = ctx;
    size_t n = seen->rows * seen->cols;
    const float *x;
    if (seen->point != POINT_LAYER || seen->layer != 1) return 0;
    if (model_seen_f32(seen, &x, e)) return e->code;
    for (size_t i = 0; i < n; i++) s->layer += fabsf(x[i]) / (double)n;
    return 0;
}

static int see_logits(void *ctx, size_t first, size_t rows, size_t vocab, float *logits, struct err *e) {
    struct sizes *s = ctx;
    (void)first, (void)e;
    for (size_t i = 0; i < rows * vocab; i++) s->logits += fabsf(logits[i]) / (double)vocab;
    return 0;
}

static struct sizes sizes_of(struct model *m) {
    struct err e;
    static const uint32_t tokens[] = {1, 5, 9, 2, 7, 3, 8, 4}, lengths[] = {5, 3};
    struct model_input in = {.n_positions = 8, .n_seqs = 2, .tokens = tokens, .lengths = lengths};
    struct sizes s = {0, 0};
    struct grad_tape *t;
    OK(grad_tape_new(&t, kernel_cpu(), false, DT_F32, &e));
    OK(model_infer(m, t, &in, see, &s, see_logits, &s, &e));
    grad_tape_free(t);
    return s;
}

static struct sizes after_training(uint32_t width, bool mup, bool tied, size_t optimizer) {
    struct err e;
    struct sample s = sample_new(40, 12, VOCAB, 21);
    struct distill_options o = options_of("ce", &plain);
    struct model *m = student(width, mup, tied);
    struct trainer *t;
    o.plan.now = (struct train_schedule){.lr = 0.005, .lr_min = 0.005, .steps = STEPS};
    o.train.mup = mup;
    o.train.optimizer = &train_optimizers[optimizer];
    o.train.momentum = 0.95;
    int fd = tokens_file(&s, 100);
    OK(trainer_new(&t, m, &o, &plain, &e));
    OK(train_on(t, fd, STEPS, &e));
    struct sizes out = sizes_of(m);
    trainer_free(t);
    model_free(m);
    close(fd);
    sample_free(&s);
    return out;
}

/* The growth of each from the base width to 8 times that width. */
static struct sizes growth(bool mup, bool tied, size_t optimizer) {
    struct sizes first = after_training(32, mup, tied, optimizer), last = after_training(256, mup, tied, optimizer);
    return (struct sizes){last.layer / first.layer, last.logits / first.logits};
}

static void activations_keep_their_size(void **state) {
    (void)state;
    for (size_t optimizer = 0; optimizer < 2; optimizer++)
        for (int tied = 0; tied < 2; tied++) {
            struct sizes with = growth(true, tied, optimizer), without = growth(false, tied, optimizer);
            assert_true(with.layer > 0.6 && with.layer < 1.5 && with.logits > 0.6 && with.logits < 1.5);
            if (!(without.logits > 2.5 && without.layer > 2.5))
                fail_msg("%s: nothing grows without muP", train_optimizers[optimizer].name);
        }
}

/* At the base's own width nothing is scaled: the bits are the same with and without. */
static void the_base_is_as_without(void **state) {
    (void)state;
    struct model *a = student(32, true, true), *b = student(32, false, true);
    for (size_t i = 0; i < a->n_params; i++)
        assert_memory_equal(model_host_value(&a->params[i]), model_host_value(&b->params[i]),
                            a->params[i].n * sizeof(float));
    struct err e;
    struct distill_options o = options_of("ce", &plain);
    struct param_set s;
    o.train.mup = true;
    OK(param_set_init(&s, &o.train, &e));
    OK(train_add_model(&s, a, &e));
    OK(param_set_begin(&s, &e));
    for (size_t i = 0; i < s.n; i++) assert_true(s.params[i].lr == 1);
    param_set_release(&s);
    OK(param_set_init(&s, &o.train, &e));
    assert_int_equal(train_add_model(&s, b, &e), ERR_DATA); /* has no base */
    param_set_release(&s);
    model_free(a);
    model_free(b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(activations_keep_their_size),
        cmocka_unit_test(the_base_is_as_without),
    };
    return cmocka_run_group_tests_name("train_mup", tests, NULL, NULL);
}
