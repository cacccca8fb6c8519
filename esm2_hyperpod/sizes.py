"""ESM-2's sizes, and what follows from them alone: parameters, and a checkpoint's size and time."""

from dataclasses import dataclass

VOCABULARY = 33

MB_PER_SECOND = 293
"""What the file system of the shipped cluster.yaml writes: 1,200 GiB at 250 MB/s for each TiB."""


@dataclass(frozen=True)
class Size:
    """Layers, width and attention heads; the feed-forward width is always four times `width`."""

    layers: int
    width: int
    heads: int

    @property
    def parameters(self) -> int:
        """Weights and biases of layers, embedding and head; the output embedding is the input's.

        A layer has four square matrices of attention and eight of the feed-forward, with their biases (9
        widths) and two layer norms (4 widths).
        """
        layer = 12 * self.width**2 + 13 * self.width
        return self.layers * layer + self.width**2 + (VOCABULARY + 5) * self.width + VOCABULARY

    @property
    def checkpoint_gb(self) -> float:
        """Parameters and Adam's two moments in fp32: twelve bytes a parameter."""
        return 12 * self.parameters / 1e9

    @property
    def training_gb(self) -> float:
        """What training holds in GPU memory beside activations: a checkpoint and fp32 gradients."""
        return 16 * self.parameters / 1e9


# Lin et al. 2023 (doi:10.1126/science.ade2574), table S1; `tiny` is ours, for tests and the quickstart.
SIZES = {
    "tiny": Size(4, 128, 4),
    "8M": Size(6, 320, 20),
    "35M": Size(12, 480, 20),
    "150M": Size(30, 640, 20),
    "650M": Size(33, 1280, 20),
    "3B": Size(36, 2560, 40),
    "15B": Size(48, 5120, 40),
}
