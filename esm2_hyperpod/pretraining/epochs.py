"""The plan of each epoch, the endless sequence of packs that a run visits, and each rank's part of it."""

import bisect
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from torch.utils.data import Sampler

from esm2_hyperpod.artifacts import whole_file, write_text_atomically
from esm2_hyperpod.console import in_progress
from esm2_hyperpod.errors import UserError
from esm2_hyperpod.hashing import key64, mix64
from esm2_hyperpod.pretraining.packing import EpochPlan, Layout, plan_epoch

WAIT_SECONDS = 1800
"""Rank 0 plans tens of millions of sequences in a minute or two."""

_CHOICE = 4  # what a random decision is for, see packing.py
_ARRAYS = ("members", "pack_starts", "order")


class EpochPlans:
    """Plans of one split: of all its sequences or, with clusters, of one member of each cluster.

    ESM-2 was trained on a UniRef90 member of each UniRef50 cluster, drawn anew every epoch (Lin et al.
    2023, supplementary A.1.1). The member is a function of (seed, epoch, cluster).

    Args:
        lengths: called once, by the process that plans: int32, tokens of each sequence, cropped.
        make_layout: packs of given lengths.
        cluster_of_row: int32, each sequence's cluster, dense from 0; None where each is its own.
        folder: of this split of this run alone; the number of packs of each epoch is kept there, so that a
            resumed run does not plan the epochs before it again. None to keep nothing.
    """

    def __init__(
        self,
        lengths: Callable[[], np.ndarray],
        make_layout: Callable[[np.ndarray], Layout],
        seed: int,
        cluster_of_row: np.ndarray | None = None,
        folder: Path | None = None,
    ):
        self._get_lengths = lengths
        self._make_layout = make_layout
        self._seed = seed
        self._cluster_of_row = cluster_of_row
        self.folder = folder
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        self._clusters: _Clusters | None = None
        self._lengths: np.ndarray | None = None
        self._layout: Layout | None = None

    @property
    def alike(self) -> bool:
        """Whether all epochs have the same number of packs."""
        return self._cluster_of_row is None

    def packs_in(self, epoch: int) -> int:
        """The number of packs of an epoch."""
        path = self.folder and _packs_file(self.folder, epoch)
        return int(path.read_text()) if path and path.exists() else len(self[epoch])

    def __getitem__(self, epoch: int) -> EpochPlan:
        """The plan of an epoch; its members are sequence indices."""
        with in_progress(f"planning epoch {epoch}"):
            plan = self._plan(epoch)
        if self.folder and not self.alike:
            write_text_atomically(_packs_file(self.folder, epoch), str(len(plan)))
        return plan

    def _plan(self, epoch: int) -> EpochPlan:
        if self._lengths is None:
            self._lengths = self._get_lengths()
        if self._cluster_of_row is None:
            if self._layout is None:
                self._layout = self._make_layout(self._lengths)
            return plan_epoch(self._layout, self._seed, epoch)
        if self._clusters is None:
            self._clusters = _Clusters(self._cluster_of_row)
        rows = self._clusters.choose(key64(self._seed, epoch, _CHOICE))
        plan = plan_epoch(self._make_layout(self._lengths[rows]), self._seed, epoch)
        return EpochPlan(rows[plan.members], plan.pack_starts, plan.order)


class _Clusters:
    def __init__(self, cluster_of_row: np.ndarray):
        self._rows = np.argsort(cluster_of_row, kind="stable")
        self._sizes = np.bincount(cluster_of_row).astype(np.uint64)
        self._starts = np.cumsum(self._sizes) - self._sizes

    def choose(self, key: np.uint64) -> np.ndarray:
        """One row of each cluster: int64[clusters]."""
        draws = mix64(np.arange(len(self._sizes), dtype=np.uint64) ^ key) % self._sizes
        return self._rows[(self._starts + draws).astype(np.int64)]


class SharedPlans:
    """`EpochPlans` made by one process and memory-mapped by all of them.

    Planning tens of millions of sequences takes seconds and gigabytes, which eight processes need not
    spend each. A run that is started again finds the files.

    Args:
        plans: with a folder that all processes see.
        maker: whether this process makes the plans. The others wait for the files.
    """

    def __init__(self, plans: EpochPlans, maker: bool):
        self._plans = plans
        self._folder = plans.folder
        self._maker = maker
        self.alike = plans.alike

    def packs_in(self, epoch: int) -> int:
        """The number of packs of an epoch, which outlives its plan."""
        if self._maker:
            return self._plans.packs_in(epoch)
        _wait_for(_packs_file(self._folder, epoch))
        return self._plans.packs_in(epoch)

    def __getitem__(self, epoch: int) -> EpochPlan:
        """The plan of an epoch; the last of its files to be written says that all are there."""
        paths = [self._folder / f"epoch-{epoch}.{name}.npy" for name in _ARRAYS]
        if self._maker and not paths[-1].exists():
            plan = self._plans[epoch]
            for name, path in zip(_ARRAYS, paths):
                with whole_file(path) as temporary, open(temporary, "wb") as file:
                    np.save(file, getattr(plan, name))
            for name in _ARRAYS:  # the others may still be in the epoch before this one
                (self._folder / f"epoch-{epoch - 2}.{name}.npy").unlink(missing_ok=True)
        _wait_for(paths[-1])
        return EpochPlan(*(np.load(path, mmap_mode="r") for path in paths))


def _packs_file(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch}.packs"


def _wait_for(path: Path) -> None:
    """Wait until rank 0 has written a file. Raises `UserError` where it does not come."""
    until = time.monotonic() + WAIT_SECONDS
    while not path.exists():
        if time.monotonic() > until:
            raise UserError(
                f"{path}: rank 0 has not written it in {WAIT_SECONDS // 60} minutes; see its log, then run "
                "the same command again"
            )
        time.sleep(0.1)


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
            self._ends.append(self._ends[-1] + self._plans.packs_in(len(self._ends)))
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
        overfit: number of steps whose packs are visited again and again, with the same crops and masks.
    """

    def __init__(
        self,
        stream: PackStream,
        packs_per_step: int,
        total_steps: int,
        steps: range,
        rank: int,
        world_size: int,
        overfit: int | None = None,
    ):
        self._cycle = overfit and overfit * packs_per_step
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
            yield self._stream[number % self._cycle if self._cycle else number]
