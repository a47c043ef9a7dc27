/* What the comparisons of losses with PyTorch share: the tolerance, and the lookup of a loss. */
#ifndef RILL_TESTS_LOSSES_GOLDEN_H
#define RILL_TESTS_LOSSES_GOLDEN_H

#include "lib/losses/losses_internal.h"
#include "tests/unit/distill_samples.h"

#define TOLERANCE 1e-5 /* relative to the largest element */

static inline void check(const char *text, const char *what, const float *got, const double *want, size_t n) {
    double largest = 0;
    for (size_t i = 0; i < n; i++) largest = fmax(largest, fabs(want[i]));
    for (size_t i = 0; i < n; i++)
        if (fabs(got[i] - want[i]) > TOLERANCE * largest)
            fail_msg("%s: %s %zu is %.9g, should be %.9g (largest %g)", text, what, i, (double)got[i], want[i],
                     largest);
}

static inline void check_value(const char *text, const struct loss *l, const double *want) {
    if (fabs(l->value * l->factor - *want) > TOLERANCE * fabs(*want))
        fail_msg("%s: %.9g, should be %.9g", text, l->value * l->factor, *want);
}

/* Index in loss_types of the loss in "NAME:key=value,...". */
static inline unsigned loss_index(const char *text) {
    unsigned i = 0;
    for (; loss_types[i]; i++) {
        size_t n = strlen(loss_types[i]->name);
        if (!strncmp(text, loss_types[i]->name, n) && (!text[n] || text[n] == ':')) return i;
    }
    fail_msg("%s is no loss", text);
    return i;
}

#endif
