/*
 * obs: what second-order methods share, after "Optimal Brain Surgeon" (Hassibi and Stork 1993). A layer's outputs change least when
 * the error that a weight makes is made up for by those that come after it, by the inverse of the Gram matrix H = sum x x^T of the
 * layer's inputs. GPTQ quantizes, SparseGPT prunes in this way: they differ in what they decide of a column.
 *
 * Matrices are [rows][cols], rows outputs and cols inputs, as a model stores them. Results do not depend on the number of threads.
 */
#ifndef RILL_OBS_H
#define RILL_OBS_H

#include "lib/base/base.h"
#include "lib/kernel/kernel.h"

struct obs_options {
    double damp;    /* added to the diagonal, as a share of its mean: 0.01 (GPTQ) */
    unsigned tries; /* with ten times the damping each time, when H will not factor; 0: one */
    bool act_order; /* columns in descending order of H's diagonal (GPTQ's act-order, desc_act) */
};

struct obs_factor {
    size_t n;        /* inputs */
    float *u;        /* [n][n], in the order of the columns: u^T u = (H + damping)^-1 */
    uint32_t *order; /* [n]: which input is column i; NULL: i */
    uint8_t *dead;   /* [n]: has input i always been 0? Its weights do nothing and become 0 */
    size_t n_dead;
    double damp;  /* the share that was added at last ... */
    double added; /* ... and what it came to */
};

/*
 * Factors H, given as gram [n][n] (of which the upper triangle is read): dead inputs get 1 on the diagonal, order, damping, factor.
 * ERR_DATA when an element of the diagonal is negative or not finite, or H does not factor after all tries, saying which damping
 * was the last. The caller frees it.
 */
int obs_factor_new(struct obs_factor **out, const float *gram, size_t n, const struct obs_options *o,
                   struct err *e) MUST_CHECK;
void obs_factor_free(struct obs_factor *f); /* NULL is fine */

/* What a method decides; see struct kernel_feedback, whose calls these are. */
struct obs_method {
    size_t block; /* columns between two updates of the rest; 128 unless a grid's groups are longer */
    /* Before a block of n columns from place `first` on, w [n][rows] as they are now. NULL: nothing. */
    void (*begin)(void *ctx, size_t first, size_t n, const float *w);
    /* What n rows from `row` on keep of the column at place `column` (input factor->order[column]). */
    void (*decide)(void *ctx, size_t column, size_t left, size_t row, size_t n, const float *w, float *kept);
    void *ctx;
};

/*
 * Takes w [rows][f->n] through a method: w becomes what was kept. loss [rows], or NULL: the growth of sum |w x - kept x|^2, of each
 * row. Memory: two copies of w. ERR_IO when it is out.
 */
int obs_sweep(const struct obs_factor *f, const struct obs_method *m, float *w, size_t rows, double *loss,
              struct err *e) MUST_CHECK;

/*
 * Least squares: the weights for other inputs. w [rows][f->n] becomes b H^-1, which minimises sum |t - w y|^2 + damping |w|^2 for
 * inputs y of Gram matrix H and b [rows][f->n] = sum t y^T of the outputs t that are wanted.
 */
int obs_solve(const struct obs_factor *f, const float *b, float *w, size_t rows, struct err *e) MUST_CHECK;

#endif
