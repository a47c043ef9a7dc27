/*
 * Shared inside lib/prune: the plan of a run (what stays, decided before the first tensor is written as far as that is possible).
 *
 * Order of files, each calling only those before it: choose, map, name, sparsity, norms, mask, layer, narrow, plan_text, those of target.h, plan, candidates, report,
 * lowrank, factors, prune; the others of second_order.h; divergence; allocate; search.
 */
#ifndef RILL_PRUNE_INTERNAL_H
#define RILL_PRUNE_INTERNAL_H

#include "lib/prune/prune.h"

#define LAYER_GONE UINT32_MAX

struct prune_plan {
    const struct prune_options *o;
    const struct model_config *from;
    struct model_config to;
    uint32_t *new_layer;     /* [from->n_layers] number in the pruned model, or LAYER_GONE */
    uint32_t *old_layer;     /* [to.n_layers] */
    uint32_t **kept_experts; /* [to.n_layers][experts] old numbers, ascending; NULL: all stay */
    uint32_t *kept_hidden;   /* [to.hidden] old channels of the residual stream, ascending; NULL: all stay */
    uint32_t *kept_tokens;   /* [to.vocab_size] old ids; NULL: all stay */
    struct buf vocab;        /* of the pruned model; len 0: the old one's */
    size_t n_slots;
    struct prune_sparsity *sparse; /* [n_slots], tensors of the old model in stream order: the single weights that go */
    struct arena memory;
};

/* As o->plan says (plan_text.c): layers, widths, experts, and p->sparse. ERR_DATA names file and line. */
int prune_plan_read(struct prune_plan *p, struct err *e) MUST_CHECK;
int prune_plan_write(const struct prune_plan *p, struct buf *out, struct err *e) MUST_CHECK;
/* What the rest of a plan counts with: p->from, a copy of it in p->to, and the vocabulary that stays. */
int prune_plan_begin(struct prune_plan *p, const struct model_head *head, const struct prune_options *o,
                     struct err *e) MUST_CHECK;
int prune_plan_make(struct prune_plan *p, const struct model_head *head, const struct prune_options *o,
                    struct err *e) MUST_CHECK;
/* For o->target_*: which layers go, gone [n_layers], and the shape of those that stay, in p->to.layers [n_layers] (target.c). */
int prune_plan_target(struct prune_plan *p, unsigned char *gone, struct err *e) MUST_CHECK;
/* Does a layer that stays get another shape, ranks aside? */
bool prune_changes_widths(const struct prune_plan *p);
void prune_plan_release(struct prune_plan *p);
/* Lines for options->warn: what shares resolved to, and what the shape implies. */
void prune_plan_warn(const struct prune_plan *p);

int prune_fill_report(struct prune_report *r, const struct prune_plan *p, struct err *e) MUST_CHECK;
/* Adds a matrix whose weights are x [t->elems] now: counts its zeros, unless it has become factors. */
void prune_count(struct prune_report *r, struct prune_tensor_report *t, const float *x);

/* Where a tensor of the old model is in the pruned one (map.c); false: it is gone. */
bool prune_new_slot(const struct prune_plan *p, struct model_slot old, struct model_slot *out);
/* The expert's number in the pruned model, or LAYER_GONE. */
uint32_t prune_new_expert(const struct prune_plan *p, struct model_slot old);

/* META's general.name and .finetune (name.c): another size, and that it is pruned. */
int prune_rename(cJSON *meta, uint64_t parameters_before, uint64_t parameters_after, struct err *e) MUST_CHECK;

/* The indices of the `best` highest of n scores, ascending, into out; of equals the earlier. Scratch memory comes from `a`. */
int prune_choose(const double *score, uint32_t n, uint32_t best, uint32_t *out, struct arena *a,
                 struct err *e) MUST_CHECK;

/* ---- single weights (sparsity.c, norms.c, mask.c, allocate.c) ---- */

/* Into out [cols] the norms of what the columns of a matrix are multiplied with, by statistics or else by `other`; *found false: they say
 * nothing, as of an expert that no position took. ERR_DATA: `other` does not know the matrix. */
int prune_input_norms(const struct stats *stats, const struct prune_importance *other, const struct model_config *c,
                      struct model_slot s, uint64_t cols, double *out, bool *found, struct err *e) MUST_CHECK;

/* Fills p->sparse by the options, when all else is planned. */
int prune_plan_sparse(struct prune_plan *p, struct err *e) MUST_CHECK;
/* Can each matrix become as sparse as planned, by the method? ERR_USAGE. */
int prune_check_sparse(const struct prune_plan *p, struct err *e) MUST_CHECK;
bool prune_is_sparse(struct prune_sparsity s); /* does anything go? */
/* How many of n weights a share is, rounded down: k for the share k / n, whatever the last bit of the quotient says. */
size_t prune_gone(double share, size_t n);
/* Moves shares by one amount, within 0 and what a layer can lose, until they come to `total` of all weights [n]. */
void prune_shift_to(double *share, const double *weights, size_t n, double total);
#define PRUNE_SPARSITY_TEXT 32
/* "0.5" or "2:4", as prune_sparsity_parse reads it, to the bit. Returns out. */
const char *prune_sparsity_text(struct prune_sparsity s, char out[PRUNE_SPARSITY_TEXT]);

/* A matrix on the host. */
struct prune_matrix {
    float *x; /* [rows][cols] */
    size_t rows, cols;
    const float *norms; /* [cols]: L2 norms of its inputs, up to a factor; NULL: unknown */
};
/* Makes weights zero by magnitude, or with PRUNE_WANDA by the norms too. The scratch memory is kept from one matrix to the next:
 * given back each time, it leaves holes between what readers and writers hold. ERR_IO when memory is out. */
int prune_mask(const struct prune_matrix *w, struct prune_sparsity s, enum prune_method method, struct buf *scratch,
               struct err *e) MUST_CHECK;

/* One layer of the old model in memory as f32, by role; NULL where it has none. */
struct prune_layer {
    struct prune_tensor {
        struct tensor_desc desc; /* type as stored */
        struct buf data, spare;  /* f32 */
        struct buf blocks;       /* of a quantized one as stored, while its rows are whole; len 0: they are not */
        struct buf norms;        /* f32 [cols] of its inputs, for PRUNE_WANDA; len 0: nobody asks */
        struct prune_sparsity sparse;
        bool here;
    } tensor[ROLE_COUNT];
};
void prune_layer_release(struct prune_layer *l);
/* Keeps these rows of the tensor's blocks; those of a vector are given up. desc is that of before. */
int prune_keep_blocks(struct prune_tensor *t, const uint32_t *keep, uint64_t n, struct err *e) MUST_CHECK;
/* What stays along an axis: numbers in the old layer, ascending, in an arena. at NULL: all. */
struct prune_kept {
    uint32_t *at, n;
};
/* Feed-forward channels of a layer or an expert: their axis, where down reads them, down's slot in the old model, how many stay. */
struct prune_part {
    enum model_axis axis;
    enum model_point point;
    struct model_slot slot;
    uint32_t keep;
};
struct prune_part prune_dense_part(const struct prune_plan *p, uint32_t old_layer);
struct prune_part prune_expert_part(const struct prune_plan *p, struct model_slot of);
/* Heads, as elements along AXIS_QUERY and AXIS_KEY. */
struct prune_heads {
    struct prune_kept query, key;
};
struct prune_head_scores {
    double *query, *key; /* [heads], [key/value heads] of the old layer */
};
/* By the plan's score. */
int prune_choose_channels(struct prune_layer *l, const struct prune_plan *p, const struct prune_part *part,
                          struct prune_kept *kept, struct arena *a, struct err *e) MUST_CHECK;
int prune_choose_heads(struct prune_layer *l, const struct prune_plan *p, uint32_t old_layer, struct prune_heads *kept,
                       struct arena *a, struct err *e) MUST_CHECK;
/* By these scores: the best groups, and in each as many of its best query heads as the plan says. */
int prune_take_heads(const struct prune_plan *p, uint32_t old_layer, const struct prune_head_scores *s,
                     struct prune_heads *kept, struct arena *a, struct err *e) MUST_CHECK;
bool prune_keeps_heads(const struct prune_plan *p, uint32_t old_layer); /* all of them */
/* All tensors of the layer along an axis, whatever the architecture calls them. */
int prune_keep_along(struct prune_layer *l, enum model_axis axis, const uint32_t *keep, uint32_t n,
                     struct err *e) MUST_CHECK;
/* Those of one role. */
int prune_keep_along_role(struct prune_layer *l, enum model_role role, enum model_axis axis, const uint32_t *keep,
                          uint32_t n, struct err *e) MUST_CHECK;
int prune_keep_heads(struct prune_layer *l, const struct prune_plan *p, const struct prune_heads *kept,
                     struct err *e) MUST_CHECK;
/* A matrix of a layer becomes its low-rank factors by plain SVD (lowrank.c), and factors become their product; quantized tensors become f32. */
int prune_split(struct prune_layer *l, enum model_role role, uint32_t rank, struct err *e) MUST_CHECK;
int prune_merge(struct prune_layer *l, enum model_role role, struct err *e) MUST_CHECK;
/* Takes channels, head groups and the router's rows out of a layer in place, whose experts are not in memory. */
int prune_layer_shrink(struct prune_layer *l, const struct prune_plan *p, uint32_t old_layer, struct err *e) MUST_CHECK;
/* Takes channels out of one expert. */
int prune_expert_shrink(struct prune_layer *l, const struct prune_plan *p, struct model_slot old,
                        struct err *e) MUST_CHECK;

/* ---- the residual stream (narrow.c) ---- */

/* Chooses the channels that stay, by statistics (Muralidharan et al. 2024, "Minitron": activations behind all norms, summed):
 * p->kept_hidden, p->to.hidden. ERR_USAGE where the stream cannot become narrower. */
int prune_plan_hidden(struct prune_plan *p, uint32_t keep, struct err *e) MUST_CHECK;
/* The share of the sum of squares that goes into a norm of the old model, position by position, that is of the channels that stay; gain
 * [hidden]. */
double prune_kept_energy(const struct prune_plan *p, enum model_role norm, uint32_t layer, const float *gain);
/* A tensor of l without the channels that go; gains of norms are multiplied by `gain`, and by what the smaller number of channels makes
 * of their mean. */
int prune_narrow(struct prune_layer *l, const struct prune_plan *p, struct model_slot old, double gain,
                 struct err *e) MUST_CHECK;

#endif
