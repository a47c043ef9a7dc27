"""transformers' generate, greedily, many sequences at once."""

import torch
import transformers

from peer import arguments, serve

a = arguments(sequences=64, prompt=16, new=128)
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
