/* Parses --exit N,N,...: where the student has additional heads. */
#include <stdio.h>
#include <string.h>

#include "lib/distill/distill.h"

int distill_exits_parse(const char *text, struct distill_options *o, struct err *e) {
    char copy[256], *save = NULL;
    uint64_t n;
    snprintf(copy, sizeof copy, "%s", text);
    for (char *s = strtok_r(copy, ",", &save); s; s = strtok_r(NULL, ",", &save)) {
        if (o->n_exits == LOSS_MAX_EXITS || !parse_u64(s, &n) || n > MODEL_MAX_LAYERS)
            return err_set(e, ERR_USAGE, "--exit %.80s: expected at most %d numbers of layers, N,N,...", text,
                           LOSS_MAX_EXITS);
        o->exits[o->n_exits++] = (uint32_t)n;
    }
    return o->n_exits ? 0 : err_set(e, ERR_USAGE, "--exit: no number of layers");
}
