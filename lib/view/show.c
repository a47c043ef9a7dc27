/* Prints values of tensors, and everything else in a stream, as text. */
#include <fnmatch.h>
#include <inttypes.h>
#include <math.h>

#include "lib/cli/cli.h"
#include "lib/view/view_internal.h"

enum { PIECE = 1 << 14, BINS = 20, BAR = 50 };

struct view {
    const struct view_options *o;
    FILE *out;
    struct tensor_desc desc;
    struct buf data;                             /* for --histogram, which takes two passes: the whole encoded tensor */
    struct buf first;                            /* the first values, as f64 */
    unsigned char raw[PIECE * sizeof(uint64_t)]; /* a piece as encoded; x has it as f32 */
    float x[PIECE];
    struct tensor_summary summary;
    struct view_found *found;
    uint64_t batches; /* number of the last batch whose heading was printed, plus 1 */
};

static const double *first_values(const struct view *v, size_t *n) {
    *n = v->first.len / sizeof(double);
    return (const double *)(const void *)v->first.data;
}

/* Converts elements [at, at + *n) of v->data to v->x; false at the end. Pieces are whole blocks. */
static bool values(struct view *v, uint64_t at, size_t *n) {
    uint64_t left = tensor_elems(&v->desc) - at;
    *n = left < PIECE ? (size_t)left : PIECE;
    if (*n == 0) return false;
    tensor_to_f32(v->desc.dtype, v->data.data + dtype_row_bytes(v->desc.dtype, at), v->x, *n);
    return true;
}

/* ---- values that f32 cannot represent ---- */

#define WIDE_TYPES(X)                                                                                                  \
    X(DT_F64, double, "%.17g")                                                                                         \
    X(DT_I32, int32_t, "%" PRId32)                                                                                     \
    X(DT_U32, uint32_t, "%" PRIu32)                                                                                    \
    X(DT_I64, int64_t, "%" PRId64)                                                                                     \
    X(DT_U64, uint64_t, "%" PRIu64)

/* Prints element i of the piece with enough digits to identify it. */
static void put_exactly(const struct view *v, size_t i) {
#define PUT_WIDE(dtype, type, format)                                                                                  \
    case dtype: {                                                                                                      \
        type v_;                                                                                                       \
        memcpy(&v_, v->raw + i * sizeof v_, sizeof v_);                                                                \
        fprintf(v->out, format, v_);                                                                                   \
        return;                                                                                                        \
    }
    switch (v->desc.dtype) {
        WIDE_TYPES(PUT_WIDE)
    default: fprintf(v->out, "%.9g", (double)v->x[i]);
    }
}

static double value_of(const struct view *v, size_t i) {
#define GET_WIDE(dtype, type, format)                                                                                  \
    case dtype: {                                                                                                      \
        type v_;                                                                                                       \
        memcpy(&v_, v->raw + i * sizeof v_, sizeof v_);                                                                \
        return (double)v_;                                                                                             \
    }
    switch (v->desc.dtype) {
        WIDE_TYPES(GET_WIDE)
    default: return (double)v->x[i];
    }
}

static void put_tsv(struct view *v, uint64_t at, size_t n) {
    uint64_t row = tensor_row_elems(&v->desc);
    for (size_t i = 0; i < n; i++) {
        put_exactly(v, i);
        fputc((at + i + 1) % row ? '\t' : '\n', v->out);
    }
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

/* Processes the n values of v->x, which start at element `at`. */
static int take(struct view *v, uint64_t at, size_t n, struct err *e) {
    if (v->o->tsv) {
        put_tsv(v, at, n);
        return 0;
    }
    if (v->o->stats || v->o->histogram) tensor_summarize(&v->summary, v->x, n);
    size_t keep = at >= v->o->head ? 0 : v->o->head - at < n ? (size_t)(v->o->head - at) : n;
    int rc = 0;
    for (size_t i = 0; !rc && i < keep; i++) {
        double x = value_of(v, i);
        rc = buf_append(&v->first, &x, sizeof x, e);
    }
    return rc;
}

/* Reads the next piece, as encoded and as f32; *n 0: the end. */
static int read_piece(struct view *v, struct stream_reader *r, size_t *n, struct err *e) {
    const struct dtype_info *t = dtype_info(v->desc.dtype);
    size_t got, want = PIECE / t->block_elems * t->block_bytes;
    int rc = stream_read_data(r, v->raw, want, &got, e);
    *n = rc ? 0 : got / t->block_bytes * t->block_elems;
    if (*n) tensor_to_f32(t->dtype, v->raw, v->x, *n);
    return rc;
}

/* Reads all values, or as many as are needed, in pieces. Everything shown has been verified. */
static int read_values(struct view *v, struct stream_reader *r, struct err *e) {
    bool all = v->o->tsv || v->o->stats || v->o->histogram;
    size_t n = 1;
    int rc = v->o->histogram ? stream_load_tensor(r, &v->data, e) : 0;
    v->summary = (struct tensor_summary){0};
    v->first.len = 0;
    for (uint64_t at = 0; !rc && n > 0 && (all || at < v->o->head); at += n) {
        if (v->o->histogram) {
            if (values(v, at, &n))
                memcpy(v->raw, v->data.data + dtype_row_bytes(v->desc.dtype, at), dtype_row_bytes(v->desc.dtype, n));
        } else
            rc = read_piece(v, r, &n, e);
        if (!rc) rc = take(v, at, n, e);
    }
    return rc ? rc : stream_skip_tensor(r, e);
}

static void fill_bins(struct view *v, uint64_t bins[BINS]) {
    size_t n;
    memset(bins, 0, BINS * sizeof *bins);
    for (uint64_t at = 0; values(v, at, &n); at += n) tensor_histogram(&v->summary, v->x, n, bins, BINS);
}

static void put_histogram(struct view *v) {
    uint64_t bins[BINS], most = 1;
    const struct tensor_summary *s = &v->summary;
    fill_bins(v, bins);
    for (int i = 0; i < BINS; i++) most = bins[i] > most ? bins[i] : most;
    for (int i = 0; i < BINS; i++) {
        int bar = (int)((double)bins[i] * BAR / (double)most + 0.5);
        fprintf(v->out, "  %12.5g %12" PRIu64 " %.*s\n", s->min + ((double)s->max - s->min) * i / BINS, bins[i], bar,
                "##################################################");
    }
}

static bool is_whole(const struct dtype_info *t) {
    return !t->is_float && !t->is_quantized;
}

static void put_text(struct view *v) {
    char shape[256];
    size_t n;
    const struct tensor_summary *s = &v->summary;
    cli_put(v->out, v->desc.name);
    fprintf(v->out, " %s %s\n", dtype_info(v->desc.dtype)->name, tensor_shape_text(&v->desc, shape, sizeof shape));
    if (v->o->stats)
        fprintf(v->out,
                "  min %.7g  max %.7g  mean %.7g  std %.7g  zero %" PRIu64 "  nan %" PRIu64 "  inf %" PRIu64 "\n",
                (double)s->min, (double)s->max, s->mean, tensor_summary_std(s), s->n_zero, s->n_nan, s->n_inf);
    if (v->o->histogram) put_histogram(v);
    if (v->o->stats || v->o->histogram) return;
    const double *x = first_values(v, &n);
    int digits = is_whole(dtype_info(v->desc.dtype)) ? 20 : 7;
    for (size_t i = 0; i < n; i++) fprintf(v->out, "  %.*g", digits, x[i]);
    fputs(tensor_elems(&v->desc) > v->o->head ? "  ...\n" : "\n", v->out);
}

/* Adds the counts of equal bins, and the range that they divide. */
static bool put_bins(struct view *v, cJSON *j) {
    uint64_t bins[BINS];
    cJSON *list = cJSON_AddArrayToObject(j, "histogram");
    bool ok = list && (v->o->stats || (json_put_f64(j, "min", (double)v->summary.min) &&
                                       json_put_f64(j, "max", (double)v->summary.max)));
    fill_bins(v, bins);
    for (int i = 0; ok && i < BINS; i++) ok = cJSON_AddItemToArray(list, cJSON_CreateNumber((double)bins[i]));
    return ok;
}

static int put_json(struct view *v, bool in_batch, struct err *e) {
    cJSON *j = tensor_desc_json(&v->desc), *list = cJSON_CreateArray();
    const struct tensor_summary *s = &v->summary;
    size_t n;
    bool ok = j && list && (!in_batch || json_put_u64(j, "batch", v->found->batches - 1)) &&
              cJSON_AddItemToObject(j, "values", list);
    const double *x = first_values(v, &n);
    for (size_t i = 0; ok && i < n; i++)
        ok = cJSON_AddItemToArray(list, isfinite(x[i]) ? cJSON_CreateNumber(x[i]) : cJSON_CreateNull());
    if (v->o->stats)
        ok = ok && json_put_f64(j, "min", (double)s->min) && json_put_f64(j, "max", (double)s->max) &&
             json_put_f64(j, "mean", s->mean) && json_put_f64(j, "std", tensor_summary_std(s)) &&
             json_put_u64(j, "zero", s->n_zero) && json_put_u64(j, "nan", s->n_nan) && json_put_u64(j, "inf", s->n_inf);
    if (v->o->histogram) ok = ok && put_bins(v, j);
    return cli_put_json(v->out, j, ok, e);
}

static int show_tensor(struct view *v, struct stream_reader *r, const struct stream_item *item, struct err *e) {
    v->desc = item->desc;
    v->found->tensor = true;
    int rc = read_values(v, r, e);
    if (rc || v->o->tsv) return rc;
    if (v->o->json) return put_json(v, item->in_batch, e);
    if (item->in_batch && v->batches != v->found->batches)
        fprintf(v->out, "batch %" PRIu64 "\n", v->found->batches - 1);
    v->batches = v->found->batches;
    put_text(v);
    return 0;
}

/* Prints each step once, however many segments it is in. */
static int show_prov(struct view *v, const struct stream_reader *r, struct err *e) {
    const cJSON *entry;
    cJSON_ArrayForEach(entry, stream_reader_prov(r)) {
        if (cli_put_json(v->out, cJSON_Duplicate(entry, true), true, e)) return e->code;
    }
    return 0;
}

static int show_item(struct view *v, struct stream_reader *r, const struct stream_item *item, struct err *e) {
    const struct view_options *o = v->o;
    if (item->type == ITEM_BATCH) v->found->batches++;
    if (item->type == ITEM_EOF && o->prov) return show_prov(v, r, e);
    if (item->type == ITEM_META && o->meta) return cli_put_json(v->out, cJSON_Duplicate(item->json, true), true, e);
    if (item->type == ITEM_VOCAB && o->vocab) return view_vocab(v->out, item, e);
    if (item->type != ITEM_TENSOR || o->meta || o->prov || o->vocab || fnmatch(o->glob, item->desc.name, 0)) return 0;
    if (o->batch && (!item->in_batch || v->found->batches != *o->batch + 1)) return 0;
    return show_tensor(v, r, item, e);
}

int view_show(struct stream_reader *r, FILE *to, const struct view_options *o, struct view_found *found,
              struct err *e) {
    struct stream_item item;
    struct view *v = mem_zalloc(sizeof *v, e);
    if (!v) return e->code;
    int rc = 0;
    *found = (struct view_found){.tensor = false};
    v->o = o, v->out = to, v->found = found;
    stream_reader_skim(r);
    do {
        rc = stream_next(r, &item, e);
        if (!rc) rc = show_item(v, r, &item, e);
    } while (!rc && item.type != ITEM_EOF);
    buf_release(&v->data);
    buf_release(&v->first);
    mem_free(v);
    return rc;
}
