/* A whole model in memory: reading, initialising, writing. */
#include "lib/model/model_internal.h"

#include <math.h>
#include <stdlib.h>

/* ---- making ---------------------------------------------------------------------------------------------------- */

static int frequencies(struct model *m, const struct model_rope *r, double **out, struct err *e) {
    if (r->theta == 0) return 0;
    *out = arena_array(&m->memory, (size_t)model_rope_tables(r) * (m->config.head_dim / 2), sizeof **out, e);
    if (!*out) return e->code;
    model_inv_freq(&m->config, r, *out);
    return 0;
}

int model_new(struct model **out, struct kernel_device *device, const struct model_config *c,
              enum model_weight_format format, const void *vocab, size_t n_vocab, struct err *e) {
    struct model *m = mem_zalloc(sizeof *m, e);
    if (!m) return e->code;
    *out = m;
    m->device = device;
    m->format = format;
    int rc = model_config_copy(&m->config, c, &m->memory, e);
    if (rc) return rc;
    m->n_params = model_slot_count(c);
    m->expert_stride = model_expert_roles(c);
    m->params = arena_array(&m->memory, m->n_params, sizeof *m->params, e);
    m->by_role = arena_array(&m->memory, (size_t)c->n_layers * ROLE_COUNT, sizeof *m->by_role, e);
    if (!m->params || !m->by_role) return e->code;
    for (size_t i = 0; i < m->n_params; i++) {
        struct model_slot s = model_slot_at(c, i);
        if (s.expert == 0) m->by_role[(size_t)s.layer * ROLE_COUNT + s.role] = &m->params[i];
    }
    rc = frequencies(m, &c->rope, &m->inv_freq, e);
    if (!rc) rc = frequencies(m, &c->local_rope, &m->local_inv_freq, e);
    if (rc || !n_vocab) return rc;
    rc = buf_append(&m->vocab_bytes, vocab, n_vocab, e);
    if (!rc) rc = vocab_unpack(&m->vocab, m->vocab_bytes.data, m->vocab_bytes.len, e);
    if (rc) return err_prefix(e, "vocabulary");
    m->vocab_digest = m->vocab->digest;
    if (m->vocab->n_tokens != c->vocab_size)
        return err_set(e, ERR_DATA, "the vocabulary has %u tokens, the model %u", m->vocab->n_tokens, c->vocab_size);
    return 0;
}

static int param_alloc(const struct model *m, struct model_param *p, struct model_slot slot,
                       const struct tensor_desc *d, struct err *e) {
    p->slot = slot;
    p->desc = *d;
    p->n = tensor_elems(d);
    /* not zeroed, so that an untrusted size costs nothing until its data arrives */
    p->value = kernel_alloc(m->device, DT_F32, p->n, e);
    return kernel_has_data(p->value) ? 0 : err_prefix(e, "tensor '%s'", d->name);
}

/* ---- taking tensors from a stream, in parts that stay in cache from reading through checks to conversion --------- */

#define PART_BYTES ((size_t)1 << 20)

/* Reads the next n elements as stored, into the scratch buffer for parts. */
static int take_part(struct model_tensors *t, uint64_t n, struct err *e) {
    const struct dtype_info *type = dtype_info(t->desc.dtype);
    t->data.len = 0;
    int rc = buf_reserve(&t->data, n / type->block_elems * type->block_bytes, e);
    return rc ? rc : model_tensors_part(t, t->data.data, n, e);
}

static int load_f32(const struct model *m, struct model_param *p, struct model_tensors *t, struct err *e) {
    const uint64_t most = PART_BYTES / sizeof(float);
    bool same = t->desc.dtype == DT_F32;
    struct buf wide = {0};
    int rc = param_alloc(m, p, t->slot, &t->desc, e);
    if (!rc && !same) rc = buf_reserve(&wide, (most < p->n ? most : p->n) * sizeof(float), e);
    for (uint64_t at = 0, n; !rc && at < p->n; at += n) {
        n = p->n - at < most ? p->n - at : most;
        rc = take_part(t, n, e);
        if (!rc && !same) tensor_to_f32(t->desc.dtype, t->data.data, (float *)wide.data, n);
        if (!rc) kernel_upload(kernel_part(p->value, at), same ? t->data.data : wide.data, n);
    }
    buf_release(&wide);
    return rc;
}

/* Rows of the weight are columns of the product: each part fills whole panels. */
static int fill_matrix(const struct kernel_matrix *b, struct model_tensors *t, struct err *e) {
    enum dtype type = t->desc.dtype;
    size_t rows = PART_BYTES / dtype_row_bytes(type, b->k) / KERNEL_PANEL * KERNEL_PANEL;
    int rc = 0;
    if (rows == 0) rows = KERNEL_PANEL;
    for (size_t at = 0, n; !rc && at < b->n; at += n) {
        n = b->n - at < rows ? b->n - at : rows;
        rc = take_part(t, (uint64_t)n * b->k, e);
        if (!rc) kernel_matrix_fill(b, at, n, type, t->data.data);
    }
    return rc;
}

/* Blocks that are not packed for integer products stay as they are: each product packs them as it goes. */
static int load_packed(struct model *m, struct model_param *p, struct model_tensors *t, struct err *e) {
    const struct tensor_desc *d = &t->desc;
    size_t n = d->dims[0], k = d->dims[1];
    bool quantized = dtype_info(d->dtype)->is_quantized,
         integers = quantized && m->format == WEIGHTS_INT8 && quant_form(d->dtype);
    enum kernel_packing packing = integers ? KERNEL_PACKED_INT8 : quantized ? KERNEL_STORED : KERNEL_PACKED_BF16;
    size_t bytes = kernel_matrix_bytes(packing, d->dtype, n, k);
    struct kernel_array memory = kernel_alloc(m->device, DT_U8, bytes, e);
    if (!kernel_has_data(memory)) return err_prefix(e, "tensor '%s'", d->name);
    *p = (struct model_param){.slot = t->slot, .desc = *d, .n = tensor_elems(d)};
    p->matrix = kernel_matrix_in(memory, packing, d->dtype, n, k);
    m->n_int8 += integers;
    return fill_matrix(&p->matrix, t, e);
}

int model_load_next(struct model *m, struct model_tensors *t, bool *more, struct err *e) {
    int rc = model_tensors_open(t, more, e);
    if (rc || !*more) return rc;
    struct model_param *p = &m->params[model_slot_index(&m->config, t->slot)];
    return m->format != WEIGHTS_F32 && model_role_is_matrix(t->slot.role) ? load_packed(m, p, t, e)
                                                                          : load_f32(m, p, t, e);
}

int model_copy_embedding(struct model *m, struct stream_reader *r, const struct model_config *from,
                         struct stream_item *item, struct err *e) {
    struct model_param *to = model_param(m, ROLE_EMBED, 0);
    struct model_tensors t;
    bool more;
    model_tensors_begin(&t, r, from, item);
    int rc = model_tensors_open(&t, &more, e);
    if (!rc && (t.slot.role != ROLE_EMBED || tensor_elems(&t.desc) != to->n))
        rc = err_set(e, ERR_DATA, "tensor '%s' is not an embedding of this shape", t.desc.name);
    if (!rc) rc = model_tensors_load(&t, e);
    if (!rc) tensor_to_f32(t.desc.dtype, t.data.data, model_host_value(to), to->n);
    model_tensors_release(&t);
    return rc;
}

static void param_release(const struct model *m, struct model_param *p) {
    kernel_free(m->device, p->value);
    kernel_free(m->device, kernel_matrix_memory(&p->matrix));
    kernel_free(m->device, p->grad);
    *p = (struct model_param){0};
}

void model_drop(struct model *m, struct model_slot s) {
    param_release(m, &m->params[model_slot_index(&m->config, s)]);
}

void model_drop_all(struct model *m) {
    for (size_t i = 0; i < m->n_params; i++) param_release(m, &m->params[i]);
}

void model_free(struct model *m) {
    if (!m) return;
    if (m->params) model_drop_all(m);
    vocab_free(m->vocab);
    buf_release(&m->vocab_bytes);
    cJSON_Delete(m->meta);
    arena_release(&m->memory);
    mem_free(m);
}

enum dtype model_precision(const struct model *m) {
    return m->format == WEIGHTS_F32 ? DT_F32 : DT_BF16;
}

uint32_t model_n_tokens(const struct model *m) {
    return m->vocab ? m->vocab->n_unpadded : m->config.vocab_size;
}

int model_load(struct model **out, struct kernel_device *device, struct stream_reader *r,
               enum model_weight_format format, struct err *e) {
    struct model_head head = {0};
    struct model_tensors tensors;
    struct stream_item item;
    struct model *m = NULL;
    bool more = true;
    int rc = model_head_read(r, &head, &item, e);
    if (!rc) {
        rc = model_new(&m, device, &head.config, format, head.vocab.data, head.vocab.len, e);
        if (rc) rc = err_prefix(e, "%s", stream_reader_name(r));
    }
    if (m) model_tensors_begin(&tensors, r, &m->config, &item);
    while (!rc && more) rc = model_load_next(m, &tensors, &more, e);
    if (m) model_tensors_release(&tensors);
    if (!rc) rc = stream_drain(r, e);
    if (!rc) {
        m->meta = head.meta;
        head.meta = NULL;
        *out = m;
    } else
        model_free(m);
    model_head_release(&head);
    return rc;
}

/* Fan-in for PyTorch's uniform initialization: the number of units in LSTMs, the number of columns elsewhere. */
static uint64_t fan_of(const struct model_config *c, struct model_slot s) {
    return model_axis_size(c, model_role_in_layer(s.role) ? AXIS_UNITS : model_role_info(s.role)->cols, s.layer);
}

/* GPT-2's initialization (Radford et al. 2019, section 2.3): residual outputs shrink with depth. base NULL: no muP. */
static float init_scale(const struct model_config *c, const struct model_mup *base, struct model_slot s) {
    const struct model_role_info *role = model_role_info(s.role);
    bool lstm = c->layer_kind == LAYER_LSTM;
    double scale = role->kind == KIND_GAIN        ? 1
                   : role->kind == KIND_BIAS      ? 0
                   : lstm && s.role == ROLE_EMBED ? 1
                   : lstm                         ? 1 / sqrt(3.0 * (double)fan_of(c, s))
                   : role->to_residual            ? 0.02 / sqrt(2.0 * c->n_layers)
                                                  : 0.02;
    if (base && model_mup_is_hidden(s.role)) scale /= sqrt(model_mup_width(c, base, role->cols, s.layer));
    if (base) scale *= model_mup_factor(c, base, s);
    return (float)scale;
}

static void fill_param(const struct model_config *c, const struct model_mup *base, struct model_param *p,
                       struct rng rng) {
    enum model_role_kind kind = model_role_info(p->slot.role)->kind;
    float scale = init_scale(c, base, p->slot), x[1024];
    for (uint64_t at = 0, n; at < p->n; at += n) {
        n = p->n - at < COUNT_OF(x) ? p->n - at : COUNT_OF(x);
        for (uint64_t k = 0; k < n; k++)
            x[k] = kind == KIND_GAIN || kind == KIND_BIAS ? scale : scale * (float)rng_normal(&rng);
        kernel_upload(kernel_part(p->value, at), x, n);
    }
}

static int init_param(struct model *m, size_t i, const struct model_mup *base, uint64_t seed, struct err *e) {
    struct model_slot slot = model_slot_at(&m->config, i);
    char name[TENSOR_MAX_NAME + 1];
    uint64_t dims[2];
    unsigned rank = model_slot_shape(&m->config, slot, dims);
    struct tensor_desc d;
    int rc = tensor_desc_init(&d, model_slot_name(slot, name), DT_F32, rank, dims, e);
    if (!rc) rc = param_alloc(m, &m->params[i], slot, &d, e);
    if (!rc) fill_param(&m->config, base, &m->params[i], rng_init(seed, i));
    return rc;
}

int model_init_mup(struct model **out, struct kernel_device *device, const struct model_config *c,
                   const struct model_mup *base, const void *vocab, size_t n_vocab, uint64_t seed, struct err *e) {
    struct model *m = NULL;
    int rc = model_config_check(c, e);
    if (!rc && base) rc = model_mup_check(c, e);
    if (!rc) rc = model_new(&m, device, c, WEIGHTS_F32, vocab, n_vocab, e);
    for (size_t i = 0; !rc && i < m->n_params; i++) rc = init_param(m, i, base, seed, e);
    if (!rc) {
        m->meta = cJSON_CreateObject();
        if (!m->meta || (base && !model_mup_put(m->meta, base))) rc = err_nomem(e, "model description");
    }
    if (rc)
        model_free(m);
    else
        *out = m;
    return rc;
}

int model_init(struct model **out, struct kernel_device *device, const struct model_config *c, const void *vocab,
               size_t n_vocab, uint64_t seed, struct err *e) {
    return model_init_mup(out, device, c, NULL, vocab, n_vocab, seed, e);
}

static int need_f32(const struct model *m, const char *what, struct err *e) {
    if (m->format == WEIGHTS_F32) return 0;
    return err_set(e, ERR_USAGE, "packed weights are for inference, not for %s", what);
}

int model_enable_grad(struct model *m, struct err *e) {
    for (size_t i = 0; i < m->n_params; i++)
        if (model_enable_grad_of(m, i, e)) return e->code;
    return 0;
}

int model_enable_grad_of(struct model *m, size_t i, struct err *e) {
    struct model_param *p = &m->params[i];
    if (need_f32(m, "training", e)) return e->code;
    if (kernel_has_data(p->grad)) return 0;
    p->grad = kernel_alloc(m->device, DT_F32, p->n, e);
    if (!kernel_has_data(p->grad)) return err_prefix(e, "gradient of '%s'", p->desc.name);
    kernel_fill(p->grad, p->n, 0);
    return 0;
}

struct model_param *model_param(const struct model *m, enum model_role role, uint32_t layer) {
    return m->by_role[(size_t)layer * ROLE_COUNT + role];
}

struct model_param *model_expert_param(const struct model *m, enum model_role role, uint32_t layer, uint32_t expert) {
    struct model_param *first = model_param(m, role, layer);
    return first ? first + expert * m->expert_stride : NULL;
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

int model_save_param(const struct model_param *p, struct stream_writer *w, unsigned dtype, struct buf *scratch,
                     struct err *e) {
    struct tensor_desc d = p->desc;
    const float *value = model_host_value(p);
    if (p->grid && !dtype) {
        d.dtype = p->grid->dtype;
        return stream_write_tensor(w, &d, NULL, p->grid->blocks, e);
    }
    d.dtype = dtype ? (enum dtype)dtype : dtype_info(d.dtype)->is_quantized ? DT_F32 : d.dtype;
    if (d.dtype == DT_F32) {
        uint64_t bad = tensor_first_nonfinite(DT_F32, value, p->n);
        if (bad == p->n) return stream_write_tensor(w, &d, NULL, value, e);
        return err_set(e, ERR_DATA, "tensor '%s': element %llu is not finite", d.name, (unsigned long long)bad);
    }
    scratch->len = 0;
    int rc = buf_reserve(scratch, tensor_bytes(&d), e);
    if (!rc) rc = tensor_from_f32_checked(d.dtype, value, scratch->data, p->n, NULL, e);
    if (rc) return err_prefix(e, "tensor '%s'", d.name);
    return stream_write_tensor(w, &d, NULL, scratch->data, e);
}

int model_save(const struct model *m, struct stream_writer *w, unsigned dtype, struct err *e) {
    struct buf scratch = {0};
    int rc = need_f32(m, "saving", e);
    if (!rc) rc = model_head_write(w, &m->config, m->vocab_bytes.data, m->vocab_bytes.len, m->meta, e);
    for (size_t i = 0; !rc && i < m->n_params; i++) rc = model_save_param(&m->params[i], w, dtype, &scratch, e);
    buf_release(&scratch);
    return rc;
}

int model_check_vocab(const struct model *m, const cJSON *meta, const char *what, struct err *e) {
    const char *theirs = NULL;
    char ours[DIGEST_TEXT_SIZE];
    uint64_t size = m->config.vocab_size;
    int rc = json_opt_str(meta, "vocab", &theirs, e);
    if (!rc) rc = json_opt_u64(meta, "vocab_size", 1, MODEL_MAX_VOCAB, &size, e);
    if (rc) return err_prefix(e, "%s", what);
    if (theirs && m->vocab) {
        digest_text(m->vocab_digest, ours);
        if (strcmp(theirs, ours) != 0)
            return err_set(e, ERR_DATA,
                           "model and %s disagree: vocabulary %s against %.64s (tokenize with this model's vocabulary)",
                           what, ours, theirs);
        if (size >= model_n_tokens(m)) return 0; /* one vocabulary: the sizes differ by padding at most */
    }
    if (size != m->config.vocab_size && size != model_n_tokens(m))
        return err_set(e, ERR_DATA, "model and %s disagree: %u tokens in the vocabulary against %llu", what,
                       m->config.vocab_size, (unsigned long long)size);
    return 0;
}
