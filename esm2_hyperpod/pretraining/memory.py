"""Memory of one GPU in pretraining, by part, by formula. In w, a token's width; bf16 over packs.

What a layer's backward pass keeps of its forward pass, a token (`esm/packed.py`, in the order of its code):

    4 + 2      the residual stream in fp32 and its LayerNorm's result
    2 + 2 + 2  query and key, rotated, and value; + 4 where the three are one product that value is part of
    2          the result of attention
    4 + 2      the residual stream and its LayerNorm's result, again
    8 + 8      the feed-forward's four widths, before and after GELU
    + 4 bytes a head for the softmax, 16 for the statistics of two LayerNorms

Compiled, what is cheap is computed again: 28 w (counted on a CPU, where attention cuts the graph in two; a
GPU may keep less). With activation checkpointing a layer keeps its input, 4 w, and one layer at a time all.
`tests/planner/test_planner.py` holds this against what autograd keeps.
"""

from dataclasses import dataclass

from esm2_hyperpod.sizes import VOCABULARY, Size

JOINED_WIDTH = 1024  # as in esm/packed.py
KEEP_WHOLE_BYTES = 1e9  # as in pretraining/sharding.py
PREDICTED = 0.17  # of the tokens, with the spare places of a pack
WORKING_WIDTHS = 40  # what comes and goes in a layer's backward pass, in bytes a width and token
UNITS_IN_FLIGHT = 3  # of FSDP2: used, on its way in, on its way out
RESERVED_GB = 1.5  # CUDA's context, NCCL's buffers; an allowance, not measured
MARGIN = 0.93  # of a GPU's memory may be planned with: fragments, and what this formula does not know


@dataclass(frozen=True)
class Strategy:
    """How a model is trained on so many GPUs."""

    name: str  # "ddp" or "fsdp"
    gpus: int
    checkpointing: bool
    compiled: bool = True

    @property
    def shards(self) -> int:
        """Parts that the weights are in."""
        return self.gpus if self.name == "fsdp" else 1


def kept_by_layer(size: Size, tokens: int, compiled: bool) -> float:
    """Bytes that one layer keeps for its backward pass."""
    joined = 4 if size.width <= JOINED_WIDTH else 0
    widths = 28 if compiled else 36 + joined
    return tokens * (widths * size.width + 4 * size.heads + 16)


def kept_beside_layers(size: Size, tokens: int, predicted: int) -> float:
    """Bytes that the embedding, the rotation and the head keep."""
    head = predicted * (14 * size.width + 2 * 4 * VOCABULARY + 16)
    return head + tokens * (4 * size.width // size.heads + 4)


def memory(size: Size, strategy: Strategy, tokens: int, accumulated: int) -> dict[str, float]:
    """Bytes on one GPU by part, for micro-batches of `tokens` tokens, `accumulated` of them a step."""
    parameters, layer = size.parameters, 12 * size.width**2 + 13 * size.width
    root = parameters - size.layers * layer
    sharded = parameters / strategy.shards
    gradients = 4 * sharded
    if strategy.name == "fsdp":
        if accumulated > 1 and 4 * parameters <= KEEP_WHOLE_BYTES:
            gradients += 4 * parameters
        copies = (
            2 * root + UNITS_IN_FLIGHT * 2 * layer + 2 * (2 + 4) * layer
        )  # weights; gradients on their way
        if size.width <= JOINED_WIDTH and not strategy.checkpointing:
            copies += 6 * size.width**2 * size.layers
    else:
        copies = 2 * root + 2 * layer * (1 if strategy.checkpointing else size.layers)
    one = kept_by_layer(size, tokens, strategy.compiled)
    layers = size.layers * 4 * size.width * tokens + one if strategy.checkpointing else size.layers * one
    return {
        "weights": 4 * sharded,
        "gradients": gradients,
        "optimizer": 8 * sharded,
        "weights in bf16, buffers": copies,
        "activations": layers + kept_beside_layers(size, tokens, round(PREDICTED * tokens)),
        "working": WORKING_WIDTHS * size.width * tokens,
        "reserved": 1e9 * RESERVED_GB,
    }


def largest_micro_batch(size: Size, strategy: Strategy, memory_gb: float, global_tokens: int) -> int:
    """The most tokens of a micro-batch that fit, as a power of two from 1,024 to 65,536; 0 if none do."""
    fitting = 0
    for tokens in (1024 << power for power in range(7)):
        accumulated = global_tokens // (tokens * strategy.gpus)
        if accumulated < 1:
            break
        if sum(memory(size, strategy, tokens, accumulated).values()) <= MARGIN * 1e9 * memory_gb:
            fitting = tokens
    return fitting
