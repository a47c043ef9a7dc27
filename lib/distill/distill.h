/*
 * distill: trains a student on a knowledge stream, or on tokens with a teacher beside it. Losses of lib/losses, optimizers and
 * schedules of lib/train, clipping by global norm, gradient accumulation.
 *
 * What a run computes depends on the sequences of the data and on the options alone, never on how the stream was cut into batches:
 *   - An optimizer step takes whole sequences, in order, until it has at least `batch_tokens` positions, and whole packs where the
 *     data has packs; the last step of an epoch takes what is left.
 *   - Within a step, forward and backward run over as many whole sequences as fit `micro_tokens` positions, but at least one.
 *   - Losses are means over the labelled positions of the step: the last position of a sequence counts for none of them, so that
 *     all speak of the same positions.
 */
#ifndef RILL_DISTILL_H
#define RILL_DISTILL_H

#include "lib/base/base.h"
#include "lib/knowledge/knowledge.h"
#include "lib/losses/losses.h"
#include "lib/model/model.h"
#include "lib/train/train.h"

/* ---- the trainer -------------------------------------------------------------------------------------------------------- */

/* A teacher that runs beside the student: one of the two, the caller's, as long as the trainer. {0}: none. */
struct distill_teacher {
    struct model *model;
    struct model_layerwise
        *layerwise; /* its weights go by once for each step, or as much of it as memory has room for */
    double bytes;   /* that its weights take; for trainer_memory alone */
};

/* A held-out stream that the student is evaluated on between steps, as it would be saved then: with its averages, if
 * options.train.ema keeps some. Values are means over its labelled positions, at the temperature of its answers: ce, and
 * kl under loss_kl_name where it holds a teacher's answers, or, of plain tokens, where a teacher runs beside the student. */
struct distill_eval {
    /* A reader at the beginning of the stream, for each evaluation and once before the first step. It stays the caller's.
     * NULL: nothing is evaluated. */
    int (*open)(void *ctx, struct stream_reader **data, struct err *e);
    void *ctx;
    const struct knowledge_format *format; /* of its META; the caller's */
    uint64_t every;                        /* after so many steps, and at the end */
    const char *metric; /* what decides over better and worse: "kl" or "ce"; NULL: kl if there is one */
    uint64_t patience;  /* the run ends after so many evaluations in a row without improvement; 0: it does not */
    double min_delta;   /* less is no improvement for patience */
};

struct mixture;
struct distill_options {
    struct mixture *mixture; /* where the data comes from, the caller's; NULL: from one stream, in its order */
    struct loss_list losses; /* as they were added; the trainer binds a copy */
    struct distill_teacher teacher;
    uint32_t
        exits[LOSS_MAX_EXITS]; /* [n_exits] layers before each, ascending: heads of their own for losses at=exits */
    size_t n_exits;
    struct train_plan plan;
    struct train_options train; /* optimizer */
    uint64_t batch_tokens;      /* positions per optimizer step, at least */
    uint64_t micro_tokens;      /* positions per forward and backward, at most (but one sequence) */
    double clip;                /* largest norm of the gradient; 0: any */
    struct distill_eval eval;   /* with train.keep_best the result is the best state that it has seen */
    enum dtype precision;       /* of the tape: DT_F32 or DT_BF16 */
    bool recompute; /* layers run again in backward (grad_recompute): less memory, more time, the same bits */
};

/* "N,N,..." into exits. ERR_USAGE; trainer_new checks them against the student. */
int distill_exits_parse(const char *text, struct distill_options *o, struct err *e) MUST_CHECK;

/* What an epoch of a tokens or knowledge stream makes. */
struct distill_extent {
    uint64_t steps, positions;
    uint64_t passes, largest_pass; /* forward and backward; positions in the largest one */
};
/* Reads the stream to its end once, lengths only. ERR_DATA when it holds no sequences. */
int distill_count(struct stream_reader *r, const struct distill_options *o, struct distill_extent *x,
                  struct err *e) MUST_CHECK;

/*
 *     trainer_new
 *     for each epoch:
 *         until there is no more: trainer_feed, then trainer_step(last = false) until it has taken no step
 *         trainer_step(last = true) until it has taken no step; trainer_end_epoch
 *
 * and between any two of these calls: trainer_progress, trainer_save.
 */
struct trainer;
/* The model stays the caller's and gets gradients. ERR_DATA when the knowledge does not fit it (knowledge_fit), when its logits are
 * not of the next token (model_check_next_token), which all knowledge is about, when the teacher has another vocabulary, when there
 * is not what the losses need (loss_list_bind), or when the held-out stream, which is read through, is damaged or has no labels. */
int trainer_new(struct trainer **out, struct model *m, const struct distill_options *o,
                const struct knowledge_format *f, struct err *e) MUST_CHECK;
/* The format of the rows that the trainer is fed: what it was made with, fitted to the student. */
const struct knowledge_format *trainer_format(const struct trainer *t);
/* Queues the next rows of the source, whose format is trainer_format. *more = false: there are none. */
int trainer_feed(struct trainer *t, const struct knowledge_source *from, bool *more, struct err *e) MUST_CHECK;
/* Works on what is queued until it has taken an optimizer step or needs more data; `last`: there is no more in this epoch.
 * ERR_DATA names the step when a loss or gradient is not finite: the weights are then those of the step before. When the
 * trainer was told to stop, it returns between two micro-batches without having taken the step. */
int trainer_step(struct trainer *t, bool last, bool *stepped, struct err *e) MUST_CHECK;
/* The data has ended, and will be fed from its beginning again, or not. ERR_DATA when it ended inside a sequence, or when it is
 * not that of the epoch before. */
int trainer_end_epoch(struct trainer *t, struct err *e) MUST_CHECK;
/* Asked between micro-batches whether to stop at once. What the step under way has done is lost, and after that the trainer
 * is only good for trainer_progress, trainer_save and trainer_free. */
void trainer_stop_when(struct trainer *t, bool (*stop)(void *ctx), void *ctx);

#define DISTILL_MAX_METRICS 2
struct distill_evaluation {
    uint64_t step; /* after which it was; 0: there has been none */
    struct {
        char name[LOSS_NAME + 8]; /* "eval_kl" */
        double value;
    } values[DISTILL_MAX_METRICS];
    size_t n, metric;            /* n 0: the run has no evaluation; metric: the one that decides */
    uint64_t best_step;          /* of the smallest value so far */
    double best, mark;           /* it; that of the last improvement by more than min_delta */
    uint64_t wait, longest_wait; /* evaluations since that one; the most there have been */
};
struct distill_progress {
    uint64_t step, epoch; /* steps taken, epochs completed */
    uint64_t positions;   /* trained on, all epochs */
    /* Of the last step, means over its labelled positions: each loss without its weight or T^2, in the order of the list, and the
     * sum of all with them. */
    struct {
        char name[LOSS_NAME];
        double value;
    } losses[LOSS_MAX];
    size_t n_losses;
    double loss;
    double lr, grad_norm;                    /* before clipping */
    double group_norm[1 + TRAIN_MAX_GROUPS]; /* of each group of options.train, the rest first */
    struct train_noise noise;                /* of the steps so far that had several passes, while there is a log */
    uint64_t first_seq;                      /* number of the first sequence of the last step */
    struct distill_evaluation eval;          /* the last one */
};
void trainer_progress(const struct trainer *t, struct distill_progress *p);
/* Evaluates the student. A trainer that is told to stop returns without having done so (progress.eval.step is not step then).
 * ERR_DATA when a value is not finite. */
int trainer_evaluate(struct trainer *t, struct err *e) MUST_CHECK;
bool trainer_evaluation_due(const struct trainer *t); /* the last step asks for one, and there has been none */
bool trainer_waited_enough(const struct trainer *t);  /* options.eval.patience is at its end */
/* Its plan in the shortest form; after trainer_restore with what came before the checkpoint. Owned by the trainer. */
const struct train_plan *trainer_plan(const struct trainer *t);

/* Where the memory goes, in bytes: the model's, the optimizer's, and the largest need of a step so far (struct grad_memory). */
struct distill_memory {
    double weights, gradients, optimizer;
    double best; /* a copy of the best state; not in optimizer */
    double values, value_gradients, scratch;
    double teacher, evaluation; /* a teacher in the process, its weights included; what evaluations need beside these */
};
void trainer_memory(const struct trainer *t, struct distill_memory *m);

/*
 * Parameters, moments and where the run is, as a checkpoint stream (META included): the state after the last whole step, at any
 * time. A resumed run gives the same bytes as an uninterrupted one.
 *
 * trainer_restore comes before any data. ERR_DATA unless all is the same that these bytes depend on: the student that the run
 * began with (its configuration and all weights), the data, the loss, the cut into batches and micro-batches, precision and what
 * lib/train is told. The plan alone may differ: it holds from the next step on (train_plan_continue). ERR_USAGE when the
 * checkpoint is past the plan's last step.
 *
 * Afterwards the data is fed from the beginning of the epoch, and trainer_feed skips what was trained on, checked against a
 * digest of it. A run that has seen its data end, and may have taken a short step there, holds later data to that length; as
 * long as it has not, the data may have grown at its end.
 */
int trainer_save(struct trainer *t, struct stream_writer *w, struct err *e) MUST_CHECK;
/* Before any data: the optimizer's moments from another run's checkpoint (train_start). */
int trainer_start(struct trainer *t, struct stream_reader *r, struct err *e) MUST_CHECK;
int trainer_restore(struct trainer *t, struct stream_reader *r, struct err *e) MUST_CHECK;
/* After the last step: makes the model what is to be saved (param_set_finish). */
int trainer_finish(struct trainer *t, struct err *e) MUST_CHECK;
void trainer_free(struct trainer *t); /* NULL is fine */

/* ---- data in another order: shuffled, and of several files (mixture.c) --------------------------------------------------- */

/*
 * Files whose sequences (packs, where a file has packs) are drawn one after another. Which comes next follows from lengths, weights,
 * options and the plan alone, so a resumed run draws what the one before drew.
 *   - The next one is of the file that has given the fewest positions for its weight, so that shares are kept at all times
 *     as closely as whole sequences allow. Ties go to the file added first.
 *   - A file's sequences come in its order or, with `shuffle`, in a random one (Fisher and Yates; Knuth, TAOCP vol. 2,
 *     3.4.2, algorithm P) for each time that it is gone through. Files begin anew when they end, each for itself.
 *   - An epoch is over when the first file has come to its end. A run with decay weights is not: it ends with its plan's last step.
 *   - With decay weights those hold in steps that are in the decay of the plan's schedule (Hu et al. 2024, "MiniCPM", arXiv
 *     2404.06395: the data of the decay stage differs). A file in both stages goes on where it was; shares are counted anew.
 * Memory: 16 bytes a sequence or pack, 20 with shuffle, and the batch of each file that was read last.
 */
struct mixture_file {
    const char *name;            /* copied */
    double weight, decay_weight; /* 0: not in that stage */
    /* A reader at the beginning of the file, valid until the next call. */
    int (*open)(void *ctx, struct stream_reader **r, struct err *e);
    void *ctx;
};
int mixture_new(struct mixture **out, bool shuffle, uint64_t seed, struct err *e) MUST_CHECK;
/* Reads headers and lengths of the file. The first file has a weight. ERR_DATA: it does not hold what the first one
 * holds (knowledge_check_same), or cannot be read so (knowledge_units_find). */
int mixture_add(struct mixture *m, const struct mixture_file *f, struct err *e) MUST_CHECK;
/* Goes to the beginning of an epoch, counted from 0, of a run with that plan (NULL: no step is in a decay). Both must outlive what
 * is drawn. */
void mixture_begin(struct mixture *m, const struct train_plan *plan, uint64_t batch_tokens, uint64_t epoch);
/* The epoch that follows one that has come to its end. */
void mixture_next_epoch(struct mixture *m);
/* Rows of that format; ends with the epoch. */
struct knowledge_source mixture_source(struct mixture *m, const struct knowledge_format *format);
bool mixture_has_packs(const struct mixture *m);
bool mixture_has_decay(const struct mixture *m); /* decay weights */
/* Steps of so many epochs, and what the first one makes (distill_count), as if no step was in a decay. */
uint64_t mixture_count(struct mixture *m, const struct distill_options *o, uint64_t epochs, struct distill_extent *x);
/* Members that say what it is made of, for a checkpoint, whose other members must be the same at resume; the name of the file
 * that a member speaks of, or NULL. */
bool mixture_put(cJSON *to, const struct mixture *m);
const char *mixture_member_file(const struct mixture *m, const char *member);
/* An array of what each file has given. */
bool mixture_put_report(cJSON *to, const struct mixture *m);
void mixture_free(struct mixture *m); /* NULL is fine */

/* ---- a whole run ------------------------------------------------------------------------------------------------- */

struct distill_run {
    uint64_t epochs; /* times the data is read, at most */
    struct knowledge_format format;
    /* A reader at the beginning of the data: called for each epoch, without a mixture. It stays the caller's. */
    int (*open)(void *ctx, struct stream_reader **data, struct err *e);
    /* A file that gets a line for each step (step, each loss, lr, gradient norm, positions; values of an evaluation after it, else nan), after a line
     * of names; NULL: none. The values of an evaluation at the end replace the last line, or in a pipe follow as another one of that step. A run that goes on from a checkpoint goes on in its log: lines after the checkpoint's step are cut off, and ERR_DATA says that
     * it is the log of another run. Nothing in the file changes before the first step is taken. */
    const char *log;
    /* Does what trainer_save is for: after each save_every steps, when asked to, when stopped and at the end. NULL: never */
    int (*save)(void *ctx, struct trainer *t, struct err *e);
    uint64_t save_every;
    bool (*save_wanted)(void *ctx);                                                         /* now? NULL: no */
    bool (*stop_wanted)(void *ctx);                                                         /* at once? NULL: no */
    void (*stepped)(void *ctx, const struct distill_progress *p, double tokens_per_second); /* NULL: nobody watches */
    void *ctx;
    double tokens_per_second; /* OUT: of this run, without what was trained before a checkpoint */
    double seconds;           /* OUT: from the first step to the last, without evaluations */
    double eval_seconds;      /* OUT: of all evaluations */
    bool has_kl;              /* OUT: a loss is kl, on the last head; of the first one: */
    double first_kl, last_kl; /* OUT: its value at this run's first step and at its last */
    double mean_context;      /* OUT: positions that a position has attended to, itself included, on average */
    bool stopped;             /* OUT: by stop_wanted */
    bool stopped_early;       /* OUT: by options.eval.patience */
};
/* The loop above, from where the trainer is to the last step of the plan or the end of the last epoch, with evaluations. One that is
 * made only because the run ends comes after the last checkpoint, which a longer run may go on from. ERR_USAGE when a restored
 * trainer is past that epoch. */
int distill_run(struct trainer *t, struct distill_run *r, struct err *e) MUST_CHECK;

/* ---- what it takes (forecast.c) ---------------------------------------------------------------------------------- */

struct distill_forecast {
    uint64_t steps;
    double positions, passes;
    double seconds, tokens_per_second; /* from the first step to the last, without checkpoints and evaluations */
    uint64_t evaluations;
    double eval_seconds; /* of all of them */
    struct distill_memory memory;
    double peak_bytes;       /* of the whole process */
    double model_bytes;      /* of the result, before a codec */
    double checkpoint_bytes; /* of one checkpoint's tensors */
};
/* Instead of distill_run: measures a pass, with all who teach, an update, and a pass of an evaluation, warm, and multiplies. The trainer and its model are then
 * good for trainer_free and model_free only. `x` is of r's data. */
int distill_predict(struct trainer *t, struct distill_run *r, const struct distill_extent *x,
                    struct distill_forecast *f, struct err *e) MUST_CHECK;
/* Arithmetic that the model needs for a trained position, layers that run again not counted (the numerator of
 * "model FLOPs utilization", Chowdhery et al. 2022, appendix B). */
double distill_flops(const struct trainer *t, double mean_context);
/* What this machine does at most, in a second, of a large product of matrices in that precision; takes a quarter
 * of one. */
int distill_peak(struct kernel_device *d, enum dtype precision, double *flops, struct err *e) MUST_CHECK;

/* ---- what is said of it (report.c) --------------------------------------------------------------------------------- */

/* Members of an object; false: no memory. A run's steps, positions, losses and speed; the effective settings; what the
 * machine can do (distill_peak is asked) and what the run cost, at a price an hour; 0: none. */
bool distill_put_run(cJSON *to, const struct trainer *t, const struct distill_run *r);
bool distill_put_settings(cJSON *to, const struct trainer *t);
int distill_put_speed(cJSON *to, const struct trainer *t, const struct distill_run *r, double price,
                      struct err *e) MUST_CHECK;
bool distill_put_forecast(cJSON *to, const struct distill_forecast *f, double price);
#define DISTILL_TEXT 512
char *distill_memory_text(const struct trainer *t, char out[DISTILL_TEXT]); /* returns out */
/* Where a restored trainer goes on. true: its learning rate turns there, from one schedule to another. */
bool distill_resumed_text(const struct trainer *t, char out[DISTILL_TEXT]);

#endif
