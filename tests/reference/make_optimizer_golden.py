"""Steps of AdamW by torch.optim.AdamW, and of Muon by the definition below in f64, as tests/golden/train/optimizers.json.

    /work/venv/bin/python tests/reference/make_optimizer_golden.py

Muon: Jordan et al. 2024, with the scale of Liu et al. 2025. torch.optim.Muon (adjust_lr_fn="match_rms_adamw") does the iteration in
bf16; the script checks that it stays within bf16's rounding of the definition, so that both speak of the same thing."""
import json
import math
import os

import torch

STEPS, LR, DECAY = 4, [0.01, 0.02, 0.015, 0.005], 0.1
COEFFICIENTS, EPS, MOMENTUM = (3.4445, -4.7750, 2.0315), 1e-7, 0.95


def orthogonalize(g):
    a, b, c = COEFFICIENTS
    x = g.clone() / max(g.norm().item(), EPS)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def muon(w, gradients):
    m = torch.zeros_like(w)
    for g, lr in zip(gradients, LR):
        m = MOMENTUM * m + (1 - MOMENTUM) * g
        update = orthogonalize(MOMENTUM * m + (1 - MOMENTUM) * g)
        w = w * (1 - lr * DECAY) - lr * 0.2 * math.sqrt(max(w.shape)) * update
    return w, m


def by_torch(optimizer, w, gradients):
    p = torch.nn.Parameter(w.clone())
    o = optimizer([p])
    for g, lr in zip(gradients, LR):
        o.param_groups[0]["lr"] = lr
        p.grad = g.clone()
        o.step()
    return p.detach(), o.state[p]


def flat(t):
    return [float(f"{v:.9g}") for v in t.reshape(-1).tolist()]


torch.manual_seed(1)
cases = []
for rows, cols in [(1, 7), (5, 8), (9, 4), (6, 6)]:
    w = torch.randn(rows, cols).to(torch.float32).double()
    gradients = [torch.randn(rows, cols).to(torch.float32).double() for _ in range(STEPS)]
    case = {"rows": rows, "cols": cols, "w": flat(w), "gradients": [flat(g) for g in gradients]}
    adam, state = by_torch(lambda p: torch.optim.AdamW(p, betas=(0.9, 0.95), eps=1e-8, weight_decay=DECAY), w, gradients)
    case["adamw"] = {"w": flat(adam), "m": flat(state["exp_avg"]), "v": flat(state["exp_avg_sq"])}
    if rows > 1:
        mine, m = muon(w, gradients)
        theirs, _ = by_torch(lambda p: torch.optim.Muon(p, weight_decay=DECAY, momentum=MOMENTUM,
                                                        adjust_lr_fn="match_rms_adamw"), w, gradients)
        moved = (mine - w).norm()
        assert (mine - theirs).norm() < 0.02 * moved, (mine - theirs).norm() / moved
        case["muon"] = {"w": flat(mine), "m": flat(m)}
    cases.append(case)
path = os.path.join(os.path.dirname(__file__), "..", "golden", "train", "optimizers.json")
with open(path, "w") as f:
    json.dump({"lr": LR, "decay": DECAY, "cases": cases}, f)
    f.write("\n")
