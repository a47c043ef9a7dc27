/* Errors as values: one line of text and a pinned code. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "lib/base/base.h"

/*
 * Makes the text fit to be shown. It may quote hostile input, so control bytes, which could move a terminal's cursor
 * or start a second line, become '?'; and where truncation cut a UTF-8 sequence in two, the rest of it goes.
 */
static void make_printable(char *msg, size_t size, size_t wanted) {
    for (char *p = msg; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f) *p = '?';
    if (wanted < size) return;
    size_t n = strlen(msg), start = n;
    while (start > 0 && n - start < 4 && ((unsigned char)msg[start - 1] & 0xc0) == 0x80) start--;
    if (start > 0 && (unsigned char)msg[start - 1] >= 0xc0) start--;
    if (start < n && !utf8_valid(msg + start, n - start)) msg[start] = 0;
}

static void set_message(struct err *e, const char *fmt, va_list args) {
    char text[sizeof e->msg]; /* a copy, because the arguments may point into e->msg */
    int n = vsnprintf(text, sizeof text, fmt, args);
    if (n < 0) n = snprintf(text, sizeof text, "(message could not be formatted)");
    make_printable(text, sizeof text, (size_t)n);
    memcpy(e->msg, text, strlen(text) + 1);
}

int err_set(struct err *e, int code, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    set_message(e, fmt, args);
    va_end(args);
    return e->code = code;
}

/* The message as it was, behind what the caller put in its place. */
static void append_message(struct err *e, const char *rest) {
    char text[sizeof e->msg];
    int n = snprintf(text, sizeof text, "%s: %s", e->msg, rest);
    make_printable(text, sizeof text, n < 0 ? 0 : (size_t)n);
    memcpy(e->msg, text, strlen(text) + 1);
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
