/* Tests of logits for selected positions: they must be, to the bit, those of a pass that returns all. */
#include "tests/unit/model_samples.h"

#define POSITIONS 600 /* the head runs in blocks of 256 rows */

/* Asks for n of the positions, evenly spread. */
static void check_format(const struct model_config *c, enum model_weight_format format, size_t n) {
    struct err e;
    uint32_t lengths[POSITIONS / 50];
    uint32_t tokens[POSITIONS];
    uint8_t asked[POSITIONS];
    size_t rows = 0;
    for (size_t i = 0; i < COUNT_OF(lengths); i++) lengths[i] = 50;
    sample_tokens(tokens, POSITIONS, c->vocab_size, 9);
    struct model *m = sample_model(c, 8);
    struct buf bytes = saved_model(m, format == WEIGHTS_INT8 ? DT_Q5_1 : 0);
    model_free(m);
    OK(load_model_as(&bytes, format, &m, &e));
    struct model_input in = {POSITIONS, COUNT_OF(lengths), tokens, lengths};
    float *all = logits_of(m, &in);
    for (size_t i = 0; i < POSITIONS; i++) rows += asked[i] = (i + 1) * n / POSITIONS > i * n / POSITIONS;
    struct all_logits some = {mem_array(rows * c->vocab_size + 1, sizeof(float), &e)};
    struct grad_tape *t;
    in.asked = asked;
    OK(grad_tape_new(&t, m->device, false, model_precision(m), &e));
    OK(model_infer(m, t, &in, NULL, NULL, keep_logits, &some, &e));
    for (size_t i = 0, at = 0; i < POSITIONS; i++)
        if (asked[i])
            assert_memory_equal(some.x + at++ * c->vocab_size, all + i * c->vocab_size, c->vocab_size * sizeof(float));
    mem_free(some.x);
    mem_free(all);
    grad_tape_free(t);
    model_free(m);
    buf_release(&bytes);
}

static void some_rows_are_those_of_all(void **state) {
    static const size_t n[] = {0, 1, 4, 5, 100, 257, 260, 261, POSITIONS - 1, POSITIONS};
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    (void)state;
    for (size_t i = 0; i < COUNT_OF(n); i++)
        for (int format = 0; format < 3; format++) check_format(&c, (enum model_weight_format)format, n[i]);
    arena_release(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(some_rows_are_those_of_all)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
