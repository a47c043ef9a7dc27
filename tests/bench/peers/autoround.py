"""AutoRound's export to GGUF of a Hugging Face folder, calibrated on the very tokens that Rill's methods see.

autoround.py FOLDER OUT.gguf --scheme gguf:q4_k_m --context N --iters N --threads N < TOKENS: numbers, in sequences of N that all have this length.
Needs auto-round, torch and transformers. In f32, since rounding the weights to bf16 first is AutoRound's loss alone.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

p = argparse.ArgumentParser()
p.add_argument("folder")
p.add_argument("out")
p.add_argument("--scheme", default="gguf:q4_k_m")
p.add_argument("--context", type=int, default=512)
p.add_argument("--iters", type=int, default=200)
p.add_argument("--batch", type=int, default=8)
p.add_argument("--threads", type=int, default=1)
a = p.parse_args()

import torch
import transformers
from auto_round import AutoRound
from auto_round.export.export_to_gguf import llama_cpp_conversion

torch.set_num_threads(a.threads)
model = transformers.AutoModelForCausalLM.from_pretrained(a.folder, dtype=torch.float32)
tokenizer = transformers.AutoTokenizer.from_pretrained(a.folder)
tokens = torch.tensor([int(word) for word in sys.stdin.read().split()])
samples = tokens[: len(tokens) // a.context * a.context].view(-1, 1, a.context)

# llama.cpp's converter refuses tokenizers that it has no name for. Weights alone are compared here.
llama_cpp_conversion.get_conversion()
text_model = sys.modules["conversion.base"].TextModel
by_hash = text_model.get_vocab_base_pre


def name_of_splitting(self, tokenizer):
    try:
        return by_hash(self, tokenizer)
    except NotImplementedError:
        return "gpt-2"


text_model.get_vocab_base_pre = name_of_splitting

quantizer = AutoRound(
    model,
    tokenizer=tokenizer,
    scheme=a.scheme,
    iters=a.iters,
    dataset=[{"input_ids": s} for s in samples],
    nsamples=len(samples),
    seqlen=a.context,
    batch_size=a.batch,
    amp=False,
    model_dtype="float32",
    device_map="cpu",
    enable_torch_compile=False,
)
with tempfile.TemporaryDirectory(dir=Path(a.out).parent) as folder:
    quantizer.quantize_and_save(folder, format=a.scheme)
    made = list(Path(folder).rglob("*.gguf"))
    if len(made) != 1:
        sys.exit(f"autoround: {len(made)} files were written, not one")
    shutil.move(made[0], a.out)
