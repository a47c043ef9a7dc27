"""A peer of the benchmarks: started once, asked for one repetition at a time, so that its runs and ours alternate.

Protocol (tests/bench/common.bash, python_peer): when it is ready it prints one line that says what it is; then, for each
line on stdin, it does one repetition and prints "AMOUNT SECONDS PEAK_MEMORY_BYTES"."""

import argparse
import os
import sys
import time


def arguments(**sizes):
    """What a peer that runs a model is called with: --threads, --model, --dtype, and an integer for each of `sizes`, whose
    value is its default."""
    p = argparse.ArgumentParser()
    p.add_argument("--threads", type=int, required=True)
    p.add_argument("--model", required=True)
    p.add_argument("--dtype", choices=["bf16", "f32"], required=True)
    for name, default in sizes.items():
        p.add_argument(f"--{name}", type=int, default=default)
    return p.parse_args()


def peak_memory():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM:"))


def seconds_of(function):
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def attempt(name, make):
    """Seconds of a warm repetition of make()'s function; None where this installation does not have it (no compiler, an
    old version), which stderr then says."""
    try:
        run = make()
        run()
        took = min(seconds_of(run) for _ in range(2))
    except Exception as error:
        print(f"{name}: {error}", file=sys.stderr)
        return None
    print(f"{name}: {took:.3f} s", file=sys.stderr)
    return took


def fastest(candidates, refine=lambda name: {}):
    """candidates: {name: function that makes a repetition's function}. All are tried, then refine(the fastest)'s, and the
    process begins anew with the fastest alone, so that its memory is not what trying the others has left behind."""
    chosen = os.environ.get("PEER_VARIANT")
    if chosen is None:
        times = {name: attempt(name, make) for name, make in candidates.items()}
        best = min((t, name) for name, t in times.items() if t is not None)[1]
        times |= {name: attempt(name, make) for name, make in refine(best).items()}
        os.environ["PEER_VARIANT"] = min((t, name) for name, t in times.items() if t is not None)[1]
        os.execv(sys.executable, [sys.executable, *sys.argv])
    run = (candidates | {n: m for c in candidates for n, m in refine(c).items()})[chosen]()
    run()
    return chosen, run


def serve(label, amount, run):
    print(label, flush=True)
    for _ in sys.stdin:
        print(amount, f"{seconds_of(run):.6f}", peak_memory(), flush=True)
