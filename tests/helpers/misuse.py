"""Tables of misuse: what a user may get wrong, and the one line that answers.

A row is (name, words of the command line, what the line must say). The words are split as a shell would; in
them `OUT` is an output folder that is not there yet, and names of files stand for the files of the table.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from helpers.steps import here


def table(rows: list[tuple[str, str, str]]):
    """The parametrisation of a test by rows."""
    assert len({name for name, *_ in rows}) == len(rows), "two rows of one name"
    names, rows = [name for name, *_ in rows], [row for _, *row in rows]
    return pytest.mark.parametrize(("words", "message"), rows, ids=names)


def refusal(script: str, words: str, folder: Path) -> str:
    """Run a script, where all its imports may be done already, and return the one line that it refuses with.

    Whatever it began is gone: `OUT` may be there, but no file in it.
    """
    with own_process():
        result = here(script, *arguments(words, folder), check=False)
    lines = result.stderr.splitlines()
    assert result.returncode == 1 and len(lines) == 1, result.stdout + result.stderr
    assert re.search("error: |problem: ", lines[0]) and "Traceback" not in result.stdout
    left = files_in(folder / "OUT")
    shutil.rmtree(folder / "OUT", ignore_errors=True)
    assert left == []
    return lines[0]


def arguments(words: str, folder: Path) -> list[str]:
    """The words, with paths below `folder` for `OUT` and for the names of what is in it."""
    there = {path.name for path in folder.iterdir()} | {"OUT"}
    return [
        str(folder / word) if Path(word).parts and Path(word).parts[0] in there else word
        for word in shlex.split(words)
    ]


def files_in(folder: Path) -> list[Path]:
    """What a run has left but its lock, and splits, which are whole and used again."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return [path for path in files if path.name != ".lock" and path.parent.name != "splits"]


@contextlib.contextmanager
def own_process() -> Iterator[None]:
    """Undo what a training script does to its process; `train.py` would hide peft from other tests.

    No bar is shown, however slow the machine is.
    """
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    handlers = [signal.getsignal(number) for number in numbers]
    all_packages = mock.patch("esm2_hyperpod.imports.leave_out")
    without_bar = mock.patch("esm2_hyperpod.console.SECONDS_WITHOUT_BAR", 1e9)
    with mock.patch.dict(os.environ), all_packages, without_bar:
        try:
            yield
        finally:
            for number, handler in zip(numbers, handlers):
                signal.signal(number, handler)
