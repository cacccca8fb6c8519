"""Every flag of Trainer either works in our commands, or is refused in one line that says what to use."""

from dataclasses import fields

import pytest
from helpers.commands import run, run_each
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


def test_refused_flags_are_one_line_each():
    commands = [[f"--{name}", "1"] for name in REFUSED] + [["--per-device-eval-batch-size=4"]]
    for command, (code, errors) in zip(commands, run_each("train.py", commands)):
        assert code == 1, command
        line = [line for line in errors.splitlines() if "error:" in line]
        name = command[0].split("=")[0].replace("-", "_").lstrip("_")
        assert len(line) == 1 and f"--{name} has no meaning here: use " in line[0]


def test_help_lists_what_works():
    text = run("train.py", "--help").stdout
    assert "--tokens_per_device" in text and "--max_grad_norm" in text
    assert "--label_smoothing_factor" not in text and "--push_to_hub" not in text
