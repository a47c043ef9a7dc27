/*
 * Tests of the trainer: reported losses against f64, what the result may depend on, and that the student learns.
 */
#include "tests/unit/distill_samples.h"

/* ---- losses ------------------------------------------------------------------------------------------------------ */

static int copy_logits(void *ctx, size_t first, size_t rows, size_t vocab, float *host_logits, struct err *e) {
    (void)e;
    memcpy((float *)ctx + first * vocab, host_logits, rows * vocab * sizeof *host_logits);
    return 0;
}

/* The loss that distill.h promises for each encoding, straight from the definition. */
static double kl_of(const struct knowledge_rows *k, const struct knowledge_format *f, const float *teacher, size_t r,
                    const double *p, double temperature) {
    double kl = 0, t[VOCAB], mass_t = 0, mass_p = 0;
    if (f->encoding == KNOW_DENSE) {
        softmax64(t, teacher + r * VOCAB, VOCAB, temperature);
        for (size_t i = 0; i < VOCAB; i++) kl += t[i] * log(t[i] / p[i]);
        return kl;
    }
    for (uint64_t i = k->offset[r]; i < k->offset[r + 1]; i++) {
        kl += k->probs[i] * log((f->encoding == KNOW_SAMPLE ? 1 : k->probs[i]) / p[k->ids[i]]);
        mass_t += k->probs[i];
        mass_p += p[k->ids[i]];
    }
    if (f->encoding == KNOW_TOPK) kl -= mass_t * log(mass_t);
    if (f->encoding == KNOW_GHOST) kl += (1 - mass_t) * log((1 - mass_t) / (1 - mass_p));
    return kl;
}

/* The first step must report the loss of the weights before it. f32 arithmetic: 2e-5. */
static void check_loss(const char *encoding, double temperature) {
    struct err e;
    struct sample s = sample_new(7, 12, VOCAB, 11);
    struct knowledge_format f = format_of(encoding, VOCAB);
    f.temperature = f.encoding == KNOW_DENSE ? 1 : temperature;
    int fd;
    OK(encode_sample(&s, &f, 5, 50, 20, &fd, &e));
    char loss[100];
    snprintf(loss, sizeof loss, "kl:weight=0.7,temperature=%g ce:weight=0.2", temperature);
    struct distill_options o = options_of(loss, &f);
    o.batch_tokens = 10000; /* one step */
    struct knowledge_rows k;
    struct knowledge_format unused;
    OK(decode_all(dup(fd), &k, &unused, &e));

    struct model *m = student_new(true, 1);
    struct grad_tape *tape;
    struct model_input in = {s.n_positions, s.n_seqs, s.tokens, s.lengths};
    float *logits = malloc(s.n_positions * VOCAB * sizeof *logits);
    OK(grad_tape_new(&tape, kernel_cpu(), false, DT_F32, &e));
    OK(model_infer(m, tape, &in, NULL, NULL, copy_logits, logits, &e));
    double kl = 0, ce = 0, n = 0, p[VOCAB];
    for (size_t r = 0; r < s.n_positions; r++) {
        if (k.labels[r] == UINT32_MAX) continue;
        softmax64(p, logits + r * VOCAB, VOCAB, temperature);
        kl += kl_of(&k, &f, s.logits, r, p, temperature);
        softmax64(p, logits + r * VOCAB, VOCAB, 1);
        ce -= log(p[k.labels[r]]);
        n++;
    }
    struct distill_progress got;
    struct buf weights = trained(fd, &o, &f, &got);
    assert_int_equal(got.step, 1);
    assert_int_equal(got.positions, s.n_positions);
    double got_kl = value_of(&got, loss_kl_name(&f)), got_ce = value_of(&got, "ce");
    if (fabs(got_kl - kl / n) > 2e-5) fail_msg("%s: kl %.9g, expected %.9g", encoding, got_kl, kl / n);
    if (fabs(got_ce - ce / n) > 2e-5) fail_msg("%s: ce %.9g, expected %.9g", encoding, got_ce, ce / n);
    assert_true(fabs(got.loss - (0.7 * temperature * temperature * got_kl + 0.2 * got_ce)) < 1e-12);
    buf_release(&weights);
    knowledge_rows_release(&k);
    grad_tape_free(tape);
    model_free(m);
    free(logits);
    close(fd);
    sample_free(&s);
}

static void losses_are_those_of_the_definition(void **state) {
    (void)state;
    static const char *const encodings[] = {"dense", "topk:4", "ghost:4", "sample:30"};
    for (size_t i = 0; i < COUNT_OF(encodings); i++) {
        check_loss(encodings[i], 1);
        check_loss(encodings[i], 2.5);
    }
}

/* What one step reports for the same text and teacher in some encoding. */
static struct distill_progress first_step(const struct sample *s, const char *encoding) {
    struct err e;
    struct knowledge_format f = format_of(encoding, VOCAB);
    struct distill_options o = options_of("kl", &f);
    struct distill_progress p;
    int fd;
    o.batch_tokens = 100000;
    OK(encode_sample(s, &f, 5, 50, 20, &fd, &e));
    struct buf weights = trained(fd, &o, &f, &p);
    buf_release(&weights);
    close(fd);
    return p;
}

/* Mean entropy of the teacher over the positions with a label. */
static double entropy_of(const struct sample *s) {
    double sum = 0, n = 0, t[VOCAB];
    for (size_t i = 0, at = 0; i < s->n_seqs; at += s->lengths[i++])
        for (size_t r = at; r + 1 < at + s->lengths[i]; r++, n++) {
            softmax64(t, s->logits + r * VOCAB, VOCAB, 1);
            for (size_t k = 0; k < VOCAB; k++) sum -= t[k] * log(t[k]);
        }
    return sum / n;
}

/*
 * A loss has the same name in the log only where it is the same number: compares each encoding with the dense one. ce
 * is the same for all. The teacher's term is called kl where it equals the dense one up to rounding to f16; elsewhere
 * its name says how it differs.
 */
static void a_name_means_one_number(void **state) {
    (void)state;
    enum relation { SAME, BELOW, ELSE, ABOVE_BY_ENTROPY };
    static const struct {
        const char *encoding, *name;
        enum relation kl;
    } cells[] = {{"dense", "kl", SAME},
                 {"ghost:1", "kl_lower_bound", BELOW},
                 {"ghost:4", "kl_lower_bound", BELOW},
                 {"topk:1", "kl_truncated", ELSE},
                 {"topk:4", "kl_truncated", ELSE},
                 {"sample:2", "teacher_ce", ABOVE_BY_ENTROPY},
                 {"sample:100", "teacher_ce", ABOVE_BY_ENTROPY}};
    struct sample s = sample_new(100, 24, VOCAB, 21);
    struct distill_progress whole = first_step(&s, "dense");
    double dense = value_of(&whole, "kl"), ce = value_of(&whole, "ce"), entropy = entropy_of(&s);
    for (size_t i = 0; i < COUNT_OF(cells); i++) {
        struct knowledge_format f = format_of(cells[i].encoding, VOCAB);
        struct distill_progress p = first_step(&s, cells[i].encoding);
        double kl = value_of(&p, cells[i].name), p_ce = value_of(&p, "ce");
        assert_string_equal(loss_kl_name(&f), cells[i].name);
        if (fabs(p_ce - ce) > 1e-9) fail_msg("%s: ce %g, dense %g", cells[i].encoding, p_ce, ce);
        if (!(kl >= 0)) fail_msg("%s: %s is %g", cells[i].encoding, cells[i].name, kl);
        /* 1200 positions, each with a standard deviation of about 2 per draw: 0.08 with two draws; three standard
         * errors are 0.13 */
        bool holds = cells[i].kl == SAME               ? fabs(kl - dense) < 1e-6
                     : cells[i].kl == BELOW            ? kl < dense + 1e-3 && kl > 0.1 * dense
                     : cells[i].kl == ABOVE_BY_ENTROPY ? fabs(kl - dense - entropy) < 0.13
                                                       : fabs(kl - dense) > 0.1;
        if (!holds) fail_msg("%s: %s is %g, kl of all %g", cells[i].encoding, cells[i].name, kl, dense);
    }
    assert_null(loss_kl_name(&plain));
    sample_free(&s);
}

/* ---- steps ------------------------------------------------------------------------------------------------------- */

static void assert_weights(struct buf *a, struct buf *b, double tolerance) {
    const float *x = (float *)a->data, *y = (float *)b->data;
    assert_int_equal(a->len, b->len);
    for (size_t i = 0; i < a->len / sizeof *x; i++)
        if (!(fabsf(x[i] - y[i]) <= tolerance)) fail_msg("weight %zu: %.9g and %.9g", i, x[i], y[i]);
    buf_release(b);
}

/* The weights must depend neither on how the stream is cut nor on threads. */
static void weights_depend_on_sequences_only(void **state) {
    (void)state;
    struct sample s = sample_new(30, 20, VOCAB, 12);
    struct distill_options o = options_of("ce", &plain);
    o.micro_tokens = 25;
    int whole = tokens_file(&s, s.n_positions), pieces = tokens_file(&s, 7);
    parallel_set_threads(2);
    struct buf a = trained(whole, &o, &plain, NULL), b = trained(pieces, &o, &plain, NULL);
    assert_weights(&a, &b, 0);
    parallel_set_threads(1);
    b = trained(pieces, &o, &plain, NULL);
    assert_weights(&a, &b, 0);
    buf_release(&a);
    close(whole);
    close(pieces);
    sample_free(&s);
}

/*
 * Many small passes add up to one large one. The sums differ in the order of their terms, that is by the rounding of
 * f32, about 1e-7 of a gradient of norm 1. AdamW would amplify that where a gradient is near 0; so eps is large here:
 * updates are then linear in the gradient, and weights after eight steps agree to 1e-6.
 */
static void accumulated_gradients_add_up(void **state) {
    (void)state;
    struct sample s = sample_new(60, 20, VOCAB, 13);
    struct distill_options o = options_of("ce", &plain);
    struct distill_progress p, q;
    o.batch_tokens = 80;
    o.train.eps = 1;
    o.plan.now.lr = 0.5;
    int fd = tokens_file(&s, 100);
    struct buf a = trained(fd, &o, &plain, &p);
    o.micro_tokens = 1; /* one sequence at a time */
    struct buf b = trained(fd, &o, &plain, &q);
    assert_weights(&a, &b, 1e-6);
    assert_true(fabs(value_of(&p, "ce") - value_of(&q, "ce")) < 1e-6 &&
                fabs(p.grad_norm - q.grad_norm) < 1e-5 * p.grad_norm);
    buf_release(&a);
    close(fd);
    sample_free(&s);
}

/* With activations and moments in bf16, losses on the way down stay within 1% of those in f32. */
static void bf16_learns_as_f32(void **state) {
    (void)state;
    struct sample s = sample_new(60, 20, VOCAB, 15);
    struct distill_options o = options_of("ce", &plain);
    int fd = tokens_file(&s, 100);
    for (o.plan.now.steps = 5; o.plan.now.steps <= 35; o.plan.now.steps += 10) {
        struct distill_progress f32, bf16;
        o.precision = o.train.state = DT_F32;
        struct buf a = trained(fd, &o, &plain, &f32);
        o.precision = o.train.state = DT_BF16;
        struct buf b = trained(fd, &o, &plain, &bf16);
        assert_int_equal(f32.step, bf16.step);
        double low = value_of(&bf16, "ce"), high = value_of(&f32, "ce");
        if (fabs(low / high - 1) > 0.01) fail_msg("step %d: cross-entropy %.5f, in f32 %.5f", (int)f32.step, low, high);
        assert_memory_not_equal(a.data, b.data, a.len);
        buf_release(&a);
        buf_release(&b);
    }
    close(fd);
    sample_free(&s);
}

static void counted_steps_are_the_steps_taken(void **state) {
    (void)state;
    struct sample s = sample_new(37, 20, VOCAB, 14);
    for (size_t cut = 5; cut < 400; cut = cut * 3 + 1) {
        struct err e;
        struct stream_reader *r;
        struct distill_progress p;
        struct distill_extent x;
        struct distill_options o = options_of("ce", &plain);
        int fd = tokens_file(&s, cut);
        OK(stream_reader_open(&r, fd, "in", STREAM_ANY, &e));
        o.micro_tokens = 25;
        OK(distill_count(r, &o, &x, &e));
        stream_reader_free(r);
        o.plan.now.steps = 1000;
        struct buf weights = trained(fd, &o, &plain, &p);
        assert_int_equal(p.positions, s.n_positions);
        assert_int_equal(x.positions, s.n_positions);
        assert_int_equal(x.steps, p.step);
        assert_true(x.largest_pass <= 25 && x.passes * 25 >= x.positions && x.passes >= x.steps);
        assert_int_equal(p.epoch, 1);
        buf_release(&weights);
        close(fd);
    }
    sample_free(&s);
}

/* Decay must change matrices, but neither unused rows of the embedding nor norms: with zero gradients they keep
 * their bits. */
static void decay_leaves_embedding_and_norms_alone(void **state) {
    (void)state;
    struct err e;
    uint32_t lengths[20], tokens[20];
    for (size_t i = 0; i < 20; i++) lengths[i] = 1, tokens[i] = 3; /* no labels: all gradients are 0 */
    struct sample s = {20, 20, VOCAB, lengths, tokens, NULL};
    struct distill_options o = options_of("ce", &plain);
    o.batch_tokens = 5;
    struct trainer *t;
    struct model *m = student_new(false, 1), *before = student_new(false, 1);
    int fd = tokens_file(&s, 20);
    OK(trainer_new(&t, m, &o, &plain, &e));
    OK(train_on(t, fd, 4, &e));
    for (size_t i = 0; i < m->n_params; i++) {
        enum model_role role = m->params[i].slot.role;
        bool same = !memcmp(model_host_value(&m->params[i]), model_host_value(&before->params[i]),
                            m->params[i].n * sizeof(float));
        assert_int_equal(same, !model_role_is_matrix(role) || role == ROLE_EMBED);
    }
    trainer_free(t);
    model_free(m);
    model_free(before);
    close(fd);
}

/* The distribution after the last token of a sequence has no label and must not contribute. */
static void last_positions_do_not_teach(void **state) {
    (void)state;
    struct err e;
    struct sample s = sample_new(8, 12, VOCAB, 17);
    struct knowledge_format f = format_of("dense", VOCAB);
    struct distill_options o = options_of("kl", &f);
    int fd, other;
    OK(encode_sample(&s, &f, 0, 100, 100, &fd, &e));
    for (size_t i = 0, at = 0; i < s.n_seqs; i++) s.logits[(at += s.lengths[i]) * VOCAB - 3] += 5;
    OK(encode_sample(&s, &f, 0, 100, 100, &other, &e));
    struct buf a = trained(fd, &o, &f, NULL), b = trained(other, &o, &f, NULL);
    assert_weights(&a, &b, 0);
    buf_release(&a);
    close(fd);
    close(other);
    sample_free(&s);
}

/* ---- learning ---------------------------------------------------------------------------------------------------- */

/* The loss of a perfect student, over positions with a label: for draws, their entropy. */
static double least_loss(int fd, const struct knowledge_format *f) {
    struct err e;
    struct knowledge_rows k;
    struct knowledge_format unused;
    double sum = 0, n = 0;
    if (f->encoding != KNOW_SAMPLE) return 0;
    OK(decode_all(dup(fd), &k, &unused, &e));
    lseek(fd, 0, SEEK_SET);
    for (size_t r = 0; r < k.n_positions; r++) {
        n += k.labels[r] != UINT32_MAX;
        for (uint64_t i = k.offset[r]; k.labels[r] != UINT32_MAX && i < k.offset[r + 1]; i++)
            sum -= k.probs[i] * log(k.probs[i]);
    }
    knowledge_rows_release(&k);
    return sum / n;
}

/* Training on a few sequences repeatedly must memorise them, and the teacher's distributions. */
static void the_student_learns(void **state) {
    (void)state;
    static const struct {
        const char *encoding, *loss;
        double bound; /* KL from the teacher at the end, which is about 2.5 at the beginning */
    } cases[] = {{"dense", "kl", 0.1}, {"ghost:8", "kl", 0.15}, {"sample:200", "kl", 0.15}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct err e;
        struct sample s = sample_new(3, 8, VOCAB, 15);
        struct knowledge_format f = format_of(cases[i].encoding, VOCAB);
        struct distill_options o = options_of(cases[i].loss, &f);
        struct distill_progress first, p;
        struct trainer *t;
        struct model *m = student_new(true, 2);
        int fd;
        OK(encode_sample(&s, &f, 0, 100, 100, &fd, &e));
        o.plan.now.steps = 300;
        o.batch_tokens = 1000;
        o.plan.now.lr = 0.03;
        OK(trainer_new(&t, m, &o, &f, &e));
        OK(train_on(t, fd, o.plan.now.steps, &e));
        trainer_progress(t, &first);
        do {
            OK(train_on(t, fd, o.plan.now.steps, &e));
            trainer_progress(t, &p);
        } while (p.step < o.plan.now.steps);
        const char *name = loss_kl_name(&f);
        double least = least_loss(fd, &f), kl = value_of(&p, name) - least, first_kl = value_of(&first, name) - least;
        if (first_kl < 1 || kl > cases[i].bound) fail_msg("%s: kl %g, then %g", cases[i].encoding, first_kl, kl);
        trainer_free(t);
        model_free(m);
        close(fd);
        sample_free(&s);
    }
}

/* ---- errors ------------------------------------------------------------------------------------------------------ */

static void a_loss_that_is_no_number_is_an_error(void **state) {
    (void)state;
    struct err e;
    struct sample s = sample_new(30, 20, VOCAB, 16);
    struct distill_options o = options_of("ce", &plain);
    struct trainer *t;
    struct model *m = student_new(true, 1);
    int fd = tokens_file(&s, 100);
    OK(trainer_new(&t, m, &o, &plain, &e));
    OK(train_on(t, fd, 2, &e));
    model_host_value(&m->params[3])[5] = NAN;
    trainer_free(t);
    OK(trainer_new(&t, m, &o, &plain, &e));
    assert_int_equal(train_on(t, fd, 2, &e), ERR_DATA);
    if (!strstr(e.msg, "step 1: the loss is not finite (sequences 0 to ")) fail_msg("%s", e.msg);
    trainer_free(t);
    model_free(m);
    close(fd);
    sample_free(&s);
}

static void what_does_not_fit_is_refused(void **state) {
    (void)state;
    struct err e;
    struct trainer *t;
    struct model *m = student_new(true, 1);
    struct knowledge_format wide = format_of("sample:5", VOCAB + 1);
    struct distill_options o = options_of("kl", &wide);
    assert_int_equal(trainer_new(&t, m, &o, &wide, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "knowledge over 25 tokens, but the model has 24"));
    o.plan.now.warmup = 9;
    assert_int_equal(trainer_new(&t, m, &o, &plain, &e), ERR_USAGE);

    uint32_t length = 65, tokens[65] = {0};
    struct sample s = {1, 65, VOCAB, &length, tokens, NULL};
    o = options_of("ce", &plain);
    OK(trainer_new(&t, m, &o, &plain, &e));
    int fd = tokens_file(&s, 50); /* in two pieces, neither of them too long */
    assert_int_equal(train_on(t, fd, 1, &e), ERR_DATA);
    assert_string_equal(e.msg, "sequence 0 has 65 positions, the student's context is 64 (tokenize --context 64)");
    trainer_free(t);
    close(fd);
    tokens[3] = VOCAB;
    fd = tokens_file(&s, 60);
    OK(trainer_new(&t, m, &o, &plain, &e));
    assert_int_equal(train_on(t, fd, 1, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "token 24 of a vocabulary of 24"));
    trainer_free(t);
    model_free(m);
    close(fd);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(losses_are_those_of_the_definition),
        cmocka_unit_test(a_name_means_one_number),
        cmocka_unit_test(weights_depend_on_sequences_only),
        cmocka_unit_test(accumulated_gradients_add_up),
        cmocka_unit_test(bf16_learns_as_f32),
        cmocka_unit_test(counted_steps_are_the_steps_taken),
        cmocka_unit_test(decay_leaves_embedding_and_norms_alone),
        cmocka_unit_test(last_positions_do_not_teach),
        cmocka_unit_test(the_student_learns),
        cmocka_unit_test(a_loss_that_is_no_number_is_an_error),
        cmocka_unit_test(what_does_not_fit_is_refused),
    };
    return cmocka_run_group_tests_name("distill", tests, NULL, NULL);
}
