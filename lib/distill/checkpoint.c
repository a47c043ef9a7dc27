/*
 * A training run as a stream: META says where it is and with which options, then come each parameter and its two
 * moments (in f32, the moments also in bf16), named NAME, NAME.m and NAME.v, in the model's order.
 */
#include <stdio.h>
#include <string.h>

#include "lib/distill/distill_internal.h"

/* ---- options -------------------------------------------------------------------------------------------------------- */

/* What a resumed run must have in common with the one before, under the names of the options. */
static bool put_options(cJSON *to, const struct distill_options *o) {
    return json_put_f64(to, "kl-weight", o->loss.kl_weight) && json_put_f64(to, "ce-weight", o->loss.ce_weight) &&
           json_put_f64(to, "temperature", o->loss.temperature) && json_put_f64(to, "lr", o->lr) &&
           json_put_f64(to, "lr-min", o->lr_min) && json_put_u64(to, "warmup", o->warmup) &&
           json_put_u64(to, "steps", o->steps) && json_put_u64(to, "batch-tokens", o->batch_tokens) &&
           json_put_u64(to, "micro-tokens", o->micro_tokens) && json_put_f64(to, "weight-decay", o->weight_decay) &&
           json_put_f64(to, "beta1", o->beta1) && json_put_f64(to, "beta2", o->beta2) &&
           json_put_f64(to, "eps", o->eps) && json_put_f64(to, "clip", o->clip) &&
           json_put_str(to, "precision", dtype_info(o->precision)->name) &&
           json_put_str(to, "optimizer-state", dtype_info(o->state)->name);
}

static int check_text(const cJSON *theirs, const char *name, const char *now, struct err *e) {
    const char *then;
    if (json_get_str(theirs, name, &then, e)) return e->code;
    if (!strcmp(then, now)) return 0;
    return err_set(e, ERR_DATA, "the checkpoint was made with %s %.40s, this run has %s", name, then, now);
}

static int check_options(const cJSON *theirs, const struct distill_options *o, struct err *e) {
    cJSON *ours = cJSON_CreateObject();
    const cJSON *mine;
    int rc = ours && put_options(ours, o) ? 0 : err_nomem(e, "options");
    for (mine = ours ? ours->child : NULL; mine && !rc; mine = mine->next) {
        double then;
        if (cJSON_IsString(mine)) {
            rc = check_text(theirs, mine->string, mine->valuestring, e);
            continue;
        }
        rc = json_get_f64(theirs, mine->string, -1e300, 1e300, &then, e);
        if (!rc && then != mine->valuedouble)
            rc = err_set(e, ERR_DATA, "the checkpoint was made with %s %.17g, this run has %.17g", mine->string, then,
                         mine->valuedouble);
    }
    cJSON_Delete(ours);
    return rc;
}

/* ---- saving ------------------------------------------------------------------------------------------------------------ */

static bool put_meta(cJSON *meta, const struct trainer *t) {
    char text[DIGEST_TEXT_SIZE];
    digest_text(digest_get(t->seen), text);
    bool ok = json_put_str(meta, "kind", stream_kind_name(STREAM_CHECKPOINT)) &&
              json_put_u64(meta, "step", t->progress.step) && json_put_u64(meta, "epoch", t->progress.epoch) &&
              json_put_u64(meta, "positions", t->progress.positions) && json_put_u64(meta, "sequences", t->sequences) &&
              json_put_str(meta, "seen", text);
    cJSON *options = ok ? cJSON_AddObjectToObject(meta, "options") : NULL;
    return options && put_options(options, &t->o);
}

/* The parts of a parameter in stream order, and their suffixes. */
#define PARTS 3
static const char *const suffixes[PARTS] = {"", ".m", ".v"};

static struct kernel_array part_of(const struct trainer *t, size_t i, size_t part) {
    return part == 0 ? kernel_f32(t->m->params[i].value) : part == 1 ? t->m1[i] : t->m2[i];
}

static int part_desc(const struct trainer *t, size_t i, size_t part, struct tensor_desc *d, struct err *e) {
    const struct tensor_desc *of = &t->m->params[i].desc;
    char name[TENSOR_MAX_NAME + 1];
    snprintf(name, sizeof name, "%.1000s%s", of->name, suffixes[part]);
    return tensor_desc_init(d, name, part_of(t, i, part).dtype, of->rank, of->dims, e);
}

/* A moment can overflow where the gradient's norm, a sum in f64, is still finite. */
static int check_finite(const struct tensor_desc *d, const void *data, struct err *e) {
    uint64_t n = tensor_elems(d), bad = tensor_first_nonfinite(d->dtype, data, n);
    if (bad == n) return 0;
    return err_set(e, ERR_DATA, "checkpoint: tensor '%s': element %llu is not finite", d->name,
                   (unsigned long long)bad);
}

int trainer_save(struct trainer *t, struct stream_writer *w, struct err *e) {
    struct tensor_desc d;
    cJSON *meta = cJSON_CreateObject();
    int rc = meta && put_meta(meta, t) ? stream_write_meta(w, meta, e) : err_nomem(e, "META of the checkpoint");
    cJSON_Delete(meta);
    for (size_t i = 0; i < t->m->n_params && !rc; i++)
        for (size_t part = 0; part < PARTS && !rc; part++) {
            rc = part_desc(t, i, part, &d, e);
            if (!rc) rc = check_finite(&d, part_of(t, i, part).data, e);
            if (!rc) rc = stream_write_tensor(w, &d, NULL, part_of(t, i, part).data, e);
        }
    return rc;
}

/* ---- restoring --------------------------------------------------------------------------------------------------------- */

static int read_meta(struct trainer *t, const cJSON *meta, struct err *e) {
    struct distill_progress *p = &t->progress;
    const char *seen;
    const cJSON *options = cJSON_GetObjectItemCaseSensitive(meta, "options");
    if (!cJSON_IsObject(options)) return err_set(e, ERR_DATA, "META has no \"options\"");
    if (check_options(options, &t->o, e)) return e->code;
    if (json_get_u64(meta, "step", 0, t->o.steps, &p->step, e) ||
        json_get_u64(meta, "epoch", 0, JSON_MAX_INTEGER, &p->epoch, e) ||
        json_get_u64(meta, "positions", 0, JSON_MAX_INTEGER, &p->positions, e) ||
        json_get_u64(meta, "sequences", 0, JSON_MAX_INTEGER, &t->skip, e) || json_get_str(meta, "seen", &seen, e))
        return e->code;
    if (!digest_parse(seen, &t->skip_digest)) return err_set(e, ERR_DATA, "\"seen\" is no digest: \"%.80s\"", seen);
    return 0;
}

/* The next tensor must be this part of this parameter. */
static int read_part(struct trainer *t, struct stream_reader *r, size_t i, size_t part, struct err *e) {
    struct stream_item item;
    struct tensor_desc d;
    char found[128], wanted[128];
    if (part_desc(t, i, part, &d, e)) return e->code;
    do {
        if (stream_next(r, &item, e)) return e->code;
    } while (item.type == ITEM_PROV || item.type == ITEM_OTHER);
    if (item.type != ITEM_TENSOR) return err_set(e, ERR_DATA, "tensor '%s' is missing", d.name);
    if (strcmp(item.desc.name, d.name) != 0 || item.desc.dtype != d.dtype || !tensor_same_shape(&item.desc, &d))
        return err_set(e, ERR_DATA, "tensor '%s' %s: expected '%s' %s of the student", item.desc.name,
                       tensor_shape_text(&item.desc, found, sizeof found), d.name,
                       tensor_shape_text(&d, wanted, sizeof wanted));
    return stream_read_tensor(r, part_of(t, i, part).data, tensor_bytes(&d), e);
}

static int restore(struct trainer *t, struct stream_reader *r, struct err *e) {
    struct stream_item item;
    if (read_meta(t, stream_reader_meta(r), e) || stream_next(r, &item, e)) return e->code; /* the item of META */
    for (size_t i = 0; i < t->m->n_params; i++)
        for (size_t part = 0; part < PARTS; part++)
            if (read_part(t, r, i, part, e)) return e->code;
    return stream_drain(r, e);
}

int trainer_restore(struct trainer *t, struct stream_reader *r, struct err *e) {
    return restore(t, r, e) ? err_prefix(e, "%s", stream_reader_name(r)) : 0;
}
