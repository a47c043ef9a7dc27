/*
 * losses: what is minimised. A table of losses, each in a file of its own with formula, source and keys; lists of them as the command
 * line gives them; and their values and gradients over a micro-batch. README.md says how a loss is added.
 *
 *     struct loss_list l = {0};
 *     loss_list_add(&l, "kl:weight=0.9,temperature=2") ...     any number
 *     loss_list_bind(&l, &setting, &params)                    defaults, what they need, their own parameters
 *     for each step: loss_list_begin_step(&l, step, steps)
 *         for each micro-batch: loss_list_points(&l, &points) before grad_backward, and loss_list_block(&l, &rows) as grad_heads'
 *         callback
 *         loss_list_end_step(&l, labelled)                     means over the labelled positions of the step
 *     loss_list_release(&l)
 *
 * A loss is of rows of logits (responses) or of points inside the model (features, relations). All are sums over labelled positions
 * that the trainer divides by their number at the end of a step; what a loss is at other positions is nowhere asked for.
 */
#ifndef RILL_LOSSES_H
#define RILL_LOSSES_H

#include <stdio.h>

#include "lib/base/base.h"
#include "lib/knowledge/knowledge.h"
#include "lib/model/model.h"
#include "lib/train/train.h"

#define LOSS_MAX       16  /* losses of a run */
#define LOSS_MAX_KEYS  8   /* of a loss, its own */
#define LOSS_NAME      48  /* bytes of a label or column, with its end */
#define LOSS_TEXT      400 /* of the canonical text */
#define LOSS_MAX_EXITS 8

/* ---- the table ------------------------------------------------------------------------------------------------------- */

enum loss_key_kind { LOSS_NUMBER, LOSS_CHOICE, LOSS_WORDS };
struct loss_key {
    const char *name; /* NULL ends */
    enum loss_key_kind kind;
    const char *arg;      /* placeholder in help: T, N, MAP; choices as "a|b" */
    const char *fallback; /* as a user would write it; NULL: none, see help */
    double least, most;   /* of a number */
    const char *help;
};

/* Encodings of the teacher's answer, as bits of loss_type.encodings. Teachers in the process count as dense. */
#define LOSS_ON(encoding) (1u << (encoding))
#define LOSS_ON_TOP       (LOSS_ON(KNOW_TOPK) | LOSS_ON(KNOW_TOPP) | LOSS_ON(KNOW_GHOST))
#define LOSS_ON_ALL       (LOSS_ON(KNOW_DENSE) | LOSS_ON_TOP | LOSS_ON(KNOW_SAMPLE))
#define LOSS_ON_PARTITION (LOSS_ON(KNOW_DENSE) | LOSS_ON(KNOW_GHOST))

struct loss;
struct loss_setting;
struct loss_block;
struct loss_points;
struct loss_group;
typedef int loss_group_run(struct loss *l, struct loss_group *g, double *value, struct err *e);

struct loss_type {
    const char *name, *summary;
    const char *formula, *source; /* source: the paper, and what is not as in it */
    const struct loss_key *keys;
    unsigned encodings;    /* of the teacher's answer that it is defined for; 0: it does not look at it */
    const char *on_sparse; /* what is computed of encodings that are not dense; NULL: nothing to say */
    const char *taps;      /* of a loss on points: the fields that serve it, as --tap calls them: "q, k, v" */
    bool sampled;          /* it takes fields of sampled positions too */
    bool raw_logits; /* dense data must be logits, not log-probabilities (unless the key `centred` says otherwise) */
    /* Of a loss on points: checks its keys against the setting and asks for points (loss_want). ERR_USAGE, ERR_DATA. */
    int (*needs)(struct loss *l, const struct loss_setting *s, struct err *e);
    /* Its own parameters into `own`, which trains and checkpoints them; they are dropped from the saved model. NULL: none. */
    int (*prepare)(struct loss *l, const struct loss_setting *s, struct param_set *own, struct err *e);
    /* One of the two: */
    int (*logits)(struct loss *l, struct loss_block *b, struct err *e);
    int (*points)(struct loss *l, struct loss_points *p, struct err *e);
    loss_group_run *group;           /* of a loss on points that is a mean over groups of instances: the value of one */
    void (*release)(struct loss *l); /* of l->state */
};
extern const struct loss_type *const loss_types[]; /* ends with NULL */
const struct loss_type *loss_type_by_name(const char *name);
/* Keys that all losses have, and those of losses on logits. */
extern const struct loss_key loss_common_keys[], loss_logits_keys[];
/* What help says of --loss. Static. */
const char *loss_help(void);
const char *loss_names(void);     /* "kl|rkl|...", for completion. Static */
void loss_print_table(FILE *out); /* --list-losses */
/* What must be there for a loss: "dense, ghost" or the points. Into out; returns out. */
char *loss_needs_text(const struct loss_type *t, char *out, size_t size);

/* ---- a list of losses -------------------------------------------------------------------------------------------------- */

/* Whose answer a loss on logits takes for the teacher's. */
enum loss_teacher { LOSS_TEACHER_AUTO, LOSS_TEACHER_DATA, LOSS_TEACHER_LIVE, LOSS_TEACHER_FINAL, LOSS_TEACHER_EMA };
/* Which head of the student it is on: the last, all exits, or exit number LOSS_AT_EXIT + i. */
enum { LOSS_AT_FINAL, LOSS_AT_EXITS, LOSS_AT_EXIT };

struct loss_value {
    bool given; /* or its key has a fallback */
    double number;
    char text[64];
};

struct loss {
    const struct loss_type *type;
    char label[LOSS_NAME];  /* "": none */
    char column[LOSS_NAME]; /* the value's name in log and report, after binding */
    double first, last;     /* weight at the first step and at the last one; linear between */
    int at;                 /* after binding */
    uint32_t at_layer;      /* at=N: layers before that exit; 0: by `at` */
    enum loss_teacher teacher;
    struct loss_value values[LOSS_MAX_KEYS]; /* by the index of the type's key */
    bool of_sampled;                         /* after binding: the data has sampled positions only of what it needs */
    bool measured;                           /* nobody asked for it: its value is in the log, its weight is 0 */
    double factor;                           /* of its value in the total: T^2 of kl */
    void *state;                             /* the type's own */
    struct loss_projector *projectors;       /* those in it */

    double weight; /* at this step */
    double sum;    /* over the labelled positions of the step so far, without weight and factor */
    double value;  /* of the last step: the mean */
};
/* The value of a key of the type, by its name, which must be one. */
double loss_number(const struct loss *l, const char *key);
const char *loss_words(const struct loss *l, const char *key);
bool loss_given(const struct loss *l, const char *key);

/* What a field of that point is called: "hidden" for POINT_LAYER; NULL: no field has it. */
const char *loss_field_name(enum model_point p);
/* The number of the field of a point, or -1. */
long loss_field_find(const struct knowledge_format *f, enum model_point p, uint32_t layer);

/* A point that a loss needs: of the student, or of the teacher. */
struct loss_point {
    enum model_point point;
    uint32_t layer;
};
#define LOSS_MAX_POINTS 256
struct loss_list {
    struct loss items[LOSS_MAX];
    size_t n;
    /* After binding: */
    bool on_logits, on_points;
    bool fused; /* kl and ce of the last head alone: one kernel for both, in place */
    size_t n_exits;
    struct loss_point student[LOSS_MAX_POINTS], of_teacher[LOSS_MAX_POINTS];
    size_t n_student, n_of_teacher;
    struct buf dense, dlogits, other, row_weight, values; /* scratch of a block */
    double dense_temperature;                             /* of what `dense` holds, of teacher dense_of; 0: nothing */
    enum loss_teacher dense_of;
    const float *host[LOSS_MAX_POINTS]; /* [n_student] values of this micro-batch, once asked for */
    struct arena memory;
};

/* What a run has: checked against, before it begins. */
struct loss_setting {
    const struct model_config *student;
    const struct knowledge_format *data; /* KNOW_NONE: plain tokens */
    const struct model_config *live;     /* the teacher beside the student; NULL: none */
    bool ema;                            /* a mean of the student's weights is kept */
    const uint32_t *exits;               /* [n_exits] layers before each, 1 to n_layers - 1 */
    size_t n_exits;
    struct loss_list *list;
};

/* "NAME:key=value,..." as --loss takes it. ERR_USAGE. */
int loss_list_add(struct loss_list *l, const char *text, struct err *e) MUST_CHECK;
/* Without any loss: kl where there is a teacher, else ce. ce is measured in any case, and kl where ce alone is asked for. ERR_DATA when the
 * setting cannot serve a loss: the message says what to add. */
int loss_list_bind(struct loss_list *l, const struct loss_setting *s, struct param_set *own, struct err *e) MUST_CHECK;
/* Name and all keys with their values, which parse to the same loss. Returns out. */
char *loss_text(const struct loss *l, char out[LOSS_TEXT]);
void loss_list_release(struct loss_list *l);
bool loss_list_uses(const struct loss_list *l, enum loss_teacher t); /* after binding */

/* `step` counts from 1. */
void loss_list_begin_step(struct loss_list *l, uint64_t step, uint64_t steps);
/* The total with weights and factors: of sums so far / labelled. */
double loss_list_total(const struct loss_list *l, double labelled);
void loss_list_end_step(struct loss_list *l, double labelled);

/*
 * What kl is called where its value is reported. A name means one number, whatever the encoding; all are at least 0, and differ
 * from what is minimised by what the student has no part in at most:
 *   dense   kl              KL(teacher || student)
 *   ghost   kl_lower_bound  the same with the tokens outside the entries taken as one on both sides: at most kl
 *   topk    kl_truncated    of the entries alone: sum t ln(t / p) - S ln S, S = sum t; that is S KL(entries / S || student)
 *   topp    kl_truncated    likewise
 *   sample  teacher_ce      -sum t ln p, unbiased: kl plus the teacher's entropy, which draws do not tell
 * NULL: plain tokens, no teacher.
 */
const char *loss_kl_name(const struct knowledge_format *f);

/* ---- losses on logits ---------------------------------------------------------------------------------------------------- */

/* Rows [first, first + rows) of a micro-batch whose first position is `at` in the queue: logits of the last head, the exits, and teachers
 * in the process (no data: none). */
struct loss_rows {
    size_t rows, vocab, first, at;
    const struct knowledge_rows *data;
    const struct knowledge_format *format;
    struct kernel_array final, live, ema;
    const struct kernel_array *exits;       /* [n_exits] */
    struct kernel_array final_slope;        /* where the gradients go, as grad_heads says */
    const struct kernel_array *exit_slopes; /* [n_exits] */
};
int loss_list_block(struct loss_list *l, const struct loss_rows *r, struct err *e) MUST_CHECK;

/* What loss_type.logits gets: one head's rows. */
struct loss_block {
    size_t rows, vocab;
    const float *logits;     /* host's view */
    const uint32_t *labels;  /* UINT32_MAX: none */
    const float *row_weight; /* 1 where there is a label, else 0 */
    float weight;            /* of the gradient */
    float *dlogits; /* [rows][vocab] f32, to add weight * row_weight * gradient to; NULL: the value alone is wanted */
    double *values; /* [rows] OUT: the value of each row; of rows without a label nothing is taken */
    struct loss_list *list; /* private, as what follows */
    const struct loss *loss;
    const struct loss_rows *of;
};
/* The teacher's rows at a temperature. */
int loss_block_target(struct loss_block *b, double temperature, struct kernel_target *out, struct err *e) MUST_CHECK;
/* Its logits as they are, [rows][vocab]; of a dense teacher. */
int loss_block_logits(struct loss_block *b, const float **out, struct err *e) MUST_CHECK;

/* ---- losses on points ------------------------------------------------------------------------------------------------------ */

/* For loss_type.needs: a point of the student is wanted in the graph, one of the teacher from its graph or a field of the data. */
int loss_want_student(const struct loss_setting *s, enum model_point p, uint32_t layer, struct err *e) MUST_CHECK;
int loss_want_teacher(const struct loss_setting *s, struct loss *l, enum model_point p, uint32_t layer,
                      struct err *e) MUST_CHECK;
/* Of the teacher that serves points, which is the data where it has the field, else the live one: its number of layers (of the data: up
 * to the last one of that point), and columns at a point. 0 and *e when there is none. */
uint32_t loss_teacher_layers(const struct loss_setting *s, const struct loss *l, enum model_point p, struct err *e);
uint64_t loss_teacher_cols(const struct loss_setting *s, enum model_point p, uint32_t layer);

/*
 * A map of layers, student's to teacher's, numbered from 0: "last" (last to last), "ends" (first to first and last to last), "uniform"
 * (student layer i of n to teacher layer ceil((i + 1) m / n) - 1 of m, so that the last meet), "skip" (uniform without the last), "tail"
 * (the student's layers but the last to as many of the teacher's before its last), or "S:T+S:T+...". ERR_USAGE.
 */
struct loss_pair {
    uint32_t student, teacher;
};
#define LOSS_MAX_PAIRS 128
int loss_map_parse(const char *text, uint32_t student_layers, uint32_t teacher_layers, struct loss_pair *pairs,
                   size_t *n, struct err *e) MUST_CHECK;

/* A learned linear map [out][in] of a loss, begun with normal(0, 1 / in) by a seed of its name: "losses.LABEL.WHAT.N". It is in the
 * loss's state, and released with it. */
struct loss_projector {
    struct loss_projector *next; /* of the loss */
    char name[96];
    struct kernel_device *device;    /* of the parameters it is trained with */
    struct kernel_array value, grad; /* f32; no data: no map */
    bool begun;
    size_t in, out;
};
int loss_projector_new(struct loss_projector *p, struct loss *l, const char *what, uint32_t number, size_t in,
                       size_t out, struct param_set *own, struct err *e) MUST_CHECK;
/* x p^T; x where there is no map. */
struct grad_var *loss_project(struct grad_tape *t, struct loss_projector *p, struct grad_var *x);

/* What loss_type.points gets: a micro-batch after its graph and before grad_backward. */
struct loss_points {
    struct grad_tape *t; /* the student's: operations on its points may be recorded here */
    const struct model_input *in;
    const uint32_t *starts;  /* [n_seqs + 1] */
    const float *row_weight; /* [n_positions] 1 where there is a label, else 0 */
    double labelled;         /* their sum */
    double weight;           /* of the gradient: 0 means none is wanted */
    double sum; /* OUT: the value, over labelled positions: a loss that is no sum of them gives labelled * value */
    /* The trainer's: */
    const struct model_want *student; /* [n_student] as the list has them */
    /* Rows of a point of the teacher that was wanted, f32 [n_positions][*cols], valid until the next call. */
    int (*teacher)(void *ctx, enum model_point p, uint32_t layer, const float **rows, size_t *cols, struct err *e);
    /* Rows [first, first + n) of the data's attention of a sequence: [n][heads][length]. */
    int (*pairs)(void *ctx, uint32_t layer, size_t seq, size_t first, size_t n, size_t length, float *out,
                 struct err *e);
    void *ctx;
    const uint8_t *sampled; /* [n_positions] is the position in fields that are sampled? NULL: none is sampled */
    struct loss_list *list;
};
struct grad_var *loss_student_point(const struct loss_points *p, enum model_point point, uint32_t layer);
/* [n_positions][*cols] in f32. */
int loss_teacher_point(const struct loss_points *p, enum model_point point, uint32_t layer, const float **rows,
                       size_t *cols, struct err *e) MUST_CHECK;
/* All losses on points: gradients and sums. */
int loss_list_points(struct loss_list *l, struct loss_points *p, struct err *e) MUST_CHECK;

#endif
