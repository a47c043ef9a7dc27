/*
 * Codec `sample`: n draws with replacement from each row's distribution (Anshumann et al. 2025), teacher.draws u8: one
 * bit string per batch, lowest bit of a byte first. For each row
 *     k        4 bits: the order of the gap codes that makes this row shortest
 *     entries  until their counts sum to n, in ascending order of id:
 *                  gap    id - (id of the previous entry, or -1) - 1: Elias gamma code of (gap >> k) + 1, then the k
 *                         low bits of gap (exponential Golomb code of order k: Teuhola 1978)
 *                  count  Elias gamma code (Elias 1975): b zeros, a one, then b more bits of the number, lowest first
 * and zero bits up to a whole byte at the end of the batch. Tokens of BPE and unigram vocabularies are numbered by
 * frequency, so most gaps are small and few are large; these codes suit that distribution.
 *
 * Streams of rill 1.0 have arrays instead: teacher.n, teacher.ids, teacher.counts. They are read but not written.
 */
#include <stdio.h>
#include <string.h>

#include "lib/knowledge/knowledge_internal.h"

#define DRAW_BLOCK 65536
#define ORDER_BITS 4
#define MAX_ORDER  15
#define ENTRY_BYTES                                                                                                    \
    16 /* upper limit of an entry: 49 + 15 bits for a gap below 2^24, 31 for a count, and slack for word writes */

static void text(const struct knowledge_format *f, char *out, size_t size) {
    snprintf(out, size, "sample:%u", f->n);
}

static bool describe(cJSON *o, const struct knowledge_format *f) {
    return json_put_u64(o, "n", f->n);
}

/* ---- codes ------------------------------------------------------------------------------------------------------- */

static unsigned log2_of(uint32_t v) {
    return 31 - (unsigned)__builtin_clz(v);
}

/* Appends bits [0, n) of v at bit *at; all bits from there on must be zero. */
static void put_bits(unsigned char *bytes, uint64_t *at, uint64_t v, unsigned n) {
    for (unsigned done = 0; done < n;) {
        unsigned shift = *at % 8, take = 8 - shift < n - done ? 8 - shift : n - done;
        bytes[*at / 8] |= (unsigned char)((v >> done & ((1u << take) - 1)) << shift);
        done += take;
        *at += take;
    }
}

static void put_gamma(unsigned char *bytes, uint64_t *at, uint32_t v) {
    unsigned b = log2_of(v);
    *at += b;
    put_bits(bytes, at, 1, 1);
    put_bits(bytes, at, v, b); /* without its highest bit, which the count of zeros implies */
}

static unsigned gamma_bits(uint32_t v) {
    return 2 * log2_of(v) + 1;
}

/* Returns the order that codes the gaps of ascending ids in the fewest bits; the smallest of equals. */
static unsigned best_order(const uint32_t *ids, size_t n) {
    unsigned best = 0;
    uint64_t least = UINT64_MAX;
    for (unsigned k = 0; k <= MAX_ORDER; k++) {
        uint64_t bits = 0;
        uint32_t next = 0;
        for (size_t i = 0; i < n; next = ids[i++] + 1) bits += gamma_bits(((ids[i] - next) >> k) + 1) + k;
        if (bits < least) least = bits, best = k;
    }
    return best;
}

static int put_row(struct knowledge_encoder *k, size_t n, const uint32_t *ids, const uint32_t *counts, struct err *e) {
    struct buf *to = &k->response[0];
    size_t room = (n + 1) * ENTRY_BYTES;
    if (buf_reserve(to, room, e)) return e->code;
    memset(to->data + to->len, 0, room);
    unsigned order = best_order(ids, n);
    uint32_t next = 0;
    put_bits(to->data, &k->bits, order, ORDER_BITS);
    for (size_t i = 0; i < n; next = ids[i++] + 1) {
        uint32_t gap = ids[i] - next;
        put_gamma(to->data, &k->bits, (gap >> order) + 1);
        put_bits(to->data, &k->bits, gap, order);
        put_gamma(to->data, &k->bits, counts[i]);
    }
    to->len = (k->bits + 7) / 8;
    k->counts.entries += n;
    return 0;
}

/* A bit reader. Bits past the end read as zero; then at > end. */
struct bits {
    const unsigned char *bytes;
    uint64_t at, end;
};

static uint64_t take_bits(struct bits *b, unsigned n) {
    uint64_t v = 0;
    for (unsigned done = 0; done < n;) {
        unsigned shift = b->at % 8, take = 8 - shift < n - done ? 8 - shift : n - done;
        if (b->at < b->end) v |= (uint64_t)(b->bytes[b->at / 8] >> shift & ((1u << take) - 1)) << done;
        done += take;
        b->at += take;
    }
    return v;
}

/* Reads a gamma code. Returns 0 at the end of the bits, or if the number has more than 31 bits. */
static uint32_t take_gamma(struct bits *b) {
    unsigned zeros = 0;
    while (b->at < b->end && zeros < 31) {
        unsigned shift = b->at % 8, byte = (unsigned)b->bytes[b->at / 8] >> shift;
        unsigned run = byte ? (unsigned)__builtin_ctz(byte) : 8 - shift;
        zeros += run;
        b->at += run;
        if (byte) break;
    }
    if (b->at >= b->end || zeros > 30) return 0;
    b->at++;
    uint32_t v = (uint32_t)(1u << zeros | take_bits(b, zeros));
    return b->at <= b->end ? v : 0;
}

/* ---- encoding ---------------------------------------------------------------------------------------------------- */

/* Draws n uniforms in [0, 1) with 53 bits for a row: a pure function of seed and row. */
static void draw_uniforms(double *u, size_t n, uint64_t seed, uint64_t row) {
    uint32_t word[4];
    for (size_t i = 0; i < n; i++) {
        if (i % 2 == 0) philox(seed, row, i / 2, word);
        u[i] = philox_f64(word + i % 2 * 2);
    }
}

static int encode_block(struct knowledge_encoder *k, size_t first, size_t rows, struct logits x, float inv_temperature,
                        struct err *e) {
    size_t n = k->format.n, cols = knowledge_stored_columns(&k->format);
    if (knowledge_make_room(k, rows * n, (size_t[]){sizeof(uint32_t), sizeof(double), sizeof(uint32_t)}, e))
        return e->code;
    uint32_t *ids = (void *)k->scratch[0].data, *counts = (void *)k->scratch[2].data;
    double *u = (void *)k->scratch[1].data;
    for (size_t r = 0; r < rows; r++) draw_uniforms(u + r * n, n, k->seed, k->drawn + knowledge_row_at(k, first + r));
    size_t bad = kernel_sample(ids, u, kernel_host_array(x.type, x.data), rows, cols, n, inv_temperature);
    if (bad < rows) return knowledge_fail_at_row(k, first + bad, e, knowledge_not_finite);
    for (size_t r = 0; r < rows; r++) {
        uint32_t *row = ids + r * n; /* ascending: equal draws are adjacent, so they are counted in place */
        size_t entries = 0;
        for (size_t i = 0; i < n; i++) {
            if (entries && row[entries - 1] == row[i])
                counts[entries - 1]++;
            else
                row[entries] = row[i], counts[entries++] = 1;
        }
        if (put_row(k, entries, row, counts, e)) return e->code;
    }
    return 0;
}

static int encode(struct knowledge_encoder *k, size_t rows, struct logits x, float inv_temperature, struct err *e) {
    size_t block = k->format.n < DRAW_BLOCK ? DRAW_BLOCK / k->format.n : 1;
    size_t row_bytes = dtype_row_bytes(x.type, knowledge_stored_columns(&k->format));
    for (size_t first = 0; first < rows; first += block) {
        size_t n = rows - first < block ? rows - first : block;
        struct logits part = {x.type, x.data + first * row_bytes};
        if (encode_block(k, first, n, part, inv_temperature, e)) return e->code;
    }
    return 0;
}

static int entries(struct knowledge_encoder *k, size_t n, const uint32_t *ids, const float *values, struct err *e) {
    if (knowledge_make_room(k, n, (size_t[]){sizeof(uint32_t), 1, 1}, e)) return e->code;
    uint32_t *counts = (void *)k->scratch[0].data;
    for (size_t i = 0; i < n; i++) counts[i] = (uint32_t)values[i];
    return put_row(k, n, ids, counts, e);
}

static int write_batch(struct knowledge_encoder *k, uint64_t rows, struct err *e) {
    (void)rows;
    k->bits = 0;
    return knowledge_put_tensor(k, "teacher.draws", DT_U8, 0, 0, &k->response[0], e);
}

/* ---- decoding ---------------------------------------------------------------------------------------------------- */

static int put_entry(struct knowledge_rows *k, const struct knowledge_format *f, uint32_t id, uint32_t count,
                     struct err *e) {
    float prob = (float)count / (float)f->n;
    if (buf_append(&k->memory[MEM_IDS], &id, sizeof id, e)) return e->code;
    return buf_append(&k->memory[MEM_PROBS], &prob, sizeof prob, e);
}

static int decode_row(struct knowledge_rows *k, const struct knowledge_format *f, struct bits *b, struct err *e) {
    uint64_t cols = knowledge_stored_columns(f), next = 0;
    uint32_t left = f->n;
    unsigned order = (unsigned)take_bits(b, ORDER_BITS);
    while (left) {
        uint64_t high = take_gamma(b);
        uint64_t id = next + ((high - 1) << order) + take_bits(b, order);
        uint32_t count = take_gamma(b);
        if (!high || !count) return err_set(e, ERR_DATA, "the codes of \"teacher.draws\" end early");
        if (id >= cols)
            return err_set(e, ERR_DATA, "entry %llu of a vocabulary of %llu", (unsigned long long)id,
                           (unsigned long long)cols);
        if (count > left) return err_set(e, ERR_DATA, "the counts sum to more than the %u draws", f->n);
        if (put_entry(k, f, (uint32_t)id, count, e)) return e->code;
        left -= count;
        next = id + 1;
    }
    return 0;
}

static int decode_codes(struct knowledge_rows *k, const struct knowledge_format *f, const struct batch *b,
                        uint64_t rows, struct err *e) {
    const struct tensor *t;
    if (batch_need(b, "teacher.draws", DT_U8, 1, &(uint64_t){0}, &t, e)) return e->code;
    struct bits bits = {t->data, 0, t->n_bytes * 8};
    for (uint64_t r = 0; r < rows; r++)
        if (decode_row(k, f, &bits, e))
            return err_prefix(e, "position %llu of the batch", (unsigned long long)knowledge_position_of_row(b, r));
        else if (knowledge_end_row(k, e))
            return e->code;
    if (bits.end - bits.at >= 8 || take_bits(&bits, (unsigned)(bits.end - bits.at)))
        return err_set(e, ERR_DATA, "\"teacher.draws\" goes on behind the last row of the batch");
    return 0;
}

/* Reads a row of the arrays in a stream of rill 1.0. */
static int array_row(struct knowledge_rows *k, const struct knowledge_format *f, const struct knowledge_entries *s,
                     uint64_t at, size_t n, struct err *e) {
    uint64_t sum = 0;
    uint32_t before = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t id = knowledge_number_at(knowledge_id_type(f), s->ids->data, at + i);
        uint32_t count = knowledge_number_at(knowledge_count_type(f), s->values->data, at + i);
        if (id >= knowledge_stored_columns(f))
            return err_set(e, ERR_DATA, "entry %u of a vocabulary of %u", id, knowledge_stored_columns(f));
        if (i && id == before) return err_set(e, ERR_DATA, "entry %u occurs twice", id);
        if (i && id < before) return err_set(e, ERR_DATA, "entries %u and %u are not in ascending order", before, id);
        if (!count) return err_set(e, ERR_DATA, "an entry that was never drawn");
        if (put_entry(k, f, id, count, e)) return e->code;
        sum += count;
        before = id;
    }
    if (sum != f->n)
        return err_set(e, ERR_DATA, "the counts sum to %llu: expected %u draws", (unsigned long long)sum, f->n);
    return 0;
}

static int decode(struct knowledge_rows *k, const struct knowledge_format *f, const struct batch *b, uint64_t rows,
                  bool view, struct err *e) {
    (void)view;
    if (!batch_find(b, "teacher.n")) return decode_codes(k, f, b, rows, e);
    return knowledge_decode_entries(k, f, b, rows, "teacher.counts", knowledge_count_type(f), array_row, e);
}

/* An estimate that nearly all rows stay below: as many entries as draws, with ids spread evenly. */
static double bytes(const struct knowledge_format *f) {
    double cols = knowledge_stored_columns(f), n = f->n < cols ? f->n : cols;
    return (ORDER_BITS + n * (3 + log2_of((uint32_t)(cols / n) + 1) + 1)) / 8;
}

const struct knowledge_response_codec knowledge_codec_sample = {.name = "sample",
                                                                .encoding = KNOW_SAMPLE,
                                                                .argument = "N",
                                                                .draws_any_type = true,
                                                                .n_tensors = 1,
                                                                .parse = knowledge_parse_n,
                                                                .text = text,
                                                                .describe = describe,
                                                                .read = knowledge_read_n,
                                                                .encode = encode,
                                                                .entries = entries,
                                                                .write = write_batch,
                                                                .decode = decode,
                                                                .bytes = bytes};
