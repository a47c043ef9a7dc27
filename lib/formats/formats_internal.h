/*
 * Private to lib/formats. A foreign model is read in three layers, each of which can be tested and fuzzed alone:
 *
 *   bytes    mapped_file         a file as memory, nothing believed yet
 *   tensors  raw_table           gguf_parse and safetensors_parse check a file's structure and fill the same table
 *   meaning  foreign_source      config and tokenizer from GGUF keys or Hugging Face's JSON; names by role
 *
 * Everything below works on memory, so that tests and fuzzers need no files.
 */
#ifndef RILL_FORMATS_INTERNAL_H
#define RILL_FORMATS_INTERNAL_H

#include "lib/formats/formats.h"

struct span {
    const char *s; /* not NUL-terminated */
    uint64_t n;
};

/* ---- a file as memory (files.c) -------------------------------------------------------------------------------- */

struct mapped_file {
    const unsigned char *data; /* NULL when size is 0 */
    uint64_t size;
};
/* Maps a regular file, read-only. ERR_IO. As with any mmap, a file that is truncated while we read kills us by
 * SIGBUS. */
int mapped_file_open(struct mapped_file *m, const char *path, struct err *e) MUST_CHECK;
/* The same of an open one, which may have no name. */
int mapped_file_of(struct mapped_file *m, int fd, struct err *e) MUST_CHECK;
void mapped_file_close(struct mapped_file *m);
bool file_exists(const char *path);
/* "FOLDER/NAME" in the arena. */
char *path_join(struct arena *a, const char *folder, const char *name, struct err *e) MUST_CHECK;

/* ---- writing (output.c) ---------------------------------------------------------------------------------------- */

/* All of data, or ERR_IO. */
int write_all(int fd, const void *data, size_t n, struct err *e) MUST_CHECK;

/* ---- tensors as a foreign file has them (table.c) -------------------------------------------------------------- */

struct raw_tensor {
    const char *name; /* its name in the file, in the table's arena */
    enum dtype dtype;
    unsigned rank;
    uint64_t dims[TENSOR_MAX_RANK]; /* row-major whatever the file's order */
    const unsigned char *data;      /* in the mapped file, aligned or not */
    uint64_t n_bytes;
    bool used; /* it has a role in the model */
    /* Of one whose file may not be here (shards.c): */
    uint32_t shard;      /* number from 1; 0: it is here all the time */
    const char *indexed; /* its name in that file */
    bool unknown;        /* of it only its name is known: the file was never here */
    bool kept;           /* data are those of a copy */
    size_t needed;       /* by slots up to this number, from 1; 0: by none */
};
struct raw_table {
    struct raw_tensor *items; /* sorted by name once raw_table_sort has run */
    size_t n, cap;
};
int raw_table_reserve(struct raw_table *t, size_t extra, struct err *e) MUST_CHECK;
/* Sorts; ERR_DATA on a name that occurs twice. */
int raw_table_sort(struct raw_table *t, struct err *e) MUST_CHECK;
struct raw_tensor *raw_table_find(const struct raw_table *t, const char *name);
void raw_table_release(struct raw_table *t);
/* Bytes of a tensor of these dimensions by checked arithmetic; ERR_DATA on overflow, a zero dimension or a row
 * that is not a whole number of blocks. */
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

/* A value where it lies in the file: n elements of type `type` from `data` on, checked to be complete. */
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
/* Begin with {0}; release in any case. `data` must outlive it. */
int gguf_parse(struct gguf_file *g, const unsigned char *data, uint64_t n, struct arena *a, struct err *e) MUST_CHECK;
void gguf_release(struct gguf_file *g);
const struct gguf_kv *gguf_find(const struct gguf_file *g, const char *key);
/* Element i of an integer, bool or float value as the wanted type; false when it is none, or does not fit. */
bool gguf_kv_u64(const struct gguf_kv *kv, uint64_t i, uint64_t *out);
bool gguf_kv_f64(const struct gguf_kv *kv, uint64_t i, double *out);
/* Strings are read in order: begin with *at = 0. */
struct span gguf_kv_next_string(const struct gguf_kv *kv, uint64_t *at);
/* Accessors like those of JSON: opt_ leaves *out alone when there is no such key. */
int gguf_get_u64(const struct gguf_file *g, const char *key, uint64_t min, uint64_t max, uint64_t *out,
                 struct err *e) MUST_CHECK;
int gguf_opt_u64(const struct gguf_file *g, const char *key, uint64_t min, uint64_t max, uint64_t *out,
                 struct err *e) MUST_CHECK;
int gguf_opt_f64(const struct gguf_file *g, const char *key, double min, double max, double *out,
                 struct err *e) MUST_CHECK;
int gguf_opt_bool(const struct gguf_file *g, const char *key, bool *out, struct err *e) MUST_CHECK;
/* A copy with a NUL in the arena; ERR_DATA when it is not UTF-8 or holds a NUL. */
int gguf_opt_str(const struct gguf_file *g, const char *key, struct arena *a, const char **out,
                 struct err *e) MUST_CHECK;
/* An array of exactly this element type, or NULL without error when there is no such key. */
int gguf_opt_array(const struct gguf_file *g, const char *key, enum gguf_type type, const struct gguf_kv **out,
                   struct err *e) MUST_CHECK;

struct arch; /* arch_internal.h */
struct arch_tensors;
struct gguf_name;
int gguf_read_arch(const struct gguf_file *g, struct arena *a, const struct arch **out, const struct gguf_name **name,
                   struct err *e) MUST_CHECK;
/* What a key below the architecture's name may be (gguf_keys.c). */
enum gguf_rule {
    GGUF_READ,    /* code reads and checks it */
    GGUF_INERT,   /* has no effect here */
    GGUF_OFF,     /* false, 0 or empty: "not used" */
    GGUF_NUMBER,  /* this number, or 0 for "not set" */
    GGUF_TEXT,    /* this text */
    GGUF_SAME,    /* another name of key `text` */
    GGUF_CONTEXT, /* 0, or no less than the context */
};
struct gguf_key {
    const char *suffix;
    enum gguf_rule rule;
    double number;
    const char *text;
};
/* "llama.context_length" of "llama" and "context_length". Returns out. */
#define GGUF_KEY_SIZE 128
const char *gguf_arch_key(char out[GGUF_KEY_SIZE], const char *prefix, const char *suffix);
/* ERR_DATA: a key below the architecture's name asks for something that Rill does not compute, contradicts another, or
 * is not known; or the file is no model (general.type). */
int gguf_check_keys(const struct gguf_file *g, const char *prefix, const struct gguf_key *own, size_t n_own,
                    struct err *e) MUST_CHECK;
int gguf_read_config(const struct gguf_file *g, const struct arch *arch, const char *prefix, struct model_config *c,
                     struct arena *a, struct err *e) MUST_CHECK;
/* Rotary positions (gguf_rope.c), once context and heads are known; and back: keys, descriptions of tensors and, before all others, their
 * data. */
int gguf_read_rope(struct model_config *c, const struct gguf_file *g, const struct arch *arch, const char *prefix,
                   struct arena *a, struct err *e) MUST_CHECK;
struct gguf_header;
extern const char *const gguf_rope_tensors[]; /* their names, NULL-terminated */
void gguf_put_rope(struct gguf_header *h, const struct model_config *c);
void gguf_put_rope_tensors(struct gguf_header *h, const struct model_config *c);
int gguf_write_rope_tensors(const struct model_config *c, int fd, struct err *e) MUST_CHECK;
/* ERR_DATA: llama.cpp has no such rotation, whatever the architecture. */
int gguf_check_rope(const struct model_config *c, struct err *e) MUST_CHECK;
/* The tokenizer as a draft for vocab_new; *found is false when the file has none. */
int gguf_read_vocab(const struct gguf_file *g, struct vocab *spec, bool *found, struct err *e) MUST_CHECK;
/* The type for a token's flags, and whether that type alone leads back to them. */
uint32_t gguf_token_type(const struct vocab *v, uint32_t id);
bool gguf_type_says_all(const struct vocab *v, uint32_t id);

/* gguf_kinds.c: a value of tokenizer.ggml.model, and what llama.cpp assumes with it. */
struct gguf_kind {
    const char *model;
    enum text_kind kind;
    uint32_t bos, eos, unk, pad;
    bool prefix, add_bos, add_eos;
};
#define GGUF_STEPS_KEY "rill.tokenizer.steps"              /* text_steps_pack: exact, where GGUF's own keys are not */
const struct gguf_kind *gguf_find_kind(const char *model); /* NULL: not known */
const struct gguf_kind *gguf_kind_of(const struct vocab *v);
/* The text of a piece in tokenizer.ggml.tokens, appended, and the piece of a text; flags and kind are there. */
int gguf_put_piece(const struct vocab *v, uint32_t id, struct buf *out, struct err *e) MUST_CHECK;
int gguf_get_piece(const struct vocab *spec, uint32_t id, struct span text, struct buf *out, struct err *e) MUST_CHECK;
/* Kind, flags and steps of a draft; its tokens' scores. */
int gguf_read_steps(const struct gguf_file *g, const struct gguf_kind *k, struct vocab *spec, struct err *e) MUST_CHECK;
int gguf_read_scores(const struct gguf_file *g, struct vocab *spec, struct err *e) MUST_CHECK;
/* ERR_DATA when llama.cpp would encode otherwise; scores: [n_tokens], those to write. */
int gguf_check_kind(const struct vocab *v, float *scores, struct arena *a, struct err *e) MUST_CHECK;
/* The keys for the steps of a vocabulary that gguf_check_kind has accepted, BPE of characters or unigram. */
void gguf_spacing(const struct vocab *v, bool *prefix, bool *extra, struct span *charsmap);
/* Does llama.cpp end a generation at a token of this text, whatever the keys say? */
bool gguf_text_ends(const void *text, size_t n);
#define GGUF_ENDS_KEY "tokenizer.ggml.eos_token_ids" /* all ends of a generation: of Ollama's converter and ours */
/* The header of a GGUF under construction (gguf_header.c). After one failed put all others do nothing: check rc
 * once. */
struct gguf_header {
    struct buf bytes;
    uint64_t n_keys, n_tensors;
    uint64_t data_bytes; /* of the tensors described, each padded */
    int rc;
    struct err *e;
    char prefix[32]; /* "llama": put before keys that begin with a dot */
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
/* n elements are to be put after it. */
void gguf_key_array(struct gguf_header *h, const char *key, enum gguf_type type, uint64_t n);
/* Describes a tensor, whose data comes after that of those before it; dims as in a tensor_desc. */
void gguf_put_tensor(struct gguf_header *h, const char *name, unsigned rank, const uint64_t *dims, enum dtype as,
                     uint64_t bytes);
uint64_t gguf_padded(uint64_t bytes);
void gguf_put_split(struct gguf_header *h, uint32_t no, uint32_t count, uint32_t n_tensors);
/* Bytes of what gguf_write_header writes. They do not depend on the types of the tensors, nor on values of fixed size. */
uint64_t gguf_header_bytes(const struct gguf_header *keys, const struct gguf_header *infos);
/* Keys and descriptions, which are headers apart, as the beginning of a file; then comes the data of each tensor. */
int gguf_write_header(int fd, const struct gguf_header *keys, const struct gguf_header *infos,
                      struct err *e) MUST_CHECK;
int gguf_write_padded(int fd, const void *data, uint64_t n, struct err *e) MUST_CHECK;
/* Adds the tensors of the other parts of a split GGUF (gguf_split.c), of which `g` is the first and is at `path`; of one that
 * is whole, nothing. path NULL: it is in memory, and no part of anything. ERR_DATA: it is not the first, its name says nothing of
 * the others, one is missing or belongs elsewhere. */
int gguf_join(struct foreign_model *f, struct gguf_file *g, const char *path, struct err *e) MUST_CHECK;
/* The name of a part, number `no` from 0 of `count`, as llama.cpp finds it: "STEM-00001-of-00003.gguf". */
char *gguf_part_name(struct arena *a, const char *stem, size_t n_stem, uint32_t no, uint32_t count,
                     struct err *e) MUST_CHECK;
#define GGUF_MAX_PARTS 65535 /* split.count is of 16 bits */
/* META "imatrix" of what the keys quantize.imatrix.* say, NULL: nothing; and these keys of META (gguf_origin.c). */
int gguf_read_origin(const struct gguf_file *g, struct arena *a, cJSON **out, struct err *e) MUST_CHECK;
void gguf_put_origin(struct gguf_header *h, const cJSON *meta);
/* general.* keys that are worth keeping: an object, or NULL without error when there are none. */
int gguf_read_general(const struct gguf_file *g, struct arena *a, cJSON **out, struct err *e) MUST_CHECK;
/* The keys under general. that travel through META, NULL-terminated. */
extern const char *const gguf_general_keys[];

/* general.file_type from the types of all tensors (gguf_label.c). Begin with {0}. */
#define GGUF_LABEL_DTYPES 128
struct gguf_label { /* by dtype, of the matrices of layers; [1]: where the type may be a fallback */
    uint64_t elems[2][GGUF_LABEL_DTYPES];
    bool v_or_down[2][GGUF_LABEL_DTYPES], o[GGUF_LABEL_DTYPES], q[GGUF_LABEL_DTYPES];
    enum dtype outside; /* of embedding or head */
};
bool gguf_has_weights_of(enum dtype dtype); /* does llama.cpp? */
void gguf_label_add(struct gguf_label *l, struct model_slot s, enum dtype dtype, uint64_t row, uint64_t elems);
uint32_t gguf_label_file_type(const struct gguf_label *l);

/* Finds the parameters of llama3 scaling from the factors of rope_freqs.weight, [model_rope_dims / 2]; when *c has
 * them already, checks them against the factors. ERR_DATA when there are none. */
int gguf_rope_recover(struct model_config *c, const float *factors, struct err *e) MUST_CHECK;
/* The factors by which this configuration divides the plain frequencies, [model_rope_dims / 2]. */
int rope_factors(const struct model_config *c, float *factors, struct err *e) MUST_CHECK;

/* ---- safetensors (safetensors_read.c) -------------------------------------------------------------------------- */

#define SAFETENSORS_MAX_HEADER 100000000u             /* the reference implementation's limit */
const char *safetensors_dtype_name(enum dtype dtype); /* "BF16", or NULL */
/* Adds the tensors of one file to the table (names in the arena). The caller sorts. */
int safetensors_parse(struct raw_table *t, const unsigned char *data, uint64_t n, struct arena *a,
                      struct err *e) MUST_CHECK;

/* ---- Hugging Face (hf_keys.c, hf_rope.c, hf_part.c, hf_config.c, hf_tokenizer_*.c, hf_tokens.c, hf_read.c) ---------------- */

/* A member; null stands for absent everywhere in these files. */
const cJSON *hf_member(const cJSON *object, const char *key);

/* What a key of config.json may be. */
enum hf_rule {
    HF_READ,   /* anything: code reads and checks it */
    HF_SAME,   /* another name of key `text`: the same value */
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
    bool alone; /* HF_SAME: may occur without the key that it duplicates */
};
#define HF_KEY(n, r)                                                                                                   \
    { .name = n, .rule = r }
#define HF_KEY_TEXT(n, r, t)                                                                                           \
    { .name = n, .rule = r, .text = t }
#define HF_KEY_NUMBER(n, v)                                                                                            \
    { .name = n, .rule = HF_NUMBER, .number = v }
/* Checks every key of config.json against the keys of its class (`own`, which win) and the common ones. ERR_DATA
 * names a key that asks for something that Rill does not compute, that contradicts another, or that is not known and
 * not null, false or empty. */
int hf_check_keys(const cJSON *json, const struct hf_key *own, size_t n_own, struct err *e) MUST_CHECK;

/* The rotary settings, from rope_scaling, rope_parameters, rope_theta and partial_rotary_factor. */
struct hf_rope {
    struct model_rope rope; /* without dims; factors in the arena */
    double partial;         /* the share of the head's dimensions that rotates, 1 for all */
};
/* Theta and the share default to `defaults`, whose original context is that of a class that has it at the top level (0: it has not).
 * ERR_DATA names both places of a setting when they disagree. */
int hf_rope_read(struct hf_rope *r, const cJSON *json, const struct hf_rope *defaults, struct arena *a,
                 struct err *e) MUST_CHECK;
/* The same where layers of sliding attention have a rotation of their own: "rope_local_base_freq" (transformers 4), or an object
 * for each type of layer in rope_parameters (5). */
int hf_rope_read_both(struct hf_rope *full, struct hf_rope *sliding, const cJSON *json, const struct hf_rope *defaults,
                      double default_sliding, struct arena *a, struct err *e) MUST_CHECK;
const char *hf_rope_type(const struct model_rope *rope); /* "llama3" */
/* "rope_theta", "rope_scaling" and what is beside them. original_apart: the class has the original context at the top level. */
bool hf_rope_put(cJSON *o, const struct model_config *c, bool original_apart);

/* A class with several parts (hf_part.c): *config becomes that of its language model, and *part true. Then the tensors take the
 * names that they have in the language model alone; those of other parts are marked as used, with a warning. */
int hf_config_part(cJSON **config, bool *part, struct err *e) MUST_CHECK;
int hf_tensors_part(const struct model_config *c, struct raw_table *t, struct arena *a, struct err *e) MUST_CHECK;
/* config.json. */
int hf_config_read(struct model_config *c, const cJSON *json, struct arena *a, struct err *e) MUST_CHECK;
/* ERR_DATA: transformers cannot load this shape; names what, and what can express it. */
int hf_config_check(const struct model_config *c, struct err *e) MUST_CHECK;
cJSON *hf_config_write(const struct model_config *c, const struct vocab *v, enum dtype dtype, struct err *e) MUST_CHECK;
/* The regular expressions by which known pre-tokenizers split; ends with regex NULL. */
extern const struct hf_split {
    enum text_pre pre;
    const char *regex;
} hf_splits[];
/* The texts of a folder's tokenizer files; {NULL, 0}: there is no such file. */
struct hf_tokenizer_files {
    struct span tokenizer;          /* tokenizer.json, or else ... */
    struct span vocab, merges;      /* ... vocab.json and merges.txt, or ... */
    struct span model;              /* ... tokenizer.model or spiece.model, of SentencePiece, or ... */
    struct span words;              /* ... vocab.txt, of BERT */
    struct span config, map, added; /* tokenizer_config.json, special_tokens_map.json, added_tokens.json */
    struct span chat_template;      /* chat_template.jinja */
    const cJSON *model_config;      /* config.json, or NULL: which class reads vocab.json */
    uint32_t n_rows;                /* of the embedding; 0: any number */
};
#define HF_CONFIG_FILE "tokenizer_config.json"
#define HF_MAP_FILE    "special_tokens_map.json"
#define HF_ADDED_FILE  "added_tokens.json"
/* A draft for vocab_new. ERR_DATA names what is not supported, and the files that contradict each other. */
int hf_tokenizer_parse(struct vocab *spec, const struct hf_tokenizer_files *f, struct err *e) MUST_CHECK;

/* hf_pipeline_read.c: parts of a tokenizer.json as steps of a draft; x NULL: there is none. The decoder before the
 * model. */
int hf_read_normalizer(struct vocab *spec, const cJSON *x, struct err *e) MUST_CHECK;
int hf_read_words(struct vocab *spec, const cJSON *x, struct err *e) MUST_CHECK; /* pre_tokenizer, not byte-level */
int hf_read_decoder(struct vocab *spec, const cJSON *x, struct err *e) MUST_CHECK;
const char *hf_type(const cJSON *object); /* its "type" */
bool hf_is_type(const cJSON *object, const char *type);
bool hf_flag(const cJSON *object, const char *key, bool fallback); /* fallback: the default of `tokenizers` */
int hf_refuse(struct err *e, const char *what, const cJSON *object);

/* hf_pipeline_write.c: and back, as members of the root; false: out of memory. Not for the words and the decoder of
 * byte-level BPE. */
bool hf_put_normalizer(cJSON *root, const struct vocab *v);
bool hf_put_words(cJSON *root, const struct vocab *v);
bool hf_put_decoder(cJSON *root, const struct vocab *v);
cJSON *hf_typed(const char *type);                         /* {"type": type} */
bool hf_put(cJSON *parent, const char *key, cJSON *child); /* takes the child in any case; key NULL: into a list */

/* hf_tokenizer_read.c: a tokenizer.json alone; *n_pieces: tokens of its model. */
int hf_read_tokenizer_json(struct vocab *spec, struct span text, uint32_t *n_pieces, struct err *e) MUST_CHECK;
/* The tokens of a model ("vocab", n_json bytes of text at most) and the added ones, or NULL. */
int hf_read_pieces(struct vocab *spec, const cJSON *vocab, const cJSON *added, size_t n_json, struct buf *scratch,
                   struct err *e) MUST_CHECK;
uint32_t hf_count_pieces(const cJSON *vocab);

/* spm_read.c: a SentencePiece model (tokenizer.model). ERR_DATA: cut, damaged, or what is not supported. */
int spm_read(struct vocab *spec, struct span data, struct err *e) MUST_CHECK;
/* The steps of sentencepiece around a model, in the draft whose model_flags are set: of a GGUF as well. */
int spm_steps(struct vocab *spec, struct span charsmap, bool remove_extra, bool prefix, struct err *e) MUST_CHECK;

/* hf_tokens.c: the tokens of a draft, the n_pieces of the model and the added ones, joined with those that the other
 * files declare (NULL: there is none). */
struct hf_token_files {
    const char *base; /* the file that the draft comes from, for messages */
    const cJSON *config, *map, *added;
    const cJSON *defaults; /* roles that the class has by default */
};
int hf_join_tokens(struct vocab *spec, const struct hf_token_files *files, uint32_t n_pieces, uint32_t n_rows,
                   struct err *e) MUST_CHECK;
/* The flags of an added token's object, TOKEN_ADDED among them. `normalized`: unless it says so. */
int hf_token_flags(const cJSON *token, bool normalized, uint32_t *flags, struct err *e) MUST_CHECK;

/* ---- tokenizer drafts (draft.c): a struct vocab whose pieces live in its own arena, on the way to vocab_new ---- */

void draft_init(struct vocab *spec);
/* tokens = [n], all TOKEN_UNUSED. */
int draft_tokens(struct vocab *spec, uint64_t n, struct err *e) MUST_CHECK;
/* More rows in the embedding than tokens: the rest are TOKEN_UNUSED. ERR_DATA when there are fewer. */
int draft_pad(struct vocab *spec, uint32_t n, struct err *e) MUST_CHECK;
/* Token `id` gets these bytes (copied) and flags. ERR_DATA: not 1 to TEXT_MAX_PIECE bytes. */
int draft_piece(struct vocab *spec, uint32_t id, const void *bytes, size_t n, uint32_t flags, struct err *e) MUST_CHECK;
/* One more token that ends a generation, unless it is one already. ERR_DATA: too many. */
int draft_add_end(struct vocab *spec, uint32_t id, struct err *e) MUST_CHECK;
/* One more step (a and b are copied). ERR_DATA: too many. */
int draft_step(struct vocab *spec, enum text_op op, uint32_t arg, struct span a, struct span b,
               struct err *e) MUST_CHECK;
/* The bytes of a piece as files spell it, appended: byte-level spelling undone, anything else as it is. */
int draft_unspell(const struct vocab *spec, struct span text, struct buf *out, struct err *e) MUST_CHECK;
/* Space for n merges. *pieces (the caller frees it) is the vocabulary without them, to look up ids: the rest of the
 * draft must be complete. */
int draft_merges(struct vocab *spec, uint64_t n, struct vocab **pieces, struct err *e) MUST_CHECK;
/* Merge number `rank` from the spelling of its two halves. */
int draft_merge(struct vocab *spec, const struct vocab *pieces, uint32_t rank, struct span left, struct span right,
                struct buf *scratch, struct err *e) MUST_CHECK;
/* Turns the draft into a vocabulary. */
int draft_finish(struct vocab *spec, struct vocab **out, struct err *e) MUST_CHECK;
/* Flags that a pre-tokenizer implies by default. */
bool pre_implies_nfc(enum text_pre pre);
bool pre_implies_ignore_merges(enum text_pre pre);

/* ---- tokens as GGUF and tokenizer.json spell them (spelling.c) -------------------------------------------------- */

/* Appends the spelling of a token that is not TOKEN_UNUSED. */
int token_spelling(const struct vocab *v, uint32_t id, struct buf *out, struct err *e) MUST_CHECK;
struct spellings {
    struct spelling {
        struct span text; /* in the buffer */
        uint32_t id;
    } * items; /* sorted by text */
    size_t n;
    struct buf text;
};
/* Of all tokens with a text. ERR_DATA when two have the same. spellings_release in any case. */
int spellings_make(struct spellings *s, const struct vocab *v, struct err *e) MUST_CHECK;
bool spellings_has(const struct spellings *s, const char *text);
void spellings_release(struct spellings *s);

/* ---- names by role (names.c) ----------------------------------------------------------------------------------- */

/* Does GGUF's llama architecture permute the rows of q or k of this role? */
bool slot_is_rotary(struct model_slot s);
/* rows of n_bytes each, `heads` heads: half-split order to interleaved pairs (export) and back (import). */
void rows_interleave(unsigned char *to, const unsigned char *from, uint64_t rows, uint64_t row_bytes, uint32_t heads);
void rows_split(unsigned char *to, const unsigned char *from, uint64_t rows, uint64_t row_bytes, uint32_t heads);

/* ---- an open model (foreign.c; hf_read.c for the folder) ------------------------------------------------------- */

struct source_file {
    struct mapped_file m;
    struct source_file *next;
};
struct foreign_source {
    struct source_file *files;
    struct digest_state *digest; /* of the files but shards, in the order in which they were opened */
    struct shards *shards;       /* NULL: the weights are in no shards */
    struct raw_table tensors;
    const struct arch_tensors *own, *common; /* names of its tensors */
    const char *const *unread;               /* see struct hf_side; or NULL */
    bool interleaved;                        /* q and k rows are in GGUF's llama order */
    bool always_o_bias;                      /* the architecture has a bias on o */
    cJSON *hf_config;                        /* config.json, NULL for GGUF */
    cJSON *hf_generation;                    /* generation_config.json, or NULL */
    struct buf scratch, spare;               /* reordered or realigned tensors */
};
/* From memory that outlives the model: `data` is a whole GGUF. */
int foreign_open_gguf(struct foreign_model **out, const unsigned char *data, uint64_t n,
                      const struct foreign_options *o, struct err *e) MUST_CHECK;
/* Maps a file for as long as the model is open. */
int source_open(struct foreign_model *f, const char *path, const struct mapped_file **out, struct err *e) MUST_CHECK;
/* The same, and adds it to the digest. */
int source_map(struct foreign_model *f, const char *path, const struct mapped_file **out, struct err *e) MUST_CHECK;

/* ---- shards (shards.c): those that are not in the folder are fetched when they are needed, and one is here at a time ---- */

#define SHARD_INDEX "model.safetensors.index.json"
struct shards;
int shards_new(struct shards **out, const struct foreign_options *o, struct err *e) MUST_CHECK;
void shards_free(struct shards *x);        /* NULL is fine */
bool shards_fetch(const struct shards *x); /* is there a way to fetch one? */
/* The next shard in the order of names: one that is there, by its digest; and one that is not, with the names of its n tensors. */
int shards_add_known(struct shards *x, struct digest digest, struct err *e) MUST_CHECK;
int shards_add_absent(struct foreign_model *f, const char *file, const char *const *names, size_t n,
                      struct err *e) MUST_CHECK;
#define NO_SLOT SIZE_MAX
/*
 * Makes t->data and what else is known of it valid, which may fetch its shard and let go of the one that was here: of that,
 * copies are kept of the tensors that slots from `slot` to the end of its layer need (NO_SLOT: of none). They are let go
 * of when a later slot is asked for. ERR_DATA: the shard is not what the index says. The errors of the fetching function.
 */
int shards_need(struct foreign_model *f, struct raw_tensor *t, size_t slot, struct err *e) MUST_CHECK;
/* The digest of a source whose other files have this one: with those of all shards that were read. */
struct digest shards_digest(const struct shards *x, struct digest others);

/* ---- a model stream on its way out (export.c) ------------------------------------------------------------------ */

/* A tensor of the stream that is in memory. */
struct export_held {
    struct model_slot slot;
    struct tensor_desc desc;
    const void *data; /* NULL: this place is free */
    struct buf copy;
};
#define EXPORT_MAX_HELD 16 /* as many tensors of a layer wait for others at a time: q, k, v, their biases, gate */

struct export_source {
    struct stream_map *map; /* NULL: tensors arrive one after another, and some are held */
    struct export_held held[EXPORT_MAX_HELD];
    const cJSON *meta;
    struct model_config config;
    struct vocab *vocab; /* NULL: the stream has none */
    struct arena memory;
    struct buf stored, values, made; /* scratch of export_data, */
    struct buf altered, fused;       /* and of out_tensor_data */
};
/* Reads the head and checks it against the tensors. export_release in any case. */
int export_open(struct export_source *x, struct stream_map *m, struct err *e) MUST_CHECK;
/* The same for a head whose tensors are yet to come; it must outlive x. */
int export_open_arriving(struct export_source *x, const struct model_head *h, struct err *e) MUST_CHECK;
void export_release(struct export_source *x);
/* The tensor of a slot, checked for shape and type. */
int export_find(struct export_source *x, struct model_slot s, struct stream_map_entry *entry, size_t *number,
                struct err *e) MUST_CHECK;
/* Its data as another type; valid until the next call. */
int export_data(struct export_source *x, size_t number, const struct tensor_desc *d, enum dtype as, const void **data,
                struct err *e) MUST_CHECK;
/* Makes *data, of this description, data of another type. */
int export_convert(struct export_source *x, const struct tensor_desc *d, enum dtype as, const void **data,
                   struct err *e) MUST_CHECK;
const char *export_name(const struct export_source *x); /* of the model, or NULL */

/* ---- a Hugging Face folder (hf_read.c) ------------------------------------------------------------------------- */

/* config.json and the tensors of `weights`, or when that is NULL of model.safetensors or of the shards its index
 * names. */
int hf_read_model(struct foreign_model *f, const char *folder, const char *weights, const struct foreign_options *o,
                  struct err *e) MUST_CHECK;
/* The file that the folder's tokenizer begins with, the first of those in struct hf_tokenizer_files; *path is NULL when
 * it has none, ERR_DATA when it has one of another kind. */
int hf_find_tokenizer(struct foreign_model *f, const char *folder, const char **path, struct err *e) MUST_CHECK;
/* The tokenizer from that file and those beside it (struct hf_tokenizer_files). The model's config.json and
 * generation_config.json add ids of tokens that these do not say, and the ends of a generation. */
int hf_read_vocab(struct foreign_model *f, const char *path, struct vocab *spec, struct err *e) MUST_CHECK;
/* generation_config.json, where there is one, into f->source; and what of it and of config.json is worth keeping into
 * f->extra, when the vocabulary is there. */
int hf_read_generation(struct foreign_model *f, const char *folder, struct err *e) MUST_CHECK;
int hf_keep_generation(struct foreign_model *f, struct err *e) MUST_CHECK;

#endif
