/*
 * Tests of lib/model: generation from the cache, reuse of the slots of finished sequences, the distribution of draws.
 */
#include "tests/unit/model_samples.h"

struct made {
    uint32_t tokens[8][64];
    size_t n[8];
    uint64_t next;
};

static int keep_made(void *ctx, uint64_t seq, const uint32_t *prompt, size_t n_prompt, const uint32_t *made, size_t n,
                     struct err *e) {
    (void)prompt, (void)n_prompt, (void)e;
    struct made *m = ctx;
    assert_int_equal(seq, m->next++);
    memcpy(m->tokens[seq % 8], made, n * sizeof *made);
    m->n[seq % 8] = n;
    return 0;
}

/* Greedy generation from the cache must take at each step the argmax of a whole forward pass. */
static void the_cache_changes_nothing(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = sample_model(&c, 8);
    const uint32_t lengths[] = {3, 11, 1};
    uint32_t tokens[15], run[64];
    sample_tokens(tokens, 15, c.vocab_size, 9);
    struct model_input in = {15, 3, tokens, lengths};
    struct model_sampling how = {.top_p = 1, .max_new = 20};
    struct made made = {.next = 0};
    OK(generate_all(m, &in, 0, &how, keep_made, &made, &e));
    for (size_t s = 0, at = 0; s < 3; at += lengths[s++]) {
        assert_int_equal(made.n[s], 20);
        memcpy(run, tokens + at, lengths[s] * sizeof *run);
        for (uint32_t i = 0; i < 20; i++) {
            uint32_t len = lengths[s] + i, best = 0;
            struct model_input whole = {len, 1, run, &len};
            float *logits = logits_of(m, &whole), *last = logits + (len - 1) * c.vocab_size;
            for (uint32_t k = 1; k < c.vocab_size; k++)
                if (last[k] > last[best]) best = k;
            assert_int_equal(made.tokens[s][i], best);
            run[len] = best;
            mem_free(logits);
        }
    }
    model_free(m);
    arena_release(&a);
}

static void generation_ends_where_it_should(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = sample_model(&c, 8);
    const uint32_t lengths[] = {60, 2};
    uint32_t tokens[62];
    sample_tokens(tokens, 62, c.vocab_size, 9);
    struct model_input in = {62, 2, tokens, lengths};
    struct model_sampling how = {.temperature = 1, .top_p = 1, .max_new = 30};
    struct made first = {.next = 6}, alone = {.next = 7};
    OK(generate_all(m, &in, 6, &how, keep_made, &first, &e));
    assert_int_equal(first.n[6],
                     5); /* the context of 64 is full: 4 more positions, and the token that the last one predicts */
    assert_int_equal(first.n[7], 30);
    /* a sequence draws the same tokens alone as in a batch */
    struct model_input second = {2, 1, tokens + 60, lengths + 1};
    OK(generate_all(m, &second, 7, &how, keep_made, &alone, &e));
    assert_memory_equal(first.tokens[7], alone.tokens[7], 30 * sizeof(uint32_t));
    const uint32_t ends[] = {first.tokens[7][4]};
    how.ends = ends;
    how.n_ends = 1;
    struct made stopped = {.next = 7};
    OK(generate_all(m, &second, 7, &how, keep_made, &stopped, &e));
    size_t n = stopped.n[7];
    assert_true(n <= 5 && stopped.tokens[7][n - 1] == ends[0]);
    /* with several end tokens, the first to occur ends the sequence */
    uint32_t several[] = {first.tokens[7][1], ends[0], 95};
    for (int i = 0; i < 3; i++)
        for (int k = i + 1; k < 3; k++)
            if (several[k] < several[i]) {
                uint32_t larger = several[i];
                several[i] = several[k];
                several[k] = larger;
            }
    how.ends = several;
    how.n_ends = 3;
    struct made sooner = {.next = 7};
    OK(generate_all(m, &second, 7, &how, keep_made, &sooner, &e));
    for (n = 0; n < 30; n++) {
        uint32_t id = first.tokens[7][n];
        if (id == several[0] || id == several[1] || id == several[2]) break;
    }
    assert_int_equal(sooner.n[7], n + 1);
    model_free(m);
    arena_release(&a);
}

/* Many more sequences than run at once, of many lengths. For each, its order, length and tokens are recorded. */
struct many {
    uint64_t next, fail_at, steps, n_made;
    struct model_generated last;
    struct {
        uint32_t tokens[24];
        size_t n;
    } seq[200];
};

static int keep_many(void *ctx, uint64_t seq, const uint32_t *prompt, size_t n_prompt, const uint32_t *made, size_t n,
                     struct err *e) {
    (void)prompt, (void)n_prompt;
    struct many *m = ctx;
    if (seq == m->fail_at) return err_set(e, ERR_IO, "the sink is full");
    assert_int_equal(seq, m->next++);
    memcpy(m->seq[seq].tokens, made, n * sizeof *made);
    m->seq[seq].n = n;
    m->n_made += n;
    return 0;
}

static void count_step(void *ctx, const struct model_generated *sum) {
    struct many *m = ctx;
    m->steps++;
    assert_true(sum->made > m->last.made); /* each step generates tokens, */
    assert_true((sum->decoded > m->last.decoded) != (sum->prompted > m->last.prompted)); /* prompts or decodes */
    assert_true(sum->decode_seconds >= m->last.decode_seconds && sum->prompt_seconds >= m->last.prompt_seconds);
    m->last = *sum;
}

static int generate_many(struct model *m, const uint32_t *tokens, uint64_t first, uint64_t n,
                         const struct model_sampling *how, struct many *many, struct err *e) {
    struct model_generator *g = NULL;
    int rc = model_generator_new(&g, m, how, keep_many, count_step, many, e);
    for (uint64_t i = first; !rc && i < first + n; i++) rc = model_generator_add(g, i, tokens + i, 1 + i % 7, e);
    if (!rc) rc = model_generator_finish(g, e);
    model_generator_free(g);
    return rc;
}

static void refill(struct model *m) {
    struct err e;
    static struct many together, alone;
    uint32_t tokens[210];
    sample_tokens(tokens, 210, m->config.vocab_size, 9);
    struct model_sampling how = {
        .temperature = 1, .top_p = 1, .seed = 3, .max_new = 24, .ends = (const uint32_t[]){11}, .n_ends = 1};
    together = (struct many){.fail_at = UINT64_MAX};
    OK(generate_many(m, tokens, 0, 200, &how, &together, &e));
    assert_int_equal(together.next, 200);
    uint64_t prompts = 0;
    for (size_t i = 0; i < 200; i++) prompts += 1 + i % 7;
    assert_int_equal(together.last.made, together.n_made);
    assert_int_equal(together.last.prompted, prompts);
    /* 64 at a time until all have ended would take 4 * 24 steps; slots are reused as they become free */
    size_t full = 0, longest = 0;
    for (size_t i = 0; i < 200; i++) full += together.seq[i].n == 24;
    assert_true(full > 10 && full < 190);
    assert_true(together.steps < 96);
    assert_true(together.steps * 64 >= together.n_made);
    /* each sequence is the same as alone */
    for (uint64_t i = 0; i < 200; i += 13) {
        alone = (struct many){.next = i, .fail_at = UINT64_MAX};
        OK(generate_many(m, tokens, i, 1, &how, &alone, &e));
        assert_int_equal(alone.seq[i].n, together.seq[i].n);
        assert_memory_equal(alone.seq[i].tokens, together.seq[i].tokens, together.seq[i].n * sizeof(uint32_t));
        if (alone.seq[i].n > longest) longest = alone.seq[i].n;
    }
    assert_int_equal(longest, 24);
}

static void a_finished_sequence_makes_room(void **state) {
    (void)state;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = sample_model(&c, 8), *packed = packed_model(m, DT_Q8_0, WEIGHTS_PACKED);
    struct model *integers = packed_model(m, DT_Q4_1, WEIGHTS_INT8);
    refill(m);
    refill(packed);
    refill(integers);
    model_free(m);
    model_free(packed);
    model_free(integers);
    arena_release(&a);
}

/* A failure of the sink, of a prompt or of an allocation ends generation with that error; sanitizers find leaks. */
static void a_failed_generation_leaves_nothing(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = sample_model(&c, 8);
    static struct many many;
    uint32_t tokens[80];
    sample_tokens(tokens, 80, c.vocab_size, 9);
    struct model_sampling how = {.temperature = 1, .top_p = 0.9, .max_new = 3};
    many = (struct many){.fail_at = 5};
    assert_int_equal(generate_many(m, tokens, 0, 70, &how, &many, &e), ERR_IO);
    assert_string_equal(e.msg, "the sink is full");
    tokens[20] = c.vocab_size;
    many = (struct many){.fail_at = UINT64_MAX};
    assert_int_equal(generate_many(m, tokens, 0, 70, &how, &many, &e), ERR_DATA);
    assert_string_equal(e.msg, "token 97 at position 3 of sequence 17 is outside the vocabulary of 97");
    tokens[20] = 0;
    int rc = ERR_IO;
    uint64_t n = 1;
    for (; rc; n++) {
        many = (struct many){.fail_at = UINT64_MAX};
        mem_fail_at(n);
        rc = generate_many(m, tokens, 0, 66, &how, &many, &e);
        mem_fail_at(0);
        assert_true(rc == 0 || rc == ERR_IO);
    }
    assert_true(n > 66);
    assert_int_equal(many.next, 66);
    model_free(m);
    arena_release(&a);
}

/* Draws follow the distribution: 4000 first tokens against the softmax, and none outside top-k or the nucleus. */
static void sampling_follows_the_distribution(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = sample_model(&c, 8);
    uint32_t tokens[40], lengths[40], one = 1;
    for (size_t i = 0; i < 40; i++) tokens[i] = 5, lengths[i] = 1;
    struct model_input single = {1, 1, tokens, &one}, in = {40, 40, tokens, lengths};
    float *logits = logits_of(m, &single);
    double p[97], total = 0;
    for (int i = 0; i < 97; i++) total += p[i] = exp(logits[i] / 1.5);
    for (int i = 0; i < 97; i++) p[i] /= total;
    for (int mode = 0; mode < 3; mode++) {
        struct model_sampling how = {
            .temperature = 1.5, .top_p = mode == 2 ? 0.5 : 1, .top_k = mode == 1 ? 10 : 0, .seed = 4, .max_new = 1};
        double kept[97], mass = 0, chi2 = 0;
        for (int i = 0; i < 97; i++) { /* i is in by the mass of more probable tokens */
            int rank = 0;
            double before = 0;
            for (int j = 0; j < 97; j++)
                if (p[j] > p[i]) rank++, before += p[j];
            kept[i] = mode == 0 || (mode == 1 ? rank < 10 : before < 0.5) ? p[i] : 0;
            mass += kept[i];
        }
        double count[97] = {0};
        for (uint64_t round = 0; round < 100; round++) {
            struct made made = {.next = round * 40};
            OK(generate_all(m, &in, round * 40, &how, keep_made, &made, &e));
            for (int s = 0; s < 8; s++) count[made.tokens[s][0]]++; /* the last eight of the forty are recorded */
        }
        int bins = 0;
        for (int i = 0; i < 97; i++) {
            double expected = 800 * kept[i] / mass;
            if (kept[i] == 0) assert_true(count[i] == 0);
            if (expected >= 5) chi2 += (count[i] - expected) * (count[i] - expected) / expected, bins++;
        }
        /* Chi-square with `bins` terms: mean bins, deviation sqrt(2 bins); six deviations do not occur by chance */
        assert_true(bins >= 3);
        if (!(chi2 < bins + 6 * sqrt(2.0 * bins))) fail_msg("mode %d: chi-square %g over %d bins", mode, chi2, bins);
    }
    mem_free(logits);
    model_free(m);
    arena_release(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_cache_changes_nothing),         cmocka_unit_test(generation_ends_where_it_should),
        cmocka_unit_test(a_finished_sequence_makes_room),    cmocka_unit_test(a_failed_generation_leaves_nothing),
        cmocka_unit_test(sampling_follows_the_distribution),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
