/* rill mix: mixes the predictions of several teachers for the same tokens. */
#include <stdio.h>
#include <string.h>

#include "lib/session/session.h"

#define MAX_TEACHERS 64

static const char *weights, *mean;
static double temperature;

static const struct cli_option options[] = {
    {.name = "weights",
     .type = CLI_STRING,
     .to = &weights,
     .arg = "W,W,...",
     .help = "weight of each teacher, in the order of the operands; only ratios matter (default: equal). Sampled "
             "predictions take none: each teacher weighs as many draws as it has"},
    {.name = "mean",
     .type = CLI_CHOICE,
     .to = &mean,
     .choices = "arithmetic|geometric",
     .fallback = "arithmetic",
     .help = "arithmetic: mean of probabilities; geometric: mean of log-probabilities, for dense predictions only"},
    {.name = "temperature",
     .type = CLI_F64,
     .to = &temperature,
     .arg = "T",
     .min = 0.01,
     .max = 1000,
     .help = "temperature of the mixed distributions; only dense predictions can change it (default: the inputs')"},
    {0},
};

struct work {
    struct session_data data[MAX_TEACHERS];
    struct knowledge_mix_input in[MAX_TEACHERS];
    size_t n;
    struct knowledge_mixture how;
    struct knowledge_format out;
    struct knowledge_encoder *encoder;
    struct knowledge_mixer *mixer;
};

static int parse_weights(struct work *w, struct err *e) {
    char copy[1024];
    size_t i = 0;
    snprintf(copy, sizeof copy, "%s", weights);
    for (char *at = copy, *next; at; at = next, i++) {
        if ((next = strchr(at, ','))) *next++ = 0;
        double v;
        if (!parse_f64(at, &v) || !(v > 0 && v <= 1e9))
            return err_set(e, ERR_USAGE, "--weights %s: \"%s\" is not a number above 0", weights, at);
        if (i < w->n) w->in[i].weight = v;
    }
    if (i == w->n && strlen(weights) < sizeof copy) return 0;
    return err_set(e, ERR_USAGE, "--weights %s: %zu weights of %zu teachers", weights, i, w->n);
}

static int open_inputs(struct cli *c, struct work *w, struct err *e) {
    w->n = cli_operands(c);
    if (w->n > MAX_TEACHERS) return err_set(e, ERR_USAGE, "%zu teachers: at most %d can be mixed", w->n, MAX_TEACHERS);
    for (size_t i = 0; i < w->n; i++) w->in[i].weight = 1;
    if (weights && parse_weights(w, e)) return e->code;
    for (size_t i = 0; i < w->n; i++) {
        struct session_data *d = &w->data[i];
        if (session_open_data(c, cli_operand(c, i), "knowledge", STREAM_KNOWLEDGE, NULL, d, e)) return e->code;
        w->in[i].r = d->stream;
        w->in[i].format = &d->format;
    }
    return 0;
}

static int begin(struct cli *c, struct work *w, struct err *e) {
    struct stream_writer *writer;
    size_t bad;
    w->how.mean = strcmp(mean, "geometric") ? MEAN_ARITHMETIC : MEAN_GEOMETRIC;
    w->how.temperature = cli_given(c, "temperature") ? temperature : 0;
    if (open_inputs(c, w, e)) return e->code;
    if (knowledge_mix_format(&w->how, w->in, w->n, &w->out, &bad, e))
        return err_prefix(e, "%s", stream_reader_name(w->in[bad].r));
    if (cli_open_output(c, &writer, e) ||
        knowledge_encoder_open(&w->encoder, writer, stream_reader_meta(w->in[0].r), &w->out, 0, e))
        return e->code;
    return knowledge_mixer_new(&w->mixer, &w->how, w->in, w->n, &w->out, e);
}

static int report(struct cli *c, struct work *w, struct err *e) {
    struct knowledge_counts n = knowledge_encoder_counts(w->encoder);
    uint64_t without_common = knowledge_mixer_counts(w->mixer).without_common;
    char name[64];
    cJSON *o = cli_report(c);
    if (!json_put_u64(o, "teachers", w->n) ||
        !json_put_str(o, "encoding", knowledge_encoding_text(&w->out, name, sizeof name)) ||
        !json_put_u64(o, "positions", n.positions) || !json_put_u64(o, "entries", n.entries) ||
        !json_put_u64(o, "teacher_bytes", n.bytes) || !json_put_u64(o, "without_common_entry", without_common))
        return err_nomem(e, "report");
    if (without_common)
        cli_say(c, "%llu of %llu positions have no token that all teachers name, and teach nothing",
                (unsigned long long)without_common, (unsigned long long)n.positions);
    return 0;
}

static int mix(struct cli *c, struct work *w, struct err *e) {
    bool more = true;
    if (begin(c, w, e)) return e->code;
    cli_progress_begin(c, "tokens", 0);
    while (more) {
        if (knowledge_mixer_step(w->mixer, w->encoder, &more, e)) return e->code;
        cli_progress(c, knowledge_mixer_counts(w->mixer).positions, NULL);
    }
    if (knowledge_encoder_end(w->encoder, e) || report(c, w, e)) return e->code;
    cli_progress_end(c);
    return cli_close_output(c, e);
}

static int run(struct cli *c, struct err *e) {
    struct work *w = mem_zalloc(sizeof *w, e);
    if (!w) return e->code;
    int rc = mix(c, w, e);
    knowledge_mixer_free(w->mixer);
    knowledge_encoder_free(w->encoder);
    for (size_t i = 0; i < w->n && i < MAX_TEACHERS; i++) session_data_release(&w->data[i]);
    mem_free(w);
    return rc;
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "mix",
        .summary = "average the predictions of several teachers",
        .operands = "KNOWLEDGE KNOWLEDGE...",
        .min_operands = 2,
        .max_operands = -1,
        .writes_stream = true,
        .threaded = true,
        .description =
            "Reads the predictions of several teachers for the same tokens side by side, and writes the weighted mean "
            "of their distributions. One of the inputs may be standard input (-). All must have the same vocabulary, "
            "encoding and temperature.\n\n  dense       arithmetic or geometric mean of all probabilities\n  "
            "ghost       exact, for the tokens that all teachers list\n  topk, topp  for the tokens that any teacher "
            "lists, taking 0 where one does not: the loss kl then\n              gets the mean of the gradients for "
            "each teacher; eval, which needs exact\n              probabilities, refuses them\n  sample      draws are "
            "pooled, an unbiased estimate of the mixture: 100 and 50 draws weigh 2 to 1\n\nDifferent encodings are "
            "refused: encode the dense predictions alike (logit-dump), or mix before encoding. Fields of --tap are "
            "refused too, since their mean has no meaning.",
        .examples = "rill mix dense.kd.rill dense2.kd.rill | rill logit-dump --encode sample:50 > corpus.kd.rill\n"
                    "    50 draws per position from the mean of two teachers\n"
                    "rill mix --weights 2,1 --mean geometric dense.kd.rill dense2.kd.rill > mixed.kd.rill\n"
                    "    the first teacher counts twice\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
