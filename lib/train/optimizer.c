/* The table of optimizers. */
#include "lib/train/train_internal.h"

const struct optimizer_type train_optimizers[] = {
    {.name = "adamw",
     .summary = "Adam with decoupled weight decay",
     .source = "Loshchilov and Hutter 2019, algorithm 2",
     .moments = {"m", "v"},
     .step = adamw_step},
    {0},
};
