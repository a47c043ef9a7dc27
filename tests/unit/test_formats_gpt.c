/* Tests of lib/formats: what config.json of GPT-2, OPT and GPT-NeoX may say, and their published files. */
#include "tests/unit/formats_samples.h"

/* ---- config.json ------------------------------------------------------------------------------------------------- */

#define GPT2                                                                                                           \
    "\"architectures\":[\"GPT2LMHeadModel\"],\"n_embd\":64,\"n_layer\":2,\"n_head\":4,\"n_positions\":128,"            \
    "\"vocab_size\":97"
#define OPT                                                                                                            \
    "\"architectures\":[\"OPTForCausalLM\"],\"hidden_size\":64,\"ffn_dim\":96,\"num_hidden_layers\":2,"                \
    "\"num_attention_heads\":4,\"max_position_embeddings\":128,\"vocab_size\":97"
#define NEOX                                                                                                           \
    "\"architectures\":[\"GPTNeoXForCausalLM\"],\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":2,"  \
    "\"num_attention_heads\":2,\"max_position_embeddings\":128,\"vocab_size\":97"

static int read_config(const char *members, const char *more, struct model_config *c, struct arena *a, struct err *e) {
    char json[2048];
    snprintf(json, sizeof json, "{%s%s%s}", members, *more ? "," : "", more);
    cJSON *j = json_of(json);
    int rc = hf_config_read(c, j, a, e);
    cJSON_Delete(j);
    return rc;
}

/* Keys that are absent have the default of the class. */
static void defaults_are_those_of_the_class(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c;
    OK(read_config(GPT2, "\"n_inner\":null", &c, &a, &e));
    assert_true(c.tied && c.qkv_bias && c.o_bias && c.ffn_bias && c.norm_bias && c.norm == NORM_LAYER);
    assert_true(c.positions == POSITIONS_LEARNED && c.position_offset == 0 && c.act == ACT_GELU_TANH);
    assert_true(c.layers[1].ffn == 256 && c.norm_eps == 1e-5f && c.attn_scale == 0 && c.head_dim == 16);
    OK(read_config(OPT, "", &c, &a, &e));
    assert_true(c.tied && c.position_offset == 2 && c.act == ACT_RELU && c.norm_place == NORM_PRE && !c.no_final_norm);
    assert_true(c.embed_dim == 0 && c.norm_eps == 1e-5f && c.ffn_bias);
    OK(read_config(OPT, "\"do_layer_norm_before\":false,\"word_embed_proj_dim\":32,\"enable_bias\":false", &c, &a, &e));
    assert_true(c.norm_place == NORM_POST && c.no_final_norm && c.embed_dim == 32 && !c.qkv_bias && !c.ffn_bias);
    OK(read_config(NEOX, "", &c, &a, &e));
    assert_true(!c.tied && c.parallel && c.act == ACT_GELU && c.rope.theta == 10000 && c.rope.dims == 8);
    OK(read_config(NEOX, "\"rotary_pct\":1,\"rotary_emb_base\":500,\"use_parallel_residual\":false", &c, &a, &e));
    assert_true(!c.parallel && c.rope.theta == 500 && c.rope.dims == 0);
    OK(read_config(NEOX, "\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":2,\"rope_theta\":700}", &c, &a, &e));
    assert_true(c.rope.theta == 700 && c.rope.dims == 8 && c.rope.scaling == ROPE_LINEAR);
    arena_release(&a);
}

static void what_is_not_computed_is_refused(void **state) {
    (void)state;
    static const struct {
        const char *members, *more, *says; /* NULL: is read */
    } cases[] = {
        {GPT2, "\"scale_attn_by_inverse_layer_idx\":true", "\"scale_attn_by_inverse_layer_idx\": true"},
        {GPT2, "\"scale_attn_weights\":false,\"reorder_and_upcast_attn\":true", NULL},
        {GPT2, "\"add_cross_attention\":true", "add_cross_attention"},
        {GPT2, "\"activation_function\":\"mish\"", "\"activation_function\": 'mish'"},
        {GPT2, "\"hidden_size\":32", "\"n_embd\" and \"hidden_size\""},
        {GPT2, "\"num_attention_heads\":8", "\"n_head\" and \"num_attention_heads\""},
        {GPT2, "\"num_key_value_heads\":2", "\"n_head\" and \"num_key_value_heads\""},
        {GPT2, "\"head_dim\":32", "head_dim"},
        {GPT2, "\"rope_theta\":10000", "rope_theta"},
        {GPT2, "\"sliding_window\":16", "sliding_window"},
        {GPT2, "\"n_inner\":0", "n_inner"},
        {OPT, "\"layer_norm_elementwise_affine\":false", "layer_norm_elementwise_affine"},
        {OPT, "\"layer_norm_eps\":1e-6", "layer_norm_eps"},
        {OPT, "\"intermediate_size\":128", "\"ffn_dim\" and \"intermediate_size\""},
        {OPT, "\"scale_embeddings\":true", "scale_embeddings"},
        {OPT, "\"layer_types\":[\"sliding_attention\"]", "layer_types"},
        {NEOX, "\"rotary_pct\":0.25,\"rope_parameters\":{\"rope_type\":\"default\",\"partial_rotary_factor\":0.5}",
         "\"rotary_pct\" is 0.25, but the rope settings' \"partial_rotary_factor\" is 0.5"},
        {NEOX, "\"rotary_emb_base\":500,\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":10000}",
         "\"rotary_emb_base\" is 500"},
        {NEOX, "\"rope_theta\":500", "\"rotary_emb_base\", which is, is missing"},
        {NEOX, "\"rotary_emb_base\":10000,\"rope_theta\":500", "\"rotary_emb_base\" and \"rope_theta\""},
        {NEOX, "\"rotary_pct\":0.01", "leaves no pair"},
        {NEOX, "\"rotary_pct\":0.1", "odd"},
        {NEOX, "\"hidden_act\":\"mish\"", "\"hidden_act\": 'mish'"},
        {"\"architectures\":[\"OPTForCausalLM\"],\"hidden_size\":64,\"num_hidden_layers\":2,\"num_attention_heads\":4,"
         "\"max_position_embeddings\":128,\"vocab_size\":97",
         "", "ffn_dim"},
    };
    struct arena a = {0};
    struct model_config c;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct err e = {0};
        int rc = read_config(cases[i].members, cases[i].more, &c, &a, &e);
        if (!cases[i].says && rc) fail_msg("%s: %s", cases[i].more, e.msg);
        if (!cases[i].says) continue;
        if (rc != ERR_DATA) fail_msg("%s: is taken, expected '%s'", cases[i].more, cases[i].says);
        if (!strstr(e.msg, cases[i].says)) fail_msg("%s: said '%s'", cases[i].more, e.msg);
    }
    arena_release(&a);
}

/* Keys as they occur in published folders. */
static void real_folders_are_read(void **state) {
    (void)state;
    static const char *const folders[] = {
        /* GPT-2 */
        "\"activation_function\":\"gelu_new\",\"architectures\":[\"GPT2LMHeadModel\"],\"attn_pdrop\":0.1,"
        "\"bos_token_id\":50256,\"embd_pdrop\":0.1,\"eos_token_id\":50256,\"initializer_range\":0.02,"
        "\"layer_norm_epsilon\":1e-05,\"model_type\":\"gpt2\",\"n_ctx\":1024,\"n_embd\":768,\"n_head\":12,\"n_layer\":"
        "12,"
        "\"n_positions\":1024,\"resid_pdrop\":0.1,\"summary_activation\":null,\"summary_first_dropout\":0.1,"
        "\"summary_proj_to_labels\":true,\"summary_type\":\"cls_index\",\"summary_use_proj\":true,"
        "\"task_specific_params\":{\"text-generation\":{\"do_sample\":true,\"max_length\":50}},\"vocab_size\":50257",
        /* OPT 350m */
        "\"activation_dropout\":0.0,\"activation_function\":\"relu\",\"architectures\":[\"OPTForCausalLM\"],"
        "\"attention_dropout\":0.0,\"bos_token_id\":2,\"do_layer_norm_before\":false,\"dropout\":0.1,\"eos_token_id\":"
        "2,"
        "\"ffn_dim\":4096,\"hidden_size\":1024,\"init_std\":0.02,\"layerdrop\":0.0,\"max_position_embeddings\":2048,"
        "\"model_type\":\"opt\",\"num_attention_heads\":16,\"num_hidden_layers\":24,\"output_projection\":true,"
        "\"pad_token_id\":1,\"prefix\":\"</s>\",\"torch_dtype\":\"float16\",\"transformers_version\":\"4.20.0.dev0\","
        "\"use_cache\":true,\"vocab_size\":50272,\"word_embed_proj_dim\":512",
        /* GPT-NeoX 20B */
        "\"architectures\":[\"GPTNeoXForCausalLM\"],\"attention_probs_dropout_prob\":0,\"bos_token_id\":0,"
        "\"eos_token_id\":0,\"hidden_act\":\"gelu_fast\",\"hidden_dropout_prob\":0,\"hidden_size\":6144,"
        "\"initializer_range\":0.02,\"intermediate_size\":24576,\"layer_norm_eps\":1e-05,"
        "\"max_position_embeddings\":2048,\"model_type\":\"gpt_neox\",\"num_attention_heads\":64,"
        "\"num_hidden_layers\":44,\"rotary_emb_base\":10000,\"rotary_pct\":0.25,\"tie_word_embeddings\":false,"
        "\"torch_dtype\":\"float16\",\"transformers_version\":\"4.19.0.dev0\",\"use_cache\":true,\"vocab_size\":50432",
        /* Pythia 70M */
        "\"architectures\":[\"GPTNeoXForCausalLM\"],\"bos_token_id\":0,\"eos_token_id\":0,\"hidden_act\":\"gelu\","
        "\"hidden_size\":512,\"initializer_range\":0.02,\"intermediate_size\":2048,\"layer_norm_eps\":1e-05,"
        "\"max_position_embeddings\":2048,\"model_type\":\"gpt_neox\",\"num_attention_heads\":8,"
        "\"num_hidden_layers\":6,\"rotary_emb_base\":10000,\"rotary_pct\":0.25,\"tie_word_embeddings\":false,"
        "\"torch_dtype\":\"float16\",\"transformers_version\":\"4.24.0\",\"use_cache\":true,"
        "\"use_parallel_residual\":true,\"vocab_size\":50304",
    };
    struct arena a = {0};
    struct model_config c;
    for (size_t i = 0; i < COUNT_OF(folders); i++) {
        struct err e;
        if (read_config(folders[i], "", &c, &a, &e)) fail_msg("%s: %s", folders[i], e.msg);
    }
    arena_release(&a);
}

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

static cJSON *read_file(const char *path, struct mapped_file *m, uint64_t *header) {
    struct err e;
    OK(mapped_file_open(m, path, &e));
    memcpy(header, m->data, sizeof *header);
    cJSON *json = json_parse((const char *)m->data + sizeof *header, *header, &e);
    assert_non_null(json);
    return json;
}

static void add_mask(cJSON *header, const char *name, uint64_t at) {
    char entry[128];
    snprintf(entry, sizeof entry, "{\"dtype\":\"U8\",\"shape\":[1,1,2,2],\"data_offsets\":[%llu,%llu]}",
             (unsigned long long)at, (unsigned long long)at + 4);
    assert_true(cJSON_AddItemToObject(header, name, json_of(entry)));
}

/* A golden folder as older programs wrote it: names without the prefix, and with the attention masks. */
static void write_old(const char *golden, const char *prefix, const char *const *masks, const char *to) {
    char path[256];
    struct mapped_file weights, config;
    uint64_t n;
    struct buf b = {0};
    snprintf(path, sizeof path, GOLDEN "arch/%s/model.safetensors", golden);
    cJSON *header = read_file(path, &weights, &n);
    uint64_t n_data = weights.size - sizeof n - n, at = n_data;
    for (cJSON *x = header->child; x; x = x->next)
        if (strncmp(x->string, prefix, strlen(prefix)) == 0)
            memmove(x->string, x->string + strlen(prefix), strlen(x->string + strlen(prefix)) + 1);
    for (; *masks; masks++, at += 4) add_mask(header, *masks, at);
    char *text = cJSON_PrintUnformatted(header);
    add_u64(&b, strlen(text));
    add_bytes(&b, text, strlen(text));
    add_bytes(&b, weights.data + sizeof n + n, n_data);
    add_bytes(&b, "\1\0\1\1\1\0\1\1", at - n_data);
    write_text(to, "model.safetensors", (const char *)b.data, b.len);
    snprintf(path, sizeof path, GOLDEN "arch/%s/config.json", golden);
    struct err e;
    OK(mapped_file_open(&config, path, &e));
    write_text(to, "config.json", (const char *)config.data, config.size);
    mapped_file_close(&config);
    mapped_file_close(&weights);
    cJSON_free(text);
    cJSON_Delete(header);
    buf_release(&b);
}

static void old_files_are_the_same_model(void **state) {
    (void)state;
    static const struct {
        const char *golden, *prefix;
        const char *masks[3];
    } cases[] = {
        {"gpt2", "transformer.", {"h.0.attn.bias", "h.1.attn.masked_bias", NULL}},
        {"gpt_neox", "gpt_neox.", {"layers.0.attention.bias", "layers.1.attention.masked_bias", NULL}},
        {"opt-350m", "model.", {NULL}},
    };
    struct foreign_options o = {.no_tokenizer = true};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char golden[128], folder[64];
        snprintf(golden, sizeof golden, GOLDEN "arch/%s", cases[i].golden);
        write_old(cases[i].golden, cases[i].prefix, cases[i].masks, temp_folder(folder));
        struct buf expected = imported_with(golden, 0, &o), old = imported_with(folder, 0, &o);
        assert_same_bytes(&expected, &old);
        buf_release(&expected);
        buf_release(&old);
        remove_folder(folder);
    }
}

/* The attention mask of one class is not accepted in another. */
static void other_buffers_are_refused(void **state) {
    (void)state;
    static const char *const masks[] = {"decoder.layers.0.self_attn.attention.mask", NULL};
    struct err e;
    struct foreign_model *f;
    char folder[64];
    write_old("opt", "model.", masks, temp_folder(folder));
    assert_int_equal(foreign_open(&f, folder, &(struct foreign_options){.no_tokenizer = true}, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "has no role in a opt model"));
    remove_folder(folder);
}

/* ---- GGUF -------------------------------------------------------------------------------------------------------- */

static void gpt2_keys(struct gguf_sample *g) {
    key_string(g, "general.architecture", "gpt2");
    key_u32(g, "gpt2.block_count", 1);
    key_u32(g, "gpt2.context_length", 16);
    key_u32(g, "gpt2.embedding_length", 8);
    key_u32(g, "gpt2.feed_forward_length", 32);
    key_u32(g, "gpt2.attention.head_count", 2);
    key_f32(g, "gpt2.attention.layer_norm_epsilon", 1e-5f);
}

static void gpt2_tensors(struct gguf_sample *g, bool fused) {
    add_f32(g, "token_embd.weight", 8, 6);
    add_f32(g, "position_embd.weight", 8, 16);
    add_f32(g, "blk.0.attn_norm.weight", 8, 0);
    add_f32(g, "blk.0.attn_norm.bias", 8, 0);
    if (fused) {
        add_f32(g, "blk.0.attn_qkv.weight", 8, 24);
        add_f32(g, "blk.0.attn_qkv.bias", 24, 0);
    } else {
        static const char *const names[] = {"q", "k", "v"};
        for (size_t i = 0; i < 3; i++) {
            char name[64];
            snprintf(name, sizeof name, "blk.0.attn_%s.weight", names[i]);
            add_f32(g, name, 8, 8);
            snprintf(name, sizeof name, "blk.0.attn_%s.bias", names[i]);
            add_f32(g, name, 8, 0);
        }
    }
    add_f32(g, "blk.0.attn_output.weight", 8, 8);
    add_f32(g, "blk.0.attn_output.bias", 8, 0);
    add_f32(g, "blk.0.ffn_norm.weight", 8, 0);
    add_f32(g, "blk.0.ffn_norm.bias", 8, 0);
    add_f32(g, "blk.0.ffn_up.weight", 8, 32);
    add_f32(g, "blk.0.ffn_up.bias", 32, 0);
    add_f32(g, "blk.0.ffn_down.weight", 32, 8);
    add_f32(g, "blk.0.ffn_down.bias", 8, 0);
    add_f32(g, "output_norm.weight", 8, 0);
    add_f32(g, "output_norm.bias", 8, 0);
}

static void gguf_has_q_k_v_fused_or_not(void **state) {
    (void)state;
    struct err e;
    for (int fused = 0; fused < 2; fused++) {
        struct gguf_sample g = gguf_sample();
        gpt2_keys(&g);
        gpt2_tensors(&g, fused);
        struct buf b = gguf_bytes(&g);
        if (open_gguf_bytes(b.data, b.len, &e)) fail_msg("%s: %s", fused ? "fused" : "separate", e.msg);
        buf_release(&b);
        gguf_sample_release(&g);
    }
}

static void check_gguf_key(const char *key, const char *value, const char *says) {
    struct err e = {0};
    struct gguf_sample g = gguf_sample();
    gpt2_keys(&g);
    if (value)
        key_string(&g, key, value);
    else
        key_u32(&g, key, 8);
    gpt2_tensors(&g, true);
    struct buf b = gguf_bytes(&g);
    int rc = open_gguf_bytes(b.data, b.len, &e);
    if (says ? rc != ERR_DATA || !strstr(e.msg, says) : rc != 0) fail_msg("%s: said '%s'", key, e.msg);
    buf_release(&b);
    gguf_sample_release(&g);
}

static void gguf_keys_are_checked(void **state) {
    (void)state;
    check_gguf_key("gpt2.hidden_activation", "gelu", NULL);
    check_gguf_key("gpt2.hidden_activation", "mish", "'mish' is not supported");
    check_gguf_key("gpt2.rope.dimension_count", NULL, "rope.dimension_count");
    check_gguf_key("gpt2.attention.layer_norm_rms_epsilon", NULL, "which is what counts");
    struct err e;
    struct buf b = {0};
    struct gguf_sample g = gguf_sample();
    key_string(&g, "general.architecture", "opt");
    b = gguf_bytes(&g);
    assert_int_equal(open_gguf_bytes(b.data, b.len, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "'opt' is not supported"));
    buf_release(&b);
    gguf_sample_release(&g);
}

/* What llama.cpp and transformers would compute differently or fail to load. */
static void targets_refuse(void **state) {
    (void)state;
    static const struct {
        const char *members, *more;
        enum model_target target;
        const char *says; /* NULL: can be loaded */
    } cases[] = {
        {GPT2, "", TARGET_LLAMA_CPP, NULL},
        {GPT2, "\"activation_function\":\"gelu\"", TARGET_LLAMA_CPP, NULL},
        {GPT2, "\"activation_function\":\"relu\"", TARGET_LLAMA_CPP, "activation relu"},
        {GPT2, "\"scale_attn_weights\":false", TARGET_LLAMA_CPP, "scores that are not scaled"},
        {OPT, "", TARGET_LLAMA_CPP, "opt has no name in GGUF"},
        {NEOX, "", TARGET_LLAMA_CPP, NULL},
        {NEOX, "\"tie_word_embeddings\":true", TARGET_LLAMA_CPP, "tied"},
        {NEOX, "\"attention_bias\":false", TARGET_LLAMA_CPP, "without a bias"},
        {NEOX, "\"attention_bias\":false", TARGET_TRANSFORMERS, NULL},
    };
    struct arena a = {0};
    struct model_config c;
    struct err e = {0};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        OK(read_config(cases[i].members, cases[i].more, &c, &a, &e));
        int rc = target_check(cases[i].target, &c, &e);
        if (cases[i].says ? rc != ERR_DATA || !strstr(e.msg, cases[i].says) : rc != 0)
            fail_msg("%s: said '%s'", cases[i].more, e.msg);
    }
    for (size_t i = 0; i < 3; i++) {
        OK(read_config(i == 0 ? GPT2 : i == 1 ? OPT : NEOX, "", &c, &a, &e));
        assert_int_equal(target_fuses_qkv(&c), i != 1);
        c.layers[0].n_heads = c.layers[1].n_heads = c.layers[0].n_kv_heads = c.layers[1].n_kv_heads = 1;
        assert_int_equal(target_check(TARGET_TRANSFORMERS, &c, &e), ERR_DATA);
        assert_non_null(strstr(e.msg, "fill the hidden size"));
    }
    arena_release(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_those_of_the_class), cmocka_unit_test(what_is_not_computed_is_refused),
        cmocka_unit_test(real_folders_are_read),           cmocka_unit_test(old_files_are_the_same_model),
        cmocka_unit_test(other_buffers_are_refused),       cmocka_unit_test(gguf_has_q_k_v_fused_or_not),
        cmocka_unit_test(gguf_keys_are_checked),           cmocka_unit_test(targets_refuse),
    };
    return cmocka_run_group_tests_name("GPT", tests, NULL, NULL);
}
