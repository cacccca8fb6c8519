"""Proteins laid end to end, as the packed model reads them."""

from collections.abc import Sequence

import numpy as np
import torch

from esm2_hyperpod.esm.packed import PackedEsmForMaskedLM
from esm2_hyperpod.streaming.batches import BATCH_TOKENS
from esm2_hyperpod.streaming.resumable import chunks


class Pack:
    """Some of a list of rows of token ids, and where each lies.

    Attributes:
        rows: their numbers in the list.
        spans: (start, stop) of each in the pack.
    """

    def __init__(self, numbers: Sequence[int], ids: Sequence[np.ndarray]):
        self.rows = numbers
        self._ids = [ids[number] for number in numbers]
        self._borders = np.concatenate([[0], np.cumsum([len(row) for row in self._ids])])
        self.spans = list(zip(self._borders[:-1].tolist(), self._borders[1:].tolist()))

    def inputs(self, device: torch.device) -> dict:
        """What `PackedEsmForMaskedLM.forward` takes."""
        tensors = {
            "input_ids": torch.from_numpy(np.concatenate(self._ids).astype(np.int64))[None],
            "position_ids": torch.cat([torch.arange(len(row)) for row in self._ids])[None],
            "cu_seqlens": torch.from_numpy(self._borders.astype(np.int32)),
        }
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        return {**tensors, "max_seqlen": max(len(row) for row in self._ids)}


def packs(ids: Sequence[np.ndarray], device: torch.device) -> list[Pack]:
    """The rows in packs, in their order; a row longer than a pack is one by itself."""
    limit = BATCH_TOKENS[device.type]
    cut = chunks(range(len(ids)), most=len(ids), weigh=lambda number: len(ids[number]), limit=limit)
    return [Pack(numbers, ids) for numbers in cut]


def device_of(model: PackedEsmForMaskedLM) -> torch.device:
    """Where the model computes."""
    return next(model.parameters()).device
