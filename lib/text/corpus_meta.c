/* The description of a corpus in META: how its text became sequences, and hence how to decode it. */
#include <string.h>

#include "lib/text/text.h"

static const char *const document_names[] = {"whole", "lines", "jsonl", "chat",
                                             "separated"};            /* by enum corpus_documents */
static const char *const eos_names[] = {"never", "between", "after"}; /* by enum corpus_eos */

static bool wanted(const char *when, bool by_default) {
    return !strcmp(when, "always") || (!strcmp(when, "auto") && by_default);
}

void corpus_choose_specials(struct corpus_options *o, const struct vocab *v, const char *bos, const char *eos) {
    bool has_eos = v->eos != TOKEN_NONE;
    o->bos = wanted(bos, v->add_bos && v->bos != TOKEN_NONE);
    o->eos = wanted(eos, !o->context && (v->add_eos || o->pack) && has_eos) ? EOS_AFTER
             : wanted(eos, o->context && has_eos)                           ? EOS_BETWEEN
                                                                            : EOS_NEVER;
}

bool corpus_describe(cJSON *to, const struct vocab *v, const struct corpus_options *o) {
    char digest[DIGEST_TEXT_SIZE];
    digest_text(v->digest, digest);
    return json_put_str(to, "vocab", digest) && json_put_u64(to, "vocab_size", v->n_tokens) &&
           json_put_bool(to, "packed", o->context > 0) && (!o->context || json_put_u64(to, "context", o->context)) &&
           (!o->pack || json_put_u64(to, "pack", o->pack)) &&
           json_put_str(to, "documents", document_names[o->documents]) && json_put_bool(to, "bos", o->bos) &&
           json_put_str(to, "eos", eos_names[o->eos]);
}

bool corpus_totals_put(cJSON *to, const struct corpus_totals *t) {
    double per_token = t->tokens ? (double)t->text_bytes / (double)t->tokens : 0;
    return json_put_u64(to, "input_bytes", t->input_bytes) && json_put_u64(to, "text_bytes", t->text_bytes) &&
           json_put_u64(to, "lost_bytes", t->lost_bytes) && json_put_u64(to, "documents", t->documents) &&
           json_put_u64(to, "empty_documents", t->empty_documents) && json_put_u64(to, "sequences", t->sequences) &&
           json_put_u64(to, "tokens", t->tokens) && json_put_u64(to, "batches", t->batches) &&
           (!t->packs || json_put_u64(to, "packs", t->packs)) && json_put_f64(to, "bytes_per_token", per_token);
}

int corpus_decoding(const cJSON *meta, struct corpus_decoding *how, struct err *e) {
    bool packed = false;
    const char *documents = document_names[CORPUS_WHOLE];
    how->bos = false;
    if (json_opt_bool(meta, "bos", &how->bos, e) || json_opt_bool(meta, "packed", &packed, e) ||
        json_opt_str(meta, "documents", &documents, e))
        return e->code;
    how->line_ends = !packed && strcmp(documents, document_names[CORPUS_WHOLE]) != 0;
    return 0;
}

int corpus_decode(const struct vocab *v, const struct corpus_decoding *how, const struct corpus_batch *b,
                  struct buf *out, struct err *e) {
    const uint32_t *ids = b->tokens;
    for (uint32_t i = 0; i < b->n_seqs; ids += b->lengths[i++]) {
        bool begins = i > 0 || b->first_pos == 0;
        bool ends = i + 1 < b->n_seqs || !b->continues;
        uint32_t skip = begins && how->bos && ids[0] == v->bos;
        int rc = begins ? text_decode(v, ids + skip, b->lengths[i] - skip, how->skip_special, out, e)
                        : text_decode_on(v, ids, b->lengths[i], how->skip_special, out, e);
        if (!rc && ends && how->line_ends) rc = buf_append(out, "\n", 1, e);
        if (rc) return err_prefix(e, "sequence %llu", (unsigned long long)b->first_seq + i);
    }
    return 0;
}
