/* A matrix as the codes and scales of its type's blocks, so that single codes and scales can be changed. */
#include <string.h>

#include "lib/quant/second_order.h"

void grid_view(struct grid *g, void *state) {
    g->stored = state;
    g->codes = (uint8_t *)(g->stored + g->rows * g->blocks);
}

int grid_new(struct grid *g, enum dtype dtype, size_t rows, size_t cols, struct err *e) {
    *g = (struct grid){.form = quant_form(dtype), .rows = rows, .cols = cols};
    g->block = dtype_info(dtype)->block_elems;
    g->block_bytes = dtype_info(dtype)->block_bytes;
    g->blocks = cols / g->block;
    g->groups = cols / g->form->group;
    void *state = mem_array(1, grid_state_bytes(g), e);
    if (state) grid_view(g, state);
    g->scales = state ? mem_array(rows * g->groups, sizeof *g->scales, e) : NULL;
    g->mins = g->scales ? mem_array(rows * g->groups, sizeof *g->mins, e) : NULL;
    return g->mins ? 0 : e->code;
}

size_t grid_state_bytes(const struct grid *g) {
    return g->rows * (g->blocks * sizeof *g->stored + g->cols);
}

void grid_release(struct grid *g) {
    mem_free(g->stored);
    mem_free(g->scales);
    mem_free(g->mins);
    *g = (struct grid){0};
}

void grid_read_scales(struct grid *g, size_t row, size_t block) {
    const struct grid_block *p = &g->stored[row * g->blocks + block];
    size_t n = g->block / g->form->group, first = row * g->groups + block * n;
    for (size_t i = 0; i < n; i++) {
        g->scales[first + i] = f16_to_f32(p->d) * p->scales[i];
        g->mins[first + i] = g->form->has_min ? f16_to_f32(p->min) * p->mins[i] : 0;
    }
}

#define AT_ONCE 16 /* divides every group */

void grid_values(const struct grid *g, size_t row, size_t first, size_t n, float *out) {
    size_t len = g->form->group;
    int offset = g->form->offset;
    for (size_t j = 0; j < n; j += AT_ONCE) {
        const uint8_t *codes = grid_code(g, row, first + j);
        size_t at = row * g->groups + (first + j) / len;
        float scale = g->scales[at], min = g->mins[at];
        for (size_t i = 0; i < AT_ONCE; i++) out[j + i] = scale * (float)(codes[i] - offset) + min;
    }
}

struct blocks {
    struct grid *g;
    const unsigned char *packed;
};

static void take_row(void *ctx, size_t row, int thread) {
    const struct blocks *j = ctx;
    const struct grid *g = j->g;
    (void)thread;
    for (size_t b = 0; b < g->blocks; b++) {
        size_t at = row * g->blocks + b;
        struct quant_parts p;
        quant_take_apart(g->form->dtype, j->packed + at * g->block_bytes, &p);
        struct grid_block *to = &g->stored[at];
        to->d = p.d, to->min = p.min;
        memcpy(to->scales, p.scales, sizeof p.scales);
        memcpy(to->mins, p.mins, sizeof p.mins);
        memcpy(grid_code(g, row, b * g->block), p.codes, g->block);
        grid_read_scales(j->g, row, b);
    }
}

void grid_take(struct grid *g, const unsigned char *packed) {
    parallel_for(g->rows, take_row, &(struct blocks){g, packed});
}

void grid_put(const struct grid *g, size_t row, unsigned char *packed) {
    for (size_t b = 0; b < g->blocks; b++) {
        const struct grid_block *from = &g->stored[row * g->blocks + b];
        struct quant_parts p = {.d = from->d, .min = from->min};
        memcpy(p.scales, from->scales, sizeof p.scales);
        memcpy(p.mins, from->mins, sizeof p.mins);
        memcpy(p.codes, grid_code(g, row, b * g->block), g->block);
        quant_put_together(g->form->dtype, &p, packed + b * g->block_bytes);
    }
}
