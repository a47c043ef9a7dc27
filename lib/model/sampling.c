/* Sampling a token from each row of logits: greedy, full softmax, top-k, top-p; rows are distributed over threads. */
#include "lib/model/sampling.h"

#include <math.h>
#include <stdlib.h>

#define NUCLEUS 256 /* candidates for the nucleus in the first attempt */

/* False for greedy sampling and for sampling from the whole row. */
static bool needs_candidates(const struct sampler *s) {
    return s->how.temperature > 0 && (s->how.top_k > 0 || s->how.top_p < 1);
}

int sampler_init(struct sampler *s, const struct model_sampling *how, size_t vocab, struct err *e) {
    *s = (struct sampler){.how = *how, .vocab = vocab, .threads = parallel_threads()};
    if (how->top_k >= vocab) s->how.top_k = 0; /* all */
    if (!needs_candidates(s)) return 0;
    s->ids = mem_array((size_t)s->threads * vocab, sizeof *s->ids, e);
    if (!s->ids) return e->code;
    s->values = mem_array((size_t)s->threads * vocab, sizeof *s->values, e);
    return s->values ? 0 : e->code;
}

void sampler_release(struct sampler *s) {
    mem_free(s->ids);
    mem_free(s->values);
    s->ids = NULL;
    s->values = NULL;
}

double sampler_uniform(const struct sampler *s, uint64_t seq, uint64_t n) {
    uint32_t words[4];
    philox(s->how.seed, seq, n, words);
    return ((uint64_t)(words[0] >> 5) * 67108864.0 + (words[1] >> 6)) * 0x1p-53;
}

/* The leading candidates of a row, in one thread's scratch memory. */
struct candidates {
    uint32_t *ids;
    float *values; /* descending */
    double inv_t;
};

/* Draws from the softmax over the first n candidates by inversion; the last one if rounding leaves mass over. */
static uint32_t draw_among(const struct candidates *c, size_t n, double u) {
    double total = 0, top = c->values[0];
    for (size_t i = 0; i < n; i++) total += exp((c->values[i] - top) * c->inv_t);
    double left = u * total;
    for (size_t i = 0; i < n; i++) {
        left -= exp((c->values[i] - top) * c->inv_t);
        if (left < 0) return c->ids[i];
    }
    return c->ids[n - 1];
}

/* The smallest number of leading candidates, at most n, whose probability is at least top_p; 0: n are not enough. lse
 * is the log-sum-exp of the whole row over the temperature. */
static size_t nucleus(const struct candidates *c, size_t n, double lse, double top_p) {
    double mass = 0;
    for (size_t i = 0; i < n; i++) {
        mass += exp(c->values[i] * c->inv_t - lse);
        if (mass >= top_p) return i + 1;
    }
    return 0;
}

/* Top-p applies within top-k, to its renormalized mass, as Hugging Face's logits warpers are chained. */
static uint32_t draw_top_k(const struct sampler *s, const struct candidates *c, struct kernel_array logits, double u) {
    size_t k = s->how.top_k;
    kernel_topk(c->ids, c->values, logits, 1, s->vocab, k);
    if (s->how.top_p >= 1) return draw_among(c, k, u);
    double top = c->values[0], total = 0;
    for (size_t i = 0; i < k; i++) total += exp((c->values[i] - top) * c->inv_t);
    size_t n = nucleus(c, k, top * c->inv_t + log(total), s->how.top_p);
    return draw_among(c, n ? n : k, u);
}

/* The nucleus is usually small: start with few candidates, take more if their mass is not enough. */
static uint32_t draw_top_p(const struct sampler *s, const struct candidates *c, struct kernel_array logits, double u) {
    float lse;
    kernel_logsumexp(&lse, logits, 1, s->vocab, (float)c->inv_t);
    for (size_t n = NUCLEUS;; n *= 8) {
        if (n > s->vocab) n = s->vocab;
        kernel_topk(c->ids, c->values, logits, 1, s->vocab, n);
        size_t take = nucleus(c, n, lse, s->how.top_p);
        if (take || n == s->vocab) return draw_among(c, take ? take : n, u);
    }
}

struct draw {
    const struct sampler *s;
    uint32_t *ids;
    struct kernel_array logits;
    const double *u;
};

static void draw_row(void *ctx, size_t r, int thread) {
    const struct draw *d = ctx;
    const struct sampler *s = d->s;
    struct kernel_array logits = kernel_part(d->logits, r * s->vocab);
    size_t at = (size_t)thread * s->vocab;
    struct candidates c = {s->ids + at, s->values + at, 1 / s->how.temperature};
    d->ids[r] = s->how.top_k ? draw_top_k(s, &c, logits, d->u[r]) : draw_top_p(s, &c, logits, d->u[r]);
}

void sampler_draw(const struct sampler *s, uint32_t *ids, struct kernel_array logits, const double *u, size_t rows) {
    struct draw d = {s, ids, logits, u};
    if (s->how.temperature <= 0)
        kernel_argmax(ids, logits, rows, s->vocab);
    else if (!needs_candidates(s))
        kernel_sample(ids, u, logits, rows, s->vocab, 1, (float)(1 / s->how.temperature));
    else
        parallel_for(rows, draw_row, &d);
}
