"""What the tests share: the repository's root, a way to run its commands, and the optional real data."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

on_demand = pytest.mark.skipif(os.environ.get("SURVIVAL") != "all", reason="takes long: SURVIVAL=all runs it")

ROOT = Path(__file__).parent.parent
REAL_DATA = ROOT.parent / "shared" / "data"

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing in the tests may depend on a network
# Tiny models gain nothing from threads, which lose much to each other where the machine is busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes name no test: a gzip holds the time, so each worker would collect a test of another name."""
    return argname if isinstance(val, bytes) else None


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


@pytest.fixture
def real_data() -> Path:
    """The folder of real sequences and labels; the test is skipped where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"real sequences are not at {REAL_DATA}")
    return REAL_DATA


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A random ESM-2 of two layers, the base of fine-tuning."""
    from localization_example import write_base  # torch, which most tests do without

    folder = tmp_path_factory.mktemp("base")
    write_base(folder)
    return folder


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory) -> Path:
    """Steps 0 and 1 on 600 synthetic records: a folder with csv/ and processed/arrow/."""
    folder = tmp_path_factory.mktemp("synthetic")
    run("0.download_data.py", "--source", "synthetic", "--max_records", 600, "--num_partitions", 4,
        "--output_dir", folder / "csv")  # fmt: skip
    run(
        "1.tokenize_uniref_csv.py",
        "--input_dir",
        folder / "csv",
        "--output_dir",
        folder / "processed" / "arrow",
    )
    return folder


@pytest.fixture(scope="session")
def tokenized(synthetic) -> Path:
    """The tokenized splits of `synthetic`."""
    return synthetic / "processed" / "arrow"
