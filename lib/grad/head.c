/*
 * The head: logits for one block of positions, their gradient from the caller's loss, and immediately the two products
 * that need it. At a vocabulary of 49152 a block is tens of megabytes, not gigabytes; README.md has the measurements.
 */
#include "lib/grad/grad_internal.h"

#define HEAD_ROWS    512
#define FORWARD_ROWS 256 /* without gradients: half the memory, the same speed */

struct head {
    struct grad_tape *t;
    struct grad_node *h, *w, *bias;
    float softcap;
    size_t hidden, vocab;
    struct kernel_matrix forward, backward; /* w and its transpose, in bf16 only */
    struct kernel_array h16;                /* h in bf16 */
    struct kernel_array packed_h;           /* memory for a block of h, packed */
    struct kernel_array logits, dlogits;    /* of one block */
    struct kernel_array dh, dw, db;         /* no data: not needed */
    bool add_dh, add_dw;                    /* accumulate: the gradient has a value already */
    bool packed, packed_back;               /* forward and backward are packed in the tape's scratch */
    size_t mark;                            /* position in the tape's scratch */
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

/* dh [+]= dlogits w, dw [+]= dlogits^T h, which accumulates over blocks. */
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

/* Allocates scratch and, in bf16, packs the weight once for all blocks. */
static bool prepare(struct head *c, const struct head *shared, size_t rows) {
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
    /* A packed leaf is used as it is; quantized blocks are packed once for all blocks of rows, if there are several. */
    if (packed_leaf && (kernel_is_packed(&c->forward) || c->h->var.rows <= rows)) return true;
    bool back = kernel_has_data(c->dh);
    bool again = shared && (shared->packed_back || !back); /* already packed for an earlier head */
    struct kernel_array forward = kernel_none(DT_BF16), backward = kernel_none(DT_BF16);
    if (!again) forward = tape_scratch_matrix(t, c->vocab, c->hidden);
    if (!again && back) backward = tape_scratch_matrix(t, c->vocab, c->hidden);
    if (learns) c->dlogits = tape_scratch(t, DT_BF16, n);
    if (kernel_has_data(c->dw)) c->packed_h = tape_scratch_matrix(t, c->hidden, rows);
    if (t->error.code) return false;
    c->packed = true;
    c->packed_back = again ? shared->packed_back : back;
    if (again) {
        c->forward = shared->forward;
        c->backward = shared->backward;
        return true;
    }
    if (back) c->backward = kernel_pack_nn(backward, c->hidden, c->vocab, c->w->var.value);
    c->forward = kernel_pack_nt(forward, &c->forward);
    return true;
}

/* Checks one head and takes its gradients. */
static bool begin(struct head *c, const struct grad_head_input *in) {
    struct grad_tape *t = in->t;
    struct grad_var *h = in->h, *w = in->head.w, *bias = in->head.bias;
    bool fresh;
    if (!h || !w || t->error.code) return false;
    if (h->cols != w->cols)
        return tape_fail(t, ERR_DATA, "head: input of %zu, weight [%zu, %zu]", h->cols, w->rows, w->cols);
    if (bias && (bias->rows != 1 || bias->cols != w->rows))
        return tape_fail(t, ERR_DATA, "head: bias [%zu, %zu] for %zu logits", bias->rows, bias->cols, w->rows);
    *c = (struct head){.t = t, .h = node_of(h), .w = node_of(w), .softcap = in->head.softcap};
    c->bias = bias ? node_of(bias) : NULL;
    c->hidden = w->cols;
    c->vocab = w->rows;
    c->mark = stack_mark(&t->scratch);
    if (c->h->wanted && h->grad.dtype != DT_F32)
        return tape_fail(t, ERR_DATA, "head: hidden states in f32 wanted (see grad_rmsnorm)");
    if (c->h->wanted) c->dh = node_target(t, c->h, &fresh), c->add_dh = !fresh;
    if (c->w->wanted) c->dw = node_target(t, c->w, &fresh), c->add_dw = !fresh;
    if (node_wanted(bias)) c->db = node_sum(t, c->bias);
    return !t->error.code;
}

/* Copies errors of other tapes to the first one. */
static bool heads_failed(const struct head *c, size_t n) {
    for (size_t i = 1; i < n; i++)
        if (c[i].t->error.code && c[i].t != c[0].t) tape_fail(c[0].t, c[i].t->error.code, "%s", c[i].t->error.msg);
    return c[0].t->error.code;
}

/* Rows of the next block, with `left` rows to go. Without gradients no block is so small that its products have other
 * bits: a row of logits must not depend on where its block ends. */
static size_t block_rows(const struct head *c, size_t left, size_t most) {
    if (left <= most) return left;
    return !c->t->record && left - most <= KERNEL_FEW_ROWS ? left / 2 : most;
}

static bool run_blocks(struct head *c, size_t n, size_t most, grad_losses_block *loss, void *ctx) {
    size_t all = c[0].h->var.rows;
    struct kernel_array logits[GRAD_MAX_HEADS], dlogits[GRAD_MAX_HEADS];
    for (size_t i = 0; i < n; i++) logits[i] = c[i].logits, dlogits[i] = c[i].dlogits;
    for (size_t first = 0, rows; first < all; first += rows) {
        rows = block_rows(&c[0], all - first, most);
        struct err e;
        for (size_t i = 0; i < n; i++) block_logits(&c[i], first, rows);
        int code = loss(ctx, first, rows, c[0].vocab, logits, dlogits, &e);
        if (code != 0) return tape_fail(c[0].t, code, "%s", e.msg);
        for (size_t i = 0; i < n; i++)
            if (kernel_has_data(c[i].dlogits)) block_gradients(&c[i], first, rows);
    }
    return true;
}

bool grad_heads(size_t n, const struct grad_head_input *heads, grad_losses_block *loss, void *ctx) {
    PROFILE(HEAD);
    struct head c[GRAD_MAX_HEADS] = {0};
    size_t begun = 0, most = heads[0].t->record ? HEAD_ROWS : FORWARD_ROWS;
    struct grad_tape *t = heads[0].t;
    bool ok = n <= GRAD_MAX_HEADS;
    if (!ok) return tape_fail(t, ERR_USAGE, "%zu heads: at most %d", n, GRAD_MAX_HEADS);
    if (heads[0].h && heads[0].h->rows < most) most = heads[0].h->rows;
    for (; ok && begun < n; begun++) {
        c[begun].t = heads[begun].t;
        c[begun].mark = stack_mark(&c[begun].t->scratch);
        ok = begin(&c[begun], &heads[begun]);
        if (ok && (c[begun].vocab != c[0].vocab || c[begun].h->var.rows != c[0].h->var.rows))
            ok = tape_fail(t, ERR_DATA, "heads of [%zu, %zu] and [%zu, %zu] logits", c[0].h->var.rows, c[0].vocab,
                           c[begun].h->var.rows, c[begun].vocab);
    }
    for (size_t i = 0; ok && i < n; i++) {
        const struct head *shared = NULL;
        for (size_t j = 0; !shared && j < i; j++)
            if (c[j].w == c[i].w && c[j].t == c[i].t && c[j].packed) shared = &c[j];
        ok = prepare(&c[i], shared, most);
    }
    ok = ok && !heads_failed(c, n) && run_blocks(c, n, most, loss, ctx);
    heads_failed(c, begun);
    for (size_t i = begun; i-- > 0;) stack_rewind(&c[i].t->scratch, c[i].mark);
    return ok;
}

/* Adapts the callback of a single head. */
struct single {
    grad_loss_block *loss;
    void *ctx;
};

static int single_block(void *ctx, size_t first, size_t rows, size_t vocab, const struct kernel_array *logits,
                        const struct kernel_array *dlogits, struct err *e) {
    const struct single *s = ctx;
    return s->loss(s->ctx, first, rows, vocab, logits[0], dlogits[0], e);
}

bool grad_head(struct grad_tape *t, struct grad_var *h, const struct grad_head *head, grad_loss_block *loss,
               void *ctx) {
    struct grad_head_input in = {t, h, *head};
    struct single s = {loss, ctx};
    return grad_heads(1, &in, single_block, &s);
}
