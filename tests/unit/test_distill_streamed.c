/* Tests of a teacher that is read layer by layer beside the student: once for a step, whatever its passes, and with
 * the bits of one in memory. */
#include "tests/unit/distill_samples.h"

/* Opens the teacher's stream anew each time. */
struct source {
    struct buf bytes;
    struct stream_reader *open[100];
    int fd[100];
    size_t times;
};

static int read_teacher(void *ctx, struct stream_reader **out, struct err *e) {
    struct source *s = ctx;
    int fd = file_of(s->bytes.data, s->bytes.len);
    assert_true(s->times < COUNT_OF(s->open));
    int rc = stream_reader_open(out, fd, "teacher.rill", STREAM_MODEL, e);
    s->fd[s->times] = fd;
    s->open[s->times++] = *out;
    return rc;
}

static struct buf saved_teacher(const struct model *m) {
    struct err e;
    struct stream_writer *w;
    int fd = memory_file();
    OK(stream_writer_open(&w, fd, "teacher", NULL, &e));
    OK(model_save(m, w, 0, &e));
    OK(stream_writer_finish(w, NULL, &e));
    stream_writer_free(w);
    return contents(fd);
}

static void a_streamed_teacher_is_read_once_a_step(void **state) {
    static const struct {
        uint32_t pack;
        size_t cut, micro;
        const char *loss;
    } cases[] = {{0, 7, 15, "kl:teacher=live"},
                 {30, 7, 15, "kl:teacher=live"},
                 {30, 200, 15, "kl:teacher=live"},
                 {30, 11, 9, "kl:teacher=live"},
                 {30, 11, 30, "kl:teacher=live"},
                 {30, 11, 1000, "kl:teacher=live"},
                 {30, 60, 15, "kl:teacher=live hidden:map=1:0"}};
    struct sample s = sample_new(60, 14, VOCAB, 31);
    struct model *teacher = student_new(false, 2);
    struct source source = {.bytes = saved_teacher(teacher)};
    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct err e;
        struct knowledge_format f = {.temperature = 1, .pack = cases[i].pack};
        struct distill_options o = options_of(cases[i].loss, &f);
        struct distill_progress p;
        int fd = packed_file(&s, cases[i].pack, cases[i].cut);
        o.micro_tokens = cases[i].micro;
        o.teacher.model = teacher;
        struct buf want = trained(fd, &o, &f, NULL);
        struct stream_reader *first;
        o.teacher.model = NULL;
        source.times = 0;
        OK(read_teacher(&source, &first, &e));
        OK(model_layerwise_new(&o.teacher.layerwise, kernel_cpu(), first, WEIGHTS_F32, read_teacher, &source, &e));
        struct buf got = trained(fd, &o, &f, &p);
        assert_true(p.step > 5);
        assert_int_equal(source.times, p.step);
        assert_int_equal(got.len, want.len);
        assert_memory_equal(got.data, want.data, want.len);
        model_layerwise_free(o.teacher.layerwise);
        for (size_t r = 0; r < source.times; r++) {
            stream_reader_free(source.open[r]);
            close(source.fd[r]);
        }
        buf_release(&got);
        buf_release(&want);
        close(fd);
    }
    buf_release(&source.bytes);
    model_free(teacher);
    sample_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_streamed_teacher_is_read_once_a_step)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
