/* Names of a classifier's classes: "labels" in META, a list of texts in the order of the classifier's rows. */
#include "lib/formats/arch_internal.h"

static bool add_label(cJSON *list, const char *name) {
    cJSON *x = cJSON_CreateString(name);
    if (x && cJSON_AddItemToArray(list, x)) return true;
    cJSON_Delete(x);
    return false;
}

static const char *default_label(uint32_t class, char out[LABEL_SIZE]) {
    snprintf(out, LABEL_SIZE, "LABEL_%u", class); /* transformers' default */
    return out;
}

static bool says_nothing(const cJSON *list) {
    char name[LABEL_SIZE];
    uint32_t i = 0;
    for (const cJSON *x = list ? list->child : NULL; x; x = x->next)
        if (strcmp(x->valuestring, default_label(i++, name)) != 0) return false;
    return true;
}

/* Takes `list` and adds it to META, unless it is incomplete (!ok, out of memory) or has only default names. */
static int keep(struct foreign_model *f, cJSON *list, bool ok, struct err *e) {
    if (ok && says_nothing(list)) {
        cJSON_Delete(list);
        return 0;
    }
    if (!f->extra) f->extra = cJSON_CreateObject();
    if (ok && f->extra && cJSON_AddItemToObject(f->extra, LABELS_KEY, list)) return 0;
    cJSON_Delete(list);
    return err_nomem(e, "names of classes");
}

int labels_from_hf(struct foreign_model *f, const cJSON *config, struct err *e) {
    const cJSON *names = hf_member(config, "id2label");
    if (!f->config.classes || !cJSON_IsObject(names)) return 0;
    cJSON *list = cJSON_CreateArray();
    bool ok = list != NULL;
    for (uint32_t i = 0; ok && i < f->config.classes; i++) {
        char id[16];
        snprintf(id, sizeof id, "%u", i);
        const char *name = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(names, id));
        if (!name) {
            cJSON_Delete(list);
            return err_set(e, ERR_DATA, "config.json: \"id2label\" has no name of class %u", i);
        }
        ok = add_label(list, name);
    }
    return keep(f, list, ok, e);
}

int labels_from_gguf(struct foreign_model *f, const struct gguf_kv *kv, struct err *e) {
    uint64_t at = 0;
    if (!f->config.classes || !kv) return 0;
    if (!kv->is_array || kv->type != GGUF_STRING || kv->n != f->config.classes)
        return err_set(e, ERR_DATA, "key '%s' has no names of %u classes", kv->key, f->config.classes);
    cJSON *list = cJSON_CreateArray();
    bool ok = list != NULL;
    for (uint64_t i = 0; ok && i < kv->n; i++) {
        struct span s = gguf_kv_next_string(kv, &at);
        const char *name = NULL;
        if (utf8_valid(s.s, s.n) && !memchr(s.s, 0, s.n)) name = arena_strndup(&f->memory, s.s, s.n, e);
        if (!name) {
            cJSON_Delete(list);
            return err_set(e, ERR_DATA, "key '%s': the name of class %llu is not text", kv->key, (unsigned long long)i);
        }
        ok = add_label(list, name);
    }
    return keep(f, list, ok, e);
}

const char *label_of(const cJSON *meta, uint32_t class, char out[LABEL_SIZE]) {
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(meta, LABELS_KEY);
    const char *name = cJSON_GetStringValue(cJSON_GetArrayItem(list, (int)class));
    return name ? name : default_label(class, out);
}

bool labels_to_hf(cJSON *config, const struct model_config *c, const cJSON *meta) {
    if (!c->classes) return true;
    cJSON *names = cJSON_AddObjectToObject(config, "id2label"), *ids = cJSON_AddObjectToObject(config, "label2id");
    bool ok = names && ids;
    for (uint32_t i = 0; ok && i < c->classes; i++) {
        char id[16], own[LABEL_SIZE];
        const char *name = label_of(meta, i, own);
        snprintf(id, sizeof id, "%u", i);
        ok = json_put_str(names, id, name) &&
             (cJSON_GetObjectItemCaseSensitive(ids, name) || json_put_u64(ids, name, i));
    }
    return ok;
}
