# What people and CI call. Every target installs what it needs; e2e/components/install.sh says what that is.

# End-to-end tests that count single requests and connections within milliseconds: they run one after the other, as
# two at once on two cores measure each other.
ALONE = failover:: proxyless:: reregistration::

.DEFAULT_GOAL := help
.PHONY: help run check unit test envoys chaos trial bench against

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile
	@printf '\nVariables of make run, with their defaults:\n'
	@printf '  ZOOKEEPER_PORT=2181 XDS_PORT=15010 ADMIN_PORT=15014\n'
	@printf '  OUTBOUND_PORT=15001      where the sidecar takes requests\n'
	@printf '  ENVOY_ADMIN_PORT=15000\n'
	@printf '  SAMPLES_PORT=18081       the first of four ports of the sample instances\n'
	@printf '  MESHKEEPER_PROFILE=dev   or release: slower to build\n'
	@printf '  MESHKEEPER_BIN=          a binary that is built already, instead of building one\n'
	@printf '  MESHKEEPER_RUN_DIR=.components/run   logs and data of the demo\n'
	@printf '\nVariables of make chaos:\n'
	@printf '  SEED=                    what the faults and their durations follow from; another one each time\n'
	@printf '  MINUTES=2                for how long\n'

run: ## a whole mesh on this machine, until Ctrl-C: ZooKeeper, MeshKeeper, Envoy, sample instances
	@e2e/demo/run

check: ## formatting, lints and unit tests: what to run after each change
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo test --locked --lib

unit: ## unit tests alone; FILTER=WORD chooses some
	cargo test --locked --lib $(FILTER)

test: ## formatting, lints, and all tests, with the real ZooKeeper, Envoy, gRPC clients and frameworks that register
	@e2e/components/install.sh all
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo test --locked --lib
	cargo test --locked --test e2e -- $(addprefix --skip ,$(ALONE))
	cargo test --locked --test e2e -- --test-threads=1 $(ALONE)

envoys: ## older Envoys: the main job, loading on demand, large services, draining
	@e2e/components/install.sh zookeeper envoy envoy-old
	cargo test --locked --test e2e envoys:: -- --ignored --nocapture

chaos: ## all that can break, at random for MINUTES: fails where an endpoint was lost or kept wrongly
	@e2e/components/install.sh zookeeper envoy
	cargo test --locked --test e2e faults::chaos::faults_for_as_long_as_is_asked_for -- --ignored --exact --nocapture

trial: ## each fault once, with what an operator sees of it: a table in target/faults.md
	@e2e/components/install.sh zookeeper envoy
	cargo test --locked --test e2e faults::trial::each_fault_as_an_operator_sees_it -- --ignored --exact --nocapture

bench: ## what it costs, beside floors and peers, in some minutes (BENCH=full: many)
	@e2e/components/install.sh zookeeper envoy
	@benches/peers/build.sh
	cargo bench --locked --bench rig

against: ## this build beside the program AGAINST=PATH, another build: the ratios of what each costs
	@test -x "$(AGAINST)" || { echo "AGAINST=PATH names another meshkeeper, a release build"; exit 2; }
	@e2e/components/install.sh zookeeper
	AGAINST="$(AGAINST)" cargo bench --locked --bench rig against
