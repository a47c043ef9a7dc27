/* A training run, as the files of its module share it. */
#ifndef RILL_JOB_INTERNAL_H
#define RILL_JOB_INTERNAL_H

#include "lib/compress/compress.h"
#include "lib/job/job.h"

/* A file that is drawn from. */
struct job_file {
    const char *path;
    double weight, decay_weight;
    struct session_data own, *data; /* own, or the operand's */
};

struct job {
    struct cli *c;
    const struct job_options *o;     /* as the command line has them */
    struct distill_options settings; /* resolved */
    struct train_group groups[TRAIN_MAX_GROUPS];
    const char *schedule_named; /* the one of --schedule that has no UNTIL; NULL: none */

    struct model *student;
    enum dtype *types;               /* [n_params of it] that it is trained in; NULL: f32 */
    struct session_teacher *teacher; /* beside the student; NULL: none */
    struct trainer *trainer;
    struct session_data data, eval;
    struct mixture *mixture; /* NULL: the data in its order */
    struct job_file *files;  /* [n_files] of it, the operand first */
    size_t n_files;
    struct distill_extent extent; /* of an epoch; steps 0: not counted */
    bool begun, eval_begun;       /* the data: an epoch after the first one needs it anew; the held-out stream */

    struct session_file checkpoint; /* to resume from: closed when it has been read, for its disk space */
};

/* ---- settings.c ------------------------------------------------------------------------------------------------------ */

/* Texts of the options into settings. */
int job_read_settings(struct job *j, struct err *e) MUST_CHECK;
/* The plan as options, for the report and the provenance; `changed`: the recorded command has it instead of what was
 * given. */
int job_remember_plan(struct job *j, const struct train_plan *p, bool changed, struct err *e) MUST_CHECK;

/* ---- mixture.c ------------------------------------------------------------------------------------------------------- */

/* Whether --shuffle, --mix or --decay-data ask for a mixture; opens its files, the operand's data being open, and makes it. */
int job_open_mixture(struct job *j, struct err *e) MUST_CHECK;
void job_free_mixture(struct job *j);

/* ---- quantize.c ------------------------------------------------------------------------------------------------------ */

/* The student being there: the types that --quantize and its company give its matrices, into settings. */
int job_open_quantization(struct job *j, struct err *e) MUST_CHECK;
/* The bits per weight of what is about to be written. */
int job_report_quantization(const struct job *j, struct err *e) MUST_CHECK;

/* ---- inputs.c -------------------------------------------------------------------------------------------------------- */

/* Student, data, held-out stream and teacher; then the number of steps, from the data where it is not given. */
int job_open_inputs(struct job *j, struct err *e) MUST_CHECK;
/* A distill_run's open, of a job. */
int job_open_data(void *ctx, struct stream_reader **r, struct err *e) MUST_CHECK;

/* ---- checkpoint.c ---------------------------------------------------------------------------------------------------- */

/* --start-state and --resume; remembers the plan either way. */
int job_restore(struct job *j, struct err *e) MUST_CHECK;
/* A distill_run's save, of a job. */
int job_save_checkpoint(void *ctx, struct trainer *t, struct err *e) MUST_CHECK;

#endif
