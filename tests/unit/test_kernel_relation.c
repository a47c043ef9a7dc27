/*
 * Tests of lib/kernel: losses on features, relations and attention, against their definitions in f64. Values are
 * compared with the twins, gradients with difference quotients of the twins. Tolerances are relative to the largest
 * element, since sums of f32 products cancel.
 */
#include "tests/unit/kernel_test.h"

#define TOLERANCE 1e-5

/* One loss at one shape: x of the student (which gets the gradient), its other inputs, and those of the teacher. */
struct loss {
    int kind;
    struct kernel_relation relation;
    size_t n, d, td;
    struct pair x, y, t, u; /* y, u: a second layer or other inputs */
    struct kernel_attention attention;
    float *row_weight;
    double *row_weight_d, variance, weight;
    double *s1, *s2; /* scratch buffers of the twins */
};

typedef double value_of(struct loss *c);          /* as a function of x.d */
typedef double run_of(struct loss *c, float *dx); /* as a function of x.f */

static double largest(const double *v, size_t n) {
    double most = 0;
    for (size_t i = 0; i < n; i++) most = fmax(most, fabs(v[i]));
    return most;
}

struct run {
    struct loss *c;
    run_of *run;
    const char *what;
    double value;
};

static void run_kernel_of(void *ctx, float *out) {
    const struct run *r = ctx;
    double value = r->run(r->c, out);
    if (fabs(value - r->value) > TOLERANCE * fabs(r->value))
        fail_msg("%s, kind %d: %.9g, should be %.9g", r->what, r->c->kind, value, r->value);
}

static void check_loss(const char *what, struct loss *c, value_of *value, run_of *run) {
    struct run r = {c, run, what, value(c)};
    double *slope = take(c->x.n, sizeof *slope), *tolerance = take(c->x.n, sizeof *tolerance), h = 1e-5;
    for (size_t i = 0; i < c->x.n; i++) {
        double own = c->x.d[i];
        c->x.d[i] = own + h;
        slope[i] = value(c);
        c->x.d[i] = own - h;
        slope[i] = c->weight * (slope[i] - value(c)) / (2 * h);
        c->x.d[i] = own;
    }
    for (size_t i = 0; i < c->x.n; i++) tolerance[i] = TOLERANCE * largest(slope, c->x.n);
    check_kernel(what, run_kernel_of, &r, c->x.n, NULL, slope, tolerance);
}

static struct loss loss_new(struct rng *r, size_t n, size_t d, size_t td) {
    struct loss c = {.n = n, .d = d, .td = td, .weight = 0.7};
    c.x = normals(r, n * d, 1.5);
    c.y = normals(r, n * d, 1);
    c.t = normals(r, n * td, 2);
    c.u = normals(r, n * td, 1);
    c.s1 = take(n * (n + d + td) + d, sizeof(double));
    c.s2 = take(n * (n + d + td) + d, sizeof(double));
    return c;
}

/* ---- relations --------------------------------------------------------------------------------------------------- */

static double relation_value(struct loss *c) {
    return plain64_relation(&c->relation, c->n, c->t.d, c->td, c->x.d, c->d, c->s1, c->s2);
}

static double relation_run(struct loss *c, float *dx) {
    double *scratch = take(kernel_relation_scratch(c->n), sizeof *scratch);
    return kernel_relation(&c->relation, c->n, c->t.f, c->td, c->x.f, c->d, scratch, dx);
}

static double angles_value(struct loss *c) {
    return plain64_angles(c->n, c->t.d, c->td, c->x.d, c->d);
}

static double angles_run(struct loss *c, float *dx) {
    double *scratch = take(kernel_angles_scratch(c->n, c->td, c->d), sizeof *scratch);
    return kernel_angles(c->weight, c->n, c->t.f, c->td, c->x.f, c->d, scratch, dx);
}

static double contrast_value(struct loss *c) {
    return plain64_contrast(0.3, c->n, c->t.d, c->x.d, c->d, c->s1, c->s2);
}

static double contrast_run(struct loss *c, float *dx) {
    double *scratch = take(kernel_contrast_scratch(c->n, c->d), sizeof *scratch);
    return kernel_contrast(c->weight, 0.3, c->n, c->d, c->t.f, c->x.f, scratch, NULL, dx);
}

static double contrast_of_teacher_value(struct loss *c) { /* here x is the teacher's side */
    return plain64_contrast(0.3, c->n, c->x.d, c->t.d, c->d, c->s1, c->s2);
}

static double contrast_of_teacher_run(struct loss *c, float *dx) {
    double *scratch = take(kernel_contrast_scratch(c->n, c->d), sizeof *scratch);
    return kernel_contrast(c->weight, 0.3, c->n, c->d, c->x.f, c->t.f, scratch, dx, NULL);
}

static void test_relations(void **state) {
    static const size_t sizes[][3] = {{2, 3, 5}, {7, 17, 4}, {12, 70, 33}};
    static const struct kernel_relation kinds[] = {
        {RELATION_SIMILARITY, 0.7, 0, 0},    {RELATION_CORRELATION, 0.7, 0.4, 2}, {RELATION_CORRELATION, 0.7, 0, 0},
        {RELATION_CORRELATION, 0.7, 1.1, 5}, {RELATION_PROBABILITY, 0.7, 0, 0},   {RELATION_DISTANCE, 0.7, 0, 0},
        {RELATION_GRAPH, 0.7, 0, 0}};
    (void)state;
    struct rng r = rng_init(71, 1);
    for (size_t i = 0; i < COUNT_OF(sizes) * COUNT_OF(kinds); i++) {
        const size_t *s = sizes[i / COUNT_OF(kinds)];
        struct loss c = loss_new(&r, s[0], s[1], s[2]);
        c.relation = kinds[i % COUNT_OF(kinds)];
        c.kind = (int)c.relation.kind;
        /* for two rows these losses are constant */
        if (s[0] == 2 && (c.kind == RELATION_DISTANCE || c.kind == RELATION_PROBABILITY)) continue;
        check_loss("relation", &c, relation_value, relation_run);
        arena_reset(&memory);
    }
    for (size_t i = 1; i < COUNT_OF(sizes); i++) {
        struct loss c = loss_new(&r, sizes[i][0], sizes[i][1], sizes[i][2]), same = loss_new(&r, sizes[i][0], 9, 9);
        check_loss("angles", &c, angles_value, angles_run);
        check_loss("contrast", &same, contrast_value, contrast_run);
        check_loss("contrast, of the teacher", &same, contrast_of_teacher_value, contrast_of_teacher_run);
        arena_reset(&memory);
    }
}

/* ---- sequence-level losses --------------------------------------------------------------------------------------- */

static double map_value(struct loss *c) {
    return plain64_energy_map(c->n, c->t.d, c->td, c->x.d, c->d, c->s1, c->s2);
}

static double map_run(struct loss *c, float *dx) {
    return kernel_energy_map(c->weight, c->n, c->t.f, c->td, c->x.f, c->d, take(2 * c->n, sizeof(double)), dx);
}

static double flow_value(struct loss *c) {
    return c->kind ? plain64_flow(c->n, c->d, c->t.d, c->u.d, c->y.d, c->x.d)
                   : plain64_flow(c->n, c->d, c->t.d, c->u.d, c->x.d, c->y.d);
}

static double flow_run(struct loss *c, float *dx) {
    float *scratch = take(2 * c->d * c->d, sizeof *scratch);
    return c->kind ? kernel_flow(c->weight, c->n, c->d, c->t.f, c->u.f, c->y.f, c->x.f, scratch, NULL, dx)
                   : kernel_flow(c->weight, c->n, c->d, c->t.f, c->u.f, c->x.f, c->y.f, scratch, dx, NULL);
}

static double moves_value(struct loss *c) {
    return c->kind ? plain64_moves(c->n, c->t.d, c->u.d, c->td, c->y.d, c->x.d, c->d)
                   : plain64_moves(c->n, c->t.d, c->u.d, c->td, c->x.d, c->y.d, c->d);
}

static double moves_run(struct loss *c, float *dx) {
    float *other = take(c->n * c->d, sizeof *other);
    return c->kind ? kernel_moves(c->weight, c->n, c->t.f, c->u.f, c->td, c->y.f, c->x.f, c->d, other, dx)
                   : kernel_moves(c->weight, c->n, c->t.f, c->u.f, c->td, c->x.f, c->y.f, c->d, dx, other);
}

static double mmd_value(struct loss *c) {
    return plain64_mmd((enum kernel_mmd_kind)c->kind, c->variance, c->n, c->t.d, c->td, c->x.d, c->d, c->s1, c->s2);
}

static double mmd_run(struct loss *c, float *dx) {
    double *scratch = take(kernel_mmd_scratch(c->n, c->td, c->d), sizeof *scratch);
    return kernel_mmd((enum kernel_mmd_kind)c->kind, c->weight, c->n, c->t.f, c->td, c->x.f, c->d, scratch, dx);
}

static void test_sequences(void **state) {
    static const size_t sizes[][3] = {{2, 3, 5}, {7, 17, 4}, {40, 13, 33}};
    (void)state;
    struct rng r = rng_init(72, 1);
    for (size_t i = 0; i < COUNT_OF(sizes) * 3; i++) {
        const size_t *s = sizes[i / 3];
        struct loss c = loss_new(&r, s[0], s[1], s[2]), same = loss_new(&r, s[0], s[1], s[1]);
        c.kind = (int)(i % 3);
        same.kind = (int)(i % 2);
        mmd_value(&c); /* leaves the channels in the scratch buffer */
        c.variance = 2 - 2 * plain64_mmd_mean(MMD_LINEAR, 1, c.n, c.s2, c.d, c.s1, c.td);
        check_loss("mmd", &c, mmd_value, mmd_run);
        check_loss("energy map", &c, map_value, map_run);
        c.kind = same.kind;
        check_loss("moves", &c, moves_value, moves_run);
        check_loss("flow", &same, flow_value, flow_run);
        arena_reset(&memory);
    }
}

/* ---- rows -------------------------------------------------------------------------------------------------------- */

static double factor_value(struct loss *c) {
    double sum = 0;
    for (size_t i = 0; i < c->n; i++)
        sum += c->row_weight_d[i] * plain64_factor_row(c->x.d + i * c->d, c->t.d + i * c->d, c->d, c->s1, c->s2);
    return sum;
}

static double factor_run(struct loss *c, float *dx) {
    return kernel_rows_factor((float)c->weight, c->t.f, c->row_weight, c->x.f, c->n, c->d, dx);
}

/* Teachers are the sorted probabilities of t. */
static double sorted_value(struct loss *c) {
    double sum = 0;
    for (size_t i = 0; i < c->n; i++)
        sum += c->row_weight_d[i] * plain64_sorted_distance(1.5, c->u.d + i * c->d, c->x.d + i * c->d, c->d, c->s1);
    return sum;
}

static double sorted_run(struct loss *c, float *dx) {
    double *value = take(c->n, sizeof *value), sum = 0;
    uint64_t *offset = take(c->n + 1, sizeof *offset);
    float *logs = take(c->n * c->d, sizeof *logs);
    for (size_t i = 0; i < c->n * c->d; i++) dx[i] = 0, logs[i] = logf(c->u.f[(i / c->d + 1) * c->d - 1 - i % c->d]);
    for (size_t i = 0; i <= c->n; i++) offset[i] = i * c->d;
    struct kernel_target t = {.offset = offset, .probs = c->u.f};
    if (c->kind) t = (struct kernel_target){.dense = logs}; /* in the reverse order */
    kernel_sorted_distance(1.5f, (float)c->weight, &t, c->row_weight, c->x.f, c->n, c->d,
                           take(kernel_sorted_scratch(c->d), 1), value, dx);
    for (size_t i = 0; i < c->n; i++) sum += c->row_weight_d[i] * value[i];
    return sum;
}

static void set_row_weights(struct loss *c, size_t n) {
    c->row_weight = take(n, sizeof *c->row_weight);
    c->row_weight_d = take(n, sizeof *c->row_weight_d);
    for (size_t i = 0; i < n; i++) c->row_weight_d[i] = c->row_weight[i] = i % 4 == 2 ? 0 : 1;
}

static void test_rows(void **state) {
    static const size_t widths[] = {3, 16, 61};
    (void)state;
    struct rng r = rng_init(73, 1);
    for (size_t i = 0; i < COUNT_OF(widths) * 2; i++) {
        size_t n = 19, d = widths[i / 2];
        struct loss c = loss_new(&r, n, d, d);
        c.kind = (int)(i % 2);
        set_row_weights(&c, n);
        check_loss("factor", &c, factor_value, factor_run);
        for (size_t row = 0; row < n; row++) { /* descending, with a sum of 1 */
            double sum = 0, p = 1;
            for (size_t k = 0; k < d; k++) sum += c.u.d[row * d + k] = p *= 0.5 + 0.4 * rng_f64(&r);
            for (size_t k = 0; k < d; k++) set(c.u, row * d + k, c.u.d[row * d + k] / sum);
        }
        check_loss("sorted", &c, sorted_value, sorted_run);
        arena_reset(&memory);
    }
}

/* ---- attention --------------------------------------------------------------------------------------------------- */

/* x is the queries, the keys (kind % SIDES), or both if they are the same; y is the other. The loss is kind / SIDES. */
enum { OF_Q, OF_K, OF_BOTH, SIDES };

static double attention_value(struct loss *c) {
    int side = c->kind % SIDES;
    return plain64_attention_loss((enum kernel_attention_loss_kind)(c->kind / SIDES), &c->attention, c->t.d,
                                  c->row_weight_d, side == OF_K ? c->y.d : c->x.d, side == OF_Q ? c->y.d : c->x.d,
                                  c->s1);
}

static double attention_run(struct loss *c, float *dx) {
    const struct kernel_attention *a = &c->attention;
    struct kernel_attention_loss how = {(enum kernel_attention_loss_kind)(c->kind / SIDES), (float)c->weight};
    size_t length = a->starts[1], block = 5, cells = a->n_heads * length;
    float *scratch = take(2 * block * cells, sizeof *scratch), *other = take(c->y.n, sizeof *other);
    double *values = take(block * a->n_heads, sizeof *values), sum = 0;
    int side = c->kind % SIDES;
    for (size_t i = 0; i < c->x.n; i++) dx[i] = 0;
    for (size_t at = 0; at < length; at += block) {
        size_t n = length - at < block ? length - at : block;
        kernel_attention_loss(&how, a, 0, at, n, c->t.f + at * cells, c->row_weight, side == OF_K ? c->y.f : c->x.f,
                              side == OF_Q ? c->y.f : c->x.f, scratch, values, side == OF_K ? other : dx,
                              side == OF_Q ? other : dx);
        for (size_t i = 0; i < n * a->n_heads; i++) sum += values[i];
    }
    return sum;
}

/* The teacher's probabilities (or scores) wherever the student's queries see a key. */
static void make_attention(struct rng *r, struct loss *c) {
    const struct kernel_attention *a = &c->attention;
    size_t length = a->starts[1];
    c->t = zeros(length * a->n_heads * length);
    for (size_t i = 0; i < length; i++)
        for (size_t h = 0; h < a->n_heads; h++) {
            size_t begin, end, at = (i * a->n_heads + h) * length;
            plain64_attention_range(a, i, length, &begin, &end);
            double sum = 0;
            for (size_t j = begin; j < end; j++) sum += c->t.d[at + j] = exp(rng_normal(r));
            for (size_t j = begin; j < end; j++) set(c->t, at + j, c->t.d[at + j] / sum);
        }
}

static void test_attention(void **state) {
    static const uint32_t starts[] = {0, 13};
    static const struct kernel_attention shapes[] = {
        {.n_heads = 4, .n_kv_heads = 2, .head_dim = 6, .scale = 0.4f},
        {.n_heads = 3, .n_kv_heads = 3, .head_dim = 16, .scale = 0.25f, .bidirectional = true},
        {.n_heads = 2, .n_kv_heads = 1, .head_dim = 5, .scale = 0.5f, .window = 4, .softcap = 3},
    };
    (void)state;
    struct rng r = rng_init(74, 1);
    for (size_t i = 0; i < COUNT_OF(shapes) * 3 * SIDES; i++) {
        struct loss c = {.kind = (int)(i % (3 * SIDES)), .weight = 0.6, .attention = shapes[i / (3 * SIDES)]};
        struct kernel_attention *a = &c.attention;
        size_t length = starts[1], side = (size_t)c.kind % SIDES;
        size_t q = length * a->n_heads * a->head_dim, k = length * a->n_kv_heads * a->head_dim;
        a->starts = starts;
        a->n_seqs = 1;
        if (side == OF_BOTH && q != k) continue;
        c.x = normals(&r, side == OF_K ? k : q, 1);
        c.y = normals(&r, side == OF_K ? q : k, 1);
        c.s1 = take(2 * length, sizeof *c.s1);
        set_row_weights(&c, length);
        make_attention(&r, &c);
        check_loss("attention", &c, attention_value, attention_run);
        arena_reset(&memory);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_relations, release_memory),
        cmocka_unit_test_teardown(test_sequences, release_memory),
        cmocka_unit_test_teardown(test_rows, release_memory),
        cmocka_unit_test_teardown(test_attention, release_memory),
    };
    return cmocka_run_group_tests_name("kernels of relations", tests, NULL, NULL);
}
