"""Labelled proteins: read from FASTA, CSV, Parquet or a hub dataset; what cannot be used is listed.

FASTA headers are `>ID LABEL [test]`; DeepLoc's are `>ID LABEL-X [test]` with X one of M, S, U (membrane,
soluble, unknown), and `test` its published test mark. Tables have the columns `sequence` and `label`,
and `id` where they have one. DeepLoc 2.0's table has one 0/1 column per localization instead. A protein
in several places has them joined by `|`, or as a list. Labels of other kinds: `kinds.py`. A table's column
`set` may hold the published test mark, too, as FLIP's tables do.
"""

import csv
import itertools
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from esm2_hyperpod.alphabet import AMINO_ACIDS
from esm2_hyperpod.errors import UserError
from esm2_hyperpod.proteins.kinds import PLACES, Letters, Places, Unusable
from esm2_hyperpod.proteins.records import open_text, read_records, residues_of

DEEPLOC_2_COLUMNS = (
    "Cytoplasm", "Nucleus", "Extracellular", "Cell membrane", "Mitochondrion", "Plastid",
    "Endoplasmic reticulum", "Lysosome/Vacuole", "Golgi apparatus", "Peroxisome",
)  # fmt: skip
# Other names that published tables have for what we call by the first.
SEQUENCE_COLUMNS = ("sequence", "seq", "aa_seq", "fasta")
ID_COLUMNS = ("id", "acc", "sid", "name")
HUB_SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


@dataclass(frozen=True)
class Protein:
    """One labelled protein. `where` is its file and line; `test` its published test mark."""

    where: str
    id: str
    sequence: str
    label: str
    test: bool = False


@dataclass(frozen=True)
class Rejected:
    """A row that is not used, and why."""

    where: str
    id: str
    reason: str


def read_proteins(path: Path, kind: Places = PLACES) -> Iterator[Protein]:
    """The rows of a labelled file as they stand. Raises `UserError` if it is no labelled file."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a FASTA, CSV or Parquet file of labelled proteins")
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".parquet"):
        return _read_parquet(path, kind)
    if name.endswith(".csv"):
        return _read_csv(path, kind)
    if name.endswith((".fasta", ".fa", ".faa")):
        return _read_pairs(path) if isinstance(kind, Letters) else _read_fasta(path)
    raise UserError(
        f"{path}: labelled proteins are read from .fasta, .csv or .parquet (.gz too); "
        "save it as one of these, with a name that says so"
    )


def read_hub_dataset(name: str, kind: Places = PLACES) -> dict[str, Iterator[Protein]]:
    """The splits `train`, and `validation` and `test` where they exist, of a dataset by name or folder.

    Raises `UserError` if it cannot be had or has no `train` split.
    """
    import datasets  # slow to import, and most runs read a file

    try:
        loaded = datasets.load_dataset(name)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--dataset_name {name}: {reason}; check the name and the network") from None
    if "train" not in loaded:
        raise UserError(f"--dataset_name {name}: has no split train, only {', '.join(loaded)}")
    found = {split: next((n for n in names if n in loaded), None) for split, names in HUB_SPLITS.items()}
    return {
        split: _table_rows(_hub_rows(loaded[theirs], kind), f"{name} {theirs}", "row", kind)
        for split, theirs in found.items()
        if theirs
    }


def _hub_rows(split, kind: Places) -> Iterator[tuple[int, dict]]:
    column = next((name for name in kind.columns if name in split.features), "")
    feature = split.features.get(column)
    names = getattr(getattr(feature, "feature", feature), "names", None)
    for number, row in enumerate(split, start=1):
        yield number, {**row, column: _named(row[column], names)} if names else row


def _named(classes: Any, names: list[str]) -> Any:
    """The names of one class number or a list of them; None where there is none, which the hub writes -1."""
    if isinstance(classes, list):
        return [_named(one, names) for one in classes]
    return None if classes is None or classes < 0 else names[classes]


def _read_fasta(path: Path) -> Iterator[Protein]:
    for record in read_records(path):
        words = record.header.split()[1:]
        label = re.sub(r"-[MSU]$", "", words[0]) if words else ""
        yield Protein(f"{path}:{record.line}", record.id, record.sequence, label, "test" in words[1:])


def _read_pairs(path: Path) -> Iterator[Protein]:
    """Records of three lines: `>ID [test]`, the sequence, a letter for each residue (as CAID's)."""
    with open_text(path) as file:
        lines = [(number, line.strip()) for number, line in enumerate(file, start=1) if line.strip()]
    starts = [at for at, (_, line) in enumerate(lines) if line.startswith(">")]
    if not starts:
        raise UserError(f"{path}: holds no FASTA record; is it the right file?")
    for start, end in itertools.pairwise([0, *starts[1:], len(lines)]):
        (number, header), *rest = lines[start:end]
        if not header.startswith(">") or len(rest) != 2:
            raise UserError(
                f"{path}:{number}: not three lines a protein: >ID, its sequence, a letter for each residue; "
                "put each on one line, or give a table with columns sequence and labels"
            )
        words = header[1:].split() or [""]
        yield Protein(f"{path}:{number}", words[0], rest[0][1], rest[1][1], "test" in words[1:])


def _read_csv(path: Path, kind: Places) -> Iterator[Protein]:
    csv.field_size_limit(sys.maxsize)
    with open_text(path) as file:
        reader = csv.DictReader(file, strict=True)
        try:
            yield from _table_rows(((reader.line_num, row) for row in reader), str(path), "line", kind)
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num}: not CSV ({error}); fix that line") from None


def _read_parquet(path: Path, kind: Places) -> Iterator[Protein]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise UserError(f"{path}: not a complete Parquet file ({reason}); write it again") from None
    return _table_rows(enumerate(rows, start=1), str(path), "row", kind)


def _table_rows(rows: Iterable[tuple[int, dict]], source: str, unit: str, kind: Places) -> Iterator[Protein]:
    columns = None
    for number, row in rows:
        if columns is None:
            columns = _find_columns(row, source, kind)
        name, sequence, label, mark = columns
        where = f"{source}:{number}" if unit == "line" else f"{source} {unit} {number}"
        if label:
            labels = kind.text(row[label], where)
        else:
            labels = "|".join(place for place in DEEPLOC_2_COLUMNS if _is_one(row.get(place), place, where))
        identifier = str(row[name]) if name and row[name] is not None else f"{unit}{number}"
        yield Protein(where, identifier, str(row[sequence] or ""), labels, bool(mark) and row[mark] == "test")
    if columns is None:
        needed = f"sequence and {kind.columns[0]}"
        raise UserError(f"{source}: holds no row; give a table of proteins with columns {needed}")


def _is_one(value: Any, place: str, where: str) -> bool:
    try:
        return float(value or 0) > 0
    except ValueError:
        raise UserError(f"{where}: {place} is {value!r}; it must be 0 or 1") from None


def _find_columns(row: dict, source: str, kind: Places) -> tuple[str | None, str, str | None, str | None]:
    """The names of the id, sequence, label and test-mark columns; label is None for DeepLoc 2.0's columns."""
    names = {str(name).lower(): name for name in row if name is not None}
    identifier = next((names[name] for name in ID_COLUMNS if name in names), None)
    sequence = next((names[name] for name in SEQUENCE_COLUMNS if name in names), None)
    label = next((names[name] for name in kind.columns if name in names), None)
    if sequence and (label or (kind is PLACES and {"Cytoplasm", "Nucleus"} <= set(row))):
        return identifier, sequence, label, names.get("set")
    missing = "sequence" if not sequence else kind.columns[0]
    raise UserError(f"{source}: has no column {missing} (it has: {', '.join(names)}); rename one of them")


def clean(rows: Iterable[Protein], kind: Places = PLACES) -> tuple[list[Protein], list[Rejected]]:
    """The rows fit for use, sequences in upper case, and those that are not, each with its reason.

    Of rows with the same sequence and label the first is kept; with contradicting labels, none.
    """
    kept, rejected = [], []
    for row in rows:
        sequence = residues_of(row.sequence)
        try:
            _refuse_unusable(sequence)
            label = kind.settled(row.label, row.sequence, sequence)
        except Unusable as reason:
            rejected.append(Rejected(row.where, row.id, str(reason)))
        else:
            kept.append(replace(row, sequence=sequence, label=label))
    unique, duplicates = _drop_duplicates(kept, kind)
    return unique, rejected + duplicates


def _refuse_unusable(sequence: str) -> None:
    if not sequence:
        raise Unusable("no sequence")
    strange = re.search(r"[^A-Z*]", sequence)
    if strange:
        raise Unusable(f"no protein sequence: it contains {strange.group()!r}")
    if not set(sequence) & set(AMINO_ACIDS):
        raise Unusable("unknown letters only")


def _drop_duplicates(proteins: list[Protein], kind: Places) -> tuple[list[Protein], list[Rejected]]:
    labels: dict[str, set[str]] = {}
    for protein in proteins:
        labels.setdefault(protein.sequence, set()).add(protein.label)
    first: dict[str, Protein] = {}
    rejected = []
    for protein in proteins:
        others = labels[protein.sequence]
        if len(others) > 1:
            rejected.append(Rejected(protein.where, protein.id, kind.contradiction(others)))
        elif protein.sequence in first:
            reason = f"duplicate of {first[protein.sequence].where}"
            rejected.append(Rejected(protein.where, protein.id, reason))
        else:
            first[protein.sequence] = protein
    return list(first.values()), rejected
