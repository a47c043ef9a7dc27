/*
 * Writes tokenizer.json and tokenizer_config.json that behave as the vocabulary does. Added tokens are also listed in
 * the model's vocabulary, because `tokenizers` would otherwise number them consecutively, and gaps would shift them.
 */
#include "lib/formats/formats_internal.h"

/* ---- the pipeline of byte-level BPE (hf_pipeline_write.c has the others) ---- */

static cJSON *byte_level(bool prefix, bool trim_offsets, bool use_regex) {
    cJSON *o = hf_typed("ByteLevel");
    bool ok = o && json_put_bool(o, "add_prefix_space", prefix) && json_put_bool(o, "trim_offsets", trim_offsets) &&
              json_put_bool(o, "use_regex", use_regex);
    if (ok) return o;
    cJSON_Delete(o);
    return NULL;
}

/* { "type": "Sequence", KEY: [first, second] }. Takes ownership of both in any case. */
static cJSON *sequence(const char *key, cJSON *first, cJSON *second) {
    cJSON *o = hf_typed("Sequence"), *list = o ? cJSON_AddArrayToObject(o, key) : NULL;
    bool ok = hf_put(list, NULL, first);
    ok = hf_put(list, NULL, second) && ok;
    if (ok) return o;
    cJSON_Delete(o);
    return NULL;
}

static cJSON *split(const char *regex) {
    cJSON *o = hf_typed("Split"), *pattern = o ? cJSON_AddObjectToObject(o, "pattern") : NULL;
    bool ok = pattern && json_put_str(pattern, "Regex", regex) && json_put_str(o, "behavior", "Isolated") &&
              json_put_bool(o, "invert", false);
    if (ok) return o;
    cJSON_Delete(o);
    return NULL;
}

static cJSON *digits(void) {
    cJSON *o = hf_typed("Digits");
    if (o && json_put_bool(o, "individual_digits", true)) return o;
    cJSON_Delete(o);
    return NULL;
}

static cJSON *pre_tokenizer(const struct vocab *v) {
    enum text_pre pre = v->pre;
    if (pre == PRE_GPT2) return byte_level(vocab_find_step(v, WORDS_PREFIX_SPACE), true, true);
    if (pre == PRE_SMOLLM) return sequence("pretokenizers", digits(), byte_level(false, true, true));
    for (const struct hf_split *s = hf_splits; s->regex; s++)
        if (s->pre == pre) return sequence("pretokenizers", split(s->regex), byte_level(false, true, false));
    return NULL;
}

/* A template step: a special token by name, or the text "A" or "B". */
static bool put_step(cJSON *list, const char *kind, const char *id, int type_id) {
    cJSON *o = cJSON_CreateObject(), *inner = o ? cJSON_AddObjectToObject(o, kind) : NULL;
    bool ok = inner && json_put_str(inner, "id", id) && json_put_u64(inner, "type_id", (uint64_t)type_id);
    if (!ok) {
        cJSON_Delete(o);
        return false;
    }
    return hf_put(list, NULL, o);
}

static bool put_text(cJSON *list, const char *text, int type_id, const char *bos, const char *eos) {
    return (!bos || put_step(list, "SpecialToken", bos, type_id)) && put_step(list, "Sequence", text, type_id) &&
           (!eos || put_step(list, "SpecialToken", eos, type_id));
}

static bool put_special(cJSON *specials, const char *name, uint32_t id) {
    if (!name || cJSON_GetObjectItemCaseSensitive(specials, name)) return true;
    cJSON *o = cJSON_AddObjectToObject(specials, name),
          *ids = o && json_put_str(o, "id", name) ? cJSON_AddArrayToObject(o, "ids") : NULL;
    cJSON *tokens = ids ? cJSON_AddArrayToObject(o, "tokens") : NULL;
    return hf_put(ids, NULL, cJSON_CreateNumber(id)) && hf_put(tokens, NULL, cJSON_CreateString(name));
}

static cJSON *template_processing(const struct vocab *v, const char *bos, const char *eos) {
    cJSON *o = hf_typed("TemplateProcessing");
    cJSON *single = o ? cJSON_AddArrayToObject(o, "single") : NULL,
          *pair = single ? cJSON_AddArrayToObject(o, "pair") : NULL;
    cJSON *specials = pair ? cJSON_AddObjectToObject(o, "special_tokens") : NULL;
    bool ok = specials && put_text(single, "A", 0, bos, eos) && put_text(pair, "A", 0, bos, eos) &&
              put_text(pair, "B", 1, bos, eos) && put_special(specials, bos, v->bos) &&
              put_special(specials, eos, v->eos);
    if (ok) return o;
    cJSON_Delete(o);
    return NULL;
}

/* A ByteLevel post-processor says explicitly that nothing is added. */
static cJSON *post_processor(const struct vocab *v, const char *bos, const char *eos) {
    bool byte_bpe = v->kind == TEXT_BYTE_BPE;
    if (!byte_bpe) return bos || eos ? template_processing(v, bos, eos) : cJSON_CreateNull();
    cJSON *bytes = byte_level(false, false, true);
    if (!bos && !eos) return bytes;
    return sequence("processors", bytes, template_processing(v, bos, eos));
}

/* ---- tokens and merges ---- */

/* The text of a token outside the byte-level alphabet; NULL with *e set if JSON cannot hold it. */
static const char *added_text(struct arena *a, const struct vocab *v, uint32_t id, struct err *e) {
    const struct token *t = &v->tokens[id];
    if (memchr(t->bytes, 0, t->n_bytes) || !utf8_valid((const char *)t->bytes, t->n_bytes)) {
        err_set(e, ERR_DATA,
                "token %u: an added token or a piece that is not UTF-8 text cannot be written to tokenizer.json", id);
        return NULL;
    }
    return arena_strndup(a, (const char *)t->bytes, t->n_bytes, e);
}

/* sentencepiece matches its user-defined symbols in the normalized text, as they are spelled. `tokenizers` would
 * normalize the symbols and add the prefix to them, so they are written to match the raw text, with plain spaces. */
static bool is_symbol(const struct vocab *v, const struct token *t) {
    return (v->model_flags & MODEL_REPLACE_BAD) && (t->flags & TOKEN_NORMALIZED) && !(t->flags & TOKEN_SPECIAL);
}

static const char *symbol_text(struct arena *a, const char *text, struct err *e) {
    char *copy = arena_strdup(a, text, e), *to = copy;
    for (const char *from = copy; from && *from;) {
        bool meta = strncmp(from, METASPACE_TEXT, sizeof METASPACE_TEXT - 1) == 0;
        *to++ = meta ? ' ' : *from;
        from += meta ? sizeof METASPACE_TEXT - 1 : 1;
    }
    if (to) *to = 0;
    return copy;
}

static bool put_added_token(cJSON *list, const struct vocab *v, uint32_t id, const char *text) {
    const struct token *t = &v->tokens[id];
    cJSON *o = cJSON_CreateObject();
    bool ok = o && json_put_u64(o, "id", id) && json_put_str(o, "content", text) &&
              json_put_bool(o, "single_word", t->flags & TOKEN_SINGLE_WORD) &&
              json_put_bool(o, "lstrip", t->flags & TOKEN_LSTRIP) &&
              json_put_bool(o, "rstrip", t->flags & TOKEN_RSTRIP) &&
              json_put_bool(o, "normalized", (t->flags & TOKEN_NORMALIZED) && !is_symbol(v, t)) &&
              json_put_bool(o, "special", t->flags & TOKEN_SPECIAL);
    if (ok) return hf_put(list, NULL, o);
    cJSON_Delete(o);
    return false;
}

/* The spelling of a token in tokenizer.json. */
static const char *piece_text(struct arena *a, const struct vocab *v, uint32_t id, struct buf *b, struct err *e) {
    if (v->kind != TEXT_BYTE_BPE || (v->tokens[id].flags & TOKEN_ADDED)) {
        const char *text = added_text(a, v, id, e);
        return text && is_symbol(v, &v->tokens[id]) ? symbol_text(a, text, e) : text;
    }
    b->len = 0;
    if (vocab_spell(v, id, b, e)) return NULL;
    return arena_strndup(a, (const char *)b->data, b->len, e);
}

static bool put_scored(cJSON *list, const char *text, double score) {
    cJSON *pair = cJSON_CreateArray();
    bool ok = hf_put(pair, NULL, cJSON_CreateString(text)) && hf_put(pair, NULL, cJSON_CreateNumber(score));
    if (ok) return hf_put(list, NULL, pair);
    cJSON_Delete(pair);
    return false;
}

/* The number of listed pieces: a unigram model lists them by id, up to the last that is not an added token. */
static uint32_t count_listed(const struct vocab *v) {
    uint32_t n = v->n_tokens;
    while (n && (v->tokens[n - 1].flags & (TOKEN_UNUSED | TOKEN_ADDED)) && n - 1 != v->unk) n--;
    return n;
}

static int put_tokens(cJSON *added, cJSON *pieces, const struct vocab *v, struct arena *a, struct buf *b,
                      struct err *e) {
    uint32_t listed = v->kind == TEXT_UNIGRAM ? count_listed(v) : v->n_tokens;
    for (uint32_t id = 0; id < v->n_tokens; id++) {
        const struct token *t = &v->tokens[id];
        if ((t->flags & TOKEN_UNUSED) && v->kind == TEXT_UNIGRAM && id < listed)
            return err_set(e, ERR_DATA,
                           "token %u has no piece, but tokenizer.json lists those of a unigram model by id", id);
        if (t->flags & TOKEN_UNUSED) continue;
        const char *text = piece_text(a, v, id, b, e);
        if (!text) return e->code;
        bool ok = true;
        if (v->kind != TEXT_UNIGRAM)
            ok = json_put_u64(pieces, text, id);
        else if (id < listed)
            ok = put_scored(pieces, text, (double)t->score);
        if (ok && (t->flags & TOKEN_ADDED)) ok = put_added_token(added, v, id, text);
        if (!ok) return err_nomem(e, "tokenizer.json");
    }
    return 0;
}

static int put_merge(cJSON *list, const struct vocab *v, const struct merge *m, struct arena *a, struct buf *b,
                     struct err *e) {
    const char *left = piece_text(a, v, m->left, b, e), *right = left ? piece_text(a, v, m->right, b, e) : NULL;
    if (!right) return e->code;
    if (strpbrk(left, " \n") || strpbrk(right, " \n")) { /* must be a pair, which `tokenizers` reads since 0.20 */
        cJSON *pair = cJSON_CreateArray();
        bool ok = hf_put(pair, NULL, cJSON_CreateString(left)) && hf_put(pair, NULL, cJSON_CreateString(right));
        if (!hf_put(list, NULL, pair)) return err_nomem(e, "tokenizer.json");
        return ok ? 0 : err_nomem(e, "tokenizer.json");
    }
    b->len = 0;
    int rc = buf_append(b, left, strlen(left), e);
    if (!rc) rc = buf_append(b, " ", 1, e);
    if (!rc) rc = buf_append(b, right, strlen(right) + 1, e);
    if (rc) return rc;
    return hf_put(list, NULL, cJSON_CreateString((const char *)b->data)) ? 0 : err_nomem(e, "tokenizer.json");
}

static int put_merges(cJSON *list, const struct vocab *v, struct arena *a, struct buf *b, struct err *e) {
    const struct merge *merges = v->merges;
    struct merge *derived = NULL;
    uint32_t n = v->n_merges;
    int rc = 0;
    if (v->kind == TEXT_CHAR_BPE && !n) {
        rc = vocab_derive_merges(v, a, &derived, &n, e);
        merges = derived;
    }
    for (uint32_t i = 0; i < n && !rc; i++) rc = put_merge(list, v, &merges[i], a, b, e);
    return rc;
}

static cJSON *unigram_model(const struct vocab *v, cJSON **pieces) {
    cJSON *o = hf_typed("Unigram");
    bool ok = o &&
              (v->unk == TOKEN_NONE ? cJSON_AddNullToObject(o, "unk_id") != NULL : json_put_u64(o, "unk_id", v->unk)) &&
              (*pieces = cJSON_AddArrayToObject(o, "vocab")) &&
              json_put_bool(o, "byte_fallback", v->model_flags & MODEL_BYTE_FALLBACK);
    if (ok) return o;
    cJSON_Delete(o);
    return NULL;
}

static cJSON *wordpiece_model(const struct vocab *v, const char *unk, cJSON **pieces) {
    const struct text_step *s = vocab_find_step(v, MODEL_WORDPIECE);
    cJSON *o = hf_typed("WordPiece");
    bool ok = o && unk && json_put_str(o, "unk_token", unk) &&
              json_put_str(o, "continuing_subword_prefix", (const char *)s->a) &&
              json_put_u64(o, "max_input_chars_per_word", s->arg) && (*pieces = cJSON_AddObjectToObject(o, "vocab"));
    if (ok) return o;
    cJSON_Delete(o);
    return NULL;
}

static cJSON *bpe_model(const struct vocab *v, const char *unk, cJSON **pieces, cJSON **merges) {
    cJSON *o = hf_typed("BPE");
    bool ok = o && cJSON_AddNullToObject(o, "dropout") &&
              (unk ? json_put_str(o, "unk_token", unk) : cJSON_AddNullToObject(o, "unk_token") != NULL) &&
              cJSON_AddNullToObject(o, "continuing_subword_prefix") && cJSON_AddNullToObject(o, "end_of_word_suffix") &&
              json_put_bool(o, "fuse_unk", v->model_flags & MODEL_FUSE_UNK) &&
              json_put_bool(o, "byte_fallback", v->model_flags & MODEL_BYTE_FALLBACK) &&
              json_put_bool(o, "ignore_merges", v->ignore_merges) && (*pieces = cJSON_AddObjectToObject(o, "vocab")) &&
              (*merges = cJSON_AddArrayToObject(o, "merges"));
    if (ok) return o;
    cJSON_Delete(o);
    return NULL;
}

/* ---- the two files ---- */

/* *out = the token's text; NULL without error for TOKEN_NONE. */
static int named(const struct vocab *v, uint32_t id, struct arena *a, const char **out, struct err *e) {
    *out = NULL;
    if (id == TOKEN_NONE || (v->tokens[id].flags & TOKEN_UNUSED)) return 0;
    *out = added_text(a, v, id, e);
    return *out ? 0 : e->code;
}

static int build_tokenizer(cJSON *root, const struct vocab *v, struct arena *a, struct err *e) {
    const char *bos = NULL, *eos = NULL, *unk = NULL;
    int rc = v->add_bos ? named(v, v->bos, a, &bos, e) : 0;
    if (!rc) rc = named(v, v->unk, a, &unk, e);
    if (!rc && v->add_eos) rc = named(v, v->eos, a, &eos, e);
    if (rc) return rc;
    cJSON *pieces = NULL, *merges = NULL, *added;
    bool bytes = v->kind == TEXT_BYTE_BPE;
    bool ok = json_put_str(root, "version", "1.0") && cJSON_AddNullToObject(root, "truncation") &&
              cJSON_AddNullToObject(root, "padding") && (added = cJSON_AddArrayToObject(root, "added_tokens")) &&
              hf_put_normalizer(root, v) &&
              (bytes ? hf_put(root, "pre_tokenizer", pre_tokenizer(v)) : hf_put_words(root, v)) &&
              hf_put(root, "post_processor", post_processor(v, bos, eos)) &&
              (bytes ? hf_put(root, "decoder", byte_level(false, true, true)) : hf_put_decoder(root, v)) &&
              hf_put(root, "model",
                     v->kind == TEXT_UNIGRAM     ? unigram_model(v, &pieces)
                     : v->kind == TEXT_WORDPIECE ? wordpiece_model(v, unk, &pieces)
                                                 : bpe_model(v, unk, &pieces, &merges));
    if (!ok) return err_nomem(e, "tokenizer.json");
    struct buf scratch = {0};
    rc = put_tokens(added, pieces, v, a, &scratch, e);
    if (!rc && merges) rc = put_merges(merges, v, a, &scratch, e);
    buf_release(&scratch);
    return rc;
}

static int build_config(cJSON *root, const struct vocab *v, struct arena *a, struct err *e) {
    const struct {
        const char *key;
        uint32_t id;
    } tokens[] = {{v->kind == TEXT_WORDPIECE ? "cls_token" : "bos_token", v->bos},
                  {v->kind == TEXT_WORDPIECE ? "sep_token" : "eos_token", v->eos},
                  {"pad_token", v->pad},
                  {"unk_token", v->unk}};
    bool ok = json_put_bool(root, "add_bos_token", v->add_bos) && json_put_bool(root, "add_eos_token", v->add_eos);
    for (size_t i = 0; i < COUNT_OF(tokens) && ok; i++) {
        const char *text;
        /* Naming a role here would make an added token of a piece of the model; config.json has the role's id. */
        if (tokens[i].id != TOKEN_NONE && !(v->tokens[tokens[i].id].flags & TOKEN_ADDED)) continue;
        int rc = named(v, tokens[i].id, a, &text, e);
        if (rc) return rc;
        if (text) ok = json_put_str(root, tokens[i].key, text);
    }
    if (ok && v->chat_template) ok = json_put_str(root, "chat_template", v->chat_template);
    ok = ok && json_put_bool(root, "clean_up_tokenization_spaces", false) &&
         json_put_str(root, "tokenizer_class", "PreTrainedTokenizerFast");
    return ok ? 0 : err_nomem(e, "tokenizer_config.json");
}

typedef int builder(cJSON *root, const struct vocab *v, struct arena *a, struct err *e);

static int build(builder *fn, const struct vocab *v, struct buf *out, struct err *e) {
    struct arena a = {0};
    cJSON *root = cJSON_CreateObject();
    int rc = root ? fn(root, v, &a, e) : err_nomem(e, "tokenizer");
    char *text = rc ? NULL : json_text(root, e);
    if (!rc) rc = text ? buf_append(out, text, strlen(text), e) : e->code;
    mem_free(text);
    cJSON_Delete(root);
    arena_release(&a);
    return rc;
}

static void note_differences(const struct vocab *v) {
    const struct text_step *p = vocab_find_step(v, NORM_PREPEND), *m = vocab_find_step(v, NORM_CHARSMAP);
    if (p && p->arg && !vocab_find_step(v, NORM_SPACES))
        log_line(LOG_WARN,
                 "tokenizer.json: `tokenizers` puts a space in front of the text after every added token, this "
                 "tokenizer only at the start");
    if (m && m->arg)
        log_line(LOG_WARN,
                 "tokenizer.json: `tokenizers` normalises by grapheme clusters, this tokenizer by the longest "
                 "match: rare characters may have other tokens");
}

int hf_tokenizer_write(const struct vocab *v, struct buf *json, struct buf *config_json, struct err *e) {
    struct spellings spellings;
    int rc = spellings_make(&spellings, v, e);
    spellings_release(&spellings);
    if (!rc) rc = build(build_tokenizer, v, json, e);
    if (!rc) note_differences(v);
    return rc ? rc : build(build_config, v, config_json, e);
}
