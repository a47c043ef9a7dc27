/*
 * Tests of lib/formats: whole models in and out. GGUF and folder give the same model; importing an export gives the
 * same bytes.
 */
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/formats_samples.h"

/* ---- the same model from two sources ---- */

/* The vocabulary as a GGUF has it: without a list of end tokens, which llama.cpp recognises by their text. */
static struct vocab *with_text_ends(const struct vocab *v) {
    struct err e;
    struct vocab spec = *v, *out;
    uint32_t ends[16], n = 0;
    for (uint32_t i = 0; i < v->n_ends; i++) ends[n++] = v->ends[i];
    for (uint32_t i = 0; i < v->n_tokens; i++)
        if (gguf_text_ends(v->tokens[i].bytes, v->tokens[i].n_bytes)) ends[n++] = i;
    spec.ends = ends;
    spec.n_ends = n;
    OK(vocab_new(&out, &spec, &e));
    return out;
}

static void assert_same_model(const char *x, const char *y) {
    struct err e;
    struct foreign_model *a, *b;
    OK(foreign_open(&a, x, NULL, &e));
    OK(foreign_open(&b, y, NULL, &e));
    cJSON *ca = model_config_to_json(&a->config, &e), *cb = model_config_to_json(&b->config, &e);
    char *ta = json_text(ca, &e), *tb = json_text(cb, &e);
    assert_string_equal(ta, tb);
    for (size_t i = 0; i < model_slot_count(&a->config); i++) {
        struct tensor_desc da, db;
        const void *pa, *pb;
        OK(foreign_tensor(a, model_slot_at(&a->config, i), &da, &pa, &e));
        OK(foreign_tensor(b, model_slot_at(&a->config, i), &db, &pb, &e));
        uint64_t n = tensor_elems(&da);
        assert_string_equal(da.name, db.name);
        assert_int_equal(n, tensor_elems(&db));
        float *va = malloc(n * sizeof *va), *vb = malloc(n * sizeof *vb);
        tensor_to_f32(da.dtype, pa, va, n);
        tensor_to_f32(db.dtype, pb, vb, n);
        if (memcmp(va, vb, n * sizeof *va) != 0) fail_msg("%s and %s: '%s' differs", x, y, da.name);
        free(va);
        free(vb);
    }
    struct buf pa = {0}, pb = {0};
    struct vocab *va = with_text_ends(a->vocab), *vb = with_text_ends(b->vocab);
    OK(vocab_pack(va, &pa, &e));
    OK(vocab_pack(vb, &pb, &e));
    assert_same_bytes(&pa, &pb);
    vocab_free(va);
    vocab_free(vb);
    buf_release(&pa);
    buf_release(&pb);
    mem_free(ta);
    mem_free(tb);
    cJSON_Delete(ca);
    cJSON_Delete(cb);
    foreign_close(a);
    foreign_close(b);
}

/* llama.cpp's converter made the GGUFs: rows permuted (llama) or not (qwen2), rope factors, placeholder tokens. */
static void test_gguf_is_the_folder(void **state) {
    (void)state;
    assert_same_model(GOLDEN "tiny-llama/model-f32.gguf", GOLDEN "tiny-llama");
    assert_same_model(GOLDEN "tiny-qwen2/model-f32.gguf", GOLDEN "tiny-qwen2");
}

static void test_shards_are_the_whole(void **state) {
    (void)state;
    struct buf a = imported(GOLDEN "tiny-llama", 0), b = imported(GOLDEN "tiny-llama/sharded", 0);
    assert_same_bytes(&a, &b);
    buf_release(&b);
    b = imported(GOLDEN "tiny-llama/model.safetensors", 0);
    assert_same_bytes(&a, &b);
    buf_release(&a);
    buf_release(&b);
}

/* ---- export and import ---- */

static void check_gguf_round_trip(struct buf *model) {
    struct err e;
    struct buf gguf, again;
    char path[64];
    int fd;
    OK(export_gguf(model, &gguf, &e));
    struct buf back = imported(path_of(&gguf, &fd, path), 0);
    assert_same_bytes(model, &back);
    OK(export_gguf(&back, &again, &e));
    assert_same_bytes(&gguf, &again);
    close(fd);
    buf_release(&gguf);
    buf_release(&again);
    buf_release(&back);
}

static void check_folder_round_trip(struct buf *model, unsigned dtype) {
    struct err e;
    char folder[64], path[128];
    int fd;
    temp_folder(folder);
    snprintf(path, sizeof path, "%s/model", folder);
    struct stream_map *m = map_of(model, &fd);
    OK(safetensors_export(m, path, dtype, &e));
    struct buf back = imported(path, 0);
    assert_same_bytes(model, &back);
    assert_int_equal(safetensors_export(m, path, dtype, &e), ERR_USAGE);
    assert_non_null(strstr(e.msg, "exists (a folder"));
    stream_map_free(m);
    close(fd);
    buf_release(&back);
    remove_folder(folder);
}

static void test_golden_models_there_and_back(void **state) {
    (void)state;
    static const char *const f32[] = {"tiny-llama/model-f32.gguf", "tiny-qwen2/model-f32.gguf", "tiny-smollm"};
    static const char *const folders[] = {"tiny-llama", "tiny-qwen2", "tiny-smollm"};
    for (size_t i = 0; i < COUNT_OF(f32); i++) { /* GGUF stores vectors in f32 only */
        char path[128];
        snprintf(path, sizeof path, GOLDEN "%s", f32[i]);
        struct buf model = imported(path, 0);
        check_gguf_round_trip(&model);
        buf_release(&model);
        snprintf(path, sizeof path, GOLDEN "%s", folders[i]);
        model = imported(path, 0);
        check_folder_round_trip(&model, 0);
        buf_release(&model);
    }
}

static void test_import_converts(void **state) {
    (void)state;
    struct buf a = imported(GOLDEN "tiny-llama", DT_F32), b = imported(GOLDEN "tiny-llama/model-f32.gguf", DT_BF16);
    struct buf bf16 = imported(GOLDEN "tiny-llama", 0), f32 = imported(GOLDEN "tiny-llama/model-f32.gguf", 0);
    struct model *x, *y;
    struct err e;
    /* META differs, since the GGUF has a name; the weights must not */
    OK(load_model(&a, &x, &e));
    OK(load_model(&f32, &y, &e));
    for (size_t i = 0; i < x->n_params; i++)
        assert_memory_equal(model_host_value(&x->params[i]), model_host_value(&y->params[i]),
                            x->params[i].n * sizeof(float));
    model_free(x);
    model_free(y);
    OK(load_model(&b, &x, &e));
    OK(load_model(&bf16, &y, &e));
    for (size_t i = 0; i < x->n_params; i++) {
        assert_int_equal(x->params[i].desc.dtype, DT_BF16);
        assert_memory_equal(model_host_value(&x->params[i]), model_host_value(&y->params[i]),
                            x->params[i].n * sizeof(float));
    }
    model_free(x);
    model_free(y);
    buf_release(&a);
    buf_release(&b);
    buf_release(&bf16);
    buf_release(&f32);
}

/* ---- features that the golden models lack ---- */

/* A random model of this configuration as a stream, with a vocabulary or NULL. */
static struct buf made_model(const struct model_config *c, const struct vocab *v, unsigned dtype) {
    struct err e;
    struct buf packed = {0};
    struct model *m;
    if (v) OK(vocab_pack(v, &packed, &e));
    OK(model_init(&m, kernel_cpu(), c, packed.data, packed.len, 7, &e));
    struct buf b = saved_model(m, dtype);
    model_free(m);
    buf_release(&packed);
    return b;
}

static const char *architecture_of(const struct buf *gguf, struct arena *a) {
    struct err e;
    struct gguf_file g = {0};
    const char *name = NULL;
    OK(gguf_parse(&g, gguf->data, gguf->len, a, &e));
    OK(gguf_opt_str(&g, "general.architecture", a, &name, &e));
    gguf_release(&g);
    return name;
}

/* Export must fail, and leave neither the folder nor anything else in its place. */
static void check_no_folder(struct stream_map *m, unsigned dtype, const char *says) {
    struct err e = {0};
    char folder[64], path[128];
    temp_folder(folder);
    snprintf(path, sizeof path, "%s/x", folder);
    assert_int_equal(safetensors_export(m, path, dtype, &e), ERR_DATA);
    if (!strstr(e.msg, says)) fail_msg("said '%s', expected '%s'", e.msg, says);
    assert_int_equal(rmdir(folder), 0);
}

/* Layers of different shapes, for both architectures: GGUF uses llama.cpp's deci, a folder is refused. */
static void test_layers_that_differ(void **state) {
    (void)state;
    for (int i = 0; i < 3; i++) {
        struct err e;
        struct arena a = {0};
        struct model_config c = sample_config(&a);
        c.arch = i ? "qwen2" : "llama";
        c.qkv_bias = i != 0;
        if (i == 2) c.layers[0] = c.layers[1]; /* uniform, but the heads do not add up to the hidden size */
        struct buf model = made_model(&c, NULL, DT_F32), gguf;
        check_gguf_round_trip(&model);
        OK(export_gguf(&model, &gguf, &e));
        assert_string_equal(architecture_of(&gguf, &a), "deci");
        int fd;
        struct stream_map *m = map_of(&model, &fd);
        if (i < 2) check_no_folder(m, 0, "layer 1 has 2 heads");
        stream_map_free(m);
        close(fd);
        buf_release(&model);
        buf_release(&gguf);
        arena_release(&a);
    }
}

/* Models that transformers or llama.cpp cannot load are not exported to them. */
static void test_targets(void **state) {
    (void)state;
    struct err e;
    for (int i = 0; i < 5; i++) {
        struct arena a = {0};
        struct model_config c = sample_config(&a);
        c.layers[1] = c.layers[0];
        if (i == 0) c.layers[0] = c.layers[1] = (struct model_layer){3, 3, 64};
        if (i == 1) c.norm_eps = 0;
        if (i == 2) c.arch = "qwen2";
        if (i == 3) c.arch = "qwen2", c.qkv_bias = true, c.layers[0] = c.layers[1] = (struct model_layer){3, 3, 64};
        static const char *const says[] = {"hidden size 64 is not a multiple of 3 heads", NULL,
                                           "a qwen2 model without biases", NULL, NULL};
        struct buf model = made_model(&c, NULL, DT_F32);
        int fd;
        struct stream_map *m = map_of(&model, &fd);
        if (says[i]) check_no_folder(m, 0, says[i]);
        stream_map_free(m);
        close(fd);
        if (!says[i]) check_folder_round_trip(&model, 0);
        check_gguf_round_trip(&model);
        buf_release(&model);
        arena_release(&a);
    }
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    c.n_layers = 513, c.hidden = c.head_dim = 2, c.vocab_size = 2;
    c.layers = arena_array(&a, c.n_layers, sizeof *c.layers, &e);
    for (uint32_t i = 0; i < c.n_layers; i++) c.layers[i] = (struct model_layer){1, 1, 1};
    struct buf model = made_model(&c, NULL, DT_F32), gguf = {0};
    assert_int_equal(export_gguf(&model, &gguf, &e), ERR_DATA);
    assert_string_equal(e.msg, "513 layers: llama.cpp loads at most 512");
    buf_release(&gguf);
    buf_release(&model);
    arena_release(&a);
}

/* general.file_type for the types that llama-quantize chose, from tests/golden/quant/mixtures.tsv. */
static void test_file_types(void **state) {
    (void)state;
    static const struct {
        const char *mixture;
        uint32_t file_type; /* enum llama_ftype */
    } labels[] = {{"q4_0", 2},     {"q4_1", 3},    {"q5_0", 8},     {"q5_1", 9},    {"q8_0", 7},    {"q2_k", 10},
                  {"q3_k_s", 11},  {"q3_k_m", 12}, {"q3_k_l", 13},  {"q4_k_s", 14}, {"q4_k_m", 15}, {"q5_k_s", 16},
                  {"q5_k_m", 17},  {"q6_k", 18},   {"iq2_xxs", 19}, {"iq2_xs", 20}, {"q2_k_s", 21}, {"iq3_xs", 22},
                  {"iq3_xxs", 23}, {"iq4_nl", 25}, {"iq3_s", 26},   {"iq3_m", 27},  {"iq2_s", 28},  {"iq2_m", 29},
                  {"iq4_xs", 30},  {"tq1_0", 36},  {"tq2_0", 37}};
    static const struct {
        const char *name;
        enum model_role role;
    } roles[] = {{"token_embd", ROLE_EMBED}, {"output", ROLE_HEAD}, {"attn_q", ROLE_Q},
                 {"attn_k", ROLE_K},         {"attn_v", ROLE_V},    {"attn_output", ROLE_O},
                 {"ffn_gate", ROLE_GATE},    {"ffn_up", ROLE_UP},   {"ffn_down", ROLE_DOWN}};
    for (size_t i = 0; i < COUNT_OF(labels); i++) {
        char model[32], mixture[32], matrix[32], types[1024];
        struct gguf_label of[3];
        memset(of, 0, sizeof of);
        FILE *f = fopen("tests/golden/quant/mixtures.tsv", "r");
        assert_non_null(f);
        while (fscanf(f, "%31[^\t]\t%31[^\t]\t%31[^\t]\t%1023[^\n]\n", model, mixture, matrix, types) == 4) {
            if (strcmp(mixture, labels[i].mixture) != 0 || !strcmp(model, "deep") || !strcmp(model, "fused")) continue;
            bool small = !strcmp(model, "smollm2");
            struct model_slot s = {0};
            for (size_t r = 0; r < COUNT_OF(roles); r++)
                if (!strcmp(roles[r].name, matrix)) s.role = roles[r].role;
            uint64_t hidden = small ? 576 : 256, ffn = small ? 1536 : 512, row = s.role == ROLE_DOWN ? ffn : hidden;
            uint64_t rows = s.role == ROLE_GATE || s.role == ROLE_UP ? ffn
                            : s.role == ROLE_K || s.role == ROLE_V   ? hidden / 3
                                                                     : hidden;
            for (char *save, *t = strtok_r(types, " ", &save); t; t = strtok_r(NULL, " ", &save)) /* N*TYPE */
                for (unsigned long n = strtoul(t, NULL, 10); n > 0; n--, s.layer++)
                    gguf_label_add(&of[small                    ? 0
                                       : !strcmp(model, "gqa2") ? 1
                                                                : 2],
                                   s, dtype_by_name(strchr(t, '*') + 1)->dtype, row, row * rows);
        }
        fclose(f);
        for (size_t m = 0; m < 3; m++) {
            uint32_t expected = labels[i].file_type;
            /* In smollm2 only down keeps its type: there q2_k and q3_k_s are the same, iq3_xxs without importance
             * has the types of q3_k_m, and iq3_xs and iq3_m differ from iq3_s in other matrices only. */
            static const uint32_t same[][2] = {{10, 11}, {23, 12}, {22, 26}, {27, 26}};
            for (size_t k = 0; m == 0 && k < COUNT_OF(same); k++)
                if (expected == same[k][0]) {
                    expected = same[k][1];
                    break;
                }
            uint32_t said = gguf_label_file_type(&of[m]);
            if (said != expected) fail_msg("model %zu, %s: %u, expected %u", m, labels[i].mixture, said, expected);
        }
    }
    static const enum dtype plain[] = {DT_F32, DT_F16, DT_BF16};
    for (size_t i = 0; i < 3; i++) {
        struct gguf_label l = {.outside = 0};
        gguf_label_add(&l, (struct model_slot){ROLE_UP, 0}, plain[i], 24, 240);
        gguf_label_add(&l, (struct model_slot){ROLE_NORM, 0}, DT_F32, 24, 24000);
        assert_int_equal(gguf_label_file_type(&l), i == 0 ? 0 : i == 1 ? 1 : 32);
        if (i) continue;
        gguf_label_add(&l, (struct model_slot){ROLE_EMBED, 0}, DT_Q8_0, 32, 240);
        assert_int_equal(gguf_label_file_type(&l), 7);
    }
}

/* Every rope scaling, thetas and factors beyond the precision of f32, biases, tied and untied. */
static void test_configurations(void **state) {
    (void)state;
    static const float factors[2][8] = {{1, 1.1f, 1.2f, 1.3f, 1.4f, 1.5f, 1.6f, 1.7f}, {1, 2, 4, 8, 16, 32, 64, 64.7f}};
    for (int i = 0; i < 20; i++) {
        struct arena a = {0};
        struct model_config c = sample_config(&a);
        c.layers[1] = c.layers[0];
        c.arch = i % 2 ? "qwen2" : "llama";
        c.qkv_bias = strcmp(c.arch, "qwen2") == 0 || i == 4;
        c.tied = i % 4 == 2;
        c.rope.theta = i < 10 ? 10000 : 123456.7;
        c.rope.scaling = (enum rope_scaling)(i % 5);
        if (c.rope.scaling != ROPE_PLAIN && c.rope.scaling != ROPE_LONG) c.rope.factor = i < 10 ? 2 : 3.3;
        if (c.rope.scaling == ROPE_LLAMA3) {
            c.rope.low_freq = i < 10 ? 1 : 1.5; /* no search finds the second set: our own keys state it */
            c.rope.high_freq = i < 10 ? 4 : 5.5;
            c.rope.original_context = i < 10 ? 128 : 100;
        }
        if (c.rope.scaling == ROPE_YARN) c.rope.beta_fast = 32, c.rope.beta_slow = 1;
        if (c.rope.scaling == ROPE_LONG) {
            c.rope.short_factor = factors[0], c.rope.long_factor = factors[1];
            c.rope.n_factors = model_rope_dims(&c, &c.rope) / 2;
        }
        if (c.rope.scaling >= ROPE_YARN) {
            c.rope.original_context = 16;
            c.rope.attention_factor =
                i < 10 ? model_rope_attention(c.rope.scaling, c.rope.scaling == ROPE_YARN ? 2 : c.context / 16., 16)
                       : 0.7;
        }
        struct buf model = made_model(&c, NULL, DT_F32);
        check_gguf_round_trip(&model);
        check_folder_round_trip(&model, 0);
        buf_release(&model);
        arena_release(&a);
    }
}

/* A vocabulary with everything that neither GGUF's token types nor llama.cpp's defaults express. */
static void test_vocabulary_details(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    static const char *const pieces[] = {"a", "b", "ab", " ", "<s>", " wide\n", "<|end|>"};
    static const uint32_t ends[] = {4, 1, 90, 3};
    struct vocab spec = {.pre = PRE_QWEN2,
                         .ignore_merges = true,
                         .bos = 4,
                         .eos = 5,
                         .pad = TOKEN_NONE,
                         .unk = 0,
                         .add_eos = true,
                         .chat_template = "{{ a }}\n"};
    spec.n_tokens = 97;
    spec.tokens = arena_array(&a, spec.n_tokens, sizeof *spec.tokens, &e);
    for (size_t i = 0; i < spec.n_tokens; i++) spec.tokens[i].flags = TOKEN_UNUSED;
    for (size_t i = 0; i < COUNT_OF(pieces); i++)
        spec.tokens[i] =
            (struct token){.bytes = (const unsigned char *)pieces[i], .n_bytes = (uint32_t)strlen(pieces[i])};
    spec.tokens[4].flags = TOKEN_ADDED | TOKEN_SPECIAL | TOKEN_NORMALIZED;
    spec.tokens[5].flags = TOKEN_ADDED | TOKEN_LSTRIP | TOKEN_RSTRIP | TOKEN_SINGLE_WORD;
    struct merge merge = {0, 1, 2};
    spec.merges = &merge;
    spec.n_merges = 1;
    struct model_config c = sample_config(&a);
    c.layers[1] = c.layers[0];
    for (int i = 0; i < 3; i++) {
        struct vocab *v;
        spec.nfc = i;
        spec.ends = ends;
        spec.n_ends = i == 2 ? 4 : 0;
        spec.tokens[6].flags = i ? TOKEN_ADDED | TOKEN_SPECIAL : 0; /* an end token for llama.cpp, but not for us */
        OK(vocab_new(&v, &spec, &e));
        struct buf model = made_model(&c, v, DT_F32);
        check_gguf_round_trip(&model);
        check_folder_round_trip(&model, 0);
        buf_release(&model);
        vocab_free(v);
    }
    arena_release(&a);
}

/* The six tokens "a", "b", "ab", a space, "\xc3\xa9" and an added one. */
static struct buf model_with_added_token(const char *added, struct arena *a) {
    struct err e;
    const char *pieces[] = {"a", "b", "ab", " ", "\xc3\xa9", added};
    struct token tokens[97];
    struct vocab *v, spec = {.pre = PRE_GPT2, .tokens = tokens, .n_tokens = 97, .bos = TOKEN_NONE, .eos = TOKEN_NONE};
    spec.pad = spec.unk = TOKEN_NONE;
    for (size_t i = 0; i < spec.n_tokens; i++) tokens[i] = (struct token){.flags = TOKEN_UNUSED};
    for (size_t i = 0; i < COUNT_OF(pieces); i++)
        tokens[i] = (struct token){.bytes = (const unsigned char *)pieces[i], .n_bytes = (uint32_t)strlen(pieces[i])};
    tokens[5].flags = TOKEN_ADDED;
    struct model_config c = sample_config(a);
    c.layers[1] = c.layers[0];
    OK(vocab_new(&v, &spec, &e));
    struct buf model = made_model(&c, v, DT_F32);
    vocab_free(v);
    return model;
}

/* Two tokens that a file would spell alike are refused by name; texts that merely look alike are not. */
static void test_tokens_of_one_spelling(void **state) {
    (void)state;
    static const struct {
        const char *added, *says;
    } cases[] = {
        {"ab", "tokens 2 and 5 are both spelled 'ab': this format cannot hold both"},
        {"\xc4\xa0", "tokens 3 and 5 are both spelled '\xc4\xa0'"},        /* the byte-level spelling of a space */
        {"\xc3\x83\xc2\xa9", "tokens 4 and 5 are both spelled '\xc3\x83"}, /* and that of "\xc3\xa9" */
        {"\xc3\xa9", NULL},
        {" ", NULL},
        {"[PAD7]", NULL}, /* unused tokens then get other texts */
        {"[PAD7_]", NULL},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct err e = {0};
        struct arena a = {0};
        struct buf gguf, model = model_with_added_token(cases[i].added, &a);
        if (cases[i].says) {
            int fd;
            struct stream_map *m = map_of(&model, &fd);
            assert_int_equal(export_gguf(&model, &gguf, &e), ERR_DATA);
            if (!strstr(e.msg, cases[i].says)) fail_msg("said '%s', expected '%s'", e.msg, cases[i].says);
            check_no_folder(m, 0, cases[i].says);
            stream_map_free(m);
            close(fd);
        } else {
            check_gguf_round_trip(&model);
            check_folder_round_trip(&model, 0);
        }
        buf_release(&model);
        arena_release(&a);
    }
}

/* GGUF keeps blocks unchanged, with their order of rows; a folder has the dequantized values. */
static void test_quantized_tensors(void **state) {
    (void)state;
    struct arena a = {0};
    const struct dtype_info *t;
    for (size_t i = 0; (t = dtype_at(i)); i++) {
        if (t->file_type < 0 || t->read_only || t->dtype == DT_F32) continue;
        struct err e;
        struct model_config c = sample_config(&a);
        struct stream_writer *w;
        struct model *m;
        bool wide = t->block_elems == 256;
        c.hidden = 256; /* o and down have narrower rows: those stay f32 when the rest is in blocks */
        OK(model_init(&m, kernel_cpu(), &c, NULL, 0, 3, &e));
        int fd = memory_file();
        OK(stream_writer_open(&w, fd, "model", NULL, &e));
        OK(model_head_write(w, &c, NULL, 0, NULL, &e));
        for (size_t p = 0; p < m->n_params; p++) {
            struct tensor_desc d = m->params[p].desc;
            bool fits = model_role_is_matrix(m->params[p].slot.role) && (!wide || tensor_row_elems(&d) == 256);
            d.dtype = fits ? t->dtype : DT_F32;
            unsigned char *packed = malloc(tensor_bytes(&d));
            OK(tensor_from_f32(d.dtype, model_host_value(&m->params[p]), packed, m->params[p].n, NULL, &e));
            OK(stream_write_tensor(w, &d, NULL, packed, &e));
            free(packed);
        }
        OK(stream_writer_finish(w, NULL, &e));
        stream_writer_free(w);
        model_free(m);
        struct buf model = contents(fd);
        check_gguf_round_trip(&model);
        buf_release(&model);
    }
    arena_release(&a);
}

/* Weights that are not finite are refused by import, those that overflow f16 by export. */
static void test_weights_that_do_not_fit(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model *m;
    struct model_config c = sample_config(&a);
    c.layers[1] = c.layers[0];
    OK(model_init(&m, kernel_cpu(), &c, NULL, 0, 3, &e));
    model_host_value(&m->params[3])[5] = 1e6f;
    struct buf model = saved_model(m, DT_F32);
    int fd;
    struct stream_map *map = map_of(&model, &fd);
    check_no_folder(map, DT_F16, "element 5, 1e+06, does not fit in f16");
    stream_map_free(map);
    close(fd);
    struct buf gguf;
    char path[64];
    OK(export_gguf(&model, &gguf, &e));
    float bad = NAN, large = 1e6f;
    void *at = memmem(gguf.data, gguf.len, &large, sizeof large);
    assert_non_null(at);
    memcpy(at, &bad, sizeof bad);
    struct foreign_model *f;
    struct stream_writer *w;
    OK(foreign_open(&f, path_of(&gguf, &fd, path), NULL, &e));
    int out = memory_file();
    OK(stream_writer_open(&w, out, "model", NULL, &e));
    assert_int_equal(foreign_write(f, w, 0, NULL, NULL, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "element 5 is not a finite number"));
    stream_writer_free(w);
    foreign_close(f);
    close(fd);
    close(out);
    model_free(m);
    buf_release(&model);
    buf_release(&gguf);
    arena_release(&a);
}

/* ---- npy ---- */

static void test_npy(void **state) {
    (void)state;
    struct err e;
    int fd, out = memory_file();
    struct buf model = imported(GOLDEN "tiny-llama", 0);
    struct stream_map *m = map_of(&model, &fd);
    OK(npy_export(m, "layers.0.attn.k.weight", out, &e));
    struct buf b = contents(out);
    static const char header[] =
        "\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (32, 64, ), }";
    assert_memory_equal(b.data, header, sizeof header - 1);
    assert_int_equal(b.len, 128 + 32 * 64 * 4);
    assert_int_equal(b.data[127], '\n');
    buf_release(&b);
    out = memory_file();
    assert_int_equal(npy_export(m, "layers.7.attn.k.weight", out, &e), ERR_USAGE);
    close(out);
    char folder[64], path[128];
    temp_folder(folder);
    snprintf(path, sizeof path, "%s/all/", folder);
    OK(npy_export_all(m, path, &e));
    struct stat st;
    snprintf(path, sizeof path, "%s/all/norm.weight.npy", folder);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, 128 + 64 * 4);
    remove_folder(folder);
    stream_map_free(m);
    close(fd);
    buf_release(&model);
}

/* ---- out of memory: each allocation fails in turn ---- */

static int import_once(const char *path, struct err *e) {
    struct foreign_model *f;
    struct stream_writer *w = NULL;
    int fd = memory_file();
    int rc = foreign_open(&f, path, NULL, e);
    if (!rc) {
        rc = stream_writer_open(&w, fd, "model", NULL, e);
        if (!rc) rc = foreign_write(f, w, DT_BF16, NULL, NULL, e);
        stream_writer_free(w);
        foreign_close(f);
    }
    close(fd);
    return rc;
}

static void check_failing_memory(int (*run)(const char *, struct err *), const char *path) {
    struct err e = {0};
    uint64_t n = 1;
    for (;; n++) {
        mem_fail_at(n);
        int rc = run(path, &e);
        mem_fail_at(0);
        if (!rc) break;
        if (rc != ERR_IO) fail_msg("allocation %llu: %s", (unsigned long long)n, e.msg);
    }
    assert_true(n > 10);
}

static int export_once(const char *path, struct err *e) {
    struct stream_map *m;
    int fd = memory_file();
    char folder[64], target[128];
    snprintf(folder, sizeof folder, "/tmp/rill-formats.XXXXXX");
    if (!mkdtemp(folder)) return -100;
    snprintf(target, sizeof target, "%s/x", folder);
    int rc = stream_map_open(&m, path, STREAM_MODEL, e);
    if (!rc) {
        rc = gguf_export(m, fd, "name", e);
        if (!rc) rc = safetensors_export(m, target, DT_F32, e);
        stream_map_free(m);
    }
    close(fd);
    if (rc) {
        if (rmdir(folder) != 0) return -101; /* something was left behind */
    } else {
        remove_folder(folder);
    }
    return rc;
}

static void test_failing_memory(void **state) {
    (void)state;
    check_failing_memory(import_once, GOLDEN "tiny-qwen2");
    check_failing_memory(import_once, GOLDEN "tiny-llama/model-f32.gguf");
    struct buf model = imported(GOLDEN "tiny-llama", 0);
    int fd;
    char path[64];
    check_failing_memory(export_once, path_of(&model, &fd, path));
    close(fd);
    buf_release(&model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gguf_is_the_folder),
        cmocka_unit_test(test_shards_are_the_whole),
        cmocka_unit_test(test_golden_models_there_and_back),
        cmocka_unit_test(test_import_converts),
        cmocka_unit_test(test_layers_that_differ),
        cmocka_unit_test(test_configurations),
        cmocka_unit_test(test_vocabulary_details),
        cmocka_unit_test(test_tokens_of_one_spelling),
        cmocka_unit_test(test_quantized_tensors),
        cmocka_unit_test(test_weights_that_do_not_fit),
        cmocka_unit_test(test_npy),
        cmocka_unit_test(test_failing_memory),
        cmocka_unit_test(test_targets),
        cmocka_unit_test(test_file_types),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
