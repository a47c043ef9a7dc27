/* Continues prompts with a model, and writes a stream of tokens or text. */
#include "lib/session/session.h"

#define BATCH_POSITIONS 4096 /* of an output batch, which is closed at the end of the sequence that reaches this */

struct sink {
    const struct session_generate_options *o;
    struct cli *c;
    struct model *m;
    struct stream_writer *out; /* NULL with --text */
    struct buf tokens, lengths, line;
    uint64_t next_seq; /* number of the next prompt's first continuation */
    uint64_t seqs;
    struct model_generated sum;
};

static int put_text(struct sink *s, const uint32_t *ids, size_t n, struct err *e) {
    s->line.len = 0;
    int rc = text_decode(s->m->vocab, ids, n, true, &s->line, e);
    if (!rc) rc = buf_append(&s->line, "\n", 1, e);
    return rc ? rc : cli_put_document(s->c, s->line.data, s->line.len, e);
}

static int write_batch(struct sink *s, uint64_t next_seq, struct err *e) {
    uint64_t n = s->tokens.len / sizeof(uint32_t), seqs = s->lengths.len / sizeof(uint32_t);
    struct stream_batch head = {
        .first_seq = next_seq - seqs, .n_positions = n, .n_seqs = (uint32_t)seqs, .n_tensors = 2};
    if (!seqs) return 0;
    int rc = batch_write(s->out, &head, (const uint32_t *)s->tokens.data, (const uint32_t *)s->lengths.data, e);
    s->tokens.len = s->lengths.len = 0;
    return rc;
}

static int sequence_done(void *ctx, uint64_t seq, const uint32_t *prompt, size_t n_prompt, const uint32_t *made,
                         size_t n_made, struct err *e) {
    struct sink *s = ctx;
    uint32_t n = (uint32_t)(n_made + (s->o->only_new ? 0 : n_prompt));
    int rc = s->o->only_new ? 0 : buf_append(&s->tokens, prompt, n_prompt * sizeof *prompt, e);
    if (!rc) rc = buf_append(&s->tokens, made, n_made * sizeof *made, e);
    if (!rc && s->o->text) {
        rc = put_text(s, (const uint32_t *)s->tokens.data, n, e);
        s->tokens.len = 0;
    } else if (!rc)
        rc = buf_append(&s->lengths, &n, sizeof n, e);
    s->seqs++;
    bool full = s->tokens.len / sizeof(uint32_t) >= BATCH_POSITIONS;
    return !rc && full ? write_batch(s, seq + 1, e) : rc;
}

static void step_done(void *ctx, const struct model_generated *sum) {
    struct sink *s = ctx;
    s->sum = *sum;
    cli_progress(s->c, sum->made, "%llu sequences done", (unsigned long long)s->seqs);
}

/* Adds each complete prompt `repeat` times. Continuations are numbered consecutively, even across segments made by
 * `cat`. */
static int add_prompts(struct sink *s, struct model_generator *g, const struct knowledge_rows *rows, struct err *e) {
    const uint32_t *prompt = rows->tokens, *lengths = rows->lengths;
    int rc = 0;
    if (!s->next_seq && rows->n_seqs) s->next_seq = rows->seqs[0] * s->o->repeat;
    for (size_t i = 0; !rc && i < knowledge_whole_seqs(rows); prompt += lengths[i++])
        for (uint64_t k = 0; !rc && k < s->o->repeat; k++)
            rc = model_generator_add(g, s->next_seq++, prompt, lengths[i], e);
    return rc;
}

/* Decodes a batch and adds its prompts. One that spans batches stays queued until it is complete; one longer than the
 * model's context is an error. */
static int take_batch(struct sink *s, struct model_generator *g, struct knowledge_rows *rows,
                      const struct session_data *in, const struct batch *b, struct err *e) {
    int rc = knowledge_decode(rows, &in->format, b, e);
    if (!rc) rc = knowledge_check_context(rows, s->m->config.context, "model", e);
    if (!rc) rc = add_prompts(s, g, rows, e);
    if (!rc) knowledge_drop(rows, &in->format, knowledge_whole_seqs(rows));
    return rc == ERR_DATA ? err_prefix(e, "%s", stream_reader_name(in->stream)) : rc;
}

/* Fails for a model that cannot generate, before any output is opened. */
static int open_generator(struct sink *s, struct model_generator **g, struct err *e) {
    const struct vocab *v = s->o->past_eos ? NULL : s->m->vocab;
    struct model_sampling sampling = s->o->sampling;
    sampling.seed = cli_seed(s->c);
    sampling.ends = v ? v->ends : NULL;
    sampling.n_ends = v ? v->n_ends : 0;
    return model_generator_new(g, s->m, &sampling, sequence_done, step_done, s, e);
}

static int generate(struct sink *s, struct model_generator *g, struct session_data *in, struct err *e) {
    struct knowledge_rows rows = {0};
    struct batch b = {0};
    bool more = true;
    int rc = 0;
    cli_progress_begin(s->c, "tokens", 0);
    while (!rc && !(rc = knowledge_read(in->stream, &in->format, &b, &more, e)) && more)
        rc = take_batch(s, g, &rows, in, &b, e);
    if (!rc) rc = knowledge_decode_end(&rows, e);
    if (!rc) rc = model_generator_finish(g, e);
    if (!rc && s->out) rc = write_batch(s, s->next_seq, e);
    cli_progress_end(s->c);
    knowledge_rows_release(&rows);
    batch_release(&b);
    return rc;
}

static int open_sink(struct sink *s, const struct session_data *in, struct err *e) {
    if (s->o->text && !s->m->vocab)
        return err_set(e, ERR_DATA, "%s: --text needs a tokenizer, which the model does not have", s->o->model->model);
    FILE *text;
    if (s->o->text) return cli_text(s->c, &text, e);
    cJSON *meta = cJSON_Duplicate(stream_reader_meta(in->stream), true);
    cJSON_DeleteItemFromObjectCaseSensitive(meta, "packed"); /* sequences are independent texts */
    cJSON_DeleteItemFromObjectCaseSensitive(meta, "context");
    int rc = meta ? cli_open_output(s->c, &s->out, e) : err_nomem(e, "description");
    if (!rc) rc = stream_write_meta(s->out, meta, e);
    cJSON_Delete(meta);
    return rc;
}

static double rate(uint64_t n, double seconds) {
    return seconds > 0 ? (double)n / seconds : 0;
}

/* Reports speeds of steps that process prompts, and of the others; 0: there were none. */
static int put_report(const struct sink *s, struct err *e) {
    cJSON *to = cli_report(s->c);
    bool ok = json_put_u64(to, "sequences", s->seqs) && json_put_u64(to, "new_tokens", s->sum.made) &&
              json_put_f64(to, "prompt_tokens_per_second", rate(s->sum.prompted, s->sum.prompt_seconds)) &&
              json_put_f64(to, "decode_tokens_per_second", rate(s->sum.decoded, s->sum.decode_seconds));
    return ok ? 0 : err_nomem(e, "report");
}

int session_generate(struct cli *c, const char *prompts, const struct session_generate_options *o, struct err *e) {
    struct session_data in = {0};
    struct sink s = {.o = o, .c = c};
    struct model_generator *g = NULL;
    int rc = session_load_model(c, o->model, session_weight_format(o->model), &s.m, NULL, e);
    if (!rc) rc = session_open_data(c, prompts, "prompts", STREAM_TOKENS, s.m, &in, e);
    if (!rc) rc = open_generator(&s, &g, e);
    if (!rc) rc = open_sink(&s, &in, e);
    if (!rc) rc = generate(&s, g, &in, e);
    model_generator_free(g);
    if (!rc && s.out) rc = cli_close_output(c, e);
    if (!rc) rc = put_report(&s, e);
    buf_release(&s.tokens);
    buf_release(&s.lengths);
    buf_release(&s.line);
    model_free(s.m);
    session_data_release(&in);
    return rc;
}
