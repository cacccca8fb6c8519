"""Validation loss, perplexity and accuracy that do not depend on how the work was divided."""

import math

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy

from esm2_hyperpod.alphabet import AMINO_ACIDS
from esm2_hyperpod.pretraining.masking import IGNORED

# Validation crops and masks never change, so that losses of different runs, seeds and epochs compare.
SEED, EPOCH = 0, 0


def share_of_packs(packs: int, rank: int, ranks: int) -> list[int]:
    """The packs a rank looks at. All ranks get the same number, or a sharded model would wait forever;
    -1 stands for a pack that does not count."""
    rounds = -(-packs // ranks)
    return [number if (number := turn * ranks + rank) < packs else -1 for turn in range(rounds)]


@torch.no_grad()
def validate(model, batches, device: torch.device) -> dict[str, float]:
    """Masked-token cross entropy, its exponential, and the share of masked tokens guessed right.

    Sums over masked tokens of all ranks, divided once: no mean of means.

    Args:
        batches: (batch, counts) pairs; `counts` is False for a pack another rank answers for.

    Returns:
        `eval_loss` (nats), `eval_perplexity`, `eval_accuracy`, `eval_masked_tokens`.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    for batch, counts in batches:
        labels = batch.pop("labels")
        logits = model(**batch).logits.float()
        if counts:
            chosen = labels != IGNORED
            loss = cross_entropy(
                logits.flatten(0, -2), labels.flatten(), reduction="none", ignore_index=IGNORED
            )
            right = (logits.argmax(-1) == labels) & chosen
            sums += torch.stack([loss.double().sum(), right.sum().double(), chosen.sum().double()])
    model.train(was_training)
    if dist.is_initialized():
        dist.all_reduce(sums)
    loss, right, masked = sums.tolist()
    masked = max(masked, 1.0)
    return {
        "eval_loss": loss / masked,
        "eval_perplexity": math.exp(min(loss / masked, 700.0)),
        "eval_accuracy": right / masked,
        "eval_masked_tokens": masked,
    }


def residue_frequency_entropy(train_counts: dict[str, int], validation_counts: dict[str, int]) -> float:
    """Cross entropy, in nats, of guessing every validation residue by the training frequencies.

    The bar a model must beat: it is what a model reaches that has learned frequencies and nothing else.

    Args:
        train_counts, validation_counts: how often each token occurs; the 20 amino acids are used.
    """
    train = np.array([train_counts.get(letter, 0) + 1 for letter in AMINO_ACIDS], dtype=float)
    seen = np.array([validation_counts.get(letter, 0) for letter in AMINO_ACIDS], dtype=float)
    return float(-(seen / max(1.0, seen.sum()) * np.log(train / train.sum())).sum())
