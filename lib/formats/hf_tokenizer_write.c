/*
 * tokenizer.json and tokenizer_config.json that behave as the vocabulary does. Added tokens are listed in the model's
 * vocabulary as well: `tokenizers` would otherwise number them itself, one behind the other, and holes would shift
 * them.
 */
#include "lib/formats/formats_internal.h"

/* ---- JSON that is built in one breath: a failed allocation is reported once, at the end ------------------------ */

static cJSON *typed(const char *type) {
    cJSON *o = cJSON_CreateObject();
    if (o && !json_put_str(o, "type", type)) {
        cJSON_Delete(o);
        return NULL;
    }
    return o;
}

/* Takes the child in any case. */
static bool put(cJSON *parent, const char *key, cJSON *child) {
    bool ok =
        parent && child && (key ? cJSON_AddItemToObject(parent, key, child) : cJSON_AddItemToArray(parent, child));
    if (!ok) cJSON_Delete(child);
    return ok;
}

static cJSON *byte_level(bool trim_offsets, bool use_regex) {
    cJSON *o = typed("ByteLevel");
    bool ok = o && json_put_bool(o, "add_prefix_space", false) && json_put_bool(o, "trim_offsets", trim_offsets) &&
              json_put_bool(o, "use_regex", use_regex);
    if (ok) return o;
    cJSON_Delete(o);
    return NULL;
}

/* { "type": "Sequence", KEY: [first, second] }. Takes both in any case. */
static cJSON *sequence(const char *key, cJSON *first, cJSON *second) {
    cJSON *o = typed("Sequence"), *list = o ? cJSON_AddArrayToObject(o, key) : NULL;
    bool ok = put(list, NULL, first);
    ok = put(list, NULL, second) && ok;
    if (ok) return o;
    cJSON_Delete(o);
    return NULL;
}

/* ---- the pipeline ---- */

static cJSON *split(const char *regex) {
    cJSON *o = typed("Split"), *pattern = o ? cJSON_AddObjectToObject(o, "pattern") : NULL;
    bool ok = pattern && json_put_str(pattern, "Regex", regex) && json_put_str(o, "behavior", "Isolated") &&
              json_put_bool(o, "invert", false);
    if (ok) return o;
    cJSON_Delete(o);
    return NULL;
}

static cJSON *digits(void) {
    cJSON *o = typed("Digits");
    if (o && json_put_bool(o, "individual_digits", true)) return o;
    cJSON_Delete(o);
    return NULL;
}

static cJSON *pre_tokenizer(enum text_pre pre) {
    if (pre == PRE_GPT2) return byte_level(true, true);
    if (pre == PRE_SMOLLM) return sequence("pretokenizers", digits(), byte_level(true, true));
    for (const struct hf_split *s = hf_splits; s->regex; s++)
        if (s->pre == pre) return sequence("pretokenizers", split(s->regex), byte_level(true, false));
    return NULL;
}

/* One step of a template: a special token by name, or the text "A" or "B". */
static bool put_step(cJSON *list, const char *kind, const char *id, int type_id) {
    cJSON *o = cJSON_CreateObject(), *inner = o ? cJSON_AddObjectToObject(o, kind) : NULL;
    bool ok = inner && json_put_str(inner, "id", id) && json_put_u64(inner, "type_id", (uint64_t)type_id);
    if (!ok) {
        cJSON_Delete(o);
        return false;
    }
    return put(list, NULL, o);
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
    return put(ids, NULL, cJSON_CreateNumber(id)) && put(tokens, NULL, cJSON_CreateString(name));
}

static cJSON *template_processing(const struct vocab *v, const char *bos, const char *eos) {
    cJSON *o = typed("TemplateProcessing");
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

/* ByteLevel says that nothing is added, which an absent post-processor does not. */
static cJSON *post_processor(const struct vocab *v, const char *bos, const char *eos) {
    cJSON *bytes = byte_level(false, true);
    if (!bos && !eos) return bytes;
    return sequence("processors", bytes, template_processing(v, bos, eos));
}

/* ---- tokens and merges ---- */

/* The text of an added token; NULL with *e set when JSON cannot hold it. */
static const char *added_text(struct arena *a, const struct vocab *v, uint32_t id, struct err *e) {
    const struct token *t = &v->tokens[id];
    if (memchr(t->bytes, 0, t->n_bytes) || !utf8_valid((const char *)t->bytes, t->n_bytes)) {
        err_set(e, ERR_DATA, "token %u: an added token that is no UTF-8 text cannot be written to tokenizer.json", id);
        return NULL;
    }
    return arena_strndup(a, (const char *)t->bytes, t->n_bytes, e);
}

static bool put_added_token(cJSON *list, const struct token *t, uint32_t id, const char *text) {
    cJSON *o = cJSON_CreateObject();
    bool ok = o && json_put_u64(o, "id", id) && json_put_str(o, "content", text) &&
              json_put_bool(o, "single_word", t->flags & TOKEN_SINGLE_WORD) &&
              json_put_bool(o, "lstrip", t->flags & TOKEN_LSTRIP) &&
              json_put_bool(o, "rstrip", t->flags & TOKEN_RSTRIP) &&
              json_put_bool(o, "normalized", t->flags & TOKEN_NORMALIZED) &&
              json_put_bool(o, "special", t->flags & TOKEN_SPECIAL);
    if (ok) return put(list, NULL, o);
    cJSON_Delete(o);
    return false;
}

static int put_tokens(cJSON *added, cJSON *pieces, const struct vocab *v, struct arena *a, struct buf *b,
                      struct err *e) {
    for (uint32_t id = 0; id < v->n_tokens; id++) {
        const struct token *t = &v->tokens[id];
        if (t->flags & TOKEN_UNUSED) continue;
        const char *text;
        if (t->flags & TOKEN_ADDED) {
            text = added_text(a, v, id, e);
        } else {
            b->len = 0;
            int rc = text_spell(t->bytes, t->n_bytes, b, e);
            if (rc) return rc;
            text = arena_strndup(a, (const char *)b->data, b->len, e);
        }
        if (!text) return e->code;
        bool ok = json_put_u64(pieces, text, id);
        if (ok && (t->flags & TOKEN_ADDED)) ok = put_added_token(added, t, id, text);
        if (!ok) return err_nomem(e, "tokenizer.json");
    }
    return 0;
}

static int put_merges(cJSON *list, const struct vocab *v, struct buf *b, struct err *e) {
    for (uint32_t i = 0; i < v->n_merges; i++) {
        const struct token *left = &v->tokens[v->merges[i].left], *right = &v->tokens[v->merges[i].right];
        b->len = 0;
        int rc = text_spell(left->bytes, left->n_bytes, b, e);
        if (!rc) rc = buf_append(b, " ", 1, e);
        if (!rc) rc = text_spell(right->bytes, right->n_bytes, b, e);
        if (!rc) rc = buf_append(b, "", 1, e);
        if (rc) return rc;
        if (!put(list, NULL, cJSON_CreateString((const char *)b->data))) return err_nomem(e, "tokenizer.json");
    }
    return 0;
}

static cJSON *bpe_model(const struct vocab *v, const char *unk, cJSON **pieces, cJSON **merges) {
    cJSON *o = typed("BPE");
    bool ok = o && cJSON_AddNullToObject(o, "dropout") &&
              (unk ? json_put_str(o, "unk_token", unk) : cJSON_AddNullToObject(o, "unk_token") != NULL) &&
              cJSON_AddNullToObject(o, "continuing_subword_prefix") && cJSON_AddNullToObject(o, "end_of_word_suffix") &&
              json_put_bool(o, "fuse_unk", false) && json_put_bool(o, "byte_fallback", false) &&
              json_put_bool(o, "ignore_merges", v->ignore_merges) && (*pieces = cJSON_AddObjectToObject(o, "vocab")) &&
              (*merges = cJSON_AddArrayToObject(o, "merges"));
    if (ok) return o;
    cJSON_Delete(o);
    return NULL;
}

/* ---- the two files ---- */

/* NULL without error for TOKEN_NONE. */
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
    cJSON *pieces, *merges, *added;
    bool ok = json_put_str(root, "version", "1.0") && cJSON_AddNullToObject(root, "truncation") &&
              cJSON_AddNullToObject(root, "padding") && (added = cJSON_AddArrayToObject(root, "added_tokens")) &&
              (v->nfc ? put(root, "normalizer", typed("NFC")) : cJSON_AddNullToObject(root, "normalizer") != NULL) &&
              put(root, "pre_tokenizer", pre_tokenizer(v->pre)) &&
              put(root, "post_processor", post_processor(v, bos, eos)) &&
              put(root, "decoder", byte_level(true, true)) && put(root, "model", bpe_model(v, unk, &pieces, &merges));
    if (!ok) return err_nomem(e, "tokenizer.json");
    struct buf scratch = {0};
    rc = put_tokens(added, pieces, v, a, &scratch, e);
    if (!rc) rc = put_merges(merges, v, &scratch, e);
    buf_release(&scratch);
    return rc;
}

static int build_config(cJSON *root, const struct vocab *v, struct arena *a, struct err *e) {
    const struct {
        const char *key;
        uint32_t id;
    } tokens[] = {{"bos_token", v->bos}, {"eos_token", v->eos}, {"pad_token", v->pad}, {"unk_token", v->unk}};
    bool ok = json_put_bool(root, "add_bos_token", v->add_bos) && json_put_bool(root, "add_eos_token", v->add_eos);
    for (size_t i = 0; i < COUNT_OF(tokens) && ok; i++) {
        const char *text;
        /* A name makes an added token of a piece of the model: that one stands in config.json alone. */
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

int hf_tokenizer_write(const struct vocab *v, struct buf *json, struct buf *config_json, struct err *e) {
    struct spellings spellings;
    int rc = spellings_make(&spellings, v, e);
    spellings_release(&spellings);
    if (!rc) rc = build(build_tokenizer, v, json, e);
    return rc ? rc : build(build_config, v, config_json, e);
}
