/* The trainer, as its files share it. */
#ifndef RILL_DISTILL_INTERNAL_H
#define RILL_DISTILL_INTERNAL_H

#include "lib/distill/distill.h"

struct trainer {
    struct model *m; /* the caller's */
    struct distill_options o;
    struct knowledge_format format;
    struct grad_tape *tape;
    struct kernel_array *m1, *m2; /* AdamW's moments of each parameter, [n_params] */

    /* Data: what is queued, and how much of it has been through forward and backward. */
    struct knowledge_rows rows;
    size_t used_seqs, used_positions;
    struct digest_state *seen; /* lengths and tokens of this epoch's sequences, up to the last one used */
    uint64_t sequences;        /* their number */

    /* After a restore: sequences still to skip, and what their digest must come to. */
    uint64_t skip;
    struct digest skip_digest;

    /* The step under way: sums over its labelled positions so far. */
    uint64_t step_positions, step_labelled, step_first_seq;
    double step_kl, step_ce;

    struct distill_progress progress;
    struct buf dense, row_weight, row_loss; /* of one block of positions */
};

/* How much decay does this parameter get? */
static inline bool trainer_decays(enum model_role role) {
    return model_role_is_matrix(role) && role != ROLE_EMBED;
}

/* Sequence `i` of the queue is used: counts it and takes it into the digest. */
void trainer_use_seq(struct trainer *t, size_t i);
/* Forward and backward over `n_seqs` sequences from used_seqs on: gradients and sums of the step grow. */
int trainer_run_micro(struct trainer *t, size_t n_seqs, size_t n_positions, struct err *e) MUST_CHECK;
/* The gradients of the step into the weights. */
int trainer_update(struct trainer *t, struct err *e) MUST_CHECK;

#endif
