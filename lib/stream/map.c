/*
 * Random access to a file of one segment. An index entry is trusted only if the record at its offset agrees with it;
 * every record is verified on first use.
 */
#include "lib/stream/stream_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct map_tensor {
    uint64_t at, key; /* offset of the TENS record, hash of the name */
    cJSON *attrs;     /* parsed on first use */
    bool verified;    /* the checksum of its single raw chunk has been verified */
};

struct map_key {
    uint64_t key;
    size_t i;
};

struct stream_map {
    char *name;
    int fd;
    const unsigned char *data;
    uint64_t size;
    enum stream_kind kind;
    cJSON *meta, *prov;
    uint64_t n_provs;
    uint64_t vocab_at;          /* 0: none */
    struct map_tensor *tensors; /* [n], in the order of the file */
    struct map_key *keys;       /* [n], sorted */
    size_t n;
    struct stream_totals totals;
    bool has_digest; /* in totals */
    struct codecs codecs;
};

/* ---- records in the mapping -------------------------------------------------------------------------------------- */

static int fail_at(const struct stream_map *m, uint64_t at, struct err *e) {
    return err_prefix(e, "%s: record at byte %" PRIu64, m->name, at);
}

/* Decodes the header at `at` and checks that its payload lies within the file. */
static int record_at(const struct stream_map *m, uint64_t at, struct wire_record *r, struct err *e) {
    if (at % WIRE_ALIGN || at >= m->size || m->size - at < WIRE_RECORD_BYTES)
        return err_set(e, ERR_DATA, "lies outside the file");
    if (wire_record_decode(m->data + at, r, e)) return e->code;
    uint64_t padded, left = m->size - at - WIRE_RECORD_BYTES;
    if (!u64_align(r->stored, WIRE_ALIGN, &padded) || padded > left)
        return err_set(e, ERR_DATA, "payload of %" PRIu64 " bytes, the file ends after %" PRIu64, r->stored, left);
    return 0;
}

static uint64_t after(uint64_t at, const struct wire_record *r) {
    return at + WIRE_RECORD_BYTES + r->stored + wire_padding(r->stored);
}

static int verify_payload(const struct stream_map *m, uint64_t at, const struct wire_record *r, struct err *e) {
    const unsigned char *p = m->data + at + WIRE_RECORD_BYTES;
    if (wire_hash(p, (size_t)r->stored) != r->payload_hash) return err_set(e, ERR_DATA, "checksum mismatch");
    return wire_all_zero(p + r->stored, wire_padding(r->stored)) ? 0 : err_set(e, ERR_DATA, "padding is not zero");
}

/* Decodes and verifies the record at `at`, which must be of the given type. */
static int expect_record(const struct stream_map *m, uint64_t at, uint32_t tag, struct wire_record *r,
                         const unsigned char **payload, struct err *e) {
    char found[5], wanted[5];
    if (record_at(m, at, r, e)) return e->code;
    wire_tag_text(r->tag, found);
    wire_tag_text(tag, wanted);
    if (r->tag != tag)
        return err_set(e, ERR_DATA, "is %s, expected %s: the index does not match the file", found, wanted);
    if (r->stored > wire_payload_limit(tag)) return err_set(e, ERR_DATA, "payload of %" PRIu64 " bytes", r->stored);
    *payload = m->data + at + WIRE_RECORD_BYTES;
    return verify_payload(m, at, r, e);
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

static int add_prov(struct stream_map *m, uint64_t at, struct err *e) {
    struct wire_record r;
    const unsigned char *p;
    if (expect_record(m, at, TAG_PROV, &r, &p, e)) return fail_at(m, at, e);
    cJSON *entry = json_parse((const char *)p, (size_t)r.stored, e);
    if (!entry) return fail_at(m, at, e);
    cJSON_AddItemToArray(m->prov, entry);
    m->n_provs++;
    return 0;
}

static int set_meta(struct stream_map *m, enum stream_kind expect, struct err *e) {
    struct wire_record r;
    const unsigned char *p;
    const char *kind;
    if (expect_record(m, WIRE_HEAD_BYTES, TAG_META, &r, &p, e) ||
        !(m->meta = json_parse((const char *)p, (size_t)r.stored, e)) || json_get_str(m->meta, "kind", &kind, e) ||
        stream_kind_parse(kind, &m->kind, e))
        return fail_at(m, WIRE_HEAD_BYTES, e);
    if (expect != STREAM_ANY && expect != m->kind)
        return err_set(e, ERR_DATA, "%s: this is a %s stream, expected a %s stream", m->name, kind,
                       stream_kind_name(expect));
    if (m->kind == STREAM_TOKENS || m->kind == STREAM_KNOWLEDGE)
        return err_set(e, ERR_DATA,
                       "%s: this is a %s stream: it is read in order, tensor by tensor access needs a model", m->name,
                       kind);
    return 0;
}

static int take_entry(struct stream_map *m, const struct wire_entry *x, uint64_t *previous, struct err *e) {
    char tag[5];
    if (x->offset <= *previous || x->offset >= m->size)
        return err_set(e, ERR_DATA, "%s: index: offset %" PRIu64 " is out of order", m->name, x->offset);
    *previous = x->offset;
    if (x->tag == TAG_TENS) {
        if (m->n >= m->totals.tensors || x->number != m->n)
            return err_set(e, ERR_DATA, "%s: index: tensor %" PRIu64 " where tensor %zu of %" PRIu64 " is expected",
                           m->name, x->number, m->n, m->totals.tensors);
        m->tensors[m->n++] = (struct map_tensor){.at = x->offset, .key = x->key};
        return 0;
    }
    if (x->tag == TAG_PROV && x->number == m->n_provs && x->key == 0) return add_prov(m, x->offset, e);
    wire_tag_text(x->tag, tag);
    if (x->tag != TAG_VOCB || m->vocab_at || x->number || x->key)
        return err_set(e, ERR_DATA, "%s: index: an entry of type '%s' has no place here", m->name, tag);
    m->vocab_at = x->offset;
    return 0;
}

static int read_index(struct stream_map *m, uint64_t at, struct err *e) {
    struct wire_record r;
    struct wire_entry x;
    const unsigned char *p;
    uint64_t previous = 0;
    if (expect_record(m, at, TAG_INDX, &r, &p, e)) return fail_at(m, at, e);
    if (r.stored % WIRE_ENTRY_BYTES) return err_set(e, ERR_DATA, "%s: index of %" PRIu64 " bytes", m->name, r.stored);
    if (m->totals.tensors > r.stored / WIRE_ENTRY_BYTES)
        return err_set(e, ERR_DATA, "%s: index: tensors are missing", m->name);
    if (!(m->tensors = mem_array((size_t)m->totals.tensors, sizeof *m->tensors, e))) return e->code;
    for (uint64_t i = 0; i < r.stored; i += WIRE_ENTRY_BYTES) {
        if (wire_entry_decode(p + i, &x, e)) return fail_at(m, at, e);
        if (take_entry(m, &x, &previous, e)) return e->code;
    }
    if (m->n != m->totals.tensors)
        return err_set(e, ERR_DATA, "%s: index: %zu tensors, the end record says %" PRIu64, m->name, m->n,
                       m->totals.tensors);
    return 0;
}

/* Scans from the start if there is no index or no valid end record; errors are then found in file order. */
static int scan(struct stream_map *m, struct err *e) {
    struct stream_reader *r;
    struct stream_item item;
    struct buf found = {0};
    if (lseek(m->fd, 0, SEEK_SET) < 0) return err_sys(e, errno, "%s: cannot seek", m->name);
    if (stream_reader_open(&r, m->fd, m->name, STREAM_ANY, e)) return e->code;
    stream_reader_skim(r);
    int code;
    while (!(code = stream_next(r, &item, e)) && item.type != ITEM_EOF) {
        struct map_tensor t = {.at = item.offset, .key = wire_hash(item.desc.name, strlen(item.desc.name))};
        if (item.type == ITEM_TENSOR) code = buf_append(&found, &t, sizeof t, e);
        if (item.type == ITEM_VOCAB) m->vocab_at = item.offset;
        if (item.type == ITEM_PROV) code = add_prov(m, item.offset, e);
        if (code) break;
    }
    stream_reader_totals(r, &m->totals);
    m->has_digest = true;
    stream_reader_free(r);
    if (!code && m->totals.segments > 1)
        code = err_set(e, ERR_DATA, "%s: has %" PRIu64 " segments, a file to be mapped has one", m->name,
                       m->totals.segments);
    m->tensors = (void *)found.data; /* from mem_alloc, as struct buf guarantees */
    m->n = found.len / sizeof *m->tensors;
    return code;
}

/* Reads the end record. Returns false if there is none or it is invalid. */
static bool read_end(struct stream_map *m, struct wire_ends *ends) {
    struct err ignored;
    struct wire_record r;
    const unsigned char *p;
    uint64_t tail = WIRE_RECORD_BYTES + WIRE_ENDS_BYTES;
    if (m->size < WIRE_HEAD_BYTES + tail) return false;
    if (expect_record(m, m->size - tail, TAG_ENDS, &r, &p, &ignored) || r.stored != WIRE_ENDS_BYTES) return false;
    return !wire_ends_decode(p, WIRE_ENDS_BYTES, ends, &ignored);
}

static int locate(struct stream_map *m, enum stream_kind expect, struct err *e) {
    struct wire_head head;
    struct wire_ends ends;
    size_t n = m->size < WIRE_HEAD_BYTES ? (size_t)m->size : WIRE_HEAD_BYTES;
    if (wire_head_decode(m->data, n, &head, e)) return err_prefix(e, "%s", m->name);
    if (!read_end(m, &ends)) return scan(m, e) || set_meta(m, expect, e) ? e->code : 0;
    if (set_meta(m, expect, e)) return e->code;
    if (ends.segment_bytes < m->size)
        return err_set(e, ERR_DATA, "%s: has several segments, a file to be mapped has one", m->name);
    if (!ends.index_offset && ends.tensors) return scan(m, e);
    m->totals = (struct stream_totals){.bytes = m->size,
                                       .raw_bytes = ends.raw_bytes,
                                       .records = ends.records,
                                       .tensors = ends.tensors,
                                       .batches = ends.batches,
                                       .positions = ends.positions,
                                       .segments = 1};
    return ends.index_offset ? read_index(m, ends.index_offset, e) : 0;
}

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

/* Decodes the tensor's description; *data_at is the offset of its first DATA record. */
static int decode_tensor(const struct stream_map *m, size_t i, struct wire_tens *t, uint64_t *data_at, struct err *e) {
    const struct map_tensor *x = &m->tensors[i];
    struct wire_record r;
    const unsigned char *p;
    uint64_t n_elems, n_bytes;
    if (expect_record(m, x->at, TAG_TENS, &r, &p, e) || wire_tens_decode(p, (size_t)r.stored, t, e) ||
        tensor_desc_check(&t->desc, &n_elems, &n_bytes, e))
        return e->code;
    *data_at = after(x->at, &r);
    if (r.tensor != i || wire_hash(t->desc.name, strlen(t->desc.name)) != x->key)
        return err_set(e, ERR_DATA, "is tensor %u '%s': the index says otherwise", r.tensor, t->desc.name);
    return t->n_bytes == n_bytes ? 0 : err_set(e, ERR_DATA, "tensor '%s': size and dimensions disagree", t->desc.name);
}

/* Iterates over the chunks of a tensor under the same rules as the reader. */
struct walk {
    struct segment rules;
    struct wire_record r;
    uint64_t at, next, stored; /* of this chunk's record; of the next one; stored bytes so far */
};

static void walk_begin(struct walk *k, const struct wire_tens *t, size_t i, uint64_t data_at) {
    *k = (struct walk){.next = data_at};
    k->rules =
        (struct segment){.tensor_open = true, .desc = t->desc, .number = (uint32_t)i, .tensor_bytes = t->n_bytes};
}

static int walk_step(const struct stream_map *m, struct walk *k, struct err *e) {
    k->at = k->next;
    if (record_at(m, k->at, &k->r, e)) return e->code;
    if (k->r.tag != TAG_DATA || k->r.codec > CODEC_SPARSE || k->r.flags & ~WIRE_LAST_CHUNK)
        return err_set(e, ERR_DATA, "is not data that this version understands, inside tensor '%s'",
                       k->rules.desc.name);
    if (segment_data(&k->rules, &k->r, e)) return e->code;
    k->stored += k->r.stored;
    k->next = after(k->at, &k->r);
    return 0;
}

int stream_map_entry(struct stream_map *m, size_t i, struct stream_map_entry *out, struct err *e) {
    struct map_tensor *x = &m->tensors[i];
    struct wire_tens t;
    struct walk k;
    uint64_t data_at;
    if (decode_tensor(m, i, &t, &data_at, e)) return fail_at(m, x->at, e);
    if (t.n_attrs && !x->attrs && !(x->attrs = json_parse(t.attrs, t.n_attrs, e))) return fail_at(m, x->at, e);
    walk_begin(&k, &t, i, data_at);
    while (k.rules.tensor_open)
        if (walk_step(m, &k, e)) return fail_at(m, k.at, e);
    *out = (struct stream_map_entry){.desc = t.desc, .attrs = x->attrs, .offset = x->at, .stored_bytes = k.stored};
    return 0;
}

static int decode_group(struct stream_map *m, struct chunk *group, size_t n, const uint64_t *at, struct err *e) {
    size_t failed;
    return codec_decode(&m->codecs, group, n, &failed, e) ? fail_at(m, at[failed], e) : 0;
}

/* Describes the chunk at k, to be decoded to `dst`. */
static int chunk_of(struct stream_map *m, const struct walk *k, unsigned char *dst, struct chunk *out, struct err *e) {
    const unsigned char *p = m->data + k->at + WIRE_RECORD_BYTES;
    *out = (struct chunk){
        .codec = (enum stream_codec)k->r.codec,
        .dtype = dtype_info(k->rules.desc.dtype),
        .stored = p,
        .n_stored = k->r.stored,
        .raw = dst,
        .n_raw = k->r.raw,
        .payload_hash = k->r.payload_hash,
    };
    if (wire_all_zero(p + k->r.stored, wire_padding(k->r.stored))) return 0;
    err_set(e, ERR_DATA, "padding is not zero");
    return fail_at(m, k->at, e);
}

/* Decodes all chunks; the caller has checked their headers. */
static int decode_all(struct stream_map *m, const struct wire_tens *t, size_t i, uint64_t data_at, unsigned char *dst,
                      struct err *e) {
    struct chunk group[CODEC_GROUP] = {0};
    uint64_t at[CODEC_GROUP];
    struct walk k;
    size_t n = 0;
    walk_begin(&k, t, i, data_at);
    while (k.rules.tensor_open) {
        if (walk_step(m, &k, e)) return fail_at(m, k.at, e);
        if (chunk_of(m, &k, dst + k.r.raw_offset, &group[n], e)) return e->code;
        at[n++] = k.at;
        if (n < CODEC_GROUP && k.rules.tensor_open) continue;
        if (decode_group(m, group, n, at, e)) return e->code;
        n = 0;
    }
    return 0;
}

int stream_map_pieces(struct stream_map *m, size_t i, struct buf *scratch, stream_map_piece_fn *fn, void *ctx,
                      struct err *e) {
    struct wire_tens t;
    struct walk k;
    struct chunk one;
    uint64_t data_at;
    if (decode_tensor(m, i, &t, &data_at, e)) return fail_at(m, m->tensors[i].at, e);
    walk_begin(&k, &t, i, data_at);
    while (k.rules.tensor_open) {
        const void *data = m->data + k.next + WIRE_RECORD_BYTES;
        if (walk_step(m, &k, e)) return fail_at(m, k.at, e);
        if (k.r.codec == CODEC_RAW) {
            if (verify_payload(m, k.at, &k.r, e)) return fail_at(m, k.at, e);
        } else {
            scratch->len = 0;
            if (buf_reserve(scratch, (size_t)k.r.raw, e)) return err_prefix(e, "%s: tensor '%s'", m->name, t.desc.name);
            if (chunk_of(m, &k, scratch->data, &one, e) || decode_group(m, &one, 1, &k.at, e)) return e->code;
            data = scratch->data;
        }
        if (k.r.raw && fn(ctx, data, (size_t)k.r.raw, e)) return e->code;
    }
    return 0;
}

int stream_map_data(struct stream_map *m, size_t i, struct buf *scratch, const void **data, struct err *e) {
    PROFILE(READING);
    struct map_tensor *x = &m->tensors[i];
    struct wire_tens t;
    struct walk k;
    uint64_t data_at;
    if (decode_tensor(m, i, &t, &data_at, e)) return fail_at(m, x->at, e);
    walk_begin(&k, &t, i, data_at);
    if (walk_step(m, &k, e)) return fail_at(m, k.at, e);
    if (k.r.codec == CODEC_RAW && !k.rules.tensor_open) {
        if (!x->verified && verify_payload(m, k.at, &k.r, e)) return fail_at(m, k.at, e);
        x->verified = true;
        *data = m->data + k.at + WIRE_RECORD_BYTES;
        return 0;
    }
    while (k.rules.tensor_open) /* check that the chunks exist before allocating the size they declare */
        if (walk_step(m, &k, e)) return fail_at(m, k.at, e);
    scratch->len = 0;
    if (buf_reserve(scratch, (size_t)t.n_bytes, e)) return err_prefix(e, "%s: tensor '%s'", m->name, t.desc.name);
    scratch->len = (size_t)t.n_bytes;
    *data = scratch->data;
    return decode_all(m, &t, i, data_at, scratch->data, e);
}

void stream_map_forget(struct stream_map *m, size_t i) {
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), first = m->tensors[i].at / page * page;
    uint64_t end = i + 1 < m->n ? m->tensors[i + 1].at : m->size;
    m->tensors[i].verified = false;
    (void)madvise((void *)(uintptr_t)(m->data + first), (size_t)(end - first), MADV_DONTNEED); /* only advice */
}

/* ---- by name ----------------------------------------------------------------------------------------------------- */

static int compare_keys(const void *a, const void *b) {
    const struct map_key *x = a, *y = b;
    return (x->key > y->key) - (x->key < y->key);
}

/* Sorts the keys for lookup by name. ERR_DATA if two tensors have the same name. */
static int sort_names(struct stream_map *m, struct err *e) {
    struct wire_tens a, b;
    uint64_t at;
    if (!(m->keys = mem_array(m->n, sizeof *m->keys, e))) return e->code;
    for (size_t i = 0; i < m->n; i++) m->keys[i] = (struct map_key){m->tensors[i].key, i};
    if (m->n) qsort(m->keys, m->n, sizeof *m->keys, compare_keys);
    for (size_t i = 1; i < m->n; i++) {
        if (m->keys[i].key != m->keys[i - 1].key) continue;
        if (decode_tensor(m, m->keys[i - 1].i, &a, &at, e) || decode_tensor(m, m->keys[i].i, &b, &at, e))
            return err_prefix(e, "%s: index", m->name);
        if (!strcmp(a.desc.name, b.desc.name))
            return err_set(e, ERR_DATA, "%s: tensor '%s' occurs twice", m->name, a.desc.name);
    }
    return 0;
}

long stream_map_find(const struct stream_map *m, const char *name) {
    uint64_t key = wire_hash(name, strlen(name)), at;
    size_t lo = 0, hi = m->n;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (m->keys[mid].key < key)
            lo = mid + 1;
        else
            hi = mid;
    }
    for (; lo < m->n && m->keys[lo].key == key; lo++) {
        struct wire_tens t;
        struct err broken; /* the caller's next call on this tensor reports the error */
        if (decode_tensor(m, m->keys[lo].i, &t, &at, &broken) || !strcmp(t.desc.name, name)) return (long)m->keys[lo].i;
    }
    return -1;
}

/* ---- the rest ---------------------------------------------------------------------------------------------------- */

static int open_file(struct stream_map *m, const char *path, struct err *e) {
    struct stat st;
    if ((m->fd = open(path, O_RDONLY | O_CLOEXEC)) < 0) return err_sys(e, errno, "%s", path);
    if (fstat(m->fd, &st)) return err_sys(e, errno, "%s", path);
    if (S_ISDIR(st.st_mode)) return err_set(e, ERR_IO, "%s is a folder, expected a model stream (rill import)", path);
    if (!S_ISREG(st.st_mode))
        return err_set(e, ERR_IO, "%s: not a regular file (this program needs one here, not a pipe)", path);
    m->size = (uint64_t)st.st_size;
    if (m->size == 0) return 0;
    void *p = mmap(NULL, (size_t)m->size, PROT_READ, MAP_SHARED, m->fd, 0);
    if (p == MAP_FAILED) return err_sys(e, errno, "%s: cannot map", path);
    m->data = p;
    return 0;
}

int stream_map_open(struct stream_map **out, const char *path, enum stream_kind expect, struct err *e) {
    struct stream_map *m = mem_zalloc(sizeof *m, e);
    if (!m) return e->code;
    m->fd = -1;
    if (!(m->name = mem_strdup(path, e))) goto fail;
    if (!(m->prov = cJSON_CreateArray())) {
        err_nomem(e, "stream map");
        goto fail;
    }
    if (open_file(m, path, e) || locate(m, expect, e) || sort_names(m, e)) goto fail;
    *out = m;
    return 0;
fail:
    stream_map_free(m);
    return e->code;
}

void stream_map_free(struct stream_map *m) {
    if (!m) return;
    for (size_t i = 0; i < m->n; i++) cJSON_Delete(m->tensors[i].attrs);
    mem_free(m->tensors);
    mem_free(m->keys);
    cJSON_Delete(m->meta);
    cJSON_Delete(m->prov);
    codecs_release(&m->codecs);
    if (m->data) munmap((void *)m->data, (size_t)m->size);
    if (m->fd >= 0) close(m->fd);
    mem_free(m->name);
    mem_free(m);
}

int stream_map_vocab(struct stream_map *m, const void **data, size_t *n, struct err *e) {
    struct wire_record r;
    const unsigned char *p;
    *n = 0;
    *data = NULL;
    if (!m->vocab_at) return 0;
    if (expect_record(m, m->vocab_at, TAG_VOCB, &r, &p, e)) return fail_at(m, m->vocab_at, e);
    *data = p;
    *n = (size_t)r.stored;
    return 0;
}

const cJSON *stream_map_meta(const struct stream_map *m) {
    return m->meta;
}
size_t stream_map_count(const struct stream_map *m) {
    return m->n;
}
const cJSON *stream_map_prov(struct stream_map *m) {
    return m->prov;
}

/* Walks all record headers; thereby also checks those not in the index, and that the end record is in place. */
static int digest_content(struct stream_map *m, struct digest_state *content, struct err *e) {
    struct wire_record r = {.tag = TAG_META};
    unsigned char p[WIRE_CONTENT_BYTES];
    for (uint64_t at = WIRE_HEAD_BYTES; r.tag != TAG_ENDS; at = after(at, &r)) {
        if (record_at(m, at, &r, e)) return fail_at(m, at, e);
        if (!wire_is_content(r.tag)) continue;
        wire_record_content(p, &r);
        digest_update(content, p, sizeof p);
    }
    m->totals.digest = digest_get(content);
    m->has_digest = true;
    return 0;
}

int stream_map_totals(struct stream_map *m, struct stream_totals *out, struct err *e) {
    struct digest_state *content = m->has_digest ? NULL : digest_new(e);
    if (!m->has_digest && !content) return e->code;
    int rc = content ? digest_content(m, content, e) : 0;
    digest_free(content);
    *out = m->totals;
    return rc;
}
