/*
 * Private to lib/quant: types for a budget of bytes. What each type does to each matrix is measured once (sensitivity.c), with what the
 * model's own distribution says of how much it matters (fisher.c), and the types that do the least within the budget are chosen
 * exactly (allocate.c). From there a search may go on by the true divergence (search.c).
 *
 * Order of files, each calling only those before it: allocate, sense_cache, sensitivity, search, budget.
 */
#ifndef RILL_QUANT_BUDGET_H
#define RILL_QUANT_BUDGET_H

#include "lib/quant/quant_internal.h"

/* ---- choosing (allocate.c) --------------------------------------------------------------------------------------- */

struct offer {
    uint64_t bytes;
    double error; /* finite, >= 0 */
};
struct offers { /* of which one is taken; n >= 1 */
    const struct offer *at;
    size_t n;
};
struct allocation {
    uint64_t bytes;
    double error; /* sum over what was taken */
    double bound; /* no choice within the budget has less: error itself, unless the search had to be thinned */
};
/*
 * The multiple-choice knapsack: one offer of each of n, of least error in all, within `budget` bytes, which is at least
 * allocate_least. Exact: dynamic programming over the pairs (bytes, error) that nothing else dominates (Nemhauser and
 * Ullmann 1969), from which those drop out that the Lagrangian bound shows to end above a greedy solution along the
 * convex hulls. Only when more than ALLOCATE_STATES are left after a step is the list thinned, to the best of each
 * (range / ALLOCATE_STATES) bytes; what is chosen then still fits, and `bound` says what the best may be. Of equal
 * choices always the same one is taken.
 */
#define ALLOCATE_STATES 16384
int allocate(const struct offers *of, size_t n, uint64_t budget, size_t *chosen, struct allocation *out,
             struct err *e) MUST_CHECK;
uint64_t allocate_least(const struct offers *of, size_t n); /* bytes of the smallest offers */

/* ---- what a type does to a matrix (sense_cache.c, sensitivity.c) ---------------------------------------------------- */

#define SENSE_TYPES 32
struct sense {
    double power; /* sum over elements of importance w^2 */
    size_t n;
    struct {
        enum dtype to;
        double error; /* sum over elements of importance (w - q)^2; importance 1 where none is known */
    } types[SENSE_TYPES];
};
bool sense_knows(const struct sense *s, enum dtype to);
/* In folder/KEY.sense. Missing is no error, and *found false. ERR_DATA: not what sense_store writes. */
int sense_recall(const char *folder, struct digest key, struct sense *s, bool *found, struct err *e) MUST_CHECK;
int sense_store(const char *folder, struct digest key, const struct sense *s, struct err *e) MUST_CHECK;

struct sense_job {
    const struct tensor_desc *d;
    const void *data;
    const float *importance; /* [columns] or NULL */
    const char *cache;       /* folder; NULL: none */
    struct buf *f32;         /* to work in */
};
/* Rounds to nearest in each of `types`, and adds to s what that does. Of the tensor's own type the error is 0. */
int sense_measure(const struct sense_job *j, const enum dtype *types, size_t n, struct sense *s,
                  struct err *e) MUST_CHECK;
double sense_error(const struct sense *s, enum dtype to); /* of one that was measured */

/* ---- going on by the true divergence (search.c) ---------------------------------------------------------------------- */

/* Errors are measured by rounding to nearest: the share of their squares that p's method is expected to leave in a matrix. */
double left_by_method(const struct pass *p, struct model_slot s, enum dtype to);

struct search_tensor { /* as it is stored */
    struct tensor_desc d;
    unsigned char *data; /* NULL: no matrix */
};
struct search_job {
    struct pass *pass; /* of the method that makes blocks, with room for them */
    const struct quant_search *o;
    const struct search_tensor *tensors; /* [n_slots] */
    const size_t *unit_of;               /* [n_slots] of n; tensors of a unit have one type; SIZE_MAX: no matrix */
    size_t n_slots, n;
    const struct offers *of; /* [n] */
    const enum dtype *types; /* [n][SENSE_TYPES], of the offers */
    uint64_t budget;
};
/* From `chosen` [n] within the budget to what is found, which is within the budget and of no greater divergence on o->in: see
 * quant_search. */
int search_plan(const struct search_job *j, size_t *chosen, struct quant_search_result *r, struct err *e) MUST_CHECK;

#endif
