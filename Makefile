# One command for each thing; `make help` lists them. Each sets up what it needs: virtual environments under .venv*,
# everything else under build/.

SHELL := bash
.SHELLFLAGS := -o pipefail -c

PYTHON ?= python3
CLANG ?= clang
AARCH64_CC ?= aarch64-linux-gnu-gcc
QEMU ?= qemu-aarch64 -L /usr/aarch64-linux-gnu
# Of pyproject.toml: `make test EXTRAS=test,torch,keras,onnx` compares with PyTorch, Keras and ONNX Runtime too.
EXTRAS ?= test
# Arguments for pytest, the benchmark or the demo: `make test ARGS="-k stream -x"`.
ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo build test test-c strict asan asan-python tsan neon neon-kernels ulp coverage bench bench-smoke accelerate peers instructions lint \
	format typecheck dist clean

help: ## what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

# --- Python -----------------------------------------------------------------------------------------------------

PIP := -m pip --disable-pip-version-check
comma := ,
TEST_VENV = .venv-test/.made-$(subst $(comma),-,$(EXTRAS))
SOURCES := $(wildcard setup.py pyproject.toml csrc/*.[ch] csrc/kernels/*.[ch] csrc/kernels/*.inc fastlstm/*.py*)

define venv # path, what to install
	test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	$(1)/bin/python $(PIP) install -q $(2)
endef

.venv/.built: $(SOURCES)
	@echo "building the core, a minute or two"
	$(call venv,.venv,-e .)
	@touch $@

build: .venv/.built ## the package in .venv, editable

demo: build ## install, then read a real text with the model that comes along
	@.venv/bin/fastlstm demo $(ARGS)

.venv-test/bin/python:
	$(PYTHON) -m venv .venv-test

# Built afresh: no module that an earlier build left behind gets into the wheel.
build/wheel/.built: $(SOURCES) $(wildcard fastlstm/_bench/*.py fastlstm/_bench/*/*.py fastlstm/data/*) | .venv-test/bin/python
	@echo "building the wheel, a minute or two"
	rm -rf build/lib build/lib.* build/wheel
	.venv-test/bin/python $(PIP) wheel -q --no-deps -w build/wheel .
	@touch $@

$(TEST_VENV): build/wheel/.built
	.venv-test/bin/python $(PIP) install -q --force-reinstall --no-deps build/wheel/*.whl
	.venv-test/bin/python $(PIP) install -q "$$(echo build/wheel/*.whl)[$(EXTRAS)]"
	@touch $@

# From outside the source tree, against the wheel: what is tested is what users install.
test: $(TEST_VENV) ## the tests, against the installed wheel in a virtual environment of its own
	@mkdir -p build/outside
	cd build/outside && FASTLSTM_TEST_INSTALLED=1 ../../.venv-test/bin/pytest -q $(CURDIR)/tests $(ARGS)

# --- C ----------------------------------------------------------------------------------------------------------

CORE := $(wildcard csrc/*.c csrc/kernels/*.c)
CORE_HEADERS := $(wildcard csrc/*.h csrc/kernels/*.h csrc/kernels/*.inc)
C_FILES := $(CORE) $(filter %.h,$(CORE_HEADERS)) $(wildcard tests/c/*.[ch] bench/*.c)
WARNINGS := -std=c11 -Wall -Wextra -Werror
# vectors has a target of its own; ulp has too, and runs a sample in test-c.
C_TESTS := $(filter-out ulp vectors,$(basename $(notdir $(wildcard tests/c/*.c))))
# Without variable tracking, which takes minutes on instrumented kernels.
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -fno-var-tracking

# The core as a library, and the programs of tests/c with it, in several flavours side by side.
define flavour # name, compiler, flags
build/c/$(1)/core/%.o: csrc/%.c $$(CORE_HEADERS) Makefile
	@mkdir -p $$(@D)
	$(2) $$(WARNINGS) $(3) -Icsrc -c $$< -o $$@
build/c/$(1)/libfastlstm.a: $$(CORE:csrc/%.c=build/c/$(1)/core/%.o)
	rm -f $$@ && ar rcs $$@ $$^
build/c/$(1)/%: tests/c/%.c $$(wildcard tests/c/*.h) build/c/$(1)/libfastlstm.a
	$(2) $$(WARNINGS) $(3) -Icsrc $$< build/c/$(1)/libfastlstm.a -pthread -lm -o $$@
build/c/$(1)/%: bench/%.c build/c/$(1)/libfastlstm.a
	$(2) $$(WARNINGS) $(3) -Icsrc $$< build/c/$(1)/libfastlstm.a -pthread -lm -o $$@
endef
$(eval $(call flavour,plain,$(CC),-O2 -g))
# -g1: to follow variables through unrolled kernels takes gcc minutes.
$(eval $(call flavour,asan,$(CC),-O1 -g1 $(SANITIZE)))
$(eval $(call flavour,tsan,$(CC),-O1 -g1 -fsanitize=thread))
$(eval $(call flavour,neon,$(AARCH64_CC),-O2 -g))
$(eval $(call flavour,coverage,$(CC),-O0 -g --coverage))
programs = $(C_TESTS:%=build/c/$(1)/%)
run_each = @set -e; for program in $(1); do echo "$$program"; $$program; done

define strict_library # compiler
build/c/strict/libfastlstm-$(notdir $(1)).so: $$(CORE) $$(CORE_HEADERS)
	@mkdir -p $$(@D)
	@(set -x; $(1) -std=c11 -O2 -Wall -Wextra -Werror -fPIC -shared -o $$@ csrc/*.c csrc/kernels/*.c -pthread -lm)
	@strays=$$$$(nm -D --defined-only $$@ | awk '$$$$2 ~ /[A-Z]/ && $$$$3 !~ /^(fl_|_init$$$$|_fini$$$$)/ { print $$$$3 }'); \
	test -z "$$$$strays" || { echo "without fl_: $$$$strays"; exit 1; }
endef
$(foreach compiler,$(CC) $(CLANG),$(eval $(call strict_library,$(compiler))))

# The C files alone, no build system, gcc and clang, all warnings are errors; no symbol without fl_.
strict: $(foreach compiler,$(CC) $(CLANG),build/c/strict/libfastlstm-$(notdir $(compiler)).so) ## the C files alone, gcc and clang: no warning, no stray symbol

test-c: $(call programs,plain) build/c/plain/ulp ## the C programs of tests/c
	$(call run_each,$^)

asan: $(call programs,asan) ## the same under AddressSanitizer and UBSan
	$(call run_each,$^)

tsan: $(filter %threads %linear %pool %stress,$(call programs,tsan)) ## the C thread tests under ThreadSanitizer
	$(call run_each,$^)

# What never reaches the core, or starts another program that loads it, is left out.
ASAN_TESTS := $(addprefix --ignore=$(CURDIR)/tests/test_,$(addsuffix .py,reference typing readme package bench cli demo same_bits \
	same_bits_backward oracle_bites c source_rules losses optimizers ngram train examples compare_training verify convert)) \
	$(addprefix --ignore-glob=$(CURDIR)/tests/test_,*torch*.py *keras*.py *onnx*.py)
# The extension and the package in a folder of their own, under both sanitizers; without torch, which is not built for it.
asan-python: $(TEST_VENV) ## the Python tests under AddressSanitizer and UBSan
	.venv-test/bin/python $(PIP) install -q "setuptools>=77" "Cython>=3"
	CFLAGS="-O1 -g $(SANITIZE)" LDFLAGS="$(SANITIZE)" .venv-test/bin/python setup.py -q build \
	    --build-base build/asan --build-lib build/asan/lib
	mkdir -p build/outside
	cd build/outside && PYTHONPATH=$(CURDIR)/build/asan/lib PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 \
	    LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" \
	    ../../.venv-test/bin/python -c "import sys, pytest; sys.modules['torch'] = None; sys.exit(pytest.main())" \
	    -q $(CURDIR)/tests $(ASAN_TESTS) $(ARGS)

neon: build/c/neon/vectors build/c/plain/vectors ## the core for aarch64 under qemu: the same bits as here
	build/c/plain/vectors | tail -n +2 > build/c/plain/vectors.txt
	$(QEMU) build/c/neon/vectors | tail -n +2 > build/c/neon/vectors.txt
	cmp build/c/plain/vectors.txt build/c/neon/vectors.txt
	@echo "$$(wc -l < build/c/neon/vectors.txt) runs, the same bits on both"

neon-kernels: build/c/neon/kernels build/c/neon/backward build/c/neon/integers ## and the test of every kernel there (some minutes)
	$(QEMU) build/c/neon/kernels
	$(QEMU) build/c/neon/integers
	$(QEMU) build/c/neon/backward

ulp: build/c/plain/ulp ## sigmoid and tanh over all 2^32 floats
	build/c/plain/ulp 1

coverage: $(call programs,coverage) ## lines of the core that the C programs run, by gcov
	find build/c/coverage -name '*.gcda' -delete
	$(call run_each,$^)
	@cd build/c/coverage && gcov -n $$(find core -name '*.gcda') | \
	    awk -F"'" '/^File/ { file = $$2 } /^Lines executed/ && file ~ /csrc/ { print file ": " $$0 }' | sort

# --- benchmark, tools --------------------------------------------------------------------------------------------

# Environments of the peers: torch, ONNX Runtime and OpenVINO share one, TensorFlow and JAX have their own.
PEER_VENVS := .venv-bench .venv-bench-tensorflow .venv-bench-jax
BENCH_EXTRAS_.venv-bench := test,bench
BENCH_EXTRAS_.venv-bench-tensorflow := bench-tensorflow
BENCH_EXTRAS_.venv-bench-jax := bench-jax

$(PEER_VENVS:%=%/.made): %/.made: pyproject.toml
	$(call venv,$*,-e ".[$(BENCH_EXTRAS_$*)]")
	@touch $@

peers: $(PEER_VENVS:%=%/.made) ## the environments of the peers (gigabytes): .venv-bench, -tensorflow, -jax

# Built once more if the core has changed; the other environments take the same source tree.
bench: peers ## measure the whole grid against NumPy and the peers (hours; wants a quiet machine)
	.venv-bench/bin/python $(PIP) install -q --no-deps -e .
	.venv-bench/bin/python bench/run.py $(patsubst %,--also %/bin/python,$(wordlist 2,9,$(PEER_VENVS))) $(ARGS)

accelerate: .venv-bench/.made ## PyTorch's modules beside their accelerated twins, on one core
	.venv-bench/bin/python $(PIP) install -q --no-deps -e .
	taskset -c 0 .venv-bench/bin/python bench/accelerate.py $(ARGS)

instructions: build/c/plain/instructions ## do kernels take more instructions than they did? (ARGS=--update: now they may)
	$(PYTHON) bench/instructions.py $< $(ARGS)

bench-smoke: build ## a few rows of the benchmark in seconds: that it runs, not how fast
	.venv/bin/fastlstm bench --smoke --out build/bench $(ARGS)

.venv-lint/.made: pyproject.toml
	$(call venv,.venv-lint,ruff==0.17.5 clang-format==23.1.5 "mypy>=1.15" "numpy>=2" safetensors)
	@touch $@

lint: .venv-lint/.made ## ruff on the Python files, clang-format on the C files
	.venv-lint/bin/ruff check .
	.venv-lint/bin/clang-format --dry-run -Werror $(C_FILES)

typecheck: .venv-lint/.made ## mypy --strict on the package
	.venv-lint/bin/mypy

format: .venv-lint/.made ## sort imports; lay out the C files as .clang-format says
	.venv-lint/bin/ruff check --fix .
	.venv-lint/bin/clang-format -i $(C_FILES)

dist: | .venv-test/bin/python ## the sdist, and from it the wheel
	.venv-test/bin/python $(PIP) install -q build
	rm -rf build/lib build/lib.* dist
	.venv-test/bin/python -m build -o dist .

clean: ## remove all that was made, the virtual environments too
	rm -rf build dist .venv .venv-* fastlstm.egg-info fastlstm/_core.c fastlstm/*.so
	find . -name __pycache__ -prune -exec rm -rf {} +
