/*
 * Tests of lib/train: optimizers against PyTorch and definitions in f64, averages, groups, frozen parameters, adapters,
 * moments of another run.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/train/train_internal.h"
#include "tests/unit/model_samples.h"

static struct train_options options(void) {
    return (struct train_options){.weight_decay = 0.1,
                                  .beta1 = 0.9,
                                  .beta2 = 0.95,
                                  .eps = 1e-8,
                                  .momentum = 0.95,
                                  .state = DT_F32,
                                  .precision = DT_F32};
}

/* ---- against the fixture of tests/reference/make_optimizer_golden.py --------------------------------------------- */

static cJSON *fixture(void) {
    struct err e;
    struct buf text = {0};
    FILE *f = fopen("tests/golden/train/optimizers.json", "rb");
    int c;
    assert_non_null(f);
    while ((c = fgetc(f)) != EOF) OK(buf_append(&text, &(char){(char)c}, 1, &e));
    fclose(f);
    cJSON *o = json_parse((char *)text.data, text.len, &e);
    buf_release(&text);
    assert_non_null(o);
    return o;
}

static float *numbers(const cJSON *list, size_t n) {
    struct err e;
    float *x = mem_array(n, sizeof *x, &e);
    assert_int_equal(cJSON_GetArraySize(list), (int)n);
    for (size_t i = 0; i < n; i++) x[i] = (float)cJSON_GetArrayItem(list, (int)i)->valuedouble;
    return x;
}

/* The largest difference from the list, relative to the largest change of a weight. */
static double distance(const float *x, const cJSON *list, size_t n, double unit) {
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs(x[i] - cJSON_GetArrayItem(list, (int)i)->valuedouble) / unit;
        if (d > most) most = d;
    }
    return most;
}

/* f32 arithmetic: about 1e-6 for numbers near 1. bf16 products: 2^-8 in each of five iterations, which contract
 * errors. */
static void check_case(const cJSON *all, const cJSON *one, size_t optimizer, enum dtype precision) {
    struct err e;
    size_t rows = (size_t)cJSON_GetObjectItem(one, "rows")->valuedouble;
    size_t cols = (size_t)cJSON_GetObjectItem(one, "cols")->valuedouble, n = rows * cols;
    const struct optimizer_type *type = &train_optimizers[optimizer];
    const cJSON *want = cJSON_GetObjectItem(one, type->name), *lr = cJSON_GetObjectItem(all, "lr"), *gradients;
    if (!want) return;
    float *w = numbers(cJSON_GetObjectItem(one, "w"), n), *g = NULL;
    struct train_options o = options();
    struct param_set s;
    bool begun = true;
    o.optimizer = type;
    o.precision = precision;
    o.weight_decay = cJSON_GetObjectItem(all, "decay")->valuedouble;
    OK(param_set_init(&s, &o, &e));
    float *grad = mem_array(n, sizeof *grad, &e);
    struct param p = {.name = "w",
                      .value = kernel_f32(w),
                      .grad = kernel_f32(grad),
                      .grad_begun = &begun,
                      .rows = rows,
                      .cols = cols,
                      .matrix = true,
                      .decays = true};
    OK(param_set_add(&s, &p, &e));
    OK(param_set_begin(&s, &e));
    gradients = cJSON_GetObjectItem(one, "gradients");
    for (int step = 1; step <= cJSON_GetArraySize(gradients); step++) {
        g = numbers(cJSON_GetArrayItem(gradients, step - 1), n);
        for (size_t i = 0; i < n; i++) grad[i] = 4 * g[i]; /* undone by the scale */
        mem_free(g);
        begun = true;
        assert_true(train_gradient_norm(&s, 0.25) > 0);
        train_step(&s, (uint64_t)step, cJSON_GetArrayItem(lr, step - 1)->valuedouble, 0.25);
        assert_false(begun);
    }
    double tolerance = precision == DT_F32 ? 3e-6 : 2e-3;
    double off = distance(w, cJSON_GetObjectItem(want, "w"), n, 1);
    if (off > tolerance) fail_msg("%s [%zu, %zu]: a weight is off by %g", type->name, rows, cols, off);
    for (size_t k = 0; k < TRAIN_MAX_MOMENTS && type->moments[k]; k++)
        assert_true(
            distance(kernel_host(s.params[0].moments[k], n), cJSON_GetObjectItem(want, type->moments[k]), n, 1) < 1e-6);
    param_set_release(&s);
    mem_free(w);
    mem_free(grad);
}

static void optimizers_agree_with_their_references(void **state) {
    (void)state;
    cJSON *all = fixture();
    const cJSON *one;
    cJSON_ArrayForEach(one, cJSON_GetObjectItem(all, "cases")) {
        check_case(all, one, 0, DT_F32);
        check_case(all, one, 1, DT_F32);
        check_case(all, one, 1, DT_BF16);
    }
    cJSON_Delete(all);
}

/* ---- a model's parameters ---------------------------------------------------------------------------------------- */

struct fixture {
    struct arena memory;
    struct model_config config;
    struct model *m;
    struct param_set s;
};

static void begin_with(struct fixture *f, const struct train_options *o, void (*change)(struct model *), int code) {
    struct err e;
    f->memory = (struct arena){0};
    f->config = sample_config(&f->memory);
    f->m = sample_model(&f->config, 3);
    if (change) change(f->m);
    OK(param_set_init(&f->s, o, &e));
    int rc = train_add_model(&f->s, f->m, &e);
    if (!rc) rc = param_set_begin(&f->s, &e);
    assert_int_equal(rc, code);
}

static void begin(struct fixture *f, const struct train_options *o, int code) {
    begin_with(f, o, NULL, code);
}

static void end(struct fixture *f) {
    param_set_release(&f->s);
    model_free(f->m);
    arena_release(&f->memory);
}

static const float *values(struct kernel_array a, size_t n) {
    return kernel_host(a, n);
}

static struct param *find(struct fixture *f, const char *name) {
    for (size_t i = 0; i < f->s.n; i++)
        if (!strcmp(f->s.params[i].name, name)) return &f->s.params[i];
    return NULL;
}

/* A step with gradients that depend only on the parameter's name. */
static void step(struct fixture *f, uint64_t number) {
    for (size_t i = 0; i < f->s.n; i++) {
        struct param *p = &f->s.params[i];
        struct rng r = rng_init(number, p->stream);
        float *grad = kernel_host(p->grad, p->n);
        for (uint64_t k = 0; k < p->n; k++) grad[k] = (float)rng_normal(&r);
        *p->grad_begun = true;
    }
    train_gradient_norm(&f->s, 1);
    train_step(&f->s, number, 0.01, 1);
}

static void groups_are_told_apart_by_name(void **state) {
    (void)state;
    struct err e;
    struct train_group groups[3];
    const char *const frozen[] = {"embed*", "layers.0.ffn*"};
    OK(train_group_parse("layers.*.attn.*:lr=0.5", &groups[0], &e));
    OK(train_group_parse("*norm*:decay=0.3,lr=2", &groups[1], &e));
    OK(train_group_parse("layers.*:lr=0", &groups[2], &e));
    struct train_options o = options();
    struct fixture f;
    o.groups = groups, o.n_groups = 3, o.frozen = frozen, o.n_frozen = 2;
    begin(&f, &o, 0);
    assert_null(find(&f, "embed.weight"));
    assert_null(find(&f, "layers.0.ffn.up.weight"));
    assert_false(kernel_has_data(model_param(f.m, ROLE_EMBED, 0)->grad));
    const struct param *q = find(&f, "layers.1.attn.q.weight"), *norm = find(&f, "layers.1.attn_norm.weight");
    const struct param *up = find(&f, "layers.1.ffn.up.weight"), *head = find(&f, "head.weight");
    assert_true(q->group == 1 && q->lr == 0.5 && q->decay == 0.1);
    assert_true(norm->group == 2 && norm->lr == 2 && norm->decay == 0.3);
    assert_true(up->group == 3 && up->lr == 0 && head->group == 0 && head->lr == 1);
    struct buf before = {0};
    OK(buf_append(&before, values(up->value, up->n), up->n * sizeof(float), &e));
    step(&f, 1);
    assert_memory_equal(before.data, values(up->value, up->n), before.len); /* a rate of 0 */
    double sum = 0;
    for (size_t i = 0; i < 4; i++) sum += f.s.group_square[i];
    for (size_t i = 0; i < f.s.n; i++) *f.s.params[i].grad_begun = true;
    assert_true(fabs(sqrt(sum) - train_gradient_norm(&f.s, 1)) < 1e-9 * sum);
    buf_release(&before);
    end(&f);

    static const char *const bad[] = {"",        "x",        "x:",        ":lr=1",      "x:lr",
                                      "x:lr=-1", "x:rate=1", "x:decay=2", "x:lr=1,lr=1"};
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        if (train_group_parse(bad[i], groups, &e) != ERR_USAGE) fail_msg("\"%s\" is accepted", bad[i]);
    OK(train_group_parse("nothing*:lr=1", &groups[0], &e)); /* matches no parameter */
    begin(&f, &o, ERR_USAGE);
    end(&f);
    const char *const all[] = {"*"}, *const none[] = {"layer.*"};
    o.n_groups = 0, o.frozen = all, o.n_frozen = 1;
    begin(&f, &o, ERR_USAGE);
    end(&f);
    o.frozen = none;
    begin(&f, &o, ERR_USAGE);
    end(&f);
}

static void an_average_is_what_is_written(void **state) {
    (void)state;
    struct err e;
    struct train_options o = options();
    struct fixture f;
    o.ema = 0.25;
    begin(&f, &o, 0);
    struct param *q = find(&f, "layers.0.attn.q.weight");
    double want = values(q->value, q->n)[7];
    for (uint64_t i = 1; i <= 5; i++) {
        double ramp = (1 + (double)i) / (10 + (double)i), d = ramp < 0.25 ? ramp : 0.25;
        step(&f, i);
        want = d * want + (1 - d) * values(q->value, q->n)[7];
    }
    float average = values(q->average, q->n)[7];
    assert_true(fabs(average - want) < 1e-6 && fabs(values(q->value, q->n)[7] - want) > 1e-4);
    OK(param_set_finish(&f.s, &e));
    assert_true(model_host_value(model_param(f.m, ROLE_Q, 0))[7] == average);
    end(&f);
}

/* ---- adapters ---------------------------------------------------------------------------------------------------- */

static int copy_logits(void *ctx, size_t first, size_t rows, size_t vocab, float *logits, struct err *e) {
    (void)e;
    memcpy((float *)ctx + first * vocab, logits, rows * vocab * sizeof *logits);
    return 0;
}

static float *logits_in(struct model *m, enum dtype precision) {
    struct err e;
    static const uint32_t tokens[] = {1, 5, 9, 2, 77, 31, 8, 4}, lengths[] = {5, 3};
    struct model_input in = {.n_positions = 8, .n_seqs = 2, .tokens = tokens, .lengths = lengths};
    struct grad_tape *t;
    float *out = mem_array(8 * 97, sizeof *out, &e);
    OK(grad_tape_new(&t, kernel_cpu(), false, precision, &e));
    OK(model_infer(m, t, &in, NULL, NULL, copy_logits, out, &e));
    grad_tape_free(t);
    return out;
}

static double largest_difference(const float *a, const float *b) {
    double most = 0;
    for (size_t i = 0; i < 8 * 97; i++)
        if (fabs(a[i] - b[i]) > most) most = fabs(a[i] - b[i]);
    return most;
}

/* Zero adapters change nothing; a model with trained ones computes what the merged one does; its own weights are
 * unchanged. */
static void adapters_are_what_is_merged(void **state) {
    (void)state;
    struct err e;
    struct train_options o = options();
    struct fixture f;
    OK(train_lora_parse("3:alpha=6", &o.lora, &e));
    begin(&f, &o, 0);
    assert_int_equal(f.s.n, 2 * 2 * 7); /* a and b of seven matrices in two layers */
    struct fixture plain;
    struct train_options none = options();
    begin(&plain, &none, 0);
    float *before = logits_in(f.m, DT_F32), *same = logits_in(plain.m, DT_F32);
    assert_memory_equal(before, same, 8 * 97 * sizeof(float));
    for (uint64_t i = 1; i <= 4; i++) step(&f, i);
    const struct model_param *q = model_param(f.m, ROLE_Q, 1);
    assert_memory_equal(model_host_value(q), model_host_value(model_param(plain.m, ROLE_Q, 1)), q->n * sizeof(float));
    assert_false(kernel_has_data(q->grad));
    float *adapted = logits_in(f.m, DT_F32), *rounded = logits_in(f.m, DT_BF16);
    OK(param_set_finish(&f.s, &e));
    assert_null(q->adapter);
    float *merged = logits_in(f.m, DT_F32);
    assert_true(largest_difference(adapted, before) > 1e-2);
    assert_true(largest_difference(adapted, merged) < 2e-5);
    assert_true(largest_difference(rounded, merged) < 0.1);
    float *all[] = {before, same, adapted, rounded, merged};
    for (size_t i = 0; i < COUNT_OF(all); i++) mem_free(all[i]);
    end(&plain);
    end(&f);

    o = options();
    OK(train_lora_parse("2:target=*.ffn.*", &o.lora, &e));
    begin(&f, &o, 0);
    assert_int_equal(f.s.n, 2 * 2 * 3);
    end(&f);
    OK(train_lora_parse("2:target=embed*", &o.lora, &e)); /* not a matrix of a layer */
    begin(&f, &o, ERR_USAGE);
    end(&f);
    OK(train_lora_parse("2", &o.lora, &e));
    o.optimizer = &train_optimizers[1]; /* does not support adapters */
    begin(&f, &o, ERR_USAGE);
    end(&f);
    static const char *const bad[] = {"", "0", "x", "2:", "2:alpha=0", "2:rank=1", "2:target=", "9999"};
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        if (train_lora_parse(bad[i], &o.lora, &e) != ERR_USAGE) fail_msg("\"%s\" is accepted", bad[i]);
}

/* ---- masks ---- */

/* Zeroes two of three weights of one matrix and an element of a norm; the other matrices have no zeros. */
static void make_zeros(struct model *m) {
    struct model_param *up = model_param(m, ROLE_UP, 1);
    for (uint64_t i = 0; i < up->n; i++)
        if (i % 3) model_host_value(up)[i] = 0;
    model_host_value(model_param(m, ROLE_NORM, 0))[4] = 0;
}

static void masks_hold(const char *optimizer, enum dtype state) {
    struct err e;
    struct fixture f, free;
    struct train_options o = options();
    OK(train_optimizer_parse(optimizer, &o, &e));
    o.state = state;
    o.ema = 0.5;
    begin_with(&free, &o, make_zeros, 0);
    o.keep_mask = true;
    begin_with(&f, &o, make_zeros, 0);
    assert_int_equal(param_set_state_bytes(&f.s) - param_set_state_bytes(&free.s),
                     (model_param(f.m, ROLE_UP, 1)->n + 7) / 8);
    for (uint64_t i = 1; i <= 3; i++) step(&f, i), step(&free, i);
    const struct model_param *up = model_param(f.m, ROLE_UP, 1), *gate = model_param(f.m, ROLE_GATE, 1);
    for (int averaged = 0; averaged < 2; averaged++) {
        for (uint64_t i = 0; i < up->n; i++) {
            uint32_t bits;
            memcpy(&bits, &model_host_value(up)[i], sizeof bits);
            assert_true((bits == 0) == (i % 3 != 0));
            assert_true(model_host_value(model_param(free.m, ROLE_UP, 1))[i] != 0);
        }
        assert_true(model_host_value(model_param(f.m, ROLE_NORM, 0))[4] != 0); /* not a matrix */
        if (!averaged) OK(param_set_finish(&f.s, &e));
    }
    for (uint64_t i = 0; i < gate->n; i++) assert_true(model_host_value(gate)[i] != 0);
    end(&f);
    end(&free);
}

static void zeros_stay_zeros(void **state) {
    (void)state;
    masks_hold("adamw", DT_F32);
    masks_hold("adamw", DT_BF16);
    masks_hold("muon", DT_F32);
    struct fixture f;
    struct train_options o = options();
    o.keep_mask = true;
    begin(&f, &o, ERR_USAGE); /* no zeros to hold */
    end(&f);
}

/* ---- noise ------------------------------------------------------------------------------------------------------- */

/* Norms of means of n draws of a vector with |mean|^2 = 4 and trace 30: E |mean of n|^2 = 4 + 30 / n. */
static void noise_is_trace_over_square(void **state) {
    (void)state;
    struct train_noise z = {0};
    assert_true(isnan(train_noise_scale(&z)));
    for (int i = 0; i < 5; i++) train_noise_add(&z, 4 + 30.0 / 10, 10, 4 + 30.0 / 50, 50);
    assert_true(fabs(train_noise_scale(&z) - 7.5) < 1e-9);
    train_noise_add(&z, 1, 50, 1, 50); /* equal counts carry no information */
    assert_true(fabs(train_noise_scale(&z) - 7.5) < 1e-9);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(optimizers_agree_with_their_references),
        cmocka_unit_test(groups_are_told_apart_by_name),
        cmocka_unit_test(an_average_is_what_is_written),
        cmocka_unit_test(adapters_are_what_is_merged),
        cmocka_unit_test(zeros_stay_zeros),
        cmocka_unit_test(noise_is_trace_over_square),
    };
    return cmocka_run_group_tests_name("train_optimizer", tests, NULL, NULL);
}
