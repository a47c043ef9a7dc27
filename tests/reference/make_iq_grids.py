"""Prints lib/tensor/codebooks.c: the codebooks of GGUF's IQ types, from the gguf package (llama.cpp, MIT licence).

Versions: gguf 0.19.0, numpy 2.4.6.
Run: /work/venv/bin/python make_iq_grids.py >../../lib/tensor/codebooks.c
"""
import itertools
import numpy as np
from gguf import quants

# name, distances whose points are neighbours (ggml's nwant), 0: not encoded
BOOKS = (("iq2_xxs", 2), ("iq2_xs", 2), ("iq2_s", 1), ("iq3_xxs", 2), ("iq3_s", 3), ("iq1_s", 0))

print("""/*
 * The codebooks of the IQ types: data of the format, from the gguf Python package of llama.cpp (MIT licence, Copyright
 * 2023-2026 The ggml authors), laid out by tests/reference/make_iq_grids.py. A point is written as its coordinates, two
 * bits each of eight or three bits each of four, the first one lowest; `values` says what a coordinate stands for.
 */
#include "lib/tensor/codebook_internal.h"

/* clang-format off */""")
for name, levels in BOOKS:
    c = getattr(quants, name.upper())
    c.init_grid()
    grid = c.grid.reshape(c.grid_shape)
    code = {v: i for i, v in enumerate(c.grid_map)}
    points = np.vectorize(code.get)(grid)
    n, dims = points.shape
    bits = 16 // dims if dims == 8 else 3
    words = [sum(int(v) << bits * k for k, v in enumerate(p)) for p in points]
    assert len(set(words)) == n
    print(f"static const uint16_t {name}_points[{n}] = {{")
    for i in range(0, n, 14):
        print("    " + " ".join(f"0x{w:04x}," for w in words[i:i + 14]))
    print("};")
    total = 0
    if levels:
        on = set(map(tuple, points))
        for p in itertools.product(range(len(code)), repeat=dims):
            if p in on:
                continue
            d = ((points - np.array(p)) ** 2).sum(1)
            total += 1 + int((d <= np.unique(d)[levels - 1]).sum())
        print(f"static int32_t {name}_places[1 << {dims * bits}];")
        print(f"static uint16_t {name}_neighbours[{total}];")
    values = ", ".join(str(int(v)) for v in c.grid_map)
    index = f",\n    {levels}, {name}_places, {name}_neighbours" if levels else ""
    print(f"const struct codebook {name}_book = {{\n    {dims}, {bits}, {len(code)}, {n}, {name}_points, {{{values}}}{index},\n}};\n")
print("/* clang-format on */")
