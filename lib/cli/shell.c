/* Runs a shell command given by an option, with its output going to a file. */
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/cli/cli_internal.h"

extern char **environ;

/* Standard input is empty: a command like ssh would otherwise consume input meant for this program. */
static int start(const char *command, int fd, pid_t *pid, struct err *e) {
    char *argv[] = {"sh", "-c", (char *)command, NULL};
    posix_spawn_file_actions_t files;
    int error = posix_spawn_file_actions_init(&files);
    if (error) return err_sys(e, error, "sh");
    error = posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    if (!error) error = posix_spawn_file_actions_adddup2(&files, fd, STDOUT_FILENO);
    if (!error) error = posix_spawn(pid, "/bin/sh", &files, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&files);
    return error ? err_sys(e, error, "sh") : 0;
}

int cli_shell(const char *command, const char *variable, const char *value, int fd, struct err *e) {
    pid_t pid;
    int status;
    if (setenv(variable, value, 1) != 0) return err_sys(e, errno, "environment");
    if (start(command, fd, &pid, e)) return e->code;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR) return err_sys(e, errno, "sh");
    if (WIFSIGNALED(status)) return err_set(e, ERR_IO, "the command died of signal %d", WTERMSIG(status));
    if (WEXITSTATUS(status)) return err_set(e, ERR_IO, "the command ended with exit code %d", WEXITSTATUS(status));
    return 0;
}
