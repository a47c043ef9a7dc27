/* Maps tensors of the old model to the pruned one. */
#include "lib/prune/prune_internal.h"

uint32_t prune_new_expert(const struct prune_plan *p, struct model_slot old) {
    uint32_t layer = p->new_layer[old.layer];
    if (!p->kept_experts) return old.expert;
    for (uint32_t i = 0; i < p->to.layers[layer].experts; i++)
        if (p->kept_experts[layer][i] == old.expert) return i;
    return LAYER_GONE;
}

bool prune_new_slot(const struct prune_plan *p, struct model_slot old, struct model_slot *out) {
    *out = old;
    if (!model_role_in_layer(old.role)) return true;
    out->layer = p->new_layer[old.layer];
    if (out->layer == LAYER_GONE) return false;
    if (p->o->merge && model_role_info(old.role)->is_out) return false;
    if (model_role_info(old.role)->each != AXIS_ONE) out->expert = prune_new_expert(p, old);
    return out->expert != LAYER_GONE;
}
