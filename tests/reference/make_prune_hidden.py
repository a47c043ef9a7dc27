"""Makes tests/golden/prune/hidden.f32: the residual stream of tests/golden/tiny-llama narrowed to 40 of its 64 channels, by PyTorch in f64.

The channels that stay [40], ascending: those of largest sum, over all norms, of the root of the sum over sequences of the squared mean of
|y| over the positions, y what the norm gives (Muralidharan et al. 2024, "Minitron", section 2.2). Then the logits [12][352] of the model
without the others. A norm divides by the root of the mean of 40 squares now; with r the mean over positions of the share of the sum of
squares that is in these, its gain is multiplied by sqrt(r 64 / 40), and epsilon by 64 / 40. Last the sum over all norms and positions of
z z^T [64][64], z what the norm gives without its gain. Statistics are of three sequences, of 20, 9 and 12 tokens; token i of all is
(7 i + 3) mod 300. The logits are of the tokens (5 i + 1) mod 300.
Run: /work/venv/bin/python make_prune_hidden.py ../golden
"""
import sys

import torch
from transformers import AutoModelForCausalLM

KEEP = 40
golden = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(golden + "/tiny-llama", dtype=torch.float64, attn_implementation="eager").eval()
body = model.model
norms = [n for layer in body.layers for n in (layer.input_layernorm, layer.post_attention_layernorm)] + [body.norm]
hidden, eps = model.config.hidden_size, model.config.rms_norm_eps
squares = [0] * len(norms)
energy = [[] for _ in norms]
gram = 0


def watch(k):
    def hook(module, args, y):
        global gram
        x = args[0][0]
        squares[k] = squares[k] + y[0].abs().mean(0) ** 2
        energy[k].append(x ** 2 / (x ** 2).sum(1, keepdim=True))
        z = x / ((x ** 2).mean(1, keepdim=True) + eps).sqrt()
        gram = gram + z.T @ z
    return hook


hooks = [n.register_forward_hook(watch(k)) for k, n in enumerate(norms)]
with torch.no_grad():
    at = 0
    for n in (20, 9, 12):
        model(torch.tensor([[(7 * i + 3) % 300 for i in range(at, at + n)]]))
        at += n
    for h in hooks:
        h.remove()
    kept = sum(s.sqrt() for s in squares).argsort(descending=True)[:KEEP].sort().values
    for k, n in enumerate(norms):
        r = torch.cat(energy[k])[:, kept].sum(1).mean()
        n.weight = torch.nn.Parameter(n.weight[kept] * (r * hidden / KEEP).sqrt())
        n.variance_epsilon = eps * hidden / KEEP
    for layer in body.layers:
        a, m = layer.self_attn, layer.mlp
        for reads in (a.q_proj, a.k_proj, a.v_proj, m.gate_proj, m.up_proj):
            reads.weight = torch.nn.Parameter(reads.weight[:, kept])
        for writes in (a.o_proj, m.down_proj):
            writes.weight = torch.nn.Parameter(writes.weight[kept])
    body.embed_tokens.weight = torch.nn.Parameter(body.embed_tokens.weight[:, kept])
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight[:, kept])
    logits = model(torch.tensor([[(5 * i + 1) % 300 for i in range(12)]])).logits[0]
out = torch.cat([kept.double(), logits.flatten(), gram.flatten()])
out.to(torch.float32).numpy().astype("<f4").tofile(golden + "/prune/hidden.f32")
