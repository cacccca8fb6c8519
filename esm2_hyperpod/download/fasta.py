"""FASTA bytes to CSV rows, a block at a time, without a Python loop over lines or residues.

A block is some 4 MB that begins with `>` and ends where a record ends. One numpy pass finds its white
space; from that come the lines, the ids and the two kinds of bytes: those that stay in `id,sequence`
rows and those that go (`>`, descriptions, line breaks inside a sequence). They alternate, so the block
is viewed as an Arrow array of stay, go, stay, go, ... and one `take` copies what stays.
"""

import codecs
import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from esm2_hyperpod.arrow import as_type, binary_array, lengths_of, number_array, offsets_of, values_of
from esm2_hyperpod.errors import UserError
from esm2_hyperpod.file_kinds import are_nucleotides, kind_of

BLOCK_BYTES = 4 << 20  # fits the caches: 16 MB takes a third longer
LONGEST_RECORD_BYTES = 64 << 20  # the longest known protein has about 45,000 residues
WHITE_SPACE = b" \t\r\v\f"
NEWLINE, COMMA, GREATER = b"\n,>"
QUOTED = list(b'"\r')


@dataclass
class Records:
    """The records of one block, in file order.

    `rows`: Arrow binary[n], each `id,sequence\\n`, quoted by the rules of CSV where it must be.
    `lengths`: int64[n], residues of each record.
    """

    rows: pa.Array
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def head(self, count: int) -> "Records":
        """The first `count` records."""
        return Records(self.rows.slice(0, count), self.lengths[:count])

    def take(self, chosen: np.ndarray) -> "Records":
        """The records at these positions."""
        return Records(self.rows.take(number_array(chosen)), self.lengths[chosen])


def read_records(chunks: Iterable[bytes], name: str) -> Iterator[Records]:
    """Parse the FASTA bytes in `chunks` (of any size); `name` is what errors call the source.

    Records keep their sequence as written, but for white space and line ends; the id is the header up
    to its first white space. Raises `UserError`, naming record and byte offset, for what is no FASTA:
    other bytes before the first `>`, no record at all, a record without id or without sequence, control
    characters, bytes that are not ASCII inside a sequence.
    """
    first_record = 0
    for offset, block in _blocks(chunks, name):
        records = _parse(block, name, offset, first_record)
        first_record += len(records)
        yield records


def proteins_only(batches: Iterable[Records], name: str) -> Iterator[Records]:
    """The same batches. Raises `UserError`, by a look at the first, if they are DNA or RNA."""
    for number, batch in enumerate(batches):
        if number == 0 and are_nucleotides(
            row.rpartition(b",")[2].rstrip(b'"\n') for row in batch.rows[:1000].to_pylist()
        ):
            raise UserError(
                f"{name}: DNA or RNA, not proteins: nearly all of its letters are A, C, G, T, U or N; "
                "translate it first, or train on it as it is with --allow_nucleotides"
            )
        yield batch


def csv_rows(ids: pa.Array, sequences: pa.Array) -> pa.Array:
    """binary[n] of `id,sequence\\n`, quoted by the rules of CSV where it must be; both are strings."""
    comma, end = pa.scalar(","), pa.scalar("\n")
    rows = pc.binary_join_element_wise(pc.binary_join_element_wise(ids, sequences, comma), pa.scalar(""), end)
    rows = as_type(rows, pa.binary())
    values = values_of(rows)
    if np.count_nonzero(values == COMMA) != len(rows) or np.isin(values, QUOTED).any():
        return _quoted(rows, lengths_of(as_type(ids, pa.binary())))
    return rows


def _blocks(chunks: Iterable[bytes], name: str) -> Iterator[tuple[int, bytearray]]:
    """Cut the stream into whole records, about `BLOCK_BYTES` at a time, each with its byte offset."""
    offset, pending, started = 0, bytearray(), False
    for chunk in chunks:
        pending += chunk
        if len(pending) < BLOCK_BYTES:
            continue
        if not started:
            offset, started = _skip_to_start(pending, name), True
        end = pending.rfind(b"\n>") + 1
        if end:
            block, pending = pending[:end], pending[end:]
            yield offset, block
            offset += len(block)
        elif len(pending) > LONGEST_RECORD_BYTES:
            raise UserError(
                f"{name}: no record ends in the {len(pending):,} bytes from byte offset {offset:,}; "
                "this is not a protein FASTA (every record starts on a new line with '>')"
            )
    if not started:
        offset = _skip_to_start(pending, name)
    yield offset, pending


def _skip_to_start(pending: bytearray, name: str) -> int:
    """Drop blank lines before the first record; returns how many bytes. What follows must be a `>`."""
    blank = len(pending) - len(pending.removeprefix(codecs.BOM_UTF8).lstrip())
    del pending[:blank]
    if not pending:
        raise UserError(f"{name}: empty; a FASTA file starts with '>'. Check the source")
    if pending[0] == GREATER:
        return blank
    if kind := kind_of(bytes(pending[:64])):
        raise UserError(f"{name}: not a FASTA but {kind}")
    raise UserError(
        f"{name}: not a FASTA: it starts with {bytes(pending[:20])!r}, not with '>'; give a FASTA of proteins"
    )


@dataclass
class _Lines:
    """Where everything is in a block whose every line ends in a newline. All arrays are int32 or bool."""

    starts: np.ndarray
    ends: np.ndarray  # of the line ends
    is_header: np.ndarray
    id_ends: np.ndarray  # one a header: its first white space
    white_kind: np.ndarray  # every byte up to 32, in order
    white_line: np.ndarray  # the line each is in

    @classmethod
    def of(cls, data: np.ndarray) -> "_Lines":
        white = np.flatnonzero(data <= 32).astype(np.int32)
        kind = data[white]
        is_newline = kind == NEWLINE
        ends = white[is_newline]
        starts = np.concatenate(([0], ends[:-1] + 1)).astype(np.int32)
        is_header = data[starts] == GREATER
        first_white = np.concatenate(([0], np.flatnonzero(is_newline)[:-1] + 1))
        line = np.cumsum(is_newline) - is_newline
        return cls(starts, ends, is_header, white[first_white[is_header]], kind, line)

    def record_of(self, line: int) -> int:
        return int(np.count_nonzero(self.is_header[: line + 1])) - 1

    def first_control_character(self) -> tuple[int, int] | None:
        """(record, byte) of the first byte that no text holds."""
        control = (self.white_kind < 32) & (self.white_kind != NEWLINE)
        for at in np.flatnonzero(control).tolist():
            if self.white_kind[at] not in WHITE_SPACE:
                return self.record_of(int(self.white_line[at])), int(self.white_kind[at])
        return None

    def white_space_in_sequences(self) -> bool:
        return bool(((self.white_kind != NEWLINE) & ~self.is_header[self.white_line]).any())


def _parse(block: bytearray, name: str, offset: int, first_record: int) -> Records:
    def refuse(record: int, problem: str) -> UserError:
        header = list(re.finditer(rb"^>([^\s]*)", block, re.MULTILINE))[record]
        identifier = header[1].decode("utf-8", "backslashreplace")
        return UserError(
            f"{name}: record {first_record + record + 1:,} ({identifier or 'no id'}) at byte offset "
            f"{offset + header.start():,} {problem}"
        )

    text = block.replace(b"\r\n", b"\n") if b"\r" in block else bytearray(block)
    if text[-1] != NEWLINE:
        text += b"\n"
    lines = _Lines.of(np.frombuffer(text, dtype=np.uint8))
    if control := lines.first_control_character():
        raise refuse(
            control[0],
            f"holds the control character 0x{control[1]:02x}: the file is corrupt or binary; fetch it again",
        )
    if lines.white_space_in_sequences():
        text = _without_inner_white_space(text)
        lines = _Lines.of(np.frombuffer(text, dtype=np.uint8))

    id_lengths = lines.id_ends - lines.starts[lines.is_header] - 1
    if not id_lengths.all():
        raise refuse(int(np.argmin(id_lengths)), "has no id after '>'; give it one, or remove the record")
    rows = _rows(text, lines)
    lengths = lengths_of(rows) - id_lengths - 2
    if (lengths <= 0).any():
        raise refuse(
            int(np.argmax(lengths <= 0)),
            "has no sequence; the file may be incomplete: fix or remove the record",
        )
    values = values_of(rows)
    if values.max() >= 127:
        _check_text(rows, id_lengths, refuse)
    if np.count_nonzero(values == COMMA) != len(rows) or (values == ord('"')).any():
        rows = _quoted(rows, id_lengths)
    return Records(rows, lengths)


def _rows(text: bytearray, lines: _Lines) -> pa.Array:
    """binary[n]: `id,sequence\\n` of each record, not quoted; overwrites one byte a header in `text`.

    Of a header the id stays, with the byte after it, which becomes the comma; of other lines all but the
    line end; of the last line of a record the line end too.
    """
    np.frombuffer(text, dtype=np.uint8)[lines.id_ends] = COMMA
    stay = np.empty((len(lines.starts), 2), dtype=np.int32)
    stay[:, 0] = lines.starts + lines.is_header
    stay[:, 1] = lines.ends + np.append(lines.is_header[1:], True)
    stay[lines.is_header, 1] = lines.id_ends + 1
    pieces = binary_array(text, stay.ravel())  # stay, go, stay, go, ...
    kept = pieces.take(number_array(np.arange(0, len(pieces), 2, dtype=np.int32)))
    header_pieces = np.append(np.flatnonzero(lines.is_header), len(stay))
    return binary_array(kept.buffers()[2], offsets_of(kept)[header_pieces])


def _without_inner_white_space(block: bytearray) -> bytearray:
    lines = bytes(block).split(b"\n")
    return bytearray(
        b"\n".join(line if line[:1] == b">" else line.translate(None, WHITE_SPACE) for line in lines)
    )


def _check_text(rows: pa.Array, id_lengths: np.ndarray, refuse) -> None:
    """Ids may be UTF-8, sequences are ASCII."""
    for record, (row, id_length) in enumerate(zip(rows.to_pylist(), id_lengths.tolist())):
        sequence = row[id_length + 1 :]
        if not sequence.isascii() or b"\x7f" in sequence:
            raise refuse(
                record, "holds bytes that are not text in its sequence: the file is corrupt or binary"
            )
        try:
            row[:id_length].decode("utf-8")
        except UnicodeDecodeError:
            raise refuse(record, "has an id that is not UTF-8 text") from None


def _quoted(rows: pa.Array, id_lengths: np.ndarray) -> pa.Array:
    """The rows again, by the csv module, which knows when to quote."""
    lines = []
    for row, id_length in zip(rows.to_pylist(), id_lengths.tolist()):
        line = io.StringIO()
        fields = [row[:id_length].decode(), row[id_length + 1 : -1].decode()]
        csv.writer(line, lineterminator="\n").writerow(fields)
        lines.append(line.getvalue().encode())
    return pa.array(lines, type=pa.binary())
