/* Opening a foreign model whatever its format, and handing out its tensors by role. */
#include <sys/stat.h>

#include "lib/formats/formats_internal.h"

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
        cJSON_Delete(f->source->hf_config);
        cJSON_Delete(f->source->hf_generation);
        buf_release(&f->source->scratch);
        mem_free(f->source);
    }
    vocab_free(f->vocab);
    cJSON_Delete(f->extra);
    arena_release(&f->memory);
    mem_free(f);
}

int source_map(struct foreign_model *f, const char *path, const struct mapped_file **out, struct err *e) {
    struct source_file *x = arena_array(&f->memory, 1, sizeof *x, e);
    if (!x) return e->code;
    int rc = mapped_file_open(&x->m, path, e);
    if (rc) return rc;
    x->next = f->source->files;
    f->source->files = x;
    if (x->m.size) digest_update(f->source->digest, x->m.data, x->m.size);
    *out = &x->m;
    return 0;
}

/* ---- which tensors there are ---- */

static struct raw_tensor *find_slot(const struct foreign_model *f, struct model_slot s, struct err *e) {
    char name[TENSOR_MAX_NAME + 1];
    struct raw_tensor *t = raw_table_find(&f->source->tensors, slot_foreign_name(f->source->naming, s, name));
    if (!t) err_set(e, ERR_DATA, "tensor '%s' is missing", name);
    return t;
}

/* The description of a slot's tensor under Rill's name; the message about a wrong shape has the file's. */
static int describe(const struct foreign_model *f, struct model_slot s, const struct raw_tensor *t,
                    struct tensor_desc *d, struct err *e) {
    const struct dtype_info *type = dtype_info(t->dtype);
    if (!type->is_float && !type->is_quantized)
        return err_set(e, ERR_DATA, "tensor '%s' is of type %s, which is no weight", t->name, type->name);
    if (type->is_quantized && !model_role_is_matrix(s.role))
        return err_set(e, ERR_DATA, "tensor '%s' is a vector of type %s, which is not supported", t->name, type->name);
    *d = (struct tensor_desc){.dtype = t->dtype, .rank = t->rank};
    memcpy(d->dims, t->dims, sizeof d->dims);
    snprintf(d->name, sizeof d->name, "%s", t->name);
    int rc = model_slot_check(&f->config, s, d, e);
    model_slot_name(s, d->name);
    return rc;
}

static bool all_zero(const struct raw_tensor *t) {
    for (uint64_t i = 0; i < t->n_bytes; i++)
        if (t->data[i]) return false;
    return true;
}

static bool ends_with(const char *s, const char *end) {
    size_t n = strlen(s), m = strlen(end);
    return n >= m && strcmp(s + n - m, end) == 0;
}

/* Buffers that follow from the configuration, which is what counts. */
static const char *const derived[] = {".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached"};

static bool is_derived(const char *name) {
    for (size_t i = 0; i < COUNT_OF(derived); i++)
        if (ends_with(name, derived[i])) return true;
    return strcmp(name, "rope_freqs.weight") == 0; /* GGUF: read with the configuration */
}

/* A tensor that no role asks for was trained for something: it is refused unless it is known to say nothing, or is a
 * bias of zeros. */
static int check_leftover(const struct foreign_model *f, const struct raw_tensor *t, struct err *e) {
    if (is_derived(t->name)) return 0;
    if (!ends_with(t->name, ".bias"))
        return err_set(e, ERR_DATA, "tensor '%s' has no role in a %s model as Rill knows it", t->name,
                       model_arch_name(f->config.arch));
    if (all_zero(t)) return 0;
    bool qkv =
        ends_with(t->name, ".q_proj.bias") || ends_with(t->name, ".k_proj.bias") || ends_with(t->name, ".v_proj.bias");
    if (qkv && !f->config.qkv_bias)
        return err_set(e, ERR_DATA, "tensor '%s' is not zero, but config.json says no biases (\"attention_bias\")",
                       t->name);
    return err_set(e, ERR_DATA, "tensor '%s' is not zero: a bias there is not supported", t->name);
}

/* config.json may tie the head to the embedding although training has made two of them: as in transformers, what the
 * weights say counts. Heads of the same bits are one. */
static void resolve_tie(struct foreign_model *f) {
    char name[TENSOR_MAX_NAME + 1];
    struct raw_table *table = &f->source->tensors;
    struct raw_tensor *head, *embed;
    head = raw_table_find(table, slot_foreign_name(f->source->naming, (struct model_slot){.role = ROLE_HEAD}, name));
    if (!f->config.tied || !head) return;
    embed = raw_table_find(table, slot_foreign_name(f->source->naming, (struct model_slot){.role = ROLE_EMBED}, name));
    head->used = embed && embed->dtype == head->dtype && embed->n_bytes == head->n_bytes &&
                 memcmp(embed->data, head->data, head->n_bytes) == 0;
    if (head->used) return;
    f->config.tied = false;
    log_line(LOG_WARN, "config.json ties '%s' to the embedding, but the two differ: both are kept", head->name);
}

static int check_slot(struct foreign_model *f, struct model_slot s, struct err *e) {
    struct tensor_desc d;
    struct raw_tensor *t = find_slot(f, s, e);
    if (!t && s.role == ROLE_HEAD)
        return err_set(e, ERR_DATA,
                       "tensor 'lm_head.weight' is missing, and config.json does not tie it to the "
                       "embedding (\"tie_word_embeddings\")");
    if (!t || describe(f, s, t, &d, e) != 0) return e->code;
    t->used = true;
    return 0;
}

/* Everything is there and of the right shape before anybody begins to write. */
static int check_tensors(struct foreign_model *f, struct err *e) {
    int rc = 0;
    resolve_tie(f);
    size_t n = model_slot_count(&f->config);
    for (size_t i = 0; i < n && !rc; i++) rc = check_slot(f, model_slot_at(&f->config, i), e);
    for (size_t i = 0; i < f->source->tensors.n && !rc; i++)
        if (!f->source->tensors.items[i].used) rc = check_leftover(f, &f->source->tensors.items[i], e);
    return rc;
}

/* ---- opening ---- */

/* The draft becomes the vocabulary: as many tokens as the embedding has rows. */
static int take_vocab(struct foreign_model *f, struct vocab *spec, struct err *e) {
    int rc = draft_pad(spec, f->config.vocab_size, e);
    if (!rc) rc = draft_finish(spec, &f->vocab, e);
    return rc ? err_prefix(e, "tokenizer") : 0;
}

/* The tokenizer that was asked for, or the source's own: `own` is its tokenizer's file, else the GGUF has the keys. */
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

static int put_general(struct foreign_model *f, const struct gguf_file *g, struct err *e) {
    cJSON *general = NULL;
    int rc = gguf_read_general(g, &f->memory, &general, e);
    if (rc || !general) return rc;
    f->extra = cJSON_CreateObject();
    if (f->extra && cJSON_AddItemToObject(f->extra, "general", general)) return 0;
    cJSON_Delete(general);
    return err_nomem(e, "general keys");
}

static int open_gguf(struct foreign_model *f, const unsigned char *data, uint64_t n, const struct foreign_options *o,
                     struct err *e) {
    struct gguf_file g = {0};
    const struct gguf_arch *arch = NULL;
    int rc = gguf_parse(&g, data, n, &f->memory, e);
    if (!rc) rc = gguf_read_arch(&g, &f->memory, &arch, e);
    if (!rc) rc = gguf_read_config(&g, arch, &f->config, &f->memory, e);
    if (!rc) rc = put_general(f, &g, e);
    f->format = "gguf";
    f->source->naming = NAMES_GGUF;
    f->source->interleaved = arch && arch->interleaved;
    f->source->tensors = g.tensors; /* they outlive the keys */
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
    f->source->naming = NAMES_HF;
    int rc = hf_read_model(f, folder, weights, e);
    if (!rc) rc = check_tensors(f, e);
    if (!rc && !(o && (o->no_tokenizer || o->tokenizer))) rc = hf_find_tokenizer(f, folder, &own, e);
    if (!rc) rc = hf_read_generation(f, folder, e);
    if (!rc) rc = read_vocab(f, NULL, own, o, e);
    return rc ? rc : hf_keep_generation(f, e);
}

int foreign_open_gguf(struct foreign_model **out, const unsigned char *data, uint64_t n,
                      const struct foreign_options *o, struct err *e) {
    struct foreign_model *f;
    int rc = model_new(&f, e);
    if (rc) return rc;
    rc = open_gguf(f, data, n, o, e);
    if (rc)
        foreign_close(f);
    else
        *out = f;
    return rc;
}

/* A folder, FOLDER/x.safetensors or x.gguf: told apart by what is there, then by the first bytes, never by the
 * name alone. */
static int open_path(struct foreign_model *f, const char *path, const struct foreign_options *o, struct err *e) {
    struct stat st;
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) return open_hf(f, path, NULL, o, e);
    if (ends_with(path, ".safetensors")) {
        const char *slash = strrchr(path, '/');
        const char *folder = slash ? arena_strndup(&f->memory, path, (size_t)(slash - path) + 1, e) : ".";
        return folder ? open_hf(f, folder, path, o, e) : e->code;
    }
    const struct mapped_file *m;
    int rc = source_map(f, path, &m, e);
    return rc ? rc : open_gguf(f, m->data, m->size, o, e);
}

int foreign_open(struct foreign_model **out, const char *path, const struct foreign_options *o, struct err *e) {
    struct foreign_model *f;
    int rc = model_new(&f, e);
    if (rc) return rc;
    rc = open_path(f, path, o, e);
    if (rc) {
        foreign_close(f);
        return strncmp(e->msg, path, strlen(path)) == 0 ? rc : err_prefix(e, "%s", path);
    }
    f->digest = digest_get(f->source->digest);
    *out = f;
    return 0;
}

/* ---- one tensor ---- */

/* Headers of odd length leave tensors where no float may be read from. */
#define ALIGNMENT 16

static bool is_aligned(const void *p) {
    return ((uintptr_t)p & (ALIGNMENT - 1)) == 0;
}

int foreign_tensor(struct foreign_model *f, struct model_slot s, struct tensor_desc *d, const void **data,
                   struct err *e) {
    struct foreign_source *source = f->source;
    if (model_slot_index(&f->config, s) < 0) return err_set(e, ERR_USAGE, "this model has no such tensor");
    const struct raw_tensor *t = find_slot(f, s, e);
    if (!t || describe(f, s, t, d, e) != 0) return e->code;
    bool reorder = source->interleaved && slot_is_rotary(s);
    *data = t->data;
    if (!reorder && is_aligned(t->data)) return 0;

    source->scratch.len = 0;
    int rc = buf_reserve(&source->scratch, t->n_bytes, e);
    if (rc) return rc;
    *data = source->scratch.data;
    if (!reorder) {
        memcpy(source->scratch.data, t->data, t->n_bytes);
        return 0;
    }
    const struct model_layer *l = &f->config.layers[s.layer];
    bool is_q = s.role == ROLE_Q || s.role == ROLE_Q_BIAS;
    rows_split(source->scratch.data, t->data, t->dims[0], t->n_bytes / t->dims[0], is_q ? l->n_heads : l->n_kv_heads);
    return 0;
}
