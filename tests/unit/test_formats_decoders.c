/* Tests of lib/formats: what config.json and GGUF of Qwen3, Phi, Phi-3, SmolLM3 and MiniCPM may say, and what export
 * targets cannot hold. */
#include "tests/unit/formats_samples.h"
#include "tests/unit/model_samples.h"

#include "lib/formats/arch_internal.h"
#include "lib/quant/quant.h"

#define SHAPE                                                                                                          \
    ",\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":4,\"num_attention_heads\":4,"                  \
    "\"vocab_size\":97,\"max_position_embeddings\":128"
#define QWEN3   "{\"model_type\":\"qwen3\",\"num_key_value_heads\":2" SHAPE
#define PHI     "{\"model_type\":\"phi\"" SHAPE
#define PHI3    "{\"model_type\":\"phi3\"" SHAPE
#define SMOLLM3 "{\"model_type\":\"smollm3\"" SHAPE
#define MINICPM "{\"model_type\":\"minicpm\"" SHAPE

static int read_json(const char *json, struct model_config *c, struct arena *a, struct err *e) {
    cJSON *j = json_of(json);
    int rc = hf_config_read(c, j, a, e);
    cJSON_Delete(j);
    return rc;
}

static struct model_config read_ok(const char *json, struct arena *a) {
    struct err e;
    struct model_config c;
    if (read_json(json, &c, a, &e)) fail_msg("%s: %s", json, e.msg);
    return c;
}

static void test_refused_keys(void **state) {
    (void)state;
    static const struct {
        const char *json, *says;
    } cases[] = {
        {PHI ",\"qk_layernorm\":1}", "\"qk_layernorm\""},
        {PHI3 ",\"qk_layernorm\":true}", "\"qk_layernorm\": true is not supported"},
        {PHI ",\"rms_norm_eps\":1e-6}", "\"rms_norm_eps\" is not a key of this architecture"},
        {PHI ",\"sliding_window\":64}", "\"sliding_window\""},
        {PHI ",\"partial_rotary_factor\":0}", "leaves no pair of a head of 16 to rotate"},
        {PHI ",\"partial_rotary_factor\":0.1}", "leaves no pair of a head of 16 to rotate"},
        {PHI3 ",\"rope_scaling\":{\"type\":\"longrope\",\"long_factor\":[1],\"short_factor\":[1]}}",
         "longrope has 1 factors"},
        {PHI3 ",\"rope_scaling\":{\"type\":\"longrope\",\"original_max_position_embeddings\":64,\"long_factor\":[1],"
              "\"short_factor\":[1]}}",
         "\"original_max_position_embeddings\" is 64 here, but 4096 at the top level"},
        {PHI3 ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2}}", "transformers gives a phi3 no such scaling"},
        {PHI3 ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}}", "transformers gives a phi3 no such scaling"},
        {PHI3 ",\"use_sliding_window\":false,\"sliding_window\":64}",
         "takes its \"sliding_window\" of 64 all the same"},
        {PHI3 ",\"attention_bias\":true}", "\"attention_bias\""},
        {SMOLLM3 ",\"no_rope_layers\":[1,1,1]}", "has 3 entries, but \"num_hidden_layers\" is 4"},
        {SMOLLM3 ",\"no_rope_layers\":[1,1,2,1]}", "of layer 2 is not 0 or 1"},
        {SMOLLM3 ",\"no_rope_layers\":1}", "\"no_rope_layers\" is not a list"},
        {SMOLLM3 ",\"no_rope_layer_interval\":0}", "\"no_rope_layer_interval\""},
        {SMOLLM3 ",\"mlp_bias\":true}", "\"mlp_bias\""},
        {SMOLLM3 ",\"sliding_window\":8,\"layer_types\":[\"full_attention\",\"full_attention\",\"full_attention\","
                 "\"sliding_attention\"]}",
         "\"use_sliding_window\" is false, but \"layer_types\" gives layers a window"},
        {MINICPM ",\"head_dim\":32}", "needs them as wide as the 64 of the model"},
        {MINICPM ",\"scale_depth\":0}", "\"scale_depth\""},
        {MINICPM ",\"num_experts\":8}", "\"num_experts\""},
        {MINICPM ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2}}",
         "rope type 'yarn': MiniCPMForCausalLM has none"},
        {"{\"model_type\":\"qwen3\"" SHAPE "}", "4 heads for 32 key/value heads"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct err e = {0};
        struct arena a = {0};
        struct model_config c;
        if (read_json(cases[i].json, &c, &a, &e) != ERR_DATA) fail_msg("%s: is taken", cases[i].json);
        if (!strstr(e.msg, cases[i].says)) fail_msg("%s: said '%s'", cases[i].json, e.msg);
        arena_release(&a);
    }
}

/* The defaults of transformers' classes where config.json is silent. */
static void test_defaults(void **state) {
    (void)state;
    struct arena a = {0};
    struct model_config c = read_ok(QWEN3 "}", &a);
    assert_true(c.head_dim == 128 && c.qk_norm == QK_NORM_HEADS && !c.qkv_bias && !c.o_bias && c.norm_eps == 1e-6f);
    c = read_ok(QWEN3 ",\"attention_bias\":true,\"head_dim\":32,\"use_sliding_window\":true,\"sliding_window\":9,"
                      "\"max_window_layers\":3}",
                &a);
    assert_true(c.head_dim == 32 && c.qkv_bias && c.o_bias && !c.layers[2].window && c.layers[3].window == 9);
    c = read_ok(PHI "}", &a);
    assert_true(c.rope.dims == 8 && c.layers[0].n_kv_heads == 4 && c.norm_eps == 1e-5f && c.act == ACT_GELU_TANH);
    assert_true(c.parallel && c.shared_norm && c.head_bias && c.ffn_kind == FFN_PLAIN && !c.tied);
    c = read_ok(PHI ",\"partial_rotary_factor\":1.0,\"layer_norm_eps\":0.01,\"hidden_act\":\"gelu\"}", &a);
    assert_true(model_rope_dims(&c, &c.rope) == 16 && c.norm_eps == 0.01f && c.act == ACT_GELU);
    c = read_ok(PHI3 ",\"sliding_window\":null}", &a);
    assert_true(c.rope.dims == 0 && c.norm_eps == 1e-5f && !c.tied && !c.layers[0].window);
    c = read_ok(PHI3 ",\"sliding_window\":64,\"partial_rotary_factor\":0.75}", &a);
    assert_true(c.rope.dims == 12 && c.layers[0].window == 64 && c.layers[3].window == 64);
    assert_int_equal(read_ok(PHI3 ",\"sliding_window\":128}", &a).layers[0].window, 0); /* no effect */
    c = read_ok(SMOLLM3 "}", &a);
    assert_true(c.tied && c.rope.theta == 2000000 && c.layers[0].n_kv_heads == 4);
    assert_true(c.layers[2].rope == ROPE_MAIN && c.layers[3].rope == ROPE_NONE);
    c = read_ok(SMOLLM3 ",\"no_rope_layer_interval\":2,\"use_sliding_window\":true,\"sliding_window\":8}", &a);
    for (uint32_t i = 0; i < 4; i++) {
        assert_int_equal(c.layers[i].rope, i % 2 ? ROPE_NONE : ROPE_MAIN);
        assert_int_equal(c.layers[i].window, i % 2 ? 8 : 0);
    }
    c = read_ok(SMOLLM3 ",\"no_rope_layers\":[0,1,1,1,0,0],\"no_rope_layer_interval\":2,\"sliding_window\":8}", &a);
    assert_true(c.layers[0].rope == ROPE_NONE && c.layers[3].rope == ROPE_MAIN && !c.layers[0].window);
    c = read_ok(MINICPM ",\"num_experts\":0}", &a);
    assert_true(c.tied && c.embed_scale == 1 && c.residual_scale == 0.5f && c.logit_scale == 1 / 64.0f);
    arena_release(&a);
}

/* ---- written configurations read back ---------------------------------------------------------------------------- */

static cJSON *written(const struct model_config *c) {
    struct err e;
    cJSON *json = hf_config_write(c, NULL, DT_F32, &e);
    if (!json) fail_msg("%s", e.msg);
    return json;
}

static double number(const cJSON *json, const char *key) {
    return cJSON_GetNumberValue(cJSON_GetObjectItemCaseSensitive(json, key));
}

/* The partial rotary factor is a decimal; the class truncates its product with the head size. */
static void test_every_share_comes_back(void **state) {
    (void)state;
    for (uint32_t head_dim = 2; head_dim <= 256; head_dim += 2)
        for (uint32_t dims = 2; dims <= head_dim; dims += 2) {
            struct arena a = {0};
            struct err e;
            struct model_config c = read_ok(PHI "}", &a), back;
            c.head_dim = head_dim;
            c.rope.dims = dims == head_dim ? 0 : dims;
            cJSON *json = written(&c);
            OK(hf_config_read(&back, json, &a, &e));
            assert_int_equal(model_rope_dims(&back, &back.rope), dims);
            cJSON_Delete(json);
            arena_release(&a);
        }
}

static void test_factors_come_back_short(void **state) {
    (void)state;
    for (uint32_t layers = 1; layers <= 60; layers++) {
        struct arena a = {0};
        struct err e;
        char text[512];
        struct model_config back;
        snprintf(text, sizeof text,
                 "{\"model_type\":\"minicpm\",\"hidden_size\":2304,\"intermediate_size\":5760,"
                 "\"num_hidden_layers\":%u,\"num_attention_heads\":36,\"vocab_size\":97,"
                 "\"max_position_embeddings\":128,\"scale_emb\":12,\"scale_depth\":1.4,\"dim_model_base\":256}",
                 layers);
        struct model_config c = read_ok(text, &a);
        cJSON *json = written(&c);
        assert_true(number(json, "scale_emb") == 12 && number(json, "scale_depth") == 1.4);
        assert_true(number(json, "dim_model_base") == 256);
        OK(hf_config_read(&back, json, &a, &e));
        assert_true(back.residual_scale == c.residual_scale && back.logit_scale == c.logit_scale);
        cJSON_Delete(json);
        arena_release(&a);
    }
}

/* ---- GGUF -------------------------------------------------------------------------------------------------------- */

static void llama_cpp_says(const char *json, const char *says) {
    struct arena a = {0};
    struct err e = {0};
    struct model_config c = read_ok(json, &a);
    int rc = target_check(TARGET_LLAMA_CPP, &c, &e);
    if (!says && rc) fail_msg("%s: %s", json, e.msg);
    if (says && rc != ERR_DATA) fail_msg("%s: is taken", json);
    if (says && !strstr(e.msg, says)) fail_msg("%s: said '%s'", json, e.msg);
    arena_release(&a);
}

static void test_llama_cpp_limits(void **state) {
    (void)state;
    llama_cpp_says(QWEN3 "}", NULL);
    llama_cpp_says(QWEN3 ",\"use_sliding_window\":true,\"sliding_window\":9,\"max_window_layers\":0}",
                   "llama.cpp's qwen3 has no such window");
    llama_cpp_says(QWEN3 ",\"attention_bias\":true}", "a bias on attention's output");
    llama_cpp_says(QWEN3 ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,"
                         "\"high_freq_factor\":4}}",
                   "rope type llama3");
    llama_cpp_says(PHI "}", NULL);
    llama_cpp_says(PHI ",\"tie_word_embeddings\":true}", "tied to the embedding");
    llama_cpp_says(PHI ",\"hidden_act\":\"gelu\"}", "activation gelu, where llama.cpp's phi2 has gelu_new");
    llama_cpp_says(PHI ",\"head_dim\":32}", "4 heads of 32");
    llama_cpp_says(PHI3 ",\"sliding_window\":64}", NULL);
    llama_cpp_says(PHI3 ",\"head_dim\":32}", "4 heads of 32");
    llama_cpp_says(SMOLLM3 "}", NULL);
    llama_cpp_says(SMOLLM3 ",\"no_rope_layer_interval\":3}", "layer 2 has no rotary positions");
    llama_cpp_says(SMOLLM3 ",\"no_rope_layers\":[1,1,1,1]}", "layer 3 has rotary positions");
    llama_cpp_says(MINICPM ",\"attention_bias\":true}", NULL);
}

static void shape_keys(struct gguf_sample *g, const char *arch) {
    static const struct {
        const char *suffix;
        uint32_t v;
    } numbers[] = {{"block_count", 1},
                   {"context_length", 32},
                   {"embedding_length", 8},
                   {"feed_forward_length", 4},
                   {"attention.head_count", 2},
                   {"attention.head_count_kv", 1},
                   {"attention.sliding_window", 0}};
    char key[64];
    key_string(g, "general.architecture", arch);
    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        snprintf(key, sizeof key, "%s.%s", arch, numbers[i].suffix);
        key_u32(g, key, numbers[i].v);
    }
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", arch);
    key_f32(g, key, 1e-5f);
    key_string(g, "tokenizer.ggml.model", "none");
}

static struct foreign_model *open_sample(struct gguf_sample *g, struct buf *bytes, const char *says) {
    struct err e = {0};
    struct foreign_model *f = NULL;
    *bytes = gguf_bytes(g);
    gguf_sample_release(g);
    int rc = foreign_open_gguf(&f, bytes->data, bytes->len, NULL, &e);
    if (!says && rc) fail_msg("%s", e.msg);
    if (says && (rc != ERR_DATA || !strstr(e.msg, says))) fail_msg("said '%s', expected '%s'", e.msg, says);
    return rc ? NULL : f;
}

/* Files of MiniCPM 1B and 2B from before llama.cpp had keys for the factors. */
static void test_old_minicpm(void **state) {
    (void)state;
    struct buf bytes;
    struct gguf_sample g = gguf_sample();
    shape_keys(&g, "minicpm");
    tiny_tensors(&g);
    struct foreign_model *f = open_sample(&g, &bytes, NULL);
    const struct model_config *c = &f->config;
    assert_true(c->embed_scale == 12 && c->residual_scale == 1.4f && c->logit_scale == 32);
    foreign_close(f);
    buf_release(&bytes);

    g = gguf_sample();
    shape_keys(&g, "minicpm");
    key_f32(&g, "minicpm.embedding_scale", 3);
    key_f32(&g, "minicpm.residual_scale", 0.25f);
    key_f32(&g, "minicpm.logit_scale", 4);
    tiny_tensors(&g);
    f = open_sample(&g, &bytes, NULL);
    c = &f->config;
    assert_true(c->embed_scale == 3 && c->residual_scale == 0.25f && c->logit_scale == 0.25f);
    foreign_close(f);
    buf_release(&bytes);
}

static void test_longrope_in_gguf(void **state) {
    (void)state;
    struct buf bytes;
    struct gguf_sample g = gguf_sample();
    shape_keys(&g, "llama");
    tiny_tensors(&g);
    add_f32(&g, "rope_factors_long.weight", 2, 0);
    assert_null(open_sample(&g, &bytes, "tensor 'rope_factors_short.weight' is missing, and longrope needs it"));
    buf_release(&bytes);
    for (int i = 0; i < 4; i++) {
        static const char *const says[] = {NULL, "is not 2 numbers of f32",
                                           "is 'linear', but there are factors of longrope",
                                           "is 'longrope', but there is a factor of 2"};
        g = gguf_sample();
        shape_keys(&g, "llama");
        tiny_tensors(&g);
        add_f32(&g, "rope_factors_long.weight", i == 1 ? 3 : 2, 0);
        add_f32(&g, "rope_factors_short.weight", 2, 0);
        key_u32(&g, "llama.rope.scaling.original_context_length", 16);
        key_f32(&g, "llama.rope.scaling.attn_factor", 1.25f);
        if (i == 2) key_string(&g, "llama.rope.scaling.type", "linear");
        if (i == 3) key_f32(&g, "llama.rope.scaling.factor", 2);
        struct foreign_model *f = open_sample(&g, &bytes, says[i]);
        if (i == 0) {
            const struct model_rope *r = &f->config.rope;
            assert_true(r->scaling == ROPE_LONG && r->n_factors == 2 && r->original_context == 16);
            assert_true(r->attention_factor == 1.25 && r->long_factor[0] > 0);
            foreign_close(f);
        }
        buf_release(&bytes);
    }
}

/* ---- fused tensors whose parts have different types -------------------------------------------------------------- */

/* The types of q4_k_m's mixture, as for unfused tensors: v of layer 1 gets more bits than q and k. */
static struct buf mixture_of(const struct buf *stream) {
    struct err e;
    struct stream_reader *r;
    struct stream_writer *w;
    struct quant_options o = {.fuses_qkv = NULL};
    struct quant_totals totals;
    int in = file_of(stream->data, stream->len), out = memory_file();
    OK(quant_type_parse("q4_k_m", &o.type, &e));
    OK(stream_reader_open(&r, in, "model", STREAM_MODEL, &e));
    OK(stream_writer_open(&w, out, "mixture", NULL, &e));
    OK(quantize_stream(r, w, &o, NULL, NULL, &totals, &e));
    OK(stream_writer_finish(w, NULL, &e));
    stream_writer_free(w);
    stream_reader_free(r);
    close(in);
    return contents(out);
}

static void assert_same_values(const struct buf *a, const struct buf *b) {
    struct err e;
    struct model *x, *y;
    OK(load_model_as(a, WEIGHTS_F32, &x, &e));
    OK(load_model_as(b, WEIGHTS_F32, &y, &e));
    assert_int_equal(x->n_params, y->n_params);
    for (size_t i = 0; i < x->n_params; i++)
        assert_memory_equal(model_host_value(&x->params[i]), model_host_value(&y->params[i]),
                            x->params[i].n * sizeof(float));
    model_free(x);
    model_free(y);
}

/* GGUF keeps blocks, so the parts are separate tensors; safetensors has values, so the parts are fused in f32. */
static void test_parts_of_different_types(void **state) {
    (void)state;
    struct err e;
    struct foreign_options o = {.no_tokenizer = true};
    struct buf plain = imported_with("tests/golden/arch/phi3", 0, &o), mixed = mixture_of(&plain), gguf = {0};
    if (export_gguf(&mixed, &gguf, &e)) fail_msg("%s", e.msg);
    struct foreign_model *f;
    OK(foreign_open_gguf(&f, gguf.data, gguf.len, NULL, &e));
    assert_non_null(raw_table_find(&f->source->tensors, "blk.0.attn_qkv.weight"));
    assert_non_null(raw_table_find(&f->source->tensors, "blk.1.attn_v.weight"));
    assert_null(raw_table_find(&f->source->tensors, "blk.1.attn_qkv.weight"));
    struct buf again = foreign_stream(f, 0);
    foreign_close(f);
    assert_same_values(&mixed, &again);
    buf_release(&again);

    char folder[64], path[128];
    int fd;
    temp_folder(folder);
    snprintf(path, sizeof path, "%s/model", folder);
    struct stream_map *map = map_of(&mixed, &fd);
    OK(safetensors_export(map, path, 0, &e));
    stream_map_free(map);
    close(fd);
    again = imported_with(path, 0, &o);
    assert_same_values(&mixed, &again);
    remove_folder(folder);
    buf_release(&again);
    buf_release(&gguf);
    buf_release(&mixed);
    buf_release(&plain);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused_keys),           cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_every_share_comes_back), cmocka_unit_test(test_factors_come_back_short),
        cmocka_unit_test(test_llama_cpp_limits),       cmocka_unit_test(test_old_minicpm),
        cmocka_unit_test(test_longrope_in_gguf),       cmocka_unit_test(test_parts_of_different_types),
    };
    return cmocka_run_group_tests_name("decoders", tests, NULL, NULL);
}
