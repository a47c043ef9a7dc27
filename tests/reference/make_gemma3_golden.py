"""Makes tests/golden/gemma3/expected.safetensors: Gemma 3 270M (dequantized Q4_K_M GGUF) by transformers in f32.

    ids [n]                            tokens
    top_ids, top_logits [n][8]         the best of each row of logits
    logsumexp [n], ppl [1] (f64)       of each row; perplexity of the tokens after the first

The configuration is made from the file's keys and the weights from its tensors by the gguf package, so nothing here is Rill's.
The tokens are BOS and the beginning of TEXT (this repository's README.md, as it was), cut at the longest token each time, which is not
quite what the tokenizer does; or, with an expected.safetensors for TEXT, those of that file.
Versions: torch 2.15, transformers 5.24, gguf 0.19.
Run: python make_gemma3_golden.py models/gemma3-270m.gguf ../golden/gemma3 TEXT
"""
import os, sys
import numpy as np, torch
from gguf import GGUFReader, dequantize
from safetensors.torch import load_file, save_file
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

N, TOP = 768, 8
ROLES = {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
         "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
         "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
         "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
OUTSIDE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def name_of(name):
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, layer, role, _ = name.split(".")
    return f"model.layers.{layer}.{ROLES[role]}.weight"


def load(path):
    reader = GGUFReader(path)
    key = lambda k: reader.fields["gemma3." + k].contents()
    model = Gemma3ForCausalLM(Gemma3TextConfig(
        vocab_size=int(next(t for t in reader.tensors if t.name == "token_embd.weight").shape[1]),
        hidden_size=key("embedding_length"), intermediate_size=key("feed_forward_length"),
        num_hidden_layers=key("block_count"), num_attention_heads=key("attention.head_count"),
        num_key_value_heads=key("attention.head_count_kv"), head_dim=key("attention.key_length"),
        query_pre_attn_scalar=key("attention.key_length"), sliding_window=key("attention.sliding_window"),
        max_position_embeddings=key("context_length"),
        rms_norm_eps=float(np.format_float_positional(np.float32(key("attention.layer_norm_rms_epsilon")))),
        rope_parameters=dict(full_attention=dict(rope_type="default", rope_theta=key("rope.freq_base")),
                             sliding_attention=dict(rope_type="default", rope_theta=10000.0)),
        attn_implementation="eager"))
    state = {}
    for t in reader.tensors:
        w = torch.from_numpy(dequantize(t.data, t.tensor_type).astype(np.float32))
        state[name_of(t.name)] = w - 1 if "norm" in t.name else w
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected, (missing, unexpected)
    model.tie_weights()
    return model.float().eval(), reader


def tokens_of(text, reader, bos):
    numbers = {t: i for i, t in enumerate(reader.fields["tokenizer.ggml.tokens"].contents())}
    text, ids, at = text.replace(" ", "\u2581"), [bos], 0
    while len(ids) < N:
        n = next(n for n in range(32, 0, -1) if text[at:at + n] in numbers)
        ids.append(numbers[text[at:at + n]])
        at += n
    return torch.tensor(ids)


def main(path, out, text):
    m, reader = load(path)
    os.makedirs(out, exist_ok=True)
    if text.endswith(".safetensors"):
        ids = load_file(text)["ids"].long()
    else:
        ids = tokens_of(open(text, encoding="utf-8").read(), reader, int(reader.fields["tokenizer.ggml.bos_token_id"].contents()))
    with torch.no_grad():
        lg = m(ids[None]).logits[0].float()
    top = torch.topk(lg, TOP, dim=-1)
    lse = torch.cat([torch.logsumexp(row.double(), -1) for row in lg.split(64)])
    nll = (lse[:-1] - lg[:-1].gather(1, ids[1:, None])[:, 0].double()).mean()
    save_file({"ids": ids.int(), "top_ids": top.indices.int().contiguous(), "top_logits": top.values.contiguous(),
               "logsumexp": lse.float(), "ppl": nll.exp()[None]}, os.path.join(out, "expected.safetensors"))
    print(len(ids), "tokens, perplexity", nll.exp().item())


main(*sys.argv[1:])
