/*
 * Private to lib/formats. A foreign model is read in three layers, each of which can be tested and fuzzed alone:
 *
 *   bytes    mapped_file         a file as memory, not yet checked
 *   tensors  raw_table           gguf_parse and safetensors_parse check a file's structure and fill the same table
 *   meaning  foreign_source      config and tokenizer from GGUF keys or Hugging Face's JSON; names by role
 *
 * The parsers work on memory, so that tests and fuzzers need no files.
 */
#ifndef RILL_FORMATS_INTERNAL_H
#define RILL_FORMATS_INTERNAL_H

#include "lib/formats/formats.h"

struct span {
    const char *s; /* not NUL-terminated */
    uint64_t n;
};

/* ---- a file as memory (files.c) ---------------------------------------------------------------------------------- */

struct mapped_file {
    const unsigned char *data; /* NULL if size is 0 */
    uint64_t size;
};
/* Maps a regular file, read-only. ERR_IO. As with any mmap, truncating the file while it is mapped raises SIGBUS. */
int mapped_file_open(struct mapped_file *m, const char *path, struct err *e) MUST_CHECK;
/* The same for an open file, which may have no name. */
int mapped_file_of(struct mapped_file *m, int fd, struct err *e) MUST_CHECK;
void mapped_file_close(struct mapped_file *m);
bool file_exists(const char *path);
/* "FOLDER/NAME" in the arena. */
char *path_join(struct arena *a, const char *folder, const char *name, struct err *e) MUST_CHECK;

/* ---- writing (output.c) ------------------------------------------------------------------------------------------ */

/* Writes all n bytes. ERR_IO. */
int write_all(int fd, const void *data, size_t n, struct err *e) MUST_CHECK;

/* ---- the tensors of a foreign file (table.c) --------------------------------------------------------------------- */

struct raw_tensor {
    const char *name; /* name in the file, in the arena given to the parser */
    enum dtype dtype;
    unsigned rank;
    uint64_t dims[TENSOR_MAX_RANK]; /* row-major, whatever the file's order */
    const unsigned char *data;      /* in the mapped file; may be unaligned */
    uint64_t n_bytes;
    bool used; /* has a role in the model */
    /* For a tensor whose file may be absent (shards.c): */
    uint32_t shard;      /* number of its shard, from 1; 0: always present */
    const char *indexed; /* name in that file */
    bool unknown;        /* only its name is known: the shard was never present */
    bool kept;           /* data points to a copy */
    size_t needed;       /* number of the last slot that needs it, from 1; 0: none does */
};
struct raw_table {
    struct raw_tensor *items; /* sorted by name once raw_table_sort has run */
    size_t n, cap;
};
int raw_table_reserve(struct raw_table *t, size_t extra, struct err *e) MUST_CHECK;
/* Sorts by name. ERR_DATA: a name occurs twice. */
int raw_table_sort(struct raw_table *t, struct err *e) MUST_CHECK;
struct raw_tensor *raw_table_find(const struct raw_table *t, const char *name);
void raw_table_release(struct raw_table *t);
/* *n_bytes = the size of a tensor of this type and shape, by checked arithmetic. ERR_DATA: overflow, a zero dimension,
 * or a row that is not a whole number of blocks. */
int raw_tensor_size(const struct raw_tensor *r, uint64_t *n_bytes, struct err *e) MUST_CHECK;

/* ---- GGUF (gguf_read.c: structure; gguf_keys.c, gguf_model.c: meaning) ------------------------------------------- */

enum gguf_type {
    GGUF_U8 = 0,
    GGUF_I8 = 1,
    GGUF_U16 = 2,
    GGUF_I16 = 3,
    GGUF_U32 = 4,
    GGUF_I32 = 5,
    GGUF_F32 = 6,
    GGUF_BOOL = 7,
    GGUF_STRING = 8,
    GGUF_ARRAY = 9,
    GGUF_U64 = 10,
    GGUF_I64 = 11,
    GGUF_F64 = 12,
    GGUF_TYPE_COUNT
};
#define GGUF_MAX_KEYS          65536
#define GGUF_MAX_TENSORS       65536
#define GGUF_MAX_TENSOR_NAME   64
#define GGUF_MAX_DIMS          4
#define GGUF_DEFAULT_ALIGNMENT 32

/* A value in the mapped file: n elements of `type` from `data` on, known to be complete. */
struct gguf_kv {
    const char *key;
    bool is_array;
    enum gguf_type type;
    uint64_t n; /* 1 unless is_array */
    const unsigned char *data;
};
struct gguf_file {
    uint32_t version, alignment;
    uint64_t data_offset;
    struct gguf_kv *kv; /* sorted by key */
    size_t n_kv;
    struct raw_table tensors;
};
/* Parses a whole file. Begin with {0}; gguf_release in any case. `data` must outlive g. ERR_DATA. */
int gguf_parse(struct gguf_file *g, const unsigned char *data, uint64_t n, struct arena *a, struct err *e) MUST_CHECK;
void gguf_release(struct gguf_file *g);
const struct gguf_kv *gguf_find(const struct gguf_file *g, const char *key);
/* *out = element i of an integer or floating-point value; false: it has another type or does not fit. */
bool gguf_kv_u64(const struct gguf_kv *kv, uint64_t i, uint64_t *out);
bool gguf_kv_f64(const struct gguf_kv *kv, uint64_t i, double *out);
/* Returns the next string of a value; begin with *at = 0. */
struct span gguf_kv_next_string(const struct gguf_kv *kv, uint64_t *at);
/* Accessors like those for JSON: opt_ leaves *out unchanged if there is no such key. ERR_DATA: wrong
 * type or out of range. */
int gguf_get_u64(const struct gguf_file *g, const char *key, uint64_t min, uint64_t max, uint64_t *out,
                 struct err *e) MUST_CHECK;
int gguf_opt_u64(const struct gguf_file *g, const char *key, uint64_t min, uint64_t max, uint64_t *out,
                 struct err *e) MUST_CHECK;
int gguf_opt_f64(const struct gguf_file *g, const char *key, double min, double max, double *out,
                 struct err *e) MUST_CHECK;
int gguf_opt_bool(const struct gguf_file *g, const char *key, bool *out, struct err *e) MUST_CHECK;
/* Copies a string to the arena. ERR_DATA: not UTF-8, or it contains a NUL. */
int gguf_opt_str(const struct gguf_file *g, const char *key, struct arena *a, const char **out,
                 struct err *e) MUST_CHECK;
/* *out = the array with exactly this element type; NULL without error if there is no such key. */
int gguf_opt_array(const struct gguf_file *g, const char *key, enum gguf_type type, const struct gguf_kv **out,
                   struct err *e) MUST_CHECK;

struct arch; /* arch_internal.h */
struct arch_tensors;
struct gguf_name;
int gguf_read_arch(const struct gguf_file *g, struct arena *a, const struct arch **out, const struct gguf_name **name,
                   struct err *e) MUST_CHECK;
/* What the value of a key below the architecture's name may be (gguf_keys.c). */
enum gguf_rule {
    GGUF_READ,    /* anything: code reads and checks it */
    GGUF_INERT,   /* anything: it has no effect here */
    GGUF_OFF,     /* false, 0 or empty: "not used" */
    GGUF_NUMBER,  /* this number, or 0 for "not set" */
    GGUF_TEXT,    /* this text */
    GGUF_SAME,    /* the value of key `text`, of which it is another name */
    GGUF_CONTEXT, /* 0, or at least the context length */
};
struct gguf_key {
    const char *suffix;
    enum gguf_rule rule;
    double number;
    const char *text;
};
/* out = "llama.context_length" for "llama" and "context_length"; returns out. */
#define GGUF_KEY_SIZE 128
const char *gguf_arch_key(char out[GGUF_KEY_SIZE], const char *prefix, const char *suffix);
/* ERR_DATA: a key below the architecture's name asks for something that Rill does not compute, contradicts
 * another, or is unknown. */
int gguf_check_keys(const struct gguf_file *g, const char *prefix, const struct gguf_key *own, size_t n_own,
                    struct err *e) MUST_CHECK;
int gguf_read_config(const struct gguf_file *g, const struct arch *arch, const char *prefix, struct model_config *c,
                     struct arena *a, struct err *e) MUST_CHECK;
/* Rotary positions (gguf_rope.c): read, once context and heads are known; write the keys, the tensor descriptions and
 * the tensor data, which precedes that of the model's tensors. */
int gguf_read_rope(struct model_config *c, const struct gguf_file *g, const struct arch *arch, const char *prefix,
                   struct arena *a, struct err *e) MUST_CHECK;
struct gguf_header;
extern const char *const gguf_rope_tensors[]; /* names of the tensors with rotary factors, NULL-terminated */
void gguf_put_rope(struct gguf_header *h, const struct model_config *c);
void gguf_put_rope_tensors(struct gguf_header *h, const struct model_config *c);
int gguf_write_rope_tensors(const struct model_config *c, int fd, struct err *e) MUST_CHECK;
/* ERR_DATA: llama.cpp has no such rotation in any architecture. */
int gguf_check_rope(const struct model_config *c, struct err *e) MUST_CHECK;
/* Reads the tokenizer into a draft for vocab_new; *found: does the file have one? */
int gguf_read_vocab(const struct gguf_file *g, struct vocab *spec, bool *found, struct err *e) MUST_CHECK;
/* A token's type, and whether the type alone determines the token's flags. */
uint32_t gguf_token_type(const struct vocab *v, uint32_t id);
bool gguf_type_says_all(const struct vocab *v, uint32_t id);

/* A value of tokenizer.ggml.model and the defaults that llama.cpp assumes with it (gguf_kinds.c). */
struct gguf_kind {
    const char *model;
    enum text_kind kind;
    uint32_t bos, eos, unk, pad;
    bool prefix, add_bos, add_eos;
};
#define GGUF_STEPS_KEY "rill.tokenizer.steps"              /* from text_steps_pack: exact, unlike GGUF's own keys */
const struct gguf_kind *gguf_find_kind(const char *model); /* NULL: unknown */
const struct gguf_kind *gguf_kind_of(const struct vocab *v);
/* Append the text of a piece in tokenizer.ggml.tokens, and the piece of such a text; flags and kind must be set. */
int gguf_put_piece(const struct vocab *v, uint32_t id, struct buf *out, struct err *e) MUST_CHECK;
int gguf_get_piece(const struct vocab *spec, uint32_t id, struct span text, struct buf *out, struct err *e) MUST_CHECK;
/* Read kind, flags and steps of a draft, and the scores of its tokens. */
int gguf_read_steps(const struct gguf_file *g, const struct gguf_kind *k, struct vocab *spec, struct err *e) MUST_CHECK;
int gguf_read_scores(const struct gguf_file *g, struct vocab *spec, struct err *e) MUST_CHECK;
/* ERR_DATA: llama.cpp would encode text differently. scores [n_tokens] = the scores to write. */
int gguf_check_kind(const struct vocab *v, float *scores, struct arena *a, struct err *e) MUST_CHECK;
/* The values of GGUF's keys for the steps of a vocabulary (character BPE or unigram) that gguf_check_kind has
 * accepted. */
void gguf_spacing(const struct vocab *v, bool *prefix, bool *extra, struct span *charsmap);
/* Does llama.cpp end a generation at a token of this text, whatever the keys say? */
bool gguf_text_ends(const void *text, size_t n);
#define GGUF_ENDS_KEY "tokenizer.ggml.eos_token_ids" /* all end tokens; a key of Ollama's converter and ours */
/* The header of a GGUF under construction (gguf_header.c). After a failed put all others do nothing, so check rc
 * once. */
struct gguf_header {
    struct buf bytes;
    uint64_t n_keys, n_tensors;
    uint64_t data_bytes; /* of the described tensors, each padded */
    int rc;
    struct err *e;
    char prefix[32]; /* "llama": prepended to keys that begin with a dot */
};
void gguf_put_bytes(struct gguf_header *h, const void *data, size_t n);
void gguf_put_u32(struct gguf_header *h, uint32_t v);
void gguf_put_u64(struct gguf_header *h, uint64_t v);
void gguf_put_bool(struct gguf_header *h, bool v);
void gguf_put_string(struct gguf_header *h, const void *s, size_t n);
void gguf_key_u16(struct gguf_header *h, const char *key, uint16_t v);
void gguf_key_u32(struct gguf_header *h, const char *key, uint32_t v);
void gguf_key_i32(struct gguf_header *h, const char *key, int32_t v);
void gguf_key_f32(struct gguf_header *h, const char *key, double v);
void gguf_key_f64(struct gguf_header *h, const char *key, double v);
void gguf_key_bool(struct gguf_header *h, const char *key, bool v);
void gguf_key_string(struct gguf_header *h, const char *key, const char *v);
/* The caller puts the n elements after it. */
void gguf_key_array(struct gguf_header *h, const char *key, enum gguf_type type, uint64_t n);
/* Describes a tensor, whose data follows that of the tensors described before; dims as in a tensor_desc. */
void gguf_put_tensor(struct gguf_header *h, const char *name, unsigned rank, const uint64_t *dims, enum dtype as,
                     uint64_t bytes);
uint64_t gguf_padded(uint64_t bytes);
void gguf_put_split(struct gguf_header *h, uint32_t no, uint32_t count, uint32_t n_tensors);
/* The number of bytes that gguf_write_header writes; it does not depend on tensor types or on values of fixed size. */
uint64_t gguf_header_bytes(const struct gguf_header *keys, const struct gguf_header *infos);
/* Writes the start of a file: keys and tensor descriptions, which are built as separate headers. The
 * tensors' data follows. */
int gguf_write_header(int fd, const struct gguf_header *keys, const struct gguf_header *infos,
                      struct err *e) MUST_CHECK;
int gguf_write_padded(int fd, const void *data, uint64_t n, struct err *e) MUST_CHECK;
/* Adds the tensors of the other parts of a split GGUF (gguf_split.c) to those of its first part g, the file `path`;
 * no-op if the GGUF is not split. path NULL: it is in memory and must not be split. ERR_DATA: g is not the first part,
 * its name does not lead to the others, or one is missing or does not belong to it. */
int gguf_join(struct foreign_model *f, struct gguf_file *g, const char *path, struct err *e) MUST_CHECK;
/* The name by which llama.cpp finds part `no` (from 0) of `count`, in the arena: "STEM-00001-of-00003.gguf". */
char *gguf_part_name(struct arena *a, const char *stem, size_t n_stem, uint32_t no, uint32_t count,
                     struct err *e) MUST_CHECK;
#define GGUF_MAX_PARTS 65535 /* split.count is a u16 */
/* *out = META's "imatrix" from the keys quantize.imatrix.*, NULL: there are none; and writes these
 * keys (gguf_origin.c). */
int gguf_read_origin(const struct gguf_file *g, struct arena *a, cJSON **out, struct err *e) MUST_CHECK;
void gguf_put_origin(struct gguf_header *h, const cJSON *meta);
/* *out = the general.* keys to keep in META, an object; NULL without error if there are none. */
int gguf_read_general(const struct gguf_file *g, struct arena *a, cJSON **out, struct err *e) MUST_CHECK;
/* The names of these keys without "general.", NULL-terminated. */
extern const char *const gguf_general_keys[];

/* Derives general.file_type from the types of all tensors (gguf_label.c). Begin with {0}. */
#define GGUF_LABEL_DTYPES 128
struct gguf_label { /* by dtype, of the layers' matrices; [1]: where the type may be a fallback */
    uint64_t elems[2][GGUF_LABEL_DTYPES];
    bool v_or_down[2][GGUF_LABEL_DTYPES], o[GGUF_LABEL_DTYPES], q[GGUF_LABEL_DTYPES];
    enum dtype outside; /* type of the embedding or head */
};
bool gguf_has_weights_of(enum dtype dtype); /* does llama.cpp support weights of this type? */
void gguf_label_add(struct gguf_label *l, struct model_slot s, enum dtype dtype, uint64_t row, uint64_t elems);
uint32_t gguf_label_file_type(const struct gguf_label *l);

/* Finds the parameters of llama3 scaling from the factors of rope_freqs.weight [model_rope_dims / 2]; if *c has
 * parameters already, checks them against the factors. ERR_DATA: no parameters give these factors. */
int gguf_rope_recover(struct model_config *c, const float *factors, struct err *e) MUST_CHECK;
/* factors [model_rope_dims / 2] = the plain frequencies divided by those of this configuration. */
int rope_factors(const struct model_config *c, float *factors, struct err *e) MUST_CHECK;

/* ---- safetensors (safetensors_read.c) ---------------------------------------------------------------------------- */

#define SAFETENSORS_MAX_HEADER 100000000u             /* the reference implementation's limit */
const char *safetensors_dtype_name(enum dtype dtype); /* "BF16"; NULL: safetensors has no such type */
/* Adds the tensors of one file to the table, with names in the arena. The caller sorts. ERR_DATA. */
int safetensors_parse(struct raw_table *t, const unsigned char *data, uint64_t n, struct arena *a,
                      struct err *e) MUST_CHECK;

/* ---- Hugging Face (hf_*.c) --------------------------------------------------------------------------------------- */

/* A member, or NULL: in all these files, null means absent. */
const cJSON *hf_member(const cJSON *object, const char *key);

/* What the value of a key of config.json may be. */
enum hf_rule {
    HF_READ,   /* anything: code reads and checks it */
    HF_SAME,   /* the value of key `text`, of which it is another name */
    HF_OFF,    /* false, 0, "", [] or {} */
    HF_TRUE,   /* true */
    HF_NUMBER, /* this number */
    HF_TEXT,   /* one of the words of `text`, "silu|swish" */
};
struct hf_key {
    const char *name;
    enum hf_rule rule;
    double number;
    const char *text;
    bool alone; /* HF_SAME: may occur without that key */
};
#define HF_KEY(n, r)                                                                                                   \
    { .name = n, .rule = r }
#define HF_KEY_TEXT(n, r, t)                                                                                           \
    { .name = n, .rule = r, .text = t }
#define HF_KEY_NUMBER(n, v)                                                                                            \
    { .name = n, .rule = HF_NUMBER, .number = v }
/* Checks every key of config.json against the class's own keys, which take precedence, and the common ones.
 * ERR_DATA names a key that asks for something that Rill does not compute, contradicts another, or is unknown and
 * not null, false or empty. */
int hf_check_keys(const cJSON *json, const struct hf_key *own, size_t n_own, struct err *e) MUST_CHECK;

/* Rotary settings from rope_scaling, rope_parameters, rope_theta and partial_rotary_factor. */
struct hf_rope {
    struct model_rope rope; /* dims are not set; factors are in the arena */
    double partial;         /* share of the head's dimensions that rotates; 1: all */
};
/* Theta and the share default to `defaults`. Its original context is the default of a class that has this key
 * at the top level, and 0 if the class has it among the rotary settings. ERR_DATA names both places of a
 * setting if they disagree. */
int hf_rope_read(struct hf_rope *r, const cJSON *json, const struct hf_rope *defaults, struct arena *a,
                 struct err *e) MUST_CHECK;
/* The same for a class whose sliding layers have a rotation of their own: "rope_local_base_freq" (transformers 4), or
 * an object per layer type in rope_parameters (transformers 5). */
int hf_rope_read_both(struct hf_rope *full, struct hf_rope *sliding, const cJSON *json, const struct hf_rope *defaults,
                      double default_sliding, struct arena *a, struct err *e) MUST_CHECK;
const char *hf_rope_type(const struct model_rope *rope); /* "llama3" */
/* Writes "rope_theta", "rope_scaling" and related keys. original_apart: the class has the original
 * context at the top level. */
bool hf_rope_put(cJSON *o, const struct model_config *c, bool original_apart);

/* For a class with several parts (hf_part.c): replaces *config by that of its language model and sets *part. Then
 * hf_tensors_part gives the tensors the names that they have in the language model alone, and marks those of other
 * parts as used, with a warning. */
int hf_config_part(cJSON **config, bool *part, struct err *e) MUST_CHECK;
int hf_tensors_part(const struct model_config *c, struct raw_table *t, struct arena *a, struct err *e) MUST_CHECK;
/* Reads config.json. ERR_DATA names the key. */
int hf_config_read(struct model_config *c, const cJSON *json, struct arena *a, struct err *e) MUST_CHECK;
/* ERR_DATA: transformers cannot load this shape; the message names the reason and, if there is one, a
 * format that can hold it. */
int hf_config_check(const struct model_config *c, struct err *e) MUST_CHECK;
cJSON *hf_config_write(const struct model_config *c, const struct vocab *v, enum dtype dtype, struct err *e) MUST_CHECK;
/* The regular expressions of known pre-tokenizers; ends with regex NULL. */
extern const struct hf_split {
    enum text_pre pre;
    const char *regex;
} hf_splits[];
/* Contents of a folder's tokenizer files; {NULL, 0}: absent. */
struct hf_tokenizer_files {
    struct span tokenizer;          /* tokenizer.json, or else ... */
    struct span vocab, merges;      /* ... vocab.json and merges.txt, or ... */
    struct span model;              /* ... tokenizer.model or spiece.model of SentencePiece, or ... */
    struct span words;              /* ... vocab.txt of BERT */
    struct span config, map, added; /* tokenizer_config.json, special_tokens_map.json, added_tokens.json */
    struct span chat_template;      /* chat_template.jinja */
    const cJSON *model_config;      /* config.json, or NULL; tells which class reads vocab.json */
    uint32_t n_rows;                /* of the embedding; 0: any number */
};
#define HF_CONFIG_FILE "tokenizer_config.json"
#define HF_MAP_FILE    "special_tokens_map.json"
#define HF_ADDED_FILE  "added_tokens.json"
/* Makes a draft for vocab_new. ERR_DATA names what is not supported, or the files that contradict each other. */
int hf_tokenizer_parse(struct vocab *spec, const struct hf_tokenizer_files *f, struct err *e) MUST_CHECK;

/* hf_pipeline_read.c: convert parts of a tokenizer.json to steps of a draft; x NULL: absent. Call hf_read_decoder
 * before the model is read. */
int hf_read_normalizer(struct vocab *spec, const cJSON *x, struct err *e) MUST_CHECK;
int hf_read_words(struct vocab *spec, const cJSON *x, struct err *e) MUST_CHECK; /* pre_tokenizer, not byte-level */
int hf_read_decoder(struct vocab *spec, const cJSON *x, struct err *e) MUST_CHECK;
const char *hf_type(const cJSON *object); /* its "type" */
bool hf_is_type(const cJSON *object, const char *type);
bool hf_flag(const cJSON *object, const char *key, bool fallback); /* fallback: the default of `tokenizers` */
int hf_refuse(struct err *e, const char *what, const cJSON *object);

/* hf_pipeline_write.c: the reverse, as members of the root; false: out of memory. Words and decoder of byte-level BPE
 * are handled elsewhere. */
bool hf_put_normalizer(cJSON *root, const struct vocab *v);
bool hf_put_words(cJSON *root, const struct vocab *v);
bool hf_put_decoder(cJSON *root, const struct vocab *v);
cJSON *hf_typed(const char *type); /* {"type": type} */
/* takes ownership of the child in any case; key NULL: appends to a list */
bool hf_put(cJSON *parent, const char *key, cJSON *child);

/* hf_tokenizer_read.c: reads tokenizer.json alone; *n_pieces = number of tokens of its model. */
int hf_read_tokenizer_json(struct vocab *spec, struct span text, uint32_t *n_pieces, struct err *e) MUST_CHECK;
/* Reads the tokens of a model ("vocab", at most n_json bytes of text) and the added tokens, or NULL. */
int hf_read_pieces(struct vocab *spec, const cJSON *vocab, const cJSON *added, size_t n_json, struct buf *scratch,
                   struct err *e) MUST_CHECK;
uint32_t hf_count_pieces(const cJSON *vocab);

/* spm_read.c: reads a SentencePiece model (tokenizer.model). ERR_DATA: truncated, malformed or not supported. */
int spm_read(struct vocab *spec, struct span data, struct err *e) MUST_CHECK;
/* Adds the steps that sentencepiece runs around a model, also for a GGUF; the draft's model_flags must be set. */
int spm_steps(struct vocab *spec, struct span charsmap, bool remove_extra, bool prefix, struct err *e) MUST_CHECK;

/* hf_tokens.c: joins the tokens of a draft, n_pieces of the model and the added ones, with those that other files
 * declare (NULL: absent). */
struct hf_token_files {
    const char *base; /* name of the draft's file, for messages */
    const cJSON *config, *map, *added;
    const cJSON *defaults; /* the class's default roles */
};
int hf_join_tokens(struct vocab *spec, const struct hf_token_files *files, uint32_t n_pieces, uint32_t n_rows,
                   struct err *e) MUST_CHECK;
/* *flags = the flags of an added token's object, including TOKEN_ADDED. normalized: the default of that key. */
int hf_token_flags(const cJSON *token, bool normalized, uint32_t *flags, struct err *e) MUST_CHECK;

/* ---- tokenizer drafts (draft.c): a struct vocab with pieces in its own arena, to be passed to vocab_new ---------- */

void draft_init(struct vocab *spec);
/* Allocates n tokens, all TOKEN_UNUSED. ERR_DATA: n is 0 or too large. */
int draft_tokens(struct vocab *spec, uint64_t n, struct err *e) MUST_CHECK;
/* Pads the tokens to the n rows of the embedding with TOKEN_UNUSED. ERR_DATA: there are fewer rows than tokens. */
int draft_pad(struct vocab *spec, uint32_t n, struct err *e) MUST_CHECK;
/* Sets bytes (copied) and flags of token `id`. ERR_DATA: not 1 to TEXT_MAX_PIECE bytes. */
int draft_piece(struct vocab *spec, uint32_t id, const void *bytes, size_t n, uint32_t flags, struct err *e) MUST_CHECK;
/* Adds a token that ends a generation, unless it is one already. ERR_DATA: too many. */
int draft_add_end(struct vocab *spec, uint32_t id, struct err *e) MUST_CHECK;
/* Adds a step (a and b are copied). ERR_DATA: too many. */
int draft_step(struct vocab *spec, enum text_op op, uint32_t arg, struct span a, struct span b,
               struct err *e) MUST_CHECK;
/* Appends the bytes of a piece as files spell it: byte-level spelling is undone, others are unchanged. */
int draft_unspell(const struct vocab *spec, struct span text, struct buf *out, struct err *e) MUST_CHECK;
/* Allocates n merges. *pieces, which the caller frees, is the vocabulary without merges, to look up ids; so the rest of
 * the draft must be complete. */
int draft_merges(struct vocab *spec, uint64_t n, struct vocab **pieces, struct err *e) MUST_CHECK;
/* Sets merge number `rank` from the spelling of its two halves. ERR_DATA: a half or the result is not a token. */
int draft_merge(struct vocab *spec, const struct vocab *pieces, uint32_t rank, struct span left, struct span right,
                struct buf *scratch, struct err *e) MUST_CHECK;
/* Makes the vocabulary from the draft; the caller frees *out and the draft's arena. */
int draft_finish(struct vocab *spec, struct vocab **out, struct err *e) MUST_CHECK;
/* Flags that a pre-tokenizer implies unless stated. */
bool pre_implies_nfc(enum text_pre pre);
bool pre_implies_ignore_merges(enum text_pre pre);

/* ---- tokens as GGUF and tokenizer.json spell them (spelling.c) --------------------------------------------------- */

/* Appends the spelling of a token that is not TOKEN_UNUSED. */
int token_spelling(const struct vocab *v, uint32_t id, struct buf *out, struct err *e) MUST_CHECK;
struct spellings {
    struct spelling {
        struct span text; /* in the buffer `text` */
        uint32_t id;
    } * items; /* sorted by text */
    size_t n;
    struct buf text;
};
/* Spells all tokens that have a text. ERR_DATA: two have the same spelling. spellings_release in any case. */
int spellings_make(struct spellings *s, const struct vocab *v, struct err *e) MUST_CHECK;
bool spellings_has(const struct spellings *s, const char *text);
void spellings_release(struct spellings *s);

/* ---- rotary rows (rotary_rows.c) --------------------------------------------------------------------------------- */

/* Does GGUF's llama architecture reorder the rows of this slot? */
bool slot_is_rotary(struct model_slot s);
/* Reorder rows of row_bytes each, of `heads` heads: from halves to interleaved pairs (export), and back (import). */
void rows_interleave(unsigned char *to, const unsigned char *from, uint64_t rows, uint64_t row_bytes, uint32_t heads);
void rows_split(unsigned char *to, const unsigned char *from, uint64_t rows, uint64_t row_bytes, uint32_t heads);

/* ---- an open model (foreign.c; hf_read.c for the folder) --------------------------------------------------------- */

struct source_file {
    struct mapped_file m;
    struct source_file *next;
};
struct foreign_source {
    struct source_file *files;
    struct digest_state *digest; /* of all files except shards, in the order in which they were opened */
    struct shards *shards;       /* NULL: the weights are not in shards */
    struct raw_table tensors;
    const struct arch_tensors *own, *common; /* names of the format's tensors */
    const char *const *unread;               /* see struct hf_side; or NULL */
    bool interleaved;                        /* q and k rows are in GGUF's llama order */
    bool always_o_bias;                      /* the architecture always has a bias on o */
    cJSON *hf_config;                        /* config.json; NULL for GGUF */
    cJSON *hf_generation;                    /* generation_config.json, or NULL */
    struct buf scratch, spare;               /* for reordered or realigned tensors */
};
/* Opens a whole GGUF in memory; `data` must outlive the model. */
int foreign_open_gguf(struct foreign_model **out, const unsigned char *data, uint64_t n,
                      const struct foreign_options *o, struct err *e) MUST_CHECK;
/* Maps a file as long as the model is open. */
int source_open(struct foreign_model *f, const char *path, const struct mapped_file **out, struct err *e) MUST_CHECK;
/* The same, and adds the file to the digest. */
int source_map(struct foreign_model *f, const char *path, const struct mapped_file **out, struct err *e) MUST_CHECK;

/* ---- shards (shards.c): absent ones are fetched when needed, and only one of them is present at a time ----------- */

#define SHARD_INDEX "model.safetensors.index.json"
struct shards;
int shards_new(struct shards **out, const struct foreign_options *o, struct err *e) MUST_CHECK;
void shards_free(struct shards *x);        /* no-op if NULL */
bool shards_fetch(const struct shards *x); /* can absent shards be fetched? */
/* Add the next shard, in the order of names: one that is present, by its digest, or an absent one, with the
 * names of its n tensors. */
int shards_add_known(struct shards *x, struct digest digest, struct err *e) MUST_CHECK;
int shards_add_absent(struct foreign_model *f, const char *file, const char *const *names, size_t n,
                      struct err *e) MUST_CHECK;
#define NO_SLOT SIZE_MAX
/*
 * Makes t->data and the other members of t valid, which may fetch its shard and drop the present one. Tensors of the
 * latter that slots from `slot` to the end of its layer need are copied before (NO_SLOT: none); a copy is dropped when
 * a later slot is requested. ERR_DATA: the shard does not match the index. Also returns the errors of `fetch`.
 */
int shards_need(struct foreign_model *f, struct raw_tensor *t, size_t slot, struct err *e) MUST_CHECK;
/* Combines the digest of a source's other files with those of all shards that were read. */
struct digest shards_digest(const struct shards *x, struct digest others);

/* ---- a model stream to be exported (export.c) -------------------------------------------------------------------- */

/* A tensor of the stream that is held in memory. */
struct export_held {
    struct model_slot slot;
    struct tensor_desc desc;
    const void *data; /* NULL: this entry is free */
    struct buf copy;
};
#define EXPORT_MAX_HELD 16 /* the most tensors of a layer that wait for others at a time: q, k, v, their biases, gate */

struct export_source {
    struct stream_map *map; /* NULL: tensors arrive in stream order, and some are held */
    struct export_held held[EXPORT_MAX_HELD];
    const cJSON *meta;
    struct model_config config;
    struct vocab *vocab; /* NULL: the stream has none */
    struct arena memory;
    struct buf stored, values, made; /* scratch buffers of export_data */
    struct buf altered, fused;       /* scratch buffers of out_tensor_data */
};
/* Reads the head and checks the number of tensors. export_release in any case. ERR_DATA. */
int export_open(struct export_source *x, struct stream_map *m, struct err *e) MUST_CHECK;
/* The same for a head whose tensors have not arrived yet; h must outlive x. */
int export_open_arriving(struct export_source *x, const struct model_head *h, struct err *e) MUST_CHECK;
void export_release(struct export_source *x);
/* Finds the tensor of a slot and checks its shape and type. ERR_DATA: missing or wrong. */
int export_find(struct export_source *x, struct model_slot s, struct stream_map_entry *entry, size_t *number,
                struct err *e) MUST_CHECK;
/* *data = the tensor's data converted to type `as`; valid until the next call. */
int export_data(struct export_source *x, size_t number, const struct tensor_desc *d, enum dtype as, const void **data,
                struct err *e) MUST_CHECK;
/* Converts *data, described by d, to type `as`; *data is then valid until the next call. */
int export_convert(struct export_source *x, const struct tensor_desc *d, enum dtype as, const void **data,
                   struct err *e) MUST_CHECK;
const char *export_name(const struct export_source *x); /* the model's name, or NULL */

/* ---- a Hugging Face folder (hf_read.c) --------------------------------------------------------------------------- */

/* Reads config.json and the tensors of the file `weights`, or if NULL those of model.safetensors or of the shards
 * that its index lists. */
int hf_read_model(struct foreign_model *f, const char *folder, const char *weights, const struct foreign_options *o,
                  struct err *e) MUST_CHECK;
/* *path = the main tokenizer file, the first of those in struct hf_tokenizer_files that exists; NULL: there is none.
 * ERR_DATA: there is one of another kind. */
int hf_find_tokenizer(struct foreign_model *f, const char *folder, const char **path, struct err *e) MUST_CHECK;
/* Reads the tokenizer from that file and those beside it. Token ids that these files lack, and the ends of a
 * generation, come from the model's config.json and generation_config.json. */
int hf_read_vocab(struct foreign_model *f, const char *path, struct vocab *spec, struct err *e) MUST_CHECK;
/* Read generation_config.json, if there is one, into f->source; once the vocabulary is known, keep in f->extra what is
 * worth keeping of it and of config.json. */
int hf_read_generation(struct foreign_model *f, const char *folder, struct err *e) MUST_CHECK;
int hf_keep_generation(struct foreign_model *f, struct err *e) MUST_CHECK;

#endif
