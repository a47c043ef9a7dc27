/* Private to lib/model: one token from each row of logits. */
#ifndef RILL_MODEL_SAMPLING_H
#define RILL_MODEL_SAMPLING_H

#include "lib/model/model.h"

struct sampler {
    struct model_sampling how;
    size_t vocab;
    int threads;
    uint32_t *ids; /* [threads][vocab] candidates, descending; NULL if not needed */
    float *values;
};
int sampler_init(struct sampler *s, const struct model_sampling *how, size_t vocab, struct err *e) MUST_CHECK;
void sampler_release(struct sampler *s);
/* The uniform number in [0, 1) for the n-th token of a sequence: a function of the seed, seq and n alone. */
double sampler_uniform(const struct sampler *s, uint64_t seq, uint64_t n);
/* ids [rows] from logits [rows][vocab] and u [rows]; a row's token depends only on the row and its u. */
void sampler_draw(const struct sampler *s, uint32_t *ids, struct kernel_array logits, const double *u, size_t rows);

#endif
