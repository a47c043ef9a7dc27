/* What other programs can load: the constraints of transformers and llama.cpp on a model's shape. */
#include "lib/model/model.h"

#include <inttypes.h>

#define LLAMA_CPP_MAX_LAYERS 512

/* ---- transformers: configuration_llama.py, configuration_qwen2.py and modeling_*.py of 5.24 ---------------- */

/* config.json has one number for all layers. (per_layer_config of 5.24 is for models made for it: Llama's and Qwen2's
 * classes refuse widths in it.) */
static int layers_agree(const struct model_config *c, struct err *e) {
    const struct model_layer *a = &c->layers[0];
    for (uint32_t i = 1; i < c->n_layers; i++) {
        const struct model_layer *b = &c->layers[i];
        if (a->n_heads != b->n_heads || a->n_kv_heads != b->n_kv_heads || a->ffn != b->ffn)
            return err_set(
                e, ERR_DATA,
                "layer %u has %u heads, %u key/value heads and a feed-forward width of %u, layer 0 has %u, %u and "
                "%u: Hugging Face's config.json cannot say that, GGUF can (--to gguf)",
                i, b->n_heads, b->n_kv_heads, b->ffn, a->n_heads, a->n_kv_heads, a->ffn);
    }
    return 0;
}

/* LlamaConfig.validate_architecture, although head_dim is a key of its own. Qwen2Config does not ask for it. */
static int heads_divide_hidden(const struct model_config *c, struct err *e) {
    for (uint32_t i = 0; i < c->n_layers; i++)
        if (c->arch == ARCH_LLAMA && c->hidden % c->layers[i].n_heads)
            return err_set(e, ERR_DATA,
                           "hidden size %u is not a multiple of %u heads, which transformers asks of a llama; GGUF can "
                           "hold it (--to gguf)",
                           c->hidden, c->layers[i].n_heads);
    return 0;
}

static int qwen2_has_biases(const struct model_config *c, struct err *e) {
    if (c->arch != ARCH_QWEN2 || c->qkv_bias) return 0;
    return err_set(e, ERR_DATA, "a qwen2 model without biases: Hugging Face's Qwen2 always has them");
}

/* A field of type float, and JSON's 0 is an integer. */
static int epsilon_is_a_float(const struct model_config *c, struct err *e) {
    if (c->norm_eps != 0) return 0;
    return err_set(e, ERR_DATA, "norm epsilon 0: transformers does not take the integer 0 for rms_norm_eps");
}

/* ---- llama.cpp: src/llama-hparams.h, src/models/{llama,deci,qwen2}.cpp ------------------------------------- */

/* Its other conditions (one shape for all layers, qwen2's width of all heads) export meets by writing "deci". */
static int few_enough_layers(const struct model_config *c, struct err *e) {
    if (c->n_layers <= LLAMA_CPP_MAX_LAYERS) return 0;
    return err_set(e, ERR_DATA, "%u layers: llama.cpp loads at most %u", c->n_layers, LLAMA_CPP_MAX_LAYERS);
}

/* ---- the table --------------------------------------------------------------------------------------------- */

static const struct {
    const char *name, *format;
} targets[] = {[TARGET_TRANSFORMERS] = {"transformers", "safetensors"}, [TARGET_LLAMA_CPP] = {"llama.cpp", "gguf"}};

static const struct {
    enum model_target target;
    int (*check)(const struct model_config *c, struct err *e);
} constraints[] = {
    {TARGET_TRANSFORMERS, layers_agree},     {TARGET_TRANSFORMERS, heads_divide_hidden},
    {TARGET_TRANSFORMERS, qwen2_has_biases}, {TARGET_TRANSFORMERS, epsilon_is_a_float},
    {TARGET_LLAMA_CPP, few_enough_layers},
};

int model_target_check(enum model_target t, const struct model_config *c, struct err *e) {
    int rc = 0;
    for (size_t i = 0; i < COUNT_OF(constraints) && !rc; i++)
        if (constraints[i].target == t) rc = constraints[i].check(c, e);
    return rc;
}

/* ---- warnings where a shape is asked for ------------------------------------------------------------------- */

uint32_t model_row_block(uint64_t row) {
    uint32_t large = dtype_info(DT_Q4_K)->block_elems, small = dtype_info(DT_Q4_0)->block_elems;
    return row % large == 0 ? large : row % small == 0 ? small : 1;
}

static void warn_targets(const struct model_config *before, const struct model_config *c, model_warn_fn *warn,
                         void *ctx) {
    struct err e, old;
    char text[sizeof e.msg + 128];
    for (enum model_target t = 0; t < TARGET_COUNT; t++) {
        if (!model_target_check(t, c, &e) || (before && model_target_check(t, before, &old))) continue;
        snprintf(text, sizeof text, "%s will not load this, and export --to %s refuses it: %s", targets[t].name,
                 targets[t].format, e.msg);
        warn(ctx, text);
    }
}

static bool warn_row(const char *what, uint64_t row, uint32_t wanted, model_warn_fn *warn, void *ctx) {
    char text[320], below[32] = "";
    uint32_t block = model_row_block(row), next = block == 1 ? 32 : 256; /* what it is not a multiple of */
    if (block >= wanted) return false;
    if (row > next) snprintf(below, sizeof below, "%" PRIu64 " or ", row / next * next);
    snprintf(text, sizeof text,
             "%s of %" PRIu64 " is not a multiple of %u: when rows of that length are quantized %s (%s%" PRIu64
             " would fit%s)",
             what, row, next, block == 1 ? "they become f16, whatever the type" : "k-quants fall back to larger types",
             below, (row / next + 1) * next, next < wanted ? ", for k-quants a multiple of 256" : "");
    warn(ctx, text);
    return true;
}

/* One warning for each kind of row, of the first layer that has it. */
static void warn_rows(const struct model_config *before, const uint32_t *old_layer, const struct model_config *c,
                      model_warn_fn *warn, void *ctx) {
    bool ffn = false, heads = false;
    if (!before) warn_row("a hidden size", c->hidden, 32, warn, ctx);
    for (uint32_t i = 0; i < c->n_layers; i++) {
        const struct model_layer *l = &c->layers[i],
                                 *was = before ? &before->layers[old_layer ? old_layer[i] : i] : NULL;
        uint32_t ffn_block = was ? model_row_block(was->ffn) : 32,
                 heads_block = was ? model_row_block((uint64_t)was->n_heads * before->head_dim) : 32;
        if (!ffn) ffn = warn_row("a feed-forward width", l->ffn, ffn_block, warn, ctx);
        if (!heads)
            heads = warn_row("a width of all heads", (uint64_t)l->n_heads * c->head_dim, heads_block, warn, ctx);
    }
}

void model_shape_warnings(const struct model_config *before, const uint32_t *old_layer, const struct model_config *c,
                          model_warn_fn *warn, void *ctx) {
    warn_targets(before, c, warn, ctx);
    warn_rows(before, old_layer, c, warn, ctx);
}
