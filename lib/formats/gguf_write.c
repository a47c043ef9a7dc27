/*
 * GGUF v3 as llama.cpp loads it. The header needs every shape before the first byte of data, so the stream is read by
 * random access; the file itself is written from front to back, and can be a pipe.
 */
#include "lib/formats/formats_internal.h"

#define ALIGNMENT GGUF_DEFAULT_ALIGNMENT

/* ---- keys: one failed put makes all further ones do nothing, and is asked for once ----------------------------- */

struct header {
    struct buf bytes;
    uint64_t n_keys;
    int rc;
    struct err *e;
    char prefix[32]; /* "llama." */
};

static void put(struct header *h, const void *data, size_t n) {
    if (!h->rc) h->rc = buf_append(&h->bytes, data, n, h->e);
}

static void put_u32(struct header *h, uint32_t v) {
    put(h, &v, sizeof v);
}

static void put_u64(struct header *h, uint64_t v) {
    put(h, &v, sizeof v);
}

static void put_string(struct header *h, const void *s, size_t n) {
    put_u64(h, n);
    put(h, s, n);
}

/* A key that begins with a dot belongs to the architecture. */
static void put_key(struct header *h, const char *key, enum gguf_type type) {
    char full[128];
    snprintf(full, sizeof full, "%s%s", *key == '.' ? h->prefix : "", key);
    put_string(h, full, strlen(full));
    put_u32(h, type);
    h->n_keys++;
}

static void key_u32(struct header *h, const char *key, uint32_t v) {
    put_key(h, key, GGUF_U32);
    put_u32(h, v);
}

static void key_f32(struct header *h, const char *key, double v) {
    float f = (float)v;
    put_key(h, key, GGUF_F32);
    put(h, &f, sizeof f);
}

static void key_f64(struct header *h, const char *key, double v) {
    put_key(h, key, GGUF_F64);
    put(h, &v, sizeof v);
}

static void key_bool(struct header *h, const char *key, bool v) {
    unsigned char byte = v;
    put_key(h, key, GGUF_BOOL);
    put(h, &byte, 1);
}

static void key_string(struct header *h, const char *key, const char *v) {
    put_key(h, key, GGUF_STRING);
    put_string(h, v, strlen(v));
}

static void key_array(struct header *h, const char *key, enum gguf_type type, uint64_t n) {
    put_key(h, key, GGUF_ARRAY);
    put_u32(h, type);
    put_u64(h, n);
}

/* ---- which architecture ---- */

/*
 * llama.cpp's llama and qwen2 have one shape for all layers, and its qwen2 wants heads as wide as the residual stream
 * and takes no rope_freqs.weight. What it cannot hold goes out as deci: llama with a shape per layer, optional biases,
 * and the same arithmetic.
 */
static bool needs_deci(const struct model_config *c) {
    for (uint32_t i = 1; i < c->n_layers; i++)
        if (memcmp(&c->layers[i], &c->layers[0], sizeof *c->layers) != 0) return true;
    return c->arch == ARCH_QWEN2 &&
           ((uint64_t)c->layers[0].n_heads * c->head_dim != c->hidden || c->rope_scaling == ROPE_LLAMA3);
}

static bool is_interleaved(const struct model_config *c) {
    return c->arch != ARCH_QWEN2 || needs_deci(c);
}

/* ---- types ---- */

/* Vectors are always f32: llama.cpp's norms and biases know nothing else. */
static enum dtype type_in_file(struct model_slot s, const struct tensor_desc *d) {
    return model_role_is_matrix(s.role) ? d->dtype : DT_F32;
}

static int count_types(struct export_source *x, uint32_t *file_type, bool *quantized, struct err *e) {
    struct gguf_label label = {0};
    for (size_t i = 0; i < model_slot_count(&x->config); i++) {
        struct model_slot s = model_slot_at(&x->config, i);
        struct stream_map_entry entry;
        size_t number;
        int rc = export_find(x, s, &entry, &number, e);
        if (rc) return rc;
        enum dtype dtype = type_in_file(s, &entry.desc);
        if (!gguf_has_weights_of(dtype))
            return err_set(e, ERR_DATA,
                           "tensor '%s' is of type %s, which llama.cpp has no weights of (quantize it first)",
                           entry.desc.name, dtype_info(dtype)->name);
        *quantized = *quantized || dtype_info(dtype)->is_quantized;
        gguf_label_add(&label, s, dtype, tensor_row_elems(&entry.desc), tensor_elems(&entry.desc));
    }
    *file_type = gguf_label_file_type(&label);
    return 0;
}

/* ---- keys of the model ---- */

static int put_general(struct header *h, struct export_source *x, const char *name, struct err *e) {
    uint32_t file_type = 0;
    bool quantized = false;
    int rc = count_types(x, &file_type, &quantized, e);
    if (rc) return rc;
    const struct model_config *c = &x->config;
    const char *arch = needs_deci(c) ? "deci" : model_arch_name(c->arch);
    snprintf(h->prefix, sizeof h->prefix, "%s", arch);
    key_string(h, "general.architecture", arch);
    key_string(h, "general.type", "model");
    const cJSON *general = cJSON_GetObjectItemCaseSensitive(x->meta, "general");
    for (const char *const *key = gguf_general_keys; *key; key++) {
        const char *value = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(general, *key));
        if (name && strcmp(*key, "name") == 0) value = name;
        char full[64];
        snprintf(full, sizeof full, "general.%s", *key);
        if (value) key_string(h, full, value);
    }
    char size[MODEL_SIZE_LABEL];
    key_string(h, "general.size_label", model_size_label(model_parameters(c), size));
    key_u32(h, "general.file_type", file_type);
    if (quantized) key_u32(h, "general.quantization_version", 2);
    key_u32(h, "general.alignment", ALIGNMENT);
    if (strcmp(arch, "deci") == 0 && c->arch != ARCH_LLAMA)
        key_string(h, "rill.architecture", model_arch_name(c->arch));
    return h->rc;
}

static uint32_t layer_number(const struct model_layer *l, size_t offset) {
    return *(const uint32_t *)((const char *)l + offset);
}

static void put_per_layer(struct header *h, const char *key, const struct model_config *c, size_t offset) {
    if (!needs_deci(c)) {
        key_u32(h, key, layer_number(&c->layers[0], offset));
        return;
    }
    key_array(h, key, GGUF_U32, c->n_layers);
    for (uint32_t i = 0; i < c->n_layers; i++) put_u32(h, layer_number(&c->layers[i], offset));
}

static bool fits_f32(double v) {
    return (double)(float)v == v;
}

/* GGUF's numbers are f32, and llama3's parameters have no keys at all: what would be lost goes into keys of our own. */
static void put_rope(struct header *h, const struct model_config *c) {
    key_f32(h, ".rope.freq_base", c->rope_theta);
    key_u32(h, ".rope.dimension_count", c->head_dim);
    if (!fits_f32(c->rope_theta)) key_f64(h, "rill.rope.theta", c->rope_theta);
    if (c->rope_scaling == ROPE_LINEAR) {
        key_string(h, ".rope.scaling.type", "linear");
        key_f32(h, ".rope.scaling.factor", c->rope_factor);
        if (!fits_f32(c->rope_factor)) key_f64(h, "rill.rope.factor", c->rope_factor);
    }
    if (c->rope_scaling == ROPE_LLAMA3) {
        key_f64(h, "rill.rope.factor", c->rope_factor);
        key_f64(h, "rill.rope.low_freq_factor", c->rope_low_freq);
        key_f64(h, "rill.rope.high_freq_factor", c->rope_high_freq);
        key_u32(h, "rill.rope.original_context", c->rope_original_context);
    }
}

static void put_model(struct header *h, const struct model_config *c) {
    key_u32(h, ".block_count", c->n_layers);
    key_u32(h, ".context_length", c->context);
    key_u32(h, ".embedding_length", c->hidden);
    put_per_layer(h, ".feed_forward_length", c, offsetof(struct model_layer, ffn));
    put_per_layer(h, ".attention.head_count", c, offsetof(struct model_layer, n_heads));
    put_per_layer(h, ".attention.head_count_kv", c, offsetof(struct model_layer, n_kv_heads));
    key_u32(h, ".attention.key_length", c->head_dim);
    key_u32(h, ".attention.value_length", c->head_dim);
    key_f32(h, ".attention.layer_norm_rms_epsilon", (double)c->norm_eps);
    put_rope(h, c);
    key_u32(h, ".vocab_size", c->vocab_size);
}

/* ---- keys of the tokenizer ---- */

/* Unused tokens need a text of their own, too. No two ids can get the same one. */
static void put_placeholder(struct header *h, uint32_t id, const struct spellings *taken, struct buf *scratch) {
    char start[32];
    snprintf(start, sizeof start, "[PAD%u", id);
    scratch->len = 0;
    if (!h->rc) h->rc = buf_append(scratch, start, strlen(start), h->e);
    if (!h->rc) h->rc = buf_append(scratch, "]", 2, h->e);
    while (!h->rc && spellings_has(taken, (const char *)scratch->data)) {
        scratch->len -= 2;
        h->rc = buf_append(scratch, "_]", 3, h->e);
    }
    if (!h->rc) put_string(h, scratch->data, scratch->len - 1);
}

static void put_piece(struct header *h, const struct vocab *v, uint32_t id, const struct spellings *taken,
                      struct buf *scratch) {
    if (v->tokens[id].flags & TOKEN_UNUSED) {
        put_placeholder(h, id, taken, scratch);
        return;
    }
    scratch->len = 0;
    if (!h->rc) h->rc = gguf_put_piece(v, id, scratch, h->e);
    put_string(h, scratch->data, scratch->len);
}

static void put_tokens(struct header *h, const struct vocab *v, struct buf *scratch) {
    bool types_say_all = true;
    struct spellings taken = {0};
    if (!h->rc) h->rc = spellings_make(&taken, v, h->e);
    key_array(h, "tokenizer.ggml.tokens", GGUF_STRING, v->n_tokens);
    for (uint32_t i = 0; i < v->n_tokens && !h->rc; i++) put_piece(h, v, i, &taken, scratch);
    spellings_release(&taken);
    key_array(h, "tokenizer.ggml.token_type", GGUF_I32, v->n_tokens);
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        put_u32(h, gguf_token_type(v, i));
        types_say_all = types_say_all && gguf_type_says_all(v, i);
    }
    if (types_say_all) return;
    key_array(h, "rill.tokenizer.flags", GGUF_U32, v->n_tokens);
    for (uint32_t i = 0; i < v->n_tokens; i++) put_u32(h, v->tokens[i].flags);
}

static void put_merges(struct header *h, const struct vocab *v, struct buf *scratch) {
    key_array(h, "tokenizer.ggml.merges", GGUF_STRING, v->n_merges);
    for (uint32_t i = 0; i < v->n_merges && !h->rc; i++) {
        scratch->len = 0;
        h->rc = vocab_spell(v, v->merges[i].left, scratch, h->e);
        if (!h->rc) h->rc = buf_append(scratch, " ", 1, h->e);
        if (!h->rc) h->rc = vocab_spell(v, v->merges[i].right, scratch, h->e);
        put_string(h, scratch->data, scratch->len);
    }
}

static bool is_end(const struct vocab *v, uint32_t id) {
    for (uint32_t i = 0; i < v->n_ends; i++)
        if (v->ends[i] == id) return true;
    return false;
}

/* Are the ends eos and what a reader takes for an end by its text? */
static bool texts_say_all(const struct vocab *v) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        const struct token *t = &v->tokens[i];
        bool ends = i == v->eos || (t->n_bytes && gguf_text_ends(t->bytes, t->n_bytes));
        if (ends && !is_end(v, i)) return false;
        n += ends;
    }
    return n == v->n_ends;
}

/* llama.cpp knows the end of a text, of a turn and of a message; all of them stand in a list. */
static void put_ends(struct header *h, const struct vocab *v) {
    static const char *const keys[] = {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
    size_t k = 0;
    if (texts_say_all(v)) return;
    for (uint32_t i = 0; i < v->n_ends && k < COUNT_OF(keys); i++)
        if (v->ends[i] != v->eos) key_u32(h, keys[k++], v->ends[i]);
    key_array(h, GGUF_ENDS_KEY, GGUF_I32, v->n_ends);
    if (v->eos != TOKEN_NONE) put_u32(h, v->eos);
    for (uint32_t i = 0; i < v->n_ends; i++)
        if (v->ends[i] != v->eos) put_u32(h, v->ends[i]);
}

static void put_settings(struct header *h, const struct vocab *v) {
    bool bert = v->kind == TEXT_WORDPIECE;
    const struct {
        const char *key;
        uint32_t id;
    } ids[] = {{"tokenizer.ggml.bos_token_id", v->bos},
               {bert ? "tokenizer.ggml.seperator_token_id" : "tokenizer.ggml.eos_token_id", v->eos},
               {"tokenizer.ggml.cls_token_id", bert ? v->bos : TOKEN_NONE},
               {"tokenizer.ggml.unknown_token_id", v->unk},
               {"rill.tokenizer.unk", v->kind == TEXT_BYTE_BPE ? v->unk : TOKEN_NONE},
               {"tokenizer.ggml.padding_token_id", v->pad}};
    for (size_t i = 0; i < COUNT_OF(ids); i++)
        if (ids[i].id != TOKEN_NONE) key_u32(h, ids[i].key, ids[i].id);
    put_ends(h, v);
    key_bool(h, "tokenizer.ggml.add_bos_token", v->add_bos);
    key_bool(h, bert ? "tokenizer.ggml.add_sep_token" : "tokenizer.ggml.add_eos_token", v->add_eos);
    if (v->nfc != pre_implies_nfc(v->pre)) key_bool(h, "rill.tokenizer.nfc", v->nfc);
    if (v->ignore_merges != pre_implies_ignore_merges(v->pre))
        key_bool(h, "rill.tokenizer.ignore_merges", v->ignore_merges);
    if (v->chat_template) key_string(h, "tokenizer.chat_template", v->chat_template);
}

/* What the other kinds than byte-level BPE have: scores, the steps as llama.cpp's keys and as our own. */
static void put_kind(struct header *h, const struct vocab *v, const float *scores) {
    struct span charsmap = {0};
    struct buf steps = {0};
    bool prefix, extra;
    if (v->kind != TEXT_WORDPIECE) {
        key_array(h, "tokenizer.ggml.scores", GGUF_F32, v->n_tokens);
        for (uint32_t i = 0; i < v->n_tokens; i++) {
            uint32_t bits;
            memcpy(&bits, &scores[i], sizeof bits);
            put_u32(h, bits);
        }
        gguf_spacing(v, &prefix, &extra, &charsmap);
        key_bool(h, "tokenizer.ggml.add_space_prefix", prefix);
        key_bool(h, "tokenizer.ggml.remove_extra_whitespaces", extra);
    }
    if (charsmap.n) {
        key_array(h, "tokenizer.ggml.precompiled_charsmap", GGUF_U8, charsmap.n);
        put(h, charsmap.s, charsmap.n);
    }
    if (!h->rc) h->rc = text_steps_pack(v, &steps, h->e);
    key_array(h, GGUF_STEPS_KEY, GGUF_U8, steps.len);
    put(h, steps.data, steps.len);
    buf_release(&steps);
}

static void put_vocab(struct header *h, const struct vocab *v) {
    struct buf scratch = {0};
    struct arena a = {0};
    key_string(h, "tokenizer.ggml.model", v ? gguf_kind_of(v)->model : "none");
    if (!v) return;
    bool bytes = v->kind == TEXT_BYTE_BPE;
    float *scores = arena_array(&a, v->n_tokens, sizeof *scores, h->e);
    if (!h->rc) h->rc = scores ? gguf_check_kind(v, scores, &a, h->e) : h->e->code;
    key_string(h, "tokenizer.ggml.pre", bytes ? text_pre_name(v->pre) : "default");
    put_tokens(h, v, &scratch);
    if (!bytes && !h->rc) put_kind(h, v, scores);
    if (bytes || v->n_merges) put_merges(h, v, &scratch);
    put_settings(h, v);
    buf_release(&scratch);
    arena_release(&a);
}

/* ---- tensors ---- */

static void put_tensor_info(struct header *h, const char *name, const struct tensor_desc *d, enum dtype as,
                            uint64_t *offset) {
    struct tensor_desc in_file = *d;
    in_file.dtype = as;
    put_string(h, name, strlen(name));
    put_u32(h, d->rank);
    for (unsigned i = d->rank; i-- > 0;) put_u64(h, d->dims[i]);
    put_u32(h, (uint32_t)dtype_info(as)->ggml_type);
    put_u64(h, *offset);
    *offset += (tensor_bytes(&in_file) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

#define FACTORS_NAME "rope_freqs.weight"

static int put_tensor_infos(struct header *h, struct export_source *x, struct err *e) {
    uint64_t offset = 0, n_factors = x->config.head_dim / 2;
    if (x->config.rope_scaling == ROPE_LLAMA3) {
        struct tensor_desc d;
        int rc = tensor_desc_init(&d, FACTORS_NAME, DT_F32, 1, &n_factors, e);
        if (rc) return rc;
        put_tensor_info(h, FACTORS_NAME, &d, DT_F32, &offset);
    }
    for (size_t i = 0; i < model_slot_count(&x->config); i++) {
        struct model_slot s = model_slot_at(&x->config, i);
        struct stream_map_entry entry;
        size_t number;
        char name[TENSOR_MAX_NAME + 1];
        int rc = export_find(x, s, &entry, &number, e);
        if (rc) return rc;
        put_tensor_info(h, slot_foreign_name(NAMES_GGUF, s, name), &entry.desc, type_in_file(s, &entry.desc), &offset);
    }
    return h->rc;
}

static int write_padded(int fd, const void *data, uint64_t n, struct err *e) {
    int rc = write_all(fd, data, n, e);
    return rc || n % ALIGNMENT == 0 ? rc : write_zeros(fd, ALIGNMENT - n % ALIGNMENT, e);
}

static int write_factors(const struct model_config *c, int fd, struct err *e) {
    float *factors = mem_array(c->head_dim / 2, sizeof *factors, e);
    if (!factors) return e->code;
    int rc = rope_factors(c, factors, e);
    if (!rc) rc = write_padded(fd, factors, c->head_dim / 2 * sizeof *factors, e);
    mem_free(factors);
    return rc;
}

static int write_tensor(struct export_source *x, struct model_slot s, struct buf *reordered, int fd, struct err *e) {
    struct stream_map_entry entry;
    size_t number;
    const void *data;
    int rc = export_find(x, s, &entry, &number, e);
    if (rc) return rc;
    struct tensor_desc in_file = entry.desc;
    in_file.dtype = type_in_file(s, &entry.desc);
    uint64_t n = tensor_bytes(&in_file);
    rc = export_data(x, number, &entry.desc, in_file.dtype, &data, e);
    if (!rc && slot_is_rotary(s) && is_interleaved(&x->config)) {
        const struct model_layer *l = &x->config.layers[s.layer];
        bool is_q = s.role == ROLE_Q || s.role == ROLE_Q_BIAS;
        reordered->len = 0;
        rc = buf_reserve(reordered, n, e);
        if (rc) return rc;
        rows_interleave(reordered->data, data, in_file.dims[0], n / in_file.dims[0], is_q ? l->n_heads : l->n_kv_heads);
        data = reordered->data;
    }
    return rc ? rc : write_padded(fd, data, n, e);
}

static int write_tensors(struct export_source *x, int fd, struct err *e) {
    struct buf reordered = {0};
    int rc = x->config.rope_scaling == ROPE_LLAMA3 ? write_factors(&x->config, fd, e) : 0;
    for (size_t i = 0; i < model_slot_count(&x->config) && !rc; i++)
        rc = write_tensor(x, model_slot_at(&x->config, i), &reordered, fd, e);
    buf_release(&reordered);
    return rc;
}

/* ---- the whole ---- */

static int write_header(struct export_source *x, struct header *keys, struct header *infos, int fd, struct err *e) {
    struct {
        char magic[4];
        uint32_t version;
        uint64_t n_tensors, n_keys;
    } start = {"GGUF", 3, model_slot_count(&x->config) + (x->config.rope_scaling == ROPE_LLAMA3), keys->n_keys};
    uint64_t n = sizeof start + keys->bytes.len + infos->bytes.len;
    int rc = write_all(fd, &start, sizeof start, e);
    if (!rc) rc = write_all(fd, keys->bytes.data, keys->bytes.len, e);
    if (!rc) rc = write_all(fd, infos->bytes.data, infos->bytes.len, e);
    return rc || n % ALIGNMENT == 0 ? rc : write_zeros(fd, ALIGNMENT - n % ALIGNMENT, e);
}

int gguf_export(struct stream_map *m, int fd, const char *name, struct err *e) {
    struct export_source x;
    struct header keys = {.e = e}, infos = {.e = e};
    int rc = export_open(&x, m, e);
    if (!rc) rc = model_target_check(TARGET_LLAMA_CPP, &x.config, e);
    if (!rc) rc = put_general(&keys, &x, name, e);
    if (!rc) {
        put_model(&keys, &x.config);
        put_vocab(&keys, x.vocab);
        rc = keys.rc;
    }
    if (!rc) rc = put_tensor_infos(&infos, &x, e);
    if (!rc) rc = write_header(&x, &keys, &infos, fd, e);
    if (!rc) rc = write_tensors(&x, fd, e);
    buf_release(&keys.bytes);
    buf_release(&infos.bytes);
    export_release(&x);
    return rc;
}
