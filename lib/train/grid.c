/* Quantization-aware training: forward passes read quantized matrices, while their f32 masters are trained. */
#include <stdio.h>
#include <string.h>

#include "lib/train/train_internal.h"

/* ---- a matrix ---------------------------------------------------------------------------------------------------- */

static uint64_t bytes_of(const struct train_grid *g) {
    return dtype_row_bytes(g->now.dtype, g->of->n);
}

/* Finds scales by the type's own search, and rounds to codes. */
static int search(const struct train_grid *g, struct kernel_array values, unsigned char *blocks, struct err *e) {
    int rc = tensor_from_f32_checked(g->now.dtype, kernel_host(values, g->of->n), blocks, g->of->n, NULL, e);
    return rc ? err_prefix(e, "tensor '%s'", g->of->desc.name) : 0;
}

/* Rounds to codes at the current scales; types without such a form are searched instead. */
static int fill(const struct train_grid *g, struct kernel_array values, unsigned char *blocks, struct err *e) {
    if (!quant_form(g->now.dtype)) return search(g, values, blocks, e);
    tensor_round_at(g->now.dtype, kernel_host(values, g->of->n), blocks, g->of->n);
    return 0;
}

/* Dequantizes for the forward pass, in parts that stay in the cache. */
static void show(const struct train_grid *g, const unsigned char *blocks, float *part) {
    for (uint64_t at = 0, n; at < g->of->n; at += n) {
        n = g->of->n - at < TRAIN_GRID_PART ? g->of->n - at : TRAIN_GRID_PART;
        tensor_to_f32(g->now.dtype, blocks + dtype_row_bytes(g->now.dtype, at), part, n);
        kernel_upload(kernel_part(g->now.forward, at), part, n);
    }
}

/* ---- setting up -------------------------------------------------------------------------------------------------- */

static const struct param *master_of(const struct param_set *s, const struct train_grid *g) {
    return g->param < s->n ? &s->params[g->param] : NULL;
}

static size_t find_master(const struct param_set *s, const struct model_param *p) {
    size_t i = 0;
    while (i < s->n && strcmp(s->params[i].name, p->desc.name) != 0) i++;
    return i;
}

/* A masked weight must be 0 after rounding, too. Codes symmetric around 0 can; with minima or codebooks they need
 * not. */
static int check_mask(const struct param_set *s, const struct train_grid *g, struct err *e) {
    const struct param *p = master_of(s, g);
    const struct quant_form *form = quant_form(g->now.dtype);
    if (!p || !kernel_has_data(p->zeros) || !dtype_info(g->now.dtype)->is_quantized) return 0;
    if (form && !form->has_min && !form->steps) return 0;
    return err_set(e, ERR_USAGE, "--keep-mask: tensor '%s' is to be %s, whose blocks may have no 0", p->name,
                   dtype_info(g->now.dtype)->name);
}

static int begin(struct param_set *s, struct train_grid *g, struct err *e) {
    bool trained = master_of(s, g) != NULL;
    if (check_mask(s, g, e)) return e->code;
    g->now.blocks = mem_alloc(bytes_of(g), e);
    if (g->now.blocks) g->now.forward = kernel_alloc(s->device, DT_F32, g->of->n, e);
    if (!g->now.blocks || !kernel_has_data(g->now.forward)) return err_prefix(e, "grid of '%s'", g->of->desc.name);
    if (trained && s->o.ema > 0 && !(g->average = mem_zalloc(bytes_of(g), e))) return e->code;
    if (trained && s->o.keep_best && !(g->best = mem_zalloc(bytes_of(g), e))) return e->code;
    if (search(g, g->of->value, g->now.blocks, e)) return e->code;
    show(g, g->now.blocks, s->grid_part);
    g->of->grid = &g->now;
    return 0;
}

int grids_begin(struct param_set *s, struct err *e) {
    struct model *m = s->gridded;
    const enum dtype *types = s->o.quantize.types;
    if (!types || !m) return 0;
    s->grids = mem_array(m->n_params, sizeof *s->grids, e);
    s->grid_part = s->grids ? mem_array(TRAIN_GRID_PART, sizeof *s->grid_part, e) : NULL;
    if (!s->grid_part) return e->code;
    for (size_t i = 0; i < m->n_params; i++) {
        struct model_param *p = &m->params[i];
        if (types[i] == DT_F32) continue;
        struct train_grid *g = &s->grids[s->n_grids++];
        *g = (struct train_grid){
            .now = {.dtype = types[i], .forward = kernel_none(DT_F32)}, .of = p, .param = find_master(s, p)};
        if (begin(s, g, e)) return e->code;
    }
    return 0;
}

void grids_release(struct param_set *s) {
    for (size_t i = 0; i < s->n_grids; i++) {
        struct train_grid *g = &s->grids[i];
        g->of->grid = NULL;
        kernel_free(s->device, g->now.forward);
        mem_free(g->now.blocks);
        mem_free(g->average);
        mem_free(g->best);
    }
    mem_free(s->grids);
    mem_free(s->grid_part);
}

uint64_t grids_bytes(const struct param_set *s) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < s->n_grids; i++) {
        const struct train_grid *g = &s->grids[i];
        bytes += bytes_of(g) * (1 + (g->average != NULL) + (g->best != NULL)) + g->of->n * sizeof(float);
    }
    return bytes;
}

/* ---- updating ---------------------------------------------------------------------------------------------------- */

int train_quantize(struct param_set *s, uint64_t step, struct err *e) {
    uint64_t refit = s->o.quantize.refit;
    for (size_t i = 0; i < s->n_grids; i++) {
        const struct train_grid *g = &s->grids[i];
        const struct param *p = master_of(s, g);
        if (!p) continue;
        bool anew = refit && step % refit == 0;
        if ((anew ? search : fill)(g, p->value, g->now.blocks, e)) return e->code;
        show(g, g->now.blocks, s->grid_part);
    }
    return 0;
}

/* Quantizes the averages at the scales of their masters, which are close. */
static int average(const struct train_grid *g, const struct param *p, struct err *e) {
    memcpy(g->average, g->now.blocks, bytes_of(g));
    return fill(g, p->average, g->average, e);
}

int train_quantize_averages(struct param_set *s, bool on, struct err *e) {
    for (size_t i = 0; i < s->n_grids; i++) {
        const struct train_grid *g = &s->grids[i];
        if (!g->average) continue;
        if (on && average(g, master_of(s, g), e)) return e->code;
        show(g, on ? g->average : g->now.blocks, s->grid_part);
    }
    return 0;
}

/* With averages, their blocks are those of the last train_quantize_averages. */
void grids_keep(struct param_set *s) {
    for (size_t i = 0; i < s->n_grids; i++) {
        const struct train_grid *g = &s->grids[i];
        if (g->best) memcpy(g->best, g->average ? g->average : g->now.blocks, bytes_of(g));
    }
}

int grids_finish(struct param_set *s, struct err *e) {
    for (size_t i = 0; i < s->n_grids; i++) {
        struct train_grid *g = &s->grids[i];
        const struct param *p = master_of(s, g);
        if (!p) continue;
        bool best = s->kept && g->best;
        struct kernel_array values = best ? p->best : kernel_has_data(p->average) ? p->average : p->value;
        uint64_t bad = tensor_first_nonfinite(DT_F32, kernel_host(values, p->n), p->n);
        if (bad < p->n)
            return err_set(e, ERR_DATA, "tensor '%s': element %llu is not finite", p->name, (unsigned long long)bad);
        if (!best && g->average && average(g, p, e)) return e->code;
        const unsigned char *result = best ? g->best : g->average ? g->average : g->now.blocks;
        if (result != g->now.blocks) memcpy(g->now.blocks, result, bytes_of(g));
        show(g, g->now.blocks, s->grid_part);
    }
    return 0;
}

/* ---- in a checkpoint --------------------------------------------------------------------------------------------- */

/* Compares types by a digest: all that can differ between two quantization plans. */
bool grids_options_put(cJSON *to, const struct param_set *s) {
    const struct train_quantization *q = &s->o.quantize;
    char text[DIGEST_TEXT_SIZE];
    if (!q->types || !s->gridded) return true;
    digest_text(digest_bytes(q->types, s->gridded->n_params * sizeof *q->types), text);
    return json_put_str(to, "quantize", text) && json_put_u64(to, "quantize-refit", q->refit);
}

int grids_each_stored(const struct param_set *s, grids_stored_fn *fn, void *ctx, struct err *e) {
    char name[TENSOR_MAX_NAME + 1];
    struct tensor_desc d;
    for (size_t i = 0; i < s->n_grids; i++) {
        const struct train_grid *g = &s->grids[i];
        unsigned char *const parts[] = {g->now.blocks, g->best};
        for (size_t k = 0; master_of(s, g) && k < COUNT_OF(parts); k++) {
            if (!parts[k]) continue;
            snprintf(name, sizeof name, "%.1000s.%s", g->of->desc.name, k ? "grid_best" : "grid");
            if (tensor_desc_init(&d, name, g->now.dtype, g->of->desc.rank, g->of->desc.dims, e) ||
                fn(ctx, &d, parts[k], e))
                return e->code;
        }
    }
    return 0;
}

void grids_restored(struct param_set *s) {
    for (size_t i = 0; i < s->n_grids; i++) show(&s->grids[i], s->grids[i].now.blocks, s->grid_part);
}
