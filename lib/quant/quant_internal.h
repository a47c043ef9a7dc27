/*
 * Private to lib/quant: mixtures, rules, plan text, cache and passes.
 *
 * Order of files, each calling only earlier ones: mixtures, rules, plan_text, plan, cache, blocks_cache, pass,
 * (second_order.h: phases, clip, grid, hqq, refine, gptq, shrink), feedback, quantize, (learn.h: rounding, learn),
 * (moments.h: moments, target), sequential, fisher, (budget.h: allocate, sense_cache, sensitivity, search, budget).
 */
#ifndef RILL_QUANT_INTERNAL_H
#define RILL_QUANT_INTERNAL_H

#include "lib/quant/quant.h"

/* What llama.cpp's choice of type depends on, besides the matrix. */
struct mixture_facts {
    const struct model_config *config;
    bool fused;    /* q, k and v are one tensor */
    bool weighted; /* an importance matrix is available */
};
/* The type that the mixture gives a matrix, and the reason in why [size]. */
enum dtype mixture_choose(const struct quant_type *t, const struct mixture_facts *f, struct model_slot s, char *why,
                          size_t size);
bool mixture_needs_importance(const struct quant_type *t, enum dtype to);
/* Whether the matrix produces logits, in llama.cpp's sense: the head, or the embedding if there is none. */
bool is_output(const struct model_config *c, struct model_slot s);
uint64_t cols_of(const struct model_config *c, struct model_slot s); /* elements of a row */

/* Sets the types of matrices that rules match. */
int rules_apply(struct quant_plan *p, const struct model_config *c, const struct quant_options *o,
                struct err *e) MUST_CHECK;
/* ... and those set by --head-type and --embed-type: wanted, named and why. */
int plan_name_types(struct quant_plan *p, const struct model_config *c, const struct quant_options *o,
                    struct err *e) MUST_CHECK;
int plan_parse(struct quant_plan *p, const struct model_config *c, const struct quant_options *o,
               struct err *e) MUST_CHECK;

/* ---- on disk (cache.c; quantized tensors: blocks_cache.c) -------------------------------------------------------- */

enum { CACHE_PATH = 4096 };
/* The digest of a tensor with its data, the importance of its columns ([columns] or NULL) and n settings. */
int cache_key(const struct tensor_desc *d, const void *data, const float *importance, const uint64_t *settings,
              size_t n, struct digest *out, struct err *e) MUST_CHECK;
/* The path folder/KEYSUFFIX. ERR_USAGE: too long. */
int cache_path(const char *folder, struct digest key, const char *suffix, char out[CACHE_PATH],
               struct err *e) MUST_CHECK;
/* Incremented when a method produces different blocks for the same key. */
#define BLOCKS_VERSION 7
/* Reads the n bytes of blocks and the errors in t that blocks_store wrote under this key. A missing file is not an
 * error: *found false. ERR_DATA: corrupt file. */
int blocks_recall(const char *folder, struct digest key, struct quant_tensor_report *t, void *blocks, uint64_t n,
                  bool *found, struct err *e) MUST_CHECK;
int blocks_store(const char *folder, struct digest key, const struct quant_tensor_report *t, const void *blocks,
                 uint64_t n, struct err *e) MUST_CHECK;

/* ---- a pass over the tensors (pass.c) ---------------------------------------------------------------------------- */

/* `rows`, rounded down to what quant_round_rows does at once, but not to 0: sums over parts of a matrix that begin at
 * such rows are those over all of it, to the last bit. */
uint64_t quant_whole_pieces(uint64_t rows);
/* *x = n values: the data itself if it is f32, or in scratch. */
int quant_values(enum dtype from, const void *data, uint64_t n, struct buf *scratch, const float **x,
                 struct err *e) MUST_CHECK;

struct pass {
    struct model_tensors *in; /* NULL: tensors are in memory */
    struct stream_writer *out;
    const struct quant_options *o;
    const struct model_config *config;
    struct digest vocab; /* of the tokenizer; zeros: none */
    struct quant_plan plan;
    quant_report_fn *report;
    void *ctx;
    struct quant_totals *totals;
    struct buf stored, f32;    /* some rows of a tensor: as read, and as f32 */
    struct buf packed;         /* a tensor, quantized */
    struct buf back;           /* [threads][widest row]: dequantized, to measure the error */
    uint64_t widest;           /* longest row in the model */
    float *importance;         /* [widest], with stats */
    struct feedback *feedback; /* by the moments of o->stats, of the latest matrix that had it */
    struct phase_clock *clock; /* may be NULL */
};
/* Writes everything before the tensors: META, including o->origin. */
int pass_write_head(const struct pass *p, const void *vocab, size_t n_vocab, const cJSON *meta,
                    struct err *e) MUST_CHECK;
/* Makes the plan and allocates what it needs. Call pass_finish even on failure. */
int pass_prepare(struct pass *p, struct err *e) MUST_CHECK;
void pass_finish(struct pass *p);
/* Sets the planned type, unless the tensor is quantized and would grow; updates the plan in that case. */
int pass_choose_type(struct pass *p, struct model_slot s, uint64_t cols, struct quant_tensor_report *t,
                     struct err *e) MUST_CHECK;
bool pass_has_importance(const struct pass *p); /* whether --stats or o->importance is given */
bool pass_is_weighed(const struct pass *p, struct model_slot s, enum dtype to);
/* Whether s gets error feedback by the second moments in the statistics: with o->calibrated only the head. */
bool pass_is_fed(const struct pass *p, struct model_slot s, enum dtype to);
/* Sets *out to the error weight of each input channel, mean x^2 [cols], owned by p; NULL if unknown or all zero. */
int pass_importance_of(struct pass *p, struct model_slot s, uint64_t cols, const float **out, struct err *e) MUST_CHECK;
/* ERR_DATA: the importance is of another model. */
int pass_check_importance(struct pass *p, struct err *e) MUST_CHECK;
/* Rounds x [rows][cols] to nearest into packed, and the error into t. */
int pass_round(struct pass *p, const float *x, uint64_t rows, uint64_t cols, const float *importance,
               unsigned char *packed, struct quant_tensor_report *t, struct err *e) MUST_CHECK;
/* Sets the errors of t, whose elems must be set, from the sums over all of its weights. */
void pass_put_error(struct quant_tensor_report *t, const struct quant_sums *sums);
/* Allocates p->back for rows of `widest` elements. */
int pass_reserve(struct pass *p, uint64_t widest, struct err *e) MUST_CHECK;
/* Sets t's bytes and adds it to the totals. */
int pass_count(struct pass *p, struct model_slot s, const struct tensor_desc *from, struct quant_tensor_report *t,
               struct err *e) MUST_CHECK;

/* ---- error feedback by the moments of o->stats (feedback.c), for a matrix that pass_is_fed ----------------------- */

/* The digest of its second moments. */
int feedback_digest(struct pass *p, struct model_slot s, struct digest *out, struct err *e) MUST_CHECK;
/* Reads and factors them, unless the matrix before had the same inputs, and sets t->informed and t->damp. *importance:
 * the mean square of each input by them, owned by p; NULL: all are 0. ERR_DATA: they do not factor; with o->strict, not
 * with the damping that was asked for. */
int feedback_begin(struct pass *p, struct model_slot s, struct quant_tensor_report *t, const float **importance,
                   struct err *e) MUST_CHECK;
/* With o->strict, ERR_DATA if a tensor, also one from the cache, took more damping than was asked for. */
int feedback_check_damp(const struct pass *p, const struct quant_tensor_report *t, struct err *e) MUST_CHECK;
/* Improves rows that were rounded to nearest, and adds to t's output errors. */
int feedback_rows(struct pass *p, const struct quant_rows *r, struct quant_tensor_report *t, struct err *e) MUST_CHECK;
void feedback_end(struct pass *p); /* after the last tensor */

/* ---- rounding one tensor (quantize.c) --------------------------------------------------------------------------- */

/* Converts a tensor to type t->to, different from its own, into p->packed: by the method of p->o, or from the cache.
 * data NULL: reads the tensor that p->in has opened. */
int quantize_blocks(struct pass *p, struct model_slot s, const struct tensor_desc *from, const void *data,
                    struct quant_tensor_report *t, struct err *e) MUST_CHECK;

#endif
