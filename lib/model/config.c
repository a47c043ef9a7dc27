/* The configuration of a model: its JSON form in META, its limits, what follows from it. */
#include "lib/model/model.h"

#include <math.h>
#include <stdlib.h>

static const struct {
    enum model_arch arch;
    const char *name;
} archs[] = {{ARCH_LLAMA, "llama"}, {ARCH_QWEN2, "qwen2"}};

static const char *const scaling_names[] = {"none", "linear", "llama3"};

const char *model_arch_name(enum model_arch arch) {
    for (size_t i = 0; i < COUNT_OF(archs); i++)
        if (archs[i].arch == arch) return archs[i].name;
    return "unknown";
}

int model_arch_parse(const char *name, enum model_arch *out, struct err *e) {
    for (size_t i = 0; i < COUNT_OF(archs); i++)
        if (!strcmp(archs[i].name, name)) {
            *out = archs[i].arch;
            return 0;
        }
    return err_set(e, ERR_DATA, "architecture '%.64s' is not supported (llama and qwen2 are)", name);
}

/* ---- to JSON ------------------------------------------------------------------------------------------------- */

/* The decimal with the fewest digits that reads back as the same float: 1e-05 rather than 9.999999747378752e-06. */
static double shortest_float(float f) {
    char text[32];
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)f);
        if (strtof(text, NULL) == f) break;
    }
    return strtod(text, NULL);
}

static uint32_t layer_member(const struct model_layer *l, int which) {
    return which == 0 ? l->n_heads : which == 1 ? l->n_kv_heads : l->ffn;
}

/* One number where all layers agree, an array where they do not. */
static bool put_per_layer(cJSON *o, const char *key, const struct model_config *c, int which) {
    bool same = true;
    for (uint32_t i = 1; i < c->n_layers; i++)
        same = same && layer_member(&c->layers[i], which) == layer_member(&c->layers[0], which);
    if (same) return json_put_u64(o, key, c->n_layers ? layer_member(&c->layers[0], which) : 0);
    cJSON *array = cJSON_AddArrayToObject(o, key);
    for (uint32_t i = 0; array && i < c->n_layers; i++) {
        cJSON *n = cJSON_CreateNumber(layer_member(&c->layers[i], which));
        if (!n || !cJSON_AddItemToArray(array, n)) {
            cJSON_Delete(n);
            return false;
        }
    }
    return array != NULL;
}

static bool put_rope(cJSON *o, const struct model_config *c) {
    cJSON *r = cJSON_AddObjectToObject(o, "rope");
    bool ok =
        r && json_put_f64(r, "theta", c->rope_theta) && json_put_str(r, "scaling", scaling_names[c->rope_scaling]);
    if (ok && c->rope_scaling != ROPE_PLAIN) ok = json_put_f64(r, "factor", c->rope_factor);
    if (ok && c->rope_scaling == ROPE_LLAMA3)
        ok = json_put_f64(r, "low_freq_factor", c->rope_low_freq) &&
             json_put_f64(r, "high_freq_factor", c->rope_high_freq) &&
             json_put_u64(r, "original_context", c->rope_original_context);
    return ok;
}

cJSON *model_config_to_json(const struct model_config *c, struct err *e) {
    cJSON *o = cJSON_CreateObject();
    bool ok = o && json_put_str(o, "arch", model_arch_name(c->arch)) && json_put_u64(o, "layers", c->n_layers) &&
              json_put_u64(o, "hidden", c->hidden) && json_put_u64(o, "head_dim", c->head_dim) &&
              put_per_layer(o, "heads", c, 0) && put_per_layer(o, "kv_heads", c, 1) && put_per_layer(o, "ffn", c, 2) &&
              json_put_u64(o, "vocab_size", c->vocab_size) && json_put_u64(o, "context", c->context) &&
              json_put_bool(o, "tied", c->tied) && json_put_bool(o, "qkv_bias", c->qkv_bias) &&
              json_put_f64(o, "norm_eps", shortest_float(c->norm_eps)) && put_rope(o, c);
    if (ok) return o;
    cJSON_Delete(o);
    err_nomem(e, "model configuration");
    return NULL;
}

/* ---- from JSON ----------------------------------------------------------------------------------------------- */

static void set_layer_member(struct model_layer *l, int which, uint32_t v) {
    *(which == 0 ? &l->n_heads : which == 1 ? &l->n_kv_heads : &l->ffn) = v;
}

static int get_per_layer(struct model_config *c, const cJSON *o, const char *key, int which, struct err *e) {
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, key);
    if (!cJSON_IsArray(v)) {
        uint64_t n;
        int rc = json_get_u64(o, key, 1, MODEL_MAX_DIM, &n, e);
        for (uint32_t i = 0; !rc && i < c->n_layers; i++) set_layer_member(&c->layers[i], which, (uint32_t)n);
        return rc;
    }
    uint32_t i = 0;
    for (const cJSON *x = v->child; x; x = x->next, i++) {
        if (i == c->n_layers)
            return err_set(e, ERR_DATA, "\"%s\" has more entries than the %u layers", key, c->n_layers);
        if (!cJSON_IsNumber(x) || !(x->valuedouble >= 1 && x->valuedouble <= MODEL_MAX_DIM) ||
            x->valuedouble != floor(x->valuedouble))
            return err_set(e, ERR_DATA, "\"%s\" of layer %u is not an integer from 1 to %u", key, i, MODEL_MAX_DIM);
        set_layer_member(&c->layers[i], which, (uint32_t)x->valuedouble);
    }
    if (i != c->n_layers) return err_set(e, ERR_DATA, "\"%s\" has %u entries for %u layers", key, i, c->n_layers);
    return 0;
}

static int get_rope(struct model_config *c, const cJSON *o, struct err *e) {
    const cJSON *r = cJSON_GetObjectItemCaseSensitive(o, "rope");
    if (!cJSON_IsObject(r)) return err_set(e, ERR_DATA, "\"rope\" is missing");
    const char *scaling;
    int rc = json_get_f64(r, "theta", 1, 1e12, &c->rope_theta, e);
    if (!rc) rc = json_get_str(r, "scaling", &scaling, e);
    if (rc) return rc;
    size_t i = 0;
    while (i < COUNT_OF(scaling_names) && strcmp(scaling_names[i], scaling) != 0) i++;
    if (i == COUNT_OF(scaling_names))
        return err_set(e, ERR_DATA, "rope scaling '%.64s' is not supported (none, linear and llama3 are)", scaling);
    c->rope_scaling = (enum rope_scaling)i;
    if (c->rope_scaling != ROPE_PLAIN) rc = json_get_f64(r, "factor", 1e-3, 1e6, &c->rope_factor, e);
    if (!rc && c->rope_scaling == ROPE_LLAMA3) {
        uint64_t original;
        rc = json_get_f64(r, "low_freq_factor", 1e-3, 1e6, &c->rope_low_freq, e);
        if (!rc) rc = json_get_f64(r, "high_freq_factor", 1e-3, 1e6, &c->rope_high_freq, e);
        if (!rc) rc = json_get_u64(r, "original_context", 1, UINT32_MAX, &original, e);
        if (!rc) c->rope_original_context = (uint32_t)original;
    }
    return rc;
}

int model_config_from_json(struct model_config *c, const cJSON *o, struct arena *a, struct err *e) {
    *c = (struct model_config){0};
    if (!cJSON_IsObject(o)) return err_set(e, ERR_DATA, "\"model\" is not an object");
    const char *arch;
    int rc = json_get_str(o, "arch", &arch, e);
    if (!rc) rc = model_arch_parse(arch, &c->arch, e);
    struct {
        const char *key;
        uint64_t max;
        uint32_t *to;
    } numbers[] = {{"layers", MODEL_MAX_LAYERS, &c->n_layers},
                   {"hidden", MODEL_MAX_DIM, &c->hidden},
                   {"head_dim", MODEL_MAX_DIM, &c->head_dim},
                   {"vocab_size", MODEL_MAX_VOCAB, &c->vocab_size},
                   {"context", UINT32_MAX, &c->context}};
    for (size_t i = 0; !rc && i < COUNT_OF(numbers); i++) {
        uint64_t v = 0;
        rc = json_get_u64(o, numbers[i].key, 1, numbers[i].max, &v, e);
        *numbers[i].to = (uint32_t)v;
    }
    double eps = 0;
    if (!rc) rc = json_get_bool(o, "tied", &c->tied, e);
    if (!rc) rc = json_get_bool(o, "qkv_bias", &c->qkv_bias, e);
    if (!rc) rc = json_get_f64(o, "norm_eps", 0, 1, &eps, e);
    if (!rc) rc = get_rope(c, o, e);
    if (rc) return rc;
    c->norm_eps = (float)eps;
    c->layers = arena_array(a, c->n_layers, sizeof *c->layers, e);
    if (!c->layers) return e->code;
    rc = get_per_layer(c, o, "heads", 0, e);
    if (!rc) rc = get_per_layer(c, o, "kv_heads", 1, e);
    if (!rc) rc = get_per_layer(c, o, "ffn", 2, e);
    return rc ? rc : model_config_check(c, e);
}

int model_config_copy(struct model_config *to, const struct model_config *from, struct arena *a, struct err *e) {
    *to = *from;
    to->layers = arena_array(a, from->n_layers, sizeof *to->layers, e);
    if (!to->layers) return e->code;
    memcpy(to->layers, from->layers, from->n_layers * sizeof *to->layers);
    return 0;
}

/* ---- limits ---------------------------------------------------------------------------------------------------- */

static int check_range(const char *what, uint64_t v, uint64_t max, struct err *e) {
    if (v >= 1 && v <= max) return 0;
    return err_set(e, ERR_DATA, "%s is %llu, expected 1 to %llu", what, (unsigned long long)v, (unsigned long long)max);
}

int model_config_check(const struct model_config *c, struct err *e) {
    int rc = check_range("number of layers", c->n_layers, MODEL_MAX_LAYERS, e);
    if (!rc) rc = check_range("hidden size", c->hidden, MODEL_MAX_DIM, e);
    if (!rc) rc = check_range("head size", c->head_dim, MODEL_MAX_DIM, e);
    if (!rc) rc = check_range("vocabulary size", c->vocab_size, MODEL_MAX_VOCAB, e);
    if (!rc) rc = check_range("context", c->context, UINT32_MAX, e);
    if (rc) return rc;
    if (c->head_dim % 2) return err_set(e, ERR_DATA, "head size %u is odd: rotary positions need pairs", c->head_dim);
    if (!(c->norm_eps >= 0 && c->norm_eps < 1))
        return err_set(e, ERR_DATA, "norm epsilon %g is out of range", (double)c->norm_eps);
    if (!(c->rope_theta >= 1) || !isfinite(c->rope_theta))
        return err_set(e, ERR_DATA, "rope theta %g is out of range", c->rope_theta);
    for (uint32_t i = 0; i < c->n_layers; i++) {
        const struct model_layer *l = &c->layers[i];
        if (!l->n_heads || !l->n_kv_heads || l->n_heads % l->n_kv_heads)
            return err_set(e, ERR_DATA, "layer %u has %u heads for %u key/value heads: not a multiple", i, l->n_heads,
                           l->n_kv_heads);
        if ((uint64_t)l->n_heads * c->head_dim > MODEL_MAX_DIM)
            return err_set(e, ERR_DATA, "layer %u: %u heads of %u are too wide", i, l->n_heads, c->head_dim);
        rc = check_range("feed-forward width", l->ffn, MODEL_MAX_DIM, e);
        if (rc) return err_prefix(e, "layer %u", i), rc;
    }
    return 0;
}

/* ---- what follows ------------------------------------------------------------------------------------------------ */

uint64_t model_parameters(const struct model_config *c) {
    uint64_t total = 0;
    for (size_t i = 0; i < model_slot_count(c); i++) {
        uint64_t dims[2];
        unsigned rank = model_slot_shape(c, model_slot_at(c, i), dims);
        total += rank == 2 ? dims[0] * dims[1] : dims[0];
    }
    return total;
}

char *model_size_label(uint64_t parameters, char out[MODEL_SIZE_LABEL]) {
    static const struct {
        double unit;
        char letter;
    } units[] = {{1e12, 'T'}, {1e9, 'B'}, {1e6, 'M'}, {1e3, 'K'}};
    size_t i = 0;
    while (i + 1 < COUNT_OF(units) && (double)parameters <= units[i].unit) i++;
    double v = (double)parameters / units[i].unit;
    int decimals = rint(v) >= 10 ? 0 : rint(v) >= 1 ? 1 : 2; /* gguf-py's model_weight_count_rounded_notation */
    snprintf(out, MODEL_SIZE_LABEL, "%.*f%c", decimals, v, units[i].letter);
    return out;
}

void model_inv_freq(const struct model_config *c, double *inv_freq) {
    for (uint32_t i = 0; i < c->head_dim / 2; i++) {
        double f = pow(c->rope_theta, -2.0 * i / c->head_dim);
        if (c->rope_scaling == ROPE_LINEAR) f /= c->rope_factor;
        if (c->rope_scaling == ROPE_LLAMA3) {
            /* Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between interpolated. */
            double wavelength = 2 * M_PI / f;
            double low = c->rope_original_context / c->rope_low_freq,
                   high = c->rope_original_context / c->rope_high_freq;
            if (wavelength > low)
                f /= c->rope_factor;
            else if (wavelength >= high) {
                double smooth =
                    (c->rope_original_context / wavelength - c->rope_low_freq) / (c->rope_high_freq - c->rope_low_freq);
                f = (1 - smooth) * f / c->rope_factor + smooth * f;
            }
        }
        inv_freq[i] = f;
    }
}
