"""Small numbers that all ranks must agree on, shared from host to host."""

from collections.abc import Sequence
from functools import cache

import torch
import torch.distributed as dist


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
