"""The folders that hold a tuned model: what a run leaves, and an adapter merged into its base."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from esm2_hyperpod.alphabet import build_tokenizer
from esm2_hyperpod.artifacts import whole_folder
from esm2_hyperpod.localization.encoder import merged
from esm2_hyperpod.localization.model import judges_residues
from esm2_hyperpod.localization.report import model_card
from esm2_hyperpod.localization.settings import Settings, read_adapter_settings


def save_tuned(model: torch.nn.Module, settings: Settings, metrics: dict[str, Any], folder: Path) -> None:
    """Write the tuned model, its settings, tokenizer and model card into `folder`, whole or not at all."""
    with whole_folder(folder) as temporary:
        _fill(temporary, model, settings)
        (temporary / "README.md").write_text(model_card(metrics, settings), encoding="utf-8")


def merge_adapter(adapter: Path, folder: Path) -> None:
    """Write a model that transformers' auto classes load without peft, in fp32.

    The temperature goes into the last layer, so that a plain softmax of the logits is calibrated; mean and
    scale of a regression, so that its output is the number itself.

    Raises `UserError` if `adapter` is none or its base cannot be loaded.
    """
    settings = read_adapter_settings(adapter)
    model = merged(adapter)
    with torch.no_grad():
        last = model.classifier if judges_residues(model) else model.classifier.out_proj
        for parameter in last.parameters():
            parameter.mul_(settings.scale / settings.temperature)
        last.bias.add_(settings.mean)
    with whole_folder(folder) as temporary:
        _fill(temporary, model, replace(settings, tuning="full", temperature=1.0, mean=0.0, scale=1.0))


def _fill(folder: Path, model: torch.nn.Module, settings: Settings) -> None:
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    settings.save(folder)
