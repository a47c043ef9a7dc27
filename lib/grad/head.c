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
    size_t mark;         /* of the tape's scratch */
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

/* Scratch, and in bf16 the weight packed once for all blocks. */
static bool prepare(struct head *c, const struct head *shared, size_t rows) {
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
    bool again = shared && (shared->backward.data || !c->dh); /* packed for another head before */
    void *forward = again ? NULL : tape_scratch(t, bytes, 1);
    void *backward = !again && c->dh ? tape_scratch(t, bytes, 1) : NULL;
    if (learns) c->dlogits = (struct kernel_array){DT_BF16, tape_scratch(t, n, sizeof(uint16_t))};
    if (c->dw) c->h_scratch = tape_scratch(t, kernel_panels_bytes(c->hidden, rows), 1);
    if (t->error.code) return false;
    if (again) {
        c->forward = shared->forward;
        c->backward = shared->backward;
        return true;
    }
    const void *w = panels->data ? panels->data : c->w->var.value.data;
    enum dtype type = panels->data ? panels->dtype : DT_F32;
    c->forward = kernel_pack_nt(forward, c->vocab, c->hidden, type, w);
    if (c->dh) c->backward = kernel_pack_nn(backward, c->hidden, c->vocab, type, w); /* never of quantized blocks */
    return true;
}

/* One head, and where its gradients go. */
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
    if (c->h->wanted) c->dh = node_target(t, c->h, &fresh).data, c->add_dh = !fresh;
    if (c->w->wanted) c->dw = node_target(t, c->w, &fresh).data, c->add_dw = !fresh;
    if (node_wanted(bias)) c->db = node_sum(t, c->bias).data;
    return !t->error.code;
}

/* The errors of further tapes are the first one's. */
static bool heads_failed(const struct head *c, size_t n) {
    for (size_t i = 1; i < n; i++)
        if (c[i].t->error.code && c[i].t != c[0].t) tape_fail(c[0].t, c[i].t->error.code, "%s", c[i].t->error.msg);
    return c[0].t->error.code;
}

static bool run_blocks(struct head *c, size_t n, size_t most, grad_losses_block *loss, void *ctx) {
    size_t all = c[0].h->var.rows;
    float *logits[GRAD_MAX_HEADS];
    struct kernel_array dlogits[GRAD_MAX_HEADS];
    for (size_t i = 0; i < n; i++) logits[i] = c[i].logits, dlogits[i] = c[i].dlogits;
    for (size_t first = 0; first < all; first += most) {
        size_t rows = all - first < most ? all - first : most;
        struct err e;
        for (size_t i = 0; i < n; i++) block_logits(&c[i], first, rows);
        int code = loss(ctx, first, rows, c[0].vocab, logits, dlogits, &e);
        if (code != 0) return tape_fail(c[0].t, code, "%s", e.msg);
        for (size_t i = 0; i < n; i++)
            if (c[i].dlogits.data) block_gradients(&c[i], first, rows);
    }
    return true;
}

bool grad_heads(size_t n, const struct grad_head_input *heads, grad_losses_block *loss, void *ctx) {
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
            if (c[j].w == c[i].w && c[j].t == c[i].t && c[j].forward.data) shared = &c[j];
        ok = prepare(&c[i], shared, most);
    }
    ok = ok && !heads_failed(c, n) && run_blocks(c, n, most, loss, ctx);
    heads_failed(c, begun);
    for (size_t i = begun; i-- > 0;) stack_rewind(&c[i].t->scratch, c[i].mark);
    return ok;
}

/* A single head's callback. */
struct single {
    grad_loss_block *loss;
    void *ctx;
};

static int single_block(void *ctx, size_t first, size_t rows, size_t vocab, float *const *logits,
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
