/* "--tensor-type REGEX=TYPE": regular expressions over the names of tensors. */
#include "lib/quant/quant_internal.h"

int quant_rule_parse(const char *text, struct quant_rule *out, struct err *e) {
    const char *equals = strrchr(text, '=');
    if (!equals || equals == text)
        return err_set(e, ERR_USAGE, "'%.200s' is not REGEX=TYPE, such as ffn_down=q6_k", text);
    out->pattern = (struct model_pattern){text, (size_t)(equals - text)};
    return quant_dtype_parse(equals + 1, &out->dtype, e);
}

static int apply_one(const struct model_matcher *m, const struct quant_rule *rule, struct quant_plan *p,
                     const struct model_config *c, const struct quant_options *o, bool *used, struct err *e) {
    for (size_t i = 0; i < p->n; i++) {
        struct model_slot s = model_slot_at(c, i);
        struct quant_choice *choice = &p->choices[i];
        char name[TENSOR_MAX_NAME + 1];
        if (!model_role_is_matrix(s.role)) continue;
        int found = model_matches(m, model_slot_name(s, name), e);
        if (!found && o->foreign_name && o->foreign_name(c, s, name)) found = model_matches(m, name, e);
        if (found < 0) return found;
        if (!found) continue;
        *used = true;
        choice->wanted = (enum dtype)rule->dtype;
        choice->named = true;
        snprintf(choice->why, sizeof choice->why, "rule %.*s", (int)rule->pattern.n, rule->pattern.text);
    }
    return 0;
}

int rules_apply(struct quant_plan *p, const struct model_config *c, const struct quant_options *o, struct err *e) {
    int rc = 0;
    for (size_t i = 0; !rc && i < o->n_rules; i++) {
        const struct quant_rule *rule = &o->rules[i];
        struct model_matcher *m = NULL;
        bool used = false;
        rc = model_matcher_new(&m, &rule->pattern, e);
        if (!rc) rc = apply_one(m, rule, p, c, o, &used, e);
        model_matcher_free(m);
        if (!rc && !used)
            rc = err_set(e, ERR_USAGE, "'%.*s' matches no matrix of this model", (int)rule->pattern.n,
                         rule->pattern.text);
    }
    return rc;
}
