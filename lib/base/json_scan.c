/* Checks text against the grammar of RFC 8259 without building a tree: one pass, one byte of state per nesting
 * level. */
#include <string.h>

#include "lib/base/base.h"
#include "lib/base/json_internal.h"

struct scan {
    const char *begin, *at, *end;
    const char *problem; /* the error at `at`; NULL if there is none */
};

static bool fail(struct scan *s, const char *problem) {
    s->problem = problem;
    return false;
}

static int peek(const struct scan *s) {
    return s->at < s->end ? (unsigned char)*s->at : -1;
}

static bool take(struct scan *s, char c) {
    if (peek(s) != c) return false;
    s->at++;
    return true;
}

static void skip_space(struct scan *s) {
    while (peek(s) == ' ' || peek(s) == '\t' || peek(s) == '\n' || peek(s) == '\r') s->at++;
}

static bool skip_digits(struct scan *s) {
    const char *start = s->at;
    while (peek(s) >= '0' && peek(s) <= '9') s->at++;
    return s->at > start;
}

/* cJSON copies a number into a buffer of 64 bytes; refuse longer ones here, so that cJSON can only fail for memory. */
#define MAX_NUMBER 62

static bool scan_number(struct scan *s) {
    const char *start = s->at;
    take(s, '-');
    if (!take(s, '0') && !skip_digits(s)) return fail(s, "expected a digit"); /* no digit may follow a leading 0 */
    if (take(s, '.') && !skip_digits(s)) return fail(s, "expected a digit after the point");
    if (take(s, 'e') || take(s, 'E')) {
        if (!take(s, '+')) take(s, '-');
        if (!skip_digits(s)) return fail(s, "expected a digit in the exponent");
    }
    return s->at - start <= MAX_NUMBER || fail(s, "a number of more than 62 characters");
}

static bool scan_literal(struct scan *s, const char *word) {
    size_t n = strlen(word);
    if ((size_t)(s->end - s->at) < n || memcmp(s->at, word, n) != 0) return fail(s, "unknown word");
    s->at += n;
    return true;
}

/* Returns the value of the four digits of a \u escape, or -1. */
static int scan_hex4(struct scan *s) {
    int v = 0;
    for (int i = 0; i < 4; i++, s->at++) {
        int c = peek(s);
        int digit = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
        if (digit < 0) return -1;
        v = v << 4 | digit;
    }
    return v;
}

/* Scans what follows "\u". A NUL would end the C string early; a lone surrogate is not a character. */
static bool scan_unicode_escape(struct scan *s) {
    int c = scan_hex4(s);
    if (c < 0) return fail(s, "expected four hexadecimal digits");
    if (c == 0) return fail(s, "NUL in a string");
    if (c >= 0xdc00 && c <= 0xdfff) return fail(s, "second half of a surrogate pair without the first");
    if (c < 0xd800 || c > 0xdfff) return true;
    if (take(s, '\\') && take(s, 'u')) {
        int low = scan_hex4(s);
        if (low >= 0xdc00 && low <= 0xdfff) return true;
    }
    return fail(s, "first half of a surrogate pair without the second");
}

static bool scan_string(struct scan *s) {
    s->at++;
    for (;;) {
        const char *start = s->at;
        while (peek(s) >= 0x20 && peek(s) != '"' && peek(s) != '\\') s->at++;
        if (!utf8_valid(start, (size_t)(s->at - start))) return fail(s, "invalid UTF-8 in the string that ends here");
        if (take(s, '"')) return true;
        if (!take(s, '\\')) return fail(s, s->at == s->end ? "unfinished string" : "control character in a string");
        int c = peek(s);
        if (c <= 0 || !strchr("\"\\/bfnrtu", c)) return fail(s, "unknown escape");
        s->at++;
        if (c == 'u' && !scan_unicode_escape(s)) return false;
    }
}

/* Scans a key and its colon. */
static bool scan_key(struct scan *s) {
    if (peek(s) != '"') return fail(s, "expected a key");
    if (!scan_string(s)) return false;
    skip_space(s);
    if (!take(s, ':')) return fail(s, "expected ':'");
    skip_space(s);
    return true;
}

static bool scan_scalar(struct scan *s) {
    switch (peek(s)) {
    case '"': return scan_string(s);
    case 't': return scan_literal(s, "true");
    case 'f': return scan_literal(s, "false");
    case 'n': return scan_literal(s, "null");
    case -1: return fail(s, "unexpected end");
    case 0xef: return fail(s, "no value, but the first byte of a byte order mark or of text without quotes");
    default: return scan_number(s);
    }
}

/* Closes all containers that end here. Stops after a comma (and, in an object, the next key), where another value
 * follows, or at the end of the outermost container (*depth 0). Returns false on an error. */
static bool scan_closings(struct scan *s, const char *closer, int *depth) {
    while (*depth > 0) {
        skip_space(s);
        if (take(s, ',')) {
            skip_space(s);
            return closer[*depth] == ']' || scan_key(s);
        }
        if (!take(s, closer[*depth])) return fail(s, "expected ',' or the end of the container");
        --*depth;
    }
    return true;
}

static bool scan_value(struct scan *s) {
    char closer[JSON_MAX_DEPTH + 1];
    int depth = 0;
    do {
        int c = peek(s);
        if (c != '{' && c != '[') {
            if (!scan_scalar(s) || !scan_closings(s, closer, &depth)) return false;
            continue;
        }
        if (depth == JSON_MAX_DEPTH) return fail(s, "nested too deep");
        s->at++;
        skip_space(s);
        closer[++depth] = c == '{' ? '}' : ']';
        if (peek(s) == closer[depth]) {
            if (!scan_closings(s, closer, &depth)) return false;
        } else if (c == '{' && !scan_key(s)) {
            return false;
        }
    } while (depth > 0);
    return true;
}

int json_scan(const char *text, size_t len, struct err *e) {
    if (!len) text = ""; /* an empty buffer may be NULL, to which no offset may be added */
    struct scan s = {.begin = text, .at = text, .end = text + len};
    skip_space(&s);
    if (scan_value(&s)) {
        skip_space(&s);
        if (s.at < s.end) s.problem = "bytes after the value";
    }
    return s.problem ? err_set(e, ERR_DATA, "json: byte %zu: %s", (size_t)(s.at - s.begin), s.problem) : 0;
}
