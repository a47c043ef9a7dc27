/* Folding, from the options to the model that is written. */
#include <math.h>
#include <string.h>

#include "lib/compress/compress_internal.h"

static const char *const methods[] = {
    [FOLD_AWQ] = "awq", [FOLD_SMOOTH] = "smooth", [FOLD_R1] = "r1", [FOLD_R2] = "r2", [FOLD_PCA] = "pca"};

struct folding {
    struct cli *c;
    const struct compress_fold_options *o;
    struct fold_options how; /* for lib/fold; what it points to is below */
    struct quant_options types;
    struct compress_calibration of;
    double *axes; /* [hidden][hidden], of pca */
    size_t folded, left_out;
    double error;  /* sum of logarithms */
    char why[192]; /* of the first that was left out */
};

/* ---- what is told ------------------------------------------------------------------------------------------------ */

static int add_to_report(const struct folding *k, const struct fold_report *r, struct err *e) {
    cJSON *list = cJSON_GetObjectItemCaseSensitive(cli_report(k->c), "pairs"), *o = cJSON_CreateObject();
    bool ok = o && json_put_u64(o, "layer", r->layer) && json_put_u64(o, "expert", r->expert) &&
              json_put_str(o, "point", r->point);
    if (r->obstacle)
        ok = ok && json_put_str(o, "left_out", r->obstacle);
    else if (k->how.method == FOLD_AWQ)
        ok = ok && json_put_f64(o, "ratio", r->ratio) && json_put_f64(o, "error", r->error);
    if (ok && cJSON_AddItemToArray(list, o)) return 0;
    cJSON_Delete(o);
    return err_nomem(e, "report");
}

static int report_pair(void *ctx, const struct fold_report *r, struct err *e) {
    struct folding *k = ctx;
    if (r->obstacle) {
        if (!k->left_out++) snprintf(k->why, sizeof k->why, "layer %u, %s: %s", r->layer, r->point, r->obstacle);
        log_line(LOG_INFO, "layer %u, %s: left out: %s", r->layer, r->point, r->obstacle);
    } else {
        k->folded++;
        k->error += log(r->error > 0 ? r->error : 1);
        log_line(LOG_INFO, "layer %u, %s: ratio %.2f, error of the outputs %.4f", r->layer, r->point, r->ratio,
                 r->error);
    }
    return add_to_report(k, r, e);
}

static void say_summary(const struct folding *k) {
    if (k->how.method == FOLD_AWQ && k->folded)
        cli_say(k->c, "%zu pairs, squared error of their outputs %.3f of rounding the model as it was (geometric mean)",
                k->folded, exp(k->error / (double)k->folded));
    if (k->left_out) cli_say(k->c, "%zu left out: first %s (-v lists all)", k->left_out, k->why);
}

/* ---- what the options say ---------------------------------------------------------------------------------------- */

static int read_settings(struct folding *k, struct err *e) {
    const struct compress_fold_options *o = k->o;
    int rc = 0;
    for (size_t i = 0; i < COUNT_OF(methods); i++)
        if (!strcmp(methods[i], o->method)) k->how.method = (enum fold_method)i;
    bool awq = k->how.method == FOLD_AWQ;
    if (awq && !o->type) return err_set(e, ERR_USAGE, "--method awq needs --type");
    if (awq && !o->stats && !o->data) return err_set(e, ERR_USAGE, "--method awq needs --stats or --data");
    if ((k->how.method == FOLD_SMOOTH || k->how.method == FOLD_PCA) && !o->data)
        return err_set(e, ERR_USAGE, "--method %s needs --data", o->method);
    if (awq) rc = quant_type_parse(o->type, &k->types.type, e);
    if (!rc && o->stats) rc = compress_read_calibration(&k->of, k->c, o->stats, e);
    if (!rc && k->of.imatrix)
        rc = compress_imatrix_lacks(o->stats, "mean absolute values", "--method awq",
                                    e); /* its scales are their powers */
    /* whoever folds will have statistics of the folded model, or data: the types that the mixture gives those */
    k->types.calibrated = true;
    k->types.fuses_qkv = target_fuses_qkv, k->types.foreign_name = target_tensor_name;
    k->how.types = &k->types, k->how.stats = k->of.stats;
    k->how.seed = cli_seed(k->c), k->how.alpha = o->alpha;
    return rc;
}

/* ---- carrying it out --------------------------------------------------------------------------------------------- */

/* A reading of its own, with the data, which the other then does without. */
static int find_axes(struct folding *k, struct err *e) {
    const struct compress_fold_options *o = k->o;
    struct session_file file = {0};
    struct stream_reader *in;
    struct compress_data d = {0};
    session_file_init(&file, cli_input_path(k->c, 0));
    int rc = file.is_file ? session_file_again(&file, STREAM_MODEL, &in, e)
                          : err_set(e, ERR_USAGE, "--method pca reads the model twice: give it as a file");
    if (!rc) rc = compress_data_open(&d, k->c, in, o->data, o->max_tokens, &o->how, e);
    if (!rc) rc = session_put_precision(k->c, &o->how, model_layerwise_model(d.model), e);
    size_t n = rc ? 0 : model_layerwise_model(d.model)->config.hidden;
    struct fold_model f = {.model = d.model, .scratch = d.scratch, .in = &d.tokens.in, .n = 1};
    if (!rc && !(k->axes = mem_array(n, n * sizeof *k->axes, e))) rc = e->code;
    if (!rc) rc = fold_principal_axes(&f, k->axes, e);
    k->how.axes = k->axes;
    compress_data_release(&d);
    session_file_release(&file);
    return rc;
}

static int carry_out(struct folding *k, struct err *e) {
    const struct compress_fold_options *o = k->o;
    struct stream_reader *in;
    struct stream_writer *out;
    struct compress_data d = {0};
    bool pca = k->how.method == FOLD_PCA;
    const char *data = pca ? NULL : o->data;
    int rc = pca ? find_axes(k, e) : 0;
    if (!rc) rc = cli_open_stream(k->c, cli_input_path(k->c, 0), "model", STREAM_MODEL, &in, e);
    if (!rc) rc = compress_data_open(&d, k->c, in, data, o->max_tokens, &o->how, e);
    if (!rc && data) rc = session_put_precision(k->c, &o->how, model_layerwise_model(d.model), e);
    struct fold_model f = {.model = d.model, .scratch = d.scratch, .in = &d.tokens.in, .n = data != NULL};
    if (!rc) rc = cli_open_output(k->c, &out, e);
    if (!rc && !cJSON_AddArrayToObject(cli_report(k->c), "pairs")) rc = err_nomem(e, "report");
    if (!rc) rc = fold_model(&f, out, &k->how, report_pair, k, e);
    if (!rc) rc = cli_close_output(k->c, e);
    compress_data_release(&d);
    return rc;
}

int compress_fold(struct cli *c, const struct compress_fold_options *o, struct err *e) {
    struct folding k = {.c = c, .o = o};
    int rc = read_settings(&k, e);
    if (!rc) rc = carry_out(&k, e);
    if (!rc) say_summary(&k);
    compress_calibration_release(&k.of);
    mem_free(k.axes);
    return rc;
}
