/*
 * text: tokenizers. Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) with the pre-tokenizers of the models
 * that Rill reads; BPE over characters with byte fallback, as SentencePiece has it (Llama 2, Gemma); the unigram model
 * (Kudo 2018; T5, XLM-R); WordPiece (BERT). A vocabulary is data: it comes from a model stream's VOCB record or a
 * foreign file, and goes out again complete.
 *
 * With byte-level BPE, for every byte string x: decode(encode(x)) == normalise(x), and normalise is the identity unless
 * the vocabulary asks for NFC (Qwen2's does; the `no_normalise` option of text_encode turns it off). Bytes that are no
 * UTF-8 are kept. Two exceptions, both the vocabulary's own: white space that an added token swallows (TOKEN_LSTRIP,
 * TOKEN_RSTRIP), and bytes that it has no token for, which are counted in text_ids.n_lost.
 */
#ifndef RILL_TEXT_H
#define RILL_TEXT_H

#include "lib/base/base.h"

/* How text is cut before merging. Names as in GGUF's tokenizer.ggml.pre. Numbers are pinned: they are in VOCB. */
enum text_pre {
    PRE_GPT2 = 1,
    PRE_LLAMA_BPE = 2,
    PRE_QWEN2 = 3,
    PRE_SMOLLM = 4,
    PRE_STEPS = 5, /* by the steps of the vocabulary; the other kinds than byte-level BPE */
};
const char *text_pre_name(enum text_pre pre);
int text_pre_parse(const char *name, enum text_pre *out, struct err *e) MUST_CHECK;

enum token_flags {
    TOKEN_SPECIAL = 1, /* a control token: <|endoftext|>; skipped when text is printed for a reader */
    TOKEN_ADDED = 2,   /* matched in the raw text before the pre-tokenizer (special ones too) */
    TOKEN_LSTRIP = 4,  /* the match swallows white space before it ... */
    TOKEN_RSTRIP = 8,  /* ... and after it */
    TOKEN_SINGLE_WORD = 16,
    TOKEN_NORMALIZED = 32, /* matched in the normalised text */
    TOKEN_UNUSED = 64,     /* padding of the embedding matrix: has no text */
};

/* How words become tokens. Numbers are pinned: they are in VOCB. */
enum text_kind {
    TEXT_BYTE_BPE = 0,  /* merges over bytes */
    TEXT_CHAR_BPE = 1,  /* merges over characters: those listed or, where there are none, those that the scores make */
    TEXT_UNIGRAM = 2,   /* the sequence of pieces with the best sum of scores */
    TEXT_WORDPIECE = 3, /* the longest piece first; a piece inside a word carries a prefix */
};
const char *text_kind_name(enum text_kind kind);

enum text_model_flags {
    MODEL_BYTE_FALLBACK = 1, /* a character without a piece becomes the pieces "<0xHH>" of its bytes */
    MODEL_FUSE_UNK = 2,      /* BPE: several characters without a piece in a row are one unknown token */
    MODEL_FLOAT_SUMS = 4,    /* unigram: sums in f32 over the whole text, as sentencepiece computes them */
    MODEL_REPLACE_BAD = 8, /* a byte that is not UTF-8 is U+FFFD, as in sentencepiece; else its byte piece or unknown */
};

/*
 * What is done to a text around the model, one step after the other: normaliser, then words, then, on the way back, the
 * decoder. Steps are those of Hugging Face's `tokenizers` and of sentencepiece; numbers are pinned: they are in VOCB.
 * `a` and `b` are UTF-8 unless said otherwise. "The start" is that of the text; a fragment is what lies between added
 * tokens.
 */
enum text_op {
    NORM_NFC = 1,
    NORM_NFD = 2,
    NORM_NFKC = 3,
    NORM_NFKD = 4,
    NORM_LOWERCASE = 5,
    NORM_STRIP_ACCENTS = 6, /* drops all combining marks */
    NORM_STRIP = 7,         /* white space at the front (arg 1), at the end (2) of a fragment */
    NORM_REPLACE = 8,       /* a by b */
    NORM_PREPEND = 9,       /* a, to every fragment that is not empty; arg 1: only at the start */
    NORM_BERT = 10,         /* arg: enum bert_flags */
    NORM_CHARSMAP = 11,     /* a: sentencepiece's precompiled map, binary; arg 1: longest match, 0: by grapheme */
    NORM_COLLAPSE = 12,     /* two or more spaces in a row become b */
    NORM_SPACES = 13,       /* sentencepiece's remove_extra_whitespaces */
    WORDS_METASPACE = 32,   /* spaces become U+2581; arg: enum metaspace_flags */
    WORDS_SPLIT = 33,       /* at every a; arg: enum split_behavior */
    WORDS_WHITESPACE = 34,  /* runs of word characters, runs of others that are visible */
    WORDS_WHITESPACE_SPLIT = 35,
    WORDS_BERT = 36,         /* at white space; punctuation stands alone */
    WORDS_DIGITS = 37,       /* arg 1: one by one */
    WORDS_PUNCTUATION = 38,  /* arg: enum split_behavior */
    WORDS_PREFIX_SPACE = 39, /* byte-level BPE: a space in front of a fragment that begins with none */
    DECODE_REPLACE = 64,     /* in each token a by b */
    DECODE_BYTES = 65,       /* "<0xHH>" is a byte */
    DECODE_FUSE = 66,
    DECODE_STRIP = 67,     /* after DECODE_FUSE: at most arg times a at the start */
    DECODE_METASPACE = 68, /* U+2581 is a space, but nothing in the first token when arg is 1 */
    DECODE_WORDPIECE =
        69,           /* a: the prefix inside words; other tokens follow a space; arg 1: English contractions join */
    DECODE_JOIN = 70, /* a space between tokens */
    MODEL_WORDPIECE = 96, /* a: the prefix inside words; arg: a word of more characters is unknown */
};
enum bert_flags { BERT_CLEAN = 1, BERT_CHINESE = 2, BERT_ACCENTS = 4, BERT_LOWERCASE = 8 };
enum metaspace_flags {
    METASPACE_FIRST = 1,
    METASPACE_ALWAYS = 2,
    METASPACE_SPLIT = 4
}; /* a prefix: at the start, always */
enum split_behavior { SPLIT_REMOVED, SPLIT_ISOLATED, SPLIT_WITH_PREVIOUS, SPLIT_WITH_NEXT, SPLIT_CONTIGUOUS };
struct text_step {
    uint32_t op, arg; /* enum text_op */
    const unsigned char *a, *b;
    uint32_t n_a, n_b;
};
#define TEXT_MAX_STEPS      64
#define TEXT_MAX_STEP_BYTES (4u << 20)

struct token {
    const unsigned char *bytes; /* the piece: byte-level BPE's own bytes, not their printable spelling; else as it is
                                   spelled, with U+2581 for a space, "<0xHH>" for a byte; not NUL-terminated */
    uint32_t n_bytes;           /* 0 only for TOKEN_UNUSED */
    uint32_t flags;
    float score; /* unigram: log-probability; BPE of characters without merges: the best joins first; else 0 */
};
struct merge {
    uint32_t left, right, result;
};

#define TOKEN_NONE      UINT32_MAX
#define TEXT_MAX_TOKENS (1u << 24)
#define TEXT_MAX_MERGES (1u << 26)
#define TEXT_MAX_PIECE  65536
#define TEXT_MAX_ENDS   1024

#define METASPACE_TEXT "\xe2\x96\x81" /* U+2581, which stands for a space in pieces */

/* Everything that describes a tokenizer. Read-only after it was made; safe to share between threads. */
struct vocab {
    uint32_t n_tokens, n_merges;
    /* OUT: tokens without the TOKEN_UNUSED ones at the end, what models of one tokenizer have in common; at least 1. */
    uint32_t n_unpadded;
    struct token *tokens;
    struct merge *merges; /* in order of rank, best first */
    enum text_kind kind;
    uint32_t model_flags; /* enum text_model_flags */
    enum text_pre pre;
    const struct text_step *steps; /* [n_steps], by op's group: normaliser, words, decoder, model */
    uint32_t n_steps;
    bool nfc;           /* normaliser: NFC before all else; then there is no other step of one */
    bool ignore_merges; /* a pre-token that is a piece is taken whole (Llama 3) */
    bool add_bos, add_eos;
    uint32_t bos, eos, pad; /* TOKEN_NONE: has none. eos is what separates documents ... */
    const uint32_t *ends;   /* [n_ends] ... and one of the tokens that end a generation: ascending, none twice */
    uint32_t n_ends;
    uint32_t unk;              /* for bytes without a token: unk_token of the BPE model itself, TOKEN_NONE in most */
    const char *chat_template; /* UTF-8 or NULL */
    struct digest digest;      /* identity: what a token id means and how text is cut (README.md). Not in it: template,
                                    bos ... ends, unk, padding at the end: base and chat models of a family are the same */
    struct text_index *index;  /* private: hash tables, compiled patterns */
    struct arena memory;
};

/* Takes tokens, merges (checked: ids in range, result = left + right, no piece twice, but an added token may be spelled
 * like an ordinary one) and the settings of `spec` (copied), builds the index. ERR_DATA names the offending token or
 * merge. spec->ends may be in any order and without eos, which joins them. To find the ids of merges that are given as
 * text: make a vocabulary without merges, vocab_find in it, make the real one. */
int vocab_new(struct vocab **out, const struct vocab *spec, struct err *e) MUST_CHECK;
void vocab_free(struct vocab *v);
/* The bytes of a VOCB record, appended, and back. vocab_unpack trusts nothing. Layout: formats/vocb.md. */
int vocab_pack(const struct vocab *v, struct buf *out, struct err *e) MUST_CHECK;
int vocab_unpack(struct vocab **out, const void *data, size_t n, struct err *e) MUST_CHECK;
/* The kind, model_flags and steps alone as bytes, appended, and back into a spec: arrays in `memory`, a and b in
 * `data`. */
int text_steps_pack(const struct vocab *v, struct buf *out, struct err *e) MUST_CHECK;
int text_steps_unpack(struct vocab *spec, const void *data, size_t n, struct arena *memory, struct err *e) MUST_CHECK;
const struct text_step *vocab_find_step(const struct vocab *v, enum text_op op); /* the first, or NULL */
/* The digest of the vocabulary that such bytes hold, without building it: for programs that only pass it on. */
int vocab_identity(const void *data, size_t n, struct digest *out, struct err *e) MUST_CHECK;
/* The tokens that end a generation, ascending, of such bytes, without building anything: ends [TEXT_MAX_ENDS + 1]. */
int vocab_read_ends(const void *data, size_t n, uint32_t *ends, uint32_t *n_ends, struct err *e) MUST_CHECK;
/* The id of a piece by its bytes, an ordinary token before an added one, or TOKEN_NONE. */
uint32_t vocab_find(const struct vocab *v, const void *bytes, size_t n);
/* The text that a token stands for where other tokens precede it: nothing for a control token. For bits per byte. */
const unsigned char *vocab_text(const struct vocab *v, uint32_t id, uint32_t *n);
static inline uint32_t vocab_text_bytes(const struct vocab *v, uint32_t id) {
    uint32_t n;
    vocab_text(v, id, &n);
    return n;
}
/* A token as people and files spell it: byte-level pieces in GPT-2's printable alphabet, all others as they are. */
int vocab_spell(const struct vocab *v, uint32_t id, struct buf *out, struct err *e) MUST_CHECK;
/* The merges that scores make: every two pieces that are a third one together, the better third first, in the order in
 * which Hugging Face's converters list them. In the arena. */
int vocab_derive_merges(const struct vocab *v, struct arena *a, struct merge **merges, uint32_t *n,
                        struct err *e) MUST_CHECK;
/* The byte that a piece "<0xHH>" stands for, or -1. */
int text_byte_piece(const struct token *t);

/* Byte-level spelling (GPT-2's printable alphabet) of raw bytes as UTF-8, and back; for tokenizer.json and GGUF. */
int text_spell(const void *bytes, size_t n, struct buf *out, struct err *e) MUST_CHECK;
/* ERR_DATA: not of the alphabet. */
int text_unspell(const char *spelled, size_t n, struct buf *out, struct err *e) MUST_CHECK;

struct text_ids {
    uint32_t *ids;
    size_t n, cap;
    uint64_t n_lost; /* bytes without a token: unk stands for them or, in a vocabulary without unk, nothing */
};
void text_ids_release(struct text_ids *ids);

struct text_encode_options {
    bool plain_specials; /* special tokens in the text are text, not tokens */
    bool no_normalise;
    bool continues; /* the text goes on where another ended, at a safe cut: nothing is put in front of it */
};
/* Appends the tokens of text[0..n) to *ids. Adds no BOS or EOS: that is the caller's. Any number of threads at a time;
 * each leaves some working memory with v. NULL options: none set. */
int text_encode(const struct vocab *v, const void *text, size_t n, const struct text_encode_options *o,
                struct text_ids *ids, struct err *e) MUST_CHECK;
/* Appends the bytes of the tokens. ERR_DATA for an id outside the vocabulary. skip_special: without control tokens. */
int text_decode(const struct vocab *v, const uint32_t *ids, size_t n, bool skip_special, struct buf *out,
                struct err *e) MUST_CHECK;
/* The same for tokens that follow others of the same text: no space in front is taken away. */
int text_decode_on(const struct vocab *v, const uint32_t *ids, size_t n, bool skip_special, struct buf *out,
                   struct err *e) MUST_CHECK;

/*
 * Where may a long text be cut so that encoding the two halves apart, the second with `continues`, equals encoding the
 * whole, with any options?
 * Returns the largest position in (0, n) that is known to be safe whatever follows, or 0 when there is none: for
 * reading files of any length in constant memory. Most texts have one every few bytes.
 */
size_t text_safe_cut(const struct vocab *v, const void *text, size_t n);

/*
 * The vocabulary cut to the tokens with keep[id] != 0, with merges kept closed: every token on the way to a kept one is
 * kept as well, so that it can still be reached, and so are the single bytes, all special and all added tokens. The
 * order stays. map[old id] becomes the new id or TOKEN_NONE (caller's, [n_tokens]).
 */
int vocab_prune(struct vocab **out, const struct vocab *v, const unsigned char *keep, uint32_t *map,
                struct err *e) MUST_CHECK;

/* ---- text as files have it --------------------------------------------------------------------------------------- */

/* Bytes of a UTF-8 byte order mark in front of the text: 3 or 0. */
static inline size_t text_bom(const void *data, size_t n) {
    return n >= 3 && memcmp(data, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
}
/* Judges a text input by its first bytes, TEXT_BEGIN_BYTES of them or all there are. *skip: those of a byte order mark,
 * which is no part of the text. ERR_DATA names what is no text: UTF-16 and UTF-32, compressed files, models. */
#define TEXT_BEGIN_BYTES 16
int text_begin(const void *data, size_t n, size_t *skip, struct err *e) MUST_CHECK;
/* Length of the line text[0..n), which a \n followed, without the \r of a line end \r\n. */
static inline size_t text_line_length(const void *text, size_t n) {
    return n && ((const char *)text)[n - 1] == '\r' ? n - 1 : n;
}

/* ---- corpora: text of any length in, batches of sequences out, in memory that does not grow with it -------------- */

enum corpus_documents {
    CORPUS_WHOLE,     /* the whole input is one document */
    CORPUS_LINES,     /* each line is one, without its \n or \r\n; an empty line is none */
    CORPUS_JSONL,     /* the string `field` of the object on each line is one */
    CORPUS_CHAT,      /* what `compose` makes of the JSON on each line is one */
    CORPUS_SEPARATED, /* documents end with a line that is `separator`, or with the input */
};
/* Part of a document's text, in bytes. */
struct corpus_span {
    size_t start, end;
};
/* Makes a document of the JSON text in line[0..n): its text, and as struct corpus_span, ascending and disjoint, the parts
 * to be learnt. Both buffers are empty at first. Called on several threads at a time. */
typedef int corpus_compose(void *ctx, const void *line, size_t n, struct buf *text, struct buf *spans, struct err *e);
/* A byte order mark at the start of the input, or of a line of JSON, is no part of the text. In a whole input line ends
 * are text like any other: \r\n stays what it is. */
/* Which sequences share a pack (corpus_options.pack). */
enum corpus_packing {
    PACKING_BEST_FIT, /* best-fit decreasing over the documents of some million tokens: Ding et al. 2024, "Fewer
                       * truncations improve language modeling" (arXiv 2404.10830), there over all documents */
    PACKING_NEXT_FIT, /* in the order of the input */
};
enum corpus_eos {
    EOS_NEVER,
    EOS_BETWEEN, /* in front of every document but the first; means nothing without a context */
    EOS_AFTER,   /* after every document */
};
/* Goes on to the next of several inputs, in which another document begins; *more = false: there is none. */
typedef int corpus_next(void *ctx, bool *more, struct err *e);
struct corpus_options {
    enum corpus_documents documents;
    corpus_next *next; /* NULL: there is one input. Its ctx is that of corpus_encode */
    const char *field;
    const char *separator;   /* CORPUS_SEPARATED: not empty, without a line end. The line end before it goes with it */
    corpus_compose *compose; /* CORPUS_CHAT */
    void *compose_ctx;
    /* CORPUS_CHAT: batches have a mask, 1 for tokens with a byte in a span. BOS and EOS that are put in are 0. */
    bool mask;
    /* CORPUS_LINES, CORPUS_JSONL: each line is a text with a label: the number of a tab-separated column from 1 up, or the name of
     * a member of the object. A label is a class by number, or by name where there are `classes`. `field` names the text
     * likewise, and `pair`, if not NULL, a second one: EOS stands between them (two of them in vocabularies that are not WordPiece:
     * RoBERTa), and batches have token types, 1 for the second text and the EOS after it. */
    const char *label, *pair;
    /* CORPUS_JSONL: `field` is a list of words and `tags` one of as many classes, numbers or names, null where a word has none. Words
     * are encoded each by itself; the first token of one has its class as label, the others have none. Batches have a label
     * for each position. */
    const char *tags;
    const char *const *classes; /* [n_classes] */
    uint32_t n_classes;
    uint32_t
        longest; /* with labels or tags: a sequence of more tokens is cut, of a pair the longer text first; 0: none is */
    uint32_t context; /* 0: a document is a sequence. N: documents are joined and cut into sequences of N tokens */
    bool drop_last;   /* ... and the last one, if it is shorter, is left out */
    /* N: a document is a sequence, or several if it has more than N tokens, and sequences are written pack by pack. Consecutive
     * sequences are a pack as long as their sum is at most N: that is how a reader finds packs again. Not with a context or labels.
     * 0: no packs. */
    uint32_t pack;
    enum corpus_packing packing;
    uint32_t pool; /* PACKING_BEST_FIT: tokens that are packed at a time; 0: 4 Mi. At least N */
    bool bos;      /* every sequence begins with v->bos (counted in N) */
    enum corpus_eos eos;
    uint64_t max_tokens; /* stop after so many; 0: never */
    /* Positions in a batch. No sequence of a context or pack is parted; a longer document goes on in the next batch. */
    uint32_t batch_tokens;
    uint32_t window; /* bytes of text in memory at a time; 0: 4 MiB. More where the text has no place to cut */
    struct text_encode_options encode;
};
/* As in a stream: sequences are contiguous; first_pos > 0: the first one continues from the batch before. */
struct corpus_batch {
    uint64_t first_seq, first_pos, n_positions;
    uint32_t n_seqs;
    bool continues;          /* the last sequence goes on in the next batch */
    const uint32_t *tokens;  /* [n_positions] */
    const uint8_t *mask;     /* [n_positions], or NULL */
    const uint8_t *types;    /* likewise */
    const uint32_t *labels;  /* of each sequence that ends or, with tags, of each position; or NULL */
    const uint32_t *lengths; /* [n_seqs], none 0 */
};
struct corpus_totals {
    uint64_t input_bytes; /* read and used */
    uint64_t text_bytes;  /* that the tokens written stand for: what bits per byte divides by */
    uint64_t lost_bytes;  /* text_ids.n_lost */
    uint64_t documents, empty_documents, sequences, tokens, batches;
    uint64_t packs; /* 0 without corpus_options.pack */
    bool stopped;   /* by max_tokens: there may be more input */
};
/* Up to n bytes of input; *got 0 is its end. */
typedef int corpus_read(void *ctx, void *dst, size_t n, size_t *got, struct err *e);
typedef int corpus_write(void *ctx, const struct corpus_batch *batch, struct err *e);

/*
 * Masks tokens for a masked language model (Devlin et al. 2019, section 3.1): each token but control tokens with probability
 * `rate`, and of these 80% become the mask token, 10% a random one, 10% stay. labels [n_positions]: the token as it was where
 * it is to be predicted, else TOKEN_NONE. What happens to a token depends on the seed, the number of its sequence and its
 * position alone. tokens may be b->tokens. The mask token is [MASK] or <mask>: ERR_USAGE when there is none.
 */
int corpus_mask_token(const struct vocab *v, uint32_t *out, struct err *e) MUST_CHECK;
void corpus_mask_tokens(const struct vocab *v, uint32_t mask, double rate, uint64_t seed, const struct corpus_batch *b,
                        uint32_t *tokens, uint32_t *labels);

#define CORPUS_MAX_BATCH (1u << 24) /* batch_tokens and context are at most this and at least 1, a context with BOS 2 */

/* Encodes on parallel_threads() threads; what is written depends neither on their number nor on how the input arrives
 * in pieces. ERR_DATA for input that is no text (text_begin). An error in a JSON line names the line. `totals` are
 * right up to where an error occurred. */
int corpus_encode(const struct vocab *v, const struct corpus_options *o, corpus_read *read, corpus_write *write,
                  void *ctx, struct corpus_totals *totals, struct err *e) MUST_CHECK;

/* Sets o->bos and o->eos by "auto", "always" or "never". auto: BOS if the vocabulary asks for it; EOS, if the
 * vocabulary has one, between documents with a context, after each with packs, and without either after each if the vocabulary
 * asks for it. */
void corpus_choose_specials(struct corpus_options *o, const struct vocab *v, const char *bos, const char *eos);
/* Adds what META says about a corpus (vocab, vocab_size, packed, context, pack, documents, bos, eos), and the totals under
 * their names and as bytes_per_token. False: out of memory. */
bool corpus_describe(cJSON *to, const struct vocab *v, const struct corpus_options *o);
bool corpus_totals_put(cJSON *to, const struct corpus_totals *t);

/* The way back. What corpus_encode puts in is left out again, the BOS in front of a sequence; what it takes away, the
 * line end after one, is put back. */
struct corpus_decoding {
    bool bos, line_ends; /* sequences begin with BOS; documents were lines */
    bool skip_special;   /* the caller's: leave control tokens out */
};
int corpus_decoding(const cJSON *meta, struct corpus_decoding *how, struct err *e) MUST_CHECK; /* from META */
/* Appends the text of a batch. ERR_DATA names the sequence. */
int corpus_decode(const struct vocab *v, const struct corpus_decoding *how, const struct corpus_batch *b,
                  struct buf *out, struct err *e) MUST_CHECK;

#endif
