/* Shared inside lib/compress: a run of quantizing, and the order of the files, which is that of this page. */
#ifndef RILL_COMPRESS_INTERNAL_H
#define RILL_COMPRESS_INTERNAL_H

#include "lib/compress/compress.h"
#include "lib/formats/formats.h"

/* ---- calibration.c ------------------------------------------------------------------------------------------------- */

/* What --stats names: statistics of rill calibrate, or llama.cpp's importance matrix. One is set, which the caller owns. */
struct compress_calibration {
    struct stats *stats;
    struct imatrix *imatrix;
};
int compress_read_calibration(struct compress_calibration *out, struct cli *c, const char *path,
                              struct err *e) MUST_CHECK;
void compress_calibration_release(struct compress_calibration *x);
struct prune_importance
compress_squares(const struct compress_calibration *x); /* of the importance matrix, if it is one */
/* ERR_DATA: `path` is an importance matrix, and lacks `what`, which `use` needs. */
int compress_imatrix_lacks(const char *path, const char *what, const char *use, struct err *e);
/* All of a file of at most 1 GiB. */
int compress_read_whole(struct cli *c, const char *path, const char *role, struct buf *bytes, struct err *e) MUST_CHECK;

/* ---- a run of quantizing ------------------------------------------------------------------------------------------ */

struct compress {
    struct cli *c;
    const struct compress_quantize_options *o;
    struct session_file model;
    struct stream_reader *in; /* its first reading */
    struct quant_options how; /* for lib/quant; what it points to is below */
    struct compress_calibration of;
    cJSON *origin; /* what META says of either */
    struct quant_rule *rules;
    struct buf plan; /* a string: read, or made for a target */
    uint64_t done;   /* tensors, of the bar */
    struct quant_summary sum;
    struct buf layers; /* struct compress_layer: outside layers, then each layer */
};

/* ---- data.c -------------------------------------------------------------------------------------------------------- */

/* What changing a model layer by layer takes. */
struct compress_data {
    struct model_layerwise *model; /* in WEIGHTS_F32 */
    struct grad_tape *scratch;     /* that does not record */
    struct session_tokens tokens;
};
/* The model that `in` is at the beginning of, and the tokens at path; NULL: none. Begin with {0}; on failure too compress_data_release. */
int compress_data_open(struct compress_data *d, struct cli *c, struct stream_reader *in, const char *path,
                       uint64_t max_tokens, const struct session_options *how, struct err *e) MUST_CHECK;
void compress_data_release(struct compress_data *d);

/* The model, which will be read once more; session_file_release(own) after a success. ERR_USAGE: `why`, an option, reads the model twice,
 * and it is no file. */
int compress_open_first(const struct session_file *model, const char *why, struct session_file *own,
                        struct stream_reader **in, struct err *e) MUST_CHECK;

/* A model that is run as a whole to be compared with itself, before it is read once more to be pruned or quantized. */
struct compress_judged {
    struct model *model;
    struct grad_tape *scratch; /* that does not record, in the precision of the options */
    struct session_tokens tokens;
};
/* The model, by compress_open_first, and the tokens at `data`. Begin with {0}; on failure too compress_judged_release. */
int compress_judged_open(struct compress_judged *j, struct cli *c, const struct session_file *model, const char *why,
                         const char *data, uint64_t limit, const struct session_options *how,
                         enum model_weight_format format, struct err *e) MUST_CHECK;
void compress_judged_release(struct compress_judged *j);

/* ---- allocate.c ---------------------------------------------------------------------------------------------------- */

/* The shares that --allocate gives the matrices, for prune_allocation_release, on failure too; says what they are, and fills in the
 * report. ERR_USAGE, ERR_DATA, ERR_IO. */
int compress_allocate(struct prune_allocation *out, struct cli *c, const struct session_file *model,
                      const struct compress_prune_options *o, const struct compress_calibration *of,
                      struct err *e) MUST_CHECK;

/* ---- settings.c ---------------------------------------------------------------------------------------------------- */

bool compress_has_target(const struct compress_quantize_options *o);
/* The options as lib/quant takes them, from texts and files. */
int compress_read_settings(struct compress *k, struct err *e) MUST_CHECK;
void compress_release(struct compress *k); /* what they have read */

/* ---- layers.c ------------------------------------------------------------------------------------------------------ */

/* Sums over the tensors of a layer. */
struct compress_layer {
    double elems, bytes, error, power; /* squared error, squared weights */
};
int compress_add_to_layer(struct compress *k, const struct quant_tensor_report *t, struct err *e) MUST_CHECK;
/* A line for each layer at LOG_INFO. */
void compress_say_layers(const struct compress *k);

/* ---- target.c ------------------------------------------------------------------------------------------------------ */

/* The plan for --target-bpw or --target-size. From a pipe it is the model's only reading. */
int compress_plan_target(struct compress *k, struct err *e) MUST_CHECK;

/* ---- shapes.c ------------------------------------------------------------------------------------------------------ */

/* What a model of some shape takes. */
struct compress_sizes {
    struct cli *c;
    const char *type; /* of quantize --type; NULL: the types that the model has */
    bool floats;      /* quantized tensors become f32 */
    struct model_config from;
    enum dtype stored[ROLE_COUNT];
    bool seen[ROLE_COUNT];
    struct arena memory;
};
/* With c, type and floats; without a type the model is read, without its data. Release on failure too. */
int compress_sizes_begin(struct compress_sizes *z, struct session_file *model, struct err *e) MUST_CHECK;
/* For prune_options.bytes: tensors as quantize or prune write them, without header and vocabulary. */
int compress_bytes(void *sizes, const struct model_config *after, uint64_t *bytes, struct err *e) MUST_CHECK;
void compress_sizes_release(struct compress_sizes *z);

/* Up to options->candidates shapes for the target of `prune` are pruned, one after another, all with the whole vocabulary, and the model as it
 * is judges them by the divergence on options->search_tokens of the data. *out begins as NULL, for prune_candidates_free, on failure too. */
struct compress_judging {
    struct cli *c;
    const struct compress_prune_options *options;
    const struct prune_options *prune;
    struct session_file *model;
};
int compress_judge_shapes(const struct compress_judging *o, struct prune_candidates **out, struct err *e) MUST_CHECK;

#endif
