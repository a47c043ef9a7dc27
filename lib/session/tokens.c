/* Loads all tokens of a stream into memory, for methods that use the data several times. */
#include "lib/session/session.h"

static int add_batch(struct session_tokens *t, const struct batch *b, uint64_t limit, const char *name, struct err *e) {
    uint64_t room = limit ? limit - t->in.n_positions : UINT64_MAX, n = 0;
    const uint32_t *lengths = batch_lengths(b);
    size_t n_seqs = 0;
    if (b->head.first_pos || (b->head.flags & BATCH_CONTINUES))
        return err_set(e, ERR_DATA, "%s: sequences run over several batches (tokenize --context N)", name);
    while (n_seqs < b->head.n_seqs && n < room) n += lengths[n_seqs++];
    int rc = buf_append(&t->tokens, batch_tokens(b), n * sizeof(uint32_t), e);
    if (!rc) rc = buf_append(&t->lengths, lengths, n_seqs * sizeof(uint32_t), e);
    t->in.n_positions += n;
    t->in.n_seqs += n_seqs;
    return rc;
}

int session_read_tokens(struct cli *c, const char *path, const char *role, const struct model *m, uint64_t limit,
                        struct session_tokens *t, struct err *e) {
    struct session_data d = {0};
    struct batch b = {0};
    bool more = true;
    int rc = session_open_data(c, path, role, STREAM_ANY, m, &d, e);
    const char *name = rc ? "" : stream_reader_name(d.stream);
    *t = (struct session_tokens){0};
    while (!rc && more) {
        rc = knowledge_read(d.stream, &d.format, &b, &more, e);
        if (!rc && more && (!limit || t->in.n_positions < limit)) rc = add_batch(t, &b, limit, name, e);
    }
    if (!rc && !t->in.n_positions) rc = err_set(e, ERR_DATA, "%s: no tokens", name);
    t->in.tokens = (const uint32_t *)(const void *)t->tokens.data;
    t->in.lengths = (const uint32_t *)(const void *)t->lengths.data;
    batch_release(&b);
    session_data_release(&d);
    return rc;
}

void session_tokens_release(struct session_tokens *t) {
    buf_release(&t->tokens);
    buf_release(&t->lengths);
    *t = (struct session_tokens){0};
}
