/*
 * The shards of a Hugging Face folder. A shard that the folder lacks is fetched to an unnamed file when one of its
 * tensors is needed; then the shard before it is dropped. Only a layer that spans two shards needs both: transformers
 * saves attention before the norms, which come first here. What that layer still needs of the first shard is therefore
 * copied, so that each shard is fetched once.
 */
#include <errno.h>
#include <unistd.h>

#include "lib/formats/formats_internal.h"

struct shard {
    const char *file;     /* of a shard to be fetched */
    size_t n;             /* number of tensors, by the index */
    struct digest digest; /* once it has been read */
    bool read;
};
struct kept {
    struct raw_tensor *tensor;
    struct mapped_file m;
    struct kept *next;
};
struct shards {
    foreign_fetch *fetch;
    void *ctx;
    struct buf memory; /* holds items */
    struct shard *items;
    uint32_t n, here; /* here: number, from 1, of the fetched shard that is mapped; 0: none */
    struct mapped_file m;
    struct kept *kept;
};

int shards_new(struct shards **out, const struct foreign_options *o, struct err *e) {
    *out = mem_zalloc(sizeof **out, e);
    if (!*out) return e->code;
    if (o) (*out)->fetch = o->fetch, (*out)->ctx = o->fetch_ctx;
    return 0;
}

void shards_free(struct shards *x) {
    if (!x) return;
    for (struct kept *k = x->kept, *next; k; k = next) {
        next = k->next;
        mapped_file_close(&k->m);
        mem_free(k);
    }
    mapped_file_close(&x->m);
    buf_release(&x->memory);
    mem_free(x);
}

bool shards_fetch(const struct shards *x) {
    return x->fetch != NULL;
}

struct digest shards_digest(const struct shards *x, struct digest others) {
    for (uint32_t i = 0; i < x->n; i++)
        if (x->items[i].read) others = digest_bytes((struct digest[]){others, x->items[i].digest}, 2 * sizeof others);
    return others;
}

/* ---- listing shards ---- */

static int add(struct shards *x, const struct shard *s, struct err *e) {
    int rc = buf_append(&x->memory, s, sizeof *s, e);
    x->items = (void *)x->memory.data;
    if (!rc) x->n++;
    return rc;
}

int shards_add_known(struct shards *x, struct digest digest, struct err *e) {
    return add(x, &(struct shard){.digest = digest, .read = true}, e);
}

int shards_add_absent(struct foreign_model *f, const char *file, const char *const *names, size_t n, struct err *e) {
    struct shards *x = f->source->shards;
    struct raw_table *t = &f->source->tensors;
    struct shard s = {.file = arena_strdup(&f->memory, file, e), .n = n};
    int rc = s.file ? add(x, &s, e) : e->code;
    if (!rc) rc = raw_table_reserve(t, n, e);
    for (size_t i = 0; i < n && !rc; i++) {
        const char *name = arena_strdup(&f->memory, names[i], e);
        if (!name) return e->code;
        if (!name_valid(name, strlen(name)))
            return err_set(e, ERR_DATA,
                           SHARD_INDEX ": a tensor name is not 1 to 1024 bytes without control characters");
        t->items[t->n++] = (struct raw_tensor){.name = name, .indexed = name, .shard = x->n, .unknown = true};
    }
    return rc;
}

/* ---- dropping shards ---- */

/* Copies the tensor to an unnamed file in TMPDIR, where the shard was, too. */
static int keep(struct shards *x, struct raw_tensor *t, struct err *e) {
    int fd, rc = out_scratch(&fd, e);
    struct kept *k = rc ? NULL : mem_zalloc(sizeof *k, e);
    if (!rc && !k) rc = e->code;
    if (!rc && !fd_write(fd, t->data, t->n_bytes)) rc = err_sys(e, errno, "copy of tensor '%s' (TMPDIR)", t->name);
    if (!rc) rc = mapped_file_of(&k->m, fd, e);
    if (fd >= 0) close(fd);
    if (rc) {
        mem_free(k);
        return rc;
    }
    k->tensor = t;
    k->next = x->kept;
    x->kept = k;
    t->data = k->m.data;
    t->kept = true;
    return 0;
}

/* The last slot in the layer of this slot. */
static size_t layer_end(const struct model_config *c, size_t slot) {
    struct model_slot s = model_slot_at(c, slot);
    return model_role_in_layer(s.role) ? model_slot_of_layer(c, s.layer + 1) - 1 : slot;
}

static bool layer_needs(const struct foreign_model *f, const struct raw_tensor *t, size_t slot) {
    return slot != NO_SLOT && t->needed > slot && t->needed <= layer_end(&f->config, slot) + 1;
}

static int let_go(struct foreign_model *f, size_t slot, struct err *e) {
    struct shards *x = f->source->shards;
    int rc = 0;
    for (size_t i = 0; i < f->source->tensors.n; i++) {
        struct raw_tensor *t = &f->source->tensors.items[i];
        if (t->shard != x->here || t->kept) continue;
        if (!rc && layer_needs(f, t, slot)) rc = keep(x, t, e);
        if (!t->kept) t->data = NULL;
    }
    mapped_file_close(&x->m);
    x->here = 0;
    return rc;
}

/* Drops copies that no slot from this one on needs. */
static void drop_copies(struct shards *x, size_t slot) {
    for (struct kept **at = &x->kept, *k; (k = *at);) {
        if (k->tensor->needed > slot) {
            at = &k->next;
            continue;
        }
        *at = k->next;
        k->tensor->data = NULL;
        k->tensor->kept = false;
        mapped_file_close(&k->m);
        mem_free(k);
    }
}

/* ---- fetching ---- */

/* The shard's tensors must be exactly those that the index lists for it. */
static int take_tensors(struct foreign_model *f, uint32_t number, struct raw_table *found, struct err *e) {
    const struct shards *x = f->source->shards;
    const struct shard *s = &x->items[number - 1];
    if (found->n != s->n) return err_set(e, ERR_DATA, "it has %zu tensors, " SHARD_INDEX " names %zu", found->n, s->n);
    for (size_t i = 0; i < f->source->tensors.n; i++) {
        struct raw_tensor *t = &f->source->tensors.items[i];
        if (t->shard != number) continue;
        const struct raw_tensor *from = raw_table_find(found, t->indexed);
        if (!from)
            return err_set(e, ERR_DATA, "tensor '%s' is not in it, where " SHARD_INDEX " says that it is", t->indexed);
        t->dtype = from->dtype;
        t->rank = from->rank;
        memcpy(t->dims, from->dims, sizeof t->dims);
        t->n_bytes = from->n_bytes;
        t->unknown = false;
        if (!t->kept) t->data = from->data;
    }
    return 0;
}

static int read_shard(struct foreign_model *f, uint32_t number, struct err *e) {
    struct shards *x = f->source->shards;
    struct shard *s = &x->items[number - 1];
    struct raw_table found = {0};
    struct arena names = {0};
    struct digest digest = digest_bytes(x->m.data, x->m.size);
    if (s->read && !digest_equal(digest, s->digest))
        return err_set(e, ERR_DATA, "it is another file than when it was fetched before");
    s->digest = digest;
    s->read = true;
    int rc = safetensors_parse(&found, x->m.data, x->m.size, &names, e);
    if (!rc) rc = raw_table_sort(&found, e);
    if (!rc) rc = take_tensors(f, number, &found, e);
    raw_table_release(&found);
    arena_release(&names);
    return rc;
}

static int fetch(struct foreign_model *f, uint32_t number, struct err *e) {
    struct shards *x = f->source->shards;
    const struct shard *s = &x->items[number - 1];
    int fd, rc = out_scratch(&fd, e);
    if (rc) return rc;
    if (s->read) log_line(LOG_WARN, "%s is needed again, and fetched once more", s->file);
    rc = x->fetch(x->ctx, s->file, fd, e);
    if (!rc) rc = mapped_file_of(&x->m, fd, e);
    close(fd);
    if (rc) return err_prefix(e, "%s", s->file);
    x->here = number;
    rc = read_shard(f, number, e);
    return rc ? err_prefix(e, "%s", s->file) : 0;
}

/* The shard to fetch next for this tensor: the first of those that the layer still needs. So the last one remains,
 * which the next layer needs. */
static uint32_t next_shard(const struct foreign_model *f, const struct raw_tensor *t, size_t slot) {
    uint32_t first = t->shard;
    for (size_t i = 0; i < f->source->tensors.n; i++) {
        const struct raw_tensor *other = &f->source->tensors.items[i];
        if (other->shard && other->shard < first && !other->data && layer_needs(f, other, slot)) first = other->shard;
    }
    return first;
}

int shards_need(struct foreign_model *f, struct raw_tensor *t, size_t slot, struct err *e) {
    struct shards *x = f->source->shards;
    if (!x || !t->shard) return 0;
    if (slot != NO_SLOT) drop_copies(x, slot);
    int rc = 0;
    while (!t->data && !rc) {
        uint32_t number = next_shard(f, t, slot);
        if (x->here) rc = let_go(f, slot, e);
        if (!rc) rc = fetch(f, number, e);
    }
    return rc;
}
