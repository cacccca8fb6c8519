"""What a protein may be labelled with: the places where it lives, a letter for each residue, or a number.

A kind knows which column holds the label, which labels can be used, how labels are balanced over splits, and
when there is too little to learn from or to judge by. A label is text throughout, as splits/*.csv holds it.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from esm2_hyperpod.errors import UserError

DEEPLOC_1_DOUBLE_LABEL = "Cytoplasm-Nucleus"
STRATA = 5  # by size, of numbers
JUDGED = 3  # proteins with different numbers: the fewest that a correlation is of


class Unusable(ValueError):
    """A row that cannot be used; the message is the reason."""


class Places:
    """One label a protein, or several joined by `|`."""

    columns: tuple[str, ...] = ("label",)
    format = "FASTA (>ID LABEL), or a table with columns sequence and label"

    def text(self, value: Any, where: str) -> str:
        """A cell of a table as text; empty where there is none. The number 0 is a label, too."""
        if isinstance(value, list):
            if len(set(value)) < len(value):
                raise UserError(f"{where}: label {value}: give the labels themselves, not a 0 or 1 for each")
            return "|".join(part for one in value if (part := self.text(one, where)))
        return "" if value is None or value != value else str(value)  # NaN is missing

    def settled(self, label: str, written: str, sequence: str) -> str:
        """The label in its one spelling. Raises `Unusable`.

        Args:
            written: the sequence as the file has it; `sequence` is what is used of it.
        """
        label = "|".join(sorted({part.strip() for part in label.split("|") if part.strip()}))
        if not label:
            raise Unusable("no label")
        if label == DEEPLOC_1_DOUBLE_LABEL:
            raise Unusable(f"double label {label}, which DeepLoc 1.0 leaves out")
        return label

    def parts(self, label: str) -> list[str]:
        """The classes that a label is made of, each as often as it counts."""
        return label.split("|")

    def contradiction(self, labels: set[str]) -> str:
        """Why no row is kept of a sequence that has these labels."""
        return f"the same sequence has contradicting labels: {', '.join(sorted(labels))}"

    def facts(self, proteins: Iterable) -> dict[str, Any]:
        """`labels`: how often each class occurs, in alphabetical order; `A|B` counts for A and for B."""
        counts = Counter(part for protein in proteins for part in self.parts(protein.label))
        return {"labels": dict(sorted(counts.items()))}

    def strata(self, proteins: Sequence) -> np.ndarray:
        """A value for each protein; proteins of one value are spread evenly over the splits."""
        return np.array([protein.label for protein in proteins])

    def check_training(self, proteins: Sequence) -> None:
        """Raise `UserError` if there is nothing to learn from these."""
        labels = self.facts(proteins)["labels"]
        if len(labels) < 2:
            raise UserError(
                f"the training proteins have {len(labels)} label(s), which leaves nothing to tell "
                "apart; give proteins of two labels or more"
            )

    def check_held_out(self, name: str, proteins: Sequence) -> None:
        """Raise `UserError` if the split of this name cannot judge a model; never, if it holds a protein."""


class Letters(Places):
    """One letter a residue.

    Args:
        unlabelled: the letters that stand for no label.
    """

    columns = ("labels", "label", "secondary_structure")  # the last is that of NVIDIA's secondary structures
    format = "three lines a protein (>ID, sequence, labels), or a table with columns sequence and labels"

    def __init__(self, unlabelled: str):
        self.unlabelled = unlabelled

    def text(self, value: Any, where: str) -> str:
        """As `Places.text`; a list has one letter a residue, None or -100 for no label."""
        if not isinstance(value, list):
            return super().text(value, where)
        letters = [self.unlabelled[0] if one in (None, -100) else str(one) for one in value]
        if any(len(letter) != 1 for letter in letters):
            raise UserError(
                f"{where}: labels {value[:5]}...: give one letter, or a number of 0 to 9, a residue"
            )
        return "".join(letters)

    def settled(self, label: str, written: str, sequence: str) -> str:
        """The letters of the residues that are used: gaps and a stop codon take theirs along."""
        label, written = label.strip(), "".join(written.split())
        if not label:
            raise Unusable("no labels")
        if len(label) == len(written) != len(sequence):
            stop = len(written.rstrip("*"))
            label = "".join(one for one, residue in zip(label[:stop], written) if residue not in "-.")
        if len(label) != len(sequence):
            raise Unusable(f"{len(label)} labels for {len(sequence)} residues")
        strange = next((letter for letter in label if not "!" <= letter <= "~"), None)
        if strange is not None:
            raise Unusable(f"{strange!r} is no label: use letters, digits or signs")
        if not self.parts(label):
            raise Unusable(f"no residue has a label: all are {self.unlabelled}")
        return label

    def parts(self, label: str) -> list[str]:
        """The labels of the residues that have one."""
        return [letter for letter in label if letter not in self.unlabelled]

    def contradiction(self, labels: set[str]) -> str:
        """As `Places.contradiction`, without the long labels."""
        return "the same sequence has contradicting labels"

    def strata(self, proteins: Sequence) -> np.ndarray:
        """All alike."""
        return np.zeros(len(proteins), dtype=int)


class Numbers(Places):
    """A number a protein."""

    columns = ("target", "label")
    format = "FASTA (>ID NUMBER), or a table with columns sequence and target"

    def text(self, value: Any, where: str) -> str:
        """As `Places.text`; a list is refused."""
        if isinstance(value, list):
            raise UserError(f"{where}: target {value}: give one number a protein")
        return super().text(value, where)

    def settled(self, label: str, written: str, sequence: str) -> str:
        """The number as Python writes it."""
        if not label.strip():
            raise Unusable("no target")
        try:
            number = float(label)
        except ValueError:
            raise Unusable(f"target {label[:40]!r} is not a number") from None
        if not math.isfinite(number):
            raise Unusable(f"target {label.strip()} is not finite")
        return repr(number)

    def parts(self, label: str) -> list[str]:
        """None: numbers are no classes."""
        return []

    def contradiction(self, labels: set[str]) -> str:
        """As `Places.contradiction`."""
        numbers = sorted(map(float, labels))
        return (
            f"the same sequence has {len(numbers)} targets, {numbers[0]} to {numbers[-1]}; give one, such as "
            "their mean"
        )

    def facts(self, proteins: Iterable) -> dict[str, Any]:
        """`labels`, of which there are none, and `target`: mean, standard deviation, least, greatest."""
        values = targets(proteins)
        figures = {"mean": values.mean(), "sd": values.std(), "least": values.min(), "greatest": values.max()}
        return {"labels": {}, "target": {name: float(value) for name, value in figures.items()}}

    def strata(self, proteins: Sequence) -> np.ndarray:
        """The fifth that each number is in, by size; fewer parts where there are few proteins."""
        ranks = np.argsort(np.argsort(targets(proteins), kind="stable"), kind="stable")
        return ranks * max(1, min(STRATA, len(ranks) // 10)) // max(len(ranks), 1)

    def check_training(self, proteins: Sequence) -> None:
        """As `Places.check_training`: the numbers must differ."""
        values = targets(proteins)
        if len(np.unique(values)) < 2:
            raise UserError(
                f"the targets of all {len(values)} training proteins are {values.tolist()[0]}, which leaves "
                "nothing to learn; check the column target"
            )

    def check_held_out(self, name: str, proteins: Sequence) -> None:
        """As `Places.check_held_out`: a correlation needs three different numbers."""
        different = len(np.unique(targets(proteins)))
        if different < JUDGED:
            raise UserError(
                f"the {name} split has {len(proteins)} protein(s) with {different} different target(s), too "
                f"few for a correlation; give more proteins or a --{name}_file"
            )


def targets(proteins: Iterable) -> np.ndarray:
    """The numbers that proteins are labelled with: float64[proteins]."""
    return np.array([float(protein.label) for protein in proteins])


PLACES = Places()
