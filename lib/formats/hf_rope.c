/*
 * Reads and writes the rotary settings of config.json, which may be in two places: "rope_scaling" with "rope_theta"
 * beside it (transformers 4), and "rope_parameters" with everything inside (transformers 5). transformers 5.24 takes
 * `rope_scaling or rope_parameters`, takes a missing theta from the top level and a missing original context from the
 * context (modeling_rope_utils.py, convert_rope_params_to_dict); version 4 reads only rope_scaling. A file whose places
 * disagree is a different model to each version, so it is refused.
 */
#include <math.h>

#include "lib/formats/formats_internal.h"

/* Bit flags of types, for the table of keys. */
enum { DEFAULT = 1, LINEAR = 2, LLAMA3 = 4, YARN = 8, LONG = 16, ANY_TYPE = 31 };

/* The first name of a scaling is the one written; "su" is the name of longrope in Phi-3's first files. */
static const struct {
    const char *name;
    unsigned type;
    enum rope_scaling scaling;
} types[] = {{"default", DEFAULT, ROPE_PLAIN}, {"linear", LINEAR, ROPE_LINEAR}, {"llama3", LLAMA3, ROPE_LLAMA3},
             {"yarn", YARN, ROPE_YARN},        {"longrope", LONG, ROPE_LONG},   {"su", LONG, ROPE_LONG}};

/* The types that each key belongs to. With another type the key would be ignored, so it must have its idle value, which
 * changes nothing; 0: it has none, and the key is refused. */
static const struct {
    const char *name;
    unsigned types;
    double idle;
} keys[] = {
    {"rope_type", ANY_TYPE, 0},
    {"type", ANY_TYPE, 0},
    {"rope_theta", ANY_TYPE, 0},
    {"partial_rotary_factor", ANY_TYPE, 0},
    {"original_max_position_embeddings", ANY_TYPE, 0}, /* scales nothing with default and linear */
    {"finetuned", ANY_TYPE, 0},
    {"factor", LINEAR | LLAMA3 | YARN | LONG, 1},
    {"low_freq_factor", LLAMA3, 0},
    {"high_freq_factor", LLAMA3, 0},
    {"attention_factor", YARN | LONG, 1},
    {"beta_fast", YARN, 0},
    {"beta_slow", YARN, 0},
    {"mscale", YARN, 0},
    {"mscale_all_dim", YARN, 0},
    {"truncate", YARN, 0},
    {"short_factor", LONG, 0},
    {"long_factor", LONG, 0},
};

/* Where settings are read from. */
struct place {
    /* the whole config.json; the object with the settings, or NULL: only the top level counts */
    const cJSON *json, *home;
    const struct hf_rope *defaults;
    bool by_layer_type; /* `home` is the object of one layer type */
    struct arena *a;
};

static int check_keys(const cJSON *home, const char *type_name, unsigned type, struct err *e) {
    for (const cJSON *x = home->child; x; x = x->next) {
        size_t i = 0;
        if (cJSON_IsNull(x)) continue;
        while (i < COUNT_OF(keys) && strcmp(keys[i].name, x->string) != 0) i++;
        if (i < COUNT_OF(keys) && (keys[i].types & type)) continue;
        if (i < COUNT_OF(keys) && keys[i].idle != 0 && cJSON_IsNumber(x) && x->valuedouble == keys[i].idle) continue;
        return err_set(e, ERR_DATA, "\"%.100s\" does not belong to rope type '%s'", x->string, type_name);
    }
    return 0;
}

/* "type" is the older name of "rope_type". */
static int read_type(const cJSON *home, const char **name, unsigned *type, enum rope_scaling *scaling, struct err *e) {
    const char *new = NULL, *old = NULL;
    int rc = json_opt_str(home, "rope_type", &new, e);
    if (!rc) rc = json_opt_str(home, "type", &old, e);
    if (rc) return rc;
    if (new &&old && strcmp(new, old) != 0)
        return err_set(e, ERR_DATA, "\"rope_type\" is '%.64s', but \"type\" is '%.64s'", new, old);
    *name = new ? new : old ? old : "default";
    for (size_t i = 0; i < COUNT_OF(types); i++)
        if (strcmp(types[i].name, *name) == 0) {
            *type = types[i].type;
            *scaling = types[i].scaling;
            return 0;
        }
    return err_set(e, ERR_DATA, "rope type '%.64s' is not supported (default, linear, llama3, yarn and longrope are)",
                   *name);
}

/* Reads a number that may be at the top level, in the object, or in both if they agree; in neither: *out is
 * unchanged. */
static int read_shared(const struct place *at, const char *above_key, const char *key, double min, double max,
                       double *out, struct err *e) {
    double above = -1, inside = -1;
    int rc = json_opt_f64(at->json, above_key, min, max, &above, e);
    if (!rc && at->home) rc = json_opt_f64(at->home, key, min, max, &inside, e);
    if (rc) return rc;
    if (above >= 0 && inside >= 0 && above != inside && strcmp(key, above_key) != 0)
        return err_set(e, ERR_DATA, "\"%s\" is %g here, but \"%s\" is %g", key, inside, above_key, above);
    if (above >= 0 && inside >= 0 && above != inside)
        return err_set(e, ERR_DATA, "\"%s\" is %g here, but %g at the top level", key, inside, above);
    if (above >= 0) *out = above;
    if (inside >= 0) *out = inside;
    return 0;
}

/* The original context. By default it is in the object, or else it is the context, whatever the top level says. In a
 * class that has it at the top level (set in the defaults) it is that one or its default, whatever the object says. Two
 * values must agree. */
static int read_original(struct model_rope *r, const struct place *at, uint64_t *context, struct err *e) {
    static const char key[] = "original_max_position_embeddings";
    uint64_t inside = 0, above = at->defaults->rope.original_context;
    int rc = json_get_u64(at->json, "max_position_embeddings", 1, UINT32_MAX, context, e);
    uint64_t original = above ? above : *context;
    if (!rc) rc = json_opt_u64(at->home, key, 1, UINT32_MAX, &inside, e);
    if (!rc) rc = json_opt_u64(at->json, key, 1, UINT32_MAX, &above, e);
    if (rc) return rc;
    if (at->defaults->rope.original_context)
        original = above;
    else if (inside)
        original = inside;
    if ((above && above != original) || (inside && inside != original))
        return err_set(e, ERR_DATA, "\"%s\" is %llu here, but %llu at the top level", key,
                       (unsigned long long)(inside ? inside : original), (unsigned long long)above);
    r->original_context = (uint32_t)original;
    return 0;
}

static int read_llama3(struct model_rope *r, const struct place *at, struct err *e) {
    uint64_t context;
    int rc = json_get_f64(at->home, "factor", 1e-3, 1e6, &r->factor, e);
    if (!rc) rc = json_get_f64(at->home, "low_freq_factor", 1e-3, 1e6, &r->low_freq, e);
    if (!rc) rc = json_get_f64(at->home, "high_freq_factor", 1e-3, 1e6, &r->high_freq, e);
    return rc ? rc : read_original(r, at, &context, e);
}

/* A null factor means the ratio of the context to the original context. */
static int read_factor(struct model_rope *r, const struct place *at, uint64_t context, struct err *e) {
    if (!cJSON_GetObjectItemCaseSensitive(at->home, "factor")) return err_set(e, ERR_DATA, "\"factor\" is missing");
    r->factor = (double)context / r->original_context;
    return json_opt_f64(at->home, "factor", 1e-3, 1e6, &r->factor, e);
}

/* transformers treats 0 as absent. */
static int read_beta(const struct place *at, const char *key, double *beta, struct err *e) {
    double v = 0;
    int rc = json_opt_f64(at->home, key, 0, 1e6, &v, e);
    if (v != 0) *beta = v;
    return rc;
}

/* "mscale" and "mscale_all_dim" apply if both are given and "attention_factor" is not. */
static int read_yarn_attention(struct model_rope *r, const struct place *at, struct err *e) {
    double mscale = 0, all = 0, unit = r->factor <= 1 ? 0 : 0.1 * log(r->factor);
    int rc = json_opt_f64(at->home, "mscale", 0, 1e3, &mscale, e);
    if (!rc) rc = json_opt_f64(at->home, "mscale_all_dim", 0, 1e3, &all, e);
    r->attention_factor = model_rope_attention(ROPE_YARN, r->factor, r->original_context);
    if (mscale != 0 && all != 0) r->attention_factor = (unit * mscale + 1) / (unit * all + 1);
    return rc ? rc : json_opt_f64(at->home, "attention_factor", 1e-3, 1e3, &r->attention_factor, e);
}

static int read_yarn(struct model_rope *r, const struct place *at, struct err *e) {
    uint64_t context;
    bool truncate = true;
    r->beta_fast = 32, r->beta_slow = 1;
    int rc = read_original(r, at, &context, e);
    if (!rc) rc = read_factor(r, at, context, e);
    if (!rc) rc = read_beta(at, "beta_fast", &r->beta_fast, e);
    if (!rc) rc = read_beta(at, "beta_slow", &r->beta_slow, e);
    if (!rc) rc = json_opt_bool(at->home, "truncate", &truncate, e);
    if (!rc && !truncate && at->by_layer_type)
        rc = err_set(e, ERR_DATA, "\"truncate\": false, which transformers does not see in an object of a layer type");
    r->no_truncate = !truncate;
    return rc ? rc : read_yarn_attention(r, at, e);
}

static int read_long(struct model_rope *r, const struct place *at, struct err *e) {
    uint64_t context;
    int rc = read_original(r, at, &context, e);
    if (!rc) rc = model_rope_get_factors(r, at->home, at->a, e);
    if (!rc && r->original_context < 2)
        rc = err_set(e, ERR_DATA, "\"original_max_position_embeddings\" of 1: longrope takes its logarithm");
    if (rc) return rc;
    double factor = (double)context / r->original_context;
    rc = json_opt_f64(at->home, "factor", 1e-3, 1e6, &factor, e);
    r->attention_factor = model_rope_attention(ROPE_LONG, factor, r->original_context);
    return rc ? rc : json_opt_f64(at->home, "attention_factor", 1e-3, 1e3, &r->attention_factor, e);
}

/* Reads all settings from `at`; theta_key: the name of theta at the top level. */
static int read_home(struct hf_rope *r, const struct place *at, const char *theta_key, struct err *e) {
    const char *name = "default";
    unsigned type = DEFAULT;
    *r = (struct hf_rope){.rope = {.theta = at->defaults->rope.theta}, .partial = at->defaults->partial};
    int rc = at->home ? read_type(at->home, &name, &type, &r->rope.scaling, e) : 0;
    if (!rc && at->home) rc = check_keys(at->home, name, type, e);
    if (!rc) rc = read_shared(at, theta_key, "rope_theta", 1, 1e12, &r->rope.theta, e);
    if (!rc) rc = read_shared(at, "partial_rotary_factor", "partial_rotary_factor", 0, 1, &r->partial, e);
    if (!rc && type == LINEAR) rc = json_get_f64(at->home, "factor", 1e-3, 1e6, &r->rope.factor, e);
    if (!rc && type == LLAMA3) rc = read_llama3(&r->rope, at, e);
    if (!rc && type == YARN) rc = read_yarn(&r->rope, at, e);
    if (!rc && type == LONG) rc = read_long(&r->rope, at, e);
    return rc;
}

/* *home = the object under `key`; NULL if it is absent, null or empty, which Python's `or` does not distinguish. */
static int find_home(const cJSON *json, const char *key, const cJSON **home, struct err *e) {
    const cJSON *x = hf_member(json, key);
    *home = NULL;
    if (x && !cJSON_IsObject(x)) return err_set(e, ERR_DATA, "\"%s\" is not an object", key);
    if (x && x->child) *home = x;
    return 0;
}

static bool same_factors(const struct model_rope *a, const struct model_rope *b) {
    size_t n = a->n_factors * sizeof *a->long_factor;
    return a->n_factors == b->n_factors &&
           (n == 0 || (!memcmp(a->short_factor, b->short_factor, n) && !memcmp(a->long_factor, b->long_factor, n)));
}

static int compare(const struct hf_rope *one, const struct hf_rope *two, struct err *e) {
    const struct model_rope *a = &one->rope, *b = &two->rope;
    const struct {
        const char *what;
        double scaling, parameters;
    } numbers[] = {
        {"rope_theta", a->theta, b->theta},
        {"factor", a->factor, b->factor},
        {"low_freq_factor", a->low_freq, b->low_freq},
        {"high_freq_factor", a->high_freq, b->high_freq},
        {"original_max_position_embeddings", a->original_context, b->original_context},
        {"partial_rotary_factor", one->partial, two->partial},
        {"beta_fast", a->beta_fast, b->beta_fast},
        {"beta_slow", a->beta_slow, b->beta_slow},
        {"truncate", !a->no_truncate, !b->no_truncate},
        {"attention_factor", a->attention_factor, b->attention_factor},
    };
    if (a->scaling != b->scaling)
        return err_set(e, ERR_DATA, "\"rope_scaling\" and \"rope_parameters\" disagree: rope type '%s' against '%s'",
                       types[a->scaling].name, types[b->scaling].name);
    for (size_t i = 0; i < COUNT_OF(numbers); i++)
        if (numbers[i].scaling != numbers[i].parameters)
            return err_set(e, ERR_DATA, "\"rope_scaling\" and \"rope_parameters\" disagree: \"%s\" %g against %g",
                           numbers[i].what, numbers[i].scaling, numbers[i].parameters);
    if (same_factors(a, b)) return 0;
    return err_set(e, ERR_DATA, "\"rope_scaling\" and \"rope_parameters\" disagree about the factors of longrope");
}

static int read_homes(struct hf_rope *r, const struct place *at, const cJSON *scaling, const cJSON *parameters,
                      struct err *e) {
    const char *name = scaling ? "rope_scaling" : parameters ? "rope_parameters" : "rope";
    struct place first = *at, second = *at;
    first.home = scaling ? scaling : parameters;
    second.home = parameters;
    if (scaling) first.by_layer_type = false;
    int rc = read_home(r, &first, "rope_theta", e);
    if (rc) return err_prefix(e, "%s", name);
    if (!scaling || !parameters) return 0;
    struct hf_rope other;
    rc = read_home(&other, &second, "rope_theta", e);
    return rc ? err_prefix(e, "rope_parameters") : compare(r, &other, e);
}

int hf_rope_read(struct hf_rope *r, const cJSON *json, const struct hf_rope *defaults, struct arena *a, struct err *e) {
    const cJSON *scaling, *parameters;
    int rc = find_home(json, "rope_scaling", &scaling, e);
    if (!rc) rc = find_home(json, "rope_parameters", &parameters, e);
    return rc ? rc : read_homes(r, &(struct place){.json = json, .defaults = defaults, .a = a}, scaling, parameters, e);
}

/* ---- a rotation per layer type ----------------------------------------------------------------------------------- */

/* transformers 5 has an object per layer type in "rope_parameters", and would ignore keys beside them. */
static int check_layer_types(const cJSON *parameters, struct err *e) {
    for (const cJSON *x = parameters ? parameters->child : NULL; x; x = x->next)
        if (strcmp(x->string, "full_attention") != 0 && strcmp(x->string, "sliding_attention") != 0)
            return err_set(e, ERR_DATA, "rope_parameters: \"%.100s\" is not a layer type", x->string);
    return 0;
}

int hf_rope_read_both(struct hf_rope *full, struct hf_rope *sliding, const cJSON *json, const struct hf_rope *defaults,
                      double default_sliding, struct arena *a, struct err *e) {
    const cJSON *scaling, *parameters, *of_full = NULL, *of_sliding = NULL;
    struct hf_rope by_sliding = {.rope = {.theta = default_sliding}, .partial = 1};
    struct place at = {.json = json, .defaults = defaults, .by_layer_type = true, .a = a};
    int rc = find_home(json, "rope_scaling", &scaling, e);
    if (!rc) rc = find_home(json, "rope_parameters", &parameters, e);
    if (!rc) rc = check_layer_types(parameters, e);
    if (!rc && parameters) rc = find_home(parameters, "full_attention", &of_full, e);
    if (!rc && parameters) rc = find_home(parameters, "sliding_attention", &of_sliding, e);
    if (!rc) rc = read_homes(full, &at, scaling, of_full, e);
    if (rc) return rc;
    at.home = of_sliding, at.defaults = &by_sliding;
    rc = read_home(sliding, &at, "rope_local_base_freq", e);
    return rc ? err_prefix(e, "%s", of_sliding ? "rope_parameters" : "rope") : 0;
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

const char *hf_rope_type(const struct model_rope *rope) {
    return types[rope->scaling].name;
}

/* Writes the attention factor unless readers derive the same. */
static bool put_attention(cJSON *r, const struct model_rope *rope, double factor) {
    double usual = model_rope_attention(rope->scaling, factor, rope->original_context);
    return rope->attention_factor == usual || json_put_float(r, "attention_factor", rope->attention_factor);
}

static bool put_yarn(cJSON *r, const struct model_rope *rope) {
    return (rope->beta_fast == 32 || json_put_f64(r, "beta_fast", rope->beta_fast)) &&
           (rope->beta_slow == 1 || json_put_f64(r, "beta_slow", rope->beta_slow)) &&
           (!rope->no_truncate || json_put_bool(r, "truncate", false)) && put_attention(r, rope, rope->factor);
}

static bool put_settings(cJSON *r, const struct model_rope *rope, uint32_t context, bool original) {
    bool ok = rope->scaling == ROPE_PLAIN || rope->scaling == ROPE_LONG || json_put_f64(r, "factor", rope->factor);
    if (ok && rope->scaling == ROPE_LLAMA3)
        ok = json_put_f64(r, "low_freq_factor", rope->low_freq) && json_put_f64(r, "high_freq_factor", rope->high_freq);
    if (ok && original && rope->scaling >= ROPE_LLAMA3)
        ok = json_put_u64(r, "original_max_position_embeddings", rope->original_context);
    if (ok && rope->scaling == ROPE_YARN) ok = put_yarn(r, rope);
    if (ok && rope->scaling == ROPE_LONG)
        ok = model_rope_put_factors(r, rope) && put_attention(r, rope, (double)context / rope->original_context);
    return ok;
}

/* For a class that has the original context at the top level. transformers 4 accepts only a type, short_factor and
 * long_factor in the object. */
static bool put_long_apart(cJSON *o, const struct model_config *c) {
    cJSON *r = cJSON_AddObjectToObject(o, "rope_scaling");
    return r && json_put_str(r, "type", "longrope") && put_settings(r, &c->rope, c->context, false) &&
           json_put_u64(o, "original_max_position_embeddings", c->rope.original_context);
}

static bool put_layer_type(cJSON *parameters, const char *name, const struct model_rope *rope, uint32_t context) {
    cJSON *r = cJSON_AddObjectToObject(parameters, name);
    return r && json_put_str(r, "rope_type", types[rope->scaling].name) && json_put_f64(r, "rope_theta", rope->theta) &&
           put_settings(r, rope, context, true);
}

/* Scaled layers with a window: only transformers 5 can express them. */
static bool put_both(cJSON *o, const struct model_config *c) {
    cJSON *r = cJSON_AddObjectToObject(o, "rope_parameters");
    return r && put_layer_type(r, "full_attention", &c->rope, c->context) &&
           put_layer_type(r, "sliding_attention", &c->local_rope, c->context);
}

static bool put_scaling(cJSON *o, const struct model_config *c, bool original_apart) {
    const struct model_rope *rope = &c->rope;
    if (rope->scaling == ROPE_PLAIN) return cJSON_AddNullToObject(o, "rope_scaling") != NULL;
    if (rope->scaling == ROPE_LONG && original_apart) return put_long_apart(o, c);
    cJSON *r = cJSON_AddObjectToObject(o, "rope_scaling");
    return r && json_put_str(r, "rope_type", types[rope->scaling].name) && put_settings(r, rope, c->context, true);
}

bool hf_rope_put(cJSON *o, const struct model_config *c, bool original_apart) {
    bool local = c->local_rope.theta != 0;
    if (local && c->local_rope.scaling != ROPE_PLAIN) return put_both(o, c);
    return json_put_f64(o, "rope_theta", c->rope.theta) && put_scaling(o, c, original_apart) &&
           (!local || json_put_f64(o, "rope_local_base_freq", c->local_rope.theta));
}
