"""What the commands of steps 0 and 1 share: flags, the progress bar, the last line."""

import argparse
import getpass
import os
import sys
from pathlib import Path

from tqdm import tqdm


def step_parser(description: str, output: str) -> argparse.ArgumentParser:
    """A parser with the flags of both steps; `output` is the default output folder, below `fsx_dir`."""
    parser = argparse.ArgumentParser(
        description=description, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, default=fsx_dir() / output, help="default: %(default)s")
    parser.add_argument("--plot", action="store_true", help="draw lengths and residue frequencies")
    parser.add_argument("--overwrite", action="store_true", help="start over, replacing what is there")
    return parser


def fsx_dir() -> Path:
    """The root of all default paths: `FSX_DIR`, or `/fsx/USER`."""
    return Path(os.environ.get("FSX_DIR") or f"/fsx/{os.environ.get('USER') or getpass.getuser()}")


def positive(text: str) -> int:
    """The type of a flag that takes 1, 2, 3, ..."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def byte_bar(total: int | None, title: str) -> tqdm:
    """A bar in bytes, with rate and, where `total` is known, the time left.

    On a terminal it moves; in a Slurm log it is a line every half minute.
    """
    live = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=title,
        unit="B",
        unit_scale=True,
        mininterval=0.2 if live else 30,
        dynamic_ncols=live,
    )


def amounts(proteins: int, residues: int, longest: int, seconds: float) -> str:
    """How much went through a step, and how fast, for its last line."""
    return (
        f"{residues:,} residues, mean length {residues / max(proteins, 1):.1f}, longest {longest:,}; "
        f"{seconds:.1f} s, {proteins / seconds:,.0f} records/s"
    )


def mark(synthetic: bool) -> str:
    """What follows every line about synthetic data."""
    return " (synthetic)" if synthetic else ""
