# The commands of the project. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

# Where images are pushed to and pulled from. The local cluster needs no registry.
REGISTRY ?= docker.io/local
TAG ?= dev
# Nodes of the local cluster.
NODES ?= 3
export REGISTRY TAG

CONTROLLERS := cluster-controller backup-controller restore-controller
export TOOLS := workload s3-server
TARGET := $(shell uname -m)-unknown-linux-gnu
# Static, for images of nothing else. Everything in release is built in this one way, so that nothing is compiled twice; --target
# keeps the flag away from build scripts and procedural macros.
RELEASE := RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --release --target $(TARGET)
LOCAL := deploy/local/local-kubernetes
IMAGES := deploy/local/images
# Every command that talks to a cluster uses the local one, or with CLUSTER=existing that of KUBECONFIG.
INTO_CLUSTER = eval "$$($(LOCAL) env)"

.PHONY: help
help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: generate manifests
generate manifests: ## Write crds/*.yaml from the types in crds/src
	cargo run --quiet --locked --package crds --bin generate-manifests

.PHONY: fmt lint
fmt: ## Format the code
	cargo fmt --all
lint: ## Lint the code as CI does
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- --deny warnings

.PHONY: packages components
packages: ## Install missing Debian packages (as root), or say which are missing
	@$(LOCAL) packages
components: packages ## Compile the local Kubernetes into the cache (minutes the first time)
	@$(LOCAL) build

.PHONY: test test-unit test-processes test-end-to-end
test-unit: ## Unit and property tests: seconds
	cargo test --quiet --locked --workspace --lib --bins --exclude tests
	cargo test --quiet --locked --package crds
PROCESS_SUITES = $(filter-out e2e_%,$(basename $(notdir $(wildcard tests/tests/*.rs))))
test-processes: components ## Suites against real Redis processes, a real S3 server and a real API server
	cargo test --locked --package tests --lib $(addprefix --test ,$(PROCESS_SUITES))
test-end-to-end: docker-build ## Scenarios on a local Kubernetes of their own
	export INSTANCE=$${INSTANCE:-e2e-$$$$}
	trap '$(LOCAL) down' EXIT
	$(LOCAL) up $(NODES)
	$(IMAGES) load $(CONTROLLERS) tools redis kubectl
	$(INTO_CLUSTER)
	$(MAKE) --no-print-directory install deploy
	kubectl apply -f deploy/samples/redis-version.yaml
	cargo test --locked --package tests $(foreach suite,$(basename $(notdir $(wildcard tests/tests/e2e_*.rs))),--test $(suite)) -- --test-threads 1 --nocapture
test: test-unit test-processes test-end-to-end ## Everything; installs what it needs

.PHONY: bench
bench: packages ## Benchmarks against their rivals; CASE=name runs one
	$(RELEASE) --bin bench --bin s3-server
	target/$(TARGET)/release/bench $(if $(CASE),--case $(CASE))

.PHONY: binaries docker-build docker-push
binaries:
	$(RELEASE) $(addprefix --bin ,$(CONTROLLERS) $(TOOLS) demo)
docker-build: components binaries ## Build every image, with docker or buildah; nothing is pulled
	$(IMAGES) build $(CONTROLLERS) tools redis kubectl > /dev/null
docker-push: docker-build ## Push the controllers' images to REGISTRY
	$(IMAGES) push $(CONTROLLERS)

.PHONY: install uninstall deploy undeploy run
install: ## Apply the CustomResourceDefinitions
	$(INTO_CLUSTER)
	kubectl apply --server-side --force-conflicts -f crds/
	kubectl wait --for=condition=Established --timeout=30s -f crds/ > /dev/null
uninstall: ## Delete the CustomResourceDefinitions, and with them every RedisCluster
	$(INTO_CLUSTER)
	kubectl delete --ignore-not-found -f crds/
deploy: ## Apply the three controllers into redis-operator-system
	$(INTO_CLUSTER)
	kubectl kustomize deploy/kustomize | sed -E 's#docker.io/local/(redis-operator-[a-z]+-controller):dev#$(REGISTRY)/\1:$(TAG)#' | kubectl apply --server-side --force-conflicts -f -
	kubectl --namespace redis-operator-system rollout status --timeout=120s deployment/cluster-controller deployment/backup-controller deployment/restore-controller
undeploy: ## Delete the three controllers; clusters serve on
	$(INTO_CLUSTER)
	kubectl delete --ignore-not-found -k deploy/kustomize
run: ## Run all three controllers on this machine against the cluster of KUBECONFIG or the local one
	$(INTO_CLUSTER)
	cargo build --locked $(addprefix --bin ,$(CONTROLLERS))
	trap 'kill $$(jobs -p) 2> /dev/null; wait' EXIT INT TERM
	for controller in $(CONTROLLERS); do POD_NAMESPACE=default LISTEN_ADDRESS=127.0.0.1:0 LOG_FORMAT=text target/debug/$$controller & done
	wait -n

.PHONY: local-up local-down demo demo-down
local-up: docker-build ## Start the local Kubernetes with the controllers on it
	$(LOCAL) up $(NODES)
	$(IMAGES) load $(CONTROLLERS) tools redis kubectl
	$(INTO_CLUSTER)
	# Controllers that run already may run an older image of the same name.
	kubectl --namespace redis-operator-system delete pods --all --wait=false --ignore-not-found
	$(MAKE) --no-print-directory install deploy
local-down: ## End the local Kubernetes and leave nothing behind
	$(LOCAL) down
demo: local-up ## Form, fill, lose all pods, heal, back up, restore into another size, compare; leaves the cluster up
	$(INTO_CLUSTER)
	target/$(TARGET)/release/demo
demo-down: local-down ## Remove what the demo left
