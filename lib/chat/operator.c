/* Operators, comparisons and slices of values, with Python's semantics. */
#include <math.h>

#include "lib/chat/chat_internal.h"

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

/* Python's // and %: round toward minus infinity; the remainder has the sign of the divisor. */
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

/* Clips a bound of a slice like Python. */
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
            return chat_fail(r, "the step of a slice is not an integer other than 0");
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

bool chat_join(struct render *r, const struct list *items, struct str between, struct value *out) {
    struct buf text = {0};
    const struct value separator = str_value(between);
    bool ok = true;
    for (size_t i = 0; ok && i < items->n; i++)
        ok = (!i || value_print(r, &separator, &text)) && value_print(r, &items->items[i], &text);
    out->kind = V_STR;
    ok = ok && chat_copy(r, text.data, text.len, &out->s);
    buf_release(&text);
    return ok;
}
