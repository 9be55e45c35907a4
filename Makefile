# Every target works as the first command in a fresh clone: what is missing (Deno, npm packages, the native library) is
# fetched or built on the way. Needed on the machine: g++, node and npm. With nvcc 13 there is a CUDA library, too.
#
#   make          build everything            make demo    META-LORA beside plain LoRA, in minutes
#   make test     all tests                   make check   the gate: format, lint, types, docs, tests
#   make bench    benchmarks                  make dist    dist/metalora, everything in one executable
#   make test-gpu all tests of a GPU, on a machine that has one, with compute-sanitizer
#   make clean    remove what was built, keep what was fetched
#
#   DENO=/path/to/deno   use this Deno instead of the pinned one     ARGS="…"   more arguments for `make demo` and `make test`
#   DENORT_BIN=/path/to/denort   the runtime inside dist/metalora, where Deno cannot download it

MACHINE := $(shell uname -m)
DENO_VERSION := $(shell awk '$$1 == "$(MACHINE)" { print $$3 }' bootstrap/deno.pins)
PINNED_DENO := $(CURDIR)/.tools/deno-$(or $(DENO_VERSION),unknown)/deno
DENO ?= $(PINNED_DENO)
PACKAGES := node_modules/.installed
LIBRARY := build/libmetalora_cpu.so
# What metalora itself needs.
ALLOW := $(addprefix --allow-,ffi read write env sys net run)

ifneq ($(DENO),$(PINNED_DENO))
  FOUND_DENO := $(shell command -v $(DENO))
  ifeq ($(FOUND_DENO),)
    $(error Cannot use DENO=$(DENO): there is no such program. Leave DENO out to use the pinned one)
  endif
  override DENO := $(FOUND_DENO)
endif

# `deno task` and the tests start other Deno processes: all of them are this one.
export PATH := $(dir $(DENO)):$(PATH)
# npm's own settings (registry, a company's certificates) hold for Deno's downloads, too.
export DENO_TLS_CA_STORE ?= system,mozilla
export DENO_NO_UPDATE_CHECK := 1
export DENO_NO_PROMPT := 1

.DEFAULT_GOAL := all
# As many compilers at once as there are cores, unless -j is given.
ifeq ($(filter -j%,$(MAKEFLAGS)),)
  MAKEFLAGS += -j$(shell nproc)
endif
.DELETE_ON_ERROR:
.PHONY: all demo dist test check bench doc clean distclean

# Checked while the Makefile is read, so that it is the first and only message, also with make -j.
ifneq ($(filter-out clean distclean,$(or $(MAKECMDGOALS),all)),)
  MISSING := $(shell sh bootstrap/tools.sh $(or $(CXX:default=),g++) $(if $(wildcard $(DENO)),,node npm))
  ifneq ($(MISSING),)
    $(error $(MISSING))
  endif
endif

all: $(DENO) $(PACKAGES) $(LIBRARY)

include kernels/kernels.mk

$(PINNED_DENO): bootstrap/deno.pins bootstrap/deno.sh
	@sh bootstrap/deno.sh $(@D) $(MACHINE)
	@touch $@

$(PACKAGES): deno.json deno.lock | $(DENO)
	@if command -v npm >/dev/null && [ -z "$$NPM_CONFIG_REGISTRY" ]; then NPM_CONFIG_REGISTRY=$$(npm config get registry 2>/dev/null); export NPM_CONFIG_REGISTRY; fi; \
	$(DENO) install --quiet --frozen
	@touch $@

demo: all
	$(DENO) task --quiet metalora demo $(ARGS)

dist: all $(CUDA_WHERE_NVCC)
	@$(DENO) run --quiet $(addprefix --allow-,read write env run) bootstrap/dist.ts $(ARGS)

test: all $(CUDA_WHERE_NVCC) $(if $(CUDA_WHERE_NVCC),stand-ins)
	@$(DENO) run --quiet $(ALLOW) tests/run.ts $(ARGS)

check: all
	$(DENO) fmt --check --quiet
	$(DENO) lint --quiet
	$(DENO) check --quiet
	$(MAKE) --no-print-directory doc
	$(MAKE) --no-print-directory test

# Everything exported is documented, and the examples in docstrings run.
doc: all
	$(DENO) run --quiet --allow-read --allow-run bootstrap/docs.ts
	$(DENO) test --doc --quiet --permit-no-files $(ALLOW) lib/ ffi/

# Each tests/bench/NAME_bench.ts prints its own table, the peer beside us where there is one.
bench: all bench-gemm
	@set -e; for each in $(wildcard tests/bench/*_bench.ts); do echo; echo "== $$each"; $(DENO) run --quiet $(ALLOW) $$each $(ARGS); done

clean:
	rm -rf build coverage dist runs/demo

distclean: clean
	rm -rf .tools node_modules
