/*
 * metrics: how good is a model? Perplexity by named protocols, divergence from a reference's knowledge, minimal pairs
 * and multiple choice. Every result is a flat JSON object (a line of eval's output) that says how it was computed.
 */
#ifndef RILL_METRICS_H
#define RILL_METRICS_H

#include "lib/base/base.h"
#include "lib/knowledge/knowledge.h"
#include "lib/model/model.h"

/* ---- summaries --------------------------------------------------------------------------------------------------- */

/* Returns the q-quantile (q in [0,1]) of n sorted values, by linear interpolation (numpy's default, type 7 of Hyndman
 * and Fan 1996); NAN if n is 0. */
double metrics_quantile(const double *sorted, size_t n, double q);
/* Sets Wilson's score interval at 95% for k successes out of n (Wilson 1927). */
void metrics_wilson(uint64_t k, uint64_t n, double *low, double *high);

/* Called after each batch by the functions that read a whole stream. Their error messages name the stream. */
typedef void metrics_watch(void *ctx);

/* ---- labels in the data: masked tokens, classes of sequences or tokens ------------------------------------------- */

/*
 * Evaluates a masked language model on masked tokens (tokenize --mask-rate), or a classifier on texts with classes
 * (tokenize --labels) or words with tags (tokenize --tags). Reports perplexity and accuracy over the labels; for
 * classes also precision, recall and F1 as unweighted means over the classes that occur (macro), and F1 of class 1 if
 * there are two. Tags are scored per token, not per span. The result does not depend on where batches were cut.
 */
struct labelling;
/* Creates an evaluation; the model must outlive it. ERR_DATA: the data has no labels for this model. */
int labelling_new(struct labelling **out, struct model *m, const struct knowledge_format *f, struct err *e) MUST_CHECK;
/* Reads a stream of format f to its end, then scores it. ERR_DATA: no labels, or probabilities that are not finite. */
int labelling_read(struct labelling *l, struct stream_reader *r, metrics_watch *watch, void *ctx,
                   struct err *e) MUST_CHECK;
uint64_t labelling_scored(const struct labelling *l); /* labels so far */
double labelling_perplexity(const struct labelling *l);
/* Returns the result, which the caller frees; NULL: out of memory. */
cJSON *labelling_json(const struct labelling *l, struct err *e) MUST_CHECK;
void labelling_free(struct labelling *l); /* no-op if NULL */

/* ---- perplexity -------------------------------------------------------------------------------------------------- */

/*
 * Protocols are not comparable with each other, so their name goes with the number. The result does not depend on where
 * batches were cut. Memory: a few contexts of tokens, and the activations of a batch.
 *   gptq       all tokens as one text, in disjoint windows of `context`; every position after the first is scored, and
 *              a last, shorter window is left out (Frantar et al. 2022)
 *   llama      the same windows, with BOS in place of the first token if the model adds one; only targets in the second
 *              half of a window are scored (llama.cpp's llama-perplexity)
 *   sliding    one text, in windows of `context` moved by `stride`: each token is scored once, after at least
 *              context - stride tokens (Hugging Face's recipe)
 *   sequences  each sequence of the stream on its own, every position after the first
 *   documents  each sequence is a document, scored completely after BOS (or EOS if there is none), in disjoint windows
 *              of `context`; also per word and per byte (lm-eval's loglikelihood_rolling)
 */
enum perplexity_protocol { PPL_GPTQ, PPL_LLAMA, PPL_SLIDING, PPL_SEQUENCES, PPL_DOCUMENTS };
/* Parses the name of a protocol. ERR_USAGE. */
int perplexity_protocol_parse(const char *name, enum perplexity_protocol *out, struct err *e) MUST_CHECK;

struct perplexity_options {
    enum perplexity_protocol protocol;
    uint32_t context;       /* length of a window */
    uint32_t stride;        /* PPL_SLIDING only */
    uint64_t max_windows;   /* 0: all */
    size_t batch_positions; /* evaluated together, in whole windows; 0: one window at a time */
};
/* Replaces zeros by defaults: context 512, or the model's if that is shorter (PPL_SEQUENCES: always the model's);
 * stride half of it. ERR_USAGE: a stride for another protocol. */
int perplexity_choose(struct perplexity_options *o, const struct model *m, struct err *e) MUST_CHECK;
struct perplexity;
/* Creates an evaluation; the model must outlive it. ERR_USAGE: context or stride is out of range. ERR_DATA:
 * PPL_DOCUMENTS needs BOS or EOS. */
int perplexity_new(struct perplexity **out, struct model *m, const struct perplexity_options *o,
                   struct err *e) MUST_CHECK;
/* Adds the tokens of the stream's next batch. Its last sequence may continue in the following one. */
int perplexity_feed(struct perplexity *p, const struct batch *b, struct err *e) MUST_CHECK;
bool perplexity_full(const struct perplexity *p); /* max_windows reached: no more input is needed */
/* Scores what is left; call it once, after the last batch. ERR_DATA: there was nothing to score. */
int perplexity_finish(struct perplexity *p, struct err *e) MUST_CHECK;
/* Reads a stream of format f to its end: feed and finish. */
int perplexity_read(struct perplexity *p, struct stream_reader *r, const struct knowledge_format *f,
                    metrics_watch *watch, void *ctx, struct err *e) MUST_CHECK;
uint64_t perplexity_scored(const struct perplexity *p); /* tokens so far */
double perplexity_value(const struct perplexity *p);
/* Returns the result, which the caller frees; NULL: out of memory. */
cJSON *perplexity_json(const struct perplexity *p, struct err *e) MUST_CHECK;
void perplexity_free(struct perplexity *p);

/* ---- divergence from a reference --------------------------------------------------------------------------------- */

/*
 * KL(reference || model) and related metrics over all counted positions of a knowledge stream, as llama.cpp's
 * --kl-divergence reports them: mean, error and percentiles of the divergence (kld) and of p(label) of the model minus
 * that of the reference (delta_p), how often both agree on the most probable token (same_top), both perplexities, and
 * the mean logarithm of their ratio. Errors are standard errors of the mean, sqrt(var / (n - 1)), for the ratio
 * including the covariance.
 *
 * A key means the same for every encoding. A quantity that an encoding does not determine is bounded under another key,
 * or absent:
 *
 *                          dense   topk, ghost               sample
 *   perplexity             of all labels, of the model at temperature 1: independent of the encoding
 *   same_top               yes     yes: the first entry *    -           * over positions with entries
 *   kld, percentiles       yes     kld_lower_bound           -
 *   cross_entropy          -       -                         -sum p ln q, unbiased: kld plus the reference's entropy
 *   perplexity_reference   yes     ..._lower_bound           -
 *   ln_ratio               yes     ..._upper_bound           -
 *   ln_correlation         yes     -                         -
 *   delta_p                yes     ..._lower_, _upper_bound  -
 *   delta_p percentiles, rms  yes  -                         -
 *   labels_known           all     labels among the entries  -
 *
 * topk and ghost are the same bytes and are treated alike: the tokens outside the entries are merged into one token on
 * both sides, which can only lower the divergence of a position; a label outside the entries has at most the
 * probability of the smallest entry, and at most the rest. Bounds hold up to the rounding of the entries (f16: 0.4% of
 * a probability of 1e-5).
 *
 * Dense knowledge is compared at temperature 1, the other encodings at the temperature that they were made at. If that
 * is not 1, the keys are tempered_kld_lower_bound and tempered_cross_entropy, and values that need the reference's
 * p(label) at temperature 1 are absent. Memory: 16 bytes per position for percentiles, and the knowledge of the longest
 * sequence.
 */
struct divergence;
/* Creates an evaluation; the model must outlive it. ERR_DATA: the format has no predictions, or does not fit the model
 * (knowledge_fit_target). The caller has checked the vocabulary with model_check_vocab. */
int divergence_new(struct divergence **out, struct model *m, const struct knowledge_format *f,
                   struct err *e) MUST_CHECK;
/* Adds the stream's next batch; ERR_DATA: it is malformed, or a probability of the model is not finite. */
int divergence_feed(struct divergence *d, const struct batch *b, struct err *e) MUST_CHECK;
/* Call once after the last batch. ERR_DATA: the last sequence is incomplete, or there were no positions. */
int divergence_finish(struct divergence *d, struct err *e) MUST_CHECK;
/* Reads a stream of the format to its end: feed and finish. */
int divergence_read(struct divergence *d, struct stream_reader *r, metrics_watch *watch, void *ctx,
                    struct err *e) MUST_CHECK;
uint64_t divergence_positions(const struct divergence *d);
/* Returns the result, which the caller frees; NULL: out of memory. */
cJSON *divergence_json(struct divergence *d, struct err *e) MUST_CHECK;
/* Is this a result's key for a percentile, minimum or maximum ("kld_99.9")? */
bool metrics_is_percentile(const char *key);
void divergence_free(struct divergence *d);

/* ---- fidelity of encodings --------------------------------------------------------------------------------------- */

/*
 * What encodings of the same predictions cost and keep, for a given student: its gradient d kl / d logits at each
 * labelled position (p - t, with the loss's treatment of the encoding), compared with the gradient from the dense
 * predictions, as in Anshumann et al. 2025, "Sparse logit sampling". A result has
 *   angle, norm_ratio   of the sums over all positions, which are the gradients of one bias per token: what a step over
 *                       many positions sees, where the noise of draws averages out and a bias does not. Degrees; norm
 *                       relative to the dense gradient's
 *   position_angle      mean of the angles at each position; position_norm_ratio: ratio of the root mean square norms
 *   calibration_error   expected, in 15 bins (Guo et al. 2017): probability that the target gives the student's most
 *                       probable token, once learned, against how often that token is the label
 *   bytes, bytes_zstd   of the response, per position, raw and as a stream with --codec zstd stores it
 * All at the encodings' temperature. Memory: the longest sequence's predictions in every encoding, a batch of the
 * student, and three blocks of logits.
 */
struct fidelity_input {
    struct stream_reader *r;
    const struct knowledge_format *format;
};
struct fidelity;
/* Creates a comparison. The first input must be dense; the caller has checked the vocabulary of all. Model, readers and
 * formats must outlive it. ERR_DATA; *bad is the index of the input at fault. */
int fidelity_new(struct fidelity **out, struct model *m, const struct fidelity_input *in, size_t n, size_t *bad,
                 struct err *e) MUST_CHECK;
/* Reads all streams in lockstep to their ends. ERR_DATA: they differ in tokens or labels, or have no labels. */
int fidelity_read(struct fidelity *f, metrics_watch *watch, void *ctx, struct err *e) MUST_CHECK;
uint64_t fidelity_positions(const struct fidelity *f); /* compared so far */
/* Returns the result for input i, a flat object that the caller frees; NULL: out of memory. */
cJSON *fidelity_json(const struct fidelity *f, size_t i, struct err *e) MUST_CHECK;
double fidelity_speed(const struct fidelity *f, size_t i); /* positions per second of decoding, loss and gradient */
void fidelity_free(struct fidelity *f);                    /* no-op if NULL */

/* ---- tasks from JSONL -------------------------------------------------------------------------------------------- */

/*
 * One JSON object per line; members not named here are ignored.
 *   minimal pairs     "sentence_good" and "sentence_bad" (BLiMP): correct if the good one is more probable
 *   multiple choice   a context ("context", "query", "question" or "ctx"), "choices" or "endings" (strings) and
 *                     "answer", "gold" or "label" (index from 0): correct if that choice scores best, the first one of
 *                     ties
 *
 * Context and choice are joined by a space unless there is white space already, and encoded together; trailing white
 * space of the context belongs to the choice (lm-eval). BOS is prepended if the model adds one, and to texts without a
 * context (BOS, or EOS if there is none). Texts longer than the model's context lose their beginning ("truncated").
 * Scores: acc (sum of ln p), acc_norm (per character), acc_bytes (per byte), acc_tokens (per token), each with Wilson's
 * interval. Memory: one batch of items.
 */
struct task;
/* Creates a task, named after the file: "blimp/transitive.jsonl" is "transitive". ERR_DATA: the model has no
 * vocabulary. */
int task_new(struct task **out, struct model *m, const char *path, struct err *e) MUST_CHECK;
/* Adds text of the file, in pieces of any size. Lines have at most 16 MiB; empty ones are skipped. ERR_DATA names the
 * line. */
int task_feed(struct task *t, const char *text, size_t n, struct err *e) MUST_CHECK;
/* Scores what is left; call it once at the end of the file. ERR_DATA: no items. */
int task_finish(struct task *t, struct err *e) MUST_CHECK;
uint64_t task_items(const struct task *t); /* scored so far */
/* Returns the result, which the caller frees; NULL: out of memory. */
cJSON *task_json(const struct task *t, struct err *e) MUST_CHECK;
/* For each kind that several finished tasks have, appends their unweighted mean to an array. */
int task_means(struct task *const *tasks, size_t n_tasks, cJSON *results, struct err *e) MUST_CHECK;
void task_free(struct task *t);

#endif
