/* Converts text to a stream of tokens with a vocabulary, and back. */
#include <string.h>

#include "lib/session/session.h"

/* ---- text to tokens ---- */

struct work {
    struct cli *c;
    const struct vocab *v;
    const struct session_corpus *how;
    struct corpus_options o; /* resolved */
    struct cli_file *in;
    size_t operand; /* index of `in` */
    struct session_chat *chat;
    struct stream_writer *out;
    uint64_t bytes;
    uint32_t mask;        /* the vocabulary's mask token */
    struct buf masked;    /* u32: tokens and labels of a batch */
    const char **classes; /* names from the model's META */
};

static int open_text(struct work *w, size_t operand, struct err *e) {
    w->operand = operand;
    return cli_open_file(w->c, cli_input_path(w->c, operand), "text", &w->in, e);
}

static int read_text(void *ctx, void *dst, size_t n, size_t *got, struct err *e) {
    struct work *w = ctx;
    int rc = cli_file_read(w->in, dst, n, got, e);
    w->bytes += *got;
    cli_progress(w->c, w->bytes, NULL);
    return rc;
}

static int next_text(void *ctx, bool *more, struct err *e) {
    struct work *w = ctx;
    *more = w->operand + 1 < cli_operands(w->c);
    if (!*more) return 0;
    cli_file_close(w->c, w->in);
    return open_text(w, w->operand + 1, e);
}

static int write_batch(void *ctx, const struct corpus_batch *b, struct err *e) {
    struct work *w = ctx;
    const uint32_t *tokens = b->tokens, *labels = b->labels;
    uint64_t n = b->n_positions, n_labels = w->o.tags ? n : b->n_seqs - b->continues;
    if (w->how->mask_rate > 0) {
        w->masked.len = 0;
        if (buf_reserve(&w->masked, 2 * n * sizeof *tokens, e)) return e->code;
        uint32_t *made = (uint32_t *)w->masked.data;
        corpus_mask_tokens(w->v, w->mask, w->how->mask_rate, cli_seed(w->c), b, made, made + n);
        tokens = made;
        labels = made + n;
        n_labels = n;
    }
    const struct stream_batch head = {.first_seq = b->first_seq,
                                      .first_pos = b->first_pos,
                                      .n_positions = n,
                                      .n_seqs = b->n_seqs,
                                      .n_tensors = 2 + (b->mask != NULL) + (b->types != NULL) + (labels != NULL),
                                      .flags = b->continues ? BATCH_CONTINUES : 0};
    int rc = batch_write(w->out, &head, tokens, b->lengths, e);
    if (!rc && b->mask) rc = batch_write_mask(w->out, &head, b->mask, e);
    if (!rc && labels) rc = batch_write_vector(w->out, BATCH_LABELS, DT_U32, labels, n_labels, e);
    return !rc && b->types ? batch_write_vector(w->out, BATCH_TYPES, DT_U8, b->types, n, e) : rc;
}

static int write_meta(const struct work *w, struct err *e) {
    cJSON *m = cJSON_CreateObject();
    double rate = w->how->mask_rate;
    enum stream_target target = w->o.label  ? TARGET_SEQUENCE
                                : w->o.tags ? TARGET_TOKEN
                                : rate > 0  ? TARGET_MASKED
                                            : TARGET_NEXT;
    bool ok = m && json_put_str(m, "kind", stream_kind_name(STREAM_TOKENS)) && corpus_describe(m, w->v, &w->o);
    if (ok && target != TARGET_NEXT) ok = json_put_str(m, "target", stream_target_name(target));
    if (ok && target == TARGET_MASKED) ok = json_put_f64(m, "mask_rate", rate);
    if (ok && w->o.n_classes) ok = json_put_u64(m, "classes", w->o.n_classes);
    int rc = ok ? stream_write_meta(w->out, m, e) : err_nomem(e, "description");
    cJSON_Delete(m);
    return rc;
}

/* Sets the names of the model's classes, if it has any. */
static int name_classes(struct work *w, const cJSON *model, struct err *e) {
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(model, "labels"), *name;
    int n = cJSON_IsArray(list) ? cJSON_GetArraySize(list) : 0;
    if ((!w->o.label && !w->o.tags) || !n) return 0;
    w->classes = mem_array((size_t)n, sizeof *w->classes, e);
    if (!w->classes) return e->code;
    cJSON_ArrayForEach(name, list) {
        if (!cJSON_IsString(name)) return err_set(e, ERR_DATA, "the model's \"labels\" are not names");
        w->classes[w->o.n_classes++] = name->valuestring;
    }
    w->o.classes = w->classes;
    return 0;
}

/* Resolves options that depend on the vocabulary. A chat template writes BOS and EOS itself. */
static int prepare(struct work *w, const cJSON *model, struct err *e) {
    const struct session_corpus *how = w->how;
    bool chat = w->o.documents == CORPUS_CHAT;
    bool bos_is_there = chat && !strcmp(how->bos, "auto"), eos_is_there = chat && !strcmp(how->eos, "auto");
    corpus_choose_specials(&w->o, w->v, bos_is_there ? "never" : how->bos, eos_is_there ? "never" : how->eos);
    w->o.next = next_text;
    w->o.mask = chat && !how->chat.add_generation_prompt;
    w->o.compose = session_chat_compose;
    if (chat && session_chat_open(&w->chat, w->c, w->v, &how->chat, e)) return e->code;
    w->o.compose_ctx = w->chat;
    if (how->mask_rate > 0 && corpus_mask_token(w->v, &w->mask, e)) return e->code;
    return name_classes(w, model, e);
}

static int encode(struct work *w, struct corpus_totals *totals, struct err *e) {
    cli_progress_begin(w->c, "bytes", cli_operands(w->c) > 1 ? 0 : cli_file_size(w->in));
    int rc = corpus_encode(w->v, &w->o, read_text, write_batch, w, totals, e);
    cli_progress_end(w->c);
    if (totals->stopped) cli_file_stop(w->in);
    return rc == ERR_DATA ? err_prefix(e, "%s", cli_file_name(w->in)) : rc;
}

static int report(struct cli *c, const struct corpus_totals *t, struct err *e) {
    if (t->lost_bytes)
        cli_say(c, "%llu bytes have no token in this vocabulary and were left out", (unsigned long long)t->lost_bytes);
    return corpus_totals_put(cli_report(c), t) ? 0 : err_nomem(e, "report");
}

int session_tokenize(struct cli *c, const struct vocab *v, const cJSON *model, const struct session_corpus *how,
                     struct err *e) {
    struct work w = {.c = c, .v = v, .how = how, .o = how->corpus};
    struct corpus_totals totals = {0};
    int rc = prepare(&w, model, e);
    if (!rc) rc = open_text(&w, 0, e);
    if (!rc) rc = cli_open_output(c, &w.out, e);
    if (!rc) rc = write_meta(&w, e);
    if (!rc) rc = encode(&w, &totals, e);
    session_chat_free(w.chat);
    buf_release(&w.masked);
    mem_free(w.classes);
    if (!rc) rc = cli_close_output(c, e);
    return rc ? rc : report(c, &totals, e);
}

/* ---- tokens to text ---- */

static int decode_batch(struct cli *c, const struct vocab *v, const struct corpus_decoding *d, const struct batch *b,
                        struct buf *text, struct err *e) {
    const struct corpus_batch batch = {.first_seq = b->head.first_seq,
                                       .first_pos = b->head.first_pos,
                                       .n_positions = b->head.n_positions,
                                       .n_seqs = b->head.n_seqs,
                                       .continues = b->head.flags & BATCH_CONTINUES,
                                       .tokens = batch_tokens(b),
                                       .lengths = batch_lengths(b)};
    text->len = 0;
    return corpus_decode(v, d, &batch, text, e) ? e->code : cli_put_document(c, text->data, text->len, e);
}

int session_detokenize(struct cli *c, const struct vocab *v, bool skip_special, struct err *e) {
    struct session_data in = {0};
    struct corpus_decoding d = {.skip_special = skip_special};
    struct batch b = {0};
    struct buf text = {0};
    FILE *out;
    bool more = true;
    int rc = session_open_data(c, cli_input_path(c, 0), "tokens", STREAM_ANY, NULL, &in, e);
    if (!rc) rc = cli_text(c, &out, e);
    if (!rc) rc = session_check_vocab(v, &in, "tokens", e);
    while (!rc && (rc = knowledge_read(in.stream, &in.format, &b, &more, e)) == 0 && more) {
        /* segments may have been tokenized with different options */
        rc = corpus_decoding(stream_reader_meta(in.stream), &d, e);
        if (!rc) rc = decode_batch(c, v, &d, &b, &text, e);
    }
    batch_release(&b);
    buf_release(&text);
    session_data_release(&in);
    return rc;
}
