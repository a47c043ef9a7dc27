/*
 * evaluation: measures a model as rill eval does: perplexity of tokens or labels, divergence from a reference, tasks.
 * lib/metrics computes; this module supplies the data, a progress bar, and the output and report.
 */
#ifndef RILL_EVALUATION_H
#define RILL_EVALUATION_H

#include "lib/session/session.h"

struct evaluation_options {
    const struct session_options *model;
    const char *tokens; /* path of tokens, masked tokens or labelled texts; NULL: none */
    const char *protocol;
    uint32_t context, stride; /* 0: the protocol's default */
    uint64_t max_windows;     /* 0: all */
    const char *reference;    /* path of knowledge; NULL: none */
    const struct cli_list *tasks;
    bool table; /* print one table at the end instead of a JSON line per result */
};
/* Runs all requested measures. *perplexity becomes that of the tokens or labels, 0 without any. ERR_USAGE: an option,
 * named as in rill eval, does not apply to the model or its data. ERR_DATA, ERR_IO. */
int evaluation_run(struct cli *c, const struct evaluation_options *o, double *perplexity, struct err *e) MUST_CHECK;

#endif
