"""What the commands of steps 0 and 1 share: flags, the progress bar, the last line."""

import argparse
import contextlib
import getpass
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

from esm2_hyperpod.command_line import Parser

SECONDS_WITHOUT_BAR = 1
SECONDS_BETWEEN_LINES = 300


def step_parser(description: str, output: str) -> Parser:
    """A parser with the flags of both steps; `output` is the default output folder, below `fsx_dir`."""
    parser = Parser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output_dir", type=a_path, default=fsx_dir() / output, help="default: %(default)s")
    parser.add_argument("--plot", action="store_true", help="draw lengths and residue frequencies")
    parser.add_argument("--overwrite", action="store_true", help="start over, replacing what is there")
    return parser


def fsx_dir() -> Path:
    """The root of all default paths: `FSX_DIR`, or `/fsx/USER`."""
    return Path(os.environ.get("FSX_DIR") or f"/fsx/{user()}")


def user() -> str:
    """The user's name, or number where a container knows no name for it."""
    try:
        return os.environ.get("USER") or getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def a_path(text: str) -> Path:
    """The type of a flag that takes a path; the shell leaves the ~ of `--flag=~/x` alone."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; is a variable of the command not set?")
    return Path(text).expanduser()


def positive(text: str) -> int:
    """The type of a flag that takes 1, 2, 3, ..."""
    value = whole_number(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be 1 or more")
    return value


def whole_number(text: str) -> int:
    """The type of a flag that takes a count."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number such as 1000") from None


@contextlib.contextmanager
def byte_bar(total: int | None, title: str) -> Iterator[Callable[[int], object]]:
    """A bar in bytes, with rate and, where `total` is known, the time left; yields what moves it on.

    It moves on a terminal. In a file it is a line at its end, and every five minutes of long work. What takes
    less than a second has none.
    """
    if sys.stderr.isatty():
        shape = {"unit": "B", "unit_scale": True, "delay": SECONDS_WITHOUT_BAR, "dynamic_ncols": True}
        with tqdm(total=total, desc=title, **shape) as bar:
            yield bar.update
        return
    lines = _Lines(total, title)
    try:
        yield lines.update
    finally:
        if lines.seconds > SECONDS_WITHOUT_BAR:
            lines.say()


class _Lines:
    """A bar for a file."""

    def __init__(self, total: int | None, title: str):
        self._total, self._title, self._done = total, title, 0
        self._began = self._said = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def update(self, count: int) -> None:
        self._done += count
        if time.monotonic() - self._said > SECONDS_BETWEEN_LINES:
            self.say()

    def say(self) -> None:
        self._said = time.monotonic()
        shape = {"prefix": self._title, "unit": "B", "unit_scale": True}
        print(tqdm.format_meter(self._done, self._total, self.seconds, **shape), file=sys.stderr, flush=True)


def amounts(proteins: int, residues: int, longest: int, seconds: float) -> str:
    """How much went through a step, and how fast, for its last line."""
    return (
        f"{residues:,} residues, mean length {residues / max(proteins, 1):.1f}, longest {longest:,}; "
        f"{seconds:.1f} s, {proteins / seconds:,.0f} records/s"
    )


def mark(synthetic: bool) -> str:
    """What follows every line about synthetic data."""
    return " (synthetic)" if synthetic else ""
