"""A tokenized split on disk as arrays: sequence i without a copy of the rest, and all lengths at once."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from esm2_hyperpod.errors import UserError, first_sentence


class SequenceStore:
    """Random access to `input_ids` of a folder that step 1 wrote, which `datasets.load_from_disk` reads, too.

    The Arrow buffers stay memory-mapped and are shared by all processes of a node. Rows keep the
    order of the files; that order is the `index` on which crops and masks depend. Read without datasets,
    whose import takes a quarter of the time in which a training starts.
    """

    def __init__(self, folder: Path):
        try:
            files = json.loads((folder / "state.json").read_text(encoding="utf-8"))["_data_files"]
            streams = [pa.ipc.open_stream(pa.memory_map(str(folder / file["filename"]))) for file in files]
            self._table = pa.concat_tables(stream.read_all() for stream in streams)
        except (ValueError, OSError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder}: cannot be read ({first_sentence(error)}); make it again with: "
                "python 1.tokenize_uniref_csv.py --overwrite"
            ) from None
        if "input_ids" not in self._table.column_names:
            raise UserError(f"{folder}: no column input_ids; make it with: python 1.tokenize_uniref_csv.py")
        chunks = [chunk for chunk in self._table.column("input_ids").chunks if len(chunk)]
        self._offsets = [chunk.offsets.to_numpy() for chunk in chunks]
        self._values = [chunk.values.to_numpy() for chunk in chunks]
        self._first_rows = np.cumsum([0] + [len(chunk) for chunk in chunks])

    def __len__(self) -> int:
        return int(self._first_rows[-1])

    def lengths(self) -> np.ndarray:
        """Tokens of each sequence, `<cls>` and `<eos>` included: int32[len(self)]."""
        if not self._offsets:
            return np.zeros(0, dtype=np.int32)
        return np.concatenate([np.diff(offsets).astype(np.int32) for offsets in self._offsets])

    def __getitem__(self, index: int) -> np.ndarray:
        """Token ids of one sequence: a read-only view of the file, uint8[length]."""
        chunk = int(np.searchsorted(self._first_rows, index, side="right")) - 1
        row = index - self._first_rows[chunk]
        start, end = self._offsets[chunk][row : row + 2]
        return self._values[chunk][start:end]

    def name(self, index: int) -> str:
        """The record's id, where the folder has one, for messages to people."""
        if "id" not in self._table.column_names:
            return f"row {index}"
        return str(self._table.column("id")[int(index)])
