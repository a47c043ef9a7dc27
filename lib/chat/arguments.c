/* Arguments of calls: found by position or name, and checked for their type. */
#include "lib/chat/chat_internal.h"

const struct value *arg_find(const struct call_args *a, size_t i, const char *name) {
    if (i < a->n) return &a->args[i];
    for (size_t k = 0; k < a->n_kwargs; k++)
        if (str_is(a->names[k], name)) return &a->kwargs[k];
    return NULL;
}

/* Is `name` one of the space-separated words in `names`? */
static bool is_word_of(struct str name, const char *names) {
    while (*names) {
        size_t n = strcspn(names, " ");
        if (n == name.n && !memcmp(names, name.p, n)) return true;
        names += n + (names[n] == ' ');
    }
    return false;
}

bool call_check(struct render *r, const struct call_args *a, const char *what, struct str name, size_t max,
                const char *names) {
    if (a->n > max) return chat_fail(r, "%s '%.*s' takes no more than %zu arguments", what, (int)name.n, name.p, max);
    for (size_t k = 0; k < a->n_kwargs; k++)
        if (!is_word_of(a->names[k], names))
            return chat_fail(r, "%s '%.*s' has no argument '%.*s'", what, (int)name.n, name.p, (int)a->names[k].n,
                             a->names[k].p);
    return true;
}

bool arg_str(struct render *r, const struct call_args *a, size_t i, const char *name, struct str fallback,
             struct str *out) {
    const struct value *v = arg_find(a, i, name);
    *out = v ? v->s : fallback;
    return !v || v->kind == V_STR || chat_fail(r, "argument '%s' is %s, expected a string", name, value_kind(v));
}

bool arg_int(struct render *r, const struct call_args *a, size_t i, const char *name, int64_t fallback, int64_t *out) {
    const struct value *v = arg_find(a, i, name);
    *out = v ? v->i : fallback;
    return !v || v->kind == V_INT || chat_fail(r, "argument '%s' is %s, expected an integer", name, value_kind(v));
}
