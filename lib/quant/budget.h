/*
 * Private to lib/quant: choosing types within a budget of bytes. The error of each type on each matrix is measured once
 * (sensitivity.c), weighted by how much the matrix matters for the output distribution (fisher.c), and the types of
 * least total error within the budget are chosen exactly (allocate.c). A search by measured divergence may follow
 * (search.c).
 *
 * Order of files, each calling only earlier ones: allocate, sense_cache, sensitivity, search, budget.
 */
#ifndef RILL_QUANT_BUDGET_H
#define RILL_QUANT_BUDGET_H

#include "lib/quant/quant_internal.h"

/* ---- choosing (allocate.c) --------------------------------------------------------------------------------------- */

struct offer {
    uint64_t bytes;
    double error; /* finite, >= 0 */
};
struct offers { /* one of them is chosen; n >= 1 */
    const struct offer *at;
    size_t n;
};
struct allocation {
    uint64_t bytes;
    double error; /* sum over the chosen offers */
    double bound; /* no choice within the budget has less; equals error unless states were dropped */
};
/*
 * The multiple-choice knapsack: chooses one offer per item with the least total error within `budget` bytes, which is
 * at least allocate_least. Exact: dynamic programming over the Pareto-optimal pairs (bytes, error) (Nemhauser and
 * Ullmann 1969), pruned by the Lagrangian bound against a greedy solution along the convex hulls. Only if more than
 * ALLOCATE_STATES remain after an item is the list thinned, to the best of each (range / ALLOCATE_STATES) bytes; the
 * choice still fits, and `bound` limits what was lost. Deterministic, also among ties.
 */
#define ALLOCATE_STATES 16384
int allocate(const struct offers *of, size_t n, uint64_t budget, size_t *chosen, struct allocation *out,
             struct err *e) MUST_CHECK;
uint64_t allocate_least(const struct offers *of, size_t n); /* total of the smallest offers */

/* ---- sensitivity (sense_cache.c, sensitivity.c) ------------------------------------------------------------------ */

#define SENSE_TYPES 32
struct sense {
    double power; /* sum over elements of importance w^2 */
    size_t n;
    struct {
        enum dtype to;
        double error; /* sum over elements of importance (w - q)^2; importance 1 if unknown */
    } types[SENSE_TYPES];
};
bool sense_knows(const struct sense *s, enum dtype to);
/* Stored as folder/KEY.sense. A missing file is not an error: *found false. ERR_DATA: not written by sense_store. */
int sense_recall(const char *folder, struct digest key, struct sense *s, bool *found, struct err *e) MUST_CHECK;
int sense_store(const char *folder, struct digest key, const struct sense *s, struct err *e) MUST_CHECK;

struct sense_job {
    const struct tensor_desc *d;
    const void *data;
    const float *importance; /* [columns] or NULL */
    const char *cache;       /* folder; NULL: none */
    struct buf *f32;         /* scratch */
};
/* Rounds to nearest in each of `types` and adds the errors to s. The error of the tensor's own type is 0. */
int sense_measure(const struct sense_job *j, const enum dtype *types, size_t n, struct sense *s,
                  struct err *e) MUST_CHECK;
double sense_error(const struct sense *s, enum dtype to); /* of a measured type */

/* ---- search by measured divergence (search.c) -------------------------------------------------------------------- */

/* The share of the squared error of rounding to nearest that p's method is expected to leave in a matrix. */
double left_by_method(const struct pass *p, struct model_slot s, enum dtype to);

struct search_tensor { /* a tensor as stored */
    struct tensor_desc d;
    unsigned char *data; /* NULL: not a matrix */
};
struct search_job {
    struct pass *pass; /* makes the blocks; its buffers are reserved */
    const struct quant_search *o;
    const struct search_tensor *tensors; /* [n_slots] */
    const size_t *unit_of;               /* [n_slots] unit below n; its tensors share a type; SIZE_MAX: no matrix */
    size_t n_slots, n;
    const struct offers *of; /* [n] */
    const enum dtype *types; /* [n][SENSE_TYPES], of the offers */
    uint64_t budget;
};
/* Replaces `chosen` [n], which is within the budget, by the best plan found, within the budget and of no greater
 * divergence on o->in: see quant_search. */
int search_plan(const struct search_job *j, size_t *chosen, struct quant_search_result *r, struct err *e) MUST_CHECK;

#endif
