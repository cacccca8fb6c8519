"""Folders that `datasets.load_from_disk` reads, written with pyarrow alone: `datasets` is slow to import."""

import json
import os
from pathlib import Path

import pyarrow as pa

from esm2_hyperpod.arrow import number_array, offsets_of, values_of
from esm2_hyperpod.artifacts import content_digest, file_digest, sync_files, write_json_atomically

FEATURES = {
    "id": {"dtype": "string", "_type": "Value"},
    "input_ids": {"feature": {"dtype": "uint8", "_type": "Value"}, "_type": "List"},
}
SCHEMA = pa.schema(
    {"id": pa.string(), "input_ids": pa.list_(pa.uint8())},
    metadata={"huggingface": json.dumps({"info": {"features": FEATURES}})},
)
_BATCH_BYTES = 16 << 20  # training reads these buffers in place: few and large


class ShardWriter:
    """One Arrow stream file of (id, input_ids) rows; it has its name only when it is whole.

    A shard without rows leaves no file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.records = 0
        self.tokens = 0
        self._pending: list[tuple[pa.Array, pa.Array]] = []
        self._pending_bytes = 0
        # Not `whole_file`: it stays open between calls, and `describe_dataset` syncs all shards at once.
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._file = None
        self._stream = None

    def append(self, ids: pa.Array, tokens: pa.Array) -> None:
        """Add rows: ids string[n], tokens binary[n] of one byte a token."""
        self._pending.append((ids, tokens))
        self._pending_bytes += tokens.nbytes + ids.nbytes
        if self._pending_bytes >= _BATCH_BYTES:
            self._flush()

    def finish(self) -> dict | None:
        """Complete the file; returns what the manifest says of it, or `None` if there were no rows."""
        self._flush()
        if self._file is None:
            return None
        self._stream.close()
        self._file.close()
        self._temporary.replace(self.path)
        return {
            "name": self.path.name,
            "records": self.records,
            "tokens": self.tokens,
            "bytes": self.path.stat().st_size,
            "sha256": file_digest(self.path),
        }

    def _flush(self) -> None:
        if not self._pending:
            return
        ids, tokens = (pa.concat_arrays(column) for column in zip(*self._pending))
        self._pending, self._pending_bytes = [], 0
        if self._file is None:
            self._file = open(self._temporary, "wb")  # noqa: SIM115, closed by `finish`
            self._stream = pa.ipc.new_stream(self._file, SCHEMA)
        lists = as_lists(tokens)
        self._stream.write_batch(pa.record_batch([ids, lists], schema=SCHEMA))
        self.records += len(ids)
        self.tokens += len(lists.values)


def as_lists(tokens: pa.Array) -> pa.Array:
    """binary[n] as list<uint8>[n], over the same memory."""
    offsets = offsets_of(tokens)
    return pa.Array.from_buffers(
        SCHEMA.field("input_ids").type,
        len(tokens),
        [None, pa.py_buffer(offsets - offsets[0])],
        children=[number_array(values_of(tokens))],
    )


def describe_dataset(folder: Path, shards: dict[str, list[dict]]) -> None:
    """Write the JSON files that make `folder` a DatasetDict of these `shards` (split -> manifest entries).

    Returns when the shards, too, are safe on the disk.
    """
    sync_files(folder / split / file["name"] for split, files in shards.items() for file in files)
    for split, files in shards.items():
        write_json_atomically(
            folder / split / "dataset_info.json",
            {"citation": "", "description": "", "features": FEATURES, "homepage": "", "license": ""},
        )
        write_json_atomically(
            folder / split / "state.json",
            {
                "_data_files": [{"filename": file["name"]} for file in files],
                "_fingerprint": content_digest(files)[:16],
                "_format_columns": None,
                "_format_kwargs": {},
                "_format_type": None,
                "_output_all_columns": False,
                "_split": None,
            },
        )
    write_json_atomically(folder / "dataset_dict.json", {"splits": list(shards)})
