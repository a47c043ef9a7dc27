"""PyTorch's forward pass with all logits, 4 sequences at a time: the fastest of plain, packed weights, compiled layers."""

import torch

from llama import Llama, pack
from peer import arguments, fastest, serve

a = arguments(batch=4, context=512)
torch.set_num_threads(a.threads)
dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[a.dtype]
tokens = torch.randint(0, 256, (a.batch, a.context), generator=torch.Generator().manual_seed(1))


def variant(packed=False, compiled=False):
    def make():
        model = Llama(a.model).to(dtype).eval()
        angles = model.angles(a.context, dtype)
        if packed:
            pack(model, tokens.numel())
        if compiled:  # layer by layer: they share one compilation
            for layer in model.layers:
                layer.compile(dynamic=False)

        @torch.inference_mode()
        def run():
            return model.head(model.hidden(tokens, angles))

        return run

    return make


with torch.inference_mode():
    name, run = fastest(
        {
            "plain": variant(),
            "packed weights": variant(packed=True),
            "compiled": variant(compiled=True),
        }
    )
serve(f"{torch.__version__.split('+')[0]} {a.dtype}, {name}", tokens.numel(), run)
