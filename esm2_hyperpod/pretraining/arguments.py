"""The command line of `train.py`: Hugging Face's TrainingArguments with ESM-2's recipe as defaults."""

import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from transformers import TrainingArguments

from esm2_hyperpod.errors import UserError
from esm2_hyperpod.pretraining.masking import REPLACEMENTS
from esm2_hyperpod.pretraining.schedule import SCHEDULES
from esm2_hyperpod.sizes import SHAPE, size_name
from esm2_hyperpod.training.arguments import RunArguments, option

ESM2_WARMUP_STEPS = 2_000


@dataclass
class PretrainingArguments(RunArguments):
    """Recipe defaults: Lin et al. 2023, supplementary A.2.4. Batches are counted in tokens."""

    IDENTITY = (
        "model_size model_name_or_path config_name num_hidden_layers hidden_size num_attention_heads "
        "intermediate_size seed max_seq_length tokens_per_device global_batch_tokens packing "
        "mlm_probability mask_replace lr_schedule max_steps learning_rate warmup_steps adam_beta1 "
        "adam_beta2 adam_epsilon weight_decay max_grad_norm muon "
        "overfit_batches limit_validation_tokens min_lr_ratio final_model"
    )
    GROUPS: ClassVar = {
        "data and output": "dataset_dir output_dir local_disk",
        "model": "model_size model_name_or_path config_name num_hidden_layers hidden_size "
        "num_attention_heads intermediate_size",
        "batches": "tokens_per_device global_batch_tokens max_seq_length packing mlm_probability "
        "mask_replace",
        "length": "max_steps num_train_epochs stop_after_steps overfit_batches early_stopping_patience "
        "max_minutes",
        "recipe": "learning_rate lr_schedule min_lr_ratio warmup_steps weight_decay optim adam_beta2",
        "speed and memory": "precision fp8_recipe torch_compile activation_checkpointing "
        "dataloader_num_workers",
        "division over devices": "dp_replicate_size reshard_after_forward tp_size cp_size",
        "saving, evaluation, logs": "save_steps save_minutes save_total_limit eval_steps eval_strategy "
        "limit_validation_tokens final_model "
        "logging_steps report_to dollars_per_node_hour step_timeout",
    }
    USE_INSTEAD = RunArguments.USE_INSTEAD | {
        "per_device_train_batch_size": "--tokens_per_device",
        "per_device_eval_batch_size": "--tokens_per_device, also for evaluation",
        "gradient_accumulation_steps": "--global_batch_tokens",
    }

    dataset_dir: str | None = option(None, "Folder that 1.tokenize_uniref_csv.py wrote (processed/arrow).")
    local_disk: str = option(
        "auto",
        "Copy the dataset to this folder of each node; auto: /opt/dlami/nvme where mounted; or none.",
    )
    output_dir: str | None = option(None, "Where checkpoints, metrics and the final model go.")
    model_size: str = option("8M", "Train from scratch: tiny, 8M, 35M, 150M, 650M, 3B or 15B.")
    model_name_or_path: str | None = option(
        None, "Start from this folder or hub model instead of from scratch."
    )
    config_name: str | None = option(
        None, "Train this folder's or hub model's architecture from scratch, instead of a --model_size."
    )
    num_hidden_layers: int | None = option(None, "Another number of layers than --model_size has.")
    hidden_size: int | None = option(None, "Another width.")
    num_attention_heads: int | None = option(None, "Another number of attention heads.")
    intermediate_size: int | None = option(
        None, "Another width of the feed-forward; default: 4 x --hidden_size."
    )
    max_seq_length: int = option(
        1024, "Tokens, <cls> and <eos> included; longer sequences are cropped at random."
    )
    tokens_per_device: int = option(
        16_384, "Tokens of one micro-batch, which tp_size x cp_size devices share; a multiple of 64."
    )
    global_batch_tokens: int = option(2_097_152, "Tokens of one optimizer step, over all devices.")
    packing: bool = option(True, "Pack whole sequences; false pads rows of similar length instead.")
    mlm_probability: float = option(0.15, "Share of tokens to be predicted.")
    mask_replace: str = option("all_tokens", "What random replacements are drawn from.", list(REPLACEMENTS))
    precision: str = option(
        "auto",
        "auto is bf16 on GPUs that have it, else fp32; fp8 is for 650M and up on an L4, L40S, H100 or newer.",
        ["auto", "bf16", "fp8", "fp32"],
    )
    fp8_recipe: str = option(
        "tensorwise",
        "FP8 scales: one a tensor, the fastest; or one a row (rowwise), for 3B and up.",
        ["tensorwise", "rowwise"],
    )
    lr_schedule: str = option(
        "esm2",
        "esm2, cosine_hold, wsd (constant, decays in the last fifth), or trainer (then --lr_scheduler_type).",
        [*SCHEDULES, "trainer"],
    )
    min_lr_ratio: float = option(0.1, "Share of the peak learning rate at which the schedule ends.")
    torch_compile: bool | None = option(
        None, "Compile the layers; default: on GPUs, where there is a C compiler and sequences are packed."
    )
    activation_checkpointing: bool | None = option(
        None, "Recompute activations: less memory, more time; default: on GPUs where they do not all fit."
    )
    dp_replicate_size: str = option(
        "auto",
        "FSDP2: copies of the model, each sharded over its own devices; auto: one a node, if that holds it.",
    )
    reshard_after_forward: bool | None = option(
        None,
        "FSDP2: false keeps gathered weights for the backward pass; default: as accelerate_fsdp.yaml says.",
    )
    tp_size: int = option(1, "FSDP2: devices that divide each layer's weights; for the largest models.")
    cp_size: int = option(1, "Devices that divide a pack's tokens; for sequences too long for one.")
    overfit_batches: int | None = option(
        None,
        "Train on the batches of the first so many steps alone: the loss must go to zero.",
    )
    limit_validation_tokens: int | None = option(None, "Validate on about so many tokens; default: all.")
    final_model: str | None = option(
        None,
        "Weights in final_model/: last, or best by validation loss; default: last, best with early stopping.",
        ["last", "best"],
    )
    stop_after_steps: int | None = option(None, "Stop here; the schedule still ends at --max_steps.")
    early_stopping_patience: int | None = option(
        None, "Stop after so many evaluations without a better validation loss."
    )

    max_steps: int = option(500_000, "Optimizer steps of the schedule.")
    num_train_epochs: float | None = option(None, "Passes over the data, instead of --max_steps.")
    learning_rate: float = option(4e-4, "Peak learning rate (ESM-2 15B: 1.6e-4).")
    warmup_steps: float | None = option(None, "Default: 2,000, or a tenth of --max_steps if that is less.")
    optim: str = option(
        TrainingArguments.default_optim,
        "muon is for the layers' matrices, AdamW for the rest; or Trainer's.",
    )
    adam_beta2: float = option(0.98, "Adam's second beta.")
    save_steps: float = option(500, "Steps between checkpoints.")
    save_total_limit: int | None = option(3, "Checkpoints to keep, the best one not counted.")
    eval_steps: float | None = option(500, "Steps between evaluations.")
    eval_strategy: str = option("steps", "steps, or no.", ["steps", "no"])
    per_device_train_batch_size: int = option(1, "Not used: see --tokens_per_device.")
    dataloader_num_workers: int | None = option(
        None, "Processes that make batches; default: 2 a GPU, else 0."
    )
    report_to: str = option("tensorboard", "tensorboard, wandb or mlflow (if installed), all or none.")

    @classmethod
    def instead_of(cls, name: str, value: str, given: dict[str, str]) -> str:
        """As the base's, with the very flag for batches that are counted in sequences."""
        try:
            length = int(given.get("max_seq_length") or cls.max_seq_length)
            rows = int(given.get("per_device_train_batch_size") or 0)
            tokens = math.ceil(rows * length / 64) * 64
            tokens = tokens or int(given.get("tokens_per_device") or cls.tokens_per_device)
            if name == "per_device_train_batch_size" and rows > 0:
                return f"{rows} sequences of up to {length:,} tokens are --tokens_per_device {tokens}"
            if name == "gradient_accumulation_steps" and int(value) > 0:
                processes = int(os.environ.get("WORLD_SIZE", "1"))
                return (
                    f"{value} micro-batches of {tokens:,} tokens on {processes} process(es) are "
                    f"--global_batch_tokens {int(value) * tokens * processes}"
                )
        except ValueError:
            pass  # another value is no number, which is not the question here
        return super().instead_of(name, value, given)

    def settle(self) -> None:
        """Check the flags, and fill in what depends on the machine."""
        if not self.dataset_dir or not self.output_dir:
            raise UserError("--dataset_dir and --output_dir are needed; see: python train.py --help")
        self.dataset_dir = str(Path(self.dataset_dir).expanduser())  # as Trainer does --output_dir
        if not self.model_name_or_path:
            self.model_size = size_name(self.model_size)
        if self.num_train_epochs is None:
            self.num_train_epochs = 3.0
        elif self.max_steps <= 0 or not self.was_given("max_steps"):
            self.max_steps = -1
        else:
            raise UserError(
                f"--max_steps {self.max_steps} and --num_train_epochs {self.num_train_epochs:g}: give one"
            )
        if self.tokens_per_device % 64 or self.tokens_per_device < 64:
            raise UserError(f"--tokens_per_device {self.tokens_per_device}: must be a multiple of 64")
        if not 3 <= self.max_seq_length <= self.tokens_per_device:
            raise UserError(
                f"--max_seq_length {self.max_seq_length}: must lie between 3 and "
                f"--tokens_per_device {self.tokens_per_device}, because sequences are never split"
            )
        self.muon = self.optim == "muon" or None  # None: what the records of older runs have
        if self.muon:
            self.optim = PretrainingArguments.__dataclass_fields__["optim"].default
        self._settle_parallel()
        if self.model_name_or_path:
            for name in ("config_name", *self.shape):
                if self.was_given(name):
                    raise UserError(
                        f"--{name}: --model_name_or_path {self.model_name_or_path} has its own architecture; "
                        "leave out one of them"
                    )
        for name in ("overfit_batches", "limit_validation_tokens"):
            if self.was_given(name) and getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: must be a number from 1 up")
        if self.was_given("min_lr_ratio") and self.lr_schedule == "trainer":
            raise UserError(
                f"--min_lr_ratio {self.min_lr_ratio:g}: does nothing with --lr_schedule trainer; use "
                "--lr_scheduler_type cosine_with_min_lr and --lr_scheduler_kwargs"
            )
        if not 0 <= self.min_lr_ratio <= 1:
            raise UserError(f"--min_lr_ratio {self.min_lr_ratio:g}: must lie between 0 and 1")
        if not 0 < self.mlm_probability < 1:
            raise UserError(f"--mlm_probability {self.mlm_probability}: must lie between 0 and 1")
        if self.precision == "fp8" and not self.packing:
            raise UserError(
                "--precision fp8 needs packs, whose sizes are multiples of 16; leave out --packing false"
            )
        if self.was_given("fp8_recipe") and self.precision != "fp8":
            raise UserError(f"--fp8_recipe {self.fp8_recipe}: does nothing without --precision fp8")
        on_gpu = torch.cuda.is_available() and not self.use_cpu
        compiler = any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))
        if self.torch_compile and not self.packing:
            raise UserError(
                "--torch_compile needs packs, whose shape never changes: leave out --packing false"
            )
        if self.torch_compile and not compiler:
            raise UserError("--torch_compile needs a C++ compiler: sudo apt-get install -y g++")
        default = on_gpu and self.packing and compiler
        self.compile_layers = default if self.torch_compile is None else self.torch_compile
        self.torch_compile = False  # Trainer's own compiles the whole model; see `compile_layers`
        self.checkpoints_by_memory = self.activation_checkpointing is None
        self.activation_checkpointing = bool(self.activation_checkpointing)
        if self.dataloader_num_workers is None:
            self.dataloader_num_workers = 2 if on_gpu else 0
        if on_gpu and self.precision != "fp32":
            torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in fp32
        if self.early_stopping_patience is not None or self.keeps_best:
            self.metric_for_best_model, self.greater_is_better = "eval_loss", False
            if self.eval_strategy == "no":
                flag = "--final_model best" if self.final_model == "best" else "--early_stopping_patience"
                raise UserError(f"{flag}: needs evaluations; leave out --eval_strategy no")
        self.logging_first_step = True
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(Path(self.output_dir) / "tensorboard"))
        self._default_warmup = self.warmup_steps is None
        if self._default_warmup:
            self.warmup_steps = 0

    def launched_with(self) -> tuple[int, bool]:
        """The number of processes, and whether FSDP2 divides the model, as the launcher says.

        `world_size` is not known yet where flags are checked.
        """
        is_fsdp = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
        return int(os.environ.get("WORLD_SIZE", "1")), is_fsdp

    def _settle_parallel(self) -> None:
        world, is_fsdp = self.launched_with()
        sizes = {name: getattr(self, name) for name in ("tp_size", "cp_size")}
        if self.dp_replicate_size != "auto":
            sizes["dp_replicate_size"] = (
                int(self.dp_replicate_size) if self.dp_replicate_size.isdigit() else 0
            )
        asked = " ".join(f"--{name} {getattr(self, name)}" for name in sizes if self.was_given(name))
        if min(sizes.values()) < 1:
            raise UserError(f"{asked}: must be numbers from 1 up (--dp_replicate_size: or auto)")
        product = math.prod(sizes.values())
        if world % product:
            fitting = ", ".join(str(number) for number in range(1, world + 1) if world % number == 0)
            raise UserError(
                f"{asked}: {world} process(es) do not divide by {product}; products that fit: {fitting}"
            )
        for name in ("tp_size", "dp_replicate_size", "reshard_after_forward"):
            if self.was_given(name) and not is_fsdp:
                raise UserError(f"--{name} {getattr(self, name)}: is of FSDP2; use bash 3.train_fsdp.sh")
        if self.parts > 1 and not self.packing:
            raise UserError(f"{asked}: needs packs; leave out --packing false")
        if self.tp_size > 1 and self.precision == "fp8":
            raise UserError(f"{asked}: not with --precision fp8; use bf16, or --cp_size")
        if self.tp_size > 1 and self.muon:
            raise UserError(f"{asked}: not with --optim muon, which wants whole rows")
        if os.environ.get("FSDP_OFFLOAD_PARAMS", "").lower() == "true":
            for name in ("tp_size", "cp_size", "dp_replicate_size", "reshard_after_forward"):
                if self.was_given(name):
                    raise UserError(
                        f"--{name} {getattr(self, name)}: not with fsdp_offload_params in "
                        "accelerate_fsdp.yaml, under which accelerate shards by itself"
                    )
        if self.tokens_per_device % self.parts:
            raise UserError(
                f"--tokens_per_device {self.tokens_per_device}: must divide by {self.parts}, the devices "
                f"that share it ({asked})"
            )

    @property
    def keeps_best(self) -> bool:
        """Whether the weights of the best evaluation are to end in final_model/."""
        stops_early = self.early_stopping_patience is not None
        return self.final_model == "best" or (self.final_model is None and stops_early)

    @property
    def shape(self) -> dict[str, int | None]:
        """The numbers in which the model is to differ from its size."""
        return {name: getattr(self, name) for name in SHAPE}

    @property
    def parts(self) -> int:
        """Processes that share a pack."""
        return self.tp_size * self.cp_size

    @property
    def data_ranks(self) -> int:
        """Groups of processes that each have packs of their own."""
        return self.world_size // self.parts

    @property
    def data_rank(self) -> int:
        """Which of these groups this process belongs to."""
        return self.process_index // self.parts

    def set_steps(self, packs_per_epoch: int) -> None:
        """Settle what depends on the number of processes and on the data.

        Gradient accumulation such that all processes together take `global_batch_tokens` a step;
        the number of steps where epochs were asked for; the default warm-up. Raises `UserError`, with
        the nearest sizes that divide, where the batch does not.
        """
        share = self.tokens_per_device * self.data_ranks
        if self.global_batch_tokens % share or self.global_batch_tokens < share:
            below = self.global_batch_tokens // share * share
            sizes = " or ".join(f"{size:,}" for size in (below, below + share) if size)
            raise UserError(
                f"--global_batch_tokens {self.global_batch_tokens:,} does not divide over {self.data_ranks} "
                f"process(es) of --tokens_per_device {self.tokens_per_device:,}; the nearest that do: {sizes}"
            )
        self.gradient_accumulation_steps = self.global_batch_tokens // share
        if self.max_steps <= 0:
            self.max_steps = math.ceil(self.num_train_epochs * packs_per_epoch / self.packs_per_step)
        if self._default_warmup:
            self.warmup_steps = min(ESM2_WARMUP_STEPS, self.max_steps // 10)

    @property
    def packs_per_step(self) -> int:
        """Micro-batches of one optimizer step, over all processes."""
        return self.global_batch_tokens // self.tokens_per_device

    @property
    def last_step(self) -> int:
        """The step after which this run is complete."""
        return min(self.max_steps, self.stop_after_steps or self.max_steps)
