/* Private to lib/distill: the trainer, and the functions that its files share. */
#ifndef RILL_DISTILL_INTERNAL_H
#define RILL_DISTILL_INTERNAL_H

#include "lib/distill/distill.h"

/* Progress within an epoch: sequences used, and their digest. */
struct place {
    uint64_t sequences;
    struct digest seen;
};

struct evaluation {
    struct knowledge_format format; /* fitted to the student */
    struct loss_list losses;        /* kl if there is a teacher, and ce */
    bool live;                      /* uses the online teacher */
    bool begun;                     /* the reading before the first step is complete */
    struct grad_tape *tape;
    struct knowledge_rows rows;
    struct digest_state *seen; /* digest of that reading; with its results: */
    struct digest digest;
    struct distill_extent extent; /* `steps` is not set */
    uint64_t labelled;
};

struct trainer {
    struct model *m; /* caller owns */
    struct distill_options o;
    struct knowledge_format format;
    struct grad_tape *tape;
    struct param_set set;    /* parameters of the model and of losses */
    struct loss_list losses; /* bound */

    /* Points of the student that losses need, followed by those of exits; points of the teacher. */
    struct model_want wants[LOSS_MAX_POINTS + LOSS_MAX_EXITS], teacher_wants[LOSS_MAX_POINTS];
    struct grad_tape *teacher_tape, *ema_tape; /* ema_tape: for the averages, if they teach; else NULL */
    /* A layerwise teacher runs ahead over `ahead` positions of a step's micro-batches. `ahead_at` of them have been
     * requested; the last request began at `ahead_row`. most_ahead: as many as memory allows. */
    uint64_t ahead, ahead_at, ahead_row, most_ahead;
    struct buf ahead_inputs;  /* struct model_input */
    struct buf *teacher_taps; /* [n_of_teacher] rows of its points, f32 */

    /* Data: the queue, and how much of it has been used by forward and backward passes. */
    struct knowledge_rows rows;
    size_t used_seqs, used_positions;
    bool packs;                /* a step takes whole packs; then: */
    struct buf begins;         /* u8 per complete sequence of the queue: 1 if a pack begins with it */
    uint64_t pack;             /* positions of the pack that the last of them belongs to */
    struct digest_state *seen; /* digest of this epoch's sequences up to the last one used (trainer_use_seq) */
    uint64_t sequences;        /* their number */
    struct place saved;        /* both after the last whole step, for checkpoints */

    /* The whole data, known when an epoch has ended: its length, then its digest as well. */
    uint64_t data_sequences; /* 0: unknown */
    bool data_known;
    struct digest data_digest;

    struct digest student; /* digest of configuration and weights at the start of the run */
    bool restored;
    uint64_t skip; /* after a restore: sequences still to skip; their digest must equal that of `saved` */

    bool (*stop)(void *ctx);
    void *stop_ctx;

    /* The current step: sums so far. */
    uint64_t step_positions, step_labelled, step_first_seq;
    bool watch_noise;        /* measure the gradient noise, for the log */
    double first_square;     /* sum of squares of the gradient of the step's first pass ... */
    uint64_t first_labelled; /* ... over this many labelled positions; 0: not measured */
    double contexts;         /* sum of context lengths over all positions used since trainer_new */

    struct evaluation *eval; /* NULL: none */

    struct distill_progress progress;
    struct buf row_weight, starts, field, sampled; /* of a micro-batch */
};

double trainer_now(void); /* seconds, monotonic */
/* Marks sequence `i` of the queue as used: counts it and adds it to the digest. */
void trainer_use_seq(struct trainer *t, size_t i);
/* Returns the number of sequences of the current step's next pass; 0: unknown yet, or the step is full. `last`: no more
 * rows follow. */
size_t trainer_next_pass(const struct trainer *t, bool last, size_t *n_positions);
/* Calls teacher_run_ahead for the passes of the current step. */
int trainer_run_teacher(struct trainer *t, bool last, bool *ready, struct err *e) MUST_CHECK;
/* Runs forward and backward over the next n_seqs sequences; adds to gradients and sums of the step. */
int trainer_run_micro(struct trainer *t, size_t n_seqs, size_t n_positions, struct err *e) MUST_CHECK;
/* Copies the values of the step's losses to t->progress; before the first step, sets their names. */
void trainer_note_losses(struct trainer *t);
/* Takes the optimizer step, and resets the step's sums. ERR_DATA: the gradient is not finite. */
int trainer_update(struct trainer *t, struct err *e) MUST_CHECK;

/* Writes the last step's losses by name (report.c). */
bool distill_put_losses(cJSON *to, const struct distill_progress *p);

/* ---- teacher.c: an online teacher -------------------------------------------------------------------------------- */

/* ERR_DATA: there is a teacher and it does not fit the student. */
int teacher_check(const struct distill_teacher *d, const struct model *student, struct err *e) MUST_CHECK;
const struct model *teacher_model(const struct distill_teacher *d); /* NULL if there is none */
/*
 * Lets a layerwise teacher run over as many passes of a step as possible, before the first of them: over the sequences
 * of `rows` from number `seq` and `position` on. `next` returns the sequences of the pass that follows the first
 * `taken` positions; 0 if there is none, and then *full says whether the step is complete. `last`: no more rows follow.
 * *ready becomes false if more rows are needed first. No-op while there are positions left from the last run, and for
 * any other teacher.
 */
struct teacher_ahead {
    const struct knowledge_rows *rows;
    size_t seq, position;
    bool last;
    size_t (*next)(const struct trainer *t, const struct teacher_ahead *a, size_t seq, uint64_t taken,
                   size_t *n_positions, bool *full);
};
int teacher_run_ahead(struct trainer *t, const struct teacher_ahead *a, bool *ready, struct err *e) MUST_CHECK;
/* Runs a forward pass: hidden states and head on t->teacher_tape, and the points that losses need. */
int teacher_forward(struct trainer *t, const struct model_input *in, struct grad_head_input *out,
                    struct err *e) MUST_CHECK;

int teacher_prepare(struct trainer *t, struct err *e) MUST_CHECK; /* allocates tapes and buffers for points */
void teacher_release(struct trainer *t);
/* Runs a forward pass of the student as it would be saved, with its averages if it has any, on the tape, which is reset
 * first. */
int trainer_forward_averages(struct trainer *t, struct grad_tape *tape, const struct model_input *in,
                             struct grad_head_input *out, struct err *e) MUST_CHECK;
/* Sets *rows to a point of the online teacher in the last pass; false: the losses did not request it. */
bool teacher_point(const struct trainer *t, enum model_point p, uint32_t layer, const float **rows, size_t *cols);

/* ---- evaluate.c -------------------------------------------------------------------------------------------------- */

int evaluation_begin(struct trainer *t, struct err *e) MUST_CHECK;
void evaluation_release(struct trainer *t);
/* Calls teacher_run_ahead for the queued rows of the held-out stream. */
int evaluation_run_teacher(struct trainer *t, bool last, struct err *e) MUST_CHECK;
/* Runs a forward pass over the first n_seqs sequences of t->eval->rows; adds to the sums of the metrics. */
int evaluation_pass(struct trainer *t, size_t n_seqs, size_t n_positions, struct err *e) MUST_CHECK;
/* Write members of a checkpoint's "options", and of its META. */
bool evaluation_put_same(cJSON *to, const struct trainer *t);
bool evaluation_put(cJSON *meta, const struct trainer *t);
/* Reads them, when step and options are known. ERR_USAGE: with this run's patience that run would have stopped. */
int evaluation_get(struct trainer *t, const cJSON *meta, struct err *e) MUST_CHECK;

/* ---- log.c: the log of the steps --------------------------------------------------------------------------------- */

struct step_log {
    const char *path;
    const struct distill_progress *names; /* the trainer's, for the names of the columns */
    const struct train_options *groups;
    int fd;       /* -1: no log */
    bool regular; /* a file that can be truncated, not a pipe or device */
    bool begun;   /* truncated to `keep`, and has its line of names */
    uint64_t keep;
    struct buf rest;          /* rest of the checkpoint's line after `keep`: its evaluation and the newline */
    uint64_t evaluation, end; /* regular file: start of the evaluation in the last line; end of the file */
};
/* Opens the file and, for a restored trainer, finds the checkpoint's line. path NULL: this and the following are
 * no-ops. */
int step_log_open(struct step_log *l, const char *path, const struct trainer *t, struct err *e) MUST_CHECK;
int step_log_put(struct step_log *l, const struct distill_progress *p, struct err *e) MUST_CHECK;
/* Rewrites the last line, with the values of an evaluation after it. */
int step_log_amend(struct step_log *l, const struct distill_progress *p, struct err *e) MUST_CHECK;
/* Flushes the log to disk: a checkpoint must not outlive its log. */
int step_log_sync(struct step_log *l, struct err *e) MUST_CHECK;
/* Ends the log: cuts off lines after the last step, even if this run took no step. */
int step_log_end(struct step_log *l, struct err *e) MUST_CHECK;
void step_log_release(struct step_log *l);

#endif
