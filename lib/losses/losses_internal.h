/* What the files of lib/losses share: the rows of the table, and what several losses are made of. */
#ifndef RILL_LOSSES_INTERNAL_H
#define RILL_LOSSES_INTERNAL_H

#include "lib/losses/losses.h"

extern const struct loss_type loss_kl, loss_rkl, loss_skl, loss_srkl, loss_jsd, loss_akl, loss_tvd, loss_ab;
extern const struct loss_type loss_ce, loss_smooth, loss_tfkd, loss_mse, loss_hinge, loss_logistic, loss_uld;
extern const struct loss_type loss_hidden, loss_pkd, loss_tinybert, loss_at, loss_ft, loss_crd, loss_fsp, loss_nst;
extern const struct loss_type loss_sp, loss_cc, loss_pkt, loss_rkd, loss_irg, loss_minilm, loss_minilm2;

/* ---- responses ----------------------------------------------------------------------------------------------------------- */

/* The key that losses against a teacher's distribution have. */
#define LOSS_TEMPERATURE                                                                                               \
    {                                                                                                                  \
        "temperature", LOSS_NUMBER, "T", NULL, 1e-3, 1e3,                                                              \
            "of both softmaxes; without it, that of the data, 1 in-process"                                            \
    }

/* Value and gradient of one divergence with the loss's temperature. */
int loss_divergence(struct loss *l, struct loss_block *b, enum kernel_divergence_kind kind, double first, double second,
                    struct err *e) MUST_CHECK;
/* kl or ce by their kernel, which writes its gradient: it is added to the block's. */
int loss_distill(struct loss_block *b, const struct kernel_loss *how, const struct kernel_target *target, double *kl,
                 double *ce, struct err *e) MUST_CHECK;
/* The temperature after binding. */
double loss_temperature(const struct loss *l);
/* loss_type.prepare where the value counts T^2 times. */
int loss_square_temperature(struct loss *l, const struct loss_setting *s, struct param_set *own,
                            struct err *e) MUST_CHECK;
/* kl's value from the kernel's sum of t ln(t / p). */
double loss_kl_value(const struct knowledge_format *f, const struct kernel_target *target, size_t r, double kl);
/* n floats; what the buffer held is lost. NULL and *e when memory is out. */
float *loss_reserve(struct buf *b, size_t n, struct err *e);
/* The index of a type's key, or -1. */
int loss_key_index(const struct loss_type *t, const char *key);

/* ---- points ---------------------------------------------------------------------------------------------------------------- */

#define LOSS_MAP_FORMS "last|ends|skip|tail|uniform|S:T+S:T"
#define LOSS_MAP(fallback)                                                                                             \
    { "map", LOSS_WORDS, LOSS_MAP_FORMS, fallback, .help = "which layers, student's to teacher's, numbered from 0" }
#define LOSS_PER                                                                                                       \
    {                                                                                                                  \
        "per", LOSS_CHOICE, "position|sequence", "position",                                                           \
            .help = "instances: the positions of a sequence, or the means of the sequences of a micro-batch"           \
    }
#define LOSS_POSITIONS(fallback)                                                                                       \
    { "positions", LOSS_NUMBER, "N", fallback, 2, 4096, "instances of a group at most, evenly spaced" }

struct loss_pairs {
    struct loss_pair pairs[LOSS_MAX_PAIRS];
    size_t n;
};
/* The refusal for want of a field of the data ("attention"), which --tap or --teacher would mend; layer NULL: any. Returns e->code. */
int loss_no_field(const struct loss *l, const char *point, const uint32_t *layer, struct err *e);
/* The refusal of a field of sampled positions. Returns e->code. */
int loss_sampled_field(const struct loss *l, const struct knowledge_field *f, struct err *e) MUST_CHECK;
/* The layers that the data has of a field ("hidden"; NULL: of none): 1 + the last one; 0: none. */
uint32_t loss_layers_in_data(const struct knowledge_format *f, const char *name);
/* A point of the teacher beside the student, whatever the data has. */
int loss_want_live(const struct loss_setting *s, enum model_point p, uint32_t layer, struct err *e) MUST_CHECK;
#define LOSS_ATTENTION_FIELD "attention"

/* A point of both sides. */
int loss_want_pair(struct loss *l, const struct loss_setting *s, enum model_point p, const struct loss_pair *pair,
                   struct err *e) MUST_CHECK;
/* Makes a state of `size` bytes that begins with a struct loss_pairs: the key `map`, asked for on both sides. */
int loss_map_needs(struct loss *l, const struct loss_setting *s, size_t size, struct err *e) MUST_CHECK;
/* Refuses a map whose layers of the teacher differ in width. */
int loss_one_width(const struct loss *l, const struct loss_setting *s, const struct loss_pairs *map,
                   struct err *e) MUST_CHECK;
/* The key `map` where it must be of one layer; `layers` of the teacher, 0: *e says why there are none. */
int loss_map_one(const struct loss *l, const struct loss_setting *s, uint32_t layers, struct loss_pair *pair,
                 struct err *e) MUST_CHECK;

/* grad_host_value; of a point of the student once for all losses: in bf16 it is a copy. */
const float *loss_host_value(struct loss_points *p, const struct grad_var *x);
/* A point of the teacher, as long as the tape. */
int loss_teacher_copy(const struct loss_points *p, enum model_point point, uint32_t layer, const float **rows,
                      size_t *cols, struct err *e) MUST_CHECK;
/* A kernel of rows x against t: the sum of the values of rows with a weight; dx NULL, or where their gradients go. */
typedef double loss_rows_run(float weight, const float *t, const float *row_weight, const float *x, size_t rows,
                             size_t cols, float *dx);
/* Its value, share times, and gradient for all positions; x NULL: the tape has failed. */
int loss_rows(struct loss_points *p, loss_rows_run *run, double share, const float *t, struct grad_var *x,
              struct err *e) MUST_CHECK;
/* The same of a point of both sides, the student's through the map if there is one. */
int loss_states(struct loss_points *p, struct loss_projector *map, enum model_point point, const struct loss_pair *pair,
                loss_rows_run *run, double share, struct err *e) MUST_CHECK;
/* Zeros for the gradient of a point, as long as the tape. */
float *loss_gradient(struct loss_points *p, const struct grad_var *y);

/*
 * A group of instances: x[i] [n][d[i]], gathered, and dx[i] NULL or where the gradient of weight * value is to be written. By convention
 * side 0 is the student's. What is taken from `memory` lasts until the next group.
 */
#define LOSS_MAX_SIDES 4
struct loss_group {
    size_t n, sides, d[LOSS_MAX_SIDES];
    const float *x[LOSS_MAX_SIDES];
    float *dx[LOSS_MAX_SIDES];
    double weight;
    struct arena *memory;
};
/* Sides are variables of the tape, or rows [n_positions][cols]. */
struct loss_sides {
    size_t n;
    struct grad_var *var[LOSS_MAX_SIDES]; /* NULL: rows */
    const float *rows[LOSS_MAX_SIDES];
    size_t cols[LOSS_MAX_SIDES];
    loss_group_run *run;
    double share; /* of the value in the loss */
    size_t most;  /* instances */
};
/* Over all groups of a micro-batch, by the key `per`: a group counts for its labelled positions. */
int loss_groups(struct loss *l, struct loss_points *p, struct loss_sides *of, struct err *e) MUST_CHECK;
bool loss_pooled(const struct loss *l);
/* A number that bounds instances; SIZE_MAX where the loss has no such key. */
size_t loss_most(const struct loss *l, const char *key);

/* Losses whose only points are outputs of layers by a map, with a struct loss_pairs as their state: needs, the mean over pairs (key `most` bounds instances), and release. */
int loss_relation_needs(struct loss *l, const struct loss_setting *s, struct err *e) MUST_CHECK;
int loss_relation_run(struct loss *l, struct loss_points *p, const char *most, loss_group_run *run,
                      struct err *e) MUST_CHECK;
/* The same of the type's group, with the key `positions` as the bound where there is one. */
int loss_relation_points(struct loss *l, struct loss_points *p, struct err *e) MUST_CHECK;
/* kernel_relation of a group. */
int loss_relation(struct loss_group *g, const struct kernel_relation *how, double *value, struct err *e) MUST_CHECK;
/* Sides of two layers of the map, pairs[0] and pairs[1]: the student's two, then the teacher's; likewise of variables made of them. */
int loss_two_layers(struct loss *l, struct loss_points *p, const struct loss_pair *pairs, loss_group_run *run,
                    double share, struct err *e) MUST_CHECK;
int loss_two_vars(struct loss *l, struct loss_points *p, const struct loss_pair *pairs, struct grad_var *a,
                  struct grad_var *b, loss_group_run *run, double share, struct err *e) MUST_CHECK;
/* Refuses a loss whose terms, keys[n] with their weights, are all 0. */
int loss_some_term(const struct loss *l, const char *const *keys, size_t n, struct err *e) MUST_CHECK;
void loss_state_release(struct loss *l); /* a state of one piece of memory, and the projectors in it */

/* ---- attention --------------------------------------------------------------------------------------------------------------- */

/* One layer's attention of both sides. Of the teacher: its queries and keys, or (NULL) the field of the data. */
struct loss_attention {
    enum kernel_attention_loss_kind kind;
    struct kernel_attention student, teacher; /* shapes; sequences are filled in */
    uint32_t layer;                           /* of the teacher */
    struct grad_var *q, *k;                   /* may be one: a self-relation */
    const float *tq, *tk;
    double share;
};
/* Adds its share to p->sum and to the gradients. */
int loss_attention_run(struct loss_points *p, const struct loss_attention *a, struct err *e) MUST_CHECK;
/* Asks for what attention of these layers needs: shapes of both sides. scores: before the softmax, of a teacher in the process. */
int loss_want_attention(struct loss *l, const struct loss_setting *s, const struct loss_pair *pair, bool scores,
                        struct loss_attention *out, struct err *e) MUST_CHECK;
/* Layers of the teacher that has attention: as loss_teacher_layers. */
uint32_t loss_attention_layers(const struct loss_setting *s, const struct loss *l, struct err *e);
/* Of layer pair.student against pair.teacher, as loss_want_attention has left it. */
int loss_attention_pair(struct loss_points *p, const struct loss_pair *pair, const struct loss_attention *wanted,
                        double share, struct err *e) MUST_CHECK;
/* softmax(x x^T / sqrt(d)) of `heads` heads, x at a point. */
int loss_self_relation(struct loss_points *p, enum model_point point, const struct loss_pair *pair, size_t heads,
                       double share, struct err *e) MUST_CHECK;

#endif
