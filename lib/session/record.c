/* Records what a teacher predicts at each position of a token stream. */
#include <string.h>

#include "lib/session/session.h"

struct recording {
    struct cli *c;
    const struct session_record_options *o;
    struct session_teacher *teacher;
    struct knowledge_encoder *encoder;
    struct session_data tokens;
    struct knowledge_format format; /* of the output */
    struct stream_writer *out;
};

static bool keeps_nothing(const struct session_record_options *o) {
    return !strcmp(o->encode, "none");
}

/* Sets the format of the knowledge, except the teacher's digest, which is not known yet. */
static int choose_format(struct recording *w, struct err *e) {
    const struct session_record_options *o = w->o;
    const struct model *m = session_teacher_model(w->teacher);
    struct knowledge_format *f = &w->format;
    *f = w->tokens.format;
    f->temperature = o->temperature;
    f->dtype = dtype_by_name(o->dtype)->dtype;
    f->log_probs = !o->raw_logits;
    if (!keeps_nothing(o) && knowledge_encoding_parse(o->encode, f, e)) return e->code;
    if (keeps_nothing(o) && !o->taps.n)
        return err_set(e, ERR_USAGE, "--encode none needs --tap: there is nothing to keep");
    f->target = model_predicts(&m->config);
    f->vocab_size = model_n_tokens(m);
    if (stream_target_classes(f->target)) f->classes = m->config.classes;
    f->tap_positions = (uint32_t)o->tap_positions;
    for (size_t i = 0; i < o->taps.n; i++)
        if (session_tap_parse(o->taps.items[i], &m->config, !o->teacher.all_rows, f, e)) return e->code;
    if (m->vocab) digest_text(m->vocab_digest, f->vocab);
    return session_teacher_tap(w->teacher, f, cli_seed(w->c), e);
}

/* Writes the META of the knowledge and creates its encoder. */
static int begin_output(void *ctx, struct digest teacher, struct knowledge_encoder **encoder, struct err *e) {
    struct recording *w = ctx;
    digest_text(teacher, w->format.teacher);
    const cJSON *meta = stream_reader_meta(w->tokens.stream);
    int rc = knowledge_encoder_open(&w->encoder, w->out, meta, &w->format, cli_seed(w->c), e);
    *encoder = w->encoder;
    return rc;
}

static int infer(struct recording *w, struct err *e) {
    struct cli *c = w->c;
    double inv_temperature = w->format.encoding ? 1 / w->o->temperature : 0;
    if (cli_open_output(c, &w->out, e) ||
        session_teacher_infer(w->teacher, &w->tokens, inv_temperature, begin_output, w, e) ||
        knowledge_encoder_end(w->encoder, e))
        return e->code;
    struct knowledge_counts n = knowledge_encoder_counts(w->encoder);
    if (!json_put_u64(cli_report(c), "positions", n.positions) ||
        !json_put_u64(cli_report(c), "teacher_bytes", n.bytes))
        return err_nomem(e, "report");
    return cli_close_output(c, e);
}

static int print_sizes(struct recording *w, struct err *e) {
    FILE *out;
    if (cli_text(w->c, &out, e)) return e->code;
    return session_print_sizes(&w->format, &w->tokens, w->o->teacher.all_rows, out, e);
}

static int record(struct recording *w, const char *tokens, struct err *e) {
    const struct session_record_options *o = w->o;
    struct knowledge_format f = {0};
    if ((!keeps_nothing(o) && knowledge_encoding_parse(o->encode, &f, e)) || /* before the model is loaded */
        session_teacher_open(&w->teacher, w->c, o->model, &o->teacher, e) ||
        session_open_data(w->c, tokens, "tokens", STREAM_TOKENS, session_teacher_model(w->teacher), &w->tokens, e) ||
        choose_format(w, e))
        return e->code;
    return o->dry_run ? print_sizes(w, e) : infer(w, e);
}

int session_record(struct cli *c, const char *tokens, const struct session_record_options *o, struct err *e) {
    struct recording w = {.c = c, .o = o};
    int rc = record(&w, tokens, e);
    knowledge_encoder_free(w.encoder);
    session_teacher_free(w.teacher);
    session_data_release(&w.tokens);
    return rc;
}
