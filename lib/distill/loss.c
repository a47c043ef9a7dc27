/* What is minimised: its description on the command line, and its value and gradient over a micro-batch. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lib/distill/distill_internal.h"

/* ---- --loss NAME:key=value,... -------------------------------------------------------------------------------- */

/* One "key=value" of a loss. */
static int parse_member(const char *key, const char *value, struct distill_loss *l, double *weight, struct err *e) {
    double v;
    bool kl = weight == &l->kl_weight;
    const char *name = kl ? "kl" : "ce";
    if (!parse_f64(value, &v) || !(v >= 0) || !isfinite(v))
        return err_set(e, ERR_USAGE, "--loss %s: %s=%s is not a number from 0 up", name, key, value);
    if (!strcmp(key, "weight"))
        *weight = v;
    else if (kl && !strcmp(key, "temperature") && v > 0)
        l->temperature = v;
    else
        return err_set(e, ERR_USAGE, "--loss %s has no %s=%s: expected %s", name, key, value,
                       kl ? "weight=W, temperature=T above 0" : "weight=W");
    return 0;
}

int distill_loss_parse(const char *text, struct distill_loss *l, struct err *e) {
    char copy[256], *save = NULL;
    if (strlen(text) >= sizeof copy) return err_set(e, ERR_USAGE, "--loss %.40s...: too long", text);
    memcpy(copy, text, strlen(text) + 1);
    char *members = strchr(copy, ':');
    if (members) *members++ = 0;
    bool kl = !strcmp(copy, "kl");
    if (!kl && strcmp(copy, "ce") != 0)
        return err_set(e, ERR_USAGE, "unknown loss \"%s\": expected kl:weight=W,temperature=T or ce:weight=W", copy);
    bool *named = kl ? &l->kl : &l->ce;
    double *weight = kl ? &l->kl_weight : &l->ce_weight;
    if (*named) return err_set(e, ERR_USAGE, "--loss %s is given twice", copy);
    *named = true;
    *weight = 1;
    if (!members) return 0;
    for (char *m = strtok_r(members, ",", &save); m; m = strtok_r(NULL, ",", &save)) {
        char *value = strchr(m, '=');
        if (!value) return err_set(e, ERR_USAGE, "--loss %s: \"%s\" is not key=value", copy, m);
        *value++ = 0;
        if (parse_member(m, value, l, weight, e)) return e->code;
    }
    return 0;
}

int distill_loss_resolve(struct distill_loss *l, const struct knowledge_format *f, struct err *e) {
    bool teacher = f->encoding != KNOW_NONE;
    if (!l->kl && !l->ce) {
        l->kl = teacher;
        l->ce = !teacher;
        l->kl_weight = teacher ? 1 : 0;
        l->ce_weight = teacher ? 0 : 1;
    }
    if (l->kl && !teacher)
        return err_set(e, ERR_DATA,
                       "the loss kl needs a teacher, and the data is a plain token stream "
                       "(put teacher-infer before, or use --loss ce)");
    if (!(l->kl_weight + l->ce_weight > 0)) return err_set(e, ERR_USAGE, "the weights of all losses are 0");
    if (l->temperature == 0) l->temperature = f->temperature;
    return l->kl ? knowledge_check_temperature(f, l->temperature, e) : 0;
}

/* ---- over a micro-batch ------------------------------------------------------------------------------------------ */

/* What grad_head's callback needs to know. */
struct micro {
    struct trainer *t;
    size_t first; /* the micro-batch's first row in the queue */
};

static int reserve_block(struct trainer *t, size_t rows, size_t vocab, struct err *e) {
    size_t dense = t->format.encoding == KNOW_DENSE ? rows * vocab * sizeof(float) : 0;
    t->dense.len = t->row_weight.len = t->row_loss.len = 0;
    if (buf_reserve(&t->dense, dense, e) || buf_reserve(&t->row_weight, rows * sizeof(float), e)) return e->code;
    return buf_reserve(&t->row_loss, rows * 2 * sizeof(double), e);
}

const char *distill_kl_name(const struct knowledge_format *f) {
    static const char *const names[] = {[KNOW_NONE] = NULL,           [KNOW_DENSE] = "kl",
                                        [KNOW_TOPK] = "kl_truncated", [KNOW_GHOST] = "kl_lower_bound",
                                        [KNOW_SAMPLE] = "teacher_ce", [KNOW_TOPP] = "kl_truncated"};
    return names[f->encoding];
}

/* What the kernel's sum of t ln(t / p) is reported as: it differs by what the student has no part in. */
static double kl_value(const struct knowledge_format *f, const struct kernel_target *target, size_t r, double kl) {
    double mass;
    if (f->encoding == KNOW_DENSE || f->encoding == KNOW_GHOST) return kl;
    double t_ln_t = knowledge_t_ln_t(target, r, &mass);
    return kl - (f->encoding == KNOW_SAMPLE ? t_ln_t : mass > 0 ? mass * log(mass) : 0);
}

/* A block of logits into its gradient, unscaled: the number of labelled positions is known at the end of the step. */
static int loss_block(void *ctx, size_t first, size_t rows, size_t vocab, struct kernel_array logits,
                      struct kernel_array dlogits, struct err *e) {
    struct micro *micro = ctx;
    struct trainer *t = micro->t;
    const struct distill_loss *l = &t->o.loss;
    struct kernel_loss how = {(float)l->temperature, (float)l->kl_weight, (float)l->ce_weight};
    struct kernel_target target;
    if (reserve_block(t, rows, vocab, e)) return e->code;
    float *weight = (void *)t->row_weight.data;
    double *kl = (void *)t->row_loss.data, *ce = kl + rows;
    knowledge_target(&t->rows, &t->format, l->temperature, micro->first + first, rows, (void *)t->dense.data, &target);
    for (size_t r = 0; r < rows; r++) weight[r] = target.label[r] == UINT32_MAX ? 0 : 1;
    kernel_distill_loss(&how, &target, weight, logits, rows, vocab, kl, ce, dlogits);
    for (size_t r = 0; r < rows; r++) {
        if (!weight[r]) continue;
        t->step_labelled++;
        t->step_kl += kl_value(&t->format, &target, r, kl[r]);
        t->step_ce += ce[r];
    }
    return 0;
}

int trainer_run_micro(struct trainer *t, size_t n_seqs, size_t n_positions, struct err *e) {
    struct micro micro = {t, knowledge_first_row(&t->format, t->used_seqs, t->used_positions)};
    struct model_input in = {.n_positions = n_positions,
                             .n_seqs = n_seqs,
                             .tokens = t->rows.tokens + t->used_positions,
                             .lengths = t->rows.lengths + t->used_seqs,
                             .types = t->rows.types ? t->rows.types + t->used_positions : NULL};
    grad_reset(t->tape);
    struct grad_var *h = model_graph(t->m, t->tape, &in, NULL, NULL, e);
    if (!h) return e->code;
    struct grad_head head = model_logits_head(t->m, t->tape);
    if (grad_head(t->tape, h, &head, loss_block, &micro)) grad_backward(t->tape);
    return grad_error(t->tape, e);
}
