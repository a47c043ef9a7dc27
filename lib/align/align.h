/*
 * align: converts the predictions of a teacher with another tokenizer into knowledge in the student's tokens.
 *
 * Both tokenizations of a text are aligned by byte offsets. Where a token of each ends at the same byte, both models
 * have read the same text, and the teacher's distribution of the next token is translated:
 *   - A token of the teacher becomes the student's token with the same bytes, or else the first of the tokens by which
 *     the student's tokenizer encodes it: a text that continues with the former begins with the latter. (Otherwise a
 *     short token, whose bytes are a prefix of many long tokens of the teacher, would be taught to be improbable.)
 *     Control tokens become the one with the same role, such as beginning or end of text, or the same spelling.
 *   - The student's next token in this text, if the teacher encodes it by several, gets the product of their
 *     conditional probabilities, which is subtracted from the first of them: p(ab) = p(a) p(b | a).
 *   - Everything else is the rest.
 * The result has the encoding ghost: the entries are known, the rest counts as one token. A position at which no token
 * of the teacher ends has no entries and is not trained on; neither is one whose row the teacher's stream omits,
 * because the teacher's next token is masked. That a token stands for just its bytes is an approximation: the student
 * might continue with a longer token where one of the teacher's ends. Related work: MinED aligns tokens by edit
 * distance (Wan et al. 2024, Knowledge fusion of large language models, arXiv:2401.10491); ALM compares likelihoods of
 * chunks of equal bytes (Minixhofer et al. 2025, Universal cross-tokenizer distillation via approximate likelihood
 * matching, arXiv:2503.20083), as is done here for the next token of the text.
 *
 * With equal vocabularies every position is aligned, and the entries are the teacher's.
 */
#ifndef RILL_ALIGN_H
#define RILL_ALIGN_H

#include "lib/knowledge/knowledge.h"
#include "lib/text/text.h"

struct align_options {
    const struct vocab *teacher, *student; /* must outlive the aligner */
    const struct knowledge_format *from;   /* of the teacher's stream; must outlive the aligner, too */
    uint32_t entries;                      /* maximum per position */
};
/* The format of the result. ERR_DATA if `from` cannot be aligned: its target is not the next token, it has no
 * predictions or such that do not tell how much probability they omit (draws, partial entries), or it has fields. */
int align_format(const struct align_options *o, struct knowledge_format *out, struct err *e) MUST_CHECK;

struct align;
/* Makes an aligner; *o is copied. Free with align_free. */
int align_new(struct align **out, const struct align_options *o, struct err *e) MUST_CHECK;
/*
 * Reads the teacher's stream to its end, sequence by sequence, and passes the result to the encoder, whose format must
 * be that of align_format. `tokens` is a stream of the same sequences in the student's tokens; NULL: the student's
 * tokenizer encodes the teacher's text, and control tokens become those with the same role. Calls `watch` after each
 * sequence. ERR_DATA, with sequence and byte: the texts differ, or a stream ends early. Memory: the predictions of the
 * longest sequence.
 */
struct align_tokens {
    struct stream_reader *r;
    const struct knowledge_format *format;
};
typedef void align_watch(void *ctx);
int align_read(struct align *a, struct stream_reader *teacher, const struct align_tokens *tokens,
               struct knowledge_encoder *k, align_watch *watch, void *ctx, struct err *e) MUST_CHECK;
struct align_counts {
    uint64_t begun;                  /* tokens of the teacher mapped to the first token of their student encoding */
    uint64_t teacher_tokens, mapped; /* size of the vocabulary; tokens with an equivalent in the student's */
    uint64_t positions, aligned;     /* positions of the student that are trained on; those with predictions */
    uint64_t labels, labels_known;   /* next tokens at aligned positions; those with a known probability */
    uint64_t chained;                /* how many of them are a product */
    double mass;                     /* sum over aligned positions of the probability that has a token of the student */
};
struct align_counts align_counts(const struct align *a);
void align_free(struct align *a); /* no-op if NULL */

#endif
