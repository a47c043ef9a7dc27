"""Makes tests/golden/tiny-llama, tiny-qwen2, tiny-smollm: random models of transformers with their logits, and GGUF
files of the first two by llama.cpp's own convert_hf_to_gguf.py. What each contains: tests/golden/tiny.md.

Versions: torch 2.15.0, transformers 5.23.0, tokenizers 0.23.3, gguf 0.19.0; convert_hf_to_gguf.py of the
llama-cpp-python 0.3.36 source package (found through LLAMA_CPP, default /work/ref/llama.cpp).
Run: /work/ref/venv/bin/python make_tiny.py ../golden
"""
import json, os, re, runpy, shutil, sys
import numpy as np, torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, trainers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from hf_tokenizer import tokenizer_json

GOLDEN = sys.argv[1]
TEXT = """A stream is a promise: what was written first is read first. The filter reads a record, thinks about it and
writes another; it keeps nothing that it does not need. Don't worry, it's only 12345 bytes, they'll be gone by 2031.
for (int i = 0; i < n; i++) { sum += x[i] * w[i]; }    /* a loop */
def mean(xs):\n\treturn sum(xs) / len(xs)\n\n
Der Bäcker grüßt die Köchin; l'été était là. 数字は12個です。 Привет, мир! नमस्ते दुनिया 🙂
The teacher says more than the answer: the teacher says how sure the teacher is. WE'RE HERE, IT'S FINE.
""" * 4


def train(pre, n_merges, specials, first):
    """Byte-level BPE with n_merges merges; specials come first (SmolLM2) or last (Llama 3, Qwen2)."""
    tk = Tokenizer(models.BPE())
    tk.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tk.train_from_iterator([TEXT], trainers.BpeTrainer(
        vocab_size=256 + n_merges, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
    m = json.loads(tk.to_str())["model"]
    off = len(specials) if first else 0
    vocab = {t: i + off for t, i in m["vocab"].items()}
    added = [((0 if first else len(vocab)) + i, t, True) for i, t in enumerate(specials)]
    if first:
        vocab.update({t: i for i, t, _ in added})
    return tokenizer_json(pre, vocab, [tuple(x) for x in m["merges"]], added,
                          bos=specials[0] if pre == "llama-bpe" else None)


def randomize(model, seed, dtype):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            r = torch.randn(p.shape, generator=g)
            if "norm" in name:
                r = 1 + 0.2 * r
            elif name.endswith("bias"):
                r = 0.3 * r
            elif "embed" in name:
                r = 0.5 * r
            else:
                r = r * (1.3 / p.shape[1] ** 0.5)
            p.copy_(r.to(dtype).float())
    return model.float().eval()


def dump(obj, path):
    with open(path, "w", encoding="utf-8") as o:
        json.dump(obj, o, indent=1, ensure_ascii=False)
        o.write("\n")


def legacy_config(c, dtype):
    """config.json as transformers 4 wrote it: rope_theta, rope_scaling, torch_dtype."""
    rp = dict(c.pop("rope_parameters"))
    c["rope_theta"] = rp.pop("rope_theta")
    c["rope_scaling"] = None if rp["rope_type"] == "default" else rp
    c.pop("dtype", None)
    c["torch_dtype"] = dtype
    c["transformers_version"] = "4.44.0"
    return c


def make(name, model, seed, dtype, tok, specials, legacy, text):
    out = os.path.join(GOLDEN, name)
    shutil.rmtree(out, ignore_errors=True)
    os.makedirs(out)
    model = randomize(model, seed, dtype)
    tied = model.config.tie_word_embeddings
    w = {k: v.to(dtype).contiguous() for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
    save_file(w, out + "/model.safetensors", {"format": "pt"})
    dname = {torch.float32: "float32", torch.bfloat16: "bfloat16"}[dtype]
    c = json.loads(model.config.to_json_string(use_diff=False))
    keep = ("architectures attention_bias attention_dropout bos_token_id eos_token_id head_dim hidden_act hidden_size "
            "initializer_range intermediate_size max_position_embeddings mlp_bias model_type num_attention_heads "
            "num_hidden_layers num_key_value_heads pad_token_id rms_norm_eps rope_parameters tie_word_embeddings "
            "use_cache use_sliding_window vocab_size dtype transformers_version").split()
    c = {k: c[k] for k in keep if k in c}
    c["architectures"] = [type(model).__name__]
    c["dtype"] = dname
    dump(legacy_config(c, dname) if legacy else c, out + "/config.json")
    dump(tok, out + "/tokenizer.json")
    dump({"add_bos_token": name == "tiny-llama", "bos_token": specials[0], "eos_token": specials[1],
          "clean_up_tokenization_spaces": False, "model_max_length": 512, "tokenizer_class": "PreTrainedTokenizerFast"},
         out + "/tokenizer_config.json")
    ids = Tokenizer.from_str(json.dumps(tok)).encode(text, add_special_tokens=name == "tiny-llama").ids
    assert len(ids) >= 64, len(ids)
    ids = ids[:64]
    with open(out + "/text.txt", "w", encoding="utf-8", newline="") as o:
        o.write(text)
    np.array(ids, "<u4").tofile(out + "/tokens.u32")
    # read the folder back the way a user would, so that config.json itself is under test
    back = type(model).from_pretrained(out, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        lg = back(torch.tensor([ids])).logits[0]
        assert torch.equal(lg, type(model).from_pretrained(out, dtype=torch.float32, attn_implementation="eager").eval()(torch.tensor([ids])).logits[0])
        ref = model(torch.tensor([ids])).logits[0]
    assert (lg - ref).abs().max() < 1e-4, "config.json does not describe the model"
    lg.numpy().astype("<f4").tofile(out + "/logits.f32")
    # greedy continuation of the first 16 tokens, 32 new ones, no stop token
    seq = ids[:16]
    with torch.no_grad():
        for _ in range(32):
            seq.append(int(back(torch.tensor([seq])).logits[0, -1].argmax()))
    np.array(seq, "<u4").tofile(out + "/greedy.u32")
    print(name, sum(v.numel() for v in w.values()), "weights, logits std", float(lg.std()),
          "distinct greedy", len(set(seq[16:])), back.config.rope_parameters)
    return out, w


def shard(out, w):
    """The same weights as two shards in OUT/sharded/."""
    d = out + "/sharded"
    os.makedirs(d)
    half = len(w) // 2
    parts = [dict(list(w.items())[:half]), dict(list(w.items())[half:])]
    index = {"metadata": {"total_size": sum(v.numel() * v.element_size() for v in w.values())}, "weight_map": {}}
    for i, p in enumerate(parts):
        f = f"model-{i + 1:05d}-of-00002.safetensors"
        save_file(p, d + "/" + f, {"format": "pt"})
        index["weight_map"].update({k: f for k in p})
    dump(index, d + "/model.safetensors.index.json")
    for f in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(out + "/" + f, d)


def to_gguf(out, pre):
    """llama.cpp's converter; only its guess of the pre-tokenizer, a hash of a known tokenizer, is answered for it."""
    llama = os.environ.get("LLAMA_CPP", "/work/ref/llama.cpp")
    sys.path.insert(0, llama)
    sys.path.insert(0, llama + "/gguf-py")
    import convert_hf_to_gguf as conv
    from conversion.base import TextModel
    TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
    sys.argv = ["convert_hf_to_gguf.py", out, "--outfile", out + "/model-f32.gguf", "--outtype", "f32"]
    conv.main()


torch.manual_seed(0)
ENGLISH = ("It's a filter's job to read 1024 records, think, and write 7 of them; we'll see whether they DON'T get lost. "
           "for (i = 0; i < n; i++)\n\tsum += x[i];   // naïve, größer, été\n\n数字 12個 🙂 done.")

sp = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
tok = train("llama-bpe", 93, sp, first=False)
n = 256 + 93 + 3
out, w = make("tiny-llama", LlamaForCausalLM(LlamaConfig(
    vocab_size=n, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=False,
    bos_token_id=n - 3, eos_token_id=n - 2,
    rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                     "high_freq_factor": 4.0, "original_max_position_embeddings": 64})),
    1, torch.bfloat16, tok, sp, True, ENGLISH)
shard(out, w)
to_gguf(out, "llama-bpe")

sp = ["<|endoftext|>", "<|im_end|>", "<|im_start|>"]
tok = train("qwen2", 85, sp, first=False)
out, w = make("tiny-qwen2", Qwen2ForCausalLM(Qwen2Config(
    vocab_size=352, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-6, tie_word_embeddings=True,
    bos_token_id=341, eos_token_id=342, rope_parameters={"rope_type": "default", "rope_theta": 1000000.0})),
    2, torch.bfloat16, tok, sp, False, ENGLISH)
to_gguf(out, "qwen2")

sp = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
tok = train("smollm", 61, sp, first=True)
make("tiny-smollm", LlamaForCausalLM(LlamaConfig(
    vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=1, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=True,
    bos_token_id=1, eos_token_id=2, rope_parameters={"rope_type": "default", "rope_theta": 100000.0})),
    3, torch.float32, tok, sp, True, ENGLISH)
