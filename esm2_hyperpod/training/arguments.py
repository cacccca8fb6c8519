"""The flags that both trainings have, and command lines whose mistakes are answered in one line."""

import argparse
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar

import torch
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool

from esm2_hyperpod.errors import UserError


def option(default, help, choices=None):
    """A dataclass field that HfArgumentParser turns into a documented flag."""
    return field(default=default, metadata={"help": help, **({"choices": choices} if choices else {})})


def parse(arguments: type) -> "RunArguments":
    """The dataclass filled from `sys.argv`. Raises `UserError` for a flag that it lacks or refuses."""
    script = Path(sys.argv[0]).name
    usage = f"python {script} FLAGS   (python {script} --help lists them)"
    parser = HfArgumentParser(arguments, usage=usage, allow_abbrev=False)  # --learning_rat is a mistake
    refused = arguments.refused()
    for word in sys.argv[1:]:
        name = word.split("=")[0].lstrip("-").replace("-", "_")
        if word.startswith("--") and name.removeprefix("no_") in refused:
            instead = arguments.USE_INSTEAD.get(name, "what --help lists")
            raise UserError(f"--{name} has no meaning here: use {instead}")
    for action in parser._actions:  # argparse has no public way to change a flag that it has been given
        if action.dest in refused:
            action.help = argparse.SUPPRESS
        if action.type is string_to_bool and action.nargs is None:
            action.nargs, action.const = "?", True  # a flag alone means true, also where the default is None
    filled, unknown = parser.parse_args_into_dataclasses(return_remaining_strings=True)
    if unknown:
        raise UserError(f"unknown: {' '.join(unknown)}; python {script} --help lists what there is")
    return filled


@dataclass
class RunArguments(TrainingArguments):
    """Hugging Face's TrainingArguments, as both trainings have them.

    `IDENTITY` names the options that make a run this run: a resumed run must have the same. `WORKS` names
    Trainer's flags that do here what they say; those that a subclass declares work as well. All others are
    refused, with the flag of `USE_INSTEAD` where there is one.
    """

    IDENTITY: ClassVar[str]
    WORKS: ClassVar[str] = (
        "num_train_epochs max_steps learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps optim "
        "optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm seed full_determinism tf32 "
        "torch_compile torch_empty_cache_steps log_level log_level_replica report_to run_name project "
        "logging_steps save_total_limit dataloader_num_workers use_cpu ddp_bucket_cap_mb ddp_timeout"
    )
    USE_INSTEAD: ClassVar[dict[str, str]] = {
        "fp16": "--precision",
        "bf16": "--precision",
        "gradient_checkpointing": "--activation_checkpointing",
        "resume_from_checkpoint": "the same command, which resumes from the newest whole checkpoint",
        "auto_find_batch_size": "a smaller batch",
        "fsdp": "bash 3.train_fsdp.sh",
        "fsdp_config": "accelerate_fsdp.yaml",
        "data_seed": "--seed",
        "torch_compile_backend": "--torch_compile",
        "torch_compile_mode": "--torch_compile",
    }

    max_minutes: float | None = option(None, "Save, stop and exit with 75 after so many minutes.")
    save_minutes: float | None = option(None, "Also write a checkpoint every so many minutes.")
    step_timeout: int = option(
        300, "Seconds a step waits for a process that does not answer; saving waits for --ddp_timeout."
    )
    dollars_per_node_hour: float | None = option(None, "Price of one node, for the cost in run_report.md.")
    precision: str = option("auto", "auto is bf16 on GPUs that have it, else fp32.", ["auto", "bf16", "fp32"])
    activation_checkpointing: bool = option(False, "Recompute activations: less memory, more time.")
    weight_decay: float = option(0.01, "Weight decay.")
    logging_steps: float = option(10, "Steps between logs.")

    def __post_init__(self):
        if self.step_timeout < 1:
            raise UserError(f"--step_timeout {self.step_timeout}: must be a number of seconds from 1 up")
        self.use_cpu = self.use_cpu or not torch.cuda.is_available()
        has_bf16 = not self.use_cpu and torch.cuda.is_bf16_supported(including_emulation=False)
        self.bf16 = self.precision == "bf16" or (self.precision != "fp32" and has_bf16)
        self.ignore_data_skip = True  # our samplers start at the right step by themselves
        self.logging_nan_inf_filter = False  # checked where losses are shared; this one waits for the GPU
        self.ddp_find_unused_parameters = False  # all are used; looking for them costs a pass over the graph
        self.ddp_broadcast_buffers = False  # the only ones, rotary frequencies, never change
        if "activation_checkpointing" not in TrainingArguments.__dataclass_fields__:
            self.gradient_checkpointing = self.activation_checkpointing  # its name before transformers 5.21
        self.settle()
        super().__post_init__()

    def settle(self) -> None:
        """Check and complete what a subclass adds. Raises `UserError` for what cannot be."""

    @classmethod
    def refused(cls) -> set[str]:
        """The names of Trainer's flags that do nothing here, or something else than they say."""
        ours = {name for parent in cls.__mro__ if issubclass(parent, RunArguments) for name in vars(parent)}
        ours &= {field.name for field in fields(cls)}
        everything = {field.name for field in fields(TrainingArguments) if field.init}
        return everything - (ours - set(cls.USE_INSTEAD)) - set(cls.WORKS.split())

    def was_given(self, name: str) -> bool:
        """Whether a flag has another value than its default."""
        return getattr(self, name) != type(self).__dataclass_fields__[name].default

    def identity(self) -> dict:
        """The options that make this run this run, with their values."""
        return {name: getattr(self, name) for name in self.IDENTITY.split()}
