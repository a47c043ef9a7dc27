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

void kernel_upload(struct kernel_array y, const void *host, size_t n) {
    memcpy(host_of(y), host, kernel_array_bytes(y.dtype, n));
}

void kernel_download(void *host, struct kernel_array x, size_t n) {
    memcpy(host, host_of(x), kernel_array_bytes(x.dtype, n));
}
