/* The registry of architectures. How to add one: lib/arch/README.md. */
#include "lib/formats/arch_internal.h"

static const struct arch *const registry[] = {
    &arch_llama,      &arch_mistral, &arch_ministral,   &arch_qwen2,     &arch_qwen3,     &arch_phi,       &arch_phi3,
    &arch_smollm3,    &arch_minicpm, &arch_olmo2,       &arch_gpt2,      &arch_opt,       &arch_gpt_neox,  &arch_gemma,
    &arch_gemma2,     &arch_gemma3,  &arch_mixtral,     &arch_olmoe,     &arch_qwen2_moe, &arch_qwen3_moe, &arch_bert,
    &arch_distilbert, &arch_roberta, &arch_xlm_roberta, &arch_camembert, &arch_bilstm,
};

const struct arch *arch_at(size_t i) {
    return i < COUNT_OF(registry) ? registry[i] : NULL;
}

/* ---- by name ----------------------------------------------------------------------------------------------------- */

static const char *name_of(const struct arch *a) {
    return a->name;
}
static const char *class_of(const struct arch *a) {
    return a->hf.classes[0].class;
}
static const char *gguf_of(const struct arch *a) {
    return a->gguf.names[0].name;
}

/* Two architectures may share a name: GGUF's "llama" also stands for Mistral. */
static bool is_first(const char *(*of)(const struct arch *), size_t i) {
    bool first = of(registry[i]) != NULL;
    for (size_t k = 0; k < i && first; k++) first = !of(registry[k]) || strcmp(of(registry[k]), of(registry[i])) != 0;
    return first;
}

/* Lists the distinct names as "a, b and c". */
static void list_names(const char *(*of)(const struct arch *), char *out, size_t size) {
    size_t left = 0, n = 0;
    out[0] = 0;
    for (size_t i = 0; i < COUNT_OF(registry); i++) left += is_first(of, i);
    for (size_t i = 0; i < COUNT_OF(registry) && n < size; i++) {
        const char *name = of(registry[i]);
        if (!is_first(of, i)) continue;
        n += (size_t)snprintf(out + n, size - n, "%s%s", name, left > 2 ? ", " : left == 2 ? " and " : "");
        left--;
    }
}

static const struct arch *by_name(const char *name) {
    for (size_t i = 0; i < COUNT_OF(registry); i++)
        if (strcmp(registry[i]->name, name) == 0) return registry[i];
    return NULL;
}

int arch_of_config(const struct model_config *c, const struct arch **out, struct err *e) {
    char known[768];
    *out = by_name(c->arch);
    if (*out) return 0;
    list_names(name_of, known, sizeof known);
    return err_set(e, ERR_DATA, "architecture '%.64s' is not supported (supported: %s)", c->arch, known);
}

const struct arch *arch_by_class(const char *name, const struct hf_class **class) {
    for (size_t i = 0; i < COUNT_OF(registry); i++)
        for (*class = registry[i]->hf.classes; (*class)->class; (*class)++)
            if (strcmp((*class)->class, name) == 0) return registry[i];
    return NULL;
}

const struct arch *arch_by_model_type(const char *type, const struct hf_class **class) {
    for (size_t i = 0; i < COUNT_OF(registry); i++)
        for (*class = registry[i]->hf.classes; (*class)->class; (*class)++)
            if (strcmp((*class)->model_type, type) == 0) return registry[i];
    return NULL;
}

const struct hf_class *arch_class(const struct arch *a, const struct model_config *c) {
    for (const struct hf_class *x = a->hf.classes; x->class; x++)
        if (x->output == c->output) return x;
    return NULL;
}

int arch_class_unknown(const char *class, struct err *e) {
    char known[768];
    list_names(class_of, known, sizeof known);
    return err_set(e, ERR_DATA, "architecture '%.64s' is not supported (supported: %s)", class, known);
}

/* If several architectures have this name, takes the one whose `experts` matches, else the first. */
const struct arch *arch_by_gguf(const char *name, bool experts, const struct gguf_name **spelled) {
    const struct arch *first = NULL;
    for (size_t i = 0; i < COUNT_OF(registry); i++) {
        const struct gguf_side *g = &registry[i]->gguf;
        const struct gguf_name *n = g->names;
        while (n->name && strcmp(n->name, name) != 0) n++;
        if (!n->name || (first && g->experts != experts)) continue;
        *spelled = n;
        if (g->experts == experts) return registry[i];
        first = registry[i];
    }
    return first;
}

int arch_gguf_unknown(const char *name, struct err *e) {
    char known[768];
    list_names(gguf_of, known, sizeof known);
    return err_set(e, ERR_DATA, "key 'general.architecture': '%.100s' is not supported (supported: %s)", name, known);
}

static bool generates(const struct arch *a) {
    return a->traits.output == OUTPUT_LM && !a->traits.bidirectional;
}

bool arch_summary(size_t i, struct arch_summary *out) {
    const struct arch *a = arch_at(i);
    if (!a) return false;
    *out = (struct arch_summary){a->name, a->models, class_of(a), gguf_of(a), generates(a)};
    return true;
}

int arch_traits(const char *name, struct model_config *out, struct err *e) {
    const struct arch *a = NULL;
    int rc = arch_of_config(&(struct model_config){.arch = name}, &a, e);
    if (rc) return rc;
    *out = a->traits;
    out->arch = a->name;
    out->rope.theta = a->traits.positions == POSITIONS_ROTARY ? a->hf.theta : 0;
    if (!a->hf.numbers->eps) out->norm_eps = (float)a->hf.eps;
    return 0;
}

/* Rotation works on pairs, so an odd number is rounded down. */
static uint32_t rotary_dims(const struct arch *a, const struct model_config *c) {
    uint32_t dims = c->rope.dims;
    if (!dims && a->hf.partial_rotary != 0) {
        dims = (uint32_t)(c->head_dim * a->hf.partial_rotary) / 2 * 2;
        if (!dims) dims = 2;
    }
    return dims == c->head_dim ? 0 : dims;
}

void arch_complete(struct model_config *c) {
    const struct arch *a = by_name(c->arch);
    if (!a) return;
    if (c->positions == POSITIONS_ROTARY) c->rope.dims = rotary_dims(a, c);
    if (a->complete) a->complete(c);
}

uint32_t arch_window_pattern(const char *name) {
    const struct arch *a = by_name(name);
    return a ? a->window_pattern : 0;
}

int arch_check_rotation(const struct arch *a, const struct model_config *c, struct err *e) {
    if (!c->rope.dims || a->hf.partial_rotary != 0) return 0;
    return err_set(e, ERR_DATA, "%u of the %u dimensions of a head are rotated, and a %s rotates all", c->rope.dims,
                   c->head_dim, a->name);
}

/* ---- names for export -------------------------------------------------------------------------------------------- */

static bool is_uneven(const struct model_config *c) {
    for (uint32_t i = 1; i < c->n_layers; i++) {
        const struct model_layer *x = &c->layers[i], *first = &c->layers[0];
        if (x->n_heads != first->n_heads || x->n_kv_heads != first->n_kv_heads || x->ffn != first->ffn ||
            x->experts != first->experts || x->expert_ffn != first->expert_ffn)
            return true;
    }
    return false;
}

const struct gguf_name *arch_gguf_name(const struct arch *a, const struct model_config *c) {
    bool other = is_uneven(c) || (a->gguf.needs_uneven && a->gguf.needs_uneven(c));
    const struct gguf_name *n = other ? &a->gguf.uneven : &a->gguf.names[0];
    return n->name ? n : NULL;
}
