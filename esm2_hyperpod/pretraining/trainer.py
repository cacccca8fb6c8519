"""Masked-LM pretraining with the Hugging Face Trainer, over packs."""

import itertools
import time
from datetime import timedelta

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import EsmConfig, EsmForMaskedLM

from esm2_hyperpod.console import counted, in_progress
from esm2_hyperpod.esm.fp8 import refuse_slow_fp8, use_fp8
from esm2_hyperpod.esm.model import build_config, check_model_folder, quietly, save_final_model
from esm2_hyperpod.esm.packed import PackedEsmForMaskedLM, masked_lm_loss, use_flash_attention_3
from esm2_hyperpod.pretraining import validation
from esm2_hyperpod.pretraining.arguments import PretrainingArguments
from esm2_hyperpod.pretraining.batches import BatchMaker
from esm2_hyperpod.pretraining.data import Split
from esm2_hyperpod.pretraining.deferred import build_deferred, read_on_first_rank
from esm2_hyperpod.pretraining.epochs import StepSampler
from esm2_hyperpod.pretraining.muon import Muon
from esm2_hyperpod.pretraining.parallel import (
    check_heads,
    choose_replicas_and_checkpointing,
    pack_meshes,
    sharding_mesh,
)
from esm2_hyperpod.pretraining.schedule import SCHEDULES
from esm2_hyperpod.pretraining.sharding import (
    Shards,
    keep_fp32_where_it_matters,
    reduce_each_micro_batch,
    shard,
    starts_lean,
)
from esm2_hyperpod.runs.checkpoints import what_is_wrong
from esm2_hyperpod.runs.curve import plot_training_curve
from esm2_hyperpod.runs.record import FINISHED
from esm2_hyperpod.training.ranks import sum_over_ranks
from esm2_hyperpod.training.throughput import Meter
from esm2_hyperpod.training.trainer import ResumableTrainer


def build_model(args: PretrainingArguments) -> tuple[EsmForMaskedLM, Shards | None]:
    """The model to train: from scratch by size, or from a folder or the hub; fp32 parameters.

    Where it is to be sharded over processes it has no memory yet; what it needs for that comes with it.

    The contact head has no part in masked-LM training. Left trainable it would make DDP search for
    unused parameters and FSDP2 fail to resume for want of its optimizer state.
    """
    model_class = PackedEsmForMaskedLM if args.packing else EsmForMaskedLM
    name, shards = args.model_name_or_path, None
    if name:
        check_model_folder(name)
        config = EsmConfig.from_pretrained(name)
    else:
        config = build_config(args.model_size, args.config_name, **args.shape)
    check_heads(args, config.num_attention_heads)
    replicas, checkpointing = choose_replicas_and_checkpointing(args, config)
    # Under two names: it got the first one with transformers 5.21.
    args.activation_checkpointing = args.gradient_checkpointing = checkpointing

    def load() -> EsmForMaskedLM:
        with quietly():
            return model_class.from_pretrained(name, dtype=torch.float32)

    if starts_lean(args):
        model, weights = build_deferred(lambda: model_class(config))
        if name:
            weights = read_on_first_rank(load, model, args.device)
        shards = Shards(sharding_mesh(args, replicas), weights, args.reshard_after_forward)
    else:
        model = load() if name else model_class(config)
    model.esm.contact_head.requires_grad_(False)
    if args.packing:
        model.compute_dtype = torch.bfloat16 if args.bf16 else torch.float32
        model.parallel = pack_meshes(args, shards.mesh["tp"] if args.tp_size > 1 else None)
        use_flash_attention_3(args.device)
        if args.compile_layers:
            model.compile_layers()
    else:
        model._no_split_modules = ["EsmLayer"]  # FSDP's units; the others it names are ESMFold's
    if args.precision == "fp8":
        use_fp8(model, args.device, args.fp8_recipe)
        refuse_slow_fp8(args.device, model.config.hidden_size, args.fp8_recipe, args.compile_layers)
    return model, shards


class PretrainingTrainer(ResumableTrainer):
    """Trainer over packs, whose losses do not depend on how the global batch is divided.

    Args:
        train_split: what the model is trained on.
        validation_split: what is evaluated on; None for no evaluation.
        frequency_entropy: of the validation residues, in nats; a line in the training curve.
        shards: for a model that has no memory yet.
    """

    def __init__(
        self,
        model: EsmForMaskedLM,
        args: PretrainingArguments,
        train_split: Split,
        validation_split: Split | None,
        frequency_entropy: float | None,
        callbacks: list,
        shards: Shards | None = None,
    ):
        reduce_each_micro_batch(args, model.num_parameters())
        # Trainer wants to be given data sets; it reads them through the loaders below alone.
        super().__init__(
            model, args, train_dataset=train_split, eval_dataset=validation_split, callbacks=callbacks
        )
        keep_fp32_where_it_matters(self.accelerator, model)
        self.model_accepts_loss_kwargs = True  # makes Trainer count the masked tokens of all ranks
        self._shards = shards
        self.loss_factor = args.tp_size
        self._train_split = train_split
        self._validation_split = validation_split
        self._meter = Meter(model.config, args.device)
        self._frequency_entropy = frequency_entropy
        self._last_evaluation: tuple[int, dict[str, float]] = (-1, {})

    # ---- data ----------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """This rank's micro-batches, from `first_step` to the last step of this run."""
        args = self.args
        sampler = StepSampler(
            self._train_split.packs,
            args.packs_per_step,
            args.max_steps,
            range(self.first_step, args.last_step),
            args.data_rank,
            args.data_ranks,
            args.overfit_batches,
        )
        return self._loader(self._train_split.batches, sampler)

    def _loader(self, batches: BatchMaker, sampler) -> DataLoader:
        return DataLoader(
            batches,
            sampler=sampler,
            batch_size=None,  # a key of the sampler is a whole micro-batch
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.device.type == "cuda",
            prefetch_factor=4 if self.args.dataloader_num_workers else None,
        )

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one step, and the number of masked tokens in those of all ranks.

        Instead of Trainer's (5.23), which counts on the GPU and makes the host wait for it in every step. The
        time spent here is recorded as waiting for data, and nothing else is.
        """
        start = time.perf_counter()
        batches = list(itertools.islice(epoch_iterator, num_batches))
        self._meter.add_waiting(time.perf_counter() - start)
        (masked,) = sum_over_ranks([sum(batch["counts"].masked for batch in batches)])
        return batches, masked

    def _prepare_inputs(self, inputs):
        # From pinned memory and without waiting: an ordinary copy stops the host until the GPU is idle.
        # Against transformers 5.23; ends when Trainer copies with non_blocking itself.
        device = self.args.device
        return {
            key: value.to(device, non_blocking=True) if torch.is_tensor(value) else value
            for key, value in inputs.items()
        }

    # ---- training ------------------------------------------------------------------------------

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One micro-batch; what it holds is counted for the throughput figures."""
        counts = inputs.pop("counts")
        self._meter.add(counts)
        self.count_residues(counts.residues)
        if self._shards is not None and self._shards.replicas > 1:
            # What has been summed over the shards of a replica waits for the last micro-batch.
            model.set_requires_all_reduce(self.accelerator.gradient_state.sync_gradients)
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Sum over this micro-batch's masked tokens, over the masked tokens of the whole step.

        DDP and FSDP2 average gradients over the ranks with the same weights; the factor makes that a sum.
        """
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        averaged = self.accelerator.num_processes // self.args.tp_size
        loss = masked_lm_loss(outputs.logits, labels, num_items_in_batch) * averaged
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, model=None):
        """Trainer's. A model without memory is sharded first; a checkpoint or its weights then fill it."""
        if self._shards is not None and self.optimizer is None:
            shard(self.accelerator, self.model, self._shards, fill_in=not self.first_step)
            self._shards.weights = ()  # drawn; what they were drawn from may go
        if self.args.muon:
            layers = self.model.esm.encoder.layer
            _, adamw = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            matrices = [one for one in layers.parameters() if one.ndim == 2]
            dtype = torch.bfloat16 if self.args.bf16 else torch.float32
            self.optimizer_cls_and_kwargs = Muon, {"matrices": matrices, "dtype": dtype, **adamw}
        optimizer = super().create_optimizer(model)
        self._optimized = [list(group["params"]) for group in optimizer.param_groups]
        return optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        """The schedule of `--lr_schedule`."""
        if starts_lean(self.args):
            # accelerate's `prepare` (1.15) finds parameters again by the address of their shards, which empty
            # ones do not have: those of 33 rows on the 34th rank. Ends when it leaves sharded models alone.
            for group, parameters in zip(self.optimizer.param_groups, self._optimized):
                group["params"] = parameters
        if self.args.lr_schedule == "trainer":
            return super().create_scheduler(num_training_steps, optimizer)
        factor, warmup = SCHEDULES[self.args.lr_schedule], self.args.warmup_steps
        floor = self.args.min_lr_ratio
        self.lr_scheduler = LambdaLR(
            optimizer or self.optimizer, lambda step: factor(step, warmup, num_training_steps, floor)
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    # ---- validation ----------------------------------------------------------------------------

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """`validation.validate` of the validation split, logged, with the training curve redrawn."""
        assert self._validation_split is not None and metric_key_prefix == "eval"
        start = time.perf_counter()
        metrics = validation.validate(self.model, self._validation_batches(), self.args.device)
        self._last_evaluation = self.state.global_step, dict(metrics)
        self.log(metrics)
        if self.state.global_step < self.args.last_step:
            self._draw_curve()
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._meter.pause(time.perf_counter() - start)
        return metrics

    def end_run(self, status: str, **facts) -> None:
        """As any run ends; a finished one with the training curve of all of it."""
        if status == FINISHED:
            self._draw_curve()
        super().end_run(status, **facts)

    def _draw_curve(self) -> None:
        if self.is_world_process_zero():
            plot_training_curve(self.output_dir, self._frequency_entropy)

    def evaluate_once(self) -> dict[str, float]:
        """The figures of the current step's evaluation, made now if the schedule did not ask for it."""
        if self._last_evaluation[0] != self.state.global_step:
            self.evaluate()
        return self._last_evaluation[1]

    def _validation_batches(self):
        packs, args = self._validation_split.packs, self.args
        count = packs.packs_per_epoch
        if args.limit_validation_tokens:
            count = min(count, max(1, args.limit_validation_tokens // args.tokens_per_device))
        numbers = validation.share_of_packs(count, args.data_rank, args.data_ranks)
        keys = [(validation.EPOCH, packs[max(number, 0)][1]) for number in numbers]
        loader = counted(
            self._loader(self._validation_split.batches, keys), len(keys), "validating", " packs"
        )
        for number, batch in zip(numbers, loader):
            del batch["counts"]
            yield self._prepare_inputs(batch), number >= 0

    def _determine_best_metric(self, metrics, trial):
        # Also saves what is best, to be exported. Trainer (5.23) does so with save_strategy "best", which
        # saves nothing else. Ends when it does with "steps".
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best and self.args.keeps_best:
            self.control.should_save = True
        return is_best

    def load_best(self, metrics: dict[str, float]) -> tuple[int, dict[str, float]]:
        """Put the weights of the best checkpoint into the model. Called on all ranks, after training.

        They stay as they are if `metrics`, those after the last step, are no worse, or if the best checkpoint
        is corrupt, which is said. Returns the step that they are of, and their evaluation.
        """
        state = self.state
        last, best = state.global_step, state.best_global_step
        if not best or metrics["eval_loss"] <= state.best_metric:
            return last, metrics
        checkpoint = self.output_dir / f"checkpoint-{best}"
        problem = what_is_wrong(checkpoint)
        self.barrier()
        if problem is None:
            state.best_model_checkpoint = str(checkpoint)
            self._load_best_model()
            metrics = validation.validate(self.model, self._validation_batches(), self.args.device)
        if self.is_world_process_zero():
            found = f"validation loss {metrics['eval_loss']:.4f}"
            self.say(
                f"{checkpoint}: {problem}, so the weights are those of the last step, {found}"
                if problem
                else f"the weights of step {best}, the best: {found}"
            )
        return (last if problem else best), metrics

    # ---- logs and checkpoints ------------------------------------------------------------------

    def _save_checkpoint(self, model, trial):
        start = time.perf_counter()
        super()._save_checkpoint(model, trial)
        self._meter.pause(time.perf_counter() - start)

    def save_final_model(self, card: str) -> None:
        """Write `final_model/`, gathered from all ranks; `card` is its README.md. Called on all ranks."""
        with in_progress("gathering the model"):
            weights = self.accelerator.get_state_dict(self.model)
        if self.is_world_process_zero():
            save_final_model(weights, self.model.config, self.output_dir, card)
        self.barrier()

    def log_figures(self) -> dict[str, float]:
        """Throughput over all ranks since the last log."""
        return self._meter.read(self.args.last_step - self.state.global_step)

    def epoch(self) -> float:
        """Passes over the training packs so far."""
        return self._train_split.packs.epochs(self.state.global_step * self.args.packs_per_step)

    def describe(self, line: dict[str, float]) -> str:
        """A log as one plain line."""
        head = f"step {line['step']}/{self.args.last_step}  epoch {line['epoch']:.3f}  "
        if "eval_loss" in line:
            return head + (
                f"validation loss {line['eval_loss']:.4f}  perplexity {line['eval_perplexity']:.3f}  "
                f"accuracy {line['eval_accuracy']:.4f}"
            )
        speed = f"{line['residues_per_second']:,.0f} residues/s"
        if self.args.world_size > 1:
            speed += f" ({line['residues_per_second_per_device']:,.0f} per device)"
        speed += (
            f"  {line['tokens_per_second']:,.0f} tokens/s  {line['sequences_per_second']:,.4g} sequences/s"
        )
        used = f"MFU {line['mfu']:.1%}" if "mfu" in line else f"{line['tflops_per_device']:.3g} TFLOPS"
        memory = f"  peak {line['peak_memory_gb']:.1f} GB" if "peak_memory_gb" in line else ""
        return head + (
            f"loss {line['loss']:.4f}  lr {line['learning_rate']:.2e}  grad norm {line['grad_norm']:.3f}  "
            f"{speed}  {used}{memory}  padding {line['padding_share']:.1%}  "
            f"waiting for data {line['data_wait_seconds']:.2f} s ({line['data_wait_share']:.1%})  "
            f"ETA {timedelta(seconds=round(line['eta_seconds']))}"
        )

    def on_bad_loss(self, step: int) -> str:
        """Write the ids of that step's sequences to a file, and name it."""
        packs = self.args.packs_per_step
        path = self.output_dir / f"sequences_of_step_{step}.txt"
        if self.is_world_process_zero():
            numbers = range((step - 1) * packs, step * packs)
            members = np.concatenate([self._train_split.packs[number][1] for number in numbers])
            path.write_text("\n".join(self._train_split.store.name(index) for index in members) + "\n")
        return f"its sequences are listed in {path}; "
