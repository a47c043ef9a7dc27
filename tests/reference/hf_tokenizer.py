"""tokenizer.json objects of the byte-level BPE families, as their publishers write them.

Used by the other scripts in this folder; makes nothing when run. The pre-tokenizers and normalizers below are those of
the tokenizer.json files of GPT-2, Llama 3, Qwen2 and SmolLM2. transformers' own GGUF conversion is NOT used: it gives
every gpt2-type vocabulary the same pre-tokenizer.
Versions: tokenizers 0.23.3, gguf 0.19.0, Python 3.11.
"""

def byte_to_unicode():
    bs = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    cs = bs[:]
    n = 0
    for b in range(256):
        if b not in bs:
            bs.append(b)
            cs.append(256 + n)
            n += 1
    return dict(zip(bs, map(chr, cs)))


LLAMA3_RE = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
             r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2_RE = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def byte_level(use_regex, trim_offsets=True):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": trim_offsets, "use_regex": use_regex}


def split_then_bytes(regex):
    return {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
        byte_level(False)]}


PRE = {  # name: (normalizer, pre_tokenizer, ignore_merges)
    "gpt2": (None, byte_level(True), False),
    "llama-bpe": (None, split_then_bytes(LLAMA3_RE), True),
    "qwen2": ({"type": "NFC"}, split_then_bytes(QWEN2_RE), False),
    "smollm": (None, {"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True}, byte_level(True)]}, False),
}


def tokenizer_json(pre, vocab, merges, added, bos=None):
    """vocab: {token: id} of the model, merges: [(a, b)], added: [(id, text, special)]; bos: a template-processing
    token put first by encode(add_special_tokens=True), as Llama 3 has it."""
    norm, pretok, ignore = PRE[pre]
    post = byte_level(True, False)
    if bos is not None:
        bos_id = dict((t, i) for i, t, _ in added)[bos]
        post = {"type": "Sequence", "processors": [post, {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                     {"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}}}]}
    elif pre == "smollm":
        post = None
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": s} for i, t, s in added],
        "normalizer": norm, "pre_tokenizer": pretok, "post_processor": post,
        "decoder": byte_level(True),
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "" if pre == "qwen2" else None,
                  "end_of_word_suffix": "" if pre == "qwen2" else None, "fuse_unk": False, "byte_fallback": False,
                  "ignore_merges": ignore, "vocab": vocab, "merges": [f"{a} {b}" for a, b in merges]},
    }


def from_gguf(path, pre, first_tokens=None, bos=None):
    """The tokenizer.json of a GGUF's gpt2-type vocabulary; with first_tokens, only that many tokens, the merges among
    them, and the special ones, ids renumbered densely in the old order."""
    import gguf
    f = gguf.GGUFReader(path).fields
    tokens = f["tokenizer.ggml.tokens"].contents()
    types = [int(x) for x in f["tokenizer.ggml.token_type"].contents()]
    merges = [tuple(m.split(" ")) for m in f["tokenizer.ggml.merges"].contents()]
    normal = {t for t, ty in zip(tokens, types) if ty == 1}
    if first_tokens is not None:
        keep = set(byte_to_unicode().values()) | {t for t, ty in zip(tokens[:first_tokens], types) if ty == 1}
        keep &= normal
        merges = [(a, b) for a, b in merges if a in keep and b in keep and a + b in keep]
        ids = [i for i, (t, ty) in enumerate(zip(tokens, types)) if (ty == 1 and t in keep)
               or (ty in (3, 4) and not t.startswith("<|reserved_special_token_") and not t.startswith("[PAD"))]
    else:
        ids = list(range(len(tokens)))
    new = {old: i for i, old in enumerate(ids)}
    # SmolLM2 lists its added tokens in the model's vocabulary too; Llama 3 and Qwen2 only among the added ones.
    vocab = {tokens[i]: new[i] for i in ids if types[i] == 1 or pre in ("smollm", "gpt2")}
    added = [(new[i], tokens[i], types[i] == 3) for i in ids if types[i] in (3, 4)]
    return tokenizer_json(pre, vocab, merges, added, bos)
