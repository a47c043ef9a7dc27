/* Writes the steps of a vocabulary as the normalizer, pre_tokenizer and decoder of a tokenizer.json. */
#include "lib/formats/formats_internal.h"

/* ---- JSON helpers: each takes NULL or false from the previous step, so a failure is reported once, at the end ---- */

cJSON *hf_typed(const char *type) {
    cJSON *o = cJSON_CreateObject();
    if (o && json_put_str(o, "type", type)) return o;
    cJSON_Delete(o);
    return NULL;
}

bool hf_put(cJSON *parent, const char *key, cJSON *child) {
    bool ok =
        parent && child && (key ? cJSON_AddItemToObject(parent, key, child) : cJSON_AddItemToArray(parent, child));
    if (!ok) cJSON_Delete(child);
    return ok;
}

static cJSON *keep(cJSON *o, bool ok) {
    if (ok) return o;
    cJSON_Delete(o);
    return NULL;
}

/* Step texts are NUL-terminated; steps_copy ensures it. */
static const char *text_of(const unsigned char *bytes) {
    return bytes ? (const char *)bytes : "";
}

static cJSON *replacing(const char *kind, const char *pattern, const char *by) {
    cJSON *o = hf_typed("Replace"), *p = o ? cJSON_AddObjectToObject(o, "pattern") : NULL;
    return keep(o, p && json_put_str(p, kind, pattern) && json_put_str(o, "content", by));
}

static cJSON *metaspace(const char *scheme, bool split) {
    cJSON *o = hf_typed("Metaspace");
    return keep(o, o && json_put_str(o, "replacement", METASPACE_TEXT) && json_put_str(o, "prepend_scheme", scheme) &&
                       json_put_bool(o, "split", split));
}

/* ---- normalizer ---- */

static cJSON *charsmap(const struct text_step *s) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    struct err e;
    cJSON *o = hf_typed("Precompiled");
    char *text = mem_alloc((size_t)s->n_a / 3 * 4 + 5, &e), *at = text;
    for (uint32_t i = 0; text && i < s->n_a; i += 3) {
        uint32_t left = s->n_a - i, x = (uint32_t)s->a[i] << 16;
        if (left > 1) x |= (uint32_t)s->a[i + 1] << 8;
        if (left > 2) x |= s->a[i + 2];
        *at++ = digits[x >> 18];
        *at++ = digits[x >> 12 & 63];
        *at++ = left > 1 ? digits[x >> 6 & 63] : '=';
        *at++ = left > 2 ? digits[x & 63] : '=';
    }
    if (text) *at = 0;
    bool ok = o && text && json_put_str(o, "precompiled_charsmap", text);
    mem_free(text);
    return keep(o, ok);
}

static cJSON *bert_normalizer(uint32_t arg) {
    cJSON *o = hf_typed("BertNormalizer");
    return keep(o, o && json_put_bool(o, "clean_text", arg & BERT_CLEAN) &&
                       json_put_bool(o, "handle_chinese_chars", arg & BERT_CHINESE) &&
                       json_put_bool(o, "strip_accents", arg & BERT_ACCENTS) &&
                       json_put_bool(o, "lowercase", arg & BERT_LOWERCASE));
}

static cJSON *strip(bool left, bool right) {
    cJSON *o = hf_typed("Strip");
    return keep(o, o && json_put_bool(o, "strip_left", left) && json_put_bool(o, "strip_right", right));
}

static cJSON *prepend(const char *text) {
    cJSON *o = hf_typed("Prepend");
    return keep(o, o && json_put_str(o, "prepend", text));
}

/* Steps of sentencepiece are written as Hugging Face's converter writes them. */
static bool put_normalizer(cJSON *list, const struct text_step *s) {
    static const char *const plain[] = {[NORM_NFC] = "NFC",
                                        [NORM_NFD] = "NFD",
                                        [NORM_NFKC] = "NFKC",
                                        [NORM_NFKD] = "NFKD",
                                        [NORM_LOWERCASE] = "Lowercase",
                                        [NORM_STRIP_ACCENTS] = "StripAccents"};
    switch (s->op) {
    case NORM_STRIP: return hf_put(list, NULL, strip(s->arg & 1, s->arg & 2));
    case NORM_REPLACE: return hf_put(list, NULL, replacing("String", text_of(s->a), text_of(s->b)));
    case NORM_PREPEND: return hf_put(list, NULL, prepend(text_of(s->a)));
    case NORM_BERT: return hf_put(list, NULL, bert_normalizer(s->arg));
    case NORM_CHARSMAP: return hf_put(list, NULL, charsmap(s));
    case NORM_COLLAPSE: return hf_put(list, NULL, replacing("Regex", " {2,}", text_of(s->b)));
    case NORM_SPACES:
        return hf_put(list, NULL, strip(true, true)) && hf_put(list, NULL, replacing("Regex", " {2,}", " "));
    default: return hf_put(list, NULL, hf_typed(plain[s->op]));
    }
}

/* A prefix at the start only is written as Metaspace, which omits it before a space. */
static bool is_metaspace(const struct vocab *v) {
    const struct text_step *p = vocab_find_step(v, NORM_PREPEND);
    return p && p->arg && vocab_find_step(v, NORM_SPACES);
}

/* Adds a list of steps: an empty one as null, a single step without the list. Takes ownership of the list in any
 * case. */
static bool put_list(cJSON *root, const char *key, const char *list_key, cJSON *list) {
    int n = cJSON_GetArraySize(list);
    cJSON *x = NULL;
    if (n > 1) {
        x = hf_typed("Sequence");
        if (!hf_put(x, list_key, list)) {
            cJSON_Delete(x);
            return false;
        }
        return hf_put(root, key, x);
    }
    x = n ? cJSON_DetachItemFromArray(list, 0) : cJSON_CreateNull();
    cJSON_Delete(list);
    return hf_put(root, key, x);
}

bool hf_put_normalizer(cJSON *root, const struct vocab *v) {
    cJSON *list = cJSON_CreateArray();
    bool ok = list != NULL, meta = is_metaspace(v);
    if (v->nfc) ok = ok && hf_put(list, NULL, hf_typed("NFC"));
    for (uint32_t i = 0; i < v->n_steps && ok; i++) {
        const struct text_step *s = &v->steps[i];
        if (s->op >= WORDS_METASPACE) break;
        bool last = i + 1 == v->n_steps || v->steps[i + 1].op >= WORDS_METASPACE;
        if (meta && (s->op == NORM_PREPEND || (s->op == NORM_REPLACE && last))) continue;
        ok = put_normalizer(list, s);
    }
    if (ok) return put_list(root, "normalizer", "normalizers", list);
    cJSON_Delete(list);
    return false;
}

/* ---- pre_tokenizer ---- */

static const char *const behaviors[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};

static cJSON *words_step(const struct text_step *s) {
    cJSON *o, *p;
    switch (s->op) {
    case WORDS_METASPACE:
        return metaspace(s->arg & METASPACE_ALWAYS  ? "always"
                         : s->arg & METASPACE_FIRST ? "first"
                                                    : "never",
                         s->arg & METASPACE_SPLIT);
    case WORDS_SPLIT:
        o = hf_typed("Split");
        p = o ? cJSON_AddObjectToObject(o, "pattern") : NULL;
        return keep(o, p && json_put_str(p, "String", text_of(s->a)) &&
                           json_put_str(o, "behavior", behaviors[s->arg]) && json_put_bool(o, "invert", false));
    case WORDS_DIGITS: o = hf_typed("Digits"); return keep(o, o && json_put_bool(o, "individual_digits", s->arg));
    case WORDS_PUNCTUATION:
        o = hf_typed("Punctuation");
        return keep(o, o && json_put_str(o, "behavior", behaviors[s->arg]));
    case WORDS_WHITESPACE: return hf_typed("Whitespace");
    case WORDS_WHITESPACE_SPLIT: return hf_typed("WhitespaceSplit");
    default: return hf_typed("BertPreTokenizer");
    }
}

bool hf_put_words(cJSON *root, const struct vocab *v) {
    cJSON *list = cJSON_CreateArray();
    bool ok = list && (!is_metaspace(v) || hf_put(list, NULL, metaspace("first", false)));
    for (uint32_t i = 0; i < v->n_steps && ok; i++)
        if (v->steps[i].op >= WORDS_METASPACE && v->steps[i].op < DECODE_REPLACE)
            ok = hf_put(list, NULL, words_step(&v->steps[i]));
    if (ok) return put_list(root, "pre_tokenizer", "pretokenizers", list);
    cJSON_Delete(list);
    return false;
}

/* ---- decoder ---- */

static cJSON *decoder_step(const struct text_step *s) {
    cJSON *o;
    switch (s->op) {
    case DECODE_REPLACE: return replacing("String", text_of(s->a), text_of(s->b));
    case DECODE_BYTES: return hf_typed("ByteFallback");
    case DECODE_FUSE: return hf_typed("Fuse");
    case DECODE_STRIP:
        o = hf_typed("Strip");
        return keep(o, o && json_put_str(o, "content", text_of(s->a)) && json_put_u64(o, "start", s->arg) &&
                           json_put_u64(o, "stop", 0));
    case DECODE_METASPACE: return metaspace(s->arg ? "always" : "never", true);
    default:
        o = hf_typed("WordPiece");
        return keep(o, o && json_put_str(o, "prefix", text_of(s->a)) && json_put_bool(o, "cleanup", s->arg));
    }
}

bool hf_put_decoder(cJSON *root, const struct vocab *v) {
    cJSON *list = cJSON_CreateArray();
    bool ok = list != NULL;
    for (uint32_t i = 0; i < v->n_steps && ok; i++)
        if (v->steps[i].op >= DECODE_REPLACE && v->steps[i].op < DECODE_JOIN)
            ok = hf_put(list, NULL, decoder_step(&v->steps[i]));
    if (ok) return put_list(root, "decoder", "decoders", list);
    cJSON_Delete(list);
    return false;
}
