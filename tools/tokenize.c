/* rill tokenize: encodes text as tokens, or decodes tokens with --decode. */
#include <string.h>

#include "lib/session/session.h"

static struct session_options how;
static struct session_corpus o;
static const char *packing;
static bool chat, lines, no_special, decode;
static uint64_t context, pack, per_batch;

static const struct cli_option options[] = {
    SESSION_MODEL(how, "FILE", true, "the model whose tokenizer to use"),
    {.name = "lines",
     .type = CLI_FLAG,
     .to = &lines,
     .needs = {"!decode", "!jsonl"},
     .help =
         "each line is a document, without its line ending (LF or CR LF); empty lines are skipped. Without --lines, "
         "--jsonl or --separator each file is a document, line endings included"},
    {.name = "jsonl",
     .type = CLI_STRING,
     .to = &o.corpus.field,
     .arg = "FIELD",
     .needs = {"!decode", "!lines"},
     .help = "each line is a JSON object whose string member FIELD is a document"},
    {.name = "separator",
     .type = CLI_STRING,
     .to = &o.corpus.separator,
     .arg = "LINE",
     .needs = {"!decode", "!jsonl", "!lines", "!chat"},
     .help =
         "documents are separated by lines that read LINE, such as <|endoftext|>; the line, and the line end before "
         "it, belong to no document"},
    {.name = "labels",
     .type = CLI_STRING,
     .to = &o.corpus.label,
     .arg = "FIELD",
     .needs = {"lines|jsonl", "!chat", "!decode"},
     .help =
         "read a class for each text, given as a number or, if the model names its classes, as a name. With --jsonl "
         "it is the member FIELD of the object; with --lines it is the tab-separated column number FIELD, counted "
         "from 1, and the text is column 1"},
    {.name = "pair",
     .type = CLI_STRING,
     .to = &o.corpus.pair,
     .arg = "FIELD",
     .needs = {"labels"},
     .help = "read a second text from FIELD (as for --labels); both become one sequence, with a separator and token "
             "types"},
    {.name = "tags",
     .type = CLI_STRING,
     .to = &o.corpus.tags,
     .arg = "FIELD",
     .needs = {"jsonl", "!labels", "!chat", "!decode"},
     .help =
         "for token classification (named entities): the --jsonl FIELD holds a list of words, and this FIELD a list "
         "of as many classes, numbers or names, null for none. The first token of a word gets the class, its other "
         "tokens none"},
    {.name = "mask-rate",
     .type = CLI_F64,
     .to = &o.mask_rate,
     .arg = "RATE",
     .min = 0.001,
     .max = 1,
     .needs = {"!decode", "!labels", "!tags", "!chat"},
     .help = "for masked language models: share of tokens to predict (BERT: 0.15); 80% of them become the mask token, "
             "10% a random token, and 10% stay as they are; --seed decides which"},
    {.name = "chat",
     .type = CLI_FLAG,
     .to = &chat,
     .needs = {"!decode", "!lines", "!no-special"},
     .help = "each line is a conversation in JSON: a list of messages, or an object with the list in \"messages\" (or "
             "in the FIELD of --jsonl) and, if any, \"tools\", \"documents\" and \"chat_template_kwargs\"; the model's "
             "chat template renders it"},
    {.name = "add-generation-prompt",
     .type = CLI_FLAG,
     .to = &o.chat.add_generation_prompt,
     .needs = {"chat"},
     .help = "end with the opening of the assistant's turn, as generate needs it; there is no mask then"},
    {.name = "chat-template",
     .type = CLI_STRING,
     .to = &o.chat.path,
     .arg = "FILE",
     .completes_files = true,
     .needs = {"chat"},
     .help = "use this Jinja template instead of the model's own"},
    {.name = "date",
     .type = CLI_STRING,
     .to = &o.chat.date,
     .arg = "YYYY-MM-DD",
     .needs = {"chat"},
     .help = "today's date for templates that print it; without it they print the date they were made with, or fail"},
    {.name = "context",
     .type = CLI_U64,
     .to = &context,
     .arg = "N",
     .fallback = "0",
     .max = CORPUS_MAX_BATCH,
     .needs = {"!decode"},
     .help =
         "join all documents and cut them into sequences of N tokens (the last may be shorter); 0: one sequence per "
         "document. With --labels or --tags documents are not joined, only cut to N tokens"},
    {.name = "pack",
     .type = CLI_U64,
     .to = &pack,
     .arg = "N",
     .min = 1,
     .max = CORPUS_MAX_BATCH,
     .needs = {"!decode", "!context", "!labels", "!tags"},
     .help =
         "one sequence per document (several if it is longer than N tokens), ordered so that neighbouring sequences "
         "fill packs of N tokens, which distill processes in one pass. Attention, positions and loss stay inside "
         "each sequence"},
    {.name = "packing",
     .type = CLI_CHOICE,
     .to = &packing,
     .arg = "HOW",
     .choices = "best-fit|next-fit",
     .fallback = "best-fit",
     .needs = {"pack"},
     .help = "best-fit: longest documents first, each into the fullest pack it fits in, 4 million tokens at a time; "
             "next-fit: documents keep their order, and packs are less full"},
    {.name = "drop-last",
     .type = CLI_FLAG,
     .to = &o.corpus.drop_last,
     .needs = {"!decode", "context", "!labels", "!tags"},
     .help = "drop the last sequence if it is shorter than N"},
    {.name = "bos",
     .type = CLI_CHOICE,
     .to = &o.bos,
     .arg = "WHEN",
     .choices = "auto|always|never",
     .fallback = "auto",
     .needs = {"!decode"},
     .help = "begin every sequence, packed or not, with the BOS token; auto: if the tokenizer does"},
    {.name = "eos",
     .type = CLI_CHOICE,
     .to = &o.eos,
     .arg = "WHEN",
     .choices = "auto|always|never",
     .fallback = "auto",
     .needs = {"!decode"},
     .help =
         "end every document with the EOS token; auto: with --context between documents and with --pack after each, "
         "if there is an EOS token; otherwise only if the tokenizer does"},
    {.name = "no-special",
     .type = CLI_FLAG,
     .to = &no_special,
     .help =
         "treat special tokens spelled in the text (<|endoftext|>) as plain text; with --decode, do not print them"},
    {.name = "no-normalise",
     .type = CLI_FLAG,
     .to = &o.corpus.encode.no_normalise,
     .needs = {"!decode"},
     .help = "skip the Unicode NFC normalization that the tokenizer asks for"},
    {.name = "max-tokens",
     .type = CLI_U64,
     .to = &o.corpus.max_tokens,
     .arg = "N",
     .fallback = "0",
     .needs = {"!decode"},
     .help = "stop after N tokens; 0: no limit"},
    {.name = "batch-tokens",
     .type = CLI_U64,
     .to = &per_batch,
     .arg = "N",
     .fallback = "8192",
     .min = 1,
     .max = CORPUS_MAX_BATCH,
     .needs = {"!decode"},
     .help = "positions per batch, the unit in which other programs read the stream. Packed sequences are never split; "
             "a longer document continues in the next batch"},
    {.name = "decode",
     .type = CLI_FLAG,
     .to = &decode,
     .help =
         "read a token stream and print its text; documents that were lines end with a line end. Control characters "
         "are escaped on a terminal"},
    {0},
};

/* Checks the options for the text, and converts them to corpus options. */
static int read_options(struct err *e) {
    struct corpus_options *t = &o.corpus;
    if (t->separator && (!*t->separator || strpbrk(t->separator, "\r\n")))
        return err_set(e, ERR_USAGE, "--separator: a line that is not empty");
    t->documents = chat           ? CORPUS_CHAT
                   : t->field     ? CORPUS_JSONL
                   : lines        ? CORPUS_LINES
                   : t->separator ? CORPUS_SEPARATED
                                  : CORPUS_WHOLE;
    *(t->label || t->tags ? &t->longest : &t->context) = (uint32_t)context;
    t->pack = (uint32_t)pack;
    t->packing = strcmp(packing, "best-fit") ? PACKING_NEXT_FIT : PACKING_BEST_FIT;
    t->batch_tokens = (uint32_t)per_batch;
    t->encode.plain_specials = no_special;
    o.chat.field = t->field;
    return 0;
}

static int run(struct cli *c, struct err *e) {
    struct vocab *v = NULL;
    cJSON *meta = NULL;
    if (decode && cli_operands(c) > 1) return err_set(e, ERR_USAGE, "--decode takes one file");
    if (read_options(e)) return e->code;
    int rc = session_load_vocab(c, &how, &v, &meta, e);
    if (!rc) rc = decode ? session_detokenize(c, v, no_special, e) : session_tokenize(c, v, meta, &o, e);
    vocab_free(v);
    cJSON_Delete(meta);
    return rc;
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "tokenize",
        .summary = "turn text into tokens, or tokens into text",
        .operands = "[FILE...]",
        .max_operands = -1,
        .reads_stdin = true,
        .writes_stream = true,
        .stream_needs = "!decode",
        .writes_text = true,
        .threaded = true,
        .seeded = true,
        .seed_needs = {"mask-rate"},
        .description =
            "Encodes text, from standard input or files, with the tokenizer of a model, and writes a token stream. The "
            "tokens are those that Hugging Face's tokenizers give. Invalid UTF-8 is kept; a byte order mark at the "
            "start is dropped. UTF-16, compressed files and model files are refused.\n\nEach document becomes one "
            "sequence; attention, positions and loss never cross the end of a sequence, in any program. With --context "
            "N all documents are joined and cut into sequences of N tokens, as perplexity over windows needs it; a "
            "sequence may then hold the end of one document and the beginning of the next. With --pack N documents are "
            "never joined, and a document of up to N tokens is never cut (\"Fewer Truncations Improve Language "
            "Modeling\", 2024). If the tokenizer adds a BOS token, every sequence begins with it, and N includes "
            "it.\n\nWith --chat each document is a conversation, rendered with the model's chat template, byte for "
            "byte as transformers renders it. Special tokens are recognized anywhere in the rendered text, even where "
            "a message spells one out. The batches carry a mask that marks what the assistant says: the text in the "
            "template's {% generation %} blocks or, if it has none, what each assistant message adds to the "
            "conversation before it plus the generation prompt. distill trains on the marked tokens only. BOS and EOS "
            "come from the template, unless --bos or --eos adds them. It is an error, which names the line of the "
            "template, if a template uses something Rill does not know, refuses a conversation, or does not "
            "terminate.\n\nModels of the BERT family learn from masked tokens (--mask-rate), from labelled texts "
            "(--labels) or from labelled words (--tags); the stream then holds the labels, and teacher-infer, distill "
            "and eval use them.\n\nMemory does not grow with the input, only with its longest single word.\n\n--report "
            "gives the numbers of documents, sequences and tokens, and the bytes of text that were encoded, by which "
            "bits per byte are computed.",
        .examples = "rill tokenize -m model.rill --context 512 corpus.txt -o corpus.tok.rill\n"
                    "    the whole file, in sequences of 512 tokens\n"
                    "rill tokenize -m model.rill --separator '<|endoftext|>' --pack 512 corpus.txt -o packed.tok.rill\n"
                    "    separated documents, each whole, in packs of 512 tokens for distill --micro-tokens 512\n"
                    "rill tokenize -m model.rill --jsonl text < corpus.jsonl > corpus.tok.rill\n"
                    "    the \"text\" of each JSON line is a sequence\n"
                    "rill tokenize -m model.rill --chat --chat-template chat.jinja chats.jsonl -o chats.tok.rill\n"
                    "    conversations, to train on the answers only, with a template for a model that has none\n"
                    "rill tokenize -m bert.rill --lines --labels 2 labelled.tsv -o classes.tok.rill\n"
                    "    texts in the first column, classes in the second\n"
                    "rill tokenize -m tags.rill --jsonl words --tags tags tagged.jsonl -o tags.tok.rill\n"
                    "    {\"words\": [\"U.N.\", \"official\"], \"tags\": [3, 0]} in each line\n"
                    "rill tokenize -m model.rill --decode < tokens.rill\n"
                    "    print the text of a token stream\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
