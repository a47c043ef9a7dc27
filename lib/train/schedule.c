/* The table of schedules: how the learning rate gets from its peak to the last step. */
#include <math.h>

#include "lib/train/train_internal.h"

/* Returns the step with the full rate. */
static uint64_t peak(const struct train_schedule *s) {
    return s->warmup ? s->warmup : 1;
}

/* Returns the fraction of the steps from `from` to the last that have passed at `step`: 0 to 1. */
static double gone(const struct train_schedule *s, double from, uint64_t step) {
    double at = ((double)step - from) / ((double)s->steps - from);
    return at < 0 ? 0 : at < 1 ? at : 1;
}

/* Half a cosine (Loshchilov and Hutter 2017, "SGDR", arXiv 1608.03983, without restarts). */
static double cosine_height(const struct train_schedule *s, uint64_t step) {
    return 0.5 * (1 + cos(3.14159265358979323846 * gone(s, (double)peak(s), step)));
}

static double linear_height(const struct train_schedule *s, uint64_t step) {
    return 1 - gone(s, (double)peak(s), step);
}

static double constant_height(const struct train_schedule *s, uint64_t step) {
    (void)s, (void)step;
    return 1;
}

/* Warmup, stable, decay, with the shape 1 - sqrt (Hägele et al. 2024, "Scaling laws and compute-optimal training
 * beyond fixed training durations", arXiv 2405.18392, section 3): the stable phase can be extended without planning it
 * in advance. */
static double decay_begins(const struct train_schedule *s) {
    double from = (double)s->steps * (1 - s->decay);
    return from < (double)peak(s) ? (double)peak(s) : from;
}

static double wsd_height(const struct train_schedule *s, uint64_t step) {
    return 1 - sqrt(gone(s, decay_begins(s), step));
}

const struct schedule_type train_schedules[] = {
    {"cosine", "half a cosine to --lr-min", .falls = true, .height = cosine_height},
    {"linear", "a straight line to --lr-min", .falls = true, .height = linear_height},
    {"constant", "the peak to the end", .height = constant_height},
    {"wsd", "the peak, then 1 - sqrt to --lr-min over the last part (decay=SHARE of the steps)", .falls = true,
     .has_decay = true, .height = wsd_height},
    {0},
};

const struct schedule_type *train_schedule_type(const struct train_schedule *s) {
    return s->type ? s->type : &train_schedules[0];
}

double train_schedule_lr(const struct train_schedule *s, uint64_t step) {
    if (step <= s->warmup) return s->lr * (double)step / (double)s->warmup;
    if (s->steps <= peak(s) || !train_schedule_type(s)->falls) return s->lr;
    return s->lr_min + (s->lr - s->lr_min) * train_schedule_type(s)->height(s, step);
}

bool train_schedule_decays(const struct train_schedule *s, uint64_t step) {
    return train_schedule_type(s)->has_decay && (double)step > decay_begins(s);
}

bool train_schedule_equal(const struct train_schedule *a, const struct train_schedule *b) {
    const struct schedule_type *type = train_schedule_type(a);
    return type == train_schedule_type(b) && a->lr == b->lr && a->warmup == b->warmup && a->steps == b->steps &&
           (!type->falls || a->lr_min == b->lr_min) && (!type->has_decay || a->decay == b->decay);
}

uint64_t train_default_warmup(uint64_t steps) {
    return steps / 10 < 100 ? steps / 10 : 100;
}

double train_default_lr_min(const struct train_schedule *s) {
    return train_schedule_type(s)->falls ? s->lr / 10 : s->lr;
}
