/* rill check: reads whole streams and verifies everything in them. */
#include <inttypes.h>

#include "lib/cli/cli.h"
#include "lib/view/view.h"

static bool finite;

static const struct cli_option options[] = {
    {.name = "finite",
     .type = CLI_FLAG,
     .to = &finite,
     .help = "also fail (exit code 4) if a value is NaN or infinite"},
    {0},
};

enum { PIECE = 1 << 20 };

/* Reads in pieces. Compressed data is decompressed, too, because checksums are of the compressed bytes. */
static int check_tensor(struct stream_reader *r, const struct tensor_desc *d, unsigned char *piece, struct err *e) {
    const struct dtype_info *t = dtype_info(d->dtype);
    size_t want = PIECE / t->block_bytes * t->block_bytes, got = 1;
    for (uint64_t at = 0; got > 0; at += got / t->block_bytes * t->block_elems) {
        if (stream_read_data(r, piece, want, &got, e)) return e->code;
        uint64_t n = got / t->block_bytes * t->block_elems;
        uint64_t bad = finite ? tensor_first_nonfinite(d->dtype, piece, n) : n;
        if (bad < n)
            return err_set(e, ERR_CHECK, "%s: tensor '%s': element %" PRIu64 " is not finite", stream_reader_name(r),
                           d->name, at + bad);
    }
    return 0;
}

static int check_batch(struct stream_reader *r, struct batch *b, const struct stream_item *item, struct err *e) {
    if (batch_load(r, b, item, e)) return e->code;
    for (uint32_t i = 0; finite && i < b->head.n_tensors; i++) {
        const struct tensor *t = &b->tensors[i];
        uint64_t n = tensor_elems(&t->desc), bad = tensor_first_nonfinite(t->desc.dtype, t->data, n);
        if (bad < n)
            return err_set(e, ERR_CHECK,
                           "%s: batch of sequence %" PRIu64 ": tensor '%s': element %" PRIu64 " is not finite",
                           stream_reader_name(r), b->head.first_seq, t->desc.name, bad);
    }
    return 0;
}

static int check_stream(struct stream_reader *r, unsigned char *piece, struct batch *b, struct err *e) {
    struct stream_item item;
    do {
        if (stream_next(r, &item, e)) return e->code;
        if (item.type == ITEM_TENSOR && check_tensor(r, &item.desc, piece, e)) return e->code;
        if (item.type == ITEM_BATCH && check_batch(r, b, &item, e)) return e->code;
    } while (item.type != ITEM_EOF);
    return 0;
}

static void say_ok(const struct cli *c, const struct stream_reader *r, FILE *out) {
    struct stream_totals t;
    if (cli_quiet(c)) return;
    stream_reader_totals(r, &t);
    cli_put(out, stream_reader_name(r));
    fputs(": OK, ", out);
    view_put_totals(out, &t);
}

static int run(struct cli *c, struct err *e) {
    struct stream_reader *r;
    struct batch b = {0};
    FILE *out;
    unsigned char *piece = mem_alloc(PIECE, e);
    int rc = piece ? cli_text(c, &out, e) : e->code;
    size_t n = cli_operands(c) ? cli_operands(c) : 1;
    for (size_t i = 0; !rc && i < n; i++) {
        rc = cli_open_stream(c, cli_input_path(c, i), "stdin", STREAM_ANY, &r, e);
        if (!rc) rc = check_stream(r, piece, &b, e);
        if (!rc) say_ok(c, r, out);
    }
    batch_release(&b);
    mem_free(piece);
    return rc;
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "check",
        .summary = "verify streams",
        .operands = "[FILE...]",
        .max_operands = -1,
        .reads_stdin = true,
        .writes_text = true,
        .threaded = true,
        .description =
            "Reads each stream to its end and verifies all of it: checksums, order, counts, the index, that compressed "
            "data decodes, and that the sequences in the batches are consecutive. Prints a line with OK, the totals "
            "and the digest of the content for each stream, or nothing with -q.\n\nThe exit code is 3 if a stream is "
            "damaged, truncated or otherwise malformed, and 4 if --finite finds a NaN or an infinity.",
        .examples = "rill check model.rill\n"
                    "    is this file intact?\n"
                    "rill check -q --finite model.rill\n"
                    "    the same in a script, checking the values too\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
