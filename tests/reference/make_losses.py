#!/usr/bin/env python3
"""Values and gradients of lib/losses by PyTorch in f64: writes tests/golden/losses/losses.txt, which test_losses_torch.c reads.

Inputs are rounded to f32 first. Every loss is written from its definition, with torch.nn.functional where it has it, and differentiated by
autograd. Lines: a name, then numbers. `case TEXT ENCODING` is followed by `value` (mean over the labelled rows) and `gradient` (of the
sum over them, with respect to the student's logits)."""
import sys
import torch
import torch.nn.functional as F

torch.manual_seed(7)
torch.set_default_dtype(torch.float64)
ROWS, VOCAB, K = 4, 23, 5
IN, OUT = 6, 9


def f32(*shape, scale=1.0):
    return (torch.randn(*shape) * scale).float().double()


x = f32(ROWS, VOCAB, scale=2).requires_grad_()
z = f32(ROWS, VOCAB, scale=2)
labels = torch.tensor([3, 0, -1, 22])  # row 2 has none
top = torch.log_softmax(z, -1).topk(K)
probs = top.values.exp().float().double()  # of the entries, and what is left for all others
rest = 1 - probs.sum(-1)
ids = top.indices


def dense(t):
    return torch.log_softmax(z / t, -1), torch.log_softmax(x / t, -1)


def partition(t):
    """Log-probabilities over the entries and the rest as one token."""
    lp = torch.log_softmax(x / t, -1)
    entries = lp.gather(-1, ids)
    others = torch.ones_like(lp).scatter(-1, ids, 0.0)
    left = (lp.exp() * others).sum(-1, keepdim=True).log()
    return torch.cat([probs, rest[:, None]], -1).log(), torch.cat([entries, left], -1)


def kl(a, b):  # KL(a || b) of log-probabilities
    return F.kl_div(b, a, reduction="none", log_target=True).sum(-1)


def mix(a, b, share):  # share a + (1 - share) b
    return torch.logsumexp(torch.stack([a + torch.tensor(share).log(), b + torch.tensor(1 - share).log()]), 0)


def jsd(t, s, beta):  # TRL's GKDTrainer.generalized_jsd_loss
    if beta == 0:
        return kl(t, s)
    if beta == 1:
        return kl(s, t)
    m = mix(t, s, beta)
    return beta * kl(t, m) + (1 - beta) * kl(s, m)


def akl(t, s, mu, rest_last):
    p, q = t.exp(), s.exp().detach()
    n = p.shape[-1] - (1 if rest_last else 0)
    head = torch.zeros_like(p)
    for r in range(p.shape[0]):
        mass = 0.0
        for i in p[r, :n].argsort(descending=True, stable=True):
            if mass >= mu:
                break
            mass += p[r, i].item()
            head[r, i] = 1
    gap = (p - q).abs()
    g_head, g_tail = (gap * head).sum(-1), (gap * (1 - head)).sum(-1)
    return (g_head * kl(t, s) + g_tail * kl(s, t)) / (g_head + g_tail)


def ab(t, s, a, b):
    p, q = t.exp(), s.exp()
    return -(p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)).sum(-1) / (a * b)


def tfkd(a, t):
    v = torch.full((ROWS, VOCAB), (1 - a) / (VOCAB - 1))
    for r in range(ROWS):
        v[r, labels[r]] = a
    return t * t * kl(torch.log_softmax(v.log() / t, -1), torch.log_softmax(x / t, -1))


def rank(f, margin, k):
    order = z.argsort(-1, descending=True)[:, :k]
    y = x.gather(-1, order)
    i, j = torch.triu_indices(k, k, 1)
    return f(margin - (y[:, i] - y[:, j])).mean(-1)


def centred(v):
    return v - v.mean(-1, keepdim=True)


def ordered(p):
    return p.sort(-1, descending=True).values


def uld(teacher, t):
    """Boizard et al.: both sorted, the shorter filled up with zeros."""
    return (ordered(torch.softmax(x / t, -1)) - F.pad(ordered(teacher), (0, VOCAB - teacher.shape[-1]))).abs().sum(-1)


cases = [
    ("kl", "dense", lambda: kl(*dense(1))),
    ("kl:temperature=2.5", "dense", lambda: 2.5**2 * kl(*dense(2.5))),
    ("kl", "ghost", lambda: kl(*partition(1))),
    ("ce", "dense", lambda: F.cross_entropy(x, labels.clamp(min=0), reduction="none")),
    ("smooth:epsilon=0.2", "dense", lambda: F.cross_entropy(x, labels.clamp(min=0), reduction="none", label_smoothing=0.2)),
    ("tfkd", "dense", lambda: tfkd(0.9, 1)),
    ("tfkd:a=0.7,temperature=3", "dense", lambda: tfkd(0.7, 3)),
    ("mse:centred=no", "dense", lambda: F.mse_loss(x, z, reduction="none").mean(-1)),
    ("mse", "dense", lambda: F.mse_loss(centred(x), centred(z), reduction="none").mean(-1)),
    ("hinge:k=5,margin=0.5", "dense", lambda: rank(F.relu, 0.5, 5)),
    ("logistic:k=4", "ghost", lambda: rank(F.softplus, 0, 4)),
    ("logistic:k=6,margin=0.3", "dense", lambda: rank(F.softplus, 0.3, 6)),
    ("ab:alpha=0.4,beta=0.6", "dense", lambda: ab(*dense(1), 0.4, 0.6)),
    ("uld", "dense", lambda: uld(torch.softmax(z, -1), 1)),
    ("uld:temperature=2", "dense", lambda: uld(torch.softmax(z / 2, -1), 2)),
    ("uld", "ghost", lambda: uld(probs, 1)),
    ("ab:temperature=2", "dense", lambda: ab(*dense(2), 0.2, 0.7)),
]
for enc, rows, t in (("dense", dense, 1), ("dense", dense, 2), ("ghost", partition, 1)):
    of = f":temperature={t}" if t != 1 else ""
    join = "," if of else ":"
    cases += [
        (f"rkl{of}", enc, lambda rows=rows, t=t: kl(*rows(t)[::-1])),
        (f"skl{of}{join}alpha=0.3", enc, lambda rows=rows, t=t: kl(rows(t)[0], mix(*rows(t), 0.3))),
        (f"srkl{of}{join}alpha=0.3", enc, lambda rows=rows, t=t: kl(rows(t)[1], mix(*rows(t), 0.7))),
        (f"jsd{of}{join}beta=0.3", enc, lambda rows=rows, t=t: jsd(*rows(t), 0.3)),
        (f"jsd{of}{join}beta=0", enc, lambda rows=rows, t=t: jsd(*rows(t), 0)),
        (f"jsd{of}{join}beta=1", enc, lambda rows=rows, t=t: jsd(*rows(t), 1)),
        (f"akl{of}{join}mu=0.6", enc, lambda rows=rows, t=t, e=enc: akl(*rows(t), 0.6, e == "ghost")),
        (f"tvd{of}", enc, lambda rows=rows, t=t: 0.5 * (rows(t)[0].exp() - rows(t)[1].exp()).abs().sum(-1)),
    ]


def put(out, name, v):
    print(name, *(f"{n:.17g}" for n in v.detach().flatten().tolist()), file=out)


with open(sys.argv[1] if len(sys.argv) > 1 else "tests/golden/losses/losses.txt", "w") as out:
    print(f"sizes {ROWS} {VOCAB} {K} {IN} {OUT}", file=out)
    put(out, "x", x)
    put(out, "z", z)
    put(out, "labels", labels.double())
    put(out, "ids", ids.double())
    put(out, "probs", probs)
    put(out, "rest", rest)
    counts = (labels >= 0).double()
    for text, enc, f in cases:
        x.grad = None
        total = (f() * counts).sum()
        total.backward()
        print(f"case {text} {enc}", file=out)
        put(out, "value", total / counts.sum())
        put(out, "gradient", x.grad)
    h, w, t = f32(ROWS, IN).requires_grad_(), f32(OUT, IN).requires_grad_(), f32(ROWS, OUT)
    put(out, "h", h)
    put(out, "w", w)
    put(out, "t", t)
    for kind, f in (
        ("mse", lambda y: F.mse_loss(y, t, reduction="none").mean(-1)),
        ("cosine", lambda y: 1 - F.cosine_similarity(y, t, dim=-1)),
    ):
        h.grad = w.grad = None
        total = (f(h @ w.T) * counts).sum()
        total.backward()
        print(f"points hidden:kind={kind}", file=out)
        put(out, "value", total / counts.sum())
        put(out, "dh", h.grad)
        put(out, "dw", w.grad)
