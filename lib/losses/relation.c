/* Losses on groups of instances: positions of a sequence, or sequences of a micro-batch. */
#include <string.h>

#include "lib/losses/losses_internal.h"

/* ---- requests ---------------------------------------------------------------------------------------------------- */

int loss_map_needs(struct loss *l, const struct loss_setting *s, size_t size, struct err *e) {
    uint32_t layers = loss_teacher_layers(s, l, POINT_LAYER, e);
    struct loss_pairs *map = layers ? mem_zalloc(size, e) : NULL;
    if (!map) return e->code;
    l->state = map;
    if (loss_map_parse(loss_words(l, "map"), s->student->n_layers, layers, map->pairs, &map->n, e)) return e->code;
    for (size_t i = 0; i < map->n; i++)
        if (loss_want_pair(l, s, POINT_LAYER, &map->pairs[i], e)) return e->code;
    return 0;
}

int loss_relation_needs(struct loss *l, const struct loss_setting *s, struct err *e) {
    return loss_map_needs(l, s, sizeof(struct loss_pairs), e);
}

int loss_some_term(const struct loss *l, const char *const *keys, size_t n, struct err *e) {
    for (size_t i = 0; i < n; i++)
        if (loss_number(l, keys[i]) > 0) return 0;
    return err_set(e, ERR_USAGE, "the loss %s: all of its terms have the weight 0", l->type->name);
}

/* ---- instances --------------------------------------------------------------------------------------------------- */

bool loss_pooled(const struct loss *l) {
    return loss_key_index(l->type, "per") >= 0 && !strcmp(loss_words(l, "per"), "sequence");
}

/* An instance is the mean of rows at[first[i]] to at[first[i + 1] - 1]: one labelled position, or all of a sequence. */
struct instances {
    size_t n;
    uint32_t *first, *at;
    double labelled; /* weight of the group: its labelled positions */
};

/* Collects the labelled positions of sequence s for which the teacher has rows; returns their number. */
static size_t labelled_positions(const struct loss_points *p, const struct loss *l, size_t s, uint32_t *at) {
    const uint8_t *has = l->of_sampled ? p->sampled : NULL;
    size_t n = 0;
    for (uint32_t i = p->starts[s]; i < p->starts[s + 1]; i++)
        if (p->row_weight[i] != 0 && (!has || has[i])) at[n++] = i;
    return n;
}

/* Keeps at most `most` of them, evenly spaced; returns their number. */
static size_t thin_out(uint32_t *at, size_t n, size_t most) {
    for (size_t i = 0; n > most && i < most; i++) at[i] = at[(2 * i + 1) * n / (2 * most)];
    return n < most ? n : most;
}

static int of_sequence(const struct loss_points *p, const struct loss *l, size_t s, size_t most, struct instances *g,
                       struct err *e) {
    struct arena *a = &p->list->memory;
    size_t length = p->starts[s + 1] - p->starts[s];
    g->at = arena_array(a, length + 1, sizeof *g->at, e);
    g->first = g->at ? arena_array(a, length + 1, sizeof *g->first, e) : NULL;
    if (!g->first) return e->code;
    size_t n = labelled_positions(p, l, s, g->at);
    g->labelled = (double)n;
    g->n = thin_out(g->at, n, most);
    for (size_t i = 0; i <= g->n; i++) g->first[i] = (uint32_t)i;
    return 0;
}

static int of_batch(const struct loss_points *p, const struct loss *l, size_t most, struct instances *g,
                    struct err *e) {
    struct arena *a = &p->list->memory;
    g->at = arena_array(a, p->in->n_positions + 1, sizeof *g->at, e);
    g->first = g->at ? arena_array(a, p->in->n_seqs + 1, sizeof *g->first, e) : NULL;
    if (!g->first) return e->code;
    size_t used = 0;
    for (size_t s = 0; s < p->in->n_seqs && g->n < most; s++) {
        size_t n = labelled_positions(p, l, s, g->at + used);
        if (n) g->first[g->n++] = (uint32_t)used;
        used += n;
    }
    g->first[g->n] = (uint32_t)used;
    g->labelled = p->labelled;
    return 0;
}

static float *gather(struct loss_points *p, const struct instances *g, const float *x, size_t d, struct err *e) {
    float *out = arena_array(&p->list->memory, g->n * d, sizeof *out, e);
    for (size_t i = 0; out && i < g->n; i++) {
        float share = 1 / (float)(g->first[i + 1] - g->first[i]);
        for (size_t k = g->first[i]; k < g->first[i + 1]; k++)
            kernel_axpy(kernel_f32(out + i * d), share, kernel_f32(x + g->at[k] * d), d);
    }
    return out;
}

static void scatter(const struct instances *g, const float *dx, size_t d, float *out) {
    for (size_t i = 0; i < g->n; i++) {
        float share = 1 / (float)(g->first[i + 1] - g->first[i]);
        for (size_t k = g->first[i]; k < g->first[i + 1]; k++)
            kernel_axpy(kernel_f32(out + g->at[k] * d), share, kernel_f32(dx + i * d), d);
    }
}

/* ---- groups ------------------------------------------------------------------------------------------------------ */

static int run_group(struct loss *l, struct loss_points *p, const struct loss_sides *of, const struct instances *in,
                     float *const *whole, struct err *e) {
    struct arena *a = &p->list->memory;
    struct loss_group g = {.n = in->n, .sides = of->n, .memory = a, .weight = p->weight * of->share * in->labelled};
    for (size_t i = 0; i < of->n; i++) {
        g.d[i] = of->cols[i];
        if (!(g.x[i] = gather(p, in, of->rows[i], g.d[i], e))) return e->code;
        if (whole[i] && !(g.dx[i] = arena_array(a, in->n * g.d[i], sizeof(float), e))) return e->code;
    }
    double value;
    if (of->run(l, &g, &value, e)) return e->code;
    p->sum += of->share * in->labelled * value;
    for (size_t i = 0; i < of->n; i++)
        if (whole[i]) scatter(in, g.dx[i], g.d[i], whole[i]);
    return 0;
}

int loss_groups(struct loss *l, struct loss_points *p, struct loss_sides *of, struct err *e) {
    float *whole[LOSS_MAX_SIDES] = {NULL};
    bool pooled = loss_pooled(l);
    for (size_t i = 0; i < of->n; i++) {
        if (of->var[i] && !(of->rows[i] = loss_host_value(p, of->var[i]))) return grad_error(p->t, e);
        if (of->var[i]) of->cols[i] = of->var[i]->cols;
        if (of->var[i] && p->weight != 0 && !(whole[i] = loss_gradient(p, of->var[i]))) return grad_error(p->t, e);
    }
    for (size_t s = 0; s < (pooled ? 1 : p->in->n_seqs); s++) {
        struct instances in = {0};
        int rc = pooled ? of_batch(p, l, of->most, &in, e) : of_sequence(p, l, s, of->most, &in, e);
        if (!rc && in.n) rc = run_group(l, p, of, &in, whole, e);
        arena_reset(&p->list->memory);
        if (rc) return rc;
    }
    for (size_t i = 0; i < of->n; i++)
        if (whole[i]) grad_add_to(p->t, of->var[i], whole[i]);
    return 0;
}

size_t loss_most(const struct loss *l, const char *key) {
    return loss_key_index(l->type, key) < 0 ? SIZE_MAX : (size_t)loss_number(l, key);
}

int loss_relation_run(struct loss *l, struct loss_points *p, const char *most, loss_group_run *run, struct err *e) {
    const struct loss_pairs *r = l->state;
    for (size_t i = 0; i < r->n; i++) {
        struct loss_sides of = {.n = 2, .run = run, .share = 1 / (double)r->n, .most = loss_most(l, most)};
        of.var[0] = loss_student_point(p, POINT_LAYER, r->pairs[i].student);
        if (loss_teacher_point(p, POINT_LAYER, r->pairs[i].teacher, &of.rows[1], &of.cols[1], e) ||
            loss_groups(l, p, &of, e))
            return e->code;
    }
    return 0;
}

int loss_relation_points(struct loss *l, struct loss_points *p, struct err *e) {
    return loss_relation_run(l, p, "positions", l->type->group, e);
}

int loss_relation(struct loss_group *g, const struct kernel_relation *how, double *value, struct err *e) {
    double *scratch = arena_array(g->memory, kernel_relation_scratch(g->n), sizeof *scratch, e);
    if (!scratch) return e->code;
    *value = kernel_relation(how, g->n, g->x[1], g->d[1], g->x[0], g->d[0], scratch, g->dx[0]);
    return 0;
}

/* A teacher's rows are valid until the next call, so the first layer's are copied. */
int loss_two_vars(struct loss *l, struct loss_points *p, const struct loss_pair *pairs, struct grad_var *a,
                  struct grad_var *b, loss_group_run *run, double share, struct err *e) {
    struct loss_sides of = {.n = 4, .var = {a, b}, .run = run, .share = share, .most = loss_most(l, "positions")};
    if (loss_teacher_copy(p, POINT_LAYER, pairs[0].teacher, &of.rows[2], &of.cols[2], e) ||
        loss_teacher_point(p, POINT_LAYER, pairs[1].teacher, &of.rows[3], &of.cols[3], e))
        return e->code;
    return loss_groups(l, p, &of, e);
}

int loss_two_layers(struct loss *l, struct loss_points *p, const struct loss_pair *pairs, loss_group_run *run,
                    double share, struct err *e) {
    return loss_two_vars(l, p, pairs, loss_student_point(p, POINT_LAYER, pairs[0].student),
                         loss_student_point(p, POINT_LAYER, pairs[1].student), run, share, e);
}
