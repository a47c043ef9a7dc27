"""Makes tests/golden/prune/owl.txt: the outliers of each layer of tests/golden/tiny-qwen2 and the shares that OWL gives them.

By the formulas of Yin et al. 2023 (arXiv 2310.05175) and their code: A_ij = |w_ij| |x_j|_2 of all linear layers of a block, D = the share
of A above M mean(A); D is brought to the range 0 .. 2 lambda, and density is that less its mean, plus 1 - S. In f64, over text.txt
in sequences of 64 tokens. A line for each layer: outliers and share.
Run: /work/venv/bin/python make_owl.py ../golden/tiny-qwen2 ../golden/prune/owl.txt
"""
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

M, LAMBDA, S, CONTEXT = 3.0, 0.08, 0.6, 64
folder, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
with open(folder + "/text.txt", encoding="utf-8") as f:
    ids = AutoTokenizer.from_pretrained(folder)(f.read(), add_special_tokens=False).input_ids

squares = {}


def watch(name):
    def hook(module, args, result):
        squares[name] = squares.get(name, 0) + (args[0][0] ** 2).sum(0)
    return hook


linears = {}
for i, block in enumerate(model.model.layers):
    for name, m in block.named_modules():
        if isinstance(m, torch.nn.Linear):
            linears[i, name] = m
            m.register_forward_hook(watch((i, name)))
with torch.no_grad():
    for at in range(0, len(ids), CONTEXT):
        model(torch.tensor([ids[at:at + CONTEXT]]))

outliers, weights = [], []
for i in range(len(model.model.layers)):
    scores = [(m.weight.abs() * squares[k].sqrt()).flatten() for k, m in linears.items() if k[0] == i]
    a = torch.cat(scores)
    outliers.append((a > M * a.mean()).double().mean().item())
    weights.append(a.numel())
d = torch.tensor(outliers, dtype=torch.float64)
d = (d - d.min()) / (d.max() - d.min()) * 2 * LAMBDA
assert len(set(weights)) == 1
shares = 1 - (d - d.mean() + 1 - S)
with open(out, "w") as f:
    for pair in zip(outliers, shares.tolist()):
        f.write("%.12g %.12g\n" % pair)
