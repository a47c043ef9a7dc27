/*
 * Tokenizers in GGUF by tokenizer.ggml.model, other than byte-level BPE: "llama", BPE over characters by score;
 * "t5", the unigram model; "bert", WordPiece. llama-vocab.cpp of llama.cpp defines how each runs. A vocabulary that
 * llama.cpp would run differently is refused with the step as the reason; if only text after added tokens differs,
 * a warning is logged.
 */
#include "lib/formats/formats_internal.h"

#define META METASPACE_TEXT

static const struct gguf_kind known[] = {
    {"gpt2", TEXT_BYTE_BPE, TOKEN_NONE, TOKEN_NONE, TOKEN_NONE, TOKEN_NONE, false, false, false},
    {"llama", TEXT_CHAR_BPE, 1, 2, 0, TOKEN_NONE, true, true, false},
    {"t5", TEXT_UNIGRAM, TOKEN_NONE, 1, 2, 0, false, false, true},
    {"bert", TEXT_WORDPIECE, 101, 102, 100, 0, false, true, true},
};

const struct gguf_kind *gguf_find_kind(const char *model) {
    for (size_t i = 0; i < COUNT_OF(known); i++)
        if (strcmp(known[i].model, model) == 0) return &known[i];
    return NULL;
}

const struct gguf_kind *gguf_kind_of(const struct vocab *v) {
    for (size_t i = 0; i < COUNT_OF(known); i++)
        if (known[i].kind == v->kind) return &known[i];
    return NULL;
}

/* ---- pieces ---- */

static bool begins(const struct token *t, const char *what, size_t n) {
    return t->n_bytes >= n && memcmp(t->bytes, what, n) == 0;
}

static bool is_bracketed(const unsigned char *text, size_t n) {
    return n && text[0] == '[' && text[n - 1] == ']';
}

/* llama.cpp's WordPiece marks the beginning of a word, where others mark its continuation. */
static int put_wordpiece(const struct token *t, struct buf *out, struct err *e) {
    if ((t->flags & TOKEN_ADDED) || is_bracketed(t->bytes, t->n_bytes)) return buf_append(out, t->bytes, t->n_bytes, e);
    if (begins(t, "##", 2) && t->n_bytes > 2) return buf_append(out, t->bytes + 2, t->n_bytes - 2, e);
    int rc = buf_append(out, META, sizeof META - 1, e);
    return rc ? rc : buf_append(out, t->bytes, t->n_bytes, e);
}

static int get_wordpiece(const struct token *t, struct span text, struct buf *out, struct err *e) {
    size_t n = sizeof META - 1;
    if ((t->flags & TOKEN_ADDED) || is_bracketed((const unsigned char *)text.s, text.n))
        return buf_append(out, text.s, text.n, e);
    if (text.n > n && memcmp(text.s, META, n) == 0) return buf_append(out, text.s + n, text.n - n, e);
    int rc = buf_append(out, "##", 2, e);
    return rc ? rc : buf_append(out, text.s, text.n, e);
}

/* Replaces `from` by `to`. llama.cpp looks for user-defined tokens in the raw text, before spaces are replaced. */
static int swap_spaces(const char *text, size_t n, const char *from, const char *to, struct buf *out, struct err *e) {
    size_t n_from = strlen(from);
    int rc = 0;
    for (size_t i = 0; i < n && !rc;) {
        bool hit = n - i >= n_from && memcmp(text + i, from, n_from) == 0;
        rc = hit ? buf_append(out, to, strlen(to), e) : buf_append(out, text + i, 1, e);
        i += hit ? n_from : 1;
    }
    return rc;
}

int gguf_put_piece(const struct vocab *v, uint32_t id, struct buf *out, struct err *e) {
    const struct token *t = &v->tokens[id];
    if (v->kind == TEXT_BYTE_BPE) return token_spelling(v, id, out, e);
    if (v->kind == TEXT_WORDPIECE) return put_wordpiece(t, out, e);
    if ((t->flags & TOKEN_ADDED) && !(t->flags & TOKEN_SPECIAL))
        return swap_spaces((const char *)t->bytes, t->n_bytes, META, " ", out, e);
    return buf_append(out, t->bytes, t->n_bytes, e);
}

int gguf_get_piece(const struct vocab *spec, uint32_t id, struct span text, struct buf *out, struct err *e) {
    const struct token *t = &spec->tokens[id];
    if (spec->kind == TEXT_WORDPIECE) return get_wordpiece(t, text, out, e);
    if (spec->kind == TEXT_BYTE_BPE && !(t->flags & TOKEN_ADDED)) return text_unspell(text.s, text.n, out, e);
    if (spec->kind != TEXT_BYTE_BPE && (t->flags & TOKEN_ADDED) && (t->flags & TOKEN_NORMALIZED))
        return swap_spaces(text.s, text.n, " ", META, out, e);
    return buf_append(out, text.s, text.n, e);
}

/* ---- reading: the steps that llama.cpp runs around a model ---- */

static int read_charsmap(const struct gguf_file *g, struct span *map, struct err *e) {
    const struct gguf_kv *kv = gguf_find(g, "tokenizer.ggml.precompiled_charsmap");
    if (!kv) return 0;
    if (!kv->is_array || (kv->type != GGUF_U8 && kv->type != GGUF_I8))
        return err_set(e, ERR_DATA, "key 'tokenizer.ggml.precompiled_charsmap' is not an array of bytes");
    *map = (struct span){(const char *)kv->data, kv->n};
    return 0;
}

static int bert_steps(struct vocab *spec, struct err *e) {
    static const struct span prefix = {"##", 2}, none = {0};
    const uint32_t all = BERT_CLEAN | BERT_CHINESE | BERT_ACCENTS | BERT_LOWERCASE;
    int rc = draft_step(spec, NORM_BERT, all, none, none, e);
    if (!rc) rc = draft_step(spec, WORDS_BERT, 0, none, none, e);
    if (!rc) rc = draft_step(spec, DECODE_WORDPIECE, 1, prefix, none, e);
    return rc ? rc : draft_step(spec, MODEL_WORDPIECE, 100, prefix, none, e);
}

int gguf_read_steps(const struct gguf_file *g, const struct gguf_kind *k, struct vocab *spec, struct err *e) {
    const struct gguf_kv *own;
    struct span map = {0};
    bool prefix = k->prefix, extra = false;
    spec->kind = k->kind;
    spec->pre = PRE_STEPS;
    int rc = gguf_opt_array(g, GGUF_STEPS_KEY, GGUF_U8, &own, e);
    if (rc) return rc;
    if (own) {
        rc = text_steps_unpack(spec, own->data, own->n, &spec->memory, e);
        if (!rc && spec->kind != k->kind) rc = err_set(e, ERR_DATA, "a kind other than tokenizer.ggml.model says");
        return rc ? err_prefix(e, "key '" GGUF_STEPS_KEY "'") : 0;
    }
    if (k->kind == TEXT_WORDPIECE) return bert_steps(spec, e);
    spec->model_flags = MODEL_FUSE_UNK | (k->kind == TEXT_CHAR_BPE ? MODEL_BYTE_FALLBACK : 0);
    rc = gguf_opt_bool(g, "tokenizer.ggml.add_space_prefix", &prefix, e);
    if (!rc && k->kind == TEXT_UNIGRAM) rc = gguf_opt_bool(g, "tokenizer.ggml.remove_extra_whitespaces", &extra, e);
    if (!rc && k->kind == TEXT_UNIGRAM) rc = read_charsmap(g, &map, e);
    return rc ? rc : spm_steps(spec, map, extra, prefix, e);
}

int gguf_read_scores(const struct gguf_file *g, struct vocab *spec, struct err *e) {
    const struct gguf_kv *scores;
    int rc = gguf_opt_array(g, "tokenizer.ggml.scores", GGUF_F32, &scores, e);
    if (rc || spec->kind == TEXT_WORDPIECE) return rc;
    if (!scores) return err_set(e, ERR_DATA, "key 'tokenizer.ggml.scores' is missing");
    if (scores->n != spec->n_tokens)
        return err_set(e, ERR_DATA, "key 'tokenizer.ggml.scores' has %llu entries for %u tokens",
                       (unsigned long long)scores->n, spec->n_tokens);
    for (uint32_t i = 0; i < spec->n_tokens; i++) {
        double score;
        if (!gguf_kv_f64(scores, i, &score))
            return err_set(e, ERR_DATA, "key 'tokenizer.ggml.scores': entry %u is not a finite number", i);
        spec->tokens[i].score = (float)score;
    }
    return 0;
}

/* ---- writing: can llama.cpp run these steps? ---- */

static bool is_step(const struct text_step *s, const char *a, const char *b) {
    return s->n_a == strlen(a) && memcmp(s->a, a, s->n_a) == 0 && s->n_b == strlen(b) && memcmp(s->b, b, s->n_b) == 0;
}

static int refuse(struct err *e, const char *what) {
    return err_set(e, ERR_DATA,
                   "the tokenizer %s, which llama.cpp does not (--no-tokenizer leaves the tokenizer out of a GGUF)",
                   what);
}

static int check_bert(const struct vocab *v, struct err *e) {
    const struct text_step *n = &v->steps[0], *m = vocab_find_step(v, MODEL_WORDPIECE);
    bool usual = v->n_steps > 1 && n->op == NORM_BERT && v->steps[1].op == WORDS_BERT &&
                 (v->n_steps < 3 || v->steps[2].op >= DECODE_REPLACE);
    if (!usual) return refuse(e, "cuts words otherwise than BERT");
    if (n->arg != (BERT_CLEAN | BERT_CHINESE | BERT_ACCENTS | BERT_LOWERCASE))
        return refuse(e, "leaves upper case, accents, control or Chinese characters as they are");
    return is_step(m, "##", "") ? 0 : refuse(e, "marks the inside of a word otherwise than with '##'");
}

/* How a space is added before a text. */
struct spacing {
    bool replaces, prefix, once, extra;
    const struct text_step *charsmap;
};

static int check_spaces(const struct vocab *v, struct spacing *s, struct err *e) {
    bool unigram = v->kind == TEXT_UNIGRAM;
    *s = (struct spacing){0};
    for (uint32_t i = 0; i < v->n_steps; i++) {
        const struct text_step *t = &v->steps[i];
        if (t->op >= DECODE_REPLACE) break;
        if (t->op == NORM_REPLACE && is_step(t, " ", META)) {
            s->replaces = true;
        } else if (t->op == NORM_PREPEND && (is_step(t, " ", "") || is_step(t, META, ""))) {
            s->prefix = true;
            s->once = t->arg;
        } else if (t->op == WORDS_METASPACE) {
            s->replaces = true;
            s->prefix = t->arg & (METASPACE_FIRST | METASPACE_ALWAYS);
            s->once = s->prefix;
        } else if (t->op == WORDS_SPLIT && s->replaces && is_step(t, " ", "")) {
            continue; /* Gemma's split at spaces has no effect, because they have been replaced already */
        } else if (unigram && t->op == NORM_CHARSMAP) {
            s->charsmap = t;
        } else if (unigram && (t->op == NORM_SPACES || t->op == NORM_STRIP || t->op == NORM_COLLAPSE ||
                               t->op == WORDS_WHITESPACE_SPLIT)) {
            s->extra = true;
        } else {
            return refuse(e, "changes or cuts the text in ways");
        }
    }
    return s->replaces ? 0 : refuse(e, "leaves spaces as they are");
}

/* Sets scores that make the pieces merge in the order of the merges. ERR_DATA if there are no such scores. */
static int scores_of_merges(const struct vocab *v, float *scores, struct arena *a, struct err *e) {
    struct vocab plain = *v;
    struct merge *derived;
    uint32_t n, rank = 0;
    plain.tokens = arena_array(a, v->n_tokens, sizeof *plain.tokens, e);
    if (!plain.tokens) return e->code;
    memcpy(plain.tokens, v->tokens, v->n_tokens * sizeof *plain.tokens);
    for (uint32_t i = 0; i < v->n_merges; i++) {
        uint32_t to = v->merges[i].result;
        if (i && to == v->merges[i - 1].result) continue;
        if (scores[to] != 0) return refuse(e, "joins pieces in an order that no score for each piece gives");
        scores[to] = -(float)++rank;
    }
    if (rank >= 1u << 24) return refuse(e, "has more merges than scores can tell apart");
    int rc = vocab_derive_merges(&plain, a, &derived, &n, e);
    if (!rc && n != v->n_merges) rc = refuse(e, "has pieces that could be made in other ways than its merges say");
    return rc;
}

int gguf_check_kind(const struct vocab *v, float *scores, struct arena *a, struct err *e) {
    struct spacing s;
    int rc = 0;
    for (uint32_t i = 0; i < v->n_tokens; i++) scores[i] = v->tokens[i].score;
    if (v->kind == TEXT_BYTE_BPE) return v->n_steps ? refuse(e, "normalises the text, or puts a space in front,") : 0;
    if (v->kind == TEXT_WORDPIECE) return check_bert(v, e);
    rc = check_spaces(v, &s, e);
    if (!rc && v->kind == TEXT_CHAR_BPE && v->n_merges) rc = scores_of_merges(v, scores, a, e);
    if (!rc && v->kind == TEXT_CHAR_BPE && !(v->model_flags & MODEL_BYTE_FALLBACK))
        rc = refuse(e, "has no pieces for single bytes");
    if (!rc && s.once)
        log_line(LOG_WARN,
                 "llama.cpp puts a space in front of the text after every added token, this tokenizer only at "
                 "the start");
    return rc;
}

void gguf_spacing(const struct vocab *v, bool *prefix, bool *extra, struct span *charsmap) {
    struct spacing s;
    struct err none;
    (void)!check_spaces(v, &s, &none); /* cannot fail: gguf_check_kind has accepted the vocabulary */
    *prefix = s.prefix;
    *extra = s.extra;
    *charsmap = s.charsmap ? (struct span){(const char *)s.charsmap->a, s.charsmap->n_a} : (struct span){0};
}
