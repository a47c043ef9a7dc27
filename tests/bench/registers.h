/*
 * registers: what a CPU's arithmetic does at most: loops over registers only, with more independent accumulators than the
 * instruction's latency needs. The limit that bench_hardware prints and bench_bf16 gives shares of.
 */
#ifndef RILL_BENCH_REGISTERS_H
#define RILL_BENCH_REGISTERS_H

#include "lib/base/base.h"

struct register_loop {
    const char *name; /* "bf16-avx512" */
    bool (*has)(void);
    double (*rounds)(size_t n); /* n >= 1 rounds on this thread; returns the operations of one */
};
const struct register_loop *register_loop_at(size_t i);      /* of all, or NULL at the end */
const struct register_loop *register_loop(const char *name); /* NULL: unknown, or not on this CPU */
/* About as many operations, on this thread; returns how many they were. */
double register_work(const struct register_loop *loop, double operations);

#endif
