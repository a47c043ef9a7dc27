/*
 * The head: logits for a block of positions, their gradient from the caller's loss, and at once the two products that
 * need it. At a vocabulary of 49152 a block is 48 MiB instead of gigabytes. 256 positions make the products large
 * enough that reading the weight three times a block is a small part of the time.
 */
#include "lib/grad/grad_internal.h"

#define HEAD_ROWS 256

struct head {
    struct grad_node *h, *w;
    float *logits;
    grad_loss_block *loss;
    void *ctx;
};

static bool head_block(struct grad_tape *t, const struct head *c, size_t first, size_t rows, float *dh, float *dw) {
    size_t hidden = c->h->var.cols, vocab = c->w->var.rows;
    const float *h = (const float *)c->h->var.value.data + first * hidden;
    struct err e;
    kernel_matmul_nt(rows, vocab, hidden, h, c->w->var.value.data, 0, c->logits);
    int code = c->loss(c->ctx, first, rows, vocab, c->logits, &e);
    if (code != 0) {
        tape_fail(t, code, "%s", e.msg);
        return false;
    }
    if (dh) kernel_matmul_nn(rows, hidden, vocab, c->logits, c->w->var.value.data, 1, dh + first * hidden);
    if (dw) kernel_matmul_tn(vocab, hidden, rows, c->logits, h, 1, dw);
    return true;
}

bool grad_head(struct grad_tape *t, struct grad_var *h, struct grad_var *w, grad_loss_block *loss, void *ctx) {
    if (!h || !w || t->error.code) return false;
    if (h->cols != w->cols)
        return tape_fail(t, ERR_DATA, "head: input of %zu, weight [%zu, %zu]", h->cols, w->rows, w->cols);
    struct head c = {.h = node_of(h), .w = node_of(w), .loss = loss, .ctx = ctx};
    float *dh = t->record ? node_sum(t, c.h) : NULL, *dw = t->record ? node_sum(t, c.w) : NULL;
    size_t mark = stack_mark(&t->scratch), rows = h->rows < HEAD_ROWS ? h->rows : HEAD_ROWS;
    uint64_t n;
    if (!u64_mul(rows, w->rows, &n)) return tape_fail(t, ERR_IO, "out of memory: logits of [%zu, %zu]", rows, w->rows);
    c.logits = tape_scratch(t, n, sizeof *c.logits);
    if (!c.logits) return false;
    bool ok = true;
    for (size_t first = 0; ok && first < h->rows; first += rows) {
        if (h->rows - first < rows) rows = h->rows - first;
        ok = head_block(t, &c, first, rows, dh, dw);
    }
    stack_rewind(&t->scratch, mark);
    return ok;
}
