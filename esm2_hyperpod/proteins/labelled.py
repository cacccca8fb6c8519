"""Labelled proteins: read from FASTA, CSV, Parquet or a hub dataset; what cannot be used is listed.

FASTA headers are `>ID LABEL [test]`; DeepLoc's are `>ID LABEL-X [test]` with X one of M, S, U (membrane,
soluble, unknown), and `test` its published test mark. Tables have the columns `sequence` and `label`,
and `id` where they have one. DeepLoc 2.0's table has one 0/1 column per localization instead. A protein
in several places has them joined by `|`, or as a list.
"""

import csv
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from esm2_hyperpod.alphabet import AMINO_ACIDS
from esm2_hyperpod.errors import UserError
from esm2_hyperpod.proteins.records import open_text, read_records, residues_of

DEEPLOC_2_COLUMNS = (
    "Cytoplasm", "Nucleus", "Extracellular", "Cell membrane", "Mitochondrion", "Plastid",
    "Endoplasmic reticulum", "Lysosome/Vacuole", "Golgi apparatus", "Peroxisome",
)  # fmt: skip
# Other names that published tables have for what we call by the first.
SEQUENCE_COLUMNS = ("sequence", "seq", "aa_seq", "fasta")
ID_COLUMNS = ("id", "acc", "sid", "name")
HUB_SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
DEEPLOC_1_DOUBLE_LABEL = "Cytoplasm-Nucleus"


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


def read_proteins(path: Path) -> Iterator[Protein]:
    """The rows of a labelled file as they stand. Raises `UserError` if it is no labelled file."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a FASTA, CSV or Parquet file of labelled proteins")
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".parquet"):
        return _read_parquet(path)
    if name.endswith(".csv"):
        return _read_csv(path)
    if name.endswith((".fasta", ".fa", ".faa")):
        return _read_fasta(path)
    raise UserError(
        f"{path}: labelled proteins are read from .fasta, .csv or .parquet (.gz too); "
        "save it as one of these, with a name that says so"
    )


def read_hub_dataset(name: str) -> dict[str, Iterator[Protein]]:
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
        split: _table_rows(_hub_rows(loaded[theirs]), f"{name} {theirs}", "row")
        for split, theirs in found.items()
        if theirs
    }


def _hub_rows(split) -> Iterator[tuple[int, dict]]:
    feature = split.features.get("label")
    names = getattr(getattr(feature, "feature", feature), "names", None)
    for number, row in enumerate(split, start=1):
        yield number, {**row, "label": _named(row["label"], names)} if names else row


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


def _read_csv(path: Path) -> Iterator[Protein]:
    csv.field_size_limit(sys.maxsize)
    with open_text(path) as file:
        reader = csv.DictReader(file, strict=True)
        try:
            yield from _table_rows(((reader.line_num, row) for row in reader), str(path), "line")
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num}: not CSV ({error}); fix that line") from None


def _read_parquet(path: Path) -> Iterator[Protein]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise UserError(f"{path}: not a complete Parquet file ({reason}); write it again") from None
    return _table_rows(enumerate(rows, start=1), str(path), "row")


def _table_rows(rows: Iterable[tuple[int, dict]], source: str, unit: str) -> Iterator[Protein]:
    columns = None
    for number, row in rows:
        if columns is None:
            columns = _find_columns(row, source)
        name, sequence, label = columns
        where = f"{source}:{number}" if unit == "line" else f"{source} {unit} {number}"
        if label:
            labels = _joined(row[label], where)
        else:
            labels = "|".join(place for place in DEEPLOC_2_COLUMNS if _is_one(row.get(place), place, where))
        identifier = str(row[name]) if name and row[name] is not None else f"{unit}{number}"
        yield Protein(where, identifier, str(row[sequence] or ""), labels)
    if columns is None:
        raise UserError(f"{source}: holds no row; give a table of proteins with columns sequence and label")


def _joined(label: Any, where: str) -> str:
    """A label as text, several joined by `|`; empty where there is none. The number 0 is a label, too."""
    if isinstance(label, list):
        if len(set(label)) < len(label):
            raise UserError(f"{where}: label {label}: give the labels themselves, not a 0 or 1 for each")
        return "|".join(part for one in label if (part := _joined(one, where)))
    return "" if label is None or label != label else str(label)  # NaN is missing


def _is_one(value: Any, place: str, where: str) -> bool:
    try:
        return float(value or 0) > 0
    except ValueError:
        raise UserError(f"{where}: {place} is {value!r}; it must be 0 or 1") from None


def _find_columns(row: dict, source: str) -> tuple[str | None, str, str | None]:
    """The names of the id, sequence and label columns; label is None for DeepLoc 2.0's 0/1 columns."""
    names = {str(name).lower(): name for name in row if name is not None}
    identifier = next((names[name] for name in ID_COLUMNS if name in names), None)
    sequence = next((names[name] for name in SEQUENCE_COLUMNS if name in names), None)
    label = names.get("label")
    if sequence and label:
        return identifier, sequence, label
    if sequence and {"Cytoplasm", "Nucleus"} <= set(row):
        return identifier, sequence, None
    missing = "sequence" if not sequence else "label"
    raise UserError(f"{source}: has no column {missing} (it has: {', '.join(names)}); rename one of them")


def clean(rows: Iterable[Protein]) -> tuple[list[Protein], list[Rejected]]:
    """The rows fit for use, sequences in upper case, and those that are not, each with its reason.

    Of rows with the same sequence and label the first is kept; with contradicting labels, none.
    """
    kept, rejected = [], []
    for row in rows:
        sequence = residues_of(row.sequence)
        label = "|".join(sorted({part.strip() for part in row.label.split("|") if part.strip()}))
        reason = _why_unusable(sequence, label)
        if reason:
            rejected.append(Rejected(row.where, row.id, reason))
        else:
            kept.append(replace(row, sequence=sequence, label=label))
    unique, duplicates = _drop_duplicates(kept)
    return unique, rejected + duplicates


def _why_unusable(sequence: str, label: str) -> str | None:
    if not sequence:
        return "no sequence"
    strange = re.search(r"[^A-Z*]", sequence)
    if strange:
        return f"no protein sequence: it contains {strange.group()!r}"
    if not set(sequence) & set(AMINO_ACIDS):
        return "unknown letters only"
    if not label:
        return "no label"
    if label == DEEPLOC_1_DOUBLE_LABEL:
        return f"double label {label}, which DeepLoc 1.0 leaves out"
    return None


def _drop_duplicates(proteins: list[Protein]) -> tuple[list[Protein], list[Rejected]]:
    labels: dict[str, set[str]] = {}
    for protein in proteins:
        labels.setdefault(protein.sequence, set()).add(protein.label)
    first: dict[str, Protein] = {}
    rejected = []
    for protein in proteins:
        others = labels[protein.sequence]
        if len(others) > 1:
            reason = f"the same sequence has contradicting labels: {', '.join(sorted(others))}"
            rejected.append(Rejected(protein.where, protein.id, reason))
        elif protein.sequence in first:
            reason = f"duplicate of {first[protein.sequence].where}"
            rejected.append(Rejected(protein.where, protein.id, reason))
        else:
            first[protein.sequence] = protein
    return list(first.values()), rejected


def count_labels(proteins: Iterable[Protein]) -> dict[str, int]:
    """Number of proteins of each label, labels in alphabetical order; `A|B` counts for A and for B."""
    return dict(sorted(Counter(part for protein in proteins for part in protein.label.split("|")).items()))
