/*
 * Private to lib/base: the memory budget, and which sanitizer this build carries (gcc and clang say it differently).
 *
 * Order of files, each calling only those before it: string, err, budget, mem, buf, digest, fd, json_scan, json,
 * json_text, log, rng, profile, parallel, out.
 */
#ifndef RILL_BASE_INTERNAL_H
#define RILL_BASE_INTERNAL_H

#include "lib/base/base.h"

#define MEM_LARGE ((uint64_t)64 << 20) /* less is asked of the system without looking at what there is */
/* Is there a --max-memory? */
bool mem_limit_is_set(void);
/* Counts what mem_alloc has handed out, and taken back. */
void budget_take(uint64_t bytes);
void budget_give(uint64_t bytes);

/* For loops of several threads: is a profile kept, and what a thread has waited or worked since then. */
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
