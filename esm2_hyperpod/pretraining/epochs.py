"""The endless sequence of packs a run visits, and each rank's part of it."""

import bisect
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from esm2_hyperpod.pretraining.epoch_plans import EpochPlans, SharedPlans
from esm2_hyperpod.pretraining.packing import EpochPlan


class PackStream:
    """The packs of all epochs, one after the other without end. Nothing is left out."""

    def __init__(self, plans: EpochPlans | SharedPlans):
        self._plans = plans
        self._plan = plans[0]
        self._epoch = 0
        self._ends = [len(self._plan)]  # number of packs up to and with each epoch

    @property
    def packs_per_epoch(self) -> int:
        """Packs of the first epoch; with clusters, the others differ a little."""
        return self._ends[0]

    def most_sequences(self) -> int:
        """The largest number of sequences in a pack of the first epoch."""
        return int(np.diff(self._plan_of(0).pack_starts).max())

    def __getitem__(self, number: int) -> tuple[int, np.ndarray]:
        """(epoch, sequence indices of the pack)."""
        epoch, position = self._locate(number)
        return epoch, self._plan_of(epoch)[position]

    def epochs(self, packs: int) -> float:
        """Passes over the data that so many packs are."""
        epoch, position = self._locate(packs)
        return epoch + min(1.0, position / self._ends[0])

    def _locate(self, number: int) -> tuple[int, int]:
        if self._plans.alike:
            return divmod(number, self._ends[0])
        while number >= self._ends[-1]:
            self._ends.append(self._ends[-1] + len(self._plan_of(len(self._ends))))
        epoch = bisect.bisect_right(self._ends, number)
        return epoch, number - (self._ends[epoch - 1] if epoch else 0)

    def _plan_of(self, epoch: int) -> EpochPlan:
        if epoch != self._epoch:
            self._plan, self._epoch = self._plans[epoch], epoch
        return self._plan


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
