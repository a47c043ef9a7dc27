#!/usr/bin/env python3
"""Makes tests/golden/quant/fold.json: what AWQ, SmoothQuant and HQQ do in PyTorch, in f64.

usage: make_fold_golden.py FOLDER OUT      (PyTorch, transformers, numpy; FOLDER: tests/golden/tiny-llama)

awq, smooth: of the model in FOLDER on the tokens of its tokens.u32, as transformers runs it. awq: by layer and point (attn_in: q, k, v;
o_in: o; ffn_in: gate, up; down_in: down) the ratio r of 0, 1/20 .. 19/20 that leaves the least squared error in the outputs of these
matrices, summed, when they are rounded to Q8_0, that error over the one of r = 0, the lead over the next best, and the scales: mean|x|^r, at
least 1e-4, over sqrt(max * min). Value heads that several query heads read have one scale for the mean of their magnitudes. smooth:
max|x|^0.5 / max|w|^0.5, each at least 1e-5. Q8_0: in blocks of 32, d = max|w| / 127, codes the nearest integers to w / d, halves away
from 0, values codes times d in f16.
hqq: weights [8][32] as rows of Q4_1 (x = code d + m with d and m in f16, 16 codes), and their values after the proximal steps of
half-quadratic quantization on the zero point: p 0.7, beta 10, kappa 1.01, at most 20 steps, while the mean |w - q| of the row falls.
"""
import json
import sys
import numpy as np
import torch
from transformers import AutoModelForCausalLM

GRID = 20


def q8_0(w):
    blocks = w.reshape(-1, 32)
    d = blocks.abs().amax(1, keepdim=True).float() / torch.tensor(127.0)
    inverse = torch.where(d > 0, 1 / d, torch.zeros_like(d))
    x = (blocks.float() * inverse).double()
    codes = torch.sign(x) * torch.floor(x.abs() + 0.5)
    return (codes * d.half().double()).reshape(w.shape)


def widen(scale, columns, head_dim, share):
    """The factor of each column, for factors of value heads that `share` query heads in a row read."""
    return scale if share == 1 else scale.view(-1, 1, head_dim).expand(-1, share, -1).reshape(columns)


def awq(x, mats, head_dim, share):
    magnitude = x.abs().mean(0)
    if share > 1:
        magnitude = magnitude.view(-1, share, head_dim).mean(1).reshape(-1)
    errors, scales = [], []
    for i in range(GRID):
        s = magnitude.pow(i / GRID).clamp(min=1e-4)
        s = s / (s.max() * s.min()).sqrt()
        column = widen(s, x.shape[1], head_dim, share)
        errors.append(sum(((q8_0(w * column) / column - w) @ x.T).square().sum().item() for w in mats))
        scales.append(s)
    best = int(np.argmin(errors))
    second = min(e for i, e in enumerate(errors) if i != best)
    return {"ratio": best / GRID, "error": errors[best] / errors[0], "lead": second / errors[best] - 1, "scale": scales[best].tolist()}


def smooth(x, mats):
    high = torch.cat([w.abs().amax(0, keepdim=True) for w in mats]).amax(0).clamp(min=1e-5)
    return {"scale": (x.abs().amax(0).sqrt() / high.sqrt()).clamp(min=1e-5).tolist()}


def half(x):
    return torch.tensor(x).half().double()


def hqq_row(w):
    low, high = w.min().float(), w.max().float()
    d, m = (high - low) / 15, low
    codes = torch.clamp(torch.floor((w.float() - m) * (1 / d) + 0.5), max=15).double()
    d, m = half(d.item()), half(m.item())
    best, least, beta = codes * d + m, (w - (codes * d + m)).abs().sum(), 10.0
    for _ in range(20):
        left = w - (codes * d + m)
        outliers = torch.sign(left) * torch.relu(left.abs() - left.abs().pow(-0.3) / beta)
        m = half((w - outliers - codes * d).mean().item())
        codes = torch.clamp(torch.round((w - m) / d), 0, 15)
        error = (w - (codes * d + m)).abs().sum()
        if not error < least:
            break
        best, least, beta = codes * d + m, error, beta * 1.01
    return best


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float64).eval()
    tokens = torch.from_numpy(np.fromfile(f"{sys.argv[1]}/tokens.u32", "<u4").astype("i8"))[None]
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda m, x, y, name=name: seen.__setitem__(name, x[0].detach()[0]))
    with torch.no_grad():
        model(tokens)
    c = model.config
    share = c.num_attention_heads // c.num_key_value_heads
    groups = {"attn_in": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], "o_in": ["self_attn.o_proj"],
              "ffn_in": ["mlp.gate_proj", "mlp.up_proj"], "down_in": ["mlp.down_proj"]}
    out = {"awq": [], "smooth": []}
    for layer in range(c.num_hidden_layers):
        for point, names in groups.items():
            names = [f"model.layers.{layer}.{n}" for n in names]
            mats = [model.get_submodule(n).weight.detach() for n in names]
            found = awq(seen[names[0]], mats, c.head_dim, share if point == "o_in" else 1)
            print(layer, point, found["ratio"], found["error"], found["lead"])
            out["awq"].append({"layer": layer, "point": point, **found})
            if point in ("attn_in", "ffn_in"):
                out["smooth"].append({"layer": layer, "point": point, **smooth(seen[names[0]], mats)})
    gen = torch.Generator().manual_seed(11)
    w = (torch.randn(8, 32, generator=gen, dtype=torch.float64) * torch.logspace(-2, 1, 8, dtype=torch.float64)[:, None]).float().double()
    w[:, 3] *= 4
    w = w.float().double()
    out["hqq"] = {"weights": w.reshape(-1).tolist(), "values": torch.stack([hqq_row(r) for r in w]).reshape(-1).tolist()}
    short = json.loads(json.dumps(out), parse_float=lambda s: float(f"{float(s):.9g}"))
    with open(sys.argv[2], "w") as f:
        json.dump(short, f, separators=(",", ":"))
        f.write("\n")


main()
