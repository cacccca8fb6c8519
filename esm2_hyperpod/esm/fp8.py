"""FP8 matrix products in the transformer layers, by torchao, on GPUs that have them."""

from dataclasses import replace

import torch
from transformers import EsmForMaskedLM

from esm2_hyperpod.errors import UserError

FIRST_CAPABILITY = (8, 9)  # Ada (L4, L40S); Hopper and Blackwell come after it

# The width of the smallest model most of whose products gain: torchao 0.18, float8/float8_linear_utils.py
# (`_auto_filter_for_tensorwise`, `_auto_filter_for_rowwise`, measured on H100).
SMALLEST_WIDTH = {"tensorwise": 1280, "rowwise": 2560}
"""torchao's recipes: one scale a tensor is the fastest, one a row the more accurate."""


def refuse_slow_fp8(device: torch.device, width: int, recipe: str, compiled: bool) -> None:
    """Raise `UserError` where FP8 would be slower than bf16 on a GPU.

    Args:
        width: of the model. Below `SMALLEST_WIDTH` of the recipe the products are too small to gain.
        compiled: whether the layers will be. If not, scaling and casting cost more than the products gain.
    """
    if device.type != "cuda":
        return
    smallest = SMALLEST_WIDTH[recipe]
    if width < smallest:
        raise UserError(
            f"--precision fp8: slower than bf16 at width {width} ({recipe} gains from {smallest} on)"
        )
    if not compiled:
        raise UserError("--precision fp8: slower than bf16 if not compiled; add --torch_compile true")


def use_fp8(model: EsmForMaskedLM, device: torch.device, recipe: str = "tensorwise") -> EsmForMaskedLM:
    """Make the linear layers of all transformer layers multiply in FP8, with scales found anew each step.

    Embeddings, language-model head, attention and master weights keep their precision; names and
    values of the parameters do not change. On a CPU the arithmetic is emulated: slow, for tests.

    Args:
        recipe: a key of `SMALLEST_WIDTH`.

    Raises:
        UserError: torchao is missing, or the GPU has no FP8.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < FIRST_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise UserError(f"--precision fp8: {name} has no FP8 (it takes an L4, L40S, H100 or newer); use bf16")
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError:
        raise UserError("--precision fp8 needs torchao: pip install -r requirements-fp8.txt") from None
    config = replace(Float8LinearConfig.from_recipe_name(recipe), emulate=device.type == "cpu")
    convert_to_float8_training(model.esm.encoder, config=config)
    return model
