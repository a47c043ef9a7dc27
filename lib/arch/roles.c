/* The table of roles: which tensors a configuration has, their names, order, axes and shapes. */
#include "lib/arch/arch.h"

#include <stdlib.h>

/* ---- when a role exists ------------------------------------------------------------------------------------------ */

static bool always(const struct model_config *c) {
    (void)c;
    return true;
}
static bool is_lstm(const struct model_config *c) {
    return c->layer_kind == LAYER_LSTM;
}
static bool is_transformer(const struct model_config *c) {
    return c->layer_kind == LAYER_TRANSFORMER;
}
static bool has_embed_projection(const struct model_config *c) {
    return c->embed_dim != 0 && c->embed_dim != c->hidden && !is_lstm(c);
}
static bool has_position_table(const struct model_config *c) {
    return c->positions == POSITIONS_LEARNED;
}
static bool has_types(const struct model_config *c) {
    return c->token_types != 0;
}
static bool has_embed_norm(const struct model_config *c) {
    return c->embed_norm;
}
static bool has_pre_norm(const struct model_config *c) {
    return is_transformer(c) && (c->norm_place == NORM_PRE || c->norm_place == NORM_SANDWICH);
}
static bool has_ffn_norm(const struct model_config *c) {
    return has_pre_norm(c) && !c->shared_norm;
}
static bool has_post_norm(const struct model_config *c) {
    return c->norm_place != NORM_PRE;
}
static bool has_final_norm(const struct model_config *c) {
    return !c->no_final_norm;
}
static bool has_qkv_bias(const struct model_config *c) {
    return c->qkv_bias;
}
static bool has_o_bias(const struct model_config *c) {
    return c->o_bias;
}
static bool has_qk_norm(const struct model_config *c) {
    return c->qk_norm != QK_NORM_NONE;
}
static bool has_qk_norm_bias(const struct model_config *c) {
    return c->qk_norm == QK_NORM_LAYER;
}
static bool has_gate(const struct model_config *c) {
    return is_transformer(c) && c->ffn_kind == FFN_GATED;
}
static bool has_ffn_bias(const struct model_config *c) {
    return c->ffn_bias;
}
static bool has_experts(const struct model_config *c) {
    return c->experts_per_token != 0;
}
static bool has_expert_gate(const struct model_config *c) {
    return has_experts(c) && has_gate(c);
}
static bool has_shared_gate(const struct model_config *c) {
    return has_experts(c) && c->shared_gate;
}
static bool has_pooler(const struct model_config *c) {
    return c->pooler;
}
static bool has_transform(const struct model_config *c) {
    return c->output == OUTPUT_MASKED_LM;
}
static bool predicts_tokens(const struct model_config *c) {
    return c->output == OUTPUT_LM || c->output == OUTPUT_MASKED_LM;
}
static bool has_head(const struct model_config *c) {
    return predicts_tokens(c) && !c->tied;
}
static bool has_head_bias(const struct model_config *c) {
    return predicts_tokens(c) && c->head_bias;
}
static bool has_classifier(const struct model_config *c) {
    return c->classes != 0;
}

/* A norm's bias exists if the norm does and norms have biases. */
#define BIAS_OF(norm)                                                                                                  \
    static bool norm##_bias(const struct model_config *c) {                                                            \
        return c->norm_bias && norm(c);                                                                                \
    }
BIAS_OF(has_embed_norm)
BIAS_OF(has_pre_norm)
BIAS_OF(has_ffn_norm)
BIAS_OF(has_post_norm)
BIAS_OF(has_final_norm)
BIAS_OF(has_transform)

/* ---- the table --------------------------------------------------------------------------------------------------- */

#define OUTSIDE                     .in_layer = false
#define LAYER                       .in_layer = true
#define MATRIX(rows_, cols_, point) .kind = KIND_MATRIX, .rows = rows_, .cols = cols_, .input = point
#define TABLE(rows_)                .kind = KIND_TABLE, .rows = rows_, .cols = AXIS_HIDDEN, .input = POINT_COUNT
#define VECTOR(kind_, rows_)        .kind = kind_, .rows = rows_, .input = POINT_COUNT
#define GAIN(rows_)                 VECTOR(KIND_GAIN, rows_)
#define BIAS(rows_)                 VECTOR(KIND_BIAS, rows_)
#define LSTM                        .exists = is_lstm
#define DENSE                       .part = PART_DENSE
#define FACTORS(out_, which)        .out = out_, .factored = which
#define SECOND(rows_, which)                                                                                           \
    .kind = KIND_MATRIX, .rows = rows_, .cols = AXIS_RANK, .input = POINT_COUNT, .is_out = true, .factored = which
#define EACH_EXPERT .part = PART_EXPERTS, .each = AXIS_EXPERT

static const struct model_role_info roles[ROLE_COUNT] = {
    [ROLE_EMBED] = {"embed.weight", OUTSIDE, MATRIX(AXIS_VOCAB, AXIS_EMBED, POINT_COUNT), .exists = always},
    [ROLE_EMBED_PROJECTION] = {"embed_projection.weight", OUTSIDE, MATRIX(AXIS_HIDDEN, AXIS_EMBED, POINT_COUNT),
                               .exists = has_embed_projection},
    [ROLE_POSITION_EMBED] = {"position_embed.weight", OUTSIDE, TABLE(AXIS_POSITION), .exists = has_position_table},
    [ROLE_TYPE_EMBED] = {"type_embed.weight", OUTSIDE, TABLE(AXIS_TYPE), .exists = has_types},
    [ROLE_EMBED_NORM] = {"embed_norm.weight", OUTSIDE, GAIN(AXIS_HIDDEN), .exists = has_embed_norm},
    [ROLE_EMBED_NORM_BIAS] = {"embed_norm.bias", OUTSIDE, BIAS(AXIS_HIDDEN), .exists = has_embed_norm_bias},

    [ROLE_LSTM_INPUT] = {"lstm.input.weight", LAYER, MATRIX(AXIS_GATES, AXIS_INPUT, POINT_LSTM_IN), LSTM},
    [ROLE_LSTM_STATE] = {"lstm.state.weight", LAYER, MATRIX(AXIS_GATES, AXIS_UNITS, POINT_COUNT), LSTM},
    [ROLE_LSTM_INPUT_BIAS] = {"lstm.input.bias", LAYER, BIAS(AXIS_GATES), LSTM},
    [ROLE_LSTM_STATE_BIAS] = {"lstm.state.bias", LAYER, BIAS(AXIS_GATES), LSTM},
    [ROLE_LSTM_REVERSE_INPUT] = {"lstm_reverse.input.weight", LAYER, MATRIX(AXIS_GATES, AXIS_INPUT, POINT_LSTM_IN),
                                 LSTM},
    [ROLE_LSTM_REVERSE_STATE] = {"lstm_reverse.state.weight", LAYER, MATRIX(AXIS_GATES, AXIS_UNITS, POINT_COUNT), LSTM},
    [ROLE_LSTM_REVERSE_INPUT_BIAS] = {"lstm_reverse.input.bias", LAYER, BIAS(AXIS_GATES), LSTM},
    [ROLE_LSTM_REVERSE_STATE_BIAS] = {"lstm_reverse.state.bias", LAYER, BIAS(AXIS_GATES), LSTM},

    [ROLE_ATTN_NORM] = {"attn_norm.weight", LAYER, GAIN(AXIS_HIDDEN), .exists = has_pre_norm},
    [ROLE_ATTN_NORM_BIAS] = {"attn_norm.bias", LAYER, BIAS(AXIS_HIDDEN), .exists = has_pre_norm_bias},
    [ROLE_Q] = {"attn.q.weight", LAYER, MATRIX(AXIS_QUERY, AXIS_HIDDEN, POINT_ATTN_IN), FACTORS(ROLE_Q_OUT, FACTOR_Q),
                .exists = is_transformer},
    [ROLE_K] = {"attn.k.weight", LAYER, MATRIX(AXIS_KEY, AXIS_HIDDEN, POINT_ATTN_IN), FACTORS(ROLE_K_OUT, FACTOR_K),
                .exists = is_transformer},
    [ROLE_V] = {"attn.v.weight", LAYER, MATRIX(AXIS_KEY, AXIS_HIDDEN, POINT_ATTN_IN), FACTORS(ROLE_V_OUT, FACTOR_V),
                .exists = is_transformer},
    [ROLE_Q_BIAS] = {"attn.q.bias", LAYER, BIAS(AXIS_QUERY), .exists = has_qkv_bias},
    [ROLE_K_BIAS] = {"attn.k.bias", LAYER, BIAS(AXIS_KEY), .exists = has_qkv_bias},
    [ROLE_V_BIAS] = {"attn.v.bias", LAYER, BIAS(AXIS_KEY), .exists = has_qkv_bias},
    [ROLE_Q_OUT] = {"attn.q.out.weight", LAYER, SECOND(AXIS_QUERY, FACTOR_Q), .exists = is_transformer},
    [ROLE_K_OUT] = {"attn.k.out.weight", LAYER, SECOND(AXIS_KEY, FACTOR_K), .exists = is_transformer},
    [ROLE_V_OUT] = {"attn.v.out.weight", LAYER, SECOND(AXIS_KEY, FACTOR_V), .exists = is_transformer},
    [ROLE_Q_NORM] = {"attn.q_norm.weight", LAYER, GAIN(AXIS_Q_NORM), .exists = has_qk_norm},
    [ROLE_Q_NORM_BIAS] = {"attn.q_norm.bias", LAYER, BIAS(AXIS_Q_NORM), .exists = has_qk_norm_bias},
    [ROLE_K_NORM] = {"attn.k_norm.weight", LAYER, GAIN(AXIS_K_NORM), .exists = has_qk_norm},
    [ROLE_K_NORM_BIAS] = {"attn.k_norm.bias", LAYER, BIAS(AXIS_K_NORM), .exists = has_qk_norm_bias},
    [ROLE_O] = {"attn.o.weight", LAYER, MATRIX(AXIS_HIDDEN, AXIS_QUERY, POINT_O_IN), FACTORS(ROLE_O_OUT, FACTOR_O),
                .to_residual = true, .exists = is_transformer},
    [ROLE_O_BIAS] = {"attn.o.bias", LAYER, BIAS(AXIS_HIDDEN), .exists = has_o_bias},
    [ROLE_O_OUT] = {"attn.o.out.weight", LAYER, SECOND(AXIS_HIDDEN, FACTOR_O), .to_residual = true,
                    .exists = is_transformer},
    [ROLE_ATTN_POST_NORM] = {"attn_post_norm.weight", LAYER, GAIN(AXIS_HIDDEN), .exists = has_post_norm},
    [ROLE_ATTN_POST_NORM_BIAS] = {"attn_post_norm.bias", LAYER, BIAS(AXIS_HIDDEN), .exists = has_post_norm_bias},
    [ROLE_FFN_NORM] = {"ffn_norm.weight", LAYER, GAIN(AXIS_HIDDEN), .exists = has_ffn_norm},
    [ROLE_FFN_NORM_BIAS] = {"ffn_norm.bias", LAYER, BIAS(AXIS_HIDDEN), .exists = has_ffn_norm_bias},
    [ROLE_GATE] = {"ffn.gate.weight", LAYER, DENSE, MATRIX(AXIS_FFN, AXIS_HIDDEN, POINT_FFN_IN),
                   FACTORS(ROLE_GATE_OUT, FACTOR_GATE), .exists = has_gate},
    [ROLE_UP] = {"ffn.up.weight", LAYER, DENSE, MATRIX(AXIS_FFN, AXIS_HIDDEN, POINT_FFN_IN),
                 FACTORS(ROLE_UP_OUT, FACTOR_UP), .exists = is_transformer},
    [ROLE_UP_BIAS] = {"ffn.up.bias", LAYER, DENSE, BIAS(AXIS_FFN), .exists = has_ffn_bias},
    [ROLE_GATE_OUT] = {"ffn.gate.out.weight", LAYER, DENSE, SECOND(AXIS_FFN, FACTOR_GATE), .exists = has_gate},
    [ROLE_UP_OUT] = {"ffn.up.out.weight", LAYER, DENSE, SECOND(AXIS_FFN, FACTOR_UP), .exists = is_transformer},
    [ROLE_DOWN] = {"ffn.down.weight", LAYER, DENSE, MATRIX(AXIS_HIDDEN, AXIS_FFN, POINT_DOWN_IN),
                   FACTORS(ROLE_DOWN_OUT, FACTOR_DOWN), .to_residual = true, .exists = always},
    [ROLE_DOWN_BIAS] = {"ffn.down.bias", LAYER, DENSE, BIAS(AXIS_HIDDEN), .exists = has_ffn_bias},
    [ROLE_DOWN_OUT] = {"ffn.down.out.weight", LAYER, DENSE, SECOND(AXIS_HIDDEN, FACTOR_DOWN), .to_residual = true,
                       .exists = always},
    [ROLE_SHARED_GATE] = {"shared_gate.weight", LAYER, .part = PART_BOTH, .kind = KIND_ROUTER, .rows = AXIS_HIDDEN,
                          .input = POINT_FFN_IN, .exists = has_shared_gate},
    [ROLE_ROUTER] = {"router.weight", LAYER, .part = PART_EXPERTS, .kind = KIND_ROUTER, .rows = AXIS_EXPERT,
                     .cols = AXIS_HIDDEN, .input = POINT_FFN_IN, .exists = has_experts},
    [ROLE_EXPERT_GATE] = {"experts.#.gate.weight", LAYER, EACH_EXPERT,
                          MATRIX(AXIS_EXPERT_FFN, AXIS_HIDDEN, POINT_EXPERT_IN), .exists = has_expert_gate},
    [ROLE_EXPERT_UP] = {"experts.#.up.weight", LAYER, EACH_EXPERT,
                        MATRIX(AXIS_EXPERT_FFN, AXIS_HIDDEN, POINT_EXPERT_IN), .exists = has_experts},
    [ROLE_EXPERT_DOWN] = {"experts.#.down.weight", LAYER, EACH_EXPERT,
                          MATRIX(AXIS_HIDDEN, AXIS_EXPERT_FFN, POINT_EXPERT_DOWN_IN), .to_residual = true,
                          .exists = has_experts},
    [ROLE_FFN_POST_NORM] = {"ffn_post_norm.weight", LAYER, GAIN(AXIS_HIDDEN), .exists = has_post_norm},
    [ROLE_FFN_POST_NORM_BIAS] = {"ffn_post_norm.bias", LAYER, BIAS(AXIS_HIDDEN), .exists = has_post_norm_bias},

    [ROLE_NORM] = {"norm.weight", OUTSIDE, GAIN(AXIS_HIDDEN), .exists = has_final_norm},
    [ROLE_NORM_BIAS] = {"norm.bias", OUTSIDE, BIAS(AXIS_HIDDEN), .exists = has_final_norm_bias},
    [ROLE_HEAD_PROJECTION] = {"head_projection.weight", OUTSIDE, MATRIX(AXIS_EMBED, AXIS_HIDDEN, POINT_COUNT),
                              .exists = has_embed_projection},
    [ROLE_POOLER] = {"pooler.weight", OUTSIDE, MATRIX(AXIS_HIDDEN, AXIS_HIDDEN, POINT_COUNT), .exists = has_pooler},
    [ROLE_POOLER_BIAS] = {"pooler.bias", OUTSIDE, BIAS(AXIS_HIDDEN), .exists = has_pooler},
    [ROLE_TRANSFORM] = {"transform.weight", OUTSIDE, MATRIX(AXIS_HIDDEN, AXIS_HIDDEN, POINT_COUNT),
                        .exists = has_transform},
    [ROLE_TRANSFORM_BIAS] = {"transform.bias", OUTSIDE, BIAS(AXIS_HIDDEN), .exists = has_transform},
    [ROLE_TRANSFORM_NORM] = {"transform_norm.weight", OUTSIDE, GAIN(AXIS_HIDDEN), .exists = has_transform},
    [ROLE_TRANSFORM_NORM_BIAS] = {"transform_norm.bias", OUTSIDE, BIAS(AXIS_HIDDEN), .exists = has_transform_bias},
    [ROLE_HEAD] = {"head.weight", OUTSIDE, MATRIX(AXIS_VOCAB, AXIS_EMBED, POINT_HEAD_IN), .exists = has_head},
    [ROLE_HEAD_BIAS] = {"head.bias", OUTSIDE, BIAS(AXIS_VOCAB), .exists = has_head_bias},
    [ROLE_CLASSIFIER] = {"classifier.weight", OUTSIDE, MATRIX(AXIS_CLASSES, AXIS_HIDDEN, POINT_COUNT),
                         .exists = has_classifier},
    [ROLE_CLASSIFIER_BIAS] = {"classifier.bias", OUTSIDE, BIAS(AXIS_CLASSES), .exists = has_classifier},
};

const struct model_role_info *model_role_info(enum model_role role) {
    return &roles[role];
}
bool model_role_in_layer(enum model_role role) {
    return roles[role].in_layer;
}
bool model_role_is_matrix(enum model_role role) {
    return roles[role].kind == KIND_MATRIX;
}
bool model_has_role(const struct model_config *c, enum model_role role) {
    return roles[role].exists(c);
}
enum model_role model_head_role(const struct model_config *c) {
    return c->classes ? ROLE_CLASSIFIER : c->tied ? ROLE_EMBED : ROLE_HEAD;
}

/* ---- factors ----------------------------------------------------------------------------------------------------- */

uint32_t model_rank(const struct model_config *c, enum model_role role, uint32_t layer) {
    const struct model_role_info *r = &roles[role];
    return r->out || r->is_out ? c->layers[layer].rank[r->factored] : 0;
}

bool model_is_factored(const struct model_config *c) {
    for (uint32_t i = 0; i < c->n_layers; i++)
        for (int f = 0; f < FACTOR_COUNT; f++)
            if (c->layers[i].rank[f]) return true;
    return false;
}

/* ---- axes -------------------------------------------------------------------------------------------------------- */

uint32_t model_embed_dim(const struct model_config *c) {
    return c->embed_dim ? c->embed_dim : c->hidden;
}

uint64_t model_axis_size(const struct model_config *c, enum model_axis axis, uint32_t layer) {
    const struct model_layer *l = &c->layers[layer];
    bool all = c->qk_norm == QK_NORM_ALL;
    switch (axis) {
    case AXIS_ONE: return 1;
    case AXIS_VOCAB: return c->vocab_size;
    case AXIS_EMBED: return model_embed_dim(c);
    case AXIS_HIDDEN: return c->hidden;
    case AXIS_INPUT: return is_lstm(c) && layer == 0 ? model_embed_dim(c) : c->hidden;
    case AXIS_GATES: return is_lstm(c) ? 4ull * (c->hidden / 2) : 0;
    case AXIS_UNITS: return is_lstm(c) ? c->hidden / 2 : 0;
    case AXIS_QUERY: return (uint64_t)l->n_heads * c->head_dim;
    case AXIS_KEY: return (uint64_t)l->n_kv_heads * c->head_dim;
    case AXIS_HEAD_DIM: return c->head_dim;
    case AXIS_Q_NORM: return model_axis_size(c, all ? AXIS_QUERY : AXIS_HEAD_DIM, layer);
    case AXIS_K_NORM: return model_axis_size(c, all ? AXIS_KEY : AXIS_HEAD_DIM, layer);
    case AXIS_FFN: return l->ffn;
    case AXIS_EXPERT: return l->experts;
    case AXIS_EXPERT_FFN: return l->expert_ffn;
    case AXIS_POSITION: return (uint64_t)c->context + c->position_offset;
    case AXIS_TYPE: return c->token_types;
    case AXIS_CLASSES: return c->classes;
    case AXIS_RANK: /* depends on the matrix: see model_rank */
    case AXIS_COUNT: break;
    }
    return 0;
}

enum model_axis model_point_axis(enum model_point p) {
    switch (p) {
    case POINT_O_IN:
    case POINT_Q: return AXIS_QUERY;
    case POINT_K:
    case POINT_V: return AXIS_KEY;
    case POINT_DOWN_IN: return AXIS_FFN;
    case POINT_ROUTED: return AXIS_EXPERT;
    case POINT_EXPERT_DOWN_IN: return AXIS_EXPERT_FFN;
    case POINT_HEAD_IN: return AXIS_EMBED;
    case POINT_EMBED:
    case POINT_LSTM_IN: return AXIS_INPUT;
    default: return AXIS_HIDDEN;
    }
}

uint64_t model_point_cols(const struct model_config *c, enum model_point p, uint32_t layer) {
    bool here = p == POINT_EMBED || p == POINT_LAYER || p == POINT_HEAD_IN || is_lstm(c) == (p == POINT_LSTM_IN);
    return here ? model_axis_size(c, model_point_axis(p), layer) : 0;
}

/* ---- names ------------------------------------------------------------------------------------------------------- */

/* Parses a number below `limit` at the start of s and returns what follows it, or NULL. Leading zeros are refused: one
 * spelling each. */
static const char *parse_number(const char *s, uint32_t limit, uint32_t *out) {
    char digits[8];
    uint64_t v;
    size_t n = strspn(s, "0123456789");
    if (n == 0 || n >= sizeof digits || (n > 1 && s[0] == '0')) return NULL;
    memcpy(digits, s, n);
    digits[n] = 0;
    if (!parse_u64(digits, &v) || v >= limit) return NULL;
    *out = (uint32_t)v;
    return s + n;
}

char *model_slot_name(struct model_slot s, char *out) {
    const char *name = roles[s.role].name, *hash = strchr(name, '#');
    size_t n = 0;
    if (roles[s.role].in_layer) n = (size_t)snprintf(out, TENSOR_MAX_NAME + 1, "layers.%u.", s.layer);
    if (hash)
        snprintf(out + n, TENSOR_MAX_NAME + 1 - n, "%.*s%u%s", (int)(hash - name), name, s.expert, hash + 1);
    else
        snprintf(out + n, TENSOR_MAX_NAME + 1 - n, "%s", name);
    return out;
}

static bool is_name_of(const struct model_role_info *r, const char *text, uint32_t *expert) {
    const char *hash = strchr(r->name, '#');
    *expert = 0;
    if (!hash) return !strcmp(r->name, text);
    size_t n = (size_t)(hash - r->name);
    const char *rest = strncmp(r->name, text, n) ? NULL : parse_number(text + n, MODEL_MAX_EXPERTS, expert);
    return rest && !strcmp(rest, hash + 1);
}

int model_slot_parse(const char *name, struct model_slot *out, struct err *e) {
    const char *rest = name;
    uint32_t layer = 0, expert;
    bool in_layer = !strncmp(name, "layers.", 7);
    if (in_layer) {
        rest = parse_number(name + 7, MODEL_MAX_LAYERS, &layer);
        if (!rest || *rest++ != '.') return err_set(e, ERR_DATA, "tensor '%s' has no role in a model", name);
    }
    for (int r = 0; r < ROLE_COUNT; r++)
        if (roles[r].in_layer == in_layer && is_name_of(&roles[r], rest, &expert)) {
            *out = (struct model_slot){(enum model_role)r, layer, expert};
            return 0;
        }
    return err_set(e, ERR_DATA, "tensor '%s' has no role in a model", name);
}

/* ---- stream order: before the layers, the layers, after the layers ----------------------------------------------- */
/*
 * Roles that every expert has are consecutive in the table. In a stream the tensors of one expert are consecutive,
 * expert by expert.
 */

enum where { BEFORE, WITHIN, AFTER };

static enum where where_of(enum model_role role) {
    return roles[role].in_layer ? WITHIN : role < ROLE_LSTM_INPUT ? BEFORE : AFTER;
}

static bool has_part(const struct model_layer *l, enum model_part part) {
    switch (part) {
    case PART_ANY: return true;
    case PART_DENSE: return l->ffn != 0;
    case PART_EXPERTS: return l->experts != 0;
    case PART_BOTH: return l->ffn != 0 && l->experts != 0;
    }
    return false;
}

/* Numbers of tensors: outside layers, per layer by the part they belong to, and per expert. */
struct counts {
    size_t before, after, part[PART_BOTH + 1], each;
};

static struct counts count_roles(const struct model_config *c) {
    struct counts n = {0};
    for (int r = 0; r < ROLE_COUNT; r++) {
        if (!roles[r].exists(c) || roles[r].is_out) continue; /* second factors are counted layer by layer */
        enum where where = where_of((enum model_role)r);
        if (where == WITHIN)
            *(roles[r].each == AXIS_ONE ? &n.part[roles[r].part] : &n.each) += 1;
        else
            *(where == BEFORE ? &n.before : &n.after) += 1;
    }
    return n;
}

/* model_config_check ensures that only existing matrices have a rank. */
static size_t count_layer(const struct counts *n, const struct model_layer *l) {
    size_t sum = n->each * l->experts;
    for (int p = 0; p <= PART_BOTH; p++)
        if (has_part(l, (enum model_part)p)) sum += n->part[p];
    for (int f = 0; f < FACTOR_COUNT; f++) sum += l->rank[f] != 0;
    return sum;
}

static size_t count_to_layer(const struct counts *n, const struct model_config *c, uint32_t layer) {
    size_t sum = n->before;
    for (uint32_t i = 0; i < layer; i++) sum += count_layer(n, &c->layers[i]);
    return sum;
}

size_t model_expert_roles(const struct model_config *c) {
    return count_roles(c).each;
}

size_t model_slot_of_layer(const struct model_config *c, uint32_t layer) {
    struct counts n = count_roles(c);
    return count_to_layer(&n, c, layer);
}

size_t model_slot_count(const struct model_config *c) {
    struct counts n = count_roles(c);
    return count_to_layer(&n, c, c->n_layers) + n.after;
}

static bool is_here(const struct model_config *c, enum where where, uint32_t layer, int role) {
    return where_of((enum model_role)role) == where && roles[role].exists(c) &&
           (where != WITHIN || has_part(&c->layers[layer], roles[role].part)) &&
           (!roles[role].is_out || c->layers[layer].rank[roles[role].factored]);
}

/* The nth tensor before the layers, of a layer, or after the layers. */
static struct model_slot nth_slot(const struct model_config *c, const struct counts *n, enum where where,
                                  uint32_t layer, size_t nth) {
    struct model_slot s = {.layer = layer};
    bool experts_done = false;
    for (int r = 0; r < ROLE_COUNT; r++) {
        if (!is_here(c, where, layer, r)) continue;
        s.role = (enum model_role)r;
        if (roles[r].each == AXIS_ONE) {
            if (nth-- == 0) return s;
            continue;
        }
        size_t all = n->each * c->layers[layer].experts;
        if (!experts_done && nth >= all) {
            nth -= all;
            experts_done = true;
        }
        if (experts_done) continue;
        s.expert = (uint32_t)(nth / n->each);
        for (nth %= n->each; nth; nth--) do
                r++;
            while (!is_here(c, where, layer, r));
        s.role = (enum model_role)r;
        return s;
    }
    return s;
}

struct model_slot model_slot_at(const struct model_config *c, size_t i) {
    struct counts n = count_roles(c);
    if (i < n.before) return nth_slot(c, &n, BEFORE, 0, i);
    i -= n.before;
    for (uint32_t layer = 0; layer < c->n_layers; layer++) {
        size_t here = count_layer(&n, &c->layers[layer]);
        if (i < here) return nth_slot(c, &n, WITHIN, layer, i);
        i -= here;
    }
    return nth_slot(c, &n, AFTER, 0, i);
}

long model_slot_index(const struct model_config *c, struct model_slot s) {
    enum where where = where_of(s.role);
    if (where == WITHIN ? s.layer >= c->n_layers : s.layer != 0) return -1;
    if (!is_here(c, where, s.layer, s.role)) return -1;
    bool each = roles[s.role].each != AXIS_ONE;
    if (s.expert >= (each ? c->layers[s.layer].experts : 1)) return -1;
    struct counts n = count_roles(c);
    size_t at = where == BEFORE ? 0 : count_to_layer(&n, c, where == WITHIN ? s.layer : c->n_layers);
    for (int r = 0; r < (int)s.role; r++) {
        if (!is_here(c, where, s.layer, r)) continue;
        at += roles[r].each == AXIS_ONE || each ? 1 : c->layers[s.layer].experts;
    }
    return (long)(at + s.expert * n.each);
}

static bool is_last(const struct model_config *c, struct model_slot s, bool each) {
    for (int r = (int)s.role + 1; r < ROLE_COUNT; r++)
        if (is_here(c, WITHIN, s.layer, r) && !(each && roles[r].each == AXIS_ONE)) return false;
    return true;
}

bool model_slot_ends_layer(const struct model_config *c, struct model_slot s) {
    if (!roles[s.role].in_layer || !is_last(c, s, false)) return false;
    return roles[s.role].each == AXIS_ONE || s.expert + 1 == c->layers[s.layer].experts;
}

bool model_slot_ends_expert(const struct model_config *c, struct model_slot s) {
    return roles[s.role].each != AXIS_ONE && is_last(c, s, true);
}

unsigned model_slot_shape(const struct model_config *c, struct model_slot s, uint64_t dims[2]) {
    const struct model_role_info *r = &roles[s.role];
    dims[0] = model_axis_size(c, r->rows, s.layer);
    dims[1] = model_axis_size(c, r->cols, s.layer);
    uint32_t rank = model_rank(c, s.role, s.layer);
    if (rank) dims[r->is_out] = rank;
    return r->cols == AXIS_ONE ? 1 : 2;
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
