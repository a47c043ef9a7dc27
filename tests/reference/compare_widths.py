"""Are the shapes of `rill prune --per-layer` those of a plain implementation of what lib/prune/README.md says of them?

From statistics with gradients (calibrate --gradients) of a llama: for each target, the key/value heads of each layer, query heads of each of
these, and channels, by greedy steps in plain Python that looks at all of them anew each time, beside those of --dry-run.
Run: python compare_widths.py MODEL.rill STATS.rill [SHARE ...]     (exit 1: they disagree)
"""
import subprocess, sys
import numpy as np
from compare_llama_cpp import rill

POWER = 2


def run(*command):
    return subprocess.run([rill, *command], check=True, capture_output=True, text=True).stdout


def numbers(stats, tensor):
    return np.array(run("show", "--tsv", "--tensor", tensor, stats).split(), dtype=float)


class Layer:
    def __init__(self, stats, i, groups, each, width):
        ffn = np.sort(numbers(stats, f"layers.{i}.taylor.ffn"))[::-1]
        query = numbers(stats, f"layers.{i}.taylor.query").reshape(groups, each, width).sum(2)
        key = numbers(stats, f"layers.{i}.taylor.key").reshape(groups, width).sum(1)
        self.ffn, self.query, self.key = ffn, -np.sort(-query, axis=1), key
        self.all = ffn.sum() + query.sum() + key.sum()

    def lost(self, shape):
        if shape is None:
            return self.all
        groups, each, ffn = shape
        kept = np.sort(self.key + self.query[:, :each].sum(1))[::-1][:groups].sum() + self.ffn[:ffn].sum()
        return self.all * ((self.all - kept) / self.all) ** POWER


def smaller(shape, unit, left):
    groups, each, ffn = shape
    if (ffn - 1) // unit:
        yield groups, each, (ffn - 1) // unit * unit
    if groups > 1:
        yield groups - 1, each, ffn
    if each > 1:
        yield groups, each - 1, ffn
    if left > 1:
        yield None


def larger(shape, whole, unit):
    groups, each, ffn = shape
    if ffn < whole[2]:
        yield groups, each, min(ffn // unit * unit + unit, whole[2])
    if groups < whole[0]:
        yield groups + 1, each, ffn
    if each < whole[1]:
        yield groups, each + 1, ffn


def allocate(layers, whole, unit, hidden, width, around, limit):
    def size(shape):
        return 0 if shape is None else 2 * hidden + hidden * width * shape[0] * (2 + 2 * shape[1]) + 3 * hidden * shape[2]
    now = [whole] * len(layers)
    total = lambda: around + sum(map(size, now))
    while total() > limit:
        left = sum(s is not None for s in now)
        steps = [((layers[i].lost(to) - layers[i].lost(s)) / (size(s) - size(to)), i, k, to)
                 for i, s in enumerate(now) if s for k, to in enumerate(smaller(s, unit, left))]
        _, i, _, to = min(steps, key=lambda step: step[:3])
        now[i] = to
    while True:
        steps = [((layers[i].lost(s) - layers[i].lost(to)) / (size(to) - size(s)), -i, -k, to)
                 for i, s in enumerate(now) if s for k, to in enumerate(larger(s, whole, unit))
                 if total() + size(to) - size(s) <= limit]
        best = max(steps, key=lambda step: step[:3], default=(0,))
        if best[0] <= 0:
            return now
        now[-best[1]] = best[3]


def main(model, stats, *shares):
    plan = lambda *how: [line.split() for line in run("prune", "-q", *how, "--dry-run", model).splitlines()]
    first = plan("--ffn", "100%")
    rows = [r for r in first if r[0] == "layer"]
    heads, groups, ffn = map(int, rows[0][2:5])
    whole, unit = (groups, heads // groups, ffn), 256 if ffn >= 2048 else 64 if ffn >= 512 else 32 if ffn >= 64 else 1
    parameters = int(first[-1][1])
    width = len(numbers(stats, "layers.0.taylor.query")) // heads
    hidden = len(numbers(stats, "layers.0.attn_in.sum_sq"))
    layers = [Layer(stats, i, groups, heads // groups, width) for i in range(len(rows))]
    inside = len(rows) * (2 * hidden + hidden * width * groups * (2 + 2 * whole[1]) + 3 * hidden * ffn)
    good = True
    for share in shares or ("0.8", "0.7", "0.6", "0.5", "0.4"):
        want = allocate(layers, whole, unit, hidden, width, parameters - inside, float(share) * parameters)
        got = [None] * len(rows)
        for r in plan("--target-params", f"{100 * float(share):g}%", "--per-layer", "--stats", stats):
            if r[0] == "layer":
                h, g, f = map(int, r[2:5])
                got[int(r[1])] = (g, h // g, f)
        good &= got == want
        print(share, "same" if got == want else f"differs: {got}, here {want}", [s and s[2] for s in got])
    return good


if __name__ == "__main__":
    sys.exit(0 if main(*sys.argv[1:]) else 1)
