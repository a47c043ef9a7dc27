/* Parts of a forward pass of a model in memory, for searches that leave layers out. */
#include "lib/model/model_internal.h"

static struct grad_var *begin_states(struct model *m, struct grad_tape *t, const struct model_input *in,
                                     const float *states) {
    struct grad_var *x = grad_scratch(t, in->n_positions, m->config.hidden, DT_F32);
    if (x) kernel_upload(x->value, states, in->n_positions * m->config.hidden);
    return x;
}

int model_infer_layers(struct model *m, struct grad_tape *t, const struct model_input *in, const float *states,
                       const uint32_t *layers, size_t n, float *out, struct err *e) {
    grad_reset(t);
    struct graph *g = graph_begin(m, t, in, NULL, NULL, NULL, e);
    if (!g) return e->code;
    struct grad_var *x = states ? begin_states(m, t, in, states) : graph_embed(g);
    for (size_t i = 0; x && i < n; i++) x = graph_layer(g, layers[i], x);
    if (!x) return graph_failure(g);
    kernel_download(out, x->value, x->rows * x->cols);
    return 0;
}

struct reader {
    model_logits_fn *fn;
    void *ctx;
};

static int read_rows(void *ctx, size_t first, size_t rows, size_t vocab, struct kernel_array logits,
                     struct kernel_array dlogits, struct err *e) {
    const struct reader *r = ctx;
    (void)dlogits; /* a tape that does not record needs no gradient */
    return r->fn(r->ctx, first, rows, vocab, kernel_host(logits, rows * vocab), e);
}

int model_infer_head(struct model *m, struct grad_tape *t, const struct model_input *in, const float *states,
                     model_logits_fn *fn, void *ctx, struct err *e) {
    struct reader r = {fn, ctx};
    if (m->config.output == OUTPUT_NONE) return model_no_head(e);
    grad_reset(t);
    struct graph *g = graph_begin(m, t, in, NULL, NULL, NULL, e);
    if (!g) return e->code;
    struct grad_var *h = graph_norm(g, begin_states(m, t, in, states));
    if (!h) return graph_failure(g);
    struct grad_head head = model_logits_head(m, t);
    return grad_head(t, h, &head, read_rows, &r) ? 0 : graph_failure(g);
}
