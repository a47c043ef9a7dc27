/*
 * The rotary settings of config.json, which have two places: "rope_scaling" with "rope_theta" beside it (transformers
 * 4) and "rope_parameters" with everything inside (transformers 5). transformers 5.24 takes `rope_scaling or
 * rope_parameters`, fills a missing theta from the top level and a missing original context from the context
 * (modeling_rope_utils.py, convert_rope_params_to_dict); version 4 reads rope_scaling alone. So a file that says
 * different things in both is a different model to each, and is refused.
 */
#include "lib/formats/formats_internal.h"

/* Sets of types, for the table of keys. */
enum { NO_TYPE = 0, DEFAULT = 1, LINEAR = 2, LLAMA3 = 4, ANY_TYPE = 7 };

static const struct {
    const char *name;
    unsigned type;
    enum rope_scaling scaling;
} types[] = {{"default", DEFAULT, ROPE_PLAIN}, {"linear", LINEAR, ROPE_LINEAR}, {"llama3", LLAMA3, ROPE_LLAMA3}};

/* Which types a key belongs to. With another type it would be ignored, so it must have the value that changes
 * nothing: 1, or 0 where none does. */
static const struct {
    const char *name;
    unsigned types;
    double idle;
} keys[] = {
    {"rope_type", ANY_TYPE, 0},
    {"type", ANY_TYPE, 0},
    {"rope_theta", ANY_TYPE, 0},
    {"partial_rotary_factor", ANY_TYPE, 0},
    {"original_max_position_embeddings", ANY_TYPE, 0}, /* llama3 reads it; in others it scales nothing */
    {"finetuned", ANY_TYPE, 0},
    {"factor", LINEAR | LLAMA3, 1},
    {"low_freq_factor", LLAMA3, 0},
    {"high_freq_factor", LLAMA3, 0},
    {"attention_factor", NO_TYPE, 1},
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

/* "type" is the old name of "rope_type". */
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
    return err_set(e, ERR_DATA, "rope type '%.64s' is not supported (default, linear and llama3 are)", *name);
}

/* A number that may be at the top level and in its object, which must then agree; *out is unchanged if it is in
 * neither. */
static int read_shared(const cJSON *json, const cJSON *home, const char *key, double min, double max, double *out,
                       struct err *e) {
    double above = -1, inside = -1;
    int rc = json_opt_f64(json, key, min, max, &above, e);
    if (!rc && home) rc = json_opt_f64(home, key, min, max, &inside, e);
    if (rc) return rc;
    if (above >= 0 && inside >= 0 && above != inside)
        return err_set(e, ERR_DATA, "\"%s\" is %g here, but %g at the top level", key, inside, above);
    if (above >= 0) *out = above;
    if (inside >= 0) *out = inside;
    return 0;
}

/* Without the original context in the object it is the context, whatever the top level says. */
static int read_original(struct hf_rope *r, const cJSON *json, const cJSON *home, struct err *e) {
    static const char key[] = "original_max_position_embeddings";
    uint64_t original = 0, above = 0;
    int rc = json_get_u64(json, "max_position_embeddings", 1, UINT32_MAX, &original, e);
    if (!rc) rc = json_opt_u64(home, key, 1, UINT32_MAX, &original, e);
    if (!rc) rc = json_opt_u64(json, key, 1, UINT32_MAX, &above, e);
    if (rc) return rc;
    if (above && above != original)
        return err_set(e, ERR_DATA, "\"%s\" is %llu here, but %llu at the top level", key, (unsigned long long)original,
                       (unsigned long long)above);
    r->original_context = (uint32_t)original;
    return 0;
}

static int read_llama3(struct hf_rope *r, const cJSON *json, const cJSON *home, struct err *e) {
    int rc = json_get_f64(home, "low_freq_factor", 1e-3, 1e6, &r->low_freq, e);
    if (!rc) rc = json_get_f64(home, "high_freq_factor", 1e-3, 1e6, &r->high_freq, e);
    return rc ? rc : read_original(r, json, home, e);
}

/* All settings of an object; NULL: there is none, only the top level counts. */
static int read_home(struct hf_rope *r, const cJSON *json, const cJSON *home, const struct hf_rope *defaults,
                     struct err *e) {
    const char *name = "default";
    unsigned type = DEFAULT;
    *r = (struct hf_rope){.theta = defaults->theta, .partial = defaults->partial};
    int rc = home ? read_type(home, &name, &type, &r->scaling, e) : 0;
    if (!rc && home) rc = check_keys(home, name, type, e);
    if (!rc) rc = read_shared(json, home, "rope_theta", 1, 1e12, &r->theta, e);
    if (!rc) rc = read_shared(json, home, "partial_rotary_factor", 0, 1, &r->partial, e);
    if (!rc && (type & (LINEAR | LLAMA3))) rc = json_get_f64(home, "factor", 1e-3, 1e6, &r->factor, e);
    if (!rc && type == LLAMA3) rc = read_llama3(r, json, home, e);
    return rc;
}

/* The object under `key`; NULL when it is absent, null or empty, which Python's `or` treats alike. */
static int find_home(const cJSON *json, const char *key, const cJSON **home, struct err *e) {
    const cJSON *x = hf_member(json, key);
    *home = NULL;
    if (x && !cJSON_IsObject(x)) return err_set(e, ERR_DATA, "\"%s\" is not an object", key);
    if (x && x->child) *home = x;
    return 0;
}

static int compare(const struct hf_rope *scaling, const struct hf_rope *parameters, struct err *e) {
    const struct {
        const char *what;
        double scaling, parameters;
    } numbers[] = {
        {"rope_theta", scaling->theta, parameters->theta},
        {"factor", scaling->factor, parameters->factor},
        {"low_freq_factor", scaling->low_freq, parameters->low_freq},
        {"high_freq_factor", scaling->high_freq, parameters->high_freq},
        {"original_max_position_embeddings", scaling->original_context, parameters->original_context},
        {"partial_rotary_factor", scaling->partial, parameters->partial},
    };
    if (scaling->scaling != parameters->scaling)
        return err_set(e, ERR_DATA, "\"rope_scaling\" and \"rope_parameters\" disagree: rope type '%s' against '%s'",
                       types[scaling->scaling].name, types[parameters->scaling].name);
    for (size_t i = 0; i < COUNT_OF(numbers); i++)
        if (numbers[i].scaling != numbers[i].parameters)
            return err_set(e, ERR_DATA, "\"rope_scaling\" and \"rope_parameters\" disagree: \"%s\" %g against %g",
                           numbers[i].what, numbers[i].scaling, numbers[i].parameters);
    return 0;
}

static int read_homes(struct hf_rope *r, const cJSON *json, const cJSON *scaling, const cJSON *parameters,
                      const struct hf_rope *defaults, struct err *e) {
    const char *name = scaling ? "rope_scaling" : parameters ? "rope_parameters" : "rope";
    int rc = read_home(r, json, scaling ? scaling : parameters, defaults, e);
    if (rc) return err_prefix(e, "%s", name);
    if (!scaling || !parameters) return 0;
    struct hf_rope other;
    rc = read_home(&other, json, parameters, defaults, e);
    return rc ? err_prefix(e, "rope_parameters") : compare(r, &other, e);
}

int hf_rope_read(struct hf_rope *r, const cJSON *json, const struct hf_rope *defaults, struct err *e) {
    const cJSON *scaling, *parameters;
    int rc = find_home(json, "rope_scaling", &scaling, e);
    if (!rc) rc = find_home(json, "rope_parameters", &parameters, e);
    return rc ? rc : read_homes(r, json, scaling, parameters, defaults, e);
}

/* ---- two rotations ----------------------------------------------------------------------------------------------- */

/* The rotation of sliding layers from "rope_parameters", or "rope_local_base_freq" beside it. */
static int read_sliding(struct hf_rope *r, const cJSON *json, const cJSON *home, double default_theta, struct err *e) {
    const char *name = "default";
    unsigned type = DEFAULT;
    double above = -1, inside = -1;
    *r = (struct hf_rope){.theta = default_theta, .partial = 1};
    int rc = home ? read_type(home, &name, &type, &r->scaling, e) : 0;
    if (!rc && type != DEFAULT)
        rc = err_set(e, ERR_DATA, "rope type '%s' is not supported for sliding attention (default is)", name);
    if (!rc && home) rc = check_keys(home, name, type, e);
    if (!rc && home) rc = json_opt_f64(home, "partial_rotary_factor", 0, 1, &r->partial, e);
    if (!rc && home) rc = json_opt_f64(home, "rope_theta", 1, 1e12, &inside, e);
    if (!rc) rc = json_opt_f64(json, "rope_local_base_freq", 1, 1e12, &above, e);
    if (!rc && above >= 0 && inside >= 0 && above != inside)
        rc = err_set(e, ERR_DATA, "\"rope_theta\" is %g here, but \"rope_local_base_freq\" is %g", inside, above);
    if (above >= 0) r->theta = above;
    if (inside >= 0) r->theta = inside;
    return rc;
}

/* transformers 5 has an object for each type of layer in "rope_parameters"; keys beside them would be ignored. */
static int check_layer_types(const cJSON *parameters, struct err *e) {
    for (const cJSON *x = parameters ? parameters->child : NULL; x; x = x->next)
        if (strcmp(x->string, "full_attention") != 0 && strcmp(x->string, "sliding_attention") != 0)
            return err_set(e, ERR_DATA, "rope_parameters: \"%.100s\" is not a layer type", x->string);
    return 0;
}

int hf_rope_read_both(struct hf_rope *full, struct hf_rope *sliding, const cJSON *json, const struct hf_rope *defaults,
                      double default_sliding, struct err *e) {
    const cJSON *scaling, *parameters, *of_full = NULL, *of_sliding = NULL;
    int rc = find_home(json, "rope_scaling", &scaling, e);
    if (!rc) rc = find_home(json, "rope_parameters", &parameters, e);
    if (!rc) rc = check_layer_types(parameters, e);
    if (!rc && parameters) rc = find_home(parameters, "full_attention", &of_full, e);
    if (!rc && parameters) rc = find_home(parameters, "sliding_attention", &of_sliding, e);
    if (!rc) rc = read_homes(full, json, scaling, of_full, defaults, e);
    if (rc) return rc;
    rc = read_sliding(sliding, json, of_sliding, default_sliding, e);
    return rc ? err_prefix(e, "%s", of_sliding ? "rope_parameters" : "rope") : 0;
}
