"""Makes tests/golden/prune/: a matrix, the Gram matrix of its inputs, and what pruning by published formulas makes of it.

    w.f32 [16][136]      weights              gram.f32 [136][136]   sum x x^T of 300 inputs, one of which (5) is always 0
    wanda.5.f32, wanda.24.f32                 Wanda (Sun et al. 2023, algorithm 1) at 50% of each row, and 2:4
    sparsegpt.5.f32, sparsegpt.24.f32         SparseGPT (Frantar and Alistarh 2023, algorithm 1), damping 0.01, blocks of 128
    refit.5.f32                               Wanda's mask at 50%, and the weights of least squares within it, row by row

In f64 by PyTorch 2.x, stored in f32. Shares are exact counts: of a row or a block of n, int(n * share) weights go.
Run: /work/venv/bin/python make_prune_golden.py ../golden/prune
"""
import os
import sys

import torch

ROWS, COLS, INPUTS, BLOCK, DAMP = 16, 136, 300, 128, 0.01
out = sys.argv[1]
os.makedirs(out, exist_ok=True)
torch.manual_seed(7)
torch.set_default_dtype(torch.float64)


def put(name, a):
    a.to(torch.float32).contiguous().numpy().astype("<f4").tofile(os.path.join(out, name + ".f32"))


def smallest(score, count):
    """True for the `count` smallest of each row."""
    mask = torch.zeros_like(score, dtype=torch.bool)
    return mask.scatter(1, torch.sort(score, dim=1, stable=True)[1][:, :count], True)


def groups(score, keep, m):
    return smallest(score.reshape(-1, m), m - keep).reshape(score.shape)


w = (torch.randn(ROWS, COLS) * (0.5 + torch.rand(1, COLS))).to(torch.float32).double()
mix = torch.eye(COLS) + 0.12 * torch.randn(COLS, COLS)
x = torch.randn(INPUTS, COLS) @ mix * torch.exp(0.7 * torch.randn(1, COLS))
x[:, 5] = 0
gram = (x.T @ x).to(torch.float32).double()
put("w", w)
put("gram", gram)

norms = gram.diagonal().sqrt()
score = w.abs() * norms
wanda = smallest(score, COLS // 2)
put("wanda.5", w.masked_fill(wanda, 0))
put("wanda.24", w.masked_fill(groups(score, 2, 4), 0))


def sparsegpt(share=None, keep=None, m=None):
    h, weights = gram.clone(), w.clone()
    dead = h.diagonal() == 0
    h[dead, dead] = 1
    weights[:, dead] = 0
    h += DAMP * h.diagonal().mean() * torch.eye(COLS)
    u = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    for i1 in range(0, COLS, BLOCK):
        i2 = min(i1 + BLOCK, COLS)
        errors = torch.zeros(ROWS, i2 - i1)
        mask = torch.zeros(ROWS, i2 - i1, dtype=torch.bool)
        if share is not None:
            s = (weights[:, i1:i2] / u.diagonal()[i1:i2]) ** 2
            mask = smallest(s.reshape(1, -1), int(s.numel() * share)).reshape(s.shape)
        for i in range(i1, i2):
            if m and (i - i1) % m == 0:
                s = (weights[:, i:i + m] / u.diagonal()[i:i + m]) ** 2
                mask[:, i - i1:i - i1 + m] = smallest(s, m - keep)
            kept = weights[:, i].masked_fill(mask[:, i - i1], 0)
            error = (weights[:, i] - kept) / u[i, i]
            weights[:, i:i2] -= error[:, None] * u[i, i:i2]
            weights[:, i] = kept
            errors[:, i - i1] = error
        weights[:, i2:] -= errors @ u[i1:i2, i2:]
    return weights


put("sparsegpt.5", sparsegpt(share=0.5))
put("sparsegpt.24", sparsegpt(keep=2, m=4))

refit = torch.zeros_like(w)
for r in range(ROWS):
    live = (~wanda[r] & (norms > 0)).nonzero()[:, 0]
    refit[r, live] = torch.linalg.solve(gram[live][:, live], (w[r] @ gram)[live])
put("refit.5", refit)
