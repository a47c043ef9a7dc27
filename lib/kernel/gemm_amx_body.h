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
 * with constant tile numbers and strides in bytes, and
 *
 *     AMX_FINISH_TARGET                   function attribute for the code of the following
 *     AMX_FINISH_F32(l)   AMX_FINISH_BF16(l)   AMX_FINISH_GATED(name, l)
 *                                         finish a line, struct amx_line; name: an activation, as in ACTIVATIONS
 *
 * Why space: while the other hyperthread of its core is busy, a Sapphire or Emerald Rapids takes 15 ns for a TDPBF16PS that follows
 * another one immediately, and 9 ns if eight simple instructions are between them; four behind a load save another tenth. Otherwise
 * they cost nothing (README.md has the measurement). Between the products of two rows of tiles they are prefetches of b.
 *
 * Between the same products a line of an earlier part of the result is finished (struct block_bf16): the units for vectors have nothing
 * else to do, and writes have time to reach the second cache. So there is one kernel for each kind of epilogue.
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

/* Lines to be finished, 32 columns each: pointers to the first one, and distances. */
struct amx_line {
    size_t left; /* lines */
    const float *sums;
    size_t ld;
    char *c;
    size_t c_bytes, n; /* from row to row of c; elements of such a row */
    const float *bias, *residual;
    const uint16_t *gate;
};

/* An operand or result this many rows ahead is fetched; beyond the part are the rows of the next one. */
#define AMX_AHEAD 8

/* A macro, because it changes the variable of its caller. Gate and residual are fetched for writing, because mostly they are c itself. */
#define AMX_NEXT_LINE(finish, l)                                                                                       \
    if ((l).left) {                                                                                                    \
        finish;                                                                                                        \
        (l).left--;                                                                                                    \
        (l).sums += (l).ld;                                                                                            \
        (l).c += (l).c_bytes;                                                                                          \
        if ((l).gate) {                                                                                                \
            __builtin_prefetch((l).gate + AMX_AHEAD * (l).n, 1);                                                       \
            (l).gate += (l).n;                                                                                         \
        }                                                                                                              \
        if ((l).residual) {                                                                                            \
            __builtin_prefetch((l).residual + AMX_AHEAD * (l).n, 1);                                                   \
            __builtin_prefetch((l).residual + AMX_AHEAD * (l).n + AMX_ROWS, 1);                                        \
            (l).residual += (l).n;                                                                                     \
        }                                                                                                              \
    }

/* What a kernel for two rows of tiles multiplies: one panel; `next` is the panel after it, or it again. */
struct amx_panel {
    size_t k;
    const uint16_t *a;
    size_t lda;
    const uint16_t *b, *next;
    bool accumulate;
    float *c;
    size_t ldc;
};

/*
 * c[17 to 32][32] = [c +] a b, and all lines of l finished, up to two in a step. Each step asks for what the next one reads of b.
 */
#define AMX_TWO_ROWS_OF_TILES(kind, target, finish)                                                                    \
    static target void amx_two_rows_##kind(const struct amx_panel *t, const struct amx_line *lines) {                  \
        struct amx_line l = *lines;                                                                                    \
        size_t c_bytes = t->ldc * sizeof *t->c, a_bytes = t->lda * sizeof *t->a, k = t->k;                             \
        const uint16_t *a = t->a, *lower_a = a + AMX_ROWS * t->lda, *b = t->b;                                         \
        float *c = t->c, *lower_c = c + AMX_ROWS * t->ldc;                                                             \
        if (t->accumulate) {                                                                                           \
            TILE_LOAD(0, c, c_bytes);                                                                                  \
            TILE_LOAD(1, c + AMX_ROWS, c_bytes);                                                                       \
            TILE_LOAD(2, lower_c, c_bytes);                                                                            \
            TILE_LOAD(3, lower_c + AMX_ROWS, c_bytes);                                                                 \
        } else {                                                                                                       \
            TILE_ZERO(0);                                                                                              \
            TILE_ZERO(1);                                                                                              \
            TILE_ZERO(2);                                                                                              \
            TILE_ZERO(3);                                                                                              \
        }                                                                                                              \
        for (size_t p = 0; p < k; p += AMX_STEP) {                                                                     \
            const uint16_t *soon = p + AMX_STEP < k ? b + (p + AMX_STEP) * PANEL : t->next;                            \
            TILE_LOAD(4, a + p, a_bytes);                                                                              \
            TILE_SPACE(4);                                                                                             \
            TILE_LOAD(6, b + p * PANEL, AMX_B_STRIDE);                                                                 \
            TILE_SPACE(4);                                                                                             \
            TILE_LOAD(5, lower_a + p, a_bytes);                                                                        \
            TILE_SPACE(4);                                                                                             \
            TILE_LOAD(7, b + p * PANEL + PANEL, AMX_B_STRIDE);                                                         \
            TILE_SPACE(4);                                                                                             \
            TILE_DP(0, 4, 6);                                                                                          \
            AMX_NEXT_LINE(finish, l);                                                                                  \
            amx_fetch(soon, 0);                                                                                        \
            TILE_DP(2, 5, 6);                                                                                          \
            amx_fetch(soon, 8);                                                                                        \
            TILE_DP(1, 4, 7);                                                                                          \
            AMX_NEXT_LINE(finish, l);                                                                                  \
            amx_fetch(soon, 16);                                                                                       \
            TILE_DP(3, 5, 7);                                                                                          \
            amx_fetch(soon, 24);                                                                                       \
        }                                                                                                              \
        while (l.left) {                                                                                               \
            AMX_NEXT_LINE(finish, l);                                                                                  \
        }                                                                                                              \
        TILE_STORE(0, c, c_bytes);                                                                                     \
        TILE_STORE(1, c + AMX_ROWS, c_bytes);                                                                          \
        TILE_STORE(2, lower_c, c_bytes);                                                                               \
        TILE_STORE(3, lower_c + AMX_ROWS, c_bytes);                                                                    \
    }
AMX_TWO_ROWS_OF_TILES(none, AMX_TARGET, )
AMX_TWO_ROWS_OF_TILES(f32, AMX_FINISH_TARGET, AMX_FINISH_F32(l))
AMX_TWO_ROWS_OF_TILES(bf16, AMX_FINISH_TARGET, AMX_FINISH_BF16(l))
#define AMX_GATED(name) AMX_TWO_ROWS_OF_TILES(name, AMX_FINISH_TARGET, AMX_FINISH_GATED(name, l))
ACTIVATIONS(AMX_GATED)

typedef void amx_two_rows_fn(const struct amx_panel *t, const struct amx_line *lines);

static amx_two_rows_fn *amx_finishing(const struct result *c) {
#define AMX_KERNEL_OF(name) amx_two_rows_##name,
    static amx_two_rows_fn *const gated[] = {ACTIVATIONS(AMX_KERNEL_OF)};
    return c->type == DT_F32 ? amx_two_rows_f32 : c->how.gate ? gated[c->how.act] : amx_two_rows_bf16;
}

/* The lines of panel j of what is to be finished */
static struct amx_line amx_lines(const struct earlier *w, size_t j) {
    const struct part *x = &w->part;
    size_t n = w->of->n, col = x->col + j * PANEL, at = (x->row + w->row) * n + col,
           size = w->of->type == DT_F32 ? sizeof(float) : sizeof(uint16_t);
    const struct epilogue *how = &w->of->how;
    return (struct amx_line){.left = w->end - w->row,
                             .sums = x->sums + w->row * x->ld + j * PANEL,
                             .ld = x->ld,
                             .c = (char *)w->of->data + at * size,
                             .c_bytes = n * size,
                             .n = n,
                             .bias = how->bias ? how->bias + col : NULL,
                             .residual = how->residual ? how->residual + at : NULL,
                             .gate = how->gate ? how->gate + at : NULL};
}

/* Between calls the configuration is that of whole blocks; a smaller last block changes it temporarily. */
static AMX_TARGET void amx_multiply(const struct block_bf16 *t) {
    const struct earlier *w = t->earlier && t->earlier->row < t->earlier->end ? t->earlier : NULL;
    amx_two_rows_fn *finishing = w ? amx_finishing(w->of) : amx_two_rows_none;
    if (t->rows != AMX_BLOCK) amx_configure(t->rows);
    for (size_t j = 0; j < t->n_panels; j++) {
        const uint16_t *b = t->b + j * t->stride, *next = j + 1 < t->n_panels ? b + t->stride : b;
        float *c = t->c + j * PANEL;
        struct amx_panel panel = {t->k, t->a, t->lda, b, next, t->accumulate, c, t->ldc};
        struct amx_line lines = {0};
        if (t->rows <= AMX_ROWS) {
            amx_one_row_of_tiles(t->k, t->a, t->lda, b, t->accumulate, c, t->ldc);
        } else if (w && j * PANEL < w->part.cols) {
            lines = amx_lines(w, j);
            finishing(&panel, &lines);
        } else
            amx_two_rows_none(&panel, &lines);
    }
    if (t->rows != AMX_BLOCK) amx_configure(AMX_BLOCK);
}
