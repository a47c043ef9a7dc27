/*
 * formats: import from and export to what others read. Foreign files are hostile until checked: every count, offset and
 * size is verified before it drives an allocation or an access.
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
    struct vocab *vocab;          /* NULL: the source has no tokenizer; owned */
    const char *format;           /* "gguf" or "safetensors" */
    struct digest digest;         /* of all files read: import's input digest */
    cJSON *extra;                 /* what else is worth keeping in META ("source": {...}, generation settings), owned; may be NULL */
    struct foreign_source *source;
    struct arena memory;
};
/* path: a Hugging Face folder (config.json, model.safetensors or its shards with the index, tokenizer.json), a .safetensors
 * beside its config.json, or a .gguf. ERR_DATA says what is missing or not supported (architecture, rope type, pre-tokenizer). */
int foreign_open(struct foreign_model **out, const char *path, struct err *e) MUST_CHECK;
/* The tensor of a slot. *data is valid until the next call (mapped or in the source's scratch memory). Quantized blocks stay as they
 * are; desc tells the type. Slots whose rows must be reordered (GGUF's q and k) are. */
int foreign_tensor(struct foreign_model *f, struct model_slot s, struct tensor_desc *d, const void **data, struct err *e) MUST_CHECK;
void foreign_close(struct foreign_model *f);

/* ---- export: fd is the caller's; tensors are taken from the stream as they are (types that the format lacks are refused, with what to do) ---- */

/* GGUF v3 with the complete tokenizer, as llama.cpp loads it. Needs all tensor shapes before the first byte, so it reads `m` by random access. */
int gguf_export(struct stream_map *m, int fd, const char *name, struct err *e) MUST_CHECK;
/* A Hugging Face folder: config.json, model.safetensors (f32, f16 or bf16; quantized tensors are dequantized to `dtype`), tokenizer.json,
 * tokenizer_config.json, generation_config.json. The folder must not exist; it appears complete or not at all. */
int safetensors_export(struct stream_map *m, const char *folder, enum dtype dtype, struct err *e) MUST_CHECK;
/* One .npy per tensor, or one tensor to fd. */
int npy_export(struct stream_map *m, const char *tensor, int fd, struct err *e) MUST_CHECK;

/* tokenizer.json alone (Hugging Face `tokenizers`), for tests and for --tokenizer. */
int hf_tokenizer_read(struct vocab **out, const void *json, size_t n, const void *config_json, size_t n_config, struct err *e) MUST_CHECK;
int hf_tokenizer_write(const struct vocab *v, struct buf *json, struct buf *config_json, struct err *e) MUST_CHECK;

#endif
