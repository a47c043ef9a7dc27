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
GENERAL_TOKENS ?= 450000
VOCAB ?= 24576
FFN ?= 768
FIT_TOKENS ?= 8192
TRAINING := --warmup 20 --batch-tokens 1024 --micro-tokens 1024 --lr-min 1e-5 --shuffle --epochs 1000 --seed 7
ADAPTATION_STEPS ?= 64
TRAINING_STEPS ?= 1000
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

# The tokens that the texts contain most often stay; the corpus counts four times.
$(OUT)/counted.tok.rill: $(OUT)/teacher.rill $(OUT)/train.txt $(GENERAL) $(WORDS)
	cat $(foreach i,1 2 3 4,$(OUT)/train.txt) $(GENERAL) $(WORDS) | $(RILL) tokenize -q -m $< --context $(CONTEXT) - -o $@ --force
$(OUT)/fewer-words.rill: $(OUT)/teacher.rill $(OUT)/counted.tok.rill
	$(RILL) prune --vocab $(OUT)/counted.tok.rill --vocab-size $(VOCAB) $< -o $@ --force

# $(call tokens,N): the first N tokens of the text on standard input, or all if N is empty
tokens = $(RILL) tokenize -q -m $(OUT)/fewer-words.rill --context $(CONTEXT) $(if $(1),--max-tokens $(1)) -
# $(call mixed,N,M): one stream of N tokens of the corpus, or all of it, twice, if N is empty; and of M tokens of each other text
mixed = for f in $(GENERAL); do $(call tokens,$(2)) < $$f || exit 1; done > $@.part && \
    cat $(OUT)/train.txt $(OUT)/train.txt | $(call tokens,$(1)) >> $@.part && $(RILL) cat -q --merge $@.part -o $@ --force && rm $@.part
$(OUT)/fit.tok.rill: $(OUT)/fewer-words.rill $(OUT)/train.txt $(GENERAL)
	$(call mixed,$(FIT_TOKENS),$$(($(FIT_TOKENS) / 2)))
$(OUT)/training.tok.rill: $(OUT)/fewer-words.rill $(OUT)/train.txt $(GENERAL)
	$(call mixed,,$(GENERAL_TOKENS))

$(OUT)/narrow.rill: $(OUT)/fewer-words.rill $(OUT)/fit.tok.rill
	$(RILL) prune --ffn $(FFN) --reconstruct --data $(OUT)/fit.tok.rill $< -o $@ --force

# The teacher is first fine-tuned on the texts, in the smaller vocabulary.
$(OUT)/adapted.rill: $(OUT)/fewer-words.rill $(OUT)/training.tok.rill
	$(RILL) distill -m $< --loss ce --lr 1e-4 --steps $(ADAPTATION_STEPS) $(TRAINING) --log $(OUT)/adapted.tsv $(OUT)/training.tok.rill -o $@ --force

# The student learns the teacher's predictions and, after each layer, the direction of its hidden state.
$(OUT)/sixty.rill: $(OUT)/narrow.rill $(OUT)/adapted.rill $(OUT)/training.tok.rill
	$(RILL) distill -m $< --teacher $(OUT)/adapted.rill --loss kl --loss hidden:kind=cosine,weight=30,map=tail \
	    --lr 5e-4 --steps $(TRAINING_STEPS) $(TRAINING) --log $(OUT)/sixty.tsv $(OUT)/training.tok.rill -o $@ --force

# ---- evaluation ------------------------------------------------------------------------------------------------------------------

# Each model uses its own tokens; the table compares bits per byte.
STAGES_OF_IT := teacher fewer-words adapted narrow sixty
$(OUT)/judged/%.json: $(OUT)/%.rill $(OUT)/heldout.txt $(BLIMP)
	@mkdir -p $(@D)
	$(RILL) tokenize -q -m $< --context $(CONTEXT) $(OUT)/heldout.txt | \
	    $(RILL) eval -m $< --context $(CONTEXT) $(BLIMP:%=--task %) - > $@.part && mv $@.part $@
judge: $(STAGES_OF_IT:%=$(OUT)/judged/%.json)
	@cd $(OUT)/judged && $(HERE)judge $(STAGES_OF_IT)
