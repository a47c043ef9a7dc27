/* Translates the teacher's rows of a sequence at the byte offsets that both tokenizations share. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/align/align_internal.h"

#define ALIGN_BLOCK 16 /* dense rows per step */

struct entry {
    uint32_t id;
    float p;
};

struct align {
    struct align_options o;
    uint32_t *map; /* [teacher's tokens] */
    struct align_counts counts;
    struct knowledge_rows rows, other; /* complete and open sequences of the teacher; of the student's tokens */
    struct batch batch, other_batch;
    bool ended, other_ended;
    /* For the current sequence: */
    struct spans teacher, student;
    struct buf tokens, mask;            /* of the student: u32, u8 */
    struct buf counted;                 /* u8: which positions of the student are trained on */
    struct buf pair;                    /* size_t: the teacher's row for each position of the student */
    struct buf next;                    /* f32 [teacher's rows]: probability of the next token; negative: unknown */
    struct buf row_entries, row_offset; /* struct entry, size_t [teacher's rows + 1]: the wanted rows, translated */
    struct buf wanted;                  /* u8 [teacher's rows] */
    struct buf x, sum, top, values;     /* f32 [block][columns], f32 [student's tokens], u32 and f32 [entries + 1] */
    struct buf offset, ids, probs;      /* u64, u32, f32: input of the encoder */
};

/* ---- the format -------------------------------------------------------------------------------------------------- */

int align_format(const struct align_options *o, struct knowledge_format *out, struct err *e) {
    const struct knowledge_format *f = o->from;
    char name[64];
    if (f->target != TARGET_NEXT)
        return err_set(e, ERR_DATA, "the target is \"%s\": tokens are aligned where the next one is predicted",
                       stream_target_name(f->target));
    if (f->encoding == KNOW_NONE) return err_set(e, ERR_DATA, "there are no predictions to align");
    if (f->encoding == KNOW_SAMPLE || f->partial)
        return err_set(e, ERR_DATA,
                       "%s%s does not tell how much probability is left: realign dense, topk, topp or ghost knowledge",
                       f->partial ? "a mixture of " : "", knowledge_encoding_text(f, name, sizeof name));
    if (f->n_fields)
        return err_set(
            e, ERR_DATA,
            "field %s belongs to the teacher's tokens and cannot be realigned (remove it with logit-dump --drop)",
            f->fields[0].name);
    *out = *f;
    out->encoding = KNOW_GHOST;
    out->n = o->entries < o->student->n_unpadded ? o->entries : o->student->n_unpadded;
    out->p = 0;
    out->log_probs = false;
    out->vocab_size = o->student->n_unpadded;
    out->n_used = 0;
    digest_text(o->student->digest, out->vocab);
    return 0;
}

int align_new(struct align **out, const struct align_options *o, struct err *e) {
    struct align *a = mem_zalloc(sizeof *a, e);
    if (!a) return e->code;
    a->o = *o;
    a->map = mem_array(o->teacher->n_tokens, sizeof *a->map, e);
    int rc = a->map ? align_map(o->teacher, o->student, a->map, &a->counts.mapped, &a->counts.begun, e) : e->code;
    a->counts.teacher_tokens = o->teacher->n_unpadded;
    if (rc)
        align_free(a);
    else
        *out = a;
    return rc;
}

void align_free(struct align *a) {
    if (!a) return;
    struct buf *all[] = {&a->tokens,     &a->mask,   &a->pair, &a->next,  &a->row_entries,
                         &a->row_offset, &a->wanted, &a->x,    &a->sum,   &a->top,
                         &a->values,     &a->offset, &a->ids,  &a->probs, &a->counted};
    for (size_t i = 0; i < COUNT_OF(all); i++) buf_release(all[i]);
    align_spans_release(&a->teacher);
    align_spans_release(&a->student);
    batch_release(&a->batch);
    batch_release(&a->other_batch);
    knowledge_rows_release(&a->rows);
    knowledge_rows_release(&a->other);
    mem_free(a->map);
    mem_free(a);
}

struct align_counts align_counts(const struct align *a) {
    return a->counts;
}

/* ---- the teacher's rows, translated to the student's tokens ---- */

/* Descending; ties by id. */
static int by_probability(const void *a, const void *b) {
    const struct entry *x = a, *y = b;
    if (x->p != y->p) return x->p > y->p ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static int by_id(const void *a, const void *b) {
    const struct entry *x = a, *y = b;
    return x->id < y->id ? -1 : x->id > y->id;
}

static uint32_t mapped(const struct align *a, uint32_t id) {
    return id < a->o.teacher->n_tokens ? a->map[id] : TOKEN_NONE;
}

/* Keeps one entry more than is written: a chain's product may replace its first token. */
static size_t entries_kept(const struct align *a) {
    size_t n = a->o.student->n_unpadded;
    return a->o.entries < n ? (size_t)a->o.entries + 1 : n;
}

static int translate_dense(struct align *a, const float *log_probs, size_t columns, struct err *e) {
    size_t d = a->o.student->n_unpadded, k = entries_kept(a) < d ? entries_kept(a) : d;
    float *sum = (float *)a->sum.data, *values = (float *)a->values.data;
    uint32_t *top = (uint32_t *)a->top.data;
    memset(sum, 0, d * sizeof *sum);
    for (size_t i = 0; i < columns; i++) {
        uint32_t to = mapped(a, (uint32_t)i);
        if (to < d) sum[to] += expf(log_probs[i]);
    }
    for (size_t i = 0; i < d; i++) a->counts.mass += sum[i];
    kernel_topk(top, values, kernel_f32(sum), 1, d, k);
    for (size_t i = 0; i < k && values[i] > 0; i++)
        if (buf_append(&a->row_entries, &(struct entry){top[i], values[i]}, sizeof(struct entry), e)) return e->code;
    return 0;
}

static int translate_sparse(struct align *a, size_t row, struct err *e) {
    size_t begin = a->row_entries.len / sizeof(struct entry), made = begin;
    for (uint64_t t = a->rows.offset[row]; t < a->rows.offset[row + 1]; t++) {
        struct entry one = {mapped(a, a->rows.ids[t]), a->rows.probs[t]};
        if (one.id >= a->o.student->n_unpadded) continue;
        if (buf_append(&a->row_entries, &one, sizeof one, e)) return e->code;
        a->counts.mass += one.p;
    }
    struct entry *x = (struct entry *)a->row_entries.data;
    size_t end = a->row_entries.len / sizeof *x;
    if (begin == end) return 0;
    qsort(x + begin, end - begin, sizeof *x, by_id);
    for (size_t i = begin; i < end; i++) /* several tokens of the teacher may map to one of the student's */
        if (made > begin && x[made - 1].id == x[i].id)
            x[made - 1].p += x[i].p;
        else
            x[made++] = x[i];
    qsort(x + begin, made - begin, sizeof *x, by_probability);
    if (made - begin > entries_kept(a)) made = begin + entries_kept(a);
    a->row_entries.len = made * sizeof *x;
    return 0;
}

static float sparse_probability(const struct knowledge_rows *k, size_t row, uint32_t id) {
    for (uint64_t t = k->offset[row]; t < k->offset[row + 1]; t++)
        if (k->ids[t] == id) return k->probs[t];
    return -1;
}

/* Translates row `at` of the sequence; x is its log-probabilities if predictions are dense. */
static int translate_row(struct align *a, size_t at, size_t n, const float *x, size_t columns, struct err *e) {
    float *next = (float *)a->next.data;
    size_t *offset = (size_t *)a->row_offset.data;
    next[at] = -1;
    if (at + 1 < n && knowledge_answered(&a->rows, a->o.from, at)) {
        uint32_t id = a->rows.tokens[at + 1];
        next[at] = x ? expf(x[id]) : sparse_probability(&a->rows, at, id);
    }
    if (a->wanted.data[at] && (x ? translate_dense(a, x, columns, e) : translate_sparse(a, at, e))) return e->code;
    offset[at + 1] = a->row_entries.len / sizeof(struct entry);
    return 0;
}

static int translate_rows(struct align *a, size_t n, struct err *e) {
    const struct knowledge_format *f = a->o.from;
    size_t columns = knowledge_columns(f), d = a->o.student->n_unpadded;
    bool dense = f->encoding == KNOW_DENSE;
    a->row_entries.len = 0;
    if (buf_reserve(&a->next, n * sizeof(float), e) || buf_reserve(&a->row_offset, (n + 1) * sizeof(size_t), e) ||
        (dense &&
         (buf_reserve(&a->x, ALIGN_BLOCK * columns * sizeof(float), e) || buf_reserve(&a->sum, d * sizeof(float), e) ||
          buf_reserve(&a->top, entries_kept(a) * sizeof(uint32_t), e) ||
          buf_reserve(&a->values, entries_kept(a) * sizeof(float), e))))
        return e->code;
    float *x = (float *)a->x.data;
    *(size_t *)a->row_offset.data = 0;
    for (size_t at = 0; at < n; at += ALIGN_BLOCK) {
        size_t block = n - at < ALIGN_BLOCK ? n - at : ALIGN_BLOCK;
        struct kernel_target target; /* for dense predictions, their log-probabilities are in x */
        knowledge_target(&a->rows, f, f->temperature, at, block, x, &target);
        for (size_t i = 0; i < block; i++)
            if (translate_row(a, at + i, n, dense ? x + i * columns : NULL, columns, e)) return e->code;
    }
    return 0;
}

/* ---- the student's rows ------------------------------------------------------------------------------------------ */

/* If the text from row i to byte `end` is several tokens of the teacher: the product of their conditional
 * probabilities. Negative if it is not, or if one is unknown. */
static double chain(const struct align *a, size_t i, size_t n, uint64_t end) {
    const uint64_t *ends = align_ends(&a->teacher);
    const float *next = (const float *)a->next.data;
    double product = 1;
    size_t length = 0;
    for (; i + 1 < n && ends[i] < end; i++, length++) {
        if (ends[i + 1] == ends[i] || next[i] < 0) return -1; /* a control token between them */
        product *= next[i];
    }
    return ends[i] == end && length > 1 ? product : -1;
}

/* Moves the probability of a chain from its first token to the student's token that it spells. */
static void put_chain(struct align *a, uint32_t first, uint32_t label, double p, struct entry *x, size_t *n) {
    size_t at = *n;
    for (size_t i = 0; i < *n; i++) {
        if (x[i].id == first) x[i].p = fmaxf(0, x[i].p - (float)p);
        if (x[i].id == label) at = i;
    }
    if (at == *n) x[(*n)++] = (struct entry){label, 0};
    x[at].p += (float)p;
    a->counts.chained++;
}

static int put_entries(struct align *a, struct entry *x, size_t n, uint32_t label, struct err *e) {
    uint32_t most = a->o.entries;
    if (n) qsort(x, n, sizeof *x, by_probability);
    for (size_t i = 0; i < n && i < most && x[i].p > 0; i++) {
        if (buf_append(&a->ids, &x[i].id, sizeof x[i].id, e) || buf_append(&a->probs, &x[i].p, sizeof x[i].p, e))
            return e->code;
        a->counts.labels_known += x[i].id == label;
    }
    return 0;
}

/* Writes the entries of the student's position j of m; the teacher's sequence has n positions. */
static int align_position(struct align *a, size_t j, size_t m, size_t n, struct entry *scratch, struct err *e) {
    size_t i = ((const size_t *)a->pair.data)[j];
    a->counts.positions += a->counted.data[j];
    if (i != SIZE_MAX) {
        const size_t *offset = (const size_t *)a->row_offset.data;
        const uint32_t *tokens = (const uint32_t *)a->tokens.data;
        size_t k = offset[i + 1] - offset[i];
        uint32_t label = j + 1 < m ? tokens[j + 1] : UINT32_MAX;
        if (k) memcpy(scratch, (const struct entry *)a->row_entries.data + offset[i], k * sizeof *scratch);
        const uint64_t *ends = align_ends(&a->student);
        double p = j + 1 < m && ends[j + 1] > ends[j] ? chain(a, i, n, ends[j + 1]) : -1;
        if (p > 0) {
            uint32_t from = mapped(a, a->rows.tokens[i + 1]);
            if (from == TOKEN_NONE) a->counts.mass += p;
            put_chain(a, from, label, p, scratch, &k);
        }
        a->counts.aligned++;
        a->counts.labels += label != UINT32_MAX;
        if (put_entries(a, scratch, k, label, e)) return e->code;
    }
    uint64_t end = a->ids.len / sizeof(uint32_t);
    return buf_append(&a->offset, &end, sizeof end, e);
}

static int lay_out(struct align *a, size_t n, size_t m, struct err *e) {
    const uint32_t *tokens = (const uint32_t *)a->tokens.data;
    for (size_t j = 0; j < m; j++)
        if (tokens[j] >= a->o.student->n_unpadded)
            return err_set(e, ERR_DATA, "token %u of a vocabulary of %u", tokens[j], a->o.student->n_unpadded);
    if (align_spell(&a->teacher, a->o.teacher, a->rows.tokens, n, e) ||
        align_spell(&a->student, a->o.student, tokens, m, e) || align_check_text(&a->teacher, &a->student, e) ||
        buf_reserve(&a->pair, m * sizeof(size_t), e) || buf_reserve(&a->wanted, n, e) || buf_reserve(&a->counted, m, e))
        return e->code;
    size_t *pair = (size_t *)a->pair.data;
    align_pair(&a->teacher, n, &a->student, m, pair);
    memset(a->wanted.data, 0, n);
    knowledge_count_positions(TARGET_NEXT, 1, &(uint32_t){(uint32_t)m}, a->mask.data, NULL, a->counted.data);
    for (size_t j = 0; j < m; j++) {
        if (pair[j] == SIZE_MAX) continue;
        if (a->counted.data[j] && knowledge_answered(&a->rows, a->o.from, pair[j]))
            a->wanted.data[pair[j]] = 1;
        else
            pair[j] = SIZE_MAX;
    }
    return 0;
}

/* Aligns the first sequence in the queue, n tokens of the teacher; the student's tokens are in a->tokens. */
static int align_sequence(struct align *a, uint64_t number, size_t n, struct knowledge_encoder *k, struct err *e) {
    size_t m = a->tokens.len / sizeof(uint32_t);
    uint64_t zero = 0;
    uint32_t length = (uint32_t)m;
    struct entry *scratch;
    if (!m) return err_set(e, ERR_DATA, "no token of the student's vocabulary spells it");
    if (lay_out(a, n, m, e) || translate_rows(a, n, e)) return e->code;
    a->offset.len = a->ids.len = a->probs.len = 0;
    if (buf_append(&a->offset, &zero, sizeof zero, e)) return e->code;
    if (!(scratch = mem_array(entries_kept(a) + 1, sizeof *scratch, e))) return e->code;
    int rc = 0;
    for (size_t j = 0; !rc && j < m; j++) rc = align_position(a, j, m, n, scratch, e);
    mem_free(scratch);
    struct knowledge_input in = {.head = {.first_seq = number, .n_positions = m, .n_seqs = 1},
                                 .tokens = (const uint32_t *)a->tokens.data,
                                 .lengths = &length,
                                 .mask = a->mask.data,
                                 .counted = a->counted.data};
    if (!rc) rc = knowledge_encoder_begin(k, &in, e);
    if (!rc)
        rc = knowledge_encoder_entries(k, m, (const uint64_t *)a->offset.data, (const uint32_t *)a->ids.data,
                                       (const float *)a->probs.data, e);
    return rc;
}

/* ---- streams ----------------------------------------------------------------------------------------------------- */

/* Reads until there is a complete sequence, or the stream ends. */
static int refill(struct stream_reader *r, const struct knowledge_format *f, struct batch *b, struct knowledge_rows *k,
                  bool *ended, struct err *e) {
    bool more;
    while (!*ended && !knowledge_whole_seqs(k)) {
        if (knowledge_read(r, f, b, &more, e)) return e->code;
        if (more ? knowledge_decode(k, f, b, e) : knowledge_decode_end(k, e))
            return err_prefix(e, "%s", stream_reader_name(r));
        *ended = !more;
    }
    return 0;
}

/* Sets a->tokens and a->mask to the student's tokens for the teacher's first sequence. */
static int take_tokens(struct align *a, const struct align_tokens *given, struct err *e) {
    size_t n = a->rows.lengths[0];
    a->tokens.len = a->mask.len = 0;
    for (size_t i = 0; i < n; i++)
        if (a->rows.tokens[i] >= a->o.teacher->n_tokens)
            return err_set(e, ERR_DATA, "token %u of a vocabulary of %u", a->rows.tokens[i], a->o.teacher->n_tokens);
    if (!given)
        return align_encode(a->o.teacher, a->o.student, a->map, a->rows.tokens, a->rows.mask, n, &a->tokens, &a->mask,
                            e);
    size_t m = a->other.lengths[0];
    if (buf_append(&a->tokens, a->other.tokens, m * sizeof(uint32_t), e)) return e->code;
    return buf_append(&a->mask, a->other.mask, m, e);
}

static int next_sequence(struct align *a, struct stream_reader *teacher, const struct align_tokens *given, bool *more,
                         struct err *e) {
    if (refill(teacher, a->o.from, &a->batch, &a->rows, &a->ended, e)) return e->code;
    *more = knowledge_whole_seqs(&a->rows) > 0;
    if (!given) return 0;
    if (refill(given->r, given->format, &a->other_batch, &a->other, &a->other_ended, e)) return e->code;
    bool others = knowledge_whole_seqs(&a->other) > 0;
    if (others == *more) return 0;
    return err_set(e, ERR_DATA, "%s has more sequences than %s", stream_reader_name(others ? given->r : teacher),
                   stream_reader_name(others ? teacher : given->r));
}

static int align_first(struct align *a, const struct align_tokens *given, struct knowledge_encoder *k, struct err *e) {
    int rc = take_tokens(a, given, e);
    if (!rc) rc = align_sequence(a, a->rows.seqs[0], a->rows.lengths[0], k, e);
    if (rc) return err_prefix(e, "sequence %llu", (unsigned long long)a->rows.seqs[0]);
    knowledge_drop(&a->rows, a->o.from, 1);
    if (given) knowledge_drop(&a->other, given->format, 1);
    return 0;
}

int align_read(struct align *a, struct stream_reader *teacher, const struct align_tokens *tokens,
               struct knowledge_encoder *k, align_watch *watch, void *ctx, struct err *e) {
    bool more = false;
    while (true) {
        if (next_sequence(a, teacher, tokens, &more, e)) return e->code;
        if (!more) return 0;
        if (align_first(a, tokens, k, e)) return err_prefix(e, "%s", stream_reader_name(teacher));
        watch(ctx);
    }
}
