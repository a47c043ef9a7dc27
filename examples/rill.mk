# rill.mk: pattern rules for compression runs. Include it in your own Makefile, after setting variables, and name the targets that
# you want:
#
#     TEACHER := teacher.rill
#     include rill.mk
#     student.q4_k_m.rill:            # student.rill, quantized
#     wiki.kd.rill:                   # the predictions of TEACHER on wiki.txt, encoded as ENCODE
#
#     FILE.imported.rill       from FILE.gguf, or the folder FILE of Hugging Face
#     FILE.tok.rill            from FILE.txt         tokens, joined and cut into sequences of CONTEXT
#     FILE.kd.rill             from FILE.tok.rill    the teacher's predictions
#     FILE.generated.rill      from FILE.tok.rill    the teacher's continuations of these prompts, by GENERATE
#     FILE.mixed.kd.rill       from FILE.tok.rill    the mean of the predictions of TEACHERS, encoded as ENCODE
#     FILE.realigned.kd.rill   from FILE.tok.rill    the teacher's predictions for the tokens of STUDENT
#     FILE.fidelity.json       from FILE.tok.rill    how well FILE.kd.rill preserves FILE.dense.kd.rill, for STUDENT
#     FILE.stats.rill          from FILE.tok.rill    statistics of the teacher's activations
#     FILE.imatrix.gguf        from FILE.stats.rill  the same for llama-quantize
#     FILE.TYPE.rill           from FILE.rill        quantized to TYPE (q8_0, q6_k, q4_k_m, iq4_xs, q4_0, ...)
#     FILE.TYPE.imatrix.rill   from FILE.rill        the same, weighted by FILE's own statistics on MEASURE
#     FILE.TYPE.gptq.rill      from FILE.rill        the same by GPTQ, with the tokens MEASURE
#     FILE.awq.rill            from FILE.rill        the same function, easier to quantize to FOLD_TYPE, by MEASURE; FILE.smooth.rill,
#                                                    FILE.pca.rill; and FILE.r1.rill, FILE.r2.rill, without MEASURE
#     FILE.BITSbpw.rill        from FILE.rill        the best types within BITS bits per weight (3, 3.5, ... 8), measured on MEASURE
#     FILE.trained.rill        from FILE.rill        trained by DISTILL on LEARN (a .kd.rill, or a .tok.rill), with FILE.trained.log
#     FILE.svg                 from FILE.log         learning curves
#     FILE.gguf                from FILE.rill        for llama.cpp
#     FILE.eval.json           from FILE.rill        perplexity on EVAL (a .tok.rill)
#     FILE.kld.json            from FILE.rill        divergence from TEACHER on EVAL
#
# and for iterative pruning, in rounds, each of which prunes and trains the result of the previous round:
#
#     FILE.round1.rill         from FILE.rill            FILE.round1.cut.rill, trained by DISTILL on LEARN
#     FILE.round1.cut.rill     from FILE.rill            pruned by PRUNE, with statistics on MEASURE (a .tok.rill)
#     FILE.round2.rill         from FILE.round1.rill     and so on to round 4; PRUNE_2 and DISTILL_2 override the options of round 2
#
#     TEACHER := teacher.rill
#     LEARN := wiki.kd.rill
#     MEASURE := wiki.tok.rill
#     PRUNE := --layers 84% --ffn 84%                      70% of 70% in two rounds
#     include rill.mk
#     all: teacher.round2.eval.json
#
# To prune single weights by --data instead of statistics and keep them at zero: PRUNE_1 := --sparsity 30% --method sparsegpt --data
# wiki.tok.rill, PRUNE_2 := the same with 50%, DISTILL := --keep-mask --steps 100.
#
# Every program writes its output completely or not at all, so an interrupted `make` leaves no partial files; if a program in a pipe
# fails, so does the next one.

RILL ?= rill
TEACHER ?= teacher.rill
CONTEXT ?= 512
ENCODE ?= sample:50
EVAL ?= eval.tok.rill
PRUNE ?= --layers 84% --ffn 84%
DISTILL ?= --loss kl
LEARN ?= corpus.kd.rill
MEASURE ?= corpus.tok.rill
STUDENT ?= student.rill
TEACHERS ?= $(TEACHER)
GENERATE ?= --repeat 2 --max-new 120 --temperature 0.9
FOLD_TYPE ?= q4_k_m
RILL_TYPES ?= q8_0 q6_k q5_k_m q5_k_s q5_k q5_1 q5_0 q4_k_m q4_k_s q4_k q4_1 q4_0 iq4_nl iq4_xs mxfp4 q3_k_l q3_k_m q3_k_s iq3_m iq3_s iq3_xs \
    iq3_xxs q2_k q2_k_s iq2_m iq2_s iq2_xs iq2_xxs tq2_0 tq1_0 f32 bf16 f16

.DELETE_ON_ERROR:
.SECONDARY: # keeps intermediate files: make would delete the models that it has just evaluated

%.imported.rill: %.gguf
	$(RILL) import $< -o $@ --force

%.imported.rill: %/config.json
	$(RILL) import $(<D) -o $@ --force

%.tok.rill: %.txt $(TEACHER)
	$(RILL) tokenize -m $(TEACHER) --context $(CONTEXT) $< -o $@ --force

%.kd.rill: %.tok.rill $(TEACHER)
	$(RILL) teacher-infer -m $(TEACHER) $< | $(RILL) logit-dump --encode $(ENCODE) -o $@ --force

%.dense.kd.rill: %.tok.rill $(TEACHER)
	$(RILL) teacher-infer -m $(TEACHER) $< -o $@ --force

%.generated.rill: %.tok.rill $(TEACHER)
	$(RILL) generate -m $(TEACHER) $(GENERATE) $< -o $@ --force

# The predictions of each teacher, in a temporary file until rill mix has read it.
rill_said = $(patsubst %,$(1).of.%,$(notdir $(TEACHERS)))
%.mixed.kd.rill: %.tok.rill $(TEACHERS)
	$(foreach t,$(TEACHERS),$(RILL) teacher-infer -m $(t) $< -o $@.of.$(notdir $(t)) --force && )\
	  $(RILL) mix $(call rill_said,$@) | $(RILL) logit-dump --encode $(ENCODE) -o $@ --force
	rm -f $(call rill_said,$@)

%.realigned.kd.rill: %.tok.rill $(TEACHER) $(STUDENT)
	$(RILL) teacher-infer -m $(TEACHER) $< | $(RILL) realign -m $(STUDENT) --teacher $(TEACHER) - -o $@ --force

%.fidelity.json: %.dense.kd.rill %.kd.rill $(STUDENT)
	$(RILL) fidelity -m $(STUDENT) $< $(word 2,$^) -o $@ --force

%.stats.rill: %.tok.rill $(TEACHER)
	$(RILL) calibrate -m $(TEACHER) $< -o $@ --force

define rill_type_rule
%.$(1).rill: %.rill
	$$(RILL) quantize --type $(1) $$< -o $$@ --force
%.$(1).gptq.rill: %.rill $$(MEASURE)
	$$(RILL) quantize --type $(1) --method gptq --data $$(MEASURE) $$< -o $$@ --force
%.$(1).imatrix.rill: %.rill $$(MEASURE)
	$$(RILL) calibrate -m $$< $$(MEASURE) | $$(RILL) quantize --type $(1) --stats - $$< -o $$@ --force
endef
$(foreach type,$(RILL_TYPES),$(eval $(call rill_type_rule,$(type))))

%.awq.rill: %.rill $(MEASURE)
	$(RILL) fold --method awq --type $(FOLD_TYPE) --data $(MEASURE) $< -o $@ --force

%.smooth.rill: %.rill $(MEASURE)
	$(RILL) fold --method smooth --data $(MEASURE) $< -o $@ --force

%.pca.rill: %.rill $(MEASURE)
	$(RILL) fold --method pca --data $(MEASURE) $< -o $@ --force

%.r1.rill: %.rill
	$(RILL) fold --method r1 $< -o $@ --force

%.r2.rill: %.rill
	$(RILL) fold --method r2 $< -o $@ --force

define rill_bits_rule
%.$(1)bpw.rill: %.rill $$(MEASURE)
	$$(RILL) calibrate -m $$< $$(MEASURE) | $$(RILL) quantize --target-bpw $(1) --stats - --fisher $$(MEASURE) $$< -o $$@ --force
endef
$(foreach bits,3 3.5 4 4.5 5 5.5 6 7 8,$(eval $(call rill_bits_rule,$(bits))))

%.trained.rill: %.rill $(LEARN)
	$(RILL) distill -m $< $(DISTILL) --log $*.trained.log $(LEARN) -o $@ --force

%.trained.log: %.trained.rill ;

%.svg: %.log
	$(RILL) plot $< -o $@ --force

# $(call rill_round,N,SUFFIX): rules for round N, since make applies no pattern rule twice in a chain; SUFFIX is that of the
# previous round.
rill_prune = $(or $(PRUNE_$(1)),$(PRUNE))
define rill_round
%.round$(1).cut.rill: %$(2).rill $$(MEASURE)
	$$(if $$(filter --data,$$(call rill_prune,$(1))),,$$(RILL) calibrate -m $$< $$(MEASURE) | )$$(RILL) prune \
	  $$(call rill_prune,$(1)) $$(if $$(filter --data,$$(call rill_prune,$(1))),,--stats -) $$< -o $$@ --force
%.round$(1).rill: %.round$(1).cut.rill $$(LEARN)
	$$(RILL) distill -m $$< $$(or $$(DISTILL_$(1)),$$(DISTILL)) $$(LEARN) -o $$@ --force
endef
$(eval $(call rill_round,1,))
$(foreach round,2 3 4,$(eval $(call rill_round,$(round),.round$(shell expr $(round) - 1))))

%.imatrix.gguf: %.stats.rill
	$(RILL) export --to imatrix $< -o $@ --force

%.gguf: %.rill
	$(RILL) export --to gguf $< -o $@ --force

%.eval.json: %.rill $(EVAL)
	$(RILL) eval -m $< $(EVAL) -o $@ --force

%.kld.json: %.rill $(EVAL) $(TEACHER)
	$(RILL) teacher-infer -m $(TEACHER) $(EVAL) | $(RILL) eval -m $< --reference - -o $@ --force
