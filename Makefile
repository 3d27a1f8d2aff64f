# Each target sets up what it needs: a fresh machine needs only Python 3.11 or newer, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test check faults bench bench-peers bench-compare docs clean

help: ## show these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Setting up $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## great-circle distances between the ten busiest US airports, into a table and a file
	@$(BIN)/python examples/airports.py < examples/airports.txt

test: $(STAMP) ## run the tests, two files at a time, but for the long ones of `make faults`
	@$(BIN)/python -m pytest -m "not faults" -n 2 --dist loadfile

check: $(STAMP) ## format, lint, types and tests: what continuous integration runs
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(MAKE) --no-print-directory test

faults: $(STAMP) ## kill real processes for hours; SEED=n RUNS=n ITEMS=n WORK=travel|ledger|mixed for less
	@$(if $(SEED)$(RUNS)$(WORK),,$(BIN)/python -m tests.damage)
	@$(if $(SEED)$(RUNS)$(WORK),,$(BIN)/python -m tests.faults.http_attack)
	@$(if $(SEED)$(RUNS)$(WORK),,if command -v wrk >/dev/null; then $(BIN)/python -m tests.faults.http_attack --wrk; \
		else echo "without the requests of wrk, which is not installed: apt-get install wrk"; fi)
	@$(if $(SEED)$(RUNS)$(WORK),,$(BIN)/python -m tests.daemon)
	@$(BIN)/python -m tests.faults $(if $(SEED),--seed $(SEED)) $(if $(RUNS),--runs $(RUNS)) $(if $(ITEMS),--items $(ITEMS)) $(if $(WORK),--work $(WORK))

bench: $(STAMP) ## measure against a plain loop and consecution 0.2.0, side by side
	@$(BIN)/python -m benchmarks

bench-peers: $(STAMP) ## measure beside Bytewax, Ray and others into docs/performance.md; PEERS= WORKS= ROUNDS= QUICK=1
	@$(BIN)/python -m benchmarks.peers $(if $(PEERS),--peers $(PEERS)) $(if $(WORKS),--works $(WORKS)) \
		$(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(QUICK),--quick)

bench-compare: $(STAMP) ## measure this checkout beside revision REV; QUESTIONS="identity cpu" ROUNDS=n QUICK=1
	@test -n "$(REV)" || { echo "say which revision: make bench-compare REV=HEAD~1"; exit 2; }
	@$(BIN)/python -m benchmarks.compare $(REV) $(QUESTIONS) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(QUICK),--quick)

docs: $(STAMP) ## write docs/options.md from the settings, and check what the documentation says
	@$(BIN)/python docs/options_table.py
	@$(BIN)/python -m pytest -q tests/docs

clean: ## remove what make made
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
