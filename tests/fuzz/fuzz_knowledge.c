/*
 * Fuzzes knowledge: the input's bytes become the tensors of a well-formed stream with arbitrary batches. Whatever
 * decodes must be valid input for a loss, printable, and encodable again.
 */
#include <math.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lib/knowledge/knowledge.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
    const uint8_t *data;
    size_t size;
};

static uint8_t take(struct input *in) {
    if (!in->size) return 0;
    in->size--;
    return *in->data++;
}

static void must(bool holds) {
    if (!holds) abort();
}

/* Adds fields to the response, by the bits of a byte, and possibly another target. */
static void take_fields(struct input *in, struct knowledge_format *f) {
    static const enum dtype dtypes[] = {DT_F32, DT_BF16, DT_I8, DT_I8};
    uint8_t what = take(in);
    struct err e;
    f->target = what % 3;
    if (f->target == TARGET_SEQUENCE) f->classes = f->vocab_size;
    f->tap_positions = what & 4 ? 2 : 0;
    for (uint32_t i = 0; i < 3; i++) {
        struct knowledge_field x = {.point = "x", .layer = i, .per = i, .dtype = dtypes[what >> (2 * i + 2) & 3]};
        x.cols = x.heads = 2;
        x.sampled = f->tap_positions && x.per != PER_SEQUENCE;
        x.counted = what & 16 && !x.sampled && x.per != PER_SEQUENCE;
        x.causal = what & 8;
        must(!knowledge_field_add(f, &x, &e));
    }
}

/* Takes the format of the stream from the first bytes. */
static struct knowledge_format take_format(struct input *in) {
    struct knowledge_format f = {.temperature = 1, .dtype = DT_F16, .log_probs = true};
    uint8_t first = take(in);
    f.encoding = KNOW_DENSE + first % 5;
    f.n = f.encoding == KNOW_DENSE ? 0 : 1 + take(in) % 40;
    f.p = f.encoding == KNOW_TOPP ? 0.5 : 0;
    f.vocab_size = 1 + take(in) % 40;
    if (first >= 160) take_fields(in, &f);
    return f;
}

/* Writes a tensor of n elements of `width` bytes; sometimes one too many or too few. */
static int put(struct stream_writer *w, struct input *in, const char *name, enum dtype dtype, size_t width, uint64_t n,
               const struct knowledge_format *f, struct err *e) {
    uint8_t bytes[8192];
    struct tensor_desc d;
    uint64_t dims[2] = {n, f->vocab_size};
    bool matrix = !strcmp(name, "teacher.logits");
    size_t total = n * (matrix ? f->vocab_size : 1) * width;
    for (size_t i = 0; i < total; i++) bytes[i] = take(in);
    if (width == 4) /* tokens and lengths: small numbers */
        for (size_t i = 0; i < total; i++) bytes[i] = i % 4 ? 0 : bytes[i] & 63;
    if (tensor_desc_init(&d, name, dtype, matrix ? 2 : 1, dims, e)) return e->code;
    return stream_write_tensor(w, &d, NULL, bytes, e);
}

/* Writes labels, sampled positions and fields, with shapes that are mostly correct. */
static int put_fields(struct stream_writer *w, struct input *in, const struct knowledge_format *f, uint64_t n,
                      uint64_t count, uint64_t ended, struct err *e) {
    static const size_t widths[] = {[DT_F32] = 4, [DT_BF16] = 2, [DT_I8] = 1};
    uint64_t sampled = take(in) % 8;
    int rc = 0;
    if (f->target != TARGET_NEXT)
        rc = put(w, in, BATCH_LABELS, DT_U32, 4, f->target == TARGET_MASKED ? n : ended, f, e);
    if (!rc && f->tap_positions) rc = put(w, in, "teacher.positions", DT_U32, 4, sampled, f, e);
    for (uint32_t i = 0; !rc && i < f->n_fields; i++) {
        const struct knowledge_field *x = &f->fields[i];
        uint64_t rows = x->per == PER_SEQUENCE ? ended : x->sampled ? sampled : x->counted ? count : n;
        uint8_t bytes[8192];
        char name[64];
        struct tensor_desc d;
        uint64_t dims[2] = {rows, x->cols};
        if (x->per == PER_PAIR) dims[0] = rows = take(in);
        size_t total = rows * (x->per == PER_PAIR ? 1 : x->cols) * widths[x->dtype];
        for (size_t k = 0; k < total; k++) bytes[k] = take(in);
        snprintf(name, sizeof name, "teacher.%s", x->name);
        rc = tensor_desc_init(&d, name, x->dtype, x->per == PER_PAIR ? 1 : 2, dims, e);
        if (!rc) rc = stream_write_tensor(w, &d, NULL, bytes, e);
        snprintf(name, sizeof name, "teacher.%s.scale", x->name);
        if (!rc && x->dtype == DT_I8) rc = put(w, in, name, DT_F32, 4, x->per == PER_PAIR ? take(in) % 64 : rows, f, e);
    }
    return rc;
}

static int put_batch(struct stream_writer *w, struct input *in, const struct knowledge_format *f,
                     struct stream_batch *b, struct err *e) {
    uint8_t what = take(in), counted[32], mask[32];
    uint64_t entries = what % 64, count = 0;
    uint32_t lengths[32];
    struct tensor_desc d;
    b->n_positions = 1 + take(in) % 24;
    b->n_seqs = 1 + take(in) % b->n_positions;
    b->flags = take(in) & BATCH_CONTINUES;
    uint32_t draws_as_codes = f->encoding == KNOW_SAMPLE && entries & 1;
    b->n_tensors = f->encoding == KNOW_DENSE || draws_as_codes ? 3 : 5;
    b->n_tensors += f->n_fields + (f->target != TARGET_NEXT) + (f->tap_positions != 0);
    for (uint32_t i = 0; i < f->n_fields; i++) b->n_tensors += f->fields[i].dtype == DT_I8;
    b->n_tensors += what & 64 ? 2 : 0; /* a mask, and the positions that it omits */
    for (uint32_t i = 0; i < b->n_seqs; i++) lengths[i] = 1;
    lengths[0] += (uint32_t)(b->n_positions - b->n_seqs);
    if (stream_write_batch(w, b, e) || put(w, in, "tokens", DT_U32, 4, b->n_positions, f, e)) return e->code;
    if (tensor_desc_init(&d, "lengths", DT_U32, 1, (uint64_t[]){b->n_seqs}, e) ||
        stream_write_tensor(w, &d, NULL, lengths, e))
        return e->code;
    b->first_pos = b->flags ? lengths[b->n_seqs - 1] + (b->n_seqs == 1 ? b->first_pos : 0) : 0;
    b->first_seq += b->n_seqs - (b->flags ? 1 : 0);
    uint64_t n = b->n_positions, ended = b->n_seqs - (b->flags ? 1 : 0);
    if (what & 64) {
        uint8_t bits = take(in);
        for (uint64_t i = 0; i < n; i++) mask[i] = bits >> i % 8 & 1;
        for (uint64_t i = 0; i < n; i++) count += counted[i] = i + 1 < n && mask[i + 1];
        if (what & 128) counted[take(in) % n] ^= 1;
        if (tensor_desc_init(&d, "teacher.counted", DT_U8, 1, &n, e) || stream_write_tensor(w, &d, NULL, counted, e) ||
            batch_write_mask(w, b, mask, e))
            return e->code;
    } else
        count = n;
    if (put_fields(w, in, f, n, count, ended, e)) return e->code;
    n = f->target == TARGET_SEQUENCE ? ended : count;
    if (draws_as_codes) return put(w, in, "teacher.draws", DT_U8, 1, entries, f, e);
    if (f->encoding == KNOW_DENSE) return put(w, in, "teacher.logits", DT_F16, 2, n, f, e);
    if (put(w, in, "teacher.n", DT_U8, 1, n, f, e) || put(w, in, "teacher.ids", DT_U16, 2, entries, f, e))
        return e->code;
    if (f->encoding == KNOW_SAMPLE) return put(w, in, "teacher.counts", DT_U8, 1, entries, f, e);
    return put(w, in, "teacher.logprobs", DT_F16, 2, entries, f, e);
}

static int write_stream(struct input *in, const struct knowledge_format *f, int fd, struct err *e) {
    struct stream_writer *w = NULL;
    struct stream_batch b = {0};
    cJSON *meta = cJSON_CreateObject();
    int rc = stream_writer_open(&w, fd, "fuzz", &(struct stream_write_options){0}, e);
    if (!rc) rc = knowledge_meta_put(meta, f, e);
    if (!rc) rc = stream_write_meta(w, meta, e);
    do {
        if (!rc) rc = put_batch(w, in, f, &b, e);
    } while (!rc && in->size);
    if (!rc) rc = stream_writer_finish(w, NULL, e);
    stream_writer_free(w);
    cJSON_Delete(meta);
    return rc;
}

/* Checks the invariants that a loss relies on. */
static void check_rows(const struct knowledge_rows *k, const struct knowledge_format *f) {
    must(k->offset[0] == 0);
    for (size_t r = 0; r < k->n_positions; r++) must(k->tokens[r] < f->vocab_size);
    for (size_t r = 0; r < k->n_rows; r++) {
        double sum = k->rest ? k->rest[r] : 0;
        must(k->labels[r] < f->vocab_size || k->labels[r] == UINT32_MAX);
        must(k->offset[r] <= k->offset[r + 1] && k->offset[r + 1] - k->offset[r] <= f->n);
        for (uint64_t i = k->offset[r]; i < k->offset[r + 1]; i++) {
            must(k->ids[i] < f->vocab_size && k->probs[i] >= 0);
            sum += k->probs[i];
        }
        must(sum <= 1.01);
    }
}

static void use_rows(struct knowledge_rows *k, const struct knowledge_format *f) {
    struct err e;
    struct buf text = {0};
    size_t positions;
    check_rows(k, f);
    size_t n = knowledge_next_pass(k, 0, 7, 100, true, &positions);
    for (size_t i = 0; i < k->n_fields; i++) {
        float x[64];
        const struct knowledge_feature *field = &k->fields[i];
        for (size_t r = 0; field->field->per != PER_PAIR && r < field->n_rows; r++)
            knowledge_feature_rows(k, i, r, 1, x);
        for (size_t r = 0; field->field->per == PER_PAIR && r < field->n_rows && k->pair_lengths[r] < 32; r++)
            knowledge_feature_pairs(k, i, r, 1, k->pair_lengths[r], x);
    }
    if (knowledge_tsv_rows(&(struct knowledge_tsv){.top = 3}, &text, k, f, 0,
                           f->target == TARGET_SEQUENCE ? k->n_rows : k->n_positions, &e))
        abort();
    buf_release(&text);
    struct knowledge_rows part = {0};
    size_t whole = knowledge_whole_seqs(k);
    for (size_t from = whole / 2; whole; from = 0) { /* the second half, then everything */
        if (knowledge_append_seqs(&part, k, f, from, whole - from, &e)) abort();
        check_rows(&part, f);
        if (!from) break;
    }
    knowledge_rows_release(&part);
    knowledge_drop(k, f, n);
    check_rows(k, f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input in = {data, size};
    struct err e;
    struct stream_reader *r = NULL;
    struct batch b = {0};
    struct knowledge_rows k = {0};
    struct knowledge_format f = take_format(&in), back;
    bool more = true;
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    if (fd < 0) return 0;
    int rc = write_stream(&in, &f, fd, &e);
    if (!rc && lseek(fd, 0, SEEK_SET) == 0 && !stream_reader_open(&r, fd, "fuzz", STREAM_KNOWLEDGE, &e)) {
        must(!knowledge_meta_get(stream_reader_meta(r), &back, &e));
        while (more && !batch_read(r, &b, &more, &e) && more) {
            if (knowledge_decode(&k, &f, &b, &e)) break;
            use_rows(&k, &f);
        }
    }
    knowledge_rows_release(&k);
    batch_release(&b);
    stream_reader_free(r);
    close(fd);
    return 0;
}
