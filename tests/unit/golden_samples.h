/* Fixture files and foreign models, for tests that compare with another implementation. */
#ifndef RILL_TESTS_GOLDEN_SAMPLES_H
#define RILL_TESTS_GOLDEN_SAMPLES_H

#include "tests/unit/model_samples.h"

#include "lib/formats/formats.h"

/* Reads a file, which must have exactly n bytes. Free with mem_free. */
static inline void *golden_file(const char *path, size_t n) {
    struct err e;
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("%s: cannot open", path);
    void *data = mem_alloc(n, &e);
    assert_int_equal(fread(data, 1, n, f), n);
    assert_int_equal(fgetc(f), EOF);
    fclose(f);
    return data;
}

/* Imports a foreign model to a stream and loads it. */
static inline struct model *imported(const char *path) {
    struct err e;
    struct foreign_model *f;
    struct stream_writer *w;
    struct model *m = NULL;
    struct foreign_options o = {0};
    int fd = memory_file();
    OK(foreign_open(&f, path, &o, &e));
    OK(stream_writer_open(&w, fd, "model", NULL, &e));
    OK(foreign_write(f, w, 0, NULL, NULL, &e));
    OK(stream_writer_finish(w, NULL, &e));
    stream_writer_free(w);
    foreign_close(f);
    struct buf b = contents(fd);
    OK(load_model(&b, &m, &e));
    buf_release(&b);
    return m;
}

#endif
