/* Scoring runs of tokens, and the summaries that all metrics share. */
#include "lib/metrics/metrics_internal.h"

#include <math.h>
#include <stdlib.h>

int push_u32(struct buf *b, uint32_t v, struct err *e) {
    return buf_append(b, &v, sizeof v, e);
}
int push_f64(struct buf *b, double v, struct err *e) {
    return buf_append(b, &v, sizeof v, e);
}
int push_f32(struct buf *b, float v, struct err *e) {
    return buf_append(b, &v, sizeof v, e);
}

double metrics_quantile(const double *sorted, size_t n, double q) {
    if (n == 0) return NAN;
    double at = q * (double)(n - 1);
    size_t i = (size_t)at;
    if (i + 1 >= n) return sorted[n - 1];
    return sorted[i] + (at - (double)i) * (sorted[i + 1] - sorted[i]);
}

void metrics_wilson(uint64_t k, uint64_t n, double *low, double *high) {
    const double z = 1.959963984540054; /* 97.5% quantile of the normal distribution */
    if (n == 0) {
        *low = 0, *high = 1;
        return;
    }
    double p = (double)k / (double)n, z2n = z * z / (double)n;
    double centre = (p + z2n / 2) / (1 + z2n),
           half = z * sqrt(p * (1 - p) / (double)n + z2n / (4 * (double)n)) / (1 + z2n);
    *low = k == 0 ? 0 : centre - half;
    *high = k == n ? 1 : centre + half;
}

uint32_t metrics_prefix_token(const struct model *m) {
    if (!m->vocab) return TOKEN_NONE;
    return m->vocab->bos != TOKEN_NONE ? m->vocab->bos : m->vocab->eos;
}

int scorer_init(struct scorer *s, struct model *m, struct err *e) {
    *s = (struct scorer){.m = m};
    return grad_tape_new(&s->tape, false, e);
}

void scorer_release(struct scorer *s) {
    grad_tape_free(s->tape);
    buf_release(&s->tokens);
    buf_release(&s->labels);
    buf_release(&s->lengths);
    buf_release(&s->nll);
    buf_release(&s->offsets);
    buf_release(&s->kl);
}

size_t scorer_positions(const struct scorer *s) {
    return s->tokens.len / sizeof(uint32_t);
}
size_t scorer_runs(const struct scorer *s) {
    return s->lengths.len / sizeof(uint32_t);
}

void scorer_clear(struct scorer *s) {
    s->tokens.len = s->labels.len = s->lengths.len = s->nll.len = 0;
}

int scorer_add(struct scorer *s, const uint32_t *tokens, const uint32_t *labels, size_t n, struct err *e) {
    int rc = buf_append(&s->tokens, tokens, n * sizeof *tokens, e);
    if (!rc) rc = buf_append(&s->labels, labels, n * sizeof *labels, e);
    return rc ? rc : push_u32(&s->lengths, (uint32_t)n, e);
}

static int score_block(void *ctx, size_t first, size_t rows, size_t vocab, float *logits, struct err *e) {
    struct scorer *s = ctx;
    (void)e;
    struct kernel_loss how = {.temperature = 1, .kl_weight = 0, .ce_weight = 1};
    struct kernel_target target = {.offset = (const uint64_t *)s->offsets.data,
                                   .label = (const uint32_t *)s->labels.data + first};
    double *nll = (double *)s->nll.data;
    kernel_distill_loss(&how, &target, NULL, logits, rows, vocab, (double *)s->kl.data, nll + first, NULL);
    for (size_t i = 0; i < rows; i++)
        if (target.label[i] == UINT32_MAX) nll[first + i] = 0;
    return 0;
}

int scorer_run(struct scorer *s, struct err *e) {
    size_t n = scorer_positions(s);
    if (n == 0) return 0;
    s->nll.len = s->kl.len = s->offsets.len = 0;
    int rc = buf_reserve(&s->nll, n * sizeof(double), e);
    if (!rc) rc = buf_reserve(&s->kl, n * sizeof(double), e);
    if (!rc) rc = buf_reserve(&s->offsets, (n + 1) * sizeof(uint64_t), e);
    if (rc) return rc;
    memset(s->offsets.data, 0, (n + 1) * sizeof(uint64_t));
    s->nll.len = n * sizeof(double);
    struct model_input in = {n, scorer_runs(s), (const uint32_t *)s->tokens.data, (const uint32_t *)s->lengths.data};
    rc = model_infer(s->m, s->tape, &in, NULL, NULL, score_block, s, e);
    for (size_t i = 0; !rc && i < n; i++)
        if (!isfinite(((const double *)s->nll.data)[i]))
            rc = err_set(e, ERR_DATA, "the model gives no finite probability at position %zu of a batch", i);
    return rc;
}
