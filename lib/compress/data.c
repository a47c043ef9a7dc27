/* A model and the tokens that it goes through layer by layer. */
#include "lib/compress/compress_internal.h"

int compress_data_open(struct compress_data *d, struct cli *c, struct stream_reader *in, const char *path,
                       uint64_t max_tokens, const struct session_options *how, struct err *e) {
    int rc = model_layerwise_new(&d->model, kernel_cpu(), in, WEIGHTS_F32, NULL, NULL, e);
    if (!rc && path)
        rc = session_read_tokens(c, path, "data", model_layerwise_model(d->model), max_tokens, &d->tokens, e);
    return rc ? rc : grad_tape_new(&d->scratch, kernel_cpu(), false, path ? session_precision(how) : DT_F32, e);
}

void compress_data_release(struct compress_data *d) {
    grad_tape_free(d->scratch);
    model_layerwise_free(d->model);
    session_tokens_release(&d->tokens);
}
