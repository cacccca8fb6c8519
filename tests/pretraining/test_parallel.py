"""Which divisions of the work are refused; the losses of those that are not: test_layouts."""

import pytest
import torch
from torch import nn

from esm2_hyperpod.errors import UserError
from esm2_hyperpod.esm.model import build_config
from esm2_hyperpod.pretraining.arguments import PretrainingArguments
from esm2_hyperpod.pretraining.parallel import check_heads
from esm2_hyperpod.training.gradients import clip_gradients

FOLDERS = {"dataset_dir": "data", "output_dir": "run"}


@pytest.mark.parametrize(
    "processes, fsdp, flags, message",
    [
        (
            4,
            True,
            {"tp_size": 3},
            "--tp_size 3: 4 process(es) do not divide by 3; products that fit: 1, 2, 4",
        ),
        (4, True, {"tp_size": 2, "cp_size": 4}, "--tp_size 2 --cp_size 4: 4 process(es) do not divide by 8"),
        (4, True, {"tp_size": 2, "dp_replicate_size": "4"}, "do not divide by 8"),
        (4, True, {"dp_replicate_size": "many"}, "--dp_replicate_size many: must be numbers from 1 up"),
        (4, True, {"cp_size": 0}, "--cp_size 0: must be numbers from 1 up"),
        (4, False, {"tp_size": 2}, "--tp_size 2: is of FSDP2; use bash 3.train_fsdp.sh"),
        (2, False, {"dp_replicate_size": "2"}, "--dp_replicate_size 2: is of FSDP2"),
        (2, False, {"reshard_after_forward": False}, "--reshard_after_forward False: is of FSDP2"),
        (2, False, {"cp_size": 2, "packing": False}, "--cp_size 2: needs packs; leave out --packing false"),
        (2, True, {"tp_size": 2, "precision": "fp8"}, "--tp_size 2: not with --precision fp8"),
        (5, True, {"cp_size": 5}, "--tokens_per_device 16384: must divide by 5, the devices that share it"),
        (
            1,
            False,
            {"model_name_or_path": "x", "hidden_size": 64},
            "--hidden_size: --model_name_or_path x has",
        ),
        (
            1,
            False,
            {"model_name_or_path": "x", "config_name": "y"},
            "--config_name: --model_name_or_path x has",
        ),
    ],
)
def test_a_division_that_cannot_be_is_refused(monkeypatch, processes, fsdp, flags, message):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", str(fsdp).lower())
    with pytest.raises(UserError) as refusal:
        PretrainingArguments(**FOLDERS, **flags)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    "flags", [{"tp_size": 2}, {"cp_size": 2}, {"dp_replicate_size": "2"}, {"reshard_after_forward": False}]
)
def test_offloaded_parameters_are_not_divided_further(monkeypatch, flags):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    (name,) = flags
    with pytest.raises(UserError, match=f"--{name} .*: not with fsdp_offload_params"):
        PretrainingArguments(**FOLDERS, **flags)


def test_heads_must_divide(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr(PretrainingArguments.__mro__[2], "__post_init__", lambda _: None)
    args = PretrainingArguments(**FOLDERS, tp_size=8)
    check_heads(args, 40)
    with pytest.raises(UserError, match="20 attention heads do not divide by 8; products that fit: 2, 4, 5"):
        check_heads(args, 20)


@pytest.mark.parametrize(
    "asked, expected",
    [
        ({}, (4, 128, 4, 512)),
        ({"hidden_size": 64}, (4, 64, 4, 256)),
        ({"num_hidden_layers": 3, "num_attention_heads": 8, "intermediate_size": 300}, (3, 128, 8, 300)),
    ],
)
def test_an_architecture_of_ones_own(tmp_path, asked, expected):
    build_config("8M").save_pretrained(tmp_path)
    for config, layers in ((build_config("tiny", **asked), None), (build_config("8M", str(tmp_path)), 6)):
        if layers:
            assert (config.num_hidden_layers, config.hidden_size) == (6, 320)
        else:
            numbers = config.num_hidden_layers, config.hidden_size, config.num_attention_heads
            assert (*numbers, config.intermediate_size) == expected


@pytest.mark.parametrize(
    "asked, message",
    [
        (
            {"hidden_size": 100},
            "--hidden_size 100 --num_attention_heads 4: the width must be an even multiple",
        ),
        ({"num_hidden_layers": 0}, "--num_hidden_layers 0: must be a number from 1 up"),
    ],
)
def test_an_architecture_that_cannot_be_is_refused(asked, message):
    with pytest.raises(UserError) as refusal:
        build_config("tiny", **asked)
    assert message in str(refusal.value)


def test_gradients_are_clipped_as_torch_does():
    torch.manual_seed(0)
    model, like = nn.Linear(7, 5), nn.Linear(7, 5)
    for ours, theirs in zip(model.parameters(), like.parameters()):
        ours.grad = torch.randn_like(ours)
        theirs.grad = ours.grad.clone()
    expected = torch.nn.utils.clip_grad_norm_(like.parameters(), 1.0)
    assert float(clip_gradients(model.parameters(), 1.0)) == pytest.approx(float(expected), rel=1e-6)
    for ours, theirs in zip(model.parameters(), like.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad)
    small = [parameter.grad.clone() for parameter in model.parameters()]
    clip_gradients(model.parameters(), 10.0)
    assert all(torch.equal(one.grad, other) for one, other in zip(model.parameters(), small))
