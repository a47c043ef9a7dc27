/*
 * Divergence from a reference: KL(reference || model) and related metrics, as llama.cpp's llama-perplexity
 * --kl-divergence reports them. A key means the same for every encoding; what an encoding does not determine is bounded
 * under another key.
 */
#include "lib/metrics/metrics_internal.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

struct divergence {
    struct model *m;
    struct knowledge_format f;  /* as in META */
    struct knowledge_format as; /* of the decoded rows: topk is treated as ghost, which has the same bytes */
    struct knowledge_rows rows; /* sequences that are incomplete or not scored yet */
    struct grad_tape *tape;
    size_t base, row;     /* positions and rows before those of the current pass */
    double temperature;   /* of the comparison; labels are scored at 1 */
    struct buf reference; /* f32 [block][vocab]: dense log-probabilities */
    struct buf losses;    /* f64 [2][block]: KL, then cross-entropy to the label */
    struct buf tops;      /* u32 [2][block]: most probable tokens of the model, then of a dense reference */
    uint64_t positions, labels_known, same_top, with_top; /* with_top: positions with entries (a ghost may have none) */
    struct moments kld, cross, nll;
    /* Of the reference's probability of the label, or for top entries of its upper bound: then nll_reference and
     * delta_p are lower bounds, ln_ratio is an upper bound, and delta_p_most is the upper bound of delta_p. */
    struct moments nll_reference, ln_ratio, delta_p, delta_p_most, delta_p2;
    double co;                 /* sum of products of deviations of nll and nll_reference */
    struct buf klds, delta_ps; /* f64, kept for percentiles; sorted by divergence_finish */
};

/* How results describe the treatment of probability outside the entries. */
static const char *const tails[] = {
    [KNOW_NONE] = NULL,
    [KNOW_DENSE] = "none",
    [KNOW_TOPK] = "one pseudo-token: bounds",
    [KNOW_GHOST] = "one pseudo-token: bounds",
    [KNOW_SAMPLE] = "draws: unbiased cross-entropy, no kld",
    [KNOW_TOPP] = "one pseudo-token: bounds",
};

static bool is_top(const struct divergence *d) {
    return d->f.encoding == KNOW_TOPK || d->f.encoding == KNOW_GHOST || d->f.encoding == KNOW_TOPP;
}

/* Does the reference determine (or bound) the probability of the label at temperature 1? */
static bool judges_labels(const struct divergence *d) {
    return d->f.encoding != KNOW_SAMPLE && d->temperature == 1;
}

int divergence_new(struct divergence **out, struct model *m, const struct knowledge_format *f, struct err *e) {
    if (f->encoding == KNOW_NONE)
        return err_set(e, ERR_DATA, "tokens without a teacher's predictions (run teacher-infer)");
    if (f->partial)
        return err_set(e, ERR_DATA,
                       "top entries of several teachers are lower bounds, which no divergence is known from "
                       "(mix dense, ghost or sample)");
    struct knowledge_format as = *f;
    if (model_check_head(&m->config, e)) return e->code;
    if (knowledge_fit_target(&as, model_predicts(&m->config), model_columns(m), e)) return e->code;
    if (as.encoding == KNOW_TOPK || as.encoding == KNOW_TOPP) as.encoding = KNOW_GHOST;
    struct divergence *d = mem_zalloc(sizeof *d, e);
    if (!d) return e->code;
    d->m = m;
    d->f = *f;
    d->as = as;
    /* Dense rows can be converted to any temperature; sparse ones are compared at their own. */
    d->temperature = f->encoding == KNOW_DENSE ? 1 : f->temperature;
    int rc = grad_tape_new(&d->tape, m->device, false, model_precision(m), e);
    if (rc)
        divergence_free(d);
    else
        *out = d;
    return rc;
}

void divergence_free(struct divergence *d) {
    if (!d) return;
    struct buf *all[] = {&d->reference, &d->losses, &d->tops, &d->klds, &d->delta_ps};
    for (size_t i = 0; i < COUNT_OF(all); i++) buf_release(all[i]);
    knowledge_rows_release(&d->rows);
    grad_tape_free(d->tape);
    mem_free(d);
}

/* ---- positions --------------------------------------------------------------------------------------------------- */

/* A block of rows, as computed by the kernels. */
struct block {
    const struct kernel_target *target;
    const double *kl, *ce;
    const uint32_t *top, *reference_top;
    const float *reference; /* dense: log-probabilities [rows][vocab] */
};

/* Upper limit for the error of a sum of entries rounded to f16 (the tolerance of knowledge_decode). */
#define SUM_SLACK 1e-3

/* Returns ln of the reference's probability of the label. If the label is not among the top entries (*known = false),
 * its upper bound: the smallest entry, or the rest if that is less. */
static double reference_log_prob(const struct block *b, size_t r, size_t columns, bool *known) {
    const struct kernel_target *t = b->target;
    uint32_t label = t->label[r];
    *known = true;
    if (b->reference) return b->reference[r * columns + label];
    for (uint64_t i = t->offset[r]; i < t->offset[r + 1]; i++)
        if (t->ids[i] == label && t->probs[i] > 0) return log(t->probs[i]);
    *known = false;
    if (t->offset[r] == t->offset[r + 1]) return 0;
    double most = fmin(t->probs[t->offset[r + 1] - 1], t->rest[r] + SUM_SLACK);
    return log(fmax(most, FLT_TRUE_MIN)); /* an entry that is 0 in f32 is below this */
}

static int add_label(struct divergence *d, const struct block *b, size_t r, struct err *e) {
    if (b->target->label[r] == UINT32_MAX) return 0;
    double nll = b->ce[r], before = nll - d->nll.mean;
    bool known;
    moments_add(&d->nll, nll);
    if (d->f.encoding == KNOW_SAMPLE) return 0;
    double log_prob = reference_log_prob(b, r, knowledge_columns(&d->as), &known);
    d->labels_known += known;
    if (!judges_labels(d)) return 0;
    moments_add(&d->nll_reference, -log_prob);
    d->co += before * (-log_prob - d->nll_reference.mean);
    moments_add(&d->ln_ratio, nll + log_prob); /* its error includes the covariance of the two */
    double delta = exp(-nll) - exp(log_prob);
    moments_add(&d->delta_p, delta);
    moments_add(&d->delta_p_most, known ? delta : exp(-nll));
    moments_add(&d->delta_p2, delta * delta);
    return is_top(d) ? 0 : buf_append(&d->delta_ps, &delta, sizeof delta, e);
}

/* Adds the reported value, from the kernel's sum of t ln(t / p) over the entries and the rest as one token. */
static int add_kl(struct divergence *d, const struct block *b, size_t r, struct err *e) {
    const struct kernel_target *t = b->target;
    double kl = b->kl[r], mass;
    if (d->f.encoding == KNOW_SAMPLE) {
        moments_add(&d->cross, kl - knowledge_t_ln_t(t, r, &mass));
        return 0;
    }
    moments_add(&d->kld, kl);
    /* sparse entries are in descending order */
    if (b->reference || t->offset[r] < t->offset[r + 1]) {
        d->with_top++;
        d->same_top += b->top[r] == (b->reference ? b->reference_top[r] : t->ids[t->offset[r]]);
    }
    return buf_append(&d->klds, &kl, sizeof kl, e);
}

/* Fails with the name of the sequence of row `at` of the queue. */
static int not_finite(const struct divergence *d, size_t at, struct err *e) {
    size_t s = 0;
    if (d->as.target == TARGET_SEQUENCE)
        return err_set(e, ERR_DATA, "sequence %llu: the model gives no finite probabilities",
                       (unsigned long long)d->rows.seqs[at]);
    for (; at >= d->rows.lengths[s]; s++) at -= d->rows.lengths[s];
    return err_set(e, ERR_DATA, "sequence %llu, position %zu: the model gives no finite probabilities",
                   (unsigned long long)d->rows.seqs[s], at);
}

static int reserve_block(struct divergence *d, size_t rows, size_t vocab, struct err *e) {
    bool dense = d->f.encoding == KNOW_DENSE;
    d->reference.len = d->losses.len = d->tops.len = 0;
    int rc = buf_reserve(&d->losses, 2 * rows * sizeof(double), e);
    if (!rc) rc = buf_reserve(&d->tops, 2 * rows * sizeof(uint32_t), e);
    return rc || !dense ? rc : buf_reserve(&d->reference, rows * vocab * sizeof(float), e);
}

static int compare_block(void *ctx, size_t first, size_t rows, size_t vocab, float *host_logits, struct err *e) {
    struct divergence *d = ctx;
    struct kernel_loss how = {.temperature = (float)d->temperature, .kl_weight = 1, .ce_weight = 1};
    struct kernel_target target;
    int rc = reserve_block(d, rows, vocab, e);
    if (rc) return rc;
    float *reference = d->f.encoding == KNOW_DENSE ? (void *)d->reference.data : NULL;
    double *kl = buf_f64(&d->losses), *ce = kl + rows;
    uint32_t *top = buf_u32(&d->tops), *reference_top = top + rows;
    knowledge_target(&d->rows, &d->as, d->temperature, d->row + first, rows, reference, &target);
    kernel_distill_loss(&how, &target, NULL, kernel_f32(host_logits), rows, vocab, kl, ce, kernel_none(DT_F32));
    kernel_argmax(top, kernel_f32(host_logits), rows, vocab);
    if (reference) kernel_argmax(reference_top, kernel_f32(reference), rows, vocab);
    struct block b = {&target, kl, ce, top, reference_top, reference};
    for (size_t r = 0; !rc && r < rows; r++) {
        if (!knowledge_answered(&d->rows, &d->as, d->row + first + r)) continue;
        d->positions++;
        if (!isfinite(kl[r]) || !isfinite(ce[r])) return not_finite(d, d->row + first + r, e);
        rc = add_kl(d, &b, r, e);
        if (!rc) rc = add_label(d, &b, r, e);
    }
    return rc;
}

/* ---- sequences --------------------------------------------------------------------------------------------------- */

int divergence_feed(struct divergence *d, const struct batch *b, struct err *e) {
    int rc = knowledge_decode(&d->rows, &d->as, b, e);
    size_t whole = rc ? 0 : knowledge_whole_seqs(&d->rows);
    const uint32_t *lengths = d->rows.lengths;
    d->base = 0;
    for (size_t s = 0, n; !rc && s < whole; s += n) {
        size_t positions = 0;
        for (n = 0; s + n < whole && (n == 0 || positions + lengths[s + n] <= METRICS_BATCH); n++)
            positions += lengths[s + n];
        struct model_input in = {
            .n_positions = positions, .n_seqs = n, .tokens = d->rows.tokens + d->base, .lengths = lengths + s};
        if (d->rows.types) in.types = d->rows.types + d->base;
        d->row = knowledge_first_row(&d->as, s, d->base);
        rc = model_infer(d->m, d->tape, &in, NULL, NULL, compare_block, d, e);
        d->base += positions;
    }
    if (!rc) knowledge_drop(&d->rows, &d->as, whole);
    return rc;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void sort(struct buf *values) {
    if (values->len) qsort(values->data, values->len / sizeof(double), sizeof(double), ascending);
}

int divergence_finish(struct divergence *d, struct err *e) {
    int rc = knowledge_decode_end(&d->rows, e);
    if (!rc && !d->positions) rc = err_set(e, ERR_DATA, "no positions");
    sort(&d->klds);
    sort(&d->delta_ps);
    return rc;
}

int divergence_read(struct divergence *d, struct stream_reader *r, metrics_watch *watch, void *ctx, struct err *e) {
    struct batch b = {0};
    bool more = true;
    int rc = 0;
    while (!rc && !(rc = knowledge_read(r, &d->f, &b, &more, e)) && more) {
        if (divergence_feed(d, &b, e)) rc = err_prefix(e, "%s", stream_reader_name(r));
        watch(ctx);
    }
    batch_release(&b);
    if (!rc && divergence_finish(d, e)) rc = err_prefix(e, "%s", stream_reader_name(r));
    return rc;
}

uint64_t divergence_positions(const struct divergence *d) {
    return d->positions;
}

/* ---- results ----------------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    double q;
} percentiles[] = {{"max", 1},  {"99.9", 0.999}, {"99", 0.99}, {"95", 0.95},   {"90", 0.9}, {"median", 0.5},
                   {"10", 0.1}, {"5", 0.05},     {"1", 0.01},  {"0.1", 0.001}, {"min", 0}};

bool metrics_is_percentile(const char *key) {
    const char *last = strrchr(key, '_');
    for (size_t i = 0; last && i < COUNT_OF(percentiles); i++)
        if (!strcmp(last + 1, percentiles[i].name)) return true;
    return false;
}

static bool put_percentiles(cJSON *o, const char *key, const struct buf *values) {
    char name[64];
    for (size_t i = 0; i < COUNT_OF(percentiles); i++) {
        snprintf(name, sizeof name, "%s_%s", key, percentiles[i].name);
        if (!json_put_f64(o, name, metrics_quantile(buf_f64(values), values->len / sizeof(double), percentiles[i].q)))
            return false;
    }
    return true;
}

static bool put_kl(cJSON *o, const struct divergence *d) {
    bool tempered = d->temperature != 1;
    if (d->f.encoding == KNOW_SAMPLE)
        return put_mean(o, tempered ? "tempered_cross_entropy" : "cross_entropy", &d->cross);
    const char *key = !is_top(d) ? "kld" : tempered ? "tempered_kld_lower_bound" : "kld_lower_bound";
    return put_mean(o, key, &d->kld) && put_percentiles(o, key, &d->klds) &&
           (!d->with_top || put_share(o, "same_top", d->same_top, d->with_top));
}

static bool put_bounds(cJSON *o, const struct divergence *d) {
    return put_perplexity(o, "perplexity_reference_lower_bound", &d->nll_reference) &&
           put_mean(o, "ln_ratio_upper_bound", &d->ln_ratio) && put_mean(o, "delta_p_lower_bound", &d->delta_p) &&
           put_mean(o, "delta_p_upper_bound", &d->delta_p_most);
}

static bool put_labels(cJSON *o, const struct divergence *d) {
    if (!json_put_u64(o, "labels", d->nll.n)) return false;
    if (d->f.encoding != KNOW_SAMPLE && !json_put_u64(o, "labels_known", d->labels_known)) return false;
    if (!d->nll.n) return true;
    if (!put_perplexity(o, "perplexity", &d->nll)) return false;
    if (!judges_labels(d)) return true;
    if (is_top(d)) return put_bounds(o, d);
    double spread = sqrt(d->nll.m2 * d->nll_reference.m2), rms = sqrt(d->delta_p2.mean);
    return put_perplexity(o, "perplexity_reference", &d->nll_reference) && put_mean(o, "ln_ratio", &d->ln_ratio) &&
           (spread <= 0 || json_put_f64(o, "ln_correlation", d->co / spread)) && put_mean(o, "delta_p", &d->delta_p) &&
           put_percentiles(o, "delta_p", &d->delta_ps) && json_put_f64(o, "delta_p_rms", rms) &&
           json_put_f64(o, "delta_p_rms_stderr", rms > 0 ? moments_stderr(&d->delta_p2) / (2 * rms) : 0);
}

cJSON *divergence_json(struct divergence *d, struct err *e) {
    char encoding[32];
    cJSON *o = cJSON_CreateObject();
    if (o && json_put_str(o, "metric", "divergence") &&
        json_put_str(o, "reference", knowledge_encoding_text(&d->f, encoding, sizeof encoding)) &&
        json_put_str(o, "tail", tails[d->f.encoding]) && json_put_f64(o, "temperature", d->temperature) &&
        json_put_u64(o, "positions", d->positions) && put_kl(o, d) && put_labels(o, d))
        return o;
    cJSON_Delete(o);
    err_nomem(e, "results");
    return NULL;
}
