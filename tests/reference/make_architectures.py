"""Makes tests/golden/arch/NAME: a tiny random model of each architecture by transformers, with what it computes.

    NAME/config.json, model.safetensors    the model, f32
    NAME/expected.safetensors              tokens [n], lengths [sequences], logits [n][vocabulary] by transformers in f32,
                                           loss (mean cross-entropy of the next token, f64) and every 7th element of the
                                           gradient of each parameter, "grad.PARAMETER", by autograd in f64

tests/unit/test_architectures.c compares. NAME is the registry's name, or "name-variant".
Versions: torch 2.15, transformers 5.24. Run: python make_architectures.py ../golden/arch [NAME ...]
"""
import json, os, shutil, sys, zlib
import torch, transformers
from safetensors.torch import save_file

VOCAB, LENGTHS = 61, [24, 1, 9]
MODELS = {}


def model(name):
    def put(f):
        MODELS[name] = f
        return f
    return put


def randomize(m, seed):
    """Norms around 1, everything else so large that logits differ and nothing saturates."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in m.named_parameters():
            r = torch.randn(p.shape, generator=g)
            if "norm" in name.lower() or "ln_" in name:
                r = (0.2 * r + (0 if name.endswith("bias") or m.config.model_type.startswith("gemma") else 1))
            elif p.dim() == 1:
                r = 0.3 * r
            elif "embed" in name or "wte" in name or "wpe" in name:
                r = 0.5 * r
            else:
                r = r * (1.3 / p.shape[-1] ** 0.5)
            p.copy_(r)
    return m.float().eval()


def batches(tokens):
    at = 0
    for n in LENGTHS:
        yield tokens[at:at + n][None]
        at += n


def forward(m, tokens):
    """Logits of every position, each sequence alone."""
    return torch.cat([m(ids).logits[0] for ids in batches(tokens)])


def next_token_loss(m, tokens):
    rows = [(m(ids).logits[0, :-1], ids[0, 1:]) for ids in batches(tokens)]
    logits, labels = torch.cat([r[0] for r in rows]), torch.cat([r[1] for r in rows])
    return torch.nn.functional.cross_entropy(logits, labels)


def write(name, out):
    seed = zlib.crc32(name.encode())
    torch.manual_seed(seed)
    m = randomize(MODELS[name](), seed)
    folder = os.path.join(out, name)
    shutil.rmtree(folder, ignore_errors=True)
    m.save_pretrained(folder)
    for extra in os.listdir(folder):
        if extra not in ("config.json", "model.safetensors"):
            os.remove(os.path.join(folder, extra))
    tokens = torch.randint(0, VOCAB, (sum(LENGTHS),), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = {"logits": forward(m, tokens).float().contiguous()}
    m = m.double()
    loss = next_token_loss(m, tokens)
    loss.backward()
    for parameter, p in m.named_parameters():
        if p.grad is not None:
            expected["grad." + parameter] = p.grad.flatten()[::7].float().contiguous()
    expected["loss"] = torch.tensor([loss.item()], dtype=torch.float64)
    expected["tokens"] = tokens.int()
    expected["lengths"] = torch.tensor(LENGTHS, dtype=torch.int32)
    save_file(expected, os.path.join(folder, "expected.safetensors"))


# ---- the models: every feature of an architecture in some variant ----

def eager(cls, config):
    config._attn_implementation = "eager"
    return cls(config)


SHAPE = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
             max_position_embeddings=64)


@model("llama")
def llama():
    return eager(transformers.LlamaForCausalLM, transformers.LlamaConfig(
        **SHAPE, num_key_value_heads=2, tie_word_embeddings=False, rope_parameters=dict(
            rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=32)))


@model("llama-bias")
def llama_bias():
    return eager(transformers.LlamaForCausalLM, transformers.LlamaConfig(
        **SHAPE, num_key_value_heads=4, head_dim=16, tie_word_embeddings=True, attention_bias=True,
        rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.0)))


@model("mistral")
def mistral():
    return eager(transformers.MistralForCausalLM, transformers.MistralConfig(
        **SHAPE, num_key_value_heads=2, sliding_window=7, tie_word_embeddings=False))


@model("qwen2")
def qwen2():
    return eager(transformers.Qwen2ForCausalLM, transformers.Qwen2Config(
        **SHAPE, num_key_value_heads=2, tie_word_embeddings=True))


@model("qwen2-window")
def qwen2_window():
    return eager(transformers.Qwen2ForCausalLM, transformers.Qwen2Config(
        **SHAPE, num_key_value_heads=2, tie_word_embeddings=False, use_sliding_window=True, sliding_window=5,
        max_window_layers=1))


GEMMA = SHAPE | dict(pad_token_id=None)  # PyTorch would keep the embedding of the padding from learning


@model("gemma2")
def gemma2():
    return eager(transformers.Gemma2ForCausalLM, transformers.Gemma2Config(
        **GEMMA | dict(num_hidden_layers=3), num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16,
        sliding_window=5, attn_logit_softcapping=2.0, final_logit_softcapping=3.0))


@model("gemma2-untied")  # layers in another order, a scale that is not the head's, scaled rotation
def gemma2_untied():
    return eager(transformers.Gemma2ForCausalLM, transformers.Gemma2Config(
        **GEMMA, num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=24, sliding_window=6,
        layer_types=["full_attention", "sliding_attention"], attn_logit_softcapping=None,
        final_logit_softcapping=None, tie_word_embeddings=False, rope_parameters=dict(
            rope_type="linear", rope_theta=100.0, factor=4.0)))


@model("gemma3")
def gemma3():
    return eager(transformers.Gemma3ForCausalLM, transformers.Gemma3TextConfig(
        **GEMMA | dict(num_hidden_layers=3), num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16,
        sliding_window=5, final_logit_softcapping=4.0,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"], rope_parameters=dict(
            full_attention=dict(rope_type="linear", rope_theta=1000.0, factor=8.0),
            sliding_attention=dict(rope_type="default", rope_theta=50.0))))


@model("gemma3-plain")  # what a file says nothing of, and no window
def gemma3_plain():
    return eager(transformers.Gemma3ForCausalLM, transformers.Gemma3TextConfig(
        **GEMMA, num_key_value_heads=1, head_dim=12, query_pre_attn_scalar=20, tie_word_embeddings=False,
        layer_types=["full_attention"] * 2))


if __name__ == "__main__":
    for name in sys.argv[2:] or MODELS:
        write(name, sys.argv[1])
        print(name)
