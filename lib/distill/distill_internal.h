/* The trainer, as its files share it. */
#ifndef RILL_DISTILL_INTERNAL_H
#define RILL_DISTILL_INTERNAL_H

#include "lib/distill/distill.h"

/* Where an epoch is: sequences used, and their digest. */
struct place {
    uint64_t sequences;
    struct digest seen;
};

struct evaluation {
    struct knowledge_format format; /* fitted to the student */
    struct loss_list losses;        /* kl where there is a teacher, and ce */
    bool live;                      /* the teacher beside the student is asked */
    bool begun;                     /* the reading before the first step is over */
    struct grad_tape *tape;
    struct knowledge_rows rows;
    struct digest_state *seen; /* of the reading before the first step, with what came of it: */
    struct digest digest;
    struct distill_extent extent; /* without steps */
    uint64_t labelled;
};

struct trainer {
    struct model *m; /* the caller's */
    struct distill_options o;
    struct knowledge_format format;
    struct grad_tape *tape;
    struct param_set set;    /* the model's parameters, and those of losses */
    struct loss_list losses; /* bound */

    /* The points of the student that losses want, then those of the exits; the teacher's. */
    struct model_want wants[LOSS_MAX_POINTS + LOSS_MAX_EXITS], teacher_wants[LOSS_MAX_POINTS];
    struct grad_tape *teacher_tape, *ema_tape; /* of the model's averages, where they teach; NULL: they do not */
    /* A teacher layer by layer runs ahead over the micro-batches of a step: over so many positions, of which `ahead_at` have been
     * asked for and `ahead_row` is the first of those asked for last; most_ahead: as many as memory is taken for. */
    uint64_t ahead, ahead_at, ahead_row, most_ahead;
    struct buf ahead_inputs;  /* struct model_input */
    struct buf *teacher_taps; /* [n_of_teacher] rows of its points in f32 */

    /* Data: what is queued, and how much of it has been through forward and backward. */
    struct knowledge_rows rows;
    size_t used_seqs, used_positions;
    bool packs;                /* a step takes whole packs: */
    struct buf begins;         /* u8 of each whole sequence of the queue: a pack begins with it */
    uint64_t pack;             /* positions of the pack that the last of them is in */
    struct digest_state *seen; /* what this epoch's sequences say, up to the last one used (trainer_use_seq) */
    uint64_t sequences;        /* their number */
    struct place saved;        /* the two after the last whole step: what a checkpoint holds */

    /* The whole data, once an epoch has come to its end: its length, then its digest too. */
    uint64_t data_sequences; /* 0: not known */
    bool data_known;
    struct digest data_digest;

    struct digest student; /* configuration and weights that the run began with */
    bool restored;
    uint64_t skip; /* after a restore: sequences still to skip; their digest must come to that of `saved` */

    bool (*stop)(void *ctx);
    void *stop_ctx;

    /* The step under way: sums over its labelled positions so far. */
    uint64_t step_positions, step_labelled, step_first_seq;
    bool watch_noise;        /* of the gradient, for the log */
    double first_square;     /* sum of squares of the gradient of the step's first pass ... */
    uint64_t first_labelled; /* ... over so many labelled positions; 0: not measured */
    double contexts;         /* positions that those used since the trainer was made or restored have attended to */

    struct evaluation *eval; /* NULL: there is none */

    struct distill_progress progress;
    struct buf row_weight, starts, field, sampled; /* of a micro-batch */
};

double trainer_now(void); /* seconds, monotonic */
/* Sequence `i` of the queue is used: counts it and takes it into the digest. */
void trainer_use_seq(struct trainer *t, size_t i);
/* Sequences of the next pass of the step under way; 0: not known yet, or it has all it takes. `last`: no rows follow. */
size_t trainer_next_pass(const struct trainer *t, bool last, size_t *n_positions);
/* teacher_run_ahead for the passes of the step under way. */
int trainer_run_teacher(struct trainer *t, bool last, bool *ready, struct err *e) MUST_CHECK;
/* Forward and backward over `n_seqs` sequences from used_seqs on: gradients and sums of the step grow. */
int trainer_run_micro(struct trainer *t, size_t n_seqs, size_t n_positions, struct err *e) MUST_CHECK;
/* The values of the step's losses into t->progress; before the first step, their names. */
void trainer_note_losses(struct trainer *t);
/* The gradients of the step into the weights. */
int trainer_update(struct trainer *t, struct err *e) MUST_CHECK;

/* Of the last step, each under its name (report.c). */
bool distill_put_losses(cJSON *to, const struct distill_progress *p);

/* ---- teacher.c: a teacher in the process ---------------------------------------------------------------------------- */

/* Is there one that fits the student? ERR_DATA. */
int teacher_check(const struct distill_teacher *d, const struct model *student, struct err *e) MUST_CHECK;
const struct model *teacher_model(const struct distill_teacher *d); /* NULL: none */
/*
 * Before the passes over the sequences of `rows` from number seq and `position` on: a teacher layer by layer runs over all those that can
 * be cut of a step. `next` gives the sequences of one after the `taken` positions before it, 0 where there is none, and then says in
 * *full whether that is because the step has all it takes. `last`: no rows follow. *ready = false: more are needed first.
 * Does nothing while there are positions that it has run over, and for any other teacher.
 */
struct teacher_ahead {
    const struct knowledge_rows *rows;
    size_t seq, position;
    bool last;
    size_t (*next)(const struct trainer *t, const struct teacher_ahead *a, size_t seq, uint64_t taken,
                   size_t *n_positions, bool *full);
};
int teacher_run_ahead(struct trainer *t, const struct teacher_ahead *a, bool *ready, struct err *e) MUST_CHECK;
/* A forward pass: its hidden states and head on t->teacher_tape, and the points that losses want of it. */
int teacher_forward(struct trainer *t, const struct model_input *in, struct grad_head_input *out,
                    struct err *e) MUST_CHECK;

int teacher_prepare(struct trainer *t, struct err *e) MUST_CHECK; /* its tape, and where its points go */
void teacher_release(struct trainer *t);
/* The student as it would be saved, with its averages if it has any: hidden states and head on the tape, which is
 * reset. */
int trainer_forward_averages(struct trainer *t, struct grad_tape *tape, const struct model_input *in,
                             struct grad_head_input *out, struct err *e) MUST_CHECK;
/* A point of the teacher beside the student, of the last pass; false: it has none. */
bool teacher_point(const struct trainer *t, enum model_point p, uint32_t layer, const float **rows, size_t *cols);

/* ---- evaluate.c ------------------------------------------------------------------------------------------------------ */

int evaluation_begin(struct trainer *t, struct err *e) MUST_CHECK;
void evaluation_release(struct trainer *t);
/* teacher_run_ahead for what is queued of the held-out stream. */
int evaluation_run_teacher(struct trainer *t, bool last, struct err *e) MUST_CHECK;
/* A forward pass over the first n_seqs sequences of t->eval->rows: sums of the metrics grow. */
int evaluation_pass(struct trainer *t, size_t n_seqs, size_t n_positions, struct err *e) MUST_CHECK;
/* Members of a checkpoint's "options", and of its META. */
bool evaluation_put_same(cJSON *to, const struct trainer *t);
bool evaluation_put(cJSON *meta, const struct trainer *t);
/* After step and options are known. ERR_USAGE when this run's patience would have ended that run before. */
int evaluation_get(struct trainer *t, const cJSON *meta, struct err *e) MUST_CHECK;

/* ---- log.c: the lines of the steps ------------------------------------------------------------------------------------- */

struct step_log {
    const char *path;
    const struct distill_progress *names; /* of the columns: the trainer's */
    const struct train_options *groups;
    int fd;       /* -1: there is no log */
    bool regular; /* a file that can be cut; else a pipe or a device */
    bool begun;   /* cut to `keep`, and has its line of names */
    uint64_t keep;
    struct buf rest;          /* of the checkpoint's line what follows `keep`: its evaluation and the end of the line */
    uint64_t evaluation, end; /* where that is in the last line, in a regular file; where the file ends */
};
/* Opens the file (path NULL: does nothing, as all of these do then) and, for a restored trainer, looks for its
 * place in it. */
int step_log_open(struct step_log *l, const char *path, const struct trainer *t, struct err *e) MUST_CHECK;
int step_log_put(struct step_log *l, const struct distill_progress *p, struct err *e) MUST_CHECK;
/* Once more the line that was put last, with the values of an evaluation after it. */
int step_log_amend(struct step_log *l, const struct distill_progress *p, struct err *e) MUST_CHECK;
/* To disk: a checkpoint must not outlive its log. */
int step_log_sync(struct step_log *l, struct err *e) MUST_CHECK;
/* The run is done: lines after its last step go, even when it had no step to take. */
int step_log_end(struct step_log *l, struct err *e) MUST_CHECK;
void step_log_release(struct step_log *l);

#endif
