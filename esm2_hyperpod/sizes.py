"""ESM-2's sizes, and what follows from them alone: names, parameters, a checkpoint's size and time."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from esm2_hyperpod.errors import UserError

VOCABULARY = 33

MB_PER_SECOND = 293
"""What the file system of the shipped cluster.yaml writes: 1,200 GiB at 250 MB/s for each TiB."""


SHAPE = "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"
"""Of a model in transformers' words, in the order of `Size`."""


@dataclass(frozen=True)
class Size:
    """Layers, width, attention heads and the feed-forward's width, which is four times `width` if left
    out."""

    layers: int
    width: int
    heads: int
    feed_forward: int = 0

    def __post_init__(self):
        if not self.feed_forward:
            object.__setattr__(self, "feed_forward", 4 * self.width)

    @classmethod
    def from_config(cls, config: Mapping[str, int]) -> "Size":
        """Of a `config.json`, or of the flags that have its names. Raises KeyError if a figure is missing."""
        return cls(*(config[name] for name in SHAPE[:3]), config.get(SHAPE[3]) or 0)

    @property
    def layer_weights(self) -> int:
        """Of a layer's matrices: four of attention, two of the feed-forward."""
        return 4 * self.width**2 + 2 * self.width * self.feed_forward

    @property
    def layer_parameters(self) -> int:
        """Those, their biases and two LayerNorms."""
        return self.layer_weights + 9 * self.width + self.feed_forward

    @property
    def parameters(self) -> int:
        """Weights and biases of layers, embedding and head; the output embedding is the input's."""
        head = self.width**2 + (VOCABULARY + 5) * self.width + VOCABULARY
        return self.layers * self.layer_parameters + head

    def training_flops(self, tokens: float, squared_lengths: float, predicted: float) -> float:
        """Forward and backward FLOPs of real tokens, matrix products only; backward counts as twice forward.

        Two per multiply-add: a layer's four w x w and two w x f products, attention's two products over each
        sequence's own length, and the language-model head where a token is predicted. Neither recomputed
        activations nor a head over all tokens count.

        Args:
            tokens: number of tokens of real sequences.
            squared_lengths: sum over sequences of the square of their length in tokens.
            predicted: number of masked tokens.
        """
        linear = 2 * self.layer_weights * self.layers
        head = 2 * (self.width**2 + self.width * VOCABULARY)
        attention = 4 * self.width * self.layers
        return 3.0 * (tokens * linear + predicted * head + squared_lengths * attention)

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


def published_name(size: str) -> str | None:
    """The hub's name of the weights of a size, or None for `tiny`, which is ours."""
    return f"facebook/esm2_t{SIZES[size].layers}_{size}_UR50D" if size != "tiny" else None


def size_in(name: str) -> str | None:
    """The one of `SIZES` that a name means: in any case, or a published model's; else None."""
    published = re.fullmatch(r"(?:facebook/)?esm-?2_t\d+_(\w+?)_ur50[ds]", name.strip().lower())
    bare = published[1] if published else name.strip().lower().removeprefix("esm2_").removeprefix("esm2-")
    return next((size for size in SIZES if size.lower() == bare), None)


def size_name(asked: str) -> str:
    """The one of `SIZES` that `--model_size asked` means, in any case.

    Raises `UserError` for another name; of a published model's name it cannot be told whether its size or its
    weights are meant, so the message has the flag for each.
    """
    size = size_in(asked)
    if size is None:
        raise UserError(f"--model_size {asked}: not one of {', '.join(SIZES)}")
    if asked.strip().lower() != size.lower():
        raise UserError(
            f"--model_size {asked}: --model_size {size} trains that size from scratch, "
            f"--model_name_or_path {published_name(size)} starts from its weights"
        )
    return size
