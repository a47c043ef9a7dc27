/* Tests of lib/formats: which pipelines of tokenizer.json are recognised, and which are refused by name. */
#include "tests/unit/formats_samples.h"

/* A small valid tokenizer.json in parts; a part that is NULL has its default. */
struct parts {
    const char *normalizer, *pre, *post, *decoder, *added, *model;
};

#define BYTES(regex)      "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":" regex "}"
#define VOCAB             "\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"\xc4\xa0\":3},"
#define SPECIAL(id, text) "{\"id\":" #id ",\"content\":\"" text "\",\"special\":true}"
#define DIGITS            "{\"type\":\"Digits\",\"individual_digits\":true}"
#define SEQUENCE(a, b)    "{\"type\":\"Sequence\",\"pretokenizers\":[" a "," b "]}"

static struct buf tokenizer_json(struct parts p) {
    struct err e;
    struct buf b = {0};
    OK(buf_printf(&b, &e,
                  "{\"normalizer\":%s,\"pre_tokenizer\":%s,\"post_processor\":%s,\"decoder\":%s,\"added_tokens\":[%s],"
                  "\"model\":{\"type\":\"BPE\",%s}}",
                  p.normalizer ? p.normalizer : "null", p.pre ? p.pre : BYTES("true"), p.post ? p.post : "null",
                  p.decoder ? p.decoder : BYTES("true"), p.added ? p.added : SPECIAL(4, "<s>"),
                  p.model ? p.model : VOCAB "\"merges\":[\"a b\"]"));
    return b;
}

static int read_parts(struct parts p, const char *config, struct vocab **v, struct err *e) {
    struct buf b = tokenizer_json(p);
    int rc = hf_tokenizer_read(v, b.data, b.len, config, config ? strlen(config) : 0, e);
    buf_release(&b);
    return rc;
}

static struct vocab *must_read(struct parts p, const char *config) {
    struct err e;
    struct vocab *v;
    OK(read_parts(p, config, &v, &e));
    return v;
}

static void assert_refused(struct parts p, const char *config, const char *says) {
    struct err e = {0};
    struct vocab *v;
    assert_int_equal(read_parts(p, config, &v, &e), ERR_DATA);
    if (!strstr(e.msg, says)) fail_msg("said '%s', expected '%s'", e.msg, says);
}

static void test_small_one(void **state) {
    (void)state;
    struct vocab *v = must_read((struct parts){0}, NULL);
    assert_int_equal(v->n_tokens, 5);
    assert_int_equal(v->pre, PRE_GPT2);
    assert_int_equal(v->merges[0].result, 2);
    assert_int_equal(v->tokens[3].bytes[0], ' ');
    assert_int_equal(v->tokens[4].flags, TOKEN_SPECIAL | TOKEN_ADDED);
    assert_false(v->nfc || v->ignore_merges || v->add_bos || v->add_eos);
    assert_true(v->bos == TOKEN_NONE && v->unk == TOKEN_NONE);
    vocab_free(v);
}

static void test_pipelines(void **state) {
    (void)state;
    char llama[1024], qwen[1024];
    for (const struct hf_split *s = hf_splits; s->regex; s++) {
        cJSON *regex = cJSON_CreateString(s->regex);
        struct err e;
        char *quoted = json_text(regex, &e);
        snprintf(s->pre == PRE_LLAMA_BPE ? llama : qwen, sizeof llama,
                 SEQUENCE("{\"type\":\"Split\",\"pattern\":{\"Regex\":%s},\"behavior\":\"Isolated\"}", BYTES("false")),
                 quoted);
        mem_free(quoted);
        cJSON_Delete(regex);
    }
    const struct {
        const char *json;
        enum text_pre pre;
    } known[] = {{BYTES("true"), PRE_GPT2},
                 {"{\"type\":\"ByteLevel\",\"add_prefix_space\":false}", PRE_GPT2}, /* as written before 2022 */
                 {SEQUENCE(DIGITS, BYTES("true")), PRE_SMOLLM},
                 {llama, PRE_LLAMA_BPE},
                 {qwen, PRE_QWEN2}};
    for (size_t i = 0; i < COUNT_OF(known); i++) {
        struct vocab *v = must_read((struct parts){.pre = known[i].json}, NULL);
        assert_int_equal(v->pre, known[i].pre);
        vocab_free(v);
    }
}

static void test_unknown_parts(void **state) {
    (void)state;
    const struct {
        struct parts p;
        const char *says;
    } cases[] = {
        {{.pre = "null"}, "tokenizer.json: decoder 'ByteLevel' is not supported"}, /* of another kind of BPE */
        {{.pre = "{\"type\":\"UnicodeScripts\"}"}, "pre_tokenizer 'UnicodeScripts' is not supported"},
        {{.pre = SEQUENCE(DIGITS, "{\"type\":\"ByteLevel\"}")},
         "'Digits' and 'ByteLevel'"}, /* add_prefix_space defaults to true */
        {{.pre = BYTES("false")}, "without a regex"},
        {{.pre = SEQUENCE("{\"type\":\"Digits\"}", BYTES("true"))}, "'Digits' and 'ByteLevel'"},
        {{.pre = SEQUENCE(DIGITS, BYTES("false"))}, "is not supported"},
        {{.pre = SEQUENCE(DIGITS "," DIGITS, BYTES("true"))}, "other than two steps"},
        {{.pre = SEQUENCE("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"x+\"},\"behavior\":\"Isolated\"}",
                          BYTES("false"))},
         "unknown regex 'x+'"},
        {{.pre = SEQUENCE("{\"type\":\"Split\",\"pattern\":{\"String\":\"x\"},\"behavior\":\"Isolated\"}",
                          BYTES("false"))},
         "only a Split by a regex"},
        {{.pre =
              SEQUENCE("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"x\"},\"behavior\":\"Removed\"}", BYTES("false"))},
         "only a Split by a regex"},
        {{.normalizer = "{\"type\":\"Nmt\"}"}, "normalizer 'Nmt' is not supported"},
        {{.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":\"Nmt\"}]}"}, "'Nmt'"},
        {{.normalizer = "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"x+\"},\"content\":\"\"}"}, "regex 'x+'"},
        {{.normalizer = "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"AAAA\"}"}, "charsmap is cut"},
        {{.normalizer = "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"*\"}"}, "base64"},
        {{.post = "{\"type\":\"BertProcessing\"}"}, "post_processor 'BertProcessing': \"cls\" is not an added token"},
        {{.decoder = "{\"type\":\"WordPiece\"}"}, "decoder 'WordPiece'"},
        {{.model = "\"type\":\"Unigram\""}, "duplicate key"},
        {{.model = VOCAB "\"merges\":[],\"byte_fallback\":true"}, "byte_fallback"},
        {{.model = VOCAB "\"merges\":[],\"dropout\":0.1"}, "dropout"},
        {{.model = VOCAB "\"merges\":[],\"end_of_word_suffix\":\"</w>\""}, "'</w>'"},
        {{.model = VOCAB "\"merges\":[],\"unk_token\":\"zz\""}, "'zz' is not a token"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) assert_refused(cases[i].p, NULL, cases[i].says);
    struct vocab *v;
    struct err e = {0};
    const char *unigram = "{\"pre_tokenizer\":" BYTES("true") ",\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}";
    assert_int_equal(hf_tokenizer_read(&v, unigram, strlen(unigram), NULL, 0, &e), ERR_DATA);
    assert_string_equal(e.msg, "tokenizer.json: pre_tokenizer 'ByteLevel' is not supported");
}

static void test_pieces_that_do_not_fit(void **state) {
    (void)state;
    const struct {
        struct parts p;
        const char *says;
    } cases[] = {
        {{.model = "\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]"}, "id 0 is given twice"},
        {{.model = "\"vocab\":{\"a\":-1},\"merges\":[]"}, "whole number"},
        {{.model = "\"vocab\":{\"a\":16777215},\"merges\":[]"}, "whole number below"}, /* would be a huge table */
        {{.model = "\"vocab\":{\"a\":1e300},\"merges\":[]"}, "whole number below"},
        {{.model = "\"vocab\":{\"a\":0.5},\"merges\":[]"}, "whole number"},
        {{.model = "\"vocab\":{\"a b\":0},\"merges\":[]"}, "token 'a b'"}, /* the byte-level alphabet has no space */
        {{.model = "\"vocab\":{\"\":0},\"merges\":[]"}, "not 1 to"},
        {{.model = "\"vocab\":[],\"merges\":[]"}, "\"vocab\" is not an object"},
        {{.model = VOCAB "\"merges\":{}"}, "\"merges\" is not a list"},
        {{.model = VOCAB "\"merges\":[\"ab\"]"}, "merge 0 has no space"},
        {{.model = VOCAB "\"merges\":[\"a c\"]"}, "merge 0: 'c' is not a token"},
        {{.model = VOCAB "\"merges\":[\"b a\"]"}, "make no token"},
        {{.model = VOCAB "\"merges\":[[\"a\",\"b\",\"\"]]"}, "neither a string nor a pair"},
        {{.model = VOCAB "\"merges\":[7]"}, "neither a string nor a pair"},
        {{.added = SPECIAL(2, "<s>")}, "id 2 is '<s>' among the added tokens"},
        {{.added = SPECIAL(4, "<s>") "," SPECIAL(4, "</s>")}, "id 4 is given twice"},
        {{.added = "{\"id\":4}"}, "content"},
        {{.added = "{\"content\":\"x\"}"}, "whole number"},
        {{.added = "{\"id\":4,\"content\":\"x\",\"lstrip\":1}"}, "lstrip"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) assert_refused(cases[i].p, NULL, cases[i].says);
}

/* Merges as pairs, as written since tokenizers 0.20; ids with a gap; every flag; an added token that the model
 * lists, too. */
static void test_other_spellings(void **state) {
    (void)state;
    struct vocab *v = must_read(
        (struct parts){.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"}]}",
                       .added = "{\"id\":6,\"content\":\" x\",\"lstrip\":true,\"rstrip\":true,\"single_word\":true,"
                                "\"normalized\":true,\"special\":false}," SPECIAL(4, "<s>"),
                       .model = "\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"<s>\":4},\"merges\":[[\"a\",\"b\"]],"
                                "\"ignore_merges\":true,\"unk_token\":\"<s>\",\"dropout\":null"},
        NULL);
    assert_int_equal(v->n_tokens, 7);
    assert_true(v->nfc && v->ignore_merges);
    assert_int_equal(v->unk, 4);
    assert_int_equal(v->tokens[3].flags, TOKEN_UNUSED);
    assert_int_equal(v->tokens[6].flags,
                     TOKEN_ADDED | TOKEN_LSTRIP | TOKEN_RSTRIP | TOKEN_SINGLE_WORD | TOKEN_NORMALIZED);
    assert_int_equal(v->merges[0].left, 0);
    vocab_free(v);
}

/* ---- tokens added around a text ---- */

#define STEP(kind, id) "{\"" kind "\":{\"id\":\"" id "\",\"type_id\":0}}"
#define TEMPLATE(list) "{\"type\":\"TemplateProcessing\",\"single\":[" list "]}"

static void test_templates(void **state) {
    (void)state;
    const struct {
        const char *post, *config;
        bool bos, eos;
    } cases[] = {
        {TEMPLATE(STEP("SpecialToken", "<s>") "," STEP("Sequence", "A")), NULL, true, false},
        {TEMPLATE(STEP("Sequence", "A") "," STEP("SpecialToken", "<s>")), NULL, false, true},
        {TEMPLATE(STEP("Sequence", "A")), "{\"add_bos_token\":true}", false, false},
        {"{\"type\":\"Sequence\",\"processors\":[" BYTES("true") "," TEMPLATE(
             STEP("SpecialToken", "<s>") "," STEP("Sequence", "A")) "]}",
         "{\"add_bos_token\":false}", true, false}, /* the pipeline decides */
        {BYTES("true"), "{\"add_bos_token\":true}", false, false},
        {"null", "{\"add_bos_token\":true,\"bos_token\":\"<s>\"}", false, false}, /* as in transformers 5 */
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct vocab *v = must_read((struct parts){.post = cases[i].post}, cases[i].config);
        assert_int_equal(v->add_bos, cases[i].bos);
        assert_int_equal(v->add_eos, cases[i].eos);
        if (v->add_bos) assert_int_equal(v->bos, 4);
        if (v->add_eos) assert_int_equal(v->eos, 4);
        vocab_free(v);
    }
    assert_refused((struct parts){.post = TEMPLATE(STEP("SpecialToken", "<x>"))}, NULL, "unknown token");
    assert_refused((struct parts){.post = TEMPLATE(STEP("SpecialToken", "<s>") "," STEP("SpecialToken", "<s>"))}, NULL,
                   "more than one token");
    assert_refused((struct parts){.post = "{\"type\":\"TemplateProcessing\"}"}, NULL, "without \"single\"");
    assert_refused((struct parts){.post = TEMPLATE(STEP("SpecialToken", "<s>") "," STEP("Sequence", "A")),
                                  .added = SPECIAL(4, "<s>") "," SPECIAL(5, "<t>")},
                   "{\"bos_token\":\"<t>\"}", "puts token 4 there");
}

static void test_tokenizer_config(void **state) {
    (void)state;
    struct vocab *v =
        must_read((struct parts){0}, "{\"bos_token\":{\"content\":\"<s>\"},\"eos_token\":\"<s>\",\"pad_token\":"
                                     "null,\"unk_token\":\"<s>\",\"chat_template\":[{\"name\":\"tool\","
                                     "\"template\":\"T\"},{\"name\":\"default\",\"template\":\"D\"}]}");
    assert_true(v->bos == 4 && v->eos == 4 && v->pad == TOKEN_NONE && v->unk == TOKEN_NONE);
    assert_string_equal(v->chat_template, "D");
    vocab_free(v);
    assert_refused((struct parts){0}, "{\"bos_token\":4}", "tokenizer_config.json: \"bos_token\" is not a token");
    assert_refused((struct parts){0}, "{\"chat_template\":7}", "chat_template");
    assert_refused((struct parts){0}, "[", "tokenizer_config.json");
}

/* ---- tokens declared in other files: what transformers 5.24 makes of each ---- */

struct folder {
    const char *config, *map, *added, *vocab, *merges, *model_config, *chat_template;
    uint32_t n_rows;
};

static struct span span_or_none(const char *s) {
    return s ? (struct span){s, strlen(s)} : (struct span){NULL, 0};
}

static int read_folder(struct folder f, struct vocab **v, struct err *e) {
    struct buf json = tokenizer_json((struct parts){.added = SPECIAL(4, "<s>") "," SPECIAL(5, "</s>")});
    cJSON *model_config = f.model_config ? json_parse(f.model_config, strlen(f.model_config), e) : NULL;
    struct hf_tokenizer_files files = {.vocab = span_or_none(f.vocab),
                                       .merges = span_or_none(f.merges),
                                       .config = span_or_none(f.config),
                                       .map = span_or_none(f.map),
                                       .added = span_or_none(f.added),
                                       .chat_template = span_or_none(f.chat_template),
                                       .model_config = model_config,
                                       .n_rows = f.n_rows};
    if (!f.vocab) files.tokenizer = (struct span){(const char *)json.data, json.len};
    struct vocab spec;
    draft_init(&spec);
    int rc = hf_tokenizer_parse(&spec, &files, e);
    if (!rc) rc = draft_finish(&spec, v, e);
    arena_release(&spec.memory);
    cJSON_Delete(model_config);
    buf_release(&json);
    return rc;
}

/* Describes the added tokens as "ID:TEXT:FLAGS ID:...", then bos, eos, pad. S special, L and R strip, N normalised,
 * W word. */
static void describe_added(const struct vocab *v, char *out, size_t size) {
    static const char letters[] = "SLRNW";
    static const uint32_t flags[] = {TOKEN_SPECIAL, TOKEN_LSTRIP, TOKEN_RSTRIP, TOKEN_NORMALIZED, TOKEN_SINGLE_WORD};
    size_t n = 0;
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        const struct token *t = &v->tokens[i];
        if (!(t->flags & TOKEN_ADDED)) continue;
        n += (size_t)snprintf(out + n, size - n, "%u:%.*s:", i, (int)t->n_bytes, (const char *)t->bytes);
        for (size_t k = 0; k < COUNT_OF(flags); k++)
            if (t->flags & flags[k]) out[n++] = letters[k];
        out[n++] = ' ';
    }
    snprintf(out + n, size - n, "%d %d %d", (int)v->bos, (int)v->eos, (int)v->pad);
}

static void test_declared_tokens(void **state) {
    (void)state;
#define TOKEN(text, more) "{\"content\":\"" text "\"" more "}"
#define DECODER(list)     "{\"added_tokens_decoder\":{" list "}}"
    static const char both[] = "\"4\":" TOKEN("<s>", ",\"special\":true") ",\"5\":" TOKEN("</s>", ",\"special\":true");
    static const struct {
        struct folder f;
        const char *tokens;
    } cases[] = {
        {{0}, "4:<s>:S 5:</s>:S -1 -1 -1"},
        {{.config = DECODER("\"6\":" TOKEN("<tool>", ",\"normalized\":false"))}, "4:<s>:S 5:</s>:S 6:<tool>: -1 -1 -1"},
        {{.config = DECODER("\"7\":" TOKEN("<b>", ",\"special\":true") ",\"6\":" TOKEN("<a>", ""))},
         "4:<s>:S 5:</s>:S 6:<a>:N 7:<b>:S -1 -1 -1"}, /* numbered by id, whatever their order */
        {{.config = DECODER("\"5\":" TOKEN("</s>", ",\"lstrip\":true,\"normalized\":false"))},
         "4:<s>:S 5:</s>:L -1 -1 -1"}, /* its flags apply */
        {{.config = DECODER("\"1\":" TOKEN("b", ",\"special\":true"))}, "1:b:S 4:<s>:S 5:</s>:S -1 -1 -1"},
        {{.config = "{\"pad_token\":\"[PAD]\",\"eos_token\":\"</s>\"}"}, "4:<s>:S 5:</s>:S 6:[PAD]:S -1 5 6"},
        {{.config = "{\"pad_token\":\"b\"}"}, "1:b:S 4:<s>:S 5:</s>:S -1 -1 1"},
        {{.config = "{\"pad_token\":\"[PAD]\"}", .n_rows = 6}, "4:<s>:S 5:</s>:S -1 -1 -1"}, /* has no row */
        {{.config = "{\"image_token\":\"<x>\",\"extra_special_tokens\":[\"<y>\",\"<s>\"]}"},
         "4:<s>:S 5:</s>:S 6:<x>:S 7:<y>:S -1 -1 -1"},
        {{.config = "{\"extra_special_tokens\":{\"z_token\":\"<z>\"}}"}, "4:<s>:S 5:</s>:S 6:<z>:S -1 -1 -1"},
        {{.config = "{\"additional_special_tokens\":[" TOKEN("<y>", ",\"rstrip\":true") "]}"},
         "4:<s>:S 5:</s>:S 6:<y>:SR -1 -1 -1"},
        {{.config = "{\"eos_token\":\"<s>\",\"bos_token\":\"<s>\"}",
          .map = "{\"eos_token\":\"</s>\",\"pad_token\":{\"content\":\"[PAD]\"}}"},
         "4:<s>:S 5:</s>:S 6:[PAD]:S 4 5 6"},
        {{.map = "{\"eos_token\":\"</s>\"}", .added = "{\"<t>\":6,\"</s>\":5}"}, "4:<s>:S 5:</s>:S 6:<t>:N -1 5 -1"},
        {{.map = "{\"pad_token\":\"<p>\"}", .added = "{\"<p>\":6}"}, "4:<s>:S 5:</s>:S 6:<p>:S -1 -1 6"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct err e;
        struct vocab *v;
        char said[512];
        OK(read_folder(cases[i].f, &v, &e));
        describe_added(v, said, sizeof said);
        assert_string_equal(said, cases[i].tokens);
        vocab_free(v);
    }
    /* with an added_tokens_decoder the other two files are not read */
    char config[512], said[512];
    struct err e;
    struct vocab *v;
    snprintf(config, sizeof config, "{\"added_tokens_decoder\":{%s},\"eos_token\":\"<s>\"}", both);
    OK(read_folder((struct folder){.config = config, .map = "{\"eos_token\":\"</s>\"}", .added = "{\"<t>\":6}"}, &v,
                   &e));
    describe_added(v, said, sizeof said);
    assert_string_equal(said, "4:<s>:S 5:</s>:S -1 4 -1");
    vocab_free(v);
}

static void test_contradictions(void **state) {
    (void)state;
    static const struct {
        struct folder f;
        const char *says;
    } cases[] = {
        {{.config = DECODER("\"8\":" TOKEN("<tool>", ""))},
         "tokenizer_config.json gives '<tool>' the id 8, but after the tokens of tokenizer.json the next id is 6"},
        {{.config = DECODER("\"5\":" TOKEN("<tool>", ""))},
         "tokenizer_config.json says that token 5 is '<tool>', tokenizer.json says '</s>'"},
        {{.config = DECODER("\"5\":" TOKEN("<s>", ""))},
         "tokenizer_config.json gives '<s>' the id 5, tokenizer.json the id 4"},
        {{.config = DECODER("\"3\":" TOKEN("b", ""))},
         "tokenizer_config.json gives 'b' the id 3, tokenizer.json the id 1"},
        {{.added = "{\"<tool>\":5}"}, "added_tokens.json says that token 5 is '<tool>', tokenizer.json says '</s>'"},
        {{.added = "{\"<s>\":7}"}, "added_tokens.json gives '<s>' the id 7, tokenizer.json the id 4"},
        {{.added = "{\"<a>\":6,\"<b>\":6}"}, "id 6 is given twice"},
        {{.added = "{\"<a>\":\"6\"}"}, "added_tokens.json: '<a>' has no id"},
        {{.config = DECODER("\"x\":" TOKEN("<a>", ""))}, "\"x\" is not a token id"},
        {{.config = DECODER("\"6\":{}")}, "added_tokens_decoder: 6: json: missing key \"content\""},
        {{.config = DECODER("\"6\":" TOKEN("<a>", ",\"lstrip\":1"))}, "added_tokens_decoder: 6: json: key \"lstrip\""},
        {{.config = "{\"added_tokens_decoder\":[]}"}, "\"added_tokens_decoder\" is not an object"},
        {{.config = "{\"extra_special_tokens\":[7]}"}, "\"extra_special_tokens\" is not a token"},
        {{.map = "[]"}, "special_tokens_map.json: not a JSON object"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct err e = {0};
        struct vocab *v;
        assert_int_equal(read_folder(cases[i].f, &v, &e), ERR_DATA);
        if (!strstr(e.msg, cases[i].says)) fail_msg("said '%s', expected '%s'", e.msg, cases[i].says);
    }
}

static void test_vocab_and_merges(void **state) {
    (void)state;
    static const char vocab[] = "{\"a\":0,\"b\":1,\"ab\":2,\"\xc4\xa0\":3}", merges[] = "#version: 0.2\r\na b\r\n";
    struct err e = {0};
    struct vocab *v;
    char said[512];
    OK(read_folder((struct folder){.vocab = vocab, .merges = merges, .model_config = "{\"model_type\":\"qwen2\"}"}, &v,
                   &e));
    assert_true(v->pre == PRE_QWEN2 && v->nfc && v->n_merges == 1 && v->merges[0].result == 2);
    describe_added(v, said, sizeof said);
    assert_string_equal(said, "4:<|endoftext|>:S -1 4 4"); /* the class's default where no file says otherwise */
    vocab_free(v);
    OK(read_folder((struct folder){.vocab = vocab,
                                   .merges = "a b\n",
                                   .config = "{\"tokenizer_class\":\"GPT2TokenizerFast\",\"eos_token\":\"<e>\","
                                             "\"unk_token\":null,\"bos_token\":\"<e>\",\"add_bos_token\":true}"},
                   &v, &e));
    assert_true(v->pre == PRE_GPT2 && !v->nfc && v->add_bos);
    describe_added(v, said, sizeof said);
    assert_string_equal(said, "4:<e>:S 4 4 -1");
    vocab_free(v);
    static const struct {
        struct folder f;
        const char *says;
    } bad[] = {
        {{.vocab = vocab, .merges = merges}, "how a class without a name reads vocab.json"},
        {{.vocab = vocab, .merges = merges, .config = "{\"tokenizer_class\":\"BertTokenizer\"}"}, "BertTokenizer"},
        {{.vocab = vocab, .merges = "ab\n", .model_config = "{\"model_type\":\"gpt2\"}"}, "merge 0 has no space"},
        {{.vocab = vocab, .merges = "a c\n", .model_config = "{\"model_type\":\"gpt2\"}"}, "merges.txt: merge 0: 'c'"},
        {{.vocab = "[]", .merges = "", .model_config = "{\"model_type\":\"gpt2\"}"}, "vocab.json: \"vocab\" is not"},
        {{.vocab = vocab,
          .merges = "",
          .config = "{\"add_prefix_space\":true}",
          .model_config = "{\"model_type\":\"gpt2\"}"},
         "add_prefix_space"},
    };
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        assert_int_equal(read_folder(bad[i].f, &v, &e), ERR_DATA);
        if (!strstr(e.msg, bad[i].says)) fail_msg("said '%s', expected '%s'", e.msg, bad[i].says);
    }
}

static void test_template_files(void **state) {
    (void)state;
    struct err e = {0};
    struct vocab *v;
    OK(read_folder(
        (struct folder){.config = "{\"chat_template\":\"old\"}", .chat_template = "\xef\xbb\xbf{{ a }}\r\n\rb\n"}, &v,
        &e));
    assert_string_equal(v->chat_template, "{{ a }}\n\nb\n");
    vocab_free(v);
    OK(read_folder((struct folder){.config = "{\"chat_template\":\"old\"}", .chat_template = ""}, &v, &e));
    assert_string_equal(v->chat_template, "old");
    vocab_free(v);
    assert_int_equal(read_folder((struct folder){.chat_template = "\xff"}, &v, &e), ERR_DATA);
}

/* ---- export and import ---- */

static void assert_same_vocab(const struct vocab *a, const struct vocab *b) {
    struct err e;
    struct buf x = {0}, y = {0};
    OK(vocab_pack(a, &x, &e));
    OK(vocab_pack(b, &y, &e));
    assert_same_bytes(&x, &y);
    buf_release(&x);
    buf_release(&y);
}

static void check_round_trip(struct parts p, const char *config) {
    struct err e;
    struct vocab *v = must_read(p, config), *back;
    struct buf json = {0}, config_json = {0};
    OK(hf_tokenizer_write(v, &json, &config_json, &e));
    OK(hf_tokenizer_read(&back, json.data, json.len, config_json.data, config_json.len, &e));
    assert_same_vocab(v, back);
    vocab_free(back);
    vocab_free(v);
    buf_release(&json);
    buf_release(&config_json);
}

static void test_round_trips(void **state) {
    (void)state;
    check_round_trip((struct parts){0}, NULL);
    check_round_trip((struct parts){0},
                     "{\"bos_token\":\"<s>\",\"pad_token\":\"<s>\",\"chat_template\":\"{{ x }}\\n\"}");
    check_round_trip((struct parts){.normalizer = "{\"type\":\"NFC\"}",
                                    .pre = SEQUENCE(DIGITS, BYTES("true")),
                                    .post = TEMPLATE(STEP("SpecialToken", "<s>") "," STEP("Sequence", "A") "," STEP(
                                        "SpecialToken", "<s>")),
                                    .model = VOCAB "\"merges\":[\"a b\"],\"ignore_merges\":true,\"unk_token\":\"a\""},
                     "{}");
    /* ids with gaps, flags, text that is not a byte-level spelling */
    check_round_trip(
        (struct parts){.added = "{\"id\":9,\"content\":\"two words \xe2\x82\xac\\n\",\"lstrip\":true,\"special\":"
                                "false}," SPECIAL(6, "<s>")},
        NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small_one),        cmocka_unit_test(test_pipelines),
        cmocka_unit_test(test_unknown_parts),    cmocka_unit_test(test_pieces_that_do_not_fit),
        cmocka_unit_test(test_other_spellings),  cmocka_unit_test(test_templates),
        cmocka_unit_test(test_tokenizer_config), cmocka_unit_test(test_declared_tokens),
        cmocka_unit_test(test_contradictions),   cmocka_unit_test(test_vocab_and_merges),
        cmocka_unit_test(test_template_files),   cmocka_unit_test(test_round_trips),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
