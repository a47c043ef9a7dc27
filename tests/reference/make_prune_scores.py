"""Makes tests/golden/prune/scores.f32: what channels and heads of tests/golden/tiny-llama count, by PyTorch in f64.

For each layer: taylor.query [64], taylor.key [32], taylor.ffn [128]: sums of |w dL/dw| over the rows or columns of the coupled matrices,
each sequence with a gradient of its own (LLM-Pruner, element-wise, first order). Then fluctuation of o's inputs [64] and of down's [128]: the
variance over all positions times the squared norm of the column (FLAP, WIFV). Last the angle between what comes into layer i and
what leaves layer j at the last position, over pi, the mean over sequences, for (0, 0), (0, 1), (1, 1). Three sequences, of 20, 9 and 12 tokens;
token i of all is (7 i + 3) mod 300.
Run: /work/venv/bin/python make_prune_scores.py ../golden
"""
import sys

import torch
from transformers import AutoModelForCausalLM

golden = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(golden + "/tiny-llama", torch_dtype=torch.float64).double()
lengths, at = [20, 9, 12], 0
layers = model.model.layers
inputs = {}
taylor = [[0, 0, 0] for _ in layers]
angles = [0, 0, 0]


def watch(name):
    def hook(module, args):
        inputs.setdefault(name, []).append(args[0].detach().reshape(-1, args[0].shape[-1]))
    return hook


for i, layer in enumerate(layers):
    layer.self_attn.o_proj.register_forward_pre_hook(watch((i, "o")))
    layer.mlp.down_proj.register_forward_pre_hook(watch((i, "down")))
    layer.register_forward_pre_hook(watch((i, "in")))
model.model.norm.register_forward_pre_hook(watch((len(layers), "in")))
for n in lengths:
    tokens = torch.tensor([[(7 * k + 3) % 300 for k in range(at, at + n)]])
    at += n
    model.zero_grad()
    logits = model(tokens).logits[0, :-1]
    torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum").backward()
    for i, layer in enumerate(layers):
        a, m = layer.self_attn, layer.mlp
        part = lambda p, dim: (p.weight * p.weight.grad).abs().sum(dim).detach()
        taylor[i][0] += part(a.q_proj, 1) + part(a.o_proj, 0)
        taylor[i][1] += part(a.k_proj, 1) + part(a.v_proj, 1)
        taylor[i][2] += part(m.gate_proj, 1) + part(m.up_proj, 1) + part(m.down_proj, 0)
    for k, (i, j) in enumerate([(0, 0), (0, 1), (1, 1)]):
        x, y = inputs[i, "in"][-1][-1], inputs[j + 1, "in"][-1][-1]
        angles[k] += torch.arccos((x @ y) / x.norm() / y.norm()) / torch.pi / len(lengths)
out = []
for i, layer in enumerate(layers):
    out += taylor[i]
    for name, p in (("o", layer.self_attn.o_proj), ("down", layer.mlp.down_proj)):
        x = torch.cat(inputs[i, name])
        out.append(x.var(0, correction=0) * (p.weight ** 2).sum(0).detach())
out.append(torch.stack(angles))
torch.cat(out).to(torch.float32).numpy().astype("<f4").tofile(golden + "/prune/scores.f32")
