"""Small protein files for the tests of the data path."""

import csv
import gzip
import hashlib
import random
from pathlib import Path

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"


def some_proteins(count: int, seed: int = 0, longest: int = 400) -> dict[str, str]:
    """id -> sequence."""
    source = random.Random(seed)
    return {
        f"UniRef50_P{index:05d}": "".join(source.choices(RESIDUES, k=source.randint(20, longest)))
        for index in range(count)
    }


def longest_first(proteins: dict[str, str]) -> dict[str, str]:
    """In the order of UniRef50."""
    return dict(sorted(proteins.items(), key=lambda item: -len(item[1])))


def fasta(proteins: dict[str, str], line: int = 60) -> bytes:
    """FASTA text, as UniProt wraps it."""
    records = []
    for identifier, sequence in proteins.items():
        lines = [sequence[at : at + line] for at in range(0, len(sequence), line)]
        records.append("\n".join([f">{identifier} Some protein n=1 Tax=Homo sapiens", *lines, ""]))
    return "".join(records).encode()


def write_fasta(path: Path, proteins: dict[str, str], line: int = 60) -> Path:
    """A FASTA file, gzipped if its name says so."""
    text = fasta(proteins, line)
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)
    return path


def read_partitions(folder: Path) -> list[list[tuple[str, str]]]:
    """The (id, text) rows of every CSV partition."""
    partitions = []
    for path in sorted(folder.glob("x*.csv")):
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        assert header == ["id", "text"]
        partitions.append([tuple(row) for row in rows])
    return partitions


def digests(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file below `folder`, but for the lock."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
