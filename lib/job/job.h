/*
 * job: a training run as a program carries it out: options, the student, data and teacher that they name, checkpoint
 * files, signals, and provenance.
 * Order of files, each calling only those before it: settings, mixture, quantize, inputs, checkpoint, run.
 *
 *     static struct job_options o;
 *     static struct cli_option options[] = {..., {.name = "lr", .type = CLI_F64, .to = &o.distill.plan.now.lr}, {0}};
 *     ...
 *     job_open(&j, c, &o, e)
 *     job_train(j, &done, e), job_write(j, writer, e)      or job_predict(j, &forecast, e)
 *     job_free(j)
 */
#ifndef RILL_JOB_H
#define RILL_JOB_H

#include "lib/cli/cli.h"
#include "lib/distill/distill.h"
#include "lib/session/session.h"

/* The options as given on the command line; NULL: not given. job_open parses the texts. */
struct job_options {
    struct session_options student, teacher;
    const char *teacher_weights; /* "resident" or "stream" */
    struct cli_list losses, schedules, groups, frozen;
    struct cli_list mix, decay_data; /* more data files, FILE[=WEIGHT] */
    bool shuffle;
    const char *quantize, *quantize_plan; /* a type or a plan file for quantization-aware training */
    struct cli_list tensor_types;         /* REGEX=TYPE, with quantize */
    const char *exits, *optimizer, *optimizer_state, *lora;
    const char *log, *checkpoint, *resume, *start_state, *eval; /* paths */
    uint64_t epochs, checkpoint_every;
    bool plan_only; /* predict the run instead of carrying it out */
    /* Numeric options. job_open adds what is given as text above, the teacher and defaults that depend on the data. */
    struct distill_options distill;
};

struct job;
/* Loads the student, opens the data (operand 0 and files to mix with it) and the teacher, and resumes from a
 * checkpoint, so that all errors in the inputs are found before the first step. The options must outlive the job. The
 * caller frees *out. ERR_USAGE, ERR_DATA, ERR_IO. */
int job_open(struct job **out, struct cli *c, const struct job_options *o, struct err *e) MUST_CHECK;
/* Returns the trainer, owned by the job. */
const struct trainer *job_trainer(const struct job *j);
/* Runs the training with a progress bar, and sets the OUT members of *done. If a checkpoint file is given, SIGINT and
 * SIGTERM write it and end the run with ERR_IO, and SIGUSR1 writes it. ERR_DATA: there was no step to take. */
int job_train(struct job *j, struct distill_run *done, struct err *e) MUST_CHECK;
/* Call after job_train: writes the resulting model. */
int job_write(struct job *j, struct stream_writer *w, struct err *e) MUST_CHECK;
/* With options.plan_only, instead of job_train: calls distill_predict. */
int job_predict(struct job *j, struct distill_forecast *f, struct err *e) MUST_CHECK;
void job_free(struct job *j); /* no-op if NULL */

#endif
