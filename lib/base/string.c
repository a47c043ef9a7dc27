/* Text: UTF-8, names and numbers, independent of the locale. */
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "lib/base/base.h"

/* Number of ASCII bytes at the start. Most text is ASCII, so eight bytes are tested at a time. */
static size_t ascii_run(const char *s, size_t n) {
    size_t i = 0;
    for (uint64_t word; n - i >= sizeof word; i += sizeof word) {
        memcpy(&word, s + i, sizeof word);
        if (word & UINT64_C(0x8080808080808080)) break;
    }
    while (i < n && (unsigned char)s[i] < 0x80) i++;
    return i;
}

bool utf8_valid(const char *s, size_t n) {
    for (size_t i = ascii_run(s, n); i < n; i += ascii_run(s + i, n - i)) {
        utf8proc_int32_t c;
        utf8proc_ssize_t took = utf8proc_iterate((const utf8proc_uint8_t *)s + i, (utf8proc_ssize_t)(n - i), &c);
        if (took <= 0) return false;
        i += (size_t)took;
    }
    return true;
}

bool name_valid(const char *s, size_t n) {
    if (n < 1 || n > 1024) return false;
    for (size_t i = 0; i < n;) {
        utf8proc_int32_t c;
        utf8proc_ssize_t took = utf8proc_iterate((const utf8proc_uint8_t *)s + i, (utf8proc_ssize_t)(n - i), &c);
        if (took <= 0 || c < 0x20 || (c >= 0x7f && c < 0xa0)) return false;
        i += (size_t)took;
    }
    return true;
}

/* ---- escaping --------------------------------------------------------------------------------------------------- */

static bool is_shown(utf8proc_int32_t c) {
    if (c < 0x7f) return c >= 0x20;
    if (c == 0x200c || c == 0x200d) return true;
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP: return false;
    default: return true;
    }
}

static void escape_code(utf8proc_int32_t c, char out[ESCAPE_MAX]) {
    if (c == '\n' || c == '\r' || c == '\t')
        snprintf(out, ESCAPE_MAX, "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
    else if (c < 0x10000)
        snprintf(out, ESCAPE_MAX, "\\u%04x", (unsigned)c & 0xffff);
    else /* a surrogate pair, as in JSON */
        snprintf(out, ESCAPE_MAX, "\\ud%03x\\ud%03x", (0x800 | (unsigned)(c - 0x10000) >> 10) & 0xfff,
                 0xc00 | ((unsigned)c & 0x3ff));
}

bool escape_char(const char *s, size_t n, size_t *took, char out[ESCAPE_MAX]) {
    utf8proc_int32_t c;
    utf8proc_ssize_t k = utf8proc_iterate((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)n, &c);
    *took = k > 0 ? (size_t)k : 1;
    if (k <= 0)
        snprintf(out, ESCAPE_MAX, "\\x%02x", (unsigned)(unsigned char)*s);
    else if (!is_shown(c))
        escape_code(c, out);
    else {
        memcpy(out, s, *took);
        out[*took] = 0;
        return false;
    }
    return true;
}

size_t escape_text(char *out, size_t size, const char *s, size_t n) {
    char shown[ESCAPE_MAX];
    size_t len = 0;
    for (size_t i = 0, took; i < n; i += took) {
        escape_char(s + i, n - i, &took, shown);
        size_t k = strlen(shown);
        if (len + k >= size) break;
        memcpy(out + len, shown, k);
        len += k;
    }
    if (size) out[len] = 0;
    return len;
}

/* ---- numbers ---------------------------------------------------------------------------------------------------- */

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

bool parse_u64(const char *s, uint64_t *out) {
    if (!is_digit(*s)) return false;
    uint64_t v = 0;
    for (; is_digit(*s); s++)
        if (!u64_mul(v, 10, &v) || !u64_add(v, (uint64_t)(*s - '0'), &v)) return false;
    uint64_t unit = *s == 'K' ? UINT64_C(1) << 10 : *s == 'M' ? UINT64_C(1) << 20 : *s == 'G' ? UINT64_C(1) << 30 : 1;
    if (unit != 1) s++;
    if (*s || !u64_mul(v, unit, &v)) return false;
    *out = v;
    return true;
}

/* [+-] digits [. digits] [e [+-] digits], with a digit on at least one side of the point: what strtod accepts, less
 * hexadecimal numbers, "inf", "nan" and leading white space. */
static bool is_decimal(const char *s) {
    if (*s == '+' || *s == '-') s++;
    size_t digits = 0;
    for (; is_digit(*s); s++) digits++;
    if (*s == '.')
        for (s++; is_digit(*s); s++) digits++;
    if (!digits) return false;
    if (*s == 'e' || *s == 'E') {
        s++;
        if (*s == '+' || *s == '-') s++;
        if (!is_digit(*s)) return false;
        while (is_digit(*s)) s++;
    }
    return *s == 0;
}

bool parse_f64(const char *s, double *out) {
    if (!is_decimal(s)) return false;
    locale_t c = newlocale(LC_ALL_MASK, "C", (locale_t)0); /* a constant of libc: costs nothing, cannot fail */
    if (!c) return false;
    double v = strtod_l(s, NULL, c);
    freelocale(c);
    if (!isfinite(v)) return false;
    *out = v;
    return true;
}
