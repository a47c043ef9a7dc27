"""Makes tests/golden/arch/NAME: a tiny random model of each architecture by transformers, with what it computes.

    NAME/config.json, model.safetensors    the model, f32
    NAME/expected.safetensors              tokens [n], lengths [sequences], logits [n][vocabulary] by transformers in f32,
                                           loss (mean cross-entropy of the next token, f64) and every 7th element of the
                                           gradient of each parameter, "grad.PARAMETER", by autograd in f64

An encoder has token types [n], too, and more kinds of output: a masked LM labels [n] (-1: none) that its loss is of, and so one that
gives each token logits of classes or of an answer's ends; a classifier logits and labels for each sequence; a plain encoder its hidden states in place of logits, weights [n][hidden] that the loss multiplies
them with, and with a pooler pooled [sequences][hidden] and pooled_weights.

A model with experts gets the first seed from that of its name on with which no position is near to taking others: what the
scores of the last expert taken and the first left out differ by is at least 3% of their spread, which bf16 does not move.

tests/unit/test_architectures.c compares. NAME is the registry's name, or "name-variant".
Versions: torch 2.15, transformers 5.24. Run: python make_architectures.py ../golden/arch [NAME ...]
"""
import json, os, shutil, sys, tempfile, types, zlib
import torch, transformers
from safetensors.torch import load_file, save_file

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


def saved_name(parameter, p, saved):
    """What the file calls it: transformers 5 renames some on the way out (GPT-NeoX's lm_head is embed_out there)."""
    if parameter in saved:
        return parameter
    return next(k for k, v in saved.items() if v.shape == p.shape and torch.equal(v, p.float()))
# ---- encoders: each output with a loss of its own ----

def expect_encoder(m, tokens, g):
    seeded = dict(generator=g)
    token_types = torch.randint(0, max(1, getattr(m.config, "type_vocab_size", 1)), tokens.shape, **seeded)
    def run(attribute):
        each = list(zip(batches(tokens), batches(token_types)))
        more = (lambda t: dict(token_type_ids=t)) if hasattr(m.config, "type_vocab_size") else (lambda t: {})
        return torch.cat([pick(m(ids, **more(t)), attribute).flatten(0, -2) for ids, t in each])
    def pick(out, attribute):
        spans = attribute == "logits" and not hasattr(out, "logits")
        return torch.stack([out.start_logits, out.end_logits], -1) if spans else getattr(out, attribute)
    expected, name = {}, type(m).__name__
    if hasattr(m.config, "type_vocab_size"):
        expected["types"] = token_types.int()
    if name.endswith("Model"):
        expected["weights"] = torch.randn(len(tokens), m.config.hidden_size, **seeded)
        has_pooler = getattr(m, "pooler", None) is not None
        if has_pooler:
            expected["pooled_weights"] = torch.randn(len(LENGTHS), m.config.hidden_size, **seeded)
            expected["pooled"] = run("pooler_output").detach()
        def loss():
            total = (run("last_hidden_state") * expected["weights"].double()).sum()
            if has_pooler:
                total = total + (run("pooler_output") * expected["pooled_weights"].double()).sum()
            return total
        expected["logits"] = run("last_hidden_state").detach()
        return expected, loss
    expected["logits"] = run("logits").detach()
    rows, columns = expected["logits"].shape
    labels = torch.randint(0, columns, (rows,), **seeded)
    if rows == len(tokens):
        labels[torch.randint(0, 3, (rows,), **seeded) > 0] = -1
    expected["labels"] = labels.int()
    return expected, lambda: torch.nn.functional.cross_entropy(run("logits"), labels, ignore_index=-1)


# ---- experts ----

def routing_margin(m, tokens):
    """The smallest gap between the scores of experts that are taken and those that are not, over their deviation."""
    margins, k = [], getattr(m.config, "num_experts_per_tok", 0)
    def look(module, inputs, outputs):
        top = outputs[0].sort(-1, descending=True).values
        if top.shape[-1] > k:
            margins.append(((top[:, k - 1] - top[:, k]) / outputs[0].std()).min().item())
    hooks = [x.register_forward_hook(look) for x in m.modules() if type(x).__name__.endswith("TopKRouter")]
    with torch.no_grad():
        forward(m, tokens)
    for h in hooks:
        h.remove()
    return min(margins, default=1)


def expert_gradients(parameter, p, saved):
    """transformers holds all experts in one tensor, gate above up, and saves them one by one unless it is told otherwise."""
    layer, _, which = parameter.rpartition(".mlp.experts.")
    block = layer + ".block_sparse_moe.experts" if layer + ".block_sparse_moe.gate.weight" in saved else layer + ".mlp.experts"
    names = dict(gate="w1", up="w3", down="w2") if block.endswith("moe.experts") else dict(
        gate="gate_proj", up="up_proj", down="down_proj")
    for i, g in enumerate(p.grad):
        parts = dict(zip(("gate", "up"), g.chunk(2))) if which == "gate_up_proj" else dict(down=g)
        for part, x in parts.items():
            yield f"{block}.{i}.{names[part]}.weight", x


def write(name, out):
    seed = zlib.crc32(name.encode())
    while True:
        torch.manual_seed(seed)
        m = randomize(MODELS[name](), seed)
        tokens = torch.randint(0, VOCAB, (sum(LENGTHS),), generator=torch.Generator().manual_seed(seed))
        if m.config.model_type in ENCODERS or routing_margin(m, tokens) > 0.03:
            break
        seed += 1
    folder = os.path.join(out, name)
    shutil.rmtree(folder, ignore_errors=True)
    m.save_pretrained(folder, **(dict(save_original_format=False) if name.endswith("-stacked") else {}))
    for extra in os.listdir(folder):
        if extra not in ("config.json", "model.safetensors"):
            os.remove(os.path.join(folder, extra))
    if m.config.model_type in ENCODERS:
        tokens = tokens.clamp(min=3) # pads have no position and no gradient
        with torch.no_grad():
            expected, make_loss = expect_encoder(m, tokens, torch.Generator().manual_seed(seed))
        expected = {k: v.contiguous() for k, v in expected.items()}
    else:
        with torch.no_grad():
            expected = {"logits": forward(m, tokens).float().contiguous()}
        make_loss = lambda: next_token_loss(m, tokens)
    with tempfile.TemporaryDirectory() as usual:
        m.save_pretrained(usual)
        saved = load_file(os.path.join(usual, "model.safetensors"))
    m = m.double()
    loss = make_loss()
    loss.backward()
    for parameter, p in m.named_parameters(remove_duplicate=m.config.model_type not in ENCODERS):
        if ".mlp.experts." in parameter:
            for part, g in expert_gradients(parameter, p, saved):
                expected["grad." + part] = g.flatten()[::7].float().contiguous()
        elif p.grad is not None:
            saved_as = saved_name(parameter, p, saved).removeprefix("language_model.")
            expected["grad." + saved_as] = p.grad.flatten()[::7].float().contiguous()
    expected["loss"] = torch.tensor([loss.item()], dtype=torch.float64)
    expected["tokens"] = tokens.int()
    expected["lengths"] = torch.tensor(LENGTHS, dtype=torch.int32)
    save_file(expected, os.path.join(folder, "expected.safetensors"))


# ---- the models: every feature of an architecture in some variant ----

def eager(cls, config):
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
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


# the original context between the lengths: one sequence is beyond it, the others are not
YARN = dict(rope_type="yarn", rope_theta=500.0, factor=4.0, original_max_position_embeddings=16)


def longrope(pairs, original=12, **more):
    return dict(rope_type="longrope", rope_theta=500.0, original_max_position_embeddings=original, **more,
                short_factor=[1 + 0.125 * i for i in range(pairs)], long_factor=[1.5 + i for i in range(pairs)])


@model("llama-yarn")
def llama_yarn():
    return eager(transformers.LlamaForCausalLM, transformers.LlamaConfig(
        **SHAPE, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True, rope_parameters=YARN))


@model("llama-longrope")
def llama_longrope():
    return eager(transformers.LlamaForCausalLM, transformers.LlamaConfig(
        **SHAPE, num_key_value_heads=2, tie_word_embeddings=True, rope_parameters=longrope(4, factor=2.0)))


@model("mistral-yarn")  # every number its own
def mistral_yarn():
    return eager(transformers.MistralForCausalLM, transformers.MistralConfig(
        **SHAPE, num_key_value_heads=2, head_dim=16, sliding_window=None, tie_word_embeddings=True,
        rope_parameters=YARN | dict(attention_factor=0.75, beta_fast=2.0, beta_slow=0.25, truncate=False)))


@model("mistral")
def mistral():
    return eager(transformers.MistralForCausalLM, transformers.MistralConfig(
        **SHAPE, num_key_value_heads=2, sliding_window=7, tie_word_embeddings=False))


@model("ministral")
def ministral():
    return eager(transformers.MinistralForCausalLM, transformers.MinistralConfig(
        **(SHAPE | dict(num_hidden_layers=3)), num_key_value_heads=2, head_dim=8, sliding_window=7, tie_word_embeddings=False,
        layer_types=["full_attention", "sliding_attention", "full_attention"]))


@model("qwen2")
def qwen2():
    return eager(transformers.Qwen2ForCausalLM, transformers.Qwen2Config(
        **SHAPE, num_key_value_heads=2, tie_word_embeddings=True))


@model("qwen2-window")
def qwen2_window():
    return eager(transformers.Qwen2ForCausalLM, transformers.Qwen2Config(
        **SHAPE, num_key_value_heads=2, tie_word_embeddings=False, use_sliding_window=True, sliding_window=5,
        max_window_layers=1))


@model("qwen2-longrope")  # deci in GGUF
def qwen2_longrope():
    return eager(transformers.Qwen2ForCausalLM, transformers.Qwen2Config(
        **SHAPE, num_key_value_heads=1, tie_word_embeddings=True, rope_parameters=longrope(4, attention_factor=1.0625)))


@model("qwen3")
def qwen3():
    return eager(transformers.Qwen3ForCausalLM, transformers.Qwen3Config(
        **SHAPE, num_key_value_heads=2, head_dim=12, tie_word_embeddings=False))


@model("qwen3-yarn")
def qwen3_yarn():
    return eager(transformers.Qwen3ForCausalLM, transformers.Qwen3Config(
        **SHAPE, num_key_value_heads=1, head_dim=16, tie_word_embeddings=True,
        rope_parameters=YARN | dict(mscale=0.5, mscale_all_dim=1.5)))


@model("qwen3-window")
def qwen3_window():
    return eager(transformers.Qwen3ForCausalLM, transformers.Qwen3Config(
        **SHAPE, num_key_value_heads=1, head_dim=16, tie_word_embeddings=True, attention_bias=True,
        use_sliding_window=True, sliding_window=5, max_window_layers=1))


@model("phi")
def phi():
    return eager(transformers.PhiForCausalLM, transformers.PhiConfig(
        **SHAPE, num_key_value_heads=2, rope_parameters=dict(
            rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5)))


@model("phi-norms")  # of the heads of q and k
def phi_norms():
    return eager(transformers.PhiForCausalLM, transformers.PhiConfig(
        **SHAPE, num_key_value_heads=2, tie_word_embeddings=True, qk_layernorm=True))


@model("phi-tied")
def phi_tied():
    return eager(transformers.PhiForCausalLM, transformers.PhiConfig(
        **(SHAPE | dict(hidden_size=64, num_attention_heads=2)), tie_word_embeddings=True, hidden_act="relu",
        rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.0, partial_rotary_factor=0.4)))


# Tokens of a small vocabulary; one that pads would have no gradient in the embedding.
ENDS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=None)


@model("phi3")
def phi3():
    return eager(transformers.Phi3ForCausalLM, transformers.Phi3Config(
        **SHAPE, num_key_value_heads=2, sliding_window=7, original_max_position_embeddings=64, **ENDS))


@model("phi3-partial")
def phi3_partial():
    return eager(transformers.Phi3ForCausalLM, transformers.Phi3Config(
        **SHAPE, num_key_value_heads=4, tie_word_embeddings=True, original_max_position_embeddings=64, **ENDS,
        rope_parameters=dict(
            rope_type="default", rope_theta=250000.0, partial_rotary_factor=0.75)))


@model("phi3-longrope")
def phi3_longrope():
    return eager(transformers.Phi3ForCausalLM, transformers.Phi3Config(
        **SHAPE, num_key_value_heads=2, tie_word_embeddings=True, **ENDS, original_max_position_embeddings=12,
        partial_rotary_factor=0.75, rope_parameters=longrope(3) | dict(partial_rotary_factor=0.75)))


@model("smollm3")
def smollm3():
    return eager(transformers.SmolLM3ForCausalLM, transformers.SmolLM3Config(
        **(SHAPE | dict(num_hidden_layers=4)), num_key_value_heads=2, **ENDS))


@model("smollm3-window")
def smollm3_window():
    return eager(transformers.SmolLM3ForCausalLM, transformers.SmolLM3Config(
        **(SHAPE | dict(num_hidden_layers=3)), num_key_value_heads=4, tie_word_embeddings=False, **ENDS,
        attention_bias=True, use_sliding_window=True, sliding_window=6, no_rope_layers=[0, 1, 0]))


@model("olmo2")
def olmo2():
    return eager(transformers.Olmo2ForCausalLM, transformers.Olmo2Config(
        **SHAPE, num_key_value_heads=2, **ENDS))


@model("olmo2-tied")
def olmo2_tied():
    return eager(transformers.Olmo2ForCausalLM, transformers.Olmo2Config(
        **SHAPE, head_dim=16, tie_word_embeddings=True, attention_bias=True, **ENDS))


# ---- experts: more than are taken, and some layers without ----

EXPERTS = SHAPE | dict(intermediate_size=24, num_experts_per_tok=2)


@model("mixtral")
def mixtral():
    return eager(transformers.MixtralForCausalLM, transformers.MixtralConfig(
        **EXPERTS, num_key_value_heads=2, num_local_experts=5, **ENDS))


@model("mixtral-window-stacked")
def mixtral_window():
    return eager(transformers.MixtralForCausalLM, transformers.MixtralConfig(
        **EXPERTS, num_key_value_heads=4, num_local_experts=3, sliding_window=6, tie_word_embeddings=True, **ENDS))


@model("olmoe")
def olmoe():
    return eager(transformers.OlmoeForCausalLM, transformers.OlmoeConfig(
        **EXPERTS | dict(num_experts_per_tok=3), num_experts=5, **ENDS))


@model("olmoe-norm-stacked")
def olmoe_norm():
    return eager(transformers.OlmoeForCausalLM, transformers.OlmoeConfig(
        **EXPERTS, num_key_value_heads=2, num_experts=4, norm_topk_prob=True, attention_bias=True,
        tie_word_embeddings=True, **ENDS))


@model("qwen2_moe")
def qwen2_moe():
    return eager(transformers.Qwen2MoeForCausalLM, transformers.Qwen2MoeConfig(
        **EXPERTS, num_key_value_heads=2, num_experts=4, moe_intermediate_size=20, shared_expert_intermediate_size=28))


@model("qwen2_moe-dense-stacked")  # one layer without experts, a window, no biases
def qwen2_moe_dense():
    return eager(transformers.Qwen2MoeForCausalLM, transformers.Qwen2MoeConfig(
        **EXPERTS | dict(num_hidden_layers=3), num_key_value_heads=1, num_experts=3, moe_intermediate_size=20,
        shared_expert_intermediate_size=28, norm_topk_prob=True, mlp_only_layers=[1], qkv_bias=False,
        tie_word_embeddings=True, use_sliding_window=True, sliding_window=5, max_window_layers=3))


@model("qwen3_moe")
def qwen3_moe():
    return eager(transformers.Qwen3MoeForCausalLM, transformers.Qwen3MoeConfig(
        **EXPERTS, num_key_value_heads=2, head_dim=12, num_experts=5, moe_intermediate_size=20, norm_topk_prob=True))


@model("qwen3_moe-dense")  # every other layer has experts
def qwen3_moe_dense():
    return eager(transformers.Qwen3MoeForCausalLM, transformers.Qwen3MoeConfig(
        **EXPERTS | dict(num_hidden_layers=3), num_key_value_heads=1, head_dim=8, num_experts=4, moe_intermediate_size=20,
        decoder_sparse_step=2, attention_bias=True, tie_word_embeddings=True, use_sliding_window=True,
        sliding_window=6))


class MiniCPM(transformers.LlamaForCausalLM):
    """What modeling_minicpm.py, which comes with the weights of openbmb/MiniCPM-2B-sft-bf16, computes: Llama with
    three factors. The factor on the embedding is applied to its output, so that a tied head keeps the plain one."""
    def __init__(self, config):
        super().__init__(config)
        depth = config.scale_depth / config.num_hidden_layers ** 0.5
        self.model.embed_tokens.register_forward_hook(lambda m, i, out: out * config.scale_emb)
        for layer in self.model.layers:
            layer.self_attn.register_forward_hook(lambda m, i, out: (out[0] * depth, *out[1:]))
            layer.mlp.register_forward_hook(lambda m, i, out: out * depth)
        self.model.norm.register_forward_hook(
            lambda m, i, out: out / (config.hidden_size / config.dim_model_base))

    def save_pretrained(self, folder):
        super().save_pretrained(folder)
        path = os.path.join(folder, "config.json")
        config = json.load(open(path)) | dict(architectures=["MiniCPMForCausalLM"], model_type="minicpm")
        rope = config.pop("rope_parameters")
        config |= dict(rope_theta=rope["rope_theta"], rope_scaling=None)
        if rope["rope_type"] != "default":
            config["rope_scaling"] = dict(type=rope["rope_type"], factor=rope["factor"])
        json.dump(config, open(path, "w"), indent=2, sort_keys=True)


@model("minicpm")
def minicpm():
    return eager(MiniCPM, transformers.LlamaConfig(
        **(SHAPE | dict(num_hidden_layers=3)), num_key_value_heads=2, tie_word_embeddings=True, scale_emb=3,
        scale_depth=1.4, dim_model_base=16))


@model("minicpm-bias")
def minicpm_bias():
    return eager(MiniCPM, transformers.LlamaConfig(
        **SHAPE, tie_word_embeddings=False, attention_bias=True, scale_emb=2, scale_depth=0.7, dim_model_base=64,
        rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0)))
@model("gpt2")
def gpt2():
    return eager(transformers.GPT2LMHeadModel, transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=None, eos_token_id=None))


@model("gpt2-cerebras")
def gpt2_cerebras():
    return eager(transformers.GPT2LMHeadModel, transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, n_positions=64, n_inner=40, bos_token_id=None,
        eos_token_id=None, activation_function="gelu",
        scale_attn_weights=False, layer_norm_epsilon=1e-3, tie_word_embeddings=False))


@model("opt")
def opt():
    return eager(transformers.OPTForCausalLM, transformers.OPTConfig(
        vocab_size=VOCAB, hidden_size=32, ffn_dim=40, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=None, tie_word_embeddings=True))


@model("opt-350m")
def opt_350m():
    return eager(transformers.OPTForCausalLM, transformers.OPTConfig(
        vocab_size=VOCAB, hidden_size=32, ffn_dim=40, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, do_layer_norm_before=False, word_embed_proj_dim=24,
        pad_token_id=None))


@model("opt-bare")
def opt_bare():
    return eager(transformers.OPTForCausalLM, transformers.OPTConfig(
        vocab_size=VOCAB, hidden_size=32, ffn_dim=40, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, enable_bias=False, _remove_final_layer_norm=True, activation_function="gelu",
        tie_word_embeddings=False, pad_token_id=None))


@model("gpt_neox")
def gpt_neox():
    return eager(transformers.GPTNeoXForCausalLM, transformers.GPTNeoXConfig(**SHAPE))


@model("gpt_neox-sequential")
def gpt_neox_sequential():
    return eager(transformers.GPTNeoXForCausalLM, transformers.GPTNeoXConfig(
        **SHAPE, use_parallel_residual=False, attention_bias=False, hidden_act="gelu_new", layer_norm_eps=1e-3,
        tie_word_embeddings=True, rope_parameters=dict(
            rope_type="linear", factor=2.0, rope_theta=500.0, partial_rotary_factor=0.5)))
# ---- BERT and its like ----

ENCODERS = "bert", "roberta", "xlm-roberta", "camembert", "distilbert", "bilstm"
BERT = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64)
DISTIL = dict(vocab_size=VOCAB, dim=32, hidden_dim=40, n_layers=2, n_heads=4, max_position_embeddings=64)


@model("bert")
def bert():
    return eager(transformers.BertForMaskedLM, transformers.BertConfig(**BERT))


@model("bert-untied")
def bert_untied():
    return eager(transformers.BertForMaskedLM, transformers.BertConfig(
        **BERT, tie_word_embeddings=False, hidden_act="relu", layer_norm_eps=1e-5))


@model("bert-encoder")
def bert_encoder():
    return eager(transformers.BertModel, transformers.BertConfig(**BERT, type_vocab_size=3))


@model("bert-bare")
def bert_bare():
    return transformers.BertModel(transformers.BertConfig(**BERT), add_pooling_layer=False)


@model("bert-classes")
def bert_classes():
    return eager(transformers.BertForSequenceClassification, transformers.BertConfig(**BERT, num_labels=5))


@model("roberta")
def roberta():
    return eager(transformers.RobertaForMaskedLM, transformers.RobertaConfig(**BERT, type_vocab_size=1))


@model("roberta-encoder")
def roberta_encoder():
    return eager(transformers.RobertaModel, transformers.RobertaConfig(**BERT, layer_norm_eps=1e-5))


@model("roberta-classes")
def roberta_classes():
    return eager(transformers.RobertaForSequenceClassification, transformers.RobertaConfig(
        **BERT, type_vocab_size=1, num_labels=3, pad_token_id=2))


@model("bert-tags")
def bert_tags():
    return eager(transformers.BertForTokenClassification, transformers.BertConfig(**BERT, num_labels=5))


@model("bert-answers")
def bert_answers():
    return eager(transformers.BertForQuestionAnswering, transformers.BertConfig(**BERT, hidden_act="gelu_new"))


@model("roberta-answers")
def roberta_answers():
    return eager(transformers.RobertaForQuestionAnswering, transformers.RobertaConfig(**BERT, type_vocab_size=1))


@model("xlm_roberta")
def xlm_roberta():
    return eager(transformers.XLMRobertaForMaskedLM, transformers.XLMRobertaConfig(
        **BERT, type_vocab_size=1, layer_norm_eps=1e-5))


@model("xlm_roberta-classes")
def xlm_roberta_classes():
    return eager(transformers.XLMRobertaForSequenceClassification, transformers.XLMRobertaConfig(
        **BERT, type_vocab_size=1, num_labels=1))


@model("camembert")
def camembert():
    return eager(transformers.CamembertForMaskedLM, transformers.CamembertConfig(**BERT, type_vocab_size=1))


@model("camembert-tags")
def camembert_tags():
    return eager(transformers.CamembertForTokenClassification, transformers.CamembertConfig(**BERT, num_labels=4))


@model("distilbert-tags")
def distilbert_tags():
    return eager(transformers.DistilBertForTokenClassification, transformers.DistilBertConfig(**DISTIL, num_labels=3))


@model("distilbert-answers")
def distilbert_answers():
    return eager(transformers.DistilBertForQuestionAnswering, transformers.DistilBertConfig(**DISTIL))


@model("distilbert")
def distilbert():
    return eager(transformers.DistilBertForMaskedLM, transformers.DistilBertConfig(**DISTIL))


@model("distilbert-encoder")
def distilbert_encoder():
    return eager(transformers.DistilBertModel, transformers.DistilBertConfig(**DISTIL))


@model("distilbert-classes")
def distilbert_classes():
    return eager(transformers.DistilBertForSequenceClassification, transformers.DistilBertConfig(**DISTIL))
# ---- a bidirectional LSTM, which transformers has no class of: the modules of PyTorch ----

class BiLstm(torch.nn.Module):
    """What loads a folder that rill exports: load_state_dict(load_file("model.safetensors"))."""

    def __init__(self, **config):
        super().__init__()
        self.config = types.SimpleNamespace(model_type="bilstm", **config)
        c = self.config
        self.embedding = torch.nn.Embedding(c.vocab_size, c.embedding_dim)
        self.lstm = torch.nn.LSTM(c.embedding_dim, c.hidden_size, c.num_layers, bidirectional=True, batch_first=True)
        self.dense = torch.nn.Linear(2 * c.hidden_size, 2 * c.hidden_size) if c.dense_act else None
        self.classifier = torch.nn.Linear(2 * c.hidden_size, c.num_labels)

    def forward(self, ids):
        h = self.lstm(self.embedding(ids))[1][0]
        h = torch.cat([h[-2], h[-1]], -1)  # of the last layer: forward at the end, backward at the beginning
        if self.dense is not None:
            h = getattr(torch, self.config.dense_act)(self.dense(h))
        return types.SimpleNamespace(logits=self.classifier(h))

    def save_pretrained(self, folder):
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "config.json"), "w") as f:
            json.dump(dict(architectures=["BiLstmForSequenceClassification"]) | vars(self.config), f, indent=2)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, os.path.join(folder, "model.safetensors"))


@model("bilstm")
def bilstm():
    return BiLstm(vocab_size=VOCAB, embedding_dim=24, hidden_size=16, num_layers=2, bidirectional=True,
                  max_position_embeddings=64, dense_act="relu", num_labels=3)


@model("bilstm-plain")  # nothing between the LSTM and the classifier, and an embedding as wide as the layer
def bilstm_plain():
    return BiLstm(vocab_size=VOCAB, embedding_dim=20, hidden_size=10, num_layers=1, dense_act=None, num_labels=2)


GEMMA = SHAPE | dict(pad_token_id=None)  # PyTorch would keep the embedding of the padding from learning


@model("gemma")
def gemma():
    return eager(transformers.GemmaForCausalLM, transformers.GemmaConfig(
        **GEMMA, num_key_value_heads=1, head_dim=12, hidden_act="gelu"))


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


@model("gemma3-yarn")  # a scaling for each type of layer
def gemma3_yarn():
    return eager(transformers.Gemma3ForCausalLM, transformers.Gemma3TextConfig(
        **GEMMA, num_key_value_heads=1, head_dim=16, query_pre_attn_scalar=16, sliding_window=5,
        layer_types=["sliding_attention", "full_attention"], rope_parameters=dict(
            full_attention=YARN, sliding_attention=longrope(8) | dict(rope_theta=50.0))))


@model("gemma3-plain")  # what a file says nothing of, and no window
def gemma3_plain():
    return eager(transformers.Gemma3ForCausalLM, transformers.Gemma3TextConfig(
        **GEMMA, num_key_value_heads=1, head_dim=12, query_pre_attn_scalar=20, tie_word_embeddings=False,
        layer_types=["full_attention"] * 2))


@model("gemma3-whole")  # with eyes
def gemma3_whole():
    text = transformers.Gemma3TextConfig(
        **GEMMA, num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16, sliding_window=5,
        layer_types=["sliding_attention", "full_attention"])
    vision = transformers.SiglipVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)
    return eager(transformers.Gemma3ForConditionalGeneration, transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, boi_token_index=5, eoi_token_index=6,
        image_token_index=VOCAB))


if __name__ == "__main__":
    for name in sys.argv[2:] or MODELS:
        write(name, sys.argv[1])
        print(name)
