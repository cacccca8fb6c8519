"""One progress bar a step: lively on a terminal, a line every half minute in a Slurm log."""

import sys

from tqdm import tqdm


def byte_bar(total: int | None, title: str) -> tqdm:
    """A bar in bytes, with rate and, where `total` is known, the time left."""
    live = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=title,
        unit="B",
        unit_scale=True,
        mininterval=0.2 if live else 30,
        dynamic_ncols=live,
    )
