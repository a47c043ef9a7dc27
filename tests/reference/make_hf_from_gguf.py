"""Makes Hugging Face folders of a llama-architecture GGUF: dequantized by the gguf package, q/k rows un-permuted.

OUT/          config.json, model.safetensors in f32, tokenizer.json, tokenizer_config.json, generation_config.json
OUT-bf16-sharded/  the same in bf16, as three shards and model.safetensors.index.json
Then lets the model speak 20 tokens, so that a wrong permutation is seen.

Versions: torch 2.15.0, transformers 5.23.0, gguf 0.19.0, safetensors 0.8.0, Python 3.11.
Run: /work/ref/venv/bin/python make_hf_from_gguf.py /work/ref/models/smollm2.gguf /work/ref/models/smollm2-hf
"""
import json, os, sys
import numpy as np, torch, gguf
from safetensors.torch import save_file
from hf_tokenizer import from_gguf

NAMES = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
         "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
         "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


def hf_name(n):
    top = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
           "output.weight": "lm_head.weight"}
    if n in top:
        return top[n]
    _, layer, part, kind = n.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.{kind}"


def unpermute(w, heads):
    """GGUF llama rows (interleaved rotary pairs) -> Hugging Face rows (half split)."""
    rows = w.shape[0]
    return w.reshape(heads, rows // heads // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)


def load(path):
    r = gguf.GGUFReader(path)
    f = {k: v.contents() for k, v in r.fields.items() if not k.startswith("GGUF.")}
    assert f["general.architecture"] == "llama"
    h, kv = f["llama.attention.head_count"], f["llama.attention.head_count_kv"]
    w = {}
    for t in r.tensors:
        a = gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32)
        if ".attn_q." in t.name:
            a = unpermute(a, h)
        if ".attn_k." in t.name:
            a = unpermute(a, kv)
        w[hf_name(t.name)] = torch.from_numpy(np.array(a, copy=True, order="C"))
    cfg = {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": f["tokenizer.ggml.bos_token_id"], "eos_token_id": f["tokenizer.ggml.eos_token_id"],
        "hidden_act": "silu", "hidden_size": f["llama.embedding_length"], "initializer_range": 0.041666666666666664,
        "intermediate_size": f["llama.feed_forward_length"], "max_position_embeddings": f["llama.context_length"],
        "mlp_bias": False, "model_type": "llama", "num_attention_heads": h,
        "num_hidden_layers": f["llama.block_count"], "num_key_value_heads": kv, "pad_token_id": 2, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None,
        "rope_theta": int(f["llama.rope.freq_base"]), "tie_word_embeddings": "lm_head.weight" not in w,
        "torch_dtype": "float32", "use_cache": True, "vocab_size": len(f["tokenizer.ggml.tokens"])}
    return w, cfg, f


def dump(obj, path):
    with open(path, "w", encoding="utf-8") as o:
        json.dump(obj, o, indent=2, ensure_ascii=False)
        o.write("\n")


def write_small(out, cfg, f, tok, dtype):
    os.makedirs(out, exist_ok=True)
    t = f["tokenizer.ggml.tokens"]
    dump({**cfg, "torch_dtype": dtype}, out + "/config.json")
    dump(tok, out + "/tokenizer.json")
    dump({"add_prefix_space": False,
          "added_tokens_decoder": {str(a["id"]): {k: a[k] for k in
                                   ("content", "lstrip", "normalized", "rstrip", "single_word", "special")} for a in tok["added_tokens"]},
          "bos_token": t[cfg["bos_token_id"]], "chat_template": f["tokenizer.chat_template"],
          "clean_up_tokenization_spaces": False, "eos_token": t[cfg["eos_token_id"]], "model_max_length": 8192,
          "pad_token": t[2], "tokenizer_class": "GPT2Tokenizer", "unk_token": t[0], "vocab_size": len(t)},
         out + "/tokenizer_config.json")
    dump({"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}, out + "/generation_config.json")


def main():
    src, out = sys.argv[1:3]
    w, cfg, f = load(src)
    tok = from_gguf(src, "smollm")
    write_small(out, cfg, f, tok, "float32")
    save_file(w, out + "/model.safetensors", {"format": "pt"})

    sharded = out + "-bf16-sharded"
    write_small(sharded, cfg, f, tok, "bfloat16")
    bf = {k: v.to(torch.bfloat16) for k, v in w.items()}
    total = sum(v.numel() * 2 for v in bf.values())
    shards, size = [{}], 0
    for k, v in bf.items():
        if size > total / 3 and len(shards) < 3:
            shards.append({})
            size = 0
        shards[-1][k] = v
        size += v.numel() * 2
    index = {"metadata": {"total_size": total}, "weight_map": {}}
    for i, s in enumerate(shards):
        name = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file(s, f"{sharded}/{name}", {"format": "pt"})
        index["weight_map"].update({k: name for k in s})
    dump(index, sharded + "/model.safetensors.index.json")

    from transformers import AutoModelForCausalLM
    from tokenizers import Tokenizer
    tk = Tokenizer.from_file(out + "/tokenizer.json")
    for d in (out, sharded):
        m = AutoModelForCausalLM.from_pretrained(d).eval()
        ids = tk.encode("The capital of France is", add_special_tokens=False).ids
        with torch.no_grad():
            g = m.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)
        print(d, m.dtype, m.config.rope_parameters if hasattr(m.config, "rope_parameters") else "", repr(tk.decode(g[0].tolist())))


if __name__ == "__main__":
    main()
