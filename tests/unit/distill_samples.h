/* A small student model and training data for the tests of lib/distill. */
#ifndef RILL_TESTS_DISTILL_SAMPLES_H
#define RILL_TESTS_DISTILL_SAMPLES_H

#include "lib/distill/distill_internal.h"
#include "tests/unit/knowledge_samples.h"

#define VOCAB 24

static const struct knowledge_format plain = {.temperature = 1};

static inline struct model *student_new(bool tied, uint64_t seed) {
    struct err e;
    struct model_layer layers[] = {{2, 1, 24}, {2, 2, 16}};
    struct model_config c = {.arch = "llama",
                             .n_layers = 2,
                             .hidden = 16,
                             .head_dim = 8,
                             .vocab_size = VOCAB,
                             .context = 64,
                             .tied = tied,
                             .norm_eps = 1e-5f,
                             .rope.theta = 10000,
                             .layers = layers};
    struct model *m;
    OK(model_init(&m, kernel_cpu(), &c, NULL, 0, seed, &e));
    struct model_param *p = model_param(m, tied ? ROLE_EMBED : ROLE_HEAD, 0);
    for (uint64_t i = 0; i < p->n; i++)
        model_host_value(p)[i] *= 10; /* large logits, so that no loss is near that of a uniform distribution */
    return m;
}

static inline struct distill_options options_of(const char *loss, const struct knowledge_format *f) {
    struct err e;
    struct distill_options o = {
        .plan.now = {.lr = 0.01, .lr_min = 0.001, .warmup = 2, .steps = 8},
        .batch_tokens = 40,
        .micro_tokens = 1000,
        .train = {.weight_decay = 0.1, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .state = DT_F32},
        .clip = 1,
        .precision = DT_F32};
    char copy[200], *save = NULL;
    snprintf(copy, sizeof copy, "%s", loss);
    for (char *l = strtok_r(copy, " ", &save); l; l = strtok_r(NULL, " ", &save)) OK(loss_list_add(&o.losses, l, &e));
    (void)f;
    return o;
}

/* Returns the value of the loss that the log calls `name`. */
static inline double value_of(const struct distill_progress *p, const char *name) {
    for (size_t i = 0; i < p->n_losses; i++)
        if (!strcmp(p->losses[i].name, name)) return p->losses[i].value;
    fail_msg("no loss %s", name);
    return 0;
}

/* Trains until `limit` steps are done or the data ends. Leaves fd open and rewound. */
static inline int train_on(struct trainer *t, int fd, uint64_t limit, struct err *e) {
    struct stream_reader *r = NULL;
    struct knowledge_format meta;
    struct knowledge_stream data = {.meta = &meta, .format = trainer_format(t)};
    struct knowledge_source source = knowledge_stream_source(&data);
    struct distill_progress p;
    bool more = true, stepped = true;
    lseek(fd, 0, SEEK_SET);
    int rc = stream_reader_open(&r, fd, "in", STREAM_ANY, e);
    if (!rc) rc = knowledge_meta_get(stream_reader_meta(r), &meta, e);
    data.r = r;
    for (trainer_progress(t, &p); !rc && p.step < limit && (more || stepped); trainer_progress(t, &p)) {
        rc = more ? trainer_feed(t, &source, &more, e) : 0;
        do {
            if (!rc) rc = trainer_step(t, !more, &stepped, e);
            trainer_progress(t, &p);
        } while (!rc && stepped && p.step < limit);
    }
    if (!rc && p.step < limit) rc = trainer_end_epoch(t, e);
    knowledge_stream_release(&data);
    stream_reader_free(r);
    lseek(fd, 0, SEEK_SET);
    return rc;
}

/* Repeats the data until step `limit` of the schedule. */
static inline int train_to(struct trainer *t, int fd, uint64_t limit, struct err *e) {
    struct distill_progress p;
    int rc = 0;
    for (trainer_progress(t, &p); !rc && p.step < limit; trainer_progress(t, &p)) rc = train_on(t, fd, limit, e);
    return rc;
}

static inline int save_checkpoint(struct trainer *t) {
    struct err e;
    struct stream_writer *w;
    int fd = memory_file();
    OK(stream_writer_open(&w, fd, "checkpoint", &(struct stream_write_options){0}, &e));
    OK(trainer_save(t, w, &e));
    OK(stream_writer_finish(w, NULL, &e));
    stream_writer_free(w);
    return fd;
}

static inline int restore_checkpoint(struct trainer *t, int fd, struct err *e) {
    struct stream_reader *r = NULL;
    lseek(fd, 0, SEEK_SET);
    int rc = stream_reader_open(&r, fd, "checkpoint", STREAM_CHECKPOINT, e);
    if (!rc) rc = trainer_restore(t, r, e);
    stream_reader_free(r);
    return rc;
}

/* Trains a fresh student; returns its weights, concatenated. */
static inline struct buf trained(int fd, const struct distill_options *o, const struct knowledge_format *f,
                                 struct distill_progress *p) {
    struct err e;
    struct trainer *t;
    struct buf weights = {0};
    struct model *m = student_new(true, 1);
    OK(trainer_new(&t, m, o, f, &e));
    OK(train_on(t, fd, o->plan.now.steps, &e));
    if (p) trainer_progress(t, p);
    for (size_t i = 0; i < m->n_params; i++)
        OK(buf_append(&weights, model_host_value(&m->params[i]), m->params[i].n * sizeof(float), &e));
    trainer_free(t);
    model_free(m);
    return weights;
}

/* Writes the sample as a token stream in batches of `cut` positions. pack: the pack length that META gives; 0: none. */
static inline int packed_file(const struct sample *s, uint32_t pack, size_t cut) {
    struct err e;
    struct stream_writer *w;
    char meta[64];
    uint32_t *lengths = calloc(s->n_seqs, sizeof *lengths);
    int fd = memory_file();
    snprintf(meta, sizeof meta, pack ? "{\"kind\":\"tokens\",\"pack\":%u}" : "{\"kind\":\"tokens\"}", pack);
    OK(stream_writer_open(&w, fd, "out", &(struct stream_write_options){0}, &e));
    put_meta(w, meta);
    for (size_t at = 0; at < s->n_positions; at += cut) {
        size_t n = piece_of(s->n_positions - at, cut);
        put_batch(w, cut_batch(s, at, n, lengths), s->tokens + at, lengths);
    }
    OK(stream_writer_finish(w, NULL, &e));
    stream_writer_free(w);
    free(lengths);
    lseek(fd, 0, SEEK_SET);
    return fd;
}
static inline int tokens_file(const struct sample *s, size_t cut) {
    return packed_file(s, 0, cut);
}

#endif
