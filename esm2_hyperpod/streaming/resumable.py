"""A file made of a stream of any length, in constant memory; interrupted, it does not begin again.

`OUTPUT.partial` grows by a whole chunk at a time. `OUTPUT.partial.json` says what it is made of, and a line
of `OUTPUT.partial.chunks` how many items and bytes it held after each chunk. The same command again goes on
after the last chunk that is whole. When no chunk is left, the file gets its name, and the JSON file too.
"""

import csv
import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from esm2_hyperpod.artifacts import write_json_atomically
from esm2_hyperpod.console import byte_bar, in_progress
from esm2_hyperpod.streaming.batches import from_first_rank, rank

CHUNK = 1_024  # proteins that are sorted by length together, and written together

Item = TypeVar("Item")


def chunks(
    items: Iterable[Item],
    most: int = CHUNK,
    weigh: Callable[[Item], float] = lambda item: 0,
    limit: float = 1,
) -> Iterator[list[Item]]:
    """Runs of at most `most` items that weigh at most `limit` together; an item that weighs more is alone."""
    chunk: list[Item] = []
    weight = 0.0
    for item in items:
        own = weigh(item)
        if chunk and (len(chunk) == most or weight + own > limit):
            yield chunk
            chunk, weight = [], 0.0
        chunk.append(item)
        weight += own
    if chunk:
        yield chunk


class ResumableFile:
    """A file that is whole, or grows under another name.

    Args:
        output: its name when it is whole. The JSON file beside it has the suffix `.json` in place of its own.
        made_of: what its content depends on, as JSON has it.
    """

    def __init__(self, output: Path, made_of: dict):
        self.output, self.made_of = output, made_of
        self.facts = output.with_suffix(".json")
        self.partial = output.with_name(f"{output.name}.partial")
        self._partial_facts = output.with_name(f"{output.name}.partial.json")
        self._journal = output.with_name(f"{output.name}.partial.chunks")

    def is_current(self) -> bool:
        """Whether the file is there and made of this."""
        return self.output.is_file() and _holds(self.facts, self.made_of)

    def grow(
        self,
        items: Iterable[Item],
        header: bytes,
        content: Callable[[list[Item]], bytes],
        cut: Callable[[Iterable[Item]], Iterator[list[Item]]] = chunks,
        title: str = "",
        unit: str = " proteins",
        stop_asked: Callable[[], bool] = lambda: False,
    ) -> int | None:
        """Append what is still missing; the number of items, or None if rank 0's `stop_asked` ended it early.

        All ranks take part. `stop_asked` is looked at after each chunk.

        Args:
            items: all of them, in the same order at each start; those that are done are skipped.
            header: what the file begins with.
            content: the bytes of a chunk; called on all ranks, and rank 0's are written.
            cut: how `items` are cut into chunks; what it does after some chunk depends on no earlier one.
        """
        done = from_first_rank(self._resume(header) if rank() == 0 else None)
        with byte_bar(None, title, unit, done) as move_bar:
            for chunk in cut(itertools.islice(items, done, None)):
                written = content(chunk)
                done += len(chunk)
                if rank() == 0:
                    size = _append(self.partial, written)
                    _append(self._journal, f"{done} {size}\n".encode())
                move_bar(len(chunk))
                if from_first_rank(stop_asked() if rank() == 0 else None):
                    return None
        return done

    def finish(self, convert: Callable[[Path, Path], None] | None = None) -> None:
        """Give the file its name; with `convert`, make it of the partial one, of which nothing is left then.

        All ranks take part, and rank 0 does it.
        """
        if rank() == 0:
            if convert is None:
                self.partial.replace(self.output)
            else:
                with in_progress(f"writing {self.output.name}"):
                    convert(self.partial, self.output)
            self._partial_facts.replace(self.facts)
            self._journal.unlink(missing_ok=True)
            self.partial.unlink(missing_ok=True)
        if dist.is_initialized():
            dist.barrier()

    def _resume(self, header: bytes) -> int:
        """Prepare the partial file; the number of items it already holds in whole chunks."""
        if self.partial.is_file() and _holds(self._partial_facts, self.made_of):
            done = self._keep_whole_chunks()
            if done:
                return done
        self._journal.unlink(missing_ok=True)
        self.partial.unlink(missing_ok=True)
        write_json_atomically(self._partial_facts, self.made_of)
        _append(self.partial, header)
        return 0

    def _keep_whole_chunks(self) -> int:
        """Cut both files back to the last chunk that reached the disk whole; how many items that leaves."""
        size, kept = self.partial.stat().st_size, []
        lines = self._journal.read_bytes().splitlines(keepends=True) if self._journal.is_file() else []
        for line in lines:
            if not line.endswith(b"\n") or int(line.split()[1]) > size:
                break
            kept.append(line)
        if not kept:
            return 0
        items, size = (int(word) for word in kept[-1].split())
        os.truncate(self._journal, sum(map(len, kept)))
        os.truncate(self.partial, size)
        return items


def csv_bytes(rows: Iterable[Sequence]) -> bytes:
    """CSV rows that end in a line feed."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _holds(path: Path, asked: dict) -> bool:
    """Whether a JSON file says just what was asked."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) == asked
    except (OSError, ValueError):
        return False


def _append(path: Path, content: bytes) -> int:
    """Append to a file and wait for the disk; returns the file's size."""
    with open(path, "ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        return file.tell()
