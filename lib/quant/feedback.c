/* Error feedback by second moments of inputs that were summed earlier, in the original model. */
#include "lib/quant/quant_internal.h"
#include "lib/quant/second_order.h"

/* Of the inputs of one matrix, or of several that read the same ones. */
struct feedback {
    struct stats_known known;
    struct digest digest;      /* of these */
    float *gram;               /* [cols][cols] without noise */
    struct obs_factor *factor; /* of gram; NULL: none yet */
    float *importance;         /* [cols] */
    bool any;                  /* element of it above 0 */
};

static void forget(struct feedback *f) {
    mem_free(f->gram);
    obs_factor_free(f->factor);
    mem_free(f->importance);
    f->gram = f->importance = NULL;
    f->factor = NULL;
    mem_trim();
}

void feedback_end(struct pass *p) {
    if (!p->feedback) return;
    forget(p->feedback);
    stats_known_release(&p->feedback->known);
    mem_free(p->feedback);
    p->feedback = NULL;
}

/* Reads the moments, unless the matrix before had the same. */
static int turn_to(struct pass *p, struct model_slot s, struct err *e) {
    if (!p->feedback && !(p->feedback = mem_zalloc(sizeof *p->feedback, e))) return e->code;
    struct feedback *f = p->feedback;
    if (stats_known_is(&f->known, p->o->stats, s)) return 0;
    forget(f);
    if (stats_known_read(&f->known, p->o->stats, s, e)) return e->code;
    const struct stats_gram *g = &f->known.gram;
    struct digest of[2] = {digest_bytes(g->sum, g->cols * g->cols * sizeof *g->sum),
                           digest_bytes(g->half, g->half_rows * g->cols * sizeof *g->half)};
    f->digest = digest_bytes(of, sizeof of);
    return 0;
}

int feedback_digest(struct pass *p, struct model_slot s, struct digest *out, struct err *e) {
    if (turn_to(p, s, e)) return e->code;
    *out = p->feedback->digest;
    return 0;
}

static int factor(struct pass *p, struct feedback *f, struct err *e) {
    const struct quant_feedback *how = &p->o->feedback;
    struct obs_options o = {.damp = how->damp, .tries = MOMENTS_TRIES, .act_order = how->act_order};
    double positions = (double)stats_positions(p->o->stats);
    const struct stats_gram *g = &f->known.gram;
    size_t n = g->cols;
    f->any = false;
    f->gram = shrink_sum(g->sum, NULL, shrink_of_sum(shrink_reliability_of(g)), n, e);
    f->importance = f->gram ? mem_array(n, sizeof *f->importance, e) : NULL;
    if (!f->importance) return e->code;
    for (size_t j = 0; j < n; j++) {
        f->importance[j] = (float)(f->gram[j * (n + 1)] / (positions > 0 ? positions : 1));
        f->any |= f->importance[j] > 0;
    }
    return obs_factor_new(&f->factor, f->gram, n, &o, e);
}

int feedback_check_damp(const struct pass *p, const struct quant_tensor_report *t, struct err *e) {
    if (!p->o->strict || !(t->damp > p->o->feedback.damp)) return 0;
    return err_set(
        e, ERR_DATA,
        "tensor '%s': the second moments cannot be factored with --damp %g (without --strict, more damping is "
        "used)",
        t->name, p->o->feedback.damp);
}

int feedback_begin(struct pass *p, struct model_slot s, struct quant_tensor_report *t, const float **importance,
                   struct err *e) {
    if (p->clock) phase_enter(p->clock, QUANT_FACTORS);
    int rc = turn_to(p, s, e);
    struct feedback *f = p->feedback;
    if (!rc && !f->factor) rc = factor(p, f, e);
    if (rc) return err_prefix(e, "tensor '%s'", t->name);
    t->informed = true;
    if (f->factor->damp > p->o->feedback.damp) t->damp = f->factor->damp;
    *importance = f->any ? f->importance : NULL;
    return feedback_check_damp(p, t, e);
}

int feedback_rows(struct pass *p, const struct quant_rows *r, struct quant_tensor_report *t, struct err *e) {
    const struct feedback *f = p->feedback;
    struct second_order how = {f->gram, f->factor, p->o->feedback.sweeps, p->clock};
    struct second_order_error error;
    if (second_order_quantize(&how, r->to, r->x, r->rows, r->cols, r->packed, &error, e)) return e->code;
    t->output_error_nearest += error.before;
    t->output_error += error.after;
    return 0;
}
