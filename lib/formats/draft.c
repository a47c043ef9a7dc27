/* Collects a foreign tokenizer for vocab_new: pieces are copied into the draft's arena, merges are resolved by text. */
#include "lib/formats/formats_internal.h"

void draft_init(struct vocab *spec) {
    *spec = (struct vocab){.bos = TOKEN_NONE, .eos = TOKEN_NONE, .pad = TOKEN_NONE, .unk = TOKEN_NONE};
}

int draft_tokens(struct vocab *spec, uint64_t n, struct err *e) {
    if (n == 0 || n > TEXT_MAX_TOKENS)
        return err_set(e, ERR_DATA, "a vocabulary of %llu tokens, expected 1 to %u", (unsigned long long)n,
                       TEXT_MAX_TOKENS);
    spec->tokens = arena_array(&spec->memory, n, sizeof *spec->tokens, e);
    if (!spec->tokens) return e->code;
    spec->n_tokens = (uint32_t)n;
    for (uint32_t i = 0; i < spec->n_tokens; i++) spec->tokens[i].flags = TOKEN_UNUSED;
    return 0;
}

int draft_pad(struct vocab *spec, uint32_t n, struct err *e) {
    if (n == spec->n_tokens) return 0;
    if (n < spec->n_tokens)
        return err_set(e, ERR_DATA, "the tokenizer has %u tokens, the embedding only %u rows", spec->n_tokens, n);
    const struct token *old = spec->tokens;
    uint32_t n_old = spec->n_tokens;
    int rc = draft_tokens(spec, n, e);
    if (!rc) memcpy(spec->tokens, old, n_old * sizeof *old);
    return rc;
}

int draft_piece(struct vocab *spec, uint32_t id, const void *bytes, size_t n, uint32_t flags, struct err *e) {
    struct token *t = &spec->tokens[id];
    if (n == 0 || n > TEXT_MAX_PIECE)
        return err_set(e, ERR_DATA, "token %u is not 1 to %d bytes long", id, TEXT_MAX_PIECE);
    t->bytes = (const unsigned char *)arena_strndup(&spec->memory, bytes, n, e);
    t->n_bytes = (uint32_t)n;
    t->flags = flags;
    return t->bytes ? 0 : e->code;
}

int draft_step(struct vocab *spec, enum text_op op, uint32_t arg, struct span a, struct span b, struct err *e) {
    if (spec->n_steps == TEXT_MAX_STEPS)
        return err_set(e, ERR_DATA, "more than %u steps around the model", TEXT_MAX_STEPS);
    struct text_step *steps = (struct text_step *)spec->steps; /* a draft owns its steps, so they are writable */
    if (!steps) spec->steps = steps = arena_array(&spec->memory, TEXT_MAX_STEPS, sizeof *steps, e);
    char *copy = steps ? arena_strndup(&spec->memory, a.s ? a.s : "", a.n, e) : NULL;
    char *copy_b = copy ? arena_strndup(&spec->memory, b.s ? b.s : "", b.n, e) : NULL;
    if (!copy_b) return e->code;
    if (a.n > UINT32_MAX || b.n > UINT32_MAX) return err_set(e, ERR_DATA, "a step of more than 4 GiB");
    steps[spec->n_steps++] =
        (struct text_step){op, arg, (unsigned char *)copy, (unsigned char *)copy_b, (uint32_t)a.n, (uint32_t)b.n};
    return 0;
}

int draft_unspell(const struct vocab *spec, struct span text, struct buf *out, struct err *e) {
    return spec->kind == TEXT_BYTE_BPE ? text_unspell(text.s, text.n, out, e) : buf_append(out, text.s, text.n, e);
}

/* ---- merges ---- */

static int no_such_token(uint32_t rank, struct span piece, struct err *e) {
    return err_set(e, ERR_DATA, "merge %u: '%.*s' is not a token", rank, piece.n > 200 ? 200 : (int)piece.n, piece.s);
}

int draft_merges(struct vocab *spec, uint64_t n, struct vocab **pieces, struct err *e) {
    if (n > TEXT_MAX_MERGES)
        return err_set(e, ERR_DATA, "%llu merges, at most %u are allowed", (unsigned long long)n, TEXT_MAX_MERGES);
    spec->n_merges = 0;
    struct vocab plain = *spec; /* a plain vocabulary of the same pieces, to look up ids by text */
    plain.kind = TEXT_BYTE_BPE;
    plain.pre = PRE_GPT2;
    plain.model_flags = plain.n_steps = 0;
    int rc = vocab_new(pieces, &plain, e);
    if (rc) return rc;
    spec->merges = arena_array(&spec->memory, n, sizeof *spec->merges, e);
    spec->n_merges = (uint32_t)n;
    return spec->merges ? 0 : e->code;
}

int draft_merge(struct vocab *spec, const struct vocab *pieces, uint32_t rank, struct span left, struct span right,
                struct buf *scratch, struct err *e) {
    scratch->len = 0;
    int rc = draft_unspell(spec, left, scratch, e);
    size_t n_left = scratch->len;
    if (!rc) rc = draft_unspell(spec, right, scratch, e);
    if (rc) return err_prefix(e, "merge %u", rank);
    struct merge *to = &spec->merges[rank];
    to->left = vocab_find(pieces, scratch->data, n_left);
    to->right = vocab_find(pieces, scratch->data + n_left, scratch->len - n_left);
    to->result = vocab_find(pieces, scratch->data, scratch->len);
    if (to->left == TOKEN_NONE) return no_such_token(rank, left, e);
    if (to->right == TOKEN_NONE) return no_such_token(rank, right, e);
    if (to->result == TOKEN_NONE)
        return err_set(e, ERR_DATA, "merge %u: '%.*s' + '%.*s' make no token", rank, left.n > 200 ? 200 : (int)left.n,
                       left.s, right.n > 200 ? 200 : (int)right.n, right.s);
    return 0;
}

int draft_finish(struct vocab *spec, struct vocab **out, struct err *e) {
    spec->add_bos = spec->add_bos && spec->bos != TOKEN_NONE; /* some files ask for a token that they do not define */
    spec->add_eos = spec->add_eos && spec->eos != TOKEN_NONE;
    return vocab_new(out, spec, e);
}

int draft_add_end(struct vocab *spec, uint32_t id, struct err *e) {
    for (uint32_t i = 0; i < spec->n_ends; i++)
        if (spec->ends[i] == id) return 0;
    if (spec->n_ends == TEXT_MAX_ENDS)
        return err_set(e, ERR_DATA, "more than %u tokens end a generation", TEXT_MAX_ENDS);
    uint32_t *ends = arena_array(&spec->memory, (size_t)spec->n_ends + 1, sizeof *ends, e);
    if (!ends) return e->code;
    if (spec->n_ends) memcpy(ends, spec->ends, spec->n_ends * sizeof *ends);
    ends[spec->n_ends++] = id;
    spec->ends = ends;
    return 0;
}

bool pre_implies_nfc(enum text_pre pre) {
    return pre == PRE_QWEN2;
}

bool pre_implies_ignore_merges(enum text_pre pre) {
    return pre == PRE_LLAMA_BPE;
}
