"""Deal records to CSV partitions x000.csv, x001.csv, ... so that each is an unbiased sample of the whole.

UniRef50 is sorted longest first, so a partition cut in file order would hold the long proteins or the
short ones. Instead every P consecutive records go one to each of the P partitions, in an order drawn from
(seed, group): partitions differ by one record at most, and lengths are spread evenly over them.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from esm2_hyperpod.arrow import binary_array, number_array, offsets_of, values_of
from esm2_hyperpod.artifacts import sync_files
from esm2_hyperpod.hashing import key64, mix64

HEADER = b"id,text\n"
MAX_PARTITIONS = 1000  # three digits, and one open file each
_WRITES_AHEAD = 2


def partition_of(first: int, count: int, partitions: int, seed: int) -> np.ndarray:
    """int64[count]: the partition of records first, first + 1, ...; a pure function of (seed, record)."""
    first_group, last_group = first // partitions, -(-(first + count) // partitions)
    records = np.arange(first_group * partitions, last_group * partitions, dtype=np.uint64)
    draws = mix64(records ^ key64(seed)).reshape(-1, partitions)
    dealt = np.argsort(draws, axis=1, kind="stable").ravel()
    skipped = first - first_group * partitions
    return dealt[skipped : skipped + count]


@dataclass
class Partition:
    """One CSV file as it grows under a temporary name."""

    path: Path
    file: BinaryIO
    records: int = 0
    size: int = 0
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def write(self, rows: np.ndarray | bytes, records: int) -> None:
        """Append whole CSV rows."""
        self.file.write(rows)
        self.digest.update(rows)
        self.size += len(rows)
        self.records += records

    def described(self) -> dict:
        """What the manifest says of it."""
        return {
            "name": self.path.name,
            "records": self.records,
            "bytes": self.size,
            "sha256": self.digest.hexdigest(),
        }


def write_partitions(rows: Iterable[pa.Array], folder: Path, count: int, seed: int) -> list[dict]:
    """Deal `rows` (Arrow binary arrays of CSV lines, in source order) to `count` files below `folder`.

    The files get their names when all of them are whole and on the disk. Returns what the manifest
    records of each: name, records, bytes, sha256.
    """
    with contextlib.ExitStack() as stack:
        partitions = [  # not `whole_file`, which would sync them one after the other
            Partition(path, stack.enter_context(open(_temporary(path), "wb")))
            for path in (folder / f"x{index:03d}.csv" for index in range(count))
        ]
        for partition in partitions:
            partition.write(HEADER, records=0)
        writer = stack.enter_context(ThreadPoolExecutor(max_workers=1))
        writing: list[Future] = []
        first = 0
        for batch in rows:
            target = partition_of(first, len(batch), count, seed)
            if len(writing) > _WRITES_AHEAD:
                writing.pop(0).result()
            writing.append(writer.submit(_deal, batch, target, partitions))
            first += len(batch)
        for write in writing:
            write.result()
    sync_files(_temporary(partition.path) for partition in partitions)
    for partition in partitions:
        _temporary(partition.path).replace(partition.path)
    return [partition.described() for partition in partitions]


def remove_partitions(folder: Path) -> None:
    """Delete the partitions of an earlier run."""
    for path in folder.glob("x[0-9][0-9][0-9].csv"):
        path.unlink()


def spool(rows: Iterable[pa.Array], file: BinaryIO) -> int:
    """Write all rows to `file`, a batch after the other; returns how many there are."""
    records = 0
    for batch in rows:
        values, lengths = values_of(batch), np.diff(offsets_of(batch))
        file.write(np.array([len(lengths), len(values)], dtype=np.int64))
        file.write(lengths)
        file.write(values)
        records += len(batch)
    return records


def unspool(file: BinaryIO) -> Iterator[pa.Array]:
    """The batches that `spool` wrote, from the file's current position."""
    while sizes := file.read(16):
        count, size = np.frombuffer(sizes, dtype=np.int64).tolist()
        lengths = np.frombuffer(file.read(4 * count), dtype=np.int32)
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
        yield binary_array(file.read(size), offsets)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _deal(batch: pa.Array, target: np.ndarray, partitions: list[Partition]) -> None:
    dealt = batch.take(number_array(np.argsort(target, kind="stable")))
    counts = np.bincount(target, minlength=len(partitions))
    values, offsets = values_of(dealt), offsets_of(dealt)
    ends = np.concatenate(([0], np.cumsum(counts)))
    for partition, start, end in zip(partitions, ends[:-1].tolist(), ends[1:].tolist()):
        if end > start:
            partition.write(values[offsets[start] - offsets[0] : offsets[end] - offsets[0]], end - start)
