/*
 * evaluation: a model measured as rill eval does it: perplexity of tokens or of labels, divergence from a reference, tasks. lib/metrics
 * has the measures; here they get their data, a progress bar and a place in the program's output and report.
 */
#ifndef RILL_EVALUATION_H
#define RILL_EVALUATION_H

#include "lib/session/session.h"

struct evaluation_options {
    const struct session_options *model;
    const char *tokens; /* path of tokens, masked tokens or texts with classes; NULL: none */
    const char *protocol;
    uint32_t context, stride; /* 0: the protocol's */
    uint64_t max_windows;     /* 0: all */
    const char *reference;    /* path of knowledge; NULL: none */
    const struct cli_list *tasks;
    bool table; /* print a table at the end, instead of each result as a line of JSON */
};
/* *perplexity is that of the tokens or labels, 0 without. ERR_USAGE: an option, by the names of rill eval's table, that the model's data
 * does not take. ERR_DATA, ERR_IO. */
int evaluation_run(struct cli *c, const struct evaluation_options *o, double *perplexity, struct err *e) MUST_CHECK;

#endif
