/* Measures processor time by phase. */
#include <time.h>

#include "lib/quant/second_order.h"

static const char *const names[QUANT_PHASES] = {
    [QUANT_PASSES] = "passes",   [QUANT_MOMENTS] = "moments",   [QUANT_FACTORS] = "factors",
    [QUANT_TARGETS] = "targets", [QUANT_NEAREST] = "nearest",   [QUANT_FEEDBACK] = "feedback",
    [QUANT_DESCENT] = "descent", [QUANT_LEARNING] = "learning",
};

const char *quant_phase_name(enum quant_phase p) {
    return names[p];
}

static double processor_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void phase_begin(struct phase_clock *c, double *seconds, enum quant_phase first) {
    *c = (struct phase_clock){seconds, first, processor_seconds()};
}

enum quant_phase phase_enter(struct phase_clock *c, enum quant_phase next) {
    enum quant_phase before = c->now;
    double now = processor_seconds();
    c->seconds[before] += now - c->since;
    c->since = now;
    c->now = next;
    return before;
}
