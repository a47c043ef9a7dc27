/*
 * metrics: how good is a model? Perplexity by named protocols, divergence from a reference's knowledge, minimal pairs and multiple
 * choice. Every result is a flat JSON object (one line of eval's output) that says how it was computed.
 */
#ifndef RILL_METRICS_H
#define RILL_METRICS_H

#include "lib/base/base.h"
#include "lib/knowledge/knowledge.h"
#include "lib/model/model.h"

/* ---- summaries --------------------------------------------------------------------------------------------------- */

/* The q-quantile (q in [0,1]) of n sorted values, linear between neighbours (numpy's default, type 7 of Hyndman and Fan 1996). */
double metrics_quantile(const double *sorted, size_t n, double q);
/* Wilson's score interval at 95% for k successes of n (Wilson 1927). */
void metrics_wilson(uint64_t k, uint64_t n, double *low, double *high);

/* Called after each batch, by the functions that read a stream to its end; messages of those name the stream. */
typedef void metrics_watch(void *ctx);

/* ---- labels that the data holds: masked tokens, classes of sequences and of tokens --------------------------------- */

/*
 * A masked language model on tokens that were masked (tokenize --mask-rate), or a classifier on texts with classes (tokenize
 * --labels) or words with tags (tokenize --tags): perplexity and accuracy over the labels; of classes also precision, recall and
 * F1 as unweighted means over the classes that occur (macro), and those of class 1 where there are two. Tags are counted token by
 * token: spans of several are not put together. Does not depend on where batches were cut.
 */
struct labelling;
/* ERR_DATA when the data has no labels for this model. */
int labelling_new(struct labelling **out, struct model *m, const struct knowledge_format *f, struct err *e) MUST_CHECK;
int labelling_read(struct labelling *l, struct stream_reader *r, metrics_watch *watch, void *ctx,
                   struct err *e) MUST_CHECK;
uint64_t labelling_scored(const struct labelling *l); /* labels so far */
double labelling_perplexity(const struct labelling *l);
cJSON *labelling_json(const struct labelling *l, struct err *e) MUST_CHECK;
void labelling_free(struct labelling *l); /* NULL is fine */

/* ---- perplexity ------------------------------------------------------------------------------------------------------ */

/*
 * Protocols differ and are not comparable; the name goes with the number. The result does not depend on where the batches
 * of the stream were cut. Memory: a few contexts of tokens and the activations of a batch.
 *   gptq       all tokens as one text, disjoint windows of `context`, every position after the first scored, a last shorter
 *              window left out (Frantar et al. 2022)
 *   llama      the same windows, BOS in place of the first token if the model adds one, only targets in the second half of a
 *              window scored (llama.cpp's llama-perplexity)
 *   sliding    one text, windows of `context` moved by `stride`: each token scored once, with at least context - stride tokens
 *              before it (Hugging Face's recipe)
 *   sequences  each sequence of the stream for itself, every position after the first
 *   documents  each sequence is a document, scored whole after BOS (or EOS where there is none) in disjoint windows of `context`,
 *              also per word and per byte (lm-eval's loglikelihood_rolling)
 */
enum perplexity_protocol { PPL_GPTQ, PPL_LLAMA, PPL_SLIDING, PPL_SEQUENCES, PPL_DOCUMENTS };
int perplexity_protocol_parse(const char *name, enum perplexity_protocol *out, struct err *e) MUST_CHECK;

struct perplexity_options {
    enum perplexity_protocol protocol;
    uint32_t context;       /* window */
    uint32_t stride;        /* sliding */
    uint64_t max_windows;   /* 0: all */
    size_t batch_positions; /* evaluated together, whole windows; 0: one window at a time */
};
/* Replaces each 0 by its default: the context by 512 or the model's if that is less (protocol sequences: the
 * model's), the stride by half of it. ERR_USAGE for a stride that the protocol does not use. */
int perplexity_choose(struct perplexity_options *o, const struct model *m, struct err *e) MUST_CHECK;
struct perplexity;
int perplexity_new(struct perplexity **out, struct model *m, const struct perplexity_options *o,
                   struct err *e) MUST_CHECK;
/* The tokens of the stream's batches, in order. A sequence may go on in the next one. */
int perplexity_feed(struct perplexity *p, const struct batch *b, struct err *e) MUST_CHECK;
bool perplexity_full(const struct perplexity *p); /* max_windows reached: no more input is needed */
int perplexity_finish(struct perplexity *p, struct err *e) MUST_CHECK;
/* All of a stream of format f, to the end: feed and finish. */
int perplexity_read(struct perplexity *p, struct stream_reader *r, const struct knowledge_format *f,
                    metrics_watch *watch, void *ctx, struct err *e) MUST_CHECK;
uint64_t perplexity_scored(const struct perplexity *p);
double perplexity_value(const struct perplexity *p);
cJSON *perplexity_json(const struct perplexity *p, struct err *e) MUST_CHECK;
void perplexity_free(struct perplexity *p);

/* ---- divergence from a reference --------------------------------------------------------------------------------- */

/*
 * KL(reference || model) and related metrics over every position of a knowledge stream, as llama.cpp's
 * --kl-divergence reports them: mean, error and percentiles of the divergence (kld) and of p(label) by the model
 * minus by the reference (delta_p), how often both find the same token most probable (same_top), both perplexities
 * and the mean of the ln of their ratio. Errors are of the mean, sqrt(var / (n - 1)), for the ratio with the
 * covariance of the two.
 *
 * A key means the same for every encoding. What an encoding does not determine is bounded under a key that says so,
 * or absent:
 *
 *                          dense   topk, ghost               sample
 *   perplexity             of all labels, of the model at temperature 1: the same for all
 *   same_top               yes     yes: the first entry *    -           * of positions that have one
 *   kld, percentiles       yes     kld_lower_bound           -
 *   cross_entropy          -       -                         -sum p ln q, unbiased: kld plus the reference's entropy
 *   perplexity_reference   yes     ..._lower_bound           -
 *   ln_ratio               yes     ..._upper_bound           -
 *   ln_correlation         yes     -                         -
 *   delta_p                yes     ..._lower_, _upper_bound  -
 *   delta_p percentiles, rms  yes  -                         -
 *   labels_known           all     labels among the entries  -
 *
 * topk and ghost are the same bytes, and are judged alike: the tokens outside the entries count as one token on both
 * sides, which can only lower a divergence, at each position; a label outside the entries has at most the probability
 * of the least entry, and at most the rest. Bounds hold to the rounding of the entries (f16: 0.4% of a probability of
 * 1e-5).
 *
 * Dense knowledge is compared at temperature 1, the others at the temperature that they were made at. Where that is
 * not 1, the keys are tempered_kld_lower_bound and tempered_cross_entropy, and what needs the reference's p(label) at
 * temperature 1 is absent. Memory: 16 bytes a position, for the percentiles, and the longest sequence's knowledge.
 */
struct divergence;
/* ERR_DATA when the format has no knowledge or does not fit the model (knowledge_fit, model_check_next_token). The
 * caller has checked the vocabulary with model_check_vocab. */
int divergence_new(struct divergence **out, struct model *m, const struct knowledge_format *f,
                   struct err *e) MUST_CHECK;
int divergence_feed(struct divergence *d, const struct batch *b, struct err *e) MUST_CHECK;
int divergence_finish(struct divergence *d, struct err *e) MUST_CHECK;
/* All of a stream of the format: feed and finish. */
int divergence_read(struct divergence *d, struct stream_reader *r, metrics_watch *watch, void *ctx,
                    struct err *e) MUST_CHECK;
uint64_t divergence_positions(const struct divergence *d);
cJSON *divergence_json(struct divergence *d, struct err *e) MUST_CHECK;
/* Is that a key of a result for a percentile, a minimum or a maximum ("kld_99.9")? */
bool metrics_is_percentile(const char *key);
void divergence_free(struct divergence *d);

/* ---- fidelity of encodings ------------------------------------------------------------------------------------------ */

/*
 * What encodings of the same answers cost and keep, on a student: its gradient, d kl / d logits at each labelled position (p - t as the
 * loss handles the encoding), against that by the dense answers. After Anshumann et al. 2025, Sparse logit sampling, who compare
 * gradients so. A result has
 *   angle, norm_ratio   between the sums over all positions, the gradient of one bias for each token: what a step over many positions
 *                       sees, where the noise of draws averages out and a bias does not. Degrees; length over the dense one's length
 *   position_angle      mean of the angles at each position; position_norm_ratio: ratio of the root mean squares of their lengths
 *   calibration_error   expected, in 15 bins (Guo et al. 2017): of what the target gives the student's most probable token, as a student
 *                       that has learnt it would, against how often that is the label
 *   bytes, bytes_zstd   of the response, a position, raw and as a stream with --codec zstd stores it
 * All at the encodings' temperature. Memory: the longest sequence's answers in every encoding, a batch of the student, three blocks of logits.
 */
struct fidelity_input {
    struct stream_reader *r;
    const struct knowledge_format *format;
};
struct fidelity;
/* The first input is dense; the student's vocabulary has been checked against all. On failure *bad is the input at fault. The model, readers
 * and formats must outlive it. */
int fidelity_new(struct fidelity **out, struct model *m, const struct fidelity_input *in, size_t n, size_t *bad,
                 struct err *e) MUST_CHECK;
/* All streams, in step, to their end. ERR_DATA where they are not about the same tokens and labels. */
int fidelity_read(struct fidelity *f, metrics_watch *watch, void *ctx, struct err *e) MUST_CHECK;
uint64_t fidelity_positions(const struct fidelity *f);                              /* compared so far */
cJSON *fidelity_json(const struct fidelity *f, size_t i, struct err *e) MUST_CHECK; /* of input i, a flat object */
double fidelity_speed(const struct fidelity *f, size_t i); /* positions a second: decoding, loss and gradient */
void fidelity_free(struct fidelity *f);                    /* NULL is fine */

/* ---- tasks from JSONL -------------------------------------------------------------------------------------------- */

/*
 * One JSON object a line; members that are not named here are left alone.
 *   minimal pairs     "sentence_good" and "sentence_bad" (BLiMP): right when the good one is more probable
 *   multiple choice   a context ("context", "query", "question" or "ctx"), "choices" or "endings" (strings) and "answer",
 *                     "gold" or "label" (index from 0): right when that choice scores best, the first of equals
 *
 * Context and choice are joined by a space unless there is white space already, and encoded together; a context's trailing
 * white space counts as the choice's (lm-eval). BOS stands in front where the model adds one, and in front of texts without
 * a context (BOS, or EOS where there is none). What is too long for the model loses its beginning ("truncated").
 * Scores: acc (sum of ln p), acc_norm (per character), acc_bytes (per byte), acc_tokens (per token), each with Wilson's
 * interval. Memory: one batch of items.
 */
struct task;
/* The file's path names the task: "blimp/transitive.jsonl" is "transitive". */
int task_new(struct task **out, struct model *m, const char *path, struct err *e) MUST_CHECK;
/* The text of the file in any pieces. Lines of at most 16 MiB; empty ones are skipped. Messages name the line. */
int task_feed(struct task *t, const char *text, size_t n, struct err *e) MUST_CHECK;
int task_finish(struct task *t, struct err *e) MUST_CHECK;
uint64_t task_items(const struct task *t); /* scored so far */
cJSON *task_json(const struct task *t, struct err *e) MUST_CHECK;
/* Appends the unweighted mean over all finished tasks of a kind to an array, for each kind that has several. */
int task_means(struct task *const *tasks, size_t n_tasks, cJSON *results, struct err *e) MUST_CHECK;
void task_free(struct task *t);

#endif
