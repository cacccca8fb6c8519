#!/usr/bin/env bash
# Set up what the tests need and run them.
#
#   bash run_tests.sh                               linters, import directions and all tests
#   bash run_tests.sh tests/tokenization -k name    these tests alone; the arguments go to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

VENV="${VENV:-$PWD/.venv}"
requirements="$(cat requirements.txt cluster_setup/requirements.txt tests/*requirements.txt)"
if [ ! -x "$VENV/bin/python" ] || [ "$requirements" != "$(cat "$VENV/.tests-installed" 2>/dev/null)" ]; then
  [ -x "$VENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$VENV"
  "$VENV/bin/python" -m pip install --quiet -r requirements.txt -r tests/requirements.txt
  echo "$requirements" >"$VENV/.tests-installed"
fi
if [ $# = 0 ]; then
  "$VENV/bin/ruff" check .
  "$VENV/bin/ruff" format --check --quiet .
  "$VENV/bin/lint-imports" --no-logo --no-cache
  git ls-files '*.sh' .ci/run | xargs "$VENV/bin/shellcheck" -x
  set -- --numprocesses=3 --dist=loadfile --no-loadscope-reorder
fi
"$VENV/bin/python" -m pytest "$@"
