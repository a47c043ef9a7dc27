"""Makes tests/golden/tokenizers/: texts and their ids by Hugging Face tokenizers for four tokenizers.

Layout in tests/golden/tokenizers/README.md. Texts come from the generators below (seeded) and from snippets of the Python
3.11.7 standard library (PSF licence). Vocabularies come from GGUF files: SmolLM2 in full, Llama 3, Qwen2 and GPT-2 cut to
their first 16000 tokens (the vocabulary-only GGUFs of the llama.cpp source, MIT).
Versions: tokenizers 0.23.3, gguf 0.19.0, Python 3.11.7 (unicodedata 14.0), zstd 1.5.4 command.
Run: /work/ref/venv/bin/python make_tokenizer_golden.py /work/ref/models/smollm2.gguf /work/ref/llama.cpp/models ../golden/tokenizers
"""
import json, os, random, struct, subprocess, sys, unicodedata
from tokenizers import Tokenizer
from hf_tokenizer import from_gguf

smol, vocabs, out = sys.argv[1:4]
os.makedirs(out, exist_ok=True)
R = random.Random(20240607)
pick, many = R.choice, lambda xs, a, b: [R.choice(xs) for _ in range(R.randint(a, b))]

NOUN = "stream filter teacher student record tensor layer weight token block scale window river kettle lantern harbour mountain engineer violin orchard bridge winter letter machine garden".split()
VERB = "reads writes keeps drops measures counts carries prunes folds forgets remembers builds breaks mends follows".split()
ADJ = "small quiet sparse dense slow honest brittle yellow enormous deterministic early unfinished careful ancient".split()
NAME = "Ada Grace Linus Noor Müller O'Brien D'Angelo Łukasz Zoë Søren Jean-Luc MacGregor van-der-Berg".split()
CONTR = "'s 't 're 've 'm 'll 'd".split()


def sentence():
    s = f"{pick(['The', 'A', 'Every', 'No', 'Each'])} {pick(ADJ)} {pick(NOUN)} {pick(VERB)} {pick(['the', 'its', 'another', 'one'])} {pick(NOUN)}"
    s += pick(["", f", and {pick(NAME)}{pick(CONTR)} {pick(NOUN)} {pick(VERB)} it", f" {R.randint(0, 99999)} times",
               f" ({pick(ADJ)}; see p. {R.randint(1, 900)})", f" - or doesn't, isn't, won't, we'll see -- in {R.randint(1500, 2100)}",
               f' while "{pick(NAME)}" says: “{pick(ADJ)} {pick(NOUN)}s”', f" at ${R.randint(1, 9999)}.{R.randint(0, 99):02}", " @-@ <unk> , @,@"])
    return s + pick([".", "!", "?", "...", "…", "?!", ".)", ""])


def english():
    return " ".join(sentence() for _ in range(R.randint(1, 4)))


def contractions():
    s = ""
    for _ in range(R.randint(1, 8)):
        c = pick(CONTR + ["'sS", "'ss", "'LLc", "'", "''", "'\u017f", "\u2019s", "'T", "'ſt", "'Re", "'vE", "'İ"])
        c = pick([c, c.upper(), c.title()])
        s += pick(["", " ", "  ", "\n", "x", "I", "WE", "1", "_", "é", "“"]) + c
    return s


LIBS = ["argparse", "ast", "heapq", "textwrap", "json/decoder", "json/encoder", "difflib", "tokenize", "html/parser", "statistics", "fractions", "datetime", "sched", "locale"]
SRC = "".join(open(os.path.join(os.path.dirname(os.__file__), m + ".py"), encoding="utf-8").read() for m in LIBS).split("\n")


def python_source():
    i = R.randrange(len(SRC) - 8)
    return pick(["\n", "\n", "\r\n"]).join(SRC[i:i + R.randint(1, 7)]) + pick(["", "\n"])


def ident():
    return pick([f"{pick(NOUN)}_{pick(NOUN)}", pick(NOUN) + pick(NOUN).title(), pick(NOUN).upper() + "_" + str(R.randint(0, 99)), pick("ijkxyz"), "__" + pick(NOUN) + "__", f"k{pick(NOUN).title()}"])


def code():
    a, b, c, n = ident(), ident(), ident(), R.choice([0, 1, 16, 255, 4096, 1000000, 0x7fffffff])
    return pick([
        f"for (size_t {a} = 0; {a} < {n}; {a}++) {{\n\t{b}[{a}] += {c}->{a} * {n}.0f;\n}}",
        f"#define {a.upper()}(x) ((x) & ~{hex(n)}u)  /* {sentence()} */",
        f"    if (!{a} || *{b} == '\\0') return -{c.upper()};\n",
        f"fn {a}<'a, T: Copy>(x: &'a [T]) -> Option<&'a T> {{ x.get({n}) }}",
        f"impl {a.title()} for {b.title()} {{\n    type Out = Vec<u8>;\n}}\n",
        f"const {a} = async ({{ {b}, ...{c} }}) => {{\n  await fetch(`/api/${{{b}}}?q={n}`);\n}};",
        f"SELECT {a}, COUNT(*) AS {b} FROM {c} WHERE {a} >= {n} AND name LIKE '%{b}%' GROUP BY 1;",
        f'<div class="{a} {b}" id=\'{c}\'>&nbsp;&lt;{n}&gt;</div>\n<!-- {sentence()} -->',
        f"rill {a} --{b}={n} < \"${c}\" | sed -e 's/^{a}//;s/\\\\t/ /g' > /dev/null 2>&1 || exit $?",
        f'{{"{a}": [{n}, -1.5e-{n % 37}, null, true], "{b}": "\\u00e9\\n{c}"}}',
        f"{a}:\t{b}.o {c}.o\n\t$(CC) -o $@ $^ -l{c}\n",
        f"func ({a} *{b.title()}) {c}() error {{\n\treturn fmt.Errorf(\"%w: %d\", err, {n})\n}}",
        f"public static final Map<String, List<{a.title()}>> {b} = new HashMap<>();",
        f"\\begin{{align}} \\frac{{\\partial {a[0]}}}{{\\partial {b[0]}}} &= \\sum_{{i=1}}^{{{n}}} x_i^2 \\end{{align}}",
        f"0x{n:08X} {n:b} 1_000_{n} 3.14159e+{n % 9} .5 5. {n}L {n}ULL 0o{n:o}",
        f"- [{a}](https://example.org/{b}/{c}.html#{n}?a=1&b=%20%C3%A9) **{a}** `{b}`",
        f"{a} <- c({n}, NA); {b} |> {c}(\\(x) x^2) %>% print()",
    ])


SCRIPTS = {
    "zh": "数据 流 压缩 模型 的 是 在 一个 语言 学习 教师 学生 我们 不 。 ， 、 （ ） 「 」 ？ ！ 《 》 2024年 第3章 ％ 龘 𠮷 ： 而且 重量 北京 火车".split(),
    "ja": "データ を 読む です か ストリーム は 小さい モデル 、 。 ー カタカナ ひらがな 漢字 が ガ ﾊﾝｶｸ ｶﾞ 々 〜 ・ 東京 ㍿ ㌔ １２３ っ ゔ".split(),
    "ar": "البيانات تدفق النموذج صغير اللغة في من إلى هذا ، ؟ ؛ كِتَابٌ مُعَلِّم ١٢٣ ٤٥ ـــ لا لله ﷺ ﻻ بِسْمِ".split(),
    "hi": "नमस्ते दुनिया डेटा छोटा मॉडल भाषा शिक्षक है में का । ॥ १२३ क्षत्रिय ज्ञान हिन्दी क़ फ़ ड़ श्री र्‍ क्‌ष".split(),
    "ko": "데이터 흐름 작은 모델 언어 선생님 은 는 이 가 . ? 한국어 각 값 뷁 ㅋㅋㅋ 읽다".split(),
    "ru": "поток данных маленькая модель язык учитель это не ё й Й щука №5 «да» — объём".split(),
    "th": "ภาษาไทย ข้อมูล เล็ก ครู น้ำ กำ ๑๒๓ ฯลฯ ที่นี่".split(),
    "he": "שָׁלוֹם עולם נתונים קטן מורה ״ ׳ צה״ל ש".split(),
    "el": "δεδομένα μοντέλο ΜΙΚΡΌ ς σ ά Ά ἄνθρωπος ΐ ; ·".split(),
    "misc": "தமிழ் తెలుగు ಕನ್ನಡ বাংলা ქართული հայերեն አማርኛ ខ្មែរ မြန်မာ བོད་ ᏣᎳᎩ ᚠᚢᚦ ⵣ ଓଡ଼ିଆ ગુજરાતી ਪੰਜਾਬੀ සිංහල ລາວ Tiếng Việt ǅ ß ẞ İı ﬁ ﬀ Ω Å K".split(),
}


def foreign(lang):
    def f():
        sep = pick(["", " ", "", " "]) if lang in ("zh", "ja", "th") else pick([" ", " ", ""])
        return sep.join(many(SCRIPTS[lang], 1, 16))
    return f


EMOJI = ["😀", "🙂", "❤️", "❤", "👍🏽", "👩‍💻", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "🇯🇵🇺", "1️⃣", "#️⃣", "☺︎", "🧑🏿‍🚀", "🫠", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "‍", "️", "⃣", "🏻", "™️", "㊗️", "♾", "▶️", "🦙"]


def emoji():
    return pick(["", " "]).join(many(EMOJI + ["ok", " ", "a", "3", "!", "\n"], 1, 10))


COMB = [chr(c) for c in list(range(0x300, 0x370)) + [0x1ab0, 0x20d0, 0x20e3, 0x3099, 0x309a, 0x0651, 0x064e, 0x05b8, 0x093c, 0x094d, 0x0e49, 0xfe0f, 0x1d165]]
BASE = list("aeiouAEIOUncsçåñüøy1 .'") + ["Å", "Å", "Ω", "K", "é", "ㄱ", "가", "ᄀ", "ᅡ", "ᆨ", "が", "か", "ハ", "क", "ड़", "שׁ", "ﬁ", "①", "½", "\u1e9b\u0323", "\u0958", "\u2126", "\uf900", "\U0002f800", "q\u0323\u0307", "q\u0307\u0323"]


def combining():
    return "".join(pick(BASE) + "".join(many(COMB, 0, 3)) for _ in range(R.randint(1, 10)))


def control():
    cs = [chr(c) for c in list(range(32)) + list(range(127, 160))]
    return "".join(pick([pick(cs), pick(cs), pick(NOUN), " ", str(R.randint(0, 99))]) for _ in range(R.randint(1, 10)))


WS = [" ", " ", " ", "\t", "\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1f", "\x85", "\xa0", "\u1680", "\u2000", "\u2003", "\u2009", "\u200a", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\u200b", "\ufeff", "\u180e", "\u2060"]


def whitespace():
    s = ""
    for _ in range(R.randint(1, 6)):
        w = pick([" ", " ", "\t", "\n", None, None])
        run = w * R.choice([1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 64, 130]) if w else "".join(many(WS, 1, 8))
        s += run + pick(["", pick(NOUN), pick("([{.,;"), str(R.randint(0, 9)), "é", "'s"])
    return s


def newlines():
    return "".join(pick(["\n", "\r\n", "\r", "\n\n", "\n\r", "\r\r\n", " \n", "\n ", "\t\n", pick(NOUN), pick(NOUN), ". ", "; ", "}", " ", "1", "  "]) for _ in range(R.randint(1, 14)))


DIG = ["0", "7", "12", "123", "1234", "12345", "1234567890", "٣", "१२", "１２３", "๑", "𝟘𝟙", "½", "²", "³", "①", "Ⅷ", "ⅻ", "㉑", "〇", "一", "౦", "߁", "𒐀", "༳", "٫", "৴"]


def digits():
    return "".join(pick([pick(DIG), pick(DIG), "".join(many("0123456789", 1, 25)), pick([" ", "  ", ".", ",", "-", "a", "x", "_", "e+", "\n", "é", "/", ":"])]) for _ in range(R.randint(1, 9)))


SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<repo_name>", "<file_sep>", "<jupyter_code>", "<empty_output>", "<gh_stars>", "<reponame>", "<filename>"]


def specials():
    t = lambda: pick([pick(SPECIAL), pick(SPECIAL), pick(SPECIAL)[:-1], pick(SPECIAL)[1:], pick(SPECIAL).upper(), "<|", "|>", "<|im_start|", "<unk>", "<s>", "[PAD]"])
    return "".join(pick([t(), t(), pick(["user\n", "assistant\n", " ", "  ", "\n", "\n\n", pick(NOUN), "'s", "12", "é", "e\u0301", "<"])]) for _ in range(R.randint(1, 8)))


def any_point():
    while True:
        c = R.choice([R.randrange(0x80), R.randrange(0x800), R.randrange(0x10000), R.randrange(0x20000), R.randrange(0x110000), R.randrange(0xe000, 0xf900)])
        if not 0xd800 <= c < 0xe000:
            return chr(c)


def is_new(c):
    """Unassigned in Unicode 14, so its category depends on which version a library has."""
    return unicodedata.category(c) == "Cn"


def random_unicode():
    """Code points that Unicode 14 knows, and noncharacters."""
    s = ""
    for _ in range(R.randint(1, 12)):
        c = any_point()
        while is_new(c) and ord(c) & 0xfffe != 0xfffe:
            c = any_point()
        s += c + pick(["", "", " ", "a", "1"])
    return s


def unassigned():
    """At least one code point that Unicode 14 does not know: a newer one or none at all."""
    s = ""
    for _ in range(R.randint(1, 6)):
        c = any_point()
        while not is_new(c):
            c = any_point()
        s += c + pick(["", " ", "a", "1", "!", "\n"])
    return s


def random_ascii():
    return "".join(chr(R.choice([R.randrange(32, 127), R.randrange(32, 127), 32, 10])) for _ in range(R.randint(1, 60)))


SAFE = [english, contractions, python_source, code, emoji, combining, control, whitespace, newlines, digits, specials, random_unicode, random_ascii] + [foreign(k) for k in SCRIPTS]


def mixed():
    s = ""
    for _ in range(R.randint(2, 4)):
        t = pick(SAFE)()
        i = R.randrange(len(t) + 1)
        s += pick([t[:i], t[i:]])[:80]
    return s


lines, cats = [], []


def category(name, texts):
    first = len(lines)
    lines.extend(texts)
    cats.append((name, first, len(lines) - first))


singles = [chr(c) for c in range(0x300)] + [chr(c) for c in list(range(0x2000, 0x2070)) + list(range(0x3000, 0x3041)) + [0xfeff, 0xfffd, 0xffff, 0x10ffff]]
category("single", [""] + [c for c in singles if not is_new(c) or ord(c) >= 0xffff] + [f"a{chr(c)}b {chr(c)}{chr(c)} 1{chr(c)}" for c in range(0x100)])
for fn, n in ((english, 1500), (contractions, 500), (python_source, 1200), (code, 1200)):
    category(fn.__name__, [fn() for _ in range(n)])
for k in SCRIPTS:
    category(k, [foreign(k)() for _ in range(350 if k in ("zh", "ja", "ar", "hi") else 150)])
for fn, n in ((emoji, 500), (combining, 700), (control, 400), (whitespace, 900), (newlines, 500), (digits, 700), (specials, 800), (random_unicode, 700), (random_ascii, 400), (mixed, 1000)):
    category(fn.__name__, [fn() for _ in range(n)])
category("long", ["a" * 5000, " " * 3000, "\n" * 2000, "ab" * 3000, "".join(many("abcdefghijklmnop", 9000, 9000)), "数" * 1500, "1" * 3000, "🙂" * 800, "e\u0301" * 1500,
                  "the" * 2000, " \n" * 1500, "".join(sentence() + "\n" for _ in range(300)), "!" * 3000, "\n".join(SRC[:400]), "\u0301" * 1000, "=" * 129 + "\n" + "-" * 77, "Ġ" * 500])
category("unassigned", [unassigned() for _ in range(400)])


def zst(name, data):
    p = os.path.join(out, name)
    with open(p, "wb") as o:
        o.write(data)
    subprocess.run(["zstd", "-19", "-q", "-f", "--rm", p], check=True)
    return os.path.getsize(p + ".zst")


enc = [t.encode("utf-8") for t in lines]
size = {"lines.bin": zst("lines.bin", b"".join(struct.pack("<I", len(b)) + b for b in enc))}
for name, gguf_file, pre, cut, bos in (("smollm2", smol, "smollm", None, None),
                                       ("llama-bpe", vocabs + "/ggml-vocab-llama-bpe.gguf", "llama-bpe", 16000, "<|begin_of_text|>"),
                                       ("qwen2", vocabs + "/ggml-vocab-qwen2.gguf", "qwen2", 16000, None),
                                       ("gpt2", vocabs + "/ggml-vocab-gpt-2.gguf", "gpt2", 16000, None)):
    tok = from_gguf(gguf_file, pre, cut, bos)
    text = json.dumps(tok, ensure_ascii=False, indent=1)
    tk = Tokenizer.from_str(text)
    res = [tk.encode(t, add_special_tokens=False).ids for t in lines]
    exact = sum(tk.decode(i, skip_special_tokens=False) == t for i, t in zip(res, lines))
    size[name + ".json"] = zst(name + ".json", text.encode("utf-8"))
    size[name + ".ids"] = zst(name + ".ids", b"".join(struct.pack(f"<I{len(i)}I", len(i), *i) for i in res))
    print(name, tk.get_vocab_size(), "tokens", len(tok["model"]["merges"]), "merges;", sum(map(len, res)), "ids;", exact, "of", len(lines), "decode to themselves")
with open(os.path.join(out, "categories.tsv"), "w") as o:
    for c in cats:
        o.write("%s\t%d\t%d\n" % c)
print(len(lines), "lines", sum(map(len, enc)), "bytes", size, sum(size.values()))
