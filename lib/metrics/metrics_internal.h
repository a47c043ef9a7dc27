/*
 * Private to lib/metrics: moments, batches of scored sequences, output of results.
 *
 * Order of files, each calling only those before it: summary, scorer, then perplexity, divergence, fidelity and task.
 */
#ifndef RILL_METRICS_INTERNAL_H
#define RILL_METRICS_INTERNAL_H

#include "lib/metrics/metrics.h"

/* Positions per batch of the model, unless a single sequence is longer. */
#define METRICS_BATCH 2048

/* Return the contents of a buffer as an array of numbers. */
static inline double *buf_f64(const struct buf *b) {
    return (void *)b->data;
}
static inline uint32_t *buf_u32(const struct buf *b) {
    return (void *)b->data;
}

/* ---- summary.c --------------------------------------------------------------------------------------------------- */

/* Running mean and squared deviations (Welford 1962), which lose no digits if the mean is large compared with the
 * spread. */
struct moments {
    uint64_t n;
    double mean, m2;
};
void moments_add(struct moments *s, double x);
double moments_stderr(const struct moments *s); /* of the mean: sqrt(var / (n - 1)); 0 below two values */

/* The following return false if out of memory. put_mean: "KEY", the mean, and "KEY_stderr". */
bool put_mean(cJSON *o, const char *key, const struct moments *s);
/* "KEY": e^x, or null if that overflows, as for words in a text without spaces. */
bool put_exp(cJSON *o, const char *key, double x);
/* "KEY" and "KEY_stderr": e^mean, where values are -ln p. */
bool put_perplexity(cJSON *o, const char *key, const struct moments *nll);
/* "KEY": k / n; "KEY_low" and "KEY_high": Wilson's interval. */
bool put_share(cJSON *o, const char *key, uint64_t k, uint64_t n);

/* ---- scorer.c ---------------------------------------------------------------------------------------------------- */

/*
 * A batch of independent runs of tokens, each token with a label to be scored after it (UINT32_MAX: none). Runs are
 * added until the batch is full, then scored together: nll[i] = -ln p(label[i] | run up to token i), or 0 without a
 * label.
 */
struct scorer {
    struct model *m;
    struct grad_tape *tape;
    struct buf tokens, labels, lengths; /* u32 */
    struct buf nll;                     /* f64, one per token, set by scorer_run */
};
int scorer_init(struct scorer *s, struct model *m, struct err *e) MUST_CHECK;
void scorer_release(struct scorer *s);
size_t scorer_positions(const struct scorer *s);
/* Adds a run of n > 0 tokens. The caller has checked that labels are below the vocabulary size. */
int scorer_add(struct scorer *s, const uint32_t *tokens, const uint32_t *labels, size_t n, struct err *e) MUST_CHECK;
int scorer_run(struct scorer *s, struct err *e) MUST_CHECK; /* results stay until scorer_clear */
void scorer_clear(struct scorer *s);

/* Returns the token before a text without context: BOS, or EOS if there is none; TOKEN_NONE without either. */
uint32_t metrics_prefix_token(const struct model *m);

#endif
