"""The plan of each epoch, made once and shared by all processes."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from esm2_hyperpod.hashing import key64, mix64
from esm2_hyperpod.pretraining.packing import EpochPlan, Layout, plan_epoch

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
    """

    def __init__(
        self,
        lengths: Callable[[], np.ndarray],
        make_layout: Callable[[np.ndarray], Layout],
        seed: int,
        cluster_of_row: np.ndarray | None = None,
    ):
        self._get_lengths = lengths
        self._make_layout = make_layout
        self._seed = seed
        self._cluster_of_row = cluster_of_row
        self._clusters: _Clusters | None = None
        self._lengths: np.ndarray | None = None
        self._layout: Layout | None = None

    @property
    def alike(self) -> bool:
        """Whether all epochs have the same number of packs."""
        return self._cluster_of_row is None

    def __getitem__(self, epoch: int) -> EpochPlan:
        """The plan of an epoch; its members are sequence indices."""
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
        folder: seen by all processes, of this split of this run alone.
        maker: whether this process makes the plans. The others wait for the files.
    """

    def __init__(self, plans: EpochPlans, folder: Path, maker: bool):
        self._plans = plans
        self._folder = folder
        self._maker = maker
        self.alike = plans.alike
        folder.mkdir(parents=True, exist_ok=True)

    def __getitem__(self, epoch: int) -> EpochPlan:
        """The plan of an epoch; the last of its files to be written says that all are there."""
        paths = [self._folder / f"epoch-{epoch}.{name}.npy" for name in _ARRAYS]
        if self._maker and not paths[-1].exists():
            plan = self._plans[epoch]
            for name, path in zip(_ARRAYS, paths):
                temporary = path.with_suffix(f".{os.getpid()}.tmp")
                with open(temporary, "wb") as file:
                    np.save(file, getattr(plan, name))
                temporary.replace(path)
            for name in _ARRAYS:  # the others may still be in the epoch before this one
                (self._folder / f"epoch-{epoch - 2}.{name}.npy").unlink(missing_ok=True)
        while not paths[-1].exists():
            time.sleep(0.1)
        return EpochPlan(*(np.load(path, mmap_mode="r") for path in paths))
