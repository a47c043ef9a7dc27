/* Tests of lib/base: checked arithmetic, memory, arenas, growable buffers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "lib/base/base.h"

static const size_t hostile_sizes[] = {SIZE_MAX,         SIZE_MAX - 1,        SIZE_MAX - 63,   SIZE_MAX - 64,
                                       SIZE_MAX / 2 + 1, (size_t)PTRDIFF_MAX, PTRDIFF_MAX - 63};

static bool is_aligned(const void *p, size_t align) {
    return (uintptr_t)p % align == 0;
}

static void assert_out_of_memory(struct err *e) {
    assert_int_equal(e->code, ERR_IO);
    assert_memory_equal(e->msg, "out of memory: ", 15);
    *e = (struct err){0};
}

/* Live allocations count against the limit; one that does not fit is refused with both numbers. */
static void test_budget(void **state) {
    (void)state;
    struct err e = {0};
    uint64_t before = mem_in_use();
    mem_set_limit(before + (1 << 20));
    void *p = mem_alloc(900000, &e), *q = mem_alloc(900000, &e);
    assert_non_null(p);
    assert_null(q);
    assert_non_null(strstr(e.msg, "0.9 MB of memory are needed and 0.1 MB are left of --max-memory"));
    assert_out_of_memory(&e);
    mem_free(p);
    assert_int_equal(mem_in_use(), before);
    assert_int_equal(mem_check(1000000, &e), 0);
    mem_set_limit(0);
    assert_int_equal(mem_check((uint64_t)1 << 50, &e), ERR_IO); /* more than any machine has */
    assert_int_equal(mem_check(1 << 20, &e), 0);
}

static void test_checked_arithmetic(void **state) {
    (void)state;
    uint64_t r;
    assert_true(u64_mul(UINT32_MAX, UINT32_MAX, &r));
    assert_int_equal(r, UINT64_C(0xfffffffe00000001));
    assert_false(u64_mul(UINT64_C(1) << 32, UINT64_C(1) << 32, &r));
    assert_true(u64_add(UINT64_MAX, 0, &r));
    assert_false(u64_add(UINT64_MAX, 1, &r));
    const uint64_t aligned[][2] = {{0, 0}, {1, 64}, {63, 64}, {64, 64}, {65, 128}, {UINT64_MAX - 63, UINT64_MAX - 63}};
    for (size_t i = 0; i < COUNT_OF(aligned); i++) {
        assert_true(u64_align(aligned[i][0], 64, &r));
        assert_int_equal(r, aligned[i][1]);
    }
    assert_false(u64_align(UINT64_MAX - 62, 64, &r));
    assert_false(u64_align(UINT64_MAX, 64, &r));
}

static void test_memory_is_aligned_and_usable(void **state) {
    (void)state;
    struct err e = {0};
    const size_t sizes[] = {0, 1, 63, 64, 65, 4097, 1 << 20};
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        unsigned char *p = mem_alloc(sizes[i], &e), *z = mem_zalloc(sizes[i], &e);
        assert_non_null(p);
        assert_non_null(z);
        assert_ptr_not_equal(p, z);
        assert_true(is_aligned(p, 64) && is_aligned(z, 64));
        memset(p, 0xff, sizes[i]);
        for (size_t k = 0; k < sizes[i]; k++) assert_int_equal(z[k], 0);
        mem_free(p);
        mem_free(z);
    }
    char *s = mem_strdup("text", &e);
    assert_string_equal(s, "text");
    mem_free(s);
    mem_free(NULL);
    assert_int_equal(e.code, 0);
}

static void test_memory_refuses_hostile_sizes(void **state) {
    (void)state;
    struct err e = {0};
    for (size_t i = 0; i < COUNT_OF(hostile_sizes); i++) {
        assert_null(mem_alloc(hostile_sizes[i], &e));
        assert_out_of_memory(&e);
        assert_null(mem_zalloc(hostile_sizes[i], &e));
        assert_out_of_memory(&e);
        assert_null(mem_array(hostile_sizes[i], 1, &e));
        assert_out_of_memory(&e);
    }
    /* products that wrap around to a small number */
    assert_null(mem_array(SIZE_MAX / 8 + 2, 8, &e));
    assert_out_of_memory(&e);
    assert_null(mem_array((size_t)1 << 32, (size_t)1 << 32, &e));
    assert_out_of_memory(&e);
}

static void test_the_nth_allocation_fails(void **state) {
    (void)state;
    struct err e = {0};
    mem_fail_at(2);
    void *first = mem_alloc(8, &e);
    assert_non_null(first);
    assert_null(mem_alloc(8, &e));
    assert_out_of_memory(&e);
    void *third = mem_alloc(8, &e); /* only one allocation fails */
    assert_non_null(third);
    mem_fail_at(1);
    mem_fail_at(0);
    void *fourth = mem_alloc(8, &e);
    assert_non_null(fourth);
    mem_free(first);
    mem_free(third);
    mem_free(fourth);
}

/* Objects must not overlap, must keep what was written and must be aligned as promised. */
static void test_arena_objects(void **state) {
    (void)state;
    enum { N = 2000 };
    static unsigned char *objects[N];
    static size_t sizes[N];
    struct arena a = {0};
    struct err e = {0};
    struct rng r = rng_init(1, 2);
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < N; i++) {
            sizes[i] = i == 1000 ? 3 << 20 : rng_below(&r, 400); /* one larger than any block */
            objects[i] = arena_alloc(&a, sizes[i], &e);
            assert_non_null(objects[i]);
            assert_true(is_aligned(objects[i], sizes[i] >= 64 ? 64 : 16));
            memset(objects[i], (int)(i % 251), sizes[i]);
        }
        for (size_t i = 0; i < N; i++)
            for (size_t k = 0; k < sizes[i]; k++) assert_int_equal(objects[i][k], i % 251);
        arena_reset(&a);
    }
    arena_release(&a);
    arena_release(&a); /* an empty arena may be released */
    arena_reset(&a);
    void *p = arena_array(&a, 10, 10, &e), *q = arena_alloc(&a, 0, &e), *s = arena_alloc(&a, 0, &e);
    assert_ptr_not_equal(q, s);
    for (size_t k = 0; k < 100; k++) assert_int_equal(((unsigned char *)p)[k], 0);
    arena_release(&a);
}

static void test_arena_text(void **state) {
    (void)state;
    struct arena a = {0};
    struct err e = {0};
    assert_string_equal(arena_strdup(&a, "abc", &e), "abc");
    assert_string_equal(arena_strndup(&a, "abcdef", 3, &e), "abc");
    assert_string_equal(arena_strndup(&a, "", 0, &e), "");
    assert_string_equal(arena_printf(&a, &e, "%s-%d", "x", 42), "x-42");
    char *wide = arena_printf(&a, &e, "%*d", 100000, 7);
    assert_int_equal(strlen(wide), 100000);
    arena_release(&a);
}

/* As a stream's scratch arena is used: once a record of some size was read, resetting and refilling allocates
 * nothing. */
static void test_arena_reset_keeps_a_block(void **state) {
    (void)state;
    struct arena a = {0};
    struct err e = {0};
    assert_non_null(arena_alloc(&a, 5 << 20, &e));
    assert_non_null(arena_alloc(&a, 100, &e)); /* a smaller block ahead of the large one; the large one must be kept */
    arena_reset(&a);
    mem_fail_at(1);
    for (int record = 0; record < 100; record++) {
        for (int i = 0; i < 5; i++) assert_non_null(arena_alloc(&a, 1 << 20, &e));
        arena_reset(&a);
    }
    assert_null(arena_alloc(&a, 6 << 20, &e)); /* nothing before reached the armed failure */
    assert_out_of_memory(&e);
    assert_non_null(arena_alloc(&a, 100, &e)); /* the arena survives the failure */
    arena_release(&a);
}

static void test_arena_refuses_hostile_sizes(void **state) {
    (void)state;
    struct err e = {0};
    for (int filled = 0; filled < 2; filled++) {
        struct arena a = {0};
        if (filled) assert_non_null(arena_alloc(&a, 1000, &e));
        for (size_t i = 0; i < COUNT_OF(hostile_sizes); i++) {
            assert_null(arena_alloc(&a, hostile_sizes[i], &e));
            assert_out_of_memory(&e);
            assert_null(arena_strndup(&a, "x", hostile_sizes[i], &e));
            assert_out_of_memory(&e);
        }
        assert_null(arena_array(&a, SIZE_MAX / 8 + 2, 8, &e));
        assert_out_of_memory(&e);
        arena_release(&a);
    }
}

static void test_buf_grows(void **state) {
    (void)state;
    struct buf b = {0};
    struct err e = {0};
    for (unsigned i = 0; i < 100000; i++) {
        unsigned char c = (unsigned char)(i * 7);
        assert_int_equal(buf_append(&b, &c, 1, &e), 0);
    }
    assert_int_equal(b.len, 100000);
    assert_true(b.cap < 300000);
    assert_true(is_aligned(b.data, 64));
    for (unsigned i = 0; i < 100000; i++) assert_int_equal(b.data[i], (unsigned char)(i * 7));
    assert_int_equal(buf_append(&b, NULL, 0, &e), 0);
    assert_int_equal(buf_printf(&b, &e, "%s=%d;", "k", 5), 0);
    assert_int_equal(b.len, 100004);
    assert_memory_equal(b.data + 100000, "k=5;", 4);
    buf_release(&b);
    assert_null(b.data);
    assert_int_equal(b.len + b.cap, 0);
    assert_int_equal(buf_reserve(&b, 0, &e), 0);
    assert_non_null(b.data); /* zero bytes still get an address */
    buf_release(&b);
}

static void test_buf_keeps_its_bytes_when_memory_is_out(void **state) {
    (void)state;
    struct buf b = {0};
    struct err e = {0};
    assert_int_equal(buf_append(&b, "kept", 4, &e), 0);
    for (size_t i = 0; i < COUNT_OF(hostile_sizes); i++) {
        assert_int_equal(buf_reserve(&b, hostile_sizes[i], &e), ERR_IO);
        assert_out_of_memory(&e);
    }
    mem_fail_at(1);
    assert_int_equal(buf_reserve(&b, 1000, &e), ERR_IO);
    assert_out_of_memory(&e);
    assert_int_equal(b.len, 4);
    assert_memory_equal(b.data, "kept", 4);
    buf_release(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_checked_arithmetic),
        cmocka_unit_test(test_budget),
        cmocka_unit_test(test_memory_is_aligned_and_usable),
        cmocka_unit_test(test_memory_refuses_hostile_sizes),
        cmocka_unit_test(test_the_nth_allocation_fails),
        cmocka_unit_test(test_arena_objects),
        cmocka_unit_test(test_arena_text),
        cmocka_unit_test(test_arena_reset_keeps_a_block),
        cmocka_unit_test(test_arena_refuses_hostile_sizes),
        cmocka_unit_test(test_buf_grows),
        cmocka_unit_test(test_buf_keeps_its_bytes_when_memory_is_out),
    };
    return cmocka_run_group_tests_name("base_mem", tests, NULL, NULL);
}
