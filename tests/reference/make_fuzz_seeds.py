"""Makes tests/fuzz/corpus/folder, task and options: small inputs that are accepted, for the fuzz targets of those names,
whose headers say how the parts are joined. Python's own library is enough; the tokenizers are those of
corpus/tokenizer_json. Run: python3 tests/reference/make_fuzz_seeds.py
"""
import json, pathlib, struct

corpus = pathlib.Path(__file__).parent.parent / "fuzz" / "corpus"


def write(target, name, data):
    folder = corpus / target
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)


def safetensors(shapes):
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2
        for n in shape:
            size *= n
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + struct.pack("<H", 0x3DCD) * (at // 2)


def shapes(hidden, heads, kv, head_dim, ffn, layers, vocab, tied, bias):
    out = {"model.embed_tokens.weight": [vocab, hidden], "model.norm.weight": [hidden]}
    if not tied:
        out["lm_head.weight"] = [vocab, hidden]
    for i in range(layers):
        at = f"model.layers.{i}."
        out[at + "input_layernorm.weight"] = out[at + "post_attention_layernorm.weight"] = [hidden]
        for part, rows in (("q", heads), ("k", kv), ("v", kv)):
            out[at + f"self_attn.{part}_proj.weight"] = [rows * head_dim, hidden]
            if bias:
                out[at + f"self_attn.{part}_proj.bias"] = [rows * head_dim]
        out[at + "self_attn.o_proj.weight"] = [hidden, heads * head_dim]
        out[at + "mlp.gate_proj.weight"] = out[at + "mlp.up_proj.weight"] = [ffn, hidden]
        out[at + "mlp.down_proj.weight"] = [hidden, ffn]
    return out


def folder(name, config, tokenizer, index=False, generation=None):
    qwen = config["model_type"] == "qwen2"
    text = (corpus / "tokenizer_json" / tokenizer).read_bytes() if tokenizer else b""
    tokenizer_json, _, tokenizer_config = text.partition(b"\0")
    weights = shapes(config["hidden_size"], 2, 1, 2, 4, config["num_hidden_layers"], 5, config["tie_word_embeddings"], qwen)
    parts = [
        json.dumps(config).encode(),
        json.dumps({"metadata": {}, "weight_map": {n: "a.safetensors" for n in weights}}).encode() if index else b"",
        json.dumps(generation).encode() if generation else b"",
        tokenizer_config,
        tokenizer_json,
        safetensors(weights),
    ]
    write("folder", name, b"\0".join(parts))


base = {"hidden_size": 4, "intermediate_size": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 5,
        "max_position_embeddings": 16, "rms_norm_eps": 1e-5, "num_hidden_layers": 1, "hidden_act": "silu"}
llama = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **base, "head_dim": 2, "torch_dtype": "bfloat16",
         "attention_bias": False, "mlp_bias": False, "bos_token_id": 4, "eos_token_id": [4, 3]}
qwen2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **base, "dtype": "bfloat16",
         "use_sliding_window": False, "_name_or_path": "some/model"}
folder("llama", {**llama, "tie_word_embeddings": False, "rope_theta": 500000.0,
                 "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                                  "original_max_position_embeddings": 8, "rope_type": "llama3"}},
       "llama", generation={"bos_token_id": 4, "eos_token_id": [4, 3], "temperature": 0.6, "do_sample": True})
folder("llama-linear", {**llama, "tie_word_embeddings": True, "rope_scaling": {"type": "linear", "factor": 2.0}}, None)
folder("qwen2", {**qwen2, "tie_word_embeddings": True, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, "qwen2")
folder("qwen2-sharded", {**qwen2, "tie_word_embeddings": False, "num_hidden_layers": 2}, "gpt2", index=True)

write("task", "pairs", b'{"sentence_good":"once upon","sentence_bad":"the upon"}\n{"sentence_good":"a","sentence_bad":"b"}\n')
write("task", "choices", b'{"question":"once","choices":["upon","a"],"answer":1}\n\n{"context":"x ","choices":["y","z"],"answer":0}\n')
write("task", "long", json.dumps({"sentence_good": "word " * 20, "sentence_bad": "w\u00f6rd " * 20}).encode() + b"\r\n")
write("task", "labels", b'{"query":"q","choices":["\\ud83d\\ude00","b"],"gold":0}\n{"question":"q","choices":["a","\\n"],"label":1}')

write("options", "all", b"--text\0a=b\0-m\0x.rill\0--type=q8_0\0--flag\0--loss\0ce:w=1\0--any=1e3\0in.rill\0")
write("options", "letters", b"-j4\0-qm\0x\0--encode=sample:5\0-n\x003\0--\0--text\0")
write("options", "needs", b"--table\0--ratio\0-1e-1\0--flag\0--type\0q4_k_m\0")
write("options", "shares", b"--share\x0025%\0--amount=67%\0")
write("options", "wrong", b"--txt\0--count=99999\0--type=q5\0--flag=1\0")
write("options", "help", b"--flag\0-h\0")
