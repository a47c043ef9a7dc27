/* rill tokenize: encodes text as tokens, or decodes tokens with --decode. */
#include <string.h>

#include "lib/session/session.h"

static struct session_options how;
static struct session_corpus o;
static const char *packing;
static bool chat, lines, no_special, decode;
static uint64_t context, pack, per_batch;

static const struct cli_option options[] = {
    SESSION_MODEL(how, "FILE", true, "the model stream whose vocabulary to use"),
    {.name = "lines",
     .type = CLI_FLAG,
     .to = &lines,
     .needs = {"!decode", "!jsonl"},
     .help = "each line is a document, without its line end, LF or CR LF; empty lines are ignored. Without this, "
             "--jsonl or --separator each file is a document, line ends as they are"},
    {.name = "jsonl",
     .type = CLI_STRING,
     .to = &o.corpus.field,
     .arg = "FIELD",
     .needs = {"!decode", "!lines"},
     .help = "each line is a JSON object, and the string FIELD in it a document"},
    {.name = "separator",
     .type = CLI_STRING,
     .to = &o.corpus.separator,
     .arg = "LINE",
     .needs = {"!decode", "!jsonl", "!lines", "!chat"},
     .help = "a line that is LINE, as <|endoftext|>, stands between documents; it is in none of them, nor is the line "
             "end before it"},
    {.name = "labels",
     .type = CLI_STRING,
     .to = &o.corpus.label,
     .arg = "FIELD",
     .needs = {"lines|jsonl", "!chat", "!decode"},
     .help =
         "each line is a text to classify, and has its class: the number of a class or, where the model has names for "
         "them, a name. With --jsonl the member FIELD of the object; with --lines the tab-separated column of that "
         "number, from 1; the text is the first"},
    {.name = "pair",
     .type = CLI_STRING,
     .to = &o.corpus.pair,
     .arg = "FIELD",
     .needs = {"labels"},
     .help =
         "where a second text is, named as the label is: both become one sequence, with a separator and token types"},
    {.name = "tags",
     .type = CLI_STRING,
     .to = &o.corpus.tags,
     .arg = "FIELD",
     .needs = {"jsonl", "!labels", "!chat", "!decode"},
     .help = "for models that tag tokens (named entities): the FIELD of --jsonl is a list of words, and this "
             "one a list of as many classes, numbers or names, null for none. The first token of a word gets "
             "the class, the others none"},
    {.name = "mask-rate",
     .type = CLI_F64,
     .to = &o.mask_rate,
     .arg = "RATE",
     .min = 0.001,
     .max = 1,
     .needs = {"!decode", "!labels", "!tags", "!chat"},
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
     .to = &o.chat.add_generation_prompt,
     .needs = {"chat"},
     .help = "end with the opening of the assistant's turn, for generate; there is no mask then"},
    {.name = "chat-template",
     .type = CLI_STRING,
     .to = &o.chat.path,
     .arg = "FILE",
     .completes_files = true,
     .needs = {"chat"},
     .help = "use this Jinja template, not the model's"},
    {.name = "date",
     .type = CLI_STRING,
     .to = &o.chat.date,
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
             "each document is a sequence. With --labels or --tags each is one anyway, and is cut to N tokens"},
    {.name = "pack",
     .type = CLI_U64,
     .to = &pack,
     .arg = "N",
     .min = 1,
     .max = CORPUS_MAX_BATCH,
     .needs = {"!decode", "!context", "!labels", "!tags"},
     .help = "each document is a sequence, one of more than N tokens several, and sequences are ordered so that those "
             "next to each other fill packs of N, of which distill makes its passes. Attention, positions and loss "
             "stay inside each"},
    {.name = "packing",
     .type = CLI_CHOICE,
     .to = &packing,
     .arg = "HOW",
     .choices = "best-fit|next-fit",
     .fallback = "best-fit",
     .needs = {"pack"},
     .help = "best-fit: the longest first, each into the pack with the least space that takes it, 4 million tokens at "
             "a time; next-fit: documents keep their order, and packs have more space left"},
    {.name = "drop-last",
     .type = CLI_FLAG,
     .to = &o.corpus.drop_last,
     .needs = {"!decode", "context", "!labels", "!tags"},
     .help = "leave out a last sequence that is shorter"},
    {.name = "bos",
     .type = CLI_CHOICE,
     .to = &o.bos,
     .arg = "WHEN",
     .choices = "auto|always|never",
     .fallback = "auto",
     .needs = {"!decode"},
     .help = "begin every sequence, packed or not, with the BOS token; auto: if the vocabulary asks for it"},
    {.name = "eos",
     .type = CLI_CHOICE,
     .to = &o.eos,
     .arg = "WHEN",
     .choices = "auto|always|never",
     .fallback = "auto",
     .needs = {"!decode"},
     .help =
         "end every document with the EOS token; auto: with --pack if the vocabulary has one, with --context put one "
         "between documents if it has one, without either if it asks for it"},
    {.name = "no-special",
     .type = CLI_FLAG,
     .to = &no_special,
     .help = "special tokens written in the text (<|endoftext|>) are text; with --decode: are not written"},
    {.name = "no-normalise",
     .type = CLI_FLAG,
     .to = &o.corpus.encode.no_normalise,
     .needs = {"!decode"},
     .help = "take the text as it is where the vocabulary asks for normalisation form C"},
    {.name = "max-tokens",
     .type = CLI_U64,
     .to = &o.corpus.max_tokens,
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
     .help = "the input is a token stream, the output its text; documents that were lines end with a line "
             "end. On a terminal control characters are escaped"},
    {0},
};

/* What the options say of the text. */
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
        .summary = "text to tokens, and back",
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
            "Writes the text on standard input or in files as a token stream, by the vocabulary of a model: "
            "byte-level BPE, with the same tokens as Hugging Face's tokenizers. Invalid UTF-8 is kept; a "
            "byte order mark at the start is not. UTF-16, compressed files and models are refused.\nA "
            "document becomes a sequence, what a model sees at one time: every program keeps attention, "
            "positions and loss inside it. With --context N all documents are joined and cut into sequences "
            "of N tokens, as perplexity by windows needs it; a sequence then has the end of one document and "
            "the beginning of the next. With --pack N no document is joined with another, and none of up to "
            "N tokens is cut (\"Fewer truncations improve language modeling\", 2024). If the vocabulary has "
            "a BOS token that it puts in front, each sequence begins with it, and N counts it.\nWith --chat "
            "the documents are conversations, rendered by the model's chat template, byte for byte as "
            "transformers does. Special tokens written in that text are taken as such, even where a message "
            "spells one. The batches get a mask that marks what the assistant says: the text in the "
            "template's {% generation %} blocks or, where it has none, what each assistant message adds to "
            "the conversation before it with its generation prompt. distill trains on the masked tokens "
            "alone. BOS and EOS are the template's, unless --bos or --eos asks for more. A template that "
            "uses what Rill does not know, refuses a conversation, or does not end is an error that names "
            "its line.\nModels of the BERT family learn from tokens that were masked (--mask-rate), from "
            "texts with a class (--labels) or words with one (--tags); the stream then holds the labels, and "
            "teacher-infer, distill and eval follow them.\nInput of any length takes the same memory, as "
            "long as no single word is larger than that.\n--report has the numbers of documents, sequences "
            "and tokens, and the bytes of text that the tokens stand for, which bits per byte divide by.",
        .examples = "rill tokenize -m model.rill --context 512 corpus.txt -o corpus.tok.rill\n"
                    "    the whole file in sequences of 512 tokens\n"
                    "rill tokenize -m model.rill --separator '<|endoftext|>' --pack 512 corpus.txt -o packed.tok.rill\n"
                    "    what such lines separate, whole, in packs of 512 tokens for distill --micro-tokens 512\n"
                    "rill tokenize -m model.rill --jsonl text < corpus.jsonl > corpus.tok.rill\n"
                    "    each JSON line's \"text\" is a sequence\n"
                    "rill tokenize -m model.rill --chat --chat-template chat.jinja chats.jsonl -o chats.tok.rill\n"
                    "    conversations, to train on the answers only, by a template for a model without one\n"
                    "rill tokenize -m bert.rill --lines --labels 2 labelled.tsv -o classes.tok.rill\n"
                    "    texts in the first column, classes in the second\n"
                    "rill tokenize -m tags.rill --jsonl words --tags tags tagged.jsonl -o tags.tok.rill\n"
                    "    {\"words\": [\"U.N.\", \"official\"], \"tags\": [3, 0]} in each line\n"
                    "rill tokenize -m model.rill --decode < tokens.rill\n"
                    "    the text of a token stream\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
