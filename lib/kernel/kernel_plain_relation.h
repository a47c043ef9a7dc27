/* The part of kernel_plain.h (which includes it) for losses on features, relations and attention. */

/* ---- relations: values only; tests differentiate them numerically. u, w: scratch like x and t -------------------- */

#ifndef PLAIN_VALUE
#define PLAIN_VALUE __attribute__((unused)) static REAL
#endif

PLAIN_VALUE PLAIN(huber)(REAL u) {
    return fabs(u) <= 1 ? u * u / 2 : (REAL)fabs(u) - (REAL)0.5;
}

PLAIN_VALUE PLAIN(factor_row)(const REAL *x, const REAL *t, size_t d, REAL *u, REAL *w) {
    REAL sum = 0;
    PLAIN(unit)(u, x, d, 1);
    PLAIN(unit)(w, t, d, 1);
    for (size_t i = 0; i < d; i++) sum += (REAL)fabs(u[i] - w[i]);
    return sum;
}

PLAIN_VALUE PLAIN(dot_rows)(const REAL *x, size_t d, size_t i, size_t j) {
    REAL sum = 0;
    for (size_t c = 0; c < d; c++) sum += x[i * d + c] * x[j * d + c];
    return sum;
}

PLAIN_VALUE PLAIN(gap2_rows)(const REAL *x, size_t d, size_t i, size_t j) {
    return PLAIN(dot_rows)(x, d, i, i) + PLAIN(dot_rows)(x, d, j, j) - 2 * PLAIN(dot_rows)(x, d, i, j);
}

PLAIN_VALUE PLAIN(cosine_rows)(const REAL *x, size_t d, size_t i, size_t j) {
    return PLAIN(dot_rows)(x, d, i, j) / (REAL)sqrt(PLAIN(dot_rows)(x, d, i, i) * PLAIN(dot_rows)(x, d, j, j));
}

/* Row i [n] of the compared relation; 0 at i itself if that is not a pair. */
PLAIN_FN PLAIN(relation_row)(const struct kernel_relation *how, size_t n, const REAL *x, size_t d, size_t i,
                             REAL *row) {
    REAL sum = 0, g = (REAL)how->gamma;
    for (size_t j = 0; j < n; j++) {
        REAL c = how->kind == RELATION_SIMILARITY ? PLAIN(dot_rows)(x, d, i, j) : 0, term = (REAL)exp(-2 * g);
        if (how->kind == RELATION_CORRELATION || how->kind == RELATION_PROBABILITY) c = PLAIN(cosine_rows)(x, d, i, j);
        if (how->kind == RELATION_DISTANCE) c = j == i ? 0 : (REAL)sqrt(PLAIN(gap2_rows)(x, d, i, j));
        if (how->kind == RELATION_GRAPH) c = PLAIN(gap2_rows)(x, d, i, j) / (REAL)d;
        if (how->kind == RELATION_PROBABILITY) c = j == i ? 0 : (c + 1) / 2;
        row[j] = c;
        if (how->kind == RELATION_CORRELATION && how->order) row[j] = 0;
        for (unsigned p = 0; how->kind == RELATION_CORRELATION && p <= how->order && how->order; p++) {
            row[j] += term * (REAL)pow(c, p);
            term *= 2 * g / (REAL)(p + 1);
        }
        sum += how->kind == RELATION_SIMILARITY ? row[j] * row[j] : row[j];
    }
    if (how->kind == RELATION_SIMILARITY) sum = (REAL)sqrt(sum);
    for (size_t j = 0; j < n; j++)
        if (how->kind == RELATION_SIMILARITY || how->kind == RELATION_PROBABILITY) row[j] /= sum;
}

/* a, b: scratch [n][n] */
PLAIN_VALUE PLAIN(relation)(const struct kernel_relation *how, size_t n, const REAL *t, size_t td, const REAL *x,
                            size_t d, REAL *a, REAL *b) {
    REAL value = 0, of_a = 0, of_b = 0, eps = (REAL)KERNEL_RELATION_EPS, pairs = (REAL)n * (REAL)(n - 1);
    for (size_t i = 0; i < n; i++) PLAIN(relation_row)(how, n, t, td, i, a + i * n);
    for (size_t i = 0; i < n; i++) PLAIN(relation_row)(how, n, x, d, i, b + i * n);
    for (size_t i = 0; i < n * n; i++) of_a += a[i] / pairs, of_b += b[i] / pairs;
    for (size_t i = 0; i < n * n; i++) {
        if (how->kind == RELATION_PROBABILITY)
            value += a[i] * (REAL)log((a[i] + eps) / (b[i] + eps)) / (REAL)n;
        else if (how->kind == RELATION_DISTANCE)
            value += PLAIN(huber)(b[i] / of_b - a[i] / of_a) / pairs;
        else
            value += (b[i] - a[i]) * (b[i] - a[i]) / (REAL)(n * n);
    }
    return value;
}

PLAIN_VALUE PLAIN(angle)(const REAL *x, size_t d, size_t i, size_t j, size_t k) {
    REAL ij = 0, kj = 0, both = 0;
    for (size_t c = 0; c < d; c++) {
        REAL u = x[i * d + c] - x[j * d + c], w = x[k * d + c] - x[j * d + c];
        ij += u * u, kj += w * w, both += u * w;
    }
    return both / (REAL)sqrt(ij * kj);
}

PLAIN_VALUE PLAIN(angles)(size_t n, const REAL *t, size_t td, const REAL *x, size_t d) {
    REAL sum = 0;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++)
            for (size_t k = 0; k < n; k++)
                if (i != j && i != k && j != k)
                    sum += PLAIN(huber)(PLAIN(angle)(x, d, i, j, k) - PLAIN(angle)(t, td, i, j, k));
    return sum / ((REAL)n * (REAL)(n - 1) * (REAL)(n - 2));
}

PLAIN_VALUE PLAIN(contrast)(REAL temperature, size_t n, const REAL *t, const REAL *x, size_t d, REAL *u, REAL *w) {
    REAL value = 0;
    for (size_t i = 0; i < n; i++) PLAIN(unit)(u + i * d, x + i * d, d, 1), PLAIN(unit)(w + i * d, t + i * d, d, 1);
    for (size_t i = 0; i < n; i++) {
        REAL rows = 0, cols = 0, own = 0;
        for (size_t j = 0; j < n; j++) {
            REAL ij = 0, ji = 0;
            for (size_t c = 0; c < d; c++) ij += u[i * d + c] * w[j * d + c], ji += u[j * d + c] * w[i * d + c];
            rows += (REAL)exp(ij / temperature);
            cols += (REAL)exp(ji / temperature);
            if (i == j) own = ij / temperature;
        }
        value += ((REAL)log(rows) + (REAL)log(cols) - 2 * own) / (REAL)(2 * n);
    }
    return value;
}

PLAIN_FN PLAIN(energies)(REAL *q, size_t n, const REAL *x, size_t d) {
    for (size_t i = 0; i < n; i++) q[i] = PLAIN(dot_rows)(x, d, i, i);
    PLAIN(unit)(q, q, n, 1);
}

/* a, b: scratch [n] */
PLAIN_VALUE PLAIN(energy_map)(size_t n, const REAL *t, size_t td, const REAL *x, size_t d, REAL *a, REAL *b) {
    REAL sum = 0;
    PLAIN(energies)(a, n, t, td);
    PLAIN(energies)(b, n, x, d);
    for (size_t i = 0; i < n; i++) sum += (a[i] - b[i]) * (a[i] - b[i]) / (REAL)n;
    return sum;
}

PLAIN_VALUE PLAIN(flow)(size_t n, size_t d, const REAL *ta, const REAL *tb, const REAL *xa, const REAL *xb) {
    REAL sum = 0;
    for (size_t i = 0; i < d; i++)
        for (size_t j = 0; j < d; j++) {
            REAL gap = 0;
            for (size_t r = 0; r < n; r++) gap += xa[r * d + i] * xb[r * d + j] - ta[r * d + i] * tb[r * d + j];
            sum += gap / (REAL)n * gap / (REAL)n;
        }
    return sum / (REAL)(d * d);
}

PLAIN_VALUE PLAIN(moves)(size_t n, const REAL *ta, const REAL *tb, size_t td, const REAL *xa, const REAL *xb,
                         size_t d) {
    REAL sum = 0;
    for (size_t r = 0; r < n; r++) {
        REAL u = 0;
        for (size_t c = r * d; c < (r + 1) * d; c++) u += (xa[c] - xb[c]) * (xa[c] - xb[c]) / (REAL)d;
        for (size_t c = r * td; c < (r + 1) * td; c++) u -= (ta[c] - tb[c]) * (ta[c] - tb[c]) / (REAL)td;
        sum += u * u / (REAL)n;
    }
    return sum;
}

PLAIN_VALUE PLAIN(mmd_mean)(enum kernel_mmd_kind kind, REAL variance, size_t n, const REAL *u, size_t ud, const REAL *w,
                            size_t wd) {
    REAL sum = 0;
    for (size_t i = 0; i < ud; i++)
        for (size_t j = 0; j < wd; j++) {
            REAL dot = 0;
            for (size_t r = 0; r < n; r++) dot += u[r * ud + i] * w[r * wd + j];
            sum += kind == MMD_LINEAR ? dot : kind == MMD_POLY ? dot * dot : (REAL)exp((dot - 1) / variance);
        }
    return sum / ((REAL)ud * (REAL)wd);
}

/* variance: its value at the point where the gradient is computed. */
PLAIN_VALUE PLAIN(mmd)(enum kernel_mmd_kind kind, REAL variance, size_t n, const REAL *t, size_t td, const REAL *x,
                       size_t d, REAL *w, REAL *u) {
    for (size_t c = 0; c < td; c++) PLAIN(unit)(w + c, t + c, n, td);
    for (size_t c = 0; c < d; c++) PLAIN(unit)(u + c, x + c, n, d);
    return PLAIN(mmd_mean)(kind, variance, n, u, d, u, d) + PLAIN(mmd_mean)(kind, variance, n, w, td, w, td) -
           2 * PLAIN(mmd_mean)(kind, variance, n, u, d, w, td);
}

/* For all queries of sequence 0, times row_weight; p: scratch [2][longest sequence]. */
PLAIN_VALUE PLAIN(attention_loss)(enum kernel_attention_loss_kind kind, const struct kernel_attention *a, const REAL *t,
                                  const REAL *row_weight, const REAL *q, const REAL *k, REAL *p) {
    size_t d = a->head_dim, ld = a->n_kv_heads * d, length = a->starts[1] - a->starts[0], begin, end;
    REAL sum = 0;
    for (size_t i = 0; i < length; i++)
        for (size_t h = 0; h < a->n_heads; h++, t += length) {
            PLAIN(attention_range)(a, i, length, &begin, &end);
            const REAL *own = q + (i * a->n_heads + h) * d,
                       *keys = k + begin * ld + h / (a->n_heads / a->n_kv_heads) * d;
            REAL lse = PLAIN(attention_row)(a, p, NULL, own, keys, ld, end - begin);
            for (size_t j = 0; j < end - begin; j++) {
                REAL y = kind == ATTENTION_SCORES ? (REAL)log(p[j]) + lse : p[j], z = t[begin + j];
                REAL term = (y - z) * (y - z) / (REAL)(end - begin);
                if (kind == ATTENTION_KL) term = z > 0 ? z * (REAL)log(z / p[j]) : 0;
                sum += row_weight[i] * term;
            }
        }
    return sum;
}

/* t is in descending order; p: scratch [d]. */
PLAIN_VALUE PLAIN(sorted_distance)(REAL temperature, const REAL *t, const REAL *x, size_t d, REAL *p) {
    REAL sum = 0, value = 0;
    for (size_t i = 0; i < d; i++) sum += p[i] = (REAL)exp(x[i] / temperature);
    for (size_t i = 0; i < d; i++) {
        size_t best = i;
        for (size_t j = i; j < d; j++)
            if (p[j] > p[best]) best = j;
        REAL swap = p[i];
        p[i] = p[best], p[best] = swap;
        value += (REAL)fabs(p[i] / sum - t[i]);
    }
    return value;
}
