/*
 * Muon: Nesterov momentum, orthogonalized by five Newton-Schulz iterations (Jordan et al. 2024, "Muon: an optimizer for
 * hidden layers in neural networks"). The update is scaled by 0.2 sqrt(max(rows, cols)), which gives it the size of
 * AdamW's, so that both can share learning rate and weight decay (Liu et al. 2025, "Muon is scalable for LLM training",
 * arXiv 2502.16982, section 2.2).
 */
#include <math.h>

#include "lib/train/train_internal.h"

#define MOMENTUM 0.95
#define ROUNDS   5

/* p(x) = a x + b x^3 + c x^5 has the steepest slope at 0 that still leaves singular values near 1. */
static const float A = 3.4445f, B = -4.7750f, C = 2.0315f;

bool muon_takes(const struct param *p) {
    return p->matrix;
}

bool muon_parse(const char *members, struct train_options *o) {
    struct train_key key = {"momentum", .least = 0, .most = 0.999999, .number = &o->momentum};
    o->momentum = MOMENTUM;
    return train_keys_parse(members, &key, 1);
}

bool muon_put(cJSON *to, const struct train_options *o) {
    return json_put_f64(to, "momentum", o->momentum);
}

/* ---- products of X [rows][cols] in the requested precision ---- */

struct work {
    bool bf16;
    size_t rows, cols, side;        /* side: the smaller of the two */
    struct kernel_array x, y;       /* f32 [rows][cols] */
    struct kernel_array gram, poly; /* f32 [side][side] */
    struct kernel_array packed;     /* right-hand operand of a product, in bf16 */
};

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

static size_t aligned(size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

static size_t packed_bytes(size_t n, size_t k) {
    return kernel_matrix_bytes(KERNEL_PACKED_BF16, DT_F32, n, k);
}

size_t muon_scratch(const struct train_options *o, const struct param *p) {
    size_t side = p->rows < p->cols ? p->rows : p->cols;
    return 2 * aligned(p->n * sizeof(float)) + 2 * aligned(side * side * sizeof(float)) +
           (o->precision == DT_BF16 ? larger(packed_bytes(side, side),
                                             larger(packed_bytes(p->rows, p->cols), packed_bytes(p->cols, p->rows)))
                                    : 0);
}

static struct work lay_out(const struct train_update *u, const struct param *p) {
    struct work w = {.bf16 = u->o->precision == DT_BF16, .rows = p->rows, .cols = p->cols};
    w.side = w.rows < w.cols ? w.rows : w.cols;
    size_t matrix = aligned(p->n * sizeof(float)), square = aligned(w.side * w.side * sizeof(float));
    w.x = kernel_typed(u->scratch, DT_F32);
    w.y = kernel_typed(kernel_part(u->scratch, matrix), DT_F32);
    w.gram = kernel_typed(kernel_part(u->scratch, 2 * matrix), DT_F32);
    w.poly = kernel_typed(kernel_part(u->scratch, 2 * matrix + square), DT_F32);
    w.packed = kernel_part(u->scratch, 2 * matrix + 2 * square);
    return w;
}

static struct kernel_matrix pack_nt(const struct work *w, size_t n, size_t k, struct kernel_array b) {
    struct kernel_matrix stored = kernel_matrix_of(b, n, k);
    return kernel_pack_nt(w->packed, &stored);
}

/* c[m][n] = a[m][k] b[n][k]^T */
static void multiply_nt(const struct work *w, size_t m, size_t n, size_t k, struct kernel_array a,
                        struct kernel_array b, struct kernel_array c) {
    if (!w->bf16) {
        kernel_matmul_nt(m, n, k, a, b, 0, c);
        return;
    }
    struct kernel_matrix packed = pack_nt(w, n, k, b);
    kernel_multiply(m, a, &packed, NULL, c);
}

/* Gram matrix of the shorter side: X X^T or X^T X. */
static void gram(const struct work *w) {
    if (w->rows <= w->cols) {
        multiply_nt(w, w->rows, w->rows, w->cols, w->x, w->x, w->gram);
    } else if (!w->bf16) {
        kernel_matmul_tn(w->cols, w->cols, w->rows, w->x, w->x, 0, w->gram);
    } else {
        struct kernel_matrix packed = kernel_pack_nn(w->packed, w->cols, w->rows, w->x);
        kernel_multiply_tn(w->cols, w->x, &packed, NULL, w->gram);
    }
}

/* y = a x + poly x if wide, else a x + x poly; poly is symmetric. */
static void apply(const struct work *w) {
    kernel_convert(w->y, w->x, w->rows * w->cols);
    if (!w->bf16 && w->rows <= w->cols) {
        kernel_matmul_nn(w->rows, w->cols, w->rows, w->poly, w->x, A, w->y);
    } else if (!w->bf16) {
        kernel_matmul_nt(w->rows, w->cols, w->cols, w->x, w->poly, A, w->y);
    } else {
        struct kernel_epilogue add = {.accumulate = true};
        bool wide = w->rows <= w->cols;
        kernel_scale(w->y, w->rows * w->cols, A);
        struct kernel_matrix packed =
            wide ? kernel_pack_nn(w->packed, w->cols, w->rows, w->x) : pack_nt(w, w->cols, w->cols, w->poly);
        kernel_multiply(w->rows, wide ? w->poly : w->x, &packed, &add, w->y);
    }
}

/* x becomes approximately U V^T of its singular value decomposition U S V^T. */
static void orthogonalize(struct work *w) {
    size_t n = w->rows * w->cols, square = w->side * w->side;
    double norm = sqrt(kernel_sum_squares(w->x, n));
    kernel_scale(w->x, n, (float)(1 / (norm > 1e-7 ? norm : 1e-7)));
    for (int i = 0; i < ROUNDS; i++) {
        gram(w);
        multiply_nt(w, w->side, w->side, w->side, w->gram, w->gram, w->poly);
        kernel_scale(w->poly, square, C);
        kernel_axpy(w->poly, B, w->gram, square);
        apply(w);
        struct kernel_array x = w->x;
        w->x = w->y;
        w->y = x;
    }
}

void muon_step(const struct train_update *u, struct param *p) {
    struct work w = lay_out(u, p);
    struct kernel_momentum how = {(float)u->o->momentum, (float)u->scale, u->step, p->stream};
    kernel_momentum(&how, w.x, p->moments[0], p->grad, p->n);
    orthogonalize(&w);
    kernel_scale(p->value, p->n, (float)(1 - u->lr * u->decay));
    kernel_axpy(p->value, (float)(-u->lr * 0.2 * sqrt((double)larger(p->rows, p->cols))), w.x, p->n);
}

/* The spectral norm of an update should scale as sqrt(rows / cols) (Yang, Simon, Bernstein 2023, "A spectral condition
 * for feature learning", arXiv 2310.17813); the factor in muon_step scales as the root of the longer side. */
double muon_mup(const struct param *p) {
    double base_rows = (double)p->rows / p->row_width, base_cols = (double)p->cols / p->col_width;
    double longer = (double)larger(p->rows, p->cols) / (base_rows > base_cols ? base_rows : base_cols);
    return sqrt(p->row_width / p->col_width / longer);
}
