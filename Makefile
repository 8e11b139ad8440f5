# Two commands set everything up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check -q
# Everything is installed by hash, except PyTorch: its CPU and CUDA builds share a version.
LOCKED := $(PIP) install --no-build-isolation --require-hashes -r
TORCH := $(PIP) install -r requirements/torch.txt
SELF := $(PIP) install --no-build-isolation --no-deps -e .
NATIVE := $(shell find native bindings -type f 2>/dev/null) CMakeLists.txt
JOBS ?= 2

# ONNX Runtime must not report what it runs, whichever program loads it first.
export ORT_DISABLE_TELEMETRY := 1

.PHONY: demo demo-attested demo-hidden demo-origami demo-training test build dev lock fmt lint type arch tcb native-test bench docs wheel clean

demo: $(VENV)/.demo
	$(BIN)/cloister demo

# Two clinics, an authority and a training server, each a process.
demo-training: $(VENV)/.train
	$(BIN)/cloister demo training

# A vendor and a customer: hidden layers, a sealed bundle, and a thief.
demo-hidden: $(VENV)/.hidden
	$(BIN)/cloister demo hidden

# A vendor, its broker, the operator of a machine and a customer, each a process.
demo-attested: $(VENV)/.hidden
	$(BIN)/cloister demo attested

# What a worker reconstructs at every split of a model, and the three ways to run it split.
demo-origami: $(VENV)/.origami
	$(BIN)/cloister demo split

test: $(VENV)/.dev native-test
	$(BIN)/pytest -n $(JOBS) --dist worksteal

build: $(VENV)/.demo
dev: $(VENV)/.dev

$(VENV)/.base:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Cloister needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.base pyproject.toml requirements/demo.txt $(NATIVE)
	$(LOCKED) requirements/demo.txt
	$(SELF)
	@touch $@

$(VENV)/.train: $(VENV)/.demo requirements/train.txt requirements/torch.txt
	$(LOCKED) requirements/train.txt
	$(TORCH)
	@touch $@

$(VENV)/.hidden: $(VENV)/.demo requirements/hidden.txt
	$(LOCKED) requirements/hidden.txt
	@touch $@

$(VENV)/.origami: $(VENV)/.demo requirements/origami.txt requirements/torch.txt
	$(LOCKED) requirements/origami.txt
	$(TORCH)
	@touch $@

$(VENV)/.dev: $(VENV)/.demo requirements/dev.txt requirements/torch.txt
	$(LOCKED) requirements/dev.txt
	$(TORCH)
	@touch $@

# The pinned versions and hashes of every platform's files, from pyproject.toml. UPGRADE=--upgrade
# takes the newest versions; without it, only what pyproject.toml asks for changes.
LOCK := $(BIN)/uv pip compile pyproject.toml -q --universal --python-version 3.11 --fork-strategy fewest \
	--generate-hashes --no-annotate --no-header --no-emit-package torch -c requirements/torch.txt
lock: $(VENV)/.dev
	$(LOCK) $(UPGRADE) --extra dev -o requirements/dev.txt
	$(LOCK) $(UPGRADE) -c requirements/dev.txt --extra build --extra demo --extra train --extra tables \
		-o requirements/train.txt
	$(LOCK) $(UPGRADE) -c requirements/dev.txt --extra build --extra demo --extra compile \
		-o requirements/hidden.txt
	$(LOCK) $(UPGRADE) -c requirements/dev.txt --extra build --extra demo --extra audit \
		-o requirements/origami.txt
	$(LOCK) $(UPGRADE) -c requirements/dev.txt --extra build --extra demo -o requirements/demo.txt

fmt: $(VENV)/.dev
	$(BIN)/ruff check --fix-only -q .
	$(BIN)/ruff format -q .
	$(BIN)/clang-format -i $$(find native bindings -name '*.cpp' -o -name '*.hpp')

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(find native bindings -name '*.cpp' -o -name '*.hpp')

type: $(VENV)/.dev
	$(BIN)/mypy

arch: $(VENV)/.dev
	$(BIN)/lint-imports

# What the trusted side and the authority load; fails above a budget of lines.
tcb: $(VENV)/.dev
	$(BIN)/python tools/tcb.py

# The kernels' own tests, without Python, under the address and undefined-behaviour sanitizers.
native-test: $(VENV)/.dev
	$(BIN)/cmake -S . -B build/native-test -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
		-DCLOISTER_BINDINGS=OFF -DCLOISTER_NATIVE_TESTS=ON -DCLOISTER_SANITIZE=address,undefined > /dev/null
	$(BIN)/cmake --build build/native-test > /dev/null
	cd build/native-test && $(CURDIR)/$(BIN)/ctest --output-on-failure -j $(JOBS)

bench: $(VENV)/.dev
	for name in layers transport fe authority_rate "training --quick"; do \
		$(BIN)/python -m benchmarks $$name || exit; done
	@mkdir -p build
	$(BIN)/python -m benchmarks inference --model vgg16 --model mobilenet_v1 --model resnet50 --json > build/ratios.json
	$(BIN)/python -m benchmarks figure build/ratios.json --out build/ratios.svg

# The documents' links, file names, commands and code are tests.
docs: $(VENV)/.dev
	$(BIN)/pytest -q tests/examples/test_documents.py

wheel: $(VENV)/.dev
	$(BIN)/python -P -m build --no-isolation --outdir dist .

clean:
	rm -rf build dist $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
