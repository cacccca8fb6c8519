"""Effects of variants without training (Meier et al. 2021), as fair-esm's variant-prediction script has them.

- `masked-marginals`: log p(new) - log p(wild type) at a position, with that position of the wild type masked.
- `wt-marginals`: the same with nothing masked, which takes one pass a protein.
- `pseudo-ppl`: the sum of log p(residue) over the mutated sequence, each position masked in turn. fair-esm's
  script leaves out the last two residues: `pseudo_ppl` is its number, `pseudo_log_likelihood` that of all.

Marginals of several substitutions are summed, each scored as if it were the only one, as ProteinGym does.
"""

from collections.abc import Sequence

import numpy as np

from esm2_hyperpod.esm.packed import PackedEsmForMaskedLM
from esm2_hyperpod.inference.probabilities import (
    TOKEN,
    log_probabilities,
    masked_log_probabilities,
    residue_log_likelihoods,
)
from esm2_hyperpod.inference.variants import Variant

COLUMNS = {
    "masked-marginals": ("masked_marginals",),
    "wt-marginals": ("wt_marginals",),
    "pseudo-ppl": ("pseudo_ppl", "pseudo_log_likelihood"),
}
LEFT_OUT = 2  # residues at the end, by fair-esm's `range(1, len(sequence) - 1)` over tokens from `<cls>` on


def scores(
    model: PackedEsmForMaskedLM, variants: Sequence[Variant], scoring: str, max_length: int
) -> np.ndarray:
    """float64[variants, columns of `scoring`]; higher is more like a natural protein. All ranks take part."""
    if scoring == "pseudo-ppl":
        return _pseudo_likelihoods(model, [variant.sequence for variant in variants], max_length)
    if scoring == "wt-marginals":
        table = _unmasked(model, variants, max_length)
    else:
        table = _masked(model, variants, max_length)
    return np.array([[_marginal(variant, table)] for variant in variants])


def work(variant: Variant, scoring: str, max_length: int) -> float:
    """About how many tokens a variant takes, where the other variants of its positions are scored with it."""
    tokens = min(len(variant.wild_type.sequence) + 2, max_length)
    if scoring == "pseudo-ppl":
        return tokens * len(variant.wild_type.sequence)
    return tokens * len(variant.mutations) / 19


def _marginal(variant: Variant, table: dict[tuple[str, int], np.ndarray]) -> float:
    total, wild_type = 0.0, variant.wild_type.sequence
    for position, after in variant.mutations:
        row = table[wild_type, position]
        total += float(row[TOKEN[after]]) - float(row[TOKEN[wild_type[position]]])
    return total


def _masked(
    model: PackedEsmForMaskedLM, variants: Sequence[Variant], max_length: int
) -> dict[tuple[str, int], np.ndarray]:
    """Log-probabilities float32[33] at each mutated position of each wild type."""
    places = list(
        dict.fromkeys(
            (variant.wild_type.sequence, position)
            for variant in variants
            for position, _ in variant.mutations
        )
    )
    return dict(zip(places, masked_log_probabilities(model, places, max_length))) if places else {}


def _unmasked(
    model: PackedEsmForMaskedLM, variants: Sequence[Variant], max_length: int
) -> dict[tuple[str, int], np.ndarray]:
    """As `_masked`, at all positions, with nothing masked."""
    sequences = list(dict.fromkeys(variant.wild_type.sequence for variant in variants))
    tables = log_probabilities(model, sequences, max_length)
    return {
        (sequence, position): row
        for sequence, table in zip(sequences, tables)
        for position, row in enumerate(table)
    }


def _pseudo_likelihoods(model: PackedEsmForMaskedLM, sequences: Sequence[str], max_length: int) -> np.ndarray:
    """float64[sequences, 2]: without the last residues, and of all."""
    likelihoods = residue_log_likelihoods(model, sequences, max_length)
    return np.array([[row[: max(len(row) - LEFT_OUT, 0)].sum(), row.sum()] for row in likelihoods])
