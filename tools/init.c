/* rill init: makes an untrained student with random weights and the vocabulary of another model. */
#include "lib/cli/cli.h"
#include "lib/formats/formats.h"

static uint64_t layers, hidden, heads, kv_heads, head_dim, ffn, context, rotary_dims, window, window_pattern;
static double theta, eps;
static const char *arch, *mup;
static bool untied;

static const struct cli_option options[] = {
    {.name = "layers",
     .type = CLI_U64,
     .to = &layers,
     .arg = "N",
     .required = true,
     .min = 1,
     .max = MODEL_MAX_LAYERS,
     .help = "number of layers"},
    {.name = "hidden",
     .type = CLI_U64,
     .to = &hidden,
     .arg = "N",
     .required = true,
     .min = 1,
     .max = MODEL_MAX_DIM,
     .help = "width of the residual stream"},
    {.name = "heads",
     .type = CLI_U64,
     .to = &heads,
     .arg = "N",
     .required = true,
     .min = 1,
     .max = MODEL_MAX_DIM,
     .help = "attention heads of a layer"},
    {.name = "kv-heads",
     .type = CLI_U64,
     .to = &kv_heads,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_DIM,
     .help = "key/value heads of a layer; 0: as many as heads"},
    {.name = "head-dim",
     .type = CLI_U64,
     .to = &head_dim,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_DIM,
     .help = "width of a head; 0: hidden / heads"},
    {.name = "ffn",
     .type = CLI_U64,
     .to = &ffn,
     .arg = "N",
     .required = true,
     .min = 1,
     .max = MODEL_MAX_DIM,
     .help = "width of the feed-forward part"},
    {.name = "context",
     .type = CLI_U64,
     .to = &context,
     .arg = "N",
     .fallback = "2048",
     .min = 2,
     .max = UINT32_MAX,
     .help = "longest sequence"},
    {.name = "arch",
     .type = CLI_STRING,
     .to = &arch,
     .arg = "NAME",
     .fallback = "llama",
     .help = "architecture, one of those that help architectures lists; an encoder gets a masked-LM head"},
    {.name = "rope-theta",
     .type = CLI_F64,
     .to = &theta,
     .arg = "X",
     .fallback = "10000",
     .min = 1,
     .max = 1e12,
     .help = "base of the rotary frequencies"},
    {.name = "rotary-dims",
     .type = CLI_U64,
     .to = &rotary_dims,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_DIM,
     .help =
         "how many dimensions of a head rotate, the first ones; 0: as the architecture has it, a quarter in gpt_neox, "
         "half in phi, all in others"},
    {.name = "window",
     .type = CLI_U64,
     .to = &window,
     .arg = "N",
     .fallback = "0",
     .max = UINT32_MAX,
     .help = "positions that attention sees, its own included; 0: all before it"},
    {.name = "window-pattern",
     .type = CLI_U64,
     .to = &window_pattern,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_LAYERS,
     .needs = {"window"},
     .help = "every N-th layer sees all positions all the same; 1: all have the window; 0: as the architecture has it, "
             "2 in "
             "gemma2, 6 in gemma3, 1 in others"},
    {.name = "norm-eps",
     .type = CLI_F64,
     .to = &eps,
     .arg = "X",
     .fallback = "1e-05",
     .min = 0,
     .max = 0.1,
     .help = "epsilon of the norms (distilbert's is 1e-12 unless this is given)"},
    {.name = "untied", .type = CLI_FLAG, .to = &untied, .help = "a separate output matrix instead of the embedding"},
    {.name = "mup",
     .type = CLI_STRING,
     .to = &mup,
     .arg = "BASE",
     .completes_files = true,
     .help =
         "scale initial weights by how much wider this student is than the model BASE (muP, Yang et al. 2022), whose "
         "depth and vocabulary it should share: with distill --mup, a learning rate tuned on BASE then serves this "
         "student"},
    {0},
};

/* Options that the architecture has no place for. */
static int check_options(const struct cli *c, const struct model_config *config, struct err *e) {
    if (config->positions != POSITIONS_ROTARY && cli_given(c, "rope-theta"))
        return err_set(e, ERR_USAGE, "--rope-theta has no effect with --arch %s, which learns its positions", arch);
    if (config->positions != POSITIONS_ROTARY && rotary_dims)
        return err_set(e, ERR_USAGE, "--rotary-dims has no effect with --arch %s, which learns its positions", arch);
    return 0;
}

static void set_windows(struct model_config *config) {
    uint64_t n = window_pattern ? window_pattern : arch_window_pattern(arch);
    for (uint32_t i = 0; i < config->n_layers; i++)
        config->layers[i].window = n > 1 && (i + 1) % n == 0 ? 0 : (uint32_t)window;
}

static int configure(const struct cli *c, struct model_config *config, const struct model_head *like, struct arena *a,
                     struct err *e) {
    if (!kv_heads) kv_heads = heads;
    if (!head_dim && hidden % heads)
        return err_set(e, ERR_USAGE, "hidden size %llu is not a multiple of %llu heads: give --head-dim",
                       (unsigned long long)hidden, (unsigned long long)heads);
    if (arch_traits(arch, config, e)) return e->code = ERR_USAGE;
    if (check_options(c, config, e)) return e->code;
    config->n_layers = (uint32_t)layers;
    config->hidden = (uint32_t)hidden;
    config->context = (uint32_t)context;
    config->head_dim = (uint32_t)(head_dim ? head_dim : hidden / heads);
    config->tied = !untied && config->output != OUTPUT_NONE;
    config->vocab_size = like->config.vocab_size;
    if (config->norm_eps == 0 || cli_given(c, "norm-eps")) config->norm_eps = (float)eps;
    if (config->positions == POSITIONS_ROTARY) config->rope.theta = theta, config->rope.dims = (uint32_t)rotary_dims;
    config->layers = arena_array(a, layers, sizeof *config->layers, e);
    if (!config->layers) return e->code;
    for (uint32_t i = 0; i < layers; i++)
        config->layers[i] =
            (struct model_layer){.n_heads = (uint32_t)heads, .n_kv_heads = (uint32_t)kv_heads, .ffn = (uint32_t)ffn};
    set_windows(config);
    arch_complete(config);
    return model_config_check(config, e) ? e->code = ERR_USAGE : 0; /* it is the user's configuration, not a file's */
}

/* The widths of the base. */
static int read_base(struct cli *c, struct model_mup *base, struct err *e) {
    struct stream_reader *r;
    struct model_head head = {0};
    struct stream_item item;
    if (!mup) return 0;
    int rc = cli_open_stream(c, mup, "mup", STREAM_MODEL, &r, e);
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
    if (!rc) rc = configure(c, &config, &like, &a, e);
    if (!rc) rc = read_base(c, &base, e);
    if (!rc) target_warnings(NULL, &config, say, c);
    if (!rc) model_row_warnings(NULL, NULL, &config, say, c);
    if (!rc) rc = cli_open_output(c, &out, e);
    if (!rc) rc = model_init_mup(&m, &config, mup ? &base : NULL, like.vocab.data, like.vocab.len, cli_seed(c), e);
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
        .summary = "a fresh model with random weights and another model's vocabulary",
        .operands = "[MODEL]",
        .max_operands = 1,
        .reads_stdin = true,
        .writes_stream = true,
        .seeded = true,
        .description = "Makes a student of any shape for distill, with the vocabulary of the model that is read (its "
                       "teacher). Matrices are "
                       "normal with deviation 0.02, those that write to the residual stream divided by the root of "
                       "twice the number of layers, "
                       "as in GPT-2.",
        .examples = "rill init --layers 2 --hidden 64 --heads 4 --kv-heads 2 --ffn 128 model.rill -o student.rill\n"
                    "    a small student for model.rill\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
