/*
 * Splits a normalised fragment into words by the vocabulary's steps, like `tokenizers` (pre_tokenizers/): every step
 * splits each word left by the steps before it.
 */
#include "lib/text/text_internal.h"

/* ---- output of a step ---- */

struct cutter {
    struct buf *text, *ends;
    int rc;
    struct err *e;
};

static void put_text(struct cutter *c, const void *text, size_t n) {
    if (!c->rc && n) c->rc = buf_append(c->text, text, n, c->e);
}

/* Ends a word here, unless it would be empty. */
static void end_word(struct cutter *c) {
    size_t at = c->text->len, n = c->ends->len / sizeof at;
    size_t before = 0;
    if (n) memcpy(&before, c->ends->data + (n - 1) * sizeof at, sizeof before);
    if (!c->rc && at > before) c->rc = buf_append(c->ends, &at, sizeof at, c->e);
}

/* ---- delimiters: Hugging Face's SplitDelimiterBehavior ---- */

/* Returns the length of the stretch at the start of text[0..n), and whether it is a delimiter. */
typedef size_t stretch(const struct text_step *s, const unsigned char *text, size_t n, bool *delimiter);

static void cut_stretches(struct cutter *c, const struct text_step *s, stretch *next, uint32_t behavior,
                          const unsigned char *text, size_t n) {
    bool before = false, first = true; /* was the last stretch a delimiter? */
    for (size_t i = 0, took; i < n && !c->rc; i += took) {
        bool d;
        took = next(s, text + i, n - i, &d);
        bool joins = !first && ((behavior == SPLIT_WITH_PREVIOUS && d && !before) ||
                                (behavior == SPLIT_WITH_NEXT && !d && before) ||
                                (behavior == SPLIT_CONTIGUOUS && d == before) || (!d && !before));
        if (!joins) end_word(c);
        if (!d || behavior != SPLIT_REMOVED) put_text(c, text + i, took);
        before = d;
        first = false;
    }
    end_word(c);
}

/* A stretch of one character, classified by `is`. */
#define CHARACTER_STRETCH(name, is)                                                                                    \
    static size_t name(const struct text_step *s, const unsigned char *text, size_t n, bool *delimiter) {              \
        int32_t c;                                                                                                     \
        size_t took = text_char(text, n, &c);                                                                          \
        (void)s;                                                                                                       \
        *delimiter = c >= 0 && is(c);                                                                                  \
        return took;                                                                                                   \
    }
CHARACTER_STRETCH(space_stretch, char_is_space)
CHARACTER_STRETCH(punctuation_stretch, char_is_punctuation)
CHARACTER_STRETCH(number_stretch, char_is_number)

/* A stretch up to the next occurrence of the literal, or the literal itself. */
static size_t literal_stretch(const struct text_step *s, const unsigned char *text, size_t n, bool *delimiter) {
    const unsigned char *hit = memmem(text, n, s->a, s->n_a);
    *delimiter = hit == text;
    return *delimiter ? s->n_a : hit ? (size_t)(hit - text) : n;
}

/* 0: white space, which is removed; 1: a word character; 2: any other visible character. */
static int char_sort(int32_t c) {
    return c < 0 || !char_is_space(c) ? (c >= 0 && char_is_word(c) ? 1 : 2) : 0;
}

static void cut_whitespace(struct cutter *c, const unsigned char *text, size_t n) {
    int before = 0;
    for (size_t i = 0, took; i < n && !c->rc; i += took) {
        int32_t x;
        took = text_char(text + i, n - i, &x);
        int sort = char_sort(x);
        if (sort != before) end_word(c);
        if (sort) put_text(c, text + i, took);
        before = sort;
    }
    end_word(c);
}

static void cut_bert(struct cutter *c, const unsigned char *text, size_t n) {
    for (size_t i = 0, took; i < n && !c->rc; i += took) {
        int32_t x;
        took = text_char(text + i, n - i, &x);
        bool space = x >= 0 && char_is_space(x), alone = x >= 0 && char_is_punctuation(x);
        if (space || alone) end_word(c);
        if (!space) put_text(c, text + i, took);
        if (alone) end_word(c);
    }
    end_word(c);
}

/* ---- U+2581 ---- */

static bool begins_with_space(const unsigned char *text, size_t n) {
    return n && (text[0] == ' ' || (n >= METASPACE_BYTES && memcmp(text, METASPACE, METASPACE_BYTES) == 0));
}

static void cut_metaspace(struct cutter *c, const struct text_step *s, const unsigned char *text, size_t n,
                          struct place place) {
    bool prefix = (s->arg & METASPACE_ALWAYS) || ((s->arg & METASPACE_FIRST) && place.start);
    if (prefix && !place.continues && !begins_with_space(text, n)) put_text(c, METASPACE, METASPACE_BYTES);
    for (size_t i = 0; i < n && !c->rc;) {
        size_t run = 1;
        bool space = begins_with_space(text + i, n - i);
        if (space && (s->arg & METASPACE_SPLIT)) end_word(c);
        if (space)
            put_text(c, METASPACE, METASPACE_BYTES);
        else
            while (i + run < n && !begins_with_space(text + i + run, n - i - run)) run++;
        if (!space) put_text(c, text + i, run);
        i += space && text[i] != ' ' ? METASPACE_BYTES : run;
    }
    end_word(c);
}

/* ---- applying the steps ---- */

static void cut_word(struct cutter *c, const struct text_step *s, const unsigned char *text, size_t n,
                     struct place place) {
    switch (s->op) {
    case WORDS_METASPACE: cut_metaspace(c, s, text, n, place); break;
    case WORDS_SPLIT: cut_stretches(c, s, literal_stretch, s->arg, text, n); break;
    case WORDS_WHITESPACE: cut_whitespace(c, text, n); break;
    case WORDS_WHITESPACE_SPLIT: cut_stretches(c, s, space_stretch, SPLIT_REMOVED, text, n); break;
    case WORDS_BERT: cut_bert(c, text, n); break;
    case WORDS_DIGITS: cut_stretches(c, s, number_stretch, s->arg ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS, text, n); break;
    case WORDS_PUNCTUATION: cut_stretches(c, s, punctuation_stretch, s->arg, text, n); break;
    default: c->rc = err_set(c->e, ERR_DATA, "step %u cuts no words", s->op);
    }
}

/* Does the step remove the front of the text? */
static bool removes_front(const struct text_step *s, const unsigned char *text, size_t n) {
    int32_t c = -1;
    if (n) text_char(text, n, &c);
    switch (s->op) {
    case WORDS_WHITESPACE:
    case WORDS_WHITESPACE_SPLIT:
    case WORDS_BERT: return c >= 0 && char_is_space(c);
    case WORDS_SPLIT: return s->arg == SPLIT_REMOVED && n >= s->n_a && memcmp(text, s->a, s->n_a) == 0;
    case WORDS_PUNCTUATION: return s->arg == SPLIT_REMOVED && c >= 0 && char_is_punctuation(c);
    default: return false;
    }
}

int words_cut(const struct vocab *v, struct step_memory *m, const unsigned char *text, size_t n, struct place place,
              struct word_list *out, struct err *e) {
    int turn = 0;
    bool front = true; /* the first word is at the front of the fragment */
    struct buf *ends = &m->ends[1];
    ends->len = 0;
    int rc = n ? buf_append(ends, &n, sizeof n, e) : 0;
    for (uint32_t i = 0; i < v->n_steps && !rc; i++) {
        const struct text_step *s = &v->steps[i];
        if (s->op < WORDS_METASPACE || s->op >= DECODE_REPLACE) continue;
        struct cutter c = {.text = &m->text[turn], .ends = &m->ends[turn], .e = e};
        const size_t *from = (const size_t *)(void *)ends->data;
        size_t n_words = ends->len / sizeof *from;
        c.text->len = c.ends->len = 0;
        for (size_t k = 0, at = 0; k < n_words && !c.rc; at = from[k++])
            cut_word(&c, s, text + at, from[k] - at, k || !front ? (struct place){0} : place);
        front = front && !removes_front(s, text, n);
        /* The input of a step after a splitting one does not depend on where the text was cut. */
        if (s->op != WORDS_METASPACE) place.continues = false;
        rc = c.rc;
        text = c.text->data;
        n = c.text->len;
        ends = c.ends;
        turn = !turn;
    }
    *out = (struct word_list){text, (const size_t *)(void *)ends->data, ends->len / sizeof(size_t)};
    return rc;
}
