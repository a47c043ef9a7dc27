/* Private to lib/train: parsing of keys, the optimizers' functions, grids and adapters. */
#ifndef RILL_TRAIN_INTERNAL_H
#define RILL_TRAIN_INTERNAL_H

#include "lib/train/train.h"

/* A key of "key=value,key=value". Exactly one of the pointers is set: a number or an integer from `least` to `most`, or
 * a text of at most TRAIN_GLOB_TEXT - 1 bytes. */
struct train_key {
    const char *name;
    double least, most;
    double *number; /* where the value is stored */
    uint64_t *whole;
    char *text;
    bool given; /* OUT */
};
/* Parses the members; false if one is unknown, repeated or out of range. NULL: no members. */
bool train_keys_parse(const char *members, struct train_key *keys, size_t n);
/* Copies the n bytes of a pattern; false if it is empty, too long or not valid UTF-8. */
bool train_glob_copy(char out[TRAIN_GLOB_TEXT], const char *text, size_t n);

/* ---- functions of the optimizers' rows ---- */

void adamw_step(const struct train_update *u, struct param *p);
double adamw_mup(const struct param *p);

bool muon_takes(const struct param *p);
bool muon_parse(const char *members, struct train_options *o);
bool muon_put(cJSON *to, const struct train_options *o);
size_t muon_scratch(const struct train_options *o, const struct param *p);
double muon_mup(const struct param *p);
void muon_step(const struct train_update *u, struct param *p);

/* Sets rates and decays of all parameters. ERR_USAGE: a pattern matches none (group.c). */
int groups_begin(struct param_set *s, struct err *e) MUST_CHECK;

/* ---- grids (grid.c) ---- */

struct train_grid {
    struct model_grid now;  /* what forward passes read */
    struct model_param *of; /* of->value is the master */
    size_t param;           /* index of the master in the set; the set's n if it is frozen */
    unsigned char *average; /* options.ema: blocks of the averages; else NULL */
    unsigned char *best;    /* options.keep_best: blocks at param_set_keep; else NULL */
};
#define TRAIN_GRID_PART ((uint64_t)1 << 18) /* elements decoded at a time: whole blocks, small enough for the cache */

int grids_begin(struct param_set *s, struct err *e) MUST_CHECK;
void grids_release(struct param_set *s);
uint64_t grids_bytes(const struct param_set *s);
void grids_keep(struct param_set *s);
int grids_finish(struct param_set *s, struct err *e) MUST_CHECK;
bool grids_options_put(cJSON *to, const struct param_set *s);
/* Calls fn for the blocks that a checkpoint stores, NAME.grid and NAME.grid_best. After reading them call
 * grids_restored. */
typedef int grids_stored_fn(void *ctx, const struct tensor_desc *d, unsigned char *blocks, struct err *e);
int grids_each_stored(const struct param_set *s, grids_stored_fn *fn, void *ctx, struct err *e) MUST_CHECK;
void grids_restored(struct param_set *s);

/* ---- adapters (lora.c) ---- */

/* Allocates and initialises the adapter of a matrix. */
int lora_attach(struct kernel_device *device, struct model_param *p, const struct train_lora *l,
                struct err *e) MUST_CHECK;
/* Adds all adapters of the set to their weights. ERR_DATA: the result is not finite. */
int lora_merge(struct param_set *s, struct err *e) MUST_CHECK;
void lora_release(struct param_set *s);

#endif
