"""Batches of a chunk of proteins, and how processes share them."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

BATCH_TOKENS = {"cpu": 2_048, "cuda": 16_384}
"""Padding included; a longer protein is a batch of its own. More would fall out of a CPU's cache, and
would not fit into 24 GB beside 15B's weights."""

Batch = TypeVar("Batch")


def rank() -> int:
    """This process's number, 0 where it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def from_first_rank(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    box = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(box)
    return box[0]


def length_batches(lengths: Sequence[int], tokens: int) -> list[np.ndarray]:
    """Indices in order of length, cut so that (rows x longest row) stays within `tokens`."""
    order = np.argsort(lengths, kind="stable")
    batches, start = [], 0
    for end in range(1, len(order) + 1):
        if end == len(order) or lengths[order[end]] * (end - start + 1) > tokens:
            batches.append(order[start:end])
            start = end
    return batches


def in_turns(batches: Sequence[Batch], *results: torch.Tensor, alone: bool = False) -> Iterator[Batch]:
    """This rank's share of the batches, every n-th; then each result is summed over all ranks.

    `results` hold zeros where a batch of another rank belongs, so the sum is exact. Called on all ranks,
    unless this one is `alone`.
    """
    processes = dist.get_world_size() if dist.is_initialized() and not alone else 1
    yield from batches[rank() % processes :: processes]
    if processes > 1:
        for result in results:
            dist.all_reduce(result)
