/*
 * llama.cpp's file types: the type of each matrix (llama_tensor_get_type_impl in src/llama-quant.cpp). A mixture is a
 * base type and a list of rules, of which the first that matches applies. With eight experts attention is such a small
 * part of the model that k, v and o get more bits.
 */
#include <ctype.h>
#include <strings.h>

#include "lib/quant/quant_internal.h"

/* ---- matrices and conditions ---- */

enum part { EMBED = 1, Q = 2, K = 4, V = 8, O = 16, GATE = 32, UP = 64, DOWN = 128 };

enum when {
    ALWAYS = 0,
    MORE_BITS = 1, /* the first and last eighth of the layers, and every third in between */
    FIRST_8TH = 2,
    FIRST_16TH = 4,
    MIDDLE = 8, /* all but the first and last eighth */
    FIRST_2 = 16,
    FIRST_4 = 32,
    GROUPED = 64,     /* at least four query heads per key/value head */
    UNWEIGHTED = 128, /* without an importance matrix */
    WEIGHTED = 256,
    EXPERTS_4 = 512,  /* the layer has at least four experts */
    EXPERTS_8 = 1024, /* exactly eight, as in Mixtral */
    NOT_EXPERTS_8 = 2048,
};
static const struct {
    enum when when;
    const char *text;
} when_texts[] = {{MORE_BITS, "of the layers with more bits"},
                  {FIRST_8TH, "of the first eighth of the layers"},
                  {FIRST_16TH, "of the first sixteenth of the layers"},
                  {MIDDLE, "of the middle layers"},
                  {FIRST_2, "of the first 2 layers"},
                  {FIRST_4, "of the first 4 layers"},
                  {GROUPED, "with grouped heads"},
                  {UNWEIGHTED, "without statistics"},
                  {WEIGHTED, "with statistics"},
                  {EXPERTS_4, "with four experts or more"},
                  {EXPERTS_8, "with eight experts"}};

struct rule {
    unsigned parts, when;
    enum dtype to;
};

struct quant_mixture {
    enum dtype output;          /* of the output matrix, or the tied embedding */
    bool plain_v;               /* v of the largest models gets no extra bits (see is_70b) */
    bool blind_q2_k;            /* its q2_k needs importance */
    const struct rule *experts; /* for layers with experts, tried before `rules`; NULL: k_v_of_8 */
    struct rule rules[8];
};

static const struct rule k_v_of_8[] = {{K | V, EXPERTS_8, DT_Q8_0}, {0}};
static const struct rule k_v_o_of_8[] = {{K | V, EXPERTS_8, DT_Q8_0}, {O, EXPERTS_8, DT_Q5_K}, {0}};
static const struct rule iq2_of_8[] = {{V, EXPERTS_4, DT_Q4_K}, {K, EXPERTS_8, DT_Q4_K}, {O, EXPERTS_8, DT_Q5_K}, {0}};

static const struct quant_mixture q8_0 = {.output = DT_Q8_0};
static const struct quant_mixture no_rules = {.output = DT_Q6_K};
static const struct quant_mixture q5_k_m = {DT_Q6_K, .rules = {{V | DOWN, MORE_BITS, DT_Q6_K}}};
static const struct quant_mixture q5_0 = {DT_Q6_K, .rules = {{DOWN, FIRST_8TH | WEIGHTED, DT_Q5_1}}};
static const struct quant_mixture q4_k_m = {DT_Q6_K, .experts = k_v_o_of_8, .rules = {{V | DOWN, MORE_BITS, DT_Q6_K}}};
static const struct quant_mixture q4_k_s = {DT_Q6_K, .experts = k_v_o_of_8,
                                            .rules = {{V, FIRST_4, DT_Q5_K}, {DOWN, FIRST_8TH, DT_Q5_K}}};
static const struct quant_mixture q4_0 = {DT_Q6_K, .rules = {{DOWN, FIRST_8TH | WEIGHTED, DT_Q4_1}}};
static const struct quant_mixture iq4 = {DT_Q6_K, .experts = k_v_o_of_8,
                                         .rules = {{V, GROUPED, DT_Q5_K}, {DOWN, FIRST_8TH | UNWEIGHTED, DT_Q5_K}}};
static const struct quant_mixture q3_k_l = {DT_Q6_K,
                                            .rules = {{V | DOWN, ALWAYS, DT_Q5_K}, {O, NOT_EXPERTS_8, DT_Q5_K}}};
static const struct quant_mixture q3_k_s = {DT_Q6_K, .experts = k_v_o_of_8};
static const struct quant_mixture q3_k_m = {
    DT_Q6_K, .experts = k_v_o_of_8,
    .rules = {{V, FIRST_2, DT_Q5_K}, {DOWN, FIRST_16TH, DT_Q5_K}, {V | DOWN | O, ALWAYS, DT_Q4_K}}};
static const struct quant_mixture iq3_m = {
    DT_Q6_K, .experts = k_v_o_of_8,
    .rules = {{V | O, ALWAYS, DT_Q4_K}, {DOWN, FIRST_8TH, DT_Q4_K}, {DOWN, EXPERTS_8 | MORE_BITS, DT_Q4_K}}};
static const struct quant_mixture iq3_s = {DT_Q6_K, .experts = k_v_o_of_8, .rules = {{V, GROUPED, DT_Q4_K}}};
static const struct quant_mixture iq3_xs = {
    DT_Q6_K, .experts = k_v_o_of_8,
    .rules = {{V, GROUPED, DT_Q4_K}, {Q | K, ALWAYS, DT_IQ3_XXS}, {GATE | UP, MIDDLE, DT_IQ3_XXS}}};
static const struct quant_mixture iq3_xxs = {DT_Q5_K, .experts = k_v_o_of_8,
                                             .rules = {{EMBED | O, ALWAYS, DT_IQ3_S},
                                                       {V, GROUPED, DT_Q4_K},
                                                       {V, UNWEIGHTED, DT_IQ3_S},
                                                       {Q | K, ALWAYS, DT_IQ2_S},
                                                       {DOWN, FIRST_8TH | UNWEIGHTED, DT_Q4_K},
                                                       {DOWN, UNWEIGHTED, DT_Q3_K}}};
static const struct quant_mixture q2_k = {DT_Q6_K, .experts = k_v_o_of_8,
                                          .rules = {{V, GROUPED, DT_Q4_K}, {V | DOWN | O, ALWAYS, DT_Q3_K}}};
static const struct quant_mixture q2_k_s = {DT_Q6_K, .blind_q2_k = true,
                                            .rules = {{V, GROUPED, DT_Q4_K}, {DOWN, FIRST_8TH, DT_Q4_K}}};
static const struct quant_mixture iq2_s = {
    DT_Q5_K, .plain_v = true, .experts = iq2_of_8,
    .rules = {{V, GROUPED, DT_Q4_K}, {EMBED | V | O, ALWAYS, DT_IQ3_S}, {DOWN, FIRST_8TH, DT_IQ3_S}}};
static const struct quant_mixture iq2_xs = {
    DT_Q5_K, .plain_v = true, .experts = iq2_of_8,
    .rules = {{V, GROUPED, DT_Q4_K}, {EMBED | V, ALWAYS, DT_Q2_K}, {DOWN, FIRST_8TH, DT_Q2_K}}};
static const struct quant_mixture ternary = {DT_Q6_K, .rules = {{EMBED, ALWAYS, DT_Q4_K}}};

static const struct quant_type types[] = {
    {"q8_0", DT_Q8_0, "8.5 bits per weight, nearly lossless", &q8_0},
    {"q6_k", DT_Q6_K, "6.56 bits per weight", &no_rules},
    {"q5_k_m", DT_Q5_K, "q5_k, half of v and down in q6_k", &q5_k_m},
    {"q5_k_s", DT_Q5_K, "5.5 bits per weight", &no_rules},
    {"q5_1", DT_Q5_1, "6 bits per weight, blocks of 32 with a minimum", &no_rules},
    {"q5_0", DT_Q5_0, "5.5 bits per weight, blocks of 32", &q5_0},
    {"q4_k_m", DT_Q4_K, "q4_k, half of v and down in q6_k", &q4_k_m},
    {"q4_k_s", DT_Q4_K, "q4_k, the first v and down in q5_k", &q4_k_s},
    {"q4_1", DT_Q4_1, "5 bits per weight, blocks of 32 with a minimum", &no_rules},
    {"q4_0", DT_Q4_0, "4.5 bits per weight, blocks of 32", &q4_0},
    {"iq4_nl", DT_IQ4_NL, "4.5 bits per weight, uneven steps, blocks of 32", &iq4},
    {"iq4_xs", DT_IQ4_XS, "4.25 bits per weight, uneven steps", &iq4},
    {"mxfp4", DT_MXFP4, "4.25 bits per weight, floating point with a power of two for 32", &no_rules},
    {"q3_k_l", DT_Q3_K, "q3_k; v, down and o in q5_k", &q3_k_l},
    {"q3_k_m", DT_Q3_K, "q3_k; v, down and o in q4_k", &q3_k_m},
    {"q3_k_s", DT_Q3_K, "3.44 bits per weight", &q3_k_s},
    {"iq3_m", DT_IQ3_S, "iq3_s; v, o and the first down in q4_k", &iq3_m},
    {"iq3_s", DT_IQ3_S, "3.44 bits per weight, codebook", &iq3_s},
    {"iq3_xs", DT_IQ3_S, "iq3_s, much of it in iq3_xxs", &iq3_xs},
    {"iq3_xxs", DT_IQ3_XXS, "3.06 bits per weight, codebook", &iq3_xxs},
    {"q2_k", DT_Q2_K, "q2_k; v, down and o in q3_k", &q2_k},
    {"q2_k_s", DT_Q2_K, "2.63 bits per weight", &q2_k_s},
    {"iq2_m", DT_IQ2_S, "iq2_s; v, o and the first down in iq3_s", &iq2_s},
    {"iq2_s", DT_IQ2_XS, "iq2_xs; v, o and the first down in iq3_s", &iq2_s},
    {"iq2_xs", DT_IQ2_XS, "2.31 bits per weight, codebook", &iq2_xs},
    {"iq2_xxs", DT_IQ2_XXS, "2.06 bits per weight, codebook", &iq2_xs},
    {"tq2_0", DT_TQ2_0, "2.06 bits per weight, of ternary models", &ternary},
    {"tq1_0", DT_TQ1_0, "1.69 bits per weight, of ternary models", &ternary},
    {"f16", DT_F16, "16 bits, half precision", NULL},
    {"bf16", DT_BF16, "16 bits, the range of f32", NULL},
    {"f32", DT_F32, "32 bits: undoes a quantization's storage, not its loss", NULL},
};

/* ---- choosing ---- */

bool is_output(const struct model_config *c, struct model_slot s) {
    return s.role == ROLE_HEAD || (s.role == ROLE_EMBED && !model_has_role(c, ROLE_HEAD));
}

uint64_t cols_of(const struct model_config *c, struct model_slot s) {
    uint64_t dims[2];
    return dims[model_slot_shape(c, s, dims) - 1];
}

static unsigned part_of(struct model_slot s, const struct mixture_facts *f) {
    switch (s.role) {
    case ROLE_EMBED: return EMBED;
    case ROLE_Q_OUT:
    case ROLE_Q: return f->fused ? V : Q;
    case ROLE_K_OUT:
    case ROLE_K: return f->fused ? V : K;
    case ROLE_V_OUT:
    case ROLE_V: return V;
    case ROLE_O_OUT:
    case ROLE_O: return O;
    case ROLE_GATE:
    case ROLE_GATE_OUT:
    case ROLE_EXPERT_GATE: return GATE;
    case ROLE_UP:
    case ROLE_UP_OUT:
    case ROLE_EXPERT_UP: return UP;
    case ROLE_DOWN:
    case ROLE_DOWN_OUT:
    case ROLE_EXPERT_DOWN: return DOWN;
    default: return 0;
    }
}

static unsigned what_holds(struct model_slot s, const struct mixture_facts *f) {
    uint32_t i = s.layer, n = f->config->n_layers;
    const struct model_layer *first = &f->config->layers[0];
    uint32_t experts = model_role_in_layer(s.role) ? f->config->layers[i].experts : 0;
    unsigned holds = f->weighted ? WEIGHTED : UNWEIGHTED;
    holds |= experts == 8 ? EXPERTS_8 : NOT_EXPERTS_8;
    if (experts >= 4) holds |= EXPERTS_4;
    if (i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2) holds |= MORE_BITS;
    if (i < n / 8) holds |= FIRST_8TH;
    if (i < n / 16) holds |= FIRST_16TH;
    if (i >= n / 8 && i < 7 * n / 8) holds |= MIDDLE;
    if (i < 2) holds |= FIRST_2;
    if (i < 4) holds |= FIRST_4;
    if (n && first->n_kv_heads && first->n_heads / first->n_kv_heads >= 4) holds |= GROUPED;
    return holds;
}

/* Llama 2 70B and similar models, whose v is an eighth the size of q: more bits for it cost almost nothing. */
static bool is_70b(const struct model_config *c) {
    return c->n_layers == 80 && c->layers[0].n_kv_heads < c->layers[0].n_heads;
}

/* Like llama.cpp, avoids q5_k for rows that the base type does not divide: q6_k falls back to q8_0. */
static enum dtype of_output(const struct quant_type *t, uint64_t cols) {
    enum dtype output = t->mixture->output;
    return output == DT_Q5_K && cols % dtype_info(t->base)->block_elems ? DT_Q6_K : output;
}

static const struct rule *first_that_fits(const struct rule *r, unsigned part, unsigned holds) {
    for (; r->parts; r++)
        if ((r->parts & part) && !(r->when & ~holds)) return r;
    return NULL;
}

static void say_why(const struct quant_type *t, const struct rule *r, char *why, size_t size) {
    size_t len = (size_t)snprintf(why, size, "%s: this matrix", t->name);
    for (size_t i = 0; i < COUNT_OF(when_texts); i++)
        if ((r->when & when_texts[i].when) && len < size)
            len += (size_t)snprintf(why + len, size - len, " %s", when_texts[i].text);
}

enum dtype mixture_choose(const struct quant_type *t, const struct mixture_facts *f, struct model_slot s, char *why,
                          size_t size) {
    unsigned part = part_of(s, f), holds = what_holds(s, f);
    snprintf(why, size, "%s", t->name);
    if (!t->mixture) return t->base;
    if (is_output(f->config, s)) {
        snprintf(why, size, "%s: output", t->name);
        return of_output(t, cols_of(f->config, s));
    }
    const struct rule *r = first_that_fits(t->mixture->experts ? t->mixture->experts : k_v_of_8, part, holds);
    if (!r) r = first_that_fits(t->mixture->rules, part, holds);
    enum dtype to = r ? r->to : t->base;
    if (r) say_why(t, r, why, size);
    if (part != V || t->mixture->plain_v || !is_70b(f->config) || (to != DT_Q3_K && to != DT_Q4_K)) return to;
    snprintf(why, size, "%s: v of a model of 80 layers with grouped heads", t->name);
    return DT_Q5_K;
}

bool mixture_needs_importance(const struct quant_type *t, enum dtype to) {
    return dtype_info(to)->needs_importance || (to == DT_Q2_K && t && t->mixture && t->mixture->blind_q2_k);
}

/* ---- names ---- */

const struct quant_type *quant_type_at(size_t i) {
    return i < COUNT_OF(types) ? &types[i] : NULL;
}

static const char *join_names(char *out, size_t size, const char *between) {
    size_t len = 0;
    for (size_t i = 0; i < COUNT_OF(types); i++)
        len += (size_t)snprintf(out + len, size - len, "%s%s", i ? between : "", types[i].name);
    return out;
}

const char *quant_type_names(void) {
    static char names[512];
    return join_names(names, sizeof names, "|");
}

/* The type probably meant by names like Q4KM, int8 or fp16; NULL: none. */
static const char *likely_type(const char *name) {
    static const char *const others[][2] = {{"int8", "q8_0"},  {"8bit", "q8_0"},    {"int4", "q4_k_m"},
                                            {"nf4", "q4_k_m"}, {"4bit", "q4_k_m"},  {"fp16", "f16"},
                                            {"half", "f16"},   {"float16", "f16"},  {"float32", "f32"},
                                            {"fp32", "f32"},   {"bfloat16", "bf16"}};
    for (size_t i = 0; i < COUNT_OF(others); i++)
        if (!strcasecmp(name, others[i][0])) return others[i][1];
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        const char *a = name, *b = types[i].name;
        for (; *a || *b; a++, b++) {
            while (*a && !isalnum((unsigned char)*a)) a++;
            while (*b == '_') b++;
            if (tolower((unsigned char)*a) != *b || !*b) break;
        }
        if (!*a && !*b) return types[i].name;
    }
    return NULL;
}

int quant_type_parse(const char *name, const struct quant_type **out, struct err *e) {
    static const char *const short_names[][2] = {{"q3_k", "q3_k_m"}, {"q4_k", "q4_k_m"}, {"q5_k", "q5_k_m"}};
    char known[512];
    const char *full = name;
    for (size_t i = 0; i < COUNT_OF(short_names); i++)
        if (!strcasecmp(name, short_names[i][0])) full = short_names[i][1];
    for (size_t i = 0; i < COUNT_OF(types); i++)
        if (!strcasecmp(types[i].name, full)) {
            *out = &types[i];
            return 0;
        }
    const char *likely = likely_type(name);
    if (likely) return err_set(e, ERR_USAGE, "unknown type '%.64s' (did you mean %s?)", name, likely);
    return err_set(e, ERR_USAGE, "unknown type '%.64s' (known: %s)", name, join_names(known, sizeof known, ", "));
}

int quant_dtype_parse(const char *name, unsigned *out, struct err *e) {
    char known[512] = "";
    size_t len = 0;
    const struct dtype_info *t;
    for (size_t i = 0; (t = dtype_at(i)); i++) {
        bool same = !strcasecmp(t->name, name);
        if (same && t->read_only)
            return err_set(e, ERR_USAGE, "type '%s' is read, but not made: llama-quantize makes it", t->name);
        if (t->file_type < 0 || t->read_only) continue;
        if (same) {
            *out = t->dtype;
            return 0;
        }
        len += (size_t)snprintf(known + len, sizeof known - len, "%s%s", len ? ", " : "", t->name);
    }
    for (size_t i = 0; i < COUNT_OF(types); i++)
        if (!strcasecmp(types[i].name, name))
            return err_set(e, ERR_USAGE, "'%s' is a mixture, not a type of one tensor (known: %s)", types[i].name,
                           known);
    return err_set(e, ERR_USAGE, "unknown type '%.64s' (known: %s)", name, known);
}
