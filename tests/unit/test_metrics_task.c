/* Tests of tasks against the same scores computed in f64, one model call each, and of invalid lines. */
#include "tests/unit/metrics_samples.h"

#define CONTEXT 24

static struct model *model, *bos_model; /* the second puts BOS before every text */

static int set_up(void **state) {
    (void)state;
    model = byte_model(CONTEXT, 1, true, false);
    bos_model = byte_model(CONTEXT, 2, true, true);
    return 0;
}
static int tear_down(void **state) {
    (void)state;
    model_free(model);
    model_free(bos_model);
    return 0;
}

/* ---- the code under test ----------------------------------------------------------------------------------------- */

static int run_task(struct model *m, const char *text, size_t piece, cJSON **out, struct err *why) {
    struct err e;
    struct task *t;
    size_t n = strlen(text);
    OK(task_new(&t, m, "sample", &e));
    int rc = 0;
    for (size_t at = 0; !rc && at < n; at += piece) rc = task_feed(t, text + at, piece_of(n - at, piece), why);
    if (!rc) rc = task_finish(t, why);
    if (!rc && !(*out = task_json(t, why))) rc = why->code;
    task_free(t);
    return rc;
}

static cJSON *result_of(struct model *m, const char *text) {
    struct err e;
    cJSON *o = NULL;
    OK(run_task(m, text, 1 << 20, &o, &e));
    return o;
}

/* ---- the same by hand -------------------------------------------------------------------------------------------- */

/* Sum of ln p over the last `scored` bytes of `text`, after BOS if asked; text that exceeds the context is cut on
 * the left. */
static double log_prob_of(struct model *m, const char *text, size_t scored, bool bos) {
    uint32_t tokens[256];
    double nll[256], sum = 0;
    size_t n = 0;
    if (bos) tokens[n++] = BOS;
    for (const char *s = text; *s; s++) tokens[n++] = (unsigned char)*s;
    size_t skip = n > CONTEXT + 1 ? n - CONTEXT - 1 : 0;
    /* one model call with all inputs; the last label is scored separately */
    uint32_t length = (uint32_t)(n - 1 - skip);
    struct model_input in = {length, 1, tokens + skip, &length};
    float *x = logits_of(m, &in);
    for (size_t i = n - scored; i < n; i++) {
        nll[i] = -log_prob64(x + (i - 1 - skip) * BYTE_VOCAB, BYTE_VOCAB, tokens[i]);
        sum -= nll[i];
    }
    mem_free(x);
    return sum;
}

struct counts {
    double n, acc, chars, bytes, tokens;
};

static bool best_is(const double *score, size_t n, size_t gold) {
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (score[i] > score[best]) best = i;
    return best == gold;
}

/* Counts an item whose choices have these sums, and lengths in characters, bytes and tokens. */
static void count_item(struct counts *c, const double *sum, double length[][3], size_t n, size_t gold) {
    double score[8];
    c->n++;
    c->acc += best_is(sum, n, gold);
    for (int by = 0; by < 3; by++) {
        for (size_t i = 0; i < n; i++) score[i] = sum[i] / length[i][by];
        *(by == 0 ? &c->chars : by == 1 ? &c->bytes : &c->tokens) += best_is(score, n, gold);
    }
}

static void check(const cJSON *o, const struct counts *c) {
    double low, high;
    metrics_wilson((uint64_t)c->acc, (uint64_t)c->n, &low, &high);
    assert_true(result_number(o, "n") == c->n);
    assert_near(result_number(o, "acc"), c->acc / c->n, 1e-12, "acc");
    assert_near(result_number(o, "acc_low"), low, 1e-12, "acc_low");
    assert_near(result_number(o, "acc_high"), high, 1e-12, "acc_high");
    assert_near(result_number(o, "acc_norm"), c->chars / c->n, 1e-12, "acc_norm");
    assert_near(result_number(o, "acc_bytes"), c->bytes / c->n, 1e-12, "acc_bytes");
    assert_near(result_number(o, "acc_tokens"), c->tokens / c->n, 1e-12, "acc_tokens");
}

/* 1 to `longest` characters, some of two bytes. */
static size_t random_text(struct rng *r, char *out, size_t longest, double *characters) {
    size_t n = 0, k = 1 + rng_below(r, longest);
    *characters = (double)k;
    while (k--) {
        if (rng_below(r, 5) == 0)
            memcpy(out + n, "\xc3\xa9", 2), n += 2;
        else
            out[n++] = (char)('a' + rng_below(r, 26));
    }
    out[n] = 0;
    return n;
}

/* ---- tests ------------------------------------------------------------------------------------------------------- */

static void pairs_are_scored_behind_bos(void **state) {
    (void)state;
    struct err e;
    struct buf lines = {0};
    struct rng r = rng_init(1, 1);
    struct counts want = {0};
    for (int i = 0; i < 300; i++) { /* more than one batch */
        char text[2][64];
        double sum[2], length[2][3];
        for (int k = 0; k < 2; k++) {
            size_t n = random_text(&r, text[k], 9, &length[k][0]);
            length[k][1] = length[k][2] = (double)n;
            sum[k] = log_prob_of(model, text[k], n, true);
        }
        OK(buf_printf(&lines, &e, "{\"sentence_good\":\"%s\",\"id\":%d,\"sentence_bad\":\"%s\"}\n%s", text[0], i,
                      text[1], i % 7 ? "" : " \r\n"));
        if (strcmp(text[0], text[1]))
            count_item(&want, sum, length, 2, 0);
        else
            want.n++;
    }
    OK(buf_append(&lines, "", 1, &e));
    cJSON *o = result_of(model, (char *)lines.data), *pieces = NULL;
    check(o, &want);
    assert_string_equal(cJSON_GetObjectItem(o, "kind")->valuestring, "minimal_pairs");
    assert_true(want.acc > 0.2 * want.n && want.acc < 0.8 * want.n && want.acc != want.chars);
    lines.data[lines.len - 2] = 0; /* no newline at the end, and in small pieces */
    OK(run_task(model, (char *)lines.data, 3, &pieces, &e));
    assert_true(cJSON_Compare(o, pieces, true));
    cJSON_Delete(o);
    cJSON_Delete(pieces);
    buf_release(&lines);
}

static void no_preference_is_not_right(void **state) {
    (void)state;
    cJSON *o = result_of(model, "{\"sentence_good\":\"same\",\"sentence_bad\":\"same\"}");
    assert_true(result_number(o, "acc") == 0 && result_number(o, "acc_norm") == 0);
    cJSON_Delete(o);
    /* choices: the first of equals, as in numpy's argmax */
    o = result_of(model, "{\"context\":\"a\",\"choices\":[\"x\",\"x\"],\"answer\":0}\n"
                         "{\"context\":\"a\",\"choices\":[\"x\",\"x\"],\"answer\":\"1\"}\n");
    assert_true(result_number(o, "acc") == 0.5);
    cJSON_Delete(o);
}

/* Data sets use different names for the same things. */
static const char *const names[][3] = {{"context", "choices", "answer"},
                                       {"query", "choices", "gold"},
                                       {"question", "endings", "label"},
                                       {"ctx", "endings", "gold"}};

static void choose(struct model *m, const char *tail, const char *lead, size_t longest, uint64_t truncated) {
    struct err e;
    struct buf lines = {0};
    struct rng r = rng_init(2, longest);
    struct counts want = {0};
    for (size_t i = 0; i < 120; i++) {
        char context[64], choice[4][32], whole[256];
        double ignored, sum[4], length[4][3];
        size_t n = 2 + i % 3, gold = rng_below(&r, n);
        random_text(&r, context, longest, &ignored);
        OK(buf_printf(&lines, &e, "{\"%s\":\"%s%s\",\"%s\":[", names[i % 4][0], context, tail, names[i % 4][1]));
        for (size_t k = 0; k < n; k++) {
            size_t bytes = 1 + random_text(&r, choice[k] + 1, 6, &length[k][0]);
            choice[k][0] = (char)('A' + k); /* all different, since ties fall either way in a batch */
            length[k][0]++;
            /* text between context and choice is scored too, but counts only in tokens */
            const char *between = *tail || *lead ? "" : " ";
            snprintf(whole, sizeof whole, "%s%s%s%s%s", context, tail, between, lead, choice[k]);
            size_t scored = strlen(tail) + strlen(between) + strlen(lead) + bytes;
            length[k][0] += (double)strlen(lead);
            length[k][1] = (double)(bytes + strlen(lead));
            length[k][2] = (double)scored;
            sum[k] = log_prob_of(m, whole, scored, m->vocab->add_bos);
            OK(buf_printf(&lines, &e, "%s\"%s%s\"", k ? "," : "", lead, choice[k]));
        }
        count_item(&want, sum, length, n, gold);
        OK(buf_printf(&lines, &e, "],\"%s\":%zu}\n", names[i % 4][2], gold));
    }
    OK(buf_append(&lines, "", 1, &e));
    cJSON *o = result_of(m, (char *)lines.data);
    check(o, &want);
    assert_string_equal(cJSON_GetObjectItem(o, "kind")->valuestring, "multiple_choice");
    assert_true((result_number(o, "truncated") > 0) == (truncated > 0));
    cJSON_Delete(o);
    buf_release(&lines);
}

static void choices_follow_their_context(void **state) {
    (void)state;
    choose(model, "", "", 5, 0);
    choose(model, "  ", "", 5, 0); /* spaces at the end of the context belong to the choice */
    choose(model, "", " ", 5, 0);
    choose(bos_model, "", "", 5, 0);
    choose(model, "", "", 30, 1); /* longer than the model's context */
    choose(bos_model, " ", "", 30, 1);
}

static void an_empty_context_is_bos(void **state) {
    (void)state;
    struct counts want = {0};
    double sum[2] = {log_prob_of(model, "one", 3, true), log_prob_of(model, "three", 5, true)};
    count_item(&want, sum, (double[][3]){{3, 3, 3}, {5, 5, 5}}, 2, 1);
    cJSON *o = result_of(model, "{\"context\":\"\",\"choices\":[\"one\",\"three\"],\"answer\":1}");
    check(o, &want);
    cJSON_Delete(o);
}

static void means_are_of_tasks_not_items(void **state) {
    (void)state;
    struct err e;
    static const char *const texts[] = {
        "{\"sentence_good\":\"a\",\"sentence_bad\":\"a\"}\n",
        "{\"context\":\"a\",\"choices\":[\"x\",\"x\"],\"answer\":0}\n",
        "{\"context\":\"a\",\"choices\":[\"x\",\"x\"],\"answer\":0}\n{\"context\":\"a\",\"choices\":[\"x\",\"x\"],"
        "\"answer\":1}\n",
    };
    struct task *t[3];
    cJSON *results = cJSON_CreateArray();
    for (int i = 0; i < 3; i++) {
        OK(task_new(&t[i], model, "t", &e));
        OK(task_feed(t[i], texts[i], strlen(texts[i]), &e));
        OK(task_finish(t[i], &e));
    }
    OK(task_means(t, 2, results, &e));
    assert_int_equal(cJSON_GetArraySize(results), 0); /* one of each kind */
    OK(task_means(t, 3, results, &e));
    assert_int_equal(cJSON_GetArraySize(results), 1);
    const cJSON *mean = cJSON_GetArrayItem(results, 0);
    assert_true(result_number(mean, "acc") == 0.75 && result_number(mean, "tasks") == 2 &&
                result_number(mean, "n") == 3);
    cJSON_Delete(results);
    for (int i = 0; i < 3; i++) task_free(t[i]);
}

static void lines_that_are_no_task(void **state) {
    (void)state;
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"", "no items"},
        {"\n \n", "no items"},
        {"plain text\n", "line 1: json"},
        {"\n{\"sentence_good\":\"a\"}\n", "line 2: json: missing key \"sentence_bad\""},
        {"{\"sentence_good\":\"a\",\"sentence_bad\":3}", "line 1: json: key \"sentence_bad\""},
        {"{\"sentence_good\":\"a\",\"sentence_bad\":\"\"}", "line 1: an empty text"},
        {"[1]", "expected a JSON object"},
        {"{\"text\":\"a\"}", "expected \"sentence_good\""},
        {"{\"context\":\"a\",\"choices\":[\"b\",\"c\"]}", "expected \"sentence_good\""},
        {"{\"context\":\"a\",\"choices\":{\"b\":1},\"answer\":0}", "expected \"sentence_good\""},
        {"{\"context\":\"a\",\"question\":\"d\",\"choices\":[\"b\",\"c\"],\"answer\":0}",
         "both \"context\" and \"question\""},
        {"{\"context\":\"a\",\"choices\":[\"b\",\"c\"],\"answer\":0,\"label\":0}", "both \"answer\" and \"label\""},
        {"{\"context\":\"a\",\"choices\":[\"b\"],\"answer\":0}", "fewer than two"},
        {"{\"context\":\"a\",\"choices\":[\"b\",7],\"answer\":0}", "choice 1 is not a string"},
        {"{\"context\":\"a\",\"choices\":[\"b\",\"\"],\"answer\":0}", "an empty text"},
        {"{\"context\":\"a\",\"choices\":[\"b\",\"c\"],\"answer\":2}", "not a number from 0 to 1"},
        {"{\"context\":\"a\",\"choices\":[\"b\",\"c\"],\"answer\":-1}", "not a number from 0 to 1"},
        {"{\"context\":\"a\",\"choices\":[\"b\",\"c\"],\"answer\":0.5}", "not a number from 0 to 1"},
        {"{\"context\":\"a\",\"choices\":[\"b\",\"c\"],\"answer\":\"A\"}", "not a number from 0 to 1"},
        {"{\"context\":\"a\",\"choices\":[\"b\",\"c\"],\"answer\":null}", "not a number from 0 to 1"},
        {"{\"sentence_good\":\"a\",\"sentence_bad\":\"b\"}\n{\"context\":\"a\",\"choices\":[\"b\",\"c\"],\"answer\":0}",
         "line 2: multiple_choice among minimal_pairs"},
        {"{\"context\":\"a\",\"choices\":[\"b\",\"cccccccccccccccccccccccccccccccccccccc\"],\"answer\":0}",
         "a continuation of 39 tokens, the model's context is 24"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct err e = {0};
        cJSON *o;
        if (run_task(model, cases[i].text, 1 << 20, &o, &e) != ERR_DATA) fail_msg("accepted: %s", cases[i].text);
        if (!strstr(e.msg, cases[i].says)) fail_msg("'%s' does not say '%s'", e.msg, cases[i].says);
    }
}

/* However the file is split into pieces. */
static void line_ends_and_byte_order_marks_are_no_text(void **state) {
    (void)state;
    static const char plain[] = "{\"sentence_good\":\"a b\",\"sentence_bad\":\"b\"}\n\n"
                                "{\"sentence_good\":\"c\",\"sentence_bad\":\"d e\"}\n";
    static const char other[] = "\xef\xbb\xbf{\"sentence_good\":\"a b\",\"sentence_bad\":\"b\"}\r\n\r\n"
                                "\xef\xbb\xbf{\"sentence_good\":\"c\",\"sentence_bad\":\"d e\"}\r\n";
    cJSON *expected = result_of(model, plain);
    for (size_t piece = 1; piece < 40; piece += 4) {
        struct err e;
        cJSON *o = NULL;
        OK(run_task(model, other, piece, &o, &e));
        assert_true(cJSON_Compare(o, expected, true));
        cJSON_Delete(o);
        assert_int_equal(run_task(model, "\xff\xfe{ and so on, for more than a few bytes", piece, &o, &e), ERR_DATA);
        assert_non_null(strstr(e.msg, "this is UTF-16"));
    }
    cJSON_Delete(expected);
}

static void a_line_has_a_limit(void **state) {
    (void)state;
    struct err e;
    struct task *t;
    char *block = mem_alloc(1 << 20, &e);
    memset(block, ' ', 1 << 20);
    OK(task_new(&t, model, "t", &e));
    int rc = 0;
    for (int i = 0; i < 17 && !rc; i++) rc = task_feed(t, block, 1 << 20, &e);
    assert_int_equal(rc, ERR_DATA);
    assert_string_equal(e.msg, "line 1 is longer than 16 MiB");
    task_free(t);
    mem_free(block);
}

static void without_a_vocabulary_there_is_no_text(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct task *t;
    struct model_config c = sample_config(&a);
    struct model *m = sample_model(&c, 1);
    assert_int_equal(task_new(&t, m, "t", &e), ERR_DATA);
    model_free(m);
    arena_release(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pairs_are_scored_behind_bos),
        cmocka_unit_test(no_preference_is_not_right),
        cmocka_unit_test(choices_follow_their_context),
        cmocka_unit_test(an_empty_context_is_bos),
        cmocka_unit_test(means_are_of_tasks_not_items),
        cmocka_unit_test(lines_that_are_no_task),
        cmocka_unit_test(a_line_has_a_limit),
        cmocka_unit_test(line_ends_and_byte_order_marks_are_no_text),
        cmocka_unit_test(without_a_vocabulary_there_is_no_text),
    };
    parallel_set_threads(1); /* the matrices are small: threads would only wait for each other */
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
