/*
 * Codec `attention`: the weights of the positions that each position and head attends to. A causal teacher attends to
 * the position itself and earlier ones, so only that triangle is stored. The rows of a sequence are contiguous, each
 * with its heads side by side, in the batch in which the sequence ends.
 */
#include "lib/knowledge/knowledge_internal.h"

static int check(const struct knowledge_field *field, struct err *e) {
    if (field->heads && field->cols == field->heads) return 0;
    return err_set(e, ERR_DATA, "attention of %u heads and %u columns: expected one for each head", field->heads,
                   field->cols);
}

static uint32_t vectors(const struct knowledge_field *field) {
    return field->heads;
}

static uint64_t vector_length(const struct knowledge_field *field, uint64_t at, uint64_t length) {
    return field->causal ? at + 1 : length;
}

const struct knowledge_codec knowledge_codec_attention = {"attention", check, vectors, vector_length};
