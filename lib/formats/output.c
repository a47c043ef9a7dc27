/* Writes whole buffers to the descriptor of a foreign file. */
#include <errno.h>

#include "lib/formats/formats_internal.h"

int write_all(int fd, const void *data, size_t n, struct err *e) {
    return fd_write(fd, data, n) ? 0 : err_sys(e, errno, "write");
}
