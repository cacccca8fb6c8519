"""Residues for masked positions, and the pseudo-perplexity of whole proteins."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from esm2_hyperpod.alphabet import AMINO_ACIDS
from esm2_hyperpod.errors import UserError
from esm2_hyperpod.esm.packed import PackedEsmForMaskedLM
from esm2_hyperpod.inference.probabilities import (
    MASK_LETTER,
    TOKEN,
    masked_log_probabilities,
    residue_log_likelihoods,
    with_mask_letters,
)
from esm2_hyperpod.inference.variants import check_residues
from esm2_hyperpod.proteins.records import Record, residues_of

FILLED = ("id", "position", "residue", "rank", "filled", "probability")
PERPLEXITY = ("id", "residues", "log_likelihood", "perplexity")


@dataclass(frozen=True)
class Protein:
    """A protein whose sequence has `#` for `<mask>`."""

    id: str
    sequence: str


def proteins(records: Iterable[Record], source: str, masks: bool) -> Iterator[Protein]:
    """The proteins of a file; with `masks` they may hold `<mask>`.

    Raises `UserError` for one that is empty, or holds what is neither residue nor mask.
    """
    for record in records:
        text = residues_of(record.sequence)
        check_residues(text.replace("<MASK>", "X") if masks else text, record, source)
        yield Protein(record.id, with_mask_letters(text) if masks else text)


def with_positions(
    proteins: Iterable[Protein], positions: Sequence[int] | None
) -> Iterator[tuple[Protein, list[int]]]:
    """Each protein with its positions to fill, from 0: those given, from 1, or else those of its masks.

    Raises `UserError` for a protein that has no such position.
    """
    for protein in proteins:
        if positions is None:
            chosen = [at for at, letter in enumerate(protein.sequence) if letter == MASK_LETTER]
            if not chosen:
                raise UserError(
                    f"{protein.id}: holds no <mask>; put it in place of residues, or give --positions"
                )
        else:
            chosen = [position - 1 for position in positions]
            if max(chosen) >= len(protein.sequence):
                raise UserError(
                    f"--positions {max(positions)}: {protein.id} has {len(protein.sequence)} residues"
                )
        yield protein, chosen


def filled(
    model: PackedEsmForMaskedLM, chunk: Sequence[tuple[Protein, list[int]]], top: int, max_length: int
) -> Iterator[tuple]:
    """Rows of `FILLED`: at each position the `top` amino acids, best first. All ranks take part.

    A position is masked beside the protein's own masks. Probabilities are over all 33 tokens, as those of
    transformers' fill-mask pipeline are.
    """
    places = [(protein, position) for protein, positions in chunk for position in positions]
    read = [(protein.sequence, position) for protein, position in places]
    tokens = [TOKEN[letter] for letter in AMINO_ACIDS]
    table = np.exp(masked_log_probabilities(model, read, max_length)[:, tokens])
    for (protein, position), row in zip(places, table):
        residue = protein.sequence[position].replace(MASK_LETTER, "")
        for number, best in enumerate(np.argsort(-row, kind="stable")[:top], start=1):
            yield protein.id, position + 1, residue, number, AMINO_ACIDS[best], f"{row[best]:.6f}"


def perplexities(model: PackedEsmForMaskedLM, chunk: Sequence[Protein], max_length: int) -> Iterator[tuple]:
    """Rows of `PERPLEXITY`: exp of the mean -log p(residue), each masked alone. All ranks take part."""
    rows = residue_log_likelihoods(model, [protein.sequence for protein in chunk], max_length)
    for protein, row in zip(chunk, rows):
        yield protein.id, len(row), f"{row.sum():.6f}", f"{np.exp(-row.mean()):.6f}"
