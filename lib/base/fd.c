/* fd: the read and write calls that all I/O goes through: they retry when interrupted and wait when non-blocking. */
#include <errno.h>
#include <poll.h>
#include <sys/uio.h>
#include <unistd.h>

#include "lib/base/base.h"

#define ONE_CALL_BYTES ((size_t)1 << 30) /* Linux transfers at most 2 GiB per call */

/* After a failed call: may it be retried? Waits for the descriptor if it is non-blocking. */
static bool wait_for(int fd, short events) {
    if (errno == EINTR) return true;
    if (errno != EAGAIN && errno != EWOULDBLOCK) return false;
    struct pollfd p = {.fd = fd, .events = events};
    return poll(&p, 1, -1) >= 0 || errno == EINTR;
}

ssize_t fd_read(int fd, void *dst, size_t n) {
    ssize_t got;
    if (n > ONE_CALL_BYTES) n = ONE_CALL_BYTES;
    while ((got = read(fd, dst, n)) < 0)
        if (!wait_for(fd, POLLIN)) return -1;
    return got;
}

ssize_t fd_read_at(int fd, void *dst, size_t n, off_t at) {
    size_t done = 0;
    while (done < n) {
        ssize_t got = pread(fd, (char *)dst + done, n - done, at + (off_t)done);
        if (got < 0 && !wait_for(fd, POLLIN)) return -1;
        if (got == 0) break;
        if (got > 0) done += (size_t)got;
    }
    return (ssize_t)done;
}

bool fd_write2(int fd, const void *a, size_t n_a, const void *b, size_t n_b) {
    struct iovec v[2] = {{(void *)(uintptr_t)a, n_a}, {(void *)(uintptr_t)b, n_b}};
    while (v[0].iov_len + v[1].iov_len > 0) {
        bool skip = v[0].iov_len == 0;
        ssize_t w = writev(fd, v + skip, 2 - skip);
        if (w < 0) {
            if (!wait_for(fd, POLLOUT)) return false;
            continue;
        }
        for (size_t i = 0, left = (size_t)w; i < 2; i++) {
            size_t used = left < v[i].iov_len ? left : v[i].iov_len;
            v[i].iov_base = (unsigned char *)v[i].iov_base + used;
            v[i].iov_len -= used;
            left -= used;
        }
    }
    return true;
}

bool fd_write(int fd, const void *data, size_t n) {
    return fd_write2(fd, data, n, NULL, 0);
}
