/* Regular expressions over the names of tensors. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "lib/arch/arch_internal.h"

struct model_matcher {
    pcre2_code *code;
    pcre2_match_data *data;
    struct model_pattern pattern;
};

int model_matcher_new(struct model_matcher **out, const struct model_pattern *p, struct err *e) {
    struct model_matcher *m = mem_zalloc(sizeof *m, e);
    int code;
    PCRE2_SIZE at;
    if (!m) return e->code;
    m->pattern = *p;
    m->code = pcre2_compile((PCRE2_SPTR)p->text, p->n, PCRE2_UTF, &code, &at, NULL);
    m->data = m->code ? pcre2_match_data_create(1, NULL) : NULL;
    if (m->data) {
        *out = m;
        return 0;
    }
    bool compiled = m->code;
    model_matcher_free(m);
    if (compiled) return err_nomem(e, "a regular expression");
    PCRE2_UCHAR text[256];
    if (pcre2_get_error_message(code, text, sizeof text) < 0) text[0] = 0;
    return err_set(e, ERR_USAGE, "'%.*s' is not a regular expression: at character %zu: %s%s", (int)p->n, p->text,
                   (size_t)at, (const char *)text,
                   p->text[0] == '*' ? " (not a pattern of the shell: ffn matches any name with ffn in it)" : "");
}

int model_matches(const struct model_matcher *m, const char *name, struct err *e) {
    int found = pcre2_match(m->code, (PCRE2_SPTR)name, strlen(name), 0, 0, m->data, NULL);
    if (found >= 0 || found == PCRE2_ERROR_NOMATCH) return found >= 0;
    return err_set(e, ERR_USAGE, "'%.*s' gives up on '%s': too many ways to match (PCRE2 error %d)", (int)m->pattern.n,
                   m->pattern.text, name, found);
}

void model_matcher_free(struct model_matcher *m) {
    if (!m) return;
    pcre2_match_data_free(m->data);
    pcre2_code_free(m->code);
    mem_free(m);
}
