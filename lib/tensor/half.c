/* The 16-bit floating types. The results are those of the hardware instructions (VCVTPH2PS, VCVTPS2PH, VCVTNEPS2BF16),
 * NaN payloads included, except that bf16 keeps subnormals; so a vectorised twin can be exact. */
#include "lib/tensor/tensor.h"

union bits32 {
    float f;
    uint32_t u;
};

float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff;
    union bits32 r;
    if (exponent == 0)
        r.f = (float)mantissa * 0x1p-24f; /* zero and subnormals: a small integer, scaled exactly */
    else if (exponent == 31)
        r.u = 0x7f800000 | mantissa << 13 | (mantissa ? 0x400000 : 0); /* infinity; a NaN turns quiet */
    else
        r.u = (exponent + 127 - 15) << 23 | mantissa << 13;
    r.u |= sign;
    return r.f;
}

/* u / 2^shift to the nearest integer, ties to even. */
static uint32_t shift_round(uint32_t u, unsigned shift) {
    return (u + (1u << (shift - 1)) - 1 + (u >> shift & 1)) >> shift;
}

uint16_t f32_to_f16(float f) {
    union bits32 v = {.f = f};
    uint32_t sign = v.u >> 16 & 0x8000, magnitude = v.u & 0x7fffffff;
    uint32_t h;
    if (magnitude > 0x7f800000) {
        h = 0x7e00 | (magnitude >> 13 & 0x3ff);
    } else if (magnitude >= 0x47800000) { /* 2^16 and infinity; what lies between 65504 and it rounds below */
        h = 0x7c00;
    } else if (magnitude >= 0x38800000) { /* 2^-14: normal. Rounding may carry into the exponent, up to infinity. */
        h = shift_round(magnitude - ((127 - 15) << 23), 13);
    } else if (magnitude >= 0x33000000) { /* 2^-25: half the smallest subnormal, a tie that goes to 0 */
        unsigned exponent = magnitude >> 23;
        h = shift_round((magnitude & 0x7fffff) | 0x800000, 126 - exponent);
    } else {
        h = 0;
    }
    return (uint16_t)(sign | h);
}

uint16_t f32_to_bf16(float f) {
    union bits32 v = {.f = f};
    if ((v.u & 0x7fffffff) > 0x7f800000) return (uint16_t)(v.u >> 16 | 0x40);
    return (uint16_t)shift_round(v.u, 16);
}
