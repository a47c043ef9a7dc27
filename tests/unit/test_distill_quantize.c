/* Tests of quantization-aware training: the stored weights are those that the last forward pass read, gradients are
 * those at the grid, and a run interrupted after any step resumes to the same bytes. */
#include "lib/train/train_internal.h"
#include "tests/unit/distill_samples.h"

/* A student whose rows are whole blocks of 32, and one type of each kind for its matrices: even and uneven steps,
 * minima, a type that is searched at each step, a plain one. */
static struct model *wide_student(void) {
    struct err e;
    struct model_layer layers[] = {{2, 1, 64}, {2, 2, 32}};
    struct model_config c = {.arch = "llama",
                             .n_layers = 2,
                             .hidden = 32,
                             .head_dim = 16,
                             .vocab_size = VOCAB,
                             .context = 64,
                             .tied = true,
                             .norm_eps = 1e-5f,
                             .rope.theta = 10000,
                             .layers = layers};
    struct model *m;
    OK(model_init(&m, kernel_cpu(), &c, NULL, 0, 3, &e));
    for (size_t k = 0; k < m->n_params; k++)
        for (uint64_t i = 0; i < m->params[k].n && m->params[k].desc.rank == 2; i++)
            model_host_value(&m->params[k])[i] *= 10;
    return m;
}

#define MAX_PARAMS 32
static const enum dtype some_types[] = {DT_Q4_0, DT_Q5_1, DT_IQ4_NL, DT_MXFP4, DT_F16, DT_Q4_1, DT_F32, DT_Q8_0};

static void give_types(const struct model *m, enum dtype types[MAX_PARAMS]) {
    size_t n = 0;
    assert_true(m->n_params <= MAX_PARAMS);
    for (size_t i = 0; i < m->n_params; i++)
        types[i] = model_role_is_matrix(m->params[i].slot.role) ? some_types[n++ % COUNT_OF(some_types)] : DT_F32;
}

struct run {
    struct sample s, held;
    struct knowledge_format f;
    struct distill_options o;
    enum dtype types[MAX_PARAMS];
    int fd, eval;
    struct stream_reader *reader;
};

static int open_eval(void *ctx, struct stream_reader **data, struct err *e) {
    struct run *r = ctx;
    stream_reader_free(r->reader);
    r->reader = NULL;
    lseek(r->eval, 0, SEEK_SET);
    int rc = stream_reader_open(&r->reader, r->eval, "held out", STREAM_ANY, e);
    *data = r->reader;
    return rc;
}

static void run_init(struct run *r) {
    struct err e;
    struct model *m = wide_student();
    *r = (struct run){.s = sample_new(20, 12, VOCAB, 21), .held = sample_new(9, 12, VOCAB, 5)};
    r->f = format_of("sample:20", VOCAB);
    OK(encode_sample(&r->s, &r->f, 0, 11, 11, &r->fd, &e));
    OK(encode_sample(&r->held, &r->f, 0, 7, 7, &r->eval, &e));
    lseek(r->eval, 0, SEEK_SET);
    OK(stream_reader_open(&r->reader, r->eval, "held out", STREAM_ANY, &e));
    OK(knowledge_meta_get(stream_reader_meta(r->reader), &r->f, &e));
    give_types(m, r->types);
    model_free(m);
    r->o = options_of("kl ce:weight=0.3", &r->f);
    r->o.micro_tokens = 15;
    r->o.train.quantize = (struct train_quantization){.types = r->types, .refit = 3};
}

static void run_release(struct run *r) {
    stream_reader_free(r->reader);
    close(r->fd);
    close(r->eval);
    sample_free(&r->s);
    sample_free(&r->held);
}

static struct trainer *begin(const struct run *r) {
    struct err e;
    struct trainer *t;
    OK(trainer_new(&t, wide_student(), &r->o, &r->f, &e));
    return t;
}

static void end(struct trainer *t) {
    struct model *m = t->m;
    trainer_free(t);
    model_free(m);
}

static int saved(const struct model *m) {
    struct err e;
    struct stream_writer *w;
    int fd = memory_file();
    OK(stream_writer_open(&w, fd, "model", &(struct stream_write_options){0}, &e));
    OK(model_save(m, w, 0, &e));
    OK(stream_writer_finish(w, NULL, &e));
    stream_writer_free(w);
    lseek(fd, 0, SEEK_SET);
    return fd;
}

static struct model *loaded(int fd) {
    struct err e;
    struct stream_reader *r;
    struct model *m;
    lseek(fd, 0, SEEK_SET);
    OK(stream_reader_open(&r, fd, "model", STREAM_MODEL, &e));
    OK(model_load(&m, kernel_cpu(), r, WEIGHTS_F32, &e));
    stream_reader_free(r);
    return m;
}

/* The values of a parameter that a forward pass reads. */
static const float *read_by_passes(const struct model_param *p) {
    return kernel_host(p->grid ? p->grid->forward : p->value, p->n);
}

static void what_is_stored_is_what_the_last_pass_read(void **state) {
    (void)state;
    struct err e;
    struct run r;
    run_init(&r);
    for (uint64_t steps = 0; steps <= 7; steps++) {
        struct trainer *t = begin(&r);
        OK(train_to(t, r.fd, steps, &e));
        float *before[MAX_PARAMS];
        for (size_t i = 0; i < t->m->n_params; i++) {
            const struct model_param *p = &t->m->params[i];
            assert_true((p->grid != NULL) == (r.types[i] != DT_F32));
            before[i] = malloc(p->n * sizeof(float));
            memcpy(before[i], read_by_passes(p), p->n * sizeof(float));
        }
        OK(trainer_finish(t, &e));
        int fd = saved(t->m);
        struct model *m = loaded(fd);
        for (size_t i = 0; i < m->n_params; i++) {
            const struct model_param *p = &m->params[i];
            assert_int_equal(p->desc.dtype, r.types[i]);
            assert_memory_equal(model_host_value(p), before[i], p->n * sizeof(float));
            free(before[i]);
        }
        model_free(m);
        close(fd);
        end(t);
    }
    run_release(&r);
}

/* The first step must have the loss and gradient, to the bit, of a student whose weights are the grid's. */
static void gradients_are_those_at_the_grid(void **state) {
    (void)state;
    struct err e;
    struct run r;
    run_init(&r);
    struct trainer *t = begin(&r), *plain_one;
    struct model *m = wide_student();
    for (size_t i = 0; i < m->n_params; i++)
        memcpy(model_host_value(&m->params[i]), read_by_passes(&t->m->params[i]), m->params[i].n * sizeof(float));
    r.o.train.quantize.types = NULL;
    OK(trainer_new(&plain_one, m, &r.o, &r.f, &e));
    OK(train_to(t, r.fd, 1, &e));
    OK(train_to(plain_one, r.fd, 1, &e));
    assert_true(t->progress.loss == plain_one->progress.loss);
    assert_true(t->progress.grad_norm == plain_one->progress.grad_norm);
    /* the step moved the master weights from their own values */
    for (size_t i = 0; i < m->n_params; i++) {
        const struct param *p = &t->set.params[i], *q = &plain_one->set.params[i];
        assert_memory_equal(kernel_host(p->moments[0], p->n), kernel_host(q->moments[0], q->n), p->n * sizeof(float));
        bool coarse =
            t->m->params[i].grid && memcmp(kernel_host(p->value, p->n), kernel_host(q->value, q->n), p->n * 4);
        assert_true(coarse == (r.types[i] != DT_F32));
    }
    end(t);
    end(plain_one);
    run_release(&r);
}

static void check_resumed(struct run *r) {
    struct err e;
    struct trainer *whole = begin(r);
    uint64_t steps = r->o.plan.now.steps;
    OK(train_to(whole, r->fd, steps, &e));
    OK(trainer_finish(whole, &e));
    struct buf wanted = contents(saved(whole->m));
    for (uint64_t k = 0; k <= steps; k++) {
        struct trainer *first = begin(r), *second = begin(r);
        OK(train_to(first, r->fd, k, &e));
        int fd = save_checkpoint(first);
        end(first);
        for (size_t i = 0; i < second->set.n_grids; i++) /* everything must come from the checkpoint */
            memset(second->set.grids[i].now.blocks, 0, 16);
        OK(restore_checkpoint(second, fd, &e));
        OK(train_to(second, r->fd, steps, &e));
        OK(trainer_finish(second, &e));
        struct buf got = contents(saved(second->m));
        assert_int_equal(got.len, wanted.len);
        assert_memory_equal(got.data, wanted.data, wanted.len);
        buf_release(&got);
        end(second);
        close(fd);
    }
    buf_release(&wanted);
    end(whole);
}

static void resumed_runs_end_in_the_same_blocks(void **state) {
    (void)state;
    const char *const frozen[] = {"embed*"};
    struct run r;
    run_init(&r);
    check_resumed(&r);
    r.o.train.quantize.refit = 0;
    r.o.train.ema = 0.9;
    check_resumed(&r);
    r.o.precision = DT_BF16;
    check_resumed(&r);
    r.o.train.ema = 0;
    r.o.train.frozen = frozen, r.o.train.n_frozen = 1;
    for (size_t i = 0; i < MAX_PARAMS; i++) /* the checkpoint has none of the embedding */
        if (!i) assert_int_equal(r.types[i], DT_Q4_0);
    r.types[0] = DT_F32;
    check_resumed(&r);
    run_release(&r);
}

/* Evaluations must judge the model that is written, be it the last state, the average or the best. */
static void evaluations_judge_what_is_written(void **state) {
    (void)state;
    struct err e;
    for (int how = 0; how < 4; how++) {
        struct run r;
        struct trainer *judge;
        run_init(&r);
        r.o.eval = (struct distill_eval){.open = open_eval, .ctx = &r, .format = &r.f, .every = 1};
        r.o.train.ema = how & 1 ? 0.7 : 0;
        r.o.train.keep_best = how & 2;
        r.o.plan.now.lr = r.o.plan.now.lr_min = 1; /* too large: the loss rises */
        struct trainer *t = begin(&r);
        for (uint64_t k = 1; k <= 7; k++) {
            OK(train_to(t, r.fd, k, &e));
            OK(trainer_evaluate(t, &e));
        }
        double value = t->progress.eval.values[0].value;
        if (how & 2) {
            assert_true(t->progress.eval.best_step < 7);
            value = t->progress.eval.best;
        }
        OK(trainer_finish(t, &e));
        int fd = saved(t->m);
        end(t);
        struct model *m = loaded(fd);
        close(fd);
        r.o.train.quantize.types = NULL;
        r.o.train.ema = 0;
        OK(trainer_new(&judge, m, &r.o, &r.f, &e));
        judge->progress.step = 1;
        OK(trainer_evaluate(judge, &e));
        assert_true(judge->progress.eval.values[0].value == value);
        end(judge);
        run_release(&r);
    }
}

static void what_cannot_be_is_refused(void **state) {
    (void)state;
    struct err e;
    struct run r;
    struct trainer *t = NULL;
    run_init(&r);
    struct model *m = wide_student();
    struct model_param *q = model_param(m, ROLE_Q, 0);
    assert_int_equal(r.types[q - m->params], DT_Q5_1);
    model_host_value(q)[5] = 0;
    r.o.train.keep_mask = true;
    assert_int_equal(trainer_new(&t, m, &r.o, &r.f, &e), ERR_USAGE);
    assert_string_equal(e.msg,
                        "--keep-mask: tensor 'layers.0.attn.q.weight' is to be q5_1, whose blocks may have no 0");
    r.o.train.keep_mask = false;
    model_host_value(q)[5] = 1e30f;
    assert_int_equal(trainer_new(&t, m, &r.o, &r.f, &e), ERR_DATA);
    assert_string_equal(e.msg, "tensor 'layers.0.attn.q.weight': element 5 is 1e+30: q5_1 cannot hold it");
    model_free(m);

    t = begin(&r);
    OK(train_to(t, r.fd, 2, &e));
    int fd = save_checkpoint(t);
    end(t);
    r.types[0] = DT_Q8_0;
    t = begin(&r);
    assert_int_equal(restore_checkpoint(t, fd, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "the checkpoint was made with quantize xxh3:"));
    end(t);
    close(fd);
    run_release(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_stored_is_what_the_last_pass_read),
        cmocka_unit_test(gradients_are_those_at_the_grid),
        cmocka_unit_test(resumed_runs_end_in_the_same_blocks),
        cmocka_unit_test(evaluations_judge_what_is_written),
        cmocka_unit_test(what_cannot_be_is_refused),
    };
    return cmocka_run_group_tests_name("distill_quantize", tests, NULL, NULL);
}
