/*
 * The kernels in textbook form: one thread, one loop per formula, one type. The fast kernels are tested against these,
 * gradients are checked with them (in double), and they define what a kernel computes.
 *
 * A template: define REAL and PLAIN(name) and include it, once for each type. Everything is static; kernel.h documents
 * the arguments.
 *
 *     #define REAL double
 *     #define PLAIN(name) plain64_##name
 *     #include "lib/kernel/kernel_plain.h"
 */
#include <math.h>

#ifndef RILL_KERNEL_PLAIN_H
#define RILL_KERNEL_PLAIN_H
#define PLAIN_FN __attribute__((unused)) static void
/* Strides that turn one triple loop into all three products: element (i, p) of a is a[i * a_row + p * a_col]. */
struct plain_strides {
    size_t a_row, a_col, b_row, b_col;
};
#endif

/* ---- matrix products ---- */

PLAIN_FN PLAIN(matmul)(size_t m, size_t n, size_t k, const REAL *a, const REAL *b, REAL beta, REAL *c,
                       struct plain_strides s) {
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            REAL sum = 0;
            for (size_t p = 0; p < k; p++) sum += a[i * s.a_row + p * s.a_col] * b[p * s.b_row + j * s.b_col];
            c[i * n + j] = beta == 0 ? sum : sum + beta * c[i * n + j];
        }
}

PLAIN_FN PLAIN(matmul_nt)(size_t m, size_t n, size_t k, const REAL *a, const REAL *b, REAL beta, REAL *c) {
    PLAIN(matmul)(m, n, k, a, b, beta, c, (struct plain_strides){k, 1, 1, k});
}

PLAIN_FN PLAIN(matmul_nn)(size_t m, size_t n, size_t k, const REAL *a, const REAL *b, REAL beta, REAL *c) {
    PLAIN(matmul)(m, n, k, a, b, beta, c, (struct plain_strides){k, 1, n, 1});
}

PLAIN_FN PLAIN(matmul_tn)(size_t m, size_t n, size_t k, const REAL *a, const REAL *b, REAL beta, REAL *c) {
    PLAIN(matmul)(m, n, k, a, b, beta, c, (struct plain_strides){1, m, n, 1});
}

/* a [m][k] times b [n][k]: what kernel_multiply computes from operands already rounded to bf16. */
PLAIN_FN PLAIN(multiply)(size_t m, size_t n, size_t k, const REAL *a, const REAL *b, REAL beta, const REAL *bias,
                         const REAL *residual, REAL *c) {
    PLAIN(matmul_nt)(m, n, k, a, b, beta, c);
    for (size_t i = 0; i < m * n; i++) c[i] += (bias ? bias[i % n] : 0) + (residual ? residual[i] : 0);
}

/* 32 numbers as d q with |q| <= 127; returns d. */
__attribute__((unused)) static REAL PLAIN(round_int8)(int *q, const REAL *x) {
    REAL max = 0, sum = 0;
    for (int i = 0; i < 32; i++) {
        max = (REAL)fabs(x[i]) > max ? (REAL)fabs(x[i]) : max;
        sum += x[i] * 0; /* NaN if an element is not finite */
        q[i] = 0;
    }
    if (sum != 0) return sum;
    if (max < (REAL)0x1p-120) return 0;
    for (int i = 0; i < 32; i++) q[i] = (int)rint(x[i] * (127 / max));
    return max / 127;
}

/*
 * a [m][k] times n columns of weights scale * code + min, with a scale and a minimum for each `group` of k: codes
 * [n][k], scale and min [n][k/group], min NULL: none. In float it gives the bits of kernel_multiply with quantized
 * panels.
 */
PLAIN_FN PLAIN(multiply_int8)(size_t m, size_t n, size_t k, size_t group, const REAL *a, const int *codes,
                              const REAL *scale, const REAL *min, REAL *c) {
    for (size_t i = 0; i < m * n; i++) {
        const REAL *x = a + i / n * k;
        const int *w = codes + i % n * k;
        REAL d = 0, acc = 0;
        int q[32];
        for (size_t p = 0; p < k; p += group) {
            if (p % 32 == 0) d = PLAIN(round_int8)(q, x + p);
            long sum = 0, sum_q = 0;
            for (size_t j = p; j < p + group; j++) sum += w[j] * q[j % 32], sum_q += q[j % 32];
            REAL f = (REAL)sum * scale[(i % n * k + p) / group];
            acc += f * d;
            if (min) acc += min[(i % n * k + p) / group] * ((REAL)sum_q * d);
        }
        c[i] = acc;
    }
}

PLAIN_FN PLAIN(transpose)(REAL *y, const REAL *x, size_t rows, size_t cols) {
    for (size_t i = 0; i < rows * cols; i++) y[i % cols * rows + i / cols] = x[i];
}

/* ---- elementwise operations -------------------------------------------------------------------------------------- */

PLAIN_FN PLAIN(fill)(REAL *y, size_t n, REAL a) {
    for (size_t i = 0; i < n; i++) y[i] = a;
}

PLAIN_FN PLAIN(copy)(REAL *y, const REAL *x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = x[i];
}

PLAIN_FN PLAIN(scale)(REAL *y, size_t n, REAL a) {
    for (size_t i = 0; i < n; i++) y[i] *= a;
}

PLAIN_FN PLAIN(axpy)(REAL *y, REAL a, const REAL *x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += a * x[i];
}

PLAIN_FN PLAIN(add)(REAL *y, const REAL *x, size_t n) {
    PLAIN(axpy)(y, 1, x, n);
}

PLAIN_FN PLAIN(add_bias)(REAL *y, const REAL *bias, size_t rows, size_t d) {
    for (size_t r = 0; r < rows; r++) PLAIN(add)(y + r * d, bias, d);
}

PLAIN_FN PLAIN(sum_rows)(REAL *y, const REAL *x, size_t rows, size_t d) {
    for (size_t r = 0; r < rows; r++) PLAIN(add)(y, x + r * d, d);
}

__attribute__((unused)) static REAL PLAIN(dot)(const REAL *x, const REAL *y, size_t n) {
    REAL sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i] * y[i];
    return sum;
}

/* ---- embedding ---- */

PLAIN_FN PLAIN(gather)(REAL *y, const REAL *table, const uint32_t *ids, size_t n, size_t d) {
    for (size_t i = 0; i < n; i++) PLAIN(copy)(y + i * d, table + ids[i] * d, d);
}

PLAIN_FN PLAIN(scatter_add)(REAL *table, const REAL *dy, const uint32_t *ids, size_t n, size_t d) {
    for (size_t i = 0; i < n; i++) PLAIN(add)(table + ids[i] * d, dy + i * d, d);
}

/* ---- mixtures of experts ---- */

PLAIN_FN PLAIN(route)(REAL *probs, uint32_t *ids, REAL *weights, const REAL *logits, size_t rows, size_t experts,
                      size_t k, bool normalise) {
    for (size_t r = 0; r < rows; r++) {
        REAL *p = probs + r * experts, max = logits[r * experts], sum = 0, chosen = 0;
        for (size_t i = 0; i < experts; i++) max = logits[r * experts + i] > max ? logits[r * experts + i] : max;
        for (size_t i = 0; i < experts; i++) sum += p[i] = (REAL)exp(logits[r * experts + i] - max);
        for (size_t i = 0; i < experts; i++) p[i] /= sum;
        for (size_t j = 0; j < k; j++) {
            size_t best = experts;
            for (size_t i = 0; i < experts; i++) {
                bool taken = false;
                for (size_t b = 0; b < j; b++) taken = taken || ids[r * k + b] == i;
                if (!taken && (best == experts || p[i] > p[best])) best = i;
            }
            ids[r * k + j] = (uint32_t)best;
            chosen += p[best];
        }
        for (size_t j = 0; j < k; j++) weights[r * k + j] = p[ids[r * k + j]] / (normalise ? chosen : 1);
    }
}

/* By definition: d p_j / d x_i = p_j ((i = j) - p_i), d w_a / d p_b = ((a = b) - w_a) / sum. */
PLAIN_FN PLAIN(route_backward)(REAL *dlogits, const REAL *dweights, const uint32_t *ids, const REAL *probs, size_t rows,
                               size_t experts, size_t k, bool normalise) {
    for (size_t r = 0; r < rows; r++) {
        const REAL *p = probs + r * experts, *dw = dweights + r * k;
        REAL sum = 0;
        for (size_t j = 0; j < k; j++) sum += p[ids[r * k + j]];
        for (size_t i = 0; i < experts; i++) {
            REAL *dx = &dlogits[r * experts + i];
            *dx = 0;
            for (size_t a = 0; a < k; a++)
                for (size_t b = 0; b < k; b++) {
                    REAL pa = p[ids[r * k + a]], pb = p[ids[r * k + b]];
                    REAL dw_dp = normalise ? ((REAL)(a == b) - pa / sum) / sum : (REAL)(a == b);
                    *dx += dw[a] * dw_dp * pb * ((REAL)(ids[r * k + b] == i) - p[i]);
                }
        }
    }
}

PLAIN_FN PLAIN(scatter_weighted)(REAL *y, const REAL *x, const REAL *weights, const uint32_t *slots,
                                 const uint32_t *rows, size_t n, size_t d) {
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < d; j++) y[rows[i] * d + j] += weights[slots[i]] * x[i * d + j];
}

PLAIN_FN PLAIN(scatter_weighted_backward)(REAL *dx, REAL *dweights, const REAL *dy, const REAL *x, const REAL *weights,
                                          const uint32_t *slots, const uint32_t *rows, size_t n, size_t d) {
    for (size_t i = 0; i < n; i++) {
        dweights[slots[i]] = 0;
        for (size_t j = 0; j < d; j++) {
            dx[i * d + j] = weights[slots[i]] * dy[rows[i] * d + j];
            dweights[slots[i]] += x[i * d + j] * dy[rows[i] * d + j];
        }
    }
}

PLAIN_FN PLAIN(gate_rows)(REAL *y, const REAL *x, const REAL *gate, size_t rows, size_t d) {
    for (size_t i = 0; i < rows * d; i++) y[i] = x[i] / (1 + (REAL)exp(-gate[i / d]));
}

PLAIN_FN PLAIN(gate_rows_backward)(REAL *dx, REAL *dgate, const REAL *dy, const REAL *x, const REAL *gate, size_t rows,
                                   size_t d) {
    for (size_t r = 0; r < rows; r++) {
        REAL s = 1 / (1 + (REAL)exp(-gate[r]));
        dgate[r] = 0;
        for (size_t i = r * d; i < (r + 1) * d; i++) {
            dx[i] = s * dy[i];
            dgate[r] += dy[i] * x[i] * s * (1 - s);
        }
    }
}

/* ---- RMSNorm ---- */

PLAIN_FN PLAIN(rmsnorm)(REAL *y, REAL *inv, const REAL *x, const REAL *w, size_t rows, size_t d, REAL eps) {
    for (size_t r = 0; r < rows; r++, x += d, y += d) {
        inv[r] = 1 / (REAL)sqrt(PLAIN(dot)(x, x, d) / (REAL)d + eps);
        for (size_t i = 0; i < d; i++) y[i] = x[i] * inv[r] * w[i];
    }
}

PLAIN_FN PLAIN(rmsnorm_backward)(REAL *dx, REAL *dw, const REAL *dy, const REAL *x, const REAL *w, const REAL *inv,
                                 size_t rows, size_t d) {
    for (size_t r = 0; r < rows; r++, dx += d, dy += d, x += d) {
        REAL dot = 0; /* sum dy w x: the gradient of inv, up to a factor */
        for (size_t i = 0; i < d; i++) dot += dy[i] * w[i] * x[i];
        for (size_t i = 0; i < d; i++) {
            dx[i] += inv[r] * w[i] * dy[i] - inv[r] * inv[r] * inv[r] / (REAL)d * dot * x[i];
            dw[i] += dy[i] * x[i] * inv[r];
        }
    }
}

/* ---- LayerNorm ---- */

/* moments [rows][2]: mean, 1 / standard deviation */
PLAIN_FN PLAIN(layernorm)(REAL *y, REAL *moments, const REAL *x, const REAL *w, const REAL *b, size_t rows, size_t d,
                          REAL eps) {
    for (size_t r = 0; r < rows; r++, x += d, y += d, moments += 2) {
        REAL mean = 0, variance = 0;
        for (size_t i = 0; i < d; i++) mean += x[i] / (REAL)d;
        for (size_t i = 0; i < d; i++) variance += (x[i] - mean) * (x[i] - mean) / (REAL)d;
        moments[0] = mean;
        moments[1] = 1 / (REAL)sqrt(variance + eps);
        for (size_t i = 0; i < d; i++) y[i] = (x[i] - mean) * moments[1] * w[i] + (b ? b[i] : 0);
    }
}

PLAIN_FN PLAIN(layernorm_backward)(REAL *dx, REAL *dw, REAL *db, const REAL *dy, const REAL *x, const REAL *w,
                                   const REAL *moments, size_t rows, size_t d) {
    for (size_t r = 0; r < rows; r++, dx += d, dy += d, x += d, moments += 2) {
        REAL inv = moments[1], sum_g = 0, sum_gz = 0;
        for (size_t i = 0; i < d; i++) {
            sum_g += w[i] * dy[i];
            sum_gz += w[i] * dy[i] * (x[i] - moments[0]) * inv;
        }
        for (size_t i = 0; i < d; i++) {
            REAL z = (x[i] - moments[0]) * inv;
            dx[i] += inv * (w[i] * dy[i] - sum_g / (REAL)d - z * sum_gz / (REAL)d);
            dw[i] += dy[i] * z;
            db[i] += dy[i];
        }
    }
}

/* ---- rotary positions ---- */

PLAIN_FN PLAIN(rope)(REAL *x, size_t rows, size_t n_heads, size_t head_dim, const uint32_t *position,
                     const struct kernel_rotation *how, int sign) {
    size_t half = how->dims / 2;
    REAL scale = how->scale != 0 ? (REAL)how->scale : 1;
    for (size_t r = 0; r < rows; r++)
        for (size_t h = 0; h < n_heads; h++, x += head_dim)
            for (size_t i = 0; i < half; i++) {
                size_t table = how->table ? how->table[r] : 0;
                double angle = sign * (position[r] * how->inv_freq[table * half + i]);
                REAL c = scale * (REAL)cos(angle), s = scale * (REAL)sin(angle), a = x[i], b = x[i + half];
                x[i] = a * c - b * s;
                x[i + half] = b * c + a * s;
            }
}

/* ---- attention: one query against keys [begin, end) of its sequence, those it sees ------------------------------- */

__attribute__((unused)) static void PLAIN(attention_range)(const struct kernel_attention *a, size_t t, size_t length,
                                                           size_t *begin, size_t *end) {
    *end = a->bidirectional ? length : t + 1;
    *begin = a->window && !a->bidirectional && *end > a->window ? *end - a->window : 0;
}

/*
 * p[j - begin]: softmax of the scaled, capped scores; returns their log-sum-exp. dcap: the derivative of the cap for
 * each score (1 without a cap), or NULL. k points to the first key that the query sees, in this head.
 */
__attribute__((unused)) static REAL PLAIN(attention_row)(const struct kernel_attention *a, REAL *p, REAL *dcap,
                                                         const REAL *q, const REAL *k, size_t ld, size_t n) {
    REAL max = -INFINITY, sum = 0, cap = (REAL)a->softcap;
    for (size_t j = 0; j < n; j++) {
        p[j] = (REAL)a->scale * PLAIN(dot)(q, k + j * ld, a->head_dim);
        if (cap > 0) p[j] = cap * (REAL)tanh(p[j] / cap);
        if (dcap) dcap[j] = cap > 0 ? 1 - p[j] / cap * (p[j] / cap) : 1;
        if (p[j] > max) max = p[j];
    }
    for (size_t j = 0; j < n; j++) sum += p[j] = (REAL)exp(p[j] - max);
    for (size_t j = 0; j < n; j++) p[j] /= sum;
    return max + (REAL)log(sum);
}

/* p: scratch as long as the longest sequence. */
PLAIN_FN PLAIN(attention)(const struct kernel_attention *a, REAL *y, REAL *lse, const REAL *q, const REAL *k,
                          const REAL *v, REAL *p) {
    size_t d = a->head_dim, ld = a->n_kv_heads * d, group = a->n_heads / a->n_kv_heads, begin, end;
    for (size_t s = 0; s < a->n_seqs; s++)
        for (size_t i = a->starts[s]; i < a->starts[s + 1]; i++)
            for (size_t h = 0; h < a->n_heads; h++) {
                PLAIN(attention_range)(a, i - a->starts[s], a->starts[s + 1] - a->starts[s], &begin, &end);
                size_t at = (i * a->n_heads + h) * d, key = (a->starts[s] + begin) * ld + h / group * d;
                lse[i * a->n_heads + h] = PLAIN(attention_row)(a, p, NULL, q + at, k + key, ld, end - begin);
                PLAIN(fill)(y + at, d, 0);
                for (size_t j = 0; j < end - begin; j++) PLAIN(axpy)(y + at, p[j], v + key + j * ld, d);
            }
}

PLAIN_FN PLAIN(attention_weights)(const struct kernel_attention *a, size_t seq, size_t first, size_t n, REAL *p,
                                  const REAL *q, const REAL *k) {
    size_t d = a->head_dim, ld = a->n_kv_heads * d, group = a->n_heads / a->n_kv_heads, begin, end;
    size_t length = a->starts[seq + 1] - a->starts[seq];
    for (size_t i = first; i < first + n; i++)
        for (size_t h = 0; h < a->n_heads; h++, p += length) {
            PLAIN(attention_range)(a, i, length, &begin, &end);
            size_t at = ((a->starts[seq] + i) * a->n_heads + h) * d,
                   key = (a->starts[seq] + begin) * ld + h / group * d;
            PLAIN(fill)(p, length, 0);
            PLAIN(attention_row)(a, p + begin, NULL, q + at, k + key, ld, end - begin);
        }
}

/* p: scratch twice as long as the longest sequence. */
PLAIN_FN PLAIN(attention_backward)(const struct kernel_attention *a, REAL *dq, REAL *dk, REAL *dv, const REAL *dy,
                                   const REAL *q, const REAL *k, const REAL *v, REAL *p) {
    size_t d = a->head_dim, ld = a->n_kv_heads * d, group = a->n_heads / a->n_kv_heads, begin, end;
    for (size_t s = 0; s < a->n_seqs; s++)
        for (size_t i = a->starts[s]; i < a->starts[s + 1]; i++)
            for (size_t h = 0; h < a->n_heads; h++) {
                PLAIN(attention_range)(a, i - a->starts[s], a->starts[s + 1] - a->starts[s], &begin, &end);
                size_t at = (i * a->n_heads + h) * d, key = (a->starts[s] + begin) * ld + h / group * d;
                REAL *dcap = p + (end - begin), mean = 0; /* sum p dp = dy . y */
                PLAIN(attention_row)(a, p, dcap, q + at, k + key, ld, end - begin);
                for (size_t j = 0; j < end - begin; j++) mean += p[j] * PLAIN(dot)(dy + at, v + key + j * ld, d);
                for (size_t j = 0; j < end - begin; j++) {
                    size_t kv = key + j * ld;
                    REAL ds = p[j] * (PLAIN(dot)(dy + at, v + kv, d) - mean) * dcap[j] * (REAL)a->scale;
                    PLAIN(axpy)(dv + kv, p[j], dy + at, d);
                    PLAIN(axpy)(dk + kv, ds, q + at, d);
                    PLAIN(axpy)(dq + at, ds, k + kv, d);
                }
            }
}

/* ---- activation functions and gated linear units ---- */

__attribute__((unused)) static REAL PLAIN(act)(enum kernel_act act, REAL x) {
    const REAL pi = (REAL)3.14159265358979323846;
    switch (act) {
    case ACT_SILU: return x / (1 + (REAL)exp(-x));
    case ACT_GELU: return x * (REAL)erfc(-x / (REAL)sqrt(2)) / 2;
    case ACT_GELU_TANH: /* (1 + tanh u) / 2 = 1 / (1 + exp(-2 u)), without cancellation */
        return x / (1 + (REAL)exp(-2 * (REAL)sqrt(2 / pi) * (x + (REAL)0.044715 * x * x * x)));
    case ACT_GELU_QUICK: return x / (1 + (REAL)exp((REAL)-1.702 * x));
    case ACT_RELU: return x > 0 ? x : 0;
    case ACT_RELU_SQUARED: return x > 0 ? x * x : 0;
    case ACT_TANH: return (REAL)tanh(x);
    default: return NAN;
    }
}

__attribute__((unused)) static REAL PLAIN(act_slope)(enum kernel_act act, REAL x) {
    const REAL pi = (REAL)3.14159265358979323846;
    REAL s = 1 / (1 + (REAL)exp(-x)), t = (REAL)tanh(x), u, z;
    switch (act) {
    case ACT_SILU: return s * (1 + x * (1 - s));
    case ACT_GELU: return (REAL)erfc(-x / (REAL)sqrt(2)) / 2 + x * (REAL)exp(-x * x / 2) / (REAL)sqrt(2 * pi);
    case ACT_GELU_TANH:
        u = 1 / (1 + (REAL)exp(-2 * (REAL)sqrt(2 / pi) * (x + (REAL)0.044715 * x * x * x)));
        return u + 2 * x * u * (1 - u) * (REAL)sqrt(2 / pi) * (1 + 3 * (REAL)0.044715 * x * x);
    case ACT_GELU_QUICK: z = 1 / (1 + (REAL)exp((REAL)-1.702 * x)); return z * (1 + (REAL)1.702 * x * (1 - z));
    case ACT_RELU: return x > 0;
    case ACT_RELU_SQUARED: return x > 0 ? 2 * x : 0;
    case ACT_TANH: return 1 - t * t;
    default: return NAN;
    }
}

PLAIN_FN PLAIN(activate)(enum kernel_act act, REAL *y, const REAL *x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = PLAIN(act)(act, x[i]);
}

PLAIN_FN PLAIN(activate_backward)(enum kernel_act act, REAL *dx, const REAL *dy, const REAL *x, size_t n) {
    for (size_t i = 0; i < n; i++) dx[i] = dy[i] * PLAIN(act_slope)(act, x[i]);
}

PLAIN_FN PLAIN(glu)(enum kernel_act act, REAL *y, const REAL *gate, const REAL *up, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = PLAIN(act)(act, gate[i]) * up[i];
}

PLAIN_FN PLAIN(glu_backward)(enum kernel_act act, REAL *dgate, REAL *dup, const REAL *dy, const REAL *gate,
                             const REAL *up, size_t n) {
    for (size_t i = 0; i < n; i++) {
        dgate[i] += dy[i] * up[i] * PLAIN(act_slope)(act, gate[i]);
        dup[i] += dy[i] * PLAIN(act)(act, gate[i]);
    }
}

PLAIN_FN PLAIN(softcap)(REAL *y, const REAL *x, size_t n, REAL cap) {
    for (size_t i = 0; i < n; i++) y[i] = cap * (REAL)tanh(x[i] / cap);
}

PLAIN_FN PLAIN(softcap_backward)(REAL *dx, const REAL *y, size_t n, REAL cap) {
    for (size_t i = 0; i < n; i++) dx[i] *= 1 - y[i] / cap * (y[i] / cap);
}

/* ---- rows of logits ---- */

__attribute__((unused)) static REAL PLAIN(logsumexp)(const REAL *x, size_t d, REAL inv_temperature) {
    REAL max = -INFINITY, sum = 0;
    for (size_t i = 0; i < d; i++)
        if (x[i] > max) max = x[i];
    for (size_t i = 0; i < d; i++) sum += (REAL)exp((x[i] - max) * inv_temperature);
    return max * inv_temperature + (REAL)log(sum);
}

PLAIN_FN PLAIN(log_softmax)(REAL *y, const REAL *x, size_t d, REAL inv_temperature) {
    REAL lse = PLAIN(logsumexp)(x, d, inv_temperature);
    for (size_t i = 0; i < d; i++) y[i] = x[i] * inv_temperature - lse;
}

/* One draw by inversion: the first index whose cumulative probability exceeds u. */
__attribute__((unused)) static uint32_t PLAIN(sample)(double u, const REAL *x, size_t d, REAL inv_temperature) {
    REAL lse = PLAIN(logsumexp)(x, d, inv_temperature), cumulative = 0;
    for (size_t i = 0; i < d; i++) {
        cumulative += (REAL)exp(x[i] * inv_temperature - lse);
        if (u < cumulative) return (uint32_t)i;
    }
    return (uint32_t)d - 1;
}

/*
 * One row of the distillation loss. t [d] is the target as a dense row (zeros where it has no entry), in_k [d] says
 * which tokens have an entry, ghost is the probability of all others; 0: none. dx [d] is the gradient of weight * loss.
 * All by definition: log p = log softmax(x/T); d log p_j / dx_i = ((i = j) - p_i) / T.
 */
PLAIN_FN PLAIN(distill_loss)(const struct kernel_loss *how, const REAL *t, const bool *in_k, REAL ghost, uint32_t label,
                             REAL weight, const REAL *x, size_t d, REAL *kl, REAL *ce, REAL *dx) {
    REAL temperature = (REAL)how->temperature, lse = PLAIN(logsumexp)(x, d, 1 / temperature);
    REAL lse1 = PLAIN(logsumexp)(x, d, 1), mass = 0, others = 0;
    *kl = 0;
    *ce = label == UINT32_MAX ? 0 : lse1 - x[label];
    for (size_t i = 0; i < d; i++) {
        mass += t[i];
        if (t[i] > 0) *kl += t[i] * ((REAL)log(t[i]) - (x[i] / temperature - lse));
        if (!in_k[i]) others += (REAL)exp(x[i] / temperature - lse);
    }
    if (ghost > 0) *kl += ghost * (REAL)log(ghost / others);
    for (size_t i = 0; i < d; i++) {
        REAL p = (REAL)exp(x[i] / temperature - lse), p1 = (REAL)exp(x[i] - lse1);
        REAL g = mass * p - t[i];
        if (ghost > 0) g += in_k[i] ? ghost * p : -ghost * p * (1 - others) / others;
        dx[i] = weight * (REAL)how->kl_weight * temperature * g;
        if (label != UINT32_MAX) dx[i] += weight * (REAL)how->ce_weight * (p1 - (i == label));
    }
}

/* A term f of a divergence between t and p, and df/dp, by definition (kernel_divergence). */
__attribute__((unused)) static REAL PLAIN(divergence_term)(enum kernel_divergence_kind kind, REAL a, REAL b, REAL t,
                                                           REAL p, REAL *slope) {
    REAL m, f;
    switch (kind) {
    case DIVERGENCE_SKEW:
        m = a * t + (1 - a) * p;
        *slope = -t * (1 - a) / m;
        return t > 0 ? t * (REAL)log(t / m) : 0;
    case DIVERGENCE_SKEW_REVERSE:
        m = (1 - a) * t + a * p;
        *slope = (REAL)log(p / m) + 1 - p * a / m;
        return p * (REAL)log(p / m);
    case DIVERGENCE_JENSEN_SHANNON:
        m = a * t + (1 - a) * p;
        f = a * (t > 0 ? t * (REAL)log(t / m) : 0) + (1 - a) * p * (REAL)log(p / m);
        *slope = -a * t * (1 - a) / m + (1 - a) * ((REAL)log(p / m) + 1 - p * (1 - a) / m);
        return f;
    case DIVERGENCE_VARIATION: *slope = (REAL)((p > t) - (p < t)) / 2; return (REAL)fabs(p - t) / 2;
    case DIVERGENCE_ALPHA_BETA:
        *slope = -((REAL)pow(t, a) * (REAL)pow(p, b - 1) - (REAL)pow(p, a + b - 1)) / a;
        return -((REAL)pow(t, a) * (REAL)pow(p, b) - a / (a + b) * (REAL)pow(t, a + b) -
                 b / (a + b) * (REAL)pow(p, a + b)) /
               (a * b);
    default:
        *slope = -a * t / p + (b != 0 ? b * ((REAL)log(p / t) + 1) : 0);
        return a * (t > 0 ? t * (REAL)log(t / p) : 0) + (b != 0 ? b * p * (REAL)log(p / t) : 0);
    }
}

/* Shares of forward and reverse KL. The head is the fewest most probable of the first n - rest elements of t with a sum
 * of at least mu. */
__attribute__((unused)) static void PLAIN(divergence_adapt)(REAL mu, const REAL *t, const REAL *p, size_t n, bool rest,
                                                            REAL *a, REAL *b) {
    REAL mass = 0, head = 0, all = 0, last = INFINITY;
    size_t last_i = 0, entries = rest ? n - 1 : n;
    for (size_t i = 0; i < n; i++) all += (REAL)fabs(t[i] - p[i]);
    for (size_t k = 0; k < entries && mass < mu; k++) { /* next in descending order, ties by index */
        size_t best = n;
        for (size_t i = 0; i < entries; i++) {
            bool later = t[i] < last || (t[i] == last && (k == 0 || i > last_i));
            if (later && (best == n || t[i] > t[best])) best = i;
        }
        if (best == n) break;
        last = t[last_i = best];
        mass += last;
        head += (REAL)fabs(t[best] - p[best]);
    }
    *a = head / all;
    *b = 1 - *a;
}

/*
 * One row of a divergence over a partition of its tokens into n classes: of[i] is the class of token i, t [n] the
 * teacher's probability of each. In the dense case each token is its own class; `rest`: the last class is the tokens
 * outside the entries. p [n] is scratch.
 */
PLAIN_FN PLAIN(divergence)(const struct kernel_divergence *how, const REAL *t, const size_t *of, size_t n, bool rest,
                           REAL weight, const REAL *x, size_t d, REAL *p, REAL *value, REAL *dx) {
    REAL temperature = (REAL)how->temperature, lse = PLAIN(logsumexp)(x, d, 1 / temperature), mean = 0, slope;
    REAL a = (REAL)how->a, b = (REAL)how->b;
    enum kernel_divergence_kind kind = how->kind;
    for (size_t i = 0; i < n; i++) p[i] = 0;
    for (size_t i = 0; i < d; i++) p[of[i]] += (REAL)exp(x[i] / temperature - lse);
    if (kind == DIVERGENCE_ADAPTIVE) {
        PLAIN(divergence_adapt)((REAL)how->a, t, p, n, rest, &a, &b);
        kind = DIVERGENCE_KL;
    }
    *value = 0;
    for (size_t i = 0; i < n; i++) {
        *value += PLAIN(divergence_term)(kind, a, b, t[i], p[i], &slope);
        mean += p[i] * slope;
    }
    for (size_t i = 0; i < d; i++) {
        PLAIN(divergence_term)(kind, a, b, t[of[i]], p[of[i]], &slope);
        dx[i] += (REAL)how->weight * weight * (REAL)exp(x[i] / temperature - lse) * (slope - mean) / temperature;
    }
}

PLAIN_FN PLAIN(label_target)(const struct kernel_label_target *how, uint32_t label, REAL weight, const REAL *x,
                             size_t d, REAL *value, REAL *dx) {
    REAL temperature = (REAL)how->temperature, lse = PLAIN(logsumexp)(x, d, 1 / temperature);
    *value = 0;
    for (size_t i = 0; label != UINT32_MAX && i < d; i++) {
        REAL t = (REAL)(i == label ? how->own : how->other), lp = x[i] / temperature - lse;
        *value += -t * lp + (how->divergence && t > 0 ? t * (REAL)log(t) : 0);
        dx[i] += (REAL)how->weight * weight * temperature * ((REAL)exp(lp) - t);
    }
}

PLAIN_FN PLAIN(logit_mse)(bool centred, REAL weight, const REAL *z, const REAL *x, size_t d, REAL *value, REAL *dx) {
    REAL shift = 0, sum = 0;
    for (size_t i = 0; centred && i < d; i++) shift += (x[i] - z[i]) / (REAL)d;
    for (size_t i = 0; i < d; i++) {
        REAL y = x[i] - z[i] - shift;
        sum += y * y;
        dx[i] += 2 * weight * y / (REAL)d;
    }
    *value = sum / (REAL)d;
}

PLAIN_FN PLAIN(rank)(const struct kernel_rank *how, const uint32_t *ids, const REAL *t, size_t k, REAL weight,
                     const REAL *x, REAL *value, REAL *dx) {
    REAL pairs = 0, sum = 0;
    for (size_t i = 0; i < k; i++)
        for (size_t j = 0; j < k; j++) pairs += t[i] > t[j];
    for (size_t i = 0; i < k; i++)
        for (size_t j = 0; j < k; j++) {
            REAL u = (REAL)how->margin - (x[ids[i]] - x[ids[j]]);
            if (!(t[i] > t[j])) continue;
            sum += how->logistic ? (REAL)log1p(exp(u)) : u > 0 ? u : 0;
            REAL step = (REAL)how->weight * weight / pairs * (how->logistic ? 1 / (1 + (REAL)exp(-u)) : u > 0);
            dx[ids[i]] -= step;
            dx[ids[j]] += step;
        }
    *value = pairs > 0 ? sum / pairs : 0;
}

/* ---- features ---- */

__attribute__((unused)) static REAL PLAIN(rows_mse)(REAL weight, const REAL *t, const REAL *row_weight, const REAL *x,
                                                    size_t rows, size_t d, REAL *dx) {
    REAL sum = 0;
    for (size_t i = 0; i < rows * d; i++) {
        sum += row_weight[i / d] * (x[i] - t[i]) * (x[i] - t[i]) / (REAL)d;
        dx[i] = weight * row_weight[i / d] * 2 * (x[i] - t[i]) / (REAL)d;
    }
    return sum;
}

__attribute__((unused)) static REAL PLAIN(rows_cosine)(REAL weight, const REAL *t, const REAL *row_weight,
                                                       const REAL *x, size_t rows, size_t d, REAL *dx) {
    REAL sum = 0;
    for (size_t r = 0; r < rows; r++) {
        REAL xx = 0, tt = 0, xt = 0;
        for (size_t i = r * d; i < (r + 1) * d; i++) xx += x[i] * x[i], tt += t[i] * t[i], xt += x[i] * t[i];
        sum += row_weight[r] * (1 - xt / (REAL)sqrt(xx * tt));
        for (size_t i = r * d; i < (r + 1) * d; i++)
            dx[i] = -weight * row_weight[r] * (t[i] - xt / xx * x[i]) / (REAL)sqrt(xx * tt);
    }
    return sum;
}

PLAIN_FN PLAIN(unit)(REAL *u, const REAL *x, size_t n, size_t step) {
    REAL sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i * step] * x[i * step];
    for (size_t i = 0; i < n; i++) u[i * step] = sum > 0 ? x[i * step] / (REAL)sqrt(sum) : 0;
}

#include "lib/kernel/kernel_plain_relation.h"

/* ---- LSTM ---- */

#ifndef RILL_KERNEL_PLAIN_LSTM
#define RILL_KERNEL_PLAIN_LSTM
/* The position of a step of a sequence: the second direction starts at the end. */
__attribute__((unused)) static size_t plain_lstm_at(const struct kernel_lstm *s, size_t direction, size_t seq,
                                                    size_t step) {
    return direction ? s->starts[seq + 1] - 1 - step : s->starts[seq] + step;
}
#endif

/* One direction: gates, cells and columns [direction * units, ...) of y, as kernel_lstm writes them. */
PLAIN_FN PLAIN(lstm)(const struct kernel_lstm *s, size_t direction, REAL *y, REAL *gates, REAL *cells, const REAL *w,
                     const REAL *bias) {
    size_t n = s->units, width = s->directions * n;
    for (size_t seq = 0; seq < s->n_seqs; seq++)
        for (size_t step = 0; step < s->starts[seq + 1] - s->starts[seq]; step++) {
            size_t at = plain_lstm_at(s, direction, seq, step),
                   from = step ? plain_lstm_at(s, direction, seq, step - 1) : 0;
            REAL *g = gates + at * 4 * n;
            for (size_t j = 0; j < 4 * n; j++) {
                REAL sum = g[j] + (bias ? bias[j] : 0);
                for (size_t k = 0; step && k < n; k++) sum += y[from * width + direction * n + k] * w[j * n + k];
                g[j] = j / n == 2 ? (REAL)tanh(sum) : 1 / (1 + (REAL)exp(-sum));
            }
            for (size_t j = 0; j < n; j++) {
                REAL before = step ? cells[from * n + j] : 0;
                cells[at * n + j] = g[n + j] * before + g[j] * g[2 * n + j];
                y[at * width + direction * n + j] = g[3 * n + j] * (REAL)tanh(cells[at * n + j]);
            }
        }
}

/* Backward of one direction. dh, dc [units]: scratch. */
PLAIN_FN PLAIN(lstm_backward)(const struct kernel_lstm *s, size_t direction, REAL *dgates, const REAL *dy,
                              const REAL *gates, const REAL *cells, const REAL *w, REAL *dh, REAL *dc) {
    size_t n = s->units, width = s->directions * n;
    for (size_t seq = 0; seq < s->n_seqs; seq++) {
        for (size_t j = 0; j < n; j++) dh[j] = dc[j] = 0;
        for (size_t step = s->starts[seq + 1] - s->starts[seq]; step-- > 0;) {
            size_t at = plain_lstm_at(s, direction, seq, step),
                   from = step ? plain_lstm_at(s, direction, seq, step - 1) : 0;
            const REAL *i = gates + at * 4 * n, *f = i + n, *g = f + n, *o = g + n;
            REAL *d = dgates + at * 4 * n;
            for (size_t j = 0; j < n; j++) {
                REAL h = dh[j] + dy[at * width + direction * n + j], t = (REAL)tanh(cells[at * n + j]);
                REAL c = dc[j] + h * o[j] * (1 - t * t), before = step ? cells[from * n + j] : 0;
                d[j] = c * g[j] * i[j] * (1 - i[j]);
                d[n + j] = c * before * f[j] * (1 - f[j]);
                d[2 * n + j] = c * i[j] * (1 - g[j] * g[j]);
                d[3 * n + j] = h * t * o[j] * (1 - o[j]);
                dc[j] = c * f[j];
            }
            for (size_t k = 0; k < n; k++) {
                dh[k] = 0;
                for (size_t j = 0; j < 4 * n; j++) dh[k] += d[j] * w[j * n + k];
            }
        }
    }
}

/* ---- AdamW ---- */

PLAIN_FN PLAIN(adamw)(const struct kernel_adamw *o, REAL *w, REAL *m, REAL *v, const REAL *g, size_t n) {
    REAL c1 = 1 - (REAL)pow(o->beta1, (double)o->step), c2 = 1 - (REAL)pow(o->beta2, (double)o->step);
    for (size_t i = 0; i < n; i++) {
        REAL grad = g[i] * (REAL)o->grad_scale;
        m[i] = (REAL)o->beta1 * m[i] + (1 - (REAL)o->beta1) * grad;
        v[i] = (REAL)o->beta2 * v[i] + (1 - (REAL)o->beta2) * grad * grad;
        REAL decayed = w[i] - (REAL)o->lr * (REAL)o->weight_decay * w[i];
        w[i] = decayed - (REAL)o->lr * (m[i] / c1) / ((REAL)sqrt(v[i] / c2) + (REAL)o->eps);
    }
}

PLAIN_FN PLAIN(momentum)(const struct kernel_momentum *o, REAL *u, REAL *m, const REAL *g, size_t n) {
    for (size_t i = 0; i < n; i++) {
        REAL part = (1 - (REAL)o->beta) * (g[i] * (REAL)o->grad_scale);
        m[i] = (REAL)o->beta * m[i] + part;
        u[i] = (REAL)o->beta * m[i] + part;
    }
}

/* A moment as bf16, rounded up or down at random by the 16 bits that belong to element i. */
__attribute__((unused)) static uint16_t PLAIN(round_randomly)(float x, uint64_t step, uint64_t stream, size_t i,
                                                              bool second) {
    uint32_t words[4], bits;
    philox(step, stream, i / 64 * 16 + i % 16, words);
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + (second ? words[i / 16 % 4] >> 16 : words[i / 16 % 4] & 0xffff)) >> 16);
}

/* ---- second-order methods ---- */

/* u^T u = h^-1 by textbook formulas: h = R R^T, then R^-1, both column by column. scratch [n][n]. */
PLAIN_FN PLAIN(inverse_factor)(REAL *u, const REAL *h, size_t n, REAL *r) {
    for (size_t i = 0; i < n * n; i++) u[i] = r[i] = 0;
    for (size_t c = n; c-- > 0;)
        for (size_t i = c + 1; i-- > 0;) {
            REAL x = h[i * n + c];
            for (size_t k = c + 1; k < n; k++) x -= r[i * n + k] * r[c * n + k];
            r[i * n + c] = i == c ? (REAL)sqrt(x) : x / r[c * n + c];
        }
    for (size_t c = 0; c < n; c++)
        for (size_t i = c + 1; i-- > 0;) {
            REAL x = i == c ? 1 : 0;
            for (size_t k = i + 1; k <= c; k++) x -= r[i * n + k] * u[k * n + c];
            u[i * n + c] = x / r[i * n + i];
        }
}

/* One row at a time; calls `keep` for each column. w [rows][cols], not transposed. */
PLAIN_FN PLAIN(feedback)(REAL *w, const REAL *u, size_t rows, size_t cols, REAL (*keep)(size_t row, size_t col, REAL w),
                         REAL *loss) {
    for (size_t r = 0; r < rows; r++)
        for (size_t j = 0; j < cols; j++) {
            REAL kept = keep(r, j, w[r * cols + j]), e = (w[r * cols + j] - kept) / u[j * cols + j];
            for (size_t k = j + 1; k < cols; k++) w[r * cols + k] -= e * u[j * cols + k];
            w[r * cols + j] = kept;
            loss[r] += e * e;
        }
}

#undef REAL
#undef PLAIN
