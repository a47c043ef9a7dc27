/* Fields: their names, their rows as stored and as f32, and the positions that have rows. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lib/knowledge/knowledge_internal.h"

#define ALL_INT8 127.0f

/* ---- names ------------------------------------------------------------------------------------------------------- */

/* Names after "teacher." that belong to the response and to tensors shared by all fields. */
static const char *const taken[] = {"logits", "n",         "ids",     "logprobs",        "counts",
                                    "draws",  "positions", "counted", KNOWLEDGE_RESPONSE};

static bool is_point(const char *s) {
    size_t n = strspn(s, "abcdefghijklmnopqrstuvwxyz_0123456789");
    if (!n || s[n] || (s[0] >= '0' && s[0] <= '9')) return false;
    for (size_t i = 0; i < COUNT_OF(taken); i++)
        if (!strcmp(s, taken[i])) return false;
    return true;
}

int knowledge_field_check(struct knowledge_field *field, struct err *e) {
    if (!is_point(field->point)) return err_set(e, ERR_DATA, "\"%.15s\" is not the name of a point", field->point);
    if (field->layer != KNOWLEDGE_NO_LAYER && field->layer > 65535)
        return err_set(e, ERR_DATA, "layer %u of a field", field->layer);
    if (field->dtype != DT_F32 && field->dtype != DT_BF16 && field->dtype != DT_I8)
        return err_set(e, ERR_DATA, "a field of type %s: expected f32, bf16 or i8", dtype_info(field->dtype)->name);
    if (field->cols < 1 || field->cols > KNOWLEDGE_MAX_COLS)
        return err_set(e, ERR_DATA, "a field of %u columns: expected 1 to %u", field->cols, KNOWLEDGE_MAX_COLS);
    if (field->sampled && field->per == PER_SEQUENCE)
        return err_set(e, ERR_DATA, "a field of sequences is not sampled at positions");
    if (field->counted && (field->sampled || field->per == PER_SEQUENCE))
        return err_set(e, ERR_DATA, "a field %s is not of positions that count",
                       field->sampled ? "of sampled positions" : "of sequences");
    field->codec = knowledge_codec_of(field->per);
    if (field->codec->check(field, e)) return e->code;
    if (field->layer == KNOWLEDGE_NO_LAYER)
        snprintf(field->name, sizeof field->name, "%s", field->point);
    else
        snprintf(field->name, sizeof field->name, "%s.%u", field->point, field->layer);
    return 0;
}

int knowledge_field_add(struct knowledge_format *f, const struct knowledge_field *field, struct err *e) {
    struct knowledge_field made = *field;
    if (f->n_fields == KNOWLEDGE_MAX_FIELDS) return err_set(e, ERR_USAGE, "more than %d fields", KNOWLEDGE_MAX_FIELDS);
    if (knowledge_field_check(&made, e)) return e->code = ERR_USAGE;
    if (knowledge_field_find(f, made.point, made.layer) >= 0)
        return err_set(e, ERR_USAGE, "the field %s is given twice", made.name);
    f->fields[f->n_fields++] = made;
    return 0;
}

long knowledge_field_find(const struct knowledge_format *f, const char *point, uint32_t layer) {
    for (uint32_t i = 0; i < f->n_fields; i++)
        if (f->fields[i].layer == layer && !strcmp(f->fields[i].point, point)) return (long)i;
    return -1;
}

const char *knowledge_per_name(enum knowledge_per per) {
    static const char *const names[] = {"position", "sequence", "pair"};
    return names[per];
}

const struct knowledge_field *knowledge_pair_field(const struct knowledge_format *f) {
    for (uint32_t i = 0; i < f->n_fields; i++)
        if (f->fields[i].per == PER_PAIR) return &f->fields[i];
    return NULL;
}

/* ---- vectors ----------------------------------------------------------------------------------------------------- */

size_t knowledge_vector_bytes(enum dtype dtype, uint64_t length) {
    return (size_t)(length * dtype_row_bytes(dtype, 1));
}

uint64_t knowledge_field_values(const struct knowledge_field *field, const uint32_t *pair_lengths, size_t first,
                                size_t n) {
    uint64_t sum = 0;
    if (field->per != PER_PAIR) return (uint64_t)n * field->cols;
    for (size_t i = first; i < first + n; i++) sum += pair_lengths[i];
    return sum * field->heads;
}

/* Quantizes so that the largest magnitude becomes 127; returns the scale to multiply by. */
static float store_int8(int8_t *to, const float *x, size_t n) {
    float most = 0;
    for (size_t i = 0; i < n; i++) most = fmaxf(most, fabsf(x[i]));
    float scale = most / ALL_INT8, inverse = scale > 0 && isfinite(1 / scale) ? 1 / scale : 0;
    for (size_t i = 0; i < n; i++) to[i] = (int8_t)lrintf(x[i] * inverse);
    return inverse > 0 ? scale : 0;
}

int knowledge_part_add(struct knowledge_part *p, const struct knowledge_field *field, size_t n, size_t length,
                       const float *x, struct err *e) {
    size_t bytes = knowledge_vector_bytes(field->dtype, (uint64_t)n * length);
    if (tensor_first_nonfinite(DT_F32, x, (uint64_t)n * length) < (uint64_t)n * length)
        return err_set(e, ERR_DATA, "%s: a value is not finite", field->name);
    unsigned char *values = knowledge_extend(&p->values, bytes, e);
    if (!values) return e->code;
    if (field->dtype != DT_I8) {
        int rc = tensor_from_f32_checked(field->dtype, x, values, (uint64_t)n * length, NULL, e);
        return rc ? err_prefix(e, "%s", field->name) : 0;
    }
    float *scales = knowledge_extend(&p->scales, n * sizeof *scales, e);
    if (!scales) return e->code;
    for (size_t i = 0; i < n; i++) scales[i] = store_int8((int8_t *)values + i * length, x + i * length, length);
    return 0;
}

void knowledge_part_release(struct knowledge_part *p) {
    buf_release(&p->values);
    buf_release(&p->scales);
}

/* Loads n vectors, starting with number `vector`, whose values begin at element `at`. */
static void load_vectors(const struct knowledge_feature *feature, uint64_t vector, uint64_t at, size_t n, size_t length,
                         float *out) {
    enum dtype dtype = feature->field->dtype;
    const unsigned char *values = feature->stored.values.data + knowledge_vector_bytes(dtype, at);
    if (dtype != DT_I8) {
        tensor_to_f32(dtype, values, out, (uint64_t)n * length);
        return;
    }
    const float *scales = (const float *)feature->stored.scales.data + vector;
    const int8_t *x = (const int8_t *)values;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < length; j++) out[i * length + j] = scales[i] * (float)x[i * length + j];
}

/* ---- rows -------------------------------------------------------------------------------------------------------- */

const uint64_t *knowledge_feature_before(const struct knowledge_rows *k, size_t field) {
    const struct knowledge_field *f = k->fields[field].field;
    return f->sampled ? k->sampled : f->counted ? k->counted : NULL;
}

size_t knowledge_feature_span(const struct knowledge_rows *k, size_t field, size_t first_seq, size_t n_seqs,
                              size_t *first_row) {
    const struct knowledge_field *f = k->fields[field].field;
    const uint64_t *before = knowledge_feature_before(k, field);
    size_t from = 0, n = 0;
    *first_row = first_seq;
    if (f->per == PER_SEQUENCE) return n_seqs;
    for (size_t i = 0; i < first_seq; i++) from += k->lengths[i];
    for (size_t i = first_seq; i < first_seq + n_seqs; i++) n += k->lengths[i];
    *first_row = before ? before[from] : from;
    return before ? before[from + n] - before[from] : n;
}

void knowledge_feature_rows(const struct knowledge_rows *k, size_t field, size_t first, size_t rows, float *out) {
    const struct knowledge_feature *feature = &k->fields[field];
    uint32_t cols = feature->field->cols;
    load_vectors(feature, first, (uint64_t)first * cols, rows, cols, out);
}

void knowledge_feature_pairs(const struct knowledge_rows *k, size_t field, size_t first, size_t rows, size_t length,
                             float *out) {
    const struct knowledge_feature *feature = &k->fields[field];
    uint32_t heads = feature->field->heads;
    uint64_t at = knowledge_field_values(feature->field, k->pair_lengths, 0, first);
    for (size_t r = first; r < first + rows; r++)
        for (uint32_t h = 0; h < heads; h++, out += length) {
            uint32_t n = k->pair_lengths[r];
            load_vectors(feature, (uint64_t)r * heads + h, at, 1, n, out);
            memset(out + n, 0, (length - n) * sizeof *out);
            at += n;
        }
}

/* ---- positions --------------------------------------------------------------------------------------------------- */

#define SAMPLED_STREAM 0x74617073 /* separates these random numbers from those of draws */

size_t knowledge_count_positions(enum stream_target target, size_t n_seqs, const uint32_t *lengths, const uint8_t *mask,
                                 const uint32_t *labels, uint8_t *counted) {
    size_t n = 0, at = 0;
    for (size_t s = 0; s < n_seqs; s++) {
        bool masked = target == TARGET_NEXT && memchr(mask + at, 0, lengths[s]);
        for (uint32_t i = 0; i < lengths[s]; i++, at++) {
            bool labelled = target == TARGET_NEXT ? i + 1 < lengths[s] && mask[at + 1] : labels[at] != UINT32_MAX;
            counted[at] = labelled || (target == TARGET_NEXT && !masked);
            n += counted[at];
        }
    }
    return n;
}

void knowledge_sample_positions(uint64_t seed, uint64_t seq, uint32_t n, uint32_t length, const uint8_t *counted,
                                uint8_t *chosen) {
    uint32_t count = 0, word[4];
    for (uint32_t i = 0; i < length; i++) count += !counted || counted[i];
    uint32_t left = n < count ? n : count;
    memset(chosen, 0, length);
    for (uint32_t i = 0, seen = 0; i < length; i++) {
        if (counted && !counted[i]) continue;
        philox(seed ^ SAMPLED_STREAM, seq, i, word);
        chosen[i] = philox_f64(word) * (count - seen++) < left;
        left -= chosen[i];
    }
}

int knowledge_pairs_step(struct knowledge_pairs *p, uint64_t n, const uint8_t *sampled, struct err *e) {
    for (uint64_t i = 0; i < n; i++, p->at++) {
        uint32_t at = (uint32_t)p->at;
        if ((!sampled || sampled[i]) && buf_append(&p->open, &at, sizeof at, e)) return e->code;
    }
    return 0;
}

int knowledge_pairs_end(struct knowledge_pairs *p, const struct knowledge_format *f, struct buf *out, struct err *e) {
    const struct knowledge_field *field = knowledge_pair_field(f);
    size_t n = p->open.len / sizeof(uint32_t);
    uint32_t *lengths = knowledge_extend(out, n * sizeof *lengths, e);
    if (!lengths) return e->code;
    for (size_t i = 0; i < n; i++)
        lengths[i] = (uint32_t)field->codec->vector_length(field, ((const uint32_t *)p->open.data)[i], p->at);
    p->open.len = 0;
    p->at = 0;
    return 0;
}

/* ---- sizes ------------------------------------------------------------------------------------------------------- */

double knowledge_field_bytes(const struct knowledge_field *field, const struct knowledge_extent *x) {
    double scale = (double)knowledge_scale_bytes(field->dtype), value = (double)dtype_row_bytes(field->dtype, 1);
    double rows = field->per == PER_SEQUENCE ? 1 : (double)(field->sampled ? x->sampled : x->length);
    double length = (double)x->length, vectors = field->codec->vectors(field);
    if (field->counted) rows = (double)x->counted;
    /* on average a sampled row is that of a position in the middle */
    double n = field->per == PER_PAIR ? (field->causal ? (length + 1) / 2 : length) : field->cols;
    if (field->causal && field->counted && x->counted) n = (double)x->reach / (double)x->counted;
    return rows * vectors * (n * value + scale);
}

double knowledge_typical_bytes(const struct knowledge_format *f) {
    const uint64_t n = KNOWLEDGE_TYPICAL_LENGTH;
    struct knowledge_extent typical = {n, n, f->tap_positions, n * (n + 1) / 2};
    double bytes = 0;
    for (uint32_t i = 0; i < f->n_fields; i++) bytes += knowledge_field_bytes(&f->fields[i], &typical) / (double)n;
    return bytes;
}
