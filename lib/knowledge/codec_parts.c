/* Code shared by response codecs: reading and appending entries of the queue, writing and checking rows of the
 * encoder. */
#include <inttypes.h>
#include <string.h>

#include "lib/knowledge/knowledge_internal.h"

/* ---- the format -------------------------------------------------------------------------------------------------- */

bool knowledge_parse_n(const char *argument, struct knowledge_format *f) {
    uint64_t n;
    if (!parse_u64(argument, &n) || n < 1 || n > KNOWLEDGE_MAX_N) return false;
    f->n = (uint32_t)n;
    return true;
}

int knowledge_read_n(const cJSON *o, struct knowledge_format *f, struct err *e) {
    uint64_t n;
    if (json_get_u64(o, "n", 1, KNOWLEDGE_MAX_N, &n, e)) return e->code;
    f->n = (uint32_t)n;
    return 0;
}

/* ---- the queue --------------------------------------------------------------------------------------------------- */

void *knowledge_extend(struct buf *b, size_t n, struct err *e) {
    if (buf_reserve(b, n, e)) return NULL;
    b->len += n;
    return b->data + b->len - n;
}

uint32_t knowledge_number_at(enum dtype dtype, const void *data, uint64_t i) {
    if (dtype == DT_U8) return ((const uint8_t *)data)[i];
    return dtype == DT_U16 ? ((const uint16_t *)data)[i] : ((const uint32_t *)data)[i];
}

int knowledge_check_ids(struct knowledge_rows *k, const struct knowledge_format *f, const uint32_t *ids, size_t n,
                        struct err *e) {
    uint32_t cols = knowledge_stored_columns(f);
    if (!k->seen.len) {
        void *fresh = knowledge_extend(&k->seen, cols * sizeof(uint32_t), e);
        if (!fresh) return e->code;
        memset(fresh, 0, k->seen.len);
    }
    uint32_t *seen = (void *)k->seen.data;
    if (++k->stamp == 0) {
        memset(seen, 0, k->seen.len);
        k->stamp = 1;
    }
    for (size_t i = 0; i < n; i++) {
        if (ids[i] >= cols) return err_set(e, ERR_DATA, "entry %u of a vocabulary of %u", ids[i], cols);
        if (seen[ids[i]] == k->stamp) return err_set(e, ERR_DATA, "entry %u occurs twice", ids[i]);
        seen[ids[i]] = k->stamp;
    }
    return 0;
}

int knowledge_end_row(struct knowledge_rows *k, struct err *e) {
    uint64_t end = k->memory[MEM_IDS].len / sizeof(uint32_t);
    return buf_append(&k->memory[MEM_OFFSET], &end, sizeof end, e);
}

int knowledge_append_empty(struct knowledge_rows *k, uint64_t n, struct err *e) {
    uint64_t *offset = knowledge_extend(&k->memory[MEM_OFFSET], n * sizeof *offset, e);
    if (!offset) return e->code;
    memset(offset, 0, n * sizeof *offset);
    return 0;
}

uint64_t knowledge_position_of_row(const struct batch *b, uint64_t r) {
    const struct tensor *t = batch_find(b, KNOWLEDGE_COUNTED);
    uint64_t n = t ? t->n_bytes : 0, at = 0;
    for (; at < n; at++)
        if (((const uint8_t *)t->data)[at] && r-- == 0) return at;
    return n ? at : r;
}

static int find_entries(struct knowledge_entries *s, const struct knowledge_format *f, const struct batch *b,
                        uint64_t rows, const char *values, enum dtype dtype, struct err *e) {
    if (batch_need(b, "teacher.n", knowledge_count_type(f), 1, &rows, &s->n, e) ||
        batch_need(b, "teacher.ids", knowledge_id_type(f), 1, &(uint64_t){0}, &s->ids, e) ||
        batch_need(b, values, dtype, 1, s->ids->desc.dims, &s->values, e))
        return e->code;
    s->total = s->ids->desc.dims[0];
    if (s->n->desc.dims[0] != rows) /* batch_need takes 0 rows for any number */
        return err_set(e, ERR_DATA, "\"teacher.n\" has %llu rows: expected %llu",
                       (unsigned long long)s->n->desc.dims[0], (unsigned long long)rows);
    if (s->values->desc.dims[0] != s->total)
        return err_set(e, ERR_DATA, "\"teacher.ids\" and \"%s\" differ in length", values);
    return 0;
}

static int decode_entries_row(struct knowledge_rows *k, const struct knowledge_format *f,
                              const struct knowledge_entries *s, uint64_t at, size_t n, knowledge_entries_fn *row,
                              struct err *e) {
    size_t least = f->encoding == KNOW_GHOST ? 0 : 1; /* a ghost without entries: nothing is known */
    if (n < least || n > f->n || n > s->total - at)
        return err_set(e, ERR_DATA, "%zu entries: expected %zu to %u, %llu are left", n, least, f->n,
                       (unsigned long long)(s->total - at));
    return row(k, f, s, at, n, e);
}

int knowledge_decode_entries(struct knowledge_rows *k, const struct knowledge_format *f, const struct batch *b,
                             uint64_t rows, const char *values, enum dtype dtype, knowledge_entries_fn *row,
                             struct err *e) {
    struct knowledge_entries s;
    uint64_t at = 0;
    if (find_entries(&s, f, b, rows, values, dtype, e)) return e->code;
    for (uint64_t r = 0; r < rows; r++) {
        uint32_t n = knowledge_number_at(knowledge_count_type(f), s.n->data, r);
        if (decode_entries_row(k, f, &s, at, n, row, e))
            return err_prefix(e, "position %llu of the batch", (unsigned long long)knowledge_position_of_row(b, r));
        at += n;
        if (knowledge_end_row(k, e)) return e->code;
    }
    if (at != s.total)
        return err_set(e, ERR_DATA, "\"teacher.n\" sums to %llu: expected the %llu entries of \"teacher.ids\"",
                       (unsigned long long)at, (unsigned long long)s.total);
    return 0;
}

/* ---- the encoder ------------------------------------------------------------------------------------------------- */

const char knowledge_not_finite[] = "the teacher's output is not finite";

int knowledge_put_tensor(struct knowledge_encoder *k, const char *name, enum dtype dtype, uint64_t rows, uint64_t cols,
                         const struct buf *b, struct err *e) {
    struct tensor_desc d;
    uint64_t dims[2] = {rows, cols};
    unsigned rank = cols ? 2 : 1;
    if (!cols) dims[0] = b->len / dtype_row_bytes(dtype, 1);
    k->counts.bytes += b->len;
    if (tensor_desc_init(&d, name, dtype, rank, dims, e)) return e->code;
    return stream_write_tensor(k->w, &d, NULL, b->data, e);
}

int knowledge_fail_at_row(const struct knowledge_encoder *k, size_t r, struct err *e, const char *what) {
    uint64_t seq = k->in_seq, pos = k->pos;
    if (k->format.target == TARGET_SEQUENCE)
        return err_set(e, ERR_DATA, "sequence %" PRIu64 ": %s", k->in.first_seq + seq + r, what);
    r = knowledge_row_at(k, r);
    for (uint64_t left = k->seq_left; r >= left && seq + 1 < k->in.n_seqs; left = knowledge_in_lengths(k)[seq]) {
        r -= left;
        seq++;
        pos = 0;
    }
    return err_set(e, ERR_DATA, "sequence %" PRIu64 ", position %" PRIu64 ": %s", k->in.first_seq + seq, pos + r, what);
}

int knowledge_put_number(struct buf *b, enum dtype dtype, uint32_t v, struct err *e) {
    uint8_t u8 = (uint8_t)v;
    uint16_t u16 = (uint16_t)v;
    const void *from = dtype == DT_U8 ? (void *)&u8 : dtype == DT_U16 ? (void *)&u16 : (void *)&v;
    return buf_append(b, from, dtype_row_bytes(dtype, 1), e);
}

int knowledge_make_room(struct knowledge_encoder *k, size_t n, const size_t sizes[3], struct err *e) {
    for (int i = 0; i < 3; i++) {
        k->scratch[i].len = 0;
        if (buf_reserve(&k->scratch[i], n * sizes[i], e)) return e->code;
    }
    return 0;
}

struct row_job {
    const struct knowledge_encoder *k;
    const float *x;
    unsigned char *bad;
};

static void check_row(void *ctx, size_t r, int thread) {
    const struct row_job *j = ctx;
    size_t d = knowledge_stored_columns(&j->k->format);
    (void)thread;
    j->bad[r] = tensor_first_nonfinite(DT_F32, j->x + r * d, d) < d;
}

int knowledge_check_rows(struct knowledge_encoder *k, size_t rows, const float *x, struct err *e) {
    struct buf *flags = &k->scratch[0];
    flags->len = 0;
    if (buf_reserve(flags, rows, e)) return e->code;
    parallel_for(rows, check_row, &(struct row_job){k, x, flags->data});
    const unsigned char *bad = memchr(flags->data, 1, rows);
    return bad ? knowledge_fail_at_row(k, (size_t)(bad - flags->data), e, knowledge_not_finite) : 0;
}
