/* Expressions: a node of the tree to a value. */
#include <math.h>

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

/* ---- operators ---- */

static bool join_lists(struct render *r, const struct value *a, const struct value *b, struct value *out) {
    if (!list_new(r, out, a->list->n + b->list->n)) return false;
    out->flag = a->flag;
    for (size_t i = 0; i < a->list->n; i++)
        if (!list_push(r, out->list, a->list->items[i])) return false;
    for (size_t i = 0; i < b->list->n; i++)
        if (!list_push(r, out->list, b->list->items[i])) return false;
    return true;
}

static bool join_strings(struct render *r, struct str a, struct str b, struct value *out) {
    char *text = chat_alloc(r, a.n + b.n + 1, 1);
    if (!text || !chat_step(r, a.n + b.n)) return false;
    if (a.n) memcpy(text, a.p, a.n);
    if (b.n) memcpy(text + a.n, b.p, b.n);
    *out = str_value((struct str){text, a.n + b.n});
    return true;
}

static bool repeat_string(struct render *r, struct str s, int64_t times, struct value *out) {
    uint64_t n;
    if (times < 0) times = 0;
    if (!u64_mul(s.n, (uint64_t)times, &n)) n = CHAT_MAX_MEMORY;
    char *text = chat_alloc(r, n, 1);
    if (!text || !chat_step(r, n)) return false;
    for (size_t i = 0; i < n; i += s.n) memcpy(text + i, s.p, s.n);
    *out = str_value((struct str){text, n});
    return true;
}

/* Python's // and %: toward minus infinity, the sign of the divisor. */
static bool whole_numbers(struct render *r, char op, int64_t a, int64_t b, struct value *out) {
    int64_t v = 0;
    bool overflow = false;
    if ((op == 'd' || op == '%') && b == -1) { /* INT64_MIN / -1 has no result */
        overflow = op == 'd' && __builtin_sub_overflow((int64_t)0, a, &v);
    } else if (op == 'd' || op == '%') {
        int64_t q = a / b, m = a % b;
        if (m && (m < 0) != (b < 0)) q--, m += b;
        v = op == 'd' ? q : m;
    } else {
        overflow = op == '+'   ? __builtin_add_overflow(a, b, &v)
                   : op == '-' ? __builtin_sub_overflow(a, b, &v)
                               : __builtin_mul_overflow(a, b, &v);
    }
    *out = int_value(v);
    return !overflow || chat_fail(r, "an integer out of range");
}

static bool numbers(struct render *r, struct str op, const struct value *a, const struct value *b, struct value *out) {
    double x = value_number(a), y = value_number(b), v;
    char c = op.n == 2 ? 'd' : op.p[0];
    bool divides = c == '/' || c == 'd' || c == '%';
    if (divides && y == 0) return chat_fail(r, "division by zero");
    if (c != '/' && a->kind != V_FLOAT && b->kind != V_FLOAT)
        return whole_numbers(r, c, a->kind == V_BOOL ? a->flag : a->i, b->kind == V_BOOL ? b->flag : b->i, out);
    switch (c) {
    case '+': v = x + y; break;
    case '-': v = x - y; break;
    case '*': v = x * y; break;
    case '/': v = x / y; break;
    case 'd': v = floor(x / y); break;
    default: v = x - y * floor(x / y); break;
    }
    *out = (struct value){.kind = V_FLOAT, .f = v};
    return true;
}

bool chat_binary(struct render *r, struct str op, const struct value *a, const struct value *b, struct value *out) {
    struct str s, t;
    if (str_is(op, "~")) return value_string(r, a, &s) && value_string(r, b, &t) && join_strings(r, s, t, out);
    if (value_is_number(a) && value_is_number(b)) return numbers(r, op, a, b, out);
    if (str_is(op, "+") && a->kind == V_STR && b->kind == V_STR) return join_strings(r, a->s, b->s, out);
    if (str_is(op, "+") && a->kind == V_LIST && b->kind == V_LIST && a->flag == b->flag)
        return join_lists(r, a, b, out);
    if (str_is(op, "*") && a->kind == V_STR && b->kind == V_INT) return repeat_string(r, a->s, b->i, out);
    if (str_is(op, "*") && a->kind == V_INT && b->kind == V_STR) return repeat_string(r, b->s, a->i, out);
    const struct value *u = a->kind == V_UNDEFINED ? a : b->kind == V_UNDEFINED ? b : NULL;
    if (u) return chat_fail(r, "'%.*s' is undefined", (int)(u->s.n < 100 ? u->s.n : 100), u->s.p);
    return chat_fail(r, "the operator %.*s between %s and %s is not supported", (int)op.n, op.p, value_kind(a),
                     value_kind(b));
}

static int compare_strings(struct str a, struct str b) {
    size_t n = a.n < b.n ? a.n : b.n;
    int c = n ? memcmp(a.p, b.p, n) : 0;
    return c ? c : (a.n > b.n) - (a.n < b.n);
}

bool chat_compare(struct render *r, struct str op, const struct value *a, const struct value *b, bool *out) {
    if (str_is(op, "in") || str_is(op, "not in")) {
        if (!value_contains(r, a, b, out)) return false;
        *out = *out != str_is(op, "not in");
        return true;
    }
    if (str_is(op, "==") || str_is(op, "!=")) {
        *out = value_equal(r, a, b, 0) == str_is(op, "==");
        return chat_step(r, a->kind == V_STR ? a->s.n : 0);
    }
    int c;
    if (value_is_number(a) && value_is_number(b)) {
        double x = value_number(a), y = value_number(b);
        c = a->kind == V_INT && b->kind == V_INT ? (a->i > b->i) - (a->i < b->i) : (x > y) - (x < y);
    } else if (a->kind == V_STR && b->kind == V_STR) {
        c = compare_strings(a->s, b->s);
    } else {
        return chat_fail(r, "%s and %s have no order", value_kind(a), value_kind(b));
    }
    *out = op.p[0] == '<' ? c < 0 : c > 0;
    if (op.n == 2 && c == 0) *out = true;
    return true;
}

/* ---- slices ---- */

/* A bound of a slice, as Python clips it. */
static bool slice_bound(struct render *r, const struct value *v, int64_t n, int64_t step, int64_t missing,
                        int64_t *out) {
    *out = missing;
    if (v->kind == V_NONE) return true;
    if (v->kind != V_INT) return chat_fail(r, "%s as a bound of a slice", value_kind(v));
    int64_t i = v->i < 0 ? v->i + n : v->i, low = step < 0 ? -1 : 0, high = step < 0 ? n - 1 : n;
    *out = i < low ? low : i > high ? high : i;
    return true;
}

bool chat_slice(struct render *r, const struct value *v, const struct value part[3], struct value *out) {
    struct list *items;
    int64_t step = 1, first, end;
    if (v->kind != V_STR && v->kind != V_LIST) return chat_fail(r, "a slice of %s", value_kind(v));
    if (part[2].kind != V_NONE) {
        if (part[2].kind != V_INT || !part[2].i || part[2].i == INT64_MIN)
            return chat_fail(r, "the step of a slice is no integer other than 0");
        step = part[2].i;
    }
    if (!chat_step(r, v->kind == V_STR ? v->s.n : 0)) return false;
    int64_t n = v->kind == V_STR ? (int64_t)str_length(v->s) : (int64_t)v->list->n;
    if (!slice_bound(r, &part[0], n, step, step < 0 ? n - 1 : 0, &first) ||
        !slice_bound(r, &part[1], n, step, step < 0 ? -1 : n, &end))
        return false;
    if (v->kind == V_STR && step == 1) {
        *out = str_value(str_slice(v->s, (size_t)first, end > first ? (size_t)(end - first) : 0));
        return true;
    }
    if (!value_items(r, v, &items) || !list_new(r, out, 0)) return false;
    out->flag = v->flag;
    for (int64_t i = first; step > 0 ? i < end : i > end;) {
        if (!list_push(r, out->list, items->items[i])) return false;
        if (__builtin_add_overflow(i, step, &i)) break;
    }
    if (v->kind == V_LIST) return true;
    struct buf text = {0};
    bool ok = true;
    for (size_t i = 0; ok && i < out->list->n; i++) ok = value_print(r, &out->list->items[i], &text);
    ok = ok && chat_copy(r, text.data, text.len, &out->s);
    out->kind = V_STR;
    buf_release(&text);
    return ok;
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
    case V_MACRO: return chat_call_macro(r, f.macro, &a, out);
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

/* ---- the rest ---- */

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
