/*
 * chat: renders the chat template of a model. A template is a program in a subset of Jinja that turns a conversation
 * into the text that the model was trained on; transformers calls it apply_chat_template, and the text here is the
 * same.
 *
 * The subset: {{ }}, {% %}, {# #} with white space control, trim_blocks and lstrip_blocks as transformers sets them;
 * if, for (filtered, with else, break, continue, loop), set (also of namespaces and as a block), macro, call,
 * generation; expressions with the filters, tests, functions and methods that builtin.c and method.c list. Whatever
 * else stands in a template is refused by name and line. Strings are UTF-8 and count in code points, as in Python.
 *
 * A template comes with a model and is not trusted. Rendering stops with ERR_DATA at these limits:
 */
#ifndef RILL_CHAT_H
#define RILL_CHAT_H

#include "lib/base/base.h"

#define CHAT_MAX_TEMPLATE ((size_t)1 << 20)   /* bytes of a template */
#define CHAT_MAX_NESTING  100                 /* of statements and expressions in a template, of values printed */
#define CHAT_MAX_DEPTH    1000                /* of evaluation: bodies, expressions and calls of macros in each other */
#define CHAT_MAX_STEPS    ((uint64_t)1 << 24) /* expressions and statements evaluated; long strings count as several */
#define CHAT_MAX_MEMORY   ((size_t)256 << 20) /* of all values made during a rendering */
#define CHAT_MAX_TEXT     ((size_t)64 << 20)  /* bytes of the rendered text */

struct chat_template; /* read-only after it was made; safe to share between threads */

/* Parses text[0..n), which is copied. ERR_DATA names the line and what is not understood. */
int chat_template_new(struct chat_template **out, const char *text, size_t n, struct err *e) MUST_CHECK;
void chat_template_free(struct chat_template *t); /* NULL is fine */

struct chat_special {
    const char *name; /* "bos_token": the variable in templates */
    const char *text;
};
struct chat_options {
    bool add_generation_prompt;         /* end with what opens the assistant's turn */
    const struct chat_special *special; /* [n_special] */
    size_t n_special;
    const char *eos; /* the text that ends a document, or NULL: some templates add it to the last turn only */
    /* What strftime_now tells, "YYYY-MM-DD", so that results can be repeated. NULL: templates do not have that
     * function, and fall back on the date they were made with, if they can. */
    const char *date;
};
/* ERR_USAGE when it is no "YYYY-MM-DD". */
int chat_check_date(const char *date, struct err *e) MUST_CHECK;

struct chat_span {
    size_t start, end; /* bytes of the text */
};
struct chat_text {
    struct buf text;
    struct chat_span *spans; /* [n_spans], ascending, disjoint: what the assistant says */
    size_t n_spans;
    struct buf memory; /* private: of spans */
};
/*
 * Renders one conversation, JSON in json[0..n): an object with `messages` under `field`, and optionally `tools`,
 * `documents` and `chat_template_kwargs` (further variables); or the list of messages alone. Replaces what
 * *out holds.
 *
 * spans: the text inside {% generation %} blocks where the template has any. Otherwise, for every message of the role
 * "assistant": from the end of the conversation before it rendered with a generation prompt, to the end of the
 * conversation up to it, without the end-of-document token that some templates put last. Both must be
 * beginnings of the whole text. Where the latter is not, because the template leaves out the thoughts of earlier turns,
 * the answer ends with the message's last words (after "</think>") and what closes them when nothing follows. ERR_DATA
 * names a message whose place cannot be told.
 * With `answers` false no spans are looked for.
 */
int chat_render(const struct chat_template *t, const char *json, size_t n, const char *field, bool answers,
                const struct chat_options *o, struct chat_text *out, struct err *e) MUST_CHECK;
void chat_text_release(struct chat_text *c);

#endif
