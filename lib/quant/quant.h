/*
 * quant: a model stream through GGUF's quantization grids, one tensor at a time. First a plan, which says the type of each
 * matrix: by a mixture of llama.cpp's, by rules, or from a file; then one pass that carries it out. Round to nearest with
 * GGUF's own scale search, optionally weighted by the importance that calibration saw (mean x^2 of each input channel).
 */
#ifndef RILL_QUANT_H
#define RILL_QUANT_H

#include "lib/base/base.h"
#include "lib/model/model.h"
#include "lib/stats/stats.h"

/* What "--type" names: a file type of llama-quantize, which gives each matrix the same type there and here. */
struct quant_mixture; /* mixtures.c */
struct quant_type {
    const char *name; /* "q4_k_m" */
    enum dtype base;  /* of the matrices that no rule of the mixture gives another */
    const char *summary;
    const struct quant_mixture *mixture; /* NULL: f32, f16 and bf16 are the same everywhere */
};
/* Names in any case; q3_k, q4_k and q5_k are short for q3_k_m ..., as in llama-quantize. ERR_USAGE names the types there
 * are. quant_type_at: for help; NULL past the end. */
int quant_type_parse(const char *name, const struct quant_type **out, struct err *e) MUST_CHECK;
const struct quant_type *quant_type_at(size_t i);
const char *quant_type_names(void); /* "q8_0|q6_k|...", for completion. Static */
/* The type of one matrix by its name ("q4_k"), in any case: of those that tensor_from_f32 makes. ERR_USAGE. */
int quant_dtype_parse(const char *name, unsigned *out, struct err *e) MUST_CHECK;

/* "REGEX=TYPE": for the tensors whose name, Rill's or GGUF's, matches. */
struct quant_rule {
    struct model_pattern pattern; /* within the text that was parsed */
    unsigned dtype;
};
int quant_rule_parse(const char *text, struct quant_rule *out, struct err *e) MUST_CHECK; /* ERR_USAGE */

struct quant_options {
    const struct quant_type *type; /* NULL with a plan */
    bool pure;                     /* type's base everywhere */
    unsigned head_type;            /* dtype of the output matrix (the tied embedding), 0: as the type says */
    unsigned embed_type;           /* dtype of an untied embedding, 0: as the type says; ERR_USAGE when there is none */
    const struct quant_rule *rules; /* a later one wins; ERR_USAGE when one matches no matrix */
    size_t n_rules;
    const char *plan, *plan_name; /* the text of a plan instead of all of these, and its name for messages */
    bool planned_by_stats;        /* the plan was made with the statistics: they need change nothing else */
    bool strict;                  /* refuse instead of falling back */
    bool grow;                    /* let what is quantized already take more bits */
    /* Where importance comes from: statistics, or somebody who writes that of a matrix's columns into out [cols] (*found: it
     * is there). Both NULL: from nowhere. ERR_USAGE when no tensor gets a type that it changes, ERR_DATA when it is of another
     * model. */
    const struct stats *stats;
    int (*importance)(void *ctx, const struct model_config *c, struct model_slot s, uint64_t cols, float *out,
                      bool *found, struct err *e);
    void *importance_ctx;
    const cJSON *origin; /* the caller's: what META says of it (MODEL_IMATRIX_META) instead of what is there; or NULL */
    const char *cache; /* a folder of quant_cache_open, in which what is quantized is kept and looked for; NULL: none */
    bool clip; /* ranges of groups are cut off where that is better by the importance, as AWQ does (quantize_stream) */
    bool hqq;  /* after rounding, mins and scales by half-quadratic steps, which need no data (quantize_stream) */
    bool
        calibrated; /* the method sees data (quantize_layerwise): counts as importance for the matrices inside layers */
    /* What GGUF will make of it (lib/formats). NULL: as it is here. Will q, k and v be one tensor, of one type? */
    bool (*fuses_qkv)(const struct model_config *);
    /* What is the tensor called there? False: nothing. `out` has TENSOR_MAX_NAME + 1 bytes. */
    bool (*foreign_name)(const struct model_config *, struct model_slot, char *out);
};

/* ---- plans (plan.c, plan_text.c) ------------------------------------------------------------------------------ */

struct quant_choice {
    enum dtype wanted, to; /* wanted: before the fallback */
    bool named;            /* by an option, a rule or a plan's line, not by the mixture */
    char why[96];          /* for people */
};
struct quant_plan {
    struct quant_choice *choices; /* [model_slot_count], stream order; norms and biases stay f32 */
    size_t n;
};
/* By o->type and its company, or o->plan. ERR_DATA: a plan for another model, an unknown type, rows that its blocks do not
 * divide; with o->strict, a fallback or a type that needs_importance without any. */
int quant_plan_make(struct quant_plan *p, const struct model_config *c, const struct quant_options *o,
                    struct err *e) MUST_CHECK;
void quant_plan_release(struct quant_plan *p);
/* Appends a line for each matrix: name, shape, type, bytes, bits per weight, "#" and why. What o->plan takes. */
int quant_plan_write(const struct quant_plan *p, const struct model_config *c, struct buf *out,
                     struct err *e) MUST_CHECK;

/* The type that its rows can have: `wanted`, or where the row is not a whole number of blocks, as llama.cpp falls back
 * (Q4_K -> Q5_0, Q5_K -> Q5_1, Q6_K -> Q8_0, IQ4_XS -> IQ4_NL ...; where 32 does not divide it either, F16). */
enum dtype quant_fallback(enum dtype wanted, uint64_t row_elems);

/* ---- plans for a budget (budget.c, README.md) ------------------------------------------------------------------------ */

/*
 * A search that goes on from the plan of least expected error, for errors of different matrices do not add up: one matrix gets a type of
 * more or fewer bytes, others give up what it takes or get what is left, so that the budget holds (level switches, Sieberling et al.
 * 2024, "EvoPress", arXiv 2410.14649). Of some such plans that of least expected divergence is judged by the mean Kullback-Leibler
 * divergence of the next token from the original's, on a quarter of the sequences and where it is smaller there on all; what is
 * better on all replaces the plan. So what is found is at most as far from the original, on these sequences, as what it began
 * with. What is expected of a matrix is learned from the plans that were judged, and every eighth is the best plan by that.
 * Blocks are those of o's method to nearest (o->hqq, o->clip); with o->calibrated, whose blocks would take a run of it for each plan, with
 * as much less error in each value as error feedback leaves of its squares. A function of the seed.
 * The model is left with the values of what was found. Memory: the matrices as they are stored, their blocks in each type that was tried,
 * and lib/judge's positions * (vocabulary + (layers + 2) * hidden) * 4 bytes. ERR_DATA: it does not predict the next token.
 */
struct quant_search {
    struct model *model;       /* that of the stream, in WEIGHTS_F32 */
    struct grad_tape *scratch; /* that does not record */
    const struct model_input *in;
    uint64_t steps, seed;     /* plans that are judged, at most QUANT_MOST_STEPS */
    model_layer_fn *progress; /* told of steps; may be NULL */
    void *progress_ctx;
};
#define QUANT_MOST_STEPS 1000000
struct quant_search_result {
    double before, after; /* nats a position; infinite: too far to say */
    uint64_t tried, accepted, positions;
};

struct quant_budget {
    /* One of the two; of all tensors as they are written, norms and biases in f32 included, without header and vocabulary. */
    uint64_t bytes;
    double bits_per_weight;
    const unsigned *types; /* dtypes to choose from; NULL: QUANT_BUDGET_TYPES */
    size_t n_types;
    /* quant_fisher_traces: errors are the divergence they are expected to cause, in nats a position. NULL: errors of the outputs relative
     * to these, every matrix counting the same. */
    const double *traces;
    const char *cache;                 /* a folder of quant_cache_open, in which measured errors are kept; NULL: none */
    const struct quant_search *search; /* NULL: none */
};
#define QUANT_BUDGET_TYPES                                                                                             \
    "iq2_xxs, iq2_xs, iq2_s, q2_k, iq3_xxs, iq3_s, q3_k, iq4_xs, iq4_nl, q4_k, q4_0, q4_1, q5_k, q5_0, q5_1, q6_k, "   \
    "q8_0"
/* "q4_k,q6_k", blanks after commas or not, no type twice. ERR_USAGE. The caller frees *out. */
int quant_types_parse(const char *list, unsigned **out, size_t *n, struct err *e) MUST_CHECK;

struct quant_budget_result {
    uint64_t budget, bytes, elems;
    double error, bound;               /* predicted, summed over matrices; no choice within the budget is below bound */
    struct quant_search_result search; /* of b->search */
    uint64_t blocked; /* matrices for which types that need importance were left out, because there is none */
};
/*
 * Reads a model stream once, one tensor in memory, measures what each type does to each matrix by rounding to nearest (weighted by
 * o->stats or o->importance, where they know the matrix), and appends the plan of least error within the budget: what
 * o->plan takes. Where GGUF stores matrices as one tensor (experts; q, k and v where o->fuses_qkv), they get one type.
 * Types that rules, o->head_type and o->embed_type name are as given. Rows that a type's blocks do not divide have its fallback for a candidate, with o->strict not; tensors that are quantized
 * already stay or get smaller, unless o->grow. ERR_USAGE: the budget is too small (says the smallest that is not), or there is
 * nothing to choose from. ERR_DATA: a weight is no number, statistics of another model.
 */
int quant_budget_plan(struct stream_reader *in, const struct quant_options *o, const struct quant_budget *b,
                      struct buf *plan, struct quant_budget_result *r, struct err *e) MUST_CHECK;

/*
 * The mean over positions of the squared norm of d log p(y) / dW, with y drawn from the model's own distribution, for each
 * tensor: the trace of its block of the Fisher information, out [model_slot_count]. To second order the divergence of a changed model
 * is half of dw^T F dw. Scores of different positions are uncorrelated (given the text each has mean zero), so that the
 * square of a sequence's gradient estimates the sum of its positions' squares. The model is in WEIGHTS_F32. ERR_DATA: its
 * logits are not of the next token.
 */
int quant_fisher_traces(struct model *m, const struct model_input *in, uint64_t seed, double *out,
                        struct err *e) MUST_CHECK;

/* ---- carrying out ----------------------------------------------------------------------------------------------- */

/* The folder of a cache, made if it is missing. ERR_IO. Files in it are named by the digest of all that their contents come from: a run that
 * was interrupted, or that differs in some tensors, takes from there what is the same. */
int quant_cache_open(const char *folder, struct err *e) MUST_CHECK;

struct quant_tensor_report {
    const char *name;
    enum dtype from, wanted, to;
    bool fell_back; /* the row is not a whole number of `wanted`'s blocks */
    bool informed;  /* the method looked at data */
    bool blind;     /* `to` needs importance, and there was none */
    bool recalled;  /* from the cache */
    bool unweighed; /* its errors would have been weighed, but of this matrix nothing was known */
    double damp;    /* of the second moments of its inputs, as a share, where more was needed than asked for; else 0 */
    uint64_t elems, bytes;
    double rmse, relative; /* root mean square error; the same over the root mean square of the weights */
    /* Of a method that sees data: the sum of squares of the error in the matrix's outputs, over all positions, as rounding to nearest
     * leaves it, and as the method does. 0: the matrix was rounded to nearest. */
    double output_error_nearest, output_error;
    /* Of learned rounding, in all matrices of half a layer the same: the squared error in what comes out of the half, relative to that,
     * on sequences that are held out, before and after. 0: it was not learned. */
    double block_error_before, block_error;
};
typedef int quant_report_fn(void *ctx, const struct quant_tensor_report *t, struct err *e);

bool quant_report_put(cJSON *object, const struct quant_tensor_report *t); /* its members; false: memory is out */

/*
 * x [rows][cols] to nearest in type `to`, row by row, into packed; *squared_error is the sum of squares of what it left.
 * importance [cols], of the columns' errors, may be NULL. scratch [parallel_threads()][cols]. ERR_DATA: a weight that the type cannot
 * hold, naming its row.
 */
int quant_round_rows(enum dtype to, const float *x, uint64_t rows, uint64_t cols, const float *importance,
                     float *scratch, void *packed, double *squared_error, struct err *e) MUST_CHECK;

/* What there is to say of all tensors. Begin with {0}. */
struct quant_summary {
    char first_unweighed[TENSOR_MAX_NAME + 1], first_damped[TENSOR_MAX_NAME + 1]; /* "": none */
    uint64_t damped;                          /* tensors that needed more damping than was asked for */
    double most_damp;                         /* the largest share that was added */
    char first_fallback[TENSOR_MAX_NAME + 1]; /* the first tensor that fell back; "": none */
    enum dtype first_fallback_to;
    unsigned
        n_requantized[64]; /* tensors that were quantized already and are now in another type, by dtype_at's index */
    char requantized[256]; /* the same as text: "2 of q8_0, 5 of q4_k"; "": none */
};
void quant_summary_add(struct quant_summary *s, const struct quant_tensor_report *t);

/* What quantize_layerwise spends its time on (phases.c). */
enum quant_phase {
    QUANT_PASSES,   /* the data through the layers; reading and writing */
    QUANT_MOMENTS,  /* sums over what comes into them */
    QUANT_FACTORS,  /* of second moments */
    QUANT_TARGETS,  /* which values are wanted */
    QUANT_NEAREST,  /* rounding to nearest, where scales come from */
    QUANT_FEEDBACK, /* GPTQ proper */
    QUANT_DESCENT,  /* over codes and scales */
    QUANT_LEARNING, /* of codes and scales by gradients */
    QUANT_PHASES
};
const char *quant_phase_name(enum quant_phase p);

struct quant_totals {
    uint64_t elems, bytes, bytes_before, fell_back, blind, unweighed, recalled;
    uint64_t refused;             /* of a dry run: tensors at which quantize_stream would end, see below */
    double seconds[QUANT_PHASES]; /* of processor time of all threads, by quantize_layerwise; else 0 */
};

/* Reads a model stream, writes it quantized. Memory: a few copies of the largest tensor. What the plan cannot be is ERR_DATA
 * or ERR_USAGE before anything is written. A weight that the type cannot hold is ERR_DATA when it is met. `report`
 * (may be NULL) sees each tensor.
 *
 * A tensor that is quantized already gets no more bits than it has, unless o->grow: nothing is won by it. Where a
 * mixture alone would raise it, it stays as it is; else ERR_USAGE when it is met. To f32, f16 and bf16 it may go: that
 * undoes the storage, and is what was asked for. */
int quantize_stream(struct stream_reader *in, struct stream_writer *out, const struct quant_options *o,
                    quant_report_fn *report, void *ctx, struct quant_totals *totals, struct err *e) MUST_CHECK;

/* The same pass without its arithmetic: appends the plan as quantize_stream would carry it out, fills in totals. What would be
 * refused for growing is in the plan with that reason, and counted. */
int quantize_dry_run(struct stream_reader *in, const struct quant_options *o, struct buf *plan,
                     struct quant_totals *totals, struct err *e) MUST_CHECK;

/* ---- with data, layer by layer (sequential.c) ------------------------------------------------------------------------ */

/*
 * GPTQ on GGUF's grids: each matrix of a layer with the second moments of its inputs, which come out of the layers before as they are
 * stored, in the order q, k, v; o; gate, up; down. Scales are those of rounding to nearest, weighted by the diagonal; codes by error
 * feedback; then both by descent (lib/quant/README.md). Never worse than rounding to nearest, row by row, in the error of the
 * outputs over this data.
 * With `passes`, both go on by gradients of the error that attention, and the feed-forward part, make in what comes out of them, on the
 * grids as they are stored; what is best on an eighth of the sequences, which is held out, is kept. Memory then: a tape over some 1024
 * positions, four times the weights of half a layer, and the moments of all its inputs.
 * To nearest go: embedding and head (weighted by o->stats, if given), experts (weighted by what they see), and types whose codes
 * are not of single weights (iq2_*, iq3_*, mxfp4), weighted by the diagonal.
 */
struct quant_calibration {
    struct model_layerwise *model; /* in WEIGHTS_F32 */
    struct grad_tape *scratch;     /* that does not record */
    const struct model_input *in;  /* [n] */
    size_t n;
    double damp;    /* of the diagonal's mean: 0.01 */
    bool act_order; /* columns by descending diagonal */
    bool
        asymmetric; /* towards the outputs that the original model has here: costs another run of each layer over some positions, */
    size_t
        dense_positions; /* so many or fewer, spread evenly, and memory for all that comes into the layer's matrices then; learning
                            takes all positions */
    /* Told of each tensor that has its codes, and after each step of learning: how many have, and what goes on. NULL: nobody */
    void (*progress)(void *ctx, uint64_t done, const char *what);
    void *progress_ctx;
    unsigned sweeps; /* of descent, at most */
    unsigned
        passes; /* of learned rounding over the data, in each half of a layer; 0: none. Memory: twice more the states of the data */
};
/* As quantize_stream, and ERR_DATA where a matrix of second moments does not factor with 10,000 times the damping. */
int quantize_layerwise(const struct quant_calibration *c, struct stream_writer *out, const struct quant_options *o,
                       quant_report_fn *report, void *ctx, struct quant_totals *totals, struct err *e) MUST_CHECK;

#endif
