/* How large knowledge will be, before anything is run. */
#include <stdio.h>

#include "lib/session/session.h"

struct sizes {
    const struct knowledge_format *f;
    double positions;                                       /* tokens so far */
    double response, fields[KNOWLEDGE_MAX_FIELDS], sampled; /* bytes; sampled: of the positions' numbers */
    uint64_t open;                                          /* positions of an open sequence so far */
};

static void add_sequence(struct sizes *s, uint64_t length) {
    const struct knowledge_format *f = s->f;
    uint64_t sampled = f->tap_positions < length ? f->tap_positions : length;
    s->positions += (double)length;
    s->response += knowledge_response_bytes(f, length);
    if (f->tap_positions) s->sampled += (double)(sampled * sizeof(uint32_t));
    for (uint32_t i = 0; i < f->n_fields; i++) s->fields[i] += knowledge_field_bytes(&f->fields[i], length, sampled);
}

static void add_batch(struct sizes *s, const struct batch *b) {
    const uint32_t *lengths = batch_lengths(b);
    for (uint32_t i = 0; i < b->head.n_seqs; i++) {
        s->open += lengths[i];
        if (i + 1 == b->head.n_seqs && (b->head.flags & BATCH_CONTINUES)) break;
        add_sequence(s, s->open);
        s->open = 0;
    }
}

static void print_line(const struct sizes *s, const char *name, const char *how, double bytes, FILE *out) {
    fprintf(out, "%-16s %-10s %14.1f %18.0f\n", name, how, s->positions > 0 ? bytes / s->positions : 0, bytes);
}

static void print(const struct sizes *s, FILE *out) {
    char encoding[64];
    double all = s->response + s->sampled;
    fprintf(out, "%-16s %-10s %14s %18s\n", "field", "as", "bytes a token", "bytes");
    if (s->f->encoding)
        print_line(s, "response", knowledge_encoding_text(s->f, encoding, sizeof encoding), s->response, out);
    for (uint32_t i = 0; i < s->f->n_fields; all += s->fields[i++])
        print_line(s, s->f->fields[i].name, dtype_info(s->f->fields[i].dtype)->name, s->fields[i], out);
    if (s->f->tap_positions) print_line(s, "positions", "u32", s->sampled, out);
    print_line(s, "sum", "", all, out);
    const char *note = s->f->encoding == KNOW_SAMPLE ? "; draws are counted at their most and mostly take less"
                       : s->f->encoding == KNOW_TOPP ? "; top-p is counted as a typical size"
                                                     : "";
    fprintf(out, "%.0f tokens%s\n", s->positions, note);
}

int session_print_sizes(const struct knowledge_format *f, struct stream_reader *tokens, FILE *out, struct err *e) {
    struct sizes s = {.f = f};
    struct batch b = {0};
    bool more = true;
    int rc = 0;
    while (!(rc = batch_read(tokens, &b, &more, e)) && more) add_batch(&s, &b);
    batch_release(&b);
    if (!rc) print(&s, out);
    return rc;
}
