"""The ways to train a model on a cluster, what each takes, and the flags that ask for it."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from esm2_hyperpod.planner.machines import Machine
from esm2_hyperpod.planner.speed import RESIDUES, Step, step
from esm2_hyperpod.pretraining.memory import ROOMY, Strategy, largest_micro_batch, memory
from esm2_hyperpod.sizes import Size

SMALLEST_TOKENS = 1024


@dataclass(frozen=True)
class Way:
    """One way to train: the largest micro-batch that fits, and what follows from it; no `step` where none
    fits."""

    strategy: Strategy
    tokens: int
    memory: dict[str, float]
    step: Step | None

    @property
    def name(self) -> str:
        """For people."""
        name = {"ddp": "DDP", "fsdp": "HSDP" if self.strategy.replicas > 1 else "FSDP2"}[self.strategy.name]
        if not self.strategy.reshard:
            name += ", ZeRO-2"
        if self.strategy.tp > 1:
            name += f", tensor parallel {self.strategy.tp}"
        return name + (", checkpointing" if self.strategy.checkpointing else "")

    @property
    def script(self) -> str:
        """Which wrapper runs it."""
        return {"ddp": "2.train_ddp.sh", "fsdp": "3.train_fsdp.sh"}[self.strategy.name]

    def flags(self, nodes: int) -> list[str]:
        """Those of `train.py` that ask for this way and no other."""
        strategy, words = self.strategy, ["--tokens_per_device", str(self.tokens)]
        if strategy.name == "fsdp" and nodes > 1:
            words += ["--dp_replicate_size", str(strategy.replicas)]
        if not strategy.reshard:
            words += ["--reshard_after_forward", "false"]
        if strategy.tp > 1:
            words += ["--tp_size", str(strategy.tp)]
        if strategy.muon:
            words += ["--optim", "muon"]
        return [*words, "--activation_checkpointing", str(strategy.checkpointing).lower()]

    @property
    def gigabytes(self) -> float:
        """On one GPU."""
        return sum(self.memory.values()) / 1e9

    @property
    def tokens_per_second(self) -> float:
        """On all GPUs; 0 where it does not fit."""
        return self.step.tokens / self.step.seconds if self.step else 0.0

    @property
    def residues_per_second(self) -> float:
        """On all GPUs; 0 where it does not fit."""
        return RESIDUES * self.tokens_per_second

    def mfu(self, machine: Machine) -> float:
        """Share of the GPUs' peak that a step's FLOPs take."""
        return self.step.flops / self.step.seconds / (machine.gpu.tflops * 1e12)


def strategies(size: Size, machine: Machine, muon: bool = False) -> Iterator[Strategy]:
    """All that can be run: tensor parallel within a node, of a divisor of the heads; HSDP with a replica a
    node."""
    for checkpointing in (False, True):
        yield Strategy("ddp", machine.gpus, checkpointing, muon=muon)
        for tp in (1,) if muon else (1, 2, 4, 5, 8):
            fits = size.heads % tp == 0 == machine.gpus_per_node % tp and size.feed_forward % tp == 0
            for replicas, reshard in product({1, machine.nodes}, (True, False)):
                strategy = Strategy(
                    "fsdp", machine.gpus, checkpointing, True, replicas, tp, muon=muon, reshard=reshard
                )
                if fits and strategy.shards > 1 and (reshard or tp == 1):
                    yield strategy


def all_ways(size: Size, machine: Machine, global_tokens: int, muon: bool = False) -> list[Way]:
    """Each strategy with the largest micro-batch that fits, DDP first."""
    found = sorted(
        strategies(size, machine, muon),
        key=lambda way: (way.name != "ddp", way.tp, not way.reshard, way.replicas, way.checkpointing),
    )
    return [_way(size, machine, strategy, global_tokens) for strategy in found]


def best_way(ways: list[Way], machine: Machine) -> Way | None:
    """The fastest. Of those within 2% of it the first, which is the simplest, that leaves a tenth of the
    memory free, for the formula may err; else the first. None if none fits."""
    fastest = max(way.tokens_per_second for way in ways)
    close = [way for way in ways if way.step and way.tokens_per_second >= 0.98 * fastest]
    roomy = [way for way in close if way.gigabytes <= ROOMY * machine.gpu.memory_gb]
    return next(iter(roomy + close), None)


def _way(size: Size, machine: Machine, strategy: Strategy, global_tokens: int) -> Way:
    tokens = largest_micro_batch(size, strategy, machine.gpu.memory_gb, global_tokens)
    if not tokens:
        return Way(strategy, 0, memory(size, strategy, SMALLEST_TOKENS, 2), None)
    accumulated = global_tokens // (tokens * strategy.data_ranks)
    parts = memory(size, strategy, tokens, accumulated)
    return Way(strategy, tokens, parts, step(size, strategy, machine, tokens, accumulated))
