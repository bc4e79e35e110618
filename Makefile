# Flotilla. `make` alone lists the commands.
#
# Everything runs on the local cluster of this clone (state in .local/), or on the cluster whose kubeconfig is given
# on the command line: make demo KUBECONFIG=/path/to/kubeconfig. A KUBECONFIG that merely stands in the environment is
# ignored on purpose.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

ROOT := $(CURDIR)
STATE := $(ROOT)/.local
export FLOTILLA_CACHE ?= $(HOME)/.cache/flotilla
export CARGO_TARGET_DIR ?= $(FLOTILLA_CACHE)/target
export CARGO_TERM_COLOR ?= auto

ifeq ($(origin KUBECONFIG),command line)
  GIVEN := $(abspath $(KUBECONFIG))
  TARGET_KUBECONFIG := $(GIVEN)
else
  GIVEN :=
  TARGET_KUBECONFIG := $(STATE)/kubeconfig
endif
unexport KUBECONFIG

KWOK ?= 0
CLUSTER ?= native
export CLUSTER
BIN := $(CARGO_TARGET_DIR)/debug
CLUSTER_TOOL := $(BIN)/flotilla-cluster
PROGRAMS := flotilla-operator flotilla-gateway flotilla-loadgen flotilla-agent flotilla-simulator
E2E := FLOTILLA_KUBECONFIG=$(TARGET_KUBECONFIG) FLOTILLA_STATE=$(STATE) FLOTILLA_CLUSTER_TOOL=$(CLUSTER_TOOL) PATH="$(STATE)/bin:$$PATH"
STEP = @printf '\n\033[1m== %s\033[0m\n' "$(1)"

.PHONY: help
help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  KUBECONFIG=<file> on the command line uses that cluster instead of the local one."
	@echo "  First runs build Kubernetes (about 10 min) and Flotilla (about 10 min) into $(FLOTILLA_CACHE)."

.PHONY: demo
demo: install ## Show the main job on a real cluster: a pool, a load test, a good and a bad release
	$(call STEP,demo)
	@cargo build --quiet --locked -p flotilla-e2e --bin flotilla-demo
	@$(E2E) $(BIN)/flotilla-demo

# All packages are named for scenarios, too, so that dependencies are those of the unit tests: fewer features would build
# them again. No documentation has code that could run: --tests leaves rustdoc out.
CARGO_TEST := cargo test --locked --workspace
ALONE := --test alone --test conformance
TOGETHER := --test together -- --test-threads=4

.PHONY: test
test: ## Pass every test: units, the chart, and the scenarios on a real cluster (sampled sizes)
	$(call STEP,building the tests)
	$(CARGO_TEST) --tests --no-run
	$(CARGO_TEST) $(ALONE) --test together --no-run
	$(MAKE) --no-print-directory install
	$(call STEP,unit tests; beside them the scenarios that need the cluster alone and mostly wait)
	@mkdir -p $(STATE)/logs; $(E2E) $(CARGO_TEST) $(ALONE) >$(STATE)/logs/alone.log 2>&1 & alone=$$!; \
	units=0; nice $(CARGO_TEST) --tests || units=$$?; \
	scenarios=0; wait $$alone || scenarios=$$?; \
	cat $(STATE)/logs/alone.log; exit $$((units + scenarios))
	$(call STEP,scenarios on a real cluster)
	$(E2E) $(CARGO_TEST) $(TOGETHER)

.PHONY: e2e
e2e: install ## Only the scenarios on a real cluster (sampled sizes)
	$(call STEP,scenarios on a real cluster)
	$(E2E) $(CARGO_TEST) $(ALONE) $(TOGETHER)

ONLY ?=
.PHONY: acceptance
acceptance: install ## Run the full figures and write docs/measurements.md (ONLY=pool,rest chooses)
	$(call STEP,acceptance)
	cargo build --locked -p flotilla-e2e --bin flotilla-acceptance
	cargo build --locked --profile fuzz -p flotilla-fuzz --bin flotilla-fuzz
	$(E2E) $(BIN)/flotilla-acceptance --write docs/measurements.md $(if $(ONLY),--only $(ONLY))
	$(if $(ONLY),,$(SIMULATE) --test conformance -- --nocapture)

SIMULATE = FLOTILLA_FULL=1 $(E2E) cargo test --locked --profile simulate -p flotilla-sim --features seeded-bugs

.PHONY: simulate
simulate: cluster simulate-quota ## Run every fault plan and every seeded bug on the simulated cluster, and compare its server with the real one
	$(call STEP,simulate)
	$(SIMULATE) --test it --test churn --test conformance -- --nocapture

.PHONY: simulate-quota
simulate-quota: ## Run the model of the quota protocol 100,000 times, and look for the bugs planted in it (needs no cluster)
	$(call STEP,simulation of quotas)
	FLOTILLA_FULL=1 cargo test --locked --profile image -p flotilla-core --lib quota::simulation -- --nocapture

.PHONY: fuzz
fuzz: ## Feed a million mutated inputs to every parser of foreign input (needs no cluster)
	$(call STEP,fuzz)
	cargo run --locked --profile fuzz -p flotilla-fuzz --bin flotilla-fuzz

.PHONY: bench
bench: install ## Print ratios against peers, each measured in one run
	$(call STEP,bench)
	cargo build --locked --profile image -p flotilla-e2e --bin flotilla-bench
	$(E2E) $(CARGO_TARGET_DIR)/image/flotilla-bench

.PHONY: bench-gateway
bench-gateway: ## Only the gateway's benchmarks, without a cluster (ONLY=cpu,latency chooses)
	$(call STEP,bench of $(or $(ONLY),gateway))
	cargo build --locked --profile image -p flotilla-gateway -p flotilla-e2e --bin flotilla-gateway --bin flotilla-bench
	$(CARGO_TARGET_DIR)/image/flotilla-bench --only $(or $(ONLY),gateway)

.PHONY: bench-evidence
bench-evidence: ## How releases are judged beside the peers' rules, simulated; renews the tables of the documentation
	$(call STEP,bench of evidence)
	cargo build --locked --profile image -p flotilla-e2e --bin flotilla-bench
	$(CARGO_TARGET_DIR)/image/flotilla-bench --only evidence --write-evidence docs/src/concepts/evidence.md

.PHONY: cluster
cluster: ## Start the local Kubernetes (KWOK=n adds n fake nodes); nothing to do when KUBECONFIG is given
ifeq ($(GIVEN),)
	@cargo build --quiet --locked -p flotilla-cluster
	@$(CLUSTER_TOOL) up --state $(STATE) --kwok $(KWOK)
else
	@echo "using the cluster of $(GIVEN)"
endif

.PHONY: cluster-down
cluster-down: ## Stop the local Kubernetes and leave nothing behind
	@cargo build --quiet --locked -p flotilla-cluster
	@$(CLUSTER_TOOL) down --state $(STATE)

.PHONY: images
images: ## Build the container images as archives in .local/images, without a container engine
	$(call STEP,images)
	cargo build --locked --profile image $(addprefix -p ,$(PROGRAMS))
	@cargo build --quiet --locked -p flotilla-images
	@$(BIN)/flotilla-images build --binaries $(CARGO_TARGET_DIR)/image --out $(STATE)/images

.PHONY: install
install: cluster images ## Install the chart, with the images just built, into the cluster
	$(call STEP,install)
ifeq ($(GIVEN),)
	@$(CLUSTER_TOOL) load --state $(STATE) $(STATE)/images/*.tar
endif
	@e2e/install.sh $(TARGET_KUBECONFIG) $(STATE)

.PHONY: crds
crds: ## Regenerate the CRDs, the chart's templates and the API reference from the Rust types
	cargo run --quiet --locked -p flotilla-crds --bin crdgen

.PHONY: lint
lint: ## Check formatting, clippy, and (when installed) cargo-deny
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --locked check bans licenses sources; \
	else echo "cargo-deny is not installed (cargo install cargo-deny); skipped"; fi
