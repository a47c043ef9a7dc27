/* Shapes and sizes of tensors. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "lib/tensor/tensor.h"

/* No file, mapping or allocation is larger, so a size up to this fits off_t, size_t and ptrdiff_t. */
#define MAX_BYTES ((uint64_t)INT64_MAX)

/*
 * *n_elems is the product of all dimensions, *stride the product of the non-zero ones: a shape such as [0, 2^40, 2^40]
 * is refused like its transpose, so that no partial product can overflow.
 */
static bool multiply_dims(const struct tensor_desc *d, uint64_t *n_elems, uint64_t *stride) {
    bool empty = false;
    *stride = 1;
    for (unsigned i = 0; i < d->rank; i++) {
        if (d->dims[i] == 0)
            empty = true;
        else if (!u64_mul(*stride, d->dims[i], stride))
            return false;
    }
    *n_elems = empty ? 0 : *stride;
    return true;
}

int tensor_desc_check(const struct tensor_desc *d, uint64_t *n_elems, uint64_t *n_bytes, struct err *e) {
    const char *end = memchr(d->name, 0, sizeof d->name);
    if (!end || !name_valid(d->name, (size_t)(end - d->name)))
        return err_set(e, ERR_DATA, "tensor name is not 1 to %d bytes of printable UTF-8", TENSOR_MAX_NAME);
    const struct dtype_info *type = dtype_info(d->dtype);
    if (!type) return err_set(e, ERR_DATA, "tensor %s: unknown element type %u", d->name, (unsigned)d->dtype);
    if (d->rank > TENSOR_MAX_RANK)
        return err_set(e, ERR_DATA, "tensor %s: rank %u, at most %d", d->name, d->rank, TENSOR_MAX_RANK);
    char shape[256];
    uint64_t row = tensor_row_elems(d);
    if (row % type->block_elems != 0)
        return err_set(e, ERR_DATA, "tensor %s %s: rows are not a multiple of %s's block of %" PRIu32, d->name,
                       tensor_shape_text(d, shape, sizeof shape), type->name, type->block_elems);
    uint64_t elems, stride, bytes, padded;
    if (!multiply_dims(d, &elems, &stride) ||
        !u64_mul(stride / type->block_elems + (stride % type->block_elems != 0), type->block_bytes, &bytes) ||
        !u64_align(bytes, 64, &padded) || padded > MAX_BYTES)
        return err_set(e, ERR_DATA, "tensor %s %s %s: too large", d->name, type->name,
                       tensor_shape_text(d, shape, sizeof shape));
    *n_elems = elems;
    *n_bytes = elems ? bytes : 0;
    return 0;
}

int tensor_desc_init(struct tensor_desc *d, const char *name, enum dtype dtype, unsigned rank, const uint64_t *dims,
                     struct err *e) {
    size_t n = strlen(name);
    if (n > TENSOR_MAX_NAME) return err_set(e, ERR_DATA, "tensor name of %zu bytes, at most %d", n, TENSOR_MAX_NAME);
    if (rank > TENSOR_MAX_RANK)
        return err_set(e, ERR_DATA, "tensor %s: rank %u, at most %d", name, rank, TENSOR_MAX_RANK);
    struct tensor_desc made = {.dtype = dtype, .rank = rank};
    memcpy(made.name, name, n);
    if (rank) memcpy(made.dims, dims, rank * sizeof *dims);
    uint64_t n_elems, n_bytes;
    int rc = tensor_desc_check(&made, &n_elems, &n_bytes, e);
    if (!rc) *d = made;
    return rc;
}

uint64_t tensor_rows(const struct tensor_desc *d) {
    uint64_t n = 1;
    for (unsigned i = 0; i + 1 < d->rank; i++) n *= d->dims[i];
    return n;
}

uint64_t tensor_row_elems(const struct tensor_desc *d) {
    return d->rank ? d->dims[d->rank - 1] : 1;
}

uint64_t tensor_elems(const struct tensor_desc *d) {
    return tensor_rows(d) * tensor_row_elems(d);
}

uint64_t tensor_bytes(const struct tensor_desc *d) {
    return tensor_rows(d) * dtype_row_bytes(d->dtype, tensor_row_elems(d));
}

uint64_t dtype_row_bytes(enum dtype dtype, uint64_t n_elems) {
    const struct dtype_info *type = dtype_info(dtype);
    return n_elems / type->block_elems * type->block_bytes;
}

bool tensor_same_shape(const struct tensor_desc *a, const struct tensor_desc *b) {
    return a->rank == b->rank && memcmp(a->dims, b->dims, a->rank * sizeof a->dims[0]) == 0;
}

char *tensor_shape_text(const struct tensor_desc *d, char *out, size_t size) {
    size_t used = 0;
    for (unsigned i = 0; i < d->rank && i < TENSOR_MAX_RANK && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%" PRIu64, i ? ", " : "[", d->dims[i]);
    if (used < size) snprintf(out + used, size - used, d->rank ? "]" : "[]");
    return out;
}
