/* The right-hand matrix of a product (kernel.h): packing, filling, reading a column back. */
#include "lib/kernel/kernel_internal.h"

/* ---- making and filling ---- */

struct kernel_matrix kernel_matrix_in(struct kernel_array memory, enum kernel_packing packing, enum dtype type,
                                      size_t n, size_t k) {
    enum dtype dtype = packing == KERNEL_PACKED_BF16 ? DT_BF16 : type;
    return (struct kernel_matrix){n, k, packing, dtype, memory.buffer, memory.offset};
}

struct kernel_matrix kernel_matrix_of(struct kernel_array b, size_t n, size_t k) {
    return kernel_matrix_in(b, KERNEL_STORED, b.dtype, n, k);
}

size_t kernel_matrix_bytes(enum kernel_packing packing, enum dtype type, size_t n, size_t k) {
    if (packing == KERNEL_STORED) return n * dtype_row_bytes(type, k);
    return packing == KERNEL_PACKED_BF16 ? panels_bytes(n, k) : panels_int8_bytes(type, n, k);
}

void kernel_matrix_fill(const struct kernel_matrix *b, size_t first, size_t rows, enum dtype type, const void *host) {
    PROFILE(PACKING);
    unsigned char *to = (unsigned char *)b->buffer + b->offset + kernel_matrix_bytes(b->packing, type, first, b->k);
    if (b->packing == KERNEL_STORED)
        memcpy(to, host, rows * dtype_row_bytes(type, b->k));
    else if (b->packing == KERNEL_PACKED_BF16)
        pack_nt((uint16_t *)(void *)to, rows, b->k, type, host);
    else
        pack_int8(to, rows, b->k, type, host);
}

struct kernel_matrix kernel_pack_nt(struct kernel_array memory, const struct kernel_matrix *b) {
    PROFILE(PACKING);
    struct panels from = panels_of(b);
    pack_nt(host_of(memory), b->n, b->k, b->dtype, from.data);
    return kernel_matrix_in(memory, KERNEL_PACKED_BF16, DT_BF16, b->n, b->k);
}

struct kernel_matrix kernel_pack_nn(struct kernel_array memory, size_t n, size_t k, struct kernel_array b) {
    PROFILE(PACKING);
    pack_nn(host_of(memory), n, k, b.dtype, host_of(b));
    return kernel_matrix_in(memory, KERNEL_PACKED_BF16, DT_BF16, n, k);
}

/* ---- reading a column back --------------------------------------------------------------------------------------- */

struct gathering {
    float *y;
    const struct panels *b;
    const uint32_t *ids;
};

static void gather_piece(void *ctx, size_t begin, size_t end) {
    const struct gathering *g = ctx;
    const struct panels *b = g->b;
    for (size_t i = begin; i < end; i++) {
        size_t id = g->ids[i];
        float *y = g->y + i * b->k;
        if (b->packed && b->dtype != DT_BF16) {
            int8_column(y, b, id);
            continue;
        }
        if (!b->packed) {
            tensor_to_f32(b->dtype, (const unsigned char *)b->data + id * dtype_row_bytes(b->dtype, b->k), y, b->k);
            continue;
        }
        const uint16_t *x = (const uint16_t *)b->data + id / PANEL * PANEL * ((b->k + 31) / 32 * 32) + id % PANEL * 2;
        for (size_t p = 0; p < b->k; p++) y[p] = bf16_to_f32(x[p / 2 * (2 * PANEL) + p % 2]);
    }
}

void kernel_matrix_gather(struct kernel_array y, const struct kernel_matrix *b, const uint32_t *ids, size_t n_ids) {
    PROFILE(ELEMENTWISE);
    struct panels p = panels_of(b);
    kernel_split(n_ids, piece_rows(b->k), gather_piece, &(struct gathering){host_f32(y), &p, ids});
}
