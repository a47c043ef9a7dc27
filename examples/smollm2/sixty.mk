# SmolLM2-135M with 60% of its parameters: a smaller vocabulary, narrower feed-forward layers, and half an hour to an hour of training
# on two cores to recover. README.md has the results.
#
#     make -C examples/smollm2 -f sixty.mk                                  trains, then evaluates it beside the original
#     make -C examples/smollm2 -f sixty.mk CORPUS=mine.txt GENERAL="..."    on other texts
#
# CORPUS is text like that which the model will see. Nine tenths of it are for training, the rest for evaluation. GENERAL is other
# English, which preserves what the corpus does not practise; by default, the example sentences of WordNet and the quotations of
# fortune(6), from Debian's packages (apt-get download, no root needed). BLIMP names files of minimal pairs for evaluating grammar.

HERE := $(dir $(abspath $(lastword $(MAKEFILE_LIST))))
OUT ?= $(abspath $(HERE)../..)/build/smollm2-sixty
include $(HERE)Makefile
.DEFAULT_GOAL := judge
.SECONDARY:
.PHONY: judge

TEXTS := $(OUT)/texts
GENERAL ?= $(TEXTS)/sentences.txt $(TEXTS)/quotations.txt
WORDS ?= $(TEXTS)/glosses.txt
GENERAL_TOKENS ?= 90000
MIN_COUNT ?= 12
FFN ?= 768
FIT_TOKENS ?= 8192
CORRECTION := --lr 1e-4 --lr-min 1e-5 --warmup 6 --batch-tokens 1024 --steps $(or $(CORRECTION_STEPS),64) --seed 7
RECOVERY := --lr 5e-4 --lr-min 2e-5 --warmup 8 --batch-tokens 2048 --steps $(or $(RECOVERY_STEPS),192) --seed 1
TASKS := $(wildcard $(RILL_ROOT)/../shared/data/blimp/*.jsonl)
BLIMP ?= $(TASKS)

# ---- texts ---------------------------------------------------------------------------------------------------------------

PACKAGES := $(TEXTS)/packages
WORDNET = $(addprefix $(PACKAGES)/usr/share/wordnet/data.,noun verb adj adv)
$(PACKAGES)/done:
	@mkdir -p $(PACKAGES)
	cd $(PACKAGES) && apt-get download --quiet=2 wordnet-base fortunes && for p in *.deb; do dpkg -x $$p . || exit 1; done && touch $@

# A line of WordNet's data ends with "| gloss; "example"; "example"". It is sorted by part of speech, so the sentences are shuffled.
gloss = sed -n 's/^[0-9].* | //p' $(WORDNET)
sentence = awk 'NF >= 5 { print toupper(substr($$0, 1, 1)) substr($$0, 2) (/[.!?]$$/ ? "" : ".") }'
$(TEXTS)/glosses.txt: $(PACKAGES)/done
	$(gloss) > $@
$(TEXTS)/sentences.txt: $(PACKAGES)/done
	$(gloss) | grep -o '"[^"]*"' | tr -d '"' | $(sentence) | shuf --random-source=$(firstword $(WORDNET)) > $@
$(TEXTS)/quotations.txt: $(PACKAGES)/done
	find $(PACKAGES)/usr/share/games/fortunes -type f ! -name '*.*' | LC_ALL=C sort | xargs awk 'BEGIN { RS = "\n%\n" } \
	    { gsub(/[[:space:]]+/, " ") } length > 60' | shuf --random-source=$(firstword $(WORDNET)) > $@

# ---- the student and its training data -------------------------------------------------------------------------------------------

# A token is kept if the texts contain it often enough; the corpus counts four times.
$(OUT)/counted.tok.rill: $(OUT)/teacher.rill $(OUT)/train.txt $(GENERAL) $(WORDS)
	cat $(foreach i,1 2 3 4,$(OUT)/train.txt) $(GENERAL) $(WORDS) | $(RILL) tokenize -q -m $< --context $(CONTEXT) - -o $@ --force
$(OUT)/fewer-words.rill: $(OUT)/teacher.rill $(OUT)/counted.tok.rill
	$(RILL) prune --vocab $(OUT)/counted.tok.rill --vocab-min-count $(MIN_COUNT) $< -o $@ --force

# $(call tokens,FILE,N): writes the first N tokens to standard output, or all if N is empty
tokens = $(RILL) tokenize -q -m $(OUT)/fewer-words.rill --context $(CONTEXT) $(if $(2),--max-tokens $(2)) $(1)
mixed = for f in $(GENERAL); do $(call tokens,$$f,$(2)) || exit 1; done > $@.part && $(call tokens,$(OUT)/train.txt,$(1)) >> $@.part && \
    $(RILL) cat -q --merge $@.part -o $@ --force && rm $@.part
$(OUT)/mixed.tok.rill: $(OUT)/fewer-words.rill $(OUT)/train.txt $(GENERAL)
	$(call mixed,,$(GENERAL_TOKENS))
$(OUT)/fit.tok.rill: $(OUT)/fewer-words.rill $(OUT)/train.txt $(GENERAL)
	$(call mixed,$(FIT_TOKENS),$$(($(FIT_TOKENS) / 2)))

$(OUT)/narrow.rill: $(OUT)/fewer-words.rill $(OUT)/fit.tok.rill
	$(RILL) prune --ffn $(FFN) --reconstruct --data $(OUT)/fit.tok.rill $< -o $@ --force

# The teacher is first fine-tuned on the texts, in the smaller vocabulary.
epochs = --shuffle --epochs 1000 --micro-tokens 1024
$(OUT)/adapted.rill: $(OUT)/fewer-words.rill $(OUT)/mixed.tok.rill
	$(RILL) distill -m $< --loss ce $(CORRECTION) $(epochs) --log $(OUT)/adapted.tsv $(OUT)/mixed.tok.rill -o $@ --force

# The student learns the teacher's predictions and the directions of its hidden states.
comma := ,
$(OUT)/sixty.rill: $(OUT)/narrow.rill $(OUT)/adapted.rill $(OUT)/mixed.tok.rill
	map=$$($(RILL) prune -q --dry-run --ffn $(FFN) $< | $(as_map)) && \
	$(RILL) distill -m $< --teacher $(OUT)/adapted.rill --loss kl --loss hidden:kind=cosine$(comma)weight=30$(comma)map=$$map \
	    $(RECOVERY) $(epochs) --log $(OUT)/sixty.tsv $(OUT)/mixed.tok.rill -o $@ --force

# ---- evaluation ------------------------------------------------------------------------------------------------------------------

# Each model uses its own tokens; the table compares bits per byte.
STEPS_OF_IT := teacher adapted fewer-words narrow sixty
$(OUT)/judged/%.json: $(OUT)/%.rill $(OUT)/heldout.txt $(BLIMP)
	@mkdir -p $(@D)
	$(RILL) tokenize -q -m $< --context $(CONTEXT) $(OUT)/heldout.txt | \
	    $(RILL) eval -m $< --context $(CONTEXT) $(BLIMP:%=--task %) - > $@.part && mv $@.part $@
judge: $(STEPS_OF_IT:%=$(OUT)/judged/%.json)
	@cd $(OUT)/judged && $(HERE)judge $(STEPS_OF_IT)
