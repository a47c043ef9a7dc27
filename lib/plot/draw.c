/* Runs gnuplot: the script is its standard input, the SVG its standard output. */
#include <errno.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/plot/plot.h"

extern char **environ;

/* Unnamed files instead of pipes, so that neither side can block the other. */
struct process {
    int in, out, err;
};

static int read_all(int fd, struct buf *to, struct err *e) {
    ssize_t n = 1;
    if (lseek(fd, 0, SEEK_SET) < 0) return err_sys(e, errno, "gnuplot's output");
    while (n > 0) {
        if (buf_reserve(to, 1 << 16, e)) return e->code;
        n = fd_read(fd, to->data + to->len, 1 << 16);
        if (n < 0) return err_sys(e, errno, "gnuplot's output");
        to->len += (size_t)n;
    }
    return 0;
}

static int start(const struct process *p, pid_t *pid, struct err *e) {
    char *const argv[] = {"gnuplot", "-d", NULL}; /* -d: without the user's settings */
    posix_spawn_file_actions_t files;
    int error = posix_spawn_file_actions_init(&files);
    if (error) return err_sys(e, error, "gnuplot");
    const int fds[] = {p->in, p->out, p->err};
    for (int i = 0; !error && i < 3; i++) error = posix_spawn_file_actions_adddup2(&files, fds[i], i);
    if (!error) error = posix_spawnp(pid, argv[0], &files, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&files);
    if (error == ENOENT)
        return err_set(e, ERR_IO,
                       "gnuplot, which does the drawing, is not installed (make deps, or apt-get install gnuplot-nox)");
    return error ? err_sys(e, error, "gnuplot") : 0;
}

static int wait_for(pid_t pid, int *status, struct err *e) {
    while (waitpid(pid, status, 0) < 0)
        if (errno != EINTR) return err_sys(e, errno, "gnuplot");
    return 0;
}

/* The message is the first meaningful line of standard error. */
static int failed(const struct process *p, int status, struct err *e) {
    struct buf said = {0};
    char line[256] = "it said nothing";
    if (WIFSIGNALED(status)) return err_set(e, ERR_IO, "gnuplot died of signal %d", WTERMSIG(status));
    int rc = read_all(p->err, &said, e);
    const char *text = (const char *)said.data, *end = text + said.len;
    while (!rc && text < end && strchr(" \t\n^", *text)) text++;
    size_t n = 0;
    while (!rc && text + n < end && text[n] != '\n' && n < sizeof line - 1) n++;
    if (n) memcpy(line, text, n), line[n] = 0;
    buf_release(&said);
    return rc ? rc : err_set(e, ERR_IO, "gnuplot failed: %s", line);
}

static int run(const struct process *p, const struct buf *script, struct buf *svg, struct err *e) {
    static const char end[] = "</svg>";
    pid_t pid;
    int status;
    if (!fd_write(p->in, script->data, script->len) || lseek(p->in, 0, SEEK_SET) < 0)
        return err_sys(e, errno, "gnuplot's input");
    if (start(p, &pid, e) || wait_for(pid, &status, e)) return e->code;
    if (status) return failed(p, status, e);
    size_t before = svg->len;
    if (read_all(p->out, svg, e)) return e->code;
    if (svg->len - before > sizeof end && memmem(svg->data + svg->len - 16, 16, end, sizeof end - 1)) return 0;
    return failed(p, 0, e);
}

int plot_draw(const struct buf *script, struct buf *svg, struct err *e) {
    struct process p = {-1, -1, -1};
    int rc = out_scratch(&p.in, e);
    if (!rc) rc = out_scratch(&p.out, e);
    if (!rc) rc = out_scratch(&p.err, e);
    if (!rc) rc = run(&p, script, svg, e);
    const int fds[] = {p.in, p.out, p.err};
    for (size_t i = 0; i < COUNT_OF(fds); i++)
        if (fds[i] >= 0) close(fds[i]);
    return rc;
}
