"""Embeddings on disk: one Parquet file with ids, or .npy or safetensors with the ids in a CSV file beside it.

While it grows it is an Arrow stream, to which a chunk is appended as it comes; `CONVERT` makes the file of
it that was asked for, in constant memory. A protein without residues has nulls in Parquet, NaN elsewhere.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from esm2_hyperpod.artifacts import whole_file, write_csv
from esm2_hyperpod.errors import UserError

PROTEINS = "proteins.csv"


class Column(NamedTuple):
    """A kind of embedding from one layer: `mean_33`, `cls_33`, `residues_33`."""

    kind: str
    layer: int

    @property
    def name(self) -> str:
        """Its name in every format."""
        return f"{self.kind}_{self.layer}"


def schema(columns: Sequence[Column], width: int, dtype: str) -> pa.Schema:
    """`id`, `residues` (how many), and a column each: a vector of `width`, or a list of them."""
    vector = pa.list_(pa.float16() if dtype == "float16" else pa.float32(), width)
    kinds = [pa.list_(vector) if column.kind == "residues" else vector for column in columns]
    named = [(column.name, kind) for column, kind in zip(columns, kinds)]
    return pa.schema([("id", pa.string()), ("residues", pa.int32()), *named])


def batch(
    layout: pa.Schema,
    ids: Sequence[str],
    residues: Sequence[int],
    columns: Sequence[Column],
    arrays: dict[str, np.ndarray],
) -> bytes:
    """A chunk as a message of the Arrow stream.

    `arrays` are `embed`'s, [rows, layers, width], of the proteins that have residues. Raises `UserError`
    where a value does not fit into the type.
    """
    lengths = np.array(residues)
    layers = list(dict.fromkeys(column.layer for column in columns))
    values = []
    for column in columns:
        chosen = arrays[column.kind][:, layers.index(column.layer)]
        kind = layout.field(column.name).type
        if column.kind == "residues":
            offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32(), mask=None)
            mask = pa.array(lengths == 0)
            vectors = _vectors(chosen, kind.value_type, column.name)
            values.append(pa.ListArray.from_arrays(offsets, vectors, mask=mask))
        else:
            rows = np.full((len(lengths), chosen.shape[-1]), np.nan, dtype=np.float32)
            rows[lengths > 0] = chosen
            values.append(_vectors(rows, kind, column.name, pa.array(lengths == 0)))
    arrays_of = [pa.array(ids, pa.string()), pa.array(lengths, pa.int32()), *values]
    return pa.record_batch(arrays_of, schema=layout).serialize().to_pybytes()


def _vectors(rows: np.ndarray, kind: pa.DataType, name: str, mask: pa.Array | None = None) -> pa.Array:
    with np.errstate(over="ignore"):
        stored = rows.astype(np.float16) if kind.value_type == pa.float16() else rows
    if np.isinf(stored).any():
        raise UserError(
            f"{name}: values beyond float16's 65,504; use --dtype float32, or a layer nearer to the last"
        )
    flat = pa.array(np.ascontiguousarray(stored).reshape(-1), kind.value_type)
    return pa.FixedSizeListArray.from_arrays(flat, kind.list_size, mask=mask)


def to_parquet(stream: Path, output: Path) -> None:
    """One file, a row group a chunk."""
    with whole_file(output) as temporary, pa.memory_map(str(stream)) as source:
        reader = pa.ipc.open_stream(source)
        # Vectors do not repeat, and their least and greatest values help nobody. Without our schema lists are
        # read as lists of any length: with it, pyarrow before 26 fails on a null among lists of one length.
        with parquet.ParquetWriter(
            temporary,
            reader.schema,
            compression="none",
            use_dictionary=False,
            write_statistics=["id"],
            store_schema=False,
        ) as writer:
            for part in reader:
                writer.write_batch(part, row_group_size=max(len(part), 1))


def to_npy(stream: Path, output: Path) -> None:
    """The only column as one array [proteins, width], or [residues of all proteins, width]."""
    (name, rows, width, dtype), *_ = _tensors(stream)
    with whole_file(output) as temporary, open(temporary, "wb") as file:
        kind, shape = np.lib.format.dtype_to_descr(dtype), (rows, width)
        header = {"descr": kind, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for values in _values(stream, name):
            file.write(values)
    _write_proteins(stream, output)


def to_safetensors(stream: Path, output: Path) -> None:
    """A tensor a column, [proteins, width] or [residues of all proteins, width]."""
    header, end = {}, 0
    for name, rows, width, dtype in _tensors(stream):
        begin, end = end, end + rows * width * dtype.itemsize
        kind = "F16" if dtype.itemsize == 2 else "F32"
        header[name] = {"dtype": kind, "shape": [rows, width], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format wants its data aligned
    with whole_file(output) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in header:
            for values in _values(stream, name):
                file.write(values)
    _write_proteins(stream, output)


CONVERT: dict[str, Callable[[Path, Path], None]] = {
    "parquet": to_parquet,
    "npy": to_npy,
    "safetensors": to_safetensors,
}


def _batches(stream: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(stream)) as source:
        yield from pa.ipc.open_stream(source)


def _tensors(stream: Path) -> list[tuple[str, int, int, np.dtype]]:
    """Name, rows, width and type of each column's tensor."""
    with pa.memory_map(str(stream)) as source:
        fields = list(pa.ipc.open_stream(source).schema)[2:]
    proteins = residues = 0
    for part in _batches(stream):
        proteins += len(part)
        residues += int(part.column("residues").to_numpy().sum())
    found = []
    for field in fields:
        a_residue = not pa.types.is_fixed_size_list(field.type)
        vector = field.type.value_type if a_residue else field.type
        dtype = np.dtype(vector.value_type.to_pandas_dtype())
        found.append((field.name, residues if a_residue else proteins, vector.list_size, dtype))
    return found


def _values(stream: Path, name: str) -> Iterator[np.ndarray]:
    """The numbers of a column, chunk by chunk."""
    for part in _batches(stream):
        column = part.column(name)
        vectors = column if pa.types.is_fixed_size_list(column.type) else column.values
        yield vectors.values.to_numpy(zero_copy_only=False)


def _write_proteins(stream: Path, output: Path) -> None:
    """Which protein each row is; of vectors a residue, where those of a protein begin."""

    def rows() -> Iterator[tuple[str, int, int]]:
        first = 0
        for part in _batches(stream):
            for name, residues in zip(part.column("id").to_pylist(), part.column("residues").to_pylist()):
                yield name, residues, first
                first += residues

    write_csv(output.with_name(PROTEINS), ["id", "residues", "first_residue_row"], rows())
