/* rill export: converts a model stream to a format that llama.cpp, Hugging Face or NumPy load. */
#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/cli/cli.h"
#include "lib/formats/formats.h"
#include "lib/stats/stats.h"

static const char *to, *dtype_name, *tensor, *name;
static uint64_t split_size; /* 0: one file */

static const struct cli_option options[] = {
    {.name = "to",
     .type = CLI_CHOICE,
     .to = &to,
     .arg = "FORMAT",
     .choices = "gguf|safetensors|npy|imatrix",
     .required = true,
     .help =
         "gguf: one file for llama.cpp. safetensors: a folder for Hugging Face transformers. npy: a folder with one "
         "file per tensor. imatrix: an importance matrix for llama-quantize"},
    {.name = "dtype",
     .type = CLI_CHOICE,
     .to = &dtype_name,
     .arg = "TYPE",
     .choices = "keep|f32|f16|bf16",
     .fallback = "keep",
     .needs = {"to=safetensors"},
     .help = "convert all tensors to this type; keep: leave them as they are, except that quantized ones become f32"},
    {.name = "tensor",
     .type = CLI_STRING,
     .to = &tensor,
     .arg = "NAME",
     .needs = {"to=npy"},
     .help = "write only this tensor, to standard output or to the file of -o"},
    {.name = "name",
     .type = CLI_STRING,
     .to = &name,
     .arg = "NAME",
     .needs = {"to=gguf"},
     .help = "model name to store in the file; default: the name found at import"},
    {.name = "split-size",
     .type = CLI_U64,
     .to = &split_size,
     .arg = "BYTES",
     .min = 1,
     .max = 0x1p50,
     .needs = {"to=gguf"},
     .help = "write a folder of parts such as model-00001-of-00003.gguf, as llama-gguf-split does, each with at most "
             "this many bytes of tensors, or with a single tensor that is larger; K, M and G are powers of 1024"},
    {0},
};

static bool makes_folder(void) {
    return split_size || strcmp(to, "safetensors") == 0 || (strcmp(to, "npy") == 0 && !tensor);
}

static int check_usage(struct cli *c, struct err *e) {
    if (!makes_folder() || cli_output_path(c)) return 0;
    if (split_size) return err_set(e, ERR_USAGE, "--split-size writes a folder: name it with -o");
    return err_set(e, ERR_USAGE, "--to %s writes a folder: name it with -o", to);
}

static unsigned dtype_wanted(void) {
    const struct dtype_info *type = dtype_by_name(dtype_name); /* NULL: keep */
    return type ? type->dtype : 0;
}

static int write_file(struct cli *c, struct stream_map *m, struct err *e) {
    int fd;
    if (cli_binary(c, &fd, e)) return e->code;
    return tensor ? npy_export(m, tensor, fd, e) : gguf_export(m, fd, name, e);
}

static int write_folder(struct cli *c, struct stream_map *m, struct err *e) {
    if (strcmp(to, "npy") == 0) return npy_export_all(m, cli_output_path(c), e);
    if (split_size) return gguf_export_parts(m, cli_output_path(c), split_size, name, e);
    return safetensors_export(m, cli_output_path(c), dtype_wanted(), e);
}

/* A model from a pipe: writes its tensors as they arrive. */
static int write_arriving(struct cli *c, struct err *e) {
    struct stream_reader *in;
    int fd;
    if (cli_open_stream(c, cli_input_path(c, 0), "model", STREAM_MODEL, &in, e)) return e->code;
    if (strcmp(to, "safetensors") == 0) return safetensors_export_stream(in, cli_output_path(c), dtype_wanted(), e);
    if (split_size) return gguf_export_stream_parts(in, cli_output_path(c), split_size, name, e);
    return cli_binary(c, &fd, e) ? e->code : gguf_export_stream(in, fd, name, e);
}

/* Copies a pipe on stdin to an unnamed temporary file, which allows random access and disappears with the process. */
static int spool_stdin(struct err *e) {
    static char block[1 << 20];
    int fd;
    if (out_scratch(&fd, e)) return e->code;
    int rc = 0;
    for (ssize_t n = 1; n && !rc;) {
        n = fd_read(STDIN_FILENO, block, sizeof block);
        if (n < 0)
            rc = err_sys(e, errno, "standard input");
        else if (!fd_write(fd, block, (size_t)n))
            rc = err_sys(e, errno, "temporary copy of standard input (TMPDIR)");
    }
    if (!rc && dup2(fd, STDIN_FILENO) < 0) rc = err_sys(e, errno, "standard input");
    close(fd);
    return rc;
}

static const double *sums_of(void *ctx, struct model_slot s, uint64_t *cols, double *positions) {
    return stats_input_sq(ctx, s, cols, positions);
}

static int write_imatrix(struct cli *c, struct err *e) {
    struct stream_reader *in;
    struct stats *s = NULL;
    int fd, rc = cli_open_stream(c, cli_input_path(c, 0), "stats", STREAM_STATS, &in, e);
    if (!rc) rc = stats_load(&s, in, NULL, e);
    if (!rc) rc = cli_binary(c, &fd, e);
    if (!rc) rc = imatrix_write(stats_config(s), sums_of, s, stats_positions(s), stats_sequences(s), fd, e);
    stats_free(s);
    return rc;
}

static int run(struct cli *c, struct err *e) {
    if (strcmp(to, "imatrix") == 0) return write_imatrix(c, e);
    bool npy = strcmp(to, "npy") == 0, file = cli_is_file(cli_input_path(c, 0));
    enum stream_kind kind = npy ? STREAM_ANY : STREAM_MODEL;
    struct stream_map *m;
    int rc = check_usage(c, e);
    if (!rc && !file && !npy) return write_arriving(c, e);
    if (!rc && !file && strcmp(cli_input_path(c, 0), "-") == 0) rc = spool_stdin(e);
    if (!rc) rc = cli_open_map(c, cli_input_path(c, 0), "model", kind, &m, e);
    if (rc) return rc;
    return makes_folder() ? write_folder(c, m, e) : write_file(c, m, e);
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "export",
        .summary = "write files for llama.cpp, Hugging Face or NumPy",
        .operands = "[MODEL]",
        .max_operands = 1,
        .reads_stdin = true,
        .writes_text = true,
        .makes_folder = makes_folder,
        .description =
            "Reads a file in place. From a pipe, the tensors of a model go straight to their places in the result, "
            "which "
            "can be larger than memory. Where that is not possible (the result goes to a pipe, too; --to npy; the "
            "architecture phi3 as a GGUF), the model is copied first to a temporary file in TMPDIR (or /tmp).\n\nAn "
            "output folder must not exist yet, not even with --force, and appears complete or not at "
            "all. Hugging Face's config.json cannot describe a model whose layers differ in shape, as pruning may "
            "leave them; GGUF can: it becomes the architecture deci, which llama.cpp runs as a llama with a shape for "
            "each layer.\n\n--to imatrix converts statistics, as rill calibrate writes them, instead of a model.",
        .examples = "rill export --to gguf model.rill -o model.gguf\n"
                    "    for llama.cpp\n"
                    "rill export --to gguf --split-size 2G model.rill -o ./model-gguf\n"
                    "    for llama.cpp, in several parts\n"
                    "rill export --to safetensors --dtype bf16 -o ./model-hf < model.rill\n"
                    "    for transformers\n"
                    "rill export --to npy --tensor norm.weight model.rill > norm.npy\n"
                    "    one tensor, for NumPy\n"
                    "rill export --to imatrix model.stats.rill -o model.imatrix.gguf\n"
                    "    an importance matrix, for llama-quantize\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
