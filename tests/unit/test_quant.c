/* Tests of lib/quant: the type of each tensor, against the choice of llama-quantize; a model quantized to each type. */
#include "tests/unit/model_samples.h"

#include "lib/quant/second_order.h"

/* ---- types ------------------------------------------------------------------------------------------------------- */

static const struct golden_model {
    const char *name;
    uint32_t layers, hidden, vocab;
    struct model_layer layer;
    bool tied, fused;
} golden_models[] = {{"smollm2", 30, 576, 512, {9, 3, 1536}, true, false},
                     {"gqa2", 20, 256, 512, {4, 2, 512}, false, false},
                     {"gqa4", 20, 256, 512, {4, 1, 512}, false, false},
                     {"deep", 80, 256, 512, {4, 2, 512}, false, false},
                     {"fused", 20, 256, 512, {4, 2, 512}, false, true}};

static struct model_config golden_config(const char *name, struct arena *a) {
    struct err e;
    const struct golden_model *g = golden_models;
    while (strcmp(g->name, name) != 0) g++;
    struct model_config c = {.arch = "llama",
                             .n_layers = g->layers,
                             .hidden = g->hidden,
                             .head_dim = 64,
                             .vocab_size = g->vocab,
                             .context = 64,
                             .tied = g->tied,
                             .norm_eps = 1e-5f,
                             .rope.theta = 10000};
    c.layers = arena_array(a, c.n_layers, sizeof *c.layers, &e);
    for (uint32_t i = 0; i < c.n_layers; i++) c.layers[i] = g->layer;
    return c;
}

static bool all_fuse(const struct model_config *c) {
    (void)c;
    return true;
}

static enum model_role role_of(const char *gguf) {
    static const struct {
        const char *name;
        enum model_role role;
    } names[] = {{"token_embd", ROLE_EMBED}, {"output", ROLE_HEAD},  {"attn_q", ROLE_Q},      {"attn_qkv", ROLE_V},
                 {"attn_k", ROLE_K},         {"attn_v", ROLE_V},     {"attn_output", ROLE_O}, {"ffn_gate", ROLE_GATE},
                 {"ffn_up", ROLE_UP},        {"ffn_down", ROLE_DOWN}};
    for (size_t i = 0; i < COUNT_OF(names); i++)
        if (!strcmp(names[i].name, gguf)) return names[i].role;
    fail_msg("no role for %s", gguf);
    return ROLE_COUNT;
}

/* "N*TYPE": the next run of layers; NULL at the end. */
static const char *next_run(char *text, char **save, uint32_t *n) {
    char *run = strtok_r(text, " ", save), *star = run ? strchr(run, '*') : NULL;
    if (!star) return NULL;
    *n = (uint32_t)strtoul(run, NULL, 10);
    return star + 1;
}

/*
 * Checks a line of tests/golden/quant/mixtures.tsv: model, mixture, matrix, types by layer, as llama-quantize chose
 * them. Where an importance matrix makes a difference, "+imatrix" follows the name; elsewhere the types with statistics
 * are those without.
 */
static void check_mixture(const char *model, const char *mixture, const char *matrix, char *types, bool weighted,
                          int *compared) {
    struct err e;
    struct arena a = {0};
    struct model_config c = golden_config(model, &a);
    struct stats *s;
    struct quant_plan plan;
    OK(stats_new(&s, &c, NULL, &e));
    struct quant_options o = {.stats = weighted ? s : NULL, .fuses_qkv = !strcmp(model, "fused") ? all_fuse : NULL};
    OK(quant_type_parse(mixture, &o.type, &e));
    OK(quant_plan_make(&plan, &c, &o, &e));
    uint32_t layer = 0, n;
    char *save = NULL;
    for (const char *t; (t = next_run(layer ? NULL : types, &save, &n)); layer += n)
        for (uint32_t i = layer; i < layer + n; i++, ++*compared) {
            long at = model_slot_index(&c, (struct model_slot){role_of(matrix), i});
            assert_true(at >= 0);
            if (strcmp(dtype_info(plan.choices[at].to)->name, t) != 0)
                fail_msg("%s %s%s %s layer %u: %s (%s), llama-quantize says %s", model, mixture,
                         weighted ? " with statistics" : "", matrix, i, dtype_info(plan.choices[at].to)->name,
                         plan.choices[at].why, t);
        }
    quant_plan_release(&plan);
    stats_free(s);
    arena_release(&a);
}

static void mixtures_are_llama_quantizes(void **state) {
    (void)state;
    FILE *f = fopen("tests/golden/quant/mixtures.tsv", "r");
    assert_non_null(f);
    char model[32], mixture[32], matrix[32], types[1024];
    int compared = 0;
    while (fscanf(f, "%31[^\t]\t%31[^\t]\t%31[^\t]\t%1023[^\n]\n", model, mixture, matrix, types) == 4) {
        char *with = strchr(mixture, '+');
        if (with) *with = 0;
        check_mixture(model, mixture, matrix, types, with != NULL, &compared);
    }
    fclose(f);
    assert_true(compared > 25000);
}

static void types_parse_or_say_what_there_is(void **state) {
    (void)state;
    struct err e;
    const struct quant_type *t;
    const char *names = quant_type_names();
    for (size_t i = 0; quant_type_at(i); i++) {
        const char *name = quant_type_at(i)->name;
        OK(quant_type_parse(name, &t, &e));
        assert_ptr_equal(t, quant_type_at(i));
        assert_memory_equal(names, name, strlen(name));
        names += strlen(name);
        assert_int_equal(*names, quant_type_at(i + 1) ? '|' : 0);
        names += *names == '|';
    }
    OK(quant_type_parse("Q4_K_M", &t, &e));
    assert_string_equal(t->name, "q4_k_m");
    OK(quant_type_parse("Q5_K", &t, &e)); /* without suffix, as in llama-quantize */
    assert_string_equal(t->name, "q5_k_m");
    assert_int_equal(quant_type_parse("q4_k_x", &t, &e), ERR_USAGE);
    assert_non_null(strstr(e.msg, "q4_k_m"));
    assert_non_null(strstr(e.msg, ", f32)")); /* the list is complete */
    unsigned dtype;
    OK(quant_dtype_parse("IQ4_XS", &dtype, &e));
    assert_int_equal(dtype, DT_IQ4_XS);
    assert_int_equal(quant_dtype_parse("q4_k_m", &dtype, &e), ERR_USAGE);
    assert_non_null(strstr(e.msg, "'q4_k_m' is a mixture"));
    assert_int_equal(quant_dtype_parse("iq1_s", &dtype, &e), ERR_USAGE);
    assert_int_equal(quant_dtype_parse("i8", &dtype, &e), ERR_USAGE);
    assert_non_null(strstr(e.msg, "unknown type 'i8'"));
}

static void rows_that_do_not_fit_fall_back(void **state) {
    (void)state;
    static const struct {
        enum dtype wanted;
        uint64_t row;
        enum dtype to;
    } cases[] = {{DT_Q4_K, 512, DT_Q4_K}, {DT_Q4_K, 576, DT_Q5_0},    {DT_Q5_K, 576, DT_Q5_1},
                 {DT_Q6_K, 576, DT_Q8_0}, {DT_Q4_K, 100, DT_F16},     {DT_Q8_0, 100, DT_F16},
                 {DT_Q8_0, 96, DT_Q8_0},  {DT_F32, 7, DT_F32},        {DT_BF16, 7, DT_BF16},
                 {DT_Q2_K, 96, DT_Q4_0},  {DT_IQ4_XS, 96, DT_IQ4_NL}, {DT_IQ2_XS, 96, DT_IQ4_NL},
                 {DT_IQ3_S, 33, DT_F16},  {DT_TQ1_0, 96, DT_Q4_0},    {DT_MXFP4, 96, DT_MXFP4}};
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        assert_int_equal(quant_fallback(cases[i].wanted, cases[i].row), cases[i].to);
}

/* ---- rules and plans --------------------------------------------------------------------------------------------- */

static bool gguf_name(const struct model_config *c, struct model_slot s, char *out) {
    (void)c;
    if (s.role != ROLE_V) return false;
    snprintf(out, TENSOR_MAX_NAME + 1, "blk.%u.attn_v.weight", s.layer);
    return true;
}

static enum dtype type_of(const struct quant_plan *p, const struct model_config *c, enum model_role role,
                          uint32_t layer) {
    return p->choices[model_slot_index(c, (struct model_slot){role, layer})].to;
}

static int plan_by_rules(struct quant_plan *p, const struct model_config *c, const char *const *texts,
                         struct quant_options o, struct err *e) {
    struct quant_rule rules[4];
    for (o.n_rules = 0; texts[o.n_rules]; o.n_rules++) {
        int rc = quant_rule_parse(texts[o.n_rules], &rules[o.n_rules], e);
        if (rc) return rc;
    }
    o.rules = rules;
    int rc = quant_type_parse("q4_k_m", &o.type, e);
    return rc ? rc : quant_plan_make(p, c, &o, e);
}

static void rules_name_types(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct quant_plan p;
    struct model_config c = golden_config("gqa2", &a);
    static const char *const texts[] = {"ffn\\.(up|down)=q8_0", "^layers.1[0-9].ffn.up=F16", "attn_v=q5_0", NULL};
    OK(plan_by_rules(&p, &c, texts, (struct quant_options){.foreign_name = gguf_name}, &e));
    assert_int_equal(type_of(&p, &c, ROLE_UP, 9), DT_Q8_0);
    assert_int_equal(type_of(&p, &c, ROLE_UP, 10), DT_F16); /* the later rule wins */
    assert_int_equal(type_of(&p, &c, ROLE_DOWN, 10), DT_Q8_0);
    assert_int_equal(type_of(&p, &c, ROLE_V, 0), DT_Q5_0);
    assert_int_equal(type_of(&p, &c, ROLE_Q, 0), DT_Q4_K);
    assert_int_equal(type_of(&p, &c, ROLE_FFN_NORM, 0), DT_F32);
    quant_plan_release(&p);
    OK(plan_by_rules(&p, &c, (const char *const[]){".=q5_0", NULL}, (struct quant_options){.head_type = DT_Q6_K}, &e));
    assert_int_equal(type_of(&p, &c, ROLE_HEAD, 0), DT_Q6_K); /* its own option wins */
    assert_int_equal(type_of(&p, &c, ROLE_EMBED, 0), DT_Q5_0);
    quant_plan_release(&p);
    static const struct {
        const char *rule, *says;
    } bad[] = {{"ffn", "'ffn' is not REGEX=TYPE"},
               {"=q4_0", "is not REGEX=TYPE"},
               {"ffn=q9", "unknown type 'q9'"},
               {"ffn=q4_k_m", "is a mixture"},
               {"ffn=iq1_m", "is read, but not made"},
               {"a(b=q4_0", "'a(b' is not a regular expression: at character 3: "},
               {"attn_v=q4_0", "'attn_v' matches no matrix"},
               {"norm=q4_0", "'norm' matches no matrix"}};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        assert_int_equal(plan_by_rules(&p, &c, (const char *const[]){bad[i].rule, NULL}, (struct quant_options){0}, &e),
                         ERR_USAGE);
        if (!strstr(e.msg, bad[i].says)) fail_msg("%s", e.msg);
    }
    arena_release(&a);
}

/* A printed plan can be read back, edited or not. */
static void plans_are_text(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct quant_plan p, again;
    struct buf text = {0};
    struct quant_options o = {0};
    struct model_config c = golden_config("smollm2", &a);
    OK(quant_type_parse("iq3_xxs", &o.type, &e));
    OK(quant_plan_make(&p, &c, &o, &e));
    OK(quant_plan_write(&p, &c, &text, &e));
    OK(buf_append(&text, "", 1, &e));
    struct quant_options from = {.plan = (const char *)text.data, .plan_name = "plan.txt"};
    OK(quant_plan_make(&again, &c, &from, &e));
    for (size_t i = 0; i < p.n; i++) assert_int_equal(p.choices[i].to, again.choices[i].to);
    quant_plan_release(&again);
    char *line = strstr((char *)text.data, "iq4_nl"); /* of the first q: rows of 576 */
    assert_non_null(line);
    memcpy(line, "  Q5_1", 6);
    OK(quant_plan_make(&again, &c, &from, &e));
    assert_int_equal(type_of(&again, &c, ROLE_Q, 0), DT_Q5_1);
    quant_plan_release(&again);
    static const struct {
        const char *find, *put, *says;
    } bad[] = {{"  Q5_1", "  q9_1", "plan.txt: line 3: unknown type 'q9_1'"},
               {"  q9_1", "q4_k_m", "plan.txt: line 3: 'q4_k_m' is a mixture"},
               {"q4_k_m", "  q4_k",
                "plan.txt: tensor 'layers.0.attn.q.weight': rows of 576 are not a whole number of q4_k's "
                "blocks of 256"},
               {"576x576", "576x577",
                "plan.txt: line 3: 'layers.0.attn.q.weight' is 576x577 here and 576x576 in this "
                "model: the plan is for another model"},
               {"layers.0.attn.q.weight", "layers.9.attn.q.weight", "is 576x577 here"},
               {"576x577", "576x576", "plan.txt: line 66: 'layers.9.attn.q.weight' is given twice"},
               {"layers.9.attn.q.weight", "layers.9.norms.weight ",
                "plan.txt: line 3: this model has no tensor "
                "'layers.9.norms.weight'"}};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        char *at = strstr((char *)text.data, bad[i].find);
        assert_non_null(at);
        memcpy(at, bad[i].put, strlen(bad[i].put));
        assert_int_equal(quant_plan_make(&again, &c, &from, &e), ERR_DATA);
        if (!strstr(e.msg, bad[i].says)) fail_msg("%s", e.msg);
    }
    static const struct {
        const char *text, *says;
    } whole[] = {{"", "plan.txt: no line for tensor 'embed.weight'"},
                 {"# nothing\n\n", "plan.txt: no line for tensor 'embed.weight'"},
                 {"norm.weight 1x576 f32\n", "plan.txt: line 1: 'norm.weight' is not a matrix"},
                 {"\nembed.weight 512x576\n", "plan.txt: line 2: 'embed.weight' without a shape and a type"}};
    for (size_t i = 0; i < COUNT_OF(whole); i++) {
        from.plan = whole[i].text;
        assert_int_equal(quant_plan_make(&again, &c, &from, &e), ERR_DATA);
        if (!strstr(e.msg, whole[i].says)) fail_msg("%s", e.msg);
    }
    quant_plan_release(&p);
    buf_release(&text);
    arena_release(&a);
}

static void strict_wants_statistics(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct quant_plan p;
    struct model_config c = golden_config("gqa2", &a);
    static const char *const types[] = {"iq2_xxs", "iq3_xxs", "q2_k_s"};
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        struct quant_options o = {.strict = true};
        OK(quant_type_parse(types[i], &o.type, &e));
        assert_int_equal(quant_plan_make(&p, &c, &o, &e), ERR_DATA);
        assert_non_null(strstr(e.msg, ", which needs --stats"));
        o.strict = false;
        OK(quant_plan_make(&p, &c, &o, &e));
        quant_plan_release(&p);
    }
    arena_release(&a);
}

/* ---- a model ----------------------------------------------------------------------------------------------------- */

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
    /* the relative error of each type on normally distributed weights plus 15%: one bit less would double it */
    static const struct {
        const char *type;
        double at_most;
    } cases[] = {{"q8_0", 0.0062},  {"q6_k", 0.0206},   {"q5_k", 0.044},    {"q5_0", 0.0495},   {"q5_1", 0.044},
                 {"q4_k_m", 0.083}, {"iq4_nl", 0.0879}, {"iq4_xs", 0.0886}, {"q4_1", 0.0905},   {"q4_0", 0.0995},
                 {"mxfp4", 0.135},  {"q3_k", 0.175},    {"iq3_s", 0.192},   {"iq3_xxs", 0.246}, {"q2_k", 0.344},
                 {"iq2_m", 0.306},  {"iq2_xs", 0.366},  {"iq2_xxs", 0.421}, {"tq1_0", 0.503},   {"tq2_0", 0.503},
                 {"bf16", 0.002},   {"f16", 0.00025},   {"f32", 0}};
    struct err e;
    struct arena a = {0};
    struct model_config c = wide_config(&a);
    struct model *m = sample_model(&c, 1), *back;
    struct buf in = saved_model(m, DT_F32);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct quant_options o = {.pure = true};
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
        /* values on the grid are unchanged */
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
    assert_true(out.len <= 64); /* at most the segment's header */
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
    model_host_value(model_param(m, ROLE_DOWN, 1))[3 * 288 + 5] = -70000;
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

/* Tensors that are quantized already get no more bits, unless that is asked for. */
static void nothing_grows_that_is_quantized(void **state) {
    (void)state;
    static const struct {
        const char *from, *to;
        const char *says;        /* NULL: accepted */
        const char *down, *head; /* resulting types of layer 1's down (rows of 512, in the mixture) and of the head */
    } cases[] = {
        {"q8_0", "q4_k_m", NULL, "q6_k", "q6_k"},
        {"q5_k", "q4_k_m", NULL, "q5_k", "q5_k"}, /* the mixture alone would use more bits */
        {"q4_1", "q4_k_m", NULL, "q4_1", "q4_1"},
        {"q4_0", "q4_k_m", NULL, "q4_0", "q4_0"}, /* equally many bits */
        {"q4_k", "q4_1", "'embed.weight' is q4_k already, 4.5 bits per weight: q4_1 would take 5 and gain nothing",
         NULL, NULL},
        {"q4_k_m", "q8_0", "is q4_k already, 4.5 bits per weight: q8_0 would take 8.5", NULL, NULL},
        {"q4_0", "f16", NULL, "f16", "f16"}, /* the quantization is undone */
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
        struct quant_options first = {.pure = true}, second = {0};
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
    /* an explicit type is not the mixture's */
    struct quant_options o = {.head_type = DT_Q8_0}, first = {.pure = true};
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

/* The relative error reported for the first tensor, the embedding. */
static int see_first(void *ctx, const struct quant_tensor_report *t, struct err *e) {
    (void)e;
    if (!*(double *)ctx) *(double *)ctx = t->relative;
    return 0;
}

/* Quantizes `in` to q4_1, and leaves the blocks of the embedding in out. */
static int quantized_embedding(const struct buf *in, bool hqq, unsigned char *out, uint64_t n, double *relative,
                               struct err *failed) {
    struct err e;
    struct quant_options o = {.pure = true, .hqq = hqq};
    struct quant_totals totals;
    struct stream_reader *r;
    struct stream_writer *w;
    struct stream_item item;
    int from = file_of(in->data, in->len), to = memory_file();
    *relative = 0;
    OK(quant_type_parse("q4_1", &o.type, &e));
    OK(stream_reader_open(&r, from, "in.rill", STREAM_MODEL, &e));
    OK(stream_writer_open(&w, to, "out.rill", NULL, &e));
    int rc = quantize_stream(r, w, &o, see_first, relative, &totals, failed);
    stream_reader_free(r);
    close(from);
    if (!rc) OK(stream_writer_finish(w, NULL, &e));
    stream_writer_free(w);
    struct buf file = contents(to);
    if (!rc) {
        int again = file_of(file.data, file.len);
        OK(stream_reader_open(&r, again, "out.rill", STREAM_MODEL, &e));
        do OK(stream_next(r, &item, &e));
        while (item.type != ITEM_TENSOR);
        OK(stream_read_tensor(r, out, n, &e));
        stream_reader_free(r);
        close(again);
    }
    buf_release(&file);
    return rc;
}

/* In compressed chunks that end anywhere. */
static struct buf compressed_model(const struct model *m, unsigned dtype) {
    struct err e;
    struct stream_writer *w;
    int fd = memory_file();
    OK(stream_writer_open(&w, fd, "model", &(struct stream_write_options){CODEC_PLANES, 1, 100000}, &e));
    OK(model_save(m, w, dtype, &e));
    OK(stream_writer_finish(w, NULL, &e));
    stream_writer_free(w);
    return contents(fd);
}

/* More elements than are read and rounded at once: the blocks must be those of the whole. */
static void a_large_tensor_is_quantized_in_parts(void **state) {
    (void)state;
    enum { VOCAB = 40001, HIDDEN = 64 };
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    c.vocab_size = VOCAB;
    struct model *m = sample_model(&c, 1), *stored;
    uint64_t bytes = VOCAB * dtype_row_bytes(DT_Q4_1, HIDDEN);
    unsigned char *want = mem_array(bytes, 1, &e), *got = mem_array(bytes, 1, &e);
    float *back = mem_array(VOCAB, HIDDEN * sizeof *back, &e);
    double relative;
    for (int hqq = 0; hqq < 2; hqq++) {
        struct buf in = hqq ? compressed_model(m, DT_BF16) : saved_model(m, DT_F32);
        OK(load_model(&in, &stored, &e));
        const float *x = model_host_value(model_param(stored, ROLE_EMBED, 0));
        double error = 0, power = 0;
        OK(tensor_rows_from_f32(DT_Q4_1, x, 0, VOCAB, HIDDEN, want, NULL, &e));
        if (hqq) hqq_improve(DT_Q4_1, x, VOCAB, HIDDEN, want);
        tensor_to_f32(DT_Q4_1, want, back, (uint64_t)VOCAB * HIDDEN);
        for (size_t i = 0; i < VOCAB * HIDDEN; i++)
            error += ((double)back[i] - x[i]) * ((double)back[i] - x[i]), power += (double)x[i] * x[i];
        OK(quantized_embedding(&in, hqq, got, bytes, &relative, &e));
        assert_memory_equal(got, want, bytes);
        assert_true(fabs(relative / sqrt(error / power) - 1) < 1e-6);
        model_free(stored);
        buf_release(&in);
    }
    /* What is wrong near the end is named as in a small tensor, but a damaged file is said to be damaged. */
    model_host_value(model_param(m, ROLE_EMBED, 0))[(VOCAB - 1) * HIDDEN + 3] = 3e30f;
    struct buf in = saved_model(m, DT_F32);
    assert_int_equal(quantized_embedding(&in, false, got, bytes, &relative, &e), ERR_DATA);
    assert_string_equal(e.msg, "in.rill: tensor 'embed.weight': row 40000: element 3 is 3e+30: q4_1 cannot hold it");
    for (size_t i = 0; i + 4 <= in.len; i++) {
        float v;
        memcpy(&v, in.data + i, sizeof v);
        if (v != 3e30f) continue;
        in.data[i] ^= 1;
        break;
    }
    assert_int_equal(quantized_embedding(&in, false, got, bytes, &relative, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "tensor 'embed.weight': checksum mismatch"));
    buf_release(&in);
    mem_free(want);
    mem_free(got);
    mem_free(back);
    model_free(m);
    arena_release(&a);
}

/* With importance, the weighted error must fall. */
static void importance_moves_the_error_where_it_does_not_matter(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = wide_config(&a);
    c.tied = true;
    struct model *m = sample_model(&c, 1), *back[2];
    for (uint32_t i = 0; i < c.vocab_size; i++) /* inputs of the matrices have channels of very different size */
        for (uint32_t k = 0; k < c.hidden; k++)
            model_host_value(model_param(m, ROLE_EMBED, 0))[i * c.hidden + k] *= k % 16 ? 0.05f : 2;
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
            double d = model_host_value(q)[i] - model_host_value(p)[i];
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

static void importance_that_f32_cannot_hold_is_refused(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = wide_config(&a);
    struct model *m = sample_model(&c, 1);
    struct stats *s = sample_stats(m, 60, 2);
    struct buf in = saved_model(m, DT_F32), out;
    struct quant_options o = {.stats = s};
    struct seen seen = {0};
    struct quant_totals totals;
    ((double *)stats_sum_sq(s, POINT_ATTN_IN, 0))[3] = 1e300;
    OK(quant_type_parse("q4_k", &o.type, &e));
    assert_int_equal(quantized(&in, &o, &out, &seen, &totals, &e), ERR_DATA);
    assert_string_equal(e.msg, "the statistics of tensor 'layers.0.attn.q.weight': the mean square of column 3 is inf");
    assert_int_equal(seen.tensors, 0);
    stats_free(s);
    buf_release(&in);
    buf_release(&out);
    model_free(m);
    arena_release(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mixtures_are_llama_quantizes),
        cmocka_unit_test(types_parse_or_say_what_there_is),
        cmocka_unit_test(rows_that_do_not_fit_fall_back),
        cmocka_unit_test(rules_name_types),
        cmocka_unit_test(plans_are_text),
        cmocka_unit_test(strict_wants_statistics),
        cmocka_unit_test(every_type_keeps_the_model_close),
        cmocka_unit_test(strict_refuses_before_it_writes),
        cmocka_unit_test(what_a_type_cannot_hold_is_refused),
        cmocka_unit_test(threads_do_not_change_a_byte),
        cmocka_unit_test(a_large_tensor_is_quantized_in_parts),
        cmocka_unit_test(importance_moves_the_error_where_it_does_not_matter),
        cmocka_unit_test(importance_that_f32_cannot_hold_is_refused),
        cmocka_unit_test(nothing_grows_that_is_quantized),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
