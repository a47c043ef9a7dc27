/* Tests of lib/base: Philox against the vectors published with Random123 (tests/kat_vectors), sequences, digests. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "lib/base/base.h"

static void test_philox_known_answers(void **state) {
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], expected[4];
    } vectors[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < COUNT_OF(vectors); i++) {
        uint32_t out[4];
        const uint32_t *c = vectors[i].counter, *k = vectors[i].key;
        philox((uint64_t)k[1] << 32 | k[0], (uint64_t)c[3] << 32 | c[2], (uint64_t)c[1] << 32 | c[0], out);
        assert_memory_equal(out, vectors[i].expected, sizeof out);
    }
}

static void test_sequence_is_philox_in_counter_order(void **state) {
    (void)state;
    struct rng r = rng_init(5, 6);
    for (uint64_t counter = 0; counter < 10; counter++) {
        uint32_t block[4];
        philox(5, 6, counter, block);
        for (int i = 0; i < 4; i++) assert_int_equal(rng_u32(&r), block[i]);
    }
    struct rng other_stream = rng_init(5, 7), other_seed = rng_init(6, 6), same = rng_init(5, 6);
    int equal_stream = 0, equal_seed = 0;
    for (int i = 0; i < 1000; i++) {
        uint32_t v = rng_u32(&same);
        equal_stream += v == rng_u32(&other_stream);
        equal_seed += v == rng_u32(&other_seed);
    }
    assert_true(equal_stream < 2 && equal_seed < 2);
}

/* Pearson's chi-squared over the bins. The seed is fixed, so the result never varies. */
static double chi_squared(const unsigned *counts, size_t bins, double expected) {
    double sum = 0;
    for (size_t i = 0; i < bins; i++) sum += (counts[i] - expected) * (counts[i] - expected) / expected;
    return sum;
}

static void test_below_is_uniform(void **state) {
    (void)state;
    enum { BINS = 100, DRAWS = 200000 };
    struct rng r = rng_init(2024, 1);
    unsigned counts[BINS] = {0};
    for (int i = 0; i < DRAWS; i++) {
        uint64_t v = rng_below(&r, BINS);
        assert_in_range(v, 0, BINS - 1);
        counts[v]++;
    }
    double x = chi_squared(counts, BINS, (double)DRAWS / BINS);
    assert_true(x > 53 && x < 162); /* 99 degrees of freedom: outside with probability 1e-4 */
    /* n = 3 * 2^62: taking the high word plainly would give every third value twice the chance, a modulo every low
     * one */
    unsigned residues[3] = {0}, thirds[3] = {0};
    for (int i = 0; i < 30000; i++) {
        uint64_t v = rng_below(&r, UINT64_C(3) << 62);
        residues[v % 3]++;
        thirds[v >> 62]++;
    }
    assert_true(chi_squared(residues, 3, 10000) < 18.4 && chi_squared(thirds, 3, 10000) < 18.4); /* 2 degrees, 1e-4 */
    for (int i = 0; i < 100; i++) assert_int_equal(rng_below(&r, 1), 0);
    bool high = false;
    for (int i = 0; i < 100; i++) high |= rng_below(&r, UINT64_MAX) > UINT64_MAX / 2;
    assert_true(high);
}

static void test_f64_is_uniform(void **state) {
    (void)state;
    enum { BINS = 256, DRAWS = 256000 };
    struct rng r = rng_init(9, 9);
    unsigned counts[BINS] = {0};
    double smallest = 1;
    for (int i = 0; i < DRAWS; i++) {
        double v = rng_f64(&r);
        assert_true(v >= 0 && v < 1);
        counts[(int)(v * BINS)]++;
        if (v > 0 && v < smallest) smallest = v;
    }
    assert_true(smallest < 1e-4);
    double x = chi_squared(counts, BINS, (double)DRAWS / BINS);
    assert_true(x > 177 && x < 349); /* 255 degrees, 1e-4 */
}

static void test_normal_has_its_moments(void **state) {
    (void)state;
    enum { DRAWS = 200000 };
    struct rng r = rng_init(3, 4);
    double sum[5] = {0};
    for (int i = 0; i < DRAWS; i++) {
        double v = rng_normal(&r), power = 1;
        assert_true(isfinite(v));
        for (int k = 1; k < 5; k++) sum[k] += power *= v;
    }
    /* four standard errors of the k-th sample moment: sqrt((m_2k - m_k^2) / n) with moments 1, 3, 15, 105 */
    double se = 4 / sqrt(DRAWS);
    assert_true(fabs(sum[1] / DRAWS) < se);
    assert_true(fabs(sum[2] / DRAWS - 1) < se * sqrt(2));
    assert_true(fabs(sum[3] / DRAWS) < se * sqrt(15));
    assert_true(fabs(sum[4] / DRAWS - 3) < se * sqrt(96));
}

static void test_digest_text(void **state) {
    (void)state;
    char text[DIGEST_TEXT_SIZE];
    struct digest d = digest_bytes(NULL, 0), back;
    digest_text(d, text);
    assert_string_equal(text, "xxh3:99aa06d3014798d86001c324468d497f"); /* printf '' | xxhsum -H128 */
    assert_true(digest_parse(text, &back));
    assert_true(digest_equal(d, back));
    static const char *const bad[] = {"",
                                      "xxh3:",
                                      "xxh3:99aa06d3014798d86001c324468d497",
                                      "xxh3:99aa06d3014798d86001c324468d497f0",
                                      "xxh3:99AA06d3014798d86001c324468d497f",
                                      "xxh3:99ga06d3014798d86001c324468d497f",
                                      "xxh4:99aa06d3014798d86001c324468d497f",
                                      "99aa06d3014798d86001c324468d497f00000"};
    for (size_t i = 0; i < COUNT_OF(bad); i++) assert_false(digest_parse(bad[i], &back));
}

static void test_digest_in_pieces(void **state) {
    (void)state;
    unsigned char data[5000];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (unsigned char)(i * i >> 3);
    struct rng r = rng_init(1, 1);
    struct err e = {0};
    for (int round = 0; round < 50; round++) {
        size_t n = rng_below(&r, sizeof data + 1), done = 0;
        struct digest_state *s = digest_new(&e);
        assert_non_null(s);
        while (done < n) {
            size_t piece = rng_below(&r, n - done + 1);
            digest_update(s, data + done, piece);
            done += piece;
            digest_update(s, NULL, 0);
        }
        assert_true(digest_equal(digest_get(s), digest_bytes(data, n)));
        assert_true(digest_equal(digest_get(s), digest_bytes(data, n))); /* digest_get leaves the state unchanged */
        digest_free(s);
    }
    char text[DIGEST_TEXT_SIZE];
    digest_text(digest_bytes(data, sizeof data), text);
    assert_string_equal(text, "xxh3:f05619f4b8cc9b78dd9891de816b182f"); /* by Python's xxhash, as below */
    struct digest a = digest_bytes(data, 100);
    data[50] ^= 1;
    assert_false(digest_equal(a, digest_bytes(data, 100)));
    digest_free(NULL);
}

static void test_checksums(void **state) {
    (void)state;
    unsigned char data[5000];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (unsigned char)(i * i >> 3);
    struct rng r = rng_init(1, 2);
    struct err e;
    struct checksum_state *s = checksum_new(&e);
    assert_non_null(s);
    assert_true(checksum_bytes(NULL, 0) == 0x2d06800538d394c2);
    assert_true(checksum_bytes("abc", 3) == 0x78af5f94892f3950);
    assert_true(checksum_bytes(data, sizeof data) == 0xdd9891de816b182f);
    for (int round = 0; round < 50; round++) {
        size_t n = rng_below(&r, sizeof data + 1), done = 0;
        checksum_restart(s);
        for (size_t piece; done < n; done += piece) {
            piece = rng_below(&r, n - done + 1);
            checksum_update(s, data + done, piece);
        }
        assert_true(checksum_get(s) == checksum_bytes(data, n));
    }
    checksum_free(s);
    checksum_free(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox_known_answers),   cmocka_unit_test(test_sequence_is_philox_in_counter_order),
        cmocka_unit_test(test_below_is_uniform),       cmocka_unit_test(test_f64_is_uniform),
        cmocka_unit_test(test_normal_has_its_moments), cmocka_unit_test(test_digest_text),
        cmocka_unit_test(test_digest_in_pieces),       cmocka_unit_test(test_checksums),
    };
    return cmocka_run_group_tests_name("base_rng", tests, NULL, NULL);
}
