/*
 * base: what every other module builds on. Errors as values, memory with checked sizes, growable bytes, strict JSON,
 * digests, descriptors, outputs that appear whole, counter-based random numbers, a deterministic parallel loop and log
 * lines.
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
 * A function that can fail returns 0 or one of these negative codes and takes a `struct err *` last. The struct is
 * the caller's, is written only on failure, and carries one lower-case line that names what and where. The codes are
 * pinned: lib/cli maps them to exit codes.
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

/* Fills *e and returns code, so that `return err_set(e, ERR_DATA, ...)` is the idiom. */
int err_set(struct err *e, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* Puts "PREFIX: " before the message already in *e: callers add the file, the record, the tensor. Returns e->code. */
int err_prefix(struct err *e, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* As err_set with ERR_IO, and ": strerror(errnum)" after the message. */
int err_sys(struct err *e, int errnum, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* ---- checked integer arithmetic: every size from outside goes through these before it allocates ---------------- */

/* *out = a * b, a + b. Return false on overflow, *out is then unspecified. */
static inline bool u64_mul(uint64_t a, uint64_t b, uint64_t *out) {
    return !__builtin_mul_overflow(a, b, out);
}
static inline bool u64_add(uint64_t a, uint64_t b, uint64_t *out) {
    return !__builtin_add_overflow(a, b, out);
}

/* *out = a rounded up to a multiple of the power of two `align`. False on overflow. */
static inline bool u64_align(uint64_t a, uint64_t align, uint64_t *out) {
    uint64_t t;
    if (!u64_add(a, align - 1, &t)) return false;
    *out = t & ~(align - 1);
    return true;
}

/* ---- memory -------------------------------------------------------------------------------------------------- */

/* Return NULL and set *e (ERR_IO, "out of memory: ...") on failure. Size 0 gives a unique pointer. Free with mem_free. */
void *mem_alloc(size_t size, struct err *e) MUST_CHECK;           /* uninitialised, 64-byte aligned */
void *mem_zalloc(size_t size, struct err *e) MUST_CHECK;          /* zeroed, 64-byte aligned */
void *mem_array(size_t n, size_t size, struct err *e) MUST_CHECK; /* n * size checked, zeroed, 64-byte aligned */
char *mem_strdup(const char *s, struct err *e) MUST_CHECK;
void mem_free(void *p);
/*
 * The budget. Allocations are counted; one that does not fit into what is left fails as if the system had refused it, before
 * the machine swaps or kills. What is left: of `bytes` when mem_set_limit was called (0: as if it never was), else the least of
 * what the machine has available, the control group and RLIMIT_AS leave, looked up for large allocations.
 */
void mem_set_limit(uint64_t bytes);
uint64_t mem_left(void);
uint64_t mem_address_space(void); /* what RLIMIT_AS alone leaves; UINT64_MAX: no limit */
uint64_t mem_in_use(void);        /* by mem_alloc and everything built on it */
/* ERR_IO ("N MB of memory are needed and M MB are left") if so many bytes do not fit. For callers that allocate in
 * steps or many parts. */
int mem_check(uint64_t bytes, struct err *e) MUST_CHECK;
/* For tests: the n-th allocation from now on fails, once. 0 turns it off. Tests go through all n until nothing fails. */
void mem_fail_at(uint64_t n);

/*
 * Arena: many small objects with one lifetime. Pointers stay valid until arena_reset or arena_release.
 * `struct arena a = {0};` is a valid empty arena. Alignment of every allocation is 64 bytes when size >= 64, else 16.
 */
struct arena {
    struct arena_block *head;
};
void *arena_alloc(struct arena *a, size_t size, struct err *e) MUST_CHECK;           /* uninitialised */
void *arena_array(struct arena *a, size_t n, size_t size, struct err *e) MUST_CHECK; /* checked, zeroed */
char *arena_strdup(struct arena *a, const char *s, struct err *e) MUST_CHECK;
char *arena_strndup(struct arena *a, const char *s, size_t n, struct err *e) MUST_CHECK;
char *arena_printf(struct arena *a, struct err *e, const char *fmt, ...) MUST_CHECK PRINTF_LIKE(3, 4);
void arena_reset(struct arena *a);   /* forgets all objects, keeps one block for reuse */
void arena_release(struct arena *a); /* gives everything back; the arena is empty and usable again */

/* ---- growable bytes: `struct buf b = {0};`, then buf_*, then buf_release ----------------------------------------- */

struct buf {
    unsigned char *data; /* owned; 64-byte aligned; not NUL-terminated (buf_printf appends no NUL either) */
    size_t len, cap;
};
int buf_reserve(struct buf *b, size_t extra, struct err *e) MUST_CHECK; /* room for `extra` more bytes */
int buf_append(struct buf *b, const void *data, size_t n, struct err *e) MUST_CHECK;
int buf_printf(struct buf *b, struct err *e, const char *fmt, ...) MUST_CHECK PRINTF_LIKE(3, 4);
void buf_release(struct buf *b);

/* ---- strings ---------------------------------------------------------------------------------------------------- */

/* Is s[0..n) well-formed UTF-8 (no overlong forms, surrogates or code points past U+10FFFF)? */
bool utf8_valid(const char *s, size_t n);

/* A name fit for tensors, records and options: 1..1024 bytes of valid UTF-8 without control characters. */
bool name_valid(const char *s, size_t n);

/* Escapes text from a file or a command line for a terminal or a text, so that it can neither move the cursor, start
 * a line, nor change the direction of reading. Control and format characters (but the joiners, which words and emoji
 * need) and line separators become \n, \t, \r or the \u1234 of JSON, bytes that are not UTF-8 become \x9b; the rest
 * stays, backslashes too. Text that is escaped stays as it is when it is escaped again. */
#define ESCAPE_MAX 13 /* bytes that one character can become, with a NUL */
/* The first character of s[0..n), n > 0: *took is its length in bytes, `out` gets what to show, with a NUL. True if
 * the two differ. */
bool escape_char(const char *s, size_t n, size_t *took, char out[ESCAPE_MAX]);
/* Of all of s[0..n), as far as it fits: whole characters, and a NUL. Returns the length. `out` may not overlap s. */
size_t escape_text(char *out, size_t size, const char *s, size_t n);

/* Reads a whole string as a number: no trailing characters, no overflow. False if it is not one. Decimal only; the u64
 * form accepts the suffixes K, M, G (powers of 1024). */
bool parse_u64(const char *s, uint64_t *out);
bool parse_f64(const char *s, double *out);

/* ---- JSON: cJSON behind strict rules ----------------------------------------------------------------------------------
 *
 * json_parse refuses what cJSON lets through: nesting deeper than JSON_MAX_DEPTH, duplicate keys in any object (cJSON
 * returns the first), invalid UTF-8, bytes after the value, NUL inside. The result is freed with cJSON_Delete.
 * The accessors name the key that is missing or wrong. NOTHING that sizes memory may come from JSON unchecked: the
 * accessors for integers take the range.
 */
#define JSON_MAX_DEPTH 32
/* A JSON number is a double here: from 2^53 on it may not be the integer it seems. The u64 accessors refuse larger ones;
 * write those (seeds, digests) as strings. */
#define JSON_MAX_INTEGER ((UINT64_C(1) << 53) - 1)

cJSON *json_parse(const char *text, size_t len, struct err *e) MUST_CHECK;
/* Canonical text: keys in the order they were added, no white space, numbers in the shortest form that reads back.
 * Refuses (ERR_DATA) what json_parse would: NaN, infinities, duplicate keys, invalid UTF-8. Free with mem_free. */
char *json_text(const cJSON *value, struct err *e) MUST_CHECK;
/* The same value as text for people, in which the characters that escape_char escapes are written as \u. Not
 * canonical: never written to a file. */
char *json_text_shown(const cJSON *value, struct err *e) MUST_CHECK;
int json_get_u64(const cJSON *object, const char *key, uint64_t min, uint64_t max, uint64_t *out,
                 struct err *e) MUST_CHECK;
int json_get_f64(const cJSON *object, const char *key, double min, double max, double *out, struct err *e) MUST_CHECK;
int json_get_str(const cJSON *object, const char *key, const char **out,
                 struct err *e) MUST_CHECK; /* owned by object */
int json_get_bool(const cJSON *object, const char *key, bool *out, struct err *e) MUST_CHECK;
/* The optional forms leave *out as it is when the key is absent or null, and still refuse a wrong type or range. */
int json_opt_u64(const cJSON *object, const char *key, uint64_t min, uint64_t max, uint64_t *out,
                 struct err *e) MUST_CHECK;
int json_opt_f64(const cJSON *object, const char *key, double min, double max, double *out, struct err *e) MUST_CHECK;
int json_opt_str(const cJSON *object, const char *key, const char **out, struct err *e) MUST_CHECK;
int json_opt_bool(const cJSON *object, const char *key, bool *out, struct err *e) MUST_CHECK;
/* Add to an object; false when out of memory (the caller reports once, at the end, with err_nomem) or when a u64 is
 * above JSON_MAX_INTEGER. They do not look for a key that is already there; json_text does. */
bool json_put_u64(cJSON *object, const char *key, uint64_t v);
bool json_put_f64(cJSON *object, const char *key, double v);
bool json_put_float(cJSON *object, const char *key,
                    double v); /* a whole number with a point, "30.0": for readers that would take 30 for an integer */
bool json_put_f64_or_null(cJSON *object, const char *key, double v); /* null when v is not finite: JSON has no such
 * number */
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

/* ---- descriptors: the one read and the one write ------------------------------------------------------------------
 *
 * Interrupted calls are repeated, short writes are continued, and a descriptor that is non-blocking (it may be shared
 * with ssh or a terminal) is waited for. On failure errno says why.
 */
ssize_t fd_read(int fd, void *dst, size_t n);      /* up to n bytes; 0: the end, -1: failure */
bool fd_write(int fd, const void *data, size_t n); /* all of it */
bool fd_write2(int fd, const void *a, size_t n_a, const void *b, size_t n_b); /* both, in as few calls as possible */

/* ---- files and folders that appear complete or not at all -----------------------------------------------------------
 *
 * Created under a temporary name beside the target, synced and renamed by _commit, removed by _release (and by a
 * signal, see out_remove_temporaries). Links are followed, so that a link stays what it is; its target need not exist.
 * A device or a FIFO is written in place. `path` is copied. Release in any case.
 */
struct out_place {
    char *path, *target, *tmp; /* as the user wrote it; links followed; temporary. Both NULL: written in place */
};
struct out_file {
    struct out_place place;
    int fd; /* -1: none (any more) */
    bool overwrite, done;
};
#define OUT_FILE_NONE ((struct out_file){.fd = -1})
/* ERR_USAGE: it exists and overwrite is false, or is a folder. ERR_IO: it could not be given its name later. */
int out_file_create(struct out_file *f, const char *path, bool overwrite, struct err *e) MUST_CHECK;
int out_file_sync(struct out_file *f, struct err *e) MUST_CHECK;   /* flushed to disk and closed */
int out_file_commit(struct out_file *f, struct err *e) MUST_CHECK; /* synced, under its name */
void out_file_release(struct out_file *f);

struct out_folder {
    struct out_place place;
    int dir; /* descriptor of the temporary folder, -1: not begun */
    bool committed;
};
#define OUT_FOLDER_NONE ((struct out_folder){.dir = -1})
int out_folder_begin(struct out_folder *f, const char *path, struct err *e) MUST_CHECK; /* ERR_USAGE: it exists */
int out_folder_create(struct out_folder *f, const char *name, int *fd, struct err *e) MUST_CHECK;
int out_folder_close(struct out_folder *f, const char *name, int fd, struct err *e) MUST_CHECK; /* fsync and close */
int out_folder_write(struct out_folder *f, const char *name, const void *data, size_t n, struct err *e) MUST_CHECK;
int out_folder_commit(struct out_folder *f, struct err *e) MUST_CHECK;
void out_folder_release(struct out_folder *f);

/* Would an output of this name work? Fails as the functions above and as open() do, and leaves nothing behind. *id
 * is for comparison with other outputs, and holds what is there now: file 0, nothing. */
enum out_use { OUT_NEW, OUT_REPLACE, OUT_APPEND, OUT_FOLDER };
struct out_id {
    bool known; /* false: written in place, which many may do */
    dev_t dev, file_dev;
    ino_t folder, file;
    struct digest name;
};
int out_check(const char *path, enum out_use use, struct out_id *id, struct err *e) MUST_CHECK;
bool out_same(const struct out_id *a, const struct out_id *b);
/* An open file without a name in TMPDIR or /tmp, which vanishes with its descriptor. */
int out_scratch(int *fd, struct err *e) MUST_CHECK;
/* Removes all temporary files and folders there are. For the handler of a signal that ends the program: it calls
 * nothing but what POSIX allows there. The other threads must block signals. */
void out_remove_temporaries(void);

/* ---- random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) ----------------
 *
 * Counter-based: the numbers are a pure function of (seed, stream, counter), so any thread can make any of them and the
 * result does not depend on how work was shared out. `stream` tells uses apart (position in the data, tensor, step).
 */
void philox(uint64_t seed, uint64_t stream, uint64_t counter, uint32_t out[4]);
double philox_f64(const uint32_t words[2]); /* two of its words as a uniform in [0, 1), 53 bits */

/* A sequence on top of it, for code that draws one after another. */
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

/* ---- parallel for ------------------------------------------------------------------------------------------------------------
 *
 * Runs body(ctx, i) for i in [0, n), each exactly once, on up to parallel_threads() threads. Which thread runs which i is
 * unspecified, so a body must write only what belongs to i; then the result does not depend on the number of threads.
 * Reductions: split the data into pieces whose number does not depend on the thread count, reduce in index order.
 * Calls from inside a body run serially, unless the outer call had a single index. `thread` is in
 * [0, parallel_threads()), for scratch memory; a nested serial call sees its caller's.
 */
typedef void parallel_body(void *ctx, size_t i, int thread);
void parallel_for(size_t n, parallel_body *body, void *ctx);
void parallel_set_threads(int n); /* >= 1; default: the cores this process may use */
int parallel_threads(void);
int parallel_default_threads(void);

/* ---- profile: where the time goes --------------------------------------------------------------------------------
 *
 * PROFILE(PRODUCTS) as the first statement of a function counts the time until it returns as spent on products, if a profile is kept
 * and the thread is the one that began it. Of marks inside one another the outer one counts (a head's products are the head's), but
 * reading and writing count by themselves. Without a profile a mark is a call and a test; it belongs in functions that work on whole
 * arrays.
 */
enum profile_part {
    PROFILE_READING,     /* streams in, decompression included */
    PROFILE_WRITING,     /* streams out */
    PROFILE_PACKING,     /* weights into the layout of products, from quantized blocks too */
    PROFILE_PRODUCTS,    /* matrix products, without attention's and the head's */
    PROFILE_ATTENTION,   /* scores, softmax, mixing; forward and backward */
    PROFILE_HEAD,        /* products with the output matrix, and what is made of the logits: losses, encodings */
    PROFILE_ELEMENTWISE, /* norms, activations, rotary embedding, sums */
    PROFILE_LOSSES,      /* losses on points */
    PROFILE_SOLVING,     /* second-order methods: factors, error feedback */
    PROFILE_OPTIMIZER,
    PROFILE_PARTS
};
struct profile_mark {
    bool entered;             /* false: the mark does not count */
    enum profile_part before; /* what the thread was doing */
};
#define PROFILE(p)                                                                                                     \
    __attribute__((cleanup(profile_leave), unused)) struct profile_mark profile_mark = profile_enter(PROFILE_##p)
struct profile_mark profile_enter(enum profile_part part);
void profile_leave(struct profile_mark *m);
void profile_start(void); /* once, by the thread whose time is counted, before other threads run */
struct profile_shares {
    double seconds;             /* since profile_start */
    double part[PROFILE_PARTS]; /* shares of them */
    double other;               /* the rest: with these it makes 1 */
    double idle;                /* share of all threads' time in which they had nothing to do */
};
bool profile_read(struct profile_shares *out, int threads); /* of so many; false: no profile is kept */
const char *profile_part_name(enum profile_part part);

/* ---- log: the library never prints; lib/cli installs a sink ------------------------------------------------------ */

enum log_level { LOG_WARN, LOG_INFO, LOG_DEBUG };
typedef void log_sink(void *ctx, enum log_level level, const char *line);
void log_set_sink(log_sink *sink, void *ctx); /* NULL: silence, which is the default */
void log_line(enum log_level level, const char *fmt, ...) PRINTF_LIKE(2, 3);

#endif
