/* Renders conversations into documents for corpus_encode, by the chat template of a vocabulary or a file. */
#include "lib/chat/chat.h"
#include "lib/session/session.h"

struct session_chat {
    struct chat_template *template;
    struct chat_options options;
    struct chat_special special[4];
    struct arena memory; /* for the texts of `special` */
    const char *field;
    bool answers;
};

static int open_template(struct session_chat *t, struct cli *c, const struct vocab *v, const char *path,
                         struct err *e) {
    struct buf text = {0};
    struct cli_file *f;
    if (!path && !v->chat_template)
        return err_set(e, ERR_DATA, "the model has no chat template (--chat-template FILE names one)");
    if (!path) return chat_template_new(&t->template, v->chat_template, strlen(v->chat_template), e);
    int rc = cli_open_file(c, path, "template", &f, e);
    if (!rc) rc = cli_file_read_all(f, CHAT_MAX_TEMPLATE, &text, e);
    size_t bom = text_bom(text.data, text.len);
    if (!rc && chat_template_new(&t->template, (const char *)text.data + bom, text.len - bom, e))
        rc = err_prefix(e, "%s", path);
    buf_release(&text);
    return rc;
}

/* Makes a special token of the vocabulary available to templates as a variable. */
static int add_special(struct session_chat *t, const struct vocab *v, const char *name, uint32_t id, struct err *e) {
    if (id == TOKEN_NONE) return 0;
    const char *text = arena_strndup(&t->memory, (const char *)v->tokens[id].bytes, v->tokens[id].n_bytes, e);
    if (!text) return e->code;
    t->special[t->options.n_special++] = (struct chat_special){name, text};
    if (id == v->eos) t->options.eos = text;
    return 0;
}

int session_chat_open(struct session_chat **out, struct cli *c, const struct vocab *v,
                      const struct session_chat_options *o, struct err *e) {
    struct session_chat *t = mem_zalloc(sizeof *t, e);
    if (!t) return e->code;
    t->field = o->field ? o->field : "messages";
    t->answers = !o->add_generation_prompt;
    t->options = (struct chat_options){
        .add_generation_prompt = o->add_generation_prompt, .special = t->special, .date = o->date};
    int rc = o->date ? chat_check_date(o->date, e) : 0;
    if (!rc) rc = add_special(t, v, "bos_token", v->bos, e);
    if (!rc) rc = add_special(t, v, "eos_token", v->eos, e);
    if (!rc) rc = add_special(t, v, "pad_token", v->pad, e);
    if (!rc) rc = add_special(t, v, "unk_token", v->unk, e);
    if (!rc) rc = open_template(t, c, v, o->path, e);
    if (rc)
        session_chat_free(t);
    else
        *out = t;
    return rc;
}

void session_chat_free(struct session_chat *t) {
    if (!t) return;
    chat_template_free(t->template);
    arena_release(&t->memory);
    mem_free(t);
}

int session_chat_compose(void *ctx, const void *line, size_t n, struct buf *text, struct buf *spans, struct err *e) {
    const struct session_chat *t = ctx;
    struct chat_text out = {0};
    int rc = chat_render(t->template, line, n, t->field, t->answers, &t->options, &out, e);
    if (!rc) rc = buf_append(text, out.text.data, out.text.len, e);
    for (size_t i = 0; !rc && i < out.n_spans; i++) {
        const struct corpus_span span = {out.spans[i].start, out.spans[i].end};
        rc = buf_append(spans, &span, sizeof span, e);
    }
    chat_text_release(&out);
    return rc;
}
