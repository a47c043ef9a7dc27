/*
 * Extracts the language model from a class of several parts (Gemma3ForConditionalGeneration, which reads
 * images). Its configuration is "text_config", and its tensors have a prefix. The result is a model of the
 * language model's own class.
 */
#include "lib/formats/arch_internal.h"

#define PART "text_config"

/* The architecture whose language model is a part of this class, or of this model_type if class is NULL; NULL: none. */
static const struct arch *whole_of(const char *class, const char *type) {
    const struct arch *a;
    for (size_t i = 0; (a = arch_at(i)); i++) {
        const struct hf_whole *w = a->hf.whole;
        if (w && (class ? strcmp(w->class, class) == 0 : type && strcmp(w->model_type, type) == 0)) return a;
    }
    return NULL;
}

static int check_whole(const cJSON *config, const struct hf_whole *w, struct err *e) {
    const char *type = cJSON_GetStringValue(hf_member(config, "model_type"));
    if (cJSON_GetArraySize(hf_member(config, "architectures")) > 1)
        return err_set(e, ERR_DATA, "\"architectures\" names more than %s", w->class);
    if (type && strcmp(type, w->model_type) != 0)
        return err_set(e, ERR_DATA, "\"architectures\" says %s, but \"model_type\" says '%.64s'", w->class, type);
    int rc = hf_check_keys(config, w->keys, w->n_keys, e);
    if (!rc && !cJSON_IsObject(hf_member(config, PART)))
        rc = err_set(e, ERR_DATA, "\"" PART "\" of %s is not an object", w->class);
    return rc;
}

static bool put(cJSON *to, const char *key, cJSON *value) {
    cJSON_DeleteItemFromObjectCaseSensitive(to, key);
    if (value && cJSON_AddItemToObject(to, key, value)) return true;
    cJSON_Delete(value);
    return false;
}

/* Copies what the outer configuration says about this part. For token ids, which matter only to generation,
 * it takes precedence. */
static int put_outer(cJSON *part, const cJSON *config, struct err *e) {
    static const char *const keys[] = {"tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id",
                                       "_name_or_path"};
    const cJSON *tied = hf_member(config, keys[0]), *own = hf_member(part, keys[0]);
    if (tied && own && !cJSON_Compare(tied, own, true))
        return err_set(e, ERR_DATA, "\"%s\" of the whole and of \"" PART "\" disagree", keys[0]);
    for (size_t i = 0; i < COUNT_OF(keys); i++) {
        const cJSON *x = hf_member(config, keys[i]);
        if (x && !put(part, keys[i], cJSON_Duplicate(x, true))) return err_nomem(e, "config.json");
    }
    return 0;
}

int hf_config_part(cJSON **config, bool *part, struct err *e) {
    const cJSON *classes = hf_member(*config, "architectures");
    const char *class = cJSON_IsArray(classes) && classes->child ? cJSON_GetStringValue(classes->child) : NULL;
    const struct arch *a = whole_of(class, cJSON_GetStringValue(hf_member(*config, "model_type")));
    *part = a != NULL;
    if (!a) return 0;
    int rc = check_whole(*config, a->hf.whole, e);
    if (rc) return rc;
    cJSON *text = cJSON_DetachItemFromObjectCaseSensitive(*config, PART);
    const char *type = cJSON_GetStringValue(hf_member(text, "model_type"));
    if (type && strcmp(type, a->hf.classes[0].model_type) != 0)
        rc = err_set(e, ERR_DATA, "\"" PART "\" of %s is of model_type '%.64s', expected %s", a->hf.whole->class, type,
                     a->hf.classes[0].model_type);
    cJSON *names = cJSON_CreateArray(), *name = cJSON_CreateString(a->hf.classes[0].class);
    if (!rc && !(names && name && cJSON_AddItemToArray(names, name) && put(text, "architectures", names)))
        rc = err_nomem(e, "config.json");
    if (!rc) rc = put_outer(text, *config, e);
    cJSON_Delete(*config);
    *config = text;
    return rc;
}

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

static bool begins(const char *name, const char *with) {
    return strncmp(name, with, strlen(with)) == 0;
}

static int rename_tensor(struct raw_tensor *t, const struct hf_whole *w, struct arena *a, struct err *e) {
    char name[TENSOR_MAX_NAME + 1];
    for (size_t i = 0; i < COUNT_OF(w->names) && w->names[i].from; i++) {
        if (!begins(t->name, w->names[i].from)) continue;
        int n = snprintf(name, sizeof name, "%s%s", w->names[i].to, t->name + strlen(w->names[i].from));
        if (n < 0 || (size_t)n >= sizeof name) return err_set(e, ERR_DATA, "tensor '%s': too long a name", t->name);
        t->name = arena_strndup(a, name, (size_t)n, e);
        return t->name ? 0 : e->code;
    }
    return 0;
}

int hf_tensors_part(const struct model_config *c, struct raw_table *t, struct arena *a, struct err *e) {
    const struct arch *arch;
    size_t left_out = 0;
    int rc = arch_of_config(c, &arch, e);
    for (size_t i = 0; i < t->n && !rc; i++) {
        const struct hf_whole *w = arch->hf.whole;
        for (size_t k = 0; k < COUNT_OF(w->others) && w->others[k]; k++)
            if (begins(t->items[i].name, w->others[k])) t->items[i].used = true;
        left_out += t->items[i].used;
        rc = rename_tensor(&t->items[i], w, a, e);
    }
    if (!rc)
        log_line(LOG_WARN, "%s: its language model is taken, and %zu tensors of other parts are left out",
                 arch->hf.whole->class, left_out);
    return rc;
}
