/*
 * Private to lib/prune: the plan of a run, i.e. what stays, decided before the first tensor is written as far as
 * possible.
 *
 * Order of files, each calling only earlier ones: choose, map, name, sparsity, norms, mask, layer, narrow, vocabulary,
 * layers, plan_text, those of target.h, plan, candidates, report, lowrank, factors, those of second_order.h up to
 * moments, prune; the others of second_order.h; divergence; allocate; search.
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
    struct buf vocab;        /* of the pruned model; len 0: unchanged */
    size_t n_slots;
    struct prune_sparsity *sparse; /* [n_slots], by tensor of the old model in stream order: the sparsity to apply */
    struct arena memory;
};

/* Fills in layers, widths, experts and p->sparse from the text o->plan (plan_text.c). ERR_DATA names file and line. */
int prune_plan_read(struct prune_plan *p, struct err *e) MUST_CHECK;
int prune_plan_write(const struct prune_plan *p, struct buf *out, struct err *e) MUST_CHECK;
/* First part of a plan: p->from, its copy in p->to, and the vocabulary that stays. */
int prune_plan_begin(struct prune_plan *p, const struct model_head *head, const struct prune_options *o,
                     struct err *e) MUST_CHECK;
int prune_plan_make(struct prune_plan *p, const struct model_head *head, const struct prune_options *o,
                    struct err *e) MUST_CHECK;
/* For o->target_*: sets gone [n_layers] for removed layers and p->to.layers [n_layers] to the shapes of the others. */
int prune_plan_target(struct prune_plan *p, unsigned char *gone, struct err *e) MUST_CHECK;
/* Whether a remaining layer changes shape, ranks aside. */
bool prune_changes_widths(const struct prune_plan *p);
void prune_plan_release(struct prune_plan *p);
/* Passes lines to options->warn: the numbers that shares resolved to, and consequences of the shape. */
void prune_plan_warn(const struct prune_plan *p);

int prune_fill_report(struct prune_report *r, const struct prune_plan *p, struct err *e) MUST_CHECK;
/* Adds a matrix with the new weights x [t->elems]: counts its zeros, unless it was factored. */
void prune_count(struct prune_report *r, struct prune_tensor_report *t, const float *x);

/* Maps a slot of the old model to the pruned one (map.c); false: removed. */
bool prune_new_slot(const struct prune_plan *p, struct model_slot old, struct model_slot *out);
/* The expert's number in the pruned model, or LAYER_GONE. */
uint32_t prune_new_expert(const struct prune_plan *p, struct model_slot old);

/* Updates general.name and .finetune in META (name.c): the new size, and that the model is pruned. */
int prune_rename(cJSON *meta, uint64_t parameters_before, uint64_t parameters_after, struct err *e) MUST_CHECK;

/* Writes the indices of the `best` highest of n scores to out, ascending; ties go to the lower index. Scratch comes
 * from `a`. */
int prune_choose(const double *score, uint32_t n, uint32_t best, uint32_t *out, struct arena *a,
                 struct err *e) MUST_CHECK;

/* ---- layers.c ---- */

/* Marks the layers that go so that `keep` stay, by o->layer_divergence or o->layer_score, in gone [n_layers]. */
int prune_drop_layers(const struct prune_plan *p, uint32_t keep, unsigned char *gone, struct err *e) MUST_CHECK;
/* Marks those that o->drop_layers names. */
int prune_drop_named(const struct prune_plan *p, unsigned char *gone, struct err *e) MUST_CHECK;

/* ---- vocabulary.c ---- */

/* Chooses the tokens that stay: p->kept_tokens, p->vocab and the size in p->to. ERR_USAGE: no token would be left, or
 * o->vocab_size has no room for any; ERR_DATA: no vocabulary, or the tokens are of another one. */
int prune_plan_vocab(struct prune_plan *p, const struct model_head *head, struct err *e) MUST_CHECK;

/* ---- single weights (sparsity.c, norms.c, mask.c, allocate.c) ---- */

/* Writes the norms of a matrix's input columns to out [cols], from statistics or else from `other`. *found false: they
 * are uninformative, as for an expert that no position was routed to. ERR_DATA: `other` does not know the matrix. */
int prune_input_norms(const struct stats *stats, const struct prune_importance *other, const struct model_config *c,
                      struct model_slot s, uint64_t cols, double *out, bool *found, struct err *e) MUST_CHECK;

/* Fills p->sparse from the options, after the rest of the plan. */
int prune_plan_sparse(struct prune_plan *p, struct err *e) MUST_CHECK;
/* ERR_USAGE if the method cannot make some matrix as sparse as planned. */
int prune_check_sparse(const struct prune_plan *p, struct err *e) MUST_CHECK;
bool prune_is_sparse(struct prune_sparsity s); /* whether anything is pruned */
/* The number of weights in a share of n, rounded down; exactly k for the share k / n, despite rounding of the
 * quotient. */
size_t prune_gone(double share, size_t n);
/* Shifts all shares by one amount, clamped to what a layer can lose, until their mean weighted by weights [n] is
 * `total`. */
void prune_shift_to(double *share, const double *weights, size_t n, double total);
#define PRUNE_SPARSITY_TEXT 32
/* "0.5" or "2:4" as prune_sparsity_parse reads it, round-trip exact. Returns out. */
const char *prune_sparsity_text(struct prune_sparsity s, char out[PRUNE_SPARSITY_TEXT]);

/* Whether single weights are pruned by second moments of the statistics, without data. */
bool prune_uses_moments(const struct prune_options *o);

/* A matrix on the host. */
struct prune_matrix {
    float *x; /* [rows][cols] */
    size_t rows, cols;
    const float *norms; /* [cols]: L2 norms of its inputs, up to a factor; NULL: unknown */
};
/* Zeroes weights by magnitude or, for PRUNE_WANDA, by magnitude times norm. The scratch buffer is reused between
 * matrices, because freeing it each time fragments the heap among the buffers of readers and writers. ERR_IO: out of
 * memory. */
int prune_mask(const struct prune_matrix *w, struct prune_sparsity s, enum prune_method method, struct buf *scratch,
               struct err *e) MUST_CHECK;

/* One layer of the old model in memory as f32, by role; NULL where it has none. */
struct prune_layer {
    struct prune_tensor {
        struct tensor_desc desc; /* type as stored */
        struct buf data, spare;  /* f32 */
        struct buf blocks;       /* a quantized tensor as stored, as long as its rows are complete; else len 0 */
        struct buf norms;        /* f32 [cols] of its inputs, for PRUNE_WANDA; len 0: not needed */
        struct prune_sparsity sparse;
        bool here;
    } tensor[ROLE_COUNT];
};
void prune_layer_release(struct prune_layer *l);
/* Keeps these rows of the tensor's blocks; drops the blocks of a vector. desc is still the old one. */
int prune_keep_blocks(struct prune_tensor *t, const uint32_t *keep, uint64_t n, struct err *e) MUST_CHECK;
/* What stays along an axis: old indices, ascending, owned by an arena. at NULL: all. */
struct prune_kept {
    uint32_t *at, n;
};
/* Feed-forward channels of a layer or an expert: axis, point where down reads them, down's old slot, number kept. */
struct prune_part {
    enum model_axis axis;
    enum model_point point;
    struct model_slot slot;
    uint32_t keep;
};
struct prune_part prune_dense_part(const struct prune_plan *p, uint32_t old_layer);
struct prune_part prune_expert_part(const struct prune_plan *p, struct model_slot of);
/* The heads that stay, as elements along AXIS_QUERY and AXIS_KEY. */
struct prune_heads {
    struct prune_kept query, key;
};
struct prune_head_scores {
    double *query, *key; /* [heads], [key/value heads] of the old layer */
};
/* By the score of the plan. */
int prune_choose_channels(struct prune_layer *l, const struct prune_plan *p, const struct prune_part *part,
                          struct prune_kept *kept, struct arena *a, struct err *e) MUST_CHECK;
int prune_choose_heads(struct prune_layer *l, const struct prune_plan *p, uint32_t old_layer, struct prune_heads *kept,
                       struct arena *a, struct err *e) MUST_CHECK;
/* By the given scores: the best groups, and in each the planned number of its best query heads. */
int prune_take_heads(const struct prune_plan *p, uint32_t old_layer, const struct prune_head_scores *s,
                     struct prune_heads *kept, struct arena *a, struct err *e) MUST_CHECK;
bool prune_keeps_heads(const struct prune_plan *p, uint32_t old_layer); /* whether all stay */
/* Keeps these elements of every tensor of the layer that has the axis, whatever the architecture calls it. */
int prune_keep_along(struct prune_layer *l, enum model_axis axis, const uint32_t *keep, uint32_t n,
                     struct err *e) MUST_CHECK;
/* Likewise for the tensors of one role. */
int prune_keep_along_role(struct prune_layer *l, enum model_role role, enum model_axis axis, const uint32_t *keep,
                          uint32_t n, struct err *e) MUST_CHECK;
int prune_keep_heads(struct prune_layer *l, const struct prune_plan *p, const struct prune_heads *kept,
                     struct err *e) MUST_CHECK;
/* Replaces a matrix by low-rank factors from a plain SVD (lowrank.c), or factors by their product; quantized
 * tensors become f32. */
int prune_split(struct prune_layer *l, enum model_role role, uint32_t rank, struct err *e) MUST_CHECK;
int prune_merge(struct prune_layer *l, enum model_role role, struct err *e) MUST_CHECK;
/* Removes channels, head groups and rows of the router from a layer in place; its experts are not in memory. */
int prune_layer_shrink(struct prune_layer *l, const struct prune_plan *p, uint32_t old_layer, struct err *e) MUST_CHECK;
/* Removes channels from one expert. */
int prune_expert_shrink(struct prune_layer *l, const struct prune_plan *p, struct model_slot old,
                        struct err *e) MUST_CHECK;

/* ---- the residual stream (narrow.c) ---- */

/* Chooses the channels that stay from statistics (Muralidharan et al. 2024, "Minitron": activations after every norm,
 * summed): sets p->kept_hidden and p->to.hidden. ERR_USAGE if the stream cannot become narrower. */
int prune_plan_hidden(struct prune_plan *p, uint32_t keep, struct err *e) MUST_CHECK;
/* The share of the energy (sum of squares, per position) entering a norm of the old model that the remaining channels
 * carry; gain [hidden]. */
double prune_kept_energy(const struct prune_plan *p, enum model_role norm, uint32_t layer, const float *gain);
/* Removes channels of the residual stream from a tensor of l. Gains of norms are multiplied by `gain` and corrected for
 * the mean over fewer channels. */
int prune_narrow(struct prune_layer *l, const struct prune_plan *p, struct model_slot old, double gain,
                 struct err *e) MUST_CHECK;

#endif
