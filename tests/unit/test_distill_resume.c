/* Tests of checkpoints: a run interrupted after any step and resumed ends in the same bytes; a checkpoint of another
 * run is refused. */
#include "tests/unit/distill_samples.h"

static void assert_same_array(struct kernel_array a, struct kernel_array b, size_t n) {
    assert_int_equal(a.dtype, b.dtype);
    assert_true(kernel_has_data(a) == kernel_has_data(b));
    if (kernel_has_data(a)) assert_memory_equal(kernel_host(a, n), kernel_host(b, n), kernel_array_bytes(a.dtype, n));
}

static void assert_same_run(struct trainer *a, struct trainer *b) {
    for (size_t i = 0; i < a->m->n_params; i++)
        assert_memory_equal(model_host_value(&a->m->params[i]), model_host_value(&b->m->params[i]),
                            a->m->params[i].n * sizeof(float));
    assert_int_equal(a->set.n, b->set.n);
    for (size_t i = 0; i < a->set.n; i++) {
        const struct param *p = &a->set.params[i], *q = &b->set.params[i];
        assert_same_array(p->value, q->value, p->n);
        assert_same_array(p->average, q->average, p->n);
        for (size_t k = 0; k < TRAIN_MAX_MOMENTS; k++) assert_same_array(p->moments[k], q->moments[k], p->n);
    }
    assert_memory_equal(a->progress.group_norm, b->progress.group_norm, sizeof a->progress.group_norm);
    assert_int_equal(a->progress.step, b->progress.step);
    assert_int_equal(a->progress.epoch, b->progress.epoch);
    assert_int_equal(a->progress.positions, b->progress.positions);
    assert_int_equal(a->progress.n_losses, b->progress.n_losses);
    for (size_t i = 0; i < a->progress.n_losses; i++)
        assert_true(a->progress.losses[i].value == b->progress.losses[i].value);
}

/* The fixture: about three steps of data, in batches that end inside sequences. */
struct run {
    struct sample s;
    struct knowledge_format f;
    struct distill_options o;
    int fd;
};

static void run_init(struct run *r) {
    struct err e;
    r->s = sample_new(20, 12, VOCAB, 21);
    r->f = format_of("sample:20", VOCAB);
    OK(encode_sample(&r->s, &r->f, 0, 11, 11, &r->fd, &e));
    r->o = options_of("kl ce:weight=0.3", &r->f);
    r->o.micro_tokens = 15;
}

static void run_release(struct run *r) {
    close(r->fd);
    sample_free(&r->s);
}

static struct trainer *run_begin(const struct run *r, uint64_t seed) {
    struct err e;
    struct trainer *t;
    OK(trainer_new(&t, student_new(true, seed), &r->o, &r->f, &e));
    return t;
}

static void run_end(struct trainer *t) {
    struct model *m = t->m;
    trainer_free(t);
    model_free(m);
}

/* Overwrites all weights that are trained: the restore must bring them back from the checkpoint. */
static void spoil(struct trainer *t) {
    for (size_t i = 0; i < t->set.n; i++) {
        const struct param *p = &t->set.params[i];
        *(float *)kernel_host(p->value, p->n) += 1;
        if (kernel_has_data(p->average)) *(float *)kernel_host(p->average, p->n) += 1;
    }
}

static void check_resumed(enum dtype precision, const struct train_options *how) {
    struct err e;
    struct run r;
    run_init(&r);
    r.o.precision = precision;
    r.o.train = *how;
    struct trainer *whole = run_begin(&r, 1);
    OK(train_to(whole, r.fd, r.o.plan.now.steps, &e));
    assert_true(whole->progress.epoch >= 1); /* the data is read more than once */
    for (uint64_t k = 0; k <= r.o.plan.now.steps; k++) {
        struct trainer *first = run_begin(&r, 1), *second = run_begin(&r, 1);
        OK(train_to(first, r.fd, k, &e));
        int fd = save_checkpoint(first);
        run_end(first);
        spoil(second);
        OK(restore_checkpoint(second, fd, &e));
        OK(train_to(second, r.fd, r.o.plan.now.steps, &e));
        assert_same_run(whole, second);
        run_end(second);
        close(fd);
    }
    run_end(whole);
    run_release(&r);
}

static void resumed_runs_end_in_the_same_bytes(void **state) {
    (void)state;
    struct knowledge_format f = format_of("sample:20", VOCAB);
    struct train_options how = options_of("kl", &f).train;
    check_resumed(DT_F32, &how);
    how.state = DT_BF16;
    check_resumed(DT_BF16, &how);
}

static void so_do_those_with_all_of_lib_train(void **state) {
    (void)state;
    struct err e;
    struct knowledge_format f = format_of("sample:20", VOCAB);
    struct train_options how = options_of("kl", &f).train;
    struct train_group groups[2];
    const char *const frozen[] = {"embed*"};
    OK(train_optimizer_parse("muon", &how, &e));
    OK(train_group_parse("*.ffn.*:lr=0.5", &groups[0], &e));
    OK(train_group_parse("*norm*:decay=0.1", &groups[1], &e));
    how.ema = 0.9, how.groups = groups, how.n_groups = 2, how.frozen = frozen, how.n_frozen = 1;
    check_resumed(DT_F32, &how);
    how.state = DT_BF16;
    check_resumed(DT_BF16, &how);
    how = options_of("kl", &f).train;
    how.ema = 0.9;
    OK(train_lora_parse("2:target=*.attn.*", &how.lora, &e));
    check_resumed(DT_F32, &how);
    how.state = DT_BF16;
    check_resumed(DT_BF16, &how);
}

static int start(struct trainer *t, int fd, struct err *e) {
    struct stream_reader *r;
    lseek(fd, 0, SEEK_SET);
    int rc = stream_reader_open(&r, fd, "state", STREAM_CHECKPOINT, e);
    if (!rc) rc = trainer_start(t, r, e);
    stream_reader_free(r);
    return rc;
}

/* A second run that starts from the moments of a first one continues its count of updates, and does so when resumed. */
static void another_runs_moments_begin_a_run(void **state) {
    (void)state;
    struct err e;
    struct run r;
    run_init(&r);
    struct trainer *first = run_begin(&r, 1), *second = run_begin(&r, 2), *whole, *cold = run_begin(&r, 2);
    OK(train_to(first, r.fd, 5, &e));
    int fd = save_checkpoint(first), middle;
    OK(start(second, fd, &e));
    for (size_t i = 0; i < second->set.n; i++) {
        const struct param *p = &second->set.params[i];
        assert_same_array(p->moments[1], first->set.params[i].moments[1], p->n);
    }
    assert_int_equal(second->set.updates, 5);
    OK(train_to(second, r.fd, 3, &e));
    middle = save_checkpoint(second);
    run_end(second);
    second = run_begin(&r, 2);
    OK(start(second, fd, &e));
    OK(train_to(second, r.fd, 6, &e));
    assert_int_equal(restore_checkpoint(cold, middle, &e), ERR_DATA); /* is of a run that began otherwise */
    assert_non_null(strstr(e.msg, "made with start-state xxh3:"));
    whole = run_begin(&r, 2);
    OK(start(whole, fd, &e));
    OK(restore_checkpoint(whole, middle, &e));
    assert_int_equal(whole->set.updates, 5);
    OK(train_to(whole, r.fd, 6, &e));
    assert_same_run(second, whole);
    run_end(whole);
    r.o.train.optimizer = &train_optimizers[1];
    whole = run_begin(&r, 1);
    assert_int_equal(start(whole, fd, &e), ERR_DATA);
    assert_string_equal(e.msg, "state: the state is of adamw, this run has muon");
    run_end(whole);
    run_end(first);
    run_end(second);
    run_end(cold);
    close(fd);
    close(middle);
    run_release(&r);
}

/* Saving must not affect the run that is saved. */
static void saving_changes_nothing(void **state) {
    (void)state;
    struct err e;
    struct run r;
    run_init(&r);
    struct trainer *whole = run_begin(&r, 1), *saved = run_begin(&r, 1);
    OK(train_to(whole, r.fd, 3, &e));
    OK(train_to(saved, r.fd, 3, &e));
    struct buf a = contents(save_checkpoint(saved)), b = contents(save_checkpoint(saved));
    assert_int_equal(a.len, b.len);
    assert_memory_equal(a.data, b.data, a.len);
    assert_same_run(whole, saved);
    buf_release(&a);
    buf_release(&b);
    run_end(whole);
    run_end(saved);
    run_release(&r);
}

/* A checkpoint of the fixture's run at step `step`. */
static int checkpoint_at(struct run *r, uint64_t step) {
    struct err e;
    struct trainer *t = run_begin(r, 1);
    OK(train_to(t, r->fd, step, &e));
    int fd = save_checkpoint(t);
    run_end(t);
    return fd;
}

static void other_options_are_refused(void **state) {
    (void)state;
    struct err e;
    struct run r;
    run_init(&r);
    int fd = checkpoint_at(&r, 3);
    r.o.train.weight_decay = 0.02;
    struct trainer *t = run_begin(&r, 1);
    assert_int_equal(restore_checkpoint(t, fd, &e), ERR_DATA);
    assert_string_equal(e.msg, "checkpoint: the checkpoint was made with weight-decay 0.10000000000000001, this run "
                               "has 0.02");
    run_end(t);
    r.o.train.weight_decay = 0.1;
    r.f.temperature = 2;
    t = run_begin(&r, 1);
    assert_int_equal(restore_checkpoint(t, fd, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "data-temperature"));
    run_end(t);
    close(fd);
    run_release(&r);
}

/* A resumed run with a changed schedule must end in the same bytes as a run that had both phases from the start. */
static void other_schedules_go_on(void **state) {
    (void)state;
    struct err e;
    struct run r;
    run_init(&r);
    int fd = checkpoint_at(&r, 3), fd2;
    r.o.plan.now = (struct train_schedule){.lr = 0.004, .lr_min = 0.002, .warmup = 0, .steps = 12};
    struct trainer *t = run_begin(&r, 1);
    OK(restore_checkpoint(t, fd, &e));
    assert_int_equal(trainer_plan(t)->n_past, 1);
    assert_int_equal(trainer_plan(t)->past[0].until, 3);
    assert_true(trainer_plan(t)->past[0].schedule.lr == 0.01);
    OK(train_to(t, r.fd, 7, &e));
    fd2 = save_checkpoint(t);
    run_end(t);
    r.o.plan.now.steps = 10; /* changed again, to fewer steps */
    t = run_begin(&r, 1);
    OK(restore_checkpoint(t, fd2, &e));
    assert_int_equal(trainer_plan(t)->n_past, 2);
    OK(train_to(t, r.fd, 10, &e));
    r.o.plan = *trainer_plan(t);
    struct trainer *whole = run_begin(&r, 1);
    OK(train_to(whole, r.fd, 10, &e));
    assert_same_run(whole, t);
    run_end(whole);
    run_end(t);
    r.o.plan = (struct train_plan){.now = {.lr = 0.01, .lr_min = 0.001, .warmup = 2, .steps = 2}};
    t = run_begin(&r, 1); /* fewer steps than it has taken */
    assert_int_equal(restore_checkpoint(t, fd, &e), ERR_USAGE);
    assert_string_equal(e.msg, "checkpoint: the checkpoint is at step 3, this run has 2");
    run_end(t);
    close(fd2);
    close(fd);
    run_release(&r);
}

static bool stop_third_time(void *ctx) {
    return ++*(int *)ctx >= 3;
}

/* Stopped within a step, or while data is skipped, the state is that after the last whole step. */
static void a_stopped_step_is_not_kept(void **state) {
    (void)state;
    struct err e;
    struct run r;
    bool stepped;
    int asked = 0, fd;
    run_init(&r);
    struct trainer *whole = run_begin(&r, 1), *t = run_begin(&r, 1);
    OK(train_to(whole, r.fd, r.o.plan.now.steps, &e));
    OK(train_to(t, r.fd, 1, &e));
    fd = save_checkpoint(t);
    trainer_stop_when(t, stop_third_time, &asked);
    OK(trainer_step(t, false, &stepped, &e));
    assert_false(stepped);
    assert_true(asked == 3 && t->step_positions > 0);
    struct buf before = contents(fd), after = contents(save_checkpoint(t));
    assert_int_equal(before.len, after.len);
    assert_memory_equal(before.data, after.data, after.len);
    run_end(t);
    t = run_begin(&r, 1);
    fd = file_of(after.data, after.len);
    OK(restore_checkpoint(t, fd, &e));
    buf_release(&before);
    before = contents(save_checkpoint(t)); /* before any data */
    assert_int_equal(before.len, after.len);
    assert_memory_equal(before.data, after.data, after.len);
    OK(train_to(t, r.fd, r.o.plan.now.steps, &e));
    assert_same_run(whole, t);
    run_end(t);
    run_end(whole);
    buf_release(&before);
    buf_release(&after);
    close(fd);
    run_release(&r);
}

/* A checkpoint after a short step, where the data ended, is refused once the data has grown; so is data that differs
 * in the second epoch. */
static void data_that_changes_is_noticed(void **state) {
    (void)state;
    struct err e;
    struct run r;
    struct trainer *t;
    run_init(&r);
    r.o.batch_tokens = 1000; /* one step takes all data */
    struct sample part = r.s;
    part.n_seqs = 15;
    part.n_positions = 0;
    for (size_t i = 0; i < part.n_seqs; i++) part.n_positions += part.lengths[i];
    int less, fd;
    OK(encode_sample(&part, &r.f, 0, 100, 100, &less, &e));
    t = run_begin(&r, 1);
    OK(train_to(t, less, 1, &e));
    fd = save_checkpoint(t);
    run_end(t);
    t = run_begin(&r, 1);
    OK(restore_checkpoint(t, fd, &e));
    assert_int_equal(train_on(t, r.fd, 5, &e), ERR_DATA);
    assert_string_equal(e.msg, "the data has grown: it ended after 15 sequences when it was read before");
    run_end(t);
    t = run_begin(&r, 1);
    OK(restore_checkpoint(t, fd, &e));
    OK(train_to(t, less, 2, &e));
    run_end(t);
    close(fd);

    t = run_begin(&r, 1); /* shorter the second time, and other tokens */
    OK(train_on(t, r.fd, 2, &e));
    assert_int_equal(train_on(t, less, 3, &e), ERR_DATA);
    assert_string_equal(e.msg, "the data ends after 15 sequences: there were 20 when it was read before");
    run_end(t);
    t = run_begin(&r, 1);
    OK(train_on(t, less, 2, &e));
    close(less);
    part.tokens[0] ^= 1;
    OK(encode_sample(&part, &r.f, 0, 100, 100, &less, &e));
    assert_int_equal(train_on(t, less, 3, &e), ERR_DATA);
    assert_string_equal(e.msg, "the data is not what it was when it was read before");
    run_end(t);
    close(less);
    run_release(&r);
}

static void other_data_is_refused(void **state) {
    (void)state;
    struct err e;
    struct run r;
    run_init(&r);
    struct trainer *t = run_begin(&r, 1);
    OK(train_to(t, r.fd, 2, &e));
    int fd = save_checkpoint(t), other;
    run_end(t);
    r.s.tokens[1] ^= 1;
    OK(encode_sample(&r.s, &r.f, 0, 100, 100, &other, &e));
    t = run_begin(&r, 1);
    OK(restore_checkpoint(t, fd, &e));
    assert_int_equal(train_on(t, other, r.o.plan.now.steps, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "not the data of the checkpoint"));
    run_end(t);
    close(other);
    r.s.n_seqs = 2; /* data that ends too early */
    r.s.n_positions = r.s.lengths[0] + r.s.lengths[1];
    OK(encode_sample(&r.s, &r.f, 0, 100, 100, &other, &e));
    t = run_begin(&r, 1);
    OK(restore_checkpoint(t, fd, &e));
    assert_int_equal(train_on(t, other, r.o.plan.now.steps, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "the data ends after 2 sequences"));
    run_end(t);
    close(other);
    close(fd);
    run_release(&r);
}

static void other_students_are_refused(void **state) {
    (void)state;
    struct err e;
    struct run r;
    run_init(&r);
    struct trainer *t = run_begin(&r, 1);
    int fd = save_checkpoint(t);
    run_end(t);
    struct model *m = student_new(false, 1); /* has its own head: one tensor more */
    OK(trainer_new(&t, m, &r.o, &r.f, &e));
    assert_int_equal(restore_checkpoint(t, fd, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "made with student xxh3:"));
    run_end(t);
    close(fd);
    run_release(&r);
}

/* A truncated checkpoint must fail the stream's own checks. */
static void cut_checkpoints_are_refused(void **state) {
    (void)state;
    struct err e;
    struct run r;
    run_init(&r);
    struct trainer *t = run_begin(&r, 1);
    struct buf all = contents(save_checkpoint(t));
    for (size_t n = 0; n < all.len; n += 997) {
        int fd = file_of(all.data, n);
        assert_int_equal(restore_checkpoint(t, fd, &e), ERR_DATA);
        close(fd);
    }
    buf_release(&all);
    run_end(t);
    run_release(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(resumed_runs_end_in_the_same_bytes),
        cmocka_unit_test(so_do_those_with_all_of_lib_train),
        cmocka_unit_test(another_runs_moments_begin_a_run),
        cmocka_unit_test(saving_changes_nothing),
        cmocka_unit_test(other_options_are_refused),
        cmocka_unit_test(other_data_is_refused),
        cmocka_unit_test(other_students_are_refused),
        cmocka_unit_test(cut_checkpoints_are_refused),
        cmocka_unit_test(other_schedules_go_on),
        cmocka_unit_test(a_stopped_step_is_not_kept),
        cmocka_unit_test(data_that_changes_is_noticed),
    };
    return cmocka_run_group_tests_name("distill_resume", tests, NULL, NULL);
}
