"""Random decisions as pure functions of integers, so that any process can make any of them, in any order.

The mixer is SplitMix64's (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195). numpy's own
generators are not used because their streams may change between releases (NEP 19).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # only its buffers are read; training needs no pyarrow for its hashes
    import pyarrow as pa

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix64(values: np.ndarray) -> np.ndarray:
    """SplitMix64 of each value: uint64 in, uniformly spread uint64 out, same shape."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        z = np.asarray(values, dtype=np.uint64) + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def key64(*parts: int) -> np.uint64:
    """One key from several integers, of any sign; their order matters."""
    key = np.uint64(0)
    for part in parts:
        key = mix64(key ^ np.uint64(part & 0xFFFFFFFFFFFFFFFF))
    return np.uint64(key)


def permutation(count: int, key: np.uint64) -> np.ndarray:
    """A random order of `range(count)` that depends on `key` alone: int64[count]."""
    return np.argsort(mix64(np.arange(count, dtype=np.uint64) ^ key), kind="stable")


_POSITIONS = 64
_TABLE = mix64(np.arange(_POSITIONS * 256, dtype=np.uint64))
"""uint64[64 * 256]: a random word for each (position modulo 64, byte): tabulation hashing (Zobrist 1970)."""


def hash_ids(ids: pa.Array, seed: int) -> np.ndarray:
    """uint64[n]: a hash of each id's bytes and the seed. `ids` is Arrow binary or string, none null."""
    count = len(ids)
    bounds = np.frombuffer(ids.buffers()[1], dtype=np.int32)[ids.offset : ids.offset + count + 1]
    lengths = np.diff(bounds)
    values = np.frombuffer(ids.buffers()[2], dtype=np.uint8)[bounds[0] : bounds[-1]]
    starts = bounds[:-1] - bounds[0]
    positions = np.arange(len(values), dtype=np.int32) - np.repeat(starts, lengths)
    words = _TABLE[(positions % _POSITIONS) * 256 + values]
    sums = np.zeros(count, dtype=np.uint64)
    filled = lengths > 0  # reduceat gives an empty slice its next element
    if filled.any():
        sums[filled] = np.add.reduceat(words, starts[filled])
    return mix64(sums ^ mix64(lengths.astype(np.uint64)) ^ key64(seed))
