"""Training: batches that any number of processes cut alike, the loss of a whole step, the Trainer."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from torch.utils.data import DataLoader, Sampler

from esm2_hyperpod.console import in_progress
from esm2_hyperpod.errors import UserError
from esm2_hyperpod.hashing import key64, permutation
from esm2_hyperpod.localization.arguments import FinetuningArguments
from esm2_hyperpod.localization.encoding import Encoded, collate
from esm2_hyperpod.localization.model import restore_adapter
from esm2_hyperpod.localization.prediction import predict_logits
from esm2_hyperpod.localization.settings import Settings
from esm2_hyperpod.localization.tasks import task_of
from esm2_hyperpod.training.trainer import ResumableTrainer

POOL_OF_BATCHES = 8
"""Global batches that are sorted by length together: tight batches, yet other company every epoch."""


@dataclass(frozen=True)
class BatchPlan:
    """How training is cut: proteins of a micro-batch, micro-batches of one process a step, steps an epoch."""

    micro_batch: int
    accumulation: int
    steps_per_epoch: int


def plan_batches(proteins: int, global_batch_size: int, most_per_device: int, processes: int) -> BatchPlan:
    """The largest equal micro-batches of at most `most_per_device` that make up the global batch.

    Raises `UserError` if the processes cannot share it equally, or the proteins do not fill it once.
    """
    if global_batch_size < 1 or global_batch_size % processes:
        raise UserError(
            f"--global_batch_size {global_batch_size}: does not divide over {processes} processes; "
            f"the next that does: {(global_batch_size // processes + 1) * processes}"
        )
    if proteins < global_batch_size:
        raise UserError(
            f"--global_batch_size {global_batch_size}: larger than the {proteins} training proteins"
        )
    share = global_batch_size // processes
    size = max(size for size in range(1, min(share, most_per_device) + 1) if share % size == 0)
    return BatchPlan(size, share // size, proteins // global_batch_size)


class MicroBatches(Sampler[list[int]]):
    """One rank's micro-batches of a range of optimizer steps, as lists of protein indices.

    Which proteins make up a step is a pure function of (seed, step), whatever the number of processes,
    and resuming is starting at another step. Proteins of like length share a step. The remainder of an
    epoch that fills no batch sits out, another one each time.

    Args:
        lengths: of the training proteins, in tokens.
        total_steps: length of the schedule; Trainer derives the number of steps from `len`.
        first_step: where this start of the run begins.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        plan: BatchPlan,
        seed: int,
        total_steps: int,
        first_step: int,
        rank: int,
        processes: int,
    ):
        self._lengths, self._plan, self._seed = np.asarray(lengths), plan, seed
        self._steps = range(first_step, total_steps)
        self._total_steps, self._rank, self._processes = total_steps, rank, processes

    def __len__(self) -> int:
        return self._total_steps * self._plan.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps:
            for micro_batch in self.step(step)[self._rank :: self._processes]:
                yield micro_batch.tolist()

    def step(self, step: int) -> np.ndarray:
        """Protein indices int64[micro-batches of all ranks, proteins] of one optimizer step."""
        epoch, number = divmod(step, self._plan.steps_per_epoch)
        return self._epoch(epoch)[number]

    @functools.lru_cache(maxsize=2)  # noqa: B019 - one sampler a run
    def _epoch(self, epoch: int) -> np.ndarray:
        """Protein indices int64[steps, micro-batches of all ranks, proteins]."""
        plan = self._plan
        batch = plan.micro_batch * plan.accumulation * self._processes
        order = permutation(len(self._lengths), key64(self._seed, epoch))[: plan.steps_per_epoch * batch]
        pools = np.split(order, range(POOL_OF_BATCHES * batch, len(order), POOL_OF_BATCHES * batch))
        by_length = np.concatenate([pool[np.argsort(self._lengths[pool], kind="stable")] for pool in pools])
        steps = by_length.reshape(plan.steps_per_epoch, -1, plan.micro_batch)
        return steps[permutation(plan.steps_per_epoch, key64(self._seed, epoch, 1))]


class FinetuningTrainer(ResumableTrainer):
    """Trains over global batches, scores all validation proteins, restores adapters exactly.

    Args:
        settings: of the model; its task judges it.
        train, validation: the encoded proteins.
        plan: how the global batch is cut.
        class_weights: float[labels], or None.
    """

    loss_is_scaled_for_ga = False  # Trainer takes the mean over micro-batches, see `compute_loss`

    def __init__(
        self,
        model: torch.nn.Module,
        args: FinetuningArguments,
        settings: Settings,
        train: Encoded,
        validation: Encoded,
        plan: BatchPlan,
        class_weights: torch.Tensor | None,
        callbacks: list,
    ):
        super().__init__(model, args, train_dataset=train, eval_dataset=validation, callbacks=callbacks)
        # transformers 5.23 takes forward's **kwargs for a loss that divides itself. Not needed once a Trainer
        # with a compute_loss of its own is not asked.
        self.model_accepts_loss_kwargs = False
        self._plan, self._settings, self._task = plan, settings, task_of(settings)
        self._counted = self._task.counted(train)
        self._class_weights = None if class_weights is None else class_weights.to(args.device)

    @functools.cached_property
    def _batches(self) -> MicroBatches:
        args = self.args
        return MicroBatches(
            [len(ids) for ids in self.train_dataset.ids],
            self._plan,
            args.seed,
            args.max_steps,
            self.first_step,
            args.process_index,
            args.world_size,
        )

    def get_train_dataloader(self) -> DataLoader:
        """This rank's micro-batches, from `first_step` to the end of the schedule."""
        args = self.args
        return DataLoader(
            self.train_dataset,
            batch_sampler=self._batches,
            collate_fn=collate,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.device.type == "cuda",
        )

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One micro-batch, still on the host; its residues are counted, without <cls> and <eos>."""
        self.count_residues(int(inputs["attention_mask"].sum()) - 2 * len(inputs["attention_mask"]))
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """A micro-batch's share of the step's loss, which is the mean over all that counts in the step.

        Trainer then takes the mean over micro-batches, and DDP over processes: the factor undoes both.
        """
        targets = inputs.pop("labels")
        outputs = model(**inputs)
        counted = max(int(self._counted[self._batches.step(self.state.global_step)].sum()), 1)
        factor = self._plan.accumulation * self.args.world_size / counted
        loss = self._task.loss(outputs.logits, targets, self._class_weights) * factor
        return (loss, outputs) if return_outputs else loss

    def logits(self, proteins: Encoded) -> np.ndarray:
        """What the model gives the proteins, in the precision of training, as the task has it."""
        self.model.eval()
        with in_progress(f"scoring {len(proteins):,} proteins"):
            logits = predict_logits(self.model, proteins.ids, self.args.bf16)
        self.model.train()
        return logits

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Loss and scores of the validation proteins, logged."""
        proteins, task = self.eval_dataset, self._task
        logits = self.logits(proteins)
        targets = torch.from_numpy(task.flat_targets(proteins))
        loss = float(task.loss(torch.from_numpy(logits), targets, None)) / int(task.counted(proteins).sum())
        found = task.figures(logits, proteins, self._settings)
        metrics = {"eval_loss": loss, **{f"eval_{name}": value for name, value in found.items()}}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def epoch(self) -> float:
        """Passes over the training proteins so far."""
        return self.state.global_step / self._plan.steps_per_epoch

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        # transformers 5.23 calls peft's load_adapter here, which makes all of modules_to_save trainable, also
        # what `choose_trainable` froze. Not needed once load_adapter keeps requires_grad.
        if isinstance(self.model, PeftModel):
            restore_adapter(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self):
        # transformers 5.23 calls load_adapter here, too. Goes with the override above.
        if self.is_world_process_zero():
            self.say(f"the best evaluation was that of step {self.state.best_global_step}")
        self._load_from_checkpoint(self.state.best_model_checkpoint)


def balanced_weights(targets: np.ndarray) -> torch.Tensor:
    """Weight of each label, inverse to its frequency, of mean 1 over what is labelled: float32[labels].

    Args:
        targets: int64[n] label numbers, negative where there is none, or 0/1 float[n, labels].
    """
    counts = targets.sum(axis=0) if targets.ndim == 2 else np.bincount(targets[targets >= 0])
    weights = counts.sum() / (len(counts) * np.maximum(counts, 1))
    return torch.tensor(weights, dtype=torch.float32)
