/*
 * job: a training run as a program carries it out: what its options say, the student, the data and the teacher that
 * they name, checkpoint files, signals, and what the provenance remembers.
 * Order of files, each calling only those before it: settings, mixture, quantize, inputs, checkpoint, run.
 *
 *     static struct job_options o;
 *     static struct cli_option options[] = {..., {.name = "lr", .type = CLI_F64, .to = &o.distill.plan.now.lr, ...}, {0}};
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

/* What the command line says. Texts are read by job_open; NULL: not given. */
struct job_options {
    struct session_options student, teacher;
    const char *teacher_weights; /* "resident" or "stream" */
    struct cli_list losses, schedules, groups, frozen;
    struct cli_list mix, decay_data; /* further files of data, FILE[=WEIGHT] */
    bool shuffle;
    const char *quantize, *quantize_plan; /* a type, or a file: the grids that the student is trained on */
    struct cli_list tensor_types;         /* REGEX=TYPE, with quantize */
    const char *exits, *optimizer, *optimizer_state, *lora;
    const char *log, *checkpoint, *resume, *start_state, *eval; /* files */
    uint64_t epochs, checkpoint_every;
    bool plan_only; /* the run is to be predicted, not carried out */
    /* Numbers. What is a text above, the teacher's model and defaults that depend on the data come in job_open. */
    struct distill_options distill;
};

struct job;
/* Reads the student, opens the data (operand 0, and the files to mix with it) and the teacher, resumes from a checkpoint: everything that can be wrong is
 * found out before the first step. The options must outlive the job. */
int job_open(struct job **out, struct cli *c, const struct job_options *o, struct err *e) MUST_CHECK;
const struct trainer *job_trainer(const struct job *j);
/* The whole run, with a progress bar. With a checkpoint to keep, SIGINT and SIGTERM write it and end the run with
 * ERR_IO, SIGUSR1 writes it. *done has the OUT members of a run. ERR_DATA when there was no step to take. */
int job_train(struct job *j, struct distill_run *done, struct err *e) MUST_CHECK;
/* After job_train: the model, as it is to be saved. */
int job_write(struct job *j, struct stream_writer *w, struct err *e) MUST_CHECK;
/* Instead of job_train, with options.plan_only: distill_predict. */
int job_predict(struct job *j, struct distill_forecast *f, struct err *e) MUST_CHECK;
void job_free(struct job *j); /* NULL is fine */

#endif
