"""Compares Rill with llama.cpp, by running, on real models: SmolLM2-135M and Gemma 3 270M (GGUF files) and all-MiniLM-L6-v2 (a folder).

Each is imported, made f32 and exported to GGUF, so that both compute with the same weights. Of the language models: the first token at
each of 512 positions (libllama by llama_logits.c, against `rill teacher-infer --encode topk:1`), where the two first ones are not within
1e-3 of each other; and perplexity by llama-perplexity's protocol over CHUNKS windows of 512 tokens, within 0.1%. Of MiniLM: hidden states
and sentence vectors against transformers with the tanh form of GELU, which is the one that llama.cpp has, and as it is.

ggml's GELU from a table in half precision (see compare_llama_cpp.py) is in Gemma's and MiniLM's numbers, unless --exact.

Versions: as in compare_llama_cpp.py. Run, with MODELS holding smollm2.gguf, gemma3-270m.gguf and minilm:
    python compare_llama_cpp_models.py --source LLAMA.CPP --build ITS_BUILD_FOLDER --models MODELS --text TEXT [--chunks 16] [--exact]
"""
import argparse, os, re, subprocess, sys, tempfile
import numpy as np
import torch, transformers
from safetensors.torch import load_file

from compare_llama_cpp import build_runner, rill, root, without_table

POSITIONS = 512


def run(*command, **more):
    done = subprocess.run(command, capture_output=True, **more)
    assert done.returncode == 0, (command, done.stderr.decode() if isinstance(done.stderr, bytes) else done.stderr)
    return done.stdout


def exported(path, work):
    stream, f32, gguf = [os.path.join(work, x) for x in ("m.rill", "f32.rill", "f32.gguf")]
    run(rill, "import", "-q", "--force", path, "-o", stream)
    run(rill, "quantize", "-q", "--force", "--type", "f32", stream, "-o", f32)
    run(rill, "export", "-q", "--force", "--to", "gguf", f32, "-o", gguf)
    return f32, gguf


def libllama(runner, gguf, sequences):
    text = "".join(" ".join(map(str, ids)) + "\n" for ids in sequences)
    return np.frombuffer(run(runner, gguf, input=text.encode()), "<f4")


def first_tokens(runner, model, gguf, text, work):
    tokens, top, start = [os.path.join(work, x) for x in ("t.rill", "top.rill", "start.txt")]
    open(start, "wb").write(open(text, "rb").read(8 * POSITIONS))
    run(rill, "tokenize", "-q", "--force", "-m", model, "--context", str(POSITIONS), start, "-o", tokens)
    run(rill, "teacher-infer", "-q", "--force", "--precision", "f32", "--encode", "topk:1", "-m", model, tokens, "-o", top)
    rows = run(rill, "logit-dump", "--tsv", "--positions", f"0:{POSITIONS}", top, text=True).splitlines()[1:]
    rows = [r.split("\t") for r in rows if r.split("\t")[0] == "0"][:POSITIONS]
    ids = [int(r[2]) for r in rows]
    ours = np.array([int(r[-1].split(":")[0]) for r in rows])
    logits = libllama(runner, gguf, [ids]).reshape(len(ids), -1)
    theirs = logits.argmax(-1)
    second = np.partition(logits, -2, -1)[:, -2]
    clear = logits.max(-1) - second > 1e-3
    return len(ids), int((ours != theirs).sum()), int(((ours != theirs) & clear).sum())


def perplexities(model, gguf, text, build, chunks, work):
    tokens = os.path.join(work, "t.rill")
    run(rill, "tokenize", "-q", "--force", "-m", model, text, "-o", tokens)
    table = run(rill, "eval", "-q", "-m", model, "--precision", "f32", "--protocol", "llama", "--max-windows", str(chunks), "--table",
                tokens, text=True)
    ours = float(re.search(r"^perplexity +(\S+)", table, re.M)[1])
    out = subprocess.run(["nice", "-n", "10", os.path.join(build, "bin/llama-perplexity"), "-m", gguf, "-f", text, "-c", "512", "--chunks",
                          str(chunks), "-ctk", "f32", "-ctv", "f32", "-fa", "off"], capture_output=True, text=True)
    theirs = re.search(r"Final estimate: PPL = (\S+)", out.stdout + out.stderr)
    assert theirs, out.stderr[-2000:]
    return ours, float(theirs[1])


def sentence_vectors(runner, folder, gguf):
    golden = load_file(os.path.join(root, "tests/golden/minilm/expected.safetensors"))
    lengths, tokens = golden["lengths"].tolist(), golden["tokens"].tolist()
    sequences = [tokens[sum(lengths[:i]):sum(lengths[:i + 1])] for i in range(len(lengths))]
    hidden = torch.from_numpy(libllama(runner, gguf, sequences).copy()).view(sum(lengths), -1)
    worst = {}
    for act in "gelu_new", "gelu":
        config = transformers.AutoConfig.from_pretrained(folder)
        config.hidden_act = act
        m = transformers.AutoModel.from_pretrained(folder, config=config, attn_implementation="eager").eval()
        with torch.no_grad():
            want = torch.cat([m(torch.tensor([ids])).last_hidden_state[0] for ids in sequences])
        means = [[torch.nn.functional.normalize(part.mean(0), dim=0) for part in x.split(lengths)] for x in (hidden, want)]
        worst[act] = ((hidden - want).abs().max() / want.abs().max()).item(), max(
            (a - b).abs().max().item() for a, b in zip(*means))
    return worst


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    for name in "source", "build", "models", "text":
        p.add_argument("--" + name, required=True)
    p.add_argument("--chunks", type=int, default=16)
    p.add_argument("--exact", action="store_true")
    a = p.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    ok = True
    with tempfile.TemporaryDirectory() as work:
        runner = build_runner(a.source, a.build, without_table(a.source, a.build) if a.exact else a.build, work)
        for name in "smollm2.gguf", "gemma3-270m.gguf":
            model, gguf = exported(os.path.join(a.models, name), work)
            n, other, clearly = first_tokens(runner, model, gguf, a.text, work)
            ours, theirs = perplexities(model, gguf, a.text, a.build, a.chunks, work)
            ok = ok and clearly == 0 and abs(ours / theirs - 1) < 1e-3
            print(f"{name:20} {other} of {n} first tokens differ ({clearly} of them clearly); perplexity {ours:.4f}, llama.cpp "
                  f"{theirs:.4f}: {100 * (ours / theirs - 1):+.4f}%", flush=True)
        folder = os.path.join(a.models, "minilm")
        worst = sentence_vectors(runner, folder, exported(folder, work)[1])
        ok = ok and worst["gelu_new"][0] < 1e-3 and worst["gelu"][1] < 1e-3
        for act, (hidden, sentence) in worst.items():
            print(f"minilm, {act:10} hidden states {hidden:.1e} of the largest, sentence vectors {sentence:.1e}")
    sys.exit(0 if ok else 1)
