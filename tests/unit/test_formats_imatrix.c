/* lib/formats: llama.cpp's importance matrix, written, read, and damaged. */
#include "tests/unit/model_samples.h"

#include "lib/formats/formats.h"
#include "lib/stats/stats.h"

static const double *some_sums(void *ctx, struct model_slot s, uint64_t *cols) {
    static double sums[4096];
    uint64_t dims[2];
    if (s.role == ROLE_EMBED && !*(bool *)ctx) return NULL;
    *cols = dims[model_slot_shape(&sample_model_config, s, dims) - 1];
    for (uint64_t i = 0; i < *cols; i++) sums[i] = (double)(i + s.role) * 4;
    return sums;
}
