/* Converts JSON to values. json_parse has checked the text, so nothing is malformed. */
#include <errno.h>
#include <stdlib.h>

#include "lib/chat/chat_internal.h"

static const char *skip_space(const char *p) {
    while (*p == ' ' || *p == '\n' || *p == '\r' || *p == '\t') p++;
    return p;
}

static uint32_t read_hex(const char *p) {
    char digits[5] = {p[0], p[1], p[2], p[3], 0};
    return (uint32_t)strtoul(digits, NULL, 16);
}

/* Reads a string from after its opening quote. A character never takes more bytes than its escape. */
static bool read_string(struct render *r, const char **at, struct value *out) {
    const char *p = *at, *end = p;
    while (*end != '"') end += *end == '\\' ? 2 : 1;
    char *text = chat_alloc(r, (size_t)(end - p) + 1, 1), *to = text;
    if (!text || !chat_step(r, (size_t)(end - p))) return false;
    while (p < end) {
        static const char from[] = "bfnrt", into[] = "\b\f\n\r\t";
        if (*p != '\\') {
            *to++ = *p++;
            continue;
        }
        char c = p[1];
        const char *known = strchr(from, c);
        p += 2;
        if (c != 'u') {
            *to++ = known ? into[known - from] : c;
            continue;
        }
        uint32_t point = read_hex(p);
        p += 4;
        if (point >= 0xd800 && point < 0xdc00) {
            point = 0x10000 + ((point - 0xd800) << 10) + (read_hex(p + 2) - 0xdc00);
            p += 6;
        }
        to += chat_put_utf8(to, point);
    }
    *at = end + 1;
    *out = str_value((struct str){text, (size_t)(to - text)});
    return true;
}

static bool read_number(struct render *r, const char **at, struct value *out) {
    const char *end = *at + strspn(*at, "+-0123456789.eE");
    struct str text;
    if (!chat_copy(r, *at, (size_t)(end - *at), &text)) return false;
    errno = 0;
    if (strcspn(text.p, ".eE") == text.n)
        *out = int_value(strtoll(text.p, NULL, 10));
    else
        *out = (struct value){.kind = V_FLOAT, .f = strtod(text.p, NULL)};
    *at = end;
    return !errno || out->kind == V_FLOAT || chat_fail(r, "the number %.40s of the conversation is too large", text.p);
}

static bool read_value(struct render *r, const char **at, struct value *out);

static bool read_members(struct render *r, const char **at, bool object, struct value *out) {
    char close = object ? '}' : ']';
    if (!(object ? dict_new(r, out) : list_new(r, out, 0))) return false;
    const char *p = skip_space(*at);
    while (*p != close) {
        struct value key = {.kind = V_NONE}, v;
        if (*p == ',') p = skip_space(p + 1);
        if (object) {
            p++;
            if (!read_string(r, &p, &key)) return false;
            p = skip_space(p) + 1; /* the colon */
        }
        if (!read_value(r, &p, &v)) return false;
        if (!(object ? dict_set(r, out->dict, key, v) : list_push(r, out->list, v))) return false;
        p = skip_space(p);
    }
    *at = p + 1;
    return true;
}

static bool read_value(struct render *r, const char **at, struct value *out) {
    const char *p = *at = skip_space(*at);
    switch (*p) {
    case '{':
    case '[': ++*at; return read_members(r, at, *p == '{', out);
    case '"': ++*at; return read_string(r, at, out);
    case 't':
    case 'n':
        *at += 4;
        *out = *p == 't' ? bool_value(true) : NONE_VALUE;
        return true;
    case 'f':
        *at += 5;
        *out = bool_value(false);
        return true;
    default: return read_number(r, at, out);
    }
}

bool chat_read_json(struct render *r, const char *json, size_t n, struct value *out) {
    struct str text; /* NUL-terminated, which ends every scan here */
    const char *at;
    if (!chat_copy(r, json, n, &text)) return false;
    at = text.p;
    return read_value(r, &at, out);
}
