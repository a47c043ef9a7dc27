"""Makes tests/golden/smollm2/: logits of SmolLM2-135M-Instruct (dequantized Q4_1 GGUF) by transformers in f32.

Layout in tests/golden/smollm2/README.md. The full logits go to the cache file outside the repository.
Versions: torch 2.15.0, transformers 5.23.0, tokenizers 0.23.3, numpy 2.4.6.
Run: /work/ref/venv/bin/python make_smollm2_golden.py HF_FOLDER TEXT CACHE.f32 ../golden/smollm2
"""
import json, os, sys
import numpy as np, torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

hf, text, cache, out = sys.argv[1:5]
N, TOP = 512, 64
os.makedirs(out, exist_ok=True)
tk = Tokenizer.from_file(hf + "/tokenizer.json")
ids = tk.encode(open(text, encoding="utf-8", newline="").read(), add_special_tokens=False).ids
m = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32, attn_implementation="eager").eval()
with torch.no_grad():
    lg = m(torch.tensor([ids[:N]])).logits[0].float()
    lp = torch.log_softmax(lg.double(), -1)
lg.numpy().tofile(cache)

def put(name, a, dtype):
    np.ascontiguousarray(a).astype(dtype).tofile(os.path.join(out, name))

top = torch.topk(lg, TOP, dim=-1)
nll = -lp[:-1].gather(1, torch.tensor(ids[1:N])[:, None])[:, 0]
pos = np.array([N // 8 * (i + 1) - 1 for i in range(8)])
put("argmax.u32", lg.argmax(-1).numpy(), "<u4")
put("top64-ids.u32", top.indices.numpy(), "<u4")
put("top64-logits.f32", top.values.numpy(), "<f4")
put("logsumexp.f32", torch.logsumexp(lg.double(), -1).numpy(), "<f4")
put("nll.f32", nll.numpy(), "<f4")
put("positions.u32", pos, "<u4")
put("logits8.f32", lg[pos].numpy(), "<f4")
json.dump({"n_tokens": N, "vocab": lg.shape[1], "sum_log_p": -nll.sum().item(), "ppl": float(np.exp(nll.mean().item())),
           "n_tokens_whole_text": len(ids)}, open(os.path.join(out, "summary.json"), "w"), indent=2)
print(open(os.path.join(out, "summary.json")).read())
