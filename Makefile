# `make demo` and `make test` set everything up by themselves; both are quick when run again.
PYTHON ?= python3
JOBS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
PRESET ?= dev
# The emulator of GPU kernels runs on Linux only.
ifneq ($(shell uname -s),Darwin)
FAST_TESTS := test-fast-metal test-fast-cuda
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
.PHONY: help demo demo-distributed extension test test-all test-cpp test-clang test-neon test-python test-random \
        build-tests run-cpp run-python test-fused test-fast test-fast-metal test-fast-cuda \
        test-kernels test-kernels-python test-kernels-transforms test-kernels-nvrtc test-metal bench guardrail wheel wheel-arm \
        lint tidy format docs site example-cpp clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

# The packages that building needs, and those that testing needs, which `make test` installs while the library compiles.
# Tests run in the source tree, where PYTHONPATH=python finds the extension of the preset, so that nothing is compiled
# twice; what is installed is tested by `make wheel`, the demo and the guardrails.
$(VENV)/.build: pyproject.toml scripts/setup scripts/system_packages
	scripts/setup --packages-only cpu
	@touch $@
$(VENV)/.dev: $(VENV)/.build
	scripts/setup --packages-only cpu,plots,demo,models,dev,nvrtc,site
	@touch $@
$(VENV)/.site: pyproject.toml scripts/setup
	scripts/setup --run-only cpu,site
	@touch $@
$(VENV)/.demo: $(SOURCES) scripts/setup
	scripts/setup cpu,plots,demo
	@touch $@

TREE := PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH="$(CURDIR)/python"

extension: $(VENV)/.build
	$(TREE) cmake --preset dev
	$(TREE) cmake --build --preset dev --target _ext

demo: $(VENV)/.demo  ## train a digit classifier with neighborhood attention and write reports/digits.png
	$(BIN)/python examples/digits/train.py --report reports/digits.png

demo-distributed: $(VENV)/.demo  ## train a forecast with 1, 2 and 4 ranks on this machine and write reports/distributed.png
	$(BIN)/python examples/distributed/demo.py --report reports/distributed.png

test: $(VENV)/.build  ## build and run the C++ and Python tests; of what takes minutes, a sample
	$(MAKE) -j2 build-tests $(VENV)/.dev
	$(MAKE) -j2 run-cpp run-python $(FAST_TESTS)

test-cpp: build-tests $(VENV)/.dev  ## the C++ tests, with the emulated GPU kernels (PRESET=asan-ubsan or tsan for sanitizers)
	$(MAKE) run-cpp

test-python: extension $(VENV)/.dev  ## the Python tests
	$(MAKE) run-python

build-tests: $(VENV)/.build
	$(TREE) cmake --preset $(PRESET)
	$(TREE) cmake --build --preset $(PRESET)

# The Python tests have one thread most of the time: they and the C++ tests share two cores.
run-cpp:
	$(TREE) ctest --preset $(PRESET) -j $(JOBS)

run-python:
	$(TREE) python -m pytest -q tests/python

test-random: extension $(VENV)/.dev  ## 800 random calls of the CPU kernels, of each kind
	$(TREE) NATTEN_TEST_TIERS=nanobind NATTEN_TEST_EXAMPLES=800 python -m pytest -q tests/python -k "random and not float64"

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

test-all: extension $(VENV)/.dev  ## the Python tests that take minutes, with every parameter; `make test` has a sample
	$(TREE) NATTEN_TEST_ALL=1 python -m pytest -q tests/python -m sampled

test-fused: extension $(VENV)/.dev  ## `mx.compile` with the fusion that the other tests leave out
	$(TREE) NATTEN_TEST_FUSION=1 python -m pytest -q tests/python -k compile

test-fast: build-tests $(VENV)/.dev  ## the GPU kernels without a GPU: Python tests on the emulator, some CUDA text compiled by NVRTC
	$(MAKE) -j2 test-fast-metal test-fast-cuda

test-fast-metal:
	$(TREE) NATTEN_TEST_FAST_EMULATOR=metal NATTEN_TEST_THIN=24 NATTEN_TEST_EVERY=5 python -m pytest -q tests/python

test-fast-cuda:
	$(TREE) NATTEN_TEST_FAST_EMULATOR=cuda NATTEN_TEST_THIN=24 NATTEN_TEST_EVERY=3 python -m pytest -q tests/python/test_attention.py
	$(TREE) NATTEN_TEST_FAST_EMULATOR=hopper NATTEN_TEST_THIN=10 NATTEN_TEST_EVERY=6 python -m pytest -q tests/python/test_half_engines.py -k 'test_half and warpgroups'
	$(TREE) python tests/nvrtc/gate.py build/dev/tests/nvrtc/natten_cuda_sources --only '2d_f16_*' 'all_3d_*'

# Minutes to show what the samples in `make test` show in seconds: `.ci/run` has it, on Linux.
test-kernels: build-tests $(VENV)/.dev  ## all GPU kernels of all cases emulated and read by clang and NVRTC
	$(TREE) NATTEN_TEST_ALL=1 ctest --preset dev -j $(JOBS) -R 'emulated_kernels|kernel_text'
	$(MAKE) -j$(JOBS) test-kernels-python test-kernels-transforms test-kernels-hopper test-kernels-nvrtc

test-kernels-python:
	$(TREE) NATTEN_TEST_FAST_EMULATOR=metal NATTEN_TEST_THIN=24 NATTEN_TEST_EVERY=4 python -m pytest -q tests/python

test-kernels-transforms:
	$(TREE) NATTEN_TEST_FAST_EMULATOR=metal NATTEN_TEST_THIN=12 python -m pytest -q tests/python/test_transforms.py

test-kernels-hopper:
	$(TREE) NATTEN_TEST_FAST_EMULATOR=hopper NATTEN_TEST_THIN=10 python -m pytest -q tests/python/test_half_engines.py -k 'test_half and warpgroups'

test-kernels-nvrtc:
	$(TREE) python tests/nvrtc/gate.py build/dev/tests/nvrtc/natten_cuda_sources -j $(JOBS)

test-metal: extension $(VENV)/.dev  ## on a Mac: the tests of what a tier computes, on its GPU
	$(TREE) NATTEN_TEST_DEVICE=gpu NATTEN_TEST_TIERS=fast_metal NATTEN_STRICT=1 NATTEN_TEST_EXAMPLES=6 \
	  python -m pytest -ra tests/python -k fast_metal

bench: $(VENV)/.demo  ## dispatch overhead, import time, peak memory
	$(BIN)/python benchmarks/dispatch_overhead.py
	$(BIN)/python benchmarks/import_time.py
	$(BIN)/python benchmarks/peak_memory.py
	$(BIN)/python benchmarks/peak_memory.py --tier nanobind --size 512 --head-dim 64 --ratio 1.25

guardrail: $(VENV)/.demo  ## exit 1 if a case is slower than its thresholds
	$(BIN)/natten-mlx bench guardrail --direction forward
	$(BIN)/natten-mlx bench guardrail --direction backward

wheel:  ## build a wheel into dist/ and test it in a clean environment
	scripts/build_wheel dist

# The workflow builds that wheel on Arm.
wheel-arm:  ## the wheel for Linux on 64-bit Arm: cross-built, and used under qemu (Debian)
	@if [ "$$(uname -m)" = x86_64 ] && grep -qs '^ID=debian' /etc/os-release; then scripts/cross_wheel build/wheel-arm; \
	else echo "wheel-arm: skipped, because this is not Debian on x86-64"; fi

example-cpp: $(VENV)/.dev  ## install into build/prefix, then build and run examples/cpp against it
	$(TREE) scripts/cpp_example

lint: extension $(VENV)/.dev  ## formatting, ruff, mypy, documentation checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(TREE) mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(TREE) python scripts/check_arrows.py
	scripts/build_explorer --check
	$(TREE) python scripts/check_docs.py
	$(TREE) python scripts/write_stubs.py --check
	$(TREE) python scripts/write_migrations.py --check
	$(TREE) python scripts/draw_docs.py --check
	$(TREE) python scripts/draw_performance.py --check

tidy: $(VENV)/.dev  ## clang-tidy over the library (slow)
	$(TREE) cmake --preset dev
	run-clang-tidy -quiet -p build/dev '$(CURDIR)/(src|python/bindings)/'

format: $(VENV)/.dev  ## rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

docs: extension $(VENV)/.dev  ## redraw the pictures in docs/images, rewrite performance and migration pages and the type stub
	$(TREE) python scripts/write_stubs.py
	$(TREE) python scripts/write_migrations.py
	scripts/build_explorer
	$(TREE) python scripts/draw_docs.py
	$(TREE) python scripts/draw_performance.py

# It compiles nothing, runs no JavaScript and fetches nothing. Its own warning is of a release of MkDocs to come.
site: $(VENV)/.site  ## build the documentation site into build/site; a link that leads nowhere is an error
	$(TREE) NO_MKDOCS_2_WARNING=1 mkdocs build

clean:  ## remove everything that make created
	rm -rf build dist wheelhouse reports $(VENV)
