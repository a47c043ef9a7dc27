/* Private to lib/base: which sanitizer this build carries. gcc and clang say it differently. */
#ifndef RILL_BASE_INTERNAL_H
#define RILL_BASE_INTERNAL_H

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
