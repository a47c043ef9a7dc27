/* The path for x86-64 with AVX-512 F, BW, DQ and VL. */
#if defined(__x86_64__) && !defined(KERNEL_PORTABLE)
#define SIMD_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#define SIMD_NAME   "avx512"
#define SIMD_TABLE  simd_avx512
#include "lib/kernel/simd_avx512.h"

#include "lib/kernel/simd_body.h"
#else
typedef int simd_avx512_needs_x86_64; /* ISO C wants a declaration in every file */
#endif
