/*
 * text: tokenizers. Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) with the pre-tokenizers of the models
 * that Rill reads; BPE over characters with byte fallback, as in SentencePiece (Llama 2, Gemma); the unigram model
 * (Kudo 2018; T5, XLM-R); WordPiece (BERT). A vocabulary is data: it is read from the VOCB record of a model stream or
 * from a foreign file, and written again without loss.
 *
 * For byte-level BPE and every byte string x, decode(encode(x)) == normalise(x), where normalise is the identity unless
 * the vocabulary asks for NFC (Qwen2's does; the option `no_normalise` of text_encode turns it off). Bytes that are not
 * UTF-8 are kept. There are two exceptions, both properties of the vocabulary: white space next to an added token with
 * TOKEN_LSTRIP or TOKEN_RSTRIP, and bytes without a token, which are counted in text_ids.n_lost.
 */
#ifndef RILL_TEXT_H
#define RILL_TEXT_H

#include "lib/base/base.h"

/* Pre-tokenizers, which split text before merging; named as in tokenizer.ggml.pre of GGUF. Numbers are fixed: they are
 * stored in VOCB. */
enum text_pre {
    PRE_GPT2 = 1,
    PRE_LLAMA_BPE = 2,
    PRE_QWEN2 = 3,
    PRE_SMOLLM = 4,
    PRE_STEPS = 5, /* by the vocabulary's steps; for all kinds except byte-level BPE */
};
const char *text_pre_name(enum text_pre pre);
int text_pre_parse(const char *name, enum text_pre *out, struct err *e) MUST_CHECK;

enum token_flags {
    TOKEN_SPECIAL = 1, /* a control token such as <|endoftext|>; omitted from text for readers */
    TOKEN_ADDED = 2,   /* matched in the raw text before the pre-tokenizer (special ones, too) */
    TOKEN_LSTRIP = 4,  /* the match includes white space before it ... */
    TOKEN_RSTRIP = 8,  /* ... and after it */
    TOKEN_SINGLE_WORD = 16,
    TOKEN_NORMALIZED = 32, /* matched in the normalised text */
    TOKEN_UNUSED = 64,     /* padding of the embedding matrix: has no text */
};

/* How words become tokens. Numbers are fixed: they are stored in VOCB. */
enum text_kind {
    TEXT_BYTE_BPE = 0,  /* merges over bytes */
    TEXT_CHAR_BPE = 1,  /* merges over characters: those listed or, if there are none, those implied by the scores */
    TEXT_UNIGRAM = 2,   /* the sequence of pieces with the highest sum of scores */
    TEXT_WORDPIECE = 3, /* the longest piece first; pieces inside a word have a prefix */
};
const char *text_kind_name(enum text_kind kind);

enum text_model_flags {
    MODEL_BYTE_FALLBACK = 1, /* a character without a piece becomes the pieces "<0xHH>" of its bytes */
    MODEL_FUSE_UNK = 2,      /* BPE: consecutive characters without a piece become one unknown token */
    MODEL_FLOAT_SUMS = 4,    /* unigram: sums in f32 over the whole text, as in sentencepiece */
    /* bytes that are not UTF-8 become U+FFFD, as in sentencepiece; else their byte piece or unknown */
    MODEL_REPLACE_BAD = 8,
};

/*
 * The steps applied to text before and after the model, in order: normaliser, words and, for decoding, the decoder.
 * They are those of Hugging Face's `tokenizers` and of sentencepiece. Numbers are fixed: they are stored in VOCB. `a`
 * and `b` are UTF-8 unless stated otherwise. "Start" is the start of the text; a fragment is the text between two added
 * tokens.
 */
enum text_op {
    NORM_NFC = 1,
    NORM_NFD = 2,
    NORM_NFKC = 3,
    NORM_NFKD = 4,
    NORM_LOWERCASE = 5,
    NORM_STRIP_ACCENTS = 6, /* removes all combining marks */
    NORM_STRIP = 7,         /* white space at the front (arg 1) or the end (2) of a fragment */
    NORM_REPLACE = 8,       /* replaces a by b */
    NORM_PREPEND = 9,       /* prepends a to every non-empty fragment; arg 1: only at the start */
    NORM_BERT = 10,         /* arg: enum bert_flags */
    NORM_CHARSMAP = 11,     /* a: sentencepiece's precompiled map, binary; arg 1: longest match, 0: by grapheme */
    NORM_COLLAPSE = 12,     /* two or more consecutive spaces become b */
    NORM_SPACES = 13,       /* sentencepiece's remove_extra_whitespaces */
    WORDS_METASPACE = 32,   /* spaces become U+2581; arg: enum metaspace_flags */
    WORDS_SPLIT = 33,       /* at every a; arg: enum split_behavior */
    WORDS_WHITESPACE = 34,  /* runs of word characters, and runs of other visible characters */
    WORDS_WHITESPACE_SPLIT = 35,
    WORDS_BERT = 36,         /* at white space; each punctuation character is a word */
    WORDS_DIGITS = 37,       /* arg 1: each digit is a word */
    WORDS_PUNCTUATION = 38,  /* arg: enum split_behavior */
    WORDS_PREFIX_SPACE = 39, /* byte-level BPE: a space before a fragment that does not begin with one */
    DECODE_REPLACE = 64,     /* replaces a by b in each token */
    DECODE_BYTES = 65,       /* "<0xHH>" is a byte */
    DECODE_FUSE = 66,
    DECODE_STRIP = 67,     /* after DECODE_FUSE: removes a at the start, at most arg times */
    DECODE_METASPACE = 68, /* U+2581 becomes a space; with arg 1 it is removed from the first token */
    /* a: the prefix inside words; other tokens are preceded by a space; arg 1: joins English contractions */
    DECODE_WORDPIECE = 69,
    DECODE_JOIN = 70,     /* a space between tokens */
    MODEL_WORDPIECE = 96, /* a: the prefix inside words; arg: words of more characters are unknown */
};
enum bert_flags { BERT_CLEAN = 1, BERT_CHINESE = 2, BERT_ACCENTS = 4, BERT_LOWERCASE = 8 };
/* A prefix is added to the first word of a text, or to every fragment; spaces begin new words. */
enum metaspace_flags { METASPACE_FIRST = 1, METASPACE_ALWAYS = 2, METASPACE_SPLIT = 4 };
enum split_behavior { SPLIT_REMOVED, SPLIT_ISOLATED, SPLIT_WITH_PREVIOUS, SPLIT_WITH_NEXT, SPLIT_CONTIGUOUS };
struct text_step {
    uint32_t op, arg; /* enum text_op */
    const unsigned char *a, *b;
    uint32_t n_a, n_b;
};
#define TEXT_MAX_STEPS      64
#define TEXT_MAX_STEP_BYTES (4u << 20)

struct token {
    const unsigned char *bytes; /* the piece, not NUL-terminated: raw bytes in byte-level BPE; else as spelled, with
                                 * U+2581 for a space and "<0xHH>" for a byte */
    uint32_t n_bytes;           /* 0 only for TOKEN_UNUSED */
    uint32_t flags;
    float score; /* unigram: log-probability; BPE over characters without merges: the highest merges first; else 0 */
};
struct merge {
    uint32_t left, right, result;
};

#define TOKEN_NONE      UINT32_MAX
#define TEXT_MAX_TOKENS (1u << 24)
#define TEXT_MAX_MERGES (1u << 26)
#define TEXT_MAX_PIECE  65536
#define TEXT_MAX_ENDS   1024

#define METASPACE_TEXT "\xe2\x96\x81" /* U+2581, which represents a space in pieces */

/* A complete tokenizer. Read-only once made; may be shared by threads. */
struct vocab {
    uint32_t n_tokens, n_merges;
    /* output: number of tokens up to the last one that is not TOKEN_UNUSED, at least 1; the same for all models of a
     * tokenizer */
    uint32_t n_unpadded;
    struct token *tokens;
    struct merge *merges; /* in order of rank, best first */
    enum text_kind kind;
    uint32_t model_flags; /* enum text_model_flags */
    enum text_pre pre;
    const struct text_step *steps; /* [n_steps], in groups: normaliser, words, decoder, model */
    uint32_t n_steps;
    bool nfc;           /* normaliser: NFC; excludes other normaliser steps */
    bool ignore_merges; /* a pre-token that is a piece is not split (Llama 3) */
    bool add_bos, add_eos;
    uint32_t bos, eos, pad; /* TOKEN_NONE: there is none. eos separates documents ... */
    const uint32_t *ends;   /* [n_ends] ... and is one of the tokens that end a generation: ascending, unique */
    uint32_t n_ends;
    uint32_t unk;              /* for bytes without a token: unk_token of the BPE model, TOKEN_NONE in most */
    const char *chat_template; /* UTF-8 or NULL */
    struct digest digest;      /* identity: covers what ids mean and how text is split (README.md), but not the
                                * template, bos ... ends, unk and final padding, so that base and chat models of a
                                * family are equal */
    struct text_index *index;  /* private: hash tables, compiled patterns */
    struct arena memory;
};

/* Makes a vocabulary from the tokens, merges and settings of `spec`, all copied, and builds its index. ERR_DATA names
 * the offending token or merge: ids must be in range, result = left + right, and no piece may occur twice, except that
 * an added token may be spelled like an ordinary one. spec->ends may be unordered and lack eos, which is added. To get
 * the ids of merges given as text, first make a vocabulary without merges and use vocab_find. Caller frees. */
int vocab_new(struct vocab **out, const struct vocab *spec, struct err *e) MUST_CHECK;
void vocab_free(struct vocab *v);
/* Append the vocabulary to `out` as the bytes of a VOCB record, and parse them; vocab_unpack trusts nothing. Layout:
 * formats/vocb.md. */
int vocab_pack(const struct vocab *v, struct buf *out, struct err *e) MUST_CHECK;
int vocab_unpack(struct vocab **out, const void *data, size_t n, struct err *e) MUST_CHECK;
/* The same for kind, model_flags and steps alone. When parsing, arrays are in `memory`, a and b point into `data`. */
int text_steps_pack(const struct vocab *v, struct buf *out, struct err *e) MUST_CHECK;
int text_steps_unpack(struct vocab *spec, const void *data, size_t n, struct arena *memory, struct err *e) MUST_CHECK;
const struct text_step *vocab_find_step(const struct vocab *v, enum text_op op); /* the first one, or NULL */
/* The digest of the vocabulary in a VOCB record, without building it: for programs that only pass it on. */
int vocab_identity(const void *data, size_t n, struct digest *out, struct err *e) MUST_CHECK;
/* The tokens that end a generation, ascending, from a VOCB record: ends [TEXT_MAX_ENDS + 1]. */
int vocab_read_ends(const void *data, size_t n, uint32_t *ends, uint32_t *n_ends, struct err *e) MUST_CHECK;
/* The id of a piece by its bytes, or TOKEN_NONE. An ordinary token is preferred to an added one. */
uint32_t vocab_find(const struct vocab *v, const void *bytes, size_t n);
/* The text of a token that is not the first of a text; empty for a control token. For bits per byte. */
const unsigned char *vocab_text(const struct vocab *v, uint32_t id, uint32_t *n);
static inline uint32_t vocab_text_bytes(const struct vocab *v, uint32_t id) {
    uint32_t n;
    vocab_text(v, id, &n);
    return n;
}
/* Appends a token as spelled for people and in files: byte-level pieces in GPT-2's printable alphabet, others
 * unchanged. */
int vocab_spell(const struct vocab *v, uint32_t id, struct buf *out, struct err *e) MUST_CHECK;
/* The merges implied by scores: all pairs of pieces that form a third piece, the highest score first, in the order of
 * Hugging Face's converters. In arena `a`. */
int vocab_derive_merges(const struct vocab *v, struct arena *a, struct merge **merges, uint32_t *n,
                        struct err *e) MUST_CHECK;
/* The byte represented by a piece "<0xHH>", or -1. */
int text_byte_piece(const struct token *t);

/* Byte-level spelling (GPT-2's printable alphabet) of raw bytes as UTF-8, and back; for tokenizer.json and GGUF. */
int text_spell(const void *bytes, size_t n, struct buf *out, struct err *e) MUST_CHECK;
/* ERR_DATA: a character outside the alphabet. */
int text_unspell(const char *spelled, size_t n, struct buf *out, struct err *e) MUST_CHECK;

struct text_ids {
    uint32_t *ids;
    size_t n, cap;
    uint64_t n_lost; /* bytes without a token: replaced by unk or, in a vocabulary without unk, omitted */
};
void text_ids_release(struct text_ids *ids);

struct text_encode_options {
    bool plain_specials; /* special tokens in the text are treated as plain text */
    bool no_normalise;
    bool continues; /* the text continues another one, which ended at a safe cut: no prefix is added */
};
/* Appends the tokens of text[0..n) to *ids, without BOS or EOS. NULL options: none set. Thread-safe; working memory is
 * kept in v for later calls. */
int text_encode(const struct vocab *v, const void *text, size_t n, const struct text_encode_options *o,
                struct text_ids *ids, struct err *e) MUST_CHECK;
/* Appends the bytes of the tokens. ERR_DATA for an id outside the vocabulary. skip_special: omits control tokens. */
int text_decode(const struct vocab *v, const uint32_t *ids, size_t n, bool skip_special, struct buf *out,
                struct err *e) MUST_CHECK;
/* The same for tokens that continue a text: no leading space is removed. */
int text_decode_on(const struct vocab *v, const uint32_t *ids, size_t n, bool skip_special, struct buf *out,
                   struct err *e) MUST_CHECK;

/*
 * Finds a position where a long text may be cut so that encoding both parts separately, the second with `continues`,
 * equals encoding the whole, with any options. Returns the largest position in (0, n) that is known to be safe whatever
 * follows, or 0 if there is none. This allows reading files of any length in constant memory; most texts have such a
 * position every few bytes.
 */
size_t text_safe_cut(const struct vocab *v, const void *text, size_t n);

/*
 * Makes a vocabulary of the tokens with keep[id] != 0 and those they require: all intermediate tokens of their merges,
 * the single bytes, and all special and added tokens. The order stays. map[old id] becomes the new id or TOKEN_NONE
 * (caller's, [n_tokens]). ERR_USAGE if no token is left.
 */
int vocab_prune(struct vocab **out, const struct vocab *v, const unsigned char *keep, uint32_t *map,
                struct err *e) MUST_CHECK;

/* ---- text in files ---- */

/* Length of a UTF-8 byte order mark at the start of the text: 3 or 0. */
static inline size_t text_bom(const void *data, size_t n) {
    return n >= 3 && memcmp(data, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
}
/* Checks the beginning of a text input: TEXT_BEGIN_BYTES bytes, or all there are. *skip is the length of a byte order
 * mark, which is not part of the text. ERR_DATA names what is not text: UTF-16 and UTF-32, compressed files, models. */
#define TEXT_BEGIN_BYTES 16
int text_begin(const void *data, size_t n, size_t *skip, struct err *e) MUST_CHECK;
/* Length of the line text[0..n), which was followed by \n, without the \r of a line end \r\n. */
static inline size_t text_line_length(const void *text, size_t n) {
    return n && ((const char *)text)[n - 1] == '\r' ? n - 1 : n;
}

/* ---- corpora: encode text of any length to batches of sequences, in bounded memory ---- */

enum corpus_documents {
    CORPUS_WHOLE,     /* the whole input is one document */
    CORPUS_LINES,     /* each line is a document, without its \n or \r\n; empty lines are skipped */
    CORPUS_JSONL,     /* the string `field` of the object on each line is a document */
    CORPUS_CHAT,      /* `compose` makes a document of the JSON on each line */
    CORPUS_SEPARATED, /* each document ends with a line equal to `separator`, or with the input */
};
/* A part of a document's text, in bytes. */
struct corpus_span {
    size_t start, end;
};
/* Makes a document of the JSON text line[0..n): appends its text, and as struct corpus_span, ascending and disjoint,
 * the parts to train on. Both buffers are empty at first. Called by several threads. */
typedef int corpus_compose(void *ctx, const void *line, size_t n, struct buf *text, struct buf *spans, struct err *e);
/* A byte order mark at the start of the input or of a line of JSON is not part of the text. CORPUS_WHOLE keeps line
 * ends, \r\n included. */
/* Which sequences share a pack (corpus_options.pack). */
enum corpus_packing {
    PACKING_BEST_FIT, /* best-fit decreasing over the documents of some million tokens; over all documents in Ding et
                       * al. 2024, "Fewer truncations improve language modeling" (arXiv 2404.10830) */
    PACKING_NEXT_FIT, /* in input order */
};
enum corpus_eos {
    EOS_NEVER,
    EOS_BETWEEN, /* before every document except the first; only with a context */
    EOS_AFTER,   /* after every document */
};
/* Switches to the next of several inputs, where a new document begins; *more = false: there is none. */
typedef int corpus_next(void *ctx, bool *more, struct err *e);
struct corpus_options {
    enum corpus_documents documents;
    corpus_next *next; /* NULL: there is only one input. ctx is that of corpus_encode */
    const char *field;
    /* CORPUS_SEPARATED: not empty, without a line end. The line end before it is dropped, too */
    const char *separator;
    corpus_compose *compose; /* CORPUS_CHAT */
    void *compose_ctx;
    /* CORPUS_CHAT: batches have a mask that is 1 for tokens with a byte in a span; 0 for the BOS and EOS that are
     * added. */
    bool mask;
    /* CORPUS_LINES, CORPUS_JSONL: each line is a labelled text. `label` names its label: the number of a tab-separated
     * column, from 1 up, or a member of the object. A label is a class given by number or, with `classes`, by name.
     * `field` and `pair` name the text and, if not NULL, a second text in the same way. EOS separates the two (twice in
     * vocabularies other than WordPiece: RoBERTa), and batches have token types, 1 for the second text and the EOS
     * after it. */
    const char *label, *pair;
    /* CORPUS_JSONL: `field` names a list of words, and `tags` a list of as many classes by number or name, null for
     * none. Each word is encoded by itself; its first token has its class as label, its other tokens have none. Batches
     * have a label per position. */
    const char *tags;
    const char *const *classes; /* [n_classes] */
    uint32_t n_classes;
    /* with labels or tags: longer sequences are truncated, in a pair the longer text first; 0: no limit */
    uint32_t longest;
    uint32_t context; /* 0: a document is a sequence. N: documents are joined and cut into sequences of N tokens */
    bool drop_last;   /* ... and the last sequence is dropped if it is shorter */
    /* N: a document is a sequence, or several if it has more than N tokens, and sequences are grouped into packs. A
     * pack is a maximal run of consecutive sequences with a total length of at most N; readers recover packs by this
     * rule. Not with a context or labels. 0: no packs. */
    uint32_t pack;
    enum corpus_packing packing;
    uint32_t pool; /* PACKING_BEST_FIT: tokens packed at a time, at least N; 0: 4 Mi */
    bool bos;      /* every sequence begins with v->bos (counted in N) */
    enum corpus_eos eos;
    uint64_t max_tokens; /* stop after this many; 0: no limit */
    /* Positions per batch. A context or pack is never split; a longer document continues in the next batch. */
    uint32_t batch_tokens;
    uint32_t window; /* bytes of text in memory at a time; 0: 4 MiB. Grows if the text cannot be cut */
    struct text_encode_options encode;
};
/* As in a stream: sequences are concatenated; first_pos > 0: the first one continues from the previous batch. */
struct corpus_batch {
    uint64_t first_seq, first_pos, n_positions;
    uint32_t n_seqs;
    bool continues;          /* the last sequence continues in the next batch */
    const uint32_t *tokens;  /* [n_positions] */
    const uint8_t *mask;     /* [n_positions], or NULL */
    const uint8_t *types;    /* likewise */
    const uint32_t *labels;  /* per sequence that ends here or, with tags, per position; or NULL */
    const uint32_t *lengths; /* [n_seqs], none 0 */
};
struct corpus_totals {
    uint64_t input_bytes; /* read and used */
    uint64_t text_bytes;  /* in the tokens written; the divisor of bits per byte */
    uint64_t lost_bytes;  /* text_ids.n_lost */
    uint64_t documents, empty_documents, sequences, tokens, batches;
    uint64_t packs; /* 0 without corpus_options.pack */
    bool stopped;   /* by max_tokens: there may be more input */
};
/* Reads up to n bytes of input; *got 0: the end. */
typedef int corpus_read(void *ctx, void *dst, size_t n, size_t *got, struct err *e);
typedef int corpus_write(void *ctx, const struct corpus_batch *batch, struct err *e);

/*
 * Masks tokens for a masked language model (Devlin et al. 2019, section 3.1): each token except control tokens with
 * probability `rate`, of which 80% become the mask token, 10% a random token, and 10% stay. labels [n_positions]
 * receives the original token where it is to be predicted, else TOKEN_NONE. The result for a token depends only on the
 * seed, the number of its sequence and its position. tokens may be b->tokens. The mask token is [MASK] or <mask>:
 * ERR_USAGE if there is none.
 */
int corpus_mask_token(const struct vocab *v, uint32_t *out, struct err *e) MUST_CHECK;
void corpus_mask_tokens(const struct vocab *v, uint32_t mask, double rate, uint64_t seed, const struct corpus_batch *b,
                        uint32_t *tokens, uint32_t *labels);

/* limit of batch_tokens, context and pack; they are at least 1, or 2 for a context or pack with BOS */
#define CORPUS_MAX_BATCH (1u << 24)

/* Encodes on parallel_threads() threads; the result depends neither on their number nor on how `read` divides the
 * input. ERR_DATA for input that is not text (text_begin); errors in JSON lines name the line. On an error `totals` are
 * valid up to where it occurred. */
int corpus_encode(const struct vocab *v, const struct corpus_options *o, corpus_read *read, corpus_write *write,
                  void *ctx, struct corpus_totals *totals, struct err *e) MUST_CHECK;

/* Sets o->bos and o->eos according to "auto", "always" or "never". auto: BOS if the vocabulary asks for it; EOS, if the
 * vocabulary has one, between documents with a context, after each with packs, and otherwise after each if the
 * vocabulary asks for it. */
void corpus_choose_specials(struct corpus_options *o, const struct vocab *v, const char *bos, const char *eos);
/* Add the description of a corpus to META (vocab, vocab_size, packed, context, pack, documents, bos, eos), and the
 * totals under their names and as bytes_per_token. Return false if out of memory. */
bool corpus_describe(cJSON *to, const struct vocab *v, const struct corpus_options *o);
bool corpus_totals_put(cJSON *to, const struct corpus_totals *t);

/* Decoding: removes the BOS that corpus_encode added to each sequence, and restores the line end that it removed after
 * one. */
struct corpus_decoding {
    bool bos, line_ends; /* sequences begin with BOS; documents were lines */
    bool skip_special;   /* set by the caller: omit control tokens */
};
int corpus_decoding(const cJSON *meta, struct corpus_decoding *how, struct err *e) MUST_CHECK; /* from META */
/* Appends the text of a batch. ERR_DATA names the sequence. */
int corpus_decode(const struct vocab *v, const struct corpus_decoding *how, const struct corpus_batch *b,
                  struct buf *out, struct err *e) MUST_CHECK;

#endif
