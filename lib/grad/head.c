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
    struct kernel_panels forward, backward; /* w and its transposition, in bf16 only */
    uint16_t *h16;                          /* h */
    struct kernel_array dlogits;            /* the gradient of a block of logits */
    void *h_scratch;                        /* panels of a block of h */
    float *logits, *dh, *dw, *db;
    bool add_dh, add_dw; /* to what is there */
    grad_loss_block *loss;
    void *ctx;
};

static void block_logits(const struct head *c, size_t first, size_t rows) {
    struct kernel_array h = kernel_part(c->h->var.value, first * c->hidden);
    const float *bias = c->bias ? c->bias->var.value.data : NULL;
    if (c->t->precision == DT_BF16) {
        struct kernel_epilogue how = {.bias = bias};
        kernel_multiply(rows, DT_BF16, c->h16 + first * c->hidden, &c->forward, &how, DT_F32, c->logits);
    } else {
        kernel_matmul_nt(rows, c->vocab, c->hidden, h.data, c->w->var.value.data, 0, c->logits);
        if (bias) kernel_add_bias(c->logits, bias, rows, c->vocab);
    }
    if (c->softcap > 0) kernel_softcap(c->logits, c->logits, rows * c->vocab, c->softcap);
}

/* dh [+]= dlogits w, dw [+]= dlogits^T h, which later blocks add to */
static void block_gradients(struct head *c, size_t first, size_t rows) {
    struct kernel_array h = kernel_part(c->h->var.value, first * c->hidden);
    float *dh = c->dh ? c->dh + first * c->hidden : NULL;
    if (c->softcap > 0) kernel_softcap_backward(c->dlogits, c->logits, rows * c->vocab, c->softcap);
    if (c->db) kernel_sum_rows(c->db, c->dlogits, rows, c->vocab);
    if (c->t->precision == DT_F32) {
        const float *dlogits = c->dlogits.data;
        if (dh) kernel_matmul_nn(rows, c->hidden, c->vocab, dlogits, c->w->var.value.data, c->add_dh, dh);
        if (c->dw) kernel_matmul_tn(c->vocab, c->hidden, rows, dlogits, h.data, c->add_dw, c->dw);
        c->add_dw = true;
        return;
    }
    struct kernel_epilogue to_dh = {.accumulate = c->add_dh}, to_dw = {.accumulate = c->add_dw};
    if (dh) kernel_multiply(rows, DT_BF16, c->dlogits.data, &c->backward, &to_dh, DT_F32, dh);
    if (!c->dw) return;
    struct kernel_panels panels = kernel_pack_nn(c->h_scratch, c->hidden, rows, DT_BF16, c->h16 + first * c->hidden);
    kernel_multiply_tn(c->vocab, DT_BF16, c->dlogits.data, &panels, &to_dw, DT_F32, c->dw);
    c->add_dw = true;
}

static bool head_block(struct head *c, size_t first, size_t rows) {
    struct err e;
    block_logits(c, first, rows);
    int code = c->loss(c->ctx, first, rows, c->vocab, c->logits, c->dlogits, &e);
    if (code != 0) return tape_fail(c->t, code, "%s", e.msg);
    if (c->dlogits.data) block_gradients(c, first, rows);
    return true;
}

/* Scratch, and in bf16 the weight packed once for all blocks. */
static bool prepare(struct head *c, size_t rows) {
    struct grad_tape *t = c->t;
    const struct kernel_panels *panels = &c->w->panels;
    uint64_t n;
    if (!u64_mul(rows, c->vocab, &n))
        return tape_fail(t, ERR_IO, "out of memory: logits of [%zu, %zu]", rows, c->vocab);
    bool learns = c->dh || c->dw || c->db;
    c->logits = tape_scratch(t, n, sizeof *c->logits);
    c->dlogits = kernel_f32(learns ? c->logits : NULL);
    if (learns && c->softcap > 0 && t->precision == DT_F32) c->dlogits.data = tape_scratch(t, n, sizeof(float));
    if (t->precision == DT_F32) return !t->error.code;
    c->h16 = tape_scratch(t, var_size(&c->h->var), sizeof *c->h16);
    if (!c->h16) return false;
    kernel_convert((struct kernel_array){DT_BF16, c->h16}, c->h->var.value, var_size(&c->h->var));
    c->forward = *panels;
    /* What is packed is so for good; quantized blocks are packed once for all blocks of rows, if there are several. */
    if (panels->packed || (panels->data && c->h->var.rows <= rows)) return c->logits;
    size_t bytes = kernel_panels_bytes(c->vocab, c->hidden);
    void *forward = tape_scratch(t, bytes, 1), *backward = c->dh ? tape_scratch(t, bytes, 1) : NULL;
    if (learns) c->dlogits = (struct kernel_array){DT_BF16, tape_scratch(t, n, sizeof(uint16_t))};
    if (c->dw) c->h_scratch = tape_scratch(t, kernel_panels_bytes(c->hidden, rows), 1);
    if (t->error.code) return false;
    const void *w = panels->data ? panels->data : c->w->var.value.data;
    enum dtype type = panels->data ? panels->dtype : DT_F32;
    c->forward = kernel_pack_nt(forward, c->vocab, c->hidden, type, w);
    if (c->dh) c->backward = kernel_pack_nn(backward, c->hidden, c->vocab, type, w); /* never of quantized blocks */
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
    if (c.h->wanted) c.dh = node_target(t, c.h, &fresh).data, c.add_dh = !fresh;
    if (c.w->wanted) c.dw = node_target(t, c.w, &fresh).data, c.add_dw = !fresh;
    if (node_wanted(bias)) c.db = node_sum(t, c.bias).data;
    if (t->error.code) return false;
    bool ok = prepare(&c, rows);
    for (size_t first = 0; ok && first < h->rows; first += rows) {
        if (h->rows - first < rows) rows = h->rows - first;
        ok = head_block(&c, first, rows);
    }
    stack_rewind(&t->scratch, mark);
    return ok;
}
