"""A tuned model without what was put on top of it: plain layers in fp32."""

import copy
from pathlib import Path

import torch
from transformers import EsmConfig, EsmPreTrainedModel

from esm2_hyperpod.localization.model import attach_adapter, dequantized, load_base, load_tuned
from esm2_hyperpod.localization.pooling import Pooling
from esm2_hyperpod.localization.settings import ADAPTER_TUNINGS, read_adapter_settings, read_settings


def merged(adapter: Path) -> EsmPreTrainedModel:
    """The base with the adapter merged into it, in fp32 on the CPU.

    The base keeps the values its 4-bit weights stand for, since those are what the adapter was trained on;
    merging into the original weights would change the predictions.

    Raises `UserError` if `adapter` is none or its base cannot be loaded.
    """
    settings = read_adapter_settings(adapter)
    model = load_base(settings, torch.device("cpu"), bf16=False)
    if settings.tuning == "qlora":
        model = dequantized(model)
    return attach_adapter(model, adapter).merge_and_unload()


def tuned_encoder(folder: Path) -> tuple[EsmConfig, dict[str, torch.Tensor]]:
    """The configuration and the weights (`esm.*`) of the layers that the base had, as tuning left them.

    Raises `UserError` if `folder` holds no tuned model, or it cannot be loaded.
    """
    settings = read_settings(folder)
    if settings.tuning in ADAPTER_TUNINGS:
        model = merged(folder)
    else:
        model = load_tuned(folder, torch.device("cpu"), bf16=False)
    pooling = Pooling.of(model, settings.pooling)
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = pooling.base_layers
    weights = {
        name: weight
        for name, weight in model.state_dict().items()
        if name.startswith("esm.") and not pooling.holds(name)
    }
    return config, weights
