/* The Jinja filters and tests that chat templates use. */
#include <math.h>
#include <stdlib.h>

#include "lib/chat/chat_internal.h"

/* ---- filters ---- */

typedef bool filter_fn(struct render *r, const struct value *v, const struct call_args *a, struct value *out);

/* Applies a string method as a filter, to the printed value. */
static bool as_method(struct render *r, struct str name, const struct value *v, const struct call_args *a,
                      struct value *out) {
    struct method m = {.name = name, .self = {.kind = V_STR}};
    return value_string(r, v, &m.self.s) && chat_call_method(r, &m, a, out);
}
static bool filter_trim(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    return as_method(r, STR("strip"), v, a, out);
}
static bool filter_upper(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    return as_method(r, STR("upper"), v, a, out);
}
static bool filter_lower(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    return as_method(r, STR("lower"), v, a, out);
}
static bool filter_title(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    struct str s;
    (void)a;
    return value_string(r, v, &s) && chat_change_case(r, s, TITLE_FILTER, out);
}
static bool filter_capitalize(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    return as_method(r, STR("capitalize"), v, a, out);
}
static bool filter_replace(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    return as_method(r, STR("replace"), v, a, out);
}

static bool filter_string(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    (void)a;
    out->kind = V_STR;
    return value_string(r, v, &out->s);
}

static bool filter_same(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    (void)r, (void)a;
    *out = *v;
    return true;
}

static bool filter_length(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    (void)a;
    *out = int_value(0);
    switch (v->kind) {
    case V_UNDEFINED: return true;
    case V_STR: out->i = (int64_t)str_length(v->s); return chat_step(r, v->s.n);
    case V_LIST: out->i = (int64_t)v->list->n; return true;
    case V_DICT: out->i = (int64_t)v->dict->n; return true;
    default: return chat_fail(r, "%s has no length", value_kind(v));
    }
}

static bool filter_tojson(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    const struct value *indent = arg_find(a, 1, "indent"), *ascii = arg_find(a, 0, "ensure_ascii");
    const struct value *separators = arg_find(a, 2, "separators"), *sort = arg_find(a, 3, "sort_keys");
    struct json_style style = {.indent = -1, .ascii = ascii && value_truth(ascii), .sort = sort && value_truth(sort)};
    struct buf text = {0};
    if (indent && indent->kind != V_NONE) {
        if (indent->kind != V_INT || indent->i < 0 || indent->i > 64) return chat_fail(r, "an indent from 0 to 64");
        style.indent = (int)indent->i;
    }
    style.item = style.indent < 0 ? STR(", ") : STR(",");
    style.key = STR(": ");
    if (separators && separators->kind != V_NONE) {
        const struct list *l = separators->kind == V_LIST ? separators->list : NULL;
        if (!l || l->n != 2 || l->items[0].kind != V_STR || l->items[1].kind != V_STR)
            return chat_fail(r, "separators are two strings");
        style.item = l->items[0].s;
        style.key = l->items[1].s;
    }
    out->kind = V_STR;
    bool ok = value_json(r, v, &style, &text) && chat_copy(r, text.data, text.len, &out->s);
    buf_release(&text);
    return ok;
}

static bool filter_default(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    const struct value *other = arg_find(a, 0, "default_value"), *falsy = arg_find(a, 1, "boolean");
    bool use = v->kind == V_UNDEFINED || (falsy && value_truth(falsy) && !value_truth(v));
    (void)r;
    *out = use ? (other ? *other : str_value(STR(""))) : *v;
    return true;
}

static bool filter_items(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    struct method m = {.self = *v, .name = STR("items")};
    if (v->kind == V_UNDEFINED) return list_new(r, out, 0);
    if (v->kind != V_DICT) return chat_fail(r, "items of %s", value_kind(v));
    return chat_call_method(r, &m, a, out);
}

static bool filter_first(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    struct list *l;
    (void)a;
    if (!value_items(r, v, &l)) return false;
    *out = l->n ? l->items[0] : undefined_value(STR("the first item of nothing"));
    return true;
}

static bool filter_last(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    struct list *l;
    (void)a;
    if (!value_items(r, v, &l)) return false;
    *out = l->n ? l->items[l->n - 1] : undefined_value(STR("the last item of nothing"));
    return true;
}

static bool filter_list(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    struct list *l;
    (void)a;
    if (!value_items(r, v, &l) || !list_new(r, out, l->n)) return false;
    for (size_t i = 0; i < l->n; i++)
        if (!list_push(r, out->list, l->items[i])) return false;
    return true;
}

static bool filter_reverse(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    const struct value part[3] = {NONE_VALUE, NONE_VALUE, int_value(-1)};
    (void)a;
    return chat_slice(r, v, part, out);
}

static bool attribute_path(struct render *r, const struct value *v, struct str path, struct value *out) {
    *out = *v;
    while (path.n) {
        const char *dot = memchr(path.p, '.', path.n);
        struct value key = str_value((struct str){path.p, dot ? (size_t)(dot - path.p) : path.n}), of = *out;
        if (!chat_index(r, &of, &key, out)) return false;
        path = dot ? (struct str){dot + 1, path.n - (size_t)(dot + 1 - path.p)} : (struct str){path.p, 0};
    }
    return true;
}

static bool filter_join(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    struct list *l;
    struct str between, attribute;
    struct value item, parts;
    if (!arg_str(r, a, 0, "d", STR(""), &between) || !arg_str(r, a, 1, "attribute", STR(""), &attribute) ||
        !value_items(r, v, &l))
        return false;
    if (!attribute.n) return chat_join(r, l, between, out);
    if (!list_new(r, &parts, l->n)) return false;
    for (size_t i = 0; i < l->n; i++)
        if (!attribute_path(r, &l->items[i], attribute, &item) || !list_push(r, parts.list, item)) return false;
    return chat_join(r, parts.list, between, out);
}

static bool filter_int(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    int64_t fallback;
    if (!arg_int(r, a, 0, "default", 0, &fallback)) return false;
    *out = int_value(fallback);
    if (v->kind == V_INT || v->kind == V_BOOL) out->i = v->kind == V_INT ? v->i : v->flag;
    double f = v->kind == V_FLOAT ? v->f : NAN;
    if (v->kind == V_STR) {
        struct str copy, text = str_strip(v->s, NULL, STRIP_LEFT | STRIP_RIGHT);
        if (!chat_copy(r, text.p, text.n, &copy)) return false;
        if (!parse_f64(copy.p, &f)) f = NAN;
    }
    if (fabs(f) < 9e15) out->i = (int64_t)f;
    return true;
}

static bool filter_float(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    const struct value *fallback = arg_find(a, 0, "default");
    *out = (struct value){.kind = V_FLOAT, .f = 0};
    if (fallback) *out = *fallback;
    if (value_is_number(v)) *out = (struct value){.kind = V_FLOAT, .f = value_number(v)};
    if (v->kind == V_STR) {
        double f;
        struct str copy, text = str_strip(v->s, NULL, STRIP_LEFT | STRIP_RIGHT);
        if (!chat_copy(r, text.p, text.n, &copy)) return false;
        if (parse_f64(copy.p, &f)) *out = (struct value){.kind = V_FLOAT, .f = f};
    }
    return true;
}

static bool filter_abs(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    (void)a;
    if (v->kind != V_INT && v->kind != V_FLOAT) return chat_fail(r, "abs of %s", value_kind(v));
    *out = *v;
    if (v->kind == V_FLOAT) out->f = fabs(v->f);
    if (v->kind == V_INT && v->i < 0 && __builtin_sub_overflow((int64_t)0, v->i, &out->i))
        return chat_fail(r, "an integer out of range");
    return true;
}

/* select, reject, selectattr, rejectattr: keeps the items for which a test holds, or does not. */
static bool select_items(struct render *r, const struct value *v, const struct call_args *a, bool attribute,
                         bool wanted, struct value *out) {
    struct list *l;
    struct str path = {NULL, 0}, test = {NULL, 0};
    if (attribute && (!a->n || !arg_str(r, a, 0, "attribute", path, &path)))
        return a->n ? false : chat_fail(r, "selectattr and rejectattr need an attribute");
    if (!arg_str(r, a, attribute, "test", test, &test) || !list_new(r, out, 0)) return false;
    if (!value_truth(v)) return true; /* Jinja does not iterate over none, either */
    if (!value_items(r, v, &l)) return false;
    if (test.n && !chat_has_test(test))
        return chat_fail(r, "the test '%.*s' is not supported", (int)(test.n < 60 ? test.n : 60), test.p);
    size_t skip = a->n < (size_t)attribute + 1 ? a->n : (size_t)attribute + 1;
    const struct call_args rest = {.args = a->args + skip, .n = a->n - skip};
    for (size_t i = 0; i < l->n; i++) {
        struct value item;
        bool holds;
        if (!attribute_path(r, &l->items[i], path, &item)) return false;
        holds = value_truth(&item);
        if (test.n && !chat_test(r, test, &item, &rest, &holds)) return false;
        if (holds == wanted && !list_push(r, out->list, l->items[i])) return false;
    }
    return true;
}
static bool filter_select(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    return select_items(r, v, a, false, true, out);
}
static bool filter_reject(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    return select_items(r, v, a, false, false, out);
}
static bool filter_selectattr(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    return select_items(r, v, a, true, true, out);
}
static bool filter_rejectattr(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    return select_items(r, v, a, true, false, out);
}

static bool filter_map(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    struct list *l;
    struct str path, name;
    const struct value *fallback = a->n ? NULL : arg_find(a, SIZE_MAX, "default");
    if (!arg_str(r, a, SIZE_MAX, "attribute", STR(""), &path) || !arg_str(r, a, 0, "", STR(""), &name) ||
        !list_new(r, out, 0))
        return false;
    if (!value_truth(v)) return true;
    if (!value_items(r, v, &l)) return false;
    if (!path.n == !name.n) return chat_fail(r, "map needs either a filter or attribute=");
    if (name.n && !chat_has_filter(name))
        return chat_fail(r, "the filter '%.*s' is not supported", (int)(name.n < 60 ? name.n : 60), name.p);
    const struct call_args rest = {.args = a->args + 1, .n = a->n ? a->n - 1 : 0};
    for (size_t i = 0; i < l->n; i++) {
        struct value item;
        if (path.n ? !attribute_path(r, &l->items[i], path, &item) : !chat_filter(r, name, &l->items[i], &rest, &item))
            return false;
        if (item.kind == V_UNDEFINED && fallback) item = *fallback;
        if (!list_push(r, out->list, item)) return false;
    }
    return true;
}

static bool filter_unique(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    struct list *l;
    (void)a;
    if (!value_items(r, v, &l) || !list_new(r, out, 0)) return false;
    for (size_t i = 0; i < l->n; i++) {
        bool seen;
        if (!value_contains(r, &l->items[i], out, &seen)) return false;
        if (!seen && !list_push(r, out->list, l->items[i])) return false;
    }
    return true;
}

/* ---- filters that compare ---- */

/* The sort key of an item: itself or its attribute; strings in lower case unless case_counts. */
static bool order_key(struct render *r, const struct value *v, struct str attribute, bool case_counts,
                      struct value *out) {
    struct value of;
    if (!attribute_path(r, v, attribute, &of)) return false;
    *out = of;
    return case_counts || of.kind != V_STR || chat_change_case(r, of.s, LOWER, out);
}

static bool order_options(struct render *r, const struct call_args *a, size_t at_case, size_t at_attribute,
                          bool *case_counts, struct str *attribute) {
    const struct value *flag = arg_find(a, at_case, "case_sensitive");
    const struct value *path = arg_find(a, at_attribute, "attribute");
    *case_counts = flag && value_truth(flag);
    *attribute = (struct str){NULL, 0};
    if (!path || path->kind == V_NONE) return true;
    if (!arg_str(r, a, at_attribute, "attribute", *attribute, attribute)) return false;
    return !memchr(attribute->p, ',', attribute->n) || chat_fail(r, "an order by several attributes");
}

/* Python's min and max: of equal items the first. */
static bool extreme(struct render *r, const struct value *v, const struct call_args *a, const char *op,
                    struct value *out) {
    struct list *l;
    struct str attribute;
    struct value best, key;
    bool case_counts, better;
    if (!order_options(r, a, 0, 1, &case_counts, &attribute) || !value_items(r, v, &l)) return false;
    *out = undefined_value(STR("an extreme of nothing"));
    for (size_t i = 0; i < l->n; i++) {
        if (!order_key(r, &l->items[i], attribute, case_counts, &key)) return false;
        better = i == 0;
        if (i && !chat_compare(r, (struct str){op, 1}, &key, &best, &better)) return false;
        if (better) best = key, *out = l->items[i];
    }
    return true;
}
static bool filter_min(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    return extreme(r, v, a, "<", out);
}
static bool filter_max(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    return extreme(r, v, a, ">", out);
}

/* Insertion sort, so that equal items keep their order, even in reverse; each comparison counts as a step. */
static bool sort_items(struct render *r, struct list *items, struct list *keys, bool reverse) {
    for (size_t i = 1; i < items->n; i++) {
        struct value item = items->items[i], key = keys->items[i];
        size_t at = i;
        for (; at; at--) {
            bool before;
            if (!chat_step(r, 0) ||
                !chat_compare(r, reverse ? STR(">") : STR("<"), &key, &keys->items[at - 1], &before))
                return false;
            if (!before) break;
            items->items[at] = items->items[at - 1];
            keys->items[at] = keys->items[at - 1];
        }
        items->items[at] = item;
        keys->items[at] = key;
    }
    return true;
}

static bool filter_sort(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    const struct value *reverse = arg_find(a, 0, "reverse");
    struct str attribute;
    struct value keys, key;
    bool case_counts;
    if (!order_options(r, a, 1, 2, &case_counts, &attribute) || !filter_list(r, v, &(struct call_args){0}, out) ||
        !list_new(r, &keys, out->list->n))
        return false;
    for (size_t i = 0; i < out->list->n; i++)
        if (!order_key(r, &out->list->items[i], attribute, case_counts, &key) || !list_push(r, keys.list, key))
            return false;
    return sort_items(r, out->list, keys.list, reverse && value_truth(reverse));
}

/* Pairs of a dictionary, sorted by key or by value. */
static bool filter_dictsort(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    const struct value *flag = arg_find(a, 0, "case_sensitive"), *reverse = arg_find(a, 2, "reverse");
    struct str by, none = {NULL, 0};
    struct value keys, key;
    if (v->kind != V_DICT) return chat_fail(r, "dictsort of %s", value_kind(v));
    if (!arg_str(r, a, 1, "by", STR("key"), &by)) return false;
    if (!str_is(by, "key") && !str_is(by, "value")) return chat_fail(r, "dictsort is by key or by value");
    if (!filter_items(r, v, &(struct call_args){0}, out) || !list_new(r, &keys, out->list->n)) return false;
    for (size_t i = 0; i < out->list->n; i++) {
        const struct value *pair = out->list->items[i].list->items;
        if (!order_key(r, &pair[str_is(by, "value")], none, flag && value_truth(flag), &key) ||
            !list_push(r, keys.list, key))
            return false;
    }
    return sort_items(r, out->list, keys.list, reverse && value_truth(reverse));
}

/* Indents all lines except the first and empty ones. */
static bool filter_indent(struct render *r, const struct value *v, const struct call_args *a, struct value *out) {
    int64_t width;
    const struct value *first = arg_find(a, 1, "first"), *blank = arg_find(a, 2, "blank");
    struct str s;
    struct buf text = {0};
    if (!value_string(r, v, &s) || !arg_int(r, a, 0, "width", 4, &width)) return false;
    if (width < 0 || width > 64) return chat_fail(r, "an indent from 0 to 64");
    bool ok = true;
    for (size_t at = 0; ok && at < s.n;) {
        const char *nl = memchr(s.p + at, '\n', s.n - at);
        size_t end = nl ? (size_t)(nl - s.p) : s.n;
        bool wanted = at ? end > at || (blank && value_truth(blank)) : first && value_truth(first);
        if (wanted) ok = buf_printf(&text, r->e, "%*s", (int)width, "") == 0;
        struct value line = str_value((struct str){s.p + at, end + (nl != NULL) - at});
        ok = ok && value_print(r, &line, &text);
        at = end + 1;
    }
    out->kind = V_STR;
    ok = ok && chat_copy(r, text.data, text.len, &out->s);
    buf_release(&text);
    return ok;
}

static const struct {
    const char *name;
    filter_fn *run;
    size_t max;
    const char *names; /* names of its arguments */
} filters[] = {
    {"abs", filter_abs, 0, ""},
    {"capitalize", filter_capitalize, 0, ""},
    {"count", filter_length, 0, ""},
    {"d", filter_default, 2, "default_value boolean"},
    {"default", filter_default, 2, "default_value boolean"},
    {"dictsort", filter_dictsort, 3, "case_sensitive by reverse"},
    {"first", filter_first, 0, ""},
    {"float", filter_float, 1, "default"},
    {"indent", filter_indent, 3, "width first blank"},
    {"int", filter_int, 1, "default"},
    {"items", filter_items, 0, ""},
    {"join", filter_join, 2, "d attribute"},
    {"last", filter_last, 0, ""},
    {"length", filter_length, 0, ""},
    {"list", filter_list, 0, ""},
    {"lower", filter_lower, 0, ""},
    {"map", filter_map, 8, "attribute default"},
    {"max", filter_max, 2, "case_sensitive attribute"},
    {"min", filter_min, 2, "case_sensitive attribute"},
    {"reject", filter_reject, 8, ""},
    {"rejectattr", filter_rejectattr, 8, ""},
    {"replace", filter_replace, 3, "count"},
    {"reverse", filter_reverse, 0, ""},
    {"safe", filter_same, 0, ""},
    {"select", filter_select, 8, ""},
    {"selectattr", filter_selectattr, 8, ""},
    {"sort", filter_sort, 3, "reverse case_sensitive attribute"},
    {"string", filter_string, 0, ""},
    {"title", filter_title, 0, ""},
    {"tojson", filter_tojson, 4, "ensure_ascii indent separators sort_keys"},
    {"trim", filter_trim, 1, "chars"},
    {"unique", filter_unique, 0, ""},
    {"upper", filter_upper, 0, ""},
};

static size_t find_filter(struct str name) {
    size_t i = 0;
    while (i < COUNT_OF(filters) && !str_is(name, filters[i].name)) i++;
    return i;
}
bool chat_has_filter(struct str name) {
    return find_filter(name) < COUNT_OF(filters);
}

bool chat_filter(struct render *r, struct str name, const struct value *v, const struct call_args *a,
                 struct value *out) {
    size_t i = find_filter(name);
    if (!call_check(r, a, "the filter", name, filters[i].max, filters[i].names) || !chat_enter(r)) return false;
    bool ok = filters[i].run(r, v, a, out);
    r->depth--;
    return ok;
}

/* ---- tests ---- */

enum test {
    TEST_BOOLEAN,
    TEST_CALLABLE,
    TEST_DEFINED,
    TEST_DIVISIBLE,
    TEST_EQUAL,
    TEST_EVEN,
    TEST_FALSE,
    TEST_FLOAT,
    TEST_GREATER,
    TEST_GREATER_EQUAL,
    TEST_IN,
    TEST_INTEGER,
    TEST_ITERABLE,
    TEST_LESS,
    TEST_LESS_EQUAL,
    TEST_MAPPING,
    TEST_NONE,
    TEST_NUMBER,
    TEST_ODD,
    TEST_SEQUENCE,
    TEST_STRING,
    TEST_TRUE,
    TEST_UNDEFINED,
    TEST_UNEQUAL,
};
static const struct {
    const char *name;
    enum test test;
    size_t n; /* number of arguments */
} tests[] = {
    {"boolean", TEST_BOOLEAN, 0},
    {"callable", TEST_CALLABLE, 0},
    {"defined", TEST_DEFINED, 0},
    {"divisibleby", TEST_DIVISIBLE, 1},
    {"eq", TEST_EQUAL, 1},
    {"equalto", TEST_EQUAL, 1},
    {"even", TEST_EVEN, 0},
    {"false", TEST_FALSE, 0},
    {"float", TEST_FLOAT, 0},
    {"ge", TEST_GREATER_EQUAL, 1},
    {"greaterthan", TEST_GREATER, 1},
    {"gt", TEST_GREATER, 1},
    {"in", TEST_IN, 1},
    {"integer", TEST_INTEGER, 0},
    {"iterable", TEST_ITERABLE, 0},
    {"le", TEST_LESS_EQUAL, 1},
    {"lessthan", TEST_LESS, 1},
    {"lt", TEST_LESS, 1},
    {"mapping", TEST_MAPPING, 0},
    {"ne", TEST_UNEQUAL, 1},
    {"none", TEST_NONE, 0},
    {"number", TEST_NUMBER, 0},
    {"odd", TEST_ODD, 0},
    {"sequence", TEST_SEQUENCE, 0},
    {"string", TEST_STRING, 0},
    {"true", TEST_TRUE, 0},
    {"undefined", TEST_UNDEFINED, 0},
};

static size_t find_test(struct str name) {
    size_t i = 0;
    while (i < COUNT_OF(tests) && !str_is(name, tests[i].name)) i++;
    return i;
}
bool chat_has_test(struct str name) {
    return find_test(name) < COUNT_OF(tests);
}

static bool divisible(struct render *r, const struct value *v, int64_t by, int64_t remainder, bool *out) {
    if (v->kind != V_INT || !by) return chat_fail(r, "divisibility of %s", value_kind(v));
    *out = by == -1 || llabs(v->i % by) == remainder;
    return true;
}

bool chat_test(struct render *r, struct str name, const struct value *v, const struct call_args *a, bool *out) {
    size_t i = find_test(name);
    enum kind k = v->kind;
    bool group = k == V_STR || k == V_UNDEFINED || k == V_LIST || (k == V_DICT && !v->flag);
    int64_t by;
    if (a->n != tests[i].n || a->n_kwargs)
        return chat_fail(r, "the test '%s' takes %zu arguments", tests[i].name, tests[i].n);
    *out = false;
    switch (tests[i].test) {
    case TEST_BOOLEAN: *out = k == V_BOOL; break;
    case TEST_CALLABLE: *out = k == V_MACRO || k == V_FUNCTION || k == V_METHOD || k == V_UNDEFINED; break;
    case TEST_DEFINED: *out = k != V_UNDEFINED; break;
    case TEST_DIVISIBLE: return arg_int(r, a, 0, "num", 1, &by) && divisible(r, v, by, 0, out);
    case TEST_EQUAL: return chat_compare(r, STR("=="), v, &a->args[0], out);
    case TEST_EVEN: return divisible(r, v, 2, 0, out);
    case TEST_FALSE: *out = k == V_BOOL && !v->flag; break;
    case TEST_FLOAT: *out = k == V_FLOAT; break;
    case TEST_GREATER: return chat_compare(r, STR(">"), v, &a->args[0], out);
    case TEST_GREATER_EQUAL: return chat_compare(r, STR(">="), v, &a->args[0], out);
    case TEST_IN: return value_contains(r, v, &a->args[0], out);
    case TEST_INTEGER: *out = k == V_INT; break;
    case TEST_ITERABLE: *out = group || k == V_LOOP; break;
    case TEST_LESS: return chat_compare(r, STR("<"), v, &a->args[0], out);
    case TEST_LESS_EQUAL: return chat_compare(r, STR("<="), v, &a->args[0], out);
    case TEST_MAPPING: *out = k == V_DICT && !v->flag; break;
    case TEST_NONE: *out = k == V_NONE; break;
    case TEST_NUMBER: *out = value_is_number(v); break;
    case TEST_ODD: return divisible(r, v, 2, 1, out);
    case TEST_SEQUENCE: *out = group; break;
    case TEST_STRING: *out = k == V_STR; break;
    case TEST_TRUE: *out = k == V_BOOL && v->flag; break;
    case TEST_UNDEFINED: *out = k == V_UNDEFINED; break;
    case TEST_UNEQUAL: return chat_compare(r, STR("!="), v, &a->args[0], out);
    }
    return true;
}
