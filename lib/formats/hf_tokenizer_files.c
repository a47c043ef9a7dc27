/*
 * Combines the tokenizer files of a folder: tokenizer.json (hf_tokenizer_read.c), or vocab.json and merges.txt, or a
 * SentencePiece model (spm_read.c), or BERT's vocab.txt; then the tokens that the files beside it declare
 * (hf_tokens.c), and the other settings of tokenizer_config.json.
 */
#include "lib/formats/formats_internal.h"

/* ---- tokenizer_config.json ---- */

/* One template, or a list of named ones, from which "default" is taken. */
static int config_template(struct vocab *spec, const cJSON *config, struct err *e) {
    const cJSON *x = hf_member(config, "chat_template");
    const char *text = cJSON_GetStringValue(x);
    for (const cJSON *y = cJSON_IsArray(x) ? x->child : NULL; y; y = y->next) {
        const char *name = cJSON_GetStringValue(hf_member(y, "name"));
        if (name && strcmp(name, "default") == 0) text = cJSON_GetStringValue(hf_member(y, "template"));
    }
    if (!text && cJSON_IsArray(x) && x->child) {
        log_line(LOG_WARN, HF_CONFIG_FILE ": no chat template is called default: all are left out");
        return 0;
    }
    if (!text) return x ? err_set(e, ERR_DATA, "\"chat_template\" is neither text nor a list of templates") : 0;
    spec->chat_template = arena_strdup(&spec->memory, text, e);
    return spec->chat_template ? 0 : e->code;
}

/* tokenizer.json determines which tokens are put around a text, whatever this file says (as in
 * transformers since version 5). */
static int config_added(bool *add, const cJSON *config, const char *key, bool decided, struct err *e) {
    bool wanted = *add;
    int rc = json_opt_bool(config, key, &wanted, e);
    if (decided && wanted != *add)
        log_line(LOG_WARN, HF_CONFIG_FILE ": \"%s\" is %s, but tokenizer.json does otherwise, which counts", key,
                 wanted ? "true" : "false");
    if (!decided) *add = wanted;
    return rc;
}

static int read_config(struct vocab *spec, const cJSON *config, bool decided, struct err *e) {
    bool split = false;
    int rc = config_added(&spec->add_bos, config, "add_bos_token", decided, e);
    if (!rc) rc = config_added(&spec->add_eos, config, "add_eos_token", decided, e);
    if (!rc) rc = json_opt_bool(config, "split_special_tokens", &split, e);
    if (split)
        log_line(LOG_WARN, HF_CONFIG_FILE ": \"split_special_tokens\" is true: say --no-special wherever text is read");
    if (!rc) rc = config_template(spec, config, e);
    return rc ? err_prefix(e, HF_CONFIG_FILE) : 0;
}

/* Translates line ends, as Python does when it reads the file as text. */
static int read_template_file(struct vocab *spec, struct span t, struct err *e) {
    size_t at = t.s ? text_bom(t.s, t.n) : 0;
    if (!t.s || at == t.n) return 0;
    if (memchr(t.s, 0, t.n) || !utf8_valid(t.s, t.n))
        return err_set(e, ERR_DATA, "chat_template.jinja is not UTF-8 text");
    char *to = arena_alloc(&spec->memory, t.n + 1, e);
    spec->chat_template = to;
    if (!to) return e->code;
    for (; at < t.n; at++) {
        if (t.s[at] != '\r')
            *to++ = t.s[at];
        else if (at + 1 == t.n || t.s[at + 1] != '\n')
            *to++ = '\n';
    }
    *to = 0;
    return 0;
}

/* ---- vocab.json and merges.txt, as the classes of transformers read them ---- */

static const struct hf_class {
    const char *name, *model_type;
    enum text_pre pre;
    bool nfc;
    const char *defaults;
} classes[] = {
    {"Qwen2Tokenizer", "qwen2", PRE_QWEN2, true,
     "{\"eos_token\":\"<|endoftext|>\",\"unk_token\":\"<|endoftext|>\",\"pad_token\":\"<|endoftext|>\"}"},
    {"GPT2Tokenizer", "gpt2", PRE_GPT2, false,
     "{\"bos_token\":\"<|endoftext|>\",\"eos_token\":\"<|endoftext|>\",\"unk_token\":\"<|endoftext|>\"}"},
};

/* The model's type determines the class; otherwise it is the one that tokenizer_config.json or config.json names. */
static int find_class(const cJSON *config, const cJSON *model_config, const struct hf_class **out, struct err *e) {
    const char *type = cJSON_GetStringValue(hf_member(model_config, "model_type"));
    const char *name = cJSON_GetStringValue(hf_member(config, "tokenizer_class"));
    if (!name) name = cJSON_GetStringValue(hf_member(model_config, "tokenizer_class"));
    size_t n = name ? strlen(name) : 0;
    if (n > 4 && strcmp(name + n - 4, "Fast") == 0) n -= 4;
    for (size_t i = 0; i < COUNT_OF(classes); i++) {
        *out = &classes[i];
        if (type && strcmp(type, classes[i].model_type) == 0) return 0;
    }
    for (size_t i = 0; i < COUNT_OF(classes); i++) {
        *out = &classes[i];
        if (name && strlen(classes[i].name) == n && strncmp(name, classes[i].name, n) == 0) return 0;
    }
    return err_set(
        e, ERR_DATA,
        "there is no tokenizer.json, and how %.64s reads vocab.json and merges.txt is not known (GPT2Tokenizer's "
        "and Qwen2Tokenizer's way is)",
        name ? name : "a class without a name");
}

/* Takes the next line of merges.txt that is a merge from `text`. */
static bool next_merge(struct span *text, struct span *line) {
    while (text->n) {
        const char *end = memchr(text->s, '\n', text->n);
        uint64_t n = end ? (uint64_t)(end - text->s) : text->n, used = n + (end != NULL);
        *line = (struct span){text->s, end ? text_line_length(text->s, n) : n};
        *text = (struct span){text->s + used, text->n - used};
        if (line->n < 8 || memcmp(line->s, "#version", 8) != 0) return true;
    }
    return false;
}

static int read_merge_lines(struct vocab *spec, struct span text, struct buf *scratch, struct err *e) {
    struct vocab *pieces = NULL;
    struct span rest = text, line;
    uint64_t n = 0;
    uint32_t rank = 0;
    while (next_merge(&rest, &line)) n++;
    int rc = draft_merges(spec, n, &pieces, e);
    while (!rc && next_merge(&text, &line)) {
        const char *space = line.n ? memchr(line.s, ' ', line.n) : NULL;
        uint64_t left = space ? (uint64_t)(space - line.s) : 0;
        rc = space ? draft_merge(spec, pieces, rank, (struct span){line.s, left},
                                 (struct span){space + 1, line.n - left - 1}, scratch, e)
                   : err_set(e, ERR_DATA, "merge %u has no space", rank);
        rank++;
    }
    vocab_free(pieces);
    return rc ? err_prefix(e, "merges.txt") : 0;
}

static int read_vocab_json(struct vocab *spec, const struct hf_tokenizer_files *f, uint32_t *n_pieces, struct err *e) {
    cJSON *vocab = json_parse(f->vocab.s, f->vocab.n, e);
    struct buf scratch = {0};
    int rc = vocab ? hf_read_pieces(spec, vocab, NULL, f->vocab.n, &scratch, e) : e->code;
    if (rc) err_prefix(e, "vocab.json");
    if (!rc) rc = read_merge_lines(spec, f->merges, &scratch, e);
    *n_pieces = rc ? 0 : hf_count_pieces(vocab);
    buf_release(&scratch);
    cJSON_Delete(vocab);
    return rc;
}

/* ---- tokenizer.model, with what the classes of transformers put around a text ---- */

/* Ids are those of the model; classes that shift them, such as XLM-R's, are not supported. */
static const struct {
    const char *name, *model_type;
    bool bos, eos;
} model_classes[] = {
    {"LlamaTokenizer", "llama", true, false},       {"GemmaTokenizer", "gemma", true, false},
    {"CodeLlamaTokenizer", "mistral", true, false}, {"LlamaTokenizer", "minicpm", true, false},
    {"GemmaTokenizer", "gemma2", true, false},      {"GemmaTokenizer", "gemma3_text", true, false},
    {"LlamaTokenizer", "phi3", true, false},        {"T5Tokenizer", "t5", false, true},
    {"MT5Tokenizer", "mt5", false, true},
};

static bool is_class(const char *name, const char *class) {
    size_t n = strlen(class);
    return name && strncmp(name, class, n) == 0 && (!name[n] || strcmp(name + n, "Fast") == 0);
}

static int read_spm(struct vocab *spec, const struct hf_tokenizer_files *f, const cJSON *config, uint32_t *n_pieces,
                    struct err *e) {
    const char *name = cJSON_GetStringValue(hf_member(config, "tokenizer_class"));
    const char *type = cJSON_GetStringValue(hf_member(f->model_config, "model_type"));
    int rc = spm_read(spec, f->model, e);
    *n_pieces = spec->n_tokens;
    for (size_t i = 0; i < COUNT_OF(model_classes) && !rc; i++) {
        bool by_type = !name && type && strcmp(type, model_classes[i].model_type) == 0;
        if (!by_type && !is_class(name, model_classes[i].name)) continue;
        spec->add_bos = model_classes[i].bos;
        spec->add_eos = model_classes[i].eos;
        return 0;
    }
    return rc || (!name && !type)
               ? rc
               : err_set(e, ERR_DATA,
                         "there is no tokenizer.json, and what %.64s makes of a SentencePiece model is not known "
                         "(LlamaTokenizer, GemmaTokenizer, CodeLlamaTokenizer, T5Tokenizer, MT5Tokenizer are)",
                         name ? name : type);
}

/* ---- vocab.txt: BERT's pieces, one per line ---- */

static int read_words(struct vocab *spec, struct span text, struct err *e) {
    uint64_t n = 0, at = 0;
    for (uint64_t i = 0; i < text.n; i++) n += text.s[i] == '\n';
    if (text.n && text.s[text.n - 1] != '\n') n++;
    int rc = draft_tokens(spec, n, e);
    for (uint32_t id = 0; id < n && !rc; id++) {
        const char *end = memchr(text.s + at, '\n', text.n - at);
        uint64_t length = end ? (uint64_t)(end - text.s) - at : text.n - at;
        size_t used = text_line_length(text.s + at, length);
        rc = utf8_valid(text.s + at, used) ? draft_piece(spec, id, text.s + at, used, 0, e)
                                           : err_set(e, ERR_DATA, "line %u is not UTF-8", id + 1);
        at += length + 1;
    }
    return rc;
}

static const char bert_defaults[] = "{\"unk_token\":\"[UNK]\",\"sep_token\":\"[SEP]\",\"pad_token\":\"[PAD]\","
                                    "\"cls_token\":\"[CLS]\",\"mask_token\":\"[MASK]\"}";

static uint32_t find_piece(const struct vocab *spec, const char *text) {
    for (uint32_t i = 0; i < spec->n_tokens; i++)
        if (spec->tokens[i].n_bytes == strlen(text) && memcmp(spec->tokens[i].bytes, text, strlen(text)) == 0) return i;
    return TOKEN_NONE;
}

static int read_bert(struct vocab *spec, const struct hf_tokenizer_files *f, const cJSON *config, uint32_t *n_pieces,
                     struct err *e) {
    static const struct span prefix = {"##", 2}, none = {0};
    bool lower = true, chinese = true;
    int rc = config ? json_opt_bool(config, "do_lower_case", &lower, e) : 0;
    bool accents = lower;
    if (!rc && config) rc = json_opt_bool(config, "tokenize_chinese_chars", &chinese, e);
    if (!rc && hf_member(config, "strip_accents")) rc = json_opt_bool(config, "strip_accents", &accents, e);
    uint32_t arg =
        BERT_CLEAN | (chinese ? BERT_CHINESE : 0) | (accents ? BERT_ACCENTS : 0) | (lower ? BERT_LOWERCASE : 0);
    spec->kind = TEXT_WORDPIECE;
    spec->pre = PRE_STEPS;
    if (!rc) rc = draft_step(spec, NORM_BERT, arg, none, none, e);
    if (!rc) rc = draft_step(spec, WORDS_BERT, 0, none, none, e);
    if (!rc) rc = draft_step(spec, DECODE_WORDPIECE, 1, prefix, none, e);
    if (!rc) rc = draft_step(spec, MODEL_WORDPIECE, 100, prefix, none, e);
    if (!rc) rc = read_words(spec, f->words, e);
    if (rc) return err_prefix(e, "vocab.txt");
    const struct {
        const char *text;
        uint32_t *to;
    } roles[] = {{"[UNK]", &spec->unk}, {"[CLS]", &spec->bos}, {"[SEP]", &spec->eos}};
    for (size_t i = 0; i < COUNT_OF(roles); i++) {
        *roles[i].to = find_piece(spec, roles[i].text);
        if (*roles[i].to == TOKEN_NONE) return err_set(e, ERR_DATA, "vocab.txt has no %s", roles[i].text);
    }
    spec->add_bos = spec->add_eos = true;
    *n_pieces = spec->n_tokens;
    return 0;
}

/* ---- all files ---- */

static int parse_object(struct span text, const char *name, cJSON **out, struct err *e) {
    *out = NULL;
    if (!text.s) return 0;
    *out = json_parse(text.s, text.n, e);
    if (*out && !cJSON_IsObject(*out)) err_set(e, ERR_DATA, "not a JSON object");
    return cJSON_IsObject(*out) ? 0 : err_prefix(e, "%s", name);
}

/* Reads the tokens of the main file, then those of the files beside it. */
static int read_files(struct vocab *spec, const struct hf_tokenizer_files *f, struct hf_token_files *t,
                      cJSON **defaults, struct err *e) {
    const struct hf_class *class = NULL;
    uint32_t n_pieces;
    int rc = 0;
    t->base = f->tokenizer.s ? "tokenizer.json"
              : f->model.s   ? "the SentencePiece model"
              : f->words.s   ? "vocab.txt"
                             : "vocab.json";
    if (f->tokenizer.s) {
        rc = hf_read_tokenizer_json(spec, f->tokenizer, &n_pieces, e);
    } else if (f->model.s) {
        rc = read_spm(spec, f, t->config, &n_pieces, e);
    } else if (f->words.s) {
        rc = (*defaults = json_parse(bert_defaults, sizeof bert_defaults - 1, e)) ? 0 : e->code;
        t->defaults = *defaults;
        if (!rc) rc = read_bert(spec, f, t->config, &n_pieces, e);
    } else {
        bool prefix = false;
        rc = find_class(t->config, f->model_config, &class, e);
        if (!rc && hf_member(t->config, "add_prefix_space"))
            rc = json_opt_bool(t->config, "add_prefix_space", &prefix, e);
        if (prefix) rc = err_set(e, ERR_DATA, HF_CONFIG_FILE ": \"add_prefix_space\" is not supported");
        if (!rc) rc = (*defaults = json_parse(class->defaults, strlen(class->defaults), e)) ? 0 : e->code;
        if (rc) return rc;
        spec->pre = class->pre;
        spec->nfc = class->nfc;
        t->defaults = *defaults;
        rc = read_vocab_json(spec, f, &n_pieces, e);
    }
    if (!rc) rc = hf_join_tokens(spec, t, n_pieces, f->n_rows ? f->n_rows : TEXT_MAX_TOKENS, e);
    if (!rc && t->config) rc = read_config(spec, t->config, f->tokenizer.s != NULL, e);
    return rc ? rc : read_template_file(spec, f->chat_template, e);
}

int hf_tokenizer_parse(struct vocab *spec, const struct hf_tokenizer_files *f, struct err *e) {
    cJSON *config = NULL, *map = NULL, *added = NULL, *defaults = NULL;
    int rc = parse_object(f->config, HF_CONFIG_FILE, &config, e);
    if (!rc) rc = parse_object(f->map, HF_MAP_FILE, &map, e);
    if (!rc) rc = parse_object(f->added, HF_ADDED_FILE, &added, e);
    struct hf_token_files t = {.config = config, .map = map, .added = added};
    if (!rc) rc = read_files(spec, f, &t, &defaults, e);
    cJSON_Delete(config);
    cJSON_Delete(map);
    cJSON_Delete(added);
    cJSON_Delete(defaults);
    return rc;
}

int hf_tokenizer_read(struct vocab **out, const void *json, size_t n, const void *config_json, size_t n_config,
                      struct err *e) {
    const struct hf_tokenizer_files f = {.tokenizer = {json ? json : "", n}, .config = {config_json, n_config}};
    struct vocab spec;
    draft_init(&spec);
    int rc = hf_tokenizer_parse(&spec, &f, e);
    if (!rc) rc = draft_finish(&spec, out, e);
    arena_release(&spec.memory);
    return rc;
}
