/* Losses on a block of logits: each head's gradient is summed in f32, then written where grad_heads expects it. */
#include <string.h>

#include "lib/losses/losses_internal.h"

/* ---- one head ---------------------------------------------------------------------------------------------------- */

static double sum_rows(const double *values, const float *row_weight, size_t rows) {
    double sum = 0;
    for (size_t r = 0; r < rows; r++)
        if (row_weight[r] != 0) sum += values[r];
    return sum;
}

/* Returns the share of a loss that a head gets: head 0 is the last one, head 1 + i is exit i. */
static double share_of(const struct loss_list *l, const struct loss *item, size_t head) {
    if (!item->type->logits) return 0;
    if (item->at == LOSS_AT_EXITS) return head ? 1 / (double)l->n_exits : 0;
    return (size_t)(item->at == LOSS_AT_FINAL ? 0 : item->at - LOSS_AT_EXIT + 1) == head ? 1 : 0;
}

static int head_losses(struct loss_list *l, const struct loss_rows *r, size_t head, const struct loss_block *common,
                       struct err *e) {
    struct kernel_array out = head ? r->exit_dlogits[head - 1] : r->final_dlogits;
    size_t n = r->rows * r->vocab;
    float *dlogits = kernel_has_data(out) ? loss_reserve(&l->dlogits, n, e) : NULL;
    if (kernel_has_data(out) && !dlogits) return e->code;
    if (dlogits) kernel_fill(kernel_f32(dlogits), n, 0);
    for (size_t i = 0; i < l->n; i++) {
        struct loss *item = &l->items[i];
        double share = share_of(l, item, head);
        if (share == 0) continue;
        struct loss_block b = *common;
        b.loss = item;
        b.logits = kernel_host(head ? r->exits[head - 1] : r->final, n);
        b.weight = (float)(item->weight * share);
        b.dlogits = item->weight != 0 ? dlogits : NULL;
        if (item->type->logits(item, &b, e)) return e->code;
        item->sum += share * sum_rows(b.values, b.row_weight, b.rows);
    }
    /* In f32 the gradient overwrites this head's logits, which may still teach other heads: see loss_list_block. */
    if (dlogits) kernel_convert(out, kernel_f32(dlogits), n);
    return 0;
}

/* Computes kl and ce in one kernel, which overwrites the logits with the gradient. */
static int fused_losses(struct loss_list *l, const struct loss_rows *r, const struct loss_block *common,
                        struct err *e) {
    struct loss *kl = NULL, *ce = NULL;
    struct kernel_loss how = {1, 0, 0};
    struct kernel_target target = {.label = common->labels};
    struct loss_block b = *common;
    double *values[2] = {b.values, b.values + r->rows};
    for (size_t i = 0; i < l->n; i++)
        if (l->items[i].type == &loss_kl)
            kl = &l->items[i];
        else if (l->items[i].type == &loss_ce)
            ce = &l->items[i];
    b.loss = kl;
    if (kl) how.temperature = (float)loss_temperature(kl), how.kl_weight = (float)kl->weight;
    if (ce) how.ce_weight = (float)ce->weight;
    if (kl && loss_block_target(&b, loss_temperature(kl), &target, e)) return e->code;
    kernel_distill_loss(&how, &target, b.row_weight, r->final, r->rows, r->vocab, values[0], values[1],
                        r->final_dlogits);
    for (size_t i = 0; kl && i < r->rows; i++) values[0][i] = loss_kl_value(r->format, &target, i, values[0][i]);
    /* summed row by row over the whole step, so that the bits do not depend on how rows are cut into blocks */
    for (size_t i = 0; i < r->rows; i++) {
        if (b.row_weight[i] == 0) continue;
        if (kl) kl->sum += values[0][i];
        if (ce) ce->sum += values[1][i];
    }
    return 0;
}

/* Exits go first: the gradient of the last head may overwrite its logits, from which exits may learn. */
int loss_list_block(struct loss_list *l, const struct loss_rows *r, struct err *e) {
    float *row_weight = loss_reserve(&l->row_weight, r->rows, e);
    l->values.len = 0;
    if (!row_weight || buf_reserve(&l->values, 2 * r->rows * sizeof(double), e)) return e->code;
    struct loss_block common = {.rows = r->rows,
                                .vocab = r->vocab,
                                .labels = r->data->labels + r->at + r->first,
                                .row_weight = row_weight,
                                .values = (double *)l->values.data,
                                .list = l,
                                .of = r};
    for (size_t i = 0; i < r->rows; i++) row_weight[i] = common.labels[i] == UINT32_MAX ? 0 : 1;
    l->dense_temperature = 0;
    if (l->fused && !l->n_exits) return fused_losses(l, r, &common, e);
    for (size_t head = l->n_exits + 1; head-- > 0;)
        if (head_losses(l, r, head, &common, e)) return e->code;
    return 0;
}
