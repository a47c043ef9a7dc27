/* The path for any CPU: four lanes through the compiler's vector extension (SSE2 on x86-64, NEON on Arm). */
#include <math.h>

#include "lib/kernel/kernel_internal.h"

#define SIMD_TARGET
#define SIMD_NAME            "portable"
#define SIMD_TABLE           simd_portable
#define SIMD_GEMM            gemm
#define SIMD_INT8            &int8_portable
#define SIMD_TRANSPOSE(what) transpose_##what##_plain
#define W                    4

typedef float vec __attribute__((vector_size(16)));
typedef int32_t ivec __attribute__((vector_size(16)));
typedef double double2 __attribute__((vector_size(16)));
typedef struct {
    double2 lo, hi;
} dvec;

static inline vec v_set(float a) {
    return (vec){a, a, a, a};
}

static inline vec v_load(const float *p) {
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void v_store(float *p, vec v) {
    memcpy(p, &v, sizeof v);
}

static inline vec v_load_part(const float *p, size_t n, float fill) {
    vec v = v_set(fill);
    for (size_t i = 0; i < n; i++) v[i] = p[i];
    return v;
}

static inline void v_store_part(float *p, vec v, size_t n) {
    for (size_t i = 0; i < n; i++) p[i] = v[i];
}

static inline vec v_add(vec a, vec b) {
    return a + b;
}
static inline vec v_sub(vec a, vec b) {
    return a - b;
}
static inline vec v_mul(vec a, vec b) {
    return a * b;
}
static inline vec v_div(vec a, vec b) {
    return a / b;
}
static inline vec v_fma(vec a, vec b, vec c) {
    return a * b + c;
}
static inline vec v_sqrt(vec a) {
    return (vec){sqrtf(a[0]), sqrtf(a[1]), sqrtf(a[2]), sqrtf(a[3])};
}
static inline vec v_abs(vec a) {
    return (vec)((ivec)a & 0x7fffffff);
}

static inline vec v_select(ivec mask, vec a, vec b) {
    return (vec)((mask & (ivec)a) | (~mask & (ivec)b));
}
static inline vec v_max(vec a, vec b) {
    return v_select(a > b, a, b);
}
static inline vec v_min(vec a, vec b) {
    return v_select(a < b, a, b);
}

/* Adding 1.5 * 2^23 shifts the fraction out of the mantissa, with rounding. */
static inline vec v_round(vec a) {
    return (a + 12582912.0f) - 12582912.0f;
}

/* In two halves, because 2^n itself may be out of range where the product is not. */
static inline vec v_ldexp(vec x, vec n) {
    ivec k = __builtin_convertvector(n, ivec), half = k >> 1;
    return x * (vec)((half + 127) << 23) * (vec)((k - half + 127) << 23);
}

static inline vec v_exponent(vec a) {
    return __builtin_convertvector(((ivec)a >> 23) - 127, vec);
}

static inline float max2(float a, float b) {
    return a > b ? a : b;
}
static inline float v_hmax(vec a) {
    return max2(max2(a[0], a[2]), max2(a[1], a[3]));
}
static inline float v_hsum(vec a) {
    return (a[0] + a[2]) + (a[1] + a[3]);
}

static inline unsigned v_above(vec a, vec b) {
    ivec m = a > b;
    return (unsigned)((m[0] & 1) | (m[1] & 2) | (m[2] & 4) | (m[3] & 8));
}

static inline vec v_if_below(vec a, vec b, vec x, vec y) {
    return v_select(a < b, x, y);
}
static inline vec v_inverse(vec a) {
    return 1 / a;
}

static inline dvec d_zero(void) {
    return (dvec){{0, 0}, {0, 0}};
}
static inline dvec d_add(dvec d, vec a) {
    return (dvec){d.lo + (double2){a[0], a[1]}, d.hi + (double2){a[2], a[3]}};
}

static inline dvec d_widen(const float *p) {
    return (dvec){{p[0], p[1]}, {p[2], p[3]}};
}

static inline dvec d_fma(dvec d, vec a, vec b) {
    double2 lo = (double2){a[0], a[1]} * (double2){b[0], b[1]};
    double2 hi = (double2){a[2], a[3]} * (double2){b[2], b[3]};
    return (dvec){d.lo + lo, d.hi + hi};
}

static inline double d_sum(dvec d) {
    double2 s = d.lo + d.hi;
    return s[0] + s[1];
}

static inline dvec d_set(double a) {
    return (dvec){{a, a}, {a, a}};
}

static inline dvec d_load_part(const double *p, size_t n) {
    double lane[W] = {0};
    memcpy(lane, p, (n < W ? n : W) * sizeof *p);
    return (dvec){{lane[0], lane[1]}, {lane[2], lane[3]}};
}

static inline dvec d_muladd(dvec a, dvec b, dvec c) {
    return (dvec){a.lo * b.lo + c.lo, a.hi * b.hi + c.hi};
}

static inline dvec d_round(dvec a) {
    const double magic = 6755399441055744.0; /* 1.5 * 2^52, as in v_round */
    return (dvec){(a.lo + magic) - magic, (a.hi + magic) - magic};
}

static inline vec d_narrow(dvec a) {
    return (vec){(float)a.lo[0], (float)a.lo[1], (float)a.hi[0], (float)a.hi[1]};
}

/* Scalar: clearer than with vectors of four, and this path is not performance-critical. */
static inline vec v_load_f16(const uint16_t *p) {
    return (vec){f16_to_f32(p[0]), f16_to_f32(p[1]), f16_to_f32(p[2]), f16_to_f32(p[3])};
}

static inline void v_store_f16(uint16_t *p, vec v) {
    for (int i = 0; i < W; i++) p[i] = f32_to_f16(v[i]);
}

static inline vec v_load_bf16(const uint16_t *p) {
    return (vec){bf16_to_f32(p[0]), bf16_to_f32(p[1]), bf16_to_f32(p[2]), bf16_to_f32(p[3])};
}

static inline void v_store_bf16(uint16_t *p, vec v) {
    for (int i = 0; i < W; i++) p[i] = f32_to_bf16(v[i]);
}

static inline void v_store_bf16_two(uint16_t *p, vec a, vec b) {
    v_store_bf16(p, a);
    v_store_bf16(p + W, b);
}

static inline vec v_pair(const uint16_t *p, const uint16_t *q) {
    ivec bits;
    for (int i = 0; i < W; i++) bits[i] = (int32_t)(p[i] | (uint32_t)q[i] << 16);
    return (vec)bits;
}
static inline vec v_pair_f32(vec a, vec b) {
    uint16_t p[W], q[W];
    v_store_bf16(p, a);
    v_store_bf16(q, b);
    return v_pair(p, q);
}

#include "lib/kernel/gemm_body.h"

#include "lib/kernel/simd_body.h"
