/* rill tokenize: encodes text as tokens, or decodes tokens with --decode. */
#include "lib/session/session.h"

static struct session_options how;
static const char *field, *label, *pair, *bos, *eos, *template_path, *date;
static bool chat, prompt, lines, drop_last, no_special, no_normalise, decode;
static uint64_t context, max_tokens, per_batch;
static double mask_rate;

static const struct cli_option options[] = {
    SESSION_MODEL(how, "FILE", true, "the model stream whose vocabulary to use"),
    {.name = "lines",
     .type = CLI_FLAG,
     .to = &lines,
     .needs = {"!decode", "!jsonl"},
     .help = "each line is a document, without its line end, LF or CR LF; empty lines are ignored. Without this or "
             "--jsonl the whole input is one document, line ends as they are"},
    {.name = "jsonl",
     .type = CLI_STRING,
     .to = &field,
     .arg = "FIELD",
     .needs = {"!decode", "!lines"},
     .help = "each line is a JSON object, and the string FIELD in it a document"},
    {.name = "labels",
     .type = CLI_STRING,
     .to = &label,
     .arg = "FIELD",
     .needs = {"lines|jsonl", "!chat", "!decode"},
     .help =
         "each line is a text to classify, and has its class: the number of a class or, where the model has names for "
         "them, a name. With --jsonl the member FIELD of the object; with --lines the tab-separated column of that "
         "number, from 1; the text is the first"},
    {.name = "pair",
     .type = CLI_STRING,
     .to = &pair,
     .arg = "FIELD",
     .needs = {"labels"},
     .help =
         "where a second text is, named as the label is: both become one sequence, with a separator and token types"},
    {.name = "mask-rate",
     .type = CLI_F64,
     .to = &mask_rate,
     .arg = "RATE",
     .min = 0.001,
     .max = 1,
     .needs = {"!decode", "!labels", "!chat"},
     .help = "for masked language models (BERT: 0.15): this share of the tokens is to be predicted; 80% of them become "
             "the mask token, 10% a random one, 10% stay, by the seed"},
    {.name = "chat",
     .type = CLI_FLAG,
     .to = &chat,
     .needs = {"!decode", "!lines", "!no-special"},
     .help =
         "each line is a JSON conversation: a list of messages, or an object with it as \"messages\" (or the FIELD of "
         "--jsonl), and with \"tools\", \"documents\" and \"chat_template_kwargs\" if it has any. The model's chat "
         "template makes a document of it"},
    {.name = "add-generation-prompt",
     .type = CLI_FLAG,
     .to = &prompt,
     .needs = {"chat"},
     .help = "end with the opening of the assistant's turn, for generate; there is no mask then"},
    {.name = "chat-template",
     .type = CLI_STRING,
     .to = &template_path,
     .arg = "FILE",
     .completes_files = true,
     .needs = {"chat"},
     .help = "use this Jinja template, not the model's"},
    {.name = "date",
     .type = CLI_STRING,
     .to = &date,
     .arg = "YYYY-MM-DD",
     .needs = {"chat"},
     .help = "today, for templates that write it. Without it they write the date they were made with, or "
             "fail"},
    {.name = "context",
     .type = CLI_U64,
     .to = &context,
     .arg = "N",
     .fallback = "0",
     .max = CORPUS_MAX_BATCH,
     .needs = {"!decode"},
     .help = "pack: join all documents and cut them into sequences of N tokens, the last of which may be shorter; 0: "
             "each document is a sequence. With --labels each is one anyway, and is cut to N tokens"},
    {.name = "drop-last",
     .type = CLI_FLAG,
     .to = &drop_last,
     .needs = {"!decode", "context", "!labels"},
     .help = "leave out a last sequence that is shorter"},
    {.name = "bos",
     .type = CLI_CHOICE,
     .to = &bos,
     .arg = "WHEN",
     .choices = "auto|always|never",
     .fallback = "auto",
     .needs = {"!decode"},
     .help = "begin every sequence, packed or not, with the BOS token; auto: if the vocabulary asks for it"},
    {.name = "eos",
     .type = CLI_CHOICE,
     .to = &eos,
     .arg = "WHEN",
     .choices = "auto|always|never",
     .fallback = "auto",
     .needs = {"!decode"},
     .help = "end every document with the EOS token; auto: with --context put one between documents if the vocabulary "
             "has one, without --context if it asks for it"},
    {.name = "no-special",
     .type = CLI_FLAG,
     .to = &no_special,
     .help = "special tokens written in the text (<|endoftext|>) are text; with --decode: are not written"},
    {.name = "no-normalise",
     .type = CLI_FLAG,
     .to = &no_normalise,
     .needs = {"!decode"},
     .help = "take the text as it is where the vocabulary asks for normalisation form C"},
    {.name = "max-tokens",
     .type = CLI_U64,
     .to = &max_tokens,
     .arg = "N",
     .fallback = "0",
     .needs = {"!decode"},
     .help = "stop after N tokens; 0: use all"},
    {.name = "batch-tokens",
     .type = CLI_U64,
     .to = &per_batch,
     .arg = "N",
     .fallback = "8192",
     .min = 1,
     .max = CORPUS_MAX_BATCH,
     .needs = {"!decode"},
     .help = "positions in a batch, the unit in which programs downstream work. No packed sequence is split; a longer "
             "document continues in the next batch"},
    {.name = "decode",
     .type = CLI_FLAG,
     .to = &decode,
     .help = "the input is a token stream, the output its text; documents that were lines end with a line end. To a "
             "terminal without control characters"},
    {0},
};

/* ---- text to tokens ---- */

struct job {
    struct cli *cli;
    struct cli_file *in;
    struct session_chat *chat;
    struct stream_writer *out;
    uint64_t bytes;
    const struct vocab *vocab;
    uint32_t mask;        /* the mask token */
    struct buf masked;    /* u32: tokens and labels of a batch */
    const char **classes; /* names, in meta */
    cJSON *meta;          /* of the model */
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
    const uint32_t *tokens = b->tokens, *labels = b->labels;
    uint64_t n = b->n_positions, n_labels = b->n_seqs - b->continues;
    if (mask_rate > 0) {
        j->masked.len = 0;
        if (buf_reserve(&j->masked, 2 * n * sizeof *tokens, e)) return e->code;
        uint32_t *made = (uint32_t *)j->masked.data;
        corpus_mask_tokens(j->vocab, j->mask, mask_rate, cli_seed(j->cli), b, made, made + n);
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
    int rc = batch_write(j->out, &head, tokens, b->lengths, e);
    if (!rc && b->mask) rc = batch_write_mask(j->out, &head, b->mask, e);
    if (!rc && labels) rc = batch_write_vector(j->out, BATCH_LABELS, DT_U32, labels, n_labels, e);
    return !rc && b->types ? batch_write_vector(j->out, BATCH_TYPES, DT_U8, b->types, n, e) : rc;
}

static int write_meta(struct stream_writer *w, const struct vocab *v, const struct corpus_options *o, struct err *e) {
    cJSON *m = cJSON_CreateObject();
    enum stream_target target = label ? TARGET_SEQUENCE : mask_rate > 0 ? TARGET_MASKED : TARGET_NEXT;
    bool ok = m && json_put_str(m, "kind", stream_kind_name(STREAM_TOKENS)) && corpus_describe(m, v, o);
    if (ok && target != TARGET_NEXT) ok = json_put_str(m, "target", stream_target_name(target));
    if (ok && target == TARGET_MASKED) ok = json_put_f64(m, "mask_rate", mask_rate);
    if (ok && o->n_classes) ok = json_put_u64(m, "classes", o->n_classes);
    int rc = ok ? stream_write_meta(w, m, e) : err_nomem(e, "description");
    cJSON_Delete(m);
    return rc;
}

static int report(struct cli *c, const struct corpus_totals *t, struct err *e) {
    if (t->lost_bytes)
        cli_say(c, "%llu bytes have no token in this vocabulary and were left out", (unsigned long long)t->lost_bytes);
    return corpus_totals_put(cli_report(c), t) ? 0 : err_nomem(e, "report");
}

/* The names of the model's classes, if it has any. */
static int name_classes(struct job *j, struct corpus_options *o, struct err *e) {
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(j->meta, "labels"), *name;
    int n = cJSON_IsArray(list) ? cJSON_GetArraySize(list) : 0;
    if (!label || !n) return 0;
    j->classes = mem_array((size_t)n, sizeof *j->classes, e);
    if (!j->classes) return e->code;
    cJSON_ArrayForEach(name, list) {
        if (!cJSON_IsString(name)) return err_set(e, ERR_DATA, "the model's \"labels\" are no names");
        j->classes[o->n_classes++] = name->valuestring;
    }
    o->classes = j->classes;
    return 0;
}

static int encode(struct cli *c, const struct vocab *v, cJSON *meta, struct err *e) {
    struct job j = {.cli = c, .vocab = v, .meta = meta};
    struct corpus_totals totals = {0};
    struct corpus_options o = {
        .documents = chat    ? CORPUS_CHAT
                     : field ? CORPUS_JSONL
                     : lines ? CORPUS_LINES
                             : CORPUS_WHOLE,
        .field = field,
        .compose = session_chat_compose,
        .mask = chat && !prompt,
        .label = label,
        .pair = pair,
        .context = label ? 0 : (uint32_t)context,
        .longest = label ? (uint32_t)context : 0,
        .drop_last = drop_last,
        .max_tokens = max_tokens,
        .batch_tokens = (uint32_t)per_batch,
        .encode = {.plain_specials = no_special, .no_normalise = no_normalise},
    };
    /* A template writes these itself. */
    corpus_choose_specials(&o, v, chat && !strcmp(bos, "auto") ? "never" : bos,
                           chat && !strcmp(eos, "auto") ? "never" : eos);
    const struct session_chat_options how_chat = {
        .path = template_path, .field = field, .date = date, .add_generation_prompt = prompt};
    int rc = chat ? session_chat_open(&j.chat, c, v, &how_chat, e) : 0;
    o.compose_ctx = j.chat;
    if (!rc && mask_rate > 0) rc = corpus_mask_token(v, &j.mask, e);
    if (!rc) rc = name_classes(&j, &o, e);
    if (!rc) rc = cli_open_file(c, cli_input_path(c, 0), "text", &j.in, e);
    if (!rc) rc = cli_open_output(c, &j.out, e);
    if (!rc) rc = write_meta(j.out, v, &o, e);
    if (!rc) {
        cli_progress_begin(c, "bytes", cli_file_size(j.in));
        rc = corpus_encode(v, &o, read_text, write_batch, &j, &totals, e);
        cli_progress_end(c);
        if (totals.stopped) cli_file_stop(j.in);
        if (rc == ERR_DATA) err_prefix(e, "%s", cli_file_name(j.in));
    }
    session_chat_free(j.chat);
    buf_release(&j.masked);
    mem_free(j.classes);
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

static int decode_stream(struct cli *c, const struct vocab *v, struct err *e) {
    struct session_data in = {0};
    struct corpus_decoding d = {.skip_special = no_special};
    struct batch b = {0};
    struct buf text = {0};
    FILE *out;
    bool more = true;
    int rc = session_open_data(c, cli_input_path(c, 0), "tokens", STREAM_ANY, NULL, &in, e);
    if (!rc) rc = cli_text(c, &out, e);
    if (!rc) rc = session_check_vocab(v, &in, "tokens", e);
    while (!rc && (rc = knowledge_read(in.stream, &in.format, &b, &more, e)) == 0 && more) {
        rc = corpus_decoding(stream_reader_meta(in.stream), &d,
                             e); /* of the batch's segment: each was made in its way */
        if (!rc) rc = decode_batch(c, v, &d, &b, &text, e);
    }
    batch_release(&b);
    buf_release(&text);
    session_data_release(&in);
    return rc;
}

static int run(struct cli *c, struct err *e) {
    struct vocab *v = NULL;
    cJSON *meta = NULL;
    int rc = session_load_vocab(c, &how, &v, &meta, e);
    if (!rc) rc = decode ? decode_stream(c, v, e) : encode(c, v, meta, e);
    vocab_free(v);
    cJSON_Delete(meta);
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
        .stream_needs = "!decode",
        .writes_text = true,
        .threaded = true,
        .seeded = true,
        .seed_needs = {"mask-rate"},
        .description =
            "Writes the text on standard input or in FILE as a token stream, by the vocabulary of a model: byte-level "
            "BPE, with the same tokens as Hugging Face's tokenizers. Invalid UTF-8 is kept; a byte order mark at the "
            "start is not. UTF-16, compressed files and models are refused.\nA document becomes a sequence. With "
            "--context N all documents are joined and cut into sequences of N tokens, what training and perplexity "
            "want: every sequence is as long as the model's context, none is padded. With BOS each of them begins with "
            "it, so a sequence then has N - 1 tokens of text.\nWith --chat the documents are conversations, rendered "
            "by the model's chat template, byte for byte as transformers does. Special tokens in that text are special "
            "tokens, also where a message spells one. The batches get a mask that marks what the assistant says: the "
            "text in the template's {% generation %} blocks or, where it has none, what each assistant message adds to "
            "the conversation before it with its generation prompt. distill trains on the masked tokens alone. BOS and "
            "EOS are the template's, unless --bos or --eos asks for more. A template that uses what Rill does not "
            "know, refuses a conversation, or does not end is an error that names its line.\nModels of the BERT family "
            "learn from tokens that were masked (--mask-rate) or from texts with a class (--labels); the stream then "
            "holds the labels, and teacher-infer, distill and eval follow them.\nInput of any length takes "
            "the same memory, as long as no single word is larger than that.\n--report has the numbers of documents, "
            "sequences and tokens, and the bytes of text that the tokens stand for, which bits per byte divide by.",
        .examples = "rill tokenize -m model.rill --context 512 corpus.txt -o corpus.tok.rill\n"
                    "    the whole file in sequences of 512 tokens\n"
                    "rill tokenize -m model.rill --jsonl text < corpus.jsonl > corpus.tok.rill\n"
                    "    each JSON line's \"text\" is a sequence\n"
                    "rill tokenize -m model.rill --chat --chat-template chat.jinja chats.jsonl -o chats.tok.rill\n"
                    "    conversations, to train on the answers only, by a template for a model without one\n"
                    "rill tokenize -m bert.rill --lines --labels 2 labelled.tsv -o classes.tok.rill\n"
                    "    texts in the first column, classes in the second\n"
                    "rill tokenize -m model.rill --decode < tokens.rill\n"
                    "    the text of a token stream\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
