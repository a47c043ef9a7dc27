/* The plain types, as codecs with blocks of one element. GGUF has no unsigned types. */
#include <math.h>
#include <string.h>

#include "lib/tensor/quantize_internal.h"

static void f32_decode(const void *src, float *dst, size_t n) {
    memcpy(dst, src, n * sizeof *dst);
}

static size_t f32_encode(const float *src, void *dst, size_t n, const struct row_weights *w) {
    (void)w;
    memcpy(dst, src, n * sizeof *src);
    return n;
}

/* Rounds to nearest even and saturates; NaN becomes 0. The limits are exact in f32: `past` is the maximum + 1. */
#define CODEC_INTEGER(v, type, min, past, max)                                                                         \
    (isnan(v) ? 0 : (v) < (min) ? (type)(min) : (v) >= (past) ? (max) : (type)(v))

#define PLAIN_CODEC(name, type, DECODE, ENCODE)                                                                        \
    static void name##_decode(const void *src, float *dst, size_t n) {                                                 \
        for (size_t i = 0; i < n; i++) {                                                                               \
            type v;                                                                                                    \
            memcpy(&v, (const unsigned char *)src + i * sizeof v, sizeof v);                                           \
            dst[i] = DECODE;                                                                                           \
        }                                                                                                              \
    }                                                                                                                  \
    static size_t name##_encode(const float *src, void *dst, size_t n, const struct row_weights *w) {                  \
        (void)w;                                                                                                       \
        for (size_t i = 0; i < n; i++) {                                                                               \
            float f = src[i];                                                                                          \
            type v = ENCODE;                                                                                           \
            memcpy((unsigned char *)dst + i * sizeof v, &v, sizeof v);                                                 \
        }                                                                                                              \
        return n;                                                                                                      \
    }
#define INTEGER_CODEC(name, type, min, past, max)                                                                      \
    PLAIN_CODEC(name, type, (float)v, CODEC_INTEGER(rintf(f), type, min, past, max))

PLAIN_CODEC(f64, double, (float)v, (double)f)
INTEGER_CODEC(i8, int8_t, -0x1p7f, 0x1p7f, INT8_MAX)
INTEGER_CODEC(i16, int16_t, -0x1p15f, 0x1p15f, INT16_MAX)
INTEGER_CODEC(i32, int32_t, -0x1p31f, 0x1p31f, INT32_MAX)
INTEGER_CODEC(i64, int64_t, -0x1p63f, 0x1p63f, INT64_MAX)
INTEGER_CODEC(u8, uint8_t, 0.0f, 0x1p8f, UINT8_MAX)
INTEGER_CODEC(u16, uint16_t, 0.0f, 0x1p16f, UINT16_MAX)
INTEGER_CODEC(u32, uint32_t, 0.0f, 0x1p32f, UINT32_MAX)
INTEGER_CODEC(u64, uint64_t, 0.0f, 0x1p64f, UINT64_MAX)

#define FLOATING(number, name, bytes, ggml, llama_file_type, text)                                                     \
    {                                                                                                                  \
        .info = {number, #name, 1, bytes, ggml, .is_float = true, .file_type = llama_file_type, .summary = text},      \
        .decode = name##_decode, .encode = name##_encode                                                               \
    }
#define INTEGER(number, name, bytes, ggml)                                                                             \
    { .info = {number, #name, 1, bytes, ggml, .file_type = -1}, .decode = name##_decode, .encode = name##_encode }

/* clang-format off */
const struct element_type plain_types[] = {
    FLOATING(DT_F32, f32, 4, 0, 0, "32 bits: undoes a quantization's storage, not its loss"),
    FLOATING(DT_F16, f16, 2, 1, 1, "16 bits, half precision"),
    FLOATING(DT_BF16, bf16, 2, 30, 32, "16 bits, the range of f32"),
    FLOATING(DT_F64, f64, 8, 28, -1, NULL),
    INTEGER(DT_I8, i8, 1, 24),
    INTEGER(DT_I16, i16, 2, 25),
    INTEGER(DT_I32, i32, 4, 26),
    INTEGER(DT_I64, i64, 8, 27),
    INTEGER(DT_U8, u8, 1, -1),
    INTEGER(DT_U16, u16, 2, -1),
    INTEGER(DT_U32, u32, 4, -1),
    INTEGER(DT_U64, u64, 8, -1),
    {.info = {0}},
};
/* clang-format on */
