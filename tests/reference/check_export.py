"""Do independent readers agree with what `rill export` writes?

  gguf (the package)     every tensor of an exported GGUF, dequantized and un-permuted, against the source's safetensors
  transformers           loads the exported folder; logits against the golden ones
  tokenizers             encodes the golden texts with the exported tokenizer.json: the same ids
  llama.cpp              loads exported GGUFs (llama, qwen2, deci) and agrees with itself on the original's perplexity

Versions: torch 2.15.0, transformers 5.23.0, tokenizers 0.23.3, gguf 0.19.0, llama.cpp of llama-cpp-python 0.3.36.
Run: make && /work/ref/venv/bin/python tests/reference/check_export.py [build/bin]   (exit 1: something disagrees)
"""
import json, os, re, shutil, struct, subprocess, sys, tempfile
import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else ROOT + "/build/bin")
REF = os.environ.get("RILL_REF", "/work/ref")
GOLDEN = ROOT + "/tests/golden"
TMP = tempfile.mkdtemp(prefix="rill-check-export.")
failed = 0


def check(what, ok, detail=""):
    global failed
    failed += not ok
    print("ok  " if ok else "FAIL", what, detail, flush=True)


def rill(*args, out=None):
    subprocess.run([BIN + "/rill-" + args[0], *args[1:]], check=True, stdout=open(out, "wb") if out else None)


def exported(source, name):
    """source -> NAME.rill -> NAME.gguf, NAME-hf/"""
    p = f"{TMP}/{name}"
    rill("import", "--no-provenance", source, "-o", p + ".rill")
    rill("export", "--to", "gguf", p + ".rill", "-o", p + ".gguf")
    rill("export", "--to", "safetensors", p + ".rill", "-o", p + "-hf")
    return p + ".rill", p + ".gguf", p + "-hf"


def gguf_tensors(path):
    import gguf
    r = gguf.GGUFReader(path)
    return ({k: v.contents() for k, v in r.fields.items()},
            {t.name: (t.tensor_type.name, t.data.tobytes(), gguf.quants.dequantize(t.data, t.tensor_type)) for t in r.tensors})


def hf_tensors(folder):
    from safetensors import safe_open
    out = {}
    for f in sorted(os.listdir(folder)):
        if f.endswith(".safetensors"):
            with safe_open(folder + "/" + f, "pt") as s:
                out.update({k: s.get_tensor(k).float().numpy() for k in s.keys()})
    return out


def compare_gguf(name, path, folder):
    from make_hf_from_gguf import hf_name, unpermute
    fields, tensors = gguf_tensors(path)
    arch = fields["general.architecture"]
    want, n = hf_tensors(folder), 0
    for t, (_, _, a) in tensors.items():
        if t == "rope_freqs.weight":
            continue
        if arch == "llama" and re.search(r"attn_[qk]\.", t):
            a = unpermute(a, fields[arch + ".attention.head_count" + ("_kv" if "attn_k" in t else "")])
        n += np.array_equal(a.astype(np.float32), want[hf_name(t)])
    check(f"{name}: GGUF tensors equal the source's", n == len(want), f"{n} of {len(want)}")


def logits_of(folder, ids):
    import torch
    from transformers import AutoModelForCausalLM
    m = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return m(torch.tensor([ids])).logits[0].numpy(), m


def tiny(name):
    source = f"{GOLDEN}/{name}"
    _, gguf_path, folder = exported(source, name)
    compare_gguf(name, gguf_path, source)
    ids = np.fromfile(source + "/tokens.u32", "<u4").tolist()
    got, _ = logits_of(folder, ids)
    want = np.fromfile(source + "/logits.f32", "<f4").reshape(got.shape)
    check(f"{name}: transformers' logits from the exported folder", np.array_equal(got, want), f"max difference {abs(got - want).max()}")
    from transformers import AutoTokenizer
    text = open(source + "/text.txt", encoding="utf-8", newline="").read()
    a, b = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(folder)
    check(f"{name}: AutoTokenizer", a(text)["input_ids"] == b(text)["input_ids"] and a.bos_token == b.bos_token and a.eos_token == b.eos_token)
    check(f"{name}: golden ids", b(text)["input_ids"][:64] == ids)


def smollm2():
    source = REF + "/models/smollm2.gguf"
    rill_path, path, folder = exported(source, "smollm2")
    a, ta = gguf_tensors(source)
    b, tb = gguf_tensors(path)
    check("smollm2: GGUF has the original's bytes in every tensor", {k: v[:2] for k, v in ta.items()} == {k: v[:2] for k, v in tb.items()}, f"{len(tb)} tensors")
    other = sorted(k for k in a if not k.startswith("GGUF.") and a[k] != b.get(k))
    print("     keys left out or different:", other)
    print("     keys added:", sorted(k for k in b if k not in a))
    want = hf_tensors(REF + "/models/smollm2-hf")
    got = hf_tensors(folder)
    check("smollm2: folder equals the reference folder (gguf package's dequantization)", got.keys() == want.keys() and all(np.array_equal(got[k], want[k]) for k in want))
    ids = [(i * 7919) % 49152 for i in range(32)]
    x, y = logits_of(folder, ids)[0], logits_of(REF + "/models/smollm2-hf", ids)[0]
    check("smollm2: transformers' logits, our folder and the reference folder", np.array_equal(x, y), f"max difference {abs(x - y).max()}")
    check("smollm2: chat template", b["tokenizer.chat_template"] == json.load(open(folder + "/tokenizer_config.json"))["chat_template"])


def zstd(path):
    return subprocess.run(["zstd", "-dc", path], check=True, capture_output=True).stdout


def tokenizers_goldens():
    """A tokenizer of the goldens, put on a model of one layer, imported and exported."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM
    raw, lines = zstd(GOLDEN + "/tokenizers/lines.bin.zst"), []
    while raw:
        n, = struct.unpack_from("<I", raw)
        lines.append(raw[4:4 + n].decode())
        raw = raw[4 + n:]
    for name in "smollm2", "llama-bpe", "qwen2", "gpt2":
        d = f"{TMP}/tok-{name}"
        os.makedirs(d)
        text = zstd(f"{GOLDEN}/tokenizers/{name}.json.zst").decode()
        open(d + "/tokenizer.json", "w").write(text)
        n = Tokenizer.from_str(text).get_vocab_size()
        n = max(n, 1 + max(Tokenizer.from_str(text).get_vocab().values()))
        m = LlamaForCausalLM(LlamaConfig(vocab_size=n, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                         num_attention_heads=2, tie_word_embeddings=True))
        m.save_pretrained(d)
        _, path, folder = exported(d, "tok-" + name)
        ours = Tokenizer.from_file(folder + "/tokenizer.json")
        ids = np.frombuffer(zstd(f"{GOLDEN}/tokenizers/{name}.ids.zst"), "<u4").tolist()
        same, at = 0, 0
        for e in ours.encode_batch(lines, add_special_tokens=False):
            k = ids[at]
            same += e.ids == ids[at + 1:at + 1 + k]
            at += 1 + k
        check(f"tokenizer {name}: exported tokenizer.json encodes as the golden", same == len(lines), f"{same} of {len(lines)}")
        rill("import", "--no-provenance", path, "-o", f"{TMP}/again-{name}.rill")
        rill("export", "--to", "safetensors", f"{TMP}/again-{name}.rill", "-o", f"{TMP}/again-{name}")
        check(f"tokenizer {name}: the same through GGUF", open(f"{TMP}/again-{name}/tokenizer.json").read() == open(folder + "/tokenizer.json").read())


def perplexity(path, text, ctx):
    exe = REF + "/build-llama/bin/llama-perplexity"
    # keys and values in f32: in f16 the tiny models' perplexity moves by percents with the order of a sum
    p = subprocess.run([exe, "-m", path, "-f", text, "-c", str(ctx), "-b", str(ctx), "-t", "1", "-ctk", "f32", "-ctv", "f32",
                        "-fa", "off"], capture_output=True, text=True)
    m = re.findall(r"\[\d+\]([0-9.]+),", p.stdout + p.stderr)  # the running estimate; the final one may be missing
    return float(m[-1]) if m else (p.stdout + p.stderr)[-2000:]


def close(a, b):
    return isinstance(a, float) and isinstance(b, float) and abs(a - b) <= 1e-5 * a


def llama_cpp():
    text = TMP + "/text.txt"
    with open(text, "w") as o:
        o.write(open(GOLDEN + "/tiny-llama/text.txt").read() * 12)
    for name in "tiny-llama", "tiny-qwen2":
        rill("import", "--dtype", "f32", f"{GOLDEN}/{name}", "-o", f"{TMP}/{name}-f32.rill")  # as its GGUF is
        rill("export", "--to", "gguf", f"{TMP}/{name}-f32.rill", "-o", f"{TMP}/{name}-f32.gguf")
        a, b = perplexity(f"{GOLDEN}/{name}/model-f32.gguf", text, 128), perplexity(f"{TMP}/{name}-f32.gguf", text, 128)
        check(f"{name}: llama.cpp's perplexity, its converter's file and ours", close(a, b), f"{a} {b}")
    p = perplexity(f"{TMP}/tiny-smollm.gguf", text, 128)
    check("tiny-smollm: llama.cpp loads it", isinstance(p, float), str(p))
    big = TMP + "/text2.txt"
    with open(big, "w") as o:
        o.write(open(ROOT + "/tests/reference/make_tiny.py").read() [:6000])
    a, b = perplexity(REF + "/models/smollm2.gguf", big, 256), perplexity(TMP + "/smollm2.gguf", big, 256)
    check("smollm2: llama.cpp's perplexity, original and ours", a == b and close(a, b), f"{a} {b}")


def deci():
    """Layers that differ: take away channels and heads that a zero in down_proj and o_proj has silenced."""
    import torch
    from safetensors.torch import load_file, save_file
    for name in "tiny-llama", "tiny-qwen2":
        d, w = f"{TMP}/{name}-silenced", load_file(f"{GOLDEN}/{name}/model.safetensors")
        shutil.copytree(f"{GOLDEN}/{name}", d, ignore=shutil.ignore_patterns("sharded", "*.gguf"))
        w["model.layers.1.mlp.down_proj.weight"][:, 64:] = 0   # channels 64.. of layer 1
        w["model.layers.1.self_attn.o_proj.weight"][:, 32:] = 0  # heads 2, 3: the second key/value head
        save_file(w, d + "/model.safetensors", {"format": "pt"})
        rill("import", "--no-provenance", "--dtype", "f32", d, "-o", f"{d}.rill")
        rill("export", "--to", "gguf", f"{d}.rill", "-o", f"{d}.gguf")
        narrow = narrow_gguf(f"{d}.gguf", f"{d}-narrow.gguf", name)
        rill("import", "--no-provenance", narrow, "-o", f"{d}-narrow.rill")
        rill("export", "--to", "gguf", f"{d}-narrow.rill", "-o", f"{d}-ours.gguf")
        text = TMP + "/text.txt"
        a, b = perplexity(f"{d}.gguf", text, 128), perplexity(f"{d}-ours.gguf", text, 128)
        check(f"{name}: layers of different shape as deci in llama.cpp, against the same with zeros", close(a, b), f"{a} {b}")
        p = subprocess.run([BIN + "/rill-export", "--to", "safetensors", f"{d}-narrow.rill", "-o", f"{d}-no"], capture_output=True, text=True)
        check(f"{name}: --to safetensors refuses it", p.returncode == 3 and "layer 1" in p.stderr, p.stderr.strip())


def narrow_gguf(source, out, name):
    """The silenced parts of layer 1 cut out, written by the gguf package as deci (rows interleaved)."""
    import gguf
    r = gguf.GGUFReader(source)
    f = {k: v.contents() for k, v in r.fields.items()}
    arch = f["general.architecture"]
    n = f[arch + ".block_count"]
    w = gguf.GGUFWriter(out, "deci")
    if arch == "qwen2":
        w.add_string("rill.architecture", "qwen2")
    per_layer = {"feed_forward_length": 64, "attention.head_count": 2, "attention.head_count_kv": 1}
    for k, v in r.fields.items():
        if k.startswith("GGUF.") or k == "general.architecture":
            continue
        value, sub = v.contents(), v.types[-1] if v.types[0] == gguf.GGUFValueType.ARRAY else None
        if k.startswith(arch + "."):
            short = k[len(arch) + 1:]
            k = "deci." + short
            if short in per_layer:
                w.add_array(k, [per_layer[short] if i == 1 else value for i in range(n)])
                continue
        w.add_key_value(k, value, v.types[0], sub)
    head = f[arch + ".attention.key_length"]
    cut = {"blk.1.ffn_down.weight": (slice(None), slice(64)), "blk.1.ffn_up.weight": slice(64), "blk.1.ffn_gate.weight": slice(64),
           "blk.1.attn_output.weight": (slice(None), slice(2 * head))}
    for t in "q", "k", "v":
        for kind in "weight", "bias":
            cut[f"blk.1.attn_{t}.{kind}"] = slice((2 if t == "q" else 1) * head)
    for t in r.tensors:
        a = np.array(t.data)
        if arch == "qwen2" and re.search(r"attn_[qk]\.", t.name):  # half split to interleaved
            heads = f[arch + ".attention.head_count" + ("_kv" if "attn_k" in t.name else "")]
            a = a.reshape(heads, 2, a.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(a.shape)
        w.add_tensor(t.name, np.ascontiguousarray(a[cut[t.name]]) if t.name in cut else a)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return out


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        for name in "tiny-llama", "tiny-qwen2", "tiny-smollm":
            tiny(name)
        smollm2()
        llama_cpp()
        deci()
        tokenizers_goldens()
    finally:
        shutil.rmtree(TMP, ignore_errors=True)
    sys.exit(1 if failed else 0)
