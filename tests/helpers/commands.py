"""The repository's commands, run as a user runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

on_demand = pytest.mark.skipif(os.environ.get("SURVIVAL") != "all", reason="takes long: SURVIVAL=all runs it")

ROOT = Path(__file__).parents[2]
REAL_DATA = ROOT.parent / "shared" / "data"


def run(*command: object, check: bool = True, timeout: float = 600, **environment: str):
    """Run a command in the repository's root; its output is shown when it fails and `check` is set."""
    words = [str(word) for word in command]
    if words[0].endswith(".py"):
        words.insert(0, sys.executable)
    result = subprocess.run(
        words,
        cwd=ROOT,
        env={**os.environ, "VENV": sys.prefix, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if check and result.returncode:
        pytest.fail(f"{' '.join(words)}\nexit {result.returncode}\n{result.stdout}\n{result.stderr}")
    return result


RUN_EACH = """
import contextlib, io, json, runpy, sys
script, commands = sys.argv[1], json.loads(sys.argv[2])
results = []
for arguments in commands:
    sys.argv, code, errors = [script, *arguments], 0, io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            code = end.code
    if isinstance(code, str):  # as the interpreter does
        code, errors = 1, io.StringIO(code)
    results.append((code, errors.getvalue()))
print(json.dumps(results))
"""


def run_each(script: str, commands: list[list[str]], **environment: str) -> list[tuple[int, str]]:
    """Exit code and stderr of a script run with each list of arguments, in one process: imports take long."""
    out = run(sys.executable, "-c", RUN_EACH, script, json.dumps(commands), **environment).stdout
    return [(code or 0, errors) for code, errors in json.loads(out.splitlines()[-1])]
