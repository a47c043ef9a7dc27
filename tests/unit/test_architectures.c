/*
 * Every architecture of the registry against transformers, and against llama.cpp where that supports it, on the tiny
 * models of tests/golden/arch, which tests/reference/make_architectures.py makes, with their logits in f32 and
 * gradients in f64. An architecture without such a model fails.
 *
 * Tolerances: logits 2e-5 of the largest; gradients 2e-5 of the largest of their tensor, but no less than 1e-7 of the
 * largest of all, since both are sums in f32; bf16 4% of the largest logit.
 */
#include <dirent.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "tests/unit/formats_samples.h"
#include "tests/unit/model_samples.h"

#include "lib/formats/arch_internal.h"

#define GOLDEN_ARCH "tests/golden/arch/"
#define STEP        7 /* every STEP-th element of a gradient is in the fixture */

/* ---- expected values --------------------------------------------------------------------------------------------- */

struct expected {
    struct mapped_file file;
    struct raw_table tensors;
    struct arena memory;
    struct model_input in;
    const float *logits; /* for a model without a head: hidden states */
    const uint32_t *labels;
    const float *weights, *pooled, *pooled_weights; /* for a model without a head; pooled is NULL without a pooler */
    double loss;
};

static bool has(const struct expected *x, const char *name) {
    return raw_table_find(&x->tensors, name) != NULL;
}

static const struct raw_tensor *want(const struct expected *x, const char *name) {
    const struct raw_tensor *t = raw_table_find(&x->tensors, name);
    if (!t) fail_msg("expected.safetensors has no '%s'", name);
    return t;
}

/* Copies a tensor, since headers may leave tensors unaligned. */
static void *copied(struct expected *x, const char *name) {
    struct err e;
    const struct raw_tensor *t = want(x, name);
    void *to = arena_array(&x->memory, t->n_bytes, 1, &e);
    assert_non_null(to);
    memcpy(to, t->data, t->n_bytes);
    return to;
}

static void open_expected(struct expected *x, const char *folder) {
    char path[600];
    struct err e;
    *x = (struct expected){.loss = 0};
    snprintf(path, sizeof path, "%s/expected.safetensors", folder);
    OK(mapped_file_open(&x->file, path, &e));
    OK(safetensors_parse(&x->tensors, x->file.data, x->file.size, &x->memory, &e));
    OK(raw_table_sort(&x->tensors, &e));
    x->in.n_positions = want(x, "tokens")->dims[0];
    x->in.n_seqs = want(x, "lengths")->dims[0];
    x->in.tokens = copied(x, "tokens");
    x->in.lengths = copied(x, "lengths");
    x->logits = copied(x, "logits");
    x->loss = *(double *)copied(x, "loss");
    if (has(x, "types")) x->in.types = copied(x, "types");
    if (has(x, "labels")) x->labels = copied(x, "labels");
    if (has(x, "weights")) x->weights = copied(x, "weights");
    if (has(x, "pooled")) x->pooled = copied(x, "pooled");
    if (has(x, "pooled")) x->pooled_weights = copied(x, "pooled_weights");
}

static void close_expected(struct expected *x) {
    mapped_file_close(&x->file);
    raw_table_release(&x->tensors);
    arena_release(&x->memory);
}

/* ---- logits ------------------------------------------------------------------------------------------------------ */

static void check_logits(const char *what, const float *got, const float *wanted, size_t n, double tolerance) {
    double worst = 0, scale = 0;
    for (size_t i = 0; i < n; i++) {
        worst = fmax(worst, fabs((double)got[i] - wanted[i]));
        scale = fmax(scale, fabs(wanted[i]));
    }
    if (!(worst <= tolerance * scale)) fail_msg("%s: logits off by %g of %g", what, worst, scale);
}

/* Width of a row of the model's output. */
static size_t row_of(const struct model *m) {
    return m->config.output == OUTPUT_NONE ? m->config.hidden
           : m->config.classes             ? m->config.classes
                                           : m->config.vocab_size;
}

static size_t output_size(const struct model *m, const struct expected *x) {
    return model_output_rows(&m->config, &x->in) * row_of(m);
}

static void check_hidden(const char *what, struct model *m, const struct expected *x, double tolerance) {
    struct err e;
    struct grad_tape *t;
    OK(grad_tape_new(&t, kernel_cpu(), false, model_precision(m), &e));
    struct grad_var *h = model_graph(m, t, &x->in, NULL, NULL, &e);
    if (!h) fail_msg("%s: %s", what, e.msg);
    check_logits(what, grad_host_value(t, h), x->logits, output_size(m, x), tolerance);
    if (m->config.pooler) {
        struct grad_var *p = model_pooled(m, t, &x->in, h, &e);
        assert_non_null(x->pooled);
        check_logits(what, grad_host_value(t, p), x->pooled, p->rows * p->cols, tolerance);
    }
    grad_tape_free(t);
}

static void check_forward(const char *what, struct model *m, const struct expected *x, double tolerance) {
    if (m->config.output == OUTPUT_NONE) {
        check_hidden(what, m, x, tolerance);
        return;
    }
    float *logits = logits_of(m, &x->in);
    check_logits(what, logits, x->logits, output_size(m, x), tolerance);
    mem_free(logits);
}

static struct model *loaded(const struct buf *stream, enum model_weight_format format) {
    struct err e;
    struct model *m;
    if (load_model_as(stream, format, &m, &e)) fail_msg("%s", e.msg);
    return m;
}

/* A layer-by-layer run must give the bits of the resident model. */
static void check_layerwise(const char *name, const struct buf *stream, const struct expected *x) {
    struct err e;
    struct stream_reader *r;
    struct model_layerwise *l;
    struct grad_tape *t;
    struct model *m = loaded(stream, WEIGHTS_F32);
    size_t n = output_size(m, x);
    float *whole = logits_of(m, &x->in);
    struct all_logits parts = {mem_array(n, sizeof(float), &e)};
    int fd = file_of(stream->data, stream->len);
    OK(stream_reader_open(&r, fd, "model", STREAM_MODEL, &e));
    OK(model_layerwise_new(&l, kernel_cpu(), r, WEIGHTS_F32, NULL, NULL, &e));
    OK(grad_tape_new(&t, kernel_cpu(), false, DT_F32, &e));
    if (model_layerwise_run(l, t, &x->in, 1, NULL, NULL, &e)) fail_msg("%s: %s", name, e.msg);
    OK(model_layerwise_logits(l, t, &x->in, 1, keep_logits, &parts, &e));
    if (memcmp(whole, parts.x, n * sizeof *whole) != 0) fail_msg("%s: layer by layer gives other bits", name);
    grad_tape_free(t);
    model_layerwise_free(l);
    stream_reader_free(r);
    close(fd);
    mem_free(whole);
    mem_free(parts.x);
    model_free(m);
}

/* Halves the weights that read from a point when that point is watched. */
struct changing {
    float *states, *dense; /* outputs of each layer [layers][positions][hidden], and dense states of one pass of two */
    uint64_t *seen;        /* per layer and point, a digest of the input */
    size_t positions, of_dense, dense_rows;
    int64_t layer;
    enum model_point point;
    size_t rows;
};

static int digest_point(void *ctx, const struct model_seen *seen, struct err *e) {
    struct changing *c = ctx;
    const float *x;
    if (seen->point != c->point || seen->positions) return 0;
    if (model_seen_f32(seen, &x, e)) return e->code;
    uint64_t *d = &c->seen[(size_t)c->layer * POINT_COUNT + c->point];
    for (size_t i = 0; i < seen->rows * seen->cols; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        *d = (*d ^ bits) * 0x100000001b3; /* FNV-1a, a word at a time */
    }
    c->rows += seen->rows;
    return 0;
}

static int count_dense(void *ctx, const struct model_seen *seen, struct err *e) {
    struct changing *c = ctx;
    (void)e;
    if (seen->point == POINT_LAYER) c->dense_rows += seen->rows;
    return 0;
}

static void halve_readers(struct model *m, uint32_t layer, enum model_point point) {
    for (size_t i = 0; i < m->n_params; i++) {
        struct model_slot s = m->params[i].slot;
        if (model_role_in_layer(s.role) && s.layer == layer && model_role_is_matrix(s.role) &&
            model_role_info(s.role)->input == point)
            kernel_scale(m->params[i].value, m->params[i].n, 0.5f);
    }
}

static int change_in_order(void *ctx, struct model_layerwise *l, int64_t layer, struct err *e) {
    static const enum model_point points[] = {POINT_ATTN_IN, POINT_O_IN, POINT_FFN_IN, POINT_DOWN_IN};
    struct changing *c = ctx;
    struct model *m = model_layerwise_held(l);
    size_t n = m->config.hidden;
    if (layer > 0)
        memcpy(c->states + (size_t)(layer - 1) * c->positions * n, model_layerwise_states(l, STATES_NOW),
               c->positions * n * sizeof(float));
    if (layer < 0 || layer == m->config.n_layers) return 0;
    memcpy(c->dense + (size_t)layer * c->of_dense * n, model_layerwise_dense_output(l),
           c->of_dense * n * sizeof(float));
    c->layer = layer;
    for (size_t i = 0; i < COUNT_OF(points); i++) {
        if (!model_point_cols(&m->config, points[i], (uint32_t)layer)) continue;
        c->point = points[i];
        c->rows = 0;
        if (model_layerwise_watch(l, STATES_NOW, &points[i], digest_point, c, e)) return e->code;
        assert_int_equal(c->rows, c->positions);
        halve_readers(m, (uint32_t)layer, points[i]);
    }
    return 0;
}

/* Resuming from the last watched point must give the bits of rerunning from the start; dense states of every second
 * pass must equal those of a run that returns all. */
static void check_changes(const char *name, const struct buf *stream, enum dtype precision) {
    enum { SEQS = 5, LENGTH = 40 };
    struct err e;
    struct changing c[2];
    struct model *m = loaded(stream, WEIGHTS_F32);
    uint32_t length = m->config.context < LENGTH ? m->config.context : LENGTH;
    uint32_t tokens[SEQS * LENGTH], lengths[] = {length, length, length, length, length};
    for (size_t i = 0; i < SEQS * LENGTH; i++) tokens[i] = (uint32_t)(i * 7 + i / 3) % model_n_tokens(m);
    struct model_input in[SEQS]; /* passes of one sequence each */
    for (size_t i = 0; i < SEQS; i++) in[i] = (struct model_input){length, 1, tokens + i * length, lengths};
    size_t layers = m->config.n_layers, n = layers * SEQS * length * m->config.hidden;
    for (int k = 0; k < 2; k++) {
        struct stream_reader *r;
        struct model_layerwise *l;
        struct grad_tape *t;
        c[k] = (struct changing){.states = mem_array(n, sizeof(float), &e),
                                 .dense = mem_array(n, sizeof(float), &e),
                                 .seen = mem_array(layers * POINT_COUNT, sizeof(uint64_t), &e),
                                 .positions = SEQS * length,
                                 .of_dense = (k ? 3 : SEQS) * length};
        memset(c[k].seen, 0, layers * POINT_COUNT * sizeof(uint64_t));
        struct model_changes how = {.dense = true,
                                    .visit = change_in_order,
                                    .ctx = &c[k],
                                    .dense_every = k ? 2 : 1,
                                    .dense_tap = count_dense,
                                    .in_order = k};
        int fd = file_of(stream->data, stream->len);
        OK(stream_reader_open(&r, fd, "model", STREAM_MODEL, &e));
        OK(model_layerwise_new(&l, kernel_cpu(), r, WEIGHTS_F32, NULL, NULL, &e));
        OK(grad_tape_new(&t, kernel_cpu(), false, precision, &e));
        if (model_layerwise_change(l, t, in, SEQS, &how, &e)) fail_msg("%s: %s", name, e.msg);
        assert_int_equal(c[k].dense_rows, layers * c[k].of_dense);
        grad_tape_free(t);
        model_layerwise_free(l);
        stream_reader_free(r);
        close(fd);
    }
    if (memcmp(c[0].states, c[1].states, n * sizeof(float)) != 0) fail_msg("%s: other states in several goes", name);
    if (memcmp(c[0].seen, c[1].seen, layers * POINT_COUNT * sizeof(uint64_t)) != 0)
        fail_msg("%s: other inputs in several goes", name);
    size_t row = (size_t)length * m->config.hidden;
    for (size_t i = 0; i < layers; i++)
        for (size_t s = 0; s < 3; s++)
            assert_memory_equal(c[0].dense + (i * SEQS + 2 * s) * row, c[1].dense + (i * 3 + s) * row,
                                row * sizeof(float));
    for (int k = 0; k < 2; k++) {
        mem_free(c[k].states);
        mem_free(c[k].dense);
        mem_free(c[k].seen);
    }
    model_free(m);
}

/* ---- decoding from caches ---------------------------------------------------------------------------------------- */

struct chosen {
    uint32_t tokens[2][64];
    size_t n[2];
};

static int keep_chosen(void *ctx, uint64_t seq, const uint32_t *prompt, size_t n_prompt, const uint32_t *made, size_t n,
                       struct err *e) {
    struct chosen *c = ctx;
    (void)prompt, (void)n_prompt, (void)e;
    memcpy(c->tokens[seq], made, n * sizeof *made);
    c->n[seq] = n;
    return 0;
}

/* Greedy generation, a token at a time from a cache shared with another sequence, must choose what the logits of the
 * whole sequence choose. */
static void check_decoding(const char *name, struct model *m) {
    enum { NEW = 30 };
    static const uint32_t prompts[] = {7, 3, 11, 5, 2, 9, 7}, lengths[] = {5, 2};
    struct model_sampling how = {.top_p = 1, .max_new = NEW};
    struct model_input in = {7, 2, prompts, lengths};
    struct chosen made = {.n = {0}};
    struct err e;
    OK(generate_all(m, &in, 0, &how, keep_chosen, &made, &e));
    for (size_t s = 0, first = 0; s < 2; first += lengths[s++]) {
        uint32_t tokens[64], length = lengths[s], best;
        struct model_input whole = {length, 1, tokens, &length};
        memcpy(tokens, prompts + first, length * sizeof *tokens);
        assert_int_equal(made.n[s], NEW);
        for (uint32_t i = 0; i < NEW; i++, whole.n_positions = ++length) {
            float *logits = logits_of(m, &whole);
            kernel_argmax(&best, kernel_f32(logits + (length - 1) * row_of(m)), 1, row_of(m));
            mem_free(logits);
            if (best != made.tokens[s][i]) fail_msg("%s: sequence %zu, token %u is another from the cache", name, s, i);
            tokens[length] = best;
        }
    }
}

/* ---- gradients --------------------------------------------------------------------------------------------------- */

struct labels {
    const uint32_t *label; /* UINT32_MAX: none */
    float weight;
    double total;
};

static int label_loss(void *ctx, size_t first, size_t rows, size_t vocab, struct kernel_array logits,
                      struct kernel_array dlogits, struct err *e) {
    struct labels *l = ctx;
    struct kernel_loss how = {1, 0, 1};
    struct kernel_target target = {.label = l->label + first};
    float *weight = mem_array(rows, sizeof *weight, e);
    double *ce = mem_array(rows, sizeof *ce, e);
    for (size_t i = 0; i < rows; i++) weight[i] = l->weight;
    kernel_distill_loss(&how, &target, weight, logits, rows, vocab, NULL, ce, dlogits);
    for (size_t i = 0; i < rows; i++)
        if (l->label[first + i] != UINT32_MAX) l->total += l->weight * ce[i];
    mem_free(weight);
    mem_free(ce);
    return 0;
}

static uint32_t *labels_of(const struct model *m, const struct expected *x, size_t *n) {
    struct err e;
    const struct model_input *in = &x->in;
    size_t at = 0, rows = model_output_rows(&m->config, in);
    uint32_t *label = mem_array(rows, sizeof *label, &e);
    *n = 0;
    for (size_t i = 0; x->labels && i < rows; i++) {
        label[i] = x->labels[i];
        *n += label[i] != UINT32_MAX;
    }
    if (x->labels) return label;
    for (size_t s = 0; s < in->n_seqs; s++)
        for (uint32_t i = 0; i < in->lengths[s]; i++, at++) {
            label[at] = i + 1 < in->lengths[s] ? in->tokens[at + 1] : UINT32_MAX;
            *n += label[at] != UINT32_MAX;
        }
    return label;
}

/* Gradients of all slots of a tensor of the file, in the order of that tensor. */
static float *foreign_gradient(struct model *m, const struct arch_tensors *names, struct model_slot s, char *name,
                               uint64_t *n) {
    struct err e;
    struct arch_place of, place;
    uint64_t dims[3];
    assert_true(arch_place(names, NULL, &m->config, s, &of));
    unsigned rank = arch_foreign_shape(&m->config, s, &of, dims);
    *n = 1;
    for (unsigned i = 0; i < rank; i++) *n *= dims[i];
    float *g = mem_array(*n, sizeof *g, &e);
    snprintf(name, TENSOR_MAX_NAME + 16, "grad.%s", of.name);
    for (size_t i = 0; i < m->n_params; i++) {
        struct model_param *p = &m->params[i];
        if (!arch_place(names, NULL, &m->config, p->slot, &place) || strcmp(place.name, of.name) != 0) continue;
        uint64_t rows = p->desc.dims[0], cols = p->desc.rank == 2 ? p->desc.dims[1] : 1;
        arch_scatter(&place, DT_F32, rows, cols, model_host_grad(p), g);
    }
    return g;
}

static void check_gradient(const char *model, const char *name, const float *got, uint64_t n, const float *wanted,
                           double tolerance, double largest_of_all) {
    double largest = 0;
    for (uint64_t i = 0; i * STEP < n; i++) largest = fmax(largest, fabs(wanted[i]));
    for (uint64_t i = 0; i * STEP < n; i++)
        if (fabs((double)got[i * STEP] - wanted[i]) > fmax(tolerance * largest, 1e-7 * largest_of_all))
            fail_msg("%s: '%s' element %llu is %.9g, should be %.9g (largest %.3g)", model, name,
                     (unsigned long long)(i * STEP), (double)got[i * STEP], (double)wanted[i], largest);
}

static double largest_gradient(struct expected *x) {
    double largest = 0;
    for (size_t i = 0; i < x->tensors.n; i++) {
        const struct raw_tensor *t = &x->tensors.items[i];
        if (strncmp(t->name, "grad.", 5) != 0) continue;
        const float *g = copied(x, t->name);
        for (uint64_t k = 0; k < t->n_bytes / sizeof *g; k++) largest = fmax(largest, fabs(g[k]));
    }
    return largest;
}

/* The mean cross-entropy of the labels. */
static double learn_labels(struct model *m, struct grad_tape *t, const struct expected *x, struct grad_var *h) {
    size_t n_labels;
    uint32_t *label = labels_of(m, x, &n_labels);
    struct labels loss = {label, 1 / (float)n_labels, 0};
    struct grad_head head = model_logits_head(m, t);
    assert_true(grad_head(t, h, &head, label_loss, &loss));
    mem_free(label);
    return loss.total;
}

/* The sum of hidden states times weights. */
static double learn_weights(struct grad_tape *t, struct grad_var *h, const float *weights) {
    double total = 0;
    const float *value = grad_host_value(t, h);
    float *g = kernel_host(grad_of(t, h), h->rows * h->cols);
    for (size_t i = 0; i < h->rows * h->cols; i++) {
        total += (double)value[i] * weights[i];
        g[i] += weights[i];
    }
    return total;
}

static double learn(struct model *m, struct grad_tape *t, const struct expected *x, struct grad_var *h) {
    struct err e;
    if (m->config.output != OUTPUT_NONE) return learn_labels(m, t, x, h);
    double pooled = m->config.pooler ? learn_weights(t, model_pooled(m, t, &x->in, h, &e), x->pooled_weights) : 0;
    return pooled + learn_weights(t, h, x->weights);
}

static void check_gradients(const char *model, const struct buf *stream, struct expected *x, bool recompute) {
    struct err e;
    struct grad_tape *t;
    struct model *m = loaded(stream, WEIGHTS_F32);
    const struct arch *arch;
    OK(arch_of_config(&m->config, &arch, &e));
    OK(model_enable_grad(m, &e));
    OK(grad_tape_new(&t, kernel_cpu(), true, DT_F32, &e));
    grad_recompute(t, recompute);
    struct grad_var *h = model_graph(m, t, &x->in, NULL, NULL, &e);
    if (!h) fail_msg("%s: %s", model, e.msg);
    double loss = learn(m, t, x, h);
    grad_backward(t);
    OK(grad_error(t, &e));
    if (fabs(loss - x->loss) > 1e-5 * fabs(x->loss)) fail_msg("%s: loss %.9g, should be %.9g", model, loss, x->loss);
    double largest = largest_gradient(x), tolerance = m->config.output == OUTPUT_TOKEN_CLASSES ? 1e-5 : 2e-5;
    for (size_t i = 0; i < m->n_params; i++) {
        char name[TENSOR_MAX_NAME + 16];
        uint64_t n;
        float *g = foreign_gradient(m, &arch->hf.tensors, m->params[i].slot, name, &n);
        check_gradient(model, name, g, n, copied(x, name), tolerance, largest);
        mem_free(g);
    }
    grad_tape_free(t);
    model_free(m);
}

/* ---- export and import ------------------------------------------------------------------------------------------- */

static void check_safetensors(const char *name, const struct buf *stream) {
    struct err e;
    char folder[64], path[128];
    int fd;
    temp_folder(folder);
    snprintf(path, sizeof path, "%s/model", folder);
    struct stream_map *map = map_of(stream, &fd);
    if (safetensors_export(map, path, 0, &e)) fail_msg("%s: %s", name, e.msg);
    stream_map_free(map);
    close(fd);
    struct foreign_options o = {.no_tokenizer = true};
    struct buf again = imported_with(path, 0, &o);
    assert_same_bytes(stream, &again);
    buf_release(&again);
    remove_folder(folder);
}

static void check_gguf(const char *name, const struct buf *stream, const struct expected *x) {
    struct err e, why;
    struct buf gguf = {0};
    struct model *m = loaded(stream, WEIGHTS_F32);
    int can = target_check(TARGET_LLAMA_CPP, &m->config, &why);
    int rc = export_gguf(stream, &gguf, &e);
    if (can) {
        assert_int_equal(rc, ERR_DATA);
        assert_string_equal(e.msg, why.msg);
    } else {
        if (rc) fail_msg("%s: %s", name, e.msg);
        struct foreign_model *f;
        if (foreign_open_gguf(&f, gguf.data, gguf.len, NULL, &e)) fail_msg("%s as GGUF: %s", name, e.msg);
        struct buf back = foreign_stream(f, 0);
        foreign_close(f);
        struct model *again = loaded(&back, WEIGHTS_F32);
        assert_string_equal(again->config.arch, m->config.arch);
        check_forward(name, again, x, 2e-5);
        model_free(again);
        buf_release(&back);
    }
    buf_release(&gguf);
    model_free(m);
}

/* ---- llama.cpp --------------------------------------------------------------------------------------------------- */

/* Compares with what libllama makes of our GGUF (tests/reference/compare_llama_cpp.py), for models that it computes
 * exactly: it has no token types, and uses the tanh form for every GELU. */
static void check_llama_cpp(const char *name, const char *folder, const struct buf *stream, struct expected *x) {
    char path[600];
    struct err e, why;
    struct mapped_file file;
    struct raw_table tensors = {0};
    struct model *m = loaded(stream, WEIGHTS_F32);
    bool windows_off = strncmp(name, "phi3", 4) == 0 && m->config.layers[0].window;
    bool can = target_check(TARGET_LLAMA_CPP, &m->config, &why) == 0 && !windows_off;
    snprintf(path, sizeof path, "%s/llama_cpp.safetensors", folder);
    if (!can && file_exists(path)) fail_msg("%s is there, but llama.cpp does not load the model", path);
    if (can && !file_exists(path)) fail_msg("%s is missing: compare_llama_cpp.py --exact --write %s", path, name);
    if (file_exists(path)) {
        OK(mapped_file_open(&file, path, &e));
        OK(safetensors_parse(&tensors, file.data, file.size, &x->memory, &e));
        float *logits = arena_array(&x->memory, tensors.items[0].n_bytes, 1, &e);
        memcpy(logits, tensors.items[0].data, tensors.items[0].n_bytes);
        assert_int_equal(tensors.items[0].n_bytes, output_size(m, x) * sizeof *logits);
        struct expected by_llama = {.in = x->in, .logits = logits};
        by_llama.in.types = NULL;
        if (m->config.act == ACT_GELU) m->config.act = ACT_GELU_TANH;
        m->config.pooler = m->config.pooler && m->config.output != OUTPUT_NONE;
        check_forward(path, m, &by_llama, 2e-5);
        raw_table_release(&tensors);
        mapped_file_close(&file);
    }
    model_free(m);
}

/* ---- all architectures ------------------------------------------------------------------------------------------- */

static void check_architecture(const char *name) {
    char folder[512];
    struct expected x;
    snprintf(folder, sizeof folder, GOLDEN_ARCH "%s", name);
    open_expected(&x, folder);
    struct foreign_options o = {.no_tokenizer = true};
    struct buf stream = imported_with(folder, 0, &o);
    struct model *m = loaded(&stream, WEIGHTS_F32), *bf16 = loaded(&stream, WEIGHTS_PACKED);
    check_forward(name, m, &x, 2e-5);
    check_forward(name, bf16, &x, 0.04);
    if (m->config.output != OUTPUT_NONE) check_layerwise(name, &stream, &x);
    check_changes(name, &stream, DT_F32);
    check_changes(name, &stream, DT_BF16);
    if (!model_check_next_token(&m->config, &(struct err){0})) check_decoding(name, m);
    check_gradients(name, &stream, &x, false);
    check_gradients(name, &stream, &x, true);
    check_safetensors(name, &stream);
    check_gguf(name, &stream, &x);
    check_llama_cpp(name, folder, &stream, &x);
    model_free(m);
    model_free(bf16);
    buf_release(&stream);
    close_expected(&x);
}

static int visible_entry(const struct dirent *d) {
    return d->d_name[0] != '.';
}

/* Whether the folder is NAME or NAME-variant. */
static bool is_of(const char *folder, const char *arch) {
    size_t n = strlen(arch);
    return strncmp(folder, arch, n) == 0 && (folder[n] == 0 || folder[n] == '-');
}

static void architectures_are_transformers(void **state) {
    (void)state;
    struct dirent **folders;
    int n = scandir(GOLDEN_ARCH, &folders, visible_entry, alphasort);
    assert_true(n > 0);
    struct arch_summary a;
    for (size_t i = 0; arch_summary(i, &a); i++) {
        bool found = false;
        for (int k = 0; k < n && !found; k++) found = is_of(folders[k]->d_name, a.name);
        if (!found) fail_msg("no model in " GOLDEN_ARCH " for architecture %s", a.name);
    }
    for (int k = 0; k < n; k++) {
        check_architecture(folders[k]->d_name);
        free(folders[k]);
    }
    free(folders);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(architectures_are_transformers),
    };
    return cmocka_run_group_tests_name("architectures", tests, NULL, NULL);
}
