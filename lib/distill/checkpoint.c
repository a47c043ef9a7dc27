/*
 * A training run as a stream: META says where it is, with which options and by which plan, then come each parameter and its two
 * moments (in f32, the moments also in bf16), named NAME, NAME.m and NAME.v, in the model's order.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "lib/distill/distill_internal.h"

/* ---- what must be the same --------------------------------------------------------------------------------------- */

/* All that the bytes of a run depend on but the plan, under the names of the options where there are any. */
static bool put_same(cJSON *to, const struct trainer *t) {
    const struct distill_options *o = &t->o;
    char encoding[64], student[DIGEST_TEXT_SIZE];
    digest_text(t->student, student);
    knowledge_encoding_text(&t->format, encoding, sizeof encoding);
    return json_put_str(to, "student", student) && json_put_str(to, "encoding", encoding) &&
           json_put_f64(to, "data-temperature", t->format.temperature) &&
           json_put_f64(to, "kl-weight", o->loss.kl_weight) && json_put_f64(to, "ce-weight", o->loss.ce_weight) &&
           json_put_f64(to, "temperature", o->loss.temperature) && json_put_u64(to, "batch-tokens", o->batch_tokens) &&
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

static int check_same(const cJSON *theirs, const struct trainer *t, struct err *e) {
    cJSON *ours = cJSON_CreateObject();
    const cJSON *mine;
    int rc = ours && put_same(ours, t) ? 0 : err_nomem(e, "options");
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

/* ---- the plan ---------------------------------------------------------------------------------------------------- */

static bool put_schedule(cJSON *to, const struct distill_schedule *s) {
    return json_put_u64(to, "steps", s->steps) && json_put_u64(to, "warmup", s->warmup) &&
           json_put_f64(to, "lr", s->lr) && json_put_f64(to, "lr-min", s->lr_min);
}

static bool put_phase(cJSON *list, const struct distill_phase *p) {
    cJSON *o = cJSON_CreateObject();
    if (o && cJSON_AddItemToArray(list, o)) return json_put_u64(o, "until", p->until) && put_schedule(o, &p->schedule);
    cJSON_Delete(o);
    return false;
}

static bool put_plan(cJSON *meta, const struct distill_plan *p) {
    cJSON *now = cJSON_AddObjectToObject(meta, "schedule");
    cJSON *past = now && put_schedule(now, &p->now) ? cJSON_AddArrayToObject(meta, "past") : NULL;
    bool ok = past != NULL;
    for (size_t i = 0; ok && i < p->n_past; i++) ok = put_phase(past, &p->past[i]);
    return ok;
}

static int get_schedule(const cJSON *o, struct distill_schedule *s, struct err *e) {
    if (json_get_u64(o, "steps", 1, JSON_MAX_INTEGER, &s->steps, e) ||
        json_get_u64(o, "warmup", 0, JSON_MAX_INTEGER, &s->warmup, e) ||
        json_get_f64(o, "lr", 0, DISTILL_MAX_LR, &s->lr, e) ||
        json_get_f64(o, "lr-min", 0, DISTILL_MAX_LR, &s->lr_min, e))
        return e->code;
    return 0;
}

static int get_plan(const cJSON *meta, struct distill_plan *p, struct err *e) {
    const cJSON *item, *past = cJSON_GetObjectItemCaseSensitive(meta, "past");
    *p = (struct distill_plan){0};
    if (!cJSON_IsArray(past)) return err_set(e, ERR_DATA, "META has no \"past\"");
    if (get_schedule(cJSON_GetObjectItemCaseSensitive(meta, "schedule"), &p->now, e)) return e->code;
    cJSON_ArrayForEach(item, past) {
        struct distill_phase *phase = &p->past[p->n_past];
        if (p->n_past++ == DISTILL_MAX_PAST)
            return err_set(e, ERR_DATA, "\"past\" has more than %d phases", DISTILL_MAX_PAST);
        if (json_get_u64(item, "until", 1, JSON_MAX_INTEGER, &phase->until, e) ||
            get_schedule(item, &phase->schedule, e))
            return e->code;
    }
    if (distill_plan_check(p, e)) return e->code = ERR_DATA;
    return 0;
}

/* ---- saving ------------------------------------------------------------------------------------------------------ */

static bool put_digest(cJSON *to, const char *key, struct digest d) {
    char text[DIGEST_TEXT_SIZE];
    digest_text(d, text);
    return json_put_str(to, key, text);
}

/* The last step as it was: the log is known by it, and the report of a run that has no step left to take says it. */
static bool put_progress(cJSON *meta, const struct distill_progress *p) {
    return json_put_u64(meta, "step", p->step) && json_put_u64(meta, "epoch", p->epoch) &&
           json_put_u64(meta, "positions", p->positions) && json_put_f64(meta, "kl", p->kl) &&
           json_put_f64(meta, "ce", p->ce) && json_put_f64(meta, "loss", p->loss) && json_put_f64(meta, "lr", p->lr) &&
           json_put_f64(meta, "grad_norm", p->grad_norm) && json_put_u64(meta, "first_seq", p->first_seq);
}

/* What decides over the bits of training; products of integers have no part in it. */
#define BACKEND_TEXT 96

static const char *backend_text(char out[BACKEND_TEXT]) {
    struct kernel_backend b = kernel_backend();
    snprintf(out, BACKEND_TEXT, "%s (f32 %s, bf16 %s)", b.path, b.f32, b.bf16);
    return out;
}

static bool put_meta(cJSON *meta, const struct trainer *t) {
    char backend[BACKEND_TEXT];
    bool ok = json_put_str(meta, "kind", stream_kind_name(STREAM_CHECKPOINT)) && put_progress(meta, &t->progress) &&
              json_put_u64(meta, "sequences", t->saved.sequences) && put_digest(meta, "seen", t->saved.seen) &&
              json_put_u64(meta, "data_sequences", t->data_sequences) &&
              json_put_str(meta, "backend", backend_text(backend));
    if (ok && t->data_known) ok = put_digest(meta, "data_digest", t->data_digest);
    cJSON *same = ok && put_plan(meta, &t->o.plan) ? cJSON_AddObjectToObject(meta, "options") : NULL;
    return same && put_same(same, t);
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

/* ---- restoring --------------------------------------------------------------------------------------------------- */

static int get_digest(const cJSON *o, const char *key, struct digest *d, struct err *e) {
    const char *text;
    if (json_get_str(o, key, &text, e)) return e->code;
    return digest_parse(text, d) ? 0 : err_set(e, ERR_DATA, "\"%s\" is not a digest: \"%.80s\"", key, text);
}

static int get_progress(const cJSON *meta, struct distill_progress *p, struct err *e) {
    const struct {
        const char *key;
        uint64_t *to;
    } whole[] = {{"step", &p->step}, {"epoch", &p->epoch}, {"positions", &p->positions}, {"first_seq", &p->first_seq}};
    const struct {
        const char *key;
        double *to;
    } numbers[] = {{"kl", &p->kl}, {"ce", &p->ce}, {"loss", &p->loss}, {"lr", &p->lr}, {"grad_norm", &p->grad_norm}};
    for (size_t i = 0; i < COUNT_OF(whole); i++)
        if (json_get_u64(meta, whole[i].key, 0, JSON_MAX_INTEGER, whole[i].to, e)) return e->code;
    for (size_t i = 0; i < COUNT_OF(numbers); i++)
        if (json_get_f64(meta, numbers[i].key, -1e300, 1e300, numbers[i].to, e)) return e->code;
    return 0;
}

static int get_data(struct trainer *t, const cJSON *meta, struct err *e) {
    if (json_get_u64(meta, "sequences", 0, JSON_MAX_INTEGER, &t->saved.sequences, e) ||
        get_digest(meta, "seen", &t->saved.seen, e) ||
        json_get_u64(meta, "data_sequences", 0, JSON_MAX_INTEGER, &t->data_sequences, e))
        return e->code;
    t->skip = t->saved.sequences;
    t->data_known = cJSON_HasObjectItem(meta, "data_digest");
    return t->data_known ? get_digest(meta, "data_digest", &t->data_digest, e) : 0;
}

/* Another path through the kernels rounds otherwise: the run is as good, but its bytes are not those of an uninterrupted one. */
static int check_backend(const cJSON *meta, struct err *e) {
    char now[BACKEND_TEXT];
    const char *then;
    if (json_get_str(meta, "backend", &then, e)) return e->code;
    if (strcmp(then, backend_text(now)) != 0)
        log_line(LOG_WARN, "the checkpoint was made with %.80s, this machine has %s: the last bits will differ", then,
                 now);
    return 0;
}

static int read_meta(struct trainer *t, const cJSON *meta, struct err *e) {
    struct distill_plan before;
    const cJSON *options = cJSON_GetObjectItemCaseSensitive(meta, "options");
    if (!cJSON_IsObject(options)) return err_set(e, ERR_DATA, "META has no \"options\"");
    if (check_same(options, t, e) || get_progress(meta, &t->progress, e) || get_data(t, meta, e) ||
        get_plan(meta, &before, e))
        return e->code;
    if (t->progress.step > before.now.steps)
        return err_set(e, ERR_DATA, "\"step\" is past the last one of its schedule");
    if (t->progress.step > t->o.plan.now.steps)
        return err_set(e, ERR_USAGE, "the checkpoint is at step %" PRIu64 ", this run has %" PRIu64, t->progress.step,
                       t->o.plan.now.steps);
    if (distill_plan_continue(&t->o.plan, &before, t->progress.step, e)) return e->code;
    return check_backend(meta, e);
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
    t->restored = true;
    return stream_drain(r, e);
}

int trainer_restore(struct trainer *t, struct stream_reader *r, struct err *e) {
    return restore(t, r, e) ? err_prefix(e, "%s", stream_reader_name(r)) : 0;
}
