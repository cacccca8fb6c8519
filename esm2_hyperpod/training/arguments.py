"""The flags that both trainings have, and command lines whose mistakes are answered in one line."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from transformers import HfArgumentParser, TrainingArguments

from esm2_hyperpod.errors import UserError


def option(default, help, choices=None):
    """A dataclass field that HfArgumentParser turns into a documented flag."""
    return field(default=default, metadata={"help": help, **({"choices": choices} if choices else {})})


def parse(arguments: type) -> "RunArguments":
    """The dataclass filled from `sys.argv`. Raises `UserError` for a flag that it does not have."""
    script = Path(sys.argv[0]).name
    usage = f"python {script} FLAGS   (python {script} --help lists them)"
    parser = HfArgumentParser(arguments, usage=usage, allow_abbrev=False)  # --learning_rat is a mistake
    filled, unknown = parser.parse_args_into_dataclasses(return_remaining_strings=True)
    if unknown:
        raise UserError(f"unknown: {' '.join(unknown)}; python {script} --help lists what there is")
    return filled


@dataclass
class RunArguments(TrainingArguments):
    """Hugging Face's TrainingArguments, as both trainings have them.

    `IDENTITY` names the options that make a run this run: a resumed run must have the same. `USE_INSTEAD`
    names Trainer's flags that another flag stands for here.
    """

    IDENTITY: ClassVar[str]
    USE_INSTEAD: ClassVar[dict[str, str]] = {"fp16": "--precision", "bf16": "--precision"}

    max_minutes: float | None = option(None, "Save, stop and exit with 75 after so many minutes.")
    save_minutes: float | None = option(None, "Also write a checkpoint every so many minutes.")
    dollars_per_node_hour: float | None = option(None, "Price of one node, for the cost in run_report.md.")
    precision: str = option("auto", "auto is bf16 on GPUs that have it, else fp32.", ["auto", "bf16", "fp32"])
    weight_decay: float = option(0.01, "Weight decay.")
    logging_steps: float = option(10, "Steps between logs.")

    def __post_init__(self):
        for name, flag in self.USE_INSTEAD.items():
            if self.was_given(name):
                raise UserError(f"--{name} has no meaning here: use {flag}")
        self.use_cpu = self.use_cpu or not torch.cuda.is_available()
        has_bf16 = not self.use_cpu and torch.cuda.is_bf16_supported()
        self.bf16 = self.precision == "bf16" or (self.precision != "fp32" and has_bf16)
        self.ignore_data_skip = True  # our samplers start at the right step by themselves
        self.logging_nan_inf_filter = False  # checked where losses are shared; this one waits for the GPU
        self.ddp_find_unused_parameters = False  # all are used; looking for them costs a pass over the graph
        super().__post_init__()

    def was_given(self, name: str) -> bool:
        """Whether a flag has another value than its default."""
        return getattr(self, name) != type(self).__dataclass_fields__[name].default

    def identity(self) -> dict:
        """The options that make this run this run, with their values."""
        return {name: getattr(self, name) for name in self.IDENTITY.split()}
