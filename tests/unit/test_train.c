/* Tests of lib/train: schedules and plans. */
#include <math.h>
#include <string.h>

#include "lib/train/train_internal.h"
#include "tests/unit/stream_samples.h"

static void the_schedule_is_linear_then_a_cosine(void **state) {
    (void)state;
    struct train_plan p = {.now = {.lr = 1, .lr_min = 0.1, .warmup = 4, .steps = 12}};
    assert_true(train_lr(&p, 1) == 0.25 && train_lr(&p, 2) == 0.5 && train_lr(&p, 4) == 1);
    assert_true(fabs(train_lr(&p, 8) - 0.55) < 1e-12 && fabs(train_lr(&p, 12) - 0.1) < 1e-12);
    p.now.warmup = 0;
    assert_true(train_lr(&p, 1) == 1 && fabs(train_lr(&p, 12) - 0.1) < 1e-12);
    p.now.steps = 1;
    assert_true(train_lr(&p, 1) == 1);
    assert_int_equal(train_default_warmup(9), 0);
    assert_int_equal(train_default_warmup(999), 99);
    assert_int_equal(train_default_warmup(5000), 100);
    assert_true(train_default_lr_min(&(struct train_schedule){.lr = 1e-3}) == 1e-4);
}

static void a_plan_is_what_its_steps_followed(void **state) {
    (void)state;
    struct err e;
    const struct train_schedule a = {1, 0.1, 4, 12}, b = {0.5, 0.05, 0, 20};
    struct train_plan p = {.now = b}, before = {.now = a}, again;
    OK(train_plan_continue(&p, &before, 6, &e));
    assert_int_equal(p.n_past, 1);
    assert_true(train_lr(&p, 6) == train_schedule_lr(&a, 6) && train_lr(&p, 7) == train_schedule_lr(&b, 7));
    again = p; /* the same change again, from before it and from after it */
    OK(train_plan_continue(&again, &p, 3, &e));
    assert_true(train_plan_equal(&again, &p));
    OK(train_plan_continue(&again, &p, 9, &e));
    assert_true(train_plan_equal(&again, &p));
    again = (struct train_plan){.now = a}; /* back to the first: a phase in the middle */
    OK(train_plan_continue(&again, &p, 9, &e));
    assert_int_equal(again.n_past, 2);
    assert_true(again.past[0].until == 6 && again.past[1].until == 9);
    assert_true(train_schedule_equal(&again.past[1].schedule, &b));
    again = (struct train_plan){.now = a}; /* no step of the other one was taken */
    OK(train_plan_continue(&again, &p, 6, &e));
    assert_int_equal(again.n_past, 0);
    before = (struct train_plan){.now = a, .n_past = 1, .past = {{0, b}}};
    assert_int_equal(train_plan_check(&before, &e), ERR_USAGE);
    before.past[0].until = 13;
    assert_int_equal(train_plan_check(&before, &e), ERR_USAGE);
    before.past[0].until = 12;
    OK(train_plan_check(&before, &e));
    for (uint64_t i = 0; i <= TRAIN_MAX_PAST; i++) { /* changed at each step */
        before = p;
        p.now.lr = (double)i / 100;
        assert_int_equal(train_plan_continue(&p, &before, 7 + i, &e), i + 1 < TRAIN_MAX_PAST ? 0 : ERR_USAGE);
        if (i + 1 >= TRAIN_MAX_PAST) break;
    }
}

static void a_phase_reads_back(void **state) {
    (void)state;
    struct err e;
    char text[TRAIN_PHASE_TEXT], twice[TRAIN_PHASE_TEXT];
    const double rates[] = {0, 1e-4, 0.1, 1.0 / 3, 2.5e-300, 10};
    for (size_t i = 0; i < COUNT_OF(rates); i++) {
        for (const struct schedule_type *type = train_schedules; type->name; type++) {
            struct train_phase p = {7 + i, {rates[i], rates[i] / 7, 3, 1000000, type, 0.1}};
            struct train_plan plan = {0};
            bool now = false;
            OK(train_plan_parse(train_phase_text(&p, text), &plan, &now, &e));
            assert_true(plan.n_past == 1 && !now && plan.past[0].until == p.until);
            assert_true(train_schedule_equal(&plan.past[0].schedule, &p.schedule));
            assert_string_equal(train_phase_text(&plan.past[0], twice), text);
        }
    }
    const struct train_phase p = {30, {0.01, 0.001, 3, 60}};
    assert_string_equal(train_phase_text(&p, text), "30:steps=60,warmup=3,lr=0.01,lr-min=0.001");
    const struct train_phase q = {30, {0.01, 0.001, 3, 60, &train_schedules[3], 0.25}};
    assert_string_equal(train_phase_text(&q, text), "30:wsd:steps=60,warmup=3,lr=0.01,lr-min=0.001,decay=0.25");
}

/* The other schedules, from their definitions. */
static void schedules_have_their_shapes(void **state) {
    (void)state;
    struct train_plan p = {.now = {.lr = 1, .lr_min = 0.2, .warmup = 4, .steps = 12}};
    struct err e;
    bool now = false;
    OK(train_plan_parse("linear", &p, &now, &e));
    assert_true(now && train_lr(&p, 2) == 0.5 && train_lr(&p, 4) == 1);
    for (uint64_t i = 4; i <= 12; i++) assert_true(fabs(train_lr(&p, i) - (1 - 0.8 * ((double)i - 4) / 8)) < 1e-12);
    assert_int_equal(train_plan_parse("linear", &p, &now, &e), ERR_USAGE);
    now = false;
    OK(train_plan_parse("constant", &p, &now, &e));
    assert_true(train_lr(&p, 2) == 0.5 && train_lr(&p, 4) == 1 && train_lr(&p, 12) == 1);
    assert_true(train_default_lr_min(&p.now) == p.now.lr);
    now = false;
    OK(train_plan_parse("wsd:decay=0.5", &p, &now, &e));
    assert_true(train_lr(&p, 4) == 1 && train_lr(&p, 6) == 1);
    for (uint64_t i = 6; i <= 12; i++)
        assert_true(fabs(train_lr(&p, i) - (0.2 + 0.8 * (1 - sqrt(((double)i - 6) / 6)))) < 1e-12);
    now = false;
    OK(train_plan_parse("wsd", &p, &now, &e));
    assert_true(p.now.decay == TRAIN_DECAY && train_lr(&p, 9) == 1 && train_lr(&p, 10) < 1);
    static const char *const bad[] = {"",
                                      "sine",
                                      "wsd:",
                                      "wsd:decay",
                                      "wsd:decay=0",
                                      "wsd:decay=2",
                                      "cosine:decay=0.1",
                                      "linear:lr=1",
                                      "wsd:decay=0.1,decay=0.2",
                                      "5:sine:steps=9,warmup=0,lr=1,lr-min=1",
                                      "5:constant:steps=9,warmup=0,lr=1,lr-min=1",
                                      "5:wsd:steps=9,warmup=0,lr=1,lr-min=1",
                                      "5:",
                                      "5",
                                      "5x:steps=9,warmup=0,lr=1,lr-min=1"};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        now = false;
        if (train_plan_parse(bad[i], &p, &now, &e) != ERR_USAGE) fail_msg("\"%s\" is accepted", bad[i]);
    }
}

/* META of a checkpoint, and of one written before schedules had names. */
static void a_plan_goes_through_json(void **state) {
    (void)state;
    struct err e;
    struct train_plan p = {.now = {0.5, 0.05, 0, 20, &train_schedules[3], 0.3},
                           .n_past = 1,
                           .past = {{6, {1, 0.1, 4, 12, NULL, 0}}}},
                      q;
    cJSON *o = cJSON_CreateObject();
    assert_true(train_plan_put(o, &p));
    OK(train_plan_get(o, &q, &e));
    assert_true(train_plan_equal(&p, &q));
    cJSON_Delete(o);
    const char *old = "{\"schedule\":{\"steps\":9,\"warmup\":1,\"lr\":0.1,\"lr-min\":0.01},\"past\":[]}";
    o = json_parse(old, strlen(old), &e);
    OK(train_plan_get(o, &q, &e));
    assert_ptr_equal(train_schedule_type(&q.now), &train_schedules[0]);
    cJSON_Delete(o);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_schedule_is_linear_then_a_cosine),
        cmocka_unit_test(a_plan_is_what_its_steps_followed),
        cmocka_unit_test(a_phase_reads_back),
        cmocka_unit_test(schedules_have_their_shapes),
        cmocka_unit_test(a_plan_goes_through_json),
    };
    return cmocka_run_group_tests_name("train", tests, NULL, NULL);
}
