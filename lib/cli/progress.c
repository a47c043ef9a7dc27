/*
 * progress: one line on stderr, updated at most ten times a second on a terminal and erased at the end. In a pipeline
 * only the last program shows one (several would overwrite each other). Without a terminal it prints whole lines: every
 * two seconds with --progress=always, every half minute with -v.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/cli/cli_internal.h"

#define TERMINAL_PERIOD 0.1
#define LINE_PERIOD     2.0
#define VERBOSE_PERIOD  30.0

static double since(const struct timespec *t, const struct timespec *now) {
    return (double)(now->tv_sec - t->tv_sec) + 1e-9 * (double)(now->tv_nsec - t->tv_nsec);
}

static bool in_foreground(void) {
    pid_t group = tcgetpgrp(STDERR_FILENO);
    return group < 0 || group == getpgrp();
}

void progress_setup(struct cli *c) {
    struct progress *p = &c->progress;
    struct stat st;
    bool pipe_behind = !c->output_path && fstat(STDOUT_FILENO, &st) == 0 && S_ISFIFO(st.st_mode);
    p->terminal = isatty(STDERR_FILENO);
    bool always = strcmp(c->progress_mode, "always") == 0, never = strcmp(c->progress_mode, "never") == 0;
    p->period = p->terminal ? TERMINAL_PERIOD : always ? LINE_PERIOD : VERBOSE_PERIOD;
    if (always || never)
        p->enabled = always;
    else
        p->enabled = p->terminal ? !c->quiet && !pipe_behind && in_foreground() : c->verbose;
}

/* 999, 1.2k, 34.5M: three digits and a letter suffice to see progress. */
static void short_number(double v, char out[16]) {
    static const char unit[] = " kMGTPE";
    size_t i = 0;
    while (v >= 999.5 && i + 2 < sizeof unit) v /= 1000, i++;
    if (i == 0)
        snprintf(out, 16, v < 10 && v != (double)(long)v ? "%.1f" : "%.0f", v);
    else
        snprintf(out, 16, v < 99.95 ? "%.1f%c" : "%.0f%c", v, unit[i]);
}

static void short_time(double seconds, char out[24]) {
    unsigned long s = seconds < 1e9 ? (unsigned long)(seconds + 0.5) : 1000000000ul;
    if (s >= 3600)
        snprintf(out, 24, "%lu:%02lu:%02lu", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(out, 24, "%lu:%02lu", s / 60, s % 60);
}

/* "12.3/s", or if below one "3.2 s/step": `unit` is a plural. */
static void rate_text(double per_second, const char *unit, char out[64]) {
    char number[24];
    size_t n = strlen(unit);
    if (per_second >= 1 || per_second <= 0) {
        short_number(per_second, number);
        snprintf(out, 64, "%s/s", number);
        return;
    }
    snprintf(out, 64, "%.*f s/%.*s", per_second > 0.01 ? 1 : 0, 1 / per_second,
             (int)(n && unit[n - 1] == 's' ? n - 1 : n), unit);
}

/* Truncated to the terminal's width: a wrapped line cannot be erased. */
void progress_format(const struct progress *p, double seconds, int width, char *out, size_t size) {
    char done[16], total[16], rate[64], left[24], bar[24], line[512];
    int n = 0;
    double per_second = seconds > 0 ? (double)p->done / seconds : 0;
    short_number((double)p->done, done);
    rate_text(per_second, p->unit, rate);
    if (p->total) {
        uint64_t at = p->done < p->total ? p->done : p->total;
        double part = (double)at / (double)p->total;
        size_t filled = (size_t)(part * 20);
        memset(bar, ' ', 20);
        memset(bar, '=', filled);
        if (filled < 20) bar[filled] = '>';
        bar[20] = 0;
        short_number((double)p->total, total);
        short_time(per_second > 0 ? (double)(p->total - at) / per_second : 0, left);
        n = snprintf(line, sizeof line, "%3.0f%% [%s] %s/%s %s, %s", 100 * part, bar, done, total, p->unit, rate);
        if (per_second > 0 && n > 0) n += snprintf(line + n, sizeof line - (size_t)n, ", %s left", left);
    } else {
        short_time(seconds, left);
        n = snprintf(line, sizeof line, "%s %s, %s, %s", done, p->unit, rate, left);
    }
    if (*p->note && n > 0 && n < (int)sizeof line) snprintf(line + n, sizeof line - (size_t)n, ", %s", p->note);
    snprintf(out, size, "%.*s", width > 0 ? width : 0, line);
}

static int terminal_width(void) {
    struct winsize ws;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &ws) == 0 && ws.ws_col > 20 ? ws.ws_col : 80;
}

static void put(const char *text, size_t n) {
    (void)fd_write(STDERR_FILENO, text, n); /* failing to show progress is no reason to stop */
}

static void set_shown(struct progress *p, bool shown) {
    p->shown = shown;
    signals_line_open(shown);
}

static void draw(struct cli *c, const struct timespec *now) {
    struct progress *p = &c->progress;
    char state[512], line[640];
    int used = (int)strlen(c->program->name) + 7;
    progress_format(p, since(&p->start, now), p->terminal ? terminal_width() - used - 1 : 500, state, sizeof state);
    int n = snprintf(line, sizeof line, p->terminal ? "\rrill %s: %s\033[K" : "rill %s: %s\n", c->program->name, state);
    if (n > 0) put(line, (size_t)n < sizeof line ? (size_t)n : sizeof line - 1);
    set_shown(p, p->terminal);
    p->last = *now;
}

void progress_hide(struct cli *c) {
    if (c->progress.shown) put("\r\033[K", 4);
    set_shown(&c->progress, false);
}

void cli_progress_begin(struct cli *c, const char *unit, uint64_t total) {
    struct progress *p = &c->progress;
    if (!p->enabled) return;
    p->running = true;
    p->unit = unit;
    p->total = total;
    p->done = 0;
    p->note[0] = 0;
    clock_gettime(CLOCK_MONOTONIC, &p->start);
    p->last = p->start;
}

void cli_progress(struct cli *c, uint64_t done, const char *note_fmt, ...) {
    struct progress *p = &c->progress;
    struct timespec now;
    if (!p->running) return;
    p->done = done;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (since(&p->last, &now) < p->period) return;
    p->note[0] = 0;
    if (note_fmt) {
        va_list ap;
        va_start(ap, note_fmt);
        vsnprintf(p->note, sizeof p->note, note_fmt, ap);
        va_end(ap);
    }
    draw(c, &now);
}

void cli_progress_end(struct cli *c) {
    struct progress *p = &c->progress;
    struct timespec now;
    if (!p->running) return;
    if (p->terminal) {
        progress_hide(c);
    } else { /* in a log, end with a last line; with -v only if it ran long enough for one before */
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (p->period < VERBOSE_PERIOD || since(&p->start, &now) >= p->period) draw(c, &now);
    }
    p->running = false;
}
