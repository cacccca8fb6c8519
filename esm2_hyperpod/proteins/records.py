"""FASTA records one at a time, in constant memory, with the line each begins on."""

import contextlib
import io
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from isal import igzip, isal_zlib

from esm2_hyperpod.errors import UserError
from esm2_hyperpod.file_kinds import are_nucleotides, kind_of


@dataclass(frozen=True)
class Record:
    """`header` is the line after `>`, `line` its number in the file, from 1."""

    header: str
    sequence: str
    line: int

    @property
    def id(self) -> str:
        """The header's first word."""
        return self.header.split(maxsplit=1)[0] if self.header.strip() else ""


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """A text file, compressed with gzip or not, for reading; a byte-order mark is dropped.

    Raises `UserError` if it is another kind of file, not UTF-8, or its gzip stream is corrupt or incomplete.
    """
    try:
        with open(path, "rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = igzip.IGzipFile(fileobj=raw) if compressed else raw
            if kind := kind_of(stream.read(64)):
                raise UserError(f"{path}: not readable here: it is {kind}")
            stream.seek(0)
            yield io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); is it the right file?") from None
    except (EOFError, zlib.error, isal_zlib.error, igzip.BadGzipFile) as error:
        raise UserError(
            f"{path}: the gzip stream is corrupt or incomplete ({error}); fetch it again"
        ) from None


def residues_of(sequence: str) -> str:
    """A sequence as the model reads it: upper case, no blanks, no gaps, no stop codon at the end."""
    return "".join(sequence.split()).replace("-", "").replace(".", "").upper().rstrip("*")


def refuse_nucleotides(sequences: Iterable[str], source: str, otherwise: str = "") -> None:
    """Raise `UserError` if sequences are DNA or RNA by mistake; `otherwise` ends the line."""
    if are_nucleotides(sequence.encode() for sequence in sequences):
        raise UserError(
            f"{source}: DNA or RNA, not proteins: nearly all of the letters are A, C, G, T, U or N; "
            f"translate the sequences first{otherwise}"
        )


def read_records(path: Path) -> Iterator[Record]:
    """The records of a FASTA file. Raises `UserError` if it does not begin with `>` or holds none."""
    header, parts, start = None, [], 0
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            line = line.strip()
            if line.startswith(">"):
                if header is not None:
                    yield Record(header, "".join(parts), start)
                header, parts, start = line[1:], [], number
            elif line and header is None:
                raise UserError(f"{path}:{number}: not FASTA: the first record must begin with '>'")
            else:
                parts.append(line)
    if header is None:
        raise UserError(f"{path}: holds no FASTA record; is it the right file?")
    yield Record(header, "".join(parts), start)
