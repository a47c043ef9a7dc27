"""Makes tests/golden/train/lstm.json: torch.nn.LSTM in both directions over sequences of several lengths, in f64.

The sum of its outputs times `weights` is what gradients are of. Each sequence is run alone.
tests/unit/test_grad_lstm.c compares. Versions: torch 2.15. Run: python make_lstm_golden.py ../golden/train/lstm.json
"""
import json, sys
import torch

IN, UNITS, LENGTHS = 6, 5, [7, 1, 4, 9]

torch.manual_seed(9)
m = torch.nn.LSTM(IN, UNITS, bidirectional=True).double()
with torch.no_grad():
    for p in m.parameters():
        p.copy_((p * 2).float())
x = torch.randn(sum(LENGTHS), IN, dtype=torch.float64).float().double().requires_grad_()
weights = torch.randn(sum(LENGTHS), 2 * UNITS, dtype=torch.float64).float().double()
y = torch.cat([m(part)[0] for part in x.split(LENGTHS)])
(y * weights).sum().backward()

flat = lambda t: [float(f"{v:.10g}") for v in t.detach().flatten().tolist()]
out = dict(input=IN, units=UNITS, lengths=LENGTHS, x=flat(x), weights=flat(weights), y=flat(y), dx=flat(x.grad))
for suffix in "", "_reverse":
    for name in "weight_ih", "weight_hh", "bias_ih", "bias_hh":
        p = getattr(m, f"{name}_l0{suffix}")
        out[name + suffix] = flat(p)
        out["d" + name + suffix] = flat(p.grad)
with open(sys.argv[1], "w") as f:
    json.dump(out, f, indent=0)
    f.write("\n")
