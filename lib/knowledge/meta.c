/* The name of an encoding, and the description of a knowledge stream in META. */
#include <stdio.h>
#include <string.h>

#include "lib/knowledge/knowledge_internal.h"

/* Below this range a softmax is an argmax, above it a constant; neither teaches anything. */
#define MIN_TEMPERATURE 0.01
#define MAX_TEMPERATURE 1000.0

static const struct {
    const char *name;
    enum knowledge_encoding encoding;
} encodings[] = {
    {"dense", KNOW_DENSE},
    {"topk", KNOW_TOPK},
    {"ghost", KNOW_GHOST},
    {"sample", KNOW_SAMPLE},
};

static const char *encoding_name(enum knowledge_encoding encoding) {
    for (size_t i = 0; i < COUNT_OF(encodings); i++)
        if (encodings[i].encoding == encoding) return encodings[i].name;
    return "none";
}

static bool encoding_find(const char *name, size_t len, enum knowledge_encoding *out) {
    for (size_t i = 0; i < COUNT_OF(encodings); i++)
        if (strlen(encodings[i].name) == len && !memcmp(encodings[i].name, name, len)) {
            *out = encodings[i].encoding;
            return true;
        }
    return false;
}

int knowledge_encoding_parse(const char *text, struct knowledge_format *f, struct err *e) {
    enum knowledge_encoding encoding = KNOW_NONE;
    size_t name_len = strcspn(text, ":");
    const char *number = text[name_len] == ':' ? text + name_len + 1 : NULL;
    uint64_t n = 0;
    if (!encoding_find(text, name_len, &encoding))
        return err_set(e, ERR_USAGE, "unknown encoding \"%s\": expected topk:K, ghost:K, sample:N or dense", text);
    if (encoding == KNOW_DENSE) {
        if (number) return err_set(e, ERR_USAGE, "encoding \"%s\": dense takes no number", text);
    } else if (!number || !parse_u64(number, &n) || n < 1 || n > KNOWLEDGE_MAX_N) {
        return err_set(e, ERR_USAGE, "encoding \"%s\": expected %s:N with N from 1 to %d", text,
                       encoding_name(encoding), KNOWLEDGE_MAX_N);
    }
    f->encoding = encoding;
    f->n = (uint32_t)n;
    return 0;
}

char *knowledge_encoding_text(const struct knowledge_format *f, char *out, size_t size) {
    if (knowledge_is_sparse(f))
        snprintf(out, size, "%s:%u", encoding_name(f->encoding), f->n);
    else
        snprintf(out, size, "%s", encoding_name(f->encoding));
    return out;
}

static bool put_members(cJSON *meta, const struct knowledge_format *f) {
    cJSON_DeleteItemFromObjectCaseSensitive(meta, "kind");
    cJSON_DeleteItemFromObjectCaseSensitive(meta, "vocab");
    cJSON_DeleteItemFromObjectCaseSensitive(meta, "vocab_size");
    cJSON_DeleteItemFromObjectCaseSensitive(meta, "knowledge");
    bool ok = json_put_str(meta, "kind", stream_kind_name(f->encoding ? STREAM_KNOWLEDGE : STREAM_TOKENS));
    if (f->vocab[0]) ok = ok && json_put_str(meta, "vocab", f->vocab);
    if (f->vocab_size) ok = ok && json_put_u64(meta, "vocab_size", f->vocab_size);
    if (!f->encoding || !ok) return ok;

    cJSON *o = cJSON_AddObjectToObject(meta, "knowledge");
    ok = o && json_put_str(o, "encoding", encoding_name(f->encoding));
    if (f->encoding == KNOW_DENSE)
        ok = ok && json_put_str(o, "dtype", dtype_info(f->dtype)->name) && json_put_bool(o, "log_probs", f->log_probs);
    else
        ok = ok && json_put_u64(o, "n", f->n);
    ok = ok && json_put_f64(o, "temperature", f->temperature);
    if (f->teacher[0]) ok = ok && json_put_str(o, "teacher", f->teacher);
    return ok;
}

int knowledge_meta_put(cJSON *meta, const struct knowledge_format *f, struct err *e) {
    return put_members(meta, f) ? 0 : err_nomem(e, "META of knowledge");
}

/* An optional digest into a fixed field. */
static int get_digest(const cJSON *object, const char *key, char out[DIGEST_TEXT_SIZE], struct err *e) {
    const char *text = NULL;
    struct digest d;
    if (json_opt_str(object, key, &text, e)) return e->code;
    if (!text) return 0;
    if (!digest_parse(text, &d)) return err_set(e, ERR_DATA, "\"%s\" is not a digest: \"%.80s\"", key, text);
    digest_text(d, out);
    return 0;
}

static int get_dense(const cJSON *o, struct knowledge_format *f, struct err *e) {
    const char *name;
    if (json_get_str(o, "dtype", &name, e) || json_get_bool(o, "log_probs", &f->log_probs, e)) return e->code;
    const struct dtype_info *info = dtype_by_name(name);
    if (!info || (info->dtype != DT_F32 && info->dtype != DT_F16 && info->dtype != DT_BF16))
        return err_set(e, ERR_DATA, "dense knowledge of type \"%.40s\": expected f32, f16 or bf16", name);
    f->dtype = info->dtype;
    if (!f->log_probs && f->temperature != 1)
        return err_set(e, ERR_DATA, "logits at temperature %g: only log-probabilities have one", f->temperature);
    return 0;
}

static int get_members(const cJSON *meta, struct knowledge_format *f, struct err *e) {
    const cJSON *o = cJSON_GetObjectItemCaseSensitive(meta, "knowledge");
    const char *name;
    uint64_t n = 0;
    if (!cJSON_IsObject(o)) return err_set(e, ERR_DATA, "META has no \"knowledge\"");
    if (!f->vocab_size) return err_set(e, ERR_DATA, "META of knowledge has no \"vocab_size\"");
    if (json_get_str(o, "encoding", &name, e)) return e->code;
    if (!encoding_find(name, strlen(name), &f->encoding))
        return err_set(e, ERR_DATA, "unknown encoding \"%.40s\": made by a newer version?", name);
    if (json_get_f64(o, "temperature", MIN_TEMPERATURE, MAX_TEMPERATURE, &f->temperature, e)) return e->code;
    if (get_digest(o, "teacher", f->teacher, e)) return e->code;
    if (f->encoding == KNOW_DENSE) return get_dense(o, f, e);
    if (json_get_u64(o, "n", 1, KNOWLEDGE_MAX_N, &n, e)) return e->code;
    f->n = (uint32_t)n;
    return 0;
}

int knowledge_meta_get(const cJSON *meta, struct knowledge_format *f, struct err *e) {
    const char *name;
    enum stream_kind kind;
    uint64_t vocab_size = 0;
    *f = (struct knowledge_format){.temperature = 1};
    if (json_get_str(meta, "kind", &name, e) || stream_kind_parse(name, &kind, e)) return e->code;
    if (kind != STREAM_TOKENS && kind != STREAM_KNOWLEDGE)
        return err_set(e, ERR_DATA, "a %s stream: expected tokens or knowledge", stream_kind_name(kind));
    if (get_digest(meta, "vocab", f->vocab, e)) return e->code;
    if (json_opt_u64(meta, "vocab_size", 1, KNOWLEDGE_MAX_VOCAB, &vocab_size, e)) return e->code;
    f->vocab_size = (uint32_t)vocab_size;
    return kind == STREAM_KNOWLEDGE ? get_members(meta, f, e) : 0;
}

uint32_t knowledge_columns(const struct knowledge_format *f) {
    return f->n_used ? f->n_used : f->vocab_size;
}

int knowledge_fit(struct knowledge_format *f, uint32_t n_tokens, struct err *e) {
    bool wider = f->vocab_size > n_tokens;
    if (f->encoding == KNOW_NONE) f->vocab_size = n_tokens;
    if (f->encoding == KNOW_DENSE && f->vocab[0] && wider) f->n_used = n_tokens;
    if (knowledge_columns(f) == n_tokens) return 0;
    if (!wider || !f->vocab[0])
        return err_set(e, ERR_DATA, "knowledge over %u tokens, the model has %u", f->vocab_size, n_tokens);
    return err_set(e, ERR_DATA,
                   "knowledge over %u rows of an embedding, %u of them tokens: the rest has a share in its "
                   "probabilities (encode it anew, from a teacher with its vocabulary)",
                   f->vocab_size, n_tokens);
}

/* The number of tokens that a plain stream of a named vocabulary announces depends on the padding of its model. */
static bool same_tokens(const struct knowledge_format *a, const struct knowledge_format *b) {
    bool padding_alone = a->encoding == KNOW_NONE && a->vocab[0];
    return !strcmp(a->vocab, b->vocab) && (a->vocab_size == b->vocab_size || padding_alone);
}

static bool same_format(const struct knowledge_format *a, const struct knowledge_format *b) {
    return a->encoding == b->encoding && a->n == b->n && a->temperature == b->temperature && a->dtype == b->dtype &&
           a->log_probs == b->log_probs && same_tokens(a, b);
}

/* Teachers may differ: knowledge of several, concatenated, is one curriculum. */
static int check_segment(const struct knowledge_format *f, const struct stream_reader *r, struct err *e) {
    struct knowledge_format now;
    if (knowledge_meta_get(stream_reader_meta(r), &now, e)) return err_prefix(e, "%s", stream_reader_name(r));
    if (same_format(f, &now)) return 0;
    char was[64], is[64];
    knowledge_encoding_text(f, was, sizeof was);
    knowledge_encoding_text(&now, is, sizeof is);
    return err_set(
        e, ERR_DATA,
        "%s: the segments disagree: first %s at temperature %g, vocabulary %s of %u, then %s at %g, %s of %u",
        stream_reader_name(r), was, f->temperature, f->vocab[0] ? f->vocab : "unnamed", f->vocab_size, is,
        now.temperature, now.vocab[0] ? now.vocab : "unnamed", now.vocab_size);
}

int knowledge_read(struct stream_reader *r, const struct knowledge_format *f, struct batch *b, bool *more,
                   struct err *e) {
    if (batch_read(r, b, more, e)) return e->code;
    return *more ? check_segment(f, r, e) : 0;
}

int knowledge_check_temperature(const struct knowledge_format *f, double temperature, struct err *e) {
    char name[64];
    if (!(temperature >= MIN_TEMPERATURE && temperature <= MAX_TEMPERATURE))
        return err_set(e, ERR_USAGE, "temperature %g: expected %g to %g", temperature, MIN_TEMPERATURE,
                       MAX_TEMPERATURE);
    if (!knowledge_is_sparse(f) || temperature == f->temperature) return 0;
    return err_set(
        e, ERR_DATA,
        "temperature %g is not possible: the knowledge is %s at temperature %g (give logit-dump --temperature)",
        temperature, knowledge_encoding_text(f, name, sizeof name), f->temperature);
}

int knowledge_check_encode(const struct knowledge_format *from, const struct knowledge_format *to, struct err *e) {
    char was[64], want[64];
    knowledge_encoding_text(from, was, sizeof was);
    knowledge_encoding_text(to, want, sizeof want);
    if (to->encoding == KNOW_NONE || to->encoding == KNOW_DENSE)
        return err_set(e, ERR_USAGE, "encoding \"%s\" is not for this: teacher-infer writes it", want);
    if (from->encoding == KNOW_NONE)
        return err_set(e, ERR_DATA, "a plain token stream has no teacher to encode (put teacher-infer before)");
    if (knowledge_is_top(to) && to->n > from->vocab_size)
        return err_set(e, ERR_DATA, "%s of a vocabulary of %u tokens", want, from->vocab_size);
    if (from->encoding == KNOW_DENSE) return knowledge_check_temperature(from, to->temperature, e);
    if (from->encoding == KNOW_SAMPLE || to->encoding == KNOW_SAMPLE)
        return err_set(e, ERR_DATA,
                       "%s cannot become %s: draws are made from the whole distribution (encode the teacher's "
                       "dense output)",
                       was, want);
    if (to->n > from->n) return err_set(e, ERR_DATA, "%s cannot become %s: the further entries are gone", was, want);
    return knowledge_check_temperature(from, to->temperature, e);
}
