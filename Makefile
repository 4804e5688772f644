# pybalancer: build, test, try.
#
#   make demo     build, and watch it balance real WebSocket servers (FOR=10s to end by itself)
#   make test     everything that CI checks
#   make conformance
#                 all of Autobahn's cases, directly and through pybalancer (up to an hour)
#   make wheel    the wheel, in dist/ (or DIST=...)
#   make bench    side by side with HAProxy and nginx (bench/RESULTS.md)
#   make bench-ripple
#                 every backend restarted under live WebSockets, side by side with HAProxy and nginx
#   make bench-packet
#                 what a packet costs in packet mode, and what breaks when backends change (as root)
#   make bpf      the programs of the packet room, after a change of rust/packet/*.bpf.[ch]
#   make build    the extension module, into this checkout
#
# Needs Python >= 3.11 with venv, a Rust toolchain and a C compiler.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
FOR    ?=
DIST   ?= dist
RUST   := Cargo.toml Cargo.lock $(shell find rust -name '*.rs' -o -name '*.bpf.o' -o -name Cargo.toml)

.PHONY: demo test conformance wheel bench bench-ripple bench-packet bpf build fmt lint clean test-rust test-python docs

demo: build
	$(BIN)/pybalancer demo $(if $(FOR),--for $(FOR))

# The development tools are those of pyproject.toml's group "dev".
$(VENV)/.ready: pyproject.toml tools/check_prerequisites.py
	$(PYTHON) tools/check_prerequisites.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group dev
	touch $@

# Editable: Python files are used in place, the module is built into pybalancer/.
$(VENV)/.built: $(VENV)/.ready $(RUST) pyproject.toml
	. $(BIN)/activate && maturin develop --release --quiet
	touch $@

build: $(VENV)/.built

test: lint test-rust test-python

lint: build
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --profile ci --quiet -- -D warnings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest pybalancer._core

test-rust: build
	cargo test --profile ci --quiet

# Most tests wait for sockets and processes: on two cores three files at a time take 10 minutes, two take 12.
test-python: build
	$(BIN)/pytest -n 3 --dist loadfile

conformance: build
	$(BIN)/python -m tests.conformance target/conformance

wheel: $(VENV)/.ready
	. $(BIN)/activate && maturin build --release --strip --out $(DIST)

bench: build
	cargo build --release --quiet -p pybalancer-bench
	$(BIN)/python -m bench.wire
	$(BIN)/pytest bench/micro

bench-ripple: build
	$(BIN)/python -m bench.ripple --write

bench-packet: build
	$(BIN)/python -m bench.packet --write

# Who changes the programs for the kernel compiles them; the object is committed.
bpf: $(VENV)/.ready
	$(BIN)/python tools/build_bpf.py

docs: build
	$(BIN)/python -m pybalancer.config.reference > docs/config.md

fmt: $(VENV)/.ready
	cargo fmt --all
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf target dist $(VENV) pybalancer/*.so
