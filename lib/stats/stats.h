/*
 * stats: what calibration saw. Sums over the positions of a token stream at the points where a forward pass can be watched;
 * one stream of them feeds pruning (Minitron's activations, Wanda's norms, block influence) and quantization (importance).
 *
 * All are sums, so statistics of two corpora are merged by adding: a stats stream of several segments (`cat a b`) means
 * their sum. Tensors, f64, for a point P of layer N ("layers.N.attn_in", ... as model_point_name; "embed", "head_in" outside layers):
 *
 *     P.sum_abs [cols]   sum over positions of |x_j|
 *     P.sum_sq  [cols]   sum over positions of x_j^2
 *     P.seq_sq  [cols]   sum over sequences of (mean over the sequence's positions of |x_j|)^2
 *                        (Muralidharan et al. 2024, "Minitron", section 2.2: L2 over the batch of the mean over the sequence)
 *     P.sum     [cols]   sum over positions of x_j
 *     layers.N.influence []  sum over positions of 1 - cos(layer input, layer output): block influence (Men et al. 2024, "ShortGPT", eq. 1)
 *     layers.N.routed.* [experts]  the same of the weights that positions give to the experts of a layer: sum_abs is what each got in all
 * and for expert E of it, of the positions that take it, layers.N.experts.E.in.* [hidden] and .down_in.* [expert_ffn] (an expert
 * that no position took has zeros there), and
 *     layers.N.experts.E.count []   positions
 *     layers.N.experts.E.output []  sum over them of the L2 norm of what the expert adds, its weight times its output
 *                                   (Lasby et al. 2025, "REAP the experts", eq. 9, sums this and divides by the count)
 *     layers.N.angular [N + 1]  sum over sequences of the angle, over pi, between what comes into layer i and what leaves layer N, at
 *                           the sequence's last position (Gromov et al. 2024, arXiv 2403.17887)
 * and when gradients were asked for, sums over sequences of |w dL/dw|, L = - sum log p of the next tokens of the sequence, over all
 * weights and biases along an axis (Taylor scores of first order, by element: Ma et al. 2023, "LLM-Pruner", arXiv 2305.11627, who take one
 * gradient of all sequences), layers.N.taylor.query [heads * head_dim], .key [kv heads * head_dim], .ffn [ffn], and of experts
 *     layers.N.experts.E.taylor [expert_ffn]
 *
 * and when they were asked for
 *     head_in.gram [hidden][hidden]  sum over positions of x x^T of what the head reads
 *
 * META: {"kind":"stats","model":<configuration>,"vocab":"xxh3:..","positions":N,"sequences":N,"signed":true,"gradients":true,
 * "head_gram":true}; without "signed", from older versions, there is no P.sum and no angular.
 */
#ifndef RILL_STATS_H
#define RILL_STATS_H

#include "lib/base/base.h"
#include "lib/model/model.h"

struct stats;

/* Empty sums for a model. */
int stats_new(struct stats **out, const struct model_config *c, const struct digest *vocab, struct err *e) MUST_CHECK;
void stats_free(struct stats *s);

/* Second moments of what the head reads are summed up, too. Before the first batch. */
int stats_want_head_gram(struct stats *s, struct err *e) MUST_CHECK;

/* Runs a batch through the model and adds what it sees. */
int stats_collect(struct stats *s, struct model *m, struct grad_tape *scratch, const struct model_input *in,
                  struct err *e) MUST_CHECK;

/* ---- gradients (gradients.c) ---- */

/* Of what are losses taken? Of the next tokens; or of tokens drawn from the model's own distribution, whose squared gradients are the
 * Fisher information's diagonal. The draw of a position is a function of the seed and its number, from `first` on. */
struct stats_labels {
    bool drawn;
    uint64_t seed, first;
};
/* m->params hold the gradients of a sequence's loss, summed over its positions, where grad_begun says so. */
typedef int stats_gradient_fn(void *ctx, const struct model *m, struct err *e);
/* One backward pass for each sequence, on a recording tape, of a model that predicts the next token and has gradients
 * (model_enable_grad). ERR_DATA: it does not. */
int stats_each_gradient(struct model *m, struct grad_tape *recording, const struct model_input *in,
                        const struct stats_labels *labels, stats_gradient_fn *fn, void *ctx, struct err *e) MUST_CHECK;
/* Adds |w dL/dw| of a batch, beside stats_collect, which counts its positions; of all batches or of none. */
int stats_collect_gradients(struct stats *s, struct model *m, struct grad_tape *recording, const struct model_input *in,
                            struct err *e) MUST_CHECK;

/* Of the model that it was taken on; valid as long as s. */
const struct model_config *stats_config(const struct stats *s);
/* The sum of squares of the input of a slot's matrix, its columns, and over how many positions; NULL where none is
 * watched (stats_input_point). */
const double *stats_input_sq(const struct stats *s, struct model_slot slot, uint64_t *cols, double *positions);
/* The same of |x|. */
const double *stats_input_abs(const struct stats *s, struct model_slot slot, uint64_t *cols, double *positions);

int stats_write(const struct stats *s, struct stream_writer *w, struct err *e) MUST_CHECK;
/* Reads all segments and adds them up. */
int stats_load(struct stats **out, struct stream_reader *r, struct err *e) MUST_CHECK;
/* ERR_DATA, saying which, unless the statistics were taken on a model of this shape, with the tokenizer of this digest: with another their
 * positions are of other texts. Zeros, or statistics that name none: nobody knows. */
int stats_check(const struct stats *s, const struct model_config *c, struct digest vocab, struct err *e) MUST_CHECK;

uint64_t stats_positions(const struct stats *s);
uint64_t stats_sequences(const struct stats *s);
/* [cols], owned by s; layer 0 for points outside layers. */
const double *stats_sum_abs(const struct stats *s, enum model_point p, uint32_t layer);
const double *stats_sum_sq(const struct stats *s, enum model_point p, uint32_t layer);
const double *stats_seq_sq(const struct stats *s, enum model_point p, uint32_t layer);
/* Of what the slot's matrix multiplies, which is seen at p. */
const double *stats_input_seq_sq(const struct stats *s, enum model_point p, struct model_slot slot);
/* The signed sum of what the slot's matrix multiplies; NULL: an older stream, without. */
const double *stats_input_sum(const struct stats *s, enum model_point p, struct model_slot slot);
/* [cols][cols] sum x x^T of what the head reads; NULL: it was not asked for. */
const double *stats_head_gram(const struct stats *s, size_t *cols);
bool stats_has_gradients(const struct stats *s);
/* Along AXIS_QUERY, AXIS_KEY, AXIS_FFN of the slot's layer or AXIS_EXPERT_FFN of its expert; NULL: without gradients. */
const double *stats_taylor(const struct stats *s, enum model_axis axis, struct model_slot slot);
/* The mean angle, over pi, from what comes into layer `first` to what leaves layer `last`; NAN: an older stream, without. */
double stats_angular(const struct stats *s, uint32_t first, uint32_t last);
double stats_expert_count(const struct stats *s, uint32_t layer, uint32_t expert);
double stats_expert_output(const struct stats *s, uint32_t layer, uint32_t expert);
double stats_influence(const struct stats *s, uint32_t layer); /* mean over positions */
/* The layers' numbers by their influence, the least first, equals by number: [layers of the model]. */
void stats_rank_layers(const struct stats *s, uint32_t *out);
size_t stats_cols(const struct stats *s, enum model_point p, uint32_t layer);

/* The point whose values are the input of a matrix: false for the embedding, unless tied: it is the output too. */
bool stats_input_point(const struct model_config *c, enum model_role role, enum model_point *out);

/* ---- second moments (moments.c) ---------------------------------------------------------------------------------------
 *
 * Sums over the positions of a block, at one point of a layer, while model_layerwise_change visits it: for methods that need to know how
 * inputs go together (GPTQ, SparseGPT, least squares). y is what comes in, out of layers and weights as they are now; x what came in
 * before anything was changed.
 */
struct stats_moments {
    enum model_point point;
    size_t cols;
    uint32_t first_expert, n_experts; /* of points of experts; else n_experts is 0, and arrays have one part */
    uint64_t *rows;                   /* [parts] how many y there were */
    float *sum;                       /* [parts][cols] sum y */
    float *squares;                   /* [parts][cols] sum y^2 */
    float *gram;                      /* [parts][cols][cols] sum y y^T; NULL: not asked for */
    float *shift;        /* [cols][cols] sum (x - y) y^T; NULL: not asked for, or of experts, where positions move */
    float *sum_shift;    /* [cols] sum (x - y); NULL as shift */
    float *residual;     /* [hidden][cols] sum r y^T; NULL: not asked for */
    float *sum_residual; /* [hidden] sum r; NULL as residual */
};

/* The tensors that a visit has in memory, and what some of them were. */
struct stats_part {
    struct model *m;
    size_t first, end;        /* slots */
    struct kernel_array *was; /* [end - first]; no data: not kept */
};
/* Of the layer that model_layerwise_change visits. On failure too the caller releases p. */
int stats_part_begin(struct stats_part *p, struct model_layerwise *l, int64_t layer, struct err *e) MUST_CHECK;
int stats_part_keep(struct stats_part *p, size_t slot, struct err *e) MUST_CHECK; /* the values that it has now */
void stats_part_release(struct stats_part *p);

struct stats_moments_options {
    enum model_point point;
    uint32_t layer;
    uint32_t first_expert, n_experts; /* which experts, of a point that has some */
    bool gram, shift; /* shift: with gram; keeps x of all `positions` of the block for the time of the call */
    /* r: by how much the residual stream, as it is now, is short of what it was in the stream of the model: at POINT_O_IN where it
     * comes into the layer, at POINT_DOWN_IN where it leaves it. Needs model_changes.dense. */
    bool residual;
    uint64_t positions;
    struct stats_part *part; /* for shift: what x comes through is as it was kept */
};
/* In a visit, of a layer. Runs it up to the point, twice for shift (model_changes.dense). The caller releases m, on failure too. */
int stats_moments_collect(struct stats_moments *m, struct model_layerwise *l, const struct stats_moments_options *o,
                          struct err *e) MUST_CHECK;
void stats_moments_release(struct stats_moments *m);

#endif
