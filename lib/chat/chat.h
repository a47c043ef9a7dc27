/*
 * chat: renders the chat template of a model. A template is a program in a subset of Jinja that turns a conversation
 * into the text format that the model was trained on. The result equals that of apply_chat_template in transformers.
 *
 * The subset: {{ }}, {% %}, {# #} with white space control, and trim_blocks and lstrip_blocks as set by transformers;
 * if, for (with filter, else, break, continue, loop), set (also for namespaces and as a block), macro, call,
 * generation; expressions with the filters, tests, functions and methods listed in builtin.c and method.c. Anything
 * else in a template is refused with its name and line. Strings are UTF-8 and indexed by code points, as in Python.
 *
 * A template comes with a model and is not trusted. Rendering stops with ERR_DATA at these limits:
 */
#ifndef RILL_CHAT_H
#define RILL_CHAT_H

#include "lib/base/base.h"

#define CHAT_MAX_TEMPLATE ((size_t)1 << 20)   /* bytes of a template */
#define CHAT_MAX_NESTING  100                 /* of statements and expressions in a template, of printed values */
#define CHAT_MAX_DEPTH    1000                /* of evaluation: nested bodies, expressions and macro calls */
#define CHAT_MAX_STEPS    ((uint64_t)1 << 24) /* expressions and statements evaluated; long strings count more */
#define CHAT_MAX_MEMORY   ((size_t)256 << 20) /* for all values created by a rendering */
#define CHAT_MAX_TEXT     ((size_t)64 << 20)  /* bytes of the rendered text */

struct chat_template; /* read-only once made; may be shared by threads */

/* Parses text[0..n), which is copied. ERR_DATA names the line and what is not supported. */
int chat_template_new(struct chat_template **out, const char *text, size_t n, struct err *e) MUST_CHECK;
void chat_template_free(struct chat_template *t); /* no-op if NULL */

struct chat_special {
    const char *name; /* the template variable, e.g. "bos_token" */
    const char *text;
};
struct chat_options {
    bool add_generation_prompt;         /* end with the opening of the assistant's turn */
    const struct chat_special *special; /* [n_special] */
    size_t n_special;
    const char *eos; /* end-of-document text, or NULL: some templates add it only to the last turn */
    /* The date of strftime_now, "YYYY-MM-DD", for repeatable results. NULL: templates do not have that function and use
     * a built-in date, if they have one. */
    const char *date;
};
/* ERR_USAGE if it is not "YYYY-MM-DD". */
int chat_check_date(const char *date, struct err *e) MUST_CHECK;

struct chat_span {
    size_t start, end; /* byte offsets in the text */
};
struct chat_text {
    struct buf text;
    struct chat_span *spans; /* [n_spans], ascending, disjoint: the text of the assistant */
    size_t n_spans;
    struct buf memory; /* private: holds spans */
};
/*
 * Renders one conversation, the JSON text json[0..n): an object with messages under `field`, and optionally `tools`,
 * `documents` and `chat_template_kwargs` (more variables), or just the list of messages. Replaces the contents of *out;
 * free it with chat_text_release. ERR_DATA for malformed conversations and errors of the template.
 *
 * spans: the text inside {% generation %} blocks, if the template has any. Otherwise, for each message with the role
 * "assistant": from the end of the preceding conversation rendered with a generation prompt to the end of the
 * conversation up to this message, excluding an end-of-document token that some templates append. Both renderings must
 * be prefixes of the whole text. If the latter is not, because the template omits the reasoning of earlier turns, the
 * answer ends with the message's final content (after "</think>") and the text that closes it when nothing follows.
 * ERR_DATA names a message that cannot be located. With `answers` false no spans are computed.
 */
int chat_render(const struct chat_template *t, const char *json, size_t n, const char *field, bool answers,
                const struct chat_options *o, struct chat_text *out, struct err *e) MUST_CHECK;
void chat_text_release(struct chat_text *c);

#endif
