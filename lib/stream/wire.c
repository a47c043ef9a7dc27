/* Encodes and decodes the headers and fixed fields of the format. */
#include "lib/stream/wire_internal.h"

#include <ctype.h>
#include <inttypes.h>

static const unsigned char magic[8] = {0x89, 'R', 'I', 'L', 'L', '\r', '\n', 0x1a};
static const unsigned char resync[4] = {0xd2, 'R', 'E', 'C'};

static void put16(unsigned char *p, uint16_t v) {
    p[0] = (unsigned char)v;
    p[1] = (unsigned char)(v >> 8);
}

static void put32(unsigned char *p, uint32_t v) {
    put16(p, (uint16_t)v);
    put16(p + 2, (uint16_t)(v >> 16));
}

static void put64(unsigned char *p, uint64_t v) {
    put32(p, (uint32_t)v);
    put32(p + 4, (uint32_t)(v >> 32));
}

static uint16_t get16(const unsigned char *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}
static uint32_t get32(const unsigned char *p) {
    return get16(p) | (uint32_t)get16(p + 2) << 16;
}
static uint64_t get64(const unsigned char *p) {
    return get32(p) | (uint64_t)get32(p + 4) << 32;
}

void wire_u64_encode(unsigned char out[8], uint64_t v) {
    put64(out, v);
}
void wire_u32_encode(unsigned char out[4], uint32_t v) {
    put32(out, v);
}
uint32_t wire_u32_decode(const unsigned char *p) {
    return get32(p);
}
uint64_t wire_hash(const void *data, size_t n) {
    return checksum_bytes(data, n);
}

bool wire_all_zero(const void *p, size_t n) {
    const unsigned char *b = p;
    while (n > 0 && *b == 0) b++, n--;
    return n == 0;
}

void wire_tag_text(uint32_t tag, char out[5]) {
    for (int i = 0; i < 4; i++) out[i] = (char)(tag >> 8 * i);
    out[4] = 0;
}

uint64_t wire_payload_limit(uint32_t tag) {
    switch (tag) {
    case TAG_META: return LIMIT_META;
    case TAG_ABRT: return LIMIT_ABORT;
    case TAG_PROV: return LIMIT_PROV;
    case TAG_VOCB: return LIMIT_VOCAB;
    case TAG_TENS: return WIRE_TENS_BYTES + TENSOR_MAX_NAME + LIMIT_ATTRS;
    case TAG_BTCH: return WIRE_BTCH_BYTES;
    case TAG_INDX: return LIMIT_INDEX;
    case TAG_ENDS: return WIRE_ENDS_BYTES;
    default: return LIMIT_OTHER;
    }
}

/* ---- the segment head -------------------------------------------------------------------------------------------- */

void wire_head_encode(unsigned char out[WIRE_HEAD_BYTES], struct wire_head *h) {
    memset(out, 0, WIRE_HEAD_BYTES);
    memcpy(out, magic, sizeof magic);
    put16(out + 8, h->major);
    put16(out + 10, h->minor);
    put32(out + 12, h->incompatible);
    put32(out + 16, h->compatible);
    h->hash = wire_hash(out, 56);
    put64(out + 56, h->hash);
}

/* Quotes the printable beginning of the file in the message. */
static int refuse_text(const unsigned char *p, size_t n, struct err *e) {
    char start[33];
    size_t len = 0;
    while (len < n && len < sizeof start - 1 && isprint(p[len]) && p[len] != '"') {
        start[len] = (char)p[len];
        len++;
    }
    start[len] = 0;
    if (len >= 4 || len == n)
        return err_set(e, ERR_DATA,
                       "not a rill stream (starts with \"%s\"; if it is text, rill tokenize makes tokens of it)",
                       start);
    return err_set(e, ERR_DATA, "not a rill stream (starts with bytes %02x %02x %02x %02x)", p[0], n > 1 ? p[1] : 0,
                   n > 2 ? p[2] : 0, n > 3 ? p[3] : 0);
}

static int refuse_foreign(const unsigned char *p, size_t n, struct err *e) {
    static const struct {
        const char *bytes;
        size_t n;
        const char *advice;
    } known[] = {
        {"GGUF", 4, "a GGUF file (rill import reads it)"},
        {"\x28\xb5\x2f\xfd", 4, "compressed with zstd (zstd -dc gives the stream)"},
        {"\x1f\x8b", 2, "compressed with gzip (gzip -dc gives the stream)"},
        {"PK\x03\x04", 4, "a zip archive, perhaps a PyTorch checkpoint (convert it to safetensors, then rill import)"},
        {"\x93NUMPY", 6, "a NumPy array"},
        {"\x89RILL\n", 6, "a rill stream that passed through a text-mode copy: its line ends were changed"},
        {"\x89RILL\r\r", 7, "a rill stream that passed through a text-mode copy: its line ends were changed"},
        {"\tRILL", 5, "a rill stream whose eighth bits were cleared on the way"},
    };
    for (size_t i = 0; i < COUNT_OF(known); i++)
        if (n >= known[i].n && !memcmp(p, known[i].bytes, known[i].n))
            return err_set(e, ERR_DATA, "not a rill stream: this looks like %s", known[i].advice);
    if (n >= 10 && p[8] == '{' && p[9] == '"' && get64(p) < (uint64_t)1 << 32)
        return err_set(e, ERR_DATA, "not a rill stream: this looks like a safetensors file (rill import reads it)");
    return refuse_text(p, n, e);
}

int wire_head_decode(const unsigned char *p, size_t n, struct wire_head *h, struct err *e) {
    if (n == 0) return err_set(e, ERR_DATA, "empty: not a rill stream");
    if (memcmp(p, magic, n < sizeof magic ? n : sizeof magic) != 0) return refuse_foreign(p, n, e);
    if (n < WIRE_HEAD_BYTES)
        return err_set(e, ERR_DATA, "truncated: end of file inside the segment head, after %zu bytes", n);
    *h = (struct wire_head){get16(p + 8), get16(p + 10), get32(p + 12), get32(p + 16), get64(p + 56)};
    if (h->hash != wire_hash(p, 56)) return err_set(e, ERR_DATA, "segment head: checksum mismatch");
    if (h->major != STREAM_VERSION_MAJOR)
        return err_set(e, ERR_DATA, "format version %u.%u, this program understands version %u (a newer rill reads it)",
                       h->major, h->minor, STREAM_VERSION_MAJOR);
    if (h->incompatible & ~WIRE_INCOMPATIBLE_KNOWN)
        return err_set(e, ERR_DATA, "format feature flags 0x%x, this program understands 0x%x (a newer rill reads it)",
                       h->incompatible, WIRE_INCOMPATIBLE_KNOWN);
    if (!wire_all_zero(p + 20, 36)) return err_set(e, ERR_DATA, "segment head: reserved bytes are not zero");
    return 0;
}

/* ---- record headers ---------------------------------------------------------------------------------------------- */

void wire_record_encode(unsigned char out[WIRE_RECORD_BYTES], struct wire_record *r) {
    memcpy(out, resync, sizeof resync);
    put32(out + 4, r->tag);
    put64(out + 8, r->stored);
    put64(out + 16, r->raw);
    put64(out + 24, r->raw_offset);
    put32(out + 32, r->seq);
    put32(out + 36, r->tensor);
    put16(out + 40, r->codec);
    put16(out + 42, r->flags);
    put32(out + 44, 0);
    put64(out + 48, r->payload_hash);
    r->hash = wire_hash(out, 56);
    put64(out + 56, r->hash);
}

void wire_record_content(unsigned char out[WIRE_CONTENT_BYTES], const struct wire_record *r) {
    put32(out, r->tag);
    put64(out + 4, r->stored);
    put64(out + 12, r->raw);
    put64(out + 20, r->raw_offset);
    put32(out + 28, r->tensor);
    put16(out + 32, r->codec);
    put16(out + 34, r->flags);
    put64(out + 36, r->payload_hash);
}

int wire_record_decode(const unsigned char p[WIRE_RECORD_BYTES], struct wire_record *r, struct err *e) {
    *r = (struct wire_record){
        .tag = get32(p + 4),
        .stored = get64(p + 8),
        .raw = get64(p + 16),
        .raw_offset = get64(p + 24),
        .seq = get32(p + 32),
        .tensor = get32(p + 36),
        .codec = get16(p + 40),
        .flags = get16(p + 42),
        .payload_hash = get64(p + 48),
        .hash = get64(p + 56),
    };
    if (memcmp(p, resync, sizeof resync) != 0) return err_set(e, ERR_DATA, "no record begins here");
    if (r->hash != wire_hash(p, 56)) return err_set(e, ERR_DATA, "record header: checksum mismatch");
    for (int i = 4; i < 8; i++)
        if (!((p[i] | 0x20) >= 'a' && (p[i] | 0x20) <= 'z'))
            return err_set(e, ERR_DATA, "record type is not four letters");
    if (get32(p + 44)) return err_set(e, ERR_DATA, "record header: reserved bytes are not zero");
    return 0;
}

/* ---- payloads ---------------------------------------------------------------------------------------------------- */

int wire_tens_encode(struct buf *out, const struct wire_tens *t, struct err *e) {
    unsigned char p[WIRE_TENS_BYTES] = {0};
    size_t n_name = strlen(t->desc.name);
    put16(p, (uint16_t)t->desc.dtype);
    put16(p + 2, (uint16_t)t->desc.rank);
    put64(p + 8, t->n_bytes);
    for (unsigned i = 0; i < t->desc.rank; i++) put64(p + 16 + 8 * i, t->desc.dims[i]);
    put32(p + 80, (uint32_t)n_name);
    put32(p + 84, (uint32_t)t->n_attrs);
    if (buf_append(out, p, sizeof p, e) || buf_append(out, t->desc.name, n_name, e)) return e->code;
    return t->n_attrs ? buf_append(out, t->attrs, t->n_attrs, e) : 0;
}

int wire_tens_decode(const unsigned char *p, size_t n, struct wire_tens *t, struct err *e) {
    if (n < WIRE_TENS_BYTES)
        return err_set(e, ERR_DATA, "tensor record of %zu bytes, at least %d expected", n, WIRE_TENS_BYTES);
    size_t n_name = get32(p + 80), n_attrs = get32(p + 84);
    unsigned dtype = get16(p), rank = get16(p + 2);
    if (n_name > TENSOR_MAX_NAME || n_attrs > LIMIT_ATTRS || WIRE_TENS_BYTES + n_name + n_attrs != n)
        return err_set(e, ERR_DATA, "tensor record of %zu bytes does not fit a name of %zu and attributes of %zu bytes",
                       n, n_name, n_attrs);
    if (!name_valid((const char *)p + WIRE_TENS_BYTES, n_name))
        return err_set(e, ERR_DATA, "tensor name is empty, not UTF-8 or has control characters");
    memset(&t->desc, 0, sizeof t->desc);
    memcpy(t->desc.name, p + WIRE_TENS_BYTES, n_name);
    if (!dtype_info(dtype))
        return err_set(e, ERR_DATA, "tensor '%s': element type %u is unknown to this version", t->desc.name, dtype);
    if (rank > TENSOR_MAX_RANK)
        return err_set(e, ERR_DATA, "tensor '%s': rank %u, at most %d", t->desc.name, rank, TENSOR_MAX_RANK);
    t->desc.dtype = (enum dtype)dtype;
    t->desc.rank = rank;
    for (unsigned i = 0; i < rank; i++) t->desc.dims[i] = get64(p + 16 + 8 * i);
    if (get32(p + 4) || !wire_all_zero(p + 16 + 8 * rank, 8 * (TENSOR_MAX_RANK - rank)))
        return err_set(e, ERR_DATA, "tensor '%s': reserved bytes are not zero", t->desc.name);
    t->n_bytes = get64(p + 8);
    t->attrs = (const char *)p + WIRE_TENS_BYTES + n_name;
    t->n_attrs = n_attrs;
    return 0;
}

void wire_batch_encode(unsigned char out[WIRE_BTCH_BYTES], const struct stream_batch *b) {
    put64(out, b->first_seq);
    put64(out + 8, b->first_pos);
    put64(out + 16, b->n_positions);
    put32(out + 24, b->n_seqs);
    put32(out + 28, b->n_tensors);
    put32(out + 32, b->flags);
    put32(out + 36, 0);
}

int wire_batch_decode(const unsigned char *p, size_t n, struct stream_batch *b, struct err *e) {
    if (n != WIRE_BTCH_BYTES) return err_set(e, ERR_DATA, "batch record of %zu bytes, %d expected", n, WIRE_BTCH_BYTES);
    *b = (struct stream_batch){
        .first_seq = get64(p),
        .first_pos = get64(p + 8),
        .n_positions = get64(p + 16),
        .n_seqs = get32(p + 24),
        .n_tensors = get32(p + 28),
        .flags = get32(p + 32),
    };
    if (get32(p + 36)) return err_set(e, ERR_DATA, "batch record: reserved bytes are not zero");
    return 0;
}

void wire_entry_encode(unsigned char out[WIRE_ENTRY_BYTES], const struct wire_entry *x) {
    put32(out, x->tag);
    put32(out + 4, 0);
    put64(out + 8, x->number);
    put64(out + 16, x->offset);
    put64(out + 24, x->key);
}

int wire_entry_decode(const unsigned char p[WIRE_ENTRY_BYTES], struct wire_entry *x, struct err *e) {
    *x = (struct wire_entry){get32(p), get64(p + 8), get64(p + 16), get64(p + 24)};
    if (get32(p + 4)) return err_set(e, ERR_DATA, "index: reserved bytes are not zero");
    return 0;
}

void wire_ends_encode(unsigned char out[WIRE_ENDS_BYTES], const struct wire_ends *x) {
    const uint64_t fields[] = {x->digest.lo, x->digest.hi, x->segment_bytes, x->index_offset, x->records,
                               x->tensors,   x->batches,   x->positions,     x->raw_bytes};
    memset(out, 0, WIRE_ENDS_BYTES);
    for (size_t i = 0; i < COUNT_OF(fields); i++) put64(out + 8 * i, fields[i]);
}

int wire_ends_decode(const unsigned char *p, size_t n, struct wire_ends *x, struct err *e) {
    if (n != WIRE_ENDS_BYTES) return err_set(e, ERR_DATA, "end record of %zu bytes, %d expected", n, WIRE_ENDS_BYTES);
    *x = (struct wire_ends){
        .digest = {get64(p), get64(p + 8)},
        .segment_bytes = get64(p + 16),
        .index_offset = get64(p + 24),
        .records = get64(p + 32),
        .tensors = get64(p + 40),
        .batches = get64(p + 48),
        .positions = get64(p + 56),
        .raw_bytes = get64(p + 64),
    };
    if (!wire_all_zero(p + 72, WIRE_ENDS_BYTES - 72))
        return err_set(e, ERR_DATA, "end record: reserved bytes are not zero");
    return 0;
}
