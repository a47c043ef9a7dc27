/* Binding a list of losses to what a run provides: defaults, names, checks; and the weights and sums of steps. */
#include <stdio.h>
#include <string.h>

#include "lib/losses/losses_internal.h"

/* ---- defaults ---------------------------------------------------------------------------------------------------- */

static bool is(const struct loss *l, const struct loss_type *t) {
    return l->type == t && l->at == LOSS_AT_FINAL;
}

/* Inserts a loss that is only measured. */
static int add_measured(struct loss_list *l, const struct loss_type *t, size_t at, struct err *e) {
    if (l->n == LOSS_MAX) return 0; /* full: measuring is optional */
    if (loss_list_add(l, t->name, e)) return e->code;
    struct loss own = l->items[l->n - 1];
    memmove(&l->items[at + 1], &l->items[at], (l->n - 1 - at) * sizeof own);
    own.measured = true;
    own.first = own.last = 0;
    l->items[at] = own;
    return 0;
}

static int add_defaults(struct loss_list *l, const struct loss_setting *s, struct err *e) {
    bool answers = s->data->encoding != KNOW_NONE, ce_alone = true, has_ce = false;
    if (!l->n && loss_list_add(l, answers || s->live ? "kl" : "ce", e)) return e->code;
    for (size_t i = 0; i < l->n; i++) {
        ce_alone = ce_alone && is(&l->items[i], &loss_ce);
        has_ce = has_ce || is(&l->items[i], &loss_ce);
    }
    if (ce_alone && answers && add_measured(l, &loss_kl, 0, e)) return e->code;
    return has_ce ? 0 : add_measured(l, &loss_ce, l->n, e);
}

/* ---- teacher and head -------------------------------------------------------------------------------------------- */

static int resolve_teacher(struct loss *l, const struct loss_setting *s, struct err *e) {
    if (!l->type->encodings) return 0;
    bool answers = s->data->encoding != KNOW_NONE;
    if (l->teacher == LOSS_TEACHER_AUTO) l->teacher = !answers && s->live ? LOSS_TEACHER_LIVE : LOSS_TEACHER_DATA;
    if (l->teacher == LOSS_TEACHER_DATA && !answers)
        return err_set(e, ERR_DATA,
                       "the loss %s needs a teacher, but the data is a plain token stream (run teacher-infer first, "
                       "give --teacher MODEL, or use --loss ce)",
                       l->type->name);
    if (l->teacher == LOSS_TEACHER_LIVE && !s->live)
        return err_set(e, ERR_USAGE, "the loss %s has teacher=live: give --teacher MODEL", l->type->name);
    if (l->teacher == LOSS_TEACHER_EMA && !s->ema)
        return err_set(e, ERR_USAGE, "the loss %s has teacher=ema: give --ema DECAY", l->type->name);
    if (l->teacher == LOSS_TEACHER_FINAL && l->at == LOSS_AT_FINAL)
        return err_set(e, ERR_USAGE, "the loss %s: teacher=final teaches exits: give at=exits and --exit",
                       l->type->name);
    return 0;
}

static int resolve_at(struct loss *l, const struct loss_setting *s, struct err *e) {
    if (l->at != LOSS_AT_FINAL && !s->n_exits)
        return err_set(e, ERR_USAGE, "the loss %s is at an exit: give --exit LAYERS", l->type->name);
    for (size_t i = 0; l->at_layer && i < s->n_exits; i++)
        if (s->exits[i] == l->at_layer) {
            l->at = LOSS_AT_EXIT + (int)i;
            return 0;
        }
    return l->at_layer ? err_set(e, ERR_USAGE, "the loss %s is at an exit after %u layers, which --exit does not name",
                                 l->type->name, l->at_layer)
                       : 0;
}

/* ---- can the teacher's response serve it? ------------------------------------------------------------------------ */

static int check_encoding(const struct loss *l, const struct knowledge_format *f, struct err *e) {
    char have[64], need[64];
    if (l->type->encodings & LOSS_ON(f->encoding)) return 0;
    return err_set(
        e, ERR_DATA,
        "the loss %s is not defined for %s: use one of the encodings %s (teacher-infer --encode), or --teacher",
        l->type->name, knowledge_encoding_text(f, have, sizeof have), loss_needs_text(l->type, need, sizeof need));
}

static int check_teacher(struct loss *l, const struct loss_setting *s, struct err *e) {
    if (!l->type->encodings) return 0;
    const struct knowledge_format *f = l->teacher == LOSS_TEACHER_DATA ? s->data : NULL;
    int i = loss_key_index(l->type, "temperature");
    if (i >= 0 && !l->values[i].given) {
        l->values[i].given = true;
        l->values[i].number = f ? f->temperature : 1;
    }
    if (!f) return 0;
    if (check_encoding(l, f, e) || knowledge_check_temperature(f, loss_temperature(l), e)) return e->code;
    bool centred = loss_key_index(l->type, "centred") >= 0 && !strcmp(loss_words(l, "centred"), "yes");
    if (l->type->raw_logits && !centred && f->log_probs)
        return err_set(
            e, ERR_DATA,
            "the loss %s is of logits, and the data has log-probabilities (teacher-infer --logits, or centred=yes)",
            l->type->name);
    if (l->type->raw_logits && f->temperature != 1)
        return err_set(e, ERR_DATA, "the loss %s is of logits, and the data is at temperature %g", l->type->name,
                       f->temperature);
    return 0;
}

/* ---- names ------------------------------------------------------------------------------------------------------- */

static void name_column(struct loss *l, const struct loss_setting *s) {
    const char *name = l->type->name;
    if (l->type == &loss_kl && l->teacher == LOSS_TEACHER_DATA) name = loss_kl_name(s->data);
    if (l->label[0])
        snprintf(l->column, sizeof l->column, "%s", l->label);
    else if (l->at_layer)
        snprintf(l->column, sizeof l->column, "%s_exit%u", name, l->at_layer);
    else
        snprintf(l->column, sizeof l->column, "%s%s", name, l->at == LOSS_AT_EXITS ? "_exits" : "");
}

static int check_columns(const struct loss_list *l, struct err *e) {
    static const char *const taken[] = {"step",   "loss",  "lr",        "grad_norm",
                                        "tokens", "steps", "positions", "tokens_per_second"};
    for (size_t i = 0; i < l->n; i++) {
        const char *name = l->items[i].column;
        for (size_t j = 0; j < i; j++)
            if (!strcmp(name, l->items[j].column))
                return err_set(e, ERR_USAGE, "two losses are called %s: give one of them label=NAME", name);
        for (size_t j = 0; j < COUNT_OF(taken); j++)
            if (!strcmp(name, taken[j])) return err_set(e, ERR_USAGE, "label=%s means something else in the log", name);
    }
    return 0;
}

/* ---- binding ----------------------------------------------------------------------------------------------------- */

/* Are kl and ce of the last head, each at most once, the only losses on logits? */
static bool can_fuse(const struct loss_list *l) {
    const struct loss_type *once[] = {&loss_kl, &loss_ce};
    size_t n = 0, on_logits = 0;
    for (size_t i = 0; i < l->n; i++) on_logits += l->items[i].type->logits != NULL;
    for (size_t k = 0; k < COUNT_OF(once); k++) {
        size_t found = 0;
        for (size_t i = 0; i < l->n; i++) found += is(&l->items[i], once[k]);
        if (found > 1) return false;
        n += found;
    }
    return n == on_logits;
}

static bool uses_exits(const struct loss_list *l) {
    for (size_t i = 0; i < l->n; i++)
        if (l->items[i].at != LOSS_AT_FINAL) return true;
    return false;
}

static int bind_one(struct loss *l, const struct loss_setting *s, struct param_set *own, struct err *e) {
    if (resolve_at(l, s, e) || resolve_teacher(l, s, e) || check_teacher(l, s, e)) return e->code;
    name_column(l, s);
    if (l->type->needs && l->type->needs(l, s, e)) return e->code;
    return l->type->prepare ? l->type->prepare(l, s, own, e) : 0;
}

int loss_list_bind(struct loss_list *l, const struct loss_setting *s, struct param_set *own, struct err *e) {
    struct loss_setting setting = *s;
    setting.list = l;
    if (add_defaults(l, s, e)) return e->code;
    bool any = false;
    for (size_t i = 0; i < l->n; i++) {
        struct loss *item = &l->items[i];
        if (bind_one(item, &setting, own, e)) return e->code;
        any = any || item->first > 0 || item->last > 0;
        l->on_logits = l->on_logits || item->type->logits;
        l->on_points = l->on_points || item->type->points;
    }
    if (s->n_exits && !uses_exits(l))
        return err_set(e, ERR_USAGE, "--exit has no effect without a loss at=exits or at=N");
    if (!any) return err_set(e, ERR_USAGE, "the weights of all losses are 0");
    l->fused = can_fuse(l);
    l->n_exits = s->n_exits;
    return check_columns(l, e);
}

bool loss_list_uses(const struct loss_list *l, enum loss_teacher t) {
    for (size_t i = 0; i < l->n; i++)
        if (l->items[i].type->encodings && l->items[i].teacher == t) return true;
    return false;
}

void loss_list_release(struct loss_list *l) {
    for (size_t i = 0; i < l->n; i++)
        if (l->items[i].type->release) l->items[i].type->release(&l->items[i]);
    buf_release(&l->dense);
    buf_release(&l->dlogits);
    buf_release(&l->other);
    buf_release(&l->row_weight);
    buf_release(&l->values);
    arena_release(&l->memory);
    *l = (struct loss_list){0};
}

/* ---- steps ------------------------------------------------------------------------------------------------------- */

void loss_list_begin_step(struct loss_list *l, uint64_t step, uint64_t steps) {
    double along = steps > 1 ? (double)(step - 1) / (double)(steps - 1) : 0;
    for (size_t i = 0; i < l->n; i++) {
        struct loss *item = &l->items[i];
        item->weight = item->first == item->last ? item->first : item->first + (item->last - item->first) * along;
        item->sum = 0;
    }
}

double loss_list_total(const struct loss_list *l, double labelled) {
    double total = 0;
    for (size_t i = 0; i < l->n; i++) /* a value that is only measured may be infinite */
        if (l->items[i].weight != 0) total += l->items[i].weight * l->items[i].factor * (l->items[i].sum / labelled);
    return total;
}

void loss_list_end_step(struct loss_list *l, double labelled) {
    for (size_t i = 0; i < l->n; i++) l->items[i].value = l->items[i].sum / labelled;
}
