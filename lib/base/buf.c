/* Growable byte buffer. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "lib/base/base.h"

int buf_reserve(struct buf *b, size_t extra, struct err *e) {
    if (b->cap - b->len >= extra && b->data) return 0;
    uint64_t need;
    if (!u64_add(b->len, extra, &need) || need > PTRDIFF_MAX)
        return err_set(e, ERR_IO, "out of memory: %zu bytes after %zu", extra, b->len);
    /* Doubling makes appends amortized linear; from 1 GiB on, growing by half bounds the waste. */
    size_t cap = b->cap < 64 ? 64 : b->cap < ((size_t)1 << 30) ? 2 * b->cap : b->cap + b->cap / 2;
    if (cap < need) cap = need;
    unsigned char *data = mem_alloc(cap, e);
    if (!data) return e->code;
    if (b->len) memcpy(data, b->data, b->len);
    mem_free(b->data);
    b->data = data;
    b->cap = cap;
    return 0;
}

int buf_append(struct buf *b, const void *data, size_t n, struct err *e) {
    int rc = buf_reserve(b, n, e);
    if (rc) return rc;
    if (n) memcpy(b->data + b->len, data, n);
    b->len += n;
    return 0;
}

int buf_printf(struct buf *b, struct err *e, const char *fmt, ...) {
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    int rc = n < 0 ? err_set(e, ERR_IO, "cannot format text") : buf_reserve(b, (size_t)n + 1, e);
    if (!rc) {
        vsnprintf((char *)b->data + b->len, (size_t)n + 1, fmt, again); /* writes a NUL that is not counted */
        b->len += (size_t)n;
    }
    va_end(again);
    va_end(args);
    return rc;
}

void buf_release(struct buf *b) {
    mem_free(b->data);
    *b = (struct buf){0};
}
