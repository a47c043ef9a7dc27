/* The path for x86-64 with AVX-512 and AVX512-BF16, which rounds to bf16 in one instruction. The amx path uses its
 * loops, too. */
#if defined(__x86_64__) && !defined(KERNEL_PORTABLE)
#define SIMD_TARGET   __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")))
#define SIMD_NAME     "avx512bf16"
#define SIMD_TABLE    simd_avx512bf16
#define SIMD_HAS_BF16 1
#include "lib/kernel/simd_avx512.h"

#include "lib/kernel/simd_body.h"
#else
typedef int simd_avx512bf16_needs_x86_64; /* ISO C wants a declaration in every file */
#endif
