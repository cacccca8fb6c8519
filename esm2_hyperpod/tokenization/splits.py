"""Which split a record belongs to: a pure function of its id (or its cluster's), the seed and the fractions.

A record's hash, read as a number u in [0, 1), falls in the test split if u < test, in validation if
u < test + validation, in train if u < test + validation + train, and in none otherwise. How the records
are partitioned plays no part, and adding records moves none of the others.
"""

from dataclasses import dataclass

import numpy as np

from esm2_hyperpod.errors import UserError

SPLITS = ("train", "validation", "test")
DEFAULT_HELD_OUT = 50_000
LARGEST_DEFAULT_SHARE = 0.05

Size = int | float  # a count of records, or a fraction of them if it is a float


@dataclass(frozen=True)
class Fractions:
    """The share of all records that each split gets; they add up to 1 at most."""

    train: float
    validation: float
    test: float

    def asked_for(self) -> tuple[str, ...]:
        """The splits that are to hold anything."""
        return tuple(split for split in SPLITS if getattr(self, split) > 0)


def resolve(
    records: int, train: Size | None, validation: Size | None, test: Size | None
) -> tuple[Fractions, str | None]:
    """Sizes as fractions of `records`, and one line for the user if fewer records than asked will do.

    `None` is the default: 50,000 records for validation and test, but 5% of all at most; the rest for
    train. Counts that add up to more than there is shrink in the same way. Raises `UserError` if
    fractions add up to more than 1.
    """
    largest = LARGEST_DEFAULT_SHARE * records
    asked = {
        split: DEFAULT_HELD_OUT if size is None else size * records if isinstance(size, float) else size
        for split, size in (("validation", validation), ("test", test))
    }
    wanted_train = train * records if isinstance(train, float) else train or 0
    too_many = wanted_train + sum(asked.values()) > records * (1 + 1e-9)
    if (
        too_many
        and all(isinstance(size, float) for size in (validation, test))
        and not isinstance(train, int)
    ):
        raise UserError(
            f"--train_size {train}, --validation_size {validation} and --test_size {test} add up to more "
            "than 1; make them smaller"
        )
    given = {"validation": validation, "test": test}
    held_out = {
        split: min(size, largest)
        if given[split] is None or (too_many and isinstance(given[split], int))
        else size
        for split, size in asked.items()
    }
    rest = records - sum(held_out.values())
    kept_train = rest if train is None else min(wanted_train, rest)
    note = None
    if held_out != asked or kept_train < wanted_train:
        sizes = {"train": kept_train, **held_out}
        note = f"{records:,} records are few: the splits shrink to about " + ", ".join(
            f"{round(size):,} {split}" for split, size in sizes.items()
        )
    return Fractions(kept_train / records, *(held_out[s] / records for s in ("validation", "test"))), note


def split_of(hashes: np.ndarray, fractions: Fractions) -> np.ndarray:
    """int8[n]: index into `SPLITS` for each uint64 hash of a record's id (or cluster's), or 3 for none."""
    u = hashes * 2.0**-64
    test, validation = fractions.test, fractions.test + fractions.validation
    train = validation + fractions.train if validation + fractions.train < 1 - 1e-12 else 2.0
    return np.select([u < test, u < validation, u < train], [2, 1, 0], default=3).astype(np.int8)
