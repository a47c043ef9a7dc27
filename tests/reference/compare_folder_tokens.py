#!/usr/bin/env python3
"""Tokens that the files of a folder declare: `rill import` and `rill tokenize` against transformers (5.24 when this was written).

usage: compare_folder_tokens.py RILL FOLDER      build/bin/rill tests/golden/tiny-qwen2

Each case changes some file of FOLDER. Prints "same", "refused" (by rill, with its message) or "DIFFERS", and fails on the last.
test_formats_tokenizer.c has the same cases in small.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile

os.environ["TRANSFORMERS_OFFLINE"] = "1"
from transformers import AutoTokenizer  # noqa: E402

rill, source = sys.argv[1:]
probe = "a<tool_call> b <x>c[PAD]<|im_end|>"
own = json.load(open(f"{source}/tokenizer.json"))
model = own["model"]
next_id = max([len(model["vocab"]) - 1] + [t["id"] for t in own["added_tokens"]]) + 1


def token(text, **flags):
    return {"content": text, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True} | flags


def decoder(more):
    known = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in own["added_tokens"]}
    return {"added_tokens_decoder": known | more}


merges = "#version: 0.2\n" + "".join((m if isinstance(m, str) else " ".join(m)) + "\n" for m in model["merges"])
legacy = {"vocab.json": model["vocab"], "merges.txt": merges, "tokenizer.json": None}
tool = token("<tool_call>", special=False)
# name: members of tokenizer_config.json, other files (None: removed)
cases = {
    "as it is": ({}, {}),
    "decoder, the next id": (decoder({str(next_id): tool}), {}),
    "decoder, a far id": (decoder({str(next_id + 5): tool}), {}),
    "decoder, an id that is taken": (decoder({str(next_id - 1): tool}), {}),
    "decoder, other flags": (decoder({str(next_id - 1): token("<|im_start|>", lstrip=True)}), {}),
    "pad_token is new": ({"pad_token": "[PAD]"}, {}),
    "pad_token is a piece": ({"pad_token": "b"}, {}),
    "extra_special_tokens": ({"extra_special_tokens": ["<x>"]}, {}),
    "additional_special_tokens": ({"additional_special_tokens": ["<x>"]}, {}),
    "image_token": ({"image_token": "<x>"}, {}),
    "special_tokens_map.json": ({}, {"special_tokens_map.json": {"pad_token": token("[PAD]"), "additional_special_tokens": ["<x>"]}}),
    "the same beside a decoder": (decoder({}), {"special_tokens_map.json": {"pad_token": "[PAD]"}}),
    "added_tokens.json": ({}, {"added_tokens.json": {"<tool_call>": next_id}}),
    "the same beside a decoder ": (decoder({}), {"added_tokens.json": {"<tool_call>": next_id}}),
    "add_bos_token": ({"add_bos_token": True}, {}),
    "vocab.json": ({}, legacy),
    "vocab.json, add_bos_token": ({"add_bos_token": True}, legacy),
    "vocab.json, decoder": (decoder({}), legacy),
    "vocab.json alone": ({}, legacy | {"tokenizer_config.json": None}),
}


def ids_of_rill(folder):
    made = subprocess.run([rill, "import", "-q", folder, "-o", f"{folder}/m.rill"], capture_output=True, text=True)
    if made.returncode:
        return None, made.stderr.strip().replace(folder, "FOLDER")
    tokens = subprocess.run([rill, "tokenize", "-q", "-m", f"{folder}/m.rill"], input=probe.encode(), capture_output=True, check=True)
    shown = subprocess.run([rill, "show", "--tsv", "--tensor", "tokens"], input=tokens.stdout, capture_output=True, check=True)
    return [int(x) for x in shown.stdout.split()], ""


differ = 0
for name, (members, files) in cases.items():
    with tempfile.TemporaryDirectory() as folder:
        for f in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(f"{source}/{f}", folder)
        config = json.load(open(f"{folder}/tokenizer_config.json"))
        files = {"tokenizer_config.json": config | members} | files
        for f, content in files.items():
            if content is None:
                os.remove(f"{folder}/{f}")
            else:
                with open(f"{folder}/{f}", "w") as out:
                    out.write(content if isinstance(content, str) else json.dumps(content))
        ours, message = ids_of_rill(folder)
        theirs = AutoTokenizer.from_pretrained(folder)(probe)["input_ids"]
        differ += ours is not None and ours != theirs
        print("refused" if ours is None else "same   " if ours == theirs else "DIFFERS", name, message)
sys.exit(bool(differ))
