/* Helpers for losses on logits: the teacher's rows, and kernels shared by several losses. */
#include "lib/losses/losses_internal.h"

float *loss_reserve(struct buf *b, size_t n, struct err *e) {
    b->len = 0;
    return buf_reserve(b, n * sizeof(float), e) ? NULL : (float *)b->data;
}

static struct kernel_array rows_in_process(const struct loss_block *b) {
    switch (b->loss->teacher) {
    case LOSS_TEACHER_LIVE: return b->of->live;
    case LOSS_TEACHER_EMA: return b->of->ema;
    case LOSS_TEACHER_FINAL: return b->of->final;
    default: return kernel_none(DT_F32);
    }
}

static const float *in_process(const struct loss_block *b) {
    return kernel_host(rows_in_process(b), b->rows * b->vocab);
}

/* Consecutive losses mostly share teacher and temperature, so the softmax is cached in l->dense. */
int loss_block_target(struct loss_block *b, double temperature, struct kernel_target *out, struct err *e) {
    struct loss_list *l = b->list;
    struct kernel_array logits = rows_in_process(b);
    enum loss_teacher teacher = b->loss->teacher;
    size_t at = b->of->at + b->of->first;
    bool dense = kernel_has_data(logits) || b->of->format->encoding == KNOW_DENSE;
    bool made = dense && l->dense_temperature == temperature && l->dense_of == teacher;
    float *rows = NULL;
    if (dense && !(rows = made ? (float *)l->dense.data : loss_reserve(&l->dense, b->rows * b->vocab, e)))
        return e->code;
    if (kernel_has_data(logits) && !made)
        kernel_log_softmax(kernel_f32(rows), logits, b->rows, b->vocab, (float)(1 / temperature));
    if (kernel_has_data(logits) || made)
        *out = (struct kernel_target){.dense = rows, .label = b->labels};
    else
        knowledge_target(b->of->data, b->of->format, temperature, at, b->rows, rows, out);
    if (dense) l->dense_temperature = temperature, l->dense_of = teacher;
    return 0;
}

int loss_block_logits(struct loss_block *b, const float **out, struct err *e) {
    float *rows;
    if ((*out = in_process(b))) return 0;
    b->list->dense_temperature = 0;
    if (!(rows = loss_reserve(&b->list->dense, b->rows * b->vocab, e))) return e->code;
    knowledge_dense_rows(b->of->data, b->of->format, b->of->at + b->of->first, b->rows, rows);
    *out = rows;
    return 0;
}

int loss_divergence(struct loss *l, struct loss_block *b, enum kernel_divergence_kind kind, double first, double second,
                    struct err *e) {
    struct kernel_divergence how = {kind, (float)loss_temperature(l), (float)first, (float)second, b->weight};
    struct kernel_target target;
    if (loss_block_target(b, loss_temperature(l), &target, e)) return e->code;
    kernel_divergence(&how, &target, b->row_weight, b->logits, b->rows, b->vocab, b->values, b->dlogits);
    return 0;
}

int loss_distill(struct loss_block *b, const struct kernel_loss *how, const struct kernel_target *target, double *kl,
                 double *ce, struct err *e) {
    size_t n = b->rows * b->vocab;
    float *dx = b->dlogits ? loss_reserve(&b->list->other, n, e) : NULL;
    if (b->dlogits && !dx) return e->code;
    kernel_distill_loss(how, target, b->row_weight, kernel_f32(b->logits), b->rows, b->vocab, kl, ce, kernel_f32(dx));
    if (dx) kernel_add(kernel_f32(b->dlogits), kernel_f32(dx), n);
    return 0;
}
