/*
 * compress: quantizing, pruning and folding as the programs run them: from options, through the statistics, plans and
 * tokens that they name, to the written model, messages and report.
 * Order of files, each calling only earlier ones: data; files, calibration, settings, plan, target, run (quantizing);
 * allocate, shapes, prune; fold.
 */
#ifndef RILL_COMPRESS_H
#define RILL_COMPRESS_H

#include "lib/cli/cli.h"
#include "lib/fold/fold.h"
#include "lib/prune/prune.h"
#include "lib/quant/quant.h"
#include "lib/session/session.h"

/* Command-line options of quantize. Texts are parsed by compress_quantize; NULL or 0: not given. */
struct compress_quantize_options {
    const char *type, *head_type, *embed_type; /* names */
    struct cli_list rules;                     /* REGEX=TYPE */
    const char *plan, *stats, *data, *fisher;  /* files */
    const char *types, *cache;                 /* for a target: comma-separated names, a folder */
    double target_bpw;
    uint64_t target_size, search, search_tokens; /* search: moves to judge, 0: none */
    bool pure, strict, dry_run, clip;
    const char *method;         /* "rtn", "hqq", "gptq" or "learned" */
    struct session_options how; /* precision of passes over the data */
    uint64_t max_tokens, sweeps;
    uint64_t passes; /* for "learned" */
    double damp;
    bool symmetric;
};

/* Reads the model (operand 0) and writes it quantized or, with dry_run, the plan as text; reports deviations from the
 * request. ERR_USAGE, ERR_DATA, ERR_IO. */
int compress_quantize(struct cli *c, const struct compress_quantize_options *o, struct err *e) MUST_CHECK;

/* Command-line options of prune. Texts are parsed by compress_prune; NULL or 0: not given. */
struct compress_prune_options {
    double sparsity;
    const char *pattern;                                             /* N:M, instead of sparsity */
    struct cli_list rates;                                           /* REGEX=SPARSITY */
    struct cli_amount layers, experts, ffn, heads, kv_heads, hidden; /* to keep */
    struct cli_amount target_params;
    double target_speedup;
    uint64_t target_size;    /* bytes, in ... */
    const char *target_type; /* ... the types that quantize would give it; NULL: its own types */
    bool per_layer;
    uint64_t candidates; /* shapes to judge; 0: none */
    const char *layer_score;
    const char *drop_layers;              /* a list, instead of layers */
    const char *method, *score;           /* names */
    const char *plan, *stats, *data;      /* files */
    const char *vocab;                    /* a file, or "padding" */
    uint64_t vocab_min_count, vocab_size; /* 0: no limit */
    struct session_options how;           /* precision of passes over the data */
    uint64_t max_tokens;
    double damp;
    bool reconstruct, prune_head, dry_run, compensate, merge;
    const char *allocate;            /* "uniform", "owl" or "search" */
    double outlier, spread;          /* for owl */
    uint64_t generations, offspring; /* for search */
    uint64_t search_tokens;          /* for judging candidates */
};

/* Reads the model (operand 0) and writes it pruned or, with dry_run, the plan as text; reports what is left. ERR_USAGE,
 * ERR_DATA, ERR_IO. */
int compress_prune(struct cli *c, const struct compress_prune_options *o, struct err *e) MUST_CHECK;
/* Plans the types that these options give the matrices of a model, whatever their present types. Uses only type or
 * plan, and rules. Release with quant_plan_release. ERR_USAGE, ERR_DATA, ERR_IO. */
int compress_make_plan(struct quant_plan *out, struct cli *c, const struct compress_quantize_options *o,
                       const struct model_config *config, struct err *e) MUST_CHECK;

/* Command-line options of fold. */
struct compress_fold_options {
    const char *method, *type;  /* names */
    const char *stats, *data;   /* files */
    struct session_options how; /* precision of passes over the data */
    uint64_t max_tokens;
    double alpha;
};

/* Reads the model (operand 0) and writes it with its weights rewritten; reports what was left out. ERR_USAGE, ERR_DATA,
 * ERR_IO. */
int compress_fold(struct cli *c, const struct compress_fold_options *o, struct err *e) MUST_CHECK;

#endif
