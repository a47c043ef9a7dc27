/* Encodes and decodes chunks of tensor data on all threads: raw, zstd, byte planes, or byte planes without zeros. */
#include "lib/stream/codec_internal.h"

#include <inttypes.h>
/* for ZSTD_c_literalCompressionMode, an experimental parameter that the shared library supports */
#define ZSTD_STATIC_LINKING_ONLY
#include <zstd.h>
#include <zstd_errors.h>

struct codec_thread {
    ZSTD_CCtx *cctx;
    ZSTD_DCtx *dctx;
    struct buf planes; /* one chunk, split into planes */
    struct buf stored; /* of a sparse chunk: its bit map, then the non-zero elements */
};

int codecs_prepare(struct codecs *c, struct err *e) {
    int n = parallel_threads();
    if (n <= c->n) return 0;
    struct codec_thread *t = mem_array((size_t)n, sizeof *t, e);
    if (!t) return e->code;
    if (c->n) memcpy(t, c->threads, (size_t)c->n * sizeof *t);
    mem_free(c->threads);
    *c = (struct codecs){t, n};
    return 0;
}

void codecs_release(struct codecs *c) {
    for (int i = 0; i < c->n; i++) {
        ZSTD_freeCCtx(c->threads[i].cctx);
        ZSTD_freeDCtx(c->threads[i].dctx);
        buf_release(&c->threads[i].planes);
        buf_release(&c->threads[i].stored);
    }
    mem_free(c->threads);
    *c = (struct codecs){0};
}

/* ---- zstd -------------------------------------------------------------------------------------------------------- */

enum { ZSTD_LEVEL = 1, ENTROPY_ONLY = -1000000 };

/*
 * Level 0 of planes: practically no search for matches (minimum length 7, a table of 64 positions, large steps), only
 * Huffman-coded literals. On bf16 weights this gives 66.7% where level 1 gives 68.3% and level 3 gives 70.5%, at twice
 * the speed: chance matches cost more bits than their literals.
 */
static void entropy_only(ZSTD_CCtx *c) {
    ZSTD_CCtx_setParameter(c, ZSTD_c_compressionLevel, 1);
    ZSTD_CCtx_setParameter(c, ZSTD_c_strategy, ZSTD_fast);
    ZSTD_CCtx_setParameter(c, ZSTD_c_hashLog, ZSTD_HASHLOG_MIN);
    ZSTD_CCtx_setParameter(c, ZSTD_c_minMatch, ZSTD_MINMATCH_MAX);
    ZSTD_CCtx_setParameter(c, ZSTD_c_targetLength, 4096);
    ZSTD_CCtx_setParameter(c, ZSTD_c_literalCompressionMode, ZSTD_lcm_huffman);
}

/* *out is 0 if the result does not fit into `capacity`. */
static int zstd_pack(struct codec_thread *t, const void *src, size_t n, void *dst, size_t capacity, int level,
                     size_t *out, struct err *e) {
    if (!t->cctx && !(t->cctx = ZSTD_createCCtx())) return err_nomem(e, "zstd");
    ZSTD_CCtx_reset(t->cctx, ZSTD_reset_session_and_parameters);
    if (level == ENTROPY_ONLY)
        entropy_only(t->cctx);
    else
        ZSTD_CCtx_setParameter(t->cctx, ZSTD_c_compressionLevel, level);
    size_t r = ZSTD_compress2(t->cctx, dst, capacity, src, n);
    if (ZSTD_isError(r) && ZSTD_getErrorCode(r) != ZSTD_error_dstSize_tooSmall)
        return err_set(e, ERR_IO, "zstd: %s", ZSTD_getErrorName(r));
    *out = ZSTD_isError(r) ? 0 : r;
    return 0;
}

/* The window that a frame requires; 0 if its header is truncated. RFC 8878, 3.1.1.1. */
static uint64_t zstd_window(const unsigned char *p, size_t n, uint64_t content) {
    if (n < 6) return 0;
    if (p[4] & 0x20) return content; /* single segment */
    unsigned log = 10 + (p[5] >> 3);
    return ((uint64_t)1 << log) + (((uint64_t)1 << log) >> 3) * (p[5] & 7);
}

/* Decodes src, which must be a single frame that declares and yields n bytes. */
static int zstd_unpack(struct codec_thread *t, const void *src, size_t n_src, void *dst, size_t n, struct err *e) {
    if (!t->dctx && !(t->dctx = ZSTD_createDCtx())) return err_nomem(e, "zstd");
    unsigned long long content = ZSTD_getFrameContentSize(src, n_src);
    if (content == ZSTD_CONTENTSIZE_ERROR || ZSTD_findFrameCompressedSize(src, n_src) != n_src)
        return err_set(e, ERR_DATA, "chunk is not one whole zstd frame");
    if (content != n)
        return err_set(e, ERR_DATA, "zstd frame %s, expected %zu bytes",
                       content == ZSTD_CONTENTSIZE_UNKNOWN ? "does not say its size" : "of another size", n);
    uint64_t window = zstd_window(src, n_src, content);
    if (window > LIMIT_WINDOW)
        return err_set(e, ERR_DATA, "zstd frame needs a window of %" PRIu64 " bytes, at most %" PRIu64, window,
                       LIMIT_WINDOW);
    size_t r = ZSTD_decompressDCtx(t->dctx, dst, n, src, n_src);
    if (ZSTD_isError(r)) return err_set(e, ERR_DATA, "zstd: %s", ZSTD_getErrorName(r));
    return r == n ? 0 : err_set(e, ERR_DATA, "zstd frame gave %zu bytes, expected %zu", r, n);
}

/* ---- planes: one u32 per plane (stored bytes; top bit set if stored raw), then the planes ---- */

#define PLANE_RAW 0x80000000u

/*
 * Do the bytes look random? Estimated from a sample: for random bytes, the probability that two are equal is 1/256.
 * This detects mantissas in a fraction of the time that a compressor needs to give up on them.
 */
static bool looks_random(const unsigned char *p, size_t n) {
    uint64_t count[256] = {0}, samples = 0, pairs = 0;
    if (n < 4096) return false;
    for (size_t i = 0; i < n; i += n / 4096, samples++) count[p[i]]++;
    for (int i = 0; i < 256; i++) pairs += count[i] * count[i];
    return pairs * 256 < samples * samples * 5 / 4;
}

/* Appends the planes of `bytes` bytes of raw data. */
static int planes_pack(struct codec_thread *t, const struct dtype_info *dtype, const void *raw, size_t bytes, int level,
                       struct buf *out, struct err *e) {
    size_t stride = planes_stride(dtype), n = bytes / stride, at = 4 * stride;
    t->planes.len = 0;
    if (buf_reserve(&t->planes, bytes, e) || buf_reserve(out, bytes + at, e)) return e->code;
    unsigned char *dst = out->data + out->len;
    planes_split(dtype, raw, bytes, t->planes.data);
    for (size_t i = 0; i < stride; i++) {
        const unsigned char *plane = t->planes.data + i * n;
        size_t packed = 0;
        if (!(level == ENTROPY_ONLY && looks_random(plane, n)) &&
            zstd_pack(t, plane, n, dst + at, n - 1, level, &packed, e))
            return e->code;
        if (!packed) memcpy(dst + at, plane, n);
        wire_u32_encode(dst + 4 * i, packed ? (uint32_t)packed : (uint32_t)n | PLANE_RAW);
        at += packed ? packed : n;
    }
    out->len += at;
    return 0;
}

/* Decodes the planes at src, which must fill it exactly, into `bytes` bytes of raw data. */
static int planes_unpack(struct codec_thread *t, const struct dtype_info *dtype, const unsigned char *src, size_t n_src,
                         void *raw, size_t bytes, struct err *e) {
    size_t stride = planes_stride(dtype), n = bytes / stride, at = 4 * stride;
    if (n == 0 || n * stride != bytes || n_src < at)
        return err_set(e, ERR_DATA, "chunk of %zu bytes cannot be planes of %s", bytes, dtype->name);
    t->planes.len = 0;
    if (buf_reserve(&t->planes, bytes, e)) return e->code;
    for (size_t i = 0; i < stride; i++) {
        uint32_t size = wire_u32_decode(src + 4 * i);
        bool is_raw = size & PLANE_RAW;
        size &= ~PLANE_RAW;
        if (size > n_src - at || (is_raw && size != n)) return err_set(e, ERR_DATA, "plane %zu has a wrong size", i);
        if (is_raw)
            memcpy(t->planes.data + i * n, src + at, n);
        else if (zstd_unpack(t, src + at, size, t->planes.data + i * n, n, e))
            return err_prefix(e, "plane %zu", i);
        at += size;
    }
    if (at != n_src) return err_set(e, ERR_DATA, "bytes after the last plane");
    planes_join(dtype, t->planes.data, bytes, raw);
    return 0;
}

/* ---- sparse: a u32 (number of stored elements; top bit set if the map is 2:4), the map, their planes ---- */

#define SPARSE_FOURS 0x80000000u
enum { SPARSE_LEAST = 8 }; /* at least one in this many elements must be 0 for the map to pay off */

/* Makes room for the map and all elements of a chunk. */
static int reserve_stored(struct codec_thread *t, size_t n, size_t bytes, struct err *e) {
    t->stored.len = 0;
    return buf_reserve(&t->stored, sparse_bits_bytes(n) + bytes, e);
}

/* *dense: too few elements are 0, nothing was written. */
static int sparse_pack(struct codec_thread *t, struct chunk *k, int level, bool *dense, struct err *e) {
    size_t stride = planes_stride(k->dtype), n = (size_t)k->n_raw / stride, bits = sparse_bits_bytes(n), head = 4;
    if (reserve_stored(t, n, (size_t)k->n_raw, e)) return e->code;
    unsigned char *map = t->stored.data, *elements = map + bits;
    size_t stored = sparse_split(stride, k->raw, n, map, elements);
    *dense = (n - stored) < n / SPARSE_LEAST || stored == n;
    if (*dense) return 0;
    if (buf_reserve(&k->out, head + bits + sparse_fours_bytes(n), e)) return e->code;
    bool fours = stored == n / 2 && sparse_fours_pack(map, n, k->out.data + head);
    if (!fours) memcpy(k->out.data + head, map, bits);
    wire_u32_encode(k->out.data, (uint32_t)stored | (fours ? SPARSE_FOURS : 0));
    k->out.len = head + (fours ? sparse_fours_bytes(n) : bits);
    return stored ? planes_pack(t, k->dtype, elements, stored * stride, level, &k->out, e) : 0;
}

static int sparse_unpack(struct codec_thread *t, const struct chunk *k, struct err *e) {
    size_t stride = planes_stride(k->dtype), n = (size_t)k->n_raw / stride, bits = sparse_bits_bytes(n), at = 4;
    const unsigned char *src = k->stored;
    size_t word = k->n_stored < at ? 0 : wire_u32_decode(src), stored = word & ~SPARSE_FOURS;
    bool fours = word & SPARSE_FOURS;
    size_t map_bytes = fours ? sparse_fours_bytes(n) : bits;
    if (n * stride != k->n_raw || k->n_stored < at + map_bytes || stored > n)
        return err_set(e, ERR_DATA, "chunk of %" PRIu64 " bytes cannot be sparse %s", k->n_raw, k->dtype->name);
    if (reserve_stored(t, n, (size_t)k->n_raw, e)) return e->code;
    unsigned char *map = t->stored.data, *elements = map + bits;
    if (!fours) memcpy(map, src + at, bits);
    if ((fours && !sparse_fours_unpack(src + at, n, map)) || sparse_count(map, n) != stored)
        return err_set(e, ERR_DATA, "the map of a sparse chunk is not one of %zu of %zu elements", stored, n);
    at += map_bytes;
    if (!stored && at != k->n_stored) return err_set(e, ERR_DATA, "bytes after the map");
    if (stored && planes_unpack(t, k->dtype, src + at, (size_t)k->n_stored - at, elements, stored * stride, e))
        return e->code;
    sparse_join(stride, map, elements, n, k->raw);
    return 0;
}

/* ---- groups of chunks -------------------------------------------------------------------------------------------- */

struct job {
    struct codecs *codecs;
    struct chunk *chunks;
    int level;
};

static int encode_one(struct codec_thread *t, struct chunk *k, int level, struct err *e) {
    k->out.len = 0;
    if (k->codec == CODEC_ZSTD && k->n_raw > 0) {
        if (buf_reserve(&k->out, (size_t)k->n_raw, e)) return e->code;
        if (zstd_pack(t, k->raw, (size_t)k->n_raw, k->out.data, (size_t)k->n_raw - 1, level ? level : ZSTD_LEVEL,
                      &k->out.len, e))
            return e->code;
    }
    if (k->codec == CODEC_SPARSE && k->n_raw > 0) {
        bool dense = false;
        if (sparse_pack(t, k, level ? level : ENTROPY_ONLY, &dense, e)) return e->code;
        if (dense) k->codec = CODEC_PLANES;
    }
    if (k->codec == CODEC_PLANES && k->n_raw > 0 &&
        planes_pack(t, k->dtype, k->raw, (size_t)k->n_raw, level ? level : ENTROPY_ONLY, &k->out, e))
        return e->code;
    bool shrunk = k->out.len > 0 && k->out.len < k->n_raw;
    if (!shrunk) k->codec = CODEC_RAW;
    k->stored = shrunk ? k->out.data : k->raw;
    k->n_stored = shrunk ? k->out.len : k->n_raw;
    k->payload_hash = wire_hash(k->stored, (size_t)k->n_stored);
    return 0;
}

static void encode_body(void *ctx, size_t i, int thread) {
    struct job *j = ctx;
    (void)!encode_one(&j->codecs->threads[thread], &j->chunks[i], j->level, &j->chunks[i].err);
}

static void decode_body(void *ctx, size_t i, int thread) {
    struct job *j = ctx;
    struct chunk *k = &j->chunks[i];
    struct codec_thread *t = &j->codecs->threads[thread];
    if (wire_hash(k->stored, (size_t)k->n_stored) != k->payload_hash)
        err_set(&k->err, ERR_DATA, "checksum mismatch");
    else if (k->codec == CODEC_ZSTD)
        (void)!zstd_unpack(t, k->stored, (size_t)k->n_stored, k->raw, (size_t)k->n_raw, &k->err);
    else if (k->codec == CODEC_PLANES)
        (void)!planes_unpack(t, k->dtype, k->stored, (size_t)k->n_stored, k->raw, (size_t)k->n_raw, &k->err);
    else if (k->codec == CODEC_SPARSE)
        (void)!sparse_unpack(t, k, &k->err);
    else
        memcpy(k->raw, k->stored, (size_t)k->n_raw);
}

static int run(struct codecs *c, parallel_body *body, struct chunk *chunks, size_t n, int level, size_t *failed,
               struct err *e) {
    struct job j = {c, chunks, level};
    *failed = 0;
    if (codecs_prepare(c, e)) return e->code;
    for (size_t i = 0; i < n; i++) chunks[i].err.code = 0;
    parallel_for(n, body, &j);
    for (size_t i = 0; i < n; i++)
        if (chunks[i].err.code) {
            *failed = i;
            return err_set(e, chunks[i].err.code, "%s", chunks[i].err.msg);
        }
    return 0;
}

int codec_encode(struct codecs *c, struct chunk *chunks, size_t n, int level, struct err *e) {
    size_t failed;
    return run(c, encode_body, chunks, n, level, &failed, e);
}

int codec_decode(struct codecs *c, struct chunk *chunks, size_t n, size_t *failed, struct err *e) {
    return run(c, decode_body, chunks, n, 0, failed, e);
}

int stream_stored_bytes(enum stream_codec codec, int level, enum dtype dtype, const void *data, uint64_t n,
                        uint64_t *stored, struct err *e) {
    enum { CHUNK = 1 << 20 };
    struct codecs c = {0};
    struct chunk one = {.codec = codec, .dtype = dtype_info(dtype)};
    uint64_t most = CHUNK / one.dtype->block_bytes * one.dtype->block_bytes;
    int rc = 0;
    *stored = 0;
    for (uint64_t at = 0; !rc && at < n; at += one.n_raw) {
        one.codec = codec;
        one.raw = (unsigned char *)data + at;
        one.n_raw = n - at < most ? n - at : most;
        rc = codec_encode(&c, &one, 1, level, e);
        *stored += one.n_stored;
    }
    buf_release(&one.out);
    codecs_release(&c);
    return rc;
}
