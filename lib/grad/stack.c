/*
 * Memory filled from the front and given back to a mark. It is a list of blocks, each at least as large as all before
 * it: the first step of a shape makes a few, later steps make none and touch the same pages.
 */
#include "lib/grad/grad_internal.h"

#define ALIGN     64
#define MIN_BLOCK ((size_t)1 << 20)

static int add_block(struct grad_stack *s, size_t need, struct err *e) {
    if (s->n_blocks == s->max_blocks) {
        size_t max = s->max_blocks ? 2 * s->max_blocks : 8;
        struct grad_block *blocks = mem_array(max, sizeof *blocks, e);
        if (!blocks) return e->code;
        if (s->n_blocks) memcpy(blocks, s->blocks, s->n_blocks * sizeof *blocks);
        mem_free(s->blocks);
        s->blocks = blocks;
        s->max_blocks = max;
    }
    size_t held = stack_held(s), size = held > MIN_BLOCK ? held : MIN_BLOCK;
    if (size < need) size = need;
    unsigned char *data = mem_alloc(size, e);
    if (!data && size > need) data = mem_alloc(size = need, e);
    if (!data) return e->code;
    s->blocks[s->n_blocks++] = (struct grad_block){data, size, held};
    return 0;
}

void *stack_take(struct grad_stack *s, size_t n, size_t size, struct err *e) {
    uint64_t bytes;
    if (!u64_mul(n, size, &bytes) || !u64_align(bytes ? bytes : 1, ALIGN, &bytes)) {
        err_set(e, ERR_IO, "out of memory: %zu objects of %zu bytes", n, size);
        return NULL;
    }
    while (s->block < s->n_blocks && bytes > s->blocks[s->block].size - s->used) {
        s->block++;
        s->used = 0;
    }
    if (s->block == s->n_blocks && add_block(s, bytes, e)) return NULL;
    void *p = s->blocks[s->block].data + s->used;
    s->used += bytes;
    if (stack_mark(s) > s->peak) s->peak = stack_mark(s);
    return p;
}

size_t stack_mark(const struct grad_stack *s) {
    return s->block < s->n_blocks ? s->blocks[s->block].before + s->used : stack_held(s);
}

void stack_rewind(struct grad_stack *s, size_t mark) {
    while (s->block > 0 && (s->block == s->n_blocks || s->blocks[s->block].before > mark)) s->block--;
    s->used = s->n_blocks ? mark - s->blocks[s->block].before : 0;
}

size_t stack_held(const struct grad_stack *s) {
    return s->n_blocks ? s->blocks[s->n_blocks - 1].before + s->blocks[s->n_blocks - 1].size : 0;
}

void stack_release(struct grad_stack *s) {
    for (size_t i = 0; i < s->n_blocks; i++) mem_free(s->blocks[i].data);
    mem_free(s->blocks);
    *s = (struct grad_stack){0};
}
