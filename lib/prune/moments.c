/* SparseGPT and ALPS without data: by the second moments of a matrix's inputs in the statistics. */
#include <string.h>

#include "lib/prune/second_order.h"

static void forget(struct prune_moments *k) {
    obs_factor_free(k->factor);
    k->factor = NULL;
    mem_trim();
}

void prune_moments_release(struct prune_moments *k) {
    forget(k);
    stats_known_release(&k->known);
    buf_release(&k->rounded);
}

/* Reads the moments, and factors them for SparseGPT, unless the matrix before had the same inputs. */
static int turn_to(struct prune_moments *k, const struct prune_options *o, struct model_slot s, struct err *e) {
    struct obs_options how = {.damp = o->damp, .tries = PRUNE_TRIES};
    if (!stats_known_is(&k->known, o->stats, s)) {
        forget(k);
        if (stats_known_read(&k->known, o->stats, s, e)) return e->code;
    }
    const struct stats_gram *g = &k->known.gram;
    if (k->factor || o->method != PRUNE_SPARSEGPT) return 0;
    return obs_factor_new(&k->factor, g->sum, g->cols, &how, e) ? err_prefix(e, "the statistics") : 0;
}

static int alps(const struct prune_moments *k, double damp, const struct prune_matrix *w, struct prune_sparsity s,
                struct err *e) {
    size_t n = w->cols;
    struct prune_fit fit = {.gram = k->known.gram.sum, .iterations = PRUNE_REFIT_STEPS};
    for (size_t i = 0; i < n; i++) fit.ridge += damp * (double)fit.gram[i * (n + 1)] / (double)n;
    float *b = prune_wanted(w, fit.gram, NULL, fit.ridge, e);
    if (!b) return e->code;
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
    if (!rc) rc = prune_output_error(w, k->known.gram.sum, was, output_error, e);
    mem_free(was);
    return rc;
}
