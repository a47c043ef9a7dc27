/*
 * Pre-tokenizers: split text into the words that merges never cross, using the regular expressions published with the
 * models, with PCRE2, Unicode properties and, where the system allows it, the just-in-time compiler.
 *
 * Which characters are letters and numbers depends on the Unicode version of PCRE2 (10.42: Unicode 14); README.md lists
 * differences from Hugging Face's tokenizers.
 */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "lib/text/text_internal.h"

/* White space is Unicode's White_Space, written out: PCRE2's \s also includes U+180E, which is not white space since
 * Unicode 6.3 and is punctuation for the published tokenizers. */
#define S       "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define SPACES  "[" S "]"
#define VISIBLE "[^" S "]"

/* GPT-2, `encoder.py` of openai/gpt-2. */
#define GPT2                                                                                                           \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" S "\\p{L}\\p{N}]+|" SPACES "+(?!" VISIBLE ")|" SPACES "+"

/* Llama 3 and Qwen2, tokenizer.json of the models; they differ in how many digits form a word. */
#define CL100K(digits)                                                                                                 \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "| ?[^" S "\\p{L}\\p{N}]+[\\r\\n]*|" SPACES   \
    "*[\\r\\n]+|" SPACES "+(?!" VISIBLE ")|" SPACES "+"

/*
 * SmolLM, tokenizer.json: first every number character is split off, then GPT-2's expression runs on each part. As one
 * expression: the alternative for a digit comes first; no other alternative can match one; and white space before a
 * digit is at the end of its part, where GPT-2's lookahead finds nothing visible.
 */
#define SMOLLM                                                                                                         \
    "\\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?[^" S "\\p{L}\\p{N}]+|" SPACES "+(?![^" S "\\p{N}])|" SPACES "+"

static const struct {
    enum text_pre pre;
    const char *name, *pattern;
} pre_table[] = {
    {PRE_GPT2, "gpt-2", GPT2},
    {PRE_LLAMA_BPE, "llama-bpe", CL100K("\\p{N}{1,3}")},
    {PRE_QWEN2, "qwen2", CL100K("\\p{N}")},
    {PRE_SMOLLM, "smollm", SMOLLM},
};

/* Aliases in tokenizer.ggml.pre for the same expressions (llama.cpp, src/llama-vocab.cpp). */
static const struct {
    const char *alias;
    enum text_pre pre;
} pre_aliases[] = {
    {"gpt2", PRE_GPT2},          {"phi-2", PRE_GPT2},
    {"olmo", PRE_GPT2},          {"mpt", PRE_GPT2},
    {"jais", PRE_GPT2},          {"llama3", PRE_LLAMA_BPE},
    {"llama-v3", PRE_LLAMA_BPE}, {"falcon3", PRE_LLAMA_BPE},
    {"lfm2", PRE_LLAMA_BPE},     {"deepseek-r1-qwen", PRE_QWEN2},
    {"stablelm2", PRE_QWEN2},    {"codeshell", PRE_SMOLLM},
};

const char *text_pre_name(enum text_pre pre) {
    for (size_t i = 0; i < COUNT_OF(pre_table); i++)
        if (pre_table[i].pre == pre) return pre_table[i].name;
    return pre == PRE_STEPS ? "steps" : "unknown";
}

int text_pre_parse(const char *name, enum text_pre *out, struct err *e) {
    for (size_t i = 0; i < COUNT_OF(pre_table); i++)
        if (strcmp(pre_table[i].name, name) == 0) {
            *out = pre_table[i].pre;
            return 0;
        }
    for (size_t i = 0; i < COUNT_OF(pre_aliases); i++)
        if (strcmp(pre_aliases[i].alias, name) == 0) {
            *out = pre_aliases[i].pre;
            return 0;
        }
    return err_set(e, ERR_DATA, "unknown pre-tokenizer \"%s\" (known: gpt-2, llama-bpe, qwen2, smollm)", name);
}

/* ---- compiling ---- */

struct pretokenizer {
    pcre2_general_context *memory;
    pcre2_code *code;
    bool jit;
};
struct pre_state {
    pcre2_match_context *context;
    pcre2_match_data *match;
    pcre2_jit_stack *stack;
};

/* PCRE2 allocates through us, so that tests can make any allocation fail. */
static void *pcre_alloc(size_t size, void *ctx) {
    struct err e;
    (void)ctx;
    return mem_alloc(size, &e);
}
static void pcre_free(void *p, void *ctx) {
    (void)ctx;
    mem_free(p);
}

static int pcre_error(struct err *e, int code, const char *what) {
    PCRE2_UCHAR text[256];
    if (pcre2_get_error_message(code, text, sizeof text) < 0) text[0] = 0;
    return err_set(e, ERR_IO, "%s: PCRE2 error %d: %s", what, code, (const char *)text);
}

/* Anchored: the alternatives together match any character, so a match begins where the last one ended. */
static int compile(struct pretokenizer *p, const char *pattern, struct err *e) {
    p->memory = pcre2_general_context_create(pcre_alloc, pcre_free, NULL);
    if (!p->memory) return err_nomem(e, "pre-tokenizer");
    pcre2_compile_context *context = pcre2_compile_context_create(p->memory);
    if (!context) return err_nomem(e, "pre-tokenizer");
    int code;
    PCRE2_SIZE at;
    p->code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &code,
                            &at, context);
    pcre2_compile_context_free(context);
    if (!p->code) return pcre_error(e, code, "cannot compile the pre-tokenizer");
    p->jit = pcre2_jit_compile(p->code, PCRE2_JIT_COMPLETE) == 0;
    return 0;
}

int pretokenizer_new(struct pretokenizer **out, enum text_pre pre, struct err *e) {
    const char *pattern = NULL;
    for (size_t i = 0; i < COUNT_OF(pre_table); i++)
        if (pre_table[i].pre == pre) pattern = pre_table[i].pattern;
    if (!pattern) return err_set(e, ERR_DATA, "unknown pre-tokenizer %u", (unsigned)pre);
    struct pretokenizer *p = mem_zalloc(sizeof *p, e);
    if (!p) return e->code;
    int rc = compile(p, pattern, e);
    if (rc) {
        pretokenizer_free(p);
        return rc;
    }
    *out = p;
    return 0;
}

void pretokenizer_free(struct pretokenizer *p) {
    if (!p) return;
    pcre2_code_free(p->code);
    pcre2_general_context_free(p->memory);
    mem_free(p);
}

void pretokenizer_interpret(struct pretokenizer *p) {
    p->jit = false;
}

/* ---- matching ---- */

int pre_state_new(struct pre_state **out, const struct pretokenizer *p, struct err *e) {
    struct pre_state *s = mem_zalloc(sizeof *s, e);
    if (!s) return e->code;
    s->context = pcre2_match_context_create(p->memory);
    s->match = pcre2_match_data_create(1, p->memory);
    s->stack = p->jit ? pcre2_jit_stack_create((size_t)32 << 10, (size_t)1 << 20, p->memory) : NULL;
    if (!s->context || !s->match || (p->jit && !s->stack)) {
        pre_state_free(s);
        return err_nomem(e, "pre-tokenizer");
    }
    /* The limits guard against runaway expressions; ours are linear, and a file may have a gigabyte of spaces. */
    pcre2_set_match_limit(s->context, UINT32_MAX);
    pcre2_set_depth_limit(s->context, UINT32_MAX);
    pcre2_set_heap_limit(s->context, UINT32_MAX);
    if (s->stack) pcre2_jit_stack_assign(s->context, NULL, s->stack);
    *out = s;
    return 0;
}

void pre_state_free(struct pre_state *s) {
    if (!s) return;
    pcre2_jit_stack_free(s->stack);
    pcre2_match_data_free(s->match);
    pcre2_match_context_free(s->context);
    mem_free(s);
}

int pretokenizer_match(const struct pretokenizer *p, struct pre_state *s, const unsigned char *text, size_t n,
                       size_t at, size_t *end, struct err *e) {
    const uint32_t options = PCRE2_NO_UTF_CHECK;
    int rc = PCRE2_ERROR_JIT_STACKLIMIT;
    if (p->jit) rc = pcre2_jit_match(p->code, text, n, at, options, s->match, s->context);
    /* If compiled code stops for any reason: the interpreter keeps its state on the heap and is limited only by
     * memory. */
    if (rc < 0) rc = pcre2_match(p->code, text, n, at, options | PCRE2_NO_JIT, s->match, s->context);
    if (rc < 0) return pcre_error(e, rc, "cannot cut the text into words");
    *end = pcre2_get_ovector_pointer(s->match)[1];
    return 0;
}

static bool is_ascii_letter(unsigned char c) {
    return (unsigned char)((c | 0x20) - 'a') < 26;
}

/*
 * The most common case: a run of ASCII letters, optionally after a space, followed by ASCII or the end. All four
 * expressions match exactly this, by their alternative ` ?\p{L}+` or `[^\r\n\p{L}\p{N}]?\p{L}+`: the alternatives
 * before it begin with an apostrophe or a digit.
 */
static size_t ascii_word(const unsigned char *text, size_t n, size_t at) {
    size_t i = at + (text[at] == ' ');
    size_t first = i;
    while (i < n && is_ascii_letter(text[i])) i++;
    return i > first && (i == n || text[i] < 0x80) ? i : at;
}

int pretokenizer_next(const struct pretokenizer *p, struct pre_state *s, const unsigned char *text, size_t n, size_t at,
                      size_t *end, struct err *e) {
    *end = ascii_word(text, n, at);
    return *end > at ? 0 : pretokenizer_match(p, s, text, n, at, end, e);
}
