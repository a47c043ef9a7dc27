"""Compares what llama.cpp computes with transformers' numbers, on GGUF files that `rill export` wrote: a second reference, by running.

For each tiny model of tests/golden/arch: import, export --to gguf, libllama in f32 (llama_logits.c) on the same tokens. Prints the
largest difference as a share of the largest number, and the positions whose first token is another. What export refuses is printed
with its reason. --write keeps llama.cpp's numbers in tests/golden/arch/NAME/llama_cpp.safetensors, with which
tests/unit/test_architectures.c compares Rill, to 2e-5.

Two things that llama.cpp computes otherwise are known. It has one GELU, the tanh form, so a model with the exact one (bert,
gpt_neox) is compared with transformers' tanh form; the difference to the model as it is stands in brackets. And ggml-cpu looks GELU
up in a table in half precision (GGML_GELU_FP16 in vec.h): models with GELU agree to 1e-3 only, others to 1e-5. --exact, which
--write needs, builds ggml-cpu without the table first, from a copy of the sources in BUILD/exact-source; then 1e-5 holds for all.

Token types are 0 for llama.cpp, so those of an encoder are here, too.

Versions: llama.cpp as vendored by llama_cpp_python 0.3.36 (ggml 0.25.3, 0c1e570); torch 2.15, transformers 5.24.
Run: python compare_llama_cpp.py --source LLAMA.CPP --build ITS_BUILD_FOLDER [--write] [NAME ...]
"""
import argparse, json, os, subprocess, sys, tempfile
import numpy as np
import torch, transformers
from safetensors.torch import load_file, save_file

here = os.path.dirname(os.path.abspath(__file__))
root = os.path.dirname(os.path.dirname(here))
rill = os.path.join(root, "build/bin/rill")
LIBRARIES = "src/libllama.a", "ggml/src/libggml.a", "ggml/src/libggml-cpu.a", "ggml/src/libggml-base.a"


def build_runner(source, build, ggml_cpu, folder):
    runner, o = os.path.join(folder, "llama_logits"), os.path.join(folder, "o.o")
    subprocess.run(["cc", "-O1", "-c", "-D_GNU_SOURCE", f"-I{source}/include", f"-I{source}/ggml/include",
                    os.path.join(here, "llama_logits.c"), "-o", o], check=True)
    subprocess.run(["c++", "-o", runner, o, *[os.path.join(build, x) for x in LIBRARIES[:2]],
                    *[os.path.join(ggml_cpu, x) for x in LIBRARIES[2:]], "-lpthread", "-ldl", "-lm"],
                   check=True)
    return runner


def without_table(source, build):
    """ggml-cpu whose GELU is computed rather than looked up in half precision."""
    exact, copy = os.path.join(build, "exact"), os.path.join(build, "exact-source")
    if not os.path.exists(copy):
        subprocess.run(["cp", "-r", source, copy], check=True)
        path = os.path.join(copy, "ggml/src/ggml-cpu/vec.h")
        text = open(path).read()
        open(path, "w").write(text.replace("#define GGML_GELU_FP16\n", "").replace("#define GGML_GELU_QUICK_FP16\n", ""))
    cache = dict(line.split("=", 1) for line in open(os.path.join(build, "CMakeCache.txt")) if "=" in line)
    kept = [f"-D{k}={v.strip()}" for k, v in cache.items()
            if k.startswith(("GGML_", "LLAMA_", "CMAKE_BUILD_TYPE:", "BUILD_SHARED_LIBS:"))]
    subprocess.run(["cmake", "-S", copy, "-B", exact, "-G", "Ninja", *kept], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["nice", "-n", "10", "ninja", "-j1", "-C", exact, "ggml-cpu"], check=True, stdout=subprocess.DEVNULL)
    return exact


def run_rill(*command):
    return subprocess.run([rill, *command], capture_output=True, text=True)


def sequences(expected):
    tokens = expected["tokens"]
    at = 0
    for n in expected["lengths"].tolist():
        yield tokens[at:at + n]
        at += n


ACTIVATIONS = "hidden_act", "activation", "activation_function"


def transformers_numbers(folder, expected, tanh):
    """The golden ones; of an encoder, whose golden ones have token types, computed again without; `tanh`: GELU in that form."""
    if "types" not in expected and not tanh:
        return expected["logits"]
    config = transformers.AutoConfig.from_pretrained(folder)
    for key in ACTIVATIONS:
        if tanh and getattr(config, key, None) == "gelu":
            setattr(config, key, "gelu_new")
    cls = getattr(transformers, config.architectures[0])
    m = cls.from_pretrained(folder, config=config, attn_implementation="eager").eval()
    with torch.no_grad():
        out = [m(ids[None].long()) for ids in sequences(expected)]
    key = "logits" if hasattr(out[0], "logits") else "last_hidden_state"
    return torch.cat([getattr(x, key).flatten(0, -2) for x in out])


def exact_gelu(folder):
    config = json.load(open(os.path.join(folder, "config.json")))
    return any(config.get(key) == "gelu" for key in ACTIVATIONS)


def windows_off(folder):
    """llama.cpp reads the window of a phi3 and leaves it off, as export warns."""
    config = json.load(open(os.path.join(folder, "config.json")))
    return config.get("sliding_window") if config["model_type"] == "phi3" else None


def original_context(folder):
    """Of longrope, else None."""
    config = json.load(open(os.path.join(folder, "config.json")))
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return rope["original_max_position_embeddings"] if rope.get("rope_type") == "longrope" else None


def with_original_context(gguf, n):
    """The file with another number: llama.cpp takes the long factors where its own context, of 256 at least, is longer than that."""
    data = bytearray(open(gguf, "rb").read())
    key = b".rope.scaling.original_context_length"
    at = data.index(key) + len(key) + 4
    data[at:at + 4] = n.to_bytes(4, "little")
    path = gguf + ".other"
    open(path, "wb").write(data)
    return path


def run_llama(runner, gguf, ids):
    text = "\n".join(" ".join(map(str, x.tolist())) for x in ids) + "\n"
    return subprocess.run([runner, gguf], input=text.encode(), capture_output=True)


def run_sequences(runner, gguf, folder, ids):
    """Numbers of all sequences, or the error's text. Of longrope each in a context as long as itself, as transformers has it."""
    original = original_context(folder)
    ran = [run_llama(runner, gguf if len(x) > original else with_original_context(gguf, 1 << 20), [x])
           for x in ids] if original else [run_llama(runner, gguf, ids)]
    failed = next((r for r in ran if r.returncode), None)
    return failed.stderr.decode().strip() if failed else b"".join(r.stdout for r in ran)


def compare(name, runner, work, keep, tolerance):
    folder = os.path.join(root, "tests/golden/arch", name)
    expected = load_file(os.path.join(folder, "expected.safetensors"))
    stream, gguf = os.path.join(work, "m.rill"), os.path.join(work, "m.gguf")
    imported = run_rill("import", "-q", "--force", "--no-tokenizer", folder, "-o", stream)
    assert imported.returncode == 0, imported.stderr
    exported = run_rill("export", "-q", "--force", "--to", "gguf", stream, "-o", gguf)
    if exported.returncode:
        print(f"{name:24} refused: {exported.stderr.strip().split(': ', 1)[-1]}")
        return True
    ran = run_sequences(runner, gguf, folder, list(sequences(expected)))
    if isinstance(ran, str):
        print(f"{name:24} FAILS: {ran}")
        return False
    want = transformers_numbers(folder, expected, exact_gelu(folder))
    got = torch.from_numpy(np.frombuffer(ran, "<f4").copy())
    if got.numel() != want.numel():
        print(f"{name:24} FAILS: {got.numel()} numbers, expected {want.numel()}")
        return False
    got = got.view(want.shape)
    window = windows_off(folder)
    if window: # a window that is not felt is all that can be compared
        early = torch.cat([torch.arange(len(ids)) < window for ids in sequences(expected)])
        got, want = got[early], want[early]
    share = largest_share(got, want)
    other = (got.argmax(-1) != want.argmax(-1)).sum().item()
    as_it_is = ""
    if exact_gelu(folder):
        as_it_is = f" ({largest_share(got, transformers_numbers(folder, expected, False)):.1e})"
    print(f"{name:24} {share:8.1e}{as_it_is}   {other} of {len(want)} first tokens differ")
    if keep and not window:
        save_file({"logits": got.contiguous()}, os.path.join(folder, "llama_cpp.safetensors"))
    return share < tolerance


def largest_share(got, want):
    return ((got - want).abs().max() / want.abs().max()).item()


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--source", required=True)
    p.add_argument("--build", required=True)
    p.add_argument("--exact", action="store_true")
    p.add_argument("--write", action="store_true")
    p.add_argument("names", nargs="*")
    a = p.parse_args()
    assert a.exact or not a.write, "--write needs --exact"
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    names = a.names or sorted(os.listdir(os.path.join(root, "tests/golden/arch")))
    with tempfile.TemporaryDirectory() as work:
        ggml_cpu = without_table(a.source, a.build) if a.exact else a.build
        runner = build_runner(a.source, a.build, ggml_cpu, work)
        sys.exit(0 if all([compare(name, runner, work, a.write, 1e-5 if a.exact else 3e-3) for name in names]) else 1)
