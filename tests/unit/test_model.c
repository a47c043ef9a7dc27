/* Tests of lib/model: configuration, roles, streams, the forward pass against a plain one in f64. */
#include "tests/unit/model_samples.h"

/* ---- configuration and roles ------------------------------------------------------------------------------------- */

static void config_survives_json(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a), back;
    c.rope.scaling = ROPE_LLAMA3;
    c.rope.factor = 32, c.rope.low_freq = 1, c.rope.high_freq = 4, c.rope.original_context = 8192;
    cJSON *o = model_config_to_json(&c, &e);
    assert_non_null(o);
    OK(model_config_from_json(&back, o, &a, &e));
    char *one = json_text(o, &e);
    cJSON *again = model_config_to_json(&back, &e);
    char *two = json_text(again, &e);
    assert_string_equal(one, two);
    if (strstr(one, "99999")) fail_msg("the float's decimals, not the number that was meant: %s", one);
    mem_free(one);
    mem_free(two);
    cJSON_Delete(o);
    cJSON_Delete(again);
    arena_release(&a);
}

static void config_refuses_what_cannot_be(void **state) {
    (void)state;
    static const char good[] =
        "{\"arch\":\"llama\",\"layers\":2,\"hidden\":8,\"head_dim\":4,\"heads\":2,\"kv_heads\":1,\"ffn\":8,"
        "\"vocab_size\":9,\"context\":8,\"tied\":true,\"qkv_bias\":false,\"norm_eps\":1e-5,"
        "\"rope\":{\"theta\":10000,\"scaling\":\"none\"}}";
    static const struct config_change cases[] = {
        {"\"llama\"", "\"gpt 9\"", "gpt 9"},
        {"\"tied\":true", "\"tied\":true,\"windup\":1", "windup"},
        {"\"tied\":true", "\"tied\":true,\"act\":\"sin\"", "sin"},
        {"\"layers\":2", "\"layers\":0", "layers"},
        {"\"layers\":2", "\"layers\":5000", "layers"},
        {"\"head_dim\":4", "\"head_dim\":3", "odd"},
        {"\"heads\":2", "\"heads\":[2]", "heads"},
        {"\"heads\":2", "\"heads\":[2,2,2]", "heads"},
        {"\"heads\":2", "\"heads\":[2,0]", "heads"},
        {"\"kv_heads\":1", "\"kv_heads\":3", "multiple"},
        {"\"ffn\":8", "\"ffn\":1e9", "ffn"},
        {"\"none\"", "\"yarn\"", "missing key \"factor\""},
        {"\"none\"", "\"ntk\"", "'ntk' is not supported (none, linear, llama3, yarn, longrope are)"},
        {"\"norm_eps\":1e-5", "\"norm_eps\":2", "norm_eps"},
        {"\"theta\":10000", "\"theta\":0", "theta"},
        {"\"vocab_size\":9", "\"vocab_size\":1e12", "vocab_size"},
        {"\"tied\":true", "\"tied\":1", "tied"},
    };
    assert_configs_refused(good, cases, COUNT_OF(cases));
}

static void slots_have_names_and_order(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    for (int variant = 0; variant < 4; variant++) {
        c.tied = variant & 1;
        c.qkv_bias = variant & 2;
        size_t n = model_slot_count(&c);
        assert_int_equal(n, 1 + 2 * (9 + (c.qkv_bias ? 3 : 0)) + 1 + (c.tied ? 0 : 1));
        for (size_t i = 0; i < n; i++) {
            char name[TENSOR_MAX_NAME + 1];
            struct model_slot s = model_slot_at(&c, i), back;
            OK(model_slot_parse(model_slot_name(s, name), &back, &e));
            assert_true(back.role == s.role && back.layer == s.layer);
            assert_int_equal(model_slot_index(&c, s), i);
        }
    }
    static const char *const bad[] = {"",
                                      "layers.",
                                      "layers.0",
                                      "layers.00.attn.q.weight",
                                      "layers.0.embed.weight",
                                      "attn.q.weight",
                                      "layers.4096.attn.q.weight",
                                      "layers.-1.attn.q.weight",
                                      "embed.weight ",
                                      "layers.1.attn.x.weight"};
    struct model_slot s;
    for (size_t i = 0; i < COUNT_OF(bad); i++) assert_int_equal(model_slot_parse(bad[i], &s, &e), ERR_DATA);
    arena_release(&a);
}

/* Llama 3.2's published frequencies: factor 32 keeps short wavelengths and divides long ones. */
static void rope_scaling_bends_long_waves_only(void **state) {
    (void)state;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    c.head_dim = 64, c.rope.theta = 500000;
    double plain[32], scaled[32];
    model_inv_freq(&c, &c.rope, plain);
    c.rope.scaling = ROPE_LLAMA3, c.rope.factor = 32, c.rope.low_freq = 1, c.rope.high_freq = 4,
    c.rope.original_context = 8192;
    model_inv_freq(&c, &c.rope, scaled);
    for (int i = 0; i < 32; i++) {
        double wavelength = 2 * M_PI / plain[i];
        if (wavelength < 8192 / 4.0) assert_true(scaled[i] == plain[i]);
        if (wavelength > 8192) assert_true(fabs(scaled[i] * 32 / plain[i] - 1) < 1e-12);
        assert_true(scaled[i] <= plain[i] && scaled[i] >= plain[i] / 32);
    }
    arena_release(&a);
}

/* ---- streams ----------------------------------------------------------------------------------------------------- */

static void save_load_save_is_identity(void **state) {
    (void)state;
    static const unsigned types[] = {DT_F32, DT_BF16, DT_F16};
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = sample_model(&c, 1), *back;
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        struct buf one = saved_model(m, types[i]);
        OK(load_model(&one, &back, &e));
        struct buf two = saved_model(back, 0); /* each tensor keeps the type that it was loaded from */
        assert_int_equal(one.len, two.len);
        assert_memory_equal(one.data, two.data, one.len);
        model_free(back);
        buf_release(&one);
        buf_release(&two);
    }
    model_free(m);
    arena_release(&a);
}

/* Writes the model's tensors as the callback says: 0 unchanged, 1 omitted, 2 twice. */
static struct buf doctored(const struct model *m, int (*what)(size_t i)) {
    struct err e;
    struct stream_writer *w;
    int fd = memory_file();
    OK(stream_writer_open(&w, fd, "model", NULL, &e));
    OK(model_head_write(w, &m->config, NULL, 0, NULL, &e));
    for (size_t i = 0; i < m->n_params; i++) {
        int how = what(i);
        if (how == 1) continue;
        struct tensor_desc d = m->params[i].desc;
        if (how == 3) d.dims[0]--;
        if (how == 4) model_host_value(&m->params[i])[5] = NAN;
        OK(stream_write_tensor(w, &d, NULL, model_host_value(&m->params[i]), &e));
        if (how == 4) model_host_value(&m->params[i])[5] = 0;
    }
    OK(stream_writer_finish(w, NULL, &e));
    stream_writer_free(w);
    return contents(fd);
}
static int lose_last(size_t i) {
    return i == 20;
}
static int lose_first(size_t i) {
    return i == 0;
}
static int lose_middle(size_t i) {
    return i == 7;
}
static int narrow(size_t i) {
    return i == 3 ? 3 : 0;
}
static int poison(size_t i) {
    return i == 4 ? 4 : 0;
}

static void a_model_with_a_flaw_is_refused_by_name(void **state) {
    (void)state;
    static const struct {
        int (*what)(size_t);
        const char *says;
    } cases[] = {{lose_last, "head.weight"},
                 {lose_first, "expected 'embed.weight'"},
                 {lose_middle, "expected 'layers.0.ffn.gate.weight'"},
                 {narrow, "shape [31, 64], expected [32, 64]"},
                 {poison, "'layers.0.attn.v.weight': element 5 is not finite"}};
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = sample_model(&c, 1), *back = NULL;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct buf b = doctored(m, cases[i].what);
        assert_int_equal(load_model(&b, &back, &e), ERR_DATA);
        if (!strstr(e.msg, cases[i].says)) fail_msg("'%s' does not say '%s'", e.msg, cases[i].says);
        if (strncmp(e.msg, "model.rill: ", 12)) fail_msg("'%s' does not name the file", e.msg);
        buf_release(&b);
    }
    model_free(m);
    arena_release(&a);
}

/* ---- forward: against a plain computation in f64, written from the papers' formulas ------------------------------ */

static const float *weight(const struct model *m, enum model_role role, uint32_t layer) {
    return model_host_value(model_param(m, role, layer));
}

static void plain_norm(double *y, const double *x, const float *w, size_t d, double eps) {
    double s = 0;
    for (size_t i = 0; i < d; i++) s += x[i] * x[i];
    for (size_t i = 0; i < d; i++) y[i] = x[i] / sqrt(s / (double)d + eps) * w[i];
}

static void plain_linear(double *y, const double *x, const float *w, const float *bias, size_t out, size_t in) {
    for (size_t o = 0; o < out; o++) {
        y[o] = bias ? bias[o] : 0;
        for (size_t i = 0; i < in; i++) y[o] += w[o * in + i] * x[i];
    }
}

static void plain_rope(double *x, size_t heads, size_t dim, size_t position, const double *inv_freq) {
    for (size_t h = 0; h < heads; h++)
        for (size_t i = 0; i < dim / 2; i++) {
            double *a = &x[h * dim + i], *b = &x[h * dim + i + dim / 2], s = sin((double)position * inv_freq[i]),
                   c = cos((double)position * inv_freq[i]);
            double ra = *a * c - *b * s, rb = *b * c + *a * s;
            *a = ra, *b = rb;
        }
}

#define MAX_T 32
#define MAX_D 128

/* Logits of one sequence, position by position, keeping q, k and v of all earlier positions. */
static void plain_forward(struct model *m, const uint32_t *tokens, size_t n, double *logits) {
    const struct model_config *c = &m->config;
    static double x[MAX_T][MAX_D], q[MAX_T][MAX_D], k[MAX_T][MAX_D], v[MAX_T][MAX_D], h[MAX_D], y[MAX_D], gate[MAX_D],
        up[MAX_D];
    size_t dim = c->head_dim;
    for (size_t t = 0; t < n; t++)
        for (size_t i = 0; i < c->hidden; i++) x[t][i] = weight(m, ROLE_EMBED, 0)[tokens[t] * c->hidden + i];
    for (uint32_t l = 0; l < c->n_layers; l++) {
        const struct model_layer *s = &c->layers[l];
        size_t group = s->n_heads / s->n_kv_heads;
        for (size_t t = 0; t < n; t++) {
            plain_norm(h, x[t], weight(m, ROLE_ATTN_NORM, l), c->hidden, c->norm_eps);
            plain_linear(q[t], h, weight(m, ROLE_Q, l), c->qkv_bias ? weight(m, ROLE_Q_BIAS, l) : NULL,
                         s->n_heads * dim, c->hidden);
            plain_linear(k[t], h, weight(m, ROLE_K, l), c->qkv_bias ? weight(m, ROLE_K_BIAS, l) : NULL,
                         s->n_kv_heads * dim, c->hidden);
            plain_linear(v[t], h, weight(m, ROLE_V, l), c->qkv_bias ? weight(m, ROLE_V_BIAS, l) : NULL,
                         s->n_kv_heads * dim, c->hidden);
            plain_rope(q[t], s->n_heads, dim, t, m->inv_freq);
            plain_rope(k[t], s->n_kv_heads, dim, t, m->inv_freq);
        }
        for (size_t t = 0; t < n; t++) {
            double a[MAX_D] = {0};
            for (size_t head = 0; head < s->n_heads; head++) {
                double p[MAX_T], total = 0;
                for (size_t u = 0; u <= t; u++) {
                    double score = 0;
                    for (size_t i = 0; i < dim; i++) score += q[t][head * dim + i] * k[u][head / group * dim + i];
                    total += p[u] = exp(score / sqrt((double)dim));
                }
                for (size_t u = 0; u <= t; u++)
                    for (size_t i = 0; i < dim; i++) a[head * dim + i] += p[u] / total * v[u][head / group * dim + i];
            }
            plain_linear(y, a, weight(m, ROLE_O, l), NULL, c->hidden, s->n_heads * dim);
            for (size_t i = 0; i < c->hidden; i++) x[t][i] += y[i];
        }
        for (size_t t = 0; t < n; t++) {
            plain_norm(h, x[t], weight(m, ROLE_FFN_NORM, l), c->hidden, c->norm_eps);
            plain_linear(gate, h, weight(m, ROLE_GATE, l), NULL, s->ffn, c->hidden);
            plain_linear(up, h, weight(m, ROLE_UP, l), NULL, s->ffn, c->hidden);
            for (size_t i = 0; i < s->ffn; i++) gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
            plain_linear(y, gate, weight(m, ROLE_DOWN, l), NULL, c->hidden, s->ffn);
            for (size_t i = 0; i < c->hidden; i++) x[t][i] += y[i];
        }
    }
    for (size_t t = 0; t < n; t++) {
        plain_norm(h, x[t], weight(m, ROLE_NORM, 0), c->hidden, c->norm_eps);
        plain_linear(logits + t * c->vocab_size, h, weight(m, c->tied ? ROLE_EMBED : ROLE_HEAD, 0), NULL, c->vocab_size,
                     c->hidden);
    }
}

static void forward_equals_the_plain_one(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    for (int variant = 0; variant < 4; variant++) {
        struct model_config c = sample_config(&a);
        c.tied = variant & 1;
        c.qkv_bias = variant & 2;
        struct model *m = sample_model(&c, 3);
        for (size_t i = 0; i < m->n_params; i++) /* biases and norms that have an effect */
            if (!model_role_is_matrix(m->params[i].slot.role))
                for (uint64_t j = 0; j < m->params[i].n; j++)
                    model_host_value(&m->params[i])[j] += 0.1f * (float)(j % 7);
        const uint32_t lengths[] = {1, 17, 9};
        uint32_t tokens[27];
        sample_tokens(tokens, 27, c.vocab_size, 5);
        struct model_input in = {27, 3, tokens, lengths};
        float *fast = logits_of(m, &in);
        double *plain = mem_array(MAX_T * c.vocab_size, sizeof *plain, &e), worst = 0, scale = 0;
        for (size_t s = 0, at = 0; s < 3; at += lengths[s++]) {
            plain_forward(m, tokens + at, lengths[s], plain);
            for (size_t i = 0; i < lengths[s] * c.vocab_size; i++) {
                worst = fmax(worst, fabs(plain[i] - fast[at * c.vocab_size + i]));
                scale = fmax(scale, fabs(plain[i]));
            }
        }
        /* f32 has 6e-8; about a hundred roundings of values that grow and shrink with the residual stream */
        if (!(worst < 2e-5 * scale)) fail_msg("variant %d: off by %g of %g", variant, worst, scale);
        mem_free(fast);
        mem_free(plain);
        model_free(m);
    }
    arena_release(&a);
}

static void threads_do_not_change_a_bit(void **state) {
    (void)state;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = sample_model(&c, 3);
    uint32_t tokens[60];
    const uint32_t lengths[] = {40, 20};
    sample_tokens(tokens, 60, c.vocab_size, 6);
    struct model_input in = {60, 2, tokens, lengths};
    int before = parallel_threads();
    parallel_set_threads(1);
    float *one = logits_of(m, &in);
    parallel_set_threads(5);
    float *five = logits_of(m, &in);
    parallel_set_threads(before);
    assert_memory_equal(one, five, 60 * c.vocab_size * sizeof(float));
    mem_free(one);
    mem_free(five);
    model_free(m);
    arena_release(&a);
}

/* Packed weights must give the logits of the same weights in f32 up to `within`, the rounding of weights and
 * activations. */
static void compare_packed(const struct model_config *c, enum dtype type, enum model_weight_format format,
                           double within) {
    struct err e;
    uint32_t tokens[40];
    const uint32_t lengths[] = {33, 7};
    sample_tokens(tokens, 40, c->vocab_size, 9);
    const struct model_input in = {40, 2, tokens, lengths};
    struct model *made = sample_model(c, 8), *plain, *packed = packed_model(made, type, format);
    struct buf bytes = saved_model(made, type);
    OK(load_model(&bytes, &plain, &e));
    float *x = logits_of(plain, &in), *y = logits_of(packed, &in);
    double sum = 0, off = 0;
    for (size_t k = 0; k < 40 * c->vocab_size; k++) {
        sum += (double)x[k] * x[k];
        off += ((double)x[k] - y[k]) * ((double)x[k] - y[k]);
    }
    assert_true(off > 0); /* it did run in bf16 */
    if (!(sqrt(off / sum) < within)) fail_msg("%s: off by %g", dtype_info(type)->name, sqrt(off / sum));
    /* one copy, as stored or packed; none in f32 */
    struct model_param *embed = model_param(packed, ROLE_EMBED, 0);
    bool quantized = dtype_info(type)->is_quantized;
    assert_false(kernel_has_data(embed->value));
    assert_int_equal(kernel_is_packed(&embed->matrix), !quantized || format == WEIGHTS_INT8);
    assert_int_equal(embed->matrix.dtype, quantized ? type : DT_BF16);
    assert_true((model_param(packed, ROLE_HEAD, 0) == NULL) == c->tied);
    assert_int_equal(model_enable_grad(packed, &e), ERR_USAGE);
    mem_free(x);
    mem_free(y);
    buf_release(&bytes);
    model_free(made);
    model_free(plain);
    model_free(packed);
}

/* In bf16 about a dozen roundings of 2^-9 lie between a token and its logits. For integer products the same number
 * of blocks of activations is rounded to d q, with an error of at most d / 2 = max |x| / 254, which is between 1/254
 * and sqrt(32)/254 of the block's root mean square; for normally distributed values about 2.5/254, with a mean error
 * of d / sqrt(12): 1.4/254. */
static void packed_weights_say_the_same(void **state) {
    (void)state;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    static const enum dtype types[] = {DT_F32, DT_BF16, DT_Q8_0, DT_Q4_0, DT_Q4_1, DT_Q5_0};
    for (size_t i = 0; i < COUNT_OF(types); i++)
        for (int tied = 0; tied < 2; tied++) {
            c.tied = tied;
            compare_packed(&c, types[i], WEIGHTS_PACKED, 12.0 / 512);
            if (dtype_info(types[i])->is_quantized)
                compare_packed(&c, types[i], WEIGHTS_INT8, 12.0 / 512 + 12 * 1.4 / 254);
        }
    arena_release(&a);
}

/* Without quantized weights the format is bf16, and the caller can tell. */
static void int8_without_quantized_weights_is_bf16(void **state) {
    (void)state;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = sample_model(&c, 8), *packed = packed_model(m, DT_BF16, WEIGHTS_PACKED);
    struct model *none = packed_model(m, DT_BF16, WEIGHTS_INT8), *some = packed_model(m, DT_Q4_0, WEIGHTS_INT8);
    uint32_t tokens[9];
    const uint32_t lengths[] = {9};
    sample_tokens(tokens, 9, c.vocab_size, 9);
    const struct model_input in = {9, 1, tokens, lengths};
    float *x = logits_of(packed, &in), *y = logits_of(none, &in);
    assert_memory_equal(x, y, 9 * c.vocab_size * sizeof *x);
    assert_int_equal(none->n_int8, 0);
    assert_int_equal(some->n_int8, 2 + 2 * 7);
    mem_free(x);
    mem_free(y);
    model_free(m);
    model_free(packed);
    model_free(none);
    model_free(some);
    arena_release(&a);
}

static void bad_input_is_refused(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = sample_model(&c, 3);
    struct grad_tape *t;
    uint32_t tokens[70] = {0};
    OK(grad_tape_new(&t, kernel_cpu(), false, DT_F32, &e));
    struct {
        struct model_input in;
        uint32_t lengths[2], token;
        const char *says;
    } cases[] = {{{4, 2, NULL, NULL}, {4, 0}, 0, "sequence 1 has 0 positions"},
                 {{4, 2, NULL, NULL}, {2, 3}, 0, "sequence 1 has 3 positions of 2 left"},
                 {{4, 1, NULL, NULL}, {3, 0}, 0, "3 positions, the batch 4"},
                 {{65, 1, NULL, NULL}, {65, 0}, 0, "the model's context is 64"},
                 {{4, 1, NULL, NULL}, {4, 0}, 97, "token 97 at position 2 of sequence 0"}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        tokens[2] = cases[i].token;
        cases[i].in.tokens = tokens;
        cases[i].in.lengths = cases[i].lengths;
        assert_int_equal(model_infer(m, t, &cases[i].in, NULL, NULL, NULL, NULL, &e), ERR_DATA);
        if (!strstr(e.msg, cases[i].says)) fail_msg("'%s' does not say '%s'", e.msg, cases[i].says);
    }
    grad_tape_free(t);
    model_free(m);
    arena_release(&a);
}

/* ---- layer by layer ---------------------------------------------------------------------------------------------- */

struct reread {
    const struct buf *bytes;
    struct stream_reader *r;
    int fd, times;
};

static void close_reread(struct reread *f) {
    if (!f->r) return;
    stream_reader_free(f->r);
    close(f->fd);
    f->r = NULL;
}

static int read_again(void *ctx, struct stream_reader **out, struct err *e) {
    struct reread *f = ctx;
    close_reread(f);
    f->fd = file_of(f->bytes->data, f->bytes->len);
    int rc = stream_reader_open(&f->r, f->fd, "model.rill", STREAM_MODEL, e);
    *out = f->r;
    f->times++;
    return rc;
}

static void count_layers(void *ctx, uint32_t layers) {
    uint32_t *last = ctx;
    assert_int_equal(layers, *last % 2 + 1);
    *last = layers;
}

/* Logits of three inputs, each a pass of its own, in one block or two, must be model_infer's to the bit. */
static void layer_by_layer_nothing_changes(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    const uint32_t lengths[] = {3, 11, 1, 30, 7};
    uint32_t tokens[52];
    sample_tokens(tokens, 52, c.vocab_size, 9);
    const struct model_input in[] = {
        {14, 2, tokens, lengths}, {1, 1, tokens + 14, lengths + 2}, {37, 2, tokens + 15, lengths + 3}};
    for (int tied = 0; tied < 2; tied++)
        for (int how = 0; how < 6; how++) {
            bool pipe = how % 2;
            enum model_weight_format format = (enum model_weight_format)(how / 2);
            c.tied = tied;
            struct model *m = sample_model(&c, 8);
            struct buf bytes = saved_model(m, format == WEIGHTS_INT8 ? DT_Q5_1 : 0);
            if (format != WEIGHTS_F32) {
                model_free(m);
                OK(load_model_as(&bytes, format, &m, &e));
            }
            struct reread first = {&bytes, .times = 0}, again = {&bytes, .times = 0};
            struct stream_reader *r;
            struct grad_tape *t;
            struct model_layerwise *l;
            OK(grad_tape_new(&t, kernel_cpu(), false, model_precision(m), &e));
            OK(read_again(&first, &r, &e));
            OK(model_layerwise_new(&l, kernel_cpu(), r, format, pipe ? NULL : read_again, &again, &e));
            assert_int_equal(model_layerwise_model(l)->config.tied, tied);
            size_t blocks = pipe ? 1 : 2, from = 0;
            for (size_t b = 0; b < blocks; b++) {
                size_t n = pipe ? 3 : b ? 1 : 2, rows = 0, at = 0;
                uint32_t last = 0;
                OK(model_layerwise_run(l, t, in + from, n, count_layers, &last, &e));
                assert_int_equal(last, 2);
                for (size_t i = 0; i < n; i++) rows += in[from + i].n_positions;
                struct all_logits all = {mem_array(rows * c.vocab_size, sizeof(float), &e)};
                OK(model_layerwise_logits(l, t, in + from, n, keep_logits, &all, &e));
                for (size_t i = 0; i < n; at += in[from + i++].n_positions) {
                    float *expected = logits_of(m, &in[from + i]);
                    assert_memory_equal(expected, all.x + at * c.vocab_size,
                                        in[from + i].n_positions * c.vocab_size * sizeof(float));
                    mem_free(expected);
                }
                mem_free(all.x);
                from += n;
            }
            /* a file is read again for the second block and for each tied head; a pipe cannot be */
            assert_int_equal(again.times, pipe ? 0 : tied ? 3 : 1);
            if (pipe) assert_int_equal(model_layerwise_run(l, t, in, 3, NULL, NULL, &e), ERR_USAGE);
            model_layerwise_free(l);
            grad_tape_free(t);
            close_reread(&first);
            close_reread(&again);
            buf_release(&bytes);
            model_free(m);
        }
    arena_release(&a);
}

/* A visitor that halves `down` of the first layer and keeps the outputs of each layer before and after. */
struct visitor {
    uint32_t n_layers, hidden;
    size_t rows;
    int64_t next;
    float *out[2];     /* per layer, [rows][hidden]: changed, dense */
    double watched[2]; /* sums of inputs to the first layer's `down`, changed and dense */
    enum model_states which;
};

static int add_input(void *ctx, const struct model_seen *seen, struct err *e) {
    struct visitor *v = ctx;
    const float *x;
    assert_true(seen->point != POINT_LAYER); /* the run ends before this point */
    if (seen->point != POINT_DOWN_IN) return 0;
    if (model_seen_f32(seen, &x, e)) return e->code;
    for (size_t i = 0; i < seen->rows * seen->cols; i++) v->watched[v->which] += x[i];
    return 0;
}

static int visit_layer(void *ctx, struct model_layerwise *l, int64_t layer, struct err *e) {
    struct visitor *v = ctx;
    struct model *m = model_layerwise_held(l);
    assert_int_equal(layer, v->next++);
    enum model_role last = layer < 0 ? ROLE_EMBED : layer < v->n_layers ? ROLE_DOWN : ROLE_NORM;
    uint32_t of = layer >= 0 && layer < v->n_layers ? (uint32_t)layer : 0;
    assert_true(kernel_has_data(model_param(m, last, of)->value));
    if (layer > 0)
        memcpy(v->out[0] + (layer - 1) * v->rows * v->hidden, model_layerwise_states(l, STATES_NOW),
               v->rows * v->hidden * sizeof(float));
    if (layer < 0 || layer == v->n_layers) return 0;
    memcpy(v->out[1] + layer * v->rows * v->hidden, model_layerwise_dense_output(l),
           v->rows * v->hidden * sizeof(float));
    const enum model_point end = POINT_DOWN_IN;
    for (v->which = STATES_NOW; v->which <= STATES_DENSE; v->which++)
        if (model_layerwise_watch(l, v->which, &end, add_input, v, e)) return e->code;
    if (layer == 0)
        kernel_scale(kernel_f32(model_host_value(model_param(m, ROLE_DOWN, 0))), model_param(m, ROLE_DOWN, 0)->n, 0.5f);
    return 0;
}

static int keep_layer(void *ctx, const struct model_seen *seen, struct err *e) {
    size_t n = seen->rows * seen->cols;
    const float *x;
    if (model_seen_f32(seen, &x, e)) return e->code;
    if (seen->point == POINT_LAYER) memcpy((float *)ctx + seen->layer * n, x, n * sizeof *x);
    return 0;
}

/* Later layers must run, to the bit, on the outputs of changed layers and, with `dense`, also on the unchanged ones.
 * In bf16 the weights of a step are packed once, and a change must show in the next. */
static void check_changes_on_the_way(enum dtype precision) {
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = sample_model(&c, 8);
    struct buf bytes = saved_model(m, 0);
    const uint32_t lengths[] = {3, 11};
    uint32_t tokens[14];
    sample_tokens(tokens, 14, c.vocab_size, 9);
    const struct model_input in = {14, 2, tokens, lengths};
    size_t n = (size_t)c.n_layers * 14 * c.hidden;
    float *expected[2], *got = mem_array(2 * n, sizeof *got, &e);
    struct grad_tape *t;
    OK(grad_tape_new(&t, kernel_cpu(), false, precision, &e));
    for (int dense = 1; dense >= 0; dense--) {
        expected[dense] = mem_array(n, sizeof(float), &e);
        if (!dense)
            kernel_scale(kernel_f32(model_host_value(model_param(m, ROLE_DOWN, 0))), model_param(m, ROLE_DOWN, 0)->n,
                         0.5f);
        OK(model_infer(m, t, &in, keep_layer, expected[dense], NULL, NULL, &e));
    }
    struct reread first = {&bytes, .times = 0};
    struct stream_reader *r;
    struct model_layerwise *l;
    OK(read_again(&first, &r, &e));
    OK(model_layerwise_new(&l, kernel_cpu(), r, WEIGHTS_F32, NULL, NULL, &e));
    struct visitor v = {.n_layers = c.n_layers, .hidden = c.hidden, .rows = 14, .next = -1, .out = {got, got + n}};
    struct model_changes how = {true, visit_layer, &v};
    OK(model_layerwise_change(l, t, &in, 1, &how, &e));
    assert_int_equal(v.next, c.n_layers + 1);
    assert_memory_equal(got, expected[0], n * sizeof *got);
    assert_memory_equal(got + n, expected[1], n * sizeof *got);
    assert_true(v.watched[0] != v.watched[1] && v.watched[0] != 0);
    model_layerwise_free(l);
    close_reread(&first);
    grad_tape_free(t);
    mem_free(expected[0]);
    mem_free(expected[1]);
    mem_free(got);
    buf_release(&bytes);
    model_free(m);
    arena_release(&a);
}

static void layers_change_on_the_way(void **state) {
    (void)state;
    check_changes_on_the_way(DT_F32);
    check_changes_on_the_way(DT_BF16);
}

/* A truncated stream, or a different one on the second read, is detected. */
static void layer_by_layer_a_flaw_is_found(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = sample_model(&c, 8), *other = sample_model(&c, 9);
    struct buf bytes = saved_model(m, 0), others = saved_model(other, 0), cut = bytes;
    const uint32_t tokens[] = {1, 2, 3}, length = 3;
    const struct model_input in = {3, 1, tokens, &length};
    struct stream_reader *r;
    struct grad_tape *t;
    struct model_layerwise *l;
    OK(grad_tape_new(&t, kernel_cpu(), false, DT_F32, &e));
    cut.len -= 2000;
    struct reread first = {&cut, .times = 0}, again = {&others, .times = 0};
    OK(read_again(&first, &r, &e));
    OK(model_layerwise_new(&l, kernel_cpu(), r, WEIGHTS_F32, read_again, &again, &e));
    assert_int_equal(model_layerwise_run(l, t, &in, 1, NULL, NULL, &e), ERR_DATA);
    model_layerwise_free(l);
    first.bytes = &bytes;
    OK(read_again(&first, &r, &e));
    OK(model_layerwise_new(&l, kernel_cpu(), r, WEIGHTS_F32, read_again, &again, &e));
    OK(model_layerwise_run(l, t, &in, 1, NULL, NULL, &e));
    assert_int_equal(model_layerwise_run(l, t, &in, 1, NULL, NULL, &e), ERR_DATA);
    assert_string_equal(e.msg, "model.rill: changed while it was read");
    model_layerwise_free(l);
    grad_tape_free(t);
    close_reread(&first);
    close_reread(&again);
    buf_release(&bytes);
    buf_release(&others);
    model_free(m);
    model_free(other);
    arena_release(&a);
}

static void a_value_beyond_f16_is_refused(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = sample_model(&c, 1);
    struct stream_writer *w;
    int to = memory_file();
    model_host_value(model_param(m, ROLE_UP, 1))[7] = 70000;
    int rc = stream_writer_open(&w, to, "out.rill", NULL, &e);
    assert_int_equal(rc, 0);
    assert_int_equal(model_save(m, w, DT_F16, &e), ERR_DATA);
    assert_string_equal(e.msg, "tensor 'layers.1.ffn.up.weight': element 7, 70000, does not fit in f16");
    stream_writer_free(w);
    close(to);
    model_free(m);
    arena_release(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(config_survives_json),
        cmocka_unit_test(config_refuses_what_cannot_be),
        cmocka_unit_test(slots_have_names_and_order),
        cmocka_unit_test(rope_scaling_bends_long_waves_only),
        cmocka_unit_test(save_load_save_is_identity),
        cmocka_unit_test(a_model_with_a_flaw_is_refused_by_name),
        cmocka_unit_test(forward_equals_the_plain_one),
        cmocka_unit_test(threads_do_not_change_a_bit),
        cmocka_unit_test(packed_weights_say_the_same),
        cmocka_unit_test(bad_input_is_refused),
        cmocka_unit_test(int8_without_quantized_weights_is_bf16),
        cmocka_unit_test(bad_input_is_refused),
        cmocka_unit_test(layer_by_layer_nothing_changes),
        cmocka_unit_test(layers_change_on_the_way),
        cmocka_unit_test(layer_by_layer_a_flaw_is_found),
        cmocka_unit_test(a_value_beyond_f16_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
