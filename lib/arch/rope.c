/* Rotary positions: their JSON form in META, their limits, their frequencies. */
#include "lib/arch/arch_internal.h"

#include <math.h>

static const char *const scaling_names[] = {"none", "linear", "llama3", "yarn", "longrope", NULL};

/* Which scalings have which numbers in JSON. */
enum { LINEAR = 1 << ROPE_LINEAR, LLAMA3 = 1 << ROPE_LLAMA3, YARN = 1 << ROPE_YARN, LONG = 1 << ROPE_LONG };

static const struct {
    const char *key;
    unsigned scalings;
    size_t offset;
    double min, max;
} numbers[] = {
    {"factor", LINEAR | LLAMA3 | YARN, offsetof(struct model_rope, factor), 1e-3, 1e6},
    {"low_freq_factor", LLAMA3, offsetof(struct model_rope, low_freq), 1e-3, 1e6},
    {"high_freq_factor", LLAMA3, offsetof(struct model_rope, high_freq), 1e-3, 1e6},
    {"beta_fast", YARN, offsetof(struct model_rope, beta_fast), 1e-3, 1e6},
    {"beta_slow", YARN, offsetof(struct model_rope, beta_slow), 1e-3, 1e6},
    {"attention_factor", YARN | LONG, offsetof(struct model_rope, attention_factor), 1e-3, 1e3},
};

static double *number_at(const struct model_rope *r, size_t offset) {
    return (double *)(void *)((char *)r + offset);
}

/* ---- JSON -------------------------------------------------------------------------------------------------------- */

static bool put_factors(cJSON *r, const char *key, const float *factors, uint32_t n) {
    cJSON *list = cJSON_AddArrayToObject(r, key);
    for (uint32_t i = 0; list && i < n; i++) {
        cJSON *x = cJSON_CreateNumber(model_shortest_float(factors[i]));
        if (x && cJSON_AddItemToArray(list, x)) continue;
        cJSON_Delete(x);
        return false;
    }
    return list != NULL;
}

bool model_rope_put_factors(cJSON *o, const struct model_rope *r) {
    return put_factors(o, "short_factor", r->short_factor, r->n_factors) &&
           put_factors(o, "long_factor", r->long_factor, r->n_factors);
}

bool rope_to_json(cJSON *o, const char *key, const struct model_rope *rope) {
    unsigned scaling = 1u << rope->scaling;
    cJSON *r = cJSON_AddObjectToObject(o, key);
    bool ok = r && json_put_f64(r, "theta", rope->theta) && json_put_str(r, "scaling", scaling_names[rope->scaling]);
    if (ok && rope->dims) ok = json_put_u64(r, "dims", rope->dims);
    for (size_t i = 0; ok && i < COUNT_OF(numbers); i++)
        if (numbers[i].scalings & scaling) ok = json_put_f64(r, numbers[i].key, *number_at(rope, numbers[i].offset));
    if (ok && (scaling & (LLAMA3 | YARN | LONG))) ok = json_put_u64(r, "original_context", rope->original_context);
    if (ok && rope->no_truncate) ok = json_put_bool(r, "no_truncate", true);
    if (ok && rope->scaling == ROPE_LONG) ok = model_rope_put_factors(r, rope);
    return ok;
}

static int get_factors(const cJSON *o, const char *key, const float **out, uint32_t *n, struct arena *a,
                       struct err *e) {
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(o, key);
    int size = cJSON_IsArray(list) ? cJSON_GetArraySize(list) : 0;
    if (size < 1 || size > (int)(MODEL_MAX_DIM / 2))
        return err_set(e, ERR_DATA, "\"%s\" is missing, or no list of numbers", key);
    float *factors = arena_array(a, (size_t)size, sizeof *factors, e);
    if (!factors) return e->code;
    uint32_t i = 0;
    for (const cJSON *x = list->child; x; x = x->next, i++) {
        if (!cJSON_IsNumber(x) || !(x->valuedouble >= 1e-6 && x->valuedouble <= 1e6))
            return err_set(e, ERR_DATA, "\"%s\", element %u: not a number from 1e-06 to 1e+06", key, i);
        factors[i] = (float)x->valuedouble;
    }
    *out = factors;
    *n = i;
    return 0;
}

int model_rope_get_factors(struct model_rope *r, const cJSON *o, struct arena *a, struct err *e) {
    uint32_t n = 0;
    int rc = get_factors(o, "short_factor", &r->short_factor, &n, a, e);
    if (!rc) rc = get_factors(o, "long_factor", &r->long_factor, &r->n_factors, a, e);
    if (rc || n == r->n_factors) return rc;
    return err_set(e, ERR_DATA, "\"short_factor\" has %u numbers, \"long_factor\" %u", n, r->n_factors);
}

int rope_from_json(struct model_rope *rope, const cJSON *r, struct arena *a, struct err *e) {
    uint32_t scaling = 0;
    uint64_t dims = 0, original = 0;
    int rc = json_get_f64(r, "theta", 1, 1e12, &rope->theta, e);
    if (!rc) rc = config_get_name(r, "scaling", scaling_names, &scaling, e);
    if (!rc) rc = json_opt_u64(r, "dims", 2, MODEL_MAX_DIM, &dims, e);
    unsigned flag = 1u << scaling;
    rope->scaling = (enum rope_scaling)scaling;
    rope->dims = (uint32_t)dims;
    for (size_t i = 0; !rc && i < COUNT_OF(numbers); i++)
        if (numbers[i].scalings & flag)
            rc = json_get_f64(r, numbers[i].key, numbers[i].min, numbers[i].max, number_at(rope, numbers[i].offset), e);
    if (!rc && (flag & (LLAMA3 | YARN | LONG))) rc = json_get_u64(r, "original_context", 1, UINT32_MAX, &original, e);
    rope->original_context = (uint32_t)original;
    if (!rc && scaling == ROPE_YARN) rc = json_opt_bool(r, "no_truncate", &rope->no_truncate, e);
    return rc || scaling != ROPE_LONG ? rc : model_rope_get_factors(rope, r, a, e);
}

/* ---- copies and limits ------------------------------------------------------------------------------------------- */

int rope_copy(struct model_rope *to, const struct model_rope *from, struct arena *a, struct err *e) {
    *to = *from;
    if (from->scaling != ROPE_LONG) return 0;
    float *both = arena_array(a, 2 * (size_t)from->n_factors, sizeof *both, e);
    if (!both) return e->code;
    memcpy(both, from->short_factor, from->n_factors * sizeof *both);
    memcpy(both + from->n_factors, from->long_factor, from->n_factors * sizeof *both);
    to->short_factor = both;
    to->long_factor = both + from->n_factors;
    return 0;
}

int rope_check(const struct model_config *c, const struct model_rope *r, struct err *e) {
    uint32_t dims = model_rope_dims(c, r);
    if (dims % 2) return err_set(e, ERR_DATA, "head size %u is odd: rotary positions need pairs", dims);
    if (dims > c->head_dim) return err_set(e, ERR_DATA, "%u of a head of %u are to be rotated", dims, c->head_dim);
    if (!(r->theta >= 1) || !isfinite(r->theta)) return err_set(e, ERR_DATA, "rope theta %g is out of range", r->theta);
    if (r->scaling == ROPE_YARN && !(r->theta > 1))
        return err_set(e, ERR_DATA, "rope theta %g: yarn tells frequencies apart", r->theta);
    if (r->scaling == ROPE_LONG && r->n_factors != dims / 2)
        return err_set(e, ERR_DATA, "longrope has %u factors, and a head %u pairs that rotate", r->n_factors, dims / 2);
    return 0;
}

/* ---- frequencies ------------------------------------------------------------------------------------------------- */

uint32_t model_rope_dims(const struct model_config *c, const struct model_rope *r) {
    return r->dims ? r->dims : c->head_dim;
}

uint32_t model_rope_tables(const struct model_rope *r) {
    return r->scaling == ROPE_LONG ? 2 : 1;
}

double model_rope_attention(enum rope_scaling scaling, double factor, uint32_t original_context) {
    if (factor <= 1) return 1;
    if (scaling == ROPE_YARN) return 0.1 * log(factor) + 1;
    return sqrt(1 + log(factor) / log(original_context));
}

/* Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those in between interpolated. */
static double llama3(const struct model_rope *r, double f) {
    double wavelength = 2 * M_PI / f;
    double low = r->original_context / r->low_freq, high = r->original_context / r->high_freq;
    if (wavelength > low) return f / r->factor;
    if (wavelength < high) return f;
    double smooth = (r->original_context / wavelength - r->low_freq) / (r->high_freq - r->low_freq);
    return (1 - smooth) * f / r->factor + smooth * f;
}

/* The pair, as a real number, that rotates `rotations` times within the original context. */
static double yarn_pair(const struct model_rope *r, uint32_t dims, double rotations) {
    return dims * log(r->original_context / (rotations * 2 * M_PI)) / (2 * log(r->theta));
}

void model_yarn_bounds(const struct model_rope *r, uint32_t dims, double *low, double *high) {
    *low = yarn_pair(r, dims, r->beta_fast);
    *high = yarn_pair(r, dims, r->beta_slow);
    if (!r->no_truncate) *low = floor(*low), *high = ceil(*high);
    *low = fmax(*low, 0);
    *high = fmin(*high, dims - 1.0);
}

/* As in transformers: kept below `low`, stretched from `high` on, with a linear ramp in between. */
static double yarn(const struct model_rope *r, uint32_t dims, uint32_t pair, double f) {
    double low, high;
    model_yarn_bounds(r, dims, &low, &high);
    if (low == high) high += 0.001;
    double ramp = fmin(fmax((pair - low) / (high - low), 0), 1);
    return f / r->factor * ramp + f * (1 - ramp);
}

void model_inv_freq(const struct model_config *c, const struct model_rope *r, double *inv_freq) {
    uint32_t dims = model_rope_dims(c, r), n = dims / 2;
    for (uint32_t i = 0; i < n; i++) {
        double f = pow(r->theta, -2.0 * i / dims);
        switch (r->scaling) {
        case ROPE_PLAIN: inv_freq[i] = f; break;
        case ROPE_LINEAR: inv_freq[i] = f / r->factor; break;
        case ROPE_LLAMA3: inv_freq[i] = llama3(r, f); break;
        case ROPE_YARN: inv_freq[i] = yarn(r, dims, i, f); break;
        case ROPE_LONG: inv_freq[i] = f / (double)r->short_factor[i]; inv_freq[n + i] = f / (double)r->long_factor[i];
        }
    }
}
