/* rill realign: translates knowledge from the tokens of one tokenizer to those of the student's. */
#include <string.h>

#include "lib/align/align.h"
#include "lib/session/session.h"

static struct session_options how, teaching = {.role = "teacher"};
static const char *tokens;
static uint64_t entries;

static const struct cli_option options[] = {
    SESSION_MODEL(how, "STUDENT", true, "a model with the student's tokenizer"),
    {.name = "teacher",
     .type = CLI_STRING,
     .to = &teaching.model,
     .arg = "MODEL",
     .required = true,
     .completes_files = true,
     .help = "a model with the tokenizer the predictions were made with"},
    {.name = "tokens",
     .type = CLI_STRING,
     .to = &tokens,
     .arg = "TOKENS",
     .completes_files = true,
     .help = "the same text tokenized for the student (tokenize --lines), with the same sequences; if not given, the "
             "teacher's text is decoded and encoded anew"},
    {.name = "entries",
     .type = CLI_U64,
     .to = &entries,
     .arg = "K",
     .fallback = "50",
     .min = 1,
     .max = KNOWLEDGE_MAX_N,
     .help = "keep the K most probable tokens per position"},
    {0},
};

struct work {
    struct cli *c;
    struct vocab *student, *teacher;
    struct session_data in, given;
    struct knowledge_format out;
    struct knowledge_encoder *encoder;
    struct align *align;
};

static int load(struct work *w, struct err *e) {
    if (session_load_vocab(w->c, &how, &w->student, NULL, e) ||
        session_load_vocab(w->c, &teaching, &w->teacher, NULL, e) ||
        session_open_data(w->c, cli_input_path(w->c, 0), "knowledge", STREAM_KNOWLEDGE, NULL, &w->in, e) ||
        session_check_vocab(w->teacher, &w->in, "knowledge", e))
        return e->code;
    knowledge_cut_padding(&w->in.format, w->teacher->n_unpadded);
    if (!tokens) return 0;
    if (session_open_data(w->c, tokens, "tokens", STREAM_TOKENS, NULL, &w->given, e)) return e->code;
    return session_check_vocab(w->student, &w->given, "tokens", e);
}

static int begin(struct work *w, struct err *e) {
    struct stream_writer *writer;
    struct align_options o = {w->teacher, w->student, &w->in.format, (uint32_t)entries};
    if (align_format(&o, &w->out, e)) return err_prefix(e, "%s", stream_reader_name(w->in.stream));
    const cJSON *meta = tokens ? stream_reader_meta(w->given.stream) : NULL;
    if (cli_open_output(w->c, &writer, e) || knowledge_encoder_open(&w->encoder, writer, meta, &w->out, 0, e))
        return e->code;
    return align_new(&w->align, &o, e);
}

static void show(void *ctx) {
    const struct work *w = ctx;
    cli_progress(w->c, align_counts(w->align).positions, NULL);
}

static int report(struct work *w, struct err *e) {
    struct align_counts n = align_counts(w->align);
    double aligned = n.positions ? (double)n.aligned / (double)n.positions : 0;
    double mass = n.aligned ? n.mass / (double)n.aligned : 0;
    double known = n.labels ? (double)n.labels_known / (double)n.labels : 0;
    cJSON *o = cli_report(w->c);
    if (!json_put_u64(o, "teacher_tokens", n.teacher_tokens) || !json_put_u64(o, "mapped_tokens", n.mapped) ||
        !json_put_u64(o, "begun_tokens", n.begun) || !json_put_u64(o, "positions", n.positions) ||
        !json_put_u64(o, "aligned", n.aligned) || !json_put_f64(o, "aligned_share", aligned) ||
        !json_put_f64(o, "mass", mass) || !json_put_u64(o, "labels", n.labels) ||
        !json_put_u64(o, "labels_known", n.labels_known) || !json_put_u64(o, "labels_chained", n.chained))
        return err_nomem(e, "report");
    cli_say(
        w->c,
        "%.1f%% of %llu positions aligned; there %.1f%% of the probability has a token of the student, and %.1f%% of "
        "the labels are known",
        100 * aligned, (unsigned long long)n.positions, 100 * mass, 100 * known);
    return 0;
}

static int realign(struct work *w, struct err *e) {
    if (load(w, e) || begin(w, e)) return e->code;
    cli_progress_begin(w->c, "tokens", 0);
    struct align_tokens given = {w->given.stream, &w->given.format};
    if (align_read(w->align, w->in.stream, tokens ? &given : NULL, w->encoder, show, w, e)) return e->code;
    cli_progress_end(w->c);
    if (knowledge_encoder_end(w->encoder, e) || report(w, e)) return e->code;
    return cli_close_output(w->c, e);
}

static int run(struct cli *c, struct err *e) {
    struct work w = {.c = c};
    int rc = realign(&w, e);
    align_free(w.align);
    knowledge_encoder_free(w.encoder);
    session_data_release(&w.in);
    session_data_release(&w.given);
    vocab_free(w.student);
    vocab_free(w.teacher);
    return rc;
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "realign",
        .summary = "translate a teacher's predictions to the student's tokenizer",
        .operands = "[KNOWLEDGE]",
        .max_operands = 1,
        .reads_stdin = true,
        .writes_stream = true,
        .threaded = true,
        .description =
            "Aligns both tokenizations of a text by their bytes. Where a teacher token and a student token end at the "
            "same byte, the teacher's next-token distribution is translated: each token becomes the student token with "
            "the same bytes, or else the first of the student tokens that spell it; if the teacher needs several "
            "tokens for the student's actual next token, that token gets the product of their probabilities. The "
            "result is ghost:K knowledge (see logit-dump) over the student's tokens, for all losses of distill, uld "
            "included. A position where no teacher token ends has no prediction; its label still counts.\n\nThe input "
            "may be dense, topk, topp or ghost; sample is refused, because draws do not tell how much probability is "
            "left. The texts must be identical byte for byte, apart from a leading space; the first difference is "
            "reported. The shares of positions and of probability that could be aligned are printed, and are in "
            "--report.",
        .examples = "rill realign -m student.rill --teacher teacher.rill dense.kd.rill > student.kd.rill\n"
                    "    the student's tokens are made from the teacher's text\n"
                    "rill realign -m student.rill --teacher teacher.rill --tokens tokens.rill dense.kd.rill -o s.rill\n"
                    "    the student's tokens as given, with their masks and sequences\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
