"""Turns a trained classifier into the files a run leaves: metrics, predictions, pictures, the tuned model."""

import csv
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from esm2_hyperpod.alphabet import build_tokenizer
from esm2_hyperpod.artifacts import write_json_atomically, write_text_atomically
from esm2_hyperpod.localization.encoding import EncodedProteins
from esm2_hyperpod.localization.metrics import probabilities
from esm2_hyperpod.localization.model import Settings
from esm2_hyperpod.localization.prediction import named_labels
from esm2_hyperpod.localization.report import (
    draw_confusion_matrix,
    draw_reliability,
    evaluate_test,
    write_model_card,
    write_report,
)
from esm2_hyperpod.proteins.splits import Splits


def write_results(
    output_dir: Path,
    splits: Splits,
    settings: Settings,
    train: EncodedProteins,
    test: EncodedProteins,
    logits: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    """Write metrics.json, report.md, the pictures and test_predictions.csv; return the metrics.

    Args:
        logits: float[test proteins, labels].
    """
    results = evaluate_test(logits, splits, settings, train, test, seed)
    scores = {name: value for name, value in results["model"].items() if name != "intervals_95"}
    metrics = {
        **scores,
        "majority_class_accuracy": results["baselines"]["majority_class"]["accuracy"],
        "synthetic_data": splits.facts["synthetic_data"],
        "seed": seed,
        "rejected_rows": len(splits.rejected),
        "cropped_proteins": train.cropped + test.cropped,
        "split": {name: value for name, value in splits.facts.items() if name != "options"},
        "test": results,
    }
    write_json_atomically(output_dir / "metrics.json", metrics)
    write_report(output_dir / "report.md", metrics, settings)
    title = f"{len(test)} test proteins, split: {splits.facts['origin']['test']}"
    title += ", synthetic" if metrics["synthetic_data"] else ""
    confusion = np.array(results["confusion_matrix"])
    draw_confusion_matrix(output_dir / "confusion_matrix.png", confusion, settings.labels, title)
    draw_reliability(output_dir / "reliability.png", results["calibration"]["reliability"], title)
    _write_test_predictions(output_dir / "test_predictions.csv", splits, settings, logits)
    return metrics


def _write_test_predictions(path: Path, splits: Splits, settings: Settings, logits: np.ndarray) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "true_label", "label", *settings.labels])
    rows = probabilities(logits, settings.temperature, settings.multi_label)
    for protein, row in zip(splits.test, rows):
        best = named_labels(row, settings)
        writer.writerow([protein.id, protein.label, best, *(f"{p:.6f}" for p in row)])
    write_text_atomically(path, text.getvalue())


def save_tuned(model: torch.nn.Module, settings: Settings, metrics: dict[str, Any], folder: Path) -> None:
    """Write the tuned model, its settings, tokenizer and model card into `folder`, whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    build_tokenizer().save_pretrained(temporary)
    settings.save(temporary)
    write_model_card(temporary / "README.md", metrics, settings)
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)
