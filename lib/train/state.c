/* A parameter set's part of a checkpoint: its options and its tensors. */
#include <stdio.h>
#include <string.h>

#include "lib/train/train_internal.h"

static bool put_list(cJSON *to, const char *key, const struct train_options *o, bool frozen) {
    struct buf text = {0};
    struct err e;
    size_t n = frozen ? o->n_frozen : o->n_groups;
    int rc = 0;
    for (size_t i = 0; i < n && !rc; i++) {
        const struct train_group *g = frozen ? NULL : &o->groups[i];
        if (frozen)
            rc = buf_printf(&text, &e, "%s%s", i ? " " : "", o->frozen[i]);
        else if (g->has_decay)
            rc = buf_printf(&text, &e, "%s%s:lr=%.17g,decay=%.17g", i ? " " : "", g->glob, g->lr, g->decay);
        else
            rc = buf_printf(&text, &e, "%s%s:lr=%.17g", i ? " " : "", g->glob, g->lr);
    }
    if (!rc && n) rc = buf_append(&text, "", 1, &e);
    bool ok = !rc && (!n || json_put_str(to, key, (char *)text.data));
    buf_release(&text);
    return ok;
}

static bool put_lora(cJSON *to, const struct train_lora *l) {
    char text[TRAIN_GLOB_TEXT + 80];
    if (!l->rank) return true;
    snprintf(text, sizeof text, "%llu:alpha=%.17g,target=%s", (unsigned long long)l->rank, l->alpha, l->target);
    return json_put_str(to, "lora", text);
}

static bool put_start(cJSON *to, const struct param_set *s) {
    char text[DIGEST_TEXT_SIZE];
    if (!s->started) return true;
    digest_text(s->start, text);
    return json_put_str(to, "start-state", text);
}

/* Moments are stored in their own type, so a resumed run must have the same. */
bool train_options_put(cJSON *to, const struct param_set *s) {
    const struct train_options *o = &s->o;
    bool ok = json_put_f64(to, "weight-decay", o->weight_decay) && json_put_f64(to, "beta1", o->beta1) &&
              json_put_f64(to, "beta2", o->beta2) && json_put_f64(to, "eps", o->eps) &&
              json_put_str(to, "optimizer-state", dtype_info(o->state)->name);
    if (ok && o->optimizer != &train_optimizers[0]) ok = json_put_str(to, "optimizer", o->optimizer->name);
    if (ok && o->optimizer->put) ok = o->optimizer->put(to, o);
    if (ok && o->ema > 0) ok = json_put_f64(to, "ema", o->ema);
    if (ok && o->mup) ok = json_put_str(to, "mup", "on");
    if (ok && o->keep_mask) ok = json_put_str(to, "keep-mask", "on");
    if (ok && o->keep_best) ok = json_put_str(to, "keep-best", "on");
    return ok && put_list(to, "group", o, false) && put_list(to, "freeze", o, true) && put_lora(to, &o->lora) &&
           grids_options_put(to, s) && put_start(to, s);
}

/* ---- the tensors of a parameter ---------------------------------------------------------------------------------- */

/* Part 0 is the value, part 1 + k is moment k; then come the average and the best state. False: there is no such
 * part. */
#define MOMENTS_END (1 + TRAIN_MAX_MOMENTS)
#define PARTS       (MOMENTS_END + 2)
static bool part_of(const struct param *p, size_t part, struct kernel_array *data, const char **suffix) {
    bool moment = part > 0 && part < MOMENTS_END;
    if (moment)
        *data = p->moments[part - 1], *suffix = p->optimizer->moments[part - 1];
    else if (!part)
        *data = p->value, *suffix = NULL;
    else if (part == MOMENTS_END)
        *data = p->average, *suffix = "ema";
    else
        *data = p->best, *suffix = "best";
    return kernel_has_data(*data);
}

static int part_desc(const struct param *p, struct kernel_array data, const char *suffix, struct tensor_desc *d,
                     struct err *e) {
    char name[TENSOR_MAX_NAME + 1];
    uint64_t dims[] = {p->rows, p->cols};
    snprintf(name, sizeof name, "%.1000s%s%s", p->name, suffix ? "." : "", suffix ? suffix : "");
    return tensor_desc_init(d, name, data.dtype, p->rows > 1 ? 2 : 1, p->rows > 1 ? dims : dims + 1, e);
}

/* A moment can overflow even though the norm of the gradient, an f64 sum, is finite. */
static int check_finite(const struct tensor_desc *d, const void *data, struct err *e) {
    uint64_t n = tensor_elems(d), bad = tensor_first_nonfinite(d->dtype, data, n);
    if (bad == n) return 0;
    return err_set(e, ERR_DATA, "checkpoint: tensor '%s': element %llu is not finite", d->name,
                   (unsigned long long)bad);
}

static int save_param(const struct param *p, struct stream_writer *w, struct err *e) {
    struct kernel_array data;
    struct tensor_desc d;
    const char *suffix;
    for (size_t part = 0; part < PARTS; part++) {
        if (!part_of(p, part, &data, &suffix)) continue;
        if (part_desc(p, data, suffix, &d, e)) return e->code;
        const void *host = kernel_host(data, p->n);
        if (check_finite(&d, host, e) || stream_write_tensor(w, &d, NULL, host, e)) return e->code;
    }
    return 0;
}

static int save_blocks(void *ctx, const struct tensor_desc *d, unsigned char *blocks, struct err *e) {
    return stream_write_tensor(ctx, d, NULL, blocks, e);
}

int train_save(const struct param_set *s, struct stream_writer *w, struct err *e) {
    for (size_t i = 0; i < s->n; i++)
        if (save_param(&s->params[i], w, e)) return e->code;
    return grids_each_stored(s, save_blocks, w, e);
}

/* Reads the next tensor, which must be this one. ERR_DATA. */
static int read_tensor(struct stream_reader *r, const struct tensor_desc *d, struct buf *data, struct err *e) {
    struct stream_item item;
    char found[128], wanted[128];
    do {
        if (stream_next(r, &item, e)) return e->code;
    } while (item.type == ITEM_PROV || item.type == ITEM_OTHER);
    if (item.type != ITEM_TENSOR) return err_set(e, ERR_DATA, "tensor '%s' is missing", d->name);
    if (strcmp(item.desc.name, d->name) != 0 || item.desc.dtype != d->dtype || !tensor_same_shape(&item.desc, d))
        return err_set(e, ERR_DATA, "tensor '%s' %s: expected '%s' %s of the student", item.desc.name,
                       tensor_shape_text(&item.desc, found, sizeof found), d->name,
                       tensor_shape_text(d, wanted, sizeof wanted));
    return stream_load_tensor(r, data, e);
}

static int restore_param(const struct param *p, struct stream_reader *r, struct buf *host, struct err *e) {
    struct kernel_array data;
    struct tensor_desc d;
    const char *suffix;
    for (size_t part = 0; part < PARTS; part++) {
        if (!part_of(p, part, &data, &suffix)) continue;
        if (part_desc(p, data, suffix, &d, e) || read_tensor(r, &d, host, e)) return e->code;
        kernel_upload(data, host->data, p->n);
    }
    return 0;
}

struct restoring {
    struct stream_reader *r;
    struct buf host;
};

static int restore_blocks(void *ctx, const struct tensor_desc *d, unsigned char *blocks, struct err *e) {
    struct restoring *j = ctx;
    if (read_tensor(j->r, d, &j->host, e)) return e->code;
    memcpy(blocks, j->host.data, tensor_bytes(d));
    return 0;
}

int train_restore(struct param_set *s, struct stream_reader *r, struct err *e) {
    struct restoring j = {.r = r};
    int rc = 0;
    for (size_t i = 0; !rc && i < s->n; i++) rc = restore_param(&s->params[i], r, &j.host, e);
    if (!rc) rc = grids_each_stored(s, restore_blocks, &j, e);
    if (!rc) grids_restored(s);
    buf_release(&j.host);
    return rc;
}

/* ---- moments of another run -------------------------------------------------------------------------------------- */

/* Returns the moment of that name, or NULL: none of this set, or an error in *e. */
static struct kernel_array *find_moment(const struct param_set *s, const struct tensor_desc *d, struct err *e) {
    struct kernel_array data;
    struct tensor_desc own;
    const char *suffix;
    for (size_t i = 0; i < s->n; i++) {
        struct param *p = &s->params[i];
        size_t n = strlen(p->name);
        if (strncmp(d->name, p->name, n) != 0 || d->name[n] != '.') continue;
        for (size_t part = 1; part < MOMENTS_END; part++) {
            if (!part_of(p, part, &data, &suffix) || strcmp(d->name + n + 1, suffix) != 0) continue;
            if (part_desc(p, data, suffix, &own, e)) return NULL;
            if (tensor_same_shape(d, &own) && (d->dtype == DT_F32 || d->dtype == DT_BF16)) return &p->moments[part - 1];
            err_set(e, ERR_DATA, "tensor '%s' is not of the shape of this run's", d->name);
            return NULL;
        }
    }
    return NULL;
}

static int start_moment(struct param_set *s, struct stream_reader *r, const struct tensor_desc *d, struct buf *room,
                        struct digest_state *digest, size_t *taken, struct err *e) {
    e->code = 0;
    struct kernel_array *to = find_moment(s, d, e);
    if (!to) return e->code;
    room->len = 0;
    if (stream_load_tensor(r, room, e) || check_finite(d, room->data, e)) return e->code;
    kernel_convert(*to, kernel_host_array(d->dtype, room->data), tensor_elems(d));
    digest_update(digest, room->data, room->len);
    ++*taken;
    return 0;
}

/* Reads the number of updates; ERR_DATA if the optimizer differs. */
static int start_meta(struct param_set *s, const cJSON *meta, struct err *e) {
    const cJSON *options = cJSON_GetObjectItemCaseSensitive(meta, "options");
    const char *name = train_optimizers[0].name;
    if (json_get_u64(meta, "step", 0, JSON_MAX_INTEGER, &s->updates, e) ||
        json_opt_u64(meta, "optimizer_updates", 0, JSON_MAX_INTEGER, &s->updates, e) ||
        json_opt_str(options, "optimizer", &name, e))
        return e->code;
    if (!strcmp(name, s->o.optimizer->name)) return 0;
    return err_set(e, ERR_DATA, "the state is of %.40s, this run has %s", name, s->o.optimizer->name);
}

static int start(struct param_set *s, struct stream_reader *r, struct digest_state *digest, struct buf *room,
                 struct err *e) {
    struct stream_item item;
    size_t wanted = 0, taken = 0;
    int rc = start_meta(s, stream_reader_meta(r), e);
    while (!rc && !(rc = stream_next(r, &item, e)) && item.type != ITEM_EOF)
        if (item.type == ITEM_TENSOR) rc = start_moment(s, r, &item.desc, room, digest, &taken, e);
    if (rc) return rc;
    for (size_t i = 0; i < s->n; i++)
        for (size_t k = 0; k < TRAIN_MAX_MOMENTS; k++) wanted += kernel_has_data(s->params[i].moments[k]);
    if (taken == wanted) return 0;
    return err_set(e, ERR_DATA, "it has %zu of the %zu moments of this run's parameters", taken, wanted);
}

int train_start(struct param_set *s, struct stream_reader *r, struct err *e) {
    struct buf room = {0};
    struct digest_state *digest = digest_new(e);
    int rc = digest ? start(s, r, digest, &room, e) : e->code;
    if (!rc) s->start = digest_get(digest);
    s->started = !rc;
    buf_release(&room);
    digest_free(digest);
    return rc ? err_prefix(e, "%s", stream_reader_name(r)) : 0;
}
