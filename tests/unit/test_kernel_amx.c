/*
 * Tests of lib/kernel: the AMX micro-kernel on a model of the tiles, as the Intel SDM (volume 2, LDTILECFG, TILELOADD,
 * TDPBF16PS) describes them. The kernel runs twice: its source compiled against the model, and the library's machine
 * code, whose instructions trap on a CPU without AMX and are then emulated by the model. So any CPU can show that the
 * kernel configures, loads and multiplies correctly. That the model is right only hardware can show: there nothing
 * traps, and both must have the same bits.
 */
#if defined(__x86_64__)
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include "tests/unit/kernel_test.h"

/* ---- the model ---- */

enum { TILES = 8, ROWS = 16, BYTES = 64 };

static struct model {
    bool configured;
    size_t rows[TILES], row_bytes[TILES];
    unsigned char data[TILES][ROWS][BYTES];
} tiles;

/* Checks what would raise #GP or #UD on the CPU. Does not use cmocka's failures, since this may be a signal handler. */
static void require(bool holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "the CPU would fault: %s\n", what);
    abort();
}

static void model_config(const void *memory_operand) {
    const unsigned char *c = memory_operand;
    memset(&tiles, 0, sizeof tiles);
    require(c[0] == 1, "palette");
    require(c[1] == 0, "start row");
    for (int i = 2; i < 16; i++) require(c[i] == 0, "reserved bytes");
    for (int t = 0; t < 16; t++) {
        size_t row_bytes = (size_t)(c[16 + 2 * t] | c[17 + 2 * t] << 8), rows = c[48 + t];
        require(t < TILES || (rows == 0 && row_bytes == 0), "a tile past the palette's");
        require(rows <= ROWS && row_bytes <= BYTES, "a tile too large");
        require((rows == 0) == (row_bytes == 0), "rows without bytes or bytes without rows");
        if (t < TILES) tiles.rows[t] = rows, tiles.row_bytes[t] = row_bytes;
    }
    tiles.configured = true;
}

static void require_tile(int t) {
    require(tiles.configured && t >= 0 && t < TILES && tiles.rows[t] > 0, "a tile that is not configured");
}

static void model_zero(int t) {
    require_tile(t);
    memset(tiles.data[t], 0, sizeof tiles.data[t]);
}

static void model_load(int t, const void *p, size_t stride) {
    model_zero(t);
    for (size_t r = 0; r < tiles.rows[t]; r++)
        memcpy(tiles.data[t][r], (const unsigned char *)p + r * stride, tiles.row_bytes[t]);
}

static void model_store(int t, void *p, size_t stride) {
    require_tile(t);
    for (size_t r = 0; r < tiles.rows[t]; r++)
        memcpy((unsigned char *)p + r * stride, tiles.data[t][r], tiles.row_bytes[t]);
}

static float f32_at(int t, size_t row, size_t col) {
    float f;
    memcpy(&f, tiles.data[t][row] + 4 * col, sizeof f);
    return f;
}

static float bf16_at(int t, size_t row, size_t col) {
    uint16_t h;
    memcpy(&h, tiles.data[t][row] + 2 * col, sizeof h);
    return bf16_to_f32(h);
}

static float flushed(float x) {
    return fabsf(x) < 0x1p-126f ? 0 : x;
}

/* Sums over even and odd k apart, then adds them to c. */
static void model_dp(int c, int a, int b) {
    require_tile(c);
    require_tile(a);
    require_tile(b);
    require(c != a && c != b && a != b, "one tile twice");
    require(tiles.rows[c] == tiles.rows[a], "rows of c and a");
    require(tiles.row_bytes[c] == tiles.row_bytes[b], "columns of c and b");
    require(tiles.row_bytes[a] / 4 == tiles.rows[b], "k of a and b");
    for (size_t m = 0; m < tiles.rows[c]; m++)
        for (size_t n = 0; n < tiles.row_bytes[c] / 4; n++) {
            float sum[2] = {0, 0};
            for (size_t k = 0; k < tiles.rows[b]; k++)
                for (size_t odd = 0; odd < 2; odd++)
                    sum[odd] = flushed(
                        fmaf(flushed(bf16_at(a, m, 2 * k + odd)), flushed(bf16_at(b, k, 2 * n + odd)), sum[odd]));
            float total = flushed(flushed(f32_at(c, m, n)) + flushed(sum[0] + sum[1]));
            memcpy(tiles.data[c][m] + 4 * n, &total, sizeof total);
        }
}

#define AMX_TARGET
#define TILE_CONFIG(config)      model_config(config)
#define TILE_RELEASE()           memset(&tiles, 0, sizeof tiles)
#define TILE_ZERO(t)             model_zero(t)
#define TILE_LOAD(t, p, stride)  model_load(t, p, stride)
#define TILE_STORE(t, p, stride) model_store(t, p, stride)
#define TILE_DP(c, a, b)         model_dp(c, a, b)
#define TILE_SPACE(n)

/* Lines are finished by the loops that a result is finished with otherwise. */
#define AMX_FINISH_TARGET
#define AMX_FINISH_F32(l)                                                                                              \
    simd()->finish_f32((float *)(void *)(l).c, (l).n, 1, PANEL, (l).sums, (l).ld, (l).bias, (l).residual)
#define AMX_FINISH_BF16(l)                                                                                             \
    simd()->finish_bf16((uint16_t *)(void *)(l).c, (l).n, 1, PANEL, (l).sums, (l).ld, (l).bias, (l).residual)
#define AMX_FINISH_GATED(name, l)                                                                                      \
    simd()->act[number_of_##name].finish_glu((uint16_t *)(void *)(l).c, (l).n, 1, PANEL, (l).sums, (l).ld, (l).bias,   \
                                             (l).gate)
#define NUMBER(name) number_of_##name,
enum { ACTIVATIONS(NUMBER) };
#include "lib/kernel/gemm_amx_body.h"

static const struct micro_bf16 modelled = {
    .block = AMX_BLOCK, .unit = AMX_ROWS, .k_block = 384, .begin = amx_begin, .end = amx_end, .multiply = amx_multiply};

/* ---- machine code on the model ---- */

/* The general registers in the order of their numbers in instructions. */
static size_t *register_of(ucontext_t *u, unsigned number) {
    static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return (size_t *)&u->uc_mcontext.gregs[order[number]];
}

/* A memory operand (SDM volume 2, 2.1.5): base and index, and where the instruction ends. */
struct operand {
    unsigned char *address;
    size_t stride;
    const unsigned char *end;
};

static struct operand memory_operand(ucontext_t *u, const unsigned char *modrm, bool high_index, bool high_base) {
    unsigned mode = *modrm >> 6, base = *modrm & 7;
    struct operand o = {.end = modrm + 1};
    if (base == 4) {
        unsigned sib = *o.end++, index = (sib >> 3 & 7) + 8 * high_index;
        base = sib & 7;
        if (index != 4) o.stride = *register_of(u, index) << (sib >> 6);
    }
    require(mode == 1 || mode == 2 || (mode == 0 && base != 5), "an address that this test does not decode");
    o.address = (unsigned char *)*register_of(u, base + 8 * high_base);
    int32_t displacement = mode == 1 ? (int8_t)*o.end : 0;
    if (mode == 2) memcpy(&displacement, o.end, 4);
    o.end += mode == 1 ? 1 : mode == 2 ? 4 : 0;
    o.address += displacement;
    return o;
}

/* Emulates one AMX instruction (VEX.128, map 0F38, W0) and steps over it. */
static void on_sigill(int signal_number, siginfo_t *info, void *context) {
    ucontext_t *u = context;
    const unsigned char *i = (const unsigned char *)u->uc_mcontext.gregs[REG_RIP], *modrm = i + 4;
    (void)signal_number;
    (void)info;
    enum { NONE, F3 = 2, F2 = 3 };
    require(i[0] == 0xc4 && (i[1] & 31) == 2 && (i[2] & 0x84) == 0, "an illegal instruction that is not AMX's");
    unsigned prefix = i[2] & 3, opcode = i[3], third = ~i[2] >> 3 & 15;
    bool in_register = *modrm >> 6 == 3;
    int reg = *modrm >> 3 & 7, rm = *modrm & 7;
    struct operand o = {.end = modrm + 1};
    if (!in_register) o = memory_operand(u, modrm, !(i[1] & 0x40), !(i[1] & 0x20));
    if (opcode == 0x49 && prefix == NONE && !in_register)
        model_config(o.address);
    else if (opcode == 0x49 && prefix == NONE && *modrm == 0xc0)
        memset(&tiles, 0, sizeof tiles);
    else if (opcode == 0x49 && prefix == F2 && in_register)
        model_zero(reg);
    else if (opcode == 0x4b && prefix == F2 && rm == 4)
        model_load(reg, o.address, o.stride);
    else if (opcode == 0x4b && prefix == F3 && rm == 4)
        model_store(reg, o.address, o.stride);
    else if (opcode == 0x5c && prefix == F3 && in_register)
        model_dp(reg, rm, (int)third);
    else
        require(false, "an AMX instruction that this test does not know");
    u->uc_mcontext.gregs[REG_RIP] = (greg_t)o.end;
}

static struct sigaction before_traps;

static void trap(void) {
    struct sigaction action = {.sa_sigaction = on_sigill, .sa_flags = SA_SIGINFO};
    amx_available(); /* requests tiles, where the CPU has them */
    assert_int_equal(sigaction(SIGILL, &action, &before_traps), 0);
}

static void untrap(void) {
    assert_int_equal(sigaction(SIGILL, &before_traps, NULL), 0);
}

/* ---- the kernel on the model ---- */

static uint64_t bits; /* of all results since it was last set to 0 */

static void add_bits(const float *c, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint32_t word;
        memcpy(&word, &c[i], sizeof word);
        bits = (bits ^ word) * 0x100000001b3u; /* FNV-1a, of words */
    }
}

/*
 * a [rows][k] with stride lda, b packed to a depth of k or more, c [rows][ldc]. Buffers are exactly as large as the kernel may touch, so that a
 * sanitizer catches any access beyond.
 */
static void check_block(const struct micro_bf16 *micro, struct rng *r, size_t rows, size_t n, size_t k,
                        bool accumulate) {
    size_t lda = k + 6, ldc = n + 3, depth = rows % 2 ? k : k + 32, a_size = (rows - 1) * lda + k,
           c_size = (rows - 1) * ldc + n;
    struct err e;
    uint16_t *a = mem_alloc(a_size * sizeof *a, &e);
    float *c = mem_alloc(c_size * sizeof *c, &e), *b = take(n * depth, sizeof *b),
          *one = mem_alloc(n * sizeof *one, &e);
    uint16_t *panels = mem_alloc(panels_bytes(n, depth), &e);
    assert_true(a && c && one && panels);
    for (size_t i = 0; i < a_size; i++) a[i] = f32_to_bf16((float)rng_normal(r));
    for (size_t i = 0; i < n * depth; i++) b[i] = bf16_to_f32(f32_to_bf16((float)rng_normal(r)));
    for (size_t i = 0; i < c_size; i++) c[i] = accumulate ? (float)rng_normal(r) : NAN;
    pack_nt(panels, n, depth, DT_F32, b);
    float *before = copy_f32(c, c_size);
    micro->begin();
    struct block_bf16 t = {rows, k, n / PANEL, a, lda, panels, PANEL * depth, accumulate, c, ldc};
    micro->multiply(&t);
    for (size_t i = 0; i < c_size; i++) {
        if (i % ldc >= n) {
            assert_memory_equal(&c[i], &before[i], sizeof *c); /* between the rows */
            continue;
        }
        double want = accumulate ? before[i] : 0, terms = fabs(want);
        for (size_t p = 0; p < k; p++) {
            double product = (double)bf16_to_f32(a[i / ldc * lda + p]) * b[i % ldc * depth + p];
            want += product;
            terms += fabs(product);
        }
        assert_true(fabs(c[i] - want) <= (double)(k + 2) * U * terms);
    }
    add_bits(c, c_size);
    /* a row on its own has the same bits as among others */
    size_t row = rows - 1;
    memcpy(one, before + row * ldc, n * sizeof *one);
    micro->multiply(
        &(struct block_bf16){1, k, n / PANEL, a + row * lda, lda, panels, PANEL * depth, accumulate, one, n});
    assert_memory_equal(one, c + row * ldc, n * sizeof *one);
    micro->end();
    assert_false(tiles.configured);
    mem_free(a);
    mem_free(c);
    mem_free(one);
    mem_free(panels);
    arena_reset(&memory);
}

static void check_blocks(const struct micro_bf16 *micro) {
    struct rng r = rng_init(1, 1);
    bits = 0;
    for (size_t rows = 1; rows <= AMX_BLOCK; rows++)
        for (size_t k = 32; k <= 96; k += 32) check_block(micro, &r, rows, rows % 2 ? 32 : 96, k, rows % 3 == 0);
    check_block(micro, &r, AMX_BLOCK, 64, MAX_K_BLOCK, true);
}

/* ---- an earlier part that is finished meanwhile ---- */

enum { PART_ROW = 1, PART_COL = PANEL, MOST_PANELS = 3, RESULT_COLS = (MOST_PANELS + 2) * PANEL };

static float *random_f32(struct rng *r, size_t n) {
    float *x = take(n, sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = 3 * (float)rng_normal(r);
    return x;
}

/*
 * A block of `rows` rows and n panels in two calls, during which lines [from, to) of a part of as many rows and `panels` panels are
 * finished. The result has to be that of result_finish, lines before and after it as before, and the block's own sums those without.
 * in_place: residual or gate are the result itself, so that a line must not be finished twice.
 */
static void check_finishing(const struct micro_bf16 *micro, struct rng *r, const struct result *how, bool in_place,
                            size_t rows, size_t n, size_t panels, size_t from, size_t to, size_t k) {
    size_t size = (PART_ROW + AMX_BLOCK) * RESULT_COLS, ld = panels * PANEL + 16, middle = (from + to) / 2;
    float *sums = random_f32(r, AMX_BLOCK * ld), *data = random_f32(r, size), *want = take(size, sizeof *want);
    uint16_t *a = take(rows * k, sizeof *a), *b = take(n * PANEL * k, sizeof *b);
    float *c = take(rows * n * PANEL, sizeof *c), *alone = take(rows * n * PANEL, sizeof *alone);
    struct result result = *how, expected = *how;
    struct part part = {PART_ROW, to, PART_COL, panels * PANEL, sums, ld};
    struct earlier w = {.of = &result, .part = part, .row = from, .end = middle};
    struct block_bf16 t = {rows, k, n, a, k, b, PANEL * k, false, alone, n * PANEL};
    for (size_t i = 0; i < rows * k; i++) a[i] = f32_to_bf16((float)rng_normal(r));
    for (size_t i = 0; i < n * PANEL * k; i++) b[i] = f32_to_bf16((float)rng_normal(r));
    if (how->type == DT_BF16)
        for (size_t i = 0; i < size; i++) ((uint16_t *)(void *)data)[i] = f32_to_bf16(5 * (float)rng_normal(r));
    memcpy(want, data, size * sizeof *data);
    result.data = data;
    expected.data = want;
    if (in_place && how->how.residual) result.how.residual = data, expected.how.residual = want;
    if (in_place && how->how.gate)
        result.how.gate = (uint16_t *)(void *)data, expected.how.gate = (uint16_t *)(void *)want;
    part.row += from;
    part.rows = to - from;
    part.sums += from * ld;
    result_finish(&expected, &part);
    micro->begin();
    for (int with = 0; with < 2; with++) {
        t.c = with ? c : alone;
        t.earlier = with ? &w : NULL;
        t.accumulate = false;
        micro->multiply(&t);
        w.row = with ? middle : w.row;
        w.end = with ? to : w.end;
        t.accumulate = true;
        micro->multiply(&t);
    }
    micro->end();
    assert_memory_equal(data, want, size * sizeof *data);
    assert_memory_equal(c, alone, rows * n * PANEL * sizeof *c);
    arena_reset(&memory);
}

static void check_every_kind(const struct micro_bf16 *micro) {
    struct rng r = rng_init(2, 2);
    float bias[RESULT_COLS], *residual = malloc(sizeof(float) * (PART_ROW + AMX_BLOCK) * RESULT_COLS);
    uint16_t *gate = malloc(sizeof(uint16_t) * (PART_ROW + AMX_BLOCK) * RESULT_COLS);
    assert_true(residual && gate);
    for (size_t i = 0; i < RESULT_COLS; i++) bias[i] = (float)rng_normal(&r);
    for (size_t i = 0; i < (PART_ROW + AMX_BLOCK) * RESULT_COLS; i++)
        residual[i] = (float)rng_normal(&r), gate[i] = f32_to_bf16(5 * (float)rng_normal(&r));
    const struct epilogue f32[] = {{0}, {.bias = bias}, {.residual = residual}, {.bias = bias, .residual = residual}};
    for (size_t i = 0; i < COUNT_OF(f32); i++)
        for (int type = 0; type < 2; type++) {
            struct result how = {f32[i], type ? DT_BF16 : DT_F32, NULL, RESULT_COLS};
            check_finishing(micro, &r, &how, f32[i].residual && !type, 32, 3, 3, 0, 32, 576);
            check_finishing(micro, &r, &how, false, 17, 2, 1, 3, 20,
                            32); /* more lines than steps have room for, fewer panels */
        }
    for (int act = 0; act < KERNEL_ACTS; act++)
        for (int with = 0; with < 2; with++) {
            struct epilogue gated = {.bias = with ? bias : NULL, .gate = gate, .act = (enum kernel_act)act};
            struct result how = {gated, DT_BF16, NULL, RESULT_COLS};
            check_finishing(micro, &r, &how, true, 32, 3, 2, 0, 32, 544);
            check_finishing(micro, &r, &how, false, 20, 1, 1, 0, 1, 96);
        }
    free(residual);
    free(gate);
}

static void test_finishing_on_the_model(void **state) {
    (void)state;
    check_every_kind(&modelled);
}

/* In machine code a line is finished by AVX-512: with the bits of its path. */
static void test_finishing_in_machine_code(void **state) {
    (void)state;
    const char *before = simd()->name;
    if (!simd_select("avx512bf16")) skip();
    trap();
    check_every_kind(&bf16_amx);
    untrap();
    assert_true(simd_select(before));
}

static uint64_t bits_of_model;

static void test_source_on_the_model(void **state) {
    (void)state;
    check_blocks(&modelled);
    bits_of_model = bits;
}

static void test_machine_code(void **state) {
    (void)state;
    trap();
    check_blocks(&bf16_amx);
    assert_true(bits == bits_of_model); /* with AMX, the CPU's; without it, the model's again */
    untrap();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_source_on_the_model, release_memory),
        cmocka_unit_test_teardown(test_machine_code, release_memory),
        cmocka_unit_test_teardown(test_finishing_on_the_model, release_memory),
        cmocka_unit_test_teardown(test_finishing_in_machine_code, release_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
#else
int main(void) {
    return 0;
}
#endif
