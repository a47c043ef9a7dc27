/* Rotates the residual stream (R1) or the values of heads (R2): both their producers and their readers. */
#include <string.h>

#include "lib/fold/fold_internal.h"

/* ---- rotating a matrix, run by run of the rotation's width ------------------------------------------------------- */

struct job {
    const struct fold_rotation *r;
    float *x;
    size_t cols, runs; /* runs per row or column */
    double *scratch;   /* [threads][n + m] */
    bool down;         /* rotate columns */
};

static void rotate_line(void *ctx, size_t line, int thread) {
    const struct job *j = ctx;
    size_t n = j->r->n, step = j->down ? j->cols : 1;
    double *v = j->scratch + (size_t)thread * (n + j->r->m);
    float *x = j->down ? j->x + line : j->x + line * j->cols;
    for (size_t run = 0; run < j->runs; run++, x += n * step) {
        for (size_t i = 0; i < n; i++) v[i] = (double)x[i * step];
        fold_rotate_vector(j->r, v, v + n);
        for (size_t i = 0; i < n; i++) x[i * step] = (float)v[i];
    }
}

static int rotate(const struct fold_rotation *r, float *x, size_t rows, size_t cols, bool down, struct err *e) {
    struct job j = {.r = r, .x = x, .cols = cols, .runs = (down ? rows : cols) / r->n, .down = down};
    j.scratch = mem_array((size_t)parallel_threads(), (r->n + r->m) * sizeof *j.scratch, e);
    if (!j.scratch) return e->code;
    parallel_for(down ? cols : rows, rotate_line, &j);
    mem_free(j.scratch);
    return 0;
}

int fold_rotate_rows(const struct fold_rotation *r, float *x, size_t rows, size_t cols, struct err *e) {
    return rotate(r, x, rows, cols, false, e);
}
int fold_rotate_columns(const struct fold_rotation *r, float *x, size_t rows, size_t cols, struct err *e) {
    return rotate(r, x, rows, cols, true, e);
}

/* Rotates a tensor of the model: its output if `down`, otherwise its input. A vector is a single column or row. */
static int rotate_param(struct model *m, struct model_param *p, const struct fold_rotation *r, bool down, bool *changed,
                        struct err *e) {
    struct buf copy = {0};
    float *x;
    if (!p) return 0;
    size_t cols = p->desc.rank == 1 ? (down ? 1 : p->n) : tensor_row_elems(&p->desc);
    int rc = fold_take(p, &copy, &x, e);
    if (!rc) rc = rotate(r, x, p->n / cols, cols, down, e);
    if (!rc) fold_put(m, p, x, changed);
    buf_release(&copy);
    return rc;
}

/* ---- R1 ---------------------------------------------------------------------------------------------------------- */

static const char *why_not(const struct model_config *c) {
    if (c->layer_kind != LAYER_TRANSFORMER) return "its layers are LSTMs";
    if (c->norm != NORM_RMS || c->norm_bias)
        return "its norms subtract the mean or have a bias, which does not turn with it";
    if (c->norm_place != NORM_PRE) return "its layers have norms after what they add, whose gains do not turn with it";
    if (c->embed_norm) return "it has a norm after the embedding, whose gain does not turn with it";
    if (model_has_role(c, ROLE_EMBED_PROJECTION)) return "its embedding is projected";
    if (c->output != OUTPUT_LM) return "its output is not the logits of the next token";
    return NULL;
}

int fold_check_r1(const struct model_config *c, struct err *e) {
    const char *why = why_not(c);
    return why ? err_set(e, ERR_DATA, "the residual stream of this model cannot be rotated: %s", why) : 0;
}

/* Folds the gain of a norm into the matrices that read it; the gain becomes 1. */
static int fold_gain(struct model *m, const struct fold_pair *p, bool *changed, struct err *e) {
    struct buf gain = {0};
    float *g;
    int rc = fold_take(model_param(m, p->from.role, p->from.layer), &gain, &g, e);
    if (!rc) rc = fold_pair_scale(m, p, g, changed, e);
    buf_release(&gain);
    return rc;
}

/* How a tensor of a layer relates to the residual stream. */
enum part { NO_PART, TAKES, GIVES };
static enum part part_of(const struct model_config *c, uint32_t layer, struct model_slot s) {
    const struct model_role_info *role = model_role_info(s.role);
    struct fold_pair p;
    if (role->kind == KIND_BIAS && role->rows == AXIS_HIDDEN) return GIVES;
    if (role->to_residual) return GIVES;
    for (size_t i = 0; fold_pair_at(c, layer, i, &p); i++)
        if (model_role_info(p.from.role)->kind == KIND_GAIN && fold_pair_feeds(c, &p, s)) return TAKES;
    return NO_PART;
}

int fold_r1_layer(struct model *m, const struct fold_rotation *r, uint32_t layer, bool *changed, struct err *e) {
    const struct model_config *c = &m->config;
    size_t end = model_slot_of_layer(c, layer + 1);
    struct fold_pair p;
    int rc = 0;
    for (size_t i = 0; !rc && fold_pair_at(c, layer, i, &p); i++)
        if (!p.obstacle && model_role_info(p.from.role)->kind == KIND_GAIN) rc = fold_gain(m, &p, changed, e);
    for (size_t i = model_slot_of_layer(c, layer); !rc && i < end; i++) {
        enum part part = part_of(c, layer, m->params[i].slot);
        if (part != NO_PART) rc = rotate_param(m, &m->params[i], r, part == GIVES, changed, e);
    }
    return rc;
}

int fold_r1_embed(struct model *m, const struct fold_rotation *r, bool *changed, struct err *e) {
    static const enum model_role tables[] = {ROLE_EMBED, ROLE_POSITION_EMBED, ROLE_TYPE_EMBED};
    int rc = 0;
    for (size_t i = 0; !rc && i < COUNT_OF(tables); i++)
        rc = rotate_param(m, model_param(m, tables[i], 0), r, false, changed, e);
    return rc;
}

/* The head becomes head diag(g) R, and the gain of the final norm 1. */
int fold_r1_head(struct model *m, const struct fold_rotation *r, float *tied_head, bool *changed, struct err *e) {
    struct model_param *norm = model_param(m, ROLE_NORM, 0), *head = model_param(m, ROLE_HEAD, 0);
    struct buf gain = {0}, copy = {0};
    float *g = NULL, *x = tied_head;
    size_t n = m->config.hidden, rows = m->config.vocab_size;
    int rc = tied_head ? 0 : fold_take(head, &copy, &x, e);
    if (!rc && norm) rc = fold_take(norm, &gain, &g, e);
    for (size_t i = 0; !rc && g && i < rows * n; i++) x[i] *= g[i % n];
    for (size_t i = 0; !rc && g && i < n; i++) g[i] = 1;
    if (!rc && g) fold_put(m, norm, g, changed);
    if (!rc) rc = rotate(r, x, rows, n, false, e);
    if (!rc && !tied_head) fold_put(m, head, x, changed);
    buf_release(&gain);
    buf_release(&copy);
    return rc;
}

/* ---- R2 ---------------------------------------------------------------------------------------------------------- */

int fold_r2_layer(struct model *m, uint32_t layer, uint64_t seed, bool *changed, struct err *e) {
    struct fold_rotation r = {0};
    int rc = fold_rotation_new(&r, m->config.head_dim, rng_init(seed, (uint64_t)layer + 1), e);
    if (!rc) rc = rotate_param(m, model_param(m, ROLE_V, layer), &r, true, changed, e);
    if (!rc) rc = rotate_param(m, model_param(m, ROLE_V_BIAS, layer), &r, true, changed, e);
    if (!rc) rc = rotate_param(m, model_param(m, ROLE_O, layer), &r, false, changed, e);
    fold_rotation_release(&r);
    return rc;
}
