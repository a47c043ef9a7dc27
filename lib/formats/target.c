/* What other programs can load: transformers and llama.cpp, each by what the architecture says of it. */
#include "lib/formats/arch_internal.h"

#define LLAMA_CPP_MAX_LAYERS 512 /* src/llama-hparams.h */

static const struct {
    const char *name, *format;
} targets[] = {[TARGET_TRANSFORMERS] = {"transformers", "safetensors"}, [TARGET_LLAMA_CPP] = {"llama.cpp", "gguf"}};

static int check_llama_cpp(const struct model_config *c, struct err *e) {
    const struct arch *arch;
    int rc = arch_of_config(c, &arch, e);
    if (rc) return rc;
    if (!arch->gguf.names[0].name)
        return err_set(e, ERR_DATA, "architecture %s has no name in GGUF: llama.cpp does not know it", arch->name);
    if (!arch_gguf_name(arch, c))
        return err_set(e, ERR_DATA,
                       "layers of %s that differ in heads or feed-forward width: llama.cpp wants one shape",
                       arch->name);
    if (c->n_layers > LLAMA_CPP_MAX_LAYERS)
        return err_set(e, ERR_DATA, "%u layers: llama.cpp loads at most %u", c->n_layers, LLAMA_CPP_MAX_LAYERS);
    for (uint32_t i = 0; i < c->n_layers; i++)
        if (c->layers[i].window && !arch->gguf.windows)
            return err_set(e, ERR_DATA, "layer %u sees %u positions only, and llama.cpp's %s has no such window", i,
                           c->layers[i].window, arch->gguf.names[0].name);
    return arch->gguf.check ? arch->gguf.check(c, e) : 0;
}

int target_check(enum model_target t, const struct model_config *c, struct err *e) {
    return t == TARGET_TRANSFORMERS ? hf_config_check(c, e) : check_llama_cpp(c, e);
}

void target_warnings(const struct model_config *before, const struct model_config *c, model_warn_fn *warn, void *ctx) {
    struct err e, old;
    char text[sizeof e.msg + 128];
    for (enum model_target t = 0; t < TARGET_COUNT; t++) {
        if (!target_check(t, c, &e) || (before && target_check(t, before, &old))) continue;
        snprintf(text, sizeof text, "%s will not load this, and export --to %s refuses it: %s", targets[t].name,
                 targets[t].format, e.msg);
        warn(ctx, text);
    }
}
