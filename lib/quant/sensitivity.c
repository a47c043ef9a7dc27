/* Measures the effect of each type on a matrix: the rounding error weighted by the importance of the columns. */
#include "lib/quant/budget.h"

#include <string.h>

#define SENSE_ROWS 16 /* rows per piece */

struct piece_job {
    const float *x, *importance;
    uint64_t rows, cols, row_bytes;
    enum dtype to; /* type for the error; DT_F32 for the power */
    bool power;
    unsigned char *packed; /* [threads][SENSE_ROWS][row_bytes] */
    float *back;           /* [threads][cols] */
    double *sum;           /* [pieces] */
    struct err *failed;    /* [pieces] */
};

static void sum_piece(void *ctx, size_t i, int thread) {
    struct piece_job *j = ctx;
    uint64_t first = i * SENSE_ROWS, n = j->rows - first < SENSE_ROWS ? j->rows - first : SENSE_ROWS;
    unsigned char *packed = j->packed + (size_t)thread * SENSE_ROWS * j->row_bytes;
    float *back = j->back + (size_t)thread * j->cols;
    const float *weight = !j->power && !dtype_info(j->to)->weighed ? NULL : j->importance;
    const float *x = j->x + first * j->cols;
    if (!j->power && tensor_rows_from_f32(j->to, x, first, n, j->cols, packed, weight, &j->failed[i])) return;
    for (uint64_t r = 0; r < n; r++, x += j->cols) {
        if (j->power)
            memset(back, 0, j->cols * sizeof *back);
        else
            tensor_to_f32(j->to, packed + r * j->row_bytes, back, j->cols);
        for (uint64_t c = 0; c < j->cols; c++) {
            double d = (double)x[c] - back[c];
            j->sum[i] += d * d * (j->importance ? j->importance[c] : 1);
        }
    }
}

/* Sums over all rows, in the order of the pieces. */
static int sum_rows(struct piece_job *j, double *out, struct err *e) {
    struct arena a = {0};
    size_t pieces = (size_t)((j->rows + SENSE_ROWS - 1) / SENSE_ROWS), threads = (size_t)parallel_threads();
    j->row_bytes = dtype_row_bytes(j->to, j->cols);
    j->sum = arena_array(&a, pieces, sizeof *j->sum, e);
    j->failed = j->sum ? arena_array(&a, pieces, sizeof *j->failed, e) : NULL;
    j->packed = j->failed ? arena_array(&a, threads, SENSE_ROWS * j->row_bytes, e) : NULL;
    j->back = j->packed ? arena_array(&a, threads, j->cols * sizeof *j->back, e) : NULL;
    int rc = j->back ? 0 : e->code;
    if (!rc) parallel_for(pieces, sum_piece, j);
    *out = 0;
    for (size_t i = 0; !rc && i < pieces; i++) {
        *out += j->sum[i];
        if (j->failed[i].code) *e = j->failed[i], rc = e->code;
    }
    arena_release(&a);
    return rc;
}

double sense_error(const struct sense *s, enum dtype to) {
    size_t i = 0;
    while (i < s->n && s->types[i].to != to) i++;
    return i < s->n ? s->types[i].error : 0;
}

static int measure(const struct sense_job *j, const enum dtype *types, size_t n, struct sense *s, bool *new,
                   struct err *e) {
    struct piece_job p = {
        .importance = j->importance, .rows = tensor_rows(j->d), .cols = tensor_row_elems(j->d), .to = DT_F32};
    size_t missing = 0;
    for (size_t i = 0; i < n; i++) missing += types[i] != j->d->dtype && !sense_knows(s, types[i]);
    *new = missing || s->power < 0;
    if (!*new) return 0;
    if (quant_values(j->d->dtype, j->data, tensor_elems(j->d), j->f32, &p.x, e)) return e->code;
    p.power = true;
    int rc = sum_rows(&p, &s->power, e);
    p.power = false;
    for (size_t i = 0; !rc && i < n; i++) {
        if (types[i] == j->d->dtype || sense_knows(s, types[i])) continue;
        p.to = types[i];
        s->types[s->n].to = types[i];
        rc = sum_rows(&p, &s->types[s->n].error, e);
        s->n += !rc;
    }
    return rc;
}

int sense_measure(const struct sense_job *j, const enum dtype *types, size_t n, struct sense *s, struct err *e) {
    struct digest key = {0, 0};
    bool found = false, new = false;
    int rc = 0;
    *s = (struct sense){0};
    if (j->cache) rc = cache_key(j->d, j->data, j->importance, NULL, 0, &key, e);
    if (!rc && j->cache) rc = sense_recall(j->cache, key, s, &found, e);
    if (!found) s->power = -1; /* not measured yet */
    if (!rc) rc = measure(j, types, n, s, &new, e);
    if (!rc && new && j->cache) rc = sense_store(j->cache, key, s, e);
    return rc ? err_prefix(e, "tensor '%s'", j->d->name) : 0;
}
