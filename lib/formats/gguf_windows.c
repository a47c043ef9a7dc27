/* Reads and writes which layers of a GGUF have an attention window, for architectures whose layers differ. */
#include "lib/formats/arch_internal.h"

int arch_one_window(const struct model_config *c, uint32_t *window, struct err *e) {
    *window = 0;
    for (uint32_t i = 0; i < c->n_layers; i++) {
        uint32_t w = c->layers[i].window;
        if (w && *window && w != *window)
            return err_set(e, ERR_DATA,
                           "layer %u has a window of %u positions, layers before it %u: the format has only one length",
                           i, w, *window);
        if (w) *window = w;
    }
    return 0;
}

int arch_uniform_window(const struct model_config *c, struct err *e) {
    for (uint32_t i = 1; i < c->n_layers; i++)
        if (c->layers[i].window != c->layers[0].window)
            return err_set(e, ERR_DATA,
                           "layer %u has a window of %u positions, layer 0 of %u (0: all): a %s has one for all", i,
                           c->layers[i].window, c->layers[0].window, c->arch);
    return 0;
}

/* As llama_hparams::set_swa_pattern of llama.cpp. */
static bool in_pattern(uint32_t pattern, uint32_t layer) {
    return pattern == 0 || layer % pattern < pattern - 1;
}

static bool flag_of(const struct gguf_kv *kv, uint64_t i, uint64_t *v) {
    if (kv->type != GGUF_BOOL) return gguf_kv_u64(kv, i, v);
    *v = kv->data[i] != 0;
    return true;
}

int gguf_read_windows(struct model_config *c, const struct gguf_file *g, const char *prefix, uint32_t window,
                      uint32_t pattern, struct err *e) {
    char key[128];
    uint64_t length = window;
    snprintf(key, sizeof key, "%s.attention.sliding_window", prefix);
    int rc = gguf_opt_u64(g, key, 0, UINT32_MAX, &length, e);
    snprintf(key, sizeof key, "%s.attention.sliding_window_pattern", prefix);
    const struct gguf_kv *kv = gguf_find(g, key);
    if (!rc && kv && kv->is_array && kv->n != c->n_layers)
        rc = err_set(e, ERR_DATA, "key '%s' has %llu entries for %u layers", key, (unsigned long long)kv->n,
                     c->n_layers);
    for (uint32_t i = 0; i < c->n_layers && !rc; i++) {
        bool slides = in_pattern(pattern, i);
        uint64_t v;
        if (kv && !flag_of(kv, kv->is_array ? i : 0, &v))
            rc = err_set(e, ERR_DATA, "key '%s', layer %u: neither a flag nor a whole number", key, i);
        else if (kv)
            slides = kv->is_array ? v != 0 : in_pattern(v < UINT32_MAX ? (uint32_t)v : UINT32_MAX, i);
        c->layers[i].window = slides ? (uint32_t)length : 0;
    }
    return rc;
}

void gguf_put_windows(struct gguf_header *h, const struct model_config *c, uint32_t window, uint32_t pattern) {
    bool same = true;
    gguf_key_u32(h, ".attention.sliding_window", window);
    for (uint32_t i = 0; i < c->n_layers; i++) same = same && (c->layers[i].window != 0) == in_pattern(pattern, i);
    if (same) return;
    gguf_key_array(h, ".attention.sliding_window_pattern", GGUF_BOOL, c->n_layers);
    for (uint32_t i = 0; i < c->n_layers; i++) gguf_put_bool(h, c->layers[i].window != 0);
}
