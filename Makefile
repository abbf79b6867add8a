# One name for everything that is done often; `make help` lists them.
#
# Every Python tool comes from .venv, and .venv comes from locks/dev.txt alone: what passes here passes in CI.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Extra arguments for pytest and the other programs: make unit ARGS='-k placement -x'
ARGS ?=

# The interpreter that .venv is made with: the first of these that is new enough. Another: make PYTHON=/path/to/python3
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)
PY := .venv/bin/python

.PHONY: help
help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile


# Both are compared by content, not by time: a checkout touches files, and a new environment takes a minute. The editable
# install is done again when pyproject.toml has changed (its scripts), by the locked uv and build backend: it fetches nothing.
.PHONY: venv
venv: ## Make .venv from locks/dev.txt; make it again when the lock has changed.
	@$(PY) -c '' 2>/dev/null && cmp -s locks/dev.txt .venv/made-from.txt || { $(make-venv); }
	@cmp -s pyproject.toml .venv/installed-from.toml || { \
		.venv/bin/uv pip install --quiet --offline --python $(PY) --no-deps --no-build-isolation -e .; \
		cp pyproject.toml .venv/installed-from.toml; }

# Debian cuts ensurepip out of Python; a pip outside can fill an environment that has none.
define make-venv
	python="$(PYTHON)"; \
	if ! $${python:-false} -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo "error: Wherry needs Python 3.11 or newer; found: $$($${python:-python3} --version 2>&1 || true)" >&2; \
		echo "       Install one, or name it: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; \
		exit 1; \
	fi; \
	echo "making .venv with $$($$python --version)"; \
	pip="$(PY) -m pip"; \
	if ! $$python -m venv --clear .venv >/dev/null 2>&1; then \
		pip="$$python -m pip --python $(PY)"; \
		if ! { $$python -m venv --clear --without-pip .venv && $$pip --version; } >/dev/null 2>&1; then \
			rm -rf .venv; \
			echo "error: $$python can't make a virtual environment: it has neither ensurepip nor pip." >&2; \
			echo "       Debian, Ubuntu: apt-get install python3-venv. Elsewhere: install pip for this Python." >&2; \
			exit 1; \
		fi; \
	fi; \
	$$pip install --quiet --disable-pip-version-check --require-hashes -r locks/dev.txt; \
	cp locks/dev.txt .venv/made-from.txt
endef

# Asked inside the module that demands most: a Go that may fetch a newer toolchain by itself answers with that one.
GO_MODULE := tests/cluster/addons
.PHONY: go
go:
	@command -v go >/dev/null || { \
		echo "error: Go is missing; the test cluster and the test registry are built with it." >&2; \
		echo "       Install it from https://go.dev/dl/ or your distribution, and have it on PATH." >&2; exit 1; }; \
	wanted="$$(awk '$$1 == "go" { print $$2 }' $(GO_MODULE)/go.mod)"; \
	found="$$(cd $(GO_MODULE) && go env GOVERSION)"; found="$${found#go}"; found="$${found%% *}"; \
	[ "$$(printf '%s\n' "$$wanted" "$$found" | sort -V | head -n 1)" = "$$wanted" ] || { \
		echo "error: Go $$found is too old; $(GO_MODULE)/go.mod wants $$wanted." >&2; \
		echo "       Install it from https://go.dev/dl/, or let Go (1.21 or newer) fetch it:" >&2; \
		echo "       GOTOOLCHAIN=auto make $(MAKECMDGOALS)" >&2; exit 1; }


# The native executor and its compiler. A build each: built together, the executor would get the compiler's features, and
# with them a compiler. Cargo keeps what it makes in the cache of built binaries, unless it is told another place.
EXECUTOR := runner/executor
CARGO := $(shell command -v cargo)
export CARGO_TARGET_DIR ?= $(or $(WHERRY_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/wherry)/executor-target
AS_EXECUTOR := --locked --bin wherry-executor
AS_COMPILER := --locked --bin wherry-compiler --no-default-features --features compiler

.PHONY: executor
executor: ## Build the native executor (cargo; the first time: minutes). Without cargo: say that it is not there.
ifeq ($(CARGO),)
	@echo "native executor: NOT BUILT, there is no cargo (see https://rustup.rs); guests run on the python executor"
else
	@cd $(EXECUTOR) && cargo build --release $(AS_EXECUTOR)
	@cd $(EXECUTOR) && cargo build --release $(AS_COMPILER)
	@install -D -t $(EXECUTOR)/bin $(addprefix $(CARGO_TARGET_DIR)/release/,wherry-executor wherry-compiler)
endif

.PHONY: rust-lint
rust-lint: ## Check the native executor's format and style (rustfmt, clippy), where cargo is.
ifneq ($(CARGO),)
	cd $(EXECUTOR) && cargo fmt --check
	cd $(EXECUTOR) && cargo clippy --quiet $(AS_EXECUTOR) -- -D warnings
	cd $(EXECUTOR) && cargo clippy --quiet $(AS_COMPILER) -- -D warnings
endif

.PHONY: rust-test
rust-test: ## Run the native executor's own unit tests, where cargo is.
ifneq ($(CARGO),)
	cd $(EXECUTOR) && cargo test --quiet --release $(AS_EXECUTOR)
endif


.PHONY: lint
lint: venv rust-lint ## Check style, format and the direction of imports (ruff, import-linter, rustfmt, clippy).
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports

.PHONY: types
types: venv ## Check types (mypy, strict).
	.venv/bin/mypy

.PHONY: format
format: venv ## Rewrite the code the way `make lint` wants it, as far as ruff can.
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .


.PHONY: unit
unit: venv ## Run the unit tests: pure functions, seconds.
	$(PY) -m pytest tests/unit $(ARGS)

.PHONY: runner
runner: venv go executor ## Run the runner's tests: real wasmtime, real registry, real modules.
	$(PY) -m pytest tests/runner $(ARGS)

.PHONY: controlplane
controlplane: venv go executor ## Run the tests against a real Kubernetes control plane on loopback (built once: minutes).
	$(PY) -m pytest tests/controlplane $(ARGS)

.PHONY: chart
chart: venv go ## Run the Helm chart's tests: what it renders, and its life on a real API server (Helm is built once: minutes).
	$(PY) -m pytest tests/chart $(ARGS)

.PHONY: binaries
binaries: venv go ## Build what tests and demo run: Kubernetes and a registry (once: about ten minutes; later: nothing).
	@$(PY) -m tests.cluster build >/dev/null

.PHONY: node
node: venv go executor node-packages ## Run the tests on real nodes: containerd, kubelet, images of our own (Linux, root).
	$(PY) -m pytest tests/node $(ARGS)

# The same suite on a cluster of kind's, where Docker is; there it ends before `kubectl top`, for kind has no metrics-server.
# Not tried yet: no Docker was there. On a cluster of ours the runs of `make node` and `make test` have it too.
CLUSTER ?= node
.PHONY: e2e
e2e: venv go executor ## Run the chart's tests end to end on a real node (root); CLUSTER=kind: on kind (untested).
ifeq ($(CLUSTER),node)
	@$(MAKE) node-packages
endif
	WHERRY_E2E_CLUSTER=$(CLUSTER) $(PY) -m pytest tests/node/test_install.py tests/node/test_end_to_end.py $(ARGS)

# Most of a test's time is waiting for a cluster: a few files at once, each worker with a cluster of its own.
WORKERS ?= 3
.PHONY: test
test: venv go executor lint types rust-test node-packages binaries ## Run every check and every test that this machine can.
	$(PY) -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder $(ARGS)


# The same tests, a hundred times as long: hours. A seed repeats the choices of a run, though not its moments.
SOAKED := tests/runner/test_bad_specs.py tests/runner/test_kills.py tests/unit/test_supervisor_model.py \
	tests/controlplane/test_random_workloads.py
SEED ?= $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
.PHONY: soak
soak: SEED := $(SEED)
soak: venv go executor ## Run random requests, kills and lives for hours; SEED=N repeats a run.
	@echo "SEED=$(SEED)"
	WHERRY_SOAK=1 WHERRY_SEED=$(SEED) $(PY) -m pytest $(SOAKED) -s --hypothesis-seed=$(SEED) $(ARGS)


.PHONY: demo
demo: venv go executor ## Bring up a Kubernetes of our own, run the demos on it, show what they print.
	$(PY) -m demos.demo $(ARGS)

.PHONY: demo-clean
demo-clean: venv ## Stop what `make demo` left running and remove its files.
	$(PY) -m demos.demo clean $(ARGS)

.PHONY: cluster-up
cluster-up: venv go ## Start a test cluster that stays, to work against.
	$(PY) -m tests.cluster up $(ARGS)

.PHONY: cluster-down
cluster-down: venv ## Stop that cluster.
	$(PY) -m tests.cluster down $(ARGS)

.PHONY: cluster-status
cluster-status: venv ## Say whether that cluster runs, and how to reach it.
	$(PY) -m tests.cluster status $(ARGS)

# Not a failure where it can't be done: the tests say whether that is one.
.PHONY: node-packages
node-packages: venv ## Install the Debian packages that a real node needs, if missing and if root may (apt-get).
	@$(PY) -m tests.cluster packages --install

.PHONY: node-up
node-up: venv go node-packages ## Start a test cluster with a real node that stays (root); ARGS='--nodes 2' for two.
	$(PY) -m tests.cluster up --name node --provider node $(ARGS)

.PHONY: node-shell
node-shell: venv ## Open a shell inside that cluster's network, with kubectl, helm and KUBECONFIG.
	@$(PY) -m tests.cluster shell --name node

.PHONY: node-down
node-down: venv ## Stop that cluster; nothing is left of it on the machine.
	$(PY) -m tests.cluster down --name node $(ARGS)

.PHONY: bench
bench: venv go executor ## Measure the runner against `wasmtime run` in one run; fails where a promised ratio is missed.
	$(PY) -m bench.runner $(ARGS)

.PHONY: bench-operator
bench-operator: venv go executor ## Measure the operator on a control plane of its own; fails where a promise is missed.
	$(PY) -m bench.operator $(ARGS)

.PHONY: bench-containers
bench-containers: venv go node-packages ## Measure how container Pods perform on a real node here (root); ARGS=--record.
	$(PY) -m bench.container_pods $(ARGS)

.PHONY: bench-node
bench-node: venv go executor node-packages ## Measure Pods of modules against Pods of containers on a real node (root).
	$(PY) -m bench.node_pods $(ARGS)


# dev.txt holds everything and comes first; the other two are cut from it, so that tests and images have the same versions.
# What a lock pins already stays, unless told otherwise: make lock ARGS=--upgrade
LOCK := .venv/bin/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-emit-index-url --no-emit-find-links
.PHONY: lock
lock: venv ## Write locks/*.txt from pyproject.toml; ARGS=--upgrade takes newer versions.
	$(LOCK) --all-extras -o locks/dev.txt $(ARGS)
	$(LOCK) --extra operator -c locks/dev.txt -o locks/operator.txt
	$(LOCK) --extra runner -c locks/dev.txt -o locks/runner.txt
	@! grep -nE '://|^-' locks/*.txt || { echo "error: a lock names a host or an option; see the lines above." >&2; exit 1; }

.PHONY: clean
clean: ## Remove .venv and what the tools left in this folder.
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info $(EXECUTOR)/bin
	find . -name .git -prune -o -type d \( -name __pycache__ -o -name target \) -prune -exec rm -rf {} +

# Go writes its module cache read-only, hence the chmod.
.PHONY: clean-cache
clean-cache: ## Empty the cache of built binaries and compiled modules; the next run builds them again.
	cache="$${WHERRY_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/wherry}"; \
	if [ -d "$$cache" ]; then chmod -R u+w "$$cache"; find "$$cache" -mindepth 1 -delete; fi
