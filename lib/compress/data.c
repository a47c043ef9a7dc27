/* Loads a model and calibration tokens, for layer-by-layer changes or for judging the model as a whole. */
#include <string.h>

#include "lib/compress/compress_internal.h"

void compress_advance(void *cli, uint32_t done) {
    cli_progress(cli, done, NULL);
}

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

int compress_open_first(const struct session_file *model, const char *why, struct session_file *own,
                        struct stream_reader **in, struct err *e) {
    if (!model->is_file) return err_set(e, ERR_USAGE, "%s reads the model twice: give it as a file", why);
    *own = (struct session_file){.is_file = true, .path = model->path, .name = model->name};
    return session_file_again(own, STREAM_MODEL, in, e);
}

int compress_judged_open(struct compress_judged *j, struct cli *c, const struct session_file *model, const char *why,
                         const char *data, uint64_t limit, const struct session_options *how,
                         enum model_weight_format format, struct err *e) {
    struct session_file own = {0};
    struct stream_reader *in;
    int rc = compress_open_first(model, why, &own, &in, e);
    if (!rc) rc = model_load(&j->model, kernel_cpu(), in, format, e);
    session_file_release(&own);
    if (!rc) rc = session_read_tokens(c, data, "data", j->model, limit, &j->tokens, e);
    return rc ? rc : grad_tape_new(&j->scratch, kernel_cpu(), false, session_precision(how), e);
}

void compress_judged_release(struct compress_judged *j) {
    grad_tape_free(j->scratch);
    session_tokens_release(&j->tokens);
    model_free(j->model);
}
