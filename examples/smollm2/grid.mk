# What does each ingredient of distillation contribute to SmolLM2-135M, pruned from 30 layers to 20, at equal steps and tokens? A cell
# of the grid is one student, named by its ingredients; make can build a file for any combination:
#
#     make -C examples/smollm2 -f grid.mk                           the cells of CELLS, and the table build/smollm2-grid/grid.txt
#     make -C examples/smollm2 -f grid.mk CELLS="labels+lr6e-4 kl+cosine+lr6e-4"
#     make -C examples/smollm2 -f grid.mk plan                      prints how long a cell takes
#
# All cells share the pruned student, the teacher, its predictions, and the order of the tokens. They are evaluated by perplexity on
# text that neither they nor the corrected teacher have seen, and compared with the best cell that learns from the labels alone in the
# same setting, so that labels have their own learning rate. README.md has the results.
#
#     labels        the text alone                    lrX        peak learning rate (6e-4); the last one is a tenth of it
#     kl            the teacher's predictions         muon       Muon instead of AdamW
#     ce            the text beside the teacher       emaX       evaluates the average of the weights, with decay X
#     cosineW       directions of hidden states, with weight W (3)       uncorrected  the original teacher
#     hiddenW       hidden states, with weight W (1)                     live         the teacher runs beside the student
#     relationsW    MiniLMv2's of the last layer, with weight W (1)      t2           temperature 2
#     sampleN, topN, ghostN    encoding of the teacher's distributions (sample50)
# and for the setting
#     batchN        N tokens a step (512), and as many more or fewer steps
#     epochsN       N times through an Nth of the tokens, in as many steps
#     orderN        another order of the tokens (1)
#     dropLIST      without these layers instead of those of least block influence: drop3-12
#     ffnN          N feed-forward channels in every layer, with a least squares fit, instead of fewer layers
#     ffnNxL        the same in the L layers of most block influence: ffn768x24
#     paramsP       P% of the parameters, in the shape that costs the loss least, fitted
#
# make judge: evaluates the cells of CELLS again, on the text and, if BLIMP names files of minimal pairs, on grammar, beside the teacher.

HERE := $(dir $(abspath $(lastword $(MAKEFILE_LIST))))
OUT ?= $(abspath $(HERE)../..)/build/smollm2-grid
TOKENS ?= 16384
EVAL_TOKENS ?= 6144
BATCH ?= 512
STEPS ?= 32
WARMUP ?= 4
include $(HERE)Makefile
.DEFAULT_GOAL := grid
.SECONDEXPANSION:
.SECONDARY:
.PHONY: grid plan judge

CELLS ?= labels+lr3e-4 labels+lr6e-4 kl+lr3e-4 kl+lr6e-4 kl+cosine30+lr3e-4 kl+cosine30+lr6e-4 kl+cosine100+lr6e-4

# ---- words of a name -------------------------------------------------------------------------------------------------------------

comma := ,
has = $(filter $(2),$(subst +, ,$(1)))
# $(call after,NAME,PREFIX,DEFAULT): the rest of the word of NAME that begins with PREFIX
after = $(or $(patsubst $(2)%,%,$(filter $(2)%,$(subst +, ,$(1)))),$(3))
divide = $(shell echo $$(($(1) / $(2))))
batch = $(call after,$(1),batch,$(BATCH))
student = $(or $(call has,$(1),drop% ffn% params%),pruned)
of_part = $(patsubst %,+%,$(call has,$(1),epochs%))
teacher = $(or $(call has,$(1),uncorrected),corrected$(of_part))
encoded = $(or $(call has,$(1),sample% top% ghost%),sample50)$(if $(call has,$(1),t2),+t2)
# training data: a token file, or a teacher's predictions for it, with the states and relations that some losses need
knowledge = $(or $(call has,$(1),uncorrected),corrected)+$(encoded)+$(student)
data = $(OUT)/$(if $(call has,$(1),labels live),tokens,$(knowledge))$(of_part).data.rill

# ---- shared by all cells -------------------------------------------------------------------------------------------------------------

$(OUT)/uncorrected.rill: $(OUT)/teacher.rill
	ln -f $< $@
$(OUT)/drop%.rill: $(OUT)/teacher.rill
	$(RILL) prune -q --drop-layers $(subst _,$(comma),$*) $< -o $@ --force

fitted = --reconstruct --data $(OUT)/train.tok.rill --max-tokens 16384
widths = --ffn $(firstword $(subst x, ,$(1))) $(patsubst %,--layers % --stats $(OUT)/teacher.stats.rill,$(word 2,$(subst x, ,$(1))))
$(OUT)/ffn%.rill: $(OUT)/teacher.rill $(OUT)/train.tok.rill $(OUT)/teacher.stats.rill
	$(RILL) prune -q $(call widths,$*) $(fitted) $< -o $@ --force
$(OUT)/gradients.stats.rill: $(OUT)/teacher.rill $(OUT)/train.tok.rill
	$(RILL) calibrate -q -m $< --gradients --max-tokens 16384 $(OUT)/train.tok.rill -o $@ --force
$(OUT)/params%.rill: $(OUT)/teacher.rill $(OUT)/train.tok.rill $(OUT)/gradients.stats.rill
	$(RILL) prune -q --target-params $*% --stats $(OUT)/gradients.stats.rill $(fitted) $< -o $@ --force

# From the plan of prune --dry-run, a map for the loss on hidden states: every third layer of the student, counted from the last,
# learns the output of its original layer in the teacher (S:T+S:T+...).
as_map = awk '$$1 == "layer" { was[n++] = $$2 } \
  END { for (i = n - 1; i >= 0; i -= 3) map = i ":" was[i] (map == "" ? "" : "+" map); print map }'
$(OUT)/pruned.map: $(OUT)/teacher.rill $(OUT)/teacher.stats.rill
	$(RILL) prune -q --dry-run --layers $(LAYERS) --stats $(OUT)/teacher.stats.rill $< | $(as_map) > $@
$(OUT)/drop%.map: $(OUT)/teacher.rill
	$(RILL) prune -q --dry-run --drop-layers $(subst _,$(comma),$*) $< | $(as_map) > $@
$(OUT)/ffn%.map: $(OUT)/teacher.rill $(OUT)/teacher.stats.rill
	$(RILL) prune -q --dry-run $(call widths,$*) $< | $(as_map) > $@
$(OUT)/params%.map: $(OUT)/teacher.rill $(OUT)/gradients.stats.rill
	$(RILL) prune -q --dry-run --target-params $*% --stats $(OUT)/gradients.stats.rill $< | $(as_map) > $@

# The text, all of it or an Nth, and the predictions of teachers for it.
$(OUT)/tokens.data.rill: $(OUT)/train.tok.rill
	ln -f $< $@
$(OUT)/tokens+epochs%.data.rill: $(OUT)/teacher.rill $(OUT)/train.txt
	$(RILL) tokenize -q -m $< --context $(CONTEXT) --max-tokens $(call divide,$(TOKENS),$*) $(OUT)/train.txt -o $@ --force

# A teacher that has seen only that part, once.
$(OUT)/corrected+epochs%.rill: $(OUT)/teacher.rill $(OUT)/tokens+epochs%.data.rill
	$(RILL) distill -q -m $< --loss ce --lr 1e-4 --lr-min 1e-5 --batch-tokens $(BATCH) --micro-tokens $(BATCH) $(word 2,$^) -o $@ --force

encoding = $(patsubst ghost%,ghost:%,$(patsubst top%,topk:%,$(call has,$(1),sample% top% ghost%)))
said_of = $(OUT)/$(call teacher,$(1)).rill $(OUT)/tokens$(of_part).data.rill $(OUT)/$(call student,$(1)).map
$(OUT)/%.data.rill: $$(call said_of,$$*)
	$(RILL) teacher-infer -q -m $< --encode $(patsubst sample%,sample:%,$(call encoding,$*)) $(if $(call has,$*,t2),--temperature 2) \
	    --tap hidden:$$(sed 's/[0-9]*:\([0-9]*\)/\1/g; s/+/,/g' $(word 3,$^)) --tap q --tap k --tap v $(word 2,$^) -o $@ --force

# ---- cells -----------------------------------------------------------------------------------------------------------------------

map = map=$$(cat $(OUT)/$(call student,$(1)).map)
losses = $(if $(call has,$(1),labels ce),--loss ce) $(if $(call has,$(1),kl),--loss kl) \
  $(if $(call has,$(1),cosine%),--loss hidden:kind=cosine$(comma)weight=$(call after,$(1),cosine,3)$(comma)$(call map,$(1))) \
  $(if $(call has,$(1),hidden%),--loss hidden:weight=$(call after,$(1),hidden,1)$(comma)$(call map,$(1))) \
  $(if $(call has,$(1),relations%),--loss minilm2:weight=$(call after,$(1),relations,1))
options = --lr $(call after,$(1),lr,6e-4) $(if $(call has,$(1),muon),--optimizer muon) $(patsubst ema%,--ema %,$(call has,$(1),ema%)) \
  $(if $(call has,$(1),live),--teacher $(OUT)/$(call teacher,$(1)).rill) --shuffle --seed $(call after,$(1),order,1) --epochs 1000 \
  --warmup $(call divide,$(WARMUP) * $(BATCH),$(call batch,$(1))) --steps $(call divide,$(STEPS) * $(BATCH),$(call batch,$(1))) \
  --batch-tokens $(call batch,$(1)) --micro-tokens $(call batch,$(1))
cell = $(RILL) distill -q -m $(OUT)/$(call student,$(1)).rill $(strip $(losses) $(options)) $(data)

needs = $(OUT)/$(call student,$(1)).rill $(call data,$(1)) $(if $(call has,$(1),live),$(OUT)/$(call teacher,$(1)).rill) \
  $(if $(call has,$(1),cosine% hidden%),$(OUT)/$(call student,$(1)).map)

# The target of a cell is its log, which ends with the evaluation on unseen text; making the student, CELL.rill, makes both.
$(OUT)/cells/%.tsv: $$(call needs,$$*) $(OUT)/heldout.tok.rill
	@mkdir -p $(@D)
	$(call cell,$*) --eval $(OUT)/heldout.tok.rill --eval-every 1000000 --log $@ > /dev/null
$(OUT)/cells/%.rill: $$(call needs,$$*) $(OUT)/heldout.tok.rill
	@mkdir -p $(@D)
	$(call cell,$*) --eval $(OUT)/heldout.tok.rill --eval-every 1000000 --log $(@:.rill=.tsv) -o $@ --force

# The table has the cells of this run, so it is remade even if all of them exist.
grid: $(CELLS:%=$(OUT)/cells/%.tsv)
	@cd $(OUT)/cells && $(HERE)grid $(CELLS) > $(OUT)/grid.txt.part && mv $(OUT)/grid.txt.part $(OUT)/grid.txt && cat $(OUT)/grid.txt

BLIMP ?= $(wildcard $(RILL_ROOT)/../shared/data/blimp/*.jsonl)
judged = $(RILL) eval -m $< $(BLIMP:%=--task %) < $(OUT)/heldout.tok.rill > $@.part && mv $@.part $@
$(OUT)/judged/teacher.json: $(OUT)/teacher.rill $(OUT)/heldout.tok.rill $(BLIMP)
	@mkdir -p $(@D)
	$(judged)
$(OUT)/judged/%.json: $(OUT)/cells/%.rill $(OUT)/heldout.tok.rill $(BLIMP)
	@mkdir -p $(@D)
	$(judged)
judge: $(patsubst %,$(OUT)/judged/%.json,teacher $(CELLS))
	@cd $(OUT)/judged && $(HERE)judge teacher $(CELLS)

plan: $$(call needs,labels)
	@$(call cell,labels) --plan
