"""A peer of the benchmarks: started once, asked for one repetition at a time, so that its runs and ours alternate.

Protocol (tests/bench/common.bash, python_peer): when it is ready it prints one line that says what it is; then, for each
line on stdin, it does one repetition and prints "AMOUNT SECONDS PEAK_MEMORY_BYTES"."""

import resource
import sys
import time


def peak_memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def seconds_of(function):
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def fastest(candidates):
    """candidates: {name: function that makes a repetition}. Each is made, warmed up and timed; the fastest is kept. One
    that fails here (no compiler, an old version) is left out, and says so on stderr."""
    best = None
    for name, make in candidates.items():
        try:
            run = make()
            run()
            took = min(seconds_of(run) for _ in range(2))
        except Exception as error:  # a variant that this installation does not have
            print(f"{name}: {error}", file=sys.stderr)
            continue
        print(f"{name}: {took:.3f} s", file=sys.stderr)
        if best is None or took < best[2]:
            best = (name, run, took)
        del run
    if best is None:
        sys.exit(1)
    return best[0], best[1]


def serve(label, amount, run):
    print(label, flush=True)
    for _ in sys.stdin:
        print(amount, f"{seconds_of(run):.6f}", peak_memory(), flush=True)
