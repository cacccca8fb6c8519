"""Small numbers that all ranks must agree on, shared from host to host; how long a rank waits for another."""

import re
from collections.abc import Sequence
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout


@cache
def _host_group() -> dist.ProcessGroup:
    if dist.get_backend() == "gloo":
        return dist.group.WORLD
    return dist.new_group(backend="gloo")


def sum_over_ranks(values: Sequence[int]) -> list[int]:
    """Each value summed over all ranks. Called on all ranks.

    Over gloo also where the training's own group is NCCL: a collective on the GPU would have the host wait
    until all that is queued there is done, once a step.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(sums, group=_host_group())
    return sums.tolist()


def wait_at_most(seconds: float) -> None:
    """From now on no collective waits longer than this for another rank. Called on all ranks.

    `_set_pg_timeout` is private to torch (2.13), and the only way to have steps fail soon and saves late:
    FSDP's checkpoints use the group of the training. Needless once torch has a public one.
    """
    if dist.is_initialized():
        for group in {dist.group.WORLD, _host_group()}:
            _set_pg_timeout(timedelta(seconds=seconds), group)


def seconds_waited(error: RuntimeError) -> int | None:
    """How long a rank was waited for, if `error` is gloo's (torch 2.13) for that; NCCL ends the process."""
    found = re.search(r"gloo.*Timed out waiting (\d+)ms", str(error))
    return int(found[1]) // 1000 if found else None
