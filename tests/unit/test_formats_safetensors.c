/* Tests of lib/formats: the safetensors reader and model folders. */
#include "tests/unit/formats_samples.h"

/* ---- one file ---- */

static struct buf file_with(const char *header, size_t n_data) {
    struct buf b = {0};
    add_string(&b, header);
    for (size_t i = 0; i < n_data; i++) add_bytes(&b, "", 1);
    return b;
}

/* The bytes are copied to an allocation of exactly n bytes, so that a sanitizer catches a read past the end. */
static int parse(const void *data, size_t n, size_t *n_tensors, struct err *e) {
    struct raw_table t = {0};
    struct arena a = {0};
    unsigned char *copy = malloc(n ? n : 1);
    assert_non_null(copy);
    memcpy(copy, data, n);
    int rc = safetensors_parse(&t, copy, n, &a, e);
    if (!rc) rc = raw_table_sort(&t, e);
    volatile unsigned char sum = 0;
    for (size_t i = 0; i < t.n && !rc; i++)
        for (uint64_t k = 0; k < t.items[i].n_bytes; k++) sum = (unsigned char)(sum + t.items[i].data[k]);
    *n_tensors = t.n;
    raw_table_release(&t);
    arena_release(&a);
    free(copy);
    return rc;
}

static void check_header(const char *header, size_t n_data, const char *says) {
    struct err e = {0};
    size_t n;
    struct buf b = file_with(header, n_data);
    int rc = parse(b.data, b.len, &n, &e);
    if (says) {
        assert_int_equal(rc, ERR_DATA);
        if (!strstr(e.msg, says)) fail_msg("%s\nsaid '%s', expected '%s'", header, e.msg, says);
    } else if (rc) {
        fail_msg("%s: %s", header, e.msg);
    }
    buf_release(&b);
}

#define F32_AT(name, shape, a, b)                                                                                      \
    "\"" name "\":{\"dtype\":\"F32\",\"shape\":" shape ",\"data_offsets\":[" #a "," #b "]}"

static void test_sound_files(void **state) {
    (void)state;
    check_header("{}", 0, NULL);
    check_header("{\"__metadata__\":{\"format\":\"pt\"}}   ", 0, NULL);
    check_header("{" F32_AT("a", "[2,3]", 0, 24) "," F32_AT("b", "[]", 24, 28) "}", 28, NULL);
    check_header("{" F32_AT("b", "[1]", 24, 28) "," F32_AT("a", "[2,3]", 0, 24) "}", 28, NULL); /* names in any order */
    check_header("{\"x\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[0,2]}}", 2, NULL);
}

/* Overlapping, gapped and repeated offsets; shapes that do not match the byte count; sizes beyond 2^32 and 2^64. */
static void test_lying_headers(void **state) {
    (void)state;
    static const struct {
        const char *header;
        size_t n_data;
        const char *says;
    } cases[] = {
        {"{" F32_AT("a", "[2]", 0, 8) "," F32_AT("b", "[2]", 4, 12) "}", 12, "a gap or an overlap"},
        {"{" F32_AT("a", "[2]", 0, 8) "," F32_AT("b", "[2]", 0, 8) "}", 8, "a gap or an overlap"},
        {"{" F32_AT("a", "[2]", 0, 8) "," F32_AT("b", "[2]", 12, 20) "}", 20, "a gap or an overlap"},
        {"{" F32_AT("a", "[2]", 4, 12) "}", 12, "a gap or an overlap"},
        {"{" F32_AT("a", "[2]", 0, 8) "}", 12, "the tensors end at byte 8 of 12"},
        {"{" F32_AT("a", "[2]", 0, 8) "}", 4, "ends at byte 8 of 4"},
        {"{" F32_AT("a", "[3]", 0, 8) "}", 8, "need 12 bytes"},
        {"{" F32_AT("a", "[2]", 8, 0) "}", 8, "need 8 bytes"},
        {"{" F32_AT("a", "[0]", 0, 0) "}", 0, "dimension 0 is zero"},
        {"{" F32_AT("a", "[4294967296,4294967296]", 0, 0) "}", 0, "overflow"},
        {"{" F32_AT("a", "[4611686018427387904]", 0, 0) "}", 0, "below 2^53"},
        {"{" F32_AT("a", "[4503599627370496,2048]", 0, 0) "}", 0, "overflow"},
        {"{" F32_AT("a", "[4294967296]", 0, 17179869184) "}", 0, "ends at byte 17179869184 of 0"},
        {"{" F32_AT("a", "[-1]", 0, 0) "}", 0, "not a whole number"},
        {"{" F32_AT("a", "[1.5]", 0, 6) "}", 6, "not a whole number"},
        {"{" F32_AT("a", "[1,1,1,1,1,1,1,1,1]", 0, 4) "}", 4, "more than 8 entries"},
        {"{" F32_AT("a", "4", 0, 4) "}", 4, "\"shape\" is not a list"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, "not two numbers"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4, "more than 2 entries"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "\"data_offsets\" is not a list"},
        {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype"},
        {"{\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, "tensor 'a': dtype 'F8_E4M3'"},
        {"{\"a\":7}", 0, "tensor 'a'"},
        {"{" F32_AT("a", "[1]", 0, 4) "," F32_AT("a", "[1]", 4, 8) "}", 8, "duplicate key"},
        {"{" F32_AT("", "[1]", 0, 4) "}", 4, "a tensor name is not"},
        {"{\"__metadata__\":{\"format\":1}}", 0, "is not a string"},
        {"{\"__metadata__\":[]}", 0, "is not an object"},
        {"[]", 0, "not a JSON object"},
        {"{} {}", 0, "bytes after the value"},
        {"", 0, "header"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) check_header(cases[i].header, cases[i].n_data, cases[i].says);
}

static void test_header_sizes(void **state) {
    (void)state;
    const uint64_t sizes[] = {3, 100000001, UINT64_C(1) << 32, INT64_MAX, UINT64_MAX - 7, UINT64_MAX};
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        struct err e = {0};
        size_t n;
        struct buf b = file_with("{}", 0);
        memcpy(b.data, &sizes[i], 8);
        assert_int_equal(parse(b.data, b.len, &n, &e), ERR_DATA);
        assert_non_null(strstr(e.msg, "the header has"));
        buf_release(&b);
    }
}

static void test_deep_json(void **state) {
    (void)state;
    char deep[201] = {0};
    memset(deep, '[', 200);
    check_header(deep, 0, "deep");
}

static void test_every_cut(void **state) {
    (void)state;
    struct err e;
    size_t n;
    struct buf b = file_with("{" F32_AT("a", "[2,3]", 0, 24) "," F32_AT("b", "[1]", 24, 28) "}", 28);
    for (size_t cut = 0; cut < b.len; cut++) assert_int_equal(parse(b.data, cut, &n, &e), ERR_DATA);
    OK(parse(b.data, b.len, &n, &e));
    assert_int_equal(n, 2);
    buf_release(&b);
}

/* ---- shards ---- */

static void check_index(const char *index, const char *says) {
    struct err e = {0};
    struct foreign_model *f = NULL;
    char folder[64], command[512];
    temp_folder(folder);
    snprintf(command, sizeof command, "cp " GOLDEN "tiny-llama/sharded/* '%s'", folder);
    assert_int_equal(system(command), 0);
    if (index) write_text(folder, "model.safetensors.index.json", index, strlen(index));
    int rc = foreign_open(&f, folder, NULL, &e);
    if (says) {
        assert_int_equal(rc, ERR_DATA);
        if (!strstr(e.msg, says)) fail_msg("%s: said '%s'", index, e.msg);
    } else {
        OK(rc);
        foreign_close(f);
    }
    remove_folder(folder);
}

static void test_index(void **state) {
    (void)state;
    check_index(NULL, NULL);
    check_index("{}", "\"weight_map\" is not an object");
    check_index("{\"weight_map\":{\"a\":\"../x\"}}", "in no file of this folder");
    check_index("{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "in no file of this folder");
    check_index("{\"weight_map\":{\"a\":7}}", "in no file of this folder");
    check_index("{\"weight_map\":{\"a\":\"model-00001-of-00002.safetensors\"}}", "does not say");
    check_index("{\"weight_map\":{}}", "tensor 'model.embed_tokens.weight' is missing");
}

static void test_missing_files(void **state) {
    (void)state;
    struct err e = {0};
    struct foreign_model *f;
    char folder[64];
    temp_folder(folder);
    assert_int_equal(foreign_open(&f, folder, NULL, &e), ERR_IO);
    assert_non_null(strstr(e.msg, "config.json: No such file"));
    write_text(folder, "config.json", "{" LLAMA "}", strlen("{" LLAMA "}"));
    assert_int_equal(foreign_open(&f, folder, NULL, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "no model.safetensors and no model.safetensors.index.json"));
    write_text(folder, "model.safetensors", "", 0);
    assert_int_equal(foreign_open(&f, folder, NULL, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "a safetensors file of 0 bytes"));
    assert_int_equal(foreign_open(&f, "/nonexistent", NULL, &e), ERR_IO);
    assert_int_equal(foreign_open(&f, "/dev/null", NULL, &e), ERR_IO);
    assert_non_null(strstr(e.msg, "/dev/null: not a regular file"));
    remove_folder(folder);
}

/* ---- whatever training has made is kept or refused, never dropped ---- */

/* Copies tests/golden/tiny-llama, whose head differs from its embedding, replacing a text of config.json. */
static void copy_model(char folder[64], const char *from, const char *to) {
    struct err e;
    char command[512];
    struct buf out = {0};
    temp_folder(folder);
    snprintf(command, sizeof command, "cp " GOLDEN "tiny-llama/[cmt]*.[js]* '%s'", folder);
    assert_int_equal(system(command), 0);
    struct buf json = file_of_folder(folder, "config.json");
    OK(buf_append(&json, "", 1, &e));
    const char *text = (const char *)json.data, *at = strstr(text, from);
    assert_non_null(at);
    add_bytes(&out, text, (size_t)(at - text));
    add_bytes(&out, to, strlen(to));
    add_bytes(&out, at + strlen(from), strlen(at + strlen(from)));
    write_text(folder, "config.json", (const char *)out.data, out.len);
    buf_release(&json);
    buf_release(&out);
}

/* Copies the data of one tensor of the folder over that of another. */
static void copy_tensor(const char *folder, const char *from, const char *to) {
    struct err e;
    struct raw_table t = {0};
    struct arena a = {0};
    struct buf b = file_of_folder(folder, "model.safetensors");
    OK(safetensors_parse(&t, b.data, b.len, &a, &e));
    OK(raw_table_sort(&t, &e));
    const struct raw_tensor *x = raw_table_find(&t, from), *y = raw_table_find(&t, to);
    assert_true(x && y && x->n_bytes == y->n_bytes);
    memcpy(b.data + (y->data - b.data), x->data, x->n_bytes);
    write_text(folder, "model.safetensors", (const char *)b.data, b.len);
    raw_table_release(&t);
    arena_release(&a);
    buf_release(&b);
}

/* Adds a vector of n bf16 numbers, each `bits`. */
static void add_vector(const char *folder, const char *name, unsigned n, uint16_t bits) {
    struct err e;
    struct buf b = file_of_folder(folder, "model.safetensors"), out = {0};
    uint64_t size;
    memcpy(&size, b.data, 8);
    uint64_t at = b.len - 8 - size;
    cJSON *header = json_parse((const char *)b.data + 8, size, &e);
    assert_non_null(header);
    char entry[128];
    snprintf(entry, sizeof entry, "{\"dtype\":\"BF16\",\"shape\":[%u],\"data_offsets\":[%llu,%llu]}", n,
             (unsigned long long)at, (unsigned long long)at + 2 * n);
    cJSON_AddItemToObject(header, name, json_of(entry));
    char *text = json_text(header, &e);
    add_string(&out, text);
    add_bytes(&out, b.data + 8 + size, at);
    for (unsigned i = 0; i < n; i++) add_bytes(&out, &bits, 2);
    write_text(folder, "model.safetensors", (const char *)out.data, out.len);
    mem_free(text);
    cJSON_Delete(header);
    buf_release(&b);
    buf_release(&out);
}

#define UNTIED "\"tie_word_embeddings\": false"
#define TIED   "\"tie_word_embeddings\": true"

/* transformers does not tie two weights that differ, whatever config.json says. */
static void test_tied_head_that_differs(void **state) {
    (void)state;
    char tied[64];
    copy_model(tied, UNTIED, TIED);
    struct buf a = imported(tied, 0), b = imported(GOLDEN "tiny-llama", 0);
    assert_same_bytes(&a, &b);
    buf_release(&a);
    buf_release(&b);
    remove_folder(tied);
}

static void test_tied_head_that_is_the_same(void **state) {
    (void)state;
    struct err e;
    for (int said = 0; said < 2; said++) { /* the same values are tied only if config.json says so */
        struct foreign_model *f;
        char folder[64];
        copy_model(folder, UNTIED, said ? TIED : UNTIED);
        copy_tensor(folder, "model.embed_tokens.weight", "lm_head.weight");
        OK(foreign_open(&f, folder, NULL, &e));
        assert_int_equal(f->config.tied, said);
        foreign_close(f);
        remove_folder(folder);
    }
}

static void check_vector(const char *name, unsigned n, uint16_t bits, const char *says) {
    struct err e = {0};
    struct foreign_model *f;
    char folder[64];
    copy_model(folder, UNTIED, UNTIED);
    add_vector(folder, name, n, bits);
    int rc = foreign_open(&f, folder, NULL, &e);
    if (!says) {
        OK(rc);
        foreign_close(f);
    } else if (rc != ERR_DATA || !strstr(e.msg, says)) {
        fail_msg("%s: said '%s', expected '%s'", name, rc ? e.msg : "nothing", says);
    }
    remove_folder(folder);
}

static void test_tensors_without_a_role(void **state) {
    (void)state;
    check_vector("model.layers.0.self_attn.rotary_emb.inv_freq", 8, 0x3f80, NULL);
    check_vector("lm_head.bias", 352, 0, NULL);
    check_vector("lm_head.bias", 352, 0x3f80, "tensor 'lm_head.bias' is not zero: a bias there is not supported");
    check_vector("model.layers.1.self_attn.o_proj.bias", 64, 0x3f80, "o_proj.bias' is not zero");
    check_vector("model.layers.1.mlp.down_proj.bias", 64, 0x3f80, "down_proj.bias' is not zero");
    check_vector("model.layers.0.self_attn.q_proj.bias", 64, 0, NULL);
    check_vector("model.layers.0.self_attn.q_proj.bias", 64, 0x3f80,
                 "q_proj.bias' is not zero, but config.json says no biases (\"attention_bias\")");
    check_vector("model.layers.0.self_attn.q_norm.weight", 16, 0x3f80, "q_norm.weight' has no role");
    check_vector("model.layers.2.input_layernorm.weight", 64, 0x3f80, "has no role"); /* one layer too many */
    check_vector("score.weight", 64, 0, "'score.weight' has no role");
}

static void test_folder_that_does_not_say_all(void **state) {
    (void)state;
    struct err e = {0};
    struct foreign_model *f;
    char folder[64];
    temp_folder(folder);
    char command[512];
    snprintf(command, sizeof command,
             "cp " GOLDEN "tiny-smollm/[cmt]*.[js]* '%s' && sed -i 's/" TIED "/" UNTIED "/' '%s/config.json'", folder,
             folder);
    assert_int_equal(system(command), 0);
    assert_int_equal(foreign_open(&f, folder, NULL, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "'lm_head.weight' is missing, and config.json does not tie it"));
    write_text(folder, "adapter_config.json", "{}", 2);
    assert_int_equal(foreign_open(&f, folder, NULL, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "adapter_config.json: an adapter beside the weights is not supported"));
    remove_folder(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sound_files),
        cmocka_unit_test(test_lying_headers),
        cmocka_unit_test(test_header_sizes),
        cmocka_unit_test(test_deep_json),
        cmocka_unit_test(test_every_cut),
        cmocka_unit_test(test_index),
        cmocka_unit_test(test_missing_files),
        cmocka_unit_test(test_tied_head_that_differs),
        cmocka_unit_test(test_tied_head_that_is_the_same),
        cmocka_unit_test(test_tensors_without_a_role),
        cmocka_unit_test(test_folder_that_does_not_say_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
