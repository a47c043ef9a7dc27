/* What the files of lib/train share. */
#ifndef RILL_TRAIN_INTERNAL_H
#define RILL_TRAIN_INTERNAL_H

#include "lib/train/train.h"

/* One key of "key=value,key=value": a number from `least` to `most`, or a whole one. */
struct train_key {
    const char *name;
    double least, most;
    double *number; /* one of the two is where it goes */
    uint64_t *whole;
    bool given; /* OUT */
};
/* Reads the members; false when one is unknown, said twice or out of its range. NULL: no members. */
bool train_keys_parse(const char *members, struct train_key *keys, size_t n);

/* The optimizers' rows are made of these. */
void adamw_step(const struct train_update *u, struct param *p);

#endif
