"""Training the classifier: batches that any number of processes cut alike, the loss, the Trainer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from torch.nn import functional
from torch.utils.data import DataLoader, Sampler

from esm2_hyperpod.errors import UserError
from esm2_hyperpod.hashing import key64, permutation
from esm2_hyperpod.localization.arguments import FinetuningArguments
from esm2_hyperpod.localization.encoding import EncodedProteins, collate
from esm2_hyperpod.localization.metrics import as_rows, decide, probabilities, scores
from esm2_hyperpod.localization.model import restore_adapter
from esm2_hyperpod.localization.prediction import predict_logits
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
        epoch_of_order, order = None, None
        for step in self._steps:
            epoch, number = divmod(step, self._plan.steps_per_epoch)
            if epoch != epoch_of_order:
                epoch_of_order, order = epoch, self._epoch(epoch)
            for micro_batch in order[number][self._rank :: self._processes]:
                yield micro_batch.tolist()

    def _epoch(self, epoch: int) -> np.ndarray:
        """Protein indices int64[steps, micro-batches of all ranks, proteins]."""
        plan = self._plan
        batch = plan.micro_batch * plan.accumulation * self._processes
        order = permutation(len(self._lengths), key64(self._seed, epoch))[: plan.steps_per_epoch * batch]
        pools = np.split(order, range(POOL_OF_BATCHES * batch, len(order), POOL_OF_BATCHES * batch))
        by_length = np.concatenate([pool[np.argsort(self._lengths[pool], kind="stable")] for pool in pools])
        steps = by_length.reshape(plan.steps_per_epoch, -1, plan.micro_batch)
        return steps[permutation(plan.steps_per_epoch, key64(self._seed, epoch, 1))]


class LocalizationTrainer(ResumableTrainer):
    """Trains the classifier over global batches, scores all validation proteins, restores adapters exactly.

    Args:
        train, validation: the encoded proteins.
        plan: how the global batch is cut.
        class_weights: float[labels], or None.
    """

    loss_is_scaled_for_ga = False  # the loss is the mean of a micro-batch, and micro-batches are equal

    def __init__(
        self,
        model: torch.nn.Module,
        args: FinetuningArguments,
        train: EncodedProteins,
        validation: EncodedProteins,
        plan: BatchPlan,
        class_weights: torch.Tensor | None,
        callbacks: list,
    ):
        super().__init__(model, args, train_dataset=train, eval_dataset=validation, callbacks=callbacks)
        # transformers 5.23 takes forward's **kwargs for a loss that divides itself. Not needed once a Trainer
        # with a compute_loss of its own is not asked.
        self.model_accepts_loss_kwargs = False
        self._plan = plan
        self._class_weights = None if class_weights is None else class_weights.to(args.device)

    def get_train_dataloader(self) -> DataLoader:
        """This rank's micro-batches, from `first_step` to the end of the schedule."""
        args = self.args
        batches = MicroBatches(
            [len(ids) for ids in self.train_dataset.ids],
            self._plan,
            args.seed,
            args.max_steps,
            self.first_step,
            args.process_index,
            args.world_size,
        )
        return DataLoader(
            self.train_dataset,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.device.type == "cuda",
        )

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One micro-batch, still on the host; its residues are counted, without <cls> and <eos>."""
        self.count_residues(int(inputs["attention_mask"].sum()) - 2 * len(inputs["attention_mask"]))
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """`classification_loss` of one micro-batch."""
        targets = inputs.pop("labels")
        outputs = model(**inputs)
        loss = classification_loss(outputs.logits, targets, self._class_weights)
        return (loss, outputs) if return_outputs else loss

    def logits(self, proteins: EncodedProteins) -> np.ndarray:
        """What the model gives the proteins, in the precision of training: float32[proteins, labels]."""
        self.model.eval()
        logits = predict_logits(self.model, proteins.ids, self.args.bf16)
        self.model.train()
        return logits

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Loss and scores of the validation proteins, logged."""
        logits, targets = self.logits(self.eval_dataset), self.eval_dataset.targets
        several = targets.ndim == 2
        predicted = decide(probabilities(logits, 1.0, several), several)
        found = scores(as_rows(targets, logits.shape[1]), predicted, several)
        loss = classification_loss(torch.from_numpy(logits), torch.from_numpy(targets), None)
        metrics = {"eval_loss": float(loss), **{f"eval_{name}": value for name, value in found.items()}}
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


def classification_loss(
    logits: torch.Tensor, targets: torch.Tensor, class_weights: torch.Tensor | None
) -> torch.Tensor:
    """Mean loss of a micro-batch, in fp32. Weighted losses are divided by the number of proteins, not by
    the weights that happen to be in the micro-batch, so that the mean over micro-batches is exact.

    Args:
        logits: [proteins, labels].
        targets: int64[proteins] label numbers, or float[proteins, labels] of 0 and 1.
        class_weights: float[labels], of mean 1 over the training proteins, or None.
    """
    logits = logits.float()
    if targets.is_floating_point():
        loss = functional.binary_cross_entropy_with_logits(logits, targets, class_weights, reduction="none")
        return loss.mean()
    return functional.cross_entropy(logits, targets, class_weights, reduction="none").mean()


def balanced_weights(targets: np.ndarray) -> torch.Tensor:
    """Weight of each label, inverse to its frequency, scaled to mean 1 over the proteins: float32[labels]."""
    counts = targets.sum(axis=0) if targets.ndim == 2 else np.bincount(targets)
    weights = counts.sum() / (len(counts) * np.maximum(counts, 1))
    return torch.tensor(weights, dtype=torch.float32)
