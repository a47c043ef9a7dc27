/*
 * LSTM over concatenated sequences. A task takes a few sequences of one direction through all of their steps, so
 * threads never wait for each other between steps. A step's recurrent product reads the weights once for all of them
 * and sums each element in an order that depends only on the number of units: the bits of a sequence do not depend on
 * the others.
 */
#include "lib/kernel/kernel_internal.h"

#define BLOCK 4 /* sequences per task: rows of v->mix_block */

struct direction {
    float *gates, *cells, *dgates;
    const float *weight, *bias; /* weight: transposed in the forward pass */
};

struct lstm {
    const struct simd *v;
    const struct kernel_lstm *shape;
    struct direction direction[2];
    float *y; /* written by the forward pass */
    const float *states, *dy;
    float *carried; /* backward: dh and dc of each sequence, [directions][n_seqs][2][units] */
    size_t blocks;
};

static size_t length_of(const struct kernel_lstm *s, size_t seq) {
    return s->starts[seq + 1] - s->starts[seq];
}

/* The position of a step: the second direction starts at the end. */
static size_t position_of(const struct kernel_lstm *s, size_t direction, size_t seq, size_t step) {
    return direction ? s->starts[seq + 1] - 1 - step : s->starts[seq] + step;
}

static size_t width(const struct kernel_lstm *s) {
    return s->directions * s->units;
}

/* The sequences of a task, and the length of the longest. */
struct block {
    size_t direction, first, end, longest;
};

static struct block block_of(const struct lstm *c, size_t task) {
    size_t first = task % c->blocks * BLOCK;
    struct block b = {task / c->blocks, first, smaller(first + BLOCK, c->shape->n_seqs), 0};
    for (size_t s = first; s < b.end; s++)
        if (length_of(c->shape, s) > b.longest) b.longest = length_of(c->shape, s);
    return b;
}

static void forward_step(const struct lstm *c, const struct block *b, size_t step) {
    const struct kernel_lstm *s = c->shape;
    const struct direction *d = &c->direction[b->direction];
    size_t units = s->units, n = 0, at[BLOCK], before[BLOCK];
    float *gates[BLOCK];
    const float *h[BLOCK];
    for (size_t seq = b->first; seq < b->end; seq++) {
        if (step >= length_of(s, seq)) continue;
        at[n] = position_of(s, b->direction, seq, step);
        before[n] = step ? position_of(s, b->direction, seq, step - 1) : 0;
        gates[n] = d->gates + at[n] * 4 * units;
        h[n] = c->y + before[n] * width(s) + b->direction * units;
        if (d->bias) c->v->add(gates[n], d->bias, 4 * units);
        n++;
    }
    if (step) c->v->mix_block(gates, h, n, d->weight, units, 4 * units);
    for (size_t i = 0; i < n; i++)
        c->v->lstm_cell(gates[i], d->cells + at[i] * units, c->y + at[i] * width(s) + b->direction * units,
                        step ? d->cells + before[i] * units : NULL, units);
}

static void forward_task(void *ctx, size_t task, int thread) {
    const struct lstm *c = ctx;
    struct block b = block_of(c, task);
    (void)thread;
    for (size_t step = 0; step < b.longest; step++) forward_step(c, &b, step);
}

void kernel_lstm(const struct kernel_lstm *s, struct kernel_array y, const struct kernel_lstm_direction *directions,
                 struct kernel_array scratch) {
    PROFILE(ELEMENTWISE);
    struct lstm c = {.v = simd(), .shape = s, .y = host_f32(y), .blocks = (s->n_seqs + BLOCK - 1) / BLOCK};
    for (size_t i = 0; i < s->directions; i++) {
        float *transposed = host_f32(scratch) + i * 4 * s->units * s->units;
        kernel_transpose(transposed, host_f32(directions[i].weight), 4 * s->units, s->units);
        c.direction[i] = (struct direction){.gates = host_f32(directions[i].gates),
                                            .cells = host_f32(directions[i].cells),
                                            .weight = transposed,
                                            .bias = host_f32(directions[i].bias)};
    }
    parallel_for(s->directions * c.blocks, forward_task, &c);
}

/* dh = dy + the gradient from the step after this one. The last step of each sequence comes first here. */
static void backward_step(const struct lstm *c, const struct block *b, size_t step) {
    const struct kernel_lstm *s = c->shape;
    const struct direction *d = &c->direction[b->direction];
    size_t units = s->units, n = 0;
    float *back[BLOCK];
    const float *dgates[BLOCK];
    for (size_t seq = b->first; seq < b->end; seq++) {
        if (step >= length_of(s, seq)) continue;
        float *dh = c->carried + (b->direction * s->n_seqs + seq) * 2 * units, *dc = dh + units;
        size_t at = position_of(s, b->direction, seq, step);
        if (step + 1 == length_of(s, seq)) c->v->fill(dh, 2 * units, 0);
        c->v->add(dh, c->dy + at * width(s) + b->direction * units, units);
        const float *before = step ? d->cells + position_of(s, b->direction, seq, step - 1) * units : NULL;
        c->v->lstm_cell_backward(d->dgates + at * 4 * units, dc, dh, d->gates + at * 4 * units, d->cells + at * units,
                                 before, units);
        c->v->fill(dh, units, 0);
        back[n] = dh;
        dgates[n++] = d->dgates + at * 4 * units;
    }
    if (step) c->v->mix_block(back, dgates, n, d->weight, 4 * units, units);
}

static void backward_task(void *ctx, size_t task, int thread) {
    const struct lstm *c = ctx;
    struct block b = block_of(c, task);
    (void)thread;
    for (size_t step = b.longest; step-- > 0;) backward_step(c, &b, step);
}

void kernel_lstm_backward(const struct kernel_lstm *s, const struct kernel_array *dgates, struct kernel_array dy,
                          const struct kernel_lstm_direction *directions, struct kernel_array scratch) {
    PROFILE(ELEMENTWISE);
    struct lstm c = {.v = simd(),
                     .shape = s,
                     .dy = host_f32(dy),
                     .carried = host_f32(scratch),
                     .blocks = (s->n_seqs + BLOCK - 1) / BLOCK};
    for (size_t i = 0; i < s->directions; i++)
        c.direction[i] = (struct direction){.gates = host_f32(directions[i].gates),
                                            .cells = host_f32(directions[i].cells),
                                            .dgates = host_f32(dgates[i]),
                                            .weight = host_f32(directions[i].weight)};
    parallel_for(s->directions * c.blocks, backward_task, &c);
}

/* ---- the states before each position ----------------------------------------------------------------------------- */

struct before {
    const struct kernel_lstm *shape;
    size_t direction;
    float *to;
    const float *y;
};

static void before_piece(void *ctx, size_t begin, size_t end) {
    const struct before *c = ctx;
    const struct kernel_lstm *s = c->shape;
    for (size_t seq = begin; seq < end; seq++)
        for (size_t step = 0; step < length_of(s, seq); step++) {
            float *to = c->to + position_of(s, c->direction, seq, step) * s->units;
            if (step == 0)
                memset(to, 0, s->units * sizeof *to);
            else
                memcpy(to, c->y + position_of(s, c->direction, seq, step - 1) * width(s) + c->direction * s->units,
                       s->units * sizeof *to);
        }
}

void kernel_lstm_before(const struct kernel_lstm *s, size_t direction, struct kernel_array to, struct kernel_array y) {
    PROFILE(ELEMENTWISE);
    struct before c = {s, direction, host_f32(to), host_f32(y)};
    kernel_split(s->n_seqs, BLOCK, before_piece, &c);
}
