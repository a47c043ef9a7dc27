/*
 * The importance matrix that a GGUF was quantized with, as llama-quantize records it: the keys quantize.imatrix.file
 * and .dataset (text), .entries_count and .chunks_count (u32). META has them in "imatrix", without the prefix.
 */
#include "lib/formats/formats_internal.h"

#define PREFIX "quantize.imatrix."

static const char *const texts[] = {"file", "dataset"}, *const counts[] = {"entries_count", "chunks_count"};

static int read_key(const struct gguf_file *g, size_t i, struct arena *a, cJSON *to, struct err *e) {
    char key[GGUF_KEY_SIZE];
    bool is_text = i < COUNT_OF(texts);
    const char *name = is_text ? texts[i] : counts[i - COUNT_OF(texts)], *text = NULL;
    uint64_t n = 0;
    snprintf(key, sizeof key, PREFIX "%s", name);
    if (!gguf_find(g, key)) return 0;
    int rc = is_text ? gguf_opt_str(g, key, a, &text, e) : gguf_opt_u64(g, key, 0, UINT32_MAX, &n, e);
    if (rc) return rc;
    return (is_text ? json_put_str(to, name, text) : json_put_u64(to, name, n)) ? 0 : err_nomem(e, key);
}

int gguf_read_origin(const struct gguf_file *g, struct arena *a, cJSON **out, struct err *e) {
    cJSON *o = cJSON_CreateObject();
    int rc = o ? 0 : err_nomem(e, "keys of the importance matrix");
    for (size_t i = 0; !rc && i < COUNT_OF(texts) + COUNT_OF(counts); i++) rc = read_key(g, i, a, o, e);
    if (rc || !o->child) {
        cJSON_Delete(o);
        o = NULL;
    }
    *out = o;
    return rc;
}

void gguf_put_origin(struct gguf_header *h, const cJSON *meta) {
    const cJSON *o = cJSON_GetObjectItemCaseSensitive(meta, MODEL_IMATRIX_META);
    char key[GGUF_KEY_SIZE];
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(o, texts[i]));
        snprintf(key, sizeof key, PREFIX "%s", texts[i]);
        if (text) gguf_key_string(h, key, text);
    }
    for (size_t i = 0; i < COUNT_OF(counts); i++) {
        const cJSON *n = cJSON_GetObjectItemCaseSensitive(o, counts[i]);
        snprintf(key, sizeof key, PREFIX "%s", counts[i]);
        if (cJSON_IsNumber(n) && n->valuedouble >= 0 && n->valuedouble <= UINT32_MAX)
            gguf_key_u32(h, key, (uint32_t)n->valuedouble);
    }
}
