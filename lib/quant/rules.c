/* "--tensor-type REGEX=TYPE": regular expressions over the names of tensors. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "lib/quant/quant_internal.h"

int quant_rule_parse(const char *text, struct quant_rule *out, struct err *e) {
    const char *equals = strrchr(text, '=');
    if (!equals || equals == text)
        return err_set(e, ERR_USAGE, "'%.200s' is no REGEX=TYPE, such as ffn_down=q6_k", text);
    out->pattern = text;
    out->n = (size_t)(equals - text);
    return quant_dtype_parse(equals + 1, &out->dtype, e);
}

struct matcher {
    pcre2_code *code;
    pcre2_match_data *data;
    const struct quant_rule *rule;
};

static int matcher_open(struct matcher *m, const struct quant_rule *r, struct err *e) {
    int code;
    PCRE2_SIZE at;
    *m = (struct matcher){.rule = r};
    m->code = pcre2_compile((PCRE2_SPTR)r->pattern, r->n, PCRE2_UTF, &code, &at, NULL);
    if (!m->code) {
        PCRE2_UCHAR text[256];
        if (pcre2_get_error_message(code, text, sizeof text) < 0) text[0] = 0;
        return err_set(e, ERR_USAGE, "'%.*s' is no regular expression: at character %zu: %s%s", (int)r->n, r->pattern,
                       (size_t)at, (const char *)text,
                       r->pattern[0] == '*' ? " (not a pattern of the shell: ffn matches any name with ffn in it)"
                                            : "");
    }
    m->data = pcre2_match_data_create(1, NULL);
    return m->data ? 0 : err_nomem(e, "a regular expression");
}

static void matcher_close(struct matcher *m) {
    pcre2_match_data_free(m->data);
    pcre2_code_free(m->code);
}

/* 1 and 0; negative: the expression takes too long. */
static int matches(const struct matcher *m, const char *name, struct err *e) {
    int found = pcre2_match(m->code, (PCRE2_SPTR)name, strlen(name), 0, 0, m->data, NULL);
    if (found >= 0 || found == PCRE2_ERROR_NOMATCH) return found >= 0;
    return err_set(e, ERR_USAGE, "'%.*s' gives up on '%s': too many ways to match (PCRE2 error %d)", (int)m->rule->n,
                   m->rule->pattern, name, found);
}

static int apply_one(const struct matcher *m, struct quant_plan *p, const struct model_config *c,
                     const struct quant_options *o, bool *used, struct err *e) {
    for (size_t i = 0; i < p->n; i++) {
        struct model_slot s = model_slot_at(c, i);
        struct quant_choice *choice = &p->choices[i];
        char name[TENSOR_MAX_NAME + 1];
        if (!model_role_is_matrix(s.role)) continue;
        int found = matches(m, model_slot_name(s, name), e);
        if (!found && o->foreign_name && o->foreign_name(c, s, name)) found = matches(m, name, e);
        if (found < 0) return found;
        if (!found) continue;
        *used = true;
        choice->wanted = (enum dtype)m->rule->dtype;
        choice->named = true;
        snprintf(choice->why, sizeof choice->why, "rule %.*s", (int)m->rule->n, m->rule->pattern);
    }
    return 0;
}

int rules_apply(struct quant_plan *p, const struct model_config *c, const struct quant_options *o, struct err *e) {
    int rc = 0;
    for (size_t i = 0; !rc && i < o->n_rules; i++) {
        struct matcher m;
        bool used = false;
        rc = matcher_open(&m, &o->rules[i], e);
        if (!rc) rc = apply_one(&m, p, c, o, &used, e);
        matcher_close(&m);
        if (!rc && !used)
            rc = err_set(e, ERR_USAGE, "'%.*s' matches no matrix of this model", (int)o->rules[i].n,
                         o->rules[i].pattern);
    }
    return rc;
}
