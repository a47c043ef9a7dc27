/*
 * Runs a teacher over a stream of tokens. Sequences are queued and cut into forward passes, which depend only on the
 * sequences; passes are grouped into blocks. For a model in memory each pass is a block.
 */
#include "lib/session/session.h"

/* One forward pass over consecutive sequences of the queue. */
struct pass {
    size_t n_seqs, n_positions;
};

struct session_teacher {
    struct cli *c;
    const struct session_options *options;
    struct session_teacher_options how;
    struct session_file file;
    struct model *model;               /* in memory, or ... */
    struct model_layerwise *layerwise; /* ... layer by layer */
    struct digest digest;
    struct grad_tape *scratch;

    /* The state of session_teacher_infer. */
    struct knowledge_format format; /* of the tokens, with the teacher's vocabulary size */
    struct knowledge_rows rows;
    struct batch batch;
    struct knowledge_format data;       /* as in the tokens' META */
    struct buf passes, inputs;          /* struct pass; struct model_input */
    struct buf flags;                   /* u8: counted positions at the front of the queue */
    const uint8_t *counted;             /* points to flags.data, or NULL: all are counted */
    struct session_taps *taps;          /* NULL: no taps */
    const struct knowledge_format *out; /* format of the tapped fields */
    bool answers;                       /* logits are requested */
    size_t n_seqs, n_positions;         /* at the front of the queue, already cut into passes */
    struct knowledge_encoder *to;       /* caller owns; NULL: not created yet */
    session_teacher_ready *ready;
    void *ctx;
    double inv_temperature;
};

/* ---- opening ----------------------------------------------------------------------------------------------------- */

/* Returns how many positions have hidden states and tapped rows within an eighth of the free memory. */
static uint64_t default_block(uint32_t hidden, const struct knowledge_format *taps) {
    double bytes = hidden * sizeof(float) + (taps ? knowledge_typical_bytes(taps) : 0);
    uint64_t n = (uint64_t)((double)mem_left() / 8 / bytes);
    return n ? n : 1;
}

static int read_again(void *ctx, struct stream_reader **out, struct err *e) {
    return session_file_again(ctx, STREAM_MODEL, out, e);
}

static int open_layerwise(struct session_teacher *t, const struct session_options *o, struct err *e) {
    struct stream_reader *r;
    session_file_init(&t->file, o->model);
    bool pipe = !t->file.is_file;
    if (cli_open_stream(t->c, o->model, session_role(o), STREAM_MODEL, &r, e)) return e->code;
    if (pipe && t->how.block_tokens)
        return err_set(e, ERR_USAGE, "%s is not a file and can be read only once: all tokens are one block",
                       stream_reader_name(r));
    if (model_layerwise_new(&t->layerwise, kernel_cpu(), r, session_weight_format(o), pipe ? NULL : read_again,
                            &t->file, e))
        return e->code;
    return session_set_kv_cache(o, model_layerwise_held(t->layerwise), e);
}

int session_teacher_open(struct session_teacher **out, struct cli *c, const struct session_options *o,
                         const struct session_teacher_options *how, struct err *e) {
    struct session_teacher *t = mem_zalloc(sizeof *t, e);
    if (!t) return e->code;
    t->c = c;
    t->options = o;
    t->how = *how;
    if (!how->layerwise) t->how.block_tokens = 1; /* a block per pass */
    int rc = how->layerwise ? open_layerwise(t, o, e)
                            : session_load_model(c, o, session_weight_format(o), &t->model, &t->digest, e);
    const struct model *m = rc ? NULL : session_teacher_model(t);
    if (!rc) rc = grad_tape_new(&t->scratch, m->device, false, model_precision(m), e);
    if (rc)
        session_teacher_free(t);
    else
        *out = t;
    return rc;
}

const struct model *session_teacher_model(const struct session_teacher *t) {
    return t->layerwise ? model_layerwise_model(t->layerwise) : t->model;
}

void session_teacher_parts(struct session_teacher *t, struct model **model, struct model_layerwise **layerwise) {
    *model = t->model;
    *layerwise = t->layerwise;
}

void session_teacher_free(struct session_teacher *t) {
    if (!t) return;
    model_layerwise_free(t->layerwise);
    model_free(t->model);
    session_file_release(&t->file);
    grad_tape_free(t->scratch);
    knowledge_rows_release(&t->rows);
    batch_release(&t->batch);
    buf_release(&t->passes);
    buf_release(&t->inputs);
    buf_release(&t->flags);
    session_taps_free(t->taps);
    mem_free(t);
}

int session_teacher_tap(struct session_teacher *t, const struct knowledge_format *f, uint64_t seed, struct err *e) {
    if (!f->n_fields) return 0;
    t->out = f;
    if (session_taps_new(&t->taps, &session_teacher_model(t)->config, f, seed, e)) return e->code;
    if (t->layerwise) model_layerwise_tap(t->layerwise, session_taps_see, t->taps);
    return 0;
}

/* ---- a block ----------------------------------------------------------------------------------------------------- */

static int put_logits(void *ctx, size_t first, size_t rows, size_t vocab, float *host_logits, struct err *e) {
    const struct session_teacher *t = ctx;
    (void)first, (void)vocab;                                    /* rows come in order */
    int rc = t->taps ? session_taps_give(t->taps, t->to, e) : 0; /* rows of the positions of these logits */
    if (!rc) rc = knowledge_encoder_rows(t->to, rows, host_logits, t->inv_temperature, e);
    cli_progress(t->c, knowledge_encoder_counts(t->to).positions, NULL);
    return rc;
}

static void layer_done(void *ctx, uint32_t layers) {
    const struct session_teacher *t = ctx;
    uint64_t done = t->to ? knowledge_encoder_counts(t->to).positions : 0;
    cli_progress(t->c, done, "layer %u of %u for the next %zu", layers, session_teacher_model(t)->config.n_layers,
                 t->n_positions);
}

/* Converts the passes of the queue to inputs of the model. */
static int lay_out_inputs(struct session_teacher *t, const struct model_input **in, size_t *n, struct err *e) {
    const struct pass *p = (const struct pass *)t->passes.data;
    const uint32_t *tokens = t->rows.tokens, *lengths = t->rows.lengths;
    const uint32_t *types = t->rows.types;
    const uint8_t *counted = t->counted;
    int rc = 0;
    *n = t->passes.len / sizeof *p;
    t->inputs.len = 0;
    for (size_t i = 0; !rc && i < *n; i++) {
        struct model_input one = {
            .n_positions = p[i].n_positions, .n_seqs = p[i].n_seqs, .tokens = tokens, .lengths = lengths};
        if (types) one.types = types, types += p[i].n_positions;
        if (counted) one.asked = counted, counted += p[i].n_positions;
        rc = buf_append(&t->inputs, &one, sizeof one, e);
        tokens += p[i].n_positions;
        lengths += p[i].n_seqs;
    }
    *in = (const struct model_input *)t->inputs.data;
    return rc;
}

/* Gets the encoder from the caller; called when the whole teacher has been read. */
static int make_encoder(struct session_teacher *t, struct err *e) {
    if (t->layerwise) {
        t->digest = model_layerwise_digest(t->layerwise);
        if (session_put_precision(t->c, t->options, session_teacher_model(t), e)) return e->code;
    }
    return t->ready(t->ctx, t->digest, &t->to, e);
}

/* Creates the encoder on first use and announces the next batch to it. */
static int announce(struct session_teacher *t, struct err *e) {
    struct knowledge_input in = {
        .head = {.first_seq = t->rows.seqs[0], .n_positions = t->n_positions, .n_seqs = (uint32_t)t->n_seqs},
        .tokens = t->rows.tokens,
        .lengths = t->rows.lengths,
        .mask = t->rows.mask,
        .labels = t->rows.labels,
        .types = t->rows.types,
        .counted = t->counted};
    if (t->taps) in.sampled = session_taps_sampled(t->taps);
    if (!t->to && make_encoder(t, e)) return e->code;
    return knowledge_encoder_begin(t->to, &in, e);
}

/* Finds the counted positions of the block. */
static int count_block(struct session_teacher *t, struct err *e) {
    bool some = false;
    if (!t->how.all_rows &&
        session_count_positions(&t->data, t->format.target, &t->rows, t->n_seqs, t->n_positions, &t->flags, &some, e))
        return e->code;
    t->counted = some ? t->flags.data : NULL;
    return 0;
}

static int infer_block(struct session_teacher *t, struct err *e) {
    const struct model_input *in;
    size_t n;
    if (!t->n_seqs) return 0;
    int rc = count_block(t, e);
    if (!rc) rc = lay_out_inputs(t, &in, &n, e);
    struct session_tap_block block = {t->n_seqs, t->rows.lengths, t->rows.seqs, t->counted};
    if (!rc && t->taps) rc = session_taps_begin(t->taps, &block, e);
    if (!rc && t->layerwise) rc = model_layerwise_run(t->layerwise, t->scratch, in, n, layer_done, t, e);
    if (!rc) rc = announce(t, e);
    model_logits_fn *fn = t->answers ? put_logits : NULL;
    if (!rc && t->layerwise) rc = model_layerwise_logits(t->layerwise, t->scratch, in, n, fn, t, e);
    for (size_t i = 0; !rc && !t->layerwise && i < n; i++)
        rc = model_infer(t->model, t->scratch, &in[i], t->taps ? session_taps_see : NULL, t->taps, fn, t, e);
    if (!rc && t->taps) rc = session_taps_give(t->taps, t->to, e); /* rows of positions after the last logits */
    if (!rc && !fn)
        rc =
            knowledge_encoder_rows(t->to, t->format.target == TARGET_SEQUENCE ? t->n_seqs : t->n_positions, NULL, 0, e);
    if (rc) return rc;
    knowledge_drop(&t->rows, &t->format, t->n_seqs);
    t->n_seqs = t->n_positions = t->passes.len = 0;
    return 0;
}

/* Cuts complete passes from the queue, and runs complete blocks. */
static int infer_queue(struct session_teacher *t, bool last, struct err *e) {
    uint64_t fit = t->how.batch_tokens;
    struct pass p;
    while ((p.n_seqs = knowledge_next_pass(&t->rows, t->n_seqs, fit, fit, last, &p.n_positions)) > 0) {
        if (buf_append(&t->passes, &p, sizeof p, e)) return e->code;
        t->n_seqs += p.n_seqs;
        t->n_positions += p.n_positions;
        if (t->n_positions >= t->how.block_tokens && infer_block(t, e)) return e->code;
    }
    return last ? infer_block(t, e) : 0;
}

int session_teacher_infer(struct session_teacher *t, struct session_data *tokens, double inv_temperature,
                          session_teacher_ready *ready, void *ctx, struct err *e) {
    const struct model_config *config = &session_teacher_model(t)->config;
    bool more = true;
    t->answers = inv_temperature > 0;
    if (t->answers && model_check_head(config, e)) return e->code;
    t->format = t->data = tokens->format;
    if (knowledge_fit_target(&t->format, model_predicts(config), model_columns(session_teacher_model(t)), e))
        return e->code;
    t->format.vocab_size = model_n_tokens(session_teacher_model(t));
    if (!t->how.block_tokens)
        t->how.block_tokens = t->file.is_file ? default_block(config->hidden, t->out) : UINT64_MAX;
    t->inv_temperature = inv_temperature;
    t->ready = ready;
    t->ctx = ctx;
    cli_progress_begin(t->c, "tokens", 0);
    while (true) {
        if (knowledge_read(tokens->stream, &tokens->format, &t->batch, &more, e)) return e->code;
        if (!more) break;
        if (knowledge_decode(&t->rows, &t->format, &t->batch, e) ||
            knowledge_check_context(&t->rows, config->context, "teacher", e) || infer_queue(t, false, e))
            return e->code;
    }
    if (knowledge_decode_end(&t->rows, e) || infer_queue(t, true, e)) return e->code;
    cli_progress_end(t->c);
    /* Without tokens the teacher is still read, because the empty knowledge names it. */
    if (!t->to && t->layerwise && model_layerwise_run(t->layerwise, t->scratch, NULL, 0, NULL, NULL, e)) return e->code;
    return t->to ? 0 : make_encoder(t, e);
}
