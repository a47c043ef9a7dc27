/* Growable arrays of token ids, and the tokens of a character without a piece. */
#include "lib/text/text_internal.h"

/* ---- growable arrays of ids ---- */

int text_ids_reserve(struct text_ids *ids, size_t extra, struct err *e) {
    if (ids->cap - ids->n >= extra) return 0;
    uint64_t need, bytes;
    if (!u64_add(ids->n, extra, &need) || !u64_mul(need, sizeof *ids->ids, &bytes) || bytes > PTRDIFF_MAX / 2)
        return err_nomem(e, "tokens");
    size_t cap = ids->cap < 64 ? 64 : 2 * ids->cap;
    if (cap < need) cap = need;
    uint32_t *grown = mem_alloc(cap * sizeof *grown, e);
    if (!grown) return e->code;
    if (ids->n) memcpy(grown, ids->ids, ids->n * sizeof *grown);
    mem_free(ids->ids);
    ids->ids = grown;
    ids->cap = cap;
    return 0;
}

void text_ids_release(struct text_ids *ids) {
    mem_free(ids->ids);
    *ids = (struct text_ids){0};
}

int fall_back(const struct vocab *v, const unsigned char *bytes, size_t n, bool *fused, struct text_ids *ids,
              struct err *e) {
    bool all = v->model_flags & MODEL_BYTE_FALLBACK;
    for (size_t i = 0; i < n; i++) all = all && v->index->byte_id[bytes[i]] != TOKEN_NONE;
    int rc = text_ids_reserve(ids, n + 1, e);
    if (rc) return rc;
    if (all) {
        for (size_t i = 0; i < n; i++) ids->ids[ids->n++] = v->index->byte_id[bytes[i]];
        *fused = false;
        return 0;
    }
    ids->n_lost += n;
    if (v->unk != TOKEN_NONE && !*fused) ids->ids[ids->n++] = v->unk;
    *fused = v->unk != TOKEN_NONE && (v->model_flags & MODEL_FUSE_UNK);
    return 0;
}
