/* Maximal update parametrization: which axes are widths, and what follows from how wide they are. */
#include <math.h>

#include "lib/model/model.h"

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

void model_mup_configure(struct model_config *c, const struct model_config *base) {
    float scale = base->attn_scale != 0 ? base->attn_scale : 1 / sqrtf((float)base->head_dim);
    if (c->head_dim != base->head_dim) c->attn_scale = scale * (float)base->head_dim / (float)c->head_dim;
    if (model_embed_dim(c) != model_embed_dim(base))
        c->logit_scale = model_factor(base->logit_scale) * (float)model_embed_dim(base) / (float)model_embed_dim(c);
}
