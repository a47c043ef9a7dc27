/*
 * Gram matrices and products of rows rounded to 16 bits, split into tasks over the path's micro-kernel. A task owns the
 * part of the result that it adds to, and integer sums are exact, so results do not depend on threads.
 */
#include "lib/kernel/kernel_internal.h"

static size_t panels16(size_t n) {
    return (n + ROWS16_PANEL - 1) / ROWS16_PANEL;
}

bool kernel_has_rows16(void) {
    return simd()->rows16 != NULL;
}

size_t kernel_rows16_bytes(size_t n) {
    return panels16(n) * ROWS16_PANEL * (sizeof(float) + KERNEL_ROWS16 / 2 * sizeof(uint32_t));
}

struct kernel_rows16 kernel_rows16_in(void *memory, size_t n) {
    float *scale = memory;
    return (struct kernel_rows16){n, 0, scale, (uint32_t *)(void *)(scale + panels16(n) * ROWS16_PANEL)};
}

struct rows16_job {
    const struct micro_rows16 *micro;
    const struct kernel_rows16 *a, *b;
    struct view x;
    const float *by;
    float *c;
    bool upper;
};

static void take_panel(void *ctx, size_t panel, int thread) {
    const struct rows16_job *j = ctx;
    size_t first = panel * ROWS16_PANEL;
    (void)thread;
    struct columns16 t = {.n = smaller(ROWS16_PANEL, j->a->n - first),
                          .rows = j->a->rows,
                          .x = view_part(j->x, first),
                          .ld = j->a->n,
                          .by = j->by,
                          .scale = j->a->scale + first,
                          .words = j->a->words + first * (KERNEL_ROWS16 / 2)};
    j->micro->take(&t);
}

void kernel_rows16_take(struct kernel_rows16 *r, size_t rows, struct kernel_array x, const float *by) {
    r->rows = rows;
    struct rows16_job j = {.micro = simd()->rows16, .a = r, .x = view_of(x), .by = by};
    parallel_for(panels16(r->n), take_panel, &j);
}

/* Adds to the rows of c that belong to one panel of a. */
static void add_products(void *ctx, size_t panel, int thread) {
    const struct rows16_job *j = ctx;
    size_t row = panel * ROWS16_PANEL, n = j->b->n;
    (void)thread;
    for (size_t col = j->upper ? row : 0; col < n; col += ROWS16_PANEL) {
        struct block_rows16 t = {.pairs = (j->a->rows + 1) / 2,
                                 .rows = smaller(ROWS16_PANEL, j->a->n - row),
                                 .cols = smaller(ROWS16_PANEL, n - col),
                                 .a = j->a->words + row * (KERNEL_ROWS16 / 2),
                                 .b = j->b->words + col * (KERNEL_ROWS16 / 2),
                                 .a_scale = j->a->scale + row,
                                 .b_scale = j->b->scale + col,
                                 .c = j->c + row * n + col,
                                 .ldc = n};
        j->micro->add(&t);
    }
}

static void multiply(const struct kernel_rows16 *a, const struct kernel_rows16 *b, bool upper, float *c) {
    struct rows16_job j = {.micro = simd()->rows16, .a = a, .b = b, .c = c, .upper = upper};
    parallel_for(panels16(a->n), add_products, &j);
}

void kernel_gram16(const struct kernel_rows16 *x, float *c) {
    multiply(x, x, true, c);
}

void kernel_product16(const struct kernel_rows16 *a, const struct kernel_rows16 *b, float *c) {
    multiply(a, b, false, c);
}
