"""One pack over several processes: tensor parallel and context parallel, by what DTensor sends.

Both divide a pack's tokens: between attention and feed-forward, at the embedding and at the head, each
process has its equal part of them, and the labels of that part. Where tokens must meet, DTensor moves them;
the backward pass moves the gradients the other way.

    tokens / (cp * tp)                          residual stream, LayerNorms, embedding, head
        gather over tp      tokens / cp         all features in, a share of the heads or of the width out
        trade over cp       tokens              attention of heads / (cp * tp)
        trade back          tokens / cp
        sum and scatter     tokens / (cp * tp)  the product's partial sums

Tensor parallel divides the weights of a layer as `PLAN` says (Shoeybi et al. 2019, Megatron-LM; the tokens in
between: Korthikanti et al. 2022). Context parallel leaves weights alone and trades tokens for heads around
attention (Jacobs et al. 2023, DeepSpeed Ulysses): exact for any pack, because each head sees it whole.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

PLAN = {
    "attention.self.query": "colwise",
    "attention.self.key": "colwise",
    "attention.self.value": "colwise",
    "attention.output.dense": "rowwise",
    "intermediate.dense": "colwise",
    "output.dense": "rowwise",
}
"""How the products of a layer are divided, in the words of transformers' `tp_plan`; all else is whole."""


@dataclass(frozen=True)
class Parallel:
    """The processes that share a pack. Without meshes, all methods return what they are given.

    Attributes:
        tensor: those that share weights, tp_size of them.
        context: those that share no more than the pack, cp_size of them.
    """

    tensor: DeviceMesh | None = None
    context: DeviceMesh | None = None

    def own_context(self, tokens: torch.Tensor) -> torch.Tensor:
        """[tokens, ...] of a pack: those of this process's tensor-parallel group."""
        return _part(tokens, self.context)

    def own(self, tokens: torch.Tensor) -> torch.Tensor:
        """[tokens, ...] of a pack: those of this process."""
        return _part(_part(tokens, self.context), self.tensor)

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        """The tokens of all tensor-parallel processes, each of which uses them in its own way."""
        return _move(part, self.tensor, Shard(0), Replicate(), Partial())

    def sum_and_scatter(self, sums: torch.Tensor) -> torch.Tensor:
        """Partial sums over the tensor-parallel processes, for all tokens: this process's tokens, summed."""
        return _move(sums, self.tensor, Partial(), Shard(0))

    def to_heads(self, parts: torch.Tensor) -> torch.Tensor:
        """[part of the tokens, n, heads, head size] -> [tokens, n, part of the heads, head size]."""
        return _move(parts, self.context, Shard(0), Shard(2))

    def to_tokens(self, parts: torch.Tensor) -> torch.Tensor:
        """[tokens, part of the heads, head size] -> [part of the tokens, heads, head size]."""
        return _move(parts, self.context, Shard(1), Shard(0))


def _part(tokens: torch.Tensor, mesh: DeviceMesh | None) -> torch.Tensor:
    return tokens if mesh is None else tokens.chunk(mesh.size())[mesh.get_local_rank()]


def _move(local: torch.Tensor, mesh: DeviceMesh | None, before, after, gradient=None) -> torch.Tensor:
    if mesh is None:
        return local
    moved = DTensor.from_local(local, mesh, [before], run_check=False).redistribute(placements=[after])
    return moved.to_local(grad_placements=[gradient] if gradient else None)


def divide_weights(model: nn.Module, mesh: DeviceMesh) -> None:
    """Make all parameters DTensors over the tensor-parallel processes, divided as `PLAN` says or whole."""
    made = {}  # the head and the embedding are one parameter
    for name, module in list(model.named_modules()):
        plan = next((how for suffix, how in PLAN.items() if name.endswith(f".{suffix}")), None)
        for key, parameter in module.named_parameters(recurse=False):
            if parameter not in made:
                placement = _placement(plan, key)
                divided = distribute_tensor(parameter.detach(), mesh, [placement], src_data_rank=None)
                made[parameter] = nn.Parameter(divided, requires_grad=parameter.requires_grad)
            module.register_parameter(key, made[parameter])


def _placement(plan: str | None, key: str):
    """nn.Linear's weight is [out, in]. A bias goes with the outputs; rowwise it is added to whole sums."""
    if plan == "colwise":
        return Shard(0)
    return Shard(1) if plan == "rowwise" and key == "weight" else Replicate()


def own_values(parameter: torch.Tensor) -> torch.Tensor:
    """This process's values of a parameter; all of them, where it is not divided.

    Of a whole one each process has the gradient of its own tokens: FSDP2 adds them up.
    """
    if not isinstance(parameter, DTensor):
        return parameter
    is_whole = parameter.placements[0].is_replicate()
    return parameter.to_local(grad_placements=[Partial()] if is_whole else None)
