"""What the instance types are: GPUs, memory, EFA devices, peak arithmetic, processor, quota.

Sources: AWS's instance pages and EFA guide for the counts; NVIDIA's data sheets for dense bf16 peaks
without sparsity (A10G: 70, which is not the A10's 125). Which types HyperPod accepts at all is in
`schema`. doctor.py reads this file on the nodes, where botocore is not installed.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpus:
    """GPUs of one node: how many, which, GB of memory each, dense bf16 TFLOPS each, EFA devices."""

    count: int
    name: str
    memory_gb: int
    tflops: int
    efa: int


_A10G = ("A10G", 24, 70)
_L4 = ("L4", 24, 121)
_L40S = ("L40S", 48, 362)

GPUS = {
    **{f"ml.g5.{size}xlarge": Gpus(1, *_A10G, efa=0) for size in ("", "2", "4")},
    **{f"ml.g5.{size}xlarge": Gpus(1, *_A10G, efa=1) for size in ("8", "16")},
    **{f"ml.g5.{size}xlarge": Gpus(4, *_A10G, efa=1) for size in ("12", "24")},
    "ml.g5.48xlarge": Gpus(8, *_A10G, efa=1),
    **{f"ml.g6.{size}xlarge": Gpus(1, *_L4, efa=0) for size in ("", "2", "4")},
    **{f"ml.g6.{size}xlarge": Gpus(1, *_L4, efa=1) for size in ("8", "16")},
    **{f"ml.g6.{size}xlarge": Gpus(4, *_L4, efa=1) for size in ("12", "24")},
    "ml.g6.48xlarge": Gpus(8, *_L4, efa=1),
    **{f"ml.g6e.{size}xlarge": Gpus(1, *_L40S, efa=0) for size in ("", "2", "4")},
    **{f"ml.g6e.{size}xlarge": Gpus(1, *_L40S, efa=1) for size in ("8", "16")},
    "ml.g6e.12xlarge": Gpus(4, *_L40S, efa=1),
    "ml.g6e.24xlarge": Gpus(4, *_L40S, efa=2),
    "ml.g6e.48xlarge": Gpus(8, *_L40S, efa=4),
    "ml.p4d.24xlarge": Gpus(8, "A100", 40, 312, efa=4),
    "ml.p4de.24xlarge": Gpus(8, "A100", 80, 312, efa=4),
    "ml.p5.48xlarge": Gpus(8, "H100", 80, 989, efa=32),
    "ml.p5e.48xlarge": Gpus(8, "H200", 141, 989, efa=32),
    "ml.p5en.48xlarge": Gpus(8, "H200", 141, 989, efa=16),
    "ml.p6-b200.48xlarge": Gpus(8, "B200", 180, 2250, efa=8),
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
