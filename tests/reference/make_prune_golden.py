"""Makes tests/golden/prune/: a matrix, the Gram matrix of its inputs, and what pruning by published formulas makes of it.

    w.f32 [16][136]      weights              gram.f32 [136][136]   sum x x^T of 300 inputs, one of which (5) is always 0
    wanda.5.f32, wanda.24.f32                 Wanda (Sun et al. 2023, algorithm 1) at 50% of each row, and 2:4
    sparsegpt.5.f32, sparsegpt.24.f32         SparseGPT (Frantar and Alistarh 2023, algorithm 1), damping 0.01, blocks of 128
    refit.5.f32                               Wanda's mask at 50%, and the weights of least squares within it, row by row

    svd.6.f32 [16][136], svd.tall.6.f32 [136][16], svd.plain.6.f32 [16][136]
                         rank 6: SVD of w S with the Gram matrix, S S^T, damped by 0.01 (Wang et al. 2024, "SVD-LLM"), of w; of w's transpose
                         and the first 16 rows and columns of the Gram matrix; and of w with S = 1

Of columns (structure), with other inputs of the same matrix, whose means are not 0, and wanted outputs t that it does not give:
    columns.f32 [COLS + ROWS][COLS], [COLS + ROWS]   sum y y^T, then sum t y^T; sum y, then sum t; of 400 positions
    units.f32 [17]       what each 8 columns cost when the others make up for them, by solving the problem without them
    greedy.u32 [COLS/2]  the columns that stay when one after another the cheapest goes
    columns.refit.f32 [ROWS][COLS], [ROWS]           weights when the first 36 inputs go, and bias (it was 1), of least squares

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


def low_rank(w, gram, rank):
    """The product of the factors: truncated SVD of w S, times S^-1, S the Cholesky factor."""
    h, weights = gram.clone(), w.clone()
    dead = h.diagonal() == 0
    h[dead, dead] = 1
    weights[:, dead] = 0
    s = torch.linalg.cholesky(h + DAMP * h.diagonal().mean() * torch.eye(len(h)))
    u, sigma, v = torch.linalg.svd(weights @ s, full_matrices=False)
    return torch.linalg.solve_triangular(s, (u[:, :rank] * sigma[:rank]) @ v[:rank], upper=False, left=False)


put("svd.6", low_rank(w, gram, 6))
put("svd.tall.6", low_rank(w.T.contiguous(), gram[:16, :16], 6))
u, sigma, v = torch.linalg.svd(w, full_matrices=False)
put("svd.plain.6", (u[:, :6] * sigma[:6]) @ v[:6])


def squared_error(x, t, keep, damp, w0):
    """The least of sum |t - x w^T - c|^2 + damp |w - w0|^2 over weights of the inputs kept and a constant, and the weights."""
    n = int(keep.sum())
    a = torch.cat([torch.cat([x[:, keep], torch.ones(len(x), 1)], 1),
                   torch.cat([damp ** 0.5 * torch.eye(n), torch.zeros(n, 1)], 1)])
    y = torch.cat([t, damp ** 0.5 * w0[:, keep].T])
    s = torch.linalg.lstsq(a, y, driver="gelsd").solution
    return ((a @ s - y) ** 2).sum(), s[:n].T, s[n]


torch.manual_seed(11)
x = (torch.randn(400, COLS) @ mix + torch.randn(1, COLS)).to(torch.float32).double()
t = (x @ w.T + 3 * torch.randn(400, ROWS) + torch.randn(1, ROWS)).to(torch.float32).double()
put("columns", torch.cat([torch.cat([x.T @ x, t.T @ x]).reshape(-1), x.sum(0), t.sum(0)]))
everything = torch.ones(COLS, dtype=torch.bool)
centered = x - x.mean(0)
damp = DAMP * (centered ** 2).sum(0).mean()
least, full, _ = squared_error(x, t, everything, damp, w)

# Costs without drawing the others back to what they were: the problem that elimination solves is that of the damped Gram matrix.
h = centered.T @ centered + damp * torch.eye(COLS)


def cost(gone):
    """min over the other columns of tr(d h d^T), d the change from the best weights of all columns."""
    d = torch.zeros(ROWS, COLS)
    d[:, gone] = -full[:, gone]
    d[:, ~gone] = full[:, gone] @ torch.linalg.solve(h[~gone][:, ~gone], h[~gone][:, gone]).T
    return (d @ h * d).sum()


units = []
for u in range(COLS // 8):
    gone = torch.zeros(COLS, dtype=torch.bool)
    gone[8 * u:8 * u + 8] = True
    units.append(cost(gone))
put("units", torch.stack(units))

# The cheapest column, by the sum over what has gone before, too; ties do not occur.
gone = torch.zeros(COLS, dtype=torch.bool)
while gone.sum() < COLS // 2:
    best = None
    for j in range(COLS):
        if not gone[j]:
            gone[j] = True
            c = cost(gone)
            gone[j] = False
            if best is None or c < best[0]:
                best = (c, j)
    gone[best[1]] = True
(~gone).nonzero()[:, 0].to(torch.int32).numpy().astype("<u4").tofile(os.path.join(out, "greedy.u32"))

keep = torch.zeros(COLS, dtype=torch.bool)
keep[36:] = True
damp = DAMP * (centered[:, keep] ** 2).sum(0).mean()
_, fitted, constant = squared_error(x, t, keep, damp, w)
weights = torch.zeros(ROWS, COLS)
weights[:, keep] = fitted
put("columns.refit", torch.cat([weights.reshape(-1), constant + 1]))
