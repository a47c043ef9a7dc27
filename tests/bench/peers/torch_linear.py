#!/usr/bin/env python3
"""GFLOP/s of PyTorch's bf16 linear layers (oneDNN) at shapes of tests/bench/products.c: the peer of lib/kernel's products.

    make bench-kernel THREADS=1 PEER_PYTHON=venv/bin/python

y = x W^T with W as it lies in a model, in bf16 throughout. Best of several runs; one thread is measured in processor time.
"""
import sys
import time

import torch

SHAPES = [
    ("q, o", 2048, 576, 576), ("k, v", 2048, 192, 576), ("gate, up", 2048, 1536, 576), ("down", 2048, 576, 1536),
    ("head, 256 rows", 256, 49152, 576), ("dx of head", 256, 576, 49152),
    ("dw of q, o", 576, 576, 2048), ("dw of gate, up", 1536, 576, 2048), ("dw of down", 576, 1536, 2048),
    ("dw of head", 49152, 576, 256), ("one row, head", 1, 49152, 576), ("8 rows, head", 8, 49152, 576),
    ("64 rows, head", 64, 49152, 576),
]


def best(run, times, clock):
    seconds = []
    for _ in range(times):
        begin = clock()
        run()
        seconds.append(clock() - begin)
    return min(seconds)


def main():
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads()
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    print(f"torch {torch.__version__}, {threads} threads")
    for name, m, n, k in SHAPES:
        x = torch.randn(m, k).bfloat16()
        weight = torch.randn(n, k).bfloat16()
        flop = 2e-9 * m * n * k
        times = 40 if flop < 1 else 20 if flop < 8 else 6
        with torch.no_grad():
            if name.startswith("dw"):  # dy^T x: both as the step has them
                dy, inputs = torch.randn(k, m).bfloat16(), torch.randn(k, n).bfloat16()
                text = f"{flop / best(lambda: dy.t() @ inputs, times, clock):8.1f} GFLOP/s"
            else:
                text = f"{flop / best(lambda: torch.nn.functional.linear(x, weight), times, clock):8.1f} GFLOP/s"
        print(f"{name:16} {m:6} x {n:5} x {k:5} {text}")


main()
