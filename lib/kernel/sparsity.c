/* Masks: which weights of a matrix become zero, by |w| times a factor of the column, within rows or groups of a row. */
#include <math.h>
#include <string.h>

#include "lib/kernel/kernel_internal.h"

struct mask {
    float *x;
    const float *scale; /* NULL: 1 */
    size_t rows, cols, k;
    unsigned keep, group;
    float *scratch; /* [parallel_threads()][2 cols] */
};

/* x_j scale_j of a row; callers take absolute values. */
static void score_row(const struct mask *m, const float *x, float *score) {
    if (!m->scale) {
        memcpy(score, x, m->cols * sizeof *score);
        return;
    }
    for (size_t j = 0; j < m->cols; j++) score[j] = x[j] * m->scale[j];
}

static void zero_row(void *ctx, size_t row, int thread) {
    const struct mask *m = ctx;
    float *x = m->x + row * m->cols, *score = m->scratch + 2 * m->cols * (size_t)thread;
    size_t ties = m->k;
    score_row(m, x, score);
    float threshold = kernel_kth_abs(score, m->cols, m->k - 1, score + m->cols);
    for (size_t j = 0; j < m->cols; j++) ties -= fabsf(score[j]) < threshold;
    for (size_t j = 0; j < m->cols; j++) {
        float s = fabsf(score[j]);
        if (s < threshold || (s == threshold && ties)) {
            ties -= s == threshold;
            x[j] = 0;
        }
    }
}

void kernel_zero_smallest_rows(float *x, const float *scale, size_t rows, size_t cols, size_t k, float *scratch) {
    struct mask m = {.x = x, .scale = scale, .rows = rows, .cols = cols, .k = k, .scratch = scratch};
    if (k) parallel_for(rows, zero_row, &m);
}

void kernel_smallest_of_group(const float *score, size_t stride, unsigned group, unsigned keep,
                              unsigned char gone[KERNEL_MAX_GROUP]) {
    memset(gone, 0, group);
    for (unsigned n = keep; n < group; n++) {
        unsigned least = group;
        for (unsigned j = 0; j < group; j++)
            if (!gone[j] && (least == group || score[j * stride] < score[least * stride])) least = j;
        gone[least] = 1;
    }
}

static void zero_groups(void *ctx, size_t row, int thread) {
    const struct mask *m = ctx;
    float *x = m->x + row * m->cols, score[KERNEL_MAX_GROUP];
    unsigned char gone[KERNEL_MAX_GROUP];
    (void)thread;
    for (size_t at = 0; at < m->cols; at += m->group) {
        for (unsigned j = 0; j < m->group; j++) score[j] = fabsf(x[at + j] * (m->scale ? m->scale[at + j] : 1));
        kernel_smallest_of_group(score, 1, m->group, m->keep, gone);
        for (unsigned j = 0; j < m->group; j++)
            if (gone[j]) x[at + j] = 0;
    }
}

void kernel_zero_groups(float *x, const float *scale, size_t rows, size_t cols, unsigned keep, unsigned group) {
    struct mask m = {.x = x, .scale = scale, .rows = rows, .cols = cols, .keep = keep, .group = group};
    parallel_for(rows, zero_groups, &m);
}

size_t kernel_count_zeros(const float *x, size_t n) {
    size_t zeros = 0;
    for (size_t i = 0; i < n; i++) zeros += x[i] == 0;
    return zeros;
}

/* ---- bits ---- */

#define BIT_BYTES 4096 /* per task */

struct bits {
    float *x;
    unsigned char *bits;
    size_t n;
};

static unsigned char *host_u8(struct kernel_array a) {
    return host_of(a);
}

size_t kernel_zero_bits(struct kernel_array bits, struct kernel_array x, size_t n) {
    const float *from = host_f32(x);
    unsigned char *to = host_u8(bits);
    size_t zeros = 0;
    memset(to, 0, (n + 7) / 8);
    for (size_t i = 0; i < n; i++) {
        to[i / 8] |= (unsigned char)((from[i] == 0) << i % 8);
        zeros += from[i] == 0;
    }
    return zeros;
}

static void zero_piece(void *ctx, size_t begin, size_t end) {
    const struct bits *b = ctx;
    for (size_t k = begin; k < end; k++) {
        size_t left = b->n - 8 * k;
        if (b->bits[k])
            for (size_t i = 0; i < (left < 8 ? left : 8); i++)
                if (b->bits[k] >> i & 1) b->x[8 * k + i] = 0;
    }
}

void kernel_zero_by_bits(struct kernel_array x, struct kernel_array bits, size_t n) {
    struct bits b = {host_f32(x), host_u8(bits), n};
    kernel_split((n + 7) / 8, BIT_BYTES, zero_piece, &b);
}
