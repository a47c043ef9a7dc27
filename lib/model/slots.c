/* Roles and slots: which tensors a configuration has, their names, order and shapes. */
#include "lib/model/model.h"

#include <stdlib.h>

enum where { BEFORE, LAYER, AFTER };

static const struct role_info {
    const char *name; /* behind "layers.N." for those of a layer */
    enum where where;
    bool matrix;
} roles[ROLE_COUNT] = {
    [ROLE_EMBED] = {"embed.weight", BEFORE, true},  [ROLE_ATTN_NORM] = {"attn_norm.weight", LAYER, false},
    [ROLE_Q] = {"attn.q.weight", LAYER, true},      [ROLE_K] = {"attn.k.weight", LAYER, true},
    [ROLE_V] = {"attn.v.weight", LAYER, true},      [ROLE_Q_BIAS] = {"attn.q.bias", LAYER, false},
    [ROLE_K_BIAS] = {"attn.k.bias", LAYER, false},  [ROLE_V_BIAS] = {"attn.v.bias", LAYER, false},
    [ROLE_O] = {"attn.o.weight", LAYER, true},      [ROLE_FFN_NORM] = {"ffn_norm.weight", LAYER, false},
    [ROLE_GATE] = {"ffn.gate.weight", LAYER, true}, [ROLE_UP] = {"ffn.up.weight", LAYER, true},
    [ROLE_DOWN] = {"ffn.down.weight", LAYER, true}, [ROLE_NORM] = {"norm.weight", AFTER, false},
    [ROLE_HEAD] = {"head.weight", AFTER, true},
};

bool model_role_in_layer(enum model_role role) {
    return roles[role].where == LAYER;
}
bool model_role_is_matrix(enum model_role role) {
    return roles[role].matrix;
}

static bool has_role(const struct model_config *c, enum model_role role) {
    if (role == ROLE_Q_BIAS || role == ROLE_K_BIAS || role == ROLE_V_BIAS) return c->qkv_bias;
    return role != ROLE_HEAD || !c->tied;
}

char *model_slot_name(struct model_slot s, char *out) {
    if (roles[s.role].where == LAYER)
        snprintf(out, TENSOR_MAX_NAME + 1, "layers.%u.%s", s.layer, roles[s.role].name);
    else
        snprintf(out, TENSOR_MAX_NAME + 1, "%s", roles[s.role].name);
    return out;
}

int model_slot_parse(const char *name, struct model_slot *out, struct err *e) {
    const char *rest = name;
    uint64_t layer = 0;
    bool in_layer = !strncmp(name, "layers.", 7);
    if (in_layer) {
        char digits[8];
        const char *dot = strchr(name + 7, '.');
        size_t n = dot ? (size_t)(dot - (name + 7)) : 0;
        if (n == 0 || n >= sizeof digits) return err_set(e, ERR_DATA, "tensor '%s' has no role in a model", name);
        memcpy(digits, name + 7, n);
        digits[n] = 0;
        /* "07" would be a second spelling of layer 7. */
        if (!parse_u64(digits, &layer) || layer >= MODEL_MAX_LAYERS || (n > 1 && digits[0] == '0'))
            return err_set(e, ERR_DATA, "tensor '%s' has no role in a model", name);
        rest = dot + 1;
    }
    for (int r = 0; r < ROLE_COUNT; r++)
        if ((roles[r].where == LAYER) == in_layer && !strcmp(roles[r].name, rest)) {
            *out = (struct model_slot){(enum model_role)r, (uint32_t)layer};
            return 0;
        }
    return err_set(e, ERR_DATA, "tensor '%s' has no role in a model", name);
}

static size_t count_where(const struct model_config *c, enum where where) {
    size_t n = 0;
    for (int r = 0; r < ROLE_COUNT; r++) n += roles[r].where == where && has_role(c, (enum model_role)r);
    return n;
}

size_t model_slot_count(const struct model_config *c) {
    return count_where(c, BEFORE) + c->n_layers * count_where(c, LAYER) + count_where(c, AFTER);
}

struct model_slot model_slot_at(const struct model_config *c, size_t i) {
    size_t before = count_where(c, BEFORE), per_layer = count_where(c, LAYER);
    enum where where = i < before ? BEFORE : i < before + c->n_layers * per_layer ? LAYER : AFTER;
    size_t nth = where == BEFORE ? i : where == LAYER ? (i - before) % per_layer : i - before - c->n_layers * per_layer;
    uint32_t layer = where == LAYER ? (uint32_t)((i - before) / per_layer) : 0;
    int r = 0;
    for (;; r++)
        if (roles[r].where == where && has_role(c, (enum model_role)r) && nth-- == 0) break;
    return (struct model_slot){(enum model_role)r, layer};
}

long model_slot_index(const struct model_config *c, struct model_slot s) {
    if (!has_role(c, s.role) || (roles[s.role].where == LAYER ? s.layer >= c->n_layers : s.layer != 0)) return -1;
    size_t nth = 0;
    for (int r = 0; r < (int)s.role; r++)
        nth += roles[r].where == roles[s.role].where && has_role(c, (enum model_role)r);
    if (roles[s.role].where >= LAYER) nth += count_where(c, BEFORE);
    size_t per_layer = count_where(c, LAYER);
    if (roles[s.role].where == LAYER) nth += s.layer * per_layer;
    if (roles[s.role].where == AFTER) nth += c->n_layers * per_layer;
    return (long)nth;
}

unsigned model_slot_shape(const struct model_config *c, struct model_slot s, uint64_t dims[2]) {
    static const struct model_layer none;
    const struct model_layer *l = roles[s.role].where == LAYER ? &c->layers[s.layer] : &none;
    uint64_t q = (uint64_t)l->n_heads * c->head_dim, kv = (uint64_t)l->n_kv_heads * c->head_dim;
    dims[1] = c->hidden; /* the input of most matrices */
    switch (s.role) {
    case ROLE_EMBED:
    case ROLE_HEAD: dims[0] = c->vocab_size; break;
    case ROLE_Q:
    case ROLE_Q_BIAS: dims[0] = q; break;
    case ROLE_K:
    case ROLE_V:
    case ROLE_K_BIAS:
    case ROLE_V_BIAS: dims[0] = kv; break;
    case ROLE_O: dims[0] = c->hidden, dims[1] = q; break;
    case ROLE_GATE:
    case ROLE_UP: dims[0] = l->ffn; break;
    case ROLE_DOWN: dims[0] = c->hidden, dims[1] = l->ffn; break;
    default: dims[0] = c->hidden; break; /* norms */
    }
    return roles[s.role].matrix ? 2 : 1;
}

int model_slot_check(const struct model_config *c, struct model_slot s, const struct tensor_desc *d, struct err *e) {
    if (model_slot_index(c, s) < 0) return err_set(e, ERR_DATA, "tensor '%s' is not of this configuration", d->name);
    struct tensor_desc want = {.rank = 0};
    want.rank = model_slot_shape(c, s, want.dims);
    if (tensor_same_shape(&want, d)) return 0;
    char found[256], expected[256];
    return err_set(e, ERR_DATA, "tensor '%s' has shape %s, expected %s", d->name,
                   tensor_shape_text(d, found, sizeof found), tensor_shape_text(&want, expected, sizeof expected));
}
