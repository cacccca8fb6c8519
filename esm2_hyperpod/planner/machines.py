"""What a plan needs to know of machines beside `cluster.instances`: how fast memory and networks are.

Sources: NVIDIA's data sheets for memory bandwidth and NVLink (half of the two-way figure); AWS's instance
pages for the network of a node. `PCIE_GBS` and the shares below are assumptions, not measurements: nothing
here has been measured on a GPU yet.
"""

from dataclasses import dataclass

from esm2_hyperpod.cluster.instances import GPUS
from esm2_hyperpod.errors import UserError

MEMORY_GBS = {"A10G": 600, "L4": 300, "L40S": 864, "A100": 2039, "H100": 3350, "H200": 4800, "B200": 7700}
A100_40_GBS = 1555
NVLINK_GBS = {"A100": 300, "H100": 450, "H200": 450, "B200": 900}
PCIE_GBS = 8  # a ring over PCIe 4 whose GPUs cannot read each other's memory
NETWORK_GBITS = {
    "ml.g5.xlarge": 10, "ml.g5.2xlarge": 10, "ml.g5.4xlarge": 25, "ml.g5.8xlarge": 25, "ml.g5.16xlarge": 25,
    "ml.g5.12xlarge": 40, "ml.g5.24xlarge": 50, "ml.g5.48xlarge": 100,
    "ml.g6.xlarge": 10, "ml.g6.2xlarge": 10, "ml.g6.4xlarge": 25, "ml.g6.8xlarge": 25, "ml.g6.16xlarge": 25,
    "ml.g6.12xlarge": 40, "ml.g6.24xlarge": 50, "ml.g6.48xlarge": 100,
    "ml.g6e.xlarge": 20, "ml.g6e.2xlarge": 20, "ml.g6e.4xlarge": 20, "ml.g6e.8xlarge": 25,
    "ml.g6e.16xlarge": 35,
    "ml.g6e.12xlarge": 100, "ml.g6e.24xlarge": 200, "ml.g6e.48xlarge": 400,
    "ml.p4d.24xlarge": 400, "ml.p4de.24xlarge": 400,
    "ml.p5.48xlarge": 3200, "ml.p5e.48xlarge": 3200, "ml.p5en.48xlarge": 3200, "ml.p6-b200.48xlarge": 3200,
}  # fmt: skip

PRODUCT_SHARE = 0.7
"""Of the dense bf16 peak, what large matrix products reach."""
MEMORY_SHARE = 0.8
"""Of the memory's bandwidth, what elementwise work reaches."""
LINK_SHARE = 0.7
"""Of a link's bandwidth, what a collective reaches."""


@dataclass(frozen=True)
class Machine:
    """So many nodes of one type. GB are 1e9 bytes, of which a GPU of 80 has 80; speeds are a second's."""

    instance: str
    nodes: int
    gpus_per_node: int
    gpu: str
    memory_gb: float
    tflops: float
    memory_gbs: float
    link_gbs: float
    network_gbs: float

    @property
    def gpus(self) -> int:
        """On all nodes."""
        return self.nodes * self.gpus_per_node

    @property
    def ring_gbs(self) -> float:
        """What the slowest hop of a ring over all GPUs carries; a node's network serves one hop."""
        links = ([self.link_gbs] if self.gpus_per_node > 1 else []) + (
            [self.network_gbs] if self.nodes > 1 else []
        )
        return LINK_SHARE * min(links, default=float("inf"))


def find_machine(instance: str, nodes: int) -> Machine:
    """`nodes` of an AWS instance type. Raises `UserError` for a type that has no row here."""
    instance = instance if instance.startswith("ml.") else f"ml.{instance}"
    if instance not in GPUS:
        raise UserError(f"--instance {instance}: not one of {', '.join(GPUS)}")
    if nodes < 1:
        raise UserError(f"--nodes {nodes}: must be 1 or more")
    gpus = GPUS[instance]
    bandwidth = A100_40_GBS if (gpus.name, gpus.memory_gb) == ("A100", 40) else MEMORY_GBS[gpus.name]
    link, network = NVLINK_GBS.get(gpus.name, PCIE_GBS), NETWORK_GBITS[instance] / 8
    return Machine(
        instance, nodes, gpus.count, gpus.name, gpus.memory_gb, gpus.tflops, bandwidth, link, network
    )
