/*
 * grad: a tape for reverse-mode differentiation. Forward operations run immediately through lib/kernel and record how
 * to go backward; grad_backward walks the record in reverse. Values and gradients of intermediate results live in the
 * tape's memory, which is reused in each step (grad_reset): after the first step of a shape nothing is allocated.
 *
 * A tape made with record = false runs the same operations and records nothing, so inference and training share their
 * code. Memory of intermediate values is then freed by grad_segment, or by grad_mark and grad_rewind.
 *
 * Precision: DT_F32, or DT_BF16 for bf16 activations and products with f32 sums. Weights, their gradients and the
 * residual stream (embedding, results of grad_linear with a residual) are f32 in both; results of other operations have
 * the type of their inputs or, where weights meet f32 activations, the tape's. The gradient of a result has the type of
 * the result, except for grad_rmsnorm and grad_layernorm, where the gradients of several linear maps are summed: f32.
 *
 * Operations return NULL on failure (out of memory, shapes that do not fit) and keep the first error in the tape. NULL
 * inputs give NULL outputs, so a chain of operations needs no checks in between: call grad_error once at its end.
 * Results belong to the tape.
 */
#ifndef RILL_GRAD_H
#define RILL_GRAD_H

#include "lib/base/base.h"
#include "lib/kernel/kernel.h"

struct grad_tape;

/*
 * A matrix [rows][cols] in the graph. The gradient of a leaf is the caller's, and contributions are added to it; that
 * of a result has no data until the first contribution, and none again after the backward pass.
 */
struct grad_var {
    size_t rows, cols;
    struct kernel_array value, grad;
};

/* Creates a tape with memory on `device`. The caller frees *out with grad_tape_free (no-op if NULL). */
int grad_tape_new(struct grad_tape **out, struct kernel_device *device, bool record, enum dtype precision,
                  struct err *e) MUST_CHECK;
void grad_tape_free(struct grad_tape *t);
void grad_reset(struct grad_tape *t); /* drops the graph and the error, keeps the memory */
/* A position in the memory of values. Rewinding frees everything allocated since; no recorded operation may need it. */
struct grad_mark {
    size_t values, notes;
};
struct grad_mark grad_mark(const struct grad_tape *t);
void grad_rewind(struct grad_tape *t, struct grad_mark mark);
/* 0, or the code of the first failure since the last reset, copied to *e. */
int grad_error(const struct grad_tape *t, struct err *e) MUST_CHECK;

/* Peak bytes: of results and the record, of gradients of results, and of scratch for single operations. */
struct grad_memory {
    size_t values, gradients, scratch;
};
struct grad_memory grad_memory(const struct grad_tape *t);

bool grad_records(const struct grad_tape *t);
enum dtype grad_precision(const struct grad_tape *t);

/* grad_alloc: n bytes of host memory that live as long as the graph (positions, sequence starts). grad_scratch: an
 * uninitialized constant, for values computed outside the tape (generation from a cache). NULL on failure, as
 * operations. */
void *grad_alloc(struct grad_tape *t, size_t n);
struct grad_var *grad_scratch(struct grad_tape *t, size_t rows, size_t cols, enum dtype dtype);
/* The value in f32 for the host to read: in place, or a copy that lives as long as the graph. NULL if v is NULL or on
 * failure. */
const float *grad_host_value(struct grad_tape *t, const struct grad_var *v);

/* Leaves. Their memory is f32, the caller's, and must outlive its use by the tape; grad without data: a constant. */
struct grad_var *grad_leaf(struct grad_tape *t, struct kernel_array value, struct kernel_array grad, size_t rows,
                           size_t cols);
/* A leaf whose gradient need not be cleared: while *begun is false, the first contribution overwrites it and sets
 * *begun. Leaves of one matrix share `begun`. */
struct grad_var *grad_parameter(struct grad_tape *t, struct kernel_array value, struct kernel_array grad, bool *begun,
                                size_t rows, size_t cols);

/* A constant packed matrix [n][k], for grad_embed, grad_linear(s) and grad_head on a tape in bf16 that does not record.
 * Its value has no data. The memory is the caller's. */
struct grad_var *grad_leaf_packed(struct grad_tape *t, const struct kernel_matrix *w);

/* Rows ids[i] of the table: [n][cols] in f32. ids [n] are copied. */
struct grad_var *grad_embed(struct grad_tape *t, struct grad_var *table, const uint32_t *ids, size_t n);
/* x [n][in] times the transpose of w [out][in], plus bias [1][out] and residual [n][out] (f32) if not NULL. In a
 * segment of a tape that does not record, the result may overwrite the residual, which must not be used afterwards. */
struct grad_var *grad_linear(struct grad_tape *t, struct grad_var *x, struct grad_var *w, struct grad_var *bias,
                             struct grad_var *residual);
/*
 * Several linear maps of one x, y[i] = x w[i]^T + bias[i], where bias[i] may be NULL and n <= GRAD_MAX_MAPS: x is
 * packed once. On failure all y are NULL.
 */
#define GRAD_MAX_MAPS 3
struct grad_map {
    struct grad_var *w, *bias;
};
void grad_linears(struct grad_tape *t, struct grad_var *x, size_t n, const struct grad_map *maps, struct grad_var **y);
/* The result has the type `out`: grad_precision, or DT_F32 for the input of the head. */
struct grad_var *grad_rmsnorm(struct grad_tape *t, struct grad_var *x, struct grad_var *w, float eps, enum dtype out);
/* b may be NULL. */
struct grad_var *grad_layernorm(struct grad_tape *t, struct grad_var *x, struct grad_var *w, struct grad_var *b,
                                float eps, enum dtype out);
/* RMSNorm of each head: x [rows][heads * head_dim], w [1][head_dim]. The result and its gradient have the type of x. */
struct grad_var *grad_rmsnorm_heads(struct grad_tape *t, struct grad_var *x, struct grad_var *w, float eps);
/* LayerNorm of each head; b [1][head_dim] or NULL. */
struct grad_var *grad_layernorm_heads(struct grad_tape *t, struct grad_var *x, struct grad_var *w, struct grad_var *b,
                                      float eps);
/*
 * Rotates in place: x must not be used afterwards, unless it is a leaf, which is copied. position [rows], the arrays of
 * `rotation` and a->starts below are the caller's and must live as long as the graph (grad_alloc).
 */
struct grad_var *grad_rope(struct grad_tape *t, struct grad_var *x, size_t n_heads, size_t head_dim,
                           const uint32_t *position, const struct kernel_rotation *rotation);
struct grad_var *grad_attention(struct grad_tape *t, struct grad_var *q, struct grad_var *k, struct grad_var *v,
                                const struct kernel_attention *shape);
struct grad_var *grad_activate(struct grad_tape *t, enum kernel_act act, struct grad_var *x);
struct grad_var *grad_glu(struct grad_tape *t, enum kernel_act act, struct grad_var *gate, struct grad_var *up);
/* grad_glu of x gate^T and x up^T, with the same bits; faster on a tape that does not record. */
struct grad_var *grad_gated(struct grad_tape *t, enum kernel_act act, struct grad_var *x, struct grad_var *gate,
                            struct grad_var *up);
/* factor * x, in place unless x is a leaf: only for results whose values no backward step reads (embeddings, linear
 * maps, norms). */
struct grad_var *grad_scale(struct grad_tape *t, struct grad_var *x, float factor);
/* x + y in the type of x; y may have any type. In a segment of a tape that does not record, it may overwrite x. */
struct grad_var *grad_add(struct grad_tape *t, struct grad_var *x, struct grad_var *y);
/* x, or x widened to f32: for the residual stream, and for the input of the head. */
struct grad_var *grad_to_f32(struct grad_tape *t, struct grad_var *x);

/*
 * Mixtures of experts. The router's scores x w^T are f32 on every tape, because they decide what is computed; w is f32,
 * and so must be the gradient of x (as it is for norms and the residual stream). grad_route selects experts for each
 * row, grad_take_rows gathers the rows of one expert in ascending order, and grad_mix_rows adds its outputs, times the
 * routing weights, to y in place: sums are in the order of these calls. On a tape that does not record, the result is y
 * itself.
 */
struct grad_routing {
    struct grad_var *weights; /* [n][k] */
    size_t n, experts, k;
    const uint32_t *ids;                   /* [n][k] */
    const uint32_t *starts, *slots, *rows; /* by expert: kernel_group */
};
struct grad_var *grad_scores(struct grad_tape *t, struct grad_var *x, struct grad_var *w);
struct grad_routing *grad_route(struct grad_tape *t, struct grad_var *logits, size_t k, bool normalise);
static inline size_t grad_routed(const struct grad_routing *r, size_t expert) { /* rows routed to it */
    return r->starts[expert + 1] - r->starts[expert];
}
/* Has at least grad_routed rows: in f32, a few rows of zeros may follow, so that a row's product does not depend on
 * their number. */
struct grad_var *grad_take_rows(struct grad_tape *t, struct grad_var *x, const struct grad_routing *r, size_t expert);
struct grad_var *grad_zeros(struct grad_tape *t, size_t rows, size_t cols); /* f32, for grad_mix_rows */
struct grad_var *grad_mix_rows(struct grad_tape *t, struct grad_var *y, struct grad_var *x,
                               const struct grad_routing *r, size_t expert);
/* Each row times the sigmoid of its gate [rows][1], in f32. Overwrites x on a tape that does not record. */
struct grad_var *grad_gate_rows(struct grad_tape *t, struct grad_var *x, struct grad_var *gate);

/*
 * An LSTM (kernel_lstm) on its inputs' contributions to the gates [n][4 units] in f32, in one direction, or in two of
 * which the second runs from the end of each sequence to its start: the result is [n][directions * units] in f32.
 * Overwrites the gates, which must not be read afterwards, unless they are a leaf. w [4 units][units]; bias [1][4
 * units] or NULL. starts [n_seqs + 1] is the caller's and must live as long as the graph (grad_alloc). The recurrent
 * products are f32 on every tape.
 */
struct grad_lstm_direction {
    struct grad_var *gates, *w, *bias;
};
struct grad_var *grad_lstm(struct grad_tape *t, size_t directions, const struct grad_lstm_direction *d, size_t n_seqs,
                           const uint32_t *starts);
/* The same elements in rows of another length, in the memory of x. rows * cols must be the size of x. */
struct grad_var *grad_reshape(struct grad_tape *t, struct grad_var *x, size_t rows, size_t cols);

/*
 * A part of the graph with one input and one result with as many rows, such as a layer: run(ctx, t, x) builds it from
 * operations, with `cols` columns. A tape that records keeps all intermediate values of a segment; after
 * grad_recompute(t, true) it keeps only the result and runs the segment again in the backward pass (Chen et al. 2016,
 * "Training deep nets with sublinear memory cost"), with the same bits: run must do the same each time, and ctx must
 * live as long as the graph. A tape that does not record keeps only the result, in the memory of x (unless x is a leaf
 * or has another width), which must not be used afterwards.
 */
typedef struct grad_var *grad_run(void *ctx, struct grad_tape *t, struct grad_var *x);
struct grad_var *grad_segment(struct grad_tape *t, struct grad_var *x, size_t cols, grad_run *run, void *ctx);
void grad_recompute(struct grad_tape *t, bool on);

/*
 * The language-model head and its loss, over blocks of positions: logits = h w^T + bias are computed for one block,
 * passed to `loss`, which writes their gradient, and dropped. The whole [n][vocabulary] array never exists. `loss` gets
 * rows [first, first + rows) and writes d(total)/d(logits) to `dlogits`, in the tape's precision. In f32 dlogits is the
 * memory of the logits (unless they are capped); without a gradient to compute it has no data. `loss` keeps its own
 * sums. The gradients of h and w are complete on return (grad_backward adds nothing to them). False on failure:
 * grad_error.
 */
typedef int grad_loss_block(void *ctx, size_t first, size_t rows, size_t vocab, struct kernel_array logits,
                            struct kernel_array dlogits, struct err *e);
struct grad_head {
    struct grad_var *w, *bias; /* bias [1][vocab], or NULL */
    /* > 0: logits become softcap * tanh(logits / softcap), and `loss` must not write to them. */
    float softcap;
};
bool grad_head(struct grad_tape *t, struct grad_var *h, const struct grad_head *head, grad_loss_block *loss, void *ctx);

/*
 * Several heads over the same rows, each with its own hidden states h [n][*] and the same number of logits: exits of a
 * model, and a teacher next to it. The callback gets a block of each, logits[i] and dlogits[i] as in grad_head; a
 * constant head, or one on a tape that does not record, has no dlogits. Errors go to the first head's tape. Heads with
 * the same weight and tape should share the variable, which is then packed once. Memory: a block of each head.
 */
#define GRAD_MAX_HEADS 16
struct grad_head_input {
    struct grad_tape *t;
    struct grad_var *h;
    struct grad_head head;
};
typedef int grad_losses_block(void *ctx, size_t first, size_t rows, size_t vocab, const struct kernel_array *logits,
                              const struct kernel_array *dlogits, struct err *e);
bool grad_heads(size_t n, const struct grad_head_input *heads, grad_losses_block *loss, void *ctx);

/*
 * The gradient of v, for the caller to ADD to before grad_backward: a loss on hidden states. Zeros at first; no data if
 * none is needed (v depends on constants only, or the tape does not record) or memory is out.
 */
struct kernel_array grad_of(struct grad_tape *t, struct grad_var *v);
/* Adds g [rows][cols], in host memory, to grad_of(t, v). */
void grad_add_to(struct grad_tape *t, struct grad_var *v, const float *g);

/* Propagates the gradients set by grad_head and grad_of back to the leaves and drops the record. Errors: grad_error. */
void grad_backward(struct grad_tape *t);

#endif
