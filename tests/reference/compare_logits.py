"""Compares a raw f32 file of logits [n][vocab], written by our program, with those of transformers in f32.

The reference is --ref (raw f32, as many rows or more) where that file exists; otherwise it is computed from --model, a
GGUF file (llama architecture, dequantized by the gguf package) or a Hugging Face folder, and written to --ref.
Prints max and mean abs difference, KL divergence, argmax agreement, both perplexities and their ratio.
Exit code 1 when the max abs difference exceeds --tol.

Versions: numpy 2.4.6; to compute the reference torch 2.15.0, transformers 5.23.0, gguf 0.19.0.
Run: /work/ref/venv/bin/python compare_logits.py ours.f32 [--ref /work/ref/smollm2-logits-512.f32]
     --tokens TOKENS.u32 [--model /work/ref/models/smollm2.gguf] [--tol 0.01]
"""
import argparse, os, sys
import numpy as np

here = os.path.dirname(os.path.abspath(__file__))
p = argparse.ArgumentParser()
p.add_argument("ours")
p.add_argument("--ref", default="/work/ref/smollm2-logits-512.f32")
p.add_argument("--tokens", required=True)
p.add_argument("--model", default="/work/ref/models/smollm2.gguf")
p.add_argument("--vocab", type=int, default=0, help="row length; default: the reference's")
p.add_argument("--tol", type=float, default=None)
a = p.parse_args()
ids = np.fromfile(a.tokens, "<u4")


def compute():
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
    if os.path.isdir(a.model):
        m = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32)
    else:
        sys.path.insert(0, here)
        from make_hf_from_gguf import load
        w, cfg, _ = load(a.model)
        m = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in cfg.items() if k not in ("architectures", "torch_dtype")}))
        left = m.load_state_dict(w, strict=False)
        assert not left.unexpected_keys and set(left.missing_keys) <= {"lm_head.weight"}, left
        m.tie_weights()
    with torch.no_grad():
        r = m.eval()(torch.tensor([ids.astype(np.int64).tolist()])).logits[0].float().numpy()
    r.tofile(a.ref)
    return r


ref = np.fromfile(a.ref, "<f4").reshape(len(ids), -1) if os.path.exists(a.ref) else compute()
ours = np.fromfile(a.ours, "<f4").reshape(-1, a.vocab or ref.shape[1])
n = min(len(ours), len(ref))
if ours.shape[1] != ref.shape[1]:
    sys.exit(f"vocabulary {ours.shape[1]}, reference {ref.shape[1]}")
ours, ref = ours[:n].astype(np.float64), ref[:n].astype(np.float64)


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


d = np.abs(ours - ref)
lo, lr = log_softmax(ours), log_softmax(ref)
t = ids[1:n].astype(np.int64)
po, pr = (np.exp(-x[np.arange(n - 1), t].mean()) for x in (lo[:n - 1], lr[:n - 1]))
w = np.unravel_index(d.argmax(), d.shape)
print(f"rows                {n}")
print(f"max abs difference  {d.max():.6g} at row {w[0]}, token {w[1]}")
print(f"mean abs difference {d.mean():.6g}")
print(f"mean KL(ref||ours)  {(np.exp(lr) * (lr - lo)).sum(-1).mean():.6g}")
print(f"argmax agreement    {(ours.argmax(-1) == ref.argmax(-1)).sum()}/{n}")
print(f"perplexity          ours {po:.6f}  reference {pr:.6f}  ratio {po / pr:.8f}")
sys.exit(1 if a.tol is not None and not d.max() <= a.tol else 0)
