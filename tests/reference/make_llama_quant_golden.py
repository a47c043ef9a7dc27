"""Makes the llama-* files of tests/golden/quant/ with llama.cpp's llama-quantize.

A one-layer llama model of 256-element rows goes through llama-quantize --pure for each type, with and without an
importance matrix; the input and the quantized bytes of one tensor are kept. The binary must come from a build whose ggml-base has
no -march (the default of llama.cpp's CMake files): then quantization uses neither FMA nor SIMD of its own and is the
same everywhere. Also mixtures.tsv: the type llama-quantize chooses for each matrix of five models, in runs of layers, with an importance
matrix where that makes a difference.
Versions: llama-cpp-python 0.3.36 source package, gguf 0.19.0, torch 2.15.0, transformers 5.23.0.
Run: /work/ref/venv/bin/python make_llama_quant_golden.py BUILD/bin/llama-quantize ../golden/quant SMOLLM2-F32.gguf
"""
import itertools, re, subprocess, sys, tempfile
import numpy as np, gguf
from gguf import GGMLQuantizationType as T

QUANTIZE, OUT, SMOL = sys.argv[1:4]
H = 256


def write_model(path, tensor, layers, ffn, vocab=288, heads=4, kv=2, arch="llama"):
    """A llama GGUF, or a gpt2 with q, k and v in one tensor; tensor(name, rows, cols) gives the data."""
    w = gguf.GGUFWriter(path, arch)
    w.add_block_count(layers)
    w.add_context_length(128)
    w.add_embedding_length(H)
    w.add_feed_forward_length(ffn)
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    (w.add_layer_norm_rms_eps if arch == "llama" else w.add_layer_norm_eps)(1e-5)
    w.add_rope_dimension_count(H // heads)
    w.add_vocab_size(vocab)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    w.add_token_list([f"t{i}" for i in range(vocab)])
    w.add_token_types([1] * vocab)
    w.add_token_merges(["t 1"])
    shapes = {"token_embd.weight": (vocab, H), "output.weight": (vocab, H), "output_norm.weight": (H,)}
    for i in range(layers):
        b = f"blk.{i}."
        shapes |= {b + "attn_norm.weight": (H,), b + "ffn_norm.weight": (H,), b + "attn_q.weight": (H, H),
                   b + "attn_k.weight": (H * kv // heads, H), b + "attn_v.weight": (H * kv // heads, H),
                   b + "attn_output.weight": (H, H), b + "ffn_gate.weight": (ffn, H), b + "ffn_up.weight": (ffn, H),
                   b + "ffn_down.weight": (H, ffn)}
        if arch != "llama":
            for part in ("attn_q", "attn_k", "attn_v", "ffn_gate"):
                del shapes[f"{b}{part}.weight"]
            shapes[b + "attn_qkv.weight"] = (3 * H, H)
    for n, s in shapes.items():
        w.add_tensor(n, tensor(n, s))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return shapes


def write_imatrix(path, shapes, values):
    w = gguf.GGUFWriter(path, "")
    w.add_string("general.type", "imatrix")
    w.add_array("imatrix.datasets", ["golden"])
    w.add_uint32("imatrix.chunk_count", 1)
    w.add_uint32("imatrix.chunk_size", 1)
    for n, s in shapes.items():
        if len(s) == 2:
            w.add_tensor(n + ".in_sum2", np.ones((1, s[1]), np.float32) if s[1] != H else values.reshape(1, H))
            w.add_tensor(n + ".counts", np.ones((1, 1), np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def run(*args):
    r = subprocess.run([QUANTIZE, *args], capture_output=True, text=True)
    if r.returncode:
        sys.exit(r.stdout[-3000:] + r.stderr[-3000:])
    return r.stdout + r.stderr


rng = np.random.default_rng(11)
ROWS = 32
x = rng.normal(0, 1, (ROWS, H)) * np.exp(rng.normal(-3, 1, (ROWS, 1)))
x[0] = 0
x[1] = 0.25
x[2] = np.abs(x[2])
x[3] = -np.abs(x[3])
x[4] = rng.uniform(-1, 1, H)
x[5, 17] = 40
x[6] = rng.standard_t(3, H) * 0.02
x[7] = rng.laplace(0, 0.05, H)
x[8, 64:] = 0
x[9, :32] = 0.5
x[10] = np.linspace(-1, 1, H)
x[11] *= np.repeat(np.exp(rng.normal(0, 2, 8)), 32)
x = x.astype("<f4")
imp = np.exp(rng.normal(0, 1.5, H)).astype("<f4")
x.tofile(OUT + "/llama-in.f32")
imp.tofile(OUT + "/llama-imatrix.f32")

with tempfile.TemporaryDirectory() as tmp:
    def tensor(n, s):
        return x if n == "blk.0.ffn_gate.weight" else rng.normal(0, 0.05, s).astype(np.float32)

    shapes = write_model(tmp + "/in.gguf", tensor, 1, ROWS)
    write_imatrix(tmp + "/imatrix.gguf", shapes, imp)
    report = ["type\timatrix\trmse\tweighted_rmse"]
    for name, ft in (("q4_0", "Q4_0"), ("q4_1", "Q4_1"), ("q5_0", "Q5_0"), ("q5_1", "Q5_1"), ("q8_0", "Q8_0"), ("q2_k", "Q2_K"),
                     ("q3_k", "Q3_K_S"), ("q4_k", "Q4_K_S"), ("q5_k", "Q5_K_S"), ("q6_k", "Q6_K")):
        for im in (False, True):
            extra = ["--imatrix", tmp + "/imatrix.gguf"] if im else []
            run("--pure", *extra, tmp + "/in.gguf", tmp + "/out.gguf", ft, "1")
            t = [t for t in gguf.GGUFReader(tmp + "/out.gguf").tensors if t.name == "blk.0.ffn_gate.weight"][0]
            assert t.tensor_type == T[name.upper()], t.tensor_type
            raw = np.array(t.data).reshape(ROWS, -1)
            raw.tofile(f"{OUT}/llama-{name}{'-imatrix' if im else ''}.raw")
            e = (gguf.quants.dequantize(raw, t.tensor_type).astype(np.float64) - x) ** 2
            report.append(f"{name}\t{int(im)}\t{np.sqrt(e.mean()):.9g}\t{np.sqrt((e * imp).mean() / imp.mean()):.9g}")
            if not im and name in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0"):
                d = (gguf.quants.quantize(x, t.tensor_type) != raw).sum()
                print(name, "gguf package differs from llama-quantize in", d, "of", raw.size, "bytes")
    open(OUT + "/llama-rmse.tsv", "w").write("\n".join(report) + "\n")
    print("\n".join(report))

    const = lambda n, s: np.full(s, 0.5, np.float32)
    models = [("smollm2", SMOL, None)]
    for name, layers, kw in (("gqa2", 20, {}), ("gqa4", 20, {"kv": 1}), ("deep", 80, {"kv": 2}), ("fused", 20, {"arch": "gpt2"})):
        models.append((name, f"{tmp}/{name}.gguf", write_model(f"{tmp}/{name}.gguf", const, layers, 512, **kw)))
    write_imatrix(tmp + "/any.gguf", shapes, imp)
    rows, n = {}, 0
    types = ("Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q2_K_S Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ4_NL IQ4_XS "
             "IQ3_XXS IQ3_XS IQ3_S IQ3_M IQ2_XXS IQ2_XS IQ2_S IQ2_M TQ1_0 TQ2_0").split()
    for model, path, _ in models:
        for ft in types:
            for extra in ((), ("--imatrix", tmp + "/any.gguf")):
                text = run("--dry-run", *extra, path, ft, "1")
                for m in re.finditer(r"\]\s+(\S+)\.weight\s+-\s+\[[^\]]*\], type =\s+\w+, size =(.*)", text):
                    if "norm" in m[1] or "position" in m[1]:
                        assert "->" not in m[2]
                        continue
                    layer = re.match(r"blk\.(\d+)\.(.*)", m[1])
                    row = rows.setdefault((model, ft.lower() + ("+imatrix" if extra else ""), layer[2] if layer else m[1]), {})
                    row[int(layer[1]) if layer else 0] = re.search(r"\((\w+)\)", m[2])[1].lower()
                    n += 1
    assert n == 2 * len(types) * (211 + 142 + 142 + 562 + 82), n
    with open(OUT + "/mixtures.tsv", "w") as o:                          # N*TYPE: N layers in a row
        for k, v in rows.items():
            assert sorted(v) == list(range(len(v)))
            runs = itertools.groupby(v[i] for i in range(len(v)))
            text = " ".join(f"{len(list(r))}*{t}" for t, r in runs)
            if not k[1].endswith("+imatrix"):
                o.write("\t".join(k) + "\t" + text + "\n")
                rows[k] = text
            elif text != rows[(k[0], k[1][:-8], k[2])]:                   # only where it makes a difference
                o.write("\t".join(k) + "\t" + text + "\n")
