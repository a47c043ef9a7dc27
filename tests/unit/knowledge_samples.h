/* Knowledge streams in memory for the tests of lib/knowledge and lib/distill. */
#ifndef RILL_TESTS_KNOWLEDGE_SAMPLES_H
#define RILL_TESTS_KNOWLEDGE_SAMPLES_H

#include <math.h>

#include "lib/knowledge/knowledge.h"
#include "tests/unit/stream_samples.h"

/* Token sequences and a row of logits for each position. */
struct sample {
    size_t n_seqs, n_positions, vocab;
    uint32_t *lengths, *tokens;
    float *logits; /* [n_positions][vocab] */
};

/* Sequences of 1 to `longest` positions with random tokens and normal logits of standard deviation 2. */
static inline struct sample sample_new(size_t n_seqs, uint32_t longest, size_t vocab, uint64_t seed) {
    struct err e;
    struct rng r = rng_init(seed, 0);
    struct sample s = {.n_seqs = n_seqs, .vocab = vocab, .lengths = mem_array(n_seqs, sizeof *s.lengths, &e)};
    for (size_t i = 0; i < n_seqs; i++) s.n_positions += s.lengths[i] = 1 + (uint32_t)rng_below(&r, longest);
    s.tokens = mem_array(s.n_positions, sizeof *s.tokens, &e);
    s.logits = mem_array(s.n_positions * vocab, sizeof *s.logits, &e);
    for (size_t i = 0; i < s.n_positions; i++) s.tokens[i] = (uint32_t)rng_below(&r, vocab);
    for (size_t i = 0; i < s.n_positions * vocab; i++) s.logits[i] = (float)(2 * rng_normal(&r));
    return s;
}

static inline void sample_free(struct sample *s) {
    mem_free(s->lengths);
    mem_free(s->tokens);
    mem_free(s->logits);
}

/* Probabilities of a row at a temperature, in f64 and independent of lib/kernel. */
static inline void softmax64(double *p, const float *x, size_t n, double temperature) {
    double max = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++) max = fmax(max, x[i] / temperature);
    for (size_t i = 0; i < n; i++) sum += p[i] = exp(x[i] / temperature - max);
    for (size_t i = 0; i < n; i++) p[i] /= sum;
}

static inline struct knowledge_format format_of(const char *encoding, size_t vocab) {
    struct err e;
    struct knowledge_format f = {.temperature = 1, .dtype = DT_F32, .vocab_size = (uint32_t)vocab};
    OK(knowledge_encoding_parse(encoding, &f, &e));
    return f;
}

/* Length of the next piece when `left` positions are cut into pieces of at most `cut`. */
static inline size_t piece_of(size_t left, size_t cut) {
    return left < cut ? left : cut;
}

/*
 * Positions [from, from + n) of the sample as a batch: its sequences and where they begin and end. `lengths` must have
 * n_seqs entries.
 */
static inline struct stream_batch cut_batch(const struct sample *s, size_t from, size_t n, uint32_t *lengths) {
    struct stream_batch b = {.n_positions = n};
    size_t begin = 0;
    for (size_t i = 0; i < s->n_seqs; begin += s->lengths[i++]) {
        size_t end = begin + s->lengths[i], first = begin > from ? begin : from, stop = end < from + n ? end : from + n;
        if (first >= stop) continue;
        if (!b.n_seqs) b.first_seq = i, b.first_pos = first - begin;
        lengths[b.n_seqs++] = (uint32_t)(stop - first);
        b.flags = stop < end ? BATCH_CONTINUES : 0;
    }
    return b;
}

/* A knowledge stream that is being encoded to a file in memory. */
struct encoding {
    int fd;
    struct stream_writer *w;
    struct knowledge_encoder *k;
};

static inline int encoding_begin(struct encoding *x, const struct knowledge_format *f, uint64_t seed, struct err *e) {
    cJSON *meta = cJSON_CreateObject();
    *x = (struct encoding){.fd = memory_file()};
    int rc = stream_writer_open(&x->w, x->fd, "out", &(struct stream_write_options){0}, e);
    if (!rc) rc = knowledge_meta_put(meta, f, e);
    if (!rc) rc = stream_write_meta(x->w, meta, e);
    if (!rc) rc = knowledge_encoder_new(&x->k, x->w, f, seed, e);
    cJSON_Delete(meta);
    return rc;
}

/* Finishes the stream; `rc` is the result of the calls before. Leaves the file open and rewound. */
static inline int encoding_end(struct encoding *x, int rc, struct err *e) {
    if (!rc) rc = knowledge_encoder_end(x->k, e);
    if (!rc) rc = stream_writer_finish(x->w, NULL, e);
    knowledge_encoder_free(x->k);
    stream_writer_free(x->w);
    lseek(x->fd, 0, SEEK_SET);
    return rc;
}

/* Encodes the sample to a file in memory, announced in batches of `cut` positions and passed in blocks of `block`
 * rows. */
static inline int encode_sample(const struct sample *s, const struct knowledge_format *f, uint64_t seed, size_t cut,
                                size_t block, int *fd, struct err *e) {
    struct encoding out;
    uint32_t *lengths = calloc(s->n_seqs, sizeof *lengths);
    float *x = malloc(block * s->vocab * sizeof *x);
    int rc = encoding_begin(&out, f, seed, e);
    for (size_t at = 0; !rc && at < s->n_positions; at += cut) {
        size_t n = piece_of(s->n_positions - at, cut);
        struct stream_batch head = cut_batch(s, at, n, lengths);
        rc = knowledge_encoder_begin(
            out.k, &(struct knowledge_input){.head = head, .tokens = s->tokens + at, .lengths = lengths}, e);
        for (size_t i = 0; !rc && i < n; i += block) {
            size_t rows = piece_of(n - i, block);
            memcpy(x, s->logits + (at + i) * s->vocab, rows * s->vocab * sizeof *x);
            rc = knowledge_encoder_rows(out.k, rows, x, 1 / f->temperature, e);
        }
    }
    rc = encoding_end(&out, rc, e);
    free(lengths);
    free(x);
    *fd = out.fd;
    return rc;
}

/* Reads a whole stream into one queue. Closes fd. */
static inline int decode_all(int fd, struct knowledge_rows *k, struct knowledge_format *f, struct err *e) {
    struct stream_reader *r = NULL;
    struct batch b = {0};
    bool more = true;
    *k = (struct knowledge_rows){0};
    int rc = stream_reader_open(&r, fd, "in", STREAM_ANY, e);
    if (!rc) rc = knowledge_meta_get(stream_reader_meta(r), f, e);
    while (!rc && more) {
        rc = batch_read(r, &b, &more, e);
        if (!rc && more) rc = knowledge_decode(k, f, &b, e);
    }
    if (!rc) rc = knowledge_decode_end(k, e);
    batch_release(&b);
    stream_reader_free(r);
    close(fd);
    return rc;
}

/* Encodes and decodes the sample. */
static inline struct knowledge_rows round_trip(const struct sample *s, struct knowledge_format *f, uint64_t seed) {
    struct err e;
    struct knowledge_rows k;
    int fd;
    OK(encode_sample(s, f, seed, 100, 7, &fd, &e));
    OK(decode_all(fd, &k, f, &e));
    return k;
}

#endif
