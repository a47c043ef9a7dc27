/* The sparsity of each matrix from options and rules, by tensor of the original model. */
#include <math.h>
#include <stdlib.h>

#include "lib/prune/prune_internal.h"

/* ---- text ---- */

/* Parses "2:4"; false: not such a pattern. */
static bool parse_pattern(const char *text, struct prune_sparsity *out) {
    char kept[8];
    uint64_t n, m;
    size_t len = strcspn(text, ":");
    if (len >= sizeof kept || !text[len]) return false;
    memcpy(kept, text, len);
    kept[len] = 0;
    if (!parse_u64(kept, &n) || !parse_u64(text + len + 1, &m) || n < 1 || n >= m || m > PRUNE_MAX_GROUP) return false;
    *out = (struct prune_sparsity){.n = (unsigned)n, .m = (unsigned)m};
    return true;
}

/* "rank:64" */
static bool parse_rank(const char *text, struct prune_sparsity *out) {
    uint64_t n;
    if (strncmp(text, "rank:", 5) != 0 || !parse_u64(text + 5, &n) || n < 1 || n > MODEL_MAX_DIM) return false;
    *out = (struct prune_sparsity){.rank = (uint32_t)n};
    return true;
}

/* "0.5" or "50%". */
static bool parse_share(const char *text, double *out) {
    char number[32];
    size_t len = strlen(text);
    bool percent = len && text[len - 1] == '%';
    if (!percent) return parse_f64(text, out) && *out >= 0 && *out < 1;
    if (len > sizeof number) return false;
    memcpy(number, text, len - 1);
    number[len - 1] = 0;
    if (!parse_f64(number, out)) return false;
    *out /= 100;
    return *out >= 0 && *out < 1;
}

bool prune_method_parse(const char *name, enum prune_method *out) {
    static const char *const names[] = {[PRUNE_MAGNITUDE] = "magnitude",
                                        [PRUNE_WANDA] = "wanda",
                                        [PRUNE_SPARSEGPT] = "sparsegpt",
                                        [PRUNE_ALPS] = "alps",
                                        [PRUNE_SVD] = "svd"};
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        if (strcmp(names[i], name) != 0) continue;
        *out = (enum prune_method)i;
        return true;
    }
    return false;
}

int prune_sparsity_parse(const char *text, struct prune_sparsity *out, struct err *e) {
    *out = (struct prune_sparsity){0};
    bool is_rank = !strncmp(text, "rank:", 5);
    if (is_rank ? parse_rank(text, out) : strchr(text, ':') ? parse_pattern(text, out) : parse_share(text, &out->share))
        return 0;
    return err_set(
        e, ERR_USAGE,
        "'%.40s' is not a sparsity: a share from 0 to below 1 (0.5, 50%%), or N:M, N weights of each M kept, M "
        "at most %d (2:4), or rank:N, low-rank factors (rank:64)",
        text, PRUNE_MAX_GROUP);
}

int prune_rule_parse(const char *text, struct prune_rule *out, struct err *e) {
    const char *equals = strrchr(text, '=');
    if (!equals || equals == text)
        return err_set(e, ERR_USAGE, "'%.200s' is not REGEX=SPARSITY, such as ffn_down=0.3", text);
    out->pattern = (struct model_pattern){text, (size_t)(equals - text)};
    return prune_sparsity_parse(equals + 1, &out->sparsity, e);
}

const char *prune_sparsity_text(struct prune_sparsity s, char out[PRUNE_SPARSITY_TEXT]) {
    if (s.rank)
        snprintf(out, PRUNE_SPARSITY_TEXT, "rank:%u", s.rank);
    else if (s.m)
        snprintf(out, PRUNE_SPARSITY_TEXT, "%u:%u", s.n, s.m);
    else
        for (int digits = 6; digits <= 17; digits++) {
            snprintf(out, PRUNE_SPARSITY_TEXT, "%.*g", digits, s.share);
            if (strtod(out, NULL) == s.share) break;
        }
    return out;
}

size_t prune_gone(double share, size_t n) {
    double x = share * (double)n, whole = round(x);
    return (size_t)(fabs(x - whole) <= 1e-12 * x ? whole : x);
}

bool prune_is_sparse(struct prune_sparsity s) {
    return s.rank || s.m || s.share > 0;
}

/* ---- the plan ---- */

static int apply_rule(const struct model_matcher *m, const struct prune_rule *rule, struct prune_plan *p, bool *used,
                      struct err *e) {
    for (size_t i = 0; i < p->n_slots; i++) {
        struct model_slot s = model_slot_at(p->from, i), now;
        char name[TENSOR_MAX_NAME + 1];
        if (!model_role_is_matrix(s.role) || !prune_new_slot(p, s, &now)) continue;
        int found = model_matches(m, model_slot_name(s, name), e);
        if (!found && p->o->foreign_name && p->o->foreign_name(p->from, s, name)) found = model_matches(m, name, e);
        if (found < 0) return found;
        if (!found) continue;
        *used = true;
        p->sparse[i] = rule->sparsity;
    }
    return 0;
}

static int apply_rules(struct prune_plan *p, struct err *e) {
    int rc = 0;
    for (size_t i = 0; !rc && i < p->o->n_rules; i++) {
        const struct prune_rule *rule = &p->o->rules[i];
        struct model_matcher *m = NULL;
        bool used = false;
        rc = model_matcher_new(&m, &rule->pattern, e);
        if (!rc) rc = apply_rule(m, rule, p, &used, e);
        model_matcher_free(m);
        if (!rc && !used)
            rc = err_set(e, ERR_USAGE, "'%.*s' matches no matrix of this model that stays", (int)rule->pattern.n,
                         rule->pattern.text);
    }
    return rc;
}

static bool is_second_order(const struct prune_options *o) {
    return o->method == PRUNE_SPARSEGPT || o->method == PRUNE_ALPS;
}

bool prune_uses_moments(const struct prune_options *o) {
    return is_second_order(o) && !o->calibrated && o->stats && stats_moments_in(o->stats) == STATS_MOMENTS_ALL;
}

/* Whether the statistics suffice for this matrix, with prune_uses_moments; dims: its new shape. */
static int check_moments(const struct prune_plan *p, struct model_slot old, const uint64_t dims[2],
                         struct prune_sparsity s, struct err *e) {
    uint64_t was[2] = {0};
    char name[TENSOR_MAX_NAME + 1];
    model_slot_name(old, name);
    if (old.role == ROLE_EMBED)
        return err_set(e, ERR_USAGE,
                       "tensor '%s' is the table of embeddings, too: this method would fit it as the head alone "
                       "(--method wanda, or a --rate of 0 for it)",
                       name);
    if (!stats_has_gram(p->o->stats, old))
        return err_set(e, ERR_DATA,
                       "tensor '%s': the statistics have no second moments of its inputs, which this method needs "
                       "without --data",
                       name);
    if (s.rank)
        return err_set(
            e, ERR_USAGE,
            "tensor '%s': low-rank factors by what a matrix does to its inputs need --data (--method svd: by "
            "its own singular values)",
            name);
    model_slot_shape(p->from, old, was);
    if (was[1] == dims[1]) return 0;
    return err_set(
        e, ERR_USAGE,
        "tensor '%s' loses inputs: by statistics, this method prunes matrices for all of their inputs (change "
        "widths in a run before, and make statistics of its result)",
        name);
}

/* ERR_USAGE if the method cannot make this matrix so sparse. */
static int check_matrix(const struct prune_plan *p, struct model_slot old, struct model_slot now,
                        struct prune_sparsity s, struct err *e) {
    uint64_t dims[2] = {0};
    char name[TENSOR_MAX_NAME + 1];
    enum model_point point;
    model_slot_shape(&p->to, now, dims);
    if (s.m && dims[1] % s.m)
        return err_set(e, ERR_USAGE, "tensor '%s': %u does not divide its rows of %llu, as %u:%u has to",
                       model_slot_name(old, name), s.m, (unsigned long long)dims[1], s.n, s.m);
    bool by_weights = p->o->method == PRUNE_MAGNITUDE || p->o->method == PRUNE_SVD; /* without data */
    if ((!by_weights || p->o->calibrated) && !stats_input_point(p->from, old.role, &point))
        return err_set(e, ERR_USAGE, "tensor '%s': nothing is known of its input, which this method needs",
                       model_slot_name(old, name));
    return prune_uses_moments(p->o) ? check_moments(p, old, dims, s, e) : 0;
}

int prune_plan_sparse(struct prune_plan *p, struct err *e) {
    const struct prune_options *o = p->o;
    p->n_slots = model_slot_count(p->from);
    if (o->allocation && o->allocation->n != p->n_slots)
        return err_set(e, ERR_USAGE, "shares of %zu tensors for a model that has %zu", o->allocation->n, p->n_slots);
    p->sparse = arena_array(&p->memory, p->n_slots, sizeof *p->sparse, e);
    if (!p->sparse) return e->code;
    for (size_t i = 0; i < p->n_slots; i++) {
        struct model_slot s = model_slot_at(p->from, i);
        if (model_role_is_matrix(s.role) && (model_role_in_layer(s.role) || o->prune_head)) p->sparse[i] = o->sparsity;
        if (o->allocation && model_role_in_layer(s.role))
            p->sparse[i] = (struct prune_sparsity){.share = o->allocation->share[i]};
    }
    return apply_rules(p, e);
}

int prune_check_sparse(const struct prune_plan *p, struct err *e) {
    const struct prune_options *o = p->o;
    bool any = false;
    for (size_t i = 0; i < p->n_slots; i++) {
        struct model_slot s = model_slot_at(p->from, i), now;
        if (!prune_is_sparse(p->sparse[i]) || !prune_new_slot(p, s, &now)) continue;
        any = true;
        if (check_matrix(p, s, now, p->sparse[i], e)) return e->code;
    }
    if (any && !o->calibrated && o->reconstruct)
        return err_set(e, ERR_USAGE, "this method needs --data (calibration tokens)");
    if (any && !o->calibrated && is_second_order(o) && !prune_uses_moments(o))
        return err_set(e, ERR_USAGE,
                       "this method needs --data (calibration tokens), or --stats with second moments (rill calibrate "
                       "--moments)");
    if (any && o->method == PRUNE_WANDA && !o->stats && !o->squares.mean && !o->calibrated)
        return err_set(e, ERR_USAGE, "wanda needs --stats (from rill calibrate) or --data");
    return 0;
}
