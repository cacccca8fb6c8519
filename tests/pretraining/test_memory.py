"""Activations are recomputed by default where they do not fit. The formula itself: tests/planner."""

from types import SimpleNamespace

import pytest
import torch

from esm2_hyperpod.esm.model import build_config
from esm2_hyperpod.pretraining.parallel import choose_replicas_and_checkpointing

GIB = 2**30
DEFAULTS = {
    "packing": True,
    "compile_layers": True,
    "bf16": True,
    "world_size": 8,
    "parts": 1,
    "dp_replicate_size": "auto",
    "checkpoints_by_memory": True,
    "activation_checkpointing": False,
    "muon": None,
    "tp_size": 1,
    "cp_size": 1,
    "reshard_after_forward": None,
}


@pytest.mark.parametrize(
    "model_size, gigabytes, fsdp, changed, expected",
    [  # expected: replicas on two nodes of four GPUs, and whether activations are recomputed
        ("150M", 22.5, False, {}, (1, False)),
        ("650M", 22.5, False, {}, (1, True)),
        ("650M", 44.4, False, {}, (1, False)),
        ("650M", 44.4, False, {"bf16": False}, (1, True)),
        ("650M", 44.4, True, {}, (2, False)),
        ("650M", 44.4, True, {"dp_replicate_size": "1"}, (1, False)),
        ("650M", 44.4, True, {"parts": 4}, (1, False)),  # a pack takes a whole node
        ("3B", 22.5, True, {}, (1, True)),
        ("3B", 44.4, True, {}, (2, True)),
        ("3B", 44.4, True, {"checkpoints_by_memory": False, "tokens_per_device": 1024}, (2, False)),
        ("3B", 79.2, True, {"dp_replicate_size": "1"}, (1, False)),
        ("3B", 22.5, True, {"muon": True}, (2, True)),
        ("3B", 79.2, False, {}, (1, True)),
        ("15B", 79.2, True, {}, (1, True)),
        ("15B", 79.2, True, {"packing": False}, (2, False)),
    ],
)
def test_replicas_and_recomputing_by_what_fits(monkeypatch, model_size, gigabytes, fsdp, changed, expected):
    memory = SimpleNamespace(total_memory=gigabytes * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: memory)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", str(fsdp).lower())
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    how = {**DEFAULTS, "tokens_per_device": 16_384, "gradient_accumulation_steps": 16, **changed}
    config = build_config(model_size)
    choose = choose_replicas_and_checkpointing
    assert choose(SimpleNamespace(device=torch.device("cuda"), **how), config) == expected
    _, recomputed = choose(SimpleNamespace(device=torch.device("cpu"), **how), config)
    assert not recomputed
