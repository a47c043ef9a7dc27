/* Tests of lib/formats: what each key of config.json means, and which contradict each other. */
#include "tests/unit/formats_samples.h"

static int read_config(const char *json, struct model_config *c, struct arena *a, struct err *e) {
    cJSON *j = json_of(json);
    int rc = hf_config_read(c, j, a, e);
    cJSON_Delete(j);
    return rc;
}

static void test_config_defaults(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c;
    OK(read_config("{" LLAMA "}", &c, &a, &e));
    assert_int_equal(c.arch, "llama");
    assert_int_equal(c.head_dim, 16);
    assert_int_equal(c.layers[1].n_kv_heads, 2);
    assert_int_equal(c.layers[1].ffn, 96);
    assert_false(c.tied || c.qkv_bias);
    assert_true(c.rope.theta == 10000 && c.rope.scaling == ROPE_PLAIN && c.norm_eps == 1e-6f);
    OK(read_config("{" LLAMA ",\"head_dim\":32,\"attention_bias\":true,\"rms_norm_eps\":1e-5,\"rope_theta\":500000,"
                   "\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}}",
                   &c, &a, &e));
    assert_int_equal(c.head_dim, 32);
    assert_true(c.qkv_bias && c.rope.scaling == ROPE_LINEAR && c.rope.factor == 2 && c.norm_eps == 1e-5f);
    arena_release(&a);
}

/* transformers 4 and 5 write the same settings differently. */
static void test_rope_layouts(void **state) {
    (void)state;
    static const char *const layouts[] = {
        "\"rope_theta\":500000,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,"
        "\"high_freq_factor\":4,\"original_max_position_embeddings\":8192}",
        "\"rope_parameters\":{\"rope_theta\":500000,\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,"
        "\"high_freq_factor\":4,\"original_max_position_embeddings\":8192}"};
    for (size_t i = 0; i < COUNT_OF(layouts); i++) {
        struct err e;
        struct arena a = {0};
        struct model_config c;
        char json[1024];
        snprintf(json, sizeof json, "{" LLAMA ",%s}", layouts[i]);
        OK(read_config(json, &c, &a, &e));
        assert_true(c.rope.theta == 500000 && c.rope.scaling == ROPE_LLAMA3 && c.rope.factor == 8);
        assert_true(c.rope.low_freq == 1 && c.rope.high_freq == 4 && c.rope.original_context == 8192);
        arena_release(&a);
    }
}

static void test_config_refusals(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"\"hidden_act\":\"gelu\"", "\"hidden_act\": 'gelu'"},
        {"\"mlp_bias\":true", "mlp_bias"},
        {"\"partial_rotary_factor\":0.5", "partial_rotary_factor"},
        {"\"quantization_config\":{\"bits\":4}", "quantization_config"},
        {"\"num_local_experts\":8", "num_local_experts"},
        {"\"rope_scaling\":{\"rope_type\":\"dynamic\",\"factor\":2}", "rope type 'dynamic' is not supported"},
        {"\"rope_scaling\":{\"rope_type\":\"yarn\"}", "\"factor\" is missing"},
        {"\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2,\"long_factor\":[1]}",
         "\"long_factor\" does not belong"},
        {"\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2,\"attn_factor\":1}", "\"attn_factor\" does not belong"},
        {"\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2,\"truncate\":0}", "truncate"},
        {"\"rope_theta\":1,\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2}", "rope theta 1: yarn"},
        {"\"rope_scaling\":{\"rope_type\":\"longrope\",\"long_factor\":[1]}", "\"short_factor\" is missing"},
        {"\"rope_scaling\":{\"rope_type\":\"longrope\",\"long_factor\":[1,2],\"short_factor\":[1]}",
         "\"short_factor\" has 1 numbers, \"long_factor\" 2"},
        {"\"rope_scaling\":{\"rope_type\":\"longrope\",\"long_factor\":[1,0],\"short_factor\":[1,1]}",
         "\"long_factor\", element 1: not a number from 1e-06"},
        {"\"rope_scaling\":{\"type\":\"su\",\"long_factor\":[1,2],\"short_factor\":[1,1]}",
         "longrope has 2 factors, and a head 8 pairs that rotate"},
        {"\"rope_scaling\":{\"type\":\"longrope\",\"long_factor\":[1],\"short_factor\":[1],"
         "\"original_max_position_embeddings\":1}",
         "takes its logarithm"},
        {"\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":2}", "low_freq_factor"},
        {"\"rope_scaling\":{\"rope_type\":\"linear\"}", "factor"},
        {"\"use_sliding_window\":true,\"sliding_window\":64", "\"sliding_window\": attention to the last 64 of 128"},
        {"\"layer_types\":[\"full_attention\",\"sliding_attention\"]", "sliding_attention"},
        {"\"head_dim\":15", "odd"},
        {"\"rms_norm_eps\":\"small\"", "rms_norm_eps"},
    };
    struct err e = {0};
    struct arena a = {0};
    struct model_config c;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char json[1024];
        snprintf(json, sizeof json, "{" LLAMA ",%s}", cases[i][0]);
        assert_int_equal(read_config(json, &c, &a, &e), ERR_DATA);
        if (!strstr(e.msg, cases[i][1])) fail_msg("%s: said '%s'", cases[i][0], e.msg);
    }
    assert_int_equal(read_config("{\"architectures\":[\"MambaForCausalLM\"]}", &c, &a, &e), ERR_DATA);
    assert_non_null(strstr(
        e.msg, "architecture 'MambaForCausalLM' is not supported (supported: LlamaForCausalLM, MistralForCausalLM"));
    assert_int_equal(read_config("{\"model_type\":\"llama\"}", &c, &a, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "num_hidden_layers"));
    OK(read_config("{" LLAMA ",\"use_sliding_window\":true,\"sliding_window\":128}", &c, &a, &e)); /* no effect */
    arena_release(&a);
}

static void assert_same_config(const struct model_config *x, const struct model_config *y) {
    struct err e;
    cJSON *a = model_config_to_json(x, &e), *b = model_config_to_json(y, &e);
    char *s = json_text(a, &e), *t = json_text(b, &e);
    assert_string_equal(s, t);
    mem_free(s);
    mem_free(t);
    cJSON_Delete(a);
    cJSON_Delete(b);
}

static void test_config_write_and_read(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    for (int i = 0; i < 6; i++) {
        struct model_config c = sample_config(&a), back;
        c.layers[1] = c.layers[0];
        c.tied = i & 1;
        c.arch = i == 5 ? "qwen2" : "llama";
        c.qkv_bias = i == 4 || i == 5;
        c.o_bias = i == 4; /* Llama's flag is for all four */
        c.rope.scaling = (enum rope_scaling)(i % 3);
        c.rope.factor = 8.125;
        c.rope.low_freq = 1;
        c.rope.high_freq = 4;
        c.rope.original_context = 8192;
        if (c.rope.scaling == ROPE_PLAIN) c.rope.factor = c.rope.low_freq = c.rope.high_freq = 0;
        cJSON *json = hf_config_write(&c, NULL, DT_BF16, &e);
        if (!json) fail_msg("%s", e.msg);
        OK(hf_config_read(&back, json, &a, &e));
        assert_same_config(&c, &back);
        cJSON_Delete(json);
    }
    struct model_config c = sample_config(&a);
    assert_null(hf_config_write(&c, NULL, DT_F32, &e));
    assert_string_equal(e.msg,
                        "layer 1 has 2 heads, 1 key/value heads and a feed-forward width of 64, layer 0 has 4, 2 "
                        "and 96: Hugging Face's config.json cannot express that, GGUF can (--to gguf)");
    arena_release(&a);
}

/* ---- keys in two places or with two names ---- */

struct config_case {
    const char *members; /* added to LLAMA, or the whole file when it begins with a brace */
    const char *says;    /* NULL: is read */
};

static void check_case(const struct config_case *t, struct model_config *c, struct arena *a) {
    struct err e = {0};
    char json[2048];
    if (*t->members == '{')
        snprintf(json, sizeof json, "%s", t->members);
    else
        snprintf(json, sizeof json, "{" LLAMA ",%s}", t->members);
    int rc = read_config(json, c, a, &e);
    if (!t->says && rc) fail_msg("%s: %s", t->members, e.msg);
    if (!t->says) return;
    if (rc != ERR_DATA) fail_msg("%s: is taken, expected '%s'", t->members, t->says);
    if (!strstr(e.msg, t->says)) fail_msg("%s: said '%s', expected '%s'", t->members, e.msg, t->says);
}

static void check_cases(const struct config_case *cases, size_t n) {
    struct arena a = {0};
    struct model_config c;
    for (size_t i = 0; i < n; i++) check_case(&cases[i], &c, &a);
    arena_release(&a);
}

#define DEFAULT_ROPE "\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":10000}"

static void test_rope_homes_that_disagree(void **state) {
    (void)state;
    static const struct config_case cases[] = {
        /* transformers 4 and 5 both compute yarn and linear here: a plain rotation would be another model */
        {DEFAULT_ROPE ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4}",
         "\"rope_scaling\" and \"rope_parameters\" disagree: rope type 'yarn' against 'default'"},
        {"\"rope_parameters\":{\"rope_type\":\"yarn\",\"factor\":4,\"beta_fast\":16},\"rope_scaling\":{\"type\":"
         "\"yarn\","
         "\"factor\":4}",
         "disagree: \"beta_fast\" 32 against 16"},
        {"\"rope_parameters\":{\"rope_type\":\"longrope\",\"long_factor\":[1,2],\"short_factor\":[1,1]},\"rope_"
         "scaling\":{"
         "\"type\":\"longrope\",\"long_factor\":[1,3],\"short_factor\":[1,1]}",
         "disagree about the factors of longrope"},
        {DEFAULT_ROPE ",\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":4}",
         "\"rope_scaling\" and \"rope_parameters\" disagree: rope type 'linear' against 'default'"},
        {"\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":4},\"rope_scaling\":{\"type\":\"default\"}",
         "disagree: rope type 'default' against 'linear'"},
        {"\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":4},"
         "\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":2}",
         "disagree: \"factor\" 2 against 4"},
        {"\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":500000},\"rope_scaling\":{\"type\":"
         "\"default\"}",
         "disagree: \"rope_theta\" 10000 against 500000"},
        {"\"rope_parameters\":{\"rope_type\":\"yarn\",\"factor\":4},\"rope_scaling\":{\"type\":\"default\"}",
         "disagree: rope type 'default' against 'yarn'"},
        {"\"rope_theta\":10000,\"rope_parameters\":{\"rope_theta\":500000}",
         "rope_parameters: \"rope_theta\" is 500000 here, but 10000 at the top level"},
        {"\"rope_scaling\":{\"rope_type\":\"default\",\"type\":\"linear\",\"factor\":1}",
         "rope_scaling: \"rope_type\" is 'default', but \"type\" is 'linear'"},
        {"\"rope_scaling\":{\"factor\":4}", "rope_scaling: \"factor\" does not belong to rope type 'default'"},
        {"\"rope_scaling\":{\"type\":\"linear\",\"factor\":2,\"low_freq_factor\":1}",
         "\"low_freq_factor\" does not belong"},
        {"\"rope_scaling\":{\"type\":\"linear\",\"factor\":2,\"attention_factor\":2}", "\"attention_factor\" does not"},
        {"\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"default\"}}", "\"full_attention\" does not belong"},
        {"\"rope_parameters\":{\"partial_rotary_factor\":0.5}", "\"partial_rotary_factor\": 0.5 is not supported"},
        {"\"partial_rotary_factor\":1,\"rope_parameters\":{\"partial_rotary_factor\":0.5}",
         "0.5 here, but 1 at the top"},
        {"\"rope_scaling\":\"linear\"", "\"rope_scaling\" is not an object"},
        {"\"rope_scaling\":[2]", "\"rope_scaling\" is not an object"},
        {"\"rope_parameters\":7", "\"rope_parameters\" is not an object"},
        {"\"original_max_position_embeddings\":64,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,"
         "\"low_freq_factor\":1,\"high_freq_factor\":4,\"original_max_position_embeddings\":32}",
         "\"original_max_position_embeddings\" is 32 here, but 64 at the top level"},
    };
    check_cases(cases, COUNT_OF(cases));
}

/* The same setting in two places, or one of them empty: resolved as by transformers 5.24. */
static void test_rope_homes_that_agree(void **state) {
    (void)state;
    static const struct {
        const char *members;
        enum rope_scaling scaling;
        double theta, factor;
    } cases[] = {
        {"\"rope_theta\":500000,\"rope_scaling\":null", ROPE_PLAIN, 500000, 0},
        {"\"rope_theta\":500000,\"rope_scaling\":{}", ROPE_PLAIN, 500000, 0},
        {"\"rope_theta\":7,\"rope_scaling\":{\"type\":\"default\",\"factor\":1,\"mscale\":null}", ROPE_PLAIN, 7, 0},
        {"\"rope_scaling\":null,\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":2,\"rope_theta\":5}",
         ROPE_LINEAR, 5, 2},
        {"\"rope_scaling\":{},\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":2,\"rope_theta\":5}",
         ROPE_LINEAR, 5, 2},
        {"\"rope_theta\":5,\"rope_scaling\":{\"type\":\"linear\",\"factor\":2},"
         "\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":2.0,\"rope_theta\":5.0}",
         ROPE_LINEAR, 5, 2},
        {"\"rope_theta\":5,\"rope_parameters\":{\"type\":\"linear\",\"rope_type\":\"linear\",\"factor\":2}",
         ROPE_LINEAR, 5, 2},
        {"\"rope_scaling\":{\"type\":\"linear\",\"factor\":2,\"original_max_position_embeddings\":64}", ROPE_LINEAR,
         10000, 2},
        {"\"rope_parameters\":{\"partial_rotary_factor\":1.0}", ROPE_PLAIN, 10000, 0},
        {"\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":4}",
         ROPE_LLAMA3, 10000, 8},
    };
    struct arena a = {0};
    struct model_config c;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        check_case(&(struct config_case){cases[i].members, NULL}, &c, &a);
        if (c.rope.scaling != cases[i].scaling || c.rope.theta != cases[i].theta || c.rope.factor != cases[i].factor)
            fail_msg("%s: scaling %d, theta %g, factor %g", cases[i].members, c.rope.scaling, c.rope.theta,
                     c.rope.factor);
    }
    assert_int_equal(c.rope.original_context, 128); /* the context, when no key says otherwise */
    arena_release(&a);
}

/* The factors that transformers 5.24 derives from the settings of yarn and longrope (modeling_rope_utils.py). */
static void test_rope_numbers(void **state) {
    (void)state;
#define LONG_LISTS "\"long_factor\":[1,2,3,4,5,6,7,8],\"short_factor\":[1,1,1,1,1,1,1,1]"
    static const struct {
        const char *settings;
        enum rope_scaling scaling;
        double factor, fast, slow, attention;
        uint32_t original;
    } cases[] = {
        {"\"type\":\"yarn\",\"factor\":4,\"original_max_position_embeddings\":32,\"finetuned\":true", ROPE_YARN, 4, 32,
         1, 1.138629436111989, 32},
        {"\"rope_type\":\"yarn\",\"factor\":null,\"original_max_position_embeddings\":64", ROPE_YARN, 2, 32, 1,
         1.0693147180559945, 64},
        {"\"rope_type\":\"yarn\",\"factor\":0.5,\"beta_fast\":0,\"beta_slow\":null", ROPE_YARN, 0.5, 32, 1, 1, 128},
        {"\"rope_type\":\"yarn\",\"factor\":40,\"mscale\":0.707,\"mscale_all_dim\":1.0,\"beta_fast\":16,\"beta_slow\":"
         "2",
         ROPE_YARN, 40, 16, 2, 0.9210423553163399, 128},
        {"\"rope_type\":\"yarn\",\"factor\":40,\"mscale\":0.707", ROPE_YARN, 40, 32, 1, 1.3688879454113936, 128},
        {"\"rope_type\":\"yarn\",\"factor\":40,\"mscale\":0.707,\"mscale_all_dim\":1.0,\"attention_factor\":1.5",
         ROPE_YARN, 40, 32, 1, 1.5, 128},
        {"\"rope_type\":\"longrope\",\"original_max_position_embeddings\":32," LONG_LISTS, ROPE_LONG, 0, 0, 0,
         1.1832159566199232, 32},
        {"\"type\":\"su\",\"original_max_position_embeddings\":32,\"factor\":32," LONG_LISTS, ROPE_LONG, 0, 0, 0,
         1.4142135623730951, 32},
        {"\"rope_type\":\"longrope\"," LONG_LISTS, ROPE_LONG, 0, 0, 0, 1, 128},
        {"\"rope_type\":\"longrope\",\"attention_factor\":1.25,\"factor\":32," LONG_LISTS, ROPE_LONG, 0, 0, 0, 1.25,
         128},
    };
    struct arena a = {0};
    struct model_config c;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char members[512];
        snprintf(members, sizeof members, "\"rope_scaling\":{%s}", cases[i].settings);
        check_case(&(struct config_case){members, NULL}, &c, &a);
        const struct model_rope *r = &c.rope;
        if (r->scaling != cases[i].scaling || r->factor != cases[i].factor || r->beta_fast != cases[i].fast ||
            r->beta_slow != cases[i].slow || fabs(r->attention_factor - cases[i].attention) > 1e-15 ||
            r->original_context != cases[i].original)
            fail_msg("%s: scaling %d, factor %g, beta %g %g, attention %.17g, original %u", members, r->scaling,
                     r->factor, r->beta_fast, r->beta_slow, r->attention_factor, r->original_context);
    }
    assert_true(c.rope.n_factors == 8 && c.rope.long_factor[7] == 8 && c.rope.short_factor[7] == 1);
    arena_release(&a);
}

static void test_names_that_disagree(void **state) {
    (void)state;
    static const struct config_case cases[] = {
        {"\"model_type\":\"qwen2\"", "\"architectures\" says LlamaForCausalLM, but \"model_type\" says 'qwen2'"},
        {"\"model_type\":\"llama\"", NULL},
        {"\"n_embd\":64", NULL},
        {"\"n_embd\":32", "\"hidden_size\" and \"n_embd\" are two names for one thing, and they disagree"},
        {"\"kv_channels\":16",
         "\"kv_channels\" is not a key of this architecture, and \"head_dim\", which is, is missing"},
        {"\"head_dim\":16,\"kv_channels\":16", NULL},
        {"\"head_dim\":16,\"kv_channels\":8", "\"head_dim\" and \"kv_channels\""},
        {"\"torch_dtype\":\"bfloat16\"", NULL},
        {"\"torch_dtype\":\"bfloat16\",\"dtype\":\"bfloat16\"", NULL},
        {"\"torch_dtype\":\"bfloat16\",\"dtype\":\"float32\"", "\"dtype\" and \"torch_dtype\""},
        {"\"rms_norm_eps\":1e-5,\"layer_norm_eps\":1e-6", "\"rms_norm_eps\" and \"layer_norm_eps\""},
        {"\"hidden_act\":\"silu\",\"hidden_activation\":\"gelu\"", "\"hidden_act\" and \"hidden_activation\""},
        {"\"attention_bias\":true,\"qkv_bias\":false", "\"attention_bias\" and \"qkv_bias\""},
        {"\"tie_word_embeddings\":false,\"tie_embeddings\":true", "\"tie_word_embeddings\" and \"tie_embeddings\""},
        {"{\"architectures\":[\"LlamaForCausalLM\",\"Qwen2ForCausalLM\"]}", "names both LlamaForCausalLM and Qwen2"},
        {"{\"architectures\":\"LlamaForCausalLM\"}", "\"architectures\" is not a list"},
        {"{\"architectures\":[]}", "architecture '(none)' is not supported"},
    };
    check_cases(cases, COUNT_OF(cases));
}

/* ---- keys that change what is computed ---- */

static void test_unknown_keys(void **state) {
    (void)state;
    static const struct config_case cases[] = {
        {"\"attention_multiplier\":0.5", "\"attention_multiplier\": 0.5 is not supported"},
        {"\"logit_scale\":0.0625", "\"logit_scale\": 0.0625 is not supported"},
        {"\"logit_scale\":1.0", NULL},
        {"\"final_logit_softcapping\":30", "\"final_logit_softcapping\": 30"},
        {"\"final_logit_softcapping\":null", NULL},
        {"\"qk_norm\":true", "\"qk_norm\": true is not supported"},
        {"\"qk_norm\":false", NULL},
        {"\"use_rope\":false", "\"use_rope\": false"},
        {"\"use_rope\":true", NULL},
        {"\"lm_head_bias\":true", "\"lm_head_bias\": true"},
        {"\"swish_beta\":2", "\"swish_beta\" is not known, and may change what the model computes"},
        {"\"swish_beta\":0", "\"swish_beta\" is not known"},
        {"\"no_rope_layers\":[1,0]", "\"no_rope_layers\" is not known"},
        {"\"new_thing\":{\"a\":1}", "\"new_thing\" is not known"},
        {"\"new_thing\":\"on\"", "\"new_thing\" is not known"},
        {"\"new_thing\":null,\"a\":false,\"b\":[],\"c\":{},\"d\":\"\"", NULL},
        {"\"hidden_act\":\"swish\"", NULL},
        {"\"hidden_act\":\"sil\"", "\"hidden_act\": 'sil'"},
        {"\"hidden_act\":7", "\"hidden_act\": 7"},
        {"\"pruned_heads\":{}", NULL},
        {"\"pruned_heads\":{\"0\":[1]}", "\"pruned_heads\""},
    };
    check_cases(cases, COUNT_OF(cases));
}

#define SHAPE                                                                                                          \
    "\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":2,\"num_attention_heads\":4,\"vocab_size\":97," \
    "\"max_position_embeddings\":8192"
#define QWEN2   "{\"model_type\":\"qwen2\",\"num_key_value_heads\":4," SHAPE
#define MISTRAL "{\"model_type\":\"mistral\"," SHAPE

static void test_windows(void **state) {
    (void)state;
    static const struct config_case cases[] = {
        {QWEN2 ",\"sliding_window\":64}", NULL},
        {QWEN2 ",\"use_sliding_window\":false,\"sliding_window\":64,\"max_window_layers\":0}", NULL},
        {QWEN2 ",\"use_sliding_window\":true}", NULL}, /* from layer 28 on */
        {QWEN2 ",\"use_sliding_window\":true,\"max_window_layers\":2}", NULL},
        {QWEN2 ",\"use_sliding_window\":true,\"max_window_layers\":1}", NULL},
        {QWEN2 ",\"use_sliding_window\":true,\"max_window_layers\":1,\"sliding_window\":null}", NULL},
        {QWEN2 ",\"use_sliding_window\":true,\"max_window_layers\":1,\"sliding_window\":8192}", NULL},
        {QWEN2 ",\"use_sliding_window\":true,\"max_window_layers\":1,\"layer_types\":[\"full_attention\",\"full_"
               "attention\"]}",
         "\"layer_types\" has no window, but \"sliding_window\" is 4096"},
        {QWEN2 ",\"layer_types\":[\"full_attention\",\"full_attention\"]}", NULL},
        {QWEN2 ",\"layer_types\":[\"full_attention\"]}", "has 1 entries, but \"num_hidden_layers\" is 2"},
        {QWEN2 ",\"layer_types\":\"full_attention\"}", "\"layer_types\" is not a list"},
        {QWEN2 ",\"attention_bias\":false}", "\"attention_bias\": false"},
        {MISTRAL ",\"num_key_value_heads\":4}", NULL},
        {MISTRAL ",\"sliding_window\":null,\"num_key_value_heads\":null}", NULL},
        {MISTRAL ",\"sliding_window\":8192,\"num_key_value_heads\":4}", NULL},
        {MISTRAL ",\"sliding_window\":null}", "8 key/value heads"},
        {"{\"model_type\":\"qwen2\"," SHAPE "}", "32 key/value heads"},
        {MISTRAL ",\"use_sliding_window\":false,\"num_key_value_heads\":4}",
         "takes its \"sliding_window\" of 4096 all the"},
    };
    check_cases(cases, COUNT_OF(cases));
    struct arena a = {0};
    struct model_config c;
    check_case(&(struct config_case){QWEN2 ",\"use_sliding_window\":true,\"max_window_layers\":1}", NULL}, &c, &a);
    assert_true(c.layers[0].window == 0 && c.layers[1].window == 4096);
    check_case(&(struct config_case){MISTRAL ",\"num_key_value_heads\":4}", NULL}, &c, &a);
    assert_true(c.layers[0].window == 4096 && c.layers[1].window == 4096);
    arena_release(&a);
}

/* Keys as they occur in published folders, all of which transformers reads. */
static void test_real_folders(void **state) {
    (void)state;
    static const struct config_case cases[] = {
        /* Llama 3.1 8B Instruct */
        {"{\"architectures\":[\"LlamaForCausalLM\"],\"attention_bias\":false,\"attention_dropout\":0.0,\"bos_token_"
         "id\":128000,"
         "\"eos_token_id\":[128001,128008,128009],\"hidden_act\":\"silu\",\"hidden_size\":4096,\"initializer_range\":0."
         "02,"
         "\"intermediate_size\":14336,\"max_position_embeddings\":131072,\"mlp_bias\":false,\"model_type\":\"llama\","
         "\"num_attention_heads\":32,\"num_hidden_layers\":32,\"num_key_value_heads\":8,\"pretraining_tp\":1,"
         "\"rms_norm_eps\":1e-05,\"rope_scaling\":{\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
         "\"original_max_position_embeddings\":8192,\"rope_type\":\"llama3\"},\"rope_theta\":500000.0,"
         "\"tie_word_embeddings\":false,\"torch_dtype\":\"bfloat16\",\"transformers_version\":\"4.42.3\","
         "\"use_cache\":true,\"vocab_size\":128256}",
         NULL},
        /* Qwen2.5 0.5B Instruct, as transformers 5 saves it */
        {"{\"architectures\":[\"Qwen2ForCausalLM\"],\"attention_dropout\":0.0,\"bos_token_id\":151643,\"dtype\":"
         "\"bfloat16\","
         "\"eos_token_id\":151645,\"hidden_act\":\"silu\",\"hidden_size\":896,\"initializer_range\":0.02,"
         "\"intermediate_size\":4864,\"layer_types\":[\"full_attention\",\"full_attention\"],\"max_position_"
         "embeddings\":32768,"
         "\"max_window_layers\":21,\"model_type\":\"qwen2\",\"num_attention_heads\":14,\"num_hidden_layers\":2,"
         "\"num_key_value_heads\":2,\"pad_token_id\":null,\"rms_norm_eps\":1e-06,"
         "\"rope_parameters\":{\"rope_theta\":1000000.0,\"rope_type\":\"default\"},\"sliding_window\":null,"
         "\"tie_word_embeddings\":true,\"transformers_version\":\"5.24.0\",\"use_cache\":true,"
         "\"use_sliding_window\":false,\"vocab_size\":151936}",
         NULL},
        /* SmolLM2 135M */
        {"{\"architectures\":[\"LlamaForCausalLM\"],\"attention_bias\":false,\"attention_dropout\":0.0,\"bos_token_"
         "id\":1,"
         "\"eos_token_id\":2,\"hidden_act\":\"silu\",\"hidden_size\":576,\"initializer_range\":0.041666666666666664,"
         "\"intermediate_size\":1536,\"is_llama_config\":true,\"max_position_embeddings\":8192,\"mlp_bias\":false,"
         "\"model_type\":\"llama\",\"num_attention_heads\":9,\"num_hidden_layers\":30,\"num_key_value_heads\":3,"
         "\"pad_token_id\":2,\"pretraining_tp\":1,\"rms_norm_eps\":1e-05,\"rope_interleaved\":false,\"rope_scaling\":"
         "null,"
         "\"rope_theta\":100000,\"tie_word_embeddings\":true,\"torch_dtype\":\"bfloat16\",\"transformers_version\":\"4."
         "42.3\","
         "\"transformers.js_config\":{\"kv_cache_dtype\":{\"q4f16\":\"float16\",\"fp16\":\"float16\"}},\"use_cache\":"
         "true,"
         "\"vocab_size\":49152}",
         NULL},
        /* TinyLlama 1.1B Chat */
        {"{\"architectures\":[\"LlamaForCausalLM\"],\"attention_bias\":false,\"bos_token_id\":1,\"eos_token_id\":2,"
         "\"hidden_act\":\"silu\",\"hidden_size\":2048,\"initializer_range\":0.02,\"intermediate_size\":5632,"
         "\"max_position_embeddings\":2048,\"model_type\":\"llama\",\"num_attention_heads\":32,\"num_hidden_layers\":"
         "22,"
         "\"num_key_value_heads\":4,\"pretraining_tp\":1,\"rms_norm_eps\":1e-05,\"rope_scaling\":null,\"rope_theta\":"
         "10000.0,"
         "\"tie_word_embeddings\":false,\"torch_dtype\":\"bfloat16\",\"transformers_version\":\"4.35.0\",\"use_cache\":"
         "true,"
         "\"vocab_size\":32000}",
         NULL},
        /* Mistral 7B Instruct v0.3 */
        {"{\"architectures\":[\"MistralForCausalLM\"],\"attention_dropout\":0.0,\"bos_token_id\":1,\"eos_token_id\":2,"
         "\"hidden_act\":\"silu\",\"hidden_size\":4096,\"initializer_range\":0.02,\"intermediate_size\":14336,"
         "\"max_position_embeddings\":32768,\"model_type\":\"mistral\",\"num_attention_heads\":32,\"num_hidden_"
         "layers\":32,"
         "\"num_key_value_heads\":8,\"rms_norm_eps\":1e-05,\"rope_theta\":1000000.0,\"sliding_window\":null,"
         "\"tie_word_embeddings\":false,\"torch_dtype\":\"bfloat16\",\"transformers_version\":\"4.42.0.dev0\","
         "\"use_cache\":true,\"vocab_size\":32768}",
         NULL},
        /* the first Llama, with the keys of its time */
        {"\"_name_or_path\":\"x\",\"max_sequence_length\":2048,\"pad_token_id\":-1,\"use_bfloat16\":false,"
         "\"temperature\":1.0,\"top_p\":0.9,\"do_sample\":true,\"id2label\":{\"0\":\"LABEL_0\"},\"unsloth_fixed\":true,"
         "\"_attn_implementation_autoset\":true,\"auto_map\":{\"AutoConfig\":\"a.B\"}",
         NULL},
    };
    check_cases(cases, COUNT_OF(cases));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_config_defaults),
        cmocka_unit_test(test_rope_layouts),
        cmocka_unit_test(test_config_refusals),
        cmocka_unit_test(test_config_write_and_read),
        cmocka_unit_test(test_rope_homes_that_disagree),
        cmocka_unit_test(test_rope_homes_that_agree),
        cmocka_unit_test(test_rope_numbers),
        cmocka_unit_test(test_names_that_disagree),
        cmocka_unit_test(test_unknown_keys),
        cmocka_unit_test(test_windows),
        cmocka_unit_test(test_real_folders),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
