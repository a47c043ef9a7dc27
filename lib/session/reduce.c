/* Knowledge encoded in fewer bytes, or printed as a table. */
#include <stdio.h>
#include <string.h>

#include "lib/session/session.h"

/* ---- encoding ---------------------------------------------------------------------------------------------------- */

struct reduction {
    struct cli *c;
    const struct session_reduce_options *o;
    struct session_data in;
    struct knowledge_format out;
    struct knowledge_encoder *encoder;
    struct batch batch;
};

static int choose_response(struct reduction *w, struct err *e) {
    const struct session_reduce_options *o = w->o;
    if (!strcmp(o->encode, "keep")) return 0;
    if (knowledge_encoding_parse(o->encode, &w->out, e)) return e->code;
    if (o->temperature) w->out.temperature = *o->temperature;
    return knowledge_check_encode(&w->in.format, &w->out, e);
}

static int begin(struct reduction *w, struct err *e) {
    struct stream_writer *writer;
    w->out = w->in.format;
    if (choose_response(w, e) || session_choose_fields(&w->o->drop, w->o->field_dtype, &w->out, e) ||
        cli_open_output(w->c, &writer, e))
        return e->code;
    return knowledge_encoder_open(&w->encoder, writer, stream_reader_meta(w->in.stream), &w->out, cli_seed(w->c), e);
}

static int report(struct reduction *w, struct err *e) {
    struct cli *c = w->c;
    struct knowledge_counts n = knowledge_encoder_counts(w->encoder);
    double per_token = n.positions ? (double)n.bytes / (double)n.positions : 0;
    cJSON *o = cli_report(c);
    if (!json_put_u64(o, "positions", n.positions) || !json_put_u64(o, "entries", n.entries) ||
        !json_put_u64(o, "teacher_bytes", n.bytes) || !json_put_f64(o, "teacher_bytes_per_token", per_token))
        return err_nomem(e, "report");
    if (cli_verbose(c)) cli_say(c, "%llu positions, %.1f bytes each", (unsigned long long)n.positions, per_token);
    return 0;
}

static int encode_stream(struct reduction *w, struct err *e) {
    struct cli *c = w->c;
    bool more;
    if (begin(w, e)) return e->code;
    cli_progress_begin(c, "tokens", 0);
    while (true) {
        if (knowledge_read(w->in.stream, &w->in.format, &w->batch, &more, e)) return e->code;
        if (!more) break;
        if (knowledge_encoder_batch(w->encoder, &w->in.format, &w->batch, e))
            return err_prefix(e, "%s", stream_reader_name(w->in.stream));
        cli_progress(c, knowledge_encoder_counts(w->encoder).positions, NULL);
    }
    if (knowledge_encoder_end(w->encoder, e) || report(w, e)) return e->code;
    cli_progress_end(c);
    return cli_close_output(c, e);
}

int session_reduce(struct cli *c, const char *knowledge, const struct session_reduce_options *o, struct err *e) {
    struct reduction w = {.c = c, .o = o};
    int rc = session_open_data(c, knowledge, "knowledge", STREAM_KNOWLEDGE, NULL, &w.in, e);
    if (!rc) rc = encode_stream(&w, e);
    knowledge_encoder_free(w.encoder);
    batch_release(&w.batch);
    session_data_release(&w.in);
    return rc;
}

/* ---- a table ----------------------------------------------------------------------------------------------------- */

/* Loads the vocabulary that spells tokens; NULL without a model. */
static int load_vocab(struct cli *c, const struct session_table_options *o, struct session_data *in,
                      struct vocab **vocab, struct err *e) {
    if (!o->model->model) return 0;
    int rc = session_load_vocab(c, o->model, vocab, NULL, e);
    if (!rc) rc = session_check_vocab(*vocab, in, "knowledge", e);
    if (!rc) knowledge_cut_padding(&in->format, (*vocab)->n_unpadded); /* for dense knowledge only */
    return rc;
}

static int spell(void *ctx, uint32_t id, struct buf *out, struct err *e) {
    const struct vocab *v = ctx;
    if (id >= v->n_tokens || !v->tokens[id].n_bytes) return buf_printf(out, e, "?");
    return vocab_spell(v, id, out, e);
}

/* Parses "FIRST:N". */
static int parse_positions(const char *positions, uint64_t *first, uint64_t *n, struct err *e) {
    char copy[64];
    snprintf(copy, sizeof copy, "%s", positions);
    char *colon = strchr(copy, ':');
    if (colon) *colon++ = 0;
    if (!colon || strlen(positions) >= sizeof copy || !parse_u64(copy, first) || !parse_u64(colon, n))
        return err_set(e, ERR_USAGE, "--positions %s: expected FIRST:N", positions);
    return 0;
}

int session_print_table(struct cli *c, const char *knowledge, const struct session_table_options *o, struct err *e) {
    struct session_data in = {0};
    struct vocab *v = NULL;
    uint64_t first, n;
    FILE *out;
    int rc = session_open_data(c, knowledge, "knowledge", STREAM_KNOWLEDGE, NULL, &in, e);
    if (!rc) rc = parse_positions(o->positions, &first, &n, e);
    if (!rc) rc = load_vocab(c, o, &in, &v, e);
    if (!rc) rc = cli_text(c, &out, e);
    struct knowledge_tsv t = {.top = (uint32_t)o->top, .spell = v ? spell : NULL, .ctx = v};
    if (!rc) rc = knowledge_tsv_print(&t, in.stream, &in.format, first, n, out, e);
    session_data_release(&in);
    vocab_free(v);
    return rc;
}
