/*
 * signals: a signal that ends the program first removes its temporary files; the program still dies of the signal, so
 * that the shell sees it. A program may handle SIGINT, SIGTERM and SIGUSR1 itself. Worker threads block all signals
 * (lib/base/parallel.c), so handlers run in the main thread.
 */
#include <signal.h>
#include <unistd.h>

#include "lib/cli/cli_internal.h"

static volatile sig_atomic_t stop_signal;    /* the signal that requested a stop; 0: none */
static volatile sig_atomic_t line_is_open;   /* stderr has an unfinished line */
static volatile sig_atomic_t usr1_requested; /* SIGUSR1 arrived since the last cli_take_usr1 */

/* Re-raises the signal for the parent to see. It is blocked while its handler runs and takes effect on return. */
static void die_of(int sig) {
    if (line_is_open) (void)fd_write(STDERR_FILENO, "\n", 1);
    out_remove_temporaries();
    signal(sig, SIG_DFL);
    raise(sig);
}

static void note_stop(int sig) {
    if (stop_signal)
        die_of(sig);
    else
        stop_signal = sig;
}

static void note_usr1(int sig) {
    (void)sig;
    usr1_requested = 1;
}

/* A signal that is deliberately ignored (nohup, background jobs) stays ignored, and a sanitizer or profiler keeps its
 * handler. */
static void catch_signal(int sig, void (*handler)(int), void (*instead_of)(int)) {
    struct sigaction sa = {.sa_handler = handler, .sa_flags = SA_RESTART}, old;
    if (sigaction(sig, NULL, &old) || old.sa_flags & SA_SIGINFO || old.sa_handler != instead_of) return;
    sigfillset(&sa.sa_mask);
    sigaction(sig, &sa, NULL);
}

/* Does the default action neither terminate the process nor dump core? */
static bool is_harmless(int sig) {
    switch (sig) {
    case SIGCHLD:
    case SIGCONT:
    case SIGSTOP:
    case SIGTSTP:
    case SIGTTIN:
    case SIGTTOU:
    case SIGURG:
    case SIGWINCH: return true;
    default: return false;
    }
}

/* A signal that the parent deliberately ignores stays ignored, but one that it happened to block is unblocked. */
void cli_signals_install(void) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    for (int sig = 1; sig <= SIGRTMAX; sig++)
        if (!is_harmless(sig) && (sig <= SIGSYS || sig >= SIGRTMIN)) catch_signal(sig, die_of, SIG_DFL);
}

void signals_line_open(bool open) {
    line_is_open = open;
}

void signals_end(void) {
    if (stop_signal) die_of(stop_signal);
}

void cli_catch_stop(void) {
    catch_signal(SIGINT, note_stop, die_of);
    catch_signal(SIGTERM, note_stop, die_of);
}

int cli_stop_requested(void) {
    return stop_signal;
}

void cli_catch_usr1(void) {
    catch_signal(SIGUSR1, note_usr1, die_of);
}

bool cli_take_usr1(void) {
    if (!usr1_requested) return false; /* so that none is lost between a look and the reset */
    usr1_requested = 0;
    return true;
}
