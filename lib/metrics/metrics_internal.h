/* Shared inside lib/metrics: scoring runs of tokens, growing lists of numbers. */
#ifndef RILL_METRICS_INTERNAL_H
#define RILL_METRICS_INTERNAL_H

#include "lib/metrics/metrics.h"

/*
 * A batch of independent runs of tokens, each token with the label to be scored behind it (UINT32_MAX: none). Runs are added until
 * the batch is full, then scored together: nll[i] = -ln p(label[i] | the run up to token i), 0 without a label.
 */
struct scorer {
    struct model *m;
    struct grad_tape *tape;
    struct buf tokens, labels, lengths; /* u32 */
    struct buf nll;                     /* f64, one a token, after scorer_run */
    struct buf offsets;                 /* zeros: no teacher */
    struct buf kl;                      /* unused by-product of the kernel */
};
int scorer_init(struct scorer *s, struct model *m, struct err *e) MUST_CHECK;
void scorer_release(struct scorer *s);
size_t scorer_positions(const struct scorer *s);
size_t scorer_runs(const struct scorer *s);
int scorer_add(struct scorer *s, const uint32_t *tokens, const uint32_t *labels, size_t n, struct err *e) MUST_CHECK;
int scorer_run(struct scorer *s, struct err *e) MUST_CHECK; /* results stay until scorer_clear */
void scorer_clear(struct scorer *s);

/* The token that stands before a text that begins with nothing: BOS, or EOS where there is none; TOKEN_NONE without either. */
uint32_t metrics_prefix_token(const struct model *m);

/* Appends to a buffer of numbers. */
int push_u32(struct buf *b, uint32_t v, struct err *e) MUST_CHECK;
int push_f64(struct buf *b, double v, struct err *e) MUST_CHECK;
int push_f32(struct buf *b, float v, struct err *e) MUST_CHECK;

#endif
