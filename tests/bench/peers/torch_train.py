"""PyTorch's distillation step on sparse targets, 4 sequences at a time: forward KL to K entries a position, which are gathered
from the logits, so that no target is ever dense; AdamW, fused; bf16 by autocast over f32 weights. The head
whole or in chunks of positions that are computed again in the backward pass, whichever is faster, then with compiled
layers if that is faster still."""

import torch
from torch.utils.checkpoint import checkpoint

from llama import Llama
from peer import arguments, fastest, serve

a = arguments(batch=4, context=512, entries=18)
torch.set_num_threads(a.threads)
random = torch.Generator().manual_seed(1)
tokens = torch.randint(0, 256, (a.batch, a.context), generator=random)
CHUNK = 512


def loss_of(x, head, ids, probs):
    """sum over positions of -sum_k t_k log softmax(logits)_k: the KL divergence but for a constant"""
    logits = head(x).float()
    return (torch.logsumexp(logits, -1) - (probs * logits.gather(-1, ids)).sum(-1)).sum()


def variant(compiled, chunked):
    def make():
        model = Llama(a.model).float()
        vocab = model.config["vocab_size"]
        n = tokens.numel()
        ids = torch.stack([torch.randperm(vocab, generator=random)[: a.entries] for _ in range(n)])
        probs = torch.softmax(torch.randn(n, a.entries, generator=random), -1)
        angles = model.angles(a.context, torch.float32)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        loss_function = loss_of
        if compiled:
            for layer in model.layers:
                layer.compile(dynamic=False)
            loss_function = torch.compile(loss_of, dynamic=False)

        def run():
            optimizer.zero_grad(set_to_none=False)
            with torch.autocast("cpu", torch.bfloat16, enabled=a.dtype == "bf16"):
                x = model.hidden(tokens, angles).flatten(0, 1)
                if chunked:
                    parts = zip(x.split(CHUNK), ids.split(CHUNK), probs.split(CHUNK))
                    loss = sum(checkpoint(loss_function, h, model.head, i, t, use_reentrant=False) for h, i, t in parts)
                else:
                    loss = loss_function(x, model.head, ids, probs)
            (loss / n).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
            optimizer.step()

        return run

    return make


variants = {"plain": variant(False, False), "head in chunks": variant(False, True)}
compiled = {
    "plain": {"compiled": variant(True, False)},
    "head in chunks": {"compiled, head in chunks": variant(True, True)},
}
name, run = fastest(variants, compiled.get)
serve(f"{torch.__version__.split('+')[0]} {a.dtype}, {name}", tokens.numel(), run)
