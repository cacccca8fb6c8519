"""The norm of a model's gradients, the same digits however they lie on the processes."""

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor


def clip_gradients(parameters: Iterable[torch.nn.Parameter], largest_norm: float) -> torch.Tensor:
    """Scale all gradients such that their norm is at most `largest_norm`. Called on all ranks.

    Squares are summed in fp64, so that it hardly matters in which order shards are added: summed in fp32 the
    norm of the same gradients differs in the seventh digit, and in bf16 runs drift apart by that.

    Returns:
        The norm before scaling, fp32; the same on all ranks.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    own = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    by_copies = defaultdict(list)  # nothing is sent to the device, which would wait for it
    for gradient, norm in zip(gradients, torch._foreach_norm(own, 2, dtype=torch.float64)):
        by_copies[_copies(gradient)].append(norm)
    total = sum(torch.stack(norms).square().sum() / copies for copies, norms in by_copies.items())
    if any(isinstance(gradient, DTensor) for gradient in gradients):
        dist.all_reduce(total)
    norm = total.sqrt().float()
    torch._foreach_mul_(own, (largest_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def _copies(gradient: torch.Tensor) -> int:
    """How many processes hold each value of a sharded gradient; 1 for an ordinary one."""
    if not isinstance(gradient, DTensor):
        return 1
    mesh = gradient.device_mesh
    assert mesh.size() == dist.get_world_size()
    return math.prod(size for size, how in zip(mesh.shape, gradient.placements) if how.is_replicate())
