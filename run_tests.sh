#!/usr/bin/env bash
# Set up what the tests need and run them: bash run_tests.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

VENV="${VENV:-$PWD/.venv}"
[ -x "$VENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$VENV"
"$VENV/bin/python" -m pip install --quiet -r requirements.txt -r tests/requirements.txt
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check --quiet .
git ls-files '*.sh' .ci/run | xargs "$VENV/bin/shellcheck" -x
"$VENV/bin/python" -m pytest "$@"
