/*
 * Private to lib/quant: what the plan asks of mixtures, rules and its text.
 *
 * Order of files, each calling only those before it: mixtures, rules, plan_text, plan, cache, blocks_cache, pass, (second_order.h: phases, clip, grid, hqq,
 * refine, gptq), quantize, (learn.h: rounding, learn), (moments.h: moments, target), sequential, fisher, (budget.h: allocate,
 * sense_cache, sensitivity, search, budget).
 */
#ifndef RILL_QUANT_INTERNAL_H
#define RILL_QUANT_INTERNAL_H

#include "lib/quant/quant.h"

/* What llama.cpp's choice looks at, beside the matrix. */
struct mixture_facts {
    const struct model_config *config;
    bool fused;    /* q, k and v are one tensor */
    bool weighted; /* there is an importance matrix */
};
/* The type that the mixture gives a matrix, and in why why. */
enum dtype mixture_choose(const struct quant_type *t, const struct mixture_facts *f, struct model_slot s, char *why,
                          size_t size);
bool mixture_needs_importance(const struct quant_type *t, enum dtype to);
/* The matrix that makes logits, as llama.cpp sees it: the embedding where there is no head. */
bool is_output(const struct model_config *c, struct model_slot s);
uint64_t cols_of(const struct model_config *c, struct model_slot s); /* elements of a row */

/* Sets what the rules match. */
int rules_apply(struct quant_plan *p, const struct model_config *c, const struct quant_options *o,
                struct err *e) MUST_CHECK;
/* ... and the ends that options name: wanted, named and why. */
int plan_name_types(struct quant_plan *p, const struct model_config *c, const struct quant_options *o,
                    struct err *e) MUST_CHECK;
int plan_parse(struct quant_plan *p, const struct model_config *c, const struct quant_options *o,
               struct err *e) MUST_CHECK;

/* ---- what is kept on disk (cache.c; quantized tensors: blocks_cache.c) ------------------------------------------------- */

enum { CACHE_PATH = 4096 };
/* The digest of a tensor with its data, the importance of its columns ([columns] or NULL) and n settings. */
int cache_key(const struct tensor_desc *d, const void *data, const float *importance, const uint64_t *settings,
              size_t n, struct digest *out, struct err *e) MUST_CHECK;
/* folder/KEYSUFFIX */
int cache_path(const char *folder, struct digest key, const char *suffix, char out[CACHE_PATH],
               struct err *e) MUST_CHECK;
/* Raised when a method comes to other blocks for the same key. */
#define BLOCKS_VERSION 2
/* The n bytes of a tensor's blocks and what t says of errors, as blocks_store was given them for this key. Missing is no error, and
 * *found false. ERR_DATA: not what it writes. */
int blocks_recall(const char *folder, struct digest key, struct quant_tensor_report *t, void *blocks, uint64_t n,
                  bool *found, struct err *e) MUST_CHECK;
int blocks_store(const char *folder, struct digest key, const struct quant_tensor_report *t, const void *blocks,
                 uint64_t n, struct err *e) MUST_CHECK;

/* ---- a pass over the tensors (pass.c) ------------------------------------------------------------------------------ */

struct pass {
    struct stream_writer *out;
    const struct quant_options *o;
    const struct model_config *config;
    struct digest vocab; /* of the tokenizer; zeros: it has none */
    struct quant_plan plan;
    quant_report_fn *report;
    void *ctx;
    struct quant_totals *totals;
    struct buf f32, packed; /* one tensor: as f32, and quantized */
    struct buf back;        /* [threads][widest row]: dequantized again, for the error */
    uint64_t widest;        /* row of the model */
    float *importance;      /* [widest], with stats */
};
/* Writes what comes before the tensors: META with o->origin in it. */
int pass_write_head(const struct pass *p, const void *vocab, size_t n_vocab, const cJSON *meta,
                    struct err *e) MUST_CHECK;
/* The plan, and the memory to carry it out. On failure too pass_finish. */
int pass_prepare(struct pass *p, struct err *e) MUST_CHECK;
void pass_finish(struct pass *p);
/* The plan's type, unless the tensor is quantized already and would grow. The plan then says so, too. */
int pass_choose_type(struct pass *p, struct model_slot s, uint64_t cols, struct quant_tensor_report *t,
                     struct err *e) MUST_CHECK;
bool pass_has_importance(const struct pass *p); /* of any matrix, by --stats */
bool pass_is_weighed(const struct pass *p, struct model_slot s, enum dtype to);
/* Is it the head, and are its second moments in the statistics for a method that feeds errors back? */
bool pass_knows_head(const struct pass *p, struct model_slot s, enum dtype to);
/* The weight of each input channel in the error: mean x^2 [cols], p's; NULL where nothing is known or nothing came
 * through. */
int pass_importance_of(struct pass *p, struct model_slot s, uint64_t cols, const float **out, struct err *e) MUST_CHECK;
/* Refuses importance of another model. */
int pass_check_importance(struct pass *p, struct err *e) MUST_CHECK;
/* x [rows][cols] to nearest, into packed; the error into t. */
int pass_round(struct pass *p, const float *x, uint64_t rows, uint64_t cols, const float *importance,
               unsigned char *packed, struct quant_tensor_report *t, struct err *e) MUST_CHECK;
/* From the sums of squares of the error and of the weights, n of them. */
void pass_put_error(struct quant_tensor_report *t, double error, double power, uint64_t n);
/* Room for p->back, with rows of so many elements. */
int pass_reserve(struct pass *p, uint64_t widest, struct err *e) MUST_CHECK;
/* Adds t to the totals, and fills in its bytes. */
int pass_count(struct pass *p, struct model_slot s, const struct tensor_desc *from, struct quant_tensor_report *t,
               struct err *e) MUST_CHECK;

/* ---- a tensor to nearest (quantize.c) ---------------------------------------------------------------------------------- */

/* The blocks of a tensor in type t->to, another one than its own, into p->packed: by the method of p->o, or from its cache. */
int quantize_blocks(struct pass *p, struct model_slot s, const struct tensor_desc *from, const void *data,
                    struct quant_tensor_report *t, struct err *e) MUST_CHECK;

#endif
