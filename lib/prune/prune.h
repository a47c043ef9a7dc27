/*
 * prune: takes weights out of a model. Structured: layers, experts, feed-forward channels, attention head groups, vocabulary. And
 * single weights, any of a matrix or N of M consecutive ones. A plan says what is to go; then comes one pass over a model stream, with
 * a few tensors in memory whatever the model's size.
 */
#ifndef RILL_PRUNE_H
#define RILL_PRUNE_H

#include "lib/base/base.h"
#include "lib/model/model.h"
#include "lib/stats/stats.h"

/* How many weights of a matrix become zero: a share of them, or all but n of each m consecutive inputs. Or which rank it gets as the
 * product of two low-rank factors. All 0: it stays as it is. */
struct prune_sparsity {
    double share; /* in [0, 1) */
    unsigned n, m;
    uint32_t rank;
};
#define PRUNE_MAX_GROUP KERNEL_MAX_GROUP /* of m */
/* "0.5", "50%", "2:4" or "rank:64". ERR_USAGE. */
int prune_sparsity_parse(const char *text, struct prune_sparsity *out, struct err *e) MUST_CHECK;

/* Which weights become zero. Each m consecutive ones are ranked among themselves by all methods; for shares: */
enum prune_method {
    PRUNE_MAGNITUDE, /* |w|, ranked within the matrix (Han et al. 2015) */
    PRUNE_WANDA, /* |w_ij| |x_j|_2, x_j the inputs of column j, ranked within each row (Sun et al. 2023, arXiv 2306.11695) */
    /* And with prune_layerwise, which change the weights that stay, too: */
    PRUNE_SPARSEGPT, /* by second-order error, made up for column by column (Frantar and Alistarh 2023, arXiv 2301.00774) */
    PRUNE_ALPS, /* the mask of least error by ADMM, then least squares in it (Meng et al. 2024, arXiv 2406.07831) */
    /* Not zeros but low-rank factors: a share s of a matrix gives rank (1 - s) rows cols / (rows + cols), rounded down, at least 1.
     * Singular value decomposition of the weights; with prune_layerwise, whitened by the second moments of the inputs (Wang et al. 2024,
     * "SVD-LLM", arXiv 2403.07378). */
    PRUNE_SVD,
};

/* "wanda"; false: there is none such. */
bool prune_method_parse(const char *name, enum prune_method *out);

/* "REGEX=SPARSITY": for the matrices whose name, Rill's or GGUF's, matches. */
struct prune_rule {
    struct model_pattern pattern;
    struct prune_sparsity sparsity;
};
int prune_rule_parse(const char *text, struct prune_rule *out, struct err *e) MUST_CHECK; /* ERR_USAGE */

/*
 * How a share of zeros is spread over the matrices of layers. What it comes to in all is the share that was asked for; methods then round
 * down to whole weights, of a matrix (magnitude, ALPS), a row (Wanda) or a block of columns (SparseGPT).
 */
struct prune_allocation {
    double *share; /* [n]: of each tensor in stream order, 0 of those outside layers and of vectors */
    size_t n;
    /* Of prune_allocate_owl: */
    double *layer;    /* [n_layers] the share of its matrices */
    double *outliers; /* [n_layers] the share of its weights that are outliers */
    uint32_t n_layers;
    /* Of prune_allocate_search: nats a position on its own data, of the uniform share, of o->begin rounded to steps (or the uniform one),
     * and of what was found; and how many candidates were judged. */
    double uniform_kl, begin_kl, kl;
    uint64_t tried;
    struct arena memory;
};
void prune_allocation_release(struct prune_allocation *a);

/*
 * Where norms of inputs come from that are in no statistics (llama.cpp's importance matrix): the mean square of what each column of a
 * slot's matrix is multiplied with, into out [cols]; *found: it is known. As importance of quant's. mean NULL: nowhere.
 */
struct prune_importance {
    int (*mean)(void *ctx, const struct model_config *c, struct model_slot s, uint64_t cols, float *out, bool *found,
                struct err *e);
    void *ctx;
};

/*
 * OWL (Yin et al. 2023, arXiv 2310.05175): outliers of a layer are its weights whose |w_ij| |x_j|_2 is more than `outlier` times their
 * mean over all matrices of the layer. Density rises linearly with their share, over a range of 2 * spread. The mean, which the
 * authors take over layers, is weighted by weights here. Reads the model stream; memory: a layer, in f32. ERR_DATA: statistics of
 * another model. Begin with {0}; on failure too prune_allocation_release.
 */
struct prune_owl {
    const struct stats *stats;       /* or, where that is NULL: */
    struct prune_importance squares; /* means over positions instead of sums: the same scores, but for experts */
    double share;
    double outlier; /* M: 5 (the authors') */
    double spread;  /* lambda: 0.08 */
};
int prune_allocate_owl(struct stream_reader *in, const struct prune_owl *o, struct prune_allocation *out,
                       struct err *e) MUST_CHECK;

/*
 * EvoPress (Sieberling et al. 2024, arXiv 2410.14649, algorithm 1), matrix by matrix: of a parent come `offspring` in each generation, in
 * which 1 to 3 times some zeros of one matrix go to another. The mean Kullback-Leibler divergence of the next token from the dense model's
 * judges them, of all on a quarter of the sequences and of the best quarter on all; the best replaces the parent if it is better. So what
 * is found is at most as far from the dense model, on these sequences, as what it began with. Masks are those of Wanda with statistics, or
 * by magnitude; weights that stay are not fitted meanwhile.
 * The model, in WEIGHTS_F32, is changed meanwhile and is as it was in the end. Memory: another copy of its layers; positions *
 * (vocabulary + (layers + 2) * hidden) * 4 bytes. A function of the seed. ERR_DATA: it does not predict the next token.
 */
struct prune_search {
    struct model *model;
    struct grad_tape *scratch; /* that does not record */
    const struct model_input *in;
    const struct stats *stats; /* NULL, and no squares: by magnitude */
    struct prune_importance squares;
    double share;
    const struct prune_allocation
        *begin; /* beside the uniform share, the better of which is the first parent; NULL: none */
    uint64_t generations, offspring, seed; /* offspring at least 1 */
    model_layer_fn *progress;              /* told of generations; may be NULL */
    void *progress_ctx;
};
int prune_allocate_search(const struct prune_search *o, struct prune_allocation *out, struct err *e) MUST_CHECK;

enum prune_score {
    PRUNE_BY_WEIGHTS, /* L2 norm of the coupled weights of a channel or head group */
    PRUNE_BY_STATS,   /* activations (Minitron) for channels and heads, block influence (ShortGPT) for layers */
    /* Sums of |w dL/dw| over the weights of a channel or head (stats with gradients; Ma et al. 2023, "LLM-Pruner") */
    PRUNE_BY_TAYLOR,
    /* The variance of what o or down reads there times the squared norm of its column (stats; An et al. 2023, "FLAP", arXiv 2312.11983, WIFV),
     * summed over the columns of a head */
    PRUNE_BY_FLUCTUATION,
    /* With data and reconstruct: the squared error that is left when the others have made up for it (optimal brain surgeon; Ling et al.
     * 2024, "SlimGPT", arXiv 2412.18110), channels one after another. */
    PRUNE_BY_COST,
};

/* "weights"; "auto" (and any other): the last of the list that there is what it needs for. */
enum prune_score prune_score_parse(const char *name, bool stats, bool reconstruct);

/* How layers are ranked, when a number of them stays. */
enum prune_layer_score {
    PRUNE_LAYERS_BY_INFLUENCE, /* block influence, each alone (Men et al. 2024, "ShortGPT") */
    PRUNE_LAYERS_BY_ANGLE, /* a run of neighbours: that of least angle from what comes into it to what leaves it, at the last position
                                  of each sequence (Gromov et al. 2024, arXiv 2403.17887) */
};

/*
 * Greedy by true divergence: n times that layer goes without which the divergence from the whole model (as judge_reference_compare's) is
 * least, given those that went before. layers [n] in the order in which they go, kl [n]. Lazily: of a layer that has been tried, what it
 * added to the divergence then is taken for the least that it will add. So after the first time, when all are tried, those that added least
 * are tried again, the cheapest first, until the next one's old cost is no less than the best new one, and at most 8. So passes over layers grow with the square of their
 * number: n_layers^2 / 2 + 8 n n_layers at most, and as many heads as tries. What comes into each layer is kept: memory is
 * positions * (vocabulary + (layers + 2) * hidden) * 4 bytes.
 */
struct prune_divergence {
    struct model *model;
    struct grad_tape *scratch; /* that does not record */
    const struct model_input *in;
    model_layer_fn *progress; /* told of layers that go; may be NULL */
    void *progress_ctx;
};
int prune_layers_by_divergence(const struct prune_divergence *o, uint32_t n, uint32_t *layers, double *kl,
                               struct err *e) MUST_CHECK;

/* What stays of a layer: key/value heads, query heads of each of these, feed-forward channels. groups 0: the layer goes. */
struct prune_shape {
    uint32_t groups, each, ffn;
};

struct prune_options;

/*
 * Shapes for a target (options->target_*), to be measured one after another, each chosen by the measurements before it. The first are the
 * best by the sums of |w dL/dw|, and the best if heads counted twice as much, or all but layers, or all but channels. From then on the score is fitted to
 * what was measured: how dear each axis is, and the power of the share that goes; and the next is the best by that of those not measured yet.
 */
struct prune_candidates;
/* `most` of them at most. The options are the caller's and outlive it, the model need not. ERR_USAGE, ERR_DATA: as of prune_stream. */
int prune_candidates_new(struct prune_candidates **out, const struct model *m, const struct prune_options *o,
                         size_t most, struct err *e) MUST_CHECK;
/* The next, [n_layers], as long as the candidates live; NULL: there is no other. Each but the last has been judged. ERR_USAGE: none is that
 * small. */
int prune_candidates_next(struct prune_candidates *c, const struct prune_shape **shape, struct err *e) MUST_CHECK;
/* What the last came to. */
void prune_candidates_judged(struct prune_candidates *c, double divergence);
/* That of least divergence; NULL: none has been judged. */
const struct prune_shape *prune_candidates_best(const struct prune_candidates *c);
void prune_candidates_free(struct prune_candidates *c); /* NULL is fine */

/* "3,10-14": the numbers of layers into out [MODEL_MAX_LAYERS]. ERR_USAGE. */
int prune_layers_parse(const char *text, uint32_t *out, size_t *n, struct err *e) MUST_CHECK;

/* How often each token occurs in a token stream. */
struct prune_tokens {
    uint64_t *count; /* [n] */
    uint32_t n;      /* size of the vocabulary */
    char vocab[DIGEST_TEXT_SIZE];
    struct arena memory;
};
/* Reads a tokens or knowledge stream to its end; all of its segments must be of one vocabulary. Begin with {0};
 * prune_tokens_release. */
int prune_tokens_count(struct prune_tokens *t, struct stream_reader *r, struct err *e) MUST_CHECK;
void prune_tokens_release(struct prune_tokens *t);

/* How much stays: a number, or a share of the total. Both 0: all. */
struct prune_amount {
    uint32_t n;
    double share; /* in (0, 1] */
};

/* A matrix that single weights went from. */
struct prune_tensor_report {
    const char *name; /* in the pruned model */
    uint64_t elems, zeros;
    uint32_t rank; /* of the factors that it became; 0: it is whole */
    /* With data and Gram matrices: the squared error of the matrix's outputs on the inputs that it has now, over their sum of squares */
    bool has_error;
    double output_error;
};

struct prune_options {
    /* Single weights, of what the options below leave: of the matrices in layers, but for what rules say of some. */
    struct prune_sparsity sparsity;
    const struct prune_allocation *allocation; /* shares of the matrices in layers, instead of sparsity; NULL: none */
    bool prune_head;                           /* also of the matrices outside layers: embedding and head */
    const struct prune_rule *rules;            /* a later one wins; ERR_USAGE when one matches no matrix that stays */
    size_t n_rules;
    /* The text of a plan (prune_dry_run) instead of sparsity, rules, layers, ffn, experts and kv_heads, and its name for messages. NULL:
     * none. */
    const char *plan, *plan_name;
    enum prune_method method; /* PRUNE_WANDA needs stats, unless it is */
    bool calibrated;          /* with data: prune_layerwise */
    /* Low-rank factors are multiplied first, and the matrices are whole again. ERR_USAGE: there are none. Not with a plan or data. */
    bool merge;
    /* With data. reconstruct: the weights that stay become those of least squares within their mask, so that each matrix gives, of
     * what comes in after all pruning before it, what it gave of what came in before any: attention and feed-forward part one after
     * the other (Wagner et al. 2025, arXiv 2510.14444, reconstruct the two apart, by gradient descent). */
    bool reconstruct;
    double damp; /* added to the diagonal of Gram matrices, as a share of its mean: 0.01 */
    /* What is a tensor called in GGUF (lib/formats)? False: nothing. NULL: no rule asks. */
    bool (*foreign_name)(const struct model_config *, struct model_slot, char out[TENSOR_MAX_NAME + 1]);
    /*
     * Instead of layers, heads and channels: what the model comes to, in parameters, as a number or as a share of them, as how many times
     * fewer products of weights a position takes, or in bytes. All layers get one shape, that whose parts that go count least together, by
     * the sums of |w dL/dw| (needs stats with gradients); widths are multiples of 256, 64 or 32. The vocabulary that `tokens` or `padding` leave
     * counts. All 0: none.
     */
    uint64_t target_params, target_size;
    double target_share, target_speedup;
    /* Of target_size: bytes of the tensors of a model of this shape. With bytes_ctx. */
    int (*bytes)(void *ctx, const struct model_config *after, uint64_t *bytes, struct err *e);
    void *bytes_ctx;
    bool
        target_uneven; /* each layer gets its own shape, one step after another that loses least for what it saves; loads is not asked */
    const struct prune_shape
        *target_shape; /* [n_layers] for the target, chosen already (prune_candidates_best); NULL: none */
    /* Will programs load this shape, if they load the one before? NULL: nobody asks. Of warn_ctx. */
    bool (*loads)(void *ctx, const struct model_config *before, const struct model_config *after);
    struct prune_amount layers; /* that stay, by layer_score (needs stats) ... */
    enum prune_layer_score layer_score;
    const uint32_t *drop_layers; /* ... or exactly which go; NULL: none */
    size_t n_drop_layers;
    /* Feed-forward channels that stay in each layer, and in each expert of one that has experts; shares become multiples of
     * 256 or 32. */
    struct prune_amount ffn;
    /* Experts that stay in each layer that has some (needs stats): those that add most to the positions that take them. Where fewer
     * stay than a position took, it takes all of them. */
    struct prune_amount experts;
    /* Channels of the residual stream that stay, in all layers (needs stats); shares become multiples of 256 or 32. */
    struct prune_amount hidden;
    struct prune_amount kv_heads; /* key/value heads that stay in each layer, with their query heads */
    struct prune_amount
        heads; /* query heads that stay in each layer, as many of each key/value head: a multiple of these */
    const struct prune_tokens *tokens; /* the vocabulary is cut to these; NULL: left alone, but for ... */
    bool padding;                      /* ... rows of embedding and head after the vocabulary's last token, which go */
    uint64_t vocab_min_count;          /* how often a token must occur among them to stay */
    enum prune_score score;
    /* The biases of o and down take over what the inputs that go gave in the mean (needs stats; FLAP's bias compensation). ERR_USAGE where
     * the model has no such bias. Not with data: reconstruct fits them. */
    bool compensate;
    const struct stats *stats;
    struct prune_importance squares; /* without stats: for Wanda */
    model_warn_fn *warn;             /* told what the new shape implies, before anything is written; may be NULL */
    /* ... and given the shape, for checks outside this module (which programs will load it); may be NULL */
    void (*shape)(void *ctx, const struct model_config *before, const struct model_config *after);
    void *warn_ctx;
    /* Told of each matrix that single weights went from, or that was fitted for what others lost; may be NULL */
    int (*sparse)(void *ctx, const struct prune_tensor_report *t, struct err *e);
    void *sparse_ctx;
};
struct prune_report {
    struct model_config before, after; /* layers point into `memory` */
    uint64_t parameters_before, parameters_after;
    uint64_t zeros, matrix_weights; /* in matrices that single weights went from: zeros of all weights */
    uint64_t n_factored;            /* matrices that became low-rank factors */
    uint32_t *kept_layers;          /* [after.n_layers] numbers in the old model */
    uint32_t **kept_experts;        /* [after.n_layers][experts] the same; NULL: none was to go */
    struct arena memory;
};
/* The layers that went, by their old numbers: "2, 5-8", "" if all stayed; what does not fit ends in "...". Returns out. */
#define PRUNE_LAYERS_TEXT 256
char *prune_layers_text(const struct prune_report *r, char out[PRUNE_LAYERS_TEXT]);

/* Reads a model stream, writes the pruned one. Each tensor keeps its type; a quantized one becomes f32 only where columns go or single
 * weights become zero, since other numbers share its blocks then. ERR_USAGE / ERR_DATA when what is asked for cannot be (more than there is, statistics
 * missing or of another model), before anything is written. `report` begins with {0}; prune_report_release. */
int prune_stream(struct stream_reader *in, struct stream_writer *out, const struct prune_options *o,
                 struct prune_report *report, struct err *e) MUST_CHECK;

/*
 * Layer by layer, with data: what comes into a matrix has gone through all that was pruned before it. Quantized tensors become f32, all of
 * them. Memory: a layer, states of the positions (thrice to reconstruct, and the inputs of one matrix), the second moments of one
 * matrix's inputs.
 *
 * Single weights of the matrices in layers, in the order q, k, v; o; gate, up; down; or structure: layers, heads and channels, to
 * reconstruct; or the width of the residual stream, to reconstruct. Two of these at once are ERR_USAGE, as are experts. Tokens that go (not
 * with a narrower stream) are there as long as the data goes through the model.
 *
 * Of structure, o and down of each layer are fitted, from the first that something went from on: their weights, and their bias where there
 * is one, become those of least squares, so that the residual stream is again what it was in the model before. Where a norm stands between
 * the two, they give what they gave.
 *
 * Of a narrower stream, q, k, v, gate and up are fitted to give of the channels that stay what they gave, o and down to what those are short
 * of, and the head to the logits that it gave, or where it is the embedding the gain before it.
 */
struct prune_calibration {
    struct model_layerwise *model; /* in WEIGHTS_F32 */
    struct grad_tape *scratch;     /* that does not record */
    const struct model_input *in;  /* [n] */
    size_t n;
    model_layer_fn *progress; /* may be NULL */
    void *progress_ctx;
};
/* The amount as a number out of `total`; shares are rounded to the nearest whole number, at least 1. */
uint32_t prune_amount_of(const struct prune_amount *a, uint32_t total);

/* As prune_stream; and ERR_DATA where a Gram matrix does not factor with 10,000 times the damping, or has no finite sums. */
int prune_layerwise(const struct prune_calibration *c, struct stream_writer *out, const struct prune_options *o,
                    struct prune_report *report, struct err *e) MUST_CHECK;

/* Reads a model stream without its data and appends what prune_stream or prune_layerwise would do, as text for o->plan; fills in the
 * report but for zeros. */
int prune_dry_run(struct stream_reader *in, const struct prune_options *o, struct buf *plan,
                  struct prune_report *report, struct err *e) MUST_CHECK;

void prune_report_release(struct prune_report *r);
/* For --report: adds the members of the report to an object, and a tensor's object to an array. ERR_IO when memory is out. */
int prune_report_put(const struct prune_report *r, cJSON *object, struct err *e) MUST_CHECK;
int prune_tensor_report_put(const struct prune_tensor_report *t, cJSON *array, struct err *e) MUST_CHECK;

#endif
