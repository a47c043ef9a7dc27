"""Perplexity of a Hugging Face folder by transformers in f32, by two protocols over the same disjoint windows.

gptq:  whole text as one token sequence, floor(n/ctx) disjoint windows, positions 1 .. ctx-1 scored (ctx-1 each).
llama: as llama.cpp's llama-perplexity: BOS replaces the first token of each window where the model adds one (SmolLM2
       does not), targets ctx/2+1 .. ctx-1 scored (ctx/2-1 each).
Writes JSON: per window the summed negative log likelihoods of both, and the perplexities over the first 64 windows
and over all that were computed. The file is rewritten every 16 windows; a run continues what OUT.json has.

Versions: torch 2.15.0, transformers 5.23.0, tokenizers 0.23.3.
Run: nice -n 10 /work/ref/venv/bin/python perplexity.py HF_FOLDER TEXT OUT.json [CTX] [MAX_WINDOWS]
"""
import json, math, os, sys
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

hf, text, out = sys.argv[1:4]
ctx = int(sys.argv[4]) if len(sys.argv) > 4 else 512
limit = int(sys.argv[5]) if len(sys.argv) > 5 else 10 ** 9
ids = Tokenizer.from_file(hf + "/tokenizer.json").encode(open(text, encoding="utf-8", newline="").read(),
                                                         add_special_tokens=False).ids
m = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32).eval()
n = min(len(ids) // ctx, limit)
gptq, llama = [], []
if os.path.exists(out):
    old = json.load(open(out))
    assert (old["context"], old["n_tokens"]) == (ctx, len(ids)), "OUT.json is of another run"
    gptq, llama = old["gptq_window_nll"], old["llama_window_nll"]


def ppl(sums, scored):
    if not sums:
        return None
    mean = [s / scored for s in sums]
    mu = sum(mean) / len(mean)
    return {"windows": len(sums), "scored_per_window": scored, "mean_nll": mu, "ppl": math.exp(mu)}


def write():
    first = ctx // 2
    doc = {"model": "SmolLM2-135M-Instruct Q4_1, dequantized to f32", "text": "wikitext2-valid.txt",
           "context": ctx, "n_tokens": len(ids), "n_windows": len(ids) // ctx, "bos": False,
           "gptq": {"first64": ppl(gptq[:64], ctx - 1), "computed": ppl(gptq, ctx - 1)},
           "llama": {"first64": ppl(llama[:64], ctx - 1 - first), "computed": ppl(llama, ctx - 1 - first)},
           "gptq_window_nll": [round(x, 4) for x in gptq], "llama_window_nll": [round(x, 4) for x in llama]}
    with open(out, "w") as o:
        o.write(json.dumps(doc, indent=1).replace(",\n  ", ", ") + "\n")


for w in range(len(gptq), n):
    t = torch.tensor([ids[w * ctx:(w + 1) * ctx]])
    with torch.no_grad():
        lg = m(t).logits[0, :-1]
        nll = torch.nn.functional.cross_entropy(lg, t[0, 1:], reduction="none").double()
    gptq.append(nll.sum().item())
    llama.append(nll[ctx // 2:].sum().item())
    if w % 16 == 15:
        write()
        print(w + 1, math.exp(sum(gptq) / len(gptq) / (ctx - 1)), flush=True)
write()
