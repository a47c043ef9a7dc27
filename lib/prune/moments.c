/* SparseGPT and ALPS without data: by the second moments of a matrix's inputs in the statistics. */
#include <string.h>

#include "lib/prune/second_order.h"

#define TRIES       4  /* further attempts, each with ten times the damping */
#define REFIT_STEPS 20 /* of conjugate gradients */

int prune_check_moments(const struct prune_plan *p, struct err *e) {
    char name[TENSOR_MAX_NAME + 1];
    uint64_t was[2], is[2];
    if (!prune_uses_moments(p->o)) return 0;
    for (size_t i = 0; i < p->n_slots; i++) {
        struct model_slot s = model_slot_at(p->from, i), now;
        if (!prune_is_sparse(p->sparse[i]) || !prune_new_slot(p, s, &now)) continue;
        if (s.role == ROLE_EMBED)
            return err_set(e, ERR_USAGE,
                           "tensor '%s' is the table of embeddings, too: this method would fit it as the head alone "
                           "(--method wanda, or a --rate of 0 for it)",
                           model_slot_name(s, name));
        if (!stats_has_gram(p->o->stats, s))
            return err_set(e, ERR_DATA,
                           "tensor '%s': the statistics have no second moments of its inputs, which this method needs "
                           "without --data",
                           model_slot_name(s, name));
        if (p->sparse[i].rank)
            return err_set(
                e, ERR_USAGE,
                "tensor '%s': low-rank factors by what a matrix does to its inputs need --data (--method svd: "
                "by its own singular values)",
                model_slot_name(s, name));
        model_slot_shape(p->from, s, was);
        model_slot_shape(&p->to, now, is);
        if (was[1] != is[1])
            return err_set(
                e, ERR_USAGE,
                "tensor '%s' loses inputs: by statistics, this method prunes matrices for all of their inputs "
                "(change widths in a run before, and make statistics of its result)",
                model_slot_name(s, name));
    }
    return 0;
}

static void forget(struct prune_moments *k) {
    obs_factor_free(k->factor);
    k->factor = NULL;
    k->known.cols = 0;
    mem_trim();
}

void prune_moments_release(struct prune_moments *k) {
    forget(k);
    buf_release(&k->stored[0]);
    buf_release(&k->stored[1]);
    buf_release(&k->rounded);
}

/* Reads the moments, and factors them for SparseGPT, unless the matrix before had the same inputs. */
static int turn_to(struct prune_moments *k, const struct prune_options *o, struct model_slot s, struct err *e) {
    struct obs_options how = {.damp = o->damp, .tries = TRIES};
    enum model_point point = POINT_COUNT;
    (void)stats_input_point(stats_config(o->stats), s.role, &point);
    if (k->known.cols && k->known.point == point && k->known.layer == s.layer) return 0;
    forget(k);
    int rc = stats_input_gram(o->stats, s, k->stored, &k->known, e);
    if (!rc && o->method == PRUNE_SPARSEGPT) rc = obs_factor_new(&k->factor, k->known.sum, k->known.cols, &how, e);
    if (rc) k->known.cols = 0;
    return rc ? err_prefix(e, "the statistics") : 0;
}

static int alps(const struct prune_moments *k, double damp, const struct prune_matrix *w, struct prune_sparsity s,
                struct err *e) {
    size_t n = w->cols;
    struct prune_fit fit = {.gram = k->known.sum, .iterations = REFIT_STEPS};
    for (size_t i = 0; i < n; i++) fit.ridge += damp * (double)fit.gram[i * (n + 1)] / (double)n;
    float *b = mem_array(w->rows, n * sizeof *b, e); /* w (gram + ridge) */
    if (!b) return e->code;
    kernel_matmul_nn(w->rows, n, n, kernel_f32(w->x), kernel_f32(fit.gram), 0, kernel_f32(b));
    for (size_t i = 0; i < w->rows * n; i++) b[i] += (float)(fit.ridge * w->x[i]);
    fit.b = b;
    int rc = prune_alps(w, &fit, s, e);
    mem_free(b);
    return rc;
}

int prune_by_moments(struct prune_moments *k, const struct prune_options *o, struct model_slot s,
                     const struct tensor_desc *stored, const struct prune_matrix *w, struct prune_sparsity sparsity,
                     double *output_error, struct err *e) {
    struct model_param as = {.desc = *stored, .n = w->rows * w->cols, .value = kernel_f32(w->x)};
    int rc = turn_to(k, o, s, e);
    float *was = rc ? NULL : mem_array(w->rows, w->cols * sizeof *was, e);
    if (!was) return e->code;
    memcpy(was, w->x, w->rows * w->cols * sizeof *was);
    rc = o->method == PRUNE_ALPS ? alps(k, o->damp, w, sparsity, e) : prune_sparsegpt(w, k->factor, sparsity, e);
    if (!rc) rc = prune_round(&as, &k->rounded, e);
    if (!rc) rc = prune_output_error(w, k->known.sum, was, output_error, e);
    mem_free(was);
    return rc;
}
