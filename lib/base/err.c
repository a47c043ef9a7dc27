/* Errors as values: a one-line message and a fixed code. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "lib/base/base.h"

/* Stores the escaped text as the message. `wanted` is its length before it was truncated to sizeof e->msg; if that
 * split a UTF-8 sequence, the incomplete sequence is dropped. */
static void put_message(struct err *e, const char *text, size_t wanted) {
    size_t n = strlen(text), start = n;
    if (wanted >= sizeof e->msg) {
        while (start > 0 && n - start < 4 && ((unsigned char)text[start - 1] & 0xc0) == 0x80) start--;
        if (start > 0 && (unsigned char)text[start - 1] >= 0xc0) start--;
        if (start < n && !utf8_valid(text + start, n - start)) n = start;
    }
    escape_text(e->msg, sizeof e->msg, text, n);
}

static void set_message(struct err *e, const char *fmt, va_list args) {
    char text[sizeof e->msg]; /* a copy, because the arguments may point into e->msg */
    int n = vsnprintf(text, sizeof text, fmt, args);
    if (n < 0) n = snprintf(text, sizeof text, "(message could not be formatted)");
    put_message(e, text, (size_t)n);
}

int err_set(struct err *e, int code, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    set_message(e, fmt, args);
    va_end(args);
    return e->code = code;
}

/* Appends ": rest" to the message. */
static void append_message(struct err *e, const char *rest) {
    char text[sizeof e->msg];
    int n = snprintf(text, sizeof text, "%s: %s", e->msg, rest);
    put_message(e, text, n < 0 ? 0 : (size_t)n);
}

int err_prefix(struct err *e, const char *fmt, ...) {
    char rest[sizeof e->msg];
    memcpy(rest, e->msg, sizeof rest);
    va_list args;
    va_start(args, fmt);
    set_message(e, fmt, args);
    va_end(args);
    append_message(e, rest);
    return e->code;
}

int err_sys(struct err *e, int errnum, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    set_message(e, fmt, args);
    va_end(args);
    char reason[128];
    append_message(e, strerror_r(errnum, reason, sizeof reason));
    return e->code = ERR_IO;
}

int err_nomem(struct err *e, const char *what) {
    return err_set(e, ERR_IO, "out of memory: %s", what);
}
