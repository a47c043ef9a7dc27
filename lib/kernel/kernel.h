/*
 * kernel: all arithmetic on tensor data. f32 (activations bf16 too), row-major, no allocation visible to the caller,
 * threaded through parallel_for. Every function here has a plain scalar twin in kernel_plain.h (a template over float
 * and double) that it is tested against; the double instance is what gradients are checked with.
 *
 * Results are bit-identical for any number of threads: work is cut into pieces whose size does not depend on it, and
 * reductions go over the pieces in order. On another CPU (or with RILL_CPU=portable) they may differ in the last bits.
 *
 * Shapes: n rows (positions) of d columns unless said otherwise. Sequences are contiguous: `starts` is [n_seqs + 1],
 * starts[0] = 0, starts[n_seqs] = n, strictly increasing.
 */
#ifndef RILL_KERNEL_H
#define RILL_KERNEL_H

#include "lib/base/base.h"
#include "lib/tensor/tensor.h"

/* What computes, for reports. The results of two backends of equal words have equal bits. */
struct kernel_backend {
    const char *path; /* "amx", "avx512bf16", "avx512", "avx2" or "portable" */
    const char *f32;  /* what multiplies f32: "avx512", "avx2" or "portable" */
    const char
        *bf16; /* and bf16: "amx", "vdpbf16ps", "avx512-fma" (in f32), or "widened" to f32 for the product of f32 */
    const char *int8; /* and integers: "avx512-vnni", "avx2" or "portable", all to the same bits */
};
struct kernel_backend kernel_backend(void);
/* Are products of bf16 at least about as fast as those of f32 on the path in use? */
bool kernel_has_bf16(void);

/* ---- devices and their memory ------------------------------------------------------------------------------------ */
/*
 * Tensor data is in memory of a device and is dereferenced in lib/kernel only. There is one device, the CPU, whose
 * buffers are host memory; README.md says what another one brings. Host memory are: small inputs (ids, positions, starts
 * of sequences, frequencies, targets of the loss), results for the caller (ids, sums in f64), and all that the sections
 * "on the host" at the end work on.
 */
struct kernel_device;
struct kernel_buffer; /* memory of a device; opaque */
struct kernel_device *kernel_cpu(void);

/*
 * Elements in a buffer. Results of layers are f32 or bf16; arithmetic is in f32 whatever the type: a kernel widens a
 * piece, computes in f32, and rounds the result once. Functions take f32 and bf16 unless they say f32.
 */
struct kernel_array {
    enum dtype dtype;
    /* the device's: */
    struct kernel_buffer *buffer; /* NULL: no data */
    size_t offset;                /* in bytes */
};
/* n elements, uninitialised and 64-byte aligned; DT_U8 for memory that kernel_typed or a matrix gives a type. No data, and
 * *e, when memory is out. */
struct kernel_array kernel_alloc(struct kernel_device *d, enum dtype dtype, uint64_t n, struct err *e) MUST_CHECK;
void kernel_free(struct kernel_device *d, struct kernel_array a); /* all that kernel_alloc gave; no data is fine */
static inline struct kernel_array kernel_none(enum dtype dtype) {
    return (struct kernel_array){dtype, NULL, 0};
}
static inline bool kernel_has_data(struct kernel_array a) {
    return a.buffer != NULL;
}
static inline bool kernel_same_data(struct kernel_array a, struct kernel_array b) {
    return a.buffer == b.buffer && a.offset == b.offset;
}
/* Of n elements of f32, bf16, f16 or bytes. */
static inline size_t kernel_array_bytes(enum dtype dtype, size_t n) {
    return n * (dtype == DT_F32 ? sizeof(float) : dtype == DT_U8 ? 1 : sizeof(uint16_t));
}
/* The same memory with elements of another type. */
static inline struct kernel_array kernel_typed(struct kernel_array a, enum dtype dtype) {
    a.dtype = dtype;
    return a;
}
/* The array from element `at` on. */
static inline struct kernel_array kernel_part(struct kernel_array a, size_t at) {
    a.offset += kernel_array_bytes(a.dtype, at);
    return a;
}

/* Host memory as an array of the CPU; NULL: no data. Kernels do not write to arrays that they read. */
static inline struct kernel_array kernel_host_array(enum dtype dtype, const void *x) {
    return (struct kernel_array){dtype, (struct kernel_buffer *)(uintptr_t)x, 0};
}
static inline struct kernel_array kernel_f32(const float *x) {
    return kernel_host_array(DT_F32, x);
}
static inline struct kernel_array kernel_bf16(const uint16_t *x) {
    return kernel_host_array(DT_BF16, x);
}
/*
 * n elements for the host to read: where they are if that is host memory (the CPU's is); another device downloads them to
 * memory of its own that is valid until the next call for the same buffer. NULL for no data. What the host writes there
 * need not reach the array: that takes kernel_upload.
 */
void *kernel_host(struct kernel_array a, size_t n);
/* n elements from and to host memory, in the array's type. */
void kernel_upload(struct kernel_array y, const void *host, size_t n);
void kernel_download(void *host, struct kernel_array x, size_t n);

void kernel_convert(struct kernel_array y, struct kernel_array x, size_t n); /* y = x */

/* ---- activation functions, of layers and of a product's epilogue ------------------------------------------------- */
enum kernel_act {
    ACT_SILU,
    ACT_GELU,       /* exact, by erf */
    ACT_GELU_TANH,  /* by its approximation with tanh, "gelu_new", "gelu_pytorch_tanh" */
    ACT_GELU_QUICK, /* x sigmoid(1.702 x) */
    ACT_RELU,
    ACT_RELU_SQUARED,
    ACT_TANH,
    KERNEL_ACTS
};

/* ---- matrix products in f32. c is overwritten when beta is 0, else c = product + beta * c ------------------------------- */
/* A row of c has the same bits whatever rows are beside it, but for nt of so few rows, which are dot
 * products. nt: c[m][n] = a[m][k] b[n][k]^T; nn: a[m][k] b[k][n]; tn: a[k][m]^T b[k][n] */
#define KERNEL_FEW_ROWS 4
void kernel_matmul_nt(size_t m, size_t n, size_t k, struct kernel_array a, struct kernel_array b, float beta,
                      struct kernel_array c);
void kernel_matmul_nn(size_t m, size_t n, size_t k, struct kernel_array a, struct kernel_array b, float beta,
                      struct kernel_array c);
void kernel_matmul_tn(size_t m, size_t n, size_t k, struct kernel_array a, struct kernel_array b, float beta,
                      struct kernel_array c);

/* ---- matrix products in bf16, sums in f32 ------------------------------------------------------------------------ */
/*
 * bf16 is the upper half of an f32, in a uint16_t; rounding is to nearest even, NaN stays NaN. Products of two bf16 are
 * exact in f32; an element of a product is summed in an order that depends on k only, never on m, n or the threads.
 * Paths with bf16 instructions take subnormal numbers for zero, others do not.
 */
/*
 * The right-hand matrix of a product: n columns of k elements, which is a weight matrix [n][k] as models store it. A
 * device chooses how it is packed: what follows n and k is its own. The CPU has three forms:
 *
 * Stored: the matrix [n][k] itself, in any floating or quantized type (k a whole number of blocks), any alignment. A
 * product then packs a strip of it at a time, in scratch, and shares it among the rows of a block: with many rows that
 * costs little, with few the matrix is still read once.
 *
 * Packed in bf16: as the micro-kernels read it, panels [n/32][k/2][32][2] with n and k rounded up to multiples of 32 and
 * zeros there.
 *
 * Packed for products of integers: quantized blocks as panels of their codes; codes and scales stay what they are. a is
 * rounded in blocks of 32 along k to d q, q = nearest integer to x / d, d = max |x| / 127, and
 *
 *     sum over groups of a scale in order of k:    (sum of codes times q, exact) scale d [+ min (d sum of q)]
 *
 * with each operation in f32 rounded on its own: an element has the same bits for any m, n, threads and CPU. A block of
 * a that is below 2^-120 counts as zeros; one with a number that is not finite makes NaN.
 */
enum kernel_packing { KERNEL_STORED, KERNEL_PACKED_BF16, KERNEL_PACKED_INT8 };
struct kernel_matrix {
    size_t n, k;
    /* the device's: */
    enum kernel_packing packing;
    enum dtype dtype; /* of what it was made of, or DT_BF16 */
    struct kernel_buffer *buffer;
    size_t offset;
};
#define KERNEL_PANEL 32 /* columns */
static inline bool kernel_has_matrix(const struct kernel_matrix *b) {
    return b->buffer != NULL;
}
static inline bool kernel_is_packed(const struct kernel_matrix *b) {
    return b->packing != KERNEL_STORED;
}
/* Its memory, for kernel_free. */
static inline struct kernel_array kernel_matrix_memory(const struct kernel_matrix *b) {
    return (struct kernel_array){DT_U8, b->buffer, b->offset};
}
/* A matrix that is stored in b, [n][k]. */
struct kernel_matrix kernel_matrix_of(struct kernel_array b, size_t n, size_t k);
/* Memory that a matrix [n][k] of this type takes. */
size_t kernel_matrix_bytes(enum kernel_packing packing, enum dtype type, size_t n, size_t k);
/* One in the memory of an array of any type, 64-byte aligned, to be filled: in order, by rows of [n][k] from multiples of
 * KERNEL_PANEL on. Those are host memory in `type`, which is the matrix's own unless it is packed in bf16. */
struct kernel_matrix kernel_matrix_in(struct kernel_array memory, enum kernel_packing packing, enum dtype type,
                                      size_t n, size_t k);
void kernel_matrix_fill(const struct kernel_matrix *b, size_t first, size_t rows, enum dtype type, const void *host);
/* Packed in bf16 into memory of kernel_matrix_bytes: a stored matrix, or the transpose of b [k][n] in f32 or bf16. */
struct kernel_matrix kernel_pack_nt(struct kernel_array memory, const struct kernel_matrix *b);
struct kernel_matrix kernel_pack_nn(struct kernel_array memory, size_t n, size_t k, struct kernel_array b);
/* Its first n columns. */
static inline struct kernel_matrix kernel_matrix_columns(const struct kernel_matrix *b, size_t n) {
    struct kernel_matrix part = *b;
    part.n = n;
    return part;
}
/* y[i][k] = column ids[i] of the matrix, which is row ids[i] of the weights: an embedding that shares them. In f32,
 * and as rounded to bf16 only where the matrix is. */
void kernel_matrix_gather(struct kernel_array y, const struct kernel_matrix *b, const uint32_t *ids, size_t n_ids);

/* How the sums are finished: c = [c +] sums [+ bias] [+ residual], rounded to c's type. {0}: c = sums. */
struct kernel_epilogue {
    bool accumulate;              /* DT_F32 only */
    struct kernel_array bias;     /* f32 [n] */
    struct kernel_array residual; /* f32 [m][n]; may be c */
    /* bf16 [m][n], without residual; may be c, which is bf16: c = act(gate) * c, as kernel_glu of both */
    struct kernel_array gate;
    enum kernel_act act;
};
/*
 * c[m][n] = a[m][k] times b. a and c are DT_F32 or DT_BF16; a in f32 is rounded to bf16 on the way. `how` NULL: {0}.
 *
 *     y = x W^T        kernel_multiply(x, pack_nt(W))
 *     dx = dy W        kernel_multiply(dy, pack_nn(W))
 *     dW += dy^T x     kernel_multiply_tn(dy, pack_nn(x), accumulate)
 */
void kernel_multiply(size_t m, struct kernel_array a, const struct kernel_matrix *b, const struct kernel_epilogue *how,
                     struct kernel_array c);
/* The same of a[k][m] transposed; b is packed in bf16. a is transposed a tile at a time, in the cache. */
void kernel_multiply_tn(size_t m, struct kernel_array a, const struct kernel_matrix *b,
                        const struct kernel_epilogue *how, struct kernel_array c);

/* ---- element by element ------------------------------------------------------------------------------------------ */
void kernel_fill(struct kernel_array y, size_t n, float value);
void kernel_scale(struct kernel_array y, size_t n, float a);
void kernel_add(struct kernel_array y, struct kernel_array x, size_t n);                      /* y += x */
void kernel_axpy(struct kernel_array y, float a, struct kernel_array x, size_t n);            /* y += a x */
void kernel_add_bias(struct kernel_array y, struct kernel_array bias, size_t rows, size_t d); /* every row += bias */
/* y[d] += sum over rows: the bias gradient */
void kernel_sum_rows(struct kernel_array y, struct kernel_array x, size_t rows, size_t d);
double kernel_sum_squares(struct kernel_array x, size_t n);
double kernel_dot(struct kernel_array x, struct kernel_array y, size_t n);

/* ---- embedding --------------------------------------------------------------------------------------------------- */
/* y[i] = table[ids[i]] */
void kernel_gather(struct kernel_array y, struct kernel_array table, const uint32_t *ids, size_t n, size_t d);
/* table[ids[i]] += dy[i], in order of i */
void kernel_scatter_add(struct kernel_array table, struct kernel_array dy, const uint32_t *ids, size_t n, size_t d);

/* ---- mixtures of experts (Shazeer et al. 2017) --------------------------------------------------------------------- */
/*
 * Of f32, but the rows of experts: probs [rows][experts] = softmax of logits (and may be them); of each row the k most probable, descending, of equals the first:
 * ids, weights [rows][k], the probabilities themselves or divided by their sum.
 */
void kernel_route(struct kernel_array probs, uint32_t *ids, struct kernel_array weights, struct kernel_array logits,
                  size_t rows, size_t experts, size_t k, bool normalise);
/* dlogits (overwritten) of dweights [rows][k]. */
void kernel_route_backward(struct kernel_array dlogits, struct kernel_array dweights, const uint32_t *ids,
                           struct kernel_array probs, size_t rows, size_t experts, size_t k, bool normalise);
/*
 * The elements of ids [n][k] by expert, in each expert ascending: those of expert e are slots[starts[e]] to
 * slots[starts[e + 1] - 1], and rows[i] = slots[i] / k. starts [experts + 1]; slots, rows [n k].
 */
void kernel_group(uint32_t *starts, uint32_t *slots, uint32_t *rows, const uint32_t *ids, size_t n, size_t k,
                  size_t experts);
/* y [rows][experts] = the weights at their experts, 0 elsewhere. */
void kernel_spread_weights(struct kernel_array y, const uint32_t *ids, struct kernel_array weights, size_t rows,
                           size_t experts, size_t k);
/* y[i] = x[rows[i]], of one type. */
void kernel_gather_rows(struct kernel_array y, struct kernel_array x, const uint32_t *rows, size_t n, size_t d);
/* y[rows[i]] += weights[slots[i]] x[i]; no row twice. */
void kernel_scatter_weighted(struct kernel_array y, struct kernel_array x, struct kernel_array weights,
                             const uint32_t *slots, const uint32_t *rows, size_t n, size_t d);
/* dx[i] = weights[slots[i]] dy[rows[i]], dweights[slots[i]] = x[i] dy[rows[i]]: both overwritten. */
void kernel_scatter_weighted_backward(struct kernel_array dx, struct kernel_array dweights, struct kernel_array dy,
                                      struct kernel_array x, struct kernel_array weights, const uint32_t *slots,
                                      const uint32_t *rows, size_t n, size_t d);
/* y[r] = sigmoid(gate[r]) x[r]; y may be x. The gradients overwrite. */
void kernel_gate_rows(struct kernel_array y, struct kernel_array x, struct kernel_array gate, size_t rows, size_t d);
void kernel_gate_rows_backward(struct kernel_array dx, struct kernel_array dgate, struct kernel_array dy,
                               struct kernel_array x, struct kernel_array gate, size_t rows, size_t d);

/* ---- RMSNorm (Zhang and Sennrich 2019, eq. 4) -------------------------------------------------------------------- */
/* y = x / sqrt(mean(x^2) + eps) * w; inv [rows], if it has data, keeps 1 / rms for backward */
void kernel_rmsnorm(struct kernel_array y, struct kernel_array inv, struct kernel_array x, struct kernel_array w,
                    size_t rows, size_t d, float eps);
/* dx +=, dw +=; either without data: not wanted */
void kernel_rmsnorm_backward(struct kernel_array dx, struct kernel_array dw, struct kernel_array dy,
                             struct kernel_array x, struct kernel_array w, struct kernel_array inv, size_t rows,
                             size_t d);

/* ---- LayerNorm (Ba et al. 2016) ---------------------------------------------------------------------------------- */
/* y = (x - mean(x)) / sqrt(var(x) + eps) * w + b; moments [rows][2] keeps mean and 1 / deviation for backward ; b and moments may have no data */
void kernel_layernorm(struct kernel_array y, struct kernel_array moments, struct kernel_array x, struct kernel_array w,
                      struct kernel_array b, size_t rows, size_t d, float eps);
/* dx +=, dw +=, db +=; each may have no data */
void kernel_layernorm_backward(struct kernel_array dx, struct kernel_array dw, struct kernel_array db,
                               struct kernel_array dy, struct kernel_array x, struct kernel_array w,
                               struct kernel_array moments, size_t rows, size_t d);

/* ---- rotary positions (Su et al. 2021), half-split order as Hugging Face: pairs (i, i + dims/2) ------------------ */
struct kernel_rotation {
    size_t dims;            /* of each head, the first ones; even, <= head_dim */
    const double *inv_freq; /* [tables][dims/2], f64 so that long contexts stay exact */
    const uint8_t *table;   /* [rows] which of the tables a row has; NULL: the first */
    float scale;            /* of cosine and sine, and so of what is rotated (YaRN, LongRoPE); 0: 1 */
};
/* x [rows][n_heads][head_dim] in place; position[rows]. sign -1: its transpose = backward; without a scale the inverse. */
void kernel_rope(struct kernel_array x, size_t rows, size_t n_heads, size_t head_dim, const uint32_t *position,
                 const struct kernel_rotation *rotation, int sign);

/* ---- LSTM (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000) ----------------------------- */
/*
 * Over concatenated sequences, each a run of its own from zeros. With gates i, f, g, o in PyTorch's order, * by element:
 *   [i f g o] = gates + h W^T + bias, i, f, o = sigmoid, g = tanh;  c = f * c before + i * g;  h = o * tanh(c)
 * All f32. An element's sum has one order, so a sequence gives the same bits whatever is beside it.
 */
struct kernel_lstm {
    size_t n_seqs;
    const uint32_t *starts; /* [n_seqs + 1], each sequence at least one position */
    size_t units;
    size_t directions; /* 1; or 2, of which the second runs from the end of each sequence to its beginning */
};
struct kernel_lstm_direction {
    struct kernel_array gates; /* [n][4 units]: what the inputs add to them; kernel_lstm leaves i, f, g, o there */
    struct kernel_array cells; /* [n][units]: c, written by kernel_lstm */
    struct kernel_array weight, bias; /* [4 units][units]; [4 units], or no data */
};
/* y [n][directions][units] = h. scratch [directions][4 units][units]. */
void kernel_lstm(const struct kernel_lstm *s, struct kernel_array y, const struct kernel_lstm_direction *directions,
                 struct kernel_array scratch);
/* dgates[i] [n][4 units] of dy (overwritten), by what kernel_lstm left; that is the gradient of its sums, too. scratch
 * [directions][n_seqs][2][units]. */
void kernel_lstm_backward(const struct kernel_lstm *s, const struct kernel_array *dgates, struct kernel_array dy,
                          const struct kernel_lstm_direction *directions, struct kernel_array scratch);
/* to [n][units] = h of the step before each position in a direction, zeros where there is none: dW = dgates^T to. */
void kernel_lstm_before(const struct kernel_lstm *s, size_t direction, struct kernel_array to, struct kernel_array y);

/* ---- attention with grouped queries over concatenated sequences --------------------------------------------- */
#define KERNEL_MAX_HEAD_DIM 4096
struct kernel_attention {
    size_t n_heads, n_kv_heads, head_dim; /* n_heads a multiple of n_kv_heads */
    size_t n_seqs;
    const uint32_t *starts; /* [n_seqs + 1] */
    float scale;            /* of the scores, mostly 1/sqrt(head_dim) */
    bool bidirectional;     /* every position sees the whole sequence; else (causal) itself and those before it, */
    uint32_t window;        /* of these the last `window`, itself included; 0: all. Causal only */
    float softcap;          /* > 0: scaled scores s become softcap * tanh(s / softcap) */
};
/*
 * q [n][n_heads][head_dim], k, v [n][n_kv_heads][head_dim] -> y [n][n_heads][head_dim]; lse [n][n_heads]: log-sum-exp
 * of the scaled scores, for backward, or NULL. Blocked with online softmax: no n x n matrix is ever whole in memory.
 */
void kernel_attention(const struct kernel_attention *a, struct kernel_array y, struct kernel_array lse,
                      struct kernel_array q, struct kernel_array k, struct kernel_array v);
/*
 * The probabilities themselves, of queries [first, first + n) of sequence `seq`: p [n][n_heads][length of the sequence] f32, 0 where
 * a query sees no key. q and k in f32.
 */
void kernel_attention_weights(const struct kernel_attention *a, size_t seq, size_t first, size_t n,
                              struct kernel_array p, struct kernel_array q, struct kernel_array k);
/* The scores, scaled and capped, before their softmax; likewise 0 where a query sees no key. */
void kernel_attention_scores(const struct kernel_attention *a, size_t seq, size_t first, size_t n,
                             struct kernel_array s, struct kernel_array q, struct kernel_array k);
/*
 * A teacher's attention t [n][n_heads][length], of those queries, against that of q and k:
 *   KL       sum over keys t ln(t / p)
 *   SQUARE   mean over the keys that the query sees of (p - t)^2
 *   SCORES   the same of the scores
 * values [n][n_heads] receive row_weight (of the queries, as many as rows of q) times that; dq and dk (both or none) have weight times
 * the gradient of their sum added. Self-relations of x are q = k = x, with dq = dk. scratch [2][n][n_heads][length].
 */
enum kernel_attention_loss_kind { ATTENTION_KL, ATTENTION_SQUARE, ATTENTION_SCORES };
struct kernel_attention_loss {
    enum kernel_attention_loss_kind kind;
    float weight;
};
void kernel_attention_loss(const struct kernel_attention_loss *how, const struct kernel_attention *a, size_t seq,
                           size_t first, size_t n, const float *t, const float *row_weight, const float *q,
                           const float *k, float *scratch, double *values, float *dq, float *dk);
/* Recomputes the probabilities from lse (Dao et al. 2022, algorithm 4). dk and dv are sums and stay f32. */
void kernel_attention_backward(const struct kernel_attention *a, struct kernel_array dq, struct kernel_array dk,
                               struct kernel_array dv, struct kernel_array dy, struct kernel_array y,
                               struct kernel_array lse, struct kernel_array q, struct kernel_array k,
                               struct kernel_array v);

/* ---- attention of generation: one query per sequence against its cache of keys and values ----------------- */
/* Of one sequence in one layer. Only attention_decode.c knows their layout. */
struct kernel_cache {
    struct kernel_array memory; /* the caller's: kernel_cache_size elements */
    size_t capacity;            /* positions it can hold */
    size_t length;              /* positions it holds */
};
size_t kernel_cache_size(size_t n_kv_heads, size_t head_dim, size_t capacity);
/* caches[s] takes rows [starts[s], starts[s + 1]) of k and v [n][n_kv_heads][head_dim], which have its type. */
void kernel_cache_append(const struct kernel_attention *a, struct kernel_cache *caches, struct kernel_array k,
                         struct kernel_array v);
/* q, y [n_seqs][n_heads][head_dim]; q has the type of the caches, none of which is empty. `starts` is not read. A
 * sequence's result does not depend on the others. scratch: as many elements as the first function says, which may
 * be 0. */
size_t kernel_attention_decode_scratch(const struct kernel_attention *a, const struct kernel_cache *caches);
void kernel_attention_decode(const struct kernel_attention *a, struct kernel_array y, struct kernel_array q,
                             const struct kernel_cache *caches, struct kernel_array scratch);

/* ---- activation functions ---------------------------------------------------------------------------------------- */
/* y = act(x); y may be x. dx = dy act'(x). */
void kernel_activate(enum kernel_act act, struct kernel_array y, struct kernel_array x, size_t n);
void kernel_activate_backward(enum kernel_act act, struct kernel_array dx, struct kernel_array dy,
                              struct kernel_array x, size_t n);
/* Gated linear units (Shazeer 2020, "GLU variants"; SwiGLU with ACT_SILU): y = act(gate) * up. Gradients are
 * overwritten. */
void kernel_glu(enum kernel_act act, struct kernel_array y, struct kernel_array gate, struct kernel_array up, size_t n);
void kernel_glu_backward(enum kernel_act act, struct kernel_array dgate, struct kernel_array dup,
                         struct kernel_array dy, struct kernel_array gate, struct kernel_array up, size_t n);
/* y = cap tanh(x / cap); y may be x. dx *= 1 - (y / cap)^2: the gradient of y becomes that of x. */
void kernel_softcap(struct kernel_array y, struct kernel_array x, size_t n, float cap);
void kernel_softcap_backward(struct kernel_array dx, struct kernel_array y, size_t n, float cap);

/* ---- rows of logits ---------------------------------------------------------------------------------------------- */
/* Both of x * inv_temperature. */
void kernel_logsumexp(float *lse, struct kernel_array x, size_t rows, size_t d, float inv_temperature);
void kernel_log_softmax(struct kernel_array y, struct kernel_array x, size_t rows, size_t d,
                        float inv_temperature); /* y may be x */
/* host_y in any floating type = log-softmax of x * inv_temperature, or x as it is when not `log_probs`; not in place.
 * Returns the first row of it with a value that is not finite, or rows. */
size_t kernel_store_logits(enum dtype type, void *host_y, struct kernel_array x, size_t rows, size_t d,
                           float inv_temperature, bool log_probs);
void kernel_argmax(uint32_t *index, struct kernel_array x, size_t rows, size_t d); /* first of equals */
/* The k <= d largest of each row, descending, ties by lower index, NaN as -infinity: ids, values [rows][k]. */
void kernel_topk(uint32_t *ids, float *values, struct kernel_array x, size_t rows, size_t d, size_t k);
/*
 * n draws with replacement from softmax(x * inv_temperature) for each row, from uniforms u [rows][n] in [0,1) by
 * inversion in f64: ids [rows][n] ascending (duplicates adjacent). x is DT_F32, DT_F16 or DT_BF16. Returns the first
 * row with a value that is not finite, or rows: minus infinity is never drawn, anything else makes the row's draws
 * meaningless.
 */
size_t kernel_sample(uint32_t *ids, const double *u, struct kernel_array x, size_t rows, size_t d, size_t n,
                     float inv_temperature);

/*
 * One teacher distribution a row against rows of student logits. Target of row r: entries [offset[r], offset[r+1]) of
 * ids and probs, plus `rest[r]` as one pseudo-token for all other tokens when rest is not NULL (the ghost token).
 *   loss[r]  = kl_weight * T^2 * KL(target || softmax(x/T)) + ce_weight * (-log softmax(x)[label[r]])
 * With a ghost, the KL is sum_K t log(t/p) + (1 - sum t) log((1 - sum t)/(1 - sum p)). Without, targets that do not sum
 * to 1 are taken as they are (KL = sum t log(t/p), gradient T (sum t softmax - t)). The ids of a row are distinct, in
 * any order. label NULL, or label[r] == UINT32_MAX: no label, no cross-entropy. ids and dense NULL: no teacher, no KL.
 * dx (no data, x itself, or apart from x) [rows][d] receives the gradient of sum_r row_weight[r] * loss[r], rounded when
 * it is DT_BF16; row_weight NULL: 1. kl, ce [rows] (or NULL) receive the two terms in f64 without any of the weights and without T^2.
 */
struct kernel_target {      /* host memory, as knowledge comes */
    const uint64_t *offset; /* [rows + 1] */
    const uint32_t *ids;
    const float *probs;
    const float *rest;     /* [rows] or NULL */
    const float *dense;    /* [rows][d] teacher log-probabilities at T (-infinity too) instead of the above, or NULL */
    const uint32_t *label; /* [rows] or NULL */
};
struct kernel_loss {
    float temperature, kl_weight, ce_weight;
};
void kernel_distill_loss(const struct kernel_loss *how, const struct kernel_target *target, const float *row_weight,
                         struct kernel_array x, size_t rows, size_t d, double *kl, double *ce, struct kernel_array dx);

/*
 * Divergences of one teacher distribution t a row from the student's p = softmax(x / T), sums over tokens of
 *   KL              a t ln(t / p) + b p ln(p / t)
 *   SKEW            t ln(t / m), m = a t + (1 - a) p
 *   SKEW_REVERSE    p ln(p / m), m = (1 - a) t + a p
 *   JENSEN_SHANNON  a t ln(t / m) + (1 - a) p ln(p / m), m = a t + (1 - a) p
 *   VARIATION       |t - p| / 2
 *   ALPHA_BETA      -(t^a p^b - a / (a + b) t^(a + b) - b / (a + b) p^(a + b)) / (a b); a, b > 0
 *   ADAPTIVE        KL with a = g_head / (g_head + g_tail) and b = 1 - a, both taken as constants: g are sums of |t - p| over the head,
 *                   which is the fewest tokens of highest t that have a mass of at least `a`, ties by lower index, and over the rest
 * The target is dense, or entries with a `rest`: then the tokens outside the entries are one token on both sides, and `rest`
 * is taken to be at least 1e-6, below which rounding decides; entries are in descending order for ADAPTIVE. Without T^2.
 * value [rows] receives the sums; infinity where p has mass and t none, and the divergence is infinite then. dx (NULL, or [rows][d] in
 * f32) gets weight * row_weight[r] * the gradient added; row_weight NULL: 1.
 */
enum kernel_divergence_kind {
    DIVERGENCE_KL,
    DIVERGENCE_SKEW,
    DIVERGENCE_SKEW_REVERSE,
    DIVERGENCE_JENSEN_SHANNON,
    DIVERGENCE_VARIATION,
    DIVERGENCE_ALPHA_BETA,
    KERNEL_DIVERGENCES,
    DIVERGENCE_ADAPTIVE = KERNEL_DIVERGENCES /* made of the first one */
};
struct kernel_divergence {
    enum kernel_divergence_kind kind;
    float temperature, a, b, weight;
};
void kernel_divergence(const struct kernel_divergence *how, const struct kernel_target *target, const float *row_weight,
                       const float *x, size_t rows, size_t d, double *value, float *dx);

/* Targets without a teacher: `own` of the label, `other` of each further token. -sum t ln p of p = softmax(x / T), less the
 * teacher's entropy when `divergence`. value, dx and weights as above, the gradient times T^2; rows without a label have none. */
struct kernel_label_target {
    float temperature, own, other, weight;
    bool divergence;
};
void kernel_label_target(const struct kernel_label_target *how, const uint32_t *label, const float *row_weight,
                         const float *x, size_t rows, size_t d, double *value, float *dx);

/* Mean over the tokens of (x - z)^2, or of the same less their means over the row; z [rows][d]. value, dx, row_weight as above. */
void kernel_logit_mse(bool centred, float weight, const float *z, const float *row_weight, const float *x, size_t rows,
                      size_t d, double *value, float *dx);

/* Mean over the pairs of entries (i, j) of a row with t_i > t_j of a function of the student's y = x_i - x_j: max(0, margin - y), or
 * ln(1 + e^(margin - y)) when `logistic`. Entries as in kernel_target, of which at most `most` count, the first ones. */
struct kernel_rank {
    bool logistic;
    float margin, weight;
    size_t most;
};
void kernel_rank(const struct kernel_rank *how, const uint64_t *offset, const uint32_t *ids, const float *probs,
                 const float *row_weight, const float *x, size_t rows, size_t d, double *value, float *dx);

/* Features x [rows][d] against a teacher's t, row by row: sums of row_weight[r] times the mean of (x - t)^2, or 1 - cos(x, t), which
 * is 1 for a row of zeros. dx (NULL, or [rows][d]) receives weight times the gradient. */
double kernel_rows_mse(float weight, const float *t, const float *row_weight, const float *x, size_t rows, size_t d,
                       float *dx);
double kernel_rows_cosine(float weight, const float *t, const float *row_weight, const float *x, size_t rows, size_t d,
                          float *dx);

/* |x / |x| - t / |t||_1 of each row, likewise. */
double kernel_rows_factor(float weight, const float *t, const float *row_weight, const float *x, size_t rows, size_t d,
                          float *dx);

/*
 * L1 distance of the probabilities of a row in descending order: sum_i |p_(i) - t_(i)| with p = softmax(x / T), whatever tokens
 * they are of. Teachers as in kernel_target; what it has no entry for is 0. value, dx, row_weight as in kernel_divergence. scratch:
 * kernel_sorted_scratch(d) bytes.
 */
size_t kernel_sorted_scratch(size_t d);
void kernel_sorted_distance(float temperature, float weight, const struct kernel_target *target,
                            const float *row_weight, const float *x, size_t rows, size_t d, void *scratch,
                            double *value, float *dx);

/* ---- relations among n instances: a teacher's features t [n][td] and a student's x [n][d] ------------------------- */
/*
 * All return the value; dx (NULL, or [n][d]) receives weight times its gradient. Sums are in f64. scratch: as many doubles as the
 * function beside says.
 *   SIMILARITY   mean over [n][n] of (g_t - g_x)^2, g = rows of x x^T divided by their lengths (0 where that is 0)
 *   CORRELATION  mean over [n][n] of (f(c_t) - f(c_x))^2, c the cosines; f(c) = c, or with an order P > 0
 *                e^(-2 gamma) sum_{p <= P} (2 gamma)^p / p! c^p
 *   PROBABILITY  1/n sum_i sum_{j != i} p_ij ln((p_ij + eps) / (q_ij + eps)), p, q the shares of (c_ij + 1) / 2 in their sum over j != i
 *   DISTANCE     mean over i != j of huber(d_x - d_t), d = |x_i - x_j| / their mean; huber(u) = u^2 / 2 up to 1, |u| - 1/2 beyond
 *   GRAPH        mean over [n][n] of (a_x - a_t)^2, a = |x_i - x_j|^2 / d
 */
enum kernel_relation_kind {
    RELATION_SIMILARITY,
    RELATION_CORRELATION,
    RELATION_PROBABILITY,
    RELATION_DISTANCE,
    RELATION_GRAPH
};
#define KERNEL_RELATION_EPS 1e-7
struct kernel_relation {
    enum kernel_relation_kind kind;
    double weight, gamma;
    unsigned order;
};
size_t kernel_relation_scratch(size_t n);
double kernel_relation(const struct kernel_relation *how, size_t n, const float *t, size_t td, const float *x, size_t d,
                       double *scratch, float *dx);
/* Mean over ordered triples of distinct i, j, k of huber(cos_x - cos_t), cos that of the angle at j. Work n^3 (td + d). */
size_t kernel_angles_scratch(size_t n, size_t td, size_t d);
double kernel_angles(double weight, size_t n, const float *t, size_t td, const float *x, size_t d, double *scratch,
                     float *dx);
/*
 * With s_ij = cos(x_i, t_j) / temperature: the mean over i of -ln softmax_j(s_i.) at i and over j of -ln softmax_i(s_.j) at j, halved. Widths
 * are equal; dt receives the gradient with respect to t.
 */
size_t kernel_contrast_scratch(size_t n, size_t d);
double kernel_contrast(double weight, double temperature, size_t n, size_t d, const float *t, const float *x,
                       double *scratch, float *dt, float *dx);

/* ---- of a sequence of n positions as a whole; arguments and results as above ------------------------------------------ */
/* Mean over positions of (q_x - q_t)^2, q_i = sum_c x_ic^2 divided by the length of q. scratch [2 n]. */
double kernel_energy_map(double weight, size_t n, const float *t, size_t td, const float *x, size_t d, double *scratch,
                         float *dx);
/* Mean over [d][d] of (G_x - G_t)^2, G = a^T b / n of two layers. scratch [2 d d] floats; da, db receive the gradient. */
double kernel_flow(double weight, size_t n, size_t d, const float *ta, const float *tb, const float *xa,
                   const float *xb, float *scratch, float *da, float *db);
/* Mean over rows of (m_x - m_t)^2, m = |a_i - b_i|^2 / d of two layers. */
double kernel_moves(double weight, size_t n, const float *ta, const float *tb, size_t td, const float *xa,
                    const float *xb, size_t d, float *da, float *db);
/*
 * Maximum mean discrepancy of the channels, each over the positions and divided by its length: mean k(x, x') + mean k(t, t') - 2 mean
 * k(x, t), k = x . y, (x . y)^2, or e^(-|x - y|^2 / (2 s)), s the mean of |x - t|^2, a constant in the gradient.
 */
enum kernel_mmd_kind { MMD_LINEAR, MMD_POLY, MMD_GAUSSIAN };
size_t kernel_mmd_scratch(size_t n, size_t td, size_t d);
double kernel_mmd(enum kernel_mmd_kind kind, double weight, size_t n, const float *t, size_t td, const float *x,
                  size_t d, double *scratch, float *dx);

/* ---- optimizer: AdamW (Loshchilov and Hutter 2019, algorithm 2, decoupled decay) --------------------------------- */
struct kernel_adamw {
    float lr, beta1, beta2, eps, weight_decay;
    float grad_scale; /* clipping and averaging, applied to the gradient as it is read */
    uint64_t step;    /* 1-based, for bias correction */
    uint64_t stream;  /* which tensor this is, for moments in bf16 */
};
/*
 * m and v are of one type. In bf16 they are rounded up or down at random, with the probabilities that make the mean
 * right (a change smaller than half a unit would always be lost otherwise): the f32 bits plus 16 random ones, cut off.
 * Element i takes word i / 16 % 4 of philox(step, stream, i / 64 * 16 + i % 16), m its lower half and v its upper.
 */
void kernel_adamw(const struct kernel_adamw *o, struct kernel_array w, struct kernel_array m, struct kernel_array v,
                  struct kernel_array g, size_t n);

/*
 * Nesterov's momentum as Muon takes it, with g' = grad_scale g: m = beta m + (1 - beta) g', u = beta m + (1 - beta) g'.
 * u is f32; m in bf16 is rounded at random like the first moment of kernel_adamw.
 */
struct kernel_momentum {
    float beta, grad_scale;
    uint64_t step, stream;
};
void kernel_momentum(const struct kernel_momentum *o, struct kernel_array u, struct kernel_array m,
                     struct kernel_array g, size_t n);

/* ---- sums over activations, in f64, for calibration -------------------------------------------------------------- */
/* Per column, +=. */
void kernel_col_sums(double *sum_abs, double *sum_sq, struct kernel_array x, size_t rows, size_t d);
/* Contiguous sequences of lengths[i] rows, some of which may have none: out[j] += sum over sequences of (mean |x_j| over
 * its rows)^2. */
void kernel_seq_mean_abs_sq(double *out, struct kernel_array x, const uint32_t *lengths, size_t n_seqs, size_t d);
double kernel_row_norms_sum(struct kernel_array x, size_t rows, size_t d); /* sum of the L2 norms of the rows */
/* Sum over rows of 1 - cos(x_r, y_r); a row of zeros counts as distance 1. */
double kernel_cosine_distance_sum(struct kernel_array x, struct kernel_array y, size_t rows, size_t d);

/* ---- on the host: second-order methods: Gram matrices, the factor of an inverse, and error feedback ------------------------------- */

/* c [n][n] = x^T x + beta c of x [k][n], on and above the diagonal, with the bits of kernel_matmul_tn; what is below may be anything
 * afterwards. k of 0 changes nothing. */
void kernel_gram(size_t n, size_t k, const float *x, float beta, float *c);
void kernel_mirror(size_t n, float *c); /* what is above the diagonal to below it, too */

/*
 * Such sums from integers, where the CPU multiplies these twice as fast (AVX512-VNNI). Up to KERNEL_ROWS16 rows are rounded to 16
 * bits, each column to whole multiples of its scale: norm / 46200, or |x| / 32767 of its largest if that is more. Then by
 * Cauchy and Schwarz no sum of products leaves 32 bits, and sums are exact, in any order. An element is wrong by up to half a scale: for
 * 1024 rows 1 / 2900 of the column's root mean square, at random. A column that has a NaN or infinity makes all its sums NaN.
 */
#define KERNEL_ROWS16 1024
struct kernel_rows16 {
    size_t n, rows;
    float *scale;    /* [n] */
    uint32_t *words; /* as the kernel likes them */
};
bool kernel_has_rows16(void); /* else nothing of the following */
size_t kernel_rows16_bytes(size_t n);
struct kernel_rows16 kernel_rows16_in(void *memory, size_t n); /* empty; memory of that size, the caller's */
void kernel_rows16_take(struct kernel_rows16 *r, size_t rows, const float *x); /* x [rows][n], rows <= KERNEL_ROWS16 */
void kernel_gram16(const struct kernel_rows16 *x, float *c);                   /* c [n][n] += x^T x, as kernel_gram */
/* c [a->n][b->n] += a^T b, of as many rows */
void kernel_product16(const struct kernel_rows16 *a, const struct kernel_rows16 *b, float *c);

/*
 * u [n][n], upper triangular with zeros below the diagonal: u^T u = h^-1, for a symmetric positive definite h [n][n], of which
 * the upper triangle is read and which is overwritten. (With h = R R^T, R upper triangular, u = R^-1: one factorisation, no
 * inverse of h.) False when h is not positive definite; *at is then the column where that showed.
 */
bool kernel_inverse_factor(float *u, float *h, size_t n, size_t *at);

/*
 * Optimal Brain Surgeon over the columns of a matrix, all rows at once: GPTQ (Frantar et al. 2022, algorithm 1) and SparseGPT (Frantar
 * and Alistarh 2023, algorithm 1). Column by column, `decide` says what each row keeps of its value; the error, divided by
 * u[j][j], is made up for in the columns to come:
 *
 *     e = (w[j] - kept) / u[j][j];   w[k] -= e u[j][k] for k > j
 *
 * within a block at once, beyond it when the block is done.
 */
struct kernel_feedback {
    size_t rows, cols;
    const float *u; /* [cols][cols], of kernel_inverse_factor */
    size_t block;   /* columns */
    /* Before a block: its columns [n][rows] from number `first` on, as they are now. NULL: nothing. */
    void (*begin)(void *ctx, size_t first, size_t n, const float *w);
    /* What n rows from `row` on keep of `column`. w [n] is followed, `rows` floats apart, by the `left` - 1 columns of the block
     * that come after it, as they are now: for grids that are fitted where a group begins. Called from several threads,
     * for different rows. */
    void (*decide)(void *ctx, size_t column, size_t left, size_t row, size_t n, const float *w, float *kept);
    void *ctx;
};
/* w [cols][rows], the matrix transposed, becomes what was kept. scratch [block][rows]. loss [rows] += the sum of e^2 of each row,
 * which is by how much |w x - kept x|^2 has grown, summed over what u was made from; or NULL. */
void kernel_feedback(const struct kernel_feedback *f, float *w, float *scratch, double *loss);
/* y [cols][rows] = x [rows][cols] transposed */
void kernel_transpose(float *y, const float *x, size_t rows, size_t cols);

/* ---- on the host: norms of weights, for pruning ------------------------------------------------------------------------------- */
void kernel_row_norms2(float *out, const float *x, size_t rows, size_t d);  /* sum of squares of each row */
void kernel_col_norms2(float *out, const float *x, size_t rows, size_t d);  /* of each column, += */
void kernel_col_abs_sum(float *out, const float *x, size_t rows, size_t d); /* sum |x| of each column, += */
/*
 * Makes the k elements of smallest |x| zero, ties by lower index; exact. scratch [n]. Returns the number of zeros in
 * x afterwards.
 */
size_t kernel_zero_smallest(float *x, size_t n, size_t k, float *scratch);
/*
 * Of each row of x [rows][cols] the k elements of smallest |x_j| scale_j become zero, ties by lower index; exact. scale [cols] is not
 * negative; NULL: 1. scratch [parallel_threads()][2 cols].
 */
void kernel_zero_smallest_rows(float *x, const float *scale, size_t rows, size_t cols, size_t k, float *scratch);
#define KERNEL_MAX_GROUP 64
/* The same of each `group` consecutive elements of a row, which divides cols and is at most KERNEL_MAX_GROUP: all but `keep` become
 * zero. */
void kernel_zero_groups(float *x, const float *scale, size_t rows, size_t cols, unsigned keep, unsigned group);
/* Which of the scores of a group, `stride` apart, are not among the `keep` largest: gone[j] is 1. Of equals the lower index goes. */
void kernel_smallest_of_group(const float *score, size_t stride, unsigned group, unsigned keep,
                              unsigned char gone[KERNEL_MAX_GROUP]);
size_t kernel_count_zeros(const float *x, size_t n);

/* ---- masks of parameters on the device: bits is DT_U8 [(n + 7) / 8], bit i % 8 of element i / 8 is set where x_i is 0 ------------ */
size_t kernel_zero_bits(struct kernel_array bits, struct kernel_array x, size_t n);  /* returns how many are set */
void kernel_zero_by_bits(struct kernel_array x, struct kernel_array bits, size_t n); /* x_i = 0 where set */
/* y[r][i] = x[r][keep[i]] for n kept columns of d. */
void kernel_gather_cols(float *y, const float *x, const uint32_t *keep, size_t rows, size_t d, size_t n);
/* The k-th smallest |x| (k from 0) of n values: the threshold of magnitude pruning, exact. scratch [n]. */
float kernel_kth_abs(const float *x, size_t n, size_t k, float *scratch);

#endif
