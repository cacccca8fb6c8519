"""Random decisions as pure functions of integers, so that any process can make any of them, in any order.

The mixer is SplitMix64's (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195). numpy's own
generators are not used because their streams may change between releases (NEP 19).
"""

import numpy as np

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
