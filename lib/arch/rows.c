/* Row lengths and the blocks of quantized types: warnings about shapes that do not fit. */
#include "lib/arch/arch.h"

#include <inttypes.h>

uint32_t model_row_block(uint64_t row) {
    uint32_t large = dtype_info(DT_Q4_K)->block_elems, small = dtype_info(DT_Q4_0)->block_elems;
    return row % large == 0 ? large : row % small == 0 ? small : 1;
}

static bool warn_row(const char *what, uint64_t row, uint32_t wanted, model_warn_fn *warn, void *ctx) {
    char text[320], below[32] = "";
    uint32_t block = model_row_block(row), next = block == 1 ? 32 : 256; /* what row is not a multiple of */
    if (row == 0 || block >= wanted) return false;
    if (row > next) snprintf(below, sizeof below, "%" PRIu64 " or ", row / next * next);
    snprintf(text, sizeof text,
             "%s of %" PRIu64 " is not a multiple of %u: when rows of that length are quantized %s (%s%" PRIu64
             " would fit%s)",
             what, row, next, block == 1 ? "they become f16, whatever the type" : "k-quants fall back to larger types",
             below, (row / next + 1) * next, next < wanted ? ", for k-quants a multiple of 256" : "");
    warn(ctx, text);
    return true;
}

/* One warning for each kind of row, for the first layer concerned. */
static void warn_rows(const struct model_config *before, const uint32_t *old_layer, const struct model_config *c,
                      model_warn_fn *warn, void *ctx) {
    bool ffn = false, expert = false, heads = false;
    if (!before) warn_row("a hidden size", c->hidden, 32, warn, ctx);
    if (!before) warn_row("a number of units", model_axis_size(c, AXIS_UNITS, 0), 32, warn, ctx);
    if (!before && c->embed_dim) warn_row("a width of the embedding", c->embed_dim, 32, warn, ctx);
    for (uint32_t i = 0; i < c->n_layers; i++) {
        const struct model_layer *l = &c->layers[i],
                                 *was = before ? &before->layers[old_layer ? old_layer[i] : i] : NULL;
        uint32_t ffn_block = was ? model_row_block(was->ffn) : 32,
                 expert_block = was ? model_row_block(was->expert_ffn) : 32,
                 heads_block = was ? model_row_block((uint64_t)was->n_heads * before->head_dim) : 32;
        if (!ffn) ffn = warn_row("a feed-forward width", l->ffn, ffn_block, warn, ctx);
        if (!expert) expert = warn_row("a width of experts", l->expert_ffn, expert_block, warn, ctx);
        if (!heads)
            heads = warn_row("a width of all heads", (uint64_t)l->n_heads * c->head_dim, heads_block, warn, ctx);
    }
}

void model_row_warnings(const struct model_config *before, const uint32_t *old_layer, const struct model_config *c,
                        model_warn_fn *warn, void *ctx) {
    warn_rows(before, old_layer, c, warn, ctx);
}
