"""Variants of a protein: read from a table of `mutant` (`A24G:K30R`), or all that one substitution makes."""

import csv
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from esm2_hyperpod.alphabet import AMINO_ACIDS
from esm2_hyperpod.errors import UserError
from esm2_hyperpod.proteins.records import Record, open_text, residues_of

MUTANT = "mutant"
WILD_TYPE = "WT"
RESIDUES = frozenset(AMINO_ACIDS + "XBUZO")


@dataclass(frozen=True)
class WildType:
    """A protein that has variants; `where` is its file and line."""

    id: str
    sequence: str
    where: str = ""


@dataclass(frozen=True)
class Variant:
    """Substitutions (position from 0, new residue) in a wild type; `row` is what its table says of it."""

    wild_type: WildType
    mutations: tuple[tuple[int, str], ...]
    row: tuple[str, ...]

    @property
    def sequence(self) -> str:
        """With all of its substitutions."""
        residues = list(self.wild_type.sequence)
        for position, residue in self.mutations:
            residues[position] = residue
        return "".join(residues)


def wild_types(records: Iterable[Record], source: str) -> Iterator[WildType]:
    """The proteins of a file. Raises `UserError` for one that is empty or no protein."""
    for record in records:
        sequence = residues_of(record.sequence)
        check_residues(sequence, record, source)
        yield WildType(record.id, sequence, f"{source}:{record.line}")


def check_residues(sequence: str, record: Record, source: str) -> None:
    """Refuse an empty record, and one that holds what is no letter; a letter unknown to ESM-2 is `<unk>`."""
    where = f"{source}:{record.line}: {record.id}"
    if strange := re.search(r"[^A-Z.-]", sequence):
        raise UserError(f"{where} holds {strange.group()!r}, which is no residue; fix the sequence")
    if not sequence:
        raise UserError(f"{where} has no residues; remove it")


def scan(proteins: Iterable[WildType], first_residue: int) -> Iterator[Variant]:
    """Each position of each protein with each of the other nineteen amino acids."""
    for protein in proteins:
        for position, before in enumerate(protein.sequence):
            for after in sorted(AMINO_ACIDS):
                if after != before:
                    name = f"{before}{position + first_residue}{after}"
                    yield Variant(protein, ((position, after),), (protein.id, name))


class VariantTable:
    """A CSV file with a column `mutant`, and `id` where there are several proteins. Each pass reads it again.

    Args:
        proteins: those whose variants it lists.
        first_residue: the number that the table gives the first residue of a sequence.

    Raises `UserError` if it has no such columns, or two proteins have one id.
    """

    def __init__(self, path: Path, proteins: Iterable[WildType], first_residue: int):
        if not path.is_file():
            raise UserError(f"--mutants {path}: no such file; give a CSV with a column {MUTANT}, or --scan")
        self.path, self._first = path, first_residue
        self.header = self._read_header()
        self._mutant = self.header.index(MUTANT)
        self._id = self.header.index("id") if "id" in self.header else None
        self._proteins: dict[str, WildType] = {}
        for protein in proteins:
            if protein.id in self._proteins:
                raise UserError(f"{protein.where}: {protein.id} is there twice; give each id once")
            self._proteins[protein.id] = protein
        if len(self._proteins) > 1 and self._id is None:
            raise UserError(
                f"{path}: has no column id, which says whose variant a row is: --fasta holds "
                f"{len(self._proteins):,} proteins; add it, or give one protein"
            )

    def __iter__(self) -> Iterator[Variant]:
        """Raises `UserError`, naming file and line, for a row that does not fit its protein."""
        for line, row in self._rows():
            where = f"{self.path}:{line}"
            protein = self._protein(row, where)
            yield Variant(protein, self._mutations(row[self._mutant], protein, where), tuple(row))

    @property
    def only(self) -> str | None:
        """The id of the protein, if there is but one."""
        return next(iter(self._proteins)) if len(self._proteins) == 1 else None

    def check(self) -> int:
        """Read it from beginning to end; the number of variants."""
        count = sum(1 for _ in self)
        if not count:
            raise UserError(f"{self.path}: holds no variants; give one a line below the header")
        return count

    def _protein(self, row: Sequence[str], where: str) -> WildType:
        if self.only:
            return self._proteins[self.only]
        if row[self._id] not in self._proteins:
            raise UserError(f"{where}: no protein {row[self._id]} in --fasta; the ids must be the same")
        return self._proteins[row[self._id]]

    def _mutations(self, text: str, protein: WildType, where: str) -> tuple[tuple[int, str], ...]:
        if text.strip().upper() == WILD_TYPE:
            return ()
        found: dict[int, str] = {}
        for part in text.strip().split(":"):
            words = re.fullmatch(r"([A-Z])(-?\d+)([A-Z])", part.upper())
            if not words:
                raise UserError(f"{where}: {text!r} is no variant; write A24G, or A24G:K30R for several")
            before, position, after = words[1], int(words[2]) - self._first, words[3]
            last = self._first + len(protein.sequence) - 1
            if not 0 <= position < len(protein.sequence):
                raise UserError(
                    f"{where}: {part}: {protein.id} has positions {self._first} to {last}; "
                    "does --first_residue fit?"
                )
            if protein.sequence[position] != before:
                raise UserError(
                    f"{where}: {part}: {protein.id} has {protein.sequence[position]} at {words[2]}, not "
                    f"{before}; is it the right sequence, and does --first_residue fit?"
                )
            if after not in RESIDUES:
                raise UserError(f"{where}: {part}: {after} is no residue that ESM-2 knows; remove the row")
            if position in found:
                raise UserError(f"{where}: {text}: two substitutions of position {words[2]}; keep one")
            found[position] = after
        return tuple(sorted(found.items()))

    def _read_header(self) -> list[str]:
        with open_text(self.path) as file:
            header = [name.strip() for name in next(csv.reader(file), [])]
        if MUTANT not in header:
            held = ", ".join(header)[:80] or "nothing"
            raise UserError(f"{self.path}: has no column {MUTANT} (it has: {held}); rename the one it is")
        return header

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """(line, row) of each row that is not blank."""
        csv.field_size_limit(sys.maxsize)
        with open_text(self.path) as file:
            reader = csv.reader(file, strict=True)
            try:
                next(reader)
                for row in reader:
                    if not row:
                        continue
                    if len(row) != len(self.header):
                        raise UserError(
                            f"{self.path}:{reader.line_num}: {len(row)} cells, the header has "
                            f"{len(self.header)}; fix that line"
                        )
                    yield reader.line_num, row
            except csv.Error as error:
                raise UserError(f"{self.path}:{reader.line_num}: not CSV ({error}); fix that line") from None
