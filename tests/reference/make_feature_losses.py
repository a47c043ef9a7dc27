#!/usr/bin/env python3
"""Values and gradients of the losses on points by PyTorch in f64: writes tests/golden/losses/points.txt, which test_losses_points.c reads.

Two sequences, some positions without a label. Inputs are rounded to f32 first; every loss is written from its definition and differentiated
by autograd. A case is `case TEXT WIDE ... end`: the teacher's layers are of another width when WIDE is 1. In it, `value` (mean over
the labelled positions), parameters of the loss in their order with their gradients, and the gradients of the student's points."""
import math
import sys
import torch
import torch.nn.functional as F

torch.manual_seed(11)
torch.set_default_dtype(torch.float64)
LENGTHS, D, WIDE = [7, 5], 10, 14
HEADS, KV, SHEAD, THEAD = 4, 2, 3, 5
ROWS = sum(LENGTHS)
labelled = torch.tensor([1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1, 0])
N = labelled.sum().item()
starts = [0, LENGTHS[0], ROWS]


def f32(*shape, scale=1.0):
    return (torch.randn(*shape) * scale).float().double()


s = {"embed.0": f32(ROWS, D)}
t = {"embed.0": f32(ROWS, D), "wide.embed.0": f32(ROWS, WIDE)}
for i in range(2):
    s |= {f"layer.{i}": f32(ROWS, D), f"q.{i}": f32(ROWS, HEADS * SHEAD), f"k.{i}": f32(ROWS, KV * SHEAD), f"v.{i}": f32(ROWS, KV * SHEAD)}
for i in range(4):
    t |= {f"layer.{i}": f32(ROWS, D), f"wide.layer.{i}": f32(ROWS, WIDE)}
    t |= {f"q.{i}": f32(ROWS, HEADS * THEAD), f"k.{i}": f32(ROWS, KV * THEAD), f"v.{i}": f32(ROWS, KV * THEAD)}
for v in s.values():
    v.requires_grad_()


def maps(name, n=2, m=4):
    u = [(i, -(-(i + 1) * m // n) - 1) for i in range(n)]
    return {"last": [(n - 1, m - 1)], "ends": [(0, 0), (n - 1, m - 1)], "uniform": u, "skip": u[:-1], "tail": [(i, m - n + i) for i in range(n - 1)]}[name]


def thin(at, most):
    n = len(at)
    return at if n <= most else [at[(2 * i + 1) * n // (2 * most)] for i in range(most)]


def groups(per, most=10**9):
    """Matrices [instances][positions] that pick or average, and what they count for."""
    at = [[p for p in range(a, b) if labelled[p]] for a, b in zip(starts, starts[1:])]
    pick = torch.eye(ROWS)
    if per == "position":
        return [(pick[thin(a, most)], len(a)) for a in at]
    return [(torch.stack([pick[a].mean(0) for a in at]), N)]


def layers(f, which, wide, per="position", most=10**9):
    """sum over groups of labelled f(student, teacher), mean over the map."""
    pre = "wide." if wide else ""
    m = maps(which)
    return sum(n * f(g @ s[f"layer.{i}"], g @ t[f"{pre}layer.{j}"]) for i, j in m for g, n in groups(per, most)) / len(m)


def two(f, which, wide, per="position"):
    pre = "wide." if wide else ""
    m = maps(which)
    total = 0
    for (a, ta), (b, tb) in zip(m, m[1:]):
        for g, n in groups(per):
            total += n * f(*(g @ x for x in (s[f"layer.{a}"], s[f"layer.{b}"], t[f"{pre}layer.{ta}"], t[f"{pre}layer.{tb}"])))
    return total / (len(m) - 1)


def sp(x, y):
    return ((F.normalize(x @ x.T, dim=-1) - F.normalize(y @ y.T, dim=-1)) ** 2).mean()


def unit(x):
    return F.normalize(x, dim=-1)


def cc(gamma, order):
    def f(x, y):
        a, b = unit(x) @ unit(x).T, unit(y) @ unit(y).T
        k = lambda c: sum(math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * c**p for p in range(order + 1)) if order else c
        return ((k(a) - k(b)) ** 2).mean()

    return f


def off(n):
    return ~torch.eye(n, dtype=torch.bool)


def pkt(x, y):
    def p(z):
        k = (unit(z) @ unit(z).T + 1) / 2 * off(len(z))
        return k / k.sum(-1, keepdim=True)

    a, b = p(y), p(x)
    return (a * ((a + 1e-7) / (b + 1e-7)).log())[off(len(x))].sum() / len(x)


def distances(x):
    m = off(len(x))
    i, j = m.nonzero(as_tuple=True)
    return (x[i] - x[j]).norm(dim=-1)


def rkd_distance(x, y):
    a, b = distances(x), distances(y)
    return F.smooth_l1_loss(a / a.mean(), b / b.mean())


def rkd_angle(x, y):
    n = len(x)
    ijk = [(i, j, k) for j in range(n) for i in range(n) for k in range(n) if len({i, j, k}) == 3]
    i, j, k = torch.tensor(ijk).T
    cos = lambda z: F.cosine_similarity(z[i] - z[j], z[k] - z[j], dim=-1)
    return F.smooth_l1_loss(cos(x), cos(y))


def graph(x, y):
    a = lambda z: ((z[:, None] - z[None]) ** 2).mean(-1)
    return ((a(x) - a(y)) ** 2).mean()


def moves(xa, xb, ya, yb):
    return ((((xa - xb) ** 2).mean(-1) - ((ya - yb) ** 2).mean(-1)) ** 2).mean()


def at(x, y):
    return ((F.normalize((x**2).sum(-1), dim=0) - F.normalize((y**2).sum(-1), dim=0)) ** 2).mean()


def fsp(wa=None, wb=None):
    def f(xa, xb, ya, yb):
        if wa is not None:
            xa, xb = xa @ wa.T, xb @ wb.T
        return ((xa.T @ xb / len(xa) - ya.T @ yb / len(xa)) ** 2).mean()

    return f


def nst(kind):
    def f(x, y):
        a, b = F.normalize(x, dim=0).T, F.normalize(y, dim=0).T
        var = ((a[:, None] - b[None]) ** 2).sum(-1).mean().detach()
        k = {
            "linear": lambda u, v: u @ v.T,
            "poly": lambda u, v: (u @ v.T) ** 2,
            "gaussian": lambda u, v: (-((u[:, None] - v[None]) ** 2).sum(-1) / (2 * var)).exp(),
        }[kind]
        return k(a, a).mean() + k(b, b).mean() - 2 * k(a, b).mean()

    return f


def pkd(x, y):
    return ((unit(x) - unit(y)) ** 2).sum(-1).mean()


def crd(ws, wt, temp):
    def f(x, y):
        z = unit(x @ ws.T) @ unit(y @ wt.T).T / temp
        own = torch.arange(len(x))
        return (F.cross_entropy(z, own) + F.cross_entropy(z.T, own)) / 2

    return f


def ft(enc, dec, tr, wide):
    y, x = t["wide.layer.3" if wide else "layer.3"], s["layer.1"]
    factors = y @ enc.T
    rows = (unit(x @ tr.T) - unit(factors.detach())).abs().sum(-1) + ((factors @ dec.T - y) ** 2).mean(-1)
    return (rows * labelled).sum()


def attention(side, layer, scores=False):
    d = SHEAD if side is s else THEAD
    q = side[f"q.{layer}"].view(ROWS, HEADS, d)
    k = side[f"k.{layer}"].view(ROWS, KV, d).repeat_interleave(HEADS // KV, 1)
    out = []
    for a, b in zip(starts, starts[1:]):
        z = torch.einsum("ihd,jhd->hij", q[a:b], k[a:b]) / math.sqrt(d)
        seen = torch.ones(b - a, b - a).tril().bool()
        out.append((z, seen) if scores else (z.masked_fill(~seen, -math.inf).softmax(-1), seen))
    return out


def kl_rows(p, q):  # [heads][i][j] -> [i]
    z = torch.where(p > 0, p * ((p + (p == 0)).log() - (q + (q == 0)).log()), torch.zeros(()))
    return z.sum(-1).mean(0)


def attention_kl(i, j):
    return sum((kl_rows(a[0], b[0]) * labelled[u:v]).sum() for a, b, u, v in zip(attention(t, j), attention(s, i), starts, starts[1:]))


def attention_square(i, j, scores):
    total = 0
    for (a, seen), (b, _), u, v in zip(attention(t, j, scores), attention(s, i, scores), starts, starts[1:]):
        rows = (((a - b) ** 2) * seen).sum(-1) / seen.sum(-1)
        total += (rows.mean(0) * labelled[u:v]).sum()
    return total


def self_relation(point, i, j, heads):
    total = 0
    for u, v in zip(starts, starts[1:]):
        r = []
        for x in (t[f"{point}.{j}"], s[f"{point}.{i}"]):
            z = x[u:v].view(v - u, heads, -1)
            r.append((torch.einsum("ihd,jhd->hij", z, z) / math.sqrt(z.shape[-1])).softmax(-1))
        total += (kl_rows(*r) * labelled[u:v]).sum()
    return total


def rows_mse(x, y, w=None):
    x = x if w is None else x @ w.T
    return (((x - y) ** 2).mean(-1) * labelled).sum()


def tinybert(wide, scores, we=None, wh=None):
    pre = "wide." if wide else ""
    total = rows_mse(s["embed.0"], t[f"{pre}embed.0"], we)
    for i, j in maps("uniform"):
        total = total + (rows_mse(s[f"layer.{i}"], t[f"{pre}layer.{j}"], wh) + attention_square(i, j, scores)) / 2
    return total


def weight(out, into):
    return f32(out, into, scale=0.5).requires_grad_()


def with_params(f, *shapes):
    p = [weight(*shape) for shape in shapes]
    return lambda: f(*p), p


plain = [
    ("pkd", 0, lambda: layers(pkd, "skip", 0)),
    ("pkd:map=tail,per=sequence", 0, lambda: layers(pkd, "tail", 0, "sequence")),
    ("at", 1, lambda: layers(at, "uniform", 1)),
    ("fsp", 0, lambda: two(fsp(), "ends", 0)),
    ("nst", 1, lambda: layers(nst("poly"), "last", 1)),
    ("nst:kernel=linear", 1, lambda: layers(nst("linear"), "last", 1)),
    ("nst:kernel=gaussian,positions=4", 1, lambda: layers(nst("gaussian"), "last", 1, most=4)),
    ("sp", 1, lambda: layers(sp, "last", 1)),
    ("sp:per=sequence,map=uniform", 1, lambda: layers(sp, "uniform", 1, "sequence")),
    ("cc", 1, lambda: layers(cc(0.4, 2), "last", 1)),
    ("cc:kernel=bilinear", 1, lambda: layers(cc(0.4, 0), "last", 1)),
    ("cc:gamma=0.7,order=4,positions=4", 1, lambda: layers(cc(0.7, 4), "last", 1, most=4)),
    ("pkt", 1, lambda: layers(pkt, "last", 1)),
    ("pkt:map=1:2+0:0", 1, lambda: sum(n * pkt(g @ s[f"layer.{i}"], g @ t[f"wide.layer.{j}"]) for i, j in ((1, 2), (0, 0)) for g, n in groups("position")) / 2),
    ("rkd:angle=0", 1, lambda: 25 * layers(rkd_distance, "last", 1)),
    ("rkd:distance=0", 1, lambda: 50 * layers(rkd_angle, "last", 1)),
    ("rkd:corners=3", 1, lambda: 25 * layers(rkd_distance, "last", 1) + 50 * layers(rkd_angle, "last", 1, most=3)),
    ("irg", 1, lambda: layers(graph, "ends", 1) + two(moves, "ends", 1)),
    ("irg:edges=0,per=sequence", 1, lambda: two(moves, "ends", 1, "sequence")),
    ("minilm", 0, lambda: attention_kl(1, 3) + self_relation("v", 1, 3, KV)),
    ("minilm:values=0,map=0:1", 0, lambda: attention_kl(0, 1)),
    ("minilm2", 0, lambda: sum(self_relation(p, 1, 3, 2) for p in "qkv")),
    ("minilm2:qq=0.5,kk=0,heads=1", 0, lambda: 0.5 * self_relation("q", 1, 3, 1) + self_relation("v", 1, 3, 1)),
    ("tinybert", 0, lambda: tinybert(0, False)),
]
learned = [
    ("fsp", 1, *with_params(lambda a, b: two(fsp(a, b), "ends", 1), (WIDE, D), (WIDE, D))),
    ("ft", 1, *with_params(lambda a, b, c: ft(a, b, c, 1), (7, WIDE), (WIDE, 7), (7, D))),
    ("crd:width=4,temperature=0.5", 1, *with_params(lambda a, b: layers(crd(a, b, 0.5), "last", 1), (4, D), (4, WIDE))),
    ("tinybert:of=scores", 1, *with_params(lambda a, b: tinybert(1, True, a, b), (WIDE, D), (WIDE, D))),
]


def put(out, name, v, digits=8):
    print(name, v.numel(), *(f"{n:.{digits}g}" for n in v.detach().flatten().tolist()), file=out)


with open(sys.argv[1] if len(sys.argv) > 1 else "tests/golden/losses/points.txt", "w") as out:
    put(out, "labelled", labelled.double())
    for side, points in (("student", s), ("teacher", t)):
        for name, v in points.items():
            put(out, f"{side} {name}", v, 9)
    for text, wide, f, *params in [(*c, []) for c in plain] + learned:
        params = params[0]
        for v in list(s.values()) + params:
            v.grad = None
        total = f()
        total.backward()
        print(f"case {text} {wide}", file=out)
        put(out, "value", total / N, 12)
        for v in params:
            put(out, "param", v, 9)
            put(out, "slope", v.grad)
        for name, v in s.items():
            if v.grad is not None:
                put(out, f"gradient {name}", v.grad)
        print("end", file=out)
