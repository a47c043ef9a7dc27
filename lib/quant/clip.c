/* Clips the ranges of groups where that lowers the output error, as AWQ does before rounding. */
#include <math.h>
#include <string.h>

#include "lib/quant/second_order.h"

#define CUTS 10 /* 1, 0.95 .. 0.55 of the largest magnitude */

struct job {
    enum dtype to;
    const float *w, *importance; /* [rows][cols], [cols] */
    size_t cols, group, groups, row_bytes;
    unsigned char *packed; /* [rows][row_bytes] */
    float *floats;         /* [threads][2][cols] */
    unsigned char *bytes;  /* [threads][row_bytes] */
    uint8_t *cuts;         /* [threads][groups] */
    double *errors;        /* [threads][2][groups] */
    struct err *failed;    /* [rows] */
};

/* per thread */
struct scratch {
    float *x, *back;
    unsigned char *packed;
    uint8_t *cut;
    double *least, *error;
};

static struct scratch scratch_of(const struct job *j, int thread) {
    size_t t = (size_t)thread;
    float *f = j->floats + t * 2 * j->cols;
    double *d = j->errors + t * 2 * j->groups;
    return (struct scratch){f, f + j->cols, j->bytes + t * j->row_bytes, j->cuts + t * j->groups, d, d + j->groups};
}

/* x = w with each group clipped at its own cut, or at `all` if cut is NULL. */
static void cut_off(const struct job *j, const float *w, const uint8_t *cut, int all, float *x) {
    for (size_t g = 0; g < j->groups; g++) {
        const float *from = w + g * j->group;
        float most = 0;
        for (size_t i = 0; i < j->group; i++) most = fmaxf(most, fabsf(from[i]));
        most *= 1 - (float)(cut ? cut[g] : all) / 20;
        for (size_t i = 0; i < j->group; i++) x[g * j->group + i] = fmaxf(-most, fminf(most, from[i]));
    }
}

static void errors_of(const struct job *j, const float *w, const unsigned char *packed, float *back, double *error) {
    tensor_to_f32(j->to, packed, back, j->cols);
    for (size_t g = 0; g < j->groups; g++) {
        error[g] = 0;
        for (size_t i = g * j->group; i < (g + 1) * j->group; i++)
            error[g] += (double)j->importance[i] * ((double)back[i] - w[i]) * ((double)back[i] - w[i]);
    }
}

/* For each group, the cut of least error when all groups of the row are cut alike; then rounds with these cuts. */
static int search(const struct job *j, const float *w, const struct scratch *s, struct err *e) {
    memset(s->cut, 0, j->groups);
    for (int k = 1; k < CUTS; k++) {
        cut_off(j, w, NULL, k, s->x);
        if (tensor_from_f32(j->to, s->x, s->packed, j->cols, j->importance, e)) return e->code;
        errors_of(j, w, s->packed, s->back, s->error);
        for (size_t g = 0; g < j->groups; g++)
            if (s->error[g] < s->least[g]) s->least[g] = s->error[g], s->cut[g] = (uint8_t)k;
    }
    cut_off(j, w, s->cut, 0, s->x);
    return tensor_from_f32(j->to, s->x, s->packed, j->cols, j->importance, e);
}

/* Replaces the blocks in which the clipped version is better overall. */
static void keep_better(const struct job *j, const float *w, const struct scratch *s, unsigned char *packed) {
    size_t block = dtype_info(j->to)->block_elems, bytes = dtype_info(j->to)->block_bytes, n = block / j->group;
    errors_of(j, w, packed, s->back, s->least);
    errors_of(j, w, s->packed, s->back, s->error);
    for (size_t b = 0; b < j->cols / block; b++) {
        double before = 0, after = 0;
        for (size_t g = b * n; g < (b + 1) * n; g++) before += s->least[g], after += s->error[g];
        if (after < before) memcpy(packed + b * bytes, s->packed + b * bytes, bytes);
    }
}

static void clip_row(void *ctx, size_t row, int thread) {
    const struct job *j = ctx;
    struct scratch s = scratch_of(j, thread);
    const float *w = j->w + row * j->cols;
    unsigned char *packed = j->packed + row * j->row_bytes;
    errors_of(j, w, packed, s.back, s.least);
    if (search(j, w, &s, &j->failed[row])) return;
    keep_better(j, w, &s, packed);
}

int clip_improve(enum dtype to, const float *w, size_t rows, size_t cols, const float *importance,
                 unsigned char *packed, struct err *e) {
    struct arena a = {0};
    size_t threads = (size_t)parallel_threads();
    struct job j = {.to = to, .w = w, .importance = importance, .cols = cols, .packed = packed};
    j.group = quant_form(to)->group;
    j.groups = cols / j.group;
    j.row_bytes = dtype_row_bytes(to, cols);
    j.floats = arena_array(&a, threads * 2 * cols, sizeof *j.floats, e);
    j.bytes = j.floats ? arena_array(&a, threads, j.row_bytes, e) : NULL;
    j.cuts = j.bytes ? arena_array(&a, threads, j.groups, e) : NULL;
    j.errors = j.cuts ? arena_array(&a, threads * 2 * j.groups, sizeof *j.errors, e) : NULL;
    j.failed = j.errors ? arena_array(&a, rows, sizeof *j.failed, e) : NULL;
    int rc = j.failed ? 0 : e->code;
    if (!rc) parallel_for(rows, clip_row, &j);
    for (size_t i = 0; !rc && i < rows; i++)
        if (j.failed[i].code) *e = j.failed[i], rc = e->code;
    arena_release(&a);
    return rc;
}
