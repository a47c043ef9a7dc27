"""transformers' generate, greedily, many sequences at once."""

import argparse

import torch
import transformers

from peer import serve

p = argparse.ArgumentParser()
p.add_argument("--threads", type=int, required=True)
p.add_argument("--model", required=True)
p.add_argument("--dtype", choices=["bf16", "f32"], required=True)
p.add_argument("--sequences", type=int, default=64)
p.add_argument("--prompt", type=int, default=16)
p.add_argument("--new", type=int, default=128)
a = p.parse_args()
torch.set_num_threads(a.threads)
dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[a.dtype]
model = transformers.AutoModelForCausalLM.from_pretrained(a.model, dtype=dtype).eval()
tokens = torch.randint(0, 256, (a.sequences, a.prompt), generator=torch.Generator().manual_seed(1))
how = dict(do_sample=False, attention_mask=torch.ones_like(tokens), min_new_tokens=a.new, max_new_tokens=a.new, pad_token_id=0)


@torch.inference_mode()
def run():
    model.generate(tokens, **how)


run()
serve(f"{transformers.__version__} on PyTorch {torch.__version__.split('+')[0]} {a.dtype}", a.sequences * a.new, run)
