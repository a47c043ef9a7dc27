/* Prints the tensors of a segment as a table, and the parts of a model. */
#include <inttypes.h>

#include "lib/arch/arch.h"
#include "lib/cli/cli.h"
#include "lib/view/view_internal.h"

/* ---- the table --------------------------------------------------------------------------------------------------- */

/* Column widths, and whether any tensor is not stored raw. */
struct layout {
    int type, shape, bytes;
    bool stored;
};

static int larger(int a, int b) {
    return a > b ? a : b;
}

static struct layout lay_out(const struct view_row *rows, size_t n, bool all_columns) {
    struct layout x = {4, 5, 5, all_columns};
    char text[256];
    for (size_t i = 0; i < n; i++) {
        const struct view_row *r = &rows[i];
        x.type = larger(x.type, (int)strlen(dtype_info(r->desc.dtype)->name));
        x.shape = larger(x.shape, (int)strlen(tensor_shape_text(&r->desc, text, sizeof text)));
        x.bytes = larger(x.bytes, snprintf(text, sizeof text, "%" PRIu64, r->bytes));
        x.stored = x.stored || r->codec != CODEC_RAW || r->stored != r->bytes;
    }
    return x;
}

static double percent(uint64_t part, uint64_t whole) {
    return whole ? 100.0 * (double)part / (double)whole : 100;
}

static void put_row(FILE *out, const struct layout *x, const struct view_row *r) {
    char shape[256];
    fprintf(out, "%-*s  %-*s  %*" PRIu64 "  ", x->type, dtype_info(r->desc.dtype)->name, x->shape,
            tensor_shape_text(&r->desc, shape, sizeof shape), x->bytes, r->bytes);
    if (x->stored) fprintf(out, "%5.1f%%  %-6s  ", percent(r->stored, r->bytes), stream_codec_name(r->codec));
    cli_put(out, r->desc.name);
    if (r->n > 1) fprintf(out, " (in %" PRIu64 " batches)", r->n);
    fputc('\n', out);
}

void view_put_rows(FILE *out, const struct view_row *rows, size_t n, bool all_columns) {
    struct layout x = lay_out(rows, n, all_columns);
    if (!n) return;
    fprintf(out, "%-*s  %-*s  %*s  %s%s\n", x.type, "type", x.shape, "shape", x.bytes, "bytes",
            x.stored ? "stored  codec   " : "", "name");
    for (size_t i = 0; i < n; i++) put_row(out, &x, &rows[i]);
}

/* ---- the parts of a model ---------------------------------------------------------------------------------------- */

static const char *const part_names[VIEW_PARTS] = {"embedding", "lstm",   "attention", "ffn",
                                                   "experts",   "output", "other"};

/* Norms and biases belong to the layer they are in. Tensors without a role in a model count as the last part. */
static size_t part_of(const char *name) {
    static const enum model_role last[] = {ROLE_EMBED_NORM_BIAS, ROLE_LSTM_REVERSE_STATE_BIAS, ROLE_ATTN_POST_NORM_BIAS,
                                           ROLE_DOWN_OUT, ROLE_EXPERT_DOWN};
    struct model_slot slot;
    struct err ignored = {0};
    size_t part = 0;
    if (model_slot_parse(name, &slot, &ignored)) return VIEW_PARTS - 1;
    if (slot.role == ROLE_FFN_POST_NORM || slot.role == ROLE_FFN_POST_NORM_BIAS) return 3;
    while (part < COUNT_OF(last) && slot.role > last[part]) part++;
    return part;
}

void view_add_to_parts(struct view_part parts[VIEW_PARTS], const struct view_row *r) {
    struct view_part *p = &parts[part_of(r->desc.name)];
    p->elems += tensor_elems(&r->desc);
    p->bytes += r->bytes;
}

static void put_part(FILE *out, const char *name, const struct view_part *p, const struct view_part *all) {
    fprintf(out, "%-10s %13" PRIu64 " %6.1f%% %13" PRIu64 " %6.1f%% %12.3f\n", name, p->elems,
            percent(p->elems, all->elems), p->bytes, percent(p->bytes, all->bytes),
            8 * (double)p->bytes / (double)p->elems);
}

void view_put_parts(FILE *out, const struct view_part parts[VIEW_PARTS]) {
    struct view_part all = {0};
    for (size_t i = 0; i < VIEW_PARTS; i++) all.elems += parts[i].elems, all.bytes += parts[i].bytes;
    if (all.elems == parts[VIEW_PARTS - 1].elems) return; /* no tensor has a role */
    fprintf(out, "%-10s %13s %7s %13s %7s %12s\n", "part", "parameters", "share", "bytes", "share", "bits/weight");
    for (size_t i = 0; i < VIEW_PARTS; i++)
        if (parts[i].elems) put_part(out, part_names[i], &parts[i], &all);
    put_part(out, "all", &all, &all);
}
