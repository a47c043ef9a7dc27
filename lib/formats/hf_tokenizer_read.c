/*
 * Reads tokenizer.json of Hugging Face's `tokenizers`: BPE over bytes or characters, the unigram model, WordPiece.
 * Byte-level pre-tokenizers are recognized by their structure, the rest of the pipeline is read step by step
 * (hf_pipeline_read.c). Any unknown part is refused by name, because an almost right tokenizer would be silently wrong.
 */
#include "lib/formats/formats_internal.h"

static struct span span_of(const char *s) {
    return (struct span){s, strlen(s)};
}

/* ---- byte-level pre-tokenizers ---- */

const struct hf_split hf_splits[] = {
    {PRE_LLAMA_BPE,
     "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
     "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
    {PRE_QWEN2, "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
                "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
    {0, NULL},
};

/* Is x a ByteLevel step with this `use_regex`? Only with `prefix` may it add a prefix space. */
static bool is_byte_level(const cJSON *x, bool use_regex, bool prefix) {
    return hf_is_type(x, "ByteLevel") && (prefix || !hf_flag(x, "add_prefix_space", true)) &&
           hf_flag(x, "use_regex", true) == use_regex;
}

static int read_split(struct vocab *spec, const cJSON *x, struct err *e) {
    const char *regex = cJSON_GetStringValue(hf_member(hf_member(x, "pattern"), "Regex"));
    const char *behavior = cJSON_GetStringValue(hf_member(x, "behavior"));
    if (!regex || !behavior || strcmp(behavior, "Isolated") != 0 || hf_flag(x, "invert", false))
        return err_set(e, ERR_DATA, "pre_tokenizer: only a Split by a regex with behavior Isolated is supported");
    for (const struct hf_split *s = hf_splits; s->regex; s++)
        if (strcmp(s->regex, regex) == 0) {
            spec->pre = s->pre;
            return 0;
        }
    return err_set(e, ERR_DATA,
                   "pre_tokenizer: a Split by an unknown regex '%.300s' (those of Llama 3 and Qwen2 are known)", regex);
}

static int read_byte_level(struct vocab *spec, const cJSON *x, struct err *e) {
    if (is_byte_level(x, true, true)) {
        spec->pre = PRE_GPT2;
        return hf_flag(x, "add_prefix_space", true)
                   ? draft_step(spec, WORDS_PREFIX_SPACE, 0, (struct span){0}, (struct span){0}, e)
                   : 0;
    }
    if (hf_is_type(x, "ByteLevel"))
        return err_set(e, ERR_DATA, "pre_tokenizer 'ByteLevel' without a regex is not supported");
    const cJSON *list = hf_member(x, "pretokenizers"), *first = list ? list->child : NULL,
                *second = first ? first->next : NULL;
    if (!second || second->next)
        return err_set(e, ERR_DATA, "pre_tokenizer: a sequence of other than two steps is not supported");
    if (hf_is_type(first, "Digits") && hf_flag(first, "individual_digits", false) &&
        is_byte_level(second, true, false)) {
        spec->pre = PRE_SMOLLM;
        return 0;
    }
    if (hf_is_type(first, "Split") && is_byte_level(second, false, false)) return read_split(spec, first, e);
    return err_set(e, ERR_DATA, "pre_tokenizer: the sequence of '%.64s' and '%.64s' (or its options) is not supported",
                   hf_type(first), hf_type(second));
}

static bool has_byte_level(const cJSON *x) {
    if (!x) return false;
    if (hf_is_type(x, "ByteLevel")) return true;
    const cJSON *list = hf_is_type(x, "Sequence") ? hf_member(x, "pretokenizers") : NULL;
    for (const cJSON *y = list ? list->child : NULL; y; y = y->next)
        if (hf_is_type(y, "ByteLevel")) return true;
    return false;
}

/* ---- model: pieces ---- */

/* Finds the kind. Files from before 2021 have no type, but only BPE has merges. */
static int read_kind(struct vocab *spec, const cJSON *root, struct err *e) {
    const cJSON *model = hf_member(root, "model");
    if (!cJSON_IsObject(model)) return err_set(e, ERR_DATA, "model: \"model\" is missing");
    bool bpe = hf_member(model, "type") ? hf_is_type(model, "BPE") : hf_member(model, "merges") != NULL;
    if (!bpe && !hf_is_type(model, "Unigram") && !hf_is_type(model, "WordPiece"))
        return hf_refuse(e, "model: model", model);
    spec->kind = !bpe ? hf_is_type(model, "Unigram") ? TEXT_UNIGRAM : TEXT_WORDPIECE
                 : has_byte_level(hf_member(root, "pre_tokenizer")) ? TEXT_BYTE_BPE
                                                                    : TEXT_CHAR_BPE;
    if (spec->kind != TEXT_BYTE_BPE) spec->pre = PRE_STEPS;
    return 0;
}

static int check_bpe(struct vocab *spec, const cJSON *model, struct err *e) {
    static const char *const must_be_empty[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (size_t i = 0; i < COUNT_OF(must_be_empty); i++) {
        const char *s = cJSON_GetStringValue(hf_member(model, must_be_empty[i]));
        if (s && *s) return err_set(e, ERR_DATA, "\"%s\" is '%.64s', which is not supported", must_be_empty[i], s);
    }
    bool fallback = hf_flag(model, "byte_fallback", false), fuse = hf_flag(model, "fuse_unk", false);
    if (fallback && spec->kind == TEXT_BYTE_BPE)
        return err_set(e, ERR_DATA, "\"byte_fallback\" is not supported with a ByteLevel pre_tokenizer");
    if (spec->kind == TEXT_CHAR_BPE)
        spec->model_flags = (fallback ? MODEL_BYTE_FALLBACK : 0) | (fuse ? MODEL_FUSE_UNK : 0);
    double dropout = 0;
    int rc = json_opt_f64(model, "dropout", 0, 1, &dropout, e);
    if (!rc && dropout != 0) rc = err_set(e, ERR_DATA, "\"dropout\" is not supported");
    return rc;
}

/* Ids may be in any order and have gaps, but must be below `limit`, so that the table is no larger
 * than the text justifies. */
static int read_id(const cJSON *number, uint64_t limit, uint32_t *id, struct err *e) {
    double v = cJSON_IsNumber(number) ? number->valuedouble : -1;
    if (!(v >= 0 && v < (double)limit) || v != (double)(uint64_t)v)
        return err_set(e, ERR_DATA, "an id is not a whole number below %llu", (unsigned long long)limit);
    *id = (uint32_t)v;
    return 0;
}

static int count_ids(const cJSON *vocab, const cJSON *added, uint64_t limit, uint64_t *n, struct err *e) {
    uint32_t id;
    int rc = 0;
    *n = 0;
    for (const cJSON *x = vocab->child; x && !rc; x = x->next) {
        rc = read_id(x, limit, &id, e);
        if (rc) return err_prefix(e, "token '%.200s'", x->string);
        if (id >= *n) *n = (uint64_t)id + 1;
    }
    for (const cJSON *x = added ? added->child : NULL; x && !rc; x = x->next) {
        rc = read_id(cJSON_GetObjectItemCaseSensitive(x, "id"), limit, &id, e);
        if (rc) return err_prefix(e, "added_tokens");
        if (id >= *n) *n = (uint64_t)id + 1;
    }
    return 0;
}

/* Added tokens match raw text. If the model lists one too, the ids must be equal (read_ordinary_token). */
static int read_added_token(struct vocab *spec, const cJSON *x, struct err *e) {
    const char *content;
    int rc = json_get_str(x, "content", &content, e);
    if (rc) return rc;
    uint32_t id = (uint32_t)cJSON_GetObjectItemCaseSensitive(x, "id")->valuedouble, flags;
    if (!(spec->tokens[id].flags & TOKEN_UNUSED)) return err_set(e, ERR_DATA, "id %u is given twice", id);
    rc = hf_token_flags(x, false, &flags, e);
    return rc ? rc : draft_piece(spec, id, content, strlen(content), flags, e);
}

static int read_added_tokens(struct vocab *spec, const cJSON *added, struct err *e) {
    int rc = 0;
    for (const cJSON *x = added ? added->child : NULL; x && !rc; x = x->next) rc = read_added_token(spec, x, e);
    return rc ? err_prefix(e, "added_tokens") : 0;
}

static int read_ordinary_token(struct vocab *spec, const cJSON *x, struct buf *scratch, struct err *e) {
    uint32_t id = (uint32_t)x->valuedouble;
    struct token *t = &spec->tokens[id];
    if (t->flags & TOKEN_ADDED) {
        if (strlen(x->string) == t->n_bytes && memcmp(x->string, t->bytes, t->n_bytes) == 0) return 0;
        return err_set(e, ERR_DATA, "id %u is '%.*s' among the added tokens", id,
                       t->n_bytes > 200 ? 200 : (int)t->n_bytes, (const char *)t->bytes);
    }
    if (!(t->flags & TOKEN_UNUSED)) return err_set(e, ERR_DATA, "id %u is given twice", id);
    scratch->len = 0;
    int rc = draft_unspell(spec, (struct span){x->string, strlen(x->string)}, scratch, e);
    return rc ? rc : draft_piece(spec, id, scratch->data, scratch->len, 0, e);
}

uint32_t hf_count_pieces(const cJSON *vocab) {
    uint32_t n = 0;
    for (const cJSON *x = vocab->child; x; x = x->next) n++;
    return n;
}

int hf_read_pieces(struct vocab *spec, const cJSON *vocab, const cJSON *added, size_t n_json, struct buf *scratch,
                   struct err *e) {
    if (!cJSON_IsObject(vocab)) return err_set(e, ERR_DATA, "\"vocab\" is not an object");
    if (added && !cJSON_IsArray(added)) return err_set(e, ERR_DATA, "\"added_tokens\" is not a list");
    uint64_t n;
    int rc = count_ids(vocab, added, n_json < TEXT_MAX_TOKENS ? n_json : TEXT_MAX_TOKENS, &n, e);
    if (!rc) rc = draft_tokens(spec, n, e);
    if (!rc) rc = read_added_tokens(spec, added, e);
    for (const cJSON *x = vocab->child; x && !rc; x = x->next) {
        rc = read_ordinary_token(spec, x, scratch, e);
        if (rc) err_prefix(e, "token '%.200s'", x->string);
    }
    return rc;
}

/* ---- model: merges ---- */

/* "a b", or ["a", "b"] since tokenizers 0.20. */
static int read_merge(struct vocab *spec, const struct vocab *pieces, uint32_t rank, const cJSON *x,
                      struct buf *scratch, struct err *e) {
    if (cJSON_IsString(x)) {
        const char *space = strchr(x->valuestring, ' ');
        if (!space) return err_set(e, ERR_DATA, "merge %u has no space", rank);
        struct span left = {x->valuestring, (uint64_t)(space - x->valuestring)};
        return draft_merge(spec, pieces, rank, left, span_of(space + 1), scratch, e);
    }
    const char *left = cJSON_IsArray(x) && cJSON_GetArraySize(x) == 2 ? cJSON_GetStringValue(x->child) : NULL;
    const char *right = left ? cJSON_GetStringValue(x->child->next) : NULL;
    if (!right) return err_set(e, ERR_DATA, "merge %u is neither a string nor a pair of strings", rank);
    return draft_merge(spec, pieces, rank, span_of(left), span_of(right), scratch, e);
}

static int read_merges(struct vocab *spec, const cJSON *merges, struct buf *scratch, struct err *e) {
    if (!cJSON_IsArray(merges)) return err_set(e, ERR_DATA, "\"merges\" is not a list");
    uint64_t n = 0;
    for (const cJSON *x = merges->child; x; x = x->next) n++;
    struct vocab *pieces = NULL;
    int rc = draft_merges(spec, n, &pieces, e);
    uint32_t rank = 0;
    for (const cJSON *x = merges->child; x && !rc; x = x->next) rc = read_merge(spec, pieces, rank++, x, scratch, e);
    vocab_free(pieces);
    return rc;
}

/* ---- model: the pieces and scores of a unigram model ---- */

static int read_scored(struct vocab *spec, const cJSON *x, uint32_t id, struct err *e) {
    const char *text = cJSON_IsArray(x) && cJSON_GetArraySize(x) == 2 ? cJSON_GetStringValue(x->child) : NULL;
    const cJSON *score = text ? x->child->next : NULL;
    if (!cJSON_IsNumber(score)) return err_set(e, ERR_DATA, "\"vocab\": entry %u is not a piece and a score", id);
    struct token *t = &spec->tokens[id];
    if (t->flags & TOKEN_UNUSED) {
        int rc = draft_piece(spec, id, text, strlen(text), 0, e);
        if (rc) return rc;
    } else if (strlen(text) != t->n_bytes || memcmp(text, t->bytes, t->n_bytes) != 0) {
        return err_set(e, ERR_DATA, "id %u is '%.*s' among the added tokens", id,
                       t->n_bytes > 200 ? 200 : (int)t->n_bytes, (const char *)t->bytes);
    }
    if (!(score->valuedouble >= -1e30 && score->valuedouble <= 1e30))
        return err_set(e, ERR_DATA, "token '%.200s': its score is out of range", text);
    t->score = (float)score->valuedouble;
    return 0;
}

static int read_unigram(struct vocab *spec, const cJSON *model, const cJSON *added, size_t n_json, struct err *e) {
    const cJSON *vocab = hf_member(model, "vocab");
    uint64_t unk = TOKEN_NONE, n, limit = n_json < TEXT_MAX_TOKENS ? n_json : TEXT_MAX_TOKENS;
    if (!cJSON_IsArray(vocab)) return err_set(e, ERR_DATA, "\"vocab\" is not a list");
    if (added && !cJSON_IsArray(added)) return err_set(e, ERR_DATA, "\"added_tokens\" is not a list");
    uint32_t n_pieces = hf_count_pieces(vocab), id = 0;
    int rc = n_pieces > limit ? err_set(e, ERR_DATA, "%u tokens, at most %u are taken", n_pieces, TEXT_MAX_TOKENS) : 0;
    const cJSON nothing = {0};
    if (!rc) rc = count_ids(&nothing, added, limit, &n, e);
    if (!rc) rc = draft_tokens(spec, n > n_pieces ? n : n_pieces, e);
    if (!rc) rc = read_added_tokens(spec, added, e);
    for (const cJSON *x = vocab->child; x && !rc; x = x->next) rc = read_scored(spec, x, id++, e);
    if (!rc && hf_member(model, "unk_id"))
        rc = n_pieces ? json_get_u64(model, "unk_id", 0, n_pieces - 1, &unk, e)
                      : err_set(e, ERR_DATA, "\"unk_id\" without tokens");
    spec->unk = (uint32_t)unk;
    spec->model_flags = MODEL_FUSE_UNK | (hf_flag(model, "byte_fallback", false) ? MODEL_BYTE_FALLBACK : 0);
    return rc;
}

static int read_wordpiece(struct vocab *spec, const cJSON *model, struct err *e) {
    const char *prefix = "##";
    uint64_t most = 100;
    int rc = json_opt_str(model, "continuing_subword_prefix", &prefix, e);
    if (!rc) rc = json_opt_u64(model, "max_input_chars_per_word", 1, 1u << 20, &most, e);
    if (rc) return rc;
    return draft_step(spec, MODEL_WORDPIECE, (uint32_t)most, span_of(prefix), (struct span){0}, e);
}

/* The BPE model's own unk_token, used for bytes without a token. The one in tokenizer_config.json only names a role. */
static int read_unk(struct vocab *spec, const cJSON *model, struct err *e) {
    const char *unk = NULL;
    int rc = json_opt_str(model, "unk_token", &unk, e);
    if (rc || !unk) return rc;
    const cJSON *id = cJSON_GetObjectItemCaseSensitive(hf_member(model, "vocab"), unk);
    if (!id) return err_set(e, ERR_DATA, "\"unk_token\": '%.100s' is not a token", unk);
    spec->unk = (uint32_t)id->valuedouble;
    return 0;
}

static int read_bpe(struct vocab *spec, const cJSON *model, const cJSON *added, size_t n_json, struct buf *scratch,
                    struct err *e) {
    int rc = check_bpe(spec, model, e);
    if (!rc) rc = json_opt_bool(model, "ignore_merges", &spec->ignore_merges, e);
    if (!rc) rc = hf_read_pieces(spec, hf_member(model, "vocab"), added, n_json, scratch, e);
    if (!rc) rc = read_unk(spec, model, e);
    return rc ? rc : read_merges(spec, hf_member(model, "merges"), scratch, e);
}

static int read_model(struct vocab *spec, const cJSON *root, size_t n_json, struct err *e) {
    const cJSON *model = hf_member(root, "model"), *added = hf_member(root, "added_tokens");
    struct buf scratch = {0};
    int rc = 0;
    if (spec->kind == TEXT_UNIGRAM) {
        rc = read_unigram(spec, model, added, n_json, e);
    } else if (spec->kind == TEXT_WORDPIECE) {
        rc = read_wordpiece(spec, model, e);
        if (!rc) rc = hf_read_pieces(spec, hf_member(model, "vocab"), added, n_json, &scratch, e);
        if (!rc) rc = read_unk(spec, model, e);
    } else {
        rc = read_bpe(spec, model, added, n_json, &scratch, e);
    }
    buf_release(&scratch);
    return rc ? err_prefix(e, "model") : 0;
}

/* ---- post-processor: tokens put around a text ---- */

/* The id of the added token with this text, or TOKEN_NONE. */
static uint32_t find_added(const struct vocab *spec, const char *content) {
    size_t n = strlen(content);
    for (uint32_t i = 0; i < spec->n_tokens; i++) {
        const struct token *t = &spec->tokens[i];
        if ((t->flags & TOKEN_ADDED) && t->n_bytes == n && memcmp(t->bytes, content, n) == 0) return i;
    }
    return TOKEN_NONE;
}

/* Reads a template of the form [special] A [special]: the first token is BOS, the last EOS. */
static int read_template(struct vocab *spec, const cJSON *x, struct err *e) {
    const cJSON *single = hf_member(x, "single");
    bool seen_text = false;
    if (!cJSON_IsArray(single)) return err_set(e, ERR_DATA, "post_processor: a template without \"single\"");
    for (const cJSON *y = single->child; y; y = y->next) {
        if (hf_member(y, "Sequence")) {
            seen_text = true;
            continue;
        }
        const char *name = cJSON_GetStringValue(hf_member(hf_member(y, "SpecialToken"), "id"));
        uint32_t id = name ? find_added(spec, name) : TOKEN_NONE;
        bool *add = seen_text ? &spec->add_eos : &spec->add_bos;
        if (id == TOKEN_NONE) return err_set(e, ERR_DATA, "post_processor: a template with an unknown token");
        if (*add) return err_set(e, ERR_DATA, "post_processor: a template with more than one token on a side");
        *add = true;
        *(seen_text ? &spec->eos : &spec->bos) = id;
    }
    return 0;
}

/* BertProcessing and RobertaProcessing put ["[CLS]", 101] before the text and ["[SEP]", 102] after it. */
static int read_pair(struct vocab *spec, const cJSON *x, const char *key, uint32_t *role, struct err *e) {
    const cJSON *pair = hf_member(x, key);
    const char *name = cJSON_IsArray(pair) ? cJSON_GetStringValue(pair->child) : NULL;
    *role = name ? find_added(spec, name) : TOKEN_NONE;
    return *role == TOKEN_NONE
               ? err_set(e, ERR_DATA, "post_processor '%.64s': \"%s\" is not an added token", hf_type(x), key)
               : 0;
}

static int read_cls_sep(struct vocab *spec, const cJSON *x, struct err *e) {
    int rc = read_pair(spec, x, "cls", &spec->bos, e);
    spec->add_bos = spec->add_eos = true;
    return rc ? rc : read_pair(spec, x, "sep", &spec->eos, e);
}

static int read_post_processor(struct vocab *spec, const cJSON *x, struct err *e) {
    if (!x) return 0;
    if (hf_is_type(x, "Sequence")) {
        const cJSON *list = hf_member(x, "processors");
        int rc = 0;
        for (const cJSON *y = list ? list->child : NULL; y && !rc; y = y->next)
            rc = hf_is_type(y, "Sequence") ? hf_refuse(e, "nested post_processor", y) : read_post_processor(spec, y, e);
        return rc;
    }
    if (hf_is_type(x, "ByteLevel")) return 0; /* affects only offsets */
    if (hf_is_type(x, "BertProcessing") || hf_is_type(x, "RobertaProcessing")) return read_cls_sep(spec, x, e);
    return hf_is_type(x, "TemplateProcessing") ? read_template(spec, x, e) : hf_refuse(e, "post_processor", x);
}

/* ---- the file ---- */

static int read_pipeline(struct vocab *spec, const cJSON *root, size_t n, struct err *e) {
    if (!cJSON_IsObject(root)) return err_set(e, ERR_DATA, "not a JSON object");
    const cJSON *decoder = hf_member(root, "decoder"), *words = hf_member(root, "pre_tokenizer");
    int rc = hf_read_normalizer(spec, hf_member(root, "normalizer"), e);
    if (!rc) rc = read_kind(spec, root, e);
    bool bytes = spec->kind == TEXT_BYTE_BPE;
    if (!rc) rc = bytes ? read_byte_level(spec, words, e) : hf_read_words(spec, words, e);
    if (!rc && !bytes) rc = hf_read_decoder(spec, decoder, e);
    if (!rc) rc = read_model(spec, root, n, e);
    if (!rc) rc = read_post_processor(spec, hf_member(root, "post_processor"), e);
    if (!rc && bytes && decoder && !hf_is_type(decoder, "ByteLevel")) rc = hf_refuse(e, "decoder", decoder);
    return rc;
}

int hf_read_tokenizer_json(struct vocab *spec, struct span text, uint32_t *n_pieces, struct err *e) {
    cJSON *root = json_parse(text.s, text.n, e);
    int rc = root ? read_pipeline(spec, root, text.n, e) : e->code;
    *n_pieces = rc ? 0 : hf_count_pieces(hf_member(hf_member(root, "model"), "vocab"));
    cJSON_Delete(root);
    return rc ? err_prefix(e, "tokenizer.json") : 0;
}
