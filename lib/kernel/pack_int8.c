/*
 * Quantized blocks in the layout of integer products: panels of 32 columns, split into chunks of 256 of k (the last may
 * be shorter). A chunk holds its columns' blocks, interleaved:
 *
 *     types without scales per group     f16 d [k/32][32], f16 min [k/32][32]
 *     types with them                    f16 d [32], f16 min [32], i8 scales [k/group][32], i8 mins [k/group][32]
 *     codes of 8 bits                    u8 [k/4][32][4]
 *     codes of up to 6 bits              u8 [k/8][32][4]: low nibbles of step 2i, with those of step 2i + 1 above
 *                                        them; then the fifth and sixth bits as masks, u64 [k/4][planes][2]: bit
 *                                        i % 64 of word i / 64 belongs to byte i
 *
 * where a step is four elements of k, and parts that a type does not need (minima, masks) are left out. So a matrix
 * takes as many bits as on disk, except that codes of two and three bits take four, and is read sequentially.
 */
#include "lib/kernel/kernel_internal.h"

#define STEP (4 * PANEL) /* bytes of codes per step */

static unsigned planes_of(const struct quant_form *f) {
    return f->bits > 4 && f->bits < 8 ? f->bits - 4 : 0;
}

/* Bytes of each part of a chunk. */
struct sizes {
    size_t factors, small, codes, masks; /* factors and small occur twice if there are minima */
};

static struct sizes sizes_of(const struct quant_form *f, size_t blocks) {
    size_t codes = blocks * 8 * STEP;
    return (struct sizes){.factors = (f->has_scales ? 1 : blocks) * PANEL * sizeof(uint16_t),
                          .small = f->has_scales ? blocks * 32 / f->group * PANEL : 0,
                          .codes = f->bits == 8 ? codes : codes / 2,
                          .masks = codes / 8 * planes_of(f)};
}

struct chunk_int8 chunk_at(const struct quant_form *f, const uint8_t *p, size_t blocks) {
    struct sizes size = sizes_of(f, blocks);
    struct chunk_int8 c = {.groups = blocks * 32 / f->group, .planes = planes_of(f)};
    c.d = p;
    p += size.factors;
    if (f->has_min) c.min = p, p += size.factors;
    if (f->has_scales) c.scales = (const int8_t *)p, p += size.small;
    if (f->has_scales && f->has_min) c.mins = (const int8_t *)p, p += size.small;
    c.codes = p;
    p += size.codes;
    c.masks = p;
    c.end = p + size.masks;
    return c;
}

static size_t chunk_bytes(const struct quant_form *f, size_t blocks) {
    struct sizes size = sizes_of(f, blocks);
    return (size.factors + size.small) * (f->has_min ? 2 : 1) + size.codes + size.masks;
}

size_t panel_int8_bytes(const struct quant_form *f, size_t k) {
    return k / INT8_CHUNK * chunk_bytes(f, INT8_CHUNK / 32) +
           (k % INT8_CHUNK ? chunk_bytes(f, k % INT8_CHUNK / 32) : 0);
}

size_t panels_int8_bytes(enum dtype type, size_t n, size_t k) {
    return (n + PANEL - 1) / PANEL * panel_int8_bytes(quant_form(type), k);
}

/* ---- packing ---- */

struct packing_int8 {
    const struct simd *v;
    const struct quant_form *form;
    size_t n, k, block; /* block: its number of elements */
    size_t block_bytes, row_bytes, panel_bytes;
    uint8_t *to;
    const uint8_t *from;
};

/* Bit `shift` of each of eight bytes; that of the first byte is the lowest. */
static uint8_t low_bits(const uint8_t *bytes, int shift) {
    uint64_t x;
    memcpy(&x, bytes, sizeof x);
    return (uint8_t)((x >> shift & 0x0101010101010101) * 0x0102040810204080 >> 56);
}

/* Stores the codes of whole steps. */
static void put_codes(const struct quant_form *f, const struct chunk_int8 *c, const uint8_t *codes, size_t steps) {
    uint8_t *to = (uint8_t *)c->codes, *masks = (uint8_t *)c->masks;
    if (f->bits == 8) {
        memcpy(to, codes, steps * STEP);
        return;
    }
    for (size_t s = 0; s < steps; s += 2)
        for (size_t i = 0; i < STEP; i++)
            to[s / 2 * STEP + i] = (uint8_t)((codes[s * STEP + i] & 15) | (codes[(s + 1) * STEP + i] & 15) << 4);
    for (size_t s = 0; s < steps; s++)
        for (unsigned plane = 0; plane < c->planes; plane++)
            for (size_t i = 0; i < STEP; i += 8) *masks++ = low_bits(codes + s * STEP + i, 4 + (int)plane);
}

static void put_f16(const uint8_t *base, size_t i, uint16_t h) {
    memcpy((uint8_t *)base + i * sizeof h, &h, sizeof h);
}

/* Stores the scales of one column's blocks in a chunk, and writes its codes to a row. */
static void take_column(const struct packing_int8 *p, const struct chunk_int8 *c, size_t col, const uint8_t *from,
                        size_t count, uint8_t *codes) {
    const struct quant_form *f = p->form;
    for (size_t k = 0; k < count; k += p->block, from += p->block_bytes) {
        struct quant_parts parts;
        quant_take_apart(f->dtype, from, &parts);
        put_f16(c->d, k / p->block * PANEL + col, parts.d);
        if (f->has_min) put_f16(c->min, k / p->block * PANEL + col, parts.min);
        for (size_t g = 0; f->has_scales && g < c->groups; g++) {
            ((int8_t *)c->scales)[g * PANEL + col] = parts.scales[g];
            if (f->has_min) ((int8_t *)c->mins)[g * PANEL + col] = parts.mins[g];
        }
        memcpy(codes + k, parts.codes, p->block);
    }
}

static void pack_panel(void *ctx, size_t i, int thread) {
    const struct packing_int8 *p = ctx;
    (void)thread;
    _Alignas(64) uint8_t rows[PANEL * INT8_CHUNK], codes[PANEL * INT8_CHUNK];
    uint8_t *to = p->to + i * p->panel_bytes;
    size_t cols = smaller(PANEL, p->n - i * PANEL);
    memset(rows, 0, sizeof rows); /* columns past the end stay 0 */
    for (size_t k = 0; k < p->k; k += INT8_CHUNK) {
        size_t count = smaller(INT8_CHUNK, p->k - k);
        struct chunk_int8 c = chunk_at(p->form, to, count / 32);
        memset(to, 0, (size_t)(c.end - to));
        for (size_t j = 0; j < cols; j++)
            take_column(p, &c, j, p->from + (i * PANEL + j) * p->row_bytes + k / p->block * p->block_bytes, count,
                        rows + j * INT8_CHUNK);
        for (size_t half = 0; half < PANEL; half += 16)
            p->v->transpose_words((uint32_t *)(void *)codes + half, PANEL,
                                  (const uint32_t *)(const void *)(rows + half * INT8_CHUNK), INT8_CHUNK / 4, 16,
                                  count / 4);
        put_codes(p->form, &c, codes, count / 4);
        to += c.end - to;
    }
}

void pack_int8(uint8_t *to, size_t n, size_t k, enum dtype type, const void *blocks) {
    const struct dtype_info *info = dtype_info(type);
    struct packing_int8 p = {.v = simd(),
                             .form = quant_form(type),
                             .n = n,
                             .k = k,
                             .block = info->block_elems,
                             .block_bytes = info->block_bytes,
                             .row_bytes = dtype_row_bytes(type, k),
                             .to = to,
                             .from = blocks};
    p.panel_bytes = panel_int8_bytes(p.form, k);
    parallel_for((n + PANEL - 1) / PANEL, pack_panel, &p);
}

/* ---- reading back ------------------------------------------------------------------------------------------------ */

static float f16_at(const uint8_t *base, size_t i) {
    uint16_t h;
    memcpy(&h, base + i * sizeof h, sizeof h);
    return f16_to_f32(h);
}

/* Byte i of a step: code i % 4 of column i / 4. */
static int code_at(const struct quant_form *f, const struct chunk_int8 *c, size_t step, size_t i) {
    if (f->bits == 8) return c->codes[step * STEP + i];
    int code = c->codes[step / 2 * STEP + i] >> step % 2 * 4 & 15;
    for (unsigned plane = 0; plane < c->planes; plane++)
        code |= (c->masks[(step * c->planes + plane) * (STEP / 8) + i / 8] >> i % 8 & 1) << (4 + plane);
    return code;
}

/* Gives the bits of tensor_to_f32. */
void int8_column(float *y, const struct panels *b, size_t col) {
    const struct quant_form *f = quant_form(b->dtype);
    const uint8_t *p = (const uint8_t *)b->data + col / PANEL * panel_int8_bytes(f, b->k);
    col %= PANEL;
    for (size_t k = 0; k < b->k; k += INT8_CHUNK) {
        size_t count = smaller(INT8_CHUNK, b->k - k);
        struct chunk_int8 c = chunk_at(f, p, count / 32);
        for (size_t i = 0; i < count; i++) {
            size_t g = i / f->group * PANEL + col, block = (f->has_scales ? 0 : i / 32) * PANEL + col;
            float scale = f16_at(c.d, block), min = f->has_min ? f16_at(c.min, block) : 0;
            int code = code_at(f, &c, i / 4, 4 * col + i % 4) - f->offset;
            if (f->has_scales) scale *= c.scales[g];
            y[k + i] = scale * (float)code;
            if (f->has_min) y[k + i] += f->has_scales ? min * c.mins[g] : min;
        }
        p = c.end;
    }
}
