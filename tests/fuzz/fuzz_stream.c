/*
 * Fuzzes streams: the input is read in order, in pieces, by batches, forwarded and mapped. Twice: unchanged, and with
 * its checksums corrected, since otherwise no mutation would get past the first header.
 */
#include <sys/mman.h>
#include <unistd.h>

#include "lib/stream/stream_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { LARGE = 32 << 20 }; /* a small input may validly ask for this, but it takes a fuzzer too long */

/* Recomputes everything that depends on the content, as far as the records can be followed. */
static void seal(unsigned char *p, size_t size) {
    struct err e;
    unsigned char hash[8];
    if (size < WIRE_HEAD_BYTES) return;
    wire_u64_encode(p + 56, wire_hash(p, 56));
    struct digest_state *digest = digest_new(&e);
    if (!digest) return;
    digest_update(digest, p + 56, 8);
    size_t at = WIRE_HEAD_BYTES;
    for (uint32_t seq = 0; size - at >= WIRE_RECORD_BYTES; seq++) {
        unsigned char *h = p + at, *payload = h + WIRE_RECORD_BYTES;
        uint64_t stored = wire_u32_decode(h + 8), room = size - at - WIRE_RECORD_BYTES;
        wire_u32_encode(h + 32, seq);
        if (wire_u32_decode(h + 4) == TAG_ENDS && room >= WIRE_ENDS_BYTES) {
            struct digest d = digest_get(digest);
            wire_u64_encode(payload, d.lo);
            wire_u64_encode(payload + 8, d.hi);
            wire_u64_encode(payload + 16, at + WIRE_RECORD_BYTES + WIRE_ENDS_BYTES);
        }
        if (stored <= room) wire_u64_encode(h + 48, wire_hash(payload, (size_t)stored));
        wire_u64_encode(hash, wire_hash(h, 56));
        memcpy(h + 56, hash, 8);
        digest_update(digest, hash, 8);
        if (stored + wire_padding(stored) > room) break;
        at += WIRE_RECORD_BYTES + (size_t)stored + wire_padding(stored);
    }
    digest_free(digest);
}

/* Reads each tensor in another way, by its number. */
static int use_tensor(struct stream_reader *r, const struct stream_item *item, unsigned i, struct buf *data,
                      struct err *e) {
    unsigned char piece[999];
    size_t got = 1;
    if (tensor_bytes(&item->desc) > LARGE || i % 3 == 2) return 0;
    if (i % 3 == 0) return stream_load_tensor(r, data, e);
    while (got > 0)
        if (stream_read_data(r, piece, sizeof piece, &got, e)) return e->code;
    return 0;
}

static void read_in_order(int fd) {
    struct err e;
    struct stream_reader *r;
    struct stream_item item;
    struct buf data = {0};
    if (lseek(fd, 0, SEEK_SET) || stream_reader_open(&r, fd, "fuzz", STREAM_ANY, &e)) return;
    for (unsigned i = 0; !stream_next(r, &item, &e) && item.type != ITEM_EOF; i++)
        if (item.type == ITEM_TENSOR && use_tensor(r, &item, i, &data, &e)) break;
    stream_reader_free(r);
    buf_release(&data);
}

static void forward(int fd, int null) {
    struct err e;
    struct stream_reader *r;
    struct stream_writer *w;
    struct stream_item item;
    if (lseek(fd, 0, SEEK_SET) || stream_reader_open(&r, fd, "fuzz", STREAM_ANY, &e)) return;
    if (!stream_writer_open(&w, null, "null", NULL, &e)) {
        while (!stream_next(r, &item, &e) && item.type < ITEM_SEGMENT_END)
            if (stream_forward(r, w, &item, &e)) break;
        if (item.type == ITEM_SEGMENT_END && stream_writer_finish(w, NULL, &e))
            abort(); /* whatever was read must be writable */
        stream_writer_free(w);
    }
    stream_reader_free(r);
}

static void read_batches(int fd) {
    struct err e;
    struct stream_reader *r;
    struct batch b = {0};
    bool more = true;
    if (lseek(fd, 0, SEEK_SET) || stream_reader_open(&r, fd, "fuzz", STREAM_ANY, &e)) return;
    while (more && !batch_read(r, &b, &more, &e)) {
    }
    batch_release(&b);
    stream_reader_free(r);
}

static void use_map(int fd) {
    struct err e;
    struct stream_map *m;
    struct stream_map_entry entry;
    struct buf scratch = {0};
    const void *p;
    char path[64];
    size_t n;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (stream_map_open(&m, path, STREAM_ANY, &e)) return;
    (void)!stream_map_vocab(m, &p, &n, &e);
    for (size_t i = 0; i < stream_map_count(m); i++) {
        if (stream_map_entry(m, i, &entry, &e)) continue;
        (void)stream_map_find(m, entry.desc.name);
        if (tensor_bytes(&entry.desc) <= LARGE) (void)!stream_map_data(m, i, &scratch, &p, &e);
    }
    buf_release(&scratch);
    stream_map_free(m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static int fd = -1, null = -1;
    if (fd < 0) fd = memfd_create("fuzz", MFD_CLOEXEC);
    if (null < 0) null = memfd_create("null", MFD_CLOEXEC);
    unsigned char *copy = malloc(size + 1);
    if (!copy || fd < 0 || null < 0) abort();
    memcpy(copy, data, size);
    parallel_set_threads(1);
    for (int sealed = 0; sealed < 2; sealed++) {
        if (sealed) seal(copy, size);
        if (ftruncate(null, 0) || lseek(null, 0, SEEK_SET)) abort();
        if (ftruncate(fd, (off_t)size) || pwrite(fd, copy, size, 0) != (ssize_t)size) abort();
        read_in_order(fd);
        forward(fd, null);
        read_batches(fd);
        use_map(fd);
    }
    free(copy);
    return 0;
}
