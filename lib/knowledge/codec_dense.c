/* Codec `dense`: all of the teacher's logits or log-probabilities, teacher.logits [rows][columns], f32, f16 or bf16. */
#include <stdio.h>
#include <string.h>

#include "lib/knowledge/knowledge_internal.h"

static void text(const struct knowledge_format *f, char *out, size_t size) {
    (void)f;
    snprintf(out, size, "dense");
}

static bool describe(cJSON *o, const struct knowledge_format *f) {
    return json_put_str(o, "dtype", dtype_info(f->dtype)->name) && json_put_bool(o, "log_probs", f->log_probs);
}

static int read_members(const cJSON *o, struct knowledge_format *f, struct err *e) {
    const char *name;
    if (json_get_str(o, "dtype", &name, e) || json_get_bool(o, "log_probs", &f->log_probs, e)) return e->code;
    const struct dtype_info *info = dtype_by_name(name);
    if (!info || (info->dtype != DT_F32 && info->dtype != DT_F16 && info->dtype != DT_BF16))
        return err_set(e, ERR_DATA, "dense knowledge of type \"%.40s\": expected f32, f16 or bf16", name);
    f->dtype = info->dtype;
    if (!f->log_probs && f->temperature != 1)
        return err_set(e, ERR_DATA, "logits at temperature %g: only log-probabilities have one", f->temperature);
    return 0;
}

static int encode(struct knowledge_encoder *k, size_t rows, struct logits x, float inv_temperature, struct err *e) {
    const struct knowledge_format *f = &k->format;
    uint32_t cols = knowledge_stored_columns(f);
    struct buf *to = &k->response[0];
    size_t bytes = rows * dtype_row_bytes(f->dtype, cols);
    if (buf_reserve(to, bytes, e)) return e->code;
    size_t bad = kernel_store_logits(f->dtype, to->data + to->len, kernel_host_array(x.type, x.data), rows, cols,
                                     inv_temperature, f->log_probs);
    if (bad < rows)
        return knowledge_fail_at_row(k, bad, e,
                                     f->dtype == DT_F16 ? "the teacher's output is not finite, or too large for f16"
                                                        : knowledge_not_finite);
    to->len += bytes;
    return 0;
}

static int write_batch(struct knowledge_encoder *k, uint64_t rows, struct err *e) {
    const struct knowledge_format *f = &k->format;
    return knowledge_put_tensor(k, "teacher.logits", f->dtype, rows, knowledge_stored_columns(f), &k->response[0], e);
}

static int find(const struct knowledge_format *f, const struct batch *b, uint64_t rows, const struct tensor **t,
                struct err *e) {
    if (batch_need(b, "teacher.logits", f->dtype, 2, (uint64_t[]){rows, knowledge_stored_columns(f)}, t, e))
        return e->code;
    if ((*t)->desc.dims[0] == rows) return 0; /* batch_need takes 0 rows for any number */
    return err_set(e, ERR_DATA, "\"teacher.logits\" has %llu rows: expected %llu",
                   (unsigned long long)(*t)->desc.dims[0], (unsigned long long)rows);
}

static int check(const struct knowledge_format *f, const struct batch *b, const struct tensor *t, struct err *e) {
    uint64_t n = tensor_elems(&t->desc), bad = tensor_first_nonfinite(f->dtype, t->data, n);
    uint32_t cols = knowledge_stored_columns(f);
    if (bad == n) return 0;
    return err_set(e, ERR_DATA, "position %llu of the batch: the value of token %llu is not finite",
                   (unsigned long long)knowledge_position_of_row(b, bad / cols), (unsigned long long)(bad % cols));
}

int knowledge_check_dense(const struct knowledge_format *f, const struct batch *b, struct err *e) {
    const struct tensor *t = batch_find(b, "teacher.logits"); /* its shape was checked by knowledge_view */
    return check(f, b, t, e);
}

static int decode(struct knowledge_rows *k, const struct knowledge_format *f, const struct batch *b, uint64_t rows,
                  bool view, struct err *e) {
    const struct tensor *t;
    if (find(f, b, rows, &t, e)) return e->code;
    if (view)
        k->viewed = t->data;
    else if (check(f, b, t, e) || buf_append(&k->memory[MEM_DENSE], t->data, t->n_bytes, e))
        return e->code;
    return knowledge_append_empty(k, rows, e);
}

static double bytes(const struct knowledge_format *f) {
    return (double)dtype_row_bytes(f->dtype, knowledge_stored_columns(f));
}

const struct knowledge_response_codec knowledge_codec_dense = {.name = "dense",
                                                               .encoding = KNOW_DENSE,
                                                               .n_tensors = 1,
                                                               .text = text,
                                                               .describe = describe,
                                                               .read = read_members,
                                                               .encode = encode,
                                                               .write = write_batch,
                                                               .decode = decode,
                                                               .bytes = bytes};
