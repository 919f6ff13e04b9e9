#!/bin/sh
# Installs what doorkey needs into .venv and node_modules, from the lock files, and only when they changed.
# Says in one sentence what is missing on the machine.
set -eu
cd "$(dirname "$0")/.."

fail() { printf 'doorkey: %s\n' "$1" >&2; exit 1; }

PYTHON=${PYTHON:-python3}
command -v "$PYTHON" >/dev/null 2>&1 || fail "Python 3.11 or newer is needed; install it, or name one: make PYTHON=/path/to/python3"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "Python 3.11 or newer is needed, and $PYTHON is $("$PYTHON" -c 'import platform; print(platform.python_version())'); name a newer one: make PYTHON=python3.12"
"$PYTHON" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$PYTHON can't make virtual environments; on Debian and Ubuntu: apt-get install python3-venv"
command -v node >/dev/null 2>&1 || fail "Node 20 or newer is needed; install it from your system's packages or nodejs.org"
node -e 'process.exit(Number(process.versions.node.split(".")[0]) < 20 ? 1 : 0)' ||
    fail "Node 20 or newer is needed, and this is $(node --version)"
command -v npm >/dev/null 2>&1 || fail "npm is needed; it comes with Node"

mkdir -p build

checksum() { cat "$@" | cksum; }

wanted="$("$PYTHON" -c 'import sys; print(sys.version)') $(checksum requirements-dev.txt pyproject.toml) $PWD"
if [ "$(cat .venv/.installed 2>/dev/null || true)" != "$wanted" ]; then
    echo "Installing Python packages into .venv"
    rm -rf .venv
    "$PYTHON" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt ||
        fail "the Python packages could not be installed; see above"
    # Only puts the checkout on the path and the doorkey command into .venv/bin.
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . ||
        fail "doorkey itself could not be installed; see above"
    printf '%s' "$wanted" >.venv/.installed
fi

wanted="$(node --version) $(checksum package.json package-lock.json)"
if [ "$(cat node_modules/.installed 2>/dev/null || true)" != "$wanted" ]; then
    echo "Installing npm packages into node_modules"
    npm ci --no-audit --no-fund --loglevel=error || fail "the npm packages could not be installed; see above"
    printf '%s' "$wanted" >node_modules/.installed
fi
