/* Decodes batches of knowledge into rows for a loss. Input is not trusted: every value is checked here, once. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lib/knowledge/knowledge_internal.h"

static void set_feature_counts(struct knowledge_rows *k) {
    for (size_t i = 0; i < k->n_fields; i++) {
        struct knowledge_feature *x = &k->fields[i];
        const struct knowledge_field *field = x->field;
        x->n_rows = field->per == PER_PAIR ? k->memory[MEM_PAIR_LENGTHS].len / sizeof(uint32_t)
                                           : x->stored.values.len / knowledge_vector_bytes(field->dtype, field->cols);
    }
}

static void set_pointers(struct knowledge_rows *k, const struct knowledge_format *f) {
    k->seqs = (void *)k->memory[MEM_SEQS].data;
    k->lengths = (void *)k->memory[MEM_LENGTHS].data;
    k->tokens = (void *)k->memory[MEM_TOKENS].data;
    k->labels = (void *)k->memory[MEM_LABELS].data;
    k->mask = k->memory[MEM_MASK].data;
    k->types = k->memory[MEM_TYPES].len ? (void *)k->memory[MEM_TYPES].data : NULL;
    k->offset = (void *)k->memory[MEM_OFFSET].data;
    k->ids = (void *)k->memory[MEM_IDS].data;
    k->probs = (void *)k->memory[MEM_PROBS].data;
    k->rest = f->encoding == KNOW_GHOST ? (void *)k->memory[MEM_REST].data : NULL;
    k->dense = f->encoding != KNOW_DENSE ? NULL : k->viewed ? k->viewed : k->memory[MEM_DENSE].data;
    k->sampled = f->tap_positions ? (void *)k->memory[MEM_SAMPLED].data : NULL;
    k->counted = knowledge_may_count(f) ? (void *)k->memory[MEM_COUNTED].data : NULL;
    k->pair_lengths = knowledge_pair_field(f) ? (void *)k->memory[MEM_PAIR_LENGTHS].data : NULL;
    k->n_rows = k->memory[MEM_OFFSET].len / sizeof(uint64_t) - 1;
    set_feature_counts(k);
}

/* ---- tokens, lengths and labels ---------------------------------------------------------------------------------- */

static int check_tokens(const struct knowledge_format *f, const uint32_t *tokens, uint64_t n, struct err *e) {
    uint32_t vocab = f->n_used ? f->n_used : f->vocab_size;
    for (uint64_t i = 0; vocab && i < n; i++)
        if (tokens[i] >= vocab)
            return err_set(e, ERR_DATA, "position %llu of the batch: token %u of a vocabulary of %u",
                           (unsigned long long)i, tokens[i], vocab);
    return 0;
}

/* Appends lengths; the first one extends an open sequence. */
static int append_lengths(struct knowledge_rows *k, const struct stream_batch *head, const uint32_t *lengths,
                          struct err *e) {
    uint32_t first = 0;
    if (!k->n_seqs) k->first_pos = head->first_pos;
    if (k->open && k->n_seqs) {
        uint32_t *last = (uint32_t *)k->memory[MEM_LENGTHS].data + k->n_seqs - 1;
        if (*last + (uint64_t)lengths[0] > UINT32_MAX)
            return err_set(e, ERR_DATA, "sequence %llu has more than 2^32 positions",
                           (unsigned long long)head->first_seq);
        *last += lengths[0];
        first = 1;
    }
    for (uint32_t i = first; i < head->n_seqs; i++) {
        uint64_t seq = head->first_seq + i;
        if (buf_append(&k->memory[MEM_SEQS], &seq, sizeof seq, e) ||
            buf_append(&k->memory[MEM_LENGTHS], &lengths[i], sizeof lengths[i], e))
            return e->code;
    }
    k->n_seqs += head->n_seqs - first;
    return 0;
}

static int append_mask(struct knowledge_rows *k, const struct batch *b, struct err *e) {
    const struct tensor *t = batch_find(b, BATCH_MASK);
    uint64_t n = b->head.n_positions;
    uint8_t *mask = knowledge_extend(&k->memory[MEM_MASK], n, e);
    if (!mask) return e->code;
    memset(mask, 1, n);
    if (!t) return 0;
    if (batch_need(b, BATCH_MASK, DT_U8, 1, &n, &t, e)) return e->code;
    memcpy(mask, t->data, n);
    for (uint64_t i = 0; i < n; i++)
        if (mask[i] > 1)
            return err_set(e, ERR_DATA, "position %llu of the batch: the mask is %u, expected 0 or 1",
                           (unsigned long long)i, mask[i]);
    return 0;
}

/* Returns space for the types of n more positions, all 0, after filling in zeros for batches that had no types. */
static uint32_t *extend_types(struct knowledge_rows *k, uint64_t n, struct err *e) {
    struct buf *to = &k->memory[MEM_TYPES];
    uint64_t missing = k->n_positions - to->len / sizeof(uint32_t);
    uint32_t *types = knowledge_extend(to, (missing + n) * sizeof *types, e);
    if (!types) return NULL;
    memset(types, 0, (missing + n) * sizeof *types);
    return types + missing;
}

/* Appends token types, from the first batch that has any. */
static int append_types(struct knowledge_rows *k, const struct batch *b, struct err *e) {
    const struct tensor *t = batch_find(b, BATCH_TYPES);
    uint64_t n = b->head.n_positions;
    if (!k->memory[MEM_TYPES].len && !t) return 0;
    if (t && batch_need(b, BATCH_TYPES, DT_U8, 1, &n, &t, e)) return e->code;
    uint32_t *types = extend_types(k, n, e);
    if (!types) return e->code;
    for (uint64_t i = 0; t && i < n; i++)
        if ((types[i] = ((const uint8_t *)t->data)[i]) > KNOWLEDGE_MAX_TYPE)
            return err_set(e, ERR_DATA, "position %llu of the batch: token type %u", (unsigned long long)i, types[i]);
    return 0;
}

/* The label of a position is the next token, if the mask allows it; the last position of a piece gets its label when
 * the next piece arrives. */
static int next_labels(struct knowledge_rows *k, const struct batch *b, bool joined, struct err *e) {
    const struct stream_batch *head = &b->head;
    const uint32_t *lengths = batch_lengths(b), *tokens = (void *)k->memory[MEM_TOKENS].data;
    if (append_mask(k, b, e) || !knowledge_extend(&k->memory[MEM_LABELS], head->n_positions * sizeof *k->labels, e))
        return e->code;
    const uint8_t *mask = k->memory[MEM_MASK].data;
    uint32_t *labels = (void *)k->memory[MEM_LABELS].data;
    size_t at = k->n_positions;
    if (joined) labels[at - 1] = mask[at] ? tokens[at] : UINT32_MAX;
    for (uint32_t i = 0; i < head->n_seqs; i++) {
        for (uint32_t t = 0; t + 1 < lengths[i]; t++, at++) labels[at] = mask[at + 1] ? tokens[at + 1] : UINT32_MAX;
        labels[at++] = UINT32_MAX;
    }
    return 0;
}

/* Appends n labels from the stream, each below `most` (0: no limit), or "none" for all if the batch has no labels. */
static int stored_labels(struct knowledge_rows *k, const struct batch *b, uint64_t n, uint32_t most, struct err *e) {
    const struct tensor *t = batch_find(b, BATCH_LABELS);
    uint32_t *labels = knowledge_extend(&k->memory[MEM_LABELS], n * sizeof *labels, e);
    if (!labels || append_mask(k, b, e)) return e->code;
    memset(labels, 0xFF, n * sizeof *labels);
    if (!t) return 0;
    if (batch_need(b, BATCH_LABELS, DT_U32, 1, &n, &t, e)) return e->code;
    memcpy(labels, t->data, n * sizeof *labels);
    for (uint64_t i = 0; most && i < n; i++)
        if (labels[i] != UINT32_MAX && labels[i] >= most)
            return err_set(e, ERR_DATA, "label %llu of the batch is %u: expected one below %u", (unsigned long long)i,
                           labels[i], most);
    return 0;
}

static int append_labels(struct knowledge_rows *k, const struct knowledge_format *f, const struct batch *b, bool joined,
                         struct err *e) {
    if (f->target == TARGET_NEXT) return next_labels(k, b, joined, e);
    uint64_t n = f->target == TARGET_SEQUENCE ? knowledge_ended(&b->head) : b->head.n_positions;
    return stored_labels(k, b, n, knowledge_columns(f), e);
}

/* ---- positions that count ---------------------------------------------------------------------------------------- */

/* Appends running sums of flags [n]: one u64 per position, after a leading 0. */
static int append_sums(struct buf *sums, const uint8_t *flags, uint64_t n, struct err *e) {
    uint64_t zero = 0;
    if (!sums->len && buf_append(sums, &zero, sizeof zero, e)) return e->code;
    uint64_t *sum = knowledge_extend(sums, n * sizeof *sum, e);
    if (!sum) return e->code;
    for (uint64_t i = 0; i < n; i++) sum[i] = sum[(ptrdiff_t)i - 1] + (flags[i] != 0);
    return 0;
}

/* A labelled position without a prediction would be trained without the teacher: reject it. `joined`: the label of the
 * position before the batch has just become known. */
static int check_counted(const struct knowledge_rows *k, uint64_t n, bool joined, struct err *e) {
    const uint64_t *before = (const uint64_t *)k->memory[MEM_COUNTED].data;
    const uint32_t *labels = (const uint32_t *)k->memory[MEM_LABELS].data;
    for (uint64_t i = k->n_positions - joined; i < k->n_positions + n; i++)
        if (before[i + 1] == before[i] && labels[i] != UINT32_MAX && i < k->n_positions)
            return err_set(e, ERR_DATA, "the position before the batch has a label, and its \"%s\" is 0",
                           KNOWLEDGE_COUNTED);
        else if (before[i + 1] == before[i] && labels[i] != UINT32_MAX)
            return err_set(e, ERR_DATA, "position %llu of the batch has a label, and its \"%s\" is 0",
                           (unsigned long long)(i - k->n_positions), KNOWLEDGE_COUNTED);
    return 0;
}

/* Reads which positions of the batch are counted, as flags and running sums; sets the number of rows of the
 * response. */
static int append_counted(struct knowledge_rows *k, const struct knowledge_format *f, const struct batch *b,
                          bool joined, uint64_t *rows, struct err *e) {
    const struct tensor *t = batch_find(b, KNOWLEDGE_COUNTED);
    struct buf *flags = &k->memory[MEM_COUNT_FLAGS], *sums = &k->memory[MEM_COUNTED];
    uint64_t n = b->head.n_positions;
    flags->len = 0;
    uint8_t *flag = knowledge_extend(flags, n, e);
    if (!flag) return e->code;
    memset(flag, 1, n);
    if (t && batch_need(b, KNOWLEDGE_COUNTED, DT_U8, 1, &n, &t, e)) return e->code;
    if (t) memcpy(flag, t->data, n);
    for (uint64_t i = 0; i < n; i++)
        if (flag[i] > 1)
            return err_set(e, ERR_DATA, "position %llu of the batch: \"%s\" is %u, expected 0 or 1",
                           (unsigned long long)i, KNOWLEDGE_COUNTED, flag[i]);
    if (append_sums(sums, flag, n, e)) return e->code;
    const uint64_t *end = (const uint64_t *)(const void *)(sums->data + sums->len);
    if (f->target == TARGET_SEQUENCE) return 0; /* only fields have rows per position */
    *rows = end[-1] - end[-1 - (ptrdiff_t)n];
    return check_counted(k, n, joined, e);
}

/* The batch's decoded rows belong to its counted positions: spreads them over all n positions, with empty rows
 * between. */
static int spread_rows(struct knowledge_rows *k, const struct knowledge_format *f, uint64_t n, uint64_t rows,
                       struct err *e) {
    struct buf *ends = &k->memory[MEM_OFFSET], *rests = &k->memory[MEM_REST];
    bool ghost = f->encoding == KNOW_GHOST;
    if (rows == n) return 0;
    if (!knowledge_extend(ends, (n - rows) * sizeof *k->offset, e) ||
        (ghost && !knowledge_extend(rests, (n - rows) * sizeof *k->rest, e)))
        return e->code;
    const uint8_t *flag = k->memory[MEM_COUNT_FLAGS].data;
    uint64_t *end = (uint64_t *)(void *)(ends->data + ends->len) - n;
    float *rest = ghost ? (float *)(void *)(rests->data + rests->len) - n : NULL;
    for (uint64_t i = n, from = rows; i-- > 0;) { /* backwards, so that reads stay ahead of writes */
        end[i] = end[(ptrdiff_t)from - 1];
        if (rest) rest[i] = flag[i] ? rest[from - 1] : 1;
        from -= flag[i];
    }
    return 0;
}

/* ---- fields ------------------------------------------------------------------------------------------------------ */

static int begin_fields(struct knowledge_rows *k, const struct knowledge_format *f, struct err *e) {
    if (k->n_fields || !f->n_fields) return 0;
    k->fields = mem_array(f->n_fields, sizeof *k->fields, e);
    if (!k->fields) return e->code;
    k->n_fields = f->n_fields;
    for (size_t i = 0; i < k->n_fields; i++) k->fields[i].field = &f->fields[i];
    return 0;
}

/* Reads which positions of the batch are sampled, as flags and running sums. */
static int append_sampled(struct knowledge_rows *k, const struct batch *b, struct err *e) {
    const struct tensor *t;
    uint64_t n = b->head.n_positions, zero = 0;
    struct buf *flags = &k->memory[MEM_FLAGS];
    if (batch_need(b, "teacher.positions", DT_U32, 1, &zero, &t, e)) return e->code;
    flags->len = 0;
    uint8_t *flag = knowledge_extend(flags, n, e);
    if (!flag) return e->code;
    memset(flag, 0, n);
    const uint32_t *at = t->data;
    for (uint64_t i = 0; i < t->desc.dims[0]; i++) {
        if (at[i] >= n || (i && at[i] <= at[i - 1]))
            return err_set(e, ERR_DATA, "\"teacher.positions\" has %u: expected positions of the batch, ascending",
                           at[i]);
        flag[at[i]] = 1;
    }
    return append_sums(&k->memory[MEM_SAMPLED], flag, n, e);
}

/* Appends the lengths of the batch's PER_PAIR rows, those of sequences that end in it. *from: index of the first. */
static int append_pair_lengths(struct knowledge_rows *k, const struct knowledge_format *f, const struct batch *b,
                               size_t *from, struct err *e) {
    const uint32_t *lengths = batch_lengths(b);
    const struct knowledge_field *field = knowledge_pair_field(f);
    const uint8_t *sampled = field->sampled   ? k->memory[MEM_FLAGS].data
                             : field->counted ? k->memory[MEM_COUNT_FLAGS].data
                                              : NULL;
    uint64_t at = 0, ended = knowledge_ended(&b->head);
    *from = k->memory[MEM_PAIR_LENGTHS].len / sizeof(uint32_t);
    for (uint32_t i = 0; i < b->head.n_seqs; at += lengths[i++])
        if (knowledge_pairs_step(&k->pairs, lengths[i], sampled ? sampled + at : NULL, e) ||
            (i < ended && knowledge_pairs_end(&k->pairs, f, &k->memory[MEM_PAIR_LENGTHS], e)))
            return e->code;
    return 0;
}

/* Attention weights are probabilities: rejects negative values and NaN. */
static int check_weights(const struct knowledge_field *field, const void *data, uint64_t n, struct err *e) {
    for (uint64_t i = 0; i < n; i++) {
        float v;
        tensor_to_f32(field->dtype, (const unsigned char *)data + i * dtype_row_bytes(field->dtype, 1), &v, 1);
        if (!(v >= 0)) return err_set(e, ERR_DATA, "tensor 'teacher.%s': a weight is %g", field->name, v);
    }
    return 0;
}

static int append_scales(struct knowledge_feature *x, const struct batch *b, uint64_t vectors, struct err *e) {
    const struct tensor *t;
    char name[KNOWLEDGE_FIELD_NAME + 16];
    snprintf(name, sizeof name, "teacher.%s.scale", x->field->name);
    if (batch_need(b, name, DT_F32, 1, &vectors, &t, e)) return e->code;
    for (uint64_t i = 0; i < vectors; i++) {
        float v = ((const float *)t->data)[i];
        if (!(v >= 0) || isinf(v)) return err_set(e, ERR_DATA, "tensor '%s': a scale is %g", name, v);
    }
    return buf_append(&x->stored.scales, t->data, t->n_bytes, e);
}

/* Appends the field's tensors. pairs: index in the queue of the batch's first PER_PAIR row. */
static int append_field(struct knowledge_rows *k, struct knowledge_feature *x, const struct batch *b, size_t pairs,
                        struct err *e) {
    const struct knowledge_field *field = x->field;
    const struct tensor *t;
    char name[KNOWLEDGE_FIELD_NAME + 16];
    const struct buf *sums = &k->memory[field->sampled ? MEM_SAMPLED : MEM_COUNTED];
    const uint64_t *before = (const uint64_t *)(const void *)(sums->data + sums->len);
    uint64_t rows = b->head.n_positions, dims[2];
    if (field->sampled || field->counted) rows = before[-1] - before[-1 - (ptrdiff_t)b->head.n_positions];
    if (field->per == PER_SEQUENCE) rows = knowledge_ended(&b->head);
    bool pair = field->per == PER_PAIR;
    const uint32_t *lengths = (void *)k->memory[MEM_PAIR_LENGTHS].data;
    if (pair) rows = k->memory[MEM_PAIR_LENGTHS].len / sizeof *lengths - pairs;
    dims[0] = pair ? knowledge_field_values(field, lengths, pairs, rows) : rows;
    dims[1] = field->cols;
    snprintf(name, sizeof name, "teacher.%s", field->name);
    if (batch_need(b, name, field->dtype, pair ? 1 : 2, dims, &t, e)) return e->code;
    if (t->desc.dims[0] != dims[0]) /* batch_need takes 0 rows for any number */
        return err_set(e, ERR_DATA, "tensor '%s' has %llu rows: expected %llu", name,
                       (unsigned long long)t->desc.dims[0], (unsigned long long)dims[0]);
    uint64_t n = tensor_elems(&t->desc);
    if (field->dtype != DT_I8 && tensor_first_nonfinite(field->dtype, t->data, n) < n)
        return err_set(e, ERR_DATA, "tensor '%s': a value is not finite", name);
    if (pair && check_weights(field, t->data, n, e)) return e->code;
    if (buf_append(&x->stored.values, t->data, t->n_bytes, e)) return e->code;
    return field->dtype == DT_I8 ? append_scales(x, b, rows * field->codec->vectors(field), e) : 0;
}

static int append_fields(struct knowledge_rows *k, const struct knowledge_format *f, const struct batch *b,
                         struct err *e) {
    size_t pairs = 0;
    if (begin_fields(k, f, e) || (f->tap_positions && append_sampled(k, b, e)) ||
        (knowledge_pair_field(f) && append_pair_lengths(k, f, b, &pairs, e)))
        return e->code;
    for (size_t i = 0; i < k->n_fields; i++)
        if (append_field(k, &k->fields[i], b, pairs, e)) return e->code;
    return 0;
}

/* ---- the queue --------------------------------------------------------------------------------------------------- */

static int append_batch(struct knowledge_rows *k, const struct knowledge_format *f, const struct batch *b, bool view,
                        struct err *e) {
    const struct knowledge_response_codec *codec = knowledge_response_codec(f->encoding);
    const uint32_t *tokens = batch_tokens(b), *lengths = batch_lengths(b);
    uint64_t n = b->head.n_positions;
    uint64_t all = f->target == TARGET_SEQUENCE ? knowledge_ended(&b->head) : n, rows = all;
    bool joined = k->open && k->n_seqs;
    if (knowledge_cursor_step(&k->cursor, &b->head, lengths, e) || check_tokens(f, tokens, n, e)) return e->code;
    if (!k->memory[MEM_OFFSET].len && knowledge_append_empty(k, 1, e)) return e->code;
    if (append_lengths(k, &b->head, lengths, e) || buf_append(&k->memory[MEM_TOKENS], tokens, n * sizeof *tokens, e) ||
        append_labels(k, f, b, joined, e) || append_types(k, b, e) ||
        (knowledge_may_count(f) && append_counted(k, f, b, joined, &rows, e)) || append_fields(k, f, b, e))
        return e->code;
    k->open = k->cursor.open;
    k->n_positions += n;
    if (!codec) return knowledge_append_empty(k, all, e);
    return codec->decode(k, f, b, rows, view, e) ? e->code : spread_rows(k, f, all, rows, e);
}

static int in_batch(const struct batch *b, struct err *e) {
    unsigned long long first = b->head.first_seq;
    return err_prefix(e, "batch of sequences %llu to %llu", first, first + b->head.n_seqs - 1);
}

static int decode(struct knowledge_rows *k, const struct knowledge_format *f, const struct batch *b, bool view,
                  struct err *e) {
    if (!b->head.n_positions) return 0;
    if (append_batch(k, f, b, view, e)) return in_batch(b, e);
    set_pointers(k, f);
    return 0;
}

int knowledge_decode(struct knowledge_rows *k, const struct knowledge_format *f, const struct batch *b, struct err *e) {
    return decode(k, f, b, false, e);
}

int knowledge_view(struct knowledge_rows *k, const struct knowledge_format *f, const struct batch *b, struct err *e) {
    knowledge_clear(k);
    return decode(k, f, b, true, e);
}

int knowledge_decode_end(const struct knowledge_rows *k, struct err *e) {
    return knowledge_cursor_end(&k->cursor, e);
}

size_t knowledge_whole_seqs(const struct knowledge_rows *k) {
    return k->n_seqs - (k->open && k->n_seqs ? 1 : 0);
}

int knowledge_check_context(const struct knowledge_rows *k, uint32_t context, const char *whose, struct err *e) {
    for (size_t i = 0; i < k->n_seqs; i++)
        if (k->lengths[i] > context)
            return err_set(e, ERR_DATA,
                           "sequence %llu has %u positions, the %s's context is %u (tokenize --context %u)",
                           (unsigned long long)k->seqs[i], k->lengths[i], whose, context, context);
    return 0;
}

void knowledge_clear(struct knowledge_rows *k) {
    for (size_t i = 0; i < MEM_QUEUE; i++) k->memory[i].len = 0;
    for (size_t i = 0; i < k->n_fields; i++) k->fields[i].stored.values.len = k->fields[i].stored.scales.len = 0;
    k->n_positions = k->n_seqs = k->n_rows = 0;
    k->viewed = NULL;
}

size_t knowledge_next_pass(const struct knowledge_rows *k, size_t first, uint64_t fit, uint64_t enough, bool last,
                           size_t *n_positions) {
    size_t whole = knowledge_whole_seqs(k), i = first;
    for (*n_positions = 0; i < whole; i++) {
        if (i > first && *n_positions + k->lengths[i] > fit) return i - first;
        *n_positions += k->lengths[i];
        if (*n_positions >= enough) return i + 1 - first;
    }
    return last ? i - first : 0;
}

static void drop_front(struct buf *b, size_t n) {
    if (!n) return;
    b->len -= n;
    memmove(b->data, b->data + n, b->len);
}

/* Removes the rows of fields that belong to the first n_seqs sequences. */
static void drop_fields(struct knowledge_rows *k, size_t n_seqs) {
    size_t pairs = 0, first;
    for (size_t i = 0; i < k->n_fields; i++) {
        struct knowledge_feature *x = &k->fields[i];
        const struct knowledge_field *field = x->field;
        size_t rows = knowledge_feature_span(k, i, 0, n_seqs, &first), vectors = field->codec->vectors(field);
        uint64_t values = knowledge_field_values(field, k->pair_lengths, 0, rows);
        if (field->per == PER_PAIR) pairs = rows;
        drop_front(&x->stored.values, knowledge_vector_bytes(field->dtype, values));
        drop_front(&x->stored.scales, rows * vectors * knowledge_scale_bytes(field->dtype));
    }
    if (k->pair_lengths) drop_front(&k->memory[MEM_PAIR_LENGTHS], pairs * sizeof *k->pair_lengths);
}

/* Removes the running sums of n positions; the others are reduced to start from 0. */
static void drop_sums(struct buf *sums, size_t n) {
    uint64_t *sum = (uint64_t *)(void *)sums->data, before = sum[n];
    drop_front(sums, n * sizeof *sum);
    for (size_t i = 0; i < sums->len / sizeof *sum; i++) sum[i] -= before;
}

void knowledge_drop(struct knowledge_rows *k, const struct knowledge_format *f, size_t n_seqs) {
    if (!n_seqs) return;
    size_t n = 0;
    for (size_t i = 0; i < n_seqs; i++) n += k->lengths[i];
    size_t rows = knowledge_first_row(f, n_seqs, n);
    uint64_t entries = k->offset[rows], stored = knowledge_stored_row(k, f, rows);
    drop_fields(k, n_seqs);
    if (k->sampled) drop_sums(&k->memory[MEM_SAMPLED], n);
    if (k->counted) drop_sums(&k->memory[MEM_COUNTED], n);
    drop_front(&k->memory[MEM_SEQS], n_seqs * sizeof *k->seqs);
    drop_front(&k->memory[MEM_LENGTHS], n_seqs * sizeof *k->lengths);
    drop_front(&k->memory[MEM_TOKENS], n * sizeof *k->tokens);
    drop_front(&k->memory[MEM_LABELS], rows * sizeof *k->labels);
    drop_front(&k->memory[MEM_MASK], n);
    if (k->types) drop_front(&k->memory[MEM_TYPES], n * sizeof *k->types);
    drop_front(&k->memory[MEM_OFFSET], rows * sizeof *k->offset);
    drop_front(&k->memory[MEM_IDS], entries * sizeof *k->ids);
    drop_front(&k->memory[MEM_PROBS], entries * sizeof *k->probs);
    if (f->encoding == KNOW_GHOST) drop_front(&k->memory[MEM_REST], rows * sizeof *k->rest);
    if (f->encoding == KNOW_DENSE)
        drop_front(&k->memory[MEM_DENSE], stored * dtype_row_bytes(f->dtype, knowledge_stored_columns(f)));
    k->first_pos = 0;
    k->n_seqs -= n_seqs;
    k->n_positions -= n;
    set_pointers(k, f);
    for (size_t i = 0; i <= k->n_rows; i++) k->offset[i] -= entries;
}

/* ---- from queue to queue ----------------------------------------------------------------------------------------- */

static int append_some(struct buf *to, const struct buf *from, size_t first, size_t n, size_t size, struct err *e) {
    return n ? buf_append(to, from->data + first * size, n * size, e) : 0;
}

static int append_field_rows(struct knowledge_rows *k, const struct knowledge_rows *from, size_t field, size_t seq,
                             size_t n_seqs, size_t *first, size_t *rows, struct err *e) {
    const struct knowledge_feature *x = &from->fields[field];
    struct knowledge_part *to = &k->fields[field].stored;
    enum dtype dtype = x->field->dtype;
    *rows = knowledge_feature_span(from, field, seq, n_seqs, first);
    uint64_t at = knowledge_field_values(x->field, from->pair_lengths, 0, *first),
             values = knowledge_field_values(x->field, from->pair_lengths, *first, *rows);
    size_t scales = x->field->codec->vectors(x->field) * knowledge_scale_bytes(dtype);
    if (values && buf_append(&to->values, x->stored.values.data + knowledge_vector_bytes(dtype, at),
                             knowledge_vector_bytes(dtype, values), e))
        return e->code;
    return append_some(&to->scales, &x->stored.scales, *first, *rows, scales, e);
}

/* Appends running sums for n positions of `from`, starting at position `first`. */
static int append_sums_of(struct buf *sums, const uint64_t *from, size_t first, size_t n, struct err *e) {
    uint64_t zero = 0;
    if (!sums->len && buf_append(sums, &zero, sizeof zero, e)) return e->code;
    uint64_t *sum = knowledge_extend(sums, n * sizeof *sum, e);
    if (!sum) return e->code;
    for (size_t i = 0; i < n; i++) sum[i] = sum[(ptrdiff_t)i - 1] + (from[first + i + 1] - from[first + i]);
    return 0;
}

static int append_fields_of(struct knowledge_rows *k, const struct knowledge_rows *from,
                            const struct knowledge_format *f, size_t seq, size_t n_seqs, size_t first, size_t n,
                            struct err *e) {
    size_t row = 0, rows = 0, pair_row = 0, pair_rows = 0;
    if (begin_fields(k, f, e) ||
        (from->sampled && append_sums_of(&k->memory[MEM_SAMPLED], from->sampled, first, n, e)) ||
        (from->counted && append_sums_of(&k->memory[MEM_COUNTED], from->counted, first, n, e)))
        return e->code;
    for (size_t i = 0; i < k->n_fields; i++) {
        if (append_field_rows(k, from, i, seq, n_seqs, &row, &rows, e)) return e->code;
        if (from->fields[i].field->per == PER_PAIR) pair_row = row, pair_rows = rows;
    }
    return append_some(&k->memory[MEM_PAIR_LENGTHS], &from->memory[MEM_PAIR_LENGTHS], pair_row, pair_rows,
                       sizeof(uint32_t), e);
}

/* Appends types, if either queue has any. */
static int append_types_of(struct knowledge_rows *k, const struct knowledge_rows *from, size_t first, size_t n,
                           struct err *e) {
    if (!k->memory[MEM_TYPES].len && !from->types) return 0;
    uint32_t *types = extend_types(k, n, e);
    if (!types) return e->code;
    if (from->types) memcpy(types, from->types + first, n * sizeof *types);
    return 0;
}

static int append_entries(struct knowledge_rows *k, const struct knowledge_rows *from, const struct knowledge_format *f,
                          size_t first, size_t n, struct err *e) {
    uint64_t at = from->offset[first], entries = from->offset[first + n] - at;
    if (!k->memory[MEM_OFFSET].len && knowledge_append_empty(k, 1, e)) return e->code;
    uint64_t *offset = knowledge_extend(&k->memory[MEM_OFFSET], n * sizeof *offset, e);
    if (!offset) return e->code;
    uint64_t before = offset[-1];
    for (size_t i = 0; i < n; i++) offset[i] = before + (from->offset[first + i + 1] - at);
    if (append_some(&k->memory[MEM_IDS], &from->memory[MEM_IDS], at, entries, sizeof *k->ids, e) ||
        append_some(&k->memory[MEM_PROBS], &from->memory[MEM_PROBS], at, entries, sizeof *k->probs, e))
        return e->code;
    if (f->encoding == KNOW_GHOST)
        return append_some(&k->memory[MEM_REST], &from->memory[MEM_REST], first, n, sizeof *k->rest, e);
    if (f->encoding != KNOW_DENSE) return 0;
    size_t row = knowledge_stored_row(from, f, first);
    return append_some(&k->memory[MEM_DENSE], &from->memory[MEM_DENSE], row,
                       knowledge_stored_row(from, f, first + n) - row,
                       dtype_row_bytes(f->dtype, knowledge_stored_columns(f)), e);
}

int knowledge_append_seqs(struct knowledge_rows *k, const struct knowledge_rows *from, const struct knowledge_format *f,
                          size_t seq, size_t n_seqs, struct err *e) {
    size_t first = 0, n = 0;
    for (size_t i = 0; i < seq; i++) first += from->lengths[i];
    for (size_t i = 0; i < n_seqs; i++) n += from->lengths[seq + i];
    bool classes = f->target == TARGET_SEQUENCE;
    size_t row = classes ? seq : first, rows = classes ? n_seqs : n;
    const struct buf *m = from->memory;
    if (append_some(&k->memory[MEM_SEQS], &m[MEM_SEQS], seq, n_seqs, sizeof *k->seqs, e) ||
        append_some(&k->memory[MEM_LENGTHS], &m[MEM_LENGTHS], seq, n_seqs, sizeof *k->lengths, e) ||
        append_some(&k->memory[MEM_TOKENS], &m[MEM_TOKENS], first, n, sizeof *k->tokens, e) ||
        append_some(&k->memory[MEM_LABELS], &m[MEM_LABELS], row, rows, sizeof *k->labels, e) ||
        append_some(&k->memory[MEM_MASK], &m[MEM_MASK], first, n, 1, e) || append_types_of(k, from, first, n, e) ||
        append_fields_of(k, from, f, seq, n_seqs, first, n, e) || append_entries(k, from, f, row, rows, e))
        return e->code;
    k->n_seqs += n_seqs;
    k->n_positions += n;
    set_pointers(k, f);
    return 0;
}

/* ---- digests ----------------------------------------------------------------------------------------------------- */

/* The probabilities of top entries are left out: they come from exp, whose last bit may differ between machines. */
static void digest_response(struct digest_state *d, const struct knowledge_rows *k, const struct knowledge_format *f,
                            size_t first, size_t n) {
    uint64_t from = k->offset[first], entries = k->offset[first + n] - from;
    if (f->encoding == KNOW_DENSE) {
        size_t row = dtype_row_bytes(f->dtype, knowledge_stored_columns(f)), at = knowledge_stored_row(k, f, first);
        digest_update(d, (const unsigned char *)k->dense + at * row,
                      (knowledge_stored_row(k, f, first + n) - at) * row);
    }
    if (!knowledge_is_sparse(f)) return;
    digest_update(d, k->ids + from, entries * sizeof *k->ids);
    if (f->encoding == KNOW_SAMPLE) digest_update(d, k->probs + from, entries * sizeof *k->probs);
}

static void digest_fields(struct digest_state *d, const struct knowledge_rows *k, size_t seq) {
    for (size_t i = 0; i < k->n_fields; i++) {
        const struct knowledge_feature *x = &k->fields[i];
        size_t first, n = knowledge_feature_span(k, i, seq, 1, &first);
        uint64_t at = knowledge_field_values(x->field, k->pair_lengths, 0, first),
                 values = knowledge_field_values(x->field, k->pair_lengths, first, n);
        size_t scale = knowledge_scale_bytes(x->field->dtype) * x->field->codec->vectors(x->field);
        digest_update(d, x->stored.values.data + knowledge_vector_bytes(x->field->dtype, at),
                      knowledge_vector_bytes(x->field->dtype, values));
        if (scale) digest_update(d, x->stored.scales.data + first * scale, n * scale);
    }
}

void knowledge_digest_seq(struct digest_state *d, const struct knowledge_rows *k, const struct knowledge_format *f,
                          size_t seq, size_t position) {
    uint32_t n = k->lengths[seq];
    size_t first = knowledge_first_row(f, seq, position), rows = f->target == TARGET_SEQUENCE ? 1 : n;
    digest_update(d, &n, sizeof n);
    digest_update(d, k->tokens + position, n * sizeof *k->tokens);
    if (f->target != TARGET_NEXT) digest_update(d, k->labels + first, rows * sizeof *k->labels);
    digest_response(d, k, f, first, rows);
    digest_fields(d, k, seq);
}

void knowledge_rows_release(struct knowledge_rows *k) {
    for (size_t i = 0; i < COUNT_OF(k->memory); i++) buf_release(&k->memory[i]);
    for (size_t i = 0; i < k->n_fields; i++) knowledge_part_release(&k->fields[i].stored);
    mem_free(k->fields);
    buf_release(&k->pairs.open);
    buf_release(&k->seen);
    *k = (struct knowledge_rows){0};
}

/* ---- for the loss ------------------------------------------------------------------------------------------------ */

double knowledge_inv_temperature(const struct knowledge_format *f, double temperature) {
    return f->temperature / temperature; /* the stored temperature of logits is 1 */
}

struct dense_job {
    const struct knowledge_rows *k;
    const struct knowledge_format *f;
    size_t first;
    float *to;
    bool stored; /* rows are numbered among the counted ones */
};

static void load_row(void *ctx, size_t r, int thread) {
    const struct dense_job *j = ctx;
    size_t d = knowledge_columns(j->f), row = j->first + r,
           at = j->stored ? row : knowledge_stored_row(j->k, j->f, row);
    const unsigned char *from = j->k->dense;
    (void)thread;
    if (!j->stored && !knowledge_answered(j->k, j->f, row))
        memset(j->to + r * d, 0, d * sizeof *j->to);
    else
        tensor_to_f32(j->f->dtype, from + at * dtype_row_bytes(j->f->dtype, knowledge_stored_columns(j->f)),
                      j->to + r * d, d);
}

void knowledge_dense_rows(const struct knowledge_rows *k, const struct knowledge_format *f, size_t first, size_t rows,
                          float *out) {
    parallel_for(rows, load_row, &(struct dense_job){k, f, first, out, false});
}

void knowledge_dense_stored(const struct knowledge_rows *k, const struct knowledge_format *f, size_t first, size_t rows,
                            float *out) {
    parallel_for(rows, load_row, &(struct dense_job){k, f, first, out, true});
}

void knowledge_target(const struct knowledge_rows *k, const struct knowledge_format *f, double temperature,
                      size_t first, size_t rows, float *scratch, struct kernel_target *out) {
    *out = (struct kernel_target){
        .offset = k->offset + first,
        .ids = k->ids,
        .probs = k->probs,
        .rest = k->rest ? k->rest + first : NULL,
        .label = k->labels + first,
    };
    if (f->encoding != KNOW_DENSE) return;
    float inv_temperature = (float)knowledge_inv_temperature(f, temperature);
    knowledge_dense_rows(k, f, first, rows, scratch);
    kernel_log_softmax(kernel_f32(scratch), kernel_f32(scratch), rows, knowledge_columns(f), inv_temperature);
    out->dense = scratch;
}

double knowledge_t_ln_t(const struct kernel_target *t, size_t r, double *mass) {
    double sum = 0;
    *mass = 0;
    for (uint64_t i = t->offset[r]; i < t->offset[r + 1]; i++) {
        double p = t->probs[i];
        *mass += p;
        if (p > 0) sum += p * log(p);
    }
    return sum;
}
