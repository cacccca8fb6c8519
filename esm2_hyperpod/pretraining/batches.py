"""From sequence indices to the tensors of one micro-batch: crop, mask, and lay out or pad."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from esm2_hyperpod.alphabet import CLS, EOS, PAD
from esm2_hyperpod.pretraining.masking import IGNORED, REPLACEMENTS, crop_starts, mask_tokens
from esm2_hyperpod.training.throughput import Counts


@dataclass(frozen=True)
class BatchMaker:
    """A map-style dataset for torch's DataLoader whose keys are (epoch, indices of the sequences).

    The result depends on the key, the seed and the sequences alone, so any worker of any process
    makes the same micro-batch.

    Attributes:
        store: token ids of each sequence, uint8.
        tokens: size of a pack.
        most_sequences: of a pack, its padding included, so that `cu_seqlens` has one shape.
        longest: tokens after which a sequence is cropped at random.
        part, parts: of a pack's tokens, which of so many equal parts this process predicts; it gets them all.
    """

    store: Sequence[np.ndarray]
    tokens: int
    longest: int
    most_sequences: int
    seed: int
    mask_probability: float
    mask_replace: str
    packing: bool
    part: int = 0
    parts: int = 1

    def __getitem__(self, key: tuple[int, np.ndarray]) -> dict[str, torch.Tensor | int | Counts]:
        """One micro-batch, with its `counts` for the throughput figures (see `throughput.Counts`)."""
        epoch, indices = key
        sequences = [self.store[index] for index in indices.tolist()]
        full = np.asarray([len(sequence) for sequence in sequences], dtype=np.int64)
        starts = crop_starts(full, indices, self.longest, self.seed, epoch)
        lengths = np.minimum(full, self.longest)
        tokens = np.concatenate(
            [np.zeros(0, dtype=np.uint8)]
            + [
                sequence[start : start + length].astype(np.uint8, copy=False)
                for sequence, start, length in zip(sequences, starts.tolist(), lengths.tolist())
            ]
        )
        masked, labels = mask_tokens(
            tokens,
            lengths,
            indices,
            self.seed,
            epoch,
            self.mask_probability,
            REPLACEMENTS[self.mask_replace],
        )
        batch = self._pack(masked, labels, lengths) if self.packing else self._pad(masked, labels, lengths)
        residues = int(np.isin(tokens, (CLS, EOS), invert=True).sum())
        squares, masked = int((lengths**2).sum()), int((labels != IGNORED).sum())
        counts = Counts(residues, len(tokens), batch["input_ids"].numel(), squares, masked, len(indices))
        batch["counts"] = Counts(*[0] * len(counts)) if self.part else counts  # a pack counts once
        return batch

    def _pack(self, tokens: np.ndarray, labels: np.ndarray, lengths: np.ndarray) -> dict:
        gap = self.tokens - len(tokens)
        # The unfilled end becomes sequences of padding: attention kernels leave uncovered tokens undefined.
        tails = np.full(gap // self.longest + (gap % self.longest > 0), self.longest)
        tails[-1:] = gap - tails[:-1].sum()
        lengths = np.concatenate([lengths, tails])
        borders = np.full(max(self.most_sequences, len(lengths)) + 1, self.tokens)
        borders[: len(lengths) + 1] = np.concatenate([[0], np.cumsum(lengths)])
        positions = np.arange(self.tokens) - np.repeat(borders[: len(lengths)], lengths)
        size = self.tokens // self.parts
        labels = np.pad(labels, (0, gap), constant_values=IGNORED)[self.part * size :][:size]
        (predict,) = np.nonzero(labels != IGNORED)
        spare = _room(max(len(predict), self._most_predicted)) - len(predict)
        return {
            "input_ids": torch.from_numpy(np.pad(tokens, (0, gap), constant_values=PAD).astype(np.int64))[
                None
            ],
            "position_ids": torch.from_numpy(positions)[None],
            "cu_seqlens": torch.from_numpy(borders.astype(np.int32)),
            "max_seqlen": self.longest,
            "predict": torch.from_numpy(np.pad(predict, (0, spare))),
            "labels": torch.from_numpy(np.pad(labels[predict], (0, spare), constant_values=IGNORED)),
        }

    @property
    def _most_predicted(self) -> float:
        # Six standard deviations above the mean: one pack in a billion has more, and then another shape.
        tokens = self.tokens // self.parts
        spread = math.sqrt(tokens * self.mask_probability * (1 - self.mask_probability))
        return min(tokens, tokens * self.mask_probability + 6 * spread)

    def _pad(self, tokens: np.ndarray, labels: np.ndarray, lengths: np.ndarray) -> dict:
        real = np.arange(lengths.max(initial=1)) < lengths[:, None]
        input_ids = np.full(real.shape, PAD, dtype=np.int64)
        padded_labels = np.full(real.shape, IGNORED, dtype=np.int64)
        input_ids[real], padded_labels[real] = tokens, labels
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(real.astype(np.int64)),
            "labels": torch.from_numpy(padded_labels),
        }


def _room(count: float) -> int:
    """The next multiple of 64, which matrix products like."""
    return 64 * math.ceil(count / 64)
