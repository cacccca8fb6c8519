"""Which sequences share a pack, and in which order the packs of an epoch come.

A pack is a fixed number of tokens filled with whole sequences. The *layout* (how many sequences of
which lengths make each pack) is computed once from the lengths. An epoch then deals the sequences
of each length anew among the slots of that length and shuffles the packs: every epoch has other
neighbours and another order, yet the same number of packs, so that step s of a run is found by
arithmetic. All of it is a pure function of (lengths, capacity, seed, epoch).
"""

from dataclasses import dataclass

import numpy as np

from esm2_hyperpod.hashing import key64, mix64, permutation

# What a random decision is for; keeps the streams of one (seed, epoch) apart.
_LAYOUT, _MEMBERS, _ORDER = 1, 2, 3


@dataclass(frozen=True)
class Layout:
    """Packs as slots for lengths.

    Attributes:
        pack_starts: int64[packs + 1], where each pack's slots begin.
        slots_by_length: int64[sequences], slots ordered by the length they take.
        sequences_by_length: int64[sequences], sequence indices ordered by length; aligned with the above.
        class_starts: int64[classes + 1], where each length begins in the two orders above.
    """

    pack_starts: np.ndarray
    slots_by_length: np.ndarray
    sequences_by_length: np.ndarray
    class_starts: np.ndarray

    @property
    def packs(self) -> int:
        return len(self.pack_starts) - 1

    @property
    def most_sequences(self) -> int:
        """The largest number of sequences in one pack."""
        return int(np.diff(self.pack_starts).max())


@dataclass(frozen=True)
class EpochPlan:
    """Members of each pack of one epoch, in the order in which the packs are visited."""

    members: np.ndarray
    pack_starts: np.ndarray
    order: np.ndarray

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> np.ndarray:
        """Sequence indices of the pack visited at `position`: int64[sequences in it]."""
        pack = self.order[position]
        return self.members[self.pack_starts[pack] : self.pack_starts[pack + 1]]


def packed_layout(lengths: np.ndarray, capacity: int, seed: int) -> Layout:
    """Fill packs of `capacity` tokens with whole sequences of `lengths` tokens, each at most `capacity`.

    Sequences come in random order until one does not fit; the gap that is left is filled by the
    longest that fits from a reserve of random sequences (best fit), so that little is wasted while
    the packs stay random samples. One step of Python a pack: seconds for tens of millions of sequences.
    """
    assert len(lengths) and lengths.min() > 0 and lengths.max() <= capacity
    order = permutation(len(lengths), key64(seed, _LAYOUT))
    # About one filler closes a pack, so the reserve holds one a pack and half as many again.
    reserve = int(min(0.5, 1.5 * lengths.mean() / capacity) * len(lengths))
    stream, fillers = order[reserve:], _Reserve(order[:reserve], lengths)
    ends = np.concatenate([[0], np.cumsum(lengths[stream], dtype=np.int64)])
    pack_of_stream, pack_of_fillers = [], []
    position = 0
    while position < len(stream) or fillers:
        pack = len(pack_of_stream)
        end = int(np.searchsorted(ends, ends[position] + capacity, side="right")) - 1
        pack_of_fillers += fillers.fill(capacity - int(ends[end] - ends[position]), pack)
        pack_of_stream.append(end - position)
        position = end
    packs = len(pack_of_stream)
    members = np.concatenate([stream, np.asarray(fillers.taken, dtype=np.int64)])
    pack_of = np.concatenate(
        [np.repeat(np.arange(packs), pack_of_stream), np.asarray(pack_of_fillers, dtype=np.int64)]
    )
    members = members[np.argsort(pack_of, kind="stable")]
    starts = np.concatenate([[0], np.cumsum(np.bincount(pack_of, minlength=packs))])
    return _layout(members, starts, lengths)


def padded_layout(lengths: np.ndarray, capacity: int) -> Layout:
    """Rows of similar length: as many sequences as fit when all are padded to the longest of them."""
    assert len(lengths) and lengths.max() <= capacity
    members = np.argsort(-lengths.astype(np.int64), kind="stable")
    starts = [0]
    while starts[-1] < len(members):
        longest = int(lengths[members[starts[-1]]])
        starts.append(min(len(members), starts[-1] + capacity // longest))
    return _layout(members, np.asarray(starts), lengths)


def plan_epoch(layout: Layout, seed: int, epoch: int) -> EpochPlan:
    """Deal the sequences of each length among that length's slots, and shuffle the packs."""
    keys = mix64(layout.sequences_by_length.astype(np.uint64) ^ key64(seed, epoch, _MEMBERS))
    members = np.empty(len(keys), dtype=np.int64)
    for start, end in zip(layout.class_starts[:-1], layout.class_starts[1:]):
        dealt = start + np.argsort(keys[start:end], kind="stable")
        members[layout.slots_by_length[start:end]] = layout.sequences_by_length[dealt]
    return EpochPlan(members, layout.pack_starts, permutation(layout.packs, key64(seed, epoch, _ORDER)))


def _layout(members: np.ndarray, pack_starts: np.ndarray, lengths: np.ndarray) -> Layout:
    if lengths.max() < 1 << 16:
        lengths = lengths.astype(np.uint16)  # numpy sorts 16 bits by radix, ten times as fast
    slots = np.argsort(lengths[members], kind="stable")
    sequences = np.argsort(lengths, kind="stable")
    classes = np.flatnonzero(np.diff(lengths[sequences])) + 1
    return Layout(pack_starts, slots, sequences, np.concatenate([[0], classes, [len(members)]]))


class _Reserve:
    """Sequences held back to close gaps: the longest that fits is found by one look at a bit set."""

    def __init__(self, sequences: np.ndarray, lengths: np.ndarray):
        self.taken: list[int] = []
        self._stacks: dict[int, list[int]] = {}
        for sequence, length in zip(sequences.tolist(), lengths[sequences].tolist()):
            self._stacks.setdefault(length, []).append(sequence)
        self._present = sum(1 << length for length in self._stacks)

    def __bool__(self) -> bool:
        return bool(self._present)

    def fill(self, gap: int, pack: int) -> list[int]:
        """Take what closes `gap` best; returns `pack` once for each sequence taken."""
        before = len(self.taken)
        while length := (self._present & ((2 << gap) - 1)).bit_length():
            stack = self._stacks[length - 1]
            self.taken.append(stack.pop())
            if not stack:
                self._present ^= 1 << (length - 1)
            gap -= length - 1
        return [pack] * (len(self.taken) - before)
