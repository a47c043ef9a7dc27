/* The micro-kernel of gemm_amx_body.h on the CPU's tiles, and the request to the system for them. */
#if defined(__x86_64__) && !defined(KERNEL_PORTABLE)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SIMD_TARGET   __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")))
#define SIMD_HAS_BF16 1
#include "lib/kernel/simd_avx512.h"

#include "lib/kernel/simd_finish.h"

/*
 * Assembler instead of intrinsics: GCC 12's intrinsics tell the compiler neither that a tile is loaded from memory nor
 * how much of a configuration is read, so it may drop the stores before them.
 */
#define AMX_TARGET          __attribute__((target("amx-tile,amx-bf16")))
#define TILE_CONFIG(config) __asm__ volatile("ldtilecfg %0" ::"m"(*(config)))
#define TILE_RELEASE()      __asm__ volatile("tilerelease")
#define TILE_ZERO(t)        __asm__ volatile("tilezero %%tmm" #t ::)
#define TILE_LOAD(t, p, stride)                                                                                        \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(p), "r"((size_t)(stride)) : "memory")
#define TILE_STORE(t, p, stride)                                                                                       \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(p), "r"((size_t)(stride)) : "memory")
#define TILE_SPACE(n)    __asm__ volatile(".rept " #n "\n nop\n .endr" ::)
#define TILE_DP(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)

/* Lines are finished by the functions of the path, so they have the same bits. */
#define AMX_FINISH_TARGET                                                                                              \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,amx-tile,amx-bf16")))
#define AMX_FINISH_F32(l)  finish_f32((float *)(void *)(l).c, (l).sums, (l).bias, (l).residual, PANEL, PANEL / W)
#define AMX_FINISH_BF16(l) finish_bf16((uint16_t *)(void *)(l).c, (l).sums, (l).bias, (l).residual, PANEL, PANEL / W)
#define AMX_FINISH_GATED(name, l)                                                                                      \
    finish_##name((uint16_t *)(void *)(l).c, (l).sums, (l).bias, (l).gate, PANEL, PANEL / W)

#include "lib/kernel/gemm_amx_body.h"

#define CPUID_7_EDX_AMX_BF16 (1u << 22)
#define CPUID_7_EDX_AMX_TILE (1u << 24)
#define XCR0_TILES           (3u << 17) /* the system saves XTILECFG and XTILEDATA */
#define ARCH_REQ_XCOMP_PERM  0x1023     /* Linux 5.16, asm/prctl.h */
#define XFEATURE_XTILEDATA   18

__attribute__((target("xsave"))) static bool system_saves_tiles(void) {
    return (_xgetbv(0) & XCR0_TILES) == XCR0_TILES;
}

/* Tile data is 8 KiB per thread, which Linux grants only to processes that request it; the grant is for all their
 * threads. */
bool amx_available(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    if (!(d & CPUID_7_EDX_AMX_TILE) || !(d & CPUID_7_EDX_AMX_BF16) || !system_saves_tiles()) return false;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

/* k_block 384: 24 KiB of a stay in an L1 of 48 KiB while b streams through it from L2, for all panels of a tile. */
const struct micro_bf16 bf16_amx = {.name = "amx",
                                    .block = AMX_BLOCK,
                                    .unit = AMX_ROWS,
                                    .k_block = 384,
                                    .group = MAX_GROUP,
                                    .finishes = true,
                                    .begin = amx_begin,
                                    .end = amx_end,
                                    .multiply = amx_multiply};
#else
typedef int gemm_amx_needs_x86_64; /* ISO C wants a declaration in every file */
#endif
