/* Tagged words: lines of JSON with words and a tag for each, encoded to tokens and labels. */
#include <string.h>

#include "lib/text/corpus_internal.h"
#include "lib/text/text_internal.h"

/* For a byte-level vocabulary transformers encodes every word, the first one included, as if preceded by a space
 * (add_prefix_space). */
static int encode_word(struct text_worker *w, const struct vocab *v, const struct corpus_options *o, const char *word,
                       struct text_ids *ids, struct buf *scratch, struct err *e) {
    size_t n = strlen(word);
    if (v->kind != TEXT_BYTE_BPE || !n || *word == ' ') return worker_encode(w, v, word, n, &o->encode, ids, e);
    scratch->len = 0;
    if (buf_append(scratch, " ", 1, e) || buf_append(scratch, word, n, e)) return e->code;
    return worker_encode(w, v, scratch->data, scratch->len, &o->encode, ids, e);
}

static int read_tag(const cJSON *tag, const struct corpus_options *o, uint32_t *out, struct err *e) {
    double most = o->n_classes ? o->n_classes - 1 : TOKEN_NONE - 1;
    *out = TOKEN_NONE;
    if (cJSON_IsNull(tag)) return 0;
    if (cJSON_IsString(tag)) return label_named(o, tag->valuestring, strlen(tag->valuestring), out, e);
    double x = cJSON_IsNumber(tag) ? tag->valuedouble : -1;
    if (!(x >= 0 && x <= most) || x != (double)(uint32_t)x)
        return err_set(e, ERR_DATA, "expected a tag: the number of a class below %.0f, a name, or null", most + 1);
    *out = (uint32_t)x;
    return 0;
}

static int list_of(const cJSON *object, const char *name, const cJSON **out, struct err *e) {
    *out = cJSON_GetObjectItemCaseSensitive(object, name);
    if (cJSON_IsArray(*out)) return 0;
    return err_set(e, ERR_DATA, "\"%.80s\" is %s: expected a list", name, *out ? "not a list" : "missing");
}

/* Only the first token of a word has a label, as in transformers' run_ner.py (label_all_tokens false). */
static int encode_words(struct text_worker *w, const struct vocab *v, const struct corpus_options *o,
                        const cJSON *object, struct text_ids *ids, struct buf *tags, struct buf *scratch,
                        struct err *e) {
    const cJSON *words, *classes, *word;
    int number = 1;
    if (list_of(object, o->field, &words, e) || list_of(object, o->tags, &classes, e)) return e->code;
    if (cJSON_GetArraySize(words) != cJSON_GetArraySize(classes))
        return err_set(e, ERR_DATA, "%d words and %d tags", cJSON_GetArraySize(words), cJSON_GetArraySize(classes));
    const cJSON *tag = classes->child;
    cJSON_ArrayForEach(word, words) {
        uint32_t label;
        size_t before = ids->n;
        if (!cJSON_IsString(word)) return err_set(e, ERR_DATA, "word %d is not a string", number);
        if (read_tag(tag, o, &label, e) || encode_word(w, v, o, word->valuestring, ids, scratch, e))
            return err_prefix(e, "word %d", number);
        for (size_t i = before; i < ids->n; i++) {
            if (buf_append(tags, &label, sizeof label, e)) return e->code;
            label = TOKEN_NONE;
        }
        tag = tag->next;
        number++;
    }
    return 0;
}

int tagged_encode(struct text_worker *w, const struct vocab *v, const struct corpus_options *o, const char *line,
                  size_t n, struct text_ids *ids, struct buf *tags, struct buf *scratch, struct err *e) {
    size_t before = ids->n, had = tags->len;
    cJSON *object = json_parse(line, n, e);
    int rc = object ? encode_words(w, v, o, object, ids, tags, scratch, e) : e->code;
    cJSON_Delete(object);
    if (rc) return rc;
    size_t kept[2] = {ids->n - before, 0};
    labelled_cut(v, o, kept);
    ids->n = before + kept[0];
    tags->len = had + kept[0] * sizeof(uint32_t);
    return 0;
}
