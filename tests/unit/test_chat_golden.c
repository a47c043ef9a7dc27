/* Tests of rendering: the templates in tests/golden/chat against transformers (tests/reference/make_chat.py). */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "lib/chat/chat.h"

#define FOLDER "tests/golden/chat/"

static void load(const char *path, struct buf *out) {
    struct err e;
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    for (size_t n = 1; n; out->len += n) {
        assert_int_equal(buf_reserve(out, 65536, &e), 0);
        n = fread(out->data + out->len, 1, 65536, f);
    }
    fclose(f);
}

static void read_special(const cJSON *from, struct chat_special *special, struct chat_options *o) {
    for (const cJSON *s = from->child; s; s = s->next) {
        special[o->n_special++] = (struct chat_special){s->string, s->valuestring};
        if (!strcmp(s->string, "eos_token")) o->eos = s->valuestring;
    }
    o->special = special;
}

static void check_spans(const cJSON *want, const struct chat_text *got, size_t line) {
    if (cJSON_IsNull(want)) return;
    if ((size_t)cJSON_GetArraySize(want) != got->n_spans) fail_msg("case %zu: %zu spans", line, got->n_spans);
    for (size_t i = 0; i < got->n_spans; i++) {
        const cJSON *span = cJSON_GetArrayItem(want, (int)i);
        assert_int_equal(cJSON_GetArrayItem(span, 0)->valueint, got->spans[i].start);
        assert_int_equal(cJSON_GetArrayItem(span, 1)->valueint, got->spans[i].end);
    }
}

static void check_case(const cJSON *c, size_t line) {
    struct err e = {0};
    struct chat_special special[4];
    struct chat_template *t = NULL;
    struct chat_text out = {0};
    struct buf source = {0};
    char path[128];
    const char *name, *conversation, *date = NULL;
    bool prompt;
    assert_int_equal(json_get_str(c, "template", &name, &e), 0);
    assert_int_equal(json_get_str(c, "conversation", &conversation, &e), 0);
    assert_int_equal(json_get_bool(c, "prompt", &prompt, &e), 0);
    assert_int_equal(json_opt_str(c, "date", &date, &e), 0);
    struct chat_options o = {.add_generation_prompt = prompt, .date = date};
    read_special(cJSON_GetObjectItem(c, "special"), special, &o);
    snprintf(path, sizeof path, FOLDER "%s.jinja", name);
    load(path, &source);
    const cJSON *text = cJSON_GetObjectItem(c, "text"), *spans = cJSON_GetObjectItem(c, "spans");
    if (chat_template_new(&t, (char *)source.data, source.len, &e)) fail_msg("%s: %s", name, e.msg);
    bool answers = spans && !cJSON_IsNull(spans);
    int rc = chat_render(t, conversation, strlen(conversation), "messages", answers, &o, &out, &e);
    if (text && rc) fail_msg("case %zu, %s: %s", line, name, e.msg);
    if (!text && rc != ERR_DATA) fail_msg("case %zu, %s: rendered what transformers refuses", line, name);
    if (text && (out.text.len != strlen(text->valuestring) ||
                 (out.text.len && memcmp(out.text.data, text->valuestring, out.text.len) != 0))) {
        size_t at = 0;
        while (at < out.text.len && (char)out.text.data[at] == text->valuestring[at]) at++;
        fail_msg("case %zu, %s, prompt %d, differs at byte %zu: %.*s\n--- expected\n%s", line, name, prompt, at,
                 (int)(out.text.len - at < 120 ? out.text.len - at : 120), out.text.data + at, text->valuestring + at);
    }
    if (text) check_spans(spans, &out, line);
    chat_text_release(&out);
    chat_template_free(t);
    buf_release(&source);
}

static void check_cases(const char *path, size_t least) {
    struct buf cases = {0};
    struct err e;
    size_t line = 0;
    load(path, &cases);
    for (size_t at = 0; at < cases.len; line++) {
        const unsigned char *end = memchr(cases.data + at, '\n', cases.len - at);
        assert_non_null(end);
        cJSON *c = json_parse((char *)cases.data + at, (size_t)(end - cases.data) - at, &e);
        if (!c) fail_msg("case %zu: %s", line + 1, e.msg);
        check_case(c, line + 1);
        cJSON_Delete(c);
        at = (size_t)(end - cases.data) + 1;
    }
    assert_true(line > least);
    buf_release(&cases);
}

static void equals_transformers(void **state) {
    (void)state;
    check_cases(FOLDER "cases.jsonl", 400);
}

/* Templates of published models. */
static void published_ones_equal_transformers(void **state) {
    (void)state;
    check_cases(FOLDER "published.jsonl", 100);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(equals_transformers),
                                       cmocka_unit_test(published_ones_equal_transformers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
