/* Attributes and subscripts, methods of strings and dictionaries, and the functions that templates may call. */
#include <stdio.h>
#include <time.h>

#include <utf8proc.h>

#include "lib/chat/chat_internal.h"

/* ---- methods of strings ---- */

static bool strip(struct render *r, const struct method *m, const struct call_args *a, struct value *out, int sides) {
    const struct value *v = arg_find(a, 0, "chars");
    struct str chars = {NULL, 0};
    if (v && v->kind == V_NONE) v = NULL;
    if (v && !arg_str(r, a, 0, "chars", chars, &chars)) return false;
    *out = str_value(str_strip(m->self.s, v ? &chars : NULL, sides));
    return chat_step(r, m->self.s.n);
}
static bool str_strip_both(struct render *r, const struct method *m, const struct call_args *a, struct value *out) {
    return strip(r, m, a, out, STRIP_LEFT | STRIP_RIGHT);
}
static bool str_lstrip(struct render *r, const struct method *m, const struct call_args *a, struct value *out) {
    return strip(r, m, a, out, STRIP_LEFT);
}
static bool str_rstrip(struct render *r, const struct method *m, const struct call_args *a, struct value *out) {
    return strip(r, m, a, out, STRIP_RIGHT);
}

/* Returns the position of `what` in s from `at` on, or s.n. */
static size_t find(struct str s, size_t at, struct str what) {
    const char *p = what.n <= s.n - at ? memmem(s.p + at, s.n - at, what.p, what.n) : NULL;
    return p ? (size_t)(p - s.p) : s.n;
}

/* Splits at runs of white space, ignoring it at the ends. */
static bool split_words(struct render *r, struct str s, int64_t max, struct list *to) {
    s = str_strip(s, NULL, STRIP_LEFT);
    for (; s.n && max != 0; max -= max > 0) { /* negative: no limit */
        size_t n = 0;
        struct str rest = s;
        while (rest.n && str_strip(rest, NULL, STRIP_LEFT).n == rest.n) {
            for (n++; n < s.n && (s.p[n] & 0xc0) == 0x80;) n++;
            rest = (struct str){s.p + n, s.n - n};
            if (!chat_step(r, 0)) return false;
        }
        if (!list_push(r, to, str_value((struct str){s.p, n}))) return false;
        s = str_strip(rest, NULL, STRIP_LEFT);
    }
    s = str_strip(s, NULL, STRIP_RIGHT);
    return !s.n || list_push(r, to, str_value(s));
}

static bool str_split(struct render *r, const struct method *m, const struct call_args *a, struct value *out) {
    const struct value *sep = arg_find(a, 0, "sep");
    struct str s = m->self.s, by;
    int64_t max;
    if (!arg_int(r, a, 1, "maxsplit", -1, &max) || !list_new(r, out, 0) || !chat_step(r, s.n)) return false;
    if (!sep || sep->kind == V_NONE) return split_words(r, s, max, out->list);
    if (!arg_str(r, a, 0, "sep", s, &by)) return false;
    if (!by.n) return chat_fail(r, "split at an empty string");
    size_t at = 0;
    for (; max != 0; max -= max > 0) {
        size_t end = find(s, at, by);
        if (end == s.n) break;
        if (!list_push(r, out->list, str_value((struct str){s.p + at, end - at}))) return false;
        at = end + by.n;
    }
    return list_push(r, out->list, str_value((struct str){s.p + at, s.n - at}));
}

static bool str_splitlines(struct render *r, const struct method *m, const struct call_args *a, struct value *out) {
    struct str s = m->self.s;
    (void)a;
    if (!list_new(r, out, 0) || !chat_step(r, s.n)) return false;
    for (size_t at = 0, end; at < s.n; at = end) {
        size_t n = 0;
        while (at + n < s.n && s.p[at + n] != '\n' && s.p[at + n] != '\r') n++;
        end = at + n;
        if (end < s.n) end += s.p[end] == '\r' && end + 1 < s.n && s.p[end + 1] == '\n' ? 2 : 1;
        if (!list_push(r, out->list, str_value((struct str){s.p + at, n}))) return false;
    }
    return true;
}

/* Does s begin (or end) with the string v, or with one of a tuple? */
static bool has_edge(struct render *r, struct str s, const struct value *v, bool end, bool *out) {
    *out = false;
    if (v->kind == V_LIST) {
        for (size_t i = 0; i < v->list->n && !*out; i++) {
            const struct value *one = &v->list->items[i];
            if (one->kind == V_LIST) return chat_fail(r, "a list where strings are expected");
            if (!has_edge(r, s, one, end, out)) return false;
        }
        return true;
    }
    if (v->kind != V_STR) return chat_fail(r, "%s where a string is expected", value_kind(v));
    *out = v->s.n <= s.n && (!v->s.n || !memcmp(end ? s.p + s.n - v->s.n : s.p, v->s.p, v->s.n));
    return chat_step(r, v->s.n);
}

static bool edge(struct render *r, const struct method *m, const struct call_args *a, struct value *out, bool end) {
    bool holds;
    if (a->n != 1) return chat_fail(r, "'%.*s' takes one string", (int)m->name.n, m->name.p);
    if (!has_edge(r, m->self.s, &a->args[0], end, &holds)) return false;
    *out = bool_value(holds);
    return true;
}
static bool str_startswith(struct render *r, const struct method *m, const struct call_args *a, struct value *out) {
    return edge(r, m, a, out, false);
}
static bool str_endswith(struct render *r, const struct method *m, const struct call_args *a, struct value *out) {
    return edge(r, m, a, out, true);
}

static bool str_remove(struct render *r, const struct method *m, const struct call_args *a, struct value *out,
                       bool end) {
    struct value has = bool_value(false);
    if (!edge(r, m, a, &has, end)) return false;
    struct str s = m->self.s;
    size_t n = has.flag && a->args[0].kind == V_STR ? a->args[0].s.n : 0;
    *out = str_value((struct str){end ? s.p : s.p + n, s.n - n});
    return true;
}
static bool str_removeprefix(struct render *r, const struct method *m, const struct call_args *a, struct value *out) {
    return str_remove(r, m, a, out, false);
}
static bool str_removesuffix(struct render *r, const struct method *m, const struct call_args *a, struct value *out) {
    return str_remove(r, m, a, out, true);
}

static bool str_replace(struct render *r, const struct method *m, const struct call_args *a, struct value *out) {
    struct str s = m->self.s, from, to;
    int64_t count;
    struct buf text = {0};
    if (a->n < 2) return chat_fail(r, "replace needs two strings");
    if (!arg_str(r, a, 0, "old", s, &from) || !arg_str(r, a, 1, "new", s, &to) ||
        !arg_int(r, a, 2, "count", -1, &count))
        return false;
    if (!from.n) return chat_fail(r, "replace of an empty string is not supported");
    const struct value by = str_value(to);
    bool ok = true;
    for (size_t at = 0; ok; count -= count > 0) { /* negative: no limit */
        size_t end = count == 0 ? s.n : find(s, at, from);
        const struct value kept = str_value((struct str){s.p + at, end - at});
        ok = value_print(r, &kept, &text) && (end == s.n || value_print(r, &by, &text));
        if (end == s.n) break;
        at = end + from.n;
    }
    out->kind = V_STR;
    ok = ok && chat_copy(r, text.data, text.len, &out->s);
    buf_release(&text);
    return ok;
}

static bool is_cased(int32_t c) {
    utf8proc_category_t k = utf8proc_category(c);
    return k == UTF8PROC_CATEGORY_LU || k == UTF8PROC_CATEGORY_LL || k == UTF8PROC_CATEGORY_LT;
}

bool chat_change_case(struct render *r, struct str s, enum letter_case how, struct value *out) {
    char *text = chat_alloc(r, s.n + 1, 4), *to = text;
    bool begins = true;
    if (!text || !chat_step(r, s.n)) return false;
    for (size_t at = 0; at < s.n;) {
        int32_t c = 0;
        utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)s.p + at, (utf8proc_ssize_t)(s.n - at), &c);
        if (n <= 0) break;
        bool upper = how == UPPER || (how != LOWER && begins);
        /* The filter starts words after certain characters, the method after anything but a letter. */
        if (how == TITLE_FILTER)
            begins = chat_is_space(c) || (c < 0x80 && strchr("-({[<", (char)c));
        else
            begins = how == TITLE && !is_cased(c);
        to += chat_put_utf8(to, (uint32_t)(!upper         ? utf8proc_tolower(c)
                                           : how == UPPER ? utf8proc_toupper(c)
                                                          : utf8proc_totitle(c)));
        at += (size_t)n;
    }
    *out = str_value((struct str){text, (size_t)(to - text)});
    return true;
}
static bool str_upper(struct render *r, const struct method *m, const struct call_args *a, struct value *out) {
    (void)a;
    return chat_change_case(r, m->self.s, UPPER, out);
}
static bool str_lower(struct render *r, const struct method *m, const struct call_args *a, struct value *out) {
    (void)a;
    return chat_change_case(r, m->self.s, LOWER, out);
}
static bool str_title(struct render *r, const struct method *m, const struct call_args *a, struct value *out) {
    (void)a;
    return chat_change_case(r, m->self.s, TITLE, out);
}
static bool str_capitalize(struct render *r, const struct method *m, const struct call_args *a, struct value *out) {
    (void)a;
    return chat_change_case(r, m->self.s, CAPITALIZE, out);
}

static bool str_join(struct render *r, const struct method *m, const struct call_args *a, struct value *out) {
    struct list *items;
    if (a->n != 1) return chat_fail(r, "join takes one list");
    return value_items(r, &a->args[0], &items) && chat_join(r, items, m->self.s, out);
}

/* Python's str.format with the fields "{}" and "{0}", without names, conversions or formats. */
static bool put_field(struct render *r, struct str field, size_t counts[2], const struct call_args *a, struct buf *to) {
    size_t i = 0, digits = 0;
    for (; digits < field.n && digits < 3 && field.p[digits] >= '0' && field.p[digits] <= '9'; digits++)
        i = 10 * i + (size_t)(field.p[digits] - '0');
    if (digits < field.n) return chat_fail(r, "format with more than the number of an argument");
    counts[field.n != 0]++; /* without a number; with one */
    if (counts[0] && counts[1]) return chat_fail(r, "format with numbers for some arguments only");
    if (!field.n) i = counts[0] - 1;
    return i < a->n ? value_print(r, &a->args[i], to) : chat_fail(r, "format asks for an argument that is not there");
}

static bool str_format(struct render *r, const struct method *m, const struct call_args *a, struct value *out) {
    struct buf text = {0};
    struct str s = m->self.s;
    size_t counts[2] = {0, 0};
    bool ok = chat_step(r, s.n);
    for (size_t at = 0; ok && at < s.n;) {
        size_t n = 0;
        while (at + n < s.n && s.p[at + n] != '{' && s.p[at + n] != '}') n++;
        struct value part = str_value((struct str){s.p + at, n});
        ok = value_print(r, &part, &text);
        at += n;
        if (!ok || at == s.n) break;
        const char *end = memchr(s.p + at, '}', s.n - at);
        if (at + 1 < s.n && s.p[at + 1] == s.p[at]) { /* a doubled brace is literal */
            part = str_value((struct str){s.p + at, 1});
            ok = value_print(r, &part, &text);
            at += 2;
        } else if (s.p[at] == '}' || !end) {
            ok = chat_fail(r, "format with a single brace");
        } else {
            ok = put_field(r, (struct str){s.p + at + 1, (size_t)(end - s.p) - at - 1}, counts, a, &text);
            at = (size_t)(end - s.p) + 1;
        }
    }
    out->kind = V_STR;
    ok = ok && chat_copy(r, text.data, text.len, &out->s);
    buf_release(&text);
    return ok;
}

static bool str_find(struct render *r, const struct method *m, const struct call_args *a, struct value *out) {
    struct str what;
    if (!arg_str(r, a, 0, "sub", STR(""), &what) || !chat_step(r, m->self.s.n)) return false;
    size_t at = find(m->self.s, 0, what);
    bool found = at < m->self.s.n || !what.n;
    *out = int_value(found ? (int64_t)str_length((struct str){m->self.s.p, what.n ? at : 0}) : -1);
    return true;
}

static bool str_count(struct render *r, const struct method *m, const struct call_args *a, struct value *out) {
    struct str what, s = m->self.s;
    if (!arg_str(r, a, 0, "sub", STR(""), &what) || !chat_step(r, s.n)) return false;
    if (!what.n) return chat_fail(r, "count of an empty string is not supported");
    *out = int_value(0);
    for (size_t at = find(s, 0, what); at < s.n; at = find(s, at + what.n, what)) out->i++;
    return true;
}

/* ---- methods of dictionaries ---- */

static bool dict_pairs(struct render *r, const struct method *m, bool keys, bool values, struct value *out) {
    const struct dict *d = m->self.dict;
    if (!list_new(r, out, d->n)) return false;
    for (size_t i = 0; i < d->n; i++) {
        struct value pair = keys ? d->keys[i] : d->values[i];
        if (keys && values) {
            if (!list_new(r, &pair, 2)) return false;
            pair.flag = true;
            if (!list_push(r, pair.list, d->keys[i]) || !list_push(r, pair.list, d->values[i])) return false;
        }
        if (!list_push(r, out->list, pair)) return false;
    }
    return true;
}
static bool dict_items(struct render *r, const struct method *m, const struct call_args *a, struct value *out) {
    (void)a;
    return dict_pairs(r, m, true, true, out);
}
static bool dict_keys(struct render *r, const struct method *m, const struct call_args *a, struct value *out) {
    (void)a;
    return dict_pairs(r, m, true, false, out);
}
static bool dict_values(struct render *r, const struct method *m, const struct call_args *a, struct value *out) {
    (void)a;
    return dict_pairs(r, m, false, true, out);
}
static bool dict_get_method(struct render *r, const struct method *m, const struct call_args *a, struct value *out) {
    if (!a->n) return chat_fail(r, "get needs a key");
    const struct value *v = dict_find(r, m->self.dict, &a->args[0]);
    *out = v ? *v : a->n > 1 ? a->args[1] : NONE_VALUE;
    return true;
}

/* ---- the tables ---- */

typedef bool method_fn(struct render *r, const struct method *m, const struct call_args *a, struct value *out);
static const struct {
    enum kind of;
    const char *name;
    method_fn *run;
    size_t max;
    const char *names;
} methods[] = {
    {V_DICT, "get", dict_get_method, 2, ""},
    {V_DICT, "items", dict_items, 0, ""},
    {V_DICT, "keys", dict_keys, 0, ""},
    {V_DICT, "values", dict_values, 0, ""},
    {V_STR, "capitalize", str_capitalize, 0, ""},
    {V_STR, "count", str_count, 1, ""},
    {V_STR, "endswith", str_endswith, 1, ""},
    {V_STR, "find", str_find, 1, ""},
    {V_STR, "join", str_join, 1, ""},
    {V_STR, "format", str_format, 16, ""},
    {V_STR, "lower", str_lower, 0, ""},
    {V_STR, "lstrip", str_lstrip, 1, ""},
    {V_STR, "removeprefix", str_removeprefix, 1, ""},
    {V_STR, "removesuffix", str_removesuffix, 1, ""},
    {V_STR, "replace", str_replace, 3, "count"},
    {V_STR, "rstrip", str_rstrip, 1, ""},
    {V_STR, "split", str_split, 2, "sep maxsplit"},
    {V_STR, "splitlines", str_splitlines, 0, ""},
    {V_STR, "startswith", str_startswith, 1, ""},
    {V_STR, "strip", str_strip_both, 1, "chars"},
    {V_STR, "title", str_title, 0, ""},
    {V_STR, "upper", str_upper, 0, ""},
};

static size_t find_method(const struct value *v, struct str name) {
    size_t i = 0;
    if (v->kind == V_DICT && v->flag) return COUNT_OF(methods); /* a namespace */
    while (i < COUNT_OF(methods) && (methods[i].of != v->kind || !str_is(name, methods[i].name))) i++;
    return i;
}

bool chat_call_method(struct render *r, const struct method *m, const struct call_args *a, struct value *out) {
    size_t i = find_method(&m->self, m->name);
    if (i == COUNT_OF(methods))
        return chat_fail(r, "%s has no method '%.*s'", value_kind(&m->self), (int)m->name.n, m->name.p);
    return call_check(r, a, "the method", m->name, methods[i].max, methods[i].names) && methods[i].run(r, m, a, out);
}

/* ---- attributes and subscripts ---- */

static bool loop_attribute(struct render *r, const struct loop *l, struct str name, struct value *out) {
    int64_t at = (int64_t)l->at, n = (int64_t)l->items->n;
    const struct {
        const char *name;
        int64_t value;
    } numbers[] = {{"index", at + 1}, {"index0", at},      {"revindex", n - at},    {"revindex0", n - at - 1},
                   {"length", n},     {"depth", l->depth}, {"depth0", l->depth - 1}};
    for (size_t i = 0; i < COUNT_OF(numbers); i++)
        if (str_is(name, numbers[i].name)) {
            *out = int_value(numbers[i].value);
            return true;
        }
    *out = undefined_value(name);
    if (str_is(name, "first"))
        *out = bool_value(at == 0);
    else if (str_is(name, "last"))
        *out = bool_value(at + 1 == n);
    else if (str_is(name, "previtem") && at > 0)
        *out = l->items->items[at - 1];
    else if (str_is(name, "nextitem") && at + 1 < n)
        *out = l->items->items[at + 1];
    else if (!str_is(name, "previtem") && !str_is(name, "nextitem"))
        return chat_fail(r, "loop.%.*s is not supported", (int)name.n, name.p);
    return true;
}

bool chat_attribute(struct render *r, const struct value *v, struct str name, struct value *out) {
    if (v->kind == V_LOOP) return loop_attribute(r, v->loop, name, out);
    if (v->kind == V_UNDEFINED) return chat_fail(r, "'%.*s' is undefined", (int)(v->s.n < 100 ? v->s.n : 100), v->s.p);
    if (find_method(v, name) < COUNT_OF(methods)) {
        struct method *m = chat_alloc(r, 1, sizeof *m);
        if (!m) return false;
        *m = (struct method){*v, name};
        *out = (struct value){.kind = V_METHOD, .method = m};
        return true;
    }
    const struct value *member = v->kind == V_DICT ? dict_get(r, v->dict, name) : NULL;
    *out = member ? *member : undefined_value(name);
    return true;
}

bool chat_index(struct render *r, const struct value *v, const struct value *key, struct value *out) {
    if (v->kind == V_DICT && !v->flag) {
        const struct value *member = dict_find(r, v->dict, key);
        if (member) {
            *out = *member;
            return true;
        }
    }
    if (key->kind == V_STR) return chat_attribute(r, v, key->s, out);
    if (v->kind == V_UNDEFINED) return chat_fail(r, "'%.*s' is undefined", (int)(v->s.n < 100 ? v->s.n : 100), v->s.p);
    *out = undefined_value(STR("an item that is not there"));
    if ((v->kind != V_LIST && v->kind != V_STR) || key->kind != V_INT) return true;
    if (!chat_step(r, v->kind == V_STR ? v->s.n : 0)) return false;
    int64_t n = v->kind == V_STR ? (int64_t)str_length(v->s) : (int64_t)v->list->n;
    int64_t i = key->i < 0 ? key->i + n : key->i;
    if (i < 0 || i >= n) return true;
    *out = v->kind == V_LIST ? v->list->items[i] : str_value(str_slice(v->s, (size_t)i, 1));
    return true;
}

/* ---- functions ---- */

static bool read_date(const char *date, struct tm *out) {
    int end = 0, year, month, day;
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    static const char form[] = "0000-00-00";
    if (strlen(date) != 10) return false;
    for (int i = 0; i < 10; i++)
        if (form[i] == '-' ? date[i] != '-' : date[i] < '0' || date[i] > '9') return false;
    if (sscanf(date, "%4d-%2d-%2d%n", &year, &month, &day, &end) != 3 || end != 10 || year < 1) return false;
    bool leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    if (month < 1 || month > 12 || day < 1 || day > days[month - 1] + (month == 2 && leap)) return false;
    *out = (struct tm){.tm_year = year - 1900, .tm_mon = month - 1, .tm_mday = day};
    return timegm(out) != -1 || year == 1969; /* fills in the days of week and year */
}

int chat_check_date(const char *date, struct err *e) {
    struct tm t;
    return read_date(date, &t) ? 0 : err_set(e, ERR_USAGE, "the date \"%.40s\" is not YYYY-MM-DD", date);
}

static bool call_strftime(struct render *r, const struct call_args *a, struct value *out) {
    struct str format, copy;
    struct tm t;
    char text[256];
    if (!arg_str(r, a, 0, "format", STR(""), &format) || !chat_copy(r, format.p, format.n, &copy)) return false;
    if (!read_date(r->o->date, &t)) return chat_fail(r, "the date is not YYYY-MM-DD");
    size_t n = strftime(text, sizeof text, copy.p, &t); /* in the C locale: no program here sets another */
    if (!n && copy.n) return chat_fail(r, "strftime_now with a format that is too long");
    out->kind = V_STR;
    return chat_copy(r, text, n, &out->s);
}

static bool call_range(struct render *r, const struct call_args *a, struct value *out) {
    int64_t first = 0, end, step = 1;
    if (!a->n || a->n > 3) return chat_fail(r, "range takes one to three integers");
    if (!arg_int(r, a, a->n > 1, "stop", 0, &end) || (a->n > 1 && !arg_int(r, a, 0, "start", 0, &first)) ||
        !arg_int(r, a, 2, "step", 1, &step))
        return false;
    if (!step) return chat_fail(r, "range with a step of 0");
    if (!list_new(r, out, 0)) return false;
    for (int64_t i = first; step > 0 ? i < end : i > end;) {
        if (!list_push(r, out->list, int_value(i))) return false;
        if (__builtin_add_overflow(i, step, &i)) break;
    }
    return true;
}

static bool call_dict(struct render *r, const struct call_args *a, bool is_namespace, struct value *out) {
    if (a->n) return chat_fail(r, "dict and namespace take named arguments only");
    if (!dict_new(r, out)) return false;
    out->flag = is_namespace;
    for (size_t i = 0; i < a->n_kwargs; i++)
        if (!dict_set(r, out->dict, str_value(a->names[i]), a->kwargs[i])) return false;
    return true;
}

bool chat_has_function(const struct render *r, struct str name) {
    static const char *const names[] = {"range", "dict", "namespace", "raise_exception"};
    for (size_t i = 0; i < COUNT_OF(names); i++)
        if (str_is(name, names[i])) return true;
    return r->o->date && str_is(name, "strftime_now");
}

bool chat_call_function(struct render *r, struct str name, const struct call_args *a, struct value *out) {
    struct str message;
    if (str_is(name, "range")) return call_check(r, a, "the function", name, 3, "") && call_range(r, a, out);
    if (str_is(name, "dict") || str_is(name, "namespace")) return call_dict(r, a, str_is(name, "namespace"), out);
    if (!call_check(r, a, "the function", name, 1, "message format")) return false;
    if (str_is(name, "strftime_now")) return call_strftime(r, a, out);
    if (!arg_str(r, a, 0, "message", STR("no reason"), &message)) return false;
    return chat_fail(r, "the template refuses: %.*s", (int)(message.n < 400 ? message.n : 400), message.p);
}
