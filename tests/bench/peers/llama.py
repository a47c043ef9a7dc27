"""The Llama architecture in plain PyTorch, with its fused operations, read from a Hugging Face folder. It is the peer
of teacher-infer and distill: what a careful user would write for speed, with nothing of transformers' generality."""

import json
import os

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        h, d = c["hidden_size"], c["head_dim"]
        self.heads, self.kv_heads, self.d, self.eps = c["num_attention_heads"], c["num_key_value_heads"], d, c["rms_norm_eps"]
        linear = lambda i, o, bias=False: nn.Linear(i, o, bias=bias)
        bias = c.get("attention_bias", False) or c["model_type"] == "qwen2"
        self.input_layernorm = nn.Parameter(torch.empty(h))
        self.post_attention_layernorm = nn.Parameter(torch.empty(h))
        self.q_proj, self.o_proj = linear(h, self.heads * d, bias), linear(self.heads * d, h)
        self.k_proj, self.v_proj = linear(h, self.kv_heads * d, bias), linear(h, self.kv_heads * d, bias)
        self.gate_proj, self.up_proj = linear(h, c["intermediate_size"]), linear(h, c["intermediate_size"])
        self.down_proj = linear(c["intermediate_size"], h)

    def forward(self, x, cos, sin):
        batch, n, h = x.shape
        y = F.rms_norm(x, (h,), self.input_layernorm, self.eps)
        q = self.q_proj(y).view(batch, n, self.heads, self.d).transpose(1, 2)
        k = self.k_proj(y).view(batch, n, self.kv_heads, self.d).transpose(1, 2)
        v = self.v_proj(y).view(batch, n, self.kv_heads, self.d).transpose(1, 2)
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True, enable_gqa=True)
        x = x + self.o_proj(y.transpose(1, 2).reshape(batch, n, -1))
        y = F.rms_norm(x, (h,), self.post_attention_layernorm, self.eps)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))


class Llama(nn.Module):
    def __init__(self, folder):
        super().__init__()
        with open(os.path.join(folder, "config.json")) as f:
            c = json.load(f)
        c.setdefault("head_dim", c["hidden_size"] // c["num_attention_heads"])
        self.config = c
        self.embed = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = nn.Parameter(torch.empty(c["hidden_size"]))
        self.head = nn.Linear(c["hidden_size"], c["vocab_size"], bias=False)
        self.read(load_file(os.path.join(folder, "model.safetensors")))
        if c.get("tie_word_embeddings"):
            self.head.weight = self.embed.weight

    def read(self, tensors):
        state = {}
        for name, t in tensors.items():
            name = name.removeprefix("model.").replace("embed_tokens", "embed").replace("lm_head", "head")
            for inner in ("self_attn.", "mlp."):
                name = name.replace(inner, "")
            state[name.removesuffix(".weight") if "norm" in name else name] = t
        if self.config.get("tie_word_embeddings"):
            state["head.weight"] = state["embed.weight"]
        self.load_state_dict(state)

    def angles(self, n, dtype):
        d, rope = self.config["head_dim"], self.config.get("rope_parameters") or self.config
        inverse = rope.get("rope_theta", 10000.0) ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
        angle = torch.outer(torch.arange(n, dtype=torch.float64), inverse)
        return angle.cos().to(dtype), angle.sin().to(dtype)

    def hidden(self, tokens, angles):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, *angles)
        return F.rms_norm(x, (x.shape[-1],), self.norm, self.config["rms_norm_eps"])


class Packed(nn.Module):
    """A linear layer whose weight oneDNN has laid out once, as torch.compile's freezing does; inference only."""

    def __init__(self, linear, rows):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x):
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def pack(module, rows):
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Packed(child, rows))
        else:
            pack(child, rows)
    return module
