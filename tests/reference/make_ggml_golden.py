"""Makes the llama-*.raw files of tests/golden/quant/ for the types after the k-quants, with ggml's quantizers.

The input and its importance are those of make_llama_quant_golden.py; here ggml_quantize_chunk is called instead of
llama-quantize, which refuses some types without an importance matrix. The library must be built without -march (the default
of CMake's ggml-base).
Versions: llama-cpp-python 0.3.36 source package, gguf 0.19.0.
Run: /work/venv/bin/python make_ggml_golden.py BUILD/bin/libggml-base.so ../golden/quant
"""
import ctypes, sys
import numpy as np
from gguf import GGMLQuantizationType as T, GGML_QUANT_SIZES

GGML, OUT = ctypes.CDLL(sys.argv[1]), sys.argv[2]
GGML.ggml_quantize_chunk.restype = ctypes.c_size_t
TYPES = "IQ4_NL IQ4_XS IQ3_S IQ3_XXS IQ2_S IQ2_XS IQ2_XXS TQ1_0 TQ2_0 MXFP4".split()
NEED = ("IQ2_XS", "IQ2_XXS")                                         # ggml makes nothing of them without importance


def pointer(a):
    return a.ctypes.data_as(ctypes.c_void_p) if a is not None else None


def quantize(name, x, importance):
    per, size = GGML_QUANT_SIZES[T[name]]
    GGML.ggml_quantize_init(ctypes.c_int(T[name].value))
    out = np.zeros(x.size // per * size, np.uint8)
    n = GGML.ggml_quantize_chunk(ctypes.c_int(T[name].value), pointer(x), pointer(out), ctypes.c_int64(0),
                                 ctypes.c_int64(x.shape[0]), ctypes.c_int64(x.shape[1]), pointer(importance))
    assert n == out.size
    return out


if __name__ == "__main__":
    x = np.fromfile(OUT + "/llama-in.f32", "<f4").reshape(-1, 256)
    importance = np.fromfile(OUT + "/llama-imatrix.f32", "<f4")
    for name in TYPES:
        for weighted in (False, True):
            if weighted or name not in NEED:
                raw = quantize(name, x, importance if weighted else None)
                raw.tofile(f"{OUT}/llama-{name.lower()}{'-imatrix' if weighted else ''}.raw")
