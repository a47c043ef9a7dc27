/* Rotary positions in GGUF: keys and tensors of factors. formats/gguf.md says how llama.cpp uses them. */
#include <math.h>

#include "lib/formats/arch_internal.h"

#define LLAMA3_TENSOR "rope_freqs.weight"
#define LONG_TENSOR   "rope_factors_long.weight"
#define SHORT_TENSOR  "rope_factors_short.weight"
const char *const gguf_rope_tensors[] = {LLAMA3_TENSOR, LONG_TENSOR, SHORT_TENSOR, NULL};

/* ---- reading ----------------------------------------------------------------------------------------------------- */

#define LLAMA_CPP_THETA 10000 /* llama.cpp's default for all architectures */

/* Reads a number that export writes twice if f32 would round it: as the f32 that other programs read, and in full under
 * our own key. Both must round to the same f32. */
static int read_exact(const struct gguf_file *g, const char *key, const char *own_key, double min, double max,
                      double *out, struct err *e) {
    double exact = 0;
    int rc = gguf_opt_f64(g, key, min, max, out, e);
    if (!rc) rc = gguf_opt_f64(g, own_key, min, max, &exact, e);
    if (rc || exact == 0) return rc;
    if (!gguf_find(g, key) || (float)exact != (float)*out)
        return err_set(e, ERR_DATA, "key '%s' is %g, but '%s' is %g", own_key, exact, key, *out);
    *out = exact;
    return 0;
}

/* The factor has an old and a new key. In older files 0 means "not set". */
static int read_factor(const struct gguf_file *g, const char *prefix, double *factor, struct err *e) {
    char key[GGUF_KEY_SIZE], old_key[GGUF_KEY_SIZE];
    double old = 0;
    gguf_arch_key(key, prefix, "rope.scaling.factor");
    *factor = 0;
    int rc = gguf_opt_f64(g, gguf_arch_key(old_key, prefix, "rope.scale_linear"), 0, 1e6, &old, e);
    if (!rc) rc = gguf_opt_f64(g, key, 0, 1e6, factor, e);
    if (rc) return rc;
    if (old != 0 && *factor != 0 && old != *factor)
        return err_set(e, ERR_DATA, "key '%s' is %g, but '%s' is %g", key, *factor, old_key, old);
    if (*factor == 0) *factor = old != 0 ? old : 1;
    return 0;
}

/* llama.cpp reads these keys only for other architectures; here it would use 32, 1 and 0 whatever they say. */
static int check_yarn_keys(const struct gguf_file *g, const char *prefix, struct err *e) {
    static const struct {
        const char *suffix;
        double usual;
    } keys[] = {{"rope.scaling.yarn_beta_fast", 32},
                {"rope.scaling.yarn_beta_slow", 1},
                {"rope.scaling.yarn_log_multiplier", 0}};
    for (size_t i = 0; i < COUNT_OF(keys); i++) {
        char key[GGUF_KEY_SIZE];
        double v = keys[i].usual;
        int rc = gguf_opt_f64(g, gguf_arch_key(key, prefix, keys[i].suffix), 0, 1e6, &v, e);
        if (rc) return rc;
        if (v != keys[i].usual)
            return err_set(e, ERR_DATA, "key '%s' is %g, and llama.cpp takes %g for a %s", key, v, keys[i].usual,
                           prefix);
    }
    return 0;
}

static int read_original(const struct gguf_file *g, const char *prefix, struct model_config *c, struct err *e) {
    char key[GGUF_KEY_SIZE];
    uint64_t original = c->context;
    int rc = gguf_opt_u64(g, gguf_arch_key(key, prefix, "rope.scaling.original_context_length"), 1, UINT32_MAX,
                          &original, e);
    c->rope.original_context = (uint32_t)original;
    return rc;
}

/* llama.cpp multiplies the attention factor that it derives from the scaling (`times`) by this key; our own key has the
 * exact product. */
static int read_attention(const struct gguf_file *g, const char *prefix, struct model_config *c, double times,
                          struct err *e) {
    char key[GGUF_KEY_SIZE];
    double said = 1, exact = 0;
    int rc = gguf_opt_f64(g, gguf_arch_key(key, prefix, "rope.scaling.attn_factor"), 1e-3, 1e3, &said, e);
    if (!rc) rc = gguf_opt_f64(g, "rill.rope.attention_factor", 1e-3, 1e3, &exact, e);
    if (rc) return rc;
    c->rope.attention_factor = said * times;
    if (exact == 0) return 0;
    if (fabs(exact - said * times) > 1e-6 * exact)
        return err_set(e, ERR_DATA, "key 'rill.rope.attention_factor' is %g, but '%s' is %g, of %g", exact, key, said,
                       times);
    c->rope.attention_factor = exact;
    return 0;
}

/* Only yarn and longrope read the key. */
static int check_attention(const struct gguf_file *g, const char *prefix, struct err *e) {
    char key[GGUF_KEY_SIZE];
    double said = 1;
    int rc = gguf_opt_f64(g, gguf_arch_key(key, prefix, "rope.scaling.attn_factor"), 0, 1e6, &said, e);
    if (rc || said == 1 || said == 0) return rc;
    return err_set(e, ERR_DATA, "key '%s' asks for something that is not supported without yarn or longrope", key);
}

static int read_yarn(const struct gguf_file *g, const char *prefix, struct model_config *c, struct err *e) {
    c->rope.beta_fast = 32, c->rope.beta_slow = 1;
    int rc = check_yarn_keys(g, prefix, e);
    if (!rc) rc = read_original(g, prefix, c, e);
    if (rc) return rc;
    return read_attention(g, prefix, c, model_rope_attention(ROPE_YARN, c->rope.factor, c->rope.original_context), e);
}

/* Copies a tensor of factors, one per rotated pair, into the arena. */
static int copy_factors(const struct raw_tensor *t, uint32_t n, float **out, struct arena *a, struct err *e) {
    if (t->dtype != DT_F32 || t->rank != 1 || t->dims[0] != n)
        return err_set(e, ERR_DATA, "tensor '%s' is not %u numbers of f32", t->name, n);
    float *factors = arena_array(a, n, sizeof *factors, e);
    if (!factors) return e->code;
    memcpy(factors, t->data, n * sizeof *factors);
    *out = factors;
    return 0;
}

static int take_factors(const struct gguf_file *g, const char *name, struct model_config *c, const float **out,
                        struct arena *a, struct err *e) {
    const struct raw_tensor *t = raw_table_find(&g->tensors, name);
    uint32_t n = model_rope_dims(c, &c->rope) / 2;
    float *factors;
    if (!t) return err_set(e, ERR_DATA, "tensor '%s' is missing, and longrope needs it", name);
    if (copy_factors(t, n, &factors, a, e)) return e->code;
    for (uint32_t i = 0; i < n; i++)
        if (!(factors[i] >= 1e-6f && factors[i] <= 1e6f))
            return err_set(e, ERR_DATA, "tensor '%s', element %u: not a number from 1e-06 to 1e+06", name, i);
    *out = factors;
    c->rope.n_factors = n;
    return 0;
}

static int read_long(const struct gguf_file *g, const char *prefix, struct model_config *c, struct arena *a,
                     struct err *e) {
    c->rope.scaling = ROPE_LONG;
    int rc = take_factors(g, LONG_TENSOR, c, &c->rope.long_factor, a, e);
    if (!rc) rc = take_factors(g, SHORT_TENSOR, c, &c->rope.short_factor, a, e);
    if (!rc) rc = read_original(g, prefix, c, e);
    return rc ? rc : read_attention(g, prefix, c, 1, e);
}

/* Files of phi3 do not name "longrope"; its tensors imply it. */
static int read_scaling(const struct gguf_file *g, const char *prefix, struct model_config *c, struct arena *a,
                        struct err *e) {
    char key[GGUF_KEY_SIZE], factor_key[GGUF_KEY_SIZE];
    const char *type = NULL;
    double factor;
    bool tensors = raw_table_find(&g->tensors, LONG_TENSOR) || raw_table_find(&g->tensors, SHORT_TENSOR);
    int rc = read_factor(g, prefix, &factor, e);
    if (!rc) rc = gguf_opt_str(g, gguf_arch_key(key, prefix, "rope.scaling.type"), a, &type, e);
    if (rc) return rc;
    if (!type) type = tensors ? "longrope" : "linear"; /* llama.cpp's default if there is a factor */
    bool none = strcmp(type, "none") == 0, is_long = strcmp(type, "longrope") == 0, yarn = strcmp(type, "yarn") == 0;
    if (!none && !is_long && !yarn && strcmp(type, "linear") != 0)
        return err_set(e, ERR_DATA,
                       "key '%s': '%.64s' is not supported (none, linear, yarn and longrope are, and llama3 by "
                       "rope_freqs.weight)",
                       key, type);
    if (tensors && !is_long)
        return err_set(e, ERR_DATA, "key '%s' is '%s', but there are factors of longrope", key, type);
    if ((none || is_long) && factor != 1)
        return err_set(e, ERR_DATA, "key '%s' is '%s', but there is a factor of %g", key, type, factor);
    if (is_long) return read_long(g, prefix, c, a, e);
    if (!yarn) rc = check_attention(g, prefix, e);
    if (rc || (factor == 1 && !yarn)) return rc;
    c->rope.scaling = yarn ? ROPE_YARN : ROPE_LINEAR;
    c->rope.factor = factor;
    if (gguf_find(g, "rill.rope.factor"))
        rc = read_exact(g, gguf_arch_key(factor_key, prefix, "rope.scaling.factor"), "rill.rope.factor", 1e-3, 1e6,
                        &c->rope.factor, e);
    return rc || !yarn ? rc : read_yarn(g, prefix, c, e);
}

/* The parameters behind the factors in rope_freqs.weight, which our export writes because GGUF has no keys for them. */
static int read_llama3_keys(const struct gguf_file *g, struct model_config *c, struct err *e) {
    uint64_t original = 0;
    int rc = gguf_opt_f64(g, "rill.rope.factor", 1e-3, 1e6, &c->rope.factor, e);
    if (!rc) rc = gguf_opt_f64(g, "rill.rope.low_freq_factor", 1e-3, 1e6, &c->rope.low_freq, e);
    if (!rc) rc = gguf_opt_f64(g, "rill.rope.high_freq_factor", 1e-3, 1e6, &c->rope.high_freq, e);
    if (!rc) rc = gguf_get_u64(g, "rill.rope.original_context", 1, UINT32_MAX, &original, e);
    if (rc) return rc;
    if (!c->rope.factor || !c->rope.low_freq || !c->rope.high_freq)
        return err_set(e, ERR_DATA, "one of the keys 'rill.rope.*' is missing");
    c->rope.original_context = (uint32_t)original;
    c->rope.scaling = ROPE_LLAMA3;
    return 0;
}

static int read_factors(const struct gguf_file *g, const struct raw_tensor *t, struct model_config *c, struct arena *a,
                        struct err *e) {
    float *factors;
    int rc = copy_factors(t, model_rope_dims(c, &c->rope) / 2, &factors, a, e);
    if (rc) return rc;
    if (c->rope.scaling != ROPE_PLAIN)
        return err_set(e, ERR_DATA, "tensor '%s' beside another rope scaling is not supported", t->name);
    if (gguf_find(g, "rill.rope.factor")) rc = read_llama3_keys(g, c, e);
    if (!rc) rc = gguf_rope_recover(c, factors, e);
    return rc ? err_prefix(e, "tensor '%s'", t->name) : 0;
}

int gguf_read_rope(struct model_config *c, const struct gguf_file *g, const struct arch *arch, const char *prefix,
                   struct arena *a, struct err *e) {
    char key[GGUF_KEY_SIZE];
    if (c->positions != POSITIONS_ROTARY) return 0;
    c->rope.theta = LLAMA_CPP_THETA;
    int rc = read_exact(g, gguf_arch_key(key, prefix, "rope.freq_base"), "rill.rope.theta", 1, 1e12, &c->rope.theta, e);
    if (!rc && arch->hf.local_theta != 0) {
        c->local_rope.theta = LLAMA_CPP_THETA;
        rc = read_exact(g, gguf_arch_key(key, prefix, "rope.freq_base_swa"), "rill.rope.local_theta", 1, 1e12,
                        &c->local_rope.theta, e);
    }
    if (!rc) rc = read_scaling(g, prefix, c, a, e);
    const struct raw_tensor *factors = raw_table_find(&g->tensors, LLAMA3_TENSOR);
    if (!rc && factors) return read_factors(g, factors, c, a, e);
    if (!rc && c->rope.scaling == ROPE_PLAIN && gguf_find(g, "rill.rope.factor"))
        rc = err_set(e, ERR_DATA, "key 'rill.rope.factor' without a rope scaling or rope_freqs.weight");
    return rc;
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

static bool fits_f32(double v) {
    return (double)(float)v == v;
}

static void put_exact(struct gguf_header *h, const char *key, const char *own_key, double v) {
    gguf_key_f32(h, key, v);
    if (!fits_f32(v)) gguf_key_f64(h, own_key, v);
}

/* Writes the quotient of the attention factor and what llama.cpp derives by itself, and the factor itself if the f32
 * quotient does not give it back exactly. */
static void put_attention(struct gguf_header *h, double attention, double by_itself) {
    double rest = attention / by_itself;
    if (rest != 1) gguf_key_f32(h, ".rope.scaling.attn_factor", rest);
    if ((double)(float)rest * by_itself != attention) gguf_key_f64(h, "rill.rope.attention_factor", attention);
}

/* GGUF's numbers are f32, and llama3's parameters have no keys at all; our own keys keep what would be lost. */
void gguf_put_rope(struct gguf_header *h, const struct model_config *c) {
    const struct model_rope *r = &c->rope;
    if (c->positions != POSITIONS_ROTARY) return;
    gguf_key_f32(h, ".rope.freq_base", r->theta);
    gguf_key_u32(h, ".rope.dimension_count", model_rope_dims(c, r));
    if (!fits_f32(r->theta)) gguf_key_f64(h, "rill.rope.theta", r->theta);
    if (c->local_rope.theta != 0) put_exact(h, ".rope.freq_base_swa", "rill.rope.local_theta", c->local_rope.theta);
    switch (r->scaling) {
    case ROPE_PLAIN: break;
    case ROPE_LINEAR:
        gguf_key_string(h, ".rope.scaling.type", "linear");
        put_exact(h, ".rope.scaling.factor", "rill.rope.factor", r->factor);
        break;
    case ROPE_LLAMA3:
        gguf_key_f64(h, "rill.rope.factor", r->factor);
        gguf_key_f64(h, "rill.rope.low_freq_factor", r->low_freq);
        gguf_key_f64(h, "rill.rope.high_freq_factor", r->high_freq);
        gguf_key_u32(h, "rill.rope.original_context", r->original_context);
        break;
    case ROPE_YARN:
        gguf_key_string(h, ".rope.scaling.type", "yarn");
        put_exact(h, ".rope.scaling.factor", "rill.rope.factor", r->factor);
        gguf_key_u32(h, ".rope.scaling.original_context_length", r->original_context);
        put_attention(h, r->attention_factor, model_rope_attention(ROPE_YARN, r->factor, r->original_context));
        break;
    case ROPE_LONG:
        gguf_key_string(h, ".rope.scaling.type", "longrope");
        gguf_key_u32(h, ".rope.scaling.original_context_length", r->original_context);
        put_attention(h, r->attention_factor, 1);
        log_line(LOG_WARN,
                 "longrope: Rill, as transformers, rotates a sequence of more than %u positions by the long factors; "
                 "llama.cpp does so with all sequences of a context (-c) of more than that, however short they are",
                 r->original_context);
    }
}

void gguf_put_rope_tensors(struct gguf_header *h, const struct model_config *c) {
    uint64_t n = model_rope_dims(c, &c->rope) / 2;
    if (c->rope.scaling == ROPE_LLAMA3) gguf_put_tensor(h, LLAMA3_TENSOR, 1, &n, DT_F32, n * sizeof(float));
    if (c->rope.scaling != ROPE_LONG) return;
    gguf_put_tensor(h, LONG_TENSOR, 1, &n, DT_F32, n * sizeof(float));
    gguf_put_tensor(h, SHORT_TENSOR, 1, &n, DT_F32, n * sizeof(float));
}

int gguf_write_rope_tensors(const struct model_config *c, int fd, struct err *e) {
    const struct model_rope *r = &c->rope;
    size_t n = model_rope_dims(c, r) / 2, bytes = n * sizeof(float);
    if (r->scaling == ROPE_LONG) {
        int rc = gguf_write_padded(fd, r->long_factor, bytes, e);
        return rc ? rc : gguf_write_padded(fd, r->short_factor, bytes, e);
    }
    if (r->scaling != ROPE_LLAMA3) return 0;
    float *factors = mem_array(n, sizeof *factors, e);
    if (!factors) return e->code;
    int rc = rope_factors(c, factors, e);
    if (!rc) rc = gguf_write_padded(fd, factors, bytes, e);
    mem_free(factors);
    return rc;
}

/* ---- what llama.cpp can compute ---------------------------------------------------------------------------------- */

static int check_yarn(const struct model_rope *r, uint32_t dims, struct err *e) {
    double low, high;
    if (r->beta_fast != 32 || r->beta_slow != 1)
        return err_set(e, ERR_DATA, "yarn with beta_fast %g and beta_slow %g: llama.cpp has 32 and 1", r->beta_fast,
                       r->beta_slow);
    if (r->no_truncate)
        return err_set(e, ERR_DATA, "yarn with bounds that are not made whole (truncate false): llama.cpp's are");
    model_yarn_bounds(r, dims, &low, &high);
    if (low <= high) return 0;
    return err_set(e, ERR_DATA,
                   "yarn of an original context of %u and a theta of %g, whose bounds cross: llama.cpp "
                   "computes something else then",
                   r->original_context, r->theta);
}

int gguf_check_rope(const struct model_config *c, struct err *e) {
    if (c->local_rope.theta != 0 && c->local_rope.scaling != ROPE_PLAIN)
        return err_set(e, ERR_DATA, "a scaled rotation of layers with a window, which llama.cpp does not have");
    return c->rope.scaling == ROPE_YARN ? check_yarn(&c->rope, model_rope_dims(c, &c->rope), e) : 0;
}
