/* What is in a stream, a line for each part. */
#include <inttypes.h>

#include "lib/cli/cli.h"
#include "lib/text/text.h"
#include "lib/view/view.h"

/* A tensor, or all those of one name in the batches of a segment. */
struct line {
    struct tensor_desc desc;
    uint64_t n, bytes, stored;
    enum stream_codec codec;
};

struct list {
    const struct view_list_options *o;
    FILE *out;
    bool facts; /* their line has no end yet */
    struct stream_reader *in;
    struct line *names; /* of the segment's batches: [BATCH_MAX_TENSORS] */
    size_t n_names;
    uint64_t stored;
};

static double percent(uint64_t part, uint64_t whole) {
    return whole ? 100.0 * (double)part / (double)whole : 100;
}

static int put_meta(struct list *l, const struct stream_item *item, struct err *e) {
    if (l->o->json) {
        cJSON *j = cJSON_CreateObject(), *meta = cJSON_Duplicate(item->json, true);
        return cli_put_json(l->out, j, json_put_str(j, "type", "segment") && cJSON_AddItemToObject(j, "meta", meta), e);
    }
    cli_put_facts(l->out, item->json);
    l->facts = true;
    return 0;
}

/* The tokens that end a generation, beside the facts. A vocabulary that cannot be read is for check to refuse. */
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

static int put_line(const struct list *l, const struct line *x, const cJSON *attrs, struct err *e) {
    char shape[256];
    const char *codec = stream_codec_name(x->codec);
    if (!l->o->json) {
        fprintf(l->out, "%-5s %-20s %13" PRIu64 " %5.1f%% %-6s ", dtype_info(x->desc.dtype)->name,
                tensor_shape_text(&x->desc, shape, sizeof shape), x->bytes, percent(x->stored, x->bytes), codec);
        cli_put(l->out, x->desc.name);
        if (x->n > 1) fprintf(l->out, " (in %" PRIu64 " batches)", x->n);
        fputc('\n', l->out);
        return 0;
    }
    cJSON *j = tensor_desc_json(&x->desc);
    bool ok = json_put_str(j, "type", "tensor") && json_put_u64(j, "bytes", x->bytes) &&
              json_put_u64(j, "stored", x->stored) && json_put_str(j, "codec", codec) &&
              json_put_u64(j, "batches", x->n);
    if (attrs) ok = ok && cJSON_AddItemToObject(j, "attrs", cJSON_Duplicate(attrs, true));
    return cli_put_json(l->out, j, ok, e);
}

static int put_batch(const struct list *l, const struct stream_batch *b, struct err *e) {
    if (!l->o->batches) return 0;
    if (!l->o->json) {
        fprintf(l->out, "batch of %u sequences from %" PRIu64, b->n_seqs, b->first_seq);
        if (b->first_pos) fprintf(l->out, " (at position %" PRIu64 ")", b->first_pos);
        fprintf(l->out, ", %" PRIu64 " positions%s\n", b->n_positions, b->flags & BATCH_CONTINUES ? ", goes on" : "");
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

/* Adds to the line of that name; the first dimension is summed over batches. False: too many names. */
static bool add_to_name(struct list *l, const struct line *x) {
    size_t i = 0;
    while (i < l->n_names && strcmp(l->names[i].desc.name, x->desc.name) != 0) i++;
    if (i == BATCH_MAX_TENSORS) return false;
    struct line *sum = &l->names[i];
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
    l->stored += s.bytes;
    struct line x = {item->desc, 1, tensor_bytes(&item->desc), s.bytes, s.codec};
    if (item->in_batch && !l->o->batches && add_to_name(l, &x)) return 0;
    return put_line(l, &x, item->attrs, e);
}

static int put_names(struct list *l, struct err *e) {
    for (size_t i = 0; i < l->n_names; i++)
        if (put_line(l, &l->names[i], NULL, e)) return e->code;
    l->n_names = 0;
    return 0;
}

static int put_totals(const struct list *l, struct err *e) {
    struct stream_totals t;
    char digest[DIGEST_TEXT_SIZE];
    stream_reader_totals(l->in, &t);
    digest_text(t.digest, digest);
    if (l->o->json) {
        cJSON *j = cJSON_CreateObject();
        return cli_put_json(l->out, j,
                            json_put_str(j, "type", "total") && json_put_u64(j, "segments", t.segments) &&
                                json_put_u64(j, "tensors", t.tensors) && json_put_u64(j, "batches", t.batches) &&
                                json_put_u64(j, "positions", t.positions) && json_put_u64(j, "bytes", t.bytes) &&
                                json_put_u64(j, "raw_bytes", t.raw_bytes) && json_put_str(j, "digest", digest),
                            e);
    }
    if (t.segments > 1) fprintf(l->out, "%" PRIu64 " segments, ", t.segments);
    if (t.batches) fprintf(l->out, "%" PRIu64 " batches, %" PRIu64 " positions, ", t.batches, t.positions);
    fprintf(l->out, "%" PRIu64 " tensors, %" PRIu64 " bytes, stored %.1f%%, %s\n", t.tensors, t.raw_bytes,
            percent(l->stored, t.raw_bytes), digest);
    return 0;
}

static int put_item(struct list *l, const struct stream_item *item, struct err *e) {
    if (item->type == ITEM_VOCAB) return put_vocab(l, item, e);
    if (l->facts) fputc('\n', l->out);
    l->facts = false;
    switch (item->type) {
    case ITEM_META: return put_meta(l, item, e);
    case ITEM_BATCH: return put_batch(l, &item->batch, e);
    case ITEM_TENSOR: return list_tensor(l, item, e);
    case ITEM_SEGMENT_END: return put_names(l, e);
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
    return rc;
}
