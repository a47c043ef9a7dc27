/* Loads the model that --model names, or only its vocabulary, and resolves --precision. */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/session/session.h"

static const char *chosen(const struct session_options *o) {
    if (strcmp(o->precision, "auto") != 0) return o->precision;
    if (!kernel_has_bf16()) return "f32";
    return o->auto_int8 && (!o->at_once || *o->at_once <= kernel_backend().int8_rows) ? "int8" : "bf16";
}

const char *session_role(const struct session_options *o) {
    return o->role ? o->role : "model";
}

enum dtype session_precision(const struct session_options *o) {
    return strcmp(chosen(o), "f32") != 0 ? DT_BF16 : DT_F32;
}

int session_put_precision(struct cli *c, const struct session_options *o, const struct model *m, struct err *e) {
    const char *name = chosen(o);
    if (!strcmp(name, "int8") && !m->n_int8) {
        if (!strcmp(o->precision, "int8"))
            return err_set(e, ERR_USAGE, "%s: no weights are of a type that --precision int8 is for (rill quantize)",
                           strcmp(o->model, "-") != 0 ? o->model : "standard input");
        name = "bf16"; /* if no weights are quantized */
    }
    char key[32] = "precision";
    if (o->role) snprintf(key, sizeof key, "%s-precision", o->role);
    bool ok = json_put_str(cli_report(c), key, name) && json_put_str(cli_settings(c), key, name);
    return ok ? 0 : err_nomem(e, "report");
}

enum model_weight_format session_weight_format(const struct session_options *o) {
    if (!strcmp(chosen(o), "int8")) return WEIGHTS_INT8;
    return session_precision(o) == DT_BF16 ? WEIGHTS_PACKED : WEIGHTS_F32;
}

int session_set_kv_cache(const struct session_options *o, struct model *m, struct err *e) {
    if (!o->kv_cache) return 0;
    struct model_kv_cache how = {.dtype = dtype_by_name(o->kv_cache)->dtype,
                                 .rotated = !o->kv_plain,
                                 .interleaved = o->kv_interleaves && o->kv_interleaves(&m->config)};
    if (model_set_kv_cache(m, &how, e)) return err_prefix(e, "--kv-cache");
    if (!o->kv_plain || m->config.head_dim % 64 == 0) return 0;
    return err_set(e, ERR_USAGE, "--kv-plain has no effect: heads of %u elements are not rotated", m->config.head_dim);
}

int session_load_model_totals(struct cli *c, const struct session_options *o, enum model_weight_format format,
                              struct model **out, struct stream_totals *totals, struct err *e) {
    struct stream_reader *r;
    if (cli_open_stream(c, o->model, session_role(o), STREAM_MODEL, &r, e) ||
        model_load(out, kernel_cpu(), r, format, e))
        return e->code;
    stream_reader_totals(r, totals);
    if (session_set_kv_cache(o, *out, e)) return e->code;
    return session_put_precision(c, o, *out, e);
}

int session_load_model(struct cli *c, const struct session_options *o, enum model_weight_format format,
                       struct model **out, struct digest *digest, struct err *e) {
    struct stream_totals totals = {0};
    int rc = session_load_model_totals(c, o, format, out, &totals, e);
    if (digest) *digest = totals.digest;
    return rc;
}

static int keep_meta(const cJSON *from, cJSON **meta, struct err *e) {
    if (meta && !(*meta = cJSON_Duplicate(from, true))) return err_nomem(e, "META");
    return 0;
}

static int vocab_from_pipe(struct cli *c, const struct session_options *o, struct vocab **v, cJSON **meta,
                           struct err *e) {
    struct stream_reader *r;
    struct stream_item item = {.type = ITEM_META};
    int rc = cli_open_stream(c, o->model, session_role(o), STREAM_ANY, &r, e);
    while (!rc && item.type != ITEM_VOCAB && item.type != ITEM_EOF) rc = stream_next(r, &item, e);
    if (rc) return rc;
    if (item.type == ITEM_EOF)
        return err_set(e, ERR_DATA, "%s: there is no tokenizer in it (rill import --tokenizer FILE)",
                       stream_reader_name(r));
    if (vocab_unpack(v, item.bytes, item.n_bytes, e)) return err_prefix(e, "%s", stream_reader_name(r));
    return keep_meta(stream_reader_meta(r), meta, e);
}

int session_load_vocab(struct cli *c, const struct session_options *o, struct vocab **out, cJSON **meta,
                       struct err *e) {
    struct stat st;
    struct stream_map *m;
    const void *bytes = NULL;
    size_t n = 0;
    if (stat(o->model, &st) != 0 || !S_ISREG(st.st_mode)) return vocab_from_pipe(c, o, out, meta, e);
    int rc = cli_open_map(c, o->model, session_role(o), STREAM_ANY, &m, e);
    if (!rc) rc = stream_map_vocab(m, &bytes, &n, e);
    if (rc) return rc;
    if (!n) return err_set(e, ERR_DATA, "%s: there is no tokenizer in it (rill import --tokenizer FILE)", o->model);
    if (vocab_unpack(out, bytes, n, e)) return err_prefix(e, "%s", o->model);
    return keep_meta(stream_map_meta(m), meta, e);
}
