/*
 * Private to lib/base: the memory budget, hooks of the profile, and which sanitizer this build has (gcc and clang
 * announce it differently).
 *
 * Order of files, each calling only those before it: string, err, budget, mem, buf, digest, fd, json_scan, json,
 * json_text, log, rng, profile, parallel, out.
 */
#ifndef RILL_BASE_INTERNAL_H
#define RILL_BASE_INTERNAL_H

#include "lib/base/base.h"

#define MEM_LARGE ((uint64_t)64 << 20) /* smaller allocations skip the check of what is left */
/* Did mem_set_limit set a limit? */
bool mem_limit_is_set(void);
/* Count bytes allocated and freed by mem_alloc and mem_free. */
void budget_take(uint64_t bytes);
void budget_give(uint64_t bytes);

/* For parallel loops: is profiling on; a monotonic clock in nanoseconds; add the time since `from` as waiting of the
 * profiled thread, or as work of another thread. */
bool profile_is_on(void);
uint64_t profile_clock(void);
void profile_add_wait(uint64_t from);
void profile_add_work(uint64_t from);

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define RILL_ASAN 1
#endif
#if __has_feature(thread_sanitizer)
#define RILL_TSAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define RILL_ASAN 1
#endif
#if defined(__SANITIZE_THREAD__)
#define RILL_TSAN 1
#endif

#endif
