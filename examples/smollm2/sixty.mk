# SmolLM2-135M with 60% of its parameters: a smaller vocabulary, narrower feed-forward layers, and an hour of training on two cores to
# recover. README.md has the results.
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
GENERAL_TOKENS ?= 100000
MIN_COUNT ?= 12
FFN ?= 768
FIT_TOKENS ?= 8192
ADAPTATION := --lr 1e-4 --lr-min 1e-5 --warmup 6 --batch-tokens 1024 --steps $(or $(ADAPTATION_STEPS),64) --seed 7
# for the three rounds of training
RATES ?= 5e-4 4e-4 3e-4
STEPS_PER_ROUND ?= 96 128 144
BLIMP ?= $(wildcard $(RILL_ROOT)/../shared/data/blimp/*.jsonl)

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

# $(call tokens,N): the first N tokens of the text on standard input, or all if N is empty
tokens = $(RILL) tokenize -q -m $(OUT)/fewer-words.rill --context $(CONTEXT) $(if $(1),--max-tokens $(1)) -
# $(call mixed,N,M,LINES): one stream of N tokens of the corpus and M of each other text, from its lines that awk's LINES selects
mixed = for f in $(GENERAL); do awk '$(3)' $$f | $(call tokens,$(2)) || exit 1; done > $@.part && \
    $(call tokens,$(1)) < $(OUT)/train.txt >> $@.part && $(RILL) cat -q --merge $@.part -o $@ --force && rm $@.part
$(OUT)/fit.tok.rill: $(OUT)/fewer-words.rill $(OUT)/train.txt $(GENERAL)
	$(call mixed,$(FIT_TOKENS),$$(($(FIT_TOKENS) / 2)),1)
# Each round sees all of the corpus, and different lines of the other texts.
$(OUT)/round%.tok.rill: $(OUT)/fewer-words.rill $(OUT)/train.txt $(GENERAL)
	$(call mixed,,$(GENERAL_TOKENS),NR % 3 == $* - 1)

$(OUT)/narrow.rill: $(OUT)/fewer-words.rill $(OUT)/fit.tok.rill
	$(RILL) prune --ffn $(FFN) --reconstruct --data $(OUT)/fit.tok.rill $< -o $@ --force

# The teacher is first fine-tuned on the texts, in the smaller vocabulary.
epochs = --shuffle --epochs 1000 --micro-tokens 1024
$(OUT)/adapted.rill: $(OUT)/fewer-words.rill $(OUT)/round1.tok.rill
	$(RILL) distill -m $< --loss ce $(ADAPTATION) $(epochs) --log $(OUT)/adapted.tsv $(OUT)/round1.tok.rill -o $@ --force

$(OUT)/narrow.map: $(OUT)/fewer-words.rill
	$(RILL) prune -q --dry-run --ffn $(FFN) $< | $(as_map) > $@

# $(call trained,FROM,ROUND): the student learns the teacher's predictions and the directions of its hidden states.
comma := ,
trained = $(RILL) distill -m $(1) --teacher $(OUT)/adapted.rill --loss kl --loss hidden:kind=cosine$(comma)weight=30$(comma)map=$$(cat $(OUT)/narrow.map) \
    --lr $(word $(2),$(RATES)) --lr-min 1e-5 --warmup 6 --batch-tokens 2048 --steps $(word $(2),$(STEPS_PER_ROUND)) --seed $(2) $(epochs) \
    --log $(@:.rill=.tsv) $(OUT)/round$(2).tok.rill -o $@ --force
$(OUT)/round1.rill: $(OUT)/narrow.rill $(OUT)/narrow.map $(OUT)/adapted.rill $(OUT)/round1.tok.rill
	$(call trained,$<,1)
$(OUT)/round2.rill: $(OUT)/round1.rill $(OUT)/narrow.map $(OUT)/adapted.rill $(OUT)/round2.tok.rill
	$(call trained,$<,2)
$(OUT)/sixty.rill: $(OUT)/round2.rill $(OUT)/narrow.map $(OUT)/adapted.rill $(OUT)/round3.tok.rill
	$(call trained,$<,3)

# ---- evaluation ------------------------------------------------------------------------------------------------------------------

# Each model uses its own tokens; the table compares bits per byte.
STAGES_OF_IT := teacher adapted fewer-words narrow round1 round2 sixty
$(OUT)/judged/%.json: $(OUT)/%.rill $(OUT)/heldout.txt $(BLIMP)
	@mkdir -p $(@D)
	$(RILL) tokenize -q -m $< --context $(CONTEXT) $(OUT)/heldout.txt | \
	    $(RILL) eval -m $< --context $(CONTEXT) $(BLIMP:%=--task %) - > $@.part && mv $@.part $@
judge: $(STAGES_OF_IT:%=$(OUT)/judged/%.json)
	@cd $(OUT)/judged && $(HERE)judge $(STAGES_OF_IT)
