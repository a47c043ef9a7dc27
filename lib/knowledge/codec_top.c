/*
 * Codecs `topk`, `ghost` and `topp`: the largest log-probabilities of each row, in descending order, as teacher.n,
 * teacher.ids and teacher.logprobs f16. topp (nucleus: Holtzman et al. 2020) keeps the fewest that sum to at least p.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lib/knowledge/knowledge_internal.h"

#define F16_LOWEST   0xFBFF /* -65504 */
#define TOPP_BEGIN   64     /* first number of entries to try */
#define TOPP_ROWS    64     /* rows per block */
#define TYPICAL_TOPP 64.0   /* typical entries per row, for size estimates */

static bool parse_share(const char *argument, struct knowledge_format *f) {
    if (!parse_f64(argument, &f->p) || !(f->p > 0 && f->p <= 1)) return false;
    f->n = KNOWLEDGE_MAX_N;
    return true;
}

static void text(const struct knowledge_format *f, char *out, size_t size) {
    if (f->encoding == KNOW_TOPP)
        snprintf(out, size, "topp:%g", f->p);
    else
        snprintf(out, size, "%s:%u", f->encoding == KNOW_GHOST ? "ghost" : "topk", f->n);
}

static bool describe(cJSON *o, const struct knowledge_format *f) {
    return json_put_u64(o, "n", f->n) && (f->encoding != KNOW_TOPP || json_put_f64(o, "p", f->p)) &&
           (!f->partial || json_put_bool(o, "partial", true));
}

static int read_members(const cJSON *o, struct knowledge_format *f, struct err *e) {
    if (knowledge_read_n(o, f, e) || json_opt_bool(o, "partial", &f->partial, e)) return e->code;
    if (f->partial && f->encoding == KNOW_GHOST) return err_set(e, ERR_DATA, "a ghost of entries that are partial");
    return f->encoding == KNOW_TOPP ? json_get_f64(o, "p", 1e-9, 1, &f->p, e) : 0;
}

/* ---- encoding ---------------------------------------------------------------------------------------------------- */

/* Rounds a log-probability to the nearest f16, or down to the next one below. */
static uint16_t round_logprob(double v, bool down) {
    if (v > 0) v = 0;
    if (v < -65504) return F16_LOWEST;
    uint16_t h = f32_to_f16((float)v);
    return down && f16_to_f32(h) > v ? (h == 0 ? 0x8001 : h + 1) : h;
}

/* Returns how many of the n entries to keep; for topp the fewest that sum to p. *enough: do n entries suffice? */
static size_t entries_of(const struct knowledge_format *f, const double *logprobs, size_t n, bool *enough) {
    double sum = 0;
    *enough = true;
    if (f->encoding != KNOW_TOPP) return n;
    for (size_t i = 0; i < n; i++)
        if ((sum += exp(logprobs[i])) >= f->p) return i + 1;
    *enough = false;
    return n;
}

static int put_row(struct knowledge_encoder *k, size_t n, const uint32_t *ids, const double *logprobs, struct err *e) {
    const struct knowledge_format *f = &k->format;
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += exp(f16_to_f32(round_logprob(logprobs[i], false)));
    if (knowledge_put_number(&k->response[0], knowledge_count_type(f), (uint32_t)n, e)) return e->code;
    for (size_t i = 0; i < n; i++) {
        uint16_t h = round_logprob(logprobs[i], sum > 1);
        if (knowledge_put_number(&k->response[1], knowledge_id_type(f), ids[i], e) ||
            buf_append(&k->response[2], &h, sizeof h, e))
            return e->code;
    }
    k->counts.entries += n;
    return 0;
}

/* Finds the n largest entries of each row, into scratch memory. */
static int find_top(struct knowledge_encoder *k, size_t rows, const float *x, float inv_temperature, size_t n,
                    struct err *e) {
    size_t d = knowledge_stored_columns(&k->format);
    if (knowledge_make_room(k, rows * n + rows, (size_t[]){sizeof(uint32_t), 2 * sizeof(float), sizeof(double)}, e))
        return e->code;
    uint32_t *ids = (void *)k->scratch[0].data;
    float *lse = (void *)k->scratch[1].data, *values = lse + rows;
    double *logprobs = (void *)k->scratch[2].data;
    kernel_logsumexp(lse, kernel_f32(x), rows, d, inv_temperature);
    kernel_topk(ids, values, kernel_f32(x), rows, d, n);
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < n; i++) logprobs[r * n + i] = (double)values[r * n + i] * inv_temperature - lse[r];
    return 0;
}

/* Writes row `at` of the n-entry rows in scratch memory, cut to its share; writes nothing if n entries are not
 * enough. */
static int put_share(struct knowledge_encoder *k, size_t at, size_t n, bool *enough, struct err *e) {
    const double *logprobs = (const double *)k->scratch[2].data + at * n;
    size_t take = entries_of(&k->format, logprobs, n, enough);
    return *enough ? put_row(k, take, (const uint32_t *)k->scratch[0].data + at * n, logprobs, e) : 0;
}

/* Encodes a row that needs more entries than its block provided. */
static int encode_flat_row(struct knowledge_encoder *k, const float *x, float inv_temperature, size_t n, size_t most,
                           struct err *e) {
    for (bool enough = false; !enough;) {
        n = n < most / 8 ? n * 8 : most;
        if (find_top(k, 1, x, inv_temperature, n, e) || put_share(k, 0, n, &enough, e)) return e->code;
        if (n == most && !enough) /* rounding keeps the whole vocabulary below p, or the limit on entries is reached */
            return put_row(k, n, (const uint32_t *)k->scratch[0].data, (const double *)k->scratch[2].data, e);
    }
    return 0;
}

static int encode_share(struct knowledge_encoder *k, size_t rows, const float *x, float inv_temperature,
                        struct err *e) {
    size_t d = knowledge_stored_columns(&k->format), most = k->format.n < d ? k->format.n : d;
    size_t n = most < TOPP_BEGIN ? most : TOPP_BEGIN;
    for (size_t r = 0; r < rows;) {
        size_t block = rows - r < TOPP_ROWS ? rows - r : TOPP_ROWS;
        bool enough = true;
        if (find_top(k, block, x + r * d, inv_temperature, n, e)) return e->code;
        for (size_t at = 0; at < block && enough; at++, r += enough)
            if (put_share(k, at, n, &enough, e)) return e->code;
        if (!enough && encode_flat_row(k, x + r++ * d, inv_temperature, n, most, e)) return e->code;
    }
    return 0;
}

static int encode(struct knowledge_encoder *k, size_t rows, struct logits x, float inv_temperature, struct err *e) {
    const float *f32 = (const void *)x.data;
    size_t n = k->format.n;
    if (knowledge_check_rows(k, rows, f32, e)) return e->code;
    if (k->format.encoding == KNOW_TOPP) return encode_share(k, rows, f32, inv_temperature, e);
    if (find_top(k, rows, f32, inv_temperature, n, e)) return e->code;
    for (size_t r = 0; r < rows; r++)
        if (put_row(k, n, (const uint32_t *)k->scratch[0].data + r * n, (const double *)k->scratch[2].data + r * n, e))
            return e->code;
    return 0;
}

static int entries(struct knowledge_encoder *k, size_t n, const uint32_t *ids, const float *values, struct err *e) {
    const struct knowledge_format *f = &k->format;
    size_t want = f->encoding == KNOW_TOPP || n < f->n ? n : f->n;
    bool enough;
    if (!n && f->encoding != KNOW_GHOST) return err_set(e, ERR_DATA, "a position without entries: only ghost has them");
    if (knowledge_make_room(k, want, (size_t[]){1, 1, sizeof(double)}, e)) return e->code;
    double *logprobs = (void *)k->scratch[2].data;
    for (size_t i = 0; i < want; i++) logprobs[i] = values[i] > 0 ? log(values[i]) : -INFINITY;
    return put_row(k, f->partial ? want : entries_of(f, logprobs, want, &enough), ids, logprobs, e);
}

static int write_batch(struct knowledge_encoder *k, uint64_t rows, struct err *e) {
    const struct knowledge_format *f = &k->format;
    (void)rows;
    if (knowledge_put_tensor(k, "teacher.n", knowledge_count_type(f), 0, 0, &k->response[0], e) ||
        knowledge_put_tensor(k, "teacher.ids", knowledge_id_type(f), 0, 0, &k->response[1], e))
        return e->code;
    return knowledge_put_tensor(k, "teacher.logprobs", DT_F16, 0, 0, &k->response[2], e);
}

/* ---- decoding ---------------------------------------------------------------------------------------------------- */

static int read_logprobs(const uint16_t *logprobs, size_t n, float *probs, float *rest, struct err *e) {
    double sum = 0;
    float before = 0;
    for (size_t i = 0; i < n; i++) {
        float v = f16_to_f32(logprobs[i]);
        if (!(v <= before) || isinf(v))
            return err_set(e, ERR_DATA, "log-probability %g after %g: expected descending ones, at most 0", v, before);
        before = v;
        probs[i] = (float)exp(v);
        sum += exp(v);
    }
    if (sum > 1 + KNOWLEDGE_SUM_SLACK) return err_set(e, ERR_DATA, "the probabilities sum to %g", sum);
    *rest = sum < 1 ? (float)(1 - sum) : 0;
    return 0;
}

static int decode_row(struct knowledge_rows *k, const struct knowledge_format *f, const struct knowledge_entries *s,
                      uint64_t at, size_t n, struct err *e) {
    float rest = 1;
    if (!n) return buf_append(&k->memory[MEM_REST], &rest, sizeof rest, e);
    uint32_t *ids = knowledge_extend(&k->memory[MEM_IDS], n * sizeof *ids, e);
    float *probs = ids ? knowledge_extend(&k->memory[MEM_PROBS], n * sizeof *probs, e) : NULL;
    if (!probs) return e->code;
    for (size_t i = 0; i < n; i++) ids[i] = knowledge_number_at(knowledge_id_type(f), s->ids->data, at + i);
    if (knowledge_check_ids(k, f, ids, n, e) ||
        read_logprobs((const uint16_t *)s->values->data + at, n, probs, &rest, e))
        return e->code;
    return f->encoding == KNOW_GHOST ? buf_append(&k->memory[MEM_REST], &rest, sizeof rest, e) : 0;
}

static int decode(struct knowledge_rows *k, const struct knowledge_format *f, const struct batch *b, uint64_t rows,
                  bool view, struct err *e) {
    (void)view;
    return knowledge_decode_entries(k, f, b, rows, "teacher.logprobs", DT_F16, decode_row, e);
}

static double bytes(const struct knowledge_format *f) {
    double n = f->encoding == KNOW_TOPP ? TYPICAL_TOPP : f->n, d = knowledge_stored_columns(f);
    size_t id = dtype_row_bytes(knowledge_id_type(f), 1), count = dtype_row_bytes(knowledge_count_type(f), 1);
    return (double)count + (n < d ? n : d) * (double)(id + sizeof(uint16_t));
}

#define TOP_CODEC(kind, label, arg, parser)                                                                            \
    {                                                                                                                  \
        .name = (label), .encoding = (kind), .argument = (arg), .n_tensors = 3, .parse = (parser), .text = text,       \
        .describe = describe, .read = read_members, .encode = encode, .entries = entries, .write = write_batch,        \
        .decode = decode, .bytes = bytes                                                                               \
    }
const struct knowledge_response_codec knowledge_codec_topk = TOP_CODEC(KNOW_TOPK, "topk", "K", knowledge_parse_n);
const struct knowledge_response_codec knowledge_codec_ghost = TOP_CODEC(KNOW_GHOST, "ghost", "K", knowledge_parse_n);
const struct knowledge_response_codec knowledge_codec_topp = TOP_CODEC(KNOW_TOPP, "topp", "P", parse_share);
