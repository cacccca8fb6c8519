"""How a protein that is longer than the model's window is read: in windows that overlap by half.

All windows are of the same length; the first begins at the start of the protein, the last ends at its end. A
window is read like a protein of its own, with `<cls>` and `<eos>`. What the model says of a residue is taken
from the window in which the residue is farthest from a cut.
"""

import itertools
from typing import NamedTuple


class Window(NamedTuple):
    """Residues `start` to `stop` of a protein are read, those from `first` to `last` taken."""

    start: int
    stop: int
    first: int
    last: int


def windows(residues: int, max_length: int) -> list[Window]:
    """The windows of a protein of so many residues; `max_length` counts `<cls>` and `<eos>` too.

    What the windows take covers each residue once. One window where the protein fits, or is empty.
    """
    room = max_length - 2
    if residues <= room:
        return [Window(0, residues, 0, residues)]
    starts = [*range(0, residues - room, room // 2), residues - room]
    cuts = [(start + before + room) // 2 for before, start in itertools.pairwise(starts)]
    return [
        Window(start, start + room, first, last)
        for start, first, last in zip(starts, [0, *cuts], [*cuts, residues])
    ]


def window_of(position: int, residues: int, max_length: int) -> Window:
    """The window that a residue, counted from 0, is taken from."""
    return next(window for window in windows(residues, max_length) if position < window.last)
