"""Makes tests/golden/tokenizers/tags.jsonl: words with tags, and the tokens and labels that transformers makes of them for token
classification (examples/pytorch/token-classification/run_ner.py): Hugging Face's `tokenizers` encodes words that are split
already (is_pretokenized), the first token of a word has its tag, the others have none (here null, there -100).
Each line: family (a tokenizer of families/), words, tags, ids, labels. No special tokens are added.
Byte-level vocabularies encode each word behind a space, what add_prefix_space does, which transformers demands of them.
Run: /work/venv/bin/python make_tags.py ../golden/tokenizers       (tokenizers 0.23.3)
"""
import json, os, random, subprocess, sys
from tokenizers import Tokenizer

golden = sys.argv[1]
FAMILIES = ["bert", "bert-cased", "roberta", "opt", "gpt-neox", "xlmr", "albert", "t5", "llama2", "gemma"]
WORDS = ["EU", "rejects", "German", "call", "U.N.", "Nguyễn", "won't", "Saint-Étienne", "3.14", "数据", "naïve", "…", "-", "(",
         "McDonald's", "unbelievably", "\u00ad", "New York", " led", "emoji😀", "a", "x"]
rng = random.Random(5)
with open(os.path.join(golden, "tags.jsonl"), "w") as out:
    for family in FAMILIES:
        path = os.path.join(golden, "families", family + ".json.zst")
        text = subprocess.run(["zstd", "-dcq", path], check=True, stdout=subprocess.PIPE).stdout.decode()
        t = Tokenizer.from_str(text)
        byte_level = '"ByteLevel"' in json.dumps(json.loads(text)["pre_tokenizer"])
        for k in range(6):
            words = WORDS if k == 0 else rng.choices(WORDS, k=rng.randint(1, 9))
            tags = [None if rng.random() < 0.1 else rng.randrange(9) for _ in words]
            seen = [" " + w if byte_level and not w.startswith(" ") else w for w in words]
            e = t.encode(seen, is_pretokenized=True, add_special_tokens=False)
            labels = [None if i and e.word_ids[i - 1] == w else tags[w] for i, w in enumerate(e.word_ids)]
            json.dump({"family": family, "words": words, "tags": tags, "ids": e.ids, "labels": labels}, out)
            out.write("\n")
