/* Chooses the columns of a matrix to remove, with the remaining columns compensating. */
#include <math.h>
#include <string.h>

#include "lib/prune/second_order.h"

/* A matrix and the inverse of its Gram matrix during elimination. Removed columns are 0 in both. */
struct elimination {
    float *w, *inverse;
    size_t rows, cols;
    const float *weight; /* for the column being removed: [rows] w of it over its diagonal, ... */
    const float *line;   /* ... and [cols] its row of the inverse */
    double diagonal;
    double *norms; /* [cols] of the columns of w, squared */
    float *column, *row;
    unsigned char *gone; /* [cols] */
};

static void eliminate_row(void *ctx, size_t r, int thread) {
    const struct elimination *g = ctx;
    bool of_w = r < g->rows;
    float *x = of_w ? g->w + r * g->cols : g->inverse + (r - g->rows) * g->cols;
    float a = of_w ? g->column[r] : g->row[r - g->rows];
    float by = (float)((double)a / g->diagonal);
    (void)thread;
    if (by == 0) return;
    for (size_t i = 0; i < g->cols; i++) x[i] -= by * g->row[i];
}

/* Removes column j: w -= w_j (G^-1)_j / d, and downdates G^-1 to the inputs without it. */
static void eliminate(struct elimination *g, size_t j) {
    for (size_t r = 0; r < g->rows; r++) g->column[r] = g->w[r * g->cols + j];
    memcpy(g->row, g->inverse + j * g->cols, g->cols * sizeof *g->row);
    g->diagonal = g->row[j];
    if (g->diagonal > 0) parallel_for(g->rows + g->cols, eliminate_row, g);
    for (size_t r = 0; r < g->rows; r++) g->w[r * g->cols + j] = 0;
    for (size_t i = 0; i < g->cols; i++) g->inverse[i * g->cols + j] = g->inverse[j * g->cols + i] = 0;
    g->gone[j] = 1;
}

static int begin(struct elimination *g, struct err *e) {
    g->column = mem_array(g->rows, sizeof *g->column, e);
    g->row = g->column ? mem_array(g->cols, sizeof *g->row, e) : NULL;
    g->gone = g->row ? mem_array(g->cols, 1, e) : NULL;
    return g->gone ? 0 : e->code;
}

static void end(struct elimination *g) {
    mem_free(g->column);
    mem_free(g->row);
    mem_free(g->gone);
}

static double column_norm2(const struct elimination *g, size_t j) {
    double sum = 0;
    for (size_t r = 0; r < g->rows; r++) sum += (double)g->w[r * g->cols + j] * g->w[r * g->cols + j];
    return sum;
}

/* Eliminates the columns of a unit one by one on a copy; their costs add up to the cost of the unit. */
static double unit_cost(const struct prune_matrix *w, const float *inverse, size_t first, size_t width,
                        struct elimination *g) {
    double cost = 0;
    for (size_t r = 0; r < w->rows; r++) memcpy(g->w + r * width, w->x + r * w->cols + first, width * sizeof *g->w);
    for (size_t i = 0; i < width; i++)
        memcpy(g->inverse + i * width, inverse + (first + i) * w->cols + first, width * sizeof *g->inverse);
    for (size_t j = 0; j < width; j++) {
        double d = g->inverse[j * width + j];
        if (d > 0) cost += column_norm2(g, j) / d;
        eliminate(g, j);
    }
    return cost;
}

int prune_unit_costs(const struct prune_matrix *w, const float *inverse, size_t width, double *cost, struct err *e) {
    struct elimination g = {.rows = w->rows, .cols = width};
    float *weights = mem_array(w->rows, width * sizeof *weights, e);
    float *square = weights ? mem_array(width, width * sizeof *square, e) : NULL;
    int rc = square ? begin(&g, e) : e->code;
    g.w = weights, g.inverse = square;
    for (size_t u = 0; !rc && u < w->cols / width; u++) cost[u] = unit_cost(w, inverse, u * width, width, &g);
    end(&g);
    mem_free(weights);
    mem_free(square);
    return rc;
}

/* Costs of the remaining columns, each alone. */
static void column_costs(struct elimination *g, float *norms, double *cost) {
    memset(norms, 0, g->cols * sizeof *norms);
    kernel_col_norms2(norms, g->w, g->rows, g->cols);
    for (size_t j = 0; j < g->cols; j++) {
        double d = g->inverse[j * (g->cols + 1)];
        cost[j] = d > 0 ? norms[j] / d : 0;
    }
}

static size_t cheapest(const struct elimination *g, const double *cost, size_t width) {
    size_t best = SIZE_MAX;
    for (size_t u = 0; u < g->cols / width; u++)
        if (!g->gone[u * width] && (best == SIZE_MAX || cost[u] < cost[best])) best = u;
    return best;
}

static int run(struct elimination *g, size_t width, uint32_t keep, float *norms, double *cost, struct err *e) {
    struct prune_matrix w = {.x = g->w, .rows = g->rows, .cols = g->cols};
    for (size_t left = g->cols / width; left > keep; left--) {
        if (width == 1)
            column_costs(g, norms, cost);
        else if (prune_unit_costs(&w, g->inverse, width, cost, e))
            return e->code;
        size_t u = cheapest(g, cost, width);
        for (size_t j = u * width; j < (u + 1) * width; j++) eliminate(g, j);
    }
    return 0;
}

int prune_greedy(const struct prune_matrix *w, float *inverse, size_t width, uint32_t keep, uint32_t *kept,
                 struct err *e) {
    struct elimination g = {.w = w->x, .inverse = inverse, .rows = w->rows, .cols = w->cols};
    float *norms = mem_array(w->cols, sizeof *norms, e);
    double *cost = norms ? mem_array(w->cols, sizeof *cost, e) : NULL;
    int rc = cost ? begin(&g, e) : e->code;
    if (!rc) rc = run(&g, width, keep, norms, cost, e);
    for (uint32_t u = 0, n = 0; !rc && u < w->cols / width; u++)
        if (!g.gone[u * width]) kept[n++] = u;
    end(&g);
    mem_free(cost);
    mem_free(norms);
    return rc;
}
