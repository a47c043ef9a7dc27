/* Quantizes tensors one by one: chooses the type, finds importance, rounds and reports. */
#include "lib/quant/quant_internal.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

/* ---- rows in parallel: rows are independent, so the result does not depend on the threads ------------------------ */

#define ROWS_AT_ONCE 16

struct rows_job {
    const struct quant_rows *r;
    bool round, measure;
    struct quant_sums *sums; /* [pieces] */
    struct err *failed;      /* [pieces]; code 0: no failure */
};

static void quantize_piece(void *ctx, size_t i, int thread) {
    struct rows_job *j = ctx;
    const struct quant_rows *r = j->r;
    uint64_t first = i * ROWS_AT_ONCE, n = r->rows - first < ROWS_AT_ONCE ? r->rows - first : ROWS_AT_ONCE;
    size_t row_bytes = dtype_row_bytes(r->to, r->cols);
    float *back = r->scratch + (size_t)thread * r->cols;
    const float *x = r->x + first * r->cols;
    unsigned char *y = (unsigned char *)r->packed + first * row_bytes;
    if (j->round && tensor_rows_from_f32(r->to, x, r->first + first, n, r->cols, y, r->importance, &j->failed[i]))
        return;
    for (uint64_t k = 0; j->measure && k < n; k++) {
        tensor_to_f32(r->to, y + k * row_bytes, back, r->cols);
        j->sums[i].error += kernel_squared_distance(kernel_f32(x + k * r->cols), kernel_f32(back), r->cols);
        j->sums[i].power += kernel_sum_squares(kernel_f32(x + k * r->cols), r->cols);
    }
}

static int do_rows(const struct quant_rows *r, bool round, struct quant_sums *sums, struct err *e) {
    size_t pieces = (size_t)((r->rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE);
    struct rows_job j = {.r = r, .round = round, .measure = sums != NULL};
    struct arena a = {0};
    j.sums = arena_array(&a, pieces, sizeof *j.sums, e);
    j.failed = j.sums ? arena_array(&a, pieces, sizeof *j.failed, e) : NULL;
    int rc = j.failed ? 0 : e->code;
    if (!rc) parallel_for(pieces, quantize_piece, &j);
    for (size_t i = 0; !rc && i < pieces; i++) {
        if (sums) sums->error += j.sums[i].error, sums->power += j.sums[i].power;
        if (j.failed[i].code) *e = j.failed[i], rc = e->code;
    }
    arena_release(&a);
    return rc;
}

int quant_round_rows(const struct quant_rows *r, struct quant_sums *sums, struct err *e) {
    return do_rows(r, true, sums, e);
}

int quant_measure_rows(const struct quant_rows *r, struct quant_sums *sums, struct err *e) {
    return do_rows(r, false, sums, e);
}

uint64_t quant_whole_pieces(uint64_t rows) {
    return rows > ROWS_AT_ONCE ? rows / ROWS_AT_ONCE * ROWS_AT_ONCE : ROWS_AT_ONCE;
}

int quant_values(enum dtype from, const void *data, uint64_t n, struct buf *scratch, const float **x, struct err *e) {
    *x = data;
    if (from == DT_F32 && (uintptr_t)data % sizeof **x == 0) return 0;
    scratch->len = 0;
    if (buf_reserve(scratch, n * sizeof **x, e)) return e->code;
    tensor_to_f32(from, data, (float *)scratch->data, n);
    *x = (const float *)scratch->data;
    return 0;
}

/* ---- a tensor ---------------------------------------------------------------------------------------------------- */

static double bits_of(enum dtype t) {
    return 8.0 * dtype_info(t)->block_bytes / dtype_info(t)->block_elems;
}

/* Whether importance can exist for the columns of this matrix. */
static bool is_watched(const struct quant_options *o, const struct model_config *c, struct model_slot s) {
    enum model_point point;
    return o->importance || stats_input_point(c, s.role, &point);
}

bool pass_has_importance(const struct pass *p) {
    return p->o->stats || p->o->importance;
}

bool pass_is_weighed(const struct pass *p, struct model_slot s, enum dtype to) {
    return dtype_info(to)->weighed && model_role_is_matrix(s.role) && is_watched(p->o, p->config, s);
}

bool pass_is_fed(const struct pass *p, struct model_slot s, enum dtype to) {
    enum model_point point; /* statistics of a tied head know nothing of an untied embedding */
    bool may = p->o->fed_by_stats || (p->o->calibrated && is_output(p->config, s));
    return may && p->o->stats && quant_form(to) && stats_input_point(p->config, s.role, &point) &&
           stats_has_gram(p->o->stats, s);
}

int pass_importance_of(struct pass *p, struct model_slot s, uint64_t cols, const float **out, struct err *e) {
    uint64_t known;
    bool found = false;
    *out = NULL;
    if (p->o->importance) {
        int rc = p->o->importance(p->o->importance_ctx, p->config, s, cols, p->importance, &found, e);
        if (rc || !found) return rc;
    } else {
        double n;
        const double *sum = p->o->stats ? stats_input_sq(p->o->stats, s, &known, &n) : NULL;
        if (!sum) return 0;
        for (uint64_t i = 0; i < cols; i++) p->importance[i] = (float)(sum[i] / (n > 0 ? n : 1));
    }
    for (uint64_t i = 0; i < cols; i++) {
        if (!isfinite(p->importance[i])) {
            char name[TENSOR_MAX_NAME + 1];
            return err_set(e, ERR_DATA, "the statistics of tensor '%s': the mean square of column %" PRIu64 " is %g",
                           model_slot_name(s, name), i, (double)p->importance[i]);
        }
        if (p->importance[i] > 0) *out = p->importance;
    }
    return 0;
}

int pass_round(struct pass *p, const float *x, uint64_t rows, uint64_t cols, const float *importance,
               unsigned char *packed, struct quant_tensor_report *t, struct err *e) {
    struct quant_sums sums = {0};
    struct quant_rows r = {.to = t->to,
                           .x = x,
                           .rows = rows,
                           .cols = cols,
                           .importance = importance,
                           .scratch = (float *)p->back.data,
                           .packed = packed};
    int rc = quant_round_rows(&r, &sums, e);
    if (rc) return err_prefix(e, "tensor '%s'", t->name);
    pass_put_error(t, &sums);
    return 0;
}

void pass_put_error(struct quant_tensor_report *t, const struct quant_sums *sums) {
    t->rmse = sqrt(sums->error / (double)t->elems);
    t->relative = sums->power > 0 ? sqrt(sums->error / sums->power) : 0;
}

int pass_choose_type(struct pass *p, struct model_slot s, uint64_t cols, struct quant_tensor_report *t, struct err *e) {
    const struct quant_options *o = p->o;
    struct quant_choice *choice = &p->plan.choices[model_slot_index(p->config, s)];
    t->wanted = choice->wanted;
    t->to = choice->to;
    t->fell_back = t->to != t->wanted;
    bool both = dtype_info(t->from)->is_quantized && dtype_info(t->to)->is_quantized;
    if (o->grow || !both || bits_of(t->to) <= bits_of(t->from)) return 0;
    enum dtype plain = choice->named ? t->to : quant_fallback(o->type->base, cols);
    bool refused = bits_of(plain) > bits_of(t->from); /* rather than raised by the mixture's rule alone */
    if (refused && !p->out) {
        p->totals->refused++;
        snprintf(choice->why, sizeof choice->why, "refused without --force: is %s already", dtype_info(t->from)->name);
        return 0;
    }
    if (refused)
        return err_set(e, ERR_USAGE,
                       "tensor '%s' is %s already, %g bits per weight: %s would take %g and gain nothing (quantize the "
                       "original, or --force)",
                       t->name, dtype_info(t->from)->name, bits_of(t->from), dtype_info(t->to)->name, bits_of(t->to));
    t->to = choice->to = t->from;
    t->fell_back = false;
    snprintf(choice->why, sizeof choice->why, "stays as it is");
    return 0;
}

int pass_count(struct pass *p, struct model_slot s, const struct tensor_desc *from, struct quant_tensor_report *t,
               struct err *e) {
    struct tensor_desc d = *from;
    const float *importance = NULL;
    int rc = 0;
    d.dtype = t->to;
    t->bytes = tensor_bytes(&d);
    t->blind = !t->informed && t->to != t->from && !is_output(p->config, s) && s.role != ROLE_EMBED &&
               mixture_needs_importance(p->o->type, t->to);
    if (t->blind && pass_is_weighed(p, s, t->to)) rc = pass_importance_of(p, s, tensor_row_elems(from), &importance, e);
    if (importance) t->blind = false;
    p->totals->elems += t->elems;
    p->totals->bytes += t->bytes;
    p->totals->bytes_before += tensor_bytes(from);
    p->totals->fell_back += t->fell_back;
    p->totals->blind += t->blind;
    p->totals->unweighed += t->unweighed;
    p->totals->recalled += t->recalled;
    return rc;
}

/* ---- before and after the tensors ---- */

int pass_check_importance(struct pass *p, struct err *e) {
    bool any = false;
    if (p->o->stats && stats_check(p->o->stats, p->config, p->vocab, e)) return e->code;
    for (size_t i = 0; i < model_slot_count(p->config); i++) {
        struct model_slot s = model_slot_at(p->config, i);
        const float *importance;
        if (!model_role_is_matrix(s.role)) continue;
        int rc = pass_importance_of(p, s, cols_of(p->config, s), &importance, e);
        if (rc) return rc;
        any |= importance != NULL;
    }
    return any || p->o->stats ? 0 : err_set(e, ERR_DATA, "the importance matrix knows no matrix of this model");
}

/* Whether the errors of this matrix are weighted by --stats rather than --data. */
static bool is_weighed_by_stats(const struct pass *p, size_t slot) {
    struct model_slot s = model_slot_at(p->config, slot);
    return (!p->o->calibrated || !model_role_in_layer(s.role)) && pass_is_weighed(p, s, p->plan.choices[slot].to);
}

/* For o->strict: every matrix whose errors are weighted must have importance. */
static int check_all_known(struct pass *p, struct err *e) {
    char name[TENSOR_MAX_NAME + 1];
    const float *importance;
    for (size_t i = 0; i < p->plan.n; i++) {
        struct model_slot s = model_slot_at(p->config, i);
        if (!is_weighed_by_stats(p, i)) continue;
        if (pass_importance_of(p, s, cols_of(p->config, s), &importance, e)) return e->code;
        if (!importance)
            return err_set(e, ERR_DATA, "tensor '%s': there are no statistics of it (without --strict it does without)",
                           model_slot_name(s, name));
    }
    return 0;
}

static bool any_fed(const struct pass *p) {
    for (size_t i = 0; i < p->plan.n; i++)
        if (pass_is_fed(p, model_slot_at(p->config, i), p->plan.choices[i].to)) return true;
    return false;
}

static bool any_half_quadratic(const struct quant_plan *plan) {
    for (size_t i = 0; i < plan->n; i++)
        if (quant_form(plan->choices[i].to)) return true;
    return false;
}

int pass_write_head(const struct pass *p, const void *vocab, size_t n_vocab, const cJSON *meta, struct err *e) {
    if (!p->o->origin) return model_head_write(p->out, p->config, vocab, n_vocab, meta, e);
    cJSON *own = cJSON_Duplicate(meta, true), *origin = cJSON_Duplicate(p->o->origin, true);
    cJSON_DeleteItemFromObjectCaseSensitive(own, MODEL_IMATRIX_META);
    bool ok = own && origin && cJSON_AddItemToObject(own, MODEL_IMATRIX_META, origin);
    if (!ok) cJSON_Delete(origin);
    int rc = ok ? model_head_write(p->out, p->config, vocab, n_vocab, own, e) : err_nomem(e, "model description");
    cJSON_Delete(own);
    return rc;
}

int pass_reserve(struct pass *p, uint64_t widest, struct err *e) {
    p->widest = widest;
    return buf_reserve(&p->back, widest * sizeof(float) * (size_t)parallel_threads(), e);
}

int pass_prepare(struct pass *p, struct err *e) {
    bool weighed = false, informed = pass_has_importance(p);
    uint64_t widest = 0;
    int rc = quant_plan_make(&p->plan, p->config, p->o, e);
    for (size_t i = 0; !rc && i < p->plan.n; i++) {
        struct model_slot s = model_slot_at(p->config, i);
        uint64_t cols = cols_of(p->config, s);
        if (cols > widest) widest = cols;
        weighed |= is_weighed_by_stats(p, i) || pass_is_fed(p, s, p->plan.choices[i].to);
    }
    if (!rc && p->o->hqq && !any_half_quadratic(&p->plan))
        rc = err_set(e, ERR_USAGE, "hqq changes nothing in %s: no type in it has scales of its own for it to move",
                     p->o->plan ? p->o->plan_name : p->o->type->name);
    if (!rc && p->o->fed_by_stats && !p->o->planned_by_stats && !any_fed(p))
        rc = err_set(e, ERR_USAGE, "error feedback by statistics changes nothing in %s: %s",
                     p->o->plan ? p->o->plan_name : p->o->type->name,
                     any_half_quadratic(&p->plan) ? "they know no matrix with a type that has a code for each weight"
                                                  : "no type in it has a code for each weight");
    if (!rc && informed && !weighed && !p->o->planned_by_stats)
        rc = err_set(e, ERR_USAGE, "statistics change nothing in %s: %s",
                     p->o->plan ? p->o->plan_name : p->o->type->name,
                     p->o->calibrated ? "layers are weighed by --data, and nothing else weighs errors"
                                      : "its types weigh no errors");
    if (!rc) rc = pass_reserve(p, widest, e);
    if (rc || !informed) return rc;
    p->importance = mem_array(p->widest, sizeof *p->importance, e);
    if (!p->importance || pass_check_importance(p, e)) return e->code;
    return p->o->strict ? check_all_known(p, e) : 0;
}

void pass_finish(struct pass *p) {
    buf_release(&p->stored);
    buf_release(&p->f32);
    buf_release(&p->packed);
    buf_release(&p->back);
    mem_free(p->importance);
    quant_plan_release(&p->plan);
}
