/*
 * The head: logits for a block of positions, their gradient from the caller's loss, and at once the two products that
 * need it. At a vocabulary of 49152 a block is tens of megabytes instead of gigabytes; README.md has the measurements.
 */
#include "lib/grad/grad_internal.h"

#define HEAD_ROWS    512
#define FORWARD_ROWS 256 /* without gradients: half the memory at the same speed */

struct head {
    struct grad_tape *t;
    struct grad_node *h, *w, *bias;
    float softcap;
    size_t hidden, vocab;
    struct kernel_matrix forward, backward; /* w and its transposition, in bf16 only */
    struct kernel_array h16;                /* h in bf16 */
    struct kernel_array packed_h;           /* memory for a block of h, packed */
    struct kernel_array logits, dlogits;    /* of a block */
    struct kernel_array dh, dw, db;         /* no data: not wanted */
    bool add_dh, add_dw;                    /* to what is there */
    grad_loss_block *loss;
    void *ctx;
};

static void block_logits(const struct head *c, size_t first, size_t rows) {
    struct kernel_array bias = c->bias ? c->bias->var.value : kernel_none(DT_F32);
    if (c->t->precision == DT_BF16) {
        struct kernel_epilogue how = {.bias = bias};
        kernel_multiply(rows, kernel_part(c->h16, first * c->hidden), &c->forward, &how, c->logits);
    } else {
        struct kernel_array h = kernel_part(c->h->var.value, first * c->hidden);
        kernel_matmul_nt(rows, c->vocab, c->hidden, h, c->w->var.value, 0, c->logits);
        if (c->bias) kernel_add_bias(c->logits, bias, rows, c->vocab);
    }
    if (c->softcap > 0) kernel_softcap(c->logits, c->logits, rows * c->vocab, c->softcap);
}

/* dh [+]= dlogits w, dw [+]= dlogits^T h, which later blocks add to */
static void block_gradients(struct head *c, size_t first, size_t rows) {
    struct kernel_array dh = kernel_part(c->dh, first * c->hidden);
    bool with_dh = kernel_has_data(c->dh), with_dw = kernel_has_data(c->dw);
    if (c->softcap > 0) kernel_softcap_backward(c->dlogits, c->logits, rows * c->vocab, c->softcap);
    if (kernel_has_data(c->db)) kernel_sum_rows(c->db, c->dlogits, rows, c->vocab);
    if (c->t->precision == DT_F32) {
        struct kernel_array h = kernel_part(c->h->var.value, first * c->hidden);
        if (with_dh) kernel_matmul_nn(rows, c->hidden, c->vocab, c->dlogits, c->w->var.value, c->add_dh, dh);
        if (with_dw) kernel_matmul_tn(c->vocab, c->hidden, rows, c->dlogits, h, c->add_dw, c->dw);
        c->add_dw = true;
        return;
    }
    struct kernel_epilogue to_dh = {.accumulate = c->add_dh}, to_dw = {.accumulate = c->add_dw};
    if (with_dh) kernel_multiply(rows, c->dlogits, &c->backward, &to_dh, dh);
    if (!with_dw) return;
    struct kernel_array h = kernel_part(c->h16, first * c->hidden);
    struct kernel_matrix packed = kernel_pack_nn(c->packed_h, c->hidden, rows, h);
    kernel_multiply_tn(c->vocab, c->dlogits, &packed, &to_dw, c->dw);
    c->add_dw = true;
}

static bool head_block(struct head *c, size_t first, size_t rows) {
    struct err e;
    block_logits(c, first, rows);
    int code = c->loss(c->ctx, first, rows, c->vocab, c->logits, c->dlogits, &e);
    if (code != 0) return tape_fail(c->t, code, "%s", e.msg);
    if (kernel_has_data(c->dlogits)) block_gradients(c, first, rows);
    return true;
}

/* Scratch, and in bf16 the weight packed once for all blocks. */
static bool prepare(struct head *c, size_t rows) {
    struct grad_tape *t = c->t;
    bool packed_leaf = node_packed(&c->w->var);
    uint64_t n;
    if (!u64_mul(rows, c->vocab, &n))
        return tape_fail(t, ERR_IO, "out of memory: logits of [%zu, %zu]", rows, c->vocab);
    bool learns = kernel_has_data(c->dh) || kernel_has_data(c->dw) || kernel_has_data(c->db);
    c->logits = tape_scratch(t, DT_F32, n);
    c->dlogits = learns ? c->logits : kernel_none(DT_F32);
    if (learns && c->softcap > 0 && t->precision == DT_F32) c->dlogits = tape_scratch(t, DT_F32, n);
    if (t->precision == DT_F32) return !t->error.code;
    c->h16 = tape_scratch(t, DT_BF16, var_size(&c->h->var));
    if (!kernel_has_data(c->h16)) return false;
    kernel_convert(c->h16, c->h->var.value, var_size(&c->h->var));
    c->forward = packed_leaf ? c->w->matrix : kernel_matrix_of(c->w->var.value, c->vocab, c->hidden);
    /* What is packed is so for good; quantized blocks are packed once for all blocks of rows, if there are several. */
    if (packed_leaf && (kernel_is_packed(&c->forward) || c->h->var.rows <= rows)) return true;
    struct kernel_array forward = tape_scratch_matrix(t, c->vocab, c->hidden), backward = kernel_none(DT_BF16);
    if (kernel_has_data(c->dh)) backward = tape_scratch_matrix(t, c->vocab, c->hidden);
    if (learns) c->dlogits = tape_scratch(t, DT_BF16, n);
    if (kernel_has_data(c->dw)) c->packed_h = tape_scratch_matrix(t, c->hidden, rows);
    if (t->error.code) return false;
    if (kernel_has_data(c->dh)) c->backward = kernel_pack_nn(backward, c->hidden, c->vocab, c->w->var.value);
    c->forward = kernel_pack_nt(forward, &c->forward);
    return true;
}

bool grad_head(struct grad_tape *t, struct grad_var *h, const struct grad_head *head, grad_loss_block *loss,
               void *ctx) {
    struct grad_var *w = head->w, *bias = head->bias;
    if (!h || !w || t->error.code) return false;
    if (h->cols != w->cols)
        return tape_fail(t, ERR_DATA, "head: input of %zu, weight [%zu, %zu]", h->cols, w->rows, w->cols);
    if (bias && (bias->rows != 1 || bias->cols != w->rows))
        return tape_fail(t, ERR_DATA, "head: bias [%zu, %zu] for %zu logits", bias->rows, bias->cols, w->rows);
    struct head c = {.t = t, .h = node_of(h), .w = node_of(w), .softcap = head->softcap, .loss = loss, .ctx = ctx};
    c.bias = bias ? node_of(bias) : NULL;
    c.hidden = w->cols;
    c.vocab = w->rows;
    size_t most = t->record ? HEAD_ROWS : FORWARD_ROWS;
    size_t mark = stack_mark(&t->scratch), rows = h->rows < most ? h->rows : most;
    if (c.h->wanted && h->grad.dtype != DT_F32)
        return tape_fail(t, ERR_DATA, "head: hidden states in f32 wanted (see grad_rmsnorm)");
    bool fresh;
    if (c.h->wanted) c.dh = node_target(t, c.h, &fresh), c.add_dh = !fresh;
    if (c.w->wanted) c.dw = node_target(t, c.w, &fresh), c.add_dw = !fresh;
    if (node_wanted(bias)) c.db = node_sum(t, c.bias);
    if (t->error.code) return false;
    bool ok = prepare(&c, rows);
    for (size_t first = 0; ok && first < h->rows; first += rows) {
        if (h->rows - first < rows) rows = h->rows - first;
        ok = head_block(&c, first, rows);
    }
    stack_rewind(&t->scratch, mark);
    return ok;
}
