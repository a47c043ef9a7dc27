/* process: sets up the process before a program does anything. Separate from main.c for the dispatcher, which needs no
 * streams. */
#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <malloc.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include "lib/cli/cli_internal.h"

/* With `>&-` the next file opened would become standard output. Opening /dev/null in the wrong mode makes its use fail,
 * as it should. */
static void occupy_descriptors(void) {
    static const int mode[] = {O_WRONLY, O_RDONLY, O_RDONLY};
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF && open("/dev/null", mode[fd]) != fd) _exit(1);
}

/* By default glibc returns freed arrays of more than a few MB to the system, and a method that allocates the same ones
 * for every layer pays for clearing their pages each time: 3% of the time of GPTQ. */
static void keep_freed_memory(void) {
#ifdef __GLIBC__
    mallopt(M_MMAP_THRESHOLD, 32 << 20); /* larger arrays, such as weights, are returned */
    mallopt(M_TRIM_THRESHOLD, 256 << 20);
#endif
}

void cli_process_setup(void) {
    occupy_descriptors();
    keep_freed_memory();
    signal(SIGPIPE, SIG_DFL); /* some parents leave it ignored, and filters would keep running without a reader */
    signal(SIGXFSZ, SIG_IGN); /* makes exceeding the file size limit an error with a message */
    setlocale(LC_ALL, "C");
}

#define STACK ((size_t)4 << 20) /* upper bound for the main thread: blocked kernels keep scratch memory there */

/* Touches only the lowest byte: pages above it are allocated on use. */
static __attribute__((noinline)) void touch_stack(void) {
    char deep[STACK];
    *(volatile char *)deep = 0;
}

int cli_reserve_stack(struct err *e) {
    struct rlimit stack;
    if (mem_address_space() < 2 * STACK)
        return err_set(e, ERR_IO, "out of memory: the limit on the address space (ulimit -v) leaves %.1f MB",
                       (double)mem_address_space() / 1e6);
    if (getrlimit(RLIMIT_STACK, &stack) == 0 && stack.rlim_cur >= 2 * STACK) touch_stack();
    return 0;
}
