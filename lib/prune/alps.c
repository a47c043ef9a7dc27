/* ALPS: searches the mask of least error by the alternating direction method of multipliers (ADMM). */
#include <math.h>
#include <string.h>

#include "lib/prune/second_order.h"

/* The first and highest penalty and the interval of mask checks follow published implementations; the lowest is
 * ours. */
#define RHO_FIRST   0.1
#define RHO_LOWEST  1e-5
#define RHO_HIGHEST 1e6
#define EVERY       3   /* steps between mask checks */
#define MOST        300 /* steps */

/* Scaled so that the Gram matrix with its ridge has unit diagonal. Matrices are [rows][cols] unless noted. */
struct alps {
    size_t rows, cols, n, kept; /* n = rows cols; kept: nonzero weights */
    struct prune_sparsity s;
    float *norms;              /* [cols] */
    float *gram, *inverse, *u; /* [cols][cols]; inverse of gram + rho */
    float *b, *v, *w, *d, *x;  /* b: target of w gram; v: multipliers; x: scratch */
    unsigned char *mask;       /* nonzero weights of d at the last check */
    double rho;
};

/* inverse = (gram + rho)^-1 = u^T u. */
static int invert(struct alps *a, struct err *e) {
    size_t n = a->cols, at = 0;
    memcpy(a->inverse, a->gram, n * n * sizeof *a->inverse);
    for (size_t i = 0; i < n; i++) a->inverse[i * (n + 1)] += (float)a->rho;
    if (!kernel_inverse_factor(a->u, a->inverse, n, &at))
        return err_set(e, ERR_DATA, "the Gram matrix does not factor (column %zu), even with a penalty of %g", at,
                       a->rho);
    kernel_matmul_tn(n, n, n, kernel_f32(a->u), kernel_f32(a->u), 0, kernel_f32(a->inverse));
    return 0;
}

/* Projects d onto its largest weights. */
static void project(struct alps *a) {
    if (a->s.m)
        kernel_zero_groups(a->d, NULL, a->rows, a->cols, a->s.n, a->s.m);
    else
        (void)kernel_zero_smallest(a->d, a->n, prune_gone(a->s.share, a->n), a->x);
}

/* Counts changes of d's mask since the last check, and records it. */
static size_t moved(struct alps *a) {
    size_t changed = 0;
    for (size_t i = 0; i < a->n; i++) {
        unsigned char stays = a->d[i] != 0;
        changed += stays != a->mask[i];
        a->mask[i] = stays;
    }
    return changed;
}

static void begin(struct alps *a, const float *w) {
    for (size_t i = 0; i < a->n; i++) a->d[i] = w[i] * a->norms[i % a->cols];
    memset(a->v, 0, a->n * sizeof *a->v);
    project(a);
    (void)moved(a);
}

/* w = (gram + rho)^-1 (b - v + rho d), d = projection of w + v / rho, v += rho (w - d). */
static void step(struct alps *a) {
    float rho = (float)a->rho;
    for (size_t i = 0; i < a->n; i++) a->x[i] = a->b[i] - a->v[i] + rho * a->d[i];
    kernel_matmul_nn(a->rows, a->cols, a->cols, kernel_f32(a->x), kernel_f32(a->inverse), 0, kernel_f32(a->w));
    for (size_t i = 0; i < a->n; i++) a->d[i] = a->w[i] + a->v[i] / rho;
    project(a);
    for (size_t i = 0; i < a->n; i++) a->v[i] += rho * (a->w[i] - a->d[i]);
}

/* The penalty grows faster the more the mask changes. As long as it has never changed, the penalty is too high and is
 * lowered. */
static int find_mask(struct alps *a, const float *w, struct err *e) {
    bool growing = false;
    a->rho = RHO_FIRST;
    begin(a, w);
    int rc = invert(a, e);
    for (unsigned i = 1; !rc && i <= MOST; i++) {
        step(a);
        if (i % EVERY) continue;
        size_t changed = moved(a);
        double share = (double)changed / (double)(a->kept ? a->kept : 1);
        if (!changed && (growing || a->rho <= RHO_LOWEST)) break;
        if (!growing && share <= 0.005) {
            a->rho /= 5;
            begin(a, w);
            growing = a->rho <= RHO_LOWEST;
        } else {
            growing = true;
            a->rho *= share > 0.1 ? 1.3 : share > 0.005 ? 1.2 : 1.1;
        }
        if (a->rho > RHO_HIGHEST) break;
        rc = invert(a, e);
    }
    return rc;
}

static int allocate(struct alps *a, struct err *e) {
    float **const matrices[] = {&a->b, &a->v, &a->w, &a->d, &a->x}, **const squares[] = {&a->gram, &a->inverse, &a->u};
    a->norms = mem_array(a->cols, sizeof *a->norms, e);
    a->mask = a->norms ? mem_array(a->n, 1, e) : NULL;
    if (!a->mask) return e->code;
    for (size_t i = 0; i < COUNT_OF(matrices); i++)
        if (!(*matrices[i] = mem_array(a->n, sizeof **matrices[i], e))) return e->code;
    for (size_t i = 0; i < COUNT_OF(squares); i++)
        if (!(*squares[i] = mem_array(a->cols, a->cols * sizeof **squares[i], e))) return e->code;
    return 0;
}

static void release(struct alps *a) {
    float *const arrays[] = {a->norms, a->gram, a->inverse, a->u, a->b, a->v, a->w, a->d, a->x};
    for (size_t i = 0; i < COUNT_OF(arrays); i++) mem_free(arrays[i]);
    mem_free(a->mask);
}

/* An input that was always 0 gets norm 1, so its weights affect nothing. */
static void scale(struct alps *a, const struct prune_fit *fit) {
    size_t n = a->cols;
    for (size_t i = 0; i < n; i++) {
        double d = (double)fit->gram[i * (n + 1)] + fit->ridge;
        a->norms[i] = d > 0 ? (float)sqrt(d) : 1;
    }
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++) {
            double g = (double)fit->gram[i * n + j] + (i == j ? fit->ridge : 0);
            a->gram[i * n + j] = (float)(g / a->norms[i] / a->norms[j]);
        }
    for (size_t i = 0; i < a->n; i++) a->b[i] = fit->b[i] / a->norms[i % n];
}

int prune_alps(const struct prune_matrix *w, const struct prune_fit *fit, struct prune_sparsity s, struct err *e) {
    struct alps a = {.rows = w->rows, .cols = w->cols, .n = w->rows * w->cols, .s = s};
    a.kept = s.m ? a.n / s.m * s.n : a.n - prune_gone(s.share, a.n);
    int rc = allocate(&a, e);
    if (!rc) scale(&a, fit);
    if (!rc) rc = find_mask(&a, w->x, e);
    for (size_t i = 0; !rc && i < a.n; i++) w->x[i] = a.d[i] / a.norms[i % a.cols];
    release(&a);
    return rc ? rc : prune_refit(w, fit, e);
}
