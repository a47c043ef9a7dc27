/* How far a model's distribution of the next token is from that of another. */
#include <math.h>
#include <string.h>

#include "lib/prune/prune_internal.h"

struct prune_judge {
    const struct model_input *in;
    size_t positions, columns;
    float *reference; /* [positions][columns] logits */
    double *rows;     /* [positions] divergence */
};

static int keep_reference(void *ctx, size_t first, size_t rows, size_t vocab, float *logits, struct err *e) {
    struct prune_judge *j = ctx;
    (void)e;
    memcpy(j->reference + first * vocab, logits, rows * vocab * sizeof *logits);
    return 0;
}

int prune_judge_new(struct prune_judge **out, struct model *m, struct grad_tape *scratch, const struct model_input *in,
                    struct err *e) {
    int rc = model_check_next_token(&m->config, e);
    struct prune_judge *j = rc ? NULL : mem_zalloc(sizeof *j, e);
    if (!j) return e->code;
    j->in = in;
    j->positions = in->n_positions;
    j->columns = model_columns(m);
    j->reference = mem_array(j->positions, j->columns * sizeof *j->reference, e);
    j->rows = j->reference ? mem_array(j->positions, sizeof *j->rows, e) : NULL;
    rc = j->rows ? 0 : err_prefix(e, "logits of %zu positions", j->positions);
    if (!rc) rc = model_infer(m, scratch, in, NULL, NULL, keep_reference, j, e);
    if (rc)
        prune_judge_free(j);
    else
        *out = j;
    return rc;
}

void prune_judge_free(struct prune_judge *j) {
    if (!j) return;
    mem_free(j->reference);
    mem_free(j->rows);
    mem_free(j);
}

struct block {
    struct prune_judge *j;
    const float *logits;
    size_t first;
};

static double log_sum(const float *x, size_t n) {
    double sum = 0;
    float top = x[0];
    for (size_t i = 1; i < n; i++) top = x[i] > top ? x[i] : top;
    for (size_t i = 0; i < n; i++) sum += exp((double)x[i] - top);
    return log(sum) + top;
}

/* sum p (log p - log q) */
static void diverge_row(void *ctx, size_t r, int thread) {
    const struct block *b = ctx;
    size_t n = b->j->columns;
    const float *p = b->j->reference + (b->first + r) * n, *q = b->logits + r * n;
    double of_p = log_sum(p, n), of_q = log_sum(q, n), sum = 0;
    (void)thread;
    for (size_t i = 0; i < n; i++) {
        double log_p = p[i] - of_p;
        sum += exp(log_p) * (log_p - (q[i] - of_q));
    }
    b->j->rows[b->first + r] = sum;
}

int prune_judge_rows(void *judge, size_t first, size_t rows, size_t vocab, float *logits, struct err *e) {
    struct block b = {judge, logits, first};
    (void)vocab, (void)e;
    parallel_for(rows, diverge_row, &b);
    return 0;
}

int prune_judge_mean(const struct prune_judge *j, double *kl, struct err *e) {
    *kl = 0;
    for (size_t r = 0; r < j->positions; r++) *kl += j->rows[r] / (double)j->positions;
    return isfinite(*kl) ? 0 : err_set(e, ERR_DATA, "the divergence is %g", *kl);
}

int prune_judge_model(struct prune_judge *j, struct model *m, struct grad_tape *scratch, double *kl, struct err *e) {
    if (model_columns(m) != j->columns)
        return err_set(e, ERR_USAGE, "%u logits and %zu cannot be compared", model_columns(m), j->columns);
    int rc = model_infer(m, scratch, j->in, NULL, NULL, prune_judge_rows, j, e);
    return rc ? rc : prune_judge_mean(j, kl, e);
}
