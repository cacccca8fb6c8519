"""Activations are recomputed by default where they do not fit. The formula itself: tests/planner."""

from types import SimpleNamespace

import pytest
import torch

from esm2_hyperpod.esm.model import build_config
from esm2_hyperpod.pretraining.trainer import needs_checkpointing

GIB = 2**30
DEFAULTS = {"packing": True, "compile_layers": True, "bf16": True, "world_size": 8}


@pytest.mark.parametrize(
    "model_size, gigabytes, fsdp, changed, expected",
    [
        ("150M", 22.5, False, {}, False),
        ("650M", 22.5, False, {}, True),
        ("650M", 44.4, False, {}, False),
        ("650M", 44.4, False, {"bf16": False}, True),
        ("3B", 22.5, True, {}, True),
        ("3B", 79.2, True, {}, False),
        ("3B", 79.2, False, {}, True),
        ("15B", 79.2, True, {}, True),
        ("15B", 79.2, True, {"packing": False}, False),
    ],
)
def test_activations_are_recomputed_where_they_do_not_fit(
    monkeypatch, model_size, gigabytes, fsdp, changed, expected
):
    memory = SimpleNamespace(total_memory=gigabytes * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: memory)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", str(fsdp).lower())
    how = {**DEFAULTS, "tokens_per_device": 16_384, "gradient_accumulation_steps": 16, **changed}
    config = build_config(model_size)
    assert needs_checkpointing(SimpleNamespace(device=torch.device("cuda"), **how), config) == expected
    assert not needs_checkpointing(SimpleNamespace(device=torch.device("cpu"), **how), config)
