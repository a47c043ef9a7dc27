/*
 * base: the foundation of every other module. Errors as values, checked and budgeted memory, byte buffers, strings,
 * strict JSON, digests and checksums, file descriptor I/O, atomic output files, counter-based random numbers, a
 * deterministic parallel loop, a profile and log lines.
 *
 * Nothing here (or anywhere in lib/ except lib/cli) prints, exits or asserts on input.
 */
#ifndef RILL_BASE_H
#define RILL_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <cjson/cJSON.h>

#include "lib/base/banned.h"

#define RILL_VERSION "0.1.0"

#define MUST_CHECK              __attribute__((warn_unused_result))
#define PRINTF_LIKE(fmt, first) __attribute__((format(printf, fmt, first)))
#define COUNT_OF(array)         (sizeof(array) / sizeof((array)[0]))

/* ---- errors -------------------------------------------------------------------------------------------------
 *
 * A function that can fail takes a `struct err *` as its last argument and returns 0 or one of these negative codes.
 * The caller owns the struct; it is written only on failure, with a one-line lower-case message that names what and
 * where. The values are fixed: lib/cli maps them to exit codes.
 */
enum err_code {
    ERR_NONE = 0,
    ERR_IO = -1,    /* a read, write, open, allocation or other resource failed    -> exit 1 */
    ERR_USAGE = -2, /* the caller (user) asked for something that makes no sense   -> exit 2 */
    ERR_DATA = -3,  /* input is malformed, truncated or does not match other input -> exit 3 */
    ERR_CHECK = -4, /* a check that was asked for does not hold                    -> exit 4 */
};

struct err {
    int code;
    char msg[1024]; /* escaped (escape_text): it may quote hostile input */
};

/* Fills *e and returns code; meant for `return err_set(e, ERR_DATA, ...)`. */
int err_set(struct err *e, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* Prepends "PREFIX: " to the message in *e, so that callers can add the file, record or tensor. Returns e->code. */
int err_prefix(struct err *e, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* Like err_set with ERR_IO, but appends ": strerror(errnum)" to the message. */
int err_sys(struct err *e, int errnum, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* ---- checked integer arithmetic: every size from outside goes through these before memory is allocated for it ---- */

/* *out = a * b and *out = a + b. Return false on overflow; *out is then unspecified. */
static inline bool u64_mul(uint64_t a, uint64_t b, uint64_t *out) {
    return !__builtin_mul_overflow(a, b, out);
}
static inline bool u64_add(uint64_t a, uint64_t b, uint64_t *out) {
    return !__builtin_add_overflow(a, b, out);
}

/* *out = a rounded up to a multiple of `align`, a power of two. Returns false on overflow; *out is then unchanged. */
static inline bool u64_align(uint64_t a, uint64_t align, uint64_t *out) {
    uint64_t t;
    if (!u64_add(a, align - 1, &t)) return false;
    *out = t & ~(align - 1);
    return true;
}

/* ---- memory -------------------------------------------------------------------------------------------------- */

/* Return NULL and set *e (ERR_IO, "out of memory: ...") on failure. Size 0 gives a unique pointer. Free with
 * mem_free. */
void *mem_alloc(size_t size, struct err *e) MUST_CHECK;  /* uninitialised, 64-byte aligned */
void *mem_zalloc(size_t size, struct err *e) MUST_CHECK; /* zeroed, 64-byte aligned */
/* Returns freed memory to the system, also between arrays that are in use: for methods whose large arrays come and go
 * among small ones that stay. glibc, which keeps them for the next ones, often finds no place in such a gap, since an
 * aligned array needs a little more than its size. */
void mem_trim(void);
void *mem_array(size_t n, size_t size, struct err *e) MUST_CHECK; /* n * size checked, zeroed, 64-byte aligned */
char *mem_strdup(const char *s, struct err *e) MUST_CHECK;
void mem_free(void *p);
/*
 * The memory budget. All allocations are counted, and one that exceeds what is left fails as if the system had refused
 * it, before the kernel kills the process. With a limit (mem_set_limit; 0 removes it), that limit less the memory in
 * use is left. Without one, what is left is the minimum of the machine's available memory, the control group's limit
 * and RLIMIT_AS; it is looked up only for large allocations.
 */
void mem_set_limit(uint64_t bytes);
uint64_t mem_left(void);
uint64_t mem_address_space(void); /* bytes left under RLIMIT_AS alone; UINT64_MAX: no limit */
uint64_t mem_in_use(void);        /* bytes allocated by mem_alloc and everything built on it */
/* Returns ERR_IO ("N MB of memory are needed and M MB are left") if `bytes` exceeds what is left. For callers that
 * allocate in several steps. */
int mem_check(uint64_t bytes, struct err *e) MUST_CHECK;
/* For tests: makes the n-th allocation from now on fail, once; 0 turns it off. Tests count n up until nothing fails. */
void mem_fail_at(uint64_t n);

/*
 * Arena: many small objects with one lifetime. Pointers stay valid until arena_reset or arena_release.
 * `struct arena a = {0};` is a valid empty arena. Allocations are aligned to 64 bytes when size >= 64, else to 16. On
 * failure the functions return NULL and set *e (ERR_IO).
 */
struct arena {
    struct arena_block *head;
};
void *arena_alloc(struct arena *a, size_t size, struct err *e) MUST_CHECK;           /* uninitialised */
void *arena_array(struct arena *a, size_t n, size_t size, struct err *e) MUST_CHECK; /* checked, zeroed */
char *arena_strdup(struct arena *a, const char *s, struct err *e) MUST_CHECK;
char *arena_strndup(struct arena *a, const char *s, size_t n, struct err *e) MUST_CHECK;
char *arena_printf(struct arena *a, struct err *e, const char *fmt, ...) MUST_CHECK PRINTF_LIKE(3, 4);
void arena_reset(struct arena *a);   /* frees all objects, keeps the largest block for reuse */
void arena_release(struct arena *a); /* frees everything; the arena is empty and usable again */

/* ---- growable byte buffer: `struct buf b = {0};`, then buf_*, then buf_release ---- */

struct buf {
    unsigned char *data; /* owned; 64-byte aligned; not NUL-terminated, not even by buf_printf */
    size_t len, cap;
};
int buf_reserve(struct buf *b, size_t extra, struct err *e) MUST_CHECK; /* makes room for `extra` more bytes */
int buf_append(struct buf *b, const void *data, size_t n, struct err *e) MUST_CHECK;
int buf_printf(struct buf *b, struct err *e, const char *fmt, ...) MUST_CHECK PRINTF_LIKE(3, 4);
void buf_release(struct buf *b);

/* ---- strings ---------------------------------------------------------------------------------------------------- */

/* Is s[0..n) well-formed UTF-8 (no overlong forms, surrogates or code points past U+10FFFF)? */
bool utf8_valid(const char *s, size_t n);

/* Is s[0..n) a valid name of a tensor, record or option: 1 to 1024 bytes of UTF-8 without control characters? */
bool name_valid(const char *s, size_t n);

/* Escape text from a file or the command line before it is shown, so that it cannot move the cursor, start a new line
 * or change the text direction. Control and format characters (except the joiners, which words and emoji need) and line
 * separators become \n, \t, \r or JSON's \u1234; bytes that are not UTF-8 become \x9b; everything else, backslashes
 * included, stays. Escaping is idempotent. */
#define ESCAPE_MAX 13 /* the longest escape of one character, with its NUL */
/* Escapes the first character of s[0..n), n > 0. Sets *took to its length in bytes and writes its shown form,
 * NUL-terminated, to `out`. Returns true if the two differ. */
bool escape_char(const char *s, size_t n, size_t *took, char out[ESCAPE_MAX]);
/* Escapes s[0..n) into `out`, NUL-terminated; what does not fit is cut off at a character boundary. Returns the length
 * written. `out` may not overlap s. */
size_t escape_text(char *out, size_t size, const char *s, size_t n);

/* Parse a whole string as a decimal number. Return false on trailing characters or overflow. The u64 form accepts the
 * suffixes K, M and G (powers of 1024). */
bool parse_u64(const char *s, uint64_t *out);
bool parse_f64(const char *s, double *out);

/* ---- JSON: cJSON behind strict rules --------------------------------------------------------------------------------
 *
 * json_parse refuses what cJSON accepts: nesting deeper than JSON_MAX_DEPTH, duplicate keys in an object (cJSON returns
 * the first), invalid UTF-8, bytes after the value, embedded NULs. Free the result with cJSON_Delete. The accessors
 * fail with ERR_DATA and name the key that is missing or wrong. No integer from JSON may size memory unchecked: the u64
 * accessors therefore take the allowed range.
 */
#define JSON_MAX_DEPTH 32
/* JSON numbers are read as doubles, which are not exact from 2^53 on. The u64 accessors refuse larger values; write
 * those (seeds, digests) as strings. */
#define JSON_MAX_INTEGER ((UINT64_C(1) << 53) - 1)

cJSON *json_parse(const char *text, size_t len, struct err *e) MUST_CHECK;
/* Returns the canonical text of `value`: keys in insertion order, no white space, numbers in their shortest form that
 * reads back. Returns NULL with ERR_DATA for what json_parse would refuse: NaN, infinities, duplicate keys, invalid
 * UTF-8. Free with mem_free. */
char *json_text(const cJSON *value, struct err *e) MUST_CHECK;
/* Like json_text but for display: characters that escape_char escapes are written as \u. Not canonical, so never write
 * it to a file. */
char *json_text_shown(const cJSON *value, struct err *e) MUST_CHECK;
int json_get_u64(const cJSON *object, const char *key, uint64_t min, uint64_t max, uint64_t *out,
                 struct err *e) MUST_CHECK;
int json_get_f64(const cJSON *object, const char *key, double min, double max, double *out, struct err *e) MUST_CHECK;
int json_get_str(const cJSON *object, const char *key, const char **out,
                 struct err *e) MUST_CHECK; /* owned by object */
int json_get_bool(const cJSON *object, const char *key, bool *out, struct err *e) MUST_CHECK;
/* The optional forms leave *out unchanged when the key is absent or null, but still refuse a wrong type or range. */
int json_opt_u64(const cJSON *object, const char *key, uint64_t min, uint64_t max, uint64_t *out,
                 struct err *e) MUST_CHECK;
int json_opt_f64(const cJSON *object, const char *key, double min, double max, double *out, struct err *e) MUST_CHECK;
int json_opt_str(const cJSON *object, const char *key, const char **out, struct err *e) MUST_CHECK;
int json_opt_bool(const cJSON *object, const char *key, bool *out, struct err *e) MUST_CHECK;
/* Add a member to an object. Return false when out of memory (callers check once, at the end, and report with
 * err_nomem) or when a u64 exceeds JSON_MAX_INTEGER. They do not detect duplicate keys; json_text does. */
bool json_put_u64(cJSON *object, const char *key, uint64_t v);
bool json_put_f64(cJSON *object, const char *key, double v);
bool json_put_float(cJSON *object, const char *key,
                    double v); /* writes whole numbers as "30.0", for readers that would take 30 for an integer */
/* Adds null when v is not finite: JSON cannot represent it. */
bool json_put_f64_or_null(cJSON *object, const char *key, double v);
bool json_put_str(cJSON *object, const char *key, const char *v);
bool json_put_bool(cJSON *object, const char *key, bool v);
int err_nomem(struct err *e, const char *what); /* "out of memory: WHAT", ERR_IO */

/* ---- digests: XXH3-128, written "xxh3:" + 32 hex digits ---------------------------------------------------------- */

#define DIGEST_TEXT_SIZE 38 /* with the NUL */
struct digest {
    uint64_t lo, hi;
};
struct digest_state; /* streaming form */
struct digest digest_bytes(const void *data, size_t n);
struct digest_state *digest_new(struct err *e) MUST_CHECK;
void digest_update(struct digest_state *s, const void *data, size_t n);
struct digest digest_get(const struct digest_state *s);
void digest_free(struct digest_state *s);
void digest_text(struct digest d, char out[DIGEST_TEXT_SIZE]);
bool digest_parse(const char *text, struct digest *out);
static inline bool digest_equal(struct digest a, struct digest b) {
    return a.lo == b.lo && a.hi == b.hi;
}

/* ---- checksums: XXH3-64. data may be NULL if n is 0 -------------------------------------------------------------- */

struct checksum_state; /* streaming form; a new one is ready for updates */
uint64_t checksum_bytes(const void *data, size_t n);
struct checksum_state *checksum_new(struct err *e) MUST_CHECK;
void checksum_restart(struct checksum_state *s);
void checksum_update(struct checksum_state *s, const void *data, size_t n);
uint64_t checksum_get(const struct checksum_state *s);
void checksum_free(struct checksum_state *s);

/* ---- descriptors: the one read and the one write ------------------------------------------------------------------
 *
 * These retry interrupted calls, continue short writes and, because a descriptor may share its non-blocking flag with
 * ssh or a terminal, wait until a non-blocking one is ready. On failure errno tells why.
 */
ssize_t fd_read(int fd, void *dst, size_t n);              /* up to n bytes; 0: end of file, -1: failure */
ssize_t fd_read_at(int fd, void *dst, size_t n, off_t at); /* n bytes, or fewer at the end of the file; -1: failure */
bool fd_write(int fd, const void *data, size_t n);         /* all n bytes */
bool fd_write2(int fd, const void *a, size_t n_a, const void *b, size_t n_b); /* both, in as few calls as possible */

/* ---- files and folders that appear complete or not at all -----------------------------------------------------------
 *
 * Output is written to a temporary name beside the target, then synced and renamed by _commit, or removed by _release
 * (and by a signal handler, see out_remove_temporaries). Symbolic links are followed, so that a link stays a link; its
 * target need not exist. A device or a FIFO is written in place. `path` is copied. Always call _release.
 */
struct out_place {
    /* as the user wrote it; with links followed; the temporary name. The last two are NULL if written in place */
    char *path, *target, *tmp;
};
struct out_file {
    struct out_place place;
    int fd; /* -1: not open, or closed again */
    bool overwrite, done;
};
#define OUT_FILE_NONE ((struct out_file){.fd = -1})
/* ERR_USAGE: the file exists and overwrite is false, or it is a folder. ERR_IO: the final rename could not succeed. */
int out_file_create(struct out_file *f, const char *path, bool overwrite, struct err *e) MUST_CHECK;
int out_file_sync(struct out_file *f, struct err *e) MUST_CHECK;   /* synced to disk and closed */
int out_file_commit(struct out_file *f, struct err *e) MUST_CHECK; /* synced and renamed */
void out_file_release(struct out_file *f);

struct out_folder {
    struct out_place place;
    int dir; /* descriptor of the temporary folder; -1: not open */
    bool committed;
};
#define OUT_FOLDER_NONE ((struct out_folder){.dir = -1})
int out_folder_begin(struct out_folder *f, const char *path, struct err *e) MUST_CHECK; /* ERR_USAGE: it exists */
int out_folder_create(struct out_folder *f, const char *name, int *fd, struct err *e) MUST_CHECK;
int out_folder_close(struct out_folder *f, const char *name, int fd, struct err *e) MUST_CHECK; /* fsync and close */
int out_folder_write(struct out_folder *f, const char *name, const void *data, size_t n, struct err *e) MUST_CHECK;
int out_folder_commit(struct out_folder *f, struct err *e) MUST_CHECK;
void out_folder_release(struct out_folder *f);

/* Checks that an output of this name could be written; fails like the functions above and open(), and leaves nothing
 * behind. *id identifies the output for out_same; id->file is the inode of the existing file, 0 if there is none. */
enum out_use { OUT_NEW, OUT_REPLACE, OUT_APPEND, OUT_FOLDER };
struct out_id {
    bool known; /* false: written in place, which several outputs may share */
    dev_t dev, file_dev;
    ino_t folder, file;
    struct digest name;
};
int out_check(const char *path, enum out_use use, struct out_id *id, struct err *e) MUST_CHECK;
bool out_same(const struct out_id *a, const struct out_id *b);
/* Opens an unnamed file in TMPDIR or /tmp; it disappears when its descriptor is closed.
 * ERR_IO on failure. */
int out_scratch(int *fd, struct err *e) MUST_CHECK;
/* Removes all temporary files and folders. For the handler of a terminating signal: it makes only direct system calls,
 * no allocation and no locking. Other threads must have signals blocked. */
void out_remove_temporaries(void);

/* ---- random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) ----------
 *
 * Counter-based: the numbers are a pure function of (seed, stream, counter), so any thread can compute any of them and
 * the result does not depend on how work is divided. `stream` separates uses (position in the data, tensor, step).
 */
void philox(uint64_t seed, uint64_t stream, uint64_t counter, uint32_t out[4]);
double philox_f64(const uint32_t words[2]); /* a uniform in [0, 1) with 53 bits, from two output words */

/* A sequential generator on top of it. */
struct rng {
    uint64_t seed, stream, counter;
    uint32_t buffer[4];
    unsigned left; /* unused words in buffer */
};
struct rng rng_init(uint64_t seed, uint64_t stream);
uint32_t rng_u32(struct rng *r);
uint64_t rng_below(struct rng *r, uint64_t n); /* uniform in [0, n), n > 0, without modulo bias */
double rng_f64(struct rng *r);                 /* uniform in [0, 1), 53 bits */
double rng_normal(struct rng *r);              /* standard normal */

/* ---- parallel for ---------------------------------------------------------------------------------------------------
 *
 * Runs body(ctx, i) for i in [0, n), each exactly once, on up to parallel_threads() threads. Which thread runs which i
 * is unspecified, so a body must write only data that belongs to i; then the result does not depend on the number of
 * threads. For reductions, split the data into a number of pieces that does not depend on it, and reduce in index
 * order. Nested calls run serially, unless the outer loop had a single index. `thread` is in [0, parallel_threads())
 * and selects scratch memory; a nested serial call passes on the number of the thread it runs on.
 */
typedef void parallel_body(void *ctx, size_t i, int thread);
void parallel_for(size_t n, parallel_body *body, void *ctx);
void parallel_set_threads(int n); /* at least 1; default: the number of CPUs this process may use */
int parallel_threads(void);
int parallel_default_threads(void);

/* ---- profile: where the time goes --------------------------------------------------------------------------------
 *
 * PROFILE(PRODUCTS) as the first statement of a function attributes its running time to matrix products, if profiling
 * is on and the calling thread is the one that started it. Of nested marks the outermost counts (products in the head
 * count as the head), except that reading and writing always count as themselves. Without profiling a mark costs one
 * call and one test, so it belongs in functions that work on whole arrays.
 */
enum profile_part {
    PROFILE_READING,     /* reading streams, including decompression */
    PROFILE_WRITING,     /* writing streams */
    PROFILE_PACKING,     /* packing weights for matrix products, including dequantization */
    PROFILE_PRODUCTS,    /* matrix products, except those of attention and the head */
    PROFILE_ATTENTION,   /* scores, softmax, weighted sums; forward and backward */
    PROFILE_HEAD,        /* products with the output matrix, and work on the logits: losses, encodings */
    PROFILE_ELEMENTWISE, /* norms, activations, rotary embedding, sums */
    PROFILE_LOSSES,      /* losses on intermediate activations */
    PROFILE_SOLVING,     /* second-order methods: factors, error feedback */
    PROFILE_OPTIMIZER,
    PROFILE_PARTS
};
struct profile_mark {
    bool entered;             /* false: a nested mark that does not count */
    enum profile_part before; /* the part that was current before */
};
#define PROFILE(p)                                                                                                     \
    __attribute__((cleanup(profile_leave), unused)) struct profile_mark profile_mark = profile_enter(PROFILE_##p)
struct profile_mark profile_enter(enum profile_part part);
void profile_leave(struct profile_mark *m);
void profile_start(void); /* call once, from the thread to be profiled, before other threads run */
struct profile_shares {
    double seconds;             /* since profile_start */
    double part[PROFILE_PARTS]; /* fraction of `seconds` spent in each part */
    double other;               /* the remaining fraction; all add up to 1 */
    double idle;                /* fraction of the time of all threads in which they were idle */
};
bool profile_read(struct profile_shares *out, int threads); /* `threads`: how many ran; false: profiling is off */
const char *profile_part_name(enum profile_part part);

/* ---- log: the library never prints; lib/cli installs a sink ------------------------------------------------------ */

enum log_level { LOG_WARN, LOG_INFO, LOG_DEBUG };
typedef void log_sink(void *ctx, enum log_level level, const char *line);
void log_set_sink(log_sink *sink, void *ctx); /* NULL: no output, the default */
void log_line(enum log_level level, const char *fmt, ...) PRINTF_LIKE(2, 3);

#endif
