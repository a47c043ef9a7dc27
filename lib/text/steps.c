/*
 * Checks and copies the steps of a vocabulary, and packs them into a VOCB record (formats/vocb.md).
 */
#include "lib/text/text_internal.h"

/* ---- rules for steps ---- */

static const struct step_rule {
    uint32_t op;
    const char *name;
    uint32_t max_arg;
    bool needs_a, takes_b;
} rules[] = {
    {NORM_NFC, "NFC", 0, false, false},
    {NORM_NFD, "NFD", 0, false, false},
    {NORM_NFKC, "NFKC", 0, false, false},
    {NORM_NFKD, "NFKD", 0, false, false},
    {NORM_LOWERCASE, "lowercase", 0, false, false},
    {NORM_STRIP_ACCENTS, "strip accents", 0, false, false},
    {NORM_STRIP, "strip", 3, false, false},
    {NORM_REPLACE, "replace", 0, true, true},
    {NORM_PREPEND, "prepend", 1, true, false},
    {NORM_BERT, "BERT's normaliser", 15, false, false},
    {NORM_CHARSMAP, "charsmap", 1, true, false},
    {NORM_COLLAPSE, "collapse", 0, false, true},
    {NORM_SPACES, "remove extra spaces", 0, false, false},
    {WORDS_METASPACE, "metaspace", 7, false, false},
    {WORDS_SPLIT, "split", SPLIT_CONTIGUOUS, true, false},
    {WORDS_WHITESPACE, "whitespace", 0, false, false},
    {WORDS_WHITESPACE_SPLIT, "split at white space", 0, false, false},
    {WORDS_BERT, "BERT's words", 0, false, false},
    {WORDS_DIGITS, "digits", 1, false, false},
    {WORDS_PUNCTUATION, "punctuation", SPLIT_CONTIGUOUS, false, false},
    {WORDS_PREFIX_SPACE, "prefix space", 0, false, false},
    {DECODE_REPLACE, "decode: replace", 0, true, true},
    {DECODE_BYTES, "decode: bytes", 0, false, false},
    {DECODE_FUSE, "decode: fuse", 0, false, false},
    {DECODE_STRIP, "decode: strip", 64, true, false},
    {DECODE_METASPACE, "decode: metaspace", 1, false, false},
    {DECODE_WORDPIECE, "decode: wordpiece", 1, true, false},
    {DECODE_JOIN, "decode: join", 0, false, false},
    {MODEL_WORDPIECE, "wordpiece", 1u << 20, true, false},
};

static const struct step_rule *find_rule(uint32_t op) {
    for (size_t i = 0; i < COUNT_OF(rules); i++)
        if (rules[i].op == op) return &rules[i];
    return NULL;
}

static unsigned group(uint32_t op) {
    return op / 32;
}

const struct text_step *vocab_find_step(const struct vocab *v, enum text_op op) {
    for (uint32_t i = 0; i < v->n_steps; i++)
        if (v->steps[i].op == op) return &v->steps[i];
    return NULL;
}

const char *text_kind_name(enum text_kind kind) {
    static const char *const names[] = {"byte-level BPE", "BPE of characters", "unigram", "WordPiece"};
    return (size_t)kind < COUNT_OF(names) ? names[kind] : "unknown";
}

static bool is_text(const unsigned char *bytes, uint32_t n) {
    return utf8_valid_prefix(bytes, n) == n && (!n || !memchr(bytes, 0, n));
}

static int check_step(const struct text_step *s, struct err *e) {
    const struct step_rule *r = find_rule(s->op);
    if (!r) return err_set(e, ERR_DATA, "step %u of the tokenizer is not known", s->op);
    if (s->arg > r->max_arg || (r->needs_a ? !s->n_a : s->n_a) || (!r->takes_b && s->n_b) ||
        (s->op == DECODE_STRIP && s->n_a != 1))
        return err_set(e, ERR_DATA, "the tokenizer's step '%s' has arguments that it does not take", r->name);
    if (s->op == NORM_CHARSMAP) return charsmap_check(s, e);
    if (!is_text(s->a, s->n_a) || !is_text(s->b, s->n_b))
        return err_set(e, ERR_DATA, "the tokenizer's step '%s' has an argument that is not text", r->name);
    return 0;
}

/* Decoder steps for single tokens precede those for the whole text. */
static int check_decoder(const struct vocab *v, struct err *e) {
    uint32_t last = 0;
    for (uint32_t i = 0; i < v->n_steps; i++) {
        uint32_t op = v->steps[i].op;
        if (group(op) != group(DECODE_REPLACE)) continue;
        bool follows = op == DECODE_REPLACE     ? !last || last == DECODE_REPLACE
                       : op == DECODE_STRIP     ? last == DECODE_FUSE
                       : op >= DECODE_METASPACE ? !last
                                                : op > last && last < DECODE_STRIP;
        if (!follows)
            return err_set(e, ERR_DATA, "the decoder's step '%s' cannot follow the one before", find_rule(op)->name);
        last = op;
    }
    return 0;
}

static int check_kind(const struct vocab *v, struct err *e) {
    const uint32_t known = MODEL_BYTE_FALLBACK | MODEL_FUSE_UNK | MODEL_FLOAT_SUMS | MODEL_REPLACE_BAD;
    if (v->kind > TEXT_WORDPIECE) return err_set(e, ERR_DATA, "unknown kind of tokenizer %u", (unsigned)v->kind);
    if (v->model_flags & ~known) return err_set(e, ERR_DATA, "unknown flags %#x of the tokenizer", v->model_flags);
    if ((v->kind == TEXT_BYTE_BPE) == (v->pre == PRE_STEPS))
        return err_set(e, ERR_DATA, "a tokenizer of the kind %s with the pre-tokenizer %u", text_kind_name(v->kind),
                       (unsigned)v->pre);
    if (v->n_merges && v->kind > TEXT_CHAR_BPE)
        return err_set(e, ERR_DATA, "a tokenizer of the kind %s with merges", text_kind_name(v->kind));
    if ((v->kind == TEXT_WORDPIECE) != !!vocab_find_step(v, MODEL_WORDPIECE))
        return err_set(e, ERR_DATA, "a tokenizer of the kind %s and the prefix of WordPiece do not go together",
                       text_kind_name(v->kind));
    if (v->kind == TEXT_WORDPIECE && v->unk == TOKEN_NONE)
        return err_set(e, ERR_DATA, "WordPiece without an unknown token");
    if (v->kind != TEXT_BYTE_BPE) return 0;
    for (uint32_t i = 0; i < v->n_steps; i++)
        if (group(v->steps[i].op) > 0 && v->steps[i].op != WORDS_PREFIX_SPACE)
            return err_set(e, ERR_DATA, "byte-level BPE with the step '%s'", find_rule(v->steps[i].op)->name);
    return v->model_flags ? err_set(e, ERR_DATA, "byte-level BPE with the flags %#x", v->model_flags) : 0;
}

int steps_check(const struct vocab *v, struct err *e) {
    int rc = v->n_steps > TEXT_MAX_STEPS
                 ? err_set(e, ERR_DATA, "%u steps, at most %u are taken", v->n_steps, TEXT_MAX_STEPS)
                 : 0;
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < v->n_steps && !rc; i++) {
        const struct text_step *s = &v->steps[i];
        rc = check_step(s, e);
        bytes += (uint64_t)s->n_a + s->n_b;
        if (!rc && i && group(s->op) < group(v->steps[i - 1].op))
            rc = err_set(e, ERR_DATA, "the tokenizer's step '%s' is out of order", find_rule(s->op)->name);
        if (!rc && v->nfc && group(s->op) == 0)
            rc = err_set(e, ERR_DATA, "NFC and the step '%s'", find_rule(s->op)->name);
        if (!rc && v->kind != TEXT_BYTE_BPE && s->op == WORDS_PREFIX_SPACE)
            rc = err_set(e, ERR_DATA, "a prefix space of byte-level BPE in another kind");
    }
    if (!rc && bytes > TEXT_MAX_STEP_BYTES)
        rc = err_set(e, ERR_DATA, "the tokenizer's steps have %llu bytes, at most %u are taken",
                     (unsigned long long)bytes, TEXT_MAX_STEP_BYTES);
    if (!rc) rc = check_decoder(v, e);
    return rc ? rc : check_kind(v, e);
}

/* ---- copies ---- */

static const unsigned char *copy_bytes(struct arena *a, const unsigned char *bytes, uint32_t n, struct err *e) {
    unsigned char *to = arena_alloc(a, n + (size_t)1, e);
    if (!to) return NULL;
    if (n) memcpy(to, bytes, n);
    to[n] = 0; /* most are text */
    return to;
}

int steps_copy(struct vocab *v, const struct vocab *spec, struct err *e) {
    struct text_step *steps = arena_array(&v->memory, spec->n_steps, sizeof *steps, e);
    if (!steps) return e->code;
    for (uint32_t i = 0; i < spec->n_steps; i++) {
        steps[i] = spec->steps[i];
        steps[i].a = copy_bytes(&v->memory, spec->steps[i].a, spec->steps[i].n_a, e);
        steps[i].b = steps[i].a ? copy_bytes(&v->memory, spec->steps[i].b, spec->steps[i].n_b, e) : NULL;
        if (!steps[i].b) return e->code;
    }
    v->steps = steps;
    return 0;
}

/* ---- bytes: kind, flags, number of steps; per step op, arg, lengths of a and b, a, b ---- */

#define STEPS_HEAD 12u
#define STEP_HEAD  16u

static void put_u32(unsigned char **at, uint32_t x) {
    for (int i = 0; i < 4; i++) *(*at)++ = (unsigned char)(x >> 8 * i);
}

static uint32_t get_u32(const unsigned char **at) {
    const unsigned char *p = *at;
    *at += 4;
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

uint64_t steps_measure(const struct vocab *v) {
    if (v->kind == TEXT_BYTE_BPE && !v->n_steps) return 0;
    uint64_t n = STEPS_HEAD;
    for (uint32_t i = 0; i < v->n_steps; i++) n += STEP_HEAD + (uint64_t)v->steps[i].n_a + v->steps[i].n_b;
    return n;
}

static void put_bytes(unsigned char **at, const unsigned char *bytes, uint32_t n) {
    if (n) memcpy(*at, bytes, n);
    *at += n;
}

void steps_put(const struct vocab *v, unsigned char **at) {
    put_u32(at, v->kind);
    put_u32(at, v->model_flags);
    put_u32(at, v->n_steps);
    for (uint32_t i = 0; i < v->n_steps; i++) {
        const struct text_step *s = &v->steps[i];
        put_u32(at, s->op);
        put_u32(at, s->arg);
        put_u32(at, s->n_a);
        put_u32(at, s->n_b);
        put_bytes(at, s->a, s->n_a);
        put_bytes(at, s->b, s->n_b);
    }
}

static int get_step(const unsigned char **at, const unsigned char *end, struct text_step *s, struct err *e) {
    if ((size_t)(end - *at) < STEP_HEAD) return err_set(e, ERR_DATA, "the tokenizer's steps are cut");
    s->op = get_u32(at);
    s->arg = get_u32(at);
    s->n_a = get_u32(at);
    s->n_b = get_u32(at);
    if ((uint64_t)s->n_a + s->n_b > (uint64_t)(end - *at)) return err_set(e, ERR_DATA, "the tokenizer's steps are cut");
    s->a = *at;
    s->b = *at + s->n_a;
    *at += s->n_a + s->n_b;
    return 0;
}

int steps_get(struct vocab *spec, const unsigned char *data, size_t n, struct arena *memory, struct err *e) {
    const unsigned char *at = data, *end = data + n;
    if (n < STEPS_HEAD) return err_set(e, ERR_DATA, "the tokenizer's steps are cut");
    spec->kind = (enum text_kind)get_u32(&at);
    spec->model_flags = get_u32(&at);
    spec->n_steps = get_u32(&at);
    if (spec->n_steps > TEXT_MAX_STEPS)
        return err_set(e, ERR_DATA, "%u steps, at most %u are taken", spec->n_steps, TEXT_MAX_STEPS);
    struct text_step *steps = arena_array(memory, spec->n_steps, sizeof *steps, e);
    if (!steps) return e->code;
    spec->steps = steps;
    int rc = 0;
    for (uint32_t i = 0; i < spec->n_steps && !rc; i++) rc = get_step(&at, end, &steps[i], e);
    if (!rc && at != end) rc = err_set(e, ERR_DATA, "bytes after the tokenizer's steps");
    if (!rc && spec->kind == TEXT_BYTE_BPE && !spec->n_steps)
        rc = err_set(e, ERR_DATA, "steps that say nothing"); /* a vocabulary has only one encoding */
    return rc;
}

int text_steps_pack(const struct vocab *v, struct buf *out, struct err *e) {
    uint64_t n = steps_measure(v);
    int rc = buf_reserve(out, n, e);
    if (rc || !n) return rc;
    unsigned char *at = out->data + out->len;
    steps_put(v, &at);
    out->len += n;
    return 0;
}

int text_steps_unpack(struct vocab *spec, const void *data, size_t n, struct arena *memory, struct err *e) {
    return steps_get(spec, data, n, memory, e);
}
