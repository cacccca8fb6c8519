"""FP8, emulated on CPUs: it trains, alike on any number of processes, and refuses what would be slow."""

import re
import sys
from pathlib import Path

import pytest
import torch
from helpers.commands import on_demand, run
from helpers.pretraining import assert_close, launch, metrics, train
from transformers import AutoModelForMaskedLM

from esm2_hyperpod.errors import UserError
from esm2_hyperpod.esm.fp8 import refuse_slow_fp8, use_fp8

FP8 = "--precision", "fp8"


@pytest.fixture(scope="module")
def torchao(tmp_path_factory) -> Path:
    """torchao in a folder of its own: where it is installed, transformers imports it in every process."""
    folder = tmp_path_factory.mktemp("torchao")
    requirements = "--no-deps", "--target", folder, "-r", "requirements-fp8.txt"
    run(sys.executable, "-m", "pip", "install", "--quiet", *requirements)
    return folder


@pytest.fixture(scope="module")
def alone(tokenized, torchao, tmp_path_factory) -> Path:
    """A run of one process in FP8."""
    output = tmp_path_factory.mktemp("alone")
    train(tokenized, output, *FP8, PYTHONPATH=str(torchao))
    return output


@on_demand
def test_it_trains_nearly_alike_and_leaves_a_plain_model(tokenized, undisturbed, alone, torchao, tmp_path):
    assert metrics(alone) != metrics(undisturbed)
    assert_close(metrics(alone), metrics(undisturbed), 0.1)
    AutoModelForMaskedLM.from_pretrained(alone / "final_model")
    by_rows = *FP8, "--fp8_recipe", "rowwise", "--max_steps", 1
    train(tokenized, tmp_path, *by_rows, PYTHONPATH=str(torchao))
    assert metrics(tmp_path)[0] != metrics(alone)[0]
    assert_close(metrics(tmp_path)[:1], metrics(undisturbed)[:1], 0.1)


@pytest.mark.parametrize(
    "fsdp, flags",
    [
        pytest.param(False, (), marks=on_demand),
        pytest.param(True, (), marks=on_demand),
        pytest.param(True, ("--torch_compile", "true"), marks=on_demand),
    ],
)
def test_losses_do_not_depend_on_the_processes(tokenized, alone, torchao, tmp_path, fsdp, flags):
    """Rounding can turn a value to the next of the few that FP8 has. The FSDP run is interrupted."""
    environment = {"PYTHONPATH": str(torchao)}
    if fsdp:
        launch(tokenized, tmp_path, *FP8, *flags, "--stop_after_steps", "4", fsdp=True, **environment)
    log = launch(tokenized, tmp_path, *FP8, *flags, fsdp=fsdp, **environment).stdout
    assert ("resuming from" in log) == fsdp
    assert_close(metrics(tmp_path), metrics(alone), 1e-2)


def test_what_would_be_slow_is_refused(tokenized, tmp_path, monkeypatch):
    missing = train(tokenized, tmp_path, *FP8, check=False)
    assert missing.returncode == 1 and "pip install -r requirements-fp8.txt" in missing.stderr
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A10G")
    with pytest.raises(UserError, match="NVIDIA A10G has no FP8"):
        use_fp8(None, torch.device("cuda"))
    for width, recipe, compiled, message in (
        (640, "tensorwise", True, "slower than bf16 at width 640 (tensorwise gains from 1280 on)"),
        (1280, "rowwise", True, "slower than bf16 at width 1280 (rowwise gains from 2560 on)"),
        (1280, "tensorwise", False, "slower than bf16 if not compiled; add --torch_compile true"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            refuse_slow_fp8(torch.device("cuda"), width, recipe, compiled)
    refuse_slow_fp8(torch.device("cuda"), 1280, "tensorwise", True)
