/*
 * registers: the peak rate of a CPU's arithmetic, measured by loops over registers only, with more independent
 * accumulators than the instruction's latency needs. bench_hardware prints this limit, bench_bf16 gives shares of it.
 */
#ifndef RILL_BENCH_REGISTERS_H
#define RILL_BENCH_REGISTERS_H

#include "lib/base/base.h"

struct register_loop {
    const char *name; /* "bf16-avx512" */
    bool (*has)(void);
    double (*rounds)(size_t n); /* runs n >= 1 rounds on this thread; returns the operations of one */
};
const struct register_loop *register_loop_at(size_t i);      /* the i-th loop, or NULL past the last */
const struct register_loop *register_loop(const char *name); /* NULL: unknown, or not supported by this CPU */
/* Runs about this many operations on this thread; returns how many they were. */
double register_work(const struct register_loop *loop, double operations);

#endif
