/* process: what must hold before a program does anything. Apart from main.c because the dispatcher needs no streams. */
#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <signal.h>
#include <unistd.h>

#include "lib/cli/cli_internal.h"

/* With `>&-` the next file opened would become standard output. The wrong mode makes its use fail as it should. */
static void occupy_descriptors(void) {
    static const int mode[] = {O_WRONLY, O_RDONLY, O_RDONLY};
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF && open("/dev/null", mode[fd]) != fd) _exit(1);
}

void cli_process_setup(void) {
    occupy_descriptors();
    signal(SIGPIPE, SIG_DFL); /* some parents leave it ignored, and filters then run on for nobody */
    signal(SIGXFSZ, SIG_IGN); /* a full quota is an error with a message */
    setlocale(LC_ALL, "C");
}
