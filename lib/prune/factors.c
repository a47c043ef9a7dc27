/* Splits matrices of a layer in memory into low-rank factors, and multiplies factors again. */
#include "lib/prune/second_order.h"

/* Redescribes t as a matrix [rows][cols] without blocks; a quantized type becomes f32. */
static int reshape(struct prune_tensor *t, const struct tensor_desc *like, uint64_t rows, uint64_t cols,
                   struct err *e) {
    uint64_t dims[2] = {rows, cols};
    enum dtype type = dtype_info(like->dtype)->is_quantized ? DT_F32 : like->dtype;
    t->blocks.len = t->norms.len = 0;
    t->sparse = (struct prune_sparsity){0};
    t->here = true;
    return tensor_desc_init(&t->desc, like->name, type, 2, dims, e);
}

static float *values(struct prune_tensor *t) {
    return (float *)(void *)t->data.data;
}

static void swap(struct buf *a, struct buf *b) {
    struct buf was = *a;
    *a = *b;
    *b = was;
}

int prune_split(struct prune_layer *l, enum model_role role, uint32_t rank, struct err *e) {
    struct prune_tensor *first = &l->tensor[role], *second = &l->tensor[model_role_info(role)->out];
    const struct tensor_desc was = first->desc;
    uint64_t rows = was.dims[0], cols = was.dims[1];
    const struct prune_matrix w = {values(first), rows, cols, NULL};
    first->spare.len = second->data.len = 0;
    int rc = buf_reserve(&first->spare, rank * cols * sizeof(float), e);
    if (!rc) rc = buf_reserve(&second->data, rows * rank * sizeof(float), e);
    if (rc) return rc;
    struct prune_factors both = {(float *)(void *)first->spare.data, values(second)};
    rc = prune_low_rank(&w, NULL, rank, &both, e);
    if (rc) return rc;
    swap(&first->data, &first->spare);
    rc = reshape(first, &was, rank, cols, e);
    return rc ? rc : reshape(second, &was, rows, rank, e);
}

int prune_merge(struct prune_layer *l, enum model_role role, struct err *e) {
    struct prune_tensor *first = &l->tensor[role], *second = &l->tensor[model_role_info(role)->out];
    const struct tensor_desc was = first->desc;
    const struct prune_sparsity sparse = first->sparse;
    uint64_t rows = second->desc.dims[0], rank = was.dims[0], cols = was.dims[1];
    first->spare.len = 0;
    if (buf_reserve(&first->spare, rows * cols * sizeof(float), e)) return e->code;
    float *product = (float *)(void *)first->spare.data;
    kernel_matmul_nn(rows, cols, rank, kernel_f32(values(second)), kernel_f32(values(first)), 0, kernel_f32(product));
    swap(&first->data, &first->spare);
    second->here = false;
    int rc = reshape(first, &was, rows, cols, e);
    first->sparse = sparse;
    return rc;
}
