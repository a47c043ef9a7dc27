/* Checks that consecutive batches fit together, including sequences cut into pieces. */
#include "lib/knowledge/knowledge_internal.h"

int knowledge_cursor_step(struct knowledge_cursor *c, const struct stream_batch *head, const uint32_t *lengths,
                          struct err *e) {
    unsigned long long seq = head->first_seq, pos = head->first_pos;
    if (c->open && (seq != c->seq || pos != c->pos))
        return err_set(e, ERR_DATA,
                       "batch begins at sequence %llu, position %llu: expected it to go on with %llu, position %llu",
                       seq, pos, (unsigned long long)c->seq, (unsigned long long)c->pos);
    if (!c->open && pos)
        return err_set(e, ERR_DATA, "batch begins at position %llu of sequence %llu, whose beginning is missing", pos,
                       seq);
    c->open = head->flags & BATCH_CONTINUES;
    c->seq = head->first_seq + head->n_seqs - 1;
    c->pos = (head->n_seqs == 1 ? head->first_pos : 0) + lengths[head->n_seqs - 1];
    return 0;
}

int knowledge_cursor_end(const struct knowledge_cursor *c, struct err *e) {
    if (!c->open) return 0;
    return err_set(e, ERR_DATA, "the stream ends inside sequence %llu, after %llu positions",
                   (unsigned long long)c->seq, (unsigned long long)c->pos);
}
