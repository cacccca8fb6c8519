"""Steps 0 and 1 as the tests run them: in this process, where their imports are done already."""

import contextlib
import io
import json
import os
import runpy
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from helpers.commands import ROOT


def here(script: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess:
    """`helpers.commands.run` without a process of its own."""
    words, output, errors, code = [script, *map(str, arguments)], io.StringIO(), io.StringIO(), 0
    with mock.patch("sys.argv", words), contextlib.redirect_stdout(output):
        with contextlib.redirect_stderr(errors):
            try:
                runpy.run_path(str(ROOT / script), run_name="__main__")
            except SystemExit as end:
                code = end.code or 0
    if isinstance(code, str):  # as the interpreter does
        print(code, file=errors)
        code = 1
    result = subprocess.CompletedProcess(words, code, output.getvalue(), errors.getvalue())
    if check and code:
        pytest.fail(f"{' '.join(words)}\nexit {code}\n{result.stdout}\n{result.stderr}")
    return result


def step_0(source, output, *flags, by=here, **kwargs) -> subprocess.CompletedProcess:
    """Step 0 from `source` to the folder `output`; `by=run` gives it a process of its own."""
    return by("0.download_data.py", "--source", source, "--output_dir", output, *flags, **kwargs)


def step_1(csv, output, *flags, by=here, **kwargs) -> subprocess.CompletedProcess:
    """Step 1 from the folder `csv` to the folder `output`."""
    return by("1.tokenize_uniref_csv.py", "--input_dir", csv, "--output_dir", output, *flags, **kwargs)


def error_line(result: subprocess.CompletedProcess) -> str:
    """The one line of a refusal."""
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if "error:" in line]
    assert len(lines) == 1, result.stderr
    return lines[0]


def manifest(folder: Path) -> dict:
    """What a step says of its output."""
    return json.loads((folder / "manifest.json").read_text())


def load(folder: Path) -> dict[str, dict[str, list[int]]]:
    """Split -> id -> token ids of step 1's output, read with `datasets`; ids occur once."""
    from datasets import load_from_disk

    splits = {}
    for name, split in load_from_disk(str(folder)).items():
        columns = split[:]
        splits[name] = dict(zip(columns["id"], columns["input_ids"], strict=True))
        assert len(splits[name]) == len(split)
    return splits


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 1 MB below `folder` while the block runs; only root may make one."""
    disk = folder / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk]).returncode:
        pytest.skip("mounting a small file system takes root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)
