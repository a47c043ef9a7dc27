/* Maximal update parametrization: which axes are widths, and the factors that depend on them. */
#include <math.h>

#include "lib/arch/arch.h"

static const struct {
    enum model_axis axis;
    const char *key;
} widths[] = {{AXIS_HIDDEN, "hidden"}, {AXIS_EMBED, "embed"}, {AXIS_QUERY, "query"},
              {AXIS_KEY, "key"},       {AXIS_FFN, "ffn"},     {AXIS_HEAD_DIM, "head_dim"}};

void model_mup_of(const struct model_config *base, struct model_mup *out) {
    *out = (struct model_mup){{0}};
    for (size_t i = 0; i < COUNT_OF(widths); i++) out->size[widths[i].axis] = model_axis_size(base, widths[i].axis, 0);
}

bool model_mup_put(cJSON *meta, const struct model_mup *m) {
    cJSON *o = cJSON_AddObjectToObject(meta, "mup");
    bool ok = o != NULL;
    for (size_t i = 0; ok && i < COUNT_OF(widths); i++) ok = json_put_u64(o, widths[i].key, m->size[widths[i].axis]);
    return ok;
}

int model_mup_get(const cJSON *meta, struct model_mup *out, struct err *e) {
    const cJSON *o = cJSON_GetObjectItemCaseSensitive(meta, "mup");
    *out = (struct model_mup){{0}};
    if (!cJSON_IsObject(o))
        return err_set(e, ERR_DATA, "the model says nothing of the widths of a base (init --mup BASE)");
    for (size_t i = 0; i < COUNT_OF(widths); i++)
        if (json_get_u64(o, widths[i].key, 1, UINT32_MAX, &out->size[widths[i].axis], e))
            return err_prefix(e, "\"mup\"");
    return 0;
}

static bool is_width(enum model_axis axis) {
    for (size_t i = 0; i < COUNT_OF(widths); i++)
        if (widths[i].axis == axis) return true;
    return false;
}

bool model_mup_is_hidden(enum model_role role) {
    const struct model_role_info *r = model_role_info(role);
    return r->kind == KIND_MATRIX && is_width(r->rows) && is_width(r->cols);
}

double model_mup_width(const struct model_config *c, const struct model_mup *base, enum model_axis axis,
                       uint32_t layer) {
    return (double)model_axis_size(c, axis, layer) / (double)base->size[axis];
}

/* Norms of q's heads undo any scaling of q, so the factor must come after them. */
static bool scales_scores(const struct model_config *c, enum model_role role) {
    if (c->qk_norm != QK_NORM_NONE) return role == ROLE_Q_NORM || role == ROLE_Q_NORM_BIAS;
    return role == ROLE_Q || role == ROLE_Q_BIAS;
}

double model_mup_factor(const struct model_config *c, const struct model_mup *base, struct model_slot s) {
    if (scales_scores(c, s.role)) return sqrt(1 / model_mup_width(c, base, AXIS_HEAD_DIM, s.layer));
    if (s.role == ROLE_NORM || s.role == ROLE_NORM_BIAS) return 1 / model_mup_width(c, base, AXIS_EMBED, 0);
    return 1;
}

int model_mup_check(const struct model_config *c, struct err *e) {
    if (c->output == OUTPUT_LM && !c->no_final_norm) return 0;
    return err_set(e, ERR_USAGE, "muP needs logits of the next token and a norm before the head, which %s has not",
                   c->arch);
}
