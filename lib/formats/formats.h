/*
 * formats: imports and exports models in the formats of other programs. Foreign files are untrusted: every count,
 * offset and size is verified before it determines an allocation or an access.
 */
#ifndef RILL_FORMATS_H
#define RILL_FORMATS_H

#include "lib/arch/arch.h"
#include "lib/base/base.h"

/*
 * A foreign model opened for reading, whatever its format. Configuration and tokenizer have been read; tensors are
 * returned one at a time, with Rill's names, shapes and row order.
 */
struct foreign_model {
    struct model_config config;
    struct vocab *vocab; /* owned; NULL: the source has no tokenizer */
    const char *format;  /* "gguf" or "safetensors" */
    cJSON *extra;        /* owned, or NULL: further content of META: "general" (name, license, ...), "generation" */
    struct foreign_source *source;
    struct arena memory;
};
/* Writes the shard `name`, which the folder lacks, to the unnamed file fd. An error ends the import. */
typedef int foreign_fetch(void *ctx, const char *name, int fd, struct err *e);
/* Sources of the tokenizer and of absent shards. NULL means all zero. */
struct foreign_options {
    bool no_tokenizer;     /* ignore the tokenizer, even if it could not be read */
    const char *tokenizer; /* read this tokenizer.json or vocab.json, with the files beside it, instead */
    foreign_fetch *fetch;  /* NULL: all shards are present */
    void *fetch_ctx;
};
/* Opens `path`: a Hugging Face folder (config.json, model.safetensors or shards with their index,
 * tokenizer.json), a .safetensors beside its config.json, or a .gguf (of a split one, the first part). The caller
 * frees *out with foreign_close. ERR_IO: a file cannot be read. ERR_DATA: something is missing, malformed or not
 * supported (architecture, rope type, pre-tokenizer); the message names it. With `fetch`, shards that the
 * folder's index lists but the folder lacks are fetched to unnamed files in TMPDIR, one at a time, when one of
 * their tensors is needed; if shards hold the layers in order, as transformers saves them, each is fetched once.
 * ERR_USAGE: `fetch` without an index. */
int foreign_open(struct foreign_model **out, const char *path, const struct foreign_options *o,
                 struct err *e) MUST_CHECK;
/* The tensor of a slot, in Rill's row order. Quantized blocks are unchanged; d has the type. *data is valid until the
 * next call (mapped, or in scratch memory of the source). */
int foreign_tensor(struct foreign_model *f, struct model_slot s, struct tensor_desc *d, const void **data,
                   struct err *e) MUST_CHECK;
/* Writes the whole model to a stream, which the caller ends. dtype: f32, f16 or bf16 for all tensors; 0 keeps their
 * types. progress (may be NULL) is called after each tensor. ERR_DATA: a weight is not finite or does not fit the
 * type. */
typedef void foreign_progress(void *ctx, size_t done, size_t total);
int foreign_write(struct foreign_model *f, struct stream_writer *w, unsigned dtype, foreign_progress *progress,
                  void *ctx, struct err *e) MUST_CHECK;
/* Digest of all files read so far, including fetched shards: import's input digest once the model is written. */
struct digest foreign_digest(const struct foreign_model *f);
void foreign_close(struct foreign_model *f);

/* ---- what other programs can load (target.c) --------------------------------------------------------------------- */

/* The programs that export writes for: transformers (safetensors) and llama.cpp (gguf). */
enum model_target { TARGET_TRANSFORMERS, TARGET_LLAMA_CPP, TARGET_COUNT };
/* ERR_DATA: the program cannot load a model of this shape; the message names the reason. Export checks this before
 * writing; programs that change shapes call target_warnings. */
int target_check(enum model_target t, const struct model_config *c, struct err *e) MUST_CHECK;
/* Calls `warn` with a line for each program that cannot load `c` but could load `before` (NULL: a new model). */
void target_warnings(const struct model_config *before, const struct model_config *c, model_warn_fn *warn, void *ctx);

/* Does llama.cpp store q, k and v of such a model in one tensor? Then they need the same quantized type. */
bool target_fuses_qkv(const struct model_config *c);
/* Does llama.cpp store the two rows of a rotary pair of q and k next to each other? */
bool target_interleaves(const struct model_config *c);
/* out [TENSOR_MAX_NAME + 1] = llama.cpp's name of the slot's tensor; false: it has none. */
bool target_tensor_name(const struct model_config *c, struct model_slot s, char *out);

/* ---- architectures (arch.c) -------------------------------------------------------------------------------------- */

/* Describes the i-th known architecture, for help; false past the end. The strings are static. */
struct arch_summary {
    const char *name, *models;
    const char *class; /* name in transformers */
    const char *gguf;  /* name in llama.cpp; NULL: not supported there */
    bool generates;    /* is a causal language model */
};
bool arch_summary(size_t i, struct arch_summary *out);
/* *out = a configuration of this architecture without shapes, for a new model; norm_eps is 0 unless the architecture
 * prescribes one. ERR_DATA: unknown; the message lists the known ones. */
int arch_traits(const char *name, struct model_config *out, struct err *e) MUST_CHECK;
/* Sets what follows from the shapes, which the caller has set: scale factors, which layers rotate and how, and, if
 * rope.dims is 0, how much of a head. */
void arch_complete(struct model_config *c);
/* N: in a new model with windows, all layers except each N-th have one. 0: all layers have one. */
uint32_t arch_window_pattern(const char *name);

/* The shape of a new model (shape.c). Numbers must fit in 32 bits; 0 or false: not given. */
struct arch_shape {
    const char *arch;
    uint64_t layers, hidden, context; /* required. hidden: for LSTMs, both directions together */
    uint64_t embed;                   /* LSTMs: width of the embedding; 0: hidden, or with copy_embed that of `like` */
    uint64_t heads, ffn;              /* required except for LSTMs; ffn: of each expert, if there are experts */
    uint64_t kv_heads, head_dim;      /* 0: heads, hidden / heads */
    uint64_t experts, experts_per_token;
    uint64_t rotary_dims;
    uint64_t window, window_pattern; /* pattern 0: the architecture's */
    uint64_t classes;                /* of a classifier; 0: as `like` */
    double rope_theta, norm_eps;     /* norm_eps negative: not given */
    bool untied;
    bool copy_embed; /* the caller will copy the embedding of `like` (model_copy_embedding) */
};
/* *out = the configuration of this shape with the vocabulary of `like`; its layers are in `a`. ERR_USAGE: the
 * architecture is unknown, an option of rill init is missing or has no effect with it, or sizes do not fit. */
int arch_new_config(const struct arch_shape *s, const struct model_config *like, struct model_config *out,
                    struct arena *a, struct err *e) MUST_CHECK;
/* Copies the class names of `like` to `meta`, if the new model has as many classes. */
int arch_copy_labels(cJSON *meta, const struct model_config *c, const struct model_head *like,
                     struct err *e) MUST_CHECK;

/* ---- export: the caller owns fd, which may be a pipe. A map is read by random access, a reader in order ---------- */

/* Writes GGUF v3 with the complete tokenizer, as llama.cpp loads it. Matrices keep their types, vectors become f32. A
 * model whose layers differ is written as llama.cpp's architecture "deci". name: general.name, or NULL for the imported
 * one. ERR_DATA: llama.cpp cannot load the model. */
int gguf_export(struct stream_map *m, int fd, const char *name, struct err *e) MUST_CHECK;
/* The same in parts in a new folder, model-00001-of-00003.gguf and so on, as from llama-gguf-split: each has tensors of
 * at most `limit` bytes, or a single larger one; the first also has the model's keys. The folder appears complete or
 * not at all. ERR_USAGE: more parts than a GGUF can have. */
int gguf_export_parts(struct stream_map *m, const char *folder, uint64_t limit, const char *name,
                      struct err *e) MUST_CHECK;
/* Writes a Hugging Face folder: config.json, model.safetensors, tokenizer.json, tokenizer_config.json,
 * generation_config.json. The folder must not exist; it appears complete or not at all. dtype: f32, f16 or bf16 for all
 * tensors; 0 keeps their types, except that quantized tensors become f32. ERR_DATA: transformers cannot load the shape
 * (target_check), for example because layers differ. */
int safetensors_export(struct stream_map *m, const char *folder, unsigned dtype, struct err *e) MUST_CHECK;
/*
 * The same for a stream that is read once, to its end. Each tensor is written to its place as it arrives and needs no
 * other space, except that parts of a GGUF are written twice. The model is first copied to an unnamed file in TMPDIR if
 * the header cannot be written last (fd is not a regular file, or is in append mode) or if its size depends on the
 * types of all tensors (phi3, whose q, k and v share one tensor in a GGUF if they have one type). The bytes are those
 * of the functions above, except that a safetensors header may end in spaces if dtype is 0. Also ERR_DATA: tensors to
 * be fused have different unquantized types.
 */
int gguf_export_stream(struct stream_reader *in, int fd, const char *name, struct err *e) MUST_CHECK;
int gguf_export_stream_parts(struct stream_reader *in, const char *folder, uint64_t limit, const char *name,
                             struct err *e) MUST_CHECK;
int safetensors_export_stream(struct stream_reader *in, const char *folder, unsigned dtype, struct err *e) MUST_CHECK;
/* Writes one tensor to fd as .npy; types that NumPy lacks (bf16, quantized) become f32. `m` may be a stream of any
 * kind. ERR_USAGE: there is no such tensor. */
int npy_export(struct stream_map *m, const char *tensor, int fd, struct err *e) MUST_CHECK;
/* Writes all tensors to a new folder, as NAME.npy. ERR_DATA: a tensor's name is not a file name. */
int npy_export_all(struct stream_map *m, const char *folder, struct err *e) MUST_CHECK;

/* ---- llama.cpp's importance matrix (imatrix.c) ------------------------------------------------------------------- */

struct imatrix;
/* May a file that begins with these n bytes be one: a GGUF, or by its name the older .dat? */
bool imatrix_is(const char *path, const void *begin, size_t n);
/* Parses a whole file and takes ownership of its bytes; *bytes becomes empty. The caller frees *out. ERR_DATA:
 * malformed, another kind of GGUF, or invalid sums. */
int imatrix_read(struct imatrix **out, struct buf *bytes, struct err *e) MUST_CHECK;
void imatrix_free(struct imatrix *m);
/* *found: is there an entry for the slot's matrix? Then out [cols] = the mean square of each column of the matrix's
 * input. ERR_DATA: the number of columns differs. `imatrix` is a struct imatrix *; the function serves as quant's
 * importance callback. */
int imatrix_importance(void *imatrix, const struct model_config *c, struct model_slot s, uint64_t cols, float *out,
                       bool *found, struct err *e) MUST_CHECK;
/* Adds "entries_count" and, if known, "chunks_count" and "dataset" to `to`. False: out of memory. */
bool imatrix_describe(const struct imatrix *m, cJSON *to);
/* Writes an importance matrix over `positions` positions in `sequences` sequences. `sums` returns the sums of squares
 * of the input of a slot's matrix and the number of positions that they cover, or NULL. ERR_DATA: llama.cpp has no name
 * for any of the matrices. */
typedef const double *imatrix_sums_fn(void *ctx, struct model_slot s, uint64_t *cols, double *positions);
int imatrix_write(const struct model_config *c, imatrix_sums_fn *sums, void *ctx, uint64_t positions,
                  uint64_t sequences, int fd, struct err *e) MUST_CHECK;

/* Read and write tokenizer.json and tokenizer_config.json (NULL: absent) of Hugging Face's `tokenizers` alone, for
 * tests and --tokenizer. */
int hf_tokenizer_read(struct vocab **out, const void *json, size_t n, const void *config_json, size_t n_config,
                      struct err *e) MUST_CHECK;
int hf_tokenizer_write(const struct vocab *v, struct buf *json, struct buf *config_json, struct err *e) MUST_CHECK;

#endif
