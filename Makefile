# Everything starts here; every target does its own set-up. `make` alone lists the targets.
.DEFAULT_GOAL := help
.PHONY: help setup demo dev test check format schema lock clean
BIN := .venv/bin
export PYTHON ?= python3

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

setup: ## Install everything that is needed, from the lock files
	@sh infra/setup.sh

demo: setup ## Sign three people up on a stack of real parts, show what they get, and stop
	@$(BIN)/doorkey demo $(ARGS)

dev: setup ## The same stack, left running until Ctrl-C
	@$(BIN)/doorkey dev $(ARGS)

test: check ## Every kind of test, against the real parts
	@$(BIN)/python -m pytest $(ARGS)

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

lock: setup ## Resolve the lock files again from pyproject.toml and package.json
	@sh infra/lock.sh

clean: ## Remove what was installed and built
	@rm -rf .venv node_modules build
