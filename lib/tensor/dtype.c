/* The table of element types: the plain ones, then a row for each of QUANTIZED_TYPES in tensor.h. */
#include <string.h>

#include "lib/tensor/quantize_internal.h"

#define DTYPE_ADDRESS(upper, lower, ggml) &lower##_type,
static const struct element_type *const quantized[] = {QUANTIZED_TYPES(DTYPE_ADDRESS)};

#define DTYPE_AT(upper, lower, ggml) [DT_##upper] = &lower##_type,
static const struct element_type *const by_number[] = {QUANTIZED_TYPES(DTYPE_AT)};

static const struct element_type *type_at(size_t index) {
    size_t plain = 0;
    for (; plain_types[plain].info.dtype; plain++)
        if (index == plain) return &plain_types[plain];
    return index - plain < COUNT_OF(quantized) ? quantized[index - plain] : NULL;
}

const struct dtype_info *dtype_at(size_t index) {
    const struct element_type *t = type_at(index);
    return t ? &t->info : NULL;
}

/* Called for single rows: quantized types are found without a search. */
const struct element_type *element_type(unsigned dtype) {
    if (dtype < COUNT_OF(by_number) && by_number[dtype]) return by_number[dtype];
    for (const struct element_type *t = plain_types; t->info.dtype; t++)
        if (t->info.dtype == dtype) return t;
    return NULL;
}

const struct dtype_info *dtype_info(unsigned dtype) {
    const struct element_type *t = element_type(dtype);
    return t ? &t->info : NULL;
}

const struct dtype_info *dtype_by_name(const char *name) {
    const struct dtype_info *t;
    for (size_t i = 0; (t = dtype_at(i)); i++)
        if (strcmp(t->name, name) == 0) return t;
    return NULL;
}

const struct dtype_info *dtype_by_ggml(int ggml_type) {
    const struct dtype_info *t;
    for (size_t i = 0; (t = dtype_at(i)); i++)
        if (ggml_type >= 0 && t->ggml_type == ggml_type) return t;
    return NULL;
}
