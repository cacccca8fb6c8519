"""Seconds of an optimizer step, by a model of what a GPU and its network do.

a micro-batch    matrix products at the rate of `machines` + elementwise work at a share of the bandwidth; no
                 faster than the host starts the kernels
DDP              an all-reduce of fp32 gradients a step, behind the last backward pass
FSDP2            two all-gathers of bf16 weights (ZeRO-2: one) and a reduce-scatter of fp32 gradients a
                 micro-batch, behind all of it; small models send gradients once a step
                 (`memory.reduces_once`)
HSDP             the same within each replica, and once a step an all-reduce of gradients between the
                 replicas, over the network, behind the last backward pass
tensor parallel  in a layer's forward pass two all-gathers and two reduce-scatters of bf16 [tokens, width],
                 and again if it is computed again, and as many in its backward pass, behind nothing
the optimizer    AdamW reads and writes 40 bytes a parameter, clipping included
"""

import math
from dataclasses import astuple, dataclass

from esm2_hyperpod.planner.machines import Machine
from esm2_hyperpod.pretraining.memory import LayerBytes, Strategy, held_parameters, reduces_once
from esm2_hyperpod.sizes import Size

RESIDUES = 0.99
"""Of a pack's tokens, what is neither `<cls>` nor `<eos>` nor padding."""
OPTIMIZER_BYTES = 40
STEP_SECONDS = 0.01
"""Assumed: what the host does once a step, between the last micro-batch and the next first one."""
BUCKET_BYTES = 25 * 2**20  # DDP's, of gradients


OPERANDS = LayerBytes(gathered=12, stream=0, attention=8, wide=4)
"""What a forward pass's linear layers read and write; it counts as if nothing of it were hidden."""


@dataclass(frozen=True)
class Implementation:
    """What a model's code does with a batch.

    Attributes:
        moved: bytes that a layer reads and writes, forward and backward pass.
        length: sum of squared lengths over sum of lengths: tokens that a token attends to.
        predicted: share of the tokens that the head sees.
        host: seconds in which the host starts a layer's kernels, forward and backward pass.
        reduced: bytes of a gradient on the network.
        products: linear layers' speed over bf16's.
    """

    moved: LayerBytes
    host: float
    length: float = 455  # of 8,000 UniRef50 proteins cropped to 1,024 tokens
    predicted: float = 0.15
    reduced: int = 4
    products: float = 1.0


def three(forward: LayerBytes) -> LayerBytes:
    """Both passes, the backward as two forward ones, with what the linear layers read and write in bf16."""
    return LayerBytes(*(3 * (one + other) for one, other in zip(astuple(forward), astuple(OPERANDS))))


# Bytes counted from esm/packed.py. Between the products a forward pass moves 172 a width, 96 of them in the
# rotation in fp32, and 60 with what lies between two products as one. The host's seconds are assumed.
EAGER = Implementation(three(LayerBytes(0, stream=48, attention=108, wide=4)), host=2e-3)
COMPILED = Implementation(three(LayerBytes(0, stream=28, attention=16, wide=4)), host=6e-4)


@dataclass(frozen=True)
class Step:
    """Seconds of an optimizer step, by part; what overlaps counts once, as the longer of the two."""

    products: float
    elementwise: float
    host: float
    optimizer: float
    network: float
    tokens: int
    flops: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.products + self.elementwise + self.host + self.optimizer + self.network

    @property
    def bound_by(self) -> str:
        """What takes longest."""
        parts = {
            "matrix products": self.products,
            "memory bandwidth": self.elementwise,
            "the host": self.host,
            "the optimizer": self.optimizer,
            "the network": self.network,
        }
        return max(parts, key=parts.get)


def step(
    size: Size,
    strategy: Strategy,
    machine: Machine,
    tokens: int,
    accumulated: int,
    does: Implementation | None = None,
) -> Step:
    """A step of `accumulated` micro-batches of `tokens` tokens; `does`: another implementation than ours."""
    does = does or (COMPILED if strategy.compiled else EAGER)
    again = 4 / 3 if strategy.checkpointing else 1.0
    attention = 12 * size.width * size.layers * does.length * tokens
    flops = size.training_flops(tokens, does.length * tokens, does.predicted * tokens)
    quick = (flops - attention) / does.products
    products = again * (quick + attention) / strategy.tp / machine.flops
    moved = size.layers * tokens * does.moved.of(size, strategy.tp, does.length)
    elementwise = again * moved / machine.memory_bytes
    waits = max(0.0, again * does.host * size.layers - products - elementwise)
    updated = held_parameters(size, strategy) / strategy.shards
    one = products + elementwise + waits
    return Step(
        products=accumulated * products,
        elementwise=accumulated * elementwise,
        host=accumulated * waits + STEP_SECONDS,
        optimizer=OPTIMIZER_BYTES * updated / machine.memory_bytes,
        network=accumulated * _divided(size, strategy, machine, tokens)
        + _exposed(size, strategy, machine, one, accumulated, does.reduced),
        tokens=accumulated * tokens * strategy.data_ranks,
        flops=accumulated * flops / strategy.tp,
    )


def _divided(size: Size, strategy: Strategy, machine: Machine, tokens: int) -> float:
    """Seconds of a micro-batch in which tensor parallel's GPUs wait for each other's part."""
    calls = size.layers * (12 if strategy.checkpointing else 8)
    return machine.ring_seconds(calls * 2 * tokens * size.width, strategy.tp, 1, calls)


def _exposed(
    size: Size, strategy: Strategy, machine: Machine, one: float, accumulated: int, reduced: int
) -> float:
    """Seconds of a step's data-parallel communication that no computation hides.

    `one` is a micro-batch's time, two thirds of it the backward pass.
    """
    held, units = held_parameters(size, strategy), size.layers + 1
    if strategy.name == "ddp":
        buckets = math.ceil(reduced * held / BUCKET_BYTES)
        ring = machine.gpus_per_node, machine.nodes
        seconds = 2 * machine.ring_seconds(reduced * held, *ring, buckets)
        return max(0.0, seconds - one * 2 / 3)
    # A replica's shards lie `tp` apart, on as few nodes as hold them; replicas are neighbours.
    nodes = max(1, machine.nodes // strategy.replicas)
    ring = strategy.shards // nodes, nodes
    gathers = (2 if strategy.reshard else 1) * machine.ring_seconds(2 * held, *ring, units)
    reduction = machine.ring_seconds(reduced * held, *ring, units)
    between = 2 * machine.ring_seconds(reduced * held / strategy.shards, 1, strategy.replicas, units)
    last = one * 2 / 3
    if reduces_once(size, strategy, accumulated):
        return accumulated * max(0.0, gathers - one) + max(0.0, max(reduction, between) - last)
    return accumulated * max(0.0, gathers + reduction - one) + max(0.0, between - last)
