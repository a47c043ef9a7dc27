/*
 * The learning rate of each step: linear warmup and half a cosine, for the whole run or, where a run was continued with
 * other numbers, for a part of it.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lib/distill/distill_internal.h"

double distill_schedule_lr(const struct distill_schedule *s, uint64_t step) {
    if (step <= s->warmup) return s->lr * (double)step / (double)s->warmup;
    uint64_t peak = s->warmup ? s->warmup : 1; /* the step that has the full rate */
    if (s->steps <= peak) return s->lr;
    double at = (double)(step - peak) / (double)(s->steps - peak);
    return s->lr_min + 0.5 * (s->lr - s->lr_min) * (1 + cos(3.14159265358979323846 * (at < 1 ? at : 1)));
}

double distill_lr(const struct distill_plan *p, uint64_t step) {
    size_t i = 0;
    while (i < p->n_past && p->past[i].until < step) i++;
    return distill_schedule_lr(i < p->n_past ? &p->past[i].schedule : &p->now, step);
}

uint64_t distill_default_warmup(uint64_t steps) {
    return steps / 10 < 100 ? steps / 10 : 100;
}

double distill_default_lr_min(double lr) {
    return lr / 10;
}

bool distill_schedule_equal(const struct distill_schedule *a, const struct distill_schedule *b) {
    return a->lr == b->lr && a->lr_min == b->lr_min && a->warmup == b->warmup && a->steps == b->steps;
}

static int check_schedule(const struct distill_schedule *s, struct err *e) {
    if (!s->steps) return err_set(e, ERR_USAGE, "the number of steps is at least 1");
    if (s->warmup > s->steps)
        return err_set(e, ERR_USAGE, "a warmup of %" PRIu64 " steps in a run of %" PRIu64, s->warmup, s->steps);
    return 0;
}

bool distill_plan_equal(const struct distill_plan *a, const struct distill_plan *b) {
    bool same = a->n_past == b->n_past && distill_schedule_equal(&a->now, &b->now);
    for (size_t i = 0; same && i < a->n_past; i++)
        same =
            a->past[i].until == b->past[i].until && distill_schedule_equal(&a->past[i].schedule, &b->past[i].schedule);
    return same;
}

int distill_plan_check(const struct distill_plan *p, struct err *e) {
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

/* ---- UNTIL:steps=N,warmup=N,lr=R,lr-min=R ------------------------------------------------------------------------ */

/* Which members a text has named so far. */
enum { HAS_STEPS = 1, HAS_WARMUP = 2, HAS_LR = 4, HAS_LR_MIN = 8 };

/* One "key=value". The ranges are those of the options of these names. */
static bool parse_member(const char *key, const char *value, struct distill_schedule *s, unsigned *has) {
    const struct {
        const char *name;
        unsigned bit;
        uint64_t *whole;
        double *number;
    } members[] = {{"steps", HAS_STEPS, &s->steps, NULL},
                   {"warmup", HAS_WARMUP, &s->warmup, NULL},
                   {"lr", HAS_LR, NULL, &s->lr},
                   {"lr-min", HAS_LR_MIN, NULL, &s->lr_min}};
    for (size_t i = 0; i < COUNT_OF(members); i++) {
        if (strcmp(key, members[i].name) != 0) continue;
        if (*has & members[i].bit) return false;
        *has |= members[i].bit;
        if (members[i].whole) return parse_u64(value, members[i].whole) && *members[i].whole <= JSON_MAX_INTEGER;
        return parse_f64(value, members[i].number) && *members[i].number >= 0 && *members[i].number <= DISTILL_MAX_LR;
    }
    return false;
}

int distill_phase_parse(const char *text, struct distill_phase *p, struct err *e) {
    char copy[256], *save = NULL;
    unsigned has = 0;
    *p = (struct distill_phase){0};
    snprintf(copy, sizeof copy, "%s", text);
    char *members = strchr(copy, ':');
    bool ok = members && strlen(text) < sizeof copy;
    if (ok) {
        *members++ = 0;
        ok = parse_u64(copy, &p->until) && p->until >= 1 && p->until <= JSON_MAX_INTEGER;
    }
    for (char *m = ok ? strtok_r(members, ",", &save) : NULL; m && ok; m = strtok_r(NULL, ",", &save)) {
        char *value = strchr(m, '=');
        if (value) *value++ = 0;
        ok = value && parse_member(m, value, &p->schedule, &has);
    }
    if (!ok || has != (HAS_STEPS | HAS_WARMUP | HAS_LR | HAS_LR_MIN))
        return err_set(e, ERR_USAGE, "--schedule \"%.80s\": expected UNTIL:steps=N,warmup=N,lr=RATE,lr-min=RATE", text);
    return 0;
}

/* The fewest digits that read back as v. */
static void put_number(char out[32], double v) {
    double back = 0;
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(out, 32, "%.*g", digits, v);
        if (parse_f64(out, &back) && back == v) return;
    }
}

char *distill_phase_text(const struct distill_phase *p, char out[DISTILL_PHASE_TEXT]) {
    char lr[32], lr_min[32];
    put_number(lr, p->schedule.lr);
    put_number(lr_min, p->schedule.lr_min);
    snprintf(out, DISTILL_PHASE_TEXT, "%" PRIu64 ":steps=%" PRIu64 ",warmup=%" PRIu64 ",lr=%s,lr-min=%s", p->until,
             p->schedule.steps, p->schedule.warmup, lr, lr_min);
    return out;
}

/* ---- a run that goes on with another plan ------------------------------------------------------------------------ */

/* Steps up to `until` follow s, after those that `p` speaks of already; a phase that is none is left out. */
static int add_phase(struct distill_plan *p, uint64_t until, const struct distill_schedule *s, struct err *e) {
    struct distill_phase *last = p->n_past ? &p->past[p->n_past - 1] : NULL;
    if (until <= (last ? last->until : 0)) return 0;
    if (last && distill_schedule_equal(&last->schedule, s)) {
        last->until = until;
        return 0;
    }
    if (p->n_past == DISTILL_MAX_PAST)
        return err_set(e, ERR_USAGE, "the schedule has been changed more than %d times", DISTILL_MAX_PAST);
    p->past[p->n_past++] = (struct distill_phase){until, *s};
    return 0;
}

int distill_plan_continue(struct distill_plan *p, const struct distill_plan *before, uint64_t step, struct err *e) {
    struct distill_plan whole = {.now = p->now};
    int rc = 0;
    for (size_t i = 0; !rc && i < before->n_past; i++) {
        const struct distill_phase *b = &before->past[i];
        rc = add_phase(&whole, b->until < step ? b->until : step, &b->schedule, e);
    }
    if (!rc) rc = add_phase(&whole, step, &before->now, e);
    for (size_t i = 0; !rc && i < p->n_past; i++) rc = add_phase(&whole, p->past[i].until, &p->past[i].schedule, e);
    if (rc) return rc;
    while (whole.n_past && distill_schedule_equal(&whole.past[whole.n_past - 1].schedule, &whole.now)) whole.n_past--;
    *p = whole;
    return 0;
}
