/* Aligned memory allocation and the arena. */
#include <inttypes.h>
#include <malloc.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "lib/base/base_internal.h"

#ifdef RILL_ASAN
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n)   ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

#define ALIGN     64 /* a cache line, and the width of the widest vector register */
#define HUGE_PAGE ((size_t)2 << 20)

/* ---- the allocator ---- */

static atomic_uint_fast64_t countdown; /* allocations until one fails; 0: off */

void mem_fail_at(uint64_t n) {
    atomic_store(&countdown, n);
}

static bool must_fail(void) {
    uint_fast64_t left = atomic_load_explicit(&countdown, memory_order_relaxed);
    while (left)
        if (atomic_compare_exchange_weak(&countdown, &left, left - 1)) return left == 1;
    return false;
}

/* Faulting in a weight's 4 KiB pages takes longer than reading it from a file, so ask for huge pages. Blocks of less
 * than two huge pages would gain little and are soon reused. */
static void ask_for_huge_pages(void *p, size_t size) {
    if (size < 2 * HUGE_PAGE) return;
    uintptr_t begin = ((uintptr_t)p + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
    uintptr_t end = ((uintptr_t)p + size) & ~(HUGE_PAGE - 1);
    if (begin < end) madvise((void *)begin, end - begin, MADV_HUGEPAGE); /* only advice: failure is harmless */
}

void *mem_alloc(size_t size, struct err *e) {
    void *p = NULL;
    if (mem_check(size, e)) {
        err_prefix(e, "out of memory");
        return NULL;
    }
    if (must_fail() || size > PTRDIFF_MAX - ALIGN || posix_memalign(&p, ALIGN, size ? size : 1) != 0) {
        err_set(e, ERR_IO, "out of memory: %zu bytes", size);
        return NULL;
    }
    budget_take(malloc_usable_size(p));
    ask_for_huge_pages(p, size);
    return p;
}

void mem_trim(void) {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

void *mem_zalloc(size_t size, struct err *e) {
    void *p = mem_alloc(size, e);
    if (p) memset(p, 0, size);
    return p;
}

void *mem_array(size_t n, size_t size, struct err *e) {
    uint64_t bytes;
    if (!u64_mul(n, size, &bytes)) {
        err_set(e, ERR_IO, "out of memory: %zu objects of %zu bytes", n, size);
        return NULL;
    }
    return mem_zalloc(bytes, e);
}

char *mem_strdup(const char *s, struct err *e) {
    size_t n = strlen(s) + 1;
    char *copy = mem_alloc(n, e);
    if (copy) memcpy(copy, s, n);
    return copy;
}

void mem_free(void *p) {
    if (p) budget_give(malloc_usable_size(p));
    free(p);
}

/* ---- the arena: a list of blocks, newest first, each filled from the front ---- */

#define BLOCK_MIN ((size_t)16 << 10)
#define BLOCK_MAX ((size_t)1 << 20) /* blocks double up to here; a larger object gets a block of its own size */

struct arena_block {
    _Alignas(ALIGN) struct arena_block *next;
    size_t used, size; /* bytes of data */
    _Alignas(ALIGN) unsigned char data[];
};

/* Adds a new block at the head of the list, with room for `need` bytes. */
static struct arena_block *add_block(struct arena *a, size_t need, struct err *e) {
    size_t size = a->head ? a->head->size : BLOCK_MIN / 2;
    size = size < BLOCK_MAX / 2 ? 2 * size : BLOCK_MAX;
    if (size < need) size = need;
    struct arena_block *b = mem_alloc(sizeof *b + size, e);
    if (!b) return NULL;
    *b = (struct arena_block){.next = a->head, .size = size};
    ASAN_POISON_MEMORY_REGION(b->data, size);
    a->head = b;
    return b;
}

void *arena_alloc(struct arena *a, size_t size, struct err *e) {
    size_t align = size >= ALIGN ? ALIGN : 16;
    if (size > PTRDIFF_MAX - 4 * ALIGN) { /* so that nothing below overflows */
        err_set(e, ERR_IO, "out of memory: %zu bytes", size);
        return NULL;
    }
    struct arena_block *b = a->head;
    size_t start = b ? (b->used + align - 1) & ~(align - 1) : 0;
    size_t take = size ? size : 1; /* an empty object has a unique address, too */
    if (!b || start > b->size || take > b->size - start) {
        b = add_block(a, take, e);
        if (!b) return NULL;
        start = 0;
    }
    b->used = start + take;
    ASAN_UNPOISON_MEMORY_REGION(b->data + start, size);
    return b->data + start;
}

void *arena_array(struct arena *a, size_t n, size_t size, struct err *e) {
    uint64_t bytes;
    if (!u64_mul(n, size, &bytes)) {
        err_set(e, ERR_IO, "out of memory: %zu objects of %zu bytes", n, size);
        return NULL;
    }
    void *p = arena_alloc(a, bytes, e);
    if (p) memset(p, 0, bytes);
    return p;
}

char *arena_strdup(struct arena *a, const char *s, struct err *e) {
    return arena_strndup(a, s, strlen(s), e);
}

char *arena_strndup(struct arena *a, const char *s, size_t n, struct err *e) {
    if (n >= PTRDIFF_MAX) {
        err_set(e, ERR_IO, "out of memory: %zu bytes", n);
        return NULL;
    }
    char *copy = arena_alloc(a, n + 1, e);
    if (!copy) return NULL;
    memcpy(copy, s, n);
    copy[n] = 0;
    return copy;
}

char *arena_printf(struct arena *a, struct err *e, const char *fmt, ...) {
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    char *text = NULL;
    if (n < 0)
        err_set(e, ERR_IO, "cannot format text");
    else if ((text = arena_alloc(a, (size_t)n + 1, e)))
        vsnprintf(text, (size_t)n + 1, fmt, again);
    va_end(again);
    va_end(args);
    return text;
}

static void free_block(struct arena_block *b) {
    ASAN_UNPOISON_MEMORY_REGION(b->data, b->size); /* malloc may reuse it */
    mem_free(b);
}

/* Keep the largest block: an arena that is reset for each record soon stops allocating. */
void arena_reset(struct arena *a) {
    struct arena_block *keep = a->head;
    for (struct arena_block *b = a->head; b; b = b->next)
        if (b->size > keep->size) keep = b;
    for (struct arena_block *b = a->head, *next; b; b = next) {
        next = b->next;
        if (b != keep) free_block(b);
    }
    if (keep) {
        keep->next = NULL;
        keep->used = 0;
        ASAN_POISON_MEMORY_REGION(keep->data, keep->size);
    }
    a->head = keep;
}

void arena_release(struct arena *a) {
    for (struct arena_block *b = a->head, *next; b; b = next) {
        next = b->next;
        free_block(b);
    }
    a->head = NULL;
}
