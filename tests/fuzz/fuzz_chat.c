/*
 * Fuzzes rendering: a template and, after the first NUL, a conversation as JSON (without one, a small default). For any
 * input rendering must end, spans must lie in the text in order, and the same input must give the same text.
 */
#include "lib/chat/chat.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool holds) {
    if (!holds) abort();
}

static void check_spans(const struct chat_text *c) {
    size_t at = 0;
    for (size_t i = 0; i < c->n_spans; i++) {
        must(c->spans[i].start >= at && c->spans[i].start < c->spans[i].end && c->spans[i].end <= c->text.len);
        at = c->spans[i].end;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char usual[] =
        "{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\" é\\n\"},"
        "{\"role\":\"assistant\",\"content\":\"<think>x</think>y\"},{\"role\":\"user\",\"content\":\"\"},"
        "{\"role\":\"assistant\",\"content\":\"z\"}],\"tools\":[{\"a\":1.5,\"b\":[true,null]}]}";
    static const struct chat_special special[] = {{"bos_token", "<s>"}, {"eos_token", "</s>"}};
    const struct chat_options o = {.special = special, .n_special = 2, .eos = "</s>", .date = "2026-01-02"};
    struct chat_template *t = NULL;
    struct chat_text one = {0}, two = {0};
    struct err e;
    const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
    const char *json = nul ? (const char *)nul + 1 : usual;
    size_t n = nul ? (size_t)(nul - data) : size, n_json = nul ? size - n - 1 : sizeof usual - 1;
    if (chat_template_new(&t, (const char *)data, n, &e)) return 0;
    bool ok = chat_render(t, json, n_json, "messages", true, &o, &one, &e) == 0;
    if (ok) {
        check_spans(&one);
        must(chat_render(t, json, n_json, "messages", false, &o, &two, &e) == 0 && two.n_spans == 0);
        must(one.text.len == two.text.len && (!one.text.len || !memcmp(one.text.data, two.text.data, one.text.len)));
    }
    chat_text_release(&one);
    chat_text_release(&two);
    chat_template_free(t);
    return 0;
}
