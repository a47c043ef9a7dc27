/* What the files of lib/train share. */
#ifndef RILL_TRAIN_INTERNAL_H
#define RILL_TRAIN_INTERNAL_H

#include "lib/train/train.h"

/* One key of "key=value,key=value": a number from `least` to `most`, a whole one, or a text of at most
 * TRAIN_GLOB_TEXT - 1 bytes. */
struct train_key {
    const char *name;
    double least, most;
    double *number; /* one of the three is where it goes */
    uint64_t *whole;
    char *text;
    bool given; /* OUT */
};
/* Reads the members; false when one is unknown, said twice or out of its range. NULL: no members. */
bool train_keys_parse(const char *members, struct train_key *keys, size_t n);
/* The text before the last colon of GLOB:members, and the members; false: too long, or empty. */
bool train_glob_copy(char out[TRAIN_GLOB_TEXT], const char *text, size_t n);

/* ---- the optimizers' rows are made of these ---- */

void adamw_step(const struct train_update *u, struct param *p);
double adamw_mup(const struct param *p);

bool muon_takes(const struct param *p);
bool muon_parse(const char *members, struct train_options *o);
bool muon_put(cJSON *to, const struct train_options *o);
size_t muon_scratch(const struct train_options *o, const struct param *p);
double muon_mup(const struct param *p);
void muon_step(const struct train_update *u, struct param *p);

/* Rates and decays of all parameters (group.c). ERR_USAGE when a pattern has none. */
int groups_begin(struct param_set *s, struct err *e) MUST_CHECK;

/* ---- grids (grid.c) ---- */

struct train_grid {
    struct model_grid now;  /* what forward passes read */
    struct model_param *of; /* its value: the master */
    size_t param;           /* number of the master in the set; the set's n: it is frozen */
    unsigned char *average; /* blocks of the averages, with options.ema; else NULL */
    unsigned char *best;    /* those that param_set_keep saw, with options.keep_best; else NULL */
};
#define TRAIN_GRID_PART ((uint64_t)1 << 18) /* elements decoded at a time: whole blocks */

int grids_begin(struct param_set *s, struct err *e) MUST_CHECK;
void grids_release(struct param_set *s);
uint64_t grids_bytes(const struct param_set *s);
void grids_keep(struct param_set *s);
int grids_finish(struct param_set *s, struct err *e) MUST_CHECK;
bool grids_options_put(cJSON *to, const struct param_set *s);
/* What a checkpoint keeps of them: NAME.grid and NAME.grid_best; then grids_restored, when they were read. */
typedef int grids_stored_fn(void *ctx, const struct tensor_desc *d, unsigned char *blocks, struct err *e);
int grids_each_stored(const struct param_set *s, grids_stored_fn *fn, void *ctx, struct err *e) MUST_CHECK;
void grids_restored(struct param_set *s);

/* ---- adapters (lora.c) ---- */

/* An adapter for this matrix. */
int lora_attach(struct kernel_device *device, struct model_param *p, const struct train_lora *l,
                struct err *e) MUST_CHECK;
/* Adds all of the set to the weights. */
int lora_merge(struct param_set *s, struct err *e) MUST_CHECK;
void lora_release(struct param_set *s);

#endif
