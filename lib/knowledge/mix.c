/*
 * Mixes the predictions of several teachers for the same tokens. The inputs are read in lockstep: a piece extends to
 * the nearest end of a current batch, so batches may be cut differently, and memory holds one batch per input.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/knowledge/knowledge_internal.h"

#define MIX_BLOCK 64 /* dense rows mixed at a time */

/* A teacher's stream and the read position in it. */
struct lane {
    struct stream_reader *r;
    const struct knowledge_format *f;
    double weight; /* normalised: they sum to 1 */
    struct batch batch;
    struct knowledge_rows rows; /* of the current batch */
    size_t at, row, seq;        /* done in this batch: positions, rows of the response, complete sequences */
    uint32_t in_seq;            /* done positions of sequence `seq` in this batch */
    size_t next_seq;            /* `seq` and `in_seq` after the current piece */
    uint32_t next_in_seq;
    struct buf lengths; /* u32: lengths of the parts of sequences in the current piece */
    size_t ended;       /* sequences that end in it */
    bool open;
};

struct entry {
    uint32_t id, lane;
    double p; /* weighted; for draws their count */
};

struct knowledge_mixer {
    enum knowledge_mean mean;
    struct knowledge_format out;
    size_t n;
    struct lane *lanes;
    struct buf sum, x;              /* f64 and f32 [MIX_BLOCK][columns] */
    struct buf entries;             /* struct entry, of one row */
    struct buf offset, ids, values; /* of the current piece: u64, u32, f32 */
    struct buf counted;             /* u8 [positions of the piece]: 1 where all teachers have a prediction */
    struct knowledge_mix_counts counts;
};

/* ---- checks ------------------------------------------------------------------------------------------------------ */

static int disagree(struct err *e, const char *what, const char *first, const char *other) {
    return err_set(e, ERR_DATA, "%s differ: first %s, here %s", what, first, other);
}

static int check_encoding(const struct knowledge_format *a, const struct knowledge_format *b, double temperature,
                          struct err *e) {
    char first[64], other[64];
    if (a->encoding != b->encoding)
        return err_set(e, ERR_DATA, "different encodings cannot be mixed: first %s, here %s (logit-dump --encode)",
                       knowledge_encoding_text(a, first, sizeof first),
                       knowledge_encoding_text(b, other, sizeof other));
    if (temperature > 0) return knowledge_check_temperature(b, temperature, e);
    if (a->temperature == b->temperature) return 0;
    return err_set(e, ERR_DATA, "temperatures differ: first %g, here %g", a->temperature, b->temperature);
}

/* Checks that another teacher's predictions can be mixed with the first's. */
static int check_pair(const struct knowledge_format *a, const struct knowledge_format *b, double temperature,
                      struct err *e) {
    char first[32], other[32];
    if (b->encoding == KNOW_NONE) return err_set(e, ERR_DATA, "there are no predictions to mix");
    if (b->n_fields)
        return err_set(e, ERR_DATA, "tapped fields cannot be mixed: %s (remove it with logit-dump --drop)",
                       b->fields[0].name);
    if (strcmp(a->vocab, b->vocab) != 0)
        return disagree(e, "vocabularies", a->vocab[0] ? a->vocab : "unnamed", b->vocab[0] ? b->vocab : "unnamed");
    if (a->target != b->target)
        return disagree(e, "targets", stream_target_name(a->target), stream_target_name(b->target));
    if (knowledge_stored_columns(a) != knowledge_stored_columns(b)) {
        snprintf(first, sizeof first, "%u", knowledge_stored_columns(a));
        snprintf(other, sizeof other, "%u", knowledge_stored_columns(b));
        return disagree(e, "the columns of the teachers' logits", first, other);
    }
    return check_encoding(a, b, temperature, e);
}

/* Sets the largest number of entries or draws in a row of the mixture. */
static int count_entries(const struct knowledge_mix_input *in, size_t n, struct knowledge_format *out, struct err *e) {
    uint64_t sum = 0, most = knowledge_stored_columns(out);
    uint32_t least = UINT32_MAX;
    for (size_t i = 0; i < n; i++) {
        sum += in[i].format->n;
        if (in[i].format->n < least) least = in[i].format->n;
        if (in[i].format->p < out->p) out->p = in[i].format->p;
        out->partial |= in[i].format->partial;
    }
    if (out->encoding == KNOW_SAMPLE) {
        if (sum > KNOWLEDGE_MAX_N)
            return err_set(e, ERR_DATA, "%llu draws in all: at most %d can be stored", (unsigned long long)sum,
                           KNOWLEDGE_MAX_N);
        out->n = (uint32_t)sum;
    } else if (out->encoding == KNOW_GHOST) {
        out->n = least;
    } else {
        if (most > KNOWLEDGE_MAX_N) most = KNOWLEDGE_MAX_N;
        out->n = (uint32_t)(sum < most ? sum : most);
        out->partial = true;
    }
    return 0;
}

int knowledge_mix_format(const struct knowledge_mixture *how, const struct knowledge_mix_input *in, size_t n,
                         struct knowledge_format *out, size_t *bad, struct err *e) {
    const struct knowledge_format *first = in[0].format;
    char name[64];
    for (*bad = 0; *bad < n; ++*bad)
        if (check_pair(first, in[*bad].format, how->temperature, e)) return e->code;
    *bad = 0;
    if (how->mean == MEAN_GEOMETRIC && first->encoding != KNOW_DENSE)
        return err_set(e, ERR_DATA, "a geometric mean needs the probabilities of all tokens: %s is not dense",
                       knowledge_encoding_text(first, name, sizeof name));
    for (size_t i = 0; i < n; i++)
        if (first->encoding == KNOW_SAMPLE && in[i].weight != in[0].weight)
            return err_set(e, ERR_USAGE,
                           "draws are pooled, so a teacher's weight is its number of draws (encode with other numbers: "
                           "logit-dump --encode sample:N)");
    *out = *first;
    out->teacher[0] = 0; /* several teachers, which provenance names */
    if (how->temperature > 0) out->temperature = how->temperature;
    if (first->encoding != KNOW_DENSE) return count_entries(in, n, out, e);
    out->log_probs = true;
    return 0;
}

int knowledge_mixer_new(struct knowledge_mixer **out, const struct knowledge_mixture *how,
                        const struct knowledge_mix_input *in, size_t n, const struct knowledge_format *format,
                        struct err *e) {
    struct knowledge_mixer *m = mem_zalloc(sizeof *m, e);
    if (!m) return e->code;
    double sum = 0;
    m->mean = how->mean;
    m->out = *format;
    m->n = n;
    m->lanes = mem_array(n, sizeof *m->lanes, e);
    for (size_t i = 0; i < n; i++) sum += in[i].weight;
    for (size_t i = 0; m->lanes && i < n; i++)
        m->lanes[i] = (struct lane){.r = in[i].r, .f = in[i].format, .weight = in[i].weight / sum};
    if (!m->lanes) {
        mem_free(m);
        return e->code;
    }
    *out = m;
    return 0;
}

void knowledge_mixer_free(struct knowledge_mixer *m) {
    if (!m) return;
    for (size_t i = 0; i < m->n; i++) {
        batch_release(&m->lanes[i].batch);
        knowledge_rows_release(&m->lanes[i].rows);
        buf_release(&m->lanes[i].lengths);
    }
    struct buf *all[] = {&m->sum, &m->x, &m->entries, &m->offset, &m->ids, &m->values, &m->counted};
    for (size_t i = 0; i < COUNT_OF(all); i++) buf_release(all[i]);
    mem_free(m->lanes);
    mem_free(m);
}

struct knowledge_mix_counts knowledge_mixer_counts(const struct knowledge_mixer *m) {
    return m->counts;
}

/* ---- reading in lockstep ----------------------------------------------------------------------------------------- */

/* Reads the next batch that has positions, if the current one is used up. */
static int refill(struct lane *l, bool *more, struct err *e) {
    *more = true;
    if (l->at < l->rows.n_positions) return 0;
    do
        if (knowledge_read(l->r, l->f, &l->batch, more, e)) return e->code;
    while (*more && !l->batch.head.n_positions);
    if (!*more) {
        if (knowledge_decode_end(&l->rows, e)) return err_prefix(e, "%s", stream_reader_name(l->r));
        return 0;
    }
    l->at = l->row = l->seq = l->in_seq = 0;
    if (knowledge_view(&l->rows, l->f, &l->batch, e) ||
        (l->f->encoding == KNOW_DENSE && knowledge_check_dense(l->f, &l->batch, e)))
        return err_prefix(e, "%s", stream_reader_name(l->r));
    return 0;
}

/* Cuts the next n positions into parts of sequences. */
static int cut_piece(struct lane *l, size_t n, struct err *e) {
    const struct knowledge_rows *k = &l->rows;
    size_t seq = l->seq;
    uint32_t from = l->in_seq;
    l->lengths.len = 0;
    l->ended = 0;
    while (n) {
        uint32_t left = k->lengths[seq] - from, take = left < n ? left : (uint32_t)n;
        if (buf_append(&l->lengths, &take, sizeof take, e)) return e->code;
        l->open = take < left || (k->open && seq + 1 == k->n_seqs);
        l->ended += !l->open;
        n -= take;
        from += take;
        if (take == left) seq++, from = 0;
    }
    l->next_seq = seq;
    l->next_in_seq = from;
    return 0;
}

static uint64_t position_in_seq(const struct lane *l) {
    return (l->seq ? 0 : l->rows.first_pos) + l->in_seq;
}

static size_t rows_in_piece(const struct knowledge_mixer *m, size_t n) {
    return m->out.target == TARGET_SEQUENCE ? m->lanes[0].ended : n;
}

static void advance(struct knowledge_mixer *m, size_t n) {
    for (size_t i = 0; i < m->n; i++) {
        struct lane *l = &m->lanes[i];
        l->row += rows_in_piece(m, n);
        l->at += n;
        l->seq = l->next_seq;
        l->in_seq = l->next_in_seq;
    }
}

static uint32_t type_at(const struct lane *l, size_t i) {
    return l->rows.types ? l->rows.types[l->at + i] : 0;
}

/* Returns the first of n positions at which token, mask, type or label differ, or n. */
static size_t first_difference(const struct lane *a, const struct lane *b, size_t n) {
    bool masked = a->f->target == TARGET_MASKED;
    for (size_t i = 0; i < n; i++)
        if (a->rows.tokens[a->at + i] != b->rows.tokens[b->at + i] ||
            a->rows.mask[a->at + i] != b->rows.mask[b->at + i] || type_at(a, i) != type_at(b, i) ||
            (masked && a->rows.labels[a->row + i] != b->rows.labels[b->row + i]))
            return i;
    return n;
}

static int other_tokens(const struct lane *a, const struct lane *b, uint64_t position, struct err *e) {
    return err_set(e, ERR_DATA,
                   "%s: position %llu of the stream is another than in %s: expected the same tokens, "
                   "labels and sequences",
                   stream_reader_name(b->r), (unsigned long long)position, stream_reader_name(a->r));
}

static int check_same(const struct knowledge_mixer *m, const struct lane *b, size_t n, struct err *e) {
    const struct lane *a = &m->lanes[0];
    uint64_t position = m->counts.positions;
    size_t bad = first_difference(a, b, n);
    if (bad < n) return other_tokens(a, b, position + bad, e);
    if (position_in_seq(a) != position_in_seq(b) || a->lengths.len != b->lengths.len ||
        memcmp(a->lengths.data, b->lengths.data, a->lengths.len) != 0 || a->open != b->open)
        return other_tokens(a, b, position, e);
    bool classes = m->out.target == TARGET_SEQUENCE;
    if (classes && a->ended &&
        memcmp(a->rows.labels + a->row, b->rows.labels + b->row, a->ended * sizeof *a->rows.labels) != 0)
        return other_tokens(a, b, position, e);
    return 0;
}

/* Sets the number of positions of the next piece: 0 if all streams have ended. */
static int next_piece(struct knowledge_mixer *m, size_t *n, struct err *e) {
    struct lane *first = &m->lanes[0];
    bool more = false, others = false;
    if (refill(first, &more, e)) return e->code;
    *n = more ? first->rows.n_positions - first->at : 0;
    for (size_t i = 1; i < m->n; i++) {
        struct lane *l = &m->lanes[i];
        if (refill(l, &others, e)) return e->code;
        if (others != more)
            return err_set(e, ERR_DATA, "%s ends after %llu positions, %s goes on",
                           stream_reader_name(more ? l->r : first->r), (unsigned long long)m->counts.positions,
                           stream_reader_name(more ? first->r : l->r));
        if (more && l->rows.n_positions - l->at < *n) *n = l->rows.n_positions - l->at;
    }
    for (size_t i = 0; i < m->n && *n; i++)
        if (cut_piece(&m->lanes[i], *n, e) || (i && check_same(m, &m->lanes[i], *n, e))) return e->code;
    return 0;
}

/* Marks the positions at which all teachers have a prediction. */
static int find_counted(struct knowledge_mixer *m, size_t n, struct err *e) {
    m->counted.len = 0;
    uint8_t *counted = knowledge_extend(&m->counted, n, e);
    if (!counted) return e->code;
    memset(counted, 1, n);
    for (size_t i = 0; i < m->n && m->out.target != TARGET_SEQUENCE; i++) {
        const struct lane *l = &m->lanes[i];
        const uint64_t *before = l->rows.counted + l->at;
        for (size_t r = 0; r < n; r++) counted[r] &= before[r + 1] > before[r];
    }
    return 0;
}

/* Removes the rows of positions that are not counted; returns how many are left. */
static size_t keep_counted(const struct knowledge_mixer *m, float *x, size_t first, size_t n, size_t d) {
    size_t kept = 0;
    if (m->out.target == TARGET_SEQUENCE) return n;
    for (size_t r = 0; r < n; r++) {
        if (!m->counted.data[first + r]) continue;
        if (kept < r) memmove(x + kept * d, x + r * d, d * sizeof *x);
        kept++;
    }
    return kept;
}

/* ---- dense predictions ------------------------------------------------------------------------------------------- */

struct dense_sum {
    bool geometric;
    double weight, *sum;
    float *x; /* log-probabilities */
    size_t d;
};

static void add_row(void *ctx, size_t r, int thread) {
    const struct dense_sum *j = ctx;
    double *sum = j->sum + r * j->d;
    const float *x = j->x + r * j->d;
    (void)thread;
    for (size_t i = 0; i < j->d; i++) sum[i] += j->weight * (j->geometric ? x[i] : exp(x[i]));
}

/* Back to logarithms. A probability of 0 in f64 becomes the least positive number, because stored values must be
 * finite. */
static void finish_row(void *ctx, size_t r, int thread) {
    const struct dense_sum *j = ctx;
    const double *sum = j->sum + r * j->d;
    float *x = j->x + r * j->d;
    (void)thread;
    for (size_t i = 0; i < j->d; i++) x[i] = (float)(j->geometric ? sum[i] : log(fmax(sum[i], DBL_TRUE_MIN)));
}

static int mix_dense(struct knowledge_mixer *m, struct knowledge_encoder *k, size_t rows, struct err *e) {
    size_t d = knowledge_stored_columns(&m->out);
    if (buf_reserve(&m->sum, MIX_BLOCK * d * sizeof(double), e) || buf_reserve(&m->x, MIX_BLOCK * d * sizeof(float), e))
        return e->code;
    struct dense_sum j = {m->mean == MEAN_GEOMETRIC, 0, (double *)m->sum.data, (float *)m->x.data, d};
    for (size_t first = 0; first < rows; first += MIX_BLOCK) { /* over all positions, counted or not */
        size_t n = rows - first < MIX_BLOCK ? rows - first : MIX_BLOCK;
        memset(j.sum, 0, n * d * sizeof *j.sum);
        for (size_t i = 0; i < m->n; i++) {
            const struct lane *l = &m->lanes[i];
            struct kernel_target target; /* its log-probabilities are in j.x */
            knowledge_target(&l->rows, l->f, m->out.temperature, l->row + first, n, j.x, &target);
            j.weight = l->weight;
            parallel_for(n, add_row, &j);
        }
        parallel_for(n, finish_row, &j);
        n = keep_counted(m, j.x, first, n, d);
        if (n && knowledge_encoder_rows(k, n, j.x, 1, e)) return e->code;
    }
    return 0;
}

/* ---- entries ----------------------------------------------------------------------------------------------------- */

static int by_id(const void *a, const void *b) {
    const struct entry *x = a, *y = b;
    if (x->id != y->id) return x->id < y->id ? -1 : 1;
    return x->lane < y->lane ? -1 : x->lane > y->lane;
}

static int by_probability(const void *a, const void *b) {
    const struct entry *x = a, *y = b;
    if (x->p != y->p) return x->p > y->p ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static int gather_row(struct knowledge_mixer *m, size_t r, struct err *e) {
    bool draws = m->out.encoding == KNOW_SAMPLE;
    m->entries.len = 0;
    for (size_t i = 0; i < m->n; i++) {
        const struct lane *l = &m->lanes[i];
        for (uint64_t t = l->rows.offset[l->row + r]; t < l->rows.offset[l->row + r + 1]; t++) {
            double p = draws ? rint(l->rows.probs[t] * l->f->n) : l->weight * l->rows.probs[t];
            struct entry one = {l->rows.ids[t], (uint32_t)i, p};
            if (buf_append(&m->entries, &one, sizeof one, e)) return e->code;
        }
    }
    return 0;
}

/* Merges entries of the same id, in order of id; `lane` becomes the number of teachers that have it. Returns their
 * number. */
static size_t join_entries(struct entry *x, size_t n) {
    size_t made = 0;
    if (n) qsort(x, n, sizeof *x, by_id);
    for (size_t i = 0; i < n; i++) {
        if (made && x[made - 1].id == x[i].id) {
            x[made - 1].p += x[i].p;
            x[made - 1].lane++;
        } else {
            x[made] = x[i];
            x[made++].lane = 1;
        }
    }
    return made;
}

/* Keeps the tokens that all teachers list. */
static size_t keep_common(struct knowledge_mixer *m, struct entry *x, size_t n) {
    size_t kept = 0;
    for (size_t i = 0; i < n; i++)
        if (x[i].lane == m->n) x[kept++] = x[i];
    m->counts.without_common += !kept;
    return kept;
}

static int mix_row(struct knowledge_mixer *m, size_t r, struct err *e) {
    bool counts = m->out.target == TARGET_SEQUENCE || m->counted.data[r];
    m->entries.len = 0;
    if (counts && gather_row(m, r, e)) return e->code;
    struct entry *x = (struct entry *)m->entries.data;
    size_t n = join_entries(x, m->entries.len / sizeof *x);
    if (m->out.encoding == KNOW_GHOST && counts) n = keep_common(m, x, n);
    if (m->out.encoding != KNOW_SAMPLE) {
        if (n) qsort(x, n, sizeof *x, by_probability);
        if (n > m->out.n) n = m->out.n;
    }
    for (size_t i = 0; i < n; i++) {
        float p = (float)x[i].p;
        if (buf_append(&m->ids, &x[i].id, sizeof x[i].id, e) || buf_append(&m->values, &p, sizeof p, e)) return e->code;
    }
    uint64_t end = m->ids.len / sizeof(uint32_t);
    return buf_append(&m->offset, &end, sizeof end, e);
}

static int mix_entries(struct knowledge_mixer *m, struct knowledge_encoder *k, size_t rows, struct err *e) {
    uint64_t zero = 0;
    m->offset.len = m->ids.len = m->values.len = 0;
    if (buf_append(&m->offset, &zero, sizeof zero, e)) return e->code;
    for (size_t r = 0; r < rows; r++)
        if (mix_row(m, r, e)) return e->code;
    return knowledge_encoder_entries(k, rows, (const uint64_t *)m->offset.data, (const uint32_t *)m->ids.data,
                                     (const float *)m->values.data, e);
}

/* ---- the interface ----------------------------------------------------------------------------------------------- */

static int announce(struct knowledge_mixer *m, struct knowledge_encoder *k, size_t n, struct err *e) {
    const struct lane *l = &m->lanes[0];
    struct knowledge_input in = {
        .head = {.first_seq = l->rows.seqs[l->seq],
                 .first_pos = position_in_seq(l),
                 .n_positions = n,
                 .n_seqs = (uint32_t)(l->lengths.len / sizeof(uint32_t)),
                 .flags = l->open ? BATCH_CONTINUES : 0},
        .tokens = l->rows.tokens + l->at,
        .lengths = (const uint32_t *)l->lengths.data,
        .mask = l->rows.mask + l->at,
        .labels = m->out.target == TARGET_NEXT ? NULL : l->rows.labels + l->row,
        .types = l->rows.types ? l->rows.types + l->at : NULL,
    };
    if (find_counted(m, n, e)) return e->code;
    in.counted = m->counted.data;
    return knowledge_encoder_begin(k, &in, e);
}

int knowledge_mixer_step(struct knowledge_mixer *m, struct knowledge_encoder *k, bool *more, struct err *e) {
    size_t n = 0;
    if (next_piece(m, &n, e)) return e->code;
    *more = n > 0;
    if (!n) return 0;
    size_t rows = rows_in_piece(m, n);
    if (announce(m, k, n, e) || (m->out.encoding == KNOW_DENSE ? mix_dense(m, k, rows, e) : mix_entries(m, k, rows, e)))
        return e->code;
    advance(m, n);
    m->counts.positions += n;
    return 0;
}
