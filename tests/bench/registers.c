/*
 * Loops that keep a CPU's arithmetic units busy from registers alone, on numbers as a product has them: with operands of zeros, which
 * cost little power, an Emerald Rapids clocks tiles a quarter higher (2.93 TFLOP/s a core instead of 2.33).
 */
#include "tests/bench/registers.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REPEAT_16(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define REPEAT_12(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

#define NUMBERS (2 * 16 * 32) /* of two tiles */

/* Bits of bf16 between 0.5 and 1, of either sign, which also are f32 and integers. */
static void some_numbers(uint16_t x[NUMBERS]) {
    uint64_t state = 88172645463325252u; /* xorshift, Marsaglia 2003 */
    for (size_t i = 0; i < NUMBERS; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        x[i] = (uint16_t)(0x3f00 | (state & 0x807f));
    }
}

/* Written in assembler, since a compiler copies accumulators around or sees that all of them are equal. Neighboring instructions have
 * other operands. */
#define IN_REGISTERS(name, isa, vector, repeat, accumulators, instruction, operations)                                 \
    __attribute__((target(isa))) static double name(size_t n) {                                                        \
        uint16_t x[NUMBERS];                                                                                           \
        vector c[16] = {0}, a[2], b[2];                                                                                \
        some_numbers(x);                                                                                               \
        memcpy(a, x, sizeof a);                                                                                        \
        memcpy(b, x + NUMBERS / 2, sizeof b);                                                                          \
        for (size_t k = 0; k < n; k++) {                                                                               \
            repeat(instruction)                                                                                        \
        }                                                                                                              \
        return (double)(accumulators) * (operations);                                                                  \
    }
#define FMA(i)  __asm__ volatile("vfmadd231ps %2, %1, %0" : "+v"(c[i]) : "v"(a[(i) % 2]), "v"(b[(i) % 2]));
#define BF16(i) __asm__ volatile("vdpbf16ps %2, %1, %0" : "+v"(c[i]) : "v"(a[(i) % 2]), "v"(b[(i) % 2]));
#define INT8(i) __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(c[i]) : "v"(a[(i) % 2]), "v"(b[(i) % 2]));
IN_REGISTERS(fma_avx2, "avx2,fma", __m256, REPEAT_12, 12, FMA, 8 * 2)
IN_REGISTERS(fma_avx512, "avx512f", __m512, REPEAT_16, 16, FMA, 16 * 2)
IN_REGISTERS(bf16_avx512, "avx512f,avx512bf16", __m512, REPEAT_16, 16, BF16, 32 * 2)
IN_REGISTERS(int8_avx512, "avx512f,avx512vnni", __m512, REPEAT_16, 16, INT8, 64 * 2)

/*
 * Tiles of 16 rows of 64 bytes. Six accumulators, because one product takes 52 cycles and one can start every 16. In
 * assembler, too: GCC 12's intrinsics do not say how much of a configuration is read (lib/kernel/gemm_amx.c).
 */
#define TILE_ZERO(i)        "tilezero %%tmm" #i "\n"
#define TILE_LOAD(i, from)  "tileloadd (%" #from ",%4,1), %%tmm" #i "\n"
#define TILE_BF16(i)        "tdpbf16ps %%tmm7, %%tmm6, %%tmm" #i "\n"
#define TILE_INT8(i)        "tdpbssd %%tmm7, %%tmm6, %%tmm" #i "\n"
#define EACH_ACCUMULATOR(X) X(0) X(1) X(2) X(3) X(4) X(5)
#define IN_TILES(name, instruction, operations)                                                                        \
    static double name(size_t n) {                                                                                     \
        _Alignas(64) unsigned char config[64] = {1};                                                                   \
        uint16_t x[NUMBERS];                                                                                           \
        some_numbers(x);                                                                                               \
        for (int i = 0; i < 8; i++) config[16 + 2 * i] = 64, config[48 + i] = 16;                                      \
        __asm__ volatile("ldtilecfg %1\n" EACH_ACCUMULATOR(TILE_ZERO) TILE_LOAD(6, 2)                                  \
                             TILE_LOAD(7, 3) "1:\n" EACH_ACCUMULATOR(instruction) "dec %0\njnz 1b\ntilerelease\n"      \
                         : "+r"(n)                                                                                     \
                         : "m"(config), "r"(x), "r"(x + NUMBERS / 2), "r"((size_t)64)                                  \
                         : "cc", "memory");                                                                            \
        return 6.0 * 16 * 16 * (operations);                                                                           \
    }
IN_TILES(bf16_amx, TILE_BF16, 32 * 2)
IN_TILES(int8_amx, TILE_INT8, 64 * 2)

static bool has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
static bool has_avx512(void) {
    return __builtin_cpu_supports("avx512f");
}
static bool has_avx512_bf16(void) {
    return has_avx512() && __builtin_cpu_supports("avx512bf16");
}
static bool has_avx512_vnni(void) {
    return has_avx512() && __builtin_cpu_supports("avx512vnni");
}

/* Linux grants the tile registers on request (arch_prctl ARCH_REQ_XCOMP_PERM, feature 18). */
static bool has_amx(unsigned bit) {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 24 & 1) || !(d >> bit & 1)) return false;
    return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}
static bool has_amx_bf16(void) {
    return has_amx(22);
}
static bool has_amx_int8(void) {
    return has_amx(25);
}
#endif

static const struct register_loop loops[] = {
#if defined(__x86_64__)
    {"f32-avx2", has_avx2, fma_avx2},
    {"f32-avx512", has_avx512, fma_avx512},
    {"bf16-avx512", has_avx512_bf16, bf16_avx512},
    {"int8-avx512", has_avx512_vnni, int8_avx512},
    {"bf16-amx", has_amx_bf16, bf16_amx},
    {"int8-amx", has_amx_int8, int8_amx},
#endif
    {NULL, NULL, NULL},
};

const struct register_loop *register_loop_at(size_t i) {
    return i + 1 < COUNT_OF(loops) ? &loops[i] : NULL;
}

const struct register_loop *register_loop(const char *name) {
    for (size_t i = 0; i + 1 < COUNT_OF(loops); i++)
        if (strcmp(loops[i].name, name) == 0 && loops[i].has()) return &loops[i];
    return NULL;
}

double register_work(const struct register_loop *loop, double operations) {
    size_t n = (size_t)(operations / loop->rounds(1));
    return (double)n * loop->rounds(n);
}
