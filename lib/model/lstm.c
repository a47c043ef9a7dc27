/*
 * LSTM layers: one LSTM runs from the start of each sequence to its end, one from the end to the start, and the layer's
 * output is their states, concatenated. Sequences are independent.
 */
#include "lib/model/model_internal.h"

static struct grad_var *leaf(struct graph *g, enum model_role role, uint32_t layer) {
    return graph_leaf(g, (struct model_slot){.role = role, .layer = layer});
}

/* The inputs' contribution to the gates is one product for all positions; only the recurrence runs step by step. */
struct grad_var *graph_lstm(struct graph *g, uint32_t layer, struct grad_var *x) {
    static const enum model_role inputs[] = {ROLE_LSTM_INPUT, ROLE_LSTM_REVERSE_INPUT};
    struct grad_lstm_direction d[2];
    struct grad_var *gates[2];
    struct grad_map maps[2];
    x = graph_expose(g, POINT_LSTM_IN, layer, x);
    if (!x) return NULL;
    for (int i = 0; i < 2; i++) maps[i] = (struct grad_map){leaf(g, inputs[i], layer), leaf(g, inputs[i] + 2, layer)};
    grad_linears(g->t, x, 2, maps, gates);
    for (int i = 0; i < 2; i++) {
        gates[i] = graph_adapt(g, (struct model_slot){.role = inputs[i], .layer = layer}, x, gates[i]);
        d[i] = (struct grad_lstm_direction){grad_to_f32(g->t, gates[i]), leaf(g, inputs[i] + 1, layer),
                                            leaf(g, inputs[i] + 3, layer)};
    }
    return grad_lstm(g->t, 2, d, g->in.n_seqs, g->starts);
}

/* In rows of half the length: the first direction's at the last position, the second's at the first position. */
struct grad_var *graph_lstm_ends(struct graph *g, struct grad_var *h) {
    size_t n = g->in.n_seqs;
    uint32_t *ends = grad_alloc(g->t, 2 * n * sizeof *ends);
    if (!h || !ends) return NULL;
    for (size_t s = 0; s < n; s++) {
        ends[2 * s] = 2 * (g->starts[s + 1] - 1);
        ends[2 * s + 1] = 2 * g->starts[s] + 1;
    }
    struct grad_var *halves = grad_reshape(g->t, h, 2 * h->rows, h->cols / 2);
    return grad_reshape(g->t, grad_embed(g->t, halves, ends, 2 * n), n, h->cols);
}
