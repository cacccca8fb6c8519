"""BERT's masking as ESM-2 uses it, each token's fate a pure function of (seed, epoch, index, position).

15% of the tokens are to be predicted; of these 80% become `<mask>`, 10% a random token, 10% stay
(Devlin et al. 2019; Lin et al. 2023, supplementary A.2.2).
"""

import numpy as np

from esm2_hyperpod.alphabet import AMINO_ACID_IDS, CLS, EOS, MASK, PAD, TOKENS, UNK
from esm2_hyperpod.hashing import key64, mix64

IGNORED = -100
"""Label of a token that is not to be predicted; torch's cross entropy leaves it out."""

_MASKING, _CROPPING = 10, 11
_ROLL = 1 << 24  # each roll of the dice uses 24 of a hash's 64 bits

_NEVER_MASKED = np.zeros(256, dtype=bool)
_NEVER_MASKED[[CLS, PAD, EOS, UNK, MASK]] = True

REPLACEMENTS = {
    "all_tokens": np.arange(len(TOKENS), dtype=np.uint8),
    "amino_acids": np.asarray(AMINO_ACID_IDS, dtype=np.uint8),
}
"""What the random tenth is drawn from: all 33 tokens (ESM-2, Hugging Face) or the 20 amino acids."""


def crop_starts(lengths: np.ndarray, indices: np.ndarray, longest: int, seed: int, epoch: int) -> np.ndarray:
    """Where each sequence's window of at most `longest` tokens begins, uniformly: int64, 0 where it fits."""
    room = np.maximum(lengths.astype(np.int64) - longest, 0).astype(np.uint64) + np.uint64(1)
    return (mix64(indices.astype(np.uint64) ^ key64(seed, epoch, _CROPPING)) % room).astype(np.int64)


def mask_tokens(
    tokens: np.ndarray,
    lengths: np.ndarray,
    indices: np.ndarray,
    seed: int,
    epoch: int,
    probability: float,
    replacements: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Mask sequences laid end to end.

    Args:
        tokens: uint8[sum(lengths)], the sequences.
        lengths, indices: each sequence's number of tokens and its index in the dataset.
        probability: share of tokens to be predicted. Special tokens never are.
        replacements: token ids from which the random tenth is drawn.

    Returns:
        The masked tokens (uint8) and the labels (int64, `IGNORED` where nothing is predicted).
    """
    keys = mix64(indices.astype(np.uint64) ^ key64(seed, epoch, _MASKING))
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    positions = np.arange(len(tokens)) - starts
    # Positions are spread by an odd constant before mixing, so that nearby keys share no stream.
    spread = positions.astype(np.uint64) * np.uint64(0xD1342543DE82EF95)
    rolls = mix64(np.repeat(keys, lengths) ^ spread)
    selected = (rolls >> np.uint64(40)) < np.uint64(round(probability * _ROLL))
    selected &= ~_NEVER_MASKED[tokens]
    labels = np.where(selected, tokens.astype(np.int64), IGNORED)

    fate = (rolls >> np.uint64(16)) & np.uint64(_ROLL - 1)
    masked = tokens.copy()
    masked[selected & (fate < np.uint64(round(0.8 * _ROLL)))] = MASK
    random = selected & (fate >= np.uint64(round(0.9 * _ROLL)))
    draws = ((rolls[random] & np.uint64(0xFFFF)) * np.uint64(len(replacements))) >> np.uint64(16)
    masked[random] = replacements[draws.astype(np.int64)]
    return masked, labels
