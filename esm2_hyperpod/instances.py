"""What the instance types are: GPUs, memory, links, EFA devices, peak arithmetic, processor, quota.

Sources: AWS's instance pages and EFA guide for counts and the network of a node; NVIDIA's data sheets for
memory, bandwidth, NVLink (half of the two-way figure) and dense bf16 peaks without sparsity (A10G: 70, which
is not the A10's 125). What products reach of the peak is S. Bekman's table "Maximum Achievable Matmul FLOPS",
the best shape (https://github.com/stas00/ml-engineering, compute/accelerator); the H200 has the H100's
arithmetic. Which types HyperPod accepts at all is in `cluster.schema`. doctor.py reads this file on the
nodes, where botocore is not installed.
"""

import re
from dataclasses import dataclass

PCIE_GBS = 8
"""Assumed, not measured: a ring over PCIe 4 whose GPUs cannot read each other's memory."""


@dataclass(frozen=True)
class Gpu:
    """One GPU: GB of memory, dense bf16 TFLOPS, GB/s of memory and of its links, the best TFLOPS measured."""

    name: str
    memory_gb: int
    tflops: int
    memory_gbs: int
    link_gbs: int = PCIE_GBS
    best_tflops: float | None = None


A10G = Gpu("A10G", 24, 70, 600)
L4 = Gpu("L4", 24, 121, 300)
L40S = Gpu("L40S", 48, 362, 864)
A100_40 = Gpu("A100", 40, 312, 1555, link_gbs=300, best_tflops=267.9)
A100_80 = Gpu("A100", 80, 312, 2039, link_gbs=300, best_tflops=267.9)
H100 = Gpu("H100", 80, 989, 3350, link_gbs=450, best_tflops=792.1)
H200 = Gpu("H200", 141, 989, 4800, link_gbs=450, best_tflops=792.1)
B200 = Gpu("B200", 180, 2250, 7700, link_gbs=900, best_tflops=1745)


@dataclass(frozen=True)
class Gpus:
    """GPUs of one node: how many, which, EFA devices, Gbit/s of the node's network."""

    count: int
    gpu: Gpu
    efa: int
    network_gbits: int

    @property
    def name(self) -> str:
        """The GPU's."""
        return self.gpu.name

    @property
    def memory_gb(self) -> int:
        """Of each GPU."""
        return self.gpu.memory_gb

    @property
    def tflops(self) -> int:
        """Dense bf16 peak of each GPU."""
        return self.gpu.tflops


GPUS = {
    **{f"ml.g5.{size}xlarge": Gpus(1, A10G, 0, gbits) for size, gbits in (("", 10), ("2", 10), ("4", 25))},
    **{f"ml.g5.{size}xlarge": Gpus(1, A10G, 1, 25) for size in ("8", "16")},
    "ml.g5.12xlarge": Gpus(4, A10G, 1, 40),
    "ml.g5.24xlarge": Gpus(4, A10G, 1, 50),
    "ml.g5.48xlarge": Gpus(8, A10G, 1, 100),
    **{f"ml.g6.{size}xlarge": Gpus(1, L4, 0, gbits) for size, gbits in (("", 10), ("2", 10), ("4", 25))},
    **{f"ml.g6.{size}xlarge": Gpus(1, L4, 1, 25) for size in ("8", "16")},
    "ml.g6.12xlarge": Gpus(4, L4, 1, 40),
    "ml.g6.24xlarge": Gpus(4, L4, 1, 50),
    "ml.g6.48xlarge": Gpus(8, L4, 1, 100),
    **{f"ml.g6e.{size}xlarge": Gpus(1, L40S, 0, 20) for size in ("", "2", "4")},
    "ml.g6e.8xlarge": Gpus(1, L40S, 1, 25),
    "ml.g6e.16xlarge": Gpus(1, L40S, 1, 35),
    "ml.g6e.12xlarge": Gpus(4, L40S, 1, 100),
    "ml.g6e.24xlarge": Gpus(4, L40S, 2, 200),
    "ml.g6e.48xlarge": Gpus(8, L40S, 4, 400),
    "ml.p4d.24xlarge": Gpus(8, A100_40, 4, 400),
    "ml.p4de.24xlarge": Gpus(8, A100_80, 4, 400),
    "ml.p5.48xlarge": Gpus(8, H100, 32, 3200),
    "ml.p5e.48xlarge": Gpus(8, H200, 32, 3200),
    "ml.p5en.48xlarge": Gpus(8, H200, 16, 3200),
    "ml.p6-b200.48xlarge": Gpus(8, B200, 8, 3200),
}


def has_gpu(instance_type: str) -> bool:
    """Whether the type is of one of the families with NVIDIA GPUs (g..., gr..., p...)."""
    return re.match(r"ml\.(gr?|p)\d", instance_type) is not None


def is_arm(instance_type: str) -> bool:
    """Whether the type's processor is Arm (Graviton: a `g` after the generation; Grace: gb200)."""
    return re.match(r"ml\.[a-z]+\d+g[a-z]*\.|ml\.p\d+e?-gb", instance_type) is not None


def efa_devices(instance_type: str) -> int | None:
    """EFA devices of one node, or None where the table above does not know the type."""
    return GPUS[instance_type].efa if instance_type in GPUS else None


def quota_name(instance_type: str) -> str:
    """The name, in Service Quotas under Amazon SageMaker, of the limit on such nodes in clusters."""
    return f"{instance_type} for cluster usage"


def describe(instance_type: str) -> str:
    """One line on a type's GPUs and network, for `plan`."""
    if instance_type not in GPUS:
        return "GPUs and EFA: see AWS's page on the type" if has_gpu(instance_type) else "no GPU"
    gpus = GPUS[instance_type]
    network = f"{gpus.efa} EFA" if gpus.efa else "no EFA"
    return f"{gpus.count} x {gpus.name} {gpus.memory_gb} GB, {gpus.tflops} dense bf16 TFLOPS each, {network}"
