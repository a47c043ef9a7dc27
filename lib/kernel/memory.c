/* Memory of the CPU, the only device: host memory, so a buffer is its address. */
#include "lib/kernel/kernel_internal.h"

struct kernel_device {
    char identity; /* gives each device an address of its own */
};

struct kernel_device *kernel_cpu(void) {
    static struct kernel_device cpu;
    return &cpu;
}

struct kernel_array kernel_alloc(struct kernel_device *d, enum dtype dtype, uint64_t n, struct err *e) {
    uint64_t bytes;
    (void)d;
    if (!u64_mul(n, kernel_array_bytes(dtype, 1), &bytes)) bytes = UINT64_MAX;
    return kernel_host_array(dtype, mem_alloc(bytes, e));
}

void kernel_free(struct kernel_device *d, struct kernel_array a) {
    (void)d;
    mem_free(a.buffer);
}

void *kernel_host(struct kernel_array a, size_t n) {
    (void)n;
    return host_of(a);
}

#define COPIED ((size_t)256 << 10) /* bytes copied by a thread at a time */

struct copy_job {
    unsigned char *to;
    const unsigned char *from;
};

static void copy_piece(void *ctx, size_t begin, size_t end) {
    const struct copy_job *j = ctx;
    memcpy(j->to + begin, j->from + begin, end - begin);
}

void copy_bytes(void *to, const void *from, size_t bytes) {
    kernel_split(bytes, COPIED, copy_piece, &(struct copy_job){to, from});
}

void kernel_upload(struct kernel_array y, const void *host, size_t n) {
    copy_bytes(host_of(y), host, kernel_array_bytes(y.dtype, n));
}

void kernel_download(void *host, struct kernel_array x, size_t n) {
    copy_bytes(host, host_of(x), kernel_array_bytes(x.dtype, n));
}
