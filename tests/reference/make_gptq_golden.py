#!/usr/bin/env python3
"""Makes tests/golden/quant/gptq-*: a matrix, the second moments of its inputs, and what GPTQ makes of it in PyTorch, in f64.

usage: make_gptq_golden.py FOLDER      (PyTorch, numpy)

The grid is Q4_0's: in blocks of 32 of a row x = (code - 8) d, d = (the value of largest magnitude) / -8 rounded to f16, fixed before
anything is quantized (static groups). Columns go by descending diagonal (act-order), damping is 0.01 of the mean of the
diagonal. A row whose error did not get smaller than that of rounding to nearest keeps the latter. Little-endian f32:
gptq-weights [6][96], gptq-gram [96][96], gptq-values [6][96].
"""
import sys
import numpy as np
import torch

ROWS, COLS, SAMPLES, GROUP = 6, 96, 300, 32


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    gen = torch.Generator().manual_seed(7)
    normal = lambda *shape: torch.randn(*shape, generator=gen, dtype=torch.float64)
    w = normal(ROWS, COLS).float().double()
    x = normal(SAMPLES, COLS) * torch.exp(0.5 * normal(COLS)) + 0.7 * normal(SAMPLES, 1)
    x = x @ torch.linalg.qr(normal(COLS, COLS)).Q * 0.3 + x
    gram = (x.T @ x).float().double()

    groups = w.view(ROWS, COLS // GROUP, GROUP)
    extreme = groups.gather(2, groups.abs().argmax(2, keepdim=True)).float() / torch.tensor(-8.0)
    d = extreme.half().double().expand(-1, -1, GROUP).reshape(ROWS, COLS)
    # The reference quantizer rounds by adding a half and cutting off, with the scale before it became f16.
    inverse = (torch.tensor(1.0) / extreme).expand(-1, -1, GROUP).reshape(ROWS, COLS)
    nearest = (torch.clamp(torch.floor(w.float() * inverse + 8.5), 0, 15).double() - 8) * d

    order = torch.argsort(gram.diagonal(), descending=True)
    h = gram[order][:, order].clone()
    h += 0.01 * h.diagonal().mean() * torch.eye(COLS, dtype=torch.float64)
    u = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    left, q = w[:, order].clone(), torch.zeros(ROWS, COLS, dtype=torch.float64)
    steps = d[:, order]
    for i in range(COLS):
        q[:, i] = torch.clamp(torch.round(left[:, i] / steps[:, i]), -8, 7) * steps[:, i]
        error = (left[:, i] - q[:, i]) / u[i, i]
        left[:, i:] -= error[:, None] * u[i, i:]
    values = torch.zeros_like(q)
    values[:, order] = q

    loss = lambda v: ((w - v) @ gram * (w - v)).sum(1)
    print("error of GPTQ over that of rounding to nearest, by row:", (loss(values) / loss(nearest)).numpy().round(3))
    values = torch.where((loss(values) < loss(nearest))[:, None], values, nearest)
    for name, data in (("weights", w), ("gram", gram), ("values", values)):
        data.numpy().astype("<f4").tofile(f"{sys.argv[1]}/gptq-{name}.f32")


main()
