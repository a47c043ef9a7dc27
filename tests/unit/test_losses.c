/*
 * Tests of lib/losses: the syntax of losses, and what a run must provide for them. Values are in test_losses_torch.c.
 */
#include "lib/losses/losses_internal.h"
#include "tests/unit/distill_samples.h"

static const char *const bad[] = {"",
                                  "mean",
                                  "KL",
                                  "kl:weight",
                                  "kl:weight=",
                                  "kl:weight=x",
                                  "kl:weight=-1",
                                  "kl:weight=nan",
                                  "kl:weight=inf",
                                  "kl:weight=1..",
                                  "kl:weight=..1",
                                  "kl:weight=1..x",
                                  "kl:weight=1,weight=2",
                                  "kl:temperature=0",
                                  "kl:temperature=2,temperature=2",
                                  "ce:temperature=1",
                                  "ce:teacher=data",
                                  "kl:teacher=me",
                                  "kl:at=0",
                                  "kl:at=-1",
                                  "kl:at=last",
                                  "hidden:at=exits",
                                  "hidden:kind=mse|cosine",
                                  "hidden:kind=",
                                  "hidden:kind=m",
                                  "kl:label=",
                                  "kl:label=A",
                                  "kl:label=a b",
                                  "kl:label=abcdefghijklmnopqrstuvwxyzabcdefghij",
                                  "jsd:beta=1.5",
                                  "skl:alpha=1",
                                  "kl:size=3"};

static void losses_are_spelled_one_way(void **state) {
    static const char *const texts[] = {"kl:weight=1", "kl:weight=0.9..0.1,label=far,teacher=live,temperature=2.5",
                                        "rkl:weight=1,at=exits,teacher=final", "jsd:weight=1,at=3,beta=0.25",
                                        "hidden:weight=2,kind=cosine,map=0:1+2:3,projector=linear",
                                        /* longer than most */
                                        "hidden:weight=30,kind=cosine,map=0:100+1:101+2:102+3:103+4:104+5:105+6:106+"
                                        "7:107+8:108+9:109+10:110+11:111+12:112+13:113+14:114,projector=none"};
    struct err e;
    char text[LOSS_TEXT];
    (void)state;
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        struct loss_list l = {0};
        if (loss_list_add(&l, bad[i], &e) != ERR_USAGE) fail_msg("\"%s\" is accepted", bad[i]);
        assert_int_equal(l.n, 0);
    }
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        struct loss_list l = {0};
        OK(loss_list_add(&l, texts[i], &e));
        assert_string_equal(loss_text(&l.items[0], text), texts[i]);
    }
}

/* Binds the losses "a b c" for the sample student. Returns 0 or the error code, with the message in *e. */
static int bind(struct loss_list *l, const char *texts, const struct loss_setting *with, struct err *e) {
    static struct model *m;
    struct param_set own;
    struct loss_setting s = *with;
    char copy[400], *save = NULL;
    int rc = 0;
    if (!m) m = student_new(true, 1);
    s.student = &m->config;
    *l = (struct loss_list){0};
    if (param_set_init(&own, &(struct train_options){.state = DT_F32}, e)) return e->code;
    snprintf(copy, sizeof copy, "%s", texts);
    for (char *t = strtok_r(copy, " ", &save); t && !rc; t = strtok_r(NULL, " ", &save)) rc = loss_list_add(l, t, e);
    if (!rc) rc = loss_list_bind(l, &s, &own, e);
    param_set_release(&own);
    return rc;
}

static void defaults_are_what_there_is(void **state) {
    struct err e;
    struct loss_list l;
    struct knowledge_format sparse = format_of("sample:5", VOCAB), dense = format_of("dense", VOCAB);
    sparse.temperature = 2;
    (void)state;
    OK(bind(&l, "", &(struct loss_setting){.data = &sparse}, &e));
    assert_int_equal(l.n, 2);
    assert_true(l.fused && l.items[1].measured && !l.items[0].measured && l.items[0].factor == 4);
    assert_string_equal(l.items[0].column, "teacher_ce");
    loss_list_release(&l);
    OK(bind(&l, "", &(struct loss_setting){.data = &plain}, &e));
    assert_true(l.n == 1 && !strcmp(l.items[0].column, "ce") && l.fused);
    loss_list_release(&l);
    OK(bind(&l, "ce", &(struct loss_setting){.data = &dense}, &e));
    assert_true(l.n == 2 && l.items[0].measured && !strcmp(l.items[0].column, "kl") && l.fused);
    loss_list_release(&l);
    OK(bind(&l, "kl kl:temperature=3,label=soft", &(struct loss_setting){.data = &dense}, &e));
    assert_true(l.n == 3 && !l.fused);
    loss_list_release(&l);
}

static void what_cannot_be_served_is_refused(void **state) {
    struct knowledge_format dense = format_of("dense", VOCAB), topk = format_of("topk:4", VOCAB),
                            ghost = format_of("ghost:4", VOCAB), sample = format_of("sample:5", VOCAB);
    const uint32_t exits[] = {1};
    struct model_config teacher = {.n_layers = 4, .hidden = 32};
    const struct {
        const char *losses;
        struct loss_setting s;
        int code;
        const char *says;
    } cases[] = {
        {"kl", {.data = &plain}, ERR_DATA, "--teacher"},
        {"rkl", {.data = &topk}, ERR_DATA, "one of the encodings dense, ghost"},
        {"rkl", {.data = &ghost}, 0, ""},
        {"skl", {.data = &sample}, ERR_DATA, "dense, ghost"},
        {"ab", {.data = &ghost}, ERR_DATA, "encodings dense (teacher-infer"},
        {"mse", {.data = &ghost}, ERR_DATA, "encodings dense (teacher-infer"},
        {"hinge", {.data = &sample}, ERR_DATA, "dense, topk, topp, ghost"},
        {"logistic", {.data = &topk}, 0, ""},
        {"tfkd smooth:label=s", {.data = &plain}, 0, ""},
        {"kl:temperature=3", {.data = &sample}, ERR_DATA, "temperature"},
        {"kl:temperature=3", {.data = &dense}, 0, ""},
        {"kl:weight=0", {.data = &dense}, ERR_USAGE, "weights of all losses are 0"},
        {"kl kl", {.data = &dense}, ERR_USAGE, "label="},
        {"kl:label=step", {.data = &dense}, ERR_USAGE, "label=step"},
        {"kl:teacher=live", {.data = &dense}, ERR_USAGE, "--teacher"},
        {"kl:teacher=ema", {.data = &dense}, ERR_USAGE, "--ema"},
        {"kl:at=exits", {.data = &dense}, ERR_USAGE, "--exit"},
        {"kl:teacher=final", {.data = &dense}, ERR_USAGE, "at=exits"},
        {"kl kl:at=exits,teacher=final", {.data = &dense, .exits = exits, .n_exits = 1}, 0, ""},
        {"kl kl:at=2", {.data = &dense, .exits = exits, .n_exits = 1}, ERR_USAGE, "after 2 layers"},
        {"kl", {.data = &dense, .exits = exits, .n_exits = 1}, ERR_USAGE, "--exit has no effect"},
        {"hidden", {.data = &dense}, ERR_DATA, "--tap hidden:"},
        {"hidden", {.data = &plain, .live = &teacher}, 0, ""},
        {"hidden:projector=none", {.data = &plain, .live = &teacher}, ERR_USAGE, "projector=linear"},
        {"hidden:map=2:0", {.data = &plain, .live = &teacher}, ERR_USAGE, "numbered from 0"},
        {"hidden:map=0:4", {.data = &plain, .live = &teacher}, ERR_USAGE, "numbered from 0"},
        {"hidden:map=first", {.data = &plain, .live = &teacher}, ERR_USAGE, "expected last|ends|skip|tail|uniform"},
    };
    struct err e;
    (void)state;
    dense.log_probs = true;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct loss_list l;
        int rc = bind(&l, cases[i].losses, &cases[i].s, &e);
        if (rc != cases[i].code || (rc && !strstr(e.msg, cases[i].says)))
            fail_msg("\"%s\": code %d, %s", cases[i].losses, rc, rc ? e.msg : "");
        loss_list_release(&l);
    }
    struct loss_list l;
    struct loss_setting s = {.data = &dense};
    assert_int_equal(bind(&l, "mse:centred=no", &s, &e), ERR_DATA);
    loss_list_release(&l);
    dense.log_probs = false;
    OK(bind(&l, "mse:centred=no", &s, &e));
    loss_list_release(&l);
}

static void weights_follow_the_steps(void **state) {
    struct err e;
    struct loss_list l;
    struct knowledge_format dense = format_of("dense", VOCAB);
    (void)state;
    OK(bind(&l, "kl:weight=1..0.5 ce:weight=0.25", &(struct loss_setting){.data = &dense}, &e));
    const double want[] = {1, 0.875, 0.75, 0.625, 0.5};
    for (uint64_t step = 1; step <= 5; step++) {
        loss_list_begin_step(&l, step, 5);
        assert_true(l.items[0].weight == want[step - 1] && l.items[1].weight == 0.25);
    }
    loss_list_begin_step(&l, 1, 1);
    assert_true(l.items[0].weight == 1);
    loss_list_release(&l);
}

static void layers_are_mapped(void **state) {
    struct loss_pair p[LOSS_MAX_PAIRS];
    struct err e;
    size_t n;
    (void)state;
    OK(loss_map_parse("uniform", 4, 12, p, &n, &e));
    assert_int_equal(n, 4);
    assert_true(p[0].teacher == 2 && p[1].teacher == 5 && p[2].teacher == 8 && p[3].teacher == 11 && p[2].student == 2);
    OK(loss_map_parse("uniform", 3, 4, p, &n, &e));
    assert_true(p[0].teacher == 1 && p[1].teacher == 2 && p[2].teacher == 3);
    OK(loss_map_parse("last", 4, 12, p, &n, &e));
    assert_true(n == 1 && p[0].student == 3 && p[0].teacher == 11);
    static const char longest[] = "0:100+1:101+2:102+3:103+4:104+5:105+6:106+7:107+8:108+9:109+10:110+11:111+12:112";
    OK(loss_map_parse(longest, 13, 113, p, &n, &e));
    assert_int_equal(n, 13);
    assert_true(p[12].student == 12 && p[12].teacher == 112);
    OK(loss_map_parse("0:1+3:11", 4, 12, p, &n, &e));
    assert_true(n == 2 && p[0].teacher == 1 && p[1].student == 3);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(losses_are_spelled_one_way),
                                       cmocka_unit_test(defaults_are_what_there_is),
                                       cmocka_unit_test(what_cannot_be_served_is_refused),
                                       cmocka_unit_test(weights_follow_the_steps), cmocka_unit_test(layers_are_mapped)};
    return cmocka_run_group_tests_name("losses", tests, NULL, NULL);
}
