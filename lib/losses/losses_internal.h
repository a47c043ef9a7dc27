/* Private to lib/losses: the rows of the table, and building blocks shared by several losses. */
#ifndef RILL_LOSSES_INTERNAL_H
#define RILL_LOSSES_INTERNAL_H

#include "lib/losses/losses.h"

extern const struct loss_type loss_kl, loss_rkl, loss_skl, loss_srkl, loss_jsd, loss_akl, loss_tvd, loss_ab;
extern const struct loss_type loss_ce, loss_smooth, loss_tfkd, loss_mse, loss_hinge, loss_logistic, loss_uld;
extern const struct loss_type loss_hidden, loss_pkd, loss_tinybert, loss_at, loss_ft, loss_crd, loss_fsp, loss_nst;
extern const struct loss_type loss_sp, loss_cc, loss_pkt, loss_rkd, loss_irg, loss_minilm, loss_minilm2;

/* ---- responses --------------------------------------------------------------------------------------------------- */

/* Key of losses that compare with a teacher's distribution. */
#define LOSS_TEMPERATURE                                                                                               \
    {                                                                                                                  \
        "temperature", LOSS_NUMBER, "T", NULL, 1e-3, 1e3,                                                              \
            "of both softmaxes; without it, that of the data, 1 in-process"                                            \
    }

/* Computes value and gradient of one divergence at the loss's temperature. */
int loss_divergence(struct loss *l, struct loss_block *b, enum kernel_divergence_kind kind, double first, double second,
                    struct err *e) MUST_CHECK;
/* Computes kl or ce by its kernel, which overwrites; the gradient is then added to the block's. */
int loss_distill(struct loss_block *b, const struct kernel_loss *how, const struct kernel_target *target, double *kl,
                 double *ce, struct err *e) MUST_CHECK;
/* Returns the temperature; call after binding. */
double loss_temperature(const struct loss *l);
/* loss_type.prepare for a loss with the factor T^2. */
int loss_square_temperature(struct loss *l, const struct loss_setting *s, struct param_set *own,
                            struct err *e) MUST_CHECK;
/* Returns the value of kl, given the kernel's sum of t ln(t / p). */
double loss_kl_value(const struct knowledge_format *f, const struct kernel_target *target, size_t r, double kl);
/* Returns space for n floats, discarding the contents of the buffer; NULL and *e if out of memory. */
float *loss_reserve(struct buf *b, size_t n, struct err *e);
/* Returns the index of a type's key, or -1. */
int loss_key_index(const struct loss_type *t, const char *key);

/* ---- points ------------------------------------------------------------------------------------------------------ */

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
/* Fails because the data lacks a field ("attention"); the message suggests --tap and --teacher. layer NULL: any.
 * Returns e->code. */
int loss_no_field(const struct loss *l, const char *point, const uint32_t *layer, struct err *e);
/* Fails because a field has only sampled positions. Returns e->code. */
int loss_sampled_field(const struct loss *l, const struct knowledge_field *f, struct err *e) MUST_CHECK;
/* Returns 1 + the last layer of a field in the data ("hidden"); 0: it has none, or name is NULL. */
uint32_t loss_layers_in_data(const struct knowledge_format *f, const char *name);
/* Requests a point of the live teacher, whatever the data has. */
int loss_want_live(const struct loss_setting *s, enum model_point p, uint32_t layer, struct err *e) MUST_CHECK;
#define LOSS_ATTENTION_FIELD "attention"

/* Requests a point of both sides. */
int loss_want_pair(struct loss *l, const struct loss_setting *s, enum model_point p, const struct loss_pair *pair,
                   struct err *e) MUST_CHECK;
/* Allocates a state of `size` bytes that begins with a struct loss_pairs, parses the key `map` into it, and requests
 * the layers of both sides. */
int loss_map_needs(struct loss *l, const struct loss_setting *s, size_t size, struct err *e) MUST_CHECK;
/* ERR_USAGE: the teacher's layers of a map differ in width. */
int loss_one_width(const struct loss *l, const struct loss_setting *s, const struct loss_pairs *map,
                   struct err *e) MUST_CHECK;
/* Parses the key `map`, which must name one pair of layers. `layers`: the teacher's; 0: *e says why there are none. */
int loss_map_one(const struct loss *l, const struct loss_setting *s, uint32_t layers, struct loss_pair *pair,
                 struct err *e) MUST_CHECK;

/* grad_host_value, but fetched once for all losses for a point of the student (for bf16 it is a copy). */
const float *loss_host_value(struct loss_points *p, const struct grad_var *x);
/* Copies a point of the teacher to memory that lives as long as the tape. */
int loss_teacher_copy(const struct loss_points *p, enum model_point point, uint32_t layer, const float **rows,
                      size_t *cols, struct err *e) MUST_CHECK;
/* A kernel that compares rows x with t. Returns the sum of the values of rows with a weight; writes their gradients to
 * dx unless it is NULL. */
typedef double loss_rows_run(float weight, const float *t, const float *row_weight, const float *x, size_t rows,
                             size_t cols, float *dx);
/* Adds share times value and gradient for all positions. x NULL: the tape has failed. */
int loss_rows(struct loss_points *p, loss_rows_run *run, double share, const float *t, struct grad_var *x,
              struct err *e) MUST_CHECK;
/* Same for a point of both sides; the student's goes through the map if there is one. */
int loss_states(struct loss_points *p, struct loss_projector *map, enum model_point point, const struct loss_pair *pair,
                loss_rows_run *run, double share, struct err *e) MUST_CHECK;
/* Returns zeros for the gradient of a point, which live as long as the tape; NULL: see grad_error. */
float *loss_gradient(struct loss_points *p, const struct grad_var *y);

/*
 * A group of instances: x[i] [n][d[i]], gathered; the gradient of weight * value goes to dx[i] unless it is NULL. By
 * convention side 0 is the student's. Memory from `memory` is valid until the next group.
 */
#define LOSS_MAX_SIDES 4
struct loss_group {
    size_t n, sides, d[LOSS_MAX_SIDES];
    const float *x[LOSS_MAX_SIDES];
    float *dx[LOSS_MAX_SIDES];
    double weight;
    struct arena *memory;
};
/* The sides to compare: variables of the tape, or rows [n_positions][cols]. */
struct loss_sides {
    size_t n;
    struct grad_var *var[LOSS_MAX_SIDES]; /* NULL: see rows */
    const float *rows[LOSS_MAX_SIDES];
    size_t cols[LOSS_MAX_SIDES];
    loss_group_run *run;
    double share; /* of the loss */
    size_t most;  /* limit on the instances in a group */
};
/* Computes all groups of a micro-batch, formed by the key `per`. Each is weighted by its labelled positions. */
int loss_groups(struct loss *l, struct loss_points *p, struct loss_sides *of, struct err *e) MUST_CHECK;
bool loss_pooled(const struct loss *l);
/* Returns the value of a key that limits instances; SIZE_MAX if the loss has no such key. */
size_t loss_most(const struct loss *l, const char *key);

/* For losses that compare only outputs of mapped layers and whose state is a struct loss_pairs: `needs`, and the mean
 * over pairs. `most` is the key that limits instances. */
int loss_relation_needs(struct loss *l, const struct loss_setting *s, struct err *e) MUST_CHECK;
int loss_relation_run(struct loss *l, struct loss_points *p, const char *most, loss_group_run *run,
                      struct err *e) MUST_CHECK;
/* Same, with the type's `group` and the key `positions`, if it has one. */
int loss_relation_points(struct loss *l, struct loss_points *p, struct err *e) MUST_CHECK;
/* Computes kernel_relation for a group. */
int loss_relation(struct loss_group *g, const struct kernel_relation *how, double *value, struct err *e) MUST_CHECK;
/* Compare two layers of the map, pairs[0] and pairs[1]: sides are the student's two, then the teacher's; in the second
 * function the student's are variables derived from them. */
int loss_two_layers(struct loss *l, struct loss_points *p, const struct loss_pair *pairs, loss_group_run *run,
                    double share, struct err *e) MUST_CHECK;
int loss_two_vars(struct loss *l, struct loss_points *p, const struct loss_pair *pairs, struct grad_var *a,
                  struct grad_var *b, loss_group_run *run, double share, struct err *e) MUST_CHECK;
/* ERR_USAGE: the weights of all terms, keys[n], are 0. */
int loss_some_term(const struct loss *l, const char *const *keys, size_t n, struct err *e) MUST_CHECK;
void loss_state_release(struct loss *l); /* frees a state that is one allocation, and its projectors */

/* ---- attention --------------------------------------------------------------------------------------------------- */

/* Attention of one layer on both sides. The teacher's comes from queries and keys, or (tq NULL) from a field of the
 * data. */
struct loss_attention {
    enum kernel_attention_loss_kind kind;
    struct kernel_attention student, teacher; /* shapes; the sequences are filled in later */
    uint32_t layer;                           /* of the teacher */
    struct grad_var *q, *k;                   /* the same variable for a self-relation */
    const float *tq, *tk;
    double share;
};
/* Adds `share` times the value to p->sum, and the gradients. */
int loss_attention_run(struct loss_points *p, const struct loss_attention *a, struct err *e) MUST_CHECK;
/* Requests what attention of these layers needs, and sets the shapes. scores: before the softmax; needs a live
 * teacher. */
int loss_want_attention(struct loss *l, const struct loss_setting *s, const struct loss_pair *pair, bool scores,
                        struct loss_attention *out, struct err *e) MUST_CHECK;
/* Returns the layers of the teacher that provides attention, like loss_teacher_layers. */
uint32_t loss_attention_layers(const struct loss_setting *s, const struct loss *l, struct err *e);
/* Runs layer pair.student against pair.teacher; `wanted` is from loss_want_attention. */
int loss_attention_pair(struct loss_points *p, const struct loss_pair *pair, const struct loss_attention *wanted,
                        double share, struct err *e) MUST_CHECK;
/* Compares softmax(x x^T / sqrt(d)) in `heads` heads, x being a point of both sides. */
int loss_self_relation(struct loss_points *p, enum model_point point, const struct loss_pair *pair, size_t heads,
                       double share, struct err *e) MUST_CHECK;

#endif
