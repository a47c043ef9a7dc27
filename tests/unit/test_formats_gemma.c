/* Tests of lib/formats: what config.json says of Gemma 2 and 3, in all spellings, and what is refused. Their logits
 * are compared with transformers in test_architectures.c. */
#include "tests/unit/formats_samples.h"

#include "lib/formats/arch_internal.h"

#define SHAPE                                                                                                          \
    "\"hidden_size\":36,\"intermediate_size\":48,\"num_hidden_layers\":7,\"num_attention_heads\":4,"                   \
    "\"vocab_size\":31,\"max_position_embeddings\":64"
#define GEMMA2 "\"architectures\":[\"Gemma2ForCausalLM\"]," SHAPE
#define GEMMA3 "\"architectures\":[\"Gemma3ForCausalLM\"],\"model_type\":\"gemma3_text\"," SHAPE

static int read_config(const char *json, struct model_config *c, struct arena *a, struct err *e) {
    cJSON *j = json_of(json);
    int rc = hf_config_read(c, j, a, e);
    cJSON_Delete(j);
    return rc;
}

/* Compares the layers' window lengths with text such as "5 5 0". */
static void check_windows(const struct model_config *c, const char *wanted) {
    char text[128] = "";
    size_t n = 0;
    for (uint32_t i = 0; i < c->n_layers; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%u", i ? " " : "", c->layers[i].window);
    assert_string_equal(text, wanted);
    for (uint32_t i = 0; i < c->n_layers && strcmp(c->arch, "gemma3") == 0; i++)
        assert_int_equal(c->layers[i].rope, c->layers[i].window ? ROPE_LOCAL : ROPE_MAIN);
}

/* A written configuration must read back as the same. */
static void check_again(const struct model_config *c) {
    struct err e;
    struct arena a = {0};
    struct model_config back;
    cJSON *j = hf_config_write(c, NULL, DT_F32, &e);
    if (!j) fail_msg("%s", e.msg);
    char *text = json_text(j, &e);
    OK(read_config(text, &back, &a, &e));
    cJSON *x = model_config_to_json(c, &e), *y = model_config_to_json(&back, &e);
    assert_true(cJSON_Compare(x, y, true));
    cJSON_Delete(x), cJSON_Delete(y), cJSON_Delete(j);
    mem_free(text);
    arena_release(&a);
}

static void what_is_absent_is_transformers_default(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c;
    OK(read_config("{" GEMMA2 "}", &c, &a, &e));
    assert_string_equal(c.arch, "gemma2");
    check_windows(&c, "4096 0 4096 0 4096 0 4096");
    assert_true(c.head_dim == 256 && c.layers[0].n_kv_heads == 4 && c.tied && c.act == ACT_GELU_TANH);
    assert_true(c.attn_softcap == 50 && c.logit_softcap == 30 && c.attn_scale == 0 && c.embed_scale == 6);
    assert_true(c.rope.theta == 10000 && c.local_rope.theta == 0 && c.norm_eps == 1e-6f);
    check_again(&c);
    OK(read_config("{" GEMMA3 "}", &c, &a, &e));
    assert_string_equal(c.arch, "gemma3");
    check_windows(&c, "4096 4096 4096 4096 4096 0 4096");
    assert_true(c.attn_softcap == 0 && c.logit_softcap == 0 && c.qk_norm == QK_NORM_HEADS);
    assert_true(c.rope.theta == 1e6 && c.local_rope.theta == 10000);
    check_again(&c);
    arena_release(&a);
}

static void soft_caps_may_be_null(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c;
    OK(read_config("{" GEMMA2 ",\"attn_logit_softcapping\":null,\"final_logit_softcapping\":25.0,"
                   "\"query_pre_attn_scalar\":144,\"sliding_window_pattern\":2}",
                   &c, &a, &e));
    assert_true(c.attn_softcap == 0 && c.logit_softcap == 25 && c.attn_scale == 1 / 12.0f);
    check_again(&c);
    assert_int_equal(target_check(TARGET_LLAMA_CPP, &c, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "llama.cpp takes 1 / sqrt(256)"));
    arena_release(&a);
}

/* transformers 5 refuses an integer in place of a float. */
static void soft_caps_are_written_as_floats(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c;
    OK(read_config("{" GEMMA2 "}", &c, &a, &e));
    cJSON *j = hf_config_write(&c, NULL, DT_F32, &e);
    char *text = json_text(j, &e);
    assert_non_null(strstr(text, "\"final_logit_softcapping\":30.0,"));
    assert_non_null(strstr(text, "\"attn_logit_softcapping\":50.0"));
    mem_free(text);
    cJSON_Delete(j);
    arena_release(&a);
}

static void rotations_have_two_spellings(void **state) {
    (void)state;
    static const char *const spellings[] = {
        "\"rope_theta\":500000,\"rope_local_base_freq\":777,\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":8}",
        "\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"linear\",\"factor\":8,\"rope_theta\":500000},"
        "\"sliding_attention\":{\"rope_type\":\"default\",\"rope_theta\":777}}",
        "\"rope_theta\":500000,\"rope_parameters\":{\"full_attention\":{\"type\":\"linear\",\"factor\":8},"
        "\"sliding_attention\":null},\"rope_local_base_freq\":777",
    };
    for (size_t i = 0; i < COUNT_OF(spellings); i++) {
        struct err e;
        struct arena a = {0};
        struct model_config c;
        char json[1024];
        snprintf(json, sizeof json, "{" GEMMA3 ",\"sliding_window\":5,\"sliding_window_pattern\":3,%s}", spellings[i]);
        OK(read_config(json, &c, &a, &e));
        assert_true(c.rope.theta == 500000 && c.rope.scaling == ROPE_LINEAR && c.rope.factor == 8);
        assert_true(c.local_rope.theta == 777 && c.local_rope.scaling == ROPE_PLAIN);
        check_windows(&c, "5 5 0 5 5 0 5");
        check_again(&c);
        arena_release(&a);
    }
}

/* The official files of Gemma 1 say "gelu" but mean its tanh form. */
static void gelu_of_the_first_is_the_tanh_form(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c;
    OK(read_config("{\"architectures\":[\"GemmaForCausalLM\"]," SHAPE
                   ",\"num_key_value_heads\":1,\"hidden_act\":\"gelu\"}",
                   &c, &a, &e));
    assert_true(c.act == ACT_GELU_TANH && c.tied && c.head_dim == 256 && c.embed_scale == 6);
    check_again(&c);
    c.act = ACT_GELU;
    assert_int_equal(target_check(TARGET_TRANSFORMERS, &c, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "the tanh form for a gemma"));
    assert_int_equal(target_check(TARGET_LLAMA_CPP, &c, &e), ERR_DATA);
    arena_release(&a);
}

static void without_windows_there_is_one_rotation(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c;
    OK(read_config("{" GEMMA3 ",\"sliding_window\":null,\"sliding_window_pattern\":1}", &c, &a, &e));
    check_windows(&c, "0 0 0 0 0 0 0");
    assert_true(c.local_rope.theta == 0);
    arena_release(&a);
}

static void what_is_not_computed_is_refused(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {GEMMA2 ",\"attention_bias\":true", "\"attention_bias\": true"},
        {GEMMA2 ",\"hidden_act\":\"gelu\",\"hidden_activation\":\"gelu_pytorch_tanh\"", "two names"},
        {GEMMA2 ",\"attn_logit_softcapping\":0", "attn_logit_softcapping"},
        {GEMMA2 ",\"sliding_window_pattern\":6", "\"sliding_window_pattern\": 6"},
        {GEMMA2 ",\"sliding_window\":null", "\"sliding_window\" is null, but layer 0"},
        {GEMMA2 ",\"query_pre_attn_scalar\":144.5", "query_pre_attn_scalar"},
        {GEMMA2 ",\"rope_local_base_freq\":10000", "rope_local_base_freq"},
        {GEMMA3 ",\"attn_logit_softcapping\":50", "\"attn_logit_softcapping\": 50"},
        {GEMMA3 ",\"use_bidirectional_attention\":true", "use_bidirectional_attention"},
        {GEMMA3
         ",\"sliding_window_pattern\":3,\"layer_types\":[\"full_attention\",\"full_attention\",\"full_attention\","
         "\"full_attention\",\"full_attention\",\"full_attention\",\"full_attention\"]",
         "\"sliding_window_pattern\" 3 and \"layer_types\" disagree about layer 0"},
        {GEMMA3 ",\"rope_parameters\":{\"rope_theta\":5}", "\"rope_theta\" is not a layer type"},
        {GEMMA3 ",\"rope_parameters\":{\"sliding_attention\":{\"rope_type\":\"linear\"}}",
         "rope_parameters: json: missing"},
        {GEMMA3 ",\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"yarn\",\"factor\":8,\"truncate\":false}}",
         "\"truncate\": false, which transformers does not see"},
        {GEMMA3 ",\"rope_parameters\":{\"sliding_attention\":{\"rope_theta\":7}},\"rope_local_base_freq\":8",
         "\"rope_theta\" is 7 here, but \"rope_local_base_freq\" is 8"},
        {"\"architectures\":[\"Gemma3nForConditionalGeneration\"],\"model_type\":\"gemma3n\"",
         "architecture 'Gemma3nForConditionalGeneration' is not supported"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct err e;
        struct arena a = {0};
        struct model_config c;
        char json[2048];
        snprintf(json, sizeof json, "{%s}", cases[i][0]);
        assert_int_equal(read_config(json, &c, &a, &e), ERR_DATA);
        if (!strstr(e.msg, cases[i][1])) fail_msg("%s: said '%s'", cases[i][0], e.msg);
        arena_release(&a);
    }
}

/* ---- a language model within a larger model ---------------------------------------------------------------------- */

static int read_part(const char *json, struct model_config *c, struct arena *a, struct err *e) {
    cJSON *j = json_of(json);
    bool part;
    int rc = hf_config_part(&j, &part, e);
    assert_true(part);
    if (!rc) rc = hf_config_read(c, j, a, e);
    if (!rc) assert_int_equal(hf_member(j, "eos_token_id")->valuedouble, 106);
    cJSON_Delete(j);
    return rc;
}

#define WHOLE                                                                                                          \
    "\"architectures\":[\"Gemma3ForConditionalGeneration\"],\"model_type\":\"gemma3\",\"eos_token_id\":106,"           \
    "\"image_token_index\":262144,\"vision_config\":{\"model_type\":\"siglip_vision_model\"},"
#define TEXT "\"model_type\":\"gemma3_text\",\"hidden_size\":40,\"intermediate_size\":48,\"num_hidden_layers\":7"

/* The files of Gemma 3 4B say little about the language model: the rest are defaults of its class. */
static void the_language_model_of_a_whole(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c;
    OK(read_part("{" WHOLE "\"text_config\":{" TEXT ",\"eos_token_id\":1,\"sliding_window\":1024,\"rope_scaling\":"
                 "{\"factor\":8.0,\"rope_type\":\"linear\"}}}",
                 &c, &a, &e));
    assert_string_equal(c.arch, "gemma3");
    assert_true(c.vocab_size == 262208 && c.context == 131072 && c.layers[0].n_heads == 8 && c.head_dim == 256);
    assert_true(c.tied && c.rope.factor == 8 && c.layers[0].window == 1024 && c.layers[5].window == 0);
    check_again(&c);
    static const char *const cases[][2] = {
        {WHOLE "\"text_config\":7", "\"text_config\" of Gemma3ForConditionalGeneration is not an object"},
        {WHOLE "\"audio_config\":{\"a\":1},\"text_config\":{" TEXT "}", "\"audio_config\" is not known"},
        {WHOLE "\"text_config\":{\"model_type\":\"llama\"}", "is of model_type 'llama', expected gemma3_text"},
        {WHOLE "\"text_config\":{" TEXT ",\"attn_logit_softcapping\":50}", "\"attn_logit_softcapping\": 50"},
        {WHOLE "\"tie_word_embeddings\":true,\"text_config\":{" TEXT ",\"tie_word_embeddings\":false}",
         "\"tie_word_embeddings\" of the whole and of \"text_config\" disagree"},
        {"\"architectures\":[\"Gemma3ForConditionalGeneration\"],\"model_type\":\"gemma2\"",
         "\"model_type\" says 'gemma2'"},
        {"\"architectures\":[\"Gemma3ForConditionalGeneration\",\"LlamaForCausalLM\"]", "names more than"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char json[1024];
        snprintf(json, sizeof json, "{%s}", cases[i][0]);
        assert_int_equal(read_part(json, &c, &a, &e), ERR_DATA);
        if (!strstr(e.msg, cases[i][1])) fail_msg("%s: said '%s'", cases[i][0], e.msg);
    }
    arena_release(&a);
}

static void tensors_of_a_whole_have_two_spellings(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = {.arch = "gemma3"};
    struct raw_tensor items[] = {
        {.name = "language_model.model.norm.weight"}, {.name = "model.language_model.norm.weight"},
        {.name = "language_model.lm_head.weight"},    {.name = "lm_head.weight"},
        {.name = "vision_tower.head.probe"},          {.name = "model.multi_modal_projector.mm_soft_emb_norm.weight"}};
    static const char *const names[] = {"model.norm.weight", "model.norm.weight", "lm_head.weight", "lm_head.weight"};
    struct raw_table t = {items, COUNT_OF(items), COUNT_OF(items)};
    OK(hf_tensors_part(&c, &t, &a, &e));
    for (size_t i = 0; i < COUNT_OF(items); i++) {
        assert_int_equal(items[i].used, i >= COUNT_OF(names));
        if (i < COUNT_OF(names)) assert_string_equal(items[i].name, names[i]);
    }
    arena_release(&a);
}

/* llama.cpp recognises the largest models by their number of layers and then uses their scale; a shallower model
 * cannot express it. */
static void llama_cpp_takes_the_scale_from_the_depth(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c;
    OK(read_config("{" GEMMA3 ",\"head_dim\":16,\"query_pre_attn_scalar\":9}", &c, &a, &e));
    assert_int_equal(target_check(TARGET_LLAMA_CPP, &c, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "llama.cpp takes 1 / sqrt(16) for a gemma3 of 7 layers, 4 heads"));
    struct model_config large = c;
    large.n_layers = 62;
    large.layers = arena_array(&a, 62, sizeof *large.layers, &e);
    for (int i = 0; i < 62; i++) large.layers[i] = c.layers[i % 6];
    OK(target_check(TARGET_LLAMA_CPP, &large, &e));
    large.embed_scale = 7;
    assert_int_equal(target_check(TARGET_LLAMA_CPP, &large, &e), ERR_DATA);
    assert_int_equal(target_check(TARGET_TRANSFORMERS, &large, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "embeddings are scaled by 7"));
    large.embed_scale = c.embed_scale;
    large.layers[3].window = 9;
    assert_int_equal(target_check(TARGET_TRANSFORMERS, &large, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "only one length"));
    large.layers[3].window = 0;
    assert_int_equal(target_check(TARGET_LLAMA_CPP, &large, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "layer 3 of a gemma3 has no window, but not the main rotation"));
    arena_release(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_absent_is_transformers_default),
        cmocka_unit_test(soft_caps_may_be_null),
        cmocka_unit_test(soft_caps_are_written_as_floats),
        cmocka_unit_test(rotations_have_two_spellings),
        cmocka_unit_test(without_windows_there_is_one_rotation),
        cmocka_unit_test(what_is_not_computed_is_refused),
        cmocka_unit_test(llama_cpp_takes_the_scale_from_the_depth),
        cmocka_unit_test(the_language_model_of_a_whole),
        cmocka_unit_test(tensors_of_a_whole_have_two_spellings),
        cmocka_unit_test(gelu_of_the_first_is_the_tanh_form),
    };
    return cmocka_run_group_tests_name("gemma", tests, NULL, NULL);
}
