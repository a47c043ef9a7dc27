/*
 * Fuzzes VOCB records. An accepted record must pack to the same vocabulary, prune, and encode its own bytes as a text
 * that decodes to itself.
 */
#include "lib/text/text.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool holds) {
    if (!holds) abort();
}

static void check_pack(const struct vocab *v) {
    struct err e;
    struct buf packed = {0}, again = {0};
    struct vocab *w = NULL;
    struct digest identity;
    must(vocab_pack(v, &packed, &e) == 0 && vocab_unpack(&w, packed.data, packed.len, &e) == 0);
    must(vocab_pack(w, &again, &e) == 0 && packed.len == again.len && !memcmp(packed.data, again.data, packed.len));
    must(vocab_identity(packed.data, packed.len, &identity, &e) == 0 && digest_equal(identity, v->digest));
    vocab_free(w);
    buf_release(&packed);
    buf_release(&again);
}

/* White space that added tokens strip does not come back. */
static bool is_reversible(const struct vocab *v) {
    for (uint32_t id = 0; id < v->n_tokens; id++)
        if (v->tokens[id].flags & (TOKEN_LSTRIP | TOKEN_RSTRIP)) return false;
    return v->unk == TOKEN_NONE;
}

static void check_encode(const struct vocab *v, const uint8_t *text, size_t n, bool plain) {
    struct err e;
    struct text_ids whole = {0}, parts = {0};
    struct buf out = {0};
    struct text_encode_options o = {.no_normalise = true, .plain_specials = plain};
    must(text_encode(v, text, n, &o, &whole, &e) == 0);
    must(text_decode(v, whole.ids, whole.n, false, &out, &e) == 0);
    if (is_reversible(v)) must(out.len + whole.n_lost == n);
    if (is_reversible(v) && !whole.n_lost) must(n == 0 || memcmp(out.data, text, n) == 0);
    size_t cut = text_safe_cut(v, text, n);
    must(cut < n || n == 0);
    must(text_encode(v, text, cut, &o, &parts, &e) == 0 && text_encode(v, text + cut, n - cut, &o, &parts, &e) == 0);
    must(parts.n == whole.n && (whole.n == 0 || !memcmp(parts.ids, whole.ids, whole.n * sizeof *whole.ids)));
    text_ids_release(&whole);
    text_ids_release(&parts);
    buf_release(&out);
}

static void check_prune(const struct vocab *v, uint64_t seed) {
    struct err e;
    struct vocab *w;
    unsigned char *keep = mem_zalloc(v->n_tokens, &e);
    uint32_t *map = mem_array(v->n_tokens, sizeof *map, &e);
    struct rng r = rng_init(seed, 0);
    must(keep && map);
    for (uint32_t id = 0; id < v->n_tokens; id++) keep[id] = rng_u32(&r) & 1;
    if (vocab_prune(&w, v, keep, map, &e) == 0) {
        for (uint32_t id = 0; id < v->n_tokens; id++) must(!keep[id] || map[id] < w->n_tokens);
        vocab_free(w);
    }
    mem_free(keep);
    mem_free(map);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct err e;
    struct vocab *v;
    if (vocab_unpack(&v, data, size, &e) != 0) return 0;
    check_pack(v);
    check_encode(v, data, size, false);
    check_encode(v, data, size, true);
    check_prune(v, size);
    vocab_free(v);
    return 0;
}
