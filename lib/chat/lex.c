/* Splits template text into tokens: finds tags, removes white space around them, and lexes their contents. */
#include <errno.h>
#include <stdlib.h>

#include "lib/chat/chat_internal.h"

struct lexer {
    struct arena *memory;
    const char *p, *end;
    int line;
    struct chat_token *tokens;
    size_t n, cap;
    bool line_start; /* the preceding text ended a line, or there is none */
    struct err *e;
};

size_t chat_put_utf8(char *to, uint32_t c) {
    if (c < 0x80) {
        to[0] = (char)c;
        return 1;
    }
    size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, c >>= 6) to[i] = (char)(0x80 | (c & 0x3f));
    to[0] = (char)((n == 2 ? 0xc0 : n == 3 ? 0xe0 : 0xf0) | c);
    return n;
}

static int add(struct lexer *x, struct chat_token t) {
    if (x->n == x->cap) {
        size_t cap = x->cap ? 2 * x->cap : 256;
        struct chat_token *grown = arena_array(x->memory, cap, sizeof *grown, x->e);
        if (!grown) return x->e->code;
        if (x->n) memcpy(grown, x->tokens, x->n * sizeof *grown);
        x->tokens = grown;
        x->cap = cap;
    }
    t.line = x->line;
    x->tokens[x->n++] = t;
    return 0;
}

static int fail(struct lexer *x, const char *what) {
    return err_set(x->e, ERR_DATA, "chat template, line %d: %s", x->line, what);
}

static bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}
static bool is_name(char c, bool first) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (!first && c >= '0' && c <= '9');
}

static void advance(struct lexer *x, const char *to) {
    for (; x->p < to; x->p++) x->line += *x->p == '\n';
}

/* ---- inside a tag ---- */

static int hex_value(const char *p, size_t n, const char *end, uint32_t *out) {
    *out = 0;
    if ((size_t)(end - p) < n) return -1;
    for (size_t i = 0; i < n; i++) {
        char c = p[i];
        int v = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                       : -1;
        if (v < 0) return -1;
        *out = *out << 4 | (uint32_t)v;
    }
    return 0;
}

/* Converts an escape after its backslash, as in Python's string literals; an unknown one is kept. */
static int unescape(struct lexer *x, const char **at, const char *end, char **to) {
    static const char from[] = "abfnrtv\\'\"", into[] = "\a\b\f\n\r\t\v\\'\"";
    char c = *(*at)++;
    const char *known = c ? strchr(from, c) : NULL;
    uint32_t v = 0;
    size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (known) {
        *(*to)++ = into[known - from];
    } else if (c == '\n') {
        return 0;
    } else if (digits) {
        if (hex_value(*at, digits, end, &v) || v > 0x10ffff || (v >= 0xd800 && v < 0xe000) || !v)
            return fail(x, "an escape that is not a character");
        *to += chat_put_utf8(*to, v);
        *at += digits;
    } else if (c >= '0' && c <= '7') {
        v = (uint32_t)(c - '0');
        for (int i = 0; i < 2 && *at < end && **at >= '0' && **at <= '7'; i++) v = v * 8 + (uint32_t)(*(*at)++ - '0');
        if (!v) return fail(x, "an escape that is not a character");
        *to += chat_put_utf8(*to, v);
    } else if (c == 'N') {
        return fail(x, "the escape \\N is not supported");
    } else {
        *(*to)++ = '\\';
        *(*to)++ = c;
    }
    return 0;
}

static int lex_string(struct lexer *x) {
    char quote = *x->p;
    const char *end = x->p + 1;
    while (end < x->end && *end != quote) end += *end == '\\' && end + 1 < x->end ? 2 : 1;
    if (end >= x->end) return fail(x, "a string without an end");
    char *text = arena_alloc(x->memory, (size_t)(end - x->p) * 2, x->e), *to = text;
    if (!text) return x->e->code;
    for (const char *at = x->p + 1; at < end;) {
        if (*at != '\\') {
            *to++ = *at++;
            continue;
        }
        at++;
        if (unescape(x, &at, end, &to)) return x->e->code;
    }
    int rc = add(x, (struct chat_token){.type = T_STRING, .s = {text, (size_t)(to - text)}});
    advance(x, end + 1);
    return rc;
}

static int lex_number(struct lexer *x) {
    char copy[64];
    size_t n = 0;
    bool real = false;
    for (const char *p = x->p; p < x->end && n < sizeof copy - 1; p++, n++) {
        bool point = *p == '.' && !real && p + 1 < x->end && p[1] >= '0' && p[1] <= '9';
        if (point) real = true;
        if (!point && !(*p >= '0' && *p <= '9')) break;
        copy[n] = *p;
    }
    copy[n] = 0;
    if (n == sizeof copy - 1 || (x->p + n < x->end && is_name(x->p[n], true)))
        return fail(x, "a number that is not supported");
    struct chat_token t = {.type = real ? T_FLOAT : T_INT, .s = {x->p, n}};
    errno = 0;
    if (real)
        t.f = strtod(copy, NULL);
    else
        t.i = strtoll(copy, NULL, 10);
    if (errno) return fail(x, "a number out of range");
    x->p += n;
    return add(x, t);
}

static int lex_operator(struct lexer *x, int *brackets) {
    static const char *const two[] = {"==", "!=", "<=", ">=", "//", "**"};
    size_t n = 1;
    for (size_t i = 0; i < COUNT_OF(two); i++)
        if (x->end - x->p >= 2 && !memcmp(x->p, two[i], 2)) n = 2;
    if (!strchr("+-*/%~=<>!()[]{}.,:|", *x->p)) {
        char what[64];
        snprintf(what, sizeof what, "unexpected '%c'", *x->p >= ' ' && *x->p < 127 ? *x->p : '?');
        return fail(x, what);
    }
    if (strchr("([{", *x->p)) ++*brackets;
    if (strchr(")]}", *x->p)) --*brackets;
    int rc = add(x, (struct chat_token){.type = T_OPERATOR, .s = {x->p, n}});
    x->p += n;
    return rc;
}

/* Lexes from after the opening of a tag to after its closing. */
static int lex_tag(struct lexer *x, const char *close, enum token_type type) {
    for (int brackets = 0; x->p < x->end;) {
        size_t left = (size_t)(x->end - x->p);
        char sign = *x->p == '-' || *x->p == '+' ? *x->p : 0;
        const char *at = x->p + (sign != 0);
        if (brackets <= 0 && left >= 2u + (sign != 0) && !memcmp(at, close, 2) && !(sign == '+' && type == T_CLOSE)) {
            const char *end = at + 2;
            if (sign == '-')
                while (end < x->end && is_space(*end)) end++;
            else if (!sign && type == T_BLOCK_END && end < x->end && *end == '\n')
                end++;
            int rc = add(x, (struct chat_token){.type = type});
            advance(x, end);
            x->line_start = end[-1] == '\n';
            return rc;
        }
        int rc = 0;
        if (is_space(*x->p)) {
            advance(x, x->p + 1);
        } else if (is_name(*x->p, true)) {
            const char *end = x->p;
            while (end < x->end && is_name(*end, false)) end++;
            rc = add(x, (struct chat_token){.type = T_NAME, .s = {x->p, (size_t)(end - x->p)}});
            x->p = end;
        } else if (*x->p == '\'' || *x->p == '"') {
            rc = lex_string(x);
        } else {
            rc = *x->p >= '0' && *x->p <= '9' ? lex_number(x) : lex_operator(x, &brackets);
        }
        if (rc) return rc;
    }
    return fail(x, type == T_CLOSE ? "{{ without }}" : "{% without %}");
}

static int lex_comment(struct lexer *x) {
    const char *end = x->p;
    while (end + 1 < x->end && (end[0] != '#' || end[1] != '}')) end++;
    if (end + 1 >= x->end) return fail(x, "{# without #}");
    char sign = end > x->p && (end[-1] == '-' || end[-1] == '+') ? end[-1] : 0;
    end += 2;
    if (sign == '-')
        while (end < x->end && is_space(*end)) end++;
    else if (!sign && end < x->end && *end == '\n')
        end++;
    advance(x, end);
    x->line_start = end[-1] == '\n';
    return 0;
}

/* ---- text before the next tag ---- */

static const char *find_tag(const struct lexer *x) {
    const char *p = x->p;
    while (p + 1 < x->end && (p[0] != '{' || (p[1] != '{' && p[1] != '%' && p[1] != '#'))) p++;
    return p + 1 < x->end ? p : x->end;
}

/* Length of text[0..n) that is kept before a tag; `sign` is the - or + after its opening. */
static size_t text_kept(const struct lexer *x, const char *text, size_t n, char kind, char sign) {
    size_t kept = n;
    while (kept && is_space(text[kept - 1]) && (sign == '-' || text[kept - 1] != '\n')) kept--;
    if (sign == '-') return kept;
    bool alone = kept ? text[kept - 1] == '\n' : x->line_start; /* only white space precedes the tag on its line */
    return sign != '+' && kind != '{' && alone ? kept : n;
}

int chat_lex(struct arena *memory, struct str source, struct chat_token **out, struct err *e) {
    struct lexer x = {
        .memory = memory, .p = source.p, .end = source.p + source.n, .line = 1, .line_start = true, .e = e};
    int rc = 0;
    if (source.n && source.p[source.n - 1] == '\n') x.end--; /* like Jinja, remove one final line end */
    while (!rc && x.p < x.end) {
        const char *tag = find_tag(&x), *text = x.p;
        size_t n = (size_t)(tag - text);
        char kind = tag < x.end ? tag[1] : 0, sign = kind && tag + 2 < x.end ? tag[2] : 0;
        if (kind) n = text_kept(&x, text, n, kind, sign);
        if (n) rc = add(&x, (struct chat_token){.type = T_TEXT, .s = {text, n}});
        if (rc || !kind) break;
        advance(&x, tag + 2 + (sign == '-' || (sign == '+' && kind != '{')));
        if (kind == '#') {
            if (x.p > x.end) x.p = x.end;
            rc = lex_comment(&x);
            continue;
        }
        rc = add(&x, (struct chat_token){.type = kind == '{' ? T_OPEN : T_BLOCK});
        if (!rc) rc = kind == '{' ? lex_tag(&x, "}}", T_CLOSE) : lex_tag(&x, "%}", T_BLOCK_END);
    }
    if (!rc) rc = add(&x, (struct chat_token){.type = T_END});
    *out = x.tokens;
    return rc;
}
