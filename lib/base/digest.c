/* XXH3 digests and checksums: not cryptographic, but as fast as memory; they detect accidents, not forgeries. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define XXH_STATIC_LINKING_ONLY /* for the size of the state */
#include <xxhash.h>
/* The library's functions use what every x86-64 has; these use the widest vectors of this processor, three times as
 * fast where it has AVX-512. Not every libxxhash has them. */
#if defined __x86_64__ && __has_include(<xxh_x86dispatch.h>)
#include <xxh_x86dispatch.h>
#endif

#include "lib/base/base.h"

struct digest_state {
    XXH3_state_t xxh;
};

static struct digest from_xxh(XXH128_hash_t h) {
    return (struct digest){.lo = h.low64, .hi = h.high64};
}

struct digest digest_bytes(const void *data, size_t n) {
    return from_xxh(XXH3_128bits(n ? data : "", n));
}

struct digest_state *digest_new(struct err *e) {
    struct digest_state *s = mem_zalloc(sizeof *s, e); /* XXH3 needs a zeroed state */
    if (s) XXH3_128bits_reset(&s->xxh);
    return s;
}

void digest_update(struct digest_state *s, const void *data, size_t n) {
    if (n) XXH3_128bits_update(&s->xxh, data, n);
}

struct digest digest_get(const struct digest_state *s) {
    return from_xxh(XXH3_128bits_digest(&s->xxh));
}

void digest_free(struct digest_state *s) {
    mem_free(s);
}

struct checksum_state {
    XXH3_state_t xxh;
};

uint64_t checksum_bytes(const void *data, size_t n) {
    return XXH3_64bits(n ? data : "", n);
}

struct checksum_state *checksum_new(struct err *e) {
    struct checksum_state *s = mem_zalloc(sizeof *s, e); /* zeroed, as above */
    if (s) checksum_restart(s);
    return s;
}

void checksum_restart(struct checksum_state *s) {
    XXH3_64bits_reset(&s->xxh);
}

void checksum_update(struct checksum_state *s, const void *data, size_t n) {
    if (n) XXH3_64bits_update(&s->xxh, data, n);
}

uint64_t checksum_get(const struct checksum_state *s) {
    return XXH3_64bits_digest(&s->xxh);
}

void checksum_free(struct checksum_state *s) {
    mem_free(s);
}

/* High half first, as xxhsum -H128 prints it. */
void digest_text(struct digest d, char out[DIGEST_TEXT_SIZE]) {
    snprintf(out, DIGEST_TEXT_SIZE, "xxh3:%016" PRIx64 "%016" PRIx64, d.hi, d.lo);
}

/* Lower case only: a digest has one spelling, so that its text can be compared. */
bool digest_parse(const char *text, struct digest *out) {
    if (strlen(text) != DIGEST_TEXT_SIZE - 1 || memcmp(text, "xxh3:", 5) != 0) return false;
    uint64_t half[2] = {0, 0};
    for (int i = 0; i < 32; i++) {
        char c = text[5 + i];
        unsigned digit = c >= '0' && c <= '9'   ? (unsigned)(c - '0')
                         : c >= 'a' && c <= 'f' ? (unsigned)(c - 'a') + 10
                                                : 16;
        if (digit > 15) return false;
        half[i / 16] = half[i / 16] << 4 | digit;
    }
    *out = (struct digest){.hi = half[0], .lo = half[1]};
    return true;
}
