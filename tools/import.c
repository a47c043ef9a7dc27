/* rill import: converts a Hugging Face or llama.cpp model to a model stream. */
#include "lib/cli/cli.h"
#include "lib/formats/formats.h"

static const char *dtype_name, *tokenizer, *fetch;
static bool no_tokenizer;

static const struct cli_option options[] = {
    {.name = "dtype",
     .type = CLI_CHOICE,
     .to = &dtype_name,
     .arg = "TYPE",
     .choices = "keep|f32|f16|bf16",
     .fallback = "keep",
     .help = "convert all tensors to this type; keep: leave them as the source has them, quantized blocks included"},
    {.name = "tokenizer",
     .type = CLI_STRING,
     .to = &tokenizer,
     .arg = "FILE",
     .completes_files = true,
     .needs = {"!no-tokenizer"},
     .help = "use this tokenizer.json (or vocab.json), and the files beside it, instead of the source's own tokenizer"},
    {.name = "no-tokenizer",
     .type = CLI_FLAG,
     .to = &no_tokenizer,
     .help = "leave the tokenizer out, for instance because it is not supported"},
    {.name = "fetch",
     .type = CLI_STRING,
     .to = &fetch,
     .arg = "COMMAND",
     .help =
         "get shards that the folder's index names, but that are not there, by this shell command: it writes the file "
         "whose name is in $FILE to its standard output. Only one is on disk at a time, in TMPDIR"},
    {0},
};

static int fetch_shard(void *ctx, const char *name, int fd, struct err *e) {
    cli_say(ctx, "fetching %s", name);
    return cli_shell(fetch, "FILE", name, fd, e) ? err_prefix(e, "--fetch") : 0;
}

static void show(void *ctx, size_t done, size_t total) {
    (void)total;
    cli_progress(ctx, done, NULL);
}

static int run(struct cli *c, struct err *e) {
    const struct foreign_options o = {
        .no_tokenizer = no_tokenizer, .tokenizer = tokenizer, .fetch = fetch ? fetch_shard : NULL, .fetch_ctx = c};
    const struct dtype_info *type = dtype_by_name(dtype_name); /* NULL: keep */
    const char *path = cli_operand(c, 0);
    struct foreign_model *f = NULL;
    struct stream_writer *out;
    int rc = foreign_open(&f, path, &o, e);
    if (!rc) rc = cli_open_output(c, &out, e);
    if (!rc) {
        cli_progress_begin(c, "tensors", model_slot_count(&f->config));
        rc = foreign_write(f, out, type ? type->dtype : 0, show, c, e);
        cli_progress_end(c);
    }
    if (!rc) rc = cli_note_input(c, path, f->format, foreign_digest(f), e); /* now all shards have been read */
    if (!rc && !json_put_u64(cli_report(c), "parameters", model_parameters(&f->config))) rc = err_nomem(e, "report");
    if (!rc)
        log_line(LOG_INFO, "%s: %s, %u layers, %.1f M parameters, vocabulary of %u%s", path, f->config.arch,
                 f->config.n_layers, (double)model_parameters(&f->config) / 1e6, f->config.vocab_size,
                 f->vocab ? "" : " (no tokenizer)");
    if (!rc) rc = cli_close_output(c, e);
    foreign_close(f);
    return rc;
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "import",
        .summary = "read a Hugging Face folder, a .safetensors or a .gguf file",
        .operands = "PATH",
        .min_operands = 1,
        .max_operands = 1,
        .writes_stream = true,
        .description =
            "PATH is a Hugging Face folder (config.json, model.safetensors or its shards with their index, "
            "tokenizer.json), a single .safetensors file with its config.json beside it, or a GGUF file of llama.cpp; "
            "of a split GGUF, name the first part (-00001-of-). `rill help architectures` lists the supported "
            "architectures. Tokenizers: byte-level BPE, SentencePiece (BPE and unigram) and WordPiece.\n\nEvery file "
            "of the folder that defines tokens is read, as transformers does; files that contradict each other are an "
            "error.\n\nA model larger than the disk: with --fetch the folder needs no more than the index and the "
            "small files. A "
            "shard is fetched when the next tensor is in it, after the one before it is gone; in the order of layers, "
            "as "
            "transformers saves them, each once. A layer's tensors that lie in two shards are copied "
            "meanwhile.\n\nAnything that is not supported is refused by name, because a model that is almost right "
            "would "
            "be silently wrong.",
        .examples = "rill import ./SmolLM2-135M > teacher.rill\n"
                    "    a Hugging Face folder; tensors keep their types\n"
                    "rill import --dtype bf16 model.gguf -o model.rill\n"
                    "    a GGUF file, dequantized\n"
                    "rill import --fetch 'cat sharded/$FILE' ./shards > teacher.rill\n"
                    "    shards from elsewhere, one at a time: ssh HOST cat, or curl -fsS URL/$FILE\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
