/*
 * Fidelity of encodings: how close a student's gradient is to that from the teacher's dense predictions, how well the
 * target is calibrated, and its cost in bytes and time. Gradients are computed by the kernel of the training loss.
 */
#include "lib/metrics/metrics_internal.h"

#include <float.h>
#include <math.h>
#include <string.h>
#include <time.h>

#define BINS 15 /* of confidence */

/* Inner products: with the gradient from dense predictions, with itself, and of the dense one with itself. */
struct products {
    double dot, own, dense;
};

/* An encoding of the predictions; the first one is dense. */
struct candidate {
    struct stream_reader *r;
    struct knowledge_format f, as; /* as in META, and fitted to the student */
    struct batch batch;
    struct knowledge_rows rows; /* sequences not compared yet */
    bool ended;
    struct moments angle; /* degrees, per position */
    struct products all;  /* sums over positions */
    double *sum;          /* [columns] gradient summed over positions */
    struct bin {
        double confidence;
        uint64_t n, right;
    } bins[BINS];
    uint64_t bytes, stored, positions;
    double seconds; /* decoding, loss and gradient */
};

struct fidelity {
    struct model *m;
    struct grad_tape *tape;
    double temperature;
    size_t columns, n;
    struct candidate *c; /* [n] */
    uint64_t positions;  /* compared: those with a label */
    /* Scratch space for a block of rows: */
    struct buf dense, gradient, other; /* f32 [rows][columns]: teacher; gradients from dense and other predictions */
    struct buf weight, lse;            /* f32 [rows] */
    struct buf kl, products;           /* f64 [rows], struct products [rows] */
    struct buf top;                    /* u32 [rows]: the student's most probable token */
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int fit(struct candidate *c, const struct fidelity_input *in, const struct model *m, struct err *e) {
    c->r = in->r;
    c->f = c->as = *in->format;
    c->as.n_fields = c->as.tap_positions = 0;
    if (c->f.encoding == KNOW_NONE)
        return err_set(e, ERR_DATA, "tokens without a teacher's predictions (run teacher-infer)");
    return knowledge_fit_target(&c->as, model_predicts(&m->config), model_columns(m), e);
}

/* All sparse encodings must have one temperature, to which dense predictions are converted. */
static int choose_temperature(struct fidelity *f, size_t *bad, struct err *e) {
    f->temperature = 0;
    for (size_t i = 1; i < f->n; i++) {
        const struct knowledge_format *of = &f->c[i].f;
        *bad = i;
        if (of->encoding == KNOW_DENSE) continue;
        if (f->temperature > 0 && f->temperature != of->temperature)
            return err_set(e, ERR_DATA, "temperature %g: an encoding before it has %g", of->temperature,
                           f->temperature);
        f->temperature = of->temperature;
    }
    if (!(f->temperature > 0)) f->temperature = 1;
    return 0;
}

static int prepare(struct fidelity *f, const struct fidelity_input *in, size_t *bad, struct err *e) {
    for (*bad = 0; *bad < f->n; ++*bad) {
        struct candidate *c = &f->c[*bad];
        if (fit(c, &in[*bad], f->m, e)) return e->code;
        if (!(c->sum = mem_array(f->columns, sizeof *c->sum, e))) return e->code;
    }
    *bad = 0;
    if (f->c[0].f.encoding != KNOW_DENSE)
        return err_set(e, ERR_DATA, "the first input must be dense knowledge, which the others are compared with");
    if (choose_temperature(f, bad, e)) return e->code;
    return grad_tape_new(&f->tape, f->m->device, false, model_precision(f->m), e);
}

int fidelity_new(struct fidelity **out, struct model *m, const struct fidelity_input *in, size_t n, size_t *bad,
                 struct err *e) {
    *bad = 0;
    if (model_check_head(&m->config, e)) return e->code;
    struct fidelity *f = mem_zalloc(sizeof *f, e);
    if (!f) return e->code;
    f->m = m;
    f->n = n;
    f->columns = model_columns(m);
    f->c = mem_array(n, sizeof *f->c, e);
    int rc = f->c ? prepare(f, in, bad, e) : e->code;
    if (rc)
        fidelity_free(f);
    else
        *out = f;
    return rc;
}

void fidelity_free(struct fidelity *f) {
    if (!f) return;
    for (size_t i = 0; f->c && i < f->n; i++) {
        batch_release(&f->c[i].batch);
        knowledge_rows_release(&f->c[i].rows);
        mem_free(f->c[i].sum);
    }
    struct buf *all[] = {&f->dense, &f->gradient, &f->other, &f->weight, &f->lse, &f->kl, &f->products, &f->top};
    for (size_t i = 0; i < COUNT_OF(all); i++) buf_release(all[i]);
    grad_tape_free(f->tape);
    mem_free(f->c);
    mem_free(f);
}

/* ---- a block of rows --------------------------------------------------------------------------------------------- */

static int reserve_block(struct fidelity *f, size_t rows, struct err *e) {
    size_t n = rows * f->columns * sizeof(float);
    return buf_reserve(&f->dense, n, e) || buf_reserve(&f->gradient, n, e) || buf_reserve(&f->other, n, e) ||
                   buf_reserve(&f->weight, rows * sizeof(float), e) || buf_reserve(&f->lse, rows * sizeof(float), e) ||
                   buf_reserve(&f->kl, rows * sizeof(double), e) ||
                   buf_reserve(&f->products, rows * sizeof(struct products), e) ||
                   buf_reserve(&f->top, rows * sizeof(uint32_t), e)
               ? e->code
               : 0;
}

struct row_job {
    const float *a, *b;
    struct products *out;
    size_t d;
};

static void multiply_row(void *ctx, size_t r, int thread) {
    const struct row_job *j = ctx;
    const float *a = j->a + r * j->d, *b = j->b + r * j->d;
    struct products p = {0};
    (void)thread;
    for (size_t i = 0; i < j->d; i++) {
        p.dot += (double)a[i] * b[i];
        p.own += (double)a[i] * a[i];
        p.dense += (double)b[i] * b[i];
    }
    j->out[r] = p;
}

struct column_job {
    const float *x;
    const float *weight;
    double *sum;
    size_t rows, d;
};

#define COLUMNS 1024 /* summed per task */
static void add_columns(void *ctx, size_t block, int thread) {
    const struct column_job *j = ctx;
    size_t from = block * COLUMNS, to = from + COLUMNS < j->d ? from + COLUMNS : j->d;
    (void)thread;
    for (size_t r = 0; r < j->rows; r++)
        for (size_t i = from; i < to && j->weight[r] > 0; i++) j->sum[i] += (double)j->x[r * j->d + i];
}

/* Returns the angle between gradients in degrees; 0 if one of them is zero. */
static double degrees(const struct products *p) {
    double norm = sqrt(p->own * p->dense);
    return norm > 0 ? acos(fmax(-1, fmin(1, p->dot / norm))) * (180 / M_PI) : 0;
}

static double norm_ratio(const struct products *p) {
    return p->dense > 0 ? sqrt(p->own / p->dense) : 0;
}

/* Returns the probability that the target gives the student's most probable token, once it is learned: truncated
 * entries are renormalised, and the rest of a ghost is distributed as the student does. */
static double taught(const struct fidelity *f, const struct candidate *c, const struct kernel_target *t,
                     const float *logits, size_t r) {
    uint32_t top = ((const uint32_t *)f->top.data)[r];
    double inv = 1 / f->temperature, lse = ((const float *)f->lse.data)[r], mass = 0, seen = 0;
    const float *x = logits + r * f->columns;
    if (t->dense) return exp(t->dense[r * f->columns + top]);
    double found = -1;
    for (uint64_t i = t->offset[r]; i < t->offset[r + 1]; i++) {
        mass += t->probs[i];
        if (t->rest) seen += exp(x[t->ids[i]] * inv - lse);
        if (t->ids[i] == top) found = t->probs[i];
    }
    if (t->rest) return found >= 0 ? found : t->rest[r] * exp(x[top] * inv - lse) / fmax(1 - seen, DBL_MIN);
    if (found < 0) return 0;
    return c->f.encoding == KNOW_SAMPLE ? found : found / mass;
}

/* Guo et al. 2017, "On calibration of modern neural networks", section 2: bins of equal width. They are by the
 * student's confidence, so that all encodings have the same bins (the largest share of draws is a biased estimate). */
static void calibrate(const struct fidelity *f, struct candidate *c, const struct kernel_target *t, const float *logits,
                      size_t rows) {
    const uint32_t *top = (const uint32_t *)f->top.data;
    const float *lse = (const float *)f->lse.data, *weight = (const float *)f->weight.data;
    for (size_t r = 0; r < rows; r++) {
        if (weight[r] <= 0) continue;
        double own = exp(logits[r * f->columns + top[r]] / f->temperature - lse[r]);
        size_t i = own < 1 ? (size_t)(own * BINS) : BINS - 1;
        struct bin *b = &c->bins[i < BINS ? i : BINS - 1];
        b->n++;
        b->right += top[r] == t->label[r];
        b->confidence += fmin(1, taught(f, c, t, logits, r));
    }
}

static int compare(struct fidelity *f, struct candidate *c, size_t first, size_t rows, float *logits, struct err *e) {
    struct kernel_loss how = {.temperature = (float)f->temperature, .kl_weight = 1};
    struct kernel_target target;
    bool dense = c == f->c;
    const float *weight = (const float *)f->weight.data;
    float *to = (float *)(dense ? f->gradient.data : f->other.data);
    struct products *p = (struct products *)f->products.data;
    double began = now();
    knowledge_target(&c->rows, &c->as, f->temperature, first, rows, (float *)f->dense.data, &target);
    const uint32_t *labels = target.label;
    target.label = NULL;
    kernel_distill_loss(&how, &target, weight, kernel_f32(logits), rows, f->columns, buf_f64(&f->kl), NULL,
                        kernel_f32(to));
    c->seconds += now() - began;
    target.label = labels;
    parallel_for(rows, multiply_row, &(struct row_job){to, (const float *)f->gradient.data, p, f->columns});
    parallel_for((f->columns + COLUMNS - 1) / COLUMNS, add_columns,
                 &(struct column_job){to, weight, c->sum, rows, f->columns});
    for (size_t r = 0; r < rows; r++) {
        if (weight[r] <= 0) continue;
        if (!isfinite(p[r].own)) return err_set(e, ERR_DATA, "%s: a gradient is not finite", stream_reader_name(c->r));
        moments_add(&c->angle, degrees(&p[r]));
        c->all.dot += p[r].dot;
        c->all.own += p[r].own;
        c->all.dense += p[r].dense;
    }
    calibrate(f, c, &target, logits, rows);
    return 0;
}

static int compare_block(void *ctx, size_t first, size_t rows, size_t vocab, float *host_logits, struct err *e) {
    struct fidelity *f = ctx;
    const struct candidate *dense = f->c;
    if (reserve_block(f, rows, e)) return e->code;
    float *weight = (float *)f->weight.data;
    for (size_t r = 0; r < rows; r++) {
        weight[r] = dense->rows.labels[first + r] != UINT32_MAX;
        f->positions += weight[r] > 0;
    }
    kernel_argmax((uint32_t *)f->top.data, kernel_f32(host_logits), rows, vocab);
    kernel_logsumexp((float *)f->lse.data, kernel_f32(host_logits), rows, vocab, (float)(1 / f->temperature));
    for (size_t i = 0; i < f->n; i++)
        if (compare(f, &f->c[i], first, rows, host_logits, e)) return e->code;
    return 0;
}

/* ---- reading streams in lockstep --------------------------------------------------------------------------------- */

/* Adds the bytes of the response, raw and compressed by zstd as in a stream. */
static int measure(struct candidate *c, struct err *e) {
    for (uint32_t i = 0; i < c->batch.head.n_tensors; i++) {
        const struct tensor *t = &c->batch.tensors[i];
        uint64_t stored;
        if (!knowledge_is_response(t->desc.name)) continue;
        if (stream_stored_bytes(CODEC_ZSTD, 0, t->desc.dtype, t->data, t->n_bytes, &stored, e)) return e->code;
        c->bytes += t->n_bytes;
        c->stored += stored;
    }
    c->positions += c->batch.head.n_positions;
    return 0;
}

/* Reads until a sequence is complete, or the stream ends. */
static int refill(struct candidate *c, struct err *e) {
    bool more = true;
    while (!c->ended && !knowledge_whole_seqs(&c->rows)) {
        if (knowledge_read(c->r, &c->f, &c->batch, &more, e)) return e->code;
        double began = now();
        if (more ? knowledge_decode(&c->rows, &c->as, &c->batch, e) : knowledge_decode_end(&c->rows, e))
            return err_prefix(e, "%s", stream_reader_name(c->r));
        c->seconds += now() - began;
        if (more && measure(c, e)) return e->code;
        c->ended = !more;
    }
    return 0;
}

/* Compares the first n sequences of both, which have `positions` positions. */
static int check_same(const struct candidate *a, const struct candidate *b, size_t n, size_t positions, struct err *e) {
    const struct knowledge_rows *x = &a->rows, *y = &b->rows;
    size_t rows = knowledge_first_row(&a->as, n, positions);
    if (!memcmp(x->lengths, y->lengths, n * sizeof *x->lengths) &&
        !memcmp(x->tokens, y->tokens, positions * sizeof *x->tokens) &&
        !memcmp(x->labels, y->labels, rows * sizeof *x->labels))
        return 0;
    return err_set(e, ERR_DATA, "%s: sequences %llu to %llu are others than in %s: expected the same tokens and labels",
                   stream_reader_name(b->r), (unsigned long long)x->seqs[0], (unsigned long long)x->seqs[n - 1],
                   stream_reader_name(a->r));
}

/* Sets *n to the number of complete sequences that all streams have, within a batch; 0: they have ended. */
static int whole_seqs(struct fidelity *f, size_t *n, size_t *positions, struct err *e) {
    size_t least = SIZE_MAX;
    for (size_t i = 0; i < f->n; i++) {
        if (refill(&f->c[i], e)) return e->code;
        size_t whole = knowledge_whole_seqs(&f->c[i].rows);
        if (i && !whole != !least)
            return err_set(e, ERR_DATA, "%s and %s differ in length", stream_reader_name(f->c[0].r),
                           stream_reader_name(f->c[i].r));
        if (whole < least) least = whole;
    }
    const uint32_t *lengths = f->c[0].rows.lengths;
    *positions = 0;
    for (*n = 0; *n < least && (!*n || *positions + lengths[*n] <= METRICS_BATCH); ++*n) *positions += lengths[*n];
    for (size_t i = 1; i < f->n && *n; i++)
        if (check_same(&f->c[0], &f->c[i], *n, *positions, e)) return e->code;
    return 0;
}

int fidelity_read(struct fidelity *f, metrics_watch *watch, void *ctx, struct err *e) {
    while (true) {
        size_t n = 0, positions = 0;
        if (whole_seqs(f, &n, &positions, e)) return e->code;
        if (!n) break;
        const struct knowledge_rows *k = &f->c[0].rows;
        struct model_input in = {
            .n_positions = positions, .n_seqs = n, .tokens = k->tokens, .lengths = k->lengths, .types = k->types};
        if (model_infer(f->m, f->tape, &in, NULL, NULL, compare_block, f, e)) return e->code;
        for (size_t i = 0; i < f->n; i++) knowledge_drop(&f->c[i].rows, &f->c[i].as, n);
        watch(ctx);
    }
    return f->positions ? 0 : err_set(e, ERR_DATA, "%s: no labels", stream_reader_name(f->c[0].r));
}

uint64_t fidelity_positions(const struct fidelity *f) {
    return f->positions;
}

/* ---- results ----------------------------------------------------------------------------------------------------- */

static double calibration_error(const struct candidate *c) {
    double sum = 0, n = 0;
    for (size_t i = 0; i < BINS; i++) {
        sum += fabs(c->bins[i].confidence - (double)c->bins[i].right);
        n += (double)c->bins[i].n;
    }
    return n > 0 ? sum / n : 0;
}

cJSON *fidelity_json(const struct fidelity *f, size_t i, struct err *e) {
    const struct candidate *c = &f->c[i];
    struct products sum = {0};
    char name[64];
    for (size_t t = 0; t < f->columns; t++) {
        sum.dot += c->sum[t] * f->c[0].sum[t];
        sum.own += c->sum[t] * c->sum[t];
        sum.dense += f->c[0].sum[t] * f->c[0].sum[t];
    }
    double positions = (double)c->positions;
    cJSON *o = cJSON_CreateObject();
    if (o && json_put_str(o, "encoding", knowledge_encoding_text(&c->f, name, sizeof name)) &&
        json_put_f64(o, "temperature", f->temperature) && json_put_u64(o, "positions", f->positions) &&
        json_put_f64(o, "angle", degrees(&sum)) && json_put_f64(o, "norm_ratio", norm_ratio(&sum)) &&
        json_put_f64(o, "position_angle", c->angle.mean) &&
        json_put_f64(o, "position_angle_stderr", moments_stderr(&c->angle)) &&
        json_put_f64(o, "position_norm_ratio", norm_ratio(&c->all)) &&
        json_put_f64(o, "calibration_error", calibration_error(c)) &&
        json_put_f64(o, "bytes", (double)c->bytes / positions) &&
        json_put_f64(o, "bytes_zstd", (double)c->stored / positions))
        return o;
    cJSON_Delete(o);
    err_nomem(e, "results");
    return NULL;
}

double fidelity_speed(const struct fidelity *f, size_t i) {
    return f->c[i].seconds > 0 ? (double)f->c[i].positions / f->c[i].seconds : 0;
}
