/*
 * Attention with grouped queries, causal or not, blocked with online softmax (Dao et al. 2022, "FlashAttention",
 * algorithms 1 and 4): scores exist for one block of queries and one block of keys at a time.
 *
 * The queries of all heads that share a key head are stacked as rows of one matrix, head by head, so that a block of
 * keys is read once for the whole group and the products are large enough for a gemm. All block sizes depend only on
 * the shape, and no two tasks write the same memory.
 */
#include "lib/kernel/attention_block.h"

static struct cut cut_for(const struct kernel_attention *a, size_t rows_floats, size_t max_rows) {
    struct cut c = {.group = a->n_heads / a->n_kv_heads};
    size_t rows = smaller(rows_floats / a->head_dim, max_rows);
    c.heads = c.group < rows ? c.group : rows;
    c.queries = rows / c.heads;
    return c;
}

/* ---- forward ---- */

/*
 * One block of queries per task. All sequences are split like the longest one, and blocks past a sequence's end are
 * empty. Late blocks see more keys and go first, so that no thread is left with a long one at the end.
 */
static void forward_task(void *ctx, size_t i, int thread) {
    const struct forward *f = ctx;
    const struct kernel_attention *a = f->a;
    (void)thread;
    size_t head_block = i % f->head_blocks, rest = i / f->head_blocks;
    struct attention_block b = {.kv_head = rest % a->n_kv_heads};
    rest /= a->n_kv_heads;
    size_t seq = rest % a->n_seqs, length = a->starts[seq + 1] - a->starts[seq];
    b.start = a->starts[seq];
    b.length = length;
    b.head = b.kv_head * f->cut.group + head_block * f->cut.heads;
    b.heads = smaller(f->cut.heads, f->cut.group - head_block * f->cut.heads);
    b.first = (f->query_blocks - 1 - rest / a->n_seqs) * f->cut.queries;
    if (b.first >= length) return;
    b.n = smaller(f->cut.queries, length - b.first);
    if (f->is_bf16)
        forward_block_bf16(f, &b);
    else
        forward_block_f32(f, &b);
}

void kernel_attention(const struct kernel_attention *a, struct kernel_array y, struct kernel_array lse,
                      struct kernel_array q, struct kernel_array k, struct kernel_array v) {
    PROFILE(ATTENTION);
    struct forward f = {.a = a,
                        .v = simd(),
                        .y = view_of(y),
                        .lse = host_f32(lse),
                        .q = view_of(q),
                        .k = view_of(k),
                        .values = view_of(v)};
    size_t longest = 0;
    f.is_bf16 = attention_is_bf16(f.v, a, view_of(q), view_of(k), view_of(v));
    f.cut = f.is_bf16 ? cut_for(a, FORWARD_FLOATS, FORWARD_ROWS) : cut_for(a, ROWS_FLOATS, MAX_ROWS);
    for (size_t s = 0; s < a->n_seqs; s++)
        if (a->starts[s + 1] - a->starts[s] > longest) longest = a->starts[s + 1] - a->starts[s];
    f.query_blocks = (longest + f.cut.queries - 1) / f.cut.queries;
    f.head_blocks = (f.cut.group + f.cut.heads - 1) / f.cut.heads;
    parallel_for(f.query_blocks * f.head_blocks * a->n_seqs * a->n_kv_heads, forward_task, &f);
}

/* ---- backward ---- */

/* With a soft cap the backward pass is in f32, which needs the capped scores unrounded. */
static bool backward_is_bf16(const struct backward *w) {
    return w->a->softcap == 0 && w->dq.dtype == DT_BF16 && w->dy.dtype == DT_BF16 && w->y.dtype == DT_BF16;
}

/* One (sequence, key head) per task: all queries of the sequence add to the same dk and dv, in order. */
static void backward_task(void *ctx, size_t i, int thread) {
    const struct backward *w = ctx;
    const struct kernel_attention *a = w->a;
    (void)thread;
    size_t seq = i / a->n_kv_heads, length = a->starts[seq + 1] - a->starts[seq];
    struct attention_block b = {.start = a->starts[seq], .length = length, .kv_head = i % a->n_kv_heads};
    for (size_t key = 0; key < length; key++) {
        memset(w->dk + key_at(a, &b, key), 0, a->head_dim * sizeof *w->dk);
        memset(w->dv + key_at(a, &b, key), 0, a->head_dim * sizeof *w->dv);
    }
    for (size_t done = 0; done < w->cut.group; done += b.heads) {
        b.head = b.kv_head * w->cut.group + done;
        b.heads = smaller(w->cut.heads, w->cut.group - done);
        for (b.first = 0; b.first < length; b.first += w->cut.queries) {
            b.n = smaller(w->cut.queries, length - b.first);
            if (attention_is_bf16(w->v, a, w->q, w->k, w->values) && backward_is_bf16(w))
                backward_block_bf16(w, &b);
            else
                backward_block_f32(w, &b);
        }
    }
}

void kernel_attention_backward(const struct kernel_attention *a, struct kernel_array dq, struct kernel_array dk,
                               struct kernel_array dv, struct kernel_array dy, struct kernel_array y,
                               struct kernel_array lse, struct kernel_array q, struct kernel_array k,
                               struct kernel_array v) {
    PROFILE(ATTENTION);
    struct backward w = {
        a,          simd(),     view_of(dq),  view_of(dy),  view_of(y),    view_of(q),
        view_of(k), view_of(v), host_f32(dk), host_f32(dv), host_f32(lse), cut_for(a, ROWS_FLOATS, MAX_ROWS)};
    parallel_for(a->n_seqs * a->n_kv_heads, backward_task, &w);
}
