/* Tests of lib/text against Hugging Face tokenizers: every golden text, every vocabulary, all ids. */
#include "tests/unit/text_samples.h"

/* The last 400 texts have code points that are not in Unicode 14. Which of them are letters depends on the Unicode
 * version of PCRE2, so they only have to decode to themselves. */
#define N_SETTLED 14521

static void print_ids(const char *who, const uint32_t *ids, size_t n) {
    fprintf(stderr, "%s:", who);
    for (size_t i = 0; i < n; i++) fprintf(stderr, " %u", ids[i]);
    fprintf(stderr, "\n");
}

static bool same_ids(const struct text_ids *ours, const struct buf *golden, size_t at, uint32_t n) {
    if (ours->n != n) return false;
    for (uint32_t i = 0; i < n; i++)
        if (ours->ids[i] != u32_at(golden, at + 4 * i)) return false;
    return true;
}

static void check_all(size_t which) {
    struct vocab *v = load_golden(which);
    struct golden_texts texts = load_golden_texts();
    char path[256];
    snprintf(path, sizeof path, TOKENIZERS "%s.ids.zst", golden_names[which]);
    struct buf golden = read_zst(path);
    size_t at = 0, differ = 0, unsettled = 0;
    for (size_t i = 0; i < texts.n; i++) {
        uint32_t n = u32_at(&golden, at);
        struct text_ids ids = must_encode(v, texts.text[i], texts.n_bytes[i], NULL);
        if (!same_ids(&ids, &golden, at + 4, n)) {
            if (i >= N_SETTLED)
                unsettled++;
            else if (++differ < 4) {
                fprintf(stderr, "%s: text %zu: %.*s\n", golden_names[which], i, (int)texts.n_bytes[i], texts.text[i]);
                print_ids("ours  ", ids.ids, ids.n);
                print_ids("golden", (const uint32_t *)(const void *)(golden.data + at + 4), n);
            }
        }
        text_ids_release(&ids);
        at += 4 + 4 * (size_t)n;
    }
    assert_int_equal(at, golden.len);
    assert_int_equal(texts.n, N_SETTLED + 400);
    if (differ) fail_msg("%s: %zu of %zu texts differ", golden_names[which], differ, texts.n);
    print_message("%s: %zu of 400 unsettled texts differ\n", golden_names[which], unsettled);
    buf_release(&golden);
    free_golden_texts(&texts);
    vocab_free(v);
}

static void test_smollm2(void **state) {
    (void)state;
    check_all(0);
}

static void test_llama(void **state) {
    (void)state;
    check_all(1);
}

static void test_qwen2(void **state) {
    (void)state;
    check_all(2);
}

static void test_gpt2(void **state) {
    (void)state;
    check_all(3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_smollm2),
        cmocka_unit_test(test_llama),
        cmocka_unit_test(test_qwen2),
        cmocka_unit_test(test_gpt2),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
