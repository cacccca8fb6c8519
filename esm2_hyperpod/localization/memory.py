"""How much memory fine-tuning needs on one device, by formula: no weights, no data and no GPU are needed.

The counts are those of `EsmForSequenceClassification` in transformers, per layer of width w and
feed-forward width f, a token. What a backward pass keeps of the forward pass:

    8 w           the inputs of both LayerNorms: the residual stream, fp32
    3 f           of the erf GELU: the factors of its product and the argument of erf
    4 w           query, key, value and the result of attention
    + the inputs of the linear layers that are trained or adapted (a frozen one needs no gradient of its
      weight): the LayerNorms' outputs, and f in front of the second feed-forward layer
    + the attention mask, which is widened to a row of `length` numbers a token

Numbers are 4 bytes in fp32. Under bf16 autocast linear layers give 2-byte numbers and read 2-byte copies;
4-bit layers, however, give back the type that they got, which is fp32 behind a LayerNorm. Weights in 4 bits:
half a byte, a byte of scale for 64 of them, and 4 bytes for 256 scales (QLoRA, Dettmers et al. 2023,
arXiv:2305.14314). No LoRA dropout, and attention that never writes out its matrix.

`benchmarks/finetuning_memory.py` compares all this with what a training step takes on the CPU. It has not
been compared with a GPU.
"""

from dataclasses import dataclass, replace

from esm2_hyperpod.esm.model import Size
from esm2_hyperpod.localization.pooling import Pooling
from esm2_hyperpod.localization.prediction import BATCH_TOKENS
from esm2_hyperpod.localization.settings import ADAPTER_TUNINGS, NO_POOLING

BYTES_4_BIT = 0.5 + 1 / 64 + 4 / (64 * 256)
OPTIMIZER_BYTES = 8  # AdamW's two moments, fp32
LABELS = 10  # hardly matters: a label is one row of the head
EVALUATION_TOKENS = BATCH_TOKENS["cuda"]
WORKING_WIDTHS = 20  # measured: what the backward pass of a feed-forward part holds on top, in w a token
EVALUATION_WIDTHS = 20  # measured, too
RESERVED_GB = 1.0  # CUDA's context and what fragmentation wastes; an allowance, not measured
GPU_GB = 24  # an A10G or L4


@dataclass(frozen=True)
class Plan:
    """What is trained and on how much at a time: `proteins` of `length` tokens a micro-batch."""

    size: Size
    tuning: str
    pooling: str
    lora_rank: int
    lora_targets: str
    proteins: int
    length: int
    half: bool
    checkpointing: bool

    @property
    def tokens(self) -> int:
        """Of a micro-batch, padding included."""
        return self.proteins * self.length

    @property
    def pooling_layer(self) -> Pooling:
        """What pools the residues, on top of the base."""
        return Pooling(self.pooling, self.size.layers)


@dataclass(frozen=True)
class Estimate:
    """Bytes on one device, by part. `activations` are what backward keeps, `working` what comes and goes."""

    weights: float
    trained: float
    gradients: float
    optimizer: float
    activations: float
    working: float
    evaluation: float

    @property
    def peak(self) -> float:
        """The most that is held at a time: training and evaluation take turns."""
        lasting = self.weights + self.trained + self.optimizer + 1e9 * RESERVED_GB
        return lasting + max(self.gradients + self.activations + self.working, self.evaluation)


def estimate(plan: Plan) -> Estimate:
    """The memory that a training run of this plan takes."""
    frozen, trained = _parameters(plan)
    if plan.tuning in ADAPTER_TUNINGS:
        # Two widths for each linear layer of attention, five for each of the feed-forward part.
        widths = 18 if plan.lora_targets == "all" else 6
        trained += widths * plan.lora_rank * plan.size.width * plan.size.layers
    narrow = plan.half and plan.tuning != "qlora"
    quantized = plan.size.layer_weights * plan.size.layers if plan.tuning == "qlora" else 0
    weights = 4.0 * (frozen - quantized) + BYTES_4_BIT * quantized
    return Estimate(
        weights=weights,
        trained=4.0 * trained,
        gradients=4.0 * trained,
        optimizer=OPTIMIZER_BYTES * trained,
        activations=_kept(plan),
        working=plan.tokens * plan.size.width * WORKING_WIDTHS * (2.0 if narrow else 4.0),
        evaluation=evaluation_bytes(plan, EVALUATION_TOKENS),
    )


def _parameters(plan: Plan) -> tuple[int, int]:
    """Parameters that stay as they are, and those that are trained; LoRA's not counted."""
    width, layers = plan.size.width, plan.size.layers
    layer = plan.size.layer_parameters
    on_top = plan.pooling_layer
    pooling = layer * on_top.layers
    pooling_trained = 3 * (width**2 + width) if on_top.is_trained else 0
    contacts = (layers + on_top.layers) * plan.size.heads + 1
    base = layers * layer + 33 * width + 2 * width
    head = LABELS * (width + 1) + (0 if plan.pooling == NO_POOLING else width**2 + width)
    if plan.tuning == "full":
        return pooling - pooling_trained + contacts, base + head + pooling_trained
    # peft keeps an untouched copy of what it trains as a whole.
    copies = head + pooling if plan.tuning in ADAPTER_TUNINGS else 0
    return base + pooling - pooling_trained + contacts + copies, head + pooling_trained


def _kept(plan: Plan) -> float:
    """Bytes of the forward pass that the backward pass needs, where it needs most of them at a time."""
    stream = 4 * plan.tokens * plan.size.width
    layers, pooling = _kept_by_layers(plan)
    if not layers + pooling:
        return 0.0
    final_norm = 2 * stream
    if plan.checkpointing:
        # The inputs of all layers, and one layer at a time in full.
        return final_norm + stream * (plan.size.layers + plan.pooling_layer.layers) + max(layers, pooling)
    first_norm = 0 if plan.tuning == "full" else stream  # its input needs no gradient
    return final_norm + layers * plan.size.layers + pooling - first_norm


def _kept_by_layers(plan: Plan) -> tuple[float, float]:
    """Bytes that one layer of the base keeps for the backward pass, and those of the pooling layer."""
    lora = plan.tuning in ADAPTER_TUNINGS
    base = _kept_by_layer(
        plan, plan.lora_targets if lora else "all", 4 if plan.tuning == "qlora" else 0, lora
    )
    on_top = plan.pooling_layer
    pooling = on_top.layers * _kept_by_layer(plan, "attention" if on_top.is_trained else "none", 0, False)
    if plan.tuning == "head" and not on_top.is_trained:
        pooling = 0.0
    return 0.0 if plan.tuning == "head" else base, pooling


def _kept_by_layer(plan: Plan, adapted: str, gelu: int, lora: bool) -> float:
    """As the module says. `gelu`: bytes of a number in the feed-forward part, 0 for the precision's."""
    width, number = plan.size.width, 2 if plan.half else 4
    kept = 2 * 4 + 3 * 4 * (gelu or number) + 4 * number
    if adapted != "none":
        kept += 3 * 2 if plan.half else 4  # query, key and value each read their own copy
    if adapted == "all":
        kept += number + 4 * number + (2 if plan.half and lora else 0)
    low_rank = (6 if adapted == "all" else 3) * plan.lora_rank * number if lora else 0
    casts = 2 * plan.size.layer_weights if plan.half and not gelu else 0
    return plan.tokens * (kept * width + low_rank + plan.length * number) + casts


def evaluation_bytes(plan: Plan, tokens: int) -> float:
    """Bytes that a forward pass without gradients holds at a time: fp32, the feed-forward part's most."""
    return 4.0 * tokens * (EVALUATION_WIDTHS * plan.size.width + plan.length)


def describe(name: str, plan: Plan) -> str:
    """A table of the parts, without and with gradient checkpointing, and whether they fit on `GPU_GB`."""
    plans = [replace(plan, checkpointing=checkpointing) for checkpointing in (False, True)]
    estimates = [estimate(each) for each in plans]
    quantized = ", the layers in 4 bits" if plan.tuning == "qlora" else ""
    lines = {
        f"weights that stay as they are{quantized}": [each.weights for each in estimates],
        "weights that are trained": [each.trained for each in estimates],
        "state of the optimizer": [each.optimizer for each in estimates],
        "training: gradients": [each.gradients for each in estimates],
        "training: kept for the backward pass": [each.activations for each in estimates],
        "training: working memory": [each.working for each in estimates],
        f"or evaluation, {EVALUATION_TOKENS:,} tokens": [each.evaluation for each in estimates],
        "CUDA context, fragmentation (allowance)": [1e9 * RESERVED_GB] * 2,
        "peak": [each.peak for each in estimates],
    }
    fits = ["yes" if each.peak <= 1e9 * GPU_GB else "no" for each in estimates]
    most = [str(largest_batch(each)) for each in plans]
    rows = [(what, *(f"{amount / 1e9:.2f}" for amount in amounts)) for what, amounts in lines.items()]
    rows += [(f"fits on {GPU_GB} GB", *fits), (f"most proteins a micro-batch on {GPU_GB} GB", *most)]
    table = [f"{what:<52}{plain:>8}{checkpointed:>16}" for what, plain, checkpointed in rows]
    return "\n".join(
        [
            f"{name}: {plan.tuning}, pooling {plan.pooling}; micro-batches of {plan.proteins} x "
            f"{plan.length:,} tokens, {'bf16' if plan.half else 'fp32'}",
            f"{'GB on each device':<52}{'plain':>8}{'checkpointing*':>16}",
            *table,
            "* --activation_checkpointing true. The formula was compared with training steps on a CPU, not",
            "  on a GPU: leave some room.",
        ]
    )


def largest_batch(plan: Plan) -> int:
    """Most proteins of a micro-batch whose peak stays within `GPU_GB`; 0 if not even one does."""
    proteins = 0
    for step in (1024, 256, 64, 16, 4, 1):
        while estimate(replace(plan, proteins=proteins + step)).peak <= 1e9 * GPU_GB:
            proteins += step
    return proteins
