/*
 * A stack allocator: a list of blocks, each at least as large as all before it together. The first step of a shape
 * allocates a few; later steps allocate none and touch the same pages.
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
    struct kernel_array memory = kernel_alloc(s->device, DT_U8, size, e);
    if (!kernel_has_data(memory) && size > need) memory = kernel_alloc(s->device, DT_U8, size = need, e);
    if (!kernel_has_data(memory)) return e->code;
    s->blocks[s->n_blocks++] = (struct grad_block){memory, size, held};
    return 0;
}

struct kernel_array stack_take(struct grad_stack *s, enum dtype dtype, size_t n, size_t size, struct err *e) {
    uint64_t bytes;
    if (!u64_mul(n, size, &bytes) || !u64_align(bytes ? bytes : 1, ALIGN, &bytes)) {
        err_set(e, ERR_IO, "out of memory: %zu objects of %zu bytes", n, size);
        return kernel_none(dtype);
    }
    while (s->block < s->n_blocks && bytes > s->blocks[s->block].size - s->used) {
        s->block++;
        s->used = 0;
    }
    if (s->block == s->n_blocks && add_block(s, bytes, e)) return kernel_none(dtype);
    struct kernel_array a = kernel_typed(kernel_part(s->blocks[s->block].memory, s->used), dtype);
    s->used += bytes;
    if (stack_mark(s) > s->peak) s->peak = stack_mark(s);
    return a;
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
    for (size_t i = 0; i < s->n_blocks; i++) kernel_free(s->device, s->blocks[i].memory);
    mem_free(s->blocks);
    *s = (struct grad_stack){.device = s->device};
}
