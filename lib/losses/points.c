/* Losses on points inside the model: requests for points, layer maps, projectors. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lib/losses/losses_internal.h"

/* ---- requests ---------------------------------------------------------------------------------------------------- */

/* Layers of other kinds (LSTM, for instance) may lack a point, hence the check. */
static int want(const struct model_config *c, const char *whose, struct loss_point *points, size_t *n,
                enum model_point p, uint32_t layer, struct err *e) {
    if (!model_point_cols(c, p, layer))
        return err_set(e, ERR_DATA, "a loss needs %s of the %s's layer %u, which has none", model_point_name(p), whose,
                       layer);
    for (size_t i = 0; i < *n; i++)
        if (points[i].point == p && points[i].layer == layer) return 0;
    if (*n == LOSS_MAX_POINTS) return err_set(e, ERR_USAGE, "the losses want more than %d points", LOSS_MAX_POINTS);
    points[(*n)++] = (struct loss_point){p, layer};
    return 0;
}

int loss_want_student(const struct loss_setting *s, enum model_point p, uint32_t layer, struct err *e) {
    return want(s->student, "student", s->list->student, &s->list->n_student, p, layer, e);
}

const char *loss_field_name(enum model_point p) {
    static const char *const names[POINT_ALL] = {
        [POINT_EMBED] = "embed", [POINT_LAYER] = "hidden", [POINT_Q] = "q", [POINT_K] = "k", [POINT_V] = "v"};
    return names[p];
}

uint32_t loss_layers_in_data(const struct knowledge_format *f, const char *name) {
    uint32_t layers = 0;
    for (size_t i = 0; name && i < f->n_fields; i++)
        if (!strcmp(f->fields[i].point, name) && f->fields[i].layer + 1 > layers) layers = f->fields[i].layer + 1;
    return layers;
}

long loss_field_find(const struct knowledge_format *f, enum model_point p, uint32_t layer) {
    const char *name = loss_field_name(p);
    return name ? knowledge_field_find(f, name, p == POINT_EMBED ? KNOWLEDGE_NO_LAYER : layer) : -1;
}

static const struct knowledge_field *field_of(const struct loss_setting *s, enum model_point p, uint32_t layer) {
    long i = loss_field_find(s->data, p, layer);
    return i < 0 ? NULL : &s->data->fields[i];
}

int loss_no_field(const struct loss *l, const char *point, const uint32_t *layer, struct err *e) {
    char number[16] = "LAYERS";
    if (layer) snprintf(number, sizeof number, "%u", *layer);
    return err_set(e, ERR_DATA,
                   "the loss %s needs %s%s%s of a teacher: add it to the data (teacher-infer --tap %s:%s), or give "
                   "--teacher MODEL",
                   l->type->name, point, layer ? "." : "", layer ? number : "", point, number);
}

int loss_sampled_field(const struct loss *l, const struct knowledge_field *f, struct err *e) {
    return err_set(e, ERR_DATA, "the loss %s needs %s of all positions, and the data has some (--tap-positions)",
                   l->type->name, f->name);
}

static int no_point(const struct loss *l, enum model_point p, const uint32_t *layer, struct err *e) {
    const char *name = loss_field_name(p);
    if (!name)
        return err_set(e, ERR_DATA, "the loss %s needs %s of a teacher beside the student: give --teacher MODEL",
                       l->type->name, model_point_name(p));
    if (p == POINT_EMBED)
        return err_set(
            e, ERR_DATA,
            "the loss %s needs %s of a teacher: add it to the data (teacher-infer --tap %s), or give --teacher "
            "MODEL",
            l->type->name, name, name);
    return loss_no_field(l, name, layer, e);
}

int loss_want_live(const struct loss_setting *s, enum model_point p, uint32_t layer, struct err *e) {
    return want(s->live, "teacher", s->list->of_teacher, &s->list->n_of_teacher, p, layer, e);
}

int loss_want_teacher(const struct loss_setting *s, struct loss *l, enum model_point p, uint32_t layer, struct err *e) {
    const struct knowledge_field *f = field_of(s, p, layer);
    if (!f && !s->live) return no_point(l, p, &layer, e);
    if (f && ((f->sampled && !l->type->sampled) || f->per != PER_POSITION)) return loss_sampled_field(l, f, e);
    l->of_sampled = l->of_sampled || (f && f->sampled);
    return f ? 0 : loss_want_live(s, p, layer, e);
}

int loss_want_pair(struct loss *l, const struct loss_setting *s, enum model_point p, const struct loss_pair *pair,
                   struct err *e) {
    return loss_want_student(s, p, pair->student, e) ? e->code : loss_want_teacher(s, l, p, pair->teacher, e);
}

uint32_t loss_teacher_layers(const struct loss_setting *s, const struct loss *l, enum model_point p, struct err *e) {
    uint32_t layers = s->live ? s->live->n_layers : loss_layers_in_data(s->data, loss_field_name(p));
    if (!layers) no_point(l, p, NULL, e);
    return layers;
}

uint64_t loss_teacher_cols(const struct loss_setting *s, enum model_point p, uint32_t layer) {
    const struct knowledge_field *f = field_of(s, p, layer);
    return f ? f->cols : model_point_cols(s->live, p, layer);
}

/* ---- maps of layers ---------------------------------------------------------------------------------------------- */

static int bad_map(const char *text, struct err *e) {
    return err_set(e, ERR_USAGE, "map=%.40s: expected %s, of at most %d layers", text, LOSS_MAP_FORMS, LOSS_MAX_PAIRS);
}

static int parse_pair(char *text, uint32_t student_layers, uint32_t teacher_layers, struct loss_pair *p,
                      struct err *e) {
    char *teacher = strchr(text, ':');
    uint64_t s, t;
    if (teacher) *teacher++ = 0;
    if (!teacher || !parse_u64(text, &s) || !parse_u64(teacher, &t)) return bad_map(text, e);
    if (s >= student_layers || t >= teacher_layers)
        return err_set(e, ERR_USAGE, "map=%s:%s: the student has %u layers and the teacher %u, both numbered from 0",
                       text, teacher, student_layers, teacher_layers);
    *p = (struct loss_pair){(uint32_t)s, (uint32_t)t};
    return 0;
}

/* Parses a named map; returns false if it is none. Leaves *n at 0 if the numbers of layers do not fit. */
static bool named_map(const char *text, uint32_t student_layers, uint32_t teacher_layers, struct loss_pair *pairs,
                      size_t *n) {
    uint32_t s = student_layers, m = teacher_layers;
    bool uniform = !strcmp(text, "uniform"), skip = !strcmp(text, "skip"), tail = !strcmp(text, "tail");
    if (!strcmp(text, "last") || !strcmp(text, "ends")) {
        if (*text == 'e' && s > 1) pairs[(*n)++] = (struct loss_pair){0, 0};
        pairs[(*n)++] = (struct loss_pair){s - 1, m - 1};
        return true;
    }
    if (!uniform && !skip && !tail) return false;
    if (s > LOSS_MAX_PAIRS || (tail && m < s)) return true;
    for (uint64_t i = 0; i < s - !uniform; i++) {
        uint64_t t = tail ? m - s + i : ((i + 1) * m + s - 1) / s - 1;
        pairs[(*n)++] = (struct loss_pair){(uint32_t)i, (uint32_t)t};
    }
    return true;
}

int loss_map_parse(const char *text, uint32_t student_layers, uint32_t teacher_layers, struct loss_pair *pairs,
                   size_t *n, struct err *e) {
    char copy[LOSS_TEXT], *save = NULL;
    *n = 0;
    if (named_map(text, student_layers, teacher_layers, pairs, n)) return *n ? 0 : bad_map(text, e);
    snprintf(copy, sizeof copy, "%s", text);
    for (char *p = strtok_r(copy, "+", &save); p; p = strtok_r(NULL, "+", &save))
        if (*n == LOSS_MAX_PAIRS || parse_pair(p, student_layers, teacher_layers, &pairs[(*n)++], e))
            return *n == LOSS_MAX_PAIRS ? bad_map(text, e) : e->code;
    return *n ? 0 : bad_map(text, e);
}

int loss_map_one(const struct loss *l, const struct loss_setting *s, uint32_t layers, struct loss_pair *pair,
                 struct err *e) {
    struct loss_pairs map;
    if (!layers || loss_map_parse(loss_words(l, "map"), s->student->n_layers, layers, map.pairs, &map.n, e))
        return e->code;
    *pair = map.pairs[0];
    return map.n == 1
               ? 0
               : err_set(e, ERR_USAGE, "the loss %s is of one layer: map=%s", l->type->name, loss_words(l, "map"));
}

int loss_one_width(const struct loss *l, const struct loss_setting *s, const struct loss_pairs *map, struct err *e) {
    for (size_t i = 1; i < map->n; i++)
        if (loss_teacher_cols(s, POINT_LAYER, map->pairs[i].teacher) !=
            loss_teacher_cols(s, POINT_LAYER, map->pairs[0].teacher))
            return err_set(e, ERR_USAGE, "the loss %s: the teacher's layers of the map have different widths",
                           l->type->name);
    return 0;
}

/* ---- projectors -------------------------------------------------------------------------------------------------- */

int loss_projector_new(struct loss_projector *p, struct loss *l, const char *what, uint32_t number, size_t in,
                       size_t out, struct param_set *own, struct err *e) {
    *p = (struct loss_projector){.next = l->projectors, .in = in, .out = out};
    l->projectors = p;
    snprintf(p->name, sizeof p->name, "losses.%s.%s.%u.weight", l->column, what, number);
    p->device = own->device ? own->device : kernel_cpu();
    p->value = kernel_alloc(p->device, DT_F32, in * out, e);
    if (!kernel_has_data(p->value)) return e->code;
    p->grad = kernel_alloc(p->device, DT_F32, in * out, e);
    float *host = kernel_has_data(p->grad) ? mem_array(in * out, sizeof *host, e) : NULL;
    if (!host) return e->code;
    struct rng r = rng_init(digest_bytes(p->name, strlen(p->name)).lo, 0);
    for (size_t i = 0; i < in * out; i++) host[i] = (float)(rng_normal(&r) / sqrt((double)in));
    kernel_upload(p->value, host, in * out);
    mem_free(host);
    struct param param = {.name = p->name,
                          .value = p->value,
                          .grad = p->grad,
                          .grad_begun = &p->begun,
                          .rows = out,
                          .cols = in,
                          .decays = true};
    return param_set_add(own, &param, e);
}

void loss_state_release(struct loss *l) {
    for (struct loss_projector *p = l->projectors; p; p = p->next) {
        kernel_free(p->device, p->value);
        kernel_free(p->device, p->grad);
    }
    mem_free(l->state);
    l->projectors = NULL;
    l->state = NULL;
}

struct grad_var *loss_project(struct grad_tape *t, struct loss_projector *p, struct grad_var *x) {
    if (!kernel_has_data(p->value)) return x;
    return grad_linear(t, x, grad_parameter(t, p->value, p->grad, &p->begun, p->out, p->in), NULL, NULL);
}

/* ---- running over a micro-batch ---------------------------------------------------------------------------------- */

struct grad_var *loss_student_point(const struct loss_points *p, enum model_point point, uint32_t layer) {
    for (size_t i = 0; i < p->list->n_student; i++)
        if (p->student[i].point == point && p->student[i].layer == layer) return p->student[i].var;
    return NULL;
}

int loss_teacher_point(const struct loss_points *p, enum model_point point, uint32_t layer, const float **rows,
                       size_t *cols, struct err *e) {
    return p->teacher(p->ctx, point, layer, rows, cols, e);
}

const float *loss_host_value(struct loss_points *p, const struct grad_var *x) {
    struct loss_list *l = p->list;
    size_t i = 0;
    while (i < l->n_student && p->student[i].var != x) i++;
    if (i == l->n_student) return grad_host_value(p->t, x);
    if (!l->host[i]) l->host[i] = grad_host_value(p->t, x);
    return l->host[i];
}

int loss_teacher_copy(const struct loss_points *p, enum model_point point, uint32_t layer, const float **rows,
                      size_t *cols, struct err *e) {
    const float *from;
    if (loss_teacher_point(p, point, layer, &from, cols, e)) return e->code;
    size_t bytes = p->in->n_positions * *cols * sizeof *from;
    float *copy = grad_alloc(p->t, bytes);
    if (!copy) return grad_error(p->t, e);
    memcpy(copy, from, bytes);
    *rows = copy;
    return 0;
}

float *loss_gradient(struct loss_points *p, const struct grad_var *y) {
    float *g = grad_alloc(p->t, y->rows * y->cols * sizeof *g);
    if (g) memset(g, 0, y->rows * y->cols * sizeof *g);
    return g;
}

int loss_rows(struct loss_points *p, loss_rows_run *run, double share, const float *t, struct grad_var *x,
              struct err *e) {
    const float *value = loss_host_value(p, x);
    float *dx = value && p->weight != 0 ? grad_alloc(p->t, x->rows * x->cols * sizeof *dx) : NULL;
    if (!value || (p->weight != 0 && !dx)) return grad_error(p->t, e);
    p->sum += share * run((float)(p->weight * share), t, p->row_weight, value, x->rows, x->cols, dx);
    if (dx) grad_add_to(p->t, x, dx);
    return 0;
}

int loss_states(struct loss_points *p, struct loss_projector *map, enum model_point point, const struct loss_pair *pair,
                loss_rows_run *run, double share, struct err *e) {
    const float *t;
    size_t cols;
    if (loss_teacher_point(p, point, pair->teacher, &t, &cols, e)) return e->code;
    struct grad_var *y = loss_project(p->t, map, loss_student_point(p, point, pair->student));
    return loss_rows(p, run, share, t, y, e);
}

int loss_list_points(struct loss_list *l, struct loss_points *p, struct err *e) {
    p->list = l;
    memset(l->host, 0, sizeof l->host);
    for (size_t i = 0; i < l->n; i++) {
        struct loss *item = &l->items[i];
        if (!item->type->points) continue;
        p->weight = item->weight;
        p->sum = 0;
        if (item->type->points(item, p, e)) return e->code;
        item->sum += p->sum;
    }
    return 0;
}
