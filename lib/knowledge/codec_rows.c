/* Codec `rows`: a vector of `cols` values per position or sequence: hidden states, q, k, v, sentence vectors. */
#include "lib/knowledge/knowledge_internal.h"

static int check(const struct knowledge_field *field, struct err *e) {
    if (!field->heads || field->cols % field->heads == 0) return 0;
    return err_set(e, ERR_DATA, "%u columns of %u heads", field->cols, field->heads);
}

static uint32_t vectors(const struct knowledge_field *field) {
    (void)field;
    return 1;
}

static uint64_t vector_length(const struct knowledge_field *field, uint64_t at, uint64_t length) {
    (void)at, (void)length;
    return field->cols;
}

const struct knowledge_codec knowledge_codec_rows = {"rows", check, vectors, vector_length};
