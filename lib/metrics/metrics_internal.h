/*
 * Shared inside lib/metrics: moments, batches of scored sequences, results.
 *
 * Order of files, each calling only those before it: summary, scorer, then perplexity, divergence, fidelity and task.
 */
#ifndef RILL_METRICS_INTERNAL_H
#define RILL_METRICS_INTERNAL_H

#include "lib/metrics/metrics.h"

/* Positions that a model is given at a time, unless one sequence alone has more. */
#define METRICS_BATCH 2048

/* The contents of a buffer as numbers. */
static inline double *buf_f64(const struct buf *b) {
    return (void *)b->data;
}
static inline uint32_t *buf_u32(const struct buf *b) {
    return (void *)b->data;
}

/* ---- summary.c --------------------------------------------------------------------------------------------------- */

/* Mean and squared deviations, one value after another (Welford 1962): no digits are lost where the mean is large
 * compared with the spread. */
struct moments {
    uint64_t n;
    double mean, m2;
};
void moments_add(struct moments *s, double x);
double moments_stderr(const struct moments *s); /* of the mean: sqrt(var / (n - 1)); 0 below two values */

/* False when memory is out. "KEY": mean and "KEY_stderr" */
bool put_mean(cJSON *o, const char *key, const struct moments *s);
/* "KEY": e^x, null where that is beyond all numbers: a word's perplexity in a text without spaces. */
bool put_exp(cJSON *o, const char *key, double x);
/* "KEY": e^mean and "KEY_stderr", of the mean of -ln p. */
bool put_perplexity(cJSON *o, const char *key, const struct moments *nll);
/* "KEY": k / n, and "KEY_low", "KEY_high" by Wilson. */
bool put_share(cJSON *o, const char *key, uint64_t k, uint64_t n);

/* ---- scorer.c ---------------------------------------------------------------------------------------------------- */

/*
 * A batch of independent runs of tokens, each token with the label to be scored after it (UINT32_MAX: none). Runs are
 * added until the batch is full, then scored together: nll[i] = -ln p(label[i] | the run up to token i), 0 without a label.
 */
struct scorer {
    struct model *m;
    struct grad_tape *tape;
    struct buf tokens, labels, lengths; /* u32 */
    struct buf nll;                     /* f64, one a token, after scorer_run */
};
int scorer_init(struct scorer *s, struct model *m, struct err *e) MUST_CHECK;
void scorer_release(struct scorer *s);
size_t scorer_positions(const struct scorer *s);
/* A run of n tokens, n > 0; labels are below the vocabulary, the caller has seen to that. */
int scorer_add(struct scorer *s, const uint32_t *tokens, const uint32_t *labels, size_t n, struct err *e) MUST_CHECK;
int scorer_run(struct scorer *s, struct err *e) MUST_CHECK; /* results stay until scorer_clear */
void scorer_clear(struct scorer *s);

/* The token before a text without context: BOS, or EOS where there is none; TOKEN_NONE without either. */
uint32_t metrics_prefix_token(const struct model *m);

#endif
