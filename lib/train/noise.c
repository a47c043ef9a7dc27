/* The gradient noise scale, estimated from the first pass of a step and the whole step. */
#include <math.h>

#include "lib/train/train_internal.h"

#define KEEP 0.95

void train_noise_add(struct train_noise *z, double part, double n_part, double all, double n) {
    if (!(n_part > 0 && n_part < n)) return;
    double square = (n * all - n_part * part) / (n - n_part);
    double trace = (part - all) / (1 / n_part - 1 / n);
    bool first = z->square == 0 && z->trace == 0;
    z->square = first ? square : KEEP * z->square + (1 - KEEP) * square;
    z->trace = first ? trace : KEEP * z->trace + (1 - KEEP) * trace;
}

double train_noise_scale(const struct train_noise *z) {
    return z->square > 0 && z->trace > 0 ? z->trace / z->square : NAN;
}
