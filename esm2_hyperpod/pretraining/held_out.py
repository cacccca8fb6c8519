"""A model judged by a split of step 1, outside of a training."""

import os
from pathlib import Path

import torch

from esm2_hyperpod.console import counted
from esm2_hyperpod.errors import UserError
from esm2_hyperpod.pretraining import validation
from esm2_hyperpod.pretraining.arguments import PretrainingArguments
from esm2_hyperpod.pretraining.data import Split, open_split

TOKENIZE = "python 1.tokenize_uniref_csv.py"
PACK = {"cpu": 2_048, "cuda": 16_384}  # tokens


def open_held_out(dataset_dir: Path, name: str, longest: int) -> tuple[Split, int]:
    """A split of step 1, and the tokens of its packs. Raises `UserError` if there is nothing in it.

    Args:
        longest: tokens of a sequence, from which on it is cropped.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokens = max(PACK[device], -(-longest // 64) * 64)
    options = PretrainingArguments(
        dataset_dir=str(dataset_dir),
        output_dir=str(dataset_dir),  # nothing is written there
        tokens_per_device=tokens,
        max_seq_length=longest,
        report_to="none",
    )
    split = open_split(dataset_dir / name, options, validation.SEED, plans_folder=None)
    if split is None:
        raise UserError(f"{dataset_dir / name}: no sequences; make some with: {TOKENIZE} --{name}_size 0.01")
    return split, tokens


def held_out_figures(model: torch.nn.Module, split: Split, limit: int | None = None) -> dict[str, float]:
    """As `validation.validate`: of all packs, or of the first `limit`, which all processes share."""
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    packs = split.packs.packs_per_epoch
    numbers = validation.share_of_packs(packs if limit is None else min(packs, limit), rank, ranks)
    device = next(model.parameters()).device

    def batches():
        for number in counted(numbers, len(numbers), "masking and predicting", " packs"):
            batch = split.batches[validation.EPOCH, split.packs[max(number, 0)][1]]
            del batch["counts"]
            yield {name: value.to(device) if torch.is_tensor(value) else value
                   for name, value in batch.items()}, number >= 0  # fmt: skip

    return validation.validate(model, batches(), device)
