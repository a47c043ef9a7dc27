/*
 * quant: quantizes a model stream to GGUF types, one tensor at a time. A plan first assigns a type to each matrix, from
 * one of llama.cpp's mixtures, from rules or from a file; one pass then carries it out. Rounds to nearest with GGUF's
 * own scale search, optionally weighted by importance from calibration (mean x^2 of each input channel).
 */
#ifndef RILL_QUANT_H
#define RILL_QUANT_H

#include "lib/base/base.h"
#include "lib/model/model.h"
#include "lib/stats/stats.h"

/* A value of --type: a file type of llama-quantize, giving each matrix the type that llama-quantize gives it. */
struct quant_mixture; /* mixtures.c */
struct quant_type {
    const char *name; /* "q4_k_m" */
    enum dtype base;  /* type of matrices that no rule of the mixture matches */
    const char *summary;
    const struct quant_mixture *mixture; /* NULL: f32, f16 and bf16 apply to all matrices */
};
/* Case-insensitive; q3_k, q4_k and q5_k stand for q3_k_m etc., as in llama-quantize. ERR_USAGE lists the known types.
 * quant_type_at enumerates the types, for help; NULL past the end. */
int quant_type_parse(const char *name, const struct quant_type **out, struct err *e) MUST_CHECK;
const struct quant_type *quant_type_at(size_t i);
const char *quant_type_names(void); /* "q8_0|q6_k|...", for completion; static */
/* Parses the type of a single matrix ("q4_k"), case-insensitive: one that tensor_from_f32 can write. ERR_USAGE. */
int quant_dtype_parse(const char *name, unsigned *out, struct err *e) MUST_CHECK;

/* "REGEX=TYPE": applies to tensors whose Rill or GGUF name matches. */
struct quant_rule {
    struct model_pattern pattern; /* within the text that was parsed */
    unsigned dtype;
};
int quant_rule_parse(const char *text, struct quant_rule *out, struct err *e) MUST_CHECK; /* ERR_USAGE */

struct quant_options {
    const struct quant_type *type;  /* NULL with a plan */
    bool pure;                      /* the base of the type for every matrix */
    unsigned head_type;             /* dtype of the output matrix (or tied embedding), 0: by the type */
    unsigned embed_type;            /* dtype of an untied embedding, 0: by the type; ERR_USAGE if tied */
    const struct quant_rule *rules; /* later rules win; ERR_USAGE if one matches no matrix */
    size_t n_rules;
    const char *plan, *plan_name; /* text of a plan, replacing all of the above, and its name for messages */
    bool planned_by_stats;        /* the plan was made with the statistics, so it is fine if they change nothing else */
    bool strict;                  /* fail instead of falling back to another type */
    bool grow;                    /* allow quantized tensors to get more bits */
    /* Source of importance: statistics, or a callback that writes the importance of a matrix's columns to out [cols]
     * and sets *found if it is known. Both NULL: none. ERR_USAGE if no tensor gets a type that importance affects,
     * ERR_DATA if it is of another model. */
    const struct stats *stats;
    int (*importance)(void *ctx, const struct model_config *c, struct model_slot s, uint64_t cols, float *out,
                      bool *found, struct err *e);
    void *importance_ctx;
    const cJSON *origin; /* replaces MODEL_IMATRIX_META in META; owned by the caller; NULL: keeps META's */
    const char *cache;   /* folder from quant_cache_open, to reuse quantized tensors; NULL: none */
    bool clip;           /* clip ranges of groups where that lowers the weighted error, as AWQ (quantize_stream) */
    bool hqq;        /* refine mins and scales by half-quadratic steps after rounding, without data (quantize_stream) */
    bool calibrated; /* the method uses data (quantize_layerwise), which counts as importance inside layers */
    bool fed_by_stats; /* error feedback in quantize_stream, for matrices whose inputs' second moments are in stats */
    struct quant_feedback {
        double damp;     /* as a share of the diagonal's mean; default 0.01 */
        bool act_order;  /* process columns by descending diagonal */
        unsigned sweeps; /* of descent after the feedback, at most */
    } feedback;          /* with either of these two */
    /* Properties of the GGUF file (lib/formats), NULL: none apply. Whether q, k and v will be one tensor of one
     * type. */
    bool (*fuses_qkv)(const struct model_config *);
    /* The GGUF name of a tensor, into out [TENSOR_MAX_NAME + 1]; false: it has none. */
    bool (*foreign_name)(const struct model_config *, struct model_slot, char *out);
};

/* ---- plans (plan.c, plan_text.c) ------------------------------------------------------------------------------ */

struct quant_choice {
    enum dtype wanted, to; /* wanted: before the fallback */
    bool named;            /* set by an option, a rule or a plan's line, rather than by the mixture */
    char why[96];          /* human-readable reason */
};
struct quant_plan {
    struct quant_choice *choices; /* [model_slot_count], stream order; norms and biases stay f32 */
    size_t n;
};
/* Makes a plan from o->type and the options around it, or from o->plan. Release with quant_plan_release. ERR_DATA: a
 * plan for another model, an unknown type, rows not divisible by its blocks; with o->strict also a fallback, or a type
 * that needs importance without any. */
int quant_plan_make(struct quant_plan *p, const struct model_config *c, const struct quant_options *o,
                    struct err *e) MUST_CHECK;
void quant_plan_release(struct quant_plan *p);
/* Appends one line per matrix: name, shape, type, bytes, bits per weight, "#" and the reason. The format of o->plan. */
int quant_plan_write(const struct quant_plan *p, const struct model_config *c, struct buf *out,
                     struct err *e) MUST_CHECK;

/* The type for rows of this length: `wanted`, or llama.cpp's fallback if the row is not a whole number of blocks (Q4_K
 * -> Q5_0, Q5_K -> Q5_1, Q6_K -> Q8_0, IQ4_XS -> IQ4_NL ...; F16 if 32 does not divide it either). */
enum dtype quant_fallback(enum dtype wanted, uint64_t row_elems);

/* ---- plans for a budget (budget.c, README.md) -------------------------------------------------------------------- */

/*
 * Improves the plan of least expected error by search, since errors of different matrices do not simply add up. A move
 * changes the type of one matrix; others shrink to pay for it or use what it frees, so that the budget holds (level
 * switches, Sieberling et al. 2024, "EvoPress", arXiv 2410.14649). Of several random moves the one with the least
 * expected divergence is judged by the mean Kullback-Leibler divergence of the next-token distribution from the
 * original's: on a quarter of the sequences, then, if better there, on all of them. A move that is better on all
 * replaces the plan, so on these sequences the result never diverges more than the starting point. The expected effect
 * of each matrix is learned from the plans judged so far, and every eighth candidate is the best plan under that
 * estimate. Blocks are those of o's data-free method (o->hqq, o->clip). With o->calibrated, making real blocks would
 * take a full run per plan, so the error of each value is scaled down by what error feedback is expected to leave
 * instead. Deterministic for a given seed. Leaves the model with the values of the result. Memory: the matrices as
 * stored, their blocks in each type tried, and lib/judge's positions * (vocabulary + (layers + 2) * hidden) * 4 bytes.
 * ERR_DATA: the model does not predict the next token.
 */
struct quant_search {
    struct model *model;       /* the model of the stream, in WEIGHTS_F32 */
    struct grad_tape *scratch; /* a tape that does not record */
    const struct model_input *in;
    uint64_t steps, seed;     /* plans to judge, at most QUANT_MOST_STEPS */
    model_layer_fn *progress; /* called after each step; may be NULL */
    void *progress_ctx;
};
#define QUANT_MOST_STEPS 1000000
struct quant_search_result {
    double before, after; /* nats per position; INFINITY if not finite */
    uint64_t tried, accepted, positions;
};

struct quant_budget {
    /* Exactly one is set. Counts all tensors as written, including norms and biases in f32, without header and
     * vocabulary. */
    uint64_t bytes;
    double bits_per_weight;
    const unsigned *types; /* dtypes to choose from; NULL: QUANT_BUDGET_TYPES */
    size_t n_types;
    /* From quant_fisher_traces: errors are expected divergences in nats per position. NULL: errors are output errors
     * relative to the outputs, all matrices weighted equally. */
    const double *traces;
    const char *cache;                 /* folder from quant_cache_open for reusing measured errors; NULL: none */
    const struct quant_search *search; /* NULL: none */
};
#define QUANT_BUDGET_TYPES                                                                                             \
    "iq2_xxs, iq2_xs, iq2_s, q2_k, iq3_xxs, iq3_s, q3_k, iq4_xs, iq4_nl, q4_k, q4_0, q4_1, q5_k, q5_0, q5_1, q6_k, "   \
    "q8_0"
/* Parses "q4_k,q6_k", with optional blanks after commas. ERR_USAGE, also for a repeated type. The caller frees *out. */
int quant_types_parse(const char *list, unsigned **out, size_t *n, struct err *e) MUST_CHECK;

struct quant_budget_result {
    uint64_t budget, bytes, elems;
    double error, bound;               /* predicted, summed over matrices; bound: a lower bound for any plan */
    struct quant_search_result search; /* if b->search */
    uint64_t blocked;                  /* matrices for which types that need importance were excluded for lack of it */
};
/*
 * Reads a model stream once, holding one tensor, measures the error of each type on each matrix by rounding to nearest
 * (weighted by o->stats or o->importance where known), and appends the plan of least error within the budget, as text
 * for o->plan. Matrices that GGUF stores as one tensor (experts; q, k and v if o->fuses_qkv) get one type. Types set by
 * rules, o->head_type and o->embed_type are fixed. If a type's blocks do not divide the rows, its fallback is a
 * candidate instead (not with o->strict); quantized tensors keep their size or shrink, unless o->grow. ERR_USAGE: the
 * budget is too small (the message names the smallest possible), or no type can be chosen. ERR_DATA: a weight is not
 * finite, statistics of another model.
 */
int quant_budget_plan(struct stream_reader *in, const struct quant_options *o, const struct quant_budget *b,
                      struct buf *plan, struct quant_budget_result *r, struct err *e) MUST_CHECK;

/*
 * Estimates for each tensor the trace of its block of the Fisher information, out [model_slot_count]: the mean over
 * positions of the squared norm of d log p(y) / dW, with y sampled from the model's own distribution. To second order
 * the divergence of a changed model is dw^T F dw / 2. Scores of different positions are uncorrelated (given the text,
 * each has mean zero), so the squared gradient of a sequence estimates the sum over its positions. The model is in
 * WEIGHTS_F32. ERR_DATA: its logits are not of the next token.
 */
int quant_fisher_traces(struct model *m, const struct model_input *in, uint64_t seed, double *out,
                        struct err *e) MUST_CHECK;

/* ---- carrying out a plan ---------------------------------------------------------------------------------------- */

/* Opens a cache folder, creating it if missing. ERR_IO. File names are digests of everything the contents depend on, so
 * a run that was interrupted, or that differs in a few tensors, reuses what is unchanged. */
int quant_cache_open(const char *folder, struct err *e) MUST_CHECK;

struct quant_tensor_report {
    const char *name;
    enum dtype from, wanted, to;
    bool fell_back; /* the row is not a whole number of blocks of `wanted` */
    bool informed;  /* the method used data */
    bool blind;     /* `to` needs importance, but there was none */
    bool recalled;  /* read from the cache */
    bool unweighed; /* errors should have been weighted, but nothing was known of this matrix */
    double damp;    /* damping of the second moments as a share, if more was needed than requested; else 0 */
    uint64_t elems, bytes;
    double rmse, relative; /* root mean square error; the same relative to the root mean square of the weights */
    /* For methods with data: squared error of the matrix's outputs over all positions, after rounding to nearest and
     * after the method. 0: rounded to nearest only. */
    double output_error_nearest, output_error;
    /* For learned rounding, equal for all matrices of half a layer: squared error of the half's output relative to the
     * output, on held-out sequences, before and after. 0: not learned. */
    double block_error_before, block_error;
};
typedef int quant_report_fn(void *ctx, const struct quant_tensor_report *t, struct err *e);

bool quant_report_put(cJSON *object, const struct quant_tensor_report *t); /* false: out of memory */

/* Rows of a matrix, all or some, and where they go. */
struct quant_rows {
    enum dtype to;
    const float *x; /* [rows][cols] */
    uint64_t first; /* index of the first one in the matrix, for messages */
    uint64_t rows, cols;
    const float *importance; /* [cols]: weights of the errors of columns; NULL: all alike */
    float *scratch;          /* [parallel_threads()][cols] */
    void *packed;            /* [rows], in type `to` */
};
/* Sums of squares over weights: of their errors, and of the weights themselves. */
struct quant_sums {
    double error, power;
};
/* Rounds to nearest, row by row, and adds to the sums, which may be NULL. ERR_DATA: the type cannot represent a weight;
 * names the row. */
int quant_round_rows(const struct quant_rows *r, struct quant_sums *sums, struct err *e) MUST_CHECK;
/* Only adds to the sums: r->packed has the rows already. */
int quant_measure_rows(const struct quant_rows *r, struct quant_sums *sums, struct err *e) MUST_CHECK;

/* Summary over all tensors. Start with {0}. */
struct quant_summary {
    char first_unweighed[TENSOR_MAX_NAME + 1], first_damped[TENSOR_MAX_NAME + 1]; /* "": none */
    uint64_t damped;                          /* tensors that needed more damping than requested */
    double most_damp;                         /* the largest damping share used */
    char first_fallback[TENSOR_MAX_NAME + 1]; /* first tensor that fell back; "": none */
    enum dtype first_fallback_to;
    unsigned
        n_requantized[64]; /* quantized tensors that changed to another type, by index in dtype_at of the old type */
    char requantized[256]; /* the same as text: "2 of q8_0, 5 of q4_k"; "": none */
};
void quant_summary_add(struct quant_summary *s, const struct quant_tensor_report *t);

/* Phases of quantize_layerwise, for timing (phases.c). */
enum quant_phase {
    QUANT_PASSES,   /* running the data through the layers; reading and writing */
    QUANT_MOMENTS,  /* summing second moments of inputs */
    QUANT_FACTORS,  /* factoring second moments */
    QUANT_TARGETS,  /* computing target values */
    QUANT_NEAREST,  /* rounding to nearest, which sets the scales */
    QUANT_FEEDBACK, /* error feedback (GPTQ proper) */
    QUANT_DESCENT,  /* coordinate descent on codes and scales */
    QUANT_LEARNING, /* learning codes and scales by gradients */
    QUANT_PHASES
};
const char *quant_phase_name(enum quant_phase p);

struct quant_totals {
    uint64_t elems, bytes, bytes_before, fell_back, blind, unweighed, recalled;
    uint64_t refused;             /* dry run only: tensors at which quantize_stream would fail, see below */
    double seconds[QUANT_PHASES]; /* processor time of all threads, set by quantize_layerwise; else 0 */
};

/* Reads a model stream and writes it quantized. Memory: the blocks of the largest tensor and some rows of its values;
 * all of them with a cache, or if it keeps its type. An impossible plan is ERR_DATA or ERR_USAGE before anything is
 * written; a weight that the type cannot represent is ERR_DATA when it is reached. `report` (may be NULL) is called for
 * each tensor.
 *
 * A quantized tensor gets no more bits than it has unless o->grow, since nothing would be gained. If only a mixture's
 * rule would raise it, it stays as it is; otherwise ERR_USAGE when it is reached. Conversion to f32, f16 and bf16 is
 * always allowed: it undoes the storage format on request.
 *
 * With o->fed_by_stats each matrix whose second moments o->stats have, in a type with a quant_form, is quantized as by
 * quantize_layerwise, but for its inputs in the original model: errors of earlier matrices are not made up for. Memory:
 * the moments of one input four times, and its rows if they are kept instead. ERR_DATA if they cannot be factored even
 * with 10,000 times the damping. */
int quantize_stream(struct stream_reader *in, struct stream_writer *out, const struct quant_options *o,
                    quant_report_fn *report, void *ctx, struct quant_totals *totals, struct err *e) MUST_CHECK;

/* The same pass without arithmetic: appends the plan as quantize_stream would carry it out and fills in totals. Tensors
 * that would be refused for growing are listed with that reason and counted. */
int quantize_dry_run(struct stream_reader *in, const struct quant_options *o, struct buf *plan,
                     struct quant_totals *totals, struct err *e) MUST_CHECK;

/* ---- with data, layer by layer (sequential.c) -------------------------------------------------------------------- */

/*
 * GPTQ on GGUF's grids: quantizes each matrix of a layer with the second moments of its inputs, computed by the already
 * quantized layers and matrices, in the order q, k, v; o; gate, up; down. Scales come from rounding to nearest,
 * weighted by the diagonal; codes from error feedback; then both are refined by descent (lib/quant/README.md). Per row,
 * the output error on this data is never worse than with rounding to nearest.
 * With `passes`, codes and scales are then refined by gradients of the output error of each half of a layer (attention,
 * feed-forward), staying on the stored grids; the best state on held-out sequences, an eighth of the data, is kept.
 * Extra memory: a tape over about 1024 positions, four times the weights of half a layer, and the moments of all its
 * inputs. Rounded to nearest instead: embedding and head (weighted by o->stats, if given), experts (weighted by their
 * own inputs), and types whose codes cover several weights (iq2_*, iq3_*, mxfp4; weighted by the diagonal).
 */
struct quant_calibration {
    struct model_layerwise *model; /* in WEIGHTS_F32 */
    struct grad_tape *scratch;     /* a tape that does not record */
    const struct model_input *in;  /* [n] */
    size_t n;
    bool asymmetric; /* fit to the original model's outputs: runs each layer once more over some positions, */
    size_t
        dense_positions; /* about so many, spread evenly; keeps all inputs of the layer's matrices there; learning uses
                            all positions */
    /* Called after each tensor and each step of learning: number of finished tensors, current activity. NULL: not
     * called. */
    void (*progress)(void *ctx, uint64_t done, const char *what);
    void *progress_ctx;
    unsigned passes; /* of learned rounding, per half of a layer; 0: none. Memory: the states of the data twice more */
    size_t learned_positions; /* in each of these after the first, if the data has at least twice as many; 0: all */
};
/* Fails like quantize_stream; also ERR_DATA if second moments cannot be factored even with 10,000 times the damping. */
int quantize_layerwise(const struct quant_calibration *c, struct stream_writer *out, const struct quant_options *o,
                       quant_report_fn *report, void *ctx, struct quant_totals *totals, struct err *e) MUST_CHECK;

#endif
