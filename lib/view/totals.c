/* Prints the totals of a stream. */
#include <inttypes.h>

#include "lib/view/view.h"

static void put_count(FILE *out, uint64_t n, const char *what) {
    fprintf(out, "%" PRIu64 " %s%s", n, what, n == 1 ? "" : "s");
}

static void put_batches(FILE *out, uint64_t n) {
    fprintf(out, "%" PRIu64 " batch%s, ", n, n == 1 ? "" : "es");
}

void view_put_totals(FILE *out, const struct stream_totals *t) {
    char digest[DIGEST_TEXT_SIZE];
    digest_text(t->digest, digest);
    if (t->segments > 1) {
        put_count(out, t->segments, "segment");
        fputs(", ", out);
    }
    if (t->batches) {
        put_batches(out, t->batches);
        put_count(out, t->positions, "position");
        fputs(", ", out);
    }
    put_count(out, t->tensors, "tensor");
    fprintf(out, ", %" PRIu64 " bytes of data, %" PRIu64 " bytes in all, %s\n", t->raw_bytes, t->bytes, digest);
}
