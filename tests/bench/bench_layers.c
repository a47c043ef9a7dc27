/*
 * bench_layers: bf16 products in place and alone. In place: those of 30 layers of SmolLM2-135M in the order of a
 * training step, each with weights of its own, so that what a product reads is where the ones before it have left it. Alone: the
 * same product again and again, which is what bench_bf16 measures. Both in one run, repeated; medians.
 *
 *     make bench-kernel THREADS=1                processor time instead of wall time: fair on a busy machine
 */
#include <stdlib.h>
#include <string.h>

#include "tests/bench/products.h"

enum { LAYERS = 30, ROWS = 2048, FFN = 1536, REPETITIONS = 5 };

/* The products of a layer, in order, by their names in products.c. */
static const char *const names[] = {"q, o", "k, v", "k, v", "q, o", "gate, up", "gate, up", "down"};
enum { PLACES = COUNT_OF(names) };
static const struct product *layer[PLACES];

enum pass { FORWARD, TO_INPUT, TO_WEIGHT, PASSES };
static const char *const pass_names[] = {"y", "dx", "dw"};

/* What a place has in one layer: its weight packed for both directions, its input and its gradient. */
struct weight {
    struct kernel_matrix forward, backward;
    uint16_t *x;
    float *dw;
};
static struct weight weights[LAYERS][PLACES];
static uint16_t *dy, *dx; /* [ROWS][FFN], shared, as a tape reuses them */
static void *packed_x;

struct timing {
    double in_place[REPETITIONS], alone[REPETITIONS];
};
static struct timing timings[PLACES][PASSES];

/* ---- setup ---- */

static uint16_t *random_bf16(size_t n) {
    float *x = bench_numbers(n);
    uint16_t *y = bench_array(n, sizeof *y);
    kernel_convert(kernel_bf16(y), kernel_f32(x), n);
    mem_free(x);
    return y;
}

static void *packing(size_t n, size_t k) {
    return bench_array(kernel_matrix_bytes(KERNEL_PACKED_BF16, DT_BF16, n, k), 1);
}

static const struct product *find(const char *what) {
    size_t i = 0;
    while (strcmp(products[i].what, what) != 0) i++;
    return &products[i];
}

static void begin(void) {
    for (size_t p = 0; p < PLACES; p++) layer[p] = find(names[p]);
    dy = random_bf16(ROWS * FFN);
    dx = random_bf16(ROWS * FFN);
    packed_x = packing(FFN, ROWS);
    for (size_t l = 0; l < LAYERS; l++)
        for (size_t p = 0; p < PLACES; p++) {
            size_t n = layer[p]->n, k = layer[p]->k;
            float *w = bench_numbers(n * k);
            struct kernel_matrix stored = kernel_matrix_of(kernel_f32(w), n, k);
            weights[l][p].forward = kernel_pack_nt(kernel_bf16(packing(n, k)), &stored);
            weights[l][p].backward = kernel_pack_nn(kernel_bf16(packing(k, n)), k, n, kernel_f32(w));
            weights[l][p].x = random_bf16(ROWS * k);
            weights[l][p].dw = bench_array(n * k, sizeof(float));
            mem_free(w);
        }
}

/* ---- products ---- */

/* The output goes to where the next place of the layer has its input. */
static uint16_t *output_of(size_t l, size_t p) {
    if (p + 1 < PLACES && layer[p + 1]->k == layer[p]->n) return weights[l][p + 1].x;
    if (p + 1 == PLACES && l + 1 < LAYERS) return weights[l + 1][0].x;
    return dx;
}

static void run(size_t l, size_t p, enum pass pass) {
    struct weight *w = &weights[l][p];
    static const struct kernel_epilogue accumulate = {.accumulate = true};
    if (pass == FORWARD)
        kernel_multiply(ROWS, kernel_bf16(w->x), &w->forward, NULL, kernel_bf16(output_of(l, p)));
    else if (pass == TO_INPUT)
        kernel_multiply(ROWS, kernel_bf16(dy), &w->backward, NULL, kernel_bf16(dx));
    else {
        struct kernel_matrix x = kernel_pack_nn(kernel_bf16(packed_x), layer[p]->k, ROWS, kernel_bf16(w->x));
        kernel_multiply_tn(layer[p]->n, kernel_bf16(dy), &x, &accumulate, kernel_f32(w->dw));
    }
}

static double timed(size_t l, size_t p, enum pass pass) {
    double t = bench_now();
    run(l, p, pass);
    return bench_now() - t;
}

static void measure_in_place(int repetition) {
    for (size_t l = 0; l < LAYERS; l++)
        for (size_t p = 0; p < PLACES; p++) timings[p][FORWARD].in_place[repetition] += timed(l, p, FORWARD);
    for (size_t l = LAYERS; l-- > 0;)
        for (size_t p = PLACES; p-- > 0;)
            for (int pass = TO_INPUT; pass <= TO_WEIGHT; pass++)
                timings[p][pass].in_place[repetition] += timed(l, p, (enum pass)pass);
}

static void measure_alone(int repetition) {
    for (size_t p = 0; p < PLACES; p++)
        for (int pass = FORWARD; pass < PASSES; pass++) {
            timed(0, p, (enum pass)pass); /* warms the caches */
            for (int i = 0; i < LAYERS; i++) timings[p][pass].alone[repetition] += timed(0, p, (enum pass)pass);
        }
}

/* ---- report ---- */

static int compare(const void *a, const void *b) {
    const double *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

static double median(double *x) {
    qsort(x, REPETITIONS, sizeof *x, compare);
    return x[REPETITIONS / 2];
}

static void print(const char *what, double gflop, double in_place, double alone) {
    printf("%-16s %8.1f GFLOP/s in place, %8.1f alone, ratio %.2f\n", what, gflop / in_place, gflop / alone,
           alone / in_place);
}

/* Places with the same product count together. */
static void report(void) {
    double all = 0, all_in_place = 0, all_alone = 0;
    for (int pass = FORWARD; pass < PASSES; pass++)
        for (size_t first = 0; first < PLACES; first++) {
            double gflop = 0, in_place = 0, alone = 0;
            char what[32];
            bool seen = false;
            for (size_t p = 0; p < first; p++) seen |= !strcmp(layer[p]->what, layer[first]->what);
            for (size_t p = first; !seen && p < PLACES; p++) {
                if (strcmp(layer[p]->what, layer[first]->what) != 0) continue;
                gflop += 2e-9 * LAYERS * ROWS * (double)(layer[p]->n * layer[p]->k);
                in_place += median(timings[p][pass].in_place);
                alone += median(timings[p][pass].alone);
            }
            if (seen) continue;
            snprintf(what, sizeof what, "%s of %s", pass_names[pass], layer[first]->what);
            print(what, gflop, in_place, alone);
            all += gflop, all_in_place += in_place, all_alone += alone;
        }
    print("all", all, all_in_place, all_alone);
}

int main(int argc, char **argv) {
    int threads;
    if (!bench_begin(argc, argv, &threads)) return 2;
    printf("bf16 products of a training step, %d layers, %d positions: %s, %d threads, medians of %d\n", LAYERS, ROWS,
           kernel_backend().bf16, threads, REPETITIONS);
    begin();
    for (int i = 0; i < REPETITIONS; i++) {
        measure_in_place(i);
        measure_alone(i);
    }
    report();
    return 0;
}
