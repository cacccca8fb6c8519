"""All CSV partitions to Arrow shards: one partition a task, over all cores, each finished one kept.

Beside the shards of a finished partition lies a small note of how they were made. When a run is killed,
the next run with the same options reads the notes, checks the shards against them and makes the rest.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from esm2_hyperpod.arrow import hash_ids, lengths_of, number_array, values_of
from esm2_hyperpod.artifacts import file_digest
from esm2_hyperpod.errors import UserError
from esm2_hyperpod.tokenization.dataset import ShardWriter
from esm2_hyperpod.tokenization.partition import (
    Cleaning,
    balanced_chunks,
    byte_counts,
    read_partition,
    tokens_of,
    without_end_stops,
    without_gaps,
)
from esm2_hyperpod.tokenization.splits import SPLITS, Fractions, split_of
from esm2_hyperpod.tokenization.uniref_clusters import ClusterTable

NOTES = ".parts"
LENGTH_BINS = 64  # residues a bin, in the histogram of lengths


@dataclass(frozen=True)
class Task:
    """One partition to tokenize; it pickles, so that another process can do it."""

    csv: Path
    csv_sha256: str
    output: Path
    index: int
    count: int
    longest: int
    fractions: Fractions
    seed: int
    cleaning: Cleaning
    clusters: str | None  # digest of the table whose arrays lie beside the notes

    @property
    def note(self) -> Path:
        """Where the note of the finished task lies."""
        return self.output / NOTES / f"{self.index:05d}.json"

    def options(self) -> dict:
        """Everything that the task's output depends on."""
        return {
            "csv_sha256": self.csv_sha256,
            "count": self.count,
            "fractions": asdict(self.fractions),
            "seed": self.seed,
            "clusters": self.clusters,
            **asdict(self.cleaning),
        }


def run_all(tasks: list[Task], processes: int) -> Iterator[tuple[int, dict]]:
    """Do the tasks; yields (index, note) of each as it is done, those of an earlier run first.

    Raises `UserError` if a worker is killed.
    """
    open_tasks = []
    for task in tasks:
        note = finished_note(task)
        if note is None:
            open_tasks.append(task)
        else:
            yield task.index, note
    if processes == 1:
        for task in open_tasks:
            yield task.index, tokenize_partition(task)
        return
    # A spawned worker inherits no file descriptor, so it cannot outlive us holding the folder's lock.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_die_with_parent) as pool:
        with _ignored(signal.SIGINT):  # of which a worker would print where in its imports it was
            futures = {pool.submit(tokenize_partition, task): task.index for task in open_tasks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed (out of memory?); finished partitions are kept: run the same "
                "command again, with a smaller --num_proc if it happens again"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _ignored(number: signal.Signals) -> Iterator[None]:
    """Ignore a signal, and have the processes that are started meanwhile do so."""
    handler = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, handler)


def _die_with_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def finished_note(task: Task) -> dict | None:
    """The note of `task` if an earlier run finished it with the same options and its shards are whole."""
    try:
        note = json.loads(task.note.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if note["options"] != task.options() or "too_long" not in note:  # as before that was counted
        return None
    for split, shard in note["shards"].items():
        path = task.output / split / shard["name"]
        if not path.is_file() or path.stat().st_size != shard["bytes"]:
            return None
        if file_digest(path) != shard["sha256"]:
            return None
    if task.clusters and not all(
        cluster_part(task.output, split, task.index).is_file() for split in note["proteins"]
    ):
        return None
    return note


def tokenize_partition(task: Task) -> dict:
    """Write the shards of one partition, then its note; returns the note."""
    pa.set_cpu_count(1)
    table = ClusterTable(task.output / NOTES) if task.clusters else None
    splits = {split: _SplitPart(task, split) for split in task.fractions.asked_for()}
    note = {
        "options": task.options(),
        "gaps": 0,
        "end_stops": 0,
        "too_short": 0,
        "too_long": 0,
        "unassigned": 0,
        "unlisted": 0,
    }
    lengths_seen = [np.zeros(0, dtype=np.int64)]
    for ids, raw in read_partition(task.csv, task.longest, task.csv_sha256):
        ids, sequences, lengths = _cleaned(ids, raw, task.cleaning, note)
        if not len(ids):
            continue
        lengths_seen.append(lengths)
        note["too_long"] += int((lengths > task.cleaning.max_length - 2).sum())
        hashes, clusters = hash_ids(ids, task.seed), None
        if table:
            clusters = table.clusters_of(ids)
            hashes = table.hashes_of(clusters, ids, task.seed)
            unlisted = clusters < 0
            clusters[unlisted] = -1 - note["unlisted"] - np.arange(unlisted.sum())
            note["unlisted"] += int(unlisted.sum())
        split = split_of(hashes, task.fractions)
        note["unassigned"] += int((split == len(SPLITS)).sum())
        for name, part in splits.items():
            part.append(np.flatnonzero(split == SPLITS.index(name)), ids, sequences, clusters)
    note["shards"] = {name: shard for name, part in splits.items() if (shard := part.finish())}
    note["proteins"] = {name: part.proteins for name, part in splits.items()}
    note["bytes_seen"] = {name: part.bytes_seen.tolist() for name, part in splits.items()}
    lengths = np.concatenate(lengths_seen)
    note["longest"] = int(lengths.max(initial=0))
    note["lengths_seen"] = np.bincount(lengths // LENGTH_BINS, minlength=1).tolist()
    temporary = task.note.with_name(f".{task.note.name}.tmp")
    temporary.write_text(json.dumps(note))  # not `whole_file`, which syncs: a corrupt note is no note
    temporary.replace(task.note)
    return note


def cluster_part(output: Path, split: str, index: int) -> Path:
    """Where the cluster numbers of one shard wait to be joined."""
    return output / NOTES / f"{split}-{index:05d}.npy"


def _cleaned(
    ids: pa.Array, raw: pa.Array, cleaning: Cleaning, note: dict
) -> tuple[pa.Array, pa.Array, np.ndarray]:
    """ids, sequences and int64 lengths (before truncation) of the records that stay; counts into `note`."""
    if cleaning.gaps == "drop":
        with_gaps, raw = raw, without_gaps(raw)
        note["gaps"] += len(values_of(with_gaps)) - len(values_of(raw))
    sequences = without_end_stops(raw)
    lengths = lengths_of(sequences)
    long_enough = lengths >= cleaning.min_length
    if not long_enough.all():
        note["too_short"] += int((~long_enough).sum())
        mask = pa.array(long_enough)
        ids, raw, sequences, lengths = (
            ids.filter(mask),
            raw.filter(mask),
            sequences.filter(mask),
            lengths[long_enough],
        )
    note["end_stops"] += len(values_of(raw)) - int(lengths.sum())
    if cleaning.long_sequences == "truncate":
        sequences = pc.binary_slice(sequences, 0, cleaning.max_length - 2)
    return ids, sequences, lengths


class _SplitPart:
    """What one partition contributes to one split."""

    def __init__(self, task: Task, split: str):
        self._task = task
        self._writer = ShardWriter(task.output / split / f"data-{task.index:05d}-of-{task.count:05d}.arrow")
        self._cluster_path = cluster_part(task.output, split, task.index) if task.clusters else None
        self._clusters = [np.zeros(0, dtype=np.int64)]
        self.bytes_seen = np.zeros(256, dtype=np.int64)
        self.proteins = 0

    def append(
        self, chosen: np.ndarray, ids: pa.Array, sequences: pa.Array, clusters: np.ndarray | None
    ) -> None:
        """Add the records at the positions `chosen`."""
        if not len(chosen):
            return
        at = number_array(chosen)
        ids, sequences = ids.take(at), sequences.take(at)
        self.proteins += len(chosen)
        self.bytes_seen += byte_counts(sequences)
        tokens = tokens_of(sequences)
        if self._task.cleaning.long_sequences == "chunk":
            ids, tokens, source = balanced_chunks(ids, tokens, self._task.cleaning.max_length)
            chosen = chosen[source]
        self._writer.append(ids, tokens)
        if clusters is not None:
            self._clusters.append(clusters[chosen])

    def finish(self) -> dict | None:
        """Complete the shard; returns what the manifest says of it, or `None` if it has no rows."""
        if self._cluster_path:
            np.save(self._cluster_path, np.concatenate(self._clusters))
        return self._writer.finish()
