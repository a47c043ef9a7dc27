# rill.mk: pattern rules for compression runs. Include it in a Makefile of your own, behind the variables that
# you set, and name what you want:
#
#     TEACHER := teacher.rill
#     include rill.mk
#     student.q4_k_m.rill:            # student.rill, quantized
#     wiki.kd.rill:                   # what TEACHER says about wiki.txt, as ENCODE
#
#     FILE.tok.rill      from FILE.txt         tokens, packed into sequences of CONTEXT
#     FILE.kd.rill       from FILE.tok.rill    the teacher's distributions
#     FILE.stats.rill    from FILE.tok.rill    the teacher's activations
#     FILE.TYPE.rill     from FILE.rill        quantized to TYPE (q8_0, q6_k, q4_k_m, iq4_xs, q4_0, ...)
#     FILE.gguf          from FILE.rill        for llama.cpp
#     FILE.eval.json     from FILE.rill        perplexity on EVAL (a .tok.rill)
#
# Every program writes its output whole or not at all, so an interrupted `make` leaves no half file behind, and a failing
# program in a pipe makes the next one fail too.

RILL ?= rill
TEACHER ?= teacher.rill
CONTEXT ?= 512
ENCODE ?= sample:50
EVAL ?= eval.tok.rill
RILL_TYPES ?= q8_0 q6_k q5_k_m q5_k_s q5_k q5_1 q5_0 q4_k_m q4_k_s q4_k q4_1 q4_0 iq4_nl iq4_xs mxfp4 q3_k_l q3_k_m q3_k_s q2_k bf16 f16

.DELETE_ON_ERROR:
.SECONDARY: # what one rule makes for the next is kept: make would delete the models that it has just judged

%.tok.rill: %.txt $(TEACHER)
	$(RILL) tokenize -m $(TEACHER) --context $(CONTEXT) $< -o $@ --force

%.kd.rill: %.tok.rill $(TEACHER)
	$(RILL) teacher-infer -m $(TEACHER) $< | $(RILL) logit-dump --encode $(ENCODE) -o $@ --force

%.stats.rill: %.tok.rill $(TEACHER)
	$(RILL) calibrate -m $(TEACHER) $< -o $@ --force

define rill_type_rule
%.$(1).rill: %.rill
	$$(RILL) quantize --type $(1) $$< -o $$@ --force
endef
$(foreach type,$(RILL_TYPES),$(eval $(call rill_type_rule,$(type))))

%.gguf: %.rill
	$(RILL) export --to gguf $< -o $@ --force

%.eval.json: %.rill $(EVAL)
	$(RILL) eval -m $< $(EVAL) -o $@ --force
