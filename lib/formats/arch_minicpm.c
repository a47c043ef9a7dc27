/*
 * MiniCPM 1B and 2B (Hu et al. 2024): Llama with scale factors on the embedding, on the output of each part of a layer,
 * and on the input of the head. The class is code that ships with the weights (modeling_minicpm.py of
 * openbmb/MiniCPM-2B-sft-bf16).
 */
#include <math.h>

#include "lib/formats/arch_internal.h"

static const struct hf_key keys[] = {
    HF_KEY("attention_bias", HF_READ), HF_KEY("scale_emb", HF_READ),     HF_KEY("scale_depth", HF_READ),
    HF_KEY("dim_model_base", HF_READ), HF_KEY("sliding_window", HF_OFF), HF_KEY("use_sliding_window", HF_OFF),
    HF_KEY("layer_types", HF_OFF),
};

static const struct arch_tensor tensors[] = {
    HF_LLAMA_TENSORS,
};

/* The class derives the head size from the hidden size, and of the supported rope types it implements only "linear". */
static int check(const struct model_config *c, struct err *e) {
    if (c->rope.scaling > ROPE_LINEAR)
        return err_set(e, ERR_DATA, "rope type '%s': MiniCPMForCausalLM has none", hf_rope_type(&c->rope));
    uint64_t width = (uint64_t)c->layers[0].n_heads * c->head_dim;
    if (width == c->hidden) return 0;
    return err_set(e, ERR_DATA, "%u heads of %u: MiniCPMForCausalLM needs them as wide as the %u of the model",
                   c->layers[0].n_heads, c->head_dim, c->hidden);
}

static double depth_unit(const struct model_config *c) {
    return 1 / sqrt(c->n_layers);
}

static double logit_unit(const struct model_config *c) {
    return 1.0 / c->hidden;
}

/* *out = the value of `key`, 1 if absent, times `unit`. */
static int read_factor(const cJSON *json, const char *key, double unit, float *out, struct err *e) {
    double v = 1;
    int rc = json_opt_f64(json, key, 1e-3, 1e6, &v, e);
    *out = (float)(v * unit);
    return rc;
}

static int read(struct model_config *c, const cJSON *json, struct err *e) {
    int rc = hf_read_attention_bias(c, json, e);
    if (!rc) rc = read_factor(json, "scale_emb", 1, &c->embed_scale, e);
    if (!rc) rc = read_factor(json, "scale_depth", depth_unit(c), &c->residual_scale, e);
    if (!rc) rc = read_factor(json, "dim_model_base", logit_unit(c), &c->logit_scale, e);
    return rc ? rc : check(c, e);
}

/* Writes the shortest decimal that reads back as this factor. */
static bool put_factor(cJSON *json, const char *key, float factor, double unit) {
    double v = (double)factor / unit;
    char text[32];
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if ((float)(strtod(text, NULL) * unit) == factor) break;
    }
    return json_put_f64(json, key, strtod(text, NULL));
}

static bool write(cJSON *json, const struct model_config *c) {
    return hf_put_attention_bias(json, c) && put_factor(json, "scale_emb", model_factor(c->embed_scale), 1) &&
           put_factor(json, "scale_depth", model_factor(c->residual_scale), depth_unit(c)) &&
           put_factor(json, "dim_model_base", model_factor(c->logit_scale), logit_unit(c));
}

/* A new model does not need these factors. */
static void complete(struct model_config *c) {
    c->embed_scale = c->residual_scale = c->logit_scale = 1;
}

/* ---- GGUF: the factors themselves, except that the logits' factor is inverted ---- */

static const struct gguf_key gguf_keys[] = {
    {"embedding_scale", GGUF_READ, 0, NULL},
    {"residual_scale", GGUF_READ, 0, NULL},
    {"logit_scale", GGUF_READ, 0, NULL},
};

/* Files older than these keys are MiniCPM 1B or 2B, which have the same three factors. */
static int gguf_read(struct model_config *c, const struct gguf_file *g, const char *prefix, struct arena *a,
                     struct err *e) {
    double embed = 12, residual = 1.4 * depth_unit(c), divisor = c->hidden / 256.0;
    const struct {
        const char *suffix;
        double *to;
    } factors[] = {{"embedding_scale", &embed}, {"residual_scale", &residual}, {"logit_scale", &divisor}};
    (void)a;
    for (size_t i = 0; i < COUNT_OF(factors); i++) {
        char key[GGUF_KEY_SIZE];
        int rc = gguf_opt_f64(g, gguf_arch_key(key, prefix, factors[i].suffix), 1e-6, 1e6, factors[i].to, e);
        if (rc) return rc;
    }
    c->embed_scale = (float)embed;
    c->residual_scale = (float)residual;
    c->logit_scale = (float)(1 / divisor);
    return 0;
}

static void gguf_write(struct gguf_header *h, const struct model_config *c) {
    gguf_key_f32(h, ".embedding_scale", (double)model_factor(c->embed_scale));
    gguf_key_f32(h, ".residual_scale", (double)model_factor(c->residual_scale));
    gguf_key_f32(h, ".logit_scale", 1 / (double)model_factor(c->logit_scale));
}

const struct arch arch_minicpm = {
    .name = "minicpm",
    .models = "MiniCPM 1B and 2B",
    .complete = complete,
    .hf = {.classes = {{"MiniCPMForCausalLM", "minicpm"}},
           .keys = keys,
           .n_keys = COUNT_OF(keys),
           .numbers = &hf_llama_numbers,
           .eps = 1e-6,
           .theta = 10000,
           .tied = true,
           .tensors = {tensors, COUNT_OF(tensors), "model."},
           .read = read,
           .write = write,
           .zeros = hf_attention_bias_zeros,
           .check = check},
    .gguf = {.names = {{"minicpm", true}},
             .keys = gguf_keys,
             .n_keys = COUNT_OF(gguf_keys),
             .read = gguf_read,
             .write = gguf_write},
};
