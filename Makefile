# Everything starts here; every target does its own set-up. `make` alone lists the targets.
.DEFAULT_GOAL := help
.PHONY: help setup demo dev test crash-test crash-mutations month check format schema access-table lock package deploy remove clean bench
BIN := .venv/bin
export PYTHON ?= python3
# Most tests wait for other processes, so there are more of them than cores.
PROCESSES ?= 4
OSLS := node_modules/.bin/osls

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

setup: ## Install everything that is needed, from the lock files
	@sh infra/setup.sh

demo: setup ## Sign three people up on a stack of real parts, show what they get, and stop
	@$(BIN)/doorkey demo $(ARGS)

dev: setup ## The same stack, left running until Ctrl-C
	@$(BIN)/doorkey dev $(ARGS)

test: check ## Every kind of test, against the real parts
	@$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadgroup $(ARGS)

crash-test: setup ## Ten thousand signups among workers that are killed on purpose; ARGS="--seed 7" replays a plan
	@$(BIN)/python -m tests.crash --signups 10000 $(ARGS)

crash-mutations: setup ## Does the crash test notice? Breaks the code in many ways, one at a time
	@$(BIN)/python -m tests.crash.mutate $(ARGS)

month: setup ## A month of 500 users and 100,000 calls under a moved clock; every micro-dollar must be placed
	@$(BIN)/python -m tests.month $(ARGS)

bench: setup ## Every path measured beside its floor: a table, and build/bench.json
	@$(BIN)/python -m infra.bench $(ARGS)

check: setup ## Format, lint, types, import rules, migrations, lock files: in seconds
	@$(BIN)/ruff format --check --quiet . || (echo "Run make format." && false)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-cache --config pyproject.toml > build/imports.log || (cat build/imports.log && false)
	@$(BIN)/squawk --config .squawk.toml supabase/migrations/*.sql > build/squawk.log 2>&1 || (cat build/squawk.log && false)
	@$(BIN)/python -m infra.local.lock_check
	@echo "make check: all is well"

format: setup ## Format the code and mend what can be mended by itself
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

schema: setup ## Generate supabase/schema.sql from the migrations
	@$(BIN)/python -m infra.local.schema_export

access-table: setup ## Write the table in docs/access.md: keys, tokens and operations, and what comes of them
	@$(BIN)/python -m pytest tests/acceptance/test_access_matrix.py --quiet --write

lock: ## Resolve the lock files again from pyproject.toml and package.json
	@sh infra/lock.sh

package: setup ## The zip for Lambda and the CloudFormation, into build/
	@$(BIN)/python -m infra.aws.package
	@$(OSLS) package --stage $(or $(STAGE),dev) --package build/aws

# Forced: without a change of the code too, a changed secret must get in. CloudFormation reads it when it updates a function.
deploy: ## Put it on AWS, or what changed: make deploy STAGE=prod
	@test -n "$(STAGE)" || (echo "Say where to: make deploy STAGE=prod" && false)
	@$(MAKE) --no-print-directory setup
	@$(BIN)/python -m infra.aws.package
	@$(OSLS) deploy --stage $(STAGE) --force --verbose

remove: ## Take it away from AWS, but for the secret: make remove STAGE=prod
	@test -n "$(STAGE)" || (echo "Say what: make remove STAGE=prod" && false)
	@$(MAKE) --no-print-directory setup
	@$(OSLS) remove --stage $(STAGE)

clean: ## Remove what was installed and built
	@rm -rf .venv node_modules build .serverless
