/* Tests of lib/formats: what the GGUF reader accepts, and above all what it refuses. */
#include "tests/unit/formats_samples.h"

static void assert_refused(const struct buf *b, const char *says) {
    struct err e = {0};
    assert_int_equal(open_gguf_bytes(b->data, b->len, &e), ERR_DATA);
    if (!strstr(e.msg, says)) fail_msg("said '%s', expected '%s'", e.msg, says);
}

/* The tiny model with one more key must be refused with a message containing `says` (NULL: must be accepted). */
static void check_with_key(void (*add)(struct gguf_sample *g), const char *says) {
    struct err e = {0};
    struct gguf_sample g = gguf_sample();
    tiny_keys(&g);
    add(&g);
    tiny_tensors(&g);
    struct buf b = gguf_bytes(&g);
    if (says)
        assert_refused(&b, says);
    else
        OK(open_gguf_bytes(b.data, b.len, &e));
    buf_release(&b);
    gguf_sample_release(&g);
}

/* ---- valid files ---- */

static void test_tiny_model(void **state) {
    (void)state;
    struct err e;
    struct buf b = tiny_gguf();
    struct foreign_model *f;
    OK(foreign_open_gguf(&f, b.data, b.len, NULL, &e));
    assert_string_equal(f->config.arch, "llama");
    assert_int_equal(f->config.n_layers, 1);
    assert_int_equal(f->config.head_dim, 4);
    assert_int_equal(f->config.vocab_size, 6);
    assert_true(f->config.tied);
    assert_false(f->config.qkv_bias);
    assert_int_equal(f->vocab->n_tokens, 6);
    assert_int_equal(f->vocab->n_merges, 1);
    assert_int_equal(f->vocab->merges[0].result, 2);
    assert_int_equal(f->vocab->tokens[3].n_bytes, 1);
    assert_int_equal(f->vocab->tokens[3].bytes[0], ' ');
    assert_int_equal(f->vocab->tokens[4].flags, TOKEN_SPECIAL | TOKEN_ADDED);
    assert_int_equal(f->vocab->tokens[5].flags, TOKEN_UNUSED);
    assert_int_equal(f->vocab->bos, 4);
    assert_int_equal(f->vocab->eos, TOKEN_NONE);
    assert_false(f->vocab->add_bos);
    foreign_close(f);
    buf_release(&b);
}

/* Version 2 differs from 3 only in its number; version 1 had 32-bit lengths. */
static void test_versions(void **state) {
    (void)state;
    struct err e = {0};
    struct buf b = tiny_gguf();
    b.data[4] = 2;
    OK(open_gguf_bytes(b.data, b.len, &e));
    b.data[4] = 1;
    assert_refused(&b, "GGUF version 1, expected 2 or 3");
    b.data[4] = 4;
    assert_refused(&b, "GGUF version 4");
    memcpy(b.data + 4, "\0\0\0\3", 4);
    assert_refused(&b, "big-endian");
    memcpy(b.data, "GGML", 4);
    assert_refused(&b, "not a GGUF file");
    buf_release(&b);
}

/* Every value type, under keys that are not read. */
static void add_all_types(struct gguf_sample *g) {
    static const size_t bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    for (unsigned t = 0; t < GGUF_TYPE_COUNT; t++) {
        char key[32];
        if (t == GGUF_STRING || t == GGUF_ARRAY) continue;
        snprintf(key, sizeof key, "other.value.%u", t);
        key_number(g, key, (enum gguf_type)t, 1, bytes[t]);
        snprintf(key, sizeof key, "other.array.%u", t);
        key_array(g, key, (enum gguf_type)t, 3);
        for (int i = 0; i < 3; i++) add_bytes(&g->keys, "\1\0\0\0\0\0\0\0", bytes[t]);
    }
    static const char *const strings[] = {"", "x", "yy"};
    key_strings(g, "other.strings", strings, 3);
    key_strings(g, "other.none", NULL, 0);
}

static void test_all_value_types(void **state) {
    (void)state;
    check_with_key(add_all_types, NULL);
}

/* Numbers may have any type that holds the value. */
static void test_numbers_of_other_types(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct gguf_sample s = gguf_sample();
    struct gguf_file g = {0};
    uint64_t u = 0;
    double d = 0;
    bool flag = false;
    key_number(&s, "u8", GGUF_U8, 200, 1);
    key_number(&s, "i16", GGUF_I16, 300, 2);
    key_number(&s, "i64", GGUF_I64, UINT64_C(1) << 40, 8);
    key_number(&s, "minus", GGUF_I32, (uint32_t)-1, 4);
    key_number(&s, "yes", GGUF_BOOL, 1, 1);
    double pi = 3.25;
    uint64_t bits;
    memcpy(&bits, &pi, 8);
    key_number(&s, "f64", GGUF_F64, bits, 8);
    key_f32(&s, "nan", NAN);
    struct buf b = gguf_bytes(&s);
    OK(gguf_parse(&g, b.data, b.len, &a, &e));
    OK(gguf_get_u64(&g, "u8", 0, 255, &u, &e));
    assert_int_equal(u, 200);
    OK(gguf_get_u64(&g, "i16", 0, 1000, &u, &e));
    assert_int_equal(u, 300);
    OK(gguf_get_u64(&g, "i64", 0, UINT64_MAX, &u, &e));
    assert_int_equal(u, UINT64_C(1) << 40);
    OK(gguf_opt_f64(&g, "f64", 0, 10, &d, &e));
    assert_true(d == 3.25);
    OK(gguf_opt_bool(&g, "yes", &flag, &e));
    assert_true(flag);
    assert_int_equal(gguf_get_u64(&g, "minus", 0, UINT64_MAX, &u, &e), ERR_DATA);
    assert_int_equal(gguf_get_u64(&g, "f64", 0, UINT64_MAX, &u, &e), ERR_DATA);
    assert_int_equal(gguf_get_u64(&g, "u8", 0, 100, &u, &e), ERR_DATA);
    assert_int_equal(gguf_get_u64(&g, "missing", 0, 100, &u, &e), ERR_DATA);
    assert_string_equal(e.msg, "key 'missing' is missing");
    assert_int_equal(gguf_opt_f64(&g, "nan", -1e9, 1e9, &d, &e), ERR_DATA);
    gguf_release(&g);
    arena_release(&a);
    buf_release(&b);
    gguf_sample_release(&s);
}

/* An alignment of 1 puts floats at odd addresses; they must still be read (UBSan checks). */
static void test_unaligned_tensors(void **state) {
    (void)state;
    struct err e;
    struct gguf_sample g = gguf_sample();
    g.alignment = 1;
    tiny_keys(&g);
    key_u32(&g, "general.alignment", 1);
    tiny_tensors(&g);
    for (int i = 0; i < 2; i++) {
        struct foreign_model *f;
        struct tensor_desc d;
        const void *p;
        struct buf b = gguf_bytes(&g);
        OK(foreign_open_gguf(&f, b.data, b.len, NULL, &e));
        OK(foreign_tensor(f, (struct model_slot){ROLE_NORM, 0}, &d, &p, &e));
        assert_int_equal((uintptr_t)p % sizeof(float), 0);
        assert_true(*(const float *)p == 11000.0f / 1024);
        foreign_close(f);
        buf_release(&b);
        key_number(&g, "yy", GGUF_U8, 1, 1); /* moves the data by 15 bytes */
    }
    gguf_sample_release(&g);
}

/* ---- false counts and sizes: CVE-2024-23605, -21802, 2025-53630, 2026-27940, -33298, -53923, -7482 ---- */

static const uint64_t liars[] = {7,
                                 1u << 16,
                                 1u << 31,
                                 UINT64_C(1) << 32,
                                 UINT64_C(1) << 61,
                                 INT64_MAX,
                                 (uint64_t)INT64_MAX + 1,
                                 UINT64_MAX - 7,
                                 UINT64_MAX};

static void test_header_counts(void **state) {
    (void)state;
    struct buf b = tiny_gguf();
    for (size_t at = 8; at <= 16; at += 8)
        for (size_t i = 0; i < COUNT_OF(liars); i++) {
            uint64_t honest, lie = liars[i];
            memcpy(&honest, b.data + at, 8);
            memcpy(b.data + at, &lie, 8);
            assert_refused(&b, "");
            memcpy(b.data + at, &honest, 8);
        }
    buf_release(&b);
}

static uint64_t lie_to_tell;

static void add_long_key(struct gguf_sample *g) {
    add_u64(&g->keys, lie_to_tell);
    add_bytes(&g->keys, "k", 1);
    g->n_keys++;
}

static void add_long_string(struct gguf_sample *g) {
    add_string(&g->keys, "k");
    add_u32(&g->keys, GGUF_STRING);
    add_u64(&g->keys, lie_to_tell);
    g->n_keys++;
}

static void add_long_array(struct gguf_sample *g) {
    key_array(g, "k", GGUF_F64, lie_to_tell);
}

static void add_long_string_array(struct gguf_sample *g) {
    key_array(g, "k", GGUF_STRING, lie_to_tell);
}

static void test_lengths_of_values(void **state) {
    (void)state;
    for (size_t i = 2; i < COUNT_OF(liars); i++) { /* the small values may be true */
        lie_to_tell = liars[i];
        check_with_key(add_long_key, "a key has");
        check_with_key(add_long_string, "a string has");
        check_with_key(add_long_array, "do not fit");
        check_with_key(add_long_string_array, "do not fit");
    }
}

/* Adds one tensor with a false description to those of the model. */
static void check_info(unsigned rank, const uint64_t *ne, uint32_t type, uint64_t offset_by, const char *says) {
    struct gguf_sample g = gguf_sample();
    tiny_keys(&g);
    tiny_tensors(&g);
    add_info(&g, "extra", rank, ne, type, g.data.len + offset_by);
    struct buf b = gguf_bytes(&g);
    assert_refused(&b, says);
    buf_release(&b);
    gguf_sample_release(&g);
}

static void test_tensor_sizes(void **state) {
    (void)state;
    const uint64_t big[][4] = {{UINT64_C(1) << 32, UINT64_C(1) << 32}, /* the product is 2^64: zero */
                               {UINT64_C(1) << 62, 1},                 /* the byte size overflows */
                               {UINT64_MAX, UINT64_MAX},
                               {UINT64_C(1) << 33, 1}, /* more than 32 bits, no overflow: too large for the file */
                               {32, UINT64_C(1) << 59}};
    for (size_t i = 0; i < 3; i++) check_info(2, big[i], 0, 0, "overflow");
    check_info(2, big[3], 0, 0, "needs");
    check_info(2, big[4], 8, 0, "overflow"); /* 34 bytes a block */
    const uint64_t zero[] = {4, 0}, five[] = {2, 2, 2, 2, 2}, odd[] = {33, 1}, one[] = {1};
    check_info(2, zero, 0, 0, "dimension 0 is zero");
    check_info(5, five, 0, 0, "5 dimensions");
    check_info(2, odd, 8, 0, "not a whole number of blocks of 32");
    check_info(1, one, 15, 0, "type 15");
    check_info(1, one, 999, 0, "type 999");
    check_info(1, one, (uint32_t)-1, 0, "type -1");
    check_info(1, one, 0, 0, "needs 4 bytes"); /* a tensor past the end of its file */
}

static void test_rank_of_nothing(void **state) {
    (void)state;
    struct gguf_sample g = gguf_sample();
    tiny_keys(&g);
    add_string(&g.infos, "extra");
    add_u32(&g.infos, UINT32_MAX);
    g.n_tensors = 1;
    struct buf b = gguf_bytes(&g);
    assert_refused(&b, "4294967295 dimensions");
    buf_release(&b);
    gguf_sample_release(&g);
}

static void test_offsets(void **state) {
    (void)state;
    const uint64_t ne[] = {8};
    check_info(1, ne, 0, 32, "expected");            /* a gap */
    check_info(1, ne, 0, (uint64_t)-32, "expected"); /* an overlap */
    check_info(1, ne, 0, (uint64_t)-1, "expected");  /* not aligned */
    check_info(1, ne, 0, UINT64_C(1) << 63, "expected");
}

/* ---- names and keys ---- */

static void add_duplicate(struct gguf_sample *g) {
    key_u32(g, "llama.block_count", 1);
}
static void add_array_of_arrays(struct gguf_sample *g) {
    key_array(g, "k", GGUF_ARRAY, 0);
}
static void add_unknown_type(struct gguf_sample *g) {
    key_number(g, "k", (enum gguf_type)13, 0, 8);
}
static void add_unknown_element(struct gguf_sample *g) {
    key_array(g, "k", (enum gguf_type)77, 0);
}
static void add_bad_bool(struct gguf_sample *g) {
    key_number(g, "k", GGUF_BOOL, 2, 1);
}
static void add_empty_key(struct gguf_sample *g) {
    key_number(g, "", GGUF_U8, 2, 1);
}
static void add_binary_key(struct gguf_sample *g) {
    key_number(g, "\xff\xfe", GGUF_U8, 2, 1);
}
static void add_alignment_0(struct gguf_sample *g) {
    key_u32(g, "general.alignment", 0);
}
static void add_alignment_48(struct gguf_sample *g) {
    key_u32(g, "general.alignment", 48);
}
static void add_alignment_text(struct gguf_sample *g) {
    key_string(g, "general.alignment", "32");
}
static void add_huge_alignment(struct gguf_sample *g) {
    key_u32(g, "general.alignment", 1u << 31);
}

static void test_keys(void **state) {
    (void)state;
    check_with_key(add_duplicate, "key 'llama.block_count' occurs twice");
    check_with_key(add_array_of_arrays, "arrays of arrays");
    check_with_key(add_unknown_type, "unknown value type 13");
    check_with_key(add_unknown_element, "unknown value type 77");
    check_with_key(add_bad_bool, "neither 0 nor 1");
    check_with_key(add_empty_key, "a key is not");
    check_with_key(add_binary_key, "a key is not");
    check_with_key(add_alignment_0, "general.alignment");
    check_with_key(add_alignment_48, "power of two");
    check_with_key(add_alignment_text, "not one whole number");
    check_with_key(add_huge_alignment, "tensor");
}

static void test_tensor_names(void **state) {
    (void)state;
    const uint64_t ne[] = {8};
    const char *const names[] = {"output_norm.weight", "", "\xff", "a\nb",
                                 "a name that is by some bytes longer than sixty-four, GGUF's limit"};
    const char *const says[] = {"occurs twice", "tensor name is not", "tensor name is not", "tensor name is not",
                                "tensor name is not"};
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        struct gguf_sample g = gguf_sample();
        tiny_keys(&g);
        tiny_tensors(&g);
        add_info(&g, names[i], 1, ne, 0, g.data.len);
        for (int k = 0; k < 32; k++) add_bytes(&g.data, "", 1);
        struct buf b = gguf_bytes(&g);
        assert_refused(&b, says[i]);
        buf_release(&b);
        gguf_sample_release(&g);
    }
}

static void test_bytes_behind_the_end(void **state) {
    (void)state;
    struct buf b = tiny_gguf();
    add_bytes(&b, "x", 1);
    assert_refused(&b, "1 bytes after the last tensor");
    buf_release(&b);
}

static void test_every_cut(void **state) {
    (void)state;
    struct err e;
    struct buf b = tiny_gguf();
    for (size_t n = 0; n < b.len; n++) assert_int_equal(open_gguf_bytes(b.data, n, &e), ERR_DATA);
    OK(open_gguf_bytes(b.data, b.len, &e));
    buf_release(&b);
}

/* ---- what the keys mean ---- */

static void add_experts(struct gguf_sample *g) {
    key_u32(g, "llama.expert_count", 8);
}
static void add_no_experts(struct gguf_sample *g) {
    key_u32(g, "llama.expert_count", 0);
}
static void add_split(struct gguf_sample *g) {
    key_number(g, "split.count", GGUF_U16, 3, 2);
}
static void add_window(struct gguf_sample *g) {
    key_u32(g, "llama.attention.sliding_window", 16);
}
static void add_yarn(struct gguf_sample *g) {
    key_string(g, "llama.rope.scaling.type", "yarn");
    key_f32(g, "llama.rope.scaling.factor", 4);
    key_u32(g, "llama.rope.scaling.original_context_length", 8);
    key_f32(g, "llama.rope.scaling.attn_factor", 0.5f);
    key_f32(g, "llama.rope.scaling.yarn_beta_fast", 32);
}
static void add_beta(struct gguf_sample *g) {
    add_yarn(g);
    key_f32(g, "llama.rope.scaling.yarn_beta_slow", 2);
}
static void add_other_attention(struct gguf_sample *g) {
    add_yarn(g);
    key_number(g, "rill.rope.attention_factor", GGUF_F64, 0x3ff0000000000000, 8); /* 1.0 */
}
static void add_attention_alone(struct gguf_sample *g) {
    key_f32(g, "llama.rope.scaling.attn_factor", 0.5f);
}
static void add_longrope(struct gguf_sample *g) {
    key_string(g, "llama.rope.scaling.type", "longrope");
}
static void add_dynamic(struct gguf_sample *g) {
    key_string(g, "llama.rope.scaling.type", "dynamic");
}
static void add_half_rotation(struct gguf_sample *g) {
    key_u32(g, "llama.rope.dimension_count", 2);
}
static void add_other_values(struct gguf_sample *g) {
    key_u32(g, "llama.attention.value_length", 8);
}
static void add_other_vocab_size(struct gguf_sample *g) {
    key_u32(g, "llama.vocab_size", 7);
}
static void add_heads_of_two_layers(struct gguf_sample *g) {
    key_array(g, "llama.attention.key_length", GGUF_U32, 0);
}
static void add_eos_outside(struct gguf_sample *g) {
    key_u32(g, "tokenizer.ggml.eos_token_id", 6);
}
static void add_eot_outside(struct gguf_sample *g) {
    key_u32(g, "tokenizer.ggml.eot_token_id", 6);
}
static void add_ends_outside(struct gguf_sample *g) {
    key_array(g, "tokenizer.ggml.eos_token_ids", GGUF_I32, 1);
    add_u32(&g->keys, 6);
}
static void add_end_alone(struct gguf_sample *g) {
    key_u32(g, "tokenizer.ggml.eos_token_ids", 5);
}
static void add_template(struct gguf_sample *g) {
    key_string(g, "tokenizer.chat_template", "\xff");
}
static void add_unknown(struct gguf_sample *g) {
    key_u32(g, "llama.something.new", 1);
}

static void test_model_keys(void **state) {
    (void)state;
    check_with_key(add_experts, "llama.expert_used_count"); /* a Mixtral, which needs more keys */
    check_with_key(add_no_experts, NULL);
    check_with_key(add_split, "one of 3 parts of a split GGUF");
    check_with_key(add_window, "llama.attention.sliding_window");
    check_with_key(add_yarn, NULL);
    check_with_key(add_beta, "key 'llama.rope.scaling.yarn_beta_slow' is 2, and llama.cpp takes 1 for a llama");
    check_with_key(add_other_attention,
                   "key 'rill.rope.attention_factor' is 1, but 'llama.rope.scaling.attn_factor' is 0.5, of");
    check_with_key(add_attention_alone, "is not supported without yarn or longrope");
    check_with_key(add_longrope, "tensor 'rope_factors_long.weight' is missing, and longrope needs it");
    check_with_key(add_dynamic, "'dynamic' is not supported");
    check_with_key(add_half_rotation, "llama.rope.dimension_count");
    check_with_key(add_other_values, "llama.attention.value_length");
    check_with_key(add_other_vocab_size, "but the embedding has 6 rows");
    check_with_key(add_heads_of_two_layers, "not one whole number");
    check_with_key(add_eos_outside, "expected 0 to 5");
    check_with_key(add_eot_outside, "expected 0 to 5");
    check_with_key(add_ends_outside, "'tokenizer.ggml.eos_token_ids' has an id that is not a token");
    check_with_key(add_end_alone, "'tokenizer.ggml.eos_token_ids' is not an array");
    check_with_key(add_template, "not UTF-8");
    check_with_key(add_unknown, "key 'llama.something.new' is not known, and may change what the model computes");
}

/* ---- keys in two places, and keys that change what is computed ---- */

static void add_unknown_zero(struct gguf_sample *g) {
    key_u32(g, "llama.something.new", 0);
    key_number(g, "llama.something.old", GGUF_BOOL, 0, 1);
    key_string(g, "llama.something.empty", "");
}
static void add_unknown_text(struct gguf_sample *g) {
    key_string(g, "llama.something.new", "on");
}
static void add_wide_window(struct gguf_sample *g) {
    key_u32(g, "llama.attention.sliding_window", 32);
}
static void add_scale_1(struct gguf_sample *g) {
    key_f32(g, "llama.logit_scale", 1);
    key_f32(g, "llama.residual_scale", 0);
}
static void add_scale_2(struct gguf_sample *g) {
    key_f32(g, "llama.logit_scale", 2);
}
static void add_not_causal(struct gguf_sample *g) {
    key_number(g, "llama.attention.causal", GGUF_BOOL, 0, 1);
}
static void add_causal(struct gguf_sample *g) {
    key_number(g, "llama.attention.causal", GGUF_BOOL, 1, 1);
}
static void add_gelu(struct gguf_sample *g) {
    key_string(g, "llama.hidden_activation", "gelu");
}
static void add_layout(struct gguf_sample *g) {
    key_string(g, "llama.tensor_data_layout", "Meta AI original pth");
}
static void add_adapter(struct gguf_sample *g) {
    key_string(g, "general.type", "adapter");
}
static void add_two_factors(struct gguf_sample *g) {
    key_f32(g, "llama.rope.scale_linear", 2);
    key_f32(g, "llama.rope.scaling.factor", 4);
}
static void add_same_factors(struct gguf_sample *g) {
    key_f32(g, "llama.rope.scale_linear", 2);
    key_f32(g, "llama.rope.scaling.factor", 2);
}
static void add_factor_of_none(struct gguf_sample *g) {
    key_string(g, "llama.rope.scaling.type", "none");
    key_f32(g, "llama.rope.scaling.factor", 4);
}
static void add_two_eps(struct gguf_sample *g) {
    key_f32(g, "llama.attention.layer_norm_epsilon", 1e-6f);
}
static void add_same_eps(struct gguf_sample *g) {
    key_f32(g, "llama.attention.layer_norm_epsilon", 1e-5f);
}
static void key_f64(struct gguf_sample *g, const char *key, double v) {
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    key_number(g, key, GGUF_F64, bits, 8);
}
static void add_exact_theta(struct gguf_sample *g) {
    key_f32(g, "llama.rope.freq_base", 0.1f + 500);
    key_f64(g, "rill.rope.theta", 500.1);
}
static void add_other_theta(struct gguf_sample *g) {
    key_f32(g, "llama.rope.freq_base", 10000);
    key_f64(g, "rill.rope.theta", 500.1);
}
static void add_theta_alone(struct gguf_sample *g) {
    key_f64(g, "rill.rope.theta", 500.1);
}
static void add_other_exact_factor(struct gguf_sample *g) {
    key_f32(g, "llama.rope.scaling.factor", 4);
    key_f64(g, "rill.rope.factor", 2.1);
}
static void add_factor_of_nothing(struct gguf_sample *g) {
    key_f64(g, "rill.rope.factor", 8);
}
static void add_other_arch(struct gguf_sample *g) {
    key_string(g, "rill.architecture", "qwen2");
}

static void test_contradictions(void **state) {
    (void)state;
    check_with_key(add_unknown_zero, NULL);
    check_with_key(add_unknown_text, "'llama.something.new' is not known");
    check_with_key(add_wide_window, NULL);
    check_with_key(add_scale_1, NULL);
    check_with_key(add_scale_2, "key 'llama.logit_scale' asks for something that is not supported (only 1 is)");
    check_with_key(add_not_causal, "llama.attention.causal");
    check_with_key(add_causal, NULL);
    check_with_key(add_gelu, "(only 'silu' is)");
    check_with_key(add_layout, NULL);
    check_with_key(add_adapter, "key 'general.type': 'adapter' is not supported");
    check_with_key(add_two_factors, "key 'llama.rope.scaling.factor' is 4, but 'llama.rope.scale_linear' is 2");
    check_with_key(add_same_factors, NULL);
    check_with_key(add_factor_of_none, "key 'llama.rope.scaling.type' is 'none', but there is a factor of 4");
    check_with_key(add_two_eps, "differs from 'llama.attention.layer_norm_rms_epsilon'");
    check_with_key(add_same_eps, NULL);
    check_with_key(add_exact_theta, NULL);
    check_with_key(add_other_theta, "key 'rill.rope.theta' is 500.1, but 'llama.rope.freq_base' is 10000");
    check_with_key(add_theta_alone, "key 'rill.rope.theta' is 500.1");
    check_with_key(add_other_exact_factor, "key 'rill.rope.factor' is 2.1, but 'llama.rope.scaling.factor' is 4");
    check_with_key(add_factor_of_nothing, "key 'rill.rope.factor' without a rope scaling");
    check_with_key(add_other_arch, "key 'rill.architecture' is 'qwen2', but 'general.architecture' is 'llama'");
}

/* A separate head beside the embedding is kept, as in llama.cpp, whatever its values. */
static void test_head_of_its_own(void **state) {
    (void)state;
    struct err e;
    struct foreign_model *f;
    struct gguf_sample g = gguf_sample();
    tiny_keys(&g);
    tiny_tensors(&g);
    add_f32(&g, "output.weight", 8, 6);
    struct buf b = gguf_bytes(&g);
    OK(foreign_open_gguf(&f, b.data, b.len, NULL, &e));
    assert_false(f->config.tied);
    foreign_close(f);
    buf_release(&b);
    add_f32(&g, "output.bias", 6, 0);
    b = gguf_bytes(&g);
    assert_refused(&b, "tensor 'output.bias' is not zero: a bias there is not supported");
    buf_release(&b);
    gguf_sample_release(&g);
}

/* The tiny model with one string replaced by another of the same length. */
static void check_changed(const char *from, const char *to, const char *says) {
    struct buf b = tiny_gguf();
    assert_int_equal(strlen(from), strlen(to));
    char *at = memmem(b.data, b.len, from, strlen(from));
    assert_non_null(at);
    memcpy(at, to, strlen(to));
    assert_refused(&b, says);
    buf_release(&b);
}

static void test_changed_model(void **state) {
    (void)state;
    struct buf b = tiny_gguf();
    char *at = memmem(b.data, b.len, "architecture", 12);
    memcpy(at + 12 + 4 + 8, "mamba", 5);
    assert_refused(&b, "'mamba' is not supported (supported: llama");
    buf_release(&b);
    check_changed("llama.block_count", "llamo.block_count", "llama.block_count' is missing");
    check_changed("blk.0.attn_q.weight", "blk.0.attn_q.height", "tensor 'blk.0.attn_q.weight' is missing");
    check_changed("blk.0.ffn_down.weight", "blk.0.ffn_Down.weight", "tensor 'blk.0.ffn_down.weight' is missing");
    check_changed("gpt2", "gpt3", "'gpt3' is not supported");
    check_changed("smollm", "smallm", "smallm");
    check_changed("a b", "a-b", "merge 0");
    check_changed("a b", "a c", "'c' is not a token");
    check_changed("a b", "b a", "make no token");
    check_changed("tokenizer.ggml.merges", "tokenizer.ggml.merged", "merges': the key is missing");
    check_changed("tokenizer.ggml.tokens", "tokenizer.ggml.tokenz", "tokens' is missing");
    check_changed("tokenizer.ggml.pre", "tokenizer.ggml.prf", "pre' is missing");
}

/* A bias on o counts as one unless it is zero everywhere; a tensor without a role is refused. */
static void test_tensors_without_a_role(void **state) {
    (void)state;
    struct err e = {0};
    for (int zero = 0; zero < 2; zero++) {
        struct gguf_sample g = gguf_sample();
        tiny_keys(&g);
        tiny_tensors(&g);
        add_f32(&g, "blk.0.attn_output.bias", 8, 0);
        if (zero) memset(g.data.data + g.data.len - 32, 0, 32);
        struct buf b = gguf_bytes(&g);
        struct foreign_model *f;
        OK(foreign_open_gguf(&f, b.data, b.len, NULL, &e));
        assert_true(f->config.o_bias == !zero);
        foreign_close(f);
        buf_release(&b);
        gguf_sample_release(&g);
    }
    struct gguf_sample g = gguf_sample();
    tiny_keys(&g);
    tiny_tensors(&g);
    add_f32(&g, "blk.0.attn_q_norm.weight", 4, 0);
    struct buf b = gguf_bytes(&g);
    assert_refused(&b, "tensor 'blk.0.attn_q_norm.weight' has no role");
    buf_release(&b);
    gguf_sample_release(&g);
}

/* The message names the tensor as the file does, with both shapes. */
static void test_wrong_shape(void **state) {
    (void)state;
    struct gguf_sample g = gguf_sample();
    tiny_keys(&g);
    add_f32(&g, "token_embd.weight", 8, 6);
    add_f32(&g, "blk.0.attn_norm.weight", 4, 0);
    struct buf b = gguf_bytes(&g);
    assert_refused(&b, "tensor 'blk.0.attn_norm.weight' has shape [4], expected [8]");
    buf_release(&b);
    gguf_sample_release(&g);
}

/* ---- rotary rows and factors ---- */

/* Rows are numbered; a head of 6 rows has the pairs (0, 3), (1, 4), (2, 5). */
static void test_row_order(void **state) {
    (void)state;
    const unsigned char half[12] = {0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15};
    const unsigned char pairs[12] = {0, 3, 1, 4, 2, 5, 10, 13, 11, 14, 12, 15};
    unsigned char out[12];
    rows_interleave(out, half, 12, 1, 2);
    assert_memory_equal(out, pairs, 12);
    rows_split(out, pairs, 12, 1, 2);
    assert_memory_equal(out, half, 12);
}

static struct model_config rope_config(void) {
    static struct model_layer layer = {4, 4, 8};
    return (struct model_config){.arch = "llama",
                                 .n_layers = 1,
                                 .hidden = 512,
                                 .head_dim = 128,
                                 .vocab_size = 8,
                                 .context = 131072,
                                 .rope.theta = 500000,
                                 .layers = &layer};
}

static void test_llama3_parameters_are_found(void **state) {
    (void)state;
    const struct {
        double factor;
        uint32_t original;
    } known[] = {{8, 8192}, {32, 8192}, {8, 64}, {4, 1024}, {2.5, 8192}};
    for (size_t i = 0; i < COUNT_OF(known); i++) {
        struct err e;
        struct model_config c = rope_config(), found = c;
        float factors[64];
        c.rope.scaling = ROPE_LLAMA3;
        c.rope.factor = known[i].factor;
        c.rope.low_freq = 1;
        c.rope.high_freq = 4;
        c.rope.original_context = known[i].original;
        OK(rope_factors(&c, factors, &e));
        OK(gguf_rope_recover(&found, factors, &e));
        assert_int_equal(found.rope.scaling, ROPE_LLAMA3);
        assert_true(found.rope.factor == known[i].factor);
        assert_int_equal(found.rope.original_context, known[i].original);
        factors[40] *= 1.01f;
        found = rope_config();
        assert_int_equal(gguf_rope_recover(&found, factors, &e), ERR_DATA);
        /* the file's own parameters are checked as well */
        assert_int_equal(gguf_rope_recover(&c, factors, &e), ERR_DATA);
    }
}

static void test_odd_factors(void **state) {
    (void)state;
    struct err e;
    float factors[64];
    for (int i = 0; i < 64; i++) factors[i] = 1;
    struct model_config c = rope_config();
    OK(gguf_rope_recover(&c, factors, &e)); /* none at all */
    assert_int_equal(c.rope.scaling, ROPE_PLAIN);
    const float bad[] = {0, -1, INFINITY, NAN};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        factors[7] = bad[i];
        c = rope_config();
        assert_int_equal(gguf_rope_recover(&c, factors, &e), ERR_DATA);
        assert_string_equal(e.msg, "factor 7 is not a number above 0");
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tiny_model),
        cmocka_unit_test(test_versions),
        cmocka_unit_test(test_all_value_types),
        cmocka_unit_test(test_numbers_of_other_types),
        cmocka_unit_test(test_unaligned_tensors),
        cmocka_unit_test(test_header_counts),
        cmocka_unit_test(test_lengths_of_values),
        cmocka_unit_test(test_tensor_sizes),
        cmocka_unit_test(test_rank_of_nothing),
        cmocka_unit_test(test_offsets),
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_tensor_names),
        cmocka_unit_test(test_bytes_behind_the_end),
        cmocka_unit_test(test_every_cut),
        cmocka_unit_test(test_model_keys),
        cmocka_unit_test(test_contradictions),
        cmocka_unit_test(test_head_of_its_own),
        cmocka_unit_test(test_changed_model),
        cmocka_unit_test(test_tensors_without_a_role),
        cmocka_unit_test(test_wrong_shape),
        cmocka_unit_test(test_row_order),
        cmocka_unit_test(test_llama3_parameters_are_found),
        cmocka_unit_test(test_odd_factors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
