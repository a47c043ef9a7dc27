/* Norms of the inputs of a matrix, from statistics or from an importance matrix. */
#include <math.h>

#include "lib/prune/prune_internal.h"

static int from_means(const struct prune_importance *other, const struct model_config *c, struct model_slot s,
                      uint64_t cols, double *out, bool *found, struct err *e) {
    char name[TENSOR_MAX_NAME + 1];
    float *mean = mem_array(cols, sizeof *mean, e);
    if (!mean) return e->code;
    int rc = other->mean(other->ctx, c, s, cols, mean, found, e);
    for (uint64_t i = 0; !rc && *found && i < cols; i++) out[i] = sqrt((double)mean[i]);
    mem_free(mean);
    if (rc || *found || model_role_info(s.role)->each != AXIS_ONE) return rc;
    return err_set(e, ERR_DATA, "the importance matrix says nothing of the inputs of '%s'", model_slot_name(s, name));
}

int prune_input_norms(const struct stats *stats, const struct prune_importance *other, const struct model_config *c,
                      struct model_slot s, uint64_t cols, double *out, bool *found, struct err *e) {
    uint64_t n;
    double positions;
    const double *squares = stats ? stats_input_sq(stats, s, &n, &positions) : NULL;
    *found = squares && positions > 0;
    if (!stats && other->mean) return from_means(other, c, s, cols, out, found, e);
    for (uint64_t i = 0; *found && i < cols; i++) out[i] = sqrt(squares[i]);
    return 0;
}
