/* Renames a pruned model: the name it was imported under belongs to the original. */
#include "lib/prune/prune_internal.h"

#include <ctype.h>
#include <stdlib.h>

/* A word like "135M" or "1.7B" that is the model's size, within a factor of two (names round, and count differently).
 * *length 0: none. */
static const char *find_size(const char *name, uint64_t parameters, size_t *length) {
    for (const char *s = name; *s; s++) {
        if (!isdigit((unsigned char)*s) || (s > name && (isalnum((unsigned char)s[-1]) || s[-1] == '.'))) continue;
        size_t n = strspn(s, "0123456789.");
        const char *unit = strchr("KMBT", s[n]);
        if (n > 8 || !s[n] || !unit || isalnum((unsigned char)s[n + 1])) continue;
        char digits[16];
        double v;
        snprintf(digits, sizeof digits, "%.*s", (int)n, s);
        if (!parse_f64(digits, &v)) continue;
        for (const char *u = "KMBT"; u <= unit && *u; u++) v *= 1e3;
        double ratio = v / (double)parameters;
        if (ratio < 0.5 || ratio > 2) continue;
        *length = n + 1;
        return s;
    }
    *length = 0;
    return name;
}

static bool put(cJSON *general, const char *key, const char *value) {
    cJSON *text = cJSON_CreateString(value);
    bool there = cJSON_GetObjectItemCaseSensitive(general, key) != NULL;
    if (text && (there ? cJSON_ReplaceItemInObjectCaseSensitive(general, key, text)
                       : cJSON_AddItemToObject(general, key, text)))
        return true;
    cJSON_Delete(text);
    return false;
}

#define PRUNED "pruned"
static bool says_pruned(const char *s) {
    size_t n = strlen(s);
    return n >= strlen(PRUNED) && !strcmp(s + n - strlen(PRUNED), PRUNED);
}

/* "Name-135M-Instruct" becomes "Name-101M-Instruct-pruned", "Name 135M" becomes "Name 101M pruned". */
static int new_name(const char *name, uint64_t before, uint64_t after, struct buf *out, struct err *e) {
    char old_label[MODEL_SIZE_LABEL], label[MODEL_SIZE_LABEL];
    size_t length;
    const char *size = find_size(name, before, &length), *rest = size + length;
    model_size_label(after, label);
    if (!strcmp(label, model_size_label(before, old_label)) || !length) rest = size = name + strlen(name), *label = 0;
    int rc = buf_append(out, name, (size_t)(size - name), e);
    if (!rc) rc = buf_append(out, label, strlen(label), e);
    if (!rc) rc = buf_append(out, rest, strlen(rest), e);
    if (!rc && !says_pruned(name)) rc = buf_append(out, strchr(name, ' ') ? " " PRUNED : "-" PRUNED, 7, e);
    return rc ? rc : buf_append(out, "", 1, e);
}

int prune_rename(cJSON *meta, uint64_t before, uint64_t after, struct err *e) {
    cJSON *general = cJSON_GetObjectItemCaseSensitive(meta, "general");
    if (!cJSON_IsObject(general)) return 0;
    const char *name = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(general, "name"));
    const char *finetune = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(general, "finetune"));
    struct buf text = {0};
    if (name && !*name) name = NULL;
    int rc = name ? new_name(name, before, after, &text, e) : 0;
    if (!rc && name && !put(general, "name", (const char *)text.data)) rc = err_nomem(e, "general.name");
    text.len = 0;
    if (!rc && finetune && !says_pruned(finetune)) {
        rc = buf_append(&text, finetune, strlen(finetune), e);
        if (!rc) rc = buf_append(&text, "-", 1, e);
    }
    if (!rc && !(finetune && says_pruned(finetune))) {
        rc = buf_append(&text, PRUNED, sizeof PRUNED, e);
        if (!rc && !put(general, "finetune", (const char *)text.data)) rc = err_nomem(e, "general.finetune");
    }
    buf_release(&text);
    return rc;
}
