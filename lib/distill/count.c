/* Computes the extent of an epoch from the lengths of its sequences alone. */
#include <string.h>

#include "lib/distill/distill_internal.h"

/* Applies the rules of trainer_step and knowledge_next_pass, one sequence at a time. */
struct counter {
    const struct distill_options *o;
    struct distill_extent *x;
    uint64_t step, pass, open; /* positions of the current step, pass and open sequence */
    uint64_t most, pack;       /* pack size of the data, 0: no packs; positions of the current pack */
};

static void end_pass(struct counter *c) {
    if (c->pass > c->x->largest_pass) c->x->largest_pass = c->pass;
    c->x->passes += c->pass > 0;
    c->pass = 0;
}

static void end_step(struct counter *c) {
    end_pass(c);
    c->x->steps += c->step > 0;
    c->step = 0;
}

static void count_sequence(struct counter *c, uint64_t n) {
    bool begins = knowledge_begins_pack(c->most, &c->pack, n);
    if (c->most && begins && c->step >= c->o->batch_tokens) end_step(c);
    if (c->pass && c->pass + n > c->o->micro_tokens) end_pass(c);
    c->pass += n;
    c->step += n;
    c->x->positions += n;
    if (!c->most && c->step >= c->o->batch_tokens) end_step(c);
}

static void count_batch(struct counter *c, const struct stream_batch *head, const uint32_t *lengths) {
    for (uint32_t i = 0; i < head->n_seqs; i++) {
        uint64_t n = lengths[i] + c->open;
        c->open = i + 1 == head->n_seqs && (head->flags & BATCH_CONTINUES) ? n : 0;
        if (c->open) break;
        count_sequence(c, n);
    }
}

int distill_count(struct stream_reader *r, const struct distill_options *o, struct distill_extent *x, struct err *e) {
    struct knowledge_format f;
    struct counter c = {.o = o, .x = x};
    struct stream_batch head = {0};
    struct stream_item item;
    struct buf lengths = {0};
    int rc;
    *x = (struct distill_extent){0};
    if (knowledge_meta_get(stream_reader_meta(r), &f, e)) return err_prefix(e, "%s", stream_reader_name(r));
    c.most = f.pack;
    while (!(rc = stream_next(r, &item, e)) && item.type != ITEM_EOF) {
        if (item.type == ITEM_BATCH) head = item.batch;
        if (item.type != ITEM_TENSOR || !item.in_batch || strcmp(item.desc.name, "lengths") != 0) continue;
        lengths.len = 0;
        rc = stream_load_tensor(r, &lengths, e);
        if (rc) break;
        if (item.desc.dtype == DT_U32 && lengths.len == head.n_seqs * sizeof(uint32_t))
            count_batch(&c, &head, (const uint32_t *)lengths.data); /* errors are reported by training */
    }
    buf_release(&lengths);
    if (rc) return rc;
    end_step(&c); /* the last step of an epoch takes what is left */
    return x->steps ? 0 : err_set(e, ERR_DATA, "%s holds no sequences", stream_reader_name(r));
}
