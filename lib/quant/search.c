/* Searches types for a budget by measured divergence: starts from the knapsack's plan and makes moves within the
 * budget. */
#include <math.h>
#include <string.h>

#include "lib/judge/judge.h"
#include "lib/quant/budget.h"
#include "lib/quant/second_order.h"

/* Share of the output error of rounding to nearest that a method with data leaves: 0.1 to 0.45 in the layers of SmolLM2
 * and of the embedded model, mostly 0.3 to 0.45 (README.md). */
#define LEFT_BY_FEEDBACK 0.4

#define DRAWS     32   /* moves per step; the one with the least expected divergence is judged */
#define TRIES     128  /* attempts to draw that many new moves */
#define REPLANNED 8    /* interval of steps at which the knapsack is solved again, with the learned factors */
#define SPREAD    1.0  /* initial standard deviation of the factors, relative to `first` */
#define MISFIT    0.3  /* standard deviation of a move's divergence: errors are not additive */
#define LEAST     0.05 /* lower limit of a factor, relative to `first` */
#define NONE      SIZE_MAX

/* Tensors that share a type. Levels are offers by ascending bytes, each with less expected error than the previous
 * one. */
struct unit {
    size_t at[SENSE_TYPES]; /* index of the offer of each level */
    size_t n;
};

struct plan {
    size_t *level; /* [units] */
    uint64_t bytes;
    double expected; /* divergence relative to the parent */
    double kl;
};

/*
 * Estimates the divergence per unit of error: one factor per unit, learned from the moves judged so far. The divergence
 * of a move is modelled as the sum over units of factor times change in error, plus noise: recursive least squares (the
 * Kalman filter of a constant state).
 */
struct belief {
    double *factor, *spread; /* [units], and covariance [units][units] */
    double *change, *gain;   /* [units]: change in error by the move; scratch */
    double first;            /* initial value of the factors */
};

struct search {
    const struct search_job *job;
    struct judge judge;
    struct unit *units;     /* [job->n] */
    unsigned char **blocks; /* [slots][SENSE_TYPES], indexed like offers; NULL: not made yet */
    size_t *now;            /* [units] levels of the values in the model; NONE: original values */
    int *moved;             /* [units] direction within the current move: 1, -1 or 0 */
    struct belief belief;
    struct plan parent, child, draw;
    struct offer *offers; /* [units][SENSE_TYPES] levels, with errors scaled by their factors */
    struct offers *of;    /* [units] */
    double *rows;         /* [positions] divergence of the parent */
    struct digest *seen;  /* [tried + 1] plans judged so far */
    struct quant_search_result *r;
    struct rng rng;
    struct arena memory;
};

double left_by_method(const struct pass *p, struct model_slot s, enum dtype to) {
    bool in_layer = model_role_in_layer(s.role) && model_role_info(s.role)->input != POINT_EXPERT_IN &&
                    model_role_info(s.role)->input != POINT_EXPERT_DOWN_IN;
    bool fed_back = (p->o->calibrated && in_layer && second_order_takes(to)) || pass_is_fed(p, s, to);
    return fed_back ? LEFT_BY_FEEDBACK : 1;
}

static const struct offer *offer_at(const struct search *s, size_t unit, size_t level) {
    return &s->job->of[unit].at[s->units[unit].at[level]];
}

/* ---- applying a plan to the model -------------------------------------------------------------------------------- */

/* The blocks of a matrix in the k-th type of its unit, made once by the method that will write them. Owned by s. */
static int blocks_of(struct search *s, size_t slot, size_t k, enum dtype to, const unsigned char **out, struct err *e) {
    const struct search_tensor *from = &s->job->tensors[slot];
    struct pass *p = s->job->pass;
    struct quant_tensor_report t = {
        .name = from->d.name, .from = from->d.dtype, .wanted = to, .to = to, .elems = tensor_elems(&from->d)};
    unsigned char **kept = &s->blocks[slot * SENSE_TYPES + k];
    struct tensor_desc d = from->d;
    d.dtype = to;
    *out = to == from->d.dtype ? from->data : *kept;
    if (*out) return 0;
    int rc = quantize_blocks(p, model_slot_at(p->config, slot), &from->d, from->data, &t, e);
    if (rc) return rc;
    *out = *kept = mem_array(tensor_bytes(&d), 1, e);
    if (!*kept) return err_prefix(e, "tensor '%s'", d.name);
    memcpy(*kept, p->packed.data, tensor_bytes(&d));
    return 0;
}

/* Puts the values of these blocks into the model; if error feedback with data will follow, scales the error by what it
 * is expected to leave. */
static int put_values(struct search *s, size_t slot, enum dtype to, const unsigned char *blocks, struct err *e) {
    const struct search_tensor *from = &s->job->tensors[slot];
    struct pass *pass = s->job->pass;
    struct model_param *p = &s->job->o->model->params[slot];
    float *x = model_host_value(p);
    bool as_written = to == from->d.dtype || !pass->o->calibrated;
    double left = as_written ? 1 : left_by_method(pass, model_slot_at(pass->config, slot), to);
    tensor_to_f32(to, blocks, x, p->n);
    if (left == 1) return 0;
    pass->f32.len = 0;
    if (buf_reserve(&pass->f32, p->n * sizeof *x, e)) return err_prefix(e, "tensor '%s'", from->d.name);
    float *was = (float *)pass->f32.data, share = (float)sqrt(left);
    tensor_to_f32(from->d.dtype, from->data, was, p->n);
    for (uint64_t k = 0; k < p->n; k++) x[k] = was[k] + share * (x[k] - was[k]);
    return 0;
}

static int apply(struct search *s, const size_t *level, struct err *e) {
    const struct search_job *j = s->job;
    for (size_t i = 0; i < j->n_slots; i++) {
        size_t u = j->unit_of[i];
        const unsigned char *blocks;
        if (u == NONE || s->now[u] == level[u]) continue;
        size_t k = s->units[u].at[level[u]];
        enum dtype to = j->types[u * SENSE_TYPES + k];
        if (blocks_of(s, i, k, to, &blocks, e)) return e->code;
        if (put_values(s, i, to, blocks, e)) return e->code;
    }
    memcpy(s->now, level, j->n * sizeof *level);
    return 0;
}

/* The first difference, for the judge: a layer, the number of layers (only the head differs), or JUDGE_INPUT. */
static size_t first_change(const struct search *s, const size_t *a, const size_t *b) {
    size_t first = s->judge.n;
    for (size_t i = 0; i < s->job->n_slots; i++) {
        size_t u = s->job->unit_of[i];
        if (u == NONE || a[u] == b[u]) continue;
        struct model_slot slot = model_slot_at(s->job->pass->config, i);
        if (!model_role_in_layer(slot.role) && slot.role != ROLE_HEAD) return JUDGE_INPUT;
        if (model_role_in_layer(slot.role) && slot.layer < first) first = slot.layer;
    }
    return first;
}

static int judge_plan(struct search *s, struct plan *p, const struct judge_part *part, struct err *e) {
    size_t first = first_change(s, p->level, s->parent.level), from = first == JUDGE_INPUT ? 0 : first;
    int rc = apply(s, p->level, e);
    if (!rc) rc = judge_try(&s->judge, first, s->judge.layers + from, s->judge.n - from, part, &p->kl, e);
    if (!isfinite(p->kl)) p->kl = INFINITY;
    return rc;
}

/* ---- learning the factors ---------------------------------------------------------------------------------------- */

static double worth(const struct search *s, size_t unit) {
    return fmax(s->belief.factor[unit], LEAST * s->belief.first);
}

/* Updates the factors: the divergence rose by `by` from the parent to the child. */
static void learn(struct search *s, double by) {
    struct belief *b = &s->belief;
    size_t n = s->job->n;
    double expected = 0, squares = 0, spread = 0;
    for (size_t i = 0; i < n; i++) {
        b->change[i] = offer_at(s, i, s->child.level[i])->error - offer_at(s, i, s->parent.level[i])->error;
        expected += b->factor[i] * b->change[i];
        squares += b->change[i] * b->change[i];
    }
    if (!(squares > 0) || !isfinite(by)) return;
    for (size_t i = 0; i < n; i++) {
        b->gain[i] = 0;
        for (size_t k = 0; k < n; k++) b->gain[i] += b->spread[i * n + k] * b->change[k];
        spread += b->gain[i] * b->change[i];
    }
    double all = spread + MISFIT * MISFIT * b->first * b->first * squares;
    for (size_t i = 0; i < n; i++) {
        b->factor[i] += b->gain[i] / all * (by - expected);
        for (size_t k = 0; k < n; k++) b->spread[i * n + k] -= b->gain[i] * b->gain[k] / all;
    }
}

/* Starts with equal factors: the measured divergence over the plan's total error. */
static void begin_belief(struct search *s, double error) {
    struct belief *b = &s->belief;
    b->first = error > 0 && isfinite(s->parent.kl) && s->parent.kl > 0 ? s->parent.kl / error : 1;
    for (size_t i = 0; i < s->job->n; i++) {
        b->factor[i] = b->first;
        b->spread[i * s->job->n + i] = SPREAD * SPREAD * b->first * b->first;
    }
}

/* ---- moves ------------------------------------------------------------------------------------------------------- */

static void copy_plan(const struct search *s, struct plan *to, const struct plan *from) {
    size_t *level = to->level;
    memcpy(level, from->level, s->job->n * sizeof *level);
    *to = *from;
    to->level = level;
}

/* Bytes and expected divergence that one step of a unit adds; false: there is no such level. */
static bool step_of(const struct search *s, const struct plan *p, size_t unit, int by, double *bytes, double *error) {
    size_t level = p->level[unit];
    if (by > 0 ? level + 1 >= s->units[unit].n : level == 0) return false;
    const struct offer *is = offer_at(s, unit, level), *then = offer_at(s, unit, by > 0 ? level + 1 : level - 1);
    *bytes = (double)then->bytes - (double)is->bytes;
    *error = worth(s, unit) * (then->error - is->error);
    return true;
}

static void step(struct search *s, struct plan *p, size_t unit, int by) {
    const struct offer *is = offer_at(s, unit, p->level[unit]);
    p->level[unit] = by > 0 ? p->level[unit] + 1 : p->level[unit] - 1;
    const struct offer *then = offer_at(s, unit, p->level[unit]);
    p->bytes = p->bytes - is->bytes + then->bytes;
    p->expected += worth(s, unit) * (then->error - is->error);
    s->moved[unit] = by;
}

/* Draws a random unit that can take this step within `room` bytes and has not moved the other way; NONE: there is
 * none. */
static size_t draw_unit(struct search *s, const struct plan *p, int by, double room) {
    size_t n = 0, chosen = NONE;
    for (size_t i = 0; i < s->job->n; i++) {
        double bytes, error;
        if (s->moved[i] == -by || !step_of(s, p, i, by, &bytes, &error) || bytes > room) continue;
        if (rng_below(&s->rng, ++n) == 0) chosen = i;
    }
    return chosen;
}

/* Draws two units and returns the one with less expected divergence per byte. */
static size_t draw_better(struct search *s, const struct plan *p, int by, double room) {
    size_t a = draw_unit(s, p, by, room), b = a == NONE ? NONE : draw_unit(s, p, by, room);
    double bytes[2], error[2];
    if (a == NONE || b == NONE || !step_of(s, p, a, by, &bytes[0], &error[0]) ||
        !step_of(s, p, b, by, &bytes[1], &error[1]))
        return a;
    return error[0] / fabs(bytes[0]) <= error[1] / fabs(bytes[1]) ? a : b;
}

static bool any_went_up(const struct search *s) {
    for (size_t i = 0; i < s->job->n; i++)
        if (s->moved[i] > 0) return true;
    return false;
}

/* The first unit of a move and its direction. */
struct first {
    size_t unit;
    int by;
};

static struct first draw_first(struct search *s) {
    int by = rng_below(&s->rng, 2) ? 1 : -1;
    memset(s->moved, 0, s->job->n * sizeof *s->moved);
    return (struct first){draw_unit(s, &s->parent, by, INFINITY), by};
}

/* Moves one unit a level up or down, others down until the budget holds, then others up while there is room. False:
 * impossible, or no unit went up. */
static bool move(struct search *s, struct plan *p, struct first first) {
    double budget = (double)s->job->budget;
    size_t unit;
    if (first.unit == NONE) return false;
    memset(s->moved, 0, s->job->n * sizeof *s->moved);
    step(s, p, first.unit, first.by);
    while ((double)p->bytes > budget) {
        if ((unit = draw_better(s, p, -1, INFINITY)) == NONE) return false;
        step(s, p, unit, -1);
    }
    while ((unit = draw_better(s, p, 1, budget - (double)p->bytes)) != NONE) step(s, p, unit, 1);
    return any_went_up(s);
}

static struct digest digest_plan(const struct search *s, const struct plan *p) {
    return digest_bytes(p->level, s->job->n * sizeof *p->level);
}

static bool was_judged(const struct search *s, struct digest of) {
    for (uint64_t i = 0; i <= s->r->tried; i++)
        if (digest_equal(of, s->seen[i])) return true;
    return false;
}

/*
 * Draws the best of several moves not judged yet into s->child; false: none was found. same: all of them start with one
 * random unit, so that every unit's factor gets observed however bad it looks; else each starts with its own.
 */
static bool draw_child(struct search *s, bool same) {
    struct first first = draw_first(s);
    bool found = false;
    for (int try = 0, draws = 0; try < TRIES && draws < DRAWS; try++) {
        copy_plan(s, &s->draw, &s->parent);
        s->draw.expected = 0;
        if (!same) first = draw_first(s);
        if (!move(s, &s->draw, first)) continue;
        if (was_judged(s, digest_plan(s, &s->draw))) continue;
        draws++;
        if (found && s->draw.expected >= s->child.expected) continue;
        copy_plan(s, &s->child, &s->draw);
        found = true;
    }
    return found;
}

/* Solves the knapsack with the learned factors, into s->child; *found false: that plan was judged already. */
static int replan(struct search *s, bool *found, struct err *e) {
    const struct search_job *j = s->job;
    struct allocation got;
    for (size_t i = 0; i < j->n; i++) {
        struct offer *at = s->offers + i * SENSE_TYPES;
        for (size_t k = 0; k < s->units[i].n; k++) {
            at[k] = *offer_at(s, i, k);
            at[k].error *= worth(s, i);
        }
        s->of[i] = (struct offers){at, s->units[i].n};
    }
    int rc = allocate(s->of, j->n, j->budget, s->child.level, &got, e);
    if (rc) return rc;
    s->child.bytes = got.bytes;
    *found = !was_judged(s, digest_plan(s, &s->child));
    return 0;
}

/* Makes a plan not judged yet, into s->child; *found false: none was found. */
static int make_child(struct search *s, uint64_t number, bool *found, struct err *e) {
    int rc = 0;
    *found = false;
    if (number % REPLANNED == REPLANNED - 1) rc = replan(s, found, e);
    if (!rc && !*found) *found = draw_child(s, number % 2);
    if (!rc && !*found) *found = draw_child(s, false);
    if (!rc && *found) s->seen[++s->r->tried] = digest_plan(s, &s->child);
    return rc;
}

/* ---- steps ------------------------------------------------------------------------------------------------------- */

/* The parent's mean divergence on part of the sequences. */
static double parent_on(const struct search *s, struct judge_part part) {
    const struct model_input *in = s->job->o->in;
    size_t first = 0, n = 0;
    double sum = 0;
    for (size_t i = 0; i < part.first; i++) first += in->lengths[i];
    for (size_t i = 0; i < part.n; i++) n += in->lengths[part.first + i];
    for (size_t i = 0; i < n; i++) sum += s->rows[first + i] / (double)n;
    return isfinite(sum) ? sum : INFINITY;
}

static int adopt(struct search *s, struct err *e) {
    size_t first = first_change(s, s->child.level, s->parent.level);
    copy_plan(s, &s->parent, &s->child);
    memcpy(s->rows, s->judge.first->rows, s->judge.positions * sizeof *s->rows);
    s->r->accepted++;
    return judge_base(&s->judge, first, e);
}

/* Judges one plan, on part of the sequences and, if better there, on all. */
static int search_step(struct search *s, uint64_t number, bool *found, struct err *e) {
    struct judge_part part = judge_part_at(&s->judge, number);
    bool in_parts = judge_parts(&s->judge) > 1;
    double was = parent_on(s, part);
    int rc = make_child(s, number, found, e);
    if (rc || !*found) return rc;
    rc = in_parts ? judge_plan(s, &s->child, &part, e) : 0;
    if (!rc && in_parts && s->child.kl >= was) return learn(s, s->child.kl - was), 0;
    if (!rc) rc = judge_plan(s, &s->child, NULL, e);
    if (rc) return rc;
    learn(s, s->child.kl - s->parent.kl);
    return s->child.kl >= s->parent.kl ? 0 : adopt(s, e);
}

/* ---- setup ------------------------------------------------------------------------------------------------------- */

/* Lists the undominated offers by ascending bytes. */
static void find_levels(struct unit *u, const struct offers *of) {
    u->n = 0;
    for (size_t k = 0; k < of->n; k++) {
        const struct offer *is = &of->at[k];
        bool dominated = false;
        for (size_t i = 0; !dominated && i < of->n; i++) {
            const struct offer *o = &of->at[i];
            bool better = o->bytes < is->bytes || o->error < is->error;
            dominated = i != k && o->bytes <= is->bytes && o->error <= is->error && (better || i < k);
        }
        if (dominated) continue;
        size_t at = u->n++;
        for (; at && of->at[u->at[at - 1]].bytes > is->bytes; at--) u->at[at] = u->at[at - 1];
        u->at[at] = k;
    }
}

/* The level of an offer, or of the one that dominates it. */
static size_t level_of(const struct unit *u, const struct offers *of, size_t chosen) {
    size_t level = 0;
    while (level + 1 < u->n && of->at[u->at[level + 1]].bytes <= of->at[chosen].bytes) level++;
    return level;
}

static int new_plan(struct search *s, struct plan *p, struct err *e) {
    p->level = arena_array(&s->memory, s->job->n, sizeof *p->level, e);
    return p->level ? 0 : e->code;
}

static int allocate_memory(struct search *s, struct err *e) {
    const struct search_job *j = s->job;
    struct belief *b = &s->belief;
    s->units = arena_array(&s->memory, j->n, sizeof *s->units, e);
    s->blocks = s->units ? mem_array(j->n_slots, SENSE_TYPES * sizeof *s->blocks, e) : NULL;
    if (!s->blocks) return e->code;
    s->now = arena_array(&s->memory, j->n, sizeof *s->now, e);
    s->moved = s->now ? arena_array(&s->memory, j->n, sizeof *s->moved, e) : NULL;
    s->seen = s->moved ? arena_array(&s->memory, (size_t)j->o->steps + 1, sizeof *s->seen, e) : NULL;
    s->rows = s->seen ? arena_array(&s->memory, j->o->in->n_positions, sizeof *s->rows, e) : NULL;
    b->factor = s->rows ? arena_array(&s->memory, j->n, sizeof *b->factor, e) : NULL;
    b->change = b->factor ? arena_array(&s->memory, j->n, sizeof *b->change, e) : NULL;
    b->gain = b->change ? arena_array(&s->memory, j->n, sizeof *b->gain, e) : NULL;
    b->spread = b->gain ? arena_array(&s->memory, j->n, j->n * sizeof *b->spread, e) : NULL;
    s->of = b->spread ? arena_array(&s->memory, j->n, sizeof *s->of, e) : NULL;
    s->offers = s->of ? arena_array(&s->memory, j->n, SENSE_TYPES * sizeof *s->offers, e) : NULL;
    int rc = s->offers ? new_plan(s, &s->parent, e) : e->code;
    if (!rc) rc = new_plan(s, &s->child, e);
    return rc ? rc : new_plan(s, &s->draw, e);
}

/* ERR_DATA if the tensors of the stream do not match the model in memory. */
static int check_model(const struct search_job *j, struct err *e) {
    const struct model *m = j->o->model;
    for (size_t i = 0; i < j->n_slots; i++) {
        if (j->unit_of[i] == NONE) continue;
        if (i >= m->n_params || m->params[i].n != tensor_elems(&j->tensors[i].d))
            return err_set(e, ERR_DATA, "tensor '%s' is not that of the model in memory", j->tensors[i].d.name);
    }
    return 0;
}

static int begin(struct search *s, const size_t *chosen, struct err *e) {
    const struct search_job *j = s->job;
    double error = 0;
    for (size_t i = 0; i < j->n; i++) {
        find_levels(&s->units[i], &j->of[i]);
        s->parent.level[i] = level_of(&s->units[i], &j->of[i], chosen[i]);
        s->parent.bytes += offer_at(s, i, s->parent.level[i])->bytes;
        error += offer_at(s, i, s->parent.level[i])->error;
        s->now[i] = NONE;
    }
    s->seen[0] = digest_plan(s, &s->parent);
    int rc = apply(s, s->parent.level, e);
    if (!rc) rc = judge_base(&s->judge, JUDGE_INPUT, e);
    if (!rc) rc = judge_plan(s, &s->parent, NULL, e);
    memcpy(s->rows, s->judge.first->rows, s->judge.positions * sizeof *s->rows);
    begin_belief(s, error);
    s->r->before = s->parent.kl;
    return rc;
}

static void put_result(const struct search *s, size_t *chosen) {
    s->r->after = s->parent.kl;
    s->r->positions = s->judge.positions;
    for (size_t i = 0; i < s->job->n; i++) chosen[i] = s->units[i].at[s->parent.level[i]];
}

static void release(struct search *s) {
    for (size_t i = 0; s->blocks && i < s->job->n_slots * SENSE_TYPES; i++) mem_free(s->blocks[i]);
    mem_free(s->blocks);
    judge_release(&s->judge);
    arena_release(&s->memory);
}

int search_plan(const struct search_job *j, size_t *chosen, struct quant_search_result *r, struct err *e) {
    const struct quant_search *o = j->o;
    struct search s = {.job = j,
                       .judge = {.model = o->model, .scratch = o->scratch, .in = o->in},
                       .r = r,
                       .rng = rng_init(o->seed, 0)};
    *r = (struct quant_search_result){0};
    int rc = check_model(j, e);
    if (!rc) rc = judge_begin(&s.judge, e);
    if (!rc) rc = allocate_memory(&s, e);
    if (!rc) rc = begin(&s, chosen, e);
    bool found = true;
    for (uint64_t i = 0; !rc && i < o->steps && found; i++) {
        rc = search_step(&s, i, &found, e);
        if (!rc && o->progress) o->progress(o->progress_ctx, (uint32_t)i + 1);
    }
    if (!rc) rc = apply(&s, s.parent.level, e);
    if (!rc) put_result(&s, chosen);
    release(&s);
    return rc;
}
