/* Chooses types for a budget of bytes: measures a model stream, solves the knapsack, and writes the plan. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "lib/quant/budget.h"

/* ---- candidate types ---- */

int quant_types_parse(const char *list, unsigned **out, size_t *n, struct err *e) {
    *n = 0;
    *out = mem_array(SENSE_TYPES, sizeof **out, e);
    if (!*out) return e->code;
    for (const char *at = list;; at++) {
        char name[32];
        at += strspn(at, " ");
        size_t len = strcspn(at, ",");
        snprintf(name, sizeof name, "%.*s", (int)len, at);
        if (*n == SENSE_TYPES) return err_set(e, ERR_USAGE, "more than %d types", SENSE_TYPES);
        if (quant_dtype_parse(name, &(*out)[*n], e)) return e->code;
        for (size_t i = 0; i < *n; i++)
            if ((*out)[i] == (*out)[*n]) return err_set(e, ERR_USAGE, "'%s' is given twice", name);
        ++*n;
        at += len;
        if (!*at) return 0;
    }
}

/* ---- measurements ---- */

struct candidate {
    enum dtype to;
    double error; /* scaled for the sum */
};
struct measured {  /* per slot */
    size_t leader; /* the slot whose type it shares */
    struct candidate candidates[SENSE_TYPES];
    size_t n;
    uint64_t rows, cols;
    double scale; /* factor of its errors in the sum */
};

struct budget_job {
    struct pass pass; /* provides importance */
    const struct quant_budget *b;
    unsigned *types; /* QUANT_BUDGET_TYPES, if the caller gave none */
    const unsigned *from;
    size_t n_from;
    struct measured *slots;        /* [model_slot_count] */
    struct search_tensor *tensors; /* [model_slot_count], matrices only, with b->search */
    uint64_t fixed;                /* bytes of tensors that are not matrices */
    struct quant_budget_result *r;
};

/* GGUF stores all experts of a layer, and in some architectures q, k and v, as one tensor. */
static size_t leader_of(const struct budget_job *j, struct model_slot s) {
    const struct quant_options *o = j->pass.o;
    if ((s.role == ROLE_K || s.role == ROLE_V) && o->fuses_qkv && o->fuses_qkv(j->pass.config)) s.role = ROLE_Q;
    s.expert = 0;
    return (size_t)model_slot_index(j->pass.config, s);
}

static double bits_of(enum dtype t) {
    return 8.0 * dtype_info(t)->block_bytes / dtype_info(t)->block_elems;
}

static void add_type(enum dtype *types, size_t *n, enum dtype t) {
    for (size_t i = 0; i < *n; i++)
        if (types[i] == t) return;
    if (*n < SENSE_TYPES) types[(*n)++] = t;
}

/* The types that the tensor can have, without duplicates: those of the list, or the one fixed for it. */
static size_t types_of(struct budget_job *j, const struct quant_choice *choice, const struct tensor_desc *d,
                       bool weighed, enum dtype *types) {
    const struct quant_options *o = j->pass.o;
    const struct dtype_info *is = dtype_info(d->dtype);
    bool blocked = false;
    size_t n = 0, n_from = choice->named ? 1 : j->n_from;
    if (is->is_quantized && !o->grow && !choice->named) add_type(types, &n, d->dtype);
    for (size_t i = 0; i < n_from; i++) {
        enum dtype wanted = choice->named ? choice->wanted : (enum dtype)j->from[i],
                   to = quant_fallback(wanted, tensor_row_elems(d));
        if (o->strict && to != wanted) continue;
        if (is->is_quantized && !o->grow && bits_of(to) > bits_of(d->dtype)) continue;
        if (dtype_info(to)->needs_importance && !weighed && to != d->dtype)
            blocked = true;
        else
            add_type(types, &n, to);
    }
    j->r->blocked += blocked;
    return n;
}

static double scale_of(const struct budget_job *j, size_t slot, const struct measured *m, const float *importance,
                       double power) {
    double sum = 0;
    if (!j->b->traces) return power > 0 ? 1 / power : 0;
    for (uint64_t c = 0; c < m->cols; c++) sum += importance ? importance[c] : 1;
    /* the trace is assumed to be spread evenly over the outputs: F = sum_i g_i^2 x x^T */
    return sum > 0 ? 0.5 * j->b->traces[slot] / ((double)m->rows * sum) : 0;
}

static int measure_matrix(struct budget_job *j, struct model_slot s, const struct tensor_desc *d, const void *data,
                          struct err *e) {
    enum dtype types[SENSE_TYPES];
    struct sense sense;
    size_t at = (size_t)model_slot_index(j->pass.config, s);
    struct measured *m = &j->slots[at];
    const float *importance = NULL;
    m->rows = tensor_rows(d);
    m->cols = tensor_row_elems(d);
    if (j->pass.importance && pass_importance_of(&j->pass, s, m->cols, &importance, e)) return e->code;
    const struct quant_choice *choice = &j->pass.plan.choices[at];
    m->n = types_of(j, choice, d, importance != NULL, types);
    if (!m->n && choice->named)
        return err_set(e, ERR_USAGE, "tensor '%s', %s: %s is no type that it can have%s", d->name, choice->why,
                       dtype_info(choice->wanted)->name,
                       importance ? "" : " (some need --stats; what is quantized already gets no more bits)");
    if (!m->n)
        return err_set(e, ERR_USAGE, "tensor '%s', rows of %" PRIu64 ": no type to choose from that it can have%s",
                       d->name, m->cols, importance ? "" : " (some need --stats)");
    struct sense_job job = {d, data, importance, j->b->cache, &j->pass.f32};
    int rc = sense_measure(&job, types, m->n, &sense, e);
    if (rc) return rc;
    m->scale = scale_of(j, at, m, importance, sense.power);
    for (size_t i = 0; i < m->n; i++)
        m->candidates[i] = (struct candidate){types[i], m->scale * sense_error(&sense, types[i]) *
                                                            left_by_method(&j->pass, s, types[i])};
    return 0;
}

/* Keeps a matrix as stored, for the search to make blocks from. */
static int keep(struct budget_job *j, struct model_slot s, const struct tensor_desc *d, const void *data,
                struct err *e) {
    struct search_tensor *t = &j->tensors[model_slot_index(j->pass.config, s)];
    t->d = *d;
    t->data = mem_array(tensor_bytes(d), 1, e);
    if (!t->data) return err_prefix(e, "tensor '%s'", d->name);
    memcpy(t->data, data, tensor_bytes(d));
    return 0;
}

static int look_at(void *ctx, struct model_slot s, const struct tensor_desc *d, const cJSON *attrs, const void *data,
                   struct err *e) {
    struct budget_job *j = ctx;
    (void)attrs;
    j->r->elems += tensor_elems(d);
    if (model_role_is_matrix(s.role)) {
        int rc = measure_matrix(j, s, d, data, e);
        return rc || !j->b->search ? rc : keep(j, s, d, data, e);
    }
    j->fixed += tensor_elems(d) * sizeof(float);
    return 0;
}

/* ---- choosing ---- */

static uint64_t bytes_of(const struct measured *m, enum dtype to) {
    return m->rows * dtype_row_bytes(to, m->cols);
}

static const struct candidate *find(const struct measured *m, enum dtype to) {
    for (size_t i = 0; i < m->n; i++)
        if (m->candidates[i].to == to) return &m->candidates[i];
    return NULL;
}

/* The end of the slots that may follow a leader: its layer. */
static size_t end_of(const struct budget_job *j, size_t leader) {
    struct model_slot s = model_slot_at(j->pass.config, leader);
    return model_role_in_layer(s.role) ? model_slot_of_layer(j->pass.config, s.layer + 1) : leader + 1;
}

/* Writes the offers common to a leader and its followers, with their types; returns the number. */
static size_t put_offers(const struct budget_job *j, size_t leader, struct offer *out, enum dtype *types) {
    size_t n = 0, end = end_of(j, leader);
    for (size_t k = 0; k < j->slots[leader].n; k++) {
        struct offer sum = {0, 0};
        enum dtype to = j->slots[leader].candidates[k].to;
        bool all = true;
        for (size_t i = leader; all && i < end; i++) {
            const struct measured *m = &j->slots[i];
            if (!m->n || m->leader != leader) continue;
            const struct candidate *c = find(m, to);
            all = c != NULL;
            if (!all) break;
            sum.bytes += bytes_of(m, to);
            sum.error += c->error;
        }
        if (!all) continue;
        out[n] = sum;
        types[n++] = to;
    }
    return n;
}

/* Explains the choice by the best smaller and the next larger alternative. `was`: the type before the search. */
static void say_why(struct quant_choice *choice, const struct measured *m, enum dtype was) {
    const struct candidate *is = find(m, choice->to), *less = NULL, *more = NULL;
    for (size_t i = 0; i < m->n; i++) {
        const struct candidate *c = &m->candidates[i];
        uint64_t n = bytes_of(m, c->to);
        if (n < bytes_of(m, is->to) && (!less || c->error < less->error)) less = c;
        if (n > bytes_of(m, is->to) && c->error < is->error &&
            (!more || n < bytes_of(m, more->to) || (n == bytes_of(m, more->to) && c->error < more->error)))
            more = c;
    }
    size_t len = 0;
    if (was != choice->to) len = (size_t)snprintf(choice->why, sizeof choice->why, "was %s; ", dtype_info(was)->name);
    len += (size_t)snprintf(choice->why + len, sizeof choice->why - len, "error %.3g", is->error);
    if (less)
        len += (size_t)snprintf(choice->why + len, sizeof choice->why - len, "; less: %s %.3g",
                                dtype_info(less->to)->name, less->error);
    if (more)
        snprintf(choice->why + len, sizeof choice->why - len, "; more: %s %.3g", dtype_info(more->to)->name,
                 more->error);
}

static int too_small(const struct budget_job *j, uint64_t least, struct err *e) {
    double elems = (double)j->r->elems;
    /* rounded up, so that the number printed is feasible */
    uint64_t thousandths = (uint64_t)((8000.0 * (double)least + elems - 1) / elems) + 1;
    return err_set(e, ERR_USAGE,
                   "%" PRIu64 " bytes, %.3f bits per weight, cannot be reached: the smallest are %" PRIu64
                   " bytes, %" PRIu64 ".%03" PRIu64 " bits per weight",
                   j->r->budget, 8.0 * (double)j->r->budget / elems, least, thousandths / 1000, thousandths % 1000);
}

struct groups {
    struct offer *offers; /* [slots][SENSE_TYPES] */
    struct offers *of;    /* [n] */
    enum dtype *types;    /* parallel to offers */
    size_t *leaders, *chosen, n;
    size_t *was; /* [n] choice before the search; NULL: no search */
};

static int gather(const struct budget_job *j, size_t n_slots, struct groups *g, struct arena *a, struct err *e) {
    g->offers = arena_array(a, n_slots * SENSE_TYPES, sizeof *g->offers, e);
    g->of = g->offers ? arena_array(a, n_slots, sizeof *g->of, e) : NULL;
    g->types = g->of ? arena_array(a, n_slots * SENSE_TYPES, sizeof *g->types, e) : NULL;
    g->leaders = g->types ? arena_array(a, n_slots, sizeof *g->leaders, e) : NULL;
    g->chosen = g->leaders ? arena_array(a, n_slots, sizeof *g->chosen, e) : NULL;
    if (g->chosen && j->b->search) g->was = arena_array(a, n_slots, sizeof *g->was, e);
    if (!g->chosen || (j->b->search && !g->was)) return e->code;
    for (size_t i = 0; i < n_slots; i++) {
        struct offer *at = g->offers + g->n * SENSE_TYPES;
        char name[TENSOR_MAX_NAME + 1];
        if (!j->slots[i].n || j->slots[i].leader != i) continue;
        g->leaders[g->n] = i;
        g->of[g->n] = (struct offers){at, put_offers(j, i, at, g->types + g->n * SENSE_TYPES)};
        if (!g->of[g->n++].n)
            return err_set(e, ERR_USAGE, "tensor '%s' is one with others in GGUF, and no type suits all of them",
                           model_slot_name(model_slot_at(j->pass.config, i), name));
    }
    return 0;
}

/* Improves the choice by measured divergence. */
static int go_on(struct budget_job *j, const struct groups *g, struct allocation *got, struct err *e) {
    size_t n_slots = model_slot_count(j->pass.config);
    struct search_job s = {.pass = &j->pass,
                           .o = j->b->search,
                           .tensors = j->tensors,
                           .n_slots = n_slots,
                           .n = g->n,
                           .of = g->of,
                           .types = g->types,
                           .budget = j->r->budget - j->fixed};
    size_t *unit_of = mem_array(n_slots, sizeof *unit_of, e);
    if (!unit_of) return e->code;
    memcpy(g->was, g->chosen, g->n * sizeof *g->was);
    for (size_t i = 0; i < n_slots; i++) {
        unit_of[i] = SIZE_MAX;
        for (size_t k = 0; j->slots[i].n && k < g->n; k++)
            if (g->leaders[k] == j->slots[i].leader) unit_of[i] = k;
    }
    s.unit_of = unit_of;
    int rc = search_plan(&s, g->chosen, &j->r->search, e);
    got->bytes = 0, got->error = 0;
    for (size_t k = 0; k < g->n; k++) {
        got->bytes += g->of[k].at[g->chosen[k]].bytes;
        got->error += g->of[k].at[g->chosen[k]].error;
    }
    mem_free(unit_of);
    return rc;
}

static int choose(struct budget_job *j, struct quant_plan *plan, struct err *e) {
    struct arena a = {0};
    struct groups g = {0};
    struct allocation got = {0};
    struct quant_budget_result *r = j->r;
    r->budget = j->b->bytes ? j->b->bytes : (uint64_t)(j->b->bits_per_weight * (double)r->elems / 8);
    int rc = gather(j, plan->n, &g, &a, e);
    uint64_t least = rc ? 0 : j->fixed + allocate_least(g.of, g.n);
    if (!rc && least > r->budget) rc = too_small(j, least, e);
    if (!rc) rc = allocate(g.of, g.n, r->budget - j->fixed, g.chosen, &got, e);
    if (!rc && j->b->search) rc = go_on(j, &g, &got, e);
    for (size_t k = 0; !rc && k < g.n; k++)
        for (size_t i = g.leaders[k]; i < end_of(j, g.leaders[k]); i++) {
            struct quant_choice *choice = &plan->choices[i];
            if (!j->slots[i].n || j->slots[i].leader != g.leaders[k]) continue;
            choice->wanted = choice->to = g.types[k * SENSE_TYPES + g.chosen[k]];
            if (!choice->named)
                say_why(choice, &j->slots[i], g.types[k * SENSE_TYPES + (g.was ? g.was[k] : g.chosen[k])]);
            choice->named = true;
        }
    r->bytes = j->fixed + got.bytes;
    r->error = got.error;
    r->bound = got.bound;
    arena_release(&a);
    return rc;
}

static int write_plan(const struct budget_job *j, const struct quant_plan *plan, struct buf *out, struct err *e) {
    const struct quant_budget_result *r = j->r;
    int rc = quant_plan_write(plan, j->pass.config, out, e);
    if (rc) return rc;
    rc = buf_printf(out, e, "# budget: %" PRIu64 " bytes with norms and biases, of which %" PRIu64 " are used\n",
                    r->budget, r->bytes);
    if (rc) return rc;
    rc = buf_printf(out, e, "# errors: %s; sum %.6g, at least %.6g in any plan within the budget\n",
                    j->b->traces ? "expected divergence, nats a token" : "squared, of the outputs, relative to them",
                    r->error, r->bound);
    if (rc || !j->b->search) return rc;
    return buf_printf(out, e,
                      "# search: divergence on %" PRIu64 " positions %.6g before, %.6g after; %" PRIu64
                      " moves tried, %" PRIu64 " accepted\n",
                      r->search.positions, r->search.before, r->search.after, r->search.tried, r->search.accepted);
}

static int prepare(struct budget_job *j, size_t n, struct err *e) {
    const struct quant_options *o = j->pass.o;
    uint64_t widest = 0;
    j->from = j->b->types;
    j->n_from = j->b->n_types;
    if (!j->from && quant_types_parse(QUANT_BUDGET_TYPES, &j->types, &j->n_from, e)) return e->code;
    if (!j->from) j->from = j->types;
    j->slots = mem_array(n, sizeof *j->slots, e);
    if (!j->slots) return e->code;
    if (j->b->search && !(j->tensors = mem_array(n, sizeof *j->tensors, e))) return e->code;
    for (size_t i = 0; i < n; i++) {
        struct model_slot s = model_slot_at(j->pass.config, i);
        j->slots[i].leader = leader_of(j, s);
        if (cols_of(j->pass.config, s) > widest) widest = cols_of(j->pass.config, s);
    }
    if (j->b->search && pass_reserve(&j->pass, widest, e)) return e->code;
    if (!o->stats && !o->importance) return 0;
    j->pass.importance = mem_array(widest, sizeof(float), e);
    return j->pass.importance ? pass_check_importance(&j->pass, e) : e->code;
}

int quant_budget_plan(struct stream_reader *in, const struct quant_options *o, const struct quant_budget *b,
                      struct buf *out, struct quant_budget_result *r, struct err *e) {
    struct model_head head = {0};
    struct stream_item item;
    struct budget_job j = {.pass = {.o = o, .config = &head.config}, .b = b, .r = r};
    *r = (struct quant_budget_result){0};
    int rc = model_head_read(in, &head, &item, e);
    struct quant_plan *plan = &j.pass.plan;
    j.pass.vocab = head.vocab_digest;
    if (!rc) {
        plan->n = model_slot_count(&head.config);
        plan->choices = mem_array(plan->n, sizeof *plan->choices, e);
        rc = plan->choices ? prepare(&j, plan->n, e) : e->code;
        for (size_t i = 0; plan->choices && i < plan->n; i++)
            plan->choices[i] = (struct quant_choice){.wanted = DT_F32, .to = DT_F32};
        if (!rc) rc = plan_name_types(plan, &head.config, o, e);
    }
    if (!rc) rc = model_each_tensor(in, &head.config, &item, look_at, &j, e);
    if (!rc) rc = choose(&j, plan, e);
    if (!rc) rc = write_plan(&j, plan, out, e);
    for (size_t i = 0; j.tensors && i < plan->n; i++) mem_free(j.tensors[i].data);
    mem_free(j.tensors);
    mem_free(j.types);
    mem_free(j.slots);
    feedback_end(&j.pass);
    pass_finish(&j.pass);
    model_head_release(&head);
    return rc;
}
