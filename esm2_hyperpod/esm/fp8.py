"""FP8 matrix products in the transformer layers, by torchao, on GPUs that have them."""

import torch
from transformers import EsmForMaskedLM

from esm2_hyperpod.errors import UserError

FIRST_CAPABILITY = (8, 9)  # Ada (L4, L40S); Hopper and Blackwell come after it


def use_fp8(model: EsmForMaskedLM, device: torch.device) -> EsmForMaskedLM:
    """Make the linear layers of all transformer layers multiply in FP8 (scaled per tensor, each step).

    Embeddings, language-model head, attention and master weights keep their precision; names and
    values of the parameters do not change. On a CPU the arithmetic is emulated: slow, for tests.

    Raises:
        UserError: torchao is missing, or the GPU has no FP8.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < FIRST_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise UserError(f"--precision fp8: {name} has no FP8 (it takes an L4, L40S, H100 or newer); use bf16")
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError:
        raise UserError("--precision fp8 needs torchao: pip install torchao==0.18.0") from None
    config = Float8LinearConfig(emulate=device.type == "cpu")
    convert_to_float8_training(model.esm.encoder, config=config)
    return model
