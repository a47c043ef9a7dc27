"""Do transformers and llama.cpp load what `rill prune` makes, and compute the same?

For each causal model of tests/golden/arch and each way to prune it: prune, export as a folder and as a GGUF, and compare Rill's logits
in f32 with those that transformers and libllama (llama_logits.c) compute from the files. What prune or export refuses is printed with its
reason; a file that was written and does not load, or gives other numbers, is a failure.

A number is the largest difference as a share of the largest logit. With transformers 1e-5 holds. llama.cpp has one GELU, the tanh form, from a
table in half precision: models with GELU are compared to 1e-2, others to 1e-5. The window of a phi3, and the factors of longrope in short
contexts, are computed otherwise by llama.cpp (compare_llama_cpp.py); these are compared with transformers alone.

Versions: as compare_llama_cpp.py.
Run: python compare_pruned.py --source LLAMA.CPP --build ITS_BUILD_FOLDER [NAME ...]     (exit 1: something disagrees)
"""
import argparse, json, os, shutil, sys, tempfile
import numpy as np
import torch, transformers
from compare_llama_cpp import build_runner, exact_gelu, largest_share, root, run_llama, run_rill

WAYS = {
    "as it is": None,
    "layers": ["--drop-layers", "0"],
    "ffn": ["--ffn", "16"],
    "kv-heads": ["--kv-heads", "1"],
    "heads": ["--heads", "2"],
    "experts": ["--experts", "2", "--stats", "stats.rill"],
    "layers, ffn, heads": ["--drop-layers", "0", "--ffn", "16", "--heads", "2"],
    "target": ["--target-params", "80%", "--stats", "gradients.rill"],
    "per layer": ["--target-params", "80%", "--per-layer", "--stats", "gradients.rill"],
    "hidden": ["--hidden", "16", "--stats", "stats.rill"],
    "hidden, layers, ffn": ["--hidden", "16", "--drop-layers", "0", "--ffn", "16", "--stats", "stats.rill"],
    "hidden, reconstructed": ["--hidden", "16", "--stats", "stats.rill", "--reconstruct", "--data", "tokens.rill", "--damp", "0.1"],
    "vocab": ["--vocab", "padding"],
    "sparse": ["--sparsity", "50%"],
    "2:4, reconstructed": ["--pattern", "2:4", "--method", "sparsegpt", "--reconstruct", "--data", "tokens.rill", "--damp", "0.1"],
    "ffn, reconstructed": ["--ffn", "16", "--reconstruct", "--data", "tokens.rill", "--damp", "0.1"],
}
TEXT = "once upon a time, the end.\nthe hen and the fox ran on and on, and on.\nshe sells sea shells by the sea shore.\n"
GELU = "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast"


def reason(ran):
    return ran.stderr.strip().split(": ", 1)[-1].splitlines()[0]


def table(*command):
    return [line.split("\t") for line in run_rill(*command).stdout.splitlines()]


def our_logits(model):
    ran = run_rill("teacher-infer", "-q", "--force", "--precision", "f32", "--dtype", "f32", "--logits", "-m", model, "tokens.rill", "-o", "ours.rill")
    if ran.returncode:
        return reason(ran)
    return torch.tensor([[float(x) for x in row] for row in table("show", "--tsv", "--tensor", "teacher.logits", "ours.rill")])


def from_transformers(folder, sequences):
    config = transformers.AutoConfig.from_pretrained(folder)
    m = getattr(transformers, config.architectures[0]).from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        return torch.cat([m(ids[None]).logits[0] for ids in sequences])


def has_gelu(folder):
    config = json.load(open(os.path.join(folder, "config.json")))
    return any(config.get(key) in GELU for key in ("hidden_act", "activation", "activation_function", "hidden_activation"))


def otherwise_in_llama_cpp(name):
    return name.startswith("phi3") or "longrope" in name


def against(target, got, want, tolerance):
    got = got[:, :want.shape[1]] # rows of padding follow those of tokens
    if got.shape != want.shape:
        return False, f"{target} FAILS: {tuple(got.shape)}, ours {tuple(want.shape)}"
    share = largest_share(got, want)
    return share <= tolerance, f"{target} {share:.1e}" + ("" if share <= tolerance else " FAILS")


def as_folder(name, stream, ours, sequences):
    shutil.rmtree("hf", ignore_errors=True)
    if name.startswith("minicpm"):
        return True, "transformers has no class of its own"
    ran = run_rill("export", "-q", "--force", "--to", "safetensors", stream, "-o", "hf")
    if ran.returncode:
        return True, "transformers refused: " + reason(ran)
    try:
        return against("transformers", from_transformers("hf", sequences), ours, 1e-5)
    except Exception as e:
        return False, f"transformers FAILS: {type(e).__name__}: {str(e).splitlines()[0]}"


def as_gguf(name, stream, ours, sequences, gelu):
    ran = run_rill("export", "-q", "--force", "--to", "gguf", stream, "-o", "m.gguf")
    if ran.returncode:
        return True, "llama.cpp refused: " + reason(ran)
    if otherwise_in_llama_cpp(name):
        return True, "llama.cpp not compared"
    ran = run_llama(runner, os.path.abspath("m.gguf"), sequences)
    if ran.returncode:
        return False, "llama.cpp FAILS: " + ran.stderr.decode().strip().splitlines()[0]
    got = torch.from_numpy(np.frombuffer(ran.stdout, "<f4").copy())
    return against("llama.cpp", got.view(len(ours), -1), ours, 1e-2 if gelu else 1e-5)


def prepare(folder):
    """The model with a tokenizer of letters, tokens, statistics; why not, if it writes no text."""
    shutil.copy(os.path.join(root, "tests/cli/letters.json"), "tokenizer.json")
    ran = run_rill("import", "-q", "--force", "--tokenizer", "tokenizer.json", folder, "-o", "m.rill")
    assert ran.returncode == 0, ran.stderr
    open("t.txt", "w").write(TEXT)
    ran = run_rill("tokenize", "-q", "--force", "-m", "m.rill", "--lines", "t.txt", "-o", "tokens.rill")
    assert ran.returncode == 0, ran.stderr
    for name, options in ("stats.rill", []), ("gradients.rill", ["--gradients", "--precision", "f32"]):
        ran = run_rill("calibrate", "-q", "--force", *options, "-m", "m.rill", "tokens.rill", "-o", name)
        assert ran.returncode == 0, ran.stderr


def compare(name, folder):
    prepare(folder)
    ids = [int(x) for x in table("show", "--tsv", "--tensor", "tokens", "tokens.rill")[0]]
    lengths = [int(x) for x in table("show", "--tsv", "--tensor", "lengths", "tokens.rill")[0]]
    sequences = torch.tensor(ids).split(lengths)
    gelu, good = has_gelu(folder), True
    for way, options in WAYS.items():
        stream = "m.rill"
        if options:
            stream = "pruned.rill"
            ran = run_rill("prune", "-q", "--force", *options, "m.rill", "-o", stream)
            if ran.returncode:
                print(f"{name:24} {way:20} refused: {reason(ran)}", flush=True)
                continue
        ours = our_logits(stream)
        if isinstance(ours, str):
            print(f"{name:24} {way:20} FAILS: {ours}", flush=True)
            good = False
            continue
        results = as_folder(name, stream, ours, sequences), as_gguf(name, stream, ours, sequences, gelu)
        good &= all(ok for ok, _ in results)
        print(f"{name:24} {way:20} {'; '.join(text for _, text in results)}", flush=True)
    return good


def is_causal(folder):
    config = json.load(open(os.path.join(folder, "config.json")))
    return any("CausalLM" in x or "LMHead" in x and "Masked" not in x for x in config.get("architectures", []))


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--source", required=True)
    p.add_argument("--build", required=True)
    p.add_argument("names", nargs="*")
    a = p.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    models = os.path.join(root, "tests/golden/arch")
    names = a.names or [x for x in sorted(os.listdir(models)) if is_causal(os.path.join(models, x))]
    with tempfile.TemporaryDirectory() as work:
        runner = build_runner(a.source, a.build, a.build, work)
        os.chdir(work)
        sys.exit(0 if all([compare(name, os.path.join(models, name)) for name in names]) else 1)
