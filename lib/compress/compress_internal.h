/* Private to lib/compress. Order of files as on this page; each calls only earlier ones. */
#ifndef RILL_COMPRESS_INTERNAL_H
#define RILL_COMPRESS_INTERNAL_H

#include "lib/compress/compress.h"
#include "lib/formats/formats.h"

/* ---- files.c ------------------------------------------------------------------------------------------------------ */

/* Reads a whole file of at most 1 GiB. ERR_IO, ERR_DATA: larger. */
int compress_read_whole(struct cli *c, const char *path, const char *role, struct buf *bytes, struct err *e) MUST_CHECK;
/* Reads the text of a plan and ends it with a zero byte. Errors as above; ERR_DATA: not a text file. */
int compress_read_plan(struct cli *c, const char *path, struct buf *text, struct err *e) MUST_CHECK;

/* ---- calibration.c ----------------------------------------------------------------------------------------------- */

/* The file of --stats: statistics from rill calibrate or llama.cpp's importance matrix. Exactly one is set, owned by
 * this. */
struct compress_calibration {
    struct stats *stats;
    struct imatrix *imatrix;
};
int compress_read_calibration(struct compress_calibration *out, struct cli *c, const char *path,
                              struct err *e) MUST_CHECK;
void compress_calibration_release(struct compress_calibration *x);
struct prune_importance
compress_squares(const struct compress_calibration *x); /* from the importance matrix, if there is one */
/* Sets and returns ERR_DATA: `path` is an importance matrix and lacks `what`, which `use` needs. */
int compress_imatrix_lacks(const char *path, const char *what, const char *use, struct err *e);

/* ---- a run of quantizing ----------------------------------------------------------------------------------------- */

struct compress {
    struct cli *c;
    const struct compress_quantize_options *o;
    struct session_file model;
    struct stream_reader *in; /* first reading of the model */
    struct quant_options how; /* for lib/quant; points to the fields below */
    struct compress_calibration of;
    cJSON *origin; /* description of `of` for META */
    struct quant_rule *rules;
    struct buf plan; /* a string: read from a file, or made for a target */
    uint64_t done;   /* finished tensors, for the progress bar */
    struct quant_summary sum;
    struct buf layers; /* struct compress_layer: outside layers, then each layer */
};

/* ---- data.c ------------------------------------------------------------------------------------------------------ */

/* Shows `done` of the units that cli_progress_begin named. A model_layer_fn whose context is the struct cli. */
void compress_advance(void *cli, uint32_t done);

/* What is needed to change a model layer by layer. */
struct compress_data {
    struct model_layerwise *model; /* in WEIGHTS_F32 */
    struct grad_tape *scratch;     /* a tape that does not record */
    struct session_tokens tokens;
};
/* Loads the model from `in`, which is at its beginning, and the tokens at path; NULL: none. Start with {0}; call
 * compress_data_release even on failure. */
int compress_data_open(struct compress_data *d, struct cli *c, struct stream_reader *in, const char *path,
                       uint64_t max_tokens, const struct session_options *how, struct err *e) MUST_CHECK;
void compress_data_release(struct compress_data *d);

/* Opens the model for a first of two readings; call session_file_release(own) after success. ERR_USAGE: it is not a
 * file, and the option `why` needs two readings. */
int compress_open_first(const struct session_file *model, const char *why, struct session_file *own,
                        struct stream_reader **in, struct err *e) MUST_CHECK;

/* A whole model for comparison with modified copies of itself; it is read again later to be pruned or quantized. */
struct compress_judged {
    struct model *model;
    struct grad_tape *scratch; /* does not record; in the precision of the options */
    struct session_tokens tokens;
};
/* Loads the model by compress_open_first and the tokens at `data`. Start with {0}; call compress_judged_release even on
 * failure. */
int compress_judged_open(struct compress_judged *j, struct cli *c, const struct session_file *model, const char *why,
                         const char *data, uint64_t limit, const struct session_options *how,
                         enum model_weight_format format, struct err *e) MUST_CHECK;
void compress_judged_release(struct compress_judged *j);

/* ---- allocate.c -------------------------------------------------------------------------------------------------- */

/* Computes the shares for --allocate, prints a summary and fills in the report. Call prune_allocation_release even on
 * failure. ERR_USAGE, ERR_DATA, ERR_IO. */
int compress_allocate(struct prune_allocation *out, struct cli *c, const struct session_file *model,
                      const struct compress_prune_options *o, const struct compress_calibration *of,
                      struct err *e) MUST_CHECK;

/* ---- settings.c -------------------------------------------------------------------------------------------------- */

bool compress_has_target(const struct compress_quantize_options *o);
/* Converts the options for lib/quant, parsing texts and reading files. */
int compress_read_settings(struct compress *k, struct err *e) MUST_CHECK;
void compress_release(struct compress *k); /* frees what compress_read_settings read */

/* ---- layers.c ---------------------------------------------------------------------------------------------------- */

/* Sums over the tensors of a layer. */
struct compress_layer {
    double elems, bytes, error, power; /* squared error, squared weights */
};
int compress_add_to_layer(struct compress *k, const struct quant_tensor_report *t, struct err *e) MUST_CHECK;
/* Logs a line per layer at LOG_INFO. */
void compress_say_layers(const struct compress *k);

/* ---- target.c ---------------------------------------------------------------------------------------------------- */

/* Makes the plan for --target-bpw or --target-size. If the model is a pipe, this consumes it. */
int compress_plan_target(struct compress *k, struct err *e) MUST_CHECK;

/* ---- shapes.c ---------------------------------------------------------------------------------------------------- */

/* For computing the size of a model of a given shape. */
struct compress_sizes {
    struct cli *c;
    const char *type; /* as for quantize --type; NULL: the model's own types */
    bool floats;      /* quantized tensors become f32 */
    struct model_config from;
    enum dtype stored[ROLE_COUNT];
    bool seen[ROLE_COUNT];
    struct arena memory;
};
/* Expects c, type and floats to be set. Without a type, reads the model without its data. Release even on failure. */
int compress_sizes_begin(struct compress_sizes *z, struct session_file *model, struct err *e) MUST_CHECK;
/* For prune_options.bytes: size of the tensors as quantize or prune would write them, without header and vocabulary. */
int compress_bytes(void *sizes, const struct model_config *after, uint64_t *bytes, struct err *e) MUST_CHECK;
void compress_sizes_release(struct compress_sizes *z);

/* Prunes up to options->candidates shapes for the target of `prune`, one at a time and with the full vocabulary, and
 * judges each by its divergence from the original on options->search_tokens of the data. Set *out to NULL first; call
 * prune_candidates_free even on failure. */
struct compress_judging {
    struct cli *c;
    const struct compress_prune_options *options;
    const struct prune_options *prune;
    struct session_file *model;
    double *layer_divergence; /* [n_layers] is measured before the first shape; NULL: not needed */
};
int compress_judge_shapes(const struct compress_judging *o, struct prune_candidates **out, struct err *e) MUST_CHECK;

#endif
