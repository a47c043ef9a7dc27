/* What a loss on logits asks for of its block: the teacher's rows, scratch, and the divergence that several are made of. */
#include "lib/losses/losses_internal.h"

float *loss_reserve(struct buf *b, size_t n, struct err *e) {
    b->len = 0;
    return buf_reserve(b, n * sizeof(float), e) ? NULL : (float *)b->data;
}

static const float *in_process(const struct loss_block *b) {
    switch (b->loss->teacher) {
    case LOSS_TEACHER_LIVE: return b->of->live;
    case LOSS_TEACHER_EMA: return b->of->ema;
    case LOSS_TEACHER_FINAL: return b->of->final;
    default: return NULL;
    }
}

float *loss_block_scratch(struct loss_block *b, struct err *e) {
    return loss_reserve(&b->list->other, b->rows * b->vocab, e);
}

/* Losses that follow one another mostly share teacher and temperature: its softmax is made once. */
int loss_block_target(struct loss_block *b, double temperature, struct kernel_target *out, struct err *e) {
    struct loss_list *l = b->list;
    const float *logits = in_process(b);
    enum loss_teacher teacher = b->loss->teacher;
    size_t at = b->of->at + b->of->first;
    bool dense = logits || b->of->format->encoding == KNOW_DENSE;
    bool made = dense && l->dense_temperature == temperature && l->dense_of == teacher;
    float *rows = NULL;
    if (dense && !(rows = made ? (float *)l->dense.data : loss_reserve(&l->dense, b->rows * b->vocab, e)))
        return e->code;
    if (logits) {
        if (!made) kernel_log_softmax(rows, logits, b->rows, b->vocab, (float)(1 / temperature));
        *out = (struct kernel_target){.dense = rows, .label = b->labels};
    } else if (made) {
        *out = (struct kernel_target){.dense = rows, .label = b->labels};
    } else {
        knowledge_target(b->of->data, b->of->format, temperature, at, b->rows, rows, out);
    }
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
