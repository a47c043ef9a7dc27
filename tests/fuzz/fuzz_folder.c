/*
 * Fuzzes Hugging Face folders: config.json, model.safetensors.index.json, generation_config.json,
 * tokenizer_config.json, tokenizer.json, each up to a zero byte, and the rest as the weights. An empty part means no
 * such file; with an index the weights are its shard a.safetensors. The folder is opened, every tensor is read, and a
 * model stream is written.
 */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/formats/formats_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool holds) {
    if (!holds) abort();
}

static void put_file(int folder, const char *name, const uint8_t *data, size_t n) {
    unlinkat(folder, name, 0);
    if (!n) return;
    int fd = openat(folder, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    must(fd >= 0 && write(fd, data, n) == (ssize_t)n);
    close(fd);
}

static char path[64];

static void remove_folder(void) {
    static const char *const names[] = {"config.json",
                                        "model.safetensors.index.json",
                                        "generation_config.json",
                                        "tokenizer_config.json",
                                        "tokenizer.json",
                                        "a.safetensors",
                                        "model.safetensors"};
    int folder = open(path, O_DIRECTORY | O_CLOEXEC);
    for (size_t i = 0; i < COUNT_OF(names); i++) unlinkat(folder, names[i], 0);
    close(folder);
    rmdir(path);
}

static int make_folder(void) {
    struct stat st;
    snprintf(path, sizeof path, "%s/rill-fuzz.XXXXXX", stat("/dev/shm", &st) == 0 ? "/dev/shm" : "/tmp");
    must(mkdtemp(path) != NULL && atexit(remove_folder) == 0);
    return open(path, O_DIRECTORY | O_CLOEXEC);
}

static void read_tensors(struct foreign_model *f) {
    struct err e;
    volatile unsigned char sum = 0;
    for (size_t i = 0; i < model_slot_count(&f->config); i++) {
        struct tensor_desc d;
        const void *p;
        if (foreign_tensor(f, model_slot_at(&f->config, i), &d, &p, &e)) abort(); /* open has checked them all */
        for (uint64_t k = 0; k < tensor_bytes(&d); k++) sum = (unsigned char)(sum + ((const unsigned char *)p)[k]);
    }
}

/* A weight that is not finite may be refused; a malformed stream is a bug. */
static void write_stream(struct foreign_model *f) {
    struct err e;
    struct stream_writer *w = NULL;
    struct stream_reader *r;
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    must(fd >= 0 && stream_writer_open(&w, fd, "fuzz", NULL, &e) == 0);
    int rc = foreign_write(f, w, DT_F32, NULL, NULL, &e);
    if (!rc) {
        must(stream_writer_finish(w, NULL, &e) == 0 && lseek(fd, 0, SEEK_SET) == 0);
        must(stream_reader_open(&r, fd, "fuzz", STREAM_MODEL, &e) == 0 && stream_drain(r, &e) == 0);
        stream_reader_free(r);
    }
    stream_writer_free(w);
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const names[] = {"config.json", "model.safetensors.index.json", "generation_config.json",
                                        "tokenizer_config.json", "tokenizer.json"};
    static int folder = -1;
    bool sharded = false;
    if (folder < 0) folder = make_folder();
    parallel_set_threads(1);
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        const uint8_t *zero = size ? memchr(data, 0, size) : NULL;
        size_t n = zero ? (size_t)(zero - data) : size;
        put_file(folder, names[i], data, n);
        if (i == 1) sharded = n > 0;
        data += zero ? n + 1 : n;
        size -= zero ? n + 1 : n;
    }
    put_file(folder, "a.safetensors", data, sharded ? size : 0);
    put_file(folder, "model.safetensors", data, sharded ? 0 : size);
    struct foreign_model *f;
    struct err e;
    if (foreign_open(&f, path, NULL, &e)) return 0;
    read_tensors(f);
    write_stream(f);
    foreign_close(f);
    return 0;
}
