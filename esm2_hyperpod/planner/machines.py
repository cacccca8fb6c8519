"""So many nodes of an instance type, and what its GPUs, memory and links are taken to reach.

The shares are assumptions or others' measurements, none fitted to the runs that the planner is compared with
(benchmarks/RESULTS.md). `SHAPE_SHARE`: large language models' products run at 720 of the 792 TFLOPS of an
H100's best shape (SemiAnalysis, "MI300X vs H100 vs H200 Benchmark Part 1"), and at 1,448 to 1,562 of a B200's
1,745 (arXiv:2604.23466, tables III and IV).
"""

import difflib
from dataclasses import dataclass

from esm2_hyperpod.errors import UserError
from esm2_hyperpod.instances import GPUS, Gpu

SHAPE_SHARE = 0.88
"""Of the best products measured, what a transformer's reach."""
PRODUCT_SHARE = 0.7
"""Of the dense bf16 peak, where nobody measured that."""
MEMORY_SHARE = 0.8
"""Of the memory's bandwidth, what elementwise work reaches."""
LINK_SHARE = 0.7
"""Of a link's bandwidth, what a collective reaches."""
HOP_SECONDS = {"link": 3e-6, "network": 15e-6}
"""Assumed: of one message between neighbours of a ring."""


@dataclass(frozen=True)
class Machine:
    """So many nodes of one type. GB are 1e9 bytes, of which a GPU of 80 has 80; speeds are a second's."""

    instance: str
    nodes: int
    gpus_per_node: int
    gpu: Gpu
    network_gbits: float

    @property
    def gpus(self) -> int:
        """On all nodes."""
        return self.nodes * self.gpus_per_node

    @property
    def flops(self) -> float:
        """Of matrix products, on one GPU."""
        best = self.gpu.best_tflops
        return 1e12 * (SHAPE_SHARE * best if best else PRODUCT_SHARE * self.gpu.tflops)

    @property
    def memory_bytes(self) -> float:
        """Of elementwise work, on one GPU."""
        return 1e9 * MEMORY_SHARE * self.gpu.memory_gbs

    def ring_seconds(self, moved: float, members: int, nodes: int, calls: int = 1) -> float:
        """All-gathers or reduce-scatters of `moved` bytes in `calls` pieces; an all-reduce takes two of them.

        A ring of n GPUs moves (n - 1) / n of the bytes over each of its hops
        (https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md). Its slowest hop counts: within
        a node a GPU's link; between nodes the network, which all rings of a node share. Each piece also takes
        a message a hop.

        Args:
            members: GPUs of the ring on each node.
            nodes: that the ring is over.
        """
        if members * nodes == 1:
            return 0.0
        rings = self.gpus_per_node / members
        hops = [self.gpu.link_gbs] * (members > 1) + [self.network_gbits / 8 / rings] * (nodes > 1)
        messages = HOP_SECONDS["link"] * nodes * (members - 1) + HOP_SECONDS["network"] * (
            nodes if nodes > 1 else 0
        )
        return moved * (1 - 1 / (members * nodes)) / (1e9 * LINK_SHARE * min(hops)) + calls * messages


def find_machine(instance: str, nodes: int) -> Machine:
    """`nodes` of an AWS instance type. Raises `UserError` for a type that has no row in `instances`."""
    asked, instance = instance, f"ml.{instance.lower().removeprefix('ml.')}"
    if instance not in GPUS:
        near = difflib.get_close_matches(instance, GPUS, n=3) or GPUS
        raise UserError(f"--instance {asked}: not known; the nearest are {', '.join(near)}")
    if nodes < 1:
        raise UserError(f"--nodes {nodes}: must be 1 or more")
    gpus = GPUS[instance]
    return Machine(instance, nodes, gpus.count, gpus.gpu, gpus.network_gbits)
