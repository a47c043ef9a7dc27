/* Labelled texts: lines with columns or JSON objects, with one text or two. */
#include <string.h>

#include "lib/text/corpus_internal.h"

/* Finds column `number` of a line, from 1 up. */
static int column(const char *line, size_t n, const char *number, const char **text, size_t *len, struct err *e) {
    uint64_t wanted;
    if (!parse_u64(number, &wanted) || !wanted)
        return err_set(e, ERR_USAGE, "\"%s\" is not a column: they are numbered from 1", number);
    for (uint64_t i = 1;; i++) {
        const char *tab = memchr(line, '\t', n);
        *text = line;
        *len = tab ? (size_t)(tab - line) : n;
        if (i == wanted) return 0;
        if (!tab) return err_set(e, ERR_DATA, "%llu columns: expected at least %s", (unsigned long long)i, number);
        n -= *len + 1;
        line = tab + 1;
    }
}

int label_named(const struct corpus_options *o, const char *name, size_t n, uint32_t *out, struct err *e) {
    char copy[32];
    uint64_t number;
    for (uint32_t i = 0; i < o->n_classes; i++)
        if (strlen(o->classes[i]) == n && !memcmp(o->classes[i], name, n)) {
            *out = i;
            return 0;
        }
    snprintf(copy, sizeof copy, "%.*s", (int)n, name);
    if (n >= sizeof copy || !parse_u64(copy, &number) || number >= TOKEN_NONE)
        return err_set(e, ERR_DATA, "label \"%.*s\": expected the number of a class%s", n < 80 ? (int)n : 80, name,
                       o->n_classes ? " or its name" : ", for the model names none");
    if (o->n_classes && number >= o->n_classes)
        return err_set(e, ERR_DATA, "label %s: the model has %u classes", copy, o->n_classes);
    *out = (uint32_t)number;
    return 0;
}

static int member(const cJSON *object, const char *name, const char **text, size_t *len, struct err *e) {
    if (json_get_str(object, name, text, e)) return e->code;
    *len = strlen(*text);
    return 0;
}

static int read_object(struct labelled *x, const struct corpus_options *o, const char *line, size_t n, struct err *e) {
    uint64_t number = 0;
    const char *name;
    size_t len = 0;
    x->memory = json_parse(line, n, e);
    if (!x->memory || member(x->memory, o->field, &x->text[0], &x->n[0], e)) return e->code;
    if (o->pair && member(x->memory, o->pair, &x->text[1], &x->n[1], e)) return e->code;
    if (cJSON_IsString(cJSON_GetObjectItemCaseSensitive(x->memory, o->label)))
        return member(x->memory, o->label, &name, &len, e) ? e->code : label_named(o, name, len, &x->label, e);
    uint64_t most = o->n_classes ? o->n_classes - 1 : TOKEN_NONE - 1;
    if (json_get_u64(x->memory, o->label, 0, most, &number, e)) return e->code;
    x->label = (uint32_t)number;
    return 0;
}

static int read_columns(struct labelled *x, const struct corpus_options *o, const char *line, size_t n, struct err *e) {
    const char *label;
    size_t len = 0;
    if (column(line, n, o->field ? o->field : "1", &x->text[0], &x->n[0], e)) return e->code;
    if (o->pair && column(line, n, o->pair, &x->text[1], &x->n[1], e)) return e->code;
    return column(line, n, o->label, &label, &len, e) ? e->code : label_named(o, label, len, &x->label, e);
}

int labelled_read(struct labelled *out, const struct corpus_options *o, const char *line, size_t n, struct err *e) {
    *out = (struct labelled){0};
    int rc = o->documents == CORPUS_JSONL ? read_object(out, o, line, n, e) : read_columns(out, o, line, n, e);
    if (rc) labelled_release(out);
    return rc;
}

void labelled_release(struct labelled *x) {
    cJSON_Delete(x->memory);
    x->memory = NULL;
}

unsigned labelled_separators(const struct vocab *v) {
    return v->kind == TEXT_WORDPIECE ? 1 : 2;
}

void labelled_cut(const struct vocab *v, const struct corpus_options *o, size_t n[2]) {
    size_t special = (size_t)o->bos + (o->eos == EOS_AFTER) + (o->pair ? labelled_separators(v) : 0);
    if (!o->longest) return;
    size_t room = o->longest > special ? o->longest - special : 0;
    while (n[0] + n[1] > room) n[n[1] > n[0]]--;
}
