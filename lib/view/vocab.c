/* Prints a vocabulary: sizes, digests, tokens with a role. */
#include <inttypes.h>

#include "lib/text/text.h"
#include "lib/view/view_internal.h"

static int put_role(FILE *out, const struct vocab *x, const char *role, uint32_t id, struct err *e) {
    if (id == TOKEN_NONE) return 0;
    struct buf text = {0};
    fprintf(out, "%s %" PRIu32 " ", role, id);
    int rc = vocab_spell(x, id, &text, e);
    if (!rc && text.len) fwrite(text.data, 1, text.len, out);
    if (!rc) fputc('\n', out);
    buf_release(&text);
    return rc;
}

static int put_roles(FILE *out, const struct vocab *x, struct err *e) {
    char digest[DIGEST_TEXT_SIZE];
    digest_text(x->digest, digest);
    bool bytes = x->kind == TEXT_BYTE_BPE;
    fprintf(out, "%" PRIu32 " tokens, %" PRIu32 " merges, %s%s, identity %s\n", x->n_tokens, x->n_merges,
            bytes ? "cut as " : "", bytes ? text_pre_name(x->pre) : text_kind_name(x->kind), digest);
    int rc = put_role(out, x, x->add_bos ? "bos (in front of a text)" : "bos", x->bos, e);
    if (!rc) rc = put_role(out, x, x->add_eos ? "eos (after a text)" : "eos", x->eos, e);
    for (uint32_t i = 0; !rc && i < x->n_ends; i++) rc = put_role(out, x, "end", x->ends[i], e);
    if (!rc) rc = put_role(out, x, "pad", x->pad, e);
    return rc ? rc : put_role(out, x, "unk", x->unk, e);
}

/* An unreadable record is shown as far as possible. */
int view_vocab(FILE *out, const struct stream_item *item, struct err *e) {
    char digest[DIGEST_TEXT_SIZE];
    struct vocab *x;
    digest_text(digest_bytes(item->bytes, item->n_bytes), digest);
    fprintf(out, "%zu bytes, digest of the bytes %s\n", item->n_bytes, digest);
    int rc = vocab_unpack(&x, item->bytes, item->n_bytes, e);
    if (rc == ERR_DATA) {
        fprintf(out, "%s\n", e->msg);
        return 0;
    }
    if (rc) return rc;
    rc = put_roles(out, x, e);
    vocab_free(x);
    return rc;
}
