/* Shapes for a target: their size in bytes, and judging candidates by pruning them. */
#include <errno.h>
#include <math.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lib/compress/compress_internal.h"
#include "lib/judge/judge.h"

/* ---- bytes ------------------------------------------------------------------------------------------------------- */

#define ROW 256 /* a row length that all block sizes divide */

/* Records the widest type of each role. */
static int note_type(void *ctx, struct model_slot s, const struct tensor_desc *d, const cJSON *attrs, const void *data,
                     struct err *e) {
    struct compress_sizes *z = ctx;
    enum dtype *have = &z->stored[s.role];
    (void)attrs, (void)data, (void)e;
    if (!z->seen[s.role] || dtype_row_bytes(d->dtype, ROW) > dtype_row_bytes(*have, ROW)) *have = d->dtype;
    z->seen[s.role] = true;
    return 0;
}

int compress_sizes_begin(struct compress_sizes *z, struct session_file *model, struct err *e) {
    struct model_head head = {0};
    struct stream_item item;
    struct stream_reader *in;
    if (z->type) return 0;
    if (!model->is_file)
        return err_set(e, ERR_USAGE, "--target-size reads the model twice: give it as a file, or say --target-type");
    int rc = session_file_again(model, STREAM_MODEL, &in, e);
    if (!rc) rc = model_head_read(in, &head, &item, e);
    if (!rc) rc = model_config_copy(&z->from, &head.config, &z->memory, e);
    if (!rc) rc = model_each_desc(in, &head.config, &item, note_type, z, e);
    model_head_release(&head);
    return rc;
}

/* The type as written: quantized tensors become f32 if columns are removed, or all of them with data. */
static enum dtype stored_type(const struct compress_sizes *z, struct model_slot s, uint64_t cols) {
    enum dtype is = z->stored[s.role];
    enum model_axis axis = model_role_info(s.role)->cols;
    bool narrower = axis != AXIS_ONE && model_axis_size(&z->from, axis, 0) != cols;
    return dtype_info(is)->is_quantized && (z->floats || narrower) ? DT_F32 : is;
}

static uint64_t bytes_of(const struct model_config *c, struct model_slot s, enum dtype t) {
    uint64_t dims[2] = {0};
    bool matrix = model_slot_shape(c, s, dims) == 2;
    return matrix ? dims[0] * dtype_row_bytes(t, dims[1]) : dtype_row_bytes(t, dims[0]);
}

static int quantized_bytes(const struct compress_sizes *z, const struct model_config *c, uint64_t *bytes,
                           struct err *e) {
    struct compress_quantize_options o = {.type = z->type, .method = "rtn"};
    struct quant_plan plan = {0};
    int rc = compress_make_plan(&plan, z->c, &o, c, e);
    for (size_t i = 0; !rc && i < plan.n; i++) {
        struct model_slot s = model_slot_at(c, i);
        *bytes += bytes_of(c, s, model_role_is_matrix(s.role) ? plan.choices[i].to : DT_F32);
    }
    quant_plan_release(&plan);
    return rc ? err_prefix(e, "--target-type") : 0;
}

int compress_bytes(void *ctx, const struct model_config *after, uint64_t *bytes, struct err *e) {
    const struct compress_sizes *z = ctx;
    *bytes = 0;
    if (z->type) return quantized_bytes(z, after, bytes, e);
    for (size_t i = 0; i < model_slot_count(after); i++) {
        struct model_slot s = model_slot_at(after, i);
        uint64_t dims[2] = {0}, cols = model_slot_shape(after, s, dims) == 2 ? dims[1] : 1;
        *bytes += bytes_of(after, s, stored_type(z, s, cols));
    }
    return 0;
}

void compress_sizes_release(struct compress_sizes *z) {
    arena_release(&z->memory);
}

/* ---- judging ----------------------------------------------------------------------------------------------------- */

struct judging {
    const struct compress_judging *o;
    struct prune_options how;
    struct prune_candidates *candidates;
    size_t number; /* of the candidate, from 1 */
    struct compress_judged whole;
    struct model_input said, fitted; /* tokens for judging, and for fitting */
    struct judge_reference *of;
};

/*
 * Judges on whole sequences up to the one that reaches search_tokens; 0: all. A fitted candidate must not be judged on
 * its fitting data, which it overfits the more the more there is to fit: then at most half of the sequences are for
 * judging and the rest for fitting.
 */
static int divide(struct judging *j, struct err *e) {
    const struct model_input *in = &j->whole.tokens.in;
    size_t most = j->how.calibrated ? in->n_seqs / 2 : in->n_seqs;
    uint64_t limit = j->o->options->search_tokens;
    size_t n = 0, at = 0;
    if (!most) return err_set(e, ERR_USAGE, "--candidates with --reconstruct needs two sequences of --data at least");
    while (n < most && (!limit || at < limit)) at += in->lengths[n++];
    j->said = model_input_part(in, 0, n, 0);
    j->fitted = model_input_part(in, n, in->n_seqs - n, at);
    return 0;
}

static int measure_layers(struct judging *j, struct err *e) {
    struct prune_divergence d = {.model = j->whole.model,
                                 .scratch = j->whole.scratch,
                                 .in = &j->said,
                                 .progress = compress_advance,
                                 .progress_ctx = j->o->c};
    if (!j->o->layer_divergence) return 0;
    cli_progress_begin(j->o->c, "layers", d.model->config.n_layers);
    int rc = prune_layers_alone(&d, j->o->layer_divergence, e);
    cli_progress_end(j->o->c);
    return rc;
}

/* Prunes the model by j->how into an in-memory file. */
static int prune_candidate(struct judging *j, int fd, struct prune_report *r, struct err *e) {
    struct stream_reader *in;
    struct stream_writer *w = NULL;
    struct prune_calibration p = {.scratch = j->whole.scratch, .in = &j->fitted, .n = 1};
    int rc = session_file_again(j->o->model, STREAM_MODEL, &in, e);
    if (!rc) rc = stream_writer_open(&w, fd, "a candidate", NULL, e);
    if (!rc && j->how.calibrated) {
        rc = model_layerwise_new(&p.model, kernel_cpu(), in, WEIGHTS_F32, NULL, NULL, e);
        if (!rc) rc = prune_layerwise(&p, w, &j->how, r, e);
        model_layerwise_free(p.model);
    } else if (!rc) {
        rc = prune_stream(in, w, &j->how, r, e);
    }
    if (!rc) rc = stream_writer_finish(w, NULL, e);
    stream_writer_free(w);
    return rc;
}

static int judge_written(struct judging *j, int fd, double *kl, struct err *e) {
    struct stream_reader *in = NULL;
    struct model *m = NULL;
    if (lseek(fd, 0, SEEK_SET) != 0) return err_sys(e, errno, "a candidate");
    int rc = stream_reader_open(&in, fd, "a candidate", STREAM_MODEL, e);
    if (!rc) rc = model_load(&m, kernel_cpu(), in, session_weight_format(&j->o->options->how), e);
    if (!rc) rc = judge_reference_compare(j->of, m, j->whole.scratch, kl, e);
    if (!rc && !isfinite(*kl)) rc = err_set(e, ERR_DATA, "shape %zu: the divergence is %g", j->number, *kl);
    model_free(m);
    stream_reader_free(in);
    return rc;
}

/* "24 layers of 9 heads and 768 channels"; only their number if layers differ. */
static void describe(const struct model_config *c, char *out, size_t n) {
    const struct model_layer *l = &c->layers[0];
    bool alike = true;
    for (uint32_t i = 1; i < c->n_layers; i++)
        alike &= c->layers[i].n_heads == l->n_heads && c->layers[i].n_kv_heads == l->n_kv_heads &&
                 c->layers[i].ffn == l->ffn;
    int at = snprintf(out, n, "%u layer%s", c->n_layers, c->n_layers == 1 ? "" : "s");
    if (alike)
        snprintf(out + at, n - (size_t)at, " of %u heads (%u key/value) and %u channels", l->n_heads, l->n_kv_heads,
                 l->ffn);
}

static int report_shape(struct judging *j, const struct prune_report *r, double kl, struct err *e) {
    char shape[128];
    cJSON *o = cJSON_CreateObject();
    bool ok = o && json_put_u64(o, "parameters", r->parameters_after) && json_put_u64(o, "layers", r->after.n_layers) &&
              json_put_f64(o, "divergence", kl) &&
              cJSON_AddItemToArray(cJSON_GetObjectItemCaseSensitive(cli_report(j->o->c), "shapes"), o);
    if (!ok) {
        cJSON_Delete(o);
        return err_nomem(e, "report");
    }
    describe(&r->after, shape, sizeof shape);
    cli_say(j->o->c, "shape %zu: %.2f M parameters, %s: divergence %.5f", j->number, (double)r->parameters_after / 1e6,
            shape, kl);
    return 0;
}

static int judge_shape(struct judging *j, double *kl, struct err *e) {
    struct prune_report r = {0};
    int fd = memfd_create("candidate", MFD_CLOEXEC);
    if (fd < 0) return err_sys(e, errno, "memory for a candidate");
    int rc = prune_candidate(j, fd, &r, e);
    if (!rc) rc = judge_written(j, fd, kl, e);
    if (!rc) rc = report_shape(j, &r, *kl, e);
    close(fd);
    prune_report_release(&r);
    return rc;
}

static int judge_all(struct judging *j, size_t most, struct err *e) {
    double kl;
    int rc = 0;
    cli_progress_begin(j->o->c, "shapes", most);
    for (j->number = 1; !rc && j->number <= most; j->number++) {
        rc = prune_candidates_next(j->candidates, &j->how.target_shape, e);
        if (rc || !j->how.target_shape) break;
        rc = judge_shape(j, &kl, e);
        if (!rc) prune_candidates_judged(j->candidates, kl);
        if (!rc) cli_progress(j->o->c, j->number, NULL);
    }
    cli_progress_end(j->o->c);
    return rc;
}

int compress_judge_shapes(const struct compress_judging *o, struct prune_candidates **out, struct err *e) {
    struct judging j = {.o = o, .how = *o->prune};
    struct compress_judged *whole = &j.whole;
    const struct compress_prune_options *by = o->options;
    j.how.warn = NULL, j.how.sparse = NULL;
    j.how.tokens = NULL, j.how.padding = false; /* to be compared token by token */
    int rc = compress_judged_open(whole, o->c, o->model, "--candidates", by->data, by->max_tokens, &by->how,
                                  session_weight_format(&by->how), e);
    if (!rc) rc = prune_candidates_new(out, whole->model, o->prune, by->candidates, e);
    j.candidates = *out;
    if (!rc) rc = divide(&j, e);
    if (!rc) rc = measure_layers(&j, e);
    if (!rc) rc = judge_reference_new(&j.of, whole->model, whole->scratch, &j.said, e);
    model_free(whole->model); /* free it before loading others */
    whole->model = NULL;
    if (!rc && !cJSON_AddArrayToObject(cli_report(o->c), "shapes")) rc = err_nomem(e, "report");
    if (!rc) rc = judge_all(&j, by->candidates, e);
    judge_reference_free(j.of);
    compress_judged_release(whole);
    return rc;
}
