/* rill init: makes an untrained student with random weights and the vocabulary of another model. */
#include "lib/cli/cli.h"
#include "lib/formats/formats.h"
#include "lib/model/model.h"

static struct arch_shape shape = {.norm_eps = -1};
static const char *mup;

static const struct cli_option options[] = {
    {.name = "layers",
     .type = CLI_U64,
     .to = &shape.layers,
     .arg = "N",
     .required = true,
     .min = 1,
     .max = MODEL_MAX_LAYERS,
     .help = "number of layers"},
    {.name = "hidden",
     .type = CLI_U64,
     .to = &shape.hidden,
     .arg = "N",
     .required = true,
     .min = 1,
     .max = MODEL_MAX_DIM,
     .help = "width of the residual stream; of a bilstm, of both directions together"},
    {.name = "embed",
     .type = CLI_U64,
     .to = &shape.embed,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_DIM,
     .help = "embedding width of a bilstm; 0: hidden"},
    {.name = "copy-embed",
     .type = CLI_FLAG,
     .to = &shape.copy_embed,
     .help = "start from the embedding of MODEL; a bilstm takes its embedding width from there"},
    {.name = "heads",
     .type = CLI_U64,
     .to = &shape.heads,
     .arg = "N",
     .min = 1,
     .max = MODEL_MAX_DIM,
     .help = "attention heads per layer; required if the architecture has attention"},
    {.name = "kv-heads",
     .type = CLI_U64,
     .to = &shape.kv_heads,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_DIM,
     .help = "key/value heads per layer; 0: as many as heads"},
    {.name = "head-dim",
     .type = CLI_U64,
     .to = &shape.head_dim,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_DIM,
     .help = "width of a head; 0: hidden / heads"},
    {.name = "ffn",
     .type = CLI_U64,
     .to = &shape.ffn,
     .arg = "N",
     .min = 1,
     .max = MODEL_MAX_DIM,
     .help =
         "width of the feed-forward layers, or of each expert in a mixture of experts; required if the architecture "
         "has them"},
    {.name = "experts",
     .type = CLI_U64,
     .to = &shape.experts,
     .arg = "N",
     .min = 1,
     .max = MODEL_MAX_EXPERTS,
     .help = "experts per layer in a mixture of experts; 8 if not given"},
    {.name = "experts-per-token",
     .type = CLI_U64,
     .to = &shape.experts_per_token,
     .arg = "N",
     .min = 1,
     .max = MODEL_MAX_EXPERTS,
     .help = "experts that each token is routed to; 2 if not given"},
    {.name = "context",
     .type = CLI_U64,
     .to = &shape.context,
     .arg = "N",
     .fallback = "2048",
     .min = 2,
     .max = UINT32_MAX,
     .help = "longest sequence, in tokens"},
    {.name = "arch",
     .type = CLI_STRING,
     .to = &shape.arch,
     .arg = "NAME",
     .fallback = "llama",
     .help =
         "architecture, as `rill help architectures` lists them; encoders get a masked-LM head, a bilstm a sequence "
         "classifier"},
    {.name = "classes",
     .type = CLI_U64,
     .to = &shape.classes,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_DIM,
     .help = "number of classes of a bilstm; 0: the classes of MODEL, with their names"},
    {.name = "rope-theta",
     .type = CLI_F64,
     .to = &shape.rope_theta,
     .arg = "X",
     .min = 1,
     .max = 1e12,
     .help = "base of the rotary frequencies; 10000 if not given"},
    {.name = "rotary-dims",
     .type = CLI_U64,
     .to = &shape.rotary_dims,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_DIM,
     .help = "how many dimensions of each head are rotated (the first ones); 0: as the architecture defaults to: a "
             "quarter in gpt_neox, half in phi, all in others"},
    {.name = "window",
     .type = CLI_U64,
     .to = &shape.window,
     .arg = "N",
     .fallback = "0",
     .max = UINT32_MAX,
     .help = "sliding attention window, in positions, the current one included; 0: no window"},
    {.name = "window-pattern",
     .type = CLI_U64,
     .to = &shape.window_pattern,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_LAYERS,
     .needs = {"window"},
     .help = "every N-th layer attends without the window; 1: all layers have the window; 0: as the architecture "
             "defaults to: 2 in gemma2, 6 in gemma3, 1 in others"},
    {.name = "norm-eps",
     .type = CLI_F64,
     .to = &shape.norm_eps,
     .arg = "X",
     .min = 0,
     .max = 0.1,
     .help = "epsilon of the norms; if not given, 1e-05, in distilbert 1e-12"},
    {.name = "untied",
     .type = CLI_FLAG,
     .to = &shape.untied,
     .help = "add a separate output matrix instead of tying it to the embedding"},
    {.name = "mup",
     .type = CLI_STRING,
     .to = &mup,
     .arg = "BASE",
     .completes_files = true,
     .help = "scale the initial weights by how much wider this student is than the model BASE (muP, Yang et al. 2022), "
             "which should have the same depth and vocabulary; with distill --mup, a learning rate tuned on BASE then "
             "works for this student"},
    {0},
};

/* Reads the widths of the base model. A student that does not support muP is rejected before anything is printed. */
static int read_base(struct cli *c, const struct model_config *config, struct model_mup *base, struct err *e) {
    struct stream_reader *r;
    struct model_head head = {0};
    struct stream_item item;
    if (!mup) return 0;
    int rc = model_mup_check(config, e);
    if (!rc) rc = cli_open_stream(c, mup, "mup", STREAM_MODEL, &r, e);
    if (!rc) rc = model_head_read(r, &head, &item, e);
    if (!rc) model_mup_of(&head.config, base);
    model_head_release(&head);
    return rc;
}

static void say(void *c, const char *message) {
    cli_say(c, "%s", message);
}

static int run(struct cli *c, struct err *e) {
    struct stream_reader *in;
    struct stream_writer *out;
    struct model_head like = {0};
    struct model_config config;
    struct stream_item item;
    struct model *m = NULL;
    struct model_mup base;
    struct arena a = {0};
    int rc = cli_open_stream(c, cli_input_path(c, 0), "vocabulary", STREAM_MODEL, &in, e);
    if (!rc) rc = model_head_read(in, &like, &item, e);
    if (!rc) rc = arch_new_config(&shape, &like.config, &config, &a, e);
    if (!rc) rc = read_base(c, &config, &base, e);
    if (!rc) target_warnings(NULL, &config, say, c);
    if (!rc) model_row_warnings(NULL, NULL, &config, say, c);
    if (!rc) rc = cli_open_output(c, &out, e);
    const struct model_mup *widths = mup ? &base : NULL;
    if (!rc) rc = model_init_mup(&m, kernel_cpu(), &config, widths, like.vocab.data, like.vocab.len, cli_seed(c), e);
    if (!rc && shape.copy_embed) rc = model_copy_embedding(m, in, &like.config, &item, e);
    if (!rc) rc = arch_copy_labels(m->meta, &config, &like, e);
    if (!rc) rc = model_save(m, out, DT_F32, e);
    if (!rc) rc = cli_close_output(c, e);
    if (!rc) {
        cli_say(c, "%.2f M parameters, vocabulary of %u", (double)model_parameters(&config) / 1e6, config.vocab_size);
        if (!json_put_u64(cli_report(c), "parameters", model_parameters(&config))) rc = err_nomem(e, "report");
    }
    model_free(m);
    model_head_release(&like);
    arena_release(&a);
    return rc;
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "init",
        .summary = "create a model with random weights and another model's vocabulary",
        .operands = "[MODEL]",
        .max_operands = 1,
        .reads_stdin = true,
        .writes_stream = true,
        .seeded = true,
        .description =
            "Creates a student of any shape for distill. It gets the vocabulary of MODEL, usually its teacher.\n\n"
            "Matrices are drawn from a normal distribution with standard deviation 0.02; those that write to the "
            "residual stream are divided by the square root of twice the number of layers, as in GPT-2. A bilstm is an "
            "embedding, bidirectional LSTM layers whose final states are concatenated, a dense layer with ReLU and a "
            "classifier; its weights are initialized as PyTorch does.",
        .examples = "rill init --layers 2 --hidden 64 --heads 4 --kv-heads 2 --ffn 128 model.rill -o student.rill\n"
                    "    a small student of model.rill\n"
                    "rill init --arch bilstm --layers 1 --hidden 64 --embed 32 classes.rill -o student.rill\n"
                    "    a bidirectional LSTM that will learn from the classifier classes.rill\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
