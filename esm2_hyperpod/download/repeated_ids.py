"""Finds ids that occur more than once, in flat memory: their hashes wait in a file, 8 bytes a record."""

from typing import BinaryIO

import numpy as np

_BUCKET_RECORDS = 16 << 20  # 128 MB of hashes in memory at a time


class IdCensus:
    """Counts repeated ids by 64-bit hash (with 65 million ids a false alarm has odds of 1 in 8,000)."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._records = 0

    def add(self, hashes: np.ndarray) -> None:
        """uint64[n]: the hashes of the next records' ids."""
        self._file.write(hashes)
        self._records += len(hashes)

    def repeats(self) -> tuple[int, tuple[int, int] | None]:
        """How many records repeat an earlier id, and the numbers (from 0) of one such pair of records."""
        self._file.flush()
        if not self._records:
            return 0, None
        hashes = np.memmap(self._file, dtype=np.uint64, mode="r", shape=(self._records,))
        buckets = -(-self._records // _BUCKET_RECORDS)
        count, example = 0, None
        for bucket in range(buckets):
            members = np.sort(np.concatenate([part[part % buckets == bucket] for part in _parts(hashes)]))
            repeated = members[1:][members[1:] == members[:-1]]
            count += len(repeated)
            if example is None and len(repeated):
                example = repeated[0]
        if example is None:
            return 0, None
        first, second = np.concatenate(
            [np.flatnonzero(part == example) + start for start, part in zip(_starts(hashes), _parts(hashes))]
        )[:2].tolist()
        return count, (first, second)


def _starts(hashes: np.ndarray) -> range:
    return range(0, len(hashes), _BUCKET_RECORDS)


def _parts(hashes: np.ndarray) -> list[np.ndarray]:
    return [hashes[start : start + _BUCKET_RECORDS] for start in _starts(hashes)]
