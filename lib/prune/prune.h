/*
 * prune: removes weights from a model. Structured pruning removes layers, experts, feed-forward channels, attention
 * head groups or vocabulary entries; unstructured pruning zeroes single weights, either any in a matrix or all but N of
 * M consecutive ones. A plan decides what is removed, then one pass over a model stream applies it, holding a few
 * tensors in memory whatever the size of the model.
 */
#ifndef RILL_PRUNE_H
#define RILL_PRUNE_H

#include "lib/base/base.h"
#include "lib/model/model.h"
#include "lib/stats/stats.h"

/* What happens to a matrix: a share of its weights becomes zero, or all but n of each m consecutive inputs do, or it
 * becomes the product of two low-rank factors of this rank. All 0: unchanged. */
struct prune_sparsity {
    double share; /* in [0, 1) */
    unsigned n, m;
    uint32_t rank;
};
#define PRUNE_MAX_GROUP KERNEL_MAX_GROUP /* largest m */
/* Parses "0.5", "50%", "2:4" or "rank:64". ERR_USAGE. */
int prune_sparsity_parse(const char *text, struct prune_sparsity *out, struct err *e) MUST_CHECK;

/* How the weights to zero are chosen. For n:m every method ranks within each group of m; for shares: */
enum prune_method {
    PRUNE_MAGNITUDE, /* |w|, ranked within the matrix (Han et al. 2015) */
    PRUNE_WANDA,     /* |w_ij| |x_j|_2, x_j the inputs of column j, per row (Sun et al. 2023, arXiv 2306.11695) */
    /* With prune_layerwise these also adjust the weights that stay: */
    PRUNE_SPARSEGPT, /* second-order error, column by column (Frantar and Alistarh 2023, arXiv 2301.00774) */
    PRUNE_ALPS,      /* mask by ADMM, then least squares in it (Meng et al. 2024, arXiv 2406.07831) */
    /* Low-rank factors instead of zeros: a share s gives rank (1 - s) rows cols / (rows + cols), rounded down, at least
     * 1. Singular value decomposition of the weights; with prune_layerwise, whitened by the second moments of the
     * inputs (Wang et al. 2024, "SVD-LLM", arXiv 2403.07378). */
    PRUNE_SVD,
};

/* Parses "wanda"; false: unknown name. */
bool prune_method_parse(const char *name, enum prune_method *out);

/* "REGEX=SPARSITY": applies to matrices whose Rill or GGUF name matches. */
struct prune_rule {
    struct model_pattern pattern;
    struct prune_sparsity sparsity;
};
int prune_rule_parse(const char *text, struct prune_rule *out, struct err *e) MUST_CHECK; /* ERR_USAGE */

/*
 * How zeros are distributed over the matrices in layers. Their weighted mean is the share that was requested; each
 * method then rounds down to whole weights per matrix (magnitude, ALPS), row (Wanda) or block of columns (SparseGPT).
 */
struct prune_allocation {
    double *share; /* [n]: of each tensor in stream order; 0 for vectors and tensors outside layers */
    size_t n;
    /* set by prune_allocate_owl: */
    double *layer;    /* [n_layers] share of zeros in its matrices */
    double *outliers; /* [n_layers] share of outliers among its weights */
    uint32_t n_layers;
    /* Set by prune_allocate_search: the divergence in nats per position, on the search data, of the uniform share, of
     * the starting point (o->begin rounded to steps, or the uniform share) and of the result; and the number of
     * candidates. */
    double uniform_kl, begin_kl, kl;
    uint64_t tried;
    struct arena memory;
};
void prune_allocation_release(struct prune_allocation *a);

/*
 * A source of input norms other than statistics, such as llama.cpp's importance matrix: writes the mean square of each
 * input column of a slot's matrix to out [cols] and sets *found if it is known. Same role as the importance of
 * lib/quant. mean NULL: no source.
 */
struct prune_importance {
    int (*mean)(void *ctx, const struct model_config *c, struct model_slot s, uint64_t cols, float *out, bool *found,
                struct err *e);
    void *ctx;
};

/*
 * OWL (Yin et al. 2023, arXiv 2310.05175). The outliers of a layer are its weights whose |w_ij| |x_j|_2 exceeds
 * `outlier` times the mean over all matrices of the layer. The density of a layer rises linearly with its share of
 * outliers, over a range of 2 * spread. The overall mean is weighted by layer size here; the authors weight all layers
 * equally. Reads the model stream; memory: one layer in f32. ERR_DATA: statistics of another model. Start with {0};
 * call prune_allocation_release even on failure.
 */
struct prune_owl {
    const struct stats *stats;       /* or, if NULL: */
    struct prune_importance squares; /* means over positions instead of sums: same scores, except for experts */
    double share;
    double outlier; /* M: 5 (the authors') */
    double spread;  /* lambda: 0.08 */
};
int prune_allocate_owl(struct stream_reader *in, const struct prune_owl *o, struct prune_allocation *out,
                       struct err *e) MUST_CHECK;

/*
 * EvoPress (Sieberling et al. 2024, arXiv 2410.14649, algorithm 1), per matrix. Each generation makes `offspring`
 * children of one parent, in each of which zeros move from one matrix to another 1 to 3 times. They are judged by the
 * mean Kullback-Leibler divergence of the next-token distribution from the dense model: all of them on a quarter of the
 * sequences, then the best quarter on all sequences. The best child replaces the parent if it is better, so on these
 * sequences the result never diverges more than the starting point. Masks are Wanda's with statistics, else by
 * magnitude; the remaining weights are not refitted during the search.
 * The model, in WEIGHTS_F32, is modified during the search and restored at the end. Memory: another copy of its layers
 * and positions * (vocabulary + (layers + 2) * hidden) * 4 bytes. Deterministic for a given seed. ERR_DATA: the model
 * does not predict the next token.
 */
struct prune_search {
    struct model *model;
    struct grad_tape *scratch; /* a tape that does not record */
    const struct model_input *in;
    const struct stats *stats; /* NULL and no squares: masks by magnitude */
    struct prune_importance squares;
    double share;
    const struct prune_allocation
        *begin; /* the first parent is the better of this and the uniform share; NULL: the uniform share */
    uint64_t generations, offspring, seed; /* offspring at least 1 */
    model_layer_fn *progress;              /* called after each generation; may be NULL */
    void *progress_ctx;
};
int prune_allocate_search(const struct prune_search *o, struct prune_allocation *out, struct err *e) MUST_CHECK;

enum prune_score {
    PRUNE_BY_WEIGHTS, /* L2 norm of the coupled weights of a channel or head group */
    PRUNE_BY_STATS,   /* activations (Minitron) for channels and heads, block influence (ShortGPT) for layers */
    /* sums of |w dL/dw| over the weights of a channel or head (stats with gradients; Ma et al. 2023, "LLM-Pruner") */
    PRUNE_BY_TAYLOR,
    /* Variance of each input of o or down times the squared norm of its column, summed over the columns of a head
     * (stats; An et al. 2023, "FLAP", arXiv 2312.11983, WIFV) */
    PRUNE_BY_FLUCTUATION,
    /* With data and reconstruct: the squared error that remains after the other columns compensate (optimal brain
     * surgeon; Ling et al. 2024, "SlimGPT", arXiv 2412.18110); channels are removed one at a time */
    PRUNE_BY_COST,
};

/* Parses "weights" etc.; "auto" or any other name: by cost with reconstruct, else by activations with stats, else by
 * weights. */
enum prune_score prune_score_parse(const char *name, bool stats, bool reconstruct);

/* How layers are ranked when only their number is given. */
enum prune_layer_score {
    PRUNE_LAYERS_BY_INFLUENCE, /* block influence of each layer alone (Men et al. 2024, "ShortGPT") */
    PRUNE_LAYERS_BY_ANGLE,     /* the block of layers with the least angle between its input and output, at the last
                                  position of each sequence (Gromov et al. 2024, arXiv 2403.17887) */
};

/*
 * Greedy layer removal by measured divergence: n times, removes the layer whose removal increases the divergence from
 * the full model (as judge_reference_compare's) least, given the layers removed so far. Returns layers [n] in order of
 * removal and the divergence kl [n] after each.
 * Lazy evaluation: the increase last measured for a layer is taken as a lower bound of its increase now. After the
 * first round, which tries every layer, layers are retried in order of their last increase until that of the next is no
 * less than the best new one, and at most 8 of them. Cost: at most n_layers^2 / 2 + 8 n n_layers layer passes, and one
 * head pass per trial. The input of each layer is kept, so memory is positions * (vocabulary + (layers + 2) * hidden) *
 * 4 bytes.
 */
struct prune_divergence {
    struct model *model;
    struct grad_tape *scratch; /* a tape that does not record */
    const struct model_input *in;
    model_layer_fn *progress; /* called after each removed layer, or each layer measured; may be NULL */
    void *progress_ctx;
};
int prune_layers_by_divergence(const struct prune_divergence *o, uint32_t n, uint32_t *layers, double *kl,
                               struct err *e) MUST_CHECK;
/* The divergence kl [n_layers] without each layer alone; INFINITY if it is not a number. */
int prune_layers_alone(const struct prune_divergence *o, double *kl, struct err *e) MUST_CHECK;

/* What remains of a layer: key/value heads, query heads per key/value head, feed-forward channels. groups 0: layer
 * removed. */
struct prune_shape {
    uint32_t groups, each, ffn;
};

struct prune_options;

/*
 * Candidate shapes for a target (options->target_*), measured one at a time; each proposal uses the measurements so
 * far. The first are the best by the sums of |w dL/dw|, then the best when heads, or everything but layers, or
 * everything but channels count twice. After that the cost model is fitted to the measurements (a weight per axis and
 * the exponent of the removed share), and the best shape that has not been measured is proposed.
 */
struct prune_candidates;
/* Proposes at most `most` shapes. The caller owns the options, which must outlive the result; the model need not. Fails
 * like prune_stream: ERR_USAGE, ERR_DATA. */
int prune_candidates_new(struct prune_candidates **out, const struct model *m, const struct prune_options *o,
                         size_t most, struct err *e) MUST_CHECK;
/* The next shape, [n_layers], valid as long as the candidates; NULL: no more. The previous one must have been judged.
 * ERR_USAGE: no shape is small enough. */
int prune_candidates_next(struct prune_candidates *c, const struct prune_shape **shape, struct err *e) MUST_CHECK;
/* Records the divergence measured for the shape returned last. */
void prune_candidates_judged(struct prune_candidates *c, double divergence);
/* The shape with the least divergence; NULL: none judged yet. */
const struct prune_shape *prune_candidates_best(const struct prune_candidates *c);
void prune_candidates_free(struct prune_candidates *c); /* no-op if NULL */

/* Parses "3,10-14" into layer numbers, out [MODEL_MAX_LAYERS]. ERR_USAGE. */
int prune_layers_parse(const char *text, uint32_t *out, size_t *n, struct err *e) MUST_CHECK;

/* Frequency of each token in a token stream. */
struct prune_tokens {
    uint64_t *count; /* [n] */
    uint32_t n;      /* size of the vocabulary */
    char vocab[DIGEST_TEXT_SIZE];
    struct arena memory;
};
/* Reads a tokens or knowledge stream to its end; all segments must have the same vocabulary. Start with {0}; release
 * with prune_tokens_release. */
int prune_tokens_count(struct prune_tokens *t, struct stream_reader *r, struct err *e) MUST_CHECK;
void prune_tokens_release(struct prune_tokens *t);

/* How much is kept: a number, or a share of the total. Both 0: everything. */
struct prune_amount {
    uint32_t n;
    double share; /* in (0, 1] */
};

/* A matrix that was sparsified, factored or refitted. */
struct prune_tensor_report {
    const char *name; /* in the pruned model */
    uint64_t elems, zeros;
    uint32_t rank; /* of its low-rank factors; 0: not factored */
    /* with Gram matrices: squared error of its outputs, relative to their sum of squares, on its present inputs or, by
     * statistics, on those of the original */
    bool has_error;
    double output_error;
};

struct prune_options {
    /* Sparsity of the matrices in layers that remain after the options below, unless a rule says otherwise. */
    struct prune_sparsity sparsity;
    const struct prune_allocation *allocation; /* shares per matrix in layers, instead of sparsity; NULL: none */
    bool prune_head;                           /* also prunes the matrices outside layers: embedding and head */
    const struct prune_rule *rules;            /* later rules win; ERR_USAGE if a rule matches no remaining matrix */
    size_t n_rules;
    /* The text of a plan (from prune_dry_run), which replaces sparsity, rules, layers, ffn, experts and kv_heads, and
     * its name for messages. NULL: none. */
    const char *plan, *plan_name;
    /* PRUNE_WANDA needs stats, unless calibrated; SparseGPT and ALPS those with moments of all inputs */
    enum prune_method method;
    bool calibrated; /* with data: prune_layerwise */
    /* Multiplies low-rank factors out into full matrices first. ERR_USAGE: there are none. Not with a plan or data. */
    bool merge;
    /* With data. reconstruct: refits the remaining weights by least squares within their mask, so that each matrix, on
     * inputs that have passed through everything pruned before it, reproduces its original outputs on the original
     * inputs. Attention and feed-forward parts are fitted in turn (Wagner et al. 2025, arXiv 2510.14444, reconstruct
     * the two separately, by gradient descent). */
    bool reconstruct;
    double damp; /* added to the diagonal of Gram matrices, as a share of its mean; default 0.01 */
    /* The GGUF name of a tensor (lib/formats); false: it has none. NULL: rules match Rill names only. */
    bool (*foreign_name)(const struct model_config *, struct model_slot, char out[TENSOR_MAX_NAME + 1]);
    /*
     * Target size, instead of layers, heads and channels: in parameters (a number or a share), as a factor by which the
     * multiplications per position shrink, or in bytes. All layers get one shape, the one whose removed parts have the
     * least sum of |w dL/dw| (needs stats with gradients); which layers go is decided by layer_divergence or layer_score;
     * widths are multiples of 256, 64 or 32. The vocabulary that `tokens` or `padding` leaves is counted. All 0: no target.
     */
    uint64_t target_params, target_size;
    double target_share, target_speedup;
    /* for target_size: bytes of the tensors of a model of this shape; called with bytes_ctx */
    int (*bytes)(void *ctx, const struct model_config *after, uint64_t *bytes, struct err *e);
    void *bytes_ctx;
    bool target_uneven; /* each layer gets its own shape, greedily by loss per saving; `loads` is not used */
    const struct prune_shape
        *target_shape; /* [n_layers] shape already chosen for the target (prune_candidates_best); NULL: none */
    /* whether programs that load `before` also load `after`; NULL: not checked; called with warn_ctx */
    bool (*loads)(void *ctx, const struct model_config *before, const struct model_config *after);
    struct prune_amount layers; /* layers to keep, chosen by layer_score (needs stats) ... */
    enum prune_layer_score layer_score;
    /* [n_layers] for targets: the layers with the least of these go (prune_layers_alone); NULL: by layer_score */
    const double *layer_divergence;
    const uint32_t *drop_layers; /* ... or the layers to remove; NULL: none */
    size_t n_drop_layers;
    /* Feed-forward channels kept in each layer, and in each expert of layers with experts; shares are rounded to
     * multiples of 256 or 32. */
    struct prune_amount ffn;
    /* Experts kept in each layer that has any (needs stats): those that contribute most to the positions routed to
     * them. If fewer are kept than a position was routed to, it is routed to all of them. */
    struct prune_amount experts;
    /* Channels of the residual stream kept in all layers (needs stats); shares are rounded to multiples of 256 or
     * 32. */
    struct prune_amount hidden;
    struct prune_amount kv_heads; /* key/value heads kept in each layer, with their query heads */
    struct prune_amount
        heads; /* query heads kept in each layer, equally many per key/value head: a multiple of the key/value heads */
    const struct prune_tokens *tokens; /* the vocabulary is reduced to these; NULL: unchanged, except for ... */
    bool padding;                      /* ... rows of embedding and head beyond the vocabulary, which are removed */
    uint64_t vocab_min_count;          /* occurrences in `tokens` that a token needs to stay */
    uint32_t vocab_size;               /* at most so many tokens stay, the most frequent; 0: no limit */
    enum prune_score score;
    /* Adds the mean contribution of the removed inputs to the biases of o and down (needs stats; FLAP's bias
     * compensation). ERR_USAGE if the model has no such bias. Not with data, where reconstruct fits the biases. */
    bool compensate;
    const struct stats *stats;
    struct prune_importance squares; /* for Wanda without stats */
    model_warn_fn *warn;             /* receives remarks on the new shape, before anything is written; may be NULL */
    /* receives the shape, for checks outside this module (which programs will load it); may be NULL */
    void (*shape)(void *ctx, const struct model_config *before, const struct model_config *after);
    void *warn_ctx;
    /* called for each matrix that was sparsified, or refitted to compensate for others; may be NULL */
    int (*sparse)(void *ctx, const struct prune_tensor_report *t, struct err *e);
    void *sparse_ctx;
};
struct prune_report {
    struct model_config before, after; /* layers point into `memory` */
    uint64_t parameters_before, parameters_after;
    uint64_t zeros, matrix_weights; /* of sparsified matrices: zeros, and all weights */
    uint64_t n_factored;            /* matrices replaced by low-rank factors */
    uint32_t *kept_layers;          /* [after.n_layers] numbers in the old model */
    uint32_t **kept_experts;        /* [after.n_layers][experts] likewise; NULL: none were removed */
    struct arena memory;
};
/* The removed layers by their old numbers: "2, 5-8", "" if none; truncated with "..." if too long. Returns out. */
#define PRUNE_LAYERS_TEXT 256
char *prune_layers_text(const struct prune_report *r, char out[PRUNE_LAYERS_TEXT]);

/* Reads a model stream and writes the pruned one. Each tensor keeps its type, except that a quantized one becomes f32
 * if columns are removed or single weights zeroed, since its blocks mix them with other weights. ERR_USAGE / ERR_DATA
 * if the request cannot be met (more than there is, statistics missing or of another model), before anything is
 * written. `report` starts as {0}; release with prune_report_release. */
int prune_stream(struct stream_reader *in, struct stream_writer *out, const struct prune_options *o,
                 struct prune_report *report, struct err *e) MUST_CHECK;

/*
 * Pruning with data, layer by layer: the inputs of a matrix have passed through everything pruned before it. All
 * quantized tensors become f32. Memory: one layer, the states of all positions (three times with reconstruct, plus the
 * inputs of one matrix) and the second moments of one matrix's inputs.
 *
 * Prunes one of: single weights of the matrices in layers, in the order q, k, v; o; gate, up; down; or structure
 * (layers, heads and channels), with reconstruct; or the width of the residual stream, with reconstruct. Two at once
 * are ERR_USAGE, as are experts. Tokens to be removed (not with a narrower stream) are kept until the data has passed
 * through the model.
 *
 * Structure: from the first pruned layer on, o and down of each layer are refitted by least squares, weights and any
 * bias, so that the residual stream matches that of the original model. If a norm follows o or down, they are fitted to
 * their own original outputs instead.
 *
 * Residual stream: q, k, v, gate and up are fitted to their original outputs, given the remaining channels; o and down
 * to the remaining error of the stream in those channels; and the head to its original logits or, if it is tied to the
 * embedding, the gain before it.
 */
struct prune_calibration {
    struct model_layerwise *model; /* in WEIGHTS_F32 */
    struct grad_tape *scratch;     /* a tape that does not record */
    const struct model_input *in;  /* [n] */
    size_t n;
    model_layer_fn *progress; /* may be NULL */
    void *progress_ctx;
};
/* The amount as a number out of `total`; shares are rounded to the nearest whole number, at least 1. */
uint32_t prune_amount_of(const struct prune_amount *a, uint32_t total);

/* As prune_stream; also ERR_DATA if a Gram matrix cannot be factored even with 10,000 times the damping, or is not
 * finite. */
int prune_layerwise(const struct prune_calibration *c, struct stream_writer *out, const struct prune_options *o,
                    struct prune_report *report, struct err *e) MUST_CHECK;

/* Reads a model stream without its data and appends to `plan`, as text for o->plan, what prune_stream or
 * prune_layerwise would do; fills in the report except for zeros. */
int prune_dry_run(struct stream_reader *in, const struct prune_options *o, struct buf *plan,
                  struct prune_report *report, struct err *e) MUST_CHECK;

void prune_report_release(struct prune_report *r);
/* For --report: add the members of the report to an object, and a tensor's object to an array. ERR_IO: out of
 * memory. */
int prune_report_put(const struct prune_report *r, cJSON *object, struct err *e) MUST_CHECK;
int prune_tensor_report_put(const struct prune_tensor_report *t, cJSON *array, struct err *e) MUST_CHECK;

#endif
