/* Converts text options to settings, and the plan of learning rates back to options for the provenance. */
#include "lib/job/job_internal.h"

/* Parses all values of --schedule. */
static int read_plan(struct job *j, struct err *e) {
    const struct cli_list *l = &j->o->schedules;
    bool named = false;
    for (size_t i = 0; i < l->n; i++) {
        bool before = named;
        if (train_plan_parse(l->items[i], &j->settings.plan, &named, e)) return e->code;
        if (named && !before) j->schedule_named = l->items[i];
    }
    return 0;
}

/* Sets the options of lib/train. */
static int read_training(struct job *j, struct err *e) {
    const struct job_options *o = j->o;
    struct train_options *t = &j->settings.train;
    t->state = dtype_by_name(o->optimizer_state)->dtype;
    if (train_optimizer_parse(o->optimizer, t, e) || (o->lora && train_lora_parse(o->lora, &t->lora, e)))
        return e->code;
    if (o->groups.n > TRAIN_MAX_GROUPS) return err_set(e, ERR_USAGE, "--group: at most %d", TRAIN_MAX_GROUPS);
    for (size_t i = 0; i < o->groups.n; i++)
        if (train_group_parse(o->groups.items[i], &j->groups[i], e)) return e->code;
    t->groups = j->groups;
    t->n_groups = o->groups.n;
    t->frozen = o->frozen.items;
    t->n_frozen = o->frozen.n;
    return read_plan(j, e);
}

int job_read_settings(struct job *j, struct err *e) {
    const struct job_options *o = j->o;
    j->settings = o->distill;
    j->settings.precision = session_precision(&o->student);
    for (size_t i = 0; i < o->losses.n; i++)
        if (loss_list_add(&j->settings.losses, o->losses.items[i], e)) return e->code;
    if (read_training(j, e)) return e->code;
    return o->exits ? distill_exits_parse(o->exits, &j->settings, e) : 0;
}

int job_remember_plan(struct job *j, const struct train_plan *p, bool changed, struct err *e) {
    char text[TRAIN_MAX_PAST][TRAIN_PHASE_TEXT];
    const char *words[TRAIN_MAX_PAST + 1];
    size_t n = 0;
    cJSON *list = cJSON_AddArrayToObject(cli_settings(j->c), "schedule");
    bool ok = list != NULL;
    for (size_t i = 0; i < p->n_past; i++) words[n++] = train_phase_text(&p->past[i], text[i]);
    if (j->schedule_named) words[n++] = j->schedule_named;
    for (size_t i = 0; ok && i < n; i++) ok = cJSON_AddItemToArray(list, cJSON_CreateString(words[i]));
    if (!ok) return err_nomem(e, "settings");
    return changed ? cli_remember(j->c, "schedule", words, n, e) : 0;
}
