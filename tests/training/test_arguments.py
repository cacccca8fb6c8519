"""Every flag of Trainer either works in our commands, or is refused in one line that says what to use."""

from dataclasses import fields

import pytest
from helpers.commands import run
from transformers import TrainingArguments

from esm2_hyperpod.localization.arguments import FinetuningArguments
from esm2_hyperpod.pretraining.arguments import PretrainingArguments

REFUSED = [
    *"resume_from_checkpoint auto_find_batch_size per_device_eval_batch_size label_smoothing_factor".split(),
    *"fp16 bf16 gradient_accumulation_steps fsdp deepspeed data_seed save_only_model".split(),
]


@pytest.mark.parametrize("arguments", [PretrainingArguments, FinetuningArguments])
def test_each_of_trainers_flags_works_or_is_refused(arguments):
    everything = {field.name for field in fields(TrainingArguments) if field.init}
    works, refused = set(arguments.WORKS.split()), arguments.refused()
    assert works <= everything and refused <= everything
    assert not works & refused
    declared = everything - works - refused
    own = {name for parent in arguments.__mro__[:2] for name in parent.__annotations__}
    assert declared <= own


@pytest.mark.parametrize("flag", [*(f"--{name}" for name in REFUSED), "--per-device-eval-batch-size"])
def test_a_refused_flag_is_one_line(flag):
    result = run("train.py", flag, "1", check=False)
    assert result.returncode == 1
    (line,) = (line for line in result.stderr.splitlines() if "error:" in line)
    name = flag.removeprefix("--").replace("-", "_")
    assert f"train.py: error: --{name} has no meaning here: use " in line


def test_fine_tuning_takes_any_number_of_steps_between_logs(tmp_path):
    filled = FinetuningArguments(
        output_dir=str(tmp_path), model_name_or_path="x", estimate_memory=True, logging_steps=7
    )
    assert filled.logging_steps == 7


def test_help_lists_what_works():
    text = run("train.py", "--help").stdout
    assert "--tokens_per_device" in text and "--max_grad_norm" in text
    assert "--label_smoothing_factor" not in text and "--push_to_hub" not in text
