/*
 * formats: imports and exports models in the formats of other programs. Foreign files are hostile until checked: every
 * count, offset and size is verified before it drives an allocation or an access.
 */
#ifndef RILL_FORMATS_H
#define RILL_FORMATS_H

#include "lib/base/base.h"
#include "lib/model/model.h"

/*
 * A foreign model opened for reading, whatever its format: configuration and tokenizer are read, tensors are
 * delivered one at a time in stream order, already in Rill's names, shapes and row order.
 */
struct foreign_model {
    struct model_config config;
    struct vocab *vocab; /* NULL: the source has no tokenizer; owned */
    const char *format;  /* "gguf" or "safetensors" */
    cJSON *extra;        /* what else META should keep: "general" (name, license ...), "generation"; owned, or NULL */
    struct foreign_source *source;
    struct arena memory;
};
/* Writes the file of this name, a shard that is not in the folder, to fd, a file without a name. Any error ends the import. */
typedef int foreign_fetch(void *ctx, const char *name, int fd, struct err *e);
/* The tokenizer, if not the source's own; absent shards. NULL means all zero. */
struct foreign_options {
    bool no_tokenizer;     /* leave it out, also one that could not be read */
    const char *tokenizer; /* take this tokenizer.json or vocab.json, and the files beside it, instead */
    foreign_fetch *fetch;  /* NULL: all shards are there */
    void *fetch_ctx;
};
/* path: a Hugging Face folder (config.json, model.safetensors or its shards with the index, tokenizer.json), a
 * .safetensors beside its config.json, or a .gguf, of a split one the first part. ERR_DATA says what is missing or not supported (architecture,
 * rope type, pre-tokenizer). With a fetching function, shards that the folder's index names but that are not there come from it, one
 * at a time, when a tensor of them is needed; in the order of layers, as transformers saves them, each comes once. They lie in
 * TMPDIR, without a name. ERR_USAGE: there is no index. */
int foreign_open(struct foreign_model **out, const char *path, const struct foreign_options *o,
                 struct err *e) MUST_CHECK;
/* The tensor of a slot. *data is valid until the next call (mapped or in the source's scratch memory). Quantized
 * blocks stay as they are; desc has the type. Rows that must be reordered (GGUF's q and k) are. */
int foreign_tensor(struct foreign_model *f, struct model_slot s, struct tensor_desc *d, const void **data,
                   struct err *e) MUST_CHECK;
/* All of it as a model stream, which the caller ends. dtype: f32, f16 or bf16 for all tensors, 0 leaves them as
 * they are. ERR_DATA on weights that are not finite or do not fit. progress (may be NULL) hears of each tensor. */
typedef void foreign_progress(void *ctx, size_t done, size_t total);
int foreign_write(struct foreign_model *f, struct stream_writer *w, unsigned dtype, foreign_progress *progress,
                  void *ctx, struct err *e) MUST_CHECK;
/* Of all files read so far, shards that were fetched among them: import's input digest once all is written. */
struct digest foreign_digest(const struct foreign_model *f);
void foreign_close(struct foreign_model *f);

/* ---- what other programs can load (target.c) --------------------------------------------------------------------- */

/* What export writes for: transformers (safetensors) and llama.cpp (gguf). */
enum model_target { TARGET_TRANSFORMERS, TARGET_LLAMA_CPP, TARGET_COUNT };
/* ERR_DATA when the program cannot load a model of this shape, with the condition that fails. Export checks before
 * it writes; programs that change shapes call target_warnings. */
int target_check(enum model_target t, const struct model_config *c, struct err *e) MUST_CHECK;
/* Calls `warn` with a line for each program that will not load `c`, but would have loaded `before` (NULL: a new model). */
void target_warnings(const struct model_config *before, const struct model_config *c, model_warn_fn *warn, void *ctx);

/* Does llama.cpp have q, k and v of such a model in one tensor? Then they need one quantized type. */
bool target_fuses_qkv(const struct model_config *c);
/* Do queries and keys there have the two elements of a rotary pair side by side? */
bool target_interleaves(const struct model_config *c);
/* llama.cpp's name of a tensor; false: it has none. `out` has TENSOR_MAX_NAME + 1 bytes. */
bool target_tensor_name(const struct model_config *c, struct model_slot s, char *out);

/* ---- architectures (arch.c) -------------------------------------------------------------------------------------- */

/* The i-th that is known, for help; false past the end. The strings are static. */
struct arch_summary {
    const char *name, *models;
    const char *class; /* of transformers */
    const char *gguf;  /* llama.cpp's name, or NULL: it does not know it */
    bool generates;    /* a causal language model */
};
bool arch_summary(size_t i, struct arch_summary *out);
/* A configuration of this architecture without shapes, for a new model; norm_eps is 0 unless the architecture has only
 * one. ERR_DATA for an unknown one, with the names of those that are known. */
int arch_traits(const char *name, struct model_config *out, struct err *e) MUST_CHECK;
/* Sets what follows from the shapes, which the caller has set: factors, which layers rotate and how, and how much of a
 * head if rope.dims is 0. */
void arch_complete(struct model_config *c);
/* Of the layers of a new model all but each N-th have the window, if any has one. 0: all have it. */
uint32_t arch_window_pattern(const char *name);

/* The shape of a new model (shape.c), in numbers of 32 bits; 0 or false: not asked for. */
struct arch_shape {
    const char *arch;
    uint64_t layers, hidden, context; /* needed. hidden: of LSTMs both directions together */
    uint64_t embed;              /* width of the embedding of LSTMs; 0: hidden, or with copy_embed that of `like` */
    uint64_t heads, ffn;         /* needed but for LSTMs; ffn: or of each expert */
    uint64_t kv_heads, head_dim; /* 0: heads, hidden / heads */
    uint64_t experts, experts_per_token;
    uint64_t rotary_dims;
    uint64_t window, window_pattern; /* pattern 0: the architecture's */
    uint64_t classes;                /* of a classifier; 0: those of `like` */
    double rope_theta, norm_eps;     /* norm_eps negative: not asked for */
    bool untied;
    bool copy_embed; /* the embedding of `like` is to be copied: arch_copy_embedding */
};
/* Its configuration, with the vocabulary of `like`; layers come from `a`. ERR_USAGE: an unknown architecture; what it has no place for,
 * or what is missing, as the option of rill init; sizes that do not fit. */
int arch_new_config(const struct arch_shape *s, const struct model_config *like, struct model_config *out,
                    struct arena *a, struct err *e) MUST_CHECK;
/* embed.weight of the model that `r` reads, and whose head was read, into m's, which has its shape. `item` is its first tensor. */
int arch_copy_embedding(struct model *m, struct stream_reader *r, const struct model_config *like,
                        struct stream_item *item, struct err *e) MUST_CHECK;
/* The names of the classes of `like`, if the new model has as many, into its META. */
int arch_copy_labels(cJSON *meta, const struct model_config *c, const struct model_head *like,
                     struct err *e) MUST_CHECK;

/* ---- export: fd is the caller's; it may be a pipe. A map is read by random access, a reader in order ------------- */

/* GGUF v3 with the complete tokenizer, as llama.cpp loads it. Tensors are taken as they are, vectors as f32. A
 * model whose layers differ goes out as llama.cpp's architecture "deci". ERR_DATA for what llama.cpp cannot load. `name`: general.name, or NULL for the one
 * that was imported. */
int gguf_export(struct stream_map *m, int fd, const char *name, struct err *e) MUST_CHECK;
/* The same as parts in a new folder, model-00001-of-00003.gguf and so on, as llama-gguf-split makes them: each has tensors
 * of at most `limit` bytes, or a single larger one; the first has the keys of the model. The folder appears complete or not
 * at all. ERR_USAGE: more parts than a GGUF can have. */
int gguf_export_parts(struct stream_map *m, const char *folder, uint64_t limit, const char *name,
                      struct err *e) MUST_CHECK;
/* A Hugging Face folder: config.json, model.safetensors, tokenizer.json, tokenizer_config.json,
 * generation_config.json. The folder must not exist; it appears complete or not at all. dtype: f32, f16 or bf16
 * for all tensors; 0 leaves them as they are, and makes quantized ones f32. ERR_DATA when transformers cannot load
 * the shape (target_check): layers that differ, for one. */
int safetensors_export(struct stream_map *m, const char *folder, unsigned dtype, struct err *e) MUST_CHECK;
/*
 * The same from a stream that is read once, to its end: each tensor goes to its place in the result as it arrives, and needs no
 * room elsewhere, except that a part of a GGUF is written twice. Where a header cannot be written last (fd is no regular file,
 * or is appended to) or is known only with the types of all tensors (phi3, whose q, k and v share one tensor in a GGUF if
 * they have one type), the model goes by way of a file in TMPDIR. Bytes are those of the functions above; only the header of
 * safetensors ends in spaces unless there is a dtype. Also ERR_DATA: tensors that are fused there have different plain types.
 */
int gguf_export_stream(struct stream_reader *in, int fd, const char *name, struct err *e) MUST_CHECK;
int gguf_export_stream_parts(struct stream_reader *in, const char *folder, uint64_t limit, const char *name,
                             struct err *e) MUST_CHECK;
int safetensors_export_stream(struct stream_reader *in, const char *folder, unsigned dtype, struct err *e) MUST_CHECK;
/* One tensor to fd as .npy; types that NumPy does not have (bf16, quantized) become f32. `m` may be of any kind. */
int npy_export(struct stream_map *m, const char *tensor, int fd, struct err *e) MUST_CHECK;
/* All of them into a new folder, NAME.npy each. */
int npy_export_all(struct stream_map *m, const char *folder, struct err *e) MUST_CHECK;

/* ---- llama.cpp's importance matrix (imatrix.c) ------------------------------------------------------------------- */

struct imatrix;
/* Is a file that begins so one, a GGUF, or by its name the older .dat? */
bool imatrix_is(const char *path, const void *begin, size_t n);
/* Takes the bytes of the whole file. ERR_DATA: another GGUF, sums that are none. */
int imatrix_read(struct imatrix **out, struct buf *bytes, struct err *e) MUST_CHECK;
void imatrix_free(struct imatrix *m);
/* The mean square of what each column of a slot's matrix was multiplied with, into out [cols]; *found: it is there. ERR_DATA
 * on another number of columns. `imatrix` is a struct imatrix *: the function serves as quant's importance. */
int imatrix_importance(void *imatrix, const struct model_config *c, struct model_slot s, uint64_t cols, float *out,
                       bool *found, struct err *e) MUST_CHECK;
/* What it says of itself: "entries_count", "chunks_count" and "dataset", which may be missing. False: memory is out. */
bool imatrix_describe(const struct imatrix *m, cJSON *to);
/* Writes one of sums of squares over `positions` positions in `sequences` sequences: `sums` gives those of the input of a
 * slot's matrix and over how many positions, or NULL. ERR_DATA: llama.cpp knows none of the matrices. */
typedef const double *imatrix_sums_fn(void *ctx, struct model_slot s, uint64_t *cols, double *positions);
int imatrix_write(const struct model_config *c, imatrix_sums_fn *sums, void *ctx, uint64_t positions,
                  uint64_t sequences, int fd, struct err *e) MUST_CHECK;

/* tokenizer.json alone (Hugging Face `tokenizers`), for tests and for --tokenizer. */
int hf_tokenizer_read(struct vocab **out, const void *json, size_t n, const void *config_json, size_t n_config,
                      struct err *e) MUST_CHECK;
int hf_tokenizer_write(const struct vocab *v, struct buf *json, struct buf *config_json, struct err *e) MUST_CHECK;

#endif
