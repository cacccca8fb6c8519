"""Every flag of Trainer either works in our commands, or is refused in one line that says what to use."""

from dataclasses import fields

import pytest
from helpers.misuse import own_process
from helpers.steps import here
from transformers import TrainingArguments

from esm2_hyperpod.localization.arguments import FinetuningArguments
from esm2_hyperpod.pretraining.arguments import PretrainingArguments


@pytest.mark.parametrize("arguments", [PretrainingArguments, FinetuningArguments])
def test_each_of_trainers_flags_works_or_is_refused(arguments):
    everything = {field.name for field in fields(TrainingArguments) if field.init}
    works, refused = set(arguments.WORKS.split()), arguments.refused()
    assert works <= everything and refused <= everything
    assert not works & refused
    declared = everything - works - refused
    own = {name for parent in arguments.__mro__[:2] for name in parent.__annotations__}
    assert declared <= own


def test_fine_tuning_takes_any_number_of_steps_between_logs(tmp_path):
    filled = FinetuningArguments(
        output_dir=str(tmp_path), model_name_or_path="x", estimate_memory=True, logging_steps=7
    )
    assert filled.logging_steps == 7


def test_help_has_our_flags_first_and_trainers_on_demand():
    with own_process():
        text, everything = here("train.py", "--help").stdout, here("train.py", "--help_all").stdout
    assert text.index("data and output:") < text.index("--dataset_dir") < text.index("--tokens_per_device")
    assert "--max_grad_norm" not in text and "--help_all" in text
    assert (
        everything.index("--tokens_per_device")
        < everything.index("Trainer's own")
        < everything.index("--max_grad")
    )
    assert "--label_smoothing_factor" not in everything and "--push_to_hub" not in everything


@pytest.mark.parametrize("arguments", [PretrainingArguments, FinetuningArguments])
def test_headings_of_the_help_name_flags_that_there_are_once(arguments):
    names = " ".join(arguments.GROUPS.values()).split()
    assert len(names) == len(set(names))
    assert set(names) <= {field.name for field in fields(arguments)} - arguments.refused()
