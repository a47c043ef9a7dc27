/* The table of element types. */
#include <string.h>

#include "lib/tensor/tensor.h"

#define PLAIN_FLOAT(number, text, bytes, ggml)                                                                         \
    { .dtype = number, .name = text, .block_elems = 1, .block_bytes = bytes, .ggml_type = ggml, .is_float = true }
#define INTEGER(number, text, bytes, ggml)                                                                             \
    { .dtype = number, .name = text, .block_elems = 1, .block_bytes = bytes, .ggml_type = ggml }
#define QUANTIZED(number, text, elems, bytes)                                                                          \
    {                                                                                                                  \
        .dtype = number, .name = text, .block_elems = elems, .block_bytes = bytes, .ggml_type = number - 64,           \
        .is_quantized = true                                                                                           \
    }

/* GGUF has no unsigned types. */
/* clang-format off */
static const struct dtype_info table[] = {
    PLAIN_FLOAT(DT_F32, "f32", 4, 0),
    PLAIN_FLOAT(DT_F16, "f16", 2, 1),
    PLAIN_FLOAT(DT_BF16, "bf16", 2, 30),
    PLAIN_FLOAT(DT_F64, "f64", 8, 28),
    INTEGER(DT_I8, "i8", 1, 24),
    INTEGER(DT_I16, "i16", 2, 25),
    INTEGER(DT_I32, "i32", 4, 26),
    INTEGER(DT_I64, "i64", 8, 27),
    INTEGER(DT_U8, "u8", 1, -1),
    INTEGER(DT_U16, "u16", 2, -1),
    INTEGER(DT_U32, "u32", 4, -1),
    INTEGER(DT_U64, "u64", 8, -1),
    QUANTIZED(DT_Q4_0, "q4_0", 32, 18),
    QUANTIZED(DT_Q4_1, "q4_1", 32, 20),
    QUANTIZED(DT_Q5_0, "q5_0", 32, 22),
    QUANTIZED(DT_Q5_1, "q5_1", 32, 24),
    QUANTIZED(DT_Q8_0, "q8_0", 32, 34),
    QUANTIZED(DT_Q2_K, "q2_k", 256, 84),
    QUANTIZED(DT_Q3_K, "q3_k", 256, 110),
    QUANTIZED(DT_Q4_K, "q4_k", 256, 144),
    QUANTIZED(DT_Q5_K, "q5_k", 256, 176),
    QUANTIZED(DT_Q6_K, "q6_k", 256, 210),
};
/* clang-format on */

const struct dtype_info *dtype_at(size_t index) {
    return index < COUNT_OF(table) ? &table[index] : NULL;
}

const struct dtype_info *dtype_info(unsigned dtype) {
    for (size_t i = 0; i < COUNT_OF(table); i++)
        if (table[i].dtype == dtype) return &table[i];
    return NULL;
}

const struct dtype_info *dtype_by_name(const char *name) {
    for (size_t i = 0; i < COUNT_OF(table); i++)
        if (strcmp(table[i].name, name) == 0) return &table[i];
    return NULL;
}

const struct dtype_info *dtype_by_ggml(int ggml_type) {
    for (size_t i = 0; i < COUNT_OF(table); i++)
        if (ggml_type >= 0 && table[i].ggml_type == ggml_type) return &table[i];
    return NULL;
}
