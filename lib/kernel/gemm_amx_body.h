/*
 * The micro-kernel for AMX: 2 x 2 tiles of c, 16 x 16 each, and two tiles each of a and b per step of 32 in k.
 * TDPBF16PS sums the products of the even k of a step and those of the odd ones separately, in order, then adds both to
 * c; subnormal inputs and results count as zero. The order does not depend on the position of a row or column in its
 * tile.
 *
 * Written over a few operations, so that the same source runs on the CPU's tiles (gemm_amx.c) and on a software model
 * of them (tests/unit/test_kernel_amx.c) for CPUs without AMX. The including file defines
 *
 *     AMX_TARGET                          function attribute
 *     TILE_CONFIG(config)                 struct amx_config, the 64 bytes that LDTILECFG reads; checks rows and bytes
 *     TILE_RELEASE()
 *     TILE_ZERO(t)   TILE_LOAD(t, address, stride)   TILE_STORE(t, address, stride)   TILE_DP(c, a, b)
 *     TILE_SPACE(n)                       n instructions that do nothing
 *
 * with constant tile numbers and strides in bytes.
 *
 * Why space: while the other hyperthread of its core is busy, a Sapphire or Emerald Rapids takes 15 ns for a TDPBF16PS that follows
 * another one immediately, and 9 ns if eight simple instructions are between them; four behind a load save another tenth. Otherwise
 * they cost nothing (README.md has the measurement). Between the products of two rows of tiles they are prefetches of b.
 */

/* What LDTILECFG reads (Intel SDM volume 2, LDTILECFG, "memory layout of the configuration"). */
struct amx_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/* Tiles 0 to 3 are c, row by row; 4 and 5 are rows of a, 6 and 7 columns of b. The second row of tiles may be
 * unused. */
#define AMX_ROWS     16
#define AMX_BLOCK    (2 * AMX_ROWS)
#define AMX_STEP     32                             /* of k */
#define AMX_B_STRIDE (2 * PANEL * sizeof(uint16_t)) /* bytes between pairs of k */

static AMX_TARGET void amx_configure(size_t rows) {
    struct amx_config config = {.palette = 1};
    size_t upper = smaller(rows, AMX_ROWS), lower = rows - upper;
    const size_t tile_rows[8] = {upper, upper, lower, lower, upper, lower, AMX_ROWS, AMX_ROWS};
    for (int t = 0; t < 8; t++) {
        config.rows[t] = (uint8_t)tile_rows[t];
        config.row_bytes[t] = tile_rows[t] ? 64 : 0;
    }
    TILE_CONFIG(&config);
}

static AMX_TARGET void amx_begin(void) {
    amx_configure(AMX_BLOCK);
}

static AMX_TARGET void amx_end(void) {
    TILE_RELEASE();
}

/* Prefetches lines [first, first + 8) of the part of a panel that a step reads. */
static inline __attribute__((always_inline)) void amx_fetch(const uint16_t *b, size_t first) {
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; i++) __builtin_prefetch(b + (first + i) * PANEL);
}

/* c[1 to 16][32] = [c +] a b for one panel. */
static AMX_TARGET void amx_one_row_of_tiles(size_t k, const uint16_t *a, size_t lda, const uint16_t *b, bool accumulate,
                                            float *c, size_t ldc) {
    size_t c_bytes = ldc * sizeof *c, a_bytes = lda * sizeof *a;
    if (accumulate) {
        TILE_LOAD(0, c, c_bytes);
        TILE_LOAD(1, c + AMX_ROWS, c_bytes);
    } else {
        TILE_ZERO(0);
        TILE_ZERO(1);
    }
    for (size_t p = 0; p < k; p += AMX_STEP) {
        TILE_LOAD(4, a + p, a_bytes);
        TILE_SPACE(4);
        TILE_LOAD(6, b + p * PANEL, AMX_B_STRIDE);
        TILE_SPACE(4);
        TILE_LOAD(7, b + p * PANEL + PANEL, AMX_B_STRIDE);
        TILE_SPACE(4);
        TILE_DP(0, 4, 6);
        TILE_SPACE(8);
        TILE_DP(1, 4, 7);
        TILE_SPACE(8);
    }
    TILE_STORE(0, c, c_bytes);
    TILE_STORE(1, c + AMX_ROWS, c_bytes);
}

/* c[17 to 32][32] = [c +] a b for one panel; `next` is the panel after it, or it again. Each step asks for what the next one reads of b. */
static AMX_TARGET void amx_two_rows_of_tiles(size_t k, const uint16_t *a, size_t lda, const uint16_t *b,
                                             const uint16_t *next, bool accumulate, float *c, size_t ldc) {
    size_t c_bytes = ldc * sizeof *c, a_bytes = lda * sizeof *a;
    const uint16_t *lower_a = a + AMX_ROWS * lda;
    float *lower_c = c + AMX_ROWS * ldc;
    if (accumulate) {
        TILE_LOAD(0, c, c_bytes);
        TILE_LOAD(1, c + AMX_ROWS, c_bytes);
        TILE_LOAD(2, lower_c, c_bytes);
        TILE_LOAD(3, lower_c + AMX_ROWS, c_bytes);
    } else {
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
    }
    for (size_t p = 0; p < k; p += AMX_STEP) {
        const uint16_t *soon = p + AMX_STEP < k ? b + (p + AMX_STEP) * PANEL : next;
        TILE_LOAD(4, a + p, a_bytes);
        TILE_SPACE(4);
        TILE_LOAD(6, b + p * PANEL, AMX_B_STRIDE);
        TILE_SPACE(4);
        TILE_LOAD(5, lower_a + p, a_bytes);
        TILE_SPACE(4);
        TILE_LOAD(7, b + p * PANEL + PANEL, AMX_B_STRIDE);
        TILE_SPACE(4);
        TILE_DP(0, 4, 6);
        amx_fetch(soon, 0);
        TILE_DP(2, 5, 6);
        amx_fetch(soon, 8);
        TILE_DP(1, 4, 7);
        amx_fetch(soon, 16);
        TILE_DP(3, 5, 7);
        amx_fetch(soon, 24);
    }
    TILE_STORE(0, c, c_bytes);
    TILE_STORE(1, c + AMX_ROWS, c_bytes);
    TILE_STORE(2, lower_c, c_bytes);
    TILE_STORE(3, lower_c + AMX_ROWS, c_bytes);
}

/* Between calls the configuration is that of whole blocks; a smaller last block changes it temporarily. */
static AMX_TARGET void amx_multiply(const struct block_bf16 *t) {
    if (t->rows != AMX_BLOCK) amx_configure(t->rows);
    for (size_t j = 0; j < t->n_panels; j++) {
        const uint16_t *b = t->b + j * t->stride, *next = j + 1 < t->n_panels ? b + t->stride : b;
        float *c = t->c + j * PANEL;
        if (t->rows > AMX_ROWS)
            amx_two_rows_of_tiles(t->k, t->a, t->lda, b, next, t->accumulate, c, t->ldc);
        else
            amx_one_row_of_tiles(t->k, t->a, t->lda, b, t->accumulate, c, t->ldc);
    }
    if (t->rows != AMX_BLOCK) amx_configure(AMX_BLOCK);
}
