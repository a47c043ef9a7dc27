/* Tests of the chat template language, of its errors, and of the positions of answers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "lib/chat/chat.h"

static const struct chat_special special[] = {{"bos_token", "<s>"}, {"eos_token", "</s>"}};
static const struct chat_options plain = {.special = special, .n_special = 2, .eos = "</s>"};

static int render_with(const char *source, const char *json, const struct chat_options *o, struct chat_text *out,
                       struct err *e) {
    struct chat_template *t = NULL;
    int rc = chat_template_new(&t, source, strlen(source), e);
    if (!rc) rc = chat_render(t, json, strlen(json), "messages", true, o, out, e);
    chat_template_free(t);
    return rc;
}

static void assert_renders(const char *source, const char *json, const char *want) {
    struct err e = {0};
    struct chat_text out = {0};
    if (render_with(source, json, &plain, &out, &e)) fail_msg("%s: %s", source, e.msg);
    char *got = mem_alloc(out.text.len + 1, &e);
    assert_non_null(got);
    if (out.text.len) memcpy(got, out.text.data, out.text.len);
    got[out.text.len] = 0;
    assert_string_equal(got, want);
    mem_free(got);
    chat_text_release(&out);
}

static void assert_refused(const char *source, const char *json, const char *part) {
    struct err e = {0};
    struct chat_text out = {0};
    assert_int_equal(render_with(source, json, &plain, &out, &e), ERR_DATA);
    if (!strstr(e.msg, part)) fail_msg("\"%s\" does not say \"%s\"", e.msg, part);
    chat_text_release(&out);
}

/* ---- the language ---- */

static void a_limit_counts_down_to_zero_and_a_negative_one_is_none(void **state) {
    (void)state;
    assert_renders("{{ 'a b c'.split(' ', 1) | length }}{{ 'a b c'.split(none, 1) | length }}", "{\"messages\": []}",
                   "22");
    assert_renders("{{ 'a b c'.split(' ', -9223372036854775807 - 1) | length }}", "{\"messages\": []}", "3");
    assert_renders("{{ 'a b c'.split(none, -9223372036854775807 - 1) | length }}", "{\"messages\": []}", "3");
    assert_renders("{{ 'aaa'.replace('a', 'b', 2) }}{{ 'aaa'.replace('a', 'b', -9223372036854775807 - 1) }}",
                   "{\"messages\": []}", "bbabbb");
}

static void syntax_that_is_not_known_is_named_with_its_line(void **state) {
    static const char *const cases[][2] = {
        {"a\nb\n{% include 'x' %}", "line 3: the statement 'include' is not supported"},
        {"{{ x | frobnicate }}", "line 1: the filter 'frobnicate' is not supported"},
        {"\n{{ x is lovely }}", "line 2: the test 'lovely' is not supported"},
        {"{{ 2 ** 3 }}", "the operator ** is not supported"},
        {"{{ f(*args) }}", "arguments with * or **"},
        {"{% for x in y recursive %}{% endfor %}", "recursive loops are not supported"},
        {"{% if x %}", "expected elif, found the end"},
        {"{% endif %}", "the statement 'endif' is not supported here"},
        {"{% break %}", "break or continue outside a loop"},
        {"{% for x in [1] %}{% macro f() %}{% break %}{% endmacro %}{% endfor %}", "outside a loop"},
        {"{{ x", "{{ without }}"},
        {"{% if x", "{% without %}"},
        {"{# x", "{# without #}"},
        {"{{ 'x }}", "a string without an end"},
        {"{{ 1x }}", "a number that is not supported"},
        {"{{ 99999999999999999999 }}", "a number out of range"},
        {"{{ ? }}", "unexpected '?'"},
        {"{{ '\\ud800' }}", "an escape that is not a character"},
        {"{{ 1 + }}", "expected an expression, found }}"},
        {"{{ [1, }}", "{{ without }}"},
        {"{{ }}", "expected an expression, found }}"},
        {"{{ a b }}", "expected }}, found 'b'"},
        {"{% set if = 1 %}", "expected a name, found 'if'"},
        {"{{ x[1:2:3:4] }}", "a slice has at most three parts"},
        {"{{ x[] }}", "an empty subscript"},
        {"{% call 1 %}{% endcall %}", "{% call %} needs a call of a macro"},
        {"{% macro f(a=1, b) %}{% endmacro %}", "a parameter without a default"},
    };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) assert_refused(cases[i][0], "[]", cases[i][1]);
}

static void what_goes_wrong_is_named_with_its_line(void **state) {
    static const char *const cases[][2] = {
        {"\n{{ nothing.there }}", "line 2: 'nothing' is undefined"},
        {"{{ raise_exception('No ' ~ 1) }}", "line 1: the template refuses: No 1"},
        {"{{ strftime_now('%Y') }}", "the template needs a date (--date)"},
        {"{{ 1 + 'x' }}", "the operator + between an integer and a string"},
        {"{{ 1 // 0 }}", "division by zero"},
        {"{{ 9223372036854775807 + 1 }}", "an integer out of range"},
        {"{{ 'x'.nothing() }}", "'nothing' is undefined"},
        {"{{ 'x'.upper(1) }}", "takes no more than 0 arguments"},
        {"{{ x | join(e=1) }}", "has no argument 'e'"},
        {"{% macro f(a) %}{% endmacro %}{{ f(1, 2) }}", "takes no more than 1 arguments"},
        {"{% macro f(a) %}{% endmacro %}{{ f(b=2) }}", "has no argument 'b'"},
        {"{% macro f(a) %}{% endmacro %}{{ f(1, a=2) }}", "comes twice"},
        {"{% set x.y = 1 %}", "no namespace"},
        {"{% set a, b = [1] %}", "1 values for 2 names"},
        {"{% for x in 1 %}{% endfor %}", "an integer cannot be iterated over"},
        {"{{ 1 in 2 }}", "looking for something in an integer"},
        {"{{ 'a' < 1 }}", "have no order"},
        {"{{ [1][1:'x'] }}", "as a bound of a slice"},
        {"{{ {[]: 1} }}", "a list cannot be a key"},
        {"{{ namespace() }}", "a namespace cannot be printed"},
        {"{{ x | tojson }}", "tojson of undefined"},
        {"{{ ''.split('') }}", "split at an empty string"},
        {"{% for x in [1] %}{{ loop.cycle }}{% endfor %}", "loop.cycle is not supported"},
        {"{% set x %}{% generation %}{% endgeneration %}{% endset %}", "inside a macro or a set block"},
    };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) assert_refused(cases[i][0], "[]", cases[i][1]);
}

static void conversations_are_checked(void **state) {
    (void)state;
    assert_refused("", "{\"x\":[]}", "as \"messages\"");
    assert_refused("", "3", "no list of messages");
    assert_refused("", "[3]", "message 1 is an integer");
    assert_refused("", "{\"messages\":[],\"messages\":[]}", "duplicate key");
    assert_refused("", "{\"messages\":[],\"chat_template_kwargs\":1}", "expected an object");
    assert_refused("{{ messages }}", "[{\"n\":99999999999999999999}]", "is too large");
    assert_renders("{{ messages }}",
                   "[{\"a\":1,\"b\":1.0,\"c\":-2e3,\"d\":\"\\u00e9\\ud83d\\ude00\\n\",\"e\":[true,null]}]",
                   "[{'a': 1, 'b': 1.0, 'c': -2000.0, 'd': 'é😀\\n', 'e': [True, None]}]");
    assert_renders("{{ bos_token }}{{ tools }}{{ x }}{{ add_generation_prompt }}",
                   "{\"messages\":[],\"chat_template_kwargs\":{\"x\":7}}", "<s>None7False");
}

static void dates_are_given(void **state) {
    struct err e;
    struct chat_text out = {0};
    struct chat_options o = plain;
    (void)state;
    o.date = "2024-02-29";
    assert_int_equal(render_with("{{ strftime_now('%d %b %Y, %A, %j') }}", "[]", &o, &out, &e), 0);
    assert_int_equal(out.text.len, 26);
    assert_memory_equal(out.text.data, "29 Feb 2024, Thursday, 060", 26);
    chat_text_release(&out);
    assert_int_equal(chat_check_date("2024-02-29", &e), 0);
    static const char *const bad[] = {"",      "2023-02-29",  "2023-13-01", "2023-1-01",
                                      "today", "2023-01-01x", "-023-01-01"};
    for (size_t i = 0; i < COUNT_OF(bad); i++) assert_int_equal(chat_check_date(bad[i], &e), ERR_USAGE);
}

/* ---- hostile templates ---- */

static char *repeat(const char *head, const char *part, size_t n, const char *tail) {
    struct err e;
    struct buf b = {0};
    assert_int_equal(buf_append(&b, head, strlen(head), &e), 0);
    for (size_t i = 0; i < n; i++) assert_int_equal(buf_append(&b, part, strlen(part), &e), 0);
    assert_int_equal(buf_append(&b, tail, strlen(tail) + 1, &e), 0);
    return (char *)b.data;
}

static void limits_hold(void **state) {
    static const char *const cases[][2] = {
        {"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "evaluates more than 1000 deep"},
        {"{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}", "MiB"},
        {"{% for a in range(1000000000000) %}{% endfor %}", "MiB of memory"},
        {"{{ 'x' * 1000000000000 }}", "MiB of memory"},
        {"{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
         "MiB"},
        {"{% for i in range(9999999) %}{{ 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' * 999 "
         "}}{% endfor %}",
         "chat template, line 1"},
        {"{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
         "chat template, line 1"},
        {"{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}"
         "{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
         "steps"},
        {"{% set ns = namespace(x=1) %}{% for i in range(200) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
         "nested deeper than 100"},
        {"{% set ns = namespace(x=1) %}{% for i in range(200) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}",
         "nested deeper than 100"},
        {"{% set x = ['map', 'map'] %}{{ x | map('map', 'map', 'map', 'map') | list }}", "chat template, line 1"},
    };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) assert_refused(cases[i][0], "[]", cases[i][1]);
    const struct {
        const char *head, *part, *middle, *close, *tail;
    } deep[] = {{"{{ ", "(", "1", ")", " }}"},
                {"{{ ", "[", "", "]", " }}"},
                {"{{ ", "{1:", "1", "}", " }}"},
                {"{{ ", "x(", "", ")", " }}"},
                {"{{ ", "x[", "1", "]", " }}"},
                {"{{ ", "-", "1", "", " }}"},
                {"{{ ", "not ", "1", "", " }}"},
                {"{{ 1", "+1", "", "", " }}"},
                {"{{ 1", "~1", "", "", " }}"},
                {"{{ x", ".x", "", "", " }}"},
                {"{{ x", "[0]", "", "", " }}"},
                {"{{ x", "()", "", "", " }}"},
                {"{{ x", "|trim", "", "", " }}"},
                {"{{ x", " is defined", "", "", " }}"},
                {"{{ 1", " and 1", "", "", " }}"},
                {"{{ 1", " if 1", "", "", " }}"},
                {"{{ 1", " if 1 else 1", "", "", " }}"},
                {"", "{% if 1 %}", "", "{% endif %}", ""},
                {"", "{% for x in y %}", "", "{% endfor %}", ""},
                {"", "{% set x %}", "", "{% endset %}", ""}};
    for (size_t i = 0; i < COUNT_OF(deep); i++) {
        char *end = repeat(deep[i].middle, deep[i].close, 10000, deep[i].tail);
        char *source = repeat(deep[i].head, deep[i].part, 10000, end);
        assert_refused(source, "[]", "nested deeper than 100");
        mem_free(source);
        mem_free(end);
    }
    char *chain = repeat("{% if 0 %}", "{% elif 0 %}", 50000, "{% else %}ok{% endif %}");
    assert_renders(chain, "[]", "ok");
    mem_free(chain);
    char *large = repeat("", "xxxxxxxxxxxxxxxx", 65537, "");
    assert_refused(large, "[]", "at most");
    mem_free(large);
    assert_refused("\xff", "[]", "not UTF-8");
}

static void memory_may_run_out_anywhere(void **state) {
    const char *source =
        "{% macro f(x) %}<{{ x | upper }}>{% endmacro %}{% for m in messages %}{{ f(m.content) ~ [1, {'a': 2}] }}"
        "{% generation %}{{ m | tojson }}{% endgeneration %}{% endfor %}{% set x | trim %} a {% endset %}{{ "
        "x.split('b') }}";
    (void)state;
    for (uint64_t n = 1;; n++) {
        struct err e = {0};
        struct chat_text out = {0};
        mem_fail_at(n);
        int rc =
            render_with(source, "[{\"role\":\"assistant\",\"content\":\"x\",\"reasoning\":\"r\"}]", &plain, &out, &e);
        mem_fail_at(0);
        chat_text_release(&out);
        if (!rc) break;
        assert_int_equal(rc, ERR_IO);
        assert_true(n < 10000);
    }
}

/* ---- answers ---- */

#define CHATML                                                                                                         \
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content + '<end>\n' }}{% endfor %}"                              \
    "{% if add_generation_prompt %}<assistant>{% endif %}"
#define TURNS                                                                                                          \
    "[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"a1\"},"                              \
    "{\"role\":\"user\",\"content\":\"r\"},{\"role\":\"assistant\",\"content\":\"a2\"}]"

static void assert_answers(const char *source, const char *json, const char *const *want, size_t n) {
    struct err e = {0};
    struct chat_text out = {0};
    if (render_with(source, json, &plain, &out, &e)) fail_msg("%s", e.msg);
    assert_int_equal(out.n_spans, n);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(out.spans[i].end - out.spans[i].start, strlen(want[i]));
        assert_memory_equal(out.text.data + out.spans[i].start, want[i], strlen(want[i]));
    }
    chat_text_release(&out);
}

static void answers_are_found(void **state) {
    static const char *const both[] = {"a1<end>\n", "a2<end>\n"};
    static const char *const eos[] = {"a1<end>\n", "a2<end>\n</s>"};
    static const char *const blocks[] = {"a1", "a2"};
    static const char *const thoughts[] = {"a1<end>\n", "(t2)a2<end>\n"};
    static const char *const last[] = {"a2<end>\n"};
    (void)state;
    assert_answers(CHATML, TURNS, both, 2);
    /* the end of the document occurs only at the end */
    assert_answers(CHATML "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}", TURNS, eos, 2);
    assert_answers(
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% else %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% endif %}{% endfor %}",
        TURNS, blocks, 2);
    /* thoughts occur only in the last turn */
    assert_answers(
        "{% for m in messages %}<{{ m.role }}>{% if m.role == 'user' %}{{ m.content }}{% else %}"
        "{{ '(t' ~ m.n ~ ')' if loop.last }}{{ m.content.split('</think>')[-1] }}{% endif %}<end>\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}",
        "[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"n\":1,\"content\":\"x</think>a1\"},"
        "{\"role\":\"user\",\"content\":\"r\"},{\"role\":\"assistant\",\"n\":2,\"content\":\"a2\"}]",
        thoughts, 2);
    assert_answers(CHATML, "[{\"role\":\"user\",\"content\":\"q\"}]", NULL, 0);
    assert_answers(CHATML, "[]", NULL, 0);
    assert_answers(
        CHATML, "[{\"role\":\"system\",\"content\":\"a2<end>\"},{\"role\":\"assistant\",\"content\":\"a2\"}]", last, 1);
}

static void places_that_cannot_be_told_are_refused(void **state) {
    (void)state;
    assert_refused("{{ messages | length }}" CHATML, TURNS,
                   "message 2: the template writes what comes before it differently");
    assert_refused("{% for m in messages %}<{{ m.role }}>{% if m.role == 'user' or loop.last %}{{ m.content }}{% else "
                   "%}..{% endif %}"
                   "<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
                   TURNS, "message 2: the template writes it differently");
    assert_refused("{{ messages[0].role }}" CHATML, "[{\"role\":\"assistant\",\"content\":\"a\"}]",
                   "the conversation before message 1");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_limit_counts_down_to_zero_and_a_negative_one_is_none),
        cmocka_unit_test(syntax_that_is_not_known_is_named_with_its_line),
        cmocka_unit_test(what_goes_wrong_is_named_with_its_line),
        cmocka_unit_test(conversations_are_checked),
        cmocka_unit_test(dates_are_given),
        cmocka_unit_test(limits_hold),
        cmocka_unit_test(memory_may_run_out_anywhere),
        cmocka_unit_test(answers_are_found),
        cmocka_unit_test(places_that_cannot_be_told_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
