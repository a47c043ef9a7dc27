/* Log lines, passed to the installed sink. */
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>

#include "lib/base/base.h"

/* Any thread may log, and a sink need not be thread-safe. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static log_sink *installed;
static void *installed_ctx;

void log_set_sink(log_sink *sink, void *ctx) {
    pthread_mutex_lock(&lock);
    installed = sink;
    installed_ctx = ctx;
    pthread_mutex_unlock(&lock);
}

void log_line(enum log_level level, const char *fmt, ...) {
    pthread_mutex_lock(&lock);
    if (installed) {
        char line[2048];
        va_list args;
        va_start(args, fmt);
        if (vsnprintf(line, sizeof line, fmt, args) >= 0) installed(installed_ctx, level, line);
        va_end(args);
    }
    pthread_mutex_unlock(&lock);
}
