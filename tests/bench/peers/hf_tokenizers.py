"""Hugging Face's tokenizers on the lines of a text, all threads."""

import argparse

import tokenizers

from peer import serve

p = argparse.ArgumentParser()
p.add_argument("--threads", type=int)  # RAYON_NUM_THREADS would be read at import; by default it takes all cores
p.add_argument("--tokenizer", required=True)
p.add_argument("--text", required=True)
a = p.parse_args()

tokenizer = tokenizers.Tokenizer.from_file(a.tokenizer)
with open(a.text, encoding="utf-8", errors="replace") as f:
    text = f.read()
lines = text.splitlines()


def encode():
    # batches, so that its memory does not count against it; _fast leaves the offsets out
    batch = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
    for i in range(0, len(lines), 10000):
        batch(lines[i : i + 10000], add_special_tokens=False)


serve(tokenizers.__version__, len(text.encode()), encode)
