/* Lists what is in a stream, one line per part. */
#include <inttypes.h>

#include "lib/cli/cli.h"
#include "lib/text/text.h"
#include "lib/view/view_internal.h"

/* Rows collected before a table is printed: longer lists get several tables. */
enum { MOST_ROWS = 1 << 14 };

struct list {
    const struct view_list_options *o;
    FILE *out;
    bool facts; /* the line of facts is not finished */
    struct stream_reader *in;
    struct view_row *names; /* by tensor name, for the batches of the segment: [BATCH_MAX_TENSORS] */
    size_t n_names;
    struct buf rows; /* struct view_row, not printed yet */
    bool is_model;   /* of this segment */
    struct view_part parts[VIEW_PARTS];
};

static int put_meta(struct list *l, const struct stream_item *item, struct err *e) {
    if (l->o->json) {
        cJSON *j = cJSON_CreateObject(), *meta = cJSON_Duplicate(item->json, true);
        return cli_put_json(l->out, j, json_put_str(j, "type", "segment") && cJSON_AddItemToObject(j, "meta", meta), e);
    }
    cli_put_facts(l->out, item->json);
    l->facts = true;
    l->is_model = l->in && stream_reader_kind(l->in) == STREAM_MODEL;
    return 0;
}

/* Prints the tokens that end a generation. Ignores a vocabulary that cannot be read: check reports it. */
static int put_vocab(const struct list *l, const struct stream_item *item, struct err *e) {
    uint32_t ends[TEXT_MAX_ENDS + 1], n = 0;
    if (vocab_read_ends(item->bytes, item->n_bytes, ends, &n, e)) return 0;
    cJSON *j = cJSON_CreateObject();
    bool ok = j && (!l->o->json || (json_put_str(j, "type", "vocabulary") && json_put_u64(j, "bytes", item->n_bytes)));
    cJSON *list = ok ? cJSON_AddArrayToObject(j, "ends") : NULL;
    ok = list != NULL;
    for (uint32_t i = 0; ok && i < n; i++) {
        cJSON *x = cJSON_CreateNumber(ends[i]);
        ok = x && cJSON_AddItemToArray(list, x);
    }
    if (l->o->json) return cli_put_json(l->out, j, ok, e);
    if (ok) cli_put_facts(l->out, j);
    cJSON_Delete(j);
    return ok ? 0 : err_nomem(e, "vocabulary");
}

static void put_table(struct list *l) {
    view_put_rows(l->out, (const struct view_row *)(const void *)l->rows.data, l->rows.len / sizeof(struct view_row),
                  l->o->batches);
    l->rows.len = 0;
}

static int put_row(struct list *l, const struct view_row *x, const cJSON *attrs, struct err *e) {
    if (!l->o->json) {
        if (l->is_model) view_add_to_parts(l->parts, x);
        if (l->rows.len == MOST_ROWS * sizeof *x) put_table(l);
        return buf_append(&l->rows, x, sizeof *x, e);
    }
    cJSON *j = tensor_desc_json(&x->desc);
    bool ok = json_put_str(j, "type", "tensor") && json_put_u64(j, "bytes", x->bytes) &&
              json_put_u64(j, "stored", x->stored) && json_put_str(j, "codec", stream_codec_name(x->codec)) &&
              json_put_u64(j, "batches", x->n);
    if (attrs) ok = ok && cJSON_AddItemToObject(j, "attrs", cJSON_Duplicate(attrs, true));
    return cli_put_json(l->out, j, ok, e);
}

static int put_batch(struct list *l, const struct stream_batch *b, struct err *e) {
    if (!l->o->batches) return 0;
    if (!l->o->json) {
        put_table(l);
        fprintf(l->out, "batch of %u sequence%s from %" PRIu64, b->n_seqs, b->n_seqs == 1 ? "" : "s", b->first_seq);
        if (b->first_pos) fprintf(l->out, " (at position %" PRIu64 ")", b->first_pos);
        fprintf(l->out, ", %" PRIu64 " position%s%s\n", b->n_positions, b->n_positions == 1 ? "" : "s",
                b->flags & BATCH_CONTINUES ? ", goes on" : "");
        return 0;
    }
    cJSON *j = cJSON_CreateObject();
    return cli_put_json(l->out, j,
                        json_put_str(j, "type", "batch") && json_put_u64(j, "first_seq", b->first_seq) &&
                            json_put_u64(j, "first_pos", b->first_pos) && json_put_u64(j, "sequences", b->n_seqs) &&
                            json_put_u64(j, "positions", b->n_positions) &&
                            json_put_bool(j, "continues", b->flags & BATCH_CONTINUES),
                        e);
}

/* Adds to the row of that name, summing the first dimension over batches. False: too many names. */
static bool add_to_name(struct list *l, const struct view_row *x) {
    size_t i = 0;
    while (i < l->n_names && strcmp(l->names[i].desc.name, x->desc.name) != 0) i++;
    if (i == BATCH_MAX_TENSORS) return false;
    struct view_row *sum = &l->names[i];
    if (i == l->n_names) {
        *sum = *x;
        l->n_names++;
        return true;
    }
    if (sum->desc.rank && x->desc.rank) sum->desc.dims[0] += x->desc.dims[0];
    sum->n++;
    sum->bytes += x->bytes;
    sum->stored += x->stored;
    if (x->codec) sum->codec = x->codec;
    return true;
}

static int list_tensor(struct list *l, const struct stream_item *item, struct err *e) {
    struct stream_storage s;
    if (stream_skip_tensor(l->in, e)) return e->code;
    stream_reader_storage(l->in, &s);
    struct view_row x = {item->desc, 1, tensor_bytes(&item->desc), s.bytes, s.codec};
    if (item->in_batch && !l->o->batches && add_to_name(l, &x)) return 0;
    return put_row(l, &x, item->attrs, e);
}

static int end_segment(struct list *l, struct err *e) {
    for (size_t i = 0; i < l->n_names; i++)
        if (put_row(l, &l->names[i], NULL, e)) return e->code;
    l->n_names = 0;
    if (l->o->json) return 0;
    put_table(l);
    if (l->is_model) view_put_parts(l->out, l->parts);
    memset(l->parts, 0, sizeof l->parts);
    return 0;
}

static int put_totals(const struct list *l, struct err *e) {
    struct stream_totals t;
    char digest[DIGEST_TEXT_SIZE];
    stream_reader_totals(l->in, &t);
    if (!l->o->json) {
        view_put_totals(l->out, &t);
        return 0;
    }
    digest_text(t.digest, digest);
    cJSON *j = cJSON_CreateObject();
    return cli_put_json(l->out, j,
                        json_put_str(j, "type", "total") && json_put_u64(j, "segments", t.segments) &&
                            json_put_u64(j, "tensors", t.tensors) && json_put_u64(j, "batches", t.batches) &&
                            json_put_u64(j, "positions", t.positions) && json_put_u64(j, "bytes", t.bytes) &&
                            json_put_u64(j, "raw_bytes", t.raw_bytes) && json_put_str(j, "digest", digest),
                        e);
}

static int put_item(struct list *l, const struct stream_item *item, struct err *e) {
    if (item->type == ITEM_VOCAB) return put_vocab(l, item, e);
    if (l->facts) fputc('\n', l->out);
    l->facts = false;
    switch (item->type) {
    case ITEM_META: return put_meta(l, item, e);
    case ITEM_BATCH: return put_batch(l, &item->batch, e);
    case ITEM_TENSOR: return list_tensor(l, item, e);
    case ITEM_SEGMENT_END: return end_segment(l, e);
    case ITEM_EOF: return put_totals(l, e);
    default: return 0;
    }
}

int view_list(struct stream_reader *r, FILE *to, const struct view_list_options *o, struct err *e) {
    struct list l = {.o = o, .out = to, .in = r};
    struct stream_item item;
    int rc;
    stream_reader_skim(l.in);
    if (!(l.names = mem_array(BATCH_MAX_TENSORS, sizeof *l.names, e))) return e->code;
    do {
        rc = stream_next(l.in, &item, e);
        if (!rc) rc = put_item(&l, &item, e);
    } while (!rc && item.type != ITEM_EOF);
    mem_free(l.names);
    buf_release(&l.rows);
    return rc;
}
