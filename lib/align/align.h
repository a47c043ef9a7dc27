/*
 * align: what a teacher with another tokenizer says, turned into knowledge of the student's tokens.
 *
 * Both tokenizations of a text are laid over its bytes. Where a token of each ends at the same byte, both models have read the same text, and
 * the teacher's distribution of what comes next is translated:
 *   - a token of the teacher becomes the student's token with the same bytes, or else the first of those by which the student's tokenizer
 *     spells it: a text that goes on with the one begins with the other. (Without this a short token, whose bytes begin many long ones of the
 *     teacher, would be taught to be improbable.) Control tokens become the one that has the same part, as beginning or end of
 *     text, or is spelled alike
 *   - the student's next token of this text, if the teacher spells it by several, gets the product of their conditional probabilities, which
 *     is taken from the first one's: p(ab) = p(a) p(b | a)
 *   - all else is rest
 * The result is a ghost: the entries are known, the rest is one token. A position at which no token of the teacher ends has no entries, and
 * teaches nothing; nor does one whose row of the teacher was left out, because the teacher's next token is not to be learnt. That a token stands for its bytes alone is an approximation: the student might go on to a longer token where the
 * teacher ends one. Related: MinED aligns tokens by edit distance (Wan et al. 2024, Knowledge fusion of large language models,
 * arXiv:2401.10491); ALM compares likelihoods of chunks of equal bytes (Minixhofer et al. 2025, Universal cross-tokenizer distillation via
 * approximate likelihood matching, arXiv:2503.20083), as is done here for the token of the text.
 *
 * With equal vocabularies every position is aligned, and the entries are those of the teacher.
 */
#ifndef RILL_ALIGN_H
#define RILL_ALIGN_H

#include "lib/knowledge/knowledge.h"
#include "lib/text/text.h"

struct align_options {
    const struct vocab *teacher, *student; /* must outlive the aligner */
    const struct knowledge_format *from;   /* of the teacher's stream; likewise */
    uint32_t entries;                      /* of a position, at most */
};
/* The format of what comes out. ERR_DATA when `from` cannot be aligned: it predicts other than next tokens, has no answer, or one that does not
 * tell what it leaves out (draws, partial entries), or has fields. */
int align_format(const struct align_options *o, struct knowledge_format *out, struct err *e) MUST_CHECK;

struct align;
int align_new(struct align **out, const struct align_options *o, struct err *e) MUST_CHECK;
/*
 * Reads the teacher's stream to its end, sequence by sequence, into the encoder, whose format is align_format's. `tokens` (NULL: none) is a
 * stream of the same sequences in the student's tokens; without it the teacher's text is encoded by the student's
 * tokenizer, control tokens become those of the same part. ERR_DATA: the texts differ, named by sequence and byte, or a stream ends early.
 * Called after each sequence: watch. Memory: the longest sequence's answers.
 */
struct align_tokens {
    struct stream_reader *r;
    const struct knowledge_format *format;
};
typedef void align_watch(void *ctx);
int align_read(struct align *a, struct stream_reader *teacher, const struct align_tokens *tokens,
               struct knowledge_encoder *k, align_watch *watch, void *ctx, struct err *e) MUST_CHECK;
struct align_counts {
    uint64_t begun;                  /* further ones, of which the student has the beginning */
    uint64_t teacher_tokens, mapped; /* of the vocabulary; those that say the same as one of the student's */
    uint64_t positions, aligned;     /* the student's that count; those that have an answer */
    uint64_t labels, labels_known;   /* tokens of the text after aligned positions; those with a known probability */
    uint64_t chained;                /* of which so many are a product */
    double mass;                     /* sum over aligned positions of the probability that has a token of the student */
};
struct align_counts align_counts(const struct align *a);
void align_free(struct align *a); /* NULL is fine */

#endif
