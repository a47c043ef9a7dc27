/* Values of a rendering: equality, containment and printing, with Python's semantics, for which templates are
 * written. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <utf8proc.h>

#include "lib/chat/chat_internal.h"

/* ---- failure, counting, memory ---- */

bool chat_fail(struct render *r, const char *fmt, ...) {
    char text[600];
    va_list list;
    va_start(list, fmt);
    vsnprintf(text, sizeof text, fmt, list);
    va_end(list);
    err_set(r->e, ERR_DATA, "chat template, line %d: %s", r->line, text);
    return false;
}

bool chat_enter(struct render *r) {
    return ++r->depth <= CHAT_MAX_DEPTH || chat_fail(r, "evaluates more than %d deep", CHAT_MAX_DEPTH);
}

bool chat_step(struct render *r, size_t bytes) {
    r->steps += 1 + bytes / 64;
    return r->steps <= CHAT_MAX_STEPS || chat_fail(r, "takes more than %llu steps", (unsigned long long)CHAT_MAX_STEPS);
}

void *chat_alloc(struct render *r, size_t n, size_t size) {
    uint64_t bytes;
    if (!u64_mul(n, size, &bytes) || bytes > CHAT_MAX_MEMORY || r->used + bytes + 64 > CHAT_MAX_MEMORY) {
        chat_fail(r, "needs more than %zu MiB of memory", CHAT_MAX_MEMORY >> 20);
        return NULL;
    }
    r->used += bytes + 64;
    return arena_array(&r->memory, n ? n : 1, size, r->e);
}

bool chat_copy(struct render *r, const void *p, size_t n, struct str *out) {
    char *copy = chat_alloc(r, n + 1, 1);
    if (!copy || !chat_step(r, n)) return false;
    if (n) memcpy(copy, p, n);
    *out = (struct str){copy, n};
    return true;
}

/* ---- lists and dictionaries ---- */

bool list_new(struct render *r, struct value *out, size_t cap) {
    struct list *l = chat_alloc(r, 1, sizeof *l);
    if (!l || (cap && !(l->items = chat_alloc(r, cap, sizeof *l->items)))) return false;
    l->cap = cap;
    *out = (struct value){.kind = V_LIST, .list = l};
    return true;
}

bool list_push(struct render *r, struct list *l, struct value v) {
    if (!chat_step(r, 0)) return false;
    if (l->n == l->cap) {
        size_t cap = l->cap ? 2 * l->cap : 8;
        struct value *grown = chat_alloc(r, cap, sizeof *grown);
        if (!grown) return false;
        if (l->n) memcpy(grown, l->items, l->n * sizeof *grown);
        l->items = grown;
        l->cap = cap;
    }
    l->items[l->n++] = v;
    return true;
}

bool dict_new(struct render *r, struct value *out) {
    struct dict *d = chat_alloc(r, 1, sizeof *d);
    *out = (struct value){.kind = V_DICT, .dict = d};
    return d != NULL;
}

static size_t dict_index(struct render *r, const struct dict *d, const struct value *key) {
    for (size_t i = 0; i < d->n; i++)
        if (value_equal(r, &d->keys[i], key, 0)) return i;
    return d->n;
}

const struct value *dict_find(struct render *r, const struct dict *d, const struct value *key) {
    size_t i = dict_index(r, d, key);
    return i < d->n ? &d->values[i] : NULL;
}

const struct value *dict_get(struct render *r, const struct dict *d, struct str key) {
    struct value k = str_value(key);
    return dict_find(r, d, &k);
}

bool dict_set(struct render *r, struct dict *d, struct value key, struct value v) {
    if (key.kind == V_LIST || key.kind == V_DICT) return chat_fail(r, "%s cannot be a key", value_kind(&key));
    size_t at = dict_index(r, d, &key);
    if (!chat_step(r, 0)) return false;
    if (at == d->n && d->n == d->cap) {
        size_t cap = d->cap ? 2 * d->cap : 8;
        struct value *keys = chat_alloc(r, cap, sizeof *keys), *values = keys ? chat_alloc(r, cap, sizeof *keys) : NULL;
        if (!values) return false;
        if (d->n) {
            memcpy(keys, d->keys, d->n * sizeof *keys);
            memcpy(values, d->values, d->n * sizeof *values);
        }
        d->keys = keys;
        d->values = values;
        d->cap = cap;
    }
    if (at == d->n) d->keys[d->n++] = key;
    d->values[at] = v;
    return true;
}

/* ---- properties of values ---- */

const char *value_kind(const struct value *v) {
    static const char *const names[] = {"undefined", "none",   "a boolean",  "an integer", "a number",   "a string",
                                        "a list",    "a dict", "the 'loop'", "a macro",    "a function", "a method"};
    return names[v->kind];
}

bool value_is_number(const struct value *v) {
    return v->kind == V_INT || v->kind == V_FLOAT || v->kind == V_BOOL;
}
double value_number(const struct value *v) {
    return v->kind == V_FLOAT ? v->f : v->kind == V_BOOL ? v->flag : (double)v->i;
}

bool value_truth(const struct value *v) {
    switch (v->kind) {
    case V_UNDEFINED:
    case V_NONE: return false;
    case V_BOOL: return v->flag;
    case V_INT: return v->i != 0;
    case V_FLOAT: return v->f != 0;
    case V_STR: return v->s.n > 0;
    case V_LIST: return v->list->n > 0;
    case V_DICT: return v->flag || v->dict->n > 0;
    default: return true;
    }
}

static bool lists_equal(struct render *r, const struct list *a, const struct list *b, int depth) {
    if (a->n != b->n) return false;
    for (size_t i = 0; i < a->n; i++)
        if (!value_equal(r, &a->items[i], &b->items[i], depth)) return false;
    return true;
}

static bool dicts_equal(struct render *r, const struct dict *a, const struct dict *b, int depth) {
    if (a->n != b->n) return false;
    for (size_t i = 0; i < a->n; i++) {
        const struct value *other = dict_find(r, b, &a->keys[i]);
        if (!other || !value_equal(r, &a->values[i], other, depth)) return false;
    }
    return true;
}

bool value_equal(struct render *r, const struct value *a, const struct value *b, int depth) {
    if (depth > CHAT_MAX_NESTING || ++r->steps > CHAT_MAX_STEPS) return false; /* then the next step fails */
    if (value_is_number(a) && value_is_number(b)) {
        bool whole = a->kind != V_FLOAT && b->kind != V_FLOAT;
        int64_t i = a->kind == V_BOOL ? a->flag : a->i, j = b->kind == V_BOOL ? b->flag : b->i;
        return whole ? i == j : value_number(a) == value_number(b);
    }
    if (a->kind != b->kind) return false;
    switch (a->kind) {
    case V_UNDEFINED:
    case V_NONE: return true;
    case V_STR: return str_equal(a->s, b->s);
    case V_LIST: return a->flag == b->flag && lists_equal(r, a->list, b->list, depth + 1);
    case V_DICT: return a->dict == b->dict || (!a->flag && !b->flag && dicts_equal(r, a->dict, b->dict, depth + 1));
    default: return a->loop == b->loop;
    }
}

bool value_items(struct render *r, const struct value *v, struct list **out) {
    struct value l;
    if (v->kind == V_LIST) {
        *out = v->list;
        return true;
    }
    if (!list_new(r, &l, 0)) return false;
    *out = l.list;
    switch (v->kind) {
    case V_UNDEFINED: return true;
    case V_DICT:
        for (size_t i = 0; i < v->dict->n; i++)
            if (!list_push(r, l.list, v->dict->keys[i])) return false;
        return true;
    case V_STR:
        for (size_t at = 0, n; at < v->s.n; at += n) {
            n = 1;
            while (at + n < v->s.n && (v->s.p[at + n] & 0xc0) == 0x80) n++;
            if (!list_push(r, l.list, str_value((struct str){v->s.p + at, n}))) return false;
        }
        return true;
    default: return chat_fail(r, "%s cannot be iterated over", value_kind(v));
    }
}

bool value_contains(struct render *r, const struct value *item, const struct value *in, bool *out) {
    *out = false;
    switch (in->kind) {
    case V_UNDEFINED: return true;
    case V_STR:
        if (item->kind != V_STR) return chat_fail(r, "looking for %s in a string", value_kind(item));
        *out = !item->s.n || (in->s.n && memmem(in->s.p, in->s.n, item->s.p, item->s.n) != NULL);
        return chat_step(r, in->s.n);
    case V_LIST:
        for (size_t i = 0; i < in->list->n && !*out; i++) *out = value_equal(r, &in->list->items[i], item, 0);
        return chat_step(r, 0);
    case V_DICT: *out = dict_find(r, in->dict, item) != NULL; return chat_step(r, 0);
    default: return chat_fail(r, "looking for something in %s", value_kind(in));
    }
}

/* ---- strings ---- */

size_t str_length(struct str s) {
    size_t n = 0;
    for (size_t i = 0; i < s.n; i++) n += (s.p[i] & 0xc0) != 0x80;
    return n;
}

static size_t byte_of(struct str s, size_t at, size_t points) {
    for (; points && at < s.n; points--)
        for (at++; at < s.n && (s.p[at] & 0xc0) == 0x80;) at++;
    return at;
}

struct str str_slice(struct str s, size_t first, size_t n) {
    size_t start = byte_of(s, 0, first);
    return (struct str){s.p + start, byte_of(s, start, n) - start};
}

bool chat_is_space(int32_t c) {
    return (c >= 9 && c <= 13) || (c >= 28 && c <= 32) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

static bool stripped(struct str c, const struct str *chars) {
    int32_t point = 0;
    if (chars) return memmem(chars->p, chars->n, c.p, c.n) != NULL;
    return utf8proc_iterate((const utf8proc_uint8_t *)c.p, (utf8proc_ssize_t)c.n, &point) > 0 && chat_is_space(point);
}

struct str str_strip(struct str s, const struct str *chars, int sides) {
    while (s.n && sides & STRIP_LEFT) {
        struct str c = {s.p, byte_of(s, 0, 1)};
        if (!stripped(c, chars)) break;
        s.p += c.n;
        s.n -= c.n;
    }
    while (s.n && sides & STRIP_RIGHT) {
        size_t at = s.n - 1;
        while (at && (s.p[at] & 0xc0) == 0x80) at--;
        if (!stripped((struct str){s.p + at, s.n - at}, chars)) break;
        s.n = at;
    }
    return s;
}

/* ---- printing ---- */

static bool put(struct render *r, struct buf *out, const void *p, size_t n) {
    if (!chat_step(r, n)) return false;
    if (n > CHAT_MAX_TEXT || out->len + n > CHAT_MAX_TEXT)
        return chat_fail(r, "the text is longer than %zu MiB", CHAT_MAX_TEXT >> 20);
    return buf_append(out, p, n, r->e) == 0;
}
static bool put_text(struct render *r, struct buf *out, const char *text) {
    return put(r, out, text, strlen(text));
}

/* repr(float): the shortest text that reads back, with a point or an exponent. */
static bool put_float(struct render *r, double f, struct buf *out) {
    char text[64], digits[32];
    if (isnan(f) || isinf(f)) return put_text(r, out, isnan(f) ? "nan" : f > 0 ? "inf" : "-inf");
    int precision = 1;
    do snprintf(digits, sizeof digits, "%.*e", precision - 1, f);
    while (strtod(digits, NULL) != f && ++precision <= 17);
    int exponent = (int)strtol(strchr(digits, 'e') + 1, NULL, 10);
    if (exponent >= 16 || exponent < -4) {
        *strchr(digits, 'e') = 0;
        snprintf(text, sizeof text, "%se%c%02d", digits, exponent < 0 ? '-' : '+', abs(exponent));
    } else {
        snprintf(text, sizeof text, "%.*f", precision - 1 > exponent ? precision - 1 - exponent : 1, f);
    }
    return put_text(r, out, text);
}

/* repr(str) of one character. */
static bool put_repr_char(struct render *r, struct str c, char quote, struct buf *out) {
    char text[16];
    int32_t point = 0;
    utf8proc_iterate((const utf8proc_uint8_t *)c.p, (utf8proc_ssize_t)c.n, &point);
    utf8proc_category_t category = utf8proc_category(point);
    bool hidden = point != ' ' && (category == UTF8PROC_CATEGORY_CN || category >= UTF8PROC_CATEGORY_ZS);
    if (point == quote || point == '\\')
        snprintf(text, sizeof text, "\\%c", (char)point);
    else if (point == '\n' || point == '\r' || point == '\t')
        snprintf(text, sizeof text, "\\%c", point == '\n' ? 'n' : point == '\r' ? 'r' : 't');
    else if (hidden)
        snprintf(text, sizeof text,
                 point < 0x100     ? "\\x%02x"
                 : point < 0x10000 ? "\\u%04x"
                                   : "\\U%08x",
                 (unsigned)point);
    else
        return put(r, out, c.p, c.n);
    return put_text(r, out, text);
}

static bool put_repr_string(struct render *r, struct str s, struct buf *out) {
    char quote = s.n && memchr(s.p, '\'', s.n) && !memchr(s.p, '"', s.n) ? '"' : '\'';
    if (!put(r, out, &quote, 1)) return false;
    for (size_t at = 0, n; at < s.n; at += n) {
        n = byte_of(s, at, 1) - at;
        if (!put_repr_char(r, (struct str){s.p + at, n}, quote, out)) return false;
    }
    return put(r, out, &quote, 1);
}

static bool put_value(struct render *r, const struct value *v, bool repr, int depth, struct buf *out);

static bool put_list(struct render *r, const struct value *v, int depth, struct buf *out) {
    if (!put_text(r, out, v->flag ? "(" : "[")) return false;
    for (size_t i = 0; i < v->list->n; i++)
        if ((i && !put_text(r, out, ", ")) || !put_value(r, &v->list->items[i], true, depth, out)) return false;
    return put_text(r, out, !v->flag ? "]" : v->list->n == 1 ? ",)" : ")");
}

static bool put_dict(struct render *r, const struct dict *d, int depth, struct buf *out) {
    if (!put_text(r, out, "{")) return false;
    for (size_t i = 0; i < d->n; i++)
        if ((i && !put_text(r, out, ", ")) || !put_value(r, &d->keys[i], true, depth, out) || !put_text(r, out, ": ") ||
            !put_value(r, &d->values[i], true, depth, out))
            return false;
    return put_text(r, out, "}");
}

static bool put_value(struct render *r, const struct value *v, bool repr, int depth, struct buf *out) {
    char text[32];
    if (depth > CHAT_MAX_NESTING) return chat_fail(r, "a value is nested deeper than %d", CHAT_MAX_NESTING);
    switch (v->kind) {
    case V_UNDEFINED: return !repr || put_text(r, out, "Undefined");
    case V_NONE: return put_text(r, out, "None");
    case V_BOOL: return put_text(r, out, v->flag ? "True" : "False");
    case V_INT: snprintf(text, sizeof text, "%lld", (long long)v->i); return put_text(r, out, text);
    case V_FLOAT: return put_float(r, v->f, out);
    case V_STR: return repr ? put_repr_string(r, v->s, out) : put(r, out, v->s.p, v->s.n);
    case V_LIST: return put_list(r, v, depth + 1, out);
    case V_DICT:
        if (!v->flag) return put_dict(r, v->dict, depth + 1, out);
        return chat_fail(r, "a namespace cannot be printed");
    default: return chat_fail(r, "%s cannot be printed", value_kind(v));
    }
}

bool value_print(struct render *r, const struct value *v, struct buf *out) {
    return put_value(r, v, false, 0, out);
}

bool value_string(struct render *r, const struct value *v, struct str *out) {
    struct buf text = {0};
    *out = v->s;
    if (v->kind == V_STR) return true;
    bool ok = value_print(r, v, &text) && chat_copy(r, text.data, text.len, out);
    buf_release(&text);
    return ok;
}

/* ---- tojson ---- */

static bool json_string(struct render *r, struct str s, bool ascii, struct buf *out) {
    static const char from[] = "\"\\\b\f\n\r\t", into[] = "\"\\bfnrt";
    if (!put_text(r, out, "\"")) return false;
    for (size_t at = 0, n; at < s.n; at += n) {
        char text[16];
        int32_t c = 0;
        n = byte_of(s, at, 1) - at;
        utf8proc_iterate((const utf8proc_uint8_t *)s.p + at, (utf8proc_ssize_t)n, &c);
        const char *known = c && c < 0x80 ? strchr(from, (char)c) : NULL;
        if (known)
            snprintf(text, sizeof text, "\\%c", into[known - from]);
        else if (c >= 0x10000 && ascii)
            snprintf(text, sizeof text, "\\u%04x\\u%04x", 0xd800 + ((unsigned)(c - 0x10000) >> 10),
                     0xdc00 + ((unsigned)(c - 0x10000) & 0x3ff));
        else if (c < 0x20 || (c >= 0x7f && ascii && c != 0x7f))
            snprintf(text, sizeof text, "\\u%04x", (unsigned)c);
        else
            text[0] = 0;
        if (!(text[0] ? put_text(r, out, text) : put(r, out, s.p + at, n))) return false;
    }
    return put_text(r, out, "\"");
}

static bool json_break(struct render *r, const struct json_style *style, int depth, struct buf *out) {
    if (style->indent < 0) return true;
    if (!put_text(r, out, "\n")) return false;
    for (int i = 0; i < style->indent * depth; i++)
        if (!put_text(r, out, " ")) return false;
    return true;
}

static bool put_json(struct render *r, const struct value *v, const struct json_style *style, int depth,
                     struct buf *out);

static bool json_list(struct render *r, const struct list *l, const struct json_style *style, int depth,
                      struct buf *out) {
    if (!l->n) return put_text(r, out, "[]");
    if (!put_text(r, out, "[")) return false;
    for (size_t i = 0; i < l->n; i++)
        if ((i && !put(r, out, style->item.p, style->item.n)) || !json_break(r, style, depth + 1, out) ||
            !put_json(r, &l->items[i], style, depth + 1, out))
            return false;
    return json_break(r, style, depth, out) && put_text(r, out, "]");
}

/* The smallest key greater than *before, or of all if `before` is NULL: visits keys in order without sorting them. */
static size_t next_key(const struct dict *d, const struct str *before) {
    size_t best = d->n;
    for (size_t i = 0; i < d->n; i++) {
        struct str k = d->keys[i].s, b = best < d->n ? d->keys[best].s : k;
        int with_best = memcmp(k.p, b.p, k.n < b.n ? k.n : b.n);
        int with_before = before ? memcmp(k.p, before->p, k.n < before->n ? k.n : before->n) : 1;
        if (!with_before) with_before = (k.n > before->n) - (k.n < before->n);
        if (with_before > 0 && (best == d->n || with_best < 0 || (!with_best && k.n < b.n))) best = i;
    }
    return best;
}

static bool json_dict(struct render *r, const struct dict *d, const struct json_style *style, int depth,
                      struct buf *out) {
    struct str before, *last = NULL;
    if (!d->n) return put_text(r, out, "{}");
    if (!put_text(r, out, "{")) return false;
    for (size_t i = 0; i < d->n; i++)
        if (d->keys[i].kind != V_STR) return chat_fail(r, "tojson of a dict with %s as a key", value_kind(&d->keys[i]));
    for (size_t i = 0; i < d->n; i++) {
        size_t at = style->sort ? next_key(d, last) : i;
        if (style->sort && !chat_step(r, 64 * d->n)) return false;
        before = d->keys[at].s;
        last = &before;
        if ((i && !put(r, out, style->item.p, style->item.n)) || !json_break(r, style, depth + 1, out) ||
            !json_string(r, d->keys[at].s, style->ascii, out) || !put(r, out, style->key.p, style->key.n) ||
            !put_json(r, &d->values[at], style, depth + 1, out))
            return false;
    }
    return json_break(r, style, depth, out) && put_text(r, out, "}");
}

static bool put_json(struct render *r, const struct value *v, const struct json_style *style, int depth,
                     struct buf *out) {
    if (depth > CHAT_MAX_NESTING) return chat_fail(r, "a value is nested deeper than %d", CHAT_MAX_NESTING);
    switch (v->kind) {
    case V_NONE: return put_text(r, out, "null");
    case V_BOOL: return put_text(r, out, v->flag ? "true" : "false");
    case V_INT: return value_print(r, v, out);
    case V_FLOAT:
        return isfinite(v->f) ? value_print(r, v, out)
                              : put_text(r, out,
                                         isnan(v->f) ? "NaN"
                                         : v->f > 0  ? "Infinity"
                                                     : "-Infinity");
    case V_STR: return json_string(r, v->s, style->ascii, out);
    case V_LIST: return json_list(r, v->list, style, depth, out);
    case V_DICT:
        if (!v->flag) return json_dict(r, v->dict, style, depth, out);
        return chat_fail(r, "tojson of a namespace");
    default: return chat_fail(r, "tojson of %s", value_kind(v));
    }
}

bool value_json(struct render *r, const struct value *v, const struct json_style *style, struct buf *out) {
    return put_json(r, v, style, 0, out);
}
