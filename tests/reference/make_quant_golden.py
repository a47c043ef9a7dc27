"""Makes tests/golden/quant/: raw GGUF blocks and their values, and values and their blocks, by the gguf package.

Layout in tests/golden/quant/README.md. Versions: gguf 0.19.0, numpy 2.4.6. With llama.cpp's libggml-base.so
(llama-cpp-python 0.3.36's source package, CMake's default flags) its values are compared too: equal bit for bit.
Run: /work/venv/bin/python make_quant_golden.py ../golden/quant [BUILD/bin/libggml-base.so]
"""
import ctypes, os, sys
import numpy as np
from gguf import GGMLQuantizationType as T, GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize

out = sys.argv[1]
os.makedirs(out, exist_ok=True)
BLOCKS = 64
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
          "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "IQ3_S": [0], "IQ3_XXS": [0],
          "IQ2_S": [0], "IQ2_XS": [0], "IQ2_XXS": [0], "IQ1_S": [0], "IQ1_M": [], "TQ1_0": [52], "TQ2_0": [64], "MXFP4": []}
GGML = ctypes.CDLL(sys.argv[2]) if len(sys.argv) > 2 else None


def put(name, a):
    np.ascontiguousarray(a).tofile(os.path.join(out, name))


def by_ggml(name, raw, n):
    """What ggml's own dequantize_row makes of the blocks."""
    f = np.empty(n, "<f4")
    fn = GGML["dequantize_row_" + (name.lower()[:-1] + "K" if name.endswith("_K") else name.lower())]
    fn(raw.ctypes.data_as(ctypes.c_void_p), f.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(n))
    return f


def scales(rng, n):
    """f16 scales: log-normal of both signs, with zero, the smallest subnormal, a subnormal, the smallest normal and 64."""
    s = (np.exp(rng.normal(-5, 2, n)) * rng.choice([-1, 1, 1, 1], n)).astype("<f2")
    s[:6] = np.array([0, 6e-8, 3e-5, 6.104e-05, 64, -1], "<f2")
    rng.shuffle(s)
    return s.view(np.uint8).reshape(n, 2)


for i, (name, offs) in enumerate(SCALES.items()):
    rng = np.random.default_rng(100 + i)
    per, size = GGML_QUANT_SIZES[T[name]]
    raw = rng.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
    raw[0], raw[1] = 0, 255
    for o in offs:
        raw[:, o:o + 2] = scales(rng, BLOCKS)
    if name == "IQ1_M":                                              # the scale is four nibbles of four words
        d = scales(rng, BLOCKS).view("<u2")[:, 0]
        for k in range(4):
            raw[:, 49 + 2 * k] = raw[:, 49 + 2 * k] & 15 | (d >> 4 * k & 15).astype(np.uint8) << 4
    if name == "MXFP4":                                              # a power of two: 2^(e - 127); 252 and above may overflow
        raw[:, 0] = np.clip(rng.normal(118, 8, BLOCKS), 0, 251).astype(np.uint8)
        raw[2:8, 0] = [0, 1, 2, 3, 251, 127]
    f = dequantize(raw, T[name]).astype("<f4")
    assert f.size == BLOCKS * per and np.isfinite(f).all()
    if GGML:
        assert (by_ggml(name, raw, f.size).view("<u4") == f.view("<u4").ravel()).all(), name
    put(f"{name.lower()}.raw", raw)
    put(f"{name.lower()}.deq.f32", f)

h = np.arange(0, 65536, 13, dtype=np.uint32).astype("<u2")          # a prime step: all exponents, both signs
for name, exp, frac in (("F16", 0x7c00, 0x03ff), ("BF16", 0x7f80, 0x007f)):
    r = h[~(((h & exp) == exp) & ((h & frac) != 0))]                 # no NaN
    r = np.concatenate([r, np.array([0, 0x8000, 1, exp, exp | 0x8000, exp - 1, 0x03ff, 0x0400], "<u2")])
    put(f"{name.lower()}.raw", r)
    put(f"{name.lower()}.deq.f32", dequantize(r.view(np.uint8).reshape(1, -1), T[name]).astype("<f4"))

# f32 -> blocks: what the gguf package quantizes bit for bit as ggml's reference does
rng = np.random.default_rng(7)
x = rng.normal(0, 1, (BLOCKS, 32))
x *= np.exp(rng.normal(-3, 1.5, (BLOCKS, 1)))
x[0] = 0
x[1] = 0.75
x[2] = -0.75
x[3] = np.linspace(-1, 1, 32)
x[4] = np.arange(32) - 16
x[5] = np.abs(x[5])
x[6] = -np.abs(x[6])
x[7] *= 1e-6
x[8, 1:] = 0
x[9, 5] = 100
x[10] = np.arange(32) % 2 - 0.5                                      # largest magnitude of both signs: the first wins
x[11] = (np.arange(32) - 15.5) * 127 / 15.5                          # ties for Q8_0
x[12] = rng.choice([-8, -7.5, -0.5, 0.5, 1.5, 7.5], 32)              # ties for Q4_0
x[13] = 1e-30
x[14, :] = -0.0
x = x.astype("<f4")
put("quantize-in.f32", x)
for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"):
    put(f"quantize-{name.lower()}.raw", quantize(x, T[name]))

# f32 -> f16, bf16: rounding to nearest even
bits = np.concatenate([rng.integers(0x30000000, 0x48000000, 3000), rng.integers(0x33000000, 0x39000000, 1000),
                       (rng.integers(0, 0x7f7, 500) << 20) | 0x8000, (rng.integers(0x380, 0x478, 1000) << 20 | 0x1000) + rng.integers(-1, 2, 1000),
                       [0, 1, 0x7f800000, 0x477fefff, 0x477ff000, 0x477fffff, 0x7f7fffff, 0x33000000, 0x33000001, 0x32ffffff, 0x387fffff]]).astype("<u4")
bits = np.concatenate([bits, bits | 0x80000000]).astype("<u4")
f = bits.view("<f4")
with np.errstate(over="ignore"):
    put("round-in.f32", f)
    put("round-f16.raw", f.astype("<f2"))
    put("round-bf16.raw", quantize(f.reshape(1, -1), T.BF16))
