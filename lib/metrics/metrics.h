/*
 * metrics: how good is a model? Perplexity by named protocols, divergence from a reference's knowledge, minimal pairs and multiple
 * choice. Every result is a flat JSON object (one line of eval's output) that says how it was computed.
 */
#ifndef RILL_METRICS_H
#define RILL_METRICS_H

#include "lib/base/base.h"
#include "lib/knowledge/knowledge.h"
#include "lib/model/model.h"

/* ---- summaries ----------------------------------------------------------------------------------------------------- */

/* The q-quantile (q in [0,1]) of n sorted values, linear between neighbours (numpy's default, type 7 of Hyndman and Fan 1996). */
double metrics_quantile(const double *sorted, size_t n, double q);
/* Wilson's score interval at 95% for k successes of n (Wilson 1927). */
void metrics_wilson(uint64_t k, uint64_t n, double *low, double *high);

/* ---- perplexity ------------------------------------------------------------------------------------------------------ */

/*
 * Protocols differ and are not comparable; the name goes with the number.
 *   gptq       all tokens as one text, disjoint windows of `context`, every position after the first scored, a last shorter
 *              window left out (Frantar et al. 2022)
 *   llama      the same windows, BOS in place of the first token if the model adds one, only targets in the second half of a
 *              window scored (llama.cpp's llama-perplexity)
 *   sliding    one text, windows of `context` moved by `stride`: each token scored once, with at least context - stride tokens
 *              before it (Hugging Face's recipe)
 *   sequences  each sequence of the stream for itself, every position after the first
 *   documents  each sequence is a document, scored whole behind BOS (or EOS where there is none) in disjoint windows of `context`,
 *              also per word and per byte (lm-eval's loglikelihood_rolling)
 */
enum perplexity_protocol { PPL_GPTQ, PPL_LLAMA, PPL_SLIDING, PPL_SEQUENCES, PPL_DOCUMENTS };
int perplexity_protocol_parse(const char *name, enum perplexity_protocol *out, struct err *e) MUST_CHECK;

struct perplexity_options {
    enum perplexity_protocol protocol;
    uint32_t context;       /* window */
    uint32_t stride;        /* sliding */
    uint64_t max_windows;   /* 0: all */
    size_t batch_positions; /* evaluated together */
};
struct perplexity;
int perplexity_new(struct perplexity **out, struct model *m, const struct perplexity_options *o,
                   struct err *e) MUST_CHECK;
/* Tokens of a batch of the stream, in order. */
int perplexity_feed(struct perplexity *p, const struct batch *b, struct err *e) MUST_CHECK;
bool perplexity_full(const struct perplexity *p); /* max_windows reached: no more input is needed */
int perplexity_finish(struct perplexity *p, struct err *e) MUST_CHECK;
uint64_t perplexity_scored(const struct perplexity *p);
double perplexity_value(const struct perplexity *p);
cJSON *perplexity_json(const struct perplexity *p, struct err *e) MUST_CHECK;
void perplexity_free(struct perplexity *p);

/* ---- divergence from a reference ------------------------------------------------------------------------------------------ */

/*
 * KL(reference || model) and its company over every position of a knowledge stream, as llama.cpp's --kl-divergence reports them.
 * From sparse knowledge: entries and (ghost) the rest as one pseudo-token; top-k without a rest is normalised over its entries; draws
 * give the cross-entropy of the reference to the model (unbiased) and no KL. Memory: 24 bytes a position, for the percentiles.
 */
struct divergence;
int divergence_new(struct divergence **out, struct model *m, const struct knowledge_format *f,
                   struct err *e) MUST_CHECK;
int divergence_feed(struct divergence *d, const struct batch *b, struct err *e) MUST_CHECK;
int divergence_finish(struct divergence *d, struct err *e) MUST_CHECK;
uint64_t divergence_positions(const struct divergence *d);
cJSON *divergence_json(struct divergence *d, struct err *e) MUST_CHECK;
void divergence_free(struct divergence *d);

/* ---- tasks from JSONL -------------------------------------------------------------------------------------------------------- */

/*
 * One JSON object a line. Minimal pairs: "sentence_good" and "sentence_bad" (BLiMP). Multiple choice: a context ("context",
 * "query", "question" or "ctx"), "choices" or "endings" (array of strings) and "answer", "gold" or "label" (index). A context's trailing
 * spaces belong to the continuation before encoding. Sentences stand behind BOS, or EOS where there is none.
 * Scores: acc (sum of log p), acc_norm (per character), acc_bytes (per byte), acc_tokens (per token).
 */
struct task;
int task_new(struct task **out, struct model *m, const char *name, struct err *e) MUST_CHECK;
/* A line without its newline; `number` from 1, for messages. Empty lines are skipped. */
int task_line(struct task *t, const char *line, size_t n, uint64_t number, struct err *e) MUST_CHECK;
int task_finish(struct task *t, struct err *e) MUST_CHECK;
cJSON *task_json(const struct task *t, struct err *e) MUST_CHECK;
void task_free(struct task *t);

#endif
