/*
 * Writing JSON. cJSON prints doubles with up to 17 digits in the current locale and turns NaN into null; files that are
 * compared byte by byte need one spelling per value. Numbers and strings follow RFC 8785 (JSON Canonicalization
 * Scheme), which is ECMAScript's form, except that -0 keeps its sign; keys keep their order.
 */
#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/base.h"
#include "lib/base/json_internal.h"

static int put(struct buf *b, const char *text, struct err *e) {
    return buf_append(b, text, strlen(text), e);
}

static int put_string(struct buf *b, const char *s, struct err *e) {
    size_t n = strlen(s);
    if (!utf8_valid(s, n)) return err_set(e, ERR_DATA, "json: a string to be written is not valid UTF-8: \"%.60s\"", s);
    int rc = put(b, "\"", e);
    for (const char *end = s + n; s < end && !rc; s++) {
        const char *run = s;
        while (s < end && (unsigned char)*s >= 0x20 && *s != '"' && *s != '\\') s++;
        rc = buf_append(b, run, (size_t)(s - run), e);
        if (rc || s == end) break;
        const char *found = strchr("\"\"\\\\\bb\ff\nn\rr\tt", *s); /* pairs: the character, its escape letter */
        rc = found ? buf_printf(b, e, "\\%c", found[1]) : buf_printf(b, e, "\\u%04x", (unsigned)*s);
    }
    return rc ? rc : put(b, "\"", e);
}

/* Does the text read as v, or else the next larger 16-digit decimal, which is then stored? The interval that rounds to
 * a power of two extends twice as far up as down, so the nearest 16 digits of 2^-24 miss it while the next ones hit. */
static bool reads_back(char *text, int n_digits, double v) {
    if (strtod(text, NULL) == v) return true;
    if (n_digits != 16 || text[n_digits] == '9') return false;
    text[n_digits]++;
    return strtod(text, NULL) == v;
}

/* Finds the fewest significant digits that read back as v > 0, without trailing zeros; v = 0.d1d2d3... * 10^point. */
static void shortest_digits(double v, char digits[24], int *point) {
    /* A normal double is determined by any decimal of 15 digits that it came from, so shorter ones need no trial:
     * trailing zeros are cut off below. */
    char text[40];
    for (int n = isnormal(v) ? 15 : 1; n <= 17; n++) {
        snprintf(text, sizeof text, "%.*e", n - 1, v);
        if (reads_back(text, n, v)) break;
    }
    size_t n = 0;
    const char *p = text;
    for (; *p && *p != 'e'; p++)
        if (*p != '.') digits[n++] = *p;
    while (n > 1 && digits[n - 1] == '0') n--;
    digits[n] = 0;
    *point = (int)strtol(p + 1, NULL, 10) + 1;
}

static int put_number(struct buf *b, double v, struct err *e) {
    if (v == 0) return put(b, signbit(v) ? "-0" : "0", e);
    if (v < 0) {
        int rc = put(b, "-", e);
        if (rc) return rc;
    }
    char digits[24];
    int point;
    shortest_digits(fabs(v), digits, &point);
    int n = (int)strlen(digits);
    if (point >= n && point <= 21) return buf_printf(b, e, "%s%.*s", digits, point - n, "00000000000000000000");
    if (point > 0 && point <= 21) return buf_printf(b, e, "%.*s.%s", point, digits, digits + point);
    if (point > -6 && point <= 0) return buf_printf(b, e, "0.%.*s%s", -point, "000000", digits);
    return buf_printf(b, e, "%c%s%se%+d", digits[0], n > 1 ? "." : "", digits + 1, point - 1);
}

static int put_value(struct buf *b, const cJSON *value, struct err *e);

static int put_members(struct buf *b, const cJSON *container, bool is_object, struct err *e) {
    int rc = put(b, is_object ? "{" : "[", e);
    for (const cJSON *item = container->child; item && !rc; item = item->next) {
        if (item != container->child) rc = put(b, ",", e);
        if (is_object && !rc) rc = put_string(b, item->string, e);
        if (is_object && !rc) rc = put(b, ":", e);
        if (!rc) rc = put_value(b, item, e);
    }
    return rc ? rc : put(b, is_object ? "}" : "]", e);
}

/* Is it of the form "30.0", the only raw text that json_put_float adds? */
static bool is_float(const char *text) {
    text += *text == '-';
    size_t digits = strspn(text, "0123456789");
    return digits > 0 && (*text != '0' || digits == 1) && strcmp(text + digits, ".0") == 0;
}

static int put_value(struct buf *b, const cJSON *value, struct err *e) {
    if (cJSON_IsObject(value)) return put_members(b, value, true, e);
    if (cJSON_IsArray(value)) return put_members(b, value, false, e);
    if (cJSON_IsString(value)) return put_string(b, value->valuestring, e);
    if (cJSON_IsNumber(value)) return put_number(b, value->valuedouble, e);
    if (cJSON_IsRaw(value) && is_float(value->valuestring)) return put(b, value->valuestring, e);
    if (cJSON_IsBool(value)) return put(b, cJSON_IsTrue(value) ? "true" : "false", e);
    if (cJSON_IsNull(value)) return put(b, "null", e);
    return err_set(e, ERR_DATA, "json: a value to be written is of no JSON type");
}

/* Outside strings canonical text is printable ASCII, so anything escaped is inside a string. */
char *json_text_shown(const cJSON *value, struct err *e) {
    char *text = json_text(value, e);
    if (!text) return NULL;
    size_t n = strlen(text), size = 6 * n + 1; /* the longest escape of one byte is \u007f */
    char *shown = mem_alloc(size, e);
    if (shown) escape_text(shown, size, text, n);
    mem_free(text);
    return shown;
}

char *json_text(const cJSON *value, struct err *e) {
    /* Refuse to write what json_parse would not read. */
    if (json_check_tree(value, 1, e) != 0) return NULL;
    locale_t c = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    if (!c) {
        err_nomem(e, "the C locale");
        return NULL;
    }
    locale_t before = uselocale(c); /* the C locale's decimal point, in this thread only */
    struct buf b = {0};
    int rc = put_value(&b, value, e);
    if (!rc) rc = buf_append(&b, "", 1, e);
    uselocale(before);
    freelocale(c);
    if (rc) buf_release(&b);
    return (char *)b.data;
}
