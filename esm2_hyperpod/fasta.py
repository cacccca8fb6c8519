"""FASTA bytes to CSV rows, a block at a time, without a Python loop over lines or residues.

A block is some 4 MB that begins with `>` and ends where a record ends. One numpy pass finds its white
space; from that come the lines, the ids and the two kinds of bytes: those that stay in `id,sequence`
rows and those that go (`>`, descriptions, line breaks inside a sequence). They alternate, so the block
is viewed as an Arrow array of stay, go, stay, go, ... and one `take` copies what stays.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from esm2_hyperpod.arrow_bytes import binary_array, values_of
from esm2_hyperpod.errors import UserError

BLOCK_BYTES = 4 << 20  # fits the caches: 16 MB takes a third longer
LONGEST_RECORD_BYTES = 64 << 20  # the longest known protein has about 45,000 residues
WHITE_SPACE = b" \t\r\v\f"
NEWLINE, COMMA, GREATER = b"\n,>"


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
    if not first_record:
        raise UserError(f"{name}: empty; a FASTA file starts with '>'. Check the source")


def _blocks(chunks: Iterable[bytes], name: str) -> Iterator[tuple[int, bytearray]]:
    """Cut the stream into whole records, about `BLOCK_BYTES` at a time, each with its byte offset."""
    offset, pending = 0, bytearray()
    started = False
    for chunk in chunks:
        pending += chunk
        if not started and (blank := len(pending) - len(pending.lstrip())) < len(pending):
            del pending[:blank]
            offset, started = blank, True
            _check_start(pending, name)
        if len(pending) < BLOCK_BYTES:
            continue
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
    if started:
        yield offset, pending


def _check_start(start: bytearray, name: str) -> None:
    if start[0] == GREATER:
        return
    text = bytes(start[:512]).lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        raise UserError(
            f"{name}: a web page, not a FASTA (does a proxy or a login page stand in between?); "
            "open the address in a browser, or fetch the file another way and give its path to --source"
        )
    raise UserError(f"{name}: not a FASTA: it starts with {bytes(start[:20])!r}, not with '>'")


def _parse(block: bytearray, name: str, offset: int, first_record: int) -> Records:
    cleaned = block
    if b"\r" in cleaned:
        cleaned = cleaned.replace(b"\r\n", b"\n")
    if cleaned[-1] != NEWLINE:
        cleaned = cleaned + b"\n"

    def refuse(record: int, problem: str) -> UserError:
        header = list(re.finditer(rb"^>([^\s]*)", block, re.MULTILINE))[record]
        identifier = header[1].decode("utf-8", "backslashreplace")
        return UserError(
            f"{name}: record {first_record + record + 1:,} ({identifier or 'no id'}) at byte offset "
            f"{offset + header.start():,} {problem}"
        )

    data = np.frombuffer(cleaned, dtype=np.uint8)
    white = np.flatnonzero(data <= 32).astype(np.int32)
    kind = data[white]
    is_newline = kind == NEWLINE
    newlines = white[is_newline]
    starts = np.concatenate(([0], newlines[:-1] + 1)).astype(np.int32)
    is_header = data[starts] == GREATER
    line_of_white = np.cumsum(is_newline) - is_newline
    record_of_line = np.cumsum(is_header) - 1

    control = (kind < 32) & ~np.isin(kind, np.frombuffer(b"\n" + WHITE_SPACE, dtype=np.uint8))
    if control.any():
        at = int(np.argmax(control))
        record = int(record_of_line[line_of_white[at]])
        raise refuse(record, f"holds the control character 0x{kind[at]:02x}: the file is damaged or binary")
    if (~is_newline & ~is_header[line_of_white]).any():  # white space inside a sequence
        return _parse(_without_inner_white_space(cleaned), name, offset, first_record)

    # What stays of each line. A header's id takes the byte after it along, which becomes the comma; the
    # last line of a record takes its line end along.
    header_starts = starts[is_header]
    first_white = np.concatenate(([0], np.flatnonzero(is_newline)[:-1] + 1))
    id_ends = white[first_white[is_header]]
    ends_record = np.append(is_header[1:], True)
    stay = np.empty((len(starts), 2), dtype=np.int32)
    stay[:, 0] = starts + is_header
    stay[:, 1] = newlines + ends_record
    stay[is_header, 1] = id_ends + 1
    separators = data[id_ends]
    data[id_ends] = COMMA

    pieces = binary_array(cleaned, stay.ravel())
    kept = pieces.take(pa.array(np.arange(0, len(pieces), 2, dtype=np.int32)))
    data[id_ends] = separators  # the block stays what it was, for the messages
    bounds = np.concatenate(([0], np.cumsum(stay[:, 1] - stay[:, 0]))).astype(np.int32)
    row_bounds = np.append(bounds[:-1][is_header], bounds[-1])
    id_lengths = id_ends - header_starts - 1
    lengths = np.diff(row_bounds).astype(np.int64) - id_lengths - 2

    if (id_lengths == 0).any():
        raise refuse(int(np.argmin(id_lengths)), "has no id after '>'; give it one, or remove the record")
    if (lengths <= 0).any():
        raise refuse(
            int(np.argmax(lengths <= 0)),
            "has no sequence; the file may be cut short: mend or remove the record",
        )
    rows = binary_array(kept.buffers()[2], row_bounds)
    values = values_of(rows)
    if values.max() >= 127:
        _check_text(rows, id_lengths, refuse)
    if np.count_nonzero(values == COMMA) != len(rows) or (values == ord('"')).any():
        rows = _quoted(rows, id_lengths)
    return Records(rows, lengths)


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
                record, "holds bytes that are not text in its sequence: the file is damaged or binary"
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
