/*
 * stats: activation statistics for calibration. They are sums over the positions of a token stream at the points where
 * a forward pass can be observed; one stream of them serves pruning (Minitron's activations, Wanda's norms, block
 * influence) and quantization (importance).
 *
 * Because all are sums, statistics of two corpora are merged by addition: a stats stream of several segments, as made
 * by `cat a b`, means their sum. Tensors, all f64, for each point P, named by model_point_name: "layers.N.attn_in" of
 * layer N, ...; "embed" and "head_in" outside layers:
 *
 *     P.sum_abs [cols]   sum over positions of |x_j|
 *     P.sum_sq  [cols]   sum over positions of x_j^2
 *     P.seq_sq  [cols]   sum over sequences of (mean over the sequence's positions of |x_j|)^2
 *                        (Muralidharan et al. 2024, "Minitron", section 2.2: L2 over the batch of the mean over the
 *                        sequence)
 *     P.sum     [cols]   sum over positions of x_j
 *     layers.N.influence []  sum over positions of 1 - cos(layer input, layer output): block influence
 *                            (Men et al. 2024, "ShortGPT", eq. 1)
 *     layers.N.angular [N + 1]  sum over sequences of the angle, divided by pi, between the input of layer i and the
 *                               output of layer N at the sequence's last position (Gromov et al. 2024, arXiv
 *                               2403.17887)
 *     layers.N.routed.* [experts]  the same sums of the routing weights of the layer's experts; sum_abs is each
 *                                  expert's total
 *
 * For each expert E of a layer, over the positions routed to it (all zeros if there are none): the sums at the points
 * layers.N.experts.E.in.* [hidden] and .down_in.* [expert_ffn], and
 *
 *     layers.N.experts.E.count []   number of positions
 *     layers.N.experts.E.output []  sum over them of the L2 norm of the expert's contribution, its weight times its
 *                                   output (Lasby et al. 2025, "REAP the experts", eq. 9, sums this and
 *                                   divides by the count)
 *
 * If gradients were requested, sums over sequences of |w dL/dw|, where L = - sum log p of the sequence's next tokens,
 * over all weights and biases along an axis (first-order Taylor scores by element: Ma et al. 2023, "LLM-Pruner", arXiv
 * 2305.11627, who take one gradient of all sequences):
 *
 *     layers.N.taylor.query [heads * head_dim], .key [kv heads * head_dim], .ffn [ffn]
 *     layers.N.experts.E.taylor [expert_ffn]
 *
 * If requested, second moments of the inputs of all matrices but those of experts, or of the head's alone, in f32, for
 * methods with error feedback. A row x that is longer than 4 times the median length of its batch counts as if it were
 * no longer (stats_longest_row):
 *
 *     P.gram      [cols][cols]     sum over positions of x x^T
 *     P.gram_half [about 32][cols] rows 0, k, 2k, ... of the same sum over about half of the positions, k = cols / 32
 *                                  or one more, so that it is odd: they show how much is noise
 *
 * Or, at points with more columns than a number of rows that was asked for, so many rows, or all if there were fewer,
 * in place of both. They are drawn from all positions with equal chances (Vitter 1985, "Random Sampling with a
 * Reservoir", algorithm R), the same ones at all points, and scaled so that the sum of x x^T over them estimates that over all
 * positions; so rows of several segments are added by keeping them all:
 *
 *     P.rows [rows][cols]
 *
 * META: {"kind":"stats","model":<configuration>,"vocab":"xxh3:..","positions":N,"sequences":N,"signed":true,
 * "gradients":true,"moments":"head" or "all","moments_rows":N}. Streams of older versions lack "signed"; they have no
 * P.sum and no angular. They may have "head_gram":true: moments of the head's inputs in f64, of rows of any length,
 * without a half.
 */
#ifndef RILL_STATS_H
#define RILL_STATS_H

#include "lib/base/base.h"
#include "lib/model/model.h"

struct stats;

/* Creates empty sums for a model. vocab: digest of its tokenizer, or NULL. The caller frees *out. */
int stats_new(struct stats **out, const struct model_config *c, const struct digest *vocab, struct err *e) MUST_CHECK;
void stats_free(struct stats *s); /* no-op if NULL */

/* Also collects second moments. Call before the first batch. */
enum stats_moments_of { STATS_MOMENTS_NONE, STATS_MOMENTS_HEAD, STATS_MOMENTS_ALL };
struct stats_moments_wanted {
    enum stats_moments_of of;
    uint64_t rows; /* at points with more columns: keeps so many rows, drawn by `seed`, instead of sums; 0: nowhere */
    uint64_t seed;
};
int stats_want_moments(struct stats *s, const struct stats_moments_wanted *wanted, struct err *e) MUST_CHECK;

/* Runs a batch through the model and adds its statistics. ERR_DATA: the statistics are of another model. */
int stats_collect(struct stats *s, struct model *m, struct grad_tape *scratch, const struct model_input *in,
                  struct err *e) MUST_CHECK;

/* ---- gradients (gradients.c) ---- */

/* The targets of the loss: the next tokens, or tokens drawn from the model's own distribution, whose squared gradients
 * are the diagonal of the Fisher information. The draw at a position depends only on the seed and the position's
 * number, which starts at `first`. */
struct stats_labels {
    bool drawn;
    uint64_t seed, first;
};
/* Called with the gradients of one sequence's loss, summed over its positions, in m->params with grad_begun set. */
typedef int stats_gradient_fn(void *ctx, const struct model *m, struct err *e);
/* Runs one backward pass per sequence on a recording tape and calls fn after each. The model must have gradients
 * (model_enable_grad). ERR_DATA: the model does not predict the next token. Also returns the errors of fn. */
int stats_each_gradient(struct model *m, struct grad_tape *recording, const struct model_input *in,
                        const struct stats_labels *labels, stats_gradient_fn *fn, void *ctx, struct err *e) MUST_CHECK;
/* Adds |w dL/dw| of a batch. Call it for all batches or for none, besides stats_collect, which counts the positions. */
int stats_collect_gradients(struct stats *s, struct model *m, struct grad_tape *recording, const struct model_input *in,
                            struct err *e) MUST_CHECK;

/* The configuration of the model that the statistics were taken on; owned by s. */
const struct model_config *stats_config(const struct stats *s);
/* The sums of squares of the input of a slot's matrix [*cols], owned by s, and the number of positions that they cover.
 * NULL: that input is not observed (stats_input_point). */
const double *stats_input_sq(const struct stats *s, struct model_slot slot, uint64_t *cols, double *positions);
/* The same for sums of |x|. */
const double *stats_input_abs(const struct stats *s, struct model_slot slot, uint64_t *cols, double *positions);

/* Writes META and the tensors of one segment; the caller ends the stream. */
int stats_write(const struct stats *s, struct stream_writer *w, struct err *e) MUST_CHECK;
/* Reads all segments and adds them up. The caller frees *out. ERR_DATA: the stream is malformed, or its segments do not
 * match. `moments`, a map of the same file, which has one segment: second moments are not kept in memory, but read from
 * it when they are asked for; owned by *out, on failure by the caller. NULL: they are loaded. */
int stats_load(struct stats **out, struct stream_reader *r, struct stream_map *moments, struct err *e) MUST_CHECK;
/* ERR_DATA, naming the difference, unless the statistics were taken on a model of this shape with the tokenizer of this
 * digest; with another tokenizer, positions have another meaning. A zero digest, or statistics without one, match
 * any. */
int stats_check(const struct stats *s, const struct model_config *c, struct digest vocab, struct err *e) MUST_CHECK;

uint64_t stats_positions(const struct stats *s);
uint64_t stats_sequences(const struct stats *s);
/* [stats_cols], owned by s; layer 0 for points outside layers */
const double *stats_sum_abs(const struct stats *s, enum model_point p, uint32_t layer);
const double *stats_sum_sq(const struct stats *s, enum model_point p, uint32_t layer);
const double *stats_seq_sq(const struct stats *s, enum model_point p, uint32_t layer);
/* seq_sq of the slot's input, where p is the point of that input */
const double *stats_input_seq_sq(const struct stats *s, enum model_point p, struct model_slot slot);
/* The signed sums of the slot's input at p; NULL: the stream is of an older version without them. */
const double *stats_input_sum(const struct stats *s, enum model_point p, struct model_slot slot);
/* Which second moments there are. */
enum stats_moments_of stats_moments_in(const struct stats *s);
/* Those of the input of a slot's matrix. */
struct stats_gram {
    enum model_point point; /* matrices with the same point and layer have the same moments */
    uint32_t layer;         /* 0 outside layers */
    size_t cols;
    const float *sum;  /* [cols][cols] */
    const float *half; /* [half_rows][cols] over about half of the positions; row i is of input i * stride */
    size_t half_rows;  /* 0: unknown */
    size_t stride;
};
bool stats_has_gram(const struct stats *s, struct model_slot slot);
/* The moments read last, for matrices in the order of the model, of which several read the same input. Start with {0};
 * release with stats_known_release. */
struct stats_known {
    struct stats_gram gram; /* cols 0: none */
    struct buf stored[2];
};
/* Are they those of the slot's matrix? */
bool stats_known_is(const struct stats_known *k, const struct stats *s, struct model_slot slot);
/* Reads these, on statistics that were loaded and live longer, if stats_has_gram. ERR_DATA: the file has changed, or a
 * sum is not finite. */
int stats_known_read(struct stats_known *k, const struct stats *s, struct model_slot slot, struct err *e) MUST_CHECK;
void stats_known_release(struct stats_known *k);
bool stats_has_gradients(const struct stats *s);
/* Along AXIS_QUERY, AXIS_KEY or AXIS_FFN of the slot's layer, or AXIS_EXPERT_FFN of its expert; NULL: no gradients. */
const double *stats_taylor(const struct stats *s, enum model_axis axis, struct model_slot slot);
/* The mean angle, divided by pi, between the input of layer `first` and the output of layer `last`; NAN: the stream is
 * of an older version without angles. */
double stats_angular(const struct stats *s, uint32_t first, uint32_t last);
/* Number of positions routed to the expert, and the sum over them of the L2 norm of its contribution. */
double stats_expert_count(const struct stats *s, uint32_t layer, uint32_t expert);
double stats_expert_output(const struct stats *s, uint32_t layer, uint32_t expert);
double stats_influence(const struct stats *s, uint32_t layer); /* mean over positions */
/* out [n_layers] = the layers by increasing influence, ties by number. */
void stats_rank_layers(const struct stats *s, uint32_t *out);
size_t stats_cols(const struct stats *s, enum model_point p, uint32_t layer);

/* *out = the point at which the input of the role's matrix is observed; false: there is none. A tied embedding is also
 * the head, so it has the point of the head. */
bool stats_input_point(const struct model_config *c, enum model_role role, enum model_point *out);

/*
 * The limit of a row's squared length: 16 times the median of the rows x [rows][cols]; INFINITY if that is 0. Models
 * produce a huge state at the first token in the feed-forward part of some layer (Sun et al. 2024, "Massive Activations
 * in Large Language Models", arXiv 2402.17762): that row is hundreds of times longer than others and would dominate
 * sums of squares, although the next norm removes its length.
 */
int stats_longest_row(const float *x, size_t rows, size_t cols, double *most, struct err *e) MUST_CHECK;

/* ---- second moments during a change (moments.c) ----
 *
 * Sums over the positions of a block at one point of a layer, during a visit of model_layerwise_change, for methods
 * that need the correlation of inputs (GPTQ, SparseGPT, least squares). y is the input at the point with the layers and
 * weights as they are now, x the input with the weights before any change. */
struct stats_moments {
    enum model_point point;
    size_t cols;
    uint32_t first_expert, n_experts; /* for a point of experts; otherwise n_experts is 0 and arrays have one part */
    uint64_t *rows;                   /* [parts] number of y */
    float *sum;                       /* [parts][cols] sum y */
    float *squares;                   /* [parts][cols] sum y^2 */
    float *gram;                      /* [parts][cols][cols] sum y y^T; NULL: not requested */
    /* [cols][cols] sum (x - y) y^T; NULL: not requested, or a point of experts, where positions may
     * be routed differently */
    float *shift;
    float *sum_shift;    /* [cols] sum (x - y); NULL as shift */
    float *residual;     /* [hidden][cols] sum r y^T; NULL: not requested */
    float *sum_residual; /* [hidden] sum r; NULL as residual */
};

/* The tensors that are in memory during a visit, with earlier values of some of them. */
struct stats_part {
    struct model *m;
    size_t first, end;        /* slots */
    struct kernel_array *was; /* [end - first] f32 copies; no data: not kept */
};
/* Begins without kept values, for the layer that model_layerwise_change visits (-1 and n_layers included). The
 * caller releases p, also on failure. */
int stats_part_begin(struct stats_part *p, struct model_layerwise *l, int64_t layer, struct err *e) MUST_CHECK;
/* Keeps a copy of the slot's current values; at most once per slot. */
int stats_part_keep(struct stats_part *p, size_t slot, struct err *e) MUST_CHECK;
void stats_part_release(struct stats_part *p);

struct stats_moments_options {
    enum model_point point;
    uint32_t layer;
    uint32_t first_expert, n_experts; /* the experts to collect, for a point of experts */
    bool gram, shift;                 /* shift needs gram; it keeps x of all `positions` of the block during the call */
    /* Collect r, the residual stream of the unchanged model minus the current one: at POINT_O_IN at the layer's input,
     * at POINT_DOWN_IN at its output. Needs model_changes.dense. */
    bool residual;
    uint64_t positions;
    struct stats_part *part; /* for shift: x is computed with the values kept here */
};
/* Inside a visit to a layer: runs it up to the point, twice for shift (which needs model_changes.dense). The caller
 * releases m, also on failure. */
int stats_moments_collect(struct stats_moments *m, struct model_layerwise *l, const struct stats_moments_options *o,
                          struct err *e) MUST_CHECK;
void stats_moments_release(struct stats_moments *m);

#endif
