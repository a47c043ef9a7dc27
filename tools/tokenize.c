/* rill tokenize: text in, tokens out; with --decode the other way round. */
#include <errno.h>

#include "lib/run/run.h"

static struct run_options how;
static const char *field, *bos, *eos;
static bool lines, drop_last, no_special, no_normalise, decode;
static uint64_t context, max_tokens, per_batch;

static const struct cli_option options[] = {
    RUN_MODEL(how, "FILE", true, "the model stream whose vocabulary to use"),
    {.name = "lines",
     .type = CLI_FLAG,
     .to = &lines,
     .help = "each line is a document, without its line end; empty lines are none. Without this or --jsonl the whole "
             "input is one document"},
    {.name = "jsonl",
     .type = CLI_STRING,
     .to = &field,
     .arg = "FIELD",
     .help = "each line is a JSON object, and the string FIELD in it a document"},
    {.name = "context",
     .type = CLI_U64,
     .to = &context,
     .arg = "N",
     .fallback = "0",
     .max = CORPUS_MAX_BATCH,
     .help = "pack: join all documents and cut them into sequences of N tokens, the last of which may be shorter; 0: "
             "each document is a sequence"},
    {.name = "drop-last",
     .type = CLI_FLAG,
     .to = &drop_last,
     .help = "with --context: leave out a last sequence that is shorter"},
    {.name = "bos",
     .type = CLI_CHOICE,
     .to = &bos,
     .arg = "WHEN",
     .choices = "auto|always|never",
     .fallback = "auto",
     .help = "begin every sequence, packed or not, with the BOS token; auto: if the vocabulary asks for it"},
    {.name = "eos",
     .type = CLI_CHOICE,
     .to = &eos,
     .arg = "WHEN",
     .choices = "auto|always|never",
     .fallback = "auto",
     .help = "end every document with the EOS token; auto: with --context put one between documents if the vocabulary "
             "has one, without --context if it asks for it"},
    {.name = "no-special",
     .type = CLI_FLAG,
     .to = &no_special,
     .help = "special tokens written in the text (<|endoftext|>) are text; with --decode: are not written"},
    {.name = "no-normalise",
     .type = CLI_FLAG,
     .to = &no_normalise,
     .help = "take the text as it is where the vocabulary asks for normalisation form C"},
    {.name = "max-tokens",
     .type = CLI_U64,
     .to = &max_tokens,
     .arg = "N",
     .fallback = "0",
     .help = "stop after N tokens; 0: use all"},
    {.name = "batch-tokens",
     .type = CLI_U64,
     .to = &per_batch,
     .arg = "N",
     .fallback = "8192",
     .min = 1,
     .max = CORPUS_MAX_BATCH,
     .help =
         "positions in a batch, the unit in which programs downstream work. No packed sequence is parted; a document "
         "longer than this goes on in the next batch"},
    {.name = "decode",
     .type = CLI_FLAG,
     .to = &decode,
     .help = "the input is a token stream, the output its text; documents that were lines end with a line end"},
    {0},
};

/* ---- text to tokens ---- */

struct job {
    struct cli *cli;
    struct cli_file *in;
    struct stream_writer *out;
    uint64_t bytes;
};

static int read_text(void *ctx, void *dst, size_t n, size_t *got, struct err *e) {
    struct job *j = ctx;
    int rc = cli_file_read(j->in, dst, n, got, e);
    j->bytes += *got;
    cli_progress(j->cli, j->bytes, NULL);
    return rc;
}

static int write_batch(void *ctx, const struct corpus_batch *b, struct err *e) {
    struct job *j = ctx;
    const struct stream_batch head = {.first_seq = b->first_seq,
                                      .first_pos = b->first_pos,
                                      .n_positions = b->n_positions,
                                      .n_seqs = b->n_seqs,
                                      .n_tensors = 2,
                                      .flags = b->continues ? BATCH_CONTINUES : 0};
    return batch_write(j->out, &head, b->tokens, b->lengths, e);
}

static bool wanted(const char *when, bool by_default) {
    return strcmp(when, "always") == 0 || (strcmp(when, "auto") == 0 && by_default);
}

static enum corpus_eos eos_place(const struct vocab *v) {
    if (wanted(eos, !context && v->add_eos && v->eos != TOKEN_NONE)) return EOS_AFTER;
    return wanted(eos, context && v->eos != TOKEN_NONE) ? EOS_BETWEEN : EOS_NEVER;
}

static int write_meta(struct stream_writer *w, const struct vocab *v, const struct corpus_options *o, struct err *e) {
    static const char *const eos_names[] = {"never", "between", "after"};
    char digest[DIGEST_TEXT_SIZE];
    digest_text(v->digest, digest);
    cJSON *m = cJSON_CreateObject();
    bool ok = m && json_put_str(m, "kind", stream_kind_name(STREAM_TOKENS)) && json_put_str(m, "vocab", digest) &&
              json_put_u64(m, "vocab_size", v->n_tokens) && json_put_bool(m, "packed", context > 0) &&
              (!context || json_put_u64(m, "context", context)) &&
              json_put_str(m, "documents",
                           field   ? "jsonl"
                           : lines ? "lines"
                                   : "whole") &&
              json_put_bool(m, "bos", o->bos) && json_put_str(m, "eos", eos_names[o->eos]);
    int rc = ok ? stream_write_meta(w, m, e) : err_nomem(e, "description");
    cJSON_Delete(m);
    return rc;
}

static int report(struct cli *c, const struct corpus_totals *t, struct err *e) {
    cJSON *r = cli_report(c);
    double per_token = t->tokens ? (double)t->text_bytes / (double)t->tokens : 0;
    bool ok = json_put_u64(r, "input_bytes", t->input_bytes) && json_put_u64(r, "text_bytes", t->text_bytes) &&
              json_put_u64(r, "lost_bytes", t->lost_bytes) && json_put_u64(r, "documents", t->documents) &&
              json_put_u64(r, "empty_documents", t->empty_documents) && json_put_u64(r, "sequences", t->sequences) &&
              json_put_u64(r, "tokens", t->tokens) && json_put_u64(r, "batches", t->batches) &&
              json_put_f64(r, "bytes_per_token", per_token);
    if (t->lost_bytes)
        cli_say(c, "%llu bytes have no token in this vocabulary and were left out", (unsigned long long)t->lost_bytes);
    return ok ? 0 : err_nomem(e, "report");
}

static int encode(struct cli *c, const struct vocab *v, struct err *e) {
    const struct corpus_options o = {
        .documents = field   ? CORPUS_JSONL
                     : lines ? CORPUS_LINES
                             : CORPUS_WHOLE,
        .field = field,
        .context = (uint32_t)context,
        .drop_last = drop_last,
        .bos = wanted(bos, v->add_bos && v->bos != TOKEN_NONE),
        .eos = eos_place(v),
        .max_tokens = max_tokens,
        .batch_tokens = (uint32_t)per_batch,
        .encode = {.plain_specials = no_special, .no_normalise = no_normalise},
    };
    struct job j = {.cli = c};
    struct corpus_totals totals;
    int rc = cli_open_file(c, cli_input_path(c, 0), "text", &j.in, e);
    if (!rc) rc = cli_open_output(c, &j.out, e);
    if (!rc) rc = write_meta(j.out, v, &o, e);
    if (rc) return rc;
    cli_progress_begin(c, "bytes", cli_file_size(j.in));
    rc = corpus_encode(v, &o, read_text, write_batch, &j, &totals, e);
    cli_progress_end(c);
    if (rc == ERR_DATA) err_prefix(e, "%s", cli_file_name(j.in));
    if (totals.stopped) cli_file_stop(j.in);
    if (!rc) rc = cli_close_output(c, e);
    return rc ? rc : report(c, &totals, e);
}

/* ---- tokens to text ---- */

/* One batch. What tokenize puts in is left out again: the BOS in front of a sequence; what it takes away, the line end
 * behind one, is put back. */
static int write_text(const struct vocab *v, const struct batch *b, bool has_bos, bool ends_line, struct buf *text,
                      FILE *out, struct err *e) {
    const uint32_t *ids = batch_tokens(b), *lengths = batch_lengths(b);
    text->len = 0;
    for (uint32_t i = 0; i < b->head.n_seqs; ids += lengths[i], i++) {
        bool begins = i > 0 || b->head.first_pos == 0;
        bool ends = i + 1 < b->head.n_seqs || !(b->head.flags & BATCH_CONTINUES);
        uint32_t skip = begins && has_bos && ids[0] == v->bos;
        int rc = text_decode(v, ids + skip, lengths[i] - skip, no_special, text, e);
        if (!rc && ends && ends_line) rc = buf_append(text, "\n", 1, e);
        if (rc) return err_prefix(e, "sequence %llu", (unsigned long long)b->head.first_seq + i);
    }
    if (text->len && fwrite(text->data, 1, text->len, out) != text->len) return err_sys(e, errno, "standard output");
    return 0;
}

static int decode_stream(struct cli *c, const struct vocab *v, struct err *e) {
    struct run_data in = {0};
    struct batch b = {0};
    struct buf text = {0};
    FILE *out;
    bool more = true, has_bos = false, packed = false;
    const char *documents = "whole";
    int rc = run_open_data(c, cli_input_path(c, 0), "tokens", STREAM_ANY, NULL, &in, e);
    if (!rc) rc = cli_text(c, &out, e);
    if (!rc) rc = run_check_vocab(v, &in, "tokens", e);
    const cJSON *meta = rc ? NULL : stream_reader_meta(in.stream);
    if (!rc) rc = json_opt_bool(meta, "bos", &has_bos, e);
    if (!rc) rc = json_opt_bool(meta, "packed", &packed, e);
    if (!rc) rc = json_opt_str(meta, "documents", &documents, e);
    bool ends_line = !packed && !rc && strcmp(documents, "whole") != 0;
    while (!rc && (rc = knowledge_read(in.stream, &in.format, &b, &more, e)) == 0 && more)
        rc = write_text(v, &b, has_bos, ends_line, &text, out, e);
    batch_release(&b);
    buf_release(&text);
    run_data_release(&in);
    return rc;
}

static int run(struct cli *c, struct err *e) {
    struct vocab *v = NULL;
    if (lines && field) return err_set(e, ERR_USAGE, "--lines and --jsonl exclude each other");
    if (drop_last && !context) return err_set(e, ERR_USAGE, "--drop-last needs --context");
    int rc = run_load_vocab(c, &how, &v, e);
    if (!rc) rc = decode ? decode_stream(c, v, e) : encode(c, v, e);
    vocab_free(v);
    return rc;
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "tokenize",
        .summary = "text to tokens, and back",
        .operands = "[FILE]",
        .max_operands = 1,
        .reads_stdin = true,
        .writes_stream = true,
        .writes_text = true,
        .threaded = true,
        .description =
            "Writes the text on standard input or in FILE as a token stream, by the vocabulary of a model: byte-level "
            "BPE, with the same tokens as Hugging Face's tokenizers. Bytes that are no UTF-8 are kept.\n"
            "A document becomes a sequence. With --context N all documents are joined and cut into sequences of N "
            "tokens, what training and perplexity want: every sequence is as long as the model's context, none is "
            "padded. With BOS each of them begins with it, so a sequence then has N - 1 tokens of text.\n"
            "Input of any length takes the same memory, as long as no single word is larger than that.\n"
            "--report has the numbers of documents, sequences and tokens, and the bytes of text that the tokens stand "
            "for, which bits per byte divide by.",
        .examples = "rill tokenize -m model.rill --context 512 corpus.txt -o corpus.tok.rill\n"
                    "    the whole file in sequences of 512 tokens\n"
                    "rill tokenize -m model.rill --jsonl text < corpus.jsonl > corpus.tok.rill\n"
                    "    each JSON line's \"text\" is a sequence\n"
                    "rill tokenize -m model.rill --decode < tokens.rill\n"
                    "    the text of a token stream\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
