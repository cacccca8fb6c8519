"""Muon for the matrices of the layers, AdamW for the rest, on whole, replicated and sharded parameters.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) replaces a matrix's momentum by the nearest
orthogonal matrix, found by five Newton-Schulz iterations. `torch.optim.Muon` (2.13) does that for all of them
on each process, gathering those that are sharded each by itself. Here the processes share the work: each gets
some matrices whole, in one exchange a shape, and sends back what the others need of the result.
"""

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

COEFFICIENTS = 3.4445, -4.7750, 2.0315
ITERATIONS = 5
ADAMW_RMS = 0.2
"""What an element of AdamW's update is, roughly: scaled to it, AdamW's learning rate serves both (Liu et al.
2025, arXiv:2502.16982)."""

_AT_ONCE = 2**26  # elements of the matrices that are iterated together


class Muon(torch.optim.AdamW):
    """AdamW, which treats `matrices` by Muon instead: one state for each in place of two.

    Args:
        groups: as AdamW takes them.
        matrices: those of the parameters in `groups`, all two-dimensional, that Muon is for. Where one is
            sharded, its rows are divided over one dimension of its mesh; over the others it is replicated.
        dtype: of the iterations. torch's are in bfloat16.
        momentum: Nesterov's.
        adamw: for AdamW; `lr` and `weight_decay` are for both.
    """

    def __init__(self, groups, matrices: Iterable[torch.nn.Parameter], dtype, momentum=0.95, **adamw):
        chosen = set(matrices)
        divided = []
        for group in groups:
            for is_muon in (True, False):
                parameters = [one for one in group["params"] if (one in chosen) == is_muon]
                if parameters:
                    divided.append({**group, "params": parameters, "muon": is_muon})
        super().__init__(divided, **adamw)
        self._dtype, self._momentum = dtype, momentum

    def __setstate__(self, state):
        torch.optim.Optimizer.__setstate__(self, state)  # AdamW's wants its own state of each parameter

    @torch.no_grad()
    def step(self, closure=None):
        """One step. `closure` is not supported."""
        assert closure is None
        groups = self.param_groups
        for group in groups:
            if group["muon"]:
                self._step_by_muon(group)
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            super().step()
        finally:
            self.param_groups = groups

    def _step_by_muon(self, group: dict) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not parameters:
            return
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        momenta = [_own(self.state[parameter]["momentum_buffer"]) for parameter in parameters]
        gradients = [_own(parameter.grad) for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - self._momentum)
        directions = torch._foreach_lerp(gradients, momenta, self._momentum)
        by_kind = defaultdict(list)
        for number, parameter in enumerate(parameters):
            by_kind[parameter.shape].append(number)
        for shape, numbers in by_kind.items():
            those = [directions[number] for number in numbers]
            made = _orthogonalized(those, parameters[numbers[0]], self._dtype)
            scale = ADAMW_RMS * math.sqrt(max(shape))
            for number, direction in zip(numbers, made):
                own = _own(parameters[number])
                own.mul_(1 - group["lr"] * group["weight_decay"])
                own.add_(direction.to(own.dtype), alpha=-group["lr"] * scale)


def _own(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _orthogonalized(
    matrices: list[torch.Tensor], like: torch.Tensor, dtype: torch.dtype
) -> list[torch.Tensor]:
    """This process's part of each matrix, made orthogonal. All have the shape and the division of `like`."""
    if isinstance(like, DTensor):
        (dimension,) = (n for n, how in enumerate(like.placements) if how.is_shard(0))
        return _exchanged(matrices, like, like.device_mesh.get_group(dimension), dtype)
    if dist.is_initialized() and dist.get_world_size() > 1:
        return _shared(matrices, dtype)
    return list(orthogonalize(torch.stack(matrices), dtype))


def _shared(matrices: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """Matrices that all processes have: each takes every n-th, and all get all results."""
    processes, rank = dist.get_world_size(), dist.get_rank()
    rounds = math.ceil(len(matrices) / processes)
    mine = matrices[rank::processes]
    made = torch.zeros(rounds, *matrices[0].shape, dtype=dtype, device=matrices[0].device)
    if mine:
        made[: len(mine)] = orthogonalize(torch.stack(mine), dtype)
    everything = made.new_empty(processes * rounds, *made.shape[1:])
    dist.all_gather_into_tensor(everything.view(torch.uint8), made.view(torch.uint8))
    return [everything[number % processes * rounds + number // processes] for number in range(len(matrices))]


def _exchanged(
    shards: list[torch.Tensor], like: DTensor, group: dist.ProcessGroup, dtype: torch.dtype
) -> list[torch.Tensor]:
    """Matrices whose rows lie on n processes: each gets every n-th whole, and the others their rows back."""
    processes, rank = group.size(), group.rank()
    columns = like.shape[1]
    rows = [len(chunk) for chunk in torch.arange(like.shape[0]).chunk(processes)]
    rows += [0] * (processes - len(rows))
    counts = [len(range(owner, len(shards), processes)) for owner in range(processes)]
    by_owner = sorted(range(len(shards)), key=lambda number: number % processes)
    away = [count * rows[rank] * columns for count in counts]  # values for, and later from, each process
    here = [counts[rank] * some * columns for some in rows]
    sent = torch.stack([shards[number] for number in by_owner]).to(dtype)
    received = _all_to_all(sent.flatten(), away, here, group)
    if counts[rank]:
        parts = (part.view(counts[rank], -1, columns) for part in received.split(here))
        made = orthogonalize(torch.cat(list(parts), dim=1), dtype).split(rows, dim=1)
        received = torch.cat([part.flatten() for part in made])
    returned = _all_to_all(received, here, away, group).view(sent.shape)
    return [returned[by_owner.index(number)] for number in range(len(shards))]


def _all_to_all(values, sends: list[int], receives: list[int], group) -> torch.Tensor:
    """As bytes, which every backend sends."""
    size = values.element_size()
    received = torch.empty(sum(receives), dtype=values.dtype, device=values.device)
    dist.all_to_all_single(
        received.view(torch.uint8),
        values.contiguous().view(torch.uint8),
        [size * count for count in receives],
        [size * count for count in sends],
        group=group,
    )
    return received


def orthogonalize(matrices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The nearest orthogonal matrix of each, roughly: singular values come to lie around 1.

    Args:
        matrices: [n, rows, columns].
        dtype: of the iterations, and of what is returned.
    """
    per_matrix = matrices[0].numel()
    return torch.cat([_iterated(some, dtype) for some in matrices.split(max(1, _AT_ONCE // per_matrix))])


def _iterated(matrices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    a, b, c = COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    norms = matrices.float().flatten(1).norm(dim=1).clamp(min=1e-7)
    x = (matrices.float() / norms[:, None, None]).to(dtype)
    x = x.mT if is_tall else x
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
