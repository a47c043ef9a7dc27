/*
 * Llama 3's rotary scaling in GGUF: a tensor with a factor for each frequency. The file does not hold the parameters,
 * so import derives them from the factors or refuses the model.
 */
#include <math.h>

#include "lib/formats/formats_internal.h"

/* Converters compute the factors in f32, which gives relative differences of a few 6e-8. */
#define TOLERANCE 1e-4

int rope_factors(const struct model_config *c, float *factors, struct err *e) {
    uint32_t n = model_rope_dims(c, &c->rope) / 2;
    double *plain = mem_array(n, 2 * sizeof *plain, e);
    if (!plain) return e->code;
    double *scaled = plain + n;
    struct model_config unscaled = *c;
    unscaled.rope.scaling = ROPE_PLAIN;
    model_inv_freq(&unscaled, &unscaled.rope, plain);
    model_inv_freq(c, &c->rope, scaled);
    for (uint32_t i = 0; i < n; i++) factors[i] = (float)(plain[i] / scaled[i]);
    mem_free(plain);
    return 0;
}

static int matches(const struct model_config *c, const float *factors, float *scratch, bool *yes, struct err *e) {
    int rc = rope_factors(c, scratch, e);
    *yes = !rc;
    for (uint32_t i = 0; i < model_rope_dims(c, &c->rope) / 2 && *yes; i++)
        *yes = fabs((double)scratch[i] - (double)factors[i]) <= TOLERANCE * (double)factors[i];
    return rc;
}

/* Llama 3.1 to 3.3 have low 1, high 4 and an original context of 8192; small test models have other contexts. */
static int search(struct model_config *c, const float *factors, double largest, float *scratch, bool *found,
                  struct err *e) {
    c->rope.scaling = ROPE_LLAMA3;
    c->rope.factor = largest;
    c->rope.low_freq = 1;
    c->rope.high_freq = 4;
    c->rope.original_context = 8192;
    int rc = matches(c, factors, scratch, found, e);
    for (uint32_t context = 32; context <= (1u << 20) && !*found && !rc; context *= 2) {
        c->rope.original_context = context;
        rc = matches(c, factors, scratch, found, e);
    }
    return rc;
}

int gguf_rope_recover(struct model_config *c, const float *factors, struct err *e) {
    uint32_t n = model_rope_dims(c, &c->rope) / 2;
    double largest = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (!isfinite(factors[i]) || !(factors[i] > 0))
            return err_set(e, ERR_DATA, "factor %u is not a number above 0", i);
        if (factors[i] > largest) largest = factors[i];
    }
    bool all_one = true;
    for (uint32_t i = 0; i < n; i++) all_one = all_one && factors[i] == 1;
    if (all_one && c->rope.scaling == ROPE_PLAIN) return 0;

    float *scratch = mem_array(n, sizeof *scratch, e);
    if (!scratch) return e->code;
    bool found = false;
    int rc = c->rope.scaling == ROPE_LLAMA3 ? matches(c, factors, scratch, &found, e)
                                            : search(c, factors, largest, scratch, &found, e);
    mem_free(scratch);
    if (rc || found) return rc;
    return err_set(e, ERR_DATA,
                   "the frequency factors (largest %g) are those of no llama3 scaling that is known "
                   "(low 1, high 4, original context 32 to 1048576)",
                   largest);
}
