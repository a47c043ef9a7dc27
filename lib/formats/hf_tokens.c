/*
 * Adds the tokens that the files beside a tokenizer.json declare, as transformers 5.24 joins them
 * (tokenization_utils_base.py _from_pretrained, tokenization_utils_tokenizers.py __init__):
 *
 *   tokenizer_config.json   added_tokens_decoder: tokens by id, whose flags override those of tokenizer.json
 *   special_tokens_map.json, added_tokens.json     read only if there is no added_tokens_decoder
 *   *_token, extra_special_tokens                  in either: tokens that need not be declared elsewhere
 *
 * A new token gets the next id. transformers ignores the id that a file gives such a token, and its classes disagree
 * about precedence, so a folder in which two files give a text two ids, or an id two texts, is refused.
 */
#include <stdlib.h>
#include <xxhash.h>

#include "lib/formats/formats_internal.h"

int hf_token_flags(const cJSON *token, bool normalized, uint32_t *flags, struct err *e) {
    static const struct {
        const char *key;
        uint32_t flag;
    } known[] = {{"special", TOKEN_SPECIAL},
                 {"lstrip", TOKEN_LSTRIP},
                 {"rstrip", TOKEN_RSTRIP},
                 {"normalized", TOKEN_NORMALIZED},
                 {"single_word", TOKEN_SINGLE_WORD}};
    *flags = TOKEN_ADDED;
    for (size_t i = 0; i < COUNT_OF(known); i++) {
        bool on = known[i].flag == TOKEN_NORMALIZED && normalized;
        int rc = json_opt_bool(token, known[i].key, &on, e);
        if (rc) return rc;
        if (on) *flags |= known[i].flag;
    }
    return 0;
}

/* ---- tokens by their text ---------------------------------------------------------------------------------------- */

/* A hash table with open addressing over the ids of a draft. Its address is the seed, so that no file can provoke
 * collisions. A piece of the model and an added token may have the same bytes. */
struct names {
    uint32_t *slots; /* [mask + 1], TOKEN_NONE: free; at most half full */
    uint64_t mask;
};

static uint64_t first_slot(const struct names *names, const void *bytes, size_t n) {
    return XXH3_64bits_withSeed(bytes, n, (uintptr_t)names->slots) & names->mask;
}

static void names_add(struct names *names, const struct vocab *spec, uint32_t id) {
    uint64_t at = first_slot(names, spec->tokens[id].bytes, spec->tokens[id].n_bytes);
    while (names->slots[at] != TOKEN_NONE) at = (at + 1) & names->mask;
    names->slots[at] = id;
}

static uint32_t names_find(const struct names *names, const struct vocab *spec, const void *bytes, size_t n,
                           uint32_t added) {
    for (uint64_t at = first_slot(names, bytes, n); names->slots[at] != TOKEN_NONE; at = (at + 1) & names->mask) {
        const struct token *t = &spec->tokens[names->slots[at]];
        if (t->n_bytes == n && (t->flags & TOKEN_ADDED) == added && memcmp(t->bytes, bytes, n) == 0)
            return names->slots[at];
    }
    return TOKEN_NONE;
}

static int names_build(struct names *names, const struct vocab *spec, uint64_t extra, struct err *e) {
    uint64_t size = 16;
    while (size < 2 * (spec->n_tokens + extra)) size *= 2;
    names->slots = mem_array(size, sizeof *names->slots, e);
    if (!names->slots) return e->code;
    names->mask = size - 1;
    memset(names->slots, 0xff, size * sizeof *names->slots);
    for (uint32_t id = 0; id < spec->n_tokens; id++)
        if (spec->tokens[id].n_bytes) names_add(names, spec, id);
    return 0;
}

/* ---- joining ----------------------------------------------------------------------------------------------------- */

struct joining {
    struct vocab *spec;
    const struct hf_token_files *files;
    struct names names;
    uint32_t n_pieces;   /* tokens of the model; added tokens have ids from here on */
    uint32_t max_added;  /* largest id of an added token, or TOKEN_NONE */
    uint32_t n_rows;     /* of the embedding */
    uint32_t max_tokens; /* size of the draft: the most tokens that may be declared */
    struct buf scratch;
};

/* A token as a file declares it. */
struct declared {
    const char *file, *text;
    uint32_t id; /* TOKEN_NONE: not given */
    uint32_t flags;
    bool weak; /* does not change a token that is already an added one */
};

/* The id that `tokenizers` gives to the next new token. */
static uint32_t next_id(const struct joining *j) {
    return j->max_added != TOKEN_NONE && j->max_added >= j->n_pieces ? j->max_added + 1 : j->n_pieces;
}

/* Finds the added token with this text, else the model's piece with this spelling; TOKEN_NONE: neither. */
static int find_text(struct joining *j, const char *text, uint32_t *id, struct err *e) {
    struct err not_of_the_alphabet;
    *id = names_find(&j->names, j->spec, text, strlen(text), TOKEN_ADDED);
    j->scratch.len = 0;
    if (*id != TOKEN_NONE) return 0;
    int rc = draft_unspell(j->spec, (struct span){text, strlen(text)}, &j->scratch, &not_of_the_alphabet);
    if (!rc) *id = names_find(&j->names, j->spec, j->scratch.data, j->scratch.len, 0);
    if (rc && rc != ERR_DATA) *e = not_of_the_alphabet;
    return rc == ERR_DATA ? 0 : rc;
}

static int add_token(struct joining *j, const struct declared *d, uint32_t id, struct err *e) {
    bool known = !(j->spec->tokens[id].flags & TOKEN_UNUSED);
    int rc = draft_piece(j->spec, id, d->text, strlen(d->text), d->flags, e);
    if (rc) return rc;
    if (!known || names_find(&j->names, j->spec, d->text, strlen(d->text), TOKEN_ADDED) != id)
        names_add(&j->names, j->spec, id);
    if (j->max_added == TOKEN_NONE || id > j->max_added) j->max_added = id;
    return 0;
}

static int declare_known(struct joining *j, const struct declared *d, uint32_t id, struct err *e) {
    if (d->id != TOKEN_NONE && d->id != id)
        return err_set(e, ERR_DATA, "%s gives '%.100s' the id %u, %s the id %u", d->file, d->text, d->id,
                       j->files->base, id);
    if (d->weak && (j->spec->tokens[id].flags & TOKEN_ADDED)) return 0;
    return add_token(j, d, id, e);
}

static int declare_new(struct joining *j, const struct declared *d, struct err *e) {
    uint32_t id = next_id(j);
    if (d->id != TOKEN_NONE && d->id < j->spec->n_tokens && !(j->spec->tokens[d->id].flags & TOKEN_UNUSED)) {
        const struct token *t = &j->spec->tokens[d->id];
        return err_set(e, ERR_DATA, "%s says that token %u is '%.100s', %s says '%.*s'", d->file, d->id, d->text,
                       j->files->base, t->n_bytes > 100 ? 100 : (int)t->n_bytes, (const char *)t->bytes);
    }
    if (d->id != TOKEN_NONE && d->id != id)
        return err_set(e, ERR_DATA,
                       "%s gives '%.100s' the id %u, but after the tokens of %s the next id is %u, and transformers "
                       "gives it that one",
                       d->file, d->text, d->id, j->files->base, id);
    if (id < j->spec->n_tokens && !(j->spec->tokens[id].flags & TOKEN_UNUSED))
        return err_set(e, ERR_DATA, "%s adds '%.100s', but the ids of %s have holes and the next one, %u, is taken",
                       d->file, d->text, j->files->base, id);
    if (d->id == TOKEN_NONE && id >= j->n_rows) {
        log_line(LOG_WARN, "%s: '%.100s' is not a token of %s, and the embedding has no row for it: left out", d->file,
                 d->text, j->files->base);
        return 0;
    }
    if (id >= j->max_tokens) return err_set(e, ERR_DATA, "%s: '%.100s': more tokens than expected", d->file, d->text);
    if (id >= j->spec->n_tokens) j->spec->n_tokens = id + 1;
    return add_token(j, d, id, e);
}

static int declare(struct joining *j, const struct declared *d, struct err *e) {
    uint32_t id;
    if (!*d->text) return 0; /* ignored, as in `tokenizers` */
    int rc = find_text(j, d->text, &id, e);
    if (rc) return rc;
    return id == TOKEN_NONE ? declare_new(j, d, e) : declare_known(j, d, id, e);
}

/* ---- tokens with ids: added_tokens_decoder, added_tokens.json ---------------------------------------------------- */

static int by_id(const void *a, const void *b) {
    const struct declared *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

static int read_id(const char *file, const char *text, uint32_t *id, struct err *e) {
    uint64_t v;
    if (!parse_u64(text, &v) || v >= TEXT_MAX_TOKENS)
        return err_set(e, ERR_DATA, "%s: \"%.40s\" is not a token id", file, text);
    *id = (uint32_t)v;
    return 0;
}

/* "343": {"content": "<|im_end|>", "special": true, ...} */
static int read_decoder_entry(struct declared *d, const cJSON *x, struct err *e) {
    *d = (struct declared){.file = HF_CONFIG_FILE};
    int rc = read_id(HF_CONFIG_FILE ": added_tokens_decoder", x->string, &d->id, e);
    if (rc) return rc;
    rc = json_get_str(x, "content", &d->text, e);
    if (!rc) rc = hf_token_flags(x, !cJSON_IsTrue(hf_member(x, "special")), &d->flags, e);
    return rc ? err_prefix(e, HF_CONFIG_FILE ": added_tokens_decoder: %.40s", x->string) : 0;
}

/* Is this the text of a *_token or of an extra special token? */
static bool is_named_special(const struct hf_token_files *f, const char *text);

/* "<tool_call>": 151657 */
static int read_added_entry(struct declared *d, const cJSON *x, const struct hf_token_files *f, struct err *e) {
    double v = cJSON_IsNumber(x) ? x->valuedouble : -1;
    if (!(v >= 0 && v < TEXT_MAX_TOKENS) || v != (double)(uint32_t)v)
        return err_set(e, ERR_DATA, HF_ADDED_FILE ": '%.100s' has no id", x->string);
    *d = (struct declared){.file = HF_ADDED_FILE, .text = x->string, .id = (uint32_t)v, .weak = true};
    d->flags = TOKEN_ADDED | (is_named_special(f, x->string) ? TOKEN_SPECIAL : TOKEN_NORMALIZED);
    return 0;
}

static uint64_t count(const cJSON *x) {
    uint64_t n = 0;
    for (x = x ? x->child : NULL; x; x = x->next) n++;
    return n;
}

static int declare_numbered(struct joining *j, const cJSON *list, bool decoder, struct err *e) {
    uint64_t n = count(list), i = 0;
    struct declared *all = mem_array(n, sizeof *all, e);
    int rc = all ? 0 : e->code;
    for (const cJSON *x = n ? list->child : NULL; x && !rc; x = x->next, i++)
        rc = decoder ? read_decoder_entry(&all[i], x, e) : read_added_entry(&all[i], x, j->files, e);
    if (!rc && n) qsort(all, n, sizeof *all, by_id);
    for (i = 0; i < n && !rc; i++)
        rc = i && all[i].id == all[i - 1].id ? err_set(e, ERR_DATA, "%s: id %u is given twice", all[i].file, all[i].id)
                                             : declare(j, &all[i], e);
    mem_free(all);
    return rc;
}

/* ---- tokens by name: bos_token and others, extra special tokens -------------------------------------------------- */

static bool ends_in_token(const char *key) {
    size_t n = strlen(key);
    return n > 6 && strcmp(key + n - 6, "_token") == 0;
}

/* The text of a token given as text or as an object with "content"; NULL: neither. */
static const char *text_of(const cJSON *x) {
    return cJSON_GetStringValue(cJSON_IsObject(x) ? hf_member(x, "content") : x);
}

/* The value of `key` in special_tokens_map.json, else in tokenizer_config.json, else the class's default, unless
 * tokenizer_config.json has null. */
static const cJSON *value_of(const struct hf_token_files *f, const char *key, const char **file) {
    const cJSON *x = hf_member(f->map, key);
    *file = x ? HF_MAP_FILE : HF_CONFIG_FILE;
    if (!x) x = hf_member(f->config, key);
    if (x || cJSON_HasObjectItem(f->config, key)) return x;
    return hf_member(f->defaults, key);
}

static int declare_named(struct joining *j, const char *file, const char *key, const cJSON *x, struct err *e) {
    struct declared d = {.file = file, .text = text_of(x), .id = TOKEN_NONE, .weak = true};
    if (!d.text) return err_set(e, ERR_DATA, "%s: \"%.40s\" is not a token", file, key);
    int rc = cJSON_IsObject(x) ? hf_token_flags(x, false, &d.flags, e) : 0;
    if (rc) return err_prefix(e, "%s: %.40s", file, key);
    d.flags |= TOKEN_ADDED | TOKEN_SPECIAL;
    return declare(j, &d, e);
}

/* In the order in which transformers adds them, which determines the ids of new tokens. */
static const char *const role_keys[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                        "pad_token", "cls_token", "mask_token"};

static bool is_role(const char *key) {
    for (size_t i = 0; i < COUNT_OF(role_keys); i++)
        if (strcmp(role_keys[i], key) == 0) return true;
    return false;
}

/* Declares the other *_token keys of `object`, such as image_token, except those that are also in `but`. */
static int declare_others(struct joining *j, const cJSON *object, const char *file, const cJSON *but, struct err *e) {
    int rc = 0;
    for (const cJSON *x = object ? object->child : NULL; x && !rc; x = x->next)
        if (ends_in_token(x->string) && !is_role(x->string) && text_of(x) && !(but && hf_member(but, x->string)))
            rc = declare_named(j, file, x->string, x, e);
    return rc;
}

static const cJSON *extra_of(const struct hf_token_files *f, const char **file, const char **key) {
    static const char *const keys[] = {"extra_special_tokens", "additional_special_tokens"};
    const cJSON *x = NULL;
    for (size_t i = 0; i < COUNT_OF(keys) && !count(x); i++) {
        *key = keys[i];
        x = value_of(f, keys[i], file);
    }
    return x;
}

static int declare_all_named(struct joining *j, struct err *e) {
    const char *file, *key;
    const struct hf_token_files *f = j->files;
    int rc = 0;
    for (size_t i = 0; i < COUNT_OF(role_keys) && !rc; i++) {
        const cJSON *x = value_of(f, role_keys[i], &file);
        if (x) rc = declare_named(j, file, role_keys[i], x, e);
    }
    if (!rc) rc = declare_others(j, f->map, HF_MAP_FILE, NULL, e);
    if (!rc) rc = declare_others(j, f->config, HF_CONFIG_FILE, f->map, e);
    const cJSON *extra = extra_of(f, &file, &key);
    for (const cJSON *x = extra ? extra->child : NULL; x && !rc; x = x->next) rc = declare_named(j, file, key, x, e);
    return rc;
}

static bool is_named_special(const struct hf_token_files *f, const char *text) {
    const char *file, *key;
    for (size_t i = 0; i < COUNT_OF(role_keys); i++) {
        const char *named = text_of(value_of(f, role_keys[i], &file));
        if (named && strcmp(named, text) == 0) return true;
    }
    const cJSON *extra = extra_of(f, &file, &key);
    for (const cJSON *x = extra ? extra->child : NULL; x; x = x->next) {
        const char *named = text_of(x);
        if (named && strcmp(named, text) == 0) return true;
    }
    return false;
}

/* ---- roles ------------------------------------------------------------------------------------------------------- */

static int set_role(struct joining *j, const char *key, uint32_t *id, struct err *e) {
    const char *file;
    const cJSON *x = value_of(j->files, key, &file);
    if (!x) return 0;
    const char *text = text_of(x); /* checked by declare_named */
    uint32_t found = names_find(&j->names, j->spec, text, strlen(text), TOKEN_ADDED);
    if (found == TOKEN_NONE) return 0; /* left out with a warning */
    if (*id != TOKEN_NONE && *id != found)
        return err_set(e, ERR_DATA, "%s: \"%s\" is '%.100s', but %s puts token %u there", file, key, text,
                       j->files->base, *id);
    *id = found;
    return 0;
}

/* ---- all files --------------------------------------------------------------------------------------------------- */

static uint64_t count_declared(const struct hf_token_files *f) {
    const char *file, *key;
    return count(hf_member(f->config, "added_tokens_decoder")) + count(f->added) + count(f->config) + count(f->map) +
           count(f->defaults) + count(extra_of(f, &file, &key));
}

static int join(struct joining *j, const cJSON *decoder, struct err *e) {
    struct vocab *spec = j->spec;
    uint32_t n = spec->n_tokens;
    uint64_t extra = count_declared(j->files);
    int rc = extra > TEXT_MAX_TOKENS - n ? err_set(e, ERR_DATA, "more than %u tokens", TEXT_MAX_TOKENS) : 0;
    if (!rc) rc = draft_pad(spec, n + (uint32_t)extra, e);
    if (rc) return rc;
    j->max_tokens = spec->n_tokens;
    spec->n_tokens = n;
    for (uint32_t id = 0; id < n; id++)
        if (spec->tokens[id].flags & TOKEN_ADDED) j->max_added = id;
    rc = names_build(&j->names, spec, extra, e);
    if (!rc && decoder) rc = declare_numbered(j, decoder, true, e);
    if (!rc && j->files->added) rc = declare_numbered(j, j->files->added, false, e);
    if (!rc) rc = declare_all_named(j, e);
    if (!rc) rc = set_role(j, "bos_token", &spec->bos, e);
    if (!rc) rc = set_role(j, "eos_token", &spec->eos, e);
    return rc ? rc : set_role(j, "pad_token", &spec->pad, e);
}

/* Bounds the time of comparing two lists entry by entry. */
#define MAX_COMPARISONS ((uint64_t)1 << 28)

static int check_lists(const struct hf_token_files *f, struct err *e) {
    const char *file, *key;
    if (count(f->added) * count(extra_of(f, &file, &key)) > MAX_COMPARISONS ||
        count(f->config) * count(f->map) > MAX_COMPARISONS)
        return err_set(e, ERR_DATA, HF_MAP_FILE ": too many special tokens");
    return 0;
}

int hf_join_tokens(struct vocab *spec, const struct hf_token_files *files, uint32_t n_pieces, uint32_t n_rows,
                   struct err *e) {
    struct hf_token_files f = *files;
    const cJSON *decoder = hf_member(f.config, "added_tokens_decoder");
    if (decoder && !cJSON_IsObject(decoder))
        return err_set(e, ERR_DATA, HF_CONFIG_FILE ": \"added_tokens_decoder\" is not an object");
    if (decoder) f.map = f.added = NULL; /* their entries are in added_tokens_decoder */
    struct joining j = {.spec = spec, .files = &f, .n_pieces = n_pieces, .max_added = TOKEN_NONE, .n_rows = n_rows};
    int rc = check_lists(&f, e);
    if (!rc) rc = join(&j, decoder, e);
    mem_free(j.names.slots);
    buf_release(&j.scratch);
    return rc;
}
