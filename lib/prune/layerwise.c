/* Pruning with data, layer by layer: makes the plan and selects the path for weights, structure or residual stream. */
#include "lib/prune/second_order.h"

static bool has_structure(const struct prune_plan *p) {
    const struct model_config *from = p->from, *to = &p->to;
    return to->n_layers != from->n_layers || p->kept_experts || prune_changes_widths(p);
}

static bool has_sparse(const struct prune_plan *p) {
    for (size_t i = 0; i < p->n_slots; i++)
        if (prune_is_sparse(p->sparse[i])) return true;
    return false;
}

int prune_layerwise(const struct prune_calibration *c, struct stream_writer *out, const struct prune_options *o,
                    struct prune_report *report, struct err *e) {
    struct prune_walk walk = {c, out, report};
    struct prune_plan plan;
    const struct model *m = model_layerwise_held(c->model);
    struct model_head head = {.config = m->config, .vocab = m->vocab_bytes, .vocab_digest = m->vocab_digest};
    int rc = prune_plan_make(&plan, &head, o, e);
    bool narrows = !rc && plan.kept_hidden, changes = !rc && (narrows || has_structure(&plan));
    if (!rc && changes && has_sparse(&plan))
        rc = err_set(e, ERR_USAGE,
                     "single weights cannot be pruned with --data together with anything but the vocabulary: use a "
                     "separate run");
    if (!rc && o->warn) prune_plan_warn(&plan);
    if (!rc)
        rc = narrows   ? prune_hidden(&walk, &plan, e)
             : changes ? prune_structure(&walk, &plan, e)
                       : prune_weights(&walk, &plan, e);
    prune_plan_release(&plan);
    return rc;
}
