"""Memory of one GPU in pretraining, by part, by formula; bf16 over packs.

What a layer's backward pass keeps of its forward pass, in bytes a token (`esm/packed.py`, in the order of its
code; w the width, f the feed-forward's):

    4 + 2      w: the residual stream in fp32 and its LayerNorm's result
    2 + 2 + 2  w: query and key, rotated, and value; + 4 where the three are one product that value is part of
    2          w: the result of attention
    4 + 2      w: the residual stream and its LayerNorm's result, again
    2 + 2      f: the feed-forward, before and after GELU
    + 4 a head for the softmax, 16 for the statistics of two LayerNorms

Compiled, the GELU is computed again: 28 w in all (counted on a CPU, where attention cuts the graph in two; a
GPU may keep less). With activation checkpointing a layer keeps its input, 4 w, and one layer at a time all.
Tensor parallel divides all of it but the gathered inputs of the products that it divides by columns, 2 + 2 w
(`esm/parallel.py`); context parallel divides the tokens. What comes and goes in a layer's backward pass was
measured in steps on a CPU: 10 w a token and 3 bytes a weight of the feed-forward's matrix; 4 w are added for
the accumulators of attention's kernel. `tests/planner/test_planner.py` holds all this against what autograd
keeps and what a step takes.
"""

from dataclasses import dataclass

from esm2_hyperpod.sizes import VOCABULARY, Size

JOINED_WIDTH = 1024  # as in esm/packed.py
KEEP_WHOLE_BYTES = 1e9  # as in pretraining/sharding.py
PREDICTED = 0.17  # of the tokens, with the spare places of a pack
WORKING_WIDTHS = 14  # what comes and goes in a layer's backward pass, in bytes a width and token
WORKING_WEIGHT = 3  # and in bytes a weight of its largest matrix
UNITS_IN_FLIGHT = 3  # of FSDP2: used, on its way in, on its way out
RESERVED_GB = 1.5  # CUDA's context, NCCL's buffers; an allowance, not measured
MARGIN = 0.93  # of a GPU's memory may be planned with: fragments, and what this formula does not know
ROOMY = 0.9  # the same, where another way with almost the same speed needs less


@dataclass(frozen=True)
class Strategy:
    """How a model is trained on so many GPUs: `replicas` copies, each in `shards` parts of `tp` GPUs each."""

    name: str  # "ddp" or "fsdp"
    gpus: int
    checkpointing: bool
    compiled: bool = True
    replicas: int = 1  # of FSDP2; above 1 it is HSDP
    tp: int = 1  # GPUs that divide each layer's weights and share a micro-batch
    cp: int = 1  # GPUs that divide the tokens of a micro-batch
    muon: bool = False  # one state of the optimizer for each matrix of the layers, in place of two
    reshard: bool = True  # ZeRO-3; False, ZeRO-2, keeps gathered weights until the backward pass

    @property
    def shards(self) -> int:
        """Parts that the weights, or tensor parallel's part of them, are in."""
        return self.gpus // (self.replicas * self.tp) if self.name == "fsdp" else 1

    @property
    def data_ranks(self) -> int:
        """Micro-batches that are computed at a time."""
        return self.gpus // (self.tp * self.cp)


@dataclass(frozen=True)
class LayerBytes:
    """Bytes of a layer, a token.

    Attributes:
        gathered: a width of what tensor parallel has whole on each GPU.
        stream: a width of the residual stream and its LayerNorms.
        attention: a width of attention.
        wide: a unit of the feed-forward.
        matrix: an entry of the attention matrix, where a kernel writes that out.
    """

    gathered: float
    stream: float
    attention: float
    wide: float
    matrix: float = 0.0

    def of(self, size: Size, tp: int = 1, length: float = 0.0) -> float:
        """A token's, where it attends to `length` tokens and `tp` GPUs divide the layer."""
        divided = (self.stream + self.attention) * size.width + self.wide * size.feed_forward
        return self.gathered * size.width + (divided + self.matrix * size.heads * length) / tp


def kept_by_layer(size: Size, tokens: float, compiled: bool, tp: int = 1) -> float:
    """Bytes that one layer keeps for its backward pass."""
    joined = 4 if size.width <= JOINED_WIDTH and not compiled else 0
    kept = LayerBytes(gathered=4, stream=8, attention=8 + joined, wide=2 if compiled else 4)
    return tokens * (kept.of(size, tp) + (4 * size.heads + 16) / tp)


def kept_beside_layers(size: Size, tokens: float, predicted: float) -> float:
    """Bytes that the embedding, the rotation and the head keep."""
    head = predicted * (14 * size.width + 2 * 4 * VOCABULARY + 16)
    return head + tokens * (4 * size.width // size.heads + 4)


def held_parameters(size: Size, strategy: Strategy) -> float:
    """Parameters that a GPU's part of the layers, and the embedding and head, which are whole, would have."""
    layers = size.layers * size.layer_parameters
    return layers / strategy.tp + size.parameters - layers


def reduces_once(size: Size, strategy: Strategy, accumulated: int) -> bool:
    """Whether FSDP2 keeps whole gradients until a step's last micro-batch (`sharding.KEEP_WHOLE_BYTES`)."""
    return accumulated > 1 and 4 * size.parameters <= KEEP_WHOLE_BYTES


def memory(size: Size, strategy: Strategy, tokens: int, accumulated: int) -> dict[str, float]:
    """Bytes on one GPU by part, for micro-batches of `tokens` tokens, `accumulated` of them a step."""
    tokens = tokens / strategy.cp
    own = tokens / strategy.tp
    layer = size.layer_parameters / strategy.tp
    held = held_parameters(size, strategy)
    root, sharded = held - size.layers * layer, held / strategy.shards
    gradients, buffers = 4 * sharded, 0.0
    if strategy.name == "fsdp":
        if reduces_once(size, strategy, accumulated):
            gradients += 4 * held
        copies = 2 * root + 2 * layer * (UNITS_IN_FLIGHT if strategy.reshard else size.layers)
        buffers = 2 * (2 + 4) * layer  # gradients on their way
        if size.width <= JOINED_WIDTH and not strategy.checkpointing:
            copies += 6 * size.width**2 / strategy.tp * size.layers
    else:
        copies = 2 * root + 2 * layer * (1 if strategy.checkpointing else size.layers)
    one = kept_by_layer(size, tokens, strategy.compiled, strategy.tp)
    layers = size.layers * 4 * size.width * own + one if strategy.checkpointing else size.layers * one
    states = 2 * sharded
    if strategy.muon:
        states -= size.layers * size.layer_weights / (strategy.tp * strategy.shards)
    return {
        "weights": 4 * sharded,
        "gradients": gradients,
        "optimizer": 4 * states,
        "weights in bf16": copies,
        "activations": layers,
        "embedding and logits": kept_beside_layers(size, own, PREDICTED * own),
        "communication buffers": buffers,
        "working": size.width * (WORKING_WIDTHS * tokens + WORKING_WEIGHT * size.feed_forward / strategy.tp),
        "reserved": 1e9 * RESERVED_GB,
    }


def largest_micro_batch(size: Size, strategy: Strategy, memory_gb: float, global_tokens: int) -> int:
    """The most tokens of a micro-batch that fit, as a power of two from 1,024 to 65,536; 0 if none do."""
    fitting = 0
    for tokens in (1024 << power for power in range(7)):
        accumulated = global_tokens // (tokens * strategy.data_ranks)
        if accumulated < 1:
            break
        if sum(memory(size, strategy, tokens, accumulated).values()) <= MARGIN * 1e9 * memory_gb:
            fitting = tokens
    return fitting
