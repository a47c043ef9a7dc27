/* Tests of lib/formats: what config.json and GGUF say of experts, how their tensors are stored, and what export
 * targets cannot hold. */
#include "tests/unit/formats_samples.h"
#include "tests/unit/model_samples.h"

#include "lib/formats/arch_internal.h"

#define SHAPE                                                                                                          \
    ",\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":4,\"num_attention_heads\":4,"                  \
    "\"num_key_value_heads\":4,\"vocab_size\":97,\"max_position_embeddings\":128"
#define MIXTRAL "{\"model_type\":\"mixtral\"" SHAPE
#define OLMOE   "{\"model_type\":\"olmoe\"" SHAPE
#define QWEN2   "{\"model_type\":\"qwen2_moe\"" SHAPE
#define QWEN3   "{\"model_type\":\"qwen3_moe\",\"head_dim\":16" SHAPE

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
        {MIXTRAL ",\"norm_topk_prob\":false}", "\"norm_topk_prob\""},
        {MIXTRAL ",\"num_local_experts\":4,\"num_experts\":8}", "they disagree"},
        {MIXTRAL ",\"num_local_experts\":1}", "a position takes 2 of 1 experts"},
        {MIXTRAL ",\"num_local_experts\":0}", "\"num_local_experts\""},
        {MIXTRAL ",\"attention_bias\":true}", "\"attention_bias\""},
        {OLMOE ",\"clip_qkv\":8.0}", "\"clip_qkv\""},
        {OLMOE ",\"num_experts_per_tok\":65}", "a position takes 65 of 64 experts"},
        {OLMOE ",\"num_experts\":5000}", "\"num_experts\""},
        {OLMOE ",\"moe_intermediate_size\":8}", "\"moe_intermediate_size\""},
        {QWEN2 ",\"mlp_only_layers\":[4]}", "\"mlp_only_layers\" names a layer that is not there"},
        {QWEN2 ",\"mlp_only_layers\":1}", "\"mlp_only_layers\" is not a list"},
        {QWEN2 ",\"decoder_sparse_step\":0}", "\"decoder_sparse_step\""},
        {QWEN2 ",\"shared_expert_intermediate_size\":0}", "\"shared_expert_intermediate_size\""},
        {QWEN3 ",\"shared_expert_intermediate_size\":8}", "\"shared_expert_intermediate_size\""},
        {QWEN3 ",\"n_shared_experts\":1}", "\"n_shared_experts\""},
        {"{\"model_type\":\"llama\"" SHAPE ",\"num_local_experts\":4}", "\"num_local_experts\""},
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

static void assert_layer(const struct model_layer *l, uint32_t ffn, uint32_t experts, uint32_t width) {
    if (l->ffn == ffn && l->experts == experts && l->expert_ffn == width) return;
    fail_msg("a layer of %u, %u and %u, not %u, %u and %u", l->ffn, l->experts, l->expert_ffn, ffn, experts, width);
}

/* The defaults of transformers' classes where config.json is silent. */
static void test_defaults(void **state) {
    (void)state;
    struct arena a = {0};
    struct model_config c = read_ok(MIXTRAL "}", &a);
    assert_layer(&c.layers[3], 0, 8, 96);
    assert_true(c.experts_per_token == 2 && c.norm_expert_weights && !c.shared_gate && c.rope.theta == 1000000);
    c = read_ok(OLMOE "}", &a);
    assert_layer(&c.layers[0], 0, 64, 96);
    assert_true(c.experts_per_token == 8 && !c.norm_expert_weights && c.qk_norm == QK_NORM_ALL && c.norm_eps == 1e-5f);
    c = read_ok(QWEN2 "}", &a);
    assert_layer(&c.layers[0], 5632, 60, 1408);
    assert_true(c.experts_per_token == 4 && c.shared_gate && c.qkv_bias && !c.layers[0].window);
    c = read_ok(QWEN2 ",\"mlp_only_layers\":[1],\"decoder_sparse_step\":1,\"num_experts\":6,\"qkv_bias\":false,"
                      "\"moe_intermediate_size\":24,\"shared_expert_intermediate_size\":40,\"norm_topk_prob\":true,"
                      "\"use_sliding_window\":true,\"sliding_window\":9,\"max_window_layers\":3}",
                &a);
    assert_layer(&c.layers[0], 40, 6, 24);
    assert_layer(&c.layers[1], 96, 0, 0);
    assert_true(c.norm_expert_weights && !c.qkv_bias);
    assert_true(c.layers[0].window == 9 && !c.layers[1].window && c.layers[2].window == 9 && !c.layers[3].window);
    c = read_ok(QWEN3 ",\"decoder_sparse_step\":2,\"mlp_only_layers\":[3]}", &a);
    assert_layer(&c.layers[0], 96, 0, 0);
    assert_layer(&c.layers[1], 0, 128, 768);
    assert_layer(&c.layers[2], 96, 0, 0);
    assert_layer(&c.layers[3], 96, 0, 0);
    c = read_ok(QWEN3 ",\"num_local_experts\":16,\"use_sliding_window\":true,\"sliding_window\":9}", &a);
    assert_layer(&c.layers[2], 0, 16, 768);
    assert_true(c.layers[0].window == 9 && c.layers[3].window == 9);
    arena_release(&a);
}

/* ---- what targets cannot hold ------------------------------------------------------------------------------------ */

static void assert_refused(enum model_target t, const struct model_config *c, const char *says) {
    struct err e = {0};
    if (!target_check(t, c, &e)) fail_msg("'%s' is not refused", says);
    if (!strstr(e.msg, says)) fail_msg("'%s', not '%s'", e.msg, says);
}

static void test_targets(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = read_ok(MIXTRAL "}", &a);
    OK(target_check(TARGET_LLAMA_CPP, &c, &e));
    OK(target_check(TARGET_TRANSFORMERS, &c, &e));
    c.layers[1].experts = 7;
    assert_refused(TARGET_LLAMA_CPP, &c, "layers of mixtral that differ");
    assert_refused(TARGET_TRANSFORMERS, &c, "layer 1 has 7 experts of 96 beside a width of 0, layer 0 has 8, 96 and 0");
    c = read_ok(MIXTRAL "}", &a);
    c.norm_expert_weights = false;
    assert_refused(TARGET_LLAMA_CPP, &c, "not divided by their sum, which llama.cpp's mixtral always does");
    assert_refused(TARGET_TRANSFORMERS, &c, "which mixtral always does");
    c.norm_expert_weights = true;
    for (uint32_t i = 0; i < 4; i++) c.layers[i].ffn = 8;
    assert_refused(TARGET_TRANSFORMERS, &c, "layer 0 has a dense part beside its experts");
    for (uint32_t i = 0; i < 4; i++) c.layers[i].experts = c.layers[i].expert_ffn = 0;
    assert_refused(TARGET_TRANSFORMERS, &c, "layer 0 has no experts");

    c = read_ok(OLMOE ",\"norm_topk_prob\":true}", &a);
    OK(target_check(TARGET_TRANSFORMERS, &c, &e));
    assert_refused(TARGET_LLAMA_CPP, &c, "divided by their sum, which llama.cpp's olmoe never does");
    c = read_ok(OLMOE "}", &a);
    for (uint32_t i = 0; i < 4; i++) c.layers[i].n_kv_heads = 2;
    assert_refused(TARGET_LLAMA_CPP, &c, "2 key/value heads for 4 heads");

    c = read_ok(QWEN2 ",\"mlp_only_layers\":[1]}", &a);
    OK(target_check(TARGET_TRANSFORMERS, &c, &e));
    assert_refused(TARGET_LLAMA_CPP, &c, "layers of qwen2_moe that differ");
    c.layers[2].ffn = 96; /* a shared part with another width than the others */
    assert_refused(TARGET_TRANSFORMERS, &c, "layer 2 has 60 experts of 1408 beside a width of 96");
    c = read_ok(QWEN2 "}", &a);
    c.shared_gate = false;
    assert_refused(TARGET_TRANSFORMERS, &c, "layer 0 has no gated part beside its experts");

    c = read_ok(QWEN3 ",\"norm_topk_prob\":true}", &a);
    OK(target_check(TARGET_LLAMA_CPP, &c, &e));
    c.layers[3].window = 9;
    assert_refused(TARGET_TRANSFORMERS, &c, "a qwen3_moe has one for all");
    c = read_ok(QWEN3 "}", &a);
    assert_refused(TARGET_LLAMA_CPP, &c, "llama.cpp's qwen3_moe always does");
    arena_release(&a);
}

/* ---- files ------------------------------------------------------------------------------------------------------- */

static struct buf golden(const char *name) {
    char path[128];
    struct foreign_options o = {.no_tokenizer = true};
    snprintf(path, sizeof path, "tests/golden/arch/%s", name);
    return imported_with(path, 0, &o);
}

/* llama.cpp's names and shapes. A llama with experts is a Mixtral, without any key of ours. */
static void test_gguf(void **state) {
    (void)state;
    struct err e;
    struct buf stream = golden("mixtral"), gguf = {0};
    struct foreign_model *f;
    OK(export_gguf(&stream, &gguf, &e));
    assert_null(memmem(gguf.data, gguf.len, "rill.architecture", 17));
    OK(foreign_open_gguf(&f, gguf.data, gguf.len, NULL, &e));
    assert_string_equal(f->config.arch, "mixtral");
    const struct raw_tensor *t = raw_table_find(&f->source->tensors, "blk.1.ffn_down_exps.weight");
    assert_true(t && t->rank == 3 && t->dims[0] == 5 && t->dims[1] == 32 && t->dims[2] == 24);
    t = raw_table_find(&f->source->tensors, "blk.1.ffn_gate_inp.weight");
    assert_true(t && t->dtype == DT_F32 && t->rank == 2 && t->dims[0] == 5 && t->dims[1] == 32);
    foreign_close(f);
    /* without the count it is a llama, which has other tensors */
    unsigned char *key = memmem(gguf.data, gguf.len, "llama.expert_count", 18);
    assert_non_null(key);
    memset(key + 18 + 4, 0, 4);
    assert_int_equal(foreign_open_gguf(&f, gguf.data, gguf.len, NULL, &e), ERR_DATA);
    buf_release(&gguf);
    buf_release(&stream);

    gguf = (struct buf){0};
    stream = golden("qwen2_moe");
    OK(export_gguf(&stream, &gguf, &e));
    OK(foreign_open_gguf(&f, gguf.data, gguf.len, NULL, &e));
    t = raw_table_find(&f->source->tensors, "blk.0.ffn_gate_inp_shexp.weight");
    assert_true(t && t->rank == 1 && t->dims[0] == 32);
    t = raw_table_find(&f->source->tensors, "blk.0.ffn_up_shexp.weight");
    assert_true(t && t->rank == 2 && t->dims[0] == 28 && t->dims[1] == 32);
    foreign_close(f);
    buf_release(&gguf);
    buf_release(&stream);
}

/* Tensors of the golden folders under another name or in another shape. */
static void test_flawed_folders(void **state) {
    (void)state;
    static const struct {
        const char *model, *from, *to, *says;
    } cases[] = {
        {"olmoe", "layers.1.mlp.experts.3.up_proj", "layers.1.mlp.experts.3.xp_proj",
         "tensor 'model.layers.1.mlp.experts.3.up_proj.weight' is missing"},
        {"olmoe", "layers.0.mlp.experts.4.", "layers.0.mlp.experts.9.",
         "tensor 'model.layers.0.mlp.experts.4.gate_proj.weight' is missing"},
        {"olmoe-norm-stacked", "[4,48,32]", "[4,32,48]",
         "tensor 'model.layers.0.mlp.experts.gate_up_proj' has shape [4, 32, 48], expected [4, 48, 32]"},
        {"olmoe-norm-stacked", "[4,48,32]", "[2,96,32]", "has shape [2, 96, 32], expected [4, 48, 32]"},
        {"qwen2_moe", "[1,32]", "[32,1]",
         "tensor 'model.layers.0.mlp.shared_expert_gate.weight' has shape [32, 1], expected [1, 32]"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char folder[64], path[128];
        struct foreign_options o = {.no_tokenizer = true};
        struct foreign_model *f;
        struct err e = {0};
        snprintf(path, sizeof path, "tests/golden/arch/%s", cases[i].model);
        struct buf config = file_of_folder(path, "config.json"), weights = file_of_folder(path, "model.safetensors");
        size_t n = strlen(cases[i].from), found = 0;
        for (unsigned char *at = weights.data;
             (at = memmem(at, weights.len - (size_t)(at - weights.data), cases[i].from, n)); found++)
            memcpy(at, cases[i].to, n);
        assert_true(found > 0 && n == strlen(cases[i].to));
        temp_folder(folder);
        write_text(folder, "config.json", (const char *)config.data, config.len);
        write_text(folder, "model.safetensors", (const char *)weights.data, weights.len);
        assert_int_equal(foreign_open(&f, folder, &o, &e), ERR_DATA);
        if (!strstr(e.msg, cases[i].says)) fail_msg("'%s', not '%s'", e.msg, cases[i].says);
        remove_folder(folder);
        buf_release(&config);
        buf_release(&weights);
    }
}

/* All experts in one tensor of a GGUF must have one type. */
static void test_experts_of_two_types(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = read_ok(MIXTRAL ",\"num_local_experts\":3}", &a);
    struct model *m = sample_model(&c, 1);
    struct buf gguf = {0};
    struct model_param *p = model_expert_param(m, ROLE_EXPERT_UP, 2, 1);
    p->desc.dtype = DT_BF16;
    for (uint64_t i = 0; i < p->n; i++) model_host_value(p)[i] = (float)(i % 7);
    struct buf stream = saved_model(m, 0);
    OK(export_gguf(&stream, &gguf, &e)); /* plain types are merged to f32 */
    struct foreign_model *f;
    OK(foreign_open_gguf(&f, gguf.data, gguf.len, NULL, &e));
    const struct raw_tensor *t = raw_table_find(&f->source->tensors, "blk.2.ffn_up_exps.weight");
    assert_true(t && t->dtype == DT_F32);
    foreign_close(f);
    buf_release(&gguf);
    buf_release(&stream);
    model_free(m);
    arena_release(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused_keys),   cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_targets),        cmocka_unit_test(test_gguf),
        cmocka_unit_test(test_flawed_folders), cmocka_unit_test(test_experts_of_two_types),
    };
    return cmocka_run_group_tests_name("formats: experts", tests, NULL, NULL);
}
