/* Evaluates expressions: nodes of the syntax tree to values. */
#include "lib/chat/chat_internal.h"

/* ---- names ---- */

static void look_up(struct render *r, struct str name, struct value *out) {
    for (const struct frame *f = r->frame; f; f = f->parent) {
        const struct value *v = dict_get(r, &f->vars, name);
        if (v) {
            *out = *v;
            return;
        }
    }
    *out = undefined_value(name);
    if (chat_has_function(r, name)) out->kind = V_FUNCTION;
}

/* ---- calls ---- */

static bool eval_arguments(struct render *r, const struct node *n, struct call_args *a) {
    struct value *args = chat_alloc(r, n->n_args + n->n_names, sizeof *args);
    if (!args) return false;
    for (size_t i = 0; i < n->n_args; i++)
        if (!chat_eval(r, n->args[i], &args[i])) return false;
    for (size_t i = 0; i < n->n_names; i++)
        if (!chat_eval(r, n->kwargs[i], &args[n->n_args + i])) return false;
    *a = (struct call_args){args, n->n_args, n->names, args + n->n_args, n->n_names};
    return true;
}

static bool eval_call(struct render *r, const struct node *n, struct value *out) {
    struct value f;
    struct call_args a;
    if (!chat_eval(r, n->a, &f) || !eval_arguments(r, n, &a)) return false;
    r->line = n->line;
    switch (f.kind) {
    case V_MACRO: return f.macro->call(r, f.macro, &a, out);
    case V_METHOD: return chat_call_method(r, f.method, &a, out);
    case V_FUNCTION: return chat_call_function(r, f.s, &a, out);
    case V_UNDEFINED:
        return chat_fail(r, "'%.*s' is undefined%s", (int)(f.s.n < 100 ? f.s.n : 100), f.s.p,
                         str_is(f.s, "strftime_now") ? ": the template needs a date (--date)" : "");
    default: return chat_fail(r, "%s cannot be called", value_kind(&f));
    }
}

static bool eval_filter(struct render *r, const struct node *n, struct value *out) {
    struct value v;
    struct call_args a;
    if (!chat_eval(r, n->a, &v) || !eval_arguments(r, n, &a)) return false;
    r->line = n->line;
    return chat_filter(r, n->s, &v, &a, out);
}

static bool eval_test(struct render *r, const struct node *n, struct value *out) {
    struct value v;
    struct call_args a;
    bool holds;
    if (!chat_eval(r, n->a, &v) || !eval_arguments(r, n, &a)) return false;
    r->line = n->line;
    if (!chat_test(r, n->s, &v, &a, &holds)) return false;
    *out = bool_value(holds != n->flag);
    return true;
}

/* ---- other expressions ---- */

static bool eval_list(struct render *r, const struct node *n, struct value *out) {
    struct value v;
    if (!list_new(r, out, n->n_args)) return false;
    out->flag = n->type == N_TUPLE;
    for (size_t i = 0; i < n->n_args; i++)
        if (!chat_eval(r, n->args[i], &v) || !list_push(r, out->list, v)) return false;
    return true;
}

static bool eval_dict(struct render *r, const struct node *n, struct value *out) {
    struct value key, v;
    if (!dict_new(r, out)) return false;
    for (size_t i = 0; i + 1 < n->n_args; i += 2)
        if (!chat_eval(r, n->args[i], &key) || !chat_eval(r, n->args[i + 1], &v) || !dict_set(r, out->dict, key, v))
            return false;
    return true;
}

static bool eval_slice(struct render *r, const struct node *n, struct value *out) {
    struct value v, part[3] = {NONE_VALUE, NONE_VALUE, NONE_VALUE};
    const struct node *const parts[] = {n->b, n->c, n->d};
    if (!chat_eval(r, n->a, &v)) return false;
    for (int i = 0; i < 3; i++)
        if (parts[i] && !chat_eval(r, parts[i], &part[i])) return false;
    r->line = n->line;
    return chat_slice(r, &v, part, out);
}

static bool eval_chain(struct render *r, const struct node *n, struct value *out) {
    *out = bool_value(true);
    for (size_t i = 0; i < n->n_args && out->flag; i++)
        if (!chat_eval(r, n->args[i], out)) return false;
    return true;
}

static bool eval_sign(struct render *r, const struct node *n, struct value *out) {
    struct value v, zero = int_value(0);
    if (!chat_eval(r, n->a, &v)) return false;
    r->line = n->line;
    if (v.kind == V_FLOAT) {
        *out = v;
        if (n->type == N_NEGATE) out->f = -v.f;
        return true;
    }
    return chat_binary(r, n->type == N_NEGATE ? STR("-") : STR("+"), &zero, &v, out);
}

static bool eval_two(struct render *r, const struct node *n, struct value *out) {
    struct value a, b;
    bool holds;
    if (!chat_eval(r, n->a, &a) || !chat_eval(r, n->b, &b)) return false;
    r->line = n->line;
    if (n->type == N_INDEX) return chat_index(r, &a, &b, out);
    if (n->type == N_BINARY) return chat_binary(r, n->s, &a, &b, out);
    if (!chat_compare(r, n->s, &a, &b, &holds)) return false;
    *out = bool_value(holds);
    return true;
}

static bool eval_logic(struct render *r, const struct node *n, struct value *out) {
    if (!chat_eval(r, n->a, out)) return false;
    switch (n->type) {
    case N_NOT: *out = bool_value(!value_truth(out)); return true;
    case N_AND: return value_truth(out) ? chat_eval(r, n->b, out) : true;
    case N_OR: return value_truth(out) ? true : chat_eval(r, n->b, out);
    default: /* N_COND */
        if (value_truth(out)) return chat_eval(r, n->b, out);
        if (n->c) return chat_eval(r, n->c, out);
        *out = undefined_value(STR("the value of an if without else"));
        return true;
    }
}

static bool eval(struct render *r, const struct node *n, struct value *out) {
    r->line = n->line;
    switch (n->type) {
    case N_CONST_NONE: *out = NONE_VALUE; return true;
    case N_CONST_BOOL: *out = bool_value(n->flag); return true;
    case N_CONST_INT: *out = int_value(n->i); return true;
    case N_CONST_FLOAT: *out = (struct value){.kind = V_FLOAT, .f = n->f}; return true;
    case N_CONST_STR: *out = str_value(n->s); return true;
    case N_NAME: look_up(r, n->s, out); return true;
    case N_LIST:
    case N_TUPLE: return eval_list(r, n, out);
    case N_DICT: return eval_dict(r, n, out);
    case N_SLICE: return eval_slice(r, n, out);
    case N_CALL: return eval_call(r, n, out);
    case N_FILTER: return eval_filter(r, n, out);
    case N_TEST: return eval_test(r, n, out);
    case N_NEGATE:
    case N_PLUS: return eval_sign(r, n, out);
    case N_CHAIN: return eval_chain(r, n, out);
    case N_NOT:
    case N_AND:
    case N_OR:
    case N_COND: return eval_logic(r, n, out);
    case N_INDEX:
    case N_BINARY:
    case N_COMPARE: return eval_two(r, n, out);
    default: break; /* N_ATTR */
    }
    struct value v;
    if (!chat_eval(r, n->a, &v)) return false;
    r->line = n->line;
    return chat_attribute(r, &v, n->s, out);
}

bool chat_eval(struct render *r, const struct node *n, struct value *out) {
    if (!chat_enter(r) || !chat_step(r, 0)) return false;
    bool ok = eval(r, n, out);
    r->depth--;
    return ok;
}
