"""The memory estimate against real steps on the CPU."""

import importlib.util
from dataclasses import replace

import pytest
from helpers.commands import ROOT
from helpers.localization_example import skip_if_torch_cannot, write_base

from esm2_hyperpod.errors import UserError
from esm2_hyperpod.esm.model import SIZES, Size, find_size
from esm2_hyperpod.localization.memory import GPU_GB, Plan, estimate, evaluation_bytes, largest_batch

PLAN = Plan(Size(3, 128, 8), "qlora", "attention", 8, "all", 2, 128, half=False, checkpointing=False)
CHANGES = {
    "4 bits": {},
    "4 bits, checkpointing": {"checkpointing": True, "size": Size(6, 64, 4), "length": 200},
    "4 bits, bf16, attention only": {"half": True, "lora_targets": "attention", "pooling": "cls"},
    "lora, bf16": {"tuning": "lora", "half": True, "size": Size(2, 160, 8), "proteins": 5},
    "full, mean pooling": {"tuning": "full", "pooling": "mean", "length": 70},
    "full, bf16": {"tuning": "full", "half": True},
    "4 bits, a label a residue": {"pooling": "none"},
}


@pytest.fixture(scope="module")
def benchmark():
    path = ROOT / "benchmarks" / "finetuning_memory.py"
    spec = importlib.util.spec_from_file_location("finetuning_memory", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("case", CHANGES)
def test_the_formula_is_what_a_step_takes(benchmark, case):
    plan = replace(PLAN, **CHANGES[case])
    try:
        measured, expected = benchmark.measure(plan), estimate(plan)
    except RuntimeError as error:
        skip_if_torch_cannot(str(error))
        raise
    assert expected.weights + expected.trained == pytest.approx(measured["weights"], rel=0.02)
    assert (expected.gradients, expected.optimizer) == (measured["gradients"], measured["optimizer"])
    if not plan.checkpointing:
        assert expected.activations == pytest.approx(measured["activations"], rel=0.05)
    step = expected.gradients + expected.activations + expected.working
    assert 0.97 * measured["step"] < step < 1.2 * measured["step"]
    evaluation = evaluation_bytes(plan, plan.tokens)
    assert 0.97 * measured["evaluation"] < evaluation < 1.2 * measured["evaluation"]


def test_the_largest_batch_is_the_largest():
    plan = Plan(SIZES["650M"], "lora", "attention", 8, "all", 1, 1024, half=True, checkpointing=False)
    most = largest_batch(plan)
    assert most > 1
    assert estimate(replace(plan, proteins=most)).peak <= 1e9 * GPU_GB
    assert estimate(replace(plan, proteins=most + 1)).peak > 1e9 * GPU_GB
    assert largest_batch(replace(plan, size=SIZES["15B"], tuning="full")) == 0


def test_sizes_come_from_names_and_folders(tmp_path):
    assert find_size("facebook/esm2_t33_650M_UR50D") == SIZES["650M"]
    write_base(tmp_path)
    assert find_size(str(tmp_path)) == Size(2, 32, 4)
    for name in ("facebook/esm1b_t33_650M_UR50S", "facebook/esm2_t6_9M_UR50D", str(tmp_path / "gone")):
        with pytest.raises(UserError):
            find_size(name)
