/* The plan of a run: its schedule, and those it followed before it was resumed with other settings. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "lib/train/train_internal.h"

const struct train_schedule *train_schedule_at(const struct train_plan *p, uint64_t step) {
    size_t i = 0;
    while (i < p->n_past && p->past[i].until < step) i++;
    return i < p->n_past ? &p->past[i].schedule : &p->now;
}

double train_lr(const struct train_plan *p, uint64_t step) {
    return train_schedule_lr(train_schedule_at(p, step), step);
}

static int check_schedule(const struct train_schedule *s, struct err *e) {
    if (!s->steps) return err_set(e, ERR_USAGE, "the number of steps is at least 1");
    if (s->warmup > s->steps)
        return err_set(e, ERR_USAGE, "a warmup of %" PRIu64 " steps in a run of %" PRIu64, s->warmup, s->steps);
    return 0;
}

bool train_plan_equal(const struct train_plan *a, const struct train_plan *b) {
    bool same = a->n_past == b->n_past && train_schedule_equal(&a->now, &b->now);
    for (size_t i = 0; same && i < a->n_past; i++)
        same = a->past[i].until == b->past[i].until && train_schedule_equal(&a->past[i].schedule, &b->past[i].schedule);
    return same;
}

int train_plan_check(const struct train_plan *p, struct err *e) {
    if (check_schedule(&p->now, e)) return e->code;
    for (size_t i = 0; i < p->n_past; i++) {
        uint64_t until = p->past[i].until, before = i ? p->past[i - 1].until : 0;
        if (check_schedule(&p->past[i].schedule, e)) return e->code;
        if (until <= before || until > p->now.steps)
            return err_set(e, ERR_USAGE,
                           "a schedule up to step %" PRIu64 " after one up to %" PRIu64 ", in a run of %" PRIu64
                           " steps (they go up)",
                           until, before, p->now.steps);
    }
    return 0;
}

/* ---- --schedule -------------------------------------------------------------------------------------------------- */

static const struct schedule_type *find_type(const char *name, size_t n) {
    for (const struct schedule_type *t = train_schedules; t->name; t++)
        if (strlen(t->name) == n && !memcmp(t->name, name, n)) return t;
    return NULL;
}

/* Parses the schedule of the steps to come: only its shape, since the other numbers have their own options. */
static bool parse_now(const char *text, struct train_schedule *s) {
    const char *members = strchr(text, ':');
    struct train_key decay = {"decay", .least = 1e-9, .most = 1, .number = &s->decay};
    s->type = find_type(text, members ? (size_t)(members - text) : strlen(text));
    s->decay = TRAIN_DECAY;
    return s->type && (!members || (s->type->has_decay && train_keys_parse(members + 1, &decay, 1)));
}

/* Parses the schedule of past steps: all its numbers, in the ranges of the options of the same names. */
static bool parse_past(const char *text, struct train_phase *p) {
    struct train_schedule *s = &p->schedule;
    char until[32];
    const char *colon = strchr(text, ':'), *end = colon ? strchr(colon + 1, ':') : NULL;
    struct train_key keys[] = {{"steps", .least = 1, .most = JSON_MAX_INTEGER, .whole = &s->steps},
                               {"warmup", .most = JSON_MAX_INTEGER, .whole = &s->warmup},
                               {"lr", .most = TRAIN_MAX_LR, .number = &s->lr},
                               {"lr-min", .most = TRAIN_MAX_LR, .number = &s->lr_min},
                               {"decay", .least = 1e-9, .most = 1, .number = &s->decay}};
    *p = (struct train_phase){0};
    if (!colon || colon == text || (size_t)(colon - text) >= sizeof until) return false;
    snprintf(until, sizeof until, "%.*s", (int)(colon - text), text);
    if (!parse_u64(until, &p->until) || p->until < 1 || p->until > JSON_MAX_INTEGER) return false;
    s->type = end ? find_type(colon + 1, (size_t)(end - colon - 1)) : &train_schedules[0];
    if (!s->type || !train_keys_parse((end ? end : colon) + 1, keys, COUNT_OF(keys))) return false;
    if (!s->type->falls) s->lr_min = s->lr;
    return keys[0].given && keys[1].given && keys[2].given && keys[3].given == s->type->falls &&
           keys[4].given == s->type->has_decay;
}

int train_plan_parse(const char *text, struct train_plan *p, bool *now, struct err *e) {
    if (text[0] < '0' || text[0] > '9') {
        if (*now) return err_set(e, ERR_USAGE, "--schedule %.40s: the schedule is named twice", text);
        *now = true;
        if (parse_now(text, &p->now)) return 0;
    } else {
        if (p->n_past == TRAIN_MAX_PAST) return err_set(e, ERR_USAGE, "--schedule: at most %d phases", TRAIN_MAX_PAST);
        if (parse_past(text, &p->past[p->n_past])) return p->n_past++, 0;
    }
    return err_set(e, ERR_USAGE,
                   "--schedule \"%.80s\": expected cosine, linear, constant, wsd[:decay=SHARE], or of steps before "
                   "UNTIL:[NAME:]steps=N,warmup=N,lr=RATE,lr-min=RATE",
                   text);
}

/* The fewest digits that read back as v. */
static void put_number(char out[32], double v) {
    double back = 0;
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(out, 32, "%.*g", digits, v);
        if (parse_f64(out, &back) && back == v) return;
    }
}

/* The default type's name is omitted, as in versions that had no other. */
char *train_phase_text(const struct train_phase *p, char out[TRAIN_PHASE_TEXT]) {
    char lr[32], number[32];
    const struct train_schedule *s = &p->schedule;
    const struct schedule_type *type = train_schedule_type(s);
    bool named = type != &train_schedules[0];
    put_number(lr, s->lr);
    int n = snprintf(out, TRAIN_PHASE_TEXT, "%" PRIu64 ":%s%ssteps=%" PRIu64 ",warmup=%" PRIu64 ",lr=%s", p->until,
                     named ? type->name : "", named ? ":" : "", s->steps, s->warmup, lr);
    put_number(number, s->lr_min);
    if (type->falls) n += snprintf(out + n, TRAIN_PHASE_TEXT - (size_t)n, ",lr-min=%s", number);
    put_number(number, s->decay);
    if (type->has_decay) snprintf(out + n, TRAIN_PHASE_TEXT - (size_t)n, ",decay=%s", number);
    return out;
}

/* ---- in META ----------------------------------------------------------------------------------------------------- */

static bool put_schedule(cJSON *to, const struct train_schedule *s) {
    const struct schedule_type *type = train_schedule_type(s);
    bool ok = json_put_u64(to, "steps", s->steps) && json_put_u64(to, "warmup", s->warmup) &&
              json_put_f64(to, "lr", s->lr) && json_put_f64(to, "lr-min", s->lr_min);
    if (ok && type != &train_schedules[0]) ok = json_put_str(to, "name", type->name);
    return ok && (!type->has_decay || json_put_f64(to, "decay", s->decay));
}

static bool put_phase(cJSON *list, const struct train_phase *p) {
    cJSON *o = cJSON_CreateObject();
    if (o && cJSON_AddItemToArray(list, o)) return json_put_u64(o, "until", p->until) && put_schedule(o, &p->schedule);
    cJSON_Delete(o);
    return false;
}

bool train_plan_put(cJSON *to, const struct train_plan *p) {
    cJSON *now = cJSON_AddObjectToObject(to, "schedule");
    cJSON *past = now && put_schedule(now, &p->now) ? cJSON_AddArrayToObject(to, "past") : NULL;
    bool ok = past != NULL;
    for (size_t i = 0; ok && i < p->n_past; i++) ok = put_phase(past, &p->past[i]);
    return ok;
}

static int get_schedule(const cJSON *o, struct train_schedule *s, struct err *e) {
    const char *name = train_schedules[0].name;
    if (json_get_u64(o, "steps", 1, JSON_MAX_INTEGER, &s->steps, e) ||
        json_get_u64(o, "warmup", 0, JSON_MAX_INTEGER, &s->warmup, e) ||
        json_get_f64(o, "lr", 0, TRAIN_MAX_LR, &s->lr, e) ||
        json_get_f64(o, "lr-min", 0, TRAIN_MAX_LR, &s->lr_min, e) || json_opt_str(o, "name", &name, e))
        return e->code;
    s->type = find_type(name, strlen(name));
    if (!s->type) return err_set(e, ERR_DATA, "unknown schedule \"%.40s\"", name);
    return s->type->has_decay ? json_get_f64(o, "decay", 1e-9, 1, &s->decay, e) : 0;
}

int train_plan_get(const cJSON *from, struct train_plan *p, struct err *e) {
    const cJSON *item, *past = cJSON_GetObjectItemCaseSensitive(from, "past");
    *p = (struct train_plan){0};
    if (!cJSON_IsArray(past)) return err_set(e, ERR_DATA, "META has no \"past\"");
    if (get_schedule(cJSON_GetObjectItemCaseSensitive(from, "schedule"), &p->now, e)) return e->code;
    cJSON_ArrayForEach(item, past) {
        if (p->n_past == TRAIN_MAX_PAST)
            return err_set(e, ERR_DATA, "\"past\" has more than %d phases", TRAIN_MAX_PAST);
        struct train_phase *phase = &p->past[p->n_past++];
        if (json_get_u64(item, "until", 1, JSON_MAX_INTEGER, &phase->until, e) ||
            get_schedule(item, &phase->schedule, e))
            return e->code;
    }
    return train_plan_check(p, e) ? e->code = ERR_DATA : 0;
}

/* ---- resuming with another plan ---------------------------------------------------------------------------------- */

/* Appends a phase up to step `until`; merges it with an equal last phase, and drops it if it is empty. */
static int add_phase(struct train_plan *p, uint64_t until, const struct train_schedule *s, struct err *e) {
    struct train_phase *last = p->n_past ? &p->past[p->n_past - 1] : NULL;
    if (until <= (last ? last->until : 0)) return 0;
    if (last && train_schedule_equal(&last->schedule, s)) {
        last->until = until;
        return 0;
    }
    if (p->n_past == TRAIN_MAX_PAST)
        return err_set(e, ERR_USAGE, "the schedule has been changed more than %d times", TRAIN_MAX_PAST);
    p->past[p->n_past++] = (struct train_phase){until, *s};
    return 0;
}

int train_plan_continue(struct train_plan *p, const struct train_plan *before, uint64_t step, struct err *e) {
    struct train_plan whole = {.now = p->now};
    int rc = 0;
    for (size_t i = 0; !rc && i < before->n_past; i++) {
        const struct train_phase *b = &before->past[i];
        rc = add_phase(&whole, b->until < step ? b->until : step, &b->schedule, e);
    }
    if (!rc) rc = add_phase(&whole, step, &before->now, e);
    for (size_t i = 0; !rc && i < p->n_past; i++) rc = add_phase(&whole, p->past[i].until, &p->past[i].schedule, e);
    if (rc) return rc;
    while (whole.n_past && train_schedule_equal(&whole.past[whole.n_past - 1].schedule, &whole.now)) whole.n_past--;
    *p = whole;
    return 0;
}
