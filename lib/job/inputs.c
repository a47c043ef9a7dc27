/* Opens the inputs of a run: student, data, held-out stream and teacher; and counts the steps that the data makes. */
#include <string.h>

#include "lib/job/job_internal.h"

static int open_teacher(struct job *j, struct err *e) {
    struct session_teacher_options how = {.layerwise = !strcmp(j->o->teacher_weights, "stream"), .batch_tokens = 1};
    double before = (double)mem_in_use();
    if (!j->o->teacher.model) return 0;
    if (session_teacher_open(&j->teacher, j->c, &j->o->teacher, &how, e)) return e->code;
    session_teacher_parts(j->teacher, &j->settings.teacher.model, &j->settings.teacher.layerwise);
    j->settings.teacher.bytes = (double)mem_in_use() - before;
    return 0;
}

static int open_again(struct session_data *d, bool *begun, struct stream_reader **r, struct err *e) {
    *r = d->stream;
    if (*begun) return session_file_again(&d->file, STREAM_ANY, r, e);
    *begun = true;
    return 0;
}

int job_open_data(void *ctx, struct stream_reader **r, struct err *e) {
    struct job *j = ctx;
    return open_again(&j->data, &j->begun, r, e);
}

static int open_eval(void *ctx, struct stream_reader **r, struct err *e) {
    struct job *j = ctx;
    return open_again(&j->eval, &j->eval_begun, r, e);
}

static int open_held_out(struct job *j, struct err *e) {
    struct distill_eval *v = &j->settings.eval;
    if (!j->o->eval) return 0;
    if (session_open_data(j->c, j->o->eval, "eval", STREAM_ANY, j->student, &j->eval, e)) return e->code;
    if (!j->eval.file.is_file)
        return err_set(e, ERR_USAGE, "--eval %s is read in each evaluation, so it must be a file, not a pipe",
                       j->o->eval);
    v->open = open_eval;
    v->ctx = j;
    v->format = &j->eval.format;
    return 0;
}

/* Without --steps, the number of steps is what the data makes. */
static int count_steps(struct job *j, bool given, struct err *e) {
    struct stream_reader *r;
    bool is_file = j->data.file.is_file;
    if (j->o->epochs > 1 && !is_file)
        return err_set(e, ERR_USAGE, "--epochs %llu: a pipe can be read only once (name a file)",
                       (unsigned long long)j->o->epochs);
    if (!given && !is_file) return err_set(e, ERR_USAGE, "--steps N is required, because the data comes from a pipe");
    if (j->o->plan_only && !is_file)
        return err_set(e, ERR_USAGE, "--plan reads the data twice: name a file instead of a pipe");
    if (given && !j->o->plan_only) return 0;
    uint64_t steps;
    if (j->mixture) {
        steps = mixture_count(j->mixture, &j->settings, j->o->epochs, &j->extent);
    } else {
        if (session_file_again(&j->data.file, STREAM_ANY, &r, e) || distill_count(r, &j->settings, &j->extent, e))
            return e->code;
        if (!u64_mul(j->extent.steps, j->o->epochs, &steps)) return err_set(e, ERR_USAGE, "too many epochs");
    }
    if (!given) j->settings.plan.now.steps = steps;
    return 0;
}

static int resolve_schedule(struct job *j, struct err *e) {
    struct train_schedule *s = &j->settings.plan.now;
    if (count_steps(j, cli_given(j->c, "steps"), e)) return e->code;
    if (!cli_given(j->c, "warmup")) s->warmup = train_default_warmup(s->steps);
    if (!cli_given(j->c, "lr-min")) s->lr_min = train_default_lr_min(s);
    const struct schedule_type *type = train_schedule_type(s);
    if (cli_given(j->c, "lr-min") && !type->falls)
        return err_set(e, ERR_USAGE, "--lr-min has no effect with --schedule %s", type->name);
    return 0;
}

int job_open_inputs(struct job *j, struct err *e) {
    if (session_load_model(j->c, &j->o->student, WEIGHTS_F32, &j->student, NULL, e) || job_open_quantization(j, e) ||
        session_open_data(j->c, cli_input_path(j->c, 0), "data", STREAM_ANY, j->student, &j->data, e) ||
        open_held_out(j, e) || open_teacher(j, e) || job_open_mixture(j, e))
        return e->code;
    return resolve_schedule(j, e);
}
