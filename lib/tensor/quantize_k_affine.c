/*
 * The k-quants with a min: 256 elements in sub-blocks, x = d sc q - dmin m, where sc and m are small integers.
 *
 * Q2_K: 16 sub-blocks of 16, sc and m in 4 bits.
 *     u8 scales[16]: sc | m << 4 | u8 qs[64] | f16 d | f16 dmin
 * Q4_K, Q5_K: 8 sub-blocks of 32, sc and m in 6 bits.
 *     f16 d | f16 dmin | u8 scales[12] | u8 qh[32] (Q5_K) | u8 qs[128]
 *
 * One implementation serves all three; the layout is a constant that the compiler folds.
 */
#include <math.h>
#include <string.h>

#include "lib/tensor/quantize_internal.h"

#define N        256
#define MAX_SUBS 16
#define INLINE   static inline __attribute__((always_inline))

struct layout {
    int bits, n_subs, sub;                         /* per code; number of sub-blocks; elements in each */
    int scale_top;                                 /* sc and m are in [0, scale_top] */
    size_t d_at, scales_at, high_at, low_at, size; /* byte offsets within the block; dmin follows d */
};
static const struct layout q2_k = {2, 16, 16, 15, 80, 0, 0, 16, 84};
static const struct layout q4_k = {4, 8, 32, 63, 0, 4, 0, 16, 144};
static const struct layout q5_k = {5, 8, 32, 63, 0, 4, 16, 48, 176};

/* ---- packing scales ---- */

/* Eight pairs (scale, min) of 6-bit numbers in 12 bytes. The first four pairs take the low 6 bits of a byte each; the
 * top 2 bits of those bytes are the high bits of the last four pairs, whose low 4 bits share a byte per pair. */
static void unpack_6_bits(const uint8_t p[12], uint8_t scales[8], uint8_t mins[8]) {
    for (int j = 0; j < 4; j++) {
        scales[j] = p[j] & 63;
        mins[j] = p[j + 4] & 63;
        scales[j + 4] = (uint8_t)((p[j + 8] & 15) | p[j] >> 6 << 4);
        mins[j + 4] = (uint8_t)(p[j + 8] >> 4 | p[j + 4] >> 6 << 4);
    }
}

static void pack_6_bits(const uint8_t scales[8], const uint8_t mins[8], uint8_t p[12]) {
    for (int j = 0; j < 4; j++) {
        p[j] = (uint8_t)(scales[j] | scales[j + 4] >> 4 << 6);
        p[j + 4] = (uint8_t)(mins[j] | mins[j + 4] >> 4 << 6);
        p[j + 8] = (uint8_t)((scales[j + 4] & 15) | (mins[j + 4] & 15) << 4);
    }
}

INLINE void unpack_scales(const struct layout *k, const uint8_t *p, uint8_t scales[MAX_SUBS], uint8_t mins[MAX_SUBS]) {
    if (k->bits > 2) {
        unpack_6_bits(p, scales, mins);
        return;
    }
    for (int s = 0; s < 16; s++) {
        scales[s] = p[s] & 15;
        mins[s] = p[s] >> 4;
    }
}

INLINE void pack_scales(const struct layout *k, const uint8_t scales[MAX_SUBS], const uint8_t mins[MAX_SUBS],
                        uint8_t *p) {
    if (k->bits > 2) {
        pack_6_bits(scales, mins, p);
        return;
    }
    for (int s = 0; s < 16; s++) p[s] = (uint8_t)(scales[s] | mins[s] << 4);
}

/* ---- packing codes ---- */

/* Unpacks the codes of sub-block s. With 4 and 5 bits, sub-blocks 2j and 2j + 1 share 32 bytes of qs, and bit s of
 * qh[l] is the fifth bit. */
INLINE void unpack_codes(const struct layout *k, const uint8_t *block, int s, uint8_t *codes) {
    if (k->bits == 2) {
        unpack_2_bits(block + k->low_at, s, codes);
        return;
    }
    const uint8_t *low = block + k->low_at + s / 2 * 32, *high = block + k->high_at;
    int shift = s % 2 * 4;
    for (int l = 0; l < 32; l++) codes[l] = low[l] >> shift & 15;
    for (int l = 0; k->bits == 5 && l < 32; l++) codes[l] |= (uint8_t)((high[l] >> s & 1) << 4);
}

INLINE void pack_codes(const struct layout *k, const uint8_t codes[N], uint8_t *block) {
    if (k->bits == 2) {
        pack_2_bits(codes, block + k->low_at);
        return;
    }
    uint8_t *low = block + k->low_at, *high = block + k->high_at;
    if (k->bits == 5) memset(high, 0, 32);
    for (int s = 0; s < 8; s += 2, low += 32, codes += 64)
        for (int l = 0; l < 32; l++) {
            low[l] = (uint8_t)((codes[l] & 15) | (codes[l + 32] & 15) << 4);
            if (k->bits == 5) high[l] |= (uint8_t)((codes[l] >> 4) << s | (codes[l + 32] >> 4) << (s + 1));
        }
}

/* ---- decoding ---- */

INLINE void decode(const struct layout *k, const uint8_t *block, float *y, size_t n_blocks) {
    for (size_t b = 0; b < n_blocks; b++, block += k->size) {
        uint8_t scales[MAX_SUBS], mins[MAX_SUBS];
        unpack_scales(k, block + k->scales_at, scales, mins);
        float d = load_f16(block + k->d_at), dmin = load_f16(block + k->d_at + 2);
        for (int s = 0; s < k->n_subs; s++, y += k->sub) {
            uint8_t codes[32]; /* a local copy, so that the compiler knows it does not alias y, and vectorises */
            float scale = d * scales[s], min = dmin * mins[s];
            unpack_codes(k, block, s, codes);
            for (int l = 0; l < k->sub; l++) y[l] = scale * (float)codes[l] - min;
        }
    }
}

INLINE void take_apart(const struct layout *k, const uint8_t *block, struct quant_parts *p) {
    uint8_t scales[MAX_SUBS], mins[MAX_SUBS];
    unpack_scales(k, block + k->scales_at, scales, mins);
    p->d = f16_bits(block + k->d_at);
    p->min = f16_bits(block + k->d_at + 2) ^ 0x8000;
    for (int s = 0; s < k->n_subs; s++) {
        p->scales[s] = (int8_t)scales[s];
        p->mins[s] = (int8_t)mins[s];
        unpack_codes(k, block, s, p->codes + s * k->sub);
    }
}

INLINE void join(const struct layout *k, const struct quant_parts *p, uint8_t *block) {
    put_bits(block + k->d_at, p->d);
    put_bits(block + k->d_at + 2, p->min ^ 0x8000);
    pack_scales(k, (const uint8_t *)p->scales, (const uint8_t *)p->mins, block + k->scales_at);
    pack_codes(k, p->codes, block);
}

/* ---- encoding ---- */

/* The fit of consecutive blocks, as many as have FIT_AT_ONCE sub-blocks, before their scales are quantized. */
#define MAX_BLOCKS 2
#define AHEAD      8 /* blocks whose squares are summed together */
struct fit {
    float scales[FIT_AT_ONCE], mins[FIT_AT_ONCE]; /* the mins negated: >= 0 */
    float weight[FIT_AT_ONCE];                    /* of each sub-block in the fit of the scales */
    uint8_t codes[MAX_BLOCKS * N];
};

/* For n blocks. Sums of several blocks hide the latency of each other's additions; the last block stands in for missing
 * ones. */
static void sums_of_squares(const float *x, size_t n, float sums[AHEAD]) {
    const float *block[AHEAD];
    for (size_t b = 0; b < AHEAD; b++) sums[b] = 0, block[b] = x + (b < n ? b : n - 1) * N;
    for (size_t i = 0; i < N; i++)
        for (size_t b = 0; b < AHEAD; b++) sums[b] += block[b][i] * block[b][i];
}

INLINE const struct fit_search *search_for(const struct layout *k, bool has_importance) {
    static const struct fit_search bits_2 = {-0.5f, 0.1f, 15, .absolute = true},
                                   bits_4 = {-1.0f, 0.1f, 20, .rms = true}, bits_5 = {-0.5f, 0.1f, 15, .rms = true},
                                   weighted = {-0.9f, 0.05f, 36, false};
    return has_importance ? &weighted : k->bits == 2 ? &bits_2 : k->bits == 4 ? &bits_4 : &bits_5;
}

/* squares [n_blocks]: sums of squares, with w. */
INLINE void fit_blocks(const struct layout *k, size_t first, size_t n_blocks, const float *x,
                       const struct row_weights *w, const float *squares, struct fit *fit) {
    float weights[MAX_BLOCKS * N];
    for (size_t b = 0; w && b < n_blocks; b++)
        fit_weigh(N, x + b * N, importance_of(w, (first + b) * N), (k->bits == 2 ? 1.0f : 2.0f) * squares[b] / N,
                  weights + b * N);
    fit_affine(n_blocks * (size_t)k->n_subs, k->sub, (1 << k->bits) - 1, x, w ? weights : NULL,
               search_for(k, w != NULL), &(struct fit_result){fit->codes, fit->scales, fit->mins, fit->weight});
}

/* Rounds scales >= 0 to small integers: the largest becomes scale_top. */
INLINE float round_scales(const struct layout *k, const float x[MAX_SUBS], uint8_t codes[MAX_SUBS]) {
    float max = 0, top = (float)k->scale_top;
    for (int s = 0; s < k->n_subs; s++)
        if (x[s] > max) max = x[s];
    float inverse = max > 0 ? top / max : 0.0f;
    for (int s = 0; s < k->n_subs; s++) codes[s] = (uint8_t)nearest_code(inverse * x[s], 0, k->scale_top);
    return max / top;
}

/* Recomputes the codes for the quantized scales. If a scale became 0, any code will do. */
INLINE void round_to_grid(const struct layout *k, const float *x, float d, float dmin, const uint8_t scales[MAX_SUBS],
                          const uint8_t mins[MAX_SUBS], uint8_t codes[N]) {
    for (int s = 0; s < k->n_subs; s++, x += k->sub, codes += k->sub) {
        float scale = d * scales[s], min = dmin * mins[s];
        if (scale == 0) continue;
        fit_round((size_t)k->sub, x, min, scale, 0, (1 << k->bits) - 1, codes);
    }
}

/* Packs the i-th block of the fit. Returns false if one of its scales is not finite, or not in f16. */
INLINE bool put_block(const struct layout *k, const float *x, bool has_importance, struct fit *fit, size_t i,
                      uint8_t *block) {
    const float *fit_scales = fit->scales + i * (size_t)k->n_subs, *fit_mins = fit->mins + i * (size_t)k->n_subs;
    const float *weight = fit->weight + i * (size_t)k->n_subs;
    uint8_t scales[MAX_SUBS], mins[MAX_SUBS], *codes = fit->codes + i * N;
    float d, dmin;
    for (int s = 0; s < k->n_subs; s++)
        if (!isfinite(fit_scales[s]) || !isfinite(fit_mins[s])) return false;
    if (has_importance) {
        d = fit_positive(k->n_subs, k->scale_top, fit_scales, weight, scales);
        dmin = fit_positive(k->n_subs, k->scale_top, fit_mins, weight, mins);
    } else {
        d = round_scales(k, fit_scales, scales);
        dmin = round_scales(k, fit_mins, mins);
    }
    if (!store_f16(block + k->d_at, d) || !store_f16(block + k->d_at + 2, dmin)) return false;
    d = load_f16(block + k->d_at);
    dmin = load_f16(block + k->d_at + 2);
    pack_scales(k, scales, mins, block + k->scales_at);
    round_to_grid(k, x, d, dmin, scales, mins, codes);
    pack_codes(k, codes, block);
    return true;
}

INLINE size_t encode(const struct layout *k, const float *x, uint8_t *block, size_t n_blocks,
                     const struct row_weights *w) {
    size_t at_once = (size_t)(FIT_AT_ONCE / k->n_subs);
    float squares[AHEAD];
    for (size_t b = 0; b < n_blocks; b += at_once) {
        struct fit fit;
        size_t n = n_blocks - b < at_once ? n_blocks - b : at_once;
        if (w && b % AHEAD == 0) sums_of_squares(x + b * N, n_blocks - b < AHEAD ? n_blocks - b : AHEAD, squares);
        fit_blocks(k, b, n, x + b * N, w, squares + b % AHEAD, &fit);
        for (size_t i = 0; i < n; i++)
            if (!put_block(k, x + (b + i) * N, w, &fit, i, block + (b + i) * k->size)) return b + i;
    }
    return n_blocks;
}

/* ---- the types ---- */

#define CODEC(name)                                                                                                    \
    static void name##_decode(const void *blocks, float *dst, size_t n_blocks) {                                       \
        decode(&name, blocks, dst, n_blocks);                                                                          \
    }                                                                                                                  \
    static void name##_parts(const uint8_t *block, struct quant_parts *p) {                                            \
        take_apart(&name, block, p);                                                                                   \
    }                                                                                                                  \
    static void name##_join(const struct quant_parts *p, uint8_t *block) {                                             \
        join(&name, p, block);                                                                                         \
    }                                                                                                                  \
    static size_t name##_encode(const float *src, void *blocks, size_t n_blocks, const struct row_weights *w) {        \
        return encode(&name, src, blocks, n_blocks, w);                                                                \
    }
CODEC(q2_k)
CODEC(q4_k)
CODEC(q5_k)

const struct element_type q2_k_type = {
    .info = {BLOCK_INFO(Q2_K, "q2_k", N, 84, 10), .fallback = DT_Q4_0, .weighed = true, .summary = "blocks of 256"},
    .decode = q2_k_decode,
    .encode = q2_k_encode,
    .scale_at = {80, 82},
    .parts = q2_k_parts,
    .join = q2_k_join,
    .form = {DT_Q2_K, 2, 16, 0, true, true, 0, 15, 3, NULL},
};
const struct element_type q4_k_type = {
    .info = {BLOCK_INFO(Q4_K, "q4_k", N, 144, 14), .fallback = DT_Q5_0, .weighed = true, .summary = "blocks of 256"},
    .decode = q4_k_decode,
    .encode = q4_k_encode,
    .scale_at = {0, 2},
    .parts = q4_k_parts,
    .join = q4_k_join,
    .form = {DT_Q4_K, 4, 32, 0, true, true, 0, 63, 15, NULL},
};
const struct element_type q5_k_type = {
    .info = {BLOCK_INFO(Q5_K, "q5_k", N, 176, 16), .fallback = DT_Q5_1, .weighed = true, .summary = "blocks of 256"},
    .decode = q5_k_decode,
    .encode = q5_k_encode,
    .scale_at = {0, 2},
    .parts = q5_k_parts,
    .join = q5_k_join,
    .form = {DT_Q5_K, 5, 32, 0, true, true, 0, 63, 31, NULL},
};
