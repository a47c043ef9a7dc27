/* Reads the tokenizer of a GGUF: pieces, their types, merges as text. gguf_kinds.c has what depends on the kind. */
#include "lib/formats/formats_internal.h"

/* GGUF's token types. */
enum { TYPE_NORMAL = 1, TYPE_UNKNOWN = 2, TYPE_CONTROL = 3, TYPE_USER_DEFINED = 4, TYPE_UNUSED = 5, TYPE_BYTE = 6 };

#define KNOWN_FLAGS                                                                                                    \
    (TOKEN_SPECIAL | TOKEN_ADDED | TOKEN_LSTRIP | TOKEN_RSTRIP | TOKEN_SINGLE_WORD | TOKEN_NORMALIZED | TOKEN_UNUSED)

/* ---- types and flags ---- */

uint32_t gguf_token_type(const struct vocab *v, uint32_t id) {
    const struct token *t = &v->tokens[id];
    bool unknown = v->kind != TEXT_BYTE_BPE && id == v->unk && (t->flags & TOKEN_SPECIAL);
    if (t->flags & TOKEN_UNUSED) return TYPE_UNUSED;
    if (unknown) return TYPE_UNKNOWN;
    if ((v->model_flags & MODEL_BYTE_FALLBACK) && !t->flags && text_byte_piece(t) >= 0) return TYPE_BYTE;
    if (t->flags & TOKEN_SPECIAL) return TYPE_CONTROL;
    return t->flags & TOKEN_ADDED ? TYPE_USER_DEFINED : TYPE_NORMAL;
}

static bool flags_of_type(uint32_t type, uint32_t *flags) {
    switch (type) {
    case TYPE_BYTE:
    case TYPE_NORMAL: *flags = 0; return true;
    case TYPE_UNKNOWN:
    case TYPE_CONTROL: *flags = TOKEN_SPECIAL | TOKEN_ADDED; return true;
    case TYPE_USER_DEFINED: *flags = TOKEN_ADDED; return true;
    case TYPE_UNUSED: *flags = TOKEN_UNUSED; return true;
    default: return false;
    }
}

/* llama.cpp's list of end-of-generation tokens (llama-vocab.cpp) without those of fill-in-the-middle. GGUF has only one
 * key for the end of a text, but models have several. */
bool gguf_text_ends(const void *text, size_t n) {
    static const char *const known[] = {
        "<|eot_id|>", "<|im_end|>", "<|end|>",         "<|return|>",         "<|call|>",
        "<|flush|>",  "<|calls|>",  "<end_of_turn>",   "<|endoftext|>",      "<|eom_id|>",
        "<EOT>",      "_<EOT>",     "<|end_of_text|>", "<end_of_utterance>",
    };
    for (size_t i = 0; i < COUNT_OF(known); i++)
        if (strlen(known[i]) == n && memcmp(known[i], text, n) == 0) return true;
    return false;
}

bool gguf_type_says_all(const struct vocab *v, uint32_t id) {
    const struct token *t = &v->tokens[id];
    uint32_t flags;
    /* set_piece would make it special */
    if (!(t->flags & TOKEN_SPECIAL) && gguf_text_ends(t->bytes, t->n_bytes)) return false;
    return flags_of_type(gguf_token_type(v, id), &flags) && flags == t->flags;
}

/* *out = an array with one entry per token, or NULL if there is no such key. */
static int token_array(const struct gguf_file *g, const char *key, enum gguf_type type, uint64_t n,
                       const struct gguf_kv **out, struct err *e) {
    int rc = gguf_opt_array(g, key, type, out, e);
    if (!rc && *out && (*out)->n != n)
        rc = err_set(e, ERR_DATA, "key '%s' has %llu entries for %llu tokens", key, (unsigned long long)(*out)->n,
                     (unsigned long long)n);
    return rc;
}

static int read_flags(const struct gguf_file *g, struct vocab *spec, struct err *e) {
    const struct gguf_kv *types, *flags;
    int rc = token_array(g, "tokenizer.ggml.token_type", GGUF_I32, spec->n_tokens, &types, e);
    if (!rc) /* token types cannot express all flags */
        rc = token_array(g, "rill.tokenizer.flags", GGUF_U32, spec->n_tokens, &flags, e);
    if (rc) return rc;
    for (uint32_t i = 0; i < spec->n_tokens; i++) {
        uint64_t v = types || flags ? UINT64_MAX : TYPE_NORMAL;
        if (flags) {
            if (!gguf_kv_u64(flags, i, &v) || (v & ~(uint64_t)KNOWN_FLAGS))
                return err_set(e, ERR_DATA, "key 'rill.tokenizer.flags': token %u has unknown flags", i);
            spec->tokens[i].flags = (uint32_t)v;
        } else if ((types && !gguf_kv_u64(types, i, &v)) || v > UINT32_MAX ||
                   !flags_of_type((uint32_t)v, &spec->tokens[i].flags)) {
            return err_set(e, ERR_DATA, "key 'tokenizer.ggml.token_type': token %u is of a type that is not supported",
                           i);
        }
    }
    return 0;
}

/* ---- pieces ---- */

static int set_piece(struct vocab *spec, uint32_t id, struct span text, bool types_only, struct buf *scratch,
                     struct err *e) {
    struct token *t = &spec->tokens[id];
    if (text.n == 0) t->flags = TOKEN_UNUSED;
    if (types_only && gguf_text_ends(text.s, text.n))
        t->flags = TOKEN_SPECIAL | TOKEN_ADDED; /* as llama.cpp treats it */
    if (t->flags & TOKEN_UNUSED) return 0;      /* its text is a placeholder such as "[PAD123]" */
    if (text.n > TEXT_MAX_PIECE * 2)
        return err_set(e, ERR_DATA, "token %u is longer than %d bytes", id, TEXT_MAX_PIECE);
    scratch->len = 0;
    int rc = gguf_get_piece(spec, id, text, scratch, e);
    if (rc) return err_prefix(e, "key 'tokenizer.ggml.tokens': token %u", id);
    text = (struct span){(const char *)scratch->data, scratch->len};
    t->bytes = (const unsigned char *)arena_strndup(&spec->memory, text.s, text.n, e);
    t->n_bytes = (uint32_t)text.n;
    return t->bytes ? 0 : e->code;
}

static int read_pieces(const struct gguf_file *g, struct vocab *spec, struct buf *scratch, struct err *e) {
    const struct gguf_kv *tokens;
    int rc = gguf_opt_array(g, "tokenizer.ggml.tokens", GGUF_STRING, &tokens, e);
    if (!rc && !tokens) rc = err_set(e, ERR_DATA, "key 'tokenizer.ggml.tokens' is missing");
    if (!rc) rc = draft_tokens(spec, tokens->n, e);
    if (!rc) rc = read_flags(g, spec, e);
    bool types_only = !gguf_find(g, "rill.tokenizer.flags");
    uint64_t at = 0;
    for (uint32_t i = 0; !rc && i < spec->n_tokens; i++)
        rc = set_piece(spec, i, gguf_kv_next_string(tokens, &at), types_only, scratch, e);
    return rc;
}

/* ---- merges ---- */

/* "left right": pieces are spelled without spaces, so there is exactly one space. */
static int read_merge(struct vocab *spec, const struct vocab *pieces, uint32_t rank, struct span text,
                      struct buf *scratch, struct err *e) {
    const char *space = text.n ? memchr(text.s, ' ', text.n) : NULL;
    if (!space) return err_set(e, ERR_DATA, "merge %u is not two pieces with a space between", rank);
    struct span left = {text.s, (uint64_t)(space - text.s)}, right = {space + 1, text.n - left.n - 1};
    return draft_merge(spec, pieces, rank, left, right, scratch, e);
}

static int read_merges(const struct gguf_file *g, struct vocab *spec, struct buf *scratch, struct err *e) {
    const struct gguf_kv *merges;
    struct vocab *pieces = NULL;
    uint64_t at = 0;
    int rc = gguf_opt_array(g, "tokenizer.ggml.merges", GGUF_STRING, &merges, e);
    if (!rc && !merges && spec->kind == TEXT_BYTE_BPE) rc = err_set(e, ERR_DATA, "the key is missing");
    if (!rc && !merges) return 0; /* merges follow from the scores */
    if (!rc) rc = draft_merges(spec, merges->n, &pieces, e);
    for (uint32_t i = 0; !rc && i < spec->n_merges; i++)
        rc = read_merge(spec, pieces, i, gguf_kv_next_string(merges, &at), scratch, e);
    vocab_free(pieces);
    return rc ? err_prefix(e, "key 'tokenizer.ggml.merges'") : 0;
}

/* ---- settings ---- */

static int read_pre(const struct gguf_file *g, struct vocab *spec, struct err *e) {
    const char *pre = NULL;
    int rc = gguf_opt_str(g, "tokenizer.ggml.pre", &spec->memory, &pre, e);
    if (rc) return rc;
    if (!pre) return err_set(e, ERR_DATA, "key 'tokenizer.ggml.pre' is missing: how text is cut is not known");
    rc = text_pre_parse(pre, &spec->pre, e);
    return rc ? err_prefix(e, "key 'tokenizer.ggml.pre'") : 0;
}

/* llama.cpp does not use tokenizer.ggml.unknown_token_id: it drops bytes without a token, as `tokenizers` does unless
 * the BPE model has an unk_token. Our own key holds that token. */
static int read_ids(const struct gguf_file *g, const struct gguf_kind *k, struct vocab *spec, struct err *e) {
    bool bytes = k->kind == TEXT_BYTE_BPE, bert = k->kind == TEXT_WORDPIECE;
    const struct {
        const char *key;
        uint32_t *to, fallback;
    } ids[] = {{bert && gguf_find(g, "tokenizer.ggml.cls_token_id") ? "tokenizer.ggml.cls_token_id"
                                                                    : "tokenizer.ggml.bos_token_id",
                &spec->bos, k->bos},
               {bert ? "tokenizer.ggml.seperator_token_id" : "tokenizer.ggml.eos_token_id", &spec->eos, k->eos},
               {"tokenizer.ggml.padding_token_id", &spec->pad, k->pad},
               {bytes ? "rill.tokenizer.unk" : "tokenizer.ggml.unknown_token_id", &spec->unk, k->unk}};
    for (size_t i = 0; i < COUNT_OF(ids); i++) {
        uint64_t v = ids[i].fallback < spec->n_tokens ? ids[i].fallback : TOKEN_NONE;
        int rc = gguf_opt_u64(g, ids[i].key, 0, spec->n_tokens - 1, &v, e);
        if (rc) return rc;
        *ids[i].to = (uint32_t)v;
    }
    return 0;
}

/* The file's list of end tokens if it has one, else all tokens with a known end text; in both cases those
 * with a key of their own. */
static int read_ends(const struct gguf_file *g, struct vocab *spec, struct err *e) {
    static const char *const keys[] = {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
    const struct gguf_kv *list = gguf_find(g, GGUF_ENDS_KEY);
    uint64_t id;
    int rc = 0;
    if (list && !list->is_array) return err_set(e, ERR_DATA, "key '" GGUF_ENDS_KEY "' is not an array");
    for (size_t i = 0; i < COUNT_OF(keys) && !rc; i++) {
        id = TOKEN_NONE;
        rc = gguf_opt_u64(g, keys[i], 0, spec->n_tokens - 1, &id, e);
        if (!rc && id != TOKEN_NONE) rc = draft_add_end(spec, (uint32_t)id, e);
    }
    for (uint64_t i = 0; list && i < list->n && !rc; i++) {
        if (!gguf_kv_u64(list, i, &id) || id >= spec->n_tokens)
            return err_set(e, ERR_DATA, "key '" GGUF_ENDS_KEY "' has an id that is not a token");
        rc = draft_add_end(spec, (uint32_t)id, e);
    }
    for (uint32_t i = 0; !list && i < spec->n_tokens && !rc; i++)
        if (spec->tokens[i].n_bytes && gguf_text_ends(spec->tokens[i].bytes, spec->tokens[i].n_bytes))
            rc = draft_add_end(spec, i, e);
    return rc;
}

static int read_settings(const struct gguf_file *g, const struct gguf_kind *k, struct vocab *spec, struct err *e) {
    bool bytes = k->kind == TEXT_BYTE_BPE, bert = k->kind == TEXT_WORDPIECE;
    int rc = bytes ? read_pre(g, spec, e) : 0;
    if (rc) return rc;
    spec->nfc = pre_implies_nfc(spec->pre);
    spec->ignore_merges = pre_implies_ignore_merges(spec->pre);
    spec->add_bos = k->add_bos || spec->pre == PRE_LLAMA_BPE; /* llama.cpp's default for these */
    spec->add_eos = k->add_eos;
    rc = read_ids(g, k, spec, e);
    if (!rc) rc = read_ends(g, spec, e);
    if (!rc) rc = gguf_opt_bool(g, "tokenizer.ggml.add_bos_token", &spec->add_bos, e);
    if (!rc)
        rc =
            gguf_opt_bool(g, bert ? "tokenizer.ggml.add_sep_token" : "tokenizer.ggml.add_eos_token", &spec->add_eos, e);
    if (!rc) rc = gguf_opt_bool(g, "rill.tokenizer.nfc", &spec->nfc, e);
    if (!rc) rc = gguf_opt_bool(g, "rill.tokenizer.ignore_merges", &spec->ignore_merges, e);
    if (!rc) rc = gguf_opt_str(g, "tokenizer.chat_template", &spec->memory, &spec->chat_template, e);
    return rc;
}

int gguf_read_vocab(const struct gguf_file *g, struct vocab *spec, bool *found, struct err *e) {
    const char *model = "none";
    struct buf scratch = {0};
    int rc = gguf_opt_str(g, "tokenizer.ggml.model", &spec->memory, &model, e);
    *found = !rc && strcmp(model, "none") != 0 && strcmp(model, "no_vocab") != 0;
    if (rc || !*found) return rc;
    const struct gguf_kind *k = gguf_find_kind(model);
    if (!k)
        return err_set(e, ERR_DATA, "key 'tokenizer.ggml.model': '%.64s' is not supported (gpt2, llama, t5, bert are)",
                       model);
    bool bytes = k->kind == TEXT_BYTE_BPE;
    rc = bytes ? 0 : gguf_read_steps(g, k, spec, e);
    if (!rc) rc = read_pieces(g, spec, &scratch, e);
    if (!rc && !bytes) rc = gguf_read_scores(g, spec, e);
    if (!rc) rc = read_settings(g, k, spec, e);
    /* Merges that other programs write beside scores are ignored by llama.cpp; only ours are exact. */
    if (!rc && (bytes || (k->kind == TEXT_CHAR_BPE && gguf_find(g, GGUF_STEPS_KEY))))
        rc = read_merges(g, spec, &scratch, e);
    buf_release(&scratch);
    return rc;
}
