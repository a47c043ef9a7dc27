/*
 * train: the parts of training that do not depend on the task: parameters and their optimizer state, learning-rate
 * schedules, and their part of a checkpoint. It knows nothing of data, knowledge or losses.
 *
 *     struct param_set s = {0};
 *     param_set_init(&s, &options)
 *     train_add_model(&s, model), param_set_add(&s, ...)      any number of owners: a student, projectors, peers
 *     param_set_begin(&s)
 *     for each step: gradients, then train_gradient_norm and train_step
 *     param_set_release(&s)
 *
 * README.md says how to add an optimizer or a schedule. Results do not depend on the number of threads.
 */
#ifndef RILL_TRAIN_H
#define RILL_TRAIN_H

#include "lib/base/base.h"
#include "lib/model/model.h"

/* ---- the learning rate of each step (schedule.c) ----------------------------------------------------------------- */

#define TRAIN_MAX_LR 10.0

struct train_schedule {
    double lr, lr_min;                /* rate at the end of the warmup, and at the last step */
    uint64_t warmup, steps;           /* optimizer steps, 0 <= warmup <= steps, steps >= 1 */
    const struct schedule_type *type; /* NULL: the table's first row, cosine */
    double decay;                     /* fraction of the steps over which the rate falls, if the type has_decay */
};
struct schedule_type {
    const char *name, *summary;
    bool falls;     /* to lr_min; otherwise lr_min is not used */
    bool has_decay; /* takes the key decay=SHARE */
    /* Returns where the rate is between lr_min (0) and lr (1), at a step after the warmup. */
    double (*height)(const struct train_schedule *s, uint64_t step);
};
extern const struct schedule_type train_schedules[]; /* ends with a NULL name; the first one is the default */
#define TRAIN_DECAY 0.2                              /* default of `decay` */

/* Returns the schedule's type, never NULL. */
const struct schedule_type *train_schedule_type(const struct train_schedule *s);
/* Returns the rate of a step, counted from 1: linear to lr at step `warmup`, then by type until step `steps`. */
double train_schedule_lr(const struct train_schedule *s, uint64_t step);
bool train_schedule_equal(const struct train_schedule *a, const struct train_schedule *b);
/* Return defaults: a tenth of the steps, but at most 100; and a tenth of lr, or lr if the type does not fall. */
uint64_t train_default_warmup(uint64_t steps);
double train_default_lr_min(const struct train_schedule *s);

/* A run may be continued with another schedule. A step then has the rate that the new schedule assigns to the step's
 * number, as if the run had followed it from the beginning: nothing is stretched, and there is no second warmup. */
struct train_phase {
    uint64_t until; /* the last step of the phase */
    struct train_schedule schedule;
};
#define TRAIN_MAX_PAST 32
struct train_plan {
    struct train_phase past[TRAIN_MAX_PAST]; /* in ascending order of `until` */
    size_t n_past;
    struct train_schedule now; /* for the steps after the last phase */
};
/* Returns the schedule that a step follows. */
const struct train_schedule *train_schedule_at(const struct train_plan *p, uint64_t step);
/* Is the step in the decay phase of a schedule that has one (wsd)? */
bool train_schedule_decays(const struct train_schedule *s, uint64_t step);
double train_lr(const struct train_plan *p, uint64_t step);
bool train_plan_equal(const struct train_plan *a, const struct train_plan *b);
/* ERR_USAGE: a warmup longer than its schedule, no steps, or phases out of order. */
int train_plan_check(const struct train_plan *p, struct err *e) MUST_CHECK;
/* `step` steps have followed `before`, and the rest is to follow p: turns p into the plan of all steps, in its shortest
 * form. ERR_USAGE: more than TRAIN_MAX_PAST phases. */
int train_plan_continue(struct train_plan *p, const struct train_plan *before, uint64_t step, struct err *e) MUST_CHECK;
/* Parses a value of --schedule, which names the run's schedule or a past one:
 *     NAME[:decay=SHARE]                                              sets type and decay of p->now
 *     UNTIL:[NAME:]steps=N,warmup=N,lr=RATE[,lr-min=RATE][,decay=SHARE]   appends to p->past; default NAME: cosine
 * *now says whether p->now has been set; initialise it to false. ERR_USAGE. */
int train_plan_parse(const char *text, struct train_plan *p, bool *now, struct err *e) MUST_CHECK;
/* Writes a past phase in that form, with enough digits to read back exactly. Returns out. */
#define TRAIN_PHASE_TEXT 256
char *train_phase_text(const struct train_phase *p, char out[TRAIN_PHASE_TEXT]);
/* Write and read the members "schedule" and "past" of META. put: false if out of memory; get: ERR_DATA. */
bool train_plan_put(cJSON *to, const struct train_plan *p);
int train_plan_get(const cJSON *from, struct train_plan *p, struct err *e) MUST_CHECK;

/* ---- options ----------------------------------------------------------------------------------------------------- */

/* Settings for parameters whose names match a pattern (fnmatch): "GLOB:lr=FACTOR,decay=W". A parameter belongs to the
 * first matching group; what a group does not set is as for all parameters. */
#define TRAIN_MAX_GROUPS 16
#define TRAIN_GLOB_TEXT  128
struct train_group {
    char glob[TRAIN_GLOB_TEXT];
    double lr;    /* factor on the learning rate */
    double decay; /* weight decay of all its parameters, if has_decay */
    bool has_decay;
};
int train_group_parse(const char *text, struct train_group *g, struct err *e) MUST_CHECK;

/* Low-rank adapters (Hu et al. 2022) for matrices inside layers whose names match: "RANK[:alpha=A,target=GLOB]". */
struct train_lora {
    uint64_t rank; /* 0: none */
    double alpha;  /* the product is scaled by alpha / rank */
    char target[TRAIN_GLOB_TEXT];
};
int train_lora_parse(const char *text, struct train_lora *l, struct err *e) MUST_CHECK;

/* Quantization-aware training: the types that forward passes read matrices in (grid.c). */
struct train_quantization {
    const enum dtype *types; /* [n_params of the model], caller owns; DT_F32: not quantized. NULL: no parameter is */
    uint64_t refit;          /* steps between searches for scales; 0: only one search, at the beginning */
};

struct train_options {
    const struct optimizer_type *optimizer; /* NULL: the table's first row, adamw */
    double weight_decay;
    double beta1, beta2, eps;         /* AdamW */
    double momentum;                  /* Muon */
    enum dtype state;                 /* type of moments: DT_F32, or DT_BF16 with stochastic rounding (kernel_adamw) */
    enum dtype precision;             /* of the optimizer's matrix products */
    double ema;                       /* decay of the moving average of the weights; 0: no average */
    const struct train_group *groups; /* [n_groups], caller owns; must outlive the set */
    size_t n_groups;
    const char *const *frozen; /* [n_frozen] patterns of parameters not to train; caller owns */
    size_t n_frozen;
    struct train_lora lora; /* not together with quantize */
    struct train_quantization quantize;
    bool keep_mask; /* weights of a model's matrices that are 0 at the beginning stay 0 */
    bool mup;       /* scale learning rates and decay by the widths of the model and its base (model_mup) */
    bool keep_best; /* allocate a copy of the result for param_set_keep */
};

/* ---- parameters -------------------------------------------------------------------------------------------------- */

#define TRAIN_MAX_MOMENTS 2
struct param {
    const char *name;          /* valid UTF-8, unique in the set; param_set_add copies it */
    struct kernel_array value; /* f32 [rows][cols], caller owns; a vector has one row */
    struct kernel_array grad;  /* of the same shape */
    bool *grad_begun;          /* does `grad` hold a gradient? (grad_parameter) */
    uint64_t rows, cols;
    bool matrix;                 /* inside a layer, maps activations to activations */
    bool decays;                 /* weight decay applies */
    bool maskable;               /* options.keep_mask applies */
    double row_width, col_width; /* muP, hidden matrices: widths relative to the base; else 0 */
    double factor;               /* muP: model_mup_factor; 0 means 1 */
    /* Set by the set: */
    uint64_t n, stream;                     /* elements; digest of the name, which seeds the rounding of moments */
    const struct optimizer_type *optimizer; /* the one that updates it */
    size_t group;                           /* 0: no group; else 1 + index */
    double lr, decay;                       /* factor on the rate; weight decay */
    struct kernel_array moments[TRAIN_MAX_MOMENTS];
    struct kernel_array average; /* f32, moving average of the values; without data: none */
    struct kernel_array zeros;   /* keep_mask: bits of the values that stay 0 (kernel_zero_bits); without data: none */
    struct kernel_array best;    /* f32, the values that param_set_keep copied; without data: nothing can be kept */
};
struct train_grid; /* grid.c */
struct param_set {
    struct train_options o;
    struct kernel_device *device; /* of moments, averages and scratch: the models', or the CPU */
    struct param *params;         /* [n], in the order of param_set_add */
    size_t n, capacity;
    uint64_t updates;    /* of the moments before step 1 (train_start) */
    struct digest start; /* digest of the moments from train_start, if `started` */
    bool started;
    double group_square[1 + TRAIN_MAX_GROUPS]; /* train_gradient_norm: sums of squares per group; 0: ungrouped */
    uint32_t used;                             /* bit i: frozen pattern i has matched a parameter */
    struct kernel_array scratch;               /* DT_U8, for the optimizers */
    size_t scratch_bytes;
    struct arena memory;
    struct model *gridded;    /* model with grids, owned by this set, from param_set_begin on; NULL: none */
    struct train_grid *grids; /* [n_grids] */
    size_t n_grids;
    float *grid_part;      /* scratch */
    struct model *adapted; /* model with adapters, owned by this set; NULL: none */
    bool kept;             /* param_set_keep was called, in this run or before its checkpoint */
};

/* Initialises s from parsed options. ERR_USAGE: too many patterns. */
int param_set_init(struct param_set *s, const struct train_options *o, struct err *e) MUST_CHECK;
/* Does --freeze match the name? Call it before allocating a gradient; do not add frozen parameters. Records the
 * match. */
bool param_set_freezes(struct param_set *s, const char *name);
/* Adds a copy of `p`, of which the caller fills the first part. */
int param_set_add(struct param_set *s, const struct param *p, struct err *e) MUST_CHECK;
/* Adds all parameters of a model in f32 that are not frozen, in stream order, and gives them gradients. With
 * options.lora adds new adapters instead, NAME.lora_a and NAME.lora_b; the model's values then do not change before
 * param_set_finish. Decay applies to matrices except the embedding (and a head tied to it): the row of a rare token
 * gets no gradient for thousands of steps, in which only decay would move it. ERR_USAGE: --lora or --mup does not suit
 * the model. */
int train_add_model(struct param_set *s, struct model *m, struct err *e) MUST_CHECK;
/* Call after the last add: assigns groups, allocates moments of zero and masks, and quantizes. ERR_USAGE: nothing is
 * trained, or a pattern, the optimizer or the mask applies to no parameter. */
int param_set_begin(struct param_set *s, struct err *e) MUST_CHECK;
/* With options.keep_best: copies the current values (or their averages), which param_set_finish will use as the result.
 * Replaces any earlier copy. */
void param_set_keep(struct param_set *s);
/* Ends training: values become the kept copy, else their averages (options.ema), and adapters are merged into their
 * matrices. Afterwards only param_set_release is allowed. ERR_DATA: a matrix is not finite. */
int param_set_finish(struct param_set *s, struct err *e) MUST_CHECK;
void param_set_release(struct param_set *s);
/* Swaps the model's weights with their averages (on), and back, for a forward pass without gradient. Swaps pointers, so
 * variables made from the weights before remain valid. */
void train_use_averages(const struct param_set *s, struct model *m, bool on);
uint64_t param_set_elements(const struct param_set *s);    /* number of trained values */
uint64_t param_set_kept_bytes(const struct param_set *s);  /* copies for param_set_keep */
uint64_t param_set_saved_bytes(const struct param_set *s); /* moments, averages and those copies */
uint64_t param_set_state_bytes(const struct param_set *s); /* all that, masks, grids and scratch */

/* Returns the norm of scale * gradient over all parameters, and sets group_square. Parameters without a gradient in
 * this step get one of zeros first. */
double train_gradient_norm(struct param_set *s, double scale);
/* Returns the sum of squares of the gradients so far. */
double train_gradient_square(const struct param_set *s);
/* Updates all parameters by step number `step` (from 1) along scale * gradient, and clears the gradients. The average
 * becomes d average + (1 - d) value, d = min(options.ema, (1 + step) / (10 + step)), so that it forgets the initial
 * weights. */
void train_step(struct param_set *s, uint64_t step, double lr, double scale);

/* ---- quantization-aware training (grid.c) ------------------------------------------------------------------------ */

/*
 * With options.quantize, forward passes read the dequantized blocks of each matrix, while the gradient updates its f32
 * master (struct model_grid). Frozen matrices are quantized once. Scales come from the type's own search
 * (tensor_from_f32), before the first step and after every `refit` steps; in between codes are rounded at the current
 * scales (tensor_round_at), except that types without a quant_form are searched again. param_set_finish leaves exactly
 * what model_save then writes: the blocks of the last step, those of the averages at its scales, or the kept ones.
 */
/* Quantizes the new values; call it after train_step. ERR_DATA: a value is not finite or too large for its type. */
int train_quantize(struct param_set *s, uint64_t step, struct err *e) MUST_CHECK;
/* Lets forward passes read the quantized averages, if there are any (on), or the masters again. */
int train_quantize_averages(struct param_set *s, bool on, struct err *e) MUST_CHECK;

/*
 * Gradient noise scale (McCandlish et al. 2018, "An empirical model of large-batch training", arXiv 1812.06162,
 * appendix A.1): the batch size, in labelled positions, at which noise and gradient have equal weight, estimated by
 * comparing part of a batch with all of it.
 */
struct train_noise {
    double trace, square; /* running means: trace of the gradient's covariance; squared norm of the true gradient */
};
/* Adds |mean gradient|^2 over n_part positions of the batch, and over all n. No-op unless 0 < n_part < n. */
void train_noise_add(struct train_noise *z, double part, double n_part, double all, double n);
double train_noise_scale(const struct train_noise *z); /* NAN: unknown */

/* ---- optimizers: a table (optimizer.c) --------------------------------------------------------------------------- */

struct train_update {
    const struct train_options *o;
    uint64_t step;    /* number of the update, for the moments */
    double lr, scale; /* rate of this parameter; factor on its gradient */
    double decay;
    struct kernel_array scratch; /* DT_U8 */
};
struct optimizer_type {
    const char *name, *summary, *source;
    const char *moments[TRAIN_MAX_MOMENTS]; /* suffixes of its moments in a checkpoint: NAME.m */
    /* All but step may be NULL: takes all parameters (adamw gets the others); has no keys; needs no scratch space. */
    bool (*takes)(const struct param *p);
    bool (*parse)(const char *members, struct train_options *o); /* parses "key=value,..." or NULL; sets defaults */
    bool (*put)(cJSON *to, const struct train_options *o);       /* writes what a resumed run must match */
    size_t (*scratch)(const struct train_options *o, const struct param *p); /* bytes */
    double (*mup)(const struct param *p); /* factor on the rate of a wider matrix (Yang et al. 2022, table 8) */
    void (*step)(const struct train_update *u, struct param *p);
};
extern const struct optimizer_type train_optimizers[]; /* ends with a NULL name; the first one is the default */
/* Parses "NAME[:key=value,...]". ERR_USAGE. */
int train_optimizer_parse(const char *text, struct train_options *o, struct err *e) MUST_CHECK;

/* ---- checkpoint (state.c) ---------------------------------------------------------------------------------------- */

/* Writes the options that the result depends on, under the names of the command-line options, except those not in use.
 * False: out of memory. */
bool train_options_put(cJSON *to, const struct param_set *s);
/* Writes tensors NAME (f32), NAME.m, NAME.v, NAME.ema and NAME.best, as far as they exist, for every parameter in
 * order, then grids. ERR_DATA: a value is not finite. */
int train_save(const struct param_set *s, struct stream_writer *w, struct err *e) MUST_CHECK;
/* Reads the same tensors, which must be next in the stream. ERR_DATA names the first that is missing or different. */
int train_restore(struct param_set *s, struct stream_reader *r, struct err *e) MUST_CHECK;
/* Before the first step: loads moments from the checkpoint of another run, whatever its weights and data. ERR_DATA
 * unless it used the same optimizer and has moments for all parameters, by name and shape; their type may differ. */
int train_start(struct param_set *s, struct stream_reader *r, struct err *e) MUST_CHECK;

#endif
