# `make demo` and `make test` set everything up by themselves; both are quick when run again.
PYTHON ?= python3
JOBS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
ifeq ($(shell uname -s),Darwin)
PRESET ?= release
else
# Has the emulator of GPU kernels, which runs on Linux only.
PRESET ?= dev
FAST_TESTS := test-fast
endif

export PYTHON
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(JOBS)

VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find CMakeLists.txt CMakePresets.json pyproject.toml cmake include src python -type f \
             ! -name '*.pyc' 2>/dev/null)
CPP := $(shell find include src python/bindings tests examples benchmarks -type f \
         \( -name '*.h' -o -name '*.cpp' \) 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help demo test test-cpp test-clang test-neon test-python test-random test-fast test-fast-metal test-fast-cuda \
        test-kernels test-kernels-python test-kernels-transforms test-kernels-nvrtc test-metal bench guardrail wheel \
        lint tidy format docs example-cpp clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

# The installation with every extra also serves the demo: whoever runs `make test` first does not build twice.
$(VENV)/.dev: $(SOURCES) scripts/setup
	scripts/setup cpu,plots,demo,models,dev,nvrtc
	@touch $@ $(VENV)/.demo
$(VENV)/.demo: $(SOURCES) scripts/setup
	scripts/setup cpu,plots,demo
	@touch $@

demo: $(VENV)/.demo  ## train a digit classifier with neighborhood attention and write reports/digits.png
	$(BIN)/python examples/digits/train.py --report reports/digits.png

# The Python tests have one thread most of the time: they and the C++ tests share two cores.
test: $(VENV)/.dev  ## build and run every test, C++ and Python
	$(MAKE) -j2 test-cpp test-python
	$(if $(FAST_TESTS),$(MAKE) $(FAST_TESTS))

test-cpp: $(VENV)/.dev  ## the C++ tests, with the emulated GPU kernels (PRESET=asan, ubsan, tsan for sanitizers)
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --preset $(PRESET)
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build --preset $(PRESET)
	PATH="$(CURDIR)/$(BIN):$$PATH" ctest --preset $(PRESET) -j $(JOBS)

test-python: $(VENV)/.dev  ## the Python tests
	$(BIN)/python -m pytest -q tests/python

test-random: $(VENV)/.dev  ## 800 random calls of the CPU kernels, of each kind
	NATTEN_TEST_TIERS=nanobind NATTEN_TEST_EXAMPLES=800 $(BIN)/python -m pytest -q tests/python -k "random and not float64"

# As near as Linux gets to Apple's toolchain, which is the compiler of a Mac in every build.
test-clang:  ## the host code with clang and libc++; what is free of MLX is tested (Debian)
ifeq ($(shell uname -s),Linux)
	scripts/system_packages tests clang
	$(MAKE) test-cpp PRESET=clang
else
	@echo "test-clang: skipped, because this is not Linux ($(shell uname -s)); 'make test-cpp' compiles with clang there"
endif

# Elsewhere, if the machine is an Arm, the native build is NEON itself.
test-neon:  ## the CPU kernels for 64-bit Arm: cross-built and run under qemu (Debian)
ifeq ($(shell uname -sm),Linux x86_64)
	scripts/neon_packages
	$(MAKE) test-cpp PRESET=neon
else
	@echo "test-neon: skipped, because this is not Linux on x86-64 ($(shell uname -sm)); on Arm 'make test-cpp' runs these kernels"
endif

# The dev preset puts an extension that has the emulator into the source tree, where PYTHONPATH finds it first.
test-fast: $(VENV)/.dev  ## the GPU kernels without a GPU: Python tests on the emulator, some CUDA text compiled by NVRTC
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --preset dev
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build --preset dev
	$(MAKE) -j2 test-fast-metal test-fast-cuda

test-fast-metal:
	PYTHONPATH=python NATTEN_TEST_FAST_EMULATOR=metal NATTEN_TEST_THIN=12 $(BIN)/python -m pytest -q tests/python

test-fast-cuda:
	PYTHONPATH=python NATTEN_TEST_FAST_EMULATOR=cuda NATTEN_TEST_THIN=12 $(BIN)/python -m pytest -q tests/python/test_attention.py
	$(BIN)/python tests/nvrtc/gate.py build/dev/tests/nvrtc/natten_cuda_sources --only '2d_f16_*' 'all_3d_*'

# Minutes to show what the samples in `make test` show in seconds: `.ci/run` has it, on Linux.
test-kernels: $(VENV)/.dev  ## all GPU kernels of all cases emulated, read by clang and compiled by NVRTC
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --preset dev
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build --preset dev
	PATH="$(CURDIR)/$(BIN):$$PATH" NATTEN_TEST_EVERY_KERNEL=1 ctest --preset dev -j $(JOBS) -R 'emulated_kernels|kernel_text'
	$(MAKE) -j$(JOBS) test-kernels-python test-kernels-transforms test-kernels-nvrtc

test-kernels-python:
	PYTHONPATH=python NATTEN_TEST_FAST_EMULATOR=metal $(BIN)/python -m pytest -q tests/python

test-kernels-transforms:
	PYTHONPATH=python NATTEN_TEST_FAST_EMULATOR=metal NATTEN_TEST_THIN=1 $(BIN)/python -m pytest -q tests/python/test_transforms.py

test-kernels-nvrtc:
	$(BIN)/python tests/nvrtc/gate.py build/dev/tests/nvrtc/natten_cuda_sources -j 1

test-metal: $(VENV)/.dev  ## on a Mac: the tests of what a tier computes, on its GPU
	NATTEN_TEST_DEVICE=gpu NATTEN_TEST_TIERS=fast_metal NATTEN_STRICT=1 NATTEN_TEST_EXAMPLES=6 \
	  $(BIN)/python -m pytest -ra tests/python -k fast_metal

bench: $(VENV)/.dev  ## dispatch overhead, import time, peak memory
	$(BIN)/python benchmarks/dispatch_overhead.py
	$(BIN)/python benchmarks/import_time.py
	$(BIN)/python benchmarks/peak_memory.py
	$(BIN)/python benchmarks/peak_memory.py --tier nanobind --size 512 --head-dim 64 --ratio 1.25

guardrail: $(VENV)/.dev  ## exit 1 if a case is slower than its thresholds
	$(BIN)/natten-mlx bench guardrail --direction forward
	$(BIN)/natten-mlx bench guardrail --direction backward

wheel:  ## build a wheel into dist/ and test it in a clean environment
	scripts/build_wheel dist

example-cpp: $(VENV)/.dev  ## install into build/prefix, then build and run examples/cpp against it
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/cpp_example

lint: $(VENV)/.dev  ## formatting, ruff, mypy, documentation checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(BIN)/python scripts/check_arrows.py
	$(BIN)/python scripts/check_docs.py
	$(BIN)/python scripts/write_stubs.py --check
	$(BIN)/python scripts/write_migrations.py --check
	$(BIN)/python scripts/draw_docs.py --check
	$(BIN)/python scripts/draw_performance.py --check

tidy: $(VENV)/.dev  ## clang-tidy over the library (slow)
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --preset dev
	run-clang-tidy -quiet -p build/dev '$(CURDIR)/(src|python/bindings)/'

format: $(VENV)/.dev  ## rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

docs: $(VENV)/.dev  ## redraw the pictures in docs/images, rewrite performance and migration pages and the type stub
	$(BIN)/python scripts/write_stubs.py
	$(BIN)/python scripts/write_migrations.py
	$(BIN)/python scripts/draw_docs.py
	$(BIN)/python scripts/draw_performance.py

clean:  ## remove everything that make created
	rm -rf build dist wheelhouse reports $(VENV)
