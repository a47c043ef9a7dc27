/* Makes templates, renders conversations, and locates the assistant's text. */
#include "lib/chat/chat_internal.h"

int chat_template_new(struct chat_template **out, const char *text, size_t n, struct err *e) {
    struct chat_token *tokens = NULL;
    if (n > CHAT_MAX_TEMPLATE)
        return err_set(e, ERR_DATA, "a chat template of %zu bytes, at most %zu are allowed", n, CHAT_MAX_TEMPLATE);
    if (!utf8_valid(text, n) || (n && memchr(text, 0, n)))
        return err_set(e, ERR_DATA, "the chat template is not UTF-8 text");
    struct chat_template *t = mem_zalloc(sizeof *t, e);
    if (!t) return e->code;
    char *copy = arena_alloc(&t->memory, n + 1, e), *to = copy;
    for (size_t i = 0; copy && i < n; i++) { /* line ends are \n in a template */
        if (text[i] == '\r' && i + 1 < n && text[i + 1] == '\n') continue;
        *to++ = text[i] == '\r' ? '\n' : text[i];
    }
    int rc = copy ? chat_lex(&t->memory, (struct str){copy, (size_t)(to - copy)}, &tokens, e) : e->code;
    if (!rc) rc = chat_parse(t, tokens, e);
    if (rc) {
        chat_template_free(t);
        return rc;
    }
    *out = t;
    return 0;
}

void chat_template_free(struct chat_template *t) {
    if (!t) return;
    arena_release(&t->memory);
    mem_free(t);
}

void chat_text_release(struct chat_text *c) {
    buf_release(&c->text);
    buf_release(&c->memory);
    *c = (struct chat_text){0};
}

/* ---- one rendering ---- */

struct conversation {
    const struct chat_template *t;
    const struct chat_options *o;
    struct render in; /* its memory has the values below */
    struct value messages, tools, documents, further;
};

static bool define(struct render *r, const char *name, struct value v) {
    return dict_set(r, &r->frame->vars, str_value((struct str){name, strlen(name)}), v);
}

static bool define_all(struct render *r, const struct conversation *c, const struct value *messages, bool prompt) {
    if (!define(r, "messages", *messages) || !define(r, "tools", c->tools) || !define(r, "documents", c->documents) ||
        !define(r, "add_generation_prompt", bool_value(prompt)))
        return false;
    for (size_t i = 0; i < c->o->n_special; i++) {
        const char *text = c->o->special[i].text;
        if (!define(r, c->o->special[i].name, str_value((struct str){text, strlen(text)}))) return false;
    }
    const struct dict *d = c->further.kind == V_DICT ? c->further.dict : NULL;
    for (size_t i = 0; d && i < d->n; i++)
        if (!dict_set(r, &r->frame->vars, d->keys[i], d->values[i])) return false;
    return true;
}

/* Renders the first n messages into out (replaced), and the spans of generation blocks into spans. */
static int render(struct conversation *c, size_t n, bool prompt, struct buf *out, struct buf *spans, struct err *e) {
    struct render r = {.o = c->o, .out = out, .text = out, .spans = spans, .line = 1, .e = e};
    struct list first = {.items = c->messages.list->items, .n = n, .cap = n};
    const struct value messages = {.kind = V_LIST, .list = &first};
    struct frame root = {.parent = NULL};
    r.frame = &root;
    out->len = spans->len = 0;
    bool ok = define_all(&r, c, &messages, prompt) && chat_execute(&r, c->t->body);
    arena_release(&r.memory);
    return ok ? 0 : e->code;
}

/* ---- the assistant's text ---- */

static bool begins_with(const struct buf *text, const struct buf *start, size_t n) {
    return n <= text->len && (!n || !memcmp(text->data, start->data, n));
}

/* Is `part` a prefix of the text? *n is its length, without an end-of-document token that only `part` has. */
static bool is_beginning(const struct conversation *c, const struct buf *text, const struct buf *part, size_t *n) {
    size_t n_eos = c->o->eos ? strlen(c->o->eos) : 0;
    *n = part->len;
    if (begins_with(text, part, *n)) return true;
    if (n_eos && part->len >= n_eos && !memcmp(part->data + part->len - n_eos, c->o->eos, n_eos) &&
        begins_with(text, part, part->len - n_eos))
        *n -= n_eos;
    return begins_with(text, part, *n);
}

/* Returns the last (or first) position of `what` in text from byte `from` on, or text->len. */
static size_t find_text(const struct buf *text, size_t from, struct str what, bool last) {
    size_t found = text->len;
    while (from <= text->len && what.n <= text->len - from) {
        const unsigned char *p = memmem(text->data + from, text->len - from, what.p, what.n);
        if (!p) break;
        found = (size_t)(p - text->data);
        from = found + 1;
        if (!last) break;
    }
    return found;
}

/* The final content of a message: after any reasoning in it. */
static struct str last_words(struct render *r, const struct value *message) {
    const struct value *v = dict_get(r, message->dict, STR("content"));
    struct str s = v && v->kind == V_STR ? v->s : STR("");
    const struct str close = STR("</think>");
    for (const char *p; s.n && (p = memmem(s.p, s.n, close.p, close.n)) != NULL;)
        s = (struct str){p + close.n, s.n - (size_t)(p + close.n - s.p)};
    return str_strip(s, NULL, STRIP_LEFT | STRIP_RIGHT);
}

/* For templates that omit the reasoning of earlier turns: a turn ends with its final content and the text that closes
 * it when nothing follows (in `part`). */
static bool find_end(struct conversation *c, size_t i, const struct buf *text, const struct buf *part, size_t n_part,
                     size_t start, size_t *end) {
    struct str words = last_words(&c->in, &c->messages.list->items[i]);
    if (!words.n || start > n_part) return false;
    const struct buf turn = {.data = part->data, .len = n_part};
    size_t at = find_text(&turn, start, words, true);
    if (at == turn.len || at + words.n == turn.len) return false; /* nothing closes a turn */
    struct str closed = {(const char *)turn.data + at, turn.len - at};
    at = find_text(text, start, closed, false);
    *end = at + closed.n;
    return at < text->len;
}

static int refuse_turn(size_t i, const char *what, struct err *e) {
    return err_set(e, ERR_DATA,
                   "message %zu: the template writes %s differently when more messages follow, so the answer's place "
                   "is not known (a template with {%% generation %%} blocks tells it)",
                   i + 1, what);
}

/* Finds the answer in message i, between two prefixes of the text. */
static int find_turn(struct conversation *c, size_t i, const struct buf *text, struct buf *part, struct buf *unused,
                     struct buf *spans, struct err *e) {
    struct chat_span span = {.start =
                                 spans->len ? ((struct chat_span *)spans->data)[spans->len / sizeof span - 1].end : 0};
    size_t start;
    int rc = render(c, i, true, part, unused, e);
    if (rc) return err_prefix(e, "the conversation before message %zu", i + 1);
    if (!begins_with(text, part, part->len)) return refuse_turn(i, "what comes before it", e);
    start = part->len;
    rc = render(c, i + 1, false, part, unused, e);
    if (rc) return err_prefix(e, "the conversation up to message %zu", i + 1);
    if (!is_beginning(c, text, part, &span.end) && !find_end(c, i, text, part, span.end, start, &span.end))
        return refuse_turn(i, "it", e);
    if (i + 1 == c->messages.list->n) span.end = text->len; /* the end of the document belongs to the answer */
    if (start < span.start) return refuse_turn(i, "what comes before it", e);
    span.start = start;
    return span.end > span.start ? buf_append(spans, &span, sizeof span, e) : 0;
}

static bool is_answer(struct render *r, const struct value *message) {
    const struct value *role = message->kind == V_DICT ? dict_get(r, message->dict, STR("role")) : NULL;
    return role && role->kind == V_STR && str_is(role->s, "assistant");
}

static int find_turns(struct conversation *c, const struct buf *text, struct buf *spans, struct err *e) {
    struct buf part = {0}, unused = {0};
    int rc = 0;
    for (size_t i = 0; !rc && i < c->messages.list->n; i++)
        if (is_answer(&c->in, &c->messages.list->items[i])) rc = find_turn(c, i, text, &part, &unused, spans, e);
    buf_release(&part);
    buf_release(&unused);
    return rc;
}

/* ---- the conversation ---- */

/* Like transformers, makes "thinking" or "reasoning" of a message available as reasoning_content, and vice versa. */
static bool name_reasoning(struct render *r, struct value *message) {
    const struct str names[] = {STR("reasoning_content"), STR("thinking"), STR("reasoning")};
    const struct value *found = NULL;
    const struct dict *d = message->dict;
    struct value out;
    for (size_t i = 0; i < COUNT_OF(names) && !found; i++) {
        found = dict_get(r, d, names[i]);
        if (found && found->kind == V_NONE) found = NULL;
    }
    if (!found) return true;
    if (!dict_new(r, &out) || !dict_set(r, out.dict, str_value(names[1]), *found)) return false;
    for (size_t i = 0; i < d->n; i++)
        if (!dict_set(r, out.dict, d->keys[i], d->values[i])) return false;
    if (!dict_set(r, out.dict, str_value(names[0]), *found)) return false;
    *message = out;
    return true;
}

static int check_messages(struct conversation *c, struct err *e) {
    for (size_t i = 0; i < c->messages.list->n; i++) {
        struct value *message = &c->messages.list->items[i];
        if (message->kind != V_DICT)
            return err_set(e, ERR_DATA, "message %zu is %s, expected an object", i + 1, value_kind(message));
        if (!name_reasoning(&c->in, message)) return e->code;
    }
    return 0;
}

static int read_conversation(struct conversation *c, const char *json, size_t n, const char *field, struct err *e) {
    struct value v;
    c->tools = c->documents = c->further = c->messages = NONE_VALUE;
    cJSON *checked = json_parse(json, n, e);
    if (!checked) return e->code;
    cJSON_Delete(checked);
    if (!chat_read_json(&c->in, json, n, &v)) return e->code;
    if (v.kind == V_LIST) c->messages = v;
    if (v.kind == V_DICT) {
        struct {
            const char *name;
            struct value *to;
        } members[] = {{field, &c->messages},
                       {"tools", &c->tools},
                       {"documents", &c->documents},
                       {"chat_template_kwargs", &c->further}};
        for (size_t i = 0; i < COUNT_OF(members); i++) {
            const struct value *m = dict_get(&c->in, v.dict, (struct str){members[i].name, strlen(members[i].name)});
            if (m) *members[i].to = *m;
        }
    }
    if (c->messages.kind != V_LIST)
        return err_set(e, ERR_DATA, "no list of messages: expected one, or an object with one as \"%s\"", field);
    if (c->further.kind != V_DICT && c->further.kind != V_NONE)
        return err_set(e, ERR_DATA, "\"chat_template_kwargs\" is %s, expected an object", value_kind(&c->further));
    return check_messages(c, e);
}

int chat_render(const struct chat_template *t, const char *json, size_t n, const char *field, bool answers,
                const struct chat_options *o, struct chat_text *out, struct err *e) {
    struct conversation c = {.t = t, .o = o, .in = {.o = o, .line = 1, .e = e}};
    struct buf *spans = &out->memory;
    int rc = read_conversation(&c, json, n, field, e);
    if (!rc) rc = render(&c, c.messages.list->n, o->add_generation_prompt, &out->text, spans, e);
    if (!rc && answers && !t->has_generation) rc = find_turns(&c, &out->text, spans, e);
    if (!rc && !answers) spans->len = 0;
    out->spans = (void *)spans->data;
    out->n_spans = rc ? 0 : spans->len / sizeof *out->spans;
    arena_release(&c.in.memory);
    return rc;
}
