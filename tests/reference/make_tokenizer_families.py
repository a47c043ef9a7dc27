"""Makes tests/golden/tokenizers/families/: small tokenizers of every kind that Rill reads, trained here with exactly the
normaliser, pre-tokenizer, model settings, decoder and post-processor of the families named, and sums over what the
reference makes of the texts of ../lines.bin.zst.

NAME.json.zst     tokenizer.json of Hugging Face's `tokenizers`
NAME.model.zst    a SentencePiece model
NAME.sums         for every 16 texts two u32, CRC-32 over the numbers of ids and the ids, and over the lengths of the decoded
                  texts and the texts. 0: not compared (a sentencepiece decodes an unknown token to U+2047)

Pipelines come from transformers' own classes (LlamaTokenizer, GemmaTokenizer, T5Tokenizer ...) where those build them, and from
the published files where they differ (Llama 2's and Phi-3's tokenizer.json have a normaliser where the class has a Metaspace;
T5's, XLM-R's and ALBERT's have a precompiled charsmap).
Versions: tokenizers 0.23.3, sentencepiece 0.2.3, transformers 5.24.0.
Run: /work/venv/bin/python make_tokenizer_families.py ../golden/tokenizers [--ids FOLDER]
--ids FOLDER writes NAME.ids with all ids and decoded texts, for a difference to be looked at.
"""
import base64, json, os, struct, subprocess, sys, tempfile, unicodedata, zlib
import sentencepiece as spm
from sentencepiece import sentencepiece_model_pb2 as pb
from tokenizers import Tokenizer, models, trainers, normalizers as N, pre_tokenizers as P, decoders as D, AddedToken

golden, ids_folder = sys.argv[1], sys.argv[3] if len(sys.argv) > 3 else None
out = os.path.join(golden, "families")
os.makedirs(out, exist_ok=True)
GROUP = 16


def unzst(path):
    return subprocess.run(["zstd", "-dcq", path], check=True, stdout=subprocess.PIPE).stdout


def read_lines():
    data, at, lines = unzst(os.path.join(golden, "lines.bin.zst")), 0, []
    while at < len(data):
        n = struct.unpack_from("<I", data, at)[0]
        lines.append(data[at + 4:at + 4 + n].decode("utf-8"))
        at += 4 + n
    return lines


lines = read_lines()[:14521]  # without those that newer versions of Unicode read otherwise
training = [t for t in lines if len(t) < 1500 and "\0" not in t and "\r" not in t]


# ---- training ----------------------------------------------------------------------------------------------------------

def sentencepiece(kind, size, texts=None, **options):
    """A SentencePiece model: its protobuf."""
    with tempfile.TemporaryDirectory() as folder:
        text = os.path.join(folder, "text")
        with open(text, "w", encoding="utf-8") as f:
            for t in texts or training:
                for line in t.split("\n"):
                    if line.strip():
                        f.write(line + "\n")
        prefix = os.path.join(folder, "m")
        spm.SentencePieceTrainer.train(input=text, model_prefix=prefix, model_type=kind, vocab_size=size,
                                       character_coverage=options.pop("character_coverage", 0.98),
                                       num_threads=1, minloglevel=2, **options)
        model = pb.ModelProto()
        model.ParseFromString(open(prefix + ".model", "rb").read())
    for p in model.pieces:  # sums without rounding: what is equally good is so for every way to add
        p.score = round(p.score * 1024) / 1024
    model.trainer_spec.input[:] = []
    model.trainer_spec.model_prefix = ""
    return model


def spm_bpe_json(model):
    """vocab and merges as transformers' converters list them (generate_merges)."""
    vocab = {p.piece: i for i, p in enumerate(model.pieces)}
    merges = []
    for p in model.pieces:
        if p.type not in (1, 4):
            continue
        local = [(p.piece[:i], p.piece[i:], p.score) for i in range(1, len(p.piece))
                 if p.piece[:i] in vocab and p.piece[i:] in vocab]
        merges += sorted(local, key=lambda x: (vocab[x[0]], vocab[x[1]]))
    merges.sort(key=lambda m: (m[2], len(m[0]), len(m[1])), reverse=True)
    return vocab, [[a, b] for a, b, _ in merges]


def added(ids, normalized=False):
    return [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": normalized, "special": s}
            for i, t, s in ids]


def template(before, after, specials):
    part = lambda t: {"SpecialToken": {"id": t, "type_id": 0}}
    text = lambda i: {"Sequence": {"id": i, "type_id": 0}}
    one = lambda i: [part(t) for t in before] + [text(i)] + [part(t) for t in after]
    return {"type": "TemplateProcessing", "single": one("A"), "pair": one("A") + one("B"),
            "special_tokens": {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in specials.items()}}


def tokenizer(model, normalizer, pre, decoder, post, tokens):
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens, "normalizer": normalizer,
            "pre_tokenizer": pre, "post_processor": post, "decoder": decoder, "model": model}


REPLACE = lambda a, b: {"type": "Replace", "pattern": {"String": a}, "content": b}
FUSED = [REPLACE("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
STRIPPED = {"type": "Sequence", "decoders": FUSED + [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
META = lambda scheme, split=True: {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}


def bpe(vocab, merges, unk="<unk>", fallback=True):
    return {"type": "BPE", "dropout": None, "unk_token": unk, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": True, "byte_fallback": fallback, "ignore_merges": False, "vocab": vocab, "merges": merges}


def byte_level(size, specials, prefix=False, normalizer=None):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = P.ByteLevel(add_prefix_space=prefix)
    if normalizer:
        t.normalizer = normalizer
    t.decoder = D.ByteLevel()
    t.train_from_iterator(training, trainers.BpeTrainer(vocab_size=size, special_tokens=specials, show_progress=False,
                                                        initial_alphabet=P.ByteLevel.alphabet()))
    return json.loads(t.to_str())


def wordpiece(size, lower, strip_accents=None):
    t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    t.normalizer = N.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=strip_accents, lowercase=lower)
    t.pre_tokenizer = P.BertPreTokenizer()
    t.decoder = D.WordPiece(prefix="##", cleanup=True)
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    t.train_from_iterator(training, trainers.WordPieceTrainer(vocab_size=size, special_tokens=specials, show_progress=False,
                                                              limit_alphabet=400))
    j = json.loads(t.to_str())
    j["post_processor"] = template(["[CLS]"], ["[SEP]"], {"[CLS]": 2, "[SEP]": 3})
    return j


# ---- families ----------------------------------------------------------------------------------------------------------

made = {}
sp = dict(bos_id=1, eos_id=2, unk_id=0, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
          split_digits=True, allow_whitespace_only_pieces=True, max_sentencepiece_length=16)
llama = sentencepiece("bpe", 1600, **sp)
made["llama2.model"] = llama
vocab, merges = spm_bpe_json(llama)
LLAMA_SPECIAL = [(0, "<unk>", True), (1, "<s>", True), (2, "</s>", True)]
made["llama2.json"] = tokenizer(  # Llama 2, TinyLlama, Mistral, MiniCPM as published
    bpe(vocab, merges), {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, REPLACE(" ", "▁")]}, None,
    STRIPPED, template(["<s>"], [], {"<s>": 1}), added(LLAMA_SPECIAL))
n = len(vocab)
phi = [(n, "<|endoftext|>", True), (n + 1, "<|assistant|>", True), (n + 2, "<|end|>", True), (n + 3, "<|user|>", True)]
made["phi3.json"] = tokenizer(
    bpe(vocab, merges), {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, REPLACE(" ", "▁")]}, None,
    STRIPPED, template(["<s>"], [], {"<s>": 1}), added(LLAMA_SPECIAL + phi))
for t in made["phi3.json"]["added_tokens"][4:]:
    t["rstrip"] = True
made["llama-class.json"] = tokenizer(  # what LlamaTokenizer of transformers 5 builds; Llama 2 with legacy=false, Mistral v3
    bpe(vocab, merges, None), None, META("first", False), STRIPPED, template(["<s>"], [], {"<s>": 1}),
    added(LLAMA_SPECIAL) + added([(n, "[INST]", False)], True))
gemma = sentencepiece("bpe", 1600, pad_id=0, eos_id=1, bos_id=2, unk_id=3, byte_fallback=True, add_dummy_prefix=False,
                      normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
                      allow_whitespace_only_pieces=True, user_defined_symbols=["<mask>", "<start_of_turn>", "\n", "\n\n", "▁▁", "▁▁▁▁"])
made["gemma.model"] = gemma
vocab, merges = spm_bpe_json(gemma)
made["gemma.json"] = tokenizer(
    bpe(vocab, merges), REPLACE(" ", "▁"), {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
    {"type": "Sequence", "decoders": FUSED}, template(["<bos>"], [], {"<bos>": 2}),
    added([(0, "<pad>", True), (1, "</s>", True), (2, "<s>", True), (3, "<unk>", True), (4, "<mask>", False), (5, "<start_of_turn>", True)]))
made["gemma.json"]["post_processor"] = template(["<s>"], [], {"<s>": 2})


def unigram(model, normalizer, pre, decoder, post, tokens):
    unk = next(i for i, p in enumerate(model.pieces) if p.type == 2)
    return tokenizer({"type": "Unigram", "unk_id": unk, "vocab": [[p.piece, p.score] for p in model.pieces],
                      "byte_fallback": model.trainer_spec.byte_fallback}, normalizer, pre, decoder, post, tokens)


t5 = sentencepiece("unigram", 1800, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, normalization_rule_name="nmt_nfkc")
made["t5.model"] = t5
charsmap = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(t5.normalizer_spec.precompiled_charsmap).decode()}
n = len(t5.pieces)
made["t5.json"] = unigram(t5, None, {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, META("always")]},
                          META("always"), template([], ["</s>"], {"</s>": 1}),
                          added([(0, "<pad>", True), (1, "</s>", True), (2, "<unk>", True), (n, "<extra_id_1>", True), (n + 1, "<extra_id_0>", True)]))
xlmr = json.loads(json.dumps(made["t5.json"]))  # XLM-R's and mT5's, as SpmConverter makes them
xlmr["normalizer"] = {"type": "Sequence", "normalizers": [charsmap, {"type": "Strip", "strip_left": False, "strip_right": True},
                                                          {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}]}
xlmr["pre_tokenizer"] = META("always")
xlmr["post_processor"] = template(["<pad>"], ["</s>"], {"<pad>": 0, "</s>": 1})
made["xlmr.json"] = xlmr
albert = json.loads(json.dumps(made["t5.json"]))
albert["normalizer"] = {"type": "Sequence", "normalizers": [REPLACE("``", '"'), REPLACE("''", '"'), {"type": "NFKD"}, {"type": "StripAccents"},
                                                            {"type": "Lowercase"}]}
made["albert.json"] = albert
made["tiny.model"] = sentencepiece("bpe", 350, [t for t in training if t.isascii() and t.islower()][:60], **sp)  # as many as the embedding of tests/golden/tiny-llama has rows
made["unigram-bytes.model"] = sentencepiece("unigram", 1500, normalization_rule_name="identity", byte_fallback=True)
made["bert.json"] = wordpiece(1800, True)
made["bert-cased.json"] = wordpiece(1800, False)  # also DistilBERT's cased one
made["roberta.json"] = byte_level(1200, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
made["roberta.json"]["post_processor"] = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": True,
                                          "add_prefix_space": False}
made["roberta.json"]["added_tokens"][4]["lstrip"] = True
made["opt.json"] = byte_level(1200, ["<pad>", "</s>", "<unk>"], prefix=True)
made["opt.json"]["post_processor"] = template(["</s>"], [], {"</s>": 1})
made["gpt-neox.json"] = byte_level(1200, ["<|endoftext|>", "<|padding|>"], normalizer=N.NFC())
k = len(made["gpt-neox.json"]["model"]["vocab"])
made["gpt-neox.json"]["added_tokens"] += added([(k, "                ", False), (k + 1, "        ", False), (k + 2, "    ", False),
                                                (k + 3, "  ", False)], True)


# ---- what the reference makes of the texts ------------------------------------------------------------------------------

def zst(name, data):
    path = os.path.join(out, name)
    with open(path, "wb") as f:
        f.write(data)
    subprocess.run(["zstd", "-19", "-q", "-f", "--rm", path], check=True)
    return os.path.getsize(path + ".zst")


# The Unicode of tokenizers' NFKD is older than that of others: texts where that shows are in no sum.
unsettled = {t for t in lines if N.NFKD().normalize_str(t) != unicodedata.normalize("NFKD", t)}
total = 0
for name, x in made.items():
    base, kind = name.rsplit(".", 1)
    if kind == "json":
        text = json.dumps(x, ensure_ascii=False, indent=0).encode("utf-8")
        t = Tokenizer.from_str(text.decode("utf-8"))
        encode, decode = (lambda s: t.encode(s, add_special_tokens=False).ids), (lambda i: t.decode(i, skip_special_tokens=False))
    else:
        text = x.SerializeToString()
        t = spm.SentencePieceProcessor(model_proto=text)
        encode, decode = (lambda s: t.encode(s)), (lambda i: t.decode(i))
    size, sums, full, same = zst(name, text), b"", b"", 0
    for at in range(0, len(lines), GROUP):
        ids_sum = text_sum = 0
        for s in lines[at:at + GROUP]:
            ids = encode(s)
            back = decode(ids)
            same += back == s
            packed, back = struct.pack(f"<I{len(ids)}I", len(ids), *ids), back.encode("utf-8", "replace")
            ids_sum = zlib.crc32(packed, ids_sum)
            text_sum = zlib.crc32(struct.pack("<I", len(back)) + back, text_sum)
            full += packed + struct.pack("<I", len(back)) + back
        if unsettled.intersection(lines[at:at + GROUP]):
            ids_sum = text_sum = 0
        if base == "t5" and kind == "model":
            text_sum = 0
        sums += struct.pack("<II", ids_sum, text_sum)
    with open(os.path.join(out, name + ".sums"), "wb") as f:
        f.write(sums)
    if ids_folder:
        with open(os.path.join(ids_folder, name + ".ids"), "wb") as f:
            f.write(full)
        with open(os.path.join(ids_folder, name), "wb") as f:
            f.write(text)
    total += size + len(sums)
    print(name, size, "bytes,", len(sums), "of sums;", same, "of", len(lines), "decode to themselves", flush=True)
print(total, "bytes")
if ids_folder:
    with open(os.path.join(ids_folder, "lines.bin"), "wb") as f:
        f.write(b"".join(struct.pack("<I", len(s.encode())) + s.encode() for s in lines))
