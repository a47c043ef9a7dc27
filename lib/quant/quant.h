/*
 * quant: a model stream through GGUF's quantization grids, one tensor at a time. Round to nearest with GGUF's own scale
 * search, optionally weighted by the importance that calibration saw (mean x^2 of each input channel).
 */
#ifndef RILL_QUANT_H
#define RILL_QUANT_H

#include "lib/base/base.h"
#include "lib/model/model.h"
#include "lib/stats/stats.h"

/* What "--type" names: one type for all matrices, or a mixture. */
struct quant_type {
    const char *name; /* "q4_k_m" */
    enum dtype base;
    bool
        mixture; /* llama.cpp's *_M: more bits for the output, and for v and down of some layers, or q, k and v of all */
    const char *summary;
};
/* ERR_USAGE names the types there are. quant_type_at: for help; NULL past the end. */
int quant_type_parse(const char *name, const struct quant_type **out, struct err *e) MUST_CHECK;
const struct quant_type *quant_type_at(size_t i);

struct quant_options {
    const struct quant_type *type;
    bool strict;               /* refuse instead of falling back */
    bool grow;                 /* let what is quantized already take more bits */
    const struct stats *stats; /* importance, or NULL; ERR_USAGE when no tensor gets a type that it changes */
    unsigned head_type;        /* dtype of the output matrix (the tied embedding), 0: as the type says */
    unsigned embed_type;       /* dtype of an untied embedding, 0: as the type says; ERR_USAGE when there is none */
    bool (*fuses_qkv)(const struct model_config *); /* will q, k and v be one tensor, of one type? NULL: no */
};

/* The type meant for a tensor: norms and biases stay f32. */
enum dtype quant_wanted(const struct quant_options *o, const struct model_config *c, struct model_slot s);
/* Does an option of its own name that type, head_type or embed_type? */
bool quant_is_named(const struct quant_options *o, const struct model_config *c, struct model_slot s);
/* The type that its rows can have: `wanted`, or where the row is not a whole number of blocks, as llama.cpp falls back
 * (Q4_K -> Q5_0, Q5_K -> Q5_1, Q6_K -> Q8_0; and where 32 does not divide it either, F16). */
enum dtype quant_fallback(enum dtype wanted, uint64_t row_elems);

struct quant_tensor_report {
    const char *name;
    enum dtype from, wanted, to;
    bool fell_back; /* the row is not a whole number of `wanted`'s blocks */
    uint64_t elems, bytes;
    double rmse, relative; /* root mean square error; the same over the root mean square of the weights */
};
typedef int quant_report_fn(void *ctx, const struct quant_tensor_report *t, struct err *e);

struct quant_totals {
    uint64_t elems, bytes, bytes_before, fell_back;
};

/* Reads a model stream, writes it quantized. Memory: a few copies of the largest tensor. With strict, a tensor that would
 * fall back is ERR_DATA before anything is written. A weight that the type cannot hold is ERR_DATA when it is met. `report`
 * (may be NULL) sees each tensor.
 *
 * A tensor that is quantized already gets no more bits than it has, unless o->grow: nothing is won by it. Where a
 * mixture alone would raise it, it stays as it is; else ERR_USAGE when it is met. To f32, f16 and bf16 it may go: that
 * undoes the storage, and is what was asked for. */
int quantize_stream(struct stream_reader *in, struct stream_writer *out, const struct quant_options *o,
                    quant_report_fn *report, void *ctx, struct quant_totals *totals, struct err *e) MUST_CHECK;

#endif
