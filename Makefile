# The commands of the project. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
# Prerequisites and goals are steps in an order: packages before what needs them, install before deploy.
.NOTPARALLEL:
.DEFAULT_GOAL := help

# Where images are pushed to and pulled from. The local cluster needs no registry.
REGISTRY ?= docker.io/local
TAG ?= dev
# Nodes of the local cluster.
NODES ?= 3
export REGISTRY TAG

CONTROLLERS := cluster-controller backup-controller restore-controller
export TOOLS := workload s3-server
# Images of the local cluster. The suites run kubectl in a pod too; the demonstration does not need it.
LOADED = $(CONTROLLERS) tools redis kubectl
demo: LOADED = $(CONTROLLERS) tools redis
# What docker-push pushes.
PUSH ?= $(CONTROLLERS)
TARGET := $(shell uname -m)-unknown-linux-gnu
# What is published and measured is a release build. What `make test` runs on a local Kubernetes is what its suites have compiled already.
PROFILE = release
BUILD = cargo build --locked --profile $(PROFILE)
export BINARIES = $(CURDIR)/target/$(TARGET)/$(PROFILE:dev=debug)
LOCAL := deploy/local/local-kubernetes
IMAGES := deploy/local/images
# Every command that talks to a cluster uses the local one, or with CLUSTER=existing that of KUBECONFIG. Two statements: an eval of
# what a failed command printed succeeds, and the next command would go to the user's default context.
INTO_CLUSTER = environment=$$($(LOCAL) env); eval "$$environment"
# Whether the cluster knows what deploy/kustomize/monitoring consists of.
MONITORING := podmonitors.monitoring.coreos.com prometheusrules.monitoring.coreos.com
HAS_MONITORING = kubectl get customresourcedefinitions $(MONITORING) > /dev/null 2>&1
# Empty with CLUSTER=existing: a cluster that exists is not compiled.
OWN_CLUSTER = $(if $(filter existing,$(CLUSTER)),,yes)

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
components: packages ## Compile the local Kubernetes into the cache (once; minutes)
	@$(LOCAL) build

# Always of all packages: which features a dependency has follows from who is compiled with it, and it is compiled again for others.
TEST := cargo test --locked --workspace
UNIT_SUITES = $(filter-out $(notdir $(basename $(wildcard tests/tests/*.rs))),$(notdir $(basename $(wildcard */tests/*.rs))))
.PHONY: test test-unit test-long test-many test-processes test-servers test-rights test-end-to-end scenarios scenarios-readme local-only
test-unit: ## Unit and property tests: seconds
	$(TEST) --quiet --lib $(addprefix --test ,$(UNIT_SUITES))
test-long: ## The simulated clusters of test-unit in 100,000 random cases; not part of test
	PROPTEST_CASES=25000 cargo test --release --locked --package cluster-controller --lib model::tests
test-many: components ## 500 clusters under one controller: cost when idle, some that hang, an outage of all; not part of test
	CLUSTERS=500 $(TEST) --release --test cluster_many -- --nocapture
PROCESS_SUITES = $(filter-out e2e_%,$(basename $(notdir $(wildcard tests/tests/*.rs))))
test-processes: components ## Suites against real Redis processes, a real S3 server and a real API server
	# They wait more than they compute: with a test for each of two cores these would be idle for most of the time.
	$(TEST) $(addprefix --test ,$(PROCESS_SUITES)) -- --test-threads 4
test-servers test-rights: export MORE_COMMANDS = pip3 python3-pip
test-servers: packages ## The suites against Redis 6.2 to 8.2 and Valkey 8.1 and 9.1, with a table of what passed; not part of test
	tests/run-servers $(SERVERS)
test-rights: packages ## Each right of the own users taken away in turn: a test has to fail; a table of them; not part of test
	tests/prove-rights "$(RIGHTS)"
test-end-to-end: ## Scenarios on a local Kubernetes of their own
scenarios: ## Losses, changes and costs on a local Kubernetes of their own, with a table of how each went; not part of test
END_TO_END = $(basename $(notdir $(wildcard tests/tests/e2e_*.rs)))
test-end-to-end: PROFILE = dev
test-end-to-end: BUILD += --workspace $(addprefix --test ,$(SUITES))
test-end-to-end: SUITES = $(filter-out e2e_long_%,$(END_TO_END))
# Those that report rows of the table. SUITES=name runs one.
scenarios: SUITES = e2e_cluster e2e_nodes $(filter e2e_long_%,$(END_TO_END))
ROWS := $(CURDIR)/target/scenarios.jsonl
scenarios: export SCENARIO_REPORT = $(ROWS)
test-end-to-end scenarios: local-only components binaries
	# Never the developer's instance, which may be exported: it is removed at the end.
	export INSTANCE=e2e-$$$$
	trap '$(LOCAL) down' EXIT
	$(LOCAL) up $(NODES)
	$(IMAGES) load $(LOADED)
	$(INTO_CLUSTER)
	$(MAKE) --no-print-directory install deploy INSTANCE=$$INSTANCE
	rm -f $(SCENARIO_REPORT)
	failed=0
	$(TEST) $(if $(SCENARIO_REPORT),--no-fail-fast) $(addprefix --test ,$(SUITES)) -- --test-threads 1 --nocapture || failed=$$?
	$(if $(SCENARIO_REPORT),cargo run --quiet --locked --package tests --bin scenario-report -- $(SCENARIO_REPORT))
	exit $$failed
scenarios-readme: ## Put the table of the last run of scenarios into README.md
	cargo run --quiet --locked --package tests --bin scenario-report -- $(ROWS) --document README.md
test: local-only packages test-unit test-processes test-end-to-end ## Everything; installs what it needs
local-only:
	@[ "$(CLUSTER)" != existing ] || { echo "test-end-to-end and scenarios cut nodes off and kill controllers: they run on a local cluster of their own. Unset CLUSTER; tests/README.md says which suites run on yours." >&2; exit 1; }

.PHONY: bench
bench: packages ## Benchmarks against their rivals; CASE=name runs one
	$(BUILD) --bin bench --bin s3-server
	$(BINARIES)/bench $(if $(CASE),--case $(CASE))

.PHONY: binaries docker-build docker-push
binaries:
	$(BUILD) $(addprefix --bin ,$(CONTROLLERS) $(TOOLS) demo)
docker-build: components binaries ## Build every image, with docker or buildah; nothing is pulled
	$(IMAGES) build $(LOADED) > /dev/null
docker-push: binaries ## Push the controllers' images to REGISTRY; PUSH="tools redis" those
	$(IMAGES) push $(PUSH)

.PHONY: install uninstall deploy undeploy run
install: ## Apply the CustomResourceDefinitions
	$(INTO_CLUSTER)
	kubectl apply --server-side --force-conflicts -f crds/
	kubectl wait --for=condition=Established --timeout=30s -f crds/ > /dev/null
uninstall: ## Delete the CustomResourceDefinitions, and with them every RedisCluster; ends with and without controllers
	$(INTO_CLUSTER)
	deploy/uninstall
deploy: ## Apply the three controllers into redis-operator-system
	$(INTO_CLUSTER)
	# As an overlay of a user's would be.
	mkdir -p target/deploy
	{ echo 'resources: [../../deploy/kustomize]'; echo 'images:'; for controller in $(CONTROLLERS); do
	  echo "  - {name: docker.io/local/redis-operator-$$controller, newName: $(REGISTRY)/redis-operator-$$controller, newTag: '$(TAG)'}"
	done; } > target/deploy/kustomization.yaml
	kubectl apply --server-side --force-conflicts -k target/deploy
	if $(HAS_MONITORING); then kubectl apply --server-side --force-conflicts -k deploy/kustomize/monitoring
	else echo "no PodMonitors and alerts: the cluster does not have $(MONITORING)"; fi
	kubectl --namespace redis-operator-system rollout status --timeout=120s deployment/cluster-controller deployment/backup-controller deployment/restore-controller
undeploy: ## Delete the three controllers; clusters serve on
	$(INTO_CLUSTER)
	if $(HAS_MONITORING); then kubectl delete --ignore-not-found -k deploy/kustomize/monitoring; fi
	kubectl delete --ignore-not-found -k deploy/kustomize
run: PROFILE = dev
run: ## Run the three controllers on this machine, for the local cluster or with CLUSTER=existing that of KUBECONFIG
	$(INTO_CLUSTER)
	deployed=$$(kubectl --namespace redis-operator-system get deployments --output name)
	[ -z "$$deployed" ] || { echo "the controllers run in the cluster already: make undeploy" >&2; exit 1; }
	$(BUILD) $(addprefix --bin ,$(CONTROLLERS))
	# Their Leases are where deployed controllers keep theirs: of both, one leads.
	kubectl apply --server-side --force-conflicts -f deploy/kustomize/namespace.yaml
	image=$$($(IMAGES) reference backup-controller)
	export POD_NAMESPACE=redis-operator-system CONTROLLER_IMAGE=$$image LISTEN_ADDRESS=127.0.0.1:0 LOG_FORMAT=text
	trap 'kill $$(jobs -p) 2> /dev/null; wait' EXIT INT TERM
	for controller in $(CONTROLLERS); do $(BINARIES)/$$controller & done
	wait -n

.PHONY: compiled local-up local-down demo demo-down
compiled local-up demo: PROFILE = demo
# What runs on the local cluster, in a profile that compiles fast. Kubernetes is compiled at the same time where there is memory for both: while
# one of them links on a single core, the other has work for the second.
compiled: $(if $(OWN_CLUSTER),packages)
	@controllers() {
	  [ -x $(BINARIES)/demo ] || echo "make: compiling the controllers and the demonstration, once: about 11 minutes on 2 cores; cargo prints each crate"
	  $(BUILD) $(addprefix --bin ,$(if $(OWN_CLUSTER),$(CONTROLLERS) $(TOOLS)) demo)
	}
	if [ -z "$(OWN_CLUSTER)" ]; then controllers
	elif [ "$$(awk '/^MemAvailable/ {print int($$2 / 1048576)}' /proc/meminfo)" -lt 6 ]; then $(LOCAL) build; controllers
	else
	  set -m   # a process group of its own, which ends with this recipe
	  $(LOCAL) build & kubernetes=$$!
	  set +m
	  trap 'kill -- -$$kubernetes 2> /dev/null || :' EXIT
	  controllers
	  wait $$kubernetes
	fi
local-up: compiled ## Start the local Kubernetes with the controllers on it
	$(LOCAL) up $(NODES)
	$(IMAGES) load $(LOADED)
	$(INTO_CLUSTER)
	# Controllers that run already may run an older image of the same name.
	kubectl --namespace redis-operator-system delete pods --all --wait=false --ignore-not-found
	$(MAKE) --no-print-directory install deploy
local-down: ## End the local Kubernetes and leave nothing behind
	$(LOCAL) down
demo: local-up ## The whole story on a local Kubernetes: form a cluster, lose all its pods, back up, restore, compare
	$(INTO_CLUSTER)
	$(BINARIES)/demo
demo-down: ## Remove what the demo left behind
ifeq ($(CLUSTER),existing)
	$(INTO_CLUSTER)
	kubectl delete namespaces --selector app.kubernetes.io/managed-by=redis-operator-scenario --timeout=300s
	kubectl delete redisversions --selector app.kubernetes.io/managed-by=redis-operator-scenario --timeout=60s
	echo "The controllers are still there: make undeploy uninstall CLUSTER=existing"
else
	$(LOCAL) down
endif
