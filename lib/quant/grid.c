/* A matrix as the codes and scales of its type's blocks, so that single codes and scales can be changed. */
#include "lib/quant/second_order.h"

int grid_new(struct grid *g, enum dtype dtype, size_t rows, size_t cols, struct err *e) {
    *g = (struct grid){.form = quant_form(dtype), .rows = rows, .cols = cols};
    g->block = dtype_info(dtype)->block_elems;
    g->block_bytes = dtype_info(dtype)->block_bytes;
    g->blocks = cols / g->block;
    g->groups = cols / g->form->group;
    g->parts = mem_array(rows * g->blocks, sizeof *g->parts, e);
    g->scales = g->parts ? mem_array(rows * g->groups, sizeof *g->scales, e) : NULL;
    g->mins = g->scales ? mem_array(rows * g->groups, sizeof *g->mins, e) : NULL;
    return g->mins ? 0 : e->code;
}

void grid_release(struct grid *g) {
    mem_free(g->parts);
    mem_free(g->scales);
    mem_free(g->mins);
    *g = (struct grid){0};
}

void grid_read_scales(struct grid *g, size_t row, size_t block) {
    const struct quant_parts *p = &g->parts[row * g->blocks + block];
    size_t n = g->block / g->form->group, first = row * g->groups + block * n;
    for (size_t i = 0; i < n; i++) {
        g->scales[first + i] = f16_to_f32(p->d) * p->scales[i];
        g->mins[first + i] = g->form->has_min ? f16_to_f32(p->min) * p->mins[i] : 0;
    }
}

void grid_values(const struct grid *g, size_t row, size_t first, size_t n, float *out) {
    size_t len = g->form->group;
    for (size_t j = 0; j < n; j += len) {
        const uint8_t *codes = grid_code(g, row, first + j);
        size_t at = row * g->groups + (first + j) / len;
        float scale = g->scales[at], min = g->mins[at];
        for (size_t i = 0; i < len && j + i < n; i++) {
            float x = scale * (float)(codes[i] - g->form->offset);
            out[j + i] = g->form->has_min ? x + min : x;
        }
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
        quant_take_apart(g->form->dtype, j->packed + at * g->block_bytes, &g->parts[at]);
        grid_read_scales(j->g, row, b);
    }
}

void grid_take(struct grid *g, const unsigned char *packed) {
    parallel_for(g->rows, take_row, &(struct blocks){g, packed});
}
