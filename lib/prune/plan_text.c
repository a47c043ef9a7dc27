/*
 * A plan as text that people can edit: the layers that stay with their shapes, then the matrices to sparsify.
 *
 *     # layer  heads  kv-heads  ffn  expert-ffn  experts
 *     layer 0      9         3 1536           0  -
 *     hidden     384
 *     # tensor                       shape  sparsity
 *     layers.0.attn.q.weight       576x576  2:4
 *     layers.0.ffn.up.weight      1536x576  rank:128
 *
 * Numbers and names are those of the original model, shapes those of the pruned one (of the product, for low-rank
 * factors). A layer without a line is removed; a tensor without a line is unchanged. `hidden` appears only if the
 * residual stream narrows.
 */
#include <inttypes.h>

#include "lib/prune/prune_internal.h"

#define BLANKS    " \t\r"
#define MAX_LINE  65536
#define NO_COLUMN "-"

/* ---- writing ---- */

static int write_layer(const struct prune_plan *p, uint32_t layer, struct buf *out, struct err *e) {
    const struct model_layer *l = &p->to.layers[layer];
    int rc = buf_printf(out, e, "layer %-6u %6u %8u %8u %10u  ", p->old_layer[layer], l->n_heads, l->n_kv_heads, l->ffn,
                        l->expert_ffn);
    if (!rc && (!p->kept_experts || !l->experts)) rc = buf_printf(out, e, l->experts ? "all" : NO_COLUMN);
    for (uint32_t i = 0; !rc && p->kept_experts && i < l->experts; i++)
        rc = buf_printf(out, e, "%s%u", i ? "," : "", p->kept_experts[layer][i]);
    return rc ? rc : buf_printf(out, e, "\n");
}

/* is_factored: the shape of the product of its factors. */
static void shape_of(const struct prune_plan *p, struct model_slot now, bool is_factored, char out[48]) {
    const struct model_role_info *info = model_role_info(now.role);
    uint64_t dims[2] = {model_axis_size(&p->to, info->rows, now.layer), model_axis_size(&p->to, info->cols, now.layer)};
    if (!is_factored) model_slot_shape(&p->to, now, dims);
    snprintf(out, 48, "%" PRIu64 "x%" PRIu64, dims[0], dims[1]);
}

int prune_plan_write(const struct prune_plan *p, struct buf *out, struct err *e) {
    int rc = buf_printf(out, e, "# layer       heads kv-heads      ffn expert-ffn  experts\n");
    bool any = false;
    for (uint32_t i = 0; !rc && i < p->to.n_layers; i++) rc = write_layer(p, i, out, e);
    if (!rc && p->kept_hidden) rc = buf_printf(out, e, "hidden %u\n", p->to.hidden);
    for (size_t i = 0; !rc && i < p->n_slots; i++) {
        struct model_slot s = model_slot_at(p->from, i), now;
        char name[TENSOR_MAX_NAME + 1], shape[48], text[PRUNE_SPARSITY_TEXT];
        if (!prune_is_sparse(p->sparse[i]) || !prune_new_slot(p, s, &now)) continue;
        if (!any) rc = buf_printf(out, e, "%-32s %14s  %s\n", "# tensor", "shape", "sparsity");
        any = true;
        shape_of(p, now, p->sparse[i].rank != 0, shape);
        if (!rc)
            rc = buf_printf(out, e, "%-32s %14s  %s\n", model_slot_name(s, name), shape,
                            prune_sparsity_text(p->sparse[i], text));
    }
    if (rc) return rc;
    return buf_printf(out, e, "# %" PRIu64 " parameters of %" PRIu64 ", %u layers of %u\n", model_parameters(&p->to),
                      model_parameters(p->from), p->to.n_layers, p->from->n_layers);
}

/* ---- reading ---- */

static int take_number(const char *word, const char *what, uint32_t most, uint32_t *out, struct err *e) {
    uint64_t v;
    if (!word || !parse_u64(word, &v) || v > most)
        return err_set(e, ERR_DATA, "%s '%.40s': expected a number up to %u", what, word ? word : "", most);
    *out = (uint32_t)v;
    return 0;
}

/* Parses "0,2,5": experts of a layer, ascending. */
static int take_experts(struct prune_plan *p, uint32_t layer, char *text, struct err *e) {
    struct model_layer *l = &p->to.layers[layer];
    uint32_t n = l->experts, kept = 0;
    if (!n || !strcmp(text, "all"))
        return n || !strcmp(text, NO_COLUMN) ? 0 : err_set(e, ERR_DATA, "the layer has no experts");
    uint32_t *list = arena_array(&p->memory, n, sizeof *list, e);
    if (!list) return e->code;
    char *save, *item = strtok_r(text, ",", &save);
    for (; item; item = strtok_r(NULL, ",", &save)) {
        uint32_t expert = 0;
        if (take_number(item, "expert", n - 1, &expert, e)) return e->code;
        if (kept && expert <= list[kept - 1]) return err_set(e, ERR_DATA, "experts are not in ascending order");
        list[kept++] = expert;
    }
    if (!kept) return err_set(e, ERR_DATA, "no expert of the layer stays");
    p->kept_experts[layer] = list;
    l->experts = kept;
    if (p->to.experts_per_token > kept) p->to.experts_per_token = kept;
    return 0;
}

static int take_layer(struct prune_plan *p, char **save, struct err *e) {
    uint32_t old = 0, at = p->to.n_layers, heads = 0, kv_heads = 0, ffn = 0, expert_ffn = 0;
    if (take_number(strtok_r(NULL, BLANKS, save), "layer", p->from->n_layers - 1, &old, e)) return e->code;
    if (at && old <= p->old_layer[at - 1]) return err_set(e, ERR_DATA, "layers are not in ascending order");
    const struct model_layer *was = &p->from->layers[old];
    struct model_layer *l = &p->to.layers[at];
    if (take_number(strtok_r(NULL, BLANKS, save), "heads", was->n_heads, &heads, e) ||
        take_number(strtok_r(NULL, BLANKS, save), "kv-heads", was->n_kv_heads, &kv_heads, e) ||
        take_number(strtok_r(NULL, BLANKS, save), "ffn", was->ffn, &ffn, e) ||
        take_number(strtok_r(NULL, BLANKS, save), "expert-ffn", was->expert_ffn, &expert_ffn, e))
        return e->code;
    char *experts = strtok_r(NULL, BLANKS, save);
    if (!heads || !kv_heads || !ffn != !was->ffn || !expert_ffn != !was->expert_ffn || !experts)
        return err_set(
            e, ERR_DATA,
            "layer %u: expected heads, kv-heads, ffn, expert-ffn and experts, none of them 0 that is not now", old);
    if (heads % kv_heads || heads / kv_heads > was->n_heads / was->n_kv_heads)
        return err_set(e, ERR_DATA, "layer %u: %u heads for %u key/value heads: expected a multiple, up to %u of each",
                       old, heads, kv_heads, was->n_heads / was->n_kv_heads);
    *l = *was;
    l->n_heads = heads, l->n_kv_heads = kv_heads, l->ffn = ffn, l->expert_ffn = expert_ffn;
    p->new_layer[old] = at;
    p->old_layer[at] = old;
    p->kept_experts[at] = NULL;
    p->to.n_layers++;
    return take_experts(p, at, experts, e);
}

static int take_tensor(struct prune_plan *p, const char *name, char **save, struct err *e) {
    struct model_slot s, now;
    char shape[48];
    const char *said = strtok_r(NULL, BLANKS, save), *text = said ? strtok_r(NULL, BLANKS, save) : NULL;
    if (!text) return err_set(e, ERR_DATA, "'%.200s' without a shape and a sparsity", name);
    if (model_slot_parse(name, &s, e) || model_slot_index(p->from, s) < 0)
        return err_set(e, ERR_DATA, "this model has no tensor '%.200s': the plan is for another model", name);
    if (!model_role_is_matrix(s.role)) return err_set(e, ERR_DATA, "'%s' is not a matrix", name);
    if (!prune_new_slot(p, s, &now)) return err_set(e, ERR_DATA, "'%s' is of a layer or an expert that goes", name);
    shape_of(p, now, false, shape);
    if (strcmp(said, shape) != 0)
        return err_set(e, ERR_DATA, "'%s' is %.40s here and %s in this model: the plan is for another model", name,
                       said, shape);
    struct prune_sparsity *to = &p->sparse[model_slot_index(p->from, s)];
    if (prune_is_sparse(*to)) return err_set(e, ERR_DATA, "'%s' is given twice", name);
    return prune_sparsity_parse(text, to, e) ? (e->code = ERR_DATA) : 0;
}

static int take_hidden(struct prune_plan *p, char **save, struct err *e) {
    uint32_t n = 0;
    if (p->kept_hidden) return err_set(e, ERR_DATA, "hidden is given twice");
    if (take_number(strtok_r(NULL, BLANKS, save), "hidden", p->from->hidden, &n, e)) return e->code;
    return n ? prune_plan_hidden(p, n, e) : err_set(e, ERR_DATA, "hidden '0': no channel of the stream would be left");
}

static int take_line(struct prune_plan *p, char *line, bool layers, struct err *e) {
    char *save;
    const char *word = strtok_r(line, BLANKS, &save);
    bool is_layer = word && !strcmp(word, "layer"), is_hidden = word && !strcmp(word, "hidden");
    if (!word || (is_layer || is_hidden) != layers) return 0;
    int rc = is_hidden ? take_hidden(p, &save, e) : layers ? take_layer(p, &save, e) : take_tensor(p, word, &save, e);
    const char *more = rc ? NULL : strtok_r(NULL, BLANKS, &save);
    return more ? err_set(e, ERR_DATA, "'%.40s' where the line should end", more) : rc;
}

/* Reads the lines of layers and the stream, or those of tensors. */
static int take_lines(struct prune_plan *p, char *line, bool layers, struct err *e) {
    unsigned number = 1;
    for (const char *at = p->o->plan, *end; *at; at = *end ? end + 1 : end, number++) {
        end = at + strcspn(at, "\n");
        size_t n = strcspn(at, "#\n");
        int rc = n < MAX_LINE ? 0 : err_set(e, ERR_DATA, "longer than %d bytes", MAX_LINE - 1);
        if (!rc) {
            memcpy(line, at, n);
            line[n] = 0;
            rc = take_line(p, line, layers, e);
        }
        if (rc) return err_prefix(e, "%s: line %u", p->o->plan_name, number);
    }
    return 0;
}

/* Makes kept_experts complete: a list for every layer with experts, or NULL if none is pruned. */
static int list_experts(struct prune_plan *p, struct err *e) {
    bool any = false;
    for (uint32_t i = 0; i < p->to.n_layers; i++) any |= p->kept_experts[i] != NULL;
    for (uint32_t i = 0; any && i < p->to.n_layers; i++) {
        uint32_t n = p->to.layers[i].experts;
        if (!n || p->kept_experts[i]) continue;
        p->kept_experts[i] = arena_array(&p->memory, n, sizeof **p->kept_experts, e);
        if (!p->kept_experts[i]) return e->code;
        for (uint32_t k = 0; k < n; k++) p->kept_experts[i][k] = k;
    }
    if (!any) p->kept_experts = NULL;
    return 0;
}

int prune_plan_read(struct prune_plan *p, struct err *e) {
    uint32_t n = p->from->n_layers;
    char *line = arena_array(&p->memory, MAX_LINE, 1, e);
    p->new_layer = line ? arena_array(&p->memory, n, sizeof *p->new_layer, e) : NULL;
    p->old_layer = p->new_layer ? arena_array(&p->memory, n, sizeof *p->old_layer, e) : NULL;
    p->kept_experts = p->old_layer ? arena_array(&p->memory, n, sizeof *p->kept_experts, e) : NULL;
    p->n_slots = model_slot_count(p->from);
    p->sparse = p->kept_experts ? arena_array(&p->memory, p->n_slots, sizeof *p->sparse, e) : NULL;
    if (!p->sparse) return e->code;
    for (uint32_t i = 0; i < n; i++) p->new_layer[i] = LAYER_GONE;
    p->to.n_layers = 0;
    if (take_lines(p, line, true, e)) return e->code;
    if (!p->to.n_layers) return err_set(e, ERR_DATA, "%s: no layer stays: is it a plan?", p->o->plan_name);
    return list_experts(p, e) ? e->code : take_lines(p, line, false, e);
}
