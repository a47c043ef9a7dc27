# Rill: language-model compression with Unix filters. `make help` lists the targets.
#
#   make DEVELOPER=1                      warnings are errors; V=1 shows the commands
#   make CC=clang                         the other compiler
#   make SANITIZER=address,undefined      or thread, into an object folder of its own; also `make test SANITIZER=...`
#   make install prefix=/usr DESTDIR=/tmp/root     PREFIX= is taken too

.DEFAULT_GOAL := all
SHELL := /bin/bash

prefix ?= $(or $(PREFIX),/usr/local)
bindir ?= $(prefix)/bin
libexecdir ?= $(prefix)/libexec/rill
mandir ?= $(prefix)/share/man
docdir ?= $(prefix)/share/doc/rill
bashcompdir ?= $(prefix)/share/bash-completion/completions
zshcompdir ?= $(prefix)/share/zsh/site-functions
fishcompdir ?= $(prefix)/share/fish/vendor_completions.d
datadir ?= $(prefix)/share/rill

CC := $(if $(filter default undefined,$(origin CC)),gcc,$(CC))
OPT ?= -O2 -g
PKGS := libzstd libcjson libxxhash libpcre2-8 libutf8proc
WARN := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla -Wundef -Wno-unknown-pragmas -Wno-missing-field-initializers
CPPFLAGS_ALL = -I. -D_GNU_SOURCE $(shell pkg-config --cflags $(PKGS) 2>/dev/null) $(CPPFLAGS)
CFLAGS_ALL = -std=c11 $(OPT) -fno-strict-aliasing -ffp-contract=off $(WARN) $(if $(DEVELOPER),-Werror) $(SAN_FLAGS) $(COV_FLAGS) $(CFLAGS)
LDFLAGS_ALL = $(SAN_FLAGS) $(COV_FLAGS) $(LDFLAGS)
LDLIBS = $(shell pkg-config --libs $(PKGS) 2>/dev/null) -lm

ifdef SANITIZER
SAN_FLAGS := -fsanitize=$(SANITIZER) -fno-omit-frame-pointer -fno-sanitize-recover=all
endif
ifdef COVERAGE
COV_FLAGS := --coverage -O0
endif

# Objects of different flags never mix: the folder's name is a digest of everything that reaches the compiler.
BUILD ?= build
comma := ,
flavour := $(shell printf '%s' '$(CC) $(OPT) $(SAN_FLAGS) $(COV_FLAGS) $(CFLAGS) $(CPPFLAGS) $(LDFLAGS) $(DEVELOPER) $(MODULES) $(shell $(CC) -dumpfullversion -dumpversion 2>/dev/null)' | cksum | cut -d' ' -f1)
OBJ := $(BUILD)/obj-$(notdir $(CC))$(if $(SANITIZER),-$(subst $(comma),-,$(SANITIZER)))$(if $(COVERAGE),-coverage)-$(flavour)
# Only the plain build owns build/bin; the others keep their programs beside their objects.
BIN := $(if $(SANITIZER)$(COVERAGE),$(OBJ)/bin,$(BUILD)/bin)

# MODULES="base text": of the library only these
LIB_SRC := $(wildcard $(if $(MODULES),$(MODULES:%=lib/%/*.c),lib/*/*.c))
TOOL_SRC := $(wildcard tools/*.c)
UNIT_SRC := $(wildcard tests/unit/test_*.c)
FUZZ_SRC := $(wildcard tests/fuzz/fuzz_*.c)
LIB_OBJ := $(LIB_SRC:%.c=$(OBJ)/%.o)
TOOLS := $(filter-out rill,$(TOOL_SRC:tools/%.c=%))
TOOL_BIN := $(TOOLS:%=$(BIN)/rill-%) $(if $(wildcard tools/rill.c),$(BIN)/rill)
UNIT_BIN := $(UNIT_SRC:tests/unit/%.c=$(OBJ)/unit/%)
MODEL_TESTS := $(patsubst tests/models/%.c,$(OBJ)/models/%,$(wildcard tests/models/*.c))
FUZZ := $(FUZZ_SRC:tests/fuzz/fuzz_%.c=%)
FUZZ_BIN := $(FUZZ:%=$(OBJ)/fuzz/%)
# One short line for each command; V=1 shows them whole.
run = $(if $(V),,@$(if $(findstring s,$(firstword -$(MAKEFLAGS))),,printf '%-4s %s\n' $(1) $(2);))
FORMATTED := $(wildcard lib/*/*.[ch] tools/*.[ch] tests/*/*.[ch] examples/*/*.[ch])

.PHONY: all
all: $(TOOL_BIN) ## build every program into build/bin (the default)

$(OBJ)/%.o: %.c
	@mkdir -p $(@D)
	$(call run,CC,$@) $(CC) $(CPPFLAGS_ALL) $(CFLAGS_ALL) -MMD -MP -c -o $@ $<

# The list is a prerequisite too: a source file that is gone must leave the archive.
$(OBJ)/sources: FORCE
	@mkdir -p $(@D) && echo '$(LIB_OBJ)' | cmp -s - $@ || echo '$(LIB_OBJ)' >$@
.PHONY: FORCE
FORCE:

$(OBJ)/librill.a: $(LIB_OBJ) $(OBJ)/sources
	@rm -f $@
	$(call run,AR,$@) ar rcsD $@ $(LIB_OBJ)

# A stamp named after the flavour links build/bin anew when the flavour changes.
$(BIN)/.flavour-$(flavour):
	@mkdir -p $(BIN) && rm -f $(BIN)/.flavour-* && touch $@

$(BIN)/rill: $(OBJ)/tools/rill.o $(OBJ)/librill.a $(BIN)/.flavour-$(flavour)
	$(call run,LD,$@) $(CC) -o $@ $(OBJ)/tools/rill.o $(OBJ)/librill.a $(LDFLAGS_ALL) $(LDLIBS)

$(BIN)/rill-%: $(OBJ)/tools/%.o $(OBJ)/librill.a $(BIN)/.flavour-$(flavour)
	$(call run,LD,$@) $(CC) -o $@ $< $(OBJ)/librill.a $(LDFLAGS_ALL) $(LDLIBS)

# The library is what is tested: its tests are compiled with what optimization is quick and debuggers like.
$(OBJ)/tests/unit/%.o: CFLAGS_ALL += $(if $(COVERAGE),,-Og)
$(OBJ)/unit/%: $(OBJ)/tests/unit/%.o $(OBJ)/librill.a
	@mkdir -p $(@D)
	$(call run,LD,$@) $(CC) -o $@ $^ $(LDFLAGS_ALL) $(LDLIBS) -lcmocka

# A fuzz target with a main() that replays files; works with every compiler and is what `make test` runs.
$(OBJ)/fuzz/%: $(OBJ)/tests/fuzz/fuzz_%.o $(OBJ)/tests/fuzz/replay.o $(OBJ)/librill.a
	@mkdir -p $(@D)
	$(call run,LD,$@) $(CC) -o $@ $^ $(LDFLAGS_ALL) $(LDLIBS)

# Beside the programs of the same flavour, where tests/cli/common.bash looks for it.
FIXTURE := $(BIN)/fixture/rill-fixture
$(FIXTURE): $(OBJ)/tests/fixture/fixture.o $(OBJ)/librill.a $(BIN)/.flavour-$(flavour)
	@mkdir -p $(@D)
	$(call run,LD,$@) $(CC) -o $@ $< $(OBJ)/librill.a $(LDFLAGS_ALL) $(LDLIBS)

# The template of a filter, as it would be built by its author; tests/cli/filter.bats runs it.
EXAMPLE := $(BIN)/example/rill-clip
$(BIN)/example/rill-%: $(OBJ)/examples/filter/rill-%.o $(OBJ)/librill.a $(BIN)/.flavour-$(flavour)
	@mkdir -p $(@D)
	$(call run,LD,$@) $(CC) -o $@ $< $(OBJ)/librill.a $(LDFLAGS_ALL) $(LDLIBS)

# Only a peer here: bench_kernel times it, in the build without threads of its own where Debian has it, if it is installed.
OPENBLAS_DIR := $(firstword $(wildcard /usr/lib/*/openblas-openmp))
OPENBLAS := $(shell pkg-config --exists openblas 2>/dev/null && echo yes)
$(OBJ)/tests/bench/bench_kernel.o: CPPFLAGS_ALL += $(if $(OPENBLAS),-DRILL_BENCH_OPENBLAS $(shell pkg-config --cflags openblas))
$(BIN)/bench/bench_kernel: LDLIBS += $(if $(OPENBLAS),$(if $(OPENBLAS_DIR),-L$(OPENBLAS_DIR)) -lopenblas)

BENCH_BIN := $(BIN)/bench/bench_hardware $(BIN)/bench/stopwatch
BENCH_SHARED := $(OBJ)/tests/bench/registers.o $(OBJ)/tests/bench/products.o
$(BIN)/bench/%: $(OBJ)/tests/bench/%.o $(BENCH_SHARED) $(OBJ)/librill.a $(BIN)/.flavour-$(flavour)
	@mkdir -p $(@D)
	$(call run,LD,$@) $(CC) -o $@ $< $(BENCH_SHARED) $(OBJ)/librill.a $(LDFLAGS_ALL) $(LDLIBS)

$(OBJ)/faults.so: tests/faults/faults.c
	@mkdir -p $(@D)
	$(call run,LD,$@) $(CC) -I. -D_GNU_SOURCE -std=c11 -O2 -g $(WARN) $(if $(DEVELOPER),-Werror) -shared -fPIC -o $@ $< -ldl

.SECONDARY:
-include $(shell [ -d $(OBJ) ] && find $(OBJ) -name '*.d')

# ---- tests ------------------------------------------------------------------------------------------------------------

.PHONY: deps
deps: ## install what is missing (Debian, Ubuntu; elsewhere it prints the packages)
	@CC='$(CC)' tests/install-deps

# The fuzz targets run under the sanitizers, with the modules that they link and the kernel's portable path: the sanitizer sees each of
# its accesses, and none of the masked ones of the wide paths. This is compiled once and runs for seconds, so that only what runs for
# more than one is optimized, and it has line numbers alone.
FUZZED := base tensor stream text chat kernel grad arch model knowledge metrics formats recipe cli
fuzzed := SANITIZER=$(or $(SANITIZER),address$(comma)undefined) \
    $(if $(SANITIZER),,OPT='-O0 -g1' CPPFLAGS='$(CPPFLAGS) -DKERNEL_PORTABLE' MODULES='$(FUZZED)')
ifdef MODULES
$(OBJ)/lib/base/%.o $(OBJ)/lib/text/%.o: CFLAGS_ALL += -O1
endif
# With no -j of the user's, all cores.
submake = $(MAKE) --no-print-directory $(if $(findstring -j,$(MAKEFLAGS)),,-j$(shell nproc))

.PHONY: test
test: deps ## every test; the last line counts them
	@$(submake) test-programs
	@$(submake) check-cycles
	@$(submake) $(fuzzed) fuzz-programs
	@FUZZ_BIN="$$($(MAKE) -s --no-print-directory $(fuzzed) list-fuzz)" RILL_BIN=$(abspath $(BIN)) \
	    FAULTS=$(if $(SANITIZER),,$(abspath $(OBJ)/faults.so)) tests/run-all $(UNIT_BIN)

.PHONY: test-programs fuzz-programs list-fuzz
test-programs: all $(UNIT_BIN) $(FIXTURE) $(EXAMPLE) $(BENCH_BIN) $(OBJ)/faults.so $(MODEL_TESTS)
fuzz-programs: $(FUZZ_BIN)
list-fuzz:
	@echo $(abspath $(FUZZ_BIN))

.PHONY: unit
unit: $(UNIT_BIN) ## build and run the library's unit tests
	@tests/run-unit $(UNIT_BIN)

.PHONY: cli-tests
cli-tests: all $(FIXTURE) $(EXAMPLE) $(BENCH_BIN) $(OBJ)/faults.so ## run the programs' tests (bats); T=prune runs one file
	@RILL_BIN=$(abspath $(BIN)) FAULTS=$(if $(SANITIZER),,$(abspath $(OBJ)/faults.so)) tests/run-bats $(or $(T:%=tests/cli/%.bats),$(wildcard tests/cli/*.bats))

.PHONY: test-models
test-models: deps $(MODEL_TESTS) ## compare with transformers on real models (make -f examples/models.mk smollm2 minilm gemma3 fetches them)
	@tests/run-unit $(MODEL_TESTS)
$(OBJ)/models/%: $(OBJ)/tests/models/%.o $(OBJ)/librill.a
	@mkdir -p $(@D)
	$(call run,LD,$@) $(CC) -o $@ $^ $(LDFLAGS_ALL) $(LDLIBS) -lcmocka

.PHONY: freeze
freeze: all ## record every program's options in tests/golden/cli, which a test compares
	@mkdir -p tests/golden/cli && rm -f tests/golden/cli/*
	@for p in $(TOOLS); do $(BIN)/rill-$$p --help-options >tests/golden/cli/$$p; done

.PHONY: test-amx
test-amx: ## run the micro-kernel for AMX on an emulated CPU (Bochs 3, see tests/amx/run); for machines without AMX
	@tests/amx/run

.PHONY: fuzz-replay
fuzz-replay: $(FUZZ_BIN) ## replay the fuzz corpora and seeded mutations of them (best with SANITIZER=address,undefined)
	@tests/run-fuzz $(FUZZ_BIN)

.PHONY: fuzz
fuzz: ## fuzz for real with clang's libFuzzer: TARGET=name SECONDS=60, all targets without TARGET
	@tests/fuzz-long "$(or $(TARGET),$(FUZZ))" "$(or $(SECONDS),60)"

# libFuzzer brings its own main and wants the whole library instrumented.
.PHONY: libfuzzer-programs
libfuzzer-programs: $(FUZZ:%=$(OBJ)/libfuzzer/%)
	@echo $(OBJ)/libfuzzer
$(OBJ)/libfuzzer/%: $(OBJ)/tests/fuzz/fuzz_%.o $(OBJ)/librill.a
	@mkdir -p $(@D)
	$(call run,LD,$@) $(CC) -o $@ $^ $(LDFLAGS_ALL) -fsanitize=fuzzer $(LDLIBS)

.PHONY: coverage
coverage: ## line coverage of the unit and program tests (gcovr shows it when installed)
	@$(MAKE) --no-print-directory COVERAGE=1 coverage-run
.PHONY: coverage-run
coverage-run: $(UNIT_BIN) all $(FIXTURE) $(EXAMPLE) $(BENCH_BIN)
	@find $(OBJ) -name '*.gcda' -delete
	-@tests/run-unit $(UNIT_BIN)
	-@RILL_BIN=$(abspath $(BIN)) tests/run-bats $(wildcard tests/cli/*.bats)
	@if command -v gcovr >/dev/null; then gcovr --root . --filter 'lib/' --filter 'tools/' $(OBJ); \
	else echo 'coverage: gcovr is not installed; the .gcda files are in $(OBJ)'; fi

.PHONY: bench
bench: all $(BENCH_BIN) ## measure speed against the peers that are installed: BENCH="tokenize ls" MODEL=PATH PEER_PYTHON=PATH LLAMA_BIN=DIR
	@RILL_BIN=$(abspath $(BIN)) BENCH_OUT=$(abspath $(BUILD))/bench MODEL='$(MODEL)' tests/bench/run $(BENCH)

.PHONY: bench-quant
bench-quant: all $(BENCH_BIN) ## every quantization type by every method, judged by divergence, with curves over sizes: MODEL=PATH CALIBRATION=FILE TEST=FILE LLAMA_BIN=DIR PICTURE=FILE
	@RILL_BIN=$(abspath $(BIN)) BENCH_OUT=$(abspath $(BUILD))/bench MODEL='$(MODEL)' tests/bench/quant

.PHONY: bench-kernel
bench-kernel: $(BIN)/bench/bench_kernel $(BIN)/bench/bench_bf16 $(BIN)/bench/bench_layers ## time the kernels, products against plain OpenBLAS and the hardware's limit; THREADS=1 counts processor time
	@$(BIN)/bench/bench_bf16 $(THREADS)
	@$(BIN)/bench/bench_layers $(THREADS)
	@$(if $(PEER_PYTHON),$(PEER_PYTHON) tests/bench/peers/torch_linear.py $(THREADS),true)
	@$(BIN)/bench/bench_kernel $(THREADS)

.PHONY: demo
demo: deps ## read, teach, prune, distill, quantize and judge a model; MODEL=PATH takes yours
	@$(MAKE) --no-print-directory all
	@$(MAKE) --no-print-directory -C examples/demo RILL=$(abspath $(BIN))/rill OUT=$(abspath $(BUILD))/demo

# ---- the source -------------------------------------------------------------------------------------------------------

.PHONY: check-deps
check-deps: ## fail on an include that is not an arrow of the architecture
	@tests/check-deps

.PHONY: check-cycles
check-cycles: $(LIB_OBJ) ## fail on files of a module that refer to each other in a circle; `make test` does it too
	@tests/check-cycles $(LIB_OBJ)

CLANG_FORMAT ?= $(firstword $(foreach p,clang-format-14 clang-format,$(if $(shell command -v $p),$p)))
.PHONY: format
format: ## lay the source out with clang-format 14
	$(CLANG_FORMAT) -i $(FORMATTED)

.PHONY: check-format
check-format: ## fail on source that clang-format 14 would change
	@if [ -z '$(CLANG_FORMAT)' ]; then echo 'check-format: clang-format is not installed: skipped'; \
	elif ! $(CLANG_FORMAT) --version | grep -q 'version 14\.'; then echo 'check-format: clang-format 14 is not installed: skipped'; \
	else $(CLANG_FORMAT) --dry-run -Werror $(FORMATTED); fi

.PHONY: lint
lint: ## cppcheck, clang-tidy and shellcheck, those that are installed
	@CPPFLAGS='$(CPPFLAGS_ALL)' tests/lint

# ---- installing -------------------------------------------------------------------------------------------------------

MAN := $(TOOLS:%=$(BUILD)/man/rill-%.1) $(BUILD)/man/rill.1
PAGES := $(wildcard docs/*.5 docs/*.7)
$(BUILD)/man/%.1: $(BIN)/%
	@mkdir -p $(@D)
	@$< --help-man >$@.tmp && mv $@.tmp $@
$(BUILD)/man/rill.1: $(TOOL_BIN)
COMPLETIONS := $(BUILD)/rill.bash $(BUILD)/rill.zsh $(BUILD)/rill.fish
$(COMPLETIONS): $(BUILD)/rill.%: $(TOOL_BIN)
	@$(BIN)/rill --help-$* >$@.tmp && mv $@.tmp $@

.PHONY: man
man: $(MAN) ## the programs' manual pages, in build/man; docs has those of the concepts and the format

one-prefix = $(if $(and $(PREFIX),$(filter-out $(prefix),$(PREFIX))),$(error prefix=$(prefix) and PREFIX=$(PREFIX) disagree))

.PHONY: install
install: all man $(COMPLETIONS) ## install under prefix= or PREFIX= (/usr/local), below DESTDIR=
	$(one-prefix)
	install -d $(DESTDIR)$(bindir) $(DESTDIR)$(libexecdir) $(DESTDIR)$(docdir)/formats $(foreach s,1 5 7,$(DESTDIR)$(mandir)/man$s)
	install -d $(DESTDIR)$(bashcompdir) $(DESTDIR)$(zshcompdir) $(DESTDIR)$(fishcompdir)
	install -m 755 $(BIN)/rill $(DESTDIR)$(bindir)/rill
	install -m 755 $(TOOLS:%=$(BIN)/rill-%) $(DESTDIR)$(libexecdir)
	$(foreach s,1 5 7,install -m 644 $(filter %.$s,$(MAN) $(PAGES)) $(DESTDIR)$(mandir)/man$s && )true
	install -m 644 formats/*.md $(DESTDIR)$(docdir)/formats
	install -m 644 $(BUILD)/rill.bash $(DESTDIR)$(bashcompdir)/rill
	install -m 644 $(BUILD)/rill.zsh $(DESTDIR)$(zshcompdir)/_rill
	install -m 644 $(BUILD)/rill.fish $(DESTDIR)$(fishcompdir)/rill.fish
	$(if $(wildcard examples/rill.mk),install -D -m 644 examples/rill.mk $(DESTDIR)$(datadir)/rill.mk)
	@echo 'installed: $(DESTDIR)$(bindir)/rill, its programs in $(DESTDIR)$(libexecdir), manual pages in $(DESTDIR)$(mandir)'

.PHONY: uninstall
uninstall: ## remove what install installed
	$(one-prefix)
	rm -f $(DESTDIR)$(bindir)/rill $(TOOLS:%=$(DESTDIR)$(libexecdir)/rill-%) $(DESTDIR)$(bashcompdir)/rill $(DESTDIR)$(datadir)/rill.mk
	rm -f $(DESTDIR)$(zshcompdir)/_rill $(DESTDIR)$(fishcompdir)/rill.fish
	rm -f $(foreach s,1 5 7,$(patsubst %,$(DESTDIR)$(mandir)/man$s/%,$(notdir $(filter %.$s,$(MAN) $(PAGES)))))
	rm -f $(patsubst %,$(DESTDIR)$(docdir)/%,$(wildcard formats/*.md))
	-rmdir $(DESTDIR)$(libexecdir) $(DESTDIR)$(datadir) $(DESTDIR)$(docdir)/formats $(DESTDIR)$(docdir) 2>/dev/null

.PHONY: clean
clean: ## remove build/
	rm -rf $(BUILD)

.PHONY: help
help: ## this list
	@grep -hE '^[a-z][a-zA-Z_-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([^:]*):.*## (.*)/  \1|\2/' | column -t -s'|'
