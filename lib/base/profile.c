/* Profile: where the time of the profiled thread goes, and how long the other threads were idle. */
#include <stdatomic.h>
#include <time.h>

#include "lib/base/base_internal.h"

static struct {
    bool on;
    uint64_t began;                 /* nanoseconds */
    uint64_t part[PROFILE_PARTS];   /* nanoseconds of the profiled thread */
    uint64_t waited;                /* of these, waiting for other threads at the end of loops */
    atomic_uint_fast64_t elsewhere; /* time of all other threads in loops */
} profile;

/* Parts are counted for one thread only: those of overlapping threads would not add up to a whole. */
static _Thread_local bool counted;
static enum profile_part current = PROFILE_PARTS; /* of that thread; PROFILE_PARTS: none */
static uint64_t since;                            /* when it entered `current` */

uint64_t profile_clock(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

void profile_start(void) {
    profile.on = counted = true;
    profile.began = profile_clock();
}

bool profile_is_on(void) {
    return profile.on;
}

/* Adds the time since `since` to the current part and switches to `part`. */
static void go_to(enum profile_part part) {
    uint64_t now = profile_clock();
    if (current != PROFILE_PARTS) profile.part[current] += now - since;
    current = part;
    since = now;
}

struct profile_mark profile_enter(enum profile_part part) {
    bool streams = part == PROFILE_READING || part == PROFILE_WRITING;
    if (!counted || current == part || (current != PROFILE_PARTS && !streams)) return (struct profile_mark){false, 0};
    struct profile_mark m = {.entered = true, .before = current};
    go_to(part);
    return m;
}

void profile_leave(struct profile_mark *m) {
    if (m->entered) go_to(m->before);
}

void profile_add_wait(uint64_t from) {
    if (counted) profile.waited += profile_clock() - from;
}

void profile_add_work(uint64_t from) {
    atomic_fetch_add_explicit(&profile.elsewhere, profile_clock() - from, memory_order_relaxed);
}

bool profile_read(struct profile_shares *out, int threads) {
    if (!profile.on) return false;
    uint64_t all = profile_clock() - profile.began, other = all;
    *out = (struct profile_shares){.seconds = (double)all * 1e-9};
    for (int i = 0; i < PROFILE_PARTS; i++) {
        out->part[i] = (double)profile.part[i] / (double)(all ? all : 1);
        other -= profile.part[i] < other ? profile.part[i] : other;
    }
    out->other = (double)other / (double)(all ? all : 1);
    double whole = threads * (double)(all ? all : 1);
    double busy =
        (double)(all - profile.waited) + (double)atomic_load_explicit(&profile.elsewhere, memory_order_relaxed);
    out->idle = busy < whole ? 1 - busy / whole : 0;
    return true;
}

const char *profile_part_name(enum profile_part part) {
    static const char *const name[PROFILE_PARTS] = {"reading", "writing",     "packing", "products", "attention",
                                                    "head",    "elementwise", "losses",  "solving",  "optimizer"};
    return name[part];
}
