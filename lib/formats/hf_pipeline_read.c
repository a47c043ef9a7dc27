/*
 * Converts the normalizer, pre_tokenizer and decoder of a tokenizer.json to steps of a vocabulary. Unknown steps are
 * refused by name, because an almost right tokenizer would be silently wrong.
 */
#include "lib/formats/formats_internal.h"

/* ---- JSON helpers ---- */

const char *hf_type(const cJSON *object) {
    const char *s = cJSON_GetStringValue(hf_member(object, "type"));
    return s ? s : "(without a type)";
}

bool hf_is_type(const cJSON *object, const char *type) {
    return strcmp(hf_type(object), type) == 0;
}

bool hf_flag(const cJSON *object, const char *key, bool fallback) {
    const cJSON *x = hf_member(object, key);
    return x ? cJSON_IsTrue(x) : fallback;
}

int hf_refuse(struct err *e, const char *what, const cJSON *object) {
    return err_set(e, ERR_DATA, "%s '%.100s' is not supported", what, hf_type(object));
}

static int put(struct vocab *spec, enum text_op op, uint32_t arg, const char *a, const char *b, struct err *e) {
    return draft_step(spec, op, arg, (struct span){a, a ? strlen(a) : 0}, (struct span){b, b ? strlen(b) : 0}, e);
}

/* *out = the index in `names` of the text under `key`; unchanged if there is none. ERR_DATA: another text. */
static int choose(const cJSON *object, const char *key, const char *const *names, uint32_t n, uint32_t *out,
                  struct err *e) {
    const char *name = NULL;
    int rc = json_opt_str(object, key, &name, e);
    for (uint32_t i = 0; name && i < n; i++)
        if (strcmp(name, names[i]) == 0) {
            *out = i;
            return 0;
        }
    return rc || !name ? rc : err_set(e, ERR_DATA, "\"%s\" is '%.64s', which is not supported", key, name);
}

typedef int read_part(struct vocab *spec, const cJSON *x, struct err *e);

static int read_each(struct vocab *spec, const cJSON *list, read_part *part, struct err *e) {
    int rc = 0;
    for (const cJSON *y = list ? list->child : NULL; y && !rc; y = y->next) rc = part(spec, y, e);
    return rc;
}

/* ---- patterns ---- */

/* Does the regular expression match only its own text? */
static bool is_literal(const char *regex) {
    return !strpbrk(regex, "\\^$.|?*+()[]{}");
}

static const char *literal_of(const cJSON *pattern) {
    const char *text = cJSON_GetStringValue(hf_member(pattern, "String"));
    const char *regex = cJSON_GetStringValue(hf_member(pattern, "Regex"));
    return text ? text : regex && is_literal(regex) ? regex : NULL;
}

static int refuse_pattern(struct err *e, const char *what, const cJSON *x) {
    const char *regex = cJSON_GetStringValue(hf_member(hf_member(x, "pattern"), "Regex"));
    return err_set(e, ERR_DATA, "%s '%.64s' with the regex '%.300s' is not supported", what, hf_type(x),
                   regex ? regex : "(none)");
}

/* ---- normalizer ---- */

static int read_replace(struct vocab *spec, const cJSON *x, struct err *e) {
    const cJSON *pattern = hf_member(x, "pattern");
    const char *from = literal_of(pattern), *regex = cJSON_GetStringValue(hf_member(pattern, "Regex")), *to;
    int rc = json_get_str(x, "content", &to, e);
    if (rc) return rc;
    if (from && *from) return put(spec, NORM_REPLACE, 0, from, to, e);
    if (regex && strcmp(regex, " {2,}") == 0) return put(spec, NORM_COLLAPSE, 0, NULL, to, e);
    return refuse_pattern(e, "normalizer", x);
}

static int base64(const char *text, struct buf *out, struct err *e) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint32_t bits = 0, n = 0;
    for (; *text && *text != '='; text++) {
        const char *at = strchr(digits, *text);
        if (!at) return err_set(e, ERR_DATA, "\"precompiled_charsmap\" is not in base64");
        bits = bits << 6 | (uint32_t)(at - digits);
        n += 6;
        if (n < 8) continue;
        n -= 8;
        unsigned char byte = (unsigned char)(bits >> n);
        int rc = buf_append(out, &byte, 1, e);
        if (rc) return rc;
    }
    return 0;
}

static int read_charsmap(struct vocab *spec, const cJSON *x, struct err *e) {
    const char *text = NULL;
    struct buf map = {0};
    int rc = json_opt_str(x, "precompiled_charsmap", &text, e);
    if (rc || !text || !*text) return rc;
    rc = base64(text, &map, e);
    if (!rc)
        rc = draft_step(spec, NORM_CHARSMAP, 0, (struct span){(const char *)map.data, map.len}, (struct span){0}, e);
    buf_release(&map);
    return rc;
}

static int read_bert(struct vocab *spec, const cJSON *x, struct err *e) {
    bool lower = hf_flag(x, "lowercase", true), accents = hf_flag(x, "strip_accents", lower);
    uint32_t arg = (hf_flag(x, "clean_text", true) ? BERT_CLEAN : 0) |
                   (hf_flag(x, "handle_chinese_chars", true) ? BERT_CHINESE : 0) | (accents ? BERT_ACCENTS : 0) |
                   (lower ? BERT_LOWERCASE : 0);
    return put(spec, NORM_BERT, arg, NULL, NULL, e);
}

static int read_strip(struct vocab *spec, const cJSON *x, struct err *e) {
    uint32_t arg = (hf_flag(x, "strip_left", true) ? 1 : 0) | (hf_flag(x, "strip_right", true) ? 2 : 0);
    return put(spec, NORM_STRIP, arg, NULL, NULL, e);
}

static int normalizer_part(struct vocab *spec, const cJSON *x, struct err *e) {
    static const struct {
        const char *type;
        enum text_op op;
    } plain[] = {{"NFC", NORM_NFC},
                 {"NFD", NORM_NFD},
                 {"NFKC", NORM_NFKC},
                 {"NFKD", NORM_NFKD},
                 {"Lowercase", NORM_LOWERCASE},
                 {"StripAccents", NORM_STRIP_ACCENTS}};
    const char *text;
    for (size_t i = 0; i < COUNT_OF(plain); i++)
        if (hf_is_type(x, plain[i].type)) return put(spec, plain[i].op, 0, NULL, NULL, e);
    if (hf_is_type(x, "Sequence")) return read_each(spec, hf_member(x, "normalizers"), normalizer_part, e);
    if (hf_is_type(x, "Replace")) return read_replace(spec, x, e);
    if (hf_is_type(x, "Precompiled")) return read_charsmap(spec, x, e);
    if (hf_is_type(x, "BertNormalizer")) return read_bert(spec, x, e);
    if (hf_is_type(x, "Strip")) return read_strip(spec, x, e);
    if (!hf_is_type(x, "Prepend")) return hf_refuse(e, "normalizer", x);
    int rc = json_get_str(x, "prepend", &text, e);
    return rc || !*text ? rc : put(spec, NORM_PREPEND, 0, text, NULL, e);
}

int hf_read_normalizer(struct vocab *spec, const cJSON *x, struct err *e) {
    int rc = x ? normalizer_part(spec, x, e) : 0;
    if (rc || spec->n_steps != 1 || spec->steps[0].op != NORM_NFC) return rc;
    spec->nfc = true; /* the only normalizer that a flag of the vocabulary expresses */
    spec->n_steps = 0;
    return 0;
}

/* ---- pre_tokenizer ---- */

static const char *const behaviors[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};

/* The prefix setting: "prepend_scheme", or "add_prefix_space" in files from before 2024. */
static int read_scheme(const cJSON *x, uint32_t *flags, struct err *e) {
    static const char *const names[] = {"never", "first", "always"};
    const char *replacement = METASPACE_TEXT;
    bool known = hf_member(x, "prepend_scheme");
    uint32_t scheme = hf_flag(x, "add_prefix_space", true) ? 2 : 0;
    int rc = known ? choose(x, "prepend_scheme", names, COUNT_OF(names), &scheme, e) : 0;
    if (!rc) rc = json_opt_str(x, "replacement", &replacement, e);
    if (!rc && strcmp(replacement, METASPACE_TEXT) != 0)
        rc = err_set(e, ERR_DATA, "a Metaspace with the replacement '%.20s' is not supported", replacement);
    *flags = scheme == 1 ? METASPACE_FIRST : scheme == 2 ? METASPACE_ALWAYS : 0;
    return rc;
}

static int read_literal_split(struct vocab *spec, const cJSON *x, struct err *e) {
    const char *text = literal_of(hf_member(x, "pattern"));
    uint32_t behavior = SPLIT_ISOLATED;
    int rc = choose(x, "behavior", behaviors, COUNT_OF(behaviors), &behavior, e);
    if (rc) return rc;
    if (!text || !*text) return refuse_pattern(e, "pre_tokenizer", x);
    if (hf_flag(x, "invert", false)) return err_set(e, ERR_DATA, "a Split with \"invert\" is not supported");
    return put(spec, WORDS_SPLIT, behavior, text, NULL, e);
}

static int words_part(struct vocab *spec, const cJSON *x, struct err *e) {
    static const struct {
        const char *type;
        enum text_op op;
    } plain[] = {{"Whitespace", WORDS_WHITESPACE},
                 {"WhitespaceSplit", WORDS_WHITESPACE_SPLIT},
                 {"BertPreTokenizer", WORDS_BERT}};
    uint32_t arg = SPLIT_ISOLATED;
    int rc = 0;
    for (size_t i = 0; i < COUNT_OF(plain); i++)
        if (hf_is_type(x, plain[i].type)) return put(spec, plain[i].op, 0, NULL, NULL, e);
    if (hf_is_type(x, "Sequence")) return read_each(spec, hf_member(x, "pretokenizers"), words_part, e);
    if (hf_is_type(x, "Split")) return read_literal_split(spec, x, e);
    if (hf_is_type(x, "Digits")) return put(spec, WORDS_DIGITS, hf_flag(x, "individual_digits", false), NULL, NULL, e);
    if (hf_is_type(x, "Punctuation")) {
        rc = choose(x, "behavior", behaviors, COUNT_OF(behaviors), &arg, e);
        return rc ? rc : put(spec, WORDS_PUNCTUATION, arg, NULL, NULL, e);
    }
    if (!hf_is_type(x, "Metaspace")) return hf_refuse(e, "pre_tokenizer", x);
    rc = read_scheme(x, &arg, e);
    return rc ? rc : put(spec, WORDS_METASPACE, arg | (hf_flag(x, "split", true) ? METASPACE_SPLIT : 0), NULL, NULL, e);
}

int hf_read_words(struct vocab *spec, const cJSON *x, struct err *e) {
    return x ? words_part(spec, x, e) : 0;
}

/* ---- decoder ---- */

static int read_decoder_strip(struct vocab *spec, const cJSON *x, struct err *e) {
    const char *content;
    uint64_t start = 0, stop = 0;
    int rc = json_get_str(x, "content", &content, e);
    if (!rc) rc = json_opt_u64(x, "start", 0, 64, &start, e);
    if (!rc) rc = json_opt_u64(x, "stop", 0, UINT32_MAX, &stop, e);
    if (rc || (!start && !stop)) return rc;
    if (stop || strlen(content) != 1)
        return err_set(e, ERR_DATA, "a Strip of '%.20s' with \"stop\" %llu is not supported", content,
                       (unsigned long long)stop);
    return put(spec, DECODE_STRIP, (uint32_t)start, content, NULL, e);
}

static int decoder_part(struct vocab *spec, const cJSON *x, struct err *e) {
    const char *a, *b;
    uint32_t flags;
    if (hf_is_type(x, "Sequence")) return read_each(spec, hf_member(x, "decoders"), decoder_part, e);
    if (hf_is_type(x, "ByteFallback")) return put(spec, DECODE_BYTES, 0, NULL, NULL, e);
    if (hf_is_type(x, "Fuse")) return put(spec, DECODE_FUSE, 0, NULL, NULL, e);
    if (hf_is_type(x, "Strip")) return read_decoder_strip(spec, x, e);
    if (hf_is_type(x, "Replace")) {
        a = literal_of(hf_member(x, "pattern"));
        int rc = json_get_str(x, "content", &b, e);
        if (rc) return rc;
        return a && *a ? put(spec, DECODE_REPLACE, 0, a, b, e) : refuse_pattern(e, "decoder", x);
    }
    if (hf_is_type(x, "Metaspace")) {
        int rc = read_scheme(x, &flags, e);
        return rc ? rc : put(spec, DECODE_METASPACE, flags != 0, NULL, NULL, e);
    }
    if (!hf_is_type(x, "WordPiece")) return hf_refuse(e, "decoder", x);
    a = "##";
    int rc = json_opt_str(x, "prefix", &a, e);
    return rc ? rc : put(spec, DECODE_WORDPIECE, hf_flag(x, "cleanup", true), a, NULL, e);
}

int hf_read_decoder(struct vocab *spec, const cJSON *x, struct err *e) {
    return x ? decoder_part(spec, x, e) : put(spec, DECODE_JOIN, 0, NULL, NULL, e);
}
