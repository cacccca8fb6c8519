"""The command line of `finetune_localization.py`: Hugging Face's TrainingArguments and what is ours."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from esm2_hyperpod.errors import UserError
from esm2_hyperpod.localization.settings import (
    BEST,
    CROPS,
    LESS_IS_BETTER,
    LORA_TARGETS,
    NO_POOLING,
    POOLINGS,
    TASKS,
    TUNINGS,
    Settings,
    is_tuned,
    read_settings,
)
from esm2_hyperpod.proteins.kinds import PLACES, Letters, Numbers, Places
from esm2_hyperpod.proteins.splits import METHODS
from esm2_hyperpod.training.arguments import RunArguments, option

NOT_FOR = {
    "localization": ("unlabelled",),
    "residue": ("pooling", "crop", "explain"),
    "regression": ("class_weights", "explain", "unlabelled"),
}


@dataclass
class FinetuningArguments(RunArguments):
    """Batches are counted over all processes; evaluation and checkpoints come after every epoch."""

    IDENTITY = (
        "task model_name_or_path seed max_seq_length crop tuning pooling lora_rank lora_alpha lora_dropout "
        "lora_targets class_weights global_batch_size early_stopping_patience num_train_epochs max_steps "
        "learning_rate lr_scheduler_type warmup_steps weight_decay max_grad_norm metric_for_best_model"
    )
    WORKS = f"{RunArguments.WORKS} do_predict"
    GROUPS: ClassVar = {
        "what is done": "task train_file validation_file test_file dataset_name unlabelled split "
        "predict_file explain estimate_memory merge_adapter",
        "model and output": "model_name_or_path output_dir tuning pooling max_seq_length crop",
        "LoRA": "lora_rank lora_alpha lora_dropout lora_targets",
        "batches and recipe": "global_batch_size per_device_train_batch_size num_train_epochs learning_rate "
        "lr_scheduler_type warmup_steps weight_decay class_weights metric_for_best_model "
        "early_stopping_patience",
        "speed and memory": "precision activation_checkpointing",
        "saving, stopping, logs": "save_total_limit save_minutes max_minutes logging_steps report_to "
        "dollars_per_node_hour step_timeout",
    }
    USE_INSTEAD = RunArguments.USE_INSTEAD | {
        "gradient_accumulation_steps": "--global_batch_size",
        "do_train": "--train_file",
        "do_eval": "--validation_file",
    }

    output_dir: str | None = option(None, "Where adapter, metrics, pictures and predictions go.")
    model_name_or_path: str | None = option(
        None, "Base: a final_model/ folder or facebook/esm2_*. An adapter/ folder is continued or used."
    )
    task: str = option(
        TASKS[0], "localization: places of a protein; residue: a label each; regression: a number.", TASKS
    )
    train_file: str | None = option(
        None,
        "Labelled proteins: FASTA (>ID LABEL or >ID NUMBER; for residues three lines: >ID, sequence, "
        "labels), or CSV or Parquet with sequence and label, labels or target.",
    )
    validation_file: str | None = option(None, "As --train_file; split off where absent.")
    test_file: str | None = option(None, "As --train_file; split off where absent.")
    dataset_name: str | None = option(
        None, "A hub dataset with columns sequence (or seq) and label, labels or target, instead of files."
    )
    unlabelled: str = option("-", "The letter, or letters, of residues that have no label.")
    split: str = option("similarity", "How absent splits are split off: similarity or random.", METHODS)
    predict_file: str | None = option(None, "FASTA (.gz too), predicted into predictions.csv.")
    explain: int = option(0, "With --predict_file: residue attributions of its first so many proteins.")
    estimate_memory: bool = option(False, "Print the memory that training takes on a 24 GB GPU, and end.")
    merge_adapter: bool = option(False, "Also write merged/, a plain model that needs no peft.")
    max_seq_length: int = option(1024, "Tokens, <cls> and <eos> included; longer proteins are cropped.")
    crop: str = option("ends", "What a long protein keeps: both ends, its start or its end.", CROPS)

    tuning: str = option("qlora", "qlora: 4-bit base and LoRA; lora: fp32 base; head: frozen; full.", TUNINGS)
    pooling: str = option("attention", "What the head sees: <cls>, the mean, or learned attention.", POOLINGS)
    lora_rank: int = option(8, "Rank of the LoRA matrices.")
    lora_alpha: int = option(16, "LoRA scale, divided by the rank.")
    lora_dropout: float = option(0.0, "Above 0, results depend on the number of processes.")
    lora_targets: str = option(
        "all", "Linear layers that LoRA adapts: all, or attention.", list(LORA_TARGETS)
    )
    class_weights: str = option("none", "balanced: weigh labels by inverse frequency.", ["none", "balanced"])
    global_batch_size: int = option(16, "Proteins of one optimizer step, over all processes.")
    early_stopping_patience: int = option(3, "Stop after so many epochs without a better validation score.")

    per_device_train_batch_size: int = option(8, "Most proteins of one micro-batch.")
    num_train_epochs: float = option(10, "Passes over the training proteins, at most.")
    learning_rate: float = option(1e-3, "Peak learning rate.")
    lr_scheduler_type: str = option("cosine", "As the Trainer's.")
    warmup_steps: float = option(0.1, "Steps; below 1, a share of all.")
    metric_for_best_model: str | None = option(
        None,
        "Validation score that picks the checkpoint: mcc (default), macro_f1, accuracy or loss; of numbers "
        "spearman (default), pearson, rmse or loss.",
    )
    save_total_limit: int | None = option(2, "Checkpoints to keep, the best one not counted.")
    report_to: str = option("none", "tensorboard, wandb or mlflow (if installed), all or none.")

    @classmethod
    def instead_of(cls, name: str, value: str, given: dict[str, str]) -> str:
        """As the base's, with the very flag for gradient accumulation."""
        rows = given.get("per_device_train_batch_size") or str(cls.per_device_train_batch_size)
        if name == "gradient_accumulation_steps" and value.isdecimal() and rows.isdecimal():
            processes = int(os.environ.get("WORLD_SIZE", "1"))
            return (
                f"{value} micro-batches of {rows} proteins on {processes} process(es) are "
                f"--global_batch_size {int(value) * int(rows) * processes}"
            )
        return super().instead_of(name, value, given)

    def settle(self) -> None:
        """Check the flags, and fill in what follows from them."""
        if not self.estimate_memory:
            self._refuse_what_is_no_task()
        if not self.model_name_or_path:
            raise UserError("--model_name_or_path is needed; see: python finetune_localization.py --help")
        self._settle_task()
        self.do_predict = self.predict_file is not None
        if self.max_seq_length < 4:
            raise UserError(f"--max_seq_length {self.max_seq_length}: must be at least 4")
        for name in ("learning_rate", "per_device_train_batch_size", "num_train_epochs"):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name} {getattr(self, name)}: must be above 0")
        if self.lora_rank < 1 or not 0 <= self.lora_dropout < 1:
            raise UserError("--lora_rank must be at least 1 and --lora_dropout in [0, 1)")
        self.greater_is_better = self.metric_for_best_model not in LESS_IS_BETTER
        self.metric_for_best_model = f"eval_{self.metric_for_best_model}"
        self.eval_strategy = self.save_strategy = "steps"
        self.load_best_model_at_end = True
        self.eval_steps = self.save_steps  # Trainer compares them before `set_steps` knows the data

    def _settle_task(self) -> None:
        """Take the task of a tuned model, and what follows from the task; refuse what does not go with it."""
        if is_tuned(self.model_name_or_path):
            task = read_settings(Path(self.model_name_or_path)).task
            if self.was_given("task") and self.task != task:
                raise UserError(
                    f"--task {self.task}: {self.model_name_or_path} was tuned for --task {task}; "
                    "give a model of this task"
                )
            self.task = task
        for name in NOT_FOR[self.task]:
            if self.was_given(name):
                raise UserError(f"--{name} has no meaning with --task {self.task}; leave it out")
        if not self.unlabelled:
            raise UserError("--unlabelled '': give a letter that no label is, such as -")
        if self.task == "residue":
            self.pooling = NO_POOLING
        best = BEST[self.task]
        if self.metric_for_best_model is None:
            self.metric_for_best_model = best[0]
        if self.metric_for_best_model not in best:
            raise UserError(
                f"--metric_for_best_model {self.metric_for_best_model}: with --task {self.task} "
                f"one of {', '.join(best)}"
            )

    @property
    def kind(self) -> Places:
        """What the proteins are labelled with."""
        if self.task == "residue":
            return Letters(self.unlabelled)
        return Numbers() if self.task == "regression" else PLACES

    def set_steps(self, steps_per_epoch: int, accumulation: int) -> None:
        """Settle what depends on the data: the schedule's length; evaluation and checkpoint every epoch."""
        self.gradient_accumulation_steps = accumulation
        if self.max_steps <= 0:
            self.max_steps = max(1, round(self.num_train_epochs * steps_per_epoch))
        self.eval_steps = self.save_steps = min(steps_per_epoch, self.max_steps)

    def continue_adapter(self, adapter: Settings) -> None:
        """Take what an adapter to be continued fixes. Raises `UserError` if other was asked for."""
        fixed = {"tuning": adapter.tuning, "pooling": adapter.pooling}
        for name in ("tuning", "pooling", "lora_rank", "lora_alpha", "lora_dropout", "lora_targets"):
            if self.was_given(name) and fixed.get(name) != getattr(self, name):
                raise UserError(
                    f"--{name} {getattr(self, name)}: {self.model_name_or_path} is continued as it is "
                    f"({adapter.tuning}, pooling {adapter.pooling}); start from {adapter.base} instead"
                )
        self.tuning, self.pooling = adapter.tuning, adapter.pooling

    def data_identity(self) -> dict:
        """The options that the splits depend on."""
        names = "task train_file validation_file test_file dataset_name unlabelled split seed"
        return {name: getattr(self, name) for name in names.split()}

    def _refuse_what_is_no_task(self) -> None:
        if not self.output_dir or not self.model_name_or_path:
            raise UserError(
                "--output_dir and --model_name_or_path are needed; "
                "see: python finetune_localization.py --help"
            )
        if self.train_file and self.dataset_name:
            raise UserError("--train_file and --dataset_name: give one of them")
        if self.do_predict and not self.predict_file:
            raise UserError("--do_predict: give the proteins with --predict_file FASTA")
        if self.explain and not self.predict_file:
            raise UserError("--explain: give the proteins with --predict_file FASTA")
        if self.explain < 0:
            raise UserError(f"--explain {self.explain}: must be a number of proteins, 0 or more")
        if not (self.train_file or self.dataset_name or self.predict_file or self.merge_adapter):
            raise UserError(
                "nothing to do: give --train_file (labelled proteins) or --predict_file (proteins to predict)"
            )
        if not (self.train_file or self.dataset_name):
            for name in {**self.identity(), **self.data_identity()}:
                if name not in ("task", "model_name_or_path", "seed") and self.was_given(name):
                    raise UserError(
                        f"--{name} is for training, which needs --train_file: a tuned model predicts as it "
                        "was trained"
                    )
