# Everything here works on a bare Debian 12 with git, make and Rust: what is missing is installed.
CARGO ?= cargo

.PHONY: help install build demo test lint unit e2e sim smoke faults conformance suites equivalence drivers fuzz test-openzfs bench micro clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1: \2/p' $(MAKEFILE_LIST)

install: ## Debian packages for building, testing and the demo
	@config/dev/install.sh

# The demo builds what it runs, the tests all but the micro-benchmarks, whose criterion changes the features of other
# crates. Dependencies have the same features in both selections, so that nothing is built twice.
PROGRAMS = -p manatee-sitter -p manatee-adm -p manatee-proxy -p manatee-tests
ALL = --workspace --exclude manatee-micro

build: install ## all programs, into target/debug
	$(CARGO) build $(PROGRAMS) --bins --locked

demo: build ## a three-peer shard with a proxy in front; Ctrl-C ends it
	target/debug/manatee-lab up

test: lint build ## formatting, lints, unit, simulation and end-to-end tests
	$(CARGO) test $(ALL) --locked
	@config/dev/left-out.sh

lint: install
	$(CARGO) fmt --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

unit: build
	$(CARGO) test $(ALL) --exclude manatee-tests --locked
	@config/dev/left-out.sh

e2e: build
	$(CARGO) test $(ALL) --locked $(patsubst tests/tests/%.rs,--test %,$(wildcard tests/tests/*.rs)) -- --test-threads=1
	@config/dev/left-out.sh

SEEDS ?= 10000
sim: install ## simulated shards under faults, SEEDS=n of them; a failure prints how to replay it
	$(CARGO) run --profile sim --locked -p manatee-sitter-core --features sim --bin manatee-sim -- \
	  --seeds $(SEEDS) --threads $$(nproc)

smoke: build ## the main job unattended: bring up, write, kill the primary's host, rejoin
	target/debug/manatee-lab smoke

faults: build ## rows of the list of faults: ROWS="4 12" ROUNDS=3; default: all, once
	target/debug/manatee-lab fault $(ROWS) --rounds $(or $(ROUNDS),1)

conformance: build ## PostgreSQL's own regression suite straight and through the proxy; lists what differs
	tests/conformance/fetch.sh target/conformance
	target/debug/manatee-lab conformance

suites: build ## test suites of others straight and through the proxy: SUITES="isolation asyncpg"; default: all
	@config/dev/install-suites.sh
	target/debug/manatee-lab suites $(SUITES)

equivalence: build ## random conversations, straight and through the proxy, for SECONDS, from SEED on; lists what differs
	target/debug/manatee-lab equivalence --seconds $(or $(SECONDS),3600) $(if $(SEED),--seed $(SEED))

drivers: build ## a smoke program of each driver that can be had, through a proxy
	target/debug/manatee-lab run -- tests/drivers/run.sh target/drivers

fuzz: install ## mutated conversations through everything that reads what strangers send, for SECONDS
	MANATEE_FUZZ_SECONDS=$(or $(SECONDS),3600) $(CARGO) test $(ALL) --test fuzz --locked -- --nocapture

test-openzfs: install ## storage and the rejoin ladder on genuine OpenZFS, in an emulated Debian (root; not part of test)
	tests/openzfs/run.sh

# What is measured, and whom and how long: `make bench BENCH="proxies load --clients 16 --targets pgbouncer,manatee"`,
# `make bench BENCH=growth`, `make bench BENCH=failover`; options by `target/release/manatee-bench --help`.
BENCH ?= proxies
bench: build ## proxies side by side, a table and bench.json; installs what it measures against
	@config/dev/install-bench.sh
	$(CARGO) build --release --locked -p manatee-proxy -p manatee-bench
	target/release/manatee-bench $(BENCH)

micro: install ## what the proxy does for one query, piece by piece, without sockets (criterion)
	$(CARGO) bench --locked -p manatee-micro

clean:
	$(CARGO) clean
