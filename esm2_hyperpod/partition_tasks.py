"""All CSV partitions to Arrow shards: one partition a task, over all cores, each finished one kept.

Beside the shards of a finished partition lies a small note of how they were made. When a run is killed,
the next run with the same options reads the notes, checks the shards against them and makes the rest.
"""

import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from esm2_hyperpod.arrow_dataset import ShardWriter
from esm2_hyperpod.artifacts import write_json_atomically
from esm2_hyperpod.errors import UserError
from esm2_hyperpod.splits import SPLITS, Fractions, split_of
from esm2_hyperpod.tokenization import (
    Cleaning,
    balanced_chunks,
    byte_counts,
    read_partition,
    tokens_of,
    without_end_stops,
)

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

    @property
    def note(self) -> Path:
        """Where the note of the finished task lies."""
        return self.output / NOTES / f"{self.index:05d}.json"

    def options(self) -> dict:
        """Everything that the task's output depends on."""
        return {
            "csv_sha256": self.csv_sha256,
            "count": self.count,
            "fractions": self.fractions.described(),
            "seed": self.seed,
            **self.cleaning.described(),
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


def _die_with_parent() -> None:
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
    if note["options"] != task.options():
        return None
    for split, shard in note["shards"].items():
        path = task.output / split / shard["name"]
        if not path.is_file() or path.stat().st_size != shard["bytes"]:
            return None
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard["sha256"]:
                return None
    return note


def tokenize_partition(task: Task) -> dict:
    """Write the shards of one partition, then its note; returns the note."""
    pa.set_cpu_count(1)
    writers = {
        split: ShardWriter(task.output / split / f"data-{task.index:05d}-of-{task.count:05d}.arrow")
        for split in task.fractions.asked_for()
    }
    seen = {split: np.zeros(256, dtype=np.int64) for split in writers}
    proteins = dict.fromkeys(writers, 0)
    longest, end_stops, too_short, unassigned = 0, 0, 0, 0
    lengths_seen = np.zeros(1, dtype=np.int64)
    for ids, raw in read_partition(task.csv, task.longest, task.csv_sha256):
        sequences = without_end_stops(raw)
        lengths = pc.binary_length(sequences).to_numpy(zero_copy_only=False)
        long_enough = lengths >= task.cleaning.min_length
        if not long_enough.all():
            mask = pa.array(long_enough)
            too_short += len(ids) - int(long_enough.sum())
            ids, raw, sequences = ids.filter(mask), raw.filter(mask), sequences.filter(mask)
            lengths = lengths[long_enough]
        if not len(ids):
            continue
        end_stops += int(pc.sum(pc.binary_length(raw)).as_py() - lengths.sum())
        longest = max(longest, int(lengths.max()))
        lengths_seen = _add(lengths_seen, np.bincount(lengths // LENGTH_BINS))
        if task.cleaning.long_sequences == "truncate":
            sequences = pc.binary_slice(sequences, 0, task.cleaning.max_length - 2)
        split = split_of(ids, task.fractions, task.seed)
        unassigned += int((split == len(SPLITS)).sum())
        for name, writer in writers.items():
            mask = pa.array(split == SPLITS.index(name))
            members, chosen = ids.filter(mask), sequences.filter(mask)
            if not len(members):
                continue
            proteins[name] += len(members)
            seen[name] += byte_counts(chosen)
            tokens = tokens_of(chosen)
            if task.cleaning.long_sequences == "chunk":
                members, tokens, _ = balanced_chunks(members, tokens, task.cleaning.max_length)
            writer.append(members, tokens)
    shards = {split: shard for split, writer in writers.items() if (shard := writer.finish())}
    note = {
        "options": task.options(),
        "shards": shards,
        "proteins": proteins,
        "bytes_seen": {split: counts.tolist() for split, counts in seen.items()},
        "longest": longest,
        "lengths_seen": lengths_seen.tolist(),
        "end_stops": end_stops,
        "too_short": too_short,
        "unassigned": unassigned,
    }
    write_json_atomically(task.note, note)
    return note


def _add(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The sum of two histograms of any lengths."""
    total = np.zeros(max(len(left), len(right)), dtype=np.int64)
    total[: len(left)] += left
    total[: len(right)] += right
    return total
