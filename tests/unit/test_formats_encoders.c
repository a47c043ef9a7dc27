/* Tests of lib/formats: names of tensors of BERT and its relatives in all spellings, heads of other classes, and
 * what config.json and GGUF may say. */
#include <stdlib.h>

#include "tests/unit/formats_samples.h"
#include "tests/unit/model_samples.h"

#include "lib/formats/arch_internal.h"

#define ARCH "tests/golden/arch/"

/* ---- a golden folder with other names and texts ------------------------------------------------------------------ */

static void copy_folder(char folder[64], const char *name) {
    static const char *const files[] = {"config.json", "model.safetensors"};
    char from[512];
    temp_folder(folder);
    snprintf(from, sizeof from, ARCH "%s", name);
    for (size_t i = 0; i < 2; i++) {
        struct buf b = file_of_folder(from, files[i]);
        write_text(folder, files[i], (const char *)b.data, b.len);
        buf_release(&b);
    }
}

/* Writes the header with other names and more tensors, then the data and `more` bytes. */
static void put_header(const char *folder, cJSON *header, const void *data, size_t n, size_t more) {
    struct err e;
    struct buf out = {0};
    char *text = json_text(header, &e);
    add_string(&out, text);
    add_bytes(&out, data, n);
    for (size_t i = 0; i < more; i++) add_bytes(&out, "\1", 1);
    write_text(folder, "model.safetensors", (const char *)out.data, out.len);
    mem_free(text);
    buf_release(&out);
}

static cJSON *header_of(const struct buf *b, size_t *data_at) {
    struct err e;
    uint64_t size;
    memcpy(&size, b->data, 8);
    *data_at = 8 + size;
    cJSON *header = json_parse((const char *)b->data + 8, size, &e);
    assert_non_null(header);
    return header;
}

/* Replaces `from` at the beginning or end of each tensor name by `to`. */
static void rename_tensors(const char *folder, const char *from, const char *to, bool at_end) {
    struct buf b = file_of_folder(folder, "model.safetensors");
    size_t at, n_from = strlen(from), changed = 0;
    cJSON *header = header_of(&b, &at);
    for (cJSON *x = header->child; x; x = x->next) {
        size_t n = strlen(x->string), where = at_end && n >= n_from ? n - n_from : 0;
        if (!strcmp(x->string, "__metadata__") || strncmp(x->string + where, from, n_from) != 0) continue;
        char *name = cJSON_malloc(n + strlen(to) + 1);
        snprintf(name, n + strlen(to) + 1, "%.*s%s%s", (int)where, x->string, to, x->string + where + n_from);
        cJSON_free(x->string);
        x->string = name;
        changed++;
    }
    assert_true(changed > 0);
    put_header(folder, header, b.data + at, b.len - at, 0);
    cJSON_Delete(header);
    buf_release(&b);
}

/* Adds a tensor: of ones, or with the data of another. */
static void add_tensor(const char *folder, const char *name, const char *dtype, unsigned n, unsigned size,
                       const char *like) {
    struct buf b = file_of_folder(folder, "model.safetensors");
    size_t at;
    cJSON *header = header_of(&b, &at);
    char entry[160];
    size_t first = b.len - at;
    snprintf(entry, sizeof entry, "{\"dtype\":\"%s\",\"shape\":[%u],\"data_offsets\":[%zu,%zu]}", dtype, n, first,
             first + (size_t)n * size);
    cJSON_AddItemToObject(header, name, json_of(entry));
    struct buf data = {0};
    add_bytes(&data, b.data + at, first);
    size_t more = (size_t)n * size;
    if (like) {
        const cJSON *offsets = cJSON_GetObjectItem(cJSON_GetObjectItem(header, like), "data_offsets");
        size_t from = (size_t)cJSON_GetArrayItem(offsets, 0)->valuedouble;
        assert_int_equal(cJSON_GetArrayItem(offsets, 1)->valuedouble - from, more);
        add_bytes(&data, b.data + at + from, more);
        more = 0;
    }
    put_header(folder, header, data.data, data.len, more);
    cJSON_Delete(header);
    buf_release(&data);
    buf_release(&b);
}

/* Sets a key of config.json; value NULL deletes it. */
static void set_config(const char *folder, const char *key, const char *value) {
    struct err e;
    struct buf b = file_of_folder(folder, "config.json");
    cJSON *json = json_parse((const char *)b.data, b.len, &e);
    cJSON_DeleteItemFromObjectCaseSensitive(json, key);
    if (value) cJSON_AddItemToObject(json, key, json_of(value));
    char *text = json_text(json, &e);
    write_text(folder, "config.json", text, strlen(text));
    mem_free(text);
    cJSON_Delete(json);
    buf_release(&b);
}

static struct buf stream_in(const char *folder) {
    struct foreign_options o = {.no_tokenizer = true};
    return imported_with(folder, 0, &o);
}

static void assert_same_model(const char *folder, const char *golden) {
    char path[512];
    snprintf(path, sizeof path, ARCH "%s", golden);
    struct buf a = stream_in(path), b = stream_in(folder);
    assert_same_bytes(&a, &b);
    buf_release(&a);
    buf_release(&b);
}

static struct model *model_of(const char *folder) {
    struct err e;
    struct model *m;
    struct buf b = stream_in(folder);
    OK(load_model(&b, &m, &e));
    buf_release(&b);
    return m;
}

static void assert_refused(const char *folder, const char *says) {
    struct err e;
    struct foreign_model *f;
    struct foreign_options o = {.no_tokenizer = true};
    assert_int_equal(foreign_open(&f, folder, &o, &e), ERR_DATA);
    if (!strstr(e.msg, says)) fail_msg("'%s' does not say '%s'", e.msg, says);
}

/* ---- names ------------------------------------------------------------------------------------------------------- */

static void names_with_and_without_their_base(void **state) {
    static const struct {
        const char *golden, *from, *to;
    } cases[] = {{"bert", "bert.", ""},
                 {"bert-encoder", "", "bert."},
                 {"bert-classes", "bert.", ""},
                 {"roberta", "roberta.", ""},
                 {"roberta-encoder", "", "roberta."},
                 {"distilbert", "distilbert.", ""},
                 {"distilbert-encoder", "", "distilbert."}};
    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char folder[64];
        copy_folder(folder, cases[i].golden);
        rename_tensors(folder, cases[i].from, cases[i].to, false);
        assert_same_model(folder, cases[i].golden);
        remove_folder(folder);
    }
}

/* As in the files of the first BERTs. */
static void norms_called_gamma_and_beta(void **state) {
    (void)state;
    char folder[64];
    copy_folder(folder, "bert");
    rename_tensors(folder, "LayerNorm.weight", "LayerNorm.gamma", true);
    rename_tensors(folder, "LayerNorm.bias", "LayerNorm.beta", true);
    assert_same_model(folder, "bert");
    remove_folder(folder);
}

/* bert-base-uncased is a BertForMaskedLM with the pooler and the second head of its pre-training, and a buffer of
 * positions. */
static void heads_of_other_classes_are_left_out(void **state) {
    (void)state;
    char folder[64];
    copy_folder(folder, "bert");
    add_tensor(folder, "cls.seq_relationship.bias", "F32", 2, 4, NULL);
    add_tensor(folder, "bert.pooler.dense.bias", "F32", 32, 4, NULL);
    add_tensor(folder, "bert.embeddings.position_ids", "I64", 64, 8, NULL);
    add_tensor(folder, "cls.predictions.decoder.bias", "F32", 61, 4, "cls.predictions.bias"); /* a duplicate */
    assert_same_model(folder, "bert");
    add_tensor(folder, "bert.encoder.layer.0.extra.weight", "F32", 4, 4, NULL);
    assert_refused(folder, "'bert.encoder.layer.0.extra.weight' has no role");
    remove_folder(folder);
}

static void a_bias_of_two_values_is_refused(void **state) {
    (void)state;
    char folder[64];
    copy_folder(folder, "bert");
    add_tensor(folder, "cls.predictions.decoder.bias", "F32", 61, 4, NULL);
    set_config(folder, "architectures", "[\"BertForMaskedLM\"]");
    assert_refused(folder, "'cls.predictions.decoder.bias'");
    remove_folder(folder);
}

/* Without a class name the model is the encoder, and an encoder need not have a pooler. */
static void a_model_type_alone_is_the_encoder(void **state) {
    (void)state;
    char folder[64];
    copy_folder(folder, "bert");
    set_config(folder, "architectures", NULL);
    struct model *m = model_of(folder);
    assert_int_equal(m->config.output, OUTPUT_NONE);
    assert_false(m->config.pooler || m->config.tied || m->config.head_bias);
    model_free(m);
    remove_folder(folder);
}

/* ---- config.json ------------------------------------------------------------------------------------------------- */

static void what_config_json_may_say(void **state) {
    static const struct {
        const char *golden, *key, *value, *says;
    } cases[] = {
        {"bert", "is_decoder", "true", "\"is_decoder\": true is not supported"},
        {"bert", "position_embedding_type", "\"relative_key\"", "'relative_key' is not supported"},
        {"bert", "hidden_act", "\"mish\"", "\"hidden_act\": 'mish' is not supported"},
        {"bert", "intermediate_size", NULL, "\"intermediate_size\""},
        {"bert", "architectures", "[\"BertModel\",\"BertForMaskedLM\"]", "names both BertModel and BertForMaskedLM"},
        {"bert", "architectures", "[\"BertForMultipleChoice\"]", "'BertForMultipleChoice' is not supported"},
        {"bert-answers", "num_labels", "3", "\"num_labels\" or \"id2label\": 3, where an answer has 2 ends"},
        {"bert-answers", "id2label", "{\"0\": \"a\"}", "\"num_labels\" or \"id2label\": 1, where an answer has 2 ends"},
        {"bert-classes", "num_labels", "3", "\"id2label\" names 5 classes, but \"num_labels\" is 3"},
        {"bert-classes", "id2label", NULL, "tensor 'classifier.weight' has shape [5, 32], expected [2, 32]"},
        {"roberta", "hidden_act", "\"relu\"", "the masked-LM head of a roberta has gelu"},
        {"roberta", "max_position_embeddings", "2", "2 positions, of which the first is number 2"},
        {"roberta", "pad_token_id", "70", "of which the first is number 71"},
        {"distilbert", "hidden_dim", NULL, "\"hidden_dim\""},
        {"bilstm", "bidirectional", "false", "\"bidirectional\": false is not supported"},
        {"bilstm", "bias", "false", "\"bias\": false is not supported"},
        {"bilstm", "proj_size", "8", "\"proj_size\": 8 is not supported"},
        {"bilstm", "num_attention_heads", "4", "\"num_attention_heads\": 4 is not supported"},
        {"bilstm", "dense_act", "\"mish\"", "\"dense_act\": 'mish' is not supported"},
        {"bilstm", "dense_act", NULL, "'dense.bias' is not zero: a bias there is not supported"},
        {"bilstm", "embedding_dim", NULL, "\"embedding_dim\""},
        {"bilstm", "embedding_dim", "25", "'embedding.weight' has shape [61, 24], expected [61, 25]"},
        {"bilstm", "input_size", "25", "\"input_size\""},
        {"bilstm", "hidden_size", "15", "'lstm.weight_ih_l0' has shape [64, 24], expected [60, 24]"},
        {"bilstm", "hidden_size", "1048576", "\"hidden_size\" is 1048576, expected at most 524288"},
        {"bilstm", "num_layers", "3", "'lstm.weight_ih_l2'"},
        {"bilstm", "num_layers", "1", "'lstm.bias_hh_l1' has no role"},
        {"bilstm", "architectures", "[\"BiLstmModel\"]", "'BiLstmModel' is not supported"},
    };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char folder[64];
        copy_folder(folder, cases[i].golden);
        set_config(folder, cases[i].key, cases[i].value);
        assert_refused(folder, cases[i].says);
        remove_folder(folder);
    }
}

/* Positions start after the padding token; the rows before are kept through a round trip. */
static void positions_of_roberta(void **state) {
    (void)state;
    struct model *m = model_of(ARCH "roberta-classes"); /* its padding is token 2 */
    assert_int_equal(m->config.position_offset, 3);
    assert_int_equal(m->config.context, 61);
    struct err e;
    cJSON *json = hf_config_write(&m->config, NULL, DT_F32, &e);
    uint64_t pad, positions;
    OK(json_get_u64(json, "pad_token_id", 0, 9, &pad, &e));
    OK(json_get_u64(json, "max_position_embeddings", 0, 99, &positions, &e));
    assert_true(pad == 2 && positions == 64);
    cJSON_Delete(json);
    model_free(m);
}

/* ---- valid configurations ---------------------------------------------------------------------------------------- */

static void classes_and_outputs_belong_together(void **state) {
    (void)state;
    struct err e;
    struct model *m = model_of(ARCH "bert-classes");
    struct model_config c = m->config;
    OK(model_config_check(&c, &e));
    c.classes = 0;
    assert_int_equal(model_config_check(&c, &e), ERR_DATA);
    c.classes = 5;
    c.output = OUTPUT_MASKED_LM;
    assert_int_equal(model_config_check(&c, &e), ERR_DATA);
    c.output = OUTPUT_SPAN;
    c.pooler = false;
    assert_int_equal(model_config_check(&c, &e), ERR_DATA);
    c.output = OUTPUT_TOKEN_CLASSES;
    OK(model_config_check(&c, &e));
    c.tied = true;
    assert_int_equal(model_config_check(&c, &e), ERR_DATA);
    model_free(m);
}

/* Generation and perplexity need the logits of the next token. */
static void other_logits_are_refused(void **state) {
    static const char *const says[][2] = {{ARCH "bert", "masked language model"},
                                          {ARCH "bert-classes", "logits are of 5 classes"},
                                          {ARCH "bert-tags", "logits are of 5 classes"},
                                          {ARCH "bert-answers", "where one begins and ends"},
                                          {ARCH "bert-encoder", "has no head"}};
    (void)state;
    struct model_sampling how = {.top_p = 1, .max_new = 3};
    for (size_t i = 0; i < COUNT_OF(says); i++) {
        struct err e;
        struct model_generator *g;
        struct model *m = model_of(says[i][0]);
        assert_int_equal(model_generator_new(&g, m, &how, NULL, NULL, NULL, &e), ERR_DATA);
        assert_non_null(strstr(e.msg, says[i][1]));
        model_free(m);
    }
    struct err e;
    struct model *m = model_of(ARCH "llama");
    OK(model_check_next_token(&m->config, &e));
    m->config.bidirectional = true;
    assert_int_equal(model_check_next_token(&m->config, &e), ERR_DATA);
    model_free(m);
}

/* ---- GGUF -------------------------------------------------------------------------------------------------------- */

static void open_golden_gguf(struct buf *gguf, const char *golden) {
    struct err e;
    struct buf b = stream_in(golden);
    OK(export_gguf(&b, gguf, &e));
    buf_release(&b);
}

/* Replaces a text in a GGUF by another of the same length, and checks the error. */
static void check_gguf(const struct buf *gguf, const char *from, const char *to, const char *says) {
    struct err e;
    struct foreign_model *f;
    struct buf b = {0};
    size_t n = strlen(from);
    add_bytes(&b, gguf->data, gguf->len);
    unsigned char *at = memmem(b.data, b.len, from, n);
    assert_non_null(at);
    memcpy(at, to, n);
    assert_int_equal(foreign_open_gguf(&f, b.data, b.len, NULL, &e), ERR_DATA);
    if (!strstr(e.msg, says)) fail_msg("'%s' does not say '%s'", e.msg, says);
    buf_release(&b);
}

static void what_a_gguf_may_say(void **state) {
    (void)state;
    struct buf encoder = {0}, roberta = {0};
    open_golden_gguf(&encoder, ARCH "bert-encoder");
    open_golden_gguf(&roberta, ARCH "roberta-encoder");
    check_gguf(&encoder, "bert.attention.causal", "bart.attention.causal", "'bert.attention.causal' is missing");
    check_gguf(&encoder, "token_types.weight", "token_tapes.weight", "tensor 'token_tapes.weight' has no role");
    check_gguf(&encoder, "layer_output_norm.bias", "layer_output_nurm.bias", "layer_output_norm.bias' is missing");
    check_gguf(&roberta, "position_embd.weight", "pasition_embd.weight", "'position_embd.weight' is missing");
    buf_release(&encoder);
    buf_release(&roberta);
}

/* GGUF lacks the unused rows before the first position; they are read back as zeros. */
static void a_gguf_has_no_rows_before_the_first_position(void **state) {
    (void)state;
    struct err e;
    struct foreign_model *f;
    struct tensor_desc d;
    const void *data;
    struct buf gguf = {0};
    struct model *m = model_of(ARCH "roberta-encoder");
    const struct model_param *table = model_param(m, ROLE_POSITION_EMBED, 0);
    open_golden_gguf(&gguf, ARCH "roberta-encoder");
    OK(foreign_open_gguf(&f, gguf.data, gguf.len, NULL, &e));
    assert_string_equal(f->config.arch, "roberta");
    OK(foreign_tensor(f, (struct model_slot){.role = ROLE_POSITION_EMBED}, &d, &data, &e));
    const float *rows = data;
    size_t missing = 2 * (size_t)m->config.hidden;
    for (size_t i = 0; i < missing; i++) assert_true(rows[i] == 0);
    assert_memory_equal(rows + missing, model_host_value(table) + missing, (table->n - missing) * sizeof *rows);
    foreign_close(f);
    model_free(m);
    buf_release(&gguf);
}

static void heads_that_gguf_cannot_hold(void **state) {
    static const char *const says[][2] = {{ARCH "bert", "a masked-LM head"},
                                          {ARCH "distilbert-classes", "a classifier with relu"},
                                          {ARCH "bert-untied", "a masked-LM head"}};
    (void)state;
    for (size_t i = 0; i < COUNT_OF(says); i++) {
        struct err e;
        struct buf gguf = {0}, b = stream_in(says[i][0]);
        assert_int_equal(export_gguf(&b, &gguf, &e), ERR_DATA);
        assert_non_null(strstr(e.msg, says[i][1]));
        buf_release(&gguf);
        buf_release(&b);
    }
}

/* ---- names of classes -------------------------------------------------------------------------------------------- */

/* The text of META's "labels", or "" if it has none. */
static void labels_in(const struct buf *stream, char out[128]) {
    struct err e;
    struct model *m;
    OK(load_model(stream, &m, &e));
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(m->meta, "labels");
    out[0] = 0;
    for (const cJSON *x = list ? list->child : NULL; x; x = x->next)
        snprintf(out + strlen(out), 128 - strlen(out), "%s;", x->valuestring);
    model_free(m);
}

static void names_of_classes_travel(void **state) {
    (void)state;
    struct err e;
    struct foreign_model *f;
    char folder[64], path[80], text[128];
    struct buf gguf = {0};
    copy_folder(folder, "roberta-classes");
    struct buf unnamed = stream_in(folder);
    labels_in(&unnamed, text);
    assert_string_equal(text, ""); /* LABEL_0 ... */
    set_config(folder, "id2label", "{\"0\":\"no\",\"1\":\"maybe\",\"2\":\"no\"}");
    struct buf named = stream_in(folder);
    labels_in(&named, text);
    assert_string_equal(text, "no;maybe;no;");
    int fd;
    snprintf(path, sizeof path, "%s/out", folder);
    struct stream_map *map = map_of(&named, &fd);
    OK(safetensors_export(map, path, 0, &e));
    stream_map_free(map);
    close(fd);
    struct buf again = stream_in(path);
    assert_same_bytes(&named, &again);
    OK(export_gguf(&named, &gguf, &e));
    OK(foreign_open_gguf(&f, gguf.data, gguf.len, NULL, &e));
    struct buf back = foreign_stream(f, 0);
    labels_in(&back, text);
    assert_string_equal(text, "no;maybe;no;");
    foreign_close(f);
    check_gguf(&gguf, "maybe", "may\377e", "name of class 1 is not text");
    set_config(folder, "id2label", "{\"0\":\"no\",\"1\":\"maybe\",\"3\":\"no\"}");
    assert_refused(folder, "\"id2label\" has no name of class 2");
    buf_release(&unnamed), buf_release(&named), buf_release(&again), buf_release(&back), buf_release(&gguf);
    remove_folder(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_with_and_without_their_base),
        cmocka_unit_test(norms_called_gamma_and_beta),
        cmocka_unit_test(heads_of_other_classes_are_left_out),
        cmocka_unit_test(a_bias_of_two_values_is_refused),
        cmocka_unit_test(a_model_type_alone_is_the_encoder),
        cmocka_unit_test(what_config_json_may_say),
        cmocka_unit_test(positions_of_roberta),
        cmocka_unit_test(classes_and_outputs_belong_together),
        cmocka_unit_test(other_logits_are_refused),
        cmocka_unit_test(what_a_gguf_may_say),
        cmocka_unit_test(a_gguf_has_no_rows_before_the_first_position),
        cmocka_unit_test(heads_that_gguf_cannot_hold),
        cmocka_unit_test(names_of_classes_travel),
    };
    return cmocka_run_group_tests_name("encoders in files", tests, NULL, NULL);
}
