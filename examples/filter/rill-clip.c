/*
 * rill clip: clips outliers in a model's matrices. A template for filters: copy it, and change what is between the two
 * lines.
 */
#include <fnmatch.h>
#include <math.h>

#include "lib/cli/cli.h"

static double sigmas;
static const char *glob;

/* The option table: --help, the manual page, completion and the checks are derived from it. */
static const struct cli_option options[] = {
    {.name = "sigmas",
     .type = CLI_F64,
     .to = &sigmas,
     .arg = "N",
     .fallback = "4",
     .min = 0.1,
     .max = 1000,
     .help = "move what is further from the tensor's mean than N standard deviations to there"},
    {.name = "tensor",
     .type = CLI_STRING,
     .to = &glob,
     .arg = "GLOB",
     .fallback = "*.weight",
     .help = "of these tensors"},
    {0},
};

/* ---- the filter -------------------------------------------------------------------------------------------------- */

static uint64_t clip(float *x, uint64_t n) {
    double sum = 0, squares = 0;
    uint64_t clipped = 0;
    for (uint64_t i = 0; i < n; i++) sum += (double)x[i], squares += (double)x[i] * (double)x[i];
    double mean = sum / (double)n, far = sigmas * sqrt(fmax(0, squares / (double)n - mean * mean));
    for (uint64_t i = 0; i < n; i++) {
        double to = fmin(fmax((double)x[i], mean - far), mean + far);
        clipped += to != (double)x[i];
        x[i] = (float)to;
    }
    return clipped;
}

/* Clips one tensor, in memory as f32, and writes it in its original type. */
static int clip_tensor(struct stream_reader *in, struct stream_writer *out, const struct stream_item *item,
                       struct buf *data, uint64_t *clipped, struct err *e) {
    const struct tensor_desc d = item->desc;
    uint64_t n = tensor_elems(&d);
    float *x = mem_array(n, sizeof *x, e);
    data->len = 0;
    int rc = x ? stream_load_tensor(in, data, e) : e->code;
    if (!rc) {
        tensor_to_f32(d.dtype, data->data, x, n);
        *clipped += clip(x, n);
        rc = tensor_from_f32_checked(d.dtype, x, data->data, n, NULL, e);
        if (rc) err_prefix(e, "tensor '%s'", d.name);
    }
    if (!rc) rc = stream_write_tensor(out, &d, item->attrs, data->data, e);
    mem_free(x);
    return rc;
}

/* ------------------------------------------------------------------------------------------------------------------ */

static int run(struct cli *c, struct err *e) {
    struct stream_reader *in;
    struct stream_writer *out;
    struct stream_item item = {0};
    struct buf data = {0};
    uint64_t tensors = 0, clipped = 0;
    int rc = cli_open_stream(c, cli_input_path(c, 0), "model", STREAM_MODEL, &in, e);
    if (!rc) rc = cli_open_output(c, &out, e);
    while (!rc && !(rc = stream_next(in, &item, e)) && item.type != ITEM_EOF) {
        bool ours =
            item.type == ITEM_TENSOR && dtype_info(item.desc.dtype)->is_float && !fnmatch(glob, item.desc.name, 0);
        if (ours)
            rc = clip_tensor(in, out, &item, &data, &clipped, e);
        else if (item.type != ITEM_PROV && item.type != ITEM_SEGMENT_END) /* cli_close_output writes both */
            rc = stream_forward(in, out, &item, e);
        tensors += ours;
    }
    if (!rc && !tensors) rc = err_set(e, ERR_USAGE, "--tensor '%s': no tensor of floating point has such a name", glob);
    if (!rc) rc = cli_close_output(c, e); /* writes the provenance and the end record that completes the stream */
    if (!rc)
        cli_say(c, "%llu values of %llu tensors pulled in", (unsigned long long)clipped, (unsigned long long)tensors);
    if (!rc && !json_put_u64(cli_report(c), "clipped", clipped)) rc = err_nomem(e, "report");
    buf_release(&data);
    return rc;
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "clip",
        .summary = "pull outliers of a model's weights in",
        .operands = "[MODEL]",
        .max_operands = 1,
        .reads_stdin = true,
        .writes_stream = true,
        .description =
            "Moves weights that are far from the mean of their tensor nearer to it, before they are quantized.",
        .examples =
            "rill clip --sigmas 3 < model.rill > clipped.rill\n    everything within three standard deviations\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
