/*
 * grad: a tape. Forward operations run at once through lib/kernel and record how to go backward; grad_backward
 * walks the record in reverse. Values and gradients of intermediate results live in the tape's memory, which is
 * reused step after step (grad_reset): after the first step of a shape nothing is allocated.
 *
 * A tape made with record = false runs the same operations and records nothing: inference and training are one code.
 * Memory of intermediate values is then given back through grad_segment, or grad_mark and grad_rewind.
 *
 * Precision: DT_F32, or DT_BF16 for bf16 activations and products with f32 sums. Weights, their gradients and the
 * residual stream (embedding, results of grad_linear with a residual) are f32 in both; results of the other operations
 * have the type of their inputs, and where weights meet f32 activations, the tape's. A result's gradient has the
 * result's type, except that of RMSNorm, where several linear maps add up: f32.
 *
 * Operations return NULL on failure (out of memory, shapes that do not fit) and leave the reason in the tape:
 * a chain of them may be written without checks, NULL inputs give NULL outputs, and grad_error is asked once.
 */
#ifndef RILL_GRAD_H
#define RILL_GRAD_H

#include "lib/base/base.h"
#include "lib/kernel/kernel.h"

struct grad_tape;

/*
 * A matrix [rows][cols] in the graph. A leaf's gradient is the caller's and is added to; a result's has no data until
 * something is added to it, and none again after backward.
 */
struct grad_var {
    size_t rows, cols;
    struct kernel_array value, grad;
};

/* Its memory is the device's. */
int grad_tape_new(struct grad_tape **out, struct kernel_device *device, bool record, enum dtype precision,
                  struct err *e) MUST_CHECK;
void grad_tape_free(struct grad_tape *t);
void grad_reset(struct grad_tape *t); /* forgets the graph, keeps the memory */
/* Position in the memory of values; rewinding gives back all that was made since, which nothing recorded may need. */
struct grad_mark {
    size_t values, notes;
};
struct grad_mark grad_mark(const struct grad_tape *t);
void grad_rewind(struct grad_tape *t, struct grad_mark mark);
/* 0, or the first failure since the last reset. */
int grad_error(const struct grad_tape *t, struct err *e) MUST_CHECK;

/* Bytes that were in use at most: results and the record; gradients of results; what a single operation needs. */
struct grad_memory {
    size_t values, gradients, scratch;
};
struct grad_memory grad_memory(const struct grad_tape *t);

bool grad_records(const struct grad_tape *t);
enum dtype grad_precision(const struct grad_tape *t);

/* n bytes of host memory that live as long as the graph (positions, sequence starts); a var without history, for values made outside
 * the tape (generation from a cache). NULL on failure, as operations. */
void *grad_alloc(struct grad_tape *t, size_t n);
struct grad_var *grad_scratch(struct grad_tape *t, size_t rows, size_t cols, enum dtype dtype);
/* The value in f32 for the host to read (kernel_host): where it is, or a copy with the lifetime of the graph. NULL on failure or for NULL. */
const float *grad_host_value(struct grad_tape *t, const struct grad_var *v);

/* Leaves. The memory is the caller's and must outlive the tape's use of it; they are f32; grad without data: constant. */
struct grad_var *grad_leaf(struct grad_tape *t, struct kernel_array value, struct kernel_array grad, size_t rows,
                           size_t cols);
/* One whose gradient need not be cleared: while *begun is false, what comes first overwrites it and makes *begun
 * true. Leaves of one matrix share it. */
struct grad_var *grad_parameter(struct grad_tape *t, struct kernel_array value, struct kernel_array grad, bool *begun,
                                size_t rows, size_t cols);

/* A constant matrix [n][k] that is packed, for grad_embed, grad_linear(s) and grad_head of a tape in bf16 that does
 * not record. Its value has no data. Its memory is the caller's. */
struct grad_var *grad_leaf_packed(struct grad_tape *t, const struct kernel_matrix *w);

/* ids [n] are copied. */
struct grad_var *grad_embed(struct grad_tape *t, struct grad_var *table, const uint32_t *ids, size_t n);
/* x [n][in] times w [out][in] transposed, plus bias [1][out] and residual [n][out] (f32) when they are not NULL. In
 * a segment of a tape that does not record, the result may take over the memory of the residual, which must not be
 * used afterwards. */
struct grad_var *grad_linear(struct grad_tape *t, struct grad_var *x, struct grad_var *w, struct grad_var *bias,
                             struct grad_var *residual);
/*
 * Several linear maps of one x, y[i] = x w[i]^T + bias[i] with bias[i] NULL or not, n <= GRAD_MAX_MAPS: what is
 * prepared of x is prepared once. On failure all y are NULL.
 */
#define GRAD_MAX_MAPS 3
struct grad_map {
    struct grad_var *w, *bias;
};
void grad_linears(struct grad_tape *t, struct grad_var *x, size_t n, const struct grad_map *maps, struct grad_var **y);
/* The result has the type `out`: grad_precision, or DT_F32 for the hidden states that the head takes. */
struct grad_var *grad_rmsnorm(struct grad_tape *t, struct grad_var *x, struct grad_var *w, float eps, enum dtype out);
/* b may be NULL. */
struct grad_var *grad_layernorm(struct grad_tape *t, struct grad_var *x, struct grad_var *w, struct grad_var *b,
                                float eps, enum dtype out);
/* RMSNorm of each head: x [rows][heads * head_dim], w [1][head_dim]. The result has x's type, its gradient too. */
struct grad_var *grad_rmsnorm_heads(struct grad_tape *t, struct grad_var *x, struct grad_var *w, float eps);
/* LayerNorm of each head; b [1][head_dim] or NULL. */
struct grad_var *grad_layernorm_heads(struct grad_tape *t, struct grad_var *x, struct grad_var *w, struct grad_var *b,
                                      float eps);
/*
 * Takes over the memory of x, which must not be used afterwards, unless x is a leaf. position [rows], what the rotation points to and
 * a->starts below are the caller's and must live as long as the graph (grad_alloc).
 */
struct grad_var *grad_rope(struct grad_tape *t, struct grad_var *x, size_t n_heads, size_t head_dim,
                           const uint32_t *position, const struct kernel_rotation *rotation);
struct grad_var *grad_attention(struct grad_tape *t, struct grad_var *q, struct grad_var *k, struct grad_var *v,
                                const struct kernel_attention *shape);
struct grad_var *grad_activate(struct grad_tape *t, enum kernel_act act, struct grad_var *x);
struct grad_var *grad_glu(struct grad_tape *t, enum kernel_act act, struct grad_var *gate, struct grad_var *up);
/* The gated unit of the linear maps x gate^T and x up^T, to the same bits; faster where nothing is recorded. */
struct grad_var *grad_gated(struct grad_tape *t, enum kernel_act act, struct grad_var *x, struct grad_var *gate,
                            struct grad_var *up);
/* factor x, in the memory of x unless that is a leaf: for results whose value no other operation's way back reads
 * (embeddings, linear maps, norms). */
struct grad_var *grad_scale(struct grad_tape *t, struct grad_var *x, float factor);
/* x + y in the type of x; y has any type. In a segment of a tape that does not record, it may take over the memory of x. */
struct grad_var *grad_add(struct grad_tape *t, struct grad_var *x, struct grad_var *y);
/* x, or x widened: for the residual stream, and for hidden states that the head takes. */
struct grad_var *grad_to_f32(struct grad_tape *t, struct grad_var *x);

/*
 * Mixtures of experts. A router's scores x w^T are f32 on every tape, for what is computed hangs on them; w is f32, and the gradient
 * of x must be (that of a norm's result and of the residual stream is). grad_route chooses experts for each row, grad_take_rows
 * gives the rows of one of them, ascending, and grad_mix_rows adds its results, times their weights, into y, whose memory it takes
 * over: an element's sum is in the order of these calls. Where the tape does not record, the result is y itself.
 */
struct grad_routing {
    struct grad_var *weights; /* [n][k] */
    size_t n, experts, k;
    const uint32_t *ids;                   /* [n][k] */
    const uint32_t *starts, *slots, *rows; /* by expert: kernel_group */
};
struct grad_var *grad_scores(struct grad_tape *t, struct grad_var *x, struct grad_var *w);
struct grad_routing *grad_route(struct grad_tape *t, struct grad_var *logits, size_t k, bool normalise);
static inline size_t grad_routed(const struct grad_routing *r, size_t expert) { /* rows that take it */
    return r->starts[expert + 1] - r->starts[expert];
}
/* At least grad_routed rows: in f32 a few of zeros may follow, so that a row's product does not depend on how many there are. */
struct grad_var *grad_take_rows(struct grad_tape *t, struct grad_var *x, const struct grad_routing *r, size_t expert);
struct grad_var *grad_zeros(struct grad_tape *t, size_t rows, size_t cols); /* in f32, for grad_mix_rows */
struct grad_var *grad_mix_rows(struct grad_tape *t, struct grad_var *y, struct grad_var *x,
                               const struct grad_routing *r, size_t expert);
/* Each row times the sigmoid of its gate [rows][1], in f32. Where nothing is recorded, in the memory of x. */
struct grad_var *grad_gate_rows(struct grad_tape *t, struct grad_var *x, struct grad_var *gate);

/*
 * An LSTM (kernel_lstm) of what its input adds to the gates, gates [n][4 units] in f32, in one direction or, side by side, in two, of
 * which the second runs from the end of each sequence to its beginning: the result [n][directions * units] in f32. Takes over the memory of
 * gates, which must not be read afterwards, unless it is a leaf. w [4 units][units]; bias [1][4 units] or NULL. starts [n_seqs + 1] is
 * the caller's and must live as long as the graph (grad_alloc). The recurrent products are f32 on every tape.
 */
struct grad_lstm_direction {
    struct grad_var *gates, *w, *bias;
};
struct grad_var *grad_lstm(struct grad_tape *t, size_t directions, const struct grad_lstm_direction *d, size_t n_seqs,
                           const uint32_t *starts);
/* The same elements as rows of another length, in the memory of x. rows * cols is the size of x. */
struct grad_var *grad_reshape(struct grad_tape *t, struct grad_var *x, size_t rows, size_t cols);

/*
 * A part of the graph with one input and one result of as many rows, say a layer: run(ctx, t, x) makes it from operations, with
 * `cols` columns.
 * A tape that records keeps all that a segment makes; after grad_recompute(t, true) it keeps the result only and runs
 * the segment again when going backward (Chen et al. 2016, "Training deep nets with sublinear memory cost"), to the
 * same bits: run must do the same each time, and ctx live as long as the graph. A tape that does not record keeps the
 * result only, in the memory of x (unless x is a leaf or has other columns), which must not be used afterwards.
 */
typedef struct grad_var *grad_run(void *ctx, struct grad_tape *t, struct grad_var *x);
struct grad_var *grad_segment(struct grad_tape *t, struct grad_var *x, size_t cols, grad_run *run, void *ctx);
void grad_recompute(struct grad_tape *t, bool on);

/*
 * The language-model head and its loss over blocks of positions: logits = h w^T + bias are made for a block, given to
 * `loss`, which writes the gradient of the logits, and dropped. No [n][vocabulary] array is ever whole in memory.
 * `loss` sees rows [first, first + rows) and writes d(total)/d(logits) to `dlogits`: of the tape's precision, in f32
 * the memory of the logits (unless they are capped), no data when nothing is to be learned. It keeps its own sums.
 * Gradients of h and w are complete at once (backward adds nothing more); returns false on failure.
 */
typedef int grad_loss_block(void *ctx, size_t first, size_t rows, size_t vocab, struct kernel_array logits,
                            struct kernel_array dlogits, struct err *e);
struct grad_head {
    struct grad_var *w, *bias; /* bias [1][vocab], or NULL */
    float softcap; /* > 0: logits become softcap * tanh(logits / softcap); `loss` then must not write to them */
};
bool grad_head(struct grad_tape *t, struct grad_var *h, const struct grad_head *head, grad_loss_block *loss, void *ctx);

/*
 * Several heads over the same rows, each on its own hidden states h [n][*] with as many columns of logits: exits of a model, and
 * a teacher beside it. The callback gets a block of all of them, logits[i] and dlogits[i], as `loss` of grad_head does; a head whose
 * tape does not record, or that is constant, has no dlogits. Errors are noted in the first head's tape. Heads of one weight and
 * tape should share the variable: it is packed once. Memory: a block of each head.
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
 * The gradient of v, for the caller to ADD to before grad_backward: a loss on hidden states. Zeros at first; no data when
 * none is wanted (v is constant or depends on constants only, or the tape does not record) or memory is out.
 */
struct kernel_array grad_of(struct grad_tape *t, struct grad_var *v);
/* Adds g [rows][cols] to it. */
void grad_add_to(struct grad_tape *t, struct grad_var *v, const float *g);

/* Walks back from what grad_head and grad_of have put into gradients, and forgets the record. Failures: grad_error. */
void grad_backward(struct grad_tape *t);

#endif
