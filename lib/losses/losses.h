/*
 * losses: what training minimises. A table of losses, each in its own file with formula, source and keys; lists of
 * losses as given on the command line; and their values and gradients over a micro-batch. README.md says how to add a
 * loss.
 *
 *     struct loss_list l = {0};
 *     loss_list_add(&l, "kl:weight=0.9,temperature=2") ...     any number
 *     loss_list_bind(&l, &setting, &params)                    sets defaults, checks needs, adds the losses' parameters
 *     for each step: loss_list_begin_step(&l, step, steps)
 *         for each micro-batch: loss_list_points(&l, &points) before grad_backward, and loss_list_block(&l, &rows) in
 *         the callback of grad_heads
 *         loss_list_end_step(&l, labelled)                     means over the labelled positions of the step
 *     loss_list_release(&l)
 *
 * A loss is defined on rows of logits (responses) or on points inside the model (features, relations). Every loss is a
 * sum over labelled positions, which the trainer divides by their number at the end of a step. Other positions are
 * never used.
 */
#ifndef RILL_LOSSES_H
#define RILL_LOSSES_H

#include <stdio.h>

#include "lib/base/base.h"
#include "lib/knowledge/knowledge.h"
#include "lib/model/model.h"
#include "lib/train/train.h"

#define LOSS_MAX       16 /* losses in a list */
#define LOSS_MAX_KEYS  8  /* of one loss, without the common ones */
#define LOSS_NAME      48 /* bytes of a label or column name, with the final 0 */
#define LOSS_TEXT      2400 /* bytes of the canonical text, with the final 0; a map of LOSS_MAX_PAIRS fits in half of it */
#define LOSS_MAX_EXITS 8

/* ---- the table --------------------------------------------------------------------------------------------------- */

enum loss_key_kind { LOSS_NUMBER, LOSS_CHOICE, LOSS_WORDS };
struct loss_key {
    const char *name; /* NULL ends the table */
    enum loss_key_kind kind;
    const char *arg;      /* placeholder in help: T, N, MAP; for choices "a|b" */
    const char *fallback; /* default, as a user would write it; NULL: none */
    double least, most;   /* range of a number */
    const char *help;
};

/* Encodings of the teacher's response, as bits of loss_type.encodings. A live teacher counts as dense. */
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
    const char *formula, *source; /* source: the paper, and any difference from it */
    const struct loss_key *keys;
    unsigned encodings;    /* of the teacher's response, for which it is defined; 0: it needs no response */
    const char *on_sparse; /* what is computed for encodings other than dense; NULL: nothing to say */
    const char *taps;      /* of a loss on points: the fields that it needs, as in --tap: "q, k, v" */
    bool sampled;          /* also accepts fields of sampled positions */
    bool raw_logits;       /* dense data must be logits, not log-probabilities (unless centred=yes) */
    /* For a loss on points: checks keys against the setting and requests points (loss_want_*). ERR_USAGE, ERR_DATA. */
    int (*needs)(struct loss *l, const struct loss_setting *s, struct err *e);
    /* Adds its own parameters to `own`; they are trained and checkpointed, but not saved in the model. NULL: none. */
    int (*prepare)(struct loss *l, const struct loss_setting *s, struct param_set *own, struct err *e);
    /* Computes the loss; exactly one is set. */
    int (*logits)(struct loss *l, struct loss_block *b, struct err *e);
    int (*points)(struct loss *l, struct loss_points *p, struct err *e);
    loss_group_run *group;           /* of a loss on points that averages over groups: computes one */
    void (*release)(struct loss *l); /* frees l->state; NULL: nothing to free */
};
extern const struct loss_type *const loss_types[];           /* ends with NULL */
const struct loss_type *loss_type_by_name(const char *name); /* NULL: no such loss */
/* Keys of all losses, and of losses on logits. */
extern const struct loss_key loss_common_keys[], loss_logits_keys[];
/* Return static text: help of --loss, and "kl|rkl|..." for completion. */
const char *loss_help(void);
const char *loss_names(void);
void loss_print_table(FILE *out); /* prints --list-losses */
/* Writes what the loss needs, "dense, ghost" or names of points, into out; returns out. */
char *loss_needs_text(const struct loss_type *t, char *out, size_t size);

/* ---- a list of losses -------------------------------------------------------------------------------------------- */

/* Where a loss on logits takes its teacher from. */
enum loss_teacher { LOSS_TEACHER_AUTO, LOSS_TEACHER_DATA, LOSS_TEACHER_LIVE, LOSS_TEACHER_FINAL, LOSS_TEACHER_EMA };
/* The student's head: the last one, the mean over all exits, or exit i as LOSS_AT_EXIT + i. */
enum { LOSS_AT_FINAL, LOSS_AT_EXITS, LOSS_AT_EXIT };

struct loss_value {
    bool given; /* by the user or by the key's default */
    double number;
    char text[LOSS_TEXT];
};

struct loss {
    const struct loss_type *type;
    char label[LOSS_NAME];  /* given by the user; "" */
    char column[LOSS_NAME]; /* name of the value in log and report; set by binding */
    double first, last;     /* weight at the first and last step, linear between them */
    int at;                 /* set by binding */
    uint32_t at_layer;      /* at=N: layers before that exit; 0: see `at` */
    enum loss_teacher teacher;
    struct loss_value values[LOSS_MAX_KEYS]; /* in the order of the type's keys */
    bool of_sampled;                         /* set by binding: a field that it needs has only sampled positions */
    bool measured;                           /* not requested: logged with weight 0 */
    double factor;                           /* of the value in the total: T^2 for kl */
    void *state;                             /* owned by the type */
    struct loss_projector *projectors;       /* the projectors within `state` */

    double weight; /* at the current step */
    double sum;    /* over the labelled positions of the step so far, without weight and factor */
    double value;  /* mean over the last step */
};
/* Return the value of a key, which must be one of the type's. */
double loss_number(const struct loss *l, const char *key);
const char *loss_words(const struct loss *l, const char *key);
bool loss_given(const struct loss *l, const char *key);

/* Returns the name of the point's field: "hidden" for POINT_LAYER. NULL: it has none. */
const char *loss_field_name(enum model_point p);
/* Returns the index of the point's field, or -1. */
long loss_field_find(const struct knowledge_format *f, enum model_point p, uint32_t layer);

/* A point that a loss needs from the student or the teacher. */
struct loss_point {
    enum model_point point;
    uint32_t layer;
};
#define LOSS_MAX_POINTS 256
struct loss_list {
    struct loss items[LOSS_MAX];
    size_t n;
    /* Set by binding: */
    bool on_logits, on_points;
    bool fused; /* only kl and ce of the last head: one kernel computes both, in place */
    size_t n_exits;
    struct loss_point student[LOSS_MAX_POINTS], of_teacher[LOSS_MAX_POINTS];
    size_t n_student, n_of_teacher;
    struct buf dense, dlogits, other, row_weight, values; /* scratch space of a block */
    double dense_temperature;                             /* of the teacher's rows in `dense`; 0: none are loaded */
    enum loss_teacher dense_of;                           /* which teacher's they are */
    const float *host[LOSS_MAX_POINTS]; /* [n_student] host values of this micro-batch; NULL: not fetched yet */
    struct arena memory;
};

/* What a run provides; losses are checked against it before training begins. */
struct loss_setting {
    const struct model_config *student;
    const struct knowledge_format *data; /* KNOW_NONE: plain tokens */
    const struct model_config *live;     /* an online teacher; NULL: none */
    bool ema;                            /* a moving average of the student's weights is kept */
    const uint32_t *exits;               /* [n_exits] layers before each exit, 1 to n_layers - 1 */
    size_t n_exits;
    struct loss_list *list;
};

/* Parses "NAME:key=value,..." as in --loss and appends the loss. ERR_USAGE. */
int loss_list_add(struct loss_list *l, const char *text, struct err *e) MUST_CHECK;
/* Resolves the list against a setting. An empty list becomes kl if there is a teacher, else ce. ce is always measured,
 * and kl if only ce was requested. Parameters of losses are added to `own`. ERR_DATA or ERR_USAGE: the setting cannot
 * serve a loss; the message says what to add. */
int loss_list_bind(struct loss_list *l, const struct loss_setting *s, struct param_set *own, struct err *e) MUST_CHECK;
/* Writes name and all keys with their values, in a form that parses to the same loss. Returns out. */
char *loss_text(const struct loss *l, char out[LOSS_TEXT]);
void loss_list_release(struct loss_list *l);
bool loss_list_uses(const struct loss_list *l, enum loss_teacher t); /* after binding */

/* `step` counts from 1. */
void loss_list_begin_step(struct loss_list *l, uint64_t step, uint64_t steps);
/* Returns the weighted total of the step's sums so far, divided by labelled. */
double loss_list_total(const struct loss_list *l, double labelled);
void loss_list_end_step(struct loss_list *l, double labelled);

/*
 * Returns the name under which the value of kl is reported; NULL for plain tokens. A name means the same quantity
 * whatever the encoding. All are at least 0, and differ from what is minimised by at most a term without gradient:
 *   dense   kl              KL(teacher || student)
 *   ghost   kl_lower_bound  the same, with all tokens outside the entries merged into one on both sides: at most kl
 *   topk    kl_truncated    of the entries alone: sum t ln(t / p) - S ln S with S = sum t, which equals
 *                           S KL(entries / S || student)
 *   topp    kl_truncated    likewise
 *   sample  teacher_ce      -sum t ln p, unbiased: kl plus the teacher's entropy, which draws do not reveal
 */
const char *loss_kl_name(const struct knowledge_format *f);

/* ---- losses on logits -------------------------------------------------------------------------------------------- */

/* Rows [first, first + rows) of a micro-batch that starts at position `at` of the queue: logits of the last head, of
 * the exits, and of teachers in the process (absent ones have no data). */
struct loss_rows {
    size_t rows, vocab, first, at;
    const struct knowledge_rows *data;
    const struct knowledge_format *format;
    struct kernel_array final, live, ema;
    const struct kernel_array *exits;        /* [n_exits] */
    struct kernel_array final_dlogits;       /* where gradients are written, as in grad_heads */
    const struct kernel_array *exit_dlogits; /* [n_exits] */
};
/* Computes all losses on logits of a block: gradients, and sums for the step. */
int loss_list_block(struct loss_list *l, const struct loss_rows *r, struct err *e) MUST_CHECK;

/* Argument of loss_type.logits: the rows of one head. */
struct loss_block {
    size_t rows, vocab;
    const float *logits;     /* host memory */
    const uint32_t *labels;  /* UINT32_MAX: none */
    const float *row_weight; /* 1 where there is a label, else 0 */
    float weight;            /* of the gradient */
    float *dlogits; /* [rows][vocab], to which weight * row_weight * gradient is added; NULL: no gradient is needed */
    double *values; /* [rows] OUT: the value of each row; those of unlabelled rows are ignored */
    struct loss_list *list; /* this and what follows is private */
    const struct loss *loss;
    const struct loss_rows *of;
};
/* Sets `out` to the teacher's rows at a temperature; valid until the next call for this list. */
int loss_block_target(struct loss_block *b, double temperature, struct kernel_target *out, struct err *e) MUST_CHECK;
/* Sets *out to the teacher's logits as stored, [rows][vocab]. The teacher must be dense. */
int loss_block_logits(struct loss_block *b, const float **out, struct err *e) MUST_CHECK;

/* ---- losses on points -------------------------------------------------------------------------------------------- */

/* For loss_type.needs: request a point of the student's graph, or one of the teacher, from its graph or from a field of
 * the data. ERR_DATA, ERR_USAGE: it is not available. */
int loss_want_student(const struct loss_setting *s, enum model_point p, uint32_t layer, struct err *e) MUST_CHECK;
int loss_want_teacher(const struct loss_setting *s, struct loss *l, enum model_point p, uint32_t layer,
                      struct err *e) MUST_CHECK;
/* Return the number of the teacher's layers: the live teacher's, else up to the last one with that point in the data (0
 * and *e if there is none); and the columns at a point: of the data's field if it has one, else of the live teacher. */
uint32_t loss_teacher_layers(const struct loss_setting *s, const struct loss *l, enum model_point p, struct err *e);
uint64_t loss_teacher_cols(const struct loss_setting *s, enum model_point p, uint32_t layer);

/*
 * Parses a map of student layers to teacher layers, numbered from 0: "last" (last to last), "ends" (first to first and
 * last to last), "uniform" (student layer i of n to teacher layer ceil((i + 1) m / n) - 1 of m, so that the last ones
 * match), "skip" (uniform without the last), "tail" (the student's layers except the last to as many of the teacher's
 * before its last), or "S:T+S:T+...". ERR_USAGE.
 */
struct loss_pair {
    uint32_t student, teacher;
};
#define LOSS_MAX_PAIRS 128
int loss_map_parse(const char *text, uint32_t student_layers, uint32_t teacher_layers, struct loss_pair *pairs,
                   size_t *n, struct err *e) MUST_CHECK;

/* A learned linear map [out][in] of a loss. Its weights start as normal(0, 1 / in), seeded by its name,
 * "losses.COLUMN.WHAT.N.weight". It is part of the loss's state and released with it. */
struct loss_projector {
    struct loss_projector *next; /* of the same loss */
    char name[96];
    struct kernel_device *device;    /* of the parameter set it is trained in */
    struct kernel_array value, grad; /* f32; without data: the identity */
    bool begun;
    size_t in, out;
};
int loss_projector_new(struct loss_projector *p, struct loss *l, const char *what, uint32_t number, size_t in,
                       size_t out, struct param_set *own, struct err *e) MUST_CHECK;
/* Returns x p^T, or x if p has no data. */
struct grad_var *loss_project(struct grad_tape *t, struct loss_projector *p, struct grad_var *x);

/* Argument of loss_type.points: a micro-batch between its forward pass and grad_backward. */
struct loss_points {
    struct grad_tape *t; /* the student's; operations on its points may be recorded */
    const struct model_input *in;
    const uint32_t *starts;  /* [n_seqs + 1] */
    const float *row_weight; /* [n_positions] 1 if labelled (TARGET_SEQUENCE: 1 / length), else 0 */
    double labelled;         /* sum of row_weight */
    double weight;           /* of the gradient; 0: none is needed */
    double sum; /* OUT: the sum over labelled positions; a loss that is not such a sum adds labelled * value */
    /* Set by the trainer: */
    const struct model_want *student; /* [n_student], in the list's order */
    /* Sets *rows to a requested point of the teacher, f32 [n_positions][*cols], valid until the next call. */
    int (*teacher)(void *ctx, enum model_point p, uint32_t layer, const float **rows, size_t *cols, struct err *e);
    /* Loads rows [first, first + n) of the data's attention in a sequence: [n][heads][length]. */
    int (*pairs)(void *ctx, uint32_t layer, size_t seq, size_t first, size_t n, size_t length, float *out,
                 struct err *e);
    void *ctx;
    const uint8_t *sampled; /* [n_positions] 1 if sampled fields have the position; NULL: no field is sampled */
    struct loss_list *list;
};
/* Return a point's variable of the student, and a point of the teacher as f32 [n_positions][*cols] in host memory. */
struct grad_var *loss_student_point(const struct loss_points *p, enum model_point point, uint32_t layer);
int loss_teacher_point(const struct loss_points *p, enum model_point point, uint32_t layer, const float **rows,
                       size_t *cols, struct err *e) MUST_CHECK;
/* Computes all losses on points: gradients, and sums for the step. */
int loss_list_points(struct loss_list *l, struct loss_points *p, struct err *e) MUST_CHECK;

#endif
