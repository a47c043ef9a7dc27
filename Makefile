# Rill: language-model compression with Unix filters. `make help` lists the targets.
#
#   make DEVELOPER=1                      warnings are errors
#   make CC=clang                         the other compiler
#   make SANITIZER=address,undefined      or thread, into an object folder of its own
#   make install prefix=/usr DESTDIR=/tmp/root

.DEFAULT_GOAL := all
SHELL := /bin/bash

prefix ?= /usr/local
bindir ?= $(prefix)/bin
libexecdir ?= $(prefix)/libexec/rill
mandir ?= $(prefix)/share/man/man1
bashcompdir ?= $(prefix)/share/bash-completion/completions
datadir ?= $(prefix)/share/rill

CC := $(if $(filter default undefined,$(origin CC)),gcc,$(CC))
OPT ?= -O2 -g
PKGS := libzstd libcjson libxxhash libpcre2-8 libutf8proc
OPENBLAS_DIR := $(firstword $(wildcard /usr/lib/*/openblas-openmp))
WARN := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla -Wundef -Wno-unknown-pragmas
CPPFLAGS_ALL = -I. -D_GNU_SOURCE $(shell pkg-config --cflags $(PKGS) openblas 2>/dev/null) $(CPPFLAGS)
CFLAGS_ALL = -std=c11 $(OPT) -fopenmp -fno-strict-aliasing -ffp-contract=off $(WARN) $(if $(DEVELOPER),-Werror) $(SAN_FLAGS) $(COV_FLAGS) $(CFLAGS)
LDFLAGS_ALL = -fopenmp $(SAN_FLAGS) $(COV_FLAGS) $(if $(OPENBLAS_DIR),-L$(OPENBLAS_DIR)) $(LDFLAGS)
LDLIBS = $(shell pkg-config --libs $(PKGS) 2>/dev/null) -lopenblas -lm

ifdef SANITIZER
SAN_FLAGS := -fsanitize=$(SANITIZER) -fno-omit-frame-pointer -fno-sanitize-recover=all
endif
ifdef COVERAGE
COV_FLAGS := --coverage -O0
endif

# Objects of different flags never mix: the folder's name is a digest of everything that reaches the compiler.
BUILD ?= build
comma := ,
flavour := $(shell printf '%s' '$(CC) $(OPT) $(SAN_FLAGS) $(COV_FLAGS) $(CFLAGS) $(CPPFLAGS) $(LDFLAGS) $(DEVELOPER) $(shell $(CC) -dumpfullversion -dumpversion 2>/dev/null)' | cksum | cut -d' ' -f1)
OBJ := $(BUILD)/obj-$(notdir $(CC))$(if $(SANITIZER),-$(subst $(comma),-,$(SANITIZER)))$(if $(COVERAGE),-coverage)-$(flavour)
# Only the plain build owns build/bin; the others keep their programs beside their objects.
BIN := $(if $(SANITIZER)$(COVERAGE),$(OBJ)/bin,$(BUILD)/bin)

LIB_SRC := $(wildcard lib/*/*.c)
TOOL_SRC := $(wildcard tools/*.c)
UNIT_SRC := $(wildcard tests/unit/test_*.c)
FUZZ_SRC := $(wildcard tests/fuzz/fuzz_*.c)
LIB_OBJ := $(LIB_SRC:%.c=$(OBJ)/%.o)
TOOLS := $(filter-out rill,$(TOOL_SRC:tools/%.c=%))
TOOL_BIN := $(TOOLS:%=$(BIN)/rill-%) $(if $(wildcard tools/rill.c),$(BIN)/rill)
UNIT_BIN := $(UNIT_SRC:tests/unit/%.c=$(OBJ)/unit/%)

.PHONY: all
all: $(TOOL_BIN) ## build every program into build/bin (the default)

$(OBJ)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS_ALL) $(CFLAGS_ALL) -MMD -MP -c -o $@ $<

$(OBJ)/librill.a: $(LIB_OBJ)
	@rm -f $@
	ar rcsD $@ $^

# A phony step links build/bin anew when the flavour changes.
$(BIN)/.flavour-$(flavour):
	@mkdir -p $(BIN) && rm -f $(BIN)/.flavour-* && touch $@

$(BIN)/rill: $(OBJ)/tools/rill.o $(OBJ)/librill.a $(BIN)/.flavour-$(flavour)
	$(CC) -o $@ $(OBJ)/tools/rill.o $(OBJ)/librill.a $(LDFLAGS_ALL) $(LDLIBS)

$(BIN)/rill-%: $(OBJ)/tools/%.o $(OBJ)/librill.a $(BIN)/.flavour-$(flavour)
	$(CC) -o $@ $< $(OBJ)/librill.a $(LDFLAGS_ALL) $(LDLIBS)

$(OBJ)/unit/%: $(OBJ)/tests/unit/%.o $(OBJ)/librill.a
	@mkdir -p $(@D)
	$(CC) -o $@ $^ $(LDFLAGS_ALL) $(LDLIBS) -lcmocka

.SECONDARY:
-include $(shell [ -d $(OBJ) ] && find $(OBJ) -name '*.d')

.PHONY: unit
unit: $(UNIT_BIN) ## build and run the library's unit tests
	@tests/run-unit $(UNIT_BIN)

.PHONY: cli-tests
cli-tests: all ## run the programs' tests (bats)
	RILL_BIN=$(abspath $(BIN)) bats tests/cli

.PHONY: check-deps
check-deps: ## fail on an include that is not an arrow of the architecture
	@tests/check-deps

.PHONY: clean
clean: ## remove build/
	rm -rf $(BUILD)

.PHONY: help
help: ## this list
	@grep -hE '^[a-z][a-zA-Z_-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([^:]*):.*## (.*)/  \1|\2/' | column -t -s'|'
