"""The endless sequence of packs a run visits, and each rank's part of it."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from esm2_hyperpod.packing import EpochPlan, Layout, plan_epoch


class PackStream:
    """Pack number g of an endless run: epoch g // packs, position g % packs. Nothing is left out."""

    def __init__(self, layout: Layout, seed: int):
        self.layout = layout
        self._seed = seed
        self._epoch = -1
        self._plan: EpochPlan | None = None

    def __getitem__(self, number: int) -> tuple[int, np.ndarray]:
        """(epoch, sequence indices of the pack)."""
        epoch, position = divmod(number, self.layout.packs)
        if epoch != self._epoch:
            self._plan, self._epoch = plan_epoch(self.layout, self._seed, epoch), epoch
        return epoch, self._plan[position]


class StepSampler(Sampler):
    """One rank's packs of a range of optimizer steps.

    Step s of a run takes packs [s * packs_per_step, (s + 1) * packs_per_step), whatever the number
    of ranks; resuming is starting at another step, and costs nothing.

    Args:
        packs_per_step: of all ranks together; a multiple of `world_size`.
        total_steps: length of the schedule. Trainer derives the number of steps from `len`.
        steps: those to be visited now.
    """

    def __init__(
        self,
        stream: PackStream,
        packs_per_step: int,
        total_steps: int,
        steps: range,
        rank: int,
        world_size: int,
    ):
        self._stream = stream
        self._packs_per_step = packs_per_step
        self._total_steps = total_steps
        self._steps = steps
        self._rank = rank
        self._world_size = world_size

    def __len__(self) -> int:
        """Micro-batches of the whole schedule on this rank."""
        return self._total_steps * self._packs_per_step // self._world_size

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        start, end = (step * self._packs_per_step for step in (self._steps.start, self._steps.stop))
        for number in range(start + self._rank, end, self._world_size):
            yield self._stream[number]
