/* Decides what other programs, transformers and llama.cpp, can load, from what each architecture declares. */
#include "lib/formats/arch_internal.h"

#define LLAMA_CPP_MAX_LAYERS 512 /* src/llama-hparams.h */

static const struct {
    const char *name, *format;
} targets[] = {[TARGET_TRANSFORMERS] = {"transformers", "safetensors"}, [TARGET_LLAMA_CPP] = {"llama.cpp", "gguf"}};

/* Checks what models of the architecture may have although llama.cpp's loader does not support it. */
static int check_lacks(const struct arch *arch, const struct model_config *c, struct err *e) {
    const char *name = arch->gguf.names[0].name;
    unsigned lacks = arch->gguf.lacks;
    uint64_t width = (uint64_t)c->layers[0].n_heads * c->head_dim;
    if ((lacks & LACKS_O_BIAS) && c->o_bias)
        return err_set(e, ERR_DATA, "a bias on attention's output, which llama.cpp's %s does not have", name);
    if ((lacks & LACKS_LLAMA3) && c->rope.scaling == ROPE_LLAMA3)
        return err_set(e, ERR_DATA, "rope type llama3, which llama.cpp's %s does not have", name);
    if ((lacks & LACKS_LONG) && c->rope.scaling == ROPE_LONG)
        return err_set(e, ERR_DATA, "rope type longrope, which llama.cpp's %s does not have", name);
    if ((lacks & LACKS_HEAD_WIDTH) && width != c->hidden)
        return err_set(e, ERR_DATA, "%u heads of %u, which llama.cpp's %s needs as wide as the %u of the model",
                       c->layers[0].n_heads, c->head_dim, name, c->hidden);
    if ((lacks & LACKS_TIED) && c->tied)
        return err_set(e, ERR_DATA, "a head that is tied to the embedding, which llama.cpp's %s does not have", name);
    return 0;
}

static int check_llama_cpp(const struct model_config *c, struct err *e) {
    const struct arch *arch;
    int rc = arch_of_config(c, &arch, e);
    if (rc) return rc;
    if (!arch->gguf.names[0].name)
        return err_set(e, ERR_DATA, "architecture %s has no name in GGUF: llama.cpp does not know it", arch->name);
    if (!arch_gguf_name(arch, c))
        return err_set(e, ERR_DATA,
                       "layers of %s that differ in heads or feed-forward width: llama.cpp needs one shape",
                       arch->name);
    if (c->n_layers > LLAMA_CPP_MAX_LAYERS)
        return err_set(e, ERR_DATA, "%u layers: llama.cpp loads at most %u", c->n_layers, LLAMA_CPP_MAX_LAYERS);
    for (uint32_t i = 0; i < c->n_layers; i++)
        if (c->layers[i].window && !arch->gguf.windows)
            return err_set(e, ERR_DATA, "layer %u sees %u positions only, and llama.cpp's %s has no such window", i,
                           c->layers[i].window, arch->gguf.names[0].name);
    rc = check_lacks(arch, c, e);
    if (!rc) rc = arch_check_rotation(arch, c, e);
    if (!rc) rc = gguf_check_rope(c, e);
    return rc || !arch->gguf.check ? rc : arch->gguf.check(c, e);
}

int target_check(enum model_target t, const struct model_config *c, struct err *e) {
    if (model_is_factored(c))
        return err_set(e, ERR_DATA, "%s knows no low-rank factors; multiply them first (rill prune --merge)",
                       targets[t].name);
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

bool target_fuses_qkv(const struct model_config *c) {
    const struct arch *arch;
    struct err e;
    struct arch_place q, v;
    return !arch_of_config(c, &arch, &e) && arch_gguf_name(arch, c) &&
           arch_place(&arch->gguf.tensors, &gguf_common_tensors, c, (struct model_slot){.role = ROLE_Q}, &q) &&
           arch_place(&arch->gguf.tensors, &gguf_common_tensors, c, (struct model_slot){.role = ROLE_V}, &v) &&
           strcmp(q.name, v.name) == 0;
}

bool target_interleaves(const struct model_config *c) {
    const struct arch *arch;
    struct err e;
    const struct gguf_name *name = arch_of_config(c, &arch, &e) ? NULL : arch_gguf_name(arch, c);
    return name && name->interleaved;
}

bool target_tensor_name(const struct model_config *c, struct model_slot s, char *out) {
    const struct arch *arch;
    struct err e;
    struct arch_place place;
    if (arch_of_config(c, &arch, &e) || !arch_place(&arch->gguf.tensors, &gguf_common_tensors, c, s, &place))
        return false;
    memcpy(out, place.name, sizeof place.name);
    return true;
}
