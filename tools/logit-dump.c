/* rill logit-dump: encodes a teacher's knowledge compactly, or prints some of it as a table. */
#include <stdio.h>
#include <string.h>

#include "lib/session/session.h"

static struct session_options how;
static const char *encode, *positions, *field_dtype;
static struct cli_list drop;
static double temperature;
static bool tsv;
static uint64_t top;

static const struct cli_option options[] = {
    {.name = "encode",
     .type = CLI_STRING,
     .to = &encode,
     .arg = "ENC",
     .suggests = "dense|topk:|ghost:|topp:|sample:",
     .fallback = "sample:50",
     .needs = {"!tsv"},
     .help = "topk:K: the K largest probabilities; topp:P: the fewest that sum to P; ghost:K: topk:K plus one "
             "pseudo-token for all the rest; sample:N: N random draws, an unbiased estimate of the whole distribution; "
             "keep: leave the predictions as they are"},
    {.name = "drop",
     .type = CLI_LIST,
     .to = &drop,
     .arg = "FIELD",
     .needs = {"!tsv"},
     .help = "drop fields by name or pattern (hidden.3, 'attention.*', response)"},
    {.name = "field-dtype",
     .type = CLI_CHOICE,
     .to = &field_dtype,
     .choices = "bf16|int8|f32",
     .needs = {"!tsv"},
     .help = "store tapped fields (teacher-infer --tap) in this type; int8 has one scale per row"},
    {.name = "temperature",
     .type = CLI_F64,
     .to = &temperature,
     .arg = "T",
     .min = 0.01,
     .max = 1000,
     .needs = {"!tsv", "!encode=keep"},
     .help = "temperature of the stored distribution, the only one distill can then use (default: the input's, 1 for "
             "logits)"},
    {.name = "tsv",
     .type = CLI_FLAG,
     .to = &tsv,
     .help = "print a table instead of encoding; for sampled predictions it has frequencies, not probabilities"},
    {.name = "positions",
     .type = CLI_STRING,
     .to = &positions,
     .arg = "FIRST:N",
     .fallback = "0:20",
     .needs = {"tsv"},
     .help = "print N positions, starting with number FIRST of the stream"},
    {.name = "top",
     .type = CLI_U64,
     .to = &top,
     .arg = "K",
     .fallback = "5",
     .min = 1,
     .max = 1000,
     .needs = {"tsv"},
     .help = "entries to print per position"},
    {.name = "model",
     .letter = 'm',
     .type = CLI_STRING,
     .to = &how.model,
     .arg = "MODEL",
     .completes_files = true,
     .needs = {"tsv"},
     .help = "print tokens as text, using this model's vocabulary"},
    {0},
};

struct work {
    struct session_data in;
    struct knowledge_format out;
    struct knowledge_encoder *encoder;
    struct batch batch;
    struct vocab *vocab;
};

/* ---- encoding -------------------------------------------------------------------------------------------------- */

static int choose_response(struct cli *c, struct work *w, struct err *e) {
    if (!strcmp(encode, "keep")) return 0;
    if (knowledge_encoding_parse(encode, &w->out, e)) return e->code;
    if (cli_given(c, "temperature")) w->out.temperature = temperature;
    return knowledge_check_encode(&w->in.format, &w->out, e);
}

static int begin(struct cli *c, struct work *w, struct err *e) {
    struct stream_writer *writer;
    w->out = w->in.format;
    if (choose_response(c, w, e) || session_choose_fields(&drop, field_dtype, &w->out, e) ||
        cli_open_output(c, &writer, e))
        return e->code;
    return knowledge_encoder_open(&w->encoder, writer, stream_reader_meta(w->in.stream), &w->out, cli_seed(c), e);
}

static int report(struct cli *c, struct work *w, struct err *e) {
    struct knowledge_counts n = knowledge_encoder_counts(w->encoder);
    double per_token = n.positions ? (double)n.bytes / (double)n.positions : 0;
    cJSON *o = cli_report(c);
    if (!json_put_u64(o, "positions", n.positions) || !json_put_u64(o, "entries", n.entries) ||
        !json_put_u64(o, "teacher_bytes", n.bytes) || !json_put_f64(o, "teacher_bytes_per_token", per_token))
        return err_nomem(e, "report");
    if (cli_verbose(c)) cli_say(c, "%llu positions, %.1f bytes each", (unsigned long long)n.positions, per_token);
    return 0;
}

static int encode_stream(struct cli *c, struct work *w, struct err *e) {
    bool more;
    if (begin(c, w, e)) return e->code;
    cli_progress_begin(c, "tokens", 0);
    while (true) {
        if (knowledge_read(w->in.stream, &w->in.format, &w->batch, &more, e)) return e->code;
        if (!more) break;
        if (knowledge_encoder_batch(w->encoder, &w->in.format, &w->batch, e))
            return err_prefix(e, "%s", stream_reader_name(w->in.stream));
        cli_progress(c, knowledge_encoder_counts(w->encoder).positions, NULL);
    }
    if (knowledge_encoder_end(w->encoder, e) || report(c, w, e)) return e->code;
    cli_progress_end(c);
    return cli_close_output(c, e);
}

/* ---- a table ----------------------------------------------------------------------------------------------------- */

static int load_vocab(struct cli *c, struct work *w, struct err *e) {
    if (!how.model) return 0;
    int rc = session_load_vocab(c, &how, &w->vocab, NULL, e);
    if (!rc) rc = session_check_vocab(w->vocab, &w->in, "knowledge", e);
    if (!rc) knowledge_cut_padding(&w->in.format, w->vocab->n_unpadded); /* for dense knowledge only */
    return rc;
}

static int spell(void *ctx, uint32_t id, struct buf *out, struct err *e) {
    const struct vocab *v = ctx;
    if (id >= v->n_tokens || !v->tokens[id].n_bytes) return buf_printf(out, e, "?");
    return vocab_spell(v, id, out, e);
}

/* Parses "FIRST:N". */
static int parse_positions(uint64_t *first, uint64_t *n, struct err *e) {
    char copy[64];
    snprintf(copy, sizeof copy, "%s", positions);
    char *colon = strchr(copy, ':');
    if (colon) *colon++ = 0;
    if (!colon || strlen(positions) >= sizeof copy || !parse_u64(copy, first) || !parse_u64(colon, n))
        return err_set(e, ERR_USAGE, "--positions %s: expected FIRST:N", positions);
    return 0;
}

static int print_table(struct cli *c, struct work *w, struct err *e) {
    uint64_t first, n;
    FILE *out;
    if (parse_positions(&first, &n, e) || load_vocab(c, w, e) || cli_text(c, &out, e)) return e->code;
    struct knowledge_tsv t = {.top = (uint32_t)top, .spell = w->vocab ? spell : NULL, .ctx = w->vocab};
    return knowledge_tsv_print(&t, w->in.stream, &w->in.format, first, n, out, e);
}

/* ---- the program ------------------------------------------------------------------------------------------------- */

static int run(struct cli *c, struct err *e) {
    struct work w = {0};
    int rc = session_open_data(c, cli_input_path(c, 0), "knowledge", STREAM_KNOWLEDGE, NULL, &w.in, e);
    if (!rc) rc = tsv ? print_table(c, &w, e) : encode_stream(c, &w, e);
    knowledge_encoder_free(w.encoder);
    batch_release(&w.batch);
    session_data_release(&w.in);
    vocab_free(w.vocab);
    return rc;
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "logit-dump",
        .summary = "compress a teacher's predictions, or print some of them",
        .operands = "[KNOWLEDGE]",
        .max_operands = 1,
        .reads_stdin = true,
        .writes_stream = true,
        .stream_needs = "!tsv",
        .seeded = true,
        .seed_needs = {"encode=sample:N", "!tsv"},
        .threaded = true,
        .description =
            "Reads the dense output of teacher-infer and keeps what a student needs of each position. Random draws "
            "(sample:N) are unbiased: on average the student learns the whole distribution, at about 2 bytes per "
            "distinct token drawn. Keeping only the largest probabilities (topk:K) teaches a truncated distribution; "
            "ghost:K corrects most of that error.\n\nFields recorded by teacher-infer --tap are passed on, except "
            "those named by --drop. Predictions in topk:K or ghost:K can later be reduced to fewer entries or "
            "converted into each other. The output does not depend on how the input is split into batches, nor on -j.",
        .examples =
            "rill logit-dump --encode keep --drop 'attention.*' --field-dtype int8 < tapped.kd.rill > s.kd.rill\n"
            "    the same predictions with fewer fields, in a quarter of the bytes of f32\n"
            "rill logit-dump --encode sample:50 --temperature 2 < dense.kd.rill > corpus.kd.rill\n"
            "    50 draws per position from the teacher at temperature 2\n"
            "rill logit-dump --tsv -m teacher.rill corpus.kd.rill --positions 100:10\n"
            "    what the teacher expects after positions 100 to 109\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
