/* lib/quant: which type each tensor gets, against llama-quantize's own choice; a model through the grids. */
#include "tests/unit/model_samples.h"

#include "lib/quant/quant.h"

/* ---- types ------------------------------------------------------------------------------------------------------------ */

static struct model_config golden_config(const char *name, struct arena *a) {
    struct err e;
    bool small = !strcmp(name, "smollm2");
    struct model_config c = {.arch = "llama",
                             .n_layers = small ? 30 : 20,
                             .hidden = small ? 576 : 256,
                             .head_dim = 64,
                             .vocab_size = 512,
                             .context = 64,
                             .tied = small,
                             .norm_eps = 1e-5f,
                             .rope.theta = 10000};
    c.layers = arena_array(a, c.n_layers, sizeof *c.layers, &e);
    for (uint32_t i = 0; i < c.n_layers; i++)
        c.layers[i] =
            small ? (struct model_layer){9, 3, 1536} : (struct model_layer){4, !strcmp(name, "gqa2") ? 2 : 1, 512};
    return c;
}

static enum model_role role_of(const char *gguf) {
    static const struct {
        const char *name;
        enum model_role role;
    } names[] = {{"token_embd", ROLE_EMBED}, {"output", ROLE_HEAD}, {"attn_q", ROLE_Q},
                 {"attn_k", ROLE_K},         {"attn_v", ROLE_V},    {"attn_output", ROLE_O},
                 {"ffn_gate", ROLE_GATE},    {"ffn_up", ROLE_UP},   {"ffn_down", ROLE_DOWN}};
    for (size_t i = 0; i < COUNT_OF(names); i++)
        if (!strcmp(names[i].name, gguf)) return names[i].role;
    fail_msg("no role for %s", gguf);
    return ROLE_COUNT;
}

/* tests/golden/quant/mixtures.tsv: model, mixture, matrix, types by layer, as llama-quantize chose them. */
static void mixtures_are_llama_quantizes(void **state) {
    (void)state;
    struct err e;
    FILE *f = fopen("tests/golden/quant/mixtures.tsv", "r");
    assert_non_null(f);
    char model[32], mixture[32], matrix[32], types[1024];
    int compared = 0;
    while (fscanf(f, "%31[^\t]\t%31[^\t]\t%31[^\t]\t%1023[^\n]\n", model, mixture, matrix, types) == 4) {
        struct quant_options o = {0};
        /* The other names mean one type everywhere here; llama-quantize's q4_0 gives the output q6_k. */
        if (strcmp(mixture, "q4_k_m") && strcmp(mixture, "q6_k") && strcmp(mixture, "q8_0")) continue;
        OK(quant_type_parse(mixture, &o.type, &e));
        struct arena a = {0};
        struct model_config c = golden_config(model, &a);
        uint32_t layer = 0;
        for (char *save, *t = strtok_r(types, " ", &save); t; t = strtok_r(NULL, " ", &save), layer++, compared++) {
            struct model_slot s = {role_of(matrix), layer};
            uint64_t dims[2];
            model_slot_shape(&c, s, dims);
            /* An untied embedding is a plain matrix to the mixture. */
            enum dtype got = quant_fallback(quant_wanted(&o, &c, s), dims[1]);
            if (strcmp(dtype_info(got)->name, t))
                fail_msg("%s %s %s layer %u: %s, llama-quantize says %s", model, mixture, matrix, layer,
                         dtype_info(got)->name, t);
        }
        arena_release(&a);
    }
    fclose(f);
    assert_true(compared > 1000);
}

static bool all_fuse(const struct model_config *c) {
    (void)c;
    return true;
}

/* llama-quantize gives attn_qkv.weight q5_k in Q4_K_M; a type that is no mixture is the same for all. */
static void fused_matrices_get_one_type(void **state) {
    (void)state;
    static const enum model_role qkv[] = {ROLE_Q, ROLE_K, ROLE_V};
    struct err e;
    struct arena a = {0};
    struct model_config c = golden_config("smollm2", &a);
    struct quant_options o = {.fuses_qkv = all_fuse};
    OK(quant_type_parse("q4_k_m", &o.type, &e));
    for (uint32_t i = 0; i < c.n_layers; i++)
        for (size_t r = 0; r < COUNT_OF(qkv); r++)
            assert_int_equal(quant_wanted(&o, &c, (struct model_slot){qkv[r], i}), DT_Q5_K);
    assert_int_equal(quant_wanted(&o, &c, (struct model_slot){ROLE_DOWN, 0}), DT_Q6_K);
    OK(quant_type_parse("q4_0", &o.type, &e));
    assert_int_equal(quant_wanted(&o, &c, (struct model_slot){ROLE_V, 0}), DT_Q4_0);
    arena_release(&a);
}

static void types_parse_or_say_what_there_is(void **state) {
    (void)state;
    struct err e;
    const struct quant_type *t;
    for (size_t i = 0; quant_type_at(i); i++) {
        OK(quant_type_parse(quant_type_at(i)->name, &t, &e));
        assert_ptr_equal(t, quant_type_at(i));
    }
    assert_int_equal(quant_type_parse("q4_k_x", &t, &e), ERR_USAGE);
    assert_non_null(strstr(e.msg, "q4_k_m"));
}

static void rows_that_do_not_fit_fall_back(void **state) {
    (void)state;
    static const struct {
        enum dtype wanted;
        uint64_t row;
        enum dtype to;
    } cases[] = {{DT_Q4_K, 512, DT_Q4_K}, {DT_Q4_K, 576, DT_Q5_0}, {DT_Q5_K, 576, DT_Q5_1},
                 {DT_Q6_K, 576, DT_Q8_0}, {DT_Q4_K, 100, DT_F16},  {DT_Q8_0, 100, DT_F16},
                 {DT_Q8_0, 96, DT_Q8_0},  {DT_F32, 7, DT_F32},     {DT_BF16, 7, DT_BF16}};
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        assert_int_equal(quant_fallback(cases[i].wanted, cases[i].row), cases[i].to);
}

/* ---- a model ------------------------------------------------------------------------------------------------------------ */

struct seen {
    int tensors, fell_back;
    double worst;
};
static int see(void *ctx, const struct quant_tensor_report *t, struct err *e) {
    (void)e;
    struct seen *s = ctx;
    s->tensors++;
    s->fell_back += t->fell_back;
    if (t->relative > s->worst) s->worst = t->relative;
    return 0;
}

static int quantized(const struct buf *in, const struct quant_options *o, struct buf *out, struct seen *seen,
                     struct quant_totals *totals, struct err *e) {
    struct stream_reader *r;
    struct stream_writer *w;
    int from = file_of(in->data, in->len), to = memory_file();
    int rc = stream_reader_open(&r, from, "in.rill", STREAM_MODEL, e);
    assert_int_equal(rc, 0);
    assert_int_equal(stream_writer_open(&w, to, "out.rill", NULL, e), 0);
    rc = quantize_stream(r, w, o, see, seen, totals, e);
    if (!rc) rc = stream_writer_finish(w, NULL, e);
    stream_writer_free(w);
    stream_reader_free(r);
    close(from);
    *out = contents(to);
    return rc;
}

static struct model_config wide_config(struct arena *a) {
    struct model_config c = sample_config(a);
    c.hidden = 256, c.head_dim = 64;
    c.layers[0] = (struct model_layer){4, 2, 512};
    c.layers[1] = (struct model_layer){4, 2, 288}; /* its down has rows of 288: a fallback */
    return c;
}

static void every_type_keeps_the_model_close(void **state) {
    (void)state;
    /* The relative error that each grid has on normally distributed weights, and 15% above it: a bit lost would double it. */
    static const struct {
        const char *type;
        double at_most;
    } cases[] = {{"q8_0", 0.0062}, {"q6_k", 0.0206},  {"q5_k", 0.044},  {"q5_0", 0.0495},
                 {"q5_1", 0.044},  {"q4_k_m", 0.083}, {"q4_k", 0.083},  {"q4_1", 0.0905},
                 {"q4_0", 0.0995}, {"bf16", 0.002},   {"f16", 0.00025}, {"f32", 0}};
    struct err e;
    struct arena a = {0};
    struct model_config c = wide_config(&a);
    struct model *m = sample_model(&c, 1), *back;
    struct buf in = saved_model(m, DT_F32);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct quant_options o = {0};
        struct seen seen = {0};
        struct quant_totals totals;
        struct buf out, again;
        OK(quant_type_parse(cases[i].type, &o.type, &e));
        OK(quantized(&in, &o, &out, &seen, &totals, &e));
        assert_int_equal(seen.tensors, m->n_params);
        if (!(seen.worst <= cases[i].at_most)) fail_msg("%s: relative error %g", cases[i].type, seen.worst);
        assert_true(seen.worst >= cases[i].at_most / 1.3);
        assert_int_equal(totals.fell_back, seen.fell_back);
        assert_int_equal(totals.elems, model_parameters(&c));
        OK(load_model(&out, &back, &e));
        model_free(back);
        /* What is on the grid stays where it is. */
        OK(quantized(&out, &o, &again, &seen, &totals, &e));
        assert_int_equal(again.len, out.len);
        assert_memory_equal(again.data, out.data, out.len);
        buf_release(&out);
        buf_release(&again);
    }
    buf_release(&in);
    model_free(m);
    arena_release(&a);
}

static void strict_refuses_before_it_writes(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = wide_config(&a);
    struct model *m = sample_model(&c, 1);
    struct buf in = saved_model(m, DT_F32), out, head;
    struct quant_options o = {.strict = true};
    struct seen seen = {0};
    struct quant_totals totals;
    OK(quant_type_parse("q4_k", &o.type, &e));
    assert_int_equal(quantized(&in, &o, &out, &seen, &totals, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "'layers.1.ffn.down.weight': rows of 288"));
    assert_int_equal(seen.tensors, 0);
    assert_true(out.len <= 64); /* at most the head of the segment */
    OK(quant_type_parse("q8_0", &o.type, &e));
    OK(quantized(&in, &o, &head, &seen, &totals, &e));
    buf_release(&in);
    buf_release(&out);
    buf_release(&head);
    model_free(m);
    arena_release(&a);
}

static void what_a_type_cannot_hold_is_refused(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = wide_config(&a);
    struct model *m = sample_model(&c, 1);
    model_param(m, ROLE_DOWN, 1)->value[3 * 288 + 5] = -70000;
    struct buf in = saved_model(m, DT_F32), out;
    struct quant_options o = {0};
    struct seen seen = {0};
    struct quant_totals totals;
    OK(quant_type_parse("f16", &o.type, &e));
    assert_int_equal(quantized(&in, &o, &out, &seen, &totals, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "tensor 'layers.1.ffn.down.weight': row 3: element 5, -70000, does not fit in f16"));
    buf_release(&out);
    OK(quant_type_parse("bf16", &o.type, &e));
    OK(quantized(&in, &o, &out, &seen, &totals, &e));
    buf_release(&in);
    buf_release(&out);
    model_free(m);
    arena_release(&a);
}

/* What is quantized already gets no more bits than it has, unless that is asked for. */
static void nothing_grows_that_is_quantized(void **state) {
    (void)state;
    static const struct {
        const char *from, *to;
        const char *says;        /* NULL: it is done */
        const char *down, *head; /* types of down of layer 1 (its rows of 512, in the mixture) and of the head then */
    } cases[] = {
        {"q8_0", "q4_k_m", NULL, "q6_k", "q6_k"},
        {"q5_k", "q4_k_m", NULL, "q5_k", "q5_k"}, /* the mixture alone would raise them */
        {"q4_1", "q4_k_m", NULL, "q4_1", "q4_1"},
        {"q4_0", "q4_k_m", NULL, "q4_0", "q4_0"}, /* as many bits */
        {"q4_k", "q4_1", "'embed.weight' is q4_k already, 4.5 bits per weight: q4_1 would take 5 and gain nothing",
         NULL, NULL},
        {"q4_k_m", "q8_0", "is q4_k already, 4.5 bits per weight: q8_0 would take 8.5", NULL, NULL},
        {"q4_0", "f16", NULL, "f16", "f16"}, /* the storage undone */
        {"q4_0", "f32", NULL, "f32", "f32"},
        {"f16", "f32", NULL, "f32", "f32"},
    };
    struct err e;
    struct arena a = {0};
    struct model_config c = wide_config(&a);
    c.layers[1].ffn = 512;
    struct model *m = sample_model(&c, 1), *back;
    struct buf in = saved_model(m, DT_F32);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct quant_options first = {0}, second = {0};
        struct seen seen = {0};
        struct quant_totals totals;
        struct buf once, twice;
        OK(quant_type_parse(cases[i].from, &first.type, &e));
        OK(quant_type_parse(cases[i].to, &second.type, &e));
        OK(quantized(&in, &first, &once, &seen, &totals, &e));
        int rc = quantized(&once, &second, &twice, &seen, &totals, &e);
        if (cases[i].says) {
            assert_int_equal(rc, ERR_USAGE);
            if (!strstr(e.msg, cases[i].says)) fail_msg("%s", e.msg);
            buf_release(&twice);
            second.grow = true;
            OK(quantized(&once, &second, &twice, &seen, &totals, &e));
            assert_true(totals.bytes > totals.bytes_before);
        } else {
            OK(rc);
            OK(load_model(&twice, &back, &e));
            assert_string_equal(dtype_info(model_param(back, ROLE_DOWN, 1)->desc.dtype)->name, cases[i].down);
            assert_string_equal(dtype_info(model_param(back, ROLE_HEAD, 0)->desc.dtype)->name, cases[i].head);
            model_free(back);
        }
        buf_release(&once);
        buf_release(&twice);
    }
    /* A type that is named is not the mixture's. */
    struct quant_options o = {.head_type = DT_Q8_0}, first = {0};
    struct seen seen = {0};
    struct quant_totals totals;
    struct buf once, twice;
    OK(quant_type_parse("q5_k", &first.type, &e));
    OK(quant_type_parse("q4_k_m", &o.type, &e));
    OK(quantized(&in, &first, &once, &seen, &totals, &e));
    assert_int_equal(quantized(&once, &o, &twice, &seen, &totals, &e), ERR_USAGE);
    assert_non_null(strstr(e.msg, "tensor 'head.weight' is q5_k already"));
    buf_release(&once);
    buf_release(&twice);
    buf_release(&in);
    model_free(m);
    arena_release(&a);
}

static void threads_do_not_change_a_byte(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = wide_config(&a);
    struct model *m = sample_model(&c, 1);
    struct buf in = saved_model(m, DT_F32), one, three;
    struct quant_options o = {0};
    struct seen seen = {0};
    struct quant_totals totals;
    OK(quant_type_parse("q4_k_m", &o.type, &e));
    int before = parallel_threads();
    parallel_set_threads(1);
    OK(quantized(&in, &o, &one, &seen, &totals, &e));
    parallel_set_threads(3);
    OK(quantized(&in, &o, &three, &seen, &totals, &e));
    parallel_set_threads(before);
    assert_int_equal(one.len, three.len);
    assert_memory_equal(one.data, three.data, one.len);
    buf_release(&in);
    buf_release(&one);
    buf_release(&three);
    model_free(m);
    arena_release(&a);
}

/* With importance, the error weighted by it must fall: that is what it is for. */
static void importance_moves_the_error_where_it_does_not_matter(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = wide_config(&a);
    c.tied = true;
    struct model *m = sample_model(&c, 1), *back[2];
    for (uint32_t i = 0; i < c.vocab_size; i++) /* channels of very different size reach the matrices */
        for (uint32_t k = 0; k < c.hidden; k++)
            model_param(m, ROLE_EMBED, 0)->value[i * c.hidden + k] *= k % 16 ? 0.05f : 2;
    struct stats *s = sample_stats(m, 60, 2);
    struct buf in = saved_model(m, DT_F32), out;
    double error[2] = {0};
    for (int with = 0; with < 2; with++) {
        struct quant_options o = {.stats = with ? s : NULL};
        struct seen seen = {0};
        struct quant_totals totals;
        OK(quant_type_parse("q4_k", &o.type, &e));
        OK(quantized(&in, &o, &out, &seen, &totals, &e));
        OK(load_model(&out, &back[with], &e));
        const struct model_param *q = model_param(m, ROLE_Q, 0), *p = model_param(back[with], ROLE_Q, 0);
        for (uint64_t i = 0; i < q->n; i++) {
            double d = q->value[i] - p->value[i];
            error[with] += d * d * stats_sum_sq(s, POINT_ATTN_IN, 0)[i % c.hidden];
        }
        buf_release(&out);
        model_free(back[with]);
    }
    if (!(error[1] < 0.8 * error[0])) fail_msg("weighted error %g without importance, %g with", error[0], error[1]);
    stats_free(s);
    buf_release(&in);
    model_free(m);
    arena_release(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mixtures_are_llama_quantizes),
        cmocka_unit_test(fused_matrices_get_one_type),
        cmocka_unit_test(types_parse_or_say_what_there_is),
        cmocka_unit_test(rows_that_do_not_fit_fall_back),
        cmocka_unit_test(every_type_keeps_the_model_close),
        cmocka_unit_test(strict_refuses_before_it_writes),
        cmocka_unit_test(what_a_type_cannot_hold_is_refused),
        cmocka_unit_test(threads_do_not_change_a_byte),
        cmocka_unit_test(importance_moves_the_error_where_it_does_not_matter),
        cmocka_unit_test(nothing_grows_that_is_quantized),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
