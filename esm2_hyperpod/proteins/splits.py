"""Train, validation and test proteins: as published, as given, or split off by similarity."""

import csv
import warnings
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from esm2_hyperpod.artifacts import (
    MANIFEST,
    read_manifest,
    write_csv,
    write_json_atomically,
)
from esm2_hyperpod.errors import UserError
from esm2_hyperpod.proteins.kinds import PLACES, Places
from esm2_hyperpod.proteins.labelled import Protein, Rejected, clean
from esm2_hyperpod.proteins.records import refuse_nucleotides
from esm2_hyperpod.proteins.similarity import KMERS_METHOD, group_similar, similar_families

FOLDS = 10
HELD_OUT_FOLDS = {"validation": (2,), "test": (0, 1)}
METHODS = ("similarity", "random")
SPLITS = ("train", "validation", "test")


@dataclass
class Splits:
    """The proteins of each split, the rows that are not used, and how the split was made, in words."""

    train: list[Protein]
    validation: list[Protein]
    test: list[Protein]
    rejected: list[Rejected]
    facts: dict[str, Any]


def make_splits(given: dict[str, Iterable[Protein]], method: str, seed: int, kind: Places = PLACES) -> Splits:
    """Complete what was given (`train`, perhaps `validation` and `test`) to three splits.

    A published test mark in `train` is respected. What is missing is split off `train`: a fifth for the
    test, a tenth for validation; by similarity (`method="similarity"`) or at random (`"random"`). Rows
    that cannot be used, and training rows that are held out or similar to what was split off by similarity,
    go to `rejected`.

    Raises `UserError` if there are none, or too few proteins to split.
    """
    parts, rejected = {}, []
    for name, rows in given.items():
        parts[name], unusable = clean(rows, kind)
        rejected += unusable
        refuse_nucleotides((p.sequence for p in parts[name]), f"the {name} proteins")
        if not parts[name]:
            first = f"{unusable[0].where}: {unusable[0].reason}"
            raise UserError(f"not one {name} protein can be used; the first, {first}; fix the rows")
    origin = dict.fromkeys(given, "given")
    if "test" not in parts and any(protein.test for protein in parts["train"]):
        parts["test"], origin["test"] = [p for p in parts["train"] if p.test], "published test mark"
        parts["train"] = [p for p in parts["train"] if not p.test]
    parts["train"], repeated = _without_held_out(
        parts["train"], [*parts.get("validation", []), *parts.get("test", [])]
    )
    rejected += repeated

    everybody = [protein for part in parts.values() for protein in part]
    similar = Similarities(everybody)
    missing = [name for name in HELD_OUT_FOLDS if name not in parts]
    grouping = "none needed, the splits were given"
    if missing:
        origin.update(dict.fromkeys(missing, method))
        split_off, grouping = _split_off(parts["train"], missing, similar, method, seed, kind)
        parts.update(split_off)
        if method == "similarity":
            held_out = [protein for name in missing for protein in parts[name]]
            relatives = similar.among(parts["train"], held_out)
            reason = "similar to a protein held out for evaluation"
            rejected += [Rejected(p.where, p.id, reason) for p in parts["train"] if p.where in relatives]
            parts["train"] = [p for p in parts["train"] if p.where not in relatives]

    kind.check_training(parts["train"])
    about = kind.facts(parts["train"])
    for name in HELD_OUT_FOLDS:
        parts[name], unknown = _with_known_labels(parts[name], set(about["labels"]), kind)
        rejected += unknown
        if not parts[name]:
            first = f", {unknown[0].where}: {unknown[0].reason}" if unknown else ""
            raise UserError(f"the {name} split is empty{first}; give more proteins or a --{name}_file")
        kind.check_held_out(name, parts[name])
    facts = {
        "origin": {name: origin.get(name, "given") for name in SPLITS},
        "proteins": {name: len(parts[name]) for name in SPLITS},
        **about,
        "grouping": grouping,
        "test_proteins_like_a_training_protein": len(similar.among(parts["test"], parts["train"])),
        "leak_measured_by": KMERS_METHOD,
    }
    return Splits(parts["train"], parts["validation"], parts["test"], rejected, facts)


class Similarities:
    """Which of some proteins are similar, by `similar_families`."""

    def __init__(self, proteins: list[Protein]):
        self._sequences = [protein.sequence for protein in proteins]
        self._leader, self._pairs = similar_families(self._sequences)
        self._position = {protein.where: index for index, protein in enumerate(proteins)}
        self._has_family = np.bincount(self._leader, minlength=len(proteins)) > 1

    def groups(self, proteins: list[Protein]) -> tuple[np.ndarray, str]:
        """A group number for each protein, and the method in words; see `group_similar`."""
        leaders, place = np.unique(self._leaders(proteins), return_inverse=True)
        pairs = self._pairs[leaders][:, leaders]
        groups, description = group_similar([self._sequences[leader] for leader in leaders], pairs)
        return groups[place], description

    def among(self, proteins: list[Protein], others: list[Protein]) -> set[str]:
        """`where` of those of `proteins` that are similar to one of `others`."""
        leaders = np.unique(self._leaders(others))
        similar = self._pairs[:, leaders].sum(axis=1) > 0
        similar[leaders[self._has_family[leaders]]] = True
        found = similar[self._leaders(proteins)]
        return {protein.where for protein, one in zip(proteins, found) if one}

    def _leaders(self, proteins: list[Protein]) -> np.ndarray:
        return self._leader[[self._position[protein.where] for protein in proteins]]


def _without_held_out(train: list[Protein], held_out: list[Protein]) -> tuple[list[Protein], list[Rejected]]:
    """The training proteins whose sequence is not held out; the others, with the reason."""
    elsewhere = {protein.sequence: protein.where for protein in held_out}
    repeated = [protein for protein in train if protein.sequence in elsewhere]
    rejected = [
        Rejected(p.where, p.id, f"held out for evaluation: {elsewhere[p.sequence]}") for p in repeated
    ]
    return [protein for protein in train if protein.sequence not in elsewhere], rejected


def _split_off(
    train: list[Protein], names: list[str], similar: Similarities, method: str, seed: int, kind: Places
) -> tuple[dict[str, list[Protein]], str]:
    """`names` split off `train`, and what is left as `train`; and the grouping in words."""
    folds, grouping = _folds(train, similar, method, seed, kind)
    part_of_fold = {fold: name for name in names for fold in HELD_OUT_FOLDS[name]}
    parts: dict[str, list[Protein]] = {name: [] for name in ("train", *names)}
    for protein, fold in zip(train, folds):
        parts[part_of_fold.get(int(fold), "train")].append(protein)
    return parts, grouping


def _folds(
    proteins: list[Protein], similar: Similarities, method: str, seed: int, kind: Places
) -> tuple[np.ndarray, str]:
    """Fold number of each protein, balanced over labels, groups kept whole; and the grouping in words."""
    if method == "random":
        groups, description = np.arange(len(proteins)), "none: split at random, homologues on both sides"
    else:
        groups, description = similar.groups(proteins)
        largest = np.bincount(np.unique(groups, return_inverse=True)[1]).max(initial=0)
        description += f": {len(np.unique(groups)):,} groups, the largest of {largest:,} proteins"
    labels = kind.strata(proteins)
    kinds = len(np.unique(groups))
    if kinds < FOLDS or np.unique(labels, return_counts=True)[1].max(initial=0) < FOLDS:
        raise UserError(
            f"{len(proteins)} usable proteins in {kinds} groups of similar ones are too few to split "
            f"(at least {FOLDS} groups, and {FOLDS} proteins of one label); give --validation_file "
            "and --test_file" + (", or --split random" if FOLDS <= len(proteins) != kinds else "")
        )
    from sklearn.model_selection import StratifiedGroupKFold  # slow to import

    folds = np.empty(len(proteins), dtype=np.int64)
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # it still goes to some fold
        parts = [inside for _, inside in splitter.split(labels, labels, groups)]
    # A group too large for a fold makes an oversized one: sorted to the end, it is left to training.
    parts.sort(key=lambda inside: abs(len(inside) - len(proteins) / FOLDS))
    for number, inside in enumerate(parts):
        folds[inside] = number
    return folds, description


def _with_known_labels(
    proteins: list[Protein], known: set[str], kind: Places
) -> tuple[list[Protein], list[Rejected]]:
    kept, rejected = [], []
    for protein in proteins:
        strangers = set(kind.parts(protein.label)) - known
        if strangers:
            reason = f"no training protein has the label {', '.join(sorted(strangers))}"
            rejected.append(Rejected(protein.where, protein.id, reason))
        else:
            kept.append(protein)
    return kept, rejected


def write_splits(splits: Splits, folder: Path, options: dict[str, Any]) -> None:
    """Write `train.csv`, `validation.csv`, `test.csv`, `rejected.csv` and, last, `manifest.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SPLITS:
        _write_rows(folder / f"{name}.csv", Protein, getattr(splits, name))
    _write_rows(folder / "rejected.csv", Rejected, splits.rejected)
    manifest = {"options": options, **splits.facts, "rejected": len(splits.rejected)}
    write_json_atomically(folder / MANIFEST, manifest)


def _write_rows(path: Path, kind: type, rows: list) -> None:
    write_csv(path, [field.name for field in fields(kind)], (astuple(row) for row in rows))


def read_splits(folder: Path, made_by: str) -> Splits:
    """What `write_splits` wrote. Raises `UserError` if it is unfinished."""
    facts = read_manifest(folder, made_by, holds="proteins")
    parts = {}
    for name in (*SPLITS, "rejected"):
        with open(folder / f"{name}.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        kind = Rejected if name == "rejected" else Protein
        parts[name] = [
            kind(**{**row, "test": row["test"] == "True"} if "test" in row else row) for row in rows
        ]
    return Splits(**parts, facts=facts)
