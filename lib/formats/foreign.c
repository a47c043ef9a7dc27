/* Opens a foreign model of any format and returns its tensors by role. */
#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/formats/arch_internal.h"

static int model_new(struct foreign_model **out, struct err *e) {
    struct foreign_model *f = mem_zalloc(sizeof *f, e);
    if (!f) return e->code;
    f->source = mem_zalloc(sizeof *f->source, e);
    if (f->source) f->source->digest = digest_new(e);
    if (!f->source || !f->source->digest) {
        foreign_close(f);
        return e->code;
    }
    *out = f;
    return 0;
}

void foreign_close(struct foreign_model *f) {
    if (!f) return;
    if (f->source) {
        for (struct source_file *x = f->source->files; x; x = x->next) mapped_file_close(&x->m);
        if (f->source->digest) digest_free(f->source->digest);
        raw_table_release(&f->source->tensors);
        shards_free(f->source->shards);
        cJSON_Delete(f->source->hf_config);
        cJSON_Delete(f->source->hf_generation);
        buf_release(&f->source->scratch);
        buf_release(&f->source->spare);
        mem_free(f->source);
    }
    vocab_free(f->vocab);
    cJSON_Delete(f->extra);
    arena_release(&f->memory);
    mem_free(f);
}

/* ---- checking the tensors ---- */

static struct raw_tensor *find_slot(const struct foreign_model *f, struct model_slot s, struct arch_place *p) {
    const struct foreign_source *x = f->source;
    return arch_find(x->own, x->common, &f->config, s, &x->tensors, p);
}

/* Whole rows of a quantized matrix can be moved, single elements cannot. */
static int check_type(const struct raw_tensor *t, struct model_slot s, const struct arch_place *p, struct err *e) {
    const struct dtype_info *type = dtype_info(t->dtype);
    if (!type->is_float && !type->is_quantized)
        return err_set(e, ERR_DATA, "tensor '%s' is of type %s, which is not a weight", t->name, type->name);
    if (type->is_quantized && !model_role_is_matrix(s.role) && model_role_info(s.role)->kind != KIND_TABLE)
        return err_set(e, ERR_DATA, "tensor '%s' is a vector of type %s, which is not supported", t->name, type->name);
    if (type->is_quantized && (p->tensor->layout & TRANSPOSED))
        return err_set(e, ERR_DATA, "tensor '%s' is of type %s and transposed, which is not supported", t->name,
                       type->name);
    return 0;
}

static int check_shape(const struct foreign_model *f, struct model_slot s, const struct raw_tensor *t,
                       const struct arch_place *p, struct err *e) {
    struct tensor_desc want = {.rank = 0}, have = {.rank = t->rank};
    char found[256], expected[256];
    want.rank = arch_foreign_shape(&f->config, s, p, want.dims);
    memcpy(have.dims, t->dims, sizeof have.dims);
    if (tensor_same_shape(&want, &have)) return 0;
    return err_set(e, ERR_DATA, "tensor '%s' has shape %s, expected %s", t->name,
                   tensor_shape_text(&have, found, sizeof found), tensor_shape_text(&want, expected, sizeof expected));
}

/* Describes a slot's tensor under Rill's name; error messages use the file's. Weights to which 1 is added become f32,
 * so that the sum loses no digits. */
static int describe(const struct foreign_model *f, struct model_slot s, const struct raw_tensor *t,
                    const struct arch_place *p, struct tensor_desc *d, struct err *e) {
    char name[TENSOR_MAX_NAME + 1];
    uint64_t dims[2];
    int rc = check_type(t, s, p, e);
    if (!rc) rc = check_shape(f, s, t, p, e);
    if (rc) return rc;
    unsigned rank = model_slot_shape(&f->config, s, dims);
    enum dtype dtype = p->tensor->layout & MINUS_ONE ? DT_F32 : t->dtype;
    return tensor_desc_init(d, model_slot_name(s, name), dtype, rank, dims, e);
}

static int all_zero(struct foreign_model *f, struct raw_tensor *t, bool *zero, struct err *e) {
    int rc = shards_need(f, t, NO_SLOT, e);
    *zero = !rc;
    for (uint64_t i = 0; i < t->n_bytes && *zero; i++) *zero = t->data[i] == 0;
    return rc;
}

static bool ends_with(const char *s, const char *end) {
    size_t n = strlen(s), m = strlen(end);
    return n >= m && strcmp(s + n - m, end) == 0;
}

/* Buffers that follow from the configuration, which is authoritative. */
static const char *const derived[] = {".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached",
                                      "embeddings.position_ids"};

static bool is_derived(const struct foreign_source *x, const char *name) {
    for (size_t i = 0; i < COUNT_OF(derived); i++)
        if (ends_with(name, derived[i])) return true;
    for (const char *const *end = x->own->derived; end && *end; end++)
        if (ends_with(name, *end)) return true;
    for (const char *const *factors = gguf_rope_tensors; *factors; factors++) /* read with the configuration */
        if (strcmp(name, *factors) == 0) return true;
    return false;
}

static int digest_of(struct foreign_model *f, struct raw_tensor *t, struct digest *out, struct err *e) {
    int rc = shards_need(f, t, NO_SLOT, e);
    if (!rc) *out = digest_bytes(t->data, t->n_bytes);
    return rc;
}

/* Compares digests, because the tensors may be in shards of which only one is present at a time. */
static int same_bits(struct foreign_model *f, struct raw_tensor *a, struct raw_tensor *b, bool *same, struct err *e) {
    struct digest x, y;
    int rc = digest_of(f, a, &x, e);
    if (!rc) rc = digest_of(f, b, &y, e);
    *same = !rc && a->dtype == b->dtype && a->n_bytes == b->n_bytes && digest_equal(x, y);
    return rc;
}

/* Is the tensor a copy of another one with the same role? */
static int repeats(struct foreign_model *f, struct raw_tensor *t, bool *is, struct err *e) {
    struct arch_place place;
    *is = false;
    for (size_t i = 0; i < model_slot_count(&f->config); i++) {
        struct model_slot s = model_slot_at(&f->config, i);
        if (!arch_named(f->source->own, s, t->name)) continue;
        struct raw_tensor *taken = find_slot(f, s, &place);
        return taken ? same_bits(f, taken, t, is, e) : 0;
    }
    return 0;
}

/* Is it a tensor of a head that the class does not read? Not if it would be a second value of a role of the model,
 * which models of another kind read. */
static bool is_unread(const struct foreign_model *f, const char *name) {
    const char *const *unread = f->source->unread, *base = f->source->own->base;
    for (size_t i = 0; unread && i < model_slot_count(&f->config); i++) {
        struct model_slot s = model_slot_at(&f->config, i);
        const struct arch_tensor *t = arch_named(f->source->own, s, name);
        if (t && !arch_is_of(&f->config, t, s.layer)) return false;
    }
    if (base && strncmp(name, base, strlen(base)) == 0) name += strlen(base);
    for (; unread && *unread; unread++)
        if (strncmp(name, *unread, strlen(*unread)) == 0) return true;
    return false;
}

/* Refuses a tensor without a role, unless it is known to have no effect or is a bias of zeros. */
static int check_leftover(struct foreign_model *f, struct raw_tensor *t, struct err *e) {
    bool again, zero;
    if (is_derived(f->source, t->name)) return 0;
    int rc = repeats(f, t, &again, e);
    if (rc || again) return rc;
    if (!ends_with(t->name, ".bias"))
        return err_set(e, ERR_DATA, "tensor '%s' has no role in a %s model as Rill knows it", t->name, f->config.arch);
    rc = all_zero(f, t, &zero, e);
    if (rc || zero) return rc;
    bool qkv =
        ends_with(t->name, ".q_proj.bias") || ends_with(t->name, ".k_proj.bias") || ends_with(t->name, ".v_proj.bias");
    if (qkv && !f->config.qkv_bias)
        return err_set(e, ERR_DATA, "tensor '%s' is not zero, but config.json says no biases (\"attention_bias\")",
                       t->name);
    return err_set(e, ERR_DATA, "tensor '%s' is not zero: a bias there is not supported", t->name);
}

/* config.json may tie the head to the embedding although training has made them differ. As in transformers, the weights
 * decide: a head in the file counts as tied only if it has the same bits. */
static int resolve_tie(struct foreign_model *f, struct err *e) {
    struct arch_place place;
    struct model_config untied = f->config;
    if (!f->config.tied) return 0;
    untied.tied = false;
    const struct foreign_source *x = f->source;
    struct raw_tensor *head, *embed;
    head = arch_find(x->own, x->common, &untied, (struct model_slot){.role = ROLE_HEAD}, &x->tensors, &place);
    embed = arch_find(x->own, x->common, &untied, (struct model_slot){.role = ROLE_EMBED}, &x->tensors, &place);
    if (!head) return 0;
    int rc = embed ? same_bits(f, embed, head, &head->used, e) : 0;
    if (rc || head->used) return rc;
    f->config.tied = false;
    log_line(LOG_WARN, "config.json ties '%s' to the embedding, but the two differ: both are kept", head->name);
    return 0;
}

/* Drops a bias of zeros on o in all layers, which has no effect. Exports to a class that always has this bias add
 * it. */
static int drop_zero_biases(struct foreign_model *f, struct err *e) {
    const struct foreign_source *x = f->source;
    struct arch_place place;
    bool zero = f->config.o_bias && !x->always_o_bias;
    for (uint32_t i = 0; i < f->config.n_layers && zero; i++) {
        struct model_slot s = {ROLE_O_BIAS, i};
        struct raw_tensor *t = arch_find(x->own, x->common, &f->config, s, &x->tensors, &place);
        zero = false;
        if (t && all_zero(f, t, &zero, e)) return e->code;
    }
    if (zero) f->config.o_bias = false;
    return 0;
}

/* Hidden states of an encoder need no pooler, and many files have none. */
static void drop_absent_pooler(struct foreign_model *f) {
    struct arch_place place;
    if (f->config.output == OUTPUT_NONE && f->config.pooler)
        f->config.pooler = find_slot(f, (struct model_slot){.role = ROLE_POOLER}, &place) != NULL;
}

/* Leaves out tensors that the class does not read, with one warning for all. */
static int drop_unread(struct foreign_model *f, struct err *e) {
    const char *first = NULL;
    size_t n = 0;
    for (size_t i = 0; i < f->source->tensors.n; i++) {
        struct raw_tensor *t = &f->source->tensors.items[i];
        bool again;
        if (t->used || !is_unread(f, t->name)) continue;
        if (repeats(f, t, &again, e)) return e->code;
        if (again) continue;
        t->used = true;
        if (n++ == 0) first = t->name;
    }
    if (n == 1) log_line(LOG_WARN, "tensor '%s' is not read by the model's class: left out", first);
    if (n > 1)
        log_line(LOG_WARN, "%zu tensors, '%s' among them, are not read by the model's class: left out", n, first);
    return 0;
}

static int check_slot(struct foreign_model *f, struct model_slot s, struct err *e) {
    struct tensor_desc d;
    struct arch_place place;
    struct raw_tensor *t = find_slot(f, s, &place);
    if (!t && s.role == ROLE_HEAD)
        return err_set(e, ERR_DATA,
                       "tensor '%s' is missing, and config.json does not tie it to the embedding "
                       "(\"tie_word_embeddings\")",
                       place.name);
    if (!t) return err_set(e, ERR_DATA, "tensor '%s' is missing", place.name);
    if (!t->unknown && describe(f, s, t, &place, &d, e) != 0) return e->code;
    t->used = true;
    t->needed = (size_t)model_slot_index(&f->config, s) + 1;
    return 0;
}

/* Checks that all tensors are present and have the right shape, before anything is written; tensors of absent shards
 * only have to be in the index. */
static int check_tensors(struct foreign_model *f, struct err *e) {
    int rc = resolve_tie(f, e);
    if (!rc) rc = drop_zero_biases(f, e);
    drop_absent_pooler(f);
    size_t n = model_slot_count(&f->config);
    for (size_t i = 0; i < n && !rc; i++) rc = check_slot(f, model_slot_at(&f->config, i), e);
    if (!rc) rc = drop_unread(f, e);
    for (size_t i = 0; i < f->source->tensors.n && !rc; i++)
        if (!f->source->tensors.items[i].used) rc = check_leftover(f, &f->source->tensors.items[i], e);
    return rc;
}

/* ---- opening ---- */

/* Makes the vocabulary from the draft, padded to the rows of the embedding. */
static int take_vocab(struct foreign_model *f, struct vocab *spec, struct err *e) {
    int rc = draft_pad(spec, f->config.vocab_size, e);
    if (!rc) rc = draft_finish(spec, &f->vocab, e);
    return rc ? err_prefix(e, "tokenizer") : 0;
}

/* Reads the requested tokenizer, or the source's own: from the file `own`, or if that is NULL from
 * the keys of the GGUF. */
static int read_vocab(struct foreign_model *f, const struct gguf_file *g, const char *own,
                      const struct foreign_options *o, struct err *e) {
    const char *path = o && o->tokenizer ? o->tokenizer : own;
    struct vocab spec;
    bool found = true;
    int rc = 0;
    if (o && o->no_tokenizer) return 0;
    draft_init(&spec);
    if (path)
        rc = hf_read_vocab(f, path, &spec, e);
    else if (g)
        rc = gguf_read_vocab(g, &spec, &found, e);
    else
        found = false;
    if (!rc && found) rc = take_vocab(f, &spec, e);
    if (!rc && !found)
        log_line(LOG_WARN,
                 "the model comes without a tokenizer: no text can be read or written with it (--tokenizer FILE)");
    arena_release(&spec.memory);
    return rc;
}

/* Adds an item to META; item NULL: nothing to add. */
static int put_extra(struct foreign_model *f, const char *name, cJSON *item, struct err *e) {
    if (!item) return 0;
    if (!f->extra) f->extra = cJSON_CreateObject();
    if (f->extra && cJSON_AddItemToObject(f->extra, name, item)) return 0;
    cJSON_Delete(item);
    return err_nomem(e, name);
}

static int put_general(struct foreign_model *f, const struct gguf_file *g, struct err *e) {
    cJSON *general = NULL, *origin = NULL;
    int rc = gguf_read_general(g, &f->memory, &general, e);
    if (!rc) rc = put_extra(f, "general", general, e);
    if (!rc) rc = gguf_read_origin(g, &f->memory, &origin, e);
    return rc ? rc : put_extra(f, MODEL_IMATRIX_META, origin, e);
}

static int keep_labels(struct foreign_model *f, const struct gguf_file *g, const char *prefix, struct err *e) {
    char key[64];
    snprintf(key, sizeof key, "%s.classifier.output_labels", prefix);
    return labels_from_gguf(f, gguf_find(g, key), e);
}

/* path: locates the other parts of a split GGUF; NULL: the GGUF is in memory only. */
static int open_gguf(struct foreign_model *f, const char *path, const unsigned char *data, uint64_t n,
                     const struct foreign_options *o, struct err *e) {
    struct gguf_file g = {0};
    const struct arch *arch = NULL;
    const struct gguf_name *name = NULL;
    int rc = gguf_parse(&g, data, n, &f->memory, e);
    if (!rc) rc = gguf_join(f, &g, path, e);
    if (!rc) rc = gguf_read_arch(&g, &f->memory, &arch, &name, e);
    if (!rc) rc = gguf_read_config(&g, arch, name->name, &f->config, &f->memory, e);
    if (!rc) rc = arch_of_config(&f->config, &arch, e); /* the key rill.architecture may name another one */
    if (!rc) rc = put_general(f, &g, e);
    if (!rc) rc = keep_labels(f, &g, name->name, e);
    f->format = "gguf";
    f->source->own = arch ? &arch->gguf.tensors : &gguf_common_tensors;
    f->source->common = &gguf_common_tensors;
    f->source->interleaved = name && name->interleaved;
    f->source->always_o_bias = arch && arch->traits.o_bias;
    f->source->tensors = g.tensors; /* they outlive g */
    g.tensors = (struct raw_table){0};
    if (!rc) rc = check_tensors(f, e);
    if (!rc) rc = read_vocab(f, &g, NULL, o, e);
    gguf_release(&g);
    return rc;
}

static int open_hf(struct foreign_model *f, const char *folder, const char *weights, const struct foreign_options *o,
                   struct err *e) {
    const char *own = NULL;
    f->format = "safetensors";
    int rc = hf_read_model(f, folder, weights, o, e);
    const struct arch *arch = NULL;
    if (!rc) rc = arch_of_config(&f->config, &arch, e);
    if (!rc) {
        f->source->own = &arch->hf.tensors;
        f->source->unread = arch->hf.unread;
        f->source->always_o_bias = arch->traits.o_bias;
    }
    if (!rc) rc = check_tensors(f, e);
    if (!rc && !(o && (o->no_tokenizer || o->tokenizer))) rc = hf_find_tokenizer(f, folder, &own, e);
    if (!rc) rc = hf_read_generation(f, folder, e);
    if (!rc) rc = read_vocab(f, NULL, own, o, e);
    if (!rc) rc = hf_keep_generation(f, e);
    return rc ? rc : labels_from_hf(f, f->source->hf_config, e);
}

int foreign_open_gguf(struct foreign_model **out, const unsigned char *data, uint64_t n,
                      const struct foreign_options *o, struct err *e) {
    struct foreign_model *f;
    int rc = model_new(&f, e);
    if (rc) return rc;
    rc = open_gguf(f, NULL, data, n, o, e);
    if (rc)
        foreign_close(f);
    else
        *out = f;
    return rc;
}

/* Refuses a file of another format, by name if it is a known one. */
static int refuse_unknown(const struct mapped_file *m, struct err *e) {
    const unsigned char *d = m->data;
    if (m->size >= 8 && !memcmp(d, "\x89RILL\r\n", 7))
        return err_set(e, ERR_DATA, "this is a rill stream already: no import is needed");
    if (m->size >= 4 && (!memcmp(d, "PK\x03\x04", 4) || !memcmp(d, "\x80\x02", 2)))
        return err_set(e, ERR_DATA, "this looks like a PyTorch checkpoint: convert it to safetensors first");
    return err_set(e, ERR_DATA, "neither a GGUF file (it does not begin with 'GGUF') nor a .safetensors nor a folder");
}

/* Opens a folder, FOLDER/x.safetensors or x.gguf. Folders and GGUF files are recognized by content, not by name. */
static int open_path(struct foreign_model *f, const char *path, const struct foreign_options *o, struct err *e) {
    struct stat st;
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) return open_hf(f, path, NULL, o, e);
    if (ends_with(path, ".safetensors")) {
        const char *slash = strrchr(path, '/');
        const char *folder = slash ? arena_strndup(&f->memory, path, (size_t)(slash - path) + 1, e) : ".";
        return folder ? open_hf(f, folder, path, o, e) : e->code;
    }
    const struct mapped_file *m;
    if (access(path, F_OK))
        return err_set(e, ERR_IO, "%s: %s (models are read from local files: download it first)", path,
                       strerror(errno));
    int rc = source_map(f, path, &m, e);
    if (!rc && (m->size < 4 || memcmp(m->data, "GGUF", 4) != 0)) return refuse_unknown(m, e);
    return rc ? rc : open_gguf(f, path, m->data, m->size, o, e);
}

int foreign_open(struct foreign_model **out, const char *path, const struct foreign_options *o, struct err *e) {
    struct foreign_model *f;
    int rc = model_new(&f, e);
    if (rc) return rc;
    rc = open_path(f, path, o, e);
    if (!rc && o && o->fetch && !f->source->shards)
        rc = err_set(e, ERR_USAGE, "no folder with a " SHARD_INDEX ", and so without shards to fetch");
    if (rc) {
        foreign_close(f);
        return strncmp(e->msg, path, strlen(path)) == 0 ? rc : err_prefix(e, "%s", path);
    }
    *out = f;
    return 0;
}

struct digest foreign_digest(const struct foreign_model *f) {
    struct digest others = digest_get(f->source->digest);
    return f->source->shards ? shards_digest(f->source->shards, others) : others;
}

/* ---- one tensor ---- */

/* Headers of odd length leave tensors misaligned for floats. */
#define ALIGNMENT 16

static bool is_aligned(const void *p) {
    return ((uintptr_t)p & (ALIGNMENT - 1)) == 0;
}

static uint32_t heads_of(const struct model_config *c, struct model_slot s) {
    const struct model_layer *l = &c->layers[s.layer];
    return model_role_info(s.role)->rows == AXIS_QUERY ? l->n_heads : l->n_kv_heads;
}

/* Two scratch buffers: the one that *data does not point to may be overwritten. */
struct scratch_pair {
    struct buf *first, *second;
};
static void *other_scratch(struct scratch_pair *r, uint64_t n, struct err *e) {
    struct buf *b = r->first;
    r->first = r->second;
    r->second = b;
    b->len = 0;
    return buf_reserve(b, n, e) ? NULL : b->data;
}

static int add_one(const struct raw_tensor *t, uint64_t n, struct scratch_pair *scratch, const void **data,
                   struct err *e) {
    float *values = other_scratch(scratch, n * sizeof *values, e);
    if (!values) return e->code;
    tensor_to_f32(t->dtype, *data, values, n);
    for (uint64_t i = 0; i < n; i++) values[i] += 1;
    *data = values;
    return 0;
}

int foreign_tensor(struct foreign_model *f, struct model_slot s, struct tensor_desc *d, const void **data,
                   struct err *e) {
    struct foreign_source *source = f->source;
    struct arch_place place;
    struct scratch_pair scratch = {&source->scratch, &source->spare};
    long slot = model_slot_index(&f->config, s);
    if (slot < 0) return err_set(e, ERR_USAGE, "this model has no such tensor");
    struct raw_tensor *t = find_slot(f, s, &place);
    if (!t) return err_set(e, ERR_DATA, "tensor '%s' is missing", place.name);
    if (shards_need(f, t, (size_t)slot, e)) return e->code;
    if (describe(f, s, t, &place, d, e) != 0) return e->code;
    uint64_t rows = d->dims[0], cols = d->rank == 2 ? d->dims[1] : 1, offset;
    uint64_t row_bytes = dtype_row_bytes(t->dtype, cols);
    bool plain = arch_lies_plain(&place, t->dtype, cols, &offset);
    *data = t->data + offset;
    if (!plain || !is_aligned(*data)) {
        void *to = other_scratch(&scratch, rows * row_bytes, e);
        if (!to) return e->code;
        if (plain)
            memcpy(to, *data, rows * row_bytes);
        else
            arch_gather(&place, t->dtype, rows, cols, t->data, to);
        *data = to;
    }
    if (source->interleaved && slot_is_rotary(s)) {
        void *to = other_scratch(&scratch, rows * row_bytes, e);
        if (!to) return e->code;
        rows_split(to, *data, rows, row_bytes, heads_of(&f->config, s));
        *data = to;
    }
    return place.tensor->layout & MINUS_ONE ? add_one(t, rows * cols, &scratch, data, e) : 0;
}
