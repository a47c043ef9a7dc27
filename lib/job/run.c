/* A training run, from its options to the model that it writes. */
#include <stdio.h>
#include <string.h>

#include "lib/job/job_internal.h"

static int open_job(struct job *j, struct err *e) {
    if (job_read_settings(j, e) || job_open_inputs(j, e) ||
        trainer_new(&j->trainer, j->student, &j->settings, &j->data.format, e))
        return e->code;
    return job_restore(j, e);
}

int job_open(struct job **out, struct cli *c, const struct job_options *o, struct err *e) {
    struct job *j = mem_zalloc(sizeof *j, e);
    if (!j) return e->code;
    j->c = c;
    j->o = o;
    if (open_job(j, e)) {
        job_free(j);
        return e->code;
    }
    *out = j;
    return 0;
}

void job_free(struct job *j) {
    if (!j) return;
    trainer_free(j->trainer);
    session_teacher_free(j->teacher);
    model_free(j->student);
    mem_free(j->types);
    job_free_mixture(j);
    session_data_release(&j->data);
    session_data_release(&j->eval);
    mem_free(j);
}

const struct trainer *job_trainer(const struct job *j) {
    return j->trainer;
}

/* ---- training ---------------------------------------------------------------------------------------------------- */

static bool save_wanted(void *ctx) {
    (void)ctx;
    return cli_take_usr1();
}

static bool stop_wanted(void *ctx) {
    (void)ctx;
    return cli_stop_requested() != 0;
}

static void show_step(void *ctx, const struct distill_progress *p, double tokens_per_second) {
    struct cli *c = ((struct job *)ctx)->c;
    const struct distill_evaluation *v = &p->eval;
    if (v->step)
        cli_progress(c, p->step, "loss %.4f, %s %.4f (best %.4f at %llu), %.0f tokens/s", p->loss,
                     v->values[v->metric].name, v->values[v->metric].value, v->best, (unsigned long long)v->best_step,
                     tokens_per_second);
    else
        cli_progress(c, p->step, "loss %.4f, %.0f tokens/s", p->loss, tokens_per_second);
}

/* If a checkpoint file is given, signals are handled from here on. */
static void catch_signals(const struct job *j) {
    if (!j->o->checkpoint) return;
    cli_catch_stop();
    cli_catch_usr1();
}

/* Writes "; held-out kl 0.12, ce 3.4 after step 30". */
static void evaluation_text(const struct distill_evaluation *v, char *out, size_t size) {
    size_t n = (size_t)snprintf(out, size, "; held-out");
    for (size_t i = 0; i < v->n && n < size; i++)
        n += (size_t)snprintf(out + n, size - n, "%s %s %.4f", i ? "," : "",
                              strncmp(v->values[i].name, "eval_", 5) ? v->values[i].name : v->values[i].name + 5,
                              v->values[i].value);
    if (n < size) snprintf(out + n, size - n, " after step %llu", (unsigned long long)v->step);
}

/* Prints the last line of a run. */
static void say_end(const struct job *j, const struct distill_run *r, const struct distill_progress *p) {
    char losses[512] = "", held_out[256] = "";
    size_t n = 0;
    for (size_t i = 0; p->n_losses > 1 && i < p->n_losses && n < sizeof losses; i++)
        n += (size_t)snprintf(losses + n, sizeof losses - n, "%s%s %.4f%s", i ? ", " : " (", p->losses[i].name,
                              p->losses[i].value, i + 1 == p->n_losses ? ")" : "");
    if (p->eval.step) evaluation_text(&p->eval, held_out, sizeof held_out);
    cli_say(j->c, "%llu step%s, %llu tokens: loss %.4f%s, %.0f tokens/s%s", (unsigned long long)p->step,
            p->step == 1 ? "" : "s", (unsigned long long)p->positions, p->loss, losses, r->tokens_per_second, held_out);
}

/* Says what the result is, unless it is simply the state after the planned last step. */
static void say_result(const struct job *j, const struct distill_run *r, const struct distill_progress *p) {
    const struct distill_evaluation *v = &p->eval;
    unsigned long long step = p->step, steps = j->settings.plan.now.steps;
    if (r->stopped_early && step < steps)
        cli_say(j->c, "stopped early after step %llu of %llu: %s has not improved in %llu evaluation%s", step, steps,
                v->values[v->metric].name, (unsigned long long)v->wait, v->wait == 1 ? "" : "s");
    else if (step < steps)
        cli_say(j->c, "the data ended after %llu of %llu steps", step, steps);
    if (j->settings.train.keep_best && v->step)
        cli_say(j->c, "the result is the state after step %llu%s: %s %.6g", (unsigned long long)v->best_step,
                v->best_step < p->step ? "" : ", the last one", v->values[v->metric].name, v->best);
}

/* Fails if the run was stopped or had nothing to do. */
static int check_end(const struct job *j, const struct distill_run *r, struct err *e) {
    struct distill_progress p;
    unsigned long long steps = j->settings.plan.now.steps;
    trainer_progress(j->trainer, &p);
    if (r->stopped)
        return err_set(e, ERR_IO, "stopped (%s) after step %llu of %llu: --resume %s goes on",
                       strsignal(cli_stop_requested()), (unsigned long long)p.step, steps, j->o->checkpoint);
    say_result(j, r, &p);
    if (!p.step) return err_set(e, ERR_DATA, "%s holds no sequences", stream_reader_name(j->data.stream));
    say_end(j, r, &p);
    return 0;
}

int job_train(struct job *j, struct distill_run *done, struct err *e) {
    char memory[DISTILL_TEXT];
    *done = (struct distill_run){.epochs = j->o->epochs,
                                 .format = j->data.format,
                                 .open = job_open_data,
                                 .log = j->o->log,
                                 .save = j->o->checkpoint ? job_save_checkpoint : NULL,
                                 .save_every = j->o->checkpoint_every,
                                 .save_wanted = save_wanted,
                                 .stop_wanted = stop_wanted,
                                 .stepped = show_step,
                                 .ctx = j};
    catch_signals(j);
    cli_progress_begin(j->c, "steps", j->settings.plan.now.steps);
    if (distill_run(j->trainer, done, e)) return e->code;
    cli_progress_end(j->c);
    if (j->mixture && !mixture_put_report(cli_report(j->c), j->mixture)) return err_nomem(e, "report");
    if (cli_verbose(j->c)) cli_say(j->c, "%s", distill_memory_text(j->trainer, memory));
    return check_end(j, done, e);
}

int job_write(struct job *j, struct stream_writer *w, struct err *e) {
    if (trainer_finish(j->trainer, e) || model_save(j->student, w, 0, e)) return e->code;
    return job_report_quantization(j, e);
}

int job_predict(struct job *j, struct distill_forecast *f, struct err *e) {
    struct distill_run run = {.epochs = j->o->epochs, .format = j->data.format, .open = job_open_data, .ctx = j};
    return distill_predict(j->trainer, &run, &j->extent, f, e);
}
