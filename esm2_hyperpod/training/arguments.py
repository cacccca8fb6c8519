"""The flags that both trainings have, and what to use instead of those of Trainer's that do nothing here."""

import warnings
from dataclasses import dataclass, field, fields
from typing import ClassVar

import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from esm2_hyperpod.errors import UserError


def option(default, help, choices=None):
    """A dataclass field that HfArgumentParser turns into a documented flag."""
    return field(default=default, metadata={"help": help, **({"choices": choices} if choices else {})})


@dataclass
class RunArguments(TrainingArguments):
    """Hugging Face's TrainingArguments, as both trainings have them.

    `IDENTITY` names the options that make a run this run: a resumed run must have the same. `WORKS` names
    Trainer's flags that do here what they say; those that a subclass declares work as well. All others are
    refused, with the flag of `USE_INSTEAD` where there is one. `GROUPS` are the headings of --help.
    """

    IDENTITY: ClassVar[str]
    WORKS: ClassVar[str] = (
        "num_train_epochs max_steps learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps optim "
        "optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm seed full_determinism tf32 "
        "torch_compile torch_empty_cache_steps log_level log_level_replica report_to run_name project "
        "logging_steps save_total_limit dataloader_num_workers use_cpu ddp_bucket_cap_mb ddp_timeout"
    )
    GROUPS: ClassVar[dict[str, str]]
    USE_INSTEAD: ClassVar[dict[str, str]] = {
        "fp16": "--precision bf16 (it needs no loss scaling)",
        "bf16": "--precision bf16",
        "gradient_checkpointing": "--activation_checkpointing",
        "resume_from_checkpoint": "the same command, which resumes from the newest whole checkpoint",
        "auto_find_batch_size": "a smaller batch",
        "fsdp": "bash 3.train_fsdp.sh",
        "deepspeed": "bash 3.train_fsdp.sh",
        "overwrite_output_dir": "another --output_dir, or delete that one first",
        "evaluation_strategy": "--eval_strategy",
        "no_cuda": "--use_cpu",
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
        # torch 2.13 has another name for it, accelerate 1.15 this one alone.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        if "activation_checkpointing" not in TrainingArguments.__dataclass_fields__:
            self.gradient_checkpointing = self.activation_checkpointing  # its name before transformers 5.21
        self.settle()
        super().__post_init__()
        asked = [self.report_to] if isinstance(self.report_to, str) else self.report_to
        if absent := set(asked) - set(get_available_reporting_integrations()):
            names = " ".join(sorted(absent))
            raise UserError(f"--report_to {names}: not installed here; python -m pip install {names}")

    def settle(self) -> None:
        """Check and complete what a subclass adds. Raises `UserError` for what cannot be."""

    @classmethod
    def refused(cls) -> set[str]:
        """The names of Trainer's flags that do nothing here, or something else than they say."""
        everything = {field.name for field in fields(TrainingArguments) if field.init}
        return everything - (cls.declared() - set(cls.USE_INSTEAD)) - set(cls.WORKS.split())

    @classmethod
    def declared(cls) -> set[str]:
        """The names of our own flags, and of Trainer's to which we give another default or meaning."""
        ours = {name for parent in cls.__mro__ if issubclass(parent, RunArguments) for name in vars(parent)}
        return ours & {field.name for field in fields(cls)}

    @classmethod
    def instead_of(cls, name: str, value: str, given: dict[str, str]) -> str:
        """What to say of a refused flag with this value; `given` are all flags of the command line."""
        if name in ("bf16", "fp16") and value.lower() in ("false", "0", "no"):
            return "use --precision fp32"
        return f"use {cls.USE_INSTEAD[name]}" if name in cls.USE_INSTEAD else "--help lists what has"

    def was_given(self, name: str) -> bool:
        """Whether a flag has another value than its default."""
        return getattr(self, name) != type(self).__dataclass_fields__[name].default

    def identity(self) -> dict:
        """The options that make this run this run, with their values."""
        return {name: getattr(self, name) for name in self.IDENTITY.split()}
