#!/usr/bin/env python3
"""Cases for tests/unit/test_align.c: two tokenizations of a text, a teacher's logits, and what each position of the student is taught,
by the rules of lib/align/align.h written out over strings. Usage: make_realign.py > tests/golden/realign/cases.txt"""
import math
import random


def tokenize(text, vocab, rng):
    """A random way to spell the text by the vocabulary."""
    ids, at = [], 0
    while at < len(text):
        fits = [i for i, t in enumerate(vocab) if t and text.startswith(t, at)]
        i = rng.choice(fits)
        ids.append(i)
        at += len(vocab[i])
    return ids


def softmax(row):
    top = max(row)
    e = [math.exp(v - top) for v in row]
    return [v / sum(e) for v in e]


def prefixes(ids, vocab):
    out, text = [], ""
    for i in ids:
        text += vocab[i]
        out.append(text)
    return out


def realign(va, vb, a, b, probs, k):
    """probs[i][t] is the probability of token t after a[: i + 1]. Returns for each of b a list of (id, probability), or None."""
    read_a, read_b = prefixes(a, va), prefixes(b, vb)
    rows, mass = [], 0.0
    for j, read in enumerate(read_b):
        if read not in read_a:
            rows.append(None)
            continue
        i = read_a.index(read)
        dist = {}
        for t, p in enumerate(probs[i]):
            # without merges the student's tokenizer spells a text by its letters
            to = vb.index(va[t] if va[t] in vb else va[t][0])
            dist[to] = dist.get(to, 0) + p
        if j + 1 < len(b) and read_b[j + 1] in read_a:
            last = read_a.index(read_b[j + 1])
            if last - i > 1:
                p = math.prod(probs[s][a[s + 1]] for s in range(i, last))
                first = va[a[i + 1]]
                dist[vb.index(first if first in vb else first[0])] -= p
                dist[b[j + 1]] = dist.get(b[j + 1], 0) + p
        mass += sum(dist.values())
        rows.append(sorted(dist.items(), key=lambda e: (-e[1], e[0]))[:k])
    return rows, mass


def main():
    rng = random.Random(5)
    letters = "abcd "
    for case in range(6):
        pieces = sorted({"".join(rng.choice(letters) for _ in range(rng.randint(2, 4))) for _ in range(24)})
        va = list(letters) + [p for p in pieces if rng.random() < 0.7]
        vb = list(letters) + [p for p in pieces if rng.random() < 0.5]
        rng.shuffle(va)
        rng.shuffle(vb)
        text = "".join(rng.choice(letters) for _ in range(40)) + "".join(rng.choice(pieces) for _ in range(8))
        a, b = tokenize(text, va, rng), tokenize(text, vb, rng)
        logits = [[round(rng.gauss(0, 2), 3) for _ in va] for _ in a]
        k = [3, 8, 100][case % 3]
        rows, mass = realign(va, vb, a, b, [softmax(r) for r in logits], k)
        print(len(va), len(vb), len(a), len(b), k, f"{mass:.9f}")
        for v in (va, vb):
            print(" ".join(t.encode().hex() for t in v))
        for ids in (a, b):
            print(*ids)
        for r in logits:
            print(*r)
        for r in rows:
            if r is None:
                print(0)
            else:
                print(len(r), *(f"{i} {p:.9g}" for i, p in r))


main()
