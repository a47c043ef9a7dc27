/*
 * Byte planes. Trained weights look random to a byte-wise compressor, but neighbouring exponents are similar: when
 * bytes of equal significance are stored together, their skewed distribution compresses well (ZipNN, arXiv 2411.05239).
 * Floats are first rotated left by one bit, so that the whole exponent, without the sign, fills the top byte.
 */
#include "lib/stream/codec_internal.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error                                                                                                                 \
    "tensor data is little-endian on the wire and in memory: a big-endian host needs byte swaps here and in the reader"
#endif

/* A sanitizer may keep clang from vectorizing the loops below; that must not be an error. */
#pragma clang diagnostic ignored "-Wpass-failed"

size_t planes_stride(const struct dtype_info *t) {
    return t->block_bytes;
}

static void split16(const unsigned char *src, size_t n, unsigned turn, unsigned char *dst) {
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        uint16_t v;
        memcpy(&v, src + 2 * i, 2);
        v = (uint16_t)(v << turn | v >> (16 - turn));
        dst[i] = (unsigned char)v;
        dst[n + i] = (unsigned char)(v >> 8);
    }
}

static void join16(const unsigned char *src, size_t n, unsigned turn, unsigned char *dst) {
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        uint16_t v = (uint16_t)(src[i] | src[n + i] << 8);
        v = (uint16_t)(v >> turn | v << (16 - turn));
        memcpy(dst + 2 * i, &v, 2);
    }
}

static void split32(const unsigned char *src, size_t n, unsigned turn, unsigned char *dst) {
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        uint32_t v;
        memcpy(&v, src + 4 * i, 4);
        v = v << turn | v >> (31 & (32 - turn));
        for (size_t k = 0; k < 4; k++) dst[k * n + i] = (unsigned char)(v >> 8 * k);
    }
}

static void join32(const unsigned char *src, size_t n, unsigned turn, unsigned char *dst) {
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        uint32_t v = 0;
        for (size_t k = 0; k < 4; k++) v |= (uint32_t)src[k * n + i] << 8 * k;
        v = v >> turn | v << (31 & (32 - turn));
        memcpy(dst + 4 * i, &v, 4);
    }
}

static void split_any(const unsigned char *src, size_t n, size_t stride, unsigned char *dst) {
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < stride; k++) dst[k * n + i] = src[i * stride + k];
}

static void join_any(const unsigned char *src, size_t n, size_t stride, unsigned char *dst) {
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < stride; k++) dst[i * stride + k] = src[k * n + i];
}

void planes_split(const struct dtype_info *t, const void *src, size_t n, unsigned char *dst) {
    size_t stride = planes_stride(t);
    if (stride == 2)
        split16(src, n / 2, t->is_float, dst);
    else if (stride == 4)
        split32(src, n / 4, t->is_float, dst);
    else
        split_any(src, n / stride, stride, dst);
}

void planes_join(const struct dtype_info *t, const unsigned char *src, size_t n, void *dst) {
    size_t stride = planes_stride(t);
    if (stride == 2)
        join16(src, n / 2, t->is_float, dst);
    else if (stride == 4)
        join32(src, n / 4, t->is_float, dst);
    else
        join_any(src, n / stride, stride, dst);
}
