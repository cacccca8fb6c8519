"""Seconds of an optimizer step, by a model of what a GPU and its network do.

    a micro-batch   matrix products at a share of the peak + elementwise work at a share of the bandwidth
    the network     DDP: an all-reduce of fp32 gradients a step, behind the last backward pass.
                    FSDP2: two all-gathers of bf16 weights and a reduce-scatter of fp32 gradients a
                    micro-batch, behind all of it
    the optimizer   AdamW reads and writes 40 bytes a parameter, clipping included

A ring of n GPUs moves 2 (n - 1) / n of the bytes in an all-reduce and half of that in the other two
(https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md).
"""

from dataclasses import dataclass

from esm2_hyperpod.planner.machines import MEMORY_SHARE, PRODUCT_SHARE, Machine
from esm2_hyperpod.pretraining.memory import KEEP_WHOLE_BYTES, Strategy
from esm2_hyperpod.sizes import Size

MEAN_SQUARE = 455
"""Sum of squared lengths over sum of lengths, of 8,000 UniRef50 proteins cropped to 1,024 tokens."""
RESIDUES = 0.99
"""Of a pack's tokens, what is neither `<cls>` nor `<eos>` nor padding."""
TRAFFIC = {"eager": 516, "compiled": 180}
"""Bytes that a layer's elementwise work and attention move, a token and width, the backward pass as two
forward ones. Counted from the code: 172 forward with each operation by itself, 96 of them the rotation in
fp32; 60 with what lies between two matrix products as one."""
OPTIMIZER_BYTES = 40


@dataclass(frozen=True)
class Step:
    """Seconds of an optimizer step, by part; what overlaps counts once, as the longer of the two."""

    products: float
    elementwise: float
    optimizer: float
    exposed: float
    tokens: int
    flops: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.products + self.elementwise + self.optimizer + self.exposed

    @property
    def bound_by(self) -> str:
        """What takes longest."""
        parts = {
            "matrix products": self.products,
            "memory bandwidth": self.elementwise,
            "the optimizer": self.optimizer,
            "the network": self.exposed,
        }
        return max(parts, key=parts.get)


def step(size: Size, strategy: Strategy, machine: Machine, tokens: int, accumulated: int) -> Step:
    """A step of `accumulated` micro-batches of `tokens` tokens on each GPU."""
    again = 4 / 3 if strategy.checkpointing else 1.0
    flops = size.training_flops(tokens, MEAN_SQUARE * tokens, 0.15 * tokens)
    products = again * flops / (PRODUCT_SHARE * machine.tflops * 1e12)
    traffic = TRAFFIC["compiled" if strategy.compiled else "eager"] * size.width * size.layers * tokens
    elementwise = again * traffic / (MEMORY_SHARE * machine.memory_gbs * 1e9)
    optimizer = (
        OPTIMIZER_BYTES * size.parameters / strategy.shards / (MEMORY_SHARE * machine.memory_gbs * 1e9)
    )
    one = products + elementwise
    return Step(
        products=accumulated * products,
        elementwise=accumulated * elementwise,
        optimizer=optimizer,
        exposed=_exposed(size, strategy, machine, one, accumulated),
        tokens=accumulated * tokens * strategy.gpus,
        flops=accumulated * flops,
    )


def _exposed(size: Size, strategy: Strategy, machine: Machine, one: float, accumulated: int) -> float:
    """Seconds of communication that no computation hides. `one` is a micro-batch's, two thirds backward."""
    if strategy.gpus == 1:
        return 0.0
    moved = (strategy.gpus - 1) / strategy.gpus / (machine.ring_gbs * 1e9)
    if strategy.name == "ddp":
        return max(0.0, 2 * 4 * size.parameters * moved - one * 2 / 3)
    gathers, reduction = 2 * 2 * size.parameters * moved, 4 * size.parameters * moved
    deferred = 4 * size.parameters <= KEEP_WHOLE_BYTES
    exposed = accumulated * max(0.0, gathers + (0 if deferred else reduction) - one)
    return exposed + (max(0.0, reduction - one * 2 / 3) if deferred else 0.0)
