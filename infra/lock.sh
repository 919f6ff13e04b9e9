#!/bin/sh
# Resolves the lock files again: exact versions with hashes, and no addresses.
set -eu
cd "$(dirname "$0")/.."
# Not every time: right after a change of the wishes there is nothing to set up from.
[ -x .venv/bin/uv ] || sh infra/setup.sh
compile() {
    .venv/bin/uv pip compile --quiet pyproject.toml --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" "$@"
}
compile --output-file requirements.txt
compile --extra dev --constraint requirements.txt --output-file requirements-dev.txt
npm install --package-lock-only --omit-lockfile-registry-resolved --no-audit --no-fund --loglevel=error
