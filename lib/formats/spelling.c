/*
 * How GGUF and tokenizer.json spell tokens: ordinary pieces of byte-level BPE in GPT-2's printable alphabet, all others
 * as text. Both formats look a token up by its spelling, so two tokens with the same spelling cannot be written:
 * `tokenizers` would give the added token the id of the other, and llama.cpp aborts.
 */
#include <stdlib.h>

#include "lib/formats/formats_internal.h"

int token_spelling(const struct vocab *v, uint32_t id, struct buf *out, struct err *e) {
    const struct token *t = &v->tokens[id];
    return t->flags & TOKEN_ADDED ? buf_append(out, t->bytes, t->n_bytes, e) : vocab_spell(v, id, out, e);
}

static int by_text(const void *a, const void *b) {
    const struct spelling *x = a, *y = b;
    uint64_t n = x->text.n < y->text.n ? x->text.n : y->text.n;
    int order = n ? memcmp(x->text.s, y->text.s, n) : 0;
    return order ? order : (x->text.n > y->text.n) - (x->text.n < y->text.n);
}

/* Pointers are set last, because s->text moves while the texts are appended to it. */
static int spell_all(struct spellings *s, const struct vocab *v, struct err *e) {
    for (uint32_t id = 0; id < v->n_tokens; id++) {
        if (v->tokens[id].flags & TOKEN_UNUSED) continue;
        size_t before = s->text.len;
        int rc = token_spelling(v, id, &s->text, e);
        if (rc) return err_prefix(e, "token %u", id);
        s->items[s->n++] = (struct spelling){.text = {NULL, s->text.len - before}, .id = id};
    }
    const char *at = (const char *)s->text.data;
    for (size_t i = 0; i < s->n; i++) {
        s->items[i].text.s = at;
        at += s->items[i].text.n;
    }
    return 0;
}

int spellings_make(struct spellings *s, const struct vocab *v, struct err *e) {
    *s = (struct spellings){.items = mem_array(v->n_tokens, sizeof *s->items, e)};
    int rc = s->items ? spell_all(s, v, e) : e->code;
    if (rc) return rc;
    qsort(s->items, s->n, sizeof *s->items, by_text);
    for (size_t i = 1; i < s->n; i++) {
        const struct spelling *a = &s->items[i - 1], *b = &s->items[i];
        if (by_text(a, b) == 0)
            return err_set(e, ERR_DATA, "tokens %u and %u are both spelled '%.*s': this format cannot hold both",
                           a->id < b->id ? a->id : b->id, a->id < b->id ? b->id : a->id,
                           a->text.n > 100 ? 100 : (int)a->text.n, a->text.s);
    }
    return 0;
}

bool spellings_has(const struct spellings *s, const char *text) {
    struct spelling key = {.text = {text, strlen(text)}};
    return s->n && bsearch(&key, s->items, s->n, sizeof key, by_text);
}

void spellings_release(struct spellings *s) {
    mem_free(s->items);
    buf_release(&s->text);
    *s = (struct spellings){0};
}
