/*
 * kernel: all arithmetic on tensor data: f32 (activations may be bf16), row-major, threaded through parallel_for, with
 * no allocation visible to the caller. Each function has a plain scalar twin in kernel_plain.h, a template over float
 * and double, that it is tested against; gradients are checked with the double instance.
 *
 * Results are bit-identical for any number of threads: work is split into pieces whose size does not depend on it, and
 * reductions go over the pieces in order. On another CPU (or with RILL_CPU=portable) they may differ in the last bits.
 *
 * Shapes: n rows (positions) of d columns unless said otherwise. Sequences are contiguous: `starts` is [n_seqs + 1],
 * starts[0] = 0, starts[n_seqs] = n, strictly increasing. All arrays are the caller's. Void functions cannot fail.
 */
#ifndef RILL_KERNEL_H
#define RILL_KERNEL_H

#include "lib/base/base.h"
#include "lib/tensor/tensor.h"

/* The implementation in use, for reports. Backends with the same four strings give the same bits. */
struct kernel_backend {
    const char *path; /* "amx", "avx512bf16", "avx512", "avx2" or "portable" */
    const char *f32;  /* f32 products: "avx512", "avx2" or "portable" */
    /* bf16 products: "amx", "vdpbf16ps", "avx512-fma" (in f32), or "widened" (to f32, for the product of f32). */
    const char *bf16;
    const char *int8; /* integer products: "avx512-vnni", "avx2" or "portable", all with the same bits */
    size_t int8_rows; /* up to about so many rows they are faster than bf16 products of the same weights */
};
struct kernel_backend kernel_backend(void);
/* Are bf16 products at least about as fast as f32 products on the path in use? */
bool kernel_has_bf16(void);

/* ---- devices and their memory ------------------------------------------------------------------------------------ */
/*
 * Tensor data is in memory of a device and is dereferenced only in lib/kernel. There is one device, the CPU, whose
 * buffers are host memory; README.md says how another one would be added. Always in host memory are small inputs (ids,
 * positions, sequence starts, frequencies, targets of losses), results for the caller (ids, sums in f64), and all
 * arguments in the sections "on the host" at the end.
 */
struct kernel_device;
struct kernel_buffer; /* memory of a device; opaque */
struct kernel_device *kernel_cpu(void);

/*
 * Elements in a buffer. Results of layers are f32 or bf16; arithmetic is in f32 for both: a kernel widens a piece,
 * computes in f32, and rounds the result once. Functions accept f32 and bf16 unless they say f32.
 */
struct kernel_array {
    enum dtype dtype;
    /* private to the device: */
    struct kernel_buffer *buffer; /* NULL: no data */
    size_t offset;                /* in bytes */
};
/* Allocates n elements, uninitialized and 64-byte aligned; DT_U8 for memory that kernel_typed or a matrix gives a type.
 * No data and *e if out of memory. */
struct kernel_array kernel_alloc(struct kernel_device *d, enum dtype dtype, uint64_t n, struct err *e) MUST_CHECK;
void kernel_free(struct kernel_device *d, struct kernel_array a); /* all that kernel_alloc returned, or no data */
static inline struct kernel_array kernel_none(enum dtype dtype) {
    return (struct kernel_array){dtype, NULL, 0};
}
static inline bool kernel_has_data(struct kernel_array a) {
    return a.buffer != NULL;
}
static inline bool kernel_same_data(struct kernel_array a, struct kernel_array b) {
    return a.buffer == b.buffer && a.offset == b.offset;
}
/* Bytes of n elements of f32, bf16, f16 or u8. */
static inline size_t kernel_array_bytes(enum dtype dtype, size_t n) {
    return n * (dtype == DT_F32 ? sizeof(float) : dtype == DT_U8 ? 1 : sizeof(uint16_t));
}
/* The same memory with another element type. */
static inline struct kernel_array kernel_typed(struct kernel_array a, enum dtype dtype) {
    a.dtype = dtype;
    return a;
}
/* The rest of the array from element `at` on. */
static inline struct kernel_array kernel_part(struct kernel_array a, size_t at) {
    a.offset += kernel_array_bytes(a.dtype, at);
    return a;
}

/* Host memory as an array of the CPU; NULL: no data. Kernels do not write to input arrays, so const may be dropped. */
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
 * n elements for the host to read: in place if the array is in host memory (as on the CPU); another device would copy
 * them to memory that is valid until the next call for the same buffer. NULL for no data. Do not write there: use
 * kernel_upload.
 */
void *kernel_host(struct kernel_array a, size_t n);
/* Copies n elements from or to host memory, in the array's type. */
void kernel_upload(struct kernel_array y, const void *host, size_t n);
void kernel_download(void *host, struct kernel_array x, size_t n);

void kernel_convert(struct kernel_array y, struct kernel_array x, size_t n); /* y = x */

/* ---- activation functions, of layers and in epilogues of products ------------------------------------------------ */
enum kernel_act {
    ACT_SILU,
    ACT_GELU,       /* exact, with erf */
    ACT_GELU_TANH,  /* approximated with tanh: "gelu_new", "gelu_pytorch_tanh" */
    ACT_GELU_QUICK, /* x sigmoid(1.702 x) */
    ACT_RELU,
    ACT_RELU_SQUARED,
    ACT_TANH,
    KERNEL_ACTS
};

/* ---- matrix products in f32: c = product + beta * c; beta 0: c is overwritten ------------------------------------ */
/* nt: c[m][n] = a[m][k] b[n][k]^T; nn: a[m][k] b[k][n]; tn: a[k][m]^T b[k][n]. The bits of a row of c do not depend on
 * the other rows, except that nt with at most KERNEL_FEW_ROWS rows uses dot products. */
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
 * exact in f32; the order in which an element is summed depends only on k, not on m, n or threads. Paths with bf16
 * instructions treat subnormal numbers as zero, others do not.
 */
/*
 * The right-hand matrix of a product: n columns of k elements, which is a weight matrix [n][k] as models store it. The
 * device chooses the packing; members after n and k are private to it. The CPU has three forms:
 *
 * Stored: the matrix [n][k] itself, in any floating-point or quantized type (k a whole number of blocks), with any
 * alignment. A product packs a strip of it at a time into scratch, and the rows of a block share the strip: with many
 * rows the cost is small, with few the matrix is still read once.
 *
 * Packed in bf16: in the layout that micro-kernels read, panels [n/32][k/2][32][2] with n and k padded to multiples of
 * 32 by zeros.
 *
 * Packed for integer products: quantized blocks as panels of their codes and scales. Rows of a are rounded in blocks of
 * 32 along k to d q, with q = nearest integer to x / d and d = max |x| / 127; the result is
 *
 *     sum over groups of a scale in order of k:    (sum of codes times q, exact) scale d [+ min (d sum of q)]
 *
 * where each f32 operation is rounded separately: an element has the same bits for any m, n, number of threads and CPU.
 * A block of a whose maximum is below 2^-120 counts as zeros; one with a non-finite number gives NaN.
 */
enum kernel_packing { KERNEL_STORED, KERNEL_PACKED_BF16, KERNEL_PACKED_INT8 };
struct kernel_matrix {
    size_t n, k;
    /* private to the device: */
    enum kernel_packing packing;
    enum dtype dtype; /* of the source, or DT_BF16 */
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
/* The matrix [n][k] stored in b, whose memory it shares. */
struct kernel_matrix kernel_matrix_of(struct kernel_array b, size_t n, size_t k);
/* Bytes of a matrix [n][k] of this type. */
size_t kernel_matrix_bytes(enum kernel_packing packing, enum dtype type, size_t n, size_t k);
/* A matrix in the memory of an array (64-byte aligned, any type), to be filled with kernel_matrix_fill: rows [first,
 * first + rows) of [n][k] from host memory, in order, where first is a multiple of KERNEL_PANEL. `type` must be the
 * matrix's own unless it is packed in bf16. */
struct kernel_matrix kernel_matrix_in(struct kernel_array memory, enum kernel_packing packing, enum dtype type,
                                      size_t n, size_t k);
void kernel_matrix_fill(const struct kernel_matrix *b, size_t first, size_t rows, enum dtype type, const void *host);
/* Packs in bf16, into memory of kernel_matrix_bytes: a stored matrix, or the transpose of b [k][n] in f32 or bf16. */
struct kernel_matrix kernel_pack_nt(struct kernel_array memory, const struct kernel_matrix *b);
struct kernel_matrix kernel_pack_nn(struct kernel_array memory, size_t n, size_t k, struct kernel_array b);
/* Its first n columns. */
static inline struct kernel_matrix kernel_matrix_columns(const struct kernel_matrix *b, size_t n) {
    struct kernel_matrix part = *b;
    part.n = n;
    return part;
}
/* y[i][k] = column ids[i] of the matrix, which is row ids[i] of the weight: an embedding tied to the head. In f32, and
 * rounded to bf16 only if the matrix is. */
void kernel_matrix_gather(struct kernel_array y, const struct kernel_matrix *b, const uint32_t *ids, size_t n_ids);

/* How a product is finished: c = [c +] sums [+ bias] [+ residual], rounded to c's type. {0}: c = sums. */
struct kernel_epilogue {
    bool accumulate;              /* c must be DT_F32 */
    struct kernel_array bias;     /* f32 [n] */
    struct kernel_array residual; /* f32 [m][n]; may be c */
    /* bf16 [m][n], only without residual; may be c, which is bf16: c = act(gate) * (sums [+ bias]), as kernel_glu. */
    struct kernel_array gate;
    enum kernel_act act;
};
/*
 * c[m][n] = a[m][k] times b. a and c are f32 or bf16; a in f32 is rounded to bf16 first. how NULL: {0}.
 *
 *     y = x W^T        kernel_multiply(x, pack_nt(W))
 *     dx = dy W        kernel_multiply(dy, pack_nn(W))
 *     dW += dy^T x     kernel_multiply_tn(dy, pack_nn(x), accumulate)
 */
void kernel_multiply(size_t m, struct kernel_array a, const struct kernel_matrix *b, const struct kernel_epilogue *how,
                     struct kernel_array c);
/* The same for the transpose of a [k][m]; b is packed in bf16. a is transposed tile by tile, in cache. */
void kernel_multiply_tn(size_t m, struct kernel_array a, const struct kernel_matrix *b,
                        const struct kernel_epilogue *how, struct kernel_array c);

/* ---- element by element ------------------------------------------------------------------------------------------ */
void kernel_fill(struct kernel_array y, size_t n, float value);
void kernel_scale(struct kernel_array y, size_t n, float a);
void kernel_add(struct kernel_array y, struct kernel_array x, size_t n);                      /* y += x */
void kernel_axpy(struct kernel_array y, float a, struct kernel_array x, size_t n);            /* y += a x */
void kernel_add_bias(struct kernel_array y, struct kernel_array bias, size_t rows, size_t d); /* every row += bias */
/* y[d] += sum over rows: the gradient of a bias */
void kernel_sum_rows(struct kernel_array y, struct kernel_array x, size_t rows, size_t d);
double kernel_sum_squares(struct kernel_array x, size_t n);
double kernel_dot(struct kernel_array x, struct kernel_array y, size_t n);
double kernel_squared_distance(struct kernel_array x, struct kernel_array y, size_t n); /* sum (x - y)^2 */

/* ---- embedding --------------------------------------------------------------------------------------------------- */
/* y[i] = table[ids[i]] */
void kernel_gather(struct kernel_array y, struct kernel_array table, const uint32_t *ids, size_t n, size_t d);
/* table[ids[i]] += dy[i], in order of i */
void kernel_scatter_add(struct kernel_array table, struct kernel_array dy, const uint32_t *ids, size_t n, size_t d);

/* ---- mixtures of experts (Shazeer et al. 2017) ------------------------------------------------------------------- */
/*
 * In f32, except the rows of experts. probs [rows][experts] = softmax of logits (in place if they are the same array);
 * ids and weights [rows][k]: the k most probable experts of each row, descending, ties by lower index, with their
 * probabilities, divided by their sum if `normalise`.
 */
void kernel_route(struct kernel_array probs, uint32_t *ids, struct kernel_array weights, struct kernel_array logits,
                  size_t rows, size_t experts, size_t k, bool normalise);
/* dlogits (overwritten) from dweights [rows][k]. */
void kernel_route_backward(struct kernel_array dlogits, struct kernel_array dweights, const uint32_t *ids,
                           struct kernel_array probs, size_t rows, size_t experts, size_t k, bool normalise);
/*
 * Groups the elements of ids [n][k] by expert, ascending within each: slots[starts[e]] to slots[starts[e + 1] - 1] are
 * the indices of those of expert e, and rows[i] = slots[i] / k. starts [experts + 1]; slots, rows [n k].
 */
void kernel_group(uint32_t *starts, uint32_t *slots, uint32_t *rows, const uint32_t *ids, size_t n, size_t k,
                  size_t experts);
/* y [rows][experts] = the weights at the selected experts, 0 elsewhere. */
void kernel_spread_weights(struct kernel_array y, const uint32_t *ids, struct kernel_array weights, size_t rows,
                           size_t experts, size_t k);
/* y[i] = x[rows[i]]; y and x have the same type. */
void kernel_gather_rows(struct kernel_array y, struct kernel_array x, const uint32_t *rows, size_t n, size_t d);
/* y[rows[i]] += weights[slots[i]] x[i]; rows must be distinct. */
void kernel_scatter_weighted(struct kernel_array y, struct kernel_array x, struct kernel_array weights,
                             const uint32_t *slots, const uint32_t *rows, size_t n, size_t d);
/* dx[i] = weights[slots[i]] dy[rows[i]], dweights[slots[i]] = x[i] dy[rows[i]]: both overwritten. */
void kernel_scatter_weighted_backward(struct kernel_array dx, struct kernel_array dweights, struct kernel_array dy,
                                      struct kernel_array x, struct kernel_array weights, const uint32_t *slots,
                                      const uint32_t *rows, size_t n, size_t d);
/* y[r] = sigmoid(gate[r]) x[r]; y may be x. Gradients are overwritten. */
void kernel_gate_rows(struct kernel_array y, struct kernel_array x, struct kernel_array gate, size_t rows, size_t d);
void kernel_gate_rows_backward(struct kernel_array dx, struct kernel_array dgate, struct kernel_array dy,
                               struct kernel_array x, struct kernel_array gate, size_t rows, size_t d);

/* ---- RMSNorm (Zhang and Sennrich 2019, eq. 4) -------------------------------------------------------------------- */
/* y = x / sqrt(mean(x^2) + eps) * w; inv [rows] (may have no data) receives 1 / rms for the backward pass */
void kernel_rmsnorm(struct kernel_array y, struct kernel_array inv, struct kernel_array x, struct kernel_array w,
                    size_t rows, size_t d, float eps);
/* dx +=, dw +=; each may have no data */
void kernel_rmsnorm_backward(struct kernel_array dx, struct kernel_array dw, struct kernel_array dy,
                             struct kernel_array x, struct kernel_array w, struct kernel_array inv, size_t rows,
                             size_t d);

/* ---- LayerNorm (Ba et al. 2016) ---------------------------------------------------------------------------------- */
/* y = (x - mean(x)) / sqrt(var(x) + eps) * w + b; moments [rows][2] receives mean and 1 / standard deviation for the
 * backward pass; b and moments may have no data */
void kernel_layernorm(struct kernel_array y, struct kernel_array moments, struct kernel_array x, struct kernel_array w,
                      struct kernel_array b, size_t rows, size_t d, float eps);
/* dx +=, dw +=, db +=; each may have no data */
void kernel_layernorm_backward(struct kernel_array dx, struct kernel_array dw, struct kernel_array db,
                               struct kernel_array dy, struct kernel_array x, struct kernel_array w,
                               struct kernel_array moments, size_t rows, size_t d);

/* ---- rotary positions (Su et al. 2021), half-split as in Hugging Face: pairs (i, i + dims/2) --------------------- */
struct kernel_rotation {
    size_t dims;            /* rotated dimensions of each head, the first ones; even, <= head_dim */
    const double *inv_freq; /* [tables][dims/2], f64 so that long contexts stay exact */
    const uint8_t *table;   /* [rows] which table each row uses; NULL: the first */
    float scale;            /* factor of cosine and sine, and so of the rotated dimensions (YaRN, LongRoPE); 0: 1 */
};
/* x [rows][n_heads][head_dim] in place; position [rows]. sign -1: the transpose, for the backward pass; with scale 1
 * the inverse. */
void kernel_rope(struct kernel_array x, size_t rows, size_t n_heads, size_t head_dim, const uint32_t *position,
                 const struct kernel_rotation *rotation, int sign);

/* ---- LSTM (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000) ---------------------------- */
/*
 * Over concatenated sequences, each starting from a zero state. With gates i, f, g, o in PyTorch's order and
 * elementwise *:
 *   [i f g o] = gates + h W^T + bias, i, f, o = sigmoid, g = tanh;  c = f * c before + i * g;  h = o * tanh(c)
 * All in f32. The order of each sum is fixed, so the bits of a sequence do not depend on the others.
 */
struct kernel_lstm {
    size_t n_seqs;
    const uint32_t *starts; /* [n_seqs + 1], each sequence at least one position */
    size_t units;
    size_t directions; /* 1; or 2, of which the second runs from the end of each sequence to its start */
};
struct kernel_lstm_direction {
    struct kernel_array gates;        /* [n][4 units] the inputs' contribution; kernel_lstm replaces it by i, f, g, o */
    struct kernel_array cells;        /* [n][units]: c, written by kernel_lstm */
    struct kernel_array weight, bias; /* [4 units][units]; [4 units], or no data */
};
/* y [n][directions][units] = h. scratch [directions][4 units][units]. */
void kernel_lstm(const struct kernel_lstm *s, struct kernel_array y, const struct kernel_lstm_direction *directions,
                 struct kernel_array scratch);
/* dgates[i] [n][4 units] (overwritten) from dy and from what kernel_lstm wrote: the gradient of the gates' sums before
 * activation. scratch [directions][n_seqs][2][units]. */
void kernel_lstm_backward(const struct kernel_lstm *s, const struct kernel_array *dgates, struct kernel_array dy,
                          const struct kernel_lstm_direction *directions, struct kernel_array scratch);
/* to [n][units] = h of the previous step at each position in one direction, zeros at the first: dW = dgates^T to. */
void kernel_lstm_before(const struct kernel_lstm *s, size_t direction, struct kernel_array to, struct kernel_array y);

/* ---- attention with grouped queries over concatenated sequences -------------------------------------------------- */
#define KERNEL_MAX_HEAD_DIM 4096
struct kernel_attention {
    size_t n_heads, n_kv_heads, head_dim; /* n_heads is a multiple of n_kv_heads */
    size_t n_seqs;
    const uint32_t *starts; /* [n_seqs + 1] */
    float scale;            /* of the scores, usually 1/sqrt(head_dim) */
    bool bidirectional;     /* each position sees its whole sequence; else (causal) itself and earlier ones, */
    uint32_t window;        /* of these only the last `window`, including itself; 0: all. Causal only */
    float softcap;          /* > 0: scaled scores s become softcap * tanh(s / softcap) */
};
/*
 * q [n][n_heads][head_dim], k, v [n][n_kv_heads][head_dim] -> y [n][n_heads][head_dim]; lse [n][n_heads] (may have no
 * data) receives the log-sum-exp of the scores for the backward pass. Online softmax in blocks: no n x n matrix.
 */
void kernel_attention(const struct kernel_attention *a, struct kernel_array y, struct kernel_array lse,
                      struct kernel_array q, struct kernel_array k, struct kernel_array v);
/*
 * The probabilities for queries [first, first + n) of sequence `seq`: p [n][n_heads][length of the sequence] in f32, 0
 * where a query does not see a key. q and k in f32.
 */
void kernel_attention_weights(const struct kernel_attention *a, size_t seq, size_t first, size_t n,
                              struct kernel_array p, struct kernel_array q, struct kernel_array k);
/* The same for scores, scaled and capped, before the softmax; also 0 where a query does not see a key. */
void kernel_attention_scores(const struct kernel_attention *a, size_t seq, size_t first, size_t n,
                             struct kernel_array s, struct kernel_array q, struct kernel_array k);
/*
 * The loss of attention, from q and k, against a teacher's t [n][n_heads][length] for those queries:
 *   KL       sum over keys t ln(t / p)
 *   SQUARE   mean over the keys that the query sees of (p - t)^2
 *   SCORES   the same for scores
 * values [n][n_heads] receive row_weight (one per row of q) times that; `weight` times the gradient of their sum is
 * added to dq and dk (both or neither). For self-relations of x, q = k = x and dq = dk. scratch
 * [2][n][n_heads][length].
 */
enum kernel_attention_loss_kind { ATTENTION_KL, ATTENTION_SQUARE, ATTENTION_SCORES };
struct kernel_attention_loss {
    enum kernel_attention_loss_kind kind;
    float weight;
};
void kernel_attention_loss(const struct kernel_attention_loss *how, const struct kernel_attention *a, size_t seq,
                           size_t first, size_t n, const float *t, const float *row_weight, const float *q,
                           const float *k, float *scratch, double *values, float *dq, float *dk);
/* Recomputes the probabilities from lse (Dao et al. 2022, algorithm 4). dk and dv accumulate in f32. */
void kernel_attention_backward(const struct kernel_attention *a, struct kernel_array dq, struct kernel_array dk,
                               struct kernel_array dv, struct kernel_array dy, struct kernel_array y,
                               struct kernel_array lse, struct kernel_array q, struct kernel_array k,
                               struct kernel_array v);

/* ---- attention in generation: one query per sequence against its cache of keys and values ------------------------ */
/* The cache of one sequence in one layer. Only attention_decode.c knows its layout. */
struct kernel_cache {
    struct kernel_array memory; /* the caller's: kernel_cache_size elements */
    size_t capacity;            /* positions it can hold */
    size_t length;              /* positions it holds */
};
/* Elements of a cache, keys and values together. */
size_t kernel_cache_size(size_t n_kv_heads, size_t head_dim, size_t capacity);
/* Appends rows [starts[s], starts[s + 1]) of k and v [n][n_kv_heads][head_dim], which have the caches' type, to
 * caches[s]. */
void kernel_cache_append(const struct kernel_attention *a, struct kernel_cache *caches, struct kernel_array k,
                         struct kernel_array v);
/* q, y [n_seqs][n_heads][head_dim]; q has the caches' type, and no cache is empty. `starts` is not used. A sequence's
 * result does not depend on the others. scratch: f32, of the size returned by the first function, which may be 0. */
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
/* y = cap tanh(x / cap); y may be x. dx *= 1 - (y / cap)^2: turns the gradient of y into that of x. */
void kernel_softcap(struct kernel_array y, struct kernel_array x, size_t n, float cap);
void kernel_softcap_backward(struct kernel_array dx, struct kernel_array y, size_t n, float cap);

/* ---- rows of logits ---------------------------------------------------------------------------------------------- */
/* Of x * inv_temperature; lse [rows]. */
void kernel_logsumexp(float *lse, struct kernel_array x, size_t rows, size_t d, float inv_temperature);
void kernel_log_softmax(struct kernel_array y, struct kernel_array x, size_t rows, size_t d,
                        float inv_temperature); /* y may be x */
/* host_y, in any floating-point type, = log-softmax of x * inv_temperature, or x itself unless `log_probs`; not in
 * place. Returns the first row of host_y with a value that is not finite, or rows. */
size_t kernel_store_logits(enum dtype type, void *host_y, struct kernel_array x, size_t rows, size_t d,
                           float inv_temperature, bool log_probs);
void kernel_argmax(uint32_t *index, struct kernel_array x, size_t rows, size_t d); /* ties: the lower index */
/* The k <= d largest of each row, descending, ties by lower index, NaN as -infinity: ids, values [rows][k]. */
void kernel_topk(uint32_t *ids, float *values, struct kernel_array x, size_t rows, size_t d, size_t k);
/*
 * n draws with replacement per row from softmax(x * inv_temperature), by inversion in f64 of the uniform numbers u
 * [rows][n] in [0,1): ids [rows][n], ascending. x is f32, f16 or bf16. Returns the first row with a value that is not
 * finite, or rows: minus infinity is never drawn, any other such value makes the row's draws meaningless.
 */
size_t kernel_sample(uint32_t *ids, const double *u, struct kernel_array x, size_t rows, size_t d, size_t n,
                     float inv_temperature);

/*
 * The distillation loss of rows of student logits, each against one teacher distribution. The target of row r is its
 * entries [offset[r], offset[r+1]) of ids and probs, and, if rest is not NULL, rest[r], the probability of all other
 * tokens together (the ghost token).
 *   loss[r]  = kl_weight * T^2 * KL(target || softmax(x/T)) + ce_weight * (-log softmax(x)[label[r]])
 * With a ghost, KL is sum_K t log(t/p) + (1 - sum t) log((1 - sum t)/(1 - sum p)). Without one, targets that do not sum
 * to 1 are used as they are (KL = sum t log(t/p), gradient T (sum t softmax - t)). The ids of a row are distinct, in
 * any order. label NULL, or label[r] == UINT32_MAX: no label, no cross-entropy. ids and dense NULL: no teacher, no KL.
 * dx [rows][d] (no data, x itself, or another array) receives the gradient of sum_r row_weight[r] * loss[r], rounded if
 * bf16; row_weight NULL: 1. kl, ce [rows] (or NULL) receive the two terms in f64, without any weight and without T^2.
 */
struct kernel_target {      /* host memory, as read from knowledge */
    const uint64_t *offset; /* [rows + 1] */
    const uint32_t *ids;
    const float *probs;
    const float *rest;     /* [rows] or NULL */
    const float *dense;    /* [rows][d] teacher log-probabilities at T (may be -infinity) instead of entries, or NULL */
    const uint32_t *label; /* [rows] or NULL */
};
struct kernel_loss {
    float temperature, kl_weight, ce_weight;
};
void kernel_distill_loss(const struct kernel_loss *how, const struct kernel_target *target, const float *row_weight,
                         struct kernel_array x, size_t rows, size_t d, double *kl, double *ce, struct kernel_array dx);

/*
 * Divergences between a teacher distribution t and the student's p = softmax(x / T) for each row; sums over tokens of
 *   KL              a t ln(t / p) + b p ln(p / t)
 *   SKEW            t ln(t / m), m = a t + (1 - a) p
 *   SKEW_REVERSE    p ln(p / m), m = (1 - a) t + a p
 *   JENSEN_SHANNON  a t ln(t / m) + (1 - a) p ln(p / m), m = a t + (1 - a) p
 *   VARIATION       |t - p| / 2
 *   ALPHA_BETA      -(t^a p^b - a / (a + b) t^(a + b) - b / (a + b) p^(a + b)) / (a b); a, b > 0
 *   ADAPTIVE        KL with a = g_head / (g_head + g_tail) and b = 1 - a, both constants in the gradient: g are sums of
 *                   |t - p| over the head, which is the fewest most probable tokens of t with a total of at least `a`
 *                   (ties by lower index), and over the rest
 * The target is dense, or entries with a `rest`: then all tokens outside the entries count as one token on both sides,
 * and `rest` is raised to at least 1e-6, below which rounding decides; ADAPTIVE needs entries in descending order. No
 * factor T^2. value [rows] receives the sums: infinity where the divergence is (p > 0 where t is 0). Adds weight *
 * row_weight[r] * the gradient to dx (NULL, or [rows][d] in f32); row_weight NULL: 1.
 */
enum kernel_divergence_kind {
    DIVERGENCE_KL,
    DIVERGENCE_SKEW,
    DIVERGENCE_SKEW_REVERSE,
    DIVERGENCE_JENSEN_SHANNON,
    DIVERGENCE_VARIATION,
    DIVERGENCE_ALPHA_BETA,
    KERNEL_DIVERGENCES,
    DIVERGENCE_ADAPTIVE = KERNEL_DIVERGENCES /* computed with the first one */
};
struct kernel_divergence {
    enum kernel_divergence_kind kind;
    float temperature, a, b, weight;
};
void kernel_divergence(const struct kernel_divergence *how, const struct kernel_target *target, const float *row_weight,
                       const float *x, size_t rows, size_t d, double *value, float *dx);

/* Targets without a teacher: probability `own` for the label, `other` for each further token. The loss is -sum t ln p
 * with p = softmax(x / T), less the entropy of the target if `divergence`. value, dx and weights as above, with the
 * gradient times T^2; rows without a label count 0. */
struct kernel_label_target {
    float temperature, own, other, weight;
    bool divergence;
};
void kernel_label_target(const struct kernel_label_target *how, const uint32_t *label, const float *row_weight,
                         const float *x, size_t rows, size_t d, double *value, float *dx);

/* Mean over tokens of (x - z)^2, or of the same after subtracting the row means if `centred`; z [rows][d]. value, dx,
 * row_weight as above. */
void kernel_logit_mse(bool centred, float weight, const float *z, const float *row_weight, const float *x, size_t rows,
                      size_t d, double *value, float *dx);

/* Mean over pairs of entries (i, j) of a row with t_i > t_j of a function of the student's y = x_i - x_j: max(0, margin
 * - y), or ln(1 + e^(margin - y)) if `logistic`. Entries as in kernel_target, of which only the first `most` count. */
struct kernel_rank {
    bool logistic;
    float margin, weight;
    size_t most;
};
void kernel_rank(const struct kernel_rank *how, const uint64_t *offset, const uint32_t *ids, const float *probs,
                 const float *row_weight, const float *x, size_t rows, size_t d, double *value, float *dx);

/* Features x [rows][d] against a teacher's t: returns the sum over rows of row_weight[r] times the mean of (x - t)^2,
 * or times 1 - cos(x, t), which is 1 for a row of zeros. dx (NULL, or [rows][d]) receives weight times the gradient. */
double kernel_rows_mse(float weight, const float *t, const float *row_weight, const float *x, size_t rows, size_t d,
                       float *dx);
double kernel_rows_cosine(float weight, const float *t, const float *row_weight, const float *x, size_t rows, size_t d,
                          float *dx);

/* The same with |x / |x| - t / |t||_1. */
double kernel_rows_factor(float weight, const float *t, const float *row_weight, const float *x, size_t rows, size_t d,
                          float *dx);

/*
 * L1 distance between the sorted probabilities of a row: sum_i |p_(i) - t_(i)|, descending, with p = softmax(x / T),
 * whichever tokens they belong to. Teachers as in kernel_target; tokens without an entry count as 0. value, dx,
 * row_weight as in kernel_divergence. scratch: kernel_sorted_scratch(d) bytes.
 */
size_t kernel_sorted_scratch(size_t d);
void kernel_sorted_distance(float temperature, float weight, const struct kernel_target *target,
                            const float *row_weight, const float *x, size_t rows, size_t d, void *scratch,
                            double *value, float *dx);

/* ---- relations among n instances: a teacher's features t [n][td] and a student's x [n][d] ------------------------ */
/*
 * All return the value; dx (NULL, or [n][d]) receives weight times its gradient. Sums are in f64. scratch: as many
 * doubles as the accompanying function returns.
 *   SIMILARITY   mean over [n][n] of (g_t - g_x)^2, g = rows of x x^T divided by their lengths (0 where that is 0)
 *   CORRELATION  mean over [n][n] of (f(c_t) - f(c_x))^2, c the cosines; f(c) = c, or with an order P > 0
 *                e^(-2 gamma) sum_{p <= P} (2 gamma)^p / p! c^p
 *   PROBABILITY  1/n sum_i sum_{j != i} p_ij ln((p_ij + eps) / (q_ij + eps)); p, q are (c_ij + 1) / 2
 *                divided by its sum over j != i
 *   DISTANCE     mean over i != j of huber(d_x - d_t), d = |x_i - x_j| / their mean; huber(u) = u^2 / 2 up to 1,
 *                |u| - 1/2 beyond
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
/* Mean over ordered triples of distinct i, j, k of huber(cos_x - cos_t), with cos of the angle at j. Cost n^3 (td +
 * d). */
size_t kernel_angles_scratch(size_t n, size_t td, size_t d);
double kernel_angles(double weight, size_t n, const float *t, size_t td, const float *x, size_t d, double *scratch,
                     float *dx);
/*
 * With s_ij = cos(x_i, t_j) / temperature: half the sum of the mean over i of -ln softmax_j(s_i.) at i and the mean
 * over j of -ln softmax_i(s_.j) at j. Both widths are d; dt receives the gradient with respect to t.
 */
size_t kernel_contrast_scratch(size_t n, size_t d);
double kernel_contrast(double weight, double temperature, size_t n, size_t d, const float *t, const float *x,
                       double *scratch, float *dt, float *dx);

/* ---- statistics of a sequence of n positions; arguments and results as above ------------------------------------- */
/* Mean over positions of (q_x - q_t)^2, q_i = sum_c x_ic^2 divided by the length of q. scratch [2 n]. */
double kernel_energy_map(double weight, size_t n, const float *t, size_t td, const float *x, size_t d, double *scratch,
                         float *dx);
/* Mean over [d][d] of (G_x - G_t)^2, G = a^T b / n of two layers. scratch [2 d d]; da, db receive the gradient. */
double kernel_flow(double weight, size_t n, size_t d, const float *ta, const float *tb, const float *xa,
                   const float *xb, float *scratch, float *da, float *db);
/* Mean over rows of (m_x - m_t)^2, m = |a_i - b_i|^2 / d of two layers. */
double kernel_moves(double weight, size_t n, const float *ta, const float *tb, size_t td, const float *xa,
                    const float *xb, size_t d, float *da, float *db);
/*
 * Maximum mean discrepancy of channels, each the vector of its values over positions, normalized to length 1: mean k(x,
 * x') + mean k(t, t') - 2 mean k(x, t), where k = x . y, (x . y)^2, or e^(-|x - y|^2 / (2 s)), s the mean of |x - t|^2,
 * a constant in the gradient.
 */
enum kernel_mmd_kind { MMD_LINEAR, MMD_POLY, MMD_GAUSSIAN };
size_t kernel_mmd_scratch(size_t n, size_t td, size_t d);
double kernel_mmd(enum kernel_mmd_kind kind, double weight, size_t n, const float *t, size_t td, const float *x,
                  size_t d, double *scratch, float *dx);

/* ---- optimizer: AdamW (Loshchilov and Hutter 2019, algorithm 2, decoupled decay) --------------------------------- */
struct kernel_adamw {
    float lr, beta1, beta2, eps, weight_decay;
    float grad_scale; /* clipping and averaging: factor of the gradient as it is read */
    uint64_t step;    /* 1-based, for bias correction */
    uint64_t stream;  /* identifies the tensor, for random rounding of moments in bf16 */
};
/*
 * m and v have the same type. In bf16 they are rounded up or down at random, unbiased (with nearest rounding a change
 * of less than half a unit would always be lost): the f32 bits plus 16 random ones, truncated. Element i uses word i /
 * 16 % 4 of philox(step, stream, i / 64 * 16 + i % 16), m its lower half and v its upper.
 */
void kernel_adamw(const struct kernel_adamw *o, struct kernel_array w, struct kernel_array m, struct kernel_array v,
                  struct kernel_array g, size_t n);

/*
 * Nesterov momentum as used by Muon, with g' = grad_scale g: m = beta m + (1 - beta) g', u = beta m + (1 - beta) g'. u
 * is f32; m in bf16 is rounded at random like the first moment of kernel_adamw.
 */
struct kernel_momentum {
    float beta, grad_scale;
    uint64_t step, stream;
};
void kernel_momentum(const struct kernel_momentum *o, struct kernel_array u, struct kernel_array m,
                     struct kernel_array g, size_t n);

/* ---- sums over activations, in f64, for calibration -------------------------------------------------------------- */
/* Adds to the sums of each column, [d]. */
void kernel_col_sums(double *sum_abs, double *sum_sq, struct kernel_array x, size_t rows, size_t d);
/* Contiguous sequences of lengths[i] rows, which may be 0: out[j] += sum over sequences of (mean |x_j| over its
 * rows)^2. */
void kernel_seq_mean_abs_sq(double *out, struct kernel_array x, const uint32_t *lengths, size_t n_seqs, size_t d);
double kernel_row_norms_sum(struct kernel_array x, size_t rows, size_t d); /* sum of the L2 norms of the rows */
/* Sum over rows of 1 - cos(x_r, y_r); 1 for a row of zeros. */
double kernel_cosine_distance_sum(struct kernel_array x, struct kernel_array y, size_t rows, size_t d);

/* On the host: by_r <= 1 for each row of x [rows][d], so that the squared length of by_r x_r is at most `most`
 * (INFINITY: no limit); unless they are NULL, y_r = by_r x_r and diff_r = by_r (other_r - x_r). Without diff `other` is
 * not read. */
void kernel_bound_rows(float *by, float *y, float *diff, struct kernel_array x, struct kernel_array other, double most,
                       size_t rows, size_t d);

/* ---- on the host, second-order methods: Gram matrices, the factor of an inverse, and error feedback -------------- */

/* c [n][n] = x^T x + beta c for x [k][n], on and above the diagonal, with the bits of kernel_matmul_tn; elements below
 * are undefined afterwards. No-op if k is 0. */
void kernel_gram(size_t n, size_t k, const float *x, float beta, float *c);
void kernel_mirror(size_t n, float *c); /* copies the upper triangle to the lower */
/* c [m][n] = a u and a u^T, for an upper triangular u [n][n] with zeros below the diagonal, in about half of the
 * time of a product. */
void kernel_upper_nn(size_t m, size_t n, const float *a, const float *u, float *c);
void kernel_upper_nt(size_t m, size_t n, const float *a, const float *u, float *c);

/*
 * Gram matrices from integers, on CPUs that multiply these twice as fast (AVX512-VNNI). Up to KERNEL_ROWS16 rows are
 * rounded to 16 bits, each column to multiples of its scale: norm / 46200, or max |x| / 32767 if that is larger. By
 * Cauchy-Schwarz no sum of products then exceeds 32 bits, so sums are exact in any order. The rounding error of an
 * element is at most half a scale: for 1024 rows, 1 / 2900 of the column's root mean square. A column with a NaN or
 * infinity makes all its sums NaN.
 */
#define KERNEL_ROWS16 1024
struct kernel_rows16 {
    size_t n, rows;
    float *scale;    /* [n] */
    uint32_t *words; /* in the layout of the micro-kernel */
};
bool kernel_has_rows16(void); /* false: the following functions must not be called */
size_t kernel_rows16_bytes(size_t n);
struct kernel_rows16 kernel_rows16_in(void *memory, size_t n); /* empty; memory of that size is the caller's */
/* Takes x [rows][n], rows <= KERNEL_ROWS16, row r multiplied by by[r]; by NULL: as it is. */
void kernel_rows16_take(struct kernel_rows16 *r, size_t rows, struct kernel_array x, const float *by);
void kernel_gram16(const struct kernel_rows16 *x, float *c); /* c [n][n] += x^T x, as kernel_gram */
/* c [a->n][b->n] += a^T b, of as many rows */
void kernel_product16(const struct kernel_rows16 *a, const struct kernel_rows16 *b, float *c);

/*
 * u [n][n], upper triangular with zeros below the diagonal: u^T u = h^-1, for a symmetric positive definite h [n][n],
 * of which the upper triangle is read and which is overwritten. (With h = R R^T, R upper triangular, u = R^-1: one
 * factorization, no inverse of h.) False if h is not positive definite; *at is then the column where that showed.
 */
bool kernel_inverse_factor(float *u, float *h, size_t n, size_t *at);

/*
 * Eigenvalues of a symmetric a [n][n] in descending order; a is replaced by the unit eigenvectors, as rows. f64
 * throughout. scratch [KERNEL_EIGEN_SCRATCH(n)]. False if an element is not finite or the iteration does not converge;
 * a is undefined then.
 */
#define KERNEL_EIGEN_SCRATCH(n) ((size_t)(n) * (n) + 6 * (size_t)(n))
bool kernel_eigen(double *a, double *values, size_t n, double *scratch);

/*
 * Optimal Brain Surgeon over the columns of a matrix, all rows at once: GPTQ (Frantar et al. 2022, algorithm 1) and
 * SparseGPT (Frantar and Alistarh 2023, algorithm 1). For each column, `decide` says what each row keeps of its value;
 * the error, divided by u[j][j], is compensated in later columns:
 *
 *     e = (w[j] - kept) / u[j][j];   w[k] -= e u[j][k] for k > j
 *
 * immediately within a block, and after the block for columns beyond it.
 */
struct kernel_feedback {
    size_t rows, cols;
    const float *u; /* [cols][cols], from kernel_inverse_factor */
    size_t block;   /* number of columns */
    /* Before a block: columns [first, first + n), w [n][rows], with their current values. NULL: none. */
    void (*begin)(void *ctx, size_t first, size_t n, const float *w);
    /* Writes to kept [n] what rows [row, row + n) keep of `column`. w [n] is followed, at a stride of `rows` floats, by
     * the `left` - 1 later columns of the block with their current values, for grids that are fitted at the start of a
     * group. Called from several threads for different rows. */
    void (*decide)(void *ctx, size_t column, size_t left, size_t row, size_t n, const float *w, float *kept);
    void *ctx;
};
/* w [cols][rows], the transposed matrix, is replaced by what was kept. scratch [block][rows]. loss [rows] (or NULL) +=
 * the sum of e^2 of each row, which is the increase of |w x - kept x|^2 summed over the data that u was made from. */
void kernel_feedback(const struct kernel_feedback *f, float *w, float *scratch, double *loss);
/* y [cols][rows] = x [rows][cols] transposed */
void kernel_transpose(float *y, const float *x, size_t rows, size_t cols);

/* ---- on the host: norms of weights, for pruning ------------------------------------------------------------------ */
void kernel_row_norms2(float *out, const float *x, size_t rows, size_t d);  /* sum of squares of each row */
void kernel_col_norms2(float *out, const float *x, size_t rows, size_t d);  /* of each column, += */
void kernel_col_abs_sum(float *out, const float *x, size_t rows, size_t d); /* sum |x| of each column, += */
/*
 * Zeroes the k elements of smallest |x|, ties by lower index; exact. scratch [n]. Returns the number of zeros in x.
 */
size_t kernel_zero_smallest(float *x, size_t n, size_t k, float *scratch);
/*
 * Zeroes in each row of x [rows][cols] the k elements of smallest |x_j| scale_j, ties by lower index; exact. scale
 * [cols] is not negative; NULL: 1. scratch [parallel_threads()][2 cols].
 */
void kernel_zero_smallest_rows(float *x, const float *scale, size_t rows, size_t cols, size_t k, float *scratch);
#define KERNEL_MAX_GROUP 64
/* The same for each `group` consecutive elements of a row: zeroes all but `keep`. group divides cols and is at most
 * KERNEL_MAX_GROUP. */
void kernel_zero_groups(float *x, const float *scale, size_t rows, size_t cols, unsigned keep, unsigned group);
/* Sets gone[j] to 1 for the scores of a group, `stride` apart, that are not among the `keep` largest; of equals the
 * lower index goes first. */
void kernel_smallest_of_group(const float *score, size_t stride, unsigned group, unsigned keep,
                              unsigned char gone[KERNEL_MAX_GROUP]);
size_t kernel_count_zeros(const float *x, size_t n);

/* ---- masks of parameters on the device: bit i % 8 of bits[i / 8], DT_U8 [(n + 7) / 8], is set where x_i is 0 ----- */
size_t kernel_zero_bits(struct kernel_array bits, struct kernel_array x, size_t n);  /* returns the number set */
void kernel_zero_by_bits(struct kernel_array x, struct kernel_array bits, size_t n); /* x_i = 0 where set */
/* y[r][i] = x[r][keep[i]] for n kept columns of d. */
void kernel_gather_cols(float *y, const float *x, const uint32_t *keep, size_t rows, size_t d, size_t n);
/* The k-th smallest |x| (k from 0) of n values, exact: the threshold of magnitude pruning. scratch [n]. */
float kernel_kth_abs(const float *x, size_t n, size_t k, float *scratch);

#endif
