/*
 * distill: trains a student on a knowledge stream. Forward KL with temperature on each encoding (Hinton et al. 2015, with the T^2
 * factor) plus cross-entropy on the labels; AdamW, linear warmup, cosine decay, clipping by global norm, gradient accumulation.
 */
#ifndef RILL_DISTILL_H
#define RILL_DISTILL_H

#include "lib/base/base.h"
#include "lib/knowledge/knowledge.h"
#include "lib/model/model.h"

struct distill_options {
    double temperature, kl_weight, ce_weight;
    double lr, lr_min;           /* peak and end of the cosine */
    uint64_t warmup, steps;      /* optimizer steps; steps 0: one pass over the data (the schedule then needs total_tokens) */
    uint64_t batch_tokens;       /* positions per optimizer step */
    uint64_t micro_tokens;       /* positions per forward/backward; 0: batch_tokens */
    double weight_decay, beta1, beta2, eps, clip; /* clip 0: none */
    uint64_t seed;
};

struct distill_progress {
    uint64_t step, steps, positions;
    double kl, ce, lr, grad_norm; /* of the last step, per position */
};

struct trainer;
/* The model stays the caller's. */
int trainer_new(struct trainer **out, struct model *m, const struct distill_options *o, const struct knowledge_format *f,
                struct err *e) MUST_CHECK;
/* Feeds one batch of the stream; takes as many optimizer steps as it completes. *done when `steps` are reached. */
int trainer_feed(struct trainer *t, const struct batch *b, bool *done, struct err *e) MUST_CHECK;
/* The data has ended: takes the last, smaller step if positions are pending. */
int trainer_end(struct trainer *t, struct err *e) MUST_CHECK;
void trainer_progress(const struct trainer *t, struct distill_progress *p);
/* Parameters, moments, pending gradients and the position in the data as a checkpoint stream; a resumed run gives the same bytes
 * as an uninterrupted one. trainer_restore checks model shapes and options; the caller skips *positions of the data, checked
 * against the digest of the tokens seen. */
int trainer_save(struct trainer *t, struct stream_writer *w, struct err *e) MUST_CHECK;
int trainer_restore(struct trainer *t, struct stream_reader *r, struct err *e) MUST_CHECK;
void trainer_free(struct trainer *t);

#endif
