/* rill show: prints values of tensors, and everything else in a stream, as text. */
#include <fnmatch.h>
#include <inttypes.h>
#include <math.h>

#include "lib/cli/cli.h"
#include "lib/text/text.h"

static const char *glob;
static uint64_t head, batch;
static bool stats, histogram, tsv, as_json, meta, prov, vocab;

static const struct cli_option options[] = {
    {.name = "tensor",
     .type = CLI_STRING,
     .to = &glob,
     .arg = "GLOB",
     .fallback = "*",
     .needs = {"!meta", "!prov", "!vocab"},
     .help = "the tensors to show"},
    {.name = "batch",
     .type = CLI_U64,
     .to = &batch,
     .arg = "N",
     .needs = {"!meta", "!prov", "!vocab"},
     .help = "of a data stream, the N-th batch only, from 0"},
    {.name = "head",
     .type = CLI_U64,
     .to = &head,
     .arg = "N",
     .fallback = "8",
     .needs = {"!meta", "!prov", "!vocab", "!tsv", "json|!stats", "json|!histogram"},
     .help = "first values to show"},
    {.name = "stats",
     .type = CLI_FLAG,
     .to = &stats,
     .needs = {"!meta", "!prov", "!vocab", "!tsv"},
     .help = "show range, mean, deviation and how many are zero, NaN, infinite"},
    {.name = "histogram",
     .type = CLI_FLAG,
     .to = &histogram,
     .needs = {"!meta", "!prov", "!vocab", "!tsv"},
     .help = "show a histogram of the values"},
    {.name = "tsv",
     .type = CLI_FLAG,
     .to = &tsv,
     .needs = {"!meta", "!prov", "!vocab"},
     .help = "write all values, a line for each row, and nothing else"},
    {.name = "json",
     .type = CLI_FLAG,
     .to = &as_json,
     .needs = {"!meta", "!prov", "!vocab", "!tsv"},
     .help = "write JSON, a line for each tensor; what is not finite is null"},
    {.name = "meta", .type = CLI_FLAG, .to = &meta, .help = "show the descriptions of the segments, not tensors"},
    {.name = "prov", .type = CLI_FLAG, .to = &prov, .help = "show the provenance, oldest step first, not tensors"},
    {.name = "vocab",
     .type = CLI_FLAG,
     .to = &vocab,
     .help = "show the vocabulary, not tensors: sizes, digests, the tokens with a role and those that end a text"},
    {0},
};

enum { PIECE = 1 << 14, BINS = 20, BAR = 50 };

struct view {
    FILE *out;
    struct tensor_desc desc;
    struct buf data;  /* for --histogram, which takes two passes, the whole tensor as encoded */
    struct buf first; /* the first values, as f32 */
    float x[PIECE];
    struct tensor_summary summary;
    bool found; /* a tensor that was asked for */
};

static const float *first_values(const struct view *v, size_t *n) {
    *n = v->first.len / sizeof(float);
    return (const float *)(const void *)v->first.data;
}

/* Reads elements [at, at + *n) into v->x; false at the end. Pieces are whole blocks. */
static bool values(struct view *v, uint64_t at, size_t *n) {
    uint64_t left = tensor_elems(&v->desc) - at;
    *n = left < PIECE ? (size_t)left : PIECE;
    if (*n == 0) return false;
    tensor_to_f32(v->desc.dtype, v->data.data + dtype_row_bytes(v->desc.dtype, at), v->x, *n);
    return true;
}

static void put_tsv(struct view *v, uint64_t at, size_t n) {
    uint64_t row = tensor_row_elems(&v->desc);
    for (size_t i = 0; i < n; i++) fprintf(v->out, "%.9g%c", (double)v->x[i], (at + i + 1) % row ? '\t' : '\n');
}

/* Passes on the n values of v->x, from element `at` on. */
static int take(struct view *v, uint64_t at, size_t n, struct err *e) {
    if (tsv) {
        put_tsv(v, at, n);
        return 0;
    }
    if (stats || histogram) tensor_summarize(&v->summary, v->x, n);
    size_t keep = at >= head ? 0 : head - at < n ? (size_t)(head - at) : n;
    return keep ? buf_append(&v->first, v->x, keep * sizeof *v->x, e) : 0;
}

/* Reads the values, or as many as are asked for, piece by piece. Everything shown has been verified. */
static int read_values(struct view *v, struct stream_reader *r, struct err *e) {
    bool all = tsv || stats || histogram;
    size_t n = 1;
    int rc = histogram ? stream_load_tensor(r, &v->data, e) : 0;
    v->summary = (struct tensor_summary){0};
    v->first.len = 0;
    for (uint64_t at = 0; !rc && n > 0 && (all || at < head); at += n) {
        if (histogram)
            values(v, at, &n);
        else
            rc = stream_read_f32(r, v->x, PIECE, &n, e);
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

static void put_text(struct view *v) {
    char shape[256];
    size_t n;
    const struct tensor_summary *s = &v->summary;
    cli_put(v->out, v->desc.name);
    fprintf(v->out, " %s %s\n", dtype_info(v->desc.dtype)->name, tensor_shape_text(&v->desc, shape, sizeof shape));
    if (stats)
        fprintf(v->out,
                "  min %.7g  max %.7g  mean %.7g  std %.7g  zero %" PRIu64 "  nan %" PRIu64 "  inf %" PRIu64 "\n",
                (double)s->min, (double)s->max, s->mean, tensor_summary_std(s), s->n_zero, s->n_nan, s->n_inf);
    if (histogram) put_histogram(v);
    if (stats || histogram) return;
    const float *x = first_values(v, &n);
    for (size_t i = 0; i < n; i++) fprintf(v->out, "  %.7g", (double)x[i]);
    fputs(tensor_elems(&v->desc) > head ? "  ...\n" : "\n", v->out);
}

/* Counts of equal bins, with the range that they divide. */
static bool put_bins(struct view *v, cJSON *j) {
    uint64_t bins[BINS];
    cJSON *list = cJSON_AddArrayToObject(j, "histogram");
    bool ok =
        list &&
        (stats || (json_put_f64(j, "min", (double)v->summary.min) && json_put_f64(j, "max", (double)v->summary.max)));
    fill_bins(v, bins);
    for (int i = 0; ok && i < BINS; i++) ok = cJSON_AddItemToArray(list, cJSON_CreateNumber((double)bins[i]));
    return ok;
}

static int put_json(struct view *v, struct err *e) {
    cJSON *j = tensor_desc_json(&v->desc), *list = cJSON_CreateArray();
    const struct tensor_summary *s = &v->summary;
    size_t n;
    bool ok = j && list && cJSON_AddItemToObject(j, "values", list);
    const float *x = first_values(v, &n);
    for (size_t i = 0; ok && i < n; i++)
        ok = cJSON_AddItemToArray(list, isfinite(x[i]) ? cJSON_CreateNumber((double)x[i]) : cJSON_CreateNull());
    if (stats)
        ok = ok && json_put_f64(j, "min", (double)s->min) && json_put_f64(j, "max", (double)s->max) &&
             json_put_f64(j, "mean", s->mean) && json_put_f64(j, "std", tensor_summary_std(s)) &&
             json_put_u64(j, "zero", s->n_zero) && json_put_u64(j, "nan", s->n_nan) && json_put_u64(j, "inf", s->n_inf);
    if (histogram) ok = ok && put_bins(v, j);
    return cli_put_json(v->out, j, ok, e);
}

static int show_tensor(struct view *v, struct stream_reader *r, const struct stream_item *item, struct err *e) {
    v->desc = item->desc;
    v->found = true;
    int rc = read_values(v, r, e);
    if (rc || tsv) return rc;
    if (as_json) return put_json(v, e);
    put_text(v);
    return 0;
}

static int put_role(struct view *v, const struct vocab *x, const char *role, uint32_t id, struct err *e) {
    if (id == TOKEN_NONE) return 0;
    v->data.len = 0;
    fprintf(v->out, "%s %" PRIu32 " ", role, id);
    if (vocab_spell(x, id, &v->data, e)) return e->code;
    if (v->data.len) fwrite(v->data.data, 1, v->data.len, v->out);
    fputc('\n', v->out);
    return 0;
}

static int put_roles(struct view *v, const struct vocab *x, struct err *e) {
    char digest[DIGEST_TEXT_SIZE];
    digest_text(x->digest, digest);
    bool bytes = x->kind == TEXT_BYTE_BPE;
    fprintf(v->out, "%" PRIu32 " tokens, %" PRIu32 " merges, %s%s, identity %s\n", x->n_tokens, x->n_merges,
            bytes ? "cut as " : "", bytes ? text_pre_name(x->pre) : text_kind_name(x->kind), digest);
    int rc = put_role(v, x, x->add_bos ? "bos (in front of a text)" : "bos", x->bos, e);
    if (!rc) rc = put_role(v, x, x->add_eos ? "eos (after a text)" : "eos", x->eos, e);
    for (uint32_t i = 0; !rc && i < x->n_ends; i++) rc = put_role(v, x, "end", x->ends[i], e);
    if (!rc) rc = put_role(v, x, "pad", x->pad, e);
    return rc ? rc : put_role(v, x, "unk", x->unk, e);
}

/* Unreadable records are shown as far as possible. */
static int show_vocab(struct view *v, const struct stream_item *item, struct err *e) {
    char digest[DIGEST_TEXT_SIZE];
    struct vocab *x;
    digest_text(digest_bytes(item->bytes, item->n_bytes), digest);
    fprintf(v->out, "%zu bytes, digest of the bytes %s\n", item->n_bytes, digest);
    int rc = vocab_unpack(&x, item->bytes, item->n_bytes, e);
    if (rc == ERR_DATA) {
        fprintf(v->out, "%s\n", e->msg);
        return 0;
    }
    if (rc) return rc;
    rc = put_roles(v, x, e);
    vocab_free(x);
    return rc;
}

/* Each step once, however many segments it is in. */
static int show_prov(struct view *v, const struct stream_reader *r, struct err *e) {
    const cJSON *entry;
    cJSON_ArrayForEach(entry, stream_reader_prov(r)) {
        if (cli_put_json(v->out, cJSON_Duplicate(entry, true), true, e)) return e->code;
    }
    return 0;
}

static int show_item(struct cli *c, struct view *v, struct stream_reader *r, const struct stream_item *item,
                     uint64_t batches, struct err *e) {
    bool tensors = !meta && !prov && !vocab;
    if (item->type == ITEM_EOF && prov) return show_prov(v, r, e);
    if (item->type == ITEM_META && meta) return cli_put_json(v->out, cJSON_Duplicate(item->json, true), true, e);
    if (item->type == ITEM_VOCAB && vocab) return show_vocab(v, item, e);
    if (item->type != ITEM_TENSOR || !tensors || fnmatch(glob, item->desc.name, 0)) return 0;
    if (cli_given(c, "batch") && (!item->in_batch || batches != batch + 1)) return 0;
    return show_tensor(v, r, item, e);
}

/* A tensor or batch that was asked for but does not exist is an error. */
static int check_found(const struct cli *c, const struct view *v, uint64_t batches, struct err *e) {
    if (v->found) return 0;
    if (cli_given(c, "batch") && batches <= batch)
        return err_set(e, ERR_USAGE, "--batch %" PRIu64 ": there are %" PRIu64 " batches", batch, batches);
    if (cli_given(c, "tensor"))
        return err_set(e, ERR_USAGE, "--tensor '%s': no tensor has such a name (rill ls lists them)", glob);
    return 0;
}

static int run(struct cli *c, struct err *e) {
    struct stream_reader *r;
    struct stream_item item;
    uint64_t batches = 0;
    struct view *v = mem_zalloc(sizeof *v, e);
    if (!v) return e->code;
    int rc = cli_open_stream(c, cli_input_path(c, 0), "stdin", STREAM_ANY, &r, e);
    if (!rc) rc = cli_text(c, &v->out, e);
    if (!rc) stream_reader_skim(r);
    do {
        if (!rc) rc = stream_next(r, &item, e);
        if (!rc) batches += item.type == ITEM_BATCH;
        if (!rc) rc = show_item(c, v, r, &item, batches, e);
    } while (!rc && item.type != ITEM_EOF);
    if (!rc) rc = check_found(c, v, batches, e);
    buf_release(&v->data);
    buf_release(&v->first);
    mem_free(v);
    return rc;
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "show",
        .summary = "print values of tensors, descriptions and provenance",
        .operands = "[FILE]",
        .max_operands = 1,
        .reads_stdin = true,
        .writes_text = true,
        .description =
            "Prints the first values of each tensor; with --stats or --histogram a summary instead. Quantized values "
            "are shown as the numbers that they stand for. --tsv writes all values, for other programs.\n\nIn a "
            "regular file, data that is not shown is not verified; use check for that.",
        .examples = "rill show --tensor 'layers.0.*' --stats model.rill\n"
                    "    range, mean and deviation of the first layer's tensors\n"
                    "rill show --tensor norm.weight --tsv model.rill > norm.tsv\n"
                    "    all values of one tensor\n"
                    "rill show --prov model.rill\n"
                    "    who made this, from what\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
