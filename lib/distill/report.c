/* Reports of a run: members of its JSON report and plan, and messages. */
#include <math.h>
#include <stdio.h>

#include "lib/distill/distill_internal.h"

bool distill_put_losses(cJSON *to, const struct distill_progress *p) {
    bool ok = true;
    for (size_t i = 0; ok && i < p->n_losses; i++) ok = json_put_f64(to, p->losses[i].name, p->losses[i].value);
    return ok;
}

static bool put_evaluation(cJSON *to, const struct trainer *t, const struct distill_run *r) {
    const struct distill_evaluation *v = &t->progress.eval;
    bool ok = true;
    if (!v->step) return true;
    for (size_t i = 0; ok && i < v->n; i++) ok = json_put_f64(to, v->values[i].name, v->values[i].value);
    return ok && json_put_u64(to, "evaluated_step", v->step) && json_put_str(to, "metric", v->values[v->metric].name) &&
           json_put_f64(to, "best", v->best) && json_put_u64(to, "best_step", v->best_step) &&
           json_put_bool(to, "stopped_early", r->stopped_early) &&
           json_put_f64(to, "evaluation_seconds", r->eval_seconds);
}

bool distill_put_run(cJSON *to, const struct trainer *t, const struct distill_run *r) {
    const struct distill_progress *p = &t->progress;
    return json_put_u64(to, "steps", p->step) && json_put_u64(to, "positions", p->positions) &&
           distill_put_losses(to, p) && json_put_f64(to, "loss", p->loss) &&
           json_put_f64(to, "tokens_per_second", r->tokens_per_second) && put_evaluation(to, t, r);
}

/* Writes the losses with all their keys. */
static bool put_loss_texts(cJSON *settings, const struct loss_list *l) {
    cJSON *list = cJSON_AddArrayToObject(settings, "loss");
    bool ok = list != NULL;
    char text[LOSS_TEXT];
    for (size_t i = 0; ok && i < l->n; i++)
        ok = l->items[i].measured || cJSON_AddItemToArray(list, cJSON_CreateString(loss_text(&l->items[i], text)));
    return ok;
}

bool distill_put_settings(cJSON *to, const struct trainer *t) {
    const struct train_schedule *now = &t->o.plan.now;
    const struct distill_evaluation *v = &t->progress.eval;
    if (t->set.kept && !json_put_u64(to, "best-step", v->best_step)) return false; /* the step of the saved weights */
    return json_put_u64(to, "steps", now->steps) && json_put_u64(to, "warmup", now->warmup) &&
           json_put_f64(to, "lr-min", now->lr_min) && put_loss_texts(to, &t->losses);
}

static bool put_cost(cJSON *to, double price, double seconds, double positions) {
    double cost = price * seconds / 3600;
    return !(price > 0) || (json_put_f64(to, "cost", cost) &&
                            json_put_f64_or_null(to, "cost_per_million_tokens", cost / positions * 1e6));
}

int distill_put_speed(cJSON *to, const struct trainer *t, const struct distill_run *r, double price, struct err *e) {
    double positions = r->tokens_per_second * r->seconds, flops = distill_flops(t, r->mean_context), peak;
    double fell = r->first_kl - r->last_kl;
    if (distill_peak(kernel_cpu(), t->o.precision, &peak, e)) return e->code;
    double seconds = r->seconds + r->eval_seconds;
    bool ok = json_put_f64(to, "training_seconds", r->seconds) && json_put_f64(to, "flops_per_token", flops) &&
              json_put_f64(to, "peak_flops", peak) &&
              json_put_f64(to, "share_of_peak", flops * r->tokens_per_second / peak) &&
              put_cost(to, price, seconds, positions);
    if (ok && r->has_kl) ok = json_put_f64(to, "recovered", fell);
    if (ok && r->has_kl && price > 0)
        ok = json_put_f64_or_null(to, "cost_per_unit_recovered", fell > 0 ? price * seconds / 3600 / fell : NAN);
    return ok ? 0 : err_nomem(e, "report");
}

bool distill_put_forecast(cJSON *to, const struct distill_forecast *f, double price) {
    const struct {
        const char *key;
        double value;
    } rows[] = {{"steps", (double)f->steps},
                {"positions", f->positions},
                {"passes", f->passes},
                {"training_seconds", f->seconds},
                {"tokens_per_second", f->tokens_per_second},
                {"evaluations", (double)f->evaluations},
                {"evaluation_seconds", f->eval_seconds},
                {"peak_memory_bytes", f->peak_bytes},
                {"weights_bytes", f->memory.weights},
                {"gradients_bytes", f->memory.gradients},
                {"optimizer_bytes", f->memory.optimizer},
                {"activations_bytes", f->memory.values + f->memory.value_gradients},
                {"scratch_bytes", f->memory.scratch},
                {"best_bytes", f->memory.best},
                {"teacher_bytes", f->memory.teacher},
                {"evaluation_bytes", f->memory.evaluation},
                {"model_bytes", f->model_bytes},
                {"checkpoint_bytes", f->checkpoint_bytes}};
    bool ok = true;
    for (size_t i = 0; ok && i < COUNT_OF(rows); i++) ok = json_put_f64(to, rows[i].key, rows[i].value);
    return ok && put_cost(to, price, f->seconds + f->eval_seconds, f->positions);
}

char *distill_memory_text(const struct trainer *t, char out[DISTILL_TEXT]) {
    struct distill_memory m;
    trainer_memory(t, &m);
    snprintf(out, DISTILL_TEXT,
             "memory in MB: weights %.4g, gradients %.4g, optimizer %.4g, activations %.4g, their gradients %.4g, "
             "operands and logits %.4g, best state %.4g, teacher %.4g, evaluation %.4g",
             m.weights / 1e6, m.gradients / 1e6, m.optimizer / 1e6, m.values / 1e6, m.value_gradients / 1e6,
             m.scratch / 1e6, m.best / 1e6, m.teacher / 1e6, m.evaluation / 1e6);
    return out;
}

bool distill_resumed_text(const struct trainer *t, char out[DISTILL_TEXT]) {
    const struct train_plan *p = &t->o.plan;
    const struct train_phase *last = p->n_past ? &p->past[p->n_past - 1] : NULL;
    const struct train_schedule *now = &p->now;
    unsigned long long step = t->progress.step, steps = now->steps;
    bool turns = step < steps && last && last->until == step;
    if (turns)
        snprintf(out, DISTILL_TEXT,
                 "after step %llu of %llu the schedule is one of %llu steps, warmup %llu, lr %g to %g: the learning "
                 "rate goes from %g to %g",
                 step, (unsigned long long)last->schedule.steps, steps, (unsigned long long)now->warmup, now->lr,
                 now->lr_min, train_lr(p, step), train_lr(p, step + 1));
    else
        snprintf(out, DISTILL_TEXT, "at step %llu of %llu", step, steps);
    return turns;
}
