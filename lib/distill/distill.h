/*
 * distill: trains a student on a knowledge stream, or on tokens with an online teacher. Losses come from lib/losses,
 * optimizers and schedules from lib/train; here are clipping by global norm, gradient accumulation and the loop.
 *
 * The result depends only on the sequences of the data and on the options, never on how the stream was cut into
 * batches:
 *   - An optimizer step takes whole sequences, in order, until it has at least `batch_tokens` positions, and whole
 *     packs if the data has packs; the last step of an epoch takes what is left.
 *   - Within a step, each forward and backward pass covers as many whole sequences as fit into `micro_tokens`
 *     positions, but at least one.
 *   - Losses are means over the labelled positions of the step. No loss uses the last position of a sequence, so all
 *     losses cover the same positions.
 */
#ifndef RILL_DISTILL_H
#define RILL_DISTILL_H

#include "lib/base/base.h"
#include "lib/knowledge/knowledge.h"
#include "lib/losses/losses.h"
#include "lib/model/model.h"
#include "lib/train/train.h"

/* ---- the trainer ------------------------------------------------------------------------------------------------- */

/* An online teacher: at most one is set; the caller owns it, and it must outlive the trainer. {0}: none. */
struct distill_teacher {
    struct model *model;
    struct model_layerwise *layerwise; /* streams its weights once per step, or once per part of it that fits memory */
    double bytes;                      /* size of its weights, for trainer_memory */
};

/* Evaluation between steps: the student as it would be saved then (with its averages, if options.train.ema is set) on a
 * held-out stream. Values are means over its labelled positions, at the temperature of its predictions: ce, and kl
 * under loss_kl_name if the stream has a teacher's predictions, or is plain tokens and there is an online teacher. */
struct distill_eval {
    /* Sets *data to a reader at the beginning of the stream, which the caller owns. Called before the first step and
     * for each evaluation. NULL: no evaluation. */
    int (*open)(void *ctx, struct stream_reader **data, struct err *e);
    void *ctx;
    const struct knowledge_format *format; /* of its META; caller owns */
    uint64_t every;                        /* steps between evaluations; there is also one at the end */
    const char *metric;                    /* "kl" or "ce", which decides what is better; NULL: kl if available */
    uint64_t patience;                     /* stop after this many evaluations in a row without improvement; 0: never */
    double min_delta;                      /* smallest improvement that counts for patience */
};

struct mixture;
struct distill_options {
    struct mixture *mixture; /* source of the data, caller owns; NULL: one stream, in its order */
    struct loss_list losses; /* as added; the trainer binds a copy */
    struct distill_teacher teacher;
    uint32_t exits[LOSS_MAX_EXITS]; /* [n_exits] layers before each, ascending: extra heads for losses at=exits */
    size_t n_exits;
    struct train_plan plan;
    struct train_options train; /* optimizer */
    uint64_t batch_tokens;      /* positions per optimizer step, at least */
    uint64_t micro_tokens;      /* positions per forward and backward pass, at most (or one sequence) */
    double clip;                /* largest norm of the gradient; 0: no clipping */
    struct distill_eval eval;   /* with train.keep_best the result is the best state evaluated */
    enum dtype precision;       /* of the tape: DT_F32 or DT_BF16 */
    bool recompute;             /* recompute layers in backward (grad_recompute): less memory, more time, same bits */
};

/* Parses "N,N,..." into exits. ERR_USAGE; trainer_new checks them against the student. */
int distill_exits_parse(const char *text, struct distill_options *o, struct err *e) MUST_CHECK;

/* The amount of work in an epoch of a tokens or knowledge stream. */
struct distill_extent {
    uint64_t steps, positions;
    uint64_t passes, largest_pass; /* forward and backward passes; positions of the largest one */
};
/* Sets *x by reading the stream to its end, headers and lengths only. ERR_DATA: it holds no sequences. */
int distill_count(struct stream_reader *r, const struct distill_options *o, struct distill_extent *x,
                  struct err *e) MUST_CHECK;

/*
 *     trainer_new
 *     for each epoch:
 *         until the data ends: trainer_feed, then trainer_step(last = false) until it takes no step
 *         trainer_step(last = true) until it takes no step; trainer_end_epoch
 *
 * and between any two of these calls: trainer_progress, trainer_save.
 */
struct trainer;
/* Creates a trainer for a model, which the caller owns and which gets gradients. ERR_DATA, ERR_USAGE: the knowledge
 * does not fit the model (knowledge_fit_target), the teacher has another vocabulary or target, the losses need
 * something else (loss_list_bind), or the held-out stream, which is read through, is damaged or has no labels. */
int trainer_new(struct trainer **out, struct model *m, const struct distill_options *o,
                const struct knowledge_format *f, struct err *e) MUST_CHECK;
/* Returns the format of the rows to feed: that given to trainer_new, fitted to the student. */
const struct knowledge_format *trainer_format(const struct trainer *t);
/* Queues the next rows of the source, whose format is trainer_format. *more becomes false at its end. */
int trainer_feed(struct trainer *t, const struct knowledge_source *from, bool *more, struct err *e) MUST_CHECK;
/* Processes queued sequences until an optimizer step is taken (*stepped) or more data is needed; `last`: the epoch has
 * no more. If the trainer is told to stop, it returns between two micro-batches, without taking the step. ERR_DATA
 * names the step whose loss or gradient is not finite; the weights are then those of the step before. */
int trainer_step(struct trainer *t, bool last, bool *stepped, struct err *e) MUST_CHECK;
/* Ends an epoch; the data may then be fed again from its beginning. ERR_DATA: the data ended inside a sequence, or is
 * not the same as in the epoch before. */
int trainer_end_epoch(struct trainer *t, struct err *e) MUST_CHECK;
/* Sets a callback that says whether to stop; it is called between micro-batches. The unfinished step is lost, and
 * afterwards only trainer_progress, trainer_save and trainer_free are allowed. */
void trainer_stop_when(struct trainer *t, bool (*stop)(void *ctx), void *ctx);

#define DISTILL_MAX_METRICS 2
struct distill_evaluation {
    uint64_t step; /* step after which it was made; 0: none yet */
    struct {
        char name[LOSS_NAME + 8]; /* "eval_kl" */
        double value;
    } values[DISTILL_MAX_METRICS];
    size_t n, metric;            /* n 0: the run has no evaluation; metric: index of the deciding value */
    uint64_t best_step;          /* step of the smallest value so far */
    double best, mark;           /* smallest value; value at the last improvement by more than min_delta */
    uint64_t wait, longest_wait; /* evaluations since that improvement; the most so far */
};
struct distill_progress {
    uint64_t step, epoch; /* steps taken, epochs completed */
    uint64_t positions;   /* trained on, over all epochs */
    /* Of the last step, means over its labelled positions: each loss without weight or T^2, in the list's order, and
     * the weighted sum of all. */
    struct {
        char name[LOSS_NAME];
        double value;
    } losses[LOSS_MAX];
    size_t n_losses;
    double loss;
    double lr, grad_norm;                    /* before clipping */
    double group_norm[1 + TRAIN_MAX_GROUPS]; /* per group of options.train; 0: ungrouped */
    struct train_noise noise;                /* over the steps with several passes, if there is a log */
    uint64_t first_seq;                      /* number of the first sequence of the last step */
    struct distill_evaluation eval;          /* the last evaluation */
};
void trainer_progress(const struct trainer *t, struct distill_progress *p);
/* Evaluates the student. If told to stop, it returns without a result (progress.eval.step is not the current step).
 * ERR_DATA: a value is not finite. */
int trainer_evaluate(struct trainer *t, struct err *e) MUST_CHECK;
bool trainer_evaluation_due(const struct trainer *t); /* after the last step, and not made yet */
bool trainer_waited_enough(const struct trainer *t);  /* options.eval.patience is exhausted */
/* Returns the plan in its shortest form, after trainer_restore including the phases before the checkpoint. Owned by the
 * trainer. */
const struct train_plan *trainer_plan(const struct trainer *t);

/* Memory in bytes: of the model, of the optimizer, and the largest need of any step so far (struct grad_memory). */
struct distill_memory {
    double weights, gradients, optimizer;
    double best; /* copy of the best state, not included in optimizer */
    double values, value_gradients, scratch;
    double teacher, evaluation; /* online teacher with its weights; additional need of evaluations */
};
void trainer_memory(const struct trainer *t, struct distill_memory *m);

/*
 * Saves parameters, moments and the position of the run as a checkpoint stream (META included): the state after the
 * last whole step. A resumed run produces the same bytes as an uninterrupted one.
 *
 * Call trainer_restore before feeding data. ERR_DATA unless everything that the result depends on is the same: the
 * student that the run began with (configuration and all weights), the data, the losses, batch and micro-batch size,
 * precision and the options of lib/train. Only the plan may differ: it applies from the next step on
 * (train_plan_continue). ERR_USAGE: the checkpoint is past the plan's last step.
 *
 * Afterwards feed the data from the beginning of the epoch: trainer_feed skips what was trained on, and checks it
 * against a digest. If the run has seen its data end, and so may have taken a short step there, later data must have
 * that length; otherwise the data may have grown at its end.
 */
int trainer_save(struct trainer *t, struct stream_writer *w, struct err *e) MUST_CHECK;
/* Before any data: loads the optimizer's moments from another run's checkpoint (train_start). */
int trainer_start(struct trainer *t, struct stream_reader *r, struct err *e) MUST_CHECK;
int trainer_restore(struct trainer *t, struct stream_reader *r, struct err *e) MUST_CHECK;
/* After the last step: turns the model into what is to be saved (param_set_finish). */
int trainer_finish(struct trainer *t, struct err *e) MUST_CHECK;
void trainer_free(struct trainer *t); /* no-op if NULL */

/* ---- order of the data: shuffled, and drawn from several files (mixture.c) --------------------------------------- */

/*
 * Files from which sequences (or packs, if a file has packs) are drawn. The order depends only on lengths, weights,
 * options and the plan, so a resumed run draws the same.
 *   - The next one comes from the file with the fewest positions drawn relative to its weight, so at any time shares
 *     are as close to the weights as whole sequences allow. Ties go to the file added first.
 *   - A file's sequences come in its order or, with `shuffle`, in a new random order for each pass over the file
 *     (Fisher and Yates; Knuth, TAOCP vol. 2, 3.4.2, algorithm P). Each file starts again when it ends, independently.
 *   - An epoch ends with the first file. A run with decay weights ends only with its plan's last step.
 *   - Decay weights apply to steps in the decay phase of the plan's schedule (Hu et al. 2024, "MiniCPM", arXiv
 *     2404.06395: the data of the decay stage differs). A file used in both stages continues where it was; shares are
 *     counted afresh.
 * Memory: 16 bytes per sequence or pack, 20 with shuffle, and the current batch of each file.
 */
struct mixture_file {
    const char *name;            /* copied */
    double weight, decay_weight; /* 0: not used in that stage */
    /* Sets *r to a reader at the beginning of the file, valid until the next call. */
    int (*open)(void *ctx, struct stream_reader **r, struct err *e);
    void *ctx;
};
/* Creates an empty mixture; the caller frees it. */
int mixture_new(struct mixture **out, bool shuffle, uint64_t seed, struct err *e) MUST_CHECK;
/* Adds a file after reading its headers and lengths. The first file must have a weight. ERR_DATA: its format differs
 * from the first file's (knowledge_check_same), or it cannot be indexed (knowledge_units_find). */
int mixture_add(struct mixture *m, const struct mixture_file *f, struct err *e) MUST_CHECK;
/* Moves to the beginning of an epoch, counted from 0, of a run with that plan (NULL: no step is in a decay phase),
 * which must live as long as the mixture is used. */
void mixture_begin(struct mixture *m, const struct train_plan *plan, uint64_t batch_tokens, uint64_t epoch);
/* Starts the next epoch, after the current one has ended. */
void mixture_next_epoch(struct mixture *m);
/* Returns a source of rows of that format, which ends with the epoch. The format must outlive it. */
struct knowledge_source mixture_source(struct mixture *m, const struct knowledge_format *format);
bool mixture_has_packs(const struct mixture *m);
bool mixture_has_decay(const struct mixture *m); /* any file has a decay weight */
/* Returns the steps of that many epochs; *x becomes the extent of the first (distill_count). Ignores decay phases. */
uint64_t mixture_count(struct mixture *m, const struct distill_options *o, uint64_t epochs, struct distill_extent *x);
/* Writes members that identify the mixture, which must be the same when a checkpoint is resumed. mixture_member_file
 * returns the name of the file that a member belongs to, or NULL. */
bool mixture_put(cJSON *to, const struct mixture *m);
const char *mixture_member_file(const struct mixture *m, const char *member);
/* Writes an array of how much was drawn from each file. */
bool mixture_put_report(cJSON *to, const struct mixture *m);
void mixture_free(struct mixture *m); /* no-op if NULL */

/* ---- a whole run ------------------------------------------------------------------------------------------------- */

struct distill_run {
    uint64_t epochs; /* passes over the data, at most */
    struct knowledge_format format;
    /* Sets *data to a reader at the beginning of the data, which the caller owns. Called for each epoch, without a
     * mixture. */
    int (*open)(void *ctx, struct stream_reader **data, struct err *e);
    /* Log file, NULL: none: a line of names, then a line per step: step, each loss, lr, gradient norm, positions, and
     * the values of an evaluation after it, or nan. Values of an evaluation at the end replace the last line, or in a
     * pipe follow as another line for that step. A resumed run continues its log: lines after the checkpoint's step are
     * cut off; ERR_DATA: it is the log of another run. The file is not changed before the first step is taken. */
    const char *log;
    /* Should call trainer_save. Called every save_every steps, on request, when stopped and at the end. NULL: never. */
    int (*save)(void *ctx, struct trainer *t, struct err *e);
    uint64_t save_every;
    bool (*save_wanted)(void *ctx);                                                         /* save now? NULL: no */
    bool (*stop_wanted)(void *ctx);                                                         /* stop at once? NULL: no */
    void (*stepped)(void *ctx, const struct distill_progress *p, double tokens_per_second); /* after a step; or NULL */
    void *ctx;
    double tokens_per_second; /* OUT: of this run, without steps before a checkpoint */
    double seconds;           /* OUT: from the first step to the last, without evaluations */
    double eval_seconds;      /* OUT: of all evaluations */
    bool has_kl;              /* OUT: there is a loss kl on the last head; for the first such loss: */
    double first_kl, last_kl; /* OUT: its values at this run's first and last step */
    double mean_context;      /* OUT: mean number of positions that a position attends to, including itself */
    bool stopped;             /* OUT: by stop_wanted */
    bool stopped_early;       /* OUT: by options.eval.patience */
};
/* Runs the loop above, with evaluations, from the trainer's state to the plan's last step or the end of the last epoch.
 * An evaluation made only because the run ends comes after the last checkpoint, from which a longer run may resume.
 * ERR_USAGE: a restored trainer is past the last epoch. */
int distill_run(struct trainer *t, struct distill_run *r, struct err *e) MUST_CHECK;

/* ---- forecasting the cost of a run (forecast.c) ------------------------------------------------------------------ */

struct distill_forecast {
    uint64_t steps;
    double positions, passes;
    double seconds, tokens_per_second; /* from the first step to the last, without checkpoints and evaluations */
    uint64_t evaluations;
    double eval_seconds; /* of all evaluations */
    struct distill_memory memory;
    double peak_bytes;       /* of the whole process */
    double model_bytes;      /* of the result, uncompressed */
    double checkpoint_bytes; /* tensors of one checkpoint, uncompressed */
};
/* Instead of distill_run: measures a warm pass (with any teachers), an update, and a pass of an evaluation, and
 * extrapolates. `x` is the extent of r's data. Afterwards the trainer and its model may only be freed. */
int distill_predict(struct trainer *t, struct distill_run *r, const struct distill_extent *x,
                    struct distill_forecast *f, struct err *e) MUST_CHECK;
/* Returns the floating-point operations that the model needs per trained position, not counting recomputed layers (the
 * numerator of "model FLOPs utilization", Chowdhery et al. 2022, appendix B). */
double distill_flops(const struct trainer *t, double mean_context);
/* Measures the peak of this machine, in operations per second, on large matrix products in that precision; takes a
 * quarter of a second. */
int distill_peak(struct kernel_device *d, enum dtype precision, double *flops, struct err *e) MUST_CHECK;

/* ---- reports (report.c) ------------------------------------------------------------------------------------------ */

/* Write members of an object; false: out of memory. put_run: a run's steps, positions, losses and speed. put_settings:
 * the effective settings. put_speed: the machine's peak (which it measures) and the cost of the run. price: per hour,
 * 0: no cost. */
bool distill_put_run(cJSON *to, const struct trainer *t, const struct distill_run *r);
bool distill_put_settings(cJSON *to, const struct trainer *t);
int distill_put_speed(cJSON *to, const struct trainer *t, const struct distill_run *r, double price,
                      struct err *e) MUST_CHECK;
bool distill_put_forecast(cJSON *to, const struct distill_forecast *f, double price);
#define DISTILL_TEXT 512
/* Writes where the memory goes into out; returns out. */
char *distill_memory_text(const struct trainer *t, char out[DISTILL_TEXT]);
/* Writes where a restored trainer continues. Returns true if it switches there from one schedule to another. */
bool distill_resumed_text(const struct trainer *t, char out[DISTILL_TEXT]);

#endif
