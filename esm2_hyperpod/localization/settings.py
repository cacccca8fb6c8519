"""What must be known to use a tuned model, and the names of what can be tuned. Neither needs a model."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from esm2_hyperpod.artifacts import write_json_atomically
from esm2_hyperpod.errors import UserError
from esm2_hyperpod.localization.metrics import decide, fit_temperature, probabilities

SETTINGS = "localization.json"
TASKS = ("localization", "residue", "regression")
BEST = {  # validation scores that may pick the checkpoint, the usual one first
    "localization": ("mcc", "macro_f1", "accuracy", "loss"),
    "residue": ("mcc", "macro_f1", "accuracy", "loss"),
    "regression": ("spearman", "pearson", "rmse", "loss"),
}
LESS_IS_BETTER = ("rmse", "loss")
ADAPTER = "adapter_config.json"
ADAPTER_TUNINGS = ("qlora", "lora")
TUNINGS = (*ADAPTER_TUNINGS, "head", "full")
POOLINGS = ("cls", "mean", "attention")
NO_POOLING = "none"  # the head judges each residue by itself
CROPS = ("ends", "start", "end")
LORA_TARGETS = {"all": "query|key|value|dense", "attention": "query|key|value"}


@dataclass
class Settings:
    """What must be known to use a tuned model, saved beside it as `localization.json`.

    `mean` and `scale` are those of the training proteins' numbers: the model gives (number - mean) / scale.
    """

    base: str
    labels: list[str]
    multi_label: bool
    tuning: str
    pooling: str
    max_seq_length: int
    crop: str
    temperature: float = 1.0
    task: str = TASKS[0]
    mean: float = 0.0
    scale: float = 1.0

    def calibrate(self, logits: np.ndarray, targets: np.ndarray) -> None:
        """Fit the temperature on validation logits float[proteins, labels]."""
        self.temperature = fit_temperature(logits, targets)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated probabilities float64[proteins, labels] of logits of the same shape."""
        return probabilities(logits, self.temperature, self.multi_label)

    def joined(self, chosen: np.ndarray) -> str:
        """The labels of one protein, given as 0/1 int[labels]; several are joined by `|`."""
        return "|".join(label for label, inside in zip(self.labels, chosen) if inside)

    def cells(self, probability: np.ndarray) -> list[str]:
        """One protein's probabilities float[labels] as tables show them: its label, then a number a label."""
        label = self.joined(decide(probability[None], self.multi_label)[0])
        return [label, *(f"{value:.6f}" for value in probability)]

    def save(self, folder: Path) -> None:
        """Write `localization.json` into `folder`."""
        write_json_atomically(folder / SETTINGS, asdict(self))


@dataclass(frozen=True)
class Lora:
    """Rank, scale (`alpha` / `rank`), dropout and which linear layers of each block are adapted."""

    rank: int
    alpha: int
    dropout: float
    targets: str


def saved_in(output_dir: Path, tuning: str) -> Path:
    """Where a run leaves its tuned model."""
    return output_dir / ("adapter" if tuning in ADAPTER_TUNINGS else "model")


def read_settings(folder: Path) -> Settings:
    """Raises `UserError` if `folder` was not written by the fine-tuning script."""
    path = folder / SETTINGS
    try:
        return Settings(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{folder}: no tuned model (no {SETTINGS}); give OUTPUT_DIR/adapter") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: corrupt ({error}); train again") from None


def read_adapter_settings(folder: Path) -> Settings:
    """As `read_settings`; raises `UserError` also where `folder` is a tuned model but no adapter."""
    settings = read_settings(folder)
    if not (folder / ADAPTER).is_file():
        raise UserError(f"{folder}: a complete model, not an adapter; give an adapter/ folder")
    return settings


def is_tuned(name_or_path: str) -> bool:
    """Whether a folder was written by the fine-tuning script, not by pretraining or the hub."""
    return (Path(name_or_path) / SETTINGS).is_file()
