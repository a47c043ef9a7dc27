/*
 * Private to lib/quant: what the plan asks of mixtures, rules and its text.
 *
 * Order of files, each calling only those before it: mixtures, rules, plan_text, plan, quantize.
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
int plan_parse(struct quant_plan *p, const struct model_config *c, const struct quant_options *o,
               struct err *e) MUST_CHECK;

#endif
