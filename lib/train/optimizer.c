/* The table of optimizers. */
#include <string.h>

#include "lib/train/train_internal.h"

const struct optimizer_type train_optimizers[] = {
    {.name = "adamw",
     .summary = "Adam with decoupled weight decay",
     .source = "Loshchilov and Hutter 2019, algorithm 2; the decay counts times the rate, as in PyTorch",
     .moments = {"m", "v"},
     .mup = adamw_mup,
     .step = adamw_step},
    {.name = "muon",
     .summary = "momentum made orthogonal, for matrices inside layers; AdamW for the rest",
     .source = "Jordan et al. 2024; the rate of AdamW: Liu et al. 2025, \"Muon is scalable for LLM training\"",
     .moments = {"m"},
     .takes = muon_takes,
     .parse = muon_parse,
     .put = muon_put,
     .scratch = muon_scratch,
     .mup = muon_mup,
     .step = muon_step},
    {0},
};

int train_optimizer_parse(const char *text, struct train_options *o, struct err *e) {
    const char *colon = strchr(text, ':');
    size_t n = colon ? (size_t)(colon - text) : strlen(text);
    const struct optimizer_type *t = train_optimizers;
    while (t->name && (strlen(t->name) != n || memcmp(t->name, text, n) != 0)) t++;
    o->optimizer = t;
    if (t->name && (t->parse ? t->parse(colon ? colon + 1 : NULL, o) : !colon)) return 0;
    return err_set(e, ERR_USAGE, "--optimizer \"%.80s\": expected adamw or muon[:momentum=B], B from 0 to below 1",
                   text);
}
