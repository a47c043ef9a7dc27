/* Tests of evaluations within a run: wherever it is stopped - between steps, within one, or within an evaluation -
 * resuming ends in the same result. */
#include "tests/unit/distill_samples.h"

/* A run over two streams in memory that saves a checkpoint after every step. */
struct whole_run {
    struct sample s, held;
    struct knowledge_format f;
    struct distill_options o;
    int data, eval, checkpoint; /* checkpoint -1: none yet */
    struct stream_reader *readers[2];
    uint64_t asked, stop_at; /* 0: never */
};

static int open_stream(struct stream_reader **r, int fd, struct err *e) {
    stream_reader_free(*r);
    *r = NULL;
    lseek(fd, 0, SEEK_SET);
    return stream_reader_open(r, fd, "in", STREAM_ANY, e);
}

static int open_data(void *ctx, struct stream_reader **data, struct err *e) {
    struct whole_run *w = ctx;
    int rc = open_stream(&w->readers[0], w->data, e);
    *data = w->readers[0];
    return rc;
}

static int open_eval(void *ctx, struct stream_reader **data, struct err *e) {
    struct whole_run *w = ctx;
    int rc = open_stream(&w->readers[1], w->eval, e);
    *data = w->readers[1];
    return rc;
}

static int save(void *ctx, struct trainer *t, struct err *e) {
    struct whole_run *w = ctx;
    struct stream_writer *out;
    if (w->checkpoint >= 0) close(w->checkpoint);
    w->checkpoint = memory_file();
    int rc = stream_writer_open(&out, w->checkpoint, "checkpoint", &(struct stream_write_options){0}, e);
    if (!rc) rc = trainer_save(t, out, e);
    if (!rc) rc = stream_writer_finish(out, NULL, e);
    stream_writer_free(out);
    return rc;
}

static bool stop_wanted(void *ctx) {
    struct whole_run *w = ctx;
    return w->stop_at && ++w->asked >= w->stop_at;
}

static void begin(struct whole_run *w, const char *encoding) {
    struct err e;
    *w = (struct whole_run){.s = sample_new(20, 12, VOCAB, 21), .held = sample_new(9, 12, VOCAB, 5), .checkpoint = -1};
    w->f = format_of(encoding, VOCAB);
    OK(encode_sample(&w->s, &w->f, 0, 11, 11, &w->data, &e));
    OK(encode_sample(&w->held, &w->f, 0, 7, 7, &w->eval, &e));
    OK(open_stream(&w->readers[0], w->data, &e));
    OK(knowledge_meta_get(stream_reader_meta(w->readers[0]), &w->f, &e));
    w->o = options_of("kl ce:weight=0.3", &w->f);
    w->o.micro_tokens = 15;
    w->o.train.ema = 0.6;
    w->o.train.keep_best = true;
    w->o.plan.now =
        (struct train_schedule){.lr = 0.2, .lr_min = 0.2, .warmup = 0, .steps = 14}; /* too large: the loss rises */
    w->o.eval = (struct distill_eval){.open = open_eval, .ctx = w, .format = &w->f, .every = 2, .patience = 50};
}

static void end(struct whole_run *w) {
    for (size_t i = 0; i < 2; i++) stream_reader_free(w->readers[i]);
    if (w->checkpoint >= 0) close(w->checkpoint);
    close(w->data);
    close(w->eval);
    sample_free(&w->s);
    sample_free(&w->held);
}

/* Runs from the checkpoint, if there is one, to the end or until it is stopped; then returns the model as it would
 * be saved. */
static bool run(struct whole_run *w, struct buf *weights, struct distill_progress *p) {
    struct err e;
    struct trainer *t;
    struct model *m = student_new(true, 1);
    OK(trainer_new(&t, m, &w->o, &w->f, &e));
    if (w->checkpoint >= 0) {
        struct stream_reader *r;
        lseek(w->checkpoint, 0, SEEK_SET);
        OK(stream_reader_open(&r, w->checkpoint, "checkpoint", STREAM_CHECKPOINT, &e));
        OK(trainer_restore(t, r, &e));
        stream_reader_free(r);
    }
    struct distill_run d = {.epochs = 100,
                            .format = w->f,
                            .open = open_data,
                            .save = save,
                            .save_every = 1,
                            .stop_wanted = stop_wanted,
                            .ctx = w};
    w->asked = 0;
    OK(distill_run(t, &d, &e));
    trainer_progress(t, p);
    weights->len = 0;
    OK(trainer_finish(t, &e));
    for (size_t i = 0; i < m->n_params; i++)
        OK(buf_append(weights, model_host_value(&m->params[i]), m->params[i].n * sizeof(float), &e));
    trainer_free(t);
    model_free(m);
    return !d.stopped;
}

static void same_evaluation(const struct distill_evaluation *a, const struct distill_evaluation *b) {
    assert_int_equal(a->step, b->step);
    assert_int_equal(a->n, b->n);
    for (size_t i = 0; i < a->n; i++) assert_true(a->values[i].value == b->values[i].value);
    assert_int_equal(a->best_step, b->best_step);
    assert_true(a->best == b->best && a->mark == b->mark);
    assert_int_equal(a->wait, b->wait);
    assert_int_equal(a->longest_wait, b->longest_wait);
}

static void wherever_it_stops(const char *encoding, uint64_t patience) {
    struct whole_run w;
    struct buf whole = {0}, weights = {0};
    struct distill_progress all, p;
    begin(&w, encoding);
    w.o.eval.patience = patience;
    assert_true(run(&w, &whole, &all));
    assert_true(all.eval.best_step > 0 && all.eval.best_step < all.step);
    if (patience < 50) assert_true(all.step < w.o.plan.now.steps && all.eval.wait == patience);
    bool within = false;
    uint64_t stops = 0;
    for (uint64_t at = 1; at < 1000; at++) {
        close(w.checkpoint);
        w.checkpoint = -1;
        w.stop_at = at;
        bool ended = run(&w, &weights, &p);
        within = within || (p.step && p.step % 2 == 0 && p.eval.step != p.step);
        w.stop_at = 0;
        if (!ended) assert_true(run(&w, &weights, &p));
        assert_int_equal(weights.len, whole.len);
        assert_memory_equal(weights.data, whole.data, whole.len);
        same_evaluation(&all.eval, &p.eval);
        if (ended) break;
        stops++;
    }
    assert_true(within && stops > 20); /* some stops were within an evaluation */
    buf_release(&whole);
    buf_release(&weights);
    end(&w);
}

static void a_stopped_run_ends_in_the_same_best_state(void **state) {
    (void)state;
    wherever_it_stops("dense", 50);
    wherever_it_stops("sample:20", 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_stopped_run_ends_in_the_same_best_state)};
    return cmocka_run_group_tests_name("distill_eval", tests, NULL, NULL);
}
