/* Estimates the size of knowledge without running the teacher. */
#include <stdio.h>

#include "lib/session/session.h"

struct sizes {
    const struct knowledge_format *f;
    double positions, counted;                              /* all tokens so far, and counted ones */
    double response, fields[KNOWLEDGE_MAX_FIELDS], sampled; /* bytes; sampled: of teacher.positions */
    bool all_rows;
    struct knowledge_rows rows;
    struct buf flags;
};

int session_count_positions(const struct knowledge_format *tokens, enum stream_target target,
                            const struct knowledge_rows *rows, size_t n_seqs, size_t n_positions, struct buf *counted,
                            bool *some, struct err *e) {
    *some = tokens->target == target && target != TARGET_SEQUENCE; /* otherwise labels are not of this target */
    if (!*some) return 0;
    if (buf_reserve(counted, n_positions, e)) return e->code;
    *some =
        knowledge_count_positions(target, n_seqs, rows->lengths, rows->mask, rows->labels, counted->data) < n_positions;
    return 0;
}

static void add_sequence(struct sizes *s, struct knowledge_extent x) {
    const struct knowledge_format *f = s->f;
    x.sampled = f->tap_positions < x.counted ? f->tap_positions : x.counted;
    s->positions += (double)x.length;
    s->counted += (double)x.counted;
    s->response += knowledge_response_bytes(f, x.counted);
    if (f->tap_positions) s->sampled += (double)(x.sampled * sizeof(uint32_t));
    for (uint32_t i = 0; i < f->n_fields; i++) s->fields[i] += knowledge_field_bytes(&f->fields[i], &x);
}

/* Adds all complete sequences of the queue. */
static int add_queue(struct sizes *s, const struct knowledge_format *tokens, struct err *e) {
    const struct knowledge_rows *k = &s->rows;
    size_t n_seqs = knowledge_whole_seqs(k), n = 0, at = 0;
    bool some = false;
    for (size_t i = 0; i < n_seqs; i++) n += k->lengths[i];
    if (!s->all_rows && session_count_positions(tokens, s->f->target, k, n_seqs, n, &s->flags, &some, e))
        return e->code;
    for (size_t i = 0; i < n_seqs; at += k->lengths[i++]) {
        struct knowledge_extent x = {.length = k->lengths[i]};
        for (size_t t = 0; t < x.length; t++) {
            if (some && !s->flags.data[at + t]) continue;
            x.counted++;
            x.reach += t + 1;
        }
        add_sequence(s, x);
    }
    knowledge_drop(&s->rows, tokens, n_seqs);
    return 0;
}

static void print_line(const struct sizes *s, const char *name, const char *how, double bytes, FILE *out) {
    fprintf(out, "%-16s %-10s %14.1f %18.0f\n", name, how, s->positions > 0 ? bytes / s->positions : 0, bytes);
}

static void print(const struct sizes *s, FILE *out) {
    char encoding[64];
    double flags = s->counted < s->positions ? s->positions : 0, all = s->response + s->sampled + flags;
    fprintf(out, "%-16s %-10s %14s %18s\n", "field", "as", "bytes a token", "bytes");
    if (s->f->encoding)
        print_line(s, "response", knowledge_encoding_text(s->f, encoding, sizeof encoding), s->response, out);
    for (uint32_t i = 0; i < s->f->n_fields; all += s->fields[i++])
        print_line(s, s->f->fields[i].name, dtype_info(s->f->fields[i].dtype)->name, s->fields[i], out);
    if (s->f->tap_positions) print_line(s, "positions", "u32", s->sampled, out);
    if (flags > 0) print_line(s, "counted", "u8", flags, out);
    print_line(s, "sum", "", all, out);
    const char *note = s->f->encoding == KNOW_SAMPLE ? "; draws are counted at their most and mostly take less"
                       : s->f->encoding == KNOW_TOPP ? "; top-p is counted as a typical size"
                                                     : "";
    fprintf(out, "%.0f tokens", s->positions);
    if (flags > 0) fprintf(out, ", %.0f of them count", s->counted);
    fprintf(out, "%s\n", note);
}

int session_print_sizes(const struct knowledge_format *f, struct session_data *tokens, bool all_rows, FILE *out,
                        struct err *e) {
    struct sizes s = {.f = f, .all_rows = all_rows};
    struct batch b = {0};
    bool more = true;
    int rc = 0;
    while (!rc && !(rc = knowledge_read(tokens->stream, &tokens->format, &b, &more, e)) && more) {
        rc = knowledge_decode(&s.rows, &tokens->format, &b, e);
        if (rc)
            err_prefix(e, "%s", stream_reader_name(tokens->stream));
        else
            rc = add_queue(&s, &tokens->format, e);
    }
    if (!rc && knowledge_decode_end(&s.rows, e)) rc = err_prefix(e, "%s", stream_reader_name(tokens->stream));
    if (!rc) print(&s, out);
    batch_release(&b);
    knowledge_rows_release(&s.rows);
    buf_release(&s.flags);
    return rc;
}
