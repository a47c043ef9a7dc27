/*
 * train: what training needs whatever is trained for: parameters and their optimizer state, learning-rate schedules,
 * and their part of a checkpoint. It knows nothing of data, knowledge or losses.
 *
 *     struct param_set s = {0};
 *     param_set_init(&s, &options)
 *     train_add_model(&s, model), param_set_add(&s, ...)      any number of owners: a student, projectors, peers
 *     param_set_begin(&s)
 *     for each step: gradients, then train_gradient_norm and train_step
 *     param_set_release(&s)
 *
 * README.md says how an optimizer or a schedule is added. Results do not depend on the number of threads.
 */
#ifndef RILL_TRAIN_H
#define RILL_TRAIN_H

#include "lib/base/base.h"
#include "lib/model/model.h"

/* ---- the learning rate of each step (schedule.c) ----------------------------------------------------------------- */

#define TRAIN_MAX_LR 10.0

struct train_schedule {
    double lr, lr_min;                /* at the end of the warmup, and at the last step */
    uint64_t warmup, steps;           /* optimizer steps, 0 <= warmup <= steps, steps >= 1 */
    const struct schedule_type *type; /* NULL: the table's first row, cosine */
    double decay;                     /* share of the steps in which the rate falls, of a type that has_decay */
};
struct schedule_type {
    const char *name, *summary;
    bool falls;     /* to lr_min; else lr_min has no part in it */
    bool has_decay; /* takes the key decay=SHARE */
    /* What is left of the way from lr_min to lr at a step after the warmup: 1 is lr, 0 lr_min. */
    double (*height)(const struct train_schedule *s, uint64_t step);
};
extern const struct schedule_type train_schedules[]; /* ends with a NULL name; the first one is the default */
#define TRAIN_DECAY 0.2                              /* default share */

const struct schedule_type *train_schedule_type(const struct train_schedule *s);
/* Linear to lr at step `warmup`, then as the type says to step `steps`. Steps count from 1. */
double train_schedule_lr(const struct train_schedule *s, uint64_t step);
bool train_schedule_equal(const struct train_schedule *a, const struct train_schedule *b);
/* Of a schedule that states no more than its steps and its peak: a tenth of either, but at most 100 steps of warmup. */
uint64_t train_default_warmup(uint64_t steps);
double train_default_lr_min(const struct train_schedule *s);

/* A run may be continued with another schedule. Then a step has the rate that this schedule has at the step's
 * number, as if the run had followed it from the beginning: nothing is stretched, and there is no second warmup. */
struct train_phase {
    uint64_t until; /* the last step of the phase */
    struct train_schedule schedule;
};
#define TRAIN_MAX_PAST 32
struct train_plan {
    struct train_phase past[TRAIN_MAX_PAST]; /* `until` goes up */
    size_t n_past;
    struct train_schedule now; /* of the steps after the last phase */
};
const struct train_schedule *train_schedule_at(const struct train_plan *p, uint64_t step); /* that the step follows */
/* Is the step in the decay of a schedule that has one (wsd)? Its rate is then below the peak's. */
bool train_schedule_decays(const struct train_schedule *s, uint64_t step);
double train_lr(const struct train_plan *p, uint64_t step);
bool train_plan_equal(const struct train_plan *a, const struct train_plan *b);
/* ERR_USAGE for a plan that cannot be. */
int train_plan_check(const struct train_plan *p, struct err *e) MUST_CHECK;
/* `step` steps have followed `before`, the rest is to follow p: makes p the plan of them all, in its shortest form. */
int train_plan_continue(struct train_plan *p, const struct train_plan *before, uint64_t step, struct err *e) MUST_CHECK;
/* What --schedule says, one way for the run's own schedule and for those that came before:
 *     NAME[:decay=SHARE]                                              p->now; its other numbers are left as they are
 *     UNTIL:[NAME:]steps=N,warmup=N,lr=RATE[,lr-min=RATE][,decay=SHARE]   one more in p->past; no NAME: cosine
 * *now (begins false): p->now has been named. ERR_USAGE. */
int train_plan_parse(const char *text, struct train_plan *p, bool *now, struct err *e) MUST_CHECK;
/* A past phase as it is read, digit by digit. Returns out. */
#define TRAIN_PHASE_TEXT 256
char *train_phase_text(const struct train_phase *p, char out[TRAIN_PHASE_TEXT]);
/* The members of META: "schedule" and "past". */
bool train_plan_put(cJSON *to, const struct train_plan *p);
int train_plan_get(const cJSON *from, struct train_plan *p, struct err *e) MUST_CHECK;

/* ---- options ----------------------------------------------------------------------------------------------------- */

/* Parameters whose names a pattern fits (fnmatch), and what is said of them: "GLOB:lr=FACTOR,decay=W". A parameter
 * is in the first group that fits; what a group leaves out is as for all. */
#define TRAIN_MAX_GROUPS 16
#define TRAIN_GLOB_TEXT  128
struct train_group {
    char glob[TRAIN_GLOB_TEXT];
    double lr;    /* factor of the learning rate */
    double decay; /* weight decay of all its parameters, if has_decay */
    bool has_decay;
};
int train_group_parse(const char *text, struct train_group *g, struct err *e) MUST_CHECK;

/* Low-rank adapters (Hu et al. 2022): of matrices inside layers whose names fit. "RANK[:alpha=A,target=GLOB]" */
struct train_lora {
    uint64_t rank; /* 0: none */
    double alpha;  /* the product counts alpha / rank times */
    char target[TRAIN_GLOB_TEXT];
};
int train_lora_parse(const char *text, struct train_lora *l, struct err *e) MUST_CHECK;

/* The grids that forward passes read the model's matrices through (grid.c). */
struct train_quantization {
    const enum dtype *
        types; /* [n_params of the model] of each parameter, DT_F32: it stays as it is; the caller's. NULL: none has one */
    uint64_t refit; /* steps between two searches for scales; 0: the first one holds */
};

struct train_options {
    const struct optimizer_type *optimizer; /* NULL: the table's first row, adamw */
    double weight_decay;
    double beta1, beta2, eps;         /* of AdamW */
    double momentum;                  /* of Muon */
    enum dtype state;                 /* of moments: DT_F32, or DT_BF16 rounded at random (kernel_adamw) */
    enum dtype precision;             /* of an optimizer's matrix products */
    double ema;                       /* decay of the average of the weights; 0: none is kept */
    const struct train_group *groups; /* [n_groups], the caller's, as long as the set */
    size_t n_groups;
    const char *const *frozen; /* [n_frozen] patterns: what they fit is not trained; the caller's */
    size_t n_frozen;
    struct train_lora lora; /* not together with quantize */
    struct train_quantization quantize;
    bool keep_mask; /* weights of a model's matrices that are 0 when training begins stay 0 */
    bool mup;       /* learning rates and decay by the widths of the model and of its base (model_mup) */
    bool keep_best; /* there is room for a copy of what would be saved (param_set_keep) */
};

/* ---- parameters -------------------------------------------------------------------------------------------------- */

#define TRAIN_MAX_MOMENTS 2
struct param {
    const char *name;          /* valid UTF-8, unique in the set; copied */
    struct kernel_array value; /* f32 [rows][cols], the owner's; a vector has one row */
    struct kernel_array grad;  /* of the same shape */
    bool *grad_begun;          /* is there a gradient? (grad_parameter) */
    uint64_t rows, cols;
    bool matrix;                 /* inside a layer: from activations to activations */
    bool decays;                 /* weight decay pulls on it */
    bool maskable;               /* options.keep_mask is meant for it, too */
    double row_width, col_width; /* of muP, a hidden matrix: how much wider than in the base; else 0 */
    double factor;               /* of muP: model_mup_factor; 0: 1 */
    /* the set's: */
    uint64_t n, stream;                     /* elements; a digest of the name, by which moments are rounded */
    const struct optimizer_type *optimizer; /* whose step it takes */
    size_t group;                           /* 0: in none, else 1 + its number */
    double lr, decay;                       /* factor of the rate; weight decay */
    struct kernel_array moments[TRAIN_MAX_MOMENTS];
    struct kernel_array average; /* f32, of the values, exponential; no data: none */
    struct kernel_array zeros;   /* of keep_mask: bits of the values that stay 0 (kernel_zero_bits); no data: none */
    struct kernel_array best;    /* f32, what param_set_keep has kept; no data: nothing can be kept */
};
struct train_grid; /* grid.c */
struct param_set {
    struct train_options o;
    struct kernel_device *device; /* of moments, averages and scratch: that of the models, or the CPU */
    struct param *params;         /* [n], in the order in which they were added */
    size_t n, capacity;
    uint64_t updates;    /* that the moments have had before step 1 (train_start) */
    struct digest start; /* of the moments of train_start, if `started` */
    bool started;
    double group_square
        [1 + TRAIN_MAX_GROUPS];  /* of train_gradient_norm: sums of squares of each group's gradients; 0: the rest */
    uint32_t used;               /* bits: patterns of `frozen` that fitted something */
    struct kernel_array scratch; /* DT_U8, of the optimizers */
    size_t scratch_bytes;
    struct arena memory;
    struct model *gridded;    /* has grids, which are this set's, from param_set_begin on; NULL: none */
    struct train_grid *grids; /* [n_grids] */
    size_t n_grids;
    float *grid_part;      /* scratch */
    struct model *adapted; /* has adapters, which are this set's; NULL: none */
    bool kept;             /* param_set_keep has been called, in this run or in the one before a checkpoint */
};

/* Of options that were parsed; ERR_USAGE when there are too many patterns. */
int param_set_init(struct param_set *s, const struct train_options *o, struct err *e) MUST_CHECK;
/* Does --freeze name it? Asked before memory for a gradient is taken; a frozen parameter is not added. */
bool param_set_freezes(struct param_set *s, const char *name);
/* Adds what the owner says of `p`. */
int param_set_add(struct param_set *s, const struct param *p, struct err *e) MUST_CHECK;
/* All parameters of a model in f32 that are not frozen, in stream order, which get gradients; with options.lora
 * its new adapters instead, NAME.lora_a and NAME.lora_b, and the model's own values stay as they are until
 * param_set_finish. Decay pulls on matrices but for the embedding (a tied head with it): the row of a rare token
 * gets no gradient for thousands of steps, in which decay alone would move it. */
int train_add_model(struct param_set *s, struct model *m, struct err *e) MUST_CHECK;
/* All parameters are there: groups, moments of zero, masks. ERR_USAGE when nothing is trained, or a pattern, the
 * optimizer or the mask has no parameter. */
int param_set_begin(struct param_set *s, struct err *e) MUST_CHECK;
/* With options.keep_best: the values, or with options.ema their averages, as they are now, are what param_set_finish
 * takes instead of those that it finds. Replaces what was kept before. */
void param_set_keep(struct param_set *s);
/* Training is over: values become what was kept, else their averages (options.ema), adapters are added to their matrices and gone. The
 * set is then good for param_set_release only. ERR_DATA when a matrix is not finite. */
int param_set_finish(struct param_set *s, struct err *e) MUST_CHECK;
void param_set_release(struct param_set *s);
/* The model with its averages in place of its weights, and back: for a forward pass that no gradient goes through. Places change, not
 * numbers, so variables that were made of the weights before keep them. */
void train_use_averages(const struct param_set *s, struct model *m, bool on);
uint64_t param_set_elements(const struct param_set *s);
uint64_t param_set_kept_bytes(const struct param_set *s);  /* of the copies of param_set_keep */
uint64_t param_set_saved_bytes(const struct param_set *s); /* of moments, averages and these copies */
uint64_t param_set_state_bytes(const struct param_set *s); /* ... and scratch */

/* Norm of scale * gradient over all parameters, and group_square. One that had no part in the step gets a gradient
 * of zeros first. */
double train_gradient_norm(struct param_set *s, double scale);
/* Sum of squares of the gradients so far. */
double train_gradient_square(const struct param_set *s);
/* Step number `step` (from 1) of all parameters along scale * gradient; afterwards there is no gradient. The
 * average moves to d average + (1 - d) value, d = min(options.ema, (1 + step) / (10 + step)), so that it forgets
 * the first weights. */
void train_step(struct param_set *s, uint64_t step, double lr, double scale);

/* ---- through a grid (grid.c) -------------------------------------------------------------------------------------- */

/*
 * With options.quantize, forward passes read each matrix of these types as its blocks have it, and the gradient moves the f32 master
 * (struct model_grid). Frozen matrices are quantized once. Scales are those of the type's own search (tensor_from_f32), before the
 * first step and then after every `refit` steps; in between codes are rounded at the scales that there are (tensor_round_at), or, of a
 * type without a quant_form, searched again. param_set_finish leaves what model_save then writes: the blocks of the last step, of the
 * averages at its scales, or those that param_set_keep saw, to the bit.
 */
/* After train_step: the grids of the new values. ERR_DATA when a value is not finite or too large for its type. */
int train_quantize(struct param_set *s, uint64_t step, struct err *e) MUST_CHECK;
/* Forward passes read the grids of the averages, if there are any, and of the masters again. */
int train_quantize_averages(struct param_set *s, bool on, struct err *e) MUST_CHECK;

/*
 * Gradient noise scale (McCandlish et al. 2018, "An empirical model of large-batch training", arXiv 1812.06162,
 * appendix A.1): the batch size at which noise and gradient weigh the same, in labelled positions, from a part of a
 * batch against all of it.
 */
struct train_noise {
    double trace, square; /* of the gradient's covariance; of the true gradient: running means */
};
/* |mean gradient|^2 over n_part positions of the batch, and over its n. Nothing is learned when they are the same. */
void train_noise_add(struct train_noise *z, double part, double n_part, double all, double n);
double train_noise_scale(const struct train_noise *z); /* NAN: not known (yet) */

/* ---- optimizers: a table (optimizer.c) --------------------------------------------------------------------------- */

struct train_update {
    const struct train_options *o;
    uint64_t step;    /* of the moments */
    double lr, scale; /* of this parameter; of its gradient */
    double decay;
    struct kernel_array scratch; /* DT_U8 */
};
struct optimizer_type {
    const char *name, *summary, *source;
    const char *moments[TRAIN_MAX_MOMENTS]; /* suffixes of its moments in a checkpoint: NAME.m */
    /* All but step may be NULL: takes every parameter (others are the first row's); has no keys; needs no scratch. */
    bool (*takes)(const struct param *p);
    bool (*parse)(const char *members, struct train_options *o); /* "key=value,..." or NULL; sets defaults */
    bool (*put)(cJSON *to, const struct train_options *o);       /* what a checkpoint compares */
    size_t (*scratch)(const struct train_options *o, const struct param *p); /* bytes */
    double (*mup)(
        const struct param *p); /* factor of the rate of a wider matrix inside a layer (Yang et al. 2022, table 8) */
    void (*step)(const struct train_update *u, struct param *p);
};
extern const struct optimizer_type train_optimizers[]; /* ends with a NULL name; the first one is the default */
/* "NAME[:key=value,...]" */
int train_optimizer_parse(const char *text, struct train_options *o, struct err *e) MUST_CHECK;

/* ---- checkpoint (state.c) ---------------------------------------------------------------------------------------- */

/* Options that the bytes of a run depend on, under the names of the command line's options; those not in use are
 * absent. */
bool train_options_put(cJSON *to, const struct param_set *s);
/* Tensors NAME (f32), NAME.m, NAME.v, NAME.ema and NAME.best, those it has, of every parameter in order. ERR_DATA when a
 * value is not finite. */
int train_save(const struct param_set *s, struct stream_writer *w, struct err *e) MUST_CHECK;
/* The same tensors, the next ones of the stream; ERR_DATA names the first that is missing, or another. */
int train_restore(struct param_set *s, struct stream_reader *r, struct err *e) MUST_CHECK;
/* Before the first step: moments from the checkpoint of another run, of any weights and data, which must have them
 * of all parameters, by name and shape, and of the same optimizer. Their type may differ. */
int train_start(struct param_set *s, struct stream_reader *r, struct err *e) MUST_CHECK;

#endif
