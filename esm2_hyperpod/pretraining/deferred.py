"""Deferred initialisation: a model without memory, and later the weights that it would have had, one by one.

No process then holds a whole model that is about to be sharded: 60 GB of fp32 weights for 15B, on each of a
node's processes.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

Weights = Iterable[tuple[str, torch.Tensor]]
"""Names and whole values of all parameters of a model, one at a time."""

_aten = torch.ops.aten
_REPLACE_ALL = {_aten.normal_.default, _aten.uniform_.default, _aten.zero_.default, _aten.fill_.Scalar}


@dataclass(frozen=True)
class _Write:
    """A call that writes to a tensor, or to a view of it, in place."""

    tensor: torch.Tensor
    function: Callable
    arguments: tuple

    @property
    def storage(self) -> torch.UntypedStorage:
        return self.tensor.untyped_storage()

    @property
    def replaces_all(self) -> bool:
        is_whole = self.tensor.nbytes == self.storage.nbytes()
        return is_whole and self.function in _REPLACE_ALL

    @property
    def is_random(self) -> bool:
        return torch.Tag.nondeterministic_seeded in self.function.tags

    def repeat_on(self, values: torch.Tensor) -> None:
        """Do it to a real tensor of as many values as the storage has."""
        view = values.as_strided(self.tensor.shape, self.tensor.stride(), self.tensor.storage_offset())
        self.function(view, *self.arguments)


class _Recorder(TorchDispatchMode):
    """Has parameters made on the meta device, and keeps what is then written to them instead of doing it.

    `torch.device("meta")` will not do: under it transformers (5.23) leaves out its own initialisation, and
    what torch's layers would have drawn before it is lost. TorchDispatchMode is in a private module of torch
    (2.13); needless once torch has a deferred initialisation of its own.
    """

    def __init__(self):
        super().__init__()
        self.writes: list[_Write] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is _aten.empty.memory_format or function is _aten.zeros.default:
            made = function(*args, **{**kwargs, "device": "meta"})
            if function is _aten.zeros.default:
                self.writes.append(_Write(made, _aten.zero_.default, ()))
            return made
        if torch.Tag.inplace in function.tags and args[0].is_meta:
            self.writes.append(_Write(args[0], function, args[1:]))
            return args[0]
        assert torch.Tag.nondeterministic_seeded not in function.tags, function  # would be drawn out of order
        return function(*args, **kwargs)


def build_deferred(build: Callable[[], torch.nn.Module]) -> tuple[torch.nn.Module, Weights]:
    """The model that `build` makes, its parameters on the meta device, and the weights it would have had.

    The weights are drawn when they are iterated over, once: by the calls that `build` makes, in their order,
    from the state that torch's generator has now. So they are equal to the last digit. Buffers are real at
    once.
    """
    state = torch.get_rng_state()
    recorder = _Recorder()
    with recorder:
        model = build()
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    return model, _draw(state, recorder.writes, dict(model.named_parameters()))


def _draw(
    state: torch.Tensor, writes: list[_Write], parameters: dict[str, torch.nn.Parameter]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The values of `parameters`, each when the last call that writes to it has been repeated."""
    begins, ends = {}, {}
    for number, write in enumerate(writes):
        if write.replaces_all:
            begins[write.storage] = number
        ends[write.storage] = number
    named = {parameter.untyped_storage(): (name, parameter.shape) for name, parameter in parameters.items()}
    unfinished: dict[torch.UntypedStorage, torch.Tensor] = {}
    for number, write in enumerate(writes):
        storage = write.storage
        is_kept = storage in named and number >= begins[storage]
        if not (is_kept or write.is_random):
            continue
        values = unfinished.pop(storage, None)
        if values is None:
            values = torch.empty(storage.nbytes() // write.tensor.element_size(), dtype=write.tensor.dtype)
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(state)
            write.repeat_on(values)
            state = torch.get_rng_state()
        if is_kept and number == ends[storage]:
            name, shape = named.pop(storage)
            yield name, values.view(shape)
        elif is_kept:
            unfinished[storage] = values
    assert not named


def read_on_first_rank(
    load: Callable[[], torch.nn.Module], like: torch.nn.Module, device: torch.device
) -> Weights:
    """The weights of the model that `load` returns. It is called on rank 0 alone; all ranks iterate together.

    Args:
        like: the same model without memory.
        device: where the weights pass from rank to rank; NCCL takes the GPU's memory alone.
    """
    shapes = {name: (parameter.shape, parameter.dtype) for name, parameter in like.named_parameters()}
    return _read(load, shapes, device)


def _read(load, shapes, device):
    is_first = dist.get_rank() == 0
    whole = dict(load().named_parameters()) if is_first else {}
    for name, (shape, dtype) in shapes.items():
        value = torch.empty(shape, dtype=dtype, device=device)
        if is_first:
            value.copy_(whole.pop(name).detach())
        dist.broadcast(value, src=0)
        yield name, value


@torch.no_grad()
def fill(model: torch.nn.Module, weights: Weights) -> None:
    """Copy each of `weights` into the model's parameter, or this rank's shard of it into its shard."""
    parameters = dict(model.named_parameters())
    for name, value in weights:
        parameter = parameters.pop(name)
        if isinstance(parameter, DTensor):  # each rank has the whole value: nothing is sent
            value = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.copy_(value)
    assert not parameters, f"no weights for {min(parameters)}"
