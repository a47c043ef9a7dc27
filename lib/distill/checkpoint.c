/*
 * Checkpoints: META holds the position of the run, its options and its plan; then come the tensors that lib/train keeps
 * for each parameter, in the model's order.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "lib/distill/distill_internal.h"

/* ---- options that must not change -------------------------------------------------------------------------------- */

/* Writes each loss under its name in the log. */
static bool put_losses(cJSON *to, const struct loss_list *l) {
    char key[LOSS_NAME + 8], text[LOSS_TEXT];
    bool ok = true;
    for (size_t i = 0; ok && i < l->n; i++) {
        if (l->items[i].measured) continue; /* only measured: the result does not depend on it */
        snprintf(key, sizeof key, "loss %s", l->items[i].column);
        ok = json_put_str(to, key, loss_text(&l->items[i], text));
    }
    return ok;
}

static bool put_heads(cJSON *to, const struct distill_options *o) {
    bool ok = true;
    char key[32];
    for (size_t i = 0; ok && i < o->n_exits; i++) {
        snprintf(key, sizeof key, "exit %zu", i + 1);
        ok = json_put_u64(to, key, o->exits[i]);
    }
    return ok;
}

/* Writes everything but the plan that the result depends on, under the names of the options if there are any. */
static bool put_same(cJSON *to, const struct trainer *t) {
    const struct distill_options *o = &t->o;
    char encoding[64], student[DIGEST_TEXT_SIZE];
    digest_text(t->student, student);
    knowledge_encoding_text(&t->format, encoding, sizeof encoding);
    return json_put_str(to, "student", student) && json_put_str(to, "encoding", encoding) &&
           json_put_f64(to, "data-temperature", t->format.temperature) && put_losses(to, &t->losses) &&
           put_heads(to, o) && json_put_u64(to, "batch-tokens", o->batch_tokens) &&
           json_put_u64(to, "micro-tokens", o->micro_tokens) && json_put_f64(to, "clip", o->clip) &&
           json_put_str(to, "precision", dtype_info(o->precision)->name) &&
           (!o->mixture || mixture_put(to, o->mixture)) && train_options_put(to, &t->set) && evaluation_put_same(to, t);
}

/* Compares an option then and now; a missing one was not in use. */
static int check_option(const cJSON *then, const cJSON *now, const char *name, struct err *e) {
    char text[2][48] = {"none", "none"};
    const cJSON *both[] = {then, now};
    for (size_t i = 0; i < 2; i++)
        if (cJSON_IsString(both[i]))
            snprintf(text[i], sizeof text[i], "%.40s", both[i]->valuestring);
        else if (cJSON_IsNumber(both[i]))
            snprintf(text[i], sizeof text[i], "%.17g", both[i]->valuedouble);
        else if (both[i])
            return err_set(e, ERR_DATA, "\"options\": \"%.40s\" is neither a number nor a text", name);
    if (then && now && cJSON_Compare(then, now, true)) return 0;
    return err_set(e, ERR_DATA, "the checkpoint was made with %.40s %s, this run has %s", name, text[0], text[1]);
}

static int check_same(const cJSON *theirs, const struct trainer *t, struct err *e) {
    cJSON *ours = cJSON_CreateObject();
    const cJSON *o;
    int rc = ours && put_same(ours, t) ? 0 : err_nomem(e, "options");
    for (o = ours ? ours->child : NULL; o && !rc; o = o->next) {
        rc = check_option(cJSON_GetObjectItemCaseSensitive(theirs, o->string), o, o->string, e);
        const char *file = t->o.mixture ? mixture_member_file(t->o.mixture, o->string) : NULL;
        if (rc && file) err_prefix(e, "%s", file);
    }
    for (o = theirs->child; o && !rc; o = o->next)
        if (!cJSON_HasObjectItem(ours, o->string)) rc = check_option(o, NULL, o->string, e);
    cJSON_Delete(ours);
    return rc;
}

/* ---- saving ------------------------------------------------------------------------------------------------------ */

static bool put_digest(cJSON *to, const char *key, struct digest d) {
    char text[DIGEST_TEXT_SIZE];
    digest_text(d, text);
    return json_put_str(to, key, text);
}

static bool put_values(cJSON *meta, const struct distill_progress *p) {
    cJSON *values = cJSON_AddObjectToObject(meta, "losses");
    return values && distill_put_losses(values, p);
}

/* The values of the last step identify the log, and are reported by a run that has no steps left to take. */
static bool put_progress(cJSON *meta, const struct distill_progress *p) {
    return json_put_u64(meta, "step", p->step) && json_put_u64(meta, "epoch", p->epoch) &&
           json_put_u64(meta, "positions", p->positions) && put_values(meta, p) &&
           json_put_f64(meta, "loss", p->loss) && json_put_f64(meta, "lr", p->lr) &&
           json_put_f64(meta, "grad_norm", p->grad_norm) && json_put_u64(meta, "first_seq", p->first_seq) &&
           json_put_f64(meta, "noise_trace", p->noise.trace) && json_put_f64(meta, "noise_square", p->noise.square);
}

static bool put_group_norms(cJSON *meta, const struct trainer *t) {
    cJSON *list = cJSON_AddArrayToObject(meta, "group_norms");
    bool ok = list != NULL;
    for (size_t i = 0; ok && i <= t->o.train.n_groups; i++)
        ok = cJSON_AddItemToArray(list, cJSON_CreateNumber(t->progress.group_norm[i]));
    return ok;
}

/* What the bits of floating-point training depend on; integer kernels do not matter. */
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
              json_put_u64(meta, "data_sequences", t->data_sequences) && put_group_norms(meta, t) &&
              evaluation_put(meta, t) && json_put_u64(meta, "optimizer_updates", t->set.updates + t->progress.step) &&
              json_put_str(meta, "backend", backend_text(backend));
    if (ok && t->data_known) ok = put_digest(meta, "data_digest", t->data_digest);
    cJSON *same = ok && train_plan_put(meta, &t->o.plan) ? cJSON_AddObjectToObject(meta, "options") : NULL;
    return same && put_same(same, t);
}

int trainer_save(struct trainer *t, struct stream_writer *w, struct err *e) {
    cJSON *meta = cJSON_CreateObject();
    int rc = meta && put_meta(meta, t) ? stream_write_meta(w, meta, e) : err_nomem(e, "META of the checkpoint");
    cJSON_Delete(meta);
    return rc ? rc : train_save(&t->set, w, e);
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
    } numbers[] = {{"loss", &p->loss},
                   {"lr", &p->lr},
                   {"grad_norm", &p->grad_norm},
                   {"noise_trace", &p->noise.trace},
                   {"noise_square", &p->noise.square}};
    const cJSON *values = cJSON_GetObjectItemCaseSensitive(meta, "losses");
    for (size_t i = 0; i < COUNT_OF(whole); i++)
        if (json_get_u64(meta, whole[i].key, 0, JSON_MAX_INTEGER, whole[i].to, e)) return e->code;
    for (size_t i = 0; i < COUNT_OF(numbers); i++)
        if (json_get_f64(meta, numbers[i].key, -1e300, 1e300, numbers[i].to, e)) return e->code;
    for (size_t i = 0; i < p->n_losses; i++)
        if (json_get_f64(values, p->losses[i].name, -1e300, 1e300, &p->losses[i].value, e)) return e->code;
    return 0;
}

static int get_group_norms(struct trainer *t, const cJSON *meta, struct err *e) {
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(meta, "group_norms"), *item = list ? list->child : NULL;
    if (cJSON_GetArraySize(list) != (int)t->o.train.n_groups + 1)
        return err_set(e, ERR_DATA, "META has no \"group_norms\" of its groups");
    for (size_t i = 0; item; i++, item = item->next) t->progress.group_norm[i] = item->valuedouble;
    return 0;
}

/* Reads the number of updates of the moments, which may include those of another run. */
static int get_updates(struct trainer *t, const cJSON *meta, struct err *e) {
    uint64_t updates = t->progress.step;
    if (json_opt_u64(meta, "optimizer_updates", t->progress.step, JSON_MAX_INTEGER, &updates, e)) return e->code;
    t->set.updates = updates - t->progress.step;
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

/* Other kernels round differently: the result is as good, but not the same bytes as an uninterrupted run's. */
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
    struct train_plan before;
    const cJSON *options = cJSON_GetObjectItemCaseSensitive(meta, "options");
    if (!cJSON_IsObject(options)) return err_set(e, ERR_DATA, "META has no \"options\"");
    if (check_same(options, t, e) || get_progress(meta, &t->progress, e) || get_data(t, meta, e) ||
        get_group_norms(t, meta, e) || get_updates(t, meta, e) || evaluation_get(t, meta, e) ||
        train_plan_get(meta, &before, e))
        return e->code;
    if (t->progress.step > before.now.steps)
        return err_set(e, ERR_DATA, "\"step\" is past the last one of its schedule");
    if (t->progress.step > t->o.plan.now.steps)
        return err_set(e, ERR_USAGE, "the checkpoint is at step %" PRIu64 ", this run has %" PRIu64, t->progress.step,
                       t->o.plan.now.steps);
    if (train_plan_continue(&t->o.plan, &before, t->progress.step, e)) return e->code;
    return check_backend(meta, e);
}

static int restore(struct trainer *t, struct stream_reader *r, struct err *e) {
    struct stream_item item;
    if (read_meta(t, stream_reader_meta(r), e) || stream_next(r, &item, e)) return e->code; /* skips META */
    if (train_restore(&t->set, r, e)) return e->code;
    t->restored = true;
    return stream_drain(r, e);
}

int trainer_restore(struct trainer *t, struct stream_reader *r, struct err *e) {
    return restore(t, r, e) ? err_prefix(e, "%s", stream_reader_name(r)) : 0;
}
