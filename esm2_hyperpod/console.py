"""Progress, as a bar on a terminal and as plain lines in a file; what the commands of steps 0 and 1 share."""

import argparse
import contextlib
import getpass
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from esm2_hyperpod.command_line import Parser

SECONDS_WITHOUT_BAR = 1
SECONDS_BETWEEN_LINES = 300
SECONDS_OF_SILENCE = 5

Item = TypeVar("Item")


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
def byte_bar(
    total: int | None, title: str, unit: str = "B", done: int = 0, silence: float | None = None
) -> Iterator[Callable[[int], object]]:
    """A bar in bytes, with rate and, where `total` is known, the time left; yields what moves it on.

    It moves on a terminal. In a file it is a line at its end, and every five minutes of long work. What takes
    less than `silence` seconds (1) has none; nor has a process of a job beside the first.

    Args:
        unit: of what it counts in place of bytes, such as " proteins".
        done: where it begins.
    """
    if not _is_first():
        yield lambda count: None
        return
    silence = SECONDS_WITHOUT_BAR if silence is None else silence
    if sys.stderr.isatty():
        shape = {"unit": unit, "unit_scale": True, "delay": silence, "dynamic_ncols": True}
        with tqdm(total=total, desc=title, initial=done, **shape) as bar:
            yield bar.update
        return
    lines = _Lines(total, title, unit, done)
    try:
        yield lines.update
    finally:
        if lines.seconds > silence:
            lines.say()


def counted(items: Iterable[Item], total: int | None, title: str, unit: str) -> Iterator[Item]:
    """The items, with a bar that counts them, where they take more than five seconds."""
    with byte_bar(total, title, unit, silence=SECONDS_OF_SILENCE) as move_bar:
        for item in items:
            yield item
            move_bar(1)


@contextlib.contextmanager
def in_progress(
    title: str, size: Callable[[], int] | None = None, total: int | None = None
) -> Iterator[None]:
    """Signs of life of work that cannot count itself: the time it takes and, with `size`, the bytes so far.

    After five seconds a bar on a terminal, or a line in a file, with others every five minutes and at the
    end. What takes less says nothing, and nor does a process of a job beside the first.

    Args:
        size: called now and then, from another thread.
        total: bytes at the end, as far as is known.
    """
    if not _is_first():
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(title, size, total, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch(title: str, size: Callable[[], int] | None, total: int | None, ended: threading.Event) -> None:
    lines = _Lines(total, title, "B" if size else None)
    if ended.wait(SECONDS_OF_SILENCE):
        return
    terminal = sys.stderr.isatty()
    said = -SECONDS_BETWEEN_LINES
    while True:
        over = ended.is_set()
        if terminal or over or lines.seconds - said > SECONDS_BETWEEN_LINES:
            lines.done = size() if size else 0
            lines.say(end="\033[K\r" if terminal and not over else "\n")
            said = lines.seconds
        if over:
            return
        ended.wait(1)


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


class _Lines:
    """A bar for a file; without a unit it shows the time alone."""

    def __init__(self, total: int | None, title: str, unit: str | None, done: int = 0):
        self._total, self._title, self._unit, self._initial, self.done = total, title, unit, done, done
        self._began = self._said = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def update(self, count: int) -> None:
        self.done += count
        if time.monotonic() - self._said > SECONDS_BETWEEN_LINES:
            self.say()

    def say(self, end: str = "\n") -> None:
        self._said = time.monotonic()
        text = f"{self._title}: {tqdm.format_interval(self.seconds)}"
        if self._unit:
            shape = {"prefix": self._title, "unit": self._unit, "unit_scale": True, "initial": self._initial}
            text = tqdm.format_meter(self.done, self._total, self.seconds, **shape)
        print(text, end=end, file=sys.stderr, flush=True)


def amounts(proteins: int, residues: int, longest: int, seconds: float) -> str:
    """How much went through a step, and how fast, for its last line."""
    return (
        f"{residues:,} residues, mean length {residues / max(proteins, 1):.1f}, longest {longest:,}; "
        f"{seconds:.1f} s, {proteins / seconds:,.0f} records/s"
    )


def mark(synthetic: bool) -> str:
    """What follows every line about synthetic data."""
    return " (synthetic)" if synthetic else ""
