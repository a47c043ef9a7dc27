/* Private to lib/job: the job, and the functions that its files share. */
#ifndef RILL_JOB_INTERNAL_H
#define RILL_JOB_INTERNAL_H

#include "lib/compress/compress.h"
#include "lib/job/job.h"

/* A data file of a mixture. */
struct job_file {
    const char *path;
    double weight, decay_weight;
    struct session_data own, *data; /* own data, or the operand's */
};

struct job {
    struct cli *c;
    const struct job_options *o;     /* as given on the command line */
    struct distill_options settings; /* resolved */
    struct train_group groups[TRAIN_MAX_GROUPS];
    const char *schedule_named; /* the value of --schedule without UNTIL; NULL: none */

    struct model *student;
    enum dtype *types;               /* [n_params of the student] for quantization-aware training; NULL: none */
    struct session_teacher *teacher; /* online; NULL: none */
    struct trainer *trainer;
    struct session_data data, eval;
    struct mixture *mixture; /* NULL: the data in its own order */
    struct job_file *files;  /* [n_files] of the mixture, the operand first */
    size_t n_files;
    struct distill_extent extent; /* of an epoch; steps 0: not counted */
    bool begun, eval_begun;       /* the first reader was used: further epochs and evaluations reopen the file */

    struct session_file checkpoint; /* to resume from; closed after reading, to free its disk space */
};

/* ---- settings.c -------------------------------------------------------------------------------------------------- */

/* Parses the text options into settings. */
int job_read_settings(struct job *j, struct err *e) MUST_CHECK;
/* Records the plan as options in report and provenance. `changed`: the recorded command gets it in place of the options
 * given. */
int job_remember_plan(struct job *j, const struct train_plan *p, bool changed, struct err *e) MUST_CHECK;

/* ---- mixture.c --------------------------------------------------------------------------------------------------- */

/* If --shuffle, --mix or --decay-data are given: opens the files and creates the mixture. The operand is already
 * open. */
int job_open_mixture(struct job *j, struct err *e) MUST_CHECK;
void job_free_mixture(struct job *j);

/* ---- quantize.c -------------------------------------------------------------------------------------------------- */

/* Sets the types of the student's matrices by --quantize and related options; the student must be loaded. */
int job_open_quantization(struct job *j, struct err *e) MUST_CHECK;
/* Reports the bits per weight of the model to be written. */
int job_report_quantization(const struct job *j, struct err *e) MUST_CHECK;

/* ---- inputs.c ---------------------------------------------------------------------------------------------------- */

/* Opens student, data, held-out stream and teacher; then resolves the number of steps. */
int job_open_inputs(struct job *j, struct err *e) MUST_CHECK;
/* `open` of a distill_run; ctx is the job. */
int job_open_data(void *ctx, struct stream_reader **r, struct err *e) MUST_CHECK;

/* ---- checkpoint.c ------------------------------------------------------------------------------------------------ */

/* Applies --start-state and --resume, and records the plan. */
int job_restore(struct job *j, struct err *e) MUST_CHECK;
/* `save` of a distill_run; ctx is the job. */
int job_save_checkpoint(void *ctx, struct trainer *t, struct err *e) MUST_CHECK;

#endif
