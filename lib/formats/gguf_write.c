/*
 * Writes GGUF v3 as llama.cpp loads it. The header needs all shapes before the first byte of data, so the stream is
 * read by random access; the file is written sequentially and may be a pipe.
 */
#include <unistd.h>

#include "lib/formats/arch_internal.h"

/* ---- types ---- */

enum dtype gguf_out_type(const struct out_tensor *t) {
    return t->kind == KIND_MATRIX ? t->stored : DT_F32;
}

int gguf_out_check_type(const struct out_tensor *t, struct err *e) {
    if (gguf_has_weights_of(gguf_out_type(t))) return 0;
    return err_set(e, ERR_DATA,
                   "tensor '%s' has type %s, which llama.cpp does not support for weights (quantize it first)", t->name,
                   dtype_info(gguf_out_type(t))->name);
}

static int count_types(const struct gguf_out *o, uint32_t *file_type, struct err *e) {
    struct gguf_label label = {0};
    for (size_t i = 0; i < o->tensors.n; i++) {
        const struct out_tensor *t = &o->tensors.items[i];
        enum dtype dtype = gguf_out_type(t);
        if (gguf_out_check_type(t, e)) return e->code;
        uint64_t n = 1;
        for (unsigned k = 0; k < t->rank; k++) n *= t->dims[k];
        gguf_label_add(&label, t->slots[0], dtype, t->dims[t->rank - 1], n);
    }
    *file_type = gguf_label_file_type(&label);
    return 0;
}

/* ---- keys of the model ---- */

int gguf_out_label(struct gguf_header *keys, const struct gguf_out *o, struct err *e) {
    uint32_t file_type;
    int rc = count_types(o, &file_type, e);
    if (!rc) memcpy(keys->bytes.data + o->file_type_at, &file_type, sizeof file_type);
    return rc;
}

static int put_general(struct gguf_header *h, struct gguf_out *o, const char *name, struct err *e) {
    uint32_t file_type = 0;
    int rc = count_types(o, &file_type, e);
    if (rc) return rc;
    const struct model_config *c = &o->x.config;
    const char *arch = o->name->name;
    snprintf(h->prefix, sizeof h->prefix, "%s", arch);
    gguf_key_string(h, "general.architecture", arch);
    gguf_key_string(h, "general.type", "model");
    const cJSON *general = cJSON_GetObjectItemCaseSensitive(o->x.meta, "general");
    for (const char *const *key = gguf_general_keys; *key; key++) {
        const char *value = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(general, *key));
        if (name && strcmp(*key, "name") == 0) value = name;
        char full[64];
        snprintf(full, sizeof full, "general.%s", *key);
        if (value) gguf_key_string(h, full, value);
    }
    char size[MODEL_SIZE_LABEL];
    gguf_key_string(h, "general.size_label", model_size_label(model_parameters(c), size));
    gguf_key_u32(h, "general.file_type", file_type);
    o->file_type_at = h->bytes.len - sizeof file_type;
    /* also if nothing is quantized, as llama.cpp's converter does */
    gguf_key_u32(h, "general.quantization_version", 2);
    gguf_key_u32(h, "general.alignment", GGUF_DEFAULT_ALIGNMENT);
    gguf_put_origin(h, o->x.meta);
    /* GGUF's name may be read back as another architecture, so this key has ours */
    const struct gguf_name *spelled;
    if (arch_by_gguf(arch, c->experts_per_token != 0, &spelled) != o->arch)
        gguf_key_string(h, "rill.architecture", c->arch);
    return h->rc;
}

static uint32_t layer_number(const struct model_layer *l, size_t offset) {
    return *(const uint32_t *)((const char *)l + offset);
}

static void put_per_layer(struct gguf_header *h, const char *key, const struct model_config *c, size_t offset) {
    uint32_t first = layer_number(&c->layers[0], offset), same = 1;
    while (same < c->n_layers && layer_number(&c->layers[same], offset) == first) same++;
    if (same == c->n_layers) {
        gguf_key_u32(h, key, first);
        return;
    }
    gguf_key_array(h, key, GGUF_U32, c->n_layers);
    for (uint32_t i = 0; i < c->n_layers; i++) gguf_put_u32(h, layer_number(&c->layers[i], offset));
}

static void put_model(struct gguf_header *h, const struct gguf_out *o) {
    const struct model_config *c = &o->x.config;
    gguf_key_u32(h, ".block_count", c->n_layers);
    gguf_key_u32(h, ".context_length", c->context);
    gguf_key_u32(h, ".embedding_length", c->hidden);
    if (c->experts_per_token)
        gguf_key_u32(h, ".feed_forward_length", config_ffn(c));
    else
        put_per_layer(h, ".feed_forward_length", c, offsetof(struct model_layer, ffn));
    put_per_layer(h, ".attention.head_count", c, offsetof(struct model_layer, n_heads));
    put_per_layer(h, ".attention.head_count_kv", c, offsetof(struct model_layer, n_kv_heads));
    gguf_key_u32(h, ".attention.key_length", c->head_dim);
    gguf_key_u32(h, ".attention.value_length", c->head_dim);
    bool rms = c->norm == NORM_RMS;
    gguf_key_f32(h, rms ? ".attention.layer_norm_rms_epsilon" : ".attention.layer_norm_epsilon", (double)c->norm_eps);
    gguf_put_rope(h, c);
    gguf_key_u32(h, ".vocab_size", c->vocab_size);
    if (o->arch->gguf.write) o->arch->gguf.write(h, c);
    if (!c->classes) return;
    gguf_key_array(h, ".classifier.output_labels", GGUF_STRING, c->classes);
    for (uint32_t i = 0; i < c->classes; i++) {
        char own[LABEL_SIZE];
        const char *name = label_of(o->x.meta, i, own);
        gguf_put_string(h, name, strlen(name));
    }
}

/* ---- keys of the tokenizer ---- */

/* Unused tokens need unique texts, too. */
static void put_placeholder(struct gguf_header *h, uint32_t id, const struct spellings *taken, struct buf *scratch) {
    char start[32];
    snprintf(start, sizeof start, "[PAD%u", id);
    scratch->len = 0;
    if (!h->rc) h->rc = buf_append(scratch, start, strlen(start), h->e);
    if (!h->rc) h->rc = buf_append(scratch, "]", 2, h->e);
    while (!h->rc && spellings_has(taken, (const char *)scratch->data)) {
        scratch->len -= 2;
        h->rc = buf_append(scratch, "_]", 3, h->e);
    }
    if (!h->rc) gguf_put_string(h, scratch->data, scratch->len - 1);
}

static void put_piece(struct gguf_header *h, const struct vocab *v, uint32_t id, const struct spellings *taken,
                      struct buf *scratch) {
    if (v->tokens[id].flags & TOKEN_UNUSED) {
        put_placeholder(h, id, taken, scratch);
        return;
    }
    scratch->len = 0;
    if (!h->rc) h->rc = gguf_put_piece(v, id, scratch, h->e);
    gguf_put_string(h, scratch->data, scratch->len);
}

static void put_tokens(struct gguf_header *h, const struct vocab *v, struct buf *scratch) {
    bool types_say_all = true;
    struct spellings taken = {0};
    if (!h->rc) h->rc = spellings_make(&taken, v, h->e);
    gguf_key_array(h, "tokenizer.ggml.tokens", GGUF_STRING, v->n_tokens);
    for (uint32_t i = 0; i < v->n_tokens && !h->rc; i++) put_piece(h, v, i, &taken, scratch);
    spellings_release(&taken);
    gguf_key_array(h, "tokenizer.ggml.token_type", GGUF_I32, v->n_tokens);
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        gguf_put_u32(h, gguf_token_type(v, i));
        types_say_all = types_say_all && gguf_type_says_all(v, i);
    }
    if (types_say_all) return;
    gguf_key_array(h, "rill.tokenizer.flags", GGUF_U32, v->n_tokens);
    for (uint32_t i = 0; i < v->n_tokens; i++) gguf_put_u32(h, v->tokens[i].flags);
}

static void put_merges(struct gguf_header *h, const struct vocab *v, struct buf *scratch) {
    gguf_key_array(h, "tokenizer.ggml.merges", GGUF_STRING, v->n_merges);
    for (uint32_t i = 0; i < v->n_merges && !h->rc; i++) {
        scratch->len = 0;
        h->rc = vocab_spell(v, v->merges[i].left, scratch, h->e);
        if (!h->rc) h->rc = buf_append(scratch, " ", 1, h->e);
        if (!h->rc) h->rc = vocab_spell(v, v->merges[i].right, scratch, h->e);
        gguf_put_string(h, scratch->data, scratch->len);
    }
}

static bool is_end(const struct vocab *v, uint32_t id) {
    for (uint32_t i = 0; i < v->n_ends; i++)
        if (v->ends[i] == id) return true;
    return false;
}

/* Are the end tokens exactly eos and those that readers recognize by their text? */
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

/* llama.cpp has keys for the ends of a text, of a turn and of a message; the list has all end tokens. */
static void put_ends(struct gguf_header *h, const struct vocab *v) {
    static const char *const keys[] = {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
    size_t k = 0;
    if (texts_say_all(v)) return;
    for (uint32_t i = 0; i < v->n_ends && k < COUNT_OF(keys); i++)
        if (v->ends[i] != v->eos) gguf_key_u32(h, keys[k++], v->ends[i]);
    gguf_key_array(h, GGUF_ENDS_KEY, GGUF_I32, v->n_ends);
    if (v->eos != TOKEN_NONE) gguf_put_u32(h, v->eos);
    for (uint32_t i = 0; i < v->n_ends; i++)
        if (v->ends[i] != v->eos) gguf_put_u32(h, v->ends[i]);
}

static void put_settings(struct gguf_header *h, const struct vocab *v) {
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
        if (ids[i].id != TOKEN_NONE) gguf_key_u32(h, ids[i].key, ids[i].id);
    put_ends(h, v);
    gguf_key_bool(h, "tokenizer.ggml.add_bos_token", v->add_bos);
    gguf_key_bool(h, bert ? "tokenizer.ggml.add_sep_token" : "tokenizer.ggml.add_eos_token", v->add_eos);
    if (v->nfc != pre_implies_nfc(v->pre)) gguf_key_bool(h, "rill.tokenizer.nfc", v->nfc);
    if (v->ignore_merges != pre_implies_ignore_merges(v->pre))
        gguf_key_bool(h, "rill.tokenizer.ignore_merges", v->ignore_merges);
    if (v->chat_template) gguf_key_string(h, "tokenizer.chat_template", v->chat_template);
}

/* Writes the keys of kinds other than byte-level BPE: scores, and the steps under llama.cpp's keys and our own. */
static void put_kind(struct gguf_header *h, const struct vocab *v, const float *scores) {
    struct span charsmap = {0};
    struct buf steps = {0};
    bool prefix, extra;
    if (v->kind != TEXT_WORDPIECE) {
        gguf_key_array(h, "tokenizer.ggml.scores", GGUF_F32, v->n_tokens);
        for (uint32_t i = 0; i < v->n_tokens; i++) {
            uint32_t bits;
            memcpy(&bits, &scores[i], sizeof bits);
            gguf_put_u32(h, bits);
        }
        gguf_spacing(v, &prefix, &extra, &charsmap);
        gguf_key_bool(h, "tokenizer.ggml.add_space_prefix", prefix);
        gguf_key_bool(h, "tokenizer.ggml.remove_extra_whitespaces", extra);
    }
    if (charsmap.n) {
        gguf_key_array(h, "tokenizer.ggml.precompiled_charsmap", GGUF_U8, charsmap.n);
        gguf_put_bytes(h, charsmap.s, charsmap.n);
    }
    if (!h->rc) h->rc = text_steps_pack(v, &steps, h->e);
    gguf_key_array(h, GGUF_STEPS_KEY, GGUF_U8, steps.len);
    gguf_put_bytes(h, steps.data, steps.len);
    buf_release(&steps);
}

static void put_vocab(struct gguf_header *h, const struct vocab *v) {
    struct buf scratch = {0};
    struct arena a = {0};
    gguf_key_string(h, "tokenizer.ggml.model", v ? gguf_kind_of(v)->model : "none");
    if (!v) return;
    bool bytes = v->kind == TEXT_BYTE_BPE;
    float *scores = arena_array(&a, v->n_tokens, sizeof *scores, h->e);
    if (!h->rc) h->rc = scores ? gguf_check_kind(v, scores, &a, h->e) : h->e->code;
    gguf_key_string(h, "tokenizer.ggml.pre", bytes ? text_pre_name(v->pre) : "default");
    put_tokens(h, v, &scratch);
    if (!bytes && !h->rc) put_kind(h, v, scores);
    if (bytes || v->n_merges) put_merges(h, v, &scratch);
    put_settings(h, v);
    buf_release(&scratch);
    arena_release(&a);
}

/* ---- tensors ---- */

void gguf_out_infos(struct gguf_header *h, const struct gguf_out *o, struct gguf_range r) {
    if (r.from == 0) gguf_put_rope_tensors(h, &o->x.config);
    for (size_t i = r.from; i < r.to; i++) {
        const struct out_tensor *t = &o->tensors.items[i];
        enum dtype as = gguf_out_type(t);
        gguf_put_tensor(h, t->name, t->rank, t->dims, as, out_tensor_bytes(t, as));
    }
}

static int write_tensors(struct gguf_out *o, struct gguf_range r, int fd, struct err *e) {
    int rc = r.from == 0 ? gguf_write_rope_tensors(&o->x.config, fd, e) : 0;
    for (size_t i = r.from; i < r.to && !rc; i++) {
        const struct out_tensor *t = &o->tensors.items[i];
        const void *data;
        rc = out_tensor_data(&o->x, t, gguf_out_type(t), o->name->interleaved, &data, e);
        if (!rc) rc = gguf_write_padded(fd, data, out_tensor_bytes(t, gguf_out_type(t)), e);
    }
    return rc;
}

static int write_file(struct gguf_out *o, const struct gguf_header *keys, struct gguf_range r, int fd, struct err *e) {
    struct gguf_header infos = {.e = e};
    gguf_out_infos(&infos, o, r);
    int rc = infos.rc;
    if (!rc) rc = gguf_write_header(fd, keys, &infos, e);
    if (!rc) rc = write_tensors(o, r, fd, e);
    buf_release(&infos.bytes);
    return rc;
}

/* ---- split into parts ---- */

struct parts {
    uint64_t limit;        /* bytes of tensors per part */
    uint64_t before_first; /* bytes of the rotary factors */
    uint32_t count, n_tensors;
};

/* The part that begins with this tensor: as many tensors as fit, at least one. */
static struct gguf_range part_from(const struct gguf_out *o, const struct parts *p, size_t from) {
    uint64_t bytes = from == 0 ? p->before_first : 0;
    size_t i = from;
    for (; i < o->tensors.n; i++) {
        const struct out_tensor *t = &o->tensors.items[i];
        bytes += gguf_padded(out_tensor_bytes(t, gguf_out_type(t)));
        if (i > from && bytes > p->limit) break;
    }
    return (struct gguf_range){from, i};
}

static int count_parts(const struct gguf_out *o, struct parts *p, struct err *e) {
    struct gguf_header rope = {.e = e};
    gguf_put_rope_tensors(&rope, &o->x.config);
    p->before_first = rope.data_bytes;
    p->n_tensors = (uint32_t)(rope.n_tensors + o->tensors.n);
    for (size_t at = 0; at < o->tensors.n; at = part_from(o, p, at).to) p->count++;
    buf_release(&rope.bytes);
    if (rope.rc || p->count <= GGUF_MAX_PARTS) return rope.rc;
    return err_set(e, ERR_USAGE, "%u parts of %llu bytes, and a GGUF has at most %u: they must be larger", p->count,
                   (unsigned long long)p->limit, GGUF_MAX_PARTS);
}

/* llama.cpp requires these types. */
void gguf_put_split(struct gguf_header *h, uint32_t no, uint32_t count, uint32_t n_tensors) {
    gguf_key_u16(h, "split.no", (uint16_t)no);
    gguf_key_u16(h, "split.count", (uint16_t)count);
    gguf_key_i32(h, "split.tensors.count", (int32_t)n_tensors);
}

static int write_part(struct gguf_out *o, struct gguf_header *keys, struct gguf_range r, struct out_folder *f,
                      const char *name, struct err *e) {
    int fd, rc = keys->rc ? keys->rc : out_folder_create(f, name, &fd, e);
    if (rc) return rc;
    rc = write_file(o, keys, r, fd, e);
    if (!rc) return out_folder_close(f, name, fd, e);
    close(fd);
    return rc;
}

/* model: the model's keys, which the first part has besides its own. */
static int write_parts(struct gguf_out *o, struct gguf_header *model, const struct parts *p, struct out_folder *f,
                       struct err *e) {
    int rc = 0;
    struct gguf_range r = {0, 0};
    for (uint32_t no = 0; no < p->count && !rc; no++) {
        struct gguf_header own = {.e = e}, *keys = no == 0 ? model : &own;
        const char *name = gguf_part_name(&o->x.memory, "model", strlen("model"), no, p->count, e);
        r = part_from(o, p, r.to);
        gguf_put_split(keys, no, p->count, p->n_tensors);
        rc = name ? write_part(o, keys, r, f, name, e) : e->code;
        buf_release(&own.bytes);
    }
    return rc;
}

/* ---- the file ---- */

static int prepare(struct gguf_out *o, struct err *e) {
    int rc = target_check(TARGET_LLAMA_CPP, &o->x.config, e);
    if (!rc) rc = arch_of_config(&o->x.config, &o->arch, e);
    if (rc) return rc;
    o->name = arch_gguf_name(o->arch, &o->x.config);
    if (o->x.config.output == OUTPUT_NONE && o->x.config.pooler) {
        log_line(LOG_WARN, "the pooler cannot be stored in a GGUF and is left out: the hidden states do not need it");
        o->x.config.pooler = false;
    }
    return out_tensors_make(&o->tensors, &o->x, &o->arch->gguf.tensors, &gguf_common_tensors, NULL, e);
}

static int open_out(struct gguf_out *o, struct stream_map *m, struct err *e) {
    int rc = export_open(&o->x, m, e);
    return rc ? rc : prepare(o, e);
}

int gguf_out_open_arriving(struct gguf_out *o, const struct model_head *h, struct err *e) {
    int rc = export_open_arriving(&o->x, h, e);
    return rc ? rc : prepare(o, e);
}

int gguf_out_keys(struct gguf_header *keys, struct gguf_out *o, const char *name, struct err *e) {
    int rc = put_general(keys, o, name, e);
    if (rc) return rc;
    put_model(keys, o);
    put_vocab(keys, o->x.vocab);
    return keys->rc;
}

int gguf_export(struct stream_map *m, int fd, const char *name, struct err *e) {
    struct gguf_out o = {.arch = NULL};
    struct gguf_header keys = {.e = e};
    int rc = open_out(&o, m, e);
    if (!rc) rc = gguf_out_keys(&keys, &o, name, e);
    if (!rc) rc = write_file(&o, &keys, (struct gguf_range){0, o.tensors.n}, fd, e);
    buf_release(&keys.bytes);
    export_release(&o.x);
    return rc;
}

int gguf_export_parts(struct stream_map *m, const char *folder, uint64_t limit, const char *name, struct err *e) {
    struct gguf_out o = {.arch = NULL};
    struct parts p = {.limit = limit};
    struct gguf_header keys = {.e = e};
    struct out_folder f = OUT_FOLDER_NONE;
    int rc = open_out(&o, m, e);
    if (!rc) rc = gguf_out_keys(&keys, &o, name, e);
    if (!rc) rc = count_parts(&o, &p, e);
    if (!rc) rc = out_folder_begin(&f, folder, e);
    if (!rc) rc = write_parts(&o, &keys, &p, &f, e);
    if (!rc) rc = out_folder_commit(&f, e);
    out_folder_release(&f);
    buf_release(&keys.bytes);
    export_release(&o.x);
    return rc;
}
