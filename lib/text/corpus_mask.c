/* Masks tokens for masked language models. */
#include <string.h>

#include "lib/text/text.h"

int corpus_mask_token(const struct vocab *v, uint32_t *out, struct err *e) {
    static const char *const names[] = {"[MASK]", "<mask>"};
    for (size_t i = 0; i < COUNT_OF(names); i++)
        if ((*out = vocab_find(v, names[i], strlen(names[i]))) != TOKEN_NONE) return 0;
    return err_set(e, ERR_USAGE, "the vocabulary has no mask token, [MASK] or <mask>");
}

static double uniform(uint32_t word) {
    return word * 0x1p-32;
}

void corpus_mask_tokens(const struct vocab *v, uint32_t mask, double rate, uint64_t seed, const struct corpus_batch *b,
                        uint32_t *tokens, uint32_t *labels) {
    size_t at = 0;
    for (uint32_t i = 0; i < b->n_seqs; i++) {
        uint64_t pos = i ? 0 : b->first_pos;
        for (uint32_t t = 0; t < b->lengths[i]; t++, at++) {
            uint32_t word[4], id = b->tokens[at];
            philox(seed, b->first_seq + i, pos + t, word);
            bool chosen = uniform(word[0]) < rate && !(v->tokens[id].flags & TOKEN_SPECIAL);
            labels[at] = chosen ? id : TOKEN_NONE;
            if (chosen && uniform(word[1]) < 0.8)
                id = mask;
            else if (chosen && uniform(word[1]) < 0.9)
                id = (uint32_t)((uint64_t)word[2] * v->n_unpadded >> 32);
            tokens[at] = id;
        }
    }
}
