/*
 * compress: quantizing, pruning and folding as programs carry them out: what their options say, the statistics, plans and tokens that
 * they name, the plan for a target, what is said and reported.
 * Order of files, each calling only those before it: data; settings, plan, target, run (quantizing); allocate, shapes, prune; fold.
 */
#ifndef RILL_COMPRESS_H
#define RILL_COMPRESS_H

#include "lib/cli/cli.h"
#include "lib/fold/fold.h"
#include "lib/prune/prune.h"
#include "lib/quant/quant.h"
#include "lib/session/session.h"

/* What the command line says. Texts are read by compress_quantize; NULL or 0: not given. */
struct compress_quantize_options {
    const char *type, *head_type, *embed_type; /* names */
    struct cli_list rules;                     /* REGEX=TYPE */
    const char *plan, *stats, *data, *fisher;  /* files */
    const char *types, *cache;                 /* of a target: names between commas, a folder */
    double target_bpw;
    uint64_t target_size, search, search_tokens; /* search: moves judged, 0: none */
    bool pure, strict, dry_run, clip;
    const char *method;         /* "rtn", "hqq", "gptq" or "learned" */
    struct session_options how; /* the precision over the data */
    uint64_t max_tokens, sweeps;
    uint64_t passes; /* of "learned" */
    double damp;
    bool symmetric;
};

/* Reads the model (operand 0) and writes it quantized, or with dry_run the plan as text; says what differs from what was
 * asked for and fills in the report. ERR_USAGE, ERR_DATA, ERR_IO. */
int compress_quantize(struct cli *c, const struct compress_quantize_options *o, struct err *e) MUST_CHECK;

/* The same of pruning. Texts are read by compress_prune; NULL or 0: not given. */
struct compress_prune_options {
    double sparsity;
    const char *pattern;                                             /* N:M, instead of sparsity */
    struct cli_list rates;                                           /* REGEX=SPARSITY */
    struct cli_amount layers, experts, ffn, heads, kv_heads, hidden; /* that stay */
    struct cli_amount target_params;
    double target_speedup;
    uint64_t target_size;    /* bytes, of ... */
    const char *target_type; /* ... what quantize makes of it; NULL: of its own types */
    bool per_layer;
    uint64_t candidates; /* shapes that are judged; 0: none */
    const char *layer_score;
    const char *drop_layers;         /* a list, instead of layers */
    const char *method, *score;      /* names */
    const char *plan, *stats, *data; /* files */
    const char *vocab;               /* a file, or "padding" */
    uint64_t vocab_min_count;
    struct session_options how; /* the precision over the data */
    uint64_t max_tokens;
    double damp;
    bool reconstruct, prune_head, dry_run, compensate, merge;
    const char *allocate;            /* "uniform", "owl" or "search" */
    double outlier, spread;          /* of OWL */
    uint64_t generations, offspring; /* of the search */
    uint64_t search_tokens;          /* that candidates are judged on */
};

/* Reads the model (operand 0) and writes it pruned, or with dry_run the plan as text; says what is left and fills in the
 * report. ERR_USAGE, ERR_DATA, ERR_IO. */
int compress_prune(struct cli *c, const struct compress_prune_options *o, struct err *e) MUST_CHECK;
/* The types that these options give the matrices of a model, whatever they are in now; for quant_plan_release. Reads type or plan and
 * rules alone. ERR_USAGE, ERR_DATA, ERR_IO. */
int compress_make_plan(struct quant_plan *out, struct cli *c, const struct compress_quantize_options *o,
                       const struct model_config *config, struct err *e) MUST_CHECK;

/* The same of folding. */
struct compress_fold_options {
    const char *method, *type;  /* names */
    const char *stats, *data;   /* files */
    struct session_options how; /* the precision over the data */
    uint64_t max_tokens;
    double alpha;
};

/* Reads the model (operand 0) and writes it with its weights rewritten; says what was left out and fills in the report. ERR_USAGE,
 * ERR_DATA, ERR_IO. */
int compress_fold(struct cli *c, const struct compress_fold_options *o, struct err *e) MUST_CHECK;

#endif
