/* Chooses the type of each matrix: mixture, explicit settings, then fallback for the row length. */
#include "lib/quant/quant_internal.h"

enum dtype quant_fallback(enum dtype wanted, uint64_t row_elems) {
    const struct dtype_info *t = dtype_info(wanted);
    if (row_elems % t->block_elems == 0) return wanted;
    bool fits = t->fallback && row_elems % dtype_info(t->fallback)->block_elems == 0;
    return fits ? (enum dtype)t->fallback : DT_F16;
}

/* ---- from options ---- */

static void name_one(struct quant_choice *choice, unsigned dtype, const char *option) {
    choice->wanted = (enum dtype)dtype;
    choice->named = true;
    snprintf(choice->why, sizeof choice->why, "--%s", option);
}

/* As in llama.cpp, these win over the mixture and over --tensor-type. */
static int name_ends(struct quant_plan *p, const struct model_config *c, const struct quant_options *o, struct err *e) {
    if (o->embed_type && c->tied)
        return err_set(e, ERR_USAGE, "the embedding is the output matrix too, whose type --head-type names");
    enum model_role head = c->tied ? ROLE_EMBED : ROLE_HEAD;
    if (o->head_type && !model_has_role(c, head))
        return err_set(e, ERR_USAGE, "this model has no output matrix that --head-type could name");
    if (o->head_type)
        name_one(&p->choices[model_slot_index(c, (struct model_slot){head, 0})], o->head_type, "head-type");
    if (o->embed_type)
        name_one(&p->choices[model_slot_index(c, (struct model_slot){ROLE_EMBED, 0})], o->embed_type, "embed-type");
    return 0;
}

int plan_name_types(struct quant_plan *p, const struct model_config *c, const struct quant_options *o, struct err *e) {
    int rc = rules_apply(p, c, o, e);
    return rc ? rc : name_ends(p, c, o, e);
}

static int by_options(struct quant_plan *p, const struct model_config *c, const struct quant_options *o,
                      struct err *e) {
    struct mixture_facts facts = {c, o->fuses_qkv && o->fuses_qkv(c), o->stats || o->importance || o->calibrated};
    for (size_t i = 0; i < p->n; i++) {
        struct model_slot s = model_slot_at(c, i);
        struct quant_choice *choice = &p->choices[i];
        if (!model_role_is_matrix(s.role)) continue;
        if (o->pure) {
            choice->wanted = o->type->base;
            snprintf(choice->why, sizeof choice->why, "pure %s", dtype_info(o->type->base)->name);
        } else
            choice->wanted = mixture_choose(o->type, &facts, s, choice->why, sizeof choice->why);
    }
    return plan_name_types(p, c, o, e);
}

/* ---- fallback ---- */

static int resolve(struct quant_choice *choice, const struct model_config *c, struct model_slot s,
                   const struct quant_options *o, struct err *e) {
    char name[TENSOR_MAX_NAME + 1];
    uint64_t cols = cols_of(c, s);
    const struct dtype_info *wanted = dtype_info(choice->wanted);
    choice->to = quant_fallback(choice->wanted, cols);
    if (choice->to != choice->wanted) {
        if (o->strict || o->plan)
            return err_set(
                e, ERR_DATA, "%s%stensor '%s': rows of %llu are not a whole number of %s's blocks of %u%s%s%s",
                o->plan ? o->plan_name : "", o->plan ? ": " : "", model_slot_name(s, name), (unsigned long long)cols,
                wanted->name, wanted->block_elems, o->plan ? "" : " (without --strict it becomes ",
                o->plan ? "" : dtype_info(choice->to)->name, o->plan ? "" : ")");
        size_t len = strlen(choice->why);
        snprintf(choice->why + len, sizeof choice->why - len, "; %s, but rows of %llu", wanted->name,
                 (unsigned long long)cols);
    }
    if (o->strict && !o->stats && !o->importance && !o->calibrated && !is_output(c, s) && s.role != ROLE_EMBED &&
        mixture_needs_importance(o->type, choice->to))
        return err_set(e, ERR_DATA, "tensor '%s' gets %s, which needs --stats (without --strict it does without)",
                       model_slot_name(s, name), dtype_info(choice->to)->name);
    return 0;
}

int quant_plan_make(struct quant_plan *p, const struct model_config *c, const struct quant_options *o, struct err *e) {
    *p = (struct quant_plan){.n = model_slot_count(c)};
    p->choices = mem_array(p->n, sizeof *p->choices, e);
    if (!p->choices) return e->code;
    for (size_t i = 0; i < p->n; i++) p->choices[i] = (struct quant_choice){.wanted = DT_F32, .to = DT_F32};
    int rc = o->plan ? plan_parse(p, c, o, e) : by_options(p, c, o, e);
    for (size_t i = 0; !rc && i < p->n; i++) rc = resolve(&p->choices[i], c, model_slot_at(c, i), o, e);
    if (rc) quant_plan_release(p);
    return rc;
}

void quant_plan_release(struct quant_plan *p) {
    mem_free(p->choices);
    *p = (struct quant_plan){0};
}
