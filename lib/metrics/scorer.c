/* Scores batches of token sequences: -ln p of each label. */
#include "lib/metrics/metrics_internal.h"

#include <math.h>

uint32_t metrics_prefix_token(const struct model *m) {
    if (!m->vocab) return TOKEN_NONE;
    return m->vocab->bos != TOKEN_NONE ? m->vocab->bos : m->vocab->eos;
}

int scorer_init(struct scorer *s, struct model *m, struct err *e) {
    *s = (struct scorer){.m = m};
    int rc = model_check_next_token(&m->config, e);
    return rc ? rc : grad_tape_new(&s->tape, false, model_precision(m), e);
}

void scorer_release(struct scorer *s) {
    grad_tape_free(s->tape);
    buf_release(&s->tokens);
    buf_release(&s->labels);
    buf_release(&s->lengths);
    buf_release(&s->nll);
}

size_t scorer_positions(const struct scorer *s) {
    return s->tokens.len / sizeof(uint32_t);
}

void scorer_clear(struct scorer *s) {
    s->tokens.len = s->labels.len = s->lengths.len = s->nll.len = 0;
}

int scorer_add(struct scorer *s, const uint32_t *tokens, const uint32_t *labels, size_t n, struct err *e) {
    uint32_t length = (uint32_t)n;
    int rc = buf_append(&s->tokens, tokens, n * sizeof *tokens, e);
    if (!rc) rc = buf_append(&s->labels, labels, n * sizeof *labels, e);
    return rc ? rc : buf_append(&s->lengths, &length, sizeof length, e);
}

static int score_block(void *ctx, size_t first, size_t rows, size_t vocab, float *logits, struct err *e) {
    (void)e;
    struct scorer *s = ctx;
    struct kernel_loss how = {.temperature = 1, .ce_weight = 1};
    struct kernel_target target = {.label = buf_u32(&s->labels) + first};
    kernel_distill_loss(&how, &target, NULL, logits, rows, vocab, NULL, buf_f64(&s->nll) + first, kernel_f32(NULL));
    return 0;
}

int scorer_run(struct scorer *s, struct err *e) {
    size_t n = scorer_positions(s);
    if (n == 0) return 0;
    s->nll.len = 0;
    int rc = buf_reserve(&s->nll, n * sizeof(double), e);
    if (rc) return rc;
    s->nll.len = n * sizeof(double);
    struct model_input in = {.n_positions = n,
                             .n_seqs = s->lengths.len / sizeof(uint32_t),
                             .tokens = buf_u32(&s->tokens),
                             .lengths = buf_u32(&s->lengths)};
    rc = model_infer(s->m, s->tape, &in, NULL, NULL, score_block, s, e);
    const double *nll = buf_f64(&s->nll);
    for (size_t i = 0; !rc && i < n; i++)
        if (!isfinite(nll[i]))
            rc = err_set(e, ERR_DATA, "the model gives token %u no finite probability", buf_u32(&s->labels)[i]);
    return rc;
}
