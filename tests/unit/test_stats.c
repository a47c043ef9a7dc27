/* Tests of lib/stats: accumulated statistics against plain sums; merging; hostile streams. */
#include "tests/unit/model_samples.h"

static struct buf saved(const struct stats *s) {
    struct err e;
    struct stream_writer *w;
    int fd = memory_file();
    OK(stream_writer_open(&w, fd, "stats", NULL, &e));
    OK(stats_write(s, w, &e));
    OK(stream_writer_finish(w, NULL, &e));
    stream_writer_free(w);
    return contents(fd);
}

static int load(const struct buf *b, struct stats **out, struct err *e) {
    struct stream_reader *r;
    int fd = file_of(b->data, b->len);
    int rc = stream_reader_open(&r, fd, "stats.rill", STREAM_STATS, e);
    if (!rc) {
        rc = stats_load(out, r, NULL, e);
        stream_reader_free(r);
    }
    close(fd);
    return rc;
}

/* The same with second moments left in the file. */
static struct stats *load_mapped(const struct buf *b) {
    struct err e;
    struct stream_reader *r;
    struct stream_map *map;
    struct stats *s;
    char path[32];
    int fd = file_of(b->data, b->len);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    OK(stream_map_open(&map, path, STREAM_STATS, &e));
    OK(stream_reader_open(&r, fd, "stats.rill", STREAM_STATS, &e));
    OK(stats_load(&s, r, map, &e));
    stream_reader_free(r);
    close(fd);
    return s;
}

/* What one point of the graph received, recorded by the test's own tap. */
struct seen {
    enum model_point point;
    uint32_t layer;
    float *x, *in;
    size_t rows, cols;
};
static int keep(void *ctx, const struct model_seen *now, struct err *e) {
    struct seen *s = ctx;
    bool is_input =
        (now->point == POINT_EMBED && s->layer == 0) || (now->point == POINT_LAYER && now->layer + 1 == s->layer);
    bool is_it = now->point == s->point && now->layer == s->layer;
    const float *x;
    if (!is_input && !is_it) return 0;
    if (model_seen_f32(now, &x, e)) return e->code;
    float *copy = mem_array(now->rows * now->cols, sizeof *copy, e);
    memcpy(copy, x, now->rows * now->cols * sizeof *copy);
    if (is_it)
        s->x = copy, s->rows = now->rows, s->cols = now->cols;
    else {
        mem_free(s->in);
        s->in = copy;
    }
    return 0;
}

static void sums_are_the_plain_sums(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = sample_model(&c, 1);
    const uint32_t lengths[] = {20, 1, 9};
    uint32_t tokens[30];
    sample_tokens(tokens, 30, c.vocab_size, 3);
    struct model_input in = {30, 3, tokens, lengths};
    struct stats *s = stats_of(m, &in);
    struct grad_tape *t;
    OK(grad_tape_new(&t, kernel_cpu(), false, DT_F32, &e));
    assert_int_equal(stats_positions(s), 30);
    assert_int_equal(stats_sequences(s), 3);
    for (uint32_t layer = 0; layer < 2; layer++)
        for (int p = POINT_ATTN_IN; p <= POINT_LAYER; p++) {
            struct seen seen = {.point = (enum model_point)p, .layer = layer};
            OK(model_infer(m, t, &in, keep, &seen, NULL, NULL, &e));
            assert_int_equal(seen.cols, stats_cols(s, seen.point, layer));
            for (size_t j = 0; j < seen.cols; j++) {
                double abs_sum = 0, sq = 0, seq_sq = 0;
                for (size_t q = 0, r = 0; q < 3; q++) {
                    double mean = 0;
                    for (uint32_t i = 0; i < lengths[q]; i++, r++) {
                        double v = seen.x[r * seen.cols + j];
                        abs_sum += fabs(v), sq += v * v, mean += fabs(v) / lengths[q];
                    }
                    seq_sq += mean * mean;
                }
                assert_true(fabs(stats_sum_abs(s, seen.point, layer)[j] - abs_sum) <= 1e-12 * abs_sum);
                assert_true(fabs(stats_sum_sq(s, seen.point, layer)[j] - sq) <= 1e-12 * sq);
                assert_true(fabs(stats_seq_sq(s, seen.point, layer)[j] - seq_sq) <= 1e-12 * seq_sq);
            }
            if (p == POINT_LAYER) {
                double distance = 0;
                for (size_t r = 0; r < 30; r++) {
                    double xy = 0, xx = 0, yy = 0;
                    for (size_t j = 0; j < seen.cols; j++) {
                        double x = seen.in[r * seen.cols + j], y = seen.x[r * seen.cols + j];
                        xy += x * y, xx += x * x, yy += y * y;
                    }
                    distance += 1 - xy / sqrt(xx * yy);
                }
                assert_true(fabs(stats_influence(s, layer) - distance / 30) < 1e-12);
                assert_true(distance > 0);
            }
            mem_free(seen.x);
            mem_free(seen.in);
        }
    grad_tape_free(t);
    stats_free(s);
    model_free(m);
    arena_release(&a);
}

/* Statistics of two texts in two consecutive streams are those of both texts. */
static void statistics_add_up(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = sample_model(&c, 1);
    const uint32_t lengths[] = {20, 10};
    uint32_t tokens[30];
    sample_tokens(tokens, 30, c.vocab_size, 3);
    struct model_input both = {30, 2, tokens, lengths}, first = {20, 1, tokens, lengths},
                       second = {10, 1, tokens + 20, lengths + 1};
    struct stats *whole = stats_of(m, &both), *one = stats_of(m, &first), *two = stats_of(m, &second), *sum;
    struct buf b1 = saved(one), b2 = saved(two);
    OK(buf_append(&b1, b2.data, b2.len, &e));
    OK(load(&b1, &sum, &e));
    assert_int_equal(stats_positions(sum), 30);
    assert_int_equal(stats_sequences(sum), 2);
    for (uint32_t l = 0; l < 2; l++) {
        for (int p = POINT_ATTN_IN; p <= POINT_LAYER; p++)
            for (size_t j = 0; j < stats_cols(whole, (enum model_point)p, l); j++) {
                double x = stats_sum_sq(whole, (enum model_point)p, l)[j],
                       y = stats_sum_sq(sum, (enum model_point)p, l)[j];
                /* matrix products of 30 rows and of 20 may round differently */
                assert_true(fabs(x - y) <= 1e-5 * x + 1e-12);
            }
        assert_true(fabs(stats_influence(whole, l) - stats_influence(sum, l)) < 1e-5);
    }
    stats_free(whole);
    stats_free(one);
    stats_free(two);
    stats_free(sum);
    buf_release(&b1);
    buf_release(&b2);
    model_free(m);
    arena_release(&a);
}

/* The plain sums of squares at a point, over the rows of `half` (batch 0: the first rows, batch 1: the last) or all. */
static double *plain_moments(struct model *m, struct grad_tape *t, const struct model_input *parts, size_t n,
                             enum model_point point, uint32_t layer, bool half) {
    struct err e;
    double *sums = NULL;
    for (size_t i = 0; i < n; i++) {
        struct seen seen = {.point = point, .layer = layer};
        OK(model_infer(m, t, &parts[i], keep, &seen, NULL, NULL, &e));
        size_t middle = seen.rows / 2, first = half && i % 2 ? middle : 0,
               end = half && i % 2 == 0 ? middle : seen.rows;
        if (!sums) sums = mem_array(seen.cols, seen.cols * sizeof *sums, &e);
        for (size_t r = first; r < end; r++)
            for (size_t j = 0; j < seen.cols * seen.cols; j++)
                sums[j] += (double)seen.x[r * seen.cols + j / seen.cols] * seen.x[r * seen.cols + j % seen.cols];
        mem_free(seen.x);
        mem_free(seen.in);
    }
    return sums;
}

static void check_moments_of(const struct stats *s, struct model *m, struct grad_tape *t,
                             const struct model_input *parts, struct model_slot slot) {
    struct err e;
    struct stats_known known = {0};
    struct stats_gram g;
    assert_true(stats_has_gram(s, slot));
    assert_false(stats_known_is(&known, s, slot));
    OK(stats_known_read(&known, s, slot, &e));
    assert_true(stats_known_is(&known, s, slot));
    g = known.gram;
    double *all = plain_moments(m, t, parts, 2, g.point, g.layer, false),
           *half = plain_moments(m, t, parts, 2, g.point, g.layer, true);
    assert_int_equal(g.cols, stats_cols(s, g.point, g.layer));
    assert_true((g.half_rows - 1) * g.stride < g.cols && g.half_rows * g.stride >= g.cols && g.half_rows <= 65);
    for (size_t i = 0; i < g.cols; i++)
        for (size_t j = 0; j < g.cols; j++) {
            double room = 1e-6 * sqrt(all[i * (g.cols + 1)] * all[j * (g.cols + 1)]); /* sums in f32 */
            assert_true(fabs(g.sum[i * g.cols + j] - all[i * g.cols + j]) <= room);
            if (i % g.stride == 0) assert_true(fabs(g.half[i / g.stride * g.cols + j] - half[i * g.cols + j]) <= room);
        }
    stats_known_release(&known);
    mem_free(all);
    mem_free(half);
}

/* Of all inputs and of the head's, loaded and in the file; if one stream lacks them, merging fails. */
static void moments_are_the_plain_sums(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = sample_model(&c, 1);
    const uint32_t lengths[] = {20, 10};
    uint32_t tokens[30];
    sample_tokens(tokens, 30, c.vocab_size, 3);
    struct model_input parts[] = {{20, 1, tokens, lengths}, {10, 1, tokens + 20, lengths + 1}};
    const struct model_slot inner = {.role = ROLE_DOWN, .layer = 1}, head = {.role = ROLE_HEAD};
    struct stats *s, *back, *mapped, *no = NULL, *without = stats_of(m, &parts[0]);
    struct buf other = saved(without);
    struct grad_tape *t;
    assert_false(stats_has_gram(without, head));
    OK(grad_tape_new(&t, kernel_cpu(), false, DT_F32, &e));
    for (enum stats_moments_of which = STATS_MOMENTS_HEAD; which <= STATS_MOMENTS_ALL; which++) {
        OK(stats_new(&s, &c, NULL, &e));
        OK(stats_want_moments(s, &(struct stats_moments_wanted){.of = which}, &e));
        for (int i = 0; i < 2; i++) OK(stats_collect(s, m, t, &parts[i], &e));
        struct buf b = saved(s);
        OK(load(&b, &back, &e));
        mapped = load_mapped(&b);
        for (int i = 0; i < 2; i++) {
            struct stats *of = i ? mapped : back;
            assert_int_equal(stats_moments_in(of), which);
            check_moments_of(of, m, t, parts, head);
            if (which == STATS_MOMENTS_ALL)
                check_moments_of(of, m, t, parts, inner);
            else
                assert_false(stats_has_gram(of, inner));
            stats_free(of);
        }
        OK(buf_append(&b, other.data, other.len, &e));
        assert_int_equal(load(&b, &no, &e), ERR_DATA);
        assert_non_null(strstr(e.msg, "second moments"));
        stats_free(s);
        buf_release(&b);
    }
    stats_free(without);
    buf_release(&other);
    grad_tape_free(t);
    model_free(m);
    arena_release(&a);
}

static void statistics_of_another_model_are_refused(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a), other = sample_config(&a);
    struct stats *s, *back = NULL;
    OK(stats_new(&s, &c, NULL, &e));
    OK(stats_check(s, &other, (struct digest){0}, &e));
    other.layers[1].ffn++;
    assert_int_equal(stats_check(s, &other, (struct digest){0}, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "layer 1"));
    other.layers[1].ffn--;
    other.n_layers = 1;
    assert_int_equal(stats_check(s, &other, (struct digest){0}, &e), ERR_DATA);
    /* two shapes in one file */
    struct stats *t;
    OK(stats_new(&t, &other, NULL, &e));
    struct buf b1 = saved(s), b2 = saved(t);
    OK(buf_append(&b1, b2.data, b2.len, &e));
    assert_int_equal(load(&b1, &back, &e), ERR_DATA);
    stats_free(s);
    stats_free(t);
    buf_release(&b1);
    buf_release(&b2);
    arena_release(&a);
}

/* A stream with one tensor altered. */
static struct buf doctored(const struct buf *in, const char *name, int how) {
    struct err e;
    struct stream_reader *r;
    struct stream_writer *w;
    struct stream_item item = {0};
    int from = file_of(in->data, in->len), to = memory_file();
    OK(stream_reader_open(&r, from, "a", STREAM_STATS, &e));
    OK(stream_writer_open(&w, to, "b", NULL, &e));
    while (item.type != ITEM_EOF) {
        OK(stream_next(r, &item, &e));
        if (item.type == ITEM_META) OK(stream_write_meta(w, item.json, &e));
        if (item.type != ITEM_TENSOR) continue;
        struct buf data = {0};
        struct tensor_desc d = item.desc;
        OK(stream_load_tensor(r, &data, &e));
        bool this = !strcmp(d.name, name);
        if (this && how == 0) ((double *)data.data)[3] = -1;
        if (this && how == 1) ((double *)data.data)[3] = NAN;
        if (this && how == 2) snprintf(d.name, sizeof d.name, "layers.9.attn_in.sum_sq");
        if (this && how == 3) d.dims[0]--;
        if (!(this && how == 4)) OK(stream_write_tensor(w, &d, NULL, data.data, &e));
        buf_release(&data);
    }
    OK(stream_writer_finish(w, NULL, &e));
    stream_writer_free(w);
    stream_reader_free(r);
    close(from);
    return contents(to);
}

static void hostile_statistics_are_refused(void **state) {
    (void)state;
    static const char *const says[] = {"element 3 is not a sum", "element 3 is not a sum",
                                       "not a statistic of this model", "wrong type or shape", "expected"};
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct stats *s, *back = NULL;
    OK(stats_new(&s, &c, NULL, &e));
    struct buf good = saved(s);
    for (int how = 0; how < 5; how++) {
        struct buf bad = doctored(&good, "layers.1.o_in.sum_sq", how);
        assert_int_equal(load(&bad, &back, &e), ERR_DATA);
        if (!strstr(e.msg, says[how])) fail_msg("'%s' does not say '%s'", e.msg, says[how]);
        buf_release(&bad);
    }
    stats_free(s);
    buf_release(&good);
    arena_release(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_are_the_plain_sums),        cmocka_unit_test(statistics_add_up),
        cmocka_unit_test(moments_are_the_plain_sums),     cmocka_unit_test(statistics_of_another_model_are_refused),
        cmocka_unit_test(hostile_statistics_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
