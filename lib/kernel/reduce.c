/*
 * Sums. Over a whole vector: a fixed number of parts, added in order. Over the rows of a matrix: each task owns a strip
 * of columns and goes through all rows in order, so no partial sums need to be stored.
 */
#include "lib/kernel/kernel_internal.h"

/* ---- over a vector: the number of parts depends only on n -------------------------------------------------------- */

#define PARTS 64

struct sum {
    double (*of)(const float *x, const float *y, size_t n);
    const float *x, *y;
    double part[PARTS];
    size_t length; /* of a part */
};

static void sum_part(void *ctx, size_t begin, size_t end) {
    struct sum *c = ctx;
    c->part[begin / c->length] = c->of(c->x + begin, c->y + begin, end - begin);
}

static double sum_parts(struct sum c, size_t n) {
    c.length = (n / PARTS / PIECE + 1) * PIECE;
    kernel_split(n, c.length, sum_part, &c);
    double total = 0;
    for (size_t i = 0; i * c.length < n; i++) total += c.part[i];
    return total;
}

double kernel_dot(struct kernel_array x, struct kernel_array y, size_t n) {
    PROFILE(ELEMENTWISE);
    return sum_parts((struct sum){.of = simd()->dot, .x = host_f32(x), .y = host_f32(y)}, n);
}

double kernel_squared_distance(struct kernel_array x, struct kernel_array y, size_t n) {
    PROFILE(ELEMENTWISE);
    return sum_parts((struct sum){.of = simd()->distance, .x = host_f32(x), .y = host_f32(y)}, n);
}

double kernel_sum_squares(struct kernel_array x, size_t n) {
    PROFILE(ELEMENTWISE);
    return kernel_dot(x, x, n);
}

/* ---- over the rows, for each column ------------------------------------------------------------------------------ */

/*
 * Rows are summed in blocks before they are added to the total: the error grows with 128 + rows / 128, not with rows.
 */
#define ROW_BLOCK 128

struct columns {
    const struct simd *v;
    void (*acc)(const struct columns *c, float *sum, size_t row, size_t begin, size_t n);
    float *out;
    const float *x;
    size_t rows, d;
    struct view typed; /* used by acc_typed instead of x */
};

static void sum_strip(void *ctx, size_t begin, size_t end) {
    const struct columns *c = ctx;
    float sum[COLUMNS];
    size_t n = end - begin;
    for (size_t first = 0; first < c->rows; first += ROW_BLOCK) {
        size_t last = c->rows - first < ROW_BLOCK ? c->rows : first + ROW_BLOCK;
        memset(sum, 0, n * sizeof *sum);
        for (size_t r = first; r < last; r++) c->acc(c, sum, r, begin, n);
        c->v->add(c->out + begin, sum, n);
    }
}

static void acc_typed(const struct columns *c, float *sum, size_t row, size_t begin, size_t n) {
    float scratch[COLUMNS];
    c->v->add(sum, array_get(c->v, c->typed, row * c->d + begin, n, scratch), n);
}

static void acc_square(const struct columns *c, float *sum, size_t row, size_t begin, size_t n) {
    c->v->square_acc(sum, c->x + row * c->d + begin, n);
}

static void acc_abs(const struct columns *c, float *sum, size_t row, size_t begin, size_t n) {
    c->v->abs_acc(sum, c->x + row * c->d + begin, n);
}

void kernel_sum_rows(struct kernel_array y, struct kernel_array x, size_t rows, size_t d) {
    PROFILE(ELEMENTWISE);
    struct columns c = {.v = simd(), .acc = acc_typed, .out = host_f32(y), .rows = rows, .d = d, .typed = view_of(x)};
    kernel_split(d, COLUMNS, sum_strip, &c);
}

void kernel_col_norms2(float *out, const float *x, size_t rows, size_t d) {
    PROFILE(ELEMENTWISE);
    kernel_split(d, COLUMNS, sum_strip,
                 &(struct columns){.v = simd(), .acc = acc_square, .out = out, .x = x, .rows = rows, .d = d});
}

void kernel_col_abs_sum(float *out, const float *x, size_t rows, size_t d) {
    PROFILE(ELEMENTWISE);
    kernel_split(d, COLUMNS, sum_strip,
                 &(struct columns){.v = simd(), .acc = acc_abs, .out = out, .x = x, .rows = rows, .d = d});
}

/* ---- for each row ------------------------------------------------------------------------------------------------ */

struct weight_rows {
    const struct simd *v;
    float *out;
    const float *x;
    size_t d;
};

static void row_norms_piece(void *ctx, size_t begin, size_t end) {
    const struct weight_rows *c = ctx;
    for (size_t r = begin; r < end; r++) {
        const float *x = c->x + r * c->d;
        c->out[r] = (float)c->v->dot(x, x, c->d);
    }
}

void kernel_row_norms2(float *out, const float *x, size_t rows, size_t d) {
    PROFILE(ELEMENTWISE);
    kernel_split(rows, piece_rows(d), row_norms_piece, &(struct weight_rows){simd(), out, x, d});
}

static void add_bias_piece(void *ctx, size_t begin, size_t end) {
    const struct weight_rows *c = ctx;
    for (size_t r = begin; r < end; r++) c->v->add(c->out + r * c->d, c->x, c->d);
}

void kernel_add_bias(struct kernel_array y, struct kernel_array bias, size_t rows, size_t d) {
    PROFILE(ELEMENTWISE);
    kernel_split(rows, piece_rows(d), add_bias_piece, &(struct weight_rows){simd(), host_f32(y), host_f32(bias), d});
}

/* ---- the k-th smallest magnitude ---- */

/* x| as an integer: without the sign bit, floats are ordered like their bits (NaN above infinity). */
static uint32_t magnitude(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u & 0x7fffffff;
}

#define RADIX_BITS 11
#define BUCKETS    (1u << RADIX_BITS)

/*
 * Radix selection from the top: a histogram of the leading 11 bits finds the bucket of the k-th, whose members are
 * gathered in scratch, and the next bits decide among those. Of the three passes only the first reads everything.
 */
float kernel_kth_abs(const float *x, size_t n, size_t k, float *scratch) {
    PROFILE(ELEMENTWISE);
    const float *from = x;
    uint32_t prefix = 0;
    for (int bits_left = 31; bits_left > 0 && n > 0;) {
        int width = bits_left < RADIX_BITS ? bits_left : RADIX_BITS;
        int shift = bits_left - width;
        size_t count[BUCKETS] = {0};
        for (size_t i = 0; i < n; i++) count[(magnitude(from[i]) >> shift) & ((1u << width) - 1)]++;
        uint32_t bucket = 0;
        while (k >= count[bucket]) k -= count[bucket++];
        prefix = prefix << width | bucket;
        size_t kept = 0;
        for (size_t i = 0; i < n; i++)
            if (magnitude(from[i]) >> shift == prefix) scratch[kept++] = from[i];
        from = scratch;
        n = kept;
        bits_left = shift;
    }
    float result;
    memcpy(&result, &prefix, sizeof result);
    return result;
}
