"""One CSV partition to token ids: a 256-entry table over Arrow buffers, no loop over residues or records.

The clean-up, in this order: gaps (`-` and `.` of an alignment) are dropped unless they are to be kept; `*`
(stop codons) at either end is dropped; records with fewer residues than `min_length` are left out; lower case
(soft masking) counts as upper case; what the alphabet of ESM-2 has no token for (J, an inner `*`, digits)
becomes `<unk>`. All of it is counted.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from esm2_hyperpod.alphabet import BYTE_TO_TOKEN, CLS, EOS, TOKENS, UNK
from esm2_hyperpod.arrow import (
    as_type,
    binary_array,
    binary_scalar,
    lengths_of,
    number_array,
    offsets_of,
    values_of,
)
from esm2_hyperpod.artifacts import file_digest
from esm2_hyperpod.errors import UserError

LONG_SEQUENCES = ("keep", "truncate", "chunk")
GAPS = ("drop", "keep")
_CSV_BLOCK_BYTES = 4 << 20
_TABLE = number_array(BYTE_TO_TOKEN)
_START, _END, _NOTHING = map(binary_scalar, (bytes([CLS]), bytes([EOS]), b""))
_STOP = ord("*")


@dataclass(frozen=True)
class Cleaning:
    """What happens to sequences that are too long or too short, and to gaps.

    `max_length` counts tokens, `<cls>` and `<eos>` among them; `min_length` counts residues.
    """

    long_sequences: str = "keep"
    max_length: int = 1024
    min_length: int = 1
    gaps: str = "drop"


def read_partition(path: Path, longest: int, sha256: str) -> Iterator[tuple[pa.Array, pa.Array]]:
    """(ids: string[n], sequences: binary[n]) of a CSV partition, some megabytes at a time.

    `longest` is the most residues a row may hold, `sha256` what the manifest says of the file. Raises
    `UserError` if it is not the file that the manifest describes, or no such CSV.
    """
    # Before, not while Arrow reads: its threads must hold no Python object if we end early, for a thread
    # that waits for the interpreter at exit aborts the process (seen with pyarrow 25 and Python 3.10).
    again = f"make it again with: python 0.download_data.py --output_dir {path.parent} --overwrite"
    if not path.is_file():
        raise UserError(f"{path}: is gone; {again}")
    if file_digest(path) != sha256:
        raise UserError(
            f"{path}: is not the file that the manifest beside it describes (it has changed, or is corrupt); "
            f"{again}"
        )
    try:
        batches = csv.open_csv(
            path,
            read_options=csv.ReadOptions(
                use_threads=False, block_size=max(_CSV_BLOCK_BYTES, 2 * longest + 4096)
            ),
            convert_options=csv.ConvertOptions(
                column_types={"id": pa.string(), "text": pa.binary()}, include_columns=["id", "text"]
            ),
        )
        for batch in batches:
            yield batch.column(0), batch.column(1)
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        problem = str(error).splitlines()[0]
        raise UserError(f"{path}: {problem}; {again}") from None


def without_gaps(sequences: pa.Array) -> pa.Array:
    """binary[n] with every `-` and `.` dropped."""
    values = values_of(sequences)
    stays = (values != ord("-")) & (values != ord("."))
    if stays.all():
        return sequences
    before = np.concatenate(([0], np.cumsum(stays)))
    offsets = offsets_of(sequences)
    return binary_array(values[stays], before[offsets - offsets[0]].astype(np.int32))


def without_end_stops(sequences: pa.Array) -> pa.Array:
    """binary[n] with every `*` at either end of a sequence dropped."""
    if not (values_of(sequences) == _STOP).any():
        return sequences
    trimmed = pc.ascii_trim(as_type(sequences, pa.string()), characters="*")  # no such function for binary
    return as_type(trimmed, pa.binary())


def tokens_of(sequences: pa.Array) -> pa.Array:
    """binary[n]: `<cls>`, a token id a residue, `<eos>`, one byte each."""
    offsets = offsets_of(sequences)
    body = binary_array(_TABLE.take(number_array(values_of(sequences))).buffers()[1], offsets - offsets[0])
    return pc.binary_join_element_wise(_START, body, _END, _NOTHING)


def balanced_chunks(
    ids: pa.Array, tokens: pa.Array, max_length: int
) -> tuple[pa.Array, pa.Array, np.ndarray]:
    """Rows of more than `max_length` tokens cut into as few pieces as do, equal in size to within one.

    `<cls>` stays on the first piece, `<eos>` on the last; the ids of pieces end in `/start-end`, the
    residues they hold, counted from 1. Returns ids, tokens and int64[rows], the row each came from.
    """
    bounds = offsets_of(tokens)
    sizes = lengths_of(tokens)
    pieces = -(-sizes // max_length)
    source = np.repeat(np.arange(len(sizes)), pieces)
    piece = np.arange(len(source)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start = piece * sizes[source] // pieces[source]
    end = (piece + 1) * sizes[source] // pieces[source]
    offsets = np.append(bounds[:-1][source] + start, bounds[-1]).astype(np.int32)
    cut = binary_array(tokens.buffers()[2], offsets)
    first = np.maximum(start, 1)  # token 0 is <cls>, token k is residue k
    last = np.minimum(end - 1, sizes[source] - 2)
    suffix = pc.binary_join_element_wise(
        pa.scalar("/"), pa.array(first).cast(pa.string()), pa.scalar("-"), pa.array(last).cast(pa.string()),
        pa.scalar(""),
    )  # fmt: skip
    suffix = pc.if_else(pa.array(pieces[source] > 1), suffix, pa.scalar(""))
    return pc.binary_join_element_wise(ids.take(pa.array(source)), suffix, pa.scalar("")), cut, source


def byte_counts(sequences: pa.Array) -> np.ndarray:
    """int64[256]: how often each byte occurs."""
    values = values_of(sequences)
    even = len(values) // 2 * 2
    # Counting pairs of bytes and adding up takes half the time of counting bytes.
    pairs = np.bincount(np.frombuffer(values[:even], dtype=np.uint16), minlength=65536).reshape(256, 256)
    counts = pairs.sum(axis=0) + pairs.sum(axis=1)
    if even < len(values):
        counts[values[-1]] += 1
    return counts


def token_counts(bytes_seen: np.ndarray) -> dict[str, int]:
    """Of each of the 33 tokens, how often the residues counted in int64[256] `bytes_seen` become it."""
    counts = np.bincount(BYTE_TO_TOKEN, weights=bytes_seen, minlength=len(TOKENS)).astype(np.int64)
    return dict(zip(TOKENS, counts.tolist()))


def changed_residues(bytes_seen: np.ndarray, gaps: int, end_stops: int) -> dict[str, int]:
    """How many letters the clean-up changed: what it dropped, `lower_case`, and by unknown byte."""
    changed: Counter[str] = Counter(gaps_dropped=gaps, end_stops_dropped=end_stops, lower_case=0)
    for byte in np.flatnonzero(bytes_seen).tolist():
        if BYTE_TO_TOKEN[byte] == UNK:
            name = chr(byte).upper() if 32 < byte < 127 else f"0x{byte:02x}"
            changed[f"{name} to <unk>"] += int(bytes_seen[byte])
        elif chr(byte).islower():
            changed["lower_case"] += int(bytes_seen[byte])
    return dict(changed)
